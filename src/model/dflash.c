/* DFlash block-diffusion drafter (z-lab; PyPI `dflash` 0.1.0 is the oracle).
 *
 * Context row j: c = rms_hidden(fc(taps of row j)); each layer stores K = rope(rms_k(k c)), V = v
 * c. Draft: rows [carry, mask x n] of raw verifier embeddings; pre-norm Qwen 3 layers whose keys
 * are the context and the whole block (full layers), or those within the window and not later
 * (sliding layers, unless is_causal says otherwise); logits of rows 1..n through the verifier's
 * head. */
#include <math.h>
#include <stdio.h>
#include <string.h>

#include "base/json.h"
#include "base/mem.h"
#include "model/model_int.h"

enum { MAX_TAPS = 32 };

struct draft_layer {
    float *input_norm, *post_norm; /* [C] */
    float *q_norm, *k_norm;        /* [D] */
    struct kk_weight wq, wk, wv, wo, gate, up, down;
    struct kk_mask mask;
};

struct kk_dflash {
    struct kk_model *verifier;
    struct kk_dev *dev;
    struct kk_model_limits limits;
    struct kk_account weights, scratch;
    int n_layers, C, H, G, D, F, n_taps, block;
    int taps[MAX_TAPS];
    int32_t mask_id;
    float eps, embed_scale, output_scale, softcap;
    struct kk_rope_table rope;
    struct draft_layer *layer;
    struct kk_kv_layer *kv_layer;
    struct kk_weight fc; /* [C, n_taps * C] */
    float *hidden_norm, *final_norm;
    /* buffers of a step, T = limits.max_rows */
    int32_t *ids, *choice;
    float *h, *a, *q, *k, *v, *state, *logits;
    void *x, *o, *f;
    void *taps_act; /* [T, n_taps * C]: the taps as input of a product; NULL where f32 is that */
};

/* ---- config ------------------------------------------------------------------------------- */

/* dflash_config first, then the config itself. */
static const json_t *setting(const json_t *o, const char *key)
{
    const json_t *d = json_object_get(o, "dflash_config");
    return json_object_get(d, key) ? d : o;
}

static int get_int(const json_t *o, const char *key, int64_t max, int64_t fallback, int *out,
                   struct kk_err *err)
{
    int64_t v = fallback;
    int rc = kk_json_int(setting(o, key), key, 1, max, fallback < 0, &v, err);
    if (!rc) *out = (int)v;
    return rc;
}

static int parse_taps(struct kk_dflash *d, const json_t *o, struct kk_err *err)
{
    const json_t *ids = json_object_get(setting(o, "target_layer_ids"), "target_layer_ids");
    int n_target = d->verifier->config.info.n_layers;
    if (!ids) { /* the authors' default */
        d->n_taps = d->n_layers;
        for (int i = 0; i < d->n_layers && i < MAX_TAPS; i++)
            d->taps[i] = d->n_layers == 1
                             ? n_target / 2
                             : (int)rint(1 + (double)i * (n_target - 4) / (d->n_layers - 1));
    } else {
        d->n_taps = (int)json_array_size(ids);
    }
    if (d->n_taps < 1 || d->n_taps > MAX_TAPS)
        return kk_fail(err, KK_EFORMAT, "'target_layer_ids' must list 1 to %d layers", MAX_TAPS);
    for (int i = 0; i < d->n_taps; i++) {
        const json_t *v = json_array_get(ids, (size_t)i);
        if (ids && !json_is_integer(v))
            return kk_fail(err, KK_EFORMAT, "'target_layer_ids' must be numbers of layers");
        json_int_t l = ids ? json_integer_value(v) : d->taps[i];
        if (l < 0 || l >= n_target)
            return kk_fail(err, KK_EFORMAT,
                           "the drafter reads layer %lld of the verifier, which has %d layers",
                           (long long)l, n_target);
        d->taps[i] = (int)l;
    }
    return 0;
}

