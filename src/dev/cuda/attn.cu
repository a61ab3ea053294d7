/* Attention on mma.sync: every geometry and every mask (docs/adr/0020, 0023).
 *
 * One kernel, two ways through the splits of 128 keys. Few rows of a sequence (decoding, verifying)
 * go split by split: a block takes a split of a tile and leaves its sums in scratch; k_merge merges
 * them in ascending order. Many rows walk: a block takes a tile through its splits and keeps the
 * running sums in registers. attn_wg.cu walks faster where it can.
 *
 * One H200, layers of Gemma-4-26B-A4B, both kernels, share of 4.47 TB/s over the rows seen. One
 * row: sliding 9.2 us, 20 %; full 12.1 us at 3238 tokens, 12 %, 116 us at 62038, 24 %. A batch of
 * 64 at 1200: 47 % and 28 %. With few splits it is latency, not bytes.
 *
 * A block is 8 warps. Warp w loads keys and values 16 w .. 16 w + 15 of a split, makes their scores
 * for all pairs of the tile, and then the weighted values of every eighth 16 dims. Rows lie in
 * shared memory with 16 bytes between them: ldmatrix then meets no bank twice. */
#include "dev/cuda/attn_plan_int.h"

enum {
    WARPS = 8,
    THREADS = 32 * WARPS,
    S = KK_CUDA_SPLIT,
    PAD = 16,
    P_PITCH = S * 2 + PAD,
    GPUS = 64,
    MERGE_DIMS = 64,             /* of a warp of k_merge */
    PART_BYTES = 64 * (1 << 20), /* for sums of splits; more of them go in waves */
};

/* How keys and values lie in shared memory: both; values, keys derived from them; in turn (two of
 * 512 dims do not fit). */
enum { STORED, DERIVED, IN_TURN };

/* Offsets in shared memory, in bytes. */
struct layout {
    int pitch, q, k, v, p, red_m, red_l, pos, norm, plan, bytes;
};

struct work {
    struct kk_attn_tile tile;
    int split, place;
};

__host__ __device__ static inline struct layout layout_of(int D, int M, int kv, int B)
{
    struct layout y;
    y.pitch = D * 2 + PAD;
    y.q = 0;
    y.k = y.q + M * y.pitch;
    y.v = y.k + (kv == STORED ? S * y.pitch : 0);
    y.p = y.v + S * y.pitch;
    y.red_m = y.p + M * P_PITCH;
    y.red_l = y.red_m + M * WARPS * 4;
    y.pos = y.red_l + M * WARPS * 4;
    y.norm = y.pos + M * 4;
    y.plan = y.norm + (kv == DERIVED ? D * 4 : 0);
    y.bytes = (y.plan + kk__attn_plan_ints(B) * 4 + 1023) & ~1023;
    return y;
}

/* ---- loading ------------------------------------------------------------------------------ */

/* Rows that a load brings: all; those of earlier steps, which no op of this one writes, so that
 * they may be read before the op before this has ended; the others. */
enum { ALL, EARLY, LATE };

/* Of 16 rows, lane i having the address of row i or NULL, those in `wanted`: D numbers each, zeros
 * for NULL. One warp; asynchronous. */
__device__ static inline void copy16(const struct kk_attn_job &job, const char *row,
                                     unsigned wanted, uint32_t dst, int pitch)
{
    const int lane = threadIdx.x % 32, parts = job.a.D / 8;
    const unsigned there = __ballot_sync(~0u, row != NULL) & wanted;
    const char *first;
    if (kk__attn_in_line(row, there, job.row_bytes, &first) && parts % 32 == 0) {
#pragma unroll 1
        for (int c = lane * 16; c < parts * 16; c += 512) {
            const char *p = first + c;
#pragma unroll
            for (int r = 0; r < 16; r++) {
                if (wanted >> r & 1) kk__copy16(dst + c + r * pitch, p, there >> r & 1);
                p += job.row_bytes;
            }
        }
        return;
    }
    int r = lane / parts, c = lane % parts;
#pragma unroll 1
    for (int i = lane; i < 16 * parts; i += 32) {
        const char *p = (const char *)__shfl_sync(~0u, (unsigned long long)row, r);
        if (wanted >> r & 1)
            kk__copy16(dst + r * pitch + c * 16, p ? p + c * 16 : (char *)job.a.q, p != 0);
        r += 32 / parts;
        c += 32 % parts;
        if (c >= parts) c -= parts, r++;
    }
}

/* 16 keys from j on, at byte `at` of their rows, to dst. One warp. */
__device__ static inline void load16(const struct kk_attn_job &job, const struct kk_attn_tile &t,
                                     int which, int j, size_t at, uint32_t dst, int pitch)
{
    const int early = job.a.mask.exact_near ? 0 : min(16, max(0, t.seq.committed - j));
    const unsigned mask[2] = {(1u << early) - 1, 0x10000 - (1u << early)};
    const char *row = NULL;
    if (which != ALL && !mask[which == LATE]) return;
    if (threadIdx.x % 32 < 16) row = kk__attn_row(job, t, j + threadIdx.x % 16);
    if (row) row += at;
#pragma unroll 1
    for (int late = 0; late < 2; late++)
        if (mask[late] && (which == ALL || (which == LATE) == late))
            copy16(job, row, mask[late], dst, pitch);
}

/* A tile's queries, scaled, in bf16, and its rows' positions. The whole block; a warp takes two
 * pairs at a time, and 512 numbers of them. */
