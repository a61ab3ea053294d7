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
/* d (+)= W x^T: 64 outputs by N rows by 16 inputs, both by descriptor */
template <int N>
__device__ inline void kk__wgmma(float (&d)[N / 2], uint64_t a, uint64_t b, int add);

template <> __device__ inline void kk__wgmma<32>(float (&d)[16], uint64_t a, uint64_t b, int add)
{
    asm volatile("{.reg .pred p; setp.ne.b32 p, %18, 0;\n"
                 "wgmma.mma_async.sync.aligned.m64n32k16.f32.bf16.bf16 {"
                 "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15"
                 "}, %16, %17, p, 1, 1, 0, 0;}"
                 : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3]), "+f"(d[4]), "+f"(d[5]),
                   "+f"(d[6]), "+f"(d[7]), "+f"(d[8]), "+f"(d[9]), "+f"(d[10]), "+f"(d[11]),
                   "+f"(d[12]), "+f"(d[13]), "+f"(d[14]), "+f"(d[15])
                 : "l"(a), "l"(b), "r"(add));
}

template <> __device__ inline void kk__wgmma<64>(float (&d)[32], uint64_t a, uint64_t b, int add)
{
    asm volatile("{.reg .pred p; setp.ne.b32 p, %34, 0;\n"
                 "wgmma.mma_async.sync.aligned.m64n64k16.f32.bf16.bf16 {"
                 "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "
                 "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31"
                 "}, %32, %33, p, 1, 1, 0, 0;}"
                 : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3]), "+f"(d[4]), "+f"(d[5]),
                   "+f"(d[6]), "+f"(d[7]), "+f"(d[8]), "+f"(d[9]), "+f"(d[10]), "+f"(d[11]),
                   "+f"(d[12]), "+f"(d[13]), "+f"(d[14]), "+f"(d[15]), "+f"(d[16]), "+f"(d[17]),
                   "+f"(d[18]), "+f"(d[19]), "+f"(d[20]), "+f"(d[21]), "+f"(d[22]), "+f"(d[23]),
                   "+f"(d[24]), "+f"(d[25]), "+f"(d[26]), "+f"(d[27]), "+f"(d[28]), "+f"(d[29]),
                   "+f"(d[30]), "+f"(d[31])
                 : "l"(a), "l"(b), "r"(add));
}

template <> __device__ inline void kk__wgmma<96>(float (&d)[48], uint64_t a, uint64_t b, int add)
{
    asm volatile("{.reg .pred p; setp.ne.b32 p, %50, 0;\n"
                 "wgmma.mma_async.sync.aligned.m64n96k16.f32.bf16.bf16 {"
                 "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "
                 "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, "
                 "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47"
                 "}, %48, %49, p, 1, 1, 0, 0;}"
                 : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3]), "+f"(d[4]), "+f"(d[5]),
                   "+f"(d[6]), "+f"(d[7]), "+f"(d[8]), "+f"(d[9]), "+f"(d[10]), "+f"(d[11]),
                   "+f"(d[12]), "+f"(d[13]), "+f"(d[14]), "+f"(d[15]), "+f"(d[16]), "+f"(d[17]),
                   "+f"(d[18]), "+f"(d[19]), "+f"(d[20]), "+f"(d[21]), "+f"(d[22]), "+f"(d[23]),
                   "+f"(d[24]), "+f"(d[25]), "+f"(d[26]), "+f"(d[27]), "+f"(d[28]), "+f"(d[29]),
                   "+f"(d[30]), "+f"(d[31]), "+f"(d[32]), "+f"(d[33]), "+f"(d[34]), "+f"(d[35]),
                   "+f"(d[36]), "+f"(d[37]), "+f"(d[38]), "+f"(d[39]), "+f"(d[40]), "+f"(d[41]),
                   "+f"(d[42]), "+f"(d[43]), "+f"(d[44]), "+f"(d[45]), "+f"(d[46]), "+f"(d[47])
                 : "l"(a), "l"(b), "r"(add));
}

