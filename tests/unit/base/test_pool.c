/* The fork-join pool: every item once, results visible, sleep and wake. kk-test: tsan */
#include "kk_test.h"

#include <sched.h>
#include <stdio.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/pool.h"

static struct kk_pool *open_pool(int n)
{
    struct kk_pool *p = NULL;
    struct kk_err err = {0};
    KK_ASSERT_OK(kk_pool_open(n, &p, &err), &err);
    assert_int_equal(kk_pool_threads(p), n);
    return p;
}

struct sum_job {
    const int *x; /* [n]; plain memory on purpose: the fork must make it visible */
    int n, chunk;
    int64_t part[512];
    int times[512];
};

static void sum_range(void *arg, int worker, int n_workers)
{
    struct sum_job *j = arg;
    int64_t lo, hi;
    kk_range(j->n, worker, n_workers, &lo, &hi);
    j->part[worker] = 0;
    for (int64_t i = lo; i < hi; i++) j->part[worker] += j->x[i];
    j->times[worker]++;
}

static void sum_item(void *arg, int item, int worker)
{
    struct sum_job *j = arg;
    (void)worker;
    j->part[item] = 0;
    for (int i = item * j->chunk; i < (item + 1) * j->chunk && i < j->n; i++)
        j->part[item] += j->x[i];
    j->times[item]++;
}

static void test_sums(void **state)
{
    static int x[3000];
    struct kk_test_rng rng = kk_test_rng("sums");
    (void)state;
    for (int n = 1; n <= 8; n++) {
        struct kk_pool *p = open_pool(n);
        for (int round = 0; round < 1500; round++) {
            struct sum_job j = {.x = x, .n = kk_test_between(&rng, 0, 3000)};
            int64_t want = 0, got = 0;
            int parts = n;
            for (int i = 0; i < j.n; i++) want += x[i] = kk_test_between(&rng, -99, 99);
            if (round % 2) {
                parts = kk_test_between(&rng, 1, 40);
                j.chunk = (j.n + parts - 1) / parts;
                kk_pool_for(p, parts, sum_item, &j);
            } else {
                kk_pool_run(p, sum_range, &j);
            }
            for (int i = 0; i < parts; i++) {
                got += j.part[i];
                assert_int_equal(j.times[i], 1);
            }
            assert_int_equal(got, want);
        }
        kk_pool_close(p);
    }
}

static void nothing(void *arg, int item, int worker)
{
    (void)arg, (void)item, (void)worker;
}

/* Workers that sleep between forks, and forks right after each other */
static void test_sleep(void **state)
{
    (void)state;
    struct kk_pool *p = open_pool(3);
    int x[100] = {0};
    for (int i = 0; i < 100; i++) x[i] = i;
    for (int round = 0; round < 60; round++) {
        struct sum_job j = {.x = x, .n = 100};
        if (round % 3 == 0) kk_pool_begin(p);
        usleep(round % 4 * 200);
        for (int i = 0; i < 20; i++) kk_pool_for(p, i, nothing, NULL);
        kk_pool_run(p, sum_range, &j);
        assert_int_equal(j.part[0] + j.part[1] + j.part[2], 4950);
        if (round % 3 == 1) kk_pool_end(p);
    }
    kk_pool_close(p);
}

/* An idle pool uses no processor time. */
static void test_idle(void **state)
{
    (void)state;
    struct kk_pool *p = open_pool(2);
    kk_pool_begin(p);
    kk_pool_for(p, 8, nothing, NULL);
    kk_pool_end(p);
    usleep(20000);
    clock_t before = clock();
    usleep(100000);
    double used = (double)(clock() - before) / CLOCKS_PER_SEC;
    kk_pool_close(p);
    if (used > 0.03) fail_msg("%.3f s of processor time in 0.1 s of rest", used);
}

static void test_range(void **state)
{
    (void)state;
    for (int n = 0; n < 40; n++)
        for (int parts = 1; parts < 12; parts++) {
            int64_t at = 0, lo, hi;
            for (int i = 0; i < parts; i++, at = hi) {
                kk_range(n, i, parts, &lo, &hi);
                assert_int_equal(lo, at);
                assert_in_range(hi - lo, n / parts, (n + parts - 1) / parts);
            }
            assert_int_equal(at, n);
        }
}

static void test_bad_counts(void **state)
{
    (void)state;
    struct kk_pool *p = NULL;
    struct kk_err err = {0};
    KK_ASSERT_FAILS(kk_pool_open(-1, &p, &err), KK_EINVAL, &err, "-1 threads: must be 1 to 256");
    KK_ASSERT_FAILS(kk_pool_open(257, &p, &err), KK_EINVAL, &err, "257 threads");
    kk_pool_close(NULL);
    KK_ASSERT_OK(kk_pool_open(0, &p, &err), &err);
    assert_true(kk_pool_threads(p) >= 1);
    kk_pool_close(p);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_sums),       cmocka_unit_test(test_sleep),
        cmocka_unit_test(test_idle),       cmocka_unit_test(test_range),
        cmocka_unit_test(test_bad_counts),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
