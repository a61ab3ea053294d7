/* f_θ: rows a sliding layer no longer stores, rebuilt from one latent a token.
 *
 *   commit:  x = the row's auxiliary states, each divided by its rms; z = round_bf16(W x + b), kept
 *   rebuild: kraw = K_l z + b, vraw = V_l z + b; then the verifier's own norms and RoPE, as for any
 * row
 *
 * Format kakeya-f-theta-1: docs/formats/f_theta.md. Causal: z of a row needs only that row's own
 * forward. With no weights ("exact") the rows are copied from a full ring instead: the identity
 * arm. */
#include <stdio.h>
#include <string.h>

#include "base/json.h"
#include "base/mem.h"
#include "model/model_int.h"

enum { MAX_TAPS = 32 };

struct layer_map {
    struct kk_weight k, v;  /* [G*D, rank] */
    float *k_bias, *v_bias; /* [G*D] */
};

struct kk_ftheta {
    struct kk_model *m;
    struct kk_account weights, scratch;
    int exact, rank, n_taps;
    int pairs; /* latents and maps are bf16, and the device's act is not: products of pairs */
    int taps[MAX_TAPS];
    float eps;
    struct kk_weight latent; /* [rank, n_taps * C] */
    float *latent_bias;
    struct layer_map *layer; /* [n_layers]; empty for full layers */
    int max_rows, most,
        GD; /* rows of a step; rows rebuilt at once; widest G*D of a sliding layer */
    enum kk_dtype kv_dtype;
    void *x;           /* act [max_rows, n_taps * C] */
    void *zb;          /* bf16 [max(max_rows, most), rank] */
    float *z;          /* the same in f32; `pairs`: [max_rows, rank], for commit alone */
    float *k, *v;      /* [most, GD] */
    void *rows;        /* [most, row_bytes] */
    int32_t *position; /* [positions]: 0, 1, 2, .. */
    int64_t positions, rebuilt;
    uint64_t fingerprint;
    /* whose latents z holds: layers of one step share them */
    const struct kk_kv *z_of;
    int32_t z_first, z_n;
    int64_t z_rows;
};

/* ---- opening ------------------------------------------------------------------------------ */

static int parse_taps(struct kk_ftheta *f, const json_t *ids, struct kk_err *err)
{
    int N = f->m->config.info.n_layers;
    f->n_taps = (int)json_array_size(ids);
    if (f->n_taps < 1 || f->n_taps > MAX_TAPS)
        return kk_fail(err, KK_EFORMAT, "'aux_layer_ids' must list 1 to %d layers", MAX_TAPS);
    for (int i = 0; i < f->n_taps; i++) {
        const json_t *v = json_array_get(ids, (size_t)i);
        if (!json_is_integer(v))
            return kk_fail(err, KK_EFORMAT, "'aux_layer_ids' must be numbers of layers");
        json_int_t l = json_integer_value(v);
        if (l < 0 || l >= N)
            return kk_fail(err, KK_EFORMAT,
                           "f_theta reads layer %lld of the verifier, which has %d layers",
                           (long long)l, N);
        f->taps[i] = (int)l;
    }
    return 0;
}

static int parse(struct kk_ftheta *f, const json_t *o, struct kk_err *err)
{
    const char *format = "", *predicts = "", *capture = "";
    int64_t rank = 0, C = 0;
    double eps = 1e-6;
    int rc = kk_json_str(o, "format", 1, &format, err);
    if (!rc && json_is_false(json_object_get(o, "causal")))
        return kk_fail(err, KK_EUNSUPPORTED,
                       "this map reads the drafter's keys and values over a whole prompt, tokens "
                       "after a row included: with it tokens would depend on how a history was cut "
                       "into appends, so no session can use it");
    if (!rc && strcmp(format, "kakeya-f-theta-1"))
        return kk_fail(
            err, KK_EUNSUPPORTED,
            "f_theta format '%s' is not causal or not known (expected kakeya-f-theta-1): a session "
            "cannot use it",
            format);
    if (!rc) rc = kk_json_str(o, "capture", 1, &capture, err);
    if (!rc) rc = kk_json_str(o, "predicts", 1, &predicts, err);
    if (!rc) rc = kk_json_int(o, "rank", 1, 1 << 16, 1, &rank, err);
    if (!rc) rc = kk_json_int(o, "hidden_size", 1, 1 << 20, 1, &C, err);
    if (!rc) rc = kk_json_real(o, "aux_norm_eps", 0, 1, 0, &eps, err);
    if (rc) return rc;
    if (strcmp(capture, "aux") || strcmp(predicts, "raw_projection"))
        return kk_fail(err, KK_EUNSUPPORTED,
                       "f_theta with capture '%s' that predicts '%s' is not supported", capture,
                       predicts);
    if (C != f->m->config.info.C)
        return kk_fail(err, KK_EFORMAT,
                       "f_theta is for a model %lld wide, this one is %d: they do not belong "
                       "together",
                       (long long)C, f->m->config.info.C);
    f->rank = (int)rank;
    f->eps = (float)eps;
    return parse_taps(f, json_object_get(o, "aux_layer_ids"), err);
}

