/* Leaf kernels for AVX2 + FMA + F16C: a v16 is two ymm. The bodies are in kern_vec_int.h. */
#include <immintrin.h>
#include <stdbool.h>

#include "dev/cpu/kern_int.h"

#define V static inline __attribute__((always_inline))
#ifdef __clang__
#define UNROLL _Pragma("unroll")
#else
#define UNROLL _Pragma("GCC unroll 16")
#endif

typedef struct {
    __m256 lo, hi;
} v16;

#define V2(f, ...)           ((v16){f(lo, __VA_ARGS__), f(hi, __VA_ARGS__)})
#define V__2(h, op, a, b)    op((a).h, (b).h)
#define V__3(h, op, a, b, c) op((a).h, (b).h, (c).h)

V v16 v_zero(void)
{
    return (v16){_mm256_setzero_ps(), _mm256_setzero_ps()};
}
V v16 v_set(float a)
{
    return (v16){_mm256_set1_ps(a), _mm256_set1_ps(a)};
}
V v16 v_add(v16 a, v16 b)
{
    return V2(V__2, _mm256_add_ps, a, b);
}
V v16 v_sub(v16 a, v16 b)
{
    return V2(V__2, _mm256_sub_ps, a, b);
}
V v16 v_mul(v16 a, v16 b)
{
    return V2(V__2, _mm256_mul_ps, a, b);
}
V v16 v_div(v16 a, v16 b)
{
    return V2(V__2, _mm256_div_ps, a, b);
}
V v16 v_fma(v16 a, v16 b, v16 c)
{
    return V2(V__3, _mm256_fmadd_ps, a, b, c);
}
V v16 v_fnma(v16 a, v16 b, v16 c)
{
    return V2(V__3, _mm256_fnmadd_ps, a, b, c);
}
/* a > b ? a : b */
V v16 v_max(v16 a, v16 b)
{
    return V2(V__2, _mm256_max_ps, a, b);
}
V v16 v_round(v16 a)
{
    enum { near = _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC };
    return (v16){_mm256_round_ps(a.lo, near), _mm256_round_ps(a.hi, near)};
}
V v16 v_neg(v16 a)
{
    return V2(V__2, _mm256_xor_ps, a, v_set(-0.0f));
}
V v16 v_abs(v16 a)
{
    return V2(V__2, _mm256_andnot_ps, v_set(-0.0f), a);
}
V v16 v_copysign(v16 a, v16 s)
{
    v16 m = v_abs(a), sign = V2(V__2, _mm256_and_ps, v_set(-0.0f), s);
    return V2(V__2, _mm256_or_ps, m, sign);
}
/* p * 2^n in the two steps of kk_exp */
V __m256 v__scale2(__m256 p, __m256 n)
{
    __m256i i = _mm256_cvtps_epi32(n), a = _mm256_srai_epi32(i, 1), b = _mm256_sub_epi32(i, a);
    __m256i one = _mm256_set1_epi32(127);
    __m256i fa = _mm256_slli_epi32(_mm256_add_epi32(a, one), 23);
    __m256i fb = _mm256_slli_epi32(_mm256_add_epi32(b, one), 23);
    return _mm256_mul_ps(_mm256_mul_ps(p, _mm256_castsi256_ps(fa)), _mm256_castsi256_ps(fb));
}
V v16 v_scale2(v16 p, v16 n)
{
    return V2(V__2, v__scale2, p, n);
}
/* x < lo ? 0 : x > hi ? inf : y */
V __m256 v__bound(__m256 y, __m256 x, __m256 lo, __m256 hi)
{
    y = _mm256_andnot_ps(_mm256_cmp_ps(x, lo, _CMP_LT_OQ), y);
    return _mm256_blendv_ps(y, _mm256_set1_ps(INFINITY), _mm256_cmp_ps(x, hi, _CMP_GT_OQ));
}
V v16 v_bound(v16 y, v16 x, float lo, float hi)
{
    __m256 l = _mm256_set1_ps(lo), h = _mm256_set1_ps(hi);
    return (v16){v__bound(y.lo, x.lo, l, h), v__bound(y.hi, x.hi, l, h)};
}

static const int32_t v__ones[32] = {-1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1,
                                    0,  0,  0,  0,  0,  0,  0,  0,  0,  0,  0,  0,  0,  0,  0,  0};
