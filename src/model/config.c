/* config.json -> struct kk_model_config: the table of architectures, and what their configs have in
 * common. An architecture's own keys are read in its file. */
#include <stdio.h>
#include <string.h>

#include "base/mem.h"
#include "model/model_int.h"

#define MAX_DIM  (1 << 24)
#define MAX_MANY 1024 /* layers, heads, head dim */

static const struct kk_arch *const archs[] = {&kk__gemma3, &kk__gemma4, &kk__llama, &kk__qwen3};
enum { N_ARCHS = sizeof archs / sizeof *archs };

/* ---- single keys -------------------------------------------------------------------------- */

int kk__config_int(const json_t *o, const char *key, int max, int *out, struct kk_err *err)
{
    int64_t v = *out;
    int rc = kk_json_int(o, key, 1, max, !*out, &v, err);
    if (!rc) *out = (int)v;
    return rc;
}

int kk__config_name(const json_t *o, const char *key, const char *known, struct kk_err *err)
{
    const char *s = known;
    int rc = kk_json_str(o, key, 0, &s, err);
    if (rc || !strcmp(s, known)) return rc;
    return kk_fail(err, KK_EUNSUPPORTED, "%s '%s' is not supported (known: %s)", key, s, known);
}

int kk__config_off(const json_t *o, const char *key, struct kk_err *err)
{
    int on = 0;
    int rc = kk_json_bool(o, key, 0, &on, err);
    if (rc || !on) return rc;
    return kk_fail(err, KK_EUNSUPPORTED, "%s is not supported", key);
}

/* ---- geometry ----------------------------------------------------------------------------- */

/* KV heads and head dim: the keys, or G and D as kk__config_geometry describes them. */
static int get_heads(const json_t *o, const struct kk_model_info *i, int *G, int *D,
                     struct kk_err *err)
{
    if (*G < 0) *G = i->H;
    int from_width = *D < 0;
    if (from_width) *D = i->C / i->H > 0 ? i->C / i->H : 1;
    int rc = kk__config_int(o, "num_key_value_heads", i->H, G, err);
    if (!rc) rc = kk__config_int(o, "head_dim", MAX_MANY, D, err);
    if (rc) return rc;
    const json_t *given = json_object_get(o, "head_dim");
    if (from_width && (!given || json_is_null(given)) && i->C % i->H)
        return kk_fail(err, KK_EFORMAT,
                       "'head_dim' is missing, and hidden_size %d is no multiple of %d heads", i->C,
                       i->H);
    return kk__config_check_heads(i->H, *G, *D, err);
}

int kk__config_check_heads(int H, int G, int D, struct kk_err *err)
{
    if (H % G)
        return kk_fail(err, KK_EFORMAT, "%d attention heads are no multiple of %d KV heads", H, G);
    if (D % 2 || D > MAX_MANY)
        return kk_fail(err, KK_EFORMAT, "head dimensions must be even and at most %d, found %d",
                       MAX_MANY, D);
    return 0;
}

int kk__config_geometry(const json_t *o, int G, int D, struct kk_model_config *c,
                        struct kk_err *err)
{
    struct kk_model_info *i = &c->info;
    double eps = 1e-6;
    int rc = kk__config_int(o, "vocab_size", MAX_DIM, &i->V, err);
    if (!rc) rc = kk__config_int(o, "hidden_size", MAX_DIM, &i->C, err);
    if (!rc) rc = kk__config_int(o, "intermediate_size", MAX_DIM, &i->F, err);
    if (!rc) rc = kk__config_int(o, "num_hidden_layers", MAX_MANY, &i->n_layers, err);
    if (!rc) rc = kk__config_int(o, "num_attention_heads", MAX_MANY, &i->H, err);
    if (!rc) rc = kk_json_int(o, "max_position_embeddings", 1, 1 << 30, 0, &i->max_positions, err);
    if (!rc) rc = kk_json_real(o, "rms_norm_eps", 0, 1, 0, &eps, err);
    if (!rc) rc = kk_json_bool(o, "tie_word_embeddings", 0, &c->tied, err);
    if (!rc) rc = get_heads(o, i, &G, &D, err);
    if (rc) return rc;
    c->eps = (float)eps;
    i->n_full_layers = i->n_layers;
    c->layer = kk_calloc((size_t)i->n_layers, sizeof *c->layer);
    if (!c->layer) return kk_fail(err, KK_ENOMEM, "out of memory for the config");
    for (int l = 0; l < i->n_layers; l++) c->layer[l] = (struct kk_layer_config){.D = D, .G = G};
    return 0;
}

