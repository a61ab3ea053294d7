/* The laws, as properties over seeded random cases: bit-identity under any cut of the history, any
 * company, any thread count and instruction set; two-phase steps; policies; plan against the
 * allocator. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "base/mem.h"
#include "base/rng.h"
#include "engine/engine_int.h"

enum { V = 160, WINDOW = 24 }; /* of every small model */

/* The small model of the running test, chosen by its setup function. With the first every case
 * runs; with the others, which share all but the order of stages with it, some. */
static const char *model, *kv_type;
static int all_cases;
#define USE(arch, config, all) USE_ROWS(arch, config, all, "auto")
#define USE_ROWS(arch, config, all, rows)                                                          \
    static int use_##arch(void **state)                                                            \
    {                                                                                              \
        (void)state;                                                                               \
        model = "synth:tests/data/" config ":5";                                                   \
        all_cases = all;                                                                           \
        kv_type = rows;                                                                            \
        return 0;                                                                                  \
    }
USE(gemma4, "mini.json", 1)
USE(llama, "mini-llama.json", 0) /* no sliding layer */
USE_ROWS(q8_rows, "mini-heads32.json", 0, "q8_0")
#ifndef __SANITIZE_ADDRESS__ /* slow there, and most of the code is the same */
USE(gemma3, "mini-gemma3.json", 0)
USE(qwen3, "mini-qwen3.json", 0)
#endif

static uint64_t rng_state = 20261123;
static uint32_t rnd(uint32_t n)
{
    return (uint32_t)(kk_rng_at(7, rng_state++) % n);
}

static struct kk_engine *open_engine(struct kk_engine_options o)
{
    struct kk_engine *e = NULL;
    struct kk_err err = {0};
    if (!o.model) o.model = model;
    if (!strcmp(o.kv_type, "auto")) o.kv_type = kv_type;
    int rc = kk_engine_open(&o, &e, &err);
    if (rc == KK_EUNSUPPORTED && !strcmp(o.kv_type, "q8_0")) skip(); /* a GPU has no such rows */
    if (rc) fail_msg("%s", err.msg);
    return e;
}

static struct kk_session *open_session(struct kk_engine *e)
{
    struct kk_session *s = NULL;
    struct kk_err err = {0};
    if (kk_session_open(e, &s, &err)) fail_msg("%s", err.msg);
    return s;
}

static void ok(int rc, const struct kk_err *err)
{
    if (rc) fail_msg("%s", err->msg);
}

static void random_ids(uint32_t *ids, size_t n)
{
    for (size_t i = 0; i < n; i++) ids[i] = rnd(V);
}

struct capture {
    float *out;
};
static int on_row(void *arg, int64_t position, const float *logits)
{
    struct capture *c = arg;
    (void)position;
    memcpy(c->out, logits, V * sizeof(float));
    c->out += V;
    return 0;
}

/* Append ids[0, n - tail) in random pieces, then take the logits of the last `tail`. */
static void logits_of(struct kk_engine *e, const uint32_t *ids, size_t n, size_t tail, int split,
                      float *out)
{
    struct kk_session *s = open_session(e);
    struct kk_err err = {0};
    struct capture c = {out};
    size_t at = 0, head = n - tail;
    while (at < head) {
        size_t k = split ? 1 + rnd((uint32_t)(rnd(3) ? 9 : 70)) : head;
        if (k > head - at) k = head - at;
        ok(kk_session_append(s, ids + at, k, &err), &err);
        ok(kk_session_check(s, &err), &err);
        at += k;
    }
    ok(kk_session_logits(s, ids + head, tail, on_row, &c, &err), &err);
    ok(kk_session_check(s, &err), &err);
    kk_session_close(s);
}

static const char *const policies[] = {"full", "native", "s5", "sinkwin"};

/* Any split of appends, any chunk size: the same bits, well past the window, under every policy. */
static void splits_do_not_matter(void **state)
{
    (void)state;
    enum { N = 5 * WINDOW + 9, TAIL = 3 };
    uint32_t ids[N];
    float a[TAIL * V], b[TAIL * V];
    random_ids(ids, N);
    for (size_t p = 0; p < 4; p++) {
        struct kk_engine_options o = kk_engine_defaults();
        o.kv = policies[p];
        o.kv_sinks = 3;
        o.kv_window = 7;
        o.threads = 1;
        struct kk_engine *e = open_engine(o);
        logits_of(e, ids, N, TAIL, 0, a);
        for (int k = 0; k < (all_cases ? 12 : 3); k++) {
            logits_of(e, ids, N, TAIL, 1, b);
            assert_memory_equal(a, b, sizeof a);
        }
        kk_engine_close(e);
        o.prefill_chunk = 5;
        e = open_engine(o);
        logits_of(e, ids, N, TAIL, 1, b);
        assert_memory_equal(a, b, sizeof a);
        kk_engine_close(e);
    }
}

