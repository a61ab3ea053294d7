/* Panels of block types, written and read plainly; the oracle of the products with them. */
#include "dev/cpu/quant_int.h"

/* ---- packing ---- */

static uint32_t four(const struct kk_quant_group *g, int vector)
{
    uint32_t u;
    memcpy(&u, g->code + 4 * vector, 4);
    return u;
}

/* Codes of output l */
static void pack_codes(int bits, const struct kk_quant_group *g, int l, uint8_t *to)
{
    uint32_t piece[8] = {0}, v;
    for (int j = 0; j < 8; j++) {
        v = four(g, j);
        if (bits == 8) {
            piece[j] = v;
            continue;
        }
        piece[j % 4] |= (v & 0x0f0f0f0f) << j / 4 * 4;
        if (bits == 5) piece[4] |= (v >> 4 & 0x01010101) << j;
        if (bits == 6) piece[4 + j / 4] |= (v >> 4 & 0x03030303) << j % 4 * 2;
    }
    for (int i = 0; i < bits; i++) memcpy(to + i * 64 + l * 4, &piece[i], 4);
}

void kk_q_pack(enum kk_dtype t, const struct kk_quant_group *from, int64_t K, int64_t g,
               void *panel)
{
    char *scale = (char *)panel + kk_q_scale_at(t, g), *times = NULL;
    uint8_t *codes = (uint8_t *)panel + kk_q_scale_bytes(t, K) + (size_t)g * kk_q_code_bytes(t);
    if (kk_quant_is_k(t)) times = (char *)panel + kk_q_times_at(t, g);
    for (int l = 0; l < 16; l++) {
        memcpy(scale + l * 2, &from[l].d, 2);
        if (kk_quant_has_min(t)) memcpy(scale + 32 + l * 2, &from[l].m, 2);
        if (times) {
            times[l] = (char)from[l].d_times[0];
            times[16 + l] = (char)(t == KK_Q6_K ? from[l].d_times[1] : from[l].m_times);
        }
        pack_codes(kk_quant_bits(t), &from[l], l, codes);
    }
}

/* ---- reading ---- */

static void open_codes(int bits, const uint8_t *p, uint8_t (*code)[64])
{
    for (int j = 0; j < 8; j++)
        for (int i = 0; i < 64; i++) {
            if (bits == 8) {
                code[j][i] = p[j * 64 + i];
                continue;
            }
            int c = p[j % 4 * 64 + i] >> j / 4 * 4 & 15;
            if (bits == 5) c |= (p[256 + i] >> j & 1) << 4;
            if (bits == 6) c |= (p[256 + j / 4 * 64 + i] >> j % 4 * 2 & 3) << 4;
            code[j][i] = (uint8_t)c;
        }
}

void kk_q_open(enum kk_dtype t, const void *panel, int64_t K, int64_t g, struct kk_q_group *out)
{
    const char *scale = (const char *)panel + kk_q_scale_at(t, g);
    const uint8_t *times = (const uint8_t *)panel + (kk_quant_is_k(t) ? kk_q_times_at(t, g) : 0);
    const uint8_t *codes = (const uint8_t *)panel + kk_q_scale_bytes(t, K);
    for (int l = 0; l < 16; l++) {
        struct kk_quant_group q = {.d_times = {1, 1}, .m_times = 1};
        memcpy(&q.d, scale + l * 2, 2);
        if (kk_quant_has_min(t)) memcpy(&q.m, scale + 32 + l * 2, 2);
        if (t == KK_Q6_K)
            q.d_times[0] = (int8_t)times[l], q.d_times[1] = (int8_t)times[16 + l];
        else if (kk_quant_is_k(t))
            q.d_times[0] = q.d_times[1] = times[l], q.m_times = times[16 + l];
        out->scale[0][l] = kk_quant_scale(&q, 0);
        out->scale[1][l] = kk_quant_scale(&q, 1);
        out->min[l] = kk_quant_min(t, &q);
    }
    open_codes(kk_quant_bits(t), codes + (size_t)g * kk_q_code_bytes(t), out->code);
}

void kk_q_weights(enum kk_dtype t, const void *panel, int64_t K, int64_t g, float *w)
{
    const int offset = kk_quant_offset(t), has_min = kk_quant_has_min(t);
    struct kk_q_group q;
    kk_q_open(t, panel, K, g, &q);
    for (int k = 0; k < KK_GROUP; k++)
        for (int l = 0; l < 16; l++) {
            float *to = &w[k * 16 + l];
            *to = q.scale[k / 16][l] * (float)(q.code[k / 4][l * 4 + k % 4] - offset);
            if (has_min) *to += q.min[l];
        }
}

/* ---- the oracle ---- */

enum { ROWS = 8 }; /* that share an opened group */

/* Sum of (code - offset) * q over inputs [first, end) of a group, for output l */
static float dot(const struct kk_q_group *w, int offset, int l, const int8_t *q, int first, int end)
{
    int32_t sum = 0;
    for (int k = first; k < end; k++) sum += (w->code[k / 4][l * 4 + k % 4] - offset) * q[k];
    return (float)sum;
}

/* acc[l] goes one group further */
static void add_group(enum kk_dtype t, const struct kk_q_group *w, const int8_t *q,
                      const struct kk_q8_group *x, float *acc)
{
    const int offset = kk_quant_offset(t), first = t == KK_Q6_K ? 16 : 32;
    for (int l = 0; l < 16; l++) {
        acc[l] = fmaf(dot(w, offset, l, q, 0, first), w->scale[0][l] * x->scale, acc[l]);
        if (first < 32)
            acc[l] = fmaf(dot(w, offset, l, q, 16, 32), w->scale[1][l] * x->scale, acc[l]);
        if (kk_quant_has_min(t)) acc[l] = fmaf(w->min[l], x->sum, acc[l]);
    }
}

static void gemm(enum kk_dtype t, int M, int64_t N, int64_t K, const void *x, size_t stride,
                 const void *w, float *y, int64_t ldy)
{
    for (int64_t n = 0; n < N; n += 16) {
        const char *panel = (const char *)w + (size_t)(n / 16) * kk_q_panel_bytes(t, K);
        const int lanes = N - n < 16 ? (int)(N - n) : 16;
        for (int r0 = 0; r0 < M; r0 += ROWS) {
            const int rows = M - r0 < ROWS ? M - r0 : ROWS;
            float acc[ROWS][16] = {{0}};
            for (int64_t g = 0; g < K / KK_GROUP; g++) {
                struct kk_q_group open;
                kk_q_open(t, panel, K, g, &open);
                for (int r = 0; r < rows; r++) {
                    const char *row = (const char *)x + (size_t)(r0 + r) * stride;
                    add_group(t, &open, (const int8_t *)row + g * KK_GROUP,
                              (const struct kk_q8_group *)(row + K) + g, acc[r]);
                }
            }
            for (int r = 0; r < rows; r++)
                memcpy(y + (r0 + r) * ldy + n, acc[r], (size_t)lanes * sizeof(float));
        }
    }
}

const struct kk_cpu_q8 kk__q8_scalar = {.isa = "scalar", .quantise = kk_q8_quantise, .gemm = gemm};
