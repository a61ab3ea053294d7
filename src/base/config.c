/* The option table, and reading it from flags, environment and file. Parsing of single values is in
 * option.c. */
#include "base/config.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/fs.h"

enum { CONFIG_FILE_MAX = 1 << 20, HELP_COLUMN = 30, HELP_WIDTH = 96 };

/* Commands that run a model, and those that read text. */
#define BENCHES                                                                                    \
    (KK_CMD_NIAH | KK_CMD_DECODE | KK_CMD_SPEC | KK_CMD_SCORECARD | KK_CMD_AGENTS | KK_CMD_BATCH)
#define SAMPLES   (KK_CMD_RUN | KK_CMD_CHAT)
#define SERVES    (KK_CMD_SERVE | KK_CMD_AGENTS)
#define RUNS      (SAMPLES | KK_CMD_LOGITS | KK_CMD_SERVE | KK_CMD_PPL | BENCHES)
#define SIZES     (RUNS | KK_CMD_PLAN)
#define TEXT      (KK_CMD_RUN | KK_CMD_TOKENIZE)
#define GENERATES (SAMPLES | KK_CMD_SERVE | BENCHES)
#define BIG       9e15 /* an integer that a double holds exactly */

#define MODEL    "Model"
#define CACHE    "KV cache"
#define DRAFT    "Speculation (changes speed, never tokens)"
#define INPUT    "Input"
#define SAMPLING "Generation"
#define SERVER   "Server"
#define HELD     "Sessions"
#define BENCH    "Measurement"
#define OUTPUT   "Output"
#define OTHER    "Other"

