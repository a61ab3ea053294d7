/* Private to dev/cuda: wgmma over bf16 with sums in f32, of the widths that are used here. */
#ifndef KK_DEV_CUDA_WGMMA_INT_H
#define KK_DEV_CUDA_WGMMA_INT_H

#include <stdint.h>

#ifdef __CUDACC__
/* Registers of an accumulator, 16 at a time: as operands, and by number in the text. */
#define KK_ACC4(i)     "+f"(d[i]), "+f"(d[(i) + 1]), "+f"(d[(i) + 2]), "+f"(d[(i) + 3])
#define KK_ACC16(i)    KK_ACC4(i), KK_ACC4((i) + 4), KK_ACC4((i) + 8), KK_ACC4((i) + 12)
#define KK_ACC_16      KK_ACC16(0)
#define KK_ACC_32      KK_ACC_16, KK_ACC16(16)
#define KK_ACC_48      KK_ACC_32, KK_ACC16(32)
#define KK_ACC_64      KK_ACC_48, KK_ACC16(48)
#define KK_ACC_80      KK_ACC_64, KK_ACC16(64)
#define KK_ACC_96      KK_ACC_80, KK_ACC16(80)
#define KK_ACC_TEXT_16 "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15"
#define KK_ACC_TEXT_32                                                                             \
    KK_ACC_TEXT_16                                                                                 \
    ", "                                                                                           \
    "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31"
#define KK_ACC_TEXT_48                                                                             \
    KK_ACC_TEXT_32                                                                                 \
    ", "                                                                                           \
    "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47"
#define KK_ACC_TEXT_64                                                                             \
    KK_ACC_TEXT_48                                                                                 \
    ", "                                                                                           \
    "%48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63"
#define KK_ACC_TEXT_80                                                                             \
    KK_ACC_TEXT_64                                                                                 \
    ", "                                                                                           \
    "%64, %65, %66, %67, %68, %69, %70, %71, %72, %73, %74, %75, %76, %77, %78, %79"
#define KK_ACC_TEXT_96                                                                             \
    KK_ACC_TEXT_80                                                                                 \
    ", "                                                                                           \
    "%80, %81, %82, %83, %84, %85, %86, %87, %88, %89, %90, %91, %92, %93, %94, %95"

/* d [64, N] = a b, or d += a b if `add`: 16 of K, both by descriptor, with K in their rows' runs */
template <int N>
__device__ inline void kk__wgmma(float (&d)[N / 2], uint64_t a, uint64_t b, int add);

/* N rows; their n accumulators come first, so that the operands after them are n, n + 1, n + 2. */
#define WGMMA(N, n, A, B, ADD)                                                                     \
    template <> __device__ inline void kk__wgmma<N>(float(&d)[n], uint64_t a, uint64_t b, int add) \
    {                                                                                              \
        asm volatile("{.reg .pred p; setp.ne.b32 p, %" #ADD ", 0;\n"                               \
                     "wgmma.mma_async.sync.aligned.m64n" #N "k16.f32.bf16.bf16 {" KK_ACC_TEXT_##n  \
                     "}, %" #A ", %" #B ", p, 1, 1, 0, 0;}"                                        \
                     : KK_ACC_##n                                                                  \
                     : "l"(a), "l"(b), "r"(add));                                                  \
    }
WGMMA(32, 16, 16, 17, 18)
WGMMA(64, 32, 32, 33, 34)
WGMMA(96, 48, 48, 49, 50)
WGMMA(128, 64, 64, 65, 66)
WGMMA(160, 80, 80, 81, 82)
WGMMA(192, 96, 96, 97, 98)
#undef WGMMA
#endif

#endif
