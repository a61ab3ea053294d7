/* One call: its request comes, the runtime (or health) answers, the answer is sent. */
#include "serve/grpc_int.h"

#include <grpc/byte_buffer_reader.h>
#include <stdio.h>
#include <string.h>

#include "base/clock.h"
#include "base/mem.h"

static void on_new(void *arg, int ok);
static void on_over(void *arg, int ok);
static void on_request(void *arg, int ok);
static void on_sent(void *arg, int ok);

/* ---- life ---------------------------------------------------------------------------------- */

int kk_grpc_call_request(struct kk_server *s)
{
    struct kk_grpc_call *c = kk_calloc(1, sizeof *c);
    if (!c) return KK_ENOMEM;
    c->server = s;
    c->refs = 1;
    c->on_new = (struct kk_tag){on_new, c};
    c->on_over = (struct kk_tag){on_over, c};
    c->on_request = (struct kk_tag){on_request, c};
    c->on_sent = (struct kk_tag){on_sent, c};
    c->status_text = grpc_empty_slice();
    grpc_call_details_init(&c->details);
    grpc_metadata_array_init(&c->metadata);
    pthread_mutex_init(&c->lock, NULL);
    kk_rpc_begin(s->rpc, &c->rpc);
    KK_HAND_OVER(&c->on_new);
    if (grpc_server_request_call(s->server, &c->call, &c->details, &c->metadata, s->cq, s->cq,
                                 &c->on_new) == GRPC_CALL_OK)
        return 0;
    kk_grpc_call_unref(c);
    return KK_EIO;
}

void kk_grpc_call_unref(struct kk_grpc_call *c)
{
    if (atomic_fetch_sub(&c->refs, 1) > 1) return;
    struct kk_server *s = c->server;
    int live = c->arrived_ns != 0;
    kk_rpc_end(&c->rpc);
    if (c->request) grpc_byte_buffer_destroy(c->request);
    grpc_slice_unref(c->status_text);
    grpc_call_details_destroy(&c->details);
    grpc_metadata_array_destroy(&c->metadata);
    if (c->call) grpc_call_unref(c->call);
    kk_free(c->ids);
    if (live) kk_server_leave(s, c); /* the server may close from here on */
    pthread_mutex_destroy(&c->lock);
    kk_free(c);
}

/* A batch of operations whose end runs tag; it has a reference of its own. */
static void batch(struct kk_grpc_call *c, const grpc_op *ops, size_t n, struct kk_tag *tag)
{
    atomic_fetch_add(&c->refs, 1);
    KK_HAND_OVER(tag);
    grpc_call_error e = grpc_call_start_batch(c->call, ops, n, tag, NULL);
    KK_BUG_ON(e != GRPC_CALL_OK);
}

/* End the call in this way, unless its end is known already. Starts nothing. */
static void set_final(struct kk_grpc_call *c, int status, const char *msg)
{
    pthread_mutex_lock(&c->lock);
    if (!c->done) {
        c->done = 1;
        c->final.status = status;
        snprintf(c->final.msg, sizeof c->final.msg, "%s", msg);
    }
    pthread_mutex_unlock(&c->lock);
}

static void refuse(struct kk_grpc_call *c, int status, const char *msg)
{
    if (!c->health) kk_rpc_refused(c->server->rpc, c->kind, status);
    set_final(c, status, msg);
    kk_grpc_call_pump(c);
}

/* ---- sending ------------------------------------------------------------------------------- */

/* What one batch sends. */
struct sending {
    grpc_op ops[3];
    size_t n;
    grpc_byte_buffer *message;
};

static grpc_op *add_op(struct sending *s, grpc_op_type type)
{
    grpc_op *op = &s->ops[s->n++];
    *op = (grpc_op){.op = type};
    return op;
}

static void add_message(struct sending *s, const unsigned char *data, size_t n, uint32_t flags)
{
    grpc_slice slice = grpc_slice_from_copied_buffer((const char *)data, n);
    s->message = grpc_raw_byte_buffer_create(&slice, 1);
    grpc_slice_unref(slice);
    grpc_op *op = add_op(s, GRPC_OP_SEND_MESSAGE);
    op->data.send_message.send_message = s->message;
    op->flags = flags;
}

/* The message that the final answer carries; 0: none. */
static size_t final_message(struct kk_grpc_call *c, unsigned char *out)
{
    if (c->final.status) return 0;
    if (c->health) return kk_wire_write_health(KK_HEALTH_SERVING, out);
    c->final.ev.session = c->final.session;
    return kk_wire_write_done(c->kind, &c->final.ev, out);
}

