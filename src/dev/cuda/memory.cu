/* Memory of the GPU, pinned memory of the host, and what travels between them.
 *
 * Small device blocks come from the driver's pool, in stream order (no op waits for another's
 * free); big ones straight from the driver. What travels goes through a pinned ring of a few parts:
 * an event says when a part may be used again, so a host copy and a transfer overlap, and the
 * caller's memory is free at once. Host blocks of the KV tier are cut from slabs, each of pieces of
 * one size, since pinning costs about a millisecond a call. */
#include <string.h>

#include "dev/cuda/cuda_int.h"

enum { PARTS = 4 };
static const size_t PART = KK_CUDA_RING_PART, BIG = (size_t)32 << 20;

struct kk_upload {
    char *ring;                /* pinned [PARTS, PART] */
    cudaEvent_t passed[PARTS]; /* the transfers of a part, recorded when the next is begun */
    int part;
    size_t at; /* next free byte of the part */
};

/* ---- device ------------------------------------------------------------------------------- */

static cudaError_t keep_pool(struct kk_cuda *c)
{
    cudaMemPool_t pool;
    uint64_t all = UINT64_MAX;
    cudaError_t e = cudaDeviceGetDefaultMemPool(&pool, c->index);
    if (e == cudaSuccess) e = cudaMemPoolSetAttribute(pool, cudaMemPoolAttrReleaseThreshold, &all);
    return e;
}

static cudaError_t take(struct kk_cuda *c, void **p, size_t bytes)
{
    return bytes < BIG ? cudaMallocAsync(p, bytes, c->stream) : cudaMalloc(p, bytes);
}

/* What the pool keeps for later goes back to the driver. */
static void trim(struct kk_cuda *c)
{
    cudaMemPool_t pool;
    cudaGetLastError();
    cudaStreamSynchronize(c->stream);
    if (cudaDeviceGetDefaultMemPool(&pool, c->index) == cudaSuccess) cudaMemPoolTrimTo(pool, 0);
}

void *kk__cuda_alloc(struct kk_dev *dev, size_t bytes)
{
    struct kk_cuda *c = kk__cuda(dev);
    void *p = NULL, *probe = kk_malloc(1); /* obeys the guard and the failures of base/mem.h */
    if (!probe) return NULL;
    kk_free(probe);
    kk__cuda_use(c);
    cudaError_t e = take(c, &p, bytes);
    if (e == cudaErrorMemoryAllocation) {
        trim(c);
        e = take(c, &p, bytes);
    }
    if (e == cudaErrorMemoryAllocation) {
        cudaGetLastError();
        return NULL;
    }
    if (e == cudaSuccess) e = cudaMemsetAsync(p, 0, bytes, c->stream);
    kk__cuda_latch(c, e, "alloc");
    return e == cudaSuccess ? p : NULL;
}

void kk__cuda_free(struct kk_dev *dev, void *p, size_t bytes)
{
    struct kk_cuda *c = kk__cuda(dev);
    if (!p) return;
    kk__cuda_use(c);
    if (bytes < BIG) {
        kk__cuda_latch(c, cudaFreeAsync(p, c->stream), "free");
        return;
    }
    kk__cuda_latch(c, cudaStreamSynchronize(c->stream), "free");
    kk__cuda_latch(c, cudaFree(p), "free");
}

size_t kk__cuda_free_bytes(struct kk_dev *dev)
{
    size_t left = 0, total = 0;
    kk__cuda_use(kk__cuda(dev));
    trim(kk__cuda(dev));
    kk__cuda_latch(kk__cuda(dev), cudaMemGetInfo(&left, &total), "cudaMemGetInfo");
    return left;
}

/* ---- host: slabs -------------------------------------------------------------------------- */

struct kk_slab {
    struct kk_slab *next;
    char *base;
    size_t piece;    /* bytes of each of n */
    int32_t n, free; /* pieces, and how many of them `spare` lists */
    int32_t spare[];
};

static const size_t SLAB_LEAST = (size_t)1 << 20, SLAB_MOST = (size_t)256 << 20;