static int parse_scales(struct kk_dflash *d, const json_t *o, struct kk_err *err)
{
    double eps = 1e-6, in = 1, out = 1, cap = 0, theta = 10000;
    int64_t mask = -1, V = d->verifier->config.info.V;
    const json_t *rope = json_object_get(o, "rope_parameters");
    int rc = kk_json_real(o, "rms_norm_eps", 0, 1, 0, &eps, err);
    if (!rc)
        rc = kk_json_real(setting(o, "input_embedding_scale"), "input_embedding_scale", -1e6, 1e6,
                          0, &in, err);
    if (!rc)
        rc = kk_json_real(setting(o, "output_multiplier"), "output_multiplier", -1e6, 1e6, 0, &out,
                          err);
    if (!rc)
        rc = kk_json_real(setting(o, "final_logit_softcapping"), "final_logit_softcapping", 0, 1e6,
                          0, &cap, err);
    if (!rc) rc = kk_json_real(rope ? rope : o, "rope_theta", 1, 1e12, 0, &theta, err);
    if (!rc)
        rc = kk_json_int(setting(o, "mask_token_id"), "mask_token_id", 0, V - 1, 0, &mask, err);
    if (rc) return rc;
    if (mask < 0)
        return kk_fail(err, KK_EFORMAT, "'mask_token_id' is missing: a drafter needs a mask token");
    d->mask_id = (int32_t)mask;
    d->eps = (float)eps;
    d->embed_scale = (float)in;
    d->output_scale = (float)out;
    d->softcap = (float)cap;
    d->rope.rope = (struct kk_rope){.D = d->D, .R = d->D / 2, .theta = theta, .factor = 1};
    return 0;
}

/* Layer types to masks: sliding layers are causal and windowed unless is_causal says otherwise. */
static int parse_layer_types(struct kk_dflash *d, const json_t *o, struct kk_err *err)
{
    const json_t *types = json_object_get(o, "layer_types"),
                 *causal = json_object_get(o, "is_causal");
    int64_t window = 0;
    int windowed = 0; /* without use_sliding_window, sliding layers are causal but have no window */
    int rc = kk_json_int(o, "sliding_window", 1, 1 << 30, 0, &window, err);
    if (!rc) rc = kk_json_bool(o, "use_sliding_window", 0, &windowed, err);
    if (rc) return rc;
    for (int l = 0; l < d->n_layers; l++) {
        const char *t = json_string_value(json_array_get(types, (size_t)l));
        int sliding = t && !strcmp(t, "sliding_attention");
        if (sliding && windowed && !window)
            return kk_fail(err, KK_EFORMAT, "'sliding_window' is missing");
        int is_causal = json_is_boolean(causal) ? json_is_true(causal) : sliding;
        int bounded = sliding && windowed;
        int32_t w = bounded ? (int32_t)window : KK_NO_BOUND;
        d->layer[l].mask = (struct kk_mask){.window = w,
                                            .near = KK_NO_BOUND,
                                            .ahead = is_causal ? 0
                                                     : sliding ? w - 1
                                                               : KK_NO_BOUND};
        d->kv_layer[l] = (struct kk_kv_layer){bounded, d->G, d->D, 0, bounded ? w : 0};
    }
    return 0;
}

static int parse(struct kk_dflash *d, const struct kk_model_file *mf, struct kk_err *err)
{
    const json_t *o = kk_model_file_config(mf);
    const char *arch = kk_model_file_architecture(mf);
    int C = d->verifier->config.info.C, bias = 0;
    if (strcmp(arch, "DFlashDraftModel"))
        return kk_fail(err, KK_EUNSUPPORTED,
                       "architecture '%s' is no drafter (known: DFlashDraftModel)", arch);
    int rc = get_int(o, "hidden_size", 1 << 20, -1, &d->C, err);
    if (!rc) rc = get_int(o, "num_hidden_layers", 256, -1, &d->n_layers, err);
    if (!rc) rc = get_int(o, "num_attention_heads", 1024, -1, &d->H, err);
    if (!rc) rc = get_int(o, "num_key_value_heads", 1024, d->H, &d->G, err);
    if (!rc) rc = get_int(o, "head_dim", 1024, 128, &d->D, err);
    if (!rc) rc = get_int(o, "intermediate_size", 1 << 20, -1, &d->F, err);
    if (!rc) rc = get_int(o, "block_size", 1024, 16, &d->block, err);
    if (!rc) rc = kk_json_bool(o, "attention_bias", 0, &bias, err);
    if (rc) return rc;
    if (bias) return kk_fail(err, KK_EUNSUPPORTED, "attention_bias is not supported in a drafter");
    if (d->C != C)
        return kk_fail(err, KK_EFORMAT,
                       "the drafter is %d wide, the verifier %d: they do not belong together", d->C,
                       C);
    if (d->H % d->G || d->D % 2)
        return kk_fail(err, KK_EFORMAT, "%d heads, %d KV heads of %d: not a valid geometry", d->H,
                       d->G, d->D);
    rc = kk_dev_takes(d->dev, d->D, d->C, err);
    if (rc) return rc;
    d->layer = kk_calloc((size_t)d->n_layers, sizeof *d->layer);
    d->kv_layer = kk_calloc((size_t)d->n_layers, sizeof *d->kv_layer);
    if (!d->layer || !d->kv_layer) return kk_fail(err, KK_ENOMEM, "out of memory for a drafter");
    rc = parse_taps(d, o, err);
    if (!rc) rc = parse_scales(d, o, err);
    return rc ? rc : parse_layer_types(d, o, err);
}

