/* Private to dev/cuda: products of up to 16 rows, bound by the bytes of the weights. H200, share of
 * the time that 4.47 TB/s takes: head 92 to 100 %, experts 62 (1 row) to 82 % (16), qkv 83 to 63 %,
 * smaller products 33 to 68 %. docs/adr/0022.
 *
 * A block works on a group of stripes. A piece of work is one chain of one stripe. A warp has
 * chains of its own, holds their inputs of x in registers, and goes through the group's stripes
 * (all, or every `ways`-th where there are more warps than chains): it brings its pieces in by bulk
 * copies, `depth` of them ahead, through a ring of its own, and multiplies (weights are operand B).
 * Sums of chains are in shared memory, a buffer for each group; three warps of their own, the
 * summers, add them in ascending order (0020) while the others are at the next groups. So no warp
 * waits for another but at the end: the last group's sums are everybody's, as they stand in the way
 * of what comes next. What the stripes are and what becomes of a sum is the job's:
 *
 *   early()          weights are known before other ops end: they are fetched while those run
 *   eager            the next op may start before this one may: it is small (kk__launch)
 *   begin(tables)    by all threads
 *   groups()         of this block
 *   slots(q)         stripes of group q
 *   inputs(q, s)     of slot s: -1 if it has no stripe; equal numbers: the same rows of x
 *   stripe(q, s)     or NULL
 *   row(q, s, r)     row r of them, or NULL
 *   sum(part, q, i, n)  by thread i of n: part[s * chains + chain][row][output] has what is needed
 *   carries          a thread keeps something from one group to the next: all are the summers' */
#ifndef KK_DEV_CUDA_STREAM_INT_H
#define KK_DEV_CUDA_STREAM_INT_H

#include "dev/cuda/stream_ring_int.h"

#ifdef __CUDACC__
/* The summers' part of a job. ends: nothing comes after it. */
template <class Job> __device__ static inline void kk__add_up(Job &job, kk_sums &sums, bool ends)
{
    const int groups = job.groups() - (ends && !Job::carries);
    for (int q = 0; q < groups; q++) {
        sums.wait_full();
        job.sum(sums.here(), q, kk__summer(), KK_SUMMERS);
        sums.pass(1);
    }
}

