/* The server over a runtime without a model: every call, every refusal, and clients of the worst
 * kind. kk-test: tsan */
#include "server_test.h"

#include <pthread.h>

#include "base/buf.h"
#include "serve/wire_int.h"

static void test_calls(void **state)
{
    struct rig g;
    struct kk_err err = {0};
    struct kk_event ev;
    char id[KK_SESSION_ID_MAX], other[KK_SESSION_ID_MAX], none[KK_SESSION_ID_MAX];
    (void)state;
    rig_open(&g, 8, NULL);
    make_session(g.client, id);
    assert_int_equal(strncmp(id, "sess-", 5), 0);

    struct stream s = {.sum = 6, .n = 3};
    struct kk_request r = generate_request(id, 50);
    r.sink = on_stream;
    r.arg = &s;
    KK_ASSERT_OK(ask(g.client, &r, &ev, none, &err), &err);
    assert_true(s.got == 50 && !s.wrong);
    assert_true(ev.tokens == 50 && ev.stop == KK_STOP_MAX_TOKENS && ev.seed == 42 &&
                ev.steps == 50);

    struct kk_request info = {.kind = KK_REQUEST_INFO, .session = id};
    KK_ASSERT_OK(ask(g.client, &info, &ev, none, &err), &err);
    assert_true(ev.history == 53 && ev.info.kv_device_bytes == 1000);
    assert_true(ev.info.kv_host_bytes == 5300 && ev.info.drafter_device_bytes == 10);

    struct kk_request fork = {.kind = KK_REQUEST_FORK, .session = id, .label = "twin"};
    KK_ASSERT_OK(ask(g.client, &fork, &ev, other, &err), &err);
    assert_true(ev.history == 53 && strcmp(id, other) != 0);
    struct kk_request empty = {.kind = KK_REQUEST_APPEND, .session = other};
    KK_ASSERT_OK(ask(g.client, &empty, &ev, none, &err), &err);
    assert_int_equal(ev.history, 53);

    struct kk_request close = {.kind = KK_REQUEST_CLOSE, .session = id};
    KK_ASSERT_OK(ask(g.client, &close, &ev, none, &err), &err);
    assert_int_equal(ev.history, 53);
    KK_ASSERT_FAILS(ask(g.client, &close, &ev, none, &err), KK_ENOENT, &err, "NOT_FOUND: no such");
    assert_int_equal(stats(&g).sessions, 1);
    rig_close(&g);
}

