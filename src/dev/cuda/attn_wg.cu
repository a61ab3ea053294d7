/* Attention of long runs of rows, on wgmma: a block takes a tile through its splits, ascending, with
 * the running sums in registers (docs/adr/0023). The bits are those of attn.cu.
 *
 * A warpgroup of producers brings keys and values by 16-byte copies, two warpgroups compute. Stored
 * keys and values, heads of 64, 128 or 256: a warpgroup has 64 pairs of the tile's 128; while one
 * makes weights of scores, the other keeps the tensor cores busy. Keys derived from values, heads of
 * 512: both have the tile's 64 pairs, one half of the keys for scores, one half of the dims for
 * values; a key is derived once, 64 dims at a time, while wgmma takes the 64 before. */
#include "dev/cuda/attn_int.h"
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
    uint64_t k_full, k_empty, v_full[4], v_empty[4];
};

/* ---- what both kernels do ----------------------------------------------------------------- */

/* Shared memory from the first multiple of 1024 bytes on. */
__device__ static inline char *aligned(char *p)
{
    return p + (-kk__smem(p) & 1023);
}

/* The block's tile; 0: none. The whole block. */
__device__ static int take_tile(const struct kk_attn_job &job, int32_t *plan, struct shared *sh)
{
    const struct kk_attn_args &a = job.a;
    const int all = kk__attn_plan(
        job, plan, [&](int, int, int rows) { return kk__attn_tiles(job, rows) * a.G; });
    const int item = all - 1 - (int)blockIdx.x; /* the last first: they see most keys */
    if (item < 0) return 0;
    if (threadIdx.x == 0) {
        const int b = kk__attn_find(plan + 2 * a.B, a.B, item), i = item - plan[2 * a.B + b];
        kk__attn_tile(job, b, plan[b], plan[a.B + b], i % a.G, i / a.G, &sh->tile);
    }
    return 1;
}

/* Queries [first, first + 64) of the tile, scaled, in bf16, to subtiles `pitch` bytes apart. A
 * warpgroup. */
template <int D>
__device__ static void load_queries(const struct kk_attn_job &job, const struct kk_attn_tile &t,
                                    int first, char *q, int pitch)
{
    for (int i = threadIdx.x % 128; i < 64 * (D / 8); i += 128) {
        const int r = i / (D / 8), c = i % (D / 8), pair = first + r;
        float4 x = make_float4(0, 0, 0, 0), y = x;
        if (pair < t.n) {
            const float4 *from =
                (const float4 *)(job.a.q + kk__attn_query(job, t, pair) * D) + c * 2;
            x = from[0], y = from[1];
        }
        const float s = job.a.scale;
        *(uint4 *)(q + c / 8 * pitch + kk__swizzle(r, c % 8)) =
            make_uint4(kk__pack2(x.x * s, x.y * s), kk__pack2(x.z * s, x.w * s),
                       kk__pack2(y.x * s, y.y * s), kk__pack2(y.z * s, y.w * s));
    }
    kk__wg_see();
}

/* Dims [64 c0, 64 (c0 + n)) of 32 rows of a split, rows r0 + .. of it, to their subtiles. One warp;
 * row: this lane's. */
