/* Private to attention on CUDA: instructions that C has no words for. */
#ifndef KK_DEV_CUDA_ATTN_PTX_INT_H
#define KK_DEV_CUDA_ATTN_PTX_INT_H

#include "dev/cuda/cuda_int.h"

#ifdef __CUDACC__
__device__ static inline uint32_t kk__smem(const void *p)
{
    return (uint32_t)__cvta_generic_to_shared(p);
}

/* 16 bytes, or zeros */
__device__ static inline void kk__copy16(uint32_t dst, const void *src, int there)
{
    asm volatile("cp.async.cg.shared.global.L2::128B [%0], [%1], 16, %2;" ::"r"(dst), "l"(src),
                 "r"(there ? 16 : 0)
                 : "memory");
}

/* Loads that stay together where they are written, however far off they are used. */
__device__ static inline float2 kk__load2(const float *p)
{
    float2 v;
    asm volatile("ld.global.v2.f32 {%0,%1}, [%2];" : "=f"(v.x), "=f"(v.y) : "l"(p));
    return v;
}

__device__ static inline float4 kk__load4(const float *p)
{
    float4 v;
    asm volatile("ld.global.v4.f32 {%0,%1,%2,%3}, [%4];"
                 : "=f"(v.x), "=f"(v.y), "=f"(v.z), "=f"(v.w)
                 : "l"(p));
    return v;
}

__device__ static inline void kk__copy_commit(void)
{
    asm volatile("cp.async.commit_group;" ::: "memory");
}

template <int N> __device__ static inline void kk__copy_wait(void)
{
    asm volatile("cp.async.wait_group %0;" ::"n"(N) : "memory");
}

__device__ static inline void kk__ldm(uint32_t (&r)[4], uint32_t at)
{
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(at)
                 : "memory");
}

__device__ static inline void kk__ldm_t(uint32_t (&r)[4], uint32_t at)
{
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(at)
                 : "memory");
}

__device__ static inline float kk__lo(uint32_t two)
{
    return __uint_as_float(two << 16);
}

__device__ static inline float kk__hi(uint32_t two)
{
    return __uint_as_float(two & 0xffff0000u);
}
#endif

#endif
