/* Private to attention on CUDA: barriers of shared memory and wgmma.
 *
 * Operands in shared memory are subtiles: rows of 128 bytes (64 bf16), 16-byte parts permuted
 * within a row by the row's number modulo 8. A subtile begins at a multiple of 1024 bytes. */
#ifndef KK_DEV_CUDA_ATTN_WG_INT_H
#define KK_DEV_CUDA_ATTN_WG_INT_H

#include "dev/cuda/attn_ptx_int.h"
#include "dev/cuda/wgmma_int.h"

#ifdef __CUDACC__
/* Byte of part c (of 8) of row r. */
__device__ static inline uint32_t kk__swizzle(int r, int c)
{
    return r * 128 + ((c ^ (r & 7)) << 4);
}

/* A subtile as an operand: what it holds in a row is a run of K (rows: M or N) or, transposed, of N
 * (rows: K). next: bytes to the subtile of the next 64 of N, where an operand spans two. */
__device__ static inline uint64_t kk__operand(uint32_t at, uint32_t next)
{
    return (uint64_t)(at >> 4) | (uint64_t)(next >> 4) << 16 | (uint64_t)(1024 >> 4) << 32 |
           (uint64_t)1 << 62;
}

__device__ static inline void kk__bar_init(uint64_t *b, int n)
{
    asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(kk__smem(b)), "r"(n) : "memory");
}

__device__ static inline void kk__bar_arrive(uint64_t *b)
{
    asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(kk__smem(b)) : "memory");
}

__device__ static inline void kk__bar_wait(uint64_t *b, int phase)
{
    uint32_t done;
    do {
        asm volatile("{.reg .pred p; mbarrier.try_wait.parity.shared::cta.b64 p, [%1], %2; "
                     "selp.u32 %0, 1, 0, p;}"
                     : "=r"(done)
                     : "r"(kk__smem(b)), "r"(phase)
                     : "memory");
    } while (!done);
}

/* n threads meet at one of 16 barriers. */
__device__ static inline void kk__meet(int id, int n)
{
    asm volatile("bar.sync %0, %1;" ::"r"(id), "r"(n) : "memory");
}

__device__ static inline void kk__arrive(int id, int n)
{
    asm volatile("bar.arrive %0, %1;" ::"r"(id), "r"(n) : "memory");
}

/* What this thread wrote to shared memory, or saw written, is what wgmma reads. */
__device__ static inline void kk__wg_see(void)
{
    asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
}

__device__ static inline void kk__wg_begin(void)
{
    asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
}

__device__ static inline void kk__wg_commit(void)
{
    asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
}

template <int N> __device__ static inline void kk__wg_wait(void)
{
    asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(N) : "memory");
}

template <int N> __device__ static inline void kk__registers_up(void)
{
    asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(N));
}

template <int N> __device__ static inline void kk__registers_down(void)
{
    asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(N));
}

/* d [64, 64]; TB: b is transposed */
template <int TB>
__device__ static inline void kk__wg_n64(float (&d)[32], uint64_t a, uint64_t b, int add)
{
    asm volatile("{.reg .pred p; setp.ne.b32 p, %34, 0; "
                 "wgmma.mma_async.sync.aligned.m64n64k16.f32.bf16.bf16 {" KK_ACC_TEXT_32
                 "}, %32, %33, p, 1, 1, 0, %35;}"
                 : KK_ACC_32
                 : "l"(a), "l"(b), "r"(add), "n"(TB));
}

/* d [64, 64], a in registers as mma.m16n8k16 has it, b transposed */
__device__ static inline void kk__wg_n64(float (&d)[32], const uint32_t *a, uint64_t b, int add)
{
    asm volatile("{.reg .pred p; setp.ne.b32 p, %37, 0; "
                 "wgmma.mma_async.sync.aligned.m64n64k16.f32.bf16.bf16 {" KK_ACC_TEXT_32
                 "}, {%32,%33,%34,%35}, %36, p, 1, 1, 1;}"
                 : KK_ACC_32
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(add));
}
#endif

#endif
