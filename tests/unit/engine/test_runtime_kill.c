/* A runtime with a state directory is killed at random moments under load; the next one goes on.
 * Half of its sessions are forks of the others. In every third life the disk is full, or read-only,
 * now and then. kk-test: soak
 *
 * What a sink has been told is told to this process through memory that both share. After every
 * death: no session that was acknowledged is gone, none is shorter than what was acknowledged of
 * it, and every token, before and after, is the one the session makes alone. */
#include "kk_test.h"

#include <errno.h>
#include <limits.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/fs.h"
#include "engine/engine_int.h"
#include "engine/runtime.h"
#include "unit/engine/fault_vfs.h"

#define MINI "synth:tests/data/mini.json:5"
enum { MINI_V = 160, PARENTS = 2, SESSIONS = 2 * PARENTS, PROMPT = 200, TOKENS = 3800, PIECE = 40 };
enum { OWN = 30 }; /* tokens that a fork is given before it writes */

struct shared {
    struct {
        _Atomic int known; /* CREATE was answered */
        char id[KK_SESSION_ID_MAX];
        _Atomic int64_t acknowledged; /* tokens of its history */
        uint32_t said[PROMPT + TOKENS];
    } s[SESSIONS];
    _Atomic int ready; /* this life has begun to serve */
    char wrong[256];   /* what a child found wrong */
};
static struct shared *shared;

static struct kk_engine *open_engine(int max_batch)
{
    struct kk_engine_options o = kk_engine_defaults();
    struct kk_engine *e = NULL;
    struct kk_err err = {0};
    o.model = MINI;
    o.threads = 1;
    o.max_batch = max_batch;
    o.prefill_chunk = 64;
    if (kk_engine_open(&o, &e, &err)) fail_msg("%s", err.msg);
    return e;
}

/* ---- the child: serves, and says what it has answered ---- */

struct wait {
    pthread_mutex_t lock;
    pthread_cond_t changed;
    int done, session; /* -1: not a generation */
    int64_t at;        /* history before the tokens that come */
    struct kk_event end;
    char id[KK_SESSION_ID_MAX];
};

_Noreturn static void wrong(const char *what, int64_t a, int64_t b)
{
    snprintf(shared->wrong, sizeof shared->wrong, "%s: %lld, %lld", what, (long long)a,
             (long long)b);
    _exit(3);
}

static int sink(void *arg, const struct kk_event *ev)
{
    struct wait *w = arg;
    for (size_t i = 0; ev->kind == KK_EVENT_TOKENS && i < ev->n; i++, w->at++) {
        if (ev->ids[i] != shared->s[w->session].said[w->at])
            wrong("another token at", w->at, w->session);
        atomic_store(&shared->s[w->session].acknowledged, w->at + 1);
    }
    if (ev->kind != KK_EVENT_DONE) return KK_SINK_OK;
    pthread_mutex_lock(&w->lock);
    w->end = *ev;
    if (ev->session) snprintf(w->id, sizeof w->id, "%s", ev->session);
    w->done = 1;
    pthread_cond_signal(&w->changed);
    pthread_mutex_unlock(&w->lock);
    return KK_SINK_OK;
}

/* The history that the call's answer tells. */
static int64_t ask(struct kk_runtime *rt, struct kk_request r, struct wait *w)
{
    struct kk_call *call;
    w->done = 0;
    r.sink = sink;
    r.arg = w;
    if (kk_runtime_submit(rt, &r, &call, NULL)) wrong("a call was refused", r.kind, 0);
    pthread_mutex_lock(&w->lock);
    while (!w->done) pthread_cond_wait(&w->changed, &w->lock);
    pthread_mutex_unlock(&w->lock);
    kk_call_release(call);
    if (w->end.code) wrong("a call failed", r.kind, w->end.code);
    return (int64_t)w->end.history;
}

struct worker {
    struct kk_runtime *rt;
    int i;
};