/* full and native see the same rows; s5 does not, unless no layer slides; sinkwin never does. */
static void native_is_full(void **state)
{
    (void)state;
    int slides = 0;
    enum { N = 6 * WINDOW + 5, TAIL = 40 };
    uint32_t ids[N];
    static float out[4][TAIL * V];
    random_ids(ids, N);
    for (size_t p = 0; p < 4; p++) {
        struct kk_engine_options o = kk_engine_defaults();
        o.kv = policies[p];
        o.kv_window = 7;
        struct kk_engine *e = open_engine(o);
        logits_of(e, ids, N, TAIL, 0, out[p]);
        slides = kk_model_info(e->model)->window > 0;
        kk_engine_close(e);
    }
    assert_memory_equal(out[0], out[1], sizeof out[0]);
    assert_int_equal(memcmp(out[1], out[2], sizeof out[0]) != 0, slides);
    assert_memory_not_equal(out[2], out[3], sizeof out[0]);
}

static void threads_and_isa_do_not_matter(void **state)
{
    (void)state;
    enum { N = 4 * WINDOW + 3, TAIL = 30 };
    static const char *const isas[] = {"scalar", "avx2", "avx512"};
    uint32_t ids[N];
    static float a[TAIL * V], b[TAIL * V];
    random_ids(ids, N);
    int have = 0;
    for (size_t i = 0; i < 3; i++)
        for (int threads = 1; threads <= (all_cases ? 4 : 2); threads++) {
            struct kk_engine_options o = kk_engine_defaults();
            struct kk_engine *e = NULL;
            struct kk_err err = {0};
            o.model = model;
            o.kv_type = kv_type;
            o.cpu_isa = isas[i];
            o.threads = threads;
            int rc = kk_engine_open(&o, &e, &err);
            if (rc == KK_EUNSUPPORTED) continue; /* this machine has no such instruction set */
            ok(rc, &err);
            logits_of(e, ids, N, TAIL, 1, have ? b : a);
            if (have) assert_memory_equal(a, b, sizeof a);
            have = 1;
            kk_engine_close(e);
        }
}

/* ---- company ------------------------------------------------------------------------------ */

/* Put ids into a session's history without running them (the rows of a hand-made step). */
static void push_history(struct kk_session *s, const uint32_t *ids, size_t n)
{
    s->history = kk_realloc(s->history, s->n + n, sizeof *s->history);
    memcpy(s->history + s->n, ids, n * sizeof *ids);
    s->n += n;
    s->cap = s->n;
}

/* Steps of several sessions with different row counts give each row the bits it has alone. */
static void company_does_not_matter(void **state)
{
    (void)state;
    enum { B = 4, ROUNDS = 30 };
    struct kk_engine_options o = kk_engine_defaults();
    o.threads = 2;
    struct kk_engine *e = open_engine(o), *alone = open_engine(o);
    struct kk_session *s[B], *t[B];
    struct kk_err err = {0};
    static float together[16 * V], single[16 * V];
    for (int b = 0; b < B; b++) {
        s[b] = open_session(e);
        t[b] = open_session(alone);
    }
    for (int r = 0; r < ROUNDS; r++) {
        struct kk_step_item item[B];
        int total = 0;
        for (int b = 0; b < B; b++) {
            uint32_t ids[4];
            int n = 1 + (int)rnd(4);
            random_ids(ids, 4);
            push_history(s[b], ids, (size_t)n);
            push_history(t[b], ids, (size_t)n);
            item[b] = (struct kk_step_item){.s = s[b], .n = n, .hold = 1, .want = KK_WANT_LOGITS};
            total += n;
        }
        ok(kk__step(e, item, B, &err), &err);
        e->dev->ops->download(e->dev, together, kk_model_logits(e->model),
                              (size_t)total * V * sizeof(float));
        kk_kv_commit(e->pool, NULL);
        float *row = together;
        for (int b = 0; b < B; b++) {
            struct kk_step_item one = {t[b], item[b].n, !(r & 1), KK_WANT_LOGITS};
            size_t bytes = (size_t)item[b].n * V * sizeof(float);
            ok(kk__step(alone, &one, 1, &err), &err);
            alone->dev->ops->download(alone->dev, single, kk_model_logits(alone->model), bytes);
            kk_kv_commit(alone->pool, NULL);
            assert_memory_equal(single, row, bytes);
            row += (size_t)item[b].n * V;
        }
    }
    for (int b = 0; b < B; b++) {
        kk_session_close(s[b]);
        kk_session_close(t[b]);
    }
    kk_engine_close(e);
    kk_engine_close(alone);
}

