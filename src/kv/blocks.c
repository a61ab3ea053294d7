/* A session's blocks: taken, given back, shared between forks, and made a session's own again
 * before it writes to them.
 *
 * Stored rows never change (K2), so a fork shares every block of its parent. What is written to is
 * a ring, the latents and the block at the end of a layer that keeps every row: kk_kv_begin makes
 * those own. A shared block is in the pool's account, not in a session's. */
#include <string.h>

#include "base/mem.h"
#include "kv/kv_int.h"

/* ---- one block ---- */

static void release(struct kk_kv *kv, void *p, struct shared_block *s, size_t bytes)
{
    struct kk_kv_pool *pool = kv->pool;
    if (s && --s->refs > 0) return;
    kk_dev_free(pool->dev, s ? &pool->shared : &kv->device, p, bytes);
    kk_free(s);
}

/* Make *share, if the block is not shared yet, and count one more reference. */
static int share(struct kk_kv *kv, void *p, struct shared_block **s, size_t bytes,
                 struct kk_err *err)
{
    if (!*s) {
        *s = kk_malloc(sizeof **s);
        if (!*s) return kk_fail(err, KK_ENOMEM, "out of memory to share a KV block");
        **s = (struct shared_block){.p = p, .refs = 1};
        kk_account_add(&kv->device, -(int64_t)bytes);
        kk_account_add(&kv->pool->shared, (int64_t)bytes);
    }
    (*s)->refs++;
    return 0;
}

/* Make a shared block the session's own: its first n rows are copied, unless nobody else is left.
 */
static int own(struct kk_kv *kv, void **p, struct shared_block **s, size_t bytes, int32_t n,
               size_t row_bytes, struct kk_err *err)
{
    struct kk_kv_pool *pool = kv->pool;
    void *copy;
    if (!*s) return 0;
    if ((*s)->refs == 1) {
        kk_account_add(&pool->shared, -(int64_t)bytes);
        kk_account_add(&kv->device, (int64_t)bytes);
        kk_free(*s);
        *s = NULL;
        return 0;
    }
    int rc = kk_dev_alloc(pool->dev, &kv->device, bytes, &copy, err);
    if (rc) return rc;
    if (n) pool->dev->ops->copy(pool->dev, copy, *p, (size_t)n * row_bytes);
    (*s)->refs--;
    *s = NULL;
    *p = copy;
    return 0;
}

/* ---- the blocks of a layer ---- */

static int grow_tables(struct layer_rows *y, int32_t n, struct kk_err *err)
{
    if (n <= y->cap_blocks) return 0;
    int32_t cap = y->cap_blocks ? y->cap_blocks : 4;
    while (cap < n) cap *= 2;
    void **p = kk_realloc(y->blocks, (size_t)cap, sizeof *p);
    if (p) y->blocks = p;
    struct shared_block **s = p ? kk_realloc(y->share, (size_t)cap, sizeof *s) : NULL;
    if (!s) return kk_fail(err, KK_ENOMEM, "out of memory for a KV block table");
    y->share = s;
    memset(s + y->cap_blocks, 0, (size_t)(cap - y->cap_blocks) * sizeof *s);
    y->cap_blocks = cap;
    return 0;
}

int kk__blocks_grow(struct kk_kv *kv, int l, int32_t n, struct kk_err *err)
{
    struct layer_rows *y = &kv->layer[l];
    int rc = grow_tables(y, n, err);
    while (!rc && y->n_blocks < n) {
        rc = kk_dev_alloc(kv->pool->dev, &kv->device, kk__kv_block_bytes(&kv->pool->rule[l]),
                          &y->blocks[y->n_blocks], err);
        if (!rc) y->n_blocks++;
    }
    return rc;
}

void kk__blocks_shrink(struct kk_kv *kv, int l, int32_t n)
{
    struct layer_rows *y = &kv->layer[l];
    while (y->n_blocks > n) {
        int32_t i = --y->n_blocks;
        release(kv, y->blocks[i], y->share[i], kk__kv_block_bytes(&kv->pool->rule[l]));
        y->share[i] = NULL;
    }
}

