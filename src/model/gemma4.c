/* Gemma 4 text model (Hugging Face Gemma4ForCausalLM; DESIGN §8).
 *
 * h = embed[id] * sqrt(C). Per layer:
 *   h += rms_post_attn(attn(rms_in(h)))
 *   dense: h = (h + rms_post(mlp(rms_pre(h)))) * scalar
 *   MoE:   h = (h + rms_post(rms_post1(mlp(rms_pre(h))) + rms_post2(moe(rms_pre2(h))))) * scalar,
 *          the router reading rms(h) * router_scale * C^-0.5
 * logits = softcap(rms(h) E^T). Every norm that follows a residual add is part of that op. */
#include <stdio.h>

#include "model/model_int.h"

/* "model.layers.7.<what>" */
static const char *tensor_name(char buf[static 160], const char *prefix, int l, const char *what)
{
    snprintf(buf, 160, "%slayers.%d.%s", prefix, l, what);
    return buf;
}

static int bind_layer(struct kk_loader *ld, const char *prefix, int l, struct kk_err *err)
{
    const struct kk_model_config *c = &ld->m->config;
    const struct kk_layer_config *y = &c->layer[l];
    struct kk_layer_weights *w = &ld->m->layer[l];
    int64_t C = c->info.C, HD = (int64_t)c->info.H * y->D, GD = (int64_t)y->G * y->D, F = c->info.F;
    char n[160];
#define NAME(what) tensor_name(n, prefix, l, what)
    LOAD(kk__load_vector(ld, NAME("input_layernorm.weight"), C, 1, &w->input_norm, err));
    LOAD(kk__load_matrix(ld, NAME("self_attn.q_proj.weight"), 1, HD, C, &w->wq, err));
    LOAD(kk__load_matrix(ld, NAME("self_attn.k_proj.weight"), 1, GD, C, &w->wk, err));
    if (!y->value_only)
        LOAD(kk__load_matrix(ld, NAME("self_attn.v_proj.weight"), 1, GD, C, &w->wv, err));
    LOAD(kk__load_matrix(ld, NAME("self_attn.o_proj.weight"), 1, C, HD, &w->wo, err));
    LOAD(kk__load_vector(ld, NAME("self_attn.q_norm.weight"), y->D, 1, &w->q_norm, err));
    LOAD(kk__load_vector(ld, NAME("self_attn.k_norm.weight"), y->D, 1, &w->k_norm, err));
    LOAD(kk__load_vector(ld, NAME("post_attention_layernorm.weight"), C, 1, &w->post_attn_norm,
                         err));
    LOAD(kk__load_vector(ld, NAME("pre_feedforward_layernorm.weight"), C, 1, &w->pre_ff_norm, err));
    LOAD(kk__load_vector(ld, NAME("post_feedforward_layernorm.weight"), C, 1, &w->post_ff_norm,
                         err));
    LOAD(kk__load_matrix(ld, NAME("mlp.gate_proj.weight"), 1, F, C, &w->gate, err));
    LOAD(kk__load_matrix(ld, NAME("mlp.up_proj.weight"), 1, F, C, &w->up, err));
    LOAD(kk__load_matrix(ld, NAME("mlp.down_proj.weight"), 1, C, F, &w->down, err));
    return kk__load_scalar(ld, NAME("layer_scalar"), &w->scalar, err);
}

static int bind_moe(struct kk_loader *ld, const char *prefix, int l, struct kk_err *err)
{
    const struct kk_model_info *i = &ld->m->config.info;
    struct kk_layer_weights *w = &ld->m->layer[l];
    int64_t C = i->C, F = i->expert_F;
    float root = (float)(1.0 / __builtin_sqrt((double)C));
    char n[160];
    LOAD(kk__load_vector(ld, NAME("post_feedforward_layernorm_1.weight"), C, 1, &w->post_ff_norm_1,
                         err));
    LOAD(kk__load_vector(ld, NAME("post_feedforward_layernorm_2.weight"), C, 1, &w->post_ff_norm_2,
                         err));
    LOAD(kk__load_vector(ld, NAME("pre_feedforward_layernorm_2.weight"), C, 1, &w->pre_ff_norm_2,
                         err));
    LOAD(kk__load_vector(ld, NAME("router.scale"), C, root, &w->router_scale, err));
    LOAD(kk__load_vector(ld, NAME("router.per_expert_scale"), i->E, 1, &w->expert_scale, err));
    LOAD(kk__load_matrix(ld, NAME("router.proj.weight"), 1, i->E, C, &w->router, err));
    LOAD(kk__load_matrix(ld, NAME("experts.gate_up_proj"), i->E, 2 * F, C, &w->gate_up, err));
    return kk__load_matrix(ld, NAME("experts.down_proj"), i->E, C, F, &w->expert_down, err);
#undef NAME
}