static size_t piece_of(size_t bytes)
{
    return (bytes + 4095) & ~(size_t)4095;
}

/* A slab as big as all that hold pieces of this size together, within bounds. */
static struct kk_slab *new_slab(struct kk_cuda *c, size_t piece)
{
    size_t bytes = 0;
    void *base = NULL;
    for (const struct kk_slab *s = c->slabs; s; s = s->next)
        if (s->piece == piece) bytes += piece * (size_t)s->n;
    if (bytes < SLAB_LEAST) bytes = SLAB_LEAST;
    if (bytes > SLAB_MOST) bytes = SLAB_MOST;
    const size_t n = bytes < piece ? 1 : bytes / piece;
    struct kk_slab *s = (struct kk_slab *)kk_calloc(1, sizeof *s + n * sizeof *s->spare);
    if (!s) return NULL;
    if (cudaHostAlloc(&base, n * piece, cudaHostAllocMapped | cudaHostAllocPortable) !=
        cudaSuccess) {
        cudaGetLastError();
        kk_free(s);
        return NULL;
    }
    s->base = (char *)base;
    s->piece = piece;
    s->n = s->free = (int32_t)n;
    for (int32_t i = 0; i < s->n; i++) s->spare[i] = s->n - 1 - i;
    s->next = c->slabs;
    c->slabs = s;
    kk_account_add(&c->pinned, (int64_t)(n * piece));
    return s;
}

static void drop_slab(struct kk_cuda *c, struct kk_slab **at)
{
    struct kk_slab *s = *at;
    *at = s->next;
    kk_account_add(&c->pinned, -(int64_t)((size_t)s->n * s->piece));
    kk__cuda_latch(c, cudaFreeHost(s->base), "host_free");
    kk_free(s);
}

void *kk__cuda_host_alloc(struct kk_dev *dev, size_t bytes)
{
    struct kk_cuda *c = kk__cuda(dev);
    const size_t piece = piece_of(bytes);
    struct kk_slab *s = c->slabs;
    kk__cuda_use(c);
    while (s && (s->piece != piece || !s->free)) s = s->next;
    if (!s) s = new_slab(c, piece);
    return s ? s->base + (size_t)s->spare[--s->free] * piece : NULL;
}

void kk__cuda_host_free(struct kk_dev *dev, void *p, size_t bytes)
{
    struct kk_cuda *c = kk__cuda(dev);
    struct kk_slab **at = &c->slabs;
    if (!p) return;
    const size_t piece = piece_of(bytes);
    while (*at && ((*at)->piece != piece || (char *)p < (*at)->base ||
                   (char *)p >= (*at)->base + (size_t)(*at)->n * piece))
        at = &(*at)->next;
    struct kk_slab *s = *at;
    KK_BUG_ON(!s);
    s->spare[s->free++] = (int32_t)((size_t)((char *)p - s->base) / piece);
    if (s->free < s->n) return;
    kk__cuda_use(c);
    kk__cuda_latch(c, cudaStreamSynchronize(c->stream), "host_free"); /* kernels may read it */
    drop_slab(c, at);
}

/* ---- travelling --------------------------------------------------------------------------- */

char *kk__cuda_ring(struct kk_cuda *c, size_t bytes)
{
    struct kk_upload *u = c->upload;
    if (u->at + bytes > PART) {
        kk__cuda_latch(c, cudaEventRecord(u->passed[u->part], c->stream), "upload");
        u->part = (u->part + 1) % PARTS;
        u->at = 0;
        kk__cuda_latch(c, cudaEventSynchronize(u->passed[u->part]), "upload");
    }
    char *p = u->ring + (size_t)u->part * PART + u->at;
    u->at += (bytes + 63) & ~(size_t)63;
    return p;
}