/* A step begun with n rows and committed with k leaves what k rows alone would have left. */
static void commit_keeps_a_prefix(void **state)
{
    (void)state;
    for (size_t p = 0; p < 4; p++) {
        struct kk_engine_options o = kk_engine_defaults();
        struct kk_err err = {0};
        o.kv = policies[p];
        o.kv_sinks = 2;
        o.kv_window = 9;
        struct kk_engine *e = open_engine(o);
        struct kk_session *s = open_session(e), *t = open_session(e);
        for (int r = 0; r < 40; r++) {
            uint32_t ids[16];
            int n = 1 + (int)rnd(16);
            int32_t k = (int32_t)rnd((uint32_t)n + 1);
            random_ids(ids, 16);
            push_history(s, ids, (size_t)n);
            struct kk_step_item item = {.s = s, .n = n, .hold = 1};
            ok(kk__step(e, &item, 1, &err), &err);
            kk_kv_commit(e->pool, &k);
            s->n -= (size_t)(n - k);
            if (k) {
                push_history(t, ids, (size_t)k);
                item = (struct kk_step_item){.s = t, .n = k};
                ok(kk__step(e, &item, 1, &err), &err);
                kk_kv_commit(e->pool, NULL);
            }
            ok(kk_kv_check(s->kv, &err), &err);
        }
        assert_int_equal(kk_kv_rows(s->kv), kk_kv_rows(t->kv));
        for (int l = 0; l < e->layout.n_layers; l++)
            for (int64_t j = 0; j < kk_kv_rows(s->kv); j++) {
                char a[1024], b[1024];
                memset(a, 0, sizeof a);
                memset(b, 0, sizeof b);
                int ra = kk_kv_read_row(s->kv, l, j, a, &err),
                    rb = kk_kv_read_row(t->kv, l, j, b, &err);
                assert_int_equal(ra, rb);
                assert_memory_equal(a, b, sizeof a);
            }
        kk_session_close(s);
        kk_session_close(t);
        kk_engine_close(e);
    }
}

/* ---- generation --------------------------------------------------------------------------- */

struct tokens {
    uint32_t id[64];
    int n;
};
static int on_token(void *arg, uint32_t id)
{
    struct tokens *t = arg;
    t->id[t->n++] = id;
    return 0;
}

static struct tokens generate(struct kk_engine *e, const uint32_t *ids, size_t n, int pieces,
                              const struct kk_sampling *p)
{
    struct tokens t = {.n = 0};
    struct kk_err err = {0};
    struct kk_session *s = open_session(e);
    for (int i = 0; i < pieces; i++) {
        size_t a = n * (size_t)i / (size_t)pieces, b = n * (size_t)(i + 1) / (size_t)pieces;
        ok(kk_session_append(s, ids + a, b - a, &err), &err);
    }
    for (int i = 0; i < pieces; i++)
        ok(kk_session_generate(s, p, 48 / pieces, on_token, &t, NULL, &err), &err);
    ok(kk_session_check(s, &err), &err);
    kk_session_close(s);
    return t;
}

/* Same seed, same tokens, however the history was cut; another seed, other tokens; alone or in a
 * batch. */