__device__ static void load_queries(const struct kk_attn_job &job, const struct kk_attn_tile &t,
                                    int M, char *q, int pitch, int32_t *pos)
{
    const int D = job.a.D, lane = threadIdx.x % 32;
    for (int pair = threadIdx.x / 32; pair < M; pair += 2 * WARPS) {
        float4 v[2][4];
#pragma unroll
        for (int i = 0; i < 8; i++) {
            const int64_t x = kk__attn_query(job, t, min(pair + i / 4 * WARPS, t.n - 1));
            v[i / 4][i % 4] =
                *(const float4 *)(job.a.q + x * D + min(lane * 4 + i % 4 * 128, D - 4));
        }
#pragma unroll
        for (int i = 0; i < 8; i++) {
            const int p = pair + i / 4 * WARPS, d = lane * 4 + i % 4 * 128;
            const float s = job.a.scale;
            const float4 x = v[i / 4][i % 4];
            uint2 h = make_uint2(kk__pack2(x.x * s, x.y * s), kk__pack2(x.z * s, x.w * s));
            if (p >= t.n) h = make_uint2(0, 0);
            if (p < M && d < D) *(uint2 *)(q + p * pitch + d * 2) = h;
        }
    }
    for (int i = threadIdx.x; i < M; i += THREADS)
        pos[i] = job.a.pos[t.t0 + (t.p0 + min(i, t.n - 1)) / job.per_kv];
}

/* ---- scores ------------------------------------------------------------------------------- */

/* Where keys are values, k = bf16(rope(v * k_norm)), made in the registers that ldmatrix gave.
 *
 * What turns a lane's keys, of the first pairs: dims 16 c + 8 side + 2 q and the next, of keys g
 * and g + 8. Read ahead of the values. */
enum { TURN_TILES = 4 };
typedef float4 turns[TURN_TILES][2][2];

/* The common geometry; any other goes tile by tile (derive_any). */
__device__ static inline int turns_fit(const struct kk_attn_args &a)
{
    return a.D % 32 == 0 && a.R % 16 == 0 && a.R <= 16 * TURN_TILES;
}

__device__ static inline void load_turns(const struct kk_attn_args &a, int j, int last, turns cs)
{
    if (!turns_fit(a)) return;
    j += threadIdx.x % 32 / 4;
#pragma unroll
    for (int i = 0; i < TURN_TILES * 4; i++) {
        const int r = i / 4 * 16 + i % 2 * 8 + threadIdx.x % 4 * 2;
        if (r >= a.R) continue;
        const float *row = a.rope + (int64_t)min(j + i / 2 % 2 * 8, last) * a.R * 2;
        cs[i / 4][i / 2 % 2][i % 2] = *(const float4 *)(row + r * 2);
    }
}

/* v *= k_norm, of dims c .. c + 15 */
__device__ static inline void scale_tile(const float *norm, int c, uint32_t (&v)[4])
{
    const float2 w[2] = {*(const float2 *)(norm + c + threadIdx.x % 4 * 2),
                         *(const float2 *)(norm + c + 8 + threadIdx.x % 4 * 2)};
#pragma unroll
    for (int i = 0; i < 4; i++)
        v[i] = kk__pack2(kk__lo(v[i]) * w[i % 2].x, kk__hi(v[i]) * w[i % 2].y);
}

/* The tiles lo, of dims c .., and hi, half a head further on: scaled and turned */
__device__ static inline void turn_tiles(const float *norm, int c, int half,
                                         const float4 (&cs)[2][2], uint32_t (&lo)[4],
                                         uint32_t (&hi)[4])
{
#pragma unroll
    for (int i = 0; i < 4; i++) {
        const int d = c + i % 2 * 8 + threadIdx.x % 4 * 2;
        const float2 w = *(const float2 *)(norm + d), z = *(const float2 *)(norm + d + half);
        const float4 u = cs[i / 2][i % 2];
        const float x = kk__lo(lo[i]) * w.x, y = kk__hi(lo[i]) * w.y;
        const float e = kk__lo(hi[i]) * z.x, f = kk__hi(hi[i]) * z.y;
        lo[i] = kk__pack2(x * u.x - e * u.y, y * u.z - f * u.w);
        hi[i] = kk__pack2(e * u.x + x * u.y, f * u.z + y * u.w);
    }
}

/* Any geometry. v: 16 keys x 16 dims from dim c on; row: this lane's ldmatrix row, at dim 0; j: the
 * lane's first key (the other is 8 further on). */
__device__ static inline void derive_any(const struct kk_attn_job &job, const float *norm, int last,
                                         uint32_t (&v)[4], uint32_t row, int c, int j)
{
    const int D = job.a.D, R = job.a.R, half = D / 2, q2 = threadIdx.x % 4 * 2;
    const int mine = c + threadIdx.x / 8 % 2 * 8;
    const int r0 = c < half ? c : c - half, r1 = c + 8 < half ? c + 8 : c + 8 - half;
    uint32_t other[4] = {0, 0, 0, 0};
    if (min(r0, r1) < R) kk__ldm(other, row + (mine < half ? mine + half : mine - half) * 2);
#pragma unroll
    for (int i = 0; i < 4; i++) {
        const int d0 = c + i % 2 * 8, low = d0 < half, d = d0 + q2;
        const int r = low ? d : d - half, e = low ? d + half : d - half;
        float x[2] = {kk__lo(v[i]) * norm[d], kk__hi(v[i]) * norm[d + 1]};
        const float y[2] = {kk__lo(other[i]) * norm[e], kk__hi(other[i]) * norm[e + 1]};
        const float2 *cs = (const float2 *)job.a.rope + (int64_t)min(j + i / 2 * 8, last) * R + r;
#pragma unroll
        for (int n = 0; n < 2; n++) {
            if (r + n >= R) continue;
            const float2 w = cs[n];
            x[n] = low ? x[n] * w.x - y[n] * w.y : x[n] * w.x + y[n] * w.y;
        }
        v[i] = kk__pack2(x[0], x[1]);
    }
}