int kk__gemma4_bind(struct kk_loader *ld, struct kk_err *err)
{
    struct kk_model *m = ld->m;
    const struct kk_model_info *i = &m->config.info;
    const char *prefix = kk__tensor_prefix(ld->mf);
    char n[160];
    snprintf(n, sizeof n, "%sembed_tokens.weight", prefix);
    LOAD(kk__load_matrix(ld, n, 1, i->V, i->C, &m->embed, err));
    if (!m->config.tied) LOAD(kk__load_matrix(ld, "lm_head.weight", 1, i->V, i->C, &m->head, err));
    snprintf(n, sizeof n, "%snorm.weight", prefix);
    LOAD(kk__load_vector(ld, n, i->C, 1, &m->final_norm, err));
    for (int l = 0; l < i->n_layers; l++) {
        LOAD(bind_layer(ld, prefix, l, err));
        if (m->config.moe) LOAD(bind_moe(ld, prefix, l, err));
    }
    return 0;
}

/* ---- the forward -------------------------------------------------------------------------- */

/* What every stage of a step shares. */
struct step {
    struct kk_model *m;
    struct kk_dev *dev;
    const struct kk_ops *op;
    struct kk_kv_pool *pool;
    int T, C;
};

/* Below, one op call is one stage, its arguments grouped by meaning. */
/* clang-format off */

/* One piece of attention: rows [t0, t0 + T) of the step against a range of splits. */
static void attend(const struct step *s, struct kk_attn_args *a, const struct kk_kv_piece *p)
{
    struct kk_buffers *b = &s->m->buf;
    const int64_t at = (int64_t)p->t0 * a->H;
    a->T = p->T;
    a->q = b->q + at * a->D;
    a->pos = kk_kv_step_pos(s->pool) + p->t0;
    a->seq = kk_kv_step_seq(s->pool) + p->t0;
    a->first_split = p->first_split;
    a->end_split = p->end_split;
    a->first = p->first;
    a->last = p->last;
    a->state = b->state + at * (a->D + 2);
    a->o = (char *)b->o + (size_t)(at * a->D) * kk_dtype_bytes(s->dev->act);
    s->op->attn(s->dev, a);
}

/* Sequence by sequence: rebuild the rows that some row of the step needs, then attend to all. */
static void attend_restored(const struct step *s, int l, struct kk_attn_args *a)
{
    const int32_t *pos = kk_kv_step_pos_host(s->pool);
    struct kk_kv_piece p = {.end_split = KK_NO_BOUND, .first = 1, .last = 1};
    for (int b = 0; b < a->B; b++, p.t0 += p.T) {
        p.T = kk_kv_step_rows(s->pool, b);
        int32_t first = pos[p.t0] - a->mask.window + 1;
        int32_t end = pos[p.t0 + p.T - 1] - a->mask.exact_near + 1;
        if (first < a->mask.exact_sinks) first = a->mask.exact_sinks;
        a->rebuilt_first = first;
        if (first < end)
            a->rebuilt =
                kk__ftheta_rebuild(s->m->restorer, s->pool, b, l, first, end - first);
        attend(s, a, &p);
    }
}

/* x = rms_in(h) in buf.x -> attention output, projected, in buf.a */
static void attention(const struct step *s, int l)
{
    struct kk_buffers *b = &s->m->buf;
    const struct kk_layer_config *y = &s->m->config.layer[l];
    const struct kk_layer_weights *w = &s->m->layer[l];
    const struct kk_kv_view kv = kk_kv_layer(s->pool, l);
    const float *rope = y->sliding ? s->m->rope_sliding.cs : s->m->rope_full.cs;
    const int H = s->m->config.info.H;
    const int32_t *pos = kk_kv_step_pos(s->pool);

    s->op->linear(s->dev, &(struct kk_linear_args){
        .T = s->T, .n = y->value_only ? 2 : 3, .x = b->x,
        .w = {&w->wq, &w->wk, &w->wv}, .y = {b->q, b->k, b->v}});
    s->op->qkv(s->dev, &(struct kk_qkv_args){
        .T = s->T, .H = H, .G = y->G, .D = y->D, .R = y->R, .value_only = y->value_only,
        .q = b->q, .k = b->k, .v = b->v, .q_norm = w->q_norm, .k_norm = w->k_norm,
        .eps = s->m->config.eps, .pos = pos, .rope = rope,
        .kv_dtype = kk_kv_dtype(s->pool), .rows = kv.rows});
    struct kk_attn_args a = {
        .B = kk_kv_step_B(s->pool), .H = H, .G = y->G, .D = y->D, .R = y->R,
        .value_only = y->value_only, .seqs = kv.seqs, .mask = kv.mask, .scale = 1.0f,
        .k_norm = w->k_norm, .rope = rope, .kv_dtype = kk_kv_dtype(s->pool)};
    if (kv.mask.exact_near)
        attend_restored(s, l, &a);
    else
        for (struct kk_kv_piece p = kk_kv_first_piece(s->pool, l); p.T;
             p = kk_kv_next_piece(s->pool, l))
            attend(s, &a, &p);
    kk_kv_layer_done(s->pool, l);
    s->op->linear(s->dev, &(struct kk_linear_args){
        .T = s->T, .n = 1, .x = b->o, .w = {&w->wo}, .y = {b->a}});
}

