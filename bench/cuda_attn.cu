/* Attention on the GPU over the layers of Gemma-4-26B-A4B, against its floors: decoding, verifying,
 * batches, chunks of a prompt.
 *
 *   bench/cuda_attn [--device 0] [--json FILE] [--only decode|batch|prefill]
 *                   [--one sliding|full,SEQUENCES,ROWS,CONTEXT]
 *
 * A point is a graph of ops over as many copies of the rows as exceed what the L2 cache holds, so
 * that they come from memory; its time is the median of replays, divided by the ops. The floor: the
 * larger of the rows' bytes at 4.47 TB/s and the products at 790 TFLOP/s (an H200, measured). */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "dev/cuda/cuda_int.h"

enum { BLOCK = 128, REPLAYS = 15, POINTS = 4096 };
static const double BYTES_S = 4.47e12, FLOP_S = 790e12, SPREAD = 160e6;

static const struct layer {
    const char *what;
    int H, G, D, R, value_only, window;
} sliding = {"sliding", 16, 8, 256, 128, 0, 1024}, full = {"full", 16, 2, 512, 64, 1, KK_NO_BOUND};

static struct kk_cuda *c;
static FILE *json;

static void need(cudaError_t e, const char *what)
{
    if (e == cudaSuccess) return;
    fprintf(stderr, "%s: %s\n", what, cudaGetErrorString(e));
    exit(1);
}

static void *room(size_t bytes)
{
    void *p;
    need(cudaMalloc(&p, bytes), "cudaMalloc");
    return p;
}

static void *sent(const void *src, size_t bytes)
{
    void *p = room(bytes);
    need(cudaMemcpy(p, src, bytes, cudaMemcpyHostToDevice), "cudaMemcpy");
    return p;
}

/* Numbers near N(0, scale). */
template <typename N> __global__ void k_fill(N *x, size_t n, float scale, uint32_t seed)
{
    for (size_t i = blockIdx.x * (size_t)blockDim.x + threadIdx.x; i < n;
         i += (size_t)gridDim.x * blockDim.x) {
        uint64_t z = (i + ((uint64_t)seed << 40)) * 0x9E3779B97F4A7C15ull;
        z ^= z >> 31, z *= 0xBF58476D1CE4E5B9ull, z ^= z >> 29;
        float s = 0;
        for (int k = 0; k < 4; k++) s += (float)(z >> (16 * k) & 0xffff) / 32768.0f - 1;
        x[i] = (N)(s * 0.866f * scale);
    }
}

template <typename N> static N *filled(size_t n, float scale)
{
    static uint32_t seed;
    N *p = (N *)room(n * sizeof(N));
    k_fill<<<2048, 256>>>(p, n, scale, seed++);
    return p;
}

/* B sequences of `context` rows, the last `rows` of them the step's. */
struct point {
    const struct layer *y;
    int B, rows, context;
};

static size_t row_bytes(const struct layer *y)
{
    return (size_t)(y->G * y->D * (y->value_only ? 1 : 2)) * 2;
}

/* The step's sequences, over rows at `rows`. */
static struct kk_kv_seq *make_seqs(const struct point *p, char *rows)
{
    const size_t rb = row_bytes(p->y);
    const int blocks = (p->context + BLOCK - 1) / BLOCK, committed = p->context - p->rows;
    struct kk_kv_seq *s = (struct kk_kv_seq *)calloc((size_t)p->B, sizeof *s);
    void **table = (void **)calloc((size_t)(blocks * p->B), sizeof *table);
    for (int i = 0; i < blocks * p->B; i++) table[i] = rows + (size_t)i * BLOCK * rb;
    void **dev = (void **)sent(table, (size_t)(blocks * p->B) * sizeof *table);
    for (int b = 0; b < p->B; b++) {
        s[b].blocks = dev + b * blocks;
        s[b].committed = committed;
        s[b].n_step = p->rows;
        s[b].block_rows = BLOCK;
        s[b].step = rows + ((size_t)b * (size_t)(blocks * BLOCK) + (size_t)committed) * rb;
    }
    struct kk_kv_seq *out = (struct kk_kv_seq *)sent(s, (size_t)p->B * sizeof *s);
    free(s);
    free(table);
    return out;
}