template <> __device__ inline void kk__wgmma<128>(float (&d)[64], uint64_t a, uint64_t b, int add)
{
    asm volatile("{.reg .pred p; setp.ne.b32 p, %66, 0;\n"
                 "wgmma.mma_async.sync.aligned.m64n128k16.f32.bf16.bf16 {"
                 "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "
                 "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, "
                 "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, "
                 "%48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63"
                 "}, %64, %65, p, 1, 1, 0, 0;}"
                 : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3]), "+f"(d[4]), "+f"(d[5]),
                   "+f"(d[6]), "+f"(d[7]), "+f"(d[8]), "+f"(d[9]), "+f"(d[10]), "+f"(d[11]),
                   "+f"(d[12]), "+f"(d[13]), "+f"(d[14]), "+f"(d[15]), "+f"(d[16]), "+f"(d[17]),
                   "+f"(d[18]), "+f"(d[19]), "+f"(d[20]), "+f"(d[21]), "+f"(d[22]), "+f"(d[23]),
                   "+f"(d[24]), "+f"(d[25]), "+f"(d[26]), "+f"(d[27]), "+f"(d[28]), "+f"(d[29]),
                   "+f"(d[30]), "+f"(d[31]), "+f"(d[32]), "+f"(d[33]), "+f"(d[34]), "+f"(d[35]),
                   "+f"(d[36]), "+f"(d[37]), "+f"(d[38]), "+f"(d[39]), "+f"(d[40]), "+f"(d[41]),
                   "+f"(d[42]), "+f"(d[43]), "+f"(d[44]), "+f"(d[45]), "+f"(d[46]), "+f"(d[47]),
                   "+f"(d[48]), "+f"(d[49]), "+f"(d[50]), "+f"(d[51]), "+f"(d[52]), "+f"(d[53]),
                   "+f"(d[54]), "+f"(d[55]), "+f"(d[56]), "+f"(d[57]), "+f"(d[58]), "+f"(d[59]),
                   "+f"(d[60]), "+f"(d[61]), "+f"(d[62]), "+f"(d[63])
                 : "l"(a), "l"(b), "r"(add));
}

template <> __device__ inline void kk__wgmma<160>(float (&d)[80], uint64_t a, uint64_t b, int add)
{
    asm volatile(
        "{.reg .pred p; setp.ne.b32 p, %82, 0;\n"
        "wgmma.mma_async.sync.aligned.m64n160k16.f32.bf16.bf16 {"
        "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "
        "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, "
        "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, "
        "%48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63, "
        "%64, %65, %66, %67, %68, %69, %70, %71, %72, %73, %74, %75, %76, %77, %78, %79"
        "}, %80, %81, p, 1, 1, 0, 0;}"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3]), "+f"(d[4]), "+f"(d[5]), "+f"(d[6]),
          "+f"(d[7]), "+f"(d[8]), "+f"(d[9]), "+f"(d[10]), "+f"(d[11]), "+f"(d[12]), "+f"(d[13]),
          "+f"(d[14]), "+f"(d[15]), "+f"(d[16]), "+f"(d[17]), "+f"(d[18]), "+f"(d[19]), "+f"(d[20]),
          "+f"(d[21]), "+f"(d[22]), "+f"(d[23]), "+f"(d[24]), "+f"(d[25]), "+f"(d[26]), "+f"(d[27]),
          "+f"(d[28]), "+f"(d[29]), "+f"(d[30]), "+f"(d[31]), "+f"(d[32]), "+f"(d[33]), "+f"(d[34]),
          "+f"(d[35]), "+f"(d[36]), "+f"(d[37]), "+f"(d[38]), "+f"(d[39]), "+f"(d[40]), "+f"(d[41]),
          "+f"(d[42]), "+f"(d[43]), "+f"(d[44]), "+f"(d[45]), "+f"(d[46]), "+f"(d[47]), "+f"(d[48]),
          "+f"(d[49]), "+f"(d[50]), "+f"(d[51]), "+f"(d[52]), "+f"(d[53]), "+f"(d[54]), "+f"(d[55]),
          "+f"(d[56]), "+f"(d[57]), "+f"(d[58]), "+f"(d[59]), "+f"(d[60]), "+f"(d[61]), "+f"(d[62]),
          "+f"(d[63]), "+f"(d[64]), "+f"(d[65]), "+f"(d[66]), "+f"(d[67]), "+f"(d[68]), "+f"(d[69]),
          "+f"(d[70]), "+f"(d[71]), "+f"(d[72]), "+f"(d[73]), "+f"(d[74]), "+f"(d[75]), "+f"(d[76]),
          "+f"(d[77]), "+f"(d[78]), "+f"(d[79])
        : "l"(a), "l"(b), "r"(add));
}

