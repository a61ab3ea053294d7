/* Private to dev/cuda: products of many rows, bound by the tensor cores (or by the bytes of the
 * weights, where rows are few for each expert). H200: experts of 17 to 512 rows 78 to 84 % of their
 * floor, dense products of 2048 rows 350 to 475 TFLOP/s, experts of 2048 260. docs/adr/0022.
 *
 * A tile is 16 stripes (128 outputs) by up to 192 rows of x. Eight warps bring both into a ring in
 * shared memory, 4 tiles of inputs at a time, 16 bytes a thread, 8 threads 128 bytes that follow
 * each other, put where wgmma looks for them when it swizzles: x by 128 bytes, tiles of weights by
 * 32. Two groups of four warps multiply, each 64 outputs; a chain is one accumulator, added to the
 * sum in registers: 0020, whose order wgmma keeps as mma.sync does. One group's additions pass
 * while the other multiplies. Blocks stay, and take every gridDim-th tile. Inputs are a multiple of
 * 8.
 *
 *   settled()        the op before wrote neither rows of x nor what begin reads
 *   begin(tables)    by all threads
 *   tiles()          in all
 *   take(i)          tile i is now this thread's; n is its rows
 *   stripe(s)        stripe s of 16
 *   x()              inputs, [.., K]
 *   row(r)           which of them is row r
 *   open(s, o)       what store is going to write: output o of stripes s and s + 1, s even
 *   store(r, a, b)   theirs of row r */
#ifndef KK_DEV_CUDA_LARGE_INT_H
#define KK_DEV_CUDA_LARGE_INT_H

#include "dev/cuda/stream_int.h"
#include "dev/cuda/wgmma_int.h"

enum {
    KK_LARGE_STRIPES = 16,
    KK_LARGE_ROWS = 192, /* of a tile, at most */
    KK_LARGE_STEP = 4,   /* tiles of inputs in a slot of the ring */
    KK_LARGE_SLOTS = 5,  /* of the ring */
    KK_LARGE_LOAD_WARPS = 8,
    KK_LARGE_THREADS = 256 + KK_LARGE_LOAD_WARPS * 32, /* two groups multiply, the others load */
    KK_LARGE_W_BYTES = KK_LARGE_STRIPES * KK_LARGE_STEP * KK_TILE_BYTES,
    KK_LARGE_SLOT_BYTES = KK_LARGE_W_BYTES + KK_LARGE_ROWS * KK_LARGE_STEP * KK_TILE_K * 2,
};

struct kk_large {
    int K, tiles, chain, chains; /* inputs; tiles of a stripe and of a chain; chains */
    int tables_at, smem;
};

/* Rows of a tile as they are multiplied: n, made up with zeros. */
__host__ __device__ static inline int kk__large_rows(int n)
{
    return (n + 31) / 32 * 32;
}

#ifdef __CUDACC__
/* K-major, 1024 bytes from 8 rows to the next. Weights: rows of 32 bytes, the halves of rows 4 to 7
 * exchanged. x: rows of 128 bytes, the parts of 16 in the order part ^ row % 8. */
__device__ static inline uint64_t kk__operand(uint32_t at, uint64_t swizzle)
{
    return (uint64_t)((at & 0x3ffff) >> 4) | (uint64_t)1 << 16 | (uint64_t)(1024 >> 4) << 32 |
           swizzle << 62;
}

__device__ static inline void kk__copy16(uint32_t dst, const void *src, int bytes)
{
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(dst), "l"(src), "r"(bytes)
                 : "memory");
}

/* Steps of a product: its chains, each cut into KK_LARGE_STEP tiles. Same for all warps. */
struct kk_ring {
    char *base;
    uint64_t *full, *empty;
    int slot, phase;

    __device__ uint32_t at() const
    {
        return kk__shared(base) + (uint32_t)(slot * KK_LARGE_SLOT_BYTES);
    }
    __device__ void next()
    {
        if (++slot == KK_LARGE_SLOTS) {
            slot = 0;
            phase ^= 1;
        }
    }
};

/* ---- the warps that load ------------------------------------------------------------- */

enum { /* of a loading warp: stripes; rows of x at a time and how often */
       KK_LOAD_STRIPES = KK_LARGE_STRIPES / KK_LARGE_LOAD_WARPS,
       KK_LOAD_ROWS = KK_LARGE_LOAD_WARPS * 4,
       KK_LARGE_LOADS = KK_LARGE_ROWS / KK_LOAD_ROWS
};

struct kk_loader {
    kk_ring ring;
    int warp, lane;
    uint32_t to_w, to_x;            /* where a thread's first part of each goes in a slot */
    const char *w[KK_LOAD_STRIPES]; /* this warp's stripes */
    uint32_t row[KK_LARGE_LOADS];   /* a thread's parts of rows, in 8 numbers from job.x() */

