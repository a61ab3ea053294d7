/* The vector tables against the scalar one: the same bits for every leaf, size and value. A NaN is
 * equal to any NaN. Buffers are of exactly the size a leaf may touch (for the sanitizer), outputs
 * have a border that must stay. */
#include "kk_test.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>

#include "dev/cpu/kern_int.h"

static const struct kk_cpu_kern *const scalar = &kk__kern_scalar;
static const struct kk_cpu_kern *fast; /* the table under test */
static struct kk_test_rng rng;

/* ---- values ---- */

static const uint32_t edges[] = {
    0x00000000, 0x80000000, 0x7f800000, 0xff800000, 0x7fc00000, 0xffc12345, 0x00000001, 0x80000001,
    0x007fffff, 0x00800000, 0x7f7fffff, 0xff7fffff, 0x42b17218, 0xc2aeac50, 0xc2aeac4f, 0x42b17217,
    0xc2ce8ed0, 0x3f800000, 0xbf800000, 0x7149f2ca, 0x0da24260, 0x3f7f8000, 0x3f808000, 0x47000000};

static float edge(void)
{
    float f;
    memcpy(&f, &edges[kk_test_below(&rng, sizeof edges / sizeof *edges)], 4);
    return f;
}

/* One value in `rare` is an edge; 0: none */
static float value(int rare)
{
    if (rare && kk_test_below(&rng, (uint32_t)rare) == 0) return edge();
    return kk_test_normal(&rng);
}

static float *floats(int64_t n, int rare)
{
    float *x = malloc((size_t)n * 4 + !n);
    for (int64_t i = 0; i < n; i++) x[i] = value(rare);
    return x;
}

static uint16_t f16_value(int rare)
{
    if (rare && kk_test_below(&rng, (uint32_t)rare) == 0) return (uint16_t)kk_test_u64(&rng);
    return (uint16_t)(kk_test_below(&rng, 2) << 15 | (8 + kk_test_below(&rng, 10)) << 10 |
                      kk_test_below(&rng, 1024));
}

/* n values of type t, aligned as weights are when the size is a multiple of 64 */
static void *stored(enum kk_dtype t, int64_t n, int rare)
{
    size_t bytes = kk_dtype_size(t, n);
    void *p = bytes % 64 ? malloc(bytes) : aligned_alloc(64, bytes + (bytes ? 0 : 64));
    for (int64_t i = 0; i < n; i++) {
        if (t == KK_F32) ((float *)p)[i] = value(rare);
        if (t == KK_BF16) ((uint16_t *)p)[i] = kk_f32_to_bf16(value(rare));
        if (t == KK_F16 || (t == KK_Q8_0 && i % 32 == 0)) {
            const uint16_t h = f16_value(rare);
            memcpy((char *)p + (t == KK_F16 ? i * 2 : i / 32 * 34), &h, 2);
        }
        if (t == KK_Q8_0) ((int8_t *)p)[i / 32 * 34 + 2 + i % 32] = (int8_t)kk_test_u64(&rng);
    }
    return p;
}

static float *copy(const float *x, int64_t n)
{
    float *y = malloc((size_t)n * 4 + !n);
    memcpy(y, x, (size_t)n * 4);
    return y;
}

static void same(const float *a, const float *b, int64_t n, const char *what)
{
    for (int64_t i = 0; i < n; i++) {
        if (!memcmp(&a[i], &b[i], 4) || (a[i] != a[i] && b[i] != b[i])) continue;
        fail_msg("%s %s: [%ld] of %ld is %a, scalar has %a", fast->isa, what, (long)i, (long)n,
                 (double)a[i], (double)b[i]);
    }
}

static int size(int lo, int hi)
{
    int n = kk_test_between(&rng, lo, hi);
    return kk_test_below(&rng, 3) ? n : (n + 15) / 16 * 16;
}

/* ---- leaves ---- */

