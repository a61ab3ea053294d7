/* kakeya bench niah: how often a fact hidden in a long document is found again. BOS and the raw
 * text go in (with --template: a user's turn), 24 greedy tokens come out, of a fresh session for
 * each document.
 *
 * recall: the answer is somewhere in the text of those tokens. recall_exact: it is what comes
 * first, up to a newline or the end; a special token ends it too (a model of raw text may go on
 * with <bos> and another document). */
#include <stdio.h>

#include "cli/answer.h"
#include "cli/common.h"
#include "cli/niah.h"
#include "tok/chat.h"

enum { ANSWER_TOKENS = 24 };

struct rung {
    int lines, samples, hits, exact;
    int64_t prompt_tokens; /* of all samples */
    int64_t decoded, steps;
    double prefill_s, decode_s;
    int64_t device_bytes, host_bytes; /* most of any sample */
};

struct bench {
    struct kk_cli *cli;
    struct kk_buf prompt, answer, first; /* first: the answer up to a special token */
    struct kk_ids ids;
    struct kk_chat form; /* --template: the document is a user's turn; tok NULL: raw text */
    int total, done;
};

static int encode(struct bench *b, struct kk_err *err)
{
    int64_t bos = b->cli->info.bos;
    b->ids.n = 0;
    if (b->form.tok)
        return kk_chat_turn(&b->form, NULL, 0, NULL, b->prompt.data, b->prompt.len, &b->ids, err);
    if (bos >= 0 && kk_ids_push(&b->ids, (uint32_t)bos))
        return kk_fail(err, KK_ENOMEM, "out of memory for a prompt");
    return kk_tok_encode(b->cli->tok, b->prompt.data, b->prompt.len, 0, &b->ids, err);
}

/* Ask, and add up times and bytes. */
static int ask(struct bench *b, struct rung *r, struct kk_answer *a, struct kk_err *err)
{
    const struct kk_question q = {.prompt = &b->ids, .tokens = ANSWER_TOKENS};
    int rc = kk_cli_answer(b->cli->engine, &q, a, err);
    if (rc) return rc;
    r->prompt_tokens += (int64_t)b->ids.n;
    r->prefill_s += a->prefill_s + a->made.first_s;
    r->decode_s += a->made.seconds - a->made.first_s;
    r->decoded += a->made.tokens - 1;
    if (a->info.kv_device_bytes > r->device_bytes) r->device_bytes = a->info.kv_device_bytes;
    if (a->info.kv_host_bytes > r->host_bytes) r->host_bytes = a->info.kv_host_bytes;
    return 0;
}

static int decode(struct bench *b, const struct kk_answer *a, struct kk_err *err)
{
    const struct kk_tok *t = b->cli->tok;
    int k = 0, n = 0;
    while (k < a->n && !kk_tok_is_special(t, a->id[k])) k++;
    while (n < a->n && !(b->form.tok && kk_chat_ends(&b->form, a->id[n]))) n++; /* the turn */
    kk_buf_reset(&b->answer);
    kk_buf_reset(&b->first);
    int rc = kk_tok_decode(t, a->id, (size_t)n, 1, &b->answer, err);
    return rc ? rc : kk_tok_decode(t, a->id, (size_t)k, 1, &b->first, err);
}

static int run_sample(struct bench *b, struct kk_niah *g, struct rung *r, struct kk_err *err)
{
    struct kk_niah_sample sample;
    struct kk_answer a;
    char what[48];
    snprintf(what, sizeof what, "niah, %d lines", r->lines);
    kk_progress_show(&b->cli->progress, what, (uint64_t)b->done, (uint64_t)b->total,
                     KK_PROGRESS_ITEMS);
    int rc = kk_niah_next(g, &b->prompt, &sample, err);
    if (!rc) rc = encode(b, err);
    if (!rc && (int64_t)b->ids.n + ANSWER_TOKENS > b->cli->info.ctx)
        rc =
            kk_fail(err, KK_ERANGE,
                    "a document of %d lines has %zu tokens: with %d for the answer it does not fit "
                    "the context of %lld",
                    r->lines, b->ids.n, ANSWER_TOKENS, (long long)b->cli->info.ctx);
    if (!rc) rc = ask(b, r, &a, err);
    if (!rc) rc = decode(b, &a, err);
    if (rc) return rc;
    r->samples++;
    r->hits += kk_niah_hit(&sample, b->answer.data ? b->answer.data : "");
    r->exact += kk_niah_exact(&sample, b->first.data ? b->first.data : "");
    b->done++;
    return 0;
}