static int by_value(const void *a, const void *b)
{
    const float x = *(const float *)a, y = *(const float *)b;
    return (x > y) - (x < y);
}

static double replay(cudaGraphExec_t graph)
{
    cudaEvent_t from, to;
    float ms[REPLAYS];
    need(cudaEventCreate(&from), "event");
    need(cudaEventCreate(&to), "event");
    for (int i = -2; i < REPLAYS; i++) {
        cudaEventRecord(from, c->stream);
        need(cudaGraphLaunch(graph, c->stream), "cudaGraphLaunch");
        cudaEventRecord(to, c->stream);
        need(cudaStreamSynchronize(c->stream), "replay");
        if (i >= 0) cudaEventElapsedTime(&ms[i], from, to);
    }
    qsort(ms, REPLAYS, sizeof *ms, by_value);
    cudaEventDestroy(from);
    cudaEventDestroy(to);
    return ms[REPLAYS / 2] * 1e-3;
}

/* Keys that rows see, summed over rows; and the bytes of the rows that any sees. */
static void count(const struct point *p, double *keys, double *bytes)
{
    const struct layer *y = p->y;
    double seen = p->context;
    *keys = 0;
    for (int i = p->context - p->rows; i < p->context; i++)
        *keys += i + 1 < y->window ? i + 1 : y->window;
    if (seen > (double)y->window + p->rows - 1) seen = (double)y->window + p->rows - 1;
    *keys *= p->B;
    *bytes = seen * (double)row_bytes(y) * p->B;
}

static void measure(const struct point *p)
{
    const struct layer *y = p->y;
    const int T = p->B * p->rows, blocks = (p->context + BLOCK - 1) / BLOCK * p->B;
    const size_t bytes = (size_t)blocks * BLOCK * row_bytes(y);
    double keys, least;
    count(p, &keys, &least);
    const double floor_b = least / BYTES_S, floor_f = 4.0 * y->H * y->D * keys / FLOP_S;
    int ops = (int)(SPREAD / least) + 1;
    if (ops < 2) ops = 2;
    if (floor_f > 1e-3) ops = 1;
    int32_t *pos = (int32_t *)calloc((size_t)T * 2, sizeof *pos);
    for (int t = 0; t < T; t++) {
        pos[t] = p->context - p->rows + t % p->rows;
        pos[T + t] = t / p->rows;
    }
    int32_t *dpos = (int32_t *)sent(pos, (size_t)T * 8);
    char *rows = (char *)filled<bf16>(bytes / 2 * (size_t)ops, 1);
    struct kk_attn_args a = {};
    a.T = T, a.B = p->B, a.H = y->H, a.G = y->G, a.D = y->D, a.R = y->R;
    a.value_only = y->value_only;
    a.q = filled<float>((size_t)T * y->H * y->D, 1);
    a.pos = dpos, a.seq = dpos + T;
    a.longest = p->context, a.most_rows = p->rows;
    a.mask.window = y->window, a.mask.near = KK_NO_BOUND;
    a.scale = 0.0625f;
    a.k_norm = filled<float>((size_t)y->D, 1);
    a.rope = filled<float>((size_t)p->context * y->R * 2, 0.7f);
    a.kv_dtype = KK_BF16;
    a.end_split = KK_NO_BOUND, a.first = a.last = 1;
    a.state = (float *)room((size_t)T * y->H * (y->D + 2) * 4);
    a.o = room((size_t)T * y->H * y->D * 2);
    struct kk_kv_seq **seqs = (struct kk_kv_seq **)calloc((size_t)ops, sizeof *seqs);
    for (int i = 0; i < ops; i++) seqs[i] = make_seqs(p, rows + bytes * (size_t)i);
    need(cudaDeviceSynchronize(), "fill");
    cudaGraph_t graph;
    cudaGraphExec_t exec;
    need(cudaStreamBeginCapture(c->stream, cudaStreamCaptureModeRelaxed), "capture");
    for (int i = 0; i < ops; i++) {
        a.seqs = seqs[i];
        kk__cuda_attn(&c->dev, &a);
    }
    need(cudaStreamEndCapture(c->stream, &graph), "capture");
    need(c->error, "attn");
    need(cudaGraphInstantiate(&exec, graph, 0), "instantiate");
    const double s = replay(exec) / ops, floor = floor_b > floor_f ? floor_b : floor_f;
    printf("%-8s B %3d rows %4d context %6d: %9.2f us  floor %9.2f  %3.0f %%  %6.0f GB/s %4.0f "
           "TFLOP/s\n",
           y->what, p->B, p->rows, p->context, s * 1e6, floor * 1e6, floor / s * 100,
           least / s * 1e-9, floor_f * FLOP_S / s * 1e-12);
    fflush(stdout);
    if (json)
        fprintf(json,
                "{\"layer\": \"%s\", \"sequences\": %d, \"rows\": %d, \"context\": %d, "
                "\"us\": %.3f, \"floor_us\": %.3f, \"share\": %.3f}\n",
                y->what, p->B, p->rows, p->context, s * 1e6, floor * 1e6, floor / s);
    cudaGraphExecDestroy(exec);
    cudaGraphDestroy(graph);
    void *all[] = {dpos, rows, (void *)a.q, (void *)a.k_norm, (void *)a.rope, a.state, a.o};
    for (void *x : all) cudaFree(x);
    for (int i = 0; i < ops; i++) cudaFree(seqs[i]);
    free(seqs);
    free(pos);
}

