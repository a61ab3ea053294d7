/* The reference system's restoration, for measurement: a map from the drafter's keys and values
 * over a whole prompt to the verifier's. Not causal, so no session of the engine's can use it
 * (docs/formats/f_theta.md); `bench scorecard` reads a prompt with it once and answers.
 *
 *   x_K, x_V: raw key and value projections of all drafter layers, one after the other, of a row
 *             when the drafter reads the prompt alone, every row seeing every row
 *   r_K = encoder.k x_K, r_V = encoder.v x_V
 *   of a row to be replaced, in sliding layer l:  kraw = layers.l.k r_K, vraw = layers.l.v r_V,
 *             then the verifier's own norms and RoPE, as for any row
 *
 * Rows are replaced as they are written, for every query: what the verifier computes at the
 * replaced rows reaches nothing but full layers. */
#include <math.h>
#include <stdio.h>
#include <string.h>

#include "base/json.h"
#include "base/mem.h"
#include "model/model_int.h"

struct layer_map {
    struct kk_weight k, v; /* [G*D, rank]; empty for full layers */
};

struct kk_one_shot {
    struct kk_model *m;
    struct kk_dflash *d;
    struct kk_account weights, scratch;
    int rank, X, GD;                     /* X: of x_K; GD: the widest of a sliding layer */
    struct kk_weight encode_k, encode_v; /* [rank, X] */
    struct layer_map *layer;             /* [n_layers] */
    float *k, *v;                        /* [max_rows, GD] */
    float *rk, *rv;                      /* [n, rank]: of the prompt that was read */
    int64_t n;
    int32_t first, end; /* rows to replace */
    int64_t replaced;   /* rows of layers so far */
};

/* ---- opening ------------------------------------------------------------------------------ */

static int same(int64_t theirs, int64_t ours, const char *what, struct kk_err *err)
{
    if (theirs == ours) return 0;
    return kk_fail(err, KK_EFORMAT,
                   "the map reads a drafter of %lld %s, this one has %lld: they do not belong "
                   "together",
                   (long long)theirs, what, (long long)ours);
}

static int parse(struct kk_one_shot *o, const json_t *c, struct kk_err *err)
{
    const struct kk_kv_layout y = kk_dflash_layout(o->d, KK_F32);
    const char *capture = "";
    int64_t rank = 0, layers = 0, heads = 0, dim = 0;
    if (!json_is_false(json_object_get(c, "causal")))
        return kk_fail(err, KK_EUNSUPPORTED,
                       "this map is causal: what it is good for is measured in the arm 'restored'");
    int rc = kk_json_str(c, "capture", 1, &capture, err);
    if (!rc && strcmp(capture, "drafter_kv"))
        rc = kk_fail(err, KK_EUNSUPPORTED, "a map with capture '%s' is not supported", capture);
    if (!rc) rc = kk_json_int(c, "rank", 1, 1 << 16, 1, &rank, err);
    if (!rc) rc = kk_json_int(c, "drafter_num_layers", 1, 256, 1, &layers, err);
    if (!rc) rc = kk_json_int(c, "drafter_num_kv_heads", 1, 1024, 1, &heads, err);
    if (!rc) rc = kk_json_int(c, "drafter_head_dim", 1, 1024, 1, &dim, err);
    if (!rc) rc = same(layers, y.n_layers, "layers", err);
    if (!rc) rc = same(heads, y.layer[0].G, "KV heads", err);
    if (!rc) rc = same(dim, y.layer[0].D, "numbers a head", err);
    o->rank = (int)rank;
    o->X = (int)(layers * heads * dim);
    return rc;
}