V __m256i v__first(int64_t n)
{
    return _mm256_loadu_si256((const __m256i *)(v__ones + 16 - (n < 16 ? n : 16)));
}
V __m256i v__first_hi(int64_t n)
{
    return _mm256_loadu_si256((const __m256i *)(v__ones + 24 - (n < 16 ? n : 16)));
}
/* The first n lanes of fma, the others of c */
V v16 v_fma_n(v16 a, v16 b, v16 c, int64_t n)
{
    v16 f = v_fma(a, b, c);
    return (v16){_mm256_blendv_ps(c.lo, f.lo, _mm256_castsi256_ps(v__first(n))),
                 _mm256_blendv_ps(c.hi, f.hi, _mm256_castsi256_ps(v__first_hi(n)))};
}
V v16 v_ld(const float *p)
{
    return (v16){_mm256_loadu_ps(p), _mm256_loadu_ps(p + 8)};
}
V void v_st(float *p, v16 a)
{
    _mm256_storeu_ps(p, a.lo);
    _mm256_storeu_ps(p + 8, a.hi);
}
V v16 v_ld_n(const float *p, int64_t n)
{
    if (n >= 16) return v_ld(p);
    return (v16){_mm256_maskload_ps(p, v__first(n)), _mm256_maskload_ps(p + 8, v__first_hi(n))};
}
V void v_st_n(float *p, int64_t n, v16 a)
{
    if (n >= 16) {
        v_st(p, a);
        return;
    }
    _mm256_maskstore_ps(p, v__first(n), a.lo);
    _mm256_maskstore_ps(p + 8, v__first_hi(n), a.hi);
}
V __m256 v__widen(__m128i b)
{
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(b), 16));
}
V v16 v_ld_bf16(const uint16_t *p)
{
    const __m128i *b = (const __m128i *)p;
    return (v16){v__widen(_mm_loadu_si128(b)), v__widen(_mm_loadu_si128(b + 1))};
}
V v16 v_ld_bf16_n(const uint16_t *p, int64_t n)
{
    if (n >= 16) return v_ld_bf16(p);
    uint16_t t[16] = {0};
    memcpy(t, p, (size_t)n * 2);
    return v_ld_bf16(t);
}
V __m256i v__round_bf16(__m256 a)
{
    __m256i u = _mm256_castps_si256(a), top = _mm256_srli_epi32(u, 16);
    __m256i odd = _mm256_and_si256(top, _mm256_set1_epi32(1));
    __m256i r = _mm256_add_epi32(_mm256_add_epi32(u, _mm256_set1_epi32(0x7fff)), odd);
    __m256i nan = _mm256_castps_si256(_mm256_cmp_ps(a, a, _CMP_UNORD_Q));
    __m256i quiet = _mm256_or_si256(top, _mm256_set1_epi32(0x40));
    return _mm256_blendv_epi8(_mm256_srli_epi32(r, 16), quiet, nan);
}
V void v_st_bf16_n(uint16_t *p, int64_t n, v16 a)
{
    __m256i b = _mm256_packus_epi32(v__round_bf16(a.lo), v__round_bf16(a.hi));
    b = _mm256_permute4x64_epi64(b, 0xd8);
    if (n >= 16) {
        _mm256_storeu_si256((__m256i *)p, b);
        return;
    }
    uint16_t t[16];
    _mm256_storeu_si256((__m256i *)t, b);
    memcpy(p, t, (size_t)n * 2);
}
V v16 v_ld_f16(const uint16_t *p)
{
    const __m128i *b = (const __m128i *)p;
    return (v16){_mm256_cvtph_ps(_mm_loadu_si128(b)), _mm256_cvtph_ps(_mm_loadu_si128(b + 1))};
}
V v16 v_set_f16(const uint16_t *p)
{
    __m256 a = _mm256_cvtph_ps(_mm_set1_epi16((short)*p));
    return (v16){a, a};
}
V v16 v_ld_s8(const int8_t *p)
{
    return (v16){
        _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64((const __m128i *)p))),
        _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64((const __m128i *)(p + 8))))};
}
/* 16 pairs of bf16: the first, or the second, of each pair */
V v16 v_ld_bf16_even(const void *p)
{
    const __m256i *w = p;
    return (v16){_mm256_castsi256_ps(_mm256_slli_epi32(_mm256_loadu_si256(w), 16)),
                 _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_loadu_si256(w + 1), 16))};
}
V v16 v_ld_bf16_odd(const void *p)
{
    const __m256i *w = p, top = _mm256_set1_epi32((int)0xffff0000);
    return (v16){_mm256_castsi256_ps(_mm256_and_si256(_mm256_loadu_si256(w), top)),
                 _mm256_castsi256_ps(_mm256_and_si256(_mm256_loadu_si256(w + 1), top))};
}
V __m256 v__evens(v16 a, int odd)
{
    __m256 s = odd ? _mm256_shuffle_ps(a.lo, a.hi, 0xdd) : _mm256_shuffle_ps(a.lo, a.hi, 0x88);
    return _mm256_castpd_ps(_mm256_permute4x64_pd(_mm256_castps_pd(s), 0xd8));
}
/* n pairs of floats: the first of each pair, the second of each pair */
V void v_ld_pairs_n(const float *p, int64_t n, v16 *a, v16 *b)
{
    v16 x = v_ld_n(p, 2 * n), y = v_ld_n(p + (n > 8 ? 16 : 0), n > 8 ? 2 * n - 16 : 0);
    *a = (v16){v__evens(x, 0), v__evens(y, 0)};
    *b = (v16){v__evens(x, 1), v__evens(y, 1)};
}