/* clang-format off */
static const struct kk_option table[KK_OPT_COUNT] = {
    [KK_OPT_MODEL] = {"model", 'm', KK_OPT_STRING, 0, KK_CMD_ALL, 0, 0, NULL, "MODEL", MODEL,
        "snapshot directory, GGUF file, or synth:CONFIG.json[:SEED] for random weights"},
    [KK_OPT_THREADS] = {"threads", 0, KK_OPT_INT, 0, SIZES, 0, 256, "0", "N", MODEL,
        "threads; 0: one for each core this process may use"},
    [KK_OPT_DEVICE] = {"device", 0, KK_OPT_STRING, 0, SIZES, 0, 0, "auto", "auto|cpu|cuda|cuda:N",
        MODEL,
        "where the model runs; auto: a GPU if this program was built for one and there is one"},
    [KK_OPT_CPU_ISA] = {"cpu-isa", 0, KK_OPT_ENUM, 0, SIZES, 0, 0, "auto",
        "auto|scalar|avx2|avx512", MODEL,
        "instruction set; auto: the best this machine has"},
    [KK_OPT_ACT] = {"act", 0, KK_OPT_ENUM, 0, SIZES, 0, 0, "auto", "auto|q8|f32|bf16", MODEL,
        "what weights are multiplied with. Quantised ones: 8 bits and a scale for every 32 numbers "
        "(auto, q8), or f32 as it is, several times slower. bf16 ones: f32, or rounded to bf16 "
        "(bf16: other tokens, faster with AVX512_BF16)"},
    [KK_OPT_PREFILL_CHUNK] = {"prefill-chunk", 0, KK_OPT_INT, 0, SIZES, 1, 65536, "512", "N", MODEL,
        "tokens of a prompt that go through the model at once"},

    [KK_OPT_KV] = {"kv", 0, KK_OPT_ENUM, 0, SIZES, 0, 0, "native",
        "full|native|s5|restored|sinkwin", CACHE,
        "rows kept: all; those the model can see; sinks and a window on sliding layers; the same, "
        "with the others of the model's window rebuilt by --f-theta; sinks and a window on every "
        "layer (no recall)"},
    [KK_OPT_KV_TYPE] = {"kv-type", 0, KK_OPT_ENUM, 0, SIZES, 0, 0, "auto", "auto|f32|bf16|q8_0",
        CACHE,
        "type of the kept rows; auto: f32 if the weights are, else bf16"},
    [KK_OPT_KV_SINKS] = {"kv-sinks", 0, KK_OPT_INT, 0, SIZES, 0, 65536, "4", "N", CACHE,
        "first rows that s5, restored and sinkwin keep"},
    [KK_OPT_KV_WINDOW] = {"kv-window", 0, KK_OPT_INT, 0, SIZES, 1, 16777216, "64", "N", CACHE,
        "latest rows that s5, restored and sinkwin keep"},
    [KK_OPT_KV_DEVICE] = {"kv-device", 0, KK_OPT_SIZE, 0, SIZES, 0, 0, "0", "BYTES", CACHE,
        "most device memory of a session's rows (64KiB, 16MiB); the rest pages to the host; "
        "0: no cap"},
    [KK_OPT_KV_HOST] = {"kv-host", 0, KK_OPT_SIZE, 0, SIZES, 0, 0, "0", "BYTES", CACHE,
        "most host memory of paged rows, all sessions together; 0: no cap"},
    [KK_OPT_KV_STAGING] = {"kv-staging", 0, KK_OPT_INT, 0, SIZES, 0, 65536, "0", "N", CACHE,
        "blocks of the ring that paged rows come back through; 0: 4, on a GPU 256"},
    [KK_OPT_F_THETA] = {"f-theta", 0, KK_OPT_STRING, 0, SIZES, 0, 0, NULL, "DIR", CACHE,
        "the learned map of --kv restored; exact: exact rows in its place (a check)"},
    [KK_OPT_CTX] = {"ctx", 0, KK_OPT_INT, 0, SIZES & ~(KK_CMD_DECODE | KK_CMD_PPL), 0, BIG, "0",
        "N", CACHE,
        "most tokens of a session; 0: what the model was made for (beyond it is warned of)"},

    [KK_OPT_DRAFT] = {"draft", 0, KK_OPT_STRING, 0, GENERATES | KK_CMD_PLAN, 0, 0, "none",
        "DIR|ngram|none", DRAFT,
        "who proposes tokens: a drafter's directory, earlier text (ngram), or nobody"},
    [KK_OPT_DRAFT_WIDTH] = {"draft-width", 0, KK_OPT_INT, 0, GENERATES | KK_CMD_PLAN, 0, 16,
        "0", "N", DRAFT,
        "tokens verified at once; 0: found while running"},
    [KK_OPT_DRAFT_DEVICE] = {"draft-device", 0, KK_OPT_SIZE, 0, GENERATES | KK_CMD_PLAN, 0, 0, "0",
        "BYTES", DRAFT,
        "as --kv-device, for the drafter's own rows; 0: no cap"},

    [KK_OPT_PROMPT] = {"prompt", 'p', KK_OPT_STRING, 0, TEXT, 0, 0, NULL, "TEXT", INPUT,
        "the text"},
    [KK_OPT_FILE] = {"file", 'f', KK_OPT_STRING, 0, TEXT | KK_CMD_PPL, 0, 0, NULL, "FILE", INPUT,
        "a file with the text; -: standard input"},
    [KK_OPT_DECODE] = {"decode", 0, KK_OPT_STRING, 1, KK_CMD_TOKENIZE, 0, 0, NULL, "IDS", INPUT,
        "print the text of these ids (\"5,17,3\" or \"[5, 17, 3]\") instead"},
    [KK_OPT_IDS_FILE] = {"ids", 0, KK_OPT_STRING, 0, KK_CMD_LOGITS, 0, 0, NULL, "FILE", INPUT,
        "a JSON list of token ids; -: standard input"},

    [KK_OPT_SYSTEM] = {"system", 0, KK_OPT_STRING, 0, KK_CMD_CHAT, 0, 0, NULL, "TEXT", INPUT,
        "the system message a conversation begins with"},
    [KK_OPT_TEMPLATE] = {"template", 0, KK_OPT_ENUM, 0, KK_CMD_CHAT | KK_CMD_NIAH, 0, 0, "auto",
        "auto|gemma|gemma4|chatml|llama3", INPUT,
        "how turns are marked; auto: by the control tokens that the tokenizer has (bench niah: "
        "raw text unless given)"},

    [KK_OPT_N] = {"n", 'n', KK_OPT_INT, 0, KK_CMD_RUN, 1, BIG, "128", "N", SAMPLING,
        "most tokens to generate"},
    [KK_OPT_ANSWER] = {"n", 'n', KK_OPT_INT, 0, KK_CMD_CHAT, 1, BIG, "1024", "N", SAMPLING,
        "most tokens of an answer"},
    [KK_OPT_TEMP] = {"temp", 0, KK_OPT_REAL, 0, SAMPLES, 0, 100, "0", "X", SAMPLING,
        "temperature; 0: always the likeliest token"},
    [KK_OPT_TOP_K] = {"top-k", 0, KK_OPT_INT, 0, SAMPLES, 0, 16777216, "0", "N", SAMPLING,
        "sample from the N likeliest; 0: off"},
    [KK_OPT_TOP_P] = {"top-p", 0, KK_OPT_REAL, 0, SAMPLES, 0, 1, "1", "X", SAMPLING,
        "sample from the likeliest that make up X of the probability; 1: off"},
    [KK_OPT_MIN_P] = {"min-p", 0, KK_OPT_REAL, 0, SAMPLES, 0, 1, "0", "X", SAMPLING,
        "sample from those at least X times as likely as the likeliest; 0: off"},
    [KK_OPT_REPEAT_PENALTY] = {"repeat-penalty", 0, KK_OPT_REAL, 0, SAMPLES, 0.01, 100, "1",
        "X", SAMPLING,
        "make earlier tokens less likely; 1: off"},
    [KK_OPT_REPEAT_LAST_N] = {"repeat-last-n", 0, KK_OPT_INT, 0, SAMPLES, 0, 16777216, "64",
        "N", SAMPLING,
        "how many earlier tokens that concerns; 0: all"},
    [KK_OPT_SEED] = {"seed", 0, KK_OPT_INT, 0, GENERATES & ~KK_CMD_SERVE, 0, BIG, NULL, "N",
        SAMPLING, "same seed, same result (unset: drawn and told; benches: 0)"},
    [KK_OPT_STOP] = {"stop", 0, KK_OPT_STRINGS, 0, SAMPLES, 0, 0, NULL, "TEXT", SAMPLING,
        "stop before this text; may be given more than once"},
    [KK_OPT_IGNORE_EOS] = {"ignore-eos", 0, KK_OPT_BOOL, 0, SAMPLES, 0, 0, "no", NULL, SAMPLING,
        "go on after an end-of-sequence token"},

    [KK_OPT_GRPC] = {"grpc", 0, KK_OPT_STRING, 0, KK_CMD_SERVE, 0, 0, "127.0.0.1:50051",
        "HOST:PORT", SERVER,
        "where calls are answered; port 0: one that is free"},
    [KK_OPT_METRICS] = {"metrics", 0, KK_OPT_STRING, 0, KK_CMD_SERVE, 0, 0, NULL, "HOST:PORT",
        SERVER,
        "where /metrics (Prometheus), /healthz and /readyz are; unset: nowhere"},
    [KK_OPT_AUTH_TOKEN_FILE] = {"auth-token-file", 0, KK_OPT_STRING, 0, KK_CMD_SERVE, 0, 0, NULL,
        "FILE", SERVER,
        "bearer tokens, one a line: who has none is refused (health checks are not)"},
    [KK_OPT_TLS_CERT] = {"tls-cert", 0, KK_OPT_STRING, 0, KK_CMD_SERVE, 0, 0, NULL, "FILE", SERVER,
        "certificate (PEM): answer over TLS alone"},
    [KK_OPT_TLS_KEY] = {"tls-key", 0, KK_OPT_STRING, 0, KK_CMD_SERVE, 0, 0, NULL, "FILE", SERVER,
        "its key (PEM)"},
    [KK_OPT_MAX_MESSAGE] = {"max-message", 0, KK_OPT_SIZE, 0, KK_CMD_SERVE, 0, 0, "4MiB", "BYTES",
        SERVER, "most bytes of a request"},
    [KK_OPT_GRACE] = {"grace", 0, KK_OPT_REAL, 0, KK_CMD_SERVE, 0, 86400, "5", "SECONDS", SERVER,
        "how long calls may go on after SIGTERM or SIGINT; a second signal ends at once"},
    [KK_OPT_MAX_CALLS] = {"max-calls", 0, KK_OPT_INT, 0, SERVES, 1, 1e6, "4096", "N", SERVER,
        "calls that run or wait; more are refused"},
    [KK_OPT_MAX_BATCH] = {"max-batch", 0, KK_OPT_INT, 0, SERVES, 1, 4096, "16", "N", SERVER,
        "sessions that one step of the model serves together"},
    [KK_OPT_STEP_ROWS] = {"step-rows", 0, KK_OPT_INT, 0, SERVES, 1, 65536, "512", "N", SERVER,
        "tokens of one step, read and written ones together"},

    [KK_OPT_CAPACITY] = {"capacity", 0, KK_OPT_INT, 0, SERVES, 0, 1e6, "0", "N", HELD,
        "most sessions; 0: as many as the bytes allow"},
    [KK_OPT_IDLE_TTL] = {"idle-ttl", 0, KK_OPT_REAL, 0, SERVES, 0, 1e9, "1800", "SECONDS", HELD,
        "a session idle for so long is closed; 0: never"},
    [KK_OPT_EVICT_IDLE] = {"evict-idle", 0, KK_OPT_BOOL, 0, SERVES, 0, 0, "no", NULL, HELD,
        "close the longest idle session for a new one, rather than refuse it"},
    [KK_OPT_KV_TOTAL] = {"kv-total", 0, KK_OPT_SIZE, 0, SERVES, 0, 0, "0", "BYTES", HELD,
        "most device memory of all sessions' rows; idle sessions are moved out; 0: no cap"},
    [KK_OPT_IDLE_HOST] = {"idle-host", 0, KK_OPT_SIZE, 0, SERVES, 0, 0, "0", "BYTES", HELD,
        "most host memory of sessions that were moved out; 0: no cap"},
    [KK_OPT_KV_DISK] = {"kv-disk", 0, KK_OPT_SIZE, 0, SERVES, 0, 0, "0", "BYTES", HELD,
        "most bytes of saved rows under --state; 0: no cap"},
    [KK_OPT_STATE] = {"state", 0, KK_OPT_STRING, 0, KK_CMD_SERVE, 0, 0, NULL, "DIR", HELD,
        "keep sessions here: they outlive the process, however it ends"},
    [KK_OPT_JOURNAL_FULL] = {"journal-full", 0, KK_OPT_BOOL, 0, KK_CMD_SERVE, 0, 0, "no", NULL,
        HELD,
        "tokens are safe from a power failure too, not just from the process's end"},

    [KK_OPT_SESSIONS] = {"sessions", 0, KK_OPT_INT, 0, KK_CMD_PLAN, 1, 1e6, "1", "N", BENCH,
        "sessions held at the same time"},
    [KK_OPT_LINES] = {"lines", 0, KK_OPT_LIST, 0,
        KK_CMD_NIAH | KK_CMD_SCORECARD | KK_CMD_BATCH, 10, 9999999, "60,160,320", "N,..", BENCH,
        "lines of padding in a document, one rung for each (bench batch: the first)"},
    [KK_OPT_TOKENS] = {"tokens", 0, KK_OPT_LIST, 0,
        KK_CMD_SCORECARD | KK_CMD_BATCH | KK_CMD_SPEC, 2, 1e9, NULL, "N,..", BENCH,
        "documents of N random token ids in place of text, one rung for each: for a model without "
        "a tokenizer; nothing is recalled (bench batch and spec: the first; 256, 64)"},
    [KK_OPT_SAMPLES] = {"samples", 0, KK_OPT_INT, 0,
        KK_CMD_NIAH | KK_CMD_SCORECARD | KK_CMD_SPEC, 1, 100000, "8", "N", BENCH,
        "documents of each rung"},
    [KK_OPT_KEYS] = {"keys", 0, KK_OPT_INT, 0, KK_CMD_NIAH, 0, 200, "0", "N", BENCH,
        "hide N keyed facts and ask for one; 0: one code, the reference's documents"},
    [KK_OPT_REPLAY] = {"replay", 0, KK_OPT_REAL, 0, KK_CMD_SPEC | KK_CMD_SCORECARD, 0, 16, "0",
        "A", BENCH,
        "drafts are the known answer, corrupted so that blocks of 16 commit A tokens on average "
        "(1: always wrong); 0: the drafter's own"},
    [KK_OPT_DEPTHS] = {"ctx", 0, KK_OPT_LIST, 1, KK_CMD_DECODE, 0, 1e9, "0,3072,6144",
        "N,..", BENCH,
        "tokens of context already there, one run for each"},
    [KK_OPT_REPS] = {"reps", 0, KK_OPT_INT, 0, KK_CMD_DECODE | KK_CMD_SPEC, 1, 1000, "5",
        "N", BENCH,
        "repetitions; the median counts"},
    [KK_OPT_WINDOW] = {"ctx", 0, KK_OPT_INT, 1, KK_CMD_PPL, 2, 1e9, "512", "N", BENCH,
        "tokens of a window; those of its second half are scored"},
    [KK_OPT_WINDOWS] = {"windows", 0, KK_OPT_INT, 0, KK_CMD_PPL, 0, 1e9, "0", "N", BENCH,
        "most windows of the text; 0: all"},
    [KK_OPT_AGAINST] = {"against", 0, KK_OPT_STRING, 0, KK_CMD_PPL, 0, 0, NULL, "NAME=VALUE,..",
        BENCH, "compare with the same model under other options, such as kv-type=f32,act=f32: KL"},

    [KK_OPT_LEVELS] = {"levels", 0, KK_OPT_LIST, 0, KK_CMD_AGENTS, 1, 65536,
        "1,2,4,8,16,32,64,128,256", "N,..", BENCH,
        "agents at the same time, one run for each"},
    [KK_OPT_BATCH_LEVELS] = {"levels", 0, KK_OPT_LIST, 0, KK_CMD_BATCH, 1, 4096,
        "1,2,4,8,16,32,64", "N,..", BENCH, "sessions in a step, one run for each"},
    [KK_OPT_CONTEXT_LEN] = {"context-len", 0, KK_OPT_INT, 0, KK_CMD_AGENTS, 1, 1e9, "8", "N",
        BENCH, "tokens that each agent appends"},
    [KK_OPT_GEN] = {"gen", 0, KK_OPT_INT, 0, KK_CMD_AGENTS, 1, 1e9, "4", "N", BENCH,
        "tokens that each agent then asks for"},
    [KK_OPT_MIXED] = {"mixed", 0, KK_OPT_BOOL, 0, KK_CMD_AGENTS, 0, 0, "no", NULL, BENCH,
        "every other agent reads while the others write: the gaps between tokens of those"},
    [KK_OPT_CONNECT] = {"connect", 0, KK_OPT_STRING, 0, KK_CMD_AGENTS, 0, 0, NULL, "HOST:PORT",
        BENCH, "measure a server that runs already, rather than start one"},
    [KK_OPT_TLS_CA] = {"tls-ca", 0, KK_OPT_STRING, 0, KK_CMD_AGENTS, 0, 0, NULL, "FILE", BENCH,
        "with --connect: who signed its certificate (PEM)"},
    [KK_OPT_TOKEN_FILE] = {"token-file", 0, KK_OPT_STRING, 0, KK_CMD_AGENTS, 0, 0, NULL, "FILE",
        BENCH, "with --connect: a bearer token"},
    [KK_OPT_LABEL] = {"label", 0, KK_OPT_STRING, 0, KK_CMD_AGENTS, 0, 0, NULL, "TEXT", BENCH,
        "a name for the report"},

    [KK_OPT_TENSORS] = {"tensors", 0, KK_OPT_BOOL, 0, KK_CMD_INSPECT, 0, 0, "no", NULL, OUTPUT,
        "list every tensor"},
    [KK_OPT_PRINT_IDS] = {"ids", 0, KK_OPT_BOOL, 0, KK_CMD_RUN, 0, 0, "no", NULL, OUTPUT,
        "print token ids instead of text"},
    [KK_OPT_OUT] = {"out", 'o', KK_OPT_STRING, 0, KK_CMD_LOGITS, 0, 0, NULL, "FILE.npy", OUTPUT,
        "NumPy file, float32 [tokens, vocabulary]"},
    [KK_OPT_JSON] = {"json", 0, KK_OPT_REPORT, 0, KK_CMD_ALL, 0, 0, NULL, "FILE", OUTPUT,
        "JSON instead of text, or beside it in FILE"},

    [KK_OPT_SVG] = {"svg", 0, KK_OPT_REPORT, 1, KK_CMD_SCORECARD | KK_CMD_AGENTS, 0, 0, NULL,
        "FILE", OUTPUT, "a picture of the report"},

    [KK_OPT_CONFIG] = {"config", 0, KK_OPT_STRING, 0, KK_CMD_ALL, 0, 0, NULL, "FILE", OTHER,
        "read options from lines \"name = value\""},
    [KK_OPT_PRINT_CONFIG] = {"print-config", 0, KK_OPT_BOOL, 1, KK_CMD_ALL, 0, 0, "no", NULL, OTHER,
        "print every option, its value and where that came from"},
    [KK_OPT_HELP] = {"help", 'h', KK_OPT_BOOL, 1, KK_CMD_ALL, 0, 0, "no", NULL, OTHER,
        "print this"},
};
/* clang-format on */