__device__ static inline void copy32(const char *row, int r0, int c0, int n, uint32_t dst,
                                     const void *any)
{
    const int lane = threadIdx.x % 32, parts = n * 8, at_once = 32 / parts;
    const int c = c0 * 8 + lane % parts, sub = c / 8 * SUB;
#pragma unroll 4
    for (int i = 0; i < 32; i += at_once) {
        const int r = i + lane / parts;
        const char *p = (const char *)__shfl_sync(~0u, (unsigned long long)row, r);
        kk__copy16(dst + sub + kk__swizzle(r0 + r, c % 8), p ? p + c * 16 : (const char *)any,
                   p != 0);
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

/* Weights in place of scores, as operand A; l: their sums so far, to which groups of 16 keys are
 * added in ascending order. */
template <int N>
__device__ static inline void weights(const float (&s)[N], const float (&m)[2],
                                      uint32_t (&p)[N / 2], float (&l)[2])
{
#pragma unroll
    for (int k = 0; k < N / 8; k++)
#pragma unroll
        for (int h = 0; h < 2; h++) {
            const float base = kk__attn_base(m[h]);
            const float x[4] = {
                kk__attn_exp(s[8 * k + 2 * h], base), kk__attn_exp(s[8 * k + 2 * h + 1], base),
                kk__attn_exp(s[8 * k + 2 * h + 4], base), kk__attn_exp(s[8 * k + 2 * h + 5], base)};
            float g = ((x[0] + x[1]) + x[2]) + x[3];
            g += __shfl_xor_sync(~0u, g, 1);
            g += __shfl_xor_sync(~0u, g, 2);
            l[h] += g;
            p[4 * k + h] = kk__pack2(x[0], x[1]);
            p[4 * k + 2 + h] = kk__pack2(x[2], x[3]);
        }
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
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32 % 2;
    const int steps = kk__attn_splits(t.sight);
    for (int n = 0; n < steps; n++) {
        const int split = kk__attn_split_at(t.sight, n);
        const char *row[2];
#pragma unroll
        for (int i = 0; i < 2; i++) {
            row[i] = kk__attn_row(job, t, split * S + warp * 64 + i * 32 + lane);
            if (row[i]) row[i] += at;
        }
        kk__bar_wait(empty, n % 2 ^ 1);
#pragma unroll
        for (int i = 0; i < 2; i++) copy32(row[i], warp * 64 + i * 32, 0, D / 64, dst, job.a.q);
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
        float s[64], m[2], a[2], b[2], l[2] = {0, 0};
        uint32_t p[32];
        kk__bar_wait(&sh->k_full, n % 2);
        kk__wg_see();
        kk__wg_begin();
#pragma unroll
        for (int c = 0; c < NC * 4; c++)
            kk__wg_n128(s, q + (c / 4 * SUB + c % 4 * 32) / 16, k + (c / 4 * SUB + c % 4 * 32) / 16,
                        c > 0);
        kk__wg_commit();
        kk__wg_wait<0>();
        if (lane == 0) kk__bar_arrive(&sh->k_empty);
        mask_max<64>(job, t, r, split, split * S, s, m);
        weights<64>(s, m, p, l);
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
    extern __shared__ char raw[];
    __shared__ struct shared sh;
    char *smem = aligned(raw);
    const int wg = threadIdx.x / 128;
    cudaGridDependencySynchronize();
    if (!take_tile(job, (int32_t *)(smem + 3 * (D / 64) * SUB), &sh)) return;
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

/* ---- keys derived from values, 512 dims --------------------------------------------------- */

enum {
    HEAD = 512,
    NV = HEAD / 64, /* subtiles of values; and of queries, of 64 rows each */
    QSUB = 64 * 128,
    V_AT = NV * QSUB,         /* shared memory: queries, values, */
    K_AT = V_AT + NV * SUB,   /* two subtiles of keys (the weights lie in the first), */
    STAT_AT = K_AT + 2 * SUB, /* maxima [2, 64], sums [64] */
    PLAN_AT = STAT_AT + 3 * 64 * 4,
};

/* A warp brings a quarter of the rows of every split, in four parts: subtiles c and c + 4. */
__device__ static void bring_values(const struct kk_attn_job &job, struct shared *sh, uint32_t dst)
{
    const struct kk_attn_tile &t = sh->tile;
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32 % 4;
    const int steps = kk__attn_splits(t.sight);
    for (int n = 0; n < steps; n++) {
        const int split = kk__attn_split_at(t.sight, n);
        const char *row = kk__attn_row(job, t, split * S + warp * 32 + lane);
        if (row) row += (size_t)t.g * HEAD * 2;
        for (int c = 0; c < 4; c++) {
            kk__bar_wait(&sh->v_empty[c], n % 2 ^ 1);
            copy32(row, warp * 32, c, 1, dst, job.a.q);
            copy32(row, warp * 32, c + 4, 1, dst, job.a.q);
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

/* Eight dims of a row, times w, in f32. */
__device__ static inline void times8(const uint4 &x, const float (&w)[8], float (&f)[8])
{
    const uint32_t v[4] = {x.x, x.y, x.z, x.w};
#pragma unroll
    for (int d = 0; d < 8; d++) f[d] = (d % 2 ? kk__hi(v[d / 2]) : kk__lo(v[d / 2])) * w[d];
}

__device__ static inline uint4 pack8(const float (&f)[8])
{
    return make_uint4(kk__pack2(f[0], f[1]), kk__pack2(f[2], f[3]), kk__pack2(f[4], f[5]),
                      kk__pack2(f[6], f[7]));
}

__device__ static inline void norm8(const struct kk_attn_job &job, int d, float (&w)[8])
{
    *(float4 *)w = *(const float4 *)(job.a.k_norm + d);
    *(float4 *)(w + 4) = *(const float4 *)(job.a.k_norm + d + 4);
}

/* Dims 64 c .. of keys [first, first + 64) of a split, from the values in shared memory; j: the
 * first key's position. A warpgroup; a thread makes 8 dims of every 16th key. */
__device__ static void derive(const struct kk_attn_job &job, const char *v, char *k, int c,
                              int first, int j, int last)
{
    const int R = job.a.R, part = threadIdx.x % 8, low = c < 4, r0 = (c % 4) * 64 + part * 8;
    float w[8], f[8];
    norm8(job, c * 64 + part * 8, w);
    if ((c % 4) * 64 >= R) {
#pragma unroll
        for (int i = 0; i < 4; i++) {
            const uint32_t at = kk__swizzle(first + threadIdx.x % 128 / 8 + 16 * i, part);
            times8(*(const uint4 *)(v + c * SUB + at), w, f);
            *(uint4 *)(k + at) = pack8(f);
        }
    } else {
        float z[8], e[8];
        norm8(job, (c ^ 4) * 64 + part * 8, z);
#pragma unroll 1
        for (int i = 0; i < 4; i++) {
            const int row = threadIdx.x % 128 / 8 + 16 * i;
            const uint32_t at = kk__swizzle(first + row, part);
            const float2 *cs = (const float2 *)job.a.rope + (int64_t)min(j + row, last) * R + r0;
            times8(*(const uint4 *)(v + c * SUB + at), w, f);
            times8(*(const uint4 *)(v + (c ^ 4) * SUB + at), z, e);
#pragma unroll
            for (int d = 0; d < 8; d++) {
                if (r0 + d >= R) continue;
                const float2 u = cs[d];
                f[d] = low ? f[d] * u.x - e[d] * u.y : f[d] * u.x + e[d] * u.y;
            }
            *(uint4 *)(k + at) = pack8(f);
        }
    }
    kk__wg_see();
}

/* Scores of 64 keys of a split, which this warpgroup derives. */
__device__ static void derived_scores(const struct kk_attn_job &job, struct shared *sh, int wg,
                                      char *smem, int n, int split, float (&s)[32])
{
    const int last = sh->tile.seq.committed + sh->tile.seq.n_step - 1, j = split * S + wg * 64;
    const uint32_t base = kk__smem(smem);
    kk__bar_wait(&sh->v_full[0], n % 2);
    derive(job, smem + V_AT, smem + K_AT + SUB, 0, wg * 64, j, last);
    kk__meet(1 + wg, 128);
#pragma unroll 1
    for (int c = 0; c < NV; c++) {
        const int at = K_AT + (c + 1) % 2 * SUB + wg * QSUB;
        const uint64_t q = kk__operand(base + c * QSUB, 16), k = kk__operand(base + at, 16);
        kk__wg_begin();
#pragma unroll
        for (int i = 0; i < 4; i++) kk__wg_n64<0>(s, q + i * 2, k + i * 2, c > 0 || i > 0);
        kk__wg_commit();
        if (c == NV - 1) break;
        if (c == 0) kk__meet(3, 256); /* nobody reads the weights of the split before */
        if (c < 3) kk__bar_wait(&sh->v_full[c + 1], n % 2);
        kk__wg_wait<1>();
        kk__meet(1 + wg, 128); /* of all four warps: the subtile is free */
        derive(job, smem + V_AT, smem + K_AT + c % 2 * SUB, c + 1, wg * 64, j, last);
        kk__meet(1 + wg, 128);
    }
    kk__wg_wait<0>();
}

/* One warpgroup: scores of half of the keys, values of half of the dims. */
__device__ static void compute_derived(const struct kk_attn_job &job, struct shared *sh, int wg,
                                       char *smem)
{
    enum { NC = 4 };
    const struct kk_attn_tile &t = sh->tile;
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32 % 4, pair = warp * 16 + lane / 4;
    const int steps = kk__attn_splits(t.sight);
    float *max_of = (float *)(smem + STAT_AT), *sum_of = max_of + 128, O[NC][32];
    struct rows2 r = start_rows(job, t, pair);
    start_sums<NC>(job, r, wg * 256, O);
    if (wg == 0) load_queries<HEAD>(job, t, 0, smem, QSUB);
    kk__meet(3, 256);
    const uint32_t base = kk__smem(smem);
    const uint64_t w = kk__operand(base + K_AT, 16);
    const uint64_t v = kk__operand(base + V_AT + wg * NC * SUB, 16);
    for (int n = 0; n < steps; n++) {
        const int split = kk__attn_split_at(t.sight, n);
        float s[32], m[2], a[2], b[2], l[2] = {0, 0};
        uint32_t p[16];
        derived_scores(job, sh, wg, smem, n, split, s);
        mask_max<32>(job, t, r, split, split * S + wg * 64, s, m);
        if (lane % 4 == 0) max_of[wg * 64 + pair] = m[0], max_of[wg * 64 + pair + 8] = m[1];
        kk__meet(3, 256);
#pragma unroll
        for (int h = 0; h < 2; h++) m[h] = fmaxf(max_of[pair + 8 * h], max_of[64 + pair + 8 * h]);
        if (wg == 0) {
            weights<32>(s, m, p, l);
            if (lane % 4 == 0) sum_of[pair] = l[0], sum_of[pair + 8] = l[1];
        }
        if (wg == 1)
            kk__meet(4, 256); /* the sums of the keys before these */
        else
            asm volatile("bar.arrive 4, 256;" ::: "memory");
        if (wg == 1) {
            l[0] = sum_of[pair], l[1] = sum_of[pair + 8];
            weights<32>(s, m, p, l);
        }
#pragma unroll
        for (int h = 0; h < 2; h++) {
            kk__attn_merge(r.M[h], m[h], a[h], b[h]);
            r.L[h] = __fmaf_rn(r.L[h], a[h], l[h] * b[h]); /* of warpgroup 1 alone it is all */
        }
#pragma unroll
        for (int i = 0; i < 16;
             i++) { /* 16 keys k, of row h, the second 8 of them: i / 4, i % 2, i / 2 % 2 */
            const int c = i / 4 * 2 + i / 2 % 2;
            *(uint32_t *)(smem + K_AT + wg * QSUB + kk__swizzle(pair + i % 2 * 8, c) +
                          lane % 4 * 4) = p[i];
        }
        kk__wg_see();
        kk__meet(3, 256);
#pragma unroll
        for (int c = 0; c < NC; c++) {
            float o[32];
            kk__wg_begin();
#pragma unroll
            for (int i = 0; i < S / 16; i++)
                kk__wg_n64<1>(o, w + (i / 4 * QSUB + i % 4 * 32) / 16,
                              v + (c * SUB + i * 2048) / 16, i > 0);
            kk__wg_commit();
            kk__wg_wait<0>();
            if (lane == 0) kk__bar_arrive(&sh->v_empty[c]);
            merge_sums(O[c], o, a, b);
        }
    }
    kk__meet(3, 256);
    if (wg == 1 && lane % 4 == 0) sum_of[pair] = r.L[0], sum_of[pair + 8] = r.L[1];
    kk__meet(3, 256);
    r.L[0] = sum_of[pair], r.L[1] = sum_of[pair + 8];
    finish<NC>(job, r, wg * 256, O);
}

__global__ void __launch_bounds__(THREADS, 1)
    k_derived(const __grid_constant__ struct kk_attn_job job)
{
    extern __shared__ char raw[];
    __shared__ struct shared sh;
    char *smem = aligned(raw);
    const int wg = threadIdx.x / 128;
    cudaGridDependencySynchronize();
    if (!take_tile(job, (int32_t *)(smem + PLAN_AT), &sh)) return;
    if (threadIdx.x < 4) {
        kk__bar_init(&sh.v_full[threadIdx.x], 128);
        kk__bar_init(&sh.v_empty[threadIdx.x], 8);
    }
    __syncthreads();
    if (wg == 0) {
        kk__registers_down<DOWN>();
        bring_values(job, &sh, kk__smem(smem) + V_AT);
    } else {
        kk__registers_up<UP>();
        compute_derived(job, &sh, wg - 1, smem);
    }
}

/* ---- launching ---------------------------------------------------------------------------- */

static int run(struct kk_cuda *c, struct kk_attn_job *job, void (*kernel)(struct kk_attn_job),
               int pairs, int bytes)
{
    const struct kk_attn_args *a = &job->a;
    const int seqs = a->B < a->T ? a->B : a->T;
    bytes += 1024 + kk__attn_plan_ints(a->B) * 4;
    if ((size_t)bytes > c->smem_most - sizeof(struct shared)) return 0;
    job->pairs = pairs;
    const int64_t tiles = ((int64_t)a->T * job->per_kv / pairs + seqs) * a->G;
    kk__cuda_latch(c,
                   cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes),
                   "attn");
    kk__launch(c, "attn", kernel, dim3((unsigned)tiles), dim3(THREADS), (size_t)bytes, *job);
    return 1;
}

int kk__cuda_attn_wide(struct kk_cuda *c, struct kk_attn_job *job)
{
    const struct kk_attn_args *a = &job->a;
    if (a->mask.exact_near) return 0; /* tiles of one row */
    if (a->value_only) return a->D == HEAD ? run(c, job, k_derived, 64, PLAN_AT) : 0;
    switch (a->D) {
    case 64:
        return run(c, job, k_stored<64>, 128, 3 * SUB);
    case 128:
        return run(c, job, k_stored<128>, 128, 6 * SUB);
    case 256:
        return run(c, job, k_stored<256>, 128, 12 * SUB);
    }
    return 0;
}
