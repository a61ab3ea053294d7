/* Weights on their way to the GPU: any type becomes bf16 tiles (cuda_int.h).
 *
 * Host threads read, convert and pack stripes into a part of the pinned ring while the parts before
 * it travel, so that loading takes as long as the slowest of disk, memory and bus. Tiles need no
 * work on the device: a stripe arrives as it stays. Synthetic weights are made where they stay. */
#include <cuda_fp16.h>
#include <string.h>
#include <sys/mman.h>

#include "dev/cuda/cuda_int.h"

enum { AHEAD = 4 }; /* parts of the ring that are read from disk before they are packed */

static size_t stripe_bytes(const struct kk_weight_src *s)
{
    return (size_t)kk__tiles(s->cols) * KK_TILE_BYTES;
}

static size_t mat_bytes(const struct kk_weight_src *s)
{
    return (size_t)kk__stripes(s->rows) * stripe_bytes(s);
}

size_t kk__cuda_weight_bytes(const struct kk_dev *, const struct kk_weight_src *src)
{
    return (size_t)src->n_mats * mat_bytes(src);
}

/* ---- packing on the host ------------------------------------------------------------------ */

struct pack_job {
    const struct kk_weight_src *src;
    int64_t first; /* stripe of all matrices' */
    char *to;
    char *buffers; /* 8 source rows for each worker; NULL when the source is mapped */
    size_t buffer_bytes;
};

static size_t stored_bytes(enum kk_dtype t, uint64_t n)
{
    return (size_t)(n / kk_dtype_block(t) * kk_dtype_block_bytes(t));
}

static uint16_t rounded(enum kk_dtype t, const char *p)
{
    uint16_t half;
    float f;
    if (t == KK_F32) {
        memcpy(&f, p, 4);
        return kk_f32_to_bf16(f);
    }
    memcpy(&half, p, 2);
    return t == KK_BF16 ? half : kk_f32_to_bf16(kk_f16_to_f32(half));
}

/* One output's inputs, K of them, to their places in a stripe. */
static void pack_row(enum kk_dtype t, const char *row, int64_t K, char *to)
{
    const int bytes = (int)kk_dtype_bytes(t);
    int64_t k = 0;
    for (; k + KK_TILE_K <= K; k += KK_TILE_K, to += KK_TILE_BYTES) {
        uint16_t v[KK_TILE_K];
        if (t == KK_BF16)
            memcpy(v, row + k * 2, sizeof v);
        else
            for (int i = 0; i < KK_TILE_K; i++) v[i] = rounded(t, row + (k + i) * bytes);
        memcpy(to, v, sizeof v);
    }
    if (k == K) return;
    uint16_t last[KK_TILE_K] = {0};
    for (int i = 0; k + i < K; i++) last[i] = rounded(t, row + (k + i) * bytes);
    memcpy(to, last, sizeof last);
}

static void pack_block_row(enum kk_dtype t, const char *row, int64_t K, char *to)
{
    for (int64_t k = 0; k < K; k += KK_QUANT_GROUP) {
        const unsigned per = kk_dtype_block(t);
        struct kk_quant_group group;
        float f[KK_QUANT_GROUP];
        kk_quant_take(t, row + stored_bytes(t, (uint64_t)k), (int)(k % per / KK_QUANT_GROUP),
                      &group);
        kk_quant_values(t, &group, f);
        for (int half = 0; half < 2; half++, to += KK_TILE_BYTES) {
            uint16_t v[KK_TILE_K];
            for (int i = 0; i < KK_TILE_K; i++) v[i] = kk_f32_to_bf16(f[half * KK_TILE_K + i]);
            memcpy(to, v, sizeof v);
        }
    }
}

/* Stripe job->first + item. */
static void pack(void *arg, int item, int worker)
{
    const struct pack_job *job = (const struct pack_job *)arg;
    const struct kk_weight_src *s = job->src;
    const int64_t stripes = kk__stripes(s->rows), at = job->first + item;
    const int64_t row = at % stripes * KK_TILE_ROWS, left = s->rows - row;
    const int n = left < KK_TILE_ROWS ? (int)left : KK_TILE_ROWS;
    const uint64_t first = (uint64_t)(at / stripes * s->rows + row) * (uint64_t)s->cols;
    const size_t row_bytes = stored_bytes(s->dtype, (uint64_t)s->cols);
    char *to = job->to + (size_t)item * stripe_bytes(s);
    const char *from = (const char *)s->data;
    if (from) {
        from += stored_bytes(s->dtype, first);
    } else {
        char *buffer = job->buffers + (size_t)worker * job->buffer_bytes;
        s->read(s->ctx, first, (uint64_t)n * (uint64_t)s->cols, buffer);
        from = buffer;
    }
    if (n < KK_TILE_ROWS) memset(to, 0, stripe_bytes(s));
    for (int r = 0; r < n; r++, from += row_bytes)
        if (kk_dtype_is_block(s->dtype))
            pack_block_row(s->dtype, from, s->cols, to + r * 2 * KK_TILE_K);
        else
            pack_row(s->dtype, from, s->cols, to + r * 2 * KK_TILE_K);
}

