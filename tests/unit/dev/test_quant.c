/* Weights of block types: panels hold what base/quant.h reads from the blocks; every table of
 * products gives the bits of the scalar one, which is close to the product in doubles; a row's bits
 * do not depend on the rows beside it. */
#include "kk_test.h"

#include <float.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>

#include "dev/cpu/kern_int.h"

static struct kk_test_rng rng;

static const struct kk_cpu_q8 *q8[4];
static int n_q8;

static void find_tables(void)
{
    q8[n_q8++] = &kk__q8_scalar;
#ifdef KK_X86
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) q8[n_q8++] = &kk__q8_avx2;
    if (__builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq")) {
        q8[n_q8++] = &kk__q8_avx512;
        if (__builtin_cpu_supports("avx512vnni")) q8[n_q8++] = &kk__q8_vnni;
    }
#endif
    for (int i = 0; i < n_q8; i++) print_message("table %s\n", q8[i]->isa);
}

/* ---- weights ---- */

struct weights {
    enum kk_dtype t;
    int64_t N, K;
    char *stored; /* N rows of blocks */
    float *w;     /* [N, K], what they mean */
    char *panels;
};

/* A scale: mostly of a usual size, now and then zero, subnormal or negative */
static uint16_t scale(void)
{
    if (kk_test_below(&rng, 40) == 0) return (uint16_t)kk_test_below(&rng, 3);
    return (uint16_t)(kk_test_below(&rng, 2) << 15 | (6 + kk_test_below(&rng, 6)) << 10 |
                      kk_test_below(&rng, 1024));
}

/* Random bytes are codes of all kinds; fill >= 0: that byte in place of them, which makes codes
 * least or greatest. */
static void fill_block(enum kk_dtype t, uint8_t *b, int fill)
{
    const unsigned bytes = kk_dtype_block_bytes(t);
    const uint16_t d = scale(), m = scale();
    for (unsigned i = 0; i < bytes; i++)
        b[i] = fill < 0 ? (uint8_t)kk_test_u64(&rng) : (uint8_t)fill;
    memcpy(b + (t == KK_Q6_K ? 208 : 0), &d, 2);
    if (kk_quant_has_min(t)) memcpy(b + 2, &m, 2);
}

static struct weights make_weights(enum kk_dtype t, int64_t N, int64_t K, int fill)
{
    struct weights w = {.t = t, .N = N, .K = K};
    const unsigned per = kk_dtype_block(t), bytes = kk_dtype_block_bytes(t);
    const size_t panel = kk_panel_bytes(t, K), row = (size_t)K / per * bytes;
    const int64_t panels = (N + 15) / 16;
    w.stored = malloc((size_t)N * row);
    for (size_t at = 0; at < (size_t)N * row; at += bytes)
        fill_block(t, (uint8_t *)w.stored + at, fill);
    w.w = malloc((size_t)(N * K) * sizeof(float));
    kk_dequant(t, w.stored, (uint64_t)(N * K), w.w);
    w.panels = aligned_alloc(64, (size_t)panels * panel);
    memset(w.panels, 0, (size_t)panels * panel);
    for (int64_t n = 0; n < N; n += 16)
        for (int64_t g = 0; g < K / KK_GROUP; g++) {
            struct kk_quant_group from;
            for (int l = 0; l < 16 && n + l < N; l++) {
                kk_quant_take(t, w.stored + (size_t)(n + l) * row + (size_t)(g * 32) / per * bytes,
                              (int)(g * 32 % per / 32), &from);
                kk_q_pack(t, w.panels + (size_t)(n / 16) * panel, K, g, l, &from);
            }
        }
    return w;
}

static void free_weights(struct weights *w)
{
    free(w->stored), free(w->w), free(w->panels);
}

static int64_t inputs(enum kk_dtype t, int most)
{
    return (int64_t)kk_dtype_block(t) * kk_test_between(&rng, 1, kk_quant_is_k(t) ? 3 : most);
}

static void panels_hold(const struct kk_cpu_q8 *table, const struct weights *s)
{
    float w[32 * 16];
    for (int64_t n = 0; n < (s->N + 15) / 16 * 16; n++)
        for (int64_t k = 0; k < s->K; k++) {
            const char *panel = s->panels + (size_t)(n / 16) * kk_panel_bytes(s->t, s->K);
            if (k % 32 == 0) table->weights(s->t, panel, s->K, k / 32, w);
            if (n < s->N && memcmp(&w[k % 32 * 16 + n % 16], &s->w[n * s->K + k], 4))
                fail_msg("%s %s: weight %d, %d is %a, stored %a", table->isa, kk_dtype_name(s->t),
                         (int)n, (int)k, (double)w[k % 32 * 16 + n % 16],
                         (double)s->w[n * s->K + k]);
        }
}

