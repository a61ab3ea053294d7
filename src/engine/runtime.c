/* The runtime's thread, the way in and out of it, and a call's life. */
#include "engine/runtime.h"

#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include "base/clock.h"
#include "base/mem.h"
#include "engine/runtime_int.h"

struct kk_runtime_options kk_runtime_defaults(void)
{
    return (struct kk_runtime_options){
        .capacity = 4096, .max_calls = 8192, .idle_ttl_s = 0, .step_rows = 512, .kv_host = -1};
}

/* ---- a call's memory ---------------------------------------------------------------------- */

static void drop(struct kk_call *c)
{
    if (atomic_fetch_sub(&c->refs, 1) > 1) return;
    kk_free((void *)(size_t)c->r.ids);
    kk_free(c->text);
    kk_free(c);
}

void kk_call_release(struct kk_call *call)
{
    if (call) drop(call);
}

/* The request and all it points to, copied. */
static struct kk_call *new_call(struct kk_runtime *rt, const struct kk_request *r)
{
    struct kk_call *c = kk_calloc(1, sizeof *c);
    size_t a = r->session ? strlen(r->session) + 1 : 0, b = r->label ? strlen(r->label) + 1 : 0;
    if (!c) return NULL;
    c->rt = rt;
    c->r = *r;
    c->r.ids = NULL;
    atomic_store(&c->refs, 2);
    c->text = kk_malloc(a + b + 1);
    uint32_t *ids = r->n ? kk_array(r->n, sizeof *ids) : NULL;
    c->r.ids = ids;
    if (!c->text || (r->n && !ids)) {
        atomic_store(&c->refs, 1);
        drop(c);
        return NULL;
    }
    if (r->n) memcpy(ids, r->ids, r->n * sizeof *ids);
    if (a) c->r.session = memcpy(c->text, r->session, a);
    if (b) c->r.label = memcpy(c->text + a, r->label, b);
    c->submitted_ns = kk_now_ns();
    return c;
}

/* ---- the way in (any thread) -------------------------------------------------------------- */

static void poke(struct kk_runtime *rt)
{
    pthread_mutex_lock(&rt->lock);
    rt->poked = 1;
    pthread_cond_signal(&rt->more);
    pthread_mutex_unlock(&rt->lock);
}

static int check_request(const struct kk_request *r, struct kk_err *err)
{
    if (!r->sink) return kk_fail(err, KK_EINVAL, "a call without a sink");
    if (r->kind != KK_REQUEST_CREATE && (!r->session || !*r->session))
        return kk_fail(err, KK_EINVAL, "no session named");
    if (r->n && !r->ids) return kk_fail(err, KK_EINVAL, "%zu ids, and none given", r->n);
    if (r->kind != KK_REQUEST_GENERATE) return 0;
    if (r->max_tokens < 1)
        return kk_fail(err, KK_EINVAL, "max_tokens %lld: must be at least 1",
                       (long long)r->max_tokens);
    return kk__sampling_check(&r->sampling, err);
}

int kk_runtime_submit(struct kk_runtime *rt, const struct kk_request *r, struct kk_call **call,
                      struct kk_err *err)
{
    int rc = check_request(r, err);
    if (rc) return rc;
    struct kk_call *c = new_call(rt, r);
    if (!c) return kk_fail(err, KK_ENOMEM, "out of memory for a call");
    *call = c;
    pthread_mutex_lock(&rt->lock);
    if (rt->refusing)
        rc = kk_fail(err, KK_EUNAVAILABLE, "the server is shutting down");
    else if (rt->n_calls >= rt->o.max_calls)
        rc = kk_fail(err, KK_EEXHAUSTED, "%d calls are running or waiting, at most %d may",
                     rt->n_calls, rt->o.max_calls);
    if (!rc) {
        rt->n_calls++;
        if (rt->in_last)
            rt->in_last->next = c;
        else
            rt->in_first = c;
        rt->in_last = c;
        pthread_cond_signal(&rt->more);
    } else {
        rt->n_refused++;
    }
    pthread_mutex_unlock(&rt->lock);
    if (rc) {
        drop(c);
        drop(c);
        *call = NULL;
    }
    return rc;
}

