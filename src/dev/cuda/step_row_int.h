/* Private to step.cu: what consumers do between products: the residual stream and its norms. */
#ifndef KK_DEV_CUDA_STEP_ROW_INT_H
#define KK_DEV_CUDA_STEP_ROW_INT_H

#include "dev/cuda/step_sync_int.h"

namespace
{

/* ---- consumers: the residual stream (0020: sums over a row) ----
 * All 16 warps. A lane of the row's sums is two threads, of warp w and of warp w + 8, both with the
 * lane's elements; the first half's threads sum. */

/* Sums of 256 lanes' v: their 8 warps say theirs, all warps meet, and who needs the sum adds up.
 * Sums that follow each other take turns with tmp's parts, so that one meeting is enough. */
__device__ inline void say_sum(const struct context &c, int turn, float v)
{
    v = kk__warp_sum(v);
    if (c.lane == 0) c.s->tmp[turn][c.warp & 7] = v;
}

__device__ inline float sum_said(const struct context &c, int turn)
{
    float v = c.s->tmp[turn][0];
#pragma unroll
    for (int i = 1; i < 8; i++) v += c.s->tmp[turn][i];
    return v;
}

__device__ inline void all_meet()
{
    warps_meet<MEET_ALL, KS_CONSUMERS * 32>();
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
        uint32_t raw[12];
#pragma unroll
        for (int i = 8; i < 12; i++) raw[i] = 0;
        take_pairs<6, 1024>(raw, p + 4 * l, l < 192 ? 6 : 4, tag, what);
#pragma unroll
        for (int i = 0; i < 12; i++) v[i] = __uint_as_float(raw[i]);
    }
    __device__ inline float squares() const
    {
        float s = 0;
#pragma unroll
        for (int i = 0; i < 12; i++) s = __fmaf_rn(v[i], v[i], s);
        return s;
    }
};

__device__ inline float rms_factor(float sum, float n, float eps)
{
    return __frsqrt_rn(__fadd_rn(__fdiv_rn(sum, n), eps));
}

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
    if (block().args.T == 1) all_meet();
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
    if (c.warp < 8) say_sum(c, 1, h.squares());
    all_meet();
    if (c.warp >= 8) return;
    keep_h(c, h, l);
    leave(c, h, rms_factor(sum_said(c, 1), KS_C, a.eps), w, 0, t, l, tag);
}

__device__ __noinline__ void embed()
{
    if (own_row() >= 0) embed_row(own_row());
    row_is_left();
}

/* The first half's: h = (h + rms(x) * post) * scale, where x's sum has been said in turn 0; h's is
 * said in turn 1. */
__device__ inline void add_to_h(const struct context &c, const struct twelve &x,
                                const struct twelve &post, float scale, struct twelve &h, int l)
{
    const float f = rms_factor(sum_said(c, 0), KS_C, c.a->eps);
    h.load(c.s->h, l);
#pragma unroll
    for (int i = 0; i < 12; i++) h.v[i] = (h.v[i] + (x.v[i] * f) * post.v[i]) * scale;
    keep_h(c, h, l);
    say_sum(c, 1, h.squares());
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
    uint32_t v[8];
    take_pairs<4, 2048>(v, p, n, tag, 20);
    *(uint4 *)to = make_uint4(v[0], v[1], v[2], v[3]);
    if (n == 4) *(uint4 *)(to + 2048) = make_uint4(v[4], v[5], v[6], v[7]);
}

/* The first half's warps add to h and leave dense x, the second's leave that of experts and router. */
__device__ inline void row_after_attention(int t)
{
    const struct context c = who(0);
    const struct ks_args &a = *c.a;
    const struct ks_layer &y = now();
    const uint32_t tag = now_tag();
    const int l = (c.warp & 7) * 32 + c.lane;
    struct twelve h, v, w;
    if (c.warp < 8) {
        struct twelve x;
        v.ask((const float *)y.post_attn, l), w.ask((const float *)y.pre_ff, l);
        mark(here().layer, M_R1);
        take_row(c, a.o + t * KS_C, tag, l);
        all_meet();
        mark(here().layer, M_R1_X);
        x.load(shared_row(c), l);
        say_sum(c, 0, x.squares());
        all_meet();
        add_to_h(c, x, v, 1.0f, h, l);
        all_meet();
        leave(c, h, rms_factor(sum_said(c, 1), KS_C, a.eps), w, 1, t, l, tag);
    } else {
        v.ask((const float *)y.pre_ff_2, l), w.ask((const float *)y.router_scale, l);
        take_row(c, a.o + t * KS_C, tag, l);
        all_meet();
        all_meet();
        all_meet();
        h.load(c.s->h, l);
        const float f = rms_factor(sum_said(c, 1), KS_C, a.eps);
        leave(c, h, f, w, 3, t, l, tag);
        leave(c, h, f, v, 2, t, l, tag);
    }
}

__device__ __noinline__ void after_attention()
{
    if (own_row() >= 0) row_after_attention(own_row());
    row_is_left();
}

/* The first half's warps have the dense part, the second's that of the experts, until both are
 * added; then the first half's go on. */
__device__ inline void row_after_experts(int t)
{
    const struct context c = who(0);
    const struct ks_args &a = *c.a;
    const struct ks_layer &y = now();
    const uint32_t tag = now_tag();
    const int l = (c.warp & 7) * 32 + c.lane;
    float *half = shared_row(c);
    struct twelve x, n;
    if (c.warp < 8) {
        struct twelve h, p, next;
        n.ask((const float *)y.post_ff_1, l), p.ask((const float *)y.post_ff, l);
        mark(here().layer, M_R2);
        x.take(a.down + t * KS_C, l, tag, 21);
        next.ask((const float *)y.next_norm, l);
        say_sum(c, 2, x.squares());
        all_meet();
        const float f = rms_factor(sum_said(c, 2), KS_C, a.eps);
        all_meet();
        h.load(half, l);
#pragma unroll
        for (int i = 0; i < 12; i++) x.v[i] = (x.v[i] * f) * n.v[i] + h.v[i];
        say_sum(c, 0, x.squares());
        all_meet();
        add_to_h(c, x, p, y.scalar, h, l);
        all_meet();
        tap_h(c, h, t, l, here().layer);
        leave(c, h, rms_factor(sum_said(c, 1), KS_C, a.eps), next, 0, t, l, tag + 1);
        mark(here().layer, M_R2_END);
    } else {
        n.ask((const float *)y.post_ff_2, l);
        x.take(a.xdown + t * KS_C, l, tag, 21);
        say_sum(c, 3, x.squares());
        all_meet();
        const float f = rms_factor(sum_said(c, 3), KS_C, a.eps);
#pragma unroll
        for (int i = 0; i < 12; i++) x.v[i] = (x.v[i] * f) * n.v[i];
#pragma unroll
        for (int k = 0; k < 3; k++)
            if (k < 2 || l < 192) *(float4 *)(half + 1024 * k + 4 * l) = x.get(k);
        all_meet();
        all_meet();
        all_meet();
    }
}

__device__ __noinline__ void after_experts()
{
    if (own_row() >= 0) row_after_experts(own_row());
    row_is_left();
}

} // namespace

#endif