/* s += the products of 16 dims from c on with the keys in b. */
template <int MT>
__device__ static inline void products(uint32_t q, int pitch, int c, const uint32_t (&b)[4],
                                       float (&s)[MT][2][4])
{
    uint32_t a[4];
#pragma unroll
    for (int i = 0; i < MT; i++) {
        kk__ldm(a, q + i * 16 * pitch + c * 2);
        kk__mma(s[i][0], a[0], a[1], a[2], a[3], b[0], b[1]);
        kk__mma(s[i][1], a[0], a[1], a[2], a[3], b[2], b[3]);
    }
}

/* The same over dims [from, to), of keys as they are or values scaled. */
template <int MT, int KV>
__device__ static inline void plain_products(const float *norm, uint32_t q, uint32_t k, int pitch,
                                             int from, int to, float (&s)[MT][2][4])
{
    uint32_t b[4];
#pragma unroll 4
    for (int c = from; c < to; c += 16) {
        kk__ldm(b, k + c * 2);
        if (KV == DERIVED) scale_tile(norm, c, b);
        products<MT>(q, pitch, c, b, s);
    }
}

template <int MT>
__device__ static inline void turned_products(const struct kk_attn_job &job, const float *norm,
                                              const turns cs, uint32_t q, uint32_t k, int pitch,
                                              float (&s)[MT][2][4])
{
    const int D = job.a.D, half = D / 2, R = job.a.R;
    uint32_t b[4], hi[TURN_TILES][4];
#pragma unroll
    for (int i = 0; i < TURN_TILES; i++) {
        if (i * 16 >= R) continue;
        kk__ldm(b, k + i * 32);
        kk__ldm(hi[i], k + half * 2 + i * 32);
        turn_tiles(norm, i * 16, half, cs[i], b, hi[i]);
        products<MT>(q, pitch, i * 16, b, s);
    }
    plain_products<MT, DERIVED>(norm, q, k, pitch, R, half, s);
#pragma unroll
    for (int i = 0; i < TURN_TILES; i++)
        if (i * 16 < R) products<MT>(q, pitch, half + i * 16, hi[i], s);
    plain_products<MT, DERIVED>(norm, q, k, pitch, half + R, D, s);
}

/* Scores of this warp's 16 keys, the first of them at j. Lane 4 g + q: pairs 16 i + g (elements 0,
 * 1) and 16 i + g + 8 (2, 3), keys 8 n + 2 q and the next. */
template <int MT, int KV>
__device__ static void scores(const struct kk_attn_job &job, const float *norm, const turns cs,
                              uint32_t q, uint32_t k, int pitch, int j, int last,
                              float (&s)[MT][2][4])
{
    const int lane = threadIdx.x % 32, D = job.a.D;
    q += lane % 16 * pitch + lane / 16 * 16;
    k += (lane % 8 + lane / 16 * 8) * pitch;
    const uint32_t at = k + lane / 8 % 2 * 16;
#pragma unroll
    for (int i = 0; i < MT; i++)
        for (int n = 0; n < 2; n++)
            for (int e = 0; e < 4; e++) s[i][n][e] = 0;
    if (KV != DERIVED)
        plain_products<MT, KV>(norm, q, at, pitch, 0, D, s);
    else if (turns_fit(job.a))
        turned_products<MT>(job, norm, cs, q, at, pitch, s);
    else
#pragma unroll 1
        for (int c = 0; c < D; c += 16) {
            uint32_t b[4];
            kk__ldm(b, at + c * 2);
            derive_any(job, norm, last, b, k, c, j + lane / 4);
            products<MT>(q, pitch, c, b, s);
        }
}

/* -inf where a row does not see a key; then the largest of each pair over this warp's keys. */
template <int MT>
__device__ static void mask_max(const struct kk_attn_job &job, const struct kk_attn_tile &t,
                                const int32_t *pos, int split, int j, float (&s)[MT][2][4],
                                float *red_m)
{
    const int lane = threadIdx.x % 32, g = lane / 4, q = lane % 4, warp = threadIdx.x / 32;
    const int rows = t.seq.committed + t.seq.n_step;
    if (!kk__attn_sees_all(job.a.mask, t.lo, t.hi, split * S, rows)) {
#pragma unroll
        for (int i = 0; i < MT * 2; i++) {
            const int at = pos[i / 2 * 16 + i % 2 * 8 + g];
#pragma unroll
            for (int e = 0; e < 4; e++)
                if (!kk__attn_sees(job.a.mask, at, j + e / 2 * 8 + 2 * q + e % 2, rows))
                    s[i / 2][e / 2][i % 2 * 2 + e % 2] = -INFINITY;
        }
    }
#pragma unroll
    for (int i = 0; i < MT * 2; i++) {
        const float *lo = &s[i / 2][0][i % 2 * 2], *hi = &s[i / 2][1][i % 2 * 2];
        float m = fmaxf(fmaxf(lo[0], lo[1]), fmaxf(hi[0], hi[1]));
        m = fmaxf(m, __shfl_xor_sync(~0u, m, 1));
        m = fmaxf(m, __shfl_xor_sync(~0u, m, 2));
        if (q == 0) red_m[(i / 2 * 16 + i % 2 * 8 + g) * WARPS + warp] = m;
    }
}

