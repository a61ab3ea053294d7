/* Shared by the tests of the CPU device: devices of every instruction set and some thread counts,
 * random weights, and the check that all of them and every cut of the rows give the same bits. */
#ifndef KK_TESTS_DEV_TEST_H
#define KK_TESTS_DEV_TEST_H

#include "kk_test.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>

#include "base/mem.h"
#include "dev/dev.h"

static struct kk_test_rng rng;

/* ---- devices ---- */

static struct kk_dev *devs[9]; /* the first is scalar, one thread: the oracle */
static int n_devs;
static enum kk_block_act block_act; /* of all of them */
static struct kk_account scratch_account = {.name = "scratch"};

static const struct kk_limits dev_limits = {.max_rows = 80,
                                            .max_model_width = 320,
                                            .max_head_dim = 96,
                                            .max_active = 8,
                                            .max_expert_width = 160,
                                            .max_experts = 24,
                                            .max_block_cols = 256};

static int open_devs(void **state)
{
    static const char *const isas[] = {"scalar", "avx2", "avx512"};
    (void)state;
    for (int i = 0; i < 3; i++)
        for (int threads = 1; threads <= 3; threads++) {
            struct kk_err err = {0};
            int rc = kk_dev_open_cpu(isas[i], threads, &devs[n_devs], &err);
            if (rc == KK_EUNSUPPORTED && threads == 1) print_message("skipped: %s\n", err.msg);
            if (rc == KK_EUNSUPPORTED) continue;
            KK_ASSERT_OK(rc, &err);
            struct kk_dev *d = devs[n_devs++];
            d->block_act = block_act;
            KK_ASSERT_OK(d->ops->reserve(d, &dev_limits, &scratch_account, &err), &err);
        }
    return 0;
}

static int close_devs(void **state)
{
    (void)state;
    while (n_devs) kk_dev_close(devs[--n_devs]);
    return atomic_load(&scratch_account.bytes) != 0;
}

/* ---- values ---- */

static int between(int lo, int hi)
{
    return kk_test_between(&rng, lo, hi);
}

static float *normals(int64_t n, float scale)
{
    float *x = malloc((size_t)n * sizeof *x + 1);
    kk_test_fill_normal(&rng, x, (size_t)n, scale);
    return x;
}

static uint16_t f32_to_f16(float f) /* normal range, truncated */
{
    uint32_t u;
    memcpy(&u, &f, 4);
    int e = (int)(u >> 23 & 255) - 112;
    uint32_t sign = u >> 16 & 0x8000;
    return (uint16_t)(e <= 0 ? sign : sign | (uint32_t)(e > 30 ? 30 : e) << 10 | (u >> 13 & 1023));
}

/* Blocks of 32 as ggml has them: f16 d, codes */
static void *to_q8(float *x, int64_t n, void *dst)
{
    for (char *block = dst; n >= 32; n -= 32, x += 32, block += 34) {
        float most = 0;
        for (int i = 0; i < 32; i++) most = fmaxf(most, fabsf(x[i]));
        const uint16_t d = kk_f32_to_f16(most / 127.0f);
        memcpy(block, &d, 2);
        for (int i = 0; i < 32; i++) {
            block[2 + i] = (char)lrintf(most > 0 ? x[i] * (127.0f / most) : 0);
            x[i] = (float)(int8_t)block[2 + i] * kk_f16_to_f32(d);
        }
    }
    return dst;
}

/* x rounded to t in place; its stored form in the result (malloc) */
static void *to_dtype(enum kk_dtype t, float *x, int64_t n)
{
    uint16_t *h = malloc((size_t)n * 4 + 1);
    if (t == KK_Q8_0) return to_q8(x, n, h);
    if (t == KK_F32) return memcpy(h, x, (size_t)n * 4);
    for (int64_t i = 0; i < n; i++) {
        h[i] = t == KK_BF16 ? kk_f32_to_bf16(x[i]) : f32_to_f16(x[i]);
        x[i] = t == KK_BF16 ? kk_bf16_to_f32(h[i]) : kk_f16_to_f32(h[i]);
    }
    return h;
}

/* ---- the check ---- */

struct check {
    const char *what;
    int T, width; /* output floats of a row */
    double tol;   /* of the row's largest value */
    /* rows [t0, t1) on device i, as if they were all there are; their outputs to out */
    void (*run)(const void *c, int i, int t0, int t1, float *out);
    /* the row in doubles; got: what the oracle gave (for choices that may be close) */
    void (*ref)(const void *c, int t, const float *got, double *want);
};

static void run_rows(const struct check *k, const void *c, int i, int t0, int t1, float *out)
{
    struct kk_err err = {0};
    devs[i]->ops->step_begin(devs[i]);
    kk_mem_guard_enter("test");
    k->run(c, i, t0, t1, out);
    kk_mem_guard_leave();
    KK_ASSERT_OK(devs[i]->ops->step_end(devs[i], &err), &err);
}

static void same_bits(const struct check *k, int i, const float *got, const float *want)
{
    for (int64_t n = 0; n < (int64_t)k->T * k->width; n++) {
        if (!memcmp(&got[n], &want[n], 4)) continue;
        fail_msg("%s on %s: row %d [%d] is %a, oracle %a", k->what, devs[i]->name,
                 (int)(n / k->width), (int)(n % k->width), (double)got[n], (double)want[n]);
    }
}

static void close_to(const struct check *k, const void *c, const float *got)
{
    double *want = malloc((size_t)k->width * sizeof *want);
    for (int t = 0; t < k->T; t++, got += k->width) {
        double top = 1e-3;
        k->ref(c, t, got, want);
        for (int i = 0; i < k->width; i++) top = fmax(top, fabs(want[i]));
        for (int i = 0; i < k->width; i++)
            if (!(fabs((double)got[i] - want[i]) <= k->tol * top))
                fail_msg("%s: row %d [%d] is %.9g, reference %.9g", k->what, t, i, (double)got[i],
                         want[i]);
    }
    free(want);
}

static inline void check_op(const struct check *k, const void *c)
{
    size_t bytes = (size_t)k->T * (size_t)k->width * sizeof(float);
    float *want = malloc(bytes), *got = malloc(bytes);
    run_rows(k, c, 0, 0, k->T, want);
    close_to(k, c, want);
    for (int i = 0; i < n_devs; i++) {
        memset(got, 0x7f, bytes);
        run_rows(k, c, i, 0, k->T, got);
        same_bits(k, i, got, want);
        memset(got, 0x7f, bytes);
        for (int t = 0, n; t < k->T; t += n) {
            n = between(1, between(0, 2) ? 9 : 60);
            if (n > k->T - t) n = k->T - t;
            run_rows(k, c, i, t, t + n, got + (int64_t)t * k->width);
        }
        same_bits(k, i, got, want);
    }
    free(want);
    free(got);
}

#endif
