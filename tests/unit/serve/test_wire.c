/* The messages: what is written is read back, and bytes from anywhere are refused in words. */
#include "kk_test.h"

#include "serve/wire_int.h"

static struct kk_buf written(const struct kk_request *r)
{
    struct kk_err err = {0};
    struct kk_buf b;
    kk_buf_init(&b, 1 << 20);
    KK_ASSERT_OK(kk_wire_write_request(r, &b, &err), &err);
    return b;
}

static void test_paths(void **state)
{
    (void)state;
    for (int k = 0; k < KK_WIRE_KINDS; k++) {
        const char *p = kk_wire_path((enum kk_request_kind)k);
        assert_int_equal(kk_wire_kind(p, strlen(p)), k);
        assert_int_equal(kk_wire_kind(p, strlen(p) - 1), -1);
    }
    assert_int_equal(kk_wire_kind("", 0), -1);
    assert_string_equal(kk_wire_path(KK_REQUEST_GENERATE), "/kakeya.v1.RuntimeService/Generate");
}

static void test_requests(void **state)
{
    const uint32_t ids[] = {0, 1, 127, 128, 262143, UINT32_MAX};
    struct kk_err err = {0};
    struct kk_wire_request got;
    (void)state;
    for (int k = 0; k < KK_WIRE_KINDS; k++) {
        struct kk_request r = {
            .kind = (enum kk_request_kind)k, .session = "sess-1", .label = "é🙂"};
        r.sampling = (struct kk_sampling){.5f, 3, .25f, .125f, 1.5f, 7, UINT64_MAX, 1};
        r.max_tokens = UINT32_MAX;
        r.ids = ids;
        r.n = 6;
        struct kk_buf b = written(&r);
        KK_ASSERT_OK(kk_wire_read_request(r.kind, b.data, b.len, &got, &err), &err);
        if (k != KK_REQUEST_CREATE) assert_string_equal(got.req.session, "sess-1");
        if (k == KK_REQUEST_CREATE || k == KK_REQUEST_FORK)
            assert_string_equal(got.req.label, r.label);
        if (k == KK_REQUEST_CREATE || k == KK_REQUEST_APPEND) {
            assert_int_equal(got.req.n, 6);
            assert_memory_equal(got.req.ids, ids, sizeof ids);
        }
        if (k == KK_REQUEST_GENERATE) {
            assert_memory_equal(&got.req.sampling, &r.sampling, sizeof r.sampling);
            assert_int_equal(got.req.max_tokens, UINT32_MAX);
            assert_false(got.req.seed_unset);
        }
        kk_wire_request_release(&got);
        kk_buf_release(&b);
    }
    struct kk_request big = {.kind = KK_REQUEST_GENERATE, .max_tokens = (int64_t)UINT32_MAX + 1};
    struct kk_buf b;
    kk_buf_init(&b, 100);
    KK_ASSERT_FAILS(kk_wire_write_request(&big, &b, &err), KK_EINVAL, &err, "no place");
}

/* Unset is not zero: the bytes of the reference's client, which leaves out what was not given. */
static void test_presence(void **state)
{
    static const unsigned char bare[] = {0x0a, 2, 's', '1', 0x10, 5};
    static const unsigned char zeros[] = {0x0a, 2, 's', '1', 0x10, 5, 0x18, 0,    0x25,
                                          0,    0, 0,   0,   0x2d, 0, 0,    0x80, 0x3f};
    struct kk_err err = {0};
    struct kk_wire_request got;
    (void)state;
    KK_ASSERT_OK(kk_wire_read_request(KK_REQUEST_GENERATE, bare, sizeof bare, &got, &err), &err);
    struct kk_sampling d = kk_sampling_defaults();
    assert_true(got.req.seed_unset);
    assert_memory_equal(&got.req.sampling, &d, sizeof d);
    assert_int_equal(got.req.max_tokens, 5);
    kk_wire_request_release(&got);
    KK_ASSERT_OK(kk_wire_read_request(KK_REQUEST_GENERATE, zeros, sizeof zeros, &got, &err), &err);
    assert_false(got.req.seed_unset);
    assert_true(got.req.sampling.top_p == 1 && got.req.sampling.temperature == 0);
    kk_wire_request_release(&got);
    KK_ASSERT_OK(kk_wire_read_request(KK_REQUEST_CREATE, NULL, 0, &got, &err), &err);
    assert_string_equal(got.req.label, "");
    kk_wire_request_release(&got);
}

static void test_text(void **state)
{
    static const char *const bad[] = {"\xff",         "a\x80",    "\xc0\x80",     "\xed\xa0\x80",
                                      "\xf4\x90\x80", "\xe2\x82", "\xf0\x80\x80", "\xc3"};
    struct kk_err err = {0};
    struct kk_wire_request got;
    (void)state;
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        struct kk_request r = {.kind = KK_REQUEST_CREATE, .label = bad[i]};
        struct kk_buf b = written(&r);
        KK_ASSERT_FAILS(kk_wire_read_request(r.kind, b.data, b.len, &got, &err), KK_EINVAL, &err,
                        "client_label is not UTF-8");
        kk_buf_release(&b);
    }
    static const unsigned char nul[] = {0x0a, 3, 's', 0, '1'};
    KK_ASSERT_FAILS(kk_wire_read_request(KK_REQUEST_CLOSE, nul, sizeof nul, &got, &err), KK_EINVAL,
                    &err, "session_id is not UTF-8");
}

