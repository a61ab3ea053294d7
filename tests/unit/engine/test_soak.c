/* Sessions by the ten thousand, opened, used in every way and closed or left: nothing stays behind,
 * in memory or on disk. kk-test: soak: 100,000 of them. */
#include "kk_test.h"

#include <dirent.h>
#include <malloc.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/clock.h"
#include "engine/engine_int.h"
#include "engine/runtime.h"

#define MINI "synth:tests/data/mini.json:5"
enum { MINI_V = 160, WORKERS = 4, PROMPT = 150 };

struct wait {
    pthread_mutex_t lock;
    pthread_cond_t changed;
    int done, code;
    char id[KK_SESSION_ID_MAX];
};

static int sink(void *arg, const struct kk_event *ev)
{
    struct wait *w = arg;
    if (ev->kind != KK_EVENT_DONE) return KK_SINK_OK;
    pthread_mutex_lock(&w->lock);
    w->code = ev->code;
    if (ev->session) snprintf(w->id, sizeof w->id, "%s", ev->session);
    w->done = 1;
    pthread_cond_signal(&w->changed);
    pthread_mutex_unlock(&w->lock);
    return KK_SINK_OK;
}

struct worker {
    struct kk_runtime *rt;
    struct kk_test_rng rng;
    int sessions, refused;
    struct wait w;
};

/* The code of the answer; cancelled after a moment if `cancel`. */
static int ask(struct worker *k, struct kk_request r, int cancel)
{
    struct kk_call *call;
    struct wait *w = &k->w;
    w->done = 0;
    r.sink = sink;
    r.arg = w;
    int rc = kk_runtime_submit(k->rt, &r, &call, NULL);
    if (rc) return rc;
    if (cancel) {
        usleep(kk_test_below(&k->rng, 300));
        kk_runtime_cancel(call);
    }
    pthread_mutex_lock(&w->lock);
    while (!w->done) pthread_cond_wait(&w->changed, &w->lock);
    pthread_mutex_unlock(&w->lock);
    kk_call_release(call);
    return w->code;
}

/* One session: made, read to, written by, sometimes forked; closed, or left to its time. */
static void use(struct worker *k)
{
    struct kk_test_rng *r = &k->rng;
    uint32_t ids[PROMPT];
    char id[KK_SESSION_ID_MAX];
    const int cancel = kk_test_below(r, 8) == 0,
              n = 1 + (int)kk_test_below(r, kk_test_below(r, 6) ? 12 : PROMPT);
    for (int i = 0; i < n; i++) ids[i] = i < 130 ? (uint32_t)i : kk_test_below(r, MINI_V);
    k->refused += ask(k, (struct kk_request){.kind = KK_REQUEST_CREATE, .label = "soak"}, 0) != 0;
    memcpy(id, k->w.id, sizeof id);
    ask(k,
        (struct kk_request){.kind = KK_REQUEST_APPEND, .session = id, .ids = ids, .n = (size_t)n},
        cancel);
    struct kk_request g = {.kind = KK_REQUEST_GENERATE,
                           .session = id,
                           .sampling = kk_sampling_defaults(),
                           .max_tokens = 1 + kk_test_below(r, 4)};
    if (kk_test_below(r, 16) == 0) g.deadline_ns = kk_now_ns() + kk_test_below(r, 300000);
    ask(k, g, cancel);
    if (kk_test_below(r, 4) == 0) {
        char parent[KK_SESSION_ID_MAX];
        memcpy(parent, id, sizeof id);
        if (!ask(k, (struct kk_request){.kind = KK_REQUEST_FORK, .session = parent}, 0)) {
            memcpy(id, k->w.id, sizeof id);
            g.session = id;
            g.deadline_ns = 0;
            ask(k, g, 0);
        }
        ask(k, (struct kk_request){.kind = KK_REQUEST_CLOSE, .session = parent}, 0);
        k->sessions--;
    }
    if (kk_test_below(r, 16))
        ask(k, (struct kk_request){.kind = KK_REQUEST_CLOSE, .session = id}, 0);
    k->sessions--;
}

static void *work(void *arg)
{
    struct worker *k = arg;
    while (k->sessions > 0) use(k);
    return NULL;
}