/* Dense feed-forward of buf.x into buf.a; with experts, those of buf.x_moe into buf.b */
static void feed_forward(const struct step *s, int l)
{
    struct kk_buffers *b = &s->m->buf;
    const struct kk_model_config *c = &s->m->config;
    const struct kk_layer_weights *w = &s->m->layer[l];
    s->op->glu(s->dev, &(struct kk_glu_args){
        .T = s->T, .act = c->act, .x = b->x, .gate = &w->gate, .up = &w->up, .y = b->f});
    s->op->linear(s->dev, &(struct kk_linear_args){
        .T = s->T, .n = 1, .x = b->f, .w = {&w->down}, .y = {b->a}});
    if (!c->moe) return;
    s->op->route(s->dev, &(struct kk_route_args){
        .T = s->T, .E = c->info.E, .A = c->info.A, .x = b->x_router, .w = &w->router,
        .expert_scale = w->expert_scale, .idx = b->expert_idx, .weight = b->expert_weight});
    s->op->moe(s->dev, &(struct kk_moe_args){
        .T = s->T, .E = c->info.E, .A = c->info.A, .act = c->act, .x = b->x_moe,
        .idx = b->expert_idx, .weight = b->expert_weight,
        .gate_up = &w->gate_up, .down = &w->expert_down, .y = b->b});
}

static void layer(const struct step *s, int l, const float *next_norm)
{
    struct kk_buffers *b = &s->m->buf;
    const struct kk_model_config *c = &s->m->config;
    const struct kk_layer_weights *w = &s->m->layer[l];

    attention(s, l);
    s->op->residual(s->dev, &(struct kk_residual_args){
        .T = s->T, .C = s->C, .n_in = 1, .n_out = c->moe ? 3 : 1, .h = b->h, .a = {b->a},
        .w_post = w->post_attn_norm, .scale = 1.0f, .eps = c->eps,
        .w_out = {w->pre_ff_norm, w->pre_ff_norm_2, w->router_scale},
        .y = {b->x, b->x_moe, b->x_router}});
    feed_forward(s, l);
    s->op->residual(s->dev, &(struct kk_residual_args){
        .T = s->T, .C = s->C, .n_in = c->moe ? 2 : 1, .n_out = next_norm ? 1 : 0, .h = b->h,
        .a = {b->a, b->b}, .w_in = {w->post_ff_norm_1, w->post_ff_norm_2},
        .w_post = w->post_ff_norm, .scale = w->scalar, .eps = c->eps,
        .w_out = {next_norm}, .y = {b->x}});
}

/* Auxiliary taps of this layer's residual stream, all rows, to the caller's buffers. */
static void tap(const struct step *s, const struct kk_forward *fwd, int l)
{
    for (int k = 0; k < 2; k++)
        for (int i = 0; i < fwd->taps[k].n; i++)
            if (fwd->taps[k].layers[i] == l)
                s->op->gather(s->dev, &(struct kk_gather_args){
                    .n = s->T, .C = s->C, .src = s->m->buf.h, .dst = fwd->taps[k].dst + i * s->C,
                    .stride = (int64_t)fwd->taps[k].n * s->C});
}

void kk__gemma4_forward(struct kk_model *m, struct kk_kv_pool *pool, const struct kk_forward *fwd)
{
    struct kk_buffers *b = &m->buf;
    const struct kk_model_config *c = &m->config;
    const struct step s = {m, m->dev, m->dev->ops, pool, kk_kv_step_T(pool), c->info.C};
    const int N = c->info.n_layers;

    kk_kv_prefetch(pool);
    s.op->embed(s.dev, &(struct kk_embed_args){
        .T = s.T, .ids = b->ids, .table = &m->embed, .scale = c->embed_scale, .h = b->h});
    s.op->norm(s.dev, &(struct kk_norm_args){
        .T = s.T, .C = s.C, .x = b->h, .w = m->layer[0].input_norm, .eps = c->eps, .y = b->x});
    for (int l = 0; l < N; l++) {
        layer(&s, l, l + 1 < N ? m->layer[l + 1].input_norm : NULL);
        tap(&s, fwd, l);
    }
    if (!fwd->n_logits) return;
    s.op->gather(s.dev, &(struct kk_gather_args){
        .n = fwd->n_logits, .C = s.C, .rows = b->logit_rows, .src = b->h, .dst = b->h_last});
    s.op->norm(s.dev, &(struct kk_norm_args){
        .T = fwd->n_logits, .C = s.C, .x = b->h_last, .w = m->final_norm, .eps = c->eps,
        .y = b->x});
    s.op->linear(s.dev, &(struct kk_linear_args){
        .T = fwd->n_logits, .n = 1, .x = b->x, .w = {c->tied ? &m->embed : &m->head},
        .y = {b->logits}, .softcap = c->softcap});
}
/* clang-format on */
