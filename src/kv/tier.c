/* The host tier: paging whole blocks of layers that keep every row (kv_int.h has the picture). */
#include <string.h>

#include "base/mem.h"
#include "base/pool.h"
#include "kv/kv_int.h"

/* ---- sizes -------------------------------------------------------------------------------- */

int32_t kk__tier_resident(const struct kk_kv_layout *layout, const struct kk_kv_rule *rule,
                          size_t latent_bytes, int64_t cap, int64_t *least)
{
    int64_t rings = (int64_t)latent_bytes, per_block = 0;
    for (int l = 0; l < layout->n_layers; l++)
        *(rule[l].ring ? &rings : &per_block) += (int64_t)kk__kv_block_bytes(&rule[l]);
    *least = rings + per_block;
    if (cap < *least) return 0;
    return per_block ? (int32_t)((cap - rings) / per_block) : 1;
}

static size_t widest_block(const struct kk_kv_layout *layout, const struct kk_kv_rule *rule)
{
    size_t widest = 0;
    for (int l = 0; l < layout->n_layers; l++)
        if (!rule[l].ring && kk__kv_block_bytes(&rule[l]) > widest)
            widest = kk__kv_block_bytes(&rule[l]);
    return widest;
}

int kk_kv_staging_blocks(const struct kk_dev *dev, int asked)
{
    int copying = dev->n_threads < kk_cores() ? 0 : dev->n_threads;
    if (!asked) asked = dev->unified ? 4 : 256; /* a GPU: a layer's rows come while others run */
    return asked < 2 || asked > copying ? asked : copying;
}

size_t kk__tier_ring_bytes(const struct kk_kv_layout *layout, const struct kk_kv_rule *rule,
                           int slots)
{
    return widest_block(layout, rule) * (size_t)slots;
}

/* ---- the copy thread ---------------------------------------------------------------------- */

enum { SPIN = 4000 }; /* about 20 us: a copy follows close on the one before while a step runs */

static inline void cpu_relax(void)
{
#if defined(__x86_64__)
    __builtin_ia32_pause();
#endif
}

/* 1 when there is a request to do, 0 to stop. */
static int next_request(struct stage *s)
{
    for (int i = 0; i < SPIN; i++) {
        if (atomic_load(&s->queued) > atomic_load(&s->done)) return 1;
        cpu_relax();
    }
    pthread_mutex_lock(&s->lock);
    atomic_store(&s->sleeping, 1);
    while (atomic_load(&s->queued) == atomic_load(&s->done) && !s->stop)
        pthread_cond_wait(&s->more, &s->lock);
    atomic_store(&s->sleeping, 0);
    int go = atomic_load(&s->queued) > atomic_load(&s->done);
    pthread_mutex_unlock(&s->lock);
    return go;
}

static void copy_next(struct kk_kv_pool *p)
{
    struct stage *s = &p->stage;
    int64_t i = atomic_load(&s->done) % s->n_slots;
    p->dev->ops->upload(p->dev, s->memory + (size_t)i * s->slot_bytes, s->request[i].src,
                        s->request[i].bytes);
    atomic_fetch_add(&s->done, 1);
}

static void *copy_main(void *arg)
{
    struct kk_kv_pool *p = arg;
    struct stage *s = &p->stage;
    while (next_request(s)) {
        copy_next(p);
        if (atomic_load(&s->waiting)) {
            pthread_mutex_lock(&s->lock);
            pthread_cond_signal(&s->finished);
            pthread_mutex_unlock(&s->lock);
        }
    }
    return NULL;
}

/* Wait until the first `n` requests ever made are in their slots. */
static void wait_done(struct kk_kv_pool *p, int64_t n)
{
    struct stage *s = &p->stage;
    for (int i = 0; i < SPIN; i++) {
        if (atomic_load(&s->done) >= n) return;
        cpu_relax();
    }
    pthread_mutex_lock(&s->lock);
    atomic_store(&s->waiting, 1);
    while (atomic_load(&s->done) < n) pthread_cond_wait(&s->finished, &s->lock);
    atomic_store(&s->waiting, 0);
    pthread_mutex_unlock(&s->lock);
}

