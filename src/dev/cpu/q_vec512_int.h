/* Vectors of 16 outputs for q_avx512.c and q_vnni.c, which differ in the integer dot product. */
#ifndef KK_DEV_CPU_Q_VEC512_INT_H
#define KK_DEV_CPU_Q_VEC512_INT_H

#include <immintrin.h>

#include "dev/cpu/quant_int.h"

#define V static inline __attribute__((always_inline))
#ifdef __clang__
#define UNROLL _Pragma("unroll")
#else
#define UNROLL _Pragma("GCC unroll 16")
#endif

enum { W = 16 };
#define QROWS 8
typedef __m512 qf;
typedef __m512i qi;

V qf qf_zero(void)
{
    return _mm512_setzero_ps();
}
V qf qf_set(float a)
{
    return _mm512_set1_ps(a);
}
V qf qf_mul(qf a, qf b)
{
    return _mm512_mul_ps(a, b);
}
V qf qf_add(qf a, qf b)
{
    return _mm512_add_ps(a, b);
}
V qf qf_neg(qf a)
{
    return _mm512_xor_ps(a, _mm512_set1_ps(-0.0f));
}
V qf qf_fma(qf a, qf b, qf c)
{
    return _mm512_fmadd_ps(a, b, c);
}
V qf qf_from_int(qi a)
{
    return _mm512_cvtepi32_ps(a);
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
V qi qi_set8(char a)
{
    return _mm512_set1_epi8(a);
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
V qi qi_left(qi a, const unsigned n)
{
    return _mm512_slli_epi16(a, n);
}
V qi qi_right(qi a, const unsigned n)
{
    return _mm512_srli_epi16(a, n);
}
V qi qi_sub(qi a, qi b)
{
    return _mm512_sub_epi32(a, b);
}
V qi qi_zero(void)
{
    return _mm512_setzero_si512();
}
V qi qi_times(qi a, const unsigned shift)
{
    return _mm512_slli_epi32(a, shift);
}
V qi qi_set(const int32_t *a)
{
    return _mm512_set1_epi32(*a);
}
V qi qi_set32(int32_t a)
{
    return _mm512_set1_epi32(a);
}
/* Byte b of each lane */
V qi qi_byte(qi a, const unsigned b)
{
    return qi_and(_mm512_srli_epi32(a, 8 * b), qi_set32(255));
}
/* Four activations in every lane */
V qi qi_four(const int8_t *q)
{
    int32_t four;
    memcpy(&four, q, 4);
    return qi_set(&four);
}

#endif