    __device__ kk_loader(const kk_ring &r)
    {
        ring = r;
        warp = (int)threadIdx.x / 32 - 8;
        lane = (int)threadIdx.x % 32;
        const int x = warp * 4 + lane / 8;
        to_w = (uint32_t)(warp * KK_LOAD_STRIPES * 1024 + (lane * 16 ^ (lane & 8) << 1));
        to_x = (uint32_t)(KK_LARGE_W_BYTES + x * 128 + (lane % 8 ^ x % 8) * 16);
    }

    /* Rows past the tile's last are that again: nobody looks at what comes of them. */
    template <class Job> __device__ void open(const Job &job, int K)
    {
#pragma unroll
        for (int s = 0; s < KK_LOAD_STRIPES; s++)
            w[s] = job.stripe(warp * KK_LOAD_STRIPES + s) + lane * 16;
#pragma unroll
        for (int i = 0; i < KK_LARGE_LOADS; i++) {
            const int r = min(i * KK_LOAD_ROWS + warp * 4 + lane / 8, job.n - 1);
            row[i] = (uint32_t)job.row(r) * (uint32_t)(K / 8) + (uint32_t)(lane % 8);
        }
    }

    /* n tiles of this warp's stripes; n * 16 inputs from k on of its rows, of `rows` */
    __device__ void step(const bf16 *x, int rows, int n, int k, int K)
    {
        kk__bar_wait(&ring.empty[ring.slot], ring.phase ^ 1);
        const uint32_t at = ring.at();
        const int size = k + lane % 8 * 8 < K ? 16 : 0; /* else zeros */
#pragma unroll
        for (int s = 0; s < KK_LOAD_STRIPES; s++) {
            if (lane / 16 < n) kk__copy16(at + to_w + (uint32_t)s * 1024, w[s], 16);
            if (lane / 16 + 2 < n) kk__copy16(at + to_w + (uint32_t)s * 1024 + 512, w[s] + 512, 16);
            w[s] += n * KK_TILE_BYTES;
        }
        if (lane % 8 < 2 * n)
#pragma unroll
            for (int i = 0; i < KK_LARGE_LOADS; i++)
                if (i * KK_LOAD_ROWS < rows)
                    kk__copy16(at + to_x + (uint32_t)i * (KK_LOAD_ROWS * 128),
                               x + (size_t)(row[i] + (uint32_t)(k / 8)) * 8, size);
        asm volatile("cp.async.mbarrier.arrive.noinc.shared::cta.b64 [%0];" ::"r"(
                         kk__shared(&ring.full[ring.slot]))
                     : "memory");
        ring.next();
    }
};

template <class Job>
__device__ static void kk__large_load(const kk_large &g, Job &job, const kk_ring &ring)
{
    kk_loader l(ring);
    for (int i = (int)blockIdx.x; i < job.tiles(); i += (int)gridDim.x) {
        job.take(i);
        l.open(job, g.K);
        const int rows = kk__large_rows(job.n);
        for (int t = 0, left = g.chain; t < g.tiles;) {
            const int n = min(min((int)KK_LARGE_STEP, left), g.tiles - t);
            l.step(job.x(), rows, n, t * KK_TILE_K, g.K);
            t += n;
            left = left == n ? g.chain : left - n;
        }
    }
}

/* ---- the eight that multiply -------------------------------------------------------------- */

template <int N> struct kk_product {
    float sum[N / 2], d[N / 2];

    /* n tiles of inputs; more: d has a sum already */
    template <int n> __device__ void step(uint64_t w, uint64_t x, int more)
    {
        asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
#pragma unroll
        for (int i = 0; i < n; i++)
            kk__wgmma<N>(d, w + (uint64_t)(i * (KK_TILE_BYTES >> 4)),
                         x + (uint64_t)(i * (KK_TILE_K * 2 >> 4)), i ? 1 : more);
        asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
    }

    __device__ void chain(kk_ring &ring, int group, int tiles)
    {
        int before = -1; /* slot of the step before, which may still be read */
        for (int t = 0; t < tiles; t += KK_LARGE_STEP) {
            const int n = min((int)KK_LARGE_STEP, tiles - t);
            const uint32_t at = ring.at();
            kk__bar_wait(&ring.full[ring.slot], ring.phase);
            asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
            const uint64_t w = kk__operand(at + (uint32_t)group * (KK_LARGE_W_BYTES / 2), 3);
            const uint64_t x = kk__operand(at + KK_LARGE_W_BYTES, 1);
            if (n == 4)
                step<4>(w, x, t);
            else if (n == 3)
                step<3>(w, x, t);
            else if (n == 2)
                step<2>(w, x, t);
            else
                step<1>(w, x, t);
            if (before >= 0) {
                asm volatile("wgmma.wait_group.sync.aligned 1;" ::: "memory");
                if (threadIdx.x % 32 == 0) kk__bar_arrive(&ring.empty[before]);
            }
            before = ring.slot;
            ring.next();
        }
        asm volatile("wgmma.wait_group.sync.aligned 0;" ::: "memory");
        if (threadIdx.x % 32 == 0) kk__bar_arrive(&ring.empty[before]);
    }

    template <class Job> __device__ void run(const kk_large &g, Job &job, kk_ring &ring)
    {
        const int warp = (int)threadIdx.x / 32, lane = (int)threadIdx.x % 32;
#pragma unroll 1
        for (int t = 0; t < g.tiles; t += g.chain) {
            chain(ring, warp / 4, min(g.chain, g.tiles - t));
#pragma unroll
            for (int i = 0; i < N / 2; i++) sum[i] = t ? sum[i] + d[i] : d[i];
        }
        job.open(warp * 2, lane / 4);
#pragma unroll
        for (int i = 0; i < N / 2; i++)
            if (i % 4 < 2) {
                const int row = i / 4 * 8 + lane % 4 * 2 + i % 4;
                if (row < job.n) job.store(row, sum[i], sum[i + 2]);
            }
    }
};

