/* Private to dev/cuda: choosing a row's experts from their logits. docs/adr/0020, 0022. */
#ifndef KK_DEV_CUDA_CHOOSE_INT_H
#define KK_DEV_CUDA_CHOOSE_INT_H

#include "dev/cuda/cuda_int.h"

#ifdef __CUDACC__
/* The order of floats as the order of integers, 0 being below all; NaN sorts somewhere. */
__device__ static inline uint32_t kk__ordered(float v)
{
    const uint32_t u = __float_as_uint(v + 0.0f); /* -0 ties with 0 */
    const uint32_t k = u & 0x80000000u ? ~u : u | 0x80000000u;
    return k ? k : 1;
}

/* The n-th of a row's experts, in lane n, and its weight. */
struct kk_choice {
    int at;
    float weight;
};

/* Row t: the A largest of E logits and their weights, by a warp. N: logits of a lane. */
template <int N> __device__ static kk_choice kk__chosen(const struct kk_router &r, int t)
{
    const float *logits = r.logits + (size_t)t * (size_t)r.E;
    const int E = r.E, A = r.A, lane = (int)threadIdx.x % 32;
    float mine = 0, sum = 0;
    uint32_t key[N];
    int at = 0;
#pragma unroll
    for (int i = 0; i < N; i++) key[i] = i * 32 + lane < E ? kk__ordered(logits[i * 32 + lane]) : 0;
    for (int n = 0; n < A; n++) {
        uint32_t top = key[0], where = ~0u;
#pragma unroll
        for (int i = 1; i < N; i++) top = max(top, key[i]);
        top = __reduce_max_sync(~0u, top);
#pragma unroll
        for (int i = N - 1; i >= 0; i--)
            if (key[i] == top) where = (uint32_t)(i * 32 + lane);
        where = __reduce_min_sync(~0u, where);
#pragma unroll
        for (int i = 0; i < N; i++)
            if (where == (uint32_t)(i * 32 + lane)) key[i] = 0;
        if (lane == n) at = (int)where;
    }
    if (lane < A) mine = logits[at];
    mine = expf(mine - __shfl_sync(~0u, mine, 0));
    for (int n = 0; n < A; n++) {
        const float e = __shfl_sync(~0u, mine, n);
        sum = n ? sum + e : e;
    }
    return {at, lane < A ? mine / sum * r.scale[at] : 0};
}

__device__ static inline void kk__put_choice(const struct kk_router &r, int t, const kk_choice &c)
{
    const int lane = (int)threadIdx.x % 32;
    if (lane >= r.A) return;
    r.idx[(size_t)t * (size_t)r.A + (size_t)lane] = c.at;
    r.weight[(size_t)t * (size_t)r.A + (size_t)lane] = c.weight;
}

template <int N> __device__ static void kk__choose(const struct kk_router &r, int t)
{
    kk__put_choice(r, t, kk__chosen<N>(r, t));
}
#endif

#endif