static int bind(struct kk_loader *ld, struct kk_ftheta *f, struct kk_err *err)
{
    const struct kk_model_config *c = &f->m->config;
    char n[96];
    LOAD(kk__load_matrix(ld, "latent.weight", 1, f->rank, (int64_t)f->n_taps * c->info.C,
                         &f->latent, err));
    LOAD(kk__load_vector(ld, "latent.bias", f->rank, 1, &f->latent_bias, err));
    for (int l = 0; l < c->info.n_layers; l++) {
        struct layer_map *y = &f->layer[l];
        int64_t GD = (int64_t)c->layer[l].G * c->layer[l].D;
        if (!c->layer[l].sliding) continue;
#define NAME(what) (snprintf(n, sizeof n, "layers.%d.%s", l, what), n)
        LOAD(kk__load_matrix(ld, NAME("k.weight"), 1, GD, f->rank, &y->k, err));
        LOAD(kk__load_vector(ld, NAME("k.bias"), GD, 1, &y->k_bias, err));
        LOAD(kk__load_matrix(ld, NAME("v.weight"), 1, GD, f->rank, &y->v, err));
        LOAD(kk__load_vector(ld, NAME("v.bias"), GD, 1, &y->v_bias, err));
#undef NAME
    }
    return 0;
}

/* The rebuild's input is bf16 as it is stored: where the maps are too, its product rounds nothing
 * that it reads, and costs half of one in f32 (docs/adr/0015). */
static void choose_product(struct kk_ftheta *f)
{
    const struct kk_model_config *c = &f->m->config;
    f->pairs = f->m->dev->act == KK_F32 && f->rank % 2 == 0;
    for (int l = 0; l < c->info.n_layers; l++)
        if (c->layer[l].sliding)
            f->pairs &= f->layer[l].k.dtype == KK_BF16 && f->layer[l].v.dtype == KK_BF16;
    for (int l = 0; l < c->info.n_layers; l++)
        f->layer[l].k.bf16_in = f->layer[l].v.bf16_in = f->pairs;
}

enum { N_BUFFERS = 7 };

static void buffer_specs(struct kk_ftheta *f, struct kk_buffer_spec s[static N_BUFFERS])
{
    const size_t C = (size_t)f->m->config.info.C, R = (size_t)f->rank, fl = sizeof(float);
    const size_t T = (size_t)f->max_rows, M = (size_t)f->most, Z = T > M ? T : M;
    const size_t GD = (size_t)f->GD;
    const struct kk_buffer_spec all[N_BUFFERS] = {
        {&f->x, T * (size_t)f->n_taps * C * kk_dtype_bytes(f->m->dev->act)},
        {(void **)&f->z, (f->pairs ? T : Z) * R * fl},
        {&f->zb, Z * R * 2},
        {(void **)&f->k, f->exact ? 0 : M * GD * fl},
        {(void **)&f->v, f->exact ? 0 : M * GD * fl},
        {&f->rows, M * GD * 2 * kk_dtype_bytes(f->kv_dtype)},
        {(void **)&f->position, (size_t)f->positions * 4},
    };
    memcpy(s, all, sizeof all);
}

static int alloc_buffers(struct kk_ftheta *f, struct kk_err *err)
{
    struct kk_buffer_spec s[N_BUFFERS];
    buffer_specs(f, s); /* its ops want no scratch of the device beyond what the model reserved */
    int rc = kk__buffers_alloc(f->m->dev, &f->scratch, s, N_BUFFERS, err);
    if (rc) return rc;
    int32_t *host = kk_array((size_t)f->positions, sizeof *host);
    if (!host) return kk_fail(err, KK_ENOMEM, "out of memory for f_theta");
    for (int64_t i = 0; i < f->positions; i++) host[i] = (int32_t)i;
    f->m->dev->ops->upload(f->m->dev, f->position, host, (size_t)f->positions * 4);
    kk_free(host);
    return 0;
}

