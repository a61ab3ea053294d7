/* Scratch of the CPU device: one block, cut once by kk_ops.reserve (law 4). */
#include <string.h>

#include "base/mem.h"
#include "dev/cpu/cpu_int.h"

/* Hands out 64-byte aligned pieces of a block; with base NULL it only counts. */
struct cutter {
    char *base;
    size_t at;
};

static void *cut(struct cutter *c, size_t bytes)
{
    void *p = c->base ? c->base + c->at : NULL;
    c->at += (bytes + 63) / 64 * 64;
    return p;
}

static void cut_worker(struct cutter *c, const struct kk_limits *l, struct kk_cpu_worker *w)
{
    const size_t D = (size_t)l->max_head_dim, f = sizeof(float), Q = KK_CPU_TILE_Q,
                 S = KK_CPU_SPLIT;
    w->q = cut(c, Q * D * f);
    w->keys = cut(c, S * D * f);
    w->s = cut(c, Q * S * f);
    w->p = cut(c, Q * S * f);
    w->o = cut(c, Q * (D + 2) * f);
    w->state = cut(c, Q * (D + 2) * f);
    w->up = cut(c, (size_t)KK_CPU_ROW_BLOCK * KK_CPU_PANEL_BLOCK * KK_LANES * f);
    w->krow = cut(c, S * sizeof(void *));
    w->vrow = cut(c, S * sizeof(void *));
    w->cs = cut(c, S * sizeof(float *));
}

/* Partial results of attention splits: enough that every worker has several splits of a decode
 * step. */
static int partial_slots(int threads)
{
    return threads < 4 ? 32 : threads * 8;
}

static size_t cut_all(struct kk_cpu *dst, char *base, int threads, const struct kk_limits *l)
{
    struct cutter c = {base, 0};
    struct kk_cpu_worker none;
    const size_t f = sizeof(float), D = (size_t)l->max_head_dim;
    const size_t pairs = (size_t)l->max_rows * (size_t)l->max_active;
    const size_t C = (size_t)l->max_model_width, F = (size_t)l->max_expert_width;
    struct kk_cpu_worker *w = cut(&c, (size_t)threads * sizeof *w);
    for (int i = 0; i < threads; i++) cut_worker(&c, l, base ? &w[i] : &none);
    float *partial = cut(&c, (size_t)partial_slots(threads) * KK_CPU_TILE_Q * (D + 2) * f);
    float *x = cut(&c, pairs * C * f), *gu = cut(&c, pairs * 2 * F * f),
          *h = cut(&c, pairs * F * f);
    float *y = cut(&c, pairs * C * f), *weight = cut(&c, pairs * f);
    int32_t *row = cut(&c, pairs * 4), *pair = cut(&c, pairs * 4), *start = cut(&c, 4097 * 4);
    if (base) {
        dst->worker = w;
        dst->partial = partial;
        dst->partial_slots = partial_slots(threads);
        dst->moe_x = x;
        dst->moe_gu = gu;
        dst->moe_h = h;
        dst->moe_y = y;
        dst->moe_weight = weight;
        dst->moe_row = row;
        dst->moe_pair = pair;
        dst->moe_start = start;
    }
    return c.at;
}

size_t kk__cpu_reserve_bytes(const struct kk_dev *d, const struct kk_limits *l)
{
    return cut_all(NULL, NULL, d->n_threads, l);
}

static int max_int(int a, int b)
{
    return a > b ? a : b;
}

/* A second model on the device widens what the first reserved. */
static struct kk_limits widest(const struct kk_limits *a, const struct kk_limits *b)
{
    return (struct kk_limits){
        .max_rows = max_int(a->max_rows, b->max_rows),
        .max_model_width = max_int(a->max_model_width, b->max_model_width),
        .max_head_dim = max_int(a->max_head_dim, b->max_head_dim),
        .max_active = max_int(a->max_active, b->max_active),
        .max_expert_width = max_int(a->max_expert_width, b->max_expert_width),
    };
}

int kk__cpu_reserve(struct kk_dev *d, const struct kk_limits *want, struct kk_account *acc,
                    struct kk_err *err)
{
    struct kk_cpu *c = kk_cpu_of(d);
    struct kk_limits l = widest(&c->limits, want);
    size_t bytes = cut_all(NULL, NULL, d->n_threads, &l);
    void *block;
    int rc = kk_dev_alloc(d, acc, bytes, &block, err);
    if (rc) return rc;
    kk_dev_free(d, c->scratch_account, c->scratch, c->scratch_bytes);
    c->scratch = block;
    c->scratch_bytes = bytes;
    c->scratch_account = acc;
    c->limits = l;
    cut_all(c, block, d->n_threads, &l);
    return 0;
}