static void gemm_case(enum kk_dtype t, int M, int64_t N, int64_t K, int rare)
{
    int64_t ldx = K + kk_test_below(&rng, 5), ldy = N + kk_test_below(&rng, 5);
    int64_t panels = (N + 15) / 16;
    size_t each = kk_panel_bytes(t, K) / kk_dtype_bytes(t);
    float *x = floats((M - 1) * ldx + K, rare), *y = floats(M * ldy, 0), *z = copy(y, M * ldy);
    void *w = stored(t, panels * (int64_t)each, rare ? rare * 4 : 0);
    if (t == KK_BF16 && K % 2)
        for (int64_t p = 0; p < panels; p++)
            for (int i = 0; i < 16; i++)
                ((uint16_t *)w)[p * (int64_t)each + (K / 2 * 16 + i) * 2 + 1] = 0;
    char what[80];
    snprintf(what, sizeof what, "gemm %s %d x %ld x %ld", kk_dtype_name(t), M, (long)N, (long)K);
    scalar->gemm[t](M, N, K, x, ldx, w, NULL, y, ldy);
    fast->gemm[t](M, N, K, x, ldx, w, M % 2 ? w : NULL, z, ldy);
    same(z, y, M * ldy, what);
    free(x), free(y), free(z), free(w);
}

/* Pairs of bf16; rare: edges, among them numbers whose products are about 2^-126 */
static uint16_t pair_value(int rare)
{
    if (rare < 0) /* x w about 2^-126 */
        return (uint16_t)(kk_test_below(&rng, 2) << 15 | (60 + kk_test_below(&rng, 8)) << 7 |
                          kk_test_below(&rng, 128));
    if (rare && !kk_test_below(&rng, 2 * (uint32_t)rare)) return (uint16_t)kk_test_u64(&rng);
    return kk_f32_to_bf16(value(rare));
}

static void pairs_case(int M, int64_t N, int64_t K, int rare)
{
    const int64_t P = (K + 1) / 2, ldx = P + kk_test_below(&rng, 5);
    const int64_t ldy = N + kk_test_below(&rng, 5), n_w = (N + 15) / 16 * P * 16;
    uint32_t *x = malloc((size_t)((M - 1) * ldx + P) * 4), *w = aligned_alloc(64, (size_t)n_w * 4);
    float *y = floats(M * ldy, 0), *z = copy(y, M * ldy);
    char what[80];
    for (int64_t i = 0; i < (M - 1) * ldx + P; i++)
        x[i] = (uint32_t)pair_value(rare) << 16 | pair_value(rare);
    for (int64_t i = 0; i < n_w; i++) w[i] = (uint32_t)pair_value(rare) << 16 | pair_value(rare);
    for (int r = 0; K % 2 && r < M; r++) x[r * ldx + P - 1] &= 0xffff;
    snprintf(what, sizeof what, "pairs %d x %ld x %ld", M, (long)N, (long)K);
    scalar->gemm_pairs(M, N, K, x, ldx, w, NULL, y, ldy);
    fast->gemm_pairs(M, N, K, x, ldx, w, M % 2 ? w : NULL, z, ldy);
    same(z, y, M * ldy, what);
    free(x), free(y), free(z), free(w);
}

static void test_pairs(void **state)
{
    (void)state;
    for (int M = 1; M <= 30; M++) pairs_case(M, size(1, 150), size(1, 150), M % 3 ? 0 : 60);
    for (int i = 0; i < 60; i++)
        pairs_case(kk_test_between(&rng, 1, 9), size(1, 140), size(1, 12), -1);
    for (int i = 0; i < 60; i++)
        pairs_case(kk_test_between(&rng, 1, 9), size(1, 140), size(1, 40), i % 2 * 30);
    pairs_case(40, 48, 1025, 0);
    pairs_case(17, 33, 1537, 5000);
    pairs_case(3, 33, 1, 0);
}

/* A result just under 2^-126 that rounding to a subnormal would lift, and its neighbours. */
static void test_pairs_flush(void **state)
{
    (void)state;
    for (int e = 74; e <= 80; e++)
        for (int m = 0; m < 4; m++)
            for (int sign = 0; sign < 2; sign++) {
                /* acc = +-2^-126 first, as 2^-63 * 2^-63, then -+ (1 + m / 4) 2^-(75 + e) */
                const uint16_t half = 64 << 7, tiny = (uint16_t)((127 - e) << 7 | m << 5);
                const uint32_t x = (uint32_t)(half | sign << 15) << 16 | 52u << 7;
                uint32_t w[16];
                float y, z;
                for (int i = 0; i < 16; i++)
                    w[i] = (uint32_t)half << 16 | tiny | (uint32_t)!sign << 15;
                scalar->gemm_pairs(1, 1, 2, &x, 1, w, NULL, &y, 1);
                fast->gemm_pairs(1, 1, 2, &x, 1, w, NULL, &z, 1);
                same(&z, &y, 1, "pairs near 2^-126");
            }
}

