/* A session's blocks: taken, given back, shared between forks, and made a session's own again
 * before it writes to them.
 *
 * Stored rows never change (K2), so a fork shares every block of its parent. What is written to are
 * pieces of rings (ring.c) and the block at the end of a layer that keeps every row: kk_kv_begin
 * makes those own. A shared block is in the pool's account, not in a session's. */
#include <string.h>

#include "base/mem.h"
#include "base/rng.h"
#include "kv/kv_int.h"

/* ---- one block ---- */

void kk__block_release(struct kk_kv *kv, void *p, struct shared_block *s, size_t bytes)
{
    struct kk_kv_pool *pool = kv->pool;
    if (s && --s->refs > 0) return;
    kk_dev_free(pool->dev, s ? &pool->shared : &kv->device, p, bytes);
    kk__block_free(pool, s);
}

static struct shared_block **list_of(const struct kk_kv_pool *p, uint64_t number)
{
    return (struct shared_block **)&p->numbered[kk_mix64(number) % KK_KV_NUMBERED];
}

struct shared_block *kk__block_find(const struct kk_kv_pool *p, uint64_t number)
{
    struct shared_block *s = *list_of(p, number);
    while (s && s->number != number) s = s->next;
    return s;
}

void kk__block_number(struct kk_kv_pool *p, struct shared_block *s, uint64_t number)
{
    struct shared_block **list = list_of(p, number);
    KK_BUG_ON(s->number || !number);
    s->number = number;
    s->next = *list;
    *list = s;
}

void kk__block_free(struct kk_kv_pool *p, struct shared_block *s)
{
    if (s && s->number) {
        struct shared_block **at = list_of(p, s->number);
        while (*at != s) at = &(*at)->next;
        *at = s->next;
    }
    kk_free(s);
}

int kk__block_share(struct kk_account *own, struct kk_account *shared, void *p,
                    struct shared_block **s, size_t bytes, size_t used, struct kk_err *err)
{
    if (!*s) {
        *s = kk_malloc(sizeof **s);
        if (!*s) return kk_fail(err, KK_ENOMEM, "out of memory to share a KV block");
        **s = (struct shared_block){
            .p = p, .refs = 1, .on_host = !shared, .bytes = bytes, .used = used};
        kk_account_add(own, -(int64_t)bytes);
        if (shared) kk_account_add(shared, (int64_t)bytes);
    }
    (*s)->refs++;
    return 0;
}

void kk__block_unshare(struct kk_kv *kv, struct shared_block **s, size_t bytes)
{
    KK_BUG_ON((*s)->refs != 1);
    kk_account_add(&kv->pool->shared, -(int64_t)bytes);
    kk_account_add(&kv->device, (int64_t)bytes);
    kk__block_free(kv->pool, *s);
    *s = NULL;
}

int kk__block_own(struct kk_kv *kv, void **p, struct shared_block **s, size_t bytes, size_t used,
                  struct kk_err *err)
{
    struct kk_kv_pool *pool = kv->pool;
    void *copy;
    if (!*s) return 0;
    if ((*s)->refs == 1) {
        kk__block_unshare(kv, s, bytes);
        return 0;
    }
    int rc = kk_dev_alloc(pool->dev, &kv->device, bytes, &copy, err);
    if (rc) return rc;
    if (used) pool->dev->ops->copy(pool->dev, copy, *p, used);
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
        kk__block_release(kv, y->blocks[i], y->share[i], kk__kv_block_bytes(&kv->pool->rule[l]));
        y->share[i] = NULL;
    }
}

int kk__blocks_join(struct kk__transfer *t, int l, size_t held)
{
    struct layer_rows *y = &t->kv->layer[l];
    struct shared_block *s;
    int rc = grow_tables(y, y->n_blocks + 1, t->err);
    if (!rc) rc = kk__load_block(t, kk__kv_block_bytes(&t->kv->pool->rule[l]), held, 0, &s);
    if (rc) return rc;
    y->blocks[y->n_blocks] = s->p;
    y->share[y->n_blocks++] = s;
    return 0;
}

/* Of layer l: the block that the next row goes to, if there is one already. */
static int own_tail(struct kk_kv *kv, int l, struct kk_err *err)
{
    struct layer_rows *y = &kv->layer[l];
    const struct kk_kv_rule *r = &kv->pool->rule[l];
    const int64_t at = kv->rows / KK_KV_BLOCK_ROWS;
    if (kk__kv_is_paged(kv->pool, l) || at >= y->n_blocks) return 0;
    return kk__block_own(kv, &y->blocks[at], &y->share[at], kk__kv_block_bytes(r),
                         (size_t)(kv->rows % KK_KV_BLOCK_ROWS) * r->row_bytes, err);
}

