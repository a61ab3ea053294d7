#include "cli/commands.h"

#include <string.h>

static const struct kk_cli_command commands[] = {
    {"run", KK_CMD_RUN, kk_cli_run, "-m MODEL -p TEXT | -f FILE", "continue a text"},
    {"chat", KK_CMD_CHAT, kk_cli_chat, "-m MODEL [--system TEXT]", "talk with a model"},
    {"serve", KK_CMD_SERVE, kk_cli_serve, "-m MODEL [--grpc HOST:PORT] [--metrics HOST:PORT]",
     "hold sessions for clients, over gRPC"},
    {"inspect", KK_CMD_INSPECT, kk_cli_inspect, "MODEL", "what a model is made of"},
    {"tokenize", KK_CMD_TOKENIZE, kk_cli_tokenize, "-m MODEL -p TEXT | -f FILE | --decode IDS",
     "text to token ids, and back"},
    {"logits", KK_CMD_LOGITS, kk_cli_logits, "-m MODEL --ids FILE.json -o FILE.npy",
     "logits of every position, for comparison with other programs"},
    {"plan", KK_CMD_PLAN, kk_cli_plan, "-m MODEL [--ctx N] [--sessions N]",
     "bytes a model and its sessions take, before loading it"},
    {"bench niah", KK_CMD_NIAH, kk_cli_bench_niah, "-m MODEL [--lines 60,160,320]",
     "recall of a fact hidden in long documents"},
    {"bench batch", KK_CMD_BATCH, kk_cli_bench_batch, "-m MODEL [--levels 1,8,64]",
     "many sessions a step against one after the other"},
    {"bench decode", KK_CMD_DECODE, kk_cli_bench_decode, "-m MODEL [--ctx 0,3072,6144]",
     "tokens a second, reading and writing, by context"},
    {"bench ppl", KK_CMD_PPL, kk_cli_bench_ppl, "-m MODEL -f FILE [--against NAME=VALUE,..]",
     "perplexity of a text, and the distance between two settings"},
    {"bench spec", KK_CMD_SPEC, kk_cli_bench_spec, "-m MODEL --draft DIR|ngram [--replay A]",
     "drafting against plain decoding on five kinds of text"},
    {"bench scorecard", KK_CMD_SCORECARD, kk_cli_bench_scorecard,
     "-m MODEL [--draft DIR] [--f-theta DIR] [--kv-device BYTES]",
     "bytes, recall, speed and identity of every KV policy, side by side"},
    {"bench agents", KK_CMD_AGENTS, kk_cli_bench_agents, "-m MODEL [--levels 1,16,256]",
     "many agents at once, each with a session of its own, against a server"},
};
enum { N_COMMANDS = sizeof commands / sizeof *commands };

const struct kk_cli_command *kk_cli_command_at(int i)
{
    return i < N_COMMANDS ? &commands[i] : NULL;
}

const char *kk_cli_bench_name(const struct kk_cli_command *c)
{
    return strncmp(c->name, "bench ", 6) ? NULL : c->name + 6;
}

int kk_cli_document(const char *name, struct kk_buf *out, struct kk_err *err)
{
    static const struct {
        const char *name;
        int (*fn)(struct kk_buf *out);
    } documents[] = {
        {"man", kk_cli_manual},
        {"bash", kk_cli_complete_bash},
        {"zsh", kk_cli_complete_zsh},
        {"fish", kk_cli_complete_fish},
    };
    for (int i = 0; i < 4; i++) {
        if (strcmp(documents[i].name, name) != 0) continue;
        int rc = documents[i].fn(out);
        return rc ? kk_fail(err, rc, "cannot print '%s': %s", name, kk_strerror(rc)) : 0;
    }
    return kk_fail(err, KK_EUSAGE, "help --%.32s: it is --man, --bash, --zsh or --fish", name);
}
