/* Stored rows of keys and values over a vector of 16 floats: scores, weighted sums, derived keys. A
 * part of kern_vec_int.h. Types of rows: F32, BF16, Q8_0. */
#ifndef KK_DEV_CPU_KERN_ROWS_INT_H
#define KK_DEV_CPU_KERN_ROWS_INT_H

/* Numbers [i, i + 16) of a row, i a multiple of 16 */
V v16 ld_row(const enum kk_dtype t, const void *row, int64_t i)
{
    if (t == KK_F32) return v_ld((const float *)row + i);
    if (t == KK_BF16) return v_ld_bf16((const uint16_t *)row + i);
    const char *block = (const char *)row + i / 32 * KK_Q8_BLOCK;
    return v_mul(v_ld_s8((const int8_t *)block + 2 + i % 32), v_set_f16((const uint16_t *)block));
}

/* The first n of them, the others 0; rows of blocks are whole */
V v16 ld_row_n(const enum kk_dtype t, const void *row, int64_t i, int64_t n)
{
    if (t == KK_F32) return v_ld_n((const float *)row + i, n);
    if (t == KK_BF16) return v_ld_bf16_n((const uint16_t *)row + i, n);
    return ld_row(t, row, i);
}

/* Bytes of 16 numbers */
V int64_t row_step(const enum kk_dtype t)
{
    return t == KK_F32 ? 64 : t == KK_BF16 ? 32 : KK_Q8_BLOCK / 2;
}

/* Numbers [i, i + 16) of a row that is read soon come nearer, most cache lines once. */
V void fetch(const enum kk_dtype t, const void *row, int64_t i)
{
    if (t == KK_F32 || i % (t == KK_BF16 ? 32 : 64) == 0)
        _mm_prefetch((const char *)row + i / 16 * row_step(t), _MM_HINT_T1);
}

V const void *row_of(const void *const *rows, int j, size_t off)
{
    return (const char *)rows[j] + off;
}

/* Of queries x keys sums in lanes, those of the first nk keys */
V void store_scores(const int nq, const int keys, int nk, const v16 *acc, float scale, float *s,
                    int64_t lds)
{
    float out[16];
    v_st(out, v_mul(v_dots(acc), v_set(scale)));
    for (int i = 0; i < nq; i++) {
        if (nk >= keys)
            memcpy(s + i * lds, out + i * keys, (size_t)keys * 4);
        else
            memcpy(s + i * lds, out + i * keys, (size_t)nk * 4);
    }
}

/* queries x keys <= DOTS; the keys from nk on repeat the last and are not stored */
V void score_tile(const enum kk_dtype t, const int nq, const int keys, int nk, int D,
                  const float *q, int64_t ldq, const void *const *rows, const void *const *next,
                  size_t off, float scale, float *s, int64_t lds)
{
    v16 acc[DOTS];
    const void *row[16], *soon[16];
    UNROLL for (int i = 0; i < DOTS; i++) acc[i] = v_zero();
    UNROLL for (int j = 0; j < keys; j++) row[j] = row_of(rows, j < nk ? j : nk - 1, off);
    UNROLL for (int j = 0; j < keys; j++) soon[j] = row_of(next, j < nk ? j : nk - 1, off);
    int d = 0;
    for (; d + 16 <= D; d += 16) {
        v16 a[4];
        UNROLL for (int i = 0; i < nq; i++) a[i] = v_ld(q + i * ldq + d);
        UNROLL for (int j = 0; j < keys; j++)
        {
            v16 k = ld_row(t, row[j], d);
            fetch(t, soon[j], d);
            UNROLL for (int i = 0; i < nq; i++)
            {
                acc[i * keys + j] = v_fma(a[i], k, acc[i * keys + j]);
            }
        }
    }
    if (d < D) {
        UNROLL for (int j = 0; j < keys; j++)
        {
            v16 k = ld_row_n(t, row[j], d, D - d);
            UNROLL for (int i = 0; i < nq; i++)
            {
                v16 a = v_ld_n(q + i * ldq + d, D - d);
                acc[i * keys + j] = v_fma_n(a, k, acc[i * keys + j], D - d);
            }
        }
    }
    store_scores(nq, keys, nk, acc, scale, s, lds);
}

