/* Products, router and experts of Gemma-4-26B-A4B on the GPU, beside their floors.
 *
 *   bench/cuda_gemm [--rows 1,2,4,..] [--only WORD] [--json FILE]
 *
 * floor: the larger of bytes (weights once, of experts those that rows go to; inputs and outputs)
 * at 4.47 TB/s and operations at 790 TFLOP/s, both measured on one H200. Each op is captured many
 * times over, with other weights each time so that L2 does not help, and replayed; the median of
 * the replays. "layer" is what this program measures of a layer, one after another. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "dev/cuda/cuda_int.h"

namespace
{

enum { E = 128, A = 8, C = 2816, F = 704, FD = 2112, SETS = 8, REPLAYS = 9, MOST_ROWS = 4096 };
const double read_rate = 4.47e12, mma_rate = 790e12;

struct kk_cuda *dev;
FILE *json;
char *weights; /* one block that all weights are taken from, in turn */
size_t weight_bytes, weight_at;
void *x, *h;
float *y, *scale;
int32_t *idx[SETS], *idx_out;
float *share[SETS];
double distinct[SETS]; /* experts that the rows of a set go to */

void need(bool ok, const char *what)
{
    if (ok) return;
    fprintf(stderr, "cuda_gemm: %s: %s\n", what, cudaGetErrorString(cudaGetLastError()));
    exit(1);
}

__global__ void fill(uint32_t *p, size_t n, float size)
{
    const size_t step = (size_t)gridDim.x * blockDim.x;
    for (size_t i = (size_t)blockIdx.x * blockDim.x + threadIdx.x; i < n; i += step) {
        uint32_t v[2];
        for (uint32_t j = 0; j < 2; j++) {
            uint32_t u = (uint32_t)(2 * i + j) * 2654435761u;
            u = (u ^ u >> 15) * 2246822519u;
            v[j] = u ^ u >> 13;
        }
        p[i] = kk__pack2(((float)v[0] * 0x1p-31f - 1) * size, ((float)v[1] * 0x1p-31f - 1) * size);
    }
}

void *room(size_t bytes, float size)
{
    void *p = dev->dev.ops->alloc(&dev->dev, bytes);
    need(p, "out of memory");
    fill<<<1024, 256, 0, dev->stream>>>((uint32_t *)p, bytes / 4, size);
    return p;
}

/* The next weights of the block. */
struct kk_weight weight(int n, int64_t rows, int64_t cols)
{
    struct kk_weight w = {};
    w.dtype = KK_BF16;
    w.n_mats = n;
    w.rows = rows;
    w.cols = cols;
    w.mat_bytes = (size_t)kk__stripes(rows) * (size_t)kk__tiles(cols) * KK_TILE_BYTES;
    if (weight_at + w.mat_bytes * (size_t)n > weight_bytes) weight_at = 0;
    w.data = weights + weight_at;
    weight_at += w.mat_bytes * (size_t)n;
    return w;
}

/* ---- what is measured --------------------------------------------------------------------- */

struct cost {
    double bytes, flops;
};

cost linear(int T, int n, const int *rows, int K, float softcap)
{
    struct kk_weight w[3];
    struct kk_linear_args a = {};
    cost c = {2.0 * T * K, 0};
    float *to = y;
    a.T = T;
    a.n = n;
    a.x = x;
    a.softcap = softcap;
    for (int i = 0; i < n; i++) {
        w[i] = weight(1, rows[i], K);
        a.w[i] = &w[i];
        a.y[i] = to;
        to += (size_t)T * (size_t)rows[i];
        c.bytes += 2.0 * rows[i] * K + 4.0 * T * rows[i];
        c.flops += 2.0 * T * rows[i] * K;
    }
    dev->dev.ops->linear(&dev->dev, &a);
    return c;
}

cost qkv(int T, int)
{
    static const int rows[] = {4096, 2048, 2048};
    return linear(T, 3, rows, C, 0);
}
cost qk_full(int T, int)
{
    static const int rows[] = {8192, 1024};
    return linear(T, 2, rows, C, 0);
}
cost q(int T, int)
{
    static const int rows[] = {4096};
    return linear(T, 1, rows, C, 0);
}
cost o(int T, int)
{
    static const int rows[] = {C};
    return linear(T, 1, rows, 4096, 0);
}
cost o_full(int T, int)
{
    static const int rows[] = {C};
    return linear(T, 1, rows, 8192, 0);
}
cost down(int T, int)
{
    static const int rows[] = {C};
    return linear(T, 1, rows, FD, 0);
}
cost head(int T, int)
{
    static const int rows[] = {262144};
    return linear(T, 1, rows, C, 30);
}

