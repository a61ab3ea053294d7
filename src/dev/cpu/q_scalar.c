/* Panels of block types, written and read one output at a time; the oracle of their products. */
#include "dev/cpu/quant_int.h"

/* ---- scales ---- */

static void pack_scales(enum kk_dtype t, char *panel, int64_t g, int l,
                        const struct kk_quant_group *from)
{
    char *d = panel + kk_q_scale_at(t, g) + l * 2, *times;
    memcpy(d, &from->d, 2);
    if (kk_quant_has_min(t)) memcpy(d + 32, &from->m, 2);
    if (!kk_quant_is_k(t)) return;
    times = panel + kk_q_times_at(t, g) + l;
    times[0] = (char)from->d_times[0];
    times[16] = (char)(t == KK_Q6_K ? from->d_times[1] : from->m_times);
}

static void unpack_scales(enum kk_dtype t, const char *panel, int64_t g, int l,
                          struct kk_quant_group *to)
{
    const char *d = panel + kk_q_scale_at(t, g) + l * 2, *times;
    memcpy(&to->d, d, 2);
    to->m = 0;
    if (kk_quant_has_min(t)) memcpy(&to->m, d + 32, 2);
    to->d_times[0] = to->d_times[1] = to->m_times = 1;
    if (!kk_quant_is_k(t)) return;
    times = panel + kk_q_times_at(t, g) + l;
    if (t == KK_Q6_K)
        to->d_times[0] = (int8_t)times[0], to->d_times[1] = (int8_t)times[16];
    else
        to->d_times[0] = to->d_times[1] = (uint8_t)times[0], to->m_times = (uint8_t)times[16];
}

/* ---- codes: 4 bytes of every piece are of one output ---- */

static void pack_codes(int bits, const uint8_t *code, char *to)
{
    uint32_t piece[8] = {0}, four;
    for (int j = 0; j < 8; j++) {
        memcpy(&four, code + 4 * j, 4);
        if (bits == 8) {
            piece[j] = four;
            continue;
        }
        piece[j % 4] |= (four & 0x0f0f0f0f) << j / 4 * 4;
        if (bits == 5) piece[4] |= (four >> 4 & 0x01010101) << j;
        if (bits == 6) piece[4 + j / 4] |= (four >> 4 & 0x03030303) << j % 4 * 2;
    }
    for (int i = 0; i < bits; i++) memcpy(to + i * 64, &piece[i], 4);
}

static void unpack_codes(int bits, const char *from, uint8_t *code)
{
    uint32_t piece[8], four;
    for (int i = 0; i < bits; i++) memcpy(&piece[i], from + i * 64, 4);
    for (int j = 0; j < 8; j++) {
        four = bits == 8 ? piece[j] : piece[j % 4] >> j / 4 * 4 & 0x0f0f0f0f;
        if (bits == 5) four |= (piece[4] >> j & 0x01010101) << 4;
        if (bits == 6) four |= (piece[4 + j / 4] >> j % 4 * 2 & 0x03030303) << 4;
        memcpy(code + 4 * j, &four, 4);
    }
}

static size_t code_at(enum kk_dtype t, int64_t K, int64_t g, int l)
{
    return kk_q_scale_bytes(t, K) + (size_t)g * kk_q_code_bytes(t) + (size_t)l * 4;
}

void kk_q_pack(enum kk_dtype t, void *panel, int64_t K, int64_t g, int l,
               const struct kk_quant_group *from)
{
    pack_scales(t, panel, g, l, from);
    pack_codes(kk_quant_bits(t), from->code, (char *)panel + code_at(t, K, g, l));
}

void kk_q_unpack(enum kk_dtype t, const void *panel, int64_t K, int64_t g, int l,
                 struct kk_quant_group *to)
{
    unpack_scales(t, panel, g, l, to);
    unpack_codes(kk_quant_bits(t), (const char *)panel + code_at(t, K, g, l), to->code);
}

/* ---- the oracle ---- */

static void weights(enum kk_dtype t, const void *panel, int64_t K, int64_t g, float *w)
{
    for (int l = 0; l < 16; l++) {
        struct kk_quant_group group;
        float row[KK_GROUP];
        kk_q_unpack(t, panel, K, g, l, &group);
        kk_quant_values(t, &group, row);
        for (int k = 0; k < KK_GROUP; k++) w[k * 16 + l] = row[k];
    }
}

/* Sum of (code - offset) * q over inputs [first, end) of a group */
static float dot(enum kk_dtype t, const struct kk_quant_group *w, const int8_t *q, int first,
                 int end)
{
    int32_t sum = 0;
    for (int k = first; k < end; k++) sum += (w->code[k] - kk_quant_offset(t)) * q[k];
    return (float)sum;
}

/* acc after one more group */
static float add_group(enum kk_dtype t, const struct kk_quant_group *w, const int8_t *q,
                       const struct kk_q8_group *x, float acc)
{
    const int half = t == KK_Q6_K ? 16 : 32;
    acc = fmaf(dot(t, w, q, 0, half), kk_quant_scale(w, 0) * x->scale, acc);
    if (half < 32) acc = fmaf(dot(t, w, q, half, 32), kk_quant_scale(w, 1) * x->scale, acc);
    return kk_quant_has_min(t) ? fmaf(kk_quant_min(t, w), x->sum, acc) : acc;
}

static void gemm(enum kk_dtype t, int M, int64_t N, int64_t K, const void *x, size_t stride,
                 const void *w, float *y, int64_t ldy)
{
    for (int64_t n = 0; n < N; n++) {
        const char *panel = (const char *)w + (size_t)(n / 16) * kk_q_panel_bytes(t, K), *row = x;
        for (int r = 0; r < M; r++) y[r * ldy + n] = 0;
        for (int64_t g = 0; g < K / KK_GROUP; g++, row = x) {
            struct kk_quant_group group;
            kk_q_unpack(t, panel, K, g, (int)(n % 16), &group);
            for (int r = 0; r < M; r++, row += stride)
                y[r * ldy + n] =
                    add_group(t, &group, (const int8_t *)row + g * KK_GROUP,
                              (const struct kk_q8_group *)(row + K) + g, y[r * ldy + n]);
        }
    }
}

const struct kk_cpu_q8 kk__q8_scalar = {
    .isa = "scalar", .quantise = kk_q8_quantise, .weights = weights, .gemm = gemm};
