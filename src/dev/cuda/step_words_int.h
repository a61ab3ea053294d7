/* Private to step.cu: words between SMs, and where a warp is and what its layer is. */
#ifndef KK_DEV_CUDA_STEP_WORDS_INT_H
#define KK_DEV_CUDA_STEP_WORDS_INT_H

#include "dev/cuda/step_sync_int.h"

namespace
{

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

/* Have the warp's pairs come? */
__device__ inline bool have_words(const uint64_t *p, uint32_t tag)
{
    const struct two_words v = load_words(p);
    return __all_sync(FULL_MASK, v.tag0 == tag && v.tag1 == tag);
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

__device__ inline float rms_factor(float sum, float n, float eps)
{
    return __frsqrt_rn(__fadd_rn(__fdiv_rn(sum, n), eps));
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

/* KS_TRACE: when what happened on this SM, by its clock: moment k of a layer (P: of the
 * producer) */
// clang-format off
enum {
    M_QKV_END, M_ATTN, M_Q, M_SCORES, M_PART, M_MERGE, M_MERGED, M_O_X, M_O_END, M_R1, M_R1_X,
    M_GLU, M_GLU_END, M_DOWN_X, M_DOWN_END, M_XGLU, M_XGLU_END, M_XDOWN_X, M_XDOWN_X2,
    M_XDOWN_END, M_R2, M_R2_END, M_LOGITS, M_ROUTED, M_P_QKV, M_P_ATTN, M_P_O, M_P_GLU,
    M_P_DOWN, M_P_XGLU, M_P_XDOWN,
    MARKS = 32
};
// clang-format on
__device__ inline void mark(int layer, int k)
{
#ifdef KS_TRACE
    const struct ks_args &a = block().args;
    if (threadIdx.x % 32 == 0 && a.trace)
        a.trace[((size_t)blockIdx.x * KS_LAYERS + layer) * MARKS + k] = (uint64_t)clock64();
#endif
}
} // namespace

#endif