static int run_rung(struct bench *b, struct rung *r, struct kk_err *err)
{
    const struct kk_config *c = &b->cli->cfg;
    struct kk_niah_opts opts = {kk_cli_seed(b->cli), r->lines, r->lines,
                                (int)kk_config_int(c, KK_OPT_KEYS)};
    struct kk_niah g;
    int64_t samples = kk_config_int(c, KK_OPT_SAMPLES);
    int rc = kk_niah_start(&g, &opts, err);
    for (int64_t i = 0; !rc && i < samples; i++) rc = run_sample(b, &g, r, err);
    KK_BUG_ON(!rc && !r->samples); /* --samples is at least 1 */
    return rc;
}

static void print_header(const struct kk_cli *cli)
{
    printf("%s, kv %s (%s), %s\n\n", kk_config_text(&cli->cfg, KK_OPT_MODEL), cli->info.kv,
           cli->info.kv_type, cli->info.device);
    printf("%8s %14s %8s %8s %8s %14s %13s %12s\n", "lines", "prompt tokens", "samples", "recall",
           "exact", "prefill tok/s", "decode tok/s", "KV device");
}

static void print_rung(const struct rung *r)
{
    printf("%8d %14lld %8d %8.3f %8.3f %14.0f %13.0f %12s\n", r->lines,
           (long long)(r->prompt_tokens / r->samples), r->samples, (double)r->hits / r->samples,
           (double)r->exact / r->samples, kk_cli_rate((double)r->prompt_tokens, r->prefill_s),
           kk_cli_rate((double)r->decoded, r->decode_s), kk_cli_bytes(r->device_bytes));
    fflush(stdout);
}

static json_t *json_rung(const struct rung *r)
{
    return json_pack("{s:i, s:I, s:i, s:f, s:f, s:f, s:f, s:I, s:I}", "lines", r->lines,
                     "prompt_tokens", (json_int_t)(r->prompt_tokens / r->samples), "samples",
                     r->samples, "recall", (double)r->hits / r->samples, "recall_exact",
                     (double)r->exact / r->samples, "prefill_tok_s",
                     kk_cli_rate((double)r->prompt_tokens, r->prefill_s), "decode_tok_s",
                     kk_cli_rate((double)r->decoded, r->decode_s), "kv_device_bytes",
                     (json_int_t)r->device_bytes, "kv_host_bytes", (json_int_t)r->host_bytes);
}

static int run_all(struct bench *b, json_t *rungs, struct kk_err *err)
{
    const struct kk_value *lines = &b->cli->cfg.value[KK_OPT_LINES];
    int rc = 0, text = kk_cli_wants_text(b->cli);
    b->total = lines->n * (int)kk_config_int(&b->cli->cfg, KK_OPT_SAMPLES);
    for (int i = 0; !rc && i < lines->n; i++) {
        struct rung r = {.lines = (int)lines->list[i]};
        rc = run_rung(b, &r, err);
        kk_progress_clear(&b->cli->progress);
        if (rc) break;
        if (text && !i) print_header(b->cli);
        if (text) print_rung(&r);
        json_array_append_new(rungs, json_rung(&r));
    }
    return rc;
}

int kk_cli_bench_niah(struct kk_cli *cli, struct kk_err *err)
{
    struct bench b = {.cli = cli};
    json_t *report = json_object(), *rungs = json_array();
    kk_buf_init(&b.prompt, KK_CLI_TEXT_MAX);
    kk_buf_init(&b.answer, 1 << 20);
    kk_buf_init(&b.first, 1 << 20);
    int rc = kk_cli_no_words(cli, err);
    if (!rc) rc = kk_cli_open_tok(cli, err);
    if (!rc && kk_config_given(&cli->cfg, KK_OPT_TEMPLATE))
        rc = kk_chat_init(&b.form, cli->tok, kk_config_text(&cli->cfg, KK_OPT_TEMPLATE), err);
    if (!rc) rc = kk_cli_open_engine(cli, err);
    cli->reading_quiet = 1;
    if (!rc) rc = run_all(&b, rungs, err);
    json_object_set(report, "rungs", rungs);
    json_object_set_new(report, "keys", json_integer(kk_config_int(&cli->cfg, KK_OPT_KEYS)));
    json_object_set_new(report, "template", b.form.tok ? json_string(b.form.family) : json_null());
    json_object_set_new(report, "seed", json_integer((json_int_t)kk_cli_seed(cli)));
    kk_cli_describe_run(cli, report);
    if (!rc) {
        rc = kk_cli_report(cli, report, err);
        report = NULL;
    }
    json_decref(report);
    json_decref(rungs);
    kk_buf_release(&b.prompt);
    kk_buf_release(&b.answer);
    kk_buf_release(&b.first);
    kk_ids_release(&b.ids);
    return rc;
}