/* ---- weights ------------------------------------------------------------------------------ */

static int bind_layer(struct kk_loader *ld, struct kk_dflash *d, int l, struct kk_err *err)
{
    struct draft_layer *w = &d->layer[l];
    int64_t C = d->C, HD = (int64_t)d->H * d->D, GD = (int64_t)d->G * d->D;
    char n[160];
#define NAME(what) (snprintf(n, sizeof n, "layers.%d.%s.weight", l, what), n)
    LOAD(kk__load_vector(ld, NAME("input_layernorm"), C, 1, &w->input_norm, err));
    LOAD(kk__load_vector(ld, NAME("post_attention_layernorm"), C, 1, &w->post_norm, err));
    LOAD(kk__load_vector(ld, NAME("self_attn.q_norm"), d->D, 1, &w->q_norm, err));
    LOAD(kk__load_vector(ld, NAME("self_attn.k_norm"), d->D, 1, &w->k_norm, err));
    LOAD(kk__load_matrix(ld, NAME("self_attn.q_proj"), 1, HD, C, &w->wq, err));
    LOAD(kk__load_matrix(ld, NAME("self_attn.k_proj"), 1, GD, C, &w->wk, err));
    LOAD(kk__load_matrix(ld, NAME("self_attn.v_proj"), 1, GD, C, &w->wv, err));
    LOAD(kk__load_matrix(ld, NAME("self_attn.o_proj"), 1, C, HD, &w->wo, err));
    LOAD(kk__load_matrix(ld, NAME("mlp.gate_proj"), 1, d->F, C, &w->gate, err));
    LOAD(kk__load_matrix(ld, NAME("mlp.up_proj"), 1, d->F, C, &w->up, err));
    return kk__load_matrix(ld, NAME("mlp.down_proj"), 1, C, d->F, &w->down, err);
#undef NAME
}

static int bind(struct kk_loader *ld, struct kk_dflash *d, struct kk_err *err)
{
    LOAD(kk__load_matrix(ld, "fc.weight", 1, d->C, (int64_t)d->n_taps * d->C, &d->fc, err));
    LOAD(kk__load_vector(ld, "hidden_norm.weight", d->C, 1, &d->hidden_norm, err));
    LOAD(kk__load_vector(ld, "norm.weight", d->C, 1, &d->final_norm, err));
    for (int l = 0; l < d->n_layers; l++) LOAD(bind_layer(ld, d, l, err));
    return 0;
}

enum { N_BUFFERS = 12 };

static void buffer_specs(struct kk_dflash *d, struct kk_buffer_spec s[static N_BUFFERS])
{
    size_t T = (size_t)d->limits.max_rows, L = (size_t)d->limits.max_logit_rows, f = sizeof(float);
    size_t C = (size_t)d->C, H = (size_t)d->H, D = (size_t)d->D;
    size_t HD = H * D, GD = (size_t)d->G * D;
    size_t act = kk_dtype_bytes(d->dev->act);
    const struct kk_buffer_spec all[N_BUFFERS] = {
        {(void **)&d->ids, L * 4},
        {(void **)&d->h, T * C * f},
        {(void **)&d->a, T * C * f},
        {(void **)&d->q, L * HD * f},
        {(void **)&d->k, T * GD * f},
        {(void **)&d->v, T * GD * f},
        {(void **)&d->state, L * H * (D + 2) * f},
        {(void **)&d->logits, d->dev->ops->winner ? 0 : L * (size_t)d->verifier->config.info.V * f},
        {(void **)&d->x, T * C * act},
        {(void **)&d->o, L * HD * act},
        {(void **)&d->f, L * (size_t)d->F * act},
        {(void **)&d->taps_act, d->dev->act == KK_F32 ? 0 : T * (size_t)d->n_taps * C * act},
    };
    memcpy(s, all, sizeof all);
}

