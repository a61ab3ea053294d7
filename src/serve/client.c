#include "serve/client.h"

#include <grpc/byte_buffer_reader.h>
#include <grpc/grpc.h>
#include <grpc/grpc_security.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>

#include "base/fs.h"
#include "base/mem.h"
#include "serve/grpc_int.h"

enum { REQUEST_MAX = 64 << 20 };

struct kk_client_loop {
    grpc_completion_queue *cq;
    pthread_t threads[POLLERS];
    int n_threads;
};

struct kk_client {
    struct kk_client_loop *loop;
    grpc_channel *channel;
    char *authorization; /* "Bearer TOKEN", or NULL */
};

struct kk_client_call {
    atomic_int refs; /* the caller's, and one for each batch under way */
    struct kk_client *client;
    grpc_call *call;
    enum kk_request_kind kind;
    int (*sink)(void *arg, const struct kk_event *ev);
    void *arg;
    struct kk_tag on_message, on_status;

    grpc_byte_buffer *received;
    grpc_metadata_array initial, trailing;
    grpc_status_code status;
    grpc_slice details;

    pthread_mutex_t lock;
    int reading, ended, told;  /* a message under way; the status came; DONE was given */
    struct kk_wire_reply last; /* the reply, or the frame with GenerateDone */
    int has_last;
    struct kk_err bad; /* a reply that could not be read */
};

/* ---- loop ---------------------------------------------------------------------------------- */

static void *poll_loop(void *arg)
{
    struct kk_client_loop *l = arg;
    for (;;) {
        grpc_event ev = grpc_completion_queue_next(l->cq, gpr_inf_future(GPR_CLOCK_REALTIME), NULL);
        if (ev.type == GRPC_QUEUE_SHUTDOWN) return NULL;
        if (ev.type != GRPC_OP_COMPLETE) continue;
        struct kk_tag *tag = ev.tag;
        KK_TAKE_OVER(tag);
        tag->fn(tag->arg, ev.success);
    }
}

int kk_client_loop_open(struct kk_client_loop **out, struct kk_err *err)
{
    struct kk_client_loop *l = kk_calloc(1, sizeof *l);
    if (!l) return kk_fail(err, KK_ENOMEM, "out of memory for a client");
    grpc_init();
    l->cq = grpc_completion_queue_create_for_next(NULL);
    for (; l->n_threads < POLLERS; l->n_threads++)
        if (pthread_create(&l->threads[l->n_threads], NULL, poll_loop, l)) {
            kk_client_loop_close(l);
            return kk_fail(err, KK_EEXHAUSTED, "cannot start a thread");
        }
    *out = l;
    return 0;
}

void kk_client_loop_close(struct kk_client_loop *l)
{
    if (!l) return;
    grpc_completion_queue_shutdown(l->cq);
    for (int i = 0; i < l->n_threads; i++) pthread_join(l->threads[i], NULL);
    grpc_completion_queue_destroy(l->cq);
    grpc_shutdown();
    kk_free(l);
}

/* ---- connections --------------------------------------------------------------------------- */

static int credentials(const struct kk_client_options *o, grpc_channel_credentials **out,
                       struct kk_err *err)
{
    struct kk_buf ca;
    if (!o->tls_ca) {
        *out = grpc_insecure_credentials_create();
        return 0;
    }
    kk_buf_init(&ca, 1 << 20);
    int rc = kk_fs_read(o->tls_ca, &ca, err);
    if (!rc) {
        *out = grpc_ssl_credentials_create(ca.data ? ca.data : "", NULL, NULL, NULL);
        if (!*out) rc = kk_fail(err, KK_EINVAL, "%s: TLS refuses it", o->tls_ca);
    }
    kk_buf_release(&ca);
    return rc;
}