static void test_panels(void **state)
{
    (void)state;
    for (enum kk_dtype t = KK_Q4_0; t <= KK_Q6_K; t++)
        for (int i = 0; i < 6; i++) {
            struct weights s = make_weights(t, kk_test_between(&rng, 1, 40), inputs(t, 7), -1);
            for (int j = 0; j < n_q8; j++) panels_hold(q8[j], &s);
            free_weights(&s);
        }
}

/* What the memory costs: at most 3 % over the file, for panels that are full. */
static void test_bytes(void **state)
{
    static const int64_t widths[] = {576, 640, 1536, 2048};
    (void)state;
    for (enum kk_dtype t = KK_Q4_0; t <= KK_Q6_K; t++)
        for (int i = 0; i < 4; i++) {
            if (widths[i] % kk_dtype_block(t)) continue;
            size_t file = 16 * (size_t)widths[i] / kk_dtype_block(t) * kk_dtype_block_bytes(t);
            assert_in_range(kk_panel_bytes(t, widths[i]), file, file + file * 3 / 100);
        }
}

/* ---- activations ---- */

static float *normals(int64_t n)
{
    float *x = malloc((size_t)n * sizeof *x);
    kk_test_fill_normal(&rng, x, (size_t)n, 1.5f);
    return x;
}

static void test_quantise_close(void **state)
{
    int8_t q[32];
    struct kk_q8_group g;
    (void)state;
    for (int i = 0; i < 300; i++) {
        float *x = normals(32), top = 0;
        const float by = ldexpf(1, kk_test_between(&rng, -60, 60));
        for (int k = 0; k < 32; k++) top = fmaxf(top, fabsf(x[k] *= by));
        kk_q8_one(x, q, &g);
        int lower = 0, all = 0;
        for (int k = 0; k < 32; k++) {
            assert_in_range(q[k] + 127, 0, 254);
            if (!(fabs((double)g.scale * q[k] - x[k]) <= 0.5001 * g.scale))
                fail_msg("%g became %d times %g", (double)x[k], q[k], (double)g.scale);
            all += q[k], lower += k < 16 ? q[k] : 0;
        }
        assert_true(fabs(g.scale * 127.0 / top - 1) < 1e-6);
        assert_int_equal(g.minus[0], -all);
        assert_int_equal(g.minus[1], -lower);
        assert_true(g.sum == g.scale * (float)all);
        free(x);
    }
}

/* Nothing, next to nothing, and what is not a number */
static void test_quantise_edges(void **state)
{
    static const float odd[] = {0, 0x1p-101f, -0x1p-149f, INFINITY, -INFINITY, NAN, FLT_MAX};
    (void)state;
    for (int e = 0; e < 7; e++) {
        float x[32] = {0};
        int8_t q[32];
        struct kk_q8_group g;
        x[7] = odd[e];
        kk_q8_one(x, q, &g);
        for (int k = 0; k < 32; k++) assert_int_equal(q[k], e == 6 && k == 7 ? 127 : 0);
        if (e < 3) assert_true(g.scale == 0 && g.sum == 0);
        if (e >= 3 && e < 6) assert_true(isnan(g.scale) && isnan(g.sum));
    }
}

/* rows of M x K activations by table i, with bytes between them that nobody touches */
static char *rows_of(const struct kk_cpu_q8 *table, const float *x, int M, int64_t K, size_t stride)
{
    char *rows = malloc((size_t)M * stride);
    memset(rows, 0x55, (size_t)M * stride);
    for (int r = 0; r < M; r++) {
        const int64_t groups = K / KK_GROUP, cut = r % (groups + 1);
        table->quantise(K, 0, cut, x + r * K, rows + (size_t)r * stride);
        table->quantise(K, cut, groups, x + r * K, rows + (size_t)r * stride);
    }
    return rows;
}

/* ---- products ---- */

