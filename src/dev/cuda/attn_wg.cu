/* Attention of long runs of rows, on wgmma: a block takes a tile through its splits, ascending,
 * with the running sums in registers (docs/adr/0023). The bits are those of attn.cu.
 *
 * A warpgroup of producers brings keys and values by 16-byte copies, two warpgroups compute.
 * k_stored, for stored keys and heads of 64, 128 or 256: a warpgroup has 64 pairs of the tile's
 * 128; while one makes weights of scores, the other keeps the tensor cores busy. k_halves: both
 * have the tile's 64 pairs, one half of the keys for scores, one half of the dims for values; for
 * fewer rows, and for keys derived from values, heads of 512: a key is derived once, 64 dims at a
 * time, while wgmma takes the 64 before.
 *
 * One H200, layers of Gemma-4-26B-A4B, share of 790 TFLOP/s over the keys that rows see: sliding
 * 25 % at 512 rows, 35 % at 1024, 36 % at 4096 (285 TFLOP/s); full 19 to 23 % (180). Letting the
 * warpgroups take turns at the tensor cores changed nothing. */
#include "dev/cuda/attn_plan_int.h"
#include "dev/cuda/attn_wg_int.h"

enum {
    S = KK_CUDA_SPLIT,
    THREADS = 384,
    SUB = S * 128, /* bytes of a subtile of 128 rows */
    UP = 232,      /* registers of a computing thread, and of one that brings */
    DOWN = 40,
};

struct shared {
    struct kk_attn_tile tile;
    uint64_t k_full, k_empty, v_full[4], v_empty[4]; /* after these, the plan */
};

/* ---- what both kernels do ----------------------------------------------------------------- */

/* The block's tile, and that the op before has ended; 0: there is none. The whole block. */
__device__ static int take_tile(const struct kk_attn_job &job, int32_t *plan, struct shared *sh)
{
    const struct kk_attn_args &a = job.a;
    const int all = kk__attn_plan(
        job, plan, [&](int, int, int rows) { return kk__attn_tiles(job, rows) * a.G; });
    const int item = all - 1 - (int)blockIdx.x; /* the last first: they see most keys */
    if (item >= 0 && threadIdx.x == 0) {
        const struct kk_attn_part p = kk__attn_find(job, plan, item);
        const int i = item - p.before;
        kk__attn_tile(job, p.b, p.t0, p.rows, i % a.G, i / a.G, &sh->tile);
    }
    cudaGridDependencySynchronize();
    cudaTriggerProgrammaticLaunchCompletion();
    return item >= 0;
}

/* Queries [first, first + 64) of the tile, scaled, in bf16, to subtiles `pitch` bytes apart. A
 * warpgroup: a warp takes 16 pairs. */
template <int D>
__device__ static void load_queries(const struct kk_attn_job &job, const struct kk_attn_tile &t,
                                    int first, char *q, int pitch)
{
    enum { PARTS = D / 8, AHEAD = 4 };
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32 % 4;
    const float s = job.a.scale;
#pragma unroll 1
    for (int i0 = lane; i0 < 16 * PARTS; i0 += 32 * AHEAD) {
        float4 v[AHEAD][2];
#pragma unroll
        for (int i = 0; i < AHEAD; i++) { /* all on their way at once */
            const int at = i0 + 32 * i, pair = first + warp * 16 + at / PARTS;
            const float *from = job.a.q + kk__attn_query(job, t, min(pair, t.n - 1)) * D;
            v[i][0] = kk__load4(from + at % PARTS * 8);
            v[i][1] = kk__load4(from + at % PARTS * 8 + 4);
        }
#pragma unroll
        for (int i = 0; i < AHEAD; i++) {
            const int at = i0 + 32 * i, r = warp * 16 + at / PARTS, c = at % PARTS;
            const float4 x = v[i][0], y = v[i][1];
            uint4 h = make_uint4(kk__pack2(x.x * s, x.y * s), kk__pack2(x.z * s, x.w * s),
                                 kk__pack2(y.x * s, y.y * s), kk__pack2(y.z * s, y.w * s));
            if (first + r >= t.n) h = make_uint4(0, 0, 0, 0);
            *(uint4 *)(q + c / 8 * pitch + kk__swizzle(r, c % 8)) = h;
        }
    }
    kk__wg_see();
}

