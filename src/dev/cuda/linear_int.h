/* Private to dev/cuda: y[i] = x w[i]^T for up to three matrices that share x, as a job of
 * stream_int.h. The router's product is one too. */
#ifndef KK_DEV_CUDA_LINEAR_INT_H
#define KK_DEV_CUDA_LINEAR_INT_H

#include "dev/cuda/stream_int.h"

#ifdef __CUDACC__
__device__ static __noinline__ float kk__softcap(float v, float softcap)
{
    return softcap * tanhf(v / softcap);
}

struct kk_matrix {
    const char *w;
    float *y;
    const float *bias;
    int rows, first; /* outputs; its first stripe among all */
};

template <int ROWS> struct kk_linear_job {
    static constexpr bool eager = false, carries = false;
    kk_matrix m0, m1, m2;
    const bf16 *x;
    float softcap;
    int stripes, T, K, most, chains; /* most: stripes of a group */
    size_t stripe_bytes;

    __device__ kk_matrix of(int i) const
    {
        kk_matrix m = m0;
        if (i >= m1.first) m = m1;
        if (i >= m2.first) m = m2;
        return m;
    }
    /* blocks take stripes in turn */
    __device__ int index(int q, int s) const
    {
        return (int)blockIdx.x + (q * most + s) * (int)gridDim.x;
    }
    __device__ int mine() const
    {
        return (stripes - (int)blockIdx.x + (int)gridDim.x - 1) / (int)gridDim.x;
    }
    __device__ bool early() const { return true; }
    __device__ void begin(char *) {}
    __device__ int groups() const { return (mine() + most - 1) / most; }
    __device__ int slots(int q) const { return min(most, mine() - q * most); }
    __device__ const char *stripe(int q, int s) const
    {
        const int i = index(q, s);
        const char *w = i < m1.first ? m0.w : i < m2.first ? m1.w : m2.w;
        const int first = i < m1.first ? 0 : i < m2.first ? m1.first : m2.first;
        return w + (size_t)(unsigned)(i - first) * stripe_bytes;
    }
    __device__ int inputs(int, int) const { return 0; }
    __device__ const bf16 *row(int, int, int r) const
    {
        r += (int)blockIdx.y * ROWS;
        return r < T ? x + (size_t)r * (size_t)K : NULL;
    }
    __device__ void sum(const float *part, int q, int i, int many) const
    {
        const int rows = kk__slice_rows<ROWS>(T), n = slots(q);
        for (int j = i; j < n * rows * 8; j += many) {
            const int s = j / (rows * 8), e = j - s * rows * 8;
            put(index(q, s), e % 8, e / 8 + (int)blockIdx.y * ROWS,
                kk__chains(part + s * chains * rows * 8 + e, chains, rows * 8));
        }
    }
    /* v: output o of stripe i of row t */
    __device__ void put(int i, int o, int t, float v) const
    {
        const kk_matrix m = of(i);
        o += (i - m.first) * 8;
        if (o >= m.rows) return;
        const float bias = m.bias ? m.bias[o] : -0.0f;
        m.y[(size_t)t * (size_t)m.rows + (size_t)o] = finished(v, bias);
    }
    /* bias: -0 where there is none, which changes no number */
    __device__ float finished(float v, float bias) const
    {
        v += bias;
        return softcap > 0 ? kk__softcap(v, softcap) : v;
    }
};

template <int ROWS> static inline kk_linear_job<ROWS> kk__linear_job(const kk_linear_args *a)
{
    kk_linear_job<ROWS> j = {};
    kk_matrix *const m[3] = {&j.m0, &j.m1, &j.m2};
    for (int i = 0; i < 3; i++) {
        m[i]->first = j.stripes;
        if (i >= a->n) continue;
        *m[i] = {(const char *)a->w[i]->data, a->y[i], a->bias[i], (int)a->w[i]->rows, j.stripes};
        j.stripes += (int)kk__stripes(a->w[i]->rows);
    }
    j.x = (const bf16 *)a->x;
    j.softcap = a->softcap;
    j.T = a->T;
    j.K = (int)a->w[0]->cols;
    j.stripe_bytes = (size_t)kk__tiles(j.K) * KK_TILE_BYTES;
    return j;
}
#endif

#endif