/* Have the system read the next `bytes` of a mapped source into memory meanwhile. */
static void ask_for(const struct kk_weight_src *s, int64_t stripe, size_t bytes)
{
    const int64_t stripes = kk__stripes(s->rows);
    const uint64_t rows = (uint64_t)(stripe / stripes * s->rows + stripe % stripes * KK_TILE_ROWS);
    const uint64_t all = (uint64_t)s->n_mats * (uint64_t)s->rows;
    const size_t row_bytes = stored_bytes(s->dtype, (uint64_t)s->cols);
    const size_t page = 4096, left = rows < all ? (size_t)(all - rows) * row_bytes : 0;
    const char *from = (const char *)s->data + (size_t)rows * row_bytes;
    const char *start = (const char *)((uintptr_t)from & ~(uintptr_t)(page - 1));
    if (bytes > left) bytes = left;
    if (bytes) madvise((void *)start, (size_t)(from - start) + bytes, MADV_WILLNEED);
}

static int stream_in(struct kk_cuda *c, const struct kk_weight_src *src, char *dst,
                     struct kk_err *err)
{
    const size_t bytes = stripe_bytes(src);
    const int64_t total = kk__stripes(src->rows) * src->n_mats;
    const int64_t most = (int64_t)(KK_CUDA_RING_PART / bytes);
    struct pack_job job = {src, 0, NULL, NULL, 0};
    if (!src->data) {
        job.buffer_bytes = KK_TILE_ROWS * stored_bytes(src->dtype, (uint64_t)src->cols);
        job.buffers = (char *)kk_array((size_t)kk_pool_threads(c->pool), job.buffer_bytes);
        if (!job.buffers)
            return kk_fail(err, KK_ENOMEM, "out of memory: %zu bytes to read weights",
                           (size_t)kk_pool_threads(c->pool) * job.buffer_bytes);
    }
    if (src->data) ask_for(src, 0, AHEAD * KK_CUDA_RING_PART);
    for (int64_t n; job.first < total; job.first += n) {
        n = total - job.first < most ? total - job.first : most;
        if (src->data) ask_for(src, job.first + AHEAD * most, KK_CUDA_RING_PART);
        job.to = kk__cuda_ring(c, (size_t)n * bytes);
        kk_pool_for(c->pool, (int)n, pack, &job);
        kk__cuda_latch(c,
                       cudaMemcpyAsync(dst + (size_t)job.first * bytes, job.to, (size_t)n * bytes,
                                       cudaMemcpyHostToDevice, c->stream),
                       "weight_load");
    }
    if (src->rest) src->rest(src->ctx);
    kk_free(job.buffers);
    return 0;
}

/* ---- synthetic weights -------------------------------------------------------------------- */

/* A block makes a stripe; a thread makes 8 inputs of one output at a time. About 30 integer
 * operations an element: a quarter of a second for 25 billion. */
__global__ static void make_stripe(struct kk_synth rule, enum kk_dtype dtype, int64_t rows,
                                   int64_t cols, char *dst)
{
    const int64_t tiles = kk__tiles(cols), stripes = kk__stripes(rows);
    const int64_t mat = blockIdx.x / stripes, row0 = blockIdx.x % stripes * KK_TILE_ROWS;
    uint4 *to = (uint4 *)(dst + (int64_t)blockIdx.x * tiles * KK_TILE_BYTES);
    cudaGridDependencySynchronize();
    for (int64_t u = threadIdx.x; u < tiles * 16; u += blockDim.x) {
        const int64_t row = row0 + u % 16 / 2, k = u / 16 * KK_TILE_K + u % 2 * 8;
        alignas(16) bf16 v[8];
        for (int i = 0; i < 8; i++) {
            float f = 0;
            if (row < rows && k + i < cols)
                f = kk_synth_at(&rule, (uint64_t)((mat * rows + row) * cols + k + i));
            if (dtype == KK_F16) f = __half2float(__float2half_rn(f));
            v[i] = __float2bfloat16_rn(f);
        }
        to[u] = *(uint4 *)v;
    }
}

/* ---- weight_load -------------------------------------------------------------------------- */

int kk__cuda_weight_load(struct kk_dev *dev, const struct kk_weight_src *src,
                         struct kk_account *acc, struct kk_weight *out, struct kk_err *err)
{
    struct kk_cuda *c = kk__cuda(dev);
    struct kk_weight w = {};
    const int64_t stripes = kk__stripes(src->rows) * src->n_mats;
    if (stripe_bytes(src) > KK_CUDA_RING_PART || stripes > INT32_MAX)
        return kk_fail(err, KK_ERANGE, "a weight of %d x %lld x %lld is too big", src->n_mats,
                       (long long)src->rows, (long long)src->cols);
    if (src->cols % kk_dtype_block(src->dtype))
        return kk_fail(err, KK_EFORMAT, "%lld inputs are not whole blocks of %s, which hold %u",
                       (long long)src->cols, kk_dtype_name(src->dtype), kk_dtype_block(src->dtype));
    w.dtype = KK_BF16;
    w.n_mats = src->n_mats;
    w.rows = src->rows;
    w.cols = src->cols;
    w.mat_bytes = mat_bytes(src);
    w.account = acc;
    kk__cuda_use(c);
    int rc = kk_dev_alloc(dev, acc, (size_t)w.n_mats * w.mat_bytes, &w.data, err);
    if (rc) return rc;
    if (src->synth)
        kk__launch(c, "weight_load", make_stripe, dim3((unsigned)stripes), dim3(256), 0,
                   *src->synth, src->dtype, src->rows, src->cols, (char *)w.data);
    else
        rc = stream_in(c, src, (char *)w.data, err);
    if (!rc && c->error != cudaSuccess)
        rc = kk_fail(err, KK_EDEVICE, "%s: %s: %s", dev->name, c->op, cudaGetErrorString(c->error));
    if (rc)
        kk_weight_free(dev, &w);
    else
        *out = w;
    return rc;
}
