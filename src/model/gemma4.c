/* Gemma 4 text model (Hugging Face Gemma4ForCausalLM; DESIGN §8).
 *
 * h = embed[id] * sqrt(C). Per layer:
 *   h += rms_post_attn(attn(rms_in(h)))
 *   dense: h = (h + rms_post(mlp(rms_pre(h)))) * scalar
 *   MoE:   h = (h + rms_post(rms_post1(mlp(rms_pre(h))) + rms_post2(moe(rms_pre2(h))))) * scalar,
 *          the router reading rms(h) * router_scale * C^-0.5
 * logits = softcap(rms(h) E^T). Every norm that follows a residual add is part of that op. */
#include <math.h>
#include <string.h>

#include "model/model_int.h"

/* ---- config ------------------------------------------------------------------------------- */

static int refuse_unsupported(const json_t *o, struct kk_err *err)
{
    int64_t ple = 256, shared = 0;
    int rc = kk_json_int(o, "hidden_size_per_layer_input", 0, 1 << 24, 0, &ple, err);
    if (!rc) rc = kk_json_int(o, "num_kv_shared_layers", 0, 4096, 0, &shared, err);
    if (!rc) rc = kk__config_off(o, "attention_bias", err);
    if (!rc) rc = kk__config_name(o, "hidden_activation", "gelu_pytorch_tanh", err);
    if (rc) return rc;
    if (ple)
        return kk_fail(
            err, KK_EUNSUPPORTED,
            "per-layer input embeddings (hidden_size_per_layer_input = %lld, as in Gemma 4 "
            "E2B/E4B) are not supported",
            (long long)ple);
    if (shared)
        return kk_fail(
            err, KK_EUNSUPPORTED,
            "shared KV layers (num_kv_shared_layers = %lld, as in Gemma 4 E2B/E4B) are not "
            "supported",
            (long long)shared);
    const json_t *bidi = json_object_get(o, "use_bidirectional_attention");
    if (json_is_string(bidi) && !strcmp(json_string_value(bidi), "all"))
        return kk_fail(err, KK_EUNSUPPORTED, "bidirectional attention is not supported");
    return 0;
}

static int experts_config(const json_t *o, struct kk_model_config *c, struct kk_err *err)
{
    struct kk_model_info *i = &c->info;
    int rc = kk_json_bool(o, "enable_moe_block", 0, &c->moe, err);
    if (rc || !c->moe) return rc;
    rc = kk__config_int(o, "num_experts", 4096, &i->E, err);
    if (!rc) rc = kk__config_int(o, "top_k_experts", i->E, &i->A, err);
    if (!rc) rc = kk__config_int(o, "moe_intermediate_size", 1 << 24, &i->expert_F, err);
    c->norms += 4; /* three of the experts, the router's scale */
    c->others += i->E + (int64_t)i->E * i->C;
    return rc;
}

/* Full layers have heads of their own size, and may keep values alone. */
static int full_layers(const json_t *o, struct kk_model_config *c, struct kk_err *err)
{
    int eq = 0, D = 512, G = c->layer[0].G, G_full = G;
    int rc = kk__config_int(o, "global_head_dim", 1024, &D, err);
    if (!rc) rc = kk_json_bool(o, "attention_k_eq_v", 0, &eq, err);
    if (!rc) rc = kk__config_int(o, "num_global_key_value_heads", c->info.H, &G_full, err);
    if (!eq) G_full = G;
    if (!rc) rc = kk__config_check_heads(c->info.H, G_full, D, err);
    for (int l = 0; !rc && l < c->info.n_layers; l++)
        if (!c->layer[l].sliding)
            c->layer[l] = (struct kk_layer_config){.D = D, .G = G_full, .value_only = eq};
    return rc;
}

