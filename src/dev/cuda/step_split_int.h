/* Private to step.cu: attention of a step: which splits an SM has, and a split of one KV head by
 * the consumers. docs/adr/0020 has the order. */
#ifndef KK_DEV_CUDA_STEP_SPLIT_INT_H
#define KK_DEV_CUDA_STEP_SPLIT_INT_H

#include "dev/cuda/step_sync_int.h"

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

/* Items of this SM, one after another: v of sequence b runs over first, first + wrap, .. */
__device__ inline int first_item(int sliding, int b, int &wrap)
{
    const int sms = (int)gridDim.x, me = (int)blockIdx.x;
    const int off = sliding ? 72 * b : 64 + 31 * b;
    const int r = ((me - off) % sms + sms) % sms;
    wrap = sliding ? 128 : sms;
    return r < wrap ? r : INT32_MAX;
}

template <int D> struct shape {
    static constexpr bool derived = D == 512;
    static constexpr int G = D == 512 ? 2 : 8, per_kv = KS_H / G;
    static constexpr int R = D == 512 ? 64 : 128;
    static constexpr int row = D * 2 + 16;          /* bytes of a row in the ring */
    static constexpr int keys = D == 512 ? 10 : 20; /* rows of a slot */
    static constexpr int kv_row = G * D * 2 * (derived ? 1 : 2);
};

/* Slots of the item's keys, or of its values */
template <int D> __device__ inline int half_slots(const struct item &it)
{
    return ((it.hi - it.lo) * 16 + shape<D>::keys - 1) / shape<D>::keys;
}

template <int D> __device__ inline int item_slots(const struct item &it)
{
    return half_slots<D>(it) * (shape<D>::derived ? 1 : 2);
}

/* ---- consumers: attention ---- */

