/* kakeya bench batch: N sessions a token each step, against the same N one after the other, in turn
 * and in one run. Each session has its own document with its own code in it: that all of them say
 * theirs, and the very tokens they say alone, shows that they do not see each other. Models without
 * a tokenizer (synth:) get random ids, and no recall. */
#include <stdio.h>
#include <string.h>

#include "base/clock.h"
#include "base/mem.h"
#include "base/rng.h"
#include "cli/common.h"
#include "cli/niah.h"

enum { TOKENS = 24, RANDOM_IDS = 256, COUNTED = 4 };

struct one {
    struct kk_session *alone, *together;
    char answer[24];
    uint32_t said[2][TOKENS]; /* alone, together */
};

struct level {
    int n, identical, hits;
    double alone_s, together_s; /* of all but the first tokens: forks copy what they share then */
    double experts;             /* a layer, of a step together */
    int64_t prompt_tokens;
};

struct bench {
    struct kk_cli *cli;
    struct kk_buf text;
    struct kk_ids ids;
    int random_ids;  /* of a prompt */
    struct one *one; /* [most] */
    struct kk_session **set;
    uint32_t *next;
    int most;
};

/* ---- prompts ------------------------------------------------------------------------------ */

static int make_prompt(struct bench *b, int i, struct kk_err *err)
{
    const struct kk_value *lines = &b->cli->cfg.value[KK_OPT_LINES];
    const struct kk_niah_opts opts = {kk_cli_seed(b->cli) + (uint64_t)i, (int)lines->list[0],
                                      (int)lines->list[0], 0};
    struct kk_niah g;
    struct kk_niah_sample s = {0};
    int rc = 0;
    b->ids.n = 0;
    if (!b->cli->tok) {
        for (int k = 0; !rc && k < b->random_ids; k++)
            rc = kk_ids_push(&b->ids, (uint32_t)(kk_rng_at((uint64_t)i, (uint64_t)k) %
                                                 (uint64_t)b->cli->info.vocabulary));
        return rc ? kk_fail(err, rc, "out of memory for a prompt") : 0;
    }
    rc = kk_niah_start(&g, &opts, err);
    if (!rc) rc = kk_niah_next(&g, &b->text, &s, err);
    if (!rc && b->cli->info.bos >= 0) rc = kk_ids_push(&b->ids, (uint32_t)b->cli->info.bos);
    if (!rc) rc = kk_tok_encode(b->cli->tok, b->text.data, b->text.len, 0, &b->ids, err);
    memcpy(b->one[i].answer, s.answer, sizeof b->one[i].answer);
    return rc;
}

/* Two sessions that have read the same prompt. */
static int open_pair(struct bench *b, int i, struct level *l, struct kk_err *err)
{
    struct one *o = &b->one[i];
    int rc = make_prompt(b, i, err);
    if (!rc) rc = kk_session_open(b->cli->engine, &o->alone, err);
    if (!rc) rc = kk_session_append(o->alone, b->ids.id, b->ids.n, err);
    if (!rc) rc = kk_session_fork(o->alone, &o->together, err);
    l->prompt_tokens += (int64_t)b->ids.n;
    return rc;
}

static void close_pairs(struct bench *b)
{
    for (int i = 0; b->one && i < b->most; i++) {
        kk_session_close(b->one[i].alone);
        kk_session_close(b->one[i].together);
        b->one[i].alone = b->one[i].together = NULL;
    }
}

/* ---- a level ------------------------------------------------------------------------------ */

/* TOKENS tokens of n sessions, a step for all of them. */
static int write_together(struct bench *b, int n, double *seconds, struct kk_err *err)
{
    const struct kk_sampling greedy = kk_sampling_defaults();
    uint64_t t0 = 0;
    int rc = 0;
    for (int i = 0; i < n; i++) b->set[i] = b->one[i].together;
    for (int t = 0; !rc && t < TOKENS; t++) {
        if (t == 1) t0 = kk_now_ns();
        rc = kk_sessions_step(b->set, n, &greedy, b->next, err);
        for (int i = 0; !rc && i < n; i++) b->one[i].said[1][t] = b->next[i];
    }
    *seconds = kk_seconds_since(t0);
    return rc;
}