static void sampling_is_keyed_by_position(void **state)
{
    (void)state;
    struct kk_engine *e = open_engine(kk_engine_defaults());
    uint32_t ids[50];
    random_ids(ids, 50);
    const struct kk_sampling kinds[] = {
        {.temperature = 1, .top_p = 1, .repeat_penalty = 1, .seed = 9, .ignore_eos = 1},
        {.temperature = 0.8f,
         .top_k = 20,
         .top_p = 0.9f,
         .min_p = 0.02f,
         .repeat_penalty = 1.1f,
         .repeat_last_n = 64,
         .seed = 9,
         .ignore_eos = 1},
        {.temperature = 0, .top_p = 1, .repeat_penalty = 1.2f, .ignore_eos = 1},
        {.temperature = 0, .top_p = 1, .repeat_penalty = 1, .ignore_eos = 1},
    };
    for (size_t k = 0; k < sizeof kinds / sizeof *kinds; k++) {
        struct tokens a = generate(e, ids, 50, 1, &kinds[k]);
        struct tokens b = generate(e, ids, 50, 4, &kinds[k]);
        assert_int_equal(a.n, 48);
        assert_int_equal(b.n, 48);
        assert_memory_equal(a.id, b.id, 48 * sizeof *a.id);
        struct kk_sampling other = kinds[k];
        other.seed = 10;
        b = generate(e, ids, 50, 1, &other);
        if (kinds[k].temperature > 0) assert_memory_not_equal(a.id, b.id, 48 * sizeof *a.id);
    }
    kk_engine_close(e);
}

static void batched_decode_is_single_decode(void **state)
{
    (void)state;
    enum { B = 5, N = 30 };
    struct kk_engine *e = open_engine(kk_engine_defaults());
    struct kk_sampling p = kk_sampling_defaults();
    struct kk_session *s[B], *t[B];
    struct kk_err err = {0};
    p.temperature = 1;
    p.seed = 3;
    for (int b = 0; b < B; b++) {
        uint32_t ids[90];
        size_t n = 5 + rnd(80);
        random_ids(ids, n);
        s[b] = open_session(e);
        t[b] = open_session(e);
        ok(kk_session_append(s[b], ids, n, &err), &err);
        ok(kk_session_append(t[b], ids, n, &err), &err);
    }
    for (int i = 0; i < N; i++) {
        uint32_t ids[B], one;
        ok(kk_sessions_step(s, B, &p, ids, &err), &err);
        for (int b = 0; b < B; b++) {
            ok(kk_sessions_step(&t[b], 1, &p, &one, &err), &err);
            assert_int_equal(one, ids[b]);
        }
    }
    for (int b = 0; b < B; b++) {
        kk_session_close(s[b]);
        kk_session_close(t[b]);
    }
    kk_engine_close(e);
}

/* Drafts change speed, never tokens: every drafter, width, policy and temperature; end-of-sequence
 * and token limits inside a block too. */
static void drafts_change_no_token(void **state)
{
    (void)state;
    static const char *const drafters[] = {"none", "ngram", "wrong"};
    static const int widths[] = {0, 1, 2, 5, 16};
    uint32_t ids[120];
    random_ids(ids, 60);
    memcpy(ids + 60, ids, 60 * sizeof *ids); /* something to look up */
    for (size_t p = 0; p < 4; p++)
        for (int hot = all_cases ? 0 : 1; hot < 2; hot++) {
            struct tokens want = {.n = 0};
            for (size_t d = 0; d < 3; d++)
                for (size_t w = 0; w < 5; w += all_cases ? 1 : 3) {
                    struct kk_engine_options o = kk_engine_defaults();
                    struct kk_sampling sp = kk_sampling_defaults();
                    o.kv = policies[p];
                    o.kv_sinks = 2;
                    o.kv_window = 11;
                    o.draft = drafters[d];
                    o.draft_width = widths[w];
                    sp.seed = 4;
                    sp.temperature = hot ? 0.7f : 0;
                    sp.repeat_penalty = hot ? 1.05f : 1;
                    struct kk_engine *e = open_engine(o);
                    struct tokens got = generate(e, ids, 120, 3, &sp);
                    kk_engine_close(e);
                    if (!d && !w) want = got;
                    assert_int_equal(got.n, want.n);
                    assert_memory_equal(got.id, want.id, (size_t)want.n * sizeof *want.id);
                }
        }
}

/* End of sequence inside a block: nothing behind it is emitted or kept, and the session goes on as
 * one that was decoded plainly. Drafts are the known continuation, so blocks run past it. */
