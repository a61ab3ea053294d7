/* Scratch memory, all made at once by reserve, and how work is cut for the threads. */
#include "base/mem.h"
#include "dev/cpu/cpu_int.h"

static size_t max3(size_t a, size_t b, size_t c)
{
    size_t m = a > b ? a : b;
    return m > c ? m : c;
}

static size_t round64(size_t bytes)
{
    return (bytes + 63) & ~(size_t)63;
}

/* Bytes that one thread needs for the op that needs most. */
static size_t thread_bytes(const struct kk_limits *l)
{
    size_t D = (size_t)(l->max_head_dim + 31) & ~(size_t)15, S = KK_CPU_SPLIT;
    const size_t Q = KK_CPU_QUERIES;
    size_t attn = (Q * D + Q * S + Q * D + S * D + 2 * Q) * sizeof(float) + 4 * S * sizeof(void *);
    size_t rows = 3 * ((size_t)l->max_model_width + D + 16) * sizeof(float);
    size_t moe = l->max_active ? KK_CPU_MOE_ROWS * (size_t)l->max_model_width : 0;
    return round64(max3(attn + 256, rows, (KK_CPU_TILE + moe) * sizeof(float) + 128));
}

/* Rows in 8 bits, of the widest input and of the pairs of experts */
static size_t q8_bytes(const struct kk_limits *l)
{
    const size_t T = (size_t)l->max_rows, pairs = T * (size_t)l->max_active;
    if (!l->max_block_cols) return 0;
    return max3(T * kk_q8_row_bytes(l->max_block_cols),
                pairs * kk_q8_row_bytes(l->max_expert_width), 0);
}

/* The same in pairs of bf16, words */
static size_t pairs16(const struct kk_limits *l)
{
    const size_t T = (size_t)l->max_rows, pairs = T * (size_t)l->max_active;
    if (!l->max_bf16_cols) return 0;
    return max3(T * ((size_t)(l->max_bf16_cols + 1) / 2),
                pairs * ((size_t)(l->max_expert_width + 1) / 2), 0);
}

/* The next region of `bytes`; base NULL counts only. */
static void *cut(char *base, size_t *at, size_t bytes)
{
    void *p = base ? base + *at : NULL;
    *at += round64(bytes);
    return p;
}

/* Cuts base (or NULL) for these limits; returns the bytes it takes. */
static size_t layout(struct kk_cpu_scratch *s, const struct kk_dev *dev, const struct kk_limits *l,
                     char *base)
{
    size_t at = 0, n = (size_t)dev->n_threads, T = (size_t)l->max_rows;
    size_t pairs = T * (size_t)l->max_active, D = (size_t)l->max_head_dim + 32;
    const size_t Q = KK_CPU_QUERIES;
    size_t E = !l->max_active ? 0 : l->max_experts ? (size_t)l->max_experts : KK_CPU_EXPERTS;
    s->limits = *l;
    s->max_experts = (int)E;
    s->panel_at = s->thread_bytes = thread_bytes(l);
    if (dev->block_act == KK_ACT_F32) s->thread_bytes += (size_t)l->max_block_cols * 64;
    s->q8_bytes = dev->block_act == KK_ACT_F32 ? 0 : q8_bytes(l);
    s->n_pairs16 = pairs16(l);
    s->n_parts = max3(KK_CPU_PARTS, 8 * n * Q * D, 0);
    s->n_pairs = max3(pairs * (size_t)l->max_expert_width, T * ((E + 15) & ~(size_t)15), 0);
    s->threads = cut(base, &at, n * s->thread_bytes);
    s->parts = cut(base, &at, s->n_parts * sizeof *s->parts);
    s->pending = cut(base, &at, 4 * n * sizeof *s->pending);
    s->taken = cut(base, &at, n * sizeof *s->taken);
    s->tiles = cut(base, &at, (T + 1) * sizeof *s->tiles);
    s->pairs = cut(base, &at, s->n_pairs * sizeof *s->pairs);
    s->order = cut(base, &at, pairs * sizeof *s->order);
    s->starts = cut(base, &at, (E + 1) * sizeof *s->starts);
    s->experts = cut(base, &at, E * sizeof *s->experts);
    s->q8 = cut(base, &at, s->q8_bytes);
    s->pairs16 = cut(base, &at, s->n_pairs16 * sizeof *s->pairs16);
    return at;
}

size_t kk__cpu_reserve_bytes(const struct kk_dev *dev, const struct kk_limits *l)
{
    struct kk_cpu_scratch s;
    return layout(&s, dev, l, NULL);
}

int kk__cpu_reserve(struct kk_dev *dev, const struct kk_limits *want, struct kk_account *acc,
                    struct kk_err *err)
{
    struct kk_cpu *c = kk__cpu(dev);
    struct kk_limits l = kk_limits_widest(c->s.limits, want);
    size_t bytes = kk__cpu_reserve_bytes(dev, &l);
    void *base;
    int rc = kk_dev_alloc(dev, acc, bytes, &base, err);
    if (rc) return rc;
    if (c->s.base) kk_dev_free(dev, c->s.account, c->s.base, c->s.bytes);
    c->s = (struct kk_cpu_scratch){.account = acc, .base = base, .bytes = bytes};
    layout(&c->s, dev, &l, base);
    return 0;
}

/* ---- cutting work ---- */

#define FORK_NS 2000 /* a loop worth less stays on the calling thread */
#define ITEM_NS 3000 /* an item should be worth this much */

