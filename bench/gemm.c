/* Matrix products of a model's shapes: the device's linear op beside OpenBLAS and the floors.
 *
 *   bench/gemm [--config bench/configs/cpu-1b.json] [--threads 1,2] [--rows 1,2,..] [--budget S]
 *              [--json FILE] [--quick yes]
 *
 * share: of the floor, the larger of bytes / read bandwidth and operations / multiply-add rate.
 * "pairs": bf16 weights with the input rounded to bf16 (--act bf16), whose rate is taken to be
 * twice that of f32. Each run takes the next copy of the weights, so that none is in a cache unless
 * it is in use. OpenBLAS (f32, loaded if this machine has it) multiplies the same numbers. Medians.
 */
#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/json.h"
#include "base/mem.h"
#include "dev/dev.h"
#include "floor.h"

enum { MAX_SHAPES = 16, MAX_LIST = 16, MAX_COPIES = 64 };
static const size_t cold_bytes = (size_t)96 << 20;

struct shape {
    const char *what;
    int N, K;
};

static const json_t *config;

static int number(const char *key, int fallback)
{
    json_int_t v = json_integer_value(json_object_get(config, key));
    return v ? (int)v : fallback;
}

/* The distinct matrices of a Gemma 4 layer and the head. */
static int shapes_of(struct shape *s)
{
    int C = number("hidden_size", 0), H = number("num_attention_heads", 1), n = 0;
    int D = number("head_dim", 256), DF = number("global_head_dim", D);
    int G = number("num_key_value_heads", 1), GF = number("num_global_key_value_heads", G);
    int F = number("intermediate_size", C);
    const struct shape all[] = {
        {"kv, full", GF * DF, C}, {"kv", G * D, C},       {"q", H * D, C},
        {"gate, up", F, C},       {"q, full", H * DF, C}, {"o", C, H * D},
        {"down", C, F},           {"o, full", C, H * DF}, {"head", number("vocab_size", 0), C}};
    for (size_t i = 0; i < sizeof all / sizeof *all; i++) {
        int known = 0;
        for (int k = 0; k < n; k++) known |= s[k].N == all[i].N && s[k].K == all[i].K;
        if (!known && all[i].N && all[i].K) s[n++] = all[i];
    }
    return n;
}

/* ---- one point ---------------------------------------------------------------------------- */

/* cblas_sgemm and openblas_set_num_threads, by their C declarations. */
typedef void sgemm_fn(int order, int ta, int tb, int m, int n, int k, float alpha, const float *a,
                      int lda, const float *b, int ldb, float beta, float *c, int ldc);
typedef void sgemv_fn(int order, int ta, int m, int n, float alpha, const float *a, int lda,
                      const float *x, int incx, float beta, float *y, int incy);
static sgemm_fn *sgemm;
static sgemv_fn *sgemv;
static void (*set_threads)(int);

struct point {
    struct kk_dev *dev;
    struct shape s;
    int rows, copies, at;
    struct kk_weight w[MAX_COPIES];
    float *plain; /* [copies, N, K] f32, for OpenBLAS */
    float *x, *y;
};

static void run_ours(void *arg)
{
    struct point *p = arg;
    struct kk_linear_args a = {.T = p->rows, .n = 1, .x = p->x, .y = {p->y}};
    a.w[0] = &p->w[p->at++ % p->copies];
    p->dev->ops->step_begin(p->dev);
    p->dev->ops->linear(p->dev, &a);
    bench_check(p->dev->ops->step_end(p->dev, NULL), &(struct kk_err){.msg = "linear"});
}

static void run_openblas(void *arg)
{
    enum { ROW_MAJOR = 101, PLAIN = 111, TRANSPOSED = 112 };
    struct point *p = arg;
    int N = p->s.N, K = p->s.K;
    const float *w = p->plain + (size_t)(p->at++ % p->copies) * (size_t)N * (size_t)K;
    if (p->rows == 1)
        sgemv(ROW_MAJOR, PLAIN, N, K, 1, w, K, p->x, 1, 0, p->y, 1);
    else
        sgemm(ROW_MAJOR, PLAIN, TRANSPOSED, p->rows, N, K, 1, p->x, K, w, K, 0, p->y, N);
}

