/* One thread over each leaf kernel: time, bytes and operations a second, and the share of the floor
 * (measured read bandwidth for one thread, measured rate of fused multiply-adds) that it reaches.
 *
 *   bench/kern [scalar|avx2|avx512] [words of the lines wanted]
 *
 * Each line is the best of several samples. */
#include <immintrin.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "base/rng.h"
#include "dev/cpu/kern_int.h"

static const struct kk_cpu_kern *kern;
static const char *filter;
static double peak_gflops, peak_gbs;

/* ---- timing ---- */

struct work {
    void (*run)(const struct work *);
    int M, N, K; /* gemm; attention: queries, keys, head dim; else n in N */
    enum kk_dtype t;
    const void *w;
    size_t w_stride, w_copies; /* gemm walks through copies, so that none stays in a cache */
    float *x, *y, *z;
    const void *const *rows;
    const float *const *cs;
    double bytes, flops; /* of one run */
};

static double best_seconds(const struct work *w)
{
    double best = 1e9;
    int n = 1;
    for (int sample = 0; sample < 9; sample++) {
        uint64_t t0 = kk_now_ns();
        for (int i = 0; i < n; i++) w->run(w);
        double s = kk_seconds_since(t0);
        if (s / n < best) best = s / n;
        while (best * n < 0.01) n *= 2;
    }
    return best;
}

static void report(const char *name, const struct work *w)
{
    if (filter && !strstr(name, filter)) return;
    double s = best_seconds(w), gbs = w->bytes / s * 1e-9, gf = w->flops / s * 1e-9;
    printf("%-34s %10.2f us %7.1f GB/s %4.0f %% %7.1f GFLOP/s %4.0f %%\n", name, s * 1e6, gbs,
           100 * gbs / peak_gbs, gf, 100 * gf / peak_gflops);
    fflush(stdout);
}

/* ---- floors ---- */

__attribute__((target("avx2,fma"))) static void run_fma(const struct work *w)
{
    __m256 a[12], b = _mm256_set1_ps(0.999f), c = _mm256_set1_ps(0.001f);
    for (int i = 0; i < 12; i++) a[i] = _mm256_set1_ps((float)i);
    for (int k = 0; k < w->K; k++) {
#pragma GCC unroll 12
        for (int i = 0; i < 12; i++) a[i] = _mm256_fmadd_ps(a[i], b, c);
    }
    for (int i = 1; i < 12; i++) a[0] = _mm256_add_ps(a[0], a[i]);
    _mm256_storeu_ps(w->y, a[0]);
}

__attribute__((target("avx2"))) static void run_read(const struct work *w)
{
    __m256i s[8];
    for (int i = 0; i < 8; i++) s[i] = _mm256_setzero_si256();
    const char *p = w->w;
    for (size_t at = 0; at < w->w_stride; at += 256) {
#pragma GCC unroll 8
        for (int i = 0; i < 8; i++)
            s[i] = _mm256_xor_si256(s[i], _mm256_load_si256((const __m256i *)(p + at + i * 32)));
    }
    for (int i = 1; i < 8; i++) s[0] = _mm256_xor_si256(s[0], s[i]);
    _mm256_storeu_si256((__m256i *)w->y, s[0]);
}

/* ---- leaves ---- */

static void run_gemm(const struct work *w)
{
    static size_t at;
    const char *p = (const char *)w->w + at++ % w->w_copies * w->w_stride;
    kern->gemm[w->t](w->M, w->N, w->K, w->x, w->K, p, w->y, w->N);
}
static void run_scores(const struct work *w)
{
    kern->scores[w->t](w->M, w->N, w->K, w->x, w->K, w->rows, 0.1f, w->y, w->N);
}
static void run_pv(const struct work *w)
{
    kern->pv[w->t](w->M, w->N, w->K, w->x, w->N, w->rows, w->y, w->K);
}
static void run_derive(const struct work *w)
{
    kern->derive[w->t](w->N, w->K, w->K / 2, w->rows, w->x, w->cs, w->y);
}
static void run_softmax(const struct work *w)
{
    float m, l;
    memcpy(w->y, w->x, (size_t)w->N * 4);
    kern->softmax(w->N, w->y, &m, &l);
}
static void run_norm(const struct work *w)
{
    kern->norm(w->N, w->x, w->x, 1e-6f, w->y);
}
static void run_glu(const struct work *w)
{
    kern->glu(w->N, KK_GELU_TANH, w->x, w->x, w->y);
}
static void run_store(const struct work *w)
{
    kern->store[KK_BF16](w->N, w->x, w->y);
}
static void run_argmax(const struct work *w)
{
    w->y[0] = (float)kern->argmax(w->N, w->x);
}

static void *memory(size_t bytes)
{
    void *p = aligned_alloc(1 << 21, (bytes + (1 << 21) - 1) & ~(size_t)((1 << 21) - 1));
    if (!p) abort();
    memset(p, 0, bytes);
    return p;
}

static float *floats(size_t n)
{
    float *x = memory(n * 4);
    for (size_t i = 0; i < n; i++) x[i] = (float)kk_unit(kk_rng_at(1, i)) - 0.5f;
    return x;
}

#define BIG ((size_t)256 << 20)