static void a_block_ends_at_end_of_sequence(void **state)
{
    (void)state;
    enum { N = 60, MORE = 40 };
    uint32_t ids[N];
    struct kk_sampling p = kk_sampling_defaults();
    struct kk_engine_options o = kk_engine_defaults();
    struct kk_err err = {0};
    random_ids(ids, N);
    p.ignore_eos = 1;
    p.temperature = 1;
    p.seed = 3;
    o.draft_width = 8;
    struct kk_engine *e = open_engine(o);
    const struct tokens known = generate(e, ids, N, 1, &p);
    p.ignore_eos = 0;
    for (int at = 1; at < 20; at++) {
        const uint32_t end = known.id[at];
        int first = 0;
        while (known.id[first] != end) first++;
        struct tokens got[2];
        for (int drafted = 0; drafted < 2; drafted++) {
            struct tokens *t = &got[drafted];
            struct kk_session *s = open_session(e);
            struct kk_generated out;
            struct kk_session_info si;
            t->n = 0;
            ok(kk_session_set_eos(s, &end, 1, &err), &err);
            ok(kk_session_append(s, ids, N, &err), &err);
            if (drafted) ok(kk_session_replay(s, known.id, (size_t)known.n, 16, 1, &err), &err);
            ok(kk_session_generate(s, &p, MORE, on_token, t, &out, &err), &err);
            assert_int_equal(out.stop, KK_STOP_EOS);
            assert_int_equal(t->n, first + 1);
            assert_memory_equal(t->id, known.id, (size_t)t->n * sizeof *t->id);
            if (drafted) assert_int_equal(out.steps, first / 8 + 1); /* the last block is cut */
            ok(kk_session_check(s, &err), &err);
            kk_session_describe(s, &si);
            assert_int_equal(si.history, N + first + 1);
            p.ignore_eos = 1; /* what comes after does not depend on how it came to be */
            ok(kk_session_generate(s, &p, 12, on_token, t, NULL, &err), &err);
            p.ignore_eos = 0;
            kk_session_close(s);
        }
        assert_int_equal(got[0].n, got[1].n);
        assert_memory_equal(got[0].id, got[1].id, (size_t)got[0].n * sizeof *got[0].id);
    }
    kk_engine_close(e);
}

/* ---- bytes -------------------------------------------------------------------------------- */

/* plan says before loading what the allocator says after. */
static void plan_is_what_is_allocated(void **state)
{
    (void)state;
    for (size_t p = 0; p < 4; p++)
        for (int64_t n = 1; n < 700; n = n * 3 + 1) {
            struct kk_engine_options o = kk_engine_defaults();
            struct kk_engine_info info;
            struct kk_session_info si;
            struct kk_plan plan;
            struct kk_err err = {0};
            o.model = model;
            o.kv_type = kv_type;
            o.kv = policies[p];
            o.kv_window = 8;
            struct kk_engine *e = open_engine(o);
            struct kk_session *s = open_session(e);
            uint32_t ids[1024];
            ok(kk_plan_make(&o, n, 1, &plan, &err), &err);
            random_ids(ids, (size_t)n);
            ok(kk_session_append(s, ids, (size_t)n, &err), &err);
            kk_engine_describe(e, &info);
            kk_session_describe(s, &si);
            assert_int_equal(plan.weight_bytes, info.weight_bytes);
            assert_int_equal(plan.scratch_bytes, info.scratch_bytes);
            assert_int_equal(plan.kv_staging_bytes, info.kv_staging_bytes);
            assert_int_equal(plan.session_kv_bytes, si.kv_device_bytes);
            assert_int_equal(plan.session_kv_host_bytes, si.kv_host_bytes);
            kk_session_close(s);
            kk_engine_close(e);
        }
}

/* A ring holds exactly its rows and not a byte more, however long the session grows. */
static void rings_are_bounded(void **state)
{
    (void)state;
    struct kk_engine_options o = kk_engine_defaults();
    struct kk_session_info a, b;
    struct kk_err err = {0};
    uint32_t ids[1000];
    o.kv = "sinkwin";
    o.kv_sinks = 4;
    o.kv_window = 16;
    struct kk_engine *e = open_engine(o);
    struct kk_session *s = open_session(e);
    random_ids(ids, 1000);
    ok(kk_session_append(s, ids, 40, &err), &err);
    kk_session_describe(s, &a);
    ok(kk_session_append(s, ids, 1000, &err), &err);
    kk_session_describe(s, &b);
    assert_int_equal(a.kv_device_bytes, b.kv_device_bytes);
    assert_int_equal(b.resident_rows, 4 * 20);
    assert_int_equal(b.dropped, 1039 - 20);
    /* two sliding layers K + V [2, 16], two full layers V [1, D], bf16, 20 rows */
    const int D = e->layout.layer[e->layout.n_layers - 1].D; /* 24, on a GPU 32 */
    assert_int_equal(b.kv_device_bytes, 20 * 2 * (2 * 2 * 2 * 16 + 2 * D));
    kk_session_close(s);
    kk_engine_close(e);
}

