#include "serve/rpc.h"

#include <math.h>
#include <string.h>

#include "base/clock.h"
#include "base/mem.h"
#include "serve/metrics_int.h"

struct kk_rpc {
    struct kk_runtime *rt;
    char *model;
    atomic_int ready;
    struct kk_metrics metrics;
};

/* ---- statuses ------------------------------------------------------------------------------ */

int kk_grpc_status(int code)
{
    switch (code) {
    case KK_OK:
        return 0;
#define X(name, value, text, grpc, http)                                                           \
    case value:                                                                                    \
        return grpc;
        KK_ERRORS(X)
#undef X
    default:
        return KK_GRPC_UNKNOWN;
    }
}

int kk_http_status(int code)
{
    switch (code) {
    case KK_OK:
        return 200;
#define X(name, value, text, grpc, http)                                                           \
    case value:                                                                                    \
        return http;
        KK_ERRORS(X)
#undef X
    default:
        return 500;
    }
}

const char *kk_grpc_status_name(int status)
{
    static const char *const names[KK_GRPC_CODES] = {"OK",
                                                     "CANCELLED",
                                                     "UNKNOWN",
                                                     "INVALID_ARGUMENT",
                                                     "DEADLINE_EXCEEDED",
                                                     "NOT_FOUND",
                                                     "ALREADY_EXISTS",
                                                     "PERMISSION_DENIED",
                                                     "RESOURCE_EXHAUSTED",
                                                     "FAILED_PRECONDITION",
                                                     "ABORTED",
                                                     "OUT_OF_RANGE",
                                                     "UNIMPLEMENTED",
                                                     "INTERNAL",
                                                     "UNAVAILABLE",
                                                     "DATA_LOSS",
                                                     "UNAUTHENTICATED"};
    return status >= 0 && status < KK_GRPC_CODES ? names[status] : "UNKNOWN";
}

/* ---- life ---------------------------------------------------------------------------------- */

int kk_rpc_open(struct kk_runtime *rt, const char *model, struct kk_rpc **out, struct kk_err *err)
{
    struct kk_rpc *rpc = kk_calloc(1, sizeof *rpc);
    char *name = kk_strdup(model);
    if (!rpc || !name) {
        kk_free(rpc);
        kk_free(name);
        return kk_fail(err, KK_ENOMEM, "out of memory for a server");
    }
    rpc->rt = rt;
    rpc->model = name;
    rpc->ready = 1;
    kk_metrics_init(&rpc->metrics);
    *out = rpc;
    return 0;
}

void kk_rpc_close(struct kk_rpc *rpc)
{
    if (!rpc) return;
    kk_free(rpc->model);
    kk_free(rpc);
}

void kk_rpc_set_ready(struct kk_rpc *rpc, int ready)
{
    rpc->ready = ready;
}

int kk_rpc_ready(const struct kk_rpc *rpc)
{
    return rpc->ready;
}

/* ---- what is asked ------------------------------------------------------------------------- */

static int check_ids(const struct kk_rpc *rpc, const struct kk_request *r, struct kk_err *err)
{
    uint32_t vocabulary = (uint32_t)kk_runtime_engine_info(rpc->rt)->vocabulary;
    const char *field = r->kind == KK_REQUEST_CREATE ? "eos_token_ids" : "token_ids";
    for (size_t i = 0; i < r->n; i++)
        if (r->ids[i] >= vocabulary)
            return kk_fail(err, KK_EINVAL, "%s[%zu] is %u, but the model's tokens are 0 to %u",
                           field, i, r->ids[i], vocabulary - 1);
    return 0;
}

/* NaN is outside every range. */
static int check_range(const char *name, double v, double min, double max, struct kk_err *err)
{
    if (v >= min && v <= max) return 0;
    return kk_fail(err, KK_EINVAL, "%s is %g: it can be %g to %g", name, v, min, max);
}

static int check_sampling(const struct kk_request *r, struct kk_err *err)
{
    const struct kk_sampling *p = &r->sampling;
    if (r->max_tokens < 1)
        return kk_fail(err, KK_EINVAL, "max_tokens is %lld: it must be at least 1",
                       (long long)r->max_tokens);
    int rc = check_range("temperature", p->temperature, 0, 100, err);
    if (!rc) rc = check_range("top_p", p->top_p, 0, 1, err);
    if (!rc) rc = check_range("min_p", p->min_p, 0, 1, err);
    if (!rc) rc = check_range("repetition_penalty", p->repeat_penalty, .01, 100, err);
    return rc;
}

