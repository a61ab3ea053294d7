/* Device memory of the CPU, and weights packed into panels (kern_int.h). */
#include <string.h>
#include <sys/mman.h>

#include "base/mem.h"
#include "dev/cpu/cpu_int.h"

#define HUGE_PAGE KK_CPU_HUGE_PAGE
#define PIECE     ((size_t)8 << 20) /* of a file, packed at once */

/* ---- memory: zeroed; on huge pages from one page up, blocks of rows (slab.c), and weights ---- */

void *kk__cpu_map(size_t bytes)
{
    size_t len = (bytes + HUGE_PAGE - 1) & ~(HUGE_PAGE - 1);
    if (len < bytes || len + HUGE_PAGE < len) return NULL;
    char *p =
        mmap(NULL, len + HUGE_PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (p == MAP_FAILED) return NULL;
    size_t head = (HUGE_PAGE - ((uintptr_t)p & (HUGE_PAGE - 1))) & (HUGE_PAGE - 1);
    if (head) munmap(p, head);
    munmap(p + head + len, HUGE_PAGE - head);
    madvise(p + head, bytes & ~(HUGE_PAGE - 1), MADV_HUGEPAGE); /* the rest on small ones */
    return p + head;
}

/* Small weights lie one behind the other in chunks, which go when all their weights have gone: what
 * was freed is never used again, so that memory is zero. Chunks follow each other in a list. */
#define CHUNK ((size_t)32 << 20)

struct kk_cpu_chunk {
    struct kk_cpu_chunk *next;
    char *base;
    size_t used;
    int live; /* weights in it */
};

static void *take_from_chunk(struct kk_cpu *c, size_t bytes)
{
    struct kk_cpu_chunk *k = c->chunks;
    bytes = (bytes + 63) & ~(size_t)63;
    if (!k || bytes > CHUNK - k->used) {
        k = kk_calloc(1, sizeof *k);
        if (!k) return NULL;
        k->base = kk__cpu_map(CHUNK);
        if (!k->base) {
            kk_free(k);
            return NULL;
        }
        k->next = c->chunks;
        c->chunks = k;
    }
    void *p = k->base + k->used;
    k->used += bytes;
    k->live++;
    return p;
}

/* 1 if p was in a chunk. */
static int give_to_chunk(struct kk_cpu *c, const char *p)
{
    for (struct kk_cpu_chunk **at = &c->chunks, *k; (k = *at); at = &k->next) {
        if (p < k->base || p >= k->base + CHUNK) continue;
        if (--k->live) return 1;
        munmap(k->base, CHUNK);
        *at = k->next;
        kk_free(k);
        return 1;
    }
    return 0;
}

void *kk__cpu_alloc(struct kk_dev *dev, size_t bytes)
{
    if (bytes < HUGE_PAGE && kk__cpu(dev)->loading) return take_from_chunk(kk__cpu(dev), bytes);
    if (bytes < HUGE_PAGE && !kk__slab_is_for(bytes)) {
        void *p = kk_aligned(64, bytes);
        return p ? memset(p, 0, bytes) : NULL;
    }
    void *probe = kk_malloc(1); /* maps obey the guard and the injected failures of base/mem.h */
    if (!probe) return NULL;
    kk_free(probe);
    return kk__slab_is_for(bytes) ? kk__slab_take(kk__cpu(dev), bytes) : kk__cpu_map(bytes);
}

void kk__cpu_free(struct kk_dev *dev, void *p, size_t bytes)
{
    if (!p || (bytes < HUGE_PAGE && give_to_chunk(kk__cpu(dev), p))) return;
    if (kk__slab_is_for(bytes))
        kk__slab_give(kk__cpu(dev), p);
    else if (bytes < HUGE_PAGE)
        kk_free(p);
    else
        munmap(p, (bytes + HUGE_PAGE - 1) & ~(HUGE_PAGE - 1));
}

/* ---- weights ---- */

static size_t mat_bytes(const struct kk_weight_src *src)
{
    return (size_t)kk__panels(src->rows) * kk_panel_bytes(src->dtype, src->cols);
}

size_t kk__cpu_weight_bytes(const struct kk_dev *dev, const struct kk_weight_src *src)
{
    (void)dev;
    return (size_t)src->n_mats * mat_bytes(src);
}

struct pack_job {
    const struct kk_weight_src *src;
    const struct kk_weight *w;
    int first;     /* panels of all matrices that are done */
    char *buffers; /* 16 source rows for each worker; NULL when the source is mapped */
    size_t buffer_bytes;
    int64_t panels; /* of a matrix */
};

typedef uint32_t word4 __attribute__((vector_size(16)));

/* dst[w][i] = word w of row i, 16 by 16. A line of every row is read at once: rows are often a
 * multiple of 4 KiB apart, and so many lines of one set would push each other out. */
static void transpose(const char *src, size_t stride, uint32_t *dst)
{
    word4 in[KK_LANES][4];
    for (int i = 0; i < KK_LANES; i++) memcpy(in[i], src + (size_t)i * stride, sizeof in[i]);
    for (int w = 0; w < 4; w++)
        for (int i = 0; i < KK_LANES; i += 4) {
            const word4 a = in[i][w], b = in[i + 1][w], c = in[i + 2][w], d = in[i + 3][w];
            const word4 ab = __builtin_shufflevector(a, b, 0, 4, 1, 5),
                        AB = __builtin_shufflevector(a, b, 2, 6, 3, 7),
                        cd = __builtin_shufflevector(c, d, 0, 4, 1, 5),
                        CD = __builtin_shufflevector(c, d, 2, 6, 3, 7);
            const word4 out[4] = {__builtin_shufflevector(ab, cd, 0, 1, 4, 5),
                                  __builtin_shufflevector(ab, cd, 2, 3, 6, 7),
                                  __builtin_shufflevector(AB, CD, 0, 1, 4, 5),
                                  __builtin_shufflevector(AB, CD, 2, 3, 6, 7)};
            for (int j = 0; j < 4; j++)
                memcpy(dst + (4 * w + j) * KK_LANES + i, &out[j], sizeof out[j]);
        }
}

/* dst[w][i] = word w of row i, for n rows `stride` bytes apart */
static void pack_words(const char *src, size_t stride, int n, int64_t words, uint32_t *dst)
{
    int64_t w = 0;
    for (; n == KK_LANES && w + 16 <= words; w += 16)
        transpose(src + w * 4, stride, dst + w * KK_LANES);
    for (; w < words; w++)
        for (int i = 0; i < n; i++)
            memcpy(&dst[w * KK_LANES + i], src + (size_t)i * stride + w * 4, 4);
}

static void pack_f16(const char *src, int n, int64_t K, uint16_t *dst)
{
    for (int64_t k = 0; k < K; k++)
        for (int i = 0; i < n; i++)
            memcpy(&dst[k * KK_LANES + i], src + (size_t)(i * K + k) * 2, 2);
}

static void pack_bf16(const char *src, int n, int64_t K, uint16_t *dst)
{
    pack_words(src, (size_t)K * 2, n, K / 2, (uint32_t *)(void *)dst);
    if (K & 1)
        for (int i = 0; i < n; i++)
            memcpy(&dst[(K / 2 * KK_LANES + i) * 2], src + (size_t)(i * K + K - 1) * 2, 2);
}

/* n rows of blocks */
static void pack_blocks(enum kk_dtype t, const char *src, int n, int64_t K, void *dst)
{
    const int groups = (int)kk_dtype_block(t) / KK_GROUP;
    for (int l = 0; l < n; l++)
        for (int64_t g = 0; g < K / KK_GROUP; g++) {
            struct kk_quant_group group;
            kk_quant_take(t, src, (int)(g % groups), &group);
            kk_q_pack(t, dst, K, g, l, &group);
            if (g % groups == groups - 1) src += kk_dtype_block_bytes(t);
        }
}

static size_t stored_bytes(enum kk_dtype t, uint64_t n)
{
    return (size_t)(n / kk_dtype_block(t) * kk_dtype_block_bytes(t));
}

/* One panel: 16 outputs, or what is left of them; the memory is zero already. */
static void pack(void *arg, int item, int worker)
{
    const struct pack_job *job = arg;
    const struct kk_weight_src *s = job->src;
    item += job->first;
    int m = (int)(item / job->panels);
    int64_t p = item % job->panels, row = p * KK_LANES;
    int n = (int)kk__min64(KK_LANES, s->rows - row);
    uint64_t first = ((uint64_t)m * (uint64_t)s->rows + (uint64_t)row) * (uint64_t)s->cols;
    void *dst = (void *)kk__panel(job->w, m, p);
    const char *from = s->data;
    if (from) {
        from += stored_bytes(s->dtype, first);
    } else {
        char *buf = job->buffers + (size_t)worker * job->buffer_bytes;
        s->read(s->ctx, first, (uint64_t)n * (uint64_t)s->cols, buf);
        from = buf;
    }
    if (kk_dtype_is_block(s->dtype))
        pack_blocks(s->dtype, from, n, s->cols, dst);
    else if (s->dtype == KK_F32)
        pack_words(from, (size_t)s->cols * 4, n, s->cols, dst);
    else if (s->dtype == KK_F16)
        pack_f16(from, n, s->cols, dst);
    else
        pack_bf16(from, n, s->cols, dst);
}

/* All panels, so many at a time that what is read of the file stays small. */
static void pack_all(struct kk_cpu *c, struct pack_job *job)
{
    const int items = (int)job->panels * job->src->n_mats;
    const size_t panel = kk_panel_bytes(job->src->dtype, job->src->cols);
    const int most = (int)kk__min64(items, (int64_t)(PIECE / panel) + 1);
    for (; job->first < items; job->first += most) {
        kk_pool_for(c->pool, (int)kk__min64(most, items - job->first), pack, job);
        if (job->src->rest) job->src->rest(job->src->ctx);
    }
}

int kk__cpu_weight_load(struct kk_dev *dev, const struct kk_weight_src *src, struct kk_account *acc,
                        struct kk_weight *out, struct kk_err *err)
{
    struct kk_cpu *c = kk__cpu(dev);
    struct kk_weight w = {.dtype = src->dtype,
                          .n_mats = src->n_mats,
                          .rows = src->rows,
                          .cols = src->cols,
                          .mat_bytes = mat_bytes(src),
                          .account = acc};
    struct pack_job job = {.src = src, .w = &w, .panels = kk__panels(src->rows)};
    if (job.panels * src->n_mats > INT32_MAX)
        return kk_fail(err, KK_ERANGE, "a weight of %d x %lld x %lld is too big", src->n_mats,
                       (long long)src->rows, (long long)src->cols);
    if (src->cols % kk_dtype_block(src->dtype))
        return kk_fail(err, KK_EFORMAT, "%lld inputs are not whole blocks of %s, which hold %u",
                       (long long)src->cols, kk_dtype_name(src->dtype), kk_dtype_block(src->dtype));
    if (!src->data) {
        job.buffer_bytes = stored_bytes(src->dtype, (uint64_t)src->cols * KK_LANES);
        job.buffers = kk_array((size_t)dev->n_threads, job.buffer_bytes);
        if (!job.buffers)
            return kk_fail(err, KK_ENOMEM, "out of memory: %zu bytes to read weights",
                           (size_t)dev->n_threads * job.buffer_bytes);
    }
    c->loading = 1;
    int rc = kk_dev_alloc(dev, acc, (size_t)w.n_mats * w.mat_bytes, &w.data, err);
    c->loading = 0;
    if (!rc) {
        pack_all(c, &job);
        *out = w;
    }
    kk_free(job.buffers);
    return rc;
}