const struct kk_option *kk_option_at(enum kk_option_id id)
{
    return &table[id];
}

const char *kk_option_group(int i)
{
    static const char *const groups[] = {MODEL, INPUT, SERVER, HELD,   SAMPLING,
                                         BENCH, CACHE, DRAFT,  OUTPUT, OTHER};
    return i < (int)(sizeof groups / sizeof *groups) ? groups[i] : NULL;
}

/* ---- setting values ----------------------------------------------------------------------- */

/* Set option id unless a stronger place already has; a wrong value is refused either way. */
static int set(struct kk_config *c, int id, const char *text, enum kk_origin origin,
               struct kk_err *err)
{
    struct kk_value v = {0};
    int rc = kk_option_parse(&table[id], text, &v, err);
    if (rc || origin < c->origin[id]) return rc;
    if (table[id].type == KK_OPT_STRINGS && origin == c->origin[id]) {
        struct kk_value *had = &c->value[id];
        if (had->n == KK_LIST_MAX)
            return kk_fail(err, KK_EUSAGE, "--%s is given more than %d times", table[id].name,
                           KK_LIST_MAX);
        had->text[had->n++] = text;
        return 0;
    }
    c->value[id] = v;
    c->origin[id] = origin;
    return 0;
}

static int applies(const struct kk_config *c, int id)
{
    return (table[id].commands & (unsigned)c->command) != 0;
}

