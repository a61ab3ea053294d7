/* The ops that go row by row: embed, norm, residual, qkv, gather, argmax, kv_store, convert. The
 * order of every sum is in docs/adr/0020.
 *
 * norm and residual: a block is a row, its 256 threads are the lanes of the row's sums; a thread
 * keeps its elements in registers, so that a row is read once. qkv: a warp is a head. Norm weights
 * are a few KB that a step's weights have pushed out of the cache: they are asked for before the
 * wait for the op before. */
#include "dev/cuda/cuda_int.h"

enum { THREADS = KK_SUM_LANES, WARPS = THREADS / 32, FEW_ROWS = 64 };

/* ---- rows --------------------------------------------------------------------------------- */

/* A thread's elements of a row of C: groups of 4, group j of them at 4 (threadIdx.x + 256 j). */
template <int N> struct lane {
    float v[N][4];
};

__device__ static inline int lane_at(int j)
{
    return 4 * (int)(threadIdx.x + THREADS * j);
}

/* Elements past C are 0, which no sum notices. VEC: C is a multiple of 4. */
template <int N, bool VEC> __device__ static inline lane<N> load(const float *p, int C)
{
    lane<N> r;
#pragma unroll
    for (int j = 0; j < N; j++) {
        const int i = lane_at(j);
        if (VEC) {
            *(float4 *)r.v[j] = i < C ? *(const float4 *)(p + i) : make_float4(0, 0, 0, 0);
        } else {
#pragma unroll
            for (int e = 0; e < 4; e++) r.v[j][e] = i + e < C ? p[i + e] : 0;
        }
    }
    return r;
}

template <int N, bool VEC> __device__ static inline void store(float *p, int C, const lane<N> &r)
{
#pragma unroll
    for (int j = 0; j < N; j++) {
        const int i = lane_at(j);
        if (VEC) {
            if (i < C) *(float4 *)(p + i) = *(const float4 *)r.v[j];
        } else {
#pragma unroll
            for (int e = 0; e < 4; e++)
                if (i + e < C) p[i + e] = r.v[j][e];
        }
    }
}

template <int N, bool VEC> __device__ static inline void store_act(bf16 *p, int C, const lane<N> &r)
{
#pragma unroll
    for (int j = 0; j < N; j++) {
        const int i = lane_at(j);
        if (VEC) {
            if (i < C)
                *(uint2 *)(p + i) =
                    make_uint2(kk__pack2(r.v[j][0], r.v[j][1]), kk__pack2(r.v[j][2], r.v[j][3]));
        } else {
#pragma unroll
            for (int e = 0; e < 4; e++)
                if (i + e < C) p[i + e] = __float2bfloat16_rn(r.v[j][e]);
        }
    }
}

/* 1 / root of the mean square; tmp: 8 floats that no other sum of this kernel uses */
template <int N>
__device__ static inline float rms_factor(const lane<N> &r, int C, float eps, float *tmp)
{
    float sum = 0;
#pragma unroll
    for (int j = 0; j < N; j++)
#pragma unroll
        for (int e = 0; e < 4; e++) sum = __fmaf_rn(r.v[j][e], r.v[j][e], sum);
    return __frsqrt_rn(kk__row_sum(sum, tmp) / (float)C + eps);
}

/* The weights of a norm; w NULL: none, and nothing is read. */
template <int N, bool VEC> __device__ static inline lane<N> weights(const float *w, int C)
{
    return w ? load<N, VEC>(w, C) : lane<N>();
}

/* (x * factor) * w; there 0: without w */
template <int N>
__device__ static inline lane<N> scaled(const lane<N> &x, float factor, int there, const lane<N> &w)
{
    lane<N> y;
#pragma unroll
    for (int j = 0; j < N; j++)
#pragma unroll
        for (int e = 0; e < 4; e++) {
            y.v[j][e] = x.v[j][e] * factor;
            if (there) y.v[j][e] *= w.v[j][e];
        }
    return y;
}