/* A head's row by a warp: lane l has elements 128 j + 4 l .. + 3 */
template <int D> struct head {
    float v[D / 32];
    __device__ inline void take(const uint64_t *p, int lane, uint32_t tag, int what)
    {
        uint32_t raw[D / 32];
        await_words(p + (D - 128) + 4 * lane, tag, what);
        struct watch w = {0};
        for (;;) {
            uint32_t bad = 0;
#pragma unroll
            for (int j = 0; j < D / 64; j++) {
                const struct two_words x = load_words(p + 128 * (j / 2) + 4 * lane + 2 * (j & 1));
                raw[2 * j] = x.v0, raw[2 * j + 1] = x.v1;
                bad |= (x.tag0 ^ tag) | (x.tag1 ^ tag);
            }
            if (!bad) break;
            still_waiting(w, what, bad);
        }
#pragma unroll
        for (int i = 0; i < D / 32; i++) v[i] = __uint_as_float(raw[i]);
        __syncwarp();
    }
    __device__ inline void norm(const float *w, int lane, float eps)
    {
        float s = 0;
#pragma unroll
        for (int i = 0; i < D / 32; i++) s = __fmaf_rn(v[i], v[i], s);
        const float f = rms_factor(kk__warp_sum(s), D, eps);
#pragma unroll
        for (int j = 0; j < D / 128; j++) {
            float4 n = make_float4(1, 1, 1, 1);
            if (w) n = __ldg((const float4 *)(w + 128 * j + 4 * lane));
            v[4 * j] *= f, v[4 * j + 1] *= f, v[4 * j + 2] *= f, v[4 * j + 3] *= f;
            if (w) v[4 * j] *= n.x, v[4 * j + 1] *= n.y, v[4 * j + 2] *= n.z, v[4 * j + 3] *= n.w;
        }
    }
    __device__ inline void turn(const float *cs, int lane)
    {
        constexpr int half = D / 64;
        if (4 * lane >= shape<D>::R) return;
#pragma unroll
        for (int i = 0; i < 2; i++) {
            const float4 t = __ldg((const float4 *)(cs + 8 * lane + 4 * i));
            const float a0 = v[2 * i], b0 = v[half + 2 * i];
            const float a1 = v[2 * i + 1], b1 = v[half + 2 * i + 1];
            v[2 * i] = a0 * t.x - b0 * t.y, v[half + 2 * i] = b0 * t.x + a0 * t.y;
            v[2 * i + 1] = a1 * t.z - b1 * t.w, v[half + 2 * i + 1] = b1 * t.z + a1 * t.w;
        }
    }
    __device__ inline void store(char *p, int lane, float scale) const
    {
#pragma unroll
        for (int j = 0; j < D / 128; j++)
            *(uint2 *)(p + (128 * j + 4 * lane) * 2) =
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

/* Consumers over one item: slots from n on. */
template <int D> struct split_work {
    typedef struct shape<D> Z;
    struct place &z;
    const struct item &it;
    int layer;
    uint32_t tag;
    const float *q_norm, *k_norm;

    /* where row i of the item (i from it.lo * 16) is; values: of a layer that has both */
    __device__ inline uint32_t slot_of(int i, bool values) const
    {
        const int at = i / Z::keys + (values && !Z::derived ? half_slots<D>(it) : 0);
        return (z.n + (uint32_t)at) % KS_SLOTS;
    }
    __device__ inline char *row(int i, bool values) const
    {
        return z.c.s->ring + slot_of(i, values) * KS_SLOT + (i % Z::keys) * Z::row;
    }
    __device__ inline void arrived(int i, bool values) const
    {
        const int at = i / Z::keys + (values && !Z::derived ? half_slots<D>(it) : 0);
        const uint32_t n = z.n + (uint32_t)at;
        bar_wait(&z.c.s->full[n % KS_SLOTS], (int)(n / KS_SLOTS & 1), 6, n);
    }

    /* q of row r of all rows x query heads of the KV head, scaled, to row w of shared memory */
    __device__ inline void prepare_q(int r, int w)
    {
        const struct ks_args &a = *z.c.a;
        const struct ks_seq &q = a.seq[it.seq];
        const int t = q.t0 + r / Z::per_kv, h = it.g * Z::per_kv + r % Z::per_kv;
        const int width = KS_H * D + Z::G * D * (Z::derived ? 1 : 2);
        struct head<D> x;
        x.take(a.qkv + (int64_t)t * width + h * D, z.c.lane, tag, 30);
        x.norm(q_norm, z.c.lane, a.eps);
        x.turn(a.rope[!Z::derived] + (int64_t)(q.pos0 + r / Z::per_kv) * Z::R * 2, z.c.lane);
        x.store((char *)(z.c.s->a.q + w * (D + 8)), z.c.lane, a.attn_scale);
    }

    /* row i is one of the step, or none: what is read there must be finite */
    __device__ inline void patch(int i, bool values)
    {
        const struct ks_args &a = *z.c.a;
        const struct ks_seq &q = a.seq[it.seq];
        const int k = it.base + it.lo * 16 + i - q.pos0, lane = z.c.lane;
        char *to = row(i, values);
        arrived(i, values);
        if (k >= q.n) {
#pragma unroll
            for (int j = 0; j < D / 128; j++)
                *(uint2 *)(to + (128 * j + 4 * lane) * 2) = make_uint2(0, 0);
        } else {
            const int t = q.t0 + k, width = KS_H * D + Z::G * D * (Z::derived ? 1 : 2);
            const int from = KS_H * D + (values && !Z::derived ? Z::G * D : 0) + it.g * D;
            struct head<D> x;
            x.take(a.qkv + (int64_t)t * width + from, lane, tag, 31);
            x.norm(values ? NULL : k_norm, lane, a.eps);
            if (!values) x.turn(a.rope[!Z::derived] + (int64_t)(q.pos0 + k) * Z::R * 2, lane);
            x.store(to, lane, 1.0f);
            x.store(a.kv[layer].rows + (int64_t)t * Z::kv_row +
                        ((values && !Z::derived ? Z::G : 0) + it.g) * D * 2,
                    lane, 1.0f);
        }
    }

    __device__ inline void patches()
    {
        const int keys = (it.hi - it.lo) * 16;
        const int from = max(z.c.a->seq[it.seq].pos0 - (it.base + it.lo * 16), 0);
#pragma unroll 1
        for (int k = KS_CONSUMERS - 1 - z.c.warp; k < (keys - from) * (Z::derived ? 1 : 2);
             k += KS_CONSUMERS)
            if (Z::derived)
                patch(from + k, true);
            else
                patch(from + k / 2, k & 1);
    }

    /* is key j visible to row r of the item */
    __device__ inline bool sees(int r, int j) const
    {
        const struct ks_args &a = *z.c.a;
        const struct ks_mask &m = a.mask[!Z::derived];
        const struct ks_seq &q = a.seq[it.seq];
        const int d = q.pos0 + r / Z::per_kv - j;
        return r < q.n * Z::per_kv && d >= 0 && d < m.window && (d < m.near || j < m.sinks);
    }

    /* Keys of a layer that keeps values: b of two tiles of keys, kt; c: kt + D / 32 */
    __device__ inline void derive(uint32_t (&b)[4], int kt) const
    {
        const int q = z.c.lane & 3;
        const float2 w0 = *(const float2 *)(z.c.s->a.k_norm + 16 * kt + 2 * q);
        const float2 w1 = *(const float2 *)(z.c.s->a.k_norm + 16 * kt + 2 * q + 8);
#pragma unroll
        for (int i = 0; i < 4; i++) {
            const float2 w = i & 1 ? w1 : w0;
            b[i] = kk__pack2(lo_of(b[i]) * w.x, hi_of(b[i]) * w.y);
        }
    }
    __device__ inline void derive_pair(uint32_t (&b)[4], uint32_t (&c)[4], int kt, int key) const
    {
        const int g = z.c.lane >> 2, q = z.c.lane & 3;
        const struct ks_seq &sq = z.c.a->seq[it.seq];
#pragma unroll
        for (int i = 0; i < 4; i++) {
            const int d = 16 * kt + 2 * q + 8 * (i & 1);
            const int j = min(key + g + 8 * (i >> 1), sq.pos0 + sq.n - 1); /* past it: zeros */
            const float *cs = z.c.a->rope[0] + (int64_t)j * Z::R * 2;
            const float2 wb = *(const float2 *)(z.c.s->a.k_norm + d);
            const float2 wc = *(const float2 *)(z.c.s->a.k_norm + d + D / 2);
            const float4 t = __ldg((const float4 *)(cs + 2 * d));
            const float b0 = lo_of(b[i]) * wb.x, b1 = hi_of(b[i]) * wb.y;
            const float c0 = lo_of(c[i]) * wc.x, c1 = hi_of(c[i]) * wc.y;
            b[i] = kk__pack2(b0 * t.x - c0 * t.y, b1 * t.z - c1 * t.w);
            c[i] = kk__pack2(c0 * t.x + b0 * t.y, c1 * t.z + b1 * t.w);
        }
    }

    /* Scores of 16 keys, group kg of the split, by one warp: s[n][..] of keys 8 n .. First tiles
     * of a derived key turn with those half a head away, which are kept until it is their turn. */
    __device__ inline void tile(float (&s)[2][4], uint32_t qa, const uint32_t (&b)[4]) const
    {
        uint32_t a[4];
        ldsm(a, qa);
        kk__mma(s[0], a[0], a[1], a[2], a[3], b[0], b[1]);
        kk__mma(s[1], a[0], a[1], a[2], a[3], b[2], b[3]);
    }
    __device__ inline void scores(float (&s)[2][4], int kg)
    {
        constexpr int TURN = Z::derived ? Z::R / 16 : 0, HALF = D / 32;
        const int lane = z.c.lane, i0 = (kg - it.lo) * 16;
        const int key = i0 + (lane >> 4) * 8 + (lane & 7);
        arrived(i0, false);
        arrived(i0 + 15, false);
        const uint32_t at = smem_at(row(key, false)) + (lane >> 3 & 1) * 16;
        const uint32_t qa = smem_at(z.c.s->a.q) + ((lane & 7) + (lane >> 3 & 1) * 8) * (D + 8) * 2 +
                            (lane >> 4) * 16;
        uint32_t b[4], later[TURN + 1][4];
#pragma unroll
        for (int n = 0; n < 2; n++) s[n][0] = s[n][1] = s[n][2] = s[n][3] = 0;
#pragma unroll
        for (int kt = 0; kt < TURN; kt++) {
            ldsm(b, at + kt * 32);
            ldsm(later[kt], at + (kt + HALF) * 32);
            derive_pair(b, later[kt], kt, it.base + kg * 16);
            tile(s, qa + kt * 32, b);
        }
#pragma unroll 2
        for (int kt = TURN; kt < HALF; kt++) {
            ldsm(b, at + kt * 32);
            if (Z::derived) derive(b, kt);
            tile(s, qa + kt * 32, b);
        }
#pragma unroll
        for (int kt = 0; kt < TURN; kt++) tile(s, qa + (HALF + kt) * 32, later[kt]);
#pragma unroll 2
        for (int kt = HALF + TURN; kt < D / 16; kt++) {
            ldsm(b, at + kt * 32);
            if (Z::derived) derive(b, kt);
            tile(s, qa + kt * 32, b);
        }
    }

    /* Mask; the largest score of each row of the group */
    __device__ inline void tops(float (&s)[2][4], int kg, int r0)
    {
        const int g = z.c.lane >> 2, q = z.c.lane & 3, key = it.base + kg * 16 + 2 * q;
#pragma unroll
        for (int k = 0; k < 2; k++) {
            float m = -INFINITY;
#pragma unroll
            for (int n = 0; n < 2; n++)
#pragma unroll
                for (int e = 0; e < 2; e++) {
                    float &v = s[n][2 * k + e];
                    if (!sees(r0 + g + 8 * k, key + 8 * n + e)) v = -INFINITY;
                    m = fmaxf(m, v);
                }
            m = fmaxf(m, __shfl_xor_sync(FULL_MASK, m, 1));
            m = fmaxf(m, __shfl_xor_sync(FULL_MASK, m, 2));
            if (q == 0) z.c.s->a.top[kg][g + 8 * k] = m;
        }
    }
    __device__ inline float top_of(int r) const
    {
        float m = -INFINITY;
#pragma unroll 1
        for (int k = it.lo; k < it.hi; k++) m = fmaxf(m, z.c.s->a.top[k][r]);
        return m;
    }
    __device__ inline void weights(const float (&s)[2][4], int kg)
    {
        struct attn_smem &w = z.c.s->a;
        const int g = z.c.lane >> 2, q = z.c.lane & 3;
#pragma unroll
        for (int k = 0; k < 2; k++) {
            const float m = top_of(g + 8 * k);
            float p[2][2], l;
#pragma unroll
            for (int n = 0; n < 2; n++)
#pragma unroll
                for (int e = 0; e < 2; e++)
                    p[n][e] = m == -INFINITY ? 0 : exp2f((s[n][2 * k + e] - m) * LOG2E);
            l = ((p[0][0] + p[0][1]) + p[1][0]) + p[1][1];
            l += __shfl_xor_sync(FULL_MASK, l, 1);
            l += __shfl_xor_sync(FULL_MASK, l, 2);
            if (q == 0) w.sum[kg][g + 8 * k] = l;
            uint32_t *to = (uint32_t *)(w.p + (g + 8 * k) * (KK_CUDA_SPLIT + 8) + kg * 16 + 2 * q);
            to[0] = kk__pack2(p[0][0], p[0][1]);
            to[4] = kk__pack2(p[1][0], p[1][1]);
        }
    }

    __device__ inline int64_t pair_of(int r) const
    {
        const struct ks_seq &q = z.c.a->seq[it.seq];
        return (q.kind[!Z::derived].pair0 + it.index * q.n + r / Z::per_kv) * KS_H +
               it.g * Z::per_kv + r % Z::per_kv;
    }

    /* p V, a warp D / 16 of the head's elements; and m, l */
    __device__ inline void publish(int r0)
    {
        constexpr int NB = D / 256; /* blocks of 16 elements */
        const struct ks_args &a = *z.c.a;
        struct attn_smem &w = z.c.s->a;
        const int lane = z.c.lane, g = lane >> 2, q = lane & 3;
        const int d0 = z.c.warp * (D / 16), rows = a.seq[it.seq].n * Z::per_kv;
        float o[2 * NB][4] = {};
        const uint32_t pa = smem_at(w.p) +
                            ((lane & 7) + (lane >> 3 & 1) * 8) * (KK_CUDA_SPLIT + 8) * 2 +
                            (lane >> 4) * 16;
#pragma unroll 1
        for (int kg = it.lo; kg < it.hi; kg++) {
            uint32_t p[4], v[4];
            const int i0 = (kg - it.lo) * 16, key = i0 + (lane & 7) + (lane >> 3 & 1) * 8;
            if (!Z::derived) arrived(i0, true), arrived(i0 + 15, true);
            const uint32_t at = smem_at(row(key, true)) + (d0 + (lane >> 4) * 8) * 2;
            ldsm(p, pa + kg * 32);
#pragma unroll
            for (int b = 0; b < NB; b++) {
                ldsm_t(v, at + b * 32);
                kk__mma(o[2 * b], p[0], p[1], p[2], p[3], v[0], v[1]);
                kk__mma(o[2 * b + 1], p[0], p[1], p[2], p[3], v[2], v[3]);
            }
        }
#pragma unroll
        for (int k = 0; k < 2; k++) {
            const int r = r0 + g + 8 * k;
            if (r >= rows) continue;
            const int64_t pair = pair_of(r);
#pragma unroll
            for (int n = 0; n < 2 * NB; n++)
                store_words(a.part_o + pair * D + d0 + 8 * n + 2 * q, o[n][2 * k], o[n][2 * k + 1],
                            tag);
        }
        if (z.c.warp == KS_CONSUMERS - 1 && lane < 16 && r0 + lane < rows) {
            float l = w.sum[it.lo][lane];
#pragma unroll 1
            for (int k = it.lo + 1; k < it.hi; k++) l += w.sum[k][lane];
            store_words(a.part_ml + pair_of(r0 + lane) * 2, top_of(lane), l, tag);
        }
    }

    /* What the item needs that does not wait for q */
    __device__ inline void begin()
    {
        struct attn_smem &w = z.c.s->a;
        const int tid = z.c.warp * 32 + z.c.lane;
        if (!Z::derived) return;
        w.k_norm[tid] = __ldg(k_norm + tid);
        const float *cs = z.c.a->rope[0] + (int64_t)(it.base + it.lo * 16) * Z::R * 2;
        const struct ks_seq &q = z.c.a->seq[it.seq];
        const int lines = min((it.hi - it.lo) * 16, q.pos0 + q.n - it.base - it.lo * 16) * 4;
        for (int i = tid; i < lines; i += KS_CONSUMERS * 32)
            asm volatile("prefetch.global.L2 [%0];" ::"l"(cs + 32 * i));
    }

    /* 16 rows at a time; warps that score prepare q last */
    __device__ inline void run()
    {
        const int rows = z.c.a->seq[it.seq].n * Z::per_kv, slots = item_slots<D>(it);
        const int kg = z.c.warp, w = (z.c.warp + 8) & 15;
#pragma unroll 1
        for (int r0 = 0; r0 < rows; r0 += 16) {
            float p[2][4];
            mark(layer, 11);
            warps_meet<MEET_ALL, KS_CONSUMERS * 32>(); /* x, q and p are no longer read */
            mark(layer, 12);
            if (r0 == 0) begin();
            if (r0 + w < rows) prepare_q(r0 + w, w);
            if (r0 == 0) patches();
            mark(layer, 13);
            warps_meet<MEET_ALL, KS_CONSUMERS * 32>();
            mark(layer, 14);
            if (kg >= it.lo && kg < it.hi) {
                scores(p, kg);
                tops(p, kg, r0);
            }
            mark(layer, 15);
            warps_meet<MEET_ALL, KS_CONSUMERS * 32>();
            if (kg >= it.lo && kg < it.hi) weights(p, kg);
            warps_meet<MEET_ALL, KS_CONSUMERS * 32>();
            mark(layer, 16);
            publish(r0);
            mark(layer, 17);
        }
        warps_meet<MEET_ALL, KS_CONSUMERS * 32>();
        /* what was copied and patched there was not written as bulk copies write */
        if (z.c.warp == 15 && z.c.lane < slots) {
            asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
            bar_arrive4(&z.c.s->empty[(z.n + (uint32_t)z.c.lane) % KS_SLOTS]);
        }
        __syncwarp();
        z.n += (uint32_t)slots;
    }
};

template <int D> __device__ __noinline__ uint32_t attend(uint32_t n, uint32_t cur, uint32_t tag)
{
    struct place z = {who(0), n, 0, 0, 0};
    const int layer = (int)F(3);
    const float *q_norm = (const float *)F64(16), *k_norm = (const float *)F64(18);
    for (int b = 0; b < z.c.a->B; b++) {
        int wrap, v = first_item(D == 256, b, wrap);
        struct item it;
        if (v == INT32_MAX) continue;
        for (; make_item(*z.c.a, D == 256, b, v, shape<D>::G, it); v += wrap) {
            struct split_work<D> work = {
                z, it, layer, tag, q_norm, k_norm
            };
            work.run();
        }
    }
    return z.n;
}

} // namespace

#endif
