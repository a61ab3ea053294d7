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
#include "dev/cuda/step_int.h"

namespace {

constexpr uint32_t FULL_MASK = 0xffffffffu;
constexpr float LOG2E = 1.44269504f;

/* Attention's part of shared memory; residual's norms take the same place. */
struct attn_smem {
    bf16 q[16 * (512 + 8)];
    bf16 p[16 * (KK_CUDA_SPLIT + 8)];
    float top[8][16], sum[8][16];
    float k_norm[512];
};

struct smem {
    alignas(128) char ring[KS_SLOTS * KS_SLOT];
    union {
        alignas(16) bf16 x[3][KS_C];
        struct attn_smem a;
    };
    float part[KS_QUADS][KS_PIECES][4][32][2];
    float carry[KS_CARRY][32][2];
    float h[KS_C];
    float tmp[4][8];
    uint64_t full[KS_SLOTS], empty[KS_SLOTS];
    uint64_t pfull[KS_QUADS][KS_PIECES], pempty[KS_QUADS][KS_PIECES], routed;
    /* the router's choice: distinct experts, ascending, and each row's weights */
    int n_union, expert[KS_UNION];
    uint32_t rows_of[KS_UNION];
    float weight[KS_UNION][KS_COLS];
    int chosen[KS_COLS][KS_A];
    float chosen_w[KS_COLS][KS_A];
    uint64_t row[KK_CUDA_SPLIT]; /* where the rows are that the producer copies next */
    struct ks_args args;
};

__device__ inline struct smem &block()
{
    extern __shared__ __align__(128) char smem_raw[];
    return *(struct smem *)smem_raw;
}

/* ---- waiting ---- */

/* A wait that lasts seconds is a fault. KS_WATCH: say who waits for what; else, of code that is all
 * through the kernel, as little as can be: what is not in the instruction cache comes as late as
 * any other word. */
struct watch {
    uint32_t spins;
};

__device__ inline void still_waiting(struct watch &w, int what, uint32_t extra)
{
    if (++w.spins < 1u << 23) return;
#ifdef KS_WATCH
    int *d = block().args.diag + 2 * (blockIdx.x * (KS_THREADS / 32) + threadIdx.x / 32);
    d[0] = what, d[1] = (int)extra;
    __threadfence_system();
    for (long long t = clock64(); clock64() - t < 400000000;) {} /* let others say it too */
#endif
    __trap();
}

__device__ inline uint32_t smem_at(const void *p)
{
    return (uint32_t)__cvta_generic_to_shared(p);
}

__device__ inline void bar_init(uint64_t *b, int n)
{
    asm volatile("mbarrier.init.shared::cta.b64 [%0],%1;" ::"r"(smem_at(b)), "r"(n));
}

__device__ inline void bar_wait(uint64_t *b, int phase, int what, uint32_t extra)
{
    struct watch w = {0};
    for (;;) {
        uint32_t ok;
        asm volatile("{.reg .pred p; mbarrier.try_wait.parity.shared::cta.b64 p,[%1],%2; "
                     "selp.u32 %0,1,0,p;}"
                     : "=r"(ok)
                     : "r"(smem_at(b)), "r"(phase)
                     : "memory");
        if (ok) return;
        still_waiting(w, what, extra);
    }
}

__device__ inline void bar_arrive(uint64_t *b)
{
    asm volatile("mbarrier.arrive.shared::cta.b64 _,[%0];" ::"r"(smem_at(b)) : "memory");
}

__device__ inline void bar_arrive4(uint64_t *b)
{
    asm volatile("mbarrier.arrive.shared::cta.b64 _,[%0],4;" ::"r"(smem_at(b)) : "memory");
}

__device__ inline void bar_expect(uint64_t *b, int bytes)
{
    asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _,[%0],%1;" ::"r"(smem_at(b)),
                 "r"(bytes)
                 : "memory");
}

__device__ inline void bulk(uint32_t dst, const void *src, int bytes, uint64_t *b)
{
    asm volatile("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes "
                 "[%0],[%1],%2,[%3];" ::"r"(dst),
                 "l"(src), "r"(bytes), "r"(smem_at(b))
                 : "memory");
}

template <int ID, int N> __device__ inline void warps_meet()
{
    asm volatile("bar.sync %0,%1;" ::"n"(ID), "n"(N) : "memory");
}

/* Some quads have a segment off. They must not look at a slot while its fill before the last may
 * still be on its way (the parity of the two is the same), so they wait until the others have seen
 * all of the segment's slots; the others do not wait. */
