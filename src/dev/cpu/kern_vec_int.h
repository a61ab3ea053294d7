/* Bodies of the leaf kernels over a vector of 16 floats. Included once by each k_<isa>.c, which
 * first defines v16, its operations (V: inlined), UNROLL and its tile sizes; everything is static.
 *
 * Arrays of v16 indexed by loops of constant bounds are registers: the tiles are always inlined
 * with constant sizes and their loops unrolled whole. */
#ifndef KK_DEV_CPU_KERN_VEC_INT_H
#define KK_DEV_CPU_KERN_VEC_INT_H

/* ---- gemm ---- */

/* Beside the types of weights: bf16, and x in bf16 too. Where there is an instruction for that, a
 * word of x is a pair; else x has been widened to f32. */
enum { GEMM_PAIRS = 3 };
#ifdef __AVX512BF16__
enum { GEMM_PAIR_WORDS = 1 };
#else
enum { GEMM_PAIR_WORDS = 2 };
#endif

struct gemm_block {
    int64_t k0, k1; /* inputs of this call: k0 is even; acc starts from y unless k0 is 0 */
    const float *x; /* from input k0 on */
    int64_t ldx;
    const char *w;
    size_t panel;     /* bytes of a panel */
    const char *next; /* the panels that are read after these */
    float *y;
    int64_t ldy, n; /* outputs left from y on */
};

/* Weights of input k + h of 16 outputs; pair points at those of k and k + 1 */
V v16 w_half(enum kk_dtype t, const char *pair, const int h)
{
    if (t == KK_BF16 || (int)t == GEMM_PAIRS) return h ? v_ld_bf16_odd(pair) : v_ld_bf16_even(pair);
    if (t == KK_F16) return v_ld_f16((const uint16_t *)pair + 16 * h);
    return v_ld((const float *)pair + 16 * h);
}

/* acc[r][p] += x[r][0] * w[p], in one of two orders. With few registers, a panel at a time: the
 * address is hidden from the compiler, which would keep the pair loaded from one half to the next
 * and spill accumulators. */
V void gemm_half(const enum kk_dtype t, const int rows, const int panels, const int h,
                 const float *x, int64_t ldx, const char *w, size_t panel, v16 (*acc)[4])
{
    if (GEMM_FEW_REGISTERS) {
        __asm__ volatile("" : "+r"(w));
        UNROLL for (int p = 0; p < panels; p++)
        {
            v16 wp = w_half(t, w + p * panel, h);
            UNROLL for (int r = 0; r < rows; r++) acc[r][p] =
                v_fma(v_set(x[r * ldx]), wp, acc[r][p]);
        }
        return;
    }
    v16 wp[4];
    UNROLL for (int p = 0; p < panels; p++) wp[p] = w_half(t, w + p * panel, h);
    UNROLL for (int r = 0; r < rows; r++)
    {
        v16 a = v_set(x[r * ldx]);
        UNROLL for (int p = 0; p < panels; p++) acc[r][p] = v_fma(a, wp[p], acc[r][p]);
    }
}

/* Both inputs of a pair: in bf16 the second first */
V void gemm_pair(const enum kk_dtype t, const int rows, const int panels, const float *x,
                 int64_t ldx, const char *w, size_t panel, v16 (*acc)[4])
{
    if ((int)t != GEMM_PAIRS) {
        gemm_half(t, rows, panels, 0, x, ldx, w, panel, acc);
        gemm_half(t, rows, panels, 1, x + 1, ldx, w, panel, acc);
        return;
    }
#ifdef __AVX512BF16__
    v16 wp[4];
    UNROLL for (int p = 0; p < panels; p++) wp[p] = v_ld((const float *)(w + p * panel));
    UNROLL for (int r = 0; r < rows; r++)
    {
        v16 a = v_set(x[r * ldx]);
        UNROLL for (int p = 0; p < panels; p++) acc[r][p] =
            _mm512_dpbf16_ps(acc[r][p], (__m512bh)wp[p], (__m512bh)a);
    }
#else
    gemm_half(t, rows, panels, 1, x + 1, ldx, w, panel, acc);
    gemm_half(t, rows, panels, 0, x, ldx, w, panel, acc);
#endif
}