template <class Job>
__device__ static void kk__large_multiply(const kk_large &g, Job &job, kk_ring &ring)
{
    for (int i = (int)blockIdx.x; i < job.tiles(); i += (int)gridDim.x) {
        job.take(i);
        switch (kk__large_rows(job.n)) {
        case 32:
            kk_product<32>().run(g, job, ring);
            break;
        case 64:
            kk_product<64>().run(g, job, ring);
            break;
        case 96:
            kk_product<96>().run(g, job, ring);
            break;
        case 128:
            kk_product<128>().run(g, job, ring);
            break;
        case 160:
            kk_product<160>().run(g, job, ring);
            break;
        default:
            kk_product<192>().run(g, job, ring);
        }
    }
}

template <class Job>
__global__ void __launch_bounds__(KK_LARGE_THREADS, 1)
    kk__large_kernel(const __grid_constant__ kk_large g, const __grid_constant__ Job given)
{
    extern __shared__ __align__(1024) char smem[];
    uint64_t *full = (uint64_t *)(smem + KK_LARGE_SLOTS * KK_LARGE_SLOT_BYTES);
    uint64_t *empty = full + KK_LARGE_SLOTS;
    Job job = given;
    if (threadIdx.x == 0) {
        for (int i = 0; i < KK_LARGE_SLOTS; i++) {
            kk__bar_init(&full[i], KK_LARGE_LOAD_WARPS * 32);
            kk__bar_init(&empty[i], 8);
        }
        asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
    }
    __syncthreads();
    if (threadIdx.x < 256 || !job.settled()) cudaGridDependencySynchronize();
    if (threadIdx.x < 256) cudaTriggerProgrammaticLaunchCompletion();
    job.begin(smem + g.tables_at);
    kk_ring ring = {smem, full, empty, 0, 0};
    if (threadIdx.x >= 256) {
        asm volatile("setmaxnreg.dec.sync.aligned.u32 40;");
        kk__large_load(g, job, ring);
    } else {
        asm volatile("setmaxnreg.inc.sync.aligned.u32 216;");
        kk__large_multiply(g, job, ring);
    }
}

/* Can these inputs be read 16 bytes at a time? */
static inline bool kk__large_fits(int64_t K)
{
    return K % 8 == 0;
}

static inline kk_large kk__large_plan(int64_t K, int table_bytes)
{
    kk_large g = {};
    g.K = (int)K;
    g.tiles = (int)kk__tiles(K);
    g.chain = kk__chain_tiles(g.tiles);
    g.chains = (g.tiles + g.chain - 1) / g.chain;
    g.tables_at = KK_LARGE_SLOTS * (KK_LARGE_SLOT_BYTES + 16);
    g.smem = g.tables_at + table_bytes;
    return g;
}

/* How many of T rows a tile should have where all rows meet the same `columns` tiles of outputs: a
 * round of blocks takes as long as its bytes, which are as rows + outputs. */
static inline int kk__large_tile_rows(const struct kk_cuda *c, int T, int64_t columns)
{
    int best = 0;
    int64_t least = 0;
    for (int rows = KK_LARGE_ROWS; rows; rows -= 32) {
        const int64_t tiles = (T + rows - 1) / rows * columns;
        const int64_t cost = (tiles + c->sms - 1) / c->sms * (rows + KK_LARGE_STRIPES * 8);
        if (best && cost >= least) continue;
        best = rows;
        least = cost;
    }
    return best;
}

template <class Job>
static inline void kk__large_launch(struct kk_cuda *c, const char *op, const kk_large &g,
                                    const Job &job, int64_t tiles)
{
    const int64_t blocks = tiles < c->sms ? tiles : c->sms;
    static int known[KK_CUDA_GPUS];
    kk__allow(c, op, (const void *)kk__large_kernel<Job>, g.smem, known);
    kk__launch(c, op, kk__large_kernel<Job>, dim3((unsigned)blocks), dim3(KK_LARGE_THREADS),
               (size_t)g.smem, g, job);
}
#endif

#endif