static void is_made(int i, const struct wait *w, int64_t tokens)
{
    memcpy(shared->s[i].id, w->id, sizeof w->id);
    atomic_store(&shared->s[i].acknowledged, tokens);
    atomic_store(&shared->s[i].known, 1);
}

/* Of session i that has `n` tokens: it gets those up to `end` at once, or has them. */
static int64_t give(struct worker *k, struct wait *w, int64_t n, int64_t from, int64_t end)
{
    if (n >= end) return n;
    if (n != from) wrong("half of what was given was kept", n, end);
    n = ask(k->rt,
            (struct kk_request){.kind = KK_REQUEST_APPEND,
                                .session = shared->s[k->i].id,
                                .ids = shared->s[k->i].said + from,
                                .n = (size_t)(end - from)},
            w);
    atomic_store(&shared->s[k->i].acknowledged, end);
    return n;
}

/* Session i for ever: made, its prompt read, its tokens written, piece by piece. The first ones
 * are forked when they have read, and the others are these forks. */
static void *work(void *arg)
{
    struct worker *k = arg;
    const int fork = k->i + PARENTS;
    struct wait w = {
        .lock = PTHREAD_MUTEX_INITIALIZER, .changed = PTHREAD_COND_INITIALIZER, .session = k->i};
    while (k->i >= PARENTS && !atomic_load(&shared->s[k->i].known)) usleep(500);
    if (!atomic_load(&shared->s[k->i].known)) {
        ask(k->rt, (struct kk_request){.kind = KK_REQUEST_CREATE}, &w);
        is_made(k->i, &w, 0);
    }
    const char *id = shared->s[k->i].id;
    int64_t n = ask(k->rt, (struct kk_request){.kind = KK_REQUEST_INFO, .session = id}, &w);
    int64_t told = atomic_load(&shared->s[k->i].acknowledged);
    if (n < told) wrong("acknowledged tokens are lost", n, told);
    n = give(k, &w, n, 0, PROMPT);
    if (k->i >= PARENTS) {
        n = give(k, &w, n, PROMPT, PROMPT + OWN);
    } else if (!atomic_load(&shared->s[fork].known)) {
        ask(k->rt, (struct kk_request){.kind = KK_REQUEST_FORK, .session = id}, &w);
        is_made(fork, &w, PROMPT);
    }
    while (n + PIECE <= PROMPT + TOKENS) {
        struct kk_request r = {.kind = KK_REQUEST_GENERATE,
                               .session = id,
                               .sampling = kk_sampling_defaults(),
                               .max_tokens = PIECE};
        r.sampling.ignore_eos = 1;
        w.at = n;
        n = ask(k->rt, r, &w);
    }
    for (;;) pause();
}

/* The disk takes nothing, and takes everything again, for ever. */
static void *outages(void *arg)
{
    static const int codes[][2] = {
        {SQLITE_FULL, ENOSPC}, {SQLITE_READONLY, EROFS}, {SQLITE_IOERR_WRITE, EIO}};
    struct kk_test_rng *r = arg;
    for (;;) {
        const int *code = codes[kk_test_below(r, 3)];
        usleep(kk_test_below(r, 60000));
        fault_arm(1, INT_MAX, code[0]);
        kk_fs_fail_writes(code[1]);
        usleep(kk_test_below(r, 20000));
        kk_fs_fail_writes(0);
        fault_clear();
    }
    return NULL;
}

static void child(const char *state, int little_memory, struct kk_test_rng *disk)
{
    struct kk_runtime_options o = kk_runtime_defaults();
    struct kk_runtime *rt;
    struct kk_err err = {0};
    struct kk_engine *e = open_engine(SESSIONS);
    o.state = state;
    if (disk) fault_vfs_use();
    if (little_memory) { /* so that sessions go to disk and back all the time */
        o.kv_bytes = kk_kv_bytes_at(e->pool, PROMPT + TOKENS + 100);
        o.kv_host = kk_kv_bytes_at(e->pool, 300);
    }
    if (kk_runtime_open(e, &o, &rt, &err)) {
        fprintf(stderr, "%s\n", err.msg);
        wrong("the state does not open", err.code, 0);
    }
    pthread_t t[SESSIONS];
    struct worker k[SESSIONS];
    for (int i = 0; i < SESSIONS; i++) {
        k[i] = (struct worker){rt, i};
        pthread_create(&t[i], NULL, work, &k[i]);
    }
    atomic_store(&shared->ready, 1);
    if (disk) outages(disk);
    for (;;) pause();
}

