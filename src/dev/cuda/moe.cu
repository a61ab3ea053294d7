/* The router and the experts. Few rows: stream_int.h, every block finding out which experts its
 * rows go to. Many: pairs of a row and one of its experts are sorted by expert (group), go through
 * the two products expert by expert (large_int.h), and each row then adds up its own (combine). */
#include "dev/cuda/large_int.h"
#include "dev/cuda/linear_int.h"

namespace
{

enum { MAX_ACTIVE = 32, MAX_EXPERTS = 1024, DOWN_COLUMNS = 4 };

/* ---- route -------------------------------------------------------------------------------- */

__global__ void __launch_bounds__(256) choose_rows(const __grid_constant__ kk_router r)
{
    const int t = (int)(blockIdx.x * blockDim.x + threadIdx.x) / 32;
    cudaGridDependencySynchronize();
    cudaTriggerProgrammaticLaunchCompletion();
    if (t >= r.T) return;
    if (r.E <= KK_CHOSEN_EARLY)
        kk__choose<KK_CHOSEN_EARLY / 32>(r, t);
    else
        kk__choose<MAX_EXPERTS / 32>(r, t);
}

/* Logits by the product. The next op's weights stream meanwhile. */
template <int ROWS> struct route_job : kk_linear_job<ROWS> {
    static constexpr bool eager = true;
};

/* ---- the experts of a slice of rows ------------------------------------------------------- */

/* Which experts a slice's rows go to, in shared memory of each block: from idx, or, of up to 16
 * rows, chosen by every block for itself from logits that are there. */
struct picks {
    static constexpr int none = 255;
    const int32_t *idx;
    const float *weight;
    int T, E, A;
    int *list, *count; /* experts with rows, ascending; how many */
    float *times;      /* [16][A]: the weights of a row's choices */
    uint8_t *slot;     /* [E][16]: which of a row's choices an expert is */
    kk_router chooses; /* T 0: idx and weight have them */
    int tells;         /* block 0 writes idx and weight */

    static size_t bytes(int E, int A) { return (size_t)E * (16 + 4) + 16 + (size_t)A * 16 * 4; }

