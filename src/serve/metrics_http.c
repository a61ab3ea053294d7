/* The page of metrics and the two probes, over HTTP/1.1: libevent's evhttp on one thread.
 *
 * evhttp's timeout is one of silence: a client that sends a byte now and then would stay for hours,
 * and there is no limit to connections. So we keep a reference to each connection's bufferevent,
 * cut it off when it is LIFE_S old, and stop accepting while there are CONNECTIONS_MAX. */
#include <event2/buffer.h>
#include <event2/bufferevent.h>
#include <event2/event.h>
#include <event2/http.h>
#include <event2/listener.h>
#include <event2/thread.h>
#include <netdb.h>
#include <netinet/in.h>
#include <pthread.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>

#include "base/clock.h"
#include "base/mem.h"
#include "serve/serve.h"

enum {
    TIMEOUT_S = 10, /* of silence */
    LIFE_S = 60,    /* of a connection in all */
    CONNECTIONS_MAX = 128,
    BACKLOG = 1024, /* who waits for one of them; beyond it the kernel drops what comes */
    HEADERS_MAX = 8192,
    PAGE_MAX = 4 << 20
};

struct kk_metrics_http {
    struct kk_rpc *rpc;
    struct event_base *base;
    struct evhttp *http;
    struct evconnlistener *listener; /* http's */
    struct event *tick;
    pthread_t thread;
    int port, running, full;
    struct {
        struct bufferevent *bev; /* our reference */
        uint64_t since_ns;
    } connections[CONNECTIONS_MAX];
    int n;
};

/* ---- pages --------------------------------------------------------------------------------- */

static void reply(struct evhttp_request *r, int status, const char *type, const char *data,
                  size_t n)
{
    struct evbuffer *b = evbuffer_new();
    evhttp_add_header(evhttp_request_get_output_headers(r), "Content-Type", type);
    if (b && !evbuffer_add(b, data, n))
        evhttp_send_reply(r, status, NULL, b);
    else
        evhttp_send_error(r, HTTP_SERVUNAVAIL, NULL);
    if (b) evbuffer_free(b);
}

static void on_metrics(struct evhttp_request *r, void *arg)
{
    struct kk_metrics_http *m = arg;
    struct kk_buf page;
    kk_buf_init(&page, PAGE_MAX);
    if (kk_rpc_metrics(m->rpc, &page))
        evhttp_send_error(r, HTTP_SERVUNAVAIL, NULL);
    else
        reply(r, HTTP_OK, "text/plain; version=0.0.4; charset=utf-8", page.data, page.len);
    kk_buf_release(&page);
}

static void on_healthz(struct evhttp_request *r, void *arg)
{
    (void)arg;
    reply(r, HTTP_OK, "text/plain", "ok\n", 3);
}

static void on_readyz(struct evhttp_request *r, void *arg)
{
    const struct kk_metrics_http *m = arg;
    if (kk_rpc_ready(m->rpc))
        reply(r, HTTP_OK, "text/plain", "ready\n", 6);
    else
        reply(r, HTTP_SERVUNAVAIL, "text/plain", "draining\n", 9);
}

/* ---- connections --------------------------------------------------------------------------- */

/* Forget the connections that evhttp has given up (it takes its callbacks back then), cut off the
 * old ones, and accept again if there is room. */
static void look_after(struct kk_metrics_http *m)
{
    int kept = 0;
    for (int i = 0; i < m->n; i++) {
        struct bufferevent *bev = m->connections[i].bev;
        bufferevent_data_cb on_read;
        bufferevent_event_cb on_event;
        bufferevent_getcb(bev, &on_read, NULL, &on_event, NULL);
        if (!on_read && !on_event) {
            bufferevent_decref(bev);
            continue;
        }
        if (kk_seconds_since(m->connections[i].since_ns) > LIFE_S)
            shutdown(bufferevent_getfd(bev), SHUT_RDWR);
        m->connections[kept++] = m->connections[i];
    }
    m->n = kept;
    if (m->full && m->n < CONNECTIONS_MAX) {
        m->full = 0;
        evconnlistener_enable(m->listener);
    }
}

static void on_tick(evutil_socket_t fd, short what, void *arg)
{
    (void)fd;
    (void)what;
    look_after(arg);
}

/* The bufferevent of a new connection; evhttp sets its callbacks as soon as we return. */
static struct bufferevent *on_connection(struct event_base *base, void *arg)
{
    struct kk_metrics_http *m = arg;
    struct bufferevent *bev = bufferevent_socket_new(base, -1, 0);
    look_after(m);
    if (!bev || m->n == CONNECTIONS_MAX) return bev;
    bufferevent_incref(bev);
    m->connections[m->n].bev = bev;
    m->connections[m->n++].since_ns = kk_now_ns();
    if (m->n == CONNECTIONS_MAX) {
        m->full = 1;
        evconnlistener_disable(m->listener);
    }
    return bev;
}

