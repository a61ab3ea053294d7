/* config.json of the Gemma 4 text model -> struct kk_model_config. Defaults are those of the
 * Hugging Face class; what is not implemented is refused by name rather than ignored. */
#include <math.h>
#include <stdio.h>
#include <string.h>

#include "base/json.h"
#include "base/mem.h"
#include "model/model_int.h"

#define MAX_DIM (1 << 24)

/* One bounded integer into an int. */
static int get_int(const json_t *o, const char *key, int64_t min, int64_t max, int64_t fallback,
                   int *out, struct kk_err *err)
{
    int64_t v = fallback;
    int rc = kk_json_int(o, key, min, max, fallback < 0, &v, err);
    if (!rc) *out = (int)v;
    return rc;
}

static int refuse_unsupported(const json_t *o, struct kk_err *err)
{
    int64_t ple = 256, shared = 0;
    int bias = 0;
    const char *act = "gelu_pytorch_tanh";
    int rc = kk_json_int(o, "hidden_size_per_layer_input", 0, MAX_DIM, 0, &ple, err);
    if (!rc) rc = kk_json_int(o, "num_kv_shared_layers", 0, 4096, 0, &shared, err);
    if (!rc) rc = kk_json_bool(o, "attention_bias", 0, &bias, err);
    if (!rc) rc = kk_json_str(o, "hidden_activation", 0, &act, err);
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
    if (bias) return kk_fail(err, KK_EUNSUPPORTED, "attention_bias is not supported");
    if (strcmp(act, "gelu_pytorch_tanh"))
        return kk_fail(err, KK_EUNSUPPORTED, "hidden_activation '%s' is not supported", act);
    const json_t *bidi = json_object_get(o, "use_bidirectional_attention");
    if (json_is_string(bidi) && !strcmp(json_string_value(bidi), "all"))
        return kk_fail(err, KK_EUNSUPPORTED, "bidirectional attention is not supported");
    return 0;
}

static int parse_dims(const json_t *o, struct kk_model_config *c, struct kk_err *err)
{
    struct kk_model_info *i = &c->info;
    int window = 512, eq = 0;
    double cap = 0, eps = 1e-6;
    int64_t maxpos = 131072;
    int rc = get_int(o, "vocab_size", 1, MAX_DIM, -1, &i->V, err);
    if (!rc) rc = get_int(o, "hidden_size", 1, MAX_DIM, -1, &i->C, err);
    if (!rc) rc = get_int(o, "intermediate_size", 1, MAX_DIM, -1, &i->F, err);
    if (!rc) rc = get_int(o, "num_hidden_layers", 1, 1024, -1, &i->n_layers, err);
    if (!rc) rc = get_int(o, "num_attention_heads", 1, 1024, -1, &i->H, err);
    if (!rc) rc = get_int(o, "sliding_window", 1, MAX_DIM, 512, &window, err);
    if (!rc) rc = kk_json_int(o, "max_position_embeddings", 1, 1 << 30, 0, &maxpos, err);
    if (!rc) rc = kk_json_real(o, "final_logit_softcapping", 0, 1e6, 0, &cap, err);
    if (!rc) rc = kk_json_real(o, "rms_norm_eps", 0, 1, 0, &eps, err);
    if (!rc) rc = kk_json_bool(o, "enable_moe_block", 0, &c->moe, err);
    c->tied = 1;
    if (!rc) rc = kk_json_bool(o, "tie_word_embeddings", 0, &c->tied, err);
    if (!rc) rc = kk_json_bool(o, "attention_k_eq_v", 0, &eq, err);
    if (!rc && c->moe) {
        rc = get_int(o, "num_experts", 1, 4096, -1, &i->E, err);
        if (!rc) rc = get_int(o, "top_k_experts", 1, i->E, -1, &i->A, err);
        if (!rc) rc = get_int(o, "moe_intermediate_size", 1, MAX_DIM, -1, &i->expert_F, err);
    }
    i->window = window;
    i->max_positions = maxpos;
    c->softcap = (float)cap;
    c->eps = (float)eps;
    c->act = KK_GELU_TANH;
    return rc;
}

