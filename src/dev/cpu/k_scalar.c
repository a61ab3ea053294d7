/* The oracle: every leaf of kern_int.h, written as its definition. */
#include "dev/cpu/kern_int.h"

/* ---- matrix product ---- */

/* Weight of input k for output `lane` of a panel */
static float panel_at(enum kk_dtype t, const char *panel, int64_t k, int lane)
{
    if (t == KK_F32) return ((const float *)panel)[k * KK_LANES + lane];
    if (t == KK_F16) return kk_f16_to_f32(((const uint16_t *)panel)[k * KK_LANES + lane]);
    return kk_bf16_to_f32(((const uint16_t *)panel)[(k / 2 * KK_LANES + lane) * 2 + k % 2]);
}

static void gemm(enum kk_dtype t, int M, int64_t N, int64_t K, const float *x, int64_t ldx,
                 const void *w, float *y, int64_t ldy)
{
    for (int64_t n = 0; n < N; n += KK_LANES) {
        const char *panel = (const char *)w + (size_t)(n / KK_LANES) * kk_panel_bytes(t, K);
        int lanes = N - n < KK_LANES ? (int)(N - n) : KK_LANES;
        for (int r = 0; r < M; r++) {
            float acc[KK_LANES] = {0};
            for (int64_t k = 0; k < K; k++)
                for (int i = 0; i < lanes; i++)
                    acc[i] = fmaf(x[r * ldx + k], panel_at(t, panel, k, i), acc[i]);
            for (int i = 0; i < lanes; i++) y[r * ldy + n + i] = acc[i];
        }
    }
}

static void gemm_f32(int M, int64_t N, int64_t K, const float *x, int64_t ldx, const void *w,
                     const void *next, float *y, int64_t ldy)
{
    (void)next;
    gemm(KK_F32, M, N, K, x, ldx, w, y, ldy);
}

static void gemm_bf16(int M, int64_t N, int64_t K, const float *x, int64_t ldx, const void *w,
                      const void *next, float *y, int64_t ldy)
{
    (void)next;
    gemm(KK_BF16, M, N, K, x, ldx, w, y, ldy);
}

static void gemm_f16(int M, int64_t N, int64_t K, const float *x, int64_t ldx, const void *w,
                     const void *next, float *y, int64_t ldy)
{
    (void)next;
    gemm(KK_F16, M, N, K, x, ldx, w, y, ldy);
}

static float flush_in(float x)
{
    return fabsf(x) < 0x1p-126f ? copysignf(0, x) : x;
}

/* Flushed fma. Near 2^-126 the rounding to subnormals may have hidden which side the result is on:
 * from 2^-126 - 2^-151 on it rounds to 2^-126. There c is so small that the shift is exact. */
static float flushed_fma(float a, float b, float c)
{
    const double least = 0x1p-126 - 0x1p-151;
    a = flush_in(a), b = flush_in(b), c = flush_in(c);
    const float r = fmaf(a, b, c);
    if (!(fabsf(r) <= 0x1p-126f)) return r;
    const double s = copysign(1.0, (double)r);
    const int stays = s * fma((double)a, (double)b, (double)c - s * least) >= 0;
    return copysignf(stays ? 0x1p-126f : 0.0f, r);
}

static float bf16_half(uint32_t pair, int high)
{
    return kk_bf16_to_f32((uint16_t)(high ? pair >> 16 : pair));
}

static void gemm_pairs(int M, int64_t N, int64_t K, const uint32_t *x, int64_t ldx, const void *w,
                       const void *next, float *y, int64_t ldy)
{
    (void)next;
    const size_t bytes = kk_panel_bytes(KK_BF16, K);
    for (int64_t n = 0; n < N; n++)
        for (int r = 0; r < M; r++) {
            const uint32_t *panel =
                (const uint32_t *)(const void *)((const char *)w + (size_t)(n / KK_LANES) * bytes);
            float acc = 0;
            for (int64_t k = 0; k < (K + 1) / 2; k++) {
                const uint32_t a = x[r * ldx + k], b = panel[k * KK_LANES + n % KK_LANES];
                for (int high = 1; high >= 0; high--)
                    acc = flushed_fma(bf16_half(a, high), bf16_half(b, high), acc);
            }
            y[r * ldy + n] = acc;
        }
}

/* ---- sums by lanes ---- */