/* 32 rows of a split: this lane's address (NULL: zeros), and whether they follow each other. */
struct rows32 {
    const char *mine, *first;
    unsigned there;
    int in_line;
};

__device__ static inline struct rows32 find32(const struct kk_attn_job &job,
                                              const struct kk_attn_tile &t, int j, size_t at)
{
    struct rows32 r;
    r.mine = kk__attn_row(job, t, j + threadIdx.x % 32);
    if (r.mine) r.mine += at;
    r.there = __ballot_sync(~0u, r.mine != NULL);
    r.in_line = kk__attn_in_line(r.mine, r.there, job.row_bytes, &r.first);
    return r;
}

/* Dims [64 c0, 64 (c0 + N)) of 32 rows of a split, rows r0 + .., to their subtiles. One warp. */
template <int N>
__device__ static inline void copy32(const struct kk_attn_job &job, const struct rows32 &rows,
                                     int r0, int c0, uint32_t dst)
{
    enum { PARTS = N * 8, AT_ONCE = 32 / PARTS };
    const int lane = threadIdx.x % 32, c = c0 * 8 + lane % PARTS, r = lane / PARTS;
    dst += c / 8 * SUB;
    if (rows.in_line) {
        const char *p = rows.first + c * 16 + (int64_t)r * job.row_bytes;
        const unsigned there = rows.there >> r;
#pragma unroll 8
        for (int i = 0; i < 32; i += AT_ONCE) {
            kk__copy16(dst + kk__swizzle(r0 + i + r, c % 8), p, there >> i & 1);
            p += AT_ONCE * job.row_bytes;
        }
        return;
    }
#pragma unroll 1
    for (int i = 0; i < 32; i += AT_ONCE) {
        const char *p = (const char *)__shfl_sync(~0u, (unsigned long long)rows.mine, i + r);
        kk__copy16(dst + kk__swizzle(r0 + i + r, c % 8), p ? p + c * 16 : (char *)job.a.q, p != 0);
    }
}

/* The two rows of a computing thread: pairs `pair` and `pair` + 8. */
struct rows2 {
    int64_t query[2]; /* -1: none */
    int32_t pos[2];
    float M[2], L[2];
};

__device__ static inline struct rows2 start_rows(const struct kk_attn_job &job,
                                                 const struct kk_attn_tile &t, int pair)
{
    struct rows2 r;
#pragma unroll
    for (int h = 0; h < 2; h++) {
        const int p = pair + 8 * h;
        r.query[h] = p < t.n ? kk__attn_query(job, t, p) : -1;
        r.pos[h] = job.a.pos[t.t0 + (t.p0 + min(p, t.n - 1)) / job.per_kv];
        r.M[h] = -INFINITY, r.L[h] = 0;
        if (!job.a.first && p < t.n) {
            const float2 ml = *(const float2 *)(job.a.state + r.query[h] * (job.a.D + 2) + job.a.D);
            r.M[h] = ml.x, r.L[h] = ml.y;
        }
    }
    return r;
}

/* Sums of 64 NC dims from d on, from the state or zero. */
template <int NC>
__device__ static inline void start_sums(const struct kk_attn_job &job, const struct rows2 &r,
                                         int d, float (&O)[NC][32])
{
    d += threadIdx.x % 4 * 2;
#pragma unroll
    for (int i = 0; i < NC * 16; i++) {
        const int c = i / 16, j = i / 2 % 8, h = i % 2;
        float2 x = make_float2(0, 0);
        if (!job.a.first && r.query[h] >= 0)
            x = *(const float2 *)(job.a.state + r.query[h] * (job.a.D + 2) + d + c * 64 + j * 8);
        O[c][4 * j + 2 * h] = x.x, O[c][4 * j + 2 * h + 1] = x.y;
    }
}