static int check(const struct kk_rpc *rpc, const struct kk_request *r, struct kk_err *err)
{
    if (r->kind != KK_REQUEST_CREATE) {
        if (!r->session || !*r->session) return kk_fail(err, KK_EINVAL, "session_id is empty");
        if (strlen(r->session) >= KK_SESSION_ID_MAX)
            return kk_fail(err, KK_ENOENT, "no such session");
    }
    if (r->label && strlen(r->label) > KK_LABEL_MAX)
        return kk_fail(err, KK_EINVAL, "client_label has %zu bytes: it may have %d",
                       strlen(r->label), KK_LABEL_MAX);
    if (r->kind == KK_REQUEST_CREATE && r->n > KK_EOS_IDS_MAX)
        return kk_fail(err, KK_EINVAL, "%zu eos_token_ids: there may be %d", r->n, KK_EOS_IDS_MAX);
    if (r->kind == KK_REQUEST_GENERATE) return check_sampling(r, err);
    return check_ids(rpc, r, err);
}

/* ---- calls --------------------------------------------------------------------------------- */

static int on_event(void *arg, const struct kk_event *ev)
{
    struct kk_rpc_call *c = arg;
    kk_metrics_event(&c->rpc->metrics, c, ev, kk_now_ns());
    return c->sink(c->arg, ev); /* c may be gone after DONE */
}

void kk_rpc_begin(struct kk_rpc *rpc, struct kk_rpc_call *c)
{
    *c = (struct kk_rpc_call){.rpc = rpc};
    pthread_mutex_init(&c->lock, NULL);
}

static int submit(struct kk_rpc_call *c, const struct kk_request *r, struct kk_err *err)
{
    struct kk_request inner = *r;
    struct kk_call *call = NULL;
    pthread_mutex_lock(&c->lock);
    int gone = c->want_cancel;
    pthread_mutex_unlock(&c->lock);
    if (gone) return kk_fail(err, KK_ECANCELLED, "cancelled before it began");
    inner.sink = on_event;
    inner.arg = c;
    int rc = kk_runtime_submit(c->rpc->rt, &inner, &call, err);
    if (rc) return rc;
    pthread_mutex_lock(&c->lock);
    c->call = call;
    if (c->want_cancel) kk_runtime_cancel(call);
    if (c->want_resume) kk_runtime_resume(call);
    pthread_mutex_unlock(&c->lock);
    return 0;
}

int kk_rpc_start(struct kk_rpc_call *c, const struct kk_request *r, struct kk_err *err)
{
    c->kind = r->kind;
    c->sink = r->sink;
    c->arg = r->arg;
    c->n_ids = r->n;
    c->start_ns = c->last_ns = kk_now_ns();
    int rc = check(c->rpc, r, err);
    if (!rc) rc = submit(c, r, err);
    if (rc) kk_rpc_refused(c->rpc, r->kind, kk_grpc_status(rc));
    return rc;
}

void kk_rpc_cancel(struct kk_rpc_call *c)
{
    pthread_mutex_lock(&c->lock);
    if (c->call)
        kk_runtime_cancel(c->call);
    else
        c->want_cancel = 1;
    pthread_mutex_unlock(&c->lock);
}

void kk_rpc_resume(struct kk_rpc_call *c)
{
    pthread_mutex_lock(&c->lock);
    if (c->call)
        kk_runtime_resume(c->call);
    else
        c->want_resume = 1;
    pthread_mutex_unlock(&c->lock);
}

void kk_rpc_end(struct kk_rpc_call *c)
{
    if (c->call) kk_call_release(c->call);
    pthread_mutex_destroy(&c->lock);
}

static int ignore(void *arg, const struct kk_event *ev)
{
    (void)arg;
    (void)ev;
    return KK_SINK_OK;
}

void kk_rpc_discard(struct kk_rpc *rpc, const char *session)
{
    struct kk_request r = {.kind = KK_REQUEST_CLOSE, .session = session, .sink = ignore};
    struct kk_call *call;
    if (!kk_runtime_submit(rpc->rt, &r, &call, NULL)) kk_call_release(call);
}

/* ---- counters ------------------------------------------------------------------------------ */

void kk_rpc_refused(struct kk_rpc *rpc, enum kk_request_kind kind, int grpc_status)
{
    atomic_fetch_add_explicit(&rpc->metrics.calls[kind][grpc_status], 1, memory_order_relaxed);
}

int kk_rpc_metrics(const struct kk_rpc *rpc, struct kk_buf *out)
{
    struct kk_runtime_stats s;
    kk_runtime_stats(rpc->rt, &s);
    return kk_metrics_text(&rpc->metrics, &s, rpc->model, out);
}