static size_t choice_bytes(const struct kk_dflash *d)
{
    return ((size_t)d->limits.max_logit_rows + 1) * sizeof(int32_t);
}

static struct kk_limits device_limits(const struct kk_dflash *d, const struct kk_model *shell)
{
    return (struct kk_limits){.max_rows = d->limits.max_rows,
                              .max_model_width = d->C,
                              .max_head_dim = d->D,
                              .max_block_cols = shell->max_block_cols,
                              .max_bf16_cols = shell->max_bf16_cols};
}

static int alloc_buffers(struct kk_dflash *d, const struct kk_model *shell, struct kk_err *err)
{
    struct kk_buffer_spec s[N_BUFFERS];
    const struct kk_limits lim = device_limits(d, shell);
    buffer_specs(d, s);
    int rc = d->dev->ops->reserve(d->dev, &lim, &d->dev->tables, err);
    if (!rc) rc = kk__buffers_alloc(d->dev, &d->scratch, s, N_BUFFERS, err);
    if (!rc) rc = kk__rope_room(d->dev, &d->scratch, &d->rope, d->limits.positions, err);
    if (rc) return rc;
    d->choice = d->dev->ops->host_alloc(d->dev, choice_bytes(d));
    return d->choice ? 0 : kk_fail(err, KK_ENOMEM, "out of memory for a drafter");
}

/* What it wants the device to reserve beyond what the verifier does */
static size_t more_reserved(const struct kk_dflash *d, const struct kk_model *shell)
{
    const struct kk_limits have = kk__device_limits(d->verifier), mine = device_limits(d, shell),
                           both = kk_limits_widest(have, &mine);
    return d->dev->ops->reserve_bytes(d->dev, &both) - d->dev->ops->reserve_bytes(d->dev, &have);
}

/* planned: weights are counted there, not loaded, and nothing is taken of the device. */
static int make(const struct kk_model_file *mf, struct kk_model *verifier,
                const struct kk_model_limits *limits, size_t *planned, struct kk_dflash **out,
                struct kk_err *err)
{
    struct kk_dflash *d = kk_calloc(1, sizeof *d);
    struct kk_model shell = {.dev = verifier->dev}; /* what the loader puts weights of */
    if (!d) return kk_fail(err, KK_ENOMEM, "out of memory for a drafter");
    d->verifier = verifier;
    d->dev = verifier->dev;
    d->limits = *limits;
    d->weights.name = "drafter weights";
    d->scratch.name = "drafter scratch";
    struct kk_loader ld = {.mf = mf,
                           .m = &shell,
                           .account = &d->weights,
                           .plan = planned != NULL,
                           .bf16_in = d->dev->bf16_act};
    int rc = parse(d, mf, err);
    if (!rc) rc = bind(&ld, d, err);
    if (!rc && !planned) rc = alloc_buffers(d, &shell, err);
    if (rc) {
        kk_wrap(err, rc, "drafter");
        kk_dflash_close(d);
        return rc;
    }
    if (planned) *planned = ld.planned + more_reserved(d, &shell);
    *out = d;
    return 0;
}

int kk_dflash_open(const struct kk_model_file *mf, struct kk_model *verifier,
                   const struct kk_model_limits *limits, struct kk_dflash **out, struct kk_err *err)
{
    return make(mf, verifier, limits, NULL, out, err);
}

int kk_dflash_plan(const struct kk_model_file *mf, struct kk_model *verifier,
                   const struct kk_model_limits *limits, struct kk_dflash **out, size_t *bytes,
                   struct kk_err *err)
{
    struct kk_buffer_spec s[N_BUFFERS];
    int rc = make(mf, verifier, limits, bytes, out, err);
    if (rc) return rc;
    buffer_specs(*out, s);
    for (int k = 0; k < N_BUFFERS; k++) *bytes += s[k].bytes;
    *bytes += kk__rope_bytes(&(*out)->rope, limits->positions);
    return 0;
}