/* A few more steps together, for how many experts they read. */
static int count_experts(struct bench *b, struct level *l, struct kk_err *err)
{
    const struct kk_sampling greedy = kk_sampling_defaults();
    int rc = 0;
    kk_engine_count_experts(b->cli->engine, 1, NULL);
    for (int t = 0; !rc && t < COUNTED; t++)
        rc = kk_sessions_step(b->set, l->n, &greedy, b->next, err);
    kk_engine_count_experts(b->cli->engine, 0, &l->experts);
    return rc;
}

static int write_alone(struct bench *b, int n, double *seconds, struct kk_err *err)
{
    const struct kk_sampling greedy = kk_sampling_defaults();
    uint64_t t0 = 0;
    int rc = 0;
    *seconds = 0;
    for (int i = 0; i < n; i++) {
        for (int t = 0; !rc && t < TOKENS; t++) {
            if (t == 1) t0 = kk_now_ns();
            rc = kk_sessions_step(&b->one[i].alone, 1, &greedy, &b->one[i].said[0][t], err);
        }
        *seconds += kk_seconds_since(t0);
    }
    return rc;
}

static int says_its_own(struct bench *b, const struct one *o, int *hit, struct kk_err *err)
{
    struct kk_niah_sample s = {0};
    kk_buf_reset(&b->text);
    int rc = kk_tok_decode(b->cli->tok, o->said[1], TOKENS, 1, &b->text, err);
    memcpy(s.answer, o->answer, sizeof s.answer);
    *hit = !rc && kk_niah_hit(&s, b->text.data ? b->text.data : "");
    return rc;
}

static int run_level(struct bench *b, struct level *l, struct kk_err *err)
{
    char what[48];
    int rc = 0, hit;
    snprintf(what, sizeof what, "%d sessions", l->n);
    for (int i = 0; !rc && i < l->n; i++) {
        kk_progress_show(&b->cli->progress, what, (uint64_t)i, (uint64_t)l->n, KK_PROGRESS_ITEMS);
        rc = open_pair(b, i, l, err);
    }
    if (!rc) rc = write_alone(b, l->n, &l->alone_s, err);
    if (!rc) rc = write_together(b, l->n, &l->together_s, err);
    if (!rc && b->cli->info.active_experts) rc = count_experts(b, l, err);
    for (int i = 0; !rc && i < l->n; i++) {
        l->identical += !memcmp(b->one[i].said[0], b->one[i].said[1], sizeof b->one[i].said[0]);
        if (!b->cli->tok) continue;
        rc = says_its_own(b, &b->one[i], &hit, err);
        l->hits += hit;
    }
    close_pairs(b);
    kk_progress_clear(&b->cli->progress);
    if (!rc && l->identical < l->n)
        rc = kk_fail(err, KK_EINVARIANT, "%d of %d sessions said other tokens in company",
                     l->n - l->identical, l->n);
    return rc;
}

/* ---- the report --------------------------------------------------------------------------- */

static void print_level(const struct bench *b, const struct level *l, int first)
{
    const double tokens = (double)l->n * (TOKENS - 1);
    char recall[24] = "-";
    if (first)
        printf("%s, kv %s (%s), %s\n\n%9s %14s %12s %12s %8s %10s %8s\n",
               kk_config_text(&b->cli->cfg, KK_OPT_MODEL), b->cli->info.kv, b->cli->info.kv_type,
               b->cli->info.device, "sessions", "prompt tokens", "alone tok/s", "together", "ratio",
               "identical", "recall");
    if (b->cli->tok) snprintf(recall, sizeof recall, "%d/%d", l->hits, l->n);
    printf("%9d %14lld %12.1f %12.1f %8.2f %10s %8s\n", l->n, (long long)(l->prompt_tokens / l->n),
           kk_cli_rate(tokens, l->alone_s), kk_cli_rate(tokens, l->together_s),
           kk_cli_rate(l->alone_s, l->together_s), l->identical == l->n ? "yes" : "NO", recall);
    fflush(stdout);
}