__device__ static inline float max8(const float *x)
{
    const float4 a = *(const float4 *)x, b = *(const float4 *)(x + 4);
    return fmaxf(fmaxf(fmaxf(a.x, a.y), fmaxf(a.z, a.w)), fmaxf(fmaxf(b.x, b.y), fmaxf(b.z, b.w)));
}

__device__ static inline float sum8(const float *x)
{
    float s = x[0];
    for (int i = 1; i < 8; i++) s += x[i];
    return s;
}

/* Weights of this warp's 16 keys: bf16 to p, their sums to red_l. m: the pairs' maxima. */
template <int MT>
__device__ static void weights(const float (&m)[MT][2], const float (&s)[MT][2][4], char *p,
                               float *red_l)
{
    const int lane = threadIdx.x % 32, g = lane / 4, q = lane % 4, warp = threadIdx.x / 32;
#pragma unroll
    for (int i = 0; i < MT * 2; i++) {
        const int pair = i / 2 * 16 + i % 2 * 8 + g, e = i % 2 * 2;
        const float base = kk__attn_base(m[i / 2][i % 2]);
        const float x[4] = {
            kk__attn_exp(s[i / 2][0][e], base), kk__attn_exp(s[i / 2][0][e + 1], base),
            kk__attn_exp(s[i / 2][1][e], base), kk__attn_exp(s[i / 2][1][e + 1], base)};
        float l = ((x[0] + x[1]) + x[2]) + x[3];
        l += __shfl_xor_sync(~0u, l, 1);
        l += __shfl_xor_sync(~0u, l, 2);
        if (q == 0) red_l[pair * WARPS + warp] = l;
        uint32_t *at = (uint32_t *)(p + pair * P_PITCH + warp * 32 + q * 4);
        at[0] = kk__pack2(x[0], x[1]);
        at[4] = kk__pack2(x[2], x[3]);
    }
}

/* ---- weighted values ---------------------------------------------------------------------- */

/* o[i][n]: pairs 16 i .., dims 16 (warp + 8 n) + 8 e / 4 .. */
template <int MT, int NP>
__device__ static void values(int D, uint32_t p, uint32_t v, int pitch, float (&o)[MT][NP][2][4])
{
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    p += lane % 16 * P_PITCH + lane / 16 * 16;
    v += (lane % 8 + lane / 8 % 2 * 8) * pitch + lane / 16 * 16 + warp * 32;
#pragma unroll
    for (int i = 0; i < MT * NP * 8; i++) o[i / (NP * 8)][i / 8 % NP][i / 4 % 2][i % 4] = 0;
#pragma unroll
    for (int k = 0; k < S / 16; k++) {
        uint32_t a[MT][4], b[4];
#pragma unroll
        for (int i = 0; i < MT; i++) kk__ldm(a[i], p + i * 16 * P_PITCH + k * 32);
#pragma unroll
        for (int n = 0; n < NP; n++) {
            if ((warp + n * WARPS) * 16 >= D) continue;
            kk__ldm_t(b, v + k * 16 * pitch + n * WARPS * 32);
#pragma unroll
            for (int i = 0; i < MT; i++) {
                kk__mma(o[i][n][0], a[i][0], a[i][1], a[i][2], a[i][3], b[0], b[1]);
                kk__mma(o[i][n][1], a[i][0], a[i][1], a[i][2], a[i][3], b[2], b[3]);
            }
        }
    }
}

/* f(pair half h of 16 i, dim, its two elements) over what this lane holds of o. */
template <int MT, int NP, typename F>
__device__ static inline void each(int D, float (&o)[MT][NP][2][4], F f)
{
    const int q = threadIdx.x % 4, warp = threadIdx.x / 32;
#pragma unroll
    for (int n = 0; n < NP; n++) {
        const int d = (warp + n * WARPS) * 16 + 2 * q;
        if (d >= D) continue;
#pragma unroll
        for (int i = 0; i < MT * 4; i++)
            f(i / 4, i / 2 % 2, d + i % 2 * 8, &o[i / 4][n][i % 2][i / 2 % 2 * 2]);
    }
}

/* ---- the kernel --------------------------------------------------------------------------- */

/* A piece of a launch's work: of one that walks, a tile; else a split of a tile. */
template <int WALK>
__device__ static inline struct work take(const struct kk_attn_job &job, const int32_t *plan,
                                          int item)
{
    const struct kk_attn_part p = kk__attn_find(job, plan, item);
    const int tiles = kk__attn_tiles(job, p.rows), i = item - p.before;
    struct work w = {};
    if (WALK) {
        kk__attn_tile(job, p.b, p.t0, p.rows, i % job.a.G, i / job.a.G, &w.tile);
        return w;
    }
    const struct kk_sight all =
        kk__attn_sight(job.a, job.a.seqs[p.b], job.a.pos[p.t0], job.a.pos[p.t0 + p.rows - 1]);
    kk__attn_tile(job, p.b, p.t0, p.rows, i / tiles % job.a.G, i % tiles, &w.tile);
    w.place = job.wave + i / tiles / job.a.G;
    w.split = kk__attn_split_at(all, w.place);
    return w;
}