/* Bring n floats of weights near. */
__device__ static inline void prefetch(const float *w, int n)
{
    if (!w) return;
    for (int i = 32 * (int)threadIdx.x; i < n; i += 32 * (int)blockDim.x)
        asm volatile("prefetch.global.L2 [%0];" ::"l"(w + i));
}

template <int N, bool VEC>
__global__ static void __launch_bounds__(THREADS) norm_row(struct kk_norm_args a)
{
    __shared__ float tmp[WARPS];
    const int64_t at = (int64_t)blockIdx.x * a.C;
    prefetch(a.w, a.C);
    cudaGridDependencySynchronize();
    cudaTriggerProgrammaticLaunchCompletion();
    const lane<N> x = load<N, VEC>(a.x + at, a.C);
    const float factor = rms_factor(x, a.C, a.eps, tmp);
    store_act<N, VEC>((bf16 *)a.y + at, a.C,
                      scaled(x, factor, a.w != NULL, weights<N, VEC>(a.w, a.C)));
}

/* The weights of a residual's norms: where AHEAD, in registers before the op before has ended: the
 * next op's weights stream by then, and a load takes microseconds. */
template <int N, bool VEC, bool AHEAD> struct norm_weights {
    lane<N> w[AHEAD ? 6 : 1];

    __device__ static const float *of(const struct kk_residual_args &a, int i)
    {
        if (i < 2) return a.n_in == 2 ? a.w_in[i] : NULL;
        if (i == 2) return a.plain ? NULL : a.w_post;
        return i - 3 < a.n_out ? a.w_out[i - 3] : NULL;
    }
    __device__ void read(const struct kk_residual_args &a)
    {
#pragma unroll
        for (int i = 0; i < 6; i++) {
            if (AHEAD)
                w[AHEAD ? i : 0] = weights<N, VEC>(of(a, i), a.C);
            else
                prefetch(of(a, i), a.C);
        }
    }
    __device__ lane<N> scale(const struct kk_residual_args &a, int i, const lane<N> &x,
                             float factor) const
    {
        const float *p = of(a, i);
        return scaled(x, factor, p != NULL, AHEAD ? w[AHEAD ? i : 0] : weights<N, VEC>(p, a.C));
    }
};

template <int N, bool VEC, bool AHEAD = false>
__global__ static void __launch_bounds__(THREADS) residual_row(struct kk_residual_args a)
{
    __shared__ float tmp[4][WARPS];
    const int C = a.C;
    const int64_t at = (int64_t)blockIdx.x * C;
    norm_weights<N, VEC, AHEAD> w;
    cudaTriggerProgrammaticLaunchCompletion();
    w.read(a);
    cudaGridDependencySynchronize();
    lane<N> h = load<N, VEC>(a.h + at, C), x = load<N, VEC>(a.a[0] + at, C);
    if (a.n_in == 2) {
        const lane<N> b = load<N, VEC>(a.a[1] + at, C);
        x = w.scale(a, 0, x, rms_factor(x, C, a.eps, tmp[0]));
        const lane<N> y = w.scale(a, 1, b, rms_factor(b, C, a.eps, tmp[1]));
#pragma unroll
        for (int j = 0; j < N; j++)
#pragma unroll
            for (int e = 0; e < 4; e++) x.v[j][e] += y.v[j][e];
    }
    if (!a.plain) x = w.scale(a, 2, x, rms_factor(x, C, a.eps, tmp[2]));
#pragma unroll
    for (int j = 0; j < N; j++)
#pragma unroll
        for (int e = 0; e < 4; e++) h.v[j][e] = (h.v[j][e] + x.v[j][e]) * a.scale;
    store<N, VEC>(a.h + at, C, h);
    if (!a.n_out) return;
    const float factor = rms_factor(h, C, a.eps, tmp[3]);
#pragma unroll
    for (int i = 0; i < 3; i++)
        if (i < a.n_out) store_act<N, VEC>((bf16 *)a.y[i] + at, C, w.scale(a, 3 + i, h, factor));
}