V void gemm_tile(const enum kk_dtype t, const int rows, const int panels,
                 const struct gemm_block *b)
{
    const int whole = (int)t == GEMM_PAIRS; /* a last half pair has been filled up with 0 */
    const int64_t step = t == KK_F32 ? 128 : 64, ldx = b->ldx, words = whole ? GEMM_PAIR_WORDS : 2;
    const int64_t pairs = (b->k1 - b->k0 + whole) / 2;
    const size_t panel = b->panel;
    const char *w = b->w + b->k0 / 2 * step, *next = b->next + b->k0 / 2 * step;
    const float *x = b->x;
    v16 acc[6][4];
    UNROLL for (int r = 0; r < rows; r++)
    {
        UNROLL for (int p = 0; p < panels; p++)
        {
            acc[r][p] = b->k0 ? v_ld_n(b->y + r * b->ldy + p * 16, b->n - p * 16) : v_zero();
        }
    }
    for (int64_t i = 0; i < pairs; i++, w += step, next += step, x += words) {
        if (rows > 1) {
            UNROLL for (int p = 0; p < panels; p++) _mm_prefetch(next + p * panel, _MM_HINT_T1);
        }
        gemm_pair(t, rows, panels, x, ldx, w, panel, acc);
    }
    if (!whole && (b->k1 & 1)) gemm_half(t, rows, panels, 0, x, ldx, w, panel, acc);
    UNROLL for (int r = 0; r < rows; r++)
    {
        UNROLL for (int p = 0; p < panels; p++)
        {
            v_st_n(b->y + r * b->ldy + p * 16, b->n - p * 16, acc[r][p]);
        }
    }
}

typedef void gemm_fn(const struct gemm_block *b);
#define GEMM_F32(r, p)                                                                             \
    static void gemm_f32_##r##x##p(const struct gemm_block *b)                                     \
    {                                                                                              \
        gemm_tile(KK_F32, r, p, b);                                                                \
    }
#define GEMM_BF16(r, p)                                                                            \
    static void gemm_bf16_##r##x##p(const struct gemm_block *b)                                    \
    {                                                                                              \
        gemm_tile(KK_BF16, r, p, b);                                                               \
    }
#define GEMM_F16(r, p)                                                                             \
    static void gemm_f16_##r##x##p(const struct gemm_block *b)                                     \
    {                                                                                              \
        gemm_tile(KK_F16, r, p, b);                                                                \
    }
#define GEMM_PAIRS_FN(r, p)                                                                        \
    static void gemm_pairs_##r##x##p(const struct gemm_block *b)                                   \
    {                                                                                              \
        gemm_tile((enum kk_dtype)GEMM_PAIRS, r, p, b);                                             \
    }
#define GEMM_F32_SLOT(r, p)   [r][p] = gemm_f32_##r##x##p,
#define GEMM_BF16_SLOT(r, p)  [r][p] = gemm_bf16_##r##x##p,
#define GEMM_F16_SLOT(r, p)   [r][p] = gemm_f16_##r##x##p,
#define GEMM_PAIRS_SLOT(r, p) [r][p] = gemm_pairs_##r##x##p,
GEMM_TILES(GEMM_F32)
GEMM_TILES(GEMM_BF16)
GEMM_TILES(GEMM_F16)
GEMM_TILES(GEMM_PAIRS_FN)
static gemm_fn *const gemm_tiles[4][GEMM_ROWS + 1][5] = {
    [KK_F32] = {GEMM_TILES(GEMM_F32_SLOT)},
    [KK_BF16] = {GEMM_TILES(GEMM_BF16_SLOT)},
    [KK_F16] = {GEMM_TILES(GEMM_F16_SLOT)},
    [GEMM_PAIRS] = {GEMM_TILES(GEMM_PAIRS_SLOT)},
};