/* Read one rope_parameters entry: *R rotary pairs of D/2, theta, factor. */
static int parse_rope(const json_t *o, const char *kind, int D, double theta_default,
                      int proportional_default, int *R, double *theta, double *factor,
                      struct kk_err *err)
{
    const json_t *p = json_object_get(json_object_get(o, "rope_parameters"), kind);
    const char *type = proportional_default ? "proportional" : "default";
    double part = proportional_default && !p ? 0.25 : 1.0;
    *theta = theta_default;
    *factor = 1.0;
    int rc = kk_json_str(p, "rope_type", 0, &type, err);
    if (!rc) rc = kk_json_real(p, "rope_theta", 1, 1e12, 0, theta, err);
    if (!rc) rc = kk_json_real(p, "partial_rotary_factor", 0, 1, 0, &part, err);
    if (rc) return kk_wrap(err, rc, "rope_parameters.%s", kind);
    if (!strcmp(type, "default")) {
        *R = D / 2;
    } else if (!strcmp(type, "proportional")) {
        rc = kk_json_real(p, "factor", 1e-6, 1e6, 0, factor, err);
        if (rc) return kk_wrap(err, rc, "rope_parameters.%s", kind);
        *R = (int)floor(part * D / 2);
    } else {
        return kk_fail(err, KK_EUNSUPPORTED,
                       "rope type '%s' of %s is not supported (known: default, proportional)", type,
                       kind);
    }
    return 0;
}

/* layer_types, or the class's default of five sliding to one full. */
static int layer_is_sliding(const json_t *o, int l, int n, int *sliding, struct kk_err *err)
{
    const json_t *types = json_object_get(o, "layer_types");
    if (!types || json_is_null(types)) {
        *sliding = l != n - 1 && (l + 1) % 6 != 0;
        return 0;
    }
    if (!json_is_array(types) || json_array_size(types) != (size_t)n)
        return kk_fail(err, KK_EFORMAT, "'layer_types' must list %d layers", n);
    const char *s = json_string_value(json_array_get(types, (size_t)l));
    if (s && !strcmp(s, "sliding_attention")) {
        *sliding = 1;
    } else if (s && !strcmp(s, "full_attention")) {
        *sliding = 0;
    } else {
        return kk_fail(err, KK_EUNSUPPORTED,
                       "layer type '%s' of layer %d is not supported (known: sliding_attention, "
                       "full_attention)",
                       s ? s : "?", l);
    }
    if (*sliding && l == n - 1)
        return kk_fail(err, KK_EUNSUPPORTED, "the last layer must be full_attention");
    return 0;
}

static int parse_layers(const json_t *o, struct kk_model_config *c, struct kk_err *err)
{
    struct kk_model_info *i = &c->info;
    int G, G_full, eq = 0;
    int rc = get_int(o, "num_key_value_heads", 1, i->H, -1, &G, err);
    if (!rc) rc = get_int(o, "head_dim", 2, 1024, -1, &c->D_sliding, err);
    if (!rc) rc = get_int(o, "global_head_dim", 2, 1024, 512, &c->D_full, err);
    if (!rc) rc = kk_json_bool(o, "attention_k_eq_v", 0, &eq, err);
    if (!rc) rc = get_int(o, "num_global_key_value_heads", 1, i->H, G, &G_full, err);
    if (rc) return rc;
    if (!eq) G_full = G;
    if (i->H % G || i->H % G_full)
        return kk_fail(err, KK_EFORMAT, "%d attention heads are no multiple of %d KV heads", i->H,
                       i->H % G ? G : G_full);
    if (c->D_sliding % 2 || c->D_full % 2)
        return kk_fail(err, KK_EFORMAT, "head dimensions must be even, found %d and %d",
                       c->D_sliding, c->D_full);
    double f;
    rc = parse_rope(o, "sliding_attention", c->D_sliding, 1e4, 0, &c->R_sliding, &c->theta_sliding,
                    &f, err);
    if (!rc)
        rc = parse_rope(o, "full_attention", c->D_full, 1e6, 1, &c->R_full, &c->theta_full,
                        &c->factor_full, err);
    if (rc) return rc;
    c->layer = kk_calloc((size_t)i->n_layers, sizeof *c->layer);
    if (!c->layer) return kk_fail(err, KK_ENOMEM, "out of memory for the config");
    for (int l = 0; !rc && l < i->n_layers; l++) {
        struct kk_layer_config *y = &c->layer[l];
        rc = layer_is_sliding(o, l, i->n_layers, &y->sliding, err);
        y->D = y->sliding ? c->D_sliding : c->D_full;
        y->G = y->sliding ? G : G_full;
        y->R = y->sliding ? c->R_sliding : c->R_full;
        y->value_only = eq && !y->sliding;
        i->n_full_layers += !y->sliding;
    }
    return rc;
}

