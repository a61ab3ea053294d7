/* Products with weights of block types against the machine's floors, by all threads of the device.
 *
 *   bench/quant [auto|avx512|avx2|scalar] [threads] [words of the lines wanted]
 *
 * A line: rows; time; GB/s of weights as stored in the file, and the share of the read bandwidth
 * that is measured in the same run; GOP/s (a multiply and an add: two), and the share of the rate
 * of the widest 8-bit product here; time over that of one row. The matrices of a line are walked
 * through in turn, so that none stays in a cache. */
#include <immintrin.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "base/clock.h"
#include "base/mem.h"
#include "base/pool.h"
#include "base/quant.h"
#include "base/rng.h"
#include "dev/dev.h"

enum { COPIES_MOST = 64, ROWS_MOST = 512, READ_BYTES = 128 << 20, CACHES = 64 << 20 };

static struct kk_dev *dev;
static struct kk_account account = {.name = "bench"};
static double peak_gbs, peak_gops;

static void die(const struct kk_err *err)
{
    fprintf(stderr, "bench/quant: %s\n", err->msg);
    exit(1);
}

/* One thread: what it worked; more: what went by. */
static double now(void)
{
    struct timespec t;
    if (dev->n_threads > 1) return (double)kk_now_ns() * 1e-9;
    clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &t);
    return (double)t.tv_sec + (double)t.tv_nsec * 1e-9;
}

/* Seconds of the best of many short samples: other programs disturb most of them, seldom all. */
static double best_of(void (*run)(void *), void *arg)
{
    double best = 1e9;
    const uint64_t begin = kk_now_ns();
    for (int n = 1; kk_seconds_since(begin) < 0.4;) {
        double s = now();
        for (int i = 0; i < n; i++) run(arg);
        s = now() - s;
        if (s / n < best) best = s / n;
        if (s < 1e-4) n *= 2;
    }
    return best;
}

/* ---- floors ---- */

struct floor_job {
    struct kk_pool *pool;
    const char *memory;
    int64_t sink[KK_POOL_MAX][8];
};

__attribute__((target("avx2"))) static void read_part(void *arg, int worker, int n)
{
    struct floor_job *f = arg;
    int64_t lo, hi;
    kk_range(READ_BYTES / 256, worker, n, &lo, &hi);
    __m256i s[8];
    for (int i = 0; i < 8; i++) s[i] = _mm256_setzero_si256();
    for (const char *p = f->memory + lo * 256; p < f->memory + hi * 256; p += 256) {
#pragma GCC unroll 8
        for (int i = 0; i < 8; i++)
            s[i] = _mm256_xor_si256(s[i], _mm256_load_si256((const __m256i *)(p + i * 32)));
    }
    for (int i = 1; i < 8; i++) s[0] = _mm256_xor_si256(s[0], s[i]);
    _mm256_storeu_si256((__m256i *)f->sink[worker], s[0]);
}

enum { DOTS = 2000 };

__attribute__((target("avx512vnni,avx512f"))) static void vnni_part(void *arg, int worker, int n)
{
    struct floor_job *f = arg;
    (void)n;
    __m512i s[12], a = _mm512_set1_epi32(worker), b = _mm512_set1_epi32(1);
    for (int i = 0; i < 12; i++) s[i] = _mm512_setzero_si512();
    for (int k = 0; k < DOTS; k++) {
#pragma GCC unroll 12
        for (int i = 0; i < 12; i++) s[i] = _mm512_dpbusd_epi32(s[i], a, b);
    }
    for (int i = 1; i < 12; i++) s[0] = _mm512_add_epi32(s[0], s[i]);
    _mm512_storeu_si512(f->sink[worker], s[0]);
}

__attribute__((target("avx2"))) static void maddubs_part(void *arg, int worker, int n)
{
    struct floor_job *f = arg;
    (void)n;
    __m256i s[12], a = _mm256_set1_epi32(worker), b = _mm256_set1_epi32(1);
    for (int i = 0; i < 12; i++) s[i] = _mm256_setzero_si256();
    for (int k = 0; k < DOTS; k++) {
#pragma GCC unroll 12
        for (int i = 0; i < 12; i++)
            s[i] = _mm256_add_epi16(s[i], _mm256_maddubs_epi16(_mm256_xor_si256(a, s[i]), b));
    }
    for (int i = 1; i < 12; i++) s[0] = _mm256_add_epi16(s[0], s[i]);
    _mm256_storeu_si256((__m256i *)f->sink[worker], s[0]);
}

static void run_read(void *f)
{
    kk_pool_run(((struct floor_job *)f)->pool, read_part, f);
}
static void run_vnni(void *f)
{
    kk_pool_run(((struct floor_job *)f)->pool, vnni_part, f);
}
static void run_maddubs(void *f)
{
    kk_pool_run(((struct floor_job *)f)->pool, maddubs_part, f);
}

static void measure_floors(int threads)
{
    static struct floor_job f;
    struct kk_err err;
    if (kk_pool_open(threads, &f.pool, &err)) die(&err);
    void *memory = dev->ops->alloc(dev, READ_BYTES);
    memset(memory, 1, READ_BYTES);
    f.memory = memory;
    kk_pool_begin(f.pool);
    peak_gbs = READ_BYTES / best_of(run_read, &f) * 1e-9;
    const double dots = 12.0 * DOTS * dev->n_threads * 2e-9;
    if (!strcmp(dev->isa, "avx512") && __builtin_cpu_supports("avx512vnni"))
        peak_gops = dots * 64 / best_of(run_vnni, &f);
    else
        peak_gops = dots * 32 / best_of(run_maddubs, &f);
    kk_pool_end(f.pool);
    kk_pool_close(f.pool);
    dev->ops->free(dev, memory, READ_BYTES);
}

