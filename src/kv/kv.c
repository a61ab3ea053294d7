/* The pool, sessions and the two-phase step. */
#include "kv/kv.h"

#include <string.h>

#include "base/mem.h"
#include "kv/kv_int.h"

/* ---- pool --------------------------------------------------------------------------------- */

static int max_int(int a, int b)
{
    return a > b ? a : b;
}

/* Scratch holds one layer of a chunk, and every layer of the held rows: one after the other where a
 * step may be mixed, else in the same place. Returns where held rows start. */
static size_t scratch_size(int n_layers, const struct kk_kv_rule *rule,
                           const struct kk_kv_limits *lim, size_t *bytes)
{
    size_t all = 0, widest = 0;
    for (int l = 0; l < n_layers; l++) {
        all += rule[l].row_bytes;
        if (rule[l].row_bytes > widest) widest = rule[l].row_bytes;
    }
    size_t hold = all * (size_t)lim->max_hold_rows, chunk = widest * (size_t)lim->max_chunk_rows;
    size_t base = lim->max_seqs > 1 ? chunk : 0;
    *bytes = base + hold > chunk ? base + hold : chunk;
    return base;
}

/* Entries of the device's block tables: those of the longest sessions, as many as a step holds; and
 * where one such session's host blocks come from. */
static size_t table_entries(int n_layers, const struct kk_kv_rule *rule,
                            const struct kk_kv_limits *lim, int64_t device_cap)
{
    size_t n = 0, paged = 0;
    const size_t blocks = (size_t)((lim->ctx + lim->max_hold_rows) / KK_KV_BLOCK_ROWS) + 1;
    for (int l = 0; l < n_layers; l++) {
        n += rule[l].ring ? (size_t)kk__ring_pieces(rule[l].sinks + rule[l].ring) : blocks;
        if (device_cap && !rule[l].ring) paged += blocks;
    }
    return lim->ctx ? n * (size_t)lim->max_seqs + paged : 0;
}

/* Bytes of the tables that go to the device at the start of a step, but for the block tables, which
 * end them. */
static size_t fixed_tables(size_t n_layers, const struct kk_kv_limits *lim)
{
    const size_t B = (size_t)lim->max_seqs;
    const size_t T = (size_t)max_int(lim->max_chunk_rows, lim->max_hold_rows);
    const size_t numbers = (2 * T + B + 1) & ~(size_t)1;
    return n_layers * B * sizeof(struct kk_kv_seq) + numbers * sizeof(int32_t);
}

size_t kk_kv_plan_staging(const struct kk_kv_layout *layout, const struct kk_kv_options *opt,
                          const struct kk_kv_rule *rule, const struct kk_kv_limits *limits)
{
    size_t ring = opt->device_cap ? kk__tier_ring_bytes(layout, rule, opt->staging_blocks) : 0;
    size_t scratch;
    scratch_size(layout->n_layers, rule, limits, &scratch);
    return scratch + fixed_tables((size_t)layout->n_layers, limits) + ring +
           table_entries(layout->n_layers, rule, limits, opt->device_cap) * sizeof(void *);
}

static int alloc_host(struct kk_kv_pool *p, struct kk_err *err)
{
    size_t N = (size_t)p->layout.n_layers, B = (size_t)p->limits.max_seqs;
    p->rule = kk_calloc(N, sizeof *p->rule);
    p->hold_offset = kk_calloc(N, sizeof *p->hold_offset);
    p->step_kv = kk_calloc(B, sizeof *p->step_kv);
    p->step_n = kk_calloc(B, sizeof *p->step_n);
    p->step_hold = kk_calloc(B, sizeof *p->step_hold);
    if (p->rule && p->hold_offset && p->step_kv && p->step_n && p->step_hold) return 0;
    return kk_fail(err, KK_ENOMEM, "out of memory for the KV pool");
}

/* The step's tables, cut from one block: they travel together. */
static void cut_tables(const struct kk_kv_pool *p, void *base, struct step_tables *t)
{
    const size_t B = (size_t)p->limits.max_seqs;
    const size_t T = (size_t)max_int(p->limits.max_chunk_rows, p->limits.max_hold_rows);
    t->base = base;
    t->seqs = base;
    t->keep = (int32_t *)(t->seqs + (size_t)p->layout.n_layers * B);
    t->pos = t->keep + B;
    t->seq = t->pos + T;
    t->blocks = (void **)(t->base + fixed_tables((size_t)p->layout.n_layers, &p->limits));
}