/* Blocks in host memory come back bit-exact: the same logits as uncapped, in chunks, steps and
 * batches; device bytes and staging are one number whatever the length. */
static void paging_changes_no_bit(void **state)
{
    (void)state;
    enum { N = 1500, TAIL = 20 };
    static float want[TAIL * V], got[TAIL * V];
    uint32_t ids[N];
    random_ids(ids, N);
    for (size_t p = 0; p < 3; p++)
        for (int staging = 2; staging <= (all_cases ? 5 : 2); staging += 3) {
            struct kk_engine_options o = kk_engine_defaults();
            struct kk_session_info a, b;
            struct kk_plan plan;
            struct kk_err err = {0};
            o.model = model;
            o.kv_type = kv_type;
            o.kv = policies[p];
            o.kv_sinks = 3;
            o.kv_window = 7;
            struct kk_engine *e = open_engine(o);
            logits_of(e, ids, N, TAIL, 1, want);
            kk_engine_close(e);
            o.kv_device = 60000;
            o.kv_staging = staging;
            o.threads = staging == 2 ? 1 : 2; /* with a core to spare the copy thread runs */
            ok(kk_plan_make(&o, N, 1, &plan, &err), &err);
            e = open_engine(o);
            logits_of(e, ids, N, TAIL, 1, got);
            assert_memory_equal(want, got, sizeof want);
            struct kk_session *s = open_session(e);
            kk_session_describe(s, &a);
            ok(kk_session_append(s, ids, N, &err), &err);
            kk_session_describe(s, &b);
            assert_int_equal(a.kv_device_bytes, b.kv_device_bytes);
            assert_int_equal(plan.session_kv_bytes, b.kv_device_bytes);
            assert_int_equal(plan.session_kv_host_bytes, b.kv_host_bytes);
            assert_true(b.kv_device_bytes <= 60000 && b.kv_host_bytes > 0);
            ok(kk_session_check(s, &err), &err);
            kk_session_close(s);
            kk_engine_close(e);
        }
}

/* Several capped sessions in one step, with drafts, are what they are alone and uncapped. */
static void paged_batches_and_drafts(void **state)
{
    (void)state;
    enum { B = 3, N = 20 };
    uint32_t prompt[B][600], plain[B][N], paged[B][N], fused[64];
    struct kk_err err = {0};
    struct kk_sampling p = kk_sampling_defaults();
    p.ignore_eos = 1;
    for (int b = 0; b < B; b++) random_ids(prompt[b], 600);
    for (int cap = 0; cap < 2; cap++) {
        struct kk_engine_options o = kk_engine_defaults();
        o.kv = "full";
        o.kv_device = cap ? 120000 : 0;
        struct kk_engine *e = open_engine(o);
        struct kk_session *s[B];
        for (int b = 0; b < B; b++) {
            s[b] = open_session(e);
            ok(kk_session_append(s[b], prompt[b], 600 - (size_t)b * 130, &err), &err);
        }
        for (int i = 0; i < N; i++) {
            uint32_t ids[B];
            ok(kk_sessions_step(s, B, &p, ids, &err), &err);
            for (int b = 0; b < B; b++) (cap ? paged : plain)[b][i] = ids[b];
        }
        for (int b = 0; b < B; b++) kk_session_close(s[b]);
        kk_engine_close(e);
    }
    assert_memory_equal(plain, paged, sizeof plain);
    struct kk_engine_options o = kk_engine_defaults();
    o.kv_device = 60000;
    o.draft = "wrong";
    struct kk_engine *e = open_engine(o);
    struct tokens t = {.n = 0};
    struct kk_generated made;
    struct kk_session *s = open_session(e);
    assert_int_equal(kk_session_pin_width(s, 17, &err), KK_EINVAL);
    assert_int_equal(kk_session_pin_width(s, -1, &err), KK_EINVAL);
    ok(kk_session_pin_width(s, 6, &err), &err);
    ok(kk_session_append(s, prompt[0], 600, &err), &err);
    ok(kk_session_generate(s, &p, N, on_token, &t, &made, &err), &err);
    assert_true(made.drafted > 4 * (N - 6)); /* blocks of six, all but the last ones */
    memcpy(fused, t.id, sizeof fused);
    assert_memory_equal(plain[0], fused, sizeof plain[0]);
    kk_session_close(s);
    kk_engine_close(e);
}

