/* What the test programs share. Include it first: it brings cmocka and what cmocka needs.
 *
 * A program is tests/unit/<folder>/test_<file>.c, run from the repository root:
 *
 *     static void test_x(void **state) { (void)state; ... }
 *     int main(void)
 *     {
 *         const struct CMUnitTest tests[] = {cmocka_unit_test(test_x)};
 *         return cmocka_run_group_tests(tests, NULL, NULL);
 *     }
 *
 * A test of threads says "kk-test: tsan" in a comment, and is then run under that sanitizer too.
 * KK_TEST_SEED=N in the environment repeats a random test with another seed. */
#ifndef KK_TEST_H
#define KK_TEST_H

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>
#include <cmocka.h>

#include "base/err.h"

/* KK_TEST_SEED, or 1; printed once. */
uint64_t kk_test_seed(void);

/* A counter generator: the same seed and name give the same values on every machine. */
struct kk_test_rng {
    uint64_t key, at;
};
struct kk_test_rng kk_test_rng(const char *name);
uint64_t kk_test_u64(struct kk_test_rng *r);
uint32_t kk_test_below(struct kk_test_rng *r, uint32_t n);  /* 0 .. n-1 (n >= 1) */
int kk_test_between(struct kk_test_rng *r, int lo, int hi); /* lo .. hi, both included */
float kk_test_uniform(struct kk_test_rng *r, float lo, float hi);
float kk_test_normal(struct kk_test_rng *r); /* near N(0, 1): sum of uniforms, |x| < 6 */
void kk_test_fill_normal(struct kk_test_rng *r, float *x, size_t n, float scale);

/* A fresh directory, removed with all it holds when the program ends. Static storage. */
const char *kk_test_tmpdir(void);
/* "tmpdir/name"; static storage, eight in turn. */
const char *kk_test_path(const char *name);
/* Remove a file, or a directory and all it holds. */
void kk_test_remove(const char *path);
/* Write a file under the temporary directory; returns its path (as kk_test_path). */
const char *kk_test_file(const char *name, const void *data, size_t len);

/* max |a - b| / max(floor, max |b|) over n values; infinite if any is not finite. */
double kk_test_rel_err(const float *a, const float *b, size_t n, double floor);

/* Distance in units in the last place; UINT32_MAX if either is NaN. */
uint32_t kk_test_ulps(float a, float b);

/* Lower-case hexadecimal SHA-256 of n bytes into out (65 bytes with NUL). */
void kk_test_sha256(const void *data, size_t n, char out[65]);

/* rc is 0, else the test fails and shows err. */
#define KK_ASSERT_OK(rc, err)                                                                      \
    do {                                                                                           \
        int kk_rc_ = (rc);                                                                         \
        if (kk_rc_) fail_msg("%s: %s", kk_errname(kk_rc_), (err)->msg);                            \
    } while (0)

/* rc is the code expected and the message holds the words. */
#define KK_ASSERT_FAILS(rc, want, err, words)                                                      \
    do {                                                                                           \
        assert_int_equal(rc, want);                                                                \
        if (!strstr((err)->msg, words)) fail_msg("'%s' does not hold '%s'", (err)->msg, words);    \
    } while (0)

#endif