int kk__blocks_own(struct kk_kv *kv, int32_t n, struct kk_err *err)
{
    const struct kk_kv_pool *p = kv->pool;
    const struct ring_shape latents = kk__latent_ring(p);
    int rc = kk__ring_own(kv, &kv->latents, &latents, kv->latent_at, n, err);
    for (int l = 0; !rc && l < p->layout.n_layers; l++) {
        const struct ring_shape ring = kk__ring_of(&p->rule[l]);
        rc = p->rule[l].ring ? kk__ring_own(kv, &kv->layer[l].ring, &ring, kv->rows, n, err)
                             : own_tail(kv, l, err);
    }
    return rc;
}

int64_t kk_kv_growth(const struct kk_kv *kv, int32_t n)
{
    const struct kk_kv_pool *p = kv->pool;
    const struct ring_shape latents = kk__latent_ring(p);
    const int64_t at = kv->rows / KK_KV_BLOCK_ROWS;
    const int64_t need = (kv->rows + n + KK_KV_BLOCK_ROWS - 1) / KK_KV_BLOCK_ROWS;
    int64_t bytes = kk__ring_growth(&kv->latents, &latents, kv->latent_at, n);
    for (int l = 0; l < p->layout.n_layers; l++) {
        const struct layer_rows *y = &kv->layer[l];
        const struct ring_shape ring = kk__ring_of(&p->rule[l]);
        const struct shared_block *tail = at < y->n_blocks ? y->share[at] : NULL;
        if (p->rule[l].ring)
            bytes += kk__ring_growth(&y->ring, &ring, kv->rows, n);
        else if (!kk__kv_is_paged(p, l))
            bytes += (need - y->n_blocks + (tail && tail->refs > 1)) *
                     (int64_t)kk__kv_block_bytes(&p->rule[l]);
    }
    return bytes;
}

/* ---- fork ---- */

/* A block that holds nothing yet (a step kept less than it had room for) is not shared: only the
 * block that the next row goes to is made own before it is written to. */
static int share_layer(struct kk_kv *parent, struct kk_kv *child, int l, struct kk_err *err)
{
    struct layer_rows *from = &parent->layer[l], *to = &child->layer[l];
    const struct kk_kv_rule *r = &parent->pool->rule[l];
    int rc = grow_tables(to, from->n_blocks, err);
    for (int32_t i = 0; !rc && kk__kv_rows_of_block(i, parent->rows); i++) {
        rc = kk__block_share(&parent->device, &parent->pool->shared, from->blocks[i],
                             &from->share[i], kk__kv_block_bytes(r),
                             (size_t)kk__kv_rows_of_block(i, parent->rows) * r->row_bytes, err);
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
    const struct ring_shape latents = kk__latent_ring(p);
    struct kk_kv *kv;
    KK_BUG_ON(p->active);
    int rc = kk_kv_check(parent, err);
    if (!rc) rc = kk__kv_new(p, &kv, err);
    if (rc) return rc;
    rc = kk__ring_fork(parent, &parent->latents, &kv->latents, &latents, parent->latent_at, err);
    for (int l = 0; !rc && l < p->layout.n_layers; l++) {
        struct ring_rows *from = &parent->layer[l].ring, *to = &kv->layer[l].ring;
        const struct ring_shape ring = kk__ring_of(&p->rule[l]);
        rc = p->rule[l].ring         ? kk__ring_fork(parent, from, to, &ring, parent->rows, err)
             : kk__kv_is_paged(p, l) ? kk__tier_fork_layer(parent, kv, l, err)
                                     : share_layer(parent, kv, l, err);
        kv->layer[l].stored = parent->layer[l].stored;
    }
    if (rc) {
        kk_kv_close(kv);
        return rc;
    }
    kv->rows = parent->rows;
    kv->latent_at = parent->latent_at;
    *out = kv;
    return 0;
}

int64_t kk_kv_shared_bytes(const struct kk_kv_pool *p)
{
    return atomic_load(&p->shared.bytes);
}

int64_t kk_kv_shared_of(const struct kk_kv *kv)
{
    const struct kk_kv_pool *p = kv->pool;
    const struct ring_shape latents = kk__latent_ring(p);
    int64_t n = kk__ring_shared_bytes(&kv->latents, &latents);
    for (int l = 0; l < p->layout.n_layers; l++) {
        const struct layer_rows *y = &kv->layer[l];
        const struct ring_shape ring = kk__ring_of(&p->rule[l]);
        if (p->rule[l].ring) n += kk__ring_shared_bytes(&y->ring, &ring);
        for (int32_t i = 0; !kk__kv_is_paged(p, l) && i < y->n_blocks; i++)
            if (y->share[i]) n += (int64_t)kk__kv_block_bytes(&p->rule[l]);
    }
    return n;
}
