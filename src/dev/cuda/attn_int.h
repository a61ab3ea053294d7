/* Private to attention on CUDA: what its kernels share, so that they differ in how they go about
 * the work and never in a number (docs/adr/0020, 0023).
 *
 * A pair is a row and a query head of one KV head; the pairs of a sequence and a KV head are
 * numbered row by row. A tile is consecutive pairs, which share every load of a key or value. */
#ifndef KK_DEV_CUDA_ATTN_INT_H
#define KK_DEV_CUDA_ATTN_INT_H

#include "dev/cuda/attn_ptx_int.h"

enum {
    KK_ATTN_SEQS = KK_CUDA_SEQS,
    KK_ATTN_FEW = 16, /* rows of a sequence, at most, that go split by split */
    KK_ATTN_HEAD = KK_CUDA_HEAD,
};

/* What a launch is told. */
struct kk_attn_job {
    struct kk_attn_args a;
    int per_kv;         /* query heads of a KV head */
    int row_bytes;      /* of a stored row */
    int pairs;          /* of a tile, at most */
    int over, most;     /* this launch: sequences of more than `over` rows and at most `most` */
    int wave, wave_len; /* split by split: places [wave, wave + wave_len) of a sequence's list */
    float *part;        /* [wave_len, T, H, D]: sums of one split */
    float2 *part_ml;    /* [wave_len, T, H]: their m and l */
};

struct kk_span {
    int32_t lo, hi;
};

/* Keys that rows at positions [t0, t1] see, as an ascending list of splits: [sink0, sink1), then
 * [win0, win1). */
struct kk_sight {
    struct kk_span sinks, win;
    int32_t sink0, sink1, win0, win1;
};

struct kk_attn_tile {
    struct kk_kv_seq seq;
    struct kk_sight sight;
    int32_t lo, hi; /* positions of its first and last row */
    int g, t0;      /* KV head; first row of the sequence */
    int p0, n;      /* pairs [p0, p0 + n) */
};

/* attn_wg.cu: long runs of rows on wgmma. 0: not this geometry. */
int kk__cuda_attn_wide(struct kk_cuda *c, struct kk_attn_job *job);

/* ---- numbers ------------------------------------------------------------------------------ */

#ifdef __CUDACC__
#define KK_LOG2E 1.44269504f

/* exp(s - m), where m is not -inf */
__device__ static inline float kk__attn_exp(float s, float m)
{
    return kk__exp2((s - m) * KK_LOG2E);
}

/* A maximum to subtract: 0 in place of that of no key at all. */
__device__ static inline float kk__attn_base(float m)
{
    return m == -INFINITY ? 0.0f : m;
}

/* Merging a split's maximum m into M: what the running sums (a) and the split's (b) are scaled by.
 */
__device__ static inline void kk__attn_merge(float &M, float m, float &a, float &b)
{
    const float top = fmaxf(M, m), base = kk__attn_base(top);
    a = kk__attn_exp(M, base);
    b = kk__attn_exp(m, base);
    M = top;
}

/* What a row gets: zeros if it saw no key; never -0, which would tell who skipped a split. */
__device__ static inline float kk__attn_out(float o, float l)
{
    return l > 0 ? __fadd_rn(__fdiv_rn(o, l), 0.0f) : 0.0f;
}

/* ---- which keys --------------------------------------------------------------------------- */

__device__ static inline int kk__attn_sees(const struct kk_mask &m, int t, int j, int rows)
{
    const int d = t - j;
    return d >= -m.ahead && d < m.window && (d < m.near || j < m.sinks) && j < rows;
}

/* Every row of [lo, hi] sees every key of [j, j + 128). */
__device__ static inline int kk__attn_sees_all(const struct kk_mask &m, int lo, int hi, int j,
                                               int rows)
{
    const int last = j + KK_CUDA_SPLIT - 1;
    return last < rows && lo - last >= -m.ahead && hi - j < m.window &&
           (hi - j < m.near || last < m.sinks);
}

__device__ static inline struct kk_sight kk__attn_sight(const struct kk_attn_args &a,
                                                        const struct kk_kv_seq &s, int t0, int t1)
{
    const struct kk_mask &m = a.mask;
    const int rows = s.committed + s.n_step;
    struct kk_sight v;
    v.win.lo = max(0, t0 - min(m.window, m.near) + 1);
    v.win.hi = t1 + min(m.ahead, rows - 1 - t1) + 1;
    v.sinks.lo = max(0, t0 - m.window + 1);
    v.sinks.hi = max(v.sinks.lo, min(m.sinks, v.win.lo));
    v.win0 = max(v.win.lo / KK_CUDA_SPLIT, a.first_split);
    v.win1 = max(v.win0, min((v.win.hi - 1) / KK_CUDA_SPLIT + 1, a.end_split));
    v.sink0 = max(v.sinks.lo / KK_CUDA_SPLIT, a.first_split);
    v.sink1 = v.sinks.hi > v.sinks.lo ? min((v.sinks.hi - 1) / KK_CUDA_SPLIT + 1, v.win0) : 0;
    v.sink1 = max(v.sink0, min(v.sink1, a.end_split));
    return v;
}

