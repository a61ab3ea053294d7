/* The runtime under many callers: every session makes the tokens it makes alone, whatever happens
 * around it. kk-test: tsan */
#include "kk_test.h"

#include <dirent.h>
#include <errno.h>
#include <limits.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

#include "base/clock.h"
#include "base/mem.h"
#include "engine/engine_int.h"
#include "base/fs.h"
#include "engine/runtime.h"
#include "unit/engine/fault_vfs.h"

#define MINI "synth:tests/data/mini.json:5"
enum { MINI_V = 160, MOST = 600 };

static struct kk_engine *open_engine(int max_batch, const char *draft)
{
    struct kk_engine_options o = kk_engine_defaults();
    struct kk_engine *e = NULL;
    struct kk_err err = {0};
    o.model = MINI;
    o.threads = 1;
    o.max_batch = max_batch;
    o.prefill_chunk = 64;
    o.draft = draft;
    KK_ASSERT_OK(kk_engine_open(&o, &e, &err), &err);
    return e;
}

static struct kk_runtime *open_runtime(struct kk_runtime_options o, int max_batch,
                                       const char *draft)
{
    struct kk_runtime *rt = NULL;
    struct kk_err err = {0};
    KK_ASSERT_OK(kk_runtime_open(open_engine(max_batch, draft), &o, &rt, &err), &err);
    return rt;
}

/* ---- a call, waited for ---- */

struct answer {
    pthread_mutex_t lock;
    pthread_cond_t changed;
    uint32_t ids[MOST];
    int n, done, truncated, full_every, events, order; /* order: among all that ended */
    struct kk_event end;
    char id[KK_SESSION_ID_MAX], msg[256];
};

static atomic_int ends;

static int sink(void *arg, const struct kk_event *ev)
{
    struct answer *a = arg;
    pthread_mutex_lock(&a->lock);
    assert_false(a->done);
    int full = a->full_every && ++a->events % a->full_every == 0;
    if (ev->kind == KK_EVENT_TOKENS) {
        memcpy(a->ids + a->n, ev->ids, ev->n * sizeof *ev->ids);
        a->n += (int)ev->n;
    } else if (ev->kind == KK_EVENT_TRUNCATED) {
        a->truncated++;
    } else {
        a->end = *ev;
        if (ev->session) snprintf(a->id, sizeof a->id, "%s", ev->session);
        snprintf(a->msg, sizeof a->msg, "%s", ev->msg);
        a->order = ++ends;
        a->done = 1;
    }
    pthread_cond_broadcast(&a->changed);
    pthread_mutex_unlock(&a->lock);
    return full ? KK_SINK_FULL : KK_SINK_OK;
}

static void init_answer(struct answer *a)
{
    memset(a, 0, sizeof *a);
    pthread_mutex_init(&a->lock, NULL);
    pthread_cond_init(&a->changed, NULL);
}

static void wait_done(struct answer *a)
{
    pthread_mutex_lock(&a->lock);
    while (!a->done) pthread_cond_wait(&a->changed, &a->lock);
    pthread_mutex_unlock(&a->lock);
}

/* The code of the call; a holds what came. */
static int ask(struct kk_runtime *rt, struct kk_request r, struct answer *a)
{
    struct kk_call *call;
    struct kk_err err = {0};
    init_answer(a);
    r.sink = sink;
    r.arg = a;
    int rc = kk_runtime_submit(rt, &r, &call, &err);
    if (rc) {
        snprintf(a->msg, sizeof a->msg, "%s", err.msg);
        return rc;
    }
    wait_done(a);
    kk_call_release(call);
    return a->end.code;
}

static void fine(int rc, const struct answer *a)
{
    if (rc) fail_msg("%s: %s", kk_errname(rc), a->msg);
}

static void create(struct kk_runtime *rt, char id[KK_SESSION_ID_MAX])
{
    struct answer a;
    fine(ask(rt, (struct kk_request){.kind = KK_REQUEST_CREATE, .label = "test"}, &a), &a);
    memcpy(id, a.id, KK_SESSION_ID_MAX);
}

static uint64_t append(struct kk_runtime *rt, const char *id, const uint32_t *ids, size_t n)
{
    struct answer a;
    fine(ask(rt, (struct kk_request){.kind = KK_REQUEST_APPEND, .session = id, .ids = ids, .n = n},
             &a),
         &a);
    return a.end.history;
}

static struct kk_request generation(const char *id, int n, uint64_t seed)
{
    struct kk_request r = {.kind = KK_REQUEST_GENERATE,
                           .session = id,
                           .sampling = kk_sampling_defaults(),
                           .max_tokens = n};
    r.sampling.ignore_eos = 1;
    r.sampling.temperature = seed ? 0.9f : 0;
    r.sampling.seed = seed;
    return r;
}

static void close_session(struct kk_runtime *rt, const char *id)
{
    struct answer a;
    fine(ask(rt, (struct kk_request){.kind = KK_REQUEST_CLOSE, .session = id}, &a), &a);
}

/* ---- what a session makes alone ---- */

static int keep(void *arg, uint32_t id)
{
    uint32_t **at = arg;
    *(*at)++ = id;
    return 0;
}

