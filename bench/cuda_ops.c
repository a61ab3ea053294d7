/* A GPU's row ops, and how weights come to it.
 *
 *   bench/cuda_ops [--budget 0.2] [--gb 8] [--json FILE]
 *
 * Row ops at the shapes of Gemma-4-26B-A4B: microseconds of one among many on the stream (each
 * waits for the one before, as in a step), and GB/s of what it must move. Weights: GB/s of bf16
 * that arrive, made there (synthetic) or streamed from memory. */
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

#include "base/mem.h"
#include "dev/dev.h"
#include "floor.h"

enum { C = 2816, V = 262144, MANY = 200, MOST_ROWS = 512 };

static struct kk_dev *dev;
static struct kk_account account = {.name = "bench"};
static json_t *report;

static void *room(size_t bytes)
{
    struct kk_err err = {0};
    void *p;
    bench_check(kk_dev_alloc(dev, &account, bytes, &p, &err), &err);
    return p;
}

static double now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + (double)t.tv_nsec * 1e-9;
}

static void say(const char *what, int T, double seconds, double bytes)
{
    printf("%-28s T %4d  %9.2f us  %8.1f GB/s\n", what, T, seconds * 1e6, bytes / seconds / 1e9);
    json_array_append_new(json_object_get(report, "runs"),
                          json_pack("{s:s,s:i,s:f,s:f}", "what", what, "rows", T, "us",
                                    seconds * 1e6, "gb_s", bytes / seconds / 1e9));
}

/* ---- row ops ------------------------------------------------------------------------------ */

struct op {
    void (*once)(const void *args);
    const void *args;
};

static void run_many(void *arg)
{
    const struct op *op = arg;
    struct kk_err err = {0};
    dev->ops->step_begin(dev);
    for (int i = 0; i < MANY; i++) op->once(op->args);
    bench_check(dev->ops->step_end(dev, &err), &err);
}

static void once_norm(const void *a)
{
    dev->ops->norm(dev, a);
}
static void once_residual(const void *a)
{
    dev->ops->residual(dev, a);
}
static void once_qkv(const void *a)
{
    dev->ops->qkv(dev, a);
}
static void once_argmax(const void *a)
{
    dev->ops->argmax(dev, a);
}
static void once_gather(const void *a)
{
    dev->ops->gather(dev, a);
}

static void measure(const char *what, int T, void (*once)(const void *), const void *args,
                    double bytes, double budget)
{
    struct op op = {once, args};
    say(what, T, bench_time(run_many, &op, budget) / MANY, bytes);
}

static void row_ops(double budget)
{
    static const int rows[] = {1, 8, 16, 64, MOST_ROWS};
    const size_t f = sizeof(float), most = (size_t)MOST_ROWS;
    float *x = room(most * C * f), *h = room(most * C * f), *a1 = room(most * C * f);
    float *w = room(C * f), *q = room(most * 16 * 512 * f), *k = room(most * 2048 * f);
    float *v = room(most * 2048 * f), *rope = room((size_t)4096 * 512 * f);
    float *logits = room((size_t)16 * V * f);
    void *y[3] = {room(most * C * 2), room(most * C * 2), room(most * C * 2)};
    void *kv = room(most * 4096 * 2);
    int32_t *pos = room(most * 4), *out = room(16 * 4);
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        const int T = rows[i];
        const double row = (double)T * C;
        struct kk_norm_args n = {.T = T, .C = C, .x = x, .w = w, .eps = 1e-6f, .y = y[0]};
        measure("norm", T, once_norm, &n, row * 6, budget);
        struct kk_residual_args r = {.T = T, .C = C, .n_in = 1, .n_out = 3, .h = h, .a = {x, a1}};
        r.w_post = w, r.scale = 1, r.eps = 1e-6f;
        for (int j = 0; j < 3; j++) r.w_out[j] = w, r.y[j] = y[j];
        measure("residual, 1 in, 3 out", T, once_residual, &r, row * 18, budget);
        r.n_in = 2, r.n_out = 1, r.w_in[0] = r.w_in[1] = w;
        measure("residual, 2 in, 1 out", T, once_residual, &r, row * 18, budget);
        struct kk_qkv_args s = {.T = T, .H = 16, .G = 8, .D = 256, .R = 128, .q = q, .k = k};
        s.v = v, s.q_norm = s.k_norm = w, s.eps = 1e-6f, s.pos = pos, s.rope = rope;
        s.kv_dtype = KK_BF16, s.rows = kv;
        measure("qkv, sliding", T, once_qkv, &s, T * (16 * 256 * 8 + 2 * 2048 * 6.0), budget);
        s.G = 2, s.D = 512, s.R = 64, s.value_only = 1;
        measure("qkv, full", T, once_qkv, &s, T * (16 * 512 * 8 + 1024 * 6.0), budget);
        if (T > 16) continue;
        struct kk_argmax_args m = {.T = T, .n = V, .x = logits, .out = out};
        measure("argmax of 262144", T, once_argmax, &m, (double)T * V * 4, budget);
        struct kk_gather_args g = {.n = T, .C = C, .src = x, .dst = h};
        measure("gather", T, once_gather, &g, row * 8, budget);
    }
}

