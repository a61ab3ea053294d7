/* Saving a session's rows, and filling a fresh session with them: page-out, files. What is saved is
 * what is stored, layer by layer: of a ring its slots, of a layer that keeps every row its rows in
 * order, then the ring of latents. With a keeper (keep.h) each ring and each block begins with a
 * mark that says whether it is the session's own or one that the keeper has. */
#include <string.h>

#include "base/mem.h"
#include "kv/kv_int.h"

static int32_t blocks_of_layer(int64_t rows)
{
    return (int32_t)((rows + KK_KV_BLOCK_ROWS - 1) / KK_KV_BLOCK_ROWS);
}

static size_t held_bytes(const struct kk_kv_pool *p, int l, int32_t i, int64_t rows)
{
    return (size_t)kk__kv_rows_of_block(i, rows) * p->rule[l].row_bytes;
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

static int begin(struct kk__transfer *t)
{
    const struct kk_kv_pool *p = t->kv->pool;
    size_t most = p->latent_bytes * (size_t)p->latent_rows;
    for (int l = 0; l < p->layout.n_layers; l++)
        if (kk__kv_block_bytes(&p->rule[l]) > most) most = kk__kv_block_bytes(&p->rule[l]);
    t->bounce = kk_malloc(most);
    return t->bounce ? 0 : kk_fail(t->err, KK_ENOMEM, "out of memory to save or load a session");
}

/* ---- parts of a stream -------------------------------------------------------------------- */

int kk__save_mark(struct kk__transfer *t, uint32_t mark)
{
    return kk_io(t->io, &mark, sizeof mark, t->err);
}

int kk__load_mark(struct kk__transfer *t, uint32_t below, uint32_t *mark)
{
    int rc = kk_io(t->io, mark, sizeof *mark, t->err);
    if (rc || *mark < below) return rc;
    return kk_fail(t->err, KK_EFORMAT, "a saved session has a mark of %u: it must be below %u",
                   *mark, below);
}

int kk__save_bytes(struct kk__transfer *t, const void *from, size_t bytes)
{
    struct kk_dev *dev = t->kv->pool->dev;
    dev->ops->download(dev, t->bounce, from, bytes);
    return kk_io(t->io, t->bounce, bytes, t->err);
}

int kk__load_bytes(struct kk__transfer *t, void *to, size_t bytes)
{
    struct kk_dev *dev = t->kv->pool->dev;
    int rc = kk_io(t->io, t->bounce, bytes, t->err);
    if (!rc) dev->ops->upload(dev, to, t->bounce, bytes);
    return rc;
}

/* ---- blocks that are shared --------------------------------------------------------------- */

int kk__save_block(struct kk__transfer *t, struct shared_block *s, int lasting)
{
    struct kk_kv_pool *p = t->kv->pool;
    void *into = NULL;
    if (!t->keeper || !s) return 0;
    struct kk_kv_kept b = {s->number, s->used, s->on_host ? 0 : s->bytes, lasting, s->refs == 1};
    int rc = t->keeper->keep(t->keeper->arg, &b, &into, t->err);
    if (rc) return rc == KK_ENOENT ? 0 : rc;
    if (!s->number) kk__block_number(p, s, b.number);
    if (into && s->on_host)
        memcpy(into, s->p, s->used);
    else if (into)
        p->dev->ops->download(p->dev, into, s->p, s->used);
    return 1;
}

/* A block of the keeper's into memory of its own. */
static int bring(struct kk__transfer *t, const struct kk_kv_kept *b, struct shared_block *s)
{
    struct kk_kv_pool *p = t->kv->pool;
    struct kk_err why = {0};
    const void *from = NULL;
    int rc = t->keeper->fetch(t->keeper->arg, b, t->bounce, &from, t->err);
    if (rc) return rc;
    if (!s->on_host) {
        rc = kk_dev_alloc(p->dev, &p->shared, s->bytes, &s->p, t->err);
        if (!rc) p->dev->ops->upload(p->dev, s->p, from, s->used);
        return rc;
    }
    s->p = kk__tier_host_alloc(p, s->bytes, &why);
    if (!s->p) return kk_fail(t->err, why.code, "%s", why.msg);
    memcpy(s->p, from, s->used);
    return 0;
}

int kk__load_block(struct kk__transfer *t, size_t bytes, size_t least, int on_host,
                   struct shared_block **out)
{
    struct kk_kv_pool *p = t->kv->pool;
    struct kk_kv_kept b;
    int rc = t->keeper->next(t->keeper->arg, &b, t->err);
    if (rc) return rc;
    struct shared_block *s = kk__block_find(p, b.number);
    if (b.bytes < least || b.bytes > bytes || (s && (s->bytes != bytes || s->on_host != on_host)))
        return kk_fail(t->err, KK_EFORMAT, "a shared block of %zu bytes where %zu to %zu belong",
                       b.bytes, least, bytes);
    if (s) {
        s->refs++;
        *out = s;
        return 0;
    }
    s = kk_malloc(sizeof *s);
    if (!s) return kk_fail(t->err, KK_ENOMEM, "out of memory to share a KV block");
    *s = (struct shared_block){.refs = 1, .on_host = on_host, .bytes = bytes, .used = b.bytes};
    rc = bring(t, &b, s);
    if (rc) {
        kk_free(s);
        return rc;
    }
    kk__block_number(p, s, b.number);
    *out = s;
    return 0;
}

int kk_kv_holds(const struct kk_kv_pool *p, uint64_t number)
{
    return kk__block_find(p, number) != NULL;
}

/* ---- layers that keep every row ----------------------------------------------------------- */

/* Full block i of layer l is in host memory. */
static int is_out(const struct kk_kv *kv, int l, int32_t i, int64_t rows)
{
    return kk__kv_is_paged(kv->pool, l) && i >= kv->pool->resident - 1 &&
           kk__kv_rows_of_block(i, rows) == KK_KV_BLOCK_ROWS;
}

static int save_blocks(struct kk__transfer *t, int l)
{
    const struct kk_kv *kv = t->kv;
    const struct layer_rows *y = &kv->layer[l];
    int rc = 0;
    for (int32_t i = 0; !rc && i < blocks_of_layer(kv->rows); i++) {
        const int out = is_out(kv, l, i, kv->rows);
        const size_t bytes = held_bytes(kv->pool, l, i, kv->rows);
        struct shared_block *s = out || !kk__kv_is_paged(kv->pool, l) ? y->share[i] : NULL;
        KK_BUG_ON(s && s->used != bytes);
        const int kept =
            kk__save_block(t, s, kk__kv_rows_of_block(i, kv->rows) == KK_KV_BLOCK_ROWS);
        if (kept < 0) return kept;
        if (t->keeper) rc = kk__save_mark(t, kept ? KK__SHARED : KK__OWN);
        if (rc || kept) continue;
        rc = out ? kk_io(t->io, y->host[i], bytes, t->err) : kk__save_bytes(t, y->blocks[i], bytes);
    }
    return rc;
}

/* Block i of layer l, the session's own. */
static int load_own(struct kk__transfer *t, int l, int32_t i, int64_t rows)
{
    struct kk_kv *kv = t->kv;
    const size_t bytes = held_bytes(kv->pool, l, i, rows);
    int rc = 0;
    if (is_out(kv, l, i, rows)) {
        rc = kk__tier_own_block(kv, l, i, t->err);
        return rc ? rc : kk_io(t->io, kv->layer[l].host[i], bytes, t->err);
    }
    if (!kk__kv_is_paged(kv->pool, l)) rc = kk__blocks_grow(kv, l, i + 1, t->err);
    return rc ? rc : kk__load_bytes(t, kv->layer[l].blocks[i], bytes);
}

static int load_shared(struct kk__transfer *t, int l, int32_t i, int64_t rows)
{
    struct kk_kv *kv = t->kv;
    const size_t bytes = held_bytes(kv->pool, l, i, rows);
    struct shared_block *s;
    if (!kk__kv_is_paged(kv->pool, l)) return kk__blocks_join(t, l, bytes);
    if (!is_out(kv, l, i, rows))
        return kk_fail(t->err, KK_EFORMAT, "a shared block in a session's own place");
    int rc = kk__load_block(t, bytes, bytes, 1, &s);
    if (!rc) kk__tier_join(kv, l, i, s);
    return rc;
}

static int load_blocks(struct kk__transfer *t, int l, int64_t rows)
{
    struct kk_kv *kv = t->kv;
    int rc = 0;
    if (kk__kv_is_paged(kv->pool, l)) {
        if (!kv->layer[l].slot) rc = kk__tier_open_layer(kv, l, t->err);
        if (!rc) rc = kk__tier_tables(kv, l, rows, t->err);
        if (!rc) kk__tier_place(kv, l, rows);
    }
    for (int32_t i = 0; !rc && i < blocks_of_layer(rows); i++) {
        uint32_t mark = KK__OWN;
        if (t->keeper) rc = kk__load_mark(t, KK__SHARED + 1, &mark);
        if (!rc) rc = mark == KK__SHARED ? load_shared(t, l, i, rows) : load_own(t, l, i, rows);
    }
    return rc;
}

/* ---- sessions ----------------------------------------------------------------------------- */

int kk_kv_save_shared(const struct kk_kv *kv, const struct kk_io *sink,
                      const struct kk_kv_keeper *keeper, struct kk_err *err)
{
    struct kk_kv_pool *p = kv->pool;
    struct kk__transfer t = {(struct kk_kv *)(size_t)kv, sink, keeper, NULL, err};
    const struct ring_shape latents = kk__latent_ring(p);
    int rc = kk_kv_check(kv, err);
    if (!rc) rc = begin(&t);
    p->dev->ops->download(p->dev, t.bounce, NULL, 0); /* what was paged out is there */
    for (int l = 0; !rc && l < p->layout.n_layers; l++) {
        const struct ring_shape ring = kk__ring_of(&p->rule[l]);
        rc = p->rule[l].ring ? kk__ring_save(&t, &kv->layer[l].ring, &ring,
                                             kk__kv_resident(&p->rule[l], kv->rows))
                             : save_blocks(&t, l);
    }
    if (!rc && p->latent_rows)
        rc = kk__ring_save(&t, &kv->latents, &latents, latents_held(p, kv->rows));
    kk_free(t.bounce);
    return rc;
}

int kk_kv_save(const struct kk_kv *kv, const struct kk_io *sink, struct kk_err *err)
{
    return kk_kv_save_shared(kv, sink, NULL, err);
}

static int load_layers(struct kk__transfer *t, int64_t rows)
{
    struct kk_kv *kv = t->kv;
    struct kk_kv_pool *p = kv->pool;
    const struct ring_shape latents = kk__latent_ring(p);
    int rc = 0;
    for (int l = 0; !rc && l < p->layout.n_layers; l++) {
        const struct ring_shape ring = kk__ring_of(&p->rule[l]);
        rc = p->rule[l].ring
                 ? kk__ring_load(t, &kv->layer[l].ring, &ring, kk__kv_resident(&p->rule[l], rows))
                 : load_blocks(t, l, rows);
        if (!rc) kv->layer[l].stored = rows;
    }
    if (!rc && p->latent_rows) rc = kk__ring_load(t, &kv->latents, &latents, latents_held(p, rows));
    return rc;
}

int kk_kv_load_shared(struct kk_kv *kv, int64_t rows, const struct kk_io *source,
                      const struct kk_kv_keeper *keeper, struct kk_err *err)
{
    struct kk__transfer t = {kv, source, keeper, NULL, err};
    KK_BUG_ON(kv->rows || kv->pool->active);
    if (rows < 0 || rows >= KK_NO_BOUND)
        return kk_fail(err, KK_EFORMAT, "a session of %lld rows", (long long)rows);
    int rc = begin(&t);
    if (!rc) rc = load_layers(&t, rows);
    kk_free(t.bounce);
    kv->rows = rows;
    kv->latent_at = kv->pool->latent_rows ? rows : 0;
    kv->broken = rc != 0;
    return rc;
}

int kk_kv_load(struct kk_kv *kv, int64_t rows, const struct kk_io *source, struct kk_err *err)
{
    return kk_kv_load_shared(kv, rows, source, NULL, err);
}
