/* Products with weights of block types over vectors of W outputs, 8 or 16. Included once by each
 * q_<isa>.c, which first defines W, QROWS (rows of a tile), the vectors (qf of floats, qi of codes
 * or integers), their operations (V: inlined), UNROLL and q_dot; everything is static. */
#ifndef KK_DEV_CPU_Q_VEC_INT_H
#define KK_DEV_CPU_Q_VEC_INT_H

/* The codes of a group for W outputs; p: the group's codes of the first of them */
V void q_codes(const int bits, const uint8_t *p, qi *w)
{
    if (bits == 8) {
        UNROLL for (int j = 0; j < 8; j++) w[j] = qi_ld(p + j * 64);
        return;
    }
    UNROLL for (int i = 0; i < 4; i++)
    {
        qi both = qi_ld(p + i * 64), low = qi_set8(15);
        w[i] = qi_and(both, low);
        w[i + 4] = qi_and(qi_right(both, 4), low);
    }
    if (bits == 5) {
        qi high = qi_ld(p + 256), bit = qi_set8(16);
        UNROLL for (int j = 0; j < 8; j++)
        {
            qi at4 = j < 4 ? qi_left(high, 4 - j) : qi_right(high, j - 4);
            w[j] = qi_or_and(w[j], at4, bit);
        }
    }
    if (bits == 6) {
        qi two = qi_set8(48);
        UNROLL for (int j = 0; j < 8; j++)
        {
            qi high = qi_ld(p + 256 + j / 4 * 64);
            qi at4 = j % 4 < 2 ? qi_left(high, 4 - j % 4 * 2) : qi_right(high, j % 4 * 2 - 4);
            w[j] = qi_or_and(w[j], at4, two);
        }
    }
}

struct q_scales {
    qf half[2], min;
};

/* Of group g, outputs from l on */
V void q_scales(const enum kk_dtype t, const char *panel, int64_t g, int l, struct q_scales *s)
{
    const char *at = panel + kk_q_scale_at(t, g) + l * 2, *times = NULL;
    qf d = qf_ld_f16(at), m = qf_zero();
    if (t == KK_Q4_1 || t == KK_Q5_1 || t == KK_Q4_K || t == KK_Q5_K) m = qf_ld_f16(at + 32);
    s->half[0] = s->half[1] = d;
    s->min = m;
    if (t < KK_Q4_K) return;
    times = panel + kk_q_times_at(t, g) + l;
    if (t == KK_Q6_K) {
        s->half[0] = qf_mul(d, qf_ld_s8(times));
        s->half[1] = qf_mul(d, qf_ld_s8(times + 16));
    } else {
        s->half[0] = s->half[1] = qf_mul(d, qf_ld_u8(times));
        s->min = qf_neg(qf_mul(m, qf_ld_u8(times + 16)));
    }
}

/* One row of x, one group */
V qf q_group(const enum kk_dtype t, const int bits, const int shift, const qi *w,
             const struct q_scales *s, const int8_t *q, const struct kk_q8_group *x, qf acc)
{
    qf xs = qf_set(x->scale);
    if (t == KK_Q6_K) {
        UNROLL for (int h = 0; h < 2; h++)
        {
            qi minus = h ? qi_sub(qi_set(x->minus), qi_set(x->minus + 1)) : qi_set(x->minus + 1);
            qi dot = q_dot(bits, 4, w + 4 * h, q + 16 * h, minus, shift);
            acc = qf_fma(qf_from_int(dot), qf_mul(s->half[h], xs), acc);
        }
        return acc;
    }
    qi dot = q_dot(bits, 8, w, q, qi_set(x->minus), shift);
    acc = qf_fma(qf_from_int(dot), qf_mul(s->half[0], xs), acc);
    if (t == KK_Q4_1 || t == KK_Q5_1 || t == KK_Q4_K || t == KK_Q5_K)
        acc = qf_fma(s->min, qf_set(x->sum), acc);
    return acc;
}

