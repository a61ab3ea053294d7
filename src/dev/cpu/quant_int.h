/* Weights of block types on the CPU: how a panel of them is laid out, and rows of activations in 8
 * bits (docs/adr/0008).
 *
 * A group is 32 inputs, [32 g, 32 g + 32); K is whole groups, of K types whole blocks of 256. A
 * panel of 16 outputs is its scales and then its codes, both from a multiple of 64 bytes on:
 *
 *   scales   types of 32     for each group: d[16] f16, [m[16] f16 if there is a minimum]
 *            q4_k, q5_k      for each 256: d[16] f16, m[16] f16, 8 x {d_times[16], m_times[16]} u8
 *            q6_k            for each 256: d[16] f16, 8 x {d_times[2][16]} s8, by halves
 *   codes    for each group, pieces of 64 bytes, 4 for each output: byte 4 l + b of vector j < 8 is
 *            the code of input 4 j + b for output l (base/quant.h: not signed)
 *            4 bits or more  piece i < 4: vector i in the low nibbles, i + 4 in the high ones
 *            5 bits          then a piece: bit 4 of vector j in bit j
 *            6 bits          then two: bits 4, 5 of vector 4 h + i in bits 2 i, 2 i + 1 of piece h
 *            8 bits          piece j: vector j
 *
 * A product with activations in 8 bits is, for each output and row, a chain over the groups:
 *     I = sum of (code - offset) * q          exact
 *     acc = fma((float)I, scale * x.scale, acc); then, with a minimum, acc = fma(min, x.sum, acc)
 * q6_k: first the lower half of the group with its scale, then the upper. */
#ifndef KK_DEV_CPU_QUANT_INT_H
#define KK_DEV_CPU_QUANT_INT_H

#include <math.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include "base/quant.h"

enum { KK_GROUP = KK_QUANT_GROUP, KK_SUPER = 256 };

/* ---- panels ---- */

static inline size_t kk_q_code_bytes(enum kk_dtype t) /* of a group */
{
    return (size_t)kk_quant_bits(t) * 64;
}

static inline size_t kk_q_scale_bytes(enum kk_dtype t, int64_t K) /* of a panel */
{
    size_t bytes = !kk_quant_is_k(t) ? (size_t)(K / KK_GROUP) * (kk_quant_has_min(t) ? 64 : 32)
                                     : (size_t)(K / KK_SUPER) * (t == KK_Q6_K ? 288 : 320);
    return (bytes + 63) & ~(size_t)63;
}

static inline size_t kk_q_panel_bytes(enum kk_dtype t, int64_t K)
{
    return kk_q_scale_bytes(t, K) + (size_t)(K / KK_GROUP) * kk_q_code_bytes(t);
}

/* Where the scales of group g begin: d, and for K types the integers of the group. */
static inline size_t kk_q_scale_at(enum kk_dtype t, int64_t g)
{
    if (!kk_quant_is_k(t)) return (size_t)g * (kk_quant_has_min(t) ? 64 : 32);
    return (size_t)(g / 8) * (t == KK_Q6_K ? 288 : 320);
}

static inline size_t kk_q_times_at(enum kk_dtype t, int64_t g)
{
    return kk_q_scale_at(t, g) + (t == KK_Q6_K ? 32 : 64) + (size_t)(g % 8) * 32;
}

/* Group g of output l of a panel. Packing writes into zeroed memory. */
void kk_q_pack(enum kk_dtype t, void *panel, int64_t K, int64_t g, int l,
               const struct kk_quant_group *from);
void kk_q_unpack(enum kk_dtype t, const void *panel, int64_t K, int64_t g, int l,
                 struct kk_quant_group *to);

/* ---- activations: a row is K bytes q and then one kk_q8_group for each group ---- */

struct kk_q8_group {
    float scale, sum; /* x is about scale * q; sum = scale * (the sum of q) */
    int32_t minus[2]; /* minus the sum of q: of all, of the lower half */
};

static inline size_t kk_q8_row_bytes(int64_t K)
{
    return (size_t)K + (size_t)(K / KK_GROUP) * sizeof(struct kk_q8_group);
}

struct kk_q8_range {
    float amax, by;
    int bad;
};

/* top: the bits of max |x| */
static inline struct kk_q8_range kk_q8_range(uint32_t top)
{
    struct kk_q8_range r = {.bad = top >= 0x7f800000};
    memcpy(&r.amax, &top, 4);
    if (r.bad || r.amax < 0x1p-100f) r.amax = 0;
    r.by = r.amax > 0 ? 127.0f / r.amax : 0.0f;
    return r;
}

/* lower, upper: the sums of q of the two halves */
static inline struct kk_q8_group kk_q8_group(const struct kk_q8_range *r, int32_t lower,
                                             int32_t upper)
{
    struct kk_q8_group g = {.scale = r->bad ? NAN : r->amax / 127.0f,
                            .minus = {-lower - upper, -lower}};
    g.sum = g.scale * (float)-g.minus[0];
    return g;
}

/* amax = max |x|; scale = amax / 127, q = rint(x * (127 / amax)). Below 2^-100, amax counts as 0:
 * all is 0. With a NaN or an infinity among x, q = 0 and the scale is NaN. */
static inline void kk_q8_one(const float *x, int8_t *q, struct kk_q8_group *g)
{
    uint32_t bits[KK_GROUP], top = 0;
    memcpy(bits, x, sizeof bits);
    for (int i = 0; i < KK_GROUP; i++) {
        uint32_t b = bits[i] & 0x7fffffff;
        top = b > top ? b : top;
    }
    const struct kk_q8_range r = kk_q8_range(top);
    int32_t half[2] = {0, 0};
    for (int h = 0; h < 2; h++)
        for (int i = 16 * h; i < 16 * h + 16; i++) {
            int32_t v = r.bad ? 0 : (int32_t)rintf(x[i] * r.by);
            q[i] = (int8_t)v;
            half[h] += v;
        }
    *g = kk_q8_group(&r, half[0], half[1]);
}

static inline void kk_q8_quantise(int64_t K, int64_t g0, int64_t g1, const float *x, void *row)
{
    int8_t *q = row;
    struct kk_q8_group *g = (struct kk_q8_group *)(q + K);
    for (int64_t i = g0; i < g1; i++) kk_q8_one(x + i * KK_GROUP, q + i * KK_GROUP, g + i);
}

/* ---- the tables ---- */

struct kk_cpu_q8 {
    const char *isa;

    /* Groups [g0, g1) of x[K] to a row */
    void (*quantise)(int64_t K, int64_t g0, int64_t g1, const float *x, void *row);

    /* The 32 x 16 weights of group g of a panel, the bits of kk_dequant: w[k * 16 + l] */
    void (*weights)(enum kk_dtype t, const void *panel, int64_t K, int64_t g, float *w);

    /* y[r*ldy + n], r < M, n < N, as above; row r is at x + r * stride; w holds whole panels */
    void (*gemm)(enum kk_dtype t, int M, int64_t N, int64_t K, const void *x, size_t stride,
                 const void *w, float *y, int64_t ldy);
};

/* vnni is avx512 with its integer dot product */
extern const struct kk_cpu_q8 kk__q8_scalar, kk__q8_avx2, kk__q8_avx512, kk__q8_vnni;

#endif
