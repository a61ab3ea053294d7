/* The values wanted were printed by CPython 3.11's random.Random. */
#include "kk_test.h"

#include "base/mt19937.h"

static void test_seeds(void **state)
{
    (void)state;
    static const struct {
        uint64_t seed;
        uint32_t want[4];
    } t[] = {
        {0, {3626764237u, 1654615998u, 3255389356u, 3823568514u}},
        {1, {577090037u, 2444712010u, 3639700191u, 3445702192u}},
        {42, {2746317213u, 478163327u, 107420369u, 3184935163u}},
        {4294967296u, {485306839u, 1508871100u, 1794561286u, 4014597330u}},
        {9223372036854788153u, {1308997459u, 1668775168u, 912389232u, 665509477u}},
    };
    struct kk_mt19937 r;
    for (size_t i = 0; i < sizeof t / sizeof *t; i++) {
        kk_mt_seed(&r, t[i].seed);
        for (int k = 0; k < 4; k++) assert_int_equal(kk_mt_u32(&r), t[i].want[k]);
    }
}

/* Across the refill of the state. */
static void test_long_run(void **state)
{
    (void)state;
    struct kk_mt19937 r;
    uint32_t x[2000];
    kk_mt_seed(&r, 1);
    for (int i = 0; i < 2000; i++) x[i] = kk_mt_u32(&r);
    assert_int_equal(x[623], 802355090u);
    assert_int_equal(x[624], 1360367077u);
    assert_int_equal(x[1999], 1058062369u);
}

static void test_draws(void **state)
{
    (void)state;
    static const int ints[] = {2824, 1409, 5506, 5012, 4657, 3286};
    static const char picks[] = "lbkloibj";
    static const int widths[] = {1, 2, 7, 31, 32};
    static const uint32_t bits[] = {0, 0, 3, 201209005u, 939042955u};
    struct kk_mt19937 r;
    kk_mt_seed(&r, 42);
    for (int i = 0; i < 6; i++) assert_int_equal(kk_mt_between(&r, 1000, 9999), ints[i]);
    for (int i = 0; i < 8; i++) assert_int_equal('a' + kk_mt_below(&r, 15), picks[i]);
    for (int i = 0; i < 5; i++) assert_int_equal(kk_mt_bits(&r, widths[i]), bits[i]);
}

static void test_shuffle(void **state)
{
    (void)state;
    static const uint32_t want[] = {8, 3, 1, 4, 7, 0, 9, 6, 2, 5};
    uint32_t v[10];
    struct kk_mt19937 r;
    kk_mt_seed(&r, 7);
    for (uint32_t i = 0; i < 10; i++) v[i] = i;
    kk_mt_shuffle(&r, v, 10);
    assert_memory_equal(v, want, sizeof want);
}

/* A range of one value draws until the top bit is 0: what follows depends on it. */
static void test_range_of_one(void **state)
{
    (void)state;
    struct kk_mt19937 r;
    kk_mt_seed(&r, 1);
    for (int i = 0; i < 3; i++) assert_int_equal(kk_mt_between(&r, 5, 5), 5);
    assert_int_equal(kk_mt_u32(&r), 506456969u);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_seeds),        cmocka_unit_test(test_long_run),
        cmocka_unit_test(test_draws),        cmocka_unit_test(test_shuffle),
        cmocka_unit_test(test_range_of_one),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