int kk__blocks_own(struct kk_kv *kv, struct kk_err *err)
{
    const struct kk_kv_pool *p = kv->pool;
    int rc = own(kv, &kv->latents, &kv->latents_share, p->latent_bytes * (size_t)p->latent_rows,
                 (int32_t)(kv->latent_at < p->latent_rows ? kv->latent_at : p->latent_rows),
                 p->latent_bytes, err);
    for (int l = 0; !rc && l < p->layout.n_layers; l++) {
        struct layer_rows *y = &kv->layer[l];
        const struct kk_kv_rule *r = &p->rule[l];
        int64_t at = r->ring ? 0 : kv->rows / KK_KV_BLOCK_ROWS;
        int64_t used = r->ring ? kk__kv_resident(r, kv->rows) : kv->rows % KK_KV_BLOCK_ROWS;
        if (kk__kv_is_paged(p, l) || at >= y->n_blocks) continue;
        rc = own(kv, &y->blocks[at], &y->share[at], kk__kv_block_bytes(r), (int32_t)used,
                 r->row_bytes, err);
    }
    return rc;
}

/* ---- fork ---- */

static int share_layer(struct kk_kv *parent, struct kk_kv *child, int l, struct kk_err *err)
{
    struct layer_rows *from = &parent->layer[l], *to = &child->layer[l];
    const size_t bytes = kk__kv_block_bytes(&parent->pool->rule[l]);
    int rc = grow_tables(to, from->n_blocks, err);
    for (int32_t i = 0; !rc && i < from->n_blocks; i++) {
        rc = share(parent, from->blocks[i], &from->share[i], bytes, err);
        if (rc) break;
        to->blocks[i] = from->blocks[i];
        to->share[i] = from->share[i];
        to->n_blocks++;
    }
    return rc;
}

int kk_kv_fork(struct kk_kv *parent, struct kk_kv **out, struct kk_err *err)
{
    struct kk_kv_pool *p = parent->pool;
    struct kk_kv *kv;
    KK_BUG_ON(p->active);
    int rc = kk_kv_check(parent, err);
    if (!rc) rc = kk__kv_new(p, &kv, err);
    if (rc) return rc;
    for (int l = 0; !rc && l < p->layout.n_layers; l++) {
        rc = kk__kv_is_paged(p, l) ? kk__tier_fork_layer(parent, kv, l, err)
                                   : share_layer(parent, kv, l, err);
        kv->layer[l].stored = parent->layer[l].stored;
    }
    if (!rc && p->latent_rows) {
        rc = share(parent, parent->latents, &parent->latents_share,
                   p->latent_bytes * (size_t)p->latent_rows, err);
        if (!rc) {
            kv->latents = parent->latents;
            kv->latents_share = parent->latents_share;
            kv->latent_at = parent->latent_at;
        }
    }
    if (rc) {
        kk_kv_close(kv);
        return rc;
    }
    kv->rows = parent->rows;
    *out = kv;
    return 0;
}

void kk__blocks_release_latents(struct kk_kv *kv)
{
    if (kv->latents)
        release(kv, kv->latents, kv->latents_share,
                kv->pool->latent_bytes * (size_t)kv->pool->latent_rows);
}

int64_t kk_kv_shared_bytes(const struct kk_kv_pool *p)
{
    return atomic_load(&p->shared.bytes);
}

int64_t kk_kv_shared_of(const struct kk_kv *kv)
{
    const struct kk_kv_pool *p = kv->pool;
    size_t n = kv->latents_share ? p->latent_bytes * (size_t)p->latent_rows : 0;
    for (int l = 0; l < p->layout.n_layers; l++)
        for (int32_t i = 0; !kk__kv_is_paged(p, l) && i < kv->layer[l].n_blocks; i++)
            if (kv->layer[l].share[i]) n += kk__kv_block_bytes(&p->rule[l]);
    return (int64_t)n;
}