/* Work of a sequence in this launch. */
template <int WALK>
__device__ static inline int work_of(const struct kk_attn_job &job, int b, int t0, int rows)
{
    int n = kk__attn_tiles(job, rows) * job.a.G;
    if (WALK) return n;
    const struct kk_sight v =
        kk__attn_sight(job.a, job.a.seqs[b], job.a.pos[t0], job.a.pos[t0 + rows - 1]);
    return n * max(0, min(kk__attn_splits(v) - job.wave, job.wave_len));
}

template <int MT, int NP>
__device__ static void start(const struct kk_attn_job &job, const struct kk_attn_tile &t,
                             float (&O)[MT][NP][2][4], float (&M)[MT][2], float2 &row)
{
    const int D = job.a.D, g = threadIdx.x % 32 / 4;
    const float *state[MT][2];
#pragma unroll
    for (int i = 0; i < MT * 2; i++) {
        const int pair = i / 2 * 16 + i % 2 * 8 + g;
        state[i / 2][i % 2] = NULL;
        M[i / 2][i % 2] = -INFINITY;
        if (job.a.first || pair >= t.n) continue;
        state[i / 2][i % 2] = job.a.state + kk__attn_query(job, t, pair) * (D + 2);
        M[i / 2][i % 2] = state[i / 2][i % 2][D];
    }
    each<MT, NP>(D, O, [&](int i, int h, int d, float *o) {
        const float2 x = state[i][h] ? *(const float2 *)(state[i][h] + d) : make_float2(0, 0);
        o[0] = x.x, o[1] = x.y;
    });
    row = make_float2(-INFINITY, 0);
    if (!job.a.first && threadIdx.x < t.n)
        row = *(const float2 *)(job.a.state + kk__attn_query(job, t, threadIdx.x) * (D + 2) + D);
}

/* ml: [M] of shared memory, free to use */
template <int MT, int NP>
__device__ static void finish(const struct kk_attn_job &job, const struct kk_attn_tile &t,
                              float (&O)[MT][NP][2][4], float2 row, float2 *ml)
{
    const int D = job.a.D, g = threadIdx.x % 32 / 4;
    int64_t query[MT][2];
    __syncthreads();
    if (threadIdx.x < 16 * MT) ml[threadIdx.x] = row;
    if (!job.a.last && threadIdx.x < t.n)
        *(float2 *)(job.a.state + kk__attn_query(job, t, threadIdx.x) * (D + 2) + D) = row;
    __syncthreads();
#pragma unroll
    for (int i = 0; i < MT * 2; i++) {
        const int pair = i / 2 * 16 + i % 2 * 8 + g;
        query[i / 2][i % 2] = pair < t.n ? kk__attn_query(job, t, pair) : -1;
    }
    each<MT, NP>(D, O, [&](int i, int h, int d, float *o) {
        const int64_t x = query[i][h];
        if (x < 0) return;
        if (!job.a.last) {
            *(float2 *)(job.a.state + x * (D + 2) + d) = make_float2(o[0], o[1]);
            return;
        }
        const float l = ml[i * 16 + h * 8 + g].y;
        ((uint32_t *)job.a.o)[(x * D + d) / 2] =
            kk__pack2(kk__attn_out(o[0], l), kk__attn_out(o[1], l));
    });
}

/* This warp's keys, or values, of a split. */
template <int KV>
__device__ static inline void load(const struct kk_attn_job &job, const struct layout &y,
                                   const struct kk_attn_tile &t, int split, int which, int value,
                                   uint32_t smem)
{
    const int warp = threadIdx.x / 32;
    const size_t at = (size_t)(t.g + (value && KV != DERIVED ? job.a.G : 0)) * job.a.D * 2;
    load16(job, t, which, split * S + warp * 16, at,
           smem + (value ? y.v : y.k) + warp * 16 * y.pitch, y.pitch);
}

/* The first keys and values, as four groups of copies: what is early before the op before ends. */
template <int KV>
__device__ static inline void load_first(const struct kk_attn_job &job, const struct layout &y,
                                         const struct kk_attn_tile &t, int split, int any,
                                         uint32_t smem)
{
#pragma unroll 1
    for (int i = 0; i < 4; i++) {
        const int value = i % 2;
        if (i == 2) cudaGridDependencySynchronize();
        if (any && (KV == STORED || value == (KV == DERIVED)))
            load<KV>(job, y, t, split, i / 2 ? LATE : EARLY, value, smem);
        kk__copy_commit();
    }
    cudaTriggerProgrammaticLaunchCompletion();
}

/* Sums of a split to scratch: those of this lane's pairs. */
template <int MT, int NP>
__device__ static inline void store_part(const struct kk_attn_job &job, const struct work &w,
                                         float (&o)[MT][NP][2][4])
{
    const int D = job.a.D;
    float *to[MT][2];
#pragma unroll
    for (int i = 0; i < MT * 2; i++) {
        const int pair = i / 2 * 16 + i % 2 * 8 + threadIdx.x % 32 / 4;
        const int64_t query = (int64_t)(w.place - job.wave) * job.a.T * job.a.H +
                              kk__attn_query(job, w.tile, min(pair, w.tile.n - 1));
        to[i / 2][i % 2] = pair < w.tile.n ? job.part + query * D : NULL;
    }
    each<MT, NP>(D, o, [&](int i, int h, int d, float *x) {
        if (to[i][h]) *(float2 *)(to[i][h] + d) = make_float2(x[0], x[1]);
    });
}