/* The command's option of that name [len], or -1; *elsewhere: some other command has it. */
static int find(const struct kk_config *c, const char *name, size_t len, int *elsewhere)
{
    *elsewhere = 0;
    for (int i = 0; i < KK_OPT_COUNT; i++) {
        if (strncmp(table[i].name, name, len) != 0 || table[i].name[len]) continue;
        if (applies(c, i)) return i;
        *elsewhere = 1;
    }
    return -1;
}

/* The option nearest to a misspelt name, or NULL if none is near. */
static const char *nearest(const struct kk_config *c, const char *name)
{
    int best = 1 + (int)strlen(name) / 2;
    const char *found = NULL;
    if (best > 4) best = 4;
    for (int i = 0; i < KK_OPT_COUNT; i++) {
        if (!applies(c, i)) continue;
        int d = kk_edit_distance(name, table[i].name);
        if (strlen(table[i].name) >= 4 && !strncmp(name, table[i].name, strlen(table[i].name)))
            d = 1; /* --temperature for --temp */
        if (d < best) {
            best = d;
            found = table[i].name;
        }
    }
    return found;
}

static int unknown(const struct kk_config *c, const char *command, const char *name, int elsewhere,
                   struct kk_err *err)
{
    const char *near = nearest(c, name);
    if (elsewhere)
        return kk_fail(err, KK_EUSAGE,
                       "--%s does not apply to 'kakeya %s' (kakeya %s --help lists its options)",
                       name, command, command);
    if (near) return kk_fail(err, KK_EUSAGE, "unknown option --%s: did you mean --%s?", name, near);
    return kk_fail(err, KK_EUSAGE, "unknown option --%s (kakeya %s --help lists them)", name,
                   command);
}