    __device__ void place(char *at)
    {
        slot = (uint8_t *)at;
        times = (float *)(slot + E * 16);
        count = (int *)(times + 16 * A);
        list = count + 4;
    }
    template <int ROWS> __device__ void begin(char *at)
    {
        const int t0 = (int)blockIdx.y * ROWS, rows = min(ROWS, T - t0);
        place(at);
        if (!chooses.T) {
            clear((int)blockDim.x);
            __syncthreads();
            for (int i = (int)threadIdx.x; i < rows * A; i += (int)blockDim.x) {
                const int e = idx[t0 * A + i];
                if (e >= 0 && e < E) slot[e * 16 + i / A] = (uint8_t)(i % A);
                times[i] = weight[t0 * A + i];
            }
            __syncthreads();
            enlist();
        } else if ((int)threadIdx.x < kk__workers()) {
            choose();
        }
        __syncthreads();
    }
    /* By the threads that multiply. The first warp has the list when it returns. */
    __device__ void choose()
    {
        const int lane = (int)threadIdx.x % 32;
        clear(kk__workers());
        kk__workers_meet();
        for (int t = (int)threadIdx.x / 32; t < T; t += kk__workers() / 32) {
            const kk_choice c = kk__chosen<KK_CHOSEN_EARLY / 32>(chooses, t);
            if (lane < A) slot[c.at * 16 + t] = (uint8_t)lane;
            if (lane < A) times[t * A + lane] = c.weight;
            if (tells && blockIdx.x == 0) kk__put_choice(chooses, t, c);
        }
        kk__workers_meet();
        enlist();
    }
    __device__ void clear(int threads)
    {
        for (int i = (int)threadIdx.x; i < E * 4; i += threads) ((uint32_t *)slot)[i] = ~0u;
    }
    __device__ void enlist()
    {
        int have = 0;
        if (threadIdx.x >= 32) return;
        for (int e0 = 0; e0 < E; e0 += 32) {
            const int e = e0 + (int)threadIdx.x;
            uint4 v = e < E ? ((const uint4 *)slot)[e] : make_uint4(~0u, ~0u, ~0u, ~0u);
            const uint32_t any = __ballot_sync(~0u, (v.x & v.y & v.z & v.w) != ~0u);
            if (any >> threadIdx.x & 1) list[have + __popc(any & ((1u << threadIdx.x) - 1))] = e;
            have += __popc(any);
        }
        if (threadIdx.x == 0) *count = have;
    }
};

/* h[row, choice, F] = act(gate x) * (up x). An item is 8 numbers of one expert: a stripe of gate,
 * one of up, or the two that the 8 lie in where F is no multiple of 8 (PARTS 3). */
template <int ROWS, int PARTS> struct gate_up_job {
    static constexpr bool eager = false, late = true, carries = false;
    picks p;
    int settled; /* p.idx is there before the op before this one has ended */
    const char *w;
    size_t mat_bytes, stripe_bytes;
    const bf16 *x;
    bf16 *h;
    enum kk_activation act;
    int K, F, total, most, chains; /* total: stripes of a matrix; most: of a group */
    kk_div items;                  /* of an expert */

    __device__ int item(int q, int s) const
    {
        return (int)blockIdx.x + (q * most + s) / PARTS * (int)gridDim.x;
    }
    __device__ int mine() const
    {
        const int n = *p.count * (int)items.d - (int)blockIdx.x + (int)gridDim.x - 1;
        return n / (int)gridDim.x * PARTS;
    }
    __device__ bool early() const { return settled; }
    __device__ void begin(char *tables) { p.begin<ROWS>(tables); }
    __device__ void begin_late(char *tables)
    {
        p.place(tables);
        p.choose();
    }
    __device__ void knows(char *tables) { p.place(tables); }
    __device__ int groups() const { return (mine() + most - 1) / most; }
    __device__ int slots(int q) const { return min(most, mine() - q * most); }
    /* which stripe of its matrix */
    __device__ int which(int i, int part) const
    {
        const int n = items.rest(i);
        return part ? (F + n * 8) / 8 + part - 1 : n;
    }
    __device__ const char *stripe(int q, int s) const
    {
        const int i = item(q, s), n = which(i, s % PARTS);
        if (n >= total) return NULL;
        return w + (size_t)p.list[items.of(i)] * mat_bytes + (size_t)n * stripe_bytes;
    }
    __device__ int inputs(int q, int s) const
    {
        return PARTS == 3 && which(item(q, s), s % PARTS) >= total ? -1 : 0;
    }
    __device__ const bf16 *row(int, int, int r) const
    {
        r += (int)blockIdx.y * ROWS;
        return r < p.T ? x + (size_t)r * (size_t)K : NULL;
    }
    __device__ void sum(const float *part, int q, int first, int many) const
    {
        const int rows = kk__slice_rows<ROWS>(p.T), n = slots(q) / PARTS, step = rows * 8;
        for (int j = first; j < n * step; j += many) {
            const int s = j / step * PARTS, e = j % step, r = e / 8, o = e % 8;
            const int i = item(q, s), a = items.of(i), f = items.rest(i) * 8 + o;
            const int slot = p.slot[p.list[a] * 16 + r], at = F % 8 + o;
            if (f >= F || slot == picks::none) continue;
            const float *g = part + s * chains * step + e;
            const float *u = g + (1 + at / 8) * chains * step + at % 8 - o;
            const float y = kk__act(act, kk__chains(g, chains, step)) * kk__chains(u, chains, step);
            const size_t pair = (size_t)((int)blockIdx.y * ROWS + r) * (size_t)p.A + (size_t)slot;
            h[pair * (size_t)F + (size_t)f] = __float2bfloat16_rn(y);
        }
    }
};

/* y = sum of weight * down h over experts, ascending. A block has up to `columns` stripes of
 * outputs at a time and goes through the experts for them, `experts` in a group: slot
 * (a / ways * columns + column) * ways + a % ways, so that a warp takes an expert's h once. Which
 * experts is read, or chosen, before gate_up has ended: it waited for what wrote idx, or logits,
 * before it let this kernel start. */
template <int ROWS> struct down_job {
    static constexpr bool eager = false, carries = true;
    enum { TOTALS = (DOWN_COLUMNS * ROWS * 8 + KK_SUMMERS - 1) / KK_SUMMERS };
    picks p;
    const char *w;
    size_t mat_bytes, stripe_bytes;
    const bf16 *h;
    float *y;
    int F, C, stripes, experts, chains;
    kk_div columns, ways, turns; /* turns: groups of all experts */
    float total[TOTALS];         /* of the rows and outputs that are this thread's */

    __device__ int expert(int q, int a) const
    {
        a += turns.rest(q) * experts;
        return a < *p.count ? p.list[a] : -1;
    }
    __device__ int output(int q, int column) const
    {
        return (int)blockIdx.x + (turns.of(q) * (int)columns.d + column) * (int)gridDim.x;
    }
    __device__ int of_slot(int s) const
    {
        return columns.of(ways.of(s)) * (int)ways.d + ways.rest(s);
    }
    __device__ bool early() const { return true; }
    __device__ void begin(char *tables)
    {
        p.begin<ROWS>(tables);
        turns = kk_div(max(1, (*p.count + experts - 1) / experts));
    }
    __device__ int groups() const
    {
        const int mine = (stripes - (int)blockIdx.x + (int)gridDim.x - 1) / (int)gridDim.x;
        return (mine + (int)columns.d - 1) / (int)columns.d * (int)turns.d;
    }
    __device__ int slots(int) const { return experts * (int)columns.d; }
    __device__ const char *stripe(int q, int s) const
    {
        const int e = expert(q, of_slot(s)), n = output(q, columns.rest(ways.of(s)));
        if (e < 0 || n >= stripes) return NULL;
        return w + (size_t)e * mat_bytes + (size_t)n * stripe_bytes;
    }
    __device__ int inputs(int q, int s) const
    {
        return output(q, columns.rest(ways.of(s))) < stripes ? expert(q, of_slot(s)) : -1;
    }
    __device__ const bf16 *row(int q, int s, int r) const
    {
        const int slot = p.slot[expert(q, of_slot(s)) * 16 + r];
        if (slot == picks::none) return NULL;
        const size_t t = (size_t)((int)blockIdx.y * ROWS + r);
        return h + (t * (size_t)p.A + (size_t)slot) * (size_t)F;
    }
    __device__ void sum(const float *part, int q, int first, int many)
    {
        const int step = kk__slice_rows<ROWS>(p.T) * 8, turn = turns.rest(q);
        int at[TOTALS], row[TOTALS], to[TOTALS]; /* in part; of the slice; in y, or -1 */
#pragma unroll
        for (int i = 0; i < TOTALS; i++) {
            const int j = first + i * many, column = j / step, e = j - column * step;
            const int n = output(q, column) * 8 + e % 8;
            row[i] = e / 8;
            at[i] = column * (int)ways.d * chains * step + e;
            to[i] = column < (int)columns.d && n < C ? n : -1;
            if (!turn) total[i] = 0;
        }
        for (int a = 0; a < experts; a++) {
            const int x = expert(q, a);
            if (x < 0) break;
            const int s = ways.of(a) * (int)(columns.d * ways.d) + ways.rest(a);
#pragma unroll
            for (int i = 0; i < TOTALS; i++) {
                const int slot = to[i] < 0 ? picks::none : p.slot[x * 16 + row[i]];
                if (slot == picks::none) continue;
                total[i] =
                    __fmaf_rn(p.times[row[i] * p.A + slot],
                              kk__chains(part + at[i] + s * chains * step, chains, step), total[i]);
            }
        }
        if (turn < (int)turns.d - 1) return;
#pragma unroll
        for (int i = 0; i < TOTALS; i++) {
            const int t = (int)blockIdx.y * ROWS + row[i];
            if (to[i] >= 0) y[(size_t)t * (size_t)C + (size_t)to[i]] = total[i];
        }
    }
};

/* ---- the experts of many rows ------------------------------------------------------------- */

enum { GROUP_THREADS = 1024, COMBINE_THREADS = 256 };

/* Pairs sorted by expert: expert e has places first[e] .. first[e + 1], in tiles_to[e] ..
 * tiles_to[e + 1] of KK_LARGE_ROWS; list[place] is a pair, row * A + choice; where[pair] its place.
 */
struct groups {
    int *first, *tiles_to, *list, *where;
};

/* the sum of v over the threads before this one; *all: over all */
__device__ int sum_before(int v, int *tmp, int *all)
{
    const int lane = (int)threadIdx.x % 32, warp = (int)threadIdx.x / 32;
    int upto = v;
    for (int o = 1; o < 32; o *= 2) {
        const int x = __shfl_up_sync(~0u, upto, o);
        if (lane >= o) upto += x;
    }
    __syncthreads();
    if (lane == 31) tmp[warp] = upto;
    __syncthreads();
    int before = 0, total = 0;
    for (int w = 0; w < GROUP_THREADS / 32; w++) {
        if (w < warp) before += tmp[w];
        total += tmp[w];
    }
    *all = total;
    return before + upto - v;
}

/* One block. Where a place falls among an expert's is left to chance: no row's bits know it. */
__global__ void __launch_bounds__(GROUP_THREADS, 1)
    group(const int32_t *idx, int pairs, int E, groups g)
{
    __shared__ int count[MAX_EXPERTS], tmp[GROUP_THREADS / 32];
    const int e = (int)threadIdx.x;
    int all, all_tiles;
    cudaGridDependencySynchronize();
    cudaTriggerProgrammaticLaunchCompletion();
    count[e] = 0;
    __syncthreads();
    for (int i = e; i < pairs; i += GROUP_THREADS)
        if (idx[i] >= 0 && idx[i] < E) atomicAdd(&count[idx[i]], 1);
    __syncthreads();
    const int n = count[e], tiles = (n + KK_LARGE_ROWS - 1) / KK_LARGE_ROWS;
    const int at = sum_before(n, tmp, &all), tile = sum_before(tiles, tmp, &all_tiles);
    if (e < E) {
        g.first[e] = at;
        g.tiles_to[e] = tile;
    }
    if (e == 0) {
        g.first[E] = all;
        g.tiles_to[E] = all_tiles;
    }
    count[e] = at;
    __syncthreads();
    for (int i = e; i < pairs; i += GROUP_THREADS) {
        if (idx[i] < 0 || idx[i] >= E) continue;
        const int place = atomicAdd(&count[idx[i]], 1);
        g.list[place] = i;
        g.where[i] = place;
    }
}

/* The tile taken: rows of one expert, a column of its outputs. Row tiles of a column are next to
 * each other, so that its weights are read once. */
struct expert_tile {
    groups g;
    int E, columns;
    int e, n, place, column;
    const int *first, *tiles_to; /* in shared memory */

