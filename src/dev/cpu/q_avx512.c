/* Products with weights of block types, AVX-512 without VNNI. The body is in q_vec_int.h. */
#include "dev/cpu/q_vec512_int.h"

/* b with the sign of a (a = -128 too), times |a| as unsigned bytes, in pairs */
V qi qi_signed_pairs(qi a, qi b)
{
    qi turned = _mm512_mask_sub_epi8(b, _mm512_movepi8_mask(a), _mm512_setzero_si512(), b);
    return _mm512_maddubs_epi16(_mm512_abs_epi8(a), turned);
}

#include "dev/cpu/q_pairs_int.h"
#include "dev/cpu/q_vec_int.h"

const struct kk_cpu_q8 kk__q8_avx512 = {
    .isa = "avx512", .quantise = quantise, .weights = weights, .gemm = gemm};