int kk__tier_open(struct kk_kv_pool *p, int staging_blocks, struct kk_err *err)
{
    struct stage *s = &p->stage;
    int64_t least;
    p->resident = kk__tier_resident(&p->layout, p->rule, p->latent_bytes * (size_t)p->latent_rows,
                                    p->device_cap, &least);
    if (staging_blocks < 2)
        return kk_fail(err, KK_EINVAL, "a staging ring of %d blocks: it must have at least 2",
                       staging_blocks);
    s->slot_bytes = widest_block(&p->layout, p->rule);
    if (!s->slot_bytes) return 0; /* every layer is a ring: nothing to page */
    s->request = kk_calloc((size_t)staging_blocks, sizeof *s->request);
    s->dst = kk_calloc((size_t)staging_blocks, sizeof *s->dst);
    s->src = kk_calloc((size_t)staging_blocks, sizeof *s->src);
    s->bytes = kk_calloc((size_t)staging_blocks, sizeof *s->bytes);
    if (!s->request || !s->dst || !s->src || !s->bytes)
        return kk_fail(err, KK_ENOMEM, "out of memory for the staging ring");
    int rc = kk_dev_alloc(p->dev, &p->staging, s->slot_bytes * (size_t)staging_blocks,
                          (void **)&s->memory, err);
    if (rc) return rc;
    s->n_slots = staging_blocks;
    s->engine = !p->dev->unified;
    if (s->engine || p->dev->n_threads >= kk_cores()) return 0; /* or no core to spare */
    pthread_mutex_init(&s->lock, NULL);
    pthread_cond_init(&s->more, NULL);
    pthread_cond_init(&s->finished, NULL);
    if (pthread_create(&s->thread, NULL, copy_main, p))
        return kk_fail(err, KK_ENOMEM, "cannot start the copy thread");
    s->started = 1;
    return 0;
}

void kk__tier_close(struct kk_kv_pool *p)
{
    struct stage *s = &p->stage;
    if (s->started) {
        pthread_mutex_lock(&s->lock);
        s->stop = 1;
        pthread_cond_signal(&s->more);
        pthread_mutex_unlock(&s->lock);
        pthread_join(s->thread, NULL);
        pthread_mutex_destroy(&s->lock);
        pthread_cond_destroy(&s->more);
        pthread_cond_destroy(&s->finished);
    }
    kk_dev_free(p->dev, &p->staging, s->memory, s->slot_bytes * (size_t)s->n_slots);
    kk_free(s->request);
    kk_free(s->dst);
    kk_free(s->src);
    kk_free(s->bytes);
}

/* ---- blocks of a session ------------------------------------------------------------------ */

int kk__tier_open_layer(struct kk_kv *kv, int l, struct kk_err *err)
{
    struct layer_rows *y = &kv->layer[l];
    struct kk_kv_pool *p = kv->pool;
    y->slot = kk_calloc((size_t)p->resident, sizeof *y->slot);
    if (!y->slot) return kk_fail(err, KK_ENOMEM, "out of memory for a session");
    for (int32_t i = 0; i < p->resident; i++) {
        int rc =
            kk_dev_alloc(p->dev, &kv->device, kk__kv_block_bytes(&p->rule[l]), &y->slot[i], err);
        if (rc) return rc;
    }
    return 0;
}

static void free_host_block(struct kk_kv *kv, int l, int32_t i)
{
    struct layer_rows *y = &kv->layer[l];
    struct shared_block *s = y->share[i];
    int64_t bytes = (int64_t)kk__kv_block_bytes(&kv->pool->rule[l]);
    void *p = y->host[i];
    if (!p) return;
    y->host[i] = NULL;
    y->share[i] = NULL;
    if (!s) kk_account_add(&kv->host, -bytes);
    if (s && --s->refs > 0) return;
    kk__block_free(kv->pool, s);
    kv->pool->dev->ops->host_free(kv->pool->dev, p, (size_t)bytes);
    kk_account_add(&kv->pool->host, -bytes);
}

