/* Private to step.cu: shared memory of an SM, and how its warps and the SMs wait for each other. */
#ifndef KK_DEV_CUDA_STEP_SYNC_INT_H
#define KK_DEV_CUDA_STEP_SYNC_INT_H

#include "dev/cuda/step_int.h"

namespace
{

constexpr uint32_t FULL_MASK = 0xffffffffu;
constexpr float LOG2E = 1.44269504f;

/* Attention's part of shared memory; residual's norms take the same place. */
struct attn_smem {
    bf16 q[16 * (512 + 8)];
    bf16 p[16 * (KK_CUDA_SPLIT + 8)];
    float top[8][16], sum[8][16];
    float k_norm[512];
};

/* Where a warp is: kept here from call to call, since a stack that 640 threads have is far away. */
struct walk {
    uint32_t n;     /* slots behind */
    int set, units; /* sets, and units of the reducers */
    int items;      /* of attention */
    int layer;
};

struct smem {
    alignas(128) char ring[KS_RING + KS_LINE]; /* a line may go on behind the end */
    union {
        alignas(16) bf16 x[3][KS_C];
        struct attn_smem a;
    };
    float2 part[KS_SETS][KS_CONSUMERS][32];
    float2 carry[KS_CARRY][32];
    float h[KS_C];
    float tmp[4][8];
    uint64_t full[KS_SLOTS], empty[KS_SLOTS];
    uint64_t pfull[KS_SETS], pempty[KS_SETS], routed, found[2], done[2];
    struct walk walks[KS_THREADS / 32];
    int feeding;        /* number of the product that the producer brings weights of, */
    volatile int doing; /* and of that which has its input */
    /* the router's choice: distinct experts, ascending, and each row's weights */
    int n_union, expert[KS_UNION];
    uint32_t rows_of[KS_UNION];
    float weight[KS_UNION][KS_COLS];
    int chosen[KS_COLS][KS_A];
    float chosen_w[KS_COLS][KS_A];
    uint64_t row[2][KK_CUDA_SPLIT]; /* where the rows of an item are, and of the next */
    struct ks_layer layer[4];       /* layer l's at l % 4, from when the producer is in l - 1 on */
    struct ks_args args;
};

static_assert(sizeof(struct smem) <= 227 << 10, "shared memory of a block");

__device__ inline struct smem &block()
{
    extern __shared__ __align__(128) char smem_raw[];
    return *(struct smem *)smem_raw;
}

/* ---- waiting ---- */

/* A wait that lasts seconds is a fault. KS_WATCH: say who waits for what; else, of code that is all
 * through the kernel, as little as can be: what is not in the instruction cache comes as late as
 * any other word. */
struct watch {
    uint32_t spins;
};

__device__ inline void still_waiting(struct watch &w, int what, uint32_t extra)
{
    if (++w.spins < 1u << 23) return;
#ifdef KS_WATCH
    int *d = block().args.diag + 2 * (blockIdx.x * (KS_THREADS / 32) + threadIdx.x / 32);
    d[0] = what, d[1] = (int)extra;
    __threadfence_system();
    for (long long t = clock64(); clock64() - t < 400000000;) {
    } /* let others say it too */
#endif
    __trap();
}

__device__ inline uint32_t smem_at(const void *p)
{
    return (uint32_t)__cvta_generic_to_shared(p);
}

__device__ inline void bar_init(uint64_t *b, int n)
{
    asm volatile("mbarrier.init.shared::cta.b64 [%0],%1;" ::"r"(smem_at(b)), "r"(n));
}

__device__ inline void bar_wait(uint64_t *b, int phase, int what, uint32_t extra)
{
    struct watch w = {0};
    for (;;) {
        uint32_t ok;
        asm volatile("{.reg .pred p; mbarrier.try_wait.parity.shared::cta.b64 p,[%1],%2; "
                     "selp.u32 %0,1,0,p;}"
                     : "=r"(ok)
                     : "r"(smem_at(b)), "r"(phase)
                     : "memory");
        if (ok) return;
        still_waiting(w, what, extra);
    }
}

/* The same for once, and without waiting: has it come? */
__device__ inline bool bar_test(uint64_t *b, int phase)
{
    uint32_t ok;
    asm volatile("{.reg .pred p; mbarrier.test_wait.parity.shared::cta.b64 p,[%1],%2; "
                 "selp.u32 %0,1,0,p;}"
                 : "=r"(ok)
                 : "r"(smem_at(b)), "r"(phase)
                 : "memory");
    return __all_sync(FULL_MASK, ok);
}

__device__ inline void bar_arrive(uint64_t *b)
{
    asm volatile("mbarrier.arrive.shared::cta.b64 _,[%0];" ::"r"(smem_at(b)) : "memory");
}

/* The same, once d is there: what d was made of has then been read. ptxas lets an arrival follow
 * loads without waiting for them. (d: no such NaN exists.) */
__device__ inline void bar_arrive_after(uint64_t *b, float d)
{
    asm volatile("{.reg .pred p; setp.ne.u32 p,%1,0x7fc12345; "
                 "@p mbarrier.arrive.shared::cta.b64 _,[%0];}" ::"r"(smem_at(b)),
                 "r"(__float_as_uint(d))
                 : "memory");
}

__device__ inline void bar_arrive4(uint64_t *b)
{
    asm volatile("mbarrier.arrive.shared::cta.b64 _,[%0],4;" ::"r"(smem_at(b)) : "memory");
}

__device__ inline void bar_expect(uint64_t *b, int bytes)
{
    asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _,[%0],%1;" ::"r"(smem_at(b)),
                 "r"(bytes)
                 : "memory");
}

/* Weights are read once a step: they go first when room is made in L2. */
__device__ inline uint64_t read_once()
{
    uint64_t policy;
    asm volatile("createpolicy.fractional.L2::evict_first.b64 %0,1.0;" : "=l"(policy));
    return policy;
}

__device__ inline void bulk(uint32_t dst, const void *src, int bytes, uint64_t *b, uint64_t policy)
{
    asm volatile("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes.L2::cache_hint "
                 "[%0],[%1],%2,[%3],%4;" ::"r"(dst),
                 "l"(src), "r"(bytes), "r"(smem_at(b)), "l"(policy)
                 : "memory");
}

/* Lanes whose rows have other work come apart; a warp comes to a barrier whole. */
template <int ID, int N> __device__ inline void warps_meet()
{
    __syncwarp();
    asm volatile("barrier.sync %0,%1;" ::"n"(ID), "n"(N) : "memory");
}

enum { MEET_ALL = 1, MEET_REDUCERS = 2 };

} // namespace

#endif