template <int ID> __device__ inline void quads_meet(bool works)
{
    if (works)
        asm volatile("bar.arrive %0,%1;" ::"n"(ID), "n"(KS_CONSUMERS * 32) : "memory");
    else
        asm volatile("bar.sync %0,%1;" ::"n"(ID), "n"(KS_CONSUMERS * 32) : "memory");
}

enum { MEET_ALL = 1, MEET_REDUCERS = 2, MEET_DOWN = 3, MEET_XDOWN = 4 };

/* ---- words ---- */

struct two_words {
    uint32_t v0, tag0, v1, tag1;
};

__device__ inline struct two_words load_words(const uint64_t *p)
{
    uint64_t a, b;
    asm volatile("ld.relaxed.gpu.global.v2.u64 {%0,%1},[%2];" : "=l"(a), "=l"(b) : "l"(p)
                 : "memory");
    return {(uint32_t)a, (uint32_t)(a >> 32), (uint32_t)b, (uint32_t)(b >> 32)};
}

__device__ inline void store_word(uint64_t *p, uint32_t v, uint32_t tag)
{
    asm volatile("st.relaxed.gpu.global.u64 [%0],%1;" ::"l"(p), "l"((uint64_t)tag << 32 | v)
                 : "memory");
}

__device__ inline void store_words(uint64_t *p, float v0, float v1, uint32_t tag)
{
    const uint64_t t = (uint64_t)tag << 32;
    asm volatile("st.relaxed.gpu.global.v2.u64 [%0],{%1,%2};" ::"l"(p),
                 "l"(t | __float_as_uint(v0)), "l"(t | __float_as_uint(v1))
                 : "memory");
}

/* Poll one pair until it has come. A cheap wait before many loads. */
__device__ inline void await_words(const uint64_t *p, uint32_t tag, int what)
{
    struct watch w = {0};
    for (;;) {
        struct two_words v = load_words(p);
        if (v.tag0 == tag && v.tag1 == tag) return;
        still_waiting(w, what, v.tag0);
    }
}

/* N pairs of words, `step` words apart, into v; returns when all have come. */
template <int N>
__device__ inline void take_words(uint32_t (&v)[2 * N], const uint64_t *p, int step, int n,
                                  uint32_t tag, int what)
{
    struct watch w = {0};
    for (;;) {
        uint32_t bad = 0, tags[2 * N];
#pragma unroll
        for (int i = 0; i < N; i++) {
            if (i >= n) continue;
            struct two_words x = load_words(p + (int64_t)i * step);
            v[2 * i] = x.v0, v[2 * i + 1] = x.v1, tags[2 * i] = x.tag0, tags[2 * i + 1] = x.tag1;
        }
#pragma unroll
        for (int i = 0; i < N; i++)
            if (i < n) bad |= (tags[2 * i] ^ tag) | (tags[2 * i + 1] ^ tag);
        if (!bad) return;
        still_waiting(w, what, bad);
    }
}

__device__ inline float lo_of(uint32_t v)
{
    return __uint_as_float(v << 16);
}

__device__ inline float hi_of(uint32_t v)
{
    return __uint_as_float(v & 0xffff0000u);
}

/* ---- where things are ---- */

/* The SM that does what is between products for row t. With one row every SM does it. */
__device__ inline int owner_of(int t)
{
    return t * (int)(gridDim.x / KS_COLS);
}

struct context {
    struct smem *s;
    const struct ks_args *a;
    int warp, lane; /* warp within the role */
};

/* Who this thread is, read anew for each segment: what is computed from it would otherwise be
 * carried in registers from segment to segment. */
__device__ inline struct context who(int first_warp)
{
    int tid;
    asm volatile("mov.u32 %0, %%tid.x;" : "=r"(tid));
    return {&block(), &block().args, tid / 32 - first_warp, tid % 32};
}

/* A value that all lanes have, as one that the compiler takes for new: what a segment works with is
 * then not kept from registers by what another kind of segment needs. */
__device__ inline int fresh(int v)
{
    return __shfl_sync(FULL_MASK, v, 0);
}

#define F(k) __shfl_sync(FULL_MASK, cur, k)
#define F64(k) ((uint64_t)__shfl_sync(FULL_MASK, cur, (k) + 1) << 32 | __shfl_sync(FULL_MASK, cur, k))

