/* Leaf kernels for AVX-512 (F, BW, VL, DQ): a v16 is one zmm. The bodies are in kern_vec_int.h. */
#include <immintrin.h>
#include <stdbool.h>

#include "dev/cpu/kern_int.h"

#define V static inline __attribute__((always_inline))
#ifdef __clang__
#define UNROLL _Pragma("unroll")
#else
#define UNROLL _Pragma("GCC unroll 16")
#endif

typedef __m512 v16;

V v16 v_zero(void)
{
    return _mm512_setzero_ps();
}
V v16 v_set(float a)
{
    return _mm512_set1_ps(a);
}
V v16 v_add(v16 a, v16 b)
{
    return _mm512_add_ps(a, b);
}
V v16 v_sub(v16 a, v16 b)
{
    return _mm512_sub_ps(a, b);
}
V v16 v_mul(v16 a, v16 b)
{
    return _mm512_mul_ps(a, b);
}
V v16 v_div(v16 a, v16 b)
{
    return _mm512_div_ps(a, b);
}
V v16 v_fma(v16 a, v16 b, v16 c)
{
    return _mm512_fmadd_ps(a, b, c);
}
V v16 v_fnma(v16 a, v16 b, v16 c)
{
    return _mm512_fnmadd_ps(a, b, c);
}
/* a > b ? a : b */
V v16 v_max(v16 a, v16 b)
{
    return _mm512_max_ps(a, b);
}
V v16 v_round(v16 a)
{
    return _mm512_roundscale_ps(a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
}
V v16 v_neg(v16 a)
{
    return _mm512_xor_ps(a, v_set(-0.0f));
}
V v16 v_abs(v16 a)
{
    return _mm512_andnot_ps(v_set(-0.0f), a);
}
V v16 v_copysign(v16 a, v16 s)
{
    return _mm512_or_ps(v_abs(a), _mm512_and_ps(v_set(-0.0f), s));
}
/* p * 2^n, rounded once */
V v16 v_scale2(v16 p, v16 n)
{
    return _mm512_scalef_ps(p, n);
}
/* x < lo ? 0 : x > hi ? inf : y */
V v16 v_bound(v16 y, v16 x, float lo, float hi)
{
    y = _mm512_mask_mov_ps(y, _mm512_cmp_ps_mask(x, v_set(lo), _CMP_LT_OQ), v_zero());
    return _mm512_mask_mov_ps(y, _mm512_cmp_ps_mask(x, v_set(hi), _CMP_GT_OQ), v_set(INFINITY));
}

V __mmask16 v__first(int64_t n)
{
    return n >= 16 ? (__mmask16)0xffff : (__mmask16)((1u << n) - 1);
}
/* A mask that the compiler knows to be full is not worth making */
#define v__whole(n) (__builtin_constant_p(n) && (n) >= 16)
/* The first n lanes of fma, the others of c */
V v16 v_fma_n(v16 a, v16 b, v16 c, int64_t n)
{
    return _mm512_mask3_fmadd_ps(a, b, c, v__first(n));
}
V v16 v_ld(const float *p)
{
    return _mm512_loadu_ps(p);
}
V void v_st(float *p, v16 a)
{
    _mm512_storeu_ps(p, a);
}
V v16 v_ld_n(const float *p, int64_t n)
{
    if (v__whole(n)) return v_ld(p);
    return _mm512_maskz_loadu_ps(v__first(n), p);
}
V void v_st_n(float *p, int64_t n, v16 a)
{
    if (v__whole(n))
        v_st(p, a);
    else
        _mm512_mask_storeu_ps(p, v__first(n), a);
}
V v16 v__widen(__m256i b)
{
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(b), 16));
}
V v16 v_ld_bf16(const uint16_t *p)
{
    return v__widen(_mm256_loadu_si256((const __m256i *)p));
}
V v16 v_ld_bf16_n(const uint16_t *p, int64_t n)
{
    if (v__whole(n)) return v_ld_bf16(p);
    return v__widen(_mm256_maskz_loadu_epi16(v__first(n), p));
}
V void v_st_bf16_n(uint16_t *p, int64_t n, v16 a)
{
    __m512i u = _mm512_castps_si512(a), top = _mm512_srli_epi32(u, 16);
    __m512i odd = _mm512_and_si512(top, _mm512_set1_epi32(1));
    __m512i r = _mm512_add_epi32(_mm512_add_epi32(u, _mm512_set1_epi32(0x7fff)), odd);
    r = _mm512_srli_epi32(r, 16);
    __mmask16 nan = _mm512_cmp_ps_mask(a, a, _CMP_UNORD_Q);
    r = _mm512_mask_or_epi32(r, nan, top, _mm512_set1_epi32(0x40));
    _mm256_mask_storeu_epi16(p, v__first(n), _mm512_cvtepi32_epi16(r));
}
V v16 v_ld_f16(const uint16_t *p)
{
    return _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *)p));
}
V v16 v_set_f16(const uint16_t *p)
{
    return _mm512_cvtph_ps(_mm256_set1_epi16((short)*p));
}
V v16 v_ld_s8(const int8_t *p)
{
    return _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128((const __m128i *)p)));
}
/* 16 pairs of bf16: the first, or the second, of each pair */
V v16 v_ld_bf16_even(const void *p)
{
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_loadu_si512(p), 16));
}
V v16 v_ld_bf16_odd(const void *p)
{
    __m512i top = _mm512_set1_epi32((int)0xffff0000);
    return _mm512_castsi512_ps(_mm512_and_si512(_mm512_loadu_si512(p), top));
}
/* n pairs of floats: the first of each pair, the second of each pair */
V void v_ld_pairs_n(const float *p, int64_t n, v16 *a, v16 *b)
{
    v16 x = v_ld_n(p, 2 * n), y = v_ld_n(p + (n > 8 ? 16 : 0), n > 8 ? 2 * n - 16 : 0);
    __m512i even = _mm512_setr_epi32(0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30);
    *a = _mm512_permutex2var_ps(x, even, y);
    *b = _mm512_permutex2var_ps(x, _mm512_add_epi32(even, _mm512_set1_epi32(1)), y);
}

