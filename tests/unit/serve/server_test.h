/* What the tests of the server share: one server over the fake runtime, clients, raw sockets. */
#ifndef KK_SERVER_TEST_H
#define KK_SERVER_TEST_H

#include "kk_test.h"

#include <arpa/inet.h>
#include <stdatomic.h>
#include <stdio.h>
#include <unistd.h>

#include "base/clock.h"
#include "serve/client.h"
#include "serve/serve.h"
#include "support/serve/fake_runtime.h"

struct rig {
    struct kk_runtime *rt;
    struct kk_rpc *rpc;
    struct kk_server *server;
    struct kk_client_loop *loop;
    struct kk_client *client;
    struct kk_client_options to;
    char address[32];
};

static void rig_open(struct rig *g, int capacity, const struct kk_server_options *o)
{
    struct kk_err err = {0};
    struct kk_server_options so = o ? *o : kk_server_defaults();
    so.address = "127.0.0.1:0";
    memset(g, 0, sizeof *g);
    assert_int_equal(kk_fake_open(capacity, &g->rt), 0);
    KK_ASSERT_OK(kk_rpc_open(g->rt, "fake", &g->rpc, &err), &err);
    KK_ASSERT_OK(kk_server_open(&so, &g->server, &err), &err);
    KK_ASSERT_OK(kk_server_start(g->server, g->rpc, &err), &err);
    snprintf(g->address, sizeof g->address, "127.0.0.1:%d", kk_server_port(g->server));
    g->to = (struct kk_client_options){.address = g->address};
    KK_ASSERT_OK(kk_client_loop_open(&g->loop, &err), &err);
    KK_ASSERT_OK(kk_client_open(g->loop, &g->to, &g->client, &err), &err);
}

static void rig_close(struct rig *g)
{
    kk_client_close(g->client);
    kk_client_loop_close(g->loop);
    kk_server_close(g->server);
    kk_rpc_close(g->rpc);
    kk_runtime_close(g->rt);
}

/* One call to its end, from a client of its own or the rig's. */
static inline int ask(struct kk_client *c, const struct kk_request *r, struct kk_event *ev,
                      char id[KK_SESSION_ID_MAX], struct kk_err *err)
{
    return kk_client_ask(c, r, 20, ev, id, err);
}

/* A new session with history 1, 2, 3. */
static inline void make_session(struct kk_client *c, char id[KK_SESSION_ID_MAX])
{
    static const uint32_t ids[] = {1, 2, 3};
    struct kk_err err = {0};
    struct kk_event ev;
    char none[KK_SESSION_ID_MAX];
    struct kk_request create = {.kind = KK_REQUEST_CREATE, .label = "test"};
    KK_ASSERT_OK(ask(c, &create, &ev, id, &err), &err);
    struct kk_request append = {.kind = KK_REQUEST_APPEND, .session = id, .ids = ids, .n = 3};
    KK_ASSERT_OK(ask(c, &append, &ev, none, &err), &err);
    assert_int_equal(ev.history, 3);
}

static inline struct kk_request generate_request(const char *id, int64_t n)
{
    return (struct kk_request){.kind = KK_REQUEST_GENERATE,
                               .session = id,
                               .max_tokens = n,
                               .sampling = kk_sampling_defaults(),
                               .seed_unset = 1};
}

/* Tokens of a stream, checked against what the fake runtime emits after 1, 2, 3. */
struct stream {
    uint64_t sum, n;
    atomic_int got, wrong, done, code;
};

static inline int on_stream(void *arg, const struct kk_event *ev)
{
    struct stream *s = arg;
    for (size_t i = 0; ev->kind == KK_EVENT_TOKENS && i < ev->n; i++) {
        if (ev->ids[i] != kk_fake_token(s->sum, s->n)) s->wrong++;
        s->sum += ev->ids[i];
        s->n++;
        s->got++;
    }
    if (ev->kind == KK_EVENT_DONE) {
        s->code = ev->code;
        s->done++;
    }
    return KK_SINK_OK;
}

/* Until *x is at least `want`; fails after 20 s. */
static inline void wait_for(atomic_int *x, int want)
{
    uint64_t t0 = kk_now_ns();
    while (*x < want) {
        if (kk_seconds_since(t0) > 20) fail_msg("still %d after 20 s, wanted %d", *x, want);
        usleep(500);
    }
}

static inline struct kk_runtime_stats stats(const struct rig *g)
{
    struct kk_runtime_stats s;
    kk_runtime_stats(g->rt, &s);
    return s;
}

/* A TCP connection to the server. */
static inline int dial(int port)
{
    struct sockaddr_in to = {.sin_family = AF_INET, .sin_port = htons((uint16_t)port)};
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    to.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    assert_true(fd >= 0);
    assert_int_equal(connect(fd, (struct sockaddr *)&to, sizeof to), 0);
    return fd;
}

/* ---- HTTP/2 by hand: for clients that no library would be ----------------------------------- */

static inline void h2_frame(int fd, int type, int flags, uint32_t stream, const void *data,
                            size_t n)
{
    unsigned char h[9] = {(unsigned char)(n >> 16),
                          (unsigned char)(n >> 8),
                          (unsigned char)n,
                          (unsigned char)type,
                          (unsigned char)flags,
                          0,
                          0,
                          0,
                          (unsigned char)stream};
    assert_int_equal(send(fd, h, 9, MSG_NOSIGNAL), 9);
    if (n) assert_int_equal(send(fd, data, n, MSG_NOSIGNAL), (ssize_t)n);
}

/* A connection whose streams may bring `window` bytes each. */
static inline int h2_dial(int port, unsigned window)
{
    int fd = dial(port);
    unsigned char s[6] = {0,
                          4,
                          (unsigned char)(window >> 24),
                          (unsigned char)(window >> 16),
                          (unsigned char)(window >> 8),
                          (unsigned char)window};
    assert_int_equal(send(fd, "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 24, MSG_NOSIGNAL), 24);
    h2_frame(fd, 4, 0, 0, s, 6);
    return fd;
}

/* Begin a call on a path; streams are 1, 3, 5, ... */
static inline void h2_call(int fd, uint32_t stream, const char *path)
{
    const char *const h[][2] = {{":method", "POST"}, {":scheme", "http"},
                                {":path", path},     {":authority", "x"},
                                {"te", "trailers"},  {"content-type", "application/grpc"}};
    unsigned char b[512];
    size_t n = 0;
    for (int i = 0; i < 6; i++) {
        b[n++] = 0;
        for (int k = 0; k < 2; k++) {
            size_t len = strlen(h[i][k]);
            b[n++] = (unsigned char)len;
            memcpy(b + n, h[i][k], len);
            n += len;
        }
    }
    h2_frame(fd, 1, 4, stream, b, n);
}

/* Send a message [n] and half-close. */
static inline void h2_message(int fd, uint32_t stream, const void *data, size_t n)
{
    unsigned char b[1024] = {0, 0, 0, (unsigned char)(n >> 8), (unsigned char)n};
    assert_true(n < 1000);
    memcpy(b + 5, data, n);
    h2_frame(fd, 0, 1, stream, b, n + 5);
}

#endif