static json_t *json_level(const struct bench *b, const struct level *l)
{
    const double tokens = (double)l->n * (TOKENS - 1);
    json_t *recall = b->cli->tok ? json_real((double)l->hits / l->n) : json_null();
    json_t *o = json_pack("{s:i, s:I, s:f, s:f, s:f, s:b, s:o}", "sessions", l->n, "prompt_tokens",
                          (json_int_t)(l->prompt_tokens / l->n), "alone_tok_s",
                          kk_cli_rate(tokens, l->alone_s), "together_tok_s",
                          kk_cli_rate(tokens, l->together_s), "ratio",
                          kk_cli_rate(l->alone_s, l->together_s), "byte_identical",
                          l->identical == l->n, "recall", recall);
    kk_cli_report_step(b->cli, o, l->together_s / (TOKENS - 1), l->experts);
    return o;
}

static int prepare(struct bench *b, struct kk_err *err)
{
    const struct kk_value *levels = &b->cli->cfg.value[KK_OPT_BATCH_LEVELS];
    const struct kk_value *ids = &b->cli->cfg.value[KK_OPT_TOKENS];
    struct kk_engine_options o;
    b->random_ids = ids->n ? (int)ids->list[0] : RANDOM_IDS;
    for (int i = 0; i < levels->n; i++)
        if (levels->list[i] > b->most) b->most = (int)levels->list[i];
    b->one = kk_calloc((size_t)b->most, sizeof *b->one);
    b->set = kk_calloc((size_t)b->most, sizeof(struct kk_session *));
    b->next = kk_calloc((size_t)b->most, sizeof *b->next);
    if (!b->one || !b->set || !b->next)
        return kk_fail(err, KK_ENOMEM, "out of memory for %d sessions", b->most);
    int rc = kk_cli_options(b->cli, &o, err);
    o.max_batch = b->most;
    if (!rc) rc = kk_engine_open(&o, &b->cli->engine, err);
    if (!rc) kk_engine_describe(b->cli->engine, &b->cli->info);
    return rc;
}

static int run_all(struct bench *b, json_t *list, struct kk_err *err)
{
    const struct kk_value *levels = &b->cli->cfg.value[KK_OPT_BATCH_LEVELS];
    int rc = 0;
    for (int i = 0; !rc && i < levels->n; i++) {
        struct level l = {.n = (int)levels->list[i]};
        rc = run_level(b, &l, err);
        if (rc) break;
        if (kk_cli_wants_text(b->cli)) print_level(b, &l, i == 0);
        json_array_append_new(list, json_level(b, &l));
    }
    return rc;
}

int kk_cli_bench_batch(struct kk_cli *cli, struct kk_err *err)
{
    struct bench b = {.cli = cli};
    json_t *report = json_object(), *list = json_array();
    const char *model = NULL;
    kk_buf_init(&b.text, KK_CLI_TEXT_MAX);
    int rc = kk_cli_no_words(cli, err);
    if (!rc) rc = kk_cli_model(cli, &model, err);
    if (!rc && strncmp(model, "synth:", 6)) rc = kk_cli_open_tok(cli, err);
    cli->reading_quiet = 1;
    if (!rc) rc = prepare(&b, err);
    if (!rc) rc = run_all(&b, list, err);
    json_object_set(report, "levels", list);
    if (!rc) {
        kk_cli_describe_run(cli, report);
        rc = kk_cli_report(cli, report, err);
        report = NULL;
    }
    json_decref(report);
    json_decref(list);
    close_pairs(&b);
    kk_free(b.one);
    kk_free(b.set);
    kk_free(b.next);
    kk_buf_release(&b.text);
    kk_ids_release(&b.ids);
    return rc;
}