static void test_replies(void **state)
{
    unsigned char out[KK_WIRE_REPLY_MAX];
    struct kk_wire_reply got;
    struct kk_err err = {0};
    struct kk_event ev = {.kind = KK_EVENT_DONE,
                          .session = "sess-0123456789abcdef0123456789abcdef",
                          .history = UINT64_MAX,
                          .stop = KK_STOP_CTX,
                          .tokens = UINT32_MAX,
                          .steps = INT64_MAX,
                          .drafted = INT64_MAX,
                          .accepted = INT64_MAX,
                          .seed = UINT64_MAX,
                          .queued_s = 1e300,
                          .prefill_s = .5,
                          .total_s = 2,
                          .idle_s = 3,
                          .inv1_violations = UINT64_MAX,
                          .inv2_violations = UINT64_MAX};
    ev.info =
        (struct kk_session_info){1, 2, 3, 1LL << 60, 1LL << 60, 1LL << 60, 1LL << 60, 1LL << 60, 9};
    (void)state;
    for (int k = 0; k < KK_WIRE_KINDS; k++) {
        enum kk_request_kind kind = (enum kk_request_kind)k;
        size_t n = kk_wire_write_done(kind, &ev, out);
        KK_ASSERT_OK(kk_wire_read_reply(kind, out, n, &got, &err), &err);
        assert_int_equal(got.ev.kind, KK_EVENT_DONE);
        if (k == KK_REQUEST_CREATE || k == KK_REQUEST_FORK)
            assert_string_equal(got.ev.session, ev.session);
        if (k != KK_REQUEST_CREATE && k != KK_REQUEST_GENERATE)
            assert_true(got.ev.history == UINT64_MAX);
        if (k == KK_REQUEST_GENERATE) {
            assert_true(got.ev.stop == KK_STOP_CTX && got.ev.tokens == UINT32_MAX);
            assert_true(got.ev.seed == ev.seed && got.ev.queued_s == 1e300);
        }
        if (k == KK_REQUEST_INFO) assert_true(got.ev.info.kv_host_bytes == 1LL << 60);
    }
    size_t n = kk_wire_write_token(0, out);
    KK_ASSERT_OK(kk_wire_read_reply(KK_REQUEST_GENERATE, out, n, &got, &err), &err);
    assert_true(n == 2 && got.ev.kind == KK_EVENT_TOKENS && got.ev.n == 1 && got.ev.ids[0] == 0);
    n = kk_wire_write_truncated(77, out);
    KK_ASSERT_OK(kk_wire_read_reply(KK_REQUEST_GENERATE, out, n, &got, &err), &err);
    assert_true(got.ev.kind == KK_EVENT_TRUNCATED && got.ev.dropped == 77);
}

/* Random bytes, and messages with bytes changed, cut and added: parsed or refused, never worse. */
static void test_garbage(void **state)
{
    struct kk_test_rng rng = kk_test_rng("wire");
    const uint32_t ids[] = {1, 300, 70000};
    int refused = 0, taken = 0;
    (void)state;
    for (int i = 0; i < 20000; i++) {
        unsigned char data[200];
        enum kk_request_kind kind = (enum kk_request_kind)kk_test_below(&rng, KK_WIRE_KINDS);
        struct kk_request r = {.kind = kind, .session = "sess-1", .label = "x", .ids = ids, .n = 3};
        struct kk_buf b = written(&r);
        size_t n = b.len;
        memcpy(data, b.data, n);
        kk_buf_release(&b);
        if (i % 4 == 0) n = kk_test_below(&rng, sizeof data);
        for (int k = kk_test_between(&rng, 0, i % 4 ? 4 : (int)n); k > 0 && n; k--)
            data[kk_test_below(&rng, (uint32_t)n)] = (unsigned char)kk_test_u64(&rng);
        if (n) n -= kk_test_below(&rng, 2);
        struct kk_err err = {0};
        struct kk_wire_request got;
        struct kk_wire_reply reply;
        int rc = kk_wire_read_request(kind, data, n, &got, &err);
        assert_true(rc == 0 || (rc == KK_EINVAL && *err.msg));
        rc ? refused++ : taken++;
        kk_wire_request_release(&got);
        rc = kk_wire_read_reply(kind, data, n, &reply, &err);
        assert_true(rc == 0 || rc == KK_EINVAL);
    }
    assert_true(refused > 1000 && taken > 1000);
}

static void test_health(void **state)
{
    static const char ours[] = "\x0a\x18kakeya.v1.RuntimeService", other[] = "\x0a\x01x";
    unsigned char out[KK_WIRE_REPLY_MAX];
    struct kk_err err = {0};
    (void)state;
    assert_int_equal(kk_wire_read_health(NULL, 0, &err), 1);
    assert_int_equal(kk_wire_read_health(ours, sizeof ours - 1, &err), 1);
    assert_int_equal(kk_wire_read_health(other, sizeof other - 1, &err), 0);
    assert_int_equal(kk_wire_read_health("\x0a", 1, &err), KK_EINVAL);
    assert_int_equal(kk_wire_write_health(KK_HEALTH_SERVING, out), 2);
    assert_memory_equal(out, "\x08\x01", 2);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_paths),    cmocka_unit_test(test_requests),
        cmocka_unit_test(test_presence), cmocka_unit_test(test_text),
        cmocka_unit_test(test_replies),  cmocka_unit_test(test_garbage),
        cmocka_unit_test(test_health),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
