/* The forward of every architecture: embedding, its layers, logits; and the stages that layers
 * share. What differs is which of these stages an architecture's layer calls, with which norms. */
#include "model/model_int.h"

/* Below, one op call is one stage, its arguments grouped by meaning. */
/* clang-format off */

/* One piece of attention: rows [t0, t0 + T) of the step against a range of splits. */
static void attend(const struct kk_step *s, struct kk_attn_args *a, const struct kk_kv_piece *p)
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
static void attend_restored(const struct kk_step *s, int l, struct kk_attn_args *a)
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

/* What the host knows of the step's positions. */
static void size_up(const struct kk_step *s, struct kk_attn_args *a)
{
    const int32_t *pos = kk_kv_step_pos_host(s->pool);
    for (int t = 0; t < s->T; t++)
        if (pos[t] >= a->longest) a->longest = pos[t] + 1;
    for (int b = 0; b < a->B; b++)
        if (kk_kv_step_rows(s->pool, b) > a->most_rows) a->most_rows = kk_kv_step_rows(s->pool, b);
}

void kk__attention(const struct kk_step *s, int l)
{
    struct kk_buffers *b = &s->m->buf;
    const struct kk_model_config *c = &s->m->config;
    const struct kk_layer_config *y = &c->layer[l];
    const struct kk_layer_weights *w = &s->m->layer[l];
    const struct kk_kv_view kv = kk_kv_layer(s->pool, l);
    const float *rope = s->m->rope[y->sliding].cs;
    const int H = c->info.H;
    const int32_t *pos = kk_kv_step_pos(s->pool);

    s->op->linear(s->dev, &(struct kk_linear_args){
        .T = s->T, .n = y->value_only ? 2 : 3, .x = b->x,
        .w = {&w->wq, &w->wk, &w->wv}, .y = {b->q, b->k, b->v}});
    s->op->qkv(s->dev, &(struct kk_qkv_args){
        .T = s->T, .H = H, .G = y->G, .D = y->D, .R = y->R, .value_only = y->value_only,
        .raw_value = c->raw_value, .q = b->q, .k = b->k, .v = b->v,
        .q_norm = w->q_norm, .k_norm = w->k_norm, .eps = c->eps, .pos = pos, .rope = rope,
        .kv_dtype = kk_kv_dtype(s->pool), .rows = kv.rows});
    if (s->one_shot && y->sliding) kk__one_shot_replace(s->one_shot, s->pool, l);
    struct kk_attn_args a = {
        .B = kk_kv_step_B(s->pool), .H = H, .G = y->G, .D = y->D, .R = y->R,
        .value_only = y->value_only, .seqs = kv.seqs, .mask = kv.mask,
        .scale = c->attn_scale, .k_norm = w->k_norm, .rope = rope,
        .kv_dtype = kk_kv_dtype(s->pool), .staging = kv.staging};
    size_up(s, &a);
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

void kk__mlp(const struct kk_step *s, int l)
{
    struct kk_buffers *b = &s->m->buf;
    const struct kk_layer_weights *w = &s->m->layer[l];
    s->op->glu(s->dev, &(struct kk_glu_args){
        .T = s->T, .act = s->m->config.act, .x = b->x, .gate = &w->gate, .up = &w->up, .y = b->f});
    s->op->linear(s->dev, &(struct kk_linear_args){
        .T = s->T, .n = 1, .x = b->f, .w = {&w->down}, .y = {b->a}});
}

void kk__residual(const struct kk_step *s, const float *post, const float *next)
{
    struct kk_buffers *b = &s->m->buf;
    s->op->residual(s->dev, &(struct kk_residual_args){
        .T = s->T, .C = s->C, .n_in = 1, .n_out = next ? 1 : 0, .plain = !post, .h = b->h,
        .a = {b->a}, .w_post = post, .scale = 1.0f, .eps = s->m->config.eps,
        .w_out = {next}, .y = {b->x}});
}

/* Auxiliary taps of this layer's residual stream, all rows, to the caller's buffers. */
static void tap(const struct kk_step *s, const struct kk_forward *fwd, int l)
{
    for (int k = 0; k < 2; k++)
        for (int i = 0; i < fwd->taps[k].n; i++)
            if (fwd->taps[k].layers[i] == l)
                s->op->gather(s->dev, &(struct kk_gather_args){
                    .n = s->T, .C = s->C, .src = s->m->buf.h, .dst = fwd->taps[k].dst + i * s->C,
                    .stride = (int64_t)fwd->taps[k].n * s->C});
}

void kk__forward(struct kk_model *m, struct kk_kv_pool *pool, const struct kk_forward *fwd)
{
    struct kk_buffers *b = &m->buf;
    const struct kk_model_config *c = &m->config;
    const struct kk_step s = {m, m->dev, m->dev->ops, pool, kk_kv_step_T(pool), c->info.C,
                              fwd->one_shot};
    const int N = c->info.n_layers;

    kk_kv_prefetch(pool);
    s.op->embed(s.dev, &(struct kk_embed_args){
        .T = s.T, .ids = b->ids, .table = &m->embed, .scale = c->embed_scale, .h = b->h});
    s.op->norm(s.dev, &(struct kk_norm_args){
        .T = s.T, .C = s.C, .x = b->h, .w = m->layer[0].input_norm, .eps = c->eps, .y = b->x});
    for (int l = 0; l < N; l++) {
        c->arch->layer(&s, l, l + 1 < N ? m->layer[l + 1].input_norm : NULL);
        tap(&s, fwd, l);
    }
    if (!fwd->n_logits) return;
    s.op->gather(s.dev, &(struct kk_gather_args){
        .n = fwd->n_logits, .C = s.C, .rows = b->ids + s.T, .src = b->h, .dst = b->h_last});
    s.op->norm(s.dev, &(struct kk_norm_args){
        .T = fwd->n_logits, .C = s.C, .x = b->h_last, .w = m->final_norm, .eps = c->eps,
        .y = b->x});
    const struct kk_weight *head = c->tied ? &m->embed : &m->head;
    if (fwd->choose)
        kk_dev_winner(s.dev, &(struct kk_winner_args){
            .T = fwd->n_logits, .x = b->x, .w = head, .softcap = c->softcap, .out = b->choice},
            b->logits);
    else
        s.op->linear(s.dev, &(struct kk_linear_args){
            .T = fwd->n_logits, .n = 1, .x = b->x, .w = {head}, .y = {b->logits},
            .softcap = c->softcap});
}
/* clang-format on */