template <int ROWS, class Job> struct kk_streamer {
    const kk_stream &g;
    Job &job;
    kk_place &here;
    char *ring;
    uint64_t *bars;
    uint32_t *used;
    int warp, lane;

    __device__ kk_streamer(const kk_stream &g_, Job &job_, kk_place &here_, char *smem)
        : g(g_), job(job_), here(here_)
    {
        warp = (int)threadIdx.x / 32;
        lane = (int)threadIdx.x % 32;
        ring = smem + warp * g.depth * g.chain * KK_TILE_BYTES;
        bars = (uint64_t *)(smem + g.bars_at) + warp * g.depth;
        used = (uint32_t *)(smem + g.used_at) + warp;
    }

    /* tiles of chain c */
    __device__ int tiles_of(int c) const { return min(g.chain, g.tiles - c * g.chain); }

    __device__ void load(uint2 (&a)[KK_STREAM_CHAIN], uint2 (&b)[KK_STREAM_CHAIN], int q, int s,
                         int c) const
    {
        const bf16 *lo = job.row(q, s, lane / 4);
        const bf16 *hi = ROWS == 16 ? job.row(q, s, lane / 4 + 8) : NULL;
        const int k = c * g.chain * KK_TILE_K + lane % 4 * 4, n = tiles_of(c);
        if (g.K % 4 == 0) {
            fetch(a, lo, k, n);
            if (ROWS == 16) fetch(b, hi, k, n);
            return;
        }
#pragma unroll
        for (int t = 0; t < KK_STREAM_CHAIN; t++) {
            const int at = t < n ? k + t * KK_TILE_K : g.K;
            a[t] = lo ? kk__act4(lo, at, g.K) : make_uint2(0, 0);
            if (ROWS == 16) b[t] = hi ? kk__act4(hi, at, g.K) : make_uint2(0, 0);
        }
    }

    /* inputs k .. k + 3 of each tile, zeros past the row's end, which is a multiple of 4 */
    __device__ void fetch(uint2 (&a)[KK_STREAM_CHAIN], const bf16 *row, int k, int n) const
    {
        const int end = row ? min(g.K - k, n * KK_TILE_K) : 0;
#pragma unroll
        for (int t = 0; t < KK_STREAM_CHAIN; t++) {
            a[t] = make_uint2(0, 0);
            if (t * KK_TILE_K < end) a[t] = *(const uint2 *)(row + k + t * KK_TILE_K);
        }
    }

    /* n tiles: weights are on their way from shared memory before they are used */
    template <int n>
    __device__ void multiply(float (&d)[4], const uint2 *w, const uint2 (&a)[KK_STREAM_CHAIN],
                             const uint2 (&b)[KK_STREAM_CHAIN]) const
    {
        uint2 v[n];
#pragma unroll
        for (int t = 0; t < n; t++) v[t] = w[t * (KK_TILE_BYTES / 8)];
#pragma unroll
        for (int t = 0; t < n; t++) {
            kk__mma(d, a[t].x, ROWS == 16 ? b[t].x : 0, a[t].y, ROWS == 16 ? b[t].y : 0, v[t].x,
                    v[t].y);
        }
    }

    __device__ void few(float (&d)[4], const uint2 *w, const uint2 (&a)[KK_STREAM_CHAIN],
                        const uint2 (&b)[KK_STREAM_CHAIN], int n) const
    {
#pragma unroll
        for (int t = 0; t < KK_STREAM_CHAIN; t++)
            if (t < n) {
                const uint2 v = w[t * (KK_TILE_BYTES / 8)];
                kk__mma(d, a[t].x, ROWS == 16 ? b[t].x : 0, a[t].y, ROWS == 16 ? b[t].y : 0, v.x,
                        v.y);
            }
    }

    /* With registers to spare, the inputs of the piece after this are on their way by then. */
    __device__ void run(kk_sums &sums, bool ends)
    {
        const int rows = kk__slice_rows<ROWS>(g.T);
        uint2 a[KK_STREAM_CHAIN], b[KK_STREAM_CHAIN], next[KK_STREAM_CHAIN];
        const int groups = job.groups();
        int have_c = -1, have_x = -1, next_c = -1, next_x = -1;
        int slot = here.slot, phase = here.phase;
        uint32_t done = here.done;
        kk_walk<Job> at;
        at.start(g, job, groups, warp);
        int at_x = at.inputs(job, groups);
        for (int q = 0; q < groups; q++) {
            float *to = sums.here();
            sums.wait_empty();
            while (at.q == q) {
                const int c = at.c, s = at.s, n = tiles_of(c), x = at_x;
                at.next(g, job, groups);
                at_x = at.inputs(job, groups);
                if (x < 0) continue;
                if (c != have_c || x != have_x) {
                    if (ROWS == 8 && c == next_c && x == next_x) {
#pragma unroll
                        for (int t = 0; t < KK_STREAM_CHAIN; t++) a[t] = next[t];
                    } else {
                        load(a, b, q, s, c);
                    }
                    have_c = c;
                    have_x = x;
                }
                if (ROWS == 8 && at_x >= 0 && (at.c != c || at_x != x)) {
                    load(next, b, at.q, at.s, at.c);
                    next_c = at.c;
                    next_x = at_x;
                }
                kk__bar_wait(&bars[slot], phase);
                const uint2 *w = (const uint2 *)(ring + slot * g.chain * KK_TILE_BYTES) + lane;
                float d[4] = {0, 0, 0, 0};
                if (n == 11)
                    multiply<11>(d, w, a, b);
                else if (n == 8)
                    multiply<8>(d, w, a, b);
                else
                    few(d, w, a, b, n);
                if (++slot == g.depth) {
                    slot = 0;
                    phase ^= 1;
                }
                float2 *out = (float2 *)(to + (s * g.chains + c) * rows * 8) + lane;
                if (lane / 4 < rows) out[0] = make_float2(d[0], d[1]);
                if (ROWS == 16 && lane / 4 + 8 < rows) out[32] = make_float2(d[2], d[3]);
                done++;
                __syncwarp(); /* the sums needed all of the slot */
                if (lane == 0) kk__release(used, done);
            }
            if (!ends || Job::carries || q < groups - 1) {
                sums.pass(0);
            } else {
                kk__workers_meet();
                job.sum(to, q, (int)threadIdx.x, kk__workers());
            }
        }
        here = {slot, phase, done};
    }
};

/* Empty rings, by the whole block, which then has to meet. */
__device__ static inline void kk__stream_init(const kk_stream &g, char *smem)
{
    for (int i = (int)threadIdx.x; i < g.warps * g.depth; i += (int)blockDim.x)
        kk__bar_init((uint64_t *)(smem + g.bars_at) + i, 1);
    if ((int)threadIdx.x < g.warps) ((uint32_t *)(smem + g.used_at))[threadIdx.x] = 0;
    kk_sums::init(g, smem);
    asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
}