/* ---- sliding layers ----------------------------------------------------------------------- */

static int read_layer_types(const json_t *types, struct kk_model_config *c, struct kk_err *err)
{
    int n = c->info.n_layers;
    if (!json_is_array(types) || json_array_size(types) != (size_t)n)
        return kk_fail(err, KK_EFORMAT, "'layer_types' must list %d layers", n);
    for (int l = 0; l < n; l++) {
        const char *s = json_string_value(json_array_get(types, (size_t)l));
        c->layer[l].sliding = s && !strcmp(s, "sliding_attention");
        if (!s || (!c->layer[l].sliding && strcmp(s, "full_attention")))
            return kk_fail(err, KK_EUNSUPPORTED,
                           "layer type '%s' of layer %d is not supported (known: "
                           "sliding_attention, full_attention)",
                           s ? s : "?", l);
    }
    return 0;
}

int kk__config_layer_types(const json_t *o, int window, struct kk_model_config *c,
                           struct kk_err *err)
{
    const json_t *types = json_object_get(o, "layer_types");
    struct kk_model_info *i = &c->info;
    int rc = types && !json_is_null(types) ? read_layer_types(types, c, err) : 0;
    i->n_full_layers = 0;
    for (int l = 0; l < i->n_layers; l++) i->n_full_layers += !c->layer[l].sliding;
    if (rc || i->n_full_layers == i->n_layers) return rc;
    rc = kk__config_int(o, "sliding_window", MAX_DIM, &window, err);
    i->window = window;
    return rc;
}

/* ---- rotary embeddings -------------------------------------------------------------------- */

static int read_llama3(const json_t *p, const struct kk_model_info *i, struct kk_rope *r,
                       struct kk_err *err)
{
    r->original = (double)i->max_positions;
    int rc = kk_json_real(p, "factor", 1e-6, 1e6, 1, &r->factor, err);
    if (!rc) rc = kk_json_real(p, "low_freq_factor", 1e-6, 1e6, 1, &r->low, err);
    if (!rc) rc = kk_json_real(p, "high_freq_factor", 1e-6, 1e6, 1, &r->high, err);
    if (!rc) rc = kk_json_real(p, "original_max_position_embeddings", 1, 1e9, 0, &r->original, err);
    if (!rc && r->high <= r->low)
        rc = kk_fail(err, KK_EFORMAT, "high_freq_factor %g is not over low_freq_factor %g", r->high,
                     r->low);
    return rc;
}

/* The type under either of its names, and the parameters that it has. */
static int read_rope(const json_t *p, const struct kk_model_info *i, struct kk_rope *r,
                     struct kk_err *err)
{
    const char *type = "default";
    double part = 1;
    int rc = kk_json_str(p, "type", 0, &type, err);
    if (!rc) rc = kk_json_str(p, "rope_type", 0, &type, err);
    if (!rc) rc = kk_json_real(p, "rope_theta", 1, 1e12, 0, &r->theta, err);
    if (!rc) rc = kk_json_real(p, "partial_rotary_factor", 0, 1, 0, &part, err);
    if (rc) return rc;
    if (part < 1)
        return kk_fail(err, KK_EUNSUPPORTED, "partial_rotary_factor %g is not supported", part);
    if (!strcmp(type, "linear")) return kk_json_real(p, "factor", 1e-6, 1e6, 1, &r->factor, err);
    if (!strcmp(type, "llama3")) return read_llama3(p, i, r, err);
    if (!strcmp(type, "default")) return 0;
    return kk_fail(err, KK_EUNSUPPORTED,
                   "rope type '%s' is not supported (known: default, linear, llama3)", type);
}

int kk__config_rope(const json_t *p, const char *where, double theta, int sliding,
                    struct kk_model_config *c, struct kk_err *err)
{
    struct kk_rope *r = &c->rope[sliding];
    *r = (struct kk_rope){.theta = theta, .factor = 1};
    if (p && !json_is_null(p) && !json_is_object(p))
        return kk_fail(err, KK_EFORMAT, "'%s' is not a JSON object", where);
    int rc = read_rope(p, &c->info, r, err);
    if (rc) return kk_wrap(err, rc, "%s", where);
    for (int l = 0; l < c->info.n_layers; l++) {
        struct kk_layer_config *y = &c->layer[l];
        if (y->sliding != sliding) continue;
        r->D = y->D;
        r->R = y->R = y->D / 2;
    }
    return 0;
}