void kk__cuda_upload(struct kk_dev *dev, void *dst, const void *src, size_t bytes)
{
    struct kk_cuda *c = kk__cuda(dev);
    kk__cuda_use(c);
    for (size_t at = 0; at < bytes;) {
        const size_t n = bytes - at < PART ? bytes - at : PART;
        char *p = kk__cuda_ring(c, n);
        memcpy(p, (const char *)src + at, n);
        kk__cuda_latch(c,
                       cudaMemcpyAsync((char *)dst + at, p, n, cudaMemcpyHostToDevice, c->stream),
                       "upload");
        at += n;
    }
}

/* Each chunk is copied out of the ring while the next one travels: taking room for that one
 * recorded the event of this one's part. */
void kk__cuda_download(struct kk_dev *dev, void *dst, const void *src, size_t bytes)
{
    struct kk_cuda *c = kk__cuda(dev);
    if (kk__cuda_holds(c)) kk__cuda_release(c);
    const char *before = NULL;
    size_t at = 0, n_before = 0;
    int part_before = 0;
    kk__cuda_use(c);
    while (at < bytes) {
        const size_t n = bytes - at < PART ? bytes - at : PART;
        char *p = kk__cuda_ring(c, bytes > PART ? PART : n);
        kk__cuda_latch(
            c, cudaMemcpyAsync(p, (const char *)src + at, n, cudaMemcpyDeviceToHost, c->stream),
            "download");
        if (before) {
            kk__cuda_latch(c, cudaEventSynchronize(c->upload->passed[part_before]), "download");
            memcpy((char *)dst + at - n_before, before, n_before);
        }
        before = p;
        n_before = n;
        part_before = c->upload->part;
        at += n;
    }
    kk__cuda_latch(c, cudaStreamSynchronize(c->stream), "download");
    if (before) memcpy((char *)dst + bytes - n_before, before, n_before);
}

void kk__cuda_copy(struct kk_dev *dev, void *dst, const void *src, size_t bytes)
{
    struct kk_cuda *c = kk__cuda(dev);
    if (kk__cuda_holds(c)) kk__cuda_release(c);
    kk__cuda_use(c);
    if (bytes)
        kk__cuda_latch(c, cudaMemcpyAsync(dst, src, bytes, cudaMemcpyDefault, c->stream), "copy");
}

void kk__cuda_page_out(struct kk_dev *dev, void *dst, const void *src, size_t bytes)
{
    struct kk_cuda *c = kk__cuda(dev);
    kk__cuda_use(c);
    kk__cuda_latch(c, cudaMemcpyAsync(dst, src, bytes, cudaMemcpyDeviceToHost, c->stream),
                   "page_out");
}

/* ---- open, close -------------------------------------------------------------------------- */

int kk__cuda_memory_open(struct kk_cuda *c, struct kk_err *err)
{
    void *ring = NULL;
    struct kk_upload *u = (struct kk_upload *)kk_calloc(1, sizeof *u);
    if (!u) return kk_fail(err, KK_ENOMEM, "out of memory for a device");
    c->upload = u;
    cudaError_t e = keep_pool(c);
    if (e == cudaSuccess) e = cudaHostAlloc(&ring, PARTS * PART, cudaHostAllocDefault);
    u->ring = (char *)ring;
    if (ring) kk_account_add(&c->pinned, PARTS * (int64_t)PART);
    for (int i = 0; e == cudaSuccess && i < PARTS; i++)
        e = cudaEventCreateWithFlags(&u->passed[i], cudaEventDisableTiming);
    if (e == cudaSuccess) return 0;
    return kk_fail(err, e == cudaErrorMemoryAllocation ? KK_ENOMEM : KK_EUNAVAILABLE,
                   "cuda:%d: no pinned memory: %s", c->index, cudaGetErrorString(e));
}

void kk__cuda_memory_close(struct kk_cuda *c)
{
    struct kk_upload *u = c->upload;
    while (c->slabs) drop_slab(c, &c->slabs);
    for (int i = 0; u && i < PARTS; i++)
        if (u->passed[i]) cudaEventDestroy(u->passed[i]);
    if (u && u->ring) cudaFreeHost(u->ring);
    kk_free(u);
}
