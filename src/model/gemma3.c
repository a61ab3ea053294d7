/* Gemma 3 text model (Hugging Face Gemma3ForCausalLM; arXiv:2503.19786).
 *
 * h = embed[id] * sqrt(C). Per layer:
 *   h += rms_post_attn(attn(rms_in(h)))        softmax scale query_pre_attn_scalar^-0.5
 *   h += rms_post_ff(mlp(rms_pre_ff(h)))       gelu_tanh(gate) * up
 * logits = rms(h) E^T. Every norm's weight is stored less 1. Five layers in six slide, with a
 * rotary embedding of their own; longer contexts scale that of the full layers alone. */
#include <math.h>

#include "model/model_int.h"

/* Two ropes: rope_parameters of each kind of layer, or the older rope_theta and rope_scaling of
 * full layers, rope_local_base_freq of sliding ones. */
static int ropes(const json_t *o, struct kk_model_config *c, struct kk_err *err)
{
    const json_t *p = json_object_get(o, "rope_parameters"),
                 *full = json_object_get(p, "full_attention"),
                 *scaling = json_object_get(o, "rope_scaling");
    double theta = 1e6, local = 1e4;
    if (json_object_size(p) && !full && !json_object_get(p, "sliding_attention"))
        return kk_fail(err, KK_EFORMAT,
                       "'rope_parameters' must have full_attention and sliding_attention");
    int rc = kk_json_real(o, "rope_theta", 1, 1e12, 0, &theta, err);
    if (!rc) rc = kk_json_real(o, "rope_local_base_freq", 1, 1e12, 0, &local, err);
    if (!rc && scaling && !json_is_null(scaling))
        rc = kk__config_rope(scaling, "rope_scaling", theta, 0, c, err);
    else if (!rc)
        rc = kk__config_rope(full, "rope_parameters.full_attention", theta, 0, c, err);
    if (rc) return rc;
    return kk__config_rope(json_object_get(p, "sliding_attention"),
                           "rope_parameters.sliding_attention", local, 1, c, err);
}

static int config(const json_t *o, struct kk_model_config *c, struct kk_err *err)
{
    int pattern = 6, scalar = 256;
    double cap = 0, attn_cap = 0;
    c->info.V = 262208;
    c->info.H = 8;
    c->info.max_positions = 131072;
    c->tied = c->raw_value = c->qk_norm = 1;
    c->norms = 4;
    c->act = KK_GELU_TANH;
    kk__config_specials(c, 2, 1);
    int rc = kk__config_geometry(o, 4, 256, c, err);
    if (!rc) rc = kk__config_int(o, "query_pre_attn_scalar", 1 << 24, &scalar, err);
    if (!rc) rc = kk__config_int(o, "sliding_window_pattern", 1 << 24, &pattern, err);
    if (!rc) rc = kk_json_real(o, "final_logit_softcapping", 0, 1e6, 0, &cap, err);
    if (!rc) rc = kk_json_real(o, "attn_logit_softcapping", 0, 1e6, 0, &attn_cap, err);
    if (!rc) rc = kk__config_name(o, "hidden_activation", "gelu_pytorch_tanh", err);
    if (!rc) rc = kk__config_off(o, "attention_bias", err);
    if (!rc) rc = kk__config_off(o, "use_bidirectional_attention", err);
    if (rc) return rc;
    if (attn_cap > 0)
        return kk_fail(err, KK_EUNSUPPORTED, "attn_logit_softcapping is not supported");
    c->softcap = (float)cap;
    c->embed_scale = (float)sqrt((double)c->info.C);
    c->attn_scale = (float)(1 / sqrt((double)scalar));
    for (int l = 0; l < c->info.n_layers; l++) c->layer[l].sliding = (l + 1) % pattern != 0;
    rc = kk__config_layer_types(o, 4096, c, err);
    return rc ? rc : ropes(o, c, err);
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
    return kk__bind_mlp(ld, l, err);
}

static void layer(const struct kk_step *s, int l, const float *next_norm)
{
    const struct kk_layer_weights *w = &s->m->layer[l];
    kk__attention(s, l);
    kk__residual(s, w->post_attn_norm, w->pre_ff_norm);
    kk__mlp(s, l);
    kk__residual(s, w->post_ff_norm, next_norm);
}

const struct kk_arch kk__gemma3 = {
    .name = "Gemma3ForCausalLM",
    .inside = "Gemma3ForConditionalGeneration",
    .model_type = "gemma3_text",
    .norm_plus = 1,
    .config = config,
    .bind = bind,
    .layer = layer,
};