template <int NC>
__device__ static inline void finish(const struct kk_attn_job &job, const struct rows2 &r, int d,
                                     const float (&O)[NC][32])
{
    const int q = threadIdx.x % 4, D = job.a.D;
#pragma unroll
    for (int h = 0; h < 2; h++) {
        if (r.query[h] < 0) continue;
        uint32_t *o = (uint32_t *)job.a.o + (r.query[h] * D + d) / 2 + q;
        float *state = job.a.state + r.query[h] * (D + 2);
#pragma unroll
        for (int i = 0; i < NC * 8; i++) {
            const float x = O[i / 8][i % 8 * 4 + 2 * h], y = O[i / 8][i % 8 * 4 + 2 * h + 1];
            if (job.a.last)
                o[i * 4] = kk__pack2(kk__attn_out(x, r.L[h]), kk__attn_out(y, r.L[h]));
            else
                *(float2 *)(state + d + i * 8 + q * 2) = make_float2(x, y);
        }
        if (!job.a.last && d == 0 && q == 0) *(float2 *)(state + D) = make_float2(r.M[h], r.L[h]);
    }
}

/* -inf for the keys j + 8 i + .. that a row does not see; the rows' largest. */
template <int N>
__device__ static inline void mask_max(const struct kk_attn_job &job, const struct kk_attn_tile &t,
                                       const struct rows2 &r, int split, int j, float (&s)[N],
                                       float (&m)[2])
{
    const int rows = t.seq.committed + t.seq.n_step, q = threadIdx.x % 4;
    if (!kk__attn_sees_all(job.a.mask, t.lo, t.hi, split * S, rows)) {
#pragma unroll
        for (int i = 0; i < N; i++)
            if (!kk__attn_sees(job.a.mask, r.pos[i / 2 % 2], j + i / 4 * 8 + q * 2 + i % 2, rows))
                s[i] = -INFINITY;
    }
    m[0] = m[1] = -INFINITY;
#pragma unroll
    for (int i = 0; i < N; i++) m[i / 2 % 2] = fmaxf(m[i / 2 % 2], s[i]);
#pragma unroll
    for (int h = 0; h < 2; h++) {
        m[h] = fmaxf(m[h], __shfl_xor_sync(~0u, m[h], 1));
        m[h] = fmaxf(m[h], __shfl_xor_sync(~0u, m[h], 2));
    }
}

/* Weights in place of scores, as operand A; g: their sums over each 16 keys. */
template <int N>
__device__ static inline void weights(const float (&s)[N], const float (&m)[2],
                                      uint32_t (&p)[N / 2], float (&g)[N / 8][2])
{
#pragma unroll
    for (int k = 0; k < N / 8; k++)
#pragma unroll
        for (int h = 0; h < 2; h++) {
            const float base = kk__attn_base(m[h]);
            const float x[4] = {
                kk__attn_exp(s[8 * k + 2 * h], base), kk__attn_exp(s[8 * k + 2 * h + 1], base),
                kk__attn_exp(s[8 * k + 2 * h + 4], base), kk__attn_exp(s[8 * k + 2 * h + 5], base)};
            float l = ((x[0] + x[1]) + x[2]) + x[3];
            l += __shfl_xor_sync(~0u, l, 1);
            g[k][h] = l + __shfl_xor_sync(~0u, l, 2);
            p[4 * k + h] = kk__pack2(x[0], x[1]);
            p[4 * k + 2 + h] = kk__pack2(x[2], x[3]);
        }
}

/* l plus groups of 16 keys, in ascending order */
template <int N> __device__ static inline void add_groups(const float (&g)[N][2], float (&l)[2])
{
#pragma unroll
    for (int k = 0; k < N; k++) l[0] += g[k][0], l[1] += g[k][1];
}

__device__ static inline void merge_sums(float (&O)[32], const float (&o)[32], const float (&a)[2],
                                         const float (&b)[2])
{
#pragma unroll
    for (int i = 0; i < 32; i++) O[i] = __fmaf_rn(O[i], a[i / 2 % 2], o[i] * b[i / 2 % 2]);
}

/* ---- keys and values stored --------------------------------------------------------------- */

/* Two warps bring the keys, or the values, of every split. */
template <int D>
__device__ static void bring(const struct kk_attn_job &job, const struct kk_attn_tile &t, size_t at,
                             uint32_t dst, uint64_t *full, uint64_t *empty)
{
    const int warp = threadIdx.x / 32 % 2;
    const int steps = kk__attn_splits(t.sight);
    for (int n = 0; n < steps; n++) {
        const int split = kk__attn_split_at(t.sight, n);
        struct rows32 rows[2];
#pragma unroll
        for (int i = 0; i < 2; i++) rows[i] = find32(job, t, split * S + warp * 64 + i * 32, at);
        kk__bar_wait(empty, n % 2 ^ 1);
#pragma unroll
        for (int i = 0; i < 2; i++) copy32<D / 64>(job, rows[i], warp * 64 + i * 32, 0, dst);
        kk__copy_commit();
        kk__copy_wait<0>();
        kk__wg_see();
        kk__bar_arrive(full);
    }
}

