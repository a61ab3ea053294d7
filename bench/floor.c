#include "floor.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#if defined(__x86_64__)
#include <immintrin.h>
#endif

#include "base/clock.h"
#include "base/mem.h"
#include "base/pool.h"
#include "kk_build.h"

enum {
    FLOOR_MAX_THREADS = 64,
    FLOOR_LANES = 16,
    FLOOR_CHAINS = 12,
    FLOOR_ROUNDS = 20000,
    FLOOR_PIECES = 16
};
static const size_t floor_bytes = (size_t)256 << 20;

struct floor_job {
    const char *data;
    size_t part;
    float out[FLOOR_MAX_THREADS][FLOOR_LANES];
};

void *bench_need(void *p)
{
    if (!p) fprintf(stderr, "bench: out of memory\n");
    if (!p) exit(1);
    return p;
}

void bench_check(int rc, const struct kk_err *err)
{
    if (rc) fprintf(stderr, "bench: %s\n", err->msg);
    if (rc) exit(1);
}

#if defined(__x86_64__)
__attribute__((target("avx512f"))) static void floor_fma512(float *out)
{
    __m512 a[FLOOR_CHAINS], b = _mm512_set1_ps(0.999f), c = _mm512_set1_ps(0.001f);
    for (int i = 0; i < FLOOR_CHAINS; i++) a[i] = _mm512_set1_ps((float)i);
    for (int k = 0; k < FLOOR_ROUNDS; k++) {
#pragma GCC unroll 12
        for (int i = 0; i < FLOOR_CHAINS; i++) a[i] = _mm512_fmadd_ps(a[i], b, c);
    }
    for (int i = 1; i < FLOOR_CHAINS; i++) a[0] = _mm512_add_ps(a[0], a[i]);
    _mm512_storeu_ps(out, a[0]);
}

__attribute__((target("avx2,fma"))) static void floor_fma256(float *out)
{
    __m256 a[FLOOR_CHAINS], b = _mm256_set1_ps(0.999f), c = _mm256_set1_ps(0.001f);
    for (int i = 0; i < FLOOR_CHAINS; i++) a[i] = _mm256_set1_ps((float)i);
    for (int k = 0; k < 2 * FLOOR_ROUNDS; k++) {
#pragma GCC unroll 12
        for (int i = 0; i < FLOOR_CHAINS; i++) a[i] = _mm256_fmadd_ps(a[i], b, c);
    }
    for (int i = 1; i < FLOOR_CHAINS; i++) a[0] = _mm256_add_ps(a[0], a[i]);
    _mm256_storeu_ps(out, a[0]);
}
#endif

/* FLOOR_ROUNDS * FLOOR_CHAINS * FLOOR_LANES multiply-adds, by the widest unit. */
static void floor_fma(void *arg, int item, int worker)
{
    float *out = ((struct floor_job *)arg)->out[item];
    (void)worker;
#if defined(__x86_64__)
    if (__builtin_cpu_supports("avx512f")) {
        floor_fma512(out);
        return;
    }
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) {
        floor_fma256(out);
        return;
    }
#endif
    float a[FLOOR_CHAINS][FLOOR_LANES] = {{0}};
    for (int k = 0; k < FLOOR_ROUNDS; k++)
        for (int i = 0; i < FLOOR_CHAINS; i++)
            for (int l = 0; l < FLOOR_LANES; l++) a[i][l] = a[i][l] * 0.999f + 0.001f;
    for (int i = 0; i < FLOOR_CHAINS; i++) memcpy(out, a[i], sizeof a[i]);
}

typedef uint64_t floor_vec __attribute__((vector_size(64)));

/* n is a multiple of 4. Prefetched a page ahead: the hardware does not look past the end of one. */
#define FLOOR_STREAM(p, n, out)                                                                    \
    do {                                                                                           \
        floor_vec s[4] = {{0}};                                                                    \
        for (size_t i = 0; i < (n); i += 4) {                                                      \
            for (size_t k = 0; k < 4; k++) __builtin_prefetch((p) + i + k + 64);                   \
            for (size_t k = 0; k < 4; k++) s[k] ^= (p)[i + k];                                     \
        }                                                                                          \
        *(out) = s[0] ^ s[1] ^ s[2] ^ s[3];                                                        \
    } while (0)

#if defined(__x86_64__)
__attribute__((target("avx512f"), noinline)) static void floor_stream512(const floor_vec *p,
                                                                         size_t n, floor_vec *out)
{
    FLOOR_STREAM(p, n, out);
}

__attribute__((target("avx2"), noinline)) static void floor_stream256(const floor_vec *p, size_t n,
                                                                      floor_vec *out)
{
    FLOOR_STREAM(p, n, out);
}
#endif

static void floor_stream(const floor_vec *p, size_t n, floor_vec *out)
{
#if defined(__x86_64__)
    if (__builtin_cpu_supports("avx512f")) {
        floor_stream512(p, n, out);
        return;
    }
    if (__builtin_cpu_supports("avx2")) {
        floor_stream256(p, n, out);
        return;
    }
#endif
    FLOOR_STREAM(p, n, out);
}

static void floor_read(void *arg, int item, int worker)
{
    struct floor_job *job = arg;
    floor_vec sum;
    (void)worker;
    floor_stream((const void *)(job->data + (size_t)item * job->part), job->part / sizeof sum,
                 &sum);
    memcpy(job->out[item], &sum, sizeof sum);
}

/* Seconds of the best run of fn over the pool. A read takes another piece each time, so that none
 * is in a cache. */
