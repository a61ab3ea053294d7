/* Private to stream_int.h: how weights come to a warp and sums leave it: rings that one warp feeds,
 * buffers of sums, and the barriers of both. */
#ifndef KK_DEV_CUDA_STREAM_RING_INT_H
#define KK_DEV_CUDA_STREAM_RING_INT_H

#include "dev/cuda/choose_int.h"

enum {
    KK_STREAM_THREADS = 512,
    KK_STREAM_DEPTH = 8,
    KK_STREAM_CHAIN = 11,        /* tiles of a chain, at most */
    KK_STREAM_SMEM = 226 << 10,  /* of a block */
    KK_STREAM_WINDOW = 96 << 10, /* bytes on their way to a block, at most */
    KK_STREAM_SUMS = 8 << 10,    /* of a group; where a warp has several chains: */
    KK_STREAM_SUMS_MOST = 64 << 10,
    KK_STREAM_BUFFERS = 4, /* of sums, at most, and of so many bytes if there are three or more: */
    KK_STREAM_BUFFERED = 32 << 10,
    KK_SUMMERS = 96 /* threads: of 20 warps each has 96 registers, as of 17 */
};

struct kk_stream {
    int T, K, tiles, chain, chains; /* rows; inputs; tiles of a stripe and of a chain; chains */
    int slots;                      /* stripes of a group, at most */
    int warps, ways, depth;
    int window;               /* pieces on their way to a block, at most */
    int buffers, part_floats; /* of sums; from one to the next */
    int part_at, bars_at, sums_at, used_at, tables_at;
    int smem;
    struct kk_router errand; /* T rows that the feeding warps choose experts for */
};

#ifdef __CUDACC__
__device__ static inline uint32_t kk__shared(const void *p)
{
    return (uint32_t)__cvta_generic_to_shared(p);
}

__device__ static inline void kk__bar_init(uint64_t *bar, int count)
{
    asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(kk__shared(bar)), "r"(count));
}

__device__ static inline void kk__bar_wait(uint64_t *bar, int phase)
{
    uint32_t done;
    do {
        asm volatile("{.reg .pred p;\n"
                     "mbarrier.try_wait.parity.shared::cta.b64 p, [%1], %2;\n"
                     "selp.u32 %0, 1, 0, p;}"
                     : "=r"(done)
                     : "r"(kk__shared(bar)), "r"(phase)
                     : "memory");
    } while (!done);
}

__device__ static inline bool kk__bar_test(uint64_t *bar, int phase)
{
    uint32_t done;
    asm volatile("{.reg .pred p;\n"
                 "mbarrier.test_wait.parity.shared::cta.b64 p, [%1], %2;\n"
                 "selp.u32 %0, 1, 0, p;}"
                 : "=r"(done)
                 : "r"(kk__shared(bar)), "r"(phase)
                 : "memory");
    return done;
}

__device__ static inline uint32_t kk__acquire(const uint32_t *p)
{
    uint32_t v;
    asm volatile("ld.acquire.cta.shared::cta.u32 %0, [%1];"
                 : "=r"(v)
                 : "r"(kk__shared(p))
                 : "memory");
    return v;
}

__device__ static inline void kk__release(uint32_t *p, uint32_t v)
{
    asm volatile("st.release.cta.shared::cta.u32 [%0], %1;" ::"r"(kk__shared(p)), "r"(v)
                 : "memory");
}

/* The threads of a block that multiply; then come the warp that feeds, and the summers. */
__device__ static inline int kk__workers()
{
    return (int)blockDim.x - 32 - KK_SUMMERS;
}

/* Which of the summers; negative: none */
__device__ static inline int kk__summer()
{
    return (int)threadIdx.x - kk__workers() - 32;
}

__device__ static inline void kk__bar_arrive(uint64_t *bar)
{
    asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(kk__shared(bar)) : "memory");
}

__device__ static inline void kk__workers_meet()
{
    asm volatile("bar.sync 1, %0;" ::"r"(kk__workers()) : "memory");
}

/* All threads of a block: what those that multiply found out is there for the others. */
__device__ static inline void kk__all_know()
{
    asm volatile("bar.sync 2, %0;" ::"r"((int)blockDim.x) : "memory");
}

/* bytes from global to shared memory; bar's phase ends when they are there */
__device__ static inline void kk__bulk(void *dst, const void *src, int bytes, uint64_t *bar)
{
    asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(kk__shared(bar)),
                 "r"(bytes)
                 : "memory");
    asm volatile("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes "
                 "[%0], [%1], %2, [%3];" ::"r"(kk__shared(dst)),
                 "l"(src), "r"(bytes), "r"(kk__shared(bar))
                 : "memory");
}

/* inputs k .. k + 3 of a row of any length; zeros past its end */
__device__ static __noinline__ uint2 kk__act4(const bf16 *row, int k, int K)
{
    uint16_t v[4];
    for (int i = 0; i < 4; i++) v[i] = k + i < K ? __bfloat16_as_ushort(row[k + i]) : (uint16_t)0;
    return make_uint2(v[0] | (uint32_t)v[1] << 16, v[2] | (uint32_t)v[3] << 16);
}

/* a product from the sums of its chains, `step` floats apart */
__device__ static inline float kk__chains(const float *part, int chains, int step)
{
    float v = part[0];
#pragma unroll 4
    for (int c = 1; c < chains; c++) v += part[c * step];
    return v;
}

