/* Products with weights of block types, AVX2: vectors of 8 outputs. The body is in q_vec_int.h. */
#include <immintrin.h>

#include "dev/cpu/quant_int.h"

enum { W = 8 };
#define QROWS 4
typedef __m256 qf;
typedef __m256i qi;
#define QI(op)     _mm256_##op
#define QSI(op)    _mm256_##op##_si256
#define Q_F16(p)   _mm_loadu_si128((const __m128i *)(p))
#define Q_BYTES(p) _mm_loadl_epi64((const __m128i *)(p))
#include "dev/cpu/q_ops_int.h"

V void qf_st_n(float *p, int64_t n, qf a)
{
    float whole[8];
    if (n >= 8) {
        _mm256_storeu_ps(p, a);
        return;
    }
    _mm256_storeu_ps(whole, a);
    for (int i = 0; i < n; i++) p[i] = whole[i];
}
V qi qi_ld(const uint8_t *p)
{
    return _mm256_loadu_si256((const __m256i *)p);
}
/* a | (b & c) */
V qi qi_or_and(qi a, qi b, qi c)
{
    return _mm256_or_si256(a, _mm256_and_si256(b, c));
}

/* b with the sign of a (a = -128 too), times |a| as unsigned bytes, in pairs */
V qi qi_signed_pairs(qi a, qi b)
{
    return _mm256_maddubs_epi16(_mm256_abs_epi8(a), _mm256_sign_epi8(b, a));
}

#include "dev/cpu/q_pairs_int.h"
/* The bits of the largest magnitude of a group */
V uint32_t q_top(const float *x)
{
    const __m256i m = _mm256_set1_epi32(0x7fffffff);
    __m256i t = _mm256_setzero_si256();
    UNROLL for (int i = 0; i < 4; i++)
    {
        __m256i bits = _mm256_loadu_si256((const __m256i *)(x + 8 * i));
        t = _mm256_max_epu32(t, _mm256_and_si256(bits, m));
    }
    __m128i h = _mm_max_epu32(_mm256_castsi256_si128(t), _mm256_extracti128_si256(t, 1));
    h = _mm_max_epu32(h, _mm_shuffle_epi32(h, 0x4e));
    h = _mm_max_epu32(h, _mm_shuffle_epi32(h, 0xb1));
    return (uint32_t)_mm_cvtsi128_si32(h);
}
/* q = rint(x * by) of 16, and their sum */
V int32_t q_round(const float *x, float by, int8_t *q)
{
    const __m256 b = _mm256_set1_ps(by);
    __m256i v = _mm256_cvtps_epi32(_mm256_mul_ps(_mm256_loadu_ps(x), b));
    __m256i w = _mm256_cvtps_epi32(_mm256_mul_ps(_mm256_loadu_ps(x + 8), b));
    __m256i s = _mm256_add_epi32(v, w);
    __m256i both = _mm256_permute4x64_epi64(_mm256_packs_epi32(v, w), 0xd8);
    __m128i low = _mm256_castsi256_si128(both), high = _mm256_extracti128_si256(both, 1);
    _mm_storeu_si128((__m128i *)q, _mm_packs_epi16(low, high));
    __m128i h = _mm_add_epi32(_mm256_castsi256_si128(s), _mm256_extracti128_si256(s, 1));
    h = _mm_add_epi32(h, _mm_shuffle_epi32(h, 0x4e));
    return _mm_cvtsi128_si32(_mm_add_epi32(h, _mm_shuffle_epi32(h, 0xb1)));
}

#include "dev/cpu/q_vec_int.h"

const struct kk_cpu_q8 kk__q8_avx2 = {
    .isa = "avx2", .quantise = quantise, .weights = weights, .gemm = gemm};