/* One warpgroup, `wg` of two. */
template <int D>
__device__ static void compute(const struct kk_attn_job &job, struct shared *sh, int wg, char *smem)
{
    enum { NC = D / 64 };
    const struct kk_attn_tile &t = sh->tile;
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32 % 4;
    const int steps = kk__attn_splits(t.sight);
    float O[NC][32];
    struct rows2 r = start_rows(job, t, wg * 64 + warp * 16 + lane / 4);
    start_sums<NC>(job, r, 0, O);
    load_queries<D>(job, t, wg * 64, smem + wg * 64 * 128, SUB);
    kk__meet(1 + wg, 128);
    const uint32_t base = kk__smem(smem);
    const uint64_t q = kk__operand(base + wg * 64 * 128, 16), k = kk__operand(base + NC * SUB, 16);
    const uint64_t v = kk__operand(base + 2 * NC * SUB, SUB);
    for (int n = 0; n < steps; n++) {
        const int split = kk__attn_split_at(t.sight, n);
        float s[64], m[2], a[2], b[2], g[8][2], l[2] = {0, 0};
        uint32_t p[32];
        kk__bar_wait(&sh->k_full, n % 2);
        kk__wg_see();
        kk__wg_begin();
#pragma unroll
        for (int c = 0; c < NC * 4; c++)
            kk__wgmma<128>(s, q + (c / 4 * SUB + c % 4 * 32) / 16,
                           k + (c / 4 * SUB + c % 4 * 32) / 16, c > 0);
        kk__wg_commit();
        kk__wg_wait<0>();
        if (lane == 0) kk__bar_arrive(&sh->k_empty);
        mask_max<64>(job, t, r, split, split * S, s, m);
        weights<64>(s, m, p, g);
        add_groups(g, l);
#pragma unroll
        for (int h = 0; h < 2; h++) {
            kk__attn_merge(r.M[h], m[h], a[h], b[h]);
            r.L[h] = __fmaf_rn(r.L[h], a[h], l[h] * b[h]);
        }
        kk__bar_wait(&sh->v_full[0], n % 2);
        kk__wg_see();
#pragma unroll
        for (int c = 0; c < NC; c++) {
            float o[32];
            kk__wg_begin();
#pragma unroll
            for (int i = 0; i < S / 16; i++)
                kk__wg_n64(o, p + 4 * i, v + (c * SUB + i * 2048) / 16, i > 0);
            kk__wg_commit();
            kk__wg_wait<0>();
            if (c == NC - 1 && lane == 0) kk__bar_arrive(&sh->v_empty[0]);
            merge_sums(O[c], o, a, b);
        }
    }
    finish<NC>(job, r, 0, O);
}

template <int D>
__global__ void __launch_bounds__(THREADS, 1)
    k_stored(const __grid_constant__ struct kk_attn_job job)
{
    extern __shared__ __align__(1024) char smem[];
    struct shared &sh = *(struct shared *)(smem + 3 * (D / 64) * SUB);
    const int wg = threadIdx.x / 128;
    if (!take_tile(job, (int32_t *)(&sh + 1), &sh)) return;
    if (threadIdx.x == 0) {
        kk__bar_init(&sh.k_full, 64);
        kk__bar_init(&sh.v_full[0], 64);
        kk__bar_init(&sh.k_empty, 8);
        kk__bar_init(&sh.v_empty[0], 8);
    }
    __syncthreads();
    if (wg == 0) {
        kk__registers_down<DOWN>();
        const int value = threadIdx.x / 64;
        const size_t at = (size_t)(sh.tile.g + value * job.a.G) * D * 2;
        bring<D>(job, sh.tile, at, kk__smem(smem) + (1 + value) * (D / 64) * SUB,
                 value ? &sh.v_full[0] : &sh.k_full, value ? &sh.v_empty[0] : &sh.k_empty);
    } else {
        kk__registers_up<UP>();
        compute<D>(job, &sh, wg - 1, smem);
    }
}