static void caps_are_checked(void **state)
{
    (void)state;
    struct kk_engine_options o = kk_engine_defaults();
    struct kk_engine *e = NULL;
    struct kk_session *s, *t;
    struct kk_err err = {0};
    uint32_t ids[2000];
    random_ids(ids, 2000);
    o.model = model;
    o.kv_device = 1000;
    assert_int_equal(kk_engine_open(&o, &e, &err), KK_EINVAL);
    assert_non_null(strstr(err.msg, "too small"));
    o.kv_device = 60000;
    o.kv_host = 100000;
    e = open_engine(o);
    s = open_session(e);
    t = open_session(e);
    ok(kk_session_append(t, ids, 300, &err), &err);
    assert_int_equal(kk_session_append(s, ids, 2000, &err), KK_EEXHAUSTED); /* this one fails .. */
    ok(kk_session_check(s, &err), &err);
    ok(kk_session_append(t, ids, 10, &err), &err); /* .. the other goes on */
    kk_session_close(s);
    ok(kk_session_append(t, ids, 500, &err), &err);
    kk_session_close(t);
    kk_engine_close(e);
}

/* With exact rows in place of rebuilt ones, restored is native, bit for bit: alone, in company,
 * drafted. */
static void restored_from_exact_rows_is_native(void **state)
{
    (void)state;
    enum { N = 5 * WINDOW + 3, TAIL = 25 };
    static float native[TAIL * V], restored[TAIL * V];
    uint32_t ids[N];
    struct kk_sampling p = kk_sampling_defaults();
    struct kk_engine_options o = kk_engine_defaults();
    random_ids(ids, N);
    p.temperature = 1;
    p.ignore_eos = 1;
    struct kk_engine *e = open_engine(o);
    logits_of(e, ids, N, TAIL, 1, native);
    struct tokens want = generate(e, ids, N, 1, &p);
    kk_engine_close(e);
    o.kv = "restored";
    o.f_theta = "exact";
    o.kv_sinks = 3;
    o.kv_window = 7;
    o.draft = "ngram";
    e = open_engine(o);
    logits_of(e, ids, N, TAIL, 1, restored);
    assert_memory_equal(native, restored, sizeof native);
    struct tokens got = generate(e, ids, N, 4, &p);
    assert_memory_equal(want.id, got.id, sizeof want.id);
    assert_int_equal(kk_ftheta_rebuilt(e->ftheta) > 0, kk_model_info(e->model)->window > 0);
    kk_engine_close(e);
}

/* The real map on the trained model: splits, company, caps and drafts change no bit. */
static void restored_is_causal(void **state)
{
    (void)state;
    enum { N = 420, TAIL = 3, VOCAB = 2048 };
    uint32_t ids[N];
    struct kk_engine_options o = kk_engine_defaults();
    struct kk_sampling p = kk_sampling_defaults();
    struct tokens want = {.n = 0};
    struct kk_err err = {0};
    for (int i = 0; i < N; i++) ids[i] = 7 + rnd(VOCAB - 7);
    o.model = "models/tiny";
    o.kv = "restored";
    o.f_theta = "models/tiny/f_theta";
    p.ignore_eos = 1;
    for (int variant = 0; variant < 5; variant++) {
        o.prefill_chunk = variant == 1 || variant == 3 ? 13 : 512;
        o.kv_device = variant == 2 ? 512 * 1024 : 0;
        o.draft = variant == 3 ? "models/tiny/drafter" : variant == 4 ? "wrong" : "none";
        o.draft_width = variant >= 3 ? 16 : 0;
        struct kk_engine *e = open_engine(o);
        struct kk_session *s = open_session(e);
        struct kk_session_info info;
        struct kk_engine_info beside;
        kk_session_close(s);
        struct tokens got = generate(e, ids, N, variant == 1 ? 6 : 1, &p);
        if (!variant) want = got;
        assert_int_equal(got.n, want.n);
        assert_memory_equal(want.id, got.id, sizeof want.id);
        s = open_session(e);
        ok(kk_session_append(s, ids, N, &err), &err);
        kk_session_describe(s, &info);
        /* six rings of 4 + 64 rows K + V [2, 64] bf16, 256 latents of 512 bytes, two full layers */
        struct kk_plan plan;
        ok(kk_plan_make(&o, N, 1, &plan, &err), &err);
        assert_int_equal(plan.session_kv_bytes, info.kv_device_bytes);
        kk_engine_describe(e, &beside);
        assert_true(plan.restorer_bytes > 0 && (plan.drafter_bytes > 0) == (variant == 3));
        assert_int_equal(plan.restorer_bytes, beside.restorer_bytes);
        assert_int_equal(plan.drafter_bytes, beside.drafter_bytes);
        assert_int_equal(plan.scratch_bytes, beside.scratch_bytes);
        /* rows that are put off may not have the last of their blocks yet, of 128 K + V [2, 64] */
        assert_in_range(plan.session_draft_bytes - info.drafter_device_bytes, 0, 128 * 512);
        if (!o.kv_device)
            assert_int_equal(info.kv_device_bytes, 6 * 68 * 512 + 256 * 512 + 2 * 4 * 128 * 256);
        kk_session_close(s);
        kk_engine_close(e);
    }
}

