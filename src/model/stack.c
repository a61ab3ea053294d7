/* A step of few rows as one op of the device, where it has one for this model (kk_dev.stack): the
 * same bits as forward.c, which is walked when the device declines. */
#include <string.h>

#include "base/mem.h"
#include "model/stack_int.h"

enum { MOST_SEQS = 16 };

static void describe_layer(const struct kk_model *m, int l, struct kk_stack_layer *out)
{
    const struct kk_layer_config *y = &m->config.layer[l];
    const struct kk_layer_weights *w = &m->layer[l];
    *out = (struct kk_stack_layer){
        .sliding = y->sliding,
        .value_only = y->value_only,
        .D = y->D,
        .G = y->G,
        .R = y->R,
        .wq = &w->wq,
        .wk = &w->wk,
        .wv = y->value_only ? NULL : &w->wv,
        .wo = &w->wo,
        .gate = &w->gate,
        .up = &w->up,
        .down = &w->down,
        .router = &w->router,
        .gate_up = &w->gate_up,
        .expert_down = &w->expert_down,
        .input_norm = w->input_norm,
        .post_attn_norm = w->post_attn_norm,
        .pre_ff_norm = w->pre_ff_norm,
        .pre_ff_norm_2 = w->pre_ff_norm_2,
        .router_scale = w->router_scale,
        .post_ff_norm_1 = w->post_ff_norm_1,
        .post_ff_norm_2 = w->post_ff_norm_2,
        .post_ff_norm = w->post_ff_norm,
        .q_norm = w->q_norm,
        .k_norm = w->k_norm,
        .expert_scale = w->expert_scale,
        .scalar = w->scalar,
    };
}

static struct kk_stack describe(struct kk_model *m)
{
    const struct kk_model_config *c = &m->config;
    for (int l = 0; l < c->info.n_layers; l++) describe_layer(m, l, &m->stack->layer[l]);
    return (struct kk_stack){
        .n_layers = c->info.n_layers,
        .C = c->info.C,
        .H = c->info.H,
        .E = c->info.E,
        .A = c->info.A,
        .F = c->info.F,
        .expert_F = c->info.expert_F,
        .V = c->info.V,
        .act = c->act,
        .eps = c->eps,
        .attn_scale = c->attn_scale,
        .embed_scale = c->embed_scale,
        .softcap = c->softcap,
        .embed = &m->embed,
        .head = c->tied ? &m->embed : &m->head,
        .final_norm = m->final_norm,
        .layer = m->stack->layer,
    };
}

/* An architecture whose layers are what struct kk_stack says: gemma4.c with experts */
static int is_known(const struct kk_model *m)
{
    return m->dev->stack && m->config.arch == &kk__gemma4 && m->config.moe;
}

static int alloc_tables(struct kk_model *m, struct kk_err *err)
{
    const size_t N = (size_t)m->config.info.n_layers;
    if (m->stack) return 0;
    m->stack = kk_calloc(1, sizeof *m->stack);
    if (m->stack) m->stack->layer = kk_calloc(N, sizeof *m->stack->layer);
    if (m->stack) m->stack->kv = kk_calloc(N, sizeof *m->stack->kv);
    if (m->stack && m->stack->layer && m->stack->kv) return 0;
    return kk_fail(err, KK_ENOMEM, "out of memory for a model");
}

int kk__stack_bytes(struct kk_model *m, size_t *out, struct kk_err *err)
{
    *out = 0;
    if (!is_known(m)) return 0;
    int rc = alloc_tables(m, err);
    if (rc) return rc;
    const struct kk_stack k = describe(m);
    *out = m->dev->stack->bytes(m->dev, &k);
    return 0;
}

int kk__stack_open(struct kk_model *m, struct kk_err *err)
{
    if (!is_known(m)) return 0;
    int rc = alloc_tables(m, err);
    if (rc) return rc;
    const struct kk_stack k = describe(m);
    return m->dev->stack->open(m->dev, &k, &m->scratch, &m->stack->handle, err);
}

void kk__stack_close(struct kk_model *m)
{
    if (!m->stack) return;
    if (m->stack->handle) m->dev->stack->close(m->dev, m->stack->handle);
    kk_free(m->stack->layer);
    kk_free(m->stack->kv);
    kk_free(m->stack);
    m->stack = NULL;
}

/* Which blocks of the step are in host memory. */
struct host_blocks {
    struct kk_stack_host host;
    int32_t first[2][MOST_SEQS], count[2][MOST_SEQS];
};

/* Each layer's rows, and the masks of both kinds; 0 where the step is not of this form. */
static int views(struct kk_model *m, const struct kk_kv_pool *pool, struct kk_stack_step *s,
                 struct host_blocks *h)
{
    int seen[2] = {0, 0};
    for (int l = 0; l < m->config.info.n_layers; l++) {
        const int kind = m->config.layer[l].sliding;
        const struct kk_kv_view v = kk_kv_layer(pool, l);
        if (v.mask.exact_near) return 0;
        if (seen[kind] && memcmp(&v.mask, &s->mask[kind], sizeof v.mask)) return 0;
        for (int b = 0; !seen[kind] && b < s->B; b++)
            h->count[kind][b] = kk_kv_host_blocks_of(pool, l, b, &h->first[kind][b]);
        seen[kind] = 1;
        s->mask[kind] = v.mask;
        m->stack->kv[l] = (struct kk_stack_kv){v.seqs, v.rows};
    }
    s->kv = m->stack->kv;
    const struct kk_kv_host_blocks b = kk_kv_host_blocks(pool);
    if (b.n <= 0) return !b.n;
    h->host = (struct kk_stack_host){.n = b.n,
                                     .slots = b.slots,
                                     .slot0 = b.slot0,
                                     .block_rows = KK_KV_BLOCK_ROWS,
                                     .slot_bytes = b.slot_bytes,
                                     .ring = b.ring,
                                     .from = b.from,
                                     .first = {h->first[0], h->first[1]},
                                     .count = {h->count[0], h->count[1]}};
    s->host = &h->host;
    return 1;
}

int kk__stack_step(struct kk_model *m, struct kk_kv_pool *pool, const struct kk_forward *fwd)
{
    int32_t pos[MOST_SEQS], rows[MOST_SEQS];
    struct host_blocks host = {0};
    const int B = kk_kv_step_B(pool), T = kk_kv_step_T(pool);
    if (!m->stack || !m->stack->handle || fwd->one_shot || B > MOST_SEQS || !kk_kv_step_holds(pool))
        return 0;
    for (int b = 0, t = 0; b < B; t += rows[b++]) {
        pos[b] = kk_kv_step_pos_host(pool)[t];
        rows[b] = kk_kv_step_rows(pool, b);
    }
    struct kk_stack_step s = {.T = T,
                              .B = B,
                              .ids = m->buf.ids,
                              .pos = pos,
                              .rows = rows,
                              .kv_dtype = kk_kv_dtype(pool),
                              .rope = {m->rope[0].cs, m->rope[1].cs},
                              .n_logits = fwd->n_logits,
                              .logit_rows = fwd->logit_rows,
                              .logits = m->buf.logits,
                              .choice = m->buf.choice};
    for (int k = 0; k < 2; k++) {
        s.n_taps[k] = fwd->taps[k].n;
        s.tap_layers[k] = fwd->taps[k].layers;
        s.tap_dst[k] = fwd->taps[k].dst;
    }
    return views(m, pool, &s, &host) && !m->dev->stack->step(m->dev, m->stack->handle, &s);
}
