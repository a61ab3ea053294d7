/* Saving a session's rows, and filling a fresh session with them: page-out, fork over a restart,
 * chat files. What is saved is what is stored, layer by layer: of a ring its slots, of a layer that
 * keeps every row its rows in order, then the ring of latents. */
#include "base/mem.h"
#include "kv/kv_int.h"

/* Rows of block i of a layer that hold something. */
static int32_t rows_of_block(int32_t i, int64_t rows)
{
    int64_t left = rows - (int64_t)i * KK_KV_BLOCK_ROWS;
    return (int32_t)(left > KK_KV_BLOCK_ROWS ? KK_KV_BLOCK_ROWS : left);
}

static int32_t blocks_of_layer(int64_t rows)
{
    return (int32_t)((rows + KK_KV_BLOCK_ROWS - 1) / KK_KV_BLOCK_ROWS);
}

static int64_t latents_held(const struct kk_kv_pool *p, int64_t rows)
{
    return rows < p->latent_rows ? rows : p->latent_rows;
}

int64_t kk_kv_saved_bytes(const struct kk_kv_pool *p, int64_t rows)
{
    int64_t n = latents_held(p, rows) * (int64_t)p->latent_bytes;
    for (int l = 0; l < p->layout.n_layers; l++)
        n += kk__kv_resident(&p->rule[l], rows) * (int64_t)p->rule[l].row_bytes;
    return n;
}

static size_t bounce_bytes(const struct kk_kv_pool *p)
{
    size_t most = p->latent_bytes * (size_t)p->latent_rows;
    for (int l = 0; l < p->layout.n_layers; l++)
        if (kk__kv_block_bytes(&p->rule[l]) > most) most = kk__kv_block_bytes(&p->rule[l]);
    return most;
}

/* Where block i of layer l is in host memory, or NULL: it is on the device, at layer[l].blocks[i].
 */
static void *host_block(const struct kk_kv *kv, int l, int32_t i)
{
    return kk__kv_is_paged(kv->pool, l) && i >= kv->pool->resident - 1 ? kv->layer[l].host[i]
                                                                       : NULL;
}

/* The first n slots of a ring, through bounce: they are rows 0 .. n - 1 of one that is not full. */
static int save_ring(struct kk_dev *dev, const struct ring_rows *r, const struct ring_shape *y,
                     int64_t n, char *bounce, const struct kk_io *sink, struct kk_err *err)
{
    for (int32_t i = 0, run; i < n; i += run) {
        run = (int32_t)n - i;
        const char *at = kk__ring_run(r, y, i, &run);
        dev->ops->download(dev, bounce + (size_t)i * y->row_bytes, at, (size_t)run * y->row_bytes);
    }
    return kk_io(sink, bounce, (size_t)n * y->row_bytes, err);
}

/* The same of a session that was just opened, whose ring is in one run. */
static int load_ring(struct kk_dev *dev, struct ring_rows *r, const struct ring_shape *y, int64_t n,
                     char *bounce, const struct kk_io *source, struct kk_err *err)
{
    const size_t bytes = (size_t)n * y->row_bytes;
    int rc = kk_io(source, bounce, bytes, err);
    KK_BUG_ON(r->base_share);
    if (!rc) dev->ops->upload(dev, r->base, bounce, bytes);
    return rc;
}

static int save_blocks(const struct kk_kv *kv, int l, char *bounce, const struct kk_io *sink,
                       struct kk_err *err)
{
    const struct kk_kv_pool *p = kv->pool;
    int rc = 0;
    for (int32_t i = 0; !rc && i < blocks_of_layer(kv->rows); i++) {
        const int32_t held = rows_of_block(i, kv->rows);
        size_t bytes = (size_t)held * p->rule[l].row_bytes;
        void *from = held == KK_KV_BLOCK_ROWS ? host_block(kv, l, i) : NULL;
        if (!from) {
            p->dev->ops->download(p->dev, bounce, kv->layer[l].blocks[i], bytes);
            from = bounce;
        }
        rc = kk_io(sink, from, bytes, err);
    }
    return rc;
}