/* ---- a table ------------------------------------------------------------------------------ */

struct run {
    struct kk_dev *dev;
    struct floor floor;
    json_t *report;
    double budget;
    int rows[MAX_LIST], n_rows;
};

static void one(const struct run *r, struct point *p, enum kk_dtype t, int pairs, const char *by,
                double s)
{
    double bytes = (double)p->s.N * p->s.K * (double)kk_dtype_bytes(t);
    double flops = 2.0 * p->rows * p->s.N * p->s.K;
    double share = floor_seconds(&r->floor, bytes, pairs ? flops / 2 : flops) / s;
    printf("  %9.1f us %5.1f GB/s %6.1f GF/s %4.0f %%", s * 1e6, bytes / s * 1e-9, flops / s * 1e-9,
           share * 100);
    json_array_append_new(json_object_get(r->report, "runs"),
                          json_pack("{ss ss si si si si ss ss sf sf}", "by", by, "matrix",
                                    p->s.what, "N", p->s.N, "K", p->s.K, "rows", p->rows, "threads",
                                    r->dev->n_threads, "weights", kk_dtype_name(t), "input",
                                    pairs ? "bf16" : "f32", "us", s * 1e6, "share_of_floor",
                                    share));
}

/* The weights of one shape and type, several times over. */
static void load(struct point *p, enum kk_dtype t, int pairs, const void *src,
                 struct kk_account *acc)
{
    const struct kk_weight_src from = {
        .dtype = t, .n_mats = 1, .rows = p->s.N, .cols = p->s.K, .data = src};
    struct kk_err err = {0};
    for (int i = 0; i < p->copies; i++) {
        bench_check(p->dev->ops->weight_load(p->dev, &from, acc, &p->w[i], &err), &err);
        p->w[i].bf16_in = pairs;
    }
}

static void unload(struct point *p)
{
    for (int i = 0; i < p->copies; i++) kk_weight_free(p->dev, &p->w[i]);
}

static int copies_of(const struct shape *s, size_t element)
{
    size_t n = cold_bytes / ((size_t)s->N * (size_t)s->K * element) + 1;
    return n > MAX_COPIES ? MAX_COPIES : (int)n;
}

static void bench_shape(struct run *r, const struct shape *s)
{
    enum { TYPES = 3, BY = 4 };
    static const enum kk_dtype types[TYPES] = {KK_BF16, KK_F32, KK_BF16};
    struct kk_account acc = {.name = "bench"};
    struct point p = {.dev = r->dev, .s = *s};
    size_t n = (size_t)s->N * (size_t)s->K, most = (size_t)r->rows[r->n_rows - 1];
    double seconds[MAX_LIST][BY] = {{0}};
    float *f32 = bench_need(kk_array((size_t)copies_of(s, 4) * n, sizeof *f32));
    uint16_t *bf16 = bench_need(kk_array(n, sizeof *bf16));
    p.x = bench_need(kk_array(most * (size_t)s->K, sizeof *p.x));
    p.y = bench_need(kk_array(most * (size_t)s->N, sizeof *p.y));
    for (size_t i = 0; i < n; i++) bf16[i] = kk_f32_to_bf16(f32[i] = bench_value(i));
    for (int c = 1; c < copies_of(s, 4); c++) memcpy(f32 + (size_t)c * n, f32, n * sizeof *f32);
    for (size_t i = 0; i < most * (size_t)s->K; i++) p.x[i] = bench_value(i * 7);
    for (int t = 0; t < TYPES; t++) {
        p.copies = copies_of(s, kk_dtype_bytes(types[t]));
        load(&p, types[t], t == 2, types[t] == KK_F32 ? (void *)f32 : bf16, &acc);
        for (int i = 0; i < r->n_rows; i++) {
            p.rows = r->rows[i];
            seconds[i][t] = bench_time(run_ours, &p, r->budget);
        }
        unload(&p);
    }
    p.plain = f32;
    for (int i = 0; sgemm && i < r->n_rows; i++) {
        p.rows = r->rows[i];
        seconds[i][3] = bench_time(run_openblas, &p, r->budget);
    }
    for (int i = 0; i < r->n_rows; i++) {
        p.rows = r->rows[i];
        printf("%-9s %6d x %-5d %4d", i ? "" : s->what, s->N, s->K, p.rows);
        one(r, &p, KK_BF16, 0, "kakeya", seconds[i][0]);
        one(r, &p, KK_F32, 0, "kakeya", seconds[i][1]);
        one(r, &p, KK_BF16, 1, "kakeya", seconds[i][2]);
        if (sgemm) one(r, &p, KK_F32, 0, "openblas", seconds[i][3]);
        if (sgemm) printf(" %5.2f", seconds[i][3] / seconds[i][1]);
        printf("\n");
    }
    fflush(stdout);
    kk_free(f32), kk_free(bf16), kk_free(p.x), kk_free(p.y);
}