typedef void score_fn(int nk, int D, const float *q, int64_t ldq, const void *const *rows,
                      const void *const *next, size_t off, float scale, float *s, int64_t lds);
#define SCORE_FN(T, n, k)                                                                          \
    static void score_##T##_##n(int nk, int D, const float *q, int64_t ldq,                        \
                                const void *const *rows, const void *const *next, size_t off,      \
                                float scale, float *s, int64_t lds)                                \
    {                                                                                              \
        score_tile(KK_##T, n, k, nk, D, q, ldq, rows, next, off, scale, s, lds);                   \
    }
#define SCORE_F32(n, k)       SCORE_FN(F32, n, k)
#define SCORE_BF16(n, k)      SCORE_FN(BF16, n, k)
#define SCORE_Q8(n, k)        SCORE_FN(Q8_0, n, k)
#define SCORE_F32_SLOT(n, k)  [n] = score_F32_##n,
#define SCORE_BF16_SLOT(n, k) [n] = score_BF16_##n,
#define SCORE_Q8_SLOT(n, k)   [n] = score_Q8_0_##n,
#define SCORE_KEYS(n, k)      [n] = k,
SCORE_TILES(SCORE_F32)
SCORE_TILES(SCORE_BF16)
SCORE_TILES(SCORE_Q8)
static const int score_keys[5] = {SCORE_TILES(SCORE_KEYS)};
static score_fn *const score_tiles[KK_ROW_TYPES][5] = {
    {SCORE_TILES(SCORE_F32_SLOT)}, {SCORE_TILES(SCORE_BF16_SLOT)}, {SCORE_TILES(SCORE_Q8_SLOT)}};

/* The most queries that a tile takes of those left */
V int tile_queries(int left, const int *tiles)
{
    int m = left < 4 ? left : 4;
    while (!tiles[m]) m--;
    return m;
}

V void scores_any(const enum kk_dtype t, int nq, int nk, int D, const float *q, int64_t ldq,
                  const void *const *rows, const void *const *next, size_t off, float scale,
                  float *s, int64_t lds)
{
    for (int i = 0, m; i < nq; i += m) {
        m = tile_queries(nq - i, score_keys);
        for (int j = 0; j < nk; j += score_keys[m])
            score_tiles[kk_row_type(t)][m](nk - j, D, q + i * ldq, ldq, rows + j,
                                           (i ? rows : next) + j, off, scale, s + i * lds + j, lds);
    }
}

static void scores_f32(int nq, int nk, int D, const float *q, int64_t ldq, const void *const *rows,
                       const void *const *next, size_t off, float scale, float *s, int64_t lds)
{
    scores_any(KK_F32, nq, nk, D, q, ldq, rows, next, off, scale, s, lds);
}

static void scores_bf16(int nq, int nk, int D, const float *q, int64_t ldq, const void *const *rows,
                        const void *const *next, size_t off, float scale, float *s, int64_t lds)
{
    scores_any(KK_BF16, nq, nk, D, q, ldq, rows, next, off, scale, s, lds);
}

static void scores_q8(int nq, int nk, int D, const float *q, int64_t ldq, const void *const *rows,
                      const void *const *next, size_t off, float scale, float *s, int64_t lds)
{
    scores_any(KK_Q8_0, nq, nk, D, q, ldq, rows, next, off, scale, s, lds);
}

/* nq queries x vecs vectors of D from d on; n < 16 only when vecs is 1 */
V void pv_tile(const enum kk_dtype t, const int nq, const int vecs, int nk, int n, const float *p,
               int64_t ldp, const void *const *rows, const void *const *next, size_t off, int d,
               float *o, int64_t ldo)
{
    v16 acc[4][4];
    UNROLL for (int i = 0; i < nq; i++)
    {
        UNROLL for (int v = 0; v < vecs; v++) acc[i][v] = v_zero();
    }
    for (int j = 0; j < nk; j++) {
        const void *row = row_of(rows, j, off), *soon = row_of(next, j, off);
        v16 w[4];
        UNROLL for (int i = 0; i < nq; i++) w[i] = v_set(p[i * ldp + j]);
        UNROLL for (int v = 0; v < vecs; v++)
        {
            v16 r = n < 16 ? ld_row_n(t, row, d, n) : ld_row(t, row, d + v * 16);
            fetch(t, soon, d + v * 16);
            UNROLL for (int i = 0; i < nq; i++) acc[i][v] = v_fma(w[i], r, acc[i][v]);
        }
    }
    UNROLL for (int i = 0; i < nq; i++)
    {
        UNROLL for (int v = 0; v < vecs; v++)
            v_st_n(o + i * ldo + d + v * 16, n - v * 16, acc[i][v]);
    }
}

typedef void pv_fn(int nk, int n, const float *p, int64_t ldp, const void *const *rows,
                   const void *const *next, size_t off, int d, float *o, int64_t ldo);
#define PV_FN(T, q, v)                                                                             \
    static void pv_##T##_##q##x##v(int nk, int n, const float *p, int64_t ldp,                     \
                                   const void *const *rows, const void *const *next, size_t off,   \
                                   int d, float *o, int64_t ldo)                                   \
    {                                                                                              \
        pv_tile(KK_##T, q, v, nk, n, p, ldp, rows, next, off, d, o, ldo);                          \
    }
#define PV_F32(q, v)       PV_FN(F32, q, v)
#define PV_BF16(q, v)      PV_FN(BF16, q, v)
#define PV_Q8(q, v)        PV_FN(Q8_0, q, v)
#define PV_F32_SLOT(q, v)  [q][v] = pv_F32_##q##x##v,
#define PV_BF16_SLOT(q, v) [q][v] = pv_BF16_##q##x##v,
#define PV_Q8_SLOT(q, v)   [q][v] = pv_Q8_0_##q##x##v,
PV_TILES(PV_F32)
PV_TILES(PV_BF16)
PV_TILES(PV_Q8)
static pv_fn *const pv_tiles[KK_ROW_TYPES][5][5] = {
    {PV_TILES(PV_F32_SLOT)}, {PV_TILES(PV_BF16_SLOT)}, {PV_TILES(PV_Q8_SLOT)}};

V void pv_any(const enum kk_dtype t, int nq, int nk, int D, const float *p, int64_t ldp,
              const void *const *rows, const void *const *next, size_t off, float *o, int64_t ldo)
{
    for (int i = 0, m; i < nq; i += m) {
        m = tile_queries(nq - i, pv_vecs);
        for (int d = 0, v, n; d < D; d += v * 16) {
            v = pv_vecs[m];
            while (v > 1 && d + v * 16 > D) v /= 2;
            n = D - d < v * 16 ? D - d : v * 16;
            pv_tiles[kk_row_type(t)][m][v](nk, n, p + i * ldp, ldp, rows, i ? rows : next, off, d,
                                           o + i * ldo, ldo);
        }
    }
}

static void pv_f32(int nq, int nk, int D, const float *p, int64_t ldp, const void *const *rows,
                   const void *const *next, size_t off, float *o, int64_t ldo)
{
    pv_any(KK_F32, nq, nk, D, p, ldp, rows, next, off, o, ldo);
}

static void pv_bf16(int nq, int nk, int D, const float *p, int64_t ldp, const void *const *rows,
                    const void *const *next, size_t off, float *o, int64_t ldo)
{
    pv_any(KK_BF16, nq, nk, D, p, ldp, rows, next, off, o, ldo);
}

static void pv_q8(int nq, int nk, int D, const float *p, int64_t ldp, const void *const *rows,
                  const void *const *next, size_t off, float *o, int64_t ldo)
{
    pv_any(KK_Q8_0, nq, nk, D, p, ldp, rows, next, off, o, ldo);
}

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