static size_t tables_bytes(const struct kk_kv_pool *p)
{
    return fixed_tables((size_t)p->layout.n_layers, &p->limits) + p->n_entries * sizeof(void *);
}

static int alloc_device(struct kk_kv_pool *p, struct kk_err *err)
{
    void *dev = NULL;
    int rc = kk_dev_alloc(p->dev, &p->staging, p->scratch_bytes, &p->scratch, err);
    if (!rc) rc = kk_dev_alloc(p->dev, &p->staging, tables_bytes(p), &dev, err);
    if (rc) return rc;
    cut_tables(p, dev, &p->tables);
    void *host = kk_calloc(1, tables_bytes(p));
    if (!host) return kk_fail(err, KK_ENOMEM, "out of memory for the KV pool");
    cut_tables(p, host, &p->h);
    return 0;
}

int kk_kv_pool_open(struct kk_dev *dev, const struct kk_kv_layout *layout,
                    const struct kk_kv_options *opt, const struct kk_kv_limits *limits,
                    struct kk_kv_pool **out, struct kk_err *err)
{
    KK_BUG_ON(KK_KV_BLOCK_ROWS % dev->attn_split || !dev->unified != !!limits->ctx);
    struct kk_kv_pool *p = kk_calloc(1, sizeof *p);
    if (!p) return kk_fail(err, KK_ENOMEM, "out of memory for the KV pool");
    p->dev = dev;
    p->layout = *layout;
    p->options = *opt;
    p->options.policy = NULL;
    p->limits = *limits;
    p->staging.name = "KV staging";
    int rc = alloc_host(p, err);
    if (!rc) rc = kk_kv_rules(layout, opt, p->rule, err);
    if (!rc) {
        size_t offset = 0;
        for (int l = 0; l < layout->n_layers; l++) {
            p->hold_offset[l] = offset;
            offset += p->rule[l].row_bytes * (size_t)limits->max_hold_rows;
        }
        p->n_entries = table_entries(layout->n_layers, p->rule, limits, opt->device_cap);
        p->hold_base = scratch_size(layout->n_layers, p->rule, limits, &p->scratch_bytes);
        rc = alloc_device(p, err);
    }
    p->latent_bytes = opt->latent_bytes;
    if (!rc) p->latent_rows = kk__kv_latent_rows(layout, p->rule);
    p->device_cap = opt->device_cap;
    p->host_cap = opt->host_cap;
    p->host.name = "KV in host memory";
    if (!rc && p->device_cap) rc = kk__tier_open(p, opt->staging_blocks, err);
    if (rc) {
        kk_kv_pool_close(p);
        return rc;
    }
    *out = p;
    return 0;
}

void kk_kv_pool_close(struct kk_kv_pool *p)
{
    if (!p) return;
    kk__tier_close(p);
    kk_dev_free(p->dev, &p->staging, p->scratch, p->scratch_bytes);
    if (p->tables.base) kk_dev_free(p->dev, &p->staging, p->tables.base, tables_bytes(p));
    kk_free(p->h.base);
    kk_free(p->rule);
    kk_free(p->hold_offset);
    kk_free(p->step_kv);
    kk_free(p->step_n);
    kk_free(p->step_hold);
    kk_free(p);
}

int64_t kk_kv_pool_host_bytes(const struct kk_kv_pool *p)
{
    return atomic_load(&p->host.bytes);
}

int64_t kk_kv_bytes_at(const struct kk_kv_pool *p, int64_t rows)
{
    return (int64_t)kk_kv_plan_bytes(&p->layout, &p->options, p->rule, rows);
}

int64_t kk_kv_staging_bytes(const struct kk_kv_pool *p)
{
    return atomic_load(&p->staging.bytes);
}

/* ---- sessions ----------------------------------------------------------------------------- */

int kk__kv_new(struct kk_kv_pool *pool, struct kk_kv **out, struct kk_err *err)
{
    struct kk_kv *kv = kk_calloc(1, sizeof *kv);
    if (kv) kv->layer = kk_calloc((size_t)pool->layout.n_layers, sizeof *kv->layer);
    if (!kv || !kv->layer) {
        kk_free(kv);
        return kk_fail(err, KK_ENOMEM, "out of memory for a session");
    }
    kv->pool = pool;
    kv->device.name = "session KV";
    kv->host.name = "session KV in host memory";
    *out = kv;
    return 0;
}