/* ---- this process: kills ---- */

static int keep(void *arg, uint32_t id)
{
    uint32_t **at = arg;
    *(*at)++ = id;
    return 0;
}

/* What every session will have said in the end. */
static void foresee(struct kk_test_rng *r)
{
    struct kk_engine *e = open_engine(1);
    struct kk_sampling p = kk_sampling_defaults();
    struct kk_err err = {0};
    p.ignore_eos = 1;
    for (int i = 0; i < SESSIONS; i++) {
        struct kk_session *s = NULL;
        uint32_t *said = shared->s[i].said, *at = said + PROMPT;
        const int own = i < PARENTS ? 0 : OWN;
        for (int k = 0; k < PROMPT + own; k++)
            said[k] = own && k < PROMPT ? shared->s[i - PARENTS].said[k] : kk_test_below(r, MINI_V);
        KK_ASSERT_OK(kk_session_open(e, &s, &err), &err);
        KK_ASSERT_OK(kk_session_append(s, said, (size_t)(PROMPT + own), &err), &err);
        at += own;
        KK_ASSERT_OK(kk_session_generate(s, &p, TOKENS - own, keep, &at, NULL, &err), &err);
        kk_session_close(s);
    }
    kk_engine_close(e);
}

static int64_t tokens_acknowledged(void)
{
    int64_t n = 0;
    for (int i = 0; i < SESSIONS; i++) n += atomic_load(&shared->s[i].acknowledged);
    return n;
}

/* Where nothing is said between two kills, because the machine is slow or loaded, the time between
 * them grows. */
static void killed_at_any_moment(void **state)
{
    (void)state;
    struct kk_test_rng r = kk_test_rng("runtime kill");
    const char *soak = getenv("KK_SOAK"), *dir = kk_test_path("killed");
    const double limit = soak ? strtod(soak, NULL) : 4;
    uint64_t t0 = kk_now_ns();
    int kills = 0;
    shared = mmap(NULL, sizeof *shared, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    assert_ptr_not_equal(shared, MAP_FAILED);
    foresee(&r);
    while (kills < 6 || kk_seconds_since(t0) < limit ||
           (tokens_acknowledged() <= SESSIONS * PROMPT && kk_seconds_since(t0) < 100)) {
        struct kk_test_rng disk = {kk_test_u64(&r), 0};
        int status, little = kills % 2;
        atomic_store(&shared->ready, 0);
        pid_t pid = fork();
        assert_true(pid >= 0);
        if (!pid) {
            child(dir, little, kills % 3 == 2 ? &disk : NULL);
            _exit(4);
        }
        while (!atomic_load(&shared->ready) && waitpid(pid, &status, WNOHANG) == 0) usleep(200);
        const int slow = tokens_acknowledged() > SESSIONS * PROMPT ? 1 : 1 + kills / 3;
        usleep(kk_test_below(&r, (uint32_t)(120000 * slow)));
        kill(pid, SIGKILL);
        waitpid(pid, &status, 0);
        if (shared->wrong[0]) fail_msg("after %d kills: %s", kills, shared->wrong);
        assert_true(WIFSIGNALED(status));
        kills++;
    }
    const int64_t told = tokens_acknowledged();
    printf("%d kills, %lld tokens acknowledged\n", kills, (long long)told);
    assert_true(told > SESSIONS * PROMPT);
    munmap(shared, sizeof *shared);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(killed_at_any_moment),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