template <> __device__ inline void kk__wgmma<192>(float (&d)[96], uint64_t a, uint64_t b, int add)
{
    asm volatile(
        "{.reg .pred p; setp.ne.b32 p, %98, 0;\n"
        "wgmma.mma_async.sync.aligned.m64n192k16.f32.bf16.bf16 {"
        "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "
        "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, "
        "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, "
        "%48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63, "
        "%64, %65, %66, %67, %68, %69, %70, %71, %72, %73, %74, %75, %76, %77, %78, %79, "
        "%80, %81, %82, %83, %84, %85, %86, %87, %88, %89, %90, %91, %92, %93, %94, %95"
        "}, %96, %97, p, 1, 1, 0, 0;}"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3]), "+f"(d[4]), "+f"(d[5]), "+f"(d[6]),
          "+f"(d[7]), "+f"(d[8]), "+f"(d[9]), "+f"(d[10]), "+f"(d[11]), "+f"(d[12]), "+f"(d[13]),
          "+f"(d[14]), "+f"(d[15]), "+f"(d[16]), "+f"(d[17]), "+f"(d[18]), "+f"(d[19]), "+f"(d[20]),
          "+f"(d[21]), "+f"(d[22]), "+f"(d[23]), "+f"(d[24]), "+f"(d[25]), "+f"(d[26]), "+f"(d[27]),
          "+f"(d[28]), "+f"(d[29]), "+f"(d[30]), "+f"(d[31]), "+f"(d[32]), "+f"(d[33]), "+f"(d[34]),
          "+f"(d[35]), "+f"(d[36]), "+f"(d[37]), "+f"(d[38]), "+f"(d[39]), "+f"(d[40]), "+f"(d[41]),
          "+f"(d[42]), "+f"(d[43]), "+f"(d[44]), "+f"(d[45]), "+f"(d[46]), "+f"(d[47]), "+f"(d[48]),
          "+f"(d[49]), "+f"(d[50]), "+f"(d[51]), "+f"(d[52]), "+f"(d[53]), "+f"(d[54]), "+f"(d[55]),
          "+f"(d[56]), "+f"(d[57]), "+f"(d[58]), "+f"(d[59]), "+f"(d[60]), "+f"(d[61]), "+f"(d[62]),
          "+f"(d[63]), "+f"(d[64]), "+f"(d[65]), "+f"(d[66]), "+f"(d[67]), "+f"(d[68]), "+f"(d[69]),
          "+f"(d[70]), "+f"(d[71]), "+f"(d[72]), "+f"(d[73]), "+f"(d[74]), "+f"(d[75]), "+f"(d[76]),
          "+f"(d[77]), "+f"(d[78]), "+f"(d[79]), "+f"(d[80]), "+f"(d[81]), "+f"(d[82]), "+f"(d[83]),
          "+f"(d[84]), "+f"(d[85]), "+f"(d[86]), "+f"(d[87]), "+f"(d[88]), "+f"(d[89]), "+f"(d[90]),
          "+f"(d[91]), "+f"(d[92]), "+f"(d[93]), "+f"(d[94]), "+f"(d[95])
        : "l"(a), "l"(b), "r"(add));
}

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

__device__ static inline void kk__bar_arrive(uint64_t *bar)
{
    asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(kk__shared(bar)) : "memory");
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