static void alone(struct kk_engine *e, const uint32_t *ids, size_t n, int tokens, uint64_t seed,
                  uint32_t *out)
{
    struct kk_session *s = NULL;
    struct kk_err err = {0};
    const struct kk_request r = generation("", tokens, seed);
    KK_ASSERT_OK(kk_session_open(e, &s, &err), &err);
    KK_ASSERT_OK(kk_session_append(s, ids, n, &err), &err);
    KK_ASSERT_OK(kk_session_generate(s, &r.sampling, tokens, keep, &out, NULL, &err), &err);
    kk_session_close(s);
}

static void random_ids(struct kk_test_rng *r, uint32_t *ids, size_t n)
{
    for (size_t i = 0; i < n; i++) ids[i] = kk_test_below(r, MINI_V);
}

/* ---- many callers ---- */

struct client {
    struct kk_runtime *rt;
    uint32_t ids[MOST], got[MOST];
    size_t n;
    int turns, tokens, full_every;
    uint64_t seed;
};

/* A conversation: read a part, write a part, `turns` times; ids gathers what was said. */
static void *converse(void *arg)
{
    struct client *c = arg;
    char id[KK_SESSION_ID_MAX];
    struct kk_test_rng r = {c->seed * 77 + 1, 0};
    create(c->rt, id);
    for (int t = 0; t < c->turns; t++) {
        size_t k = 1 + kk_test_below(&r, 60);
        random_ids(&r, c->ids + c->n, k);
        assert_int_equal(append(c->rt, id, c->ids + c->n, k), c->n + k);
        c->n += k;
        struct kk_request q = generation(id, c->tokens, c->seed % 3 ? c->seed : 0);
        struct answer a;
        struct kk_call *call;
        struct kk_err err = {0};
        init_answer(&a);
        a.full_every = c->full_every;
        q.sink = sink;
        q.arg = &a;
        KK_ASSERT_OK(kk_runtime_submit(c->rt, &q, &call, &err), &err);
        pthread_mutex_lock(&a.lock);
        while (!a.done) {
            pthread_cond_wait(&a.changed, &a.lock);
            if (c->full_every) kk_runtime_resume(call);
        }
        pthread_mutex_unlock(&a.lock);
        kk_call_release(call);
        fine(a.end.code, &a);
        assert_int_equal(a.n, c->tokens);
        assert_int_equal(a.end.tokens, c->tokens);
        memcpy(c->ids + c->n, a.ids, (size_t)a.n * sizeof a.ids[0]);
        c->n += (size_t)a.n;
        assert_int_equal(a.end.history, c->n);
    }
    close_session(c->rt, id);
    return NULL;
}

/* The conversation once more, alone. */
static void check_conversation(struct kk_engine *e, const struct client *c)
{
    struct kk_test_rng r = {c->seed * 77 + 1, 0};
    size_t at = 0;
    for (int t = 0; t < c->turns; t++) {
        uint32_t want[MOST], skip[64];
        size_t k = 1 + kk_test_below(&r, 60);
        random_ids(&r, skip, k);
        at += k;
        alone(e, c->ids, at, c->tokens, c->seed % 3 ? c->seed : 0, want);
        assert_memory_equal(want, c->ids + at, (size_t)c->tokens * sizeof *want);
        at += (size_t)c->tokens;
    }
}

static void many_callers(struct kk_runtime *rt, int n)
{
    struct client *c = kk_calloc((size_t)n, sizeof *c);
    pthread_t *thread = kk_calloc((size_t)n, sizeof *thread);
    struct kk_engine *e = open_engine(1, "none");
    struct kk_runtime_stats st;
    for (int i = 0; i < n; i++) {
        c[i].rt = rt;
        c[i].turns = 3;
        c[i].tokens = 5 + i % 30;
        c[i].seed = (uint64_t)i + 1;
        c[i].full_every = i % 4 == 3 ? 3 : 0;
        pthread_create(&thread[i], NULL, converse, &c[i]);
    }
    for (int i = 0; i < n; i++) pthread_join(thread[i], NULL);
    kk_runtime_stats(rt, &st);
    kk_runtime_drain(rt, 10);
    kk_runtime_close(rt);
    for (int i = 0; i < n; i++) check_conversation(e, &c[i]);
    kk_engine_close(e);
    kk_free(c);
    kk_free(thread);
}

static void sessions_do_not_see_each_other(void **state)
{
    (void)state;
    many_callers(open_runtime(kk_runtime_defaults(), 8, "none"), 12);
}

static void nor_with_drafts(void **state)
{
    (void)state;
    many_callers(open_runtime(kk_runtime_defaults(), 4, "ngram"), 10);
}

static void nor_when_paged_out(void **state)
{
    (void)state;
    struct kk_runtime_options o = kk_runtime_defaults();
    struct kk_engine *e = open_engine(1, "none");
    o.kv_bytes = 3 * kk_kv_bytes_at(e->pool, 400); /* three of ten */
    kk_engine_close(e);
    many_callers(open_runtime(o, 4, "none"), 10);
}

static void nor_when_paged_out_to_disk(void **state)
{
    (void)state;
    struct kk_runtime_options o = kk_runtime_defaults();
    struct kk_engine *e = open_engine(1, "none");
    o.kv_bytes = 3 * kk_kv_bytes_at(e->pool, 400);
    o.kv_host = kk_kv_bytes_at(e->pool, 300);
    o.state = kk_test_path("paged");
    kk_engine_close(e);
    many_callers(open_runtime(o, 4, "none"), 10);
}