void kk_runtime_cancel(struct kk_call *call)
{
    atomic_store(&call->cancelled, 1);
    poke(call->rt);
}

void kk_runtime_resume(struct kk_call *call)
{
    atomic_store(&call->full, 0);
    poke(call->rt);
}

void kk_runtime_stats(const struct kk_runtime *rt, struct kk_runtime_stats *out)
{
    pthread_mutex_t *lock = (pthread_mutex_t *)(size_t)&rt->lock;
    pthread_mutex_lock(lock);
    *out = rt->published;
    out->calls_refused = rt->n_refused;
    pthread_mutex_unlock(lock);
}

const struct kk_engine_info *kk_runtime_engine_info(const struct kk_runtime *rt)
{
    return &rt->engine_info;
}

/* ---- the way out -------------------------------------------------------------------------- */

void kk__call_has_output(struct kk_call *c)
{
    struct kk_runtime *rt = c->rt;
    if (c->has_output) return;
    c->has_output = 1;
    c->out_next = NULL;
    c->out_prev = rt->out_last;
    *(rt->out_last ? &rt->out_last->out_next : &rt->out_first) = c;
    rt->out_last = c;
}

static void no_output(struct kk_call *c)
{
    struct kk_runtime *rt = c->rt;
    *(c->out_prev ? &c->out_prev->out_next : &rt->out_first) = c->out_next;
    *(c->out_next ? &c->out_next->out_prev : &rt->out_last) = c->out_prev;
    c->has_output = 0;
}

/* full is raised first: a resume may come before the sink has returned. */
static void deliver(struct kk_call *c, const struct kk_event *ev)
{
    atomic_store(&c->full, 1);
    if (c->r.sink(c->r.arg, ev) != KK_SINK_FULL) atomic_store(&c->full, 0);
}

/* How many went out. */
static int deliver_tokens(struct kk_call *c, int64_t durable)
{
    int n = 0;
    while (n < c->n_out && c->out_seq[n] <= durable) n++;
    if (!n) return 0;
    deliver(c, &(struct kk_event){.kind = KK_EVENT_TOKENS, .ids = c->out, .n = (size_t)n});
    c->n_out -= n;
    memmove(c->out, c->out + n, (size_t)c->n_out * sizeof *c->out);
    memmove(c->out_seq, c->out_seq + n, (size_t)c->n_out * sizeof *c->out_seq);
    return n;
}

static void deliver_done(struct kk_call *c)
{
    struct kk_runtime *rt = c->rt;
    c->done.kind = KK_EVENT_DONE;
    c->done.msg = c->msg;
    c->done.total_s = kk_seconds_since(c->submitted_ns);
    no_output(c);
    c->r.sink(c->r.arg, &c->done);
    pthread_mutex_lock(&rt->lock);
    rt->n_calls--;
    pthread_mutex_unlock(&rt->lock);
    drop(c);
}

/* What is durable goes out. A call that failed or was cancelled says so at once: its tokens are in
 * the history, not in the stream. How many tokens went out: a call that had no room for more has
 * some again. */
static int flush(struct kk_runtime *rt)
{
    int64_t durable = rt->journal ? kk_journal_durable(rt->journal) : INT64_MAX;
    int sent = 0;
    for (struct kk_call *c = rt->out_first, *next; c; c = next) {
        next = c->out_next;
        if (c->ending && c->n_out && atomic_load(&c->cancelled)) c->done.code = KK_ECANCELLED;
        int failed = c->ending && c->done.code;
        if (!failed && c->n_out && !atomic_load(&c->full)) sent += deliver_tokens(c, durable);
        if (c->ending && (failed || (!c->n_out && c->done_seq <= durable)))
            deliver_done(c);
        else if (!c->ending && !c->n_out)
            no_output(c);
    }
    return sent;
}