static void free_layer(struct kk_dflash *d, struct draft_layer *w)
{
    const size_t C = (size_t)d->C * sizeof(float), D = (size_t)d->D * sizeof(float);
    struct kk_weight *const mat[] = {&w->wq, &w->wk, &w->wv, &w->wo, &w->gate, &w->up, &w->down};
    kk_dev_free(d->dev, &d->weights, w->input_norm, C);
    kk_dev_free(d->dev, &d->weights, w->post_norm, C);
    kk_dev_free(d->dev, &d->weights, w->q_norm, D);
    kk_dev_free(d->dev, &d->weights, w->k_norm, D);
    for (size_t k = 0; k < sizeof mat / sizeof *mat; k++) kk_weight_free(d->dev, mat[k]);
}

void kk_dflash_close(struct kk_dflash *d)
{
    struct kk_buffer_spec s[N_BUFFERS];
    if (!d) return;
    for (int l = 0; d->layer && l < d->n_layers; l++) free_layer(d, &d->layer[l]);
    kk_weight_free(d->dev, &d->fc);
    kk_dev_free(d->dev, &d->weights, d->hidden_norm, (size_t)d->C * sizeof(float));
    kk_dev_free(d->dev, &d->weights, d->final_norm, (size_t)d->C * sizeof(float));
    buffer_specs(d, s);
    kk__buffers_free(d->dev, &d->scratch, s, N_BUFFERS);
    d->dev->ops->host_free(d->dev, d->choice, choice_bytes(d));
    kk__rope_free(d->dev, &d->scratch, &d->rope);
    kk_free(d->layer);
    kk_free(d->kv_layer);
    kk_free(d);
}

int64_t kk_dflash_weight_bytes(const struct kk_dflash *d)
{
    return atomic_load(&d->weights.bytes);
}

int64_t kk_dflash_bytes(const struct kk_dflash *d)
{
    return atomic_load(&d->weights.bytes) + atomic_load(&d->scratch.bytes);
}

const void *kk_dflash_hidden(const struct kk_dflash *d)
{
    return d->x;
}

int kk_dflash_block(const struct kk_dflash *d)
{
    return d->block;
}

struct kk_dev *kk_dflash_dev(const struct kk_dflash *d)
{
    return d->dev;
}

size_t kk_dflash_tap_floats(const struct kk_dflash *d)
{
    return (size_t)d->n_taps * (size_t)d->C;
}

int kk_dflash_taps(const struct kk_dflash *d, const int **layers)
{
    *layers = d->taps;
    return d->n_taps;
}

struct kk_kv_layout kk_dflash_layout(const struct kk_dflash *d, enum kk_dtype kv_type)
{
    return (struct kk_kv_layout){d->n_layers, d->kv_layer, kv_type};
}

/* ---- forward ------------------------------------------------------------------------------ */

/* Below, one op call is one stage, its arguments grouped by meaning. */
/* clang-format off */

/* Keys and values of x [T, C] into rows; with H > 0 queries too. */
static void project_to(struct kk_dflash *d, int l, int T, int H, const int32_t *pos,
                       enum kk_dtype kv_dtype, void *rows)
{
    const struct draft_layer *w = &d->layer[l];
    d->dev->ops->linear(d->dev, &(struct kk_linear_args){
        .T = T, .n = H ? 3 : 2, .x = d->x, .w = {&w->wk, &w->wv, &w->wq},
        .y = {d->k, d->v, d->q}});
    d->dev->ops->qkv(d->dev, &(struct kk_qkv_args){
        .T = T, .H = H, .G = d->G, .D = d->D, .R = d->D / 2, .raw_value = 1, .q = d->q,
        .k = d->k, .v = d->v, .q_norm = w->q_norm, .k_norm = w->k_norm, .eps = d->eps,
        .pos = pos, .rope = d->rope.cs, .kv_dtype = kv_dtype, .rows = rows});
}

/* into the step's rows of layer l */
static void project(struct kk_dflash *d, struct kk_kv_pool *pool, int l, int H)
{
    project_to(d, l, kk_kv_step_T(pool), H, kk_kv_step_pos(pool), kk_kv_dtype(pool),
               kk_kv_layer(pool, l).rows);
}

