/* Leaf kernels of the CPU device: a dozen functions on contiguous floats, once per instruction set.
 * ops.c holds everything else (shapes, threads, loops) once, over this table.
 *
 * Canonical arithmetic (docs/adr/0002): the order of every sum is written down here and is the same
 * in every table, so the scalar, AVX2 and AVX-512 tables give identical bits, and the tests between
 * them compare with ==. chain   a sum over i ascending: acc = fma(a[i], b[i], acc), acc starting at
 * +0 lanes   16 partial sums, element i going to lane i % 16 (fma or add, ascending, from +0), then
 *           t[l] += t[l + 8] for l < 8, t[l] += t[l + 4] for l < 4, then + 2, then + 1; result t[0]
 *   kk_exp  below; 1/sqrt is 1.0f / sqrtf(x): both correctly rounded
 * No contraction but the fma written here (-ffp-contract=off). A pure max is order-free.
 *
 * Weight panels: outputs in groups of 16, zero-padded to a whole panel.
 *   f32, f16   panel[k][16]            one output a lane
 *   bf16       panel[k / 2][16][2]     pairs of inputs: a 64-byte load holds 2 x 16 weights; odd K
 * is padded with a zero weight (x is read only below K)
 *   block types   quant_int.h
 * Panel p of a matrix starts at data + p * kk_panel_bytes(dtype, K); data is 64-byte aligned. */
#ifndef KK_DEV_CPU_KERN_INT_H
#define KK_DEV_CPU_KERN_INT_H

#include <math.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include "base/dtype.h"
#include "dev/cpu/quant_int.h"
#include "dev/dev.h"

#define KK_LANES 16

static inline size_t kk_panel_bytes(enum kk_dtype t, int64_t K)
{
    if (kk_dtype_is_block(t)) return kk_q_panel_bytes(t, K);
    return t == KK_F32 ? (size_t)K * 64 : t == KK_F16 ? (size_t)K * 32 : (size_t)((K + 1) / 2) * 64;
}

/* ---- stored rows of keys and values ---- */

enum { KK_ROW_TYPES = 3, KK_Q8_BLOCK = 34, KK_DERIVED_R = 128, KK_DERIVED_D = 1024 };

static inline int kk_row_type(enum kk_dtype t)
{
    return t == KK_F32 ? 0 : t == KK_BF16 ? 1 : 2;
}

/* Blocks of 32 numbers: an f16 d and 32 codes, x is about d * code. d = amax / 127, code = rint(x *
 * (127 / amax)), as activations are rounded (kk_q8_one), and d to f16. */
static inline void kk_row_store_q8(int n, const float *x, void *dst)
{
    char *block = dst;
    for (int i = 0; i < n; i += KK_GROUP, block += KK_Q8_BLOCK) {
        struct kk_q8_group g;
        kk_q8_one(x + i, (int8_t *)block + 2, &g);
        const uint16_t d = kk_f32_to_f16(g.scale);
        memcpy(block, &d, 2);
    }
}

struct kk_cpu_kern {
    const char *isa;

    /* y[r*ldy + n] = chain over k of x[r*ldx + k] * w[n][k], r < M, n < N (only n < N are written;
     * w holds whole panels). By dtype of w. The panels at next will be read soon: a hint; NULL for
     * none. */
    void (*gemm[3])(int M, int64_t N, int64_t K, const float *x, int64_t ldx, const void *w,
                    const void *next, float *y, int64_t ldy);

    /* The same with x and w in bf16. x: pairs of inputs as words, the first in the low half, odd K
     * padded with 0; ldx in words. y = chain over pairs ascending, in a pair the second input
     * first: acc = flushed fma(x, w, acc). Flushed: operands below 2^-126 count as zero, and so
     * does a result that is below it when rounded to 24 bits. That is what vdpbf16ps does, and an
     * fma under FTZ and DAZ (docs/adr/0015). */
    void (*gemm_pairs)(int M, int64_t N, int64_t K, const uint32_t *x, int64_t ldx, const void *w,
                       const void *next, float *y, int64_t ldy);

    /* Tables by kk_row_type: rows are of type F32, BF16 or Q8_0 (D is then whole blocks).
     * s[i*lds + j] = scale * lanes(q_i . row_j) over D, i < nq, j < nk. q_i at q + i*ldq; row_j at
     * rows[j] + off. D is even; missing lanes of the last group count as zero. What is at next[j] +
     * off will be read soon: a hint; `rows` for none. */
    void (*scores[KK_ROW_TYPES])(int nq, int nk, int D, const float *q, int64_t ldq,
                                 const void *const *rows, const void *const *next, size_t off,
                                 float scale, float *s, int64_t lds);

    /* k[j*D ..] = rope(row_j * k_norm): pair r < R: a = row[r]*k_norm[r], b =
     * row[r+D/2]*k_norm[r+D/2]; k[r] = fma(-b, sin, a*cos), k[r+D/2] = fma(a, sin, b*cos); others
     * row*k_norm. cs: {cos, sin} x R of each row, one after another. */
    void (*derive[KK_ROW_TYPES])(int nk, int D, int R, const void *const *rows, size_t off,
                                 const float *k_norm, const float *cs, float *k);

    /* scores of derive's keys, which nobody else wants. R and D/2 are multiples of 16, at most
     * KK_DERIVED_R and KK_DERIVED_D / 2. */
    void (*derived[KK_ROW_TYPES])(int nq, int nk, int D, int R, const float *q, int64_t ldq,
                                  const void *const *rows, size_t off, const float *k_norm,
                                  const float *cs, float scale, float *s, int64_t lds);
    int derived_most; /* queries for which that is faster than derive and scores */