static void add_final(struct kk_grpc_call *c, struct sending *s)
{
    unsigned char data[KK_WIRE_REPLY_MAX];
    size_t n = final_message(c, data);
    if (!c->final.status) add_message(s, data, n, 0);
    grpc_op *op = add_op(s, GRPC_OP_SEND_STATUS_FROM_SERVER);
    op->data.send_status_from_server.status = (grpc_status_code)c->final.status;
    if (*c->final.msg) {
        c->status_text = grpc_slice_from_copied_string(c->final.msg);
        op->data.send_status_from_server.status_details = &c->status_text;
    }
    c->finished = 1;
}

/* The next message of a stream; c->lock is held. 0: none waits. */
static size_t next_message(struct kk_grpc_call *c, unsigned char *out)
{
    if (c->cancelled) return 0;
    if (c->watch) {
        enum kk_health h = (enum kk_health)c->watch;
        c->watch = 0;
        return kk_wire_write_health(h, out);
    }
    if (c->truncated) {
        c->truncated = 0;
        return kk_wire_write_truncated(c->dropped, out);
    }
    if (!c->n) return 0;
    uint32_t id = c->ids[c->head];
    c->head = (c->head + 1) % c->cap;
    c->n--;
    return kk_wire_write_token(id, out);
}

void kk_grpc_call_pump(struct kk_grpc_call *c)
{
    unsigned char data[KK_WIRE_REPLY_MAX];
    struct sending s = {0};
    int resume = 0;
    pthread_mutex_lock(&c->lock);
    if (!c->sending && !c->finished) {
        size_t n = next_message(c, data);
        if (!c->begun && (n || c->done)) add_op(&s, GRPC_OP_SEND_INITIAL_METADATA);
        /* the hint: more follows; a batch that begins a call would wait for it */
        if (n)
            add_message(&s, data, n, c->begun && c->n ? GRPC_WRITE_BUFFER_HINT : 0);
        else if (c->done)
            add_final(c, &s);
        resume = c->full && c->n <= QUEUE / 2;
        if (resume) c->full = 0;
        if (s.n) c->begun = c->sending = 1;
    }
    pthread_mutex_unlock(&c->lock);
    if (s.n) batch(c, s.ops, s.n, &c->on_sent);
    if (s.message) grpc_byte_buffer_destroy(s.message);
    if (resume) kk_rpc_resume(&c->rpc);
}

/* A session that was created for a client who never heard of it is closed again. */
static void forget_session(struct kk_grpc_call *c)
{
    int makes = c->kind == KK_REQUEST_CREATE || c->kind == KK_REQUEST_FORK;
    if (!c->health && makes && !c->final.status && *c->final.session)
        kk_rpc_discard(c->server->rpc, c->final.session);
}

static void on_sent(void *arg, int ok)
{
    struct kk_grpc_call *c = arg;
    pthread_mutex_lock(&c->lock);
    c->sending = 0;
    if (!ok) c->cancelled = 1;
    int finished = c->finished, gone = c->cancelled;
    pthread_mutex_unlock(&c->lock);
    if (gone && finished) forget_session(c);
    if (!ok && !finished) kk_rpc_cancel(&c->rpc);
    if (!finished) kk_grpc_call_pump(c);
    kk_grpc_call_unref(c);
}

/* The core says that the call is over: answered, or cancelled by its client, its deadline, its
 * connection or the server. */
static void on_over(void *arg, int ok)
{
    struct kk_grpc_call *c = arg;
    if (!ok || c->over_cancelled) {
        pthread_mutex_lock(&c->lock);
        c->cancelled = 1;
        pthread_mutex_unlock(&c->lock);
        kk_rpc_cancel(&c->rpc);
        if (c->health == 2) refuse(c, GRPC_STATUS_CANCELLED, "cancelled");
    }
    kk_grpc_call_unref(c);
}

/* ---- what the runtime says ----------------------------------------------------------------- */

/* c->lock is held. 1: the queue is full, and there is room for one more event after this. */
static int queue(struct kk_grpc_call *c, const struct kk_event *ev)
{
    if (c->cancelled) return 0;
    KK_BUG_ON(ev->n > c->cap - c->n);
    for (size_t i = 0; i < ev->n; i++) c->ids[(c->head + c->n + i) % c->cap] = ev->ids[i];
    c->n += ev->n;
    c->full = c->cap - c->n < EVENT_MAX;
    return c->full;
}