static void bench_threads(struct run *r, int threads, const struct shape *s, int n)
{
    struct kk_err err = {0};
    bench_check(kk_dev_open_cpu("auto", threads, &r->dev, &err), &err);
    struct kk_limits limits = {.max_rows = r->rows[r->n_rows - 1], .max_head_dim = 64};
    struct kk_account scratch = {.name = "scratch"};
    for (int i = 0; i < n; i++)
        if (s[i].K > limits.max_bf16_cols) limits.max_bf16_cols = s[i].K;
    bench_check(r->dev->ops->reserve(r->dev, &limits, &scratch, &err), &err);
    r->floor = floor_measure(threads);
    bench_floor_into(r->report, r->dev->name, &r->floor);
    if (sgemm) set_threads(threads);
    printf("%-9s %6s x %-5s %4s  %-40s  %-40s  %-40s  %s\n", "matrix", "N", "K", "rows",
           "bf16, share of the floor", "f32, share of the floor", "pairs, share of the floor",
           sgemm ? "OpenBLAS f32, share of the floor, ours against it" : "(no OpenBLAS here)");
    for (int i = 0; i < n; i++) {
        int had = r->n_rows; /* the head is never asked for a whole prompt */
        while (!strcmp(s[i].what, "head") && r->n_rows > 1 && r->rows[r->n_rows - 1] > 16)
            r->n_rows--;
        bench_shape(r, &s[i]);
        r->n_rows = had;
    }
    r->dev->ops->close(r->dev);
}

static void *symbol(void *lib, const char *name)
{
    return lib ? dlsym(lib, name) : NULL;
}

static void find_openblas(void)
{
    void *lib = dlopen("libopenblas.so.0", RTLD_NOW | RTLD_LOCAL);
    *(void **)&sgemm = symbol(lib, "cblas_sgemm");
    *(void **)&sgemv = symbol(lib, "cblas_sgemv");
    *(void **)&set_threads = symbol(lib, "openblas_set_num_threads");
    if (!sgemv || !set_threads) sgemm = NULL;
}

int main(int argc, char **argv)
{
    struct kk_err err = {0};
    struct shape s[MAX_SHAPES];
    json_t *root = NULL;
    int threads[MAX_LIST], quick = bench_option(argc, argv, "--quick", NULL) != NULL;
    const char *file = bench_option(argc, argv, "--config", "bench/configs/cpu-1b.json");
    struct run r = {.report = bench_report("gemm", argc, argv)};
    r.budget = strtod(bench_option(argc, argv, "--budget", quick ? "0.001" : "0.05"), NULL);
    r.n_rows = bench_list(bench_option(argc, argv, "--rows", quick ? "1,4" : "1,2,4,8,16,64,512"),
                          r.rows, MAX_LIST);
    int n_threads = bench_list(bench_option(argc, argv, "--threads", "1,2"), threads, MAX_LIST);
    bench_check(kk_json_load(file, 1 << 20, &root, &err), &err);
    json_t *text = json_object_get(root, "text_config");
    config = text ? text : root;
    find_openblas();
    int n = shapes_of(s);
    for (int i = 0; i < n_threads; i++) bench_threads(&r, threads[i], s, quick ? 1 : n);
    bench_write(r.report, bench_option(argc, argv, "--json", NULL));
    json_decref(root);
    return 0;
}