/* A directory, or synth:CONFIG.json[:SEED] for random maps of any geometry (benches). */
static int open_file(const char *dir, struct kk_model_file **out, struct kk_err *err)
{
    return strncmp(dir, "synth:", 6) ? kk_model_file_open_parts(dir, "f_theta_config.json",
                                                                "f_theta.safetensors", out, err)
                                     : kk_model_file_open(dir, out, err);
}

int kk_ftheta_describe(const char *dir, size_t *latent_bytes, struct kk_err *err)
{
    struct kk_model_file *mf = NULL;
    int64_t rank = 0;
    *latent_bytes = 0;
    if (!strcmp(dir, "exact")) return 0;
    int rc = open_file(dir, &mf, err);
    if (!rc) rc = kk_json_int(kk_model_file_config(mf), "rank", 1, 1 << 16, 1, &rank, err);
    kk_model_file_close(mf);
    *latent_bytes = (size_t)rank * 2;
    return rc ? kk_wrap(err, rc, "f_theta") : 0;
}

/* plan: weights are counted (*planned), not loaded, and nothing is taken of the device. */
static int make(const char *dir, struct kk_model *m, enum kk_dtype kv_dtype, int max_rows,
                int64_t positions, size_t *planned, struct kk_ftheta **out, struct kk_err *err)
{
    struct kk_ftheta *f = kk_calloc(1, sizeof *f);
    struct kk_model shell = {.dev = m->dev};
    struct kk_model_file *mf = NULL;
    if (!f) return kk_fail(err, KK_ENOMEM, "out of memory for f_theta");
    *f = (struct kk_ftheta){.m = m,
                            .exact = !strcmp(dir, "exact"),
                            .max_rows = max_rows,
                            .most = m->config.info.window,
                            .kv_dtype = kv_dtype,
                            .positions = positions};
    f->weights.name = "f_theta weights";
    f->scratch.name = "f_theta scratch";
    f->layer = kk_calloc((size_t)m->config.info.n_layers, sizeof *f->layer);
    for (int l = 0; l < m->config.info.n_layers; l++) {
        int GD = m->config.layer[l].G * m->config.layer[l].D;
        if (m->config.layer[l].sliding && GD > f->GD) f->GD = GD;
    }
    struct kk_loader ld = {.m = &shell, .account = &f->weights, .plan = planned != NULL};
    int rc = f->layer ? 0 : kk_fail(err, KK_ENOMEM, "out of memory for f_theta");
    if (!rc && !f->exact) {
        rc = open_file(dir, &mf, err);
        if (!rc) rc = parse(f, kk_model_file_config(mf), err);
        ld.mf = mf;
        if (!rc) rc = bind(&ld, f, err);
        if (!rc) choose_product(f);
        if (!rc) f->fingerprint = kk_model_file_fingerprint(mf);
        kk_model_file_close(mf);
    }
    if (!rc && !planned) rc = alloc_buffers(f, err);
    if (rc) {
        kk_wrap(err, rc, "f_theta");
        kk_ftheta_close(f);
        return rc;
    }
    if (planned) *planned = ld.planned;
    *out = f;
    return 0;
}

int kk_ftheta_open(const char *dir, struct kk_model *m, enum kk_dtype kv_dtype, int max_rows,
                   int64_t positions, struct kk_ftheta **out, struct kk_err *err)
{
    int rc = make(dir, m, kv_dtype, max_rows, positions, NULL, out, err);
    if (!rc) m->restorer = *out;
    return rc;
}

int kk_ftheta_plan(const char *dir, struct kk_model *m, enum kk_dtype kv_dtype, int max_rows,
                   int64_t positions, struct kk_ftheta **out, size_t *bytes, struct kk_err *err)
{
    struct kk_buffer_spec s[N_BUFFERS];
    int rc = make(dir, m, kv_dtype, max_rows, positions, bytes, out, err);
    if (rc) return rc;
    buffer_specs(*out, s);
    for (int k = 0; k < N_BUFFERS; k++) *bytes += s[k].bytes;
    return 0;
}

void kk_ftheta_close(struct kk_ftheta *f)
{
    struct kk_buffer_spec s[N_BUFFERS];
    if (!f) return;
    struct kk_dev *d = f->m->dev;
    for (int l = 0; f->layer && l < f->m->config.info.n_layers; l++) {
        struct layer_map *y = &f->layer[l];
        size_t GD = (size_t)y->k.rows * sizeof(float);
        kk_dev_free(d, &f->weights, y->k_bias, GD);
        kk_dev_free(d, &f->weights, y->v_bias, GD);
        kk_weight_free(d, &y->k);
        kk_weight_free(d, &y->v);
    }
    kk_dev_free(d, &f->weights, f->latent_bias, (size_t)f->rank * sizeof(float));
    kk_weight_free(d, &f->latent);
    buffer_specs(f, s);
    kk__buffers_free(d, &f->scratch, s, N_BUFFERS);
    kk_free(f->layer);
    if (f->m->restorer == f) f->m->restorer = NULL;
    kk_free(f);
}