static void nor_with_a_journal(void **state)
{
    (void)state;
    struct kk_runtime_options o = kk_runtime_defaults();
    o.state = kk_test_path("state");
    many_callers(open_runtime(o, 8, "none"), 8);
}

/* ---- one thing at a time ---- */

static struct kk_call *submit(struct kk_runtime *rt, struct kk_request r, struct answer *a)
{
    struct kk_call *call;
    struct kk_err err = {0};
    init_answer(a);
    r.sink = sink;
    r.arg = a;
    KK_ASSERT_OK(kk_runtime_submit(rt, &r, &call, &err), &err);
    return call;
}

/* Tokens that a has, MOST if it is done. */
static int come_so_far(struct answer *a)
{
    pthread_mutex_lock(&a->lock);
    int n = a->done ? MOST : a->n;
    pthread_mutex_unlock(&a->lock);
    return n;
}

/* More sessions write than a round has places, and one comes to read: it has read before the first
 * of them is half way. 0: the writers were too far when it came. */
static int reads_among_writers(struct kk_runtime *rt, int writers)
{
    struct answer *a = kk_calloc((size_t)writers + 1, sizeof *a), *reader = &a[writers];
    struct kk_call **call = kk_calloc((size_t)writers + 1, sizeof(struct kk_call *));
    char(*id)[KK_SESSION_ID_MAX] = kk_calloc((size_t)writers + 1, sizeof *id);
    uint32_t ids[60] = {3, 1, 4, 1, 5, 9, 2, 6};
    int in_time = 1;
    for (int i = 0; i <= writers; i++) {
        create(rt, id[i]);
        append(rt, id[i], ids, 2 + (size_t)i);
    }
    for (int i = 0; i < writers; i++) call[i] = submit(rt, generation(id[i], MOST, 0), &a[i]);
    const struct kk_request r = {
        .kind = KK_REQUEST_APPEND, .session = id[writers], .ids = ids, .n = 60};
    call[writers] = submit(rt, r, reader);
    for (int i = 0; i < writers; i++) in_time &= come_so_far(&a[i]) < MOST / 2;
    for (int i = 0; i <= writers; i++) {
        wait_done(&a[i]);
        fine(a[i].end.code, &a[i]);
        kk_call_release(call[i]);
    }
    for (int i = 0; i < writers && in_time; i++) assert_true(reader->order < a[i].order);
    for (int i = 0; i <= writers; i++) close_session(rt, id[i]);
    kk_free(a);
    kk_free(call);
    kk_free(id);
    return in_time;
}

static void writers_do_not_keep_readers_out(void **state)
{
    (void)state;
    for (int batch = 1; batch <= 4; batch += 3) {
        struct kk_runtime_options o = kk_runtime_defaults();
        o.step_rows = batch == 1 ? 1 : 512; /* and where writes alone fill a step */
        struct kk_runtime *rt = open_runtime(o, batch, "none");
        int tries = 20;
        while (tries && !reads_among_writers(rt, batch + 2)) tries--;
        assert_true(tries);
        kk_runtime_close(rt);
    }
}

static void mistakes_are_answered(void **state)
{
    (void)state;
    struct kk_runtime_options o = kk_runtime_defaults();
    o.capacity = 2;
    struct kk_runtime *rt = open_runtime(o, 4, "none");
    char a[KK_SESSION_ID_MAX], b[KK_SESSION_ID_MAX];
    uint32_t ids[3] = {1, MINI_V, 3};
    struct answer w;
    struct kk_request r = generation("sess-none", 3, 0);
    assert_int_equal(ask(rt, r, &w), KK_ENOENT);
    create(rt, a);
    r = generation(a, 0, 0);
    assert_int_equal(ask(rt, r, &w), KK_EINVAL);
    r = generation(a, 3, 0);
    assert_int_equal(ask(rt, r, &w), KK_EINVAL); /* no history */
    r = (struct kk_request){.kind = KK_REQUEST_APPEND, .session = a, .ids = ids, .n = 3};
    assert_int_equal(ask(rt, r, &w), KK_ERANGE);
    r.n = 0;
    fine(ask(rt, r, &w), &w);
    assert_int_equal(w.end.history, 0);
    assert_int_equal(append(rt, a, ids, 1), 1);
    create(rt, b);
    assert_int_equal(ask(rt, (struct kk_request){.kind = KK_REQUEST_CREATE}, &w), KK_EEXHAUSTED);
    assert_non_null(strstr(w.msg, "2 sessions"));
    r = (struct kk_request){.kind = KK_REQUEST_INFO, .session = a};
    fine(ask(rt, r, &w), &w);
    assert_int_equal(w.end.info.history, 1);
    close_session(rt, b);
    r = (struct kk_request){.kind = KK_REQUEST_CLOSE, .session = b};
    assert_int_equal(ask(rt, r, &w), KK_ENOENT);
    kk_runtime_close(rt);
}

