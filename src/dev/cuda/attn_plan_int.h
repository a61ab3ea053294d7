/* Private to attention on CUDA: which sequence a piece of a launch's work belongs to. */
#ifndef KK_DEV_CUDA_ATTN_PLAN_INT_H
#define KK_DEV_CUDA_ATTN_PLAN_INT_H

#include "dev/cuda/attn_int.h"

#ifdef __CUDACC__
/* A sequence with rows in a call: they begin at row t0; so many pieces of work lie before it. */
struct kk_attn_part {
    int b, t0, rows, before;
};

__host__ __device__ static inline int kk__attn_plan_ints(int B)
{
    return B == 1 ? 0 : 3 * B + 1;
}

/* All the work of a launch; what is needed to find whose a piece is goes to plan (shared memory).
 * work(b, first row, rows): that of a sequence of this launch. The whole block calls it. */
template <typename F>
__device__ static inline int kk__attn_plan(const struct kk_attn_job &job, int32_t *plan, F work)
{
    const int B = job.a.B, T = job.a.T;
    int32_t *first = plan, *rows = plan + B, *before = plan + 2 * B;
    if (B == 1) return T > job.over && T <= job.most ? work(0, 0, T) : 0;
    for (int b = threadIdx.x; b < B; b += blockDim.x) rows[b] = 0;
    __syncthreads();
    for (int t = threadIdx.x; t < T; t += blockDim.x)
        if (t == 0 || job.a.seq[t] != job.a.seq[t - 1]) first[job.a.seq[t]] = t;
    __syncthreads();
    for (int t = threadIdx.x; t < T; t += blockDim.x)
        if (t == T - 1 || job.a.seq[t] != job.a.seq[t + 1])
            rows[job.a.seq[t]] = t + 1 - first[job.a.seq[t]];
    __syncthreads();
    for (int b = threadIdx.x; b < B; b += blockDim.x)
        before[b + 1] = rows[b] > job.over && rows[b] <= job.most ? work(b, first[b], rows[b]) : 0;
    __syncthreads();
    if (threadIdx.x < 32) {
        int sum = 0;
        for (int b0 = 0; b0 < B; b0 += 32) {
            int b = b0 + threadIdx.x, v = b < B ? before[b + 1] : 0;
            for (int o = 1; o < 32; o *= 2) {
                int up = __shfl_up_sync(~0u, v, o);
                if (threadIdx.x >= o) v += up;
            }
            if (b < B) before[b + 1] = sum + v;
            sum += __shfl_sync(~0u, v, 31);
        }
        if (threadIdx.x == 0) before[0] = 0;
    }
    __syncthreads();
    return before[B];
}

/* Whose piece i is. */
__device__ static inline struct kk_attn_part kk__attn_find(const struct kk_attn_job &job,
                                                           const int32_t *plan, int i)
{
    const int B = job.a.B;
    const int32_t *before = plan + 2 * B;
    int lo = 0, hi = B - 1;
    if (B == 1) return {0, 0, job.a.T, 0};
    while (lo < hi) {
        const int mid = (lo + hi + 1) / 2;
        if (before[mid] <= i)
            lo = mid;
        else
            hi = mid - 1;
    }
    return {lo, plan[lo], plan[B + lo], before[lo]};
}
#endif

#endif
