/* The values wanted come from the reference's generator (Python). */
#include "kk_test.h"

#include <stdio.h>

#include "cli/niah.h"

struct want {
    const char *answer;
    int at, lines, len;
    const char *sha256;
};

static void compare(uint64_t seed, int lines_min, int lines_max, const struct want *w, int n)
{
    struct kk_niah g;
    struct kk_niah_sample s;
    struct kk_err err = {0};
    struct kk_buf b;
    char hex[65];
    kk_buf_init(&b, 1 << 20);
    struct kk_niah_opts o = {seed, lines_min, lines_max, 0};
    KK_ASSERT_OK(kk_niah_start(&g, &o, &err), &err);
    for (int i = 0; i < n; i++) {
        KK_ASSERT_OK(kk_niah_next(&g, &b, &s, &err), &err);
        assert_string_equal(s.answer, w[i].answer);
        assert_int_equal(s.insert_at, w[i].at);
        assert_int_equal(s.lines, w[i].lines);
        if (!w[i].sha256) continue;
        assert_int_equal(b.len, w[i].len);
        kk_test_sha256(b.data, b.len, hex);
        assert_string_equal(hex, w[i].sha256);
    }
    kk_buf_release(&b);
}

static void test_60_lines(void **state)
{
    (void)state;
    static const struct want w[] = {
        {"MAPLE-7890", 6, 60, 4886,
         "a44c33e6b20aa404105ed5853a717e7578f10cad3e0459f79ae194fe3b84e09e"},
        {"IOTA-8961", 29, 60, 4885,
         "53d956315c2249b21cba5c1854b597b89487422231e2f2103737a9751da26ca2"},
        {"THETA-6866", 41, 60, 4886,
         "7a003a98f6d314b9cad1390f63a542efcd50cd505b27432582e25c6c34c0a148"},
        {"IOTA-3281", 22, 60, 0, NULL},
        {"MAPLE-2553", 43, 60, 0, NULL},
        {"BIRCH-9725", 49, 60, 0, NULL},
        {"EPSILON-2618", 50, 60, 0, NULL},
        {"BIRCH-6409", 34, 60, 0, NULL},
    };
    compare(0, 60, 60, w, 8);
}

static void test_160_lines(void **state)
{
    (void)state;
    static const struct want w[] = {
        {"MAPLE-7890", 14, 160, 12886,
         "771cf6f385dbab12cabde3647f8b7e0adebea164773b0b2c21254de6a21e52d0"},
        {"IOTA-8961", 107, 160, 12885,
         "b2cc02357dd0469096f00467c207932047c5facec079a0ff8f78a549c1f124ef"},
        {"THETA-6866", 153, 160, 0, NULL},
        {"IOTA-3281", 76, 160, 0, NULL},
    };
    compare(0, 160, 160, w, 4);
}

static void test_320_lines(void **state)
{
    (void)state;
    static const struct want w[] = {{"MAPLE-7890", 24, 320, 0, NULL},
                                    {"IOTA-8961", 211, 320, 0, NULL},
                                    {"THETA-6866", 302, 320, 0, NULL}};
    compare(0, 320, 320, w, 3);
}

static void test_a_range_of_lines(void **state)
{
    (void)state;
    static const struct want w[] = {
        {"BETA-1409", 144, 319, 25605,
         "b6e9a907086fec7bfdc7314536e0203b1e3e6ad4383a9b669669498fe642252e"},
        {"DELTA-3286", 56, 269, 21606,
         "4b02a02a08587ad53f92d3cbe865ea457cbc8a91e387cc75a6ad5bf5ad0c4a58"},
        {"BETA-7912", 20, 307, 24645,
         "c11020ce572014fe03656f82630f953e868ffe1ff288201941165800fa880fd9"},
        {"BETA-4582", 63, 241, 0, NULL},
        {"KAPPA-1434", 291, 302, 0, NULL},
    };
    compare(42, 238, 322, w, 5);
}

static int occurrences(const char *text, const char *what)
{
    int n = 0;
    for (; (text = strstr(text, what)); text++) n++;
    return n;
}

/* Of every keyed document: the facts are all there, the answer once, at the line it is said to be.
 */