static void test_refusals(void **state)
{
    static const uint32_t out[] = {1, KK_FAKE_VOCABULARY}, fine[] = {1};
    static char label[KK_LABEL_MAX + 2];
    struct rig g;
    struct kk_err err = {0};
    struct kk_event ev;
    char id[KK_SESSION_ID_MAX], none[KK_SESSION_ID_MAX];
    (void)state;
    memset(label, 'x', KK_LABEL_MAX + 1);
    rig_open(&g, 1, NULL);
    make_session(g.client, id);
    const struct {
        struct kk_request r;
        float temperature, top_p;
        int code;
        const char *words;
    } cases[] = {
        {{.kind = KK_REQUEST_APPEND, .session = id, .ids = out, .n = 2},
         0,
         1,
         KK_EINVAL,
         "token_ids[1] is 5000, but the model's tokens are 0 to 4999"},
        {{.kind = KK_REQUEST_CREATE, .ids = out, .n = 2}, 0, 1, KK_EINVAL, "eos_token_ids[1]"},
        {{.kind = KK_REQUEST_CREATE, .label = label}, 0, 1, KK_EINVAL, "client_label has 257"},
        {{.kind = KK_REQUEST_CREATE, .label = "\xff"}, 0, 1, KK_EINVAL, "not UTF-8"},
        {{.kind = KK_REQUEST_CREATE}, 0, 1, KK_EEXHAUSTED, "RESOURCE_EXHAUSTED: all sessions"},
        {{.kind = KK_REQUEST_APPEND, .session = "", .ids = fine, .n = 1},
         0,
         1,
         KK_EINVAL,
         "session_id is empty"},
        {{.kind = KK_REQUEST_APPEND, .session = label, .ids = fine, .n = 1}, 0, 1, KK_ENOENT, ""},
        {{.kind = KK_REQUEST_INFO, .session = "sess-0"}, 0, 1, KK_ENOENT, "no such session"},
        {{.kind = KK_REQUEST_GENERATE, .session = id}, 0, 1, KK_EINVAL, "max_tokens is 0"},
        {generate_request(id, 1), -1, 1, KK_EINVAL, "temperature is -1: it can be 0 to 100"},
        {generate_request(id, 1), 0.0f / 0.0f, 1, KK_EINVAL, "temperature"},
        {generate_request(id, 1), 0, 1.5f, KK_EINVAL, "top_p is 1.5"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        struct kk_request r = cases[i].r;
        r.sampling.temperature = cases[i].temperature;
        r.sampling.top_p = cases[i].top_p;
        KK_ASSERT_FAILS(ask(g.client, &r, &ev, none, &err), cases[i].code, &err, cases[i].words);
    }
    struct kk_request r = generate_request(id, 1);
    KK_ASSERT_OK(ask(g.client, &r, &ev, none, &err), &err); /* nothing was touched */
    struct kk_request info = {.kind = KK_REQUEST_INFO, .session = id};
    KK_ASSERT_OK(ask(g.client, &info, &ev, none, &err), &err);
    assert_int_equal(ev.history, 4);
    rig_close(&g);
}

static void test_big_messages(void **state)
{
    static uint32_t ids[40000];
    struct rig g;
    struct kk_err err = {0};
    struct kk_event ev;
    char id[KK_SESSION_ID_MAX], none[KK_SESSION_ID_MAX];
    struct kk_server_options o = kk_server_defaults();
    (void)state;
    o.max_message = 65536;
    rig_open(&g, 8, &o);
    make_session(g.client, id);
    for (int i = 0; i < 40000; i++) ids[i] = 4000;
    struct kk_request r = {.kind = KK_REQUEST_APPEND, .session = id, .ids = ids, .n = 40000};
    KK_ASSERT_FAILS(ask(g.client, &r, &ev, none, &err), KK_EEXHAUSTED, &err, "RESOURCE_EXHAUSTED");
    r.n = 30000;
    KK_ASSERT_OK(ask(g.client, &r, &ev, none, &err), &err);
    assert_int_equal(ev.history, 30003);
    rig_close(&g);
}

/* A client that cancels, and one whose socket closes: the call stops, the session stays. */
static void test_leaving(void **state)
{
    struct rig g;
    struct kk_err err = {0};
    struct kk_event ev;
    char id[KK_SESSION_ID_MAX], none[KK_SESSION_ID_MAX];
    struct stream s = {.sum = 6, .n = 3};
    struct kk_client_call *call;
    (void)state;
    rig_open(&g, 8, NULL);
    make_session(g.client, id);
    struct kk_request r = generate_request(id, 1000000);
    r.sink = on_stream;
    r.arg = &s;
    KK_ASSERT_OK(kk_client_call(g.client, &r, 0, &call, &err), &err);
    wait_for(&s.got, 5);
    kk_client_cancel(call);
    wait_for(&s.done, 1);
    assert_int_equal(s.code, KK_ECANCELLED);
    kk_client_release(call);
    while (stats(&g).calls_running) usleep(1000);

    int fd = h2_dial(kk_server_port(g.server), 65535);
    struct kk_buf b;
    kk_buf_init(&b, 1000);
    r = generate_request(id, 1000000);
    KK_ASSERT_OK(kk_wire_write_request(&r, &b, &err), &err);
    h2_call(fd, 1, kk_wire_path(r.kind));
    h2_message(fd, 1, b.data, b.len);
    kk_buf_release(&b);
    while (stats(&g).calls_running == 0) usleep(1000);
    close(fd);
    uint64_t t0 = kk_now_ns();
    while (stats(&g).calls_cancelled < 2 && kk_seconds_since(t0) < 10) usleep(1000);
    assert_int_equal(stats(&g).calls_cancelled, 2);

    struct kk_request info = {.kind = KK_REQUEST_INFO, .session = id};
    KK_ASSERT_OK(ask(g.client, &info, &ev, none, &err), &err);
    assert_true(ev.history >= 8 && ev.history < 1000000);
    r = generate_request(id, 3);
    KK_ASSERT_OK(ask(g.client, &r, &ev, none, &err), &err);
    rig_close(&g);
}

/* A client that takes a few tokens and reads no more: its call leaves the batch after a bounded
 * number of tokens, others go on, and when it reads again it gets every token. */
static void test_not_reading(void **state)
{
    struct rig g;
    struct kk_err err = {0};
    struct kk_event ev;
    char slow[KK_SESSION_ID_MAX], fast[KK_SESSION_ID_MAX], none[KK_SESSION_ID_MAX];
    const unsigned char more[4] = {0, 0x7f, 0, 0};
    struct kk_buf b;
    (void)state;
    kk_fake.step_tokens = 16;
    rig_open(&g, 8, NULL);
    make_session(g.client, slow);
    make_session(g.client, fast);
    int fd = h2_dial(kk_server_port(g.server), 200);
    kk_buf_init(&b, 1000);
    struct kk_request r = generate_request(slow, 20000);
    KK_ASSERT_OK(kk_wire_write_request(&r, &b, &err), &err);
    h2_call(fd, 1, kk_wire_path(r.kind));
    h2_message(fd, 1, b.data, b.len);
    kk_buf_release(&b);

    uint64_t before = 0, now = 1, t0 = kk_now_ns();
    while (now != before && kk_seconds_since(t0) < 10) {
        before = now;
        usleep(100000);
        now = stats(&g).tokens_generated;
    }
    assert_true(now >= 1024 && now < 4000);
    struct stream s = {.sum = 6, .n = 3};
    r = generate_request(fast, 3000);
    r.sink = on_stream;
    r.arg = &s;
    KK_ASSERT_OK(ask(g.client, &r, &ev, none, &err), &err);
    assert_true(s.got == 3000 && !s.wrong);
    assert_true(stats(&g).tokens_generated - now == 3000);

    h2_frame(fd, 8, 0, 1, more, 4); /* windows of the stream and of the connection */
    h2_frame(fd, 8, 0, 0, more, 4);
    t0 = kk_now_ns();
    char sink[4096];
    while (stats(&g).calls_running && kk_seconds_since(t0) < 20)
        if (recv(fd, sink, sizeof sink, MSG_DONTWAIT) <= 0) usleep(500);
    assert_int_equal(stats(&g).tokens_generated, 23000);
    assert_int_equal(stats(&g).calls_cancelled, 0);
    close(fd);
    kk_fake.step_tokens = 1;
    rig_close(&g);
}

static void test_garbage(void **state)
{
    struct rig g;
    struct kk_test_rng rng = kk_test_rng("garbage");
    char id[KK_SESSION_ID_MAX];
    (void)state;
    rig_open(&g, 8, NULL);
    for (int i = 0; i < 60; i++) {
        unsigned char junk[600];
        int fd = i % 3 ? h2_dial(kk_server_port(g.server), 65535) : dial(kk_server_port(g.server));
        if (i % 3 == 2) { /* a call with a request that is none */
            h2_call(fd, 1, kk_wire_path((enum kk_request_kind)(i % KK_WIRE_KINDS)));
            for (int k = 0; k < 300; k++) junk[k] = (unsigned char)kk_test_u64(&rng);
            h2_message(fd, 1, junk, kk_test_below(&rng, 300));
        } else {
            for (int k = 0; k < 600; k++) junk[k] = (unsigned char)kk_test_u64(&rng);
            if (i % 2) memcpy(junk, "\0\0\x10\0\0", 5);
            send(fd, junk, kk_test_below(&rng, 600), MSG_NOSIGNAL);
        }
        if (i % 4 == 0) usleep(2000);
        close(fd);
    }
    make_session(g.client, id);
    rig_close(&g);
}

/* Calls that never bring their request are cut off. */
static void test_no_request(void **state)
{
    struct rig g;
    struct kk_server_options o = kk_server_defaults();
    char answer[4096];
    (void)state;
    o.request_s = .2;
    rig_open(&g, 8, &o);
    int fd = h2_dial(kk_server_port(g.server), 65535);
    h2_call(fd, 1, kk_wire_path(KK_REQUEST_CREATE));
    uint64_t t0 = kk_now_ns();
    int found = 0;
    size_t have = 0;
    while (!found && kk_seconds_since(t0) < 10 && have < sizeof answer) {
        ssize_t n = recv(fd, answer + have, sizeof answer - have, MSG_DONTWAIT);
        if (n > 0) have += (size_t)n;
        found = memmem(answer, have, "did not come in time", 20) != NULL;
        usleep(1000);
    }
    assert_true(found);
    close(fd);
    rig_close(&g);
}

/* Many calls with deadlines around the time they take. */
static void test_deadlines(void **state)
{
    enum { N = 120 };
    static struct stream s[N];
    struct kk_client_call *calls[N];
    struct rig g;
    struct kk_err err = {0};
    char id[N][KK_SESSION_ID_MAX];
    int late = 0;
    (void)state;
    rig_open(&g, N, NULL);
    for (int i = 0; i < N; i++) make_session(g.client, id[i]);
    for (int i = 0; i < N; i++) {
        s[i] = (struct stream){.sum = 6, .n = 3};
        struct kk_request r = generate_request(id[i], 60);
        r.sink = on_stream;
        r.arg = &s[i];
        KK_ASSERT_OK(kk_client_call(g.client, &r, .0001 + .001 * i, &calls[i], &err), &err);
    }
    for (int i = 0; i < N; i++) {
        wait_for(&s[i].done, 1);
        if (s[i].code) {
            assert_int_equal(s[i].code, KK_ETIMEOUT);
            late++;
        }
        assert_int_equal(s[i].wrong, 0);
        kk_client_release(calls[i]);
    }
    assert_true(late > 0);
    char again[KK_SESSION_ID_MAX];
    struct kk_event ev;
    struct kk_request r = generate_request(id[N - 1], 5);
    KK_ASSERT_OK(ask(g.client, &r, &ev, again, &err), &err);
    rig_close(&g);
}

/* Clients that create sessions and leave before the answer: the session is closed again. */
static void test_abandoned(void **state)
{
    enum { N = 200 };
    struct rig g;
    struct kk_err err = {0};
    struct stream s = {0};
    (void)state;
    kk_fake.creates_anyway = 1;
    kk_fake.step_us = 3000;
    rig_open(&g, 10000, NULL);
    for (int i = 0; i < N; i++) {
        struct kk_client_call *call;
        struct kk_request r = {.kind = KK_REQUEST_CREATE, .sink = on_stream, .arg = &s};
        KK_ASSERT_OK(kk_client_call(g.client, &r, 5, &call, &err), &err);
        usleep(300);
        kk_client_cancel(call);
        kk_client_release(call);
    }
    wait_for(&s.done, N);
    uint64_t t0 = kk_now_ns();
    while ((stats(&g).calls_running || stats(&g).sessions) && kk_seconds_since(t0) < 5)
        usleep(1000);
    struct kk_runtime_stats st = stats(&g);
    assert_true(st.created > 0);
    /* an answer that was on its way when its client left counts as given */
    assert_true(st.sessions <= st.created / 2);
    kk_fake.creates_anyway = 0;
    kk_fake.step_us = 200;
    rig_close(&g);
}

static void test_one_port(void **state)
{
    struct rig g;
    struct kk_server *second = NULL;
    struct kk_err err = {0};
    struct kk_server_options o = kk_server_defaults();
    (void)state;
    rig_open(&g, 8, NULL);
    o.address = g.address;
    KK_ASSERT_FAILS(kk_server_open(&o, &second, &err), KK_EIO, &err, "cannot listen on 127");
    o.address = "nowhere";
    KK_ASSERT_FAILS(kk_server_open(&o, &second, &err), KK_EINVAL, &err, "is no HOST:PORT");
    o.address = "127.0.0.1:0";
    KK_ASSERT_OK(kk_server_open(&o, &second, &err), &err);
    kk_server_close(second); /* without ever having started */
    rig_close(&g);
}

/* ---- drain --------------------------------------------------------------------------------- */

static void *drain(void *arg)
{
    struct rig *g = arg;
    kk_server_drain(g->server, .6);
    return NULL;
}

/* While calls run: the short ones end well, the long ones are cancelled when time is up. */
static void test_drain(void **state)
{
    enum { N = 24 };
    static struct stream s[N];
    struct kk_client_call *calls[N];
    struct rig g;
    struct kk_err err = {0};
    char id[N][KK_SESSION_ID_MAX];
    pthread_t thread;
    (void)state;
    rig_open(&g, N, NULL);
    for (int i = 0; i < N; i++) make_session(g.client, id[i]);
    for (int i = 0; i < N; i++) {
        s[i] = (struct stream){.sum = 6, .n = 3};
        struct kk_request r = generate_request(id[i], i % 2 ? 100 : 10000000);
        r.sink = on_stream;
        r.arg = &s[i];
        KK_ASSERT_OK(kk_client_call(g.client, &r, 0, &calls[i], &err), &err);
    }
    for (int i = 0; i < N; i++) wait_for(&s[i].got, 1);
    assert_int_equal(pthread_create(&thread, NULL, drain, &g), 0);
    for (int i = 0; i < N; i++) {
        wait_for(&s[i].done, 1);
        assert_true(i % 2 ? !s[i].code && s[i].got == 100 : s[i].code != 0);
        assert_int_equal(s[i].wrong, 0);
        kk_client_release(calls[i]);
    }
    pthread_join(thread, NULL);
    assert_false(kk_rpc_ready(g.rpc));
    rig_close(&g);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_calls),        cmocka_unit_test(test_refusals),
        cmocka_unit_test(test_big_messages), cmocka_unit_test(test_leaving),
        cmocka_unit_test(test_not_reading),  cmocka_unit_test(test_garbage),
        cmocka_unit_test(test_no_request),   cmocka_unit_test(test_deadlines),
        cmocka_unit_test(test_abandoned),    cmocka_unit_test(test_one_port),
        cmocka_unit_test(test_drain),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
