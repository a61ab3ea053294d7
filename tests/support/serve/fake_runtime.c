#include "support/serve/fake_runtime.h"

#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "base/clock.h"

struct kk_fake kk_fake = {.step_us = 200, .step_tokens = 1};

struct session {
    char id[KK_SESSION_ID_MAX];
    uint64_t sum, n, used_ns;
    struct session *next;
};

struct kk_call {
    atomic_int refs;
    struct kk_runtime *rt;
    struct kk_request r;
    char session[KK_SESSION_ID_MAX];
    uint32_t *ids;
    int cancelled, paused, resumes; /* under the runtime's lock */
    int64_t made;
    uint64_t submitted_ns;
    struct kk_call *next;
};

struct kk_runtime {
    pthread_mutex_t lock;
    pthread_cond_t work, idle;
    pthread_t thread;
    struct kk_call *first, **last; /* in order of submission */
    struct session *sessions;
    struct kk_engine_info info;
    struct kk_runtime_stats stats;
    int capacity, max_calls, calls, draining, stop;
    uint64_t serial;
};

uint32_t kk_fake_token(uint64_t sum, uint64_t n)
{
    return (uint32_t)(1 + (sum * 31 + n * 17) % (KK_FAKE_VOCABULARY - 1));
}

/* ---- one call, by the thread, the lock held but for the sink -------------------------------- */

static struct session *find(struct kk_runtime *rt, const char *id)
{
    struct session *s = rt->sessions;
    while (s && strcmp(s->id, id) != 0) s = s->next;
    return s;
}

static struct session *add(struct kk_runtime *rt)
{
    struct session *s = calloc(1, sizeof *s);
    snprintf(s->id, sizeof s->id, "sess-%032llx", (unsigned long long)++rt->serial);
    s->used_ns = kk_now_ns();
    s->next = rt->sessions;
    rt->sessions = s;
    rt->stats.sessions++;
    rt->stats.created++;
    return s;
}

static void take_out(struct kk_runtime *rt, struct session *s)
{
    struct session **p = &rt->sessions;
    while (*p != s) p = &(*p)->next;
    *p = s->next;
    free(s);
    rt->stats.sessions--;
    rt->stats.closed++;
}

static int tell(struct kk_call *c, const struct kk_event *ev)
{
    struct kk_runtime *rt = c->rt;
    pthread_mutex_unlock(&rt->lock);
    int full = c->r.sink(c->r.arg, ev);
    pthread_mutex_lock(&rt->lock);
    return full;
}

/* Take c out of the line and tell its end; c may be gone after. */
static void done(struct kk_call *c, struct kk_event ev, int code, const char *msg)
{
    struct kk_runtime *rt = c->rt;
    struct kk_call **p = &rt->first;
    while (*p != c) p = &(*p)->next;
    *p = c->next;
    if (rt->last == &c->next) rt->last = p;
    rt->calls--;
    ev.kind = KK_EVENT_DONE;
    ev.code = code;
    ev.msg = msg;
    ev.tokens = c->made;
    ev.total_s = kk_seconds_since(c->submitted_ns);
    if (code == KK_ECANCELLED) rt->stats.calls_cancelled++;
    tell(c, &ev);
    kk_call_release(c);
    if (!rt->calls) pthread_cond_broadcast(&rt->idle);
}

static void generate(struct kk_call *c, struct session *s)
{
    struct kk_event ev = {.kind = KK_EVENT_TOKENS};
    uint32_t ids[16];
    if (!s->n) {
        done(c, ev, KK_EINVAL, "the session has no tokens yet");
        return;
    }
    while (ev.n < (size_t)kk_fake.step_tokens && c->made + (int64_t)ev.n < c->r.max_tokens) {
        uint32_t id = kk_fake_token(s->sum, s->n);
        ids[ev.n++] = id;
        s->sum += id;
        s->n++;
    }
    c->made += (int64_t)ev.n;
    c->rt->stats.tokens_generated += ev.n;
    ev.ids = ids;
    int resumes = c->resumes; /* a resume may come before the sink has returned */
    if (tell(c, &ev) == KK_SINK_FULL && c->resumes == resumes) c->paused = 1;
    if (c->made < c->r.max_tokens) return;
    ev.history = s->n;
    ev.stop = KK_STOP_MAX_TOKENS;
    ev.seed = c->r.seed_unset ? 42 : c->r.sampling.seed;
    ev.steps = c->made;
    done(c, ev, 0, NULL);
}

