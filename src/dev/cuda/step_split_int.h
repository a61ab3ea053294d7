/* Private to step.cu: which splits of attention an SM has, and a row of a head by a warp. */
#ifndef KK_DEV_CUDA_STEP_SPLIT_INT_H
#define KK_DEV_CUDA_STEP_SPLIT_INT_H

#include "dev/cuda/step_words_int.h"

namespace
{

/* ---- attention: which splits ---- */

/* A split of one sequence and one KV head, and its keys by groups of 16: [lo, hi) */
struct item {
    int seq, index, g, base, lo, hi;
};

__device__ inline bool make_item(const struct ks_args &a, int sliding, int b, int v, int G,
                                 struct item &it)
{
    const struct ks_seq &q = a.seq[b];
    const struct ks_splits &k = q.kind[sliding];
    const struct ks_mask &m = a.mask[sliding];
    it.seq = b, it.index = v / G, it.g = v % G;
    if (it.index >= k.n) return false;
    const int split = it.index < k.n_sink ? it.index : k.win0 + it.index - k.n_sink;
    it.base = split * KK_CUDA_SPLIT;
    const int near = min(m.window, m.near), last = q.pos0 + q.n - 1;
    const int win = max(0, q.pos0 - near + 1);
    int lo = max(win, it.base), hi = min(last + 1, it.base + KK_CUDA_SPLIT);
    const int s0 = max(max(0, q.pos0 - m.window + 1), it.base);
    const int s1 = min(min(m.sinks, win), it.base + KK_CUDA_SPLIT);
    if (s0 < s1) {
        if (hi <= lo) hi = s1;
        lo = s0;
    }
    it.lo = (lo - it.base) / 16;
    it.hi = (hi - it.base + 15) / 16;
    return true;
}

template <int D> struct shape {
    static constexpr bool derived = D == 512;
    static constexpr int G = D == 512 ? 2 : 8, per_kv = KS_H / G;
    static constexpr int R = D == 512 ? 64 : 128;
    static constexpr int kv_row = G * D * 2 * (derived ? 1 : 2);
};

/* Slots of the first lines of an item's rows (keys; of rows of 512, the first half), and as many
 * of the second (values; the other half) */
__device__ inline int half_slots(const struct item &it)
{
    return ((it.hi - it.lo) * 16 * KS_LINE + KS_SLOT - 1) / KS_SLOT;
}

/* Of rows of 512 there is room for what turns of the keys that are derived, 256 bytes each. */
template <int D> __device__ inline int item_slots(const struct item &it)
{
    const int turned = ((it.hi - it.lo) * 16 * 256 + KS_SLOT - 1) / KS_SLOT;
    return 2 * half_slots(it) + (D == 512 ? turned : 0);
}

/* This SM's items of a layer, one after another: of sequence b those from `first` on, `wrap`
 * apart */
template <int D> struct items {
    struct item it;
    int b, v;
    __device__ inline items() : b(-1), v(INT32_MAX) {}
    __device__ inline bool next()
    {
        const struct ks_args &a = block().args;
        const int sms = (int)gridDim.x, wrap = D == 256 ? 128 : sms;
        if (v != INT32_MAX) v += wrap;
        for (;;) {
            if (v != INT32_MAX && make_item(a, D == 256, b, v, shape<D>::G, it)) return true;
            if (++b >= a.B) return false;
            v = ((int)blockIdx.x - (D == 256 ? 72 * b : 64 + 31 * b)) % sms;
            if (v < 0) v += sms;
            if (v >= wrap) v = INT32_MAX;
        }
    }
};

/* Stored rows of an item */
__device__ inline int stored_rows(const struct ks_args &a, const struct item &it)
{
    return min(max(a.seq[it.seq].pos0 - it.base - it.lo * 16, 0), (it.hi - it.lo) * 16);
}

/* 16 bytes a lane, beside what it does. */
__device__ inline void copy16(uint32_t dst, const char *src)
{
    asm volatile("cp.async.cg.shared.global [%0],[%1],16;" ::"r"(dst), "l"(src) : "memory");
}

__device__ inline void copies_wait()
{
    asm volatile("cp.async.wait_all;" ::: "memory");
    __syncwarp();
}

/* ---- consumers: attention ---- */

/* A head's row by a warp: lane l has elements 128 j + 4 l .. + 3. Norm and rope are asked for
 * before its words are waited for. cs NULL: it does not turn. */
template <int D> struct head {
    float v[D / 32];
    float4 w[D / 128], t[2];
    __device__ inline void ask(const float *norm, const float *cs, int lane)
    {
#pragma unroll
        for (int j = 0; j < D / 128; j++) {
            w[j] = make_float4(1, 1, 1, 1);
            if (norm) w[j] = load4(norm + 128 * j + 4 * lane);
        }
#pragma unroll
        for (int i = 0; i < 2; i++) {
            t[i] = make_float4(1, 0, 1, 0);
            if (cs && 4 * lane < shape<D>::R) t[i] = load4(cs + 8 * lane + 4 * i);
        }
    }
    __device__ inline void take(const uint64_t *p, int lane, uint32_t tag, int what)
    {
        await_words(p + (D - 128) + 4 * lane, tag, what);
        struct watch still = {0};
        for (;;) {
            uint32_t bad = 0;
#pragma unroll
            for (int j = 0; j < D / 64; j++) {
                const struct two_words x = load_words(p + 128 * (j / 2) + 4 * lane + 2 * (j & 1));
                v[2 * j] = __uint_as_float(x.v0), v[2 * j + 1] = __uint_as_float(x.v1);
                bad |= (x.tag0 ^ tag) | (x.tag1 ^ tag);
            }
            if (!bad) break;
            still_waiting(still, what, bad);
        }
        __syncwarp();
    }
    __device__ inline void norm_and_turn(bool turns, int lane, float eps)
    {
        constexpr int half = D / 64;
        float s = 0;
#pragma unroll
        for (int i = 0; i < D / 32; i++) s = __fmaf_rn(v[i], v[i], s);
        const float f = rms_factor(kk__warp_sum(s), D, eps);
#pragma unroll
        for (int j = 0; j < D / 128; j++) {
            v[4 * j] = (v[4 * j] * f) * w[j].x, v[4 * j + 1] = (v[4 * j + 1] * f) * w[j].y;
            v[4 * j + 2] = (v[4 * j + 2] * f) * w[j].z, v[4 * j + 3] = (v[4 * j + 3] * f) * w[j].w;
        }
        if (!turns || 4 * lane >= shape<D>::R) return;
#pragma unroll
        for (int i = 0; i < 2; i++) {
            const float a0 = v[2 * i], b0 = v[half + 2 * i];
            const float a1 = v[2 * i + 1], b1 = v[half + 2 * i + 1];
            v[2 * i] = a0 * t[i].x - b0 * t[i].y, v[half + 2 * i] = b0 * t[i].x + a0 * t[i].y;
            v[2 * i + 1] = a1 * t[i].z - b1 * t[i].w;
            v[half + 2 * i + 1] = b1 * t[i].z + a1 * t[i].w;
        }
    }
    __device__ inline void store(char *p, char *far, int lane, float scale) const
    {
#pragma unroll
        for (int j = 0; j < D / 128; j++)
            *(uint2 *)((j < 2 ? p : far) + (128 * (j & 1) + 4 * lane) * 2) =
                make_uint2(kk__pack2(v[4 * j] * scale, v[4 * j + 1] * scale),
                           kk__pack2(v[4 * j + 2] * scale, v[4 * j + 3] * scale));
    }
};

__device__ inline void ldsm(uint32_t (&r)[4], uint32_t at)
{
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3},[%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(at));
}

__device__ inline void ldsm_t(uint32_t (&r)[4], uint32_t at)
{
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3},[%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(at));
}

/* Row `from` of qkv's words, normed and turned: to shared memory, and to the step's rows. */
template <int D>
__device__ __noinline__ void bring(const uint64_t *from, const float *norm, const float *cs,
                                   char *to, char *far, char *also, float scale)
{
    const struct context c = who(0);
    struct head<D> x;
    x.ask(norm, cs, c.lane);
    x.take(from, c.lane, now_tag(), 30);
    x.norm_and_turn(cs != NULL, c.lane, c.a->eps);
    x.store(to, far, c.lane, scale);
    if (also) x.store(also, also + 512, c.lane, 1.0f);
}

} // namespace

#endif