void kk__cpu_for(struct kk_cpu *c, int n_items, int64_t ns,
                 void (*fn)(void *arg, int item, int worker), void *arg)
{
    if (ns >= FORK_NS) {
        kk_pool_for(c->pool, n_items, fn, arg);
        return;
    }
    for (int i = 0; i < n_items; i++) fn(arg, i, 0);
}

struct ahead_job {
    _Atomic int *taken;
    int n_items;
    void (*fn)(void *arg, int item, int then, int worker);
    void *arg;
};

/* A thread takes an item when it begins the one before; the first ones are dealt out. */
static void take_items(void *arg, int first, int worker)
{
    const struct ahead_job *j = arg;
    int now = first;
    while (now < j->n_items) {
        const int then = atomic_fetch_add_explicit(j->taken, 1, memory_order_relaxed);
        j->fn(j->arg, now, then < j->n_items ? then : -1, worker);
        now = then;
    }
}

void kk__cpu_for_ahead(struct kk_cpu *c, int n_items, int64_t ns,
                       void (*fn)(void *arg, int item, int then, int worker), void *arg)
{
    struct ahead_job j = {&c->s.taken->n, n_items, fn, arg};
    const int dealt = (int)kk__min64(n_items, c->dev.n_threads);
    atomic_store_explicit(&c->s.taken->n, dealt, memory_order_relaxed);
    kk__cpu_for(c, dealt, ns, take_items, &j);
}

struct near_job {
    struct kk_cpu_taken *taken;
    int n_threads, n_items;
    void (*fn)(void *arg, int item, int worker);
    void *arg;
};

static void near_items(void *arg, int item, int worker)
{
    const struct near_job *j = arg;
    (void)item;
    for (int k = 0; k < j->n_threads; k++) {
        const int of = (worker + k) % j->n_threads;
        int64_t lo, hi, i;
        kk_range(j->n_items, of, j->n_threads, &lo, &hi);
        while ((i = lo + atomic_fetch_add_explicit(&j->taken[of].n, 1, memory_order_relaxed)) < hi)
            j->fn(j->arg, (int)i, worker);
    }
}

void kk__cpu_for_near(struct kk_cpu *c, int n_items, int64_t ns,
                      void (*fn)(void *arg, int item, int worker), void *arg)
{
    struct near_job j = {c->s.taken, c->dev.n_threads, n_items, fn, arg};
    for (int i = 0; i < j.n_threads; i++)
        atomic_store_explicit(&c->s.taken[i].n, 0, memory_order_relaxed);
    kk__cpu_for(c, j.n_threads, ns, near_items, &j);
}

static void rows_item(void *arg, int item, int worker)
{
    const struct kk_rows_job *j = arg;
    int64_t lo, hi;
    kk_range(j->n, item, j->parts, &lo, &hi);
    j->fn(j->c, j->a, lo, hi, worker);
}

void kk__cpu_rows(struct kk_cpu *c, int64_t n, int64_t ns_each,
                  void (*fn)(struct kk_cpu *c, const void *a, int64_t lo, int64_t hi, int worker),
                  const void *a)
{
    int64_t ns = n * ns_each, parts = ns / ITEM_NS;
    if (c->dev.n_threads == 1 || ns < FORK_NS || n < 2) {
        if (n > 0) fn(c, a, 0, n, 0);
        return;
    }
    parts = kk__min64(kk__min64(parts, n), 4 * c->dev.n_threads);
    struct kk_rows_job j = {c, a, fn, n, parts < 2 ? 2 : (int)parts};
    kk__cpu_for_near(c, j.parts, ns, rows_item, &j);
}

#define GRID_NS    20000
#define GRID_SMALL 8192 /* panels x inputs of a product that is cut by rows alone */
#define GRID_LEAST 24   /* with so many rows in a block */
#define GRID_ROWS  192  /* rows of x that share an L2 with a block of weights */

struct kk_grid kk__cpu_grid(const struct kk_cpu *c, const struct kk_weight *w, int T,
                            int64_t n_panels, int64_t K)
{
    struct kk_grid g = {.T = T, .n_panels = n_panels};
    int64_t threads = c->dev.n_threads;
    g.row_blocks = (int)kk__ceil_div(T, GRID_ROWS);
    if (threads > 1 && n_panels * K <= GRID_SMALL) {
        const int blocks = (int)kk__min64(4 * threads, T / GRID_LEAST);
        if (blocks > g.row_blocks) g.row_blocks = blocks;
    }
    g.rows = (int)kk__ceil_div(T, g.row_blocks);
    g.row_blocks = (int)kk__ceil_div(T, g.rows);
    /* 16 outputs of one input: 1.5 ns to read, 0.25 ns a row to multiply */
    g.ns = n_panels * K * (6 + T) / 4;
    int64_t each = kk__min64(g.ns / (threads * GRID_NS), 8); /* items of a thread */
    int64_t items = threads == 1 ? g.row_blocks : threads * (each < 1 ? 1 : each);
    if (g.ns < FORK_NS || items < 1) items = 1;
    /* panels that a kernel takes at once */
    const int64_t unit = kk_dtype_is_block(w->dtype) ? 1 : 4;
    g.chunk = kk__ceil_div(n_panels, kk__ceil_div(items, g.row_blocks) * unit) * unit;
    g.n_chunks = kk__ceil_div(n_panels, g.chunk);
    return g;
}