#define GEMM_KB 512 /* inputs of a pass over many rows: a block of weights stays in L2 */

/* The input of a tile: rows of floats, or of pairs of bf16 as words */
V void gemm_input(int t, struct gemm_block *b, int rows, const float *x, int64_t ldx, float *wide)
{
    if (t != GEMM_PAIRS || GEMM_PAIR_WORDS == 1) {
        b->x = x + (t == GEMM_PAIRS ? b->k0 / 2 : b->k0);
        b->ldx = ldx;
        return;
    }
    const int64_t n = (b->k1 - b->k0 + 1) / 2 * 2;
    for (int r = 0; r < rows; r++)
        for (int64_t k = 0; k < n; k += 16)
            v_st_n(wide + r * GEMM_KB + k, n - k,
                   v_ld_bf16_n((const uint16_t *)(const void *)(x + r * ldx) + b->k0 + k, n - k));
    b->x = wide;
    b->ldx = GEMM_KB;
}

static void gemm_any(int t, int M, int64_t N, int64_t K, const float *x, int64_t ldx, const void *w,
                     const void *next, float *y, int64_t ldy)
{
    const int tiles = (M + GEMM_ROWS - 1) / GEMM_ROWS, most = (M + tiles - 1) / tiles;
    const int widen = t == GEMM_PAIRS && GEMM_PAIR_WORDS == 2;
    const int64_t kb = tiles > 2 || widen ? GEMM_KB : K, n_panels = (N + 15) / 16;
    const int64_t group = widen ? 4 : gemm_panels[most]; /* panels that a widened input is for */
    float wide[GEMM_ROWS * GEMM_KB];
    struct gemm_block b = {.panel = kk_panel_bytes(t == GEMM_PAIRS ? KK_BF16 : (enum kk_dtype)t, K),
                           .ldy = ldy};
    for (b.k0 = 0; b.k0 < K || b.k0 == 0; b.k0 = b.k1) {
        b.k1 = K - b.k0 < kb ? K : b.k0 + kb;
        for (int64_t p = 0; p < n_panels; p += group)
            for (int i = 0, r = 0, m; i < tiles; i++, r += m) {
                m = (M - r + tiles - i - 1) / (tiles - i);
                gemm_input(t, &b, m, x + r * ldx, ldx, wide);
                for (int64_t q = p, step; q < p + group && q < n_panels; q += step) {
                    step = gemm_panels[most];
                    while (step > n_panels - q) step /= 2;
                    b.w = (const char *)w + (size_t)q * b.panel;
                    b.next = q + step < n_panels ? b.w + (size_t)step * b.panel : next ? next : b.w;
                    b.y = y + r * ldy + q * 16;
                    b.n = N - q * 16;
                    gemm_tiles[t][m][step](&b);
                }
            }
        if (K == 0) break;
    }
}

static void gemm_f32(int M, int64_t N, int64_t K, const float *x, int64_t ldx, const void *w,
                     const void *next, float *y, int64_t ldy)
{
    gemm_any(KK_F32, M, N, K, x, ldx, w, next, y, ldy);
}

static void gemm_bf16(int M, int64_t N, int64_t K, const float *x, int64_t ldx, const void *w,
                      const void *next, float *y, int64_t ldy)
{
    gemm_any(KK_BF16, M, N, K, x, ldx, w, next, y, ldy);
}

static void gemm_f16(int M, int64_t N, int64_t K, const float *x, int64_t ldx, const void *w,
                     const void *next, float *y, int64_t ldy)
{
    gemm_any(KK_F16, M, N, K, x, ldx, w, next, y, ldy);
}