cost glu(int T, int)
{
    const struct kk_weight gate = weight(1, FD, C), up = weight(1, FD, C);
    const struct kk_glu_args a = {T, KK_GELU_TANH, x, &gate, &up, h};
    dev->dev.ops->glu(&dev->dev, &a);
    return {4.0 * FD * C + 2.0 * T * (C + FD), 4.0 * T * FD * C};
}

cost route(int T, int)
{
    const struct kk_weight w = weight(1, E, C);
    const struct kk_route_args a = {T, E, A, x, &w, scale, idx_out, y};
    dev->dev.ops->route(&dev->dev, &a);
    return {2.0 * E * C + 2.0 * T * C, 2.0 * T * E * C};
}

cost moe(int T, int i)
{
    weight_at = 0;
    const struct kk_weight gate_up = weight(E, 2 * F, C), d = weight(E, C, F);
    const struct kk_moe_args a = {T,        E,  A, KK_GELU_TANH, x, idx[i % SETS], share[i % SETS],
                                  &gate_up, &d, y};
    dev->dev.ops->moe(&dev->dev, &a);
    return {distinct[i % SETS] * 6.0 * F * C + 6.0 * T * C, 6.0 * T * A * F * C};
}

cost layer(int T, int i)
{
    cost (*const ops[])(int, int) = {qkv, o, glu, down, route, moe};
    cost c = {};
    static size_t dense_at;
    for (int k = 0; k < 6; k++) {
        if (k == 5) dense_at = weight_at;
        const cost one = ops[k](T, i);
        c.bytes += one.bytes;
        c.flops += one.flops;
        if (k == 5) weight_at = dense_at;
    }
    return c;
}

/* ---- measuring ---------------------------------------------------------------------------- */

void choose(int T)
{
    int32_t *at = (int32_t *)malloc((size_t)T * A * 4);
    float *w = (float *)malloc((size_t)T * A * 4);
    for (int s = 0; s < SETS; s++) {
        bool used[E] = {};
        for (int i = 0; i < T * A; i++) {
            bool again = true;
            while (again) {
                again = false;
                at[i] = rand() % E;
                for (int j = i / A * A; j < i; j++) again |= at[j] == at[i];
            }
            used[at[i]] = true;
            w[i] = 0.125f;
        }
        distinct[s] = 0;
        for (int e = 0; e < E; e++) distinct[s] += used[e];
        dev->dev.ops->upload(&dev->dev, idx[s], at, (size_t)T * A * 4);
        dev->dev.ops->upload(&dev->dev, share[s], w, (size_t)T * A * 4);
    }
    free(at);
    free(w);
}

int by_size(const void *a, const void *b)
{
    const float p = *(const float *)a, r = *(const float *)b;
    return p < r ? -1 : p > r;
}

