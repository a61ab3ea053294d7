/* Vectors of 16 outputs for q_avx512.c and q_vnni.c, which differ in the integer dot product. */
#ifndef KK_DEV_CPU_Q_VEC512_INT_H
#define KK_DEV_CPU_Q_VEC512_INT_H

#include <immintrin.h>

#include "dev/cpu/quant_int.h"

enum { W = 16 };
#define QROWS 8
typedef __m512 qf;
typedef __m512i qi;
#define QI(op)     _mm512_##op
#define QSI(op)    _mm512_##op##_si512
#define Q_F16(p)   _mm256_loadu_si256((const __m256i *)(p))
#define Q_BYTES(p) _mm_loadu_si128((const __m128i *)(p))
#include "dev/cpu/q_ops_int.h"

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
/* a | (b & c) */
V qi qi_or_and(qi a, qi b, qi c)
{
    return _mm512_ternarylogic_epi32(a, b, c, 0xf8);
}

/* The bits of the largest magnitude of a group */
V uint32_t q_top(const float *x)
{
    const qi m = _mm512_set1_epi32(0x7fffffff);
    qi a = qi_and(_mm512_loadu_si512(x), m), b = qi_and(_mm512_loadu_si512(x + 16), m);
    return _mm512_reduce_max_epu32(_mm512_max_epu32(a, b));
}
/* q = rint(x * by) of 16, and their sum */
V int32_t q_round(const float *x, float by, int8_t *q)
{
    qi v = _mm512_cvtps_epi32(_mm512_mul_ps(_mm512_loadu_ps(x), _mm512_set1_ps(by)));
    _mm_storeu_si128((__m128i *)q, _mm512_cvtepi32_epi8(v));
    return _mm512_reduce_add_epi32(v);
}

#endif
