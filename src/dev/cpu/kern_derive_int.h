/* Keys derived from stored values over a vector of 16 floats, kept or scored at once. A part of
 * kern_vec_int.h, after kern_rows_int.h. */
#ifndef KK_DEV_CPU_KERN_DERIVE_INT_H
#define KK_DEV_CPU_KERN_DERIVE_INT_H

/* Elements from i on, n <= 16 of them, of a row times its weight */
V v16 derive_16(const enum kk_dtype t, int i, int n, const void *row, const float *w)
{
    return v_mul(ld_row_n(t, row, i, n), v_ld_n(w + i, n));
}

/* n <= 16 pairs {a, b} turned by {cos, sin} */
V void rope_16(int n, v16 a, v16 b, const float *cs, float *lo, float *hi)
{
    v16 c, s;
    v_ld_pairs_n(cs, n, &c, &s);
    v_st_n(lo, n, v_fnma(b, s, v_mul(a, c)));
    v_st_n(hi, n, v_fma(a, s, v_mul(b, c)));
}

V void derive_scale(const enum kk_dtype t, int i, int to, const void *row, const float *w, float *k)
{
    for (; i + 16 <= to; i += 16) v_st(k + i, derive_16(t, i, 16, row, w));
    if (i < to) v_st_n(k + i, to - i, derive_16(t, i, to - i, row, w));
}

V void derive_pairs(const enum kk_dtype t, int r, int n, int h, const void *row, const float *w,
                    const float *cs, float *k)
{
    v16 a = derive_16(t, r, n, row, w), b = derive_16(t, h + r, n, row, w);
    rope_16(n, a, b, cs + 2 * r, k + r, k + h + r);
}

V void derive_any(const enum kk_dtype t, int nk, int D, int R, const void *const *rows, size_t off,
                  const float *w, const float *cs, float *k)
{
    const int h = D / 2;
    for (int j = 0; j < nk; j++, k += D, cs += 2 * R) {
        const void *row = row_of(rows, j, off);
        int r = 0;
        for (; r + 16 <= R; r += 16) derive_pairs(t, r, 16, h, row, w, cs, k);
        if (r < R) derive_pairs(t, r, R - r, h, row, w, cs, k);
        derive_scale(t, R, h, row, w, k);
        derive_scale(t, h + R, D, row, w, k);
    }
}

static void derive_f32(int nk, int D, int R, const void *const *rows, size_t off, const float *w,
                       const float *cs, float *k)
{
    derive_any(KK_F32, nk, D, R, rows, off, w, cs, k);
}

static void derive_bf16(int nk, int D, int R, const void *const *rows, size_t off, const float *w,
                        const float *cs, float *k)
{
    derive_any(KK_BF16, nk, D, R, rows, off, w, cs, k);
}

/* Rows of blocks first become floats, where k is to be */
static void derive_q8(int nk, int D, int R, const void *const *rows, size_t off, const float *w,
                      const float *cs, float *k)
{
    for (int j = 0; j < nk; j++, k += D, cs += 2 * R) {
        const void *row = k;
        for (int i = 0; i < D; i += 16) v_st(k + i, ld_row(KK_Q8_0, row_of(rows, j, off), i));
        derive_f32(1, D, R, &row, 0, w, cs, k);
    }
}

/* Elements i and i + D/2 on, 16 each, of the key derived from a row */
V void derive_turned(const enum kk_dtype t, int i, int h, const void *row, const float *w,
                     const float *cs, v16 *lo, v16 *hi)
{
    v16 a = derive_16(t, i, 16, row, w), b = derive_16(t, h + i, 16, row, w), c, s;
    v_ld_pairs_n(cs + 2 * i, 16, &c, &s);
    *lo = v_fnma(b, s, v_mul(a, c));
    *hi = v_fma(a, s, v_mul(b, c));
}

/* acc += numbers [d, d + 16) of the queries times those of the key */
V void score_add(const int nq, const int keys, const int j, v16 k, const float *q, int64_t ldq,
                 int d, v16 *acc)
{
    UNROLL for (int i = 0; i < nq; i++)
    {
        acc[i * keys + j] = v_fma(v_ld(q + i * ldq + d), k, acc[i * keys + j]);
    }
}

/* score_tile of derived keys, which are not kept: what turned with an element of the first half
 * waits in memory for the second. */
