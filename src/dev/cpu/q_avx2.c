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
#include "dev/cpu/q_vec_int.h"

const struct kk_cpu_q8 kk__q8_avx2 = {
    .isa = "avx2", .quantise = quantise, .weights = weights, .gemm = gemm};