static void describe(struct session *s, struct kk_event *ev)
{
    ev->history = s->n;
    ev->info.history = (int64_t)s->n;
    ev->info.kv_device_bytes = 1000;
    ev->info.drafter_device_bytes = 10;
    ev->info.kv_host_bytes = 100 * (int64_t)s->n;
    ev->idle_s = kk_seconds_since(s->used_ns);
}

static void step(struct kk_call *c)
{
    struct kk_runtime *rt = c->rt;
    struct kk_event ev = {0};
    struct session *s = c->r.kind == KK_REQUEST_CREATE ? NULL : find(rt, c->session);
    char id[KK_SESSION_ID_MAX];
    if (c->cancelled && !(kk_fake.creates_anyway && c->r.kind == KK_REQUEST_CREATE)) {
        done(c, ev, KK_ECANCELLED, "cancelled");
    } else if (c->r.deadline_ns && kk_now_ns() > c->r.deadline_ns) {
        done(c, ev, KK_ETIMEOUT, "the deadline passed");
    } else if (c->r.kind != KK_REQUEST_CREATE && !s) {
        done(c, ev, KK_ENOENT, "no such session");
    } else if ((c->r.kind == KK_REQUEST_CREATE || c->r.kind == KK_REQUEST_FORK) &&
               rt->stats.sessions >= (uint64_t)rt->capacity) {
        done(c, ev, KK_EEXHAUSTED, "all sessions are taken");
    } else if (c->r.kind == KK_REQUEST_GENERATE) {
        generate(c, s);
    } else {
        if (c->r.kind == KK_REQUEST_APPEND)
            for (size_t i = 0; i < c->r.n; i++, s->n++) s->sum += c->ids[i];
        if (c->r.kind == KK_REQUEST_CREATE) s = add(rt);
        if (c->r.kind == KK_REQUEST_FORK) {
            struct session *from = s;
            s = add(rt);
            s->sum = from->sum;
            s->n = from->n;
        }
        describe(s, &ev);
        if (c->r.kind != KK_REQUEST_INFO) s->used_ns = kk_now_ns();
        snprintf(id, sizeof id, "%s", s->id);
        ev.session = id;
        if (c->r.kind == KK_REQUEST_CLOSE) take_out(rt, s);
        done(c, ev, 0, NULL);
    }
}

/* The first call of its session that can go on, after `from` in the line. */
static struct kk_call *next_call(struct kk_runtime *rt, struct kk_call *from)
{
    for (struct kk_call *c = from; c; c = c->next) {
        int first = 1;
        if (c->paused && !c->cancelled && (!c->r.deadline_ns || kk_now_ns() < c->r.deadline_ns))
            continue;
        for (struct kk_call *b = rt->first; b != c && first; b = b->next)
            if (*c->session && !strcmp(b->session, c->session)) first = 0;
        if (first || c->cancelled) return c;
    }
    return NULL;
}

static void *run(void *arg)
{
    struct kk_runtime *rt = arg;
    pthread_mutex_lock(&rt->lock);
    while (!rt->stop) {
        struct kk_call *c = next_call(rt, rt->first);
        if (!c) {
            struct timespec t;
            clock_gettime(CLOCK_REALTIME, &t);
            t.tv_nsec += 2000000;
            if (t.tv_nsec >= 1000000000) t.tv_sec++, t.tv_nsec -= 1000000000;
            pthread_cond_timedwait(&rt->work, &rt->lock, &t);
            continue;
        }
        pthread_mutex_unlock(&rt->lock);
        struct timespec pause = {0, (long)kk_fake.step_us * 1000};
        if (pause.tv_nsec) nanosleep(&pause, NULL);
        pthread_mutex_lock(&rt->lock);
        while (c) { /* one step of all: those behind c are still there when c is done */
            struct kk_call *next = next_call(rt, c->next);
            step(c);
            c = next;
        }
        rt->stats.steps++;
    }
    pthread_mutex_unlock(&rt->lock);
    return NULL;
}

/* ---- the contract --------------------------------------------------------------------------- */

struct kk_runtime_options kk_runtime_defaults(void)
{
    return (struct kk_runtime_options){.capacity = 64, .max_calls = 4096};
}

