/* Attention over long histories: the device's op against the floors, decoding and prefilling, with
 * keys and values stored or keys derived from values.
 *
 *   bench/attn [--threads 1,2] [--rows 1024,4096,16384,65536] [--keys WORD] [--budget S]
 *              [--json FILE] [--quick yes]
 *
 * Geometries: bench/configs/cpu-1b.json, keys stored and derived; SmolLM2-135M. --keys: one of
 * them. share: of the floor, the larger of the rows' bytes / read bandwidth and operations /
 * multiply-add rate. Medians. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/mem.h"
#include "floor.h"
#include "kv/kv.h"

enum { MAX_LIST = 16, DERIVED_R = 64, PREFILL = 256, PREFILL_MOST = 4096 };

static const struct geometry {
    const char *what;
    int H, G, D, value_only;
} geometries[] = {{"stored", 8, 4, 256, 0}, {"derived", 8, 1, 512, 1}, {"smollm2", 9, 3, 64, 0}};

struct point {
    struct kk_dev *dev;
    struct kk_attn_args a;
};

static void run_attn(void *arg)
{
    struct point *p = arg;
    p->dev->ops->step_begin(p->dev);
    p->dev->ops->attn(p->dev, &p->a);
    bench_check(p->dev->ops->step_end(p->dev, NULL), &(struct kk_err){.msg = "attention"});
}

struct run {
    struct kk_dev *dev;
    struct floor floor;
    json_t *report;
    double budget;
    const char *keys; /* NULL: all geometries */
};

struct rows {
    char *data;
    void **block;
    size_t row_bytes;
};

/* `n` rows of small numbers, in the cache's blocks. */
static struct rows make_rows(const struct geometry *g, enum kk_dtype t, int n)
{
    struct rows r = {.row_bytes = (size_t)(2 - g->value_only) * (size_t)g->G * (size_t)g->D *
                                  kk_dtype_bytes(t)};
    int blocks = (n + KK_KV_BLOCK_ROWS - 1) / KK_KV_BLOCK_ROWS;
    size_t block = KK_KV_BLOCK_ROWS * r.row_bytes, values = block / kk_dtype_bytes(t);
    r.data = bench_need(kk_aligned(64, block * (size_t)blocks));
    r.block = bench_need(kk_array((size_t)blocks, sizeof *r.block));
    for (int b = 0; b < blocks; b++) {
        char *at = r.block[b] = r.data + (size_t)b * block;
        for (size_t i = 0; !b && i < values; i++) {
            float x = bench_value(i);
            uint16_t h = kk_f32_to_bf16(x);
            if (t == KK_F32)
                memcpy(at + i * 4, &x, 4);
            else
                memcpy(at + i * 2, &h, 2);
        }
        if (b) memcpy(at, r.data, block);
    }
    return r;
}