static void context_forward(struct kk_dflash *d, struct kk_kv_pool *pool, const float *taps)
{
    const int T = kk_kv_step_T(pool);
    if (d->taps_act)
        d->dev->ops->convert(d->dev, &(struct kk_convert_args){
            .n = (int64_t)T * d->n_taps * d->C, .from = KK_F32, .to = d->dev->act, .src = taps,
            .dst = d->taps_act});
    d->dev->ops->linear(d->dev, &(struct kk_linear_args){
        .T = T, .n = 1, .x = d->taps_act ? d->taps_act : taps, .w = {&d->fc}, .y = {d->a}});
    d->dev->ops->norm(d->dev, &(struct kk_norm_args){
        .T = T, .C = d->C, .x = d->a, .w = d->hidden_norm, .eps = d->eps, .y = d->x});
    for (int l = 0; l < d->n_layers; l++) {
        project(d, pool, l, 0);
        kk_kv_layer_done(pool, l);
    }
}

/* What follows the attention of a layer (in o): h, and with next_norm x = rms(h) * next_norm. */
static void after_attention(struct kk_dflash *d, const struct draft_layer *w, int T, float *h,
                            const float *next_norm)
{
    d->dev->ops->linear(d->dev, &(struct kk_linear_args){
        .T = T, .n = 1, .x = d->o, .w = {&w->wo}, .y = {d->a}});
    d->dev->ops->residual(d->dev, &(struct kk_residual_args){
        .T = T, .C = d->C, .n_in = 1, .n_out = 1, .plain = 1, .h = h, .a = {d->a},
        .scale = 1.0f, .eps = d->eps, .w_out = {w->post_norm}, .y = {d->x}});
    d->dev->ops->glu(d->dev, &(struct kk_glu_args){
        .T = T, .act = KK_SILU, .x = d->x, .gate = &w->gate, .up = &w->up, .y = d->f});
    d->dev->ops->linear(d->dev, &(struct kk_linear_args){
        .T = T, .n = 1, .x = d->f, .w = {&w->down}, .y = {d->a}});
    d->dev->ops->residual(d->dev, &(struct kk_residual_args){
        .T = T, .C = d->C, .n_in = 1, .n_out = next_norm ? 1 : 0, .plain = 1, .h = h, .a = {d->a},
        .scale = 1.0f, .eps = d->eps, .w_out = {next_norm}, .y = {d->x}});
}

static void layer_forward(struct kk_dflash *d, struct kk_kv_pool *pool, int l,
                          const float *next_norm)
{
    const struct draft_layer *w = &d->layer[l];
    const struct kk_kv_view kv = kk_kv_layer(pool, l);
    const int T = kk_kv_step_T(pool);
    project(d, pool, l, d->H);
    for (struct kk_kv_piece p = kk_kv_first_piece(pool, l); p.T; p = kk_kv_next_piece(pool, l))
        d->dev->ops->attn(d->dev, &(struct kk_attn_args){
            .T = p.T, .B = 1, .H = d->H, .G = d->G, .D = d->D, .q = d->q,
            .pos = kk_kv_step_pos(pool), .seq = kk_kv_step_seq(pool), .seqs = kv.seqs,
            .longest = kk_kv_step_pos_host(pool)[T - 1] + 1, .most_rows = T, .mask = w->mask,
            .scale = (float)(1.0 / sqrt((double)d->D)),
            .kv_dtype = kk_kv_dtype(pool), .first_split = p.first_split, .end_split = p.end_split,
            .first = p.first, .last = p.last, .staging = kv.staging, .state = d->state, .o = d->o});
    after_attention(d, w, T, d->h, next_norm);
}

