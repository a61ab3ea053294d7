/* The CPU device behind dev/dev.h: its state, and what the op files share. */
#ifndef KK_DEV_CPU_CPU_INT_H
#define KK_DEV_CPU_CPU_INT_H

#include <stdatomic.h>

#include "base/pool.h"
#include "dev/cpu/kern_int.h"
#include "dev/dev.h"

enum {
    KK_CPU_SPLIT = 128,        /* S: keys of an attention split; part of every row's bits */
    KK_CPU_QUERIES = 64,       /* queries of an attention tile: rows x heads of a KV head */
    KK_CPU_TILE = 32 * 1024,   /* floats of a product that is used at once (up, one expert) */
    KK_CPU_MOE_ROWS = 48,      /* rows of one expert gathered at once */
    KK_CPU_PARTS = 512 * 1024, /* least floats for the partial sums of attention splits */
    KK_CPU_EXPERTS = 1024      /* assumed where limits name active experts but no max_experts */
};

/* A counter with a cache line of its own */
struct kk_cpu_taken {
    _Alignas(64) _Atomic int n;
};

/* Scratch: one block of memory, made by reserve, cut into these. */
struct kk_cpu_scratch {
    struct kk_limits limits;
    struct kk_account *account;
    void *base;
    size_t bytes;
    size_t thread_bytes; /* of each thread's own part: the floats of one op at a time */
    char *threads;
    size_t panel_at; /* in a thread's part: a panel of a block type as f32 (KK_ACT_F32) */
    float *parts;    /* attention: [split][query][part_stride]; winner: [thread][row] */
    size_t n_parts;
    _Atomic int *pending;       /* attention: chunks of a group that are not done */
    struct kk_cpu_taken *taken; /* [n_threads]: items that threads have taken */
    int32_t *tiles;             /* attention: first row of each tile, [max_rows + 1] */
    float *pairs;               /* route: logits [T, E]; moe: activations [T*A, F] */
    size_t n_pairs;
    int32_t *order;   /* moe: [T*A] pair indices (row * A + slot), by expert, then row */
    int32_t *starts;  /* moe: [E + 1] where an expert's pairs begin in order */
    int32_t *experts; /* moe: those with rows, ascending */
    int max_experts;
    char *q8; /* products with block types: the input's rows in 8 bits */
    size_t q8_bytes;
    uint32_t *pairs16; /* products with bf16_in: the input's rows in pairs of bf16 */
    size_t n_pairs16;
};

struct kk_cpu {
    struct kk_dev dev; /* first */
    const struct kk_cpu_kern *kern;
    const struct kk_cpu_q8 *q8;
    struct kk_pool *pool;
    struct kk_cpu_scratch s;
    struct kk_cpu_chunk *chunks; /* of small weights (weight.c) */
    struct kk_cpu_slab *slabs;   /* of blocks of rows (slab.c) */
    int loading;                 /* what is allocated is a weight */
    const void *by_columns;      /* what glu wrote last: each thread columns of all rows */
    struct kk_err latched;       /* the first error of the step */
};

static inline struct kk_cpu *kk__cpu(struct kk_dev *dev)
{
    return (struct kk_cpu *)dev;
}

static inline int64_t kk__min64(int64_t a, int64_t b)
{
    return a < b ? a : b;
}

static inline int64_t kk__ceil_div(int64_t a, int64_t b)
{
    return (a + b - 1) / b;
}

static inline int64_t kk__panels(int64_t rows)
{
    return kk__ceil_div(rows, KK_LANES);
}

/* This thread's part of the scratch, 64-byte aligned. Aborts if reserve was not called. */
static inline float *kk__cpu_scratch(struct kk_cpu *c, int worker)
{
    KK_BUG_ON(!c->s.base);
    return (float *)(c->s.threads + (size_t)worker * c->s.thread_bytes);
}

/* Remember the first error of a step; step_end returns it. Only from the calling thread. */
void kk__cpu_latch(struct kk_cpu *c, int code, const char *fmt, ...)
    __attribute__((format(printf, 3, 4)));

/* kk_pool_for, unless all items together are worth less than a fork: ns is a guess of their cost
 * on one thread. */
void kk__cpu_for(struct kk_cpu *c, int n_items, int64_t ns,
                 void (*fn)(void *arg, int item, int worker), void *arg);

/* The same, each item told which its thread does next (-1: none): what that reads can be asked for
 * ahead. */
void kk__cpu_for_ahead(struct kk_cpu *c, int n_items, int64_t ns,
                       void (*fn)(void *arg, int item, int then, int worker), void *arg);

/* kk__cpu_for where items next to each other go to one thread, and the same ones in every such loop
 * over the same rows: what a thread wrote there it finds in its cache. A thread that is done helps
 * the others. */
void kk__cpu_for_near(struct kk_cpu *c, int n_items, int64_t ns,
                      void (*fn)(void *arg, int item, int worker), void *arg);

/* For ops that go row by row: rows [lo, hi) are done by one call. */
struct kk_rows_job {
    struct kk_cpu *c;
    const void *a;
    void (*fn)(struct kk_cpu *c, const void *a, int64_t lo, int64_t hi, int worker);
    int64_t n;
    int parts;
};
void kk__cpu_rows(struct kk_cpu *c, int64_t n, int64_t ns_each,
                  void (*fn)(struct kk_cpu *c, const void *a, int64_t lo, int64_t hi, int worker),
                  const void *a);

