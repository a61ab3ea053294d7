/* Clients of every kind at once, at random: well-behaved ones, and ones that cancel, run out of
 * time, vanish, or send junk. The good ones get every token; in the end nothing is left over.
 * kk-test: tsan. kk-test: soak */
#include "server_test.h"

#include <pthread.h>
#include <stdlib.h>

#include "base/buf.h"
#include "serve/wire_int.h"

enum { WORKERS = 4 };

struct worker {
    struct rig *g;
    struct kk_client *client;
    struct kk_test_rng rng;
    uint64_t until_ns;
    int rounds, bad; /* bad: what a good client must not see */
};

/* A session as it should be, with every token. */
static void behave(struct worker *w)
{
    struct kk_err err = {0};
    struct kk_event ev;
    char id[KK_SESSION_ID_MAX], none[KK_SESSION_ID_MAX];
    static const uint32_t ids[] = {1, 2, 3};
    struct stream s = {.sum = 6, .n = 3};
    struct kk_request r = {.kind = KK_REQUEST_CREATE};
    int rc = ask(w->client, &r, &ev, id, &err), n = kk_test_between(&w->rng, 1, 40);
    r = (struct kk_request){.kind = KK_REQUEST_APPEND, .session = id, .ids = ids, .n = 3};
    if (!rc) rc = ask(w->client, &r, &ev, none, &err);
    for (int turn = 0; !rc && turn < 2; turn++) {
        r = generate_request(id, n);
        r.sink = on_stream;
        r.arg = &s;
        rc = ask(w->client, &r, &ev, none, &err);
    }
    r = (struct kk_request){.kind = KK_REQUEST_CLOSE, .session = id};
    if (!rc) rc = ask(w->client, &r, &ev, none, &err);
    if (rc || s.wrong || s.got != 2 * n || ev.history != 3u + 2 * (unsigned)n) {
        print_message("%s, %d of %d tokens, %d wrong\n", err.msg, s.got, 2 * n, s.wrong);
        w->bad++;
    }
}

/* A generation that ends early: cancelled, or by its deadline. */
static void leave(struct worker *w, int cancel)
{
    struct kk_err err = {0};
    struct kk_event ev;
    char id[KK_SESSION_ID_MAX], none[KK_SESSION_ID_MAX];
    struct kk_client_call *call;
    struct stream s = {.sum = 6, .n = 3};
    struct kk_request r = {.kind = KK_REQUEST_CREATE};
    uint32_t ids[] = {1, 2, 3};
    double timeout = cancel ? 20 : (double)kk_test_uniform(&w->rng, .0005f, .02f);
    if (ask(w->client, &r, &ev, id, &err)) {
        w->bad++;
        return;
    }
    r = (struct kk_request){.kind = KK_REQUEST_APPEND, .session = id, .ids = ids, .n = 3};
    if (ask(w->client, &r, &ev, none, &err)) w->bad++;
    r = generate_request(id, 1000000);
    r.sink = on_stream;
    r.arg = &s;
    if (kk_client_call(w->client, &r, timeout, &call, &err)) {
        w->bad++;
        return;
    }
    if (cancel) {
        usleep(kk_test_below(&w->rng, 5000));
        kk_client_cancel(call);
    }
    while (!s.done) usleep(200);
    if (s.wrong || s.code != (cancel ? KK_ECANCELLED : KK_ETIMEOUT)) w->bad++;
    kk_client_release(call);
    r = (struct kk_request){.kind = KK_REQUEST_CLOSE, .session = id};
    if (ask(w->client, &r, &ev, none, &err)) w->bad++;
}

/* A socket that closes in the middle of something. */
static void vanish(struct worker *w)
{
    unsigned char junk[200];
    struct kk_buf b;
    int fd = h2_dial(kk_server_port(w->g->server), kk_test_below(&w->rng, 3000));
    enum kk_request_kind kind = (enum kk_request_kind)kk_test_below(&w->rng, KK_WIRE_KINDS);
    struct kk_request r = generate_request("sess-0", 1000);
    r.kind = kind == KK_REQUEST_CREATE ? KK_REQUEST_INFO : kind;
    kk_buf_init(&b, 1000);
    kk_wire_write_request(&r, &b, NULL);
    h2_call(fd, 1, kk_wire_path(r.kind));
    int way = (int)kk_test_below(&w->rng, 3);
    for (size_t i = 0; i < sizeof junk; i++) junk[i] = (unsigned char)kk_test_u64(&w->rng);
    if (way == 0) h2_message(fd, 1, b.data, b.len);
    if (way == 1) send(fd, junk, sizeof junk, MSG_NOSIGNAL);
    if (kk_test_below(&w->rng, 2)) usleep(kk_test_below(&w->rng, 2000));
    kk_buf_release(&b);
    close(fd);
}

static void *work(void *arg)
{
    struct worker *w = arg;
    while (kk_now_ns() < w->until_ns) {
        switch (kk_test_below(&w->rng, 5)) {
        case 0:
            leave(w, 1);
            break;
        case 1:
            leave(w, 0);
            break;
        case 2:
            vanish(w);
            break;
        default:
            behave(w);
        }
        w->rounds++;
    }
    return NULL;
}

static void test_storm(void **state)
{
    const char *soak = getenv("KK_SOAK");
    double seconds = soak ? strtod(soak, NULL) : 1.5;
    struct worker w[WORKERS];
    pthread_t thread[WORKERS];
    struct rig g;
    struct kk_err err = {0};
    char name[16];
    int rounds = 0;
    (void)state;
    kk_fake.step_us = 50;
    rig_open(&g, 64, NULL);
    for (int i = 0; i < WORKERS; i++) {
        snprintf(name, sizeof name, "storm %d", i);
        w[i] = (struct worker){.g = &g, .rng = kk_test_rng(name)};
        w[i].until_ns = kk_now_ns() + (uint64_t)(seconds * 1e9);
        KK_ASSERT_OK(kk_client_open(g.loop, &g.to, &w[i].client, &err), &err);
    }
    for (int i = 0; i < WORKERS; i++)
        assert_int_equal(pthread_create(&thread[i], NULL, work, &w[i]), 0);
    for (int i = 0; i < WORKERS; i++) {
        pthread_join(thread[i], NULL);
        kk_client_close(w[i].client);
        assert_int_equal(w[i].bad, 0);
        rounds += w[i].rounds;
    }
    uint64_t t0 = kk_now_ns();
    while ((stats(&g).calls_running || stats(&g).sessions) && kk_seconds_since(t0) < 10)
        usleep(1000);
    assert_int_equal(stats(&g).calls_running, 0);
    assert_int_equal(stats(&g).sessions, 0);
    print_message("%d rounds\n", rounds);
    assert_true(rounds > 20);
    rig_close(&g);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_storm)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