/* The lane trees of kern_int.h: + 8, + 4, + 2, + 1 */
V float v_sum(v16 a)
{
    __m256 h = _mm256_add_ps(_mm512_castps512_ps256(a), _mm512_extractf32x8_ps(a, 1));
    __m128 q = _mm_add_ps(_mm256_castps256_ps128(h), _mm256_extractf128_ps(h, 1));
    q = _mm_add_ps(q, _mm_movehl_ps(q, q));
    return _mm_cvtss_f32(_mm_add_ss(q, _mm_shuffle_ps(q, q, 1)));
}
V float v_max_all(v16 a)
{
    return _mm512_reduce_max_ps(a);
}

/* Sums of 16 vectors at once, in the same trees: lane r of the result is the sum of t[r]. */
#define DOTS 16
V v16 v_dots(const v16 *t)
{
    v16 h[8], q[4], d[2];
    UNROLL for (int i = 0; i < 8; i++)
    {
        v16 a = t[i / 2 + i % 2 * 8], b = t[i / 2 + 4 + i % 2 * 8];
        h[i] = v_add(_mm512_shuffle_f32x4(a, b, 0x44), _mm512_shuffle_f32x4(a, b, 0xee));
    }
    UNROLL for (int i = 0; i < 4; i++)
    {
        v16 a = h[2 * i], b = h[2 * i + 1];
        q[i] = v_add(_mm512_shuffle_f32x4(a, b, 0x88), _mm512_shuffle_f32x4(a, b, 0xdd));
    }
    UNROLL for (int i = 0; i < 2; i++)
    {
        v16 a = q[2 * i], b = q[2 * i + 1];
        d[i] = v_add(_mm512_shuffle_ps(a, b, 0x44), _mm512_shuffle_ps(a, b, 0xee));
    }
    return v_add(_mm512_shuffle_ps(d[0], d[1], 0x88), _mm512_shuffle_ps(d[0], d[1], 0xdd));
}

/* gemm tiles: rows x panels, by the rows of the tile; accumulators fit 32 registers */
#define GEMM_ROWS          6
#define GEMM_FEW_REGISTERS 0
#define GEMM_TILES(X)                                                                              \
    X(1, 4)                                                                                        \
    X(1, 2)                                                                                        \
    X(1, 1)                                                                                        \
    X(2, 4)                                                                                        \
    X(2, 2)                                                                                        \
    X(2, 1)                                                                                        \
    X(3, 4) X(3, 2) X(3, 1) X(4, 4) X(4, 2) X(4, 1) X(5, 4) X(5, 2) X(5, 1) X(6, 4) X(6, 2) X(6, 1)
static const int gemm_panels[GEMM_ROWS + 1] = {0, 4, 4, 4, 4, 4, 4};

/* scores tiles: queries x keys <= DOTS */
#define SCORE_TILES(X) X(4, 4) X(3, 5) X(2, 8) X(1, 16)
#define DERIVED_MOST   8
/* pv tiles: queries x vectors of D */
#define PV_TILES(X)                                                                                \
    X(4, 4)                                                                                        \
    X(4, 2) X(4, 1) X(3, 4) X(3, 2) X(3, 1) X(2, 4) X(2, 2) X(2, 1) X(1, 4) X(1, 2) X(1, 1)
static const int pv_vecs[5] = {0, 4, 4, 4, 4};

#include "dev/cpu/kern_vec_int.h"

/* Compiled twice: k_avx512_bf16.c */
#ifdef __AVX512BF16__
const struct kk_cpu_kern kk__kern_avx512_bf16 = KERN_TABLE("avx512");
#else
const struct kk_cpu_kern kk__kern_avx512 = KERN_TABLE("avx512");
#endif