/* A product of T rows with n_panels panels of K inputs, of the type of w: items of rows x panels
 * that fit the caches and are worth a fork. Bits do not depend on it. Item i: row block i %
 * row_blocks, panels from i / row_blocks * chunk. */
struct kk_grid {
    int rows, row_blocks; /* rows of a block */
    int64_t chunk, n_chunks, n_panels;
    int T;
    int64_t ns; /* estimate for all */
};
struct kk_grid kk__cpu_grid(const struct kk_cpu *c, const struct kk_weight *w, int T,
                            int64_t n_panels, int64_t K);

struct kk_cell {
    int row, rows;
    int64_t panel, panels;
};
static inline struct kk_cell kk__grid_cell(const struct kk_grid *g, int item)
{
    struct kk_cell e = {.row = item % g->row_blocks * g->rows,
                        .panel = item / g->row_blocks * g->chunk};
    e.rows = (int)kk__min64(g->rows, g->T - e.row);
    e.panels = kk__min64(g->chunk, g->n_panels - e.panel);
    return e;
}

static inline int kk__grid_items(const struct kk_grid *g)
{
    return g->row_blocks * (int)g->n_chunks;
}

/* Panel p of matrix m */
static inline const void *kk__panel(const struct kk_weight *w, int m, int64_t p)
{
    return (const char *)w->data + (size_t)m * w->mat_bytes +
           (size_t)p * kk_panel_bytes(w->dtype, w->cols);
}

/* ---- products ---- */

/* Rows of the input of a product: f32, and in 8 bits or in pairs of bf16 where a weight asks. */
struct kk_cpu_x {
    const float *f; /* NULL: the input is bf16 (kk_linear_args.bf16) */
    int64_t ld;
    const char *q; /* NULL: nobody asks */
    size_t stride;
    const uint32_t *h; /* NULL: nobody asks */
    int64_t ldh;
};

static inline struct kk_cpu_x kk__x_row(const struct kk_cpu_x *x, int64_t row)
{
    return (struct kk_cpu_x){.f = x->f ? x->f + row * x->ld : NULL,
                             .ld = x->ld,
                             .q = x->q ? x->q + (size_t)row * x->stride : NULL,
                             .stride = x->stride,
                             .h = x->h ? x->h + row * x->ldh : NULL,
                             .ldh = x->ldh};
}

/* x[T, K] as n weights want it; what is not f32 is in the scratch until the next call. */
struct kk_cpu_x kk__cpu_x(struct kk_cpu *c, int64_t T, int64_t K, const float *x, int n,
                          const struct kk_weight *const *w);

/* y[r*ldy + n] = rows r < M of x times outputs n < N of the panels of w from `panel` on. What this
 * thread reads soon is at next: a hint, or NULL. */
void kk__cpu_gemm(struct kk_cpu *c, int worker, const struct kk_weight *w, int M, int64_t N,
                  const struct kk_cpu_x *x, const void *panel, const void *next, float *y,
                  int64_t ldy);

/* scratch.c */
int kk__cpu_reserve(struct kk_dev *, const struct kk_limits *, struct kk_account *,
                    struct kk_err *);
size_t kk__cpu_reserve_bytes(const struct kk_dev *, const struct kk_limits *);

/* slab.c: kk__slab_is_for says what sizes are its; a piece is zeroed. */
int kk__slab_is_for(size_t bytes);
void *kk__slab_take(struct kk_cpu *c, size_t bytes); /* NULL when out of memory */
void kk__slab_give(struct kk_cpu *c, void *p);

/* weight.c */
#define KK_CPU_HUGE_PAGE ((size_t)2 << 20)
void *kk__cpu_map(size_t bytes); /* zeroed, on huge pages where there are such; or NULL */
void *kk__cpu_alloc(struct kk_dev *, size_t bytes);
void kk__cpu_free(struct kk_dev *, void *p, size_t bytes);
int kk__cpu_weight_load(struct kk_dev *, const struct kk_weight_src *, struct kk_account *,
                        struct kk_weight *out, struct kk_err *);
size_t kk__cpu_weight_bytes(const struct kk_dev *, const struct kk_weight_src *);

/* ops.c, linear.c, attn.c, moe.c */
void kk__cpu_embed(struct kk_dev *, const struct kk_embed_args *);
void kk__cpu_norm(struct kk_dev *, const struct kk_norm_args *);
void kk__cpu_linear(struct kk_dev *, const struct kk_linear_args *);
void kk__cpu_qkv(struct kk_dev *, const struct kk_qkv_args *);
void kk__cpu_attn(struct kk_dev *, const struct kk_attn_args *);
void kk__cpu_residual(struct kk_dev *, const struct kk_residual_args *);
void kk__cpu_glu(struct kk_dev *, const struct kk_glu_args *);
void kk__cpu_route(struct kk_dev *, const struct kk_route_args *);
void kk__cpu_moe(struct kk_dev *, const struct kk_moe_args *);
void kk__cpu_gather(struct kk_dev *, const struct kk_gather_args *);
void kk__cpu_argmax(struct kk_dev *, const struct kk_argmax_args *);
void kk__cpu_kv_store(struct kk_dev *, const struct kk_kv_store_args *);
void kk__cpu_convert(struct kk_dev *dev, const struct kk_convert_args *a);
void kk__cpu_winner(struct kk_dev *, const struct kk_winner_args *);

#endif