static double floor_time(struct kk_pool *pool, void (*fn)(void *, int, int), struct floor_job *job,
                         int samples)
{
    const char *data = job->data;
    double best = 1e9;
    for (int i = 0; i < samples; i++) {
        job->data = data + (size_t)(i % FLOOR_PIECES) * (floor_bytes / FLOOR_PIECES);
        uint64_t t0 = kk_now_ns();
        kk_pool_for(pool, kk_pool_threads(pool), fn, job);
        double s = kk_seconds_since(t0);
        if (s < best) best = s;
    }
    job->data = data;
    return best;
}

static void floor_nothing(void *arg, int worker, int n_workers)
{
    (void)arg, (void)worker, (void)n_workers;
}

/* Seconds of a fork that every thread enters and leaves: of the best of many rows of forks. */
static double floor_fork(struct kk_pool *pool)
{
    enum { FORKS = 500 };
    double best = 1e9;
    if (kk_pool_threads(pool) == 1) return 0;
    kk_pool_begin(pool);
    for (int i = 0; i < 100; i++) {
        uint64_t t0 = kk_now_ns();
        for (int k = 0; k < FORKS; k++) kk_pool_run(pool, floor_nothing, NULL);
        double s = kk_seconds_since(t0) / FORKS;
        if (s < best) best = s;
    }
    kk_pool_end(pool);
    return best;
}

struct floor floor_measure(int threads)
{
    const size_t huge = (size_t)2 << 20;
    struct kk_err err = {0};
    struct kk_pool *pool = NULL;
    struct floor_job *job = bench_need(kk_calloc(1, sizeof *job));
    char *data = bench_need(kk_aligned(huge, floor_bytes));
    if (threads > FLOOR_MAX_THREADS) threads = FLOOR_MAX_THREADS;
    bench_check(kk_pool_open(threads, &pool, &err), &err);
    madvise(data, floor_bytes, MADV_HUGEPAGE); /* as weights are */
    memset(data, 1, floor_bytes);
    job->data = data;
    job->part = floor_bytes / FLOOR_PIECES / (size_t)threads / 512 * 512;
    struct floor f = {.threads = threads};
    f.bytes_s = (double)job->part * threads / floor_time(pool, floor_read, job, 128);
    f.flop_s = 2.0 * FLOOR_ROUNDS * FLOOR_CHAINS * FLOOR_LANES * threads /
               floor_time(pool, floor_fma, job, 64);
    f.fork_s = floor_fork(pool);
    kk_pool_close(pool);
    kk_free(data);
    kk_free(job);
    return f;
}

double floor_seconds(const struct floor *f, double bytes, double flops)
{
    double read = bytes / f->bytes_s, compute = flops / f->flop_s;
    return read > compute ? read : compute;
}

/* ---- timing ------------------------------------------------------------------------------- */

static int bench_by_value(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

double bench_time(void (*run)(void *), void *arg, double budget)
{
    enum { MOST = 1000 };
    static double t[MOST];
    int n = 0;
    uint64_t start = kk_now_ns();
    run(arg);
    do {
        uint64_t t0 = kk_now_ns();
        run(arg);
        t[n++] = kk_seconds_since(t0);
    } while (n < MOST && (n < 3 || kk_seconds_since(start) < budget));
    qsort(t, (size_t)n, sizeof *t, bench_by_value);
    return t[n / 2];
}

/* ---- the report --------------------------------------------------------------------------- */

json_t *bench_report(const char *name, int argc, char **argv)
{
    char command[1024] = "", cpu[128] = "?", line[256];
    size_t at = 0;
    for (int i = 0; i < argc && at < sizeof command; i++)
        at += (size_t)snprintf(command + at, sizeof command - at, "%s%s", i ? " " : "", argv[i]);
    FILE *f = fopen("/proc/cpuinfo", "r");
    while (f && fgets(line, sizeof line, f))
        if (sscanf(line, "model name : %127[^\n]", cpu) == 1) break;
    if (f) fclose(f);
    return json_pack("{ss ss ss ss ss s[]}", "bench", name, "machine", cpu, "commit", KK_COMMIT,
                     "cflags", KK_CFLAGS, "command", command, "runs");
}

void bench_floor_into(json_t *report, const char *device, const struct floor *f)
{
    printf("\n%s: reads %.1f GB/s, %.1f GFLOP/s of fused multiply-adds", device, f->bytes_s * 1e-9,
           f->flop_s * 1e-9);
    if (f->fork_s > 0) printf(", a fork takes %.2f us", f->fork_s * 1e6);
    putchar('\n');
    json_t *all = json_object_get(report, "floors");
    if (!all) json_object_set_new(report, "floors", all = json_array());
    json_array_append_new(all, json_pack("{ss si sf sf sf}", "device", device, "threads",
                                         f->threads, "read_gb_s", f->bytes_s * 1e-9, "fma_gflop_s",
                                         f->flop_s * 1e-9, "fork_us", f->fork_s * 1e6));
}

void bench_write(json_t *report, const char *path)
{
    if (path && json_dump_file(report, path, JSON_INDENT(1) | JSON_REAL_PRECISION(5))) {
        fprintf(stderr, "bench: cannot write '%s'\n", path);
        exit(1);
    }
    json_decref(report);
}

const char *bench_option(int argc, char **argv, const char *name, const char *fallback)
{
    for (int i = 1; i + 1 < argc; i++)
        if (!strcmp(argv[i], name)) return argv[i + 1];
    return fallback;
}

int bench_list(const char *text, int *out, int most)
{
    int n = 0;
    for (const char *p = text; n < most;) {
        char *end;
        long v = strtol(p, &end, 10);
        if (end == p || v < 1 || v > 1 << 24 || (*end && *end != ',')) break;
        out[n++] = (int)v;
        if (!*end) return n;
        p = end + 1;
    }
    fprintf(stderr, "bench: '%s' is no list of at most %d numbers\n", text, most);
    exit(2);
}
