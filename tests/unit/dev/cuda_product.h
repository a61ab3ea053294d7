/* Shared by the tests of products on the CUDA device: the same weights there and on the CPU, whose
 * results are the oracle, and the check that a row's bits are the same in any company. */
#ifndef KK_TESTS_CUDA_PRODUCT_H
#define KK_TESTS_CUDA_PRODUCT_H

#include "unit/dev/cuda_test.h"

#include <math.h>

static struct kk_test_rng rng;
static struct kk_dev *cpu;
static struct kk_account weights_account = {.name = "weights"};

static int open_both(void **state)
{
    struct kk_err err = {0};
    rng = kk_test_rng("cuda product");
    KK_ASSERT_OK(kk_dev_open_cpu("auto", 0, &cpu, &err), &err);
    return open_gpu(state);
}

static int close_both(void **state)
{
    kk_dev_close(cpu);
    return close_gpu(state) || atomic_load(&weights_account.bytes) != 0;
}

/* For steps of T rows and experts of these sizes (0: none). */
static void reserve_both(int T, int C, int E, int A, int F)
{
    struct kk_err err = {0};
    struct kk_limits l = {.max_rows = T,
                          .max_model_width = C,
                          .max_head_dim = 16,
                          .max_active = A,
                          .max_expert_width = F,
                          .max_experts = E};
    KK_ASSERT_OK(cpu->ops->reserve(cpu, &l, &gpu_account, &err), &err);
    if (l.max_model_width > 8192) l.max_model_width = 8192; /* products need none of it there */
    KK_ASSERT_OK(gpu->ops->reserve(gpu, &l, &gpu_account, &err), &err);
}

/* n numbers that are bf16, spread evenly over about (-scale, scale) */
static uint16_t *halves(int64_t n, float scale)
{
    uint16_t *h = malloc((size_t)n * sizeof *h + 8);
    uint64_t s = kk_test_u64(&rng) | 1;
    for (int64_t i = 0; i < n; i++) {
        s = s * 6364136223846793005u + 1442695040888963407u;
        h[i] = kk_f32_to_bf16((float)(int32_t)(s >> 32) * 0x1p-31f * scale);
    }
    return h;
}

static float *widened(const uint16_t *h, int64_t n)
{
    float *f = malloc((size_t)n * sizeof *f + 4);
    for (int64_t i = 0; i < n; i++) f[i] = kk_bf16_to_f32(h[i]);
    return f;
}

struct pair {
    struct kk_weight gpu, cpu;
};

static void load_pair(struct pair *w, const uint16_t *raw, int n_mats, int64_t rows, int64_t cols)
{
    struct kk_err err = {0};
    const struct kk_weight_src src = {
        .dtype = KK_BF16, .n_mats = n_mats, .rows = rows, .cols = cols, .data = raw};
    KK_ASSERT_OK(gpu->ops->weight_load(gpu, &src, &weights_account, &w->gpu, &err), &err);
    KK_ASSERT_OK(cpu->ops->weight_load(cpu, &src, &weights_account, &w->cpu, &err), &err);
}

static void make_pair(struct pair *w, int n_mats, int64_t rows, int64_t cols)
{
    uint16_t *raw = halves(n_mats * rows * cols, 1.7f / sqrtf((float)cols));
    load_pair(w, raw, n_mats, rows, cols);
    free(raw);
}

static void free_pair(struct pair *w)
{
    kk_weight_free(gpu, &w->gpu);
    kk_weight_free(cpu, &w->cpu);
}

static void free_last(void) /* of gpu_room */
{
    n_gpu_blocks--;
    kk_dev_free(gpu, &gpu_account, gpu_block[n_gpu_blocks].p, gpu_block[n_gpu_blocks].bytes);
}

static void end_step(struct kk_dev *d)
{
    struct kk_err err = {0};
    KK_ASSERT_OK(d->ops->step_end(d, &err), &err);
}

/* |got - want| <= tol |want|, both of n numbers, and no NaN */
static void near(const char *what, int row, const float *got, const float *want, int64_t n,
                 double tol)
{
    double off = 0, all = 0;
    for (int64_t i = 0; i < n; i++) {
        const double d = (double)got[i] - (double)want[i];
        off += d * d;
        all += (double)want[i] * (double)want[i];
    }
    if (!(off <= tol * tol * all))
        fail_msg("%s: row %d: error %.3g of the row, at most %.3g", what, row, sqrt(off / all),
                 tol);
}

/* Rows [t0, t0 + n) as if they were all there are; `out` gets the bytes of their results. */
struct cut_check {
    const char *what;
    int T;
    size_t row_bytes;
    void (*run)(const void *c, int t0, int n, void *out);
};

static void same_row_bits(const struct cut_check *k, const void *c, const char *want, int t0, int n)
{
    char *got = malloc((size_t)n * k->row_bytes);
    k->run(c, t0, n, got);
    for (int t = 0; t < n; t++)
        if (memcmp(got + (size_t)t * k->row_bytes, want + (size_t)(t0 + t) * k->row_bytes,
                   k->row_bytes))
            fail_msg("%s: row %d differs among rows %d..%d from among all %d", k->what, t0 + t, t0,
                     t0 + n - 1, k->T);
    free(got);
}

/* All rows at once give, row by row, the bits of any other cut. Returns all rows' results. */
static void *check_cuts(const struct cut_check *k, const void *c)
{
    static const int lengths[] = {1, 2, 3, 5, 8, 9, 16, 17, 31, 64, 65, 130, 300};
    char *want = malloc((size_t)k->T * k->row_bytes);
    k->run(c, 0, k->T, want);
    same_row_bits(k, c, want, 0, k->T);
    for (int t = 0, n; t < k->T; t += n) {
        n = lengths[kk_test_below(&rng, 13)];
        if (n > k->T - t) n = k->T - t;
        same_row_bits(k, c, want, t, n);
    }
    for (int i = 0; i < 13; i++) {
        const int n = lengths[i] < k->T ? lengths[i] : k->T;
        same_row_bits(k, c, want, kk_test_between(&rng, 0, k->T - n), n);
    }
    return want;
}

#endif