/* The kernel for rows of C: registers for 1024, 3072, 8192, .. elements. */
#define ROW_KERNEL(name, C)                                                                        \
    ((C) % 4       ? (C) <= 4096 ? name<4, false> : name<16, false>                                \
           : (C) <= 1024 ? name<1, true>                                                           \
     : (C) <= 3072 ? name<3, true>                                                                 \
     : (C) <= 8192 ? name<8, true>                                                                 \
                   : name<16, true>)
static_assert(KK_CUDA_WIDEST == 4 * THREADS * 16, "of ROW_KERNEL");

void kk__cuda_norm(struct kk_dev *dev, const struct kk_norm_args *a)
{
    KK_BUG_ON(a->C > KK_CUDA_WIDEST);
    kk__launch(kk__cuda(dev), "norm", ROW_KERNEL(norm_row, a->C), dim3((unsigned)a->T),
               dim3(THREADS), 0, *a);
}

void kk__cuda_residual(struct kk_dev *dev, const struct kk_residual_args *a)
{
    KK_BUG_ON(a->n_in < 1 || a->n_in > 2 || a->n_out < 0 || a->n_out > 3 || a->C > KK_CUDA_WIDEST);
    const bool ahead = a->T <= FEW_ROWS && a->C <= 3072 && a->C % 4 == 0;
    kk__launch(kk__cuda(dev), "residual",
               ahead ? residual_row<3, true, true> : ROW_KERNEL(residual_row, a->C),
               dim3((unsigned)a->T), dim3(THREADS), 0, *a);
}

/* ---- embed -------------------------------------------------------------------------------- */

/* A block is a row; a thread takes 4 inputs, 8 of the 32 bytes that a tile has of an output. */
__global__ static void __launch_bounds__(THREADS)
    embed_row(struct kk_embed_args a, struct kk_weight table, struct kk_fault *fault)
{
    const int C = (int)table.cols;
    float *h = a.h + (int64_t)blockIdx.x * C;
    cudaGridDependencySynchronize();
    cudaTriggerProgrammaticLaunchCompletion();
    const int32_t id = a.ids[blockIdx.x];
    const bool there = id >= 0 && id < table.rows;
    if (!there && threadIdx.x == 0) {
        fault->id = id;
        fault->bound = (int32_t)table.rows;
    }
    const char *from =
        there ? kk__stripe(&table, 0, id / KK_TILE_ROWS) + id % KK_TILE_ROWS * 32 : NULL;
    for (int i = 4 * (int)threadIdx.x; i < C; i += 4 * THREADS) {
        uint2 raw = make_uint2(0, 0);
        if (there) raw = *(const uint2 *)(from + i / KK_TILE_K * KK_TILE_BYTES + i % KK_TILE_K * 2);
        const uint32_t bits[4] = {raw.x << 16, raw.x & 0xffff0000, raw.y << 16, raw.y & 0xffff0000};
        for (int e = 0; e < 4 && i + e < C; e++) h[i + e] = __uint_as_float(bits[e]) * a.scale;
    }
}

void kk__cuda_embed(struct kk_dev *dev, const struct kk_embed_args *a)
{
    struct kk_cuda *c = kk__cuda(dev);
    kk__launch(c, "embed", embed_row, dim3((unsigned)a->T), dim3(THREADS), 0, *a, *a->table,
               c->fault_dev);
}

/* ---- qkv ---------------------------------------------------------------------------------- */

/* What a block of qkv_heads keeps in shared memory, in floats: of each warp a head and the turns of
 * its row; the weights of both norms. */
struct heads_layout {
    int turns, norms, all;
};

__host__ __device__ static inline struct heads_layout heads_layout_of(int D, int R)
{
    const int turns = WARPS * D, norms = turns + WARPS * 2 * R;
    return {turns, norms, norms + 2 * D};
}

/* Head `x` of D numbers, normalised: to y (shared memory of the warp). w NULL: no weight; raw: as
 * it is. Lane of element i: (i / 4) % 32. */