static void gemm_pairs(int M, int64_t N, int64_t K, const uint32_t *x, int64_t ldx, const void *w,
                       const void *next, float *y, int64_t ldy)
{
#ifdef __AVX512BF16__
    gemm_any(GEMM_PAIRS, M, N, K, (const float *)(const void *)x, ldx, w, next, y, ldy);
#else
    const unsigned was = _mm_getcsr();
    _mm_setcsr(was | 0x8040); /* FTZ, DAZ */
    gemm_any(GEMM_PAIRS, M, N, K, (const float *)(const void *)x, ldx, w, next, y, ldy);
    _mm_setcsr(was);
#endif
}

/* ---- attention ---- */

#include "dev/cpu/kern_rows_int.h"

#include "dev/cpu/kern_derive_int.h"

/* ---- elementwise: kk_exp and its users, 16 at once ---- */

V v16 v_exp(v16 x)
{
    v16 n = v_round(v_mul(x, v_set(1.44269504f)));
    v16 r = v_fma(n, v_set(-0.693359375f), x);
    r = v_fma(n, v_set(2.12194440e-4f), r);
    v16 p = v_set(1.9875691500e-4f);
    p = v_fma(p, r, v_set(1.3981999507e-3f));
    p = v_fma(p, r, v_set(8.3334519073e-3f));
    p = v_fma(p, r, v_set(4.1665795894e-2f));
    p = v_fma(p, r, v_set(1.6666665459e-1f));
    p = v_fma(p, r, v_set(5.0000001201e-1f));
    p = v_add(v_fma(p, v_mul(r, r), r), v_set(1.0f));
    return v_bound(v_scale2(p, n), x, -87.33654f, 88.72283f);
}

V v16 v_tanh(v16 x)
{
    v16 e = v_exp(v_mul(v_set(-2.0f), v_abs(x)));
    return v_copysign(v_div(v_sub(v_set(1.0f), e), v_add(v_set(1.0f), e)), x);
}

/* x / (1 + exp(-u)) */
V v16 v_gate(v16 x, v16 u)
{
    return v_div(x, v_add(v_set(1.0f), v_exp(v_neg(u))));
}

V v16 v_gelu_tanh(v16 x)
{
    v16 c = v_fma(v_set(0.044715f), v_mul(x, x), v_set(1.0f));
    return v_gate(x, v_mul(v_mul(v_set(1.5957691216f), x), c));
}

static void softmax(int n, float *s, float *m, float *l)
{
    v16 top = v_set(-INFINITY), sum = v_zero();
    for (int i = 0; i < n; i += 16) top = v_max(v_ld(s + i), top);
    *m = v_max_all(top);
    v16 mv = v_set(*m);
    for (int i = 0; i < n; i += 16) {
        v16 e = *m == -INFINITY ? v_zero() : v_exp(v_sub(v_ld(s + i), mv));
        v_st(s + i, e);
        sum = v_add(sum, e);
    }
    *l = v_sum(sum);
}

static void merge(int D, float *s, const float *n)
{
    float old, new;
    s[D] = kk_merge_weights(s[D], n[D], &old, &new);
    s[D + 1] = fmaf(n[D + 1], new, s[D + 1] * old);
    for (int i = 0; i < D; i += 16) {
        v16 o = v_mul(v_ld_n(s + i, D - i), v_set(old));
        v_st_n(s + i, D - i, v_fma(v_ld_n(n + i, D - i), v_set(new), o));
    }
}

static void norm(int n, const float *x, const float *w, float eps, float *y)
{
    v16 sum = v_zero();
    for (int i = 0; i < n; i += 16) {
        v16 a = v_ld_n(x + i, n - i);
        sum = v_fma(a, a, sum);
    }
    v16 r = v_set(1.0f / sqrtf(v_sum(sum) / (float)n + eps));
    for (int i = 0; i < n; i += 16) {
        v16 a = v_mul(v_ld_n(x + i, n - i), r);
        v_st_n(y + i, n - i, w ? v_mul(a, v_ld_n(w + i, n - i)) : a);
    }
}