/* ---- flags -------------------------------------------------------------------------------- */

/* A type whose flag may stand alone; its value comes only after '='. */
static const char *alone(const struct kk_option *o)
{
    return o->type == KK_OPT_BOOL ? "yes" : o->type == KK_OPT_REPORT ? "-" : NULL;
}

static int needs_value(const struct kk_option *o, struct kk_err *err)
{
    return kk_fail(err, KK_EUSAGE, "--%s needs a value: --%s %s", o->name, o->name,
                   o->words ? o->words : "VALUE");
}

/* --name, --name=VALUE or --name VALUE at argv[*i]. */
static int long_flag(struct kk_config *c, const char *command, int argc, char *const *argv, int *i,
                     struct kk_err *err)
{
    const char *name = argv[*i] + 2, *eq = strchr(name, '=');
    size_t len = eq ? (size_t)(eq - name) : strlen(name);
    int elsewhere, id = find(c, name, len, &elsewhere);
    if (id < 0) {
        char word[64];
        snprintf(word, sizeof word, "%.*s", (int)(len < 60 ? len : 60), name);
        return unknown(c, command, word, elsewhere, err);
    }
    const char *text = eq ? eq + 1 : alone(&table[id]);
    if (!text && *i + 1 >= argc) return needs_value(&table[id], err);
    return set(c, id, text ? text : argv[++*i], KK_FROM_FLAG, err);
}