/* T queries, the last rows of a history of n. */
static void bench_point(struct run *r, const struct geometry *g, enum kk_dtype t, int n, int T,
                        const struct rows *rows)
{
    const int H = g->H;
    size_t q = (size_t)T * (size_t)H * (size_t)g->D, cs = (size_t)n * DERIVED_R * 2;
    float *x = bench_need(kk_array(q, sizeof *x)), *o = bench_need(kk_array(q, sizeof *o));
    float *norm = bench_need(kk_array((size_t)g->D, sizeof *norm));
    float *rope = bench_need(kk_array(cs, sizeof *rope));
    float *state = bench_need(kk_array((size_t)T * (size_t)H * (size_t)(g->D + 2), sizeof *state));
    int32_t *pos = bench_need(kk_calloc(2 * (size_t)T, sizeof *pos));
    for (size_t i = 0; i < q; i++) x[i] = bench_value(i * 3) * 0.1f;
    for (size_t i = 0; i < cs; i++) rope[i] = bench_value(i * 5);
    for (int i = 0; i < g->D; i++) norm[i] = 1;
    for (int i = 0; i < T; i++) pos[i] = n - T + i;
    const struct kk_kv_seq seq = {
        .blocks = rows->block, .step = rows->data, .committed = n, .block_rows = KK_KV_BLOCK_ROWS};
    struct point p = {.dev = r->dev,
                      .a = {.T = T,
                            .B = 1,
                            .H = H,
                            .G = g->G,
                            .D = g->D,
                            .R = DERIVED_R,
                            .value_only = g->value_only,
                            .q = x,
                            .pos = pos,
                            .seq = pos + T,
                            .seqs = &seq,
                            .scale = 1,
                            .k_norm = norm,
                            .rope = rope,
                            .kv_dtype = t,
                            .end_split = KK_NO_BOUND,
                            .first = 1,
                            .last = 1,
                            .state = state,
                            .o = o}};
    p.a.mask = (struct kk_mask){.window = KK_NO_BOUND, .near = KK_NO_BOUND};
    double s = bench_time(run_attn, &p, r->budget);
    double bytes = (double)rows->row_bytes * n;
    double flops = 4.0 * H * g->D * T * (n - (T - 1) / 2.0) + 4.0 * g->value_only * g->D * n;
    double share = floor_seconds(&r->floor, bytes, flops) / s;
    printf("%-8s %-5s %7d %5d %10.1f us %6.1f GB/s %7.1f GFLOP/s %4.0f %%\n", g->what,
           kk_dtype_name(t), n, T, s * 1e6, bytes / s * 1e-9, flops / s * 1e-9, share * 100);
    fflush(stdout);
    json_array_append_new(json_object_get(r->report, "runs"),
                          json_pack("{ss ss si si si si si sf sf}", "keys", g->what, "kv",
                                    kk_dtype_name(t), "G", g->G, "D", g->D, "rows", n, "queries", T,
                                    "threads", r->dev->n_threads, "us", s * 1e6, "share_of_floor",
                                    share));
    kk_free(x), kk_free(o), kk_free(norm), kk_free(rope), kk_free(state), kk_free(pos);
}

static void bench_threads(struct run *r, int threads, const int *rows, int n_rows)
{
    static const enum kk_dtype types[] = {KK_BF16, KK_F32};
    const struct kk_limits limits = {
        .max_rows = PREFILL, .max_model_width = 512, .max_head_dim = 512};
    struct kk_err err = {0};
    bench_check(kk_dev_open_cpu("auto", threads, &r->dev, &err), &err);
    bench_check(r->dev->ops->reserve(r->dev, &limits, &r->dev->tables, &err), &err);
    r->floor = floor_measure(threads);
    bench_floor_into(r->report, r->dev->name, &r->floor);
    printf("%-8s %-5s %7s %5s %13s\n", "keys", "kv", "rows", "quer.", "time");
    for (size_t g = 0; g < sizeof geometries / sizeof *geometries; g++) {
        if (r->keys && strcmp(r->keys, geometries[g].what) != 0) continue;
        for (size_t t = 0; t < sizeof types / sizeof *types; t++)
            for (int i = 0; i < n_rows; i++) {
                struct rows made = make_rows(&geometries[g], types[t], rows[i]);
                for (int T = 1; T <= PREFILL; T *= 16)
                    if (T < PREFILL || rows[i] <= PREFILL_MOST)
                        bench_point(r, &geometries[g], types[t], rows[i], T, &made);
                kk_free(made.data), kk_free(made.block);
            }
    }
    r->dev->ops->close(r->dev);
}

int main(int argc, char **argv)
{
    int threads[MAX_LIST], rows[MAX_LIST];
    int quick = bench_option(argc, argv, "--quick", NULL) != NULL;
    struct run r = {.report = bench_report("attn", argc, argv)};
    r.budget = strtod(bench_option(argc, argv, "--budget", quick ? "0.001" : "0.1"), NULL);
    r.keys = bench_option(argc, argv, "--keys", NULL);
    int n_threads = bench_list(bench_option(argc, argv, "--threads", "1,2"), threads, MAX_LIST);
    const char *some = quick ? "512" : "1024,4096,16384,65536";
    int n_rows = bench_list(bench_option(argc, argv, "--rows", some), rows, MAX_LIST);
    for (int i = 0; i < n_threads; i++) bench_threads(&r, threads[i], rows, n_rows);
    bench_write(r.report, bench_option(argc, argv, "--json", NULL));
    return 0;
}