/* Cancelled in the middle: the session goes on from what it had committed. */
static void a_cancelled_call_keeps_the_session(void **state)
{
    (void)state;
    struct kk_runtime *rt = open_runtime(kk_runtime_defaults(), 4, "none");
    struct kk_engine *e = open_engine(1, "none");
    struct kk_test_rng rng = kk_test_rng("cancel");
    uint32_t ids[40], want[MOST];
    char id[KK_SESSION_ID_MAX];
    random_ids(&rng, ids, 40);
    create(rt, id);
    append(rt, id, ids, 40);
    alone(e, ids, 40, 400, 0, want);
    int at = 0;
    while (at < 300) {
        struct kk_request r = generation(id, 400 - at, 0);
        struct answer a;
        struct kk_call *call;
        struct kk_err err = {0};
        init_answer(&a);
        r.sink = sink;
        r.arg = &a;
        KK_ASSERT_OK(kk_runtime_submit(rt, &r, &call, &err), &err);
        struct timespec pause = {.tv_nsec = (long)kk_test_below(&rng, 3000000)};
        nanosleep(&pause, NULL);
        kk_runtime_cancel(call);
        wait_done(&a);
        kk_call_release(call);
        assert_memory_equal(a.ids, want + at, (size_t)a.n * sizeof *want);
        assert_int_equal(a.end.history, 40 + at + a.end.tokens);
        at += (int)a.end.tokens; /* committed, also those that were not sent any more */
        if (a.end.code != KK_ECANCELLED) break;
    }
    struct answer a;
    if (at < 400) {
        fine(ask(rt, generation(id, 400 - at, 0), &a), &a);
        assert_memory_equal(a.ids, want + at, (size_t)(400 - at) * sizeof *want);
    }
    struct kk_request late = generation(id, 50, 0);
    late.deadline_ns = 1;
    assert_int_equal(ask(rt, late, &a), KK_ETIMEOUT);
    kk_runtime_close(rt);
    kk_engine_close(e);
}

/* A sink that takes nothing for a while holds up nobody. */
static void a_full_sink_waits_alone(void **state)
{
    (void)state;
    struct kk_runtime *rt = open_runtime(kk_runtime_defaults(), 4, "none");
    uint32_t ids[4] = {5, 6, 7, 8};
    char slow[KK_SESSION_ID_MAX], quick[KK_SESSION_ID_MAX];
    struct answer a, b;
    struct kk_call *call;
    struct kk_err err = {0};
    create(rt, slow);
    create(rt, quick);
    append(rt, slow, ids, 4);
    append(rt, quick, ids, 4);
    struct kk_request r = generation(slow, 100, 0);
    init_answer(&a);
    a.full_every = 1;
    r.sink = sink;
    r.arg = &a;
    KK_ASSERT_OK(kk_runtime_submit(rt, &r, &call, &err), &err);
    fine(ask(rt, generation(quick, 300, 0), &b), &b);
    pthread_mutex_lock(&a.lock);
    assert_true(!a.done && a.n < 100);
    while (!a.done) {
        pthread_mutex_unlock(&a.lock);
        kk_runtime_resume(call);
        nanosleep(&(struct timespec){.tv_nsec = 100000}, NULL);
        pthread_mutex_lock(&a.lock);
    }
    pthread_mutex_unlock(&a.lock);
    assert_int_equal(a.n, 100);
    assert_memory_equal(a.ids, b.ids, 100 * sizeof a.ids[0]);
    kk_call_release(call);
    kk_runtime_close(rt);
}

static void forks_and_prefixes(void **state)
{
    (void)state;
    struct kk_runtime *rt = open_runtime(kk_runtime_defaults(), 8, "none");
    struct kk_engine *e = open_engine(1, "none");
    struct kk_test_rng rng = kk_test_rng("prefix");
    struct kk_runtime_stats st;
    uint32_t ids[420], want[20];
    struct answer a;
    random_ids(&rng, ids, 420);
    for (int i = 0; i < 5; i++) { /* the same 320 tokens, then each its own */
        char id[KK_SESSION_ID_MAX];
        random_ids(&rng, ids + 320, 100);
        create(rt, id);
        append(rt, id, ids, 420);
        fine(ask(rt, generation(id, 20, 0), &a), &a);
        alone(e, ids, 420, 20, 0, want);
        assert_memory_equal(a.ids, want, sizeof want);
        struct kk_request f = {.kind = KK_REQUEST_FORK, .session = id, .label = "child"};
        fine(ask(rt, f, &a), &a);
        char child[KK_SESSION_ID_MAX];
        memcpy(child, a.id, sizeof child);
        assert_string_not_equal(child, id);
        uint32_t more[440];
        memcpy(more, ids, sizeof ids);
        memcpy(more + 420, want, sizeof want);
        fine(ask(rt, generation(child, 20, 0), &a), &a);
        alone(e, more, 440, 20, 0, want);
        assert_memory_equal(a.ids, want, sizeof want);
    }
    kk_runtime_stats(rt, &st);
    assert_int_equal(st.prefix_hits, 3); /* the first reads, the second finds where they part */
    assert_true(st.prefix_hit_tokens >= 3 * 256);
    assert_int_equal(st.forked, 5);
    kk_runtime_close(rt);
    kk_engine_close(e);
}

/* A prompt that sessions have begun with is kept while others read on, each append of which could
 * be a prompt too. */
static void shared_prompts_stay(void **state)
{
    (void)state;
    struct kk_runtime *rt = open_runtime(kk_runtime_defaults(), 8, "none");
    struct kk_test_rng rng = kk_test_rng("shared prompts");
    struct kk_runtime_stats st;
    uint32_t ids[300];
    char id[KK_SESSION_ID_MAX];
    random_ids(&rng, ids, 300);
    for (int round = 0; round < 3; round++) {
        for (int i = 0; i < 4; i++) { /* 256 tokens, then each its own */
            random_ids(&rng, ids + 256, 44);
            create(rt, id);
            append(rt, id, ids, 300);
        }
        for (int i = 0; i < 20; i++) append(rt, id, ids, 5);
    }
    create(rt, id); /* and a session more: counters are of the turn before */
    kk_runtime_stats(rt, &st);
    assert_int_equal(st.prefix_hits, 3 * 4 - 2);
    assert_int_equal(st.prefix_hit_tokens, (3 * 4 - 2) * 256);
    kk_runtime_close(rt);
}

