/* kakeya bench spec: drafting against plain decoding on five kinds of text. Each sample is answered
 * twice from fresh sessions, plain and drafted, in turn; tokens are compared one by one. */
#include <stdio.h>
#include <string.h>

#include "base/mem.h"
#include "cli/common.h"
#include "cli/workload.h"

enum { NEW_TOKENS = 96 };

struct row {
    const char *name;
    int64_t ar_tokens, fused_tokens, blocks, drafted, compared;
    double ar_s, fused_s;
    int identical, samples;
};

struct bench {
    struct kk_cli *cli;
    struct kk_engine *plain, *fused;
    struct kk_buf text;
    struct kk_ids ids;
    uint32_t out[2][NEW_TOKENS];
    int n[2];
};

struct emitted {
    uint32_t *id;
    int n;
};

static int on_token(void *arg, uint32_t id)
{
    struct emitted *e = arg;
    e->id[e->n++] = id;
    return 0;
}

static int answer(struct bench *b, struct row *r, int fused, struct kk_err *err)
{
    struct kk_session *s = NULL;
    struct kk_sampling greedy = kk_sampling_defaults();
    struct kk_generated made = {0};
    struct emitted out = {b->out[fused], 0};
    greedy.ignore_eos = 1;
    int rc = kk_session_open(fused ? b->fused : b->plain, &s, err);
    if (!rc) rc = kk_session_append(s, b->ids.id, b->ids.n, err);
    if (!rc) rc = kk_session_generate(s, &greedy, NEW_TOKENS, on_token, &out, &made, err);
    kk_session_close(s);
    b->n[fused] = out.n;
    *(fused ? &r->fused_s : &r->ar_s) += made.seconds;
    *(fused ? &r->fused_tokens : &r->ar_tokens) += made.tokens;
    if (fused) {
        r->blocks += made.steps;
        r->drafted += made.drafted;
    }
    return rc;
}

static int run_sample(struct bench *b, struct row *r, int i, struct kk_err *err)
{
    kk_buf_reset(&b->text);
    b->ids.n = 0;
    int rc = kk_workload_text(r->name, kk_cli_seed(b->cli), i, &b->text, err);
    if (!rc && b->cli->info.bos >= 0) rc = kk_ids_push(&b->ids, (uint32_t)b->cli->info.bos);
    if (!rc) rc = kk_tok_encode(b->cli->tok, b->text.data, b->text.len, 1, &b->ids, err);
    if (!rc) rc = answer(b, r, 0, err);
    if (!rc) rc = answer(b, r, 1, err);
    if (rc) return rc;
    r->samples++;
    r->compared += b->n[1];
    r->identical &=
        b->n[0] == b->n[1] && !memcmp(b->out[0], b->out[1], (size_t)b->n[0] * sizeof b->out[0][0]);
    return 0;
}

static int open_engines(struct bench *b, struct kk_err *err)
{
    struct kk_engine_options o;
    int rc = kk_cli_options(b->cli, &o, err);
    if (!rc && !strcmp(o.draft, "none"))
        rc = kk_fail(err, KK_EUSAGE, "nothing to compare: --draft DIR or --draft ngram");
    if (!rc) rc = kk_engine_open(&o, &b->fused, err);
    if (rc) return rc;
    o.draft = "none";
    rc = kk_engine_open(&o, &b->plain, err);
    if (!rc) kk_engine_describe(b->plain, &b->cli->info);
    return rc;
}

static json_t *row_json(const struct row *r)
{
    return json_pack("{s:s, s:f, s:f, s:f, s:b, s:i, s:I, s:I, s:I}", "name", r->name,
                     "committed_per_block", (double)r->fused_tokens / (double)r->blocks, "ar_tok_s",
                     kk_cli_rate((double)r->ar_tokens, r->ar_s), "fused_tok_s",
                     kk_cli_rate((double)r->fused_tokens, r->fused_s), "byte_identical",
                     r->identical, "samples", r->samples, "blocks", (json_int_t)r->blocks,
                     "drafted", (json_int_t)r->drafted, "tokens_compared", (json_int_t)r->compared);
}

static int run_all(struct bench *b, json_t *list, struct kk_err *err)
{
    int samples = (int)kk_config_int(&b->cli->cfg, KK_OPT_SAMPLES), done = 0, rc = 0;
    int text = kk_cli_wants_text(b->cli);
    if (text)
        printf("%s, draft %s, %s\n\n%-8s %10s %12s %12s %8s %10s\n",
               kk_config_text(&b->cli->cfg, KK_OPT_MODEL),
               kk_config_text(&b->cli->cfg, KK_OPT_DRAFT), b->cli->info.device, "text", "per block",
               "plain tok/s", "drafted", "ratio", "identical");
    for (int w = 0; !rc && kk_workload_names[w]; w++) {
        struct row r = {.name = kk_workload_names[w], .identical = 1};
        for (int i = 0; !rc && i < samples; i++) {
            kk_progress_show(&b->cli->progress, r.name, (uint64_t)done++, (uint64_t)(5 * samples),
                             KK_PROGRESS_ITEMS);
            rc = run_sample(b, &r, i, err);
        }
        kk_progress_clear(&b->cli->progress);
        if (rc) break;
        double ar = kk_cli_rate((double)r.ar_tokens, r.ar_s),
               fu = kk_cli_rate((double)r.fused_tokens, r.fused_s);
        if (text)
            printf("%-8s %10.2f %12.0f %12.0f %8.2f %10s\n", r.name,
                   (double)r.fused_tokens / (double)r.blocks, ar, fu, ar > 0 ? fu / ar : 0,
                   r.identical ? "yes" : "NO");
        fflush(stdout);
        json_array_append_new(list, row_json(&r));
        if (!r.identical)
            rc = kk_fail(err, KK_EINVARIANT, "drafting changed tokens of workload '%s'", r.name);
    }
    return rc;
}

int kk_cli_bench_spec(struct kk_cli *cli, struct kk_err *err)
{
    struct bench b = {.cli = cli};
    json_t *report = json_object(), *list = json_array();
    kk_buf_init(&b.text, KK_CLI_TEXT_MAX);
    int rc = kk_cli_no_words(cli, err);
    if (!rc) rc = kk_cli_open_tok(cli, err);
    if (!rc) rc = open_engines(&b, err);
    cli->reading_quiet = 1;
    if (!rc) rc = run_all(&b, list, err);
    json_object_set(report, "workloads", list);
    if (!rc) {
        kk_cli_describe_run(cli, report);
        rc = kk_cli_report(cli, report, err);
        report = NULL;
    }
    json_decref(report);
    json_decref(list);
    kk_engine_close(b.plain);
    kk_engine_close(b.fused);
    kk_buf_release(&b.text);
    kk_ids_release(&b.ids);
    return rc;
}
