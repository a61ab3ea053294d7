/* Private to dev/cuda: sums and numbers shared by kernels: one definition, one order
 * (docs/adr/0020). */
#ifndef KK_DEV_CUDA_NUMBERS_INT_H
#define KK_DEV_CUDA_NUMBERS_INT_H

typedef __nv_bfloat16 bf16;

enum { KK_SUM_LANES = 256 }; /* lanes of a sum over a row */

#ifdef __CUDACC__
__device__ static inline float kk__warp_sum(float v)
{
    for (int o = 16; o; o >>= 1) v += __shfl_xor_sync(~0u, v, o);
    return v;
}

/* The sum of 256 lanes' v over a block of 256 threads (or the first 256 of more: all call it);
 * every thread gets it. tmp: 8 floats of shared memory; free to be used again after the next
 * __syncthreads. */
__device__ static inline float kk__row_sum(float v, float *tmp)
{
    v = kk__warp_sum(v);
    if (threadIdx.x < KK_SUM_LANES && threadIdx.x % 32 == 0) tmp[threadIdx.x / 32] = v;
    __syncthreads();
    v = tmp[0];
    for (int i = 1; i < 8; i++) v += tmp[i];
    return v;
}

__device__ static inline float kk__act(enum kk_activation a, float x)
{
    if (a == KK_SILU) return x / (1.0f + expf(-x));
    return 0.5f * x * (1.0f + tanhf(0.7978845608f * (x + 0.044715f * x * x * x)));
}

/* d += a b: 16 rows x 8 columns x 16 */
__device__ static inline void kk__mma(float (&d)[4], uint32_t a0, uint32_t a1, uint32_t a2,
                                      uint32_t a3, uint32_t b0, uint32_t b1)
{
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 "
                 "{%0,%1,%2,%3},{%4,%5,%6,%7},{%8,%9},{%0,%1,%2,%3};"
                 : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
                 : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1));
}

/* exp2f, but that results below 2^-126 are 0 (docs/adr/0023) */
__device__ static inline float kk__exp2(float x)
{
    asm("ex2.approx.ftz.f32 %0, %0;" : "+f"(x));
    return x;
}

__device__ static inline uint32_t kk__pack2(float lo, float hi)
{
    __nv_bfloat162 h = __floats2bfloat162_rn(lo, hi);
    return *(uint32_t *)&h;
}
#endif

#endif