/* A fork needs room for what it says, not for what it shares: where one session and a half fit,
 * twenty forks of it do, and none of them is paged out. */
static void forks_fit_where_one_does(void **state)
{
    enum { FORKS = 20, PROMPT = 500 };
    (void)state;
    struct kk_runtime_options o = kk_runtime_defaults();
    struct kk_engine *e = open_engine(1, "none");
    struct kk_test_rng rng = kk_test_rng("room for forks");
    struct kk_runtime_stats st;
    uint32_t ids[PROMPT + 1], want[8];
    char first[KK_SESSION_ID_MAX], id[KK_SESSION_ID_MAX];
    struct answer a;
    const int64_t one = kk_kv_bytes_at(e->pool, PROMPT), tail = kk_kv_bytes_at(e->pool, 128);
    o.kv_bytes = one + (FORKS + 1) * tail;
    assert_true(o.kv_bytes < FORKS / 2 * one);
    struct kk_runtime *rt = open_runtime(o, 8, "none");
    random_ids(&rng, ids, PROMPT);
    create(rt, first);
    append(rt, first, ids, PROMPT);
    for (int i = 0; i < FORKS; i++) {
        fine(ask(rt, (struct kk_request){.kind = KK_REQUEST_FORK, .session = first}, &a), &a);
        memcpy(id, a.id, sizeof id);
        ids[PROMPT] = (uint32_t)i;
        append(rt, id, ids + PROMPT, 1);
        fine(ask(rt, generation(id, 8, 0), &a), &a);
        alone(e, ids, PROMPT + 1, 8, 0, want);
        assert_memory_equal(a.ids, want, sizeof want);
    }
    kk_runtime_stats(rt, &st);
    assert_int_equal(st.sessions_resident, FORKS + 1);
    assert_int_equal(st.resumed, 0);
    assert_true(st.kv_device_bytes <= o.kv_bytes);
    kk_runtime_close(rt);
    kk_engine_close(e);
}

static void idle_sessions_expire(void **state)
{
    (void)state;
    struct kk_runtime_options o = kk_runtime_defaults();
    struct kk_runtime_stats st;
    o.idle_ttl_s = 0.05;
    struct kk_runtime *rt = open_runtime(o, 4, "none");
    char id[KK_SESSION_ID_MAX];
    for (int i = 0; i < 5; i++) create(rt, id);
    uint64_t t0 = kk_now_ns();
    do {
        nanosleep(&(struct timespec){.tv_nsec = 5000000}, NULL);
        kk_runtime_stats(rt, &st);
    } while (st.sessions && kk_seconds_since(t0) < 20);
    assert_int_equal(st.sessions, 0);
    assert_int_equal(st.expired, 5);
    assert_int_equal(st.kv_device_bytes, 0);
    kk_runtime_close(rt);
}

/* What was acknowledged is there after a restart, and goes on as if nothing had been. */
static void a_restart_loses_nothing(void **state)
{
    (void)state;
    struct kk_runtime_options o = kk_runtime_defaults();
    struct kk_engine *e = open_engine(1, "none");
    struct kk_test_rng rng = kk_test_rng("restart");
    char id[3][KK_SESSION_ID_MAX], gone[KK_SESSION_ID_MAX];
    uint32_t said[3][MOST], want[30];
    size_t n[3] = {0};
    struct answer a;
    o.state = kk_test_path("restart");
    for (int life = 0; life < 4; life++) {
        struct kk_runtime *rt = open_runtime(o, 4, "none");
        for (int i = 0; i < 3; i++) {
            if (!life) create(rt, id[i]);
            random_ids(&rng, said[i] + n[i], 30);
            assert_int_equal(append(rt, id[i], said[i] + n[i], 30), n[i] + 30);
            n[i] += 30;
            fine(ask(rt, generation(id[i], 30, 0), &a), &a);
            alone(e, said[i], n[i], 30, 0, want);
            assert_memory_equal(a.ids, want, sizeof want);
            memcpy(said[i] + n[i], want, sizeof want);
            n[i] += 30;
        }
        if (!life) {
            create(rt, gone);
            close_session(rt, gone);
        }
        struct kk_request r = {.kind = KK_REQUEST_INFO, .session = gone};
        assert_int_equal(ask(rt, r, &a), KK_ENOENT);
        struct kk_runtime_stats st;
        kk_runtime_stats(rt, &st);
        assert_int_equal(st.resumed, life ? 3 : 0);
        /* rows come from the snapshots of the life before; in life 2 those are gone */
        uint64_t read = 3 * (life == 2 ? n[0] - 31 : life ? 30 : 29);
        assert_int_equal(st.tokens_appended, read);
        kk_runtime_close(rt);
        if (life == 1) kk_test_remove(kk_test_path("restart/snapshots"));
    }
    kk_engine_close(e);
}

/* ---- who is refused, and who makes way ---- */