/* Units of experts that this SM does: [first, first + n) of n_union * KS_XSTRIPES */
__device__ inline void expert_share(int n_union, uint32_t rank, int &first, int &n)
{
    const int64_t all = (int64_t)n_union * KS_XSTRIPES;
    first = (int)(rank * all / gridDim.x);
    n = (int)((rank + 1) * all / gridDim.x) - first;
}

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
    static constexpr int row = D * 2 + 16;              /* bytes of a row in the ring */
    static constexpr int keys = D == 512 ? 10 : 20;     /* rows of a slot */
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

/* KS_TRACE: when each warp's segments began, by the SM's clock */
__device__ inline void trace(uint32_t op, int seg)
{
#ifdef KS_TRACE
    const struct ks_args &a = block().args;
    const int w = (int)threadIdx.x / 32;
    if (threadIdx.x % 32 == 0 && (w == 0 || w >= KS_CONSUMERS) && a.trace)
        a.trace[((int64_t)blockIdx.x * 4 + (w ? w - KS_CONSUMERS + 1 : 0)) * a.max_seg + seg] =
            (uint64_t)clock64() << 8 | op;
#endif
}

/* KS_TRACE: moment k of a layer, by warp 0 of the consumers */
__device__ inline void mark(int layer, int k)
{
#ifdef KS_TRACE
    const struct ks_args &a = block().args;
    if (threadIdx.x == 0 && a.trace)
        a.trace[(int64_t)gridDim.x * 4 * a.max_seg + (blockIdx.x * KS_LAYERS + layer) * 32 + k] =
            (uint64_t)clock64();
#endif
}

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
                          (uint64_t)(at % block_rows) * shape<D>::kv_row +
                          (uint64_t)(it.g * D * 2);
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
            if (c.lane == 0)
                bar_wait(&s.empty[slot], (int)(n / KS_SLOTS & 1) ^ 1, 1, n);
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
            const size_t at = experts ? s.expert[i / KS_XSTRIPES] * mat + i % KS_XSTRIPES * stripe
                                      : i * stripe;
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
            n += feed_plain(n, cur, op == KS_O ? 8 : op == KS_DOWN ? 3 : 4,
                            op == KS_O ? 8192 : KS_SLOT);
    }
}

/* ---- consumers: products ---- */

/* A warp's input: NT tiles, lane (g, q) has row g, inputs 4q .. 4q + 3 of each. GAP: tiles from 8
 * on lie 24 further (the second slot of a stripe of K 4096). p: this lane's first words; of a lane
 * that is off, any. */
template <int NT, bool GAP>
__device__ inline void load_x(uint32_t (&x)[32], const uint64_t *p, bool on, uint32_t tag,
                              int what)
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

struct place {
    struct context c;
    uint32_t n;  /* slots behind */
    int quad, i; /* warp i of its quad */
    int pieces;  /* of this quad, behind */
};

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
#ifdef V_SLEEP
            __nanosleep(500);
#endif
#pragma unroll
            for (int t = 0; t < TILES; t++)
                asm volatile("ld.shared.v2.u32 {%0,%1},[%2];"
                             : "=r"(w[t].x), "=r"(w[t].y)
                             : "r"(ring + slot * KS_SLOT + t * KK_TILE_BYTES)
                             : "memory");
#ifndef V_LATE
            __syncwarp();
            if (lane == 0) bar_arrive(&s.empty[slot]);
#endif
#pragma unroll
            for (int t = 0; t < TILES; t++) {
                const int xt = GLU ? t : k * TILES + t;
                kk__mma(d, x[2 * xt], 0, x[2 * xt + 1], 0, w[t].x, w[t].y);
            }
#ifdef V_LATE
            if (__float_as_uint(d[0]) == 0x12345678) z.pieces |= 0; 
            asm volatile("" :: "f"(d[0]), "f"(d[1]) : "memory");
            __syncwarp();
            if (lane == 0) bar_arrive(&s.empty[slot]);
#endif
            slot += GLU || k == SUB - 1 ? hop : 1;
            if (slot >= KS_SLOTS) slot -= KS_SLOTS, phase ^= 1;
            const int b = z.pieces & (KS_PIECES - 1);
            bar_wait(&s.pempty[z.quad][b], (z.pieces / KS_PIECES & 1) ^ 1, 5, z.n);
            *(float2 *)s.part[z.quad][b][z.i][lane] = make_float2(d[0], d[1]);
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
        load_x<11, false>(x,
                          a.f + (g < a.T ? g : 0) * (KS_F / 2) + (z.quad * 4 + z.i) * 88 + 2 * q,
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
            load_x<11, false>(x,
                              a.fx + (int64_t)(u * KS_COLS + g) * (KS_XF / 2) + z.i * 88 + 2 * q,
                              on, tag, 16);
            multiply<11, 1, false>(z, x, P, nu);
        }