/* ---- 64 pairs, halves of the keys and of the dims ------------------------------------------ */

enum { QSUB = 64 * 128 }; /* bytes of a subtile of 64 rows */

/* Shared memory of a head of D: queries, values, keys, weights, what else, plan. Derived keys have
 * two subtiles; the weights lie in the first, and maxima and sums where this warpgroup's last keys
 * were, in the second. */
template <int D, int DERIVED> struct halves {
    enum {
        SUBS = D / 64,
        V_AT = SUBS * QSUB,
        K_AT = V_AT + SUBS * SUB,
        P_AT = K_AT + (DERIVED ? 0 : SUBS * SUB),
        STAT_AT = P_AT + SUB,
        STAT_NEXT = DERIVED ? QSUB : 512, /* bytes to those of the other warpgroup */
        NORM_AT = STAT_AT + (DERIVED ? SUB : 1024),
        SHARED_AT = NORM_AT + (DERIVED ? D * 4 : 0),
        PLAN_AT = SHARED_AT + (int)((sizeof(struct shared) + 7) & ~7),
        NC = SUBS / 2 /* of a warpgroup */
    };
};
typedef halves<512, 1> big;

/* A warp brings a quarter of the rows of every split, in four parts: subtiles c and c + 4. */
__device__ static void bring_values(const struct kk_attn_job &job, struct shared *sh, uint32_t dst)
{
    const struct kk_attn_tile &t = sh->tile;
    const int warp = threadIdx.x / 32 % 4, steps = kk__attn_splits(t.sight);
    for (int n = 0; n < steps; n++) {
        const int split = kk__attn_split_at(t.sight, n);
        const struct rows32 rows = find32(job, t, split * S + warp * 32, (size_t)t.g * 512 * 2);
        for (int c = 0; c < 4; c++) {
            kk__bar_wait(&sh->v_empty[c], n % 2 ^ 1);
            copy32<1>(job, rows, warp * 32, c, dst);
            copy32<1>(job, rows, warp * 32, c + 4, dst);
            kk__copy_commit();
            if (c > 0) {
                kk__copy_wait<1>();
                kk__wg_see();
                kk__bar_arrive(&sh->v_full[c - 1]);
            }
        }
        kk__copy_wait<0>();
        kk__wg_see();
        kk__bar_arrive(&sh->v_full[3]);
    }
}

/* Two dims, times w, in f32. */
__device__ static inline float2 times2(uint32_t x, float2 w)
{
    return make_float2(kk__lo(x) * w.x, kk__hi(x) * w.y);
}

/* Dims 64 c .. of keys [first, first + 64) of a split, from the values in shared memory; j: the
 * first key's position. A warpgroup; a thread makes 8 dims of every 16th key. */
