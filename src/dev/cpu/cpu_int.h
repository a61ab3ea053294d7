/* Private to dev/cpu: the device struct, its scratch, and the op entry points of each file. */
#ifndef KK_DEV_CPU_CPU_INT_H
#define KK_DEV_CPU_CPU_INT_H

#include "base/pool.h"
#include "dev/cpu/kern_int.h"
#include "dev/dev.h"

/* Keys per attention split (law 2), and query vectors (rows x heads) of one attention tile. */
enum { KK_CPU_SPLIT = 128, KK_CPU_TILE_Q = 64 };

/* Rows and panels of one work item of a large matrix product: x and w of an item fit in L2
 * together. */
enum { KK_CPU_ROW_BLOCK = 64, KK_CPU_PANEL_BLOCK = 8 };

/* What one worker needs for attention and gated products. */
struct kk_cpu_worker {
    float *q;          /* [TILE_Q, D] */
    float *keys;       /* [SPLIT, D] derived keys */
    float *s;          /* [TILE_Q, SPLIT] scores, then weights */
    float *p;          /* [TILE_Q, SPLIT] weights of visible keys only */
    float *o;          /* [TILE_Q, D + 2] of one split */
    float *state;      /* [TILE_Q, D + 2] running merge */
    float *up;         /* [ROW_BLOCK, 16 * PANEL_BLOCK] */
    const void **krow; /* [SPLIT] */
    const void **vrow; /* [SPLIT] */
    const float **cs;  /* [SPLIT] */
};

struct kk_cpu {
    struct kk_dev dev; /* first: a struct kk_dev * is a struct kk_cpu * */
    const struct kk_cpu_kern *k;
    struct kk_pool *pool;
    struct kk_err latched; /* code 0: none */
    struct kk_limits limits;
    struct kk_account *scratch_account;
    void *scratch; /* one block behind everything below */
    size_t scratch_bytes;
    struct kk_cpu_worker *worker; /* [n_threads] */
    float *partial;               /* [partial_slots, TILE_Q, D + 2] of attention splits */
    int partial_slots;
    float *moe_x, *moe_gu, *moe_h, *moe_y;   /* [T*A, C] [T*A, 2F] [T*A, F] [T*A, C] */
    int32_t *moe_row, *moe_pair, *moe_start; /* [T*A], [T, A], [E + 1] */
    float *moe_weight;                       /* [T*A] */
};

static inline struct kk_cpu *kk_cpu_of(struct kk_dev *d)
{
    return (struct kk_cpu *)d;
}

/* First error of a step wins; ops go on with harmless values. */
void kk__cpu_latch(struct kk_cpu *c, const char *fmt, ...) __attribute__((format(printf, 2, 3)));

/* Panel p of matrix m of a weight. */
static inline const void *kk_cpu_panel(const struct kk_weight *w, int m, int64_t p)
{
    return (const char *)w->data + (size_t)m * w->mat_bytes +
           (size_t)p * kk_panel_bytes(w->dtype, w->cols);
}
static inline int64_t kk_cpu_panels(int64_t rows)
{
    return (rows + KK_LANES - 1) / KK_LANES;
}

/* A forked function. */
typedef void kk__cpu_work(void *arg, int worker, int n);

/* The part [*first, *end) of [0, total) that worker i of n takes, in units of `grain`. */
static inline void kk__cpu_range(int64_t total, int64_t grain, int i, int n, int64_t *first,
                                 int64_t *end)
{
    kk_range((total + grain - 1) / grain, i, n, first, end);
    *first *= grain;
    *end *= grain;
    if (*first > total) *first = total;
    if (*end > total) *end = total;
}

/* weight.c */
int kk__cpu_weight_load(struct kk_dev *, const struct kk_weight_src *, struct kk_account *,
                        struct kk_weight *, struct kk_err *);
size_t kk__cpu_weight_bytes(const struct kk_dev *, const struct kk_weight_src *);
void kk__cpu_embed(struct kk_dev *, const struct kk_embed_args *);
/* scratch.c */
int kk__cpu_reserve(struct kk_dev *, const struct kk_limits *, struct kk_account *,
                    struct kk_err *);
size_t kk__cpu_reserve_bytes(const struct kk_dev *, const struct kk_limits *);
/* linear.c */
void kk__cpu_linear(struct kk_dev *, const struct kk_linear_args *);
void kk__cpu_glu(struct kk_dev *, const struct kk_glu_args *);
/* attn.c */
void kk__cpu_qkv(struct kk_dev *, const struct kk_qkv_args *);
void kk__cpu_attn(struct kk_dev *, const struct kk_attn_args *);
void kk__cpu_kv_store(struct kk_dev *, const struct kk_kv_store_args *);
/* moe.c */
void kk__cpu_route(struct kk_dev *, const struct kk_route_args *);
void kk__cpu_moe(struct kk_dev *, const struct kk_moe_args *);

#endif