static void test_gemm(void **state)
{
    (void)state;
    for (int t = 0; t < 3; t++) {
        for (int M = 1; M <= 40; M++)
            gemm_case(t, M, size(1, 200), size(1, 150), M % 3 == 0 ? 100 : 0);
        for (int i = 0; i < 60; i++)
            gemm_case(t, kk_test_between(&rng, 1, 9), size(1, 140), size(1, 40), i % 2 * 60);
        for (int i = 0; i < 3; i++)
            gemm_case(t, kk_test_between(&rng, 17, 70), size(1, 80), size(500, 1700), i % 2 * 5000);
        gemm_case(t, 3, 33, 1, 0);
        gemm_case(t, 64, 48, 512, 0);
        gemm_case(t, 64, 48, 513, 0);
        gemm_case(t, 64, 48, 1025, 0);
    }
}

/* nk rows of D values anywhere in memory, some of them the same */
static void **make_rows(enum kk_dtype t, int nk, int D, int rare)
{
    void **rows = malloc((size_t)nk * sizeof *rows);
    for (int j = 0; j < nk; j++) rows[j] = stored(t, D, rare);
    return rows;
}

/* The same rows as a kernel is told of them: `off` bytes before where they are */
static const void *const *rows_before(void **rows, int nk, size_t off)
{
    const void **at = malloc((size_t)nk * sizeof *at);
    for (int j = 0; j < nk; j++) at[j] = (const char *)rows[j] - off;
    return at;
}

static void free_rows(void **rows, int nk)
{
    for (int j = 0; j < nk; j++) free(rows[j]);
    free(rows);
}

static const enum kk_dtype row_types[KK_ROW_TYPES] = {KK_F32, KK_BF16, KK_Q8_0};

static void attention_case(int type, int nq, int nk, int D, int rare)
{
    const enum kk_dtype t = row_types[type];
    if (t == KK_Q8_0) D = (D + 31) / 32 * 32;
    int64_t ldq = D + kk_test_below(&rng, 3), lds = nk + kk_test_below(&rng, 3);
    float *q = floats((nq - 1) * ldq + D, rare), *s = floats(nq * lds, 0), *z = copy(s, nq * lds);
    void **rows = make_rows(t, nk, D, rare);
    const size_t off = (size_t)kk_test_below(&rng, 5000);
    const void *const *r = rows_before(rows, nk, off);
    /* a hint: anywhere */
    const void *const *next = rows_before(rows, nk, (size_t)kk_test_below(&rng, 100000));
    char what[80];
    snprintf(what, sizeof what, "scores %s %d x %d x %d", kk_dtype_name(t), nq, nk, D);
    scalar->scores[type](nq, nk, D, q, ldq, r, r, off, 0.0625f, s, lds);
    fast->scores[type](nq, nk, D, q, ldq, r, next, off, 0.0625f, z, lds);
    same(z, s, nq * lds, what);

    float *p = floats((nq - 1) * lds + nk, rare), *o = floats(nq * ldq, 0), *u = copy(o, nq * ldq);
    snprintf(what, sizeof what, "pv %s %d x %d x %d", kk_dtype_name(t), nq, nk, D);
    scalar->pv[type](nq, nk, D, p, lds, r, r, off, o, ldq);
    fast->pv[type](nq, nk, D, p, lds, r, next, off, u, ldq);
    same(u, o, nq * ldq, what);
    free_rows(rows, nk), free((void *)r), free((void *)next);
    free(q), free(s), free(z), free(p), free(o), free(u);
}