    static int bytes(int E) { return 2 * (E + 1) * (int)sizeof(int); }

    __device__ void begin(char *tables)
    {
        int *to = (int *)tables;
        for (int i = (int)threadIdx.x; i <= E; i += (int)blockDim.x) {
            to[i] = g.first[i];
            to[E + 1 + i] = g.tiles_to[i];
        }
        first = to;
        tiles_to = to + E + 1;
        __syncthreads();
    }
    __device__ int tiles() const { return tiles_to[E] * columns; }
    __device__ void take(int i)
    {
        int lo = 0, hi = E; /* tiles_to[lo] * columns <= i < tiles_to[hi] * columns */
        while (hi - lo > 1) {
            const int mid = (lo + hi) / 2;
            if (tiles_to[mid] * columns <= i)
                lo = mid;
            else
                hi = mid;
        }
        const int all = tiles_to[lo + 1] - tiles_to[lo], at = i - tiles_to[lo] * columns;
        e = lo;
        column = at / all;
        place = first[lo] + at % all * KK_LARGE_ROWS;
        n = min((int)KK_LARGE_ROWS, first[lo + 1] - place);
    }
};

struct gate_up_tiles {
    expert_tile t;
    const char *w;
    size_t mat_bytes, stripe_bytes;
    const bf16 *in;
    bf16 *h;
    enum kk_activation act;
    int K, F, A, stripes; /* of gate */
    int n, f;             /* f: the number that a thread writes */

