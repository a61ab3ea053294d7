/* Llama (Hugging Face LlamaForCausalLM; arXiv:2302.13971, 2407.21783), and what shares its shape.
 *
 * h = embed[id]. Per layer:
 *   h += attn(rms_in(h))              queries and keys are not normalised
 *   h += mlp(rms_pre_ff(h))           silu(gate) * up
 * logits = rms(h) W^T, of a head of its own or the embedding. No layer slides. */
#include <math.h>

#include "model/model_int.h"

static int config(const json_t *o, struct kk_model_config *c, struct kk_err *err)
{
    c->info.max_positions = 2048;
    c->raw_value = 1;
    c->norms = 2;
    c->act = KK_SILU;
    kk__config_specials(c, 1, 2);
    int rc = kk__config_geometry(o, KK_DERIVED, KK_DERIVED, c, err);
    if (!rc) rc = kk__config_name(o, "hidden_act", "silu", err);
    if (!rc) rc = kk__config_off(o, "attention_bias", err);
    if (!rc) rc = kk__config_off(o, "mlp_bias", err);
    if (!rc) rc = kk__config_layer_types(o, 0, c, err);
    if (!rc && c->info.window)
        rc = kk_fail(err, KK_EUNSUPPORTED, "sliding layers are not supported in a Llama");
    if (rc) return rc;
    c->attn_scale = (float)(1 / sqrt((double)c->layer[0].D));
    return kk__config_one_rope(o, 10000, c, err);
}

static int bind(struct kk_loader *ld, int l, struct kk_err *err)
{
    struct kk_layer_weights *w = &ld->m->layer[l];
    LOAD(kk__bind_norm(ld, l, "input_layernorm", &w->input_norm, err));
    LOAD(kk__bind_attention(ld, l, err));
    LOAD(kk__bind_norm(ld, l, "post_attention_layernorm", &w->pre_ff_norm, err));
    return kk__bind_mlp(ld, l, err);
}

static void layer(const struct kk_step *s, int l, const float *next_norm)
{
    kk__attention(s, l);
    kk__residual(s, NULL, s->m->layer[l].pre_ff_norm);
    kk__mlp(s, l);
    kk__residual(s, NULL, next_norm);
}

const struct kk_arch kk__llama = {
    .name = "LlamaForCausalLM",
    .model_type = "llama",
    .config = config,
    .bind = bind,
    .layer = layer,
};