static struct kk_runtime_stats all_gone(struct kk_runtime *rt)
{
    struct kk_runtime_stats st;
    uint64_t t0 = kk_now_ns();
    do {
        usleep(10000);
        kk_runtime_stats(rt, &st);
    } while ((st.sessions || st.kv_disk_bytes) && kk_seconds_since(t0) < 30);
    assert_int_equal(st.sessions, 0);
    assert_int_equal(st.kv_disk_bytes, 0);
    assert_int_equal(st.calls_running + st.calls_queued, 0);
    return st;
}

static void some(struct kk_runtime *rt, int sessions, const char *name)
{
    struct worker k[WORKERS];
    pthread_t thread[WORKERS];
    for (int i = 0; i < WORKERS; i++) {
        char own[40];
        snprintf(own, sizeof own, "%s %d", name, i);
        k[i] = (struct worker){.rt = rt, .rng = kk_test_rng(own), .sessions = sessions / WORKERS};
        pthread_mutex_init(&k[i].w.lock, NULL);
        pthread_cond_init(&k[i].w.changed, NULL);
        assert_int_equal(pthread_create(&thread[i], NULL, work, &k[i]), 0);
    }
    for (int i = 0; i < WORKERS; i++) {
        pthread_join(thread[i], NULL);
        assert_int_equal(k[i].refused, 0);
    }
}

static int64_t heap_bytes(void)
{
    struct mallinfo2 m = mallinfo2();
    return (int64_t)(m.uordblks + m.hblkhd);
}

static int64_t file_bytes(const char *path)
{
    struct stat st;
    return stat(path, &st) ? 0 : (int64_t)st.st_size;
}

static int files_in(const char *path)
{
    DIR *d = opendir(path);
    int n = 0;
    assert_non_null(d);
    for (struct dirent *f; (f = readdir(d));) n += f->d_name[0] != '.';
    closedir(d);
    return n;
}

static void nothing_stays_behind(void **state)
{
    const int sessions = getenv("KK_SOAK") ? 100000 : 2000;
    struct kk_engine_options eo = kk_engine_defaults();
    struct kk_runtime_options o = kk_runtime_defaults();
    struct kk_engine *e = NULL;
    struct kk_runtime *rt = NULL;
    struct kk_err err = {0};
    char db[4096];
    (void)state;
    eo.model = MINI;
    eo.threads = 1;
    eo.max_batch = 4;
    eo.prefill_chunk = 64;
    KK_ASSERT_OK(kk_engine_open(&eo, &e, &err), &err);
    o.state = kk_test_path("soak");
    snprintf(db, sizeof db, "%s/journal.db", o.state);
    o.idle_ttl_s = .3;
    o.kv_bytes =
        3 * kk_kv_bytes_at(e->pool, 2 * PROMPT); /* so that some go to host memory, and to disk */
    o.kv_host = kk_kv_bytes_at(e->pool, PROMPT);
    KK_ASSERT_OK(kk_runtime_open(e, &o, &rt, &err), &err);
    some(rt, sessions / 5, "warm");
    all_gone(rt);
    const int64_t heap = heap_bytes(), disk = file_bytes(db);
    some(rt, sessions, "soak");
    struct kk_runtime_stats st = all_gone(rt);
    print_message("%llu sessions, %llu forks, %llu expired, %llu cancelled; heap %+lld bytes, "
                  "journal %+lld\n",
                  (unsigned long long)st.created, (unsigned long long)st.forked,
                  (unsigned long long)st.expired, (unsigned long long)st.calls_cancelled,
                  (long long)(heap_bytes() - heap), (long long)(file_bytes(db) - disk));
    assert_true(st.created + st.forked >= (uint64_t)sessions);
    assert_true(st.expired > 0 && st.calls_cancelled > 0 && st.prefix_hits > 0);
    assert_int_equal(st.inv1_violations, 0);
    assert_true(heap_bytes() - heap < 1 << 20);
    assert_true(file_bytes(db) - disk < 4 << 20);
    assert_int_equal(files_in(kk_test_path("soak/snapshots")), 0);
    kk_runtime_close(rt);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(nothing_stays_behind)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