template <bool VEC>
__device__ static inline void norm_head(const float *x, int D, const float *w, int raw, float eps,
                                        float *y)
{
    const int first = 4 * ((int)threadIdx.x % 32);
    float sum = 0;
#pragma unroll 4
    for (int i = first; i < D; i += 128) {
        float v[4] = {0, 0, 0, 0};
        if (VEC) {
            *(float4 *)v = *(const float4 *)(x + i);
            *(float4 *)(y + i) = *(float4 *)v;
        } else {
            for (int e = 0; e < 4 && i + e < D; e++) y[i + e] = v[e] = x[i + e];
        }
#pragma unroll
        for (int e = 0; e < 4; e++) sum = __fmaf_rn(v[e], v[e], sum);
    }
    if (raw) return;
    const float factor = __frsqrt_rn(kk__warp_sum(sum) / (float)D + eps);
    for (int i = first; i < D; i += 128)
        for (int e = 0; e < 4 && i + e < D; e++) {
            y[i + e] *= factor;
            if (w) y[i + e] *= w[i + e];
        }
}

/* y[i] of a head whose first R pairs (r, r + D/2) turn by cs */
__device__ static inline float turned(const float *y, int D, int R, const float *cs, int i)
{
    const int half = D / 2, r = i < half ? i : i - half;
    if (r >= R || i >= 2 * half) return y[i];
    const float a = y[r], b = y[r + half], c = cs[2 * r], s = cs[2 * r + 1];
    return i < half ? a * c - b * s : b * c + a * s;
}

/* Heads of a row: H of q, G of k, and G of v unless v is k. VEC: D is a multiple of 4. Positions,
 * turns and weights are here before the op before has ended. */
template <bool VEC>
__global__ static void __launch_bounds__(THREADS) qkv_heads(struct kk_qkv_args a)
{
    extern __shared__ __align__(16) float heads[];
    const int per_row = a.H + a.G * (a.value_only ? 1 : 2), D = a.D, GD = a.G * D;
    const int64_t unit = (int64_t)blockIdx.x * WARPS + threadIdx.x / 32;
    const int64_t t = unit / per_row;
    const int head = (int)(unit % per_row), lane = (int)threadIdx.x % 32;
    const struct heads_layout at = heads_layout_of(D, a.R);
    float *y = heads + threadIdx.x / 32 * D, *cs = heads + at.turns + threadIdx.x / 32 * 2 * a.R;
    float *q_norm = heads + at.norms, *k_norm = q_norm + D;
    if (t < a.T) {
        const float *from = a.rope + (int64_t)a.pos[t] * a.R * 2;
        for (int i = lane; i < 2 * a.R; i += 32) cs[i] = from[i];
    }
    for (int i = (int)threadIdx.x; i < D; i += THREADS) {
        q_norm[i] = a.q_norm ? a.q_norm[i] : 0;
        k_norm[i] = a.k_norm ? a.k_norm[i] : 0;
    }
    __syncthreads();
    cudaGridDependencySynchronize();
    cudaTriggerProgrammaticLaunchCompletion();
    if (t >= a.T) return;
    bf16 *row = (bf16 *)a.rows + t * GD * (a.value_only ? 1 : 2);
    if (head < a.H) {
        float *q = a.q + (t * a.H + head) * D;
        norm_head<VEC>(q, D, a.q_norm ? q_norm : NULL, !a.q_norm, a.eps, y);
        __syncwarp();
        for (int i = lane; i < D; i += 32) q[i] = turned(y, D, a.R, cs, i);
        return;
    }
    const int g = head - a.H, is_key = !a.value_only && g < a.G, h = g < a.G ? g : g - a.G;
    const float *x = (g < a.G ? a.k : a.v) + t * GD + h * D;
    row += (g < a.G ? 0 : GD) + h * D;
    if (is_key)
        norm_head<VEC>(x, D, a.k_norm ? k_norm : NULL, !a.k_norm, a.eps, y);
    else
        norm_head<VEC>(x, D, NULL, a.raw_value, a.eps, y);
    __syncwarp();
    for (int i = lane; i < D; i += 32)
        row[i] = __float2bfloat16_rn(is_key ? turned(y, D, a.R, cs, i) : y[i]);
}