int kk_fake_open(int capacity, struct kk_runtime **out)
{
    static const uint32_t eos[] = {0};
    struct kk_runtime *rt = calloc(1, sizeof *rt);
    rt->info = (struct kk_engine_info){.device = "fake",
                                       .architecture = "fake",
                                       .kv = "native",
                                       .kv_type = "f32",
                                       .vocabulary = KK_FAKE_VOCABULARY,
                                       .ctx = KK_FAKE_CTX,
                                       .bos = -1,
                                       .eos = eos,
                                       .n_eos = 1};
    rt->capacity = capacity;
    rt->max_calls = kk_runtime_defaults().max_calls;
    rt->last = &rt->first;
    pthread_mutex_init(&rt->lock, NULL);
    pthread_cond_init(&rt->work, NULL);
    pthread_cond_init(&rt->idle, NULL);
    *out = rt;
    return pthread_create(&rt->thread, NULL, run, rt) ? KK_EEXHAUSTED : 0;
}

int kk_runtime_open(struct kk_engine *e, const struct kk_runtime_options *o,
                    struct kk_runtime **out, struct kk_err *err)
{
    (void)e;
    (void)err;
    return kk_fake_open(o->capacity ? o->capacity : 64, out);
}

void kk_runtime_drain(struct kk_runtime *rt, double seconds)
{
    struct timespec t;
    clock_gettime(CLOCK_REALTIME, &t);
    t.tv_sec += (time_t)seconds;
    if (!rt) return;
    pthread_mutex_lock(&rt->lock);
    rt->draining = 1;
    while (rt->calls && seconds > 0 && !pthread_cond_timedwait(&rt->idle, &rt->lock, &t)) continue;
    for (struct kk_call *c = rt->first; c; c = c->next) c->cancelled = 1;
    pthread_cond_signal(&rt->work);
    while (rt->calls) pthread_cond_wait(&rt->idle, &rt->lock);
    rt->stop = 1;
    pthread_cond_signal(&rt->work);
    pthread_mutex_unlock(&rt->lock);
}

void kk_runtime_close(struct kk_runtime *rt)
{
    if (!rt) return;
    kk_runtime_drain(rt, 0);
    pthread_join(rt->thread, NULL);
    for (struct session *s = rt->sessions, *next; s; s = next) {
        next = s->next;
        free(s);
    }
    pthread_cond_destroy(&rt->work);
    pthread_cond_destroy(&rt->idle);
    pthread_mutex_destroy(&rt->lock);
    free(rt);
}

int kk_runtime_submit(struct kk_runtime *rt, const struct kk_request *r, struct kk_call **call,
                      struct kk_err *err)
{
    struct kk_call *c = calloc(1, sizeof *c);
    c->rt = rt;
    c->r = *r;
    c->refs = 2;
    c->submitted_ns = kk_now_ns();
    if (r->session) snprintf(c->session, sizeof c->session, "%s", r->session);
    c->ids = malloc((r->n + 1) * sizeof *c->ids);
    if (r->n) memcpy(c->ids, r->ids, r->n * sizeof *c->ids);
    pthread_mutex_lock(&rt->lock);
    int full = rt->draining || rt->calls >= rt->max_calls;
    if (full) {
        rt->stats.calls_refused++;
    } else {
        *rt->last = c;
        rt->last = &c->next;
        rt->calls++;
        pthread_cond_signal(&rt->work);
    }
    pthread_mutex_unlock(&rt->lock);
    *call = c;
    if (!full) return 0;
    free(c->ids);
    free(c);
    *call = NULL;
    return kk_fail(err, KK_EEXHAUSTED, "too many calls");
}

void kk_runtime_cancel(struct kk_call *c)
{
    pthread_mutex_lock(&c->rt->lock);
    c->cancelled = 1;
    pthread_cond_signal(&c->rt->work);
    pthread_mutex_unlock(&c->rt->lock);
}

void kk_runtime_resume(struct kk_call *c)
{
    pthread_mutex_lock(&c->rt->lock);
    c->paused = 0;
    c->resumes++;
    pthread_cond_signal(&c->rt->work);
    pthread_mutex_unlock(&c->rt->lock);
}

void kk_call_release(struct kk_call *c)
{
    if (atomic_fetch_sub(&c->refs, 1) > 1) return;
    free(c->ids);
    free(c);
}

void kk_runtime_stats(const struct kk_runtime *rt, struct kk_runtime_stats *out)
{
    pthread_mutex_t *lock = (pthread_mutex_t *)(uintptr_t)&rt->lock;
    pthread_mutex_lock(lock);
    *out = rt->stats;
    out->calls_running = (uint64_t)rt->calls;
    pthread_mutex_unlock(lock);
}

const struct kk_engine_info *kk_runtime_engine_info(const struct kk_runtime *rt)
{
    return &rt->info;
}
