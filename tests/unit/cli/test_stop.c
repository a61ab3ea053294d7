/* Stop strings: the same cut however the text comes in pieces. */
#include "kk_test.h"

#include <stdio.h>

#include "cli/stop.h"

/* Feed text in random pieces; out is what comes through. Returns whether a stop string was hit. */
static int feed(struct kk_test_rng *r, const char *const *stops, int n, const char *text,
                struct kk_buf *out)
{
    struct kk_stop_filter s;
    size_t len = strlen(text), at = 0;
    kk_stop_init(&s, stops, n);
    kk_buf_reset(out);
    while (at < len) {
        size_t k = 1 + kk_test_below(r, 4);
        if (k > len - at) k = len - at;
        assert_int_equal(kk_stop_feed(&s, text + at, k, out), 0);
        at += k;
    }
    assert_int_equal(kk_stop_end(&s, out), 0);
    int hit = s.hit;
    kk_stop_release(&s);
    return hit;
}

static void test_cases(void **state)
{
    (void)state;
    static const struct {
        const char *stop[2], *text, *want;
        int n, hit;
    } cases[] = {
        {{"END", NULL}, "beginENDmore", "begin", 1, 1},
        {{"END", NULL}, "no such thing: EN", "no such thing: EN", 1, 0},
        {{"aab", NULL}, "aaaab", "aa", 1, 1},
        {{"xyz", "y"}, "axyzb", "ax", 2, 1},
        {{"b", "ab"}, "xabc", "x", 2, 1},
        {{"\n\n", "."}, "one\ntwo. three\n\n", "one\ntwo", 2, 1},
        {{NULL, NULL}, "all of it", "all of it", 0, 0},
        {{"a", NULL}, "abc", "", 1, 1},
    };
    struct kk_test_rng r = kk_test_rng("stop");
    struct kk_buf out;
    kk_buf_init(&out, 1 << 16);
    for (int round = 0; round < 200; round++)
        for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
            int hit = feed(&r, cases[i].stop, cases[i].n, cases[i].text, &out);
            assert_int_equal(hit, cases[i].hit);
            assert_string_equal(out.data ? out.data : "", cases[i].want);
        }
    kk_buf_release(&out);
}

/* Random texts over two letters against a search of the whole text. */
static void test_random(void **state)
{
    (void)state;
    struct kk_test_rng r = kk_test_rng("stop random");
    struct kk_buf out;
    kk_buf_init(&out, 1 << 16);
    for (int round = 0; round < 3000; round++) {
        char text[40], stop[6];
        size_t n = kk_test_below(&r, 39), m = 1 + kk_test_below(&r, 4);
        for (size_t i = 0; i < n; i++) text[i] = "ab"[kk_test_below(&r, 2)];
        for (size_t i = 0; i < m; i++) stop[i] = "ab"[kk_test_below(&r, 2)];
        text[n] = stop[m] = 0;
        const char *const stops[] = {stop};
        const char *at = strstr(text, stop);
        int hit = feed(&r, stops, 1, text, &out);
        assert_int_equal(hit, at != NULL);
        if (at) text[at - text] = 0;
        assert_string_equal(out.data ? out.data : "", text);
    }
    kk_buf_release(&out);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_cases), cmocka_unit_test(test_random)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