/* Products that vanish from below: a lane is -0, and one that is missing must not make it +0 */
static void test_minus_zero(void **state)
{
    (void)state;
    enum { D = 34, NK = 9 };
    float q[4 * D], row[D], s[4 * NK], z[4 * NK];
    const void *rows[NK];
    for (int i = 0; i < 4 * D; i++) q[i] = 1e-30f;
    for (int i = 0; i < D; i++) row[i] = -1e-30f;
    for (int j = 0; j < NK; j++) rows[j] = row;
    for (int nq = 1; nq <= 4; nq++) {
        scalar->scores[KK_F32](nq, NK, D, q, D, rows, rows, 0, 1.0f, s, NK);
        fast->scores[KK_F32](nq, NK, D, q, D, rows, rows, 0, 1.0f, z, NK);
        same(z, s, nq * NK, "scores of vanishing products");
    }
}

static void test_attention(void **state)
{
    (void)state;
    for (int t = 0; t < KK_ROW_TYPES; t++) {
        for (int i = 0; i < 120; i++)
            attention_case(t, kk_test_between(&rng, 1, 9), kk_test_between(&rng, 1, 40),
                           2 * kk_test_between(&rng, 1, 80), i % 3 == 0 ? 50 : 0);
        for (int D = 64; D <= 512; D *= 2) {
            attention_case(t, 1, 128, D, 0);
            attention_case(t, 8, 127, D, 0);
            attention_case(t, 64, 33, D, 0);
        }
    }
}

static void derive_case(int type, int nk, int D, int R, int rare)
{
    const enum kk_dtype t = row_types[type];
    if (t == KK_Q8_0) D = (D + 31) / 32 * 32;
    void **rows = make_rows(t, nk, D, rare);
    const size_t off = (size_t)kk_test_below(&rng, 5000);
    const void *const *r = rows_before(rows, nk, off);
    float *cs = floats(nk * 2 * R, rare);
    float *w = floats(D, rare), *k = floats(nk * D, 0), *z = copy(k, nk * D);
    char what[80];
    snprintf(what, sizeof what, "derive %s %d x %d, R %d", kk_dtype_name(t), nk, D, R);
    scalar->derive[type](nk, D, R, r, off, w, cs, k);
    fast->derive[type](nk, D, R, r, off, w, cs, z);
    same(z, k, nk * D, what);
    free_rows(rows, nk), free((void *)r);
    free(w), free(k), free(z), free(cs);
}

/* Scores of derived keys are those of derive and scores, one after the other. */
static void derived_case(int type, int nq, int nk, int D, int R, int rare)
{
    const enum kk_dtype t = row_types[type];
    void **rows = make_rows(t, nk, D, rare);
    const size_t off = (size_t)kk_test_below(&rng, 5000);
    const void *const *r = rows_before(rows, nk, off);
    const void **keys = malloc((size_t)nk * sizeof *keys);
    int64_t ldq = D + kk_test_below(&rng, 3), lds = nk + kk_test_below(&rng, 3);
    float *q = floats((nq - 1) * ldq + D, rare), *s = floats(nq * lds, 0), *z = copy(s, nq * lds);
    float *cs = floats(nk * 2 * R, rare), *w = floats(D, rare), *k = floats(nk * D, 0);
    float *y = copy(s, nq * lds);
    char what[80];
    snprintf(what, sizeof what, "derived %s %d x %d x %d, R %d", kk_dtype_name(t), nq, nk, D, R);
    for (int j = 0; j < nk; j++) keys[j] = k + j * D;
    scalar->derive[type](nk, D, R, r, off, w, cs, k);
    scalar->scores[KK_F32](nq, nk, D, q, ldq, keys, keys, 0, 0.125f, s, lds);
    scalar->derived[type](nq, nk, D, R, q, ldq, r, off, w, cs, 0.125f, y, lds);
    same(y, s, nq * lds, what);
    fast->derived[type](nq, nk, D, R, q, ldq, r, off, w, cs, 0.125f, z, lds);
    same(z, s, nq * lds, what);
    free_rows(rows, nk), free((void *)r), free(keys);
    free(q), free(s), free(z), free(y), free(cs), free(w), free(k);
}

static void test_derived(void **state)
{
    (void)state;
    for (int t = 0; t < KK_ROW_TYPES; t++) {
        for (int i = 0; i < 60; i++) {
            int D = 32 * kk_test_between(&rng, 1, 8), R = 16 * kk_test_between(&rng, 0, D / 32);
            derived_case(t, kk_test_between(&rng, 1, 9), kk_test_between(&rng, 1, 40), D, R,
                         i % 3 == 0 ? 50 : 0);
        }
        derived_case(t, 4, 128, 128, 16, 0);
        derived_case(t, 8, 127, 512, KK_DERIVED_R, 0);
        derived_case(t, 1, 9, KK_DERIVED_D, KK_DERIVED_R, 0);
    }
}