int kk__config_one_rope(const json_t *o, double theta, struct kk_model_config *c,
                        struct kk_err *err)
{
    const char *where = "rope_scaling";
    const json_t *p = json_object_get(o, where);
    if (!p || json_is_null(p)) p = json_object_get(o, where = "rope_parameters");
    if (json_object_get(p, "full_attention") || json_object_get(p, "sliding_attention"))
        return kk_fail(err, KK_EUNSUPPORTED,
                       "%s: one embedding for each kind of layer is not supported", where);
    int rc = kk_json_real(o, "rope_theta", 1, 1e12, 0, &theta, err);
    for (int sliding = 0; !rc && sliding < 2; sliding++)
        rc = kk__config_rope(p, where, theta, sliding, c, err);
    return rc;
}

/* ---- the whole ---------------------------------------------------------------------------- */

/* bos_token_id: an id, or null for none; eos_token_id: that, or a list. */
static int parse_specials(const struct kk_model_file *mf, struct kk_model_info *i,
                          struct kk_err *err)
{
    const json_t *b = kk_model_file_key(mf, "bos_token_id"),
                 *e = kk_model_file_key(mf, "eos_token_id");
    if (b) i->bos = json_is_integer(b) ? json_integer_value(b) : -1;
    if (b && !json_is_null(b) && (i->bos < 0 || i->bos >= i->V))
        return kk_fail(err, KK_EFORMAT, "'bos_token_id' must be an id below vocab_size %d", i->V);
    if (!e) return 0;
    i->n_eos = 0;
    size_t n = json_is_array(e) ? json_array_size(e) : !json_is_null(e);
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
                    3 * (int64_t)i->F * C + 2 * (int64_t)c->qk_norm * y->D + c->norms * C +
                    c->others;
        int64_t expert = 3 * (int64_t)i->expert_F * C;
        all += n + i->E * expert;
        active += n + i->A * expert;
    }
    i->n_params = all;
    i->n_active_params = active;
}

/* The row of an architecture, under its own name or inside a larger model. */
static const struct kk_arch *find_arch(const char *name, struct kk_err *err)
{
    char known[256] = "";
    size_t n = 0;
    for (int k = 0; k < N_ARCHS; k++) {
        const struct kk_arch *a = archs[k];
        if (!strcmp(name, a->name) || (a->inside && !strcmp(name, a->inside))) return a;
        n += (size_t)snprintf(known + n, sizeof known - n, "%s%s%s%s", k ? ", " : "", a->name,
                              a->inside ? ", " : "", a->inside ? a->inside : "");
    }
    kk_fail(err, KK_EUNSUPPORTED, "architecture '%s' is not supported (known: %s)", name, known);
    return NULL;
}

void kk__config_specials(struct kk_model_config *c, int bos, uint32_t eos)
{
    c->info.bos = bos;
    c->info.eos[0] = eos;
    c->info.n_eos = 1;
}

int kk__config_parse(const struct kk_model_file *mf, struct kk_model_config *c, struct kk_err *err)
{
    const json_t *o = kk_model_file_config(mf);
    const char *name = kk_model_file_architecture(mf), *type = kk_model_file_model_type(mf);
    memset(c, 0, sizeof *c);
    const struct kk_arch *arch = find_arch(name, err);
    if (!arch) return KK_EUNSUPPORTED;
    if (strcmp(type, arch->model_type))
        return kk_fail(err, KK_EUNSUPPORTED,
                       "architecture '%s' and model_type '%s' do not agree (expected %s)", name,
                       type, arch->model_type);
    c->arch = arch;
    c->info.architecture = arch->name;
    c->info.bos = -1;
    c->embed_scale = 1;
    int rc = arch->config(o, c, err);
    if (!rc) rc = parse_specials(mf, &c->info, err);
    if (rc) {
        kk__config_release(c);
        return kk_wrap(err, rc, "config.json");
    }
    count_params(c);
    return 0;
}

void kk__config_release(struct kk_model_config *c)
{
    kk_free(c->layer);
    c->layer = NULL;
}