/* The same where half a head is HALF * 128 numbers and pairs come by fours: both ends of a pair lie
 * in one lane, so a head never leaves registers. Group j of a lane's numbers: 4 lane + 128 j .. */
template <int HALF> struct head {
    enum { N = 2 * HALF };
    float v[N][4];

    __device__ void read(const float *x)
    {
#pragma unroll
        for (int j = 0; j < N; j++) *(float4 *)v[j] = *(const float4 *)(x + at(j));
    }
    __device__ static int at(int j)
    {
        return 4 * ((int)threadIdx.x % 32) + 128 * j;
    }
    __device__ void norm(const float *w, float eps, const float (&weight)[N][4])
    {
        float sum = 0;
#pragma unroll
        for (int j = 0; j < N; j++)
#pragma unroll
            for (int e = 0; e < 4; e++) sum = __fmaf_rn(v[j][e], v[j][e], sum);
        const float factor = __frsqrt_rn(kk__warp_sum(sum) / (float)(N * 128) + eps);
#pragma unroll
        for (int j = 0; j < N; j++)
#pragma unroll
            for (int e = 0; e < 4; e++) {
                v[j][e] *= factor;
                if (w) v[j][e] *= weight[j][e];
            }
    }
    __device__ void turn(int R, const float (&cs)[HALF][8])
    {
#pragma unroll
        for (int j = 0; j < HALF; j++)
#pragma unroll
            for (int e = 0; e < 4; e++) {
                const float a = v[j][e], b = v[j + HALF][e], c = cs[j][2 * e], s = cs[j][2 * e + 1];
                if (at(j) >= R) continue;
                v[j][e] = a * c - b * s;
                v[j + HALF][e] = b * c + a * s;
            }
    }
};

template <int HALF>
__global__ static void __launch_bounds__(THREADS) qkv_in_lanes(struct kk_qkv_args a)
{
    enum { N = 2 * HALF };
    const int per_row = a.H + a.G * (a.value_only ? 1 : 2), D = N * 128, GD = a.G * D;
    const unsigned unit = blockIdx.x * WARPS + threadIdx.x / 32;
    const int t = (int)(unit / (unsigned)per_row), head_of = (int)(unit % (unsigned)per_row);
    const int is_q = head_of < a.H, g = head_of - a.H;
    const int is_key = !is_q && !a.value_only && g < a.G, turns = is_q || is_key;
    const float *w = is_q ? a.q_norm : is_key ? a.k_norm : NULL;
    float weight[N][4], cs[HALF][8];
    if (t < a.T && w)
#pragma unroll
        for (int j = 0; j < N; j++) *(float4 *)weight[j] = *(const float4 *)(w + head<HALF>::at(j));
    if (t < a.T && turns) {
        const float *from = a.rope + (int64_t)a.pos[t] * a.R * 2;
#pragma unroll
        for (int j = 0; j < HALF; j++)
            if (head<HALF>::at(j) < a.R) {
                *(float4 *)cs[j] = *(const float4 *)(from + 2 * head<HALF>::at(j));
                *(float4 *)(cs[j] + 4) = *(const float4 *)(from + 2 * head<HALF>::at(j) + 4);
            }
    }
    cudaGridDependencySynchronize();
    cudaTriggerProgrammaticLaunchCompletion();
    if (t >= a.T) return;
    const int h = is_q || g < a.G ? g : g - a.G;
    float *q = a.q + ((int64_t)t * a.H + head_of) * D;
    head<HALF> y;
    y.read(is_q ? q : (g < a.G ? a.k : a.v) + (int64_t)t * GD + h * D);
    if (turns ? w != NULL : !a.raw_value) y.norm(w, a.eps, weight);
    if (turns) y.turn(a.R, cs);
    bf16 *row =
        (bf16 *)a.rows + (int64_t)t * GD * (a.value_only ? 1 : 2) + (g < a.G ? 0 : GD) + h * D;
#pragma unroll
    for (int j = 0; j < N; j++) {
        const int i = head<HALF>::at(j);
        if (is_q)
            *(float4 *)(q + i) = *(const float4 *)y.v[j];
        else
            *(uint2 *)(row + i) =
                make_uint2(kk__pack2(y.v[j][0], y.v[j][1]), kk__pack2(y.v[j][2], y.v[j][3]));
    }
}