template <int NP, int MT, int KV, int WALK>
__global__ void __launch_bounds__(THREADS, 1) k_attn(const __grid_constant__ struct kk_attn_job job)
{
    extern __shared__ __align__(128) char smem[];
    const struct kk_attn_args &a = job.a;
    const struct layout y = layout_of(a.D, 16 * MT, KV, a.B);
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    const uint32_t base = kk__smem(smem);
    float *red_m = (float *)(smem + y.red_m), *red_l = (float *)(smem + y.red_l);
    float *norm = (float *)(smem + y.norm);
    int32_t *pos = (int32_t *)(smem + y.pos), *plan = (int32_t *)(smem + y.plan);
    float s[MT][2][4], o[MT][NP][2][4], O[MT][WALK ? NP : 1][2][4], M[MT][2];
    float2 row; /* M and L of pair threadIdx.x */

    const int all = kk__attn_plan(
        job, plan, [&](int b, int t0, int rows) { return work_of<WALK>(job, b, t0, rows); });
    if ((int)blockIdx.x >= all) {
        cudaGridDependencySynchronize(); /* who follows may think that all before us has ended */
        return;
    }
    /* walking, the last first: they see most keys */
    struct work w = take<WALK>(job, plan, WALK ? all - 1 - blockIdx.x : blockIdx.x), next = w;
    const struct kk_attn_tile &t = w.tile;
    const int steps = WALK ? kk__attn_splits(t.sight)
                           : (all - (int)blockIdx.x + (int)gridDim.x - 1) / (int)gridDim.x;
    int queries = 1; /* they are another tile's */
    if (WALK) w.split = kk__attn_split_at(t.sight, 0);
    load_first<KV>(job, y, t, w.split, steps > 0, base);
    for (int d = threadIdx.x; KV == DERIVED && d < a.D; d += THREADS) norm[d] = a.k_norm[d];
    if constexpr (WALK) start<MT, NP>(job, t, O, M, row);
    for (int n = 0; n < steps; n++) {
        const int j = w.split * S + warp * 16, last = t.seq.committed + t.seq.n_step - 1;
        const int more = n + 1 < steps;
        if (queries) load_queries(job, t, 16 * MT, smem + y.q, y.pitch, pos);
        if (WALK)
            next.split = kk__attn_split_at(t.sight, n + 1);
        else if (more)
            next = take<0>(job, plan, blockIdx.x + (n + 1) * gridDim.x);
        const struct kk_attn_tile &then = WALK ? t : next.tile;
        queries = then.t0 != t.t0 || then.p0 != t.p0 || then.g != t.g;
        turns cs;
        if (KV == DERIVED) load_turns(a, j, last, cs);
        kk__copy_wait<KV == STORED ? 1 : 0>();
        __syncthreads();
        scores<MT, KV>(job, norm, cs, base + y.q, base + y.k + warp * 16 * y.pitch, y.pitch, j,
                       last, s);
        mask_max<MT>(job, t, pos, w.split, j, s, red_m);
        __syncthreads();
        if (KV == STORED && more) load<KV>(job, y, then, next.split, ALL, 0, base);
        if (KV == IN_TURN) load<KV>(job, y, t, w.split, ALL, 1, base);
        kk__copy_commit();
        float m[MT][2], ra[MT][2], rb[MT][2];
#pragma unroll
        for (int i = 0; i < MT * 2; i++) {
            m[i / 2][i % 2] = max8(red_m + (i / 2 * 16 + i % 2 * 8 + lane / 4) * WARPS);
            if (WALK)
                kk__attn_merge(M[i / 2][i % 2], m[i / 2][i % 2], ra[i / 2][i % 2],
                               rb[i / 2][i % 2]);
        }
        weights<MT>(m, s, smem + y.p, red_l);
        kk__copy_wait<KV == IN_TURN ? 0 : 1>();
        __syncthreads();
        if (threadIdx.x < 16 * MT) {
            const float pm = max8(red_m + threadIdx.x * WARPS),
                        pl = sum8(red_l + threadIdx.x * WARPS);
            if (WALK) {
                float x, z;
                kk__attn_merge(row.x, pm, x, z);
                row.y = __fmaf_rn(row.y, x, pl * z);
            } else if (threadIdx.x < t.n)
                job.part_ml[(int64_t)(w.place - job.wave) * a.T * a.H +
                            kk__attn_query(job, t, threadIdx.x)] = make_float2(pm, pl);
        }
        values<MT, NP>(a.D, base + y.p, base + y.v, y.pitch, o);
        if constexpr (WALK) {
#pragma unroll
            for (int i = 0; i < MT * NP * 8; i++) {
                const int x = i / (NP * 8), h = i / 2 % 2;
                float &to = O[x][i / 8 % NP][i / 4 % 2][i % 4];
                to = __fmaf_rn(to, ra[x][h], o[x][i / 8 % NP][i / 4 % 2][i % 4] * rb[x][h]);
            }
        } else
            store_part<MT, NP>(job, w, o);
        __syncthreads();
        if (more) load<KV>(job, y, then, next.split, ALL, KV != IN_TURN, base);
        kk__copy_commit();
        if (WALK)
            w.split = next.split;
        else
            w = next;
    }
    if constexpr (WALK) finish<MT, NP>(job, t, O, row, (float2 *)red_m);
}

/* ---- merging the splits of few rows ------------------------------------------------------- */

/* The first and the number of the rows that row t's sequence has here; 0 if they are not few. */
__device__ static inline int few_rows(const struct kk_attn_job &job, int t, int *first)
{
    const int lane = threadIdx.x % 32, back = lane < 16,
              at = back ? t - 1 - lane : t + 1 + lane - 16;
    const int same = at >= 0 && at < job.a.T && job.a.seq[at] == job.a.seq[t];
    const unsigned other = ~__ballot_sync(~0u, same);
    const int before = min(16, __ffs(other & 0xffff | 0x10000) - 1);
    const int after = min(16, __ffs(other >> 16 | 0x10000) - 1);
    *first = t - before;
    const int rows = before + after + 1;
    return rows > job.over && rows <= job.most ? rows : 0;
}