/* Each client is a connection of its own: the core would share one between equal channels. */
static grpc_channel *make_channel(const struct kk_client_options *o,
                                  grpc_channel_credentials *creds)
{
    char name[] = GRPC_ARG_USE_LOCAL_SUBCHANNEL_POOL, big[] = GRPC_ARG_MAX_RECEIVE_MESSAGE_LENGTH,
         tls[] = GRPC_SSL_TARGET_NAME_OVERRIDE_ARG;
    grpc_arg args[3] = {{.type = GRPC_ARG_INTEGER, .key = name, .value.integer = 1},
                        {.type = GRPC_ARG_INTEGER, .key = big, .value.integer = REQUEST_MAX}};
    grpc_channel_args all = {2, args};
    if (o->tls_name)
        args[all.num_args++] = (grpc_arg){
            .type = GRPC_ARG_STRING, .key = tls, .value.string = (char *)(uintptr_t)o->tls_name};
    return grpc_channel_create(o->address, creds, &all);
}

int kk_client_open(struct kk_client_loop *l, const struct kk_client_options *o,
                   struct kk_client **out, struct kk_err *err)
{
    struct kk_client *c = kk_calloc(1, sizeof *c);
    grpc_channel_credentials *creds = NULL;
    if (!c) return kk_fail(err, KK_ENOMEM, "out of memory for a connection");
    c->loop = l;
    if (o->token) {
        size_t n = strlen(o->token) + 8;
        c->authorization = kk_malloc(n);
        if (c->authorization) snprintf(c->authorization, n, "Bearer %s", o->token);
    }
    int rc = o->token && !c->authorization ? kk_fail(err, KK_ENOMEM, "out of memory") : 0;
    if (!rc) rc = credentials(o, &creds, err);
    if (!rc) {
        c->channel = make_channel(o, creds);
        grpc_channel_credentials_release(creds);
    }
    if (rc)
        kk_client_close(c);
    else
        *out = c;
    return rc;
}

void kk_client_close(struct kk_client *c)
{
    if (!c) return;
    if (c->channel) grpc_channel_destroy(c->channel);
    kk_free(c->authorization);
    kk_free(c);
}

/* ---- calls --------------------------------------------------------------------------------- */

void kk_client_release(struct kk_client_call *c)
{
    if (atomic_fetch_sub(&c->refs, 1) > 1) return;
    if (c->received) grpc_byte_buffer_destroy(c->received);
    grpc_metadata_array_destroy(&c->initial);
    grpc_metadata_array_destroy(&c->trailing);
    grpc_slice_unref(c->details);
    if (c->call) grpc_call_unref(c->call);
    pthread_mutex_destroy(&c->lock);
    kk_free(c);
}

void kk_client_cancel(struct kk_client_call *c)
{
    grpc_call_cancel(c->call, NULL);
}

int kk_client_status(const struct kk_client_call *c)
{
    return c->status;
}

static void batch(struct kk_client_call *c, const grpc_op *ops, size_t n, struct kk_tag *tag)
{
    atomic_fetch_add(&c->refs, 1);
    KK_HAND_OVER(tag);
    grpc_call_error e = grpc_call_start_batch(c->call, ops, n, tag, NULL);
    KK_BUG_ON(e != GRPC_CALL_OK);
}

/* The first code of the table with that status; what has none is an I/O error. */
static int code_of(grpc_status_code status)
{
    int code = (int)status;
    if (!code) return KK_OK;
    if (code == GRPC_STATUS_RESOURCE_EXHAUSTED) return KK_EEXHAUSTED; /* ENOMEM has it too */
#define X(name, value, text, grpc, http)                                                           \
    if (code == grpc) return value;
    KK_ERRORS(X)
#undef X
    return KK_EIO;
}

/* Give DONE, once the status is here and no message is still to come. */
static void tell_done(struct kk_client_call *c)
{
    char msg[400];
    struct kk_event ev = c->has_last ? c->last.ev : (struct kk_event){0};
    ev.kind = KK_EVENT_DONE;
    ev.code = code_of(c->status);
    if (!ev.code && (c->bad.code || !c->has_last)) {
        ev.code = KK_EFORMAT;
        snprintf(msg, sizeof msg, "%s", c->bad.code ? c->bad.msg : "the server sent no reply");
        ev.msg = msg;
    } else if (ev.code) {
        snprintf(msg, sizeof msg, "%s: %.*s", kk_grpc_status_name(c->status),
                 (int)GRPC_SLICE_LENGTH(c->details),
                 (const char *)GRPC_SLICE_START_PTR(c->details));
        ev.msg = msg;
    }
    c->sink(c->arg, &ev);
}