/* -m VALUE or -mVALUE. */
static int short_flag(struct kk_config *c, const char *command, int argc, char *const *argv, int *i,
                      struct kk_err *err)
{
    const char *a = argv[*i];
    int id = 0;
    while (id < KK_OPT_COUNT && (table[id].letter != a[1] || !applies(c, id))) id++;
    if (id == KK_OPT_COUNT)
        return kk_fail(err, KK_EUSAGE, "unknown option -%c (kakeya %s --help lists them)", a[1],
                       command);
    const char *text = alone(&table[id]);
    if (text && a[2]) return kk_fail(err, KK_EUSAGE, "-%c takes no value", a[1]);
    if (!text && a[2]) text = a + 2;
    if (!text && *i + 1 >= argc) return needs_value(&table[id], err);
    return set(c, id, text ? text : argv[++*i], KK_FROM_FLAG, err);
}

static int read_flags(struct kk_config *c, const char *command, int argc, char *const *argv,
                      struct kk_err *err)
{
    int rc = 0, only_words = 0;
    for (int i = 0; !rc && i < argc; i++) {
        const char *a = argv[i];
        if (!only_words && !strcmp(a, "--")) {
            only_words = 1;
        } else if (!only_words && a[0] == '-' && a[1] == '-') {
            rc = long_flag(c, command, argc, argv, &i, err);
        } else if (!only_words && a[0] == '-' && a[1]) {
            rc = short_flag(c, command, argc, argv, &i, err);
        } else if (c->n_args < (int)(sizeof c->args / sizeof *c->args)) {
            c->args[c->n_args++] = a;
        } else {
            rc = kk_fail(err, KK_EUSAGE, "too many arguments at '%s'", a);
        }
    }
    return rc;
}

/* ---- environment and file ----------------------------------------------------------------- */