static void keep_final(struct kk_grpc_call *c, const struct kk_event *ev)
{
    struct kk_final *f = &c->final;
    c->done = 1;
    f->status = kk_grpc_status(ev->code);
    if (ev->code) snprintf(f->msg, sizeof f->msg, "%s", ev->msg ? ev->msg : kk_strerror(ev->code));
    if (ev->session) snprintf(f->session, sizeof f->session, "%s", ev->session);
    f->ev = *ev;
}

/* By the engine's thread. */
static int on_event(void *arg, const struct kk_event *ev)
{
    struct kk_grpc_call *c = arg;
    int full = 0, done = ev->kind == KK_EVENT_DONE;
    pthread_mutex_lock(&c->lock);
    if (ev->kind == KK_EVENT_TOKENS) full = queue(c, ev);
    if (ev->kind == KK_EVENT_TRUNCATED) {
        c->truncated = 1;
        c->dropped = ev->dropped;
    }
    if (done) keep_final(c, ev);
    int post = !c->sending && !c->in_outbox;
    if (post) c->in_outbox = 1;
    pthread_mutex_unlock(&c->lock);
    if (post && !done) atomic_fetch_add(&c->refs, 1);
    if (post) kk_server_post(c->server, c); /* done: with the runtime's own reference */
    if (done && !post) kk_grpc_call_unref(c);
    return full ? KK_SINK_FULL : KK_SINK_OK;
}

/* ---- what the client says ------------------------------------------------------------------ */

/* The call's deadline on kk_now_ns; 0: none. */
static uint64_t deadline_ns(const struct kk_grpc_call *c)
{
    gpr_timespec t = gpr_convert_clock_type(c->details.deadline, GPR_CLOCK_MONOTONIC);
    if (gpr_time_cmp(t, gpr_inf_future(GPR_CLOCK_MONOTONIC)) >= 0) return 0;
    gpr_timespec left = gpr_time_sub(t, gpr_now(GPR_CLOCK_MONOTONIC));
    if (left.tv_sec > 365 * 86400) return 0;
    if (left.tv_sec < 0) return 1;
    return kk_now_ns() + (uint64_t)left.tv_sec * 1000000000u + (uint64_t)left.tv_nsec;
}

static void answer_health(struct kk_grpc_call *c, const void *data, size_t n)
{
    struct kk_err err = {0};
    int known = kk_wire_read_health(data, n, &err), ready = kk_rpc_ready(c->server->rpc);
    if (known < 0) {
        refuse(c, GRPC_STATUS_INVALID_ARGUMENT, err.msg);
    } else if (c->health == 2) {
        pthread_mutex_lock(&c->lock);
        c->watch = !known ? KK_HEALTH_UNKNOWN : ready ? KK_HEALTH_SERVING : KK_HEALTH_NOT_SERVING;
        pthread_mutex_unlock(&c->lock);
        kk_grpc_call_pump(c);
    } else if (!known) {
        refuse(c, GRPC_STATUS_NOT_FOUND, "no such service");
    } else if (!ready) {
        refuse(c, GRPC_STATUS_UNAVAILABLE, "the server is going down");
    } else {
        refuse(c, GRPC_STATUS_OK, "");
    }
}

/* Room for the tokens of a Generate: not in the engine's thread, and no more than can come. */
static int make_queue(struct kk_grpc_call *c, const struct kk_request *r)
{
    if (r->kind != KK_REQUEST_GENERATE) return 0;
    c->cap = QUEUE + EVENT_MAX;
    c->ids = kk_array(c->cap, sizeof *c->ids);
    return c->ids ? 0 : KK_ENOMEM;
}

static void answer(struct kk_grpc_call *c, const void *data, size_t n)
{
    struct kk_err err = {0};
    struct kk_wire_request w;
    int rc = kk_wire_read_request(c->kind, data, n, &w, &err);
    if (rc) {
        refuse(c, kk_grpc_status(rc), err.msg);
        return;
    }
    w.req.deadline_ns = deadline_ns(c);
    w.req.sink = on_event;
    w.req.arg = c;
    rc = make_queue(c, &w.req);
    atomic_fetch_add(&c->refs, 1); /* the runtime's, until DONE */
    if (rc)
        kk_fail(&err, rc, "out of memory for a stream");
    else
        rc = kk_rpc_start(&c->rpc, &w.req, &err);
    if (rc) {
        set_final(c, kk_grpc_status(rc), err.msg);
        kk_grpc_call_pump(c);
        kk_grpc_call_unref(c);
    }
    kk_wire_request_release(&w);
}