static int exists(struct kk_runtime *rt, const char *id)
{
    struct answer a;
    return ask(rt, (struct kk_request){.kind = KK_REQUEST_INFO, .session = id}, &a) == 0;
}

static void only_idle_sessions_make_way(void **state)
{
    (void)state;
    struct kk_runtime_options o = kk_runtime_defaults();
    struct kk_runtime_stats st;
    uint32_t ids[4] = {5, 6, 7, 8};
    char id[3][KK_SESSION_ID_MAX];
    struct answer busy[2], a;
    struct kk_call *call[2];
    struct kk_err err = {0};
    o.capacity = 2;
    o.evict_idle = 1;
    struct kk_runtime *rt = open_runtime(o, 4, "none");
    create(rt, id[0]);
    create(rt, id[1]);
    append(rt, id[0], ids, 4);
    append(rt, id[1], ids, 4);
    create(rt, id[2]); /* the longest idle one goes */
    assert_true(!exists(rt, id[0]) && exists(rt, id[1]));
    append(rt, id[2], ids, 4);
    for (int i = 0; i < 2; i++) { /* both are busy, with sinks that take nothing */
        struct kk_request r = generation(id[1 + i], 100, 0);
        init_answer(&busy[i]);
        busy[i].full_every = 1;
        r.sink = sink;
        r.arg = &busy[i];
        KK_ASSERT_OK(kk_runtime_submit(rt, &r, &call[i], &err), &err);
    }
    assert_int_equal(ask(rt, (struct kk_request){.kind = KK_REQUEST_CREATE}, &a), KK_EEXHAUSTED);
    assert_true(exists(rt, id[1]) && exists(rt, id[2]));
    for (int i = 0; i < 2; i++) {
        kk_runtime_cancel(call[i]);
        wait_done(&busy[i]);
        kk_call_release(call[i]);
    }
    kk_runtime_stats(rt, &st);
    assert_int_equal(st.evicted, 1);
    kk_runtime_close(rt);
}

/* As many sessions as fit on the device and in host memory together, with no room besides: each of
 * them can go on, in the place of another. */
static void full_everywhere_they_change_places(void **state)
{
    enum { N = 3, TURNS = 12 };
    (void)state;
    struct kk_runtime_options o = kk_runtime_defaults();
    struct kk_engine *e = open_engine(1, "none");
    struct kk_test_rng rng = kk_test_rng("places");
    struct kk_runtime *rt = NULL;
    struct kk_runtime_stats st;
    char id[N][KK_SESSION_ID_MAX];
    uint32_t ids[N][60 + 2 * TURNS], want[2];
    size_t n[N] = {60, 60, 60};
    struct answer a;
    o.kv_bytes = (N - 1) * kk_kv_bytes_at(e->pool, 100);
    for (int i = 0; i < N; i++) random_ids(&rng, ids[i], 60);
    for (int known = 0; known < 2; known++) { /* how much one takes in host memory */
        kk_runtime_close(rt);
        rt = open_runtime(o, 4, "none");
        for (int i = 0; i < N; i++) {
            create(rt, id[i]);
            append(rt, id[i], ids[i], 60);
        }
        create(rt, a.id); /* counters are of the turn before */
        kk_runtime_stats(rt, &st);
        assert_int_equal(st.sessions_host, 1);
        o.kv_host = st.kv_host_bytes * 3 / 2;
    }
    for (int t = 0; t < TURNS; t++) {
        const int i = t % N;
        alone(e, ids[i], n[i], 2, 0, want);
        fine(ask(rt, generation(id[i], 2, 0), &a), &a);
        assert_memory_equal(a.ids, want, sizeof want);
        memcpy(ids[i] + n[i], want, sizeof want);
        n[i] += 2;
    }
    create(rt, a.id);
    kk_runtime_stats(rt, &st);
    assert_true(st.resumed >= TURNS && st.kv_host_bytes > 0 && st.kv_host_bytes <= o.kv_host);
    kk_runtime_close(rt);
    kk_engine_close(e);
}

/* Where nothing can be moved the third of two is refused, with the numbers; where host memory takes
 * the idle ones nobody is; and nobody is let in who could never read. */
static void admission_is_by_bytes(void **state)
{
    (void)state;
    struct kk_runtime_options o = kk_runtime_defaults();
    struct kk_engine *e = open_engine(1, "none");
    const int64_t one = kk_kv_bytes_at(e->pool, 100), empty = kk_kv_bytes_at(e->pool, 1);
    char id[3][KK_SESSION_ID_MAX];
    uint32_t ids[60];
    struct answer a;
    struct kk_test_rng rng = kk_test_rng("admission");
    random_ids(&rng, ids, 60);
    for (int host = 0; host < 2; host++) {
        o.kv_bytes = 2 * one;
        o.kv_host = -host;
        struct kk_runtime *rt = open_runtime(o, 4, "none");
        for (int i = 0; i < 2; i++) {
            create(rt, id[i]);
            append(rt, id[i], ids, 60);
        }
        int rc = ask(rt, (struct kk_request){.kind = KK_REQUEST_CREATE}, &a);
        if (host) {
            fine(rc, &a);
            append(rt, a.id, ids, 60);
        } else {
            char numbers[64];
            snprintf(numbers, sizeof numbers, "%lld bytes of KV are needed", (long long)empty);
            assert_int_equal(rc, KK_EEXHAUSTED);
            assert_non_null(strstr(a.msg, numbers));
            close_session(rt, id[0]);
            create(rt, id[2]);
        }
        append(rt, id[1], ids, 1);
        kk_runtime_close(rt);
    }
    o.kv_bytes = empty - 1;
    struct kk_runtime *rt = open_runtime(o, 4, "none");
    assert_int_equal(ask(rt, (struct kk_request){.kind = KK_REQUEST_CREATE}, &a), KK_EEXHAUSTED);
    assert_non_null(strstr(a.msg, "at least"));
    kk_runtime_close(rt);
    kk_engine_close(e);
}