int kk_kv_open_empty(struct kk_kv_pool *pool, struct kk_kv **out, struct kk_err *err)
{
    return kk__kv_new(pool, out, err);
}

int kk_kv_open(struct kk_kv_pool *pool, struct kk_kv **out, struct kk_err *err)
{
    struct kk_kv *kv = NULL;
    int rc = kk__kv_new(pool, &kv, err);
    if (rc) return rc;
    for (int l = 0; !rc && l < pool->layout.n_layers; l++) {
        const struct ring_shape ring = kk__ring_of(&pool->rule[l]);
        if (pool->rule[l].ring)
            rc = kk__ring_open(kv, &kv->layer[l].ring, &ring, err);
        else if (kk__kv_is_paged(pool, l))
            rc = kk__tier_open_layer(kv, l, err);
    }
    const struct ring_shape latents = kk__latent_ring(pool);
    if (!rc) rc = kk__ring_open(kv, &kv->latents, &latents, err);
    if (rc) {
        kk_kv_close(kv);
        return rc;
    }
    *out = kv;
    return 0;
}

void kk_kv_close(struct kk_kv *kv)
{
    if (!kv) return;
    const struct ring_shape latents = kk__latent_ring(kv->pool);
    for (int l = 0; kv->layer && l < kv->pool->layout.n_layers; l++) {
        const struct ring_shape ring = kk__ring_of(&kv->pool->rule[l]);
        if (kk__kv_is_paged(kv->pool, l))
            kk__tier_close_layer(kv, l);
        else
            kk__blocks_shrink(kv, l, 0);
        kk__ring_close(kv, &kv->layer[l].ring, &ring);
        kk_free(kv->layer[l].blocks);
        kk_free(kv->layer[l].share);
    }
    kk__ring_close(kv, &kv->latents, &latents);
    KK_BUG_ON(atomic_load(&kv->device.bytes) != 0 || atomic_load(&kv->host.bytes) != 0);
    kk_free(kv->layer);
    kk_free(kv);
}

int64_t kk_kv_rows(const struct kk_kv *kv)
{
    return kv->rows;
}

int64_t kk_kv_host_bytes(const struct kk_kv *kv)
{
    return atomic_load(&kv->host.bytes);
}

int64_t kk_kv_device_bytes(const struct kk_kv *kv)
{
    return atomic_load(&kv->device.bytes);
}

int64_t kk_kv_resident_rows(const struct kk_kv *kv)
{
    int64_t n = 0;
    for (int l = 0; l < kv->pool->layout.n_layers; l++)
        n += kk__kv_resident(&kv->pool->rule[l], kv->layer[l].stored);
    return n;
}

int64_t kk_kv_resident_bytes(const struct kk_kv *kv)
{
    const struct kk_kv_pool *p = kv->pool;
    int64_t latents = kv->latent_at < p->latent_rows ? kv->latent_at : p->latent_rows;
    int64_t n = latents * (int64_t)p->latent_bytes;
    for (int l = 0; l < p->layout.n_layers; l++)
        n += kk__kv_resident(&p->rule[l], kv->layer[l].stored) * (int64_t)p->rule[l].row_bytes;
    return n;
}

int64_t kk_kv_dropped(const struct kk_kv *kv)
{
    int64_t least = INT64_MAX;
    for (int l = 0; l < kv->pool->layout.n_layers; l++) {
        int64_t gone = kv->rows - kk__kv_resident(&kv->pool->rule[l], kv->rows);
        if (gone < least) least = gone;
    }
    return least;
}