static void read_next(struct kk_client_call *c)
{
    grpc_op op = {.op = GRPC_OP_RECV_MESSAGE};
    op.data.recv_message.recv_message = &c->received;
    batch(c, &op, 1, &c->on_message);
}

/* A reply: passed on if it is a frame of a stream, kept if it is the last word. */
static void take_reply(struct kk_client_call *c)
{
    grpc_byte_buffer_reader reader;
    struct kk_wire_reply reply;
    if (!grpc_byte_buffer_reader_init(&reader, c->received)) return;
    grpc_slice all = grpc_byte_buffer_reader_readall(&reader);
    int rc = kk_wire_read_reply(c->kind, GRPC_SLICE_START_PTR(all), GRPC_SLICE_LENGTH(all), &reply,
                                &c->bad);
    if (!rc && reply.ev.kind == KK_EVENT_DONE) {
        c->last = reply;
        c->last.ev.session = reply.ev.session ? c->last.session : NULL;
        c->has_last = 1;
    } else if (!rc) {
        c->sink(c->arg, &reply.ev);
    }
    grpc_slice_unref(all);
    grpc_byte_buffer_reader_destroy(&reader);
    grpc_byte_buffer_destroy(c->received);
    c->received = NULL;
}

/* 1 if DONE is due now. */
static int settle(struct kk_client_call *c, int reading, int ended)
{
    pthread_mutex_lock(&c->lock);
    if (!reading) c->reading = 0;
    if (ended) c->ended = 1;
    int due = !c->reading && c->ended && !c->told;
    c->told |= due;
    pthread_mutex_unlock(&c->lock);
    return due;
}

static void on_message(void *arg, int ok)
{
    struct kk_client_call *c = arg;
    int more = ok && c->received;
    if (more) {
        take_reply(c);
        read_next(c);
    } else if (settle(c, 0, 0)) {
        tell_done(c);
    }
    kk_client_release(c);
}

static void on_status(void *arg, int ok)
{
    struct kk_client_call *c = arg;
    (void)ok;
    if (settle(c, 1, 1)) tell_done(c);
    kk_client_release(c);
}

static gpr_timespec deadline(double seconds)
{
    if (!(seconds > 0)) return gpr_inf_future(GPR_CLOCK_MONOTONIC);
    return gpr_time_add(gpr_now(GPR_CLOCK_MONOTONIC),
                        gpr_time_from_nanos((int64_t)(seconds * 1e9), GPR_TIMESPAN));
}

/* Send the request, and wait for the first reply and the status. */
static void start(struct kk_client_call *c, const struct kk_buf *request)
{
    grpc_slice slice =
        grpc_slice_from_copied_buffer(request->data ? request->data : "", request->len);
    grpc_byte_buffer *message = grpc_raw_byte_buffer_create(&slice, 1);
    grpc_metadata auth = {.key = grpc_slice_from_static_string("authorization")};
    if (c->client->authorization)
        auth.value = grpc_slice_from_copied_string(c->client->authorization);
    grpc_op status = {.op = GRPC_OP_RECV_STATUS_ON_CLIENT};
    status.data.recv_status_on_client.trailing_metadata = &c->trailing;
    status.data.recv_status_on_client.status = &c->status;
    status.data.recv_status_on_client.status_details = &c->details;
    grpc_op ops[5] = {{.op = GRPC_OP_SEND_INITIAL_METADATA},
                      {.op = GRPC_OP_SEND_MESSAGE},
                      {.op = GRPC_OP_SEND_CLOSE_FROM_CLIENT},
                      {.op = GRPC_OP_RECV_INITIAL_METADATA},
                      {.op = GRPC_OP_RECV_MESSAGE}};
    ops[0].data.send_initial_metadata.count = c->client->authorization != NULL;
    ops[0].data.send_initial_metadata.metadata = &auth;
    ops[1].data.send_message.send_message = message;
    ops[3].data.recv_initial_metadata.recv_initial_metadata = &c->initial;
    ops[4].data.recv_message.recv_message = &c->received;
    batch(c, &status, 1, &c->on_status);
    batch(c, ops, 5, &c->on_message);
    if (c->client->authorization) grpc_slice_unref(auth.value);
    grpc_byte_buffer_destroy(message);
    grpc_slice_unref(slice);
}