static void on_request(void *arg, int ok)
{
    struct kk_grpc_call *c = arg;
    grpc_byte_buffer_reader reader;
    c->has_request = 1;
    if (!ok || !c->request || !grpc_byte_buffer_reader_init(&reader, c->request)) {
        refuse(c, GRPC_STATUS_INVALID_ARGUMENT, "the call brought no request");
    } else {
        grpc_slice all = grpc_byte_buffer_reader_readall(&reader);
        if (c->health)
            answer_health(c, GRPC_SLICE_START_PTR(all), GRPC_SLICE_LENGTH(all));
        else
            answer(c, GRPC_SLICE_START_PTR(all), GRPC_SLICE_LENGTH(all));
        grpc_slice_unref(all);
        grpc_byte_buffer_reader_destroy(&reader);
    }
    kk_grpc_call_unref(c);
}

/* ---- a call arrives ------------------------------------------------------------------------ */

/* Which of our methods it is; 0: none. */
static int route(struct kk_grpc_call *c)
{
    static const char *const health[] = {"/grpc.health.v1.Health/Check",
                                         "/grpc.health.v1.Health/Watch"};
    grpc_slice path = c->details.method;
    for (int h = 0; h < 2; h++)
        if (!grpc_slice_str_cmp(path, health[h])) c->health = 1 + h;
    int kind = kk_wire_kind(GRPC_SLICE_START_PTR(path), GRPC_SLICE_LENGTH(path));
    c->kind = kind < 0 ? KK_REQUEST_CREATE : (enum kk_request_kind)kind;
    return c->health || kind >= 0;
}

static int allowed(const struct kk_grpc_call *c)
{
    const char *given = "";
    size_t n = 0;
    for (size_t i = 0; i < c->metadata.count; i++) {
        const grpc_metadata *m = &c->metadata.metadata[i];
        if (grpc_slice_str_cmp(m->key, "authorization") != 0) continue;
        given = (const char *)GRPC_SLICE_START_PTR(m->value);
        n = GRPC_SLICE_LENGTH(m->value);
    }
    return c->health || kk_auth_ok(&c->server->auth, given, n);
}

static void expect_request(struct kk_grpc_call *c)
{
    grpc_op op = {.op = GRPC_OP_RECV_MESSAGE};
    op.data.recv_message.recv_message = &c->request;
    batch(c, &op, 1, &c->on_request);
}

static void on_new(void *arg, int ok)
{
    struct kk_grpc_call *c = arg;
    if (!ok) { /* the server closes */
        kk_grpc_call_unref(c);
        return;
    }
    kk_grpc_call_request(c->server);
    c->arrived_ns = kk_now_ns();
    int room = kk_server_enter(c->server, c), known = route(c);
    grpc_op over = {.op = GRPC_OP_RECV_CLOSE_ON_SERVER};
    over.data.recv_close_on_server.cancelled = &c->over_cancelled;
    batch(c, &over, 1, &c->on_over);
    c->has_request = !known || !room;
    if (!known) {
        set_final(c, GRPC_STATUS_UNIMPLEMENTED, "no such method");
        kk_grpc_call_pump(c);
    } else if (!allowed(c)) {
        c->has_request = 1;
        refuse(c, GRPC_STATUS_UNAUTHENTICATED, "a bearer token that the server knows is needed");
    } else if (!room) {
        refuse(c, GRPC_STATUS_RESOURCE_EXHAUSTED, "too many calls at a time");
    } else {
        expect_request(c);
    }
    kk_grpc_call_unref(c);
}

int kk_grpc_call_end_watch(struct kk_grpc_call *c)
{
    pthread_mutex_lock(&c->lock);
    int post = c->health == 2 && !c->done && !c->in_outbox;
    if (post) {
        c->done = 1;
        c->watch = KK_HEALTH_NOT_SERVING;
        c->final.status = GRPC_STATUS_UNAVAILABLE;
        snprintf(c->final.msg, sizeof c->final.msg, "the server is going down");
        c->in_outbox = 1;
        atomic_fetch_add(&c->refs, 1);
    }
    pthread_mutex_unlock(&c->lock);
    return post;
}