void kk__call_end(struct kk_call *c, int code, const char *fmt, ...)
{
    va_list ap;
    va_start(ap, fmt);
    vsnprintf(c->msg, sizeof c->msg, fmt, ap);
    va_end(ap);
    c->done.code = code;
    c->ending = 1;
    if (c->on) {
        if (code) kk__call_cut(c->rt, c);
        c->done_seq = c->on->seq;
        kk__resident_leave(c->rt, c);
    }
    if (code == KK_ECANCELLED) c->rt->stats.calls_cancelled++;
    kk__call_has_output(c);
}

/* ---- what needs no step ------------------------------------------------------------------- */

/* A call has come in: answered here, or put in line on its session. */
static void enter(struct kk_runtime *rt, struct kk_call *c)
{
    struct kk_err err = {0};
    c->next = NULL;
    if (c->r.kind == KK_REQUEST_CREATE) {
        int rc = kk__resident_create(rt, c, &err);
        kk__call_end(c, rc, "%s", err.msg);
        return;
    }
    struct resident *n = kk__resident_find(rt, c->r.session);
    if (!n) {
        kk__call_end(c, KK_ENOENT, "no session '%.64s'", c->r.session);
        return;
    }
    if (c->r.kind == KK_REQUEST_INFO) { /* looks, touches nothing: waits for nobody */
        kk__resident_info(rt, n, &c->done);
        kk__call_end(c, 0, "%s", "");
        return;
    }
    kk__resident_join(rt, n, c);
}

static int over(const struct kk_call *c, uint64_t now, const char **why)
{
    *why = "cancelled";
    if (atomic_load(&c->cancelled)) return KK_ECANCELLED;
    *why = "the deadline has passed";
    return c->r.deadline_ns && now > c->r.deadline_ns ? KK_ETIMEOUT : 0;
}

/* Cancelled and late calls end, wherever they are in line. Returns the next deadline, 0: none. */
static uint64_t end_overdue(struct kk_runtime *rt)
{
    uint64_t now = kk_now_ns(), soonest = 0;
    const char *why;
    for (struct resident *n = rt->active.first, *after; n; n = after) {
        after = n->next;
        for (struct kk_call *c = n->head, *next; c; c = next) {
            next = c->next;
            int code = over(c, now, &why);
            if (code)
                kk__call_end(c, code, "%s", why);
            else if (c->r.deadline_ns && (!soonest || c->r.deadline_ns < soonest))
                soonest = c->r.deadline_ns;
        }
    }
    return soonest;
}

/* ---- the thread --------------------------------------------------------------------------- */

static void publish(struct kk_runtime *rt)
{
    struct kk_runtime_stats *s = &rt->stats;
    s->sessions = (uint64_t)(rt->active.n + rt->idle.n);
    s->sessions_elsewhere = s->sessions - s->sessions_resident - s->sessions_host;
    s->calls_running = (uint64_t)rt->active.n;
    s->state_broken = atomic_load(&rt->state_broken);
    s->kv_device_bytes = rt->device_bytes + kk_kv_shared_bytes(rt->e->pool);
    s->kv_staging_bytes = kk_kv_staging_bytes(rt->e->pool);
    s->kv_host_bytes =
        rt->parked_bytes + kk_kept_host_bytes(rt->kept) + kk_kv_pool_host_bytes(rt->e->pool);
    s->weight_bytes = rt->engine_info.weight_bytes;
    pthread_mutex_lock(&rt->lock);
    s->calls_queued = (uint64_t)(rt->n_calls > rt->active.n ? rt->n_calls - rt->active.n : 0);
    rt->published = *s;
    if (rt->e->draft_pool)
        rt->published.drafter_device_bytes += kk_kv_shared_bytes(rt->e->draft_pool);
    pthread_mutex_unlock(&rt->lock);
}

