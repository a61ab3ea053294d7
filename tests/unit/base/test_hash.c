/* The checksum: independent of cuts, dependent on every bit. */
#include "kk_test.h"

#include "base/hash.h"

static void cuts_do_not_matter(void **state)
{
    (void)state;
    unsigned char b[300];
    struct kk_test_rng r = kk_test_rng("hash");
    for (size_t i = 0; i < sizeof b; i++) b[i] = (unsigned char)kk_test_below(&r, 256);
    for (size_t n = 0; n <= sizeof b; n++) {
        uint64_t whole = kk_hash64(b, n, 3);
        struct kk_hash h;
        kk_hash_init(&h, 3);
        for (size_t at = 0; at < n;) {
            size_t k = 1 + kk_test_below(&r, 70);
            if (k > n - at) k = n - at;
            kk_hash_add(&h, b + at, k);
            at += k;
        }
        assert_int_equal(kk_hash_value(&h), whole);
    }
}

static void every_bit_matters(void **state)
{
    (void)state;
    unsigned char b[100] = {0};
    uint64_t zero = kk_hash64(b, sizeof b, 0);
    assert_int_not_equal(zero, kk_hash64(b, sizeof b, 1));
    assert_int_not_equal(zero, kk_hash64(b, sizeof b - 1, 0)); /* a zero more or less */
    for (size_t i = 0; i < sizeof b * 8; i++) {
        b[i / 8] ^= (unsigned char)(1u << i % 8);
        assert_int_not_equal(kk_hash64(b, sizeof b, 0), zero);
        b[i / 8] ^= (unsigned char)(1u << i % 8);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(cuts_do_not_matter),
        cmocka_unit_test(every_bit_matters),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
