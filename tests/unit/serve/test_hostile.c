/* Clients that mean harm, or have many of everything: slow handshakes, sessions that nobody closes,
 * deadlines that none can keep. What they leave behind is nothing. kk-test: tsan. kk-test: soak */
#include "server_test.h"

#include <errno.h>
#include <malloc.h>
#include <pthread.h>
#include <stdlib.h>
#include <sys/socket.h>

static int is_soak(void)
{
    return getenv("KK_SOAK") != NULL;
}

/* A session used in full. */
static void use_one(struct kk_client *c, int tokens)
{
    struct kk_err err = {0};
    struct kk_event ev;
    char id[KK_SESSION_ID_MAX], none[KK_SESSION_ID_MAX];
    struct stream s = {.sum = 6, .n = 3};
    make_session(c, id);
    struct kk_request r = generate_request(id, tokens);
    r.sink = on_stream;
    r.arg = &s;
    KK_ASSERT_OK(ask(c, &r, &ev, none, &err), &err);
    assert_true(s.got == tokens && !s.wrong);
    struct kk_request close_it = {.kind = KK_REQUEST_CLOSE, .session = id};
    KK_ASSERT_OK(ask(c, &close_it, &ev, none, &err), &err);
}

/* ---- slow handshakes ---- */

enum { SLOW = 60 };

struct slow {
    int fd, open;
    unsigned char bytes[600];
    size_t sent, n;
    uint64_t next_ns, closed_ns;
};

/* What a slow one has to say, a byte or some at a time: the beginning of a TLS record that claims
 * to be long, the beginning of HTTP/2, or noise. */
