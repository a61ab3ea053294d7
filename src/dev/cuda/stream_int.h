/* Private to dev/cuda: products of up to 16 rows, bound by the bytes of the weights.
 *
 * A block works on a group of stripes at a time. Its pieces, one chain of one stripe each, go to
 * the warps in turn; a warp brings its own pieces in by bulk copies, `depth` of them ahead, through
 * a ring of its own, and multiplies them (weights are operand B) with the rows of x that it holds
 * in registers. Sums of chains meet in shared memory and are added in ascending order: 0020. What
 * the stripes are and what becomes of a sum is the job's:
 *
 *   early            weights are known before other ops end: they are fetched while those run
 *   same_rows        x is the same for every stripe
 *   begin(tables)    by all threads
 *   groups()         of this block
 *   stripe(q, s)     slot s of group q, or NULL
 *   row(q, s, r)     row r of its x, or NULL
 *   sum(part, q)     by all threads: part[s * chains + chain][row][output] has what is needed
 *   finish()         by all threads */
#ifndef KK_DEV_CUDA_STREAM_INT_H
#define KK_DEV_CUDA_STREAM_INT_H

#include "dev/cuda/cuda_int.h"

enum {
    KK_STREAM_THREADS = 512,
    KK_STREAM_CHAIN = 11,           /* tiles of a chain, at most */
    KK_STREAM_SMEM = 113 << 10,     /* of a block, if it can be: two fit a multiprocessor */
    KK_STREAM_SMEM_MOST = 226 << 10 /* of a block, whatever the geometry */
};

