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

struct smem {
    alignas(128) char ring[KS_SLOTS * KS_SLOT];
    union {
        alignas(16) bf16 x[3][KS_C];
        struct attn_smem a;
    };
    float part[KS_QUADS][KS_PIECES][4][32][2];
    float carry[KS_CARRY][32][2];
    float h[KS_C];
    float tmp[4][8];
    uint64_t full[KS_SLOTS], empty[KS_SLOTS];
    uint64_t pfull[KS_QUADS][KS_PIECES], pempty[KS_QUADS][KS_PIECES], routed;
    /* the router's choice: distinct experts, ascending, and each row's weights */
    int n_union, expert[KS_UNION];
    uint32_t rows_of[KS_UNION];
    float weight[KS_UNION][KS_COLS];
    int chosen[KS_COLS][KS_A];
    float chosen_w[KS_COLS][KS_A];
    uint64_t row[KK_CUDA_SPLIT]; /* where the rows are that the producer copies next */
    struct ks_args args;
};

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

__device__ inline void bar_arrive(uint64_t *b)
{
    asm volatile("mbarrier.arrive.shared::cta.b64 _,[%0];" ::"r"(smem_at(b)) : "memory");
}

/* The same, once d is there: what d was made of has then been read. (d: no such NaN exists.) */
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

__device__ inline void bulk(uint32_t dst, const void *src, int bytes, uint64_t *b)
{
    asm volatile("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes "
                 "[%0],[%1],%2,[%3];" ::"r"(dst),
                 "l"(src), "r"(bytes), "r"(smem_at(b))
                 : "memory");
}

/* Lanes whose rows have other work come apart; a warp comes to a barrier whole. */
template <int ID, int N> __device__ inline void warps_meet()
{
    __syncwarp();
    asm volatile("barrier.sync %0,%1;" ::"n"(ID), "n"(N) : "memory");
}

/* Some quads have a segment off. They must not look at a slot while its fill before the last may
 * still be on its way (the parity of the two is the same), so they wait until the others have seen
 * all of the segment's slots; the others do not wait. */
template <int ID> __device__ inline void quads_meet(bool works)
{
    __syncwarp();
    if (works)
        asm volatile("barrier.arrive %0,%1;" ::"n"(ID), "n"(KS_CONSUMERS * 32) : "memory");
    else
        asm volatile("barrier.sync %0,%1;" ::"n"(ID), "n"(KS_CONSUMERS * 32) : "memory");
}

enum { MEET_ALL = 1, MEET_REDUCERS = 2, MEET_DOWN = 3, MEET_XDOWN = 4 };

/* ---- words ---- */

struct two_words {
    uint32_t v0, tag0, v1, tag1;
};

__device__ inline struct two_words load_words(const uint64_t *p)
{
    uint64_t a, b;
    asm volatile("ld.relaxed.gpu.global.v2.u64 {%0,%1},[%2];"
                 : "=l"(a), "=l"(b)
                 : "l"(p)
                 : "memory");
    return {(uint32_t)a, (uint32_t)(a >> 32), (uint32_t)b, (uint32_t)(b >> 32)};
}

__device__ inline void store_word(uint64_t *p, uint32_t v, uint32_t tag)
{
    asm volatile("st.relaxed.gpu.global.u64 [%0],%1;" ::"l"(p), "l"((uint64_t)tag << 32 | v)
                 : "memory");
}

__device__ inline void store_words(uint64_t *p, float v0, float v1, uint32_t tag)
{
    const uint64_t t = (uint64_t)tag << 32;
    asm volatile("st.relaxed.gpu.global.v2.u64 [%0],{%1,%2};" ::"l"(p),
                 "l"(t | __float_as_uint(v0)), "l"(t | __float_as_uint(v1))
                 : "memory");
}

/* Poll one pair until it has come. A cheap wait before many loads. */
__device__ inline void await_words(const uint64_t *p, uint32_t tag, int what)
{
    struct watch w = {0};
    for (;;) {
        struct two_words v = load_words(p);
        if (v.tag0 == tag && v.tag1 == tag) return;
        still_waiting(w, what, v.tag0);
    }
}

