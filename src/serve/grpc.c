/* The server: ports, pollers, the writer, and its end. Calls are in grpc_call.c. */
#include "serve/grpc_int.h"

#include <grpc/grpc_security.h>
#include <grpc/support/log.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "base/clock.h"
#include "base/fs.h"
#include "base/mem.h"

struct kk_server_options kk_server_defaults(void)
{
    return (struct kk_server_options){.address = "127.0.0.1:50051",
                                      .max_message = (size_t)4 << 20,
                                      .request_s = 30,
                                      .handshake_s = 10};
}

/* ---- what the transport logs --------------------------------------------------------------- */

static void (*_Atomic log_line)(const char *line);

/* The core's own lines, at most ten a second: a client must not be able to fill a disk. */
static void on_log(gpr_log_func_args *args)
{
    static _Atomic uint64_t second;
    static atomic_int lines;
    void (*to)(const char *) = log_line;
    uint64_t now = kk_now_ns() / 1000000000u;
    if (!to || args->severity != GPR_LOG_SEVERITY_ERROR) return;
    if (atomic_exchange(&second, now) != now) lines = 0;
    if (atomic_fetch_add(&lines, 1) < 10) to(args->message);
}

/* ---- live calls, outbox -------------------------------------------------------------------- */

int kk_server_enter(struct kk_server *s, struct kk_grpc_call *c)
{
    pthread_mutex_lock(&s->lock);
    c->next = s->live;
    if (s->live) s->live->prev = c;
    s->live = c;
    int room = ++s->n_live <= CALLS_MAX;
    pthread_mutex_unlock(&s->lock);
    return room;
}

void kk_server_leave(struct kk_server *s, struct kk_grpc_call *c)
{
    pthread_mutex_lock(&s->lock);
    if (c->prev)
        c->prev->next = c->next;
    else
        s->live = c->next;
    if (c->next) c->next->prev = c->prev;
    if (!--s->n_live) pthread_cond_broadcast(&s->change);
    pthread_mutex_unlock(&s->lock);
}

static void post_locked(struct kk_server *s, struct kk_grpc_call *c)
{
    if (!s->outbox) pthread_cond_signal(&s->work);
    c->out = NULL;
    *s->outbox_end = c;
    s->outbox_end = &c->out;
}

void kk_server_post(struct kk_server *s, struct kk_grpc_call *c)
{
    pthread_mutex_lock(&s->lock);
    post_locked(s, c);
    pthread_mutex_unlock(&s->lock);
}

/* ---- threads ------------------------------------------------------------------------------- */

static void run_tag(grpc_event ev)
{
    struct kk_tag *tag = ev.tag;
    if (ev.type != GRPC_OP_COMPLETE) return;
    KK_TAKE_OVER(tag);
    tag->fn(tag->arg, ev.success);
}

static void *poll_queue(void *arg)
{
    struct kk_server *s = arg;
    for (;;) {
        grpc_event ev = grpc_completion_queue_next(s->cq, gpr_inf_future(GPR_CLOCK_REALTIME), NULL);
        if (ev.type == GRPC_QUEUE_SHUTDOWN) return NULL;
        run_tag(ev);
    }
}

/* Cut off the calls whose request has not come in time. The lock is held. */
static void cut_slow(struct kk_server *s)
{
    uint64_t now = kk_now_ns();
    for (struct kk_grpc_call *c = s->live; c; c = c->next) {
        if (c->has_request || now - c->arrived_ns < s->request_ns) continue;
        c->has_request = 1;
        grpc_call_cancel_with_status(c->call, GRPC_STATUS_DEADLINE_EXCEEDED,
                                     "the request did not come in time", NULL);
    }
}