int kk_kv_check(const struct kk_kv *kv, struct kk_err *err)
{
    if (kv->broken) return kk_fail(err, KK_EINVARIANT, "INV-1: a step of this session was aborted");
    for (int l = 0; l < kv->pool->layout.n_layers; l++) {
        const struct layer_rows *y = &kv->layer[l];
        const struct kk_kv_rule *r = &kv->pool->rule[l];
        if (y->stored != kv->rows)
            return kk_fail(err, KK_EINVARIANT, "INV-1: layer %d stored %lld rows, session has %lld",
                           l, (long long)y->stored, (long long)kv->rows);
        int64_t room = r->ring ? (y->ring.base ? kk__kv_resident(r, kv->rows) : -1)
                               : (int64_t)y->n_blocks * KK_KV_BLOCK_ROWS;
        if (room < kk__kv_resident(r, kv->rows))
            return kk_fail(err, KK_EINVARIANT, "INV-1: layer %d has room for %lld rows of %lld", l,
                           (long long)room, (long long)kv->rows);
    }
    if (kv->pool->latent_rows && kv->latent_at != kv->rows)
        return kk_fail(err, KK_EINVARIANT, "INV-1: %lld latents for %lld rows",
                       (long long)kv->latent_at, (long long)kv->rows);
    return 0;
}

static void describe(const struct kk_kv *kv, int l, struct kk_kv_seq *s)
{
    const struct kk_kv_rule *r = &kv->pool->rule[l];
    const struct ring_shape ring = kk__ring_of(r);
    *s = (struct kk_kv_seq){.blocks = kv->layer[l].blocks,
                            .committed = (int32_t)kv->rows,
                            .block_rows = KK_KV_BLOCK_ROWS,
                            .row_bytes = (int32_t)r->row_bytes};
    if (kk__tier_inline(kv->pool) && kk__kv_is_paged(kv->pool, l)) s->host = kv->layer[l].host;
    if (r->ring) kk__ring_describe(&kv->layer[l].ring, &ring, s);
}

int kk_kv_read_row(const struct kk_kv *kv, int layer, int64_t j, void *dst, struct kk_err *err)
{
    const struct kk_kv_rule *r = &kv->pool->rule[layer];
    struct kk_kv_seq s;
    describe(kv, layer, &s);
    int gone = r->ring && j >= r->sinks && j < kv->rows - r->ring;
    if (j < 0 || j >= kv->rows || gone)
        return kk_fail(err, KK_ENOENT, "row %lld of layer %d is not stored", (long long)j, layer);
    const struct layer_rows *y = &kv->layer[layer];
    int64_t block = j / KK_KV_BLOCK_ROWS;
    if (kk__kv_is_paged(kv->pool, layer) && !y->blocks[block]) {
        kv->pool->dev->ops->download(kv->pool->dev, dst, NULL, 0); /* what was paged out is there */
        memcpy(dst, (char *)y->host[block] + (size_t)(j % KK_KV_BLOCK_ROWS) * r->row_bytes,
               r->row_bytes);
        return 0;
    }
    kv->pool->dev->ops->download(kv->pool->dev, dst, kk_kv_slot(&s, (int32_t)j, r->row_bytes),
                                 r->row_bytes);
    return 0;
}

/* Copy rows [first, first + n) of a ring to rows in order, or back: each run at once. */
static void copy_ring(struct kk_dev *dev, const struct ring_rows *r, const struct ring_shape *y,
                      char *rows, int64_t first, int32_t n, int store)
{
    for (int32_t i = 0, run; i < n; i += run) {
        run = n - i;
        char *at = kk__ring_run(r, y, first + i, &run), *row = rows + (size_t)i * y->row_bytes;
        dev->ops->copy(dev, store ? at : row, store ? row : at, (size_t)run * y->row_bytes);
    }
}

int64_t kk_kv_latents(const struct kk_kv *kv)
{
    return kv->latent_at;
}

void kk_kv_store_latents(struct kk_kv *kv, const void *latents, int n)
{
    const struct kk_kv_pool *p = kv->pool;
    const struct ring_shape y = kk__latent_ring(p);
    const int32_t skip = n > p->latent_rows ? n - p->latent_rows : 0;
    copy_ring(p->dev, &kv->latents, &y, (char *)(size_t)latents + (size_t)skip * p->latent_bytes,
              kv->latent_at + skip, n - skip, 1);
    kv->latent_at += n;
}

void kk_kv_copy_latents(const struct kk_kv *kv, int32_t first, int32_t n, void *dst)
{
    const struct ring_shape y = kk__latent_ring(kv->pool);
    copy_ring(kv->pool->dev, &kv->latents, &y, dst, first, n, 0);
}