static int load_blocks(struct kk_kv *kv, int l, int64_t rows, char *bounce,
                       const struct kk_io *source, struct kk_err *err)
{
    const struct kk_kv_pool *p = kv->pool;
    int rc = 0;
    if (kk__kv_is_paged(p, l)) kk__tier_place(kv, l, rows);
    for (int32_t i = 0; !rc && i < blocks_of_layer(rows); i++) {
        const int32_t held = rows_of_block(i, rows);
        size_t bytes = (size_t)held * p->rule[l].row_bytes;
        void *to = held == KK_KV_BLOCK_ROWS ? host_block(kv, l, i) : NULL;
        rc = kk_io(source, to ? to : bounce, bytes, err);
        if (!rc && !to) p->dev->ops->upload(p->dev, kv->layer[l].blocks[i], bounce, bytes);
    }
    return rc;
}

int kk_kv_save(const struct kk_kv *kv, const struct kk_io *sink, struct kk_err *err)
{
    struct kk_kv_pool *p = kv->pool;
    const struct ring_shape latents = kk__latent_ring(p);
    int rc = kk_kv_check(kv, err);
    char *bounce = rc ? NULL : kk_malloc(bounce_bytes(p));
    if (!rc && !bounce) rc = kk_fail(err, KK_ENOMEM, "out of memory to save a session");
    p->dev->ops->download(p->dev, bounce, NULL, 0); /* what was paged out is there */
    for (int l = 0; !rc && l < p->layout.n_layers; l++) {
        const struct ring_shape ring = kk__ring_of(&p->rule[l]);
        rc = p->rule[l].ring ? save_ring(p->dev, &kv->layer[l].ring, &ring,
                                         kk__kv_resident(&p->rule[l], kv->rows), bounce, sink, err)
                             : save_blocks(kv, l, bounce, sink, err);
    }
    if (!rc && p->latent_rows)
        rc =
            save_ring(p->dev, &kv->latents, &latents, latents_held(p, kv->rows), bounce, sink, err);
    kk_free(bounce);
    return rc;
}

static int load_layers(struct kk_kv *kv, int64_t rows, char *bounce, const struct kk_io *source,
                       struct kk_err *err)
{
    struct kk_kv_pool *p = kv->pool;
    const struct ring_shape latents = kk__latent_ring(p);
    int rc = 0;
    for (int l = 0; !rc && l < p->layout.n_layers; l++) {
        const struct ring_shape ring = kk__ring_of(&p->rule[l]);
        rc = p->rule[l].ring ? load_ring(p->dev, &kv->layer[l].ring, &ring,
                                         kk__kv_resident(&p->rule[l], rows), bounce, source, err)
                             : load_blocks(kv, l, rows, bounce, source, err);
        if (!rc) kv->layer[l].stored = rows;
    }
    if (!rc && p->latent_rows)
        rc = load_ring(p->dev, &kv->latents, &latents, latents_held(p, rows), bounce, source, err);
    return rc;
}

int kk_kv_load(struct kk_kv *kv, int64_t rows, const struct kk_io *source, struct kk_err *err)
{
    struct kk_kv_pool *p = kv->pool;
    KK_BUG_ON(kv->rows || p->active);
    if (rows < 0 || rows >= KK_NO_BOUND)
        return kk_fail(err, KK_EFORMAT, "a session of %lld rows", (long long)rows);
    if (!rows) return 0;
    int rc = kk__kv_reserve(kv, (int32_t)rows, err);
    char *bounce = rc ? NULL : kk_malloc(bounce_bytes(p));
    if (!rc && !bounce) rc = kk_fail(err, KK_ENOMEM, "out of memory to load a session");
    if (!rc) rc = load_layers(kv, rows, bounce, source, err);
    kk_free(bounce);
    kv->rows = rows;
    kv->latent_at = p->latent_rows ? rows : 0;
    kv->broken = rc != 0;
    return rc;
}