void kk__cuda_qkv(struct kk_dev *dev, const struct kk_qkv_args *a)
{
    KK_BUG_ON(a->value_only && !a->k_norm);
    KK_BUG_ON(a->kv_dtype != KK_BF16 || a->D > KK_CUDA_HEAD || a->R > a->D / 2);
    const int64_t units = (int64_t)a->T * (a->H + a->G * (a->value_only ? 1 : 2));
    const dim3 grid((unsigned)((units + WARPS - 1) / WARPS));
    if ((a->D == 256 || a->D == 512) && a->R % 4 == 0)
        kk__launch(kk__cuda(dev), "qkv", a->D == 256 ? qkv_in_lanes<1> : qkv_in_lanes<2>, grid,
                   dim3(THREADS), 0, *a);
    else
        kk__launch(kk__cuda(dev), "qkv", a->D % 4 ? qkv_heads<false> : qkv_heads<true>, grid,
                   dim3(THREADS), (size_t)heads_layout_of(a->D, a->R).all * sizeof(float), *a);
}

/* ---- gather, convert ---------------------------------------------------------------------- */

/* Copy n bytes by a block, in the widest pieces that fit both ends. */
__device__ static inline void copy_bytes(char *dst, const char *src, int64_t n)
{
    const uintptr_t ends = (uintptr_t)dst | (uintptr_t)src | (uintptr_t)n;
    const int64_t step = blockDim.x;
    if (ends % 16 == 0)
        for (int64_t i = threadIdx.x; i < n / 16; i += step)
            ((uint4 *)dst)[i] = ((const uint4 *)src)[i];
    else if (ends % 4 == 0)
        for (int64_t i = threadIdx.x; i < n / 4; i += step)
            ((uint32_t *)dst)[i] = ((const uint32_t *)src)[i];
    else
        for (int64_t i = threadIdx.x; i < n; i += step) dst[i] = src[i];
}

__global__ static void __launch_bounds__(THREADS) gather_row(struct kk_gather_args a)
{
    const int64_t i = blockIdx.x, stride = a.stride ? a.stride : a.C;
    cudaGridDependencySynchronize();
    cudaTriggerProgrammaticLaunchCompletion();
    const int64_t from = a.rows ? a.rows[i] : i;
    copy_bytes((char *)(a.dst + i * stride), (const char *)(a.src + from * a.C),
               (int64_t)a.C * (int64_t)sizeof(float));
}

void kk__cuda_gather(struct kk_dev *dev, const struct kk_gather_args *a)
{
    kk__launch(kk__cuda(dev), "gather", gather_row, dim3((unsigned)a->n), dim3(THREADS), 0, *a);
}

__global__ static void __launch_bounds__(THREADS) to_bf16(int64_t n, const float *src, bf16 *dst)
{
    const int64_t i = 4 * ((int64_t)blockIdx.x * THREADS + threadIdx.x);
    cudaGridDependencySynchronize();
    cudaTriggerProgrammaticLaunchCompletion();
    if (i + 4 <= n) {
        const float4 v = *(const float4 *)(src + i);
        *(uint2 *)(dst + i) = make_uint2(kk__pack2(v.x, v.y), kk__pack2(v.z, v.w));
    } else {
        for (int64_t k = i; k < n; k++) dst[k] = __float2bfloat16_rn(src[k]);
    }
}