/* x / d for x d < 2^32 */
struct kk_div {
    uint32_t d, m;
    __host__ __device__ kk_div(int by = 1)
        : d((uint32_t)by), m(by > 1 ? (uint32_t)(((1ull << 32) + (uint32_t)by - 1) / by) : 0)
    {
    }
    __device__ int of(int x) const { return m ? (int)__umulhi((uint32_t)x, m) : x; }
    __device__ int rest(int x) const { return x - of(x) * (int)d; }
};

/* rows of a slice */
template <int ROWS> __device__ static inline int kk__slice_rows(int T)
{
    return min(ROWS, T - (int)blockIdx.y * ROWS);
}

/* ---- bringing weights in ------------------------------------------------------------------ */

/* Where a warp is among its pieces. */
template <class Job> struct kk_walk {
    int q, c, s, slots; /* group, chain, slot; slots of the group */
    int first_c, first_s;

    __device__ void start(const kk_stream &g, const Job &job, int groups, int warp)
    {
        q = warp < g.chains * g.ways ? 0 : groups;
        c = first_c = warp % g.chains;
        s = first_s = warp / g.chains;
        slots = q < groups ? job.slots(0) : 0;
    }
    __device__ void next(const kk_stream &g, const Job &job, int groups)
    {
        s += g.ways;
        if (s < slots) return;
        s = first_s;
        c += g.warps;
        if (c < g.chains) return;
        c = first_c;
        if (++q < groups) slots = job.slots(q);
    }
    /* inputs of the piece, -1: there is none */
    __device__ int inputs(const Job &job, int groups) const
    {
        return q < groups && s < slots ? job.inputs(q, s) : -1;
    }
};

/* The last warp of a block brings weights in: lane i those of warp i, into its ring. At most
 * `window` pieces are on their way: more would not come sooner, and what others load, store and end
 * meanwhile takes as long as all that is ahead of it. */
struct kk_feeder {
    char *ring;
    uint64_t *bars;
    const uint32_t *used;  /* pieces of the ring that its warp is done with */
    int most;              /* pieces on their way */
    uint32_t put, there;   /* pieces asked for, arrived */
    int slot, next, phase; /* the slot to fill; the slot that arrives next */

    __device__ kk_feeder(const kk_stream &g, char *smem, int lane)
        : ring(smem + lane * g.depth * g.chain * KK_TILE_BYTES),
          bars((uint64_t *)(smem + g.bars_at) + lane * g.depth),
          used((uint32_t *)(smem + g.used_at) + lane),
          most(max(1, g.window / g.warps + (lane < g.window % g.warps))), put(0), there(0), slot(0),
          next(0), phase(0)
    {
    }

    /* The next piece at `at`, which moves on; NULL: there is none. */
    template <class Job>
    __device__ static const char *piece(const kk_stream &g, const Job &job, kk_walk<Job> &at,
                                        int groups, int *bytes)
    {
        while (at.q < groups) {
            const char *w = at.s < at.slots ? job.stripe(at.q, at.s) : NULL;
            const int c = at.c;
            at.next(g, job, groups);
            *bytes = min(g.chain, g.tiles - c * g.chain) * KK_TILE_BYTES;
            if (w) return w + (size_t)c * (size_t)g.chain * KK_TILE_BYTES;
        }
        return NULL;
    }

    /* A lane never waits for another: its warp may be what the others' warps wait for. */
    template <class Job> __device__ void run(const kk_stream &g, const Job &job, int lane)
    {
        const int groups = job.groups();
        kk_walk<Job> at;
        int bytes;
        at.start(g, job, groups, lane);
        const char *w = piece(g, job, at, groups, &bytes);
        while (w) {
            if (put != there && kk__bar_test(&bars[next], phase)) {
                there++;
                if (++next == g.depth) {
                    next = 0;
                    phase ^= 1;
                }
            }
            if ((int)(put - there) >= most || (int)(put - kk__acquire(used)) >= g.depth) continue;
            kk__bulk(ring + slot * g.chain * KK_TILE_BYTES, w, bytes, &bars[slot]);
            put++;
            if (++slot == g.depth) slot = 0;
            w = piece(g, job, at, groups, &bytes);
        }
    }
};

/* Where a warp is in its ring, from one job to the next. */
struct kk_place {
    int slot, phase;
    uint32_t done; /* pieces */
};

/* The buffers of sums, as one thread sees them: in use in turn, full when all warps have put their
 * sums, empty when the summers have added them. */
struct kk_sums {
    float *part;
    uint64_t *bars; /* full, then empty */
    int floats, n;  /* from one to the next; how many */
    int at, lap;

    __device__ kk_sums(const kk_stream &g, char *smem)
        : part((float *)(smem + g.part_at)), bars((uint64_t *)(smem + g.sums_at)),
          floats(g.part_floats), n(g.buffers), at(0), lap(0)
    {
    }
    __device__ static void init(const kk_stream &g, char *smem)
    {
        uint64_t *bars = (uint64_t *)(smem + g.sums_at);
        const int i = (int)threadIdx.x;
        if (i < g.buffers) kk__bar_init(bars + i, g.warps);
        if (i < g.buffers) kk__bar_init(bars + g.buffers + i, KK_SUMMERS / 32);
    }
    __device__ float *here() const { return part + at * floats; }
    __device__ void wait_empty() const
    {
        if (lap) kk__bar_wait(bars + n + at, (lap - 1) & 1);
    }
    __device__ void wait_full() const { kk__bar_wait(bars + at, lap & 1); }
    /* by a warp: it is done with this one */
    __device__ void pass(int empty)
    {
        __syncwarp();
        if (threadIdx.x % 32 == 0) kk__bar_arrive(bars + empty * n + at);
        if (++at == n) {
            at = 0;
            lap++;
        }
    }
};
#endif

#endif