static int read_environment(struct kk_config *c, struct kk_err *err)
{
    for (int id = 0; id < KK_OPT_COUNT; id++) {
        char name[64];
        if (!applies(c, id) || table[id].flag_only) continue;
        int n = snprintf(name, sizeof name, "KAKEYA_%s", table[id].name);
        for (int i = 7; i < n; i++) {
            if (name[i] == '-') name[i] = '_';
            if (name[i] >= 'a' && name[i] <= 'z') name[i] = (char)(name[i] - 'a' + 'A');
        }
        const char *text = getenv(name);
        int rc = text ? set(c, id, text, KK_FROM_ENVIRONMENT, err) : 0;
        if (rc) return kk_wrap(err, rc, "%s", name);
    }
    return 0;
}

/* Cut blanks at both ends, in place. */
static char *trim(char *s)
{
    s += strspn(s, " \t\r");
    size_t n = strlen(s);
    while (n && strchr(" \t\r", s[n - 1])) s[--n] = 0;
    return s;
}

/* One line, in place. An option of another command is checked by name alone, and passed over. */
static int file_line(struct kk_config *c, const char *command, char *line, struct kk_err *err)
{
    char *name = trim(line), *eq = strchr(name, '=');
    int elsewhere;
    if (!*name || *name == '#') return 0;
    if (!eq) return kk_fail(err, KK_EUSAGE, "'%.64s' is not \"name = value\"", name);
    *eq = 0;
    name = trim(name);
    char *text = trim(eq + 1);
    size_t n = strlen(text);
    if (n >= 2 && text[0] == '"' && text[n - 1] == '"') {
        text[n - 1] = 0;
        text++;
    }
    int id = find(c, name, strlen(name), &elsewhere);
    if (id < 0) return elsewhere ? 0 : unknown(c, command, name, 0, err);
    if (id == KK_OPT_CONFIG || table[id].flag_only)
        return kk_fail(err, KK_EUSAGE, "'%s' can only be a flag", name);
    return set(c, id, text, KK_FROM_FILE, err);
}

static int read_file(struct kk_config *c, const char *command, const char *path, struct kk_err *err)
{
    int rc = kk_fs_read(path, &c->file, err), number = 0;
    if (rc) return kk_wrap(err, rc, "--config");
    if (c->file.len && memchr(c->file.data, 0, c->file.len))
        return kk_fail(err, KK_EUSAGE, "%s: not a text file", path);
    for (char *line = c->file.data; line && !rc;) {
        char *end = strchr(line, '\n');
        if (end) *end = 0;
        number++;
        rc = file_line(c, command, line, err);
        line = end ? end + 1 : NULL;
    }
    return rc ? kk_wrap(err, rc, "%s:%d", path, number) : 0;
}

/* The model that `make install` (BIN/../share/kakeya/models/tiny) or `make bundle`
 * (BIN/models/tiny) put beside the program. */
static void find_installed_model(struct kk_config *c)
{
    static const char *const places[] = {"/../share/kakeya/models/tiny", "/models/tiny"};
    char *path = c->installed_model;
    ssize_t n = readlink("/proc/self/exe", path, sizeof c->installed_model - 1);
    path[n > 0 ? n : 0] = 0;
    char *slash = strrchr(path, '/');
    if (!slash) return;
    size_t room = sizeof c->installed_model - (size_t)(slash - path);
    for (int i = 0; i < 2; i++) {
        if (snprintf(slash, room, "%s", places[i]) >= (int)room || !kk_fs_is_dir(path)) continue;
        c->value[KK_OPT_MODEL].text[0] = path;
        c->origin[KK_OPT_MODEL] = KK_FROM_DEFAULT;
        return;
    }
}

int kk_config_load(struct kk_config *c, enum kk_command command, const char *name, int argc,
                   char *const *argv, struct kk_err *err)
{
    *c = (struct kk_config){.command = command};
    kk_buf_init(&c->file, CONFIG_FILE_MAX);
    int rc = 0;
    for (int id = 0; !rc && id < KK_OPT_COUNT; id++)
        if (applies(c, id) && table[id].def) rc = set(c, id, table[id].def, KK_FROM_DEFAULT, err);
    KK_BUG_ON(rc); /* a default that its own option refuses */
    if (applies(c, KK_OPT_MODEL)) find_installed_model(c);
    rc = read_flags(c, name, argc, argv, err);
    if (rc || kk_config_int(c, KK_OPT_HELP)) goto out;
    rc = read_environment(c, err);
    const char *path = kk_config_text(c, KK_OPT_CONFIG);
    if (!rc && path) rc = read_file(c, name, path, err);
out:
    if (rc) kk_config_release(c);
    return rc;
}

void kk_config_release(struct kk_config *c)
{
    kk_buf_release(&c->file);
}