static void wait_for_work(struct kk_server *s)
{
    struct timespec t;
    uint64_t pause = s->request_ns / 4 < 1000000000u ? s->request_ns / 4 : 1000000000u;
    clock_gettime(CLOCK_MONOTONIC, &t);
    uint64_t at = (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec + pause;
    t = (struct timespec){(time_t)(at / 1000000000u), (long)(at % 1000000000u)};
    pthread_cond_timedwait(&s->work, &s->lock, &t);
}

/* Hands the outbox's calls to the core, and keeps time. */
static void *write_calls(void *arg)
{
    struct kk_server *s = arg;
    uint64_t looked_ns = kk_now_ns();
    pthread_mutex_lock(&s->lock);
    while (!s->stop) {
        struct kk_grpc_call *c = s->outbox;
        if (!c) wait_for_work(s);
        if (kk_now_ns() - looked_ns > s->request_ns / 4) {
            cut_slow(s);
            looked_ns = kk_now_ns();
        }
        c = s->outbox;
        s->outbox = NULL;
        s->outbox_end = &s->outbox;
        pthread_mutex_unlock(&s->lock);
        for (struct kk_grpc_call *next; c; c = next) {
            next = c->out;
            pthread_mutex_lock(&c->lock);
            c->in_outbox = 0;
            pthread_mutex_unlock(&c->lock);
            kk_grpc_call_pump(c);
            kk_grpc_call_unref(c);
        }
        pthread_mutex_lock(&s->lock);
    }
    pthread_mutex_unlock(&s->lock);
    return NULL;
}

static int start_threads(struct kk_server *s, struct kk_err *err)
{
    for (; s->n_pollers < POLLERS; s->n_pollers++)
        if (pthread_create(&s->pollers[s->n_pollers], NULL, poll_queue, s))
            return kk_fail(err, KK_EEXHAUSTED, "cannot start a thread");
    if (pthread_create(&s->writer, NULL, write_calls, s))
        return kk_fail(err, KK_EEXHAUSTED, "cannot start a thread");
    s->has_writer = 1;
    return 0;
}

/* ---- opening ------------------------------------------------------------------------------- */

static grpc_server *make_server(const struct kk_server_options *o)
{
    const struct {
        const char *name;
        int value;
    } set[] = {
        {GRPC_ARG_ALLOW_REUSEPORT, 0}, /* a second server on the port is an error */
        {GRPC_ARG_MAX_RECEIVE_MESSAGE_LENGTH, (int)o->max_message},
        {GRPC_ARG_MAX_CONCURRENT_STREAMS, 4096},
        {GRPC_ARG_SERVER_HANDSHAKE_TIMEOUT_MS, (int)(o->handshake_s * 1000)},
        {GRPC_ARG_KEEPALIVE_TIME_MS, 30000},
        {GRPC_ARG_KEEPALIVE_TIMEOUT_MS, 20000}, /* also how long a client may not read */
        {GRPC_ARG_KEEPALIVE_PERMIT_WITHOUT_CALLS, 1},
        {GRPC_ARG_HTTP2_MIN_RECV_PING_INTERVAL_WITHOUT_DATA_MS, 5000},
    };
    enum { N = sizeof set / sizeof *set };
    grpc_arg args[N];
    for (int i = 0; i < N; i++) {
        args[i].type = GRPC_ARG_INTEGER;
        args[i].key = (char *)(uintptr_t)set[i].name;
        args[i].value.integer = set[i].value;
    }
    grpc_channel_args all = {N, args};
    return grpc_server_create(&all, NULL);
}

static int read_pem(const char *path, struct kk_buf *out, struct kk_err *err)
{
    int rc = kk_fs_read(path, out, err);
    if (rc) return rc;
    if (out->data && strstr(out->data, "-----BEGIN ")) return 0;
    return kk_fail(err, KK_EINVAL, "%s: not a PEM file", path);
}

static int credentials(const struct kk_server_options *o, grpc_server_credentials **out,
                       struct kk_err *err)
{
    struct kk_buf cert, key;
    if (!o->tls_cert != !o->tls_key)
        return kk_fail(err, KK_EINVAL, "TLS needs both a certificate and its key");
    if (!o->tls_cert) {
        *out = grpc_insecure_server_credentials_create();
        return 0;
    }
    kk_buf_init(&cert, 1 << 20);
    kk_buf_init(&key, 1 << 20);
    int rc = read_pem(o->tls_cert, &cert, err);
    if (!rc) rc = read_pem(o->tls_key, &key, err);
    if (!rc) {
        grpc_ssl_pem_key_cert_pair pair = {key.data, cert.data};
        *out = grpc_ssl_server_credentials_create_ex(
            NULL, &pair, 1, GRPC_SSL_DONT_REQUEST_CLIENT_CERTIFICATE, NULL);
        if (!*out) rc = kk_fail(err, KK_EINVAL, "%s: TLS refuses it", o->tls_cert);
    }
    kk_buf_release(&cert);
    kk_buf_release(&key);
    return rc;
}

/* The core would take a name for a port, and 70000 for 4464. */
static int host_port(const char *address)
{
    const char *colon = strrchr(address, ':');
    char *end;
    if (!colon || colon == address || colon[1] < '0' || colon[1] > '9') return 0;
    return strtol(colon + 1, &end, 10) <= 65535 && !*end;
}

static int listen_on(struct kk_server *s, const struct kk_server_options *o, struct kk_err *err)
{
    if (!host_port(o->address)) return kk_fail(err, KK_EINVAL, "'%s' is no HOST:PORT", o->address);
    grpc_server_credentials *creds = NULL;
    int rc = credentials(o, &creds, err);
    if (rc) return rc;
    s->port = grpc_server_add_http2_port(s->server, o->address, creds);
    grpc_server_credentials_release(creds);
    if (s->port > 0) return 0;
    return kk_fail(err, KK_EIO, "cannot listen on %s%s: is it in use, or not of this machine?",
                   o->address, o->tls_cert ? ", or are certificate and key no pair" : "");
}

static void on_shut(void *arg, int ok)
{
    struct kk_server *s = arg;
    (void)ok;
    pthread_mutex_lock(&s->lock);
    s->shut = 1;
    pthread_cond_broadcast(&s->change);
    pthread_mutex_unlock(&s->lock);
}

static int prepare(struct kk_server *s, const struct kk_server_options *o)
{
    pthread_condattr_t monotonic;
    s->request_ns = (uint64_t)(o->request_s * 1e9);
    s->outbox_end = &s->outbox;
    s->on_shut = (struct kk_tag){on_shut, s};
    pthread_condattr_init(&monotonic);
    pthread_condattr_setclock(&monotonic, CLOCK_MONOTONIC);
    pthread_mutex_init(&s->lock, NULL);
    pthread_cond_init(&s->work, &monotonic);
    pthread_cond_init(&s->change, &monotonic);
    pthread_condattr_destroy(&monotonic);
    s->log = o->log;
    gpr_set_log_function(on_log);
    gpr_set_log_verbosity(GPR_LOG_SEVERITY_ERROR);
    grpc_init();
    s->cq = grpc_completion_queue_create_for_next(NULL);
    s->server = make_server(o);
    if (!s->cq || !s->server) return KK_ENOMEM;
    grpc_server_register_completion_queue(s->server, s->cq, NULL);
    return 0;
}

int kk_server_open(const struct kk_server_options *o, struct kk_server **out, struct kk_err *err)
{
    struct kk_err none;
    struct kk_server *s = kk_calloc(1, sizeof *s);
    if (!err) err = &none;
    if (!s) return kk_fail(err, KK_ENOMEM, "out of memory for a server");
    if (o->max_message < 1024 || o->max_message > INT32_MAX) {
        kk_free(s);
        return kk_fail(err, KK_EINVAL, "messages of %zu bytes: 1 KiB to 2 GiB", o->max_message);
    }
    int rc = prepare(s, o);
    if (rc) kk_fail(err, rc, "out of memory for a server");
    if (!rc && o->token_file) rc = kk_auth_load(&s->auth, o->token_file, err);
    if (!rc) rc = listen_on(s, o, err);
    if (rc)
        kk_server_close(s);
    else
        *out = s;
    return rc;
}

int kk_server_start(struct kk_server *s, struct kk_rpc *rpc, struct kk_err *err)
{
    int rc = start_threads(s, err);
    if (rc) return rc;
    s->rpc = rpc;
    log_line = s->log; /* not before: why there is no server is ours to say, in one line */
    grpc_server_start(s->server);
    for (int i = 0; i < SLOTS; i++)
        if (kk_grpc_call_request(s)) return kk_fail(err, KK_ENOMEM, "out of memory for a server");
    return 0;
}

int kk_server_port(const struct kk_server *s)
{
    return s->port;
}

/* ---- closing ------------------------------------------------------------------------------- */

/* Until the core says it has shut, for at most `seconds` (< 0: as long as it takes). */
static int wait_shut(struct kk_server *s, double seconds)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    double at = (double)t.tv_sec + (double)t.tv_nsec * 1e-9 + (seconds > 0 ? seconds : 0);
    t = (struct timespec){(time_t)at, (long)((at - (double)(time_t)at) * 1e9)};
    pthread_mutex_lock(&s->lock);
    int late = 0;
    while (!s->shut && !late) {
        if (seconds < 0)
            pthread_cond_wait(&s->change, &s->lock);
        else
            late = pthread_cond_timedwait(&s->change, &s->lock, &t) != 0;
    }
    int shut = s->shut;
    pthread_mutex_unlock(&s->lock);
    return shut;
}

