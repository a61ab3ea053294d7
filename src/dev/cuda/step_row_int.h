/* Private to step.cu: what consumers do between products: the residual stream and its norms. */
#ifndef KK_DEV_CUDA_STEP_ROW_INT_H
#define KK_DEV_CUDA_STEP_ROW_INT_H

#include "dev/cuda/step_words_int.h"

namespace
{

/* ---- consumers: the residual stream (0020: sums over a row) ----
 * All 16 warps. A lane of the row's sums is two threads, of warp w and of warp w + 8, both with the
 * lane's elements; the first half's threads sum. */

/* The sum of 256 lanes' v. Sums that follow each other take turns with tmp's halves, so that one
 * meeting is enough. */
__device__ inline float row_sum(const struct context &c, float v, int turn)
{
    float *tmp = c.s->tmp[turn];
    if (c.warp < 8) {
        v = kk__warp_sum(v);
        if (c.lane == 0) tmp[c.warp] = v;
    }
    warps_meet<MEET_ALL, KS_CONSUMERS * 32>();
    v = tmp[0];
#pragma unroll
    for (int i = 1; i < 8; i++) v += tmp[i];
    return v;
}

/* Two rows at once: a half of the warps has one, the other half the other. */
__device__ inline float own_row_sum(const struct context &c, float v)
{
    float *tmp = c.s->tmp[2 + (c.warp >> 3)];
    v = kk__warp_sum(v);
    if (c.lane == 0) tmp[c.warp & 7] = v;
    warps_meet<MEET_ALL, KS_CONSUMERS * 32>();
    v = tmp[0];
#pragma unroll
    for (int i = 1; i < 8; i++) v += tmp[i];
    return v;
}

/* A lane's elements of a row: 4 l .. 4 l + 3 of each 1024; zeros past its end, which change no sum
 * of squares. */
struct twelve {
    float v[12];
    __device__ inline void set(int c, float4 f)
    {
        v[4 * c] = f.x, v[4 * c + 1] = f.y, v[4 * c + 2] = f.z, v[4 * c + 3] = f.w;
    }
    __device__ inline float4 get(int c) const
    {
        return make_float4(v[4 * c], v[4 * c + 1], v[4 * c + 2], v[4 * c + 3]);
    }
    __device__ inline void load(const float *p, int l)
    {
#pragma unroll
        for (int c = 0; c < 3; c++)
            set(c, c < 2 || l < 192 ? *(const float4 *)(p + 1024 * c + 4 * l)
                                    : make_float4(0, 0, 0, 0));
    }
    /* Past the row's end any: what they are used with is 0. */
    __device__ inline void ask(const float *p, int l)
    {
#pragma unroll
        for (int c = 0; c < 3; c++) set(c, load4(p + (c < 2 || l < 192 ? 1024 * c : 0) + 4 * l));
    }
    __device__ inline void take(const uint64_t *p, int l, uint32_t tag, int what)
    {
        struct watch w = {0};
        for (;;) {
            uint32_t bad = 0;
#pragma unroll
            for (int c = 0; c < 3; c++)
                if (c < 2 || l < 192) {
                    const struct two_words a = load_words(p + 1024 * c + 4 * l);
                    const struct two_words b = load_words(p + 1024 * c + 4 * l + 2);
                    v[4 * c] = __uint_as_float(a.v0), v[4 * c + 1] = __uint_as_float(a.v1);
                    v[4 * c + 2] = __uint_as_float(b.v0), v[4 * c + 3] = __uint_as_float(b.v1);
                    bad |= (a.tag0 ^ tag) | (a.tag1 ^ tag) | (b.tag0 ^ tag) | (b.tag1 ^ tag);
                } else {
                    v[4 * c] = v[4 * c + 1] = v[4 * c + 2] = v[4 * c + 3] = 0;
                }
            if (!bad) return;
            still_waiting(w, what, bad);
        }
    }
    __device__ inline float squares() const
    {
        float s = 0;
#pragma unroll
        for (int i = 0; i < 12; i++) s = __fmaf_rn(v[i], v[i], s);
        return s;
    }
};

/* y = bf16(rms(h) * w): to shared memory where there is one row, else to all SMs. */
__device__ inline void leave(const struct context &c, const struct twelve &h, float factor,
                             const struct twelve &w, int which, int t, int l, uint32_t tag)
{
    const struct ks_args &a = *c.a;
#pragma unroll
    for (int k = 0; k < 3; k++) {
        if (k == 2 && l >= 192) continue;
        uint32_t y[2];
#pragma unroll
        for (int i = 0; i < 2; i++)
            y[i] = kk__pack2((h.v[4 * k + 2 * i] * factor) * w.v[4 * k + 2 * i],
                             (h.v[4 * k + 2 * i + 1] * factor) * w.v[4 * k + 2 * i + 1]);
        const int at = 1024 * k + 4 * l;
        if (a.T == 1)
            *(uint2 *)(c.s->x[which ? which - 1 : 0] + at) = make_uint2(y[0], y[1]);
        else
            store_words(a.x[which] + t * (KS_C / 2) + at / 2, __uint_as_float(y[0]),
                        __uint_as_float(y[1]), tag);
    }
}

__device__ inline void keep_h(const struct context &c, const struct twelve &h, int l)
{
#pragma unroll
    for (int k = 0; k < 3; k++)
        if (k < 2 || l < 192) *(float4 *)(c.s->h + 1024 * k + 4 * l) = h.get(k);
}

__device__ inline void tap_h(const struct context &c, const struct twelve &h, int t, int l,
                             int layer)
{
    const struct ks_args &a = *c.a;
    if (a.T == 1 && blockIdx.x) return;
#pragma unroll 1
    for (int s = 0; s < 2; s++) {
        if (!a.tap_dst[s] || a.tap[s][layer] < 0) continue;
        float *to = a.tap_dst[s] + ((int64_t)t * a.tap_n[s] + a.tap[s][layer]) * KS_C;
#pragma unroll
        for (int k = 0; k < 3; k++)
            if (k < 2 || l < 192) *(float4 *)(to + 1024 * k + 4 * l) = h.get(k);
    }
}

__device__ inline void embed_row(int t)
{
    const uint32_t tag = now_tag();
    const struct context c = who(0);
    const struct ks_args &a = *c.a;
    const int id = __ldg(a.ids + t), l = (c.warp & 7) * 32 + c.lane;
    const bool there = id >= 0 && id < a.vocab;
    struct twelve h, w;
    if (!there && l == 0 && a.fault) a.fault->id = id, a.fault->bound = a.vocab;
    w.ask(a.first_norm, l);
    const char *row =
        a.table + (int64_t)(id >> 3) * (KS_C / KK_TILE_K * KK_TILE_BYTES) + (id & 7) * 32;
#pragma unroll
    for (int k = 0; k < 3; k++) {
        uint2 v = make_uint2(0, 0);
        const int at = 1024 * k + 4 * l;
        if (there && at < KS_C)
            v = __ldg((const uint2 *)(row + (at >> 4) * KK_TILE_BYTES + (at & 15) * 2));
        h.set(k, make_float4(lo_of(v.x) * a.embed_scale, hi_of(v.x) * a.embed_scale,
                             lo_of(v.y) * a.embed_scale, hi_of(v.y) * a.embed_scale));
    }
    const float f = rms_factor(row_sum(c, h.squares(), 1), KS_C, a.eps);
    if (c.warp >= 8) return;
    keep_h(c, h, l);
    leave(c, h, f, w, 0, t, l, tag);
}

/* h = (h + rms(x) * post) * scale; returns the factor of rms(h). Nobody keeps h before all have
 * met again. */
__device__ inline float add_to_h(const struct context &c, const struct twelve &x,
                                 const struct twelve &post, float scale, struct twelve &h)
{
    const float f = rms_factor(row_sum(c, x.squares(), 0), KS_C, c.a->eps);
    h.load(c.s->h, (c.warp & 7) * 32 + c.lane);
#pragma unroll
    for (int i = 0; i < 12; i++) h.v[i] = (h.v[i] + (x.v[i] * f) * post.v[i]) * scale;
    return rms_factor(row_sum(c, h.squares(), 1), KS_C, c.a->eps);
}

/* Where a row's words of f32 are put when they have come, for the other half of the warps. */
__device__ inline float *shared_row(const struct context &c)
{
    return (float *)c.s->x[1]; /* and x[2]: nobody reads them now */
}

/* Both halves need all of a row: each takes a half of a lane's words. */
__device__ inline void take_row(const struct context &c, const uint64_t *from, uint32_t tag, int l)
{
    const int half = c.warp >> 3, n = half ? 2 : l < 192 ? 4 : 2;
    const uint64_t *p = from + 4 * l + (half ? 1024 : 0);
    float *to = shared_row(c) + 4 * l + (half ? 1024 : 0);
    await_words(p + (n == 4 ? 2048 : 0), tag, 20);
    struct watch w = {0};
    uint32_t v[8];
    for (;;) {
        uint32_t bad = 0;
#pragma unroll
        for (int k = 0; k < 4; k++)
            if (k < n) {
                const struct two_words x = load_words(p + (k >> 1) * 2048 + 2 * (k & 1));
                v[2 * k] = x.v0, v[2 * k + 1] = x.v1, bad |= (x.tag0 ^ tag) | (x.tag1 ^ tag);
            }
        if (!bad) break;
        still_waiting(w, 20, bad);
    }
    *(uint4 *)to = make_uint4(v[0], v[1], v[2], v[3]);
    if (n == 4) *(uint4 *)(to + 2048) = make_uint4(v[4], v[5], v[6], v[7]);
}

/* The first half's threads leave dense x, the second's that of experts and router. */
__device__ inline void row_after_attention(int t)
{
    const int layer = here().layer;
    const uint32_t tag = now_tag();
    const struct context c = who(0);
    const struct ks_args &a = *c.a;
    const struct ks_layer &y = layer_at(layer);
    const int l = (c.warp & 7) * 32 + c.lane;
    const bool second = c.warp >= 8;
    struct twelve x, h, p, n, r;
    p.ask((const float *)y.post_attn, l);
    n.ask((const float *)(second ? y.pre_ff_2 : y.pre_ff), l);
    r.ask((const float *)y.router_scale, l);
    mark(layer, M_R1);
    take_row(c, a.o + t * KS_C, tag, l);
    warps_meet<MEET_ALL, KS_CONSUMERS * 32>();
    mark(layer, M_R1_X);
    x.load(shared_row(c), l);
    const float f = add_to_h(c, x, p, 1.0f, h);
    if (!second) keep_h(c, h, l);
    leave(c, h, f, n, second ? 2 : 1, t, l, tag);
    if (second) leave(c, h, f, r, 3, t, l, tag);
}

/* The first half's threads have the dense part, the second's that of the experts, until both are
 * added; then the first half's go on. */
__device__ inline void row_after_experts(int t)
{
    const int layer = here().layer;
    const uint32_t tag = now_tag();
    const struct context c = who(0);
    const struct ks_args &a = *c.a;
    const struct ks_layer &y = layer_at(layer);
    const int l = (c.warp & 7) * 32 + c.lane;
    const bool second = c.warp >= 8;
    const uint64_t *from = (second ? a.xdown : a.down) + t * KS_C;
    const float scale = y.scalar;
    float *half = shared_row(c);
    struct twelve x, h, n, p, next;
    n.ask((const float *)(second ? y.post_ff_2 : y.post_ff_1), l);
    p.ask((const float *)y.post_ff, l);
    next.ask((const float *)y.next_norm, l);
    mark(layer, M_R2);
    await_words(from + (l < 192 ? 2048 : 1024) + 4 * l, tag, 21);
    __syncwarp();
    x.take(from, l, tag, 21);
    __syncwarp();
    const float f0 = rms_factor(own_row_sum(c, x.squares()), KS_C, a.eps);
#pragma unroll
    for (int i = 0; i < 12; i++) x.v[i] = (x.v[i] * f0) * n.v[i];
#pragma unroll
    for (int k = 0; k < 3; k++)
        if (second && (k < 2 || l < 192)) *(float4 *)(half + 1024 * k + 4 * l) = x.get(k);
    warps_meet<MEET_ALL, KS_CONSUMERS * 32>();
    if (!second) {
        n.load(half, l);
#pragma unroll
        for (int i = 0; i < 12; i++) x.v[i] += n.v[i];
    }
    const float f = add_to_h(c, x, p, scale, h);
    if (second) return;
    keep_h(c, h, l);
    tap_h(c, h, t, l, layer);
    leave(c, h, f, next, 0, t, l, tag + 1);
    mark(layer, M_R2_END);
}

/* Which row is this SM's, between products: -1: none. With one row every SM does it. */
__device__ inline int own_row()
{
    const int each = (int)(gridDim.x / KS_COLS), t = (int)blockIdx.x / each;
    const int T = block().args.T;
    return T == 1 ? 0 : t < T && t * each == (int)blockIdx.x ? t : -1;
}

/* What was left in shared memory is there. */
__device__ inline void row_is_left()
{
    __syncwarp();
    if (block().args.T == 1) warps_meet<MEET_ALL, KS_CONSUMERS * 32>();
}

__device__ __noinline__ void embed()
{
    if (own_row() >= 0) embed_row(own_row());
    row_is_left();
}

__device__ __noinline__ void after_attention()
{
    if (own_row() >= 0) row_after_attention(own_row());
    row_is_left();
}

__device__ __noinline__ void after_experts()
{
    if (own_row() >= 0) row_after_experts(own_row());
    row_is_left();
}

} // namespace

#endif