__global__ static void __launch_bounds__(THREADS) to_f32(int64_t n, const bf16 *src, float *dst)
{
    const int64_t i = 4 * ((int64_t)blockIdx.x * THREADS + threadIdx.x);
    cudaGridDependencySynchronize();
    cudaTriggerProgrammaticLaunchCompletion();
    for (int64_t k = i; k < i + 4 && k < n; k++) dst[k] = __bfloat162float(src[k]);
}

void kk__cuda_convert(struct kk_dev *dev, const struct kk_convert_args *a)
{
    struct kk_cuda *c = kk__cuda(dev);
    const dim3 grid((unsigned)((a->n + 4 * THREADS - 1) / (4 * THREADS)));
    KK_BUG_ON(a->from == KK_F16 || a->to == KK_F16);
    if (a->from == a->to)
        kk__cuda_copy(dev, a->dst, a->src, (size_t)a->n * kk_dtype_bytes(a->from));
    else if (a->to == KK_BF16)
        kk__launch(c, "convert", to_bf16, grid, dim3(THREADS), 0, a->n, (const float *)a->src,
                   (bf16 *)a->dst);
    else
        kk__launch(c, "convert", to_f32, grid, dim3(THREADS), 0, a->n, (const bf16 *)a->src,
                   (float *)a->dst);
}

/* ---- argmax ------------------------------------------------------------------------------- */

/* A number and its index as one word: the larger number is the larger word, and of equal ones the
 * lower index. NaN is less than all. */
__device__ static inline uint64_t rank_of(float x, uint32_t i)
{
    uint32_t u = __float_as_uint(x + 0.0f); /* -0 is 0 */
    u = u & 0x80000000 ? ~u : u | 0x80000000;
    if (x != x) u = 0;
    return (uint64_t)u << 32 | (uint32_t)~i;
}

__device__ static inline uint64_t larger(uint64_t a, uint64_t b)
{
    return a > b ? a : b;
}

/* The largest of a block's words; thread 0 gets it. */
__device__ static inline uint64_t block_largest(uint64_t v, uint64_t *tmp)
{
    for (int o = 16; o; o >>= 1) v = larger(v, __shfl_xor_sync(~0u, v, o));
    if (threadIdx.x % 32 == 0) tmp[threadIdx.x / 32] = v;
    __syncthreads();
    for (int i = 1; threadIdx.x == 0 && i < WARPS; i++) v = larger(v, tmp[i]);
    return v;
}

enum { ARGMAX_PARTS = 128, ARGMAX_ROWS = 64, ARGMAX_LEAST = 8 * THREADS };

struct argmax_scratch {
    uint64_t part[ARGMAX_ROWS][ARGMAX_PARTS];
    uint32_t done[ARGMAX_ROWS]; /* parts of a row that are written; 0 between calls */
};

/* Block (p, row): part p of a row; the last of a row to end takes the largest of its parts. */
__global__ static void __launch_bounds__(THREADS)
    argmax_part(struct kk_argmax_args a, int64_t per, struct argmax_scratch *s)
{
    __shared__ uint64_t tmp[2][WARPS];
    __shared__ int is_last;
    const int row = (int)blockIdx.y;
    const float *x = a.x + (int64_t)row * a.n;
    const int64_t first = blockIdx.x * per, end = first + per < a.n ? first + per : a.n;
    uint64_t best = 0;
    cudaGridDependencySynchronize();
    cudaTriggerProgrammaticLaunchCompletion();
    if (a.n % 4 == 0) { /* so is per */
#pragma unroll 4
        for (int64_t i = first + 4 * (int64_t)threadIdx.x; i < end; i += 4 * THREADS) {
            const float4 v = *(const float4 *)(x + i);
            best = larger(
                best, larger(larger(rank_of(v.x, (uint32_t)i), rank_of(v.y, (uint32_t)i + 1)),
                             larger(rank_of(v.z, (uint32_t)i + 2), rank_of(v.w, (uint32_t)i + 3))));
        }
    } else {
        for (int64_t i = first + threadIdx.x; i < end; i += THREADS)
            best = larger(best, rank_of(x[i], (uint32_t)i));
    }
    best = block_largest(best, tmp[0]);
    if (threadIdx.x == 0) {
        s->part[row][blockIdx.x] = best;
        __threadfence();
        is_last = atomicInc(&s->done[row], gridDim.x - 1) == gridDim.x - 1; /* wraps to 0 */
    }
    __syncthreads();
    if (!is_last) return;
    __threadfence();
    best = threadIdx.x < gridDim.x ? __ldcg(&s->part[row][threadIdx.x]) : 0;
    best = block_largest(best, tmp[1]);
    if (threadIdx.x == 0) a.out[row] = (int32_t) ~(uint32_t)best;
}

