/* kakeya bench decode: tokens a second by context, as llama-bench measures them. For each depth: a
 * fresh session, `depth` pseudo-random ids, timed apart, then 512 ids appended, or 128 tokens
 * generated one by one. Medians of the repetitions. Needs no tokenizer. */
#include <stdio.h>

#include "base/clock.h"
#include "base/mem.h"
#include "base/pool.h"
#include "base/rng.h"
#include "cli/common.h"

enum { PREFILL = 512, DECODE = 128, COUNTED = 16, MOST_ROWS = 16 };

struct run {
    int64_t context;
    double context_s, prefill_tok_s, decode_tok_s, steps_s;
    double experts; /* a layer, of a step */
    int64_t device_bytes, host_bytes;
};

struct bench {
    struct kk_cli *cli;
    uint32_t *ids; /* [most + 1 + PREFILL] */
    int reps;
    double *read, *prefill, *decode, *steps; /* [reps]; read [2 * reps] */
    double read_s;                           /* of the latest context */
    int done, total;
};

/* A session with `depth` rows of history, and its one pending token. */
static int fill(struct bench *b, int64_t depth, struct kk_session **s, struct kk_err *err)
{
    char what[48];
    snprintf(what, sizeof what, "context %lld", (long long)depth);
    kk_progress_show(&b->cli->progress, what, (uint64_t)b->done++, (uint64_t)b->total,
                     KK_PROGRESS_ITEMS);
    int rc = kk_session_open(b->cli->engine, s, err);
    uint64_t t0 = kk_now_ns();
    if (!rc) rc = kk_session_append(*s, b->ids, (size_t)depth + 1, err);
    b->read_s = kk_seconds_since(t0);
    return rc;
}

static int time_prefill(struct bench *b, int64_t depth, double *tok_s, struct kk_err *err)
{
    struct kk_session *s = NULL;
    int rc = fill(b, depth, &s, err);
    uint64_t t0 = kk_now_ns();
    if (!rc) rc = kk_session_append(s, b->ids + depth + 1, PREFILL, err);
    *tok_s = kk_cli_rate(PREFILL, kk_seconds_since(t0));
    kk_session_close(s);
    return rc;
}

/* Stops after *arg tokens. More are allowed, so that the last steps have as many rows as the
 * others: a draft is no longer than what is allowed. */
static int until(void *arg, uint32_t id)
{
    int *left = arg;
    (void)id;
    return --*left < 1;
}

static int write_on(struct kk_session *s, int tokens, struct kk_generated *made, struct kk_err *err)
{
    struct kk_sampling p = kk_sampling_defaults();
    int left = tokens;
    p.ignore_eos = 1;
    return kk_session_generate(s, &p, tokens + MOST_ROWS, until, &left, made, err);
}

/* A few more tokens, for how many experts a step reads. */
static int count_experts(struct bench *b, struct run *r, struct kk_session *s, struct kk_err *err)
{
    kk_engine_count_experts(b->cli->engine, 1, NULL);
    int rc = write_on(s, COUNTED, NULL, err);
    kk_engine_count_experts(b->cli->engine, 0, &r->experts);
    return rc;
}

static int time_decode(struct bench *b, struct run *r, double *tok_s, double *steps_s,
                       struct kk_err *err)
{
    struct kk_session *s = NULL;
    struct kk_generated made = {0};
    struct kk_session_info info;
    int rc = fill(b, r->context, &s, err);
    if (!rc) rc = write_on(s, DECODE, &made, err);
    if (!rc && b->cli->info.active_experts && !r->experts) rc = count_experts(b, r, s, err);
    if (!rc) {
        *tok_s = kk_cli_rate((double)made.tokens, made.seconds);
        *steps_s = kk_cli_rate((double)made.steps, made.seconds);
        kk_session_describe(s, &info);
        r->device_bytes = info.kv_device_bytes;
        r->host_bytes = info.kv_host_bytes;
    }
    kk_session_close(s);
    return rc;
}

static int run_depth(struct bench *b, struct run *r, struct kk_err *err)
{
    int rc = 0;
    for (int i = 0; !rc && i < b->reps; i++) {
        rc = time_prefill(b, r->context, &b->prefill[i], err);
        b->read[2 * i] = b->read_s;
        if (!rc) rc = time_decode(b, r, &b->decode[i], &b->steps[i], err);
        b->read[2 * i + 1] = b->read_s;
    }
    if (rc) return rc;
    r->context_s = kk_cli_median(b->read, 2 * b->reps);
    r->prefill_tok_s = kk_cli_median(b->prefill, b->reps);
    r->decode_tok_s = kk_cli_median(b->decode, b->reps);
    r->steps_s = kk_cli_median(b->steps, b->reps);
    return 0;
}

/* ---- */

static double read_gb_s(const struct bench *b, const struct run *r)
{
    return r->steps_s * (double)b->cli->info.step_weight_bytes * 1e-9;
}