void kk__tier_close_layer(struct kk_kv *kv, int l)
{
    struct layer_rows *y = &kv->layer[l];
    size_t bytes = kk__kv_block_bytes(&kv->pool->rule[l]);
    for (int32_t i = 0; y->slot && i < kv->pool->resident; i++)
        kk_dev_free(kv->pool->dev, &kv->device, y->slot[i], bytes);
    for (int32_t i = 0; i < y->n_blocks; i++) free_host_block(kv, l, i);
    kk_free(y->slot);
    kk_free(y->host);
}

static int grow_tables(struct layer_rows *y, int32_t n, struct kk_err *err)
{
    int32_t cap = y->cap_blocks ? y->cap_blocks : 16;
    if (n <= y->cap_blocks) return 0;
    while (cap < n) cap *= 2;
    void **b = kk_realloc(y->blocks, (size_t)cap, sizeof *b);
    if (b) y->blocks = b;
    void **h = b ? kk_realloc(y->host, (size_t)cap, sizeof *h) : NULL;
    if (h) y->host = h;
    struct shared_block **s = h ? kk_realloc(y->share, (size_t)cap, sizeof *s) : NULL;
    if (!s) return kk_fail(err, KK_ENOMEM, "out of memory for a KV block table");
    y->share = s;
    memset(y->blocks + y->cap_blocks, 0, (size_t)(cap - y->cap_blocks) * sizeof *b);
    memset(y->host + y->cap_blocks, 0, (size_t)(cap - y->cap_blocks) * sizeof *h);
    memset(y->share + y->cap_blocks, 0, (size_t)(cap - y->cap_blocks) * sizeof *s);
    y->cap_blocks = cap;
    return 0;
}

void *kk__tier_host_alloc(struct kk_kv_pool *p, size_t bytes, struct kk_err *err)
{
    const int64_t used = atomic_load(&p->host.bytes);
    if (p->host_cap && used + (int64_t)bytes > p->host_cap) {
        kk_fail(err, KK_EEXHAUSTED, "host memory for KV is exhausted: %lld of %lld bytes are used",
                (long long)used, (long long)p->host_cap);
        return NULL;
    }
    void *block = p->dev->ops->host_alloc(p->dev, bytes);
    if (block)
        kk_account_add(&p->host, (int64_t)bytes);
    else
        kk_fail(err, KK_ENOMEM, "out of memory for KV in host memory (%lld bytes are used)",
                (long long)used);
    return block;
}

int kk__tier_own_block(struct kk_kv *kv, int l, int32_t i, struct kk_err *err)
{
    const size_t bytes = kk__kv_block_bytes(&kv->pool->rule[l]);
    struct kk_err why = {0};
    if (kv->layer[l].host[i]) return 0;
    kv->layer[l].host[i] = kk__tier_host_alloc(kv->pool, bytes, &why);
    if (!kv->layer[l].host[i]) return kk_fail(err, why.code, "%s", why.msg);
    kk_account_add(&kv->host, (int64_t)bytes);
    return 0;
}

void kk__tier_join(struct kk_kv *kv, int l, int32_t i, struct shared_block *s)
{
    kv->layer[l].host[i] = s->p;
    kv->layer[l].share[i] = s;
}

int kk__tier_tables(struct kk_kv *kv, int l, int64_t total, struct kk_err *err)
{
    struct layer_rows *y = &kv->layer[l];
    const int32_t blocks = (int32_t)((total + KK_KV_BLOCK_ROWS - 1) / KK_KV_BLOCK_ROWS);
    int rc = grow_tables(y, blocks, err);
    if (!rc && blocks > y->n_blocks) y->n_blocks = blocks;
    return rc;
}

/* Blocks that are full after `total` rows and do not stay on the device: [resident - 1, total / P).
 */