template <int ROWS, class Job>
__global__ void __launch_bounds__(KK_STREAM_THREADS + 32 + KK_SUMMERS, 1)
    kk__stream(const __grid_constant__ kk_stream g, const __grid_constant__ Job given)
{
    extern __shared__ __align__(1024) char smem[];
    Job job = given;
    const bool early = job.early(), works = (int)threadIdx.x < kk__workers();
    if (Job::eager) cudaTriggerProgrammaticLaunchCompletion();
    kk__stream_init(g, smem);
    if (!early) cudaGridDependencySynchronize();
    job.begin(smem + g.tables_at);
    __syncthreads();
    if (works) {
        if (early) cudaGridDependencySynchronize();
        if (!Job::eager) cudaTriggerProgrammaticLaunchCompletion();
        kk_place here = {0, 0, 0};
        kk_sums sums(g, smem);
        kk_streamer<ROWS, Job>(g, job, here, smem).run(sums, true);
    } else if (kk__summer() >= 0) {
        if (early) cudaGridDependencySynchronize();
        kk_sums sums(g, smem);
        kk__add_up(job, sums, true);
    } else {
        const int lane = (int)threadIdx.x - kk__workers();
        if (lane < g.warps) kk_feeder(g, smem, lane).run(g, job, lane);
        if (blockIdx.y || (int)blockIdx.x >= g.errand.T) return;
        __syncwarp();
        if (early) cudaGridDependencySynchronize();
        for (int t = (int)blockIdx.x; t < g.errand.T; t += (int)gridDim.x)
            kk__choose<KK_CHOSEN_EARLY / 32>(g.errand, t);
    }
}

/* Two jobs, one after the other, as one kernel: the second's weights come while the first ends.
 * Which these are may be known late: then the second has begin_late(tables), by the threads that
 * multiply, which may read what the op before wrote; and knows(tables), by the others after it.
 */
template <int ROWS, class First, class Second>
__global__ void __launch_bounds__(KK_STREAM_THREADS + 32 + KK_SUMMERS, 1)
    kk__stream_two(const __grid_constant__ kk_stream g, const __grid_constant__ First given,
                   const __grid_constant__ kk_stream h, const __grid_constant__ Second given_2)
{
    extern __shared__ __align__(1024) char smem[];
    First first = given;
    Second second = given_2;
    kk__stream_init(h, smem);
    __syncthreads();
    if ((int)threadIdx.x < kk__workers()) {
        kk_place here = {0, 0, 0};
        kk_sums sums(h, smem);
        cudaGridDependencySynchronize();
        cudaTriggerProgrammaticLaunchCompletion();
        if constexpr (Second::late) {
            second.begin_late(smem + h.tables_at);
            kk__all_know();
        }
        kk_streamer<ROWS, First>(g, first, here, smem).run(sums, false);
        kk_streamer<ROWS, Second>(h, second, here, smem).run(sums, true);
    } else if (kk__summer() >= 0) {
        kk_sums sums(h, smem);
        cudaGridDependencySynchronize();
        if constexpr (Second::late) {
            kk__all_know();
            second.knows(smem + h.tables_at);
        }
        kk__add_up(first, sums, false);
        kk__add_up(second, sums, true);
    } else {
        const int lane = (int)threadIdx.x - kk__workers();
        kk_feeder feeder(h, smem, lane);
        if (lane < h.warps) feeder.run(g, first, lane);
        if constexpr (Second::late) {
            __syncwarp();
            kk__all_know();
            second.knows(smem + h.tables_at);
        }
        if (lane < h.warps) feeder.run(h, second, lane);
    }
}

/* Warps so that all have as much to do, a group as large as the room for its sums, then as deep a
 * ring as fits. share: stripes of a block; parts: stripes that belong together; table_bytes: of the
 * job's tables. */