/* Wait for a call, a cancellation, the journal, or `until` (0: no limit). Under lock. */
static void wait_for_work(struct kk_runtime *rt, uint64_t until)
{
    struct timespec t = {.tv_sec = (time_t)(until / 1000000000u),
                         .tv_nsec = (long)(until % 1000000000u)};
    while (!rt->in_first && !rt->poked && !rt->stopping) {
        int rc = until ? pthread_cond_timedwait(&rt->more, &rt->lock, &t)
                       : pthread_cond_wait(&rt->more, &rt->lock);
        if (rc == ETIMEDOUT) return;
    }
}

static void *run(void *arg)
{
    struct kk_runtime *rt = arg;
    int worked = 1;
    uint64_t deadline = 0;
    for (;;) {
        uint64_t until = kk__residents_expire(rt);
        uint64_t snapshots = kk__paging_idle(rt);
        if (deadline && (!until || deadline < until)) until = deadline;
        if (snapshots && (!until || snapshots < until)) until = snapshots;
        publish(rt);
        pthread_mutex_lock(&rt->lock);
        if (!worked) wait_for_work(rt, until);
        struct kk_call *c = rt->in_first;
        rt->in_first = rt->in_last = NULL;
        rt->poked = 0;
        int stopping = rt->stopping && !c;
        pthread_mutex_unlock(&rt->lock);
        for (struct kk_call *next; c; c = next) {
            next = c->next;
            enter(rt, c);
        }
        kk__paging_settle(rt);
        deadline = end_overdue(rt);
        if (stopping) break;
        worked = kk__schedule(rt);
        if (rt->journal) kk_journal_flush(rt->journal);
        worked |= flush(rt) > 0;
    }
    while (rt->active.first)
        kk__call_end(rt->active.first->head, KK_EUNAVAILABLE, "the server is shutting down");
    kk__paging_finish(rt);
    if (rt->journal) {
        kk_journal_flush(rt->journal);
        int64_t last = atomic_load(&rt->state_broken) ? 0 : kk__paging_last(rt);
        for (struct kk_call *k = rt->out_first; k; k = k->out_next)
            if (!k->done.code && k->done_seq > last) last = k->done_seq;
        for (int i = 0; i < 5000 && kk_journal_durable(rt->journal) < last; i++)
            nanosleep(&(struct timespec){.tv_nsec = 1000000}, NULL);
        kk__paging_settle(rt);
    }
    flush(rt);
    while (rt->out_first) { /* not durable, or a sink that takes nothing: said honestly */
        struct kk_call *k = rt->out_first;
        if (!k->done.code) snprintf(k->msg, sizeof k->msg, "the server is shutting down");
        if (!k->done.code) k->done.code = KK_EUNAVAILABLE;
        deliver_done(k);
    }
    publish(rt);
    return NULL;
}

/* ---- open and close ----------------------------------------------------------------------- */

static void on_durable(void *arg, int64_t seq)
{
    struct kk_runtime *rt = arg;
    (void)seq;
    atomic_store(&rt->state_broken, 0);
    poke(rt);
}

static void on_broken(void *arg, const char *msg)
{
    struct kk_runtime *rt = arg;
    atomic_store(&rt->state_broken, 1);
    fprintf(stderr, "kakeya: state: %s; no token is sent until this is mended\n", msg);
    poke(rt);
}

static int open_journal(struct kk_runtime *rt, struct kk_err *err)
{
    if (!rt->o.state) return 0;
    const struct kk_journal_options jo = {.dir = rt->o.state,
                                          .full = rt->o.journal_full,
                                          .model = rt->e->options.model,
                                          .fingerprint = rt->e->fingerprint.model,
                                          .on_durable = on_durable,
                                          .on_broken = on_broken,
                                          .arg = rt};
    int rc = kk_journal_open(&jo, &rt->journal, err);
    if (!rc) rc = kk__residents_restore(rt, err);
    return rc ? rc : kk__paging_open(rt, err);
}