struct kk_stream {
    int T, K, tiles, chain, chains; /* rows; inputs; tiles of a stripe and of a chain; chains */
    int slots;                      /* stripes of a group */
    int warps, depth;
    int part_floats; /* from one buffer of sums to the other; 0: there is one */
    int part_at, bars_at, tables_at;
    int smem;
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

__device__ static __noinline__ uint2 kk__act4_odd(const bf16 *row, int k, int K)
{
    uint16_t v[4];
    for (int i = 0; i < 4; i++) v[i] = k + i < K ? __bfloat16_as_ushort(row[k + i]) : (uint16_t)0;
    return make_uint2(v[0] | (uint32_t)v[1] << 16, v[2] | (uint32_t)v[3] << 16);
}

/* inputs k .. k + 3 of a row, k a multiple of 4; zeros past its end */
__device__ static inline uint2 kk__act4(const bf16 *row, int k, int K)
{
    if (!row) return make_uint2(0, 0);
    if (K % 4) return kk__act4_odd(row, k, K);
    return k < K ? *(const uint2 *)(row + k) : make_uint2(0, 0);
}

/* a product from the sums of its chains */
template <int ROWS> __device__ static inline float kk__chains(const float *part, int chains)
{
    float v = part[0];
#pragma unroll 4
    for (int c = 1; c < chains; c++) v += part[c * ROWS * 8];
    return v;
}

template <int ROWS, class Job> struct kk_streamer {
    const kk_stream &g;
    Job &job;
    char *ring;
    uint64_t *bars;
    int warp, lane, per, groups;
    int put_q, put_p, put_slot; /* the next piece to bring in */

    __device__ kk_streamer(const kk_stream &g_, Job &job_, char *smem) : g(g_), job(job_)
    {
        warp = (int)threadIdx.x / 32;
        lane = (int)threadIdx.x % 32;
        per = g.slots * g.chains;
        ring = smem + warp * g.depth * g.chain * KK_TILE_BYTES;
        bars = (uint64_t *)(smem + g.bars_at) + warp * g.depth;
        put_q = put_slot = 0;
        put_p = warp;
        if (lane == 0) {
            for (int i = 0; i < g.depth; i++) kk__bar_init(&bars[i], 1);
            asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
        }
        __syncwarp();
    }

    /* tiles of chain c */
    __device__ int tiles_of(int c) const { return min(g.chain, g.tiles - c * g.chain); }

    /* by lane 0: bring the next piece in */
    __device__ void put()
    {
        while (put_q < groups) {
            if (put_p >= per) {
                put_p = warp;
                put_q++;
                continue;
            }
            const int s = put_p / g.chains, c = put_p - s * g.chains;
            const char *w = job.stripe(put_q, s);
            put_p += g.warps;
            if (!w) continue;
            kk__bulk(ring + put_slot * g.chain * KK_TILE_BYTES,
                     w + (size_t)c * (size_t)g.chain * KK_TILE_BYTES, tiles_of(c) * KK_TILE_BYTES,
                     &bars[put_slot]);
            if (++put_slot == g.depth) put_slot = 0;
            return;
        }
    }

    __device__ void fill()
    {
        groups = job.groups();
        if (lane == 0 && warp < per)
            for (int i = 0; i < g.depth; i++) put();
    }

    __device__ void load(uint2 (&a)[KK_STREAM_CHAIN], uint2 (&b)[KK_STREAM_CHAIN], int q, int s,
                         int c) const
    {
        const bf16 *lo = job.row(q, s, lane / 4);
        const bf16 *hi = ROWS == 16 ? job.row(q, s, lane / 4 + 8) : NULL;
        const int k = c * g.chain * KK_TILE_K + lane % 4 * 4, n = tiles_of(c);
#pragma unroll
        for (int t = 0; t < KK_STREAM_CHAIN; t++)
            if (t < n) {
                a[t] = kk__act4(lo, k + t * KK_TILE_K, g.K);
                if (ROWS == 16) b[t] = kk__act4(hi, k + t * KK_TILE_K, g.K);
            }
    }

    __device__ void run(float *part)
    {
        uint2 a[KK_STREAM_CHAIN], b[KK_STREAM_CHAIN];
        int have = -1, slot = 0, phase = 0;
        for (int q = 0; q < groups; q++) {
            float *to = part + (q & 1) * g.part_floats;
            for (int p = warp; p < per; p += g.warps) {
                const int s = p / g.chains, c = p - s * g.chains, n = tiles_of(c);
                if (!job.stripe(q, s)) continue;
                if (!Job::same_rows || c != have) load(a, b, q, s, c);
                have = c;
                kk__bar_wait(&bars[slot], phase);
                const uint2 *w = (const uint2 *)(ring + slot * g.chain * KK_TILE_BYTES) + lane;
                float d[4] = {0, 0, 0, 0};
#pragma unroll
                for (int t = 0; t < KK_STREAM_CHAIN; t++)
                    if (t < n) {
                        const uint2 v = w[t * (KK_TILE_BYTES / 8)];
                        kk__mma(d, a[t].x, ROWS == 16 ? b[t].x : 0, a[t].y, ROWS == 16 ? b[t].y : 0,
                                v.x, v.y);
                    }
                __syncwarp();
                if (lane == 0) put();
                if (++slot == g.depth) {
                    slot = 0;
                    phase ^= 1;
                }
                float2 *out = (float2 *)(to + p * ROWS * 8) + lane;
                out[0] = make_float2(d[0], d[1]);
                if (ROWS == 16) out[32] = make_float2(d[2], d[3]);
            }
            __syncthreads();
            job.sum(to, q);
            if (!g.part_floats) __syncthreads();
        }
    }
};

template <int ROWS, class Job>
__global__ void __launch_bounds__(KK_STREAM_THREADS, ROWS == 8 ? 2 : 1)
    kk__stream(const __grid_constant__ kk_stream g, const __grid_constant__ Job given)
{
    extern __shared__ __align__(128) char smem[];
    Job job = given;
    kk_streamer<ROWS, Job> s(g, job, smem);
    if (Job::early) {
        cudaTriggerProgrammaticLaunchCompletion();
        job.begin(smem + g.tables_at);
        s.fill();
        cudaGridDependencySynchronize();
    } else {
        cudaGridDependencySynchronize();
        cudaTriggerProgrammaticLaunchCompletion();
        job.begin(smem + g.tables_at);
        s.fill();
    }
    s.run((float *)(smem + g.part_at));
    job.finish();
}

/* Warps and stripes of a group so that warps are busy, then as deep a ring as fits. parts: stripes
 * that belong together; table_bytes: of the job's tables. */
static inline kk_stream kk__stream_plan(int T, int64_t K, int parts, int rows, int table_bytes)
{
    kk_stream g = {};
    double best = 0;
    g.T = T;
    g.K = (int)K;
    g.tiles = (int)kk__tiles(K);
    g.chain = kk__chain_tiles(g.tiles);
    g.chains = (g.tiles + g.chain - 1) / g.chain;
    for (int w = KK_STREAM_THREADS / 32; w >= 8; w--) {
        const int n = parts * g.chains, items = w / n > 1 ? w / n : 1;
        const int pieces = items * n, turns = (pieces + w - 1) / w;
        const double busy = (double)pieces / (turns * w);
        if (busy <= best) continue;
        best = busy;
        g.warps = w;
        g.slots = items * parts;
    }
    const int sums = g.slots * g.chains * rows * 32,
              piece = g.warps * (g.chain * KK_TILE_BYTES + 8);
    const int twice = piece + 2 * sums + table_bytes <= KK_STREAM_SMEM_MOST;
    g.part_floats = twice ? sums / 4 : 0;
    const int fixed = (twice ? 2 : 1) * sums + table_bytes + 128;
    g.depth = (KK_STREAM_SMEM - fixed) / piece;
    g.depth = g.depth < 1 ? 1 : g.depth > 4 ? 4 : g.depth;
    g.part_at = g.warps * g.depth * g.chain * KK_TILE_BYTES;
    g.bars_at = g.part_at + (twice ? 2 : 1) * sums;
    g.tables_at = g.bars_at + (g.warps * g.depth * 8 + 15) / 16 * 16;
    g.smem = g.tables_at + table_bytes;
    return g;
}

/* groups: of the grid in all */
template <int ROWS, class Job>
static inline void kk__stream_launch(struct kk_cuda *c, const char *op, const kk_stream &g,
                                     const Job &job, int64_t groups)
{
    const int64_t blocks = groups < c->sms ? groups : c->sms;
    const unsigned slices = (unsigned)((g.T + ROWS - 1) / ROWS);
    kk__cuda_latch(c,
                   cudaFuncSetAttribute(kk__stream<ROWS, Job>,
                                        cudaFuncAttributeMaxDynamicSharedMemorySize, g.smem),
                   op);
    kk__launch(c, op, kk__stream<ROWS, Job>, dim3((unsigned)blocks, slices),
               dim3((unsigned)g.warps * 32), (size_t)g.smem, g, job);
}

/* ---- y[i] = x w[i]^T for up to three matrices that share x -------------------------------- */

__device__ static __noinline__ float kk__softcap(float v, float softcap)
{
    return softcap * tanhf(v / softcap);
}

struct kk_matrix {
    const char *w;
    float *y;
    const float *bias;
    int rows, first; /* outputs; its first stripe among all */
};

template <int ROWS> struct kk_linear_job {
    static constexpr bool early = true, same_rows = true;
    kk_matrix m0, m1, m2;
    const bf16 *x;
    float softcap;
    int stripes, T, K, slots, chains;
    size_t stripe_bytes;

    __device__ kk_matrix of(int i) const
    {
        kk_matrix m = m0;
        if (i >= m1.first) m = m1;
        if (i >= m2.first) m = m2;
        return m;
    }
    __device__ int group(int q) const { return (int)blockIdx.x + q * (int)gridDim.x; }
    __device__ void begin(char *) {}
    __device__ void finish() {}
    __device__ int groups() const
    {
        const int n = (stripes + slots - 1) / slots;
        return (n - (int)blockIdx.x + (int)gridDim.x - 1) / (int)gridDim.x;
    }
    __device__ const char *stripe(int q, int s) const
    {
        const int i = group(q) * slots + s;
        if (i >= stripes) return NULL;
        const kk_matrix m = of(i);
        return m.w + (size_t)(i - m.first) * stripe_bytes;
    }
    __device__ const bf16 *row(int, int, int r) const
    {
        r += (int)blockIdx.y * ROWS;
        return r < T ? x + (size_t)r * (size_t)K : NULL;
    }
    __device__ void sum(const float *part, int q) const
    {
        const int n = (int)blockDim.x, turn = (int)(threadIdx.x + (unsigned)q * ROWS * 8) % n;
        for (int j = turn; j < slots * ROWS * 8; j += n) {
            const int s = j / (ROWS * 8), e = j % (ROWS * 8), t = e / 8 + (int)blockIdx.y * ROWS;
            const int i = group(q) * slots + s;
            if (i >= stripes || t >= T) continue;
            put(i, e % 8, t, kk__chains<ROWS>(part + s * chains * ROWS * 8 + e, chains));
        }
    }
    /* v: output o of stripe i of row t */
    __device__ void put(int i, int o, int t, float v) const
    {
        const kk_matrix m = of(i);
        o += (i - m.first) * 8;
        if (o >= m.rows) return;
        const float bias = m.bias ? m.bias[o] : -0.0f;
        m.y[(size_t)t * (size_t)m.rows + (size_t)o] = finished(v, bias);
    }
    /* bias: -0 where there is none, which changes no number */
    __device__ float finished(float v, float bias) const
    {
        v += bias;
        return softcap > 0 ? kk__softcap(v, softcap) : v;
    }
};

template <int ROWS> static inline kk_linear_job<ROWS> kk__linear_job(const kk_linear_args *a)
{
    kk_linear_job<ROWS> j = {};
    kk_matrix *const m[3] = {&j.m0, &j.m1, &j.m2};
    for (int i = 0; i < 3; i++) {
        m[i]->first = j.stripes;
        if (i >= a->n) continue;
        *m[i] = {(const char *)a->w[i]->data, a->y[i], a->bias[i], (int)a->w[i]->rows, j.stripes};
        j.stripes += (int)kk__stripes(a->w[i]->rows);
    }
    j.x = (const bf16 *)a->x;
    j.softcap = a->softcap;
    j.T = a->T;
    j.K = (int)a->w[0]->cols;
    j.stripe_bytes = (size_t)kk__tiles(j.K) * KK_TILE_BYTES;
    return j;
}
#endif

#endif