static void rope(int D, int R, const float *cs, float *q)
{
    float *hi = q + D / 2;
    int r = 0;
    for (; r + 16 <= R; r += 16) rope_16(16, v_ld(q + r), v_ld(hi + r), cs + 2 * r, q + r, hi + r);
    if (r == R) return;
    v16 a = v_ld_n(q + r, R - r), b = v_ld_n(hi + r, R - r);
    rope_16(R - r, a, b, cs + 2 * r, q + r, hi + r);
}

static void glu(int n, enum kk_activation act, const float *g, const float *u, float *y)
{
    for (int i = 0; i < n; i += 16) {
        v16 x = v_ld_n(g + i, n - i);
        x = act == KK_SILU ? v_gate(x, x) : v_gelu_tanh(x);
        v_st_n(y + i, n - i, v_mul(x, v_ld_n(u + i, n - i)));
    }
}

static void softcap(int n, float cap, float *y)
{
    v16 c = v_set(cap);
    for (int i = 0; i < n; i += 16)
        v_st_n(y + i, n - i, v_mul(c, v_tanh(v_div(v_ld_n(y + i, n - i), c))));
}

static void add_scale(int n, const float *x, float scale, float *h)
{
    for (int i = 0; i < n; i += 16) {
        v16 a = v_add(v_ld_n(h + i, n - i), v_ld_n(x + i, n - i));
        v_st_n(h + i, n - i, v_mul(a, v_set(scale)));
    }
}

static void add(int n, const float *a, const float *b, float *y)
{
    for (int i = 0; i < n; i += 16)
        v_st_n(y + i, n - i, v_add(v_ld_n(a + i, n - i), v_ld_n(b + i, n - i)));
}

static void axpy(int n, float a, const float *x, float *y)
{
    for (int i = 0; i < n; i += 16)
        v_st_n(y + i, n - i, v_fma(v_ld_n(x + i, n - i), v_set(a), v_ld_n(y + i, n - i)));
}

static void store_f32(int n, const float *x, void *dst)
{
    memcpy(dst, x, (size_t)n * 4);
}

static void store_bf16(int n, const float *x, void *dst)
{
    for (int i = 0; i < n; i += 16) v_st_bf16_n((uint16_t *)dst + i, n - i, v_ld_n(x + i, n - i));
}

static void store_q8(int n, const float *x, void *dst)
{
    kk_row_store_q8(n, x, dst);
}

#define ARGMAX_BLOCK 1024

/* A block at a time: the largest of each, then the first place that holds it. Where it is -inf,
 * the block may have nothing but NaNs. */
static int64_t argmax(int64_t n, const float *x)
{
    int64_t best = 0;
    float top = x[0];
    for (int64_t b = 0; b < n; b += ARGMAX_BLOCK) {
        int64_t end = n - b < ARGMAX_BLOCK ? n : b + ARGMAX_BLOCK, i = b;
        v16 m = v_set(-INFINITY);
        for (; i + 16 <= end; i += 16) m = v_max(v_ld(x + i), m);
        float most = v_max_all(m);
        for (; i < end; i++)
            if (x[i] > most) most = x[i];
        if (!kk_is_larger(most, top)) continue;
        for (i = b; i < end && x[i] != most;) i++;
        if (i == end) continue;
        top = most;
        best = i;
    }
    return best;
}

#define KERN_TABLE(name)                                                                           \
    {                                                                                              \
        .isa = name, .gemm = {gemm_f32, gemm_bf16, gemm_f16}, .gemm_pairs = gemm_pairs,            \
        .scores = {scores_f32, scores_bf16, scores_q8},                                            \
        .derive = {derive_f32, derive_bf16, derive_q8},                                            \
        .derived = {derived_f32, derived_bf16, derived_q8}, .derived_most = DERIVED_MOST,          \
        .softmax = softmax, .pv = {pv_f32, pv_bf16, pv_q8}, .merge = merge, .norm = norm,          \
        .rope = rope, .glu = glu, .softcap = softcap, .add_scale = add_scale, .add = add,          \
        .axpy = axpy, .store = {store_f32, store_bf16, store_q8}, .argmax = argmax                 \
    }

#endif