/* Sums of the splits [wave, wave + wave_len) of a row and head into its state or, of the last, its
 * output. A warp has 64 dims. from: the state holds what came before; a block then has all dims of
 * the query, so that none reads what another wrote. */
__global__ void __launch_bounds__(32 * KK_ATTN_HEAD / MERGE_DIMS)
    k_merge(const __grid_constant__ struct kk_attn_job job, int from, int to_o)
{
    enum { AHEAD = 32 };
    cudaTriggerProgrammaticLaunchCompletion();
    const struct kk_attn_args &a = job.a;
    const int D = a.D, lane = threadIdx.x % 32, all = a.T * a.H;
    const int warps = (D + MERGE_DIMS - 1) / MERGE_DIMS; /* of a query */
    const int unit = blockIdx.x * (blockDim.x / 32) + threadIdx.x / 32;
    const int query = min(unit / warps, all - 1), d = unit % warps * MERGE_DIMS + lane * 2;
    const int t = query / a.H;
    int first;
    const int rows = few_rows(job, t, &first);
    const struct kk_sight v =
        kk__attn_sight(a, a.seqs[a.seq[t]], a.pos[first], a.pos[first + max(rows, 1) - 1]);
    const int n = max(0, min(kk__attn_splits(v) - job.wave, job.wave_len));
    float *state = a.state + (int64_t)query * (D + 2), M = -INFINITY, L = 0;
    cudaGridDependencySynchronize();
    if (!rows || unit >= all * warps) return;
    float2 O = make_float2(0, 0);
    if (from) {
        M = state[D], L = state[D + 1];
        if (d < D) O = *(const float2 *)(state + d);
    }
    const float *part = job.part + (int64_t)query * D + min(d, D - 2);
    for (int n0 = 0; n0 < n; n0 += AHEAD) {
        float2 x[AHEAD], ml = make_float2(-INFINITY, 0);
        if (n0 + lane < n) ml = job.part_ml[(int64_t)(n0 + lane) * all + query];
#pragma unroll
        for (int i = 0; i < AHEAD; i++) /* past the end: something, times 0 */
            x[i] = kk__load2(part + (int64_t)min(n0 + i, n - 1) * all * D);
        float top = ml.x, a1, b1; /* the largest up to this lane's split */
        for (int o = 1; o < AHEAD; o *= 2) {
            const float up = __shfl_up_sync(~0u, top, o);
            if (lane >= o) top = fmaxf(top, up);
        }
        top = fmaxf(top, M);
        float before = __shfl_up_sync(~0u, top, 1);
        if (lane == 0) before = M;
        kk__attn_merge(before, ml.x, a1, b1);
        M = __shfl_sync(~0u, top, AHEAD - 1);
#pragma unroll
        for (int i = 0; i < AHEAD; i++) {
            const float xa = __shfl_sync(~0u, a1, i), xb = __shfl_sync(~0u, b1, i);
            const float xl = __shfl_sync(~0u, ml.y, i);
            L = __fmaf_rn(L, xa, xl * xb);
            O = make_float2(__fmaf_rn(O.x, xa, x[i].x * xb), __fmaf_rn(O.y, xa, x[i].y * xb));
        }
    }
    __syncthreads();
    if (d < D && to_o)
        ((uint32_t *)a.o)[((int64_t)query * D + d) / 2] =
            kk__pack2(kk__attn_out(O.x, L), kk__attn_out(O.y, L));
    else if (d < D)
        *(float2 *)(state + d) = O;
    if (!to_o && threadIdx.x == 0) state[D] = M, state[D + 1] = L;
}

/* ---- launching ---------------------------------------------------------------------------- */

/* A kernel with room for `bytes` of shared memory, and how many blocks of it a multiprocessor
 * holds. */
template <typename K> static int fit(struct kk_cuda *c, K *kernel, int bytes)
{
    int n = 0;
    kk__cuda_latch(c,
                   cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes),
                   "attn");
    kk__cuda_latch(c, cudaOccupancyMaxActiveBlocksPerMultiprocessor(&n, kernel, THREADS, bytes),
                   "attn");
    return n > 0 ? n : 1;
}

template <int NP, int MT, int KV, int WALK>
static void launch(struct kk_cuda *c, struct kk_attn_job *job, int64_t items)
{
    static struct {
        int bytes, blocks;
    } known[GPUS]; /* asking takes as long as launching */
    const int bytes = layout_of(job->a.D, 16 * MT, KV, job->a.B).bytes, gpu = c->index % GPUS;
    if (known[gpu].bytes != bytes) {
        known[gpu].blocks = fit(c, k_attn<NP, MT, KV, WALK>, bytes) * c->sms;
        known[gpu].bytes = bytes;
    }
    const int64_t room = known[gpu].blocks;
    job->pairs = 16 * MT;
    if (!WALK && items > room) items = room;
    kk__launch(c, "attn", k_attn<NP, MT, KV, WALK>, dim3((unsigned)items), dim3(THREADS),
               (size_t)bytes, *job);
}