static void test_keyed(void **state)
{
    (void)state;
    struct kk_test_rng r = kk_test_rng("keyed");
    struct kk_err err = {0};
    struct kk_buf b;
    kk_buf_init(&b, 1 << 22);
    for (int round = 0; round < 60; round++) {
        struct kk_niah g;
        struct kk_niah_sample s;
        int keys = round == 0 ? KK_NIAH_MAX_KEYS : kk_test_between(&r, 1, 60);
        int lines = kk_test_between(&r, 10, 300);
        struct kk_niah_opts o = {kk_test_u64(&r), lines, lines + 20, keys};
        KK_ASSERT_OK(kk_niah_start(&g, &o, &err), &err);
        KK_ASSERT_OK(kk_niah_next(&g, &b, &s, &err), &err);
        assert_in_range(s.lines, lines, lines + 20);
        assert_int_equal(occurrences(b.data, "\nIMPORTANT: the secret code for "), keys);
        assert_int_equal(occurrences(b.data, "\n "), s.lines);
        assert_int_equal(occurrences(b.data, s.answer), 1);
        char fact[128], tail[128];
        snprintf(fact, sizeof fact, "\nIMPORTANT: the secret code for %s is %s.", s.word, s.answer);
        snprintf(tail, sizeof tail, "\nQuestion: what is the secret code for %s? Answer:", s.word);
        assert_string_equal(b.data + b.len - strlen(tail), tail);
        char *at = strstr(b.data, fact);
        assert_non_null(at);
        *at = 0;
        assert_int_equal(occurrences(b.data, "\n "), s.insert_at);
    }
    kk_buf_release(&b);
}

/* The keyed documents are part of our figures: they must not change unnoticed. */
static void test_keyed_is_fixed(void **state)
{
    (void)state;
    struct kk_niah g;
    struct kk_niah_sample s;
    struct kk_err err = {0};
    struct kk_buf b;
    char hex[65];
    kk_buf_init(&b, 1 << 22);
    struct kk_niah_opts o = {7, 40, 60, 12};
    KK_ASSERT_OK(kk_niah_start(&g, &o, &err), &err);
    for (int i = 0; i < 3; i++) KK_ASSERT_OK(kk_niah_next(&g, &b, &s, &err), &err);
    kk_test_sha256(b.data, b.len, hex);
    assert_string_equal(hex, "3ea275184208895edaf8ba44c25632eb2214565e93832a04a7ae57815298eaa1");
    kk_buf_release(&b);
}

static void test_bad_options(void **state)
{
    (void)state;
    struct kk_niah g;
    struct kk_err err = {0};
    struct kk_niah_opts few = {0, 9, 20, 0}, crossed = {0, 30, 20, 0}, many = {0, 20, 20, 201};
    KK_ASSERT_FAILS(kk_niah_start(&g, &few, &err), KK_EINVAL, &err, "10 to");
    KK_ASSERT_FAILS(kk_niah_start(&g, &crossed, &err), KK_EINVAL, &err, "more than");
    KK_ASSERT_FAILS(kk_niah_start(&g, &many, &err), KK_EINVAL, &err, "201");
}

static void test_ceiling(void **state)
{
    (void)state;
    struct kk_niah g;
    struct kk_niah_sample s;
    struct kk_err err = {0};
    struct kk_buf b;
    kk_buf_init(&b, 1000);
    struct kk_niah_opts o = {0, 60, 60, 0};
    KK_ASSERT_OK(kk_niah_start(&g, &o, &err), &err);
    KK_ASSERT_FAILS(kk_niah_next(&g, &b, &s, &err), KK_ERANGE, &err, "60 lines");
    kk_buf_release(&b);
}

static void test_scores(void **state)
{
    (void)state;
    struct kk_niah_sample s = {.answer = "OAK-1234"};
    assert_true(kk_niah_hit(&s, "is OAK-1234 or so"));
    assert_false(kk_niah_hit(&s, "oak-1234"));
    assert_true(kk_niah_exact(&s, " OAK-1234"));
    assert_true(kk_niah_exact(&s, " OAK-1234 \nQuestion"));
    assert_false(kk_niah_exact(&s, " OAK-1234."));
    assert_false(kk_niah_exact(&s, " OAK-12345"));
    assert_false(kk_niah_exact(&s, "the OAK-1234"));
    assert_false(kk_niah_exact(&s, ""));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_60_lines),    cmocka_unit_test(test_160_lines),
        cmocka_unit_test(test_320_lines),   cmocka_unit_test(test_a_range_of_lines),
        cmocka_unit_test(test_keyed),       cmocka_unit_test(test_keyed_is_fixed),
        cmocka_unit_test(test_bad_options), cmocka_unit_test(test_ceiling),
        cmocka_unit_test(test_scores),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