    __device__ bool settled() const { return false; }
    __device__ void begin(char *tables) { t.begin(tables); }
    __device__ int tiles() const { return t.tiles(); }
    __device__ void take(int i)
    {
        t.take(i);
        n = t.n;
    }
    __device__ const char *stripe(int s) const
    {
        const int i = min(t.column * (KK_LARGE_STRIPES / 2) + s / 2, stripes - 1);
        return w + (size_t)t.e * mat_bytes + (size_t)(i + s % 2 * stripes) * stripe_bytes;
    }
    __device__ const bf16 *x() const { return in; }
    __device__ int row(int r) const { return t.g.list[t.place + r] / A; }
    __device__ void open(int s, int o) { f = (t.column * (KK_LARGE_STRIPES / 2) + s / 2) * 8 + o; }
    __device__ void store(int r, float gate, float up) const
    {
        if (f < F)
            h[(size_t)(t.place + r) * (size_t)F + (size_t)f] =
                __float2bfloat16_rn(kk__act(act, gate) * up);
    }
};

struct down_tiles {
    expert_tile t;
    const char *w;
    size_t mat_bytes, stripe_bytes;
    const bf16 *h;
    float *d;
    int F, C, stripes;
    int n, at; /* at: the first of the two outputs that a thread writes */

    __device__ bool settled() const { return false; }
    __device__ void begin(char *tables) { t.begin(tables); }
    __device__ int tiles() const { return t.tiles(); }
    __device__ void take(int i)
    {
        t.take(i);
        n = t.n;
    }
    __device__ const char *stripe(int s) const
    {
        const int i = min(t.column * KK_LARGE_STRIPES + s, stripes - 1);
        return w + (size_t)t.e * mat_bytes + (size_t)i * stripe_bytes;
    }
    __device__ const bf16 *x() const { return h; }
    __device__ int row(int r) const { return t.place + r; }
    __device__ void open(int s, int o) { at = (t.column * KK_LARGE_STRIPES + s) * 8 + o; }
    __device__ void store(int r, float a, float b) const
    {
        float *to = d + (size_t)(t.place + r) * (size_t)C + (size_t)at;
        if (at < C) to[0] = a;
        if (at + 8 < C) to[8] = b;
    }
};

/* A block for each row; C is a multiple of 4. */
__global__ void __launch_bounds__(COMBINE_THREADS)
    combine(const int32_t *idx, const float *weight, const int *where, const float *d, int A, int C,
            float *y)
{
    __shared__ int place[MAX_ACTIVE];
    __shared__ float times[MAX_ACTIVE];
    const int t = (int)blockIdx.x, mine = (int)threadIdx.x;
    cudaGridDependencySynchronize();
    cudaTriggerProgrammaticLaunchCompletion();
    if (mine < A) {
        int before = 0;
        for (int i = 0; i < A; i++) before += idx[t * A + i] < idx[t * A + mine];
        place[before] = where[t * A + mine];
        times[before] = weight[t * A + mine];
    }
    __syncthreads();
    for (int c = mine * 4; c < C; c += COMBINE_THREADS * 4) {
        float4 v = {0, 0, 0, 0};
#pragma unroll 8
        for (int i = 0; i < A; i++) {
            const float4 x = *(const float4 *)(d + (size_t)place[i] * (size_t)C + (size_t)c);
            v.x = __fmaf_rn(times[i], x.x, v.x);
            v.y = __fmaf_rn(times[i], x.y, v.y);
            v.z = __fmaf_rn(times[i], x.z, v.z);
            v.w = __fmaf_rn(times[i], x.w, v.w);
        }
        *(float4 *)(y + (size_t)t * (size_t)C + (size_t)c) = v;
    }
}

/* ---- scratch ------------------------------------------------------------------------------ */

struct room {
    size_t logits, h, d, list, where, first, tiles_to, end;
};

size_t take(size_t *at, size_t bytes)
{
    const size_t here = *at;
    *at += (bytes + 255) / 256 * 256;
    return here;
}

room plan(const struct kk_limits *l)
{
    const size_t T = (size_t)l->max_rows, pairs = T * (size_t)l->max_active;
    const size_t E = (size_t)(l->max_experts ? l->max_experts : (int)MAX_EXPERTS);
    room r = {};
    if (!pairs) return r;
    r.logits = take(&r.end, T * E * sizeof(float));
    r.h = take(&r.end, pairs * (size_t)l->max_expert_width * sizeof(bf16));
    r.d = take(&r.end, pairs * (size_t)l->max_model_width * sizeof(float));
    r.list = take(&r.end, pairs * sizeof(int));
    r.where = take(&r.end, pairs * sizeof(int));
    r.first = take(&r.end, (E + 1) * sizeof(int));
    r.tiles_to = take(&r.end, (E + 1) * sizeof(int));
    return r;
}

bool too_many(struct kk_cuda *c, int E, int A, const char *op)
{
    const bool is = A > MAX_ACTIVE || E > MAX_EXPERTS;
    if (is) kk__cuda_latch(c, cudaErrorInvalidValue, op);
    return is;
}

/* ---- launching ---------------------------------------------------------------------------- */

kk_linear_args logits_of(const struct kk_route_args *a, float *logits)
{
    kk_linear_args l = {};
    l.T = a->T;
    l.n = 1;
    l.x = a->x;
    l.w[0] = a->w;
    l.y[0] = logits;
    return l;
}

template <int ROWS> void route_rows(struct kk_cuda *c, const kk_linear_args *a)
{
    route_job<ROWS> j = {};
    (kk_linear_job<ROWS> &)j = kk__linear_job<ROWS>(a);
    const kk_stream g = kk__stream_plan(a->T, j.K, ROWS, kk__block_share(c, j.stripes), 1, 0);
    j.most = g.slots;
    j.chains = g.chains;
    kk__stream_launch<ROWS>(c, "route", g, j, j.stripes);
}

void route_product(struct kk_cuda *c, const kk_linear_args *a)
{
    if (a->T <= 8)
        route_rows<8>(c, a);
    else
        route_rows<16>(c, a);
}

/* With the product that waits for it, if there is one and they go together. */
template <int ROWS, int PARTS>
void gate_up_rows(struct kk_cuda *c, const struct kk_moe_args *a, const picks &p, bf16 *h)
{
    const int64_t pairs = (int64_t)a->T * a->A;
    gate_up_job<ROWS, PARTS> j = {};
    j.p = p;
    j.settled = !p.chooses.T && c->products > c->routed;
    j.w = (const char *)a->gate_up->data;
    j.mat_bytes = a->gate_up->mat_bytes;
    j.x = (const bf16 *)a->x;
    j.h = h;
    j.act = a->act;
    j.K = (int)a->gate_up->cols;
    j.F = (int)a->down->cols;
    j.items = kk_div((int)kk__stripes(j.F));
    j.total = (int)kk__stripes(2 * j.F);
    const int64_t items = (pairs < a->E ? pairs : a->E) * (int64_t)j.items.d;
    const kk_stream g = kk__stream_plan(a->T, j.K, ROWS, PARTS * kk__block_share(c, items), PARTS,
                                        (int)picks::bytes(a->E, a->A));
    j.stripe_bytes = (size_t)g.tiles * KK_TILE_BYTES;
    j.most = g.slots;
    j.chains = g.chains;
    if (c->beside.T && p.chooses.T && PARTS == 2) {
        const struct kk_linear_args beside = c->beside;
        kk_linear_job<ROWS> b = kk__linear_job<ROWS>(&beside);
        const kk_stream with = kk__stream_beside(g, b.K, ROWS, kk__block_share(c, b.stripes), 1);
        b.most = with.slots;
        b.chains = with.chains;
        if (with.slots) {
            c->beside.T = 0;
            kk__stream_launch_two<ROWS>(c, "moe gate_up", with, b, g, j,
                                        items > b.stripes ? items : b.stripes);
            return;
        }
    }
    kk__stream_launch<ROWS>(c, "moe gate_up", g, j, items);
}

template <int ROWS>
void down_rows(struct kk_cuda *c, const struct kk_moe_args *a, const picks &p, const bf16 *h)
{
    const int64_t pairs = (int64_t)a->T * a->A;
    down_job<ROWS> j = {};
    j.p = p;
    j.w = (const char *)a->down->data;
    j.mat_bytes = a->down->mat_bytes;
    j.h = h;
    j.y = a->y;
    j.F = (int)a->down->cols;
    j.C = (int)a->down->rows;
    j.stripes = (int)kk__stripes(j.C);
    const int64_t share = kk__block_share(c, j.stripes);
    const int ways = kk__stream_plan(a->T, j.F, ROWS, 1, 1, 0).ways;
    const int columns = (int)(share < DOWN_COLUMNS ? share : (int64_t)DOWN_COLUMNS);
    const int64_t experts = ((pairs < a->E ? pairs : a->E) + ways - 1) / ways * ways;
    const kk_stream g = kk__stream_plan(a->T, j.F, ROWS, experts * columns, ways * columns,
                                        (int)picks::bytes(a->E, a->A));
    j.columns = kk_div(columns);
    j.experts = g.slots / columns;
    j.ways = kk_div(g.ways);
    j.chains = g.chains;
    j.stripe_bytes = (size_t)g.tiles * KK_TILE_BYTES;
    kk__stream_launch<ROWS>(c, "moe down", g, j, j.stripes);
}

/* The choice that waits is for these experts: every block then makes it for itself. */
bool is_for(const struct kk_router *r, const struct kk_moe_args *a)
{
    return r->T == a->T && a->T <= KK_HELD_ROWS && r->E <= KK_CHOSEN_EARLY && r->E == a->E &&
           r->A == a->A && r->idx == a->idx && r->weight == a->weight;
}

template <int ROWS> void moe_rows(struct kk_cuda *c, const struct kk_moe_args *a)
{
    picks p = {a->idx, a->weight, a->T, a->E, a->A, NULL, NULL, NULL, NULL, {}, 1};
    if (!c->router.T && is_for(&c->errand, a)) {
        p.chooses = c->errand;
        c->errand.T = 0;
    }
    bf16 *h = (bf16 *)(c->scratch + c->moe_at + plan(&c->limits).h);
    if (a->down->cols % 8)
        gate_up_rows<ROWS, 3>(c, a, p, h);
    else
        gate_up_rows<ROWS, 2>(c, a, p, h);
    p.tells = 0;
    down_rows<ROWS>(c, a, p, h);
}

void moe_many(struct kk_cuda *c, const struct kk_moe_args *a)
{
    const room m = plan(&c->limits);
    char *const base = c->scratch + c->moe_at;
    const groups by = {(int *)(base + m.first), (int *)(base + m.tiles_to), (int *)(base + m.list),
                       (int *)(base + m.where)};
    const int F = (int)a->down->cols, K = (int)a->gate_up->cols, C = (int)a->down->rows;
    const kk_large in = kk__large_plan(K, expert_tile::bytes(a->E));
    const kk_large out = kk__large_plan(F, expert_tile::bytes(a->E));
    gate_up_tiles u = {};
    down_tiles d = {};
    u.t.g = d.t.g = by;
    u.t.E = d.t.E = a->E;
    u.w = (const char *)a->gate_up->data;
    u.mat_bytes = a->gate_up->mat_bytes;
    u.stripe_bytes = (size_t)in.tiles * KK_TILE_BYTES;
    u.in = (const bf16 *)a->x;
    d.h = u.h = (bf16 *)(base + m.h);
    u.act = a->act;
    u.K = K;
    d.F = u.F = F;
    u.A = a->A;
    u.stripes = F / 8;
    u.t.columns = (2 * u.stripes + KK_LARGE_STRIPES - 1) / KK_LARGE_STRIPES;
    d.w = (const char *)a->down->data;
    d.mat_bytes = a->down->mat_bytes;
    d.stripe_bytes = (size_t)out.tiles * KK_TILE_BYTES;
    d.d = (float *)(base + m.d);
    d.C = C;
    d.stripes = (int)kk__stripes(C);
    d.t.columns = (d.stripes + KK_LARGE_STRIPES - 1) / KK_LARGE_STRIPES;
    kk__launch(c, "moe", group, dim3(1), dim3(GROUP_THREADS), 0, a->idx, a->T * a->A, a->E, by);
    kk__large_launch(c, "moe gate_up", in, u, c->sms);
    kk__large_launch(c, "moe down", out, d, c->sms);
    kk__launch(c, "moe", combine, dim3((unsigned)a->T), dim3(COMBINE_THREADS), 0, a->idx, a->weight,
               by.where, d.d, a->A, C, a->y);
}

} // namespace