/* ---- weights ------------------------------------------------------------------------------ */

/* Load `n` matrices of 128 experts each; all are kept until the end, then freed. */
static void load(const char *what, const struct kk_weight_src *src, int n)
{
    struct kk_weight *w = bench_need(calloc((size_t)n, sizeof *w));
    struct kk_err err = {0};
    const double start = now();
    for (int i = 0; i < n; i++)
        bench_check(dev->ops->weight_load(dev, src, &account, &w[i], &err), &err);
    dev->ops->download(dev, NULL, NULL, 0);
    const double seconds = now() - start;
    const double bytes = (double)n * (double)dev->ops->weight_bytes(dev, src);
    printf("%-28s %.2f GB in %.3f s: %.1f GB/s\n", what, bytes / 1e9, seconds,
           bytes / seconds / 1e9);
    json_array_append_new(json_object_get(report, "runs"),
                          json_pack("{s:s,s:f,s:f,s:f}", "what", what, "gb", bytes / 1e9, "seconds",
                                    seconds, "gb_s", bytes / seconds / 1e9));
    for (int i = 0; i < n; i++) kk_weight_free(dev, &w[i]);
    free(w);
}

static void weights(double gb)
{
    const struct kk_synth rule = {.key = 77, .mask = -1, .scale = 0x1p-21f};
    struct kk_weight_src src = {.dtype = KK_BF16, .n_mats = 128, .rows = 1408, .cols = C};
    const double each = 128.0 * 1408 * C * 2 / 1e9;
    src.synth = &rule;
    load("synthetic", &src, (int)(gb / each + 0.5));
    src.synth = NULL;
    uint32_t *data = bench_need(malloc((size_t)128 * 1408 * C * 4));
    for (size_t i = 0; i < (size_t)128 * 1408 * C; i++) data[i] = (uint32_t)i & 0x3fff3fff;
    src.data = data;
    load("from memory, bf16", &src, (int)(gb / each / 4 + 1));
    src.dtype = KK_F32;
    load("from memory, f32", &src, (int)(gb / each / 4 + 1));
    src.dtype = KK_Q8_0; /* 34 bytes for 32: fits where f32 does */
    load("from memory, q8_0", &src, 1);
    free(data);
}

int main(int argc, char **argv)
{
    const double budget = strtod(bench_option(argc, argv, "--budget", "0.2"), NULL);
    const double gb = strtod(bench_option(argc, argv, "--gb", "8"), NULL);
    const char *json = bench_option(argc, argv, "--json", NULL);
    const struct kk_limits l = {.max_rows = MOST_ROWS, .max_model_width = C, .max_head_dim = 512};
    struct kk_err err = {0};
    bench_check(kk_dev_open_cuda(0, &dev, &err), &err);
    report = bench_report("cuda_ops", argc, argv);
    json_object_set_new(report, "device", json_string(dev->name));
    printf("%s\n", dev->name);
    bench_check(dev->ops->reserve(dev, &l, &account, &err), &err);
    row_ops(budget);
    weights(gb);
    bench_write(report, json);
    return 0;
}