static int bind(struct kk_loader *ld, struct kk_one_shot *o, struct kk_err *err)
{
    const struct kk_model_config *c = &o->m->config;
    char n[96];
    LOAD(kk__load_matrix(ld, "encoder.k.weight", 1, o->rank, o->X, &o->encode_k, err));
    LOAD(kk__load_matrix(ld, "encoder.v.weight", 1, o->rank, o->X, &o->encode_v, err));
    for (int l = 0; l < c->info.n_layers; l++) {
        const int GD = c->layer[l].G * c->layer[l].D;
        if (!c->layer[l].sliding) continue;
        if (c->layer[l].value_only)
            return kk_fail(err, KK_EUNSUPPORTED, "layer %d slides and keeps values alone", l);
        if (GD > o->GD) o->GD = GD;
        snprintf(n, sizeof n, "layers.%d.k.weight", l);
        LOAD(kk__load_matrix(ld, n, 1, GD, o->rank, &o->layer[l].k, err));
        snprintf(n, sizeof n, "layers.%d.v.weight", l);
        LOAD(kk__load_matrix(ld, n, 1, GD, o->rank, &o->layer[l].v, err));
    }
    return 0;
}

enum { N_ROWS = 2, N_LATENTS = 2 };

static void row_specs(struct kk_one_shot *o, struct kk_buffer_spec s[static N_ROWS])
{
    const size_t bytes = (size_t)o->m->limits.max_rows * (size_t)o->GD * sizeof(float);
    s[0] = (struct kk_buffer_spec){(void **)&o->k, bytes};
    s[1] = (struct kk_buffer_spec){(void **)&o->v, bytes};
}

static void latent_specs(struct kk_one_shot *o, struct kk_buffer_spec s[static N_LATENTS])
{
    const size_t bytes = (size_t)o->n * (size_t)o->rank * sizeof(float);
    s[0] = (struct kk_buffer_spec){(void **)&o->rk, bytes};
    s[1] = (struct kk_buffer_spec){(void **)&o->rv, bytes};
}

static int load(struct kk_one_shot *o, const char *dir, struct kk_err *err)
{
    struct kk_model shell = {.dev = o->m->dev};
    struct kk_loader ld = {.m = &shell, .account = &o->weights};
    struct kk_buffer_spec s[N_ROWS];
    struct kk_model_file *mf = NULL;
    int rc = kk_model_file_open_parts(dir, "f_theta_config.json", "f_theta.safetensors", &mf, err);
    if (!rc) rc = parse(o, kk_model_file_config(mf), err);
    ld.mf = mf;
    if (!rc) rc = bind(&ld, o, err);
    kk_model_file_close(mf);
    row_specs(o, s);
    return rc ? rc : kk__buffers_alloc(o->m->dev, &o->scratch, s, N_ROWS, err);
}

int kk_one_shot_open(const char *dir, struct kk_model *m, struct kk_dflash *d,
                     struct kk_one_shot **out, struct kk_err *err)
{
    struct kk_one_shot *o = kk_calloc(1, sizeof *o);
    if (!o) return kk_fail(err, KK_ENOMEM, "out of memory for a map");
    *o = (struct kk_one_shot){.m = m, .d = d};
    o->weights.name = "weights of a map";
    o->scratch.name = "scratch of a map";
    o->layer = kk_calloc((size_t)m->config.info.n_layers, sizeof *o->layer);
    int rc = o->layer ? 0 : kk_fail(err, KK_ENOMEM, "out of memory for a map");
    if (!rc && m->dev->act != KK_F32)
        rc = kk_fail(err, KK_EUNSUPPORTED, "one-shot restoration is measured on a CPU only");
    if (!rc) rc = load(o, dir, err);
    if (rc) {
        kk_wrap(err, rc, "one-shot restoration");
        kk_one_shot_close(o);
        return rc;
    }
    *out = o;
    return 0;
}

static void forget(struct kk_one_shot *o)
{
    struct kk_buffer_spec s[N_LATENTS];
    latent_specs(o, s);
    kk__buffers_free(o->m->dev, &o->scratch, s, N_LATENTS);
    o->rk = o->rv = NULL;
    o->n = 0;
}

void kk_one_shot_close(struct kk_one_shot *o)
{
    struct kk_buffer_spec s[N_ROWS];
    if (!o) return;
    forget(o);
    row_specs(o, s);
    kk__buffers_free(o->m->dev, &o->scratch, s, N_ROWS);
    for (int l = 0; o->layer && l < o->m->config.info.n_layers; l++) {
        kk_weight_free(o->m->dev, &o->layer[l].k);
        kk_weight_free(o->m->dev, &o->layer[l].v);
    }
    kk_weight_free(o->m->dev, &o->encode_k);
    kk_weight_free(o->m->dev, &o->encode_v);
    kk_free(o->layer);
    kk_free(o);
}

