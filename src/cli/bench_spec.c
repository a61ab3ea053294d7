/* kakeya bench spec: drafting against plain decoding on five kinds of text, or on random ids where
 * a model has no tokenizer. Each sample is answered by fresh sessions, plain and drafted in turn,
 * --reps times; tokens are compared one by one. A sample's time is the median of its repetitions.
 * With --replay the drafts are the plain answer, corrupted to a chosen acceptance. */
#include <stdio.h>
#include <string.h>

#include "base/mem.h"
#include "base/rng.h"
#include "cli/answer.h"
#include "cli/common.h"
#include "cli/workload.h"

enum { RANDOM_IDS = 64 };

static const char *const random_names[] = {"random", NULL};

struct row {
    const char *name;
    int64_t tokens, blocks, drafted, committed, compared;
    double ar_s, fused_s; /* for `tokens` */
    int identical, samples;
};

struct bench {
    struct kk_cli *cli;
    struct kk_engine_options o;
    /* plain and drafted: the same one when nothing but --replay drafts; one at a time where memory
     * has no room for both (in_turn) */
    struct kk_engine *engine[2];
    int same, in_turn;
    const char *const *names;
    struct kk_buf text;
    struct kk_ids ids;
    struct kk_answer answer[2]; /* plain, drafted */
    int reps, random_ids;
    double *seconds[2]; /* [reps] */
    double replay;
};

/* ---- prompts ------------------------------------------------------------------------------ */

static int random_ids(struct bench *b, int i, struct kk_err *err)
{
    const uint64_t key = kk_mix64(kk_cli_seed(b->cli)) + (uint64_t)i;
    for (uint64_t k = 0; k < (uint64_t)b->random_ids; k++) {
        uint64_t id = kk_rng_at(key, k) % (uint64_t)b->cli->info.vocabulary;
        if (kk_ids_push(&b->ids, (uint32_t)id))
            return kk_fail(err, KK_ENOMEM, "out of memory for a prompt");
    }
    return 0;
}

static int make_prompt(struct bench *b, const char *name, int i, struct kk_err *err)
{
    kk_buf_reset(&b->text);
    b->ids.n = 0;
    if (!b->cli->tok) return random_ids(b, i, err);
    int rc = kk_workload_text(name, kk_cli_seed(b->cli), i, &b->text, err);
    if (!rc && b->cli->info.bos >= 0) rc = kk_ids_push(&b->ids, (uint32_t)b->cli->info.bos);
    return rc ? rc : kk_tok_encode(b->cli->tok, b->text.data, b->text.len, 1, &b->ids, err);
}

/* ---- measuring ---------------------------------------------------------------------------- */

static int open_engine(struct bench *b, int fused, struct kk_err *err)
{
    struct kk_engine_options o = b->o;
    const int i = fused && !b->same;
    if (b->engine[i]) return 0;
    if (b->in_turn) {
        kk_engine_close(b->engine[!i]);
        b->engine[!i] = NULL;
    }
    if (!i) o.draft = "none";
    return kk_engine_open(&o, &b->engine[i], err);
}

static int answer(struct bench *b, struct row *r, int fused, int rep, struct kk_err *err)
{
    struct kk_question q = {.prompt = &b->ids, .tokens = KK_ANSWER_MAX, .ignore_eos = 1};
    struct kk_answer *a = &b->answer[fused];
    if (fused && b->replay > 0) {
        q.known = &b->answer[0];
        q.mean = b->replay;
        q.seed = kk_cli_seed(b->cli) + (uint64_t)(r->samples * b->reps + rep);
    }
    int rc = open_engine(b, fused, err);
    if (!rc) rc = kk_cli_answer(b->engine[fused && !b->same], &q, a, err);
    if (rc) return rc;
    b->seconds[fused][rep] = a->made.seconds;
    if (!fused) return 0;
    r->committed += a->made.tokens;
    r->blocks += a->made.steps;
    r->drafted += a->made.drafted;
    r->compared += a->n;
    r->identical &= kk_cli_same_answer(&b->answer[0], a);
    return 0;
}

static int run_sample(struct bench *b, struct row *r, int i, struct kk_err *err)
{
    int rc = make_prompt(b, r->name, i, err);
    for (int rep = 0; !rc && rep < b->reps; rep++) {
        rc = answer(b, r, 0, rep, err);
        if (!rc) rc = answer(b, r, 1, rep, err);
    }
    if (rc) return rc;
    r->samples++;
    r->tokens += b->answer[0].n;
    r->ar_s += kk_cli_median(b->seconds[0], b->reps);
    r->fused_s += kk_cli_median(b->seconds[1], b->reps);
    return 0;
}

/* ---- opening ------------------------------------------------------------------------------ */

static int open_engines(struct bench *b, struct kk_err *err)
{
    int rc = kk_cli_options(b->cli, &b->o, err);
    if (rc) return rc;
    b->same = !strcmp(b->o.draft, "none");
    if (b->replay != 0 && b->replay < 1)
        return kk_fail(err, KK_EUSAGE, "--replay %g: a block commits 1 to 16 tokens", b->replay);
    if (b->same && b->replay == 0)
        return kk_fail(err, KK_EUSAGE, "nothing to compare: --draft DIR, ngram or --replay A");
    rc = open_engine(b, 0, err);
    if (rc) return rc;
    kk_engine_describe(b->engine[0], &b->cli->info);
    if (!b->same) rc = open_engine(b, 1, err);
    if (rc != KK_ENOMEM) return rc;
    b->in_turn = 1;
    return 0;
}