/* N pairs of words, `step` words apart, into v; returns when all have come. */
template <int N>
__device__ inline void take_words(uint32_t (&v)[2 * N], const uint64_t *p, int step, int n,
                                  uint32_t tag, int what)
{
    struct watch w = {0};
    for (;;) {
        uint32_t bad = 0, tags[2 * N];
#pragma unroll
        for (int i = 0; i < N; i++) {
            if (i >= n) continue;
            struct two_words x = load_words(p + (int64_t)i * step);
            v[2 * i] = x.v0, v[2 * i + 1] = x.v1, tags[2 * i] = x.tag0, tags[2 * i + 1] = x.tag1;
        }
#pragma unroll
        for (int i = 0; i < N; i++)
            if (i < n) bad |= (tags[2 * i] ^ tag) | (tags[2 * i + 1] ^ tag);
        if (!bad) return;
        still_waiting(w, what, bad);
    }
}

__device__ inline float lo_of(uint32_t v)
{
    return __uint_as_float(v << 16);
}

__device__ inline float hi_of(uint32_t v)
{
    return __uint_as_float(v & 0xffff0000u);
}

/* ---- where things are ---- */

/* The SM that does what is between products for row t. With one row every SM does it. */
__device__ inline int owner_of(int t)
{
    return t * (int)(gridDim.x / KS_COLS);
}

struct context {
    struct smem *s;
    const struct ks_args *a;
    int warp, lane; /* warp within the role */
};

/* Who this thread is, read anew for each segment: what is computed from it would otherwise be
 * carried in registers from segment to segment. */
__device__ inline struct context who(int first_warp)
{
    int tid;
    asm volatile("mov.u32 %0, %%tid.x;" : "=r"(tid));
    return {&block(), &block().args, tid / 32 - first_warp, tid % 32};
}

/* A value that all lanes have, as one that the compiler takes for new: what a segment works with is
 * then not kept from registers by what another kind of segment needs. */
__device__ inline int fresh(int v)
{
    return __shfl_sync(FULL_MASK, v, 0);
}

#define F(k) __shfl_sync(FULL_MASK, cur, k)
#define F64(k)                                                                                     \
    ((uint64_t)__shfl_sync(FULL_MASK, cur, (k) + 1) << 32 | __shfl_sync(FULL_MASK, cur, k))

/* Units of experts that this SM does: [first, first + n) of n_union * KS_XSTRIPES */
__device__ inline void expert_share(int n_union, uint32_t rank, int &first, int &n)
{
    const int64_t all = (int64_t)n_union * KS_XSTRIPES;
    first = (int)(rank * all / gridDim.x);
    n = (int)((rank + 1) * all / gridDim.x) - first;
}

/* KS_TRACE: when each warp's segments began, by the SM's clock */
__device__ inline void trace(uint32_t op, int seg)
{
#ifdef KS_TRACE
    const struct ks_args &a = block().args;
    const int w = (int)threadIdx.x / 32;
    if (threadIdx.x % 32 == 0 && (w == 0 || w >= KS_CONSUMERS) && a.trace)
        a.trace[((int64_t)blockIdx.x * 4 + (w ? w - KS_CONSUMERS + 1 : 0)) * a.max_seg + seg] =
            (uint64_t)clock64() << 8 | op;
#endif
}

/* KS_TRACE: moment k of a layer, by warp 0 of the consumers */
__device__ inline void mark(int layer, int k)
{
#ifdef KS_TRACE
    const struct ks_args &a = block().args;
    if (threadIdx.x == 0 && a.trace)
        a.trace[(int64_t)gridDim.x * 4 * a.max_seg + (blockIdx.x * KS_LAYERS + layer) * 32 + k] =
            (uint64_t)clock64();
#endif
}

struct place {
    struct context c;
    uint32_t n;  /* slots behind */
    int quad, i; /* warp i of its quad */
    int pieces;  /* of this quad, behind */
};

} // namespace

#endif