__device__ static void derive(const struct kk_attn_job &job, const char *v, const float *norm,
                              char *k, int c, int first, int j, int last)
{
    const int R = job.a.R, part = threadIdx.x % 8, low = c < 4, row0 = threadIdx.x % 128 / 8;
    const float4 *w = (const float4 *)(norm + c * 64 + part * 8);
    const float4 *z = (const float4 *)(norm + (c ^ 4) * 64 + part * 8);
    v += c * SUB;
    if (c % 4 * 64 >= R) {
        const float4 x = w[0], y = w[1];
#pragma unroll
        for (int i = 0; i < 4; i++) {
            const uint32_t at = kk__swizzle(first + row0 + 16 * i, part);
            uint4 h = *(const uint4 *)(v + at);
            const float2 a = times2(h.x, make_float2(x.x, x.y)),
                         b = times2(h.y, make_float2(x.z, x.w));
            const float2 e = times2(h.z, make_float2(y.x, y.y)),
                         f = times2(h.w, make_float2(y.z, y.w));
            h = make_uint4(kk__pack2(a.x, a.y), kk__pack2(b.x, b.y), kk__pack2(e.x, e.y),
                           kk__pack2(f.x, f.y));
            *(uint4 *)(k + at) = h;
        }
        kk__wg_see();
        return;
    }
    const char *other = v + (low ? 4 : -4) * SUB;
#pragma unroll 1
    for (int h = 0; h < 2; h++) {
        const int r0 = c % 4 * 64 + part * 8 + h * 4;
        const float4 x = w[h], y = z[h];
        float4 u[4][2]; /* all on their way at once; of pairs that do not turn, something */
#pragma unroll
        for (int i = 0; i < 8; i++) {
            const int64_t at = (int64_t)min(j + row0 + 16 * (i / 2), last) * R + min(r0, R - 4);
            u[i / 2][i % 2] = kk__load4(job.a.rope + at * 2 + i % 2 * 4);
        }
#pragma unroll
        for (int i = 0; i < 4; i++) {
            const uint32_t at = kk__swizzle(first + row0 + 16 * i, part) + h * 8;
            const uint2 mine = *(const uint2 *)(v + at), its = *(const uint2 *)(other + at);
            float2 a = times2(mine.x, make_float2(x.x, x.y)),
                   b = times2(mine.y, make_float2(x.z, x.w));
            const float2 e = times2(its.x, make_float2(y.x, y.y));
            const float2 f = times2(its.y, make_float2(y.z, y.w));
            const float4 s = u[i][0], t = u[i][1];
            if (r0 < R && low) {
                a = make_float2(a.x * s.x - e.x * s.y, a.y * s.z - e.y * s.w);
                b = make_float2(b.x * t.x - f.x * t.y, b.y * t.z - f.y * t.w);
            } else if (r0 < R) {
                a = make_float2(a.x * s.x + e.x * s.y, a.y * s.z + e.y * s.w);
                b = make_float2(b.x * t.x + f.x * t.y, b.y * t.z + f.y * t.w);
            }
            *(uint2 *)(k + at) = make_uint2(kk__pack2(a.x, a.y), kk__pack2(b.x, b.y));
        }
    }
    kk__wg_see();
}

/* Scores of 64 keys of a split, which this warpgroup derives, 64 dims at a time. */
__device__ static void derived_scores(const struct kk_attn_job &job, struct shared *sh, int wg,
                                      char *smem, int n, int split, float (&s)[32])
{
    const int last = sh->tile.seq.committed + sh->tile.seq.n_step - 1, j = split * S + wg * 64;
    const uint32_t base = kk__smem(smem);
    const float *norm = (const float *)(smem + big::NORM_AT);
    kk__bar_wait(&sh->v_full[0], n % 2);
    derive(job, smem + big::V_AT, norm, smem + big::K_AT + SUB, 0, wg * 64, j, last);
    kk__meet(1 + wg, 128);
#pragma unroll 1
    for (int c = 0; c < big::SUBS; c++) {
        const int at = big::K_AT + (c + 1) % 2 * SUB + wg * QSUB;
        const uint64_t q = kk__operand(base + c * QSUB, 16), k = kk__operand(base + at, 16);
        kk__wg_begin();
#pragma unroll
        for (int i = 0; i < 4; i++) kk__wg_n64<0>(s, q + i * 2, k + i * 2, c > 0 || i > 0);
        kk__wg_commit();
        if (c == big::SUBS - 1) break;
        if (c == 0) kk__meet(3, 256); /* nobody reads the weights of the split before */
        if (c < 3) kk__bar_wait(&sh->v_full[c + 1], n % 2);
        kk__wg_wait<1>();
        kk__meet(1 + wg, 128); /* of all four warps: the subtile is free */
        derive(job, smem + big::V_AT, norm, smem + big::K_AT + c % 2 * SUB, c + 1, wg * 64, j,
               last);
        kk__meet(1 + wg, 128);
    }
    kk__wg_wait<0>();
}

/* The same of stored keys. */
template <int D>
__device__ static void stored_scores(struct shared *sh, int wg, uint32_t base, int n,
                                     float (&s)[32])
{
    typedef halves<D, 0> y;
    const uint64_t q = kk__operand(base, 16), k = kk__operand(base + y::K_AT + wg * QSUB, 16);
    kk__bar_wait(&sh->k_full, n % 2);
    kk__wg_see();
    kk__wg_begin();
#pragma unroll
    for (int i = 0; i < y::SUBS * 4; i++)
        kk__wg_n64<0>(s, q + (i / 4 * QSUB + i % 4 * 32) / 16, k + (i / 4 * SUB + i % 4 * 32) / 16,
                      i > 0);
    kk__wg_commit();
    kk__wg_wait<0>();
    if (threadIdx.x % 32 == 0) kk__bar_arrive(&sh->k_empty);
}

