/* The persistent decode step (src/dev/cuda/step.cu) on random weights of Gemma-4-26B-A4B's
 * geometry: bits against plain kernels, one an op, in the order of docs/adr/0020; then time.
 *
 *   cuda_step [layers=30] [first=0] [ctx=3238] [rows=1] [seqs=1] [vocab=262144] [check=0] [reps=40]
 *             [same=0: the rows are one token]
 *             [slots=0: full layers' blocks but the first and the last are in host memory, and come
 *             through a ring of so many slots]
 * first: kind of layer 0 is that of layer `first` (5: full attention). */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <algorithm>
#include <vector>

#include "dev/cuda/step_int.h"

#define CK(x)                                                                                      \
    do {                                                                                           \
        cudaError_t e_ = (x);                                                                      \
        if (e_) fail(e_, #x, __LINE__);                                                            \
    } while (0)

static void *the_stack;
static int device_sms;

static void fail(cudaError_t e, const char *what, int line)
{
    const int *d = the_stack ? kk__cuda_stack_diag(the_stack) : NULL;
    fprintf(stderr, "line %d: %s: %s\n", line, what, cudaGetErrorString(e));
    for (int w = 0, n = 0; d && w < device_sms * (KS_THREADS / 32); w++)
        if (d[2 * w] && (n++ < 24 || w % 97 == 0))
            printf("STUCK %d.%d:%d(%d) ", w / (KS_THREADS / 32), w % (KS_THREADS / 32), d[2 * w],
                   d[2 * w + 1]);
    int count[64] = {};
    for (int w = 0; d && w < device_sms * (KS_THREADS / 32); w++) count[d[2 * w] & 63]++;
    for (int i = 1; i < 64; i++)
        if (count[i]) printf("\n %d warps wait for %d", count[i], i);
    printf("\n");
    fflush(NULL);
    _exit(1);
}

/* ---- a device, as far as the step needs one ---- */

static void *dev_alloc(struct kk_dev *, size_t n)
{
    void *p = NULL;
    CK(cudaMalloc(&p, n));
    CK(cudaMemset(p, 0, n));
    return p;
}
static void dev_free(struct kk_dev *, void *p, size_t)
{
    CK(cudaFree(p));
}
static void dev_upload(struct kk_dev *, void *d, const void *s, size_t n)
{
    CK(cudaMemcpy(d, s, n, cudaMemcpyHostToDevice));
}
static void *host_alloc(struct kk_dev *, size_t n)
{
    void *p = NULL;
    CK(cudaHostAlloc(&p, n, cudaHostAllocMapped));
    return p;
}
static void host_free(struct kk_dev *, void *p, size_t)
{
    CK(cudaFreeHost(p));
}

static struct kk_ops ops; /* memory alone */
static struct kk_cuda device;
static struct kk_account account;

/* A step; 0: not taken */
static int step(const struct kk_stack_step *st)
{
    if (kk__cuda_stack_step(&device.dev, the_stack, st)) return 0;
    CK(device.error);
    return 1;
}

/* ---- random numbers ---- */

__device__ static inline float draw(uint64_t seed, uint64_t i)
{
    uint64_t z = (i + (seed << 40)) * 0x9E3779B97F4A7C15ull;
    z ^= z >> 31, z *= 0xBF58476D1CE4E5B9ull, z ^= z >> 29, z *= 0x94D049BB133111EBull;
    z ^= z >> 32;
    return (float)(z & 0xffffff) / 8388608.f - 1;
}
__global__ static void fill_bf16(bf16 *p, size_t n, float s, uint64_t seed)
{
    for (size_t i = blockIdx.x * (size_t)blockDim.x + threadIdx.x; i < n;
         i += (size_t)gridDim.x * blockDim.x)
        p[i] = __float2bfloat16_rn(draw(seed, i) * s);
}
__global__ static void fill_f32(float *p, size_t n, float mid, float s, uint64_t seed)
{
    for (size_t i = blockIdx.x * (size_t)blockDim.x + threadIdx.x; i < n;
         i += (size_t)gridDim.x * blockDim.x)
        p[i] = mid + draw(seed, i) * s;
}
__global__ static void fill_rope(float *p, int positions, int R, int D, double theta)
{
    for (int64_t i = blockIdx.x * (int64_t)blockDim.x + threadIdx.x; i < (int64_t)positions * R;
         i += (int64_t)gridDim.x * blockDim.x) {
        const double a = (double)(i / R) * pow(theta, -2.0 * (double)(i % R) / D);
        p[2 * i] = (float)cos(a), p[2 * i + 1] = (float)sin(a);
    }
}

static uint64_t seed = 1;

static float *vec(size_t n, float mid, float s)
{
    float *p;
    CK(cudaMalloc(&p, n * 4));
    fill_f32<<<64, 256>>>(p, n, mid, s, seed++);
    return p;
}
static struct kk_weight mat(int n, int64_t rows, int64_t cols)
{
    struct kk_weight w = {};
    w.dtype = KK_BF16, w.n_mats = n, w.rows = rows, w.cols = cols;
    w.mat_bytes = (size_t)rows * (size_t)cols * 2;
    CK(cudaMalloc(&w.data, w.mat_bytes * (size_t)n));
    fill_bf16<<<2048, 256>>>((bf16 *)w.data, w.mat_bytes / 2 * (size_t)n, sqrtf(3.f / (float)cols),
                             seed++);
    return w;
}

/* ---- the plain kernels ---- */

__global__ static void r_linear(const char *w, const int *expert, size_t mat_bytes, int A,
                                int64_t cols, const bf16 *x, int x_rows, float *y, int64_t rows,
                                int T, float softcap)
{
    /* block (stripe, group): of group e rows of its own: x[e], y[e], weights expert[e] */
    const int l = threadIdx.x, g = l >> 2, q = l & 3, e = blockIdx.y;
    const int tiles = (int)(cols / 16), chain = tiles % 11 == 0 ? 11 : 8;
    if (expert) w += (size_t)expert[e] * mat_bytes;
    w += (size_t)blockIdx.x * (size_t)tiles * 256;
    x += (size_t)(A ? e / A : e) * x_rows * cols;
    y += (size_t)e * x_rows * rows;
    float sum[2] = {0, 0};
    for (int c = 0; c < tiles; c += chain) {
        float d[4] = {0, 0, 0, 0};
        for (int t = c; t < min(c + chain, tiles); t++) {
            uint2 a = make_uint2(0, 0);
            const uint2 b = *(const uint2 *)(w + t * 256 + l * 8);
            if (g < T) a = *(const uint2 *)(x + g * cols + t * 16 + 4 * q);
            kk__mma(d, a.x, 0, a.y, 0, b.x, b.y);
        }
        sum[0] = c ? sum[0] + d[0] : d[0];
        sum[1] = c ? sum[1] + d[1] : d[1];
    }
    for (int i = 0; i < 2 && g < T; i++) {
        float v = sum[i];
        if (softcap > 0) v = softcap * tanhf(v / softcap);
        y[g * rows + blockIdx.x * 8 + 2 * q + i] = v;
    }
}

__device__ static float r_rms(const float *x, int C, float eps, float *tmp)
{
    float s = 0;
    for (int i = 4 * (int)threadIdx.x; i < C; i += 1024)
        for (int k = 0; k < 4; k++) s = __fmaf_rn(x[i + k], x[i + k], s);
    s = kk__row_sum(s, tmp);
    __syncthreads();
    return __frsqrt_rn(s / (float)C + eps);
}

__global__ static void r_embed(const int32_t *ids, const char *w, float scale, float *h)
{
    const int id = ids[blockIdx.x];
    for (int k = threadIdx.x; k < KS_C; k += 256)
        h[blockIdx.x * KS_C + k] =
            __bfloat162float(*(const bf16 *)(w + (size_t)(id / 8) * (KS_C / 16) * 256 +
                                             (k / 16) * 256 + (id % 8) * 32 + k % 16 * 2)) *
            scale;
}
__global__ static void r_norm(const float *x, const float *w, float eps, bf16 *y)
{
    __shared__ float tmp[8];
    x += blockIdx.x * KS_C, y += blockIdx.x * KS_C;
    const float f = r_rms(x, KS_C, eps, tmp);
    for (int k = threadIdx.x; k < KS_C; k += 256) y[k] = __float2bfloat16_rn((x[k] * f) * w[k]);
}
__global__ static void r_residual(const float *a, const float *b, const float *wa, const float *wb,
                                  const float *post, float scale, float eps, float *h)
{
    __shared__ float tmp[8], x[KS_C];
    a += blockIdx.x * KS_C, h += blockIdx.x * KS_C;
    if (b) {
        b += blockIdx.x * KS_C;
        const float fa = r_rms(a, KS_C, eps, tmp), fb = r_rms(b, KS_C, eps, tmp);
        for (int k = threadIdx.x; k < KS_C; k += 256)
            x[k] = (a[k] * fa) * wa[k] + (b[k] * fb) * wb[k];
    } else {
        for (int k = threadIdx.x; k < KS_C; k += 256) x[k] = a[k];
    }
    __syncthreads();
    const float f = r_rms(x, KS_C, eps, tmp);
    for (int k = threadIdx.x; k < KS_C; k += 256) h[k] = (h[k] + (x[k] * f) * post[k]) * scale;
}
__device__ static void r_head(const float *x, const float *w, int D, float eps, const float *cs,
                              int R, float *y)
{
    float s = 0;
    for (int i = 4 * (int)threadIdx.x; i < D; i += 128)
        for (int k = 0; k < 4; k++) s = __fmaf_rn(x[i + k], x[i + k], s);
    const float f = __frsqrt_rn(kk__warp_sum(s) / (float)D + eps);
    for (int i = threadIdx.x; i < D; i += 32) y[i] = w ? (x[i] * f) * w[i] : x[i] * f;
    __syncwarp();
    for (int r = threadIdx.x; cs && r < R; r += 32) {
        const float a = y[r], b = y[r + D / 2], c = cs[2 * r], d = cs[2 * r + 1];
        y[r] = a * c - b * d;
        y[r + D / 2] = b * c + a * d;
    }
    __syncwarp();
}
/* block (head, row): q heads in place in f32, then KV heads */
__global__ static void r_qkv(float *q, const float *k, const float *v, int D, int G, int R, int vo,
                             const float *qn, const float *kn, float eps, const int32_t *pos,
                             const float *rope, bf16 *rows)
{
    __shared__ float y[512];
    const int t = blockIdx.y, head = blockIdx.x;
    const float *cs = rope + (size_t)pos[t] * R * 2;
    if (head < KS_H) {
        float *p = q + ((size_t)t * KS_H + head) * D;
        r_head(p, qn, D, eps, cs, R, y);
        for (int i = threadIdx.x; i < D; i += 32) p[i] = y[i];
        return;
    }
    const int g = head - KS_H;
    bf16 *row = rows + (size_t)t * G * D * (vo ? 1 : 2);
    if (!vo) {
        r_head(k + ((size_t)t * G + g) * D, kn, D, eps, cs, R, y);
        for (int i = threadIdx.x; i < D; i += 32) row[g * D + i] = __float2bfloat16_rn(y[i]);
        __syncwarp();
        row += G * D;
    }
    r_head((vo ? k : v) + ((size_t)t * G + g) * D, NULL, D, eps, NULL, 0, y);
    for (int i = threadIdx.x; i < D; i += 32) row[g * D + i] = __float2bfloat16_rn(y[i]);
}

__device__ static uint32_t two_of(const bf16 *p)
{
    return *(const uint32_t *)p;
}

__device__ static const bf16 *row_at(const struct kk_kv_seq &s, int j, size_t rb)
{
    if (j >= s.committed) return (const bf16 *)((char *)s.step + (j - s.committed) * rb);
    if (s.ring) j %= s.ring;
    return (const bf16 *)((char *)s.blocks[j / s.block_rows] + j % s.block_rows * rb);
}

/* block (head, row), one warp */
__global__ static void r_attn(const float *q, int D, int G, int R, int vo, const int32_t *pos,
                              const int32_t *seq, const struct kk_kv_seq *seqs, int window,
                              float scale, const float *kn, const float *rope, bf16 *o)
{
    __shared__ float s[128], O[512];
    __shared__ bf16 qs[512], p[128], key[16][512];
    const int t = blockIdx.y, h = blockIdx.x, l = threadIdx.x, gl = l >> 2, ql = l & 3;
    const int g = h / (KS_H / G), at = pos[t];
    const struct kk_kv_seq sq = seqs[seq[t]];
    const size_t rb = (size_t)G * D * (vo ? 2 : 4);
    q += ((size_t)t * KS_H + h) * D;
    for (int i = l; i < D; i += 32) qs[i] = __float2bfloat16_rn(q[i] * scale), O[i] = 0;
    float M = -INFINITY, L = 0;
    for (int base = max(0, at - window + 1) / 128 * 128; base <= at; base += 128) {
        for (int kg = 0; kg < 8; kg++) {
            float d[2][4] = {};
            for (int i = 0; i < 16; i++) {
                const int j = base + kg * 16 + i;
                __syncwarp();
                if (j > at || (j < base)) {
                    for (int k = l; k < D; k += 32) key[i][k] = __float2bfloat16_rn(0);
                    continue;
                }
                const bf16 *row = row_at(sq, j, rb) + g * D;
                for (int k = l; k < D; k += 32) key[i][k] = row[k];
                __syncwarp();
                if (!vo) continue;
                for (int k = l; k < D / 2; k += 32) {
                    float a = __bfloat162float(key[i][k]) * kn[k];
                    float b = __bfloat162float(key[i][k + D / 2]) * kn[k + D / 2];
                    if (k < R) {
                        const float c = rope[((size_t)j * R + k) * 2];
                        const float e = rope[((size_t)j * R + k) * 2 + 1], a0 = a;
                        a = a0 * c - b * e;
                        b = b * c + a0 * e;
                    }
                    key[i][k] = __float2bfloat16_rn(a);
                    key[i][k + D / 2] = __float2bfloat16_rn(b);
                }
            }
            __syncwarp();
            for (int kt = 0; kt < D / 16; kt++) {
                const uint32_t a0 = gl ? 0 : two_of(qs + 16 * kt + 2 * ql);
                const uint32_t a2 = gl ? 0 : two_of(qs + 16 * kt + 2 * ql + 8);
                for (int n = 0; n < 2; n++)
                    kk__mma(d[n], a0, 0, a2, 0, two_of(&key[8 * n + gl][16 * kt + 2 * ql]),
                            two_of(&key[8 * n + gl][16 * kt + 2 * ql + 8]));
            }
            for (int n = 0; n < 2 && gl == 0; n++)
                for (int e = 0; e < 2; e++) s[kg * 16 + 8 * n + 2 * ql + e] = d[n][e];
        }
        __syncwarp();
        float m = -INFINITY, sum = 0;
        for (int i = 0; i < 128; i++) {
            const int j = base + i;
            if (j <= at && at - j < window) m = fmaxf(m, s[i]);
        }
        float e[4];
        __syncwarp();
        for (int i = 0; i < 4; i++) {
            const int j = base + l * 4 + i;
            e[i] = j <= at && at - j < window ? kk__exp2((s[l * 4 + i] - m) * 1.44269504f) : 0;
        }
        __syncwarp();
        for (int i = 0; i < 4; i++) s[l * 4 + i] = e[i], p[l * 4 + i] = __float2bfloat16_rn(e[i]);
        __syncwarp();
        for (int kg = 0; kg < 8; kg++) {
            float part[4];
            for (int i = 0; i < 4; i++) {
                const float *x = s + kg * 16 + 2 * i;
                part[i] = ((x[0] + x[1]) + x[8]) + x[9];
            }
            const float grp = (part[0] + part[1]) + (part[2] + part[3]);
            sum = kg ? sum + grp : grp;
        }
        const float M1 = fmaxf(M, m), x = kk__exp2((M - M1) * 1.44269504f);
        const float y = kk__exp2((m - M1) * 1.44269504f);
        L = __fmaf_rn(L, x, sum * y);
        M = M1;
        for (int n = 0; n < D / 8; n++) {
            float d[4] = {0, 0, 0, 0};
            for (int kg = 0; kg < 8; kg++) {
                uint32_t b[2];
                for (int i = 0; i < 2; i++) {
                    bf16 v[2];
                    for (int c = 0; c < 2; c++) {
                        const int j = base + kg * 16 + 2 * ql + 8 * i + c;
                        v[c] = j <= at ? row_at(sq, j, rb)[(vo ? 0 : G * D) + g * D + 8 * n + gl]
                                       : __float2bfloat16_rn(0);
                    }
                    b[i] = *(uint32_t *)v;
                }
                kk__mma(d, gl ? 0 : two_of(p + kg * 16 + 2 * ql), 0,
                        gl ? 0 : two_of(p + kg * 16 + 2 * ql + 8), 0, b[0], b[1]);
            }
            if (gl == 0)
                for (int c = 0; c < 2; c++) {
                    float *to = &O[8 * n + 2 * ql + c];
                    *to = __fmaf_rn(*to, x, d[c] * y);
                }
        }
        __syncwarp();
    }
    for (int i = l; i < D; i += 32)
        o[((size_t)t * KS_H + h) * D + i] = __float2bfloat16_rn(O[i] / L + 0.0f);
}

/* y[r, F] = act(x[r, gate0 ..]) * x[r, up0 ..], rows of x of `ld` */
__global__ static void r_act(const float *gate, const float *up, int ld, int F, bf16 *y)
{
    const size_t r = blockIdx.y;
    const int i = blockIdx.x * 64 + threadIdx.x;
    if (i < F)
        y[r * F + i] =
            __float2bfloat16_rn(kk__act(KK_GELU_TANH, gate[r * ld + i]) * up[r * ld + i]);
}
/* one thread a row: experts in ascending order, with their weights */
__global__ static void r_route(const float *logits, const float *scale, int *idx, float *w)
{
    const int t = threadIdx.x;
    int id[KS_A];
    float e[KS_A], sum = 0, top = 0;
    for (int a = 0; a < KS_A; a++) {
        int best = -1;
        for (int i = 0; i < KS_E; i++) {
            bool used = false;
            for (int b = 0; b < a; b++) used |= id[b] == i;
            if (!used && (best < 0 || logits[t * KS_E + i] > logits[t * KS_E + best])) best = i;
        }
        id[a] = best;
        if (!a) top = logits[t * KS_E + best];
        e[a] = expf(logits[t * KS_E + best] - top);
        sum = a ? sum + e[a] : e[a];
    }
    for (int a = 0; a < KS_A; a++) {
        int rank = 0;
        for (int b = 0; b < KS_A; b++) rank += id[b] < id[a];
        idx[t * KS_A + rank] = id[a];
        w[t * KS_A + rank] = e[a] / sum * scale[id[a]];
    }
}
__global__ static void r_fold(const float *down, const float *w, float *y)
{
    const int t = blockIdx.y, i = blockIdx.x * 64 + threadIdx.x;
    float s = 0;
    for (int a = 0; a < KS_A; a++)
        s = __fmaf_rn(w[t * KS_A + a], down[((size_t)t * KS_A + a) * KS_C + i], s);
    y[t * KS_C + i] = s;
}

/* ---- the model ---- */

struct layer {
    struct kk_weight wq, wk, wv, wo, gate, up, down, router, gate_up, expert_down;
};
struct options {
    int layers, first, ctx, rows, seqs, vocab, check, reps, same, slots;
};
struct model {
    struct options o;
    struct kk_stack stack;
    std::vector<struct layer> w;
    std::vector<struct kk_stack_layer> y;
    struct kk_weight embed;
    std::vector<struct kk_stack_kv> kv;
    std::vector<char *> rows2; /* the plain kernels' copies of the step's rows */
    std::vector<struct kk_kv_seq *> seqs2;
    float *rope[2];
    int32_t *ids, *pos, *seq;
    std::vector<int32_t> pos0, n;
    struct kk_stack_host host; /* slots */
    std::vector<void *> pages;
    std::vector<int32_t> first_page[2], n_pages[2];
};

static void make_layer(struct model *m, int l)
{
    struct layer &w = m->w[l];
    struct kk_stack_layer &y = m->y[l];
    const int s = (l + m->o.first) % 6 != 5, D = s ? 256 : 512, G = s ? 8 : 2;
    y = {};
    y.sliding = s, y.value_only = !s, y.D = D, y.G = G, y.R = s ? 128 : 64;
    w.wq = mat(1, KS_H * D, KS_C), w.wk = mat(1, G * D, KS_C), w.wo = mat(1, KS_C, KS_H * D);
    if (s) w.wv = mat(1, G * D, KS_C);
    w.gate = mat(1, KS_F, KS_C), w.up = mat(1, KS_F, KS_C), w.down = mat(1, KS_C, KS_F);
    w.router = mat(1, KS_E, KS_C);
    w.gate_up = mat(KS_E, 2 * KS_XF, KS_C), w.expert_down = mat(KS_E, KS_C, KS_XF);
    y.wq = &w.wq, y.wk = &w.wk, y.wv = s ? &w.wv : NULL, y.wo = &w.wo, y.gate = &w.gate;
    y.up = &w.up, y.down = &w.down, y.router = &w.router, y.gate_up = &w.gate_up;
    y.expert_down = &w.expert_down;
    y.input_norm = vec(KS_C, 1, .2f), y.post_attn_norm = vec(KS_C, .7f, .2f);
    y.pre_ff_norm = vec(KS_C, 1, .2f), y.pre_ff_norm_2 = vec(KS_C, 1, .2f);
    y.router_scale = vec(KS_C, 1, .2f), y.post_ff_norm_1 = vec(KS_C, 1, .2f);
    y.post_ff_norm_2 = vec(KS_C, 1, .2f), y.post_ff_norm = vec(KS_C, .7f, .2f);
    y.q_norm = vec(D, 1, .2f), y.k_norm = vec(D, .3f, .1f);
    y.expert_scale = vec(KS_E, 1, .2f);
    y.scalar = 0.9f;
}

/* Blocks of sequence b go to host memory; its table, the kernel's, says where they will be. */
static void page_out(struct model *m, int b, size_t block, std::vector<void *> &table)
{
    char *host;
    const int n = std::max(m->pos0[b] / 128 - 1, 0);
    m->first_page[0][b] = 1, m->n_pages[0][b] = n;
    CK(cudaDeviceSynchronize());
    CK(cudaHostAlloc(&host, block * (size_t)(n + 1), cudaHostAllocMapped));
    for (int i = 1; i <= n; i++, host += block) {
        CK(cudaMemcpy(host, table[i], block, cudaMemcpyDeviceToHost));
        table[i] = m->host.ring + block * (m->pages.size() % (size_t)m->o.slots);
        m->pages.push_back(host);
    }
}

static void make_host(struct model *m)
{
    const void **from;
    CK(cudaMalloc(&from, sizeof *from * (m->pages.size() + 1)));
    CK(cudaMemcpy(from, m->pages.data(), sizeof *from * m->pages.size(), cudaMemcpyHostToDevice));
    m->host.n = (int)m->pages.size(), m->host.from = from;
    for (int k = 0; k < 2; k++)
        m->host.first[k] = m->first_page[k].data(), m->host.count[k] = m->n_pages[k].data();
}

static void make_kv(struct model *m, int l)
{
    const struct kk_stack_layer &y = m->y[l];
    const size_t rb = (size_t)y.G * y.D * (y.value_only ? 2 : 4);
    const int rows = y.sliding ? 1024 : (m->o.ctx + 127) / 128 * 128, nb = rows / 128;
    const size_t block = 128 * rb;
    std::vector<struct kk_kv_seq> s[2];
    char *step[2];
    for (int k = 0; k < 2; k++) {
        CK(cudaMalloc(&step[k], KS_COLS * rb));
        CK(cudaMemset(step[k], 0xee, KS_COLS * rb));
    }
    int t = 0;
    for (int b = 0; b < m->o.seqs; b++) {
        char *mem;
        std::vector<void *> table(nb);
        void **dtable;
        CK(cudaMalloc(&mem, block * nb));
        fill_bf16<<<512, 256>>>((bf16 *)mem, block * nb / 2, 1.5f, seed++);
        for (int i = 0; i < nb; i++) table[i] = mem + block * (nb - 1 - i);
        for (int k = 1; k >= 0; k--) { /* 0: the kernel's */
            if (!k && !y.sliding && m->o.slots) page_out(m, b, block, table);
            CK(cudaMalloc(&dtable, sizeof(void *) * nb));
            CK(cudaMemcpy(dtable, table.data(), sizeof(void *) * nb, cudaMemcpyHostToDevice));
            struct kk_kv_seq q = {};
            q.blocks = dtable, q.step = step[k] + (size_t)t * rb;
            q.committed = m->pos0[b], q.n_step = m->n[b], q.block_rows = 128;
            q.ring = y.sliding ? 1024 : 0;
            s[k].push_back(q);
        }
        t += m->n[b];
    }
    struct kk_kv_seq *d[2];
    for (int k = 0; k < 2; k++) {
        CK(cudaMalloc(&d[k], sizeof(struct kk_kv_seq) * s[k].size()));
        CK(cudaMemcpy(d[k], s[k].data(), sizeof(struct kk_kv_seq) * s[k].size(),
                      cudaMemcpyHostToDevice));
    }
    m->kv[l] = {d[0], step[0]};
    m->seqs2[l] = d[1], m->rows2[l] = step[1];
}

static void make_model(struct model *m)
{
    const int N = m->o.layers, T = m->o.rows;
    m->w.resize(N), m->y.resize(N), m->kv.resize(N), m->rows2.resize(N), m->seqs2.resize(N);
    std::vector<int32_t> pos, seq, ids;
    for (int b = 0; b < m->o.seqs; b++) {
        const int n = T / m->o.seqs + (b < T % m->o.seqs), p = m->o.ctx - b * 37;
        m->pos0.push_back(p), m->n.push_back(n);
        for (int i = 0; i < n; i++) pos.push_back(p + i), seq.push_back(b);
    }
    for (int t = 0; t < T; t++) ids.push_back((m->o.same ? 77 : 77 + 991 * t) % m->o.vocab);
    CK(cudaMalloc(&m->ids, T * 4));
    CK(cudaMalloc(&m->pos, T * 4));
    CK(cudaMalloc(&m->seq, T * 4));
    CK(cudaMemcpy(m->ids, ids.data(), T * 4, cudaMemcpyHostToDevice));
    CK(cudaMemcpy(m->pos, pos.data(), T * 4, cudaMemcpyHostToDevice));
    CK(cudaMemcpy(m->seq, seq.data(), T * 4, cudaMemcpyHostToDevice));
    m->embed = mat(1, m->o.vocab, KS_C);
    for (int k = 0; k < 2; k++) m->first_page[k].resize(m->o.seqs), m->n_pages[k].resize(m->o.seqs);
    m->host.slots = m->o.slots, m->host.block_rows = 128, m->host.slot_bytes = 128 * 2048;
    CK(cudaMalloc(&m->host.ring, m->host.slot_bytes * (size_t)(m->o.slots + 1)));
    for (int l = 0; l < N; l++) make_layer(m, l), make_kv(m, l);
    make_host(m);
    for (int k = 0; k < 2; k++) {
        const int P = m->o.ctx + 16, R = k ? 128 : 64, D = k ? 256 : 512;
        CK(cudaMalloc(&m->rope[k], (size_t)P * R * 8));
        fill_rope<<<256, 256>>>(m->rope[k], P, R, D, k ? 1e4 : 1e6);
    }
    struct kk_stack *k = &m->stack;
    k->n_layers = N, k->C = KS_C, k->H = KS_H, k->E = KS_E, k->A = KS_A, k->F = KS_F;
    k->expert_F = KS_XF, k->V = m->o.vocab, k->act = KK_GELU_TANH;
    k->eps = 1e-6f, k->attn_scale = 1, k->embed_scale = 53, k->softcap = 30;
    k->embed = k->head = &m->embed;
    k->final_norm = vec(KS_C, 1, .2f);
    k->layer = m->y.data();
    CK(cudaDeviceSynchronize());
}

/* ---- the plain step ---- */

template <class T> static T *scratch(size_t n)
{
    T *p;
    CK(cudaMalloc(&p, n * sizeof(T)));
    CK(cudaMemset(p, 0xff, n * sizeof(T)));
    return p;
}

struct plain {
    float *h, *q, *k, *v, *a, *ao, *b, *gate, *up, *rl, *w, *xg, *xd, *logits, *taps;
    bf16 *x, *x2, *x3, *o, *f, *fx;
    int *idx;
};

static void linear(const struct kk_weight &w, const bf16 *x, float *y, int T, float cap = 0)
{
    r_linear<<<dim3((unsigned)(w.rows / 8), 1), 32>>>((const char *)w.data, NULL, 0, 0, w.cols, x,
                                                      T, y, w.rows, T, cap);
}

static void plain_layer(struct model *m, struct plain *p, int l)
{
    const struct layer &w = m->w[l];
    const struct kk_stack_layer &y = m->y[l];
    const int T = m->o.rows, D = y.D, G = y.G, R = y.R, vo = y.value_only;
    const float eps = m->stack.eps, *rope = m->rope[y.sliding];
    const unsigned rows = (unsigned)T;
    r_norm<<<rows, 256>>>(p->h, y.input_norm, eps, p->x);
    linear(w.wq, p->x, p->q, T), linear(w.wk, p->x, p->k, T);
    if (!vo) linear(w.wv, p->x, p->v, T);
    r_qkv<<<dim3(KS_H + (unsigned)G, rows), 32>>>(p->q, p->k, p->v, D, G, R, vo, y.q_norm, y.k_norm,
                                                  eps, m->pos, rope, (bf16 *)m->rows2[l]);
    r_attn<<<dim3(KS_H, rows), 32>>>(p->q, D, G, R, vo, m->pos, m->seq, m->seqs2[l],
                                     y.sliding ? 1024 : INT32_MAX, 1, y.k_norm, rope, p->o);
    linear(w.wo, p->o, p->a, T);
    CK(cudaMemcpyAsync(p->ao, p->a, (size_t)T * KS_C * 4, cudaMemcpyDeviceToDevice));
    r_residual<<<rows, 256>>>(p->a, NULL, NULL, NULL, y.post_attn_norm, 1, eps, p->h);
    r_norm<<<rows, 256>>>(p->h, y.pre_ff_norm, eps, p->x);
    r_norm<<<rows, 256>>>(p->h, y.pre_ff_norm_2, eps, p->x2);
    r_norm<<<rows, 256>>>(p->h, y.router_scale, eps, p->x3);
    linear(w.gate, p->x, p->gate, T), linear(w.up, p->x, p->up, T);
    r_act<<<dim3(KS_F / 64, rows), 64>>>(p->gate, p->up, KS_F, KS_F, p->f);
    linear(w.down, p->f, p->gate, T); /* KS_C of KS_C floats a row */
    CK(cudaMemcpyAsync(p->a, p->gate, (size_t)T * KS_C * 4, cudaMemcpyDeviceToDevice));
    linear(w.router, p->x3, p->rl, T);
    r_route<<<1, rows>>>(p->rl, y.expert_scale, p->idx, p->w);
    r_linear<<<dim3(2 * KS_XF / 8, rows * KS_A), 32>>>((const char *)w.gate_up.data, p->idx,
                                                       w.gate_up.mat_bytes, KS_A, KS_C, p->x2, 1,
                                                       p->xg, 2 * KS_XF, 1, 0);
    r_act<<<dim3(KS_XF / 64, rows * KS_A), 64>>>(p->xg, p->xg + KS_XF, 2 * KS_XF, KS_XF, p->fx);
    r_linear<<<dim3(KS_C / 8, rows * KS_A), 32>>>((const char *)w.expert_down.data, p->idx,
                                                  w.expert_down.mat_bytes, 0, KS_XF, p->fx, 1,
                                                  p->xd, KS_C, 1, 0);
    r_fold<<<dim3(KS_C / 64, rows), 64>>>(p->xd, p->w, p->b);
    r_residual<<<rows, 256>>>(p->a, p->b, y.post_ff_norm_1, y.post_ff_norm_2, y.post_ff_norm,
                              y.scalar, eps, p->h);
    CK(cudaMemcpy2DAsync(p->taps + (size_t)l * KS_C, (size_t)m->o.layers * KS_C * 4, p->h, KS_C * 4,
                         KS_C * 4, (size_t)T, cudaMemcpyDeviceToDevice));
}

static void plain_step(struct model *m, struct plain *p)
{
    const int T = m->o.rows;
    const size_t t = (size_t)T;
    p->h = scratch<float>(t * KS_C), p->q = scratch<float>(t * 8192),
    p->k = scratch<float>(t * 2048);
    p->v = scratch<float>(t * 2048), p->a = scratch<float>(t * KS_C),
    p->ao = scratch<float>(t * KS_C), p->b = scratch<float>(t * KS_C);
    p->gate = scratch<float>(t * KS_C), p->up = scratch<float>(t * KS_F);
    p->rl = scratch<float>(t * KS_E), p->w = scratch<float>(t * KS_A);
    p->xg = scratch<float>(t * KS_A * 2 * KS_XF), p->xd = scratch<float>(t * KS_A * KS_C);
    p->logits = scratch<float>(t * m->o.vocab), p->taps = scratch<float>(t * m->o.layers * KS_C);
    p->x = scratch<bf16>(t * KS_C), p->x2 = scratch<bf16>(t * KS_C),
    p->x3 = scratch<bf16>(t * KS_C);
    p->o = scratch<bf16>(t * 8192), p->f = scratch<bf16>(t * KS_F);
    p->fx = scratch<bf16>(t * KS_A * KS_XF), p->idx = scratch<int>(t * KS_A);
    r_embed<<<(unsigned)T, 256>>>(m->ids, (const char *)m->embed.data, m->stack.embed_scale, p->h);
    for (int l = 0; l < m->o.layers; l++) plain_layer(m, p, l);
    r_norm<<<(unsigned)T, 256>>>(p->h, m->stack.final_norm, m->stack.eps, p->x);
    linear(m->embed, p->x, p->logits, T, m->stack.softcap);
    CK(cudaDeviceSynchronize());
}

/* ---- comparison ---- */

template <class T> static std::vector<T> get(const T *p, size_t n)
{
    std::vector<T> v(n);
    CK(cudaMemcpy(v.data(), p, n * sizeof(T), cudaMemcpyDeviceToHost));
    return v;
}

static int wrong;

template <class T>
static void same(const char *what, const std::vector<T> &got, const std::vector<T> &want)
{
    size_t bad = 0, first = 0;
    for (size_t i = 0; i < want.size(); i++)
        if (memcmp(&got[i], &want[i], sizeof(T)) && !bad++) first = i;
    if (!bad) return;
    wrong++;
    printf("  %s: %zu of %zu differ, first %zu\n", what, bad, want.size(), first);
    for (size_t i = first; i < std::min(first + (sizeof(T) == 4 ? 3 : 0), want.size()); i++) {
        float a = 0, b = 0;
        if (sizeof(T) == 4) memcpy(&a, &got[i], 4), memcpy(&b, &want[i], 4);
        printf("    [%zu] got %g want %g\n", i, a, b);
    }
}

/* The payload of words [T, ld], the first n of each row; halves: pairs of bf16 */
static std::vector<float> payload(const uint64_t *p, int T, int ld, int n)
{
    std::vector<uint64_t> w = get(p, (size_t)T * ld);
    std::vector<float> v;
    for (int t = 0; t < T; t++)
        for (int i = 0; i < n; i++) {
            const uint32_t u = (uint32_t)w[(size_t)t * ld + i];
            float f;
            memcpy(&f, &u, 4);
            v.push_back(f);
        }
    return v;
}
static std::vector<float> raw(const bf16 *p, size_t n)
{
    return get((const float *)p, n / 2);
}

static void check(struct model *m, const float *logits, const int32_t *choice, const float *taps)
{
    struct plain p;
    const int T = m->o.rows, N = m->o.layers;
    const size_t t = (size_t)T;
    plain_step(m, &p);
    wrong = 0;
    if (N == 1) {
        const struct ks_args *a = kk__cuda_stack_args(the_stack);
        same("o", payload(a->o, T, KS_C, KS_C), get(p.ao, t * KS_C));
        const int width = m->y[0].sliding ? 4096 : 8192;
        same("attention", payload(a->attn, T, width / 2, width / 2), raw(p.o, t * width));
        same("router", payload(a->router, T, KS_E, KS_E), get(p.rl, t * KS_E));
        same("glu", payload(a->f, T, KS_F / 2, KS_F / 2), raw(p.f, t * KS_F));
        same("down", payload(a->down, T, KS_C, KS_C), get(p.a, t * KS_C));
        if (T == 1) {
            std::vector<float> v = payload(a->fx, KS_A, KS_COLS * KS_XF / 2, KS_XF / 2);
            same("experts", v, raw(p.fx, KS_A * KS_XF));
        }
        same("experts' down", payload(a->xdown, T, KS_C, KS_C), get(p.b, t * KS_C));
    }
    for (int l = 0; l < N; l++) {
        const struct kk_stack_layer &y = m->y[l];
        const size_t rb = (size_t)y.G * y.D * (y.value_only ? 2 : 4);
        char what[64];
        snprintf(what, sizeof what, "KV rows of layer %d", l);
        same(what, get((char *)m->kv[l].rows, t * rb), get(m->rows2[l], t * rb));
    }
    std::vector<float> got = get(taps, t * N * KS_C), want = get(p.taps, t * N * KS_C);
    int bad = 0;
    for (int l = 0; l < N && !bad; l++)
        for (int r = 0; r < T; r++) {
            const size_t at = ((size_t)r * N + l) * KS_C;
            char what[64];
            const int before = wrong;
            snprintf(what, sizeof what, "h after layer %d, row %d", l, r);
            same(what, std::vector<float>(got.begin() + at, got.begin() + at + KS_C),
                 std::vector<float>(want.begin() + at, want.begin() + at + KS_C));
            bad += wrong != before;
        }
    std::vector<float> lg = get(logits, t * m->o.vocab), lw = get(p.logits, t * m->o.vocab);
    same("logits", lg, lw);
    std::vector<int32_t> c = get(choice, t), cw;
    for (int r = 0; r < T; r++) {
        const float *x = &lw[(size_t)r * m->o.vocab];
        cw.push_back((int32_t)(std::max_element(x, x + m->o.vocab) - x));
    }
    same("choice", c, cw);
    double n = 0;
    for (float f : lw) n += (double)f * f;
    printf("check layers %d first %d ctx %d rows %d seqs %d slots %d: %s (logits rms %.3f, "
           "choice %d)\n",
           N, m->o.first, m->o.ctx, T, m->o.seqs, m->o.slots, wrong ? "WRONG" : "equal bits",
           sqrt(n / lw.size()), c[0]);
    fflush(stdout);
}

/* Bytes of a step's weights and rows, with `experts` distinct experts in all layers */
static double step_bytes(const struct model *m, double experts)
{
    double n = (double)m->embed.mat_bytes;
    for (const struct kk_stack_layer &y : m->y) {
        const double row = y.G * y.D * (y.value_only ? 2 : 4);
        n += (double)y.wq->mat_bytes + (double)y.wk->mat_bytes + (double)y.wo->mat_bytes +
             (y.wv ? (double)y.wv->mat_bytes : 0) + 3.0 * KS_F * KS_C * 2 + KS_E * KS_C * 2.0;
        for (int b = 0; b < m->o.seqs; b++)
            n += row * (y.sliding ? std::min(m->pos0[b], 1023) : m->pos0[b]);
    }
    return n + experts * 3.0 * KS_XF * KS_C * 2;
}

#ifdef KS_TRACE
/* When what happened, us after x was there on the same SM: first, mean and last SM, means over the
 * layers of a kind. One row. */
static void trace_step(struct model *m, const struct kk_stack_step *st, int khz)
{
    enum { MARKS = 32, R2_END = 21 };
    static const char *const name[MARKS] = {
        "qkv end",  "attn",    "q",        "scores",    "part",    "merge",  "merged",   "o x",
        "o end",    "r1",      "r1 x",     "glu",       "glu end", "down x", "down end", "xglu",
        "xglu end", "xdown x", "xdown x2", "xdown end", "r2",      "r2 end", "logits",   "routed",
        "P qkv",    "P attn",  "P o",      "P glu",     "P down",  "P xglu", "P xdown"};
    struct ks_args *a = kk__cuda_stack_args(the_stack);
    const size_t n = (size_t)device_sms * KS_LAYERS * MARKS;
    a->trace = scratch<uint64_t>(n);
    CK(cudaMemset(a->trace, 0, n * 8));
    step(st);
    CK(cudaDeviceSynchronize());
    std::vector<uint64_t> v = get(a->trace, n);
    a->trace = NULL;
    for (int sliding = 0; sliding < 2; sliding++)
        for (int k = 0; k < MARKS; k++) {
            double sum[3] = {};
            int layers = 0;
            for (int l = 1; l < m->o.layers; l++) {
                double lo = 1e9, hi = -1e9, mean = 0;
                int count = 0;
                for (int b = 0; b < device_sms && m->y[l].sliding == sliding; b++) {
                    const uint64_t *x = &v[((size_t)b * KS_LAYERS + l) * MARKS];
                    const double us = (double)(int64_t)(x[k] - x[R2_END - MARKS]) * 1e3 / khz;
                    if (!x[k]) continue;
                    lo = std::min(lo, us), hi = std::max(hi, us), mean += us, count++;
                }
                if (count) sum[0] += lo, sum[1] += mean / count, sum[2] += hi, layers++;
            }
            if (layers)
                printf("%s %-9s %6.1f %6.1f %6.1f\n", sliding ? "sliding" : "full", name[k],
                       sum[0] / layers, sum[1] / layers, sum[2] / layers);
        }
}
#endif

static int option(int argc, char **argv, const char *name, int value)
{
    for (int i = 1; i < argc; i++)
        if (!strncmp(argv[i], name, strlen(name)) && argv[i][strlen(name)] == '=')
            return (int)strtol(argv[i] + strlen(name) + 1, NULL, 10);
    return value;
}

int main(int argc, char **argv)
{
    static struct model m;
    m.o.layers = option(argc, argv, "layers", 30), m.o.first = option(argc, argv, "first", 0);
    m.o.ctx = option(argc, argv, "ctx", 3238), m.o.rows = option(argc, argv, "rows", 1);
    m.o.seqs = option(argc, argv, "seqs", 1), m.o.vocab = option(argc, argv, "vocab", 262144);
    m.o.check = option(argc, argv, "check", 0), m.o.reps = option(argc, argv, "reps", 40);
    m.o.same = option(argc, argv, "same", 0), m.o.slots = option(argc, argv, "slots", 0);
    cudaDeviceProp prop;
    CK(cudaGetDeviceProperties(&prop, 0));
    ops.alloc = dev_alloc, ops.free = dev_free, ops.upload = dev_upload;
    ops.host_alloc = host_alloc, ops.host_free = host_free;
    device.dev.ops = &ops;
    device.sms = device_sms = prop.multiProcessorCount;
    make_model(&m);
    if (kk__cuda_stack_open(&device.dev, &m.stack, &account, &the_stack, NULL) || !the_stack) {
        printf("the geometry is not taken\n");
        return 1;
    }
    kk__cuda_stack_args(the_stack)->window = (uint32_t)option(argc, argv, "window", 5);
    kk__cuda_stack_args(the_stack)->ahead = (uint32_t)option(argc, argv, "ahead", 2);
    const int T = m.o.rows;
    float *logits = scratch<float>((size_t)T * m.o.vocab);
    float *taps = scratch<float>((size_t)T * m.o.layers * KS_C);
    int32_t *choice = scratch<int32_t>(T);
    std::vector<int32_t> lrows;
    std::vector<int> tl;
    for (int t = 0; t < T; t++) lrows.push_back(t);
    for (int l = 0; l < m.o.layers; l++) tl.push_back(l);
    struct kk_stack_step st = {};
    st.T = T, st.B = m.o.seqs, st.ids = m.ids, st.pos = m.pos0.data(), st.rows = m.n.data();
    st.kv_dtype = KK_BF16;
    st.mask[0] = {KK_NO_BOUND, KK_NO_BOUND, 0, 0, 0, 0};
    st.mask[1] = {1024, KK_NO_BOUND, 0, 0, 0, 0};
    st.rope[0] = m.rope[0], st.rope[1] = m.rope[1];
    st.kv = m.kv.data();
    st.host = m.o.slots ? &m.host : NULL;
    st.n_logits = T, st.logit_rows = lrows.data();
    st.choice = choice;
    st.logits = logits;
    st.n_taps[0] = m.o.layers, st.tap_layers[0] = tl.data(), st.tap_dst[0] = taps;
    for (int i = 0; i < (m.o.check ? 3 : 0); i++) {
        if (!step(&st)) {
            printf("the step is not taken\n");
            return 1;
        }
        CK(cudaDeviceSynchronize());
        if (i != 1) check(&m, logits, choice, taps);
    }
    if (!m.o.reps) return wrong != 0;
    st.logits = NULL, st.n_taps[0] = 0;
    std::vector<float> ms;
    cudaEvent_t a, b;
    CK(cudaEventCreate(&a));
    CK(cudaEventCreate(&b));
    for (int i = 0; i < m.o.reps + 4; i++) {
        float x;
        CK(cudaEventRecord(a));
        if (!step(&st)) {
            printf("the step is not taken\n");
            return 1;
        }
        CK(cudaEventRecord(b));
        CK(cudaEventSynchronize(b));
        CK(cudaEventElapsedTime(&x, a, b));
        if (i >= 4) ms.push_back(x);
    }
    std::sort(ms.begin(), ms.end());
#ifdef KS_TRACE
    int khz;
    CK(cudaDeviceGetAttribute(&khz, cudaDevAttrClockRate, 0));
    trace_step(&m, &st, khz);
#endif
    const double med = ms[ms.size() / 2], bytes = step_bytes(&m, 8.0 * m.o.layers);
    printf("{\"bench\":\"cuda_step\",\"card\":\"%s\",\"layers\":%d,\"ctx\":%d,\"rows\":%d,"
           "\"seqs\":%d,\"same\":%d,\"slots\":%d,\"ms\":%.4f,\"min_ms\":%.4f,\"steps_s\":%.1f,"
           "\"gb_8_experts\":%.3f,\"gb_s\":%.0f}\n",
           prop.name, m.o.layers, m.o.ctx, T, m.o.seqs, m.o.same, m.o.slots, med, ms[0], 1e3 / med,
           bytes / 1e9, bytes / med / 1e6);
    return wrong != 0;
}