static void test_derive_rope(void **state)
{
    (void)state;
    for (int i = 0; i < 300; i++) {
        int D = i % 2 ? 64 << kk_test_below(&rng, 4) : 2 * kk_test_between(&rng, 1, 70);
        int R = kk_test_below(&rng, 3) ? kk_test_between(&rng, 0, D / 2) : D / 2;
        derive_case(i / 2 % KK_ROW_TYPES, kk_test_between(&rng, 1, 5), D, R, i % 5 == 0 ? 40 : 0);
        float *cs = floats(2 * R, 0), *q = floats(D, i % 5 == 0 ? 40 : 0), *z = copy(q, D);
        scalar->rope(D, R, cs, q);
        fast->rope(D, R, cs, z);
        same(z, q, D, "rope");
        free(cs), free(q), free(z);
    }
}

static void test_softmax(void **state)
{
    (void)state;
    for (int i = 0; i < 400; i++) {
        int n = 16 * kk_test_between(&rng, 1, 16), mode = i % 5;
        float *s = floats(n, mode == 1 ? 30 : 0), *z, a[2], b[2];
        for (int j = 0; j < n; j++) {
            s[j] *= 20.0f;
            if (mode == 2 || (mode == 3 && kk_test_below(&rng, 3))) s[j] = -INFINITY;
        }
        z = copy(s, n);
        scalar->softmax(n, s, &a[0], &a[1]);
        fast->softmax(n, z, &b[0], &b[1]);
        a[0] += 0.0f, b[0] += 0.0f; /* the sign of a zero maximum is free */
        same(b, a, 2, "softmax m, l");
        same(z, s, n, "softmax");
        free(s), free(z);
    }
}

/* Sums of splits, whose largest scores are near each other, the same or far apart */
static void merge_case(int D, int rare)
{
    float *n = floats(D + 2, rare), *y = floats(D + 2, rare), *z;
    y[D] = 8 * value(0), n[D] = kk_test_below(&rng, 3) ? 8 * value(0) : y[D];
    if (!kk_test_below(&rng, 4)) n[D] *= 1e4f;
    z = copy(y, D + 2);
    scalar->merge(D, y, n), fast->merge(D, z, n);
    same(z, y, D + 2, "merge");
    free(n), free(y), free(z);
}

static void elementwise_case(int n, int rare)
{
    float *x = floats(n, rare), *w = floats(n, rare), *y = floats(n, rare), *z = copy(y, n);
    float a = value(rare), b = value(rare);
    scalar->norm(n, x, w, 1e-6f, y), fast->norm(n, x, w, 1e-6f, z);
    same(z, y, n, "norm");
    scalar->norm(n, y, NULL, 1e-6f, y), fast->norm(n, z, NULL, 1e-6f, z);
    same(z, y, n, "norm in place");
    scalar->glu(n, KK_GELU_TANH, x, w, y), fast->glu(n, KK_GELU_TANH, x, w, z);
    same(z, y, n, "glu gelu");
    scalar->glu(n, KK_SILU, x, w, y), fast->glu(n, KK_SILU, x, w, z);
    same(z, y, n, "glu silu");
    scalar->add_scale(n, x, b, y), fast->add_scale(n, x, b, z);
    same(z, y, n, "add_scale");
    scalar->axpy(n, a, x, y), fast->axpy(n, a, x, z);
    same(z, y, n, "axpy");
    scalar->softcap(n, 30.0f, y), fast->softcap(n, 30.0f, z);
    same(z, y, n, "softcap");
    scalar->add(n, x, w, y), fast->add(n, x, w, z);
    same(z, y, n, "add");
    scalar->store[KK_F32](n, x, y), fast->store[KK_F32](n, x, z);
    same(z, y, n, "store f32");
    uint16_t *h = malloc((size_t)n * 2), *g = malloc((size_t)n * 2);
    scalar->store[KK_BF16](n, x, h), fast->store[KK_BF16](n, x, g);
    assert_memory_equal(h, g, (size_t)n * 2);
    char *a8 = malloc(kk_dtype_size(KK_Q8_0, n)), *b8 = malloc(kk_dtype_size(KK_Q8_0, n));
    scalar->store[kk_row_type(KK_Q8_0)](n / 32 * 32, x, a8);
    fast->store[kk_row_type(KK_Q8_0)](n / 32 * 32, x, b8);
    assert_memory_equal(a8, b8, kk_dtype_size(KK_Q8_0, n));
    free(x), free(w), free(y), free(z), free(h), free(g), free(a8), free(b8);
}