#ifdef V_MEET
        warps_meet<MEET_ALL, KS_CONSUMERS * 32>();
#else
        if (P < KS_QUADS) quads_meet<MEET_XDOWN>(z.quad < P);
#endif
        z.n += (uint32_t)(nu * P);
    }
    return z.pieces;
}

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

__device__ __noinline__ void embed(uint32_t cur, int t, uint32_t tag)
{
    const struct context c = who(0);
    const struct ks_args &a = *c.a;
    const char *table = (const char *)F64(4);
    const float *norm = (const float *)F64(16), scale = __uint_as_float(F(14));
    const int id = __ldg(a.ids + t), l = (c.warp & 7) * 32 + c.lane;
    const bool there = id >= 0 && id < a.vocab;
    struct twelve h, w;
    if (!there && l == 0 && a.fault) a.fault->id = id, a.fault->bound = a.vocab;
    w.load(norm, l);
    const char *row = table + (int64_t)(id >> 3) * (KS_C / KK_TILE_K * KK_TILE_BYTES) +
                      (id & 7) * 32;
#pragma unroll
    for (int k = 0; k < 3; k++) {
        uint2 v = make_uint2(0, 0);
        const int at = 1024 * k + 4 * l;
        if (there && at < KS_C)
            v = __ldg((const uint2 *)(row + (at >> 4) * KK_TILE_BYTES + (at & 15) * 2));
        h.set(k, make_float4(lo_of(v.x) * scale, hi_of(v.x) * scale, lo_of(v.y) * scale,
                             hi_of(v.y) * scale));
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

/* The first half's threads leave dense x, the second's that of experts and router. */
__device__ __noinline__ void after_attention(uint32_t cur, int t, uint32_t tag)
{
    const struct context c = who(0);
    const struct ks_args &a = *c.a;
    const int l = (c.warp & 7) * 32 + c.lane;
    const bool second = c.warp >= 8;
    const float *w3 = (const float *)F64(22);
    struct twelve x, h, p, y;
    p.load((const float *)F64(16), l);
    const float *w1 = (const float *)F64(18), *w2 = (const float *)F64(20);
    y.load(second ? w2 : w1, l);
    mark((int)F(3), 0);
    await_words(a.o + t * KS_C + (l < 192 ? 2048 : 1024) + 4 * l, tag, 20);
    __syncwarp();
    mark((int)F(3), 1);
    x.take(a.o + t * KS_C, l, tag, 20);
    __syncwarp();
    mark((int)F(3), 2);
    const float f = add_to_h(c, x, p, 1.0f, h);
    mark((int)F(3), 3);
    if (second) x.load(w3, l);
    if (!second) keep_h(c, h, l);
    leave(c, h, f, y, second ? 2 : 1, t, l, tag);
    if (second) leave(c, h, f, x, 3, t, l, tag);
    mark((int)F(3), 4);
}

/* The first half's threads have the dense part, the second's that of the experts, until both are
 * added; then the first half's go on. */
__device__ __noinline__ void after_experts(uint32_t cur, int t, int layer,
                                     uint32_t tag)
{
    const struct context c = who(0);
    const struct ks_args &a = *c.a;
    const int l = (c.warp & 7) * 32 + c.lane;
    const bool second = c.warp >= 8;
    const uint64_t *from = (second ? a.xdown : a.down) + t * KS_C;
    const float *w1 = (const float *)F64(16), *w2 = (const float *)F64(18);
    const float *post = (const float *)F64(20), *next = (const float *)F64(22);
    const float scale = __uint_as_float(F(14));
    float *half = (float *)c.s->x[1]; /* and x[2]: nobody reads them now */
    struct twelve x, h, n, p;
    n.load(second ? w2 : w1, l);
    p.load(second ? next : post, l);
    mark((int)F(3), 5);
    await_words(from + (l < 192 ? 2048 : 1024) + 4 * l, tag, 21);
    __syncwarp();
    mark((int)F(3), 6);
    x.take(from, l, tag, 21);
    __syncwarp();
    mark((int)F(3), 7);
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
        n.load(next, l);
    }
    mark((int)F(3), 8);
    const float f = add_to_h(c, x, p, scale, h);
    mark((int)F(3), 9);
    if (second) return;
    keep_h(c, h, l);
    tap_h(c, h, t, l, layer);
    leave(c, h, f, n, 0, t, l, tag + 1);
    mark((int)F(3), 10);
}

__device__ inline void between(uint32_t cur, uint32_t tag)
{
    const struct context c = who(0);
    const uint32_t op = F(0), layer = F(3);
    const int T = c.a->T;
#pragma unroll 1
    for (int t = 0; t < T; t++) {
        if (T > 1 && (int)blockIdx.x != owner_of(t)) continue;
        if (op == KS_EMBED) embed(cur, t, tag);
        if (op == KS_RESID1) after_attention(cur, t, tag);
        if (op == KS_RESID2) after_experts(cur, t, (int)layer, tag);
    }
    __syncwarp();
    if (T == 1) warps_meet<MEET_ALL, KS_CONSUMERS * 32>();
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

    /* Keys of a layer that keeps values: b of two tiles of keys, kt and, where it turns, kt + D/32 */
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

    /* Scores of 16 keys, group kg of the split, by one warp: s[n][..] of keys 8 n .. The first tiles
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
        const uint32_t qa = smem_at(z.c.s->a.q) +
                            ((lane & 7) + (lane >> 3 & 1) * 8) * (D + 8) * 2 + (lane >> 4) * 16;
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
        /* what was copied and patched there was written otherwise than by the bulk copies to come */
        if (z.c.warp == 15 && z.c.lane < slots) {
            asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
            bar_arrive4(&z.c.s->empty[(z.n + (uint32_t)z.c.lane) % KS_SLOTS]);
        }
        __syncwarp();
        z.n += (uint32_t)slots;
    }
};

