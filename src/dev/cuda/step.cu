/* The persistent decode step: one kernel for embedding, layers and head of Gemma-4-26B-A4B's
 * geometry, a few rows, in the order of docs/adr/0020; its design is docs/adr/0024.
 *
 * One block on each multiprocessor (SM), 20 warps in four roles that meet only in mbarriers:
 *   producer  (1 warp)   walks the step's weights in order and keeps a ring of slots in shared
 *                        memory full; it stops for a full ring, for the bytes in flight and for the
 *                        router, never for activations.
 *   consumers (16 warps) four quads; a warp multiplies one chain of a slot, weights as operand B,
 *                        activations as A in registers. They also do what stands between products:
 *                        residual and norms, and splits of attention, whose rows they bring.
 *   reducers  (2 warps)  add chains in order, apply what follows, publish; merge splits.
 *   finder    (1 warp)   says where KV rows are, chooses the experts, and while it waits brings
 *                        rows from host memory (step_pages_int.h).
 * There is no barrier between SMs. What one SM computes for others are words of 8 bytes, {payload,
 * tag}: a reader polls until the tag is that of the layer and step. */
#include "dev/cuda/step_attend_int.h"
#include "dev/cuda/step_row_int.h"

namespace
{

/* ---- producer ---- */

/* Slots n, n + 1, .. n + count - 1 from one place, by one lane: the one loop that fills slots.
 * What is not needed yet has fewer in flight: others' weights that are come first. */
__device__ __noinline__ void fill(uint32_t n, const char *from, int bytes, int count)
{
    struct smem &s = block();
    const bool small = bytes < KS_SLOT;
    const uint32_t window = s.args.window + 2 * small, ahead = s.args.ahead + small;
    const int number = s.feeding;
    const uint64_t policy = read_once();
    uint32_t slot = n % KS_SLOTS, phase = (n / KS_SLOTS & 1) ^ 1;
#pragma unroll 1
    for (; count; count--, from += bytes, n++) {
        const uint32_t win = number > s.doing ? ahead : window;
        bar_wait(&s.empty[slot], (int)phase, 1, n);
        if (n >= win) {
            int back = (int)slot - (int)win, ph = (int)phase ^ 1;
            if (back < 0) back += KS_SLOTS, ph ^= 1;
            bar_wait(&s.full[back], ph, 2, n);
        }
        bar_expect(&s.full[slot], bytes);
        bulk(smem_at(s.ring) + slot * KS_SLOT, from, bytes, &s.full[slot], policy);
        if (++slot == KS_SLOTS) slot = 0, phase ^= 1;
    }
}

/* An item's rows are brought by those who use them; the producer hands out room in the ring. */
template <int D> __device__ inline uint32_t hand_out(uint32_t n)
{
    for (struct items<D> i; i.next();)
        for (int k = item_slots<D>(i.it); k; k--, n++)
            if (threadIdx.x % 32 == 0) {
                const uint32_t slot = n % KS_SLOTS;
                bar_wait(&block().empty[slot], (int)(n / KS_SLOTS & 1) ^ 1, 1, n);
                bar_arrive(&block().full[slot]);
            }
    __syncwarp();
    return n;
}

/* What an item reads of a page */
struct reading {
    int page, g; /* -1: none */
};

/* That item's sums are made: its page is left. */
__device__ inline void item_done(struct pager &pages, int item, struct reading r)
{
    struct smem &s = block();
    if (item < 0) return;
    while (pages.busy() && !bar_test(&s.done[item & 1], item >> 1 & 1)) pages.go_on(true);
    bar_wait(&s.done[item & 1], item >> 1 & 1, 33, (uint32_t)item);
    if (r.page >= 0 && threadIdx.x % 32 == 0) leave_page(s.args, r.page, r.g);
    __syncwarp();
}

/* Where the stored rows of the layer's items are: two loads, one after another. There is room for
 * two items. */
template <int D> __device__ inline void find_rows(struct pager &pages)
{
    const struct context c = who(0);
    const struct ks_args &a = *c.a;
    struct walk &w = here();
    struct reading before = {-1, 0}, last = {-1, 0}; /* of the two items before */
    int item = w.items;
    for (struct items<D> i; i.next(); item++) {
        const struct item &it = i.it;
        const struct kk_kv_seq *q = a.kv[w.layer].seqs + it.seq;
        const unsigned long long *blocks = (const unsigned long long *)q->blocks;
        const int block_rows = q->block_rows, sinks = q->sinks, ring = q->ring;
        const int from = it.base + it.lo * 16, stored = stored_rows(a, it);
        item_done(pages, item - 2, before);
        before = last, last = {D == 512 ? page_of(a, it, w.layer) : -1, it.g};
#pragma unroll 1
        for (int r = c.lane; r < stored; r += 32) {
            const int j = from + r, at = !ring || j < sinks ? j : sinks + (j - sinks) % ring;
            c.s->row[item & 1][r] = __ldg(blocks + at / block_rows) +
                                    (uint64_t)(at % block_rows) * shape<D>::kv_row +
                                    (uint64_t)(it.g * D * 2);
        }
        __syncwarp();
        if (c.lane == 0) bar_arrive(&c.s->found[item & 1]);
    }
    if (D == 512 && a.pages.n) {
        item_done(pages, item - 2, before);
        item_done(pages, item - 1, last);
    }
    w.items = item;
    __syncwarp();
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
    mark((int)(tag - c.a->epoch), M_LOGITS);
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
__device__ inline void route(struct pager &pages, const float *scale, uint32_t tag)
{
    const struct context c = who(KS_CONSUMERS + KS_REDUCERS + 1);
    struct smem &s = *c.s;
    const int T = c.a->T, n = T * KS_A;
    uint32_t bits[4] = {0, 0, 0, 0};
    /* not when the logits are next: all SMs would wait for this one's choice */
    while (pages.busy() && !have_words(c.a->router + c.lane * 4, tag))
        pages.go_on(s.doing < number_of(here().layer, ROUTER));
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
    mark((int)(tag - c.a->epoch), M_ROUTED);
    if (c.lane == 0) bar_arrive(&s.routed);
}

/* Where things are that this layer reads. */
__device__ __noinline__ void finder()
{
    const struct ks_args &a = block().args;
    struct pager pages;
    for (bool more = true; more; more = go_on()) {
        const int l = here().layer;
        const struct ks_layer *y = a.layers + (size_t)blockIdx.x * (a.n_layers + 1) + l;
        const float *scale = (const float *)__ldg((const unsigned long long *)&y->expert_scale);
        if (__ldg(&y->full))
            find_rows<512>(pages);
        else
            find_rows<256>(pages);
        route(pages, scale, now_tag());
    }
}

/* `count` slots of `bytes` from one place, by the warp; returns the slots behind then. */
__device__ inline uint32_t feed(uint32_t n, const char *from, int bytes, int count)
{
    if (threadIdx.x % 32 == 0 && count > 0) fill(n, from, bytes, count);
    __syncwarp();
    return n + (uint32_t)max(count, 0);
}

/* What comes next is of this product. */
__device__ inline void feeding(int layer, enum product p)
{
    if (threadIdx.x % 32 == 0) block().feeding = number_of(layer, p);
}

/* Those of `u` that lie in a matrix of `rows` outputs, whose stripes begin at `before` */
__device__ inline uint32_t feed_part(uint32_t n, struct units u, const char *w, int before,
                                     int rows)
{
    const int lo = max(u.first, before), hi = min(u.first + u.n, before + rows / KK_TILE_ROWS);
    return feed(n, w + (int64_t)(lo - before) * KS_STRIPE, KS_SLOT, (hi - lo) * KS_QUADS);
}

__device__ inline uint32_t feed_qkv(uint32_t n, const struct ks_layer &y)
{
    const struct units u = y.qkv;
    const int q = KS_H * (y.full ? 512 : 256), kv = y.full ? 1024 : 2048;
    n = feed_part(n, u, (const char *)y.wq, 0, q);
    n = feed_part(n, u, (const char *)y.wk, q / KK_TILE_ROWS, kv);
    if (!y.full) n = feed_part(n, u, (const char *)y.wv, (q + kv) / KK_TILE_ROWS, kv);
    return n;
}

/* Gate stripes and up stripes */
__device__ inline uint32_t feed_gated(uint32_t n, struct units u, const char *gate, const char *up)
{
#pragma unroll 1
    for (int i = u.first; i < u.first + u.n; i++)
#pragma unroll 1
        for (int k = 0; k < 2; k++)
            n = feed(n, (k ? up : gate) + (int64_t)i * KS_STRIPE, KS_SLOT, KS_QUADS);
    return n;
}

__device__ inline uint32_t feed_experts(uint32_t n, struct units u, const char *w)
{
    const struct smem &s = block();
#pragma unroll 1
    for (int i = u.first; i < u.first + u.n; i++) {
        const char *gate =
            w + (int64_t)s.expert[i / KS_XSTRIPES] * KS_XGATE_UP + i % KS_XSTRIPES * KS_STRIPE;
#pragma unroll 1
        for (int k = 0; k < 2; k++)
            n = feed(n, gate + k * KS_XSTRIPES * KS_STRIPE, KS_SLOT, KS_QUADS);
    }
    return n;
}

__device__ inline uint32_t feed_expert_down(uint32_t n, struct units u, const char *w)
{
    const struct smem &s = block();
    const int U = s.n_union;
#pragma unroll 1
    for (int e = 0; e < U; e += KS_QUADS)
#pragma unroll 1
        for (int i = u.first; i < u.first + u.n; i++)
#pragma unroll 1
            for (int j = e; j < min(e + KS_QUADS, U); j++)
                n = feed(n, w + (int64_t)s.expert[j] * KS_XDOWN + i * KS_SLOT, KS_SLOT, 1);
    return n;
}

/* K 8192 in two halves */
__device__ inline uint32_t feed_o(uint32_t n, struct units u, const char *w, bool full)
{
    const int stripe = full ? 131072 : 65536;
    w += (int64_t)u.first * stripe;
    if (!full) return feed(n, w, 8192, u.n * 8);
#pragma unroll 1
    for (int half = 0; half < 2; half++)
#pragma unroll 1
        for (int i = 0; i < u.n; i++) n = feed(n, w + i * stripe + half * 65536, 8192, 8);
    return n;
}

/* What this SM does in layer l, read a layer before it is kept. */
struct record {
    uint2 w;
    __device__ inline void read(int l)
    {
        const struct ks_args &a = block().args;
        const struct ks_layer *p = a.layers + (size_t)blockIdx.x * (a.n_layers + 1) + l;
        w = __ldg((const uint2 *)p + threadIdx.x % 32);
    }
    __device__ inline void keep(int l) const
    {
        ((uint2 *)&block().layer[l & 3])[threadIdx.x % 32] = w;
    }
};

__device__ __noinline__ void producer()
{
    const struct smem &s = block();
    const struct ks_args &a = s.args;
    uint32_t n = 0;
    struct record next;
    next.read(1);
#pragma unroll 1
    for (int l = 0; l < a.n_layers; l++) {
        const struct ks_layer &y = layer_at(l);
        next.keep(l + 1);
        __syncwarp();
        if (l + 2 <= a.n_layers) next.read(l + 2);
        mark(l, M_P_QKV);
        feeding(l, QKV);
        n = feed_qkv(n, y);
        mark(l, M_P_ATTN);
        n = y.full ? hand_out<512>(n) : hand_out<256>(n);
        mark(l, M_P_O);
        feeding(l, O);
        n = feed_o(n, y.o, (const char *)y.wo, y.full);
        mark(l, M_P_GLU);
        feeding(l, ROUTER);
        n = feed_part(n, y.router, (const char *)y.w_router, 0, KS_E);
        feeding(l, GLU);
        n = feed_gated(n, y.glu, (const char *)y.gate, (const char *)y.up);
        mark(l, M_P_DOWN);
        const struct units down = y.down;
        feeding(l, DOWN);
        n = feed(n, (const char *)y.w_down + down.first * 3 * KS_SLOT, KS_SLOT, 3 * down.n);
        mark(l, M_P_XGLU);
        bar_wait((uint64_t *)&s.routed, l & 1, 3, (uint32_t)l);
        feeding(l, XGLU);
        n = feed_experts(n, expert_share(s.n_union, y.rank), (const char *)y.gate_up);
        mark(l, M_P_XDOWN);
        feeding(l, XDOWN);
        n = feed_expert_down(n, down, (const char *)y.expert_down);
    }
    const struct ks_layer &y = layer_at(a.n_layers);
    const struct units head = y.down;
    feeding(a.n_layers, QKV);
    feed(n, (const char *)y.wq + (int64_t)head.first * KS_STRIPE, KS_SLOT, head.n * KS_QUADS);
}

/* ---- consumers: products ---- */

/* A warp's input: NT tiles, lane (g, q) has row g, inputs 4q .. 4q + 3 of each. GAP: tiles from 8
 * on lie 120 further (the second set of a stripe of K 4096). p: this lane's first words; of a lane
 * that is off, any. */
template <int NT, bool GAP>
__device__ inline void load_x(uint32_t (&x)[32], const uint64_t *p, bool on, uint32_t tag, int what)
{
    struct watch w = {0};
    for (;;) {
        uint32_t bad = 0, tags[2 * NT];
#pragma unroll
        for (int t = 0; t < NT; t++) {
            struct two_words v = load_words(p + (GAP && t >= 8 ? t + 120 : t) * 8);
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

/* This warp's chain of a set: a slot's tiles 0 .. TILES - 1 from `from` on; its sum to the
 * reducers, who gave the room back. */
template <int TILES>
__device__ inline void chain(struct smem &s, int warp, int lane, uint32_t slot, uint32_t phase,
                             int set, const uint32_t *x)
{
    const uint32_t from = smem_at(s.ring) + slot * KS_SLOT +
                          (uint32_t)((warp & 3) * TILES * KK_TILE_BYTES + lane * 8);
    const int b = set & (KS_SETS - 1);
    uint2 w[TILES];
    float d[4] = {0, 0, 0, 0};
    bar_wait(&s.full[slot], (int)phase, 4, slot);
#pragma unroll
    for (int t = 0; t < TILES; t++)
        asm volatile("ld.shared.v2.u32 {%0,%1},[%2];"
                     : "=r"(w[t].x), "=r"(w[t].y)
                     : "r"(from + t * KK_TILE_BYTES)
                     : "memory");
#pragma unroll
    for (int t = 0; t < TILES; t++) kk__mma(d, x[2 * t], 0, x[2 * t + 1], 0, w[t].x, w[t].y);
    __syncwarp();
    if (lane == 0) bar_arrive_after(&s.empty[slot], d[0]);
    bar_wait(&s.pempty[b], (set / KS_SETS & 1) ^ 1, 5, (uint32_t)set);
    s.part[b][warp][lane] = make_float2(d[0], d[1]);
    __threadfence_block();
    __syncwarp();
    if (lane == 0) bar_arrive(&s.pfull[b]);
}

/* Slots and sets behind are as much more. */
__device__ inline void walked(int slots, int sets)
{
    struct walk &w = here();
    const uint32_t n = w.n + (uint32_t)slots;
    const int set = w.set + sets;
    __syncwarp();
    w.n = n, w.set = set;
    __syncwarp();
}

/* The product's input is there. */
__device__ inline void start(enum product p)
{
    if (threadIdx.x == 0) block().doing = number_of(here().layer, p);
}

/* `count` sets over inputs of 11 tiles a warp, P quads. Quads that are off say so for each set,
 * no more than three sets ahead of the reducers: then no slot is looked at before its last fill
 * but one has come (parities repeat), P <= 3 slots a set. */
__device__ __noinline__ void consume_sets(enum product p, int count, int P, int e)
{
    const struct context c = who(0);
    const struct ks_args &a = *c.a;
    struct smem &s = *c.s;
    const int quad = c.warp >> 2, first = here().set;
    const uint32_t tag = now_tag(), n = here().n + (uint32_t)quad;
    if (quad < P) {
        const int g = c.lane >> 2, q = c.lane & 3, row = g < a.T ? g : 0;
        uint32_t slot = n % KS_SLOTS, phase = n / KS_SLOTS & 1, x[32];
        const bool wide =
            p != DOWN && p != XDOWN; /* x: of qkv and head 0, dense 1, experts 2, router 3 */
        const int which = p == QKV ? 0 : p == GLU ? 1 : p == XGLU ? 2 : 3;
        if (wide && a.T == 1) {
            const bf16 *own = s.x[which ? which - 1 : 0] + c.warp * 176 + 4 * q;
            start(p);
#pragma unroll
            for (int t = 0; t < 11; t++) {
                const uint2 v = *(const uint2 *)(own + t * KK_TILE_K);
                x[2 * t] = v.x, x[2 * t + 1] = v.y; /* rows but one are not looked at */
            }
        } else {
            bool on = g < a.T;
            const uint64_t *words;
            if (wide) {
                words = a.x[which] + row * (KS_C / 2) + c.warp * 88;
            } else if (p == DOWN) {
                words = a.f + row * (KS_F / 2) + c.warp * 88;
            } else {
                on = on && (s.rows_of[e + quad] >> g & 1);
                words = a.fx + ((e + quad) * KS_COLS + row) * (KS_XF / 2) + (c.warp & 3) * 88;
            }
            words += 2 * q;
            if (on) await_words(words + 80, tag, 10 + p);
            __syncwarp();
            start(p);
            load_x<11, false>(x, words, on, tag, 10 + p);
        }
        if (p == DOWN) mark((int)(tag - a.epoch), M_DOWN_X);
        if (p == XDOWN) mark((int)(tag - a.epoch), e ? M_XDOWN_X2 : M_XDOWN_X);
#pragma unroll 1
        for (int k = 0; k < count; k++) {
            chain<11>(s, c.warp, c.lane, slot, phase, first + k, x);
            slot += (uint32_t)P;
            if (slot >= KS_SLOTS) slot -= KS_SLOTS, phase ^= 1;
        }
    } else {
#pragma unroll 1
        for (int k = 0; k < count; k++) {
            const int set = first + k, back = set - (KS_SETS - 1);
            bar_wait(&s.pempty[set & (KS_SETS - 1)], (set / KS_SETS & 1) ^ 1, 5, (uint32_t)set);
            bar_wait(&s.pempty[back & (KS_SETS - 1)], back / KS_SETS & 1, 5, (uint32_t)set);
            __syncwarp();
            if (c.lane == 0) bar_arrive(&s.pfull[set & (KS_SETS - 1)]);
        }
    }
    walked(count * P, count);
}

/* A product of the layer, or the head: all units that the SM has of it */
__device__ __noinline__ void consume(enum product p)
{
    struct smem &s = block();
    const struct ks_layer &y = now();
    const bool head = here().layer == s.args.n_layers;
    int count = units(p == QKV ? (head ? y.down : y.qkv) : p == ROUTER ? y.router : y.down).n;
    if (p == GLU) count = 2 * units(y.glu).n;
    if (p == XGLU) {
        bar_wait(&s.routed, here().layer & 1, 7, 0);
        mark(here().layer, M_XGLU);
        count = 2 * expert_share(s.n_union, y.rank).n;
    }
    if (p == XDOWN)
#pragma unroll 1
        for (int e = 0; e < s.n_union; e += KS_QUADS)
            consume_sets(p, units(now().down).n, min(KS_QUADS, s.n_union - e), e);
    else if (count)
        consume_sets(p, count, p == DOWN ? 3 : KS_QUADS, 0);
    const int ends[] = {M_QKV_END, 0, M_GLU, M_GLU_END, M_DOWN_END, M_XGLU_END, M_XDOWN_END};
    if (!head) mark(here().layer, ends[p]);
}

/* Attention's output, two sets a stripe of K 4096, or of a half of 8192 */
__device__ __noinline__ void consume_o(int half)
{
    const struct context c = who(0);
    const struct ks_args &a = *c.a;
    struct smem &s = *c.s;
    const int g = c.lane >> 2, q = c.lane & 3, width = now().full ? 8192 : 4096;
    const int first = here().set, nu = units(now().o).n;
    const uint32_t n = here().n + (uint32_t)(c.warp >> 2);
    const uint64_t *words =
        a.attn + (g < a.T ? g : 0) * (width / 2) + half * 2048 + c.warp * 64 + 2 * q;
    uint32_t slot = n % KS_SLOTS, phase = n / KS_SLOTS & 1, x[32];
    if (g < a.T) await_words(words + 127 * 8, now_tag(), 20);
    __syncwarp();

    load_x<16, true>(x, words, g < a.T, now_tag(), 20);
    if (!half) mark(here().layer, M_O_X);
#pragma unroll 1
    for (int u = 0; u < nu; u++)
#pragma unroll
        for (int k = 0; k < 2; k++) {
            chain<8>(s, c.warp, c.lane, slot, phase, first + 2 * u + k, x + 16 * k);
            slot += KS_QUADS;
            if (slot >= KS_SLOTS) slot -= KS_SLOTS, phase ^= 1;
        }
    walked(nu * 8, nu * 2);
    mark(here().layer, M_O_END);
}

/* What a role does in a layer are functions that take nothing: what one works with is then not
 * kept, in registers or on the stack, while another works. */
__device__ __noinline__ void consumer()
{
    embed();
    do {
        consume(QKV);
        attention();
        consume_o(0);
        if (now().full) consume_o(1);
        after_attention();
        consume(ROUTER);
        consume(GLU);
        consume(DOWN);
        consume(XGLU);
        consume(XDOWN);
        after_experts();
    } while (go_on());
    consume(QKV);
}

/* ---- reducers ---- */

/* Sets behind and a warp's first of the units that follow. The warps take turns over all units
 * of the step, so that neither is ever more than a lap of the sets behind what it waits for. */
struct reduce {
    struct context c;
    int set, first;
};

__device__ inline struct reduce reduce_from()
{
    const struct context c = who(KS_CONSUMERS);
    const struct walk &w = here();
    return {c, w.set, (c.warp ^ w.units) & 1};
}

__device__ inline void reduced(int sets, int units)
{
    struct walk &w = here();
    const int set = w.set + sets, u = w.units + units;
    __syncwarp();
    w.set = set, w.units = u;
    __syncwarp();
}

/* The other reducer's carried sums are there. */
__device__ inline void reducers_meet()
{
    warps_meet<MEET_REDUCERS, KS_REDUCERS * 32>();
}

/* The chains of a set, by pairs of outputs: p[4 j + i] of quad j */
__device__ inline void take_set(const struct context &c, int set, float2 (&p)[KS_CONSUMERS])
{
    const int b = set & (KS_SETS - 1);
    bar_wait(&c.s->pfull[b], set / KS_SETS & 1, 8, (uint32_t)set);
#pragma unroll
    for (int i = 0; i < KS_CONSUMERS; i++) p[i] = c.s->part[b][i][c.lane];
}

/* Its room is given back when `sum`, of all of them, is there. */
__device__ inline void leave_set(const struct context &c, int set, float sum)
{
    __syncwarp();
    if (c.lane == 0) bar_arrive_after(&c.s->pempty[set & (KS_SETS - 1)], sum);
}

/* The first n chains of a set added to y in order; first: y is their sum alone. */
__device__ inline float2 add_set(const struct context &c, int set, int n, float2 y, bool first)
{
    float2 p[KS_CONSUMERS];
    take_set(c, set, p);
    y.x = first ? p[0].x : y.x + p[0].x;
    y.y = first ? p[0].y : y.y + p[0].y;
#pragma unroll
    for (int i = 1; i < KS_CONSUMERS; i++)
        if (i < n) y.x += p[i].x, y.y += p[i].y;
    leave_set(c, set, y.x);
    return y;
}

/* A product's stripes, of `sub` sets of n chains each, to words of f32. carry: -1: the sums are
 * kept, 1: they are of two halves, and were kept. */
__device__ inline void reduce_stripes(struct units u, int sub, int n, int carry, uint64_t *to,
                                      int ld)
{
    const struct reduce r = reduce_from();
    const struct context &c = r.c;
    const int g = c.lane >> 2, q = c.lane & 3;
    const uint32_t tag = now_tag();
    to += (int64_t)g * ld + u.first * 8 + 2 * q;
#pragma unroll 1
    for (int i = r.first; i < u.n; i += KS_REDUCERS) {
        float2 *kept = &c.s->carry[i & (KS_CARRY - 1)][c.lane], y = make_float2(0, 0);
        if (carry > 0) y = *kept;
#pragma unroll 1
        for (int k = 0; k < sub; k++)
            y = add_set(c, r.set + i * sub + k, n, y, k == 0 && carry <= 0);
        if (carry < 0)
            *kept = y;
        else if (g < c.a->T)
            store_words(to + i * 8, y.x, y.y, tag);
    }
    reduced(u.n * sub, u.n);
    if (carry) reducers_meet();
}

__device__ __noinline__ void reduce_plain(enum product p)
{
    const struct ks_args &a = block().args;
    const struct ks_layer &y = now();
    uint64_t *to = p == QKV ? a.qkv : p == O ? a.o : p == ROUTER ? a.router : a.down;
    const int ld = p == QKV ? (y.full ? KS_QKV : 8192) : p == ROUTER ? KS_E : KS_C;
    const struct units u = p == QKV ? y.qkv : p == O ? y.o : p == ROUTER ? y.router : y.down;
    const bool halves = p == O && y.full;
#pragma unroll 1
    for (int carry = halves ? -1 : 0; carry < 2; carry += halves ? 2 : 3)
        reduce_stripes(u, p == O ? 2 : 1, p == DOWN ? 12 : KS_CONSUMERS, carry, to, ld);
}

/* Gated units: a pair of bf16 for each row; experts: of those routed to */
__device__ __noinline__ void reduce_gated(bool experts)
{
    const struct reduce r = reduce_from();
    const struct context &c = r.c;
    const struct ks_args &a = *c.a;
    struct smem &s = *c.s;
    const int g = c.lane >> 2, q = c.lane & 3;
    const uint32_t tag = now_tag();
    if (experts) bar_wait(&s.routed, here().layer & 1, 9, 0);
    const struct units u = experts ? expert_share(s.n_union, now().rank) : units(now().glu);
#pragma unroll 1
    for (int i = r.first; i < u.n; i += KS_REDUCERS) {
        const int at = u.first + i, e = at / KS_XSTRIPES, set = r.set + 2 * i;
        const float2 gate = add_set(c, set, KS_CONSUMERS, make_float2(0, 0), true);
        const float g0 = kk__act(KK_GELU_TANH, gate.x), g1 = kk__act(KK_GELU_TANH, gate.y);
        const float2 up = add_set(c, set + 1, KS_CONSUMERS, make_float2(0, 0), true);
        uint64_t *to = experts ? a.fx + (int64_t)(e * KS_COLS + g) * (KS_XF / 2) +
                                     (at - e * KS_XSTRIPES) * 4 + q
                               : a.f + g * (KS_F / 2) + at * 4 + q;
        if (g < a.T && (!experts || (s.rows_of[e] >> g & 1)))
            store_word(to, kk__pack2(g0 * up.x, g1 * up.y), tag);
    }
    reduced(2 * u.n, u.n);
}

__device__ __noinline__ void reduce_expert_down()
{
    const struct units u = now().down;
    const uint32_t tag = now_tag();
    const int U = block().n_union;
#pragma unroll 1
    for (int e = 0; e < U; e += KS_QUADS) {
        const struct reduce r = reduce_from();
        const struct context &c = r.c;
        const struct ks_args &a = *c.a;
        struct smem &s = *c.s;
        const int g = c.lane >> 2, q = c.lane & 3;
#pragma unroll 1
        for (int i = r.first; i < u.n; i += KS_REDUCERS) {
            float2 *kept = &s.carry[i & (KS_CARRY - 1)][c.lane], y = make_float2(0, 0);
            float2 p[KS_CONSUMERS];
            float all = 0;
            if (e) y = *kept;
            take_set(c, r.set + i, p);
#pragma unroll
            for (int j = 0; j < KS_QUADS; j++) {
                float2 d = p[4 * j];
#pragma unroll
                for (int k = 1; k < 4; k++) d.x += p[4 * j + k].x, d.y += p[4 * j + k].y;
                all += d.x;
                if (e + j >= U) continue;
                const float w = s.weight[e + j][g];
                if (s.rows_of[e + j] >> g & 1)
                    y.x = __fmaf_rn(w, d.x, y.x), y.y = __fmaf_rn(w, d.y, y.y);
            }
            leave_set(c, r.set + i, all);
            if (e + KS_QUADS < U)
                *kept = y;
            else if (g < a.T)
                store_words(a.xdown + g * KS_C + (u.first + i) * 8 + 2 * q, y.x, y.y, tag);
        }
        reduced(u.n, u.n);
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

__device__ __noinline__ void reduce_head()
{
    const struct reduce r = reduce_from();
    const struct context &c = r.c;
    const struct ks_args &a = *c.a;
    const struct units units = now().down;
    const uint32_t tag = now_tag();
    const int g = c.lane >> 2, q = c.lane & 3;
    struct best top = {-INFINITY, INT32_MAX};
#pragma unroll 1
    for (int u = r.first; u < units.n; u += KS_REDUCERS) {
        const float2 sum = add_set(c, r.set + u, KS_CONSUMERS, make_float2(0, 0), true);
        float y[2] = {sum.x, sum.y};
        const int at = (units.first + u) * 8 + 2 * q;
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
        store_words(a.best + ((blockIdx.x * KS_REDUCERS + c.warp) * KS_COLS + g) * 2, top.v,
                    __int_as_float(top.i), tag);
    if (blockIdx.x || c.warp || !a.choice) return;
    for (int t = 0; t < a.T; t++) {
        if (a.logit_of[t] < 0) continue;
        top = {-INFINITY, INT32_MAX};
        for (int i = c.lane; i < (int)gridDim.x * KS_REDUCERS; i += 32) {
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
        if (c.lane == 0) a.choice[a.logit_of[t]] = top.i == INT32_MAX ? 0 : top.i;
    }
}

/* Splits of row t, 64 elements of head h from d on, merged in ascending order (0020). A lane has
 * two elements; of each 32 splits it has one's (m, l), and what it and the sums before it are
 * scaled by. */
__device__ inline void merge_task(const struct context &c, bool sliding, int t, int h, int d,
                                  uint32_t tag)
{
    enum { BATCH = 10, SPAN = 30 }; /* a window's splits are 9 */
    const struct ks_args &a = *c.a;
    const int D = sliding ? 256 : 512;
    int b = 0;
    while (t >= a.seq[b].t0 + a.seq[b].n) b++;
    const struct ks_seq &q = a.seq[b];
    const int splits = q.kind[sliding].n, step = q.n * KS_H;
    const int64_t pair = (int64_t)(q.kind[sliding].pair0 + t - q.t0) * KS_H + h;
    const uint64_t *o = a.part_o + pair * D + d + 2 * c.lane;
    const uint64_t *ml = a.part_ml + (pair + (int64_t)c.lane * step) * 2;
    float M = -INFINITY, L = 0, O0 = 0, O1 = 0;
    float before = 1, own = 0, l = 0; /* of split s0 + lane */
#pragma unroll 1
    for (int s = 0, from = 0; s < splits; s += BATCH, from += BATCH) {
        uint32_t v[2 * BATCH];
        struct two_words w = {__float_as_uint(-INFINITY), tag, 0, tag};
        struct watch still = {0};
        if (from == SPAN) from = 0;
        for (;;) {
            uint32_t bad = 0;
            if (!from && c.lane < SPAN && s + c.lane < splits)
                w = load_words(ml + (int64_t)s * step * 2);
#pragma unroll
            for (int i = 0; i < BATCH; i++) {
                if (s + i >= splits) continue;
                const struct two_words x = load_words(o + (int64_t)(s + i) * step * D);
                v[2 * i] = x.v0, v[2 * i + 1] = x.v1, bad |= (x.tag0 ^ tag) | (x.tag1 ^ tag);
            }
            if (!(bad | (w.tag0 ^ tag) | (w.tag1 ^ tag))) break;
            still_waiting(still, 41, bad);
        }
        __syncwarp();
        mark((int)(tag - a.epoch), M_MERGE);
        if (!from) {
            float m = __uint_as_float(w.v0), top = m;
            l = __uint_as_float(w.v1);
#pragma unroll
            for (int k = 1; k < 32; k *= 2) {
                const float x = __shfl_up_sync(FULL_MASK, top, k);
                if (c.lane >= k) top = fmaxf(top, x);
            }
            top = fmaxf(top, M);
            float less = __shfl_up_sync(FULL_MASK, top, 1);
            if (c.lane == 0) less = M;
            /* a split without a key that is seen changes nothing */
            before = m == -INFINITY ? 1 : kk__exp2((less - top) * LOG2E);
            own = m == -INFINITY ? 0 : kk__exp2((m - top) * LOG2E);
            M = __shfl_sync(FULL_MASK, top, 31);
        }
#pragma unroll
        for (int i = 0; i < BATCH; i++) {
            const float x = __shfl_sync(FULL_MASK, before, from + i);
            const float y = __shfl_sync(FULL_MASK, own, from + i);
            const float li = __shfl_sync(FULL_MASK, l, from + i);
            if (s + i >= splits) continue;
            L = __fmaf_rn(L, x, li * y);
            O0 = __fmaf_rn(O0, x, __uint_as_float(v[2 * i]) * y);
            O1 = __fmaf_rn(O1, x, __uint_as_float(v[2 * i + 1]) * y);
        }
    }
    /* + 0: no -0 leaves (0023) */
    const float y0 = L > 0 ? __fadd_rn(__fdiv_rn(O0, L), 0.0f) : 0.0f;
    const float y1 = L > 0 ? __fadd_rn(__fdiv_rn(O1, L), 0.0f) : 0.0f;
    store_word(a.attn + ((int64_t)t * KS_H * D + h * D + d) / 2 + c.lane, kk__pack2(y0, y1), tag);
    mark((int)(tag - a.epoch), M_MERGED);
}

__device__ __noinline__ void merge()
{
    const uint32_t tag = now_tag();
    const bool sliding = !now().full;
    const struct context c = who(KS_CONSUMERS);
    const int sms = (int)gridDim.x, parts = sliding ? 4 : 8; /* of a head */
    const int per_row = KS_H * parts, n = c.a->T * per_row;
    int k = (int)blockIdx.x - (sliding ? 68 : 0), turn = 0;
    if (k < 0) k += sms;
#pragma unroll 1
    for (; k < n; k += sms, turn ^= 1) {
        const int i = k % per_row;
        if (turn == c.warp) merge_task(c, sliding, k / per_row, i / parts, i % parts * 64, tag);
    }
}

__device__ __noinline__ void reducer()
{
    do {
        reduce_plain(QKV);
        merge();
        reduce_plain(O);
        reduce_plain(ROUTER);
        reduce_gated(false);
        reduce_plain(DOWN);
        reduce_gated(true);
        reduce_expert_down();
    } while (go_on());
    reduce_head();
}

__global__ void __launch_bounds__(KS_THREADS, 1)
    step_kernel(const __grid_constant__ struct ks_args a)
{
    struct smem &s = block();
    const int warp = (int)threadIdx.x >> 5;
    if (threadIdx.x % 32 == 0) s.walks[warp] = {0, 0, 0, 0, 0};
    for (int i = (int)threadIdx.x; i < (int)(sizeof a / 4); i += KS_THREADS)
        ((uint32_t *)&s.args)[i] = ((const uint32_t *)&a)[i];
    if (threadIdx.x == 0) {
        s.doing = -1;
        for (int i = 0; i < KS_SLOTS; i++) bar_init(&s.full[i], 1), bar_init(&s.empty[i], 4);
        for (int i = 0; i < KS_SETS; i++)
            bar_init(&s.pfull[i], KS_CONSUMERS), bar_init(&s.pempty[i], 1);
        bar_init(&s.routed, 1);
        for (int i = 0; i < 2; i++) bar_init(&s.found[i], 1), bar_init(&s.done[i], 1);
        asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
    }
    if (warp == 0) {
        struct record first;
        __syncwarp();
        first.read(0);
        first.keep(0);
    }
    __syncthreads();
    if (warp < KS_CONSUMERS) {
        consumer();
    } else if (warp < KS_CONSUMERS + KS_REDUCERS) {
        reducer();
    } else if (warp == KS_CONSUMERS + KS_REDUCERS + 1) {
        finder();
    } else {
        producer();
    }
}

} // namespace

int ks__open(void)
{
    return (int)cudaFuncSetAttribute(step_kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                     (int)sizeof(struct smem));
}

int ks__launch(const struct ks_args *a, int sms, cudaStream_t stream)
{
    void *args[] = {(void *)a};
    return (int)cudaLaunchCooperativeKernel((const void *)step_kernel, dim3((unsigned)sms),
                                            dim3(KS_THREADS), args, sizeof(struct smem), stream);
}