/* Codes are asked for so many bytes ahead: into L2, about a panel. Of 8 bits and few rows, which go
 * by so fast that the processor's own prefetching does better, they need no more than a hint in its
 * way, which more than doubles what is read a second; farther is slower there. */
#define Q_AHEAD      8192
#define Q_AHEAD_NEAR 384

V void q_ahead(const int bits, const int rows, const char *p)
{
    if (bits == 8 && rows < 4)
        _mm_prefetch(p + Q_AHEAD_NEAR, _MM_HINT_T0);
    else
        _mm_prefetch(p + Q_AHEAD, _MM_HINT_T1);
}

struct q_tile {
    int64_t K, ldy, n; /* outputs left from y on */
    const char *x, *panel;
    size_t stride;
    float *y;
};

V void q_tile(const enum kk_dtype t, const int bits, const int shift, const int rows,
              const struct q_tile *b)
{
    const int64_t K = b->K;
    const uint8_t *codes = (const uint8_t *)b->panel + kk_q_scale_bytes(t, K);
    for (int l = 0; l < 16; l += W) {
        const char *x = b->x, *meta = b->x + K;
        const uint8_t *p = codes + l * 4;
        qf acc[QROWS];
        UNROLL for (int r = 0; r < rows; r++) acc[r] = qf_zero();
        for (int64_t g = 0; g < K / KK_GROUP; g++, p += bits * 64, x += KK_GROUP) {
            struct q_scales s;
            qi w[8];
            UNROLL for (int i = 0; i < bits; i++) q_ahead(bits, rows, (const char *)p + i * 64);
            q_codes(bits, p, w);
            q_scales(t, b->panel, g, l, &s);
            UNROLL for (int r = 0; r < rows; r++)
            {
                const void *row = meta + (size_t)r * b->stride;
                acc[r] = q_group(t, bits, shift, w, &s, (const int8_t *)x + (size_t)r * b->stride,
                                 (const struct kk_q8_group *)row + g, acc[r]);
            }
        }
        UNROLL for (int r = 0; r < rows; r++) qf_st_n(b->y + r * b->ldy + l, b->n - l, acc[r]);
    }
}

/* w[k * 16 + l], see quant_int.h */
V void q_weights(const enum kk_dtype t, const int bits, const int offset, const char *panel,
                 int64_t K, int64_t g, float *out)
{
    const uint8_t *p = (const uint8_t *)panel + kk_q_scale_bytes(t, K) + g * bits * 64;
    for (int l = 0; l < 16; l += W) {
        struct q_scales s;
        qi w[8];
        q_codes(bits, p + l * 4, w);
        q_scales(t, panel, g, l, &s);
        UNROLL for (int k = 0; k < KK_GROUP; k++)
        {
            qi code = qi_byte(w[k / 4], k % 4);
            if (offset) code = qi_sub(code, qi_set32(offset));
            qf v = qf_mul(s.half[k / 16], qf_from_int(code));
            if (t == KK_Q4_1 || t == KK_Q5_1 || t == KK_Q4_K || t == KK_Q5_K) v = qf_add(v, s.min);
            qf_st_n(out + k * 16 + l, 16, v);
        }
    }
}

/* ---- tiles of every type and number of rows ---- */