void kk_kv_copy_rows(const struct kk_kv_pool *p, int b, int l, int32_t first, int32_t n, void *dst)
{
    const struct kk_kv_rule *r = &p->rule[l];
    const struct layer_rows *y = &p->step_kv[b]->layer[l];
    const struct ring_shape ring = kk__ring_of(r);
    if (r->ring) {
        copy_ring(p->dev, &y->ring, &ring, dst, first, n, 0);
        return;
    }
    for (int32_t i = 0; i < n;) {
        int32_t at = (first + i) % KK_KV_BLOCK_ROWS, run = KK_KV_BLOCK_ROWS - at;
        if (run > n - i) run = n - i;
        p->dev->ops->copy(p->dev, (char *)dst + (size_t)i * r->row_bytes,
                          (char *)y->blocks[(first + i) / KK_KV_BLOCK_ROWS] +
                              (size_t)at * r->row_bytes,
                          (size_t)run * r->row_bytes);
        i += run;
    }
}

/* ---- a step ------------------------------------------------------------------------------- */

/* Room for rows + n in every layer that keeps all; undone on failure. */
int kk__kv_reserve(struct kk_kv *kv, int32_t n, struct kk_err *err)
{
    const struct kk_kv_pool *p = kv->pool;
    int64_t total = kv->rows + n;
    int32_t before = (int32_t)((kv->rows + KK_KV_BLOCK_ROWS - 1) / KK_KV_BLOCK_ROWS);
    int32_t need = (int32_t)((total + KK_KV_BLOCK_ROWS - 1) / KK_KV_BLOCK_ROWS);
    if (total >= KK_NO_BOUND) return kk_fail(err, KK_ERANGE, "a session is limited to 2^31 tokens");
    int rc = kk__blocks_own(kv, n, err), l = 0;
    for (; !rc && l < p->layout.n_layers; l++)
        if (kk__kv_is_paged(p, l))
            rc = kk__tier_reserve(kv, l, total, err);
        else if (!p->rule[l].ring)
            rc = kk__blocks_grow(kv, l, need, err);
    while (rc && l-- > 0)
        if (!p->rule[l].ring && !kk__kv_is_paged(p, l)) kk__blocks_shrink(kv, l, before);
    return rc;
}

static char *held_rows(const struct kk_kv_pool *p, int l)
{
    return (char *)p->scratch + p->hold_base + p->hold_offset[l];
}

/* Append the block table of s, layer l of step sequence b, to the tables that go to the device. */
static void pack_table(struct kk_kv_pool *p, int b, int l, struct kk_kv_seq *s, int64_t *staged)
{
    const struct layer_rows *y = &p->step_kv[b]->layer[l];
    const struct ring_shape ring = kk__ring_of(&p->rule[l]);
    const int paged = kk__kv_is_paged(p, l);
    const int32_t n = p->rule[l].ring ? kk__ring_entries(&y->ring, &ring) : y->n_blocks;
    void *const *from = s->blocks;
    void **table = p->h.blocks + p->used;
    KK_BUG_ON(p->used + (size_t)n > p->n_entries);
    s->blocks = p->tables.blocks + p->used;
    s->host = NULL;
    for (int32_t i = 0; i < n; i++) table[i] = paged && !from[i] ? y->host[i] : from[i];
    p->used += (size_t)n;
    if (paged) kk__tier_slots(p, l, b, table, staged);
}

/* Rows of sequence b that a step stores layer by layer. */
static int32_t stored_early(const struct kk_kv_pool *p, int b)
{
    const int held = p->kind == KK_STEP_HOLD || (p->mixed && p->step_hold[b]);
    return held ? 0 : p->step_n[b];
}

/* A step's rows, all held, go to a block of the device that they do not fill: kv_store finds it in
 * the tables. Else kk__tier_store puts them where they belong. */
static int stays_in_block(const struct kk_kv_pool *p, int b)
{
    return p->n_entries && p->kind == KK_STEP_HOLD &&
           p->step_kv[b]->rows % KK_KV_BLOCK_ROWS + p->step_n[b] < KK_KV_BLOCK_ROWS;
}