size_t kk__cuda_moe_scratch(const struct kk_cuda *, const struct kk_limits *l)
{
    return plan(l).end;
}

void kk__cuda_choose(struct kk_cuda *c)
{
    const kk_router r = c->errand;
    c->errand.T = 0;
    c->routed = c->products;
    kk__launch(c, "route", choose_rows, dim3((unsigned)(r.T + 7) / 8), dim3(256), 0, r);
}

void kk__cuda_release(struct kk_cuda *c)
{
    const kk_linear_args router = c->router, beside = c->beside;
    c->router.T = c->beside.T = 0;
    if (router.T) {
        route_product(c, &router);
        c->errand = c->to_choose;
    }
    const kk_router errand = c->errand;
    c->errand.T = 0;
    if (beside.T) kk__cuda_linear(&c->dev, &beside);
    c->errand = errand;
    if (errand.T) kk__cuda_choose(c);
}

void kk__cuda_route(struct kk_dev *dev, const struct kk_route_args *a)
{
    if (a->T < 1) return;
    struct kk_cuda *c = kk__cuda(dev);
    if (too_many(c, a->E, a->A, "route")) return;
    float *logits = (float *)(c->scratch + c->moe_at + plan(&c->limits).logits);
    const kk_linear_args l = logits_of(a, logits);
    const kk_router r = {logits, a->expert_scale, a->idx, a->weight, a->T, a->E, a->A};
    if (kk__cuda_holds(c)) kk__cuda_release(c); /* the errand before is of the same logits */
    if (a->T <= KK_HELD_ROWS && a->E <= KK_CHOSEN_EARLY) {
        c->router = l;
        c->to_choose = r;
        return;
    }
    if (a->T > 128)
        kk__cuda_linear(dev, &l);
    else
        route_product(c, &l);
    c->errand = r;
    if (a->T > KK_CHOSEN_ROWS || a->E > KK_CHOSEN_EARLY) kk__cuda_choose(c);
}

void kk__cuda_moe(struct kk_dev *dev, const struct kk_moe_args *a)
{
    if (a->T < 1) return;
    struct kk_cuda *c = kk__cuda(dev);
    if (too_many(c, a->E, a->A, "moe")) return;
    const bool few = a->T <= 16 || a->down->cols % 8 || !kk__large_fits(a->gate_up->cols);
    if (few && c->router.T == a->T) { /* nothing stands between: its product goes alone */
        const kk_linear_args router = c->router;
        c->router.T = 0;
        route_product(c, &router);
        c->errand = c->to_choose;
    }
    if (kk__cuda_holds(c) && !(few && !c->router.T && is_for(&c->errand, a))) kk__cuda_release(c);
    if (!few)
        moe_many(c, a);
    else if (a->T <= 8)
        moe_rows<8>(c, a);
    else
        moe_rows<16>(c, a);
}