/* eos_token_id: an integer, a list, or absent. */
static int parse_specials(const json_t *o, struct kk_model_info *i, struct kk_err *err)
{
    i->bos = -1;
    int rc = kk_json_int(o, "bos_token_id", 0, i->V - 1, 0, &i->bos, err);
    if (rc) return rc;
    const json_t *e = json_object_get(o, "eos_token_id");
    size_t n = json_is_array(e) ? json_array_size(e) : e && !json_is_null(e) ? 1 : 0;
    if (n > KK_MAX_EOS)
        return kk_fail(err, KK_EFORMAT, "'eos_token_id' lists %zu ids, at most %d are supported", n,
                       KK_MAX_EOS);
    for (size_t k = 0; k < n; k++) {
        const json_t *v = json_is_array(e) ? json_array_get(e, k) : e;
        if (!json_is_integer(v) || json_integer_value(v) < 0 || json_integer_value(v) >= i->V)
            return kk_fail(err, KK_EFORMAT, "'eos_token_id' must be ids below vocab_size %d", i->V);
        i->eos[i->n_eos++] = (uint32_t)json_integer_value(v);
    }
    return 0;
}

static void count_params(struct kk_model_config *c)
{
    struct kk_model_info *i = &c->info;
    int64_t C = i->C, all = (int64_t)i->V * C * (c->tied ? 1 : 2) + C,
            active = C + (int64_t)i->V * C;
    for (int l = 0; l < i->n_layers; l++) {
        const struct kk_layer_config *y = &c->layer[l];
        int64_t n = 2 * (int64_t)i->H * y->D * C + (int64_t)(2 - y->value_only) * y->G * y->D * C +
                    2 * (int64_t)y->D + 4 * C + 3 * (int64_t)i->F * C + 1;
        int64_t expert = 3 * (int64_t)i->expert_F * C;
        if (c->moe) n += 3 * C + C + i->E + (int64_t)i->E * C;
        all += n + i->E * expert;
        active += n + i->A * expert;
    }
    i->n_params = all;
    i->n_active_params = active;
}

int kk__config_parse(const struct kk_model_file *mf, struct kk_model_config *c, struct kk_err *err)
{
    const json_t *o = kk_model_file_config(mf);
    const char *arch = kk_model_file_architecture(mf), *type = kk_model_file_model_type(mf);
    memset(c, 0, sizeof *c);
    int text = !strcmp(arch, "Gemma4ForCausalLM"),
        any = !strcmp(arch, "Gemma4ForConditionalGeneration");
    if (!text && !any)
        return kk_fail(err, KK_EUNSUPPORTED,
                       "architecture '%s' is not supported (known: Gemma4ForCausalLM, "
                       "Gemma4ForConditionalGeneration)",
                       arch);
    if (strcmp(type, "gemma4_text"))
        return kk_fail(err, KK_EUNSUPPORTED,
                       "architecture '%s' and model_type '%s' do not agree (expected gemma4_text)",
                       arch, type);
    int rc = refuse_unsupported(o, err);
    if (!rc) rc = parse_dims(o, c, err);
    if (!rc) rc = parse_layers(o, c, err);
    if (!rc) rc = parse_specials(o, &c->info, err);
    if (rc) {
        kk__config_release(c);
        return kk_wrap(err, rc, "config.json");
    }
    c->info.architecture = "Gemma4ForCausalLM";
    count_params(c);
    return 0;
}

void kk__config_release(struct kk_model_config *c)
{
    kk_free(c->layer);
    c->layer = NULL;
}