size_t kk_ftheta_latent_bytes(const struct kk_ftheta *f)
{
    return f->exact ? 0 : (size_t)f->rank * 2;
}
int64_t kk_ftheta_bytes(const struct kk_ftheta *f)
{
    return atomic_load(&f->weights.bytes) + atomic_load(&f->scratch.bytes);
}
uint64_t kk_ftheta_fingerprint(const struct kk_ftheta *f)
{
    return f->fingerprint;
}

int64_t kk_ftheta_rebuilt(const struct kk_ftheta *f)
{
    return f->rebuilt;
}

int kk_ftheta_taps(const struct kk_ftheta *f, const int **layers)
{
    *layers = f->taps;
    return f->n_taps;
}

/* ---- commit and rebuild ------------------------------------------------------------------- */

int kk_ftheta_commit(struct kk_ftheta *f, struct kk_kv *kv, const float *taps, int n,
                     struct kk_err *err)
{
    struct kk_dev *d = f->m->dev;
    if (f->exact || n < 1) return 0;
    KK_BUG_ON(n > f->max_rows);
    f->z_of = NULL; /* z is scratch here */
    d->ops->step_begin(d);
    d->ops->norm(
        d, &(struct kk_norm_args){
               .T = n * f->n_taps, .C = f->m->config.info.C, .x = taps, .eps = f->eps, .y = f->x});
    d->ops->linear(
        d,
        &(struct kk_linear_args){
            .T = n, .n = 1, .x = f->x, .w = {&f->latent}, .y = {f->z}, .bias = {f->latent_bias}});
    d->ops->convert(
        d,
        &(struct kk_convert_args){
            .n = (int64_t)n * f->rank, .from = KK_F32, .to = KK_BF16, .src = f->z, .dst = f->zb});
    kk_kv_store_latents(kv, f->zb, n);
    return d->ops->step_pass(d, err);
}

/* Latents [first, first + n) of a session into zb, and z where the product reads f32, unless they
 * are there. */
static void load_latents(struct kk_ftheta *f, const struct kk_kv *kv, int32_t first, int32_t n)
{
    struct kk_dev *d = f->m->dev;
    const int64_t rows = kk_kv_latents(kv);
    if (f->z_of == kv && f->z_first == first && f->z_n == n && f->z_rows == rows) return;
    kk_kv_copy_latents(kv, first, n, f->zb);
    if (d->act == KK_F32 && !f->pairs)
        d->ops->convert(d, &(struct kk_convert_args){.n = (int64_t)n * f->rank,
                                                     .from = KK_BF16,
                                                     .to = KK_F32,
                                                     .src = f->zb,
                                                     .dst = f->z});
    f->z_of = kv;
    f->z_first = first;
    f->z_n = n;
    f->z_rows = rows;
}

const void *kk__ftheta_rebuild(struct kk_ftheta *f, const struct kk_kv_pool *pool, int b, int l,
                               int32_t first, int32_t n)
{
    struct kk_dev *d = f->m->dev;
    const struct kk_layer_config *c = &f->m->config.layer[l];
    f->rebuilt += n;
    if (f->exact) {
        kk_kv_copy_rows(pool, b, l, first, n, f->rows);
        return f->rows;
    }
    load_latents(f, kk_kv_step_session(pool, b), first, n);
    const void *z = d->act == KK_F32 && !f->pairs ? (void *)f->z : f->zb;
    d->ops->linear(d, &(struct kk_linear_args){.T = n,
                                               .n = 2,
                                               .settled = 1,
                                               .bf16 = f->pairs,
                                               .x = z,
                                               .w = {&f->layer[l].k, &f->layer[l].v},
                                               .y = {f->k, f->v},
                                               .bias = {f->layer[l].k_bias, f->layer[l].v_bias}});
    d->ops->qkv(d, &(struct kk_qkv_args){.T = n,
                                         .G = c->G,
                                         .D = c->D,
                                         .R = c->R,
                                         .raw_value = f->m->config.raw_value,
                                         .k = f->k,
                                         .v = f->v,
                                         .k_norm = f->m->layer[l].k_norm,
                                         .eps = f->m->config.eps,
                                         .pos = f->position + first,
                                         .rope = f->m->rope[1].cs,
                                         .kv_dtype = f->kv_dtype,
                                         .rows = f->rows});
    return f->rows;
}