static void fill_tables(struct kk_kv_pool *p)
{
    int64_t staged = 0;
    p->used = 0;
    int t = 0;
    for (int b = 0; b < p->B; b++) p->h.keep[b] = stored_early(p, b);
    for (int b = 0; b < p->B; b++)
        for (int i = 0; i < p->step_n[b]; i++, t++) {
            p->h.pos[t] = (int32_t)p->step_kv[b]->rows + i;
            p->h.seq[t] = b;
        }
    for (int l = 0; l < p->layout.n_layers; l++) {
        char *rows = p->kind == KK_STEP_HOLD ? held_rows(p, l) : p->scratch;
        for (int b = 0; b < p->B; b++) {
            struct kk_kv_seq *s = &p->h.seqs[(size_t)l * (size_t)p->limits.max_seqs + (size_t)b];
            describe(p->step_kv[b], l, s);
            if (kk__kv_is_paged(p, l) && !stays_in_block(p, b)) s->row_bytes = 0;
            if (p->n_entries) pack_table(p, b, l, s, &staged);
            s->step = rows;
            s->n_step = p->step_n[b];
            rows += (size_t)p->step_n[b] * p->rule[l].row_bytes;
        }
    }
    p->n_listed = -1;
    if (p->kind == KK_STEP_HOLD)
        p->n_listed = kk__tier_list(p, p->h.blocks + p->used, p->n_entries - p->used);
}

static int begin(struct kk_kv_pool *p, enum kk_step_kind kind, int B, struct kk_kv *const *kv,
                 const int32_t *n, struct kk_err *err)
{
    KK_BUG_ON(p->active || B < 1 || B > p->limits.max_seqs);
    int T = 0, rc = 0, b;
    for (b = 0; b < B; b++) {
        KK_BUG_ON(n[b] < 1 || kv[b]->pool != p);
        T += n[b];
    }
    KK_BUG_ON(T > (kind == KK_STEP_HOLD ? p->limits.max_hold_rows : p->limits.max_chunk_rows));
    for (b = 0; !rc && b < B; b++) {
        rc = kk_kv_check(kv[b], err);
        if (!rc) rc = kk__kv_reserve(kv[b], n[b], err);
        p->failed = rc ? b : -1;
    }
    if (rc) return rc;
    p->kind = kind;
    p->T = T;
    p->B = B;
    memcpy(p->step_kv, kv, (size_t)B * sizeof(struct kk_kv *));
    memcpy(p->step_n, n, (size_t)B * sizeof *n);
    fill_tables(p);
    const size_t listed = p->n_listed > 0 ? (size_t)p->n_listed : 0;
    p->dev->ops->upload(p->dev, p->tables.base, p->h.base,
                        (size_t)((char *)(p->h.blocks + p->used + listed) - p->h.base));
    p->active = 1;
    kk__tier_begin(p);
    return 0;
}

int kk_kv_begin(struct kk_kv_pool *p, enum kk_step_kind kind, int B, struct kk_kv *const *kv,
                const int32_t *n, struct kk_err *err)
{
    p->mixed = 0;
    return begin(p, kind, B, kv, n, err);
}

int kk_kv_begin_mixed(struct kk_kv_pool *p, int B, struct kk_kv *const *kv, const int32_t *n,
                      const uint8_t *hold, struct kk_err *err)
{
    int held = 0, sequences = 0;
    for (int b = 0; b < B; b++) {
        sequences += hold[b] != 0;
        held += hold[b] ? n[b] : 0;
    }
    if (sequences == 0 || sequences == B)
        return kk_kv_begin(p, sequences ? KK_STEP_HOLD : KK_STEP_CHUNK, B, kv, n, err);
    KK_BUG_ON(held > p->limits.max_hold_rows || p->limits.max_seqs < 2);
    p->mixed = 1;
    memcpy(p->step_hold, hold, (size_t)B);
    return begin(p, KK_STEP_CHUNK, B, kv, n, err);
}

int kk_kv_failed(const struct kk_kv_pool *p)
{
    return p->failed;
}

enum kk_dtype kk_kv_dtype(const struct kk_kv_pool *p)
{
    return p->layout.dtype;
}
int kk_kv_step_T(const struct kk_kv_pool *p)
{
    return p->T;
}
int kk_kv_step_B(const struct kk_kv_pool *p)
{
    return p->B;
}
int kk_kv_step_holds(const struct kk_kv_pool *p)
{
    return p->kind == KK_STEP_HOLD;
}
int32_t kk_kv_step_rows(const struct kk_kv_pool *p, int b)
{
    return p->step_n[b];
}
struct kk_kv *kk_kv_step_session(const struct kk_kv_pool *p, int b)
{
    return p->step_kv[b];
}
const int32_t *kk_kv_step_pos(const struct kk_kv_pool *p)
{
    return p->tables.pos;
}
const int32_t *kk_kv_step_seq(const struct kk_kv_pool *p)
{
    return p->tables.seq;
}
const int32_t *kk_kv_step_pos_host(const struct kk_kv_pool *p)
{
    return p->h.pos;
}