/* ---- life ---------------------------------------------------------------------------------- */

static void *loop(void *arg)
{
    struct kk_metrics_http *m = arg;
    event_base_dispatch(m->base);
    return NULL;
}

/* Bind HOST:PORT; "[::1]:9100" has its brackets taken off. */
static int bind_to(struct kk_metrics_http *m, const char *address, struct kk_err *err)
{
    const char *colon = strrchr(address, ':');
    char host[256];
    struct addrinfo hints = {.ai_socktype = SOCK_STREAM, .ai_flags = AI_PASSIVE}, *found = NULL;
    size_t n = colon ? (size_t)(colon - address) : 0;
    if (!n || n >= sizeof host || !colon[1])
        return kk_fail(err, KK_EINVAL, "'%s' is no HOST:PORT", address);
    int brackets = address[0] == '[' && address[n - 1] == ']';
    snprintf(host, sizeof host, "%.*s", (int)n - 2 * brackets, address + brackets);
    int rc = getaddrinfo(host, colon + 1, &hints, &found);
    if (rc) return kk_fail(err, KK_EINVAL, "'%s': %s", address, gai_strerror(rc));
    m->listener = evconnlistener_new_bind(
        m->base, NULL, NULL, LEV_OPT_CLOSE_ON_FREE | LEV_OPT_REUSEABLE | LEV_OPT_CLOSE_ON_EXEC,
        BACKLOG, found->ai_addr, (int)found->ai_addrlen);
    freeaddrinfo(found);
    if (!m->listener) return kk_fail(err, KK_EIO, "cannot listen on %s: %m", address);
    if (!evhttp_bind_listener(m->http, m->listener)) {
        evconnlistener_free(m->listener);
        return kk_fail(err, KK_ENOMEM, "out of memory for the page of metrics");
    }
    union {
        struct sockaddr any;
        struct sockaddr_in v4;
        struct sockaddr_in6 v6;
    } bound = {.v6 = {0}};
    socklen_t len = sizeof bound;
    if (!getsockname(evconnlistener_get_fd(m->listener), &bound.any, &len))
        m->port = ntohs(bound.any.sa_family == AF_INET6 ? bound.v6.sin6_port : bound.v4.sin_port);
    return 0;
}

static int prepare(struct kk_metrics_http *m)
{
    const struct timeval second = {1, 0};
    if (evthread_use_pthreads()) return KK_ENOMEM;
    m->base = event_base_new();
    m->http = m->base ? evhttp_new(m->base) : NULL;
    m->tick = m->base ? event_new(m->base, -1, EV_PERSIST, on_tick, m) : NULL;
    if (!m->http || !m->tick || event_add(m->tick, &second)) return KK_ENOMEM;
    evhttp_set_bevcb(m->http, on_connection, m);
    evhttp_set_timeout(m->http, TIMEOUT_S);
    evhttp_set_max_headers_size(m->http, HEADERS_MAX);
    evhttp_set_max_body_size(m->http, 0);
    evhttp_set_allowed_methods(m->http, EVHTTP_REQ_GET | EVHTTP_REQ_HEAD);
    if (evhttp_set_cb(m->http, "/metrics", on_metrics, m) ||
        evhttp_set_cb(m->http, "/healthz", on_healthz, m) ||
        evhttp_set_cb(m->http, "/readyz", on_readyz, m))
        return KK_ENOMEM;
    return 0;
}

int kk_metrics_http_open(const char *address, struct kk_metrics_http **out, struct kk_err *err)
{
    struct kk_metrics_http *m = kk_calloc(1, sizeof *m);
    if (!m) return kk_fail(err, KK_ENOMEM, "out of memory for the page of metrics");
    int rc = prepare(m);
    if (rc) kk_fail(err, rc, "out of memory for the page of metrics");
    if (!rc) rc = bind_to(m, address, err);
    if (rc)
        kk_metrics_http_close(m);
    else
        *out = m;
    return rc;
}

int kk_metrics_http_start(struct kk_metrics_http *m, struct kk_rpc *rpc, struct kk_err *err)
{
    m->rpc = rpc;
    if (pthread_create(&m->thread, NULL, loop, m))
        return kk_fail(err, KK_EEXHAUSTED, "cannot start a thread");
    m->running = 1;
    return 0;
}

int kk_metrics_http_port(const struct kk_metrics_http *m)
{
    return m->port;
}

void kk_metrics_http_close(struct kk_metrics_http *m)
{
    if (!m) return;
    if (m->running) {
        event_base_loopbreak(m->base);
        pthread_join(m->thread, NULL);
    }
    if (m->tick) event_free(m->tick);
    if (m->http) evhttp_free(m->http);
    for (int i = 0; i < m->n; i++) bufferevent_decref(m->connections[i].bev);
    if (m->base) event_base_free(m->base);
    kk_free(m);
}