/* ---- misuse ------------------------------------------------------------------------------- */

static void mistakes_change_nothing(void **state)
{
    (void)state;
    struct kk_engine_options o = kk_engine_defaults();
    o.ctx = 64;
    struct kk_engine *e = open_engine(o);
    struct kk_session *s = open_session(e);
    struct kk_sampling p = kk_sampling_defaults();
    struct kk_err err = {0};
    uint32_t ids[100] = {0}, bad[3] = {1, V, 2};
    size_t n;
    assert_int_equal(kk_session_generate(s, &p, 1, NULL, NULL, NULL, &err), KK_EINVAL);
    assert_int_equal(kk_session_append(s, bad, 3, &err), KK_ERANGE);
    assert_non_null(strstr(err.msg, "160"));
    assert_int_equal(kk_session_append(s, ids, 65, &err), KK_ERANGE);
    kk_session_history(s, &n);
    assert_int_equal(n, 0);
    ok(kk_session_append(s, ids, 60, &err), &err);
    struct kk_generated g;
    p.ignore_eos = 1;
    ok(kk_session_generate(s, &p, 100, NULL, NULL, &g, &err), &err);
    assert_int_equal(g.stop, KK_STOP_CTX);
    assert_int_equal(g.tokens, 4);
    assert_int_equal(kk_session_generate(s, &p, 1, NULL, NULL, NULL, &err), KK_ERANGE);
    p.top_p = 0;
    assert_int_equal(kk_session_generate(s, &p, 1, NULL, NULL, NULL, &err), KK_EINVAL);
    ok(kk_session_check(s, &err), &err);
    kk_session_close(s);
    kk_engine_close(e);
}

int main(void)
{
#define ON(arch, test)                                                                             \
    {                                                                                              \
        .name = #test " (" #arch ")", .test_func = test, .setup_func = use_##arch                  \
    }
/* What may depend on how an architecture's layers are put together. */
#define LAWS(arch)                                                                                 \
    ON(arch, splits_do_not_matter), ON(arch, native_is_full),                                      \
        ON(arch, threads_and_isa_do_not_matter), ON(arch, company_does_not_matter),                \
        ON(arch, commit_keeps_a_prefix), ON(arch, batched_decode_is_single_decode),                \
        ON(arch, drafts_change_no_token), ON(arch, plan_is_what_is_allocated),                     \
        ON(arch, paging_changes_no_bit), ON(arch, paged_batches_and_drafts)
#define RESTORED(arch) ON(arch, restored_from_exact_rows_is_native)
    const struct CMUnitTest tests[] = {
        LAWS(gemma4),
        RESTORED(gemma4),
#ifndef __SANITIZE_ADDRESS__
        LAWS(gemma3),
        RESTORED(gemma3),
        LAWS(qwen3),
        RESTORED(qwen3),
#endif
        LAWS(llama),
        RESTORED(llama),
        LAWS(q8_rows),
        ON(gemma4, sampling_is_keyed_by_position),
        ON(gemma4, a_block_ends_at_end_of_sequence),
        ON(gemma4, rings_are_bounded),
        ON(gemma4, caps_are_checked),
        ON(gemma4, restored_is_causal),
        ON(gemma4, mistakes_change_nothing),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
