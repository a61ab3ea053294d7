/* The persistent decode step: one kernel for embedding, layers and head of Gemma-4-26B-A4B's
 * geometry, 1 to 8 rows, in the order of docs/adr/0020; its design is docs/adr/0024.
 *
 * One block on each multiprocessor (SM), 19 warps in three roles that meet only in mbarriers:
 *   producer  (1 warp)   walks the step's weights and KV rows in order and keeps a ring of slots in
 *                        shared memory full; it stops for a full ring, for the window of bytes in
 *                        flight and for the router, never for activations.
 *   consumers (16 warps) four quads; a warp multiplies one chain of a stripe (two where K is 4096),
 *                        weights as operand B, activations as A in registers. They also do what
 *                        stands between products: residual and norms, and splits of attention.
 *   reducers  (2 warps)  add chains in order, apply what follows, publish; merge splits.
 * There is no barrier between SMs. What one SM computes for others are words of 8 bytes, {payload,
 * tag}: a reader polls until the tag is that of the layer and step. */
#include "dev/cuda/step_row_int.h"
#include "dev/cuda/step_split_int.h"
#include "dev/cuda/step_sync_int.h"

namespace
{

/* ---- producer ---- */

/* Slots n, n + 1, .. n + count - 1 from one place, by one lane: the one loop that fills slots. */
__device__ __noinline__ void fill(uint32_t n, const char *from, int bytes, int count, uint32_t win)
{
    struct smem &s = block();
    uint32_t slot = n % KS_SLOTS, phase = (n / KS_SLOTS & 1) ^ 1;
#pragma unroll 1
    for (; count; count--, from += bytes, n++) {
        bar_wait(&s.empty[slot], (int)phase, 1, n);
        if (n >= win) {
            int back = (int)slot - (int)win, ph = (int)phase ^ 1;
            if (back < 0) back += KS_SLOTS, ph ^= 1;
            bar_wait(&s.full[back], ph, 2, n);
        }
        bar_expect(&s.full[slot], bytes);
        bulk(smem_at(s.ring) + slot * KS_SLOT, from, bytes, &s.full[slot]);
        if (++slot == KS_SLOTS) slot = 0, phase ^= 1;
    }
}

/* Rows are copied by lanes, 16 bytes each: a bulk copy of half a KB would take one lane 70 ns. */
__device__ inline void copy16(uint32_t dst, const char *src)
{
    asm volatile("cp.async.cg.shared.global [%0],[%1],16;" ::"r"(dst), "l"(src) : "memory");
}

/* The lane's copies so far are one more arrival, when they are done. */
__device__ inline void copies_arrive(uint64_t *b)
{
    asm volatile("cp.async.mbarrier.arrive.shared::cta.b64 [%0];" ::"r"(smem_at(b)) : "memory");
}

/* Stored rows of an item */
__device__ inline int stored_rows(const struct ks_args &a, const struct item &it)
{
    return min(max(a.seq[it.seq].pos0 - it.base - it.lo * 16, 0), (it.hi - it.lo) * 16);
}

/* Look up where they are: two loads, one after another. */
template <int D> __device__ inline void find_rows(const struct item &it, int layer)
{
    const struct context c = who(KS_CONSUMERS + KS_REDUCERS);
    const struct kk_kv_seq *q = c.a->kv[layer].seqs + it.seq;
    const unsigned long long *blocks = (const unsigned long long *)q->blocks;
    const int block_rows = q->block_rows, sinks = q->sinks, ring = q->ring;
    const int from = it.base + it.lo * 16, stored = stored_rows(*c.a, it);
    __syncwarp();
#pragma unroll
    for (int k = 0; k < KK_CUDA_SPLIT / 32; k++) {
        const int i = c.lane + 32 * k, j = from + i;
        const int at = !ring || j < sinks ? j : sinks + (j - sinks) % ring;
        if (i < stored)
            c.s->row[i] = __ldg(blocks + at / block_rows) +
                          (uint64_t)(at % block_rows) * shape<D>::kv_row + (uint64_t)(it.g * D * 2);
    }
    __syncwarp();
}

/* All of an item may be in flight: others' streams stand still meanwhile. */
template <int D> __device__ inline uint32_t feed_rows(uint32_t n, const struct item &it)
{
    typedef struct shape<D> Z;
    const struct context c = who(KS_CONSUMERS + KS_REDUCERS);
    struct smem &s = *c.s;
    const int keys = (it.hi - it.lo) * 16, stored = stored_rows(*c.a, it);
#pragma unroll 1
    for (int part = 0; part < (Z::derived ? 1 : 2); part++)
#pragma unroll 1
        for (int i = 0; i < keys; i += Z::keys, n++) {
            const uint32_t slot = n % KS_SLOTS;
            const int end = min(i + Z::keys, stored);
            uint32_t to = smem_at(s.ring) + slot * KS_SLOT + c.lane * 16;
            if (c.lane == 0) bar_wait(&s.empty[slot], (int)(n / KS_SLOTS & 1) ^ 1, 1, n);
            __syncwarp();
#pragma unroll 2
            for (int r = i; r < end; r++, to += Z::row) {
                const char *p = (const char *)s.row[r] + part * Z::G * D * 2 + c.lane * 16;
                copy16(to, p);
                if (D == 512) copy16(to + 512, p + 512);
            }
            if (end > i) copies_arrive(&s.full[slot]);
            __syncwarp();
            if (c.lane == 0) bar_arrive(&s.full[slot]);
        }
    return n;
}

/* The SM's first item of a layer, found while there is still much in the ring */
template <int D> __device__ inline void find_first(int layer)
{
    const struct ks_args &a = block().args;
    struct item it;
    for (int b = 0; b < a.B; b++) {
        int wrap, v = first_item(D == 256, b, wrap);
        if (v == INT32_MAX || !make_item(a, D == 256, b, v, shape<D>::G, it)) continue;
        find_rows<D>(it, layer);
        return;
    }
}

template <int D> __device__ inline uint32_t feed_attention(uint32_t n, int layer)
{
    const struct ks_args &a = block().args;
    bool found = true;
    for (int b = 0; b < a.B; b++) {
        int wrap, v = first_item(D == 256, b, wrap);
        struct item it;
        if (v == INT32_MAX) continue;
        for (; make_item(a, D == 256, b, v, shape<D>::G, it); v += wrap, found = false) {
            if (!found) find_rows<D>(it, layer);
            n = feed_rows<D>(n, it);
        }
    }
    return n;
}

/* Row t's KS_A largest logits, ties to the lowest index, and their weights (0020): lane e < KS_A
 * keeps the e-th. */
__device__ inline void choose(const struct context &c, int t, const float *scale, uint32_t tag)
{
    struct smem &s = *c.s;
    uint32_t k[4];
    float top = 0;
    int id = 0;
    take_words<2>(k, c.a->router + t * KS_E + c.lane * 4, 2, 2, tag, 3);
    __syncwarp();
#pragma unroll
    for (int j = 0; j < 4; j++) /* the order of floats as that of integers; never 0 */
        k[j] = k[j] & 0x80000000u ? ~k[j] : k[j] | 0x80000000u;
#pragma unroll 1
    for (int e = 0; e < KS_A; e++) {
        const uint32_t mine = max(max(k[0], k[1]), max(k[2], k[3]));
        const uint32_t best = __reduce_max_sync(FULL_MASK, mine);
        const int who = __ffs((int)__ballot_sync(FULL_MASK, mine == best)) - 1;
        const int at = k[0] == best ? 0 : k[1] == best ? 1 : k[2] == best ? 2 : 3;
        const int found = __shfl_sync(FULL_MASK, c.lane * 4 + at, who);
#pragma unroll
        for (int j = 0; j < 4; j++)
            if (c.lane == who && j == at) k[j] = 0;
        if (c.lane == e) {
            top = __uint_as_float(best & 0x80000000u ? best & 0x7fffffffu : ~best);
            id = found;
        }
    }
    const float w = expf(top - __shfl_sync(FULL_MASK, top, 0));
    float sum = __shfl_sync(FULL_MASK, w, 0);
#pragma unroll
    for (int e = 1; e < KS_A; e++) sum += __shfl_sync(FULL_MASK, w, e);
    if (c.lane < KS_A) {
        s.chosen[t][c.lane] = id;
        s.chosen_w[t][c.lane] = w / sum * scale[id];
    }
    __syncwarp();
}

/* All rows' choices as distinct experts in ascending order. */
__device__ inline void route(const float *scale, uint32_t tag)
{
    const struct context c = who(KS_CONSUMERS + KS_REDUCERS);
    struct smem &s = *c.s;
    const int T = c.a->T, n = T * KS_A;
    uint32_t bits[4] = {0, 0, 0, 0};
#pragma unroll 1
    for (int t = 0; t < T; t++) choose(c, t, scale, tag);
#pragma unroll 1
    for (int i = c.lane; i < n; i += 32) {
        const int e = s.chosen[i / KS_A][i % KS_A];
#pragma unroll
        for (int j = 0; j < 4; j++)
            if (e >> 5 == j) bits[j] |= 1u << (e & 31);
    }
    int before = 0, below[4];
#pragma unroll
    for (int j = 0; j < 4; j++) {
        bits[j] = __reduce_or_sync(FULL_MASK, bits[j]);
        below[j] = before;
        before += __popc(bits[j]);
    }
    for (int i = c.lane; i < KS_UNION; i += 32) s.rows_of[i] = 0;
    __syncwarp();
#pragma unroll 1
    for (int i = c.lane; i < n; i += 32) {
        const int e = s.chosen[i / KS_A][i % KS_A], t = i / KS_A;
        uint32_t word = 0;
        int u = 0;
#pragma unroll
        for (int j = 0; j < 4; j++)
            if (e >> 5 == j) word = bits[j], u = below[j];
        u += __popc(word & ((1u << (e & 31)) - 1));
        s.expert[u] = e;
        s.weight[u][t] = s.chosen_w[t][i % KS_A];
        atomicOr(&s.rows_of[u], 1u << t);
    }
    if (c.lane == 0) s.n_union = before;
    __syncwarp();
    if (c.lane == 0) bar_arrive(&s.routed);
}

/* nu units of gate stripes and up stripes; experts: of the SM's share of them */
__device__ inline uint32_t feed_gated(uint32_t n, uint32_t cur, bool experts)
{
    const struct smem &s = block();
    const int lane = (int)threadIdx.x & 31;
    const char *gate = (const char *)F64(4), *up = (const char *)F64(6);
    const size_t mat = F64(12), stripe = KS_QUADS * KS_SLOT;
    const uint32_t win = F(15), rank = F(11);
    int first = 0, nu = (int)F(1);
    if (experts) {
        expert_share(s.n_union, rank, first, nu);
        up = gate + KS_XSTRIPES * stripe;
    }
    if (lane == 0)
#pragma unroll 1
        for (int i = first; i < first + nu; i++) {
            const size_t at =
                experts ? s.expert[i / KS_XSTRIPES] * mat + i % KS_XSTRIPES * stripe : i * stripe;
#pragma unroll 1
            for (int k = 0; k < 2; k++, n += KS_QUADS)
                fill(n, (k ? up : gate) + at, KS_SLOT, KS_QUADS, win);
        }
    __syncwarp();
    return (uint32_t)nu * 2 * KS_QUADS;
}

__device__ inline uint32_t feed_expert_down(uint32_t n, uint32_t cur)
{
    const struct smem &s = block();
    const char *w0 = (const char *)F64(4);
    const size_t mat = F64(12);
    const uint32_t win = F(15);
    const int nu = (int)F(1), U = s.n_union;
    if (threadIdx.x % 32 == 0)
#pragma unroll 1
        for (int e = 0; e < U; e += KS_QUADS)
#pragma unroll 1
            for (int u = 0; u < nu; u++)
#pragma unroll 1
                for (int j = e; j < min(e + KS_QUADS, U); j++)
                    fill(n++, w0 + s.expert[j] * mat + (size_t)u * KS_SLOT, KS_SLOT, 1, win);
    __syncwarp();
    return (uint32_t)(nu * U);
}

__device__ inline uint32_t feed_plain(uint32_t n, uint32_t cur, int slots, int bytes)
{
    const char *w0 = (const char *)F64(4);
    const uint32_t us = F(8), win = F(15);
    int nu = (int)F(1), per = slots;
    const uint32_t all = (uint32_t)(nu * slots);
    if (us == (uint32_t)(slots * bytes)) per *= nu, nu = 1;
    if (threadIdx.x % 32 == 0)
#pragma unroll 1
        for (int u = 0; u < nu; u++, n += (uint32_t)per, w0 += us) fill(n, w0, bytes, per, win);
    __syncwarp();
    return all;
}

__device__ __noinline__ void producer(const uint32_t *pp)
{
    uint32_t n = 0, cur = __ldg(pp), nxt;
    int seg = 0;
    for (;; cur = nxt) {
        const uint32_t op = F(0), layer = F(3), flags = F(9);
        trace(op, seg++);
        if (op == KS_END) return;
        pp += 32;
        nxt = __ldg(pp);
        if (op == KS_LINEAR_QKV) {
            if (flags & KS_FULL)
                find_first<512>((int)layer);
            else
                find_first<256>((int)layer);
        }
        if (op == KS_XGLU) route((const float *)F64(16), block().args.epoch + layer);
        if (op == KS_ATTN)
            n = flags & KS_FULL ? feed_attention<512>(n, (int)layer)
                                : feed_attention<256>(n, (int)layer);
        else if (op == KS_GLU || op == KS_XGLU)
            n += feed_gated(n, cur, op == KS_XGLU);
        else if (op == KS_XDOWN)
            n += feed_expert_down(n, cur);
        else if (op != KS_EMBED && op != KS_RESID1 && op != KS_RESID2)
            n += feed_plain(n, cur,
                            op == KS_O      ? 8
                            : op == KS_DOWN ? 3
                                            : 4,
                            op == KS_O ? 8192 : KS_SLOT);
    }
}

/* ---- consumers: products ---- */

/* A warp's input: NT tiles, lane (g, q) has row g, inputs 4q .. 4q + 3 of each. GAP: tiles from 8
 * on lie 24 further (the second slot of a stripe of K 4096). p: this lane's first words; of a lane
 * that is off, any. */
template <int NT, bool GAP>
__device__ inline void load_x(uint32_t (&x)[32], const uint64_t *p, bool on, uint32_t tag, int what)
{
    if (on) await_words(p + (NT - 1 + (GAP ? 24 : 0)) * 8, tag, what);
    __syncwarp();
    struct watch w = {0};
    for (;;) {
        uint32_t bad = 0, tags[2 * NT];
#pragma unroll
        for (int t = 0; t < NT; t++) {
            struct two_words v = load_words(p + (GAP && t >= 8 ? t + 24 : t) * 8);
            x[2 * t] = v.v0, x[2 * t + 1] = v.v1;
            tags[2 * t] = v.tag0, tags[2 * t + 1] = v.tag1;
        }
#pragma unroll
        for (int t = 0; t < 2 * NT; t++) bad |= tags[t] ^ tag;
        if (!__any_sync(FULL_MASK, on && bad)) break;
        still_waiting(w, what, bad);
    }
#pragma unroll
    for (int i = 0; i < 2 * NT; i++)
        if (!on) x[i] = 0;
}

/* The same from shared memory, of row 0 */
__device__ inline void load_own_x(uint32_t (&x)[32], const bf16 *p, bool on)
{
#pragma unroll
    for (int t = 0; t < 11; t++) {
        uint2 v = make_uint2(0, 0);
        if (on) v = *(const uint2 *)(p + t * KK_TILE_K);
        x[2 * t] = v.x, x[2 * t + 1] = v.y;
    }
}

/* A quad's pieces of nu units; P quads work, SUB pieces of TILES tiles a unit. GLU: gate pieces of
 * all quads come before up pieces, x is the same; else a quad's slots are neighbours. */
template <int TILES, int SUB, bool GLU>
__device__ inline void multiply(struct place &z, const uint32_t (&x)[32], int P, int nu)
{
    struct smem &s = *z.c.s;
    const int lane = z.c.lane;
    uint32_t at = z.n + (uint32_t)(GLU ? z.quad : z.quad * SUB);
    uint32_t slot = at % KS_SLOTS, phase = at / KS_SLOTS & 1;
    const uint32_t ring = smem_at(s.ring) + (uint32_t)(z.i * TILES * KK_TILE_BYTES + lane * 8);
    const int hop = GLU ? P : (P - 1) * SUB + 1; /* from a quad's last slot to its next */
    for (int u = 0; u < nu; u++)
#pragma unroll
        for (int k = 0; k < SUB; k++, z.pieces++) {
            uint2 w[TILES];
            float d[4] = {0, 0, 0, 0};
            bar_wait(&s.full[slot], (int)phase, 4, z.n);
#pragma unroll
            for (int t = 0; t < TILES; t++)
                asm volatile("ld.shared.v2.u32 {%0,%1},[%2];"
                             : "=r"(w[t].x), "=r"(w[t].y)
                             : "r"(ring + slot * KS_SLOT + t * KK_TILE_BYTES)
                             : "memory");
#pragma unroll
            for (int t = 0; t < TILES; t++) {
                const int xt = GLU ? t : k * TILES + t;
                kk__mma(d, x[2 * xt], 0, x[2 * xt + 1], 0, w[t].x, w[t].y);
            }
            /* Loads of words clog the unit that shared memory is read through, and an arrival does
             * not stand in that queue: the slot is given back once what was read has come. */
            __syncwarp();
            if (lane == 0) bar_arrive_after(&s.empty[slot], d[0]);
            slot += GLU || k == SUB - 1 ? hop : 1;
            if (slot >= KS_SLOTS) slot -= KS_SLOTS, phase ^= 1;
            const int b = z.pieces & (KS_PIECES - 1);
            bar_wait(&s.pempty[z.quad][b], (z.pieces / KS_PIECES & 1) ^ 1, 5, z.n);
            *(float2 *)s.part[z.quad][b][z.i][lane] = make_float2(d[0], d[1]);
            __threadfence_block(); /* likewise: it is there before it is said to be */
            __syncwarp();
            if (lane == 0) bar_arrive(&s.pfull[z.quad][b]);
        }
}

/* x of a product over the model's width: which: 0 qkv and head, 1 dense, 2 experts, 3 router */
__device__ inline void load_width(struct place &z, uint32_t (&x)[32], int which, uint32_t tag)
{
    const struct ks_args &a = *z.c.a;
    const int g = z.c.lane >> 2, q = z.c.lane & 3, tile = (z.quad * 4 + z.i) * 11;
    if (a.T == 1)
        load_own_x(x, z.c.s->x[which ? which - 1 : 0] + tile * KK_TILE_K + 4 * q, g == 0);
    else
        load_x<11, false>(x, a.x[which] + (g < a.T ? g : 0) * (KS_C / 2) + tile * 8 + 2 * q,
                          g < a.T, tag, 10 + which);
}

/* Segments of products: from slot n on, `pieces` behind; all return the pieces behind then. Each is
 * a function of its own, so that none's registers are another's. */
__device__ inline struct place place_at(uint32_t n, int pieces)
{
    const struct context c = who(0);
    return {c, n, c.warp >> 2, c.warp & 3, pieces};
}

__device__ __noinline__ int consume_plain(uint32_t n, int pieces, int which, int nu, uint32_t tag)
{
    struct place z = place_at(n, pieces);
    uint32_t x[32];
    load_width(z, x, which, tag);
    multiply<11, 1, false>(z, x, KS_QUADS, nu);
    return z.pieces;
}

__device__ __noinline__ int consume_gated(uint32_t n, int pieces, int which, int nu, uint32_t tag)
{
    struct place z = place_at(n, pieces);
    uint32_t x[32];
    load_width(z, x, which, tag);
    multiply<11, 2, true>(z, x, KS_QUADS, nu);
    return z.pieces;
}

__device__ __noinline__ int consume_o(uint32_t n, int pieces, uint32_t flags, int nu, uint32_t tag)
{
    struct place z = place_at(n, pieces);
    const struct ks_args &a = *z.c.a;
    const int g = z.c.lane >> 2, q = z.c.lane & 3;
    const int width = flags & KS_FULL ? 8192 : 4096;
    const int tile = z.quad * 64 + z.i * 8 + (flags & KS_SECOND_HALF ? 256 : 0);
    uint32_t x[32];
    load_x<16, true>(x, a.attn + (g < a.T ? g : 0) * (width / 2) + tile * 8 + 2 * q, g < a.T, tag,
                     14);
    multiply<8, 2, false>(z, x, KS_QUADS, nu);
    return z.pieces;
}

__device__ __noinline__ int consume_down(uint32_t n, int pieces, int nu, uint32_t tag)
{
    struct place z = place_at(n, pieces);
    const struct ks_args &a = *z.c.a;
    const int g = z.c.lane >> 2, q = z.c.lane & 3;
    if (z.quad < 3) {
        uint32_t x[32];
        load_x<11, false>(x, a.f + (g < a.T ? g : 0) * (KS_F / 2) + (z.quad * 4 + z.i) * 88 + 2 * q,
                          g < a.T, tag, 15);
        multiply<11, 1, false>(z, x, 3, nu);
    }
    quads_meet<MEET_DOWN>(z.quad < 3);
    return z.pieces;
}

__device__ __noinline__ int consume_expert_down(uint32_t n, int pieces, int nu, uint32_t tag)
{
    struct place z = place_at(n, pieces);
    const struct ks_args &a = *z.c.a;
    struct smem &s = *z.c.s;
    const int U = s.n_union, g = z.c.lane >> 2, q = z.c.lane & 3;
#pragma unroll 1
    for (int e = 0; e < U; e += KS_QUADS) {
        const int P = min(KS_QUADS, U - e), u = e + z.quad;
        if (z.quad < P) {
            uint32_t x[32];
            const bool on = g < a.T && (s.rows_of[u] >> g & 1);
            load_x<11, false>(x, a.fx + (int64_t)(u * KS_COLS + g) * (KS_XF / 2) + z.i * 88 + 2 * q,
                              on, tag, 16);
            multiply<11, 1, false>(z, x, P, nu);
        }
        if (P < KS_QUADS) quads_meet<MEET_XDOWN>(z.quad < P);
        z.n += (uint32_t)(nu * P);
    }
    return z.pieces;
}

__device__ __noinline__ void consumer(const uint32_t *pp)
{
    const struct smem &s = block();
    uint32_t n = 0, cur = __ldg(pp), nxt;
    int pieces = 0, seg = 0;
    for (;; cur = nxt) {
        const uint32_t op = F(0), flags = F(9), layer = F(3), tag = s.args.epoch + layer;
        const int nu = (int)F(1);
        trace(op, seg++);
        if (op == KS_END) return;
        pp += 32;
        nxt = __ldg(pp);
        switch (op) {
        case KS_EMBED:
        case KS_RESID1:
        case KS_RESID2:
            between(cur, tag);
            break;
        case KS_LINEAR_QKV:
        case KS_HEAD:
        case KS_ROUTER:
            pieces = consume_plain(n, pieces, op == KS_ROUTER ? 3 : 0, nu, tag);
            n += (uint32_t)nu * 4;
            break;
        case KS_GLU:
            pieces = consume_gated(n, pieces, 1, nu, tag);
            n += (uint32_t)nu * 8;
            break;
        case KS_XGLU: {
            int first, count;
            bar_wait((uint64_t *)&s.routed, (int)layer & 1, 7, layer);
            expert_share(s.n_union, F(11), first, count);
            pieces = consume_gated(n, pieces, 2, count, tag);
            n += (uint32_t)count * 8;
            break;
        }
        case KS_ATTN:
            n = flags & KS_FULL ? attend<512>(n, cur, tag) : attend<256>(n, cur, tag);
            break;
        case KS_O:
            pieces = consume_o(n, pieces, flags, nu, tag);
            n += (uint32_t)nu * 8;
            break;
        case KS_DOWN:
            pieces = consume_down(n, pieces, nu, tag);
            n += (uint32_t)nu * 3;
            break;
        case KS_XDOWN:
            pieces = consume_expert_down(n, pieces, nu, tag);
            n += (uint32_t)(nu * s.n_union);
            break;
        default:
            break;
        }
    }
}

/* ---- reducers ---- */

/* pieces: behind, of each quad, as bytes of a word: few enough are ever waited for. units: the
 * warps take turns over all units of the step, so that neither is ever more than a lap of the
 * pieces behind what it waits for. */
struct reduce {
    struct context c;
    uint32_t pieces;
    int units;
    __device__ inline int first() const { return (c.warp ^ units) & 1; }
    /* P quads have done n pieces more, over nu units */
    __device__ inline void pass(int P, int n, int nu)
    {
#pragma unroll
        for (int j = 0; j < KS_QUADS; j++)
            if (j < P)
                pieces = (pieces & ~(0xffu << 8 * j)) | ((pieces >> 8 * j) + n & 0xff) << 8 * j;
        units += nu;
    }
};

/* The other reducer's carried sums are there. */
__device__ inline void reducers_meet()
{
    warps_meet<MEET_REDUCERS, KS_REDUCERS * 32>();
}

/* a + b, where it stands: what it reads has come before what follows is done. */
__device__ inline float add(float a, float b)
{
    float y;
    asm volatile("add.rn.f32 %0,%1,%2;" : "=f"(y) : "f"(a), "f"(b));
    return y;
}

/* Pieces from, from + 1, .. from + sub - 1 (counted from those behind) of quads j0 .. j1 - 1: their
 * chains added to y in order; first: y is their sum alone. */
__device__ __noinline__ float2 add_pieces(uint32_t pieces, int j0, int j1, int from, int sub,
                                          float2 y, bool first)
{
    struct smem &s = block();
    const int lane = (int)threadIdx.x & 31;
#pragma unroll 1
    for (int j = j0; j < j1; j++)
#pragma unroll 1
        for (int k = 0; k < sub; k++, first = false) {
            const int m = (int)(pieces >> 8 * j & 0xff) + from + k, b = m & (KS_PIECES - 1);
            float2 p[4];
            bar_wait(&s.pfull[j][b], m / KS_PIECES & 1, 8, (uint32_t)m);
#pragma unroll
            for (int i = 0; i < 4; i++) p[i] = *(const float2 *)s.part[j][b][i][lane];
            y.x = first ? p[0].x : add(y.x, p[0].x);
            y.y = first ? p[0].y : add(y.y, p[0].y);
#pragma unroll
            for (int i = 1; i < 4; i++) y.x = add(y.x, p[i].x), y.y = add(y.y, p[i].y);
            __syncwarp();
            if (lane == 0) bar_arrive(&s.pempty[j][b]);
        }
    return y;
}

/* A product's stripes, P quads with sub pieces each, to words of f32. */
__device__ inline void reduce_plain(struct reduce &r, uint32_t cur, int P, int sub, uint64_t *to,
                                    int ld, uint32_t tag)
{
    const int nu = (int)F(1), row0 = (int)F(10), g = r.c.lane >> 2, q = r.c.lane & 3;
    const uint32_t flags = F(9);
    const bool more = flags & KS_SECOND_HALF;
#pragma unroll 1
    for (int u = r.first(); u < nu; u += KS_REDUCERS) {
        float2 *carry = (float2 *)r.c.s->carry[u & (KS_CARRY - 1)][r.c.lane], y = make_float2(0, 0);
        if (more) y = *carry;
        y = add_pieces(r.pieces, 0, P, u * sub, sub, y, !more);
        if (flags & KS_FIRST_HALF)
            *carry = y;
        else if (g < r.c.a->T)
            store_words(to + (int64_t)g * ld + row0 + u * 8 + 2 * q, y.x, y.y, tag);
    }
    r.pass(P, nu * sub, nu);
    if (flags & (KS_FIRST_HALF | KS_SECOND_HALF)) reducers_meet();
}

/* nu units of gated products: a pair of bf16 for each row */
__device__ inline void reduce_gated(struct reduce &r, uint32_t cur, bool experts, uint32_t tag)
{
    const struct ks_args &a = *r.c.a;
    struct smem &s = *r.c.s;
    const uint32_t rank = F(11);
    const int g = r.c.lane >> 2, q = r.c.lane & 3;
    int first = (int)F(2), nu = (int)F(1);
    if (experts) {
        bar_wait(&s.routed, (int)F(3) & 1, 9, 0);
        expert_share(s.n_union, rank, first, nu);
    }
#pragma unroll 1
    for (int u = r.first(); u < nu; u += KS_REDUCERS) {
        float2 y[2];
#pragma unroll 1
        for (int k = 0; k < 2; k++) {
            y[0] = y[1];
            y[1] = add_pieces(r.pieces, 0, KS_QUADS, 2 * u + k, 1, y[1], true);
        }
        const uint32_t out = kk__pack2(kk__act(KK_GELU_TANH, y[0].x) * y[1].x,
                                       kk__act(KK_GELU_TANH, y[0].y) * y[1].y);
        uint64_t *to = a.f + g * (KS_F / 2) + (first + u) * 4 + q;
        bool on = g < a.T;
        if (experts) {
            const int e = (first + u) / KS_XSTRIPES, stripe = (first + u) % KS_XSTRIPES;
            on = on && (s.rows_of[e] >> g & 1);
            to = a.fx + (int64_t)(e * KS_COLS + g) * (KS_XF / 2) + stripe * 4 + q;
        }
        if (on) store_word(to, out, tag);
    }
    r.pass(KS_QUADS, 2 * nu, nu);
}

__device__ inline void reduce_expert_down(struct reduce &r, uint32_t cur, uint32_t tag)
{
    const struct ks_args &a = *r.c.a;
    struct smem &s = *r.c.s;
    const int nu = (int)F(1), row0 = (int)F(10), U = s.n_union;
    const int g = r.c.lane >> 2, q = r.c.lane & 3;
#pragma unroll 1
    for (int e = 0; e < U; e += KS_QUADS) {
        const int P = min(KS_QUADS, U - e);
#pragma unroll 1
        for (int u = r.first(); u < nu; u += KS_REDUCERS) {
            float2 *carry = (float2 *)s.carry[u & (KS_CARRY - 1)][r.c.lane];
            float2 y = make_float2(0, 0);
            if (e) y = *carry;
#pragma unroll 1
            for (int j = 0; j < P; j++) {
                const float2 d = add_pieces(r.pieces, j, j + 1, u, 1, y, true);
                const float w = s.weight[e + j][g];
                const bool on = s.rows_of[e + j] >> g & 1;
                if (on) y.x = __fmaf_rn(w, d.x, y.x), y.y = __fmaf_rn(w, d.y, y.y);
            }
            if (e + KS_QUADS < U)
                *carry = y;
            else if (g < a.T)
                store_words(a.xdown + g * KS_C + row0 + u * 8 + 2 * q, y.x, y.y, tag);
        }
        r.pass(P, nu, nu);
        reducers_meet();
    }
}

/* The largest logit of each row so far, lowest index on ties */
struct best {
    float v;
    int i;
    __device__ inline void see(float x, int at)
    {
        if (x > v || (x == v && at < i)) v = x, i = at;
    }
};

__device__ inline void reduce_head(struct reduce &r, uint32_t cur, uint32_t tag)
{
    const struct ks_args &a = *r.c.a;
    const int nu = (int)F(1), u0 = (int)F(2), g = r.c.lane >> 2, q = r.c.lane & 3;
    struct best top = {-INFINITY, INT32_MAX};
#pragma unroll 1
    for (int u = r.first(); u < nu; u += KS_REDUCERS) {
        const float2 sum = add_pieces(r.pieces, 0, KS_QUADS, u & 0xff, 1, make_float2(0, 0), true);
        float y[2] = {sum.x, sum.y};
        const int at = (u0 + u) * 8 + 2 * q;
#pragma unroll
        for (int e = 0; e < 2; e++) {
            if (a.softcap > 0) y[e] = a.softcap * tanhf(y[e] / a.softcap);
            top.see(y[e], at + e);
        }
        if (a.logits && g < a.T && a.logit_of[g] >= 0)
            *(float2 *)(a.logits + (int64_t)a.logit_of[g] * a.vocab + at) = make_float2(y[0], y[1]);
    }
#pragma unroll
    for (int d = 1; d < 4; d *= 2) {
        const float v = __shfl_xor_sync(FULL_MASK, top.v, d);
        top.see(v, __shfl_xor_sync(FULL_MASK, top.i, d));
    }
    if (q == 0 && g < a.T)
        store_words(a.best + ((blockIdx.x * KS_REDUCERS + r.c.warp) * KS_COLS + g) * 2, top.v,
                    __int_as_float(top.i), tag);
    if (blockIdx.x || r.c.warp || !a.choice) return;
    for (int t = 0; t < a.T; t++) {
        if (a.logit_of[t] < 0) continue;
        top = {-INFINITY, INT32_MAX};
        for (int i = r.c.lane; i < (int)gridDim.x * KS_REDUCERS; i += 32) {
            uint32_t v[2];
            take_words<1>(v, a.best + (i * KS_COLS + t) * 2, 0, 1, tag, 40);
            top.see(__uint_as_float(v[0]), (int)v[1]);
        }
        __syncwarp();
#pragma unroll
        for (int d = 1; d < 32; d *= 2) {
            const float v = __shfl_xor_sync(FULL_MASK, top.v, d);
            top.see(v, __shfl_xor_sync(FULL_MASK, top.i, d));
        }
        if (r.c.lane == 0) a.choice[a.logit_of[t]] = top.i == INT32_MAX ? 0 : top.i;
    }
}

/* Splits of row t, 64 elements of head h from d on, merged in ascending order (0020). A lane has
 * two elements, and m and l of one split of 32. */
template <int D>
__device__ inline void merge_task(const struct context &c, int t, int h, int d, uint32_t tag)
{
    enum { BATCH = 9 }; /* a window's splits */
    const struct ks_args &a = *c.a;
    int b = 0;
    while (t >= a.seq[b].t0 + a.seq[b].n) b++;
    const struct ks_seq &q = a.seq[b];
    const int splits = q.kind[D == 256].n, step = q.n * KS_H;
    int64_t pair = (int64_t)(q.kind[D == 256].pair0 + t - q.t0) * KS_H + h;
    float M = -INFINITY, L = 0, O0 = 0, O1 = 0, m = -INFINITY, l = 0;
#pragma unroll 1
    for (int s = 0; s < splits; s += BATCH) {
        uint32_t o[2 * BATCH];
        if (s % (3 * BATCH) == 0) {
            uint32_t ml[2] = {0, 0};
            if (c.lane < 3 * BATCH && s + c.lane < splits)
                take_words<1>(ml, a.part_ml + (pair + (int64_t)c.lane * step) * 2, 0, 1, tag, 41);
            m = __uint_as_float(ml[0]), l = __uint_as_float(ml[1]);
        }
        take_words<BATCH>(o, a.part_o + pair * D + d + 2 * c.lane, step * D,
                          min((int)BATCH, splits - s), tag, 42);
        __syncwarp();
        pair += (int64_t)BATCH * step;
#pragma unroll
        for (int i = 0; i < BATCH; i++) {
            const int from = s % (3 * BATCH) + i;
            const float mi = __shfl_sync(FULL_MASK, m, from), li = __shfl_sync(FULL_MASK, l, from);
            if (s + i >= splits || mi == -INFINITY) continue;
            const float M1 = fmaxf(M, mi);
            const float x = exp2f((M - M1) * LOG2E), y = exp2f((mi - M1) * LOG2E);
            L = __fmaf_rn(L, x, li * y);
            O0 = __fmaf_rn(O0, x, __uint_as_float(o[2 * i]) * y);
            O1 = __fmaf_rn(O1, x, __uint_as_float(o[2 * i + 1]) * y);
            M = M1;
        }
    }
    store_word(a.attn + ((int64_t)t * KS_H * D + h * D + d) / 2 + c.lane, kk__pack2(O0 / L, O1 / L),
               tag);
}

template <int D> __device__ __noinline__ void merge(uint32_t tag)
{
    const struct context c = who(KS_CONSUMERS);
    const int sms = (int)gridDim.x, per_row = KS_H * D / 64, n = c.a->T * per_row;
    int k = (int)blockIdx.x - (D == 256 ? 68 : 0), turn = 0;
    if (k < 0) k += sms;
    for (; k < n; k += sms, turn ^= 1) {
        const int i = k % per_row;
        if (turn == c.warp) merge_task<D>(c, k / per_row, i / (D / 64), i % (D / 64) * 64, tag);
    }
}

__device__ __noinline__ void reducer(const uint32_t *pp)
{
    const struct ks_args &a = block().args;
    struct reduce r = {who(KS_CONSUMERS), 0, 0};
    uint32_t cur = __ldg(pp), nxt;
    int seg = 0;
    for (;; cur = nxt) {
        const uint32_t op = F(0), layer = F(3), flags = F(9), tag = a.epoch + layer;
        trace(op, seg++);
        if (op == KS_END) return;
        pp += 32;
        nxt = __ldg(pp);
        if (op == KS_ATTN) {
            if (flags & KS_FULL)
                merge<512>(tag);
            else
                merge<256>(tag);
        } else if (op == KS_GLU || op == KS_XGLU) {
            reduce_gated(r, cur, op == KS_XGLU, tag);
        } else if (op == KS_XDOWN) {
            reduce_expert_down(r, cur, tag);
        } else if (op == KS_HEAD) {
            reduce_head(r, cur, tag);
        } else if (op != KS_EMBED && op != KS_RESID1 && op != KS_RESID2) {
            uint64_t *to = op == KS_LINEAR_QKV ? a.qkv
                           : op == KS_O        ? a.o
                           : op == KS_ROUTER   ? a.router
                                               : a.down;
            const int ld = op == KS_LINEAR_QKV ? (flags & KS_FULL ? KS_QKV : 8192)
                           : op == KS_ROUTER   ? KS_E
                                               : KS_C;
            reduce_plain(r, cur, op == KS_DOWN ? 3 : 4, op == KS_O ? 2 : 1, to, ld, tag);
        }
    }
}

__global__ void __launch_bounds__(KS_THREADS, 1)
    step_kernel(const __grid_constant__ struct ks_args a)
{
    struct smem &s = block();
    const int warp = (int)threadIdx.x >> 5, lane = (int)threadIdx.x & 31;
    for (int i = (int)threadIdx.x; i < (int)(sizeof a / 4); i += KS_THREADS)
        ((uint32_t *)&s.args)[i] = ((const uint32_t *)&a)[i];
    if (threadIdx.x == 0) {
        for (int i = 0; i < KS_SLOTS; i++) bar_init(&s.full[i], 1), bar_init(&s.empty[i], 4);
        for (int i = 0; i < KS_QUADS * KS_PIECES; i++)
            bar_init(&s.pfull[0][0] + i, 4), bar_init(&s.pempty[0][0] + i, 1);
        bar_init(&s.routed, 1);
        asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
    }
    __syncthreads();
    const uint32_t *pp = (const uint32_t *)(a.prog + (size_t)blockIdx.x * a.max_seg) + lane;
    if (warp < KS_CONSUMERS)
        consumer(pp);
    else if (warp < KS_CONSUMERS + KS_REDUCERS)
        reducer(pp);
    else
        producer(pp);
}

} // namespace

int ks__launch(const struct ks_args *a, int sms, cudaStream_t stream)
{
    void *args[] = {(void *)a};
    cudaError_t e = cudaFuncSetAttribute(step_kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                         (int)sizeof(struct smem));
    if (e == cudaSuccess)
        e = cudaLaunchCooperativeKernel((const void *)step_kernel, dim3((unsigned)sms),
                                        dim3(KS_THREADS), args, sizeof(struct smem), stream);
    return (int)e;
}