/* One warpgroup's weights to subtile p; a: as weights() makes them. */
__device__ static inline void store_weights(char *p, int pair, const uint32_t (&a)[16])
{
#pragma unroll
    for (int i = 0; i < 16; i++) {
        const int half = i % 2, part = i / 4 * 2 + i / 2 % 2;
        *(uint32_t *)(p + kk__swizzle(pair + half * 8, part) + threadIdx.x % 4 * 4) = a[i];
    }
    kk__wg_see();
}

/* Running l of a split from the one warpgroup's keys to the other's. */
__device__ static inline void sum_both(int wg, int pair, const float (&g)[4][2], float *sum_of,
                                       float (&l)[2])
{
    if (wg == 1) {
        kk__meet(4, 256);
        l[0] = sum_of[pair], l[1] = sum_of[pair + 8];
    }
    add_groups(g, l);
    if (wg == 0) {
        if (threadIdx.x % 4 == 0) sum_of[pair] = l[0], sum_of[pair + 8] = l[1];
        kk__arrive(4, 256);
    }
}

/* One warpgroup: scores of half of the keys, values of half of the dims. */
template <int D, int DERIVED>
__device__ static void compute_half(const struct kk_attn_job &job, struct shared *sh, int wg,
                                    char *smem)
{
    typedef halves<D, DERIVED> y;
    const struct kk_attn_tile &t = sh->tile;
    const int lane = threadIdx.x % 32, pair = threadIdx.x / 32 % 4 * 16 + lane / 4;
    const int steps = kk__attn_splits(t.sight);
    float *stat[2] = {(float *)(smem + y::STAT_AT), (float *)(smem + y::STAT_AT + y::STAT_NEXT)};
    float *sum_of = stat[0] + 64, O[y::NC][32];
    struct rows2 r = start_rows(job, t, pair);
    start_sums<y::NC>(job, r, wg * D / 2, O);
    if (wg == 0) load_queries<D>(job, t, 0, smem, QSUB);
    kk__meet(3, 256);
    const uint32_t base = kk__smem(smem);
    const uint64_t w = kk__operand(base + y::P_AT, 16);
    const uint64_t v = kk__operand(base + y::V_AT + wg * y::NC * SUB, 16);
    for (int n = 0; n < steps; n++) {
        const int split = kk__attn_split_at(t.sight, n);
        float s[32], m[2], a[2], b[2], g[4][2], l[2] = {0, 0};
        uint32_t p[16];
        if constexpr (DERIVED) {
            derived_scores(job, sh, wg, smem, n, split, s);
            kk__meet(1 + wg, 128); /* of all four warps: keys give way to maxima */
        } else
            stored_scores<D>(sh, wg, base, n, s);
        mask_max<32>(job, t, r, split, split * S + wg * 64, s, m);
        if (lane % 4 == 0) stat[wg][pair] = m[0], stat[wg][pair + 8] = m[1];
        kk__meet(3, 256);
#pragma unroll
        for (int h = 0; h < 2; h++) m[h] = fmaxf(stat[0][pair + 8 * h], stat[1][pair + 8 * h]);
        weights<32>(s, m, p, g);
        store_weights(smem + y::P_AT + wg * QSUB, pair, p);
        sum_both(wg, pair, g, sum_of, l);
#pragma unroll
        for (int h = 0; h < 2; h++) {
            kk__attn_merge(r.M[h], m[h], a[h], b[h]);
            r.L[h] = __fmaf_rn(r.L[h], a[h], l[h] * b[h]); /* all, in warpgroup 1 alone */
        }
        if (!DERIVED) kk__bar_wait(&sh->v_full[0], n % 2);
        kk__wg_see();
        kk__meet(3, 256);
#pragma unroll
        for (int c = 0; c < y::NC; c++) {
            float o[32];
            kk__wg_begin();
#pragma unroll
            for (int i = 0; i < S / 16; i++)
                kk__wg_n64<1>(o, w + (i / 4 * QSUB + i % 4 * 32) / 16,
                              v + (c * SUB + i * 2048) / 16, i > 0);
            kk__wg_commit();
            kk__wg_wait<0>();
            if (lane == 0 && (DERIVED || c == y::NC - 1))
                kk__bar_arrive(&sh->v_empty[DERIVED ? c : 0]);
            merge_sums(O[c], o, a, b);
        }
    }
    kk__meet(3, 256);
    if (wg == 1 && lane % 4 == 0) sum_of[pair] = r.L[0], sum_of[pair + 8] = r.L[1];
    kk__meet(3, 256);
    r.L[0] = sum_of[pair], r.L[1] = sum_of[pair + 8];
    finish<y::NC>(job, r, wg * D / 2, O);
}

