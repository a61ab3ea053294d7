/* Stored rows of keys and values over a vector of 16 floats: scores and weighted sums. A part of
 * kern_vec_int.h. Types of rows: F32, BF16, Q8_0. */
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

#endif