V void derived_tile(const enum kk_dtype t, const int nq, const int keys, int nk, int D, int R,
                    const float *q, int64_t ldq, const void *const *rows, size_t off,
                    const float *w, const float *cs, float scale, float *s, int64_t lds)
{
    const int h = D / 2;
    v16 acc[DOTS];
    float turned[16][KK_DERIVED_R];
    const void *row[16];
    UNROLL for (int i = 0; i < DOTS; i++) acc[i] = v_zero();
    UNROLL for (int j = 0; j < keys; j++) row[j] = row_of(rows, j < nk ? j : nk - 1, off);
    for (int d = 0; d < R; d += 16) {
        UNROLL for (int j = 0; j < keys; j++)
        {
            v16 lo, hi;
            derive_turned(t, d, h, row[j], w, cs + (j < nk ? j : nk - 1) * 2 * R, &lo, &hi);
            v_st(turned[j] + d, hi);
            score_add(nq, keys, j, lo, q, ldq, d, acc);
        }
    }
    for (int half = 0; half < D; half += h) {
        for (int d = half; half && d < half + R; d += 16) {
            UNROLL for (int j = 0; j < keys; j++)
            {
                score_add(nq, keys, j, v_ld(turned[j] + d - h), q, ldq, d, acc);
            }
        }
        for (int d = half + R; d < half + h; d += 16) {
            UNROLL for (int j = 0; j < keys; j++)
            {
                score_add(nq, keys, j, derive_16(t, d, 16, row[j], w), q, ldq, d, acc);
            }
        }
    }
    store_scores(nq, keys, nk, acc, scale, s, lds);
}

typedef void derived_fn(int nk, int D, int R, const float *q, int64_t ldq, const void *const *rows,
                        size_t off, const float *w, const float *cs, float scale, float *s,
                        int64_t lds);
#define DERIVED_FN(T, n, k)                                                                        \
    static void derived_##T##_##n(int nk, int D, int R, const float *q, int64_t ldq,               \
                                  const void *const *rows, size_t off, const float *w,             \
                                  const float *cs, float scale, float *s, int64_t lds)             \
    {                                                                                              \
        derived_tile(KK_##T, n, k, nk, D, R, q, ldq, rows, off, w, cs, scale, s, lds);             \
    }
#define DERIVED_F32(n, k)       DERIVED_FN(F32, n, k)
#define DERIVED_BF16(n, k)      DERIVED_FN(BF16, n, k)
#define DERIVED_Q8(n, k)        DERIVED_FN(Q8_0, n, k)
#define DERIVED_F32_SLOT(n, k)  [n] = derived_F32_##n,
#define DERIVED_BF16_SLOT(n, k) [n] = derived_BF16_##n,
#define DERIVED_Q8_SLOT(n, k)   [n] = derived_Q8_0_##n,
SCORE_TILES(DERIVED_F32)
SCORE_TILES(DERIVED_BF16)
SCORE_TILES(DERIVED_Q8)
static derived_fn *const derived_tiles[KK_ROW_TYPES][5] = {{SCORE_TILES(DERIVED_F32_SLOT)},
                                                           {SCORE_TILES(DERIVED_BF16_SLOT)},
                                                           {SCORE_TILES(DERIVED_Q8_SLOT)}};

V void derived_any(const enum kk_dtype t, int nq, int nk, int D, int R, const float *q, int64_t ldq,
                   const void *const *rows, size_t off, const float *w, const float *cs,
                   float scale, float *s, int64_t lds)
{
    for (int i = 0, m; i < nq; i += m) {
        m = tile_queries(nq - i, score_keys);
        for (int j = 0; j < nk; j += score_keys[m])
            derived_tiles[kk_row_type(t)][m](nk - j, D, R, q + i * ldq, ldq, rows + j, off, w,
                                             cs + (int64_t)j * 2 * R, scale, s + i * lds + j, lds);
    }
}

static void derived_f32(int nq, int nk, int D, int R, const float *q, int64_t ldq,
                        const void *const *rows, size_t off, const float *w, const float *cs,
                        float scale, float *s, int64_t lds)
{
    derived_any(KK_F32, nq, nk, D, R, q, ldq, rows, off, w, cs, scale, s, lds);
}

static void derived_bf16(int nq, int nk, int D, int R, const float *q, int64_t ldq,
                         const void *const *rows, size_t off, const float *w, const float *cs,
                         float scale, float *s, int64_t lds)
{
    derived_any(KK_BF16, nq, nk, D, R, q, ldq, rows, off, w, cs, scale, s, lds);
}

static void derived_q8(int nq, int nk, int D, int R, const float *q, int64_t ldq,
                       const void *const *rows, size_t off, const float *w, const float *cs,
                       float scale, float *s, int64_t lds)
{
    derived_any(KK_Q8_0, nq, nk, D, R, q, ldq, rows, off, w, cs, scale, s, lds);
}

#endif