void kk_server_drain(struct kk_server *s, double seconds)
{
    pthread_mutex_lock(&s->lock);
    int before = s->draining;
    s->draining = 1;
    if (!before && s->rpc) kk_rpc_set_ready(s->rpc, 0);
    for (struct kk_grpc_call *c = s->live; c && !before; c = c->next)
        if (kk_grpc_call_end_watch(c)) post_locked(s, c);
    pthread_mutex_unlock(&s->lock);
    if (!before) {
        KK_HAND_OVER(&s->on_shut);
        grpc_server_shutdown_and_notify(s->server, s->cq, &s->on_shut);
    }
    if (seconds > 0 && wait_shut(s, seconds)) return;
    grpc_server_cancel_all_calls(s->server);
    wait_shut(s, -1);
}

static void stop_threads(struct kk_server *s)
{
    pthread_mutex_lock(&s->lock);
    while (s->n_live) pthread_cond_wait(&s->change, &s->lock);
    s->stop = 1;
    pthread_cond_signal(&s->work);
    pthread_mutex_unlock(&s->lock);
    if (s->has_writer) pthread_join(s->writer, NULL);
}

/* The core wants to be shut even if it was never started, and says so through the queue. */
static void shut_unstarted(struct kk_server *s)
{
    KK_HAND_OVER(&s->on_shut);
    grpc_server_shutdown_and_notify(s->server, s->cq, &s->on_shut);
    while (!wait_shut(s, 0)) {
        gpr_timespec soon =
            gpr_time_add(gpr_now(GPR_CLOCK_REALTIME), gpr_time_from_millis(10, GPR_TIMESPAN));
        run_tag(grpc_completion_queue_next(s->cq, soon, NULL));
    }
}

void kk_server_close(struct kk_server *s)
{
    if (!s) return;
    if (s->rpc) {
        kk_server_drain(s, 0);
        stop_threads(s);
    } else if (s->port > 0) {
        shut_unstarted(s);
    }
    if (s->server) grpc_server_destroy(s->server);
    if (s->cq) grpc_completion_queue_shutdown(s->cq);
    for (int i = 0; i < s->n_pollers; i++) pthread_join(s->pollers[i], NULL);
    if (s->cq) grpc_completion_queue_destroy(s->cq);
    grpc_shutdown();
    kk_auth_release(&s->auth);
    pthread_cond_destroy(&s->work);
    pthread_cond_destroy(&s->change);
    pthread_mutex_destroy(&s->lock);
    kk_free(s);
}