/* A session that was made and left takes nothing: ten thousand of them fit where two that read
 * do. */
static void sessions_that_say_nothing_take_nothing(void **state)
{
    enum { N = 10000 };
    (void)state;
    struct kk_runtime_options o = kk_runtime_defaults();
    struct kk_engine *e = open_engine(1, "none");
    struct kk_runtime_stats st;
    char id[KK_SESSION_ID_MAX];
    uint32_t ids[3] = {1, 2, 3};
    o.capacity = 0;
    o.kv_bytes = 2 * kk_kv_bytes_at(e->pool, 100);
    kk_engine_close(e);
    struct kk_runtime *rt = open_runtime(o, 4, "none");
    for (int i = 0; i < N; i++) create(rt, id);
    struct answer a;
    const struct kk_request info = {.kind = KK_REQUEST_INFO, .session = id};
    fine(ask(rt, info, &a), &a); /* the turn of the last create is counted */
    kk_runtime_stats(rt, &st);
    assert_int_equal(st.sessions, N);
    assert_int_equal(st.kv_device_bytes, 0);
    append(rt, id, ids, 3);
    kk_runtime_close(rt);
}

/* ---- a disk that takes nothing ---- */

static void wait_until(struct kk_runtime *rt, int broken)
{
    struct kk_runtime_stats st;
    uint64_t t0 = kk_now_ns();
    do {
        nanosleep(&(struct timespec){.tv_nsec = 1000000}, NULL);
        kk_runtime_stats(rt, &st);
    } while (st.state_broken != broken && kk_seconds_since(t0) < 20);
    assert_int_equal(st.state_broken, broken);
}

/* While the disk is full, or read-only, no token is sent that a crash could take back, and nobody
 * fails; when it is not any more, all goes on. Snapshots that were not written cost a second
 * reading. What was told is there after a restart in the middle of it. */
static void a_full_disk_costs_time(void **state)
{
    static const int codes[][2] = {{SQLITE_FULL, ENOSPC}, {SQLITE_READONLY, EROFS}};
    (void)state;
    struct kk_runtime_options o = kk_runtime_defaults();
    struct kk_engine *e = open_engine(1, "none");
    struct kk_test_rng rng = kk_test_rng("full disk");
    struct kk_runtime_stats st;
    uint32_t ids[2][MOST], want[40];
    char id[2][KK_SESSION_ID_MAX];
    size_t n[2] = {60, 60};
    o.state = kk_test_path("full");
    o.kv_host = 0; /* what leaves the device goes to disk, or is read again */
    o.kv_bytes = kk_kv_bytes_at(e->pool, 256); /* one of the two */
    fault_vfs_use();
    struct kk_runtime *rt = open_runtime(o, 4, "none");
    for (int i = 0; i < 2; i++) {
        create(rt, id[i]);
        random_ids(&rng, ids[i], n[i]);
        append(rt, id[i], ids[i], n[i]);
    }
    for (int turn = 0; turn < 4; turn++) {
        const int i = turn % 2;
        struct kk_request r = generation(id[i], 40, 0);
        struct kk_call *call;
        struct kk_err err = {0};
        struct answer a;
        alone(e, ids[i], n[i], 40, 0, want);
        init_answer(&a);
        r.sink = sink;
        r.arg = &a;
        fault_arm(1, INT_MAX, codes[turn / 2][0]);
        kk_fs_fail_writes(codes[turn / 2][1]);
        KK_ASSERT_OK(kk_runtime_submit(rt, &r, &call, &err), &err);
        wait_until(rt, 1);
        nanosleep(&(struct timespec){.tv_nsec = 30000000}, NULL);
        pthread_mutex_lock(&a.lock);
        assert_true(!a.done && !a.n);
        pthread_mutex_unlock(&a.lock);
        fault_clear();
        kk_fs_fail_writes(0);
        wait_done(&a);
        kk_call_release(call);
        fine(a.end.code, &a);
        assert_memory_equal(a.ids, want, sizeof want);
        memcpy(ids[i] + n[i], want, sizeof want);
        n[i] += 40;
        wait_until(rt, 0);
    }
    kk_runtime_stats(rt, &st);
    assert_true(st.snapshots_failed > 0);
    fault_arm(1, INT_MAX, SQLITE_FULL); /* shut down as it is: what was told is on disk */
    kk_fs_fail_writes(ENOSPC);
    kk_runtime_close(rt);
    fault_clear();
    kk_fs_fail_writes(0);
    rt = open_runtime(o, 4, "none");
    for (int i = 0; i < 2; i++) {
        struct answer a;
        fine(ask(rt, generation(id[i], 40, 0), &a), &a);
        assert_int_equal(a.end.history, n[i] + 40);
        alone(e, ids[i], n[i], 40, 0, want);
        assert_memory_equal(a.ids, want, sizeof want);
    }
    kk_runtime_close(rt);
    kk_engine_close(e);
}