template <int D>
__device__ __noinline__ uint32_t attend(uint32_t n, uint32_t cur, uint32_t tag)
{
    struct place z = {who(0), n, 0, 0, 0};
    const int layer = (int)F(3);
    const float *q_norm = (const float *)F64(16), *k_norm = (const float *)F64(18);
    for (int b = 0; b < z.c.a->B; b++) {
        int wrap, v = first_item(D == 256, b, wrap);
        struct item it;
        if (v == INT32_MAX) continue;
        for (; make_item(*z.c.a, D == 256, b, v, shape<D>::G, it); v += wrap) {
            struct split_work<D> work = {z, it, layer, tag, q_norm, k_norm};
            work.run();
        }
    }
    return z.n;
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
        case KS_RESID2: between(cur, tag); break;
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
        default: break;
        }
    }
}

/* ---- reducers ---- */

/* pieces: behind, of each quad, as bytes of a word: few enough are ever waited for. units: the
 * warps take turns over all units of the step, so that neither is ever more than a lap of the pieces
 * behind what it waits for. */
struct reduce {
    struct context c;
    uint32_t pieces;
    int units;
    __device__ inline int first() const
    {
        return (c.warp ^ units) & 1;
    }
    /* P quads have done n pieces more, over nu units */
    __device__ inline void pass(int P, int n, int nu)
    {
#pragma unroll
        for (int j = 0; j < KS_QUADS; j++)
            if (j < P) pieces = (pieces & ~(0xffu << 8 * j)) | ((pieces >> 8 * j) + n & 0xff) << 8 * j;
        units += nu;
    }
};

/* The other reducer's carried sums are there. */
__device__ inline void reducers_meet()
{
    warps_meet<MEET_REDUCERS, KS_REDUCERS * 32>();
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
            __syncwarp();
            if (lane == 0) bar_arrive(&s.pempty[j][b]);
            y.x = first ? p[0].x : y.x + p[0].x;
            y.y = first ? p[0].y : y.y + p[0].y;
#pragma unroll
            for (int i = 1; i < 4; i++) y.x += p[i].x, y.y += p[i].y;
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
    store_word(a.attn + ((int64_t)t * KS_H * D + h * D + d) / 2 + c.lane,
               kk__pack2(O0 / L, O1 / L), tag);
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
            uint64_t *to = op == KS_LINEAR_QKV ? a.qkv : op == KS_O ? a.o
                           : op == KS_ROUTER ? a.router : a.down;
            const int ld = op == KS_LINEAR_QKV ? (flags & KS_FULL ? KS_QKV : 8192)
                           : op == KS_ROUTER ? KS_E : KS_C;
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
