/* Products with weights of block types, AVX-512 with VNNI. The body is in q_vec_int.h. */
#include "dev/cpu/q_vec512_int.h"

/* Sum of (code - 2^shift) * q over 4 n inputs: shift is 0 where there is no offset. minus: that of
 * the sum of q. */
V qi q_dot(const int bits, const int n, const qi *w, const int8_t *q, qi minus, const int shift)
{
    (void)bits;
    qi sum = shift ? qi_times(minus, shift) : qi_zero();
    UNROLL for (int j = 0; j < n; j++) sum = _mm512_dpbusd_epi32(sum, w[j], qi_four(q + 4 * j));
    return sum;
}

#include "dev/cpu/q_vec_int.h"

const struct kk_cpu_q8 kk__q8_vnni = {
    .isa = "vnni", .quantise = quantise, .weights = weights, .gemm = gemm};
