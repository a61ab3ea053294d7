/* Private to step.cu: a split of one KV head by the consumers. docs/adr/0020 has the order. */
#ifndef KK_DEV_CUDA_STEP_ATTEND_INT_H
#define KK_DEV_CUDA_STEP_ATTEND_INT_H

#include "dev/cuda/step_pages_int.h"

namespace
{

/* Where line `half` of row i of an item (i from it.lo * 16) is in the ring, from slot n on */
__device__ inline uint32_t line_at(uint32_t n, const struct item &it, int i, int half)
{
    const uint32_t at = (n % KS_SLOTS + (uint32_t)(half * half_slots(it))) * KS_SLOT + i * KS_LINE;
    return at < KS_RING ? at : at - KS_RING;
}

/* What turns of a derived key: elements 0 .. 63 and 256 .. 319, 16 bytes at a time in an order
 * in which `ldmatrix` meets no bank twice. */
__device__ inline uint32_t turned_at(uint32_t n, const struct item &it, int i)
{
    const uint32_t at = (n % KS_SLOTS + (uint32_t)(2 * half_slots(it))) * KS_SLOT + i * 256;
    return at < KS_RING ? at : at - KS_RING;
}

/* Rows i, i + 16, .. < end of the item, N at most, by a warp; a lane has pairs 2 l, 2 l + 1 of
 * the 64. wait: the rows are on their way, and are asked for after rope. */
template <int N>
__device__ inline void turn(uint32_t n, const struct item &it, int i, int end, bool wait)
{
    const struct context c = who(0);
    const int l = c.lane;
    const float *w = (const float *)now().k_norm;
    const float *rope = c.a->rope[0] + (int64_t)(it.base + it.lo * 16 + i) * 128 + 4 * l;
    float4 t[N];
#pragma unroll
    for (int k = 0; k < N; k++)
        if (i + 16 * k < end) t[k] = load4(rope + 2048 * k);
    const float2 wb = *(const float2 *)(w + 2 * l), wc = *(const float2 *)(w + 256 + 2 * l);
    if (wait) {
        copies_wait();
        warps_meet<MEET_ALL, KS_CONSUMERS * 32>();
    }
#pragma unroll
    for (int k = 0; k < N; k++) {
        const int row = i + 16 * k;
        if (row >= end) continue;
        const uint32_t vb = *(const uint32_t *)(c.s->ring + line_at(n, it, row, 0) + 4 * l);
        const uint32_t vc = *(const uint32_t *)(c.s->ring + line_at(n, it, row, 1) + 4 * l);
        const float b0 = lo_of(vb) * wb.x, b1 = hi_of(vb) * wb.y;
        const float c0 = lo_of(vc) * wc.x, c1 = hi_of(vc) * wc.y;
        uint32_t *to =
            (uint32_t *)(c.s->ring + turned_at(n, it, row) + (l / 4 ^ (row & 7)) * 16 + l % 4 * 4);
        to[0] = kk__pack2(b0 * t[k].x - c0 * t[k].y, b1 * t[k].z - c1 * t[k].w);
        to[32] = kk__pack2(c0 * t[k].x + b0 * t[k].y, c1 * t[k].z + b1 * t[k].w);
    }
}

/* Consumers over one item: slots from n on. */
template <int D> struct split_work {
    typedef struct shape<D> Z;
    const struct context &c;
    uint32_t n;
    const struct item &it;
    const uint64_t *rows; /* where the item's stored rows are */
    int layer;
    uint32_t tag;

    __device__ inline uint32_t line(int i, int half) const { return line_at(n, it, i, half); }
    /* The item's room has been handed out. */
    __device__ inline void arrived() const
    {
        const uint32_t m = n + (uint32_t)c.lane;
        if (c.lane < item_slots<D>(it))
            bar_wait(&c.s->full[m % KS_SLOTS], (int)(m / KS_SLOTS & 1), 6, m);
        __syncwarp();
    }

    __device__ inline const uint64_t *words_of(int t) const
    {
        return c.a->qkv + (int64_t)t * (KS_H * D + Z::G * D * (Z::derived ? 1 : 2));
    }
    __device__ inline const float *rope_of(int pos) const
    {
        return c.a->rope[!Z::derived] + (int64_t)pos * Z::R * 2;
    }

    /* Rows of shared memory that are computed, of q and of this step's keys and values, one a warp.
     * i: q of row r0 + i of all rows x query heads of the KV head, for i < 16; then the item's rows
     * from the first of the step on, values after keys; a row that is none is 0, since what is read
     * there must be finite. */
    __device__ inline void prepare(int r0, int rows, int i)
    {
        const struct ks_seq &q = c.a->seq[it.seq];
        if (i < 16) {
            const int r = r0 + i, t = r / Z::per_kv, h = it.g * Z::per_kv + r % Z::per_kv;
            if (r < rows)
                bring<D>(words_of(q.t0 + t) + h * D, (const float *)layer_at(layer).q_norm,
                         rope_of(q.pos0 + t), (char *)(c.s->a.q + i * (D + 8)),
                         (char *)(c.s->a.q + i * (D + 8) + 256), NULL, c.a->attn_scale);
            return;
        }
        const int keys = (it.hi - it.lo) * 16, first = it.base + it.lo * 16;
        const int from = max(q.pos0 - first, 0), j = i - 16;
        const int row_at = from + (Z::derived ? j : j / 2), k = first + row_at - q.pos0;
        const bool values = Z::derived || j & 1;
        if (row_at >= keys) return;
        char *to = c.s->ring + line(row_at, !Z::derived && values);
        char *far = c.s->ring + line(row_at, 1); /* elements from 256 on */
        if (k >= q.n) {
#pragma unroll
            for (int m = 0; m < D / 128; m++)
                *(uint2 *)((m < 2 ? to : far) + (128 * (m & 1) + 4 * c.lane) * 2) =
                    make_uint2(0, 0);
        } else {
            const int t = q.t0 + k, part = values && !Z::derived ? Z::G : 0;
            bring<D>(words_of(t) + (KS_H + part + it.g) * D,
                     values ? NULL : (const float *)layer_at(layer).k_norm,
                     values ? NULL : rope_of(q.pos0 + k), to, far,
                     c.a->kv[layer].rows + (int64_t)t * Z::kv_row + (part + it.g) * D * 2, 1.0f);
        }
        __syncwarp();
        if (Z::derived) turn<1>(n, it, row_at, row_at + 1, false);
    }

    /* is key j visible to row r of the item */
    __device__ inline bool sees(int r, int j) const
    {
        const struct ks_args &a = *c.a;
        const struct ks_mask &m = a.mask[!Z::derived];
        const struct ks_seq &q = a.seq[it.seq];
        const int d = q.pos0 + r / Z::per_kv - j;
        return r < q.n * Z::per_kv && d >= 0 && d < m.window && (d < m.near || j < m.sinks);
    }

    /* Keys of a layer that keeps values: b of two tiles of keys, kt; far: kt + D / 32 */
    __device__ inline void derive(uint32_t (&b)[4], int kt) const
    {
        const int q = c.lane & 3;
        const float2 w0 = *(const float2 *)(c.s->a.k_norm + 16 * kt + 2 * q);
        const float2 w1 = *(const float2 *)(c.s->a.k_norm + 16 * kt + 2 * q + 8);
#pragma unroll
        for (int i = 0; i < 4; i++) {
            const float2 w = i & 1 ? w1 : w0;
            b[i] = kk__pack2(lo_of(b[i]) * w.x, hi_of(b[i]) * w.y);
        }
    }
    /* Scores of 16 keys, group kg of the split, by one warp: s[n][..] of keys 8 n .. */
    static constexpr int TURN = Z::derived ? Z::R / 16 : 0;
    __device__ inline void tile(float (&s)[2][4], uint32_t qa, const uint32_t (&b)[4]) const
    {
        uint32_t a[4];
        ldsm(a, qa);
        kk__mma(s[0], a[0], a[1], a[2], a[3], b[0], b[1]);
        kk__mma(s[1], a[0], a[1], a[2], a[3], b[2], b[3]);
    }
    __device__ inline void scores(float (&s)[2][4], int kg)
    {
        const int lane = c.lane, i = (kg - it.lo) * 16 + (lane >> 4) * 8 + (lane & 7);
        const uint32_t qa =
            smem_at(c.s->a.q) + ((lane & 7) + (lane >> 3 & 1) * 8) * (D + 8) * 2 + (lane >> 4) * 16;
        const uint32_t ring = smem_at(c.s->ring);
        uint32_t b[4];
#pragma unroll
        for (int m = 0; m < 2; m++) s[m][0] = s[m][1] = s[m][2] = s[m][3] = 0;
#pragma unroll 1
        for (int half = 0; half < D / 256; half++) {
            const uint32_t at = ring + line(i, half) + (lane >> 3 & 1) * 16;
            const uint32_t swap = ((lane >> 3 & 1) ^ (i & 7)) * 16;
#pragma unroll 2
            for (int kt = 0; kt < TURN; kt++) {
                ldsm(b, ring + turned_at(n, it, i) + half * 128 + (kt * 32 ^ swap));
                tile(s, qa + (half * 16 + kt) * 32, b);
            }
#pragma unroll 4
            for (int kt = TURN; kt < 16; kt++) {
                ldsm(b, at + kt * 32);
                if (Z::derived) derive(b, half * 16 + kt);
                tile(s, qa + (half * 16 + kt) * 32, b);
            }
        }
    }

    /* Mask; the largest score of each row of the group */
    __device__ inline void tops(float (&s)[2][4], int kg, int r0)
    {
        const int g = c.lane >> 2, q = c.lane & 3, key = it.base + kg * 16 + 2 * q;
        const struct ks_mask &mask = c.a->mask[!Z::derived];
        const struct ks_seq &sq = c.a->seq[it.seq];
        /* every row sees all 16 */
        const bool all = it.base + kg * 16 + 15 <= sq.pos0 &&
                         sq.pos0 + sq.n - 1 - it.base - kg * 16 < min(mask.window, mask.near);
#pragma unroll
        for (int k = 0; k < 2; k++) {
            float m = -INFINITY;
#pragma unroll
            for (int n = 0; n < 2; n++)
#pragma unroll
                for (int e = 0; e < 2; e++) {
                    float &v = s[n][2 * k + e];
                    if (!all && !sees(r0 + g + 8 * k, key + 8 * n + e)) v = -INFINITY;
                    m = fmaxf(m, v);
                }
            m = fmaxf(m, __shfl_xor_sync(FULL_MASK, m, 1));
            m = fmaxf(m, __shfl_xor_sync(FULL_MASK, m, 2));
            if (q == 0) c.s->a.top[kg][g + 8 * k] = m;
        }
    }
    __device__ inline float top_of(int r) const
    {
        float m = -INFINITY;
#pragma unroll
        for (int k = 0; k < 8; k++) {
            const float x = c.s->a.top[k][r];
            if (k >= it.lo && k < it.hi) m = fmaxf(m, x);
        }
        return m;
    }
    __device__ inline void weights(const float (&s)[2][4], int kg)
    {
        struct attn_smem &w = c.s->a;
        const int g = c.lane >> 2, q = c.lane & 3;
#pragma unroll
        for (int k = 0; k < 2; k++) {
            const float m = top_of(g + 8 * k);
            float p[2][2], l;
#pragma unroll
            for (int n = 0; n < 2; n++)
#pragma unroll
                for (int e = 0; e < 2; e++)
                    p[n][e] = m == -INFINITY ? 0 : kk__exp2((s[n][2 * k + e] - m) * LOG2E);
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
        const struct ks_seq &q = c.a->seq[it.seq];
        return (q.kind[!Z::derived].pair0 + it.index * q.n + r / Z::per_kv) * KS_H +
               it.g * Z::per_kv + r % Z::per_kv;
    }

    /* p V, a warp D / 16 of the head's elements; and m, l */
    __device__ inline void publish(int r0)
    {
        constexpr int NB = D / 256; /* blocks of 16 elements */
        const struct ks_args &a = *c.a;
        struct attn_smem &w = c.s->a;
        const int lane = c.lane, g = lane >> 2, q = lane & 3;
        const int d0 = c.warp * (D / 16), rows = a.seq[it.seq].n * Z::per_kv;
        float o[2 * NB][4] = {};
        const uint32_t pa = smem_at(w.p) +
                            ((lane & 7) + (lane >> 3 & 1) * 8) * (KK_CUDA_SPLIT + 8) * 2 +
                            (lane >> 4) * 16;
        const uint32_t ring = smem_at(c.s->ring) + ((d0 & 255) + (lane >> 4) * 8) * 2;
        uint32_t at = line((lane & 7) + (lane >> 3 & 1) * 8, Z::derived ? d0 >> 8 : 1);
#pragma unroll 2
        for (int kg = it.lo; kg < it.hi; kg++) {
            uint32_t p[4], v[4];
            ldsm(p, pa + kg * 32);
#pragma unroll
            for (int b = 0; b < NB; b++) {
                ldsm_t(v, ring + at + b * 32);
                kk__mma(o[2 * b], p[0], p[1], p[2], p[3], v[0], v[1]);
                kk__mma(o[2 * b + 1], p[0], p[1], p[2], p[3], v[2], v[3]);
            }
            at += 16 * KS_LINE;
            if (at >= KS_RING) at -= KS_RING;
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
        if (c.warp == KS_CONSUMERS - 1 && lane < 16 && r0 + lane < rows) {
            float l = w.sum[it.lo][lane];
#pragma unroll 1
            for (int k = it.lo + 1; k < it.hi; k++) l += w.sum[k][lane];
            store_words(a.part_ml + pair_of(r0 + lane) * 2, top_of(lane), l, tag);
        }
    }

    /* Stored rows come: of 16 keys by a warp, which is the one that scores them; of their
     * values, where there are both, by the other half of the warps. */
    __device__ inline void fetch()
    {
        const bool values = !Z::derived && c.warp >= 8;
        const int kg = c.warp - (values ? 8 : 0), i0 = (kg - it.lo) * 16;
        const int page = Z::derived && kg < 8 ? page_of(*c.a, it, layer) : -1;
        if (page >= 0) await_rows(c, page, kg); /* of all of it, before it is left */
        if (kg < it.lo || kg >= it.hi) return;
        const int end = min(stored_rows(*c.a, it) - i0, 16), part = values ? Z::G * D * 2 : 0;
        const uint32_t ring = smem_at(c.s->ring) + c.lane * 16;
#pragma unroll 4
        for (int r = 0; r < end; r++) {
            const char *from = (const char *)rows[i0 + r] + part + c.lane * 16;
            copy16(ring + line(i0 + r, values), from);
            if (D == 512) copy16(ring + line(i0 + r, 1), from + 512);
        }
    }

    /* 16 rows at a time. Warps that score prepare rows last. */
    __device__ inline void run()
    {
        const struct ks_seq &q = c.a->seq[it.seq];
        const int rows = q.n * Z::per_kv, slots = item_slots<D>(it), kg = c.warp;
        const int keys = (it.hi - it.lo) * 16, stored = stored_rows(*c.a, it);
        const bool mine = kg >= it.lo && kg < it.hi;
        mark(layer, M_ATTN);
        arrived();
        fetch();
        if (Z::derived) {
#pragma unroll 1
            for (int i = c.warp; i < c.warp + 128; i += 64) turn<4>(n, it, i, stored, i < 64);
            const int tid = c.warp * 32 + c.lane;
            c.s->a.k_norm[tid] = __ldg((const float *)layer_at(layer).k_norm + tid);
        } else {
            warps_meet<MEET_ALL, KS_CONSUMERS * 32>(); /* x is no longer read */
        }
#pragma unroll 1
        for (int r0 = 0; r0 < rows; r0 += 16) {
            const int end = r0 ? 16 : 16 + (keys - stored) * (Z::derived ? 1 : 2);
            float p[2][4];
#pragma unroll 1
            for (int k = 0; k < end; k += 16) {
                const int i = k + (k & 16 ? 7 - c.warp & 15 : c.warp + 8 & 15);
                if (i < end) prepare(r0, rows, i);
            }
            if (!r0) {
                copies_wait();
                /* this is not how bulk copies write, which come next */
                asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
            }
            warps_meet<MEET_ALL, KS_CONSUMERS * 32>();
            mark(layer, M_Q);
            if (mine) {
                scores(p, kg);
                tops(p, kg, r0);
            }
            mark(layer, M_SCORES);
            warps_meet<MEET_ALL, KS_CONSUMERS * 32>();
            if (mine) weights(p, kg);
            warps_meet<MEET_ALL, KS_CONSUMERS * 32>();
            publish(r0);
            warps_meet<MEET_ALL, KS_CONSUMERS * 32>(); /* q and p are no longer read */
            mark(layer, M_PART);
        }
        if (c.warp == 15 && c.lane < slots)
            bar_arrive4(&c.s->empty[(n + (uint32_t)c.lane) % KS_SLOTS]);
        __syncwarp();
        n += (uint32_t)slots;
    }
};

/* The SM's splits of a layer */
template <int D> __device__ inline void attend()
{
    const struct context c = who(0);
    struct walk &w = here();
    const int layer = w.layer;
    const uint32_t tag = now_tag();
    uint32_t n = w.n;
    int k = w.items;
    for (struct items<D> i; i.next(); k++) {
        bar_wait(&c.s->found[k & 1], k >> 1 & 1, 32, (uint32_t)k);
        struct split_work<D> work = {
            c, n, i.it, c.s->row[k & 1], layer, tag
        };
        work.run();
        n = work.n;
        if (c.warp == 15 && c.lane == 0) bar_arrive(&c.s->done[k & 1]);
    }
    __syncwarp();
    w.n = n, w.items = k;
    __syncwarp();
}

__device__ __noinline__ void attend_full()
{
    attend<512>();
}

__device__ __noinline__ void attend_window()
{
    attend<256>();
}

__device__ inline void attention()
{
    if (now().full)
        attend_full();
    else
        attend_window();
}

} // namespace

#endif