static void release(struct kk_runtime *rt)
{
    kk__prefixes_close(rt);
    kk__paging_close(rt);
    kk__residents_release(rt);
    kk_kept_close(rt->kept);
    struct kk_err err = {0};
    if (kk_journal_close(rt->journal, &err)) fprintf(stderr, "kakeya: state: %s\n", err.msg);
    pthread_cond_destroy(&rt->more);
    pthread_mutex_destroy(&rt->lock);
    kk_free(rt->bucket);
    kk_free(rt->turn);
    kk_free((void *)(size_t)rt->o.state);
    kk_free(rt);
}

static int start_thread(struct kk_runtime *rt, struct kk_err *err)
{
    if (!pthread_create(&rt->thread, NULL, run, rt)) return 0;
    return kk_fail(err, KK_ENOMEM, "cannot start the engine thread");
}

int kk_runtime_open(struct kk_engine *e, const struct kk_runtime_options *o,
                    struct kk_runtime **out, struct kk_err *err)
{
    struct kk_runtime *rt = kk_calloc(1, sizeof *rt);
    if (!rt) return kk_fail(err, KK_ENOMEM, "out of memory for the runtime");
    pthread_condattr_t monotonic;
    rt->e = e;
    rt->o = *o;
    rt->o.state = NULL;
    pthread_mutex_init(&rt->lock, NULL);
    pthread_condattr_init(&monotonic);
    pthread_condattr_setclock(&monotonic, CLOCK_MONOTONIC);
    pthread_cond_init(&rt->more, &monotonic);
    pthread_condattr_destroy(&monotonic);
    kk_engine_describe(e, &rt->engine_info);
    int rc = 0;
    if (o->max_calls < 1 || o->capacity < 0 || o->step_rows < 1 || o->idle_ttl_s < 0)
        rc = kk_fail(err, KK_EINVAL, "capacity, calls, step rows and idle time must be positive");
    rt->n_buckets = 1024;
    rt->bucket = kk_calloc(rt->n_buckets, sizeof(struct resident *));
    rt->turn = kk_calloc((size_t)e->kv_limits.max_seqs, sizeof *rt->turn);
    rt->o.state = o->state ? kk_strdup(o->state) : NULL;
    if (!rc && (!rt->bucket || !rt->turn || (o->state && !rt->o.state)))
        rc = kk_fail(err, KK_ENOMEM, "out of memory for the runtime");
    if (!rc) rc = kk__prefixes_open(rt, err);
    if (!rc) rc = kk_kept_open(&rt->n_files, &rt->kept, err);
    if (!rc) rc = open_journal(rt, err);
    if (!rc) rc = start_thread(rt, err);
    if (rc) {
        release(rt);
        return rc;
    }
    *out = rt;
    return 0;
}

void kk_runtime_drain(struct kk_runtime *rt, double seconds)
{
    if (!rt) return;
    uint64_t until = kk_now_ns() + (uint64_t)(seconds * 1e9);
    pthread_mutex_lock(&rt->lock);
    rt->refusing = 1;
    while (rt->n_calls > 0 && kk_now_ns() < until) {
        pthread_mutex_unlock(&rt->lock);
        nanosleep(&(struct timespec){.tv_nsec = 2000000}, NULL);
        pthread_mutex_lock(&rt->lock);
    }
    pthread_mutex_unlock(&rt->lock);
}

void kk_runtime_close(struct kk_runtime *rt)
{
    if (!rt) return;
    pthread_mutex_lock(&rt->lock);
    rt->refusing = rt->stopping = 1;
    pthread_cond_signal(&rt->more);
    pthread_mutex_unlock(&rt->lock);
    pthread_join(rt->thread, NULL);
    struct kk_engine *e = rt->e;
    release(rt);
    kk_engine_close(e);
}