/* Full layers may be "proportional": only the first part of the pairs turn. */
static int rope(const json_t *o, const char *kind, int sliding, struct kk_model_config *c,
                struct kk_err *err)
{
    const json_t *p = json_object_get(json_object_get(o, "rope_parameters"), kind);
    const char *type = sliding ? "default" : "proportional";
    double part = sliding || p ? 1.0 : 0.25;
    struct kk_rope *r = &c->rope[sliding];
    *r = (struct kk_rope){.theta = sliding ? 1e4 : 1e6, .factor = 1};
    int rc = kk_json_str(p, "rope_type", 0, &type, err);
    if (!rc) rc = kk_json_real(p, "rope_theta", 1, 1e12, 0, &r->theta, err);
    if (!rc) rc = kk_json_real(p, "partial_rotary_factor", 0, 1, 0, &part, err);
    int whole = !strcmp(type, "default");
    if (!rc && !whole) rc = kk_json_real(p, "factor", 1e-6, 1e6, 0, &r->factor, err);
    if (!rc && !whole && strcmp(type, "proportional"))
        rc = kk_fail(err, KK_EUNSUPPORTED,
                     "rope type '%s' is not supported (known: default, proportional)", type);
    if (rc) return kk_wrap(err, rc, "rope_parameters.%s", kind);
    for (int l = 0; l < c->info.n_layers; l++) {
        struct kk_layer_config *y = &c->layer[l];
        if (y->sliding != sliding) continue;
        r->D = y->D;
        r->R = y->R = whole ? y->D / 2 : (int)floor(part * y->D / 2);
    }
    return 0;
}

static int config(const json_t *o, struct kk_model_config *c, struct kk_err *err)
{
    double cap = 0;
    c->info.max_positions = 131072;
    c->tied = c->qk_norm = 1;
    c->norms = 4;
    c->others = 1; /* layer_scalar */
    c->act = KK_GELU_TANH;
    c->attn_scale = 1;
    kk__config_specials(c, 2, 1);
    int rc = refuse_unsupported(o, err);
    if (!rc) rc = kk__config_geometry(o, KK_REQUIRED, KK_REQUIRED, c, err);
    if (!rc) rc = kk_json_real(o, "final_logit_softcapping", 0, 1e6, 0, &cap, err);
    if (!rc) rc = experts_config(o, c, err);
    if (rc) return rc;
    const int N = c->info.n_layers;
    c->softcap = (float)cap;
    c->embed_scale = (float)sqrt((double)c->info.C);
    for (int l = 0; l < N; l++) c->layer[l].sliding = l != N - 1 && (l + 1) % 6 != 0;
    rc = kk__config_layer_types(o, 512, c, err);
    if (!rc && c->layer[N - 1].sliding)
        rc = kk_fail(err, KK_EUNSUPPORTED, "the last layer must be full_attention");
    if (!rc) rc = full_layers(o, c, err);
    if (!rc) rc = rope(o, "sliding_attention", 1, c, err);
    return rc ? rc : rope(o, "full_attention", 0, c, err);
}

/* ---- weights ------------------------------------------------------------------------------ */

static int bind_experts(struct kk_loader *ld, int l, struct kk_err *err)
{
    const struct kk_model_info *i = &ld->m->config.info;
    struct kk_layer_weights *w = &ld->m->layer[l];
    const int64_t C = i->C, F = i->expert_F, E = i->E;
    const float root = (float)(1.0 / sqrt((double)C));
    LOAD(kk__bind_norm(ld, l, "post_feedforward_layernorm_1", &w->post_ff_norm_1, err));
    LOAD(kk__bind_norm(ld, l, "post_feedforward_layernorm_2", &w->post_ff_norm_2, err));
    LOAD(kk__bind_norm(ld, l, "pre_feedforward_layernorm_2", &w->pre_ff_norm_2, err));
    LOAD(kk__bind_vector(ld, l, "router.scale", C, root, &w->router_scale, err));
    LOAD(kk__bind_vector(ld, l, "router.per_expert_scale", E, 1, &w->expert_scale, err));
    LOAD(kk__bind_matrix(ld, l, "router.proj.weight", 1, E, C, &w->router, err));
    w->router.bf16_in = 0; /* which experts: near ties are not rounding's to decide */
    LOAD(kk__bind_matrix(ld, l, "experts.gate_up_proj", i->E, 2 * F, C, &w->gate_up, err));
    return kk__bind_matrix(ld, l, "experts.down_proj", i->E, C, F, &w->expert_down, err);
}