static void bench_gemm(const void *big)
{
    static const struct {
        enum kk_dtype t;
        int K, N;
        const char *where;
        size_t bytes; /* of all copies that are read in turn */
    } shapes[] = {{KK_BF16, 2048, 2048, "memory", BIG}, {KK_BF16, 2048, 8192, "memory", BIG},
                  {KK_BF16, 8192, 2048, "memory", BIG}, {KK_BF16, 256, 1024, "L3", 8 << 20},
                  {KK_BF16, 1024, 256, "L3", 8 << 20},  {KK_BF16, 256, 1024, "L2", 0},
                  {KK_BF16, 1024, 256, "L2", 0},        {KK_F32, 2048, 2048, "memory", BIG},
                  {KK_F16, 2048, 2048, "memory", BIG}};
    static const int rows[] = {1, 2, 3, 4, 5, 6, 8, 12, 16, 32, 64, 512};
    for (size_t s = 0; s < sizeof shapes / sizeof *shapes; s++) {
        for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
            struct work w = {.run = run_gemm, .M = rows[i], .N = shapes[s].N, .K = shapes[s].K};
            w.t = shapes[s].t;
            w.w = big;
            w.w_stride = kk_panel_bytes(w.t, w.K) * (size_t)(w.N / 16);
            w.w_copies = shapes[s].bytes ? shapes[s].bytes / w.w_stride : 1;
            w.x = floats((size_t)w.M * (size_t)w.K);
            w.y = floats((size_t)w.M * (size_t)w.N);
            w.bytes = (double)w.w_stride;
            w.flops = 2.0 * w.M * w.N * w.K;
            char name[80];
            snprintf(name, sizeof name, "gemm %s K%d N%d %s M%d", kk_dtype_name(w.t), w.K, w.N,
                     shapes[s].where, w.M);
            report(name, &w);
            free(w.x), free(w.y);
        }
    }
}

#define KEYS 128

static void bench_attention(const char *big)
{
    static const int dims[] = {64, 128, 256, 512}, queries[] = {1, 2, 4, 8, 64};
    const void *rows[KEYS];
    const float *cs[KEYS];
    float *x = floats(64 * 512), *y = floats(KEYS * 512);
    for (int t = 0; t < 2; t++) {
        for (int d = 0; d < 4; d++) {
            size_t row = (size_t)dims[d] * kk_dtype_bytes(t);
            for (int j = 0; j < KEYS; j++) rows[j] = big + row * (size_t)j, cs[j] = x;
            struct work w = {.t = t, .N = KEYS, .K = dims[d], .x = x, .y = y};
            w.rows = rows, w.cs = cs;
            w.bytes = (double)row * KEYS;
            char name[80];
            for (int q = 0; q < 5; q++) {
                w.M = queries[q];
                w.flops = 2.0 * w.M * w.N * w.K;
                w.run = run_scores;
                snprintf(name, sizeof name, "scores %s D%d nq%d", kk_dtype_name(t), w.K, w.M);
                report(name, &w);
                w.run = run_pv;
                snprintf(name, sizeof name, "pv %s D%d nq%d", kk_dtype_name(t), w.K, w.M);
                report(name, &w);
            }
            w.flops = 4.0 * w.N * w.K;
            w.run = run_derive;
            snprintf(name, sizeof name, "derive %s D%d", kk_dtype_name(t), w.K);
            report(name, &w);
        }
    }
    free(x), free(y);
}

static void bench_vectors(void)
{
    static const struct {
        const char *name;
        void (*run)(const struct work *);
        int n;
    } v[] = {{"softmax 128", run_softmax, 128},     {"norm 256", run_norm, 256},
             {"norm 2048", run_norm, 2048},         {"glu 1024", run_glu, 1024},
             {"glu 8192", run_glu, 8192},           {"store bf16 1024", run_store, 1024},
             {"argmax 32768", run_argmax, 1 << 15}, {"argmax 262144", run_argmax, 1 << 18}};
    for (size_t i = 0; i < sizeof v / sizeof *v; i++) {
        struct work w = {.run = v[i].run, .N = v[i].n};
        w.x = floats((size_t)w.N), w.y = floats((size_t)w.N);
        w.bytes = 4.0 * w.N;
        report(v[i].name, &w);
        free(w.x), free(w.y);
    }
}

int main(int argc, char **argv)
{
    const char *isa = argc > 1 ? argv[1] : "avx512";
    kern = !strcmp(isa, "avx512") ? &kk__kern_avx512
           : !strcmp(isa, "avx2") ? &kk__kern_avx2
                                  : &kk__kern_scalar;
    filter = argc > 2 ? argv[2] : NULL;
    char *big = memory(BIG);
    for (size_t i = 0; i < BIG / 2; i++)
        ((uint16_t *)big)[i] = kk_f32_to_bf16((float)kk_unit(kk_rng_at(2, i % 65537)) - 0.5f);
    struct work w = {.run = run_fma, .K = 100000, .y = floats(64)};
    peak_gflops = w.K * 12.0 * 16 / best_seconds(&w) * 1e-9;
    w.run = run_read, w.w = big, w.w_stride = BIG;
    peak_gbs = (double)BIG / best_seconds(&w) * 1e-9;
    printf("%s: floors for one thread: %.1f GB/s read, %.1f GFLOP/s fma\n", kern->isa, peak_gbs,
           peak_gflops);
    bench_gemm(big);
    bench_attention(big);
    bench_vectors();
    free(w.y), free(big);
    return 0;
}
