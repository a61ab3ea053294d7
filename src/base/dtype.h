/* Number types of stored tensors and KV rows, and exact conversions between them. */
#ifndef KK_BASE_DTYPE_H
#define KK_BASE_DTYPE_H

#include <stddef.h>
#include <stdint.h>
#include <string.h>

/* Block types (Q*) are ggml's: KK_Q8_0 and before hold 32 numbers a block, the K types 256. */
enum kk_dtype {
    KK_F32 = 0,
    KK_BF16 = 1,
    KK_F16 = 2,
    KK_Q4_0,
    KK_Q4_1,
    KK_Q5_0,
    KK_Q5_1,
    KK_Q8_0,
    KK_Q4_K,
    KK_Q5_K,
    KK_Q6_K
};

/* Numbers in the smallest unit of a type (1 where each stands alone), and that unit's bytes. */
static inline unsigned kk_dtype_block(enum kk_dtype t)
{
    return t <= KK_F16 ? 1 : t <= KK_Q8_0 ? 32 : 256;
}

static inline unsigned kk_dtype_block_bytes(enum kk_dtype t)
{
    static const unsigned bytes[] = {4, 2, 2, 18, 20, 22, 24, 34, 144, 176, 210};
    return bytes[t];
}

/* Bytes of one number of a type that has no blocks. */
static inline unsigned kk_dtype_bytes(enum kk_dtype t)
{
    return t == KK_F32 ? 4 : 2;
}

/* Bytes of n numbers, whole blocks of them. */
static inline size_t kk_dtype_size(enum kk_dtype t, int64_t n)
{
    return (size_t)n / kk_dtype_block(t) * kk_dtype_block_bytes(t);
}

static inline const char *kk_dtype_name(enum kk_dtype t)
{
    static const char *const name[] = {"f32",  "bf16", "f16",  "q4_0", "q4_1", "q5_0",
                                       "q5_1", "q8_0", "q4_k", "q5_k", "q6_k"};
    return name[t];
}

static inline float kk_bf16_to_f32(uint16_t b)
{
    uint32_t u = (uint32_t)b << 16;
    float f;
    memcpy(&f, &u, 4);
    return f;
}

/* Round to nearest, ties to even; NaN stays NaN. */
static inline uint16_t kk_f32_to_bf16(float f)
{
    uint32_t u;
    memcpy(&u, &f, 4);
    if ((u & 0x7fffffff) > 0x7f800000) return (uint16_t)(u >> 16 | 0x40);
    return (uint16_t)((u + 0x7fff + (u >> 16 & 1)) >> 16);
}

static inline float kk_f16_to_f32(uint16_t h)
{
    uint32_t sign = (uint32_t)(h & 0x8000) << 16, exp = h >> 10 & 31, man = h & 1023, u;
    if (exp == 31)
        u = sign | 0x7f800000 | man << 13;
    else if (exp)
        u = sign | (exp + 112) << 23 | man << 13;
    else { /* subnormal: man * 2^-24, exact in f32 */
        float f = (float)man * 0x1p-24f;
        memcpy(&u, &f, 4);
        u |= sign;
    }
    float f;
    memcpy(&f, &u, 4);
    return f;
}

/* Round to nearest, ties to even; too large becomes infinity; NaN stays NaN. */
static inline uint16_t kk_f32_to_f16(float f)
{
    uint32_t u;
    memcpy(&u, &f, 4);
    const uint32_t sign = u >> 16 & 0x8000, abs = u & 0x7fffffff, exp = abs >> 23;
    if (abs > 0x7f800000) return (uint16_t)(sign | 0x7e00);
    if (abs >= 0x477ff000) return (uint16_t)(sign | 0x7c00); /* 65520 and more */
    if (exp < 102) return (uint16_t)sign;                    /* below 2^-25 */
    const uint32_t man = (abs & 0x7fffff) | 0x800000;        /* with the leading bit */
    const uint32_t drop = exp >= 113 ? 13 : 126 - exp;       /* bits below an f16 step */
    const uint32_t q = (man + ((1u << (drop - 1)) - 1) + (man >> drop & 1)) >> drop;
    return (uint16_t)(sign | (q + (exp >= 113 ? (exp - 113) << 10 : 0)));
}

#endif
