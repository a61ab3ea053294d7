/* Qwen 3, dense (Hugging Face Qwen3ForCausalLM; arXiv:2505.09388).
 *
 * h = embed[id]. Per layer:
 *   h += attn(rms_in(h))              q and k of each head are normalised before they turn
 *   h += mlp(rms_pre_ff(h))           silu(gate) * up
 * logits = rms(h) W^T, of a head of its own or the embedding. With use_sliding_window, layers from
 * max_window_layers on slide; the rotary embedding is the same. */
#include <math.h>

#include "model/model_int.h"

static int sliding_layers(const json_t *o, struct kk_model_config *c, struct kk_err *err)
{
    int windowed = 0;
    int64_t first = 28;
    int rc = kk_json_bool(o, "use_sliding_window", 0, &windowed, err);
    if (!rc) rc = kk_json_int(o, "max_window_layers", 0, 1 << 24, 0, &first, err);
    if (rc) return rc;
    for (int l = 0; l < c->info.n_layers; l++) c->layer[l].sliding = windowed && l >= first;
    rc = kk__config_layer_types(o, 4096, c, err);
    if (!rc && c->info.window && !windowed)
        rc = kk_fail(err, KK_EFORMAT,
                     "'layer_types' has sliding layers, but use_sliding_window is false");
    return rc;
}

static int config(const json_t *o, struct kk_model_config *c, struct kk_err *err)
{
    c->info.max_positions = 32768;
    c->raw_value = c->qk_norm = 1;
    c->norms = 2;
    c->act = KK_SILU;
    int rc = kk__config_geometry(o, KK_DERIVED, 128, c, err);
    if (!rc) rc = kk__config_name(o, "hidden_act", "silu", err);
    if (!rc) rc = kk__config_off(o, "attention_bias", err);
    if (!rc) rc = sliding_layers(o, c, err);
    if (rc) return rc;
    c->attn_scale = (float)(1 / sqrt((double)c->layer[0].D));
    return kk__config_one_rope(o, 10000, c, err);
}

static int bind(struct kk_loader *ld, int l, struct kk_err *err)
{
    struct kk_layer_weights *w = &ld->m->layer[l];
    LOAD(kk__bind_norm(ld, l, "input_layernorm", &w->input_norm, err));
    LOAD(kk__bind_attention(ld, l, err));
    LOAD(kk__bind_qk_norm(ld, l, err));
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

const struct kk_arch kk__qwen3 = {
    .name = "Qwen3ForCausalLM",
    .model_type = "qwen3",
    .config = config,
    .bind = bind,
    .layer = layer,
};