int kk__tier_reserve(struct kk_kv *kv, int l, int64_t total, struct kk_err *err)
{
    struct layer_rows *y = &kv->layer[l];
    const int32_t fixed = kv->pool->resident - 1, before = y->n_blocks;
    int rc = kk__tier_tables(kv, l, total, err);
    if (rc) return rc;
    for (int32_t i = fixed; !rc && i < (int32_t)(total / KK_KV_BLOCK_ROWS); i++)
        rc = kk__tier_own_block(kv, l, i, err);
    for (int32_t i = 0; i < y->n_blocks && i < fixed; i++) y->blocks[i] = y->slot[i];
    int32_t tail = (int32_t)(kv->rows / KK_KV_BLOCK_ROWS);
    if (tail >= fixed && tail < y->n_blocks) y->blocks[tail] = y->slot[fixed];
    if (rc) { /* give back what this call took */
        for (int32_t i = before > fixed ? before : fixed; i < y->n_blocks; i++)
            if (i >= kv->rows / KK_KV_BLOCK_ROWS) free_host_block(kv, l, i);
        y->n_blocks = before;
    }
    return rc;
}

void kk__tier_place(struct kk_kv *kv, int l, int64_t rows)
{
    struct layer_rows *y = &kv->layer[l];
    const int32_t fixed = kv->pool->resident - 1, tail = (int32_t)(rows / KK_KV_BLOCK_ROWS);
    for (int32_t i = 0; i < y->n_blocks; i++)
        y->blocks[i] = i < fixed ? y->slot[i] : i == tail ? y->slot[fixed] : NULL;
}

int kk__tier_fork_layer(struct kk_kv *parent, struct kk_kv *child, int l, struct kk_err *err)
{
    struct layer_rows *from = &parent->layer[l], *to = &child->layer[l];
    struct kk_kv_pool *p = parent->pool;
    const struct kk_kv_rule *r = &p->rule[l];
    const int32_t fixed = p->resident - 1, full = (int32_t)(parent->rows / KK_KV_BLOCK_ROWS);
    int rc = kk__tier_open_layer(child, l, err);
    if (!rc) rc = grow_tables(to, from->n_blocks, err);
    if (rc) return rc;
    to->n_blocks = from->n_blocks;
    for (int32_t i = fixed; !rc && i < full; i++) {
        rc = kk__block_share(&parent->host, NULL, from->host[i], &from->share[i],
                             kk__kv_block_bytes(r), kk__kv_block_bytes(r), err);
        if (rc) break;
        to->host[i] = from->host[i];
        to->share[i] = from->share[i];
    }
    for (int32_t i = 0; !rc && i < p->resident; i++)
        p->dev->ops->copy(p->dev, to->slot[i], from->slot[i], kk__kv_block_bytes(r));
    if (!rc) kk__tier_place(child, l, parent->rows);
    return rc;
}

void kk__tier_store(struct kk_kv_pool *p, int l, int b, int32_t keep)
{
    struct kk_kv *kv = p->step_kv[b];
    struct layer_rows *y = &kv->layer[l];
    const struct kk_kv_seq *s = &p->h.seqs[(size_t)l * (size_t)p->limits.max_seqs + (size_t)b];
    const struct kk_kv_rule *r = &p->rule[l];
    const int32_t fixed = p->resident - 1;
    for (int32_t i = 0; i < keep;) {
        int32_t at = s->committed + i, block = at / KK_KV_BLOCK_ROWS;
        int32_t n = KK_KV_BLOCK_ROWS - at % KK_KV_BLOCK_ROWS;
        if (n > keep - i) n = keep - i;
        y->blocks[block] = block < fixed ? y->slot[block] : y->slot[fixed];
        p->dev->ops->copy(p->dev,
                          (char *)y->blocks[block] + (size_t)(at % KK_KV_BLOCK_ROWS) * r->row_bytes,
                          (char *)s->step + (size_t)i * r->row_bytes, (size_t)n * r->row_bytes);
        i += n;
        if (block >= fixed &&
            (at + n) % KK_KV_BLOCK_ROWS == 0) { /* full: out, and its slot is free */
            p->dev->ops->page_out(p->dev, y->host[block], y->slot[fixed], kk__kv_block_bytes(r));
            y->blocks[block] = NULL;
        }
    }
}

/* ---- the walk of a step ------------------------------------------------------------------- */