__device__ static inline int kk__attn_splits(const struct kk_sight &v)
{
    return v.sink1 - v.sink0 + v.win1 - v.win0;
}

__device__ static inline int kk__attn_split_at(const struct kk_sight &v, int i)
{
    const int sinks = v.sink1 - v.sink0;
    return i < sinks ? v.sink0 + i : v.win0 + i - sinks;
}

/* ---- where rows are ----------------------------------------------------------------------- */

/* Row j of a tile's sequence, as the tile sees it; NULL: no row of the tile does. */
__device__ static inline const char *kk__attn_row(const struct kk_attn_job &job,
                                                  const struct kk_attn_tile &t, int j)
{
    const struct kk_kv_seq &s = t.seq;
    const struct kk_mask &m = job.a.mask;
    if (!(j >= t.sight.sinks.lo && j < t.sight.sinks.hi) &&
        !(j >= t.sight.win.lo && j < t.sight.win.hi))
        return NULL;
    if (m.exact_near && t.lo - j >= m.exact_near && j >= m.exact_sinks)
        return (const char *)job.a.rebuilt + (int64_t)(j - job.a.rebuilt_first) * job.row_bytes;
    if (j >= s.committed) return (const char *)s.step + (int64_t)(j - s.committed) * job.row_bytes;
    const unsigned slot = !s.ring || j < s.sinks ? j : s.sinks + (unsigned)(j - s.sinks) % s.ring;
    const unsigned block = slot / s.block_rows;
    return (const char *)s.blocks[block] + (int64_t)(slot - block * s.block_rows) * job.row_bytes;
}

/* Lane i has the address of row i of those in `there`: do they follow each other, `pitch` bytes
 * apart? Then *first is where row 0 is or would be. The warp. */
__device__ static inline int kk__attn_in_line(const char *row, unsigned there, int pitch,
                                              const char **first)
{
    const int lane = threadIdx.x % 32, from = there ? __ffs(there) - 1 : 0;
    *first = (const char *)__shfl_sync(~0u, (unsigned long long)row, from) - (int64_t)from * pitch;
    return __all_sync(~0u, !(there >> lane & 1) || row == *first + (int64_t)lane * pitch);
}

/* ---- who does what ------------------------------------------------------------------------ */

/* Tiles of a sequence of so many rows, for one KV head. Which rows are rebuilt depends on the
 * query's position, so a tile is then of one row. */
__device__ static inline int kk__attn_tiles(const struct kk_attn_job &job, int rows)
{
    if (job.a.mask.exact_near) return rows * ((job.per_kv + job.pairs - 1) / job.pairs);
    return (rows * job.per_kv + job.pairs - 1) / job.pairs;
}

__device__ static inline void kk__attn_tile(const struct kk_attn_job &job, int b, int t0, int rows,
                                            int g, int i, struct kk_attn_tile *t)
{
    const int per_row = (job.per_kv + job.pairs - 1) / job.pairs;
    int end = rows * job.per_kv;
    t->seq = job.a.seqs[b];
    t->g = g;
    t->t0 = t0;
    t->p0 = i * job.pairs;
    if (job.a.mask.exact_near) {
        t->p0 = i / per_row * job.per_kv + i % per_row * job.pairs;
        end = (i / per_row + 1) * job.per_kv;
    }
    t->n = min(job.pairs, end - t->p0);
    t->lo = job.a.pos[t0 + t->p0 / job.per_kv];
    t->hi = job.a.pos[t0 + (t->p0 + t->n - 1) / job.per_kv];
    t->sight = kk__attn_sight(job.a, t->seq, t->lo, t->hi);
}

/* Element of [T, H] that a pair of a tile is. */
__device__ static inline int64_t kk__attn_query(const struct kk_attn_job &job,
                                                const struct kk_attn_tile &t, int pair)
{
    const int p = t.p0 + pair;
    return (int64_t)(t.t0 + p / job.per_kv) * job.a.H + t.g * job.per_kv + p % job.per_kv;
}
#endif

#endif