/* ---- products ---- */

struct product {
    struct kk_weight w[COPIES_MOST];
    int copies, at, rows;
    float *x, *y;
};

static void run_linear(void *arg)
{
    struct product *p = arg;
    struct kk_linear_args a = {.T = p->rows, .n = 1, .x = p->x, .y = {p->y}};
    a.w[0] = &p->w[p->at++ % p->copies];
    dev->ops->linear(dev, &a);
}

/* Blocks of random bytes, whose scales are small */
static void *blocks(enum kk_dtype t, size_t bytes)
{
    uint8_t *b = kk_malloc(bytes);
    const size_t each = kk_dtype_block_bytes(t), d = t == KK_Q6_K ? 208 : 0;
    if (!b) abort();
    for (size_t i = 0; i < bytes; i++) b[i] = (uint8_t)kk_rng_at(3, i % 65537);
    for (size_t at = 0; at < bytes; at += each) {
        b[at + d + 1] = 0x14;
        if (kk_quant_has_min(t)) b[at + 3] = 0x14;
    }
    return b;
}

static void load(struct product *p, enum kk_dtype t, int64_t rows, int64_t cols, size_t bytes)
{
    struct kk_err err;
    void *from = t <= KK_F16 ? kk_calloc(1, bytes) : blocks(t, bytes);
    const struct kk_weight_src src = {
        .dtype = t, .n_mats = 1, .rows = rows, .cols = cols, .data = from};
    p->copies = (int)(CACHES / bytes) + 1;
    if (p->copies > COPIES_MOST) p->copies = COPIES_MOST;
    for (int i = 0; i < p->copies; i++)
        if (dev->ops->weight_load(dev, &src, &account, &p->w[i], &err)) die(&err);
    kk_free(from);
}

static void bench(enum kk_dtype t, int64_t rows, int64_t cols, const char *filter)
{
    static const int counts[] = {1, 2, 4, 8, 16, 512};
    static struct product p;
    const double bytes = (double)(rows * cols) / kk_dtype_block(t) * kk_dtype_block_bytes(t);
    double one = 0;
    char name[64];
    snprintf(name, sizeof name, "%s %dx%d", kk_dtype_name(t), (int)cols, (int)rows);
    if (filter && !strstr(name, filter)) return;
    p.x = kk_array((size_t)(ROWS_MOST * cols), sizeof(float));
    p.y = kk_array((size_t)((rows > 50000 ? 16 : ROWS_MOST) * rows), sizeof(float));
    if (!p.x || !p.y) abort();
    for (int64_t i = 0; i < ROWS_MOST * cols; i++)
        p.x[i] = (float)kk_unit(kk_rng_at(1, (uint64_t)i)) - 0.5f;
    load(&p, t, rows, cols, (size_t)bytes);
    for (size_t i = 0; i < sizeof counts / sizeof *counts; i++) {
        p.rows = counts[i];
        if (p.rows > 16 && rows > 50000) break;
        dev->ops->step_begin(dev);
        const double s = best_of(run_linear, &p), gbs = bytes / s * 1e-9;
        const double gops = 2.0 * p.rows * (double)(rows * cols) / s * 1e-9;
        dev->ops->step_end(dev, NULL);
        if (p.rows == 1) one = s;
        printf("%-18s %4d %9.1f us %6.1f GB/s %4.0f %% %7.0f GOP/s %4.0f %% %7.2f x\n", name,
               p.rows, s * 1e6, gbs, 100 * gbs / peak_gbs, gops, 100 * gops / peak_gops, s / one);
        fflush(stdout);
    }
    for (int i = 0; i < p.copies; i++) kk_weight_free(dev, &p.w[i]);
    kk_free(p.x), kk_free(p.y);
}

int main(int argc, char **argv)
{
    /* inputs, outputs: of Gemma 3 270M, then SmolLM2 135M */
    static const int shapes[][2] = {
        {640, 2048}, {2048, 640}, {640, 262144}, {576, 1536}, {576, 49152}};
    struct kk_err err;
    const int threads = argc > 2 ? (int)strtol(argv[2], NULL, 10) : 0;
    if (kk_dev_open_cpu(argc > 1 ? argv[1] : "auto", threads, &dev, &err)) die(&err);
    const struct kk_limits limits = {
        .max_rows = ROWS_MOST, .max_model_width = 640, .max_head_dim = 64, .max_block_cols = 2048};
    if (dev->ops->reserve(dev, &limits, &account, &err)) die(&err);
    measure_floors(threads);
    printf("%s: floors %.1f GB/s read, %.0f GOP/s of 8-bit products\n", dev->name, peak_gbs,
           peak_gops);
    for (size_t s = 0; s < sizeof shapes / sizeof *shapes; s++)
        for (enum kk_dtype t = KK_BF16; t <= KK_Q6_K; t++) {
            if (t == KK_F16 || shapes[s][0] % kk_dtype_block(t)) continue;
            if (shapes[s][1] > 10000 && t != KK_Q8_0 && t != KK_Q4_0 && t != KK_BF16) continue;
            bench(t, shapes[s][1], shapes[s][0], argc > 3 ? argv[3] : NULL);
        }
    kk_dev_close(dev);
    return 0;
}