static void print_header(const struct bench *b)
{
    const struct kk_engine_info *i = &b->cli->info;
    printf("%s: %.1f M parameters, %.1f M active, kv %s (%s), %s\n\n",
           kk_config_text(&b->cli->cfg, KK_OPT_MODEL), (double)i->n_params * 1e-6,
           (double)i->n_active_params * 1e-6, i->kv, i->kv_type, i->device);
    printf("%10s %12s %16s %16s %15s %12s %12s\n", "context", "reading it s", "prefill tok/s",
           "decode tok/s", "weights GB/s", "KV device", "KV host");
}

static void print_run(const struct bench *b, const struct run *r)
{
    printf("%10lld %12.4f %16.1f %16.1f %15.2f %12s %12s\n", (long long)r->context, r->context_s,
           r->prefill_tok_s, r->decode_tok_s, read_gb_s(b, r), kk_cli_bytes(r->device_bytes),
           kk_cli_bytes(r->host_bytes));
    fflush(stdout);
}

static json_t *json_run(const struct bench *b, const struct run *r)
{
    json_t *o =
        json_pack("{s:I, s:f, s:f, s:f, s:f, s:I, s:I}", "context", (json_int_t)r->context,
                  "context_s", r->context_s, "prefill_tok_s", r->prefill_tok_s, "decode_tok_s",
                  r->decode_tok_s, "weight_gb_s", read_gb_s(b, r), "kv_device_bytes",
                  (json_int_t)r->device_bytes, "kv_host_bytes", (json_int_t)r->host_bytes);
    kk_cli_report_step(b->cli, o, 1 / r->steps_s, r->experts);
    return o;
}

/* Ids for the deepest run; refuses a depth that the model's context has no room for. */
static int prepare(struct bench *b, struct kk_err *err)
{
    const struct kk_value *depths = &b->cli->cfg.value[KK_OPT_DEPTHS];
    int64_t most = 0, ctx = b->cli->info.ctx;
    for (int i = 0; i < depths->n; i++)
        if (depths->list[i] > most) most = depths->list[i];
    if (most + 1 + PREFILL > ctx)
        return kk_fail(err, KK_ERANGE,
                       "context %lld and %d tokens after it do not fit: the model was made for "
                       "%lld",
                       (long long)most, PREFILL + 1, (long long)ctx);
    size_t n = (size_t)most + 1 + PREFILL;
    b->ids = kk_array(n, sizeof *b->ids);
    b->read = kk_calloc(2 * (size_t)b->reps, sizeof *b->read);
    b->prefill = kk_calloc((size_t)b->reps, sizeof *b->prefill);
    b->decode = kk_calloc((size_t)b->reps, sizeof *b->decode);
    b->steps = kk_calloc((size_t)b->reps, sizeof *b->steps);
    if (!b->ids || !b->read || !b->prefill || !b->decode || !b->steps)
        return kk_fail(err, KK_ENOMEM, "out of memory for %zu token ids", n);
    for (size_t i = 0; i < n; i++)
        b->ids[i] =
            (uint32_t)(kk_rng_at(kk_cli_seed(b->cli), i) % (uint64_t)b->cli->info.vocabulary);
    b->total = 2 * b->reps * depths->n + 1;
    return 0;
}

static int run_all(struct bench *b, json_t *runs, struct kk_err *err)
{
    const struct kk_value *depths = &b->cli->cfg.value[KK_OPT_DEPTHS];
    int text = kk_cli_wants_text(b->cli);
    double warm; /* the first pass touches fresh memory: not counted */
    int rc = time_prefill(b, 0, &warm, err);
    for (int i = 0; !rc && i < depths->n; i++) {
        struct run r = {.context = depths->list[i]};
        rc = run_depth(b, &r, err);
        kk_progress_clear(&b->cli->progress);
        if (rc) break;
        if (text && !i) print_header(b);
        if (text) print_run(b, &r);
        json_array_append_new(runs, json_run(b, &r));
    }
    return rc;
}

int kk_cli_bench_decode(struct kk_cli *cli, struct kk_err *err)
{
    struct bench b = {.cli = cli, .reps = (int)kk_config_int(&cli->cfg, KK_OPT_REPS)};
    int threads = (int)kk_config_int(&cli->cfg, KK_OPT_THREADS);
    json_t *report = json_object(), *runs = json_array();
    int rc = kk_cli_no_words(cli, err);
    if (!rc) rc = kk_cli_open_engine(cli, err);
    cli->reading_quiet = 1;
    if (!rc) rc = prepare(&b, err);
    if (!rc) rc = run_all(&b, runs, err);
    json_object_set(report, "runs", runs);
    json_object_set_new(report, "threads", json_integer(threads ? threads : kk_cores()));
    json_object_set_new(report, "reps", json_integer(b.reps));
    kk_cli_describe_run(cli, report);
    if (!rc) {
        rc = kk_cli_report(cli, report, err);
        report = NULL;
    }
    json_decref(report);
    json_decref(runs);
    kk_free(b.ids);
    kk_free(b.read);
    kk_free(b.prefill);
    kk_free(b.decode);
    kk_free(b.steps);
    return rc;
}