typedef void q_tile_fn(const struct q_tile *b);
#define Q_TILE(t, bits, shift, r)                                                                  \
    static void q_##t##_##r(const struct q_tile *b)                                                \
    {                                                                                              \
        q_tile(KK_##t, bits, shift, r, b);                                                         \
    }
#define Q_TYPE(t, bits, shift)                                                                     \
    static void q_##t##_weights(const char *panel, int64_t K, int64_t g, float *out)               \
    {                                                                                              \
        q_weights(KK_##t, bits, shift ? 1 << shift : 0, panel, K, g, out);                         \
    }                                                                                              \
    Q_TILE(t, bits, shift, 1)                                                                      \
    Q_TILE(t, bits, shift, 2)                                                                      \
    Q_TILE(t, bits, shift, 3)                                                                      \
    Q_TILE(t, bits, shift, 4)                                                                      \
    Q_TILES_MORE(t, bits, shift)
#define Q_SLOTS(t) [KK_##t] = {NULL, q_##t##_1, q_##t##_2, q_##t##_3, q_##t##_4, Q_SLOTS_MORE(t)}
#if QROWS == 8
#define Q_TILES_MORE(t, bits, shift)                                                               \
    Q_TILE(t, bits, shift, 5)                                                                      \
    Q_TILE(t, bits, shift, 6)                                                                      \
    Q_TILE(t, bits, shift, 7)                                                                      \
    Q_TILE(t, bits, shift, 8)
#define Q_SLOTS_MORE(t) q_##t##_5, q_##t##_6, q_##t##_7, q_##t##_8
#else
#define Q_TILES_MORE(t, bits, shift)
#define Q_SLOTS_MORE(t)
#endif

/* bits of a code, and its offset as a power of two (0: none) */
Q_TYPE(Q4_0, 4, 3)
Q_TYPE(Q4_1, 4, 0)
Q_TYPE(Q5_0, 5, 4)
Q_TYPE(Q5_1, 5, 0)
Q_TYPE(Q8_0, 8, 7)
Q_TYPE(Q4_K, 4, 0)
Q_TYPE(Q5_K, 5, 0)
Q_TYPE(Q6_K, 6, 5)
static q_tile_fn *const q_tiles[][QROWS + 1] = {Q_SLOTS(Q4_0), Q_SLOTS(Q4_1), Q_SLOTS(Q5_0),
                                                Q_SLOTS(Q5_1), Q_SLOTS(Q8_0), Q_SLOTS(Q4_K),
                                                Q_SLOTS(Q5_K), Q_SLOTS(Q6_K)};

static void gemm(enum kk_dtype t, int M, int64_t N, int64_t K, const void *x, size_t stride,
                 const void *w, float *y, int64_t ldy)
{
    const int tiles = (M + QROWS - 1) / QROWS;
    const size_t panel = kk_q_panel_bytes(t, K);
    struct q_tile b = {.K = K, .ldy = ldy, .stride = stride, .panel = w};
    for (int64_t n = 0; n < N; n += 16, b.panel += panel) {
        b.n = N - n;
        for (int i = 0, r = 0, m; i < tiles; i++, r += m) {
            m = (M - r + tiles - i - 1) / (tiles - i);
            b.x = (const char *)x + (size_t)r * stride;
            b.y = y + r * ldy + n;
            q_tiles[t][m](&b);
        }
    }
}

typedef void q_weights_fn(const char *panel, int64_t K, int64_t g, float *out);
static q_weights_fn *const q_open[] = {[KK_Q4_0] = q_Q4_0_weights,
                                       q_Q4_1_weights,
                                       q_Q5_0_weights,
                                       q_Q5_1_weights,
                                       q_Q8_0_weights,
                                       q_Q4_K_weights,
                                       q_Q5_K_weights,
                                       q_Q6_K_weights};

static void weights(enum kk_dtype t, const void *panel, int64_t K, int64_t g, float *w)
{
    q_open[t](panel, K, g, w);
}

static void quantise(int64_t K, int64_t g0, int64_t g1, const float *x, void *row)
{
    struct kk_q8_group *to = (struct kk_q8_group *)((int8_t *)row + K);
    for (int64_t g = g0; g < g1; g++) {
        const struct kk_q8_range r = kk_q8_range(q_top(x + g * KK_GROUP));
        int8_t *q = (int8_t *)row + g * KK_GROUP;
        int32_t half[2] = {0, 0};
        if (r.bad)
            memset(q, 0, KK_GROUP);
        else
            for (int h = 0; h < 2; h++)
                half[h] = q_round(x + g * KK_GROUP + 16 * h, r.by, q + 16 * h);
        to[g] = kk_q8_group(&r, half[0], half[1]);
    }
}

#endif
