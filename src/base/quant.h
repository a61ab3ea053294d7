/* Numbers stored in blocks (ggml's quantised types): a block taken apart, and the numbers it means.
 *
 * Every type is seen in one way. A group is 32 consecutive numbers of a block; number i of it is
 *     scale(i / 16) * (code[i] - offset)   [+ minimum, where the type has one]
 * each operation rounded to f32, which gives the bits of ggml's own definition. */
#ifndef KK_BASE_QUANT_H
#define KK_BASE_QUANT_H

#include <stdint.h>

#include "base/dtype.h"

enum { KK_QUANT_GROUP = 32 };

static inline int kk_dtype_is_block(enum kk_dtype t)
{
    return t >= KK_Q4_0;
}

/* Scales of a block are d times small integers (the K types). */
static inline int kk_quant_is_k(enum kk_dtype t)
{
    return t >= KK_Q4_K;
}

static inline int kk_quant_has_min(enum kk_dtype t)
{
    return t == KK_Q4_1 || t == KK_Q5_1 || t == KK_Q4_K || t == KK_Q5_K;
}

/* Bits of a code, 4, 5, 6 or 8, and the code that means zero where there is no minimum. */
int kk_quant_bits(enum kk_dtype t);
int kk_quant_offset(enum kk_dtype t);

/* A group as stored. */
struct kk_quant_group {
    uint16_t d, m;      /* f16: scale, and minimum (0 if none) */
    int16_t d_times[2]; /* K types: d is times this, for each half of the group; else 1 */
    int16_t m_times;    /* K types: minimum = -(m * this); else 1, and minimum = m */
    uint8_t code[KK_QUANT_GROUP];
};

/* Group `group` of the block at `block`. */
void kk_quant_take(enum kk_dtype t, const void *block, int group, struct kk_quant_group *out);

static inline float kk_quant_scale(const struct kk_quant_group *g, int half)
{
    return kk_f16_to_f32(g->d) * (float)g->d_times[half];
}

static inline float kk_quant_min(enum kk_dtype t, const struct kk_quant_group *g)
{
    float m = kk_f16_to_f32(g->m);
    return kk_quant_is_k(t) ? -(m * (float)g->m_times) : m;
}

/* The 32 numbers of a group */
void kk_quant_values(enum kk_dtype t, const struct kk_quant_group *g, float *dst);

/* n numbers, a multiple of kk_dtype_block(t), from stored blocks. src needs no alignment. */
void kk_dequant(enum kk_dtype t, const void *src, uint64_t n, float *dst);

#endif
