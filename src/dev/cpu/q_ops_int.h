/* Operations of vectors of W outputs that have one name in every width: qf of floats, qi of codes
 * or integers, QI(op) the instruction, QSI(op) one of whole registers, Q_F16(p) and Q_BYTES(p) W
 * words and W bytes at p. What has not is with the types, in q_avx2.c and q_vec512_int.h. */
#ifndef KK_DEV_CPU_Q_OPS_INT_H
#define KK_DEV_CPU_Q_OPS_INT_H

#define V static inline __attribute__((always_inline))
#ifdef __clang__
#define UNROLL _Pragma("unroll")
#else
#define UNROLL _Pragma("GCC unroll 16")
#endif

V qf qf_zero(void)
{
    return QI(setzero_ps)();
}
V qf qf_set(float a)
{
    return QI(set1_ps)(a);
}
V qf qf_neg(qf a)
{
    return QI(xor_ps)(a, qf_set(-0.0f));
}
V qf qf_mul(qf a, qf b)
{
    return QI(mul_ps)(a, b);
}
V qf qf_add(qf a, qf b)
{
    return QI(add_ps)(a, b);
}
V qf qf_fma(qf a, qf b, qf c)
{
    return QI(fmadd_ps)(a, b, c);
}
V qf qf_from_int(qi a)
{
    return QI(cvtepi32_ps)(a);
}
V qf qf_ld_f16(const char *p)
{
    return QI(cvtph_ps)(Q_F16(p));
}
V qf qf_ld_u8(const char *p)
{
    return qf_from_int(QI(cvtepu8_epi32)(Q_BYTES(p)));
}
V qf qf_ld_s8(const char *p)
{
    return qf_from_int(QI(cvtepi8_epi32)(Q_BYTES(p)));
}
V qi qi_zero(void)
{
    return QSI(setzero)();
}
V qi qi_and(qi a, qi b)
{
    return QSI(and)(a, b);
}
V qi qi_set8(char a)
{
    return QI(set1_epi8)(a);
}
V qi qi_set32(int32_t a)
{
    return QI(set1_epi32)(a);
}
V qi qi_set(const int32_t *a)
{
    return qi_set32(*a);
}
V qi qi_sub(qi a, qi b)
{
    return QI(sub_epi32)(a, b);
}
V qi qi_left(qi a, const int n)
{
    return QI(slli_epi16)(a, (unsigned)n);
}
V qi qi_right(qi a, const int n)
{
    return QI(srli_epi16)(a, (unsigned)n);
}
V qi qi_times(qi a, const int shift)
{
    return QI(slli_epi32)(a, (unsigned)shift);
}
/* Byte b of each lane */
V qi qi_byte(qi a, const int b)
{
    return QI(srli_epi32)(QI(slli_epi32)(a, (unsigned)(24 - 8 * b)), 24);
}
/* Four activations in every lane */
V qi qi_four(const int8_t *q)
{
    int32_t four;
    memcpy(&four, q, 4);
    return qi_set32(four);
}

#endif