static int bind(struct kk_loader *ld, int l, struct kk_err *err)
{
    struct kk_layer_weights *w = &ld->m->layer[l];
    LOAD(kk__bind_norm(ld, l, "input_layernorm", &w->input_norm, err));
    LOAD(kk__bind_attention(ld, l, err));
    LOAD(kk__bind_qk_norm(ld, l, err));
    LOAD(kk__bind_norm(ld, l, "post_attention_layernorm", &w->post_attn_norm, err));
    LOAD(kk__bind_norm(ld, l, "pre_feedforward_layernorm", &w->pre_ff_norm, err));
    LOAD(kk__bind_norm(ld, l, "post_feedforward_layernorm", &w->post_ff_norm, err));
    LOAD(kk__bind_mlp(ld, l, err));
    LOAD(kk__bind_scalar(ld, l, "layer_scalar", &w->scalar, err));
    return ld->m->config.moe ? bind_experts(ld, l, err) : 0;
}

/* ---- the forward -------------------------------------------------------------------------- */

/* Below, one op call is one stage, its arguments grouped by meaning. */
/* clang-format off */

/* Where the experts of the step's rows in layer l are: [T, A] */
static int32_t *chosen(const struct kk_model *m, int l)
{
    return m->buf.expert_idx + (int64_t)l * m->limits.max_rows * m->config.info.A;
}

/* Which experts buf.x_moe goes to, from buf.x_router */
static void route(const struct kk_step *s, int l)
{
    struct kk_buffers *b = &s->m->buf;
    const struct kk_model_config *c = &s->m->config;
    const struct kk_layer_weights *w = &s->m->layer[l];
    s->op->route(s->dev, &(struct kk_route_args){
        .T = s->T, .E = c->info.E, .A = c->info.A, .x = b->x_router, .w = &w->router,
        .expert_scale = w->expert_scale, .idx = chosen(s->m, l),
        .weight = b->expert_weight});
}

/* The experts of buf.x_moe, into buf.b */
static void experts(const struct kk_step *s, int l)
{
    struct kk_buffers *b = &s->m->buf;
    const struct kk_model_config *c = &s->m->config;
    const struct kk_layer_weights *w = &s->m->layer[l];
    s->op->moe(s->dev, &(struct kk_moe_args){
        .T = s->T, .E = c->info.E, .A = c->info.A, .act = c->act, .x = b->x_moe,
        .idx = chosen(s->m, l), .weight = b->expert_weight,
        .gate_up = &w->gate_up, .down = &w->expert_down, .y = b->b});
}

static void layer(const struct kk_step *s, int l, const float *next_norm)
{
    struct kk_buffers *b = &s->m->buf;
    const struct kk_model_config *c = &s->m->config;
    const struct kk_layer_weights *w = &s->m->layer[l];

    kk__attention(s, l);
    s->op->residual(s->dev, &(struct kk_residual_args){
        .T = s->T, .C = s->C, .n_in = 1, .n_out = c->moe ? 3 : 1, .h = b->h, .a = {b->a},
        .w_post = w->post_attn_norm, .scale = 1.0f, .eps = c->eps,
        .w_out = {w->pre_ff_norm, w->pre_ff_norm_2, w->router_scale},
        .y = {b->x, b->x_moe, b->x_router}});
    if (c->moe) route(s, l); /* before the dense unit: who are chosen is known while that runs */
    kk__mlp(s, l);
    if (c->moe) experts(s, l);
    s->op->residual(s->dev, &(struct kk_residual_args){
        .T = s->T, .C = s->C, .n_in = c->moe ? 2 : 1, .n_out = next_norm ? 1 : 0, .h = b->h,
        .a = {b->a, b->b}, .w_in = {w->post_ff_norm_1, w->post_ff_norm_2},
        .w_post = w->post_ff_norm, .scale = w->scalar, .eps = c->eps,
        .w_out = {next_norm}, .y = {b->x}});
}

/* clang-format on */

const struct kk_arch kk__gemma4 = {
    .name = "Gemma4ForCausalLM",
    .inside = "Gemma4ForConditionalGeneration",
    .model_type = "gemma4_text",
    .config = config,
    .bind = bind,
    .layer = layer,
};