    /* In place over n (a multiple of 16) scores, -inf = not visible: *m = max; s[j] = kk_exp(s[j] -
     * m) (0 for -inf); *l = lanes sum. If all are -inf: *m = -inf, *l = 0, s = 0. */
    void (*softmax)(int n, float *s, float *m, float *l);

    /* o[i*ldo + d] = chain over j of p[i*ldp + j] * row_j[d], d < D, i < nq. Overwrites o. */
    void (*pv[KK_ROW_TYPES])(int nq, int nk, int D, const float *p, int64_t ldp,
                             const void *const *rows, const void *const *next, size_t off, float *o,
                             int64_t ldo);

    /* A query's sums s = {o[D], m, l} of its splits so far, and those n of the split that follows:
     * kk_merge_weights below; o[d] = fma(n_o[d], new, s_o[d] * old), l alike. */
    void (*merge)(int D, float *s, const float *n);

    /* r = 1.0f / sqrtf(lanes(x*x) / n + eps); y[i] = (x[i] * r) * w[i]; w NULL: x[i] * r. y may be
     * x. */
    void (*norm)(int n, const float *x, const float *w, float eps, float *y);

    /* In place: pair r < R of one head [D]: q[r] = fma(-b, sin, a*cos), q[r+D/2] = fma(a, sin,
     * b*cos) */
    void (*rope)(int D, int R, const float *cs, float *q);

    /* y[i] = act(g[i]) * u[i]: kk_gelu_tanh / kk_silu below */
    void (*glu)(int n, enum kk_activation act, const float *g, const float *u, float *y);

    /* y[i] = cap * kk_tanh(y[i] / cap) */
    void (*softcap)(int n, float cap, float *y);

    /* h[i] = (h[i] + x[i]) * scale */
    void (*add_scale)(int n, const float *x, float scale, float *h);

    /* y[i] = a[i] + b[i] */
    void (*add)(int n, const float *a, const float *b, float *y);

    /* y[i] = fma(x[i], a, y[i]) */
    void (*axpy)(int n, float a, const float *x, float *y);

    /* dst = x rounded to the type, to nearest even; Q8_0: kk_row_store_q8 */
    void (*store[KK_ROW_TYPES])(int n, const float *x, void *dst);

    /* Index of the largest, lowest on ties; a NaN is less than all; n >= 1 */
    int64_t (*argmax)(int64_t n, const float *x);
};

extern const struct kk_cpu_kern kk__kern_scalar, kk__kern_avx2, kk__kern_avx512;
/* avx512 with its products of bf16 */
extern const struct kk_cpu_kern kk__kern_avx512_bf16;

/* 1 if y, found after x, is to take its place as the largest */
static inline int kk_is_larger(float y, float x)
{
    return y > x || (x != x && y == y);
}

/* ---- scalar definitions of the transcendental functions; vector tables do the same steps
 * lane-wise -- */

/* exp(x), within 2 ulp on [-87.3, 88]; 0 below, +inf above. Cody-Waite reduction, degree-6
 * polynomial. */
static inline float kk_exp(float x)
{
    if (!(x >= -87.33654f)) return x == x ? 0.0f : x;
    if (x > 88.72283f) return INFINITY;
    float n = rintf(x * 1.44269504f);
    float r = fmaf(n, -0.693359375f, x);
    r = fmaf(n, 2.12194440e-4f, r);
    float p = 1.9875691500e-4f;
    p = fmaf(p, r, 1.3981999507e-3f);
    p = fmaf(p, r, 8.3334519073e-3f);
    p = fmaf(p, r, 4.1665795894e-2f);
    p = fmaf(p, r, 1.6666665459e-1f);
    p = fmaf(p, r, 5.0000001201e-1f);
    p = fmaf(p, r * r, r) + 1.0f;
    /* times 2^n in two exact steps, n in [-126, 128] */
    int32_t i = (int32_t)n, a = i >> 1, b = i - a;
    uint32_t ua = (uint32_t)(a + 127) << 23, ub = (uint32_t)(b + 127) << 23;
    float fa, fb;
    memcpy(&fa, &ua, 4);
    memcpy(&fb, &ub, 4);
    return p * fa * fb;
}

/* Weights of the sums so far, whose largest score was m0, and of a split with m1, neither -inf;
 * returns the larger. */
static inline float kk_merge_weights(float m0, float m1, float *old, float *new)
{
    const float m = m0 > m1 ? m0 : m1;
    *old = m0 == m ? 1 : kk_exp(m0 - m); /* kk_exp(0) is 1 */
    *new = m1 == m ? 1 : kk_exp(m1 - m);
    return m;
}

/* sign(x) * (1 - e) / (1 + e), e = exp(-2|x|) */
static inline float kk_tanh(float x)
{
    float e = kk_exp(-2.0f * fabsf(x));
    return copysignf((1.0f - e) / (1.0f + e), x);
}

/* x / (1 + exp(-x)) */
static inline float kk_silu(float x)
{
    return x / (1.0f + kk_exp(-x));
}

/* 0.5 x (1 + tanh(u)) = x / (1 + exp(-2u)), u = sqrt(2/pi) (x + 0.044715 x^3) */
static inline float kk_gelu_tanh(float x)
{
    float x2 = x * x;
    float u2 = (1.5957691216f * x) * fmaf(0.044715f, x2, 1.0f);
    return x / (1.0f + kk_exp(-u2));
}

#endif