static void test_elementwise(void **state)
{
    (void)state;
    for (int i = 0; i < 400; i++) elementwise_case(i < 70 ? i + 1 : size(1, 700), i % 2 * 8);
    for (int i = 0; i < 200; i++) merge_case(2 * kk_test_between(&rng, 1, 80), i % 2 * 60);
}

/* The curves over the whole range of float, at a stride coprime to the lanes */
static void test_curves(void **state)
{
    (void)state;
    enum { N = 4096 + 7 };
    static float x[N], one[N], a[N], b[N];
    for (int i = 0; i < N; i++) one[i] = 1.0f;
    uint32_t at = 0;
    for (int round = 0; round < 96; round++) {
        for (int i = 0; i < N; i++, at += 10891) memcpy(&x[i], &at, 4);
        for (int act = KK_GELU_TANH; act <= KK_SILU; act++) {
            scalar->glu(N, act, x, one, a), fast->glu(N, act, x, one, b);
            same(b, a, N, act == KK_SILU ? "silu" : "gelu");
        }
        memcpy(a, x, sizeof a), memcpy(b, x, sizeof b);
        scalar->softcap(N, 1.0f, a), fast->softcap(N, 1.0f, b);
        same(b, a, N, "tanh");
        scalar->store[KK_BF16](N, x, a), fast->store[KK_BF16](N, x, b);
        assert_memory_equal(a, b, N * 2);
    }
}

static void test_argmax(void **state)
{
    (void)state;
    for (int i = 0; i < 400; i++) {
        int64_t n = i < 40 ? i + 1 : size(1, 5000);
        float *x = floats(n, i % 3 == 0 ? 20 : 0);
        if (i % 3 == 1)
            for (int64_t j = 0; j < n; j++) x[j] = (float)kk_test_below(&rng, 4);
        if (i % 7 == 0)
            for (int64_t j = 0; j < n; j++) x[j] = -INFINITY;
        if (i % 5 == 0) /* all of them at times, and then a number after them */
            for (int64_t j = 0; j < n - i % 2; j++)
                if (i % 15 == 0 || kk_test_below(&rng, 3)) x[j] = NAN;
        if (fast->argmax(n, x) != scalar->argmax(n, x))
            fail_msg("%s argmax of %ld is %ld, scalar has %ld", fast->isa, (long)n,
                     (long)fast->argmax(n, x), (long)scalar->argmax(n, x));
        free(x);
    }
}

static int run(const struct kk_cpu_kern *k, int supported)
{
    if (!supported) {
        printf("[  SKIPPED ] this machine has no %s\n", k->isa);
        return 0;
    }
    fast = k;
    rng = kk_test_rng(k->isa);
    printf("%s against scalar\n", k->isa);
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_gemm),        cmocka_unit_test(test_attention),
        cmocka_unit_test(test_pairs),       cmocka_unit_test(test_pairs_flush),
        cmocka_unit_test(test_minus_zero),  cmocka_unit_test(test_derive_rope),
        cmocka_unit_test(test_derived),     cmocka_unit_test(test_softmax),
        cmocka_unit_test(test_elementwise), cmocka_unit_test(test_curves),
        cmocka_unit_test(test_argmax)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}

int main(void)
{
    /* F16C is in every processor that has AVX2 */
    int bad = run(&kk__kern_avx2, __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"));
    bad += run(&kk__kern_avx512,
               __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                   __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq"));
    bad += run(&kk__kern_avx512_bf16, __builtin_cpu_supports("avx512bw") &&
                                          __builtin_cpu_supports("avx512dq") &&
                                          __builtin_cpu_supports("avx512bf16"));
    return bad != 0;
}