/* Rows 1.. are the drafts. A positive multiplier and a soft-cap do not change the largest logit. */
static void block_forward(struct kk_dflash *d, struct kk_kv_pool *pool, int32_t *choice)
{
    const struct kk_model *m = d->verifier;
    const int T = kk_kv_step_T(pool);
    kk_kv_prefetch(pool);
    d->dev->ops->embed(d->dev, &(struct kk_embed_args){
        .T = T, .ids = d->ids, .table = &m->embed, .scale = d->embed_scale, .h = d->h});
    d->dev->ops->norm(d->dev, &(struct kk_norm_args){
        .T = T, .C = d->C, .x = d->h, .w = d->layer[0].input_norm, .eps = d->eps, .y = d->x});
    for (int l = 0; l < d->n_layers; l++)
        layer_forward(d, pool, l, l + 1 < d->n_layers ? d->layer[l + 1].input_norm : d->final_norm);
    kk_dev_winner(d->dev, &(struct kk_winner_args){
        .T = T - 1, .x = (char *)d->x + (size_t)d->C * kk_dtype_bytes(d->dev->act),
        .w = m->config.tied ? &m->embed : &m->head, .out = choice}, d->logits);
}

/* ---- the drafter alone: its keys and values over a whole text, for one_shot.c ---- */

struct capture {
    float *h;               /* [n, C] */
    void *rows;             /* [n, row_bytes]: of one layer */
    int32_t *pos, *seq;     /* [n] */
    struct kk_kv_seq *view; /* one sequence: every row is of the running step */
};

static void capture_rows(struct kk_dflash *d, const struct capture *c, int l, int64_t at, int T,
                         int H)
{
    const int64_t GD = (int64_t)d->G * d->D;
    d->dev->ops->norm(d->dev, &(struct kk_norm_args){
        .T = T, .C = d->C, .x = c->h + at * d->C, .w = d->layer[l].input_norm, .eps = d->eps,
        .y = d->x});
    project_to(d, l, T, H, c->pos + at, KK_F32, (float *)c->rows + 2 * at * GD);
}

/* Rows [at, at + T) of the stream past layer l, whose keys and values are all there. */
static void capture_layer(struct kk_dflash *d, const struct capture *c, int l, int64_t at, int T)
{
    float *h = c->h + at * d->C;
    capture_rows(d, c, l, at, T, d->H);
    d->dev->ops->attn(d->dev, &(struct kk_attn_args){
        .T = T, .B = 1, .H = d->H, .G = d->G, .D = d->D, .q = d->q, .pos = c->pos + at,
        .seq = c->seq, .seqs = c->view,
        .mask = {.window = KK_NO_BOUND, .near = KK_NO_BOUND, .ahead = KK_NO_BOUND},
        .scale = (float)(1.0 / sqrt((double)d->D)), .kv_dtype = KK_F32,
        .end_split = KK_NO_BOUND, .first = 1, .last = 1, .state = d->state, .o = d->o});
    after_attention(d, &d->layer[l], T, h, NULL);
}

static void capture_forward(struct kk_dflash *d, const struct capture *c, const int32_t *ids,
                            int64_t n, float scale, float *k, float *v)
{
    const int most = d->limits.max_logit_rows;
    const int64_t GD = (int64_t)d->G * d->D, stride = d->n_layers * GD;
#define ROWS(at) ((int)(n - (at) < most ? n - (at) : most))
    for (int64_t at = 0; at < n; at += most) {
        d->dev->ops->upload(d->dev, d->ids, ids + at, (size_t)ROWS(at) * sizeof *ids);
        d->dev->ops->embed(d->dev, &(struct kk_embed_args){
            .T = ROWS(at), .ids = d->ids, .table = &d->verifier->embed, .scale = scale,
            .h = c->h + at * d->C});
    }
    for (int l = 0; l < d->n_layers; l++) {
        for (int64_t at = 0; at < n; at += most) {
            capture_rows(d, c, l, at, ROWS(at), 0);
            for (int which = 0; which < 2; which++)
                d->dev->ops->gather(d->dev, &(struct kk_gather_args){
                    .n = ROWS(at), .C = (int)GD, .src = which ? d->v : d->k,
                    .dst = (which ? v : k) + at * stride + l * GD, .stride = stride});
        }
        for (int64_t at = 0; l + 1 < d->n_layers && at < n; at += most)
            capture_layer(d, c, l, at, ROWS(at));
    }
#undef ROWS
}
/* clang-format on */