static int open_bench(struct bench *b, struct kk_err *err)
{
    const char *model;
    int rc = kk_cli_no_words(b->cli, err);
    if (!rc) rc = kk_cli_model(b->cli, &model, err);
    if (rc) return rc;
    b->names = kk_workload_names;
    if (!strncmp(model, "synth:", 6))
        b->names = random_names;
    else
        rc = kk_cli_open_tok(b->cli, err);
    const struct kk_value *ids = &b->cli->cfg.value[KK_OPT_TOKENS];
    b->random_ids = ids->n ? (int)ids->list[0] : RANDOM_IDS;
    b->replay = kk_config_real(&b->cli->cfg, KK_OPT_REPLAY);
    b->reps = (int)kk_config_int(&b->cli->cfg, KK_OPT_REPS);
    for (int k = 0; k < 2; k++) b->seconds[k] = kk_calloc((size_t)b->reps, sizeof(double));
    if (!rc && (!b->seconds[0] || !b->seconds[1]))
        rc = kk_fail(err, KK_ENOMEM, "out of memory for %d repetitions", b->reps);
    return rc ? rc : open_engines(b, err);
}

/* ---- the report --------------------------------------------------------------------------- */

static json_t *row_json(const struct row *r)
{
    double n = (double)r->tokens;
    return json_pack("{s:s, s:f, s:f, s:f, s:f, s:b, s:i, s:I, s:I, s:I}", "name", r->name,
                     "committed_per_block", (double)r->committed / (double)r->blocks, "ar_tok_s",
                     kk_cli_rate(n, r->ar_s), "fused_tok_s", kk_cli_rate(n, r->fused_s), "ratio",
                     kk_cli_rate(r->ar_s, r->fused_s), "byte_identical", r->identical, "samples",
                     r->samples, "blocks", (json_int_t)r->blocks, "drafted", (json_int_t)r->drafted,
                     "tokens_compared", (json_int_t)r->compared);
}

static void print_header(const struct bench *b)
{
    const struct kk_config *c = &b->cli->cfg;
    printf("%s, draft %s", kk_config_text(c, KK_OPT_MODEL), kk_config_text(c, KK_OPT_DRAFT));
    if (b->replay > 0) printf(", replay %g", b->replay);
    printf(", %s\n\n%-8s %10s %12s %12s %8s %10s\n", b->cli->info.device, "text", "per block",
           "plain tok/s", "drafted", "ratio", "identical");
}

static void print_row(const struct row *r)
{
    double n = (double)r->tokens;
    printf("%-8s %10.2f %12.1f %12.1f %8.3f %10s\n", r->name,
           (double)r->committed / (double)r->blocks, kk_cli_rate(n, r->ar_s),
           kk_cli_rate(n, r->fused_s), kk_cli_rate(r->ar_s, r->fused_s),
           r->identical ? "yes" : "NO");
    fflush(stdout);
}

static int run_all(struct bench *b, json_t *list, struct kk_err *err)
{
    int samples = (int)kk_config_int(&b->cli->cfg, KK_OPT_SAMPLES), done = 0, rc = 0, n = 0;
    int text = kk_cli_wants_text(b->cli);
    while (b->names[n]) n++;
    if (text) print_header(b);
    for (int w = 0; !rc && w < n; w++) {
        struct row r = {.name = b->names[w], .identical = 1};
        for (int i = 0; !rc && i < samples; i++) {
            kk_progress_show(&b->cli->progress, r.name, (uint64_t)done++, (uint64_t)(n * samples),
                             KK_PROGRESS_ITEMS);
            rc = run_sample(b, &r, i, err);
        }
        kk_progress_clear(&b->cli->progress);
        if (rc) break;
        if (text) print_row(&r);
        json_array_append_new(list, row_json(&r));
        if (!r.identical)
            rc = kk_fail(err, KK_EINVARIANT, "drafting changed tokens of workload '%s'", r.name);
    }
    return rc;
}

static void close_bench(struct bench *b)
{
    kk_engine_close(b->engine[0]);
    kk_engine_close(b->engine[1]);
    kk_buf_release(&b->text);
    kk_ids_release(&b->ids);
    kk_free(b->seconds[0]);
    kk_free(b->seconds[1]);
}

int kk_cli_bench_spec(struct kk_cli *cli, struct kk_err *err)
{
    struct bench b = {.cli = cli};
    json_t *report = json_object(), *list = json_array();
    kk_buf_init(&b.text, KK_CLI_TEXT_MAX);
    int rc = open_bench(&b, err);
    cli->reading_quiet = 1;
    if (!rc) rc = run_all(&b, list, err);
    json_object_set(report, "workloads", list);
    json_object_set_new(report, "replay", json_real(b.replay));
    json_object_set_new(report, "reps", json_integer(b.reps));
    if (!rc) {
        kk_cli_describe_run(cli, report);
        rc = kk_cli_report(cli, report, err);
        report = NULL;
    }
    json_decref(report);
    json_decref(list);
    close_bench(&b);
    return rc;
}