struct kk_kv_view kk_kv_layer(const struct kk_kv_pool *p, int l)
{
    size_t first = (size_t)l * (size_t)p->limits.max_seqs;
    return (struct kk_kv_view){
        .rows = p->h.seqs[first].step,
        .seqs = p->tables.seqs + first,
        .mask = p->rule[l].mask,
        .row_bytes = p->rule[l].row_bytes,
        .staging = kk__kv_is_paged(p, l) ? p->stage.memory : NULL,
    };
}

/* Copy the first keep[b] rows of layers [first, first + n) into place and count them. */
static void store_layers(struct kk_kv_pool *p, int first, int n)
{
    struct kk_kv_store_args a = {
        .n_layers = n,
        .B = p->B,
        .stride = p->limits.max_seqs,
        .seqs = p->tables.seqs + (size_t)first * (size_t)p->limits.max_seqs,
        .keep = p->h.keep,
    };
    int by_op = 0;
    for (int b = 0; b < p->B; b++)
        if (p->h.keep[b] > a.most) a.most = p->h.keep[b];
    for (int l = first; l < first + n; l++)
        for (int b = 0; b < p->B; b++) {
            if (p->h.seqs[(size_t)l * (size_t)p->limits.max_seqs + (size_t)b].row_bytes)
                by_op = 1;
            else
                kk__tier_store(p, l, b, p->h.keep[b]);
            p->step_kv[b]->layer[l].stored += p->h.keep[b];
        }
    if (by_op && a.most) p->dev->ops->kv_store(p->dev, &a);
}

/* Move the held rows of layer l of a mixed step out of the way of the next layer. */
static void hold_layer(struct kk_kv_pool *p, int l)
{
    char *to = held_rows(p, l);
    const size_t row_bytes = p->rule[l].row_bytes;
    for (int b = 0; b < p->B; b++) {
        struct kk_kv_seq *s = &p->h.seqs[(size_t)l * (size_t)p->limits.max_seqs + (size_t)b];
        if (!p->step_hold[b]) continue;
        p->dev->ops->copy(p->dev, to, s->step, (size_t)s->n_step * row_bytes);
        s->step = to;
        to += (size_t)s->n_step * row_bytes;
    }
}

void kk_kv_layer_done(struct kk_kv_pool *p, int l)
{
    if (p->kind != KK_STEP_CHUNK) return;
    store_layers(p, l, 1);
    if (p->mixed) hold_layer(p, l);
}

/* The held rows of a mixed step are where hold_layer put them. */
static void upload_seqs(struct kk_kv_pool *p)
{
    size_t N = (size_t)p->layout.n_layers, M = (size_t)p->limits.max_seqs;
    p->dev->ops->upload(p->dev, p->tables.seqs, p->h.seqs, N * M * sizeof *p->tables.seqs);
}

void kk_kv_commit(struct kk_kv_pool *p, const int32_t *keep)
{
    KK_BUG_ON(!p->active);
    if (!keep) keep = p->step_n;
    for (int b = 0; b < p->B; b++) {
        int held = p->kind == KK_STEP_HOLD || (p->mixed && p->step_hold[b]);
        KK_BUG_ON(keep[b] < 0 || keep[b] > p->step_n[b]);
        KK_BUG_ON(!held && keep[b] != p->step_n[b]);
        p->h.keep[b] = held ? keep[b] : 0;
    }
    if (p->kind == KK_STEP_HOLD || p->mixed) {
        if (p->mixed) upload_seqs(p);
        store_layers(p, 0, p->layout.n_layers);
    }
    for (int b = 0; b < p->B; b++) p->step_kv[b]->rows += keep[b];
    kk__tier_drain(p);
    p->active = 0;
}

void kk_kv_abort(struct kk_kv_pool *p)
{
    for (int b = 0; p->active && b < p->B; b++)
        for (int l = 0; l < p->layout.n_layers; l++)
            if (p->step_kv[b]->layer[l].stored != p->step_kv[b]->rows) p->step_kv[b]->broken = 1;
    if (p->active) kk__tier_drain(p);
    p->active = 0;
}
