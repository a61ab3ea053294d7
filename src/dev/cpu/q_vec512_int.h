/* Vectors of 16 outputs for q_avx512.c and q_vnni.c, which differ in the integer dot product. */
#ifndef KK_DEV_CPU_Q_VEC512_INT_H
#define KK_DEV_CPU_Q_VEC512_INT_H

#include <immintrin.h>

#include "dev/cpu/quant_int.h"

enum { W = 16 };
#define QROWS 8
typedef __m512 qf;
typedef __m512i qi;
#define QI(op) _mm512_##op
#include "dev/cpu/q_ops_int.h"

V qf qf_neg(qf a)
{
    return _mm512_xor_ps(a, _mm512_set1_ps(-0.0f));
}
V qf qf_ld_f16(const char *p)
{
    return _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *)p));
}
V qf qf_ld_u8(const char *p)
{
    return qf_from_int(_mm512_cvtepu8_epi32(_mm_loadu_si128((const __m128i *)p)));
}
V qf qf_ld_s8(const char *p)
{
    return qf_from_int(_mm512_cvtepi8_epi32(_mm_loadu_si128((const __m128i *)p)));
}
V void qf_st_n(float *p, int64_t n, qf a)
{
    if (n >= 16)
        _mm512_storeu_ps(p, a);
    else
        _mm512_mask_storeu_ps(p, (__mmask16)((1u << n) - 1), a);
}
V qi qi_ld(const uint8_t *p)
{
    return _mm512_loadu_si512(p);
}
V qi qi_and(qi a, qi b)
{
    return _mm512_and_si512(a, b);
}
/* a | (b & c) */
V qi qi_or_and(qi a, qi b, qi c)
{
    return _mm512_ternarylogic_epi32(a, b, c, 0xf8);
}
V qi qi_zero(void)
{
    return _mm512_setzero_si512();
}

#endif