static int capture_places(struct kk_dflash *d, const struct capture *c, int64_t n,
                          struct kk_err *err)
{
    const struct kk_kv_seq view = {.step = c->rows, .n_step = (int32_t)n, .block_rows = 1};
    int32_t *host = kk_calloc((size_t)n, sizeof *host);
    if (!host) return kk_fail(err, KK_ENOMEM, "out of memory for a drafter");
    d->dev->ops->upload(d->dev, c->seq, host, (size_t)n * sizeof *host);
    for (int64_t i = 0; i < n; i++) host[i] = (int32_t)i;
    d->dev->ops->upload(d->dev, c->pos, host, (size_t)n * sizeof *host);
    d->dev->ops->upload(d->dev, c->view, &view, sizeof view);
    kk_free(host);
    return 0;
}

int kk__dflash_capture(struct kk_dflash *d, const int32_t *ids, int64_t n, float scale, float *k,
                       float *v, struct kk_err *err)
{
    struct capture c = {0};
    const size_t N = (size_t)n, row = 2 * (size_t)d->G * (size_t)d->D * sizeof(float);
    const struct kk_buffer_spec s[] = {{(void **)&c.h, N * (size_t)d->C * sizeof(float)},
                                       {&c.rows, N * row},
                                       {(void **)&c.pos, N * sizeof(int32_t)},
                                       {(void **)&c.seq, N * sizeof(int32_t)},
                                       {(void **)&c.view, sizeof *c.view}};
    const int n_s = sizeof s / sizeof *s;
    int rc = kk__rope_ensure(d->dev, &d->scratch, &d->rope, n, err);
    if (!rc) rc = kk__buffers_alloc(d->dev, &d->scratch, s, n_s, err);
    if (!rc) rc = capture_places(d, &c, n, err);
    if (!rc) {
        d->dev->ops->step_begin(d->dev);
        capture_forward(d, &c, ids, n, scale, k, v);
        rc = d->dev->ops->step_end(d->dev, err);
    }
    kk__buffers_free(d->dev, &d->scratch, s, n_s);
    return rc;
}

int kk_dflash_observe(struct kk_dflash *d, struct kk_kv_pool *pool, struct kk_kv *kv,
                      const float *taps, int n, struct kk_err *err)
{
    const int32_t rows = n;
    KK_BUG_ON(n > d->limits.max_rows);
    int rc = kk__rope_ensure(d->dev, &d->scratch, &d->rope, kk_kv_rows(kv) + n, err);
    if (!rc) rc = kk_kv_begin(pool, KK_STEP_CHUNK, 1, &kv, &rows, err);
    if (rc) return rc;
    d->dev->ops->step_begin(d->dev);
    context_forward(d, pool, taps);
    rc = d->dev->ops->step_pass(d->dev, err);
    if (rc)
        kk_kv_abort(pool);
    else
        kk_kv_commit(pool, NULL);
    return rc;
}

int kk_dflash_propose_late(struct kk_dflash *d, struct kk_kv_pool *pool, struct kk_kv *kv,
                           int32_t carry, int n, int32_t *late, struct kk_err *err)
{
    int32_t ids[1025];
    const int32_t rows = n + 1;
    KK_BUG_ON(n < 1 || rows > d->limits.max_logit_rows || n > 1024);
    int rc = kk__rope_ensure(d->dev, &d->scratch, &d->rope, kk_kv_rows(kv) + rows, err);
    if (!rc) rc = kk_kv_begin(pool, KK_STEP_HOLD, 1, &kv, &rows, err);
    if (rc) return rc;
    ids[0] = carry;
    for (int i = 1; i <= n; i++) ids[i] = d->mask_id;
    d->dev->ops->upload(d->dev, d->ids, ids, (size_t)rows * sizeof *ids);
    d->dev->ops->step_begin(d->dev);
    block_forward(d, pool, late);
    rc = d->dev->ops->step_pass(d->dev, err);
    kk_kv_abort(pool); /* nothing of the block is kept */
    return rc;
}

int kk_dflash_propose(struct kk_dflash *d, struct kk_kv_pool *pool, struct kk_kv *kv, int32_t carry,
                      int n, int32_t *out, struct kk_err *err)
{
    int rc = kk_dflash_propose_late(d, pool, kv, carry, n, d->choice, err);
    if (rc) return rc;
    d->dev->ops->step_begin(d->dev);
    rc = d->dev->ops->step_end(d->dev, err);
    if (!rc) memcpy(out, d->choice, (size_t)n * sizeof *out);
    return rc;
}