static void prepare(struct slow *s, int kind, struct kk_test_rng *r)
{
    static const unsigned char hello[] = {0x16, 3, 1, 0x3f, 0xff, 1, 0, 0x3f, 0xfb, 3, 3};
    for (size_t i = 0; i < sizeof s->bytes; i++) s->bytes[i] = (unsigned char)kk_test_u64(r);
    if (kind == 0) memcpy(s->bytes, hello, sizeof hello);
    if (kind == 1) memcpy(s->bytes, "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 24);
    s->n = kind == 1 ? 23 : sizeof s->bytes; /* never the whole preface */
}

/* One look at a connection: a byte or some more, if it is time; has it been closed? */
static void attend(struct slow *s, struct kk_test_rng *r)
{
    char sink[256];
    ssize_t got = recv(s->fd, sink, sizeof sink, MSG_DONTWAIT);
    if (!got || (got < 0 && errno != EAGAIN && errno != EWOULDBLOCK)) {
        s->open = 0;
        s->closed_ns = kk_now_ns();
        close(s->fd);
        return;
    }
    if (kk_now_ns() < s->next_ns || s->sent == s->n) return;
    size_t k = 1 + kk_test_below(r, 3);
    if (k > s->n - s->sent) k = s->n - s->sent;
    if (send(s->fd, s->bytes + s->sent, k, MSG_NOSIGNAL) > 0) s->sent += k;
    s->next_ns = kk_now_ns() + 1000 * (uint64_t)kk_test_below(r, 60000);
}

static void slow_handshakes_of(struct rig *g, const char *name)
{
    static struct slow s[SLOW];
    struct kk_test_rng r = kk_test_rng(name);
    const uint64_t t0 = kk_now_ns();
    int left = SLOW;
    for (int i = 0; i < SLOW; i++) {
        s[i] = (struct slow){.fd = dial(kk_server_port(g->server)), .open = 1};
        prepare(&s[i], i % 3, &r);
    }
    while (left && kk_seconds_since(t0) < 8) { /* the default is 10 */
        left = 0;
        for (int i = 0; i < SLOW; i++) {
            if (s[i].open) attend(&s[i], &r);
            left += s[i].open;
        }
        use_one(g->client, 3); /* who behaves is served all the while */
    }
    assert_int_equal(left, 0);
}

static void slow_handshakes(void **state)
{
    struct rig g;
    struct kk_server_options o = kk_server_defaults();
    (void)state;
    kk_fake.step_us = 20;
    o.handshake_s = 1;
    rig_open(&g, 64, &o);
    slow_handshakes_of(&g, "slow");
    rig_close(&g);
}

/* A key and its certificate, made by openssl. 0: they are there. */
static int make_certificate(char cert[4096], char key[4096])
{
    char command[9000];
    snprintf(cert, 4096, "%s", kk_test_path("cert.pem"));
    snprintf(key, 4096, "%s", kk_test_path("key.pem"));
    snprintf(command, sizeof command,
             "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 2 "
             "-keyout '%s' -out '%s' -subj /CN=localhost -addext 'subjectAltName=IP:127.0.0.1' "
             "2>/dev/null",
             key, cert);
    return system(command);
}

static void slow_tls(void **state)
{
    static char cert[4096], key[4096];
    struct rig g;
    struct kk_err err = {0};
    struct kk_server_options o = kk_server_defaults();
    (void)state;
#ifdef __SANITIZE_THREAD__
    skip(); /* it cannot see what OpenSSL orders */
#endif
    if (make_certificate(cert, key)) skip();
    o.handshake_s = 1;
    o.tls_cert = cert;
    o.tls_key = key;
    rig_open(&g, 64, &o);
    kk_client_close(g.client);
    g.to.tls_ca = cert;
    KK_ASSERT_OK(kk_client_open(g.loop, &g.to, &g.client, &err), &err);
    slow_handshakes_of(&g, "slow TLS");
    rig_close(&g);
}

/* ---- very many ---- */

static void abandoned_sessions(void **state)
{
    const int n = is_soak() ? 10000 : 1000;
    struct rig g;
    struct kk_err err = {0};
    struct kk_event ev;
    char id[KK_SESSION_ID_MAX];
    (void)state;
    rig_open(&g, n, NULL);
    for (int i = 0; i < n; i++) {
        struct kk_request r = {.kind = KK_REQUEST_CREATE, .label = "left"};
        KK_ASSERT_OK(ask(g.client, &r, &ev, id, &err), &err);
    }
    struct kk_request r = {.kind = KK_REQUEST_CREATE};
    KK_ASSERT_FAILS(ask(g.client, &r, &ev, id, &err), KK_EEXHAUSTED, &err, "RESOURCE_EXHAUSTED");
    assert_int_equal(stats(&g).sessions, n);
    rig_close(&g);
}

struct storm {
    struct rig *g;
    struct kk_test_rng rng;
    int calls, late, bad;
    pthread_t thread;
};

/* Calls of every kind with hardly any time. */
static void *storm(void *arg)
{
    struct storm *w = arg;
    static const uint32_t ids[] = {1, 2, 3};
    struct kk_client *c;
    struct kk_err err = {0};
    struct kk_event ev;
    char id[KK_SESSION_ID_MAX] = "", none[KK_SESSION_ID_MAX];
    if (kk_client_open(w->g->loop, &w->g->to, &c, &err)) {
        w->bad++;
        return NULL;
    }
    for (int i = 0; i < w->calls; i++) {
        if (!*id) {
            struct kk_request create = {.kind = KK_REQUEST_CREATE};
            w->bad += ask(c, &create, &ev, id, &err) != 0;
        }
        struct kk_request r = generate_request(id, 5000);
        r.kind =
            (enum kk_request_kind[]){KK_REQUEST_GENERATE, KK_REQUEST_GENERATE, KK_REQUEST_APPEND,
                                     KK_REQUEST_INFO, KK_REQUEST_FORK}[kk_test_below(&w->rng, 5)];
        if (r.kind == KK_REQUEST_APPEND) r.ids = ids, r.n = 3;
        double seconds = (double)kk_test_uniform(&w->rng, .00005f, .004f);
        int rc = kk_client_ask(c, &r, seconds, &ev, none, &err);
        w->late += rc == KK_ETIMEOUT;
        w->bad += rc && rc != KK_ETIMEOUT && rc != KK_EINVAL; /* EINVAL: nothing was appended yet */
        if (kk_test_below(&w->rng, 20)) continue;
        struct kk_request end = {.kind = KK_REQUEST_CLOSE, .session = id};
        w->bad += ask(c, &end, &ev, none, &err) != 0;
        *id = 0;
    }
    kk_client_close(c);
    return NULL;
}

static void deadline_storm(void **state)
{
    enum { THREADS = 4 };
    struct storm w[THREADS];
    struct rig g;
    int late = 0;
    (void)state;
    kk_fake.step_us = 100;
    rig_open(&g, 100000, NULL);
    for (int i = 0; i < THREADS; i++) {
        char name[24];
        snprintf(name, sizeof name, "deadlines %d", i);
        w[i] = (struct storm){.g = &g, .rng = kk_test_rng(name), .calls = is_soak() ? 20000 : 500};
        assert_int_equal(pthread_create(&w[i].thread, NULL, storm, &w[i]), 0);
    }
    for (int i = 0; i < THREADS; i++) {
        pthread_join(w[i].thread, NULL);
        assert_int_equal(w[i].bad, 0);
        late += w[i].late;
    }
    print_message("%d calls were late\n", late);
    assert_true(late > 100);
    uint64_t t0 = kk_now_ns();
    while (stats(&g).calls_running && kk_seconds_since(t0) < 10) usleep(1000);
    assert_int_equal(stats(&g).calls_running, 0);
    use_one(g.client, 5);
    rig_close(&g);
}

static int64_t heap_bytes(void)
{
    struct mallinfo2 m = mallinfo2();
    return (int64_t)(m.uordblks + m.hblkhd);
}

static void *use_many(void *arg)
{
    struct storm *w = arg;
    struct kk_client *c = NULL;
    struct kk_err err = {0};
    for (int i = 0; i < w->calls; i++) {
        if (!c && kk_client_open(w->g->loop, &w->g->to, &c, &err)) w->bad++;
        use_one(c, 1 + (int)kk_test_below(&w->rng, 3));
        if (kk_test_below(&w->rng, 50)) continue;
        kk_client_close(c); /* another connection now and then */
        c = NULL;
    }
    kk_client_close(c);
    return NULL;
}

static void many(struct rig *g, int sessions, const char *name)
{
    enum { THREADS = 4 };
    struct storm w[THREADS];
    for (int i = 0; i < THREADS; i++) {
        char own[24];
        snprintf(own, sizeof own, "%s %d", name, i);
        w[i] = (struct storm){.g = g, .rng = kk_test_rng(own), .calls = sessions / THREADS};
        assert_int_equal(pthread_create(&w[i].thread, NULL, use_many, &w[i]), 0);
    }
    for (int i = 0; i < THREADS; i++) {
        pthread_join(w[i].thread, NULL);
        assert_int_equal(w[i].bad, 0);
    }
}

/* Sessions over gRPC, one after the other: the process holds no more than after a tenth of them. */
static void sessions_leave_nothing(void **state)
{
    const int n = is_soak() ? 100000 : 1000;
    struct rig g;
    (void)state;
    kk_fake.step_us = 5;
    rig_open(&g, 64, NULL);
    many(&g, n / 10 + 400, "warm");
    usleep(100000);
    const int64_t before = heap_bytes();
    many(&g, n, "many");
    usleep(100000);
    print_message("%d sessions: heap %+lld bytes\n", n, (long long)(heap_bytes() - before));
    assert_true(heap_bytes() - before < 2 << 20);
    assert_int_equal(stats(&g).sessions, 0);
    rig_close(&g);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(slow_handshakes), cmocka_unit_test(slow_tls),
        cmocka_unit_test(abandoned_sessions), cmocka_unit_test(deadline_storm),
        cmocka_unit_test(sessions_leave_nothing)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
