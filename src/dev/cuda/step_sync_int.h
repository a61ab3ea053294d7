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
#ifdef KS_TRACE
    uint32_t op;
#endif
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

/* A load that stays where it is written, however far off it is used. */
__device__ inline float4 load4(const float *p)
{
    float4 v;
    asm volatile("ld.global.nc.v4.f32 {%0,%1,%2,%3},[%4];"
                 : "=f"(v.x), "=f"(v.y), "=f"(v.z), "=f"(v.w)
                 : "l"(p));
    return v;
}

/* The first n of N pairs of words, two together, the next two STEP words on; each is asked for until it
 * has come, so that what waits for one SM does not ask others again. */
template <int N, int STEP>
__device__ inline void take_pairs(uint32_t (&v)[2 * N], const uint64_t *p, int n, uint32_t tag,
                                  int what)
{
    struct watch w = {0};
    uint32_t missing = (1u << n) - 1;
    for (;;) {
        uint32_t t[2 * N];
#pragma unroll
        for (int i = 0; i < N; i++)
            if (missing >> i & 1) {
                const struct two_words x = load_words(p + (i >> 1) * STEP + 2 * (i & 1));
                v[2 * i] = x.v0, v[2 * i + 1] = x.v1, t[2 * i] = x.tag0, t[2 * i + 1] = x.tag1;
            }
#pragma unroll
        for (int i = 0; i < N; i++)
            if ((missing >> i & 1) && t[2 * i] == tag && t[2 * i + 1] == tag) missing ^= 1u << i;
        if (!missing) return;
        still_waiting(w, what, missing);
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

__device__ inline struct context who(int first_warp)
{
    int tid;
    asm volatile("mov.u32 %0, %%tid.x;" : "=r"(tid));
    return {&block(), &block().args, tid / 32 - first_warp, tid % 32};
}

__device__ inline const struct ks_layer &layer_at(int l)
{
    return block().layer[l & 3];
}

/* This warp's walk; `now`: layer of it. */
__device__ inline struct walk &here()
{
    int tid;
    asm volatile("mov.u32 %0, %%tid.x;" : "=r"(tid));
    return block().walks[tid / 32];
}

__device__ inline const struct ks_layer &now()
{
    return layer_at(here().layer);
}

/* To the next layer; false behind the last. All lanes. */
__device__ __noinline__ bool go_on()
{
    struct walk &w = here();
    const int l = w.layer + 1;
    __syncwarp();
    w.layer = l;
    __syncwarp();
    return l < block().args.n_layers;
}

__device__ inline uint32_t now_tag()
{
    return block().args.epoch + (uint32_t)here().layer;
}

/* Products of a layer, in order; numbered over all layers they say who is ahead of whom. */
enum product { QKV, O, ROUTER, GLU, DOWN, XGLU, XDOWN, PRODUCTS };

__device__ inline int number_of(int layer, enum product p)
{
    return layer * PRODUCTS + p;
}

/* Units first, first + 1, .. first + n - 1 */
struct units {
    int first, n;
    __device__ inline units(uint32_t v) : first((int)(v & 0xffff)), n((int)(v >> 16)) {}
};

/* Units of experts that this SM does: [first, first + n) of n_union * KS_XSTRIPES */
__device__ inline struct units expert_share(int n_union, uint32_t rank)
{
    const uint32_t all = (uint32_t)(n_union * KS_XSTRIPES), first = rank * all / gridDim.x;
    return first | ((rank + 1) * all / gridDim.x - first) << 16;
}

/* KS_TRACE: when what happened on this SM, by its clock: moment k of a layer; wait: sums of cycles. */
enum {
    M_QKV, M_QKV_END, M_ATTN, M_Q, M_SCORES, M_PART, M_MERGE, M_MERGED, M_O_X, M_O_END, M_R1, M_R1_X,
    M_GLU, M_GLU_END, M_XGLU, M_XGLU_END, M_DOWN_X, M_DOWN_END, M_XDOWN_X, M_XDOWN_X2, M_XDOWN_END,
    M_R2, M_R2_END, M_LOGITS, M_ROUTED, M_P_QKV, M_P_ATTN, M_P_O, M_P_GLU, M_P_XGLU, M_P_DOWN, M_P_XDOWN,
    MARKS
};
__device__ inline void mark(int layer, int k)
{
#ifdef KS_TRACE
    const struct ks_args &a = block().args;
    if (threadIdx.x % 32 == 0 && a.trace)
        a.trace[((size_t)blockIdx.x * KS_LAYERS + layer) * MARKS + k] = (uint64_t)clock64();
#endif
}
/* Where this SM's clock stands beside the others' */
__device__ inline void tick(int which)
{
#ifdef KS_TRACE
    const struct ks_args &a = block().args;
    if (threadIdx.x % 32 || !a.trace) return;
    uint64_t g, h;
    asm volatile("mov.u64 %0,%%globaltimer;" : "=l"(g));
    do asm volatile("mov.u64 %0,%%globaltimer;" : "=l"(h)); while (h == g);
    uint64_t *to = a.trace + (size_t)gridDim.x * KS_LAYERS * MARKS + gridDim.x * 64 + blockIdx.x * 4 + 2 * which;
    to[0] = h, to[1] = (uint64_t)clock64();
#endif
}

} // namespace

#endif