static inline kk_stream kk__stream_plan(int T, int64_t K, int rows, int64_t share, int parts,
                                        int table_bytes)
{
    kk_stream g = {};
    double best = 0;
    g.T = T;
    g.K = (int)K;
    g.tiles = (int)kk__tiles(K);
    g.chain = kk__chain_tiles(g.tiles);
    g.chains = (g.tiles + g.chain - 1) / g.chain;
    for (int w = KK_STREAM_THREADS / 32; w >= 8; w--) {
        const int ways = w / g.chains > 1 ? w / g.chains : 1, turns = (g.chains + w - 1) / w;
        const double busy = (double)(g.chains * ways) / (turns * w);
        if (busy <= best) continue;
        best = busy;
        g.warps = w;
        g.ways = ways;
    }
    const int sums = g.chains * (T < rows ? T : rows) * 32; /* bytes, of a stripe */
    const int piece = g.chain * KK_TILE_BYTES + 8 + 4;
    int64_t slots = (g.chains > g.warps ? KK_STREAM_SUMS_MOST : KK_STREAM_SUMS) / sums;
    if (slots < 2 * g.ways) slots = 2 * g.ways;
    if (slots > share) slots = share;
    slots = slots < parts ? parts : slots / parts * parts;
    g.slots = (int)slots;
    const int all = g.slots * sums, three = 3 * g.warps * piece, fixed = table_bytes + 256;
    g.buffers = slots >= share ? 1 : KK_STREAM_BUFFERED / all;
    if (slots < share && g.buffers < 2) g.buffers = 2;
    if (g.buffers > KK_STREAM_BUFFERS) g.buffers = KK_STREAM_BUFFERS;
    while (g.buffers > 1 && fixed + three + g.buffers * all > KK_STREAM_SMEM) g.buffers--;
    g.part_floats = all / 4;
    g.depth = (KK_STREAM_SMEM - fixed - g.buffers * all) / (g.warps * piece);
    g.depth = g.depth < 1 ? 1 : g.depth > KK_STREAM_DEPTH ? KK_STREAM_DEPTH : g.depth;
    g.part_at = g.warps * g.depth * g.chain * KK_TILE_BYTES;
    g.bars_at = g.part_at + g.buffers * all;
    g.sums_at = g.bars_at + g.warps * g.depth * 8;
    g.used_at = g.sums_at + 2 * g.buffers * 8;
    g.tables_at = (g.used_at + g.warps * 4 + 15) / 16 * 16;
    g.smem = g.tables_at + table_bytes;
    g.window = KK_STREAM_WINDOW / (g.chain * KK_TILE_BYTES);
    return g;
}

/* The first of two jobs of a kernel, beside the second's plan: its warps, rings and room for
 * sums. All of its weights fit in the rings, as who feeds them may have to be done before anyone
 * multiplies. slots 0: they do not go together. */
static inline kk_stream kk__stream_beside(const kk_stream &h, int64_t K, int rows, int64_t share,
                                          int parts)
{
    kk_stream g = h;
    g.K = (int)K;
    g.tiles = (int)kk__tiles(K);
    g.chain = kk__chain_tiles(g.tiles);
    g.chains = (g.tiles + g.chain - 1) / g.chain;
    g.ways = h.warps / g.chains > 1 ? h.warps / g.chains : 1;
    const int64_t slots = h.part_floats * 4 / (g.chains * (h.T < rows ? h.T : rows) * 32);
    g.slots = (int)(slots < share ? slots : share) / parts * parts;
    const int64_t pieces = (share + g.ways - 1) / g.ways * ((g.chains + h.warps - 1) / h.warps);
    if (g.chain != h.chain || pieces > h.depth) g.slots = 0;
    return g;
}

/* how many of n a block has, at most */
static inline int64_t kk__block_share(const struct kk_cuda *c, int64_t n)
{
    return (n + c->sms - 1) / c->sms;
}

/* items: of the grid in all; a block takes at least one */
template <int ROWS, class Job>
static inline void kk__stream_launch(struct kk_cuda *c, const char *op, kk_stream g, const Job &job,
                                     int64_t items)
{
    if (c->router.T || c->beside.T) kk__cuda_release(c);
    if (!Job::eager && c->errand.T) {
        g.errand = c->errand;
        c->errand.T = 0;
        c->routed = c->products + 1; /* when this one has ended */
    }
    const int64_t blocks = items < c->sms ? items : c->sms;
    const unsigned slices = (unsigned)((g.T + ROWS - 1) / ROWS);
    static int known[KK_CUDA_GPUS];
    kk__allow(c, op, (const void *)kk__stream<ROWS, Job>, g.smem, known);
    kk__launch(c, op, kk__stream<ROWS, Job>, dim3((unsigned)blocks, slices),
               dim3((unsigned)g.warps * 32 + 32 + KK_SUMMERS), (size_t)g.smem, g, job);
    c->products += !Job::eager;
}

/* items: of the job that has more */
template <int ROWS, class First, class Second>
static inline void kk__stream_launch_two(struct kk_cuda *c, const char *op, const kk_stream &g,
                                         const First &first, const kk_stream &h,
                                         const Second &second, int64_t items)
{
    static int known[KK_CUDA_GPUS];
    const int64_t blocks = items < c->sms ? items : c->sms;
    kk__allow(c, op, (const void *)kk__stream_two<ROWS, First, Second>, h.smem, known);
    kk__launch(c, op, kk__stream_two<ROWS, First, Second>, dim3((unsigned)blocks),
               dim3((unsigned)h.warps * 32 + 32 + KK_SUMMERS), (size_t)h.smem, g, first, h, second);
    c->products++;
}
#endif

#endif