/* The lane trees of kern_int.h: + 8, + 4, + 2, + 1 */
V float v_sum(v16 a)
{
    __m256 h = _mm256_add_ps(a.lo, a.hi);
    __m128 q = _mm_add_ps(_mm256_castps256_ps128(h), _mm256_extractf128_ps(h, 1));
    q = _mm_add_ps(q, _mm_movehl_ps(q, q));
    return _mm_cvtss_f32(_mm_add_ss(q, _mm_shuffle_ps(q, q, 1)));
}
V float v_max_all(v16 a)
{
    __m256 h = _mm256_max_ps(a.lo, a.hi);
    __m128 q = _mm_max_ps(_mm256_castps256_ps128(h), _mm256_extractf128_ps(h, 1));
    q = _mm_max_ps(q, _mm_movehl_ps(q, q));
    return _mm_cvtss_f32(_mm_max_ss(q, _mm_shuffle_ps(q, q, 1)));
}

/* Sums of 4 vectors at once, in the same trees: lane r of the result is the sum of t[r]. */
#define DOTS 4
V v16 v_dots(const v16 *t)
{
    __m256 a = _mm256_add_ps(t[0].lo, t[0].hi), b = _mm256_add_ps(t[1].lo, t[1].hi);
    __m256 c = _mm256_add_ps(t[2].lo, t[2].hi), d = _mm256_add_ps(t[3].lo, t[3].hi);
    /* ac = a4 | c4, bd = b4 | d4 */
    __m256 ac =
        _mm256_add_ps(_mm256_permute2f128_ps(a, c, 0x20), _mm256_permute2f128_ps(a, c, 0x31));
    __m256 bd =
        _mm256_add_ps(_mm256_permute2f128_ps(b, d, 0x20), _mm256_permute2f128_ps(b, d, 0x31));
    /* a2 b2 | c2 d2, then a b a b | c d c d */
    __m256 s = _mm256_add_ps(_mm256_shuffle_ps(ac, bd, 0x44), _mm256_shuffle_ps(ac, bd, 0xee));
    s = _mm256_add_ps(_mm256_shuffle_ps(s, s, 0x88), _mm256_shuffle_ps(s, s, 0xdd));
    __m128 r = _mm_movelh_ps(_mm256_castps256_ps128(s), _mm256_extractf128_ps(s, 1));
    return (v16){_mm256_castps128_ps256(r), _mm256_setzero_ps()};
}

/* gemm tiles: rows x panels, by the rows of the tile; accumulators fit 16 registers */
#define GEMM_ROWS          5
#define GEMM_FEW_REGISTERS 1
#define GEMM_TILES(X)      X(1, 4) X(1, 2) X(1, 1) X(2, 2) X(2, 1) X(3, 1) X(4, 1) X(5, 1)
static const int gemm_panels[GEMM_ROWS + 1] = {0, 4, 2, 1, 1, 1};

/* scores tiles: queries x keys = DOTS */
#define SCORE_TILES(X) X(2, 2) X(1, 4)
#define DERIVED_MOST   2
/* pv tiles: queries x vectors of D */
#define PV_TILES(X) X(4, 1) X(2, 2) X(2, 1) X(1, 4) X(1, 2) X(1, 1)
static const int pv_vecs[5] = {0, 4, 2, 0, 1};

#include "dev/cpu/kern_vec_int.h"

const struct kk_cpu_kern kk__kern_avx2 = KERN_TABLE("avx2");
