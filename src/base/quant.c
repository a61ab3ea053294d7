/* The one place that knows how ggml's blocks are laid out. */
#include "base/quant.h"

#include "base/err.h"

int kk_quant_bits(enum kk_dtype t)
{
    static const uint8_t bits[] = {[KK_Q4_0] = 4, 4, 5, 5, 8, 4, 5, 6};
    return bits[t];
}

int kk_quant_offset(enum kk_dtype t)
{
    static const uint8_t offset[] = {[KK_Q4_0] = 8, 0, 16, 0, 128, 0, 0, 32};
    return offset[t];
}

static uint16_t u16(const uint8_t *p)
{
    return (uint16_t)(p[0] | p[1] << 8);
}

/* ---- blocks of 32: d, [m], [high bits], codes; the low nibbles are the first 16 numbers ---- */

static void take_32(enum kk_dtype t, const uint8_t *b, struct kk_quant_group *g)
{
    const int has_min = kk_quant_has_min(t);
    g->d = u16(b), g->m = has_min ? u16(b + 2) : 0;
    g->d_times[0] = g->d_times[1] = g->m_times = 1;
    b += has_min ? 4 : 2;
    if (t == KK_Q8_0) {
        for (int i = 0; i < 32; i++) g->code[i] = b[i] ^ 0x80; /* signed byte + 128 */
        return;
    }
    uint32_t high = 0;
    if (kk_quant_bits(t) == 5) {
        high = u16(b) | (uint32_t)u16(b + 2) << 16;
        b += 4;
    }
    for (int i = 0; i < 32; i++) {
        unsigned low = i < 16 ? b[i] & 15 : b[i - 16] >> 4;
        g->code[i] = (uint8_t)(low | (high >> i & 1) << 4);
    }
}

/* ---- blocks of 256 ---- */

/* Q4_K, Q5_K: 12 bytes hold eight scales and eight minima of 6 bits. */
static void take_6_bits(const uint8_t *s, int i, struct kk_quant_group *g)
{
    int d = s[i % 4], m = s[4 + i % 4], both = s[8 + i % 4];
    g->d_times[0] = (int16_t)(i < 4 ? d & 63 : (both & 15) | (d >> 2 & 48));
    g->d_times[1] = g->d_times[0];
    g->m_times = (int16_t)(i < 4 ? m & 63 : both >> 4 | (m >> 2 & 48));
}

/* d, m, scales[12], [high[32], bit i of each for group i], low[128]: 32 bytes for two groups */
static void take_4k_5k(enum kk_dtype t, const uint8_t *b, int i, struct kk_quant_group *g)
{
    const uint8_t *high = t == KK_Q5_K ? b + 16 : NULL, *low = b + (high ? 48 : 16) + i / 2 * 32;
    g->d = u16(b), g->m = u16(b + 2);
    take_6_bits(b + 4, i, g);
    for (int k = 0; k < 32; k++) {
        int bit = high ? high[k] >> i & 1 : 0;
        g->code[k] = (uint8_t)((low[k] >> i % 2 * 4 & 15) | bit << 4);
    }
}

/* low[128]: 64 bytes for four groups; high[64]: 32 bytes for four groups; scales[16]; d */
static void take_6k(const uint8_t *b, int i, struct kk_quant_group *g)
{
    const uint8_t *low = b + i / 4 * 64 + i % 2 * 32, *high = b + 128 + i / 4 * 32;
    g->d = u16(b + 208), g->m = 0, g->m_times = 1;
    for (int h = 0; h < 2; h++) g->d_times[h] = (int8_t)b[192 + 2 * i + h];
    for (int k = 0; k < 32; k++)
        g->code[k] = (uint8_t)((low[k] >> i % 4 / 2 * 4 & 15) | (high[k] >> i % 4 * 2 & 3) << 4);
}

void kk_quant_take(enum kk_dtype t, const void *block, int group, struct kk_quant_group *out)
{
    if (t == KK_Q6_K)
        take_6k(block, group, out);
    else if (kk_quant_is_k(t))
        take_4k_5k(t, block, group, out);
    else
        take_32(t, block, out);
}

void kk_quant_values(enum kk_dtype t, const struct kk_quant_group *g, float *dst)
{
    const float scale[2] = {kk_quant_scale(g, 0), kk_quant_scale(g, 1)}, min = kk_quant_min(t, g);
    const int offset = kk_quant_offset(t), has_min = kk_quant_has_min(t);
    for (int i = 0; i < KK_QUANT_GROUP; i++) {
        dst[i] = scale[i / 16] * (float)(g->code[i] - offset);
        if (has_min) dst[i] += min;
    }
}

void kk_dequant(enum kk_dtype t, const void *src, uint64_t n, float *dst)
{
    const unsigned per = kk_dtype_block(t), bytes = kk_dtype_block_bytes(t);
    KK_BUG_ON(!src);
    for (uint64_t at = 0; at < n; at += KK_QUANT_GROUP) {
        struct kk_quant_group g;
        kk_quant_take(t, (const char *)src + at / per * bytes, (int)(at % per / KK_QUANT_GROUP),
                      &g);
        kk_quant_values(t, &g, dst + at);
    }
}