void kk__cuda_argmax(struct kk_dev *dev, const struct kk_argmax_args *a)
{
    struct kk_cuda *c = kk__cuda(dev);
    struct kk_argmax_args part = *a;
    int64_t per = (a->n + ARGMAX_PARTS - 1) / ARGMAX_PARTS;
    if (per < ARGMAX_LEAST) per = ARGMAX_LEAST;
    per = (per + 3) / 4 * 4;
    for (int t = 0; t < a->T; t += ARGMAX_ROWS) {
        part.T = a->T - t < ARGMAX_ROWS ? a->T - t : ARGMAX_ROWS;
        part.x = a->x + (int64_t)t * a->n;
        part.out = a->out + t;
        kk__launch(c, "argmax", argmax_part,
                   dim3((unsigned)((a->n + per - 1) / per), (unsigned)part.T), dim3(THREADS), 0,
                   part, per, (struct argmax_scratch *)(c->scratch + c->ops_at));
    }
}

size_t kk__cuda_ops_scratch(const struct kk_cuda *, const struct kk_limits *)
{
    return sizeof(struct argmax_scratch);
}

/* ---- kv_store ----------------------------------------------------------------------------- */

enum { STORE_BLOCKS = 64, STORE_SEQS = 128 }; /* of a sequence of a layer; of a launch */

struct store {
    struct kk_kv_store_args a; /* keep is the host's */
    int32_t first, B;          /* this launch: sequences [first, first + B) of the step */
    int32_t keep[STORE_SEQS];
};

__global__ static void __launch_bounds__(THREADS) store_rows(const __grid_constant__ struct store j)
{
    cudaGridDependencySynchronize();
    cudaTriggerProgrammaticLaunchCompletion();
    const int b = (int)blockIdx.y % j.B, l = (int)blockIdx.y / j.B;
    const struct kk_kv_seq s = j.a.seqs[l * j.a.stride + j.first + b];
    const int32_t end = s.row_bytes ? s.committed + j.keep[b] : 0;
    for (int32_t i = s.committed + (int32_t)blockIdx.x; i < end; i += (int32_t)gridDim.x) {
        if (s.ring && i >= s.sinks && end - i > s.ring) continue; /* a newer row wins */
        copy_bytes((char *)kk_kv_slot(&s, i, (size_t)s.row_bytes),
                   (const char *)kk_kv_row(&s, i, (size_t)s.row_bytes), s.row_bytes);
    }
}

void kk__cuda_kv_store(struct kk_dev *dev, const struct kk_kv_store_args *a)
{
    const int rows = a->most < STORE_BLOCKS ? a->most : STORE_BLOCKS;
    struct store j = {};
    j.a = *a;
    for (j.first = 0; j.first < a->B; j.first += STORE_SEQS) {
        j.B = a->B - j.first < STORE_SEQS ? a->B - j.first : STORE_SEQS;
        for (int b = 0; b < j.B; b++) j.keep[b] = a->keep[j.first + b];
        kk__launch(kk__cuda(dev), "kv_store", store_rows,
                   dim3((unsigned)rows, (unsigned)(a->n_layers * j.B)), dim3(THREADS), 0, j);
    }
}
