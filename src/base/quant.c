/* Layouts, in bytes; d, m: f16, little-endian. q of 4 bits: number i of the first half of a group
 * is in the low half of byte i, number i of the second half in the high half.
 *
 *   Q4_0  d[2] q[16]           d * (q - 8)
 *   Q4_1  d[2] m[2] q[16]      d * q + m
 *   Q5_0  d[2] h[4] q[16]      d * (q + 16 h - 16): bit i of h is number i's fifth
 *   Q5_1  d[2] m[2] h[4] q[16] d * (q + 16 h) + m
 *   Q8_0  d[2] q[32]           d * q, q signed
 *   Q4_K  d[2] m[2] s[12] q[128]          8 groups of 32: (d s_g) * q - (m m_g), 6-bit s_g and m_g
 *   Q5_K  d[2] m[2] s[12] h[32] q[128]    the same; bit g of h[i] is number i of group g's fifth
 *   Q6_K  l[128] h[64] s[16] d[2]         16 groups of 16: (d s_g) * (l + 16 h - 32), s_g signed */
#include "base/quant.h"

#include "base/err.h"

typedef unsigned char u8;

static float half(const u8 *p)
{
    return kk_f16_to_f32((uint16_t)(p[0] | p[1] << 8));
}

/* Bit i of a little-endian word, as the value 16 or 0. */
static int fifth(const u8 *h, int i)
{
    return (h[i >> 3] >> (i & 7) & 1) << 4;
}

static void q4_0(const u8 *b, float *y)
{
    float d = half(b);
    for (int i = 0; i < 16; i++) {
        y[i] = d * (float)((b[2 + i] & 15) - 8);
        y[i + 16] = d * (float)((b[2 + i] >> 4) - 8);
    }
}

static void q4_1(const u8 *b, float *y)
{
    float d = half(b), m = half(b + 2);
    for (int i = 0; i < 16; i++) {
        y[i] = d * (float)(b[4 + i] & 15) + m;
        y[i + 16] = d * (float)(b[4 + i] >> 4) + m;
    }
}

static void q5_0(const u8 *b, float *y)
{
    float d = half(b);
    for (int i = 0; i < 16; i++) {
        y[i] = d * (float)((b[6 + i] & 15) + fifth(b + 2, i) - 16);
        y[i + 16] = d * (float)((b[6 + i] >> 4) + fifth(b + 2, i + 16) - 16);
    }
}

static void q5_1(const u8 *b, float *y)
{
    float d = half(b), m = half(b + 2);
    for (int i = 0; i < 16; i++) {
        y[i] = d * (float)((b[8 + i] & 15) + fifth(b + 4, i)) + m;
        y[i + 16] = d * (float)((b[8 + i] >> 4) + fifth(b + 4, i + 16)) + m;
    }
}

static void q8_0(const u8 *b, float *y)
{
    float d = half(b);
    for (int i = 0; i < 32; i++) y[i] = d * (float)(int8_t)b[2 + i];
}

/* Scale and minimum of group g of a Q4_K or Q5_K block: 6 bits each, the last four groups' upper
 * two bits kept above those of the first four. */
static void scale_min(const u8 *s, int g, int *scale, int *min)
{
    if (g < 4) {
        *scale = s[g] & 63;
        *min = s[g + 4] & 63;
    } else {
        *scale = (s[g + 4] & 15) | (s[g - 4] >> 6) << 4;
        *min = s[g + 4] >> 4 | (s[g] >> 6) << 4;
    }
}

/* Q4_K (h NULL) and Q5_K. */
static void k_groups(const u8 *b, const u8 *h, const u8 *q, float *y)
{
    for (int g = 0; g < 8; g++) {
        int s, m, shift = (g & 1) * 4;
        scale_min(b + 4, g, &s, &m);
        float d = half(b) * (float)s, low = half(b + 2) * (float)m;
        for (int i = 0; i < 32; i++) {
            int v = q[(g >> 1) * 32 + i] >> shift & 15;
            if (h) v |= (h[i] >> g & 1) << 4;
            y[g * 32 + i] = d * (float)v - low;
        }
    }
}

static void q4_k(const u8 *b, float *y)
{
    k_groups(b, NULL, b + 16, y);
}

static void q5_k(const u8 *b, float *y)
{
    k_groups(b, b + 16, b + 48, y);
}

static void q6_k(const u8 *b, float *y)
{
    const u8 *h = b + 128;
    const int8_t *s = (const int8_t *)b + 192;
    float d = half(b + 208);
    for (int i = 0; i < 256; i++) {
        int part = i & 127, row = part >> 5, at = i & 31, side = i >> 7;
        int low = b[side * 64 + (row & 1) * 32 + at] >> (row >> 1) * 4 & 15;
        int high = h[side * 32 + at] >> row * 2 & 3;
        y[i] = d * (float)s[i >> 4] * (float)((low | high << 4) - 32);
    }
}

static void plain(enum kk_dtype t, const u8 *p, uint64_t n, float *y)
{
    for (uint64_t i = 0; i < n; i++) {
        uint16_t h;
        if (t == KK_F32) {
            memcpy(&y[i], p + 4 * i, 4);
            continue;
        }
        memcpy(&h, p + 2 * i, 2);
        y[i] = t == KK_BF16 ? kk_bf16_to_f32(h) : kk_f16_to_f32(h);
    }
}

void kk_dequant(enum kk_dtype t, const void *src, uint64_t n, float *dst)
{
    static void (*const block[])(const u8 *, float *) = {
        [KK_Q4_0] = q4_0, [KK_Q4_1] = q4_1, [KK_Q5_0] = q5_0, [KK_Q5_1] = q5_1,
        [KK_Q8_0] = q8_0, [KK_Q4_K] = q4_k, [KK_Q5_K] = q5_k, [KK_Q6_K] = q6_k};
    const u8 *p = src;
    unsigned size = kk_dtype_block(t);
    KK_BUG_ON(n % size);
    if (size == 1) {
        plain(t, p, n, dst);
        return;
    }
    for (uint64_t i = 0; i < n; i += size, p += kk_dtype_block_bytes(t)) block[t](p, dst + i);
}