/* Host blocks [*from, *end) of sequence b that layer l's attention needs. */
static void host_blocks(const struct kk_kv_pool *p, int l, int b, int32_t *from, int32_t *end)
{
    const int64_t committed =
        p->h.seqs[(size_t)l * (size_t)p->limits.max_seqs + (size_t)b].committed;
    const int32_t window = p->rule[l].mask.window;
    *from = p->resident - 1;
    *end = (int32_t)(committed / KK_KV_BLOCK_ROWS);
    if (window != KK_NO_BOUND && committed - window + 1 > 0) {
        int32_t first = (int32_t)((committed - window + 1) / KK_KV_BLOCK_ROWS);
        if (first > *from) *from = first;
    }
    if (*end < *from) *end = *from;
}

/* Move w to the next host block of the walk at or after it; 0 at the end. */
static int settle_walk(const struct kk_kv_pool *p, struct walk *w)
{
    for (; w->l < p->layout.n_layers; w->l++, w->b = 0, w->block = 0) {
        if (!kk__kv_is_paged(p, w->l)) continue;
        for (; w->b < p->B; w->b++, w->block = 0) {
            int32_t from, end;
            host_blocks(p, w->l, w->b, &from, &end);
            if (w->block < from) w->block = from;
            if (w->block < end) return 1;
        }
    }
    return 0;
}

void kk__tier_slots(const struct kk_kv_pool *p, int l, int b, void **table, int64_t *at)
{
    const struct stage *s = &p->stage;
    int32_t from, end;
    if (!s->engine) return;
    host_blocks(p, l, b, &from, &end);
    for (int32_t i = from; i < end; i++)
        table[i] = s->memory + (size_t)((s->asked + (*at)++) % s->n_slots) * s->slot_bytes;
}

int32_t kk__tier_list(const struct kk_kv_pool *p, void **list, size_t room)
{
    struct walk w = {0};
    int32_t n = 0;
    if (!p->resident) return 0;
    if (!p->stage.engine) return -1;
    for (; settle_walk(p, &w); w.block++) {
        if ((size_t)n == room) return -1;
        list[n++] = p->step_kv[w.b]->layer[w.l].host[w.block];
    }
    return n;
}

struct kk_kv_host_blocks kk_kv_host_blocks(const struct kk_kv_pool *p)
{
    const struct stage *s = &p->stage;
    if (p->n_listed <= 0) return (struct kk_kv_host_blocks){.n = p->n_listed};
    return (struct kk_kv_host_blocks){
        .n = p->n_listed,
        .slots = s->n_slots,
        .slot0 = (int32_t)(s->asked % s->n_slots),
        .slot_bytes = s->slot_bytes,
        .ring = s->memory,
        .from = (const void *const *)(p->tables.blocks + p->used),
    };
}

int32_t kk_kv_host_blocks_of(const struct kk_kv_pool *p, int l, int b, int32_t *first)
{
    int32_t end;
    *first = 0;
    if (!kk__kv_is_paged(p, l)) return 0;
    host_blocks(p, l, b, first, &end);
    return end - *first;
}

/* The requests made since `first` go to the device's copy engine as one batch. */
static void send_batch(struct kk_kv_pool *p, int64_t first)
{
    struct stage *s = &p->stage;
    const int n = (int)(s->asked - first);
    if (!n) return;
    for (int k = 0; k < n; k++) {
        const int64_t i = (first + k) % s->n_slots;
        s->dst[k] = s->memory + (size_t)i * s->slot_bytes;
        s->src[k] = s->request[i].src;
        s->bytes[k] = s->request[i].bytes;
    }
    const int64_t batch = p->dev->ops->stage(p->dev, n, s->dst, s->src, s->bytes);
    for (int k = 0; k < n; k++) s->request[(first + k) % s->n_slots].batch = batch;
}

/* The requests made so far go to the copy thread. */
static void wake_thread(struct stage *s)
{
    atomic_store(&s->queued, s->asked);
    if (!atomic_load(&s->sleeping)) return;
    pthread_mutex_lock(&s->lock);
    pthread_cond_signal(&s->more);
    pthread_mutex_unlock(&s->lock);
}