template <int MT, int WALK> static void by_head(struct kk_cuda *c, struct kk_attn_job *j, int64_t n)
{
    constexpr int WIDE = WALK && MT > 2 ? 2 : MT; /* walking, sums of 512 dims fill the registers */
    const int D = j->a.D, vo = j->a.value_only;
    if (D <= 128 && vo)
        launch<1, MT, DERIVED, WALK>(c, j, n);
    else if (D <= 128)
        launch<1, MT, STORED, WALK>(c, j, n);
    else if (D <= 256 && vo)
        launch<2, MT, DERIVED, WALK>(c, j, n);
    else if (D <= 256)
        launch<2, MT, STORED, WALK>(c, j, n);
    else if (vo)
        launch<4, WIDE, DERIVED, WALK>(c, j, n);
    else
        launch<4, WIDE, IN_TURN, WALK>(c, j, n);
}

/* Pairs of a tile that so many pairs of a sequence want; of 512 dims fewer fit when walking. */
static int tile_pairs(const struct kk_attn_job *job, int rows, int walk)
{
    const int n = (job->a.mask.exact_near ? 1 : rows) * job->per_kv;
    if (walk && job->a.D > 256 && n > 32) return 32;
    return n <= 16 ? 16 : n <= 32 ? 32 : 64;
}

template <int WALK> static void by_pairs(struct kk_cuda *c, struct kk_attn_job *job, int rows)
{
    const struct kk_attn_args *a = &job->a;
    const int seqs = a->B < a->T ? a->B : a->T;
    job->pairs = tile_pairs(job, rows, WALK);
    int64_t tiles = (int64_t)a->T * job->per_kv / job->pairs + seqs;
    if (a->mask.exact_near) tiles = (int64_t)a->T * ((job->per_kv + job->pairs - 1) / job->pairs);
    tiles *= a->G * (WALK ? 1 : job->wave_len);
    if (job->pairs == 16)
        by_head<1, WALK>(c, job, tiles);
    else if (job->pairs == 32)
        by_head<2, WALK>(c, job, tiles);
    else
        by_head<4, WALK>(c, job, tiles);
}

/* No sequence sees more splits than this in a call; 0: the host does not know. */
static int64_t most_splits(const struct kk_attn_args *a)
{
    const struct kk_mask *m = &a->mask;
    const int64_t near = m->window < m->near ? m->window : m->near;
    const int64_t piece = (int64_t)a->end_split - a->first_split;
    int64_t keys = near + KK_ATTN_FEW + m->ahead, n;
    if (a->longest > 0 && keys > a->longest) keys = a->longest;
    if (keys >= KK_NO_BOUND) return 0;
    n = keys / S + 2 + (m->sinks < a->longest || !a->longest ? m->sinks : a->longest) / S + 1;
    return n < piece ? n : piece;
}

/* Few rows, split by split. 0: the host knows too little, or the sums of a split take too much. */
static int few(struct kk_cuda *c, struct kk_attn_job *job, int rows)
{
    const struct kk_attn_args *a = &job->a;
    const int64_t queries = (int64_t)a->T * a->H, splits = most_splits(a);
    const int64_t fit = PART_BYTES / (queries * (a->D + 2) * 4);
    const unsigned warps = (unsigned)(a->D + MERGE_DIMS - 1) / MERGE_DIMS;
    if (splits <= 0 || fit < (splits < 4 ? splits : 4)) return 0;
    job->over = 0;
    job->most = KK_ATTN_FEW;
    job->part = (float *)(c->scratch + c->attn_at);
    job->wave_len = (int)(fit < splits ? fit : splits);
    job->part_ml = (float2 *)(job->part + job->wave_len * queries * a->D);
    for (job->wave = 0; job->wave < splits; job->wave += job->wave_len) {
        by_pairs<0>(c, job, rows < KK_ATTN_FEW ? rows : KK_ATTN_FEW);
        const int from = job->wave > 0 || !a->first;
        const int to_o = a->last && job->wave + job->wave_len >= splits;
        /* few blocks: a multiprocessor with one of them has no room for the next op's */
        const unsigned n = from || !to_o ? warps : KK_ATTN_HEAD / MERGE_DIMS; /* warps of a block */
        kk__launch(c, "attn", k_merge, dim3(((unsigned)queries * warps + n - 1) / n), dim3(32 * n),
                   0, *job, from, to_o);
    }
    return 1;
}

extern "C" size_t kk__cuda_attn_scratch(const struct kk_cuda *c, const struct kk_limits *l)
{
    (void)c;
    return l->max_head_dim > 0 ? PART_BYTES : 0;
}

extern "C" void kk__cuda_attn(struct kk_dev *dev, const struct kk_attn_args *a)
{
    struct kk_cuda *c = kk__cuda(dev);
    struct kk_attn_job job = {};
    if (a->T == 0) return;
    if (a->kv_dtype != KK_BF16 || a->D % 16 || a->D > KK_ATTN_HEAD || a->H % a->G ||
        a->B > KK_ATTN_SEQS) {
        kk__cuda_latch(c, cudaErrorNotSupported, "attn");
        return;
    }
    job.a = *a;
    job.per_kv = a->H / a->G;
    job.row_bytes = a->G * a->D * 2 * (a->value_only ? 1 : 2);
    const int rows = a->most_rows > 0 && a->most_rows < a->T ? a->most_rows : a->T;
    const int done = (rows <= KK_ATTN_FEW || a->B > 1) && few(c, &job, rows);
    if (done && rows <= KK_ATTN_FEW) return;
    job.over = done ? KK_ATTN_FEW : 0;
    job.most = a->T;
    if (kk__cuda_attn_wide(c, &job)) return;
    by_pairs<1>(c, &job, rows);
}