int kk_config_change(struct kk_config *c, const char *command, const char *name, const char *text,
                     struct kk_err *err)
{
    int elsewhere, id = find(c, name, strlen(name), &elsewhere);
    return id < 0 ? unknown(c, command, name, elsewhere, err) : set(c, id, text, KK_FROM_FLAG, err);
}

int kk_config_has(const struct kk_config *c, enum kk_option_id id)
{
    return c->origin[id] != KK_FROM_NOWHERE;
}

int kk_config_given(const struct kk_config *c, enum kk_option_id id)
{
    return c->origin[id] > KK_FROM_DEFAULT;
}

int64_t kk_config_int(const struct kk_config *c, enum kk_option_id id)
{
    return c->value[id].i;
}

double kk_config_real(const struct kk_config *c, enum kk_option_id id)
{
    return c->value[id].d;
}

const char *kk_config_text(const struct kk_config *c, enum kk_option_id id)
{
    return c->value[id].text[0];
}

int kk_config_colour(int fd)
{
    const char *no = getenv("NO_COLOR"), *term = getenv("TERM");
    return !(no && *no) && term && strcmp(term, "dumb") != 0 && isatty(fd);
}

/* ---- help and print-config ---------------------------------------------------------------- */

/* Append words of text from `column` on, broken at HELP_WIDTH. */
static int wrap(struct kk_buf *out, const char *text, int column)
{
    int rc = 0, at = column;
    while (!rc && *text) {
        size_t n = strcspn(text, " ");
        if (at > column && at + 1 + (int)n > HELP_WIDTH) {
            rc = kk_buf_printf(out, "\n%*s", column, "");
            at = column;
        } else if (at > column) {
            rc = kk_buf_putc(out, ' ');
            at++;
        }
        if (!rc) rc = kk_buf_append(out, text, n);
        at += (int)n;
        text += n;
        text += strspn(text, " ");
    }
    return rc ? rc : kk_buf_putc(out, '\n');
}

static int help_line(const struct kk_option *o, struct kk_buf *out)
{
    char left[96], text[512];
    int n = snprintf(left, sizeof left, o->letter ? "  -%c, " : "      ", o->letter);
    const char *sep = o->type == KK_OPT_REPORT ? "[=" : " ", *end = *sep == '[' ? "]" : "";
    if (strlen(o->name) == 1)
        n = snprintf(left, sizeof left, "  -%c", o->letter);
    else
        n += snprintf(left + n, sizeof left - (size_t)n, "--%s", o->name);
    int words_below = o->type == KK_OPT_ENUM;
    if (o->words)
        snprintf(left + n, sizeof left - (size_t)n, "%s%s%s", sep, words_below ? "WORD" : o->words,
                 end);
    n = snprintf(text, sizeof text, "%s%s%s", words_below ? o->words : "", words_below ? ": " : "",
                 o->help);
    if (o->def && o->type != KK_OPT_BOOL)
        snprintf(text + n, sizeof text - (size_t)n, " (default %s)", o->def);
    int rc = kk_buf_printf(out, "%-*s", HELP_COLUMN - 1, left);
    if (!rc && strlen(left) >= HELP_COLUMN - 1)
        rc = kk_buf_printf(out, "\n%*s", HELP_COLUMN - 1, "");
    if (!rc) rc = kk_buf_putc(out, ' ');
    return rc ? rc : wrap(out, text, HELP_COLUMN);
}

int kk_config_help(enum kk_command command, struct kk_buf *out)
{
    const char *group;
    int rc = 0;
    for (int g = 0; (group = kk_option_group(g)) != NULL; g++) {
        int any = 0;
        for (int id = 0; !rc && id < KK_OPT_COUNT; id++) {
            const struct kk_option *o = &table[id];
            if (!(o->commands & (unsigned)command) || strcmp(o->group, group)) continue;
            if (!any++) rc = kk_buf_printf(out, "\n%s\n", group);
            if (!rc) rc = help_line(o, out);
        }
    }
    return rc;
}

int kk_config_print(const struct kk_config *c, struct kk_buf *out)
{
    static const char *const origins[] = {"unset", "default", "file", "environment", "flag"};
    int rc = 0;
    for (int id = 0; !rc && id < KK_OPT_COUNT; id++) {
        const struct kk_value *v = &c->value[id];
        if (!applies(c, id) || id == KK_OPT_PRINT_CONFIG || id == KK_OPT_HELP) continue;
        int n = v->n && table[id].type == KK_OPT_STRINGS ? v->n : 1;
        for (int i = 0; !rc && i < n; i++)
            rc = kk_buf_printf(out, "%-16s %-24s %s\n", table[id].name,
                               v->text[i] ? v->text[i] : "-", origins[c->origin[id]]);
    }
    return rc;
}