template <int D, int DERIVED>
__global__ void __launch_bounds__(THREADS, 1)
    k_halves(const __grid_constant__ struct kk_attn_job job)
{
    typedef halves<D, DERIVED> y;
    extern __shared__ __align__(1024) char smem[]; /* there is no other: it is aligned */
    struct shared &sh = *(struct shared *)(smem + y::SHARED_AT);
    const int wg = threadIdx.x / 128, value = threadIdx.x / 64;
    if (!take_tile(job, (int32_t *)(smem + y::PLAN_AT), &sh)) return;
    if (DERIVED)
        for (int d = threadIdx.x; d < D; d += THREADS)
            ((float *)(smem + y::NORM_AT))[d] = job.a.k_norm[d];
    if (threadIdx.x < 4) {
        kk__bar_init(&sh.v_full[threadIdx.x], DERIVED ? 128 : 64);
        kk__bar_init(&sh.v_empty[threadIdx.x], 8);
        if (threadIdx.x == 0) kk__bar_init(&sh.k_full, 64);
        if (threadIdx.x == 0) kk__bar_init(&sh.k_empty, 8);
    }
    __syncthreads();
    if (wg == 0) {
        kk__registers_down<DOWN>();
        if constexpr (DERIVED)
            bring_values(job, &sh, kk__smem(smem) + y::V_AT);
        else
            bring<D>(job, sh.tile, (size_t)(sh.tile.g + value * job.a.G) * D * 2,
                     kk__smem(smem) + (value ? y::V_AT : y::K_AT),
                     value ? &sh.v_full[0] : &sh.k_full, value ? &sh.v_empty[0] : &sh.k_empty);
    } else {
        kk__registers_up<UP>();
        compute_half<D, DERIVED>(job, &sh, wg - 1, smem);
    }
}

/* ---- launching ---------------------------------------------------------------------------- */

static int run(struct kk_cuda *c, struct kk_attn_job *job, void (*kernel)(struct kk_attn_job),
               int pairs, int bytes)
{
    const struct kk_attn_args *a = &job->a;
    const int seqs = a->B < a->T ? a->B : a->T;
    bytes += kk__attn_plan_ints(a->B) * 4;
    if ((size_t)bytes > c->smem_most) return 0;
    job->pairs = pairs;
    const int64_t tiles = ((int64_t)a->T * job->per_kv / pairs + seqs) * a->G;
    kk__cuda_latch(c,
                   cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes),
                   "attn");
    kk__launch(c, "attn", kernel, dim3((unsigned)tiles), dim3(THREADS), (size_t)bytes, *job);
    return 1;
}

/* Tiles of 128 pairs do more with a key that was brought; of 64, there are more of them. */
template <int D> static int stored(struct kk_cuda *c, struct kk_attn_job *job)
{
    const int64_t pairs = (int64_t)job->a.T * job->a.H;
    if (pairs / 128 < c->sms * 7 / 8) return run(c, job, k_halves<D, 0>, 64, halves<D, 0>::PLAN_AT);
    return run(c, job, k_stored<D>, 128, 3 * (D / 64) * SUB + (int)sizeof(struct shared));
}

int kk__cuda_attn_wide(struct kk_cuda *c, struct kk_attn_job *job)
{
    const struct kk_attn_args *a = &job->a;
    if (a->mask.exact_near) return 0; /* tiles of one row */
    if (a->value_only)
        return a->D == 512 && a->R % 4 == 0 ? run(c, job, k_halves<512, 1>, 64, big::PLAN_AT) : 0;
    switch (a->D) {
    case 64:
        return run(c, job, k_stored<64>, 128, 3 * SUB + (int)sizeof(struct shared));
    case 128:
        return stored<128>(c, job);
    case 256:
        return stored<256>(c, job);
    }
    return 0;
}