/* Ask for copies until the ring is full or the walk ends. */
static void pump(struct kk_kv_pool *p)
{
    struct stage *s = &p->stage;
    const int64_t first = s->asked;
    if (kk__tier_inline(p)) return;
    while (s->asked - s->released < s->n_slots && settle_walk(p, &p->ask)) {
        struct layer_rows *y = &p->step_kv[p->ask.b]->layer[p->ask.l];
        int64_t i = s->asked++ % s->n_slots;
        s->request[i] =
            (struct stage_request){y->host[p->ask.block], kk__kv_block_bytes(&p->rule[p->ask.l]),
                                   &y->blocks[p->ask.block], 0};
        y->blocks[p->ask.block] = s->memory + (size_t)i * s->slot_bytes;
        p->ask.block++;
    }
    if (s->engine)
        send_batch(p, first);
    else
        wake_thread(s);
}

/* What the first `n` requests ever made bring is found by the ops that come next. */
static void await(struct kk_kv_pool *p, int64_t n)
{
    struct stage *s = &p->stage;
    if (!s->engine)
        wait_done(p, n);
    else if (n > 0)
        p->dev->ops->stage_wait(p->dev, s->request[(n - 1) % s->n_slots].batch);
}

/* Give back the slots of the oldest n requests. */
static void release(struct kk_kv_pool *p, int64_t n)
{
    struct stage *s = &p->stage;
    if (s->engine && n > 0) p->dev->ops->stage_free(p->dev);
    for (; n > 0; n--) *s->request[s->released++ % s->n_slots].entry = NULL;
}

void kk__tier_begin(struct kk_kv_pool *p)
{
    p->ask = (struct walk){0};
    p->read = (struct walk){0};
    p->piece_blocks = 0;
    if (p->stage.engine) p->dev->ops->stage_free(p->dev); /* what was paged out is in place */
}

void kk__tier_drain(struct kk_kv_pool *p)
{
    if (kk__tier_inline(p)) return;
    if (p->stage.asked > p->stage.released) await(p, p->stage.asked);
    release(p, p->stage.asked - p->stage.released);
}

void kk_kv_prefetch(struct kk_kv_pool *p)
{
    pump(p);
}

static void rows_of(const struct kk_kv_pool *p, int b, int *t0, int *T)
{
    *t0 = 0;
    for (int i = 0; i < b; i++) *t0 += p->step_n[i];
    *T = p->step_n[b];
}

/* The next piece at p->read: at most half of the ring's blocks of one sequence, and what lies
 * between. */
static struct kk_kv_piece piece(struct kk_kv_pool *p, int l)
{
    struct kk_kv_piece out = {0};
    const int per_block = KK_KV_BLOCK_ROWS / p->dev->attn_split, half = p->stage.n_slots / 2;
    int32_t from, end, start;
    if (p->read.b >= p->B) return out;
    host_blocks(p, l, p->read.b, &from, &end);
    start = p->read.block;
    int32_t next = (start < from ? from : start) + half;
    rows_of(p, p->read.b, &out.t0, &out.T);
    out.first = start == 0;
    out.last = next >= end;
    out.first_split = start * per_block;
    out.end_split = out.last ? KK_NO_BOUND : next * per_block;
    p->piece_blocks = (out.last ? end : next) - (start < from ? from : start);
    if (p->piece_blocks > 0) {
        pump(p);
        await(p, p->stage.released + p->piece_blocks);
    }
    p->read.block = next;
    if (out.last) {
        p->read.b++;
        p->read.block = 0;
    }
    return out;
}

struct kk_kv_piece kk_kv_first_piece(struct kk_kv_pool *p, int l)
{
    if (!kk__kv_is_paged(p, l) || kk__tier_inline(p))
        return (struct kk_kv_piece){.T = p->T, .end_split = KK_NO_BOUND, .first = 1, .last = 1};
    p->read = (struct walk){.l = l};
    return piece(p, l);
}

struct kk_kv_piece kk_kv_next_piece(struct kk_kv_pool *p, int l)
{
    if (!kk__kv_is_paged(p, l) || kk__tier_inline(p)) return (struct kk_kv_piece){0};
    if (p->piece_blocks > 0) {
        release(p, p->piece_blocks);
        p->piece_blocks = 0;
        pump(p);
    }
    return piece(p, l);
}