int64_t kk_one_shot_replaced(const struct kk_one_shot *o)
{
    return o->replaced;
}

/* ---- reading a prompt, replacing rows ----------------------------------------------------- */

static int encode(struct kk_one_shot *o, const int32_t *ids, float *xk, float *xv,
                  struct kk_err *err)
{
    struct kk_dev *d = o->m->dev;
    /* the reference scales what its embedding module has scaled already */
    const double scale = (double)o->m->config.embed_scale * sqrt((double)o->m->config.info.C);
    int rc = kk__dflash_capture(o->d, ids, o->n, (float)scale, xk, xv, err);
    if (rc) return rc;
    d->ops->step_begin(d);
    d->ops->linear(d, &(struct kk_linear_args){
                          .T = (int)o->n, .n = 1, .x = xk, .w = {&o->encode_k}, .y = {o->rk}});
    d->ops->linear(d, &(struct kk_linear_args){
                          .T = (int)o->n, .n = 1, .x = xv, .w = {&o->encode_v}, .y = {o->rv}});
    return d->ops->step_end(d, err);
}

int kk_one_shot_read(struct kk_one_shot *o, const int32_t *ids, int64_t n, int32_t sinks,
                     int32_t window, struct kk_err *err)
{
    struct kk_buffer_spec s[N_LATENTS];
    float *xk = NULL, *xv = NULL;
    const size_t bytes = (size_t)n * (size_t)o->X * sizeof(float);
    const struct kk_buffer_spec x[2] = {{(void **)&xk, bytes}, {(void **)&xv, bytes}};
    forget(o);
    KK_BUG_ON(n < 1 || n > 1 << 24);
    o->n = n;
    o->first = sinks;
    o->end = (int32_t)n - window;
    latent_specs(o, s);
    int rc = kk__buffers_alloc(o->m->dev, &o->scratch, s, N_LATENTS, err);
    if (!rc) rc = kk__buffers_alloc(o->m->dev, &o->scratch, x, 2, err);
    if (!rc) rc = encode(o, ids, xk, xv, err);
    kk__buffers_free(o->m->dev, &o->scratch, x, 2);
    return rc;
}

void kk__one_shot_replace(struct kk_one_shot *o, struct kk_kv_pool *pool, int l)
{
    struct kk_dev *d = o->m->dev;
    const struct kk_layer_config *c = &o->m->config.layer[l];
    const struct kk_kv_view kv = kk_kv_layer(pool, l);
    const int32_t at = kk_kv_step_pos_host(pool)[0], rows = kk_kv_step_T(pool);
    const int32_t first = o->first > at ? o->first : at;
    const int32_t end = o->end < at + rows ? o->end : at + rows, n = end - first;
    if (n <= 0) return;
    d->ops->linear(d, &(struct kk_linear_args){.T = n,
                                               .n = 1,
                                               .x = o->rk + (int64_t)first * o->rank,
                                               .w = {&o->layer[l].k},
                                               .y = {o->k}});
    d->ops->linear(d, &(struct kk_linear_args){.T = n,
                                               .n = 1,
                                               .x = o->rv + (int64_t)first * o->rank,
                                               .w = {&o->layer[l].v},
                                               .y = {o->v}});
    d->ops->qkv(
        d, &(struct kk_qkv_args){.T = n,
                                 .G = c->G,
                                 .D = c->D,
                                 .R = c->R,
                                 .raw_value = o->m->config.raw_value,
                                 .k = o->k,
                                 .v = o->v,
                                 .k_norm = o->m->layer[l].k_norm,
                                 .eps = o->m->config.eps,
                                 .pos = kk_kv_step_pos(pool) + (first - at),
                                 .rope = o->m->rope[1].cs,
                                 .kv_dtype = kk_kv_dtype(pool),
                                 .rows = (char *)kv.rows + (size_t)(first - at) * kv.row_bytes});
    o->replaced += n;
}