static float fold(float t[KK_LANES])
{
    for (int step = KK_LANES / 2; step; step /= 2)
        for (int l = 0; l < step; l++) t[l] += t[l + step];
    return t[0];
}

static float row_at(enum kk_dtype t, const void *row, int64_t i)
{
    if (t == KK_Q8_0) {
        const char *block = (const char *)row + i / KK_GROUP * KK_Q8_BLOCK;
        uint16_t d;
        memcpy(&d, block, 2);
        return (float)((const int8_t *)block)[2 + i % KK_GROUP] * kk_f16_to_f32(d);
    }
    return t == KK_F32 ? ((const float *)row)[i] : kk_bf16_to_f32(((const uint16_t *)row)[i]);
}

/* ---- attention ---- */

static const void *row_of(const void *const *rows, int j, size_t off)
{
    return (const char *)rows[j] + off;
}

static void scores(enum kk_dtype t, int nq, int nk, int D, const float *q, int64_t ldq,
                   const void *const *rows, size_t off, float scale, float *s, int64_t lds)
{
    for (int i = 0; i < nq; i++)
        for (int j = 0; j < nk; j++) {
            float lane[KK_LANES] = {0};
            for (int d = 0; d < D; d++)
                lane[d % KK_LANES] =
                    fmaf(q[i * ldq + d], row_at(t, row_of(rows, j, off), d), lane[d % KK_LANES]);
            s[i * lds + j] = scale * fold(lane);
        }
}

#define SCORES(name, t)                                                                            \
    static void scores_##name(int nq, int nk, int D, const float *q, int64_t ldq,                  \
                              const void *const *rows, const void *const *next, size_t off,        \
                              float scale, float *s, int64_t lds)                                  \
    {                                                                                              \
        (void)next;                                                                                \
        scores(t, nq, nk, D, q, ldq, rows, off, scale, s, lds);                                    \
    }
SCORES(f32, KK_F32)
SCORES(bf16, KK_BF16)
SCORES(q8, KK_Q8_0)

static void rope(int D, int R, const float *cs, float *q)
{
    for (int r = 0; r < R; r++) {
        float a = q[r], b = q[r + D / 2], c = cs[2 * r], s = cs[2 * r + 1];
        q[r] = fmaf(-b, s, a * c);
        q[r + D / 2] = fmaf(a, s, b * c);
    }
}

static void derive(enum kk_dtype t, int nk, int D, int R, const void *const *rows, size_t off,
                   const float *k_norm, const float *cs, float *k)
{
    for (int j = 0; j < nk; j++) {
        for (int d = 0; d < D; d++) k[j * D + d] = row_at(t, row_of(rows, j, off), d) * k_norm[d];
        rope(D, R, cs + (int64_t)j * 2 * R, k + j * D);
    }
}

#define DERIVE(name, t)                                                                            \
    static void derive_##name(int nk, int D, int R, const void *const *rows, size_t off,           \
                              const float *k_norm, const float *cs, float *k)                      \
    {                                                                                              \
        derive(t, nk, D, R, rows, off, k_norm, cs, k);                                             \
    }
DERIVE(f32, KK_F32)
DERIVE(bf16, KK_BF16)
DERIVE(q8, KK_Q8_0)

static void derived(enum kk_dtype t, int nq, int nk, int D, int R, const float *q, int64_t ldq,
                    const void *const *rows, size_t off, const float *k_norm, const float *cs,
                    float scale, float *s, int64_t lds)
{
    for (int j = 0; j < nk; j++) {
        float k[KK_DERIVED_D] = {0};
        const void *key = k;
        derive(t, 1, D, R, rows + j, off, k_norm, cs + (int64_t)j * 2 * R, k);
        scores(KK_F32, nq, 1, D, q, ldq, &key, 0, scale, s + j, lds);
    }
}

#define DERIVED(name, t)                                                                           \
    static void derived_##name(int nq, int nk, int D, int R, const float *q, int64_t ldq,          \
                               const void *const *rows, size_t off, const float *k_norm,           \
                               const float *cs, float scale, float *s, int64_t lds)                \
    {                                                                                              \
        derived(t, nq, nk, D, R, q, ldq, rows, off, k_norm, cs, scale, s, lds);                    \
    }
DERIVED(f32, KK_F32)
DERIVED(bf16, KK_BF16)
DERIVED(q8, KK_Q8_0)