static const char *option(int argc, char **argv, const char *name, const char *otherwise)
{
    for (int i = 1; i + 1 < argc; i++)
        if (!strcmp(argv[i], name)) return argv[i + 1];
    return otherwise;
}

static int wanted(const char *only, const char *what)
{
    return !only || !strcmp(only, what);
}

int main(int argc, char **argv)
{
    static const int contexts[] = {1000, 3238, 6438, 62038};
    const char *only = option(argc, argv, "--only", NULL), *to = option(argc, argv, "--json", NULL);
    const char *one = option(argc, argv, "--one", NULL);
    const int index = (int)strtol(option(argc, argv, "--device", "0"), NULL, 10);
    struct kk_dev *dev;
    struct kk_err err = {};
    struct kk_limits limits = {};
    limits.max_rows = POINTS, limits.max_model_width = 2816, limits.max_head_dim = 512;
    if (kk_dev_open_cuda(index, &dev, &err) ||
        dev->ops->reserve(dev, &limits, &dev->tables, &err)) {
        fprintf(stderr, "%s\n", err.msg);
        return 1;
    }
    c = kk__cuda(dev);
    if (to) json = fopen(to, "w");
    printf("%s\n", dev->name);
    if (one) {
        struct point p = {*one == 's' ? &sliding : &full, 0, 0, 0};
        if (sscanf(strchr(one, ','), ",%d,%d,%d", &p.B, &p.rows, &p.context) == 3) measure(&p);
        return 0;
    }
    for (int rows = 1; rows <= 16; rows *= 4)
        for (int i = 0; i < 4 && wanted(only, "decode"); i++) {
            const struct point s = {&sliding, 1, rows, contexts[i]};
            const struct point f = {&full, 1, rows, contexts[i]};
            if (i < 2) measure(&s);
            measure(&f);
        }
    for (int B = 8; B <= 64 && wanted(only, "batch"); B *= 8) {
        const struct point s = {&sliding, B, 1, 1200}, f = {&full, B, 1, 1200};
        measure(&s);
        measure(&f);
    }
    for (int rows = 128; rows <= 4096 && wanted(only, "prefill"); rows *= 2) {
        const struct point s = {&sliding, 1, rows, rows + 2048}, f = {&full, 1, rows, rows + 2048};
        measure(&s);
        measure(&f);
    }
    if (wanted(only, "prefill")) {
        const struct point p = {&full, 1, 2048, 62038};
        measure(&p);
    }
    if (json) fclose(json);
    kk_dev_close(dev);
    return 0;
}