/* y close to x w^T with x as the rows hold it, in doubles */
static void close_to(const struct weights *w, const char *rows, size_t stride, int M,
                     const float *y, int64_t ldy)
{
    for (int r = 0; r < M; r++) {
        const char *row = rows + (size_t)r * stride;
        const struct kk_q8_group *g = (const struct kk_q8_group *)(row + w->K);
        for (int64_t n = 0; n < w->N; n++) {
            double sum = 0, size = 0;
            for (int64_t k = 0; k < w->K; k++) {
                double x = (double)g[k / 32].scale * ((const int8_t *)row)[k];
                sum += x * w->w[n * w->K + k];
                size += fabs(x) * (fabs(w->w[n * w->K + k]) + 1e-6);
            }
            if (!(fabs(y[r * ldy + n] - sum) <= 4e-6 * size + 1e-30))
                fail_msg("%s row %d output %d: %g, in doubles %g", kk_dtype_name(w->t), r, (int)n,
                         (double)y[r * ldy + n], sum);
        }
    }
}

static void same(const char *isa, const struct weights *w, int M, const float *got,
                 const float *want, int64_t n)
{
    for (int64_t i = 0; i < n; i++)
        if (memcmp(&got[i], &want[i], 4) && (got[i] == got[i] || want[i] == want[i]))
            fail_msg("%s %s %d rows, %d x %d: [%d] is %a, wanted %a", isa, kk_dtype_name(w->t), M,
                     (int)w->N, (int)w->K, (int)i, (double)got[i], (double)want[i]);
}

static float *outputs(int64_t n)
{
    float *y = malloc((size_t)n * sizeof *y);
    for (int64_t i = 0; i < n; i++) y[i] = 7;
    return y;
}

static void product(enum kk_dtype t, int M, int64_t N, int64_t K, int fill, float *x)
{
    struct weights w = make_weights(t, N, K, fill);
    const size_t stride = kk_q8_row_bytes(K) + 4 * kk_test_below(&rng, 3);
    const int64_t ldy = N + kk_test_below(&rng, 3);
    char *rows = rows_of(q8[0], x, M, K, stride);
    float *want = outputs(M * ldy);
    q8[0]->gemm(t, M, N, K, rows, stride, w.panels, want, ldy);
    if (isfinite(x[0])) close_to(&w, rows, stride, M, want, ldy);
    for (int i = 1; i < n_q8; i++) {
        char *mine = rows_of(q8[i], x, M, K, stride);
        float *got = outputs(M * ldy), *each = outputs(M * ldy);
        if (isfinite(x[0])) assert_memory_equal(mine, rows, (size_t)M * stride);
        q8[i]->gemm(t, M, N, K, mine, stride, w.panels, got, ldy);
        same(q8[i]->isa, &w, M, got, want, M * ldy);
        for (int r = 0; r < M; r++) /* law 2 */
            q8[i]->gemm(t, 1, N, K, mine + (size_t)r * stride, stride, w.panels, each + r * ldy,
                        ldy);
        same(q8[i]->isa, &w, 1, each, want, M * ldy);
        free(mine), free(got), free(each);
    }
    free(rows), free(want);
    free_weights(&w);
}

static void test_products(void **state)
{
    (void)state;
    for (enum kk_dtype t = KK_Q4_0; t <= KK_Q6_K; t++)
        for (int M = 1; M <= 19; M++) {
            const int64_t K = inputs(t, 9);
            float *x = normals(M * K);
            product(t, M, kk_test_between(&rng, 1, 50), K, -1, x);
            free(x);
        }
}

/* Least and greatest codes times least and greatest activations: no sum overflows in any table. */
static void test_extremes(void **state)
{
    (void)state;
    for (enum kk_dtype t = KK_Q4_0; t <= KK_Q6_K; t++)
        for (int i = 0; i < 12; i++) {
            static const int fills[] = {0, 255, 0x80, 0x7f, 0xf0, 0x0f};
            const int64_t K = kk_dtype_block(t) * 2;
            float *x = normals(3 * K);
            for (int64_t k = 0; k < 3 * K; k++)
                x[k] = i >= 6 && k % 3 ? -1.0f : k < K ? 1.0f : -1.0f;
            product(t, 3, 17, K, fills[i % 6], x);
            x[0] = i % 2 ? NAN : INFINITY;
            product(t, 3, 17, K, -1, x);
            free(x);
        }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_panels),         cmocka_unit_test(test_bytes),
        cmocka_unit_test(test_quantise_close), cmocka_unit_test(test_quantise_edges),
        cmocka_unit_test(test_products),       cmocka_unit_test(test_extremes)};
    rng = kk_test_rng("quant");
    find_tables();
    return cmocka_run_group_tests(tests, NULL, NULL);
}