static void softmax(int n, float *s, float *m, float *l)
{
    float lane[KK_LANES] = {0};
    *m = -INFINITY;
    for (int j = 0; j < n; j++)
        if (s[j] > *m) *m = s[j];
    for (int j = 0; j < n; j++) {
        s[j] = *m == -INFINITY ? 0.0f : kk_exp(s[j] - *m);
        lane[j % KK_LANES] += s[j];
    }
    *l = fold(lane);
}

static void pv(enum kk_dtype t, int nq, int nk, int D, const float *p, int64_t ldp,
               const void *const *rows, size_t off, float *o, int64_t ldo)
{
    for (int i = 0; i < nq; i++)
        for (int d = 0; d < D; d++) {
            float acc = 0;
            for (int j = 0; j < nk; j++)
                acc = fmaf(p[i * ldp + j], row_at(t, row_of(rows, j, off), d), acc);
            o[i * ldo + d] = acc;
        }
}

#define PV(name, t)                                                                                \
    static void pv_##name(int nq, int nk, int D, const float *p, int64_t ldp,                      \
                          const void *const *rows, const void *const *next, size_t off, float *o,  \
                          int64_t ldo)                                                             \
    {                                                                                              \
        (void)next;                                                                                \
        pv(t, nq, nk, D, p, ldp, rows, off, o, ldo);                                               \
    }
PV(f32, KK_F32)
PV(bf16, KK_BF16)
PV(q8, KK_Q8_0)

static void merge(int D, float *s, const float *n)
{
    float old, new;
    s[D] = kk_merge_weights(s[D], n[D], &old, &new);
    for (int d = 0; d < D + 2; d++)
        if (d != D) s[d] = fmaf(n[d], new, s[d] * old);
}

/* ---- elementwise ---- */

static void norm(int n, const float *x, const float *w, float eps, float *y)
{
    float lane[KK_LANES] = {0};
    for (int i = 0; i < n; i++) lane[i % KK_LANES] = fmaf(x[i], x[i], lane[i % KK_LANES]);
    float r = 1.0f / sqrtf(fold(lane) / (float)n + eps);
    for (int i = 0; i < n; i++) y[i] = w ? (x[i] * r) * w[i] : x[i] * r;
}

static void glu(int n, enum kk_activation act, const float *g, const float *u, float *y)
{
    for (int i = 0; i < n; i++) y[i] = (act == KK_SILU ? kk_silu(g[i]) : kk_gelu_tanh(g[i])) * u[i];
}

static void softcap(int n, float cap, float *y)
{
    for (int i = 0; i < n; i++) y[i] = cap * kk_tanh(y[i] / cap);
}

static void add_scale(int n, const float *x, float scale, float *h)
{
    for (int i = 0; i < n; i++) h[i] = (h[i] + x[i]) * scale;
}

static void add(int n, const float *a, const float *b, float *y)
{
    for (int i = 0; i < n; i++) y[i] = a[i] + b[i];
}

static void axpy(int n, float a, const float *x, float *y)
{
    for (int i = 0; i < n; i++) y[i] = fmaf(x[i], a, y[i]);
}

static void store_f32(int n, const float *x, void *dst)
{
    memcpy(dst, x, (size_t)n * sizeof *x);
}

static void store_bf16(int n, const float *x, void *dst)
{
    for (int i = 0; i < n; i++) ((uint16_t *)dst)[i] = kk_f32_to_bf16(x[i]);
}

static void store_q8(int n, const float *x, void *dst)
{
    kk_row_store_q8(n, x, dst);
}

static int64_t argmax(int64_t n, const float *x)
{
    int64_t best = 0;
    for (int64_t i = 1; i < n; i++)
        if (kk_is_larger(x[i], x[best])) best = i;
    return best;
}

const struct kk_cpu_kern kk__kern_scalar = {
    .isa = "scalar",
    .gemm = {gemm_f32, gemm_bf16, gemm_f16},
    .gemm_pairs = gemm_pairs,
    .scores = {scores_f32, scores_bf16, scores_q8},
    .derive = {derive_f32, derive_bf16, derive_q8},
    .derived = {derived_f32, derived_bf16, derived_q8},
    .softmax = softmax,
    .pv = {pv_f32, pv_bf16, pv_q8},
    .merge = merge,
    .norm = norm,
    .rope = rope,
    .glu = glu,
    .softcap = softcap,
    .add_scale = add_scale,
    .add = add,
    .axpy = axpy,
    .store = {store_f32, store_bf16, store_q8},
    .argmax = argmax,
};