int kk_client_call(struct kk_client *client, const struct kk_request *r, double timeout_s,
                   struct kk_client_call **out, struct kk_err *err)
{
    struct kk_buf request;
    kk_buf_init(&request, REQUEST_MAX);
    struct kk_client_call *c = NULL;
    int rc = kk_wire_write_request(r, &request, err);
    if (!rc && !(c = kk_calloc(1, sizeof *c))) rc = kk_fail(err, KK_ENOMEM, "out of memory");
    if (rc) goto out;
    c->refs = 2; /* the caller's, and ours: its sink may have released it before start is done */
    c->client = client;
    c->kind = r->kind;
    c->sink = r->sink;
    c->arg = r->arg;
    c->reading = 1;
    c->on_message = (struct kk_tag){on_message, c};
    c->on_status = (struct kk_tag){on_status, c};
    c->details = grpc_empty_slice();
    grpc_metadata_array_init(&c->initial);
    grpc_metadata_array_init(&c->trailing);
    pthread_mutex_init(&c->lock, NULL);
    grpc_slice path = grpc_slice_from_static_string(kk_wire_path(r->kind));
    c->call = grpc_channel_create_call(client->channel, NULL, GRPC_PROPAGATE_DEFAULTS,
                                       client->loop->cq, path, NULL, deadline(timeout_s), NULL);
    *out = c; /* before the first event */
    start(c, &request);
    kk_client_release(c);
out:
    kk_buf_release(&request);
    return rc;
}

/* ---- waiting ------------------------------------------------------------------------------- */

struct waiting {
    const struct kk_request *r;
    pthread_mutex_t lock;
    pthread_cond_t came;
    int done;
    struct kk_event *ev;
    char *session;
    struct kk_err *err;
};

static int on_waited(void *arg, const struct kk_event *ev)
{
    struct waiting *w = arg;
    if (ev->kind != KK_EVENT_DONE) return w->r->sink ? w->r->sink(w->r->arg, ev) : KK_SINK_OK;
    pthread_mutex_lock(&w->lock);
    *w->ev = *ev;
    snprintf(w->session, KK_SESSION_ID_MAX, "%s", ev->session ? ev->session : "");
    w->ev->session = w->session;
    if (ev->code) kk_fail(w->err, ev->code, "%s", ev->msg);
    w->ev->msg = NULL;
    w->done = 1;
    pthread_cond_signal(&w->came);
    pthread_mutex_unlock(&w->lock);
    return KK_SINK_OK;
}

int kk_client_ask(struct kk_client *c, const struct kk_request *r, double timeout_s,
                  struct kk_event *done, char session[KK_SESSION_ID_MAX], struct kk_err *err)
{
    struct waiting w = {.r = r, .ev = done, .session = session, .err = err};
    struct kk_request inner = *r;
    struct kk_client_call *call;
    inner.sink = on_waited;
    inner.arg = &w;
    pthread_mutex_init(&w.lock, NULL);
    pthread_cond_init(&w.came, NULL);
    int rc = kk_client_call(c, &inner, timeout_s, &call, err);
    if (!rc) {
        pthread_mutex_lock(&w.lock);
        while (!w.done) pthread_cond_wait(&w.came, &w.lock);
        pthread_mutex_unlock(&w.lock);
        kk_client_release(call);
        rc = done->code;
    }
    pthread_mutex_destroy(&w.lock);
    pthread_cond_destroy(&w.came);
    return rc;
}