void measure(const char *name, int T, cost (*op)(int, int))
{
    cudaGraph_t graph;
    cudaGraphExec_t exec;
    cudaEvent_t from, to;
    float us[REPLAYS];
    cost all = {};
    const int times = T > 256 ? 2 * SETS : 3 * SETS;
    op(T, 0); /* warm: modules are loaded */
    need(cudaStreamSynchronize(dev->stream) == cudaSuccess, name);
    need(!cudaStreamBeginCapture(dev->stream, cudaStreamCaptureModeThreadLocal), "capture");
    for (int i = 0; i < times; i++) {
        const cost c = op(T, i);
        all.bytes += c.bytes;
        all.flops += c.flops;
    }
    need(!cudaStreamEndCapture(dev->stream, &graph), "capture");
    need(!cudaGraphInstantiate(&exec, graph, 0), "instantiate");
    need(!cudaEventCreate(&from) && !cudaEventCreate(&to), "event");
    for (int i = -1; i < REPLAYS; i++) {
        need(!cudaEventRecord(from, dev->stream), "record");
        need(!cudaGraphLaunch(exec, dev->stream), "launch");
        need(!cudaEventRecord(to, dev->stream), "record");
        need(!cudaEventSynchronize(to), name);
        float ms = 0;
        need(!cudaEventElapsedTime(&ms, from, to), "time");
        if (i >= 0) us[i] = ms * 1e3f / (float)times;
    }
    cudaGraphExecDestroy(exec);
    cudaGraphDestroy(graph);
    qsort(us, REPLAYS, sizeof *us, by_size);
    const double t = us[REPLAYS / 2], bytes = all.bytes / times, flops = all.flops / times;
    const double b = bytes / read_rate * 1e6, f = flops / mma_rate * 1e6, least = b > f ? b : f;
    printf("%-10s %5d rows %9.2f us  floor %8.2f  share %3.0f %%  %6.0f GB/s %6.1f TFLOP/s\n", name,
           T, t, least, least / t * 100, bytes / t * 1e-3, flops / t * 1e-6);
    if (json)
        fprintf(json,
                "{\"gpu\": \"%s\", \"op\": \"%s\", \"rows\": %d, \"us\": %.3f, \"best_us\": %.3f, "
                "\"floor_us\": %.3f, \"bytes\": %.0f, \"flops\": %.0f}\n",
                dev->dev.name, name, T, t, us[0], least, bytes, flops);
}

const struct {
    const char *name;
    cost (*op)(int, int);
    int most; /* rows */
} ops[] = {{"qkv", qkv, MOST_ROWS},   {"qk,full", qk_full, MOST_ROWS}, {"q", q, MOST_ROWS},
           {"o", o, MOST_ROWS},       {"o,full", o_full, MOST_ROWS},   {"glu", glu, MOST_ROWS},
           {"down", down, MOST_ROWS}, {"route", route, MOST_ROWS},     {"head", head, 64},
           {"moe", moe, MOST_ROWS},   {"layer", layer, MOST_ROWS}};

void set_up()
{
    struct kk_err err = {};
    struct kk_dev *d;
    static struct kk_account account = {"bench", 0, 0};
    if (kk_dev_open_cuda(0, &d, &err)) {
        fprintf(stderr, "cuda_gemm: %s\n", err.msg);
        exit(1);
    }
    dev = kk__cuda(d);
    struct kk_limits l = {};
    l.max_rows = MOST_ROWS;
    l.max_model_width = C;
    l.max_head_dim = 512;
    l.max_active = A;
    l.max_expert_width = F;
    l.max_experts = E;
    need(!d->ops->reserve(d, &l, &account, &err), "reserve");
    weight_bytes = (size_t)2 << 30;
    weights = (char *)room(weight_bytes, 0.03f);
    x = room((size_t)MOST_ROWS * 8192 * 2, 1);
    h = room((size_t)MOST_ROWS * 8192 * 2, 1);
    y = (float *)room((size_t)128 * 262144 * 4, 1);
    scale = (float *)room(E * 4, 1);
    idx_out = (int32_t *)room(MOST_ROWS * A * 4, 1);
    for (int s = 0; s < SETS; s++) {
        idx[s] = (int32_t *)room(MOST_ROWS * A * 4, 1);
        share[s] = (float *)room(MOST_ROWS * A * 4, 1);
    }
}

} // namespace

int main(int argc, char **argv)
{
    const char *rows = "1,2,4,8,16,64,512,2048", *only = "";
    for (int i = 1; i + 1 < argc; i += 2) {
        if (!strcmp(argv[i], "--rows")) rows = argv[i + 1];
        if (!strcmp(argv[i], "--only")) only = argv[i + 1];
        if (!strcmp(argv[i], "--json")) json = fopen(argv[i + 1], "w");
    }
    set_up();
    printf("%s\n", dev->dev.name);
    for (size_t k = 0; k < sizeof ops / sizeof *ops; k++)
        for (const char *r = rows; r; r = strchr(r, ',') ? strchr(r, ',') + 1 : NULL) {
            const int T = (int)strtol(r, NULL, 10);
            if (T < 1 || T > ops[k].most || (*only && !strstr(only, ops[k].name))) continue;
            choose(T);
            measure(ops[k].name, T, ops[k].op);
        }
    if (json) fclose(json);
    return 0;
}