/* A call whose tokens have waited until no more could goes on when they have gone. */
static void an_outage_longer_than_a_call_can_wait(void **state)
{
    enum { N = 500 };
    (void)state;
    struct kk_runtime_options o = kk_runtime_defaults();
    struct kk_engine *e = open_engine(1, "none");
    struct kk_runtime_stats st;
    struct answer a;
    struct kk_call *call;
    struct kk_err err = {0};
    uint32_t ids[3] = {1, 2, 3}, want[N];
    char id[KK_SESSION_ID_MAX];
    o.state = kk_test_path("long outage");
    struct kk_runtime *rt = open_runtime(o, 4, "none");
    create(rt, id);
    append(rt, id, ids, 3);
    alone(e, ids, 3, N, 0, want);
    struct kk_request r = generation(id, N, 0);
    init_answer(&a);
    r.sink = sink;
    r.arg = &a;
    fault_arm(1, INT_MAX, SQLITE_FULL);
    KK_ASSERT_OK(kk_runtime_submit(rt, &r, &call, &err), &err);
    uint64_t steps = 0, t0 = kk_now_ns();
    for (st.steps = 1; steps != st.steps && kk_seconds_since(t0) < 20;) {
        steps = st.steps;
        nanosleep(&(struct timespec){.tv_nsec = 100000000}, NULL);
        kk_runtime_stats(rt, &st);
    }
    assert_in_range(st.tokens_generated, 100, N - 1);
    fault_clear();
    wait_done(&a);
    kk_call_release(call);
    fine(a.end.code, &a);
    assert_memory_equal(a.ids, want, sizeof want);
    kk_runtime_close(rt);
    kk_engine_close(e);
}

/* One bit of every file of a directory. */
static void damage_all(const char *path)
{
    DIR *d = opendir(path);
    int n = 0;
    assert_non_null(d);
    for (struct dirent *f; (f = readdir(d));) {
        char name[4096];
        struct kk_buf b;
        struct kk_err err = {0};
        if (f->d_name[0] == '.') continue;
        kk_buf_init(&b, 1 << 24);
        KK_ASSERT_OK(kk_fs_join(name, sizeof name, path, f->d_name, &err), &err);
        KK_ASSERT_OK(kk_fs_read(name, &b, &err), &err);
        b.data[b.len / 2] ^= 1;
        KK_ASSERT_OK(kk_fs_write(name, b.data, b.len, &err), &err);
        kk_buf_release(&b);
        n++;
    }
    closedir(d);
    assert_true(n > 0);
}

/* A snapshot that is damaged, or is gone, is dropped: the history is read again, beside others. */
static void a_broken_snapshot_costs_time(void **state)
{
    (void)state;
    struct kk_runtime_options o = kk_runtime_defaults();
    struct kk_engine *e = open_engine(1, "none");
    struct kk_test_rng rng = kk_test_rng("broken snapshot");
    struct kk_runtime_stats st;
    uint32_t ids[120], want[10];
    char id[KK_SESSION_ID_MAX];
    struct answer a;
    o.state = kk_test_path("broken");
    struct kk_runtime *rt = open_runtime(o, 4, "none");
    random_ids(&rng, ids, 100);
    create(rt, id);
    append(rt, id, ids, 100);
    kk_runtime_close(rt);
    damage_all(kk_test_path("broken/snapshots"));
    for (int life = 0; life < 2; life++) { /* the second finds what the first has written anew */
        rt = open_runtime(o, 4, "none");
        alone(e, ids, 100 + 10 * (size_t)life, 10, 0, want);
        fine(ask(rt, generation(id, 10, 0), &a), &a);
        assert_memory_equal(a.ids, want, sizeof want);
        memcpy(ids + 100 + 10 * life, want, sizeof want);
        kk_runtime_stats(rt, &st);
        assert_int_equal(st.snapshots_lost, !life);
        assert_int_equal(st.tokens_appended, life ? 0 : 99);
        kk_runtime_close(rt);
    }
    kk_engine_close(e);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(writers_do_not_keep_readers_out),
        cmocka_unit_test(mistakes_are_answered),
        cmocka_unit_test(sessions_do_not_see_each_other),
        cmocka_unit_test(nor_with_drafts),
        cmocka_unit_test(nor_when_paged_out),
        cmocka_unit_test(nor_when_paged_out_to_disk),
        cmocka_unit_test(nor_with_a_journal),
        cmocka_unit_test(a_cancelled_call_keeps_the_session),
        cmocka_unit_test(a_full_sink_waits_alone),
        cmocka_unit_test(forks_and_prefixes),
        cmocka_unit_test(shared_prompts_stay),
        cmocka_unit_test(forks_fit_where_one_does),
        cmocka_unit_test(idle_sessions_expire),
        cmocka_unit_test(a_restart_loses_nothing),
        cmocka_unit_test(only_idle_sessions_make_way),
        cmocka_unit_test(full_everywhere_they_change_places),
        cmocka_unit_test(admission_is_by_bytes),
        cmocka_unit_test(sessions_that_say_nothing_take_nothing),
        cmocka_unit_test(a_full_disk_costs_time),
        cmocka_unit_test(an_outage_longer_than_a_call_can_wait),
        cmocka_unit_test(a_broken_snapshot_costs_time),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
