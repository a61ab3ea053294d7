/* Binding names to device weights. The same walk plans (adds up bytes) and loads. */
#include <stdio.h>
#include <string.h>

#include "base/mem.h"
#include "base/quant.h"
#include "model/model_int.h"

struct source {
    struct kk_tensor t;
    const struct kk_model_file *mf;
};

static void read_tensor(const void *ctx, uint64_t first, uint64_t n, void *dst)
{
    const struct source *s = ctx;
    kk_tensor_read(&s->t, first, n, dst);
}

static void rest_file(const void *ctx)
{
    const struct source *s = ctx;
    kk_model_file_rest(s->mf);
}

static struct kk_account *account_of(struct kk_loader *ld)
{
    return ld->account ? ld->account : &ld->m->weights;
}

static void progress(struct kk_loader *ld, const struct kk_tensor *t)
{
    ld->done += t->bytes;
    if (ld->progress && ld->progress->fn)
        ld->progress->fn(ld->progress->arg, "loading", ld->done, ld->total);
}

int kk__load_matrix(struct kk_loader *ld, const char *name, int n_mats, int64_t rows, int64_t cols,
                    struct kk_weight *w, struct kk_err *err)
{
    const uint64_t shape3[3] = {(uint64_t)n_mats, (uint64_t)rows, (uint64_t)cols};
    struct source s = {.mf = ld->mf};
    const struct kk_tensor *t = &s.t;
    int rank = strstr(name, ".experts.") ? 3 : 2;
    int rc = kk_model_file_get(ld->mf, name, rank, shape3 + (3 - rank), &s.t, err);
    if (rc) return rc;
    struct kk_synth rule;
    struct kk_weight_src src = {.dtype = t->dtype,
                                .n_mats = n_mats,
                                .rows = rows,
                                .cols = cols,
                                .data = t->data,
                                .ctx = &s,
                                .read = read_tensor,
                                .synth = kk_tensor_synth(t, &rule) ? &rule : NULL,
                                .rest = rest_file};
    if (kk_dtype_is_block(t->dtype) && cols > ld->m->max_block_cols)
        ld->m->max_block_cols = (int)cols;
    const int bf16_in = ld->bf16_in && t->dtype == KK_BF16;
    if (bf16_in && cols > ld->m->max_bf16_cols) ld->m->max_bf16_cols = (int)cols;
    if (ld->plan) {
        ld->planned += ld->m->dev->ops->weight_bytes(ld->m->dev, &src);
        ld->total += t->bytes;
        w->dtype = t->dtype; /* buffers may depend on it (f_theta.c) */
        return 0;
    }
    rc = ld->m->dev->ops->weight_load(ld->m->dev, &src, account_of(ld), w, err);
    if (rc) return kk_wrap(err, rc, "tensor '%s'", name);
    w->bf16_in = bf16_in;
    progress(ld, t);
    return 0;
}

/* (x + plus) * scale of every element, x less 1 where the file has it with 1 */
static int load_affine(struct kk_loader *ld, const char *name, int64_t n, float plus, float scale,
                       float **out, struct kk_err *err)
{
    struct kk_tensor t;
    size_t bytes = (size_t)n * sizeof(float);
    int rc = kk_model_file_get(ld->mf, name, 1, (uint64_t[]){(uint64_t)n}, &t, err);
    if (rc) return rc;
    if (ld->plan) {
        ld->planned += bytes;
        ld->total += t.bytes;
        return 0;
    }
    float *host = kk_array((size_t)n, sizeof *host);
    if (!host) return kk_fail(err, KK_ENOMEM, "out of memory reading tensor '%s'", name);
    rc = kk_dev_alloc(ld->m->dev, account_of(ld), bytes, (void **)out, err);
    if (!rc) {
        if (t.plus_one) plus -= 1;
        kk_tensor_dequant(&t, 0, t.count, host);
        for (int64_t i = 0; i < n; i++) host[i] = (host[i] + plus) * scale;
        ld->m->dev->ops->upload(ld->m->dev, *out, host, bytes);
        progress(ld, &t);
    }
    kk_free(host);
    return rc;
}

int kk__load_vector(struct kk_loader *ld, const char *name, int64_t n, float scale, float **out,
                    struct kk_err *err)
{
    return load_affine(ld, name, n, 0, scale, out, err);
}

int kk__load_scalar(struct kk_loader *ld, const char *name, float *out, struct kk_err *err)
{
    struct kk_tensor t;
    int rc = kk_model_file_get(ld->mf, name, 1, (uint64_t[]){1}, &t, err);
    if (!rc && !ld->plan) kk_tensor_dequant(&t, 0, 1, out);
    return rc;
}

/* ---- layers ------------------------------------------------------------------------------- */

/* "model.layers.7.<what><tail>" */
static const char *layer_name(const struct kk_loader *ld, int l, const char *what, const char *tail,
                              char buf[static 160])
{
    snprintf(buf, 160, "%slayers.%d.%s%s", kk__tensor_prefix(ld->mf), l, what, tail);
    return buf;
}

int kk__bind_matrix(struct kk_loader *ld, int l, const char *what, int n_mats, int64_t rows,
                    int64_t cols, struct kk_weight *w, struct kk_err *err)
{
    char n[160];
    return kk__load_matrix(ld, layer_name(ld, l, what, "", n), n_mats, rows, cols, w, err);
}

int kk__bind_vector(struct kk_loader *ld, int l, const char *what, int64_t count, float scale,
                    float **out, struct kk_err *err)
{
    char n[160];
    return kk__load_vector(ld, layer_name(ld, l, what, "", n), count, scale, out, err);
}

int kk__bind_scalar(struct kk_loader *ld, int l, const char *what, float *out, struct kk_err *err)
{
    char n[160];
    return kk__load_scalar(ld, layer_name(ld, l, what, "", n), out, err);
}

static int bind_norm(struct kk_loader *ld, int l, const char *what, int64_t count, float **out,
                     struct kk_err *err)
{
    char n[160];
    return load_affine(ld, layer_name(ld, l, what, ".weight", n), count,
                       ld->m->config.arch->norm_plus, 1, out, err);
}

int kk__bind_norm(struct kk_loader *ld, int l, const char *what, float **out, struct kk_err *err)
{
    return bind_norm(ld, l, what, ld->m->config.info.C, out, err);
}

int kk__bind_qk_norm(struct kk_loader *ld, int l, struct kk_err *err)
{
    const int D = ld->m->config.layer[l].D;
    struct kk_layer_weights *w = &ld->m->layer[l];
    LOAD(bind_norm(ld, l, "self_attn.q_norm", D, &w->q_norm, err));
    return bind_norm(ld, l, "self_attn.k_norm", D, &w->k_norm, err);
}

int kk__bind_attention(struct kk_loader *ld, int l, struct kk_err *err)
{
    const struct kk_layer_config *y = &ld->m->config.layer[l];
    struct kk_layer_weights *w = &ld->m->layer[l];
    const int64_t C = ld->m->config.info.C, HD = (int64_t)ld->m->config.info.H * y->D,
                  GD = (int64_t)y->G * y->D;
    LOAD(kk__bind_matrix(ld, l, "self_attn.q_proj.weight", 1, HD, C, &w->wq, err));
    LOAD(kk__bind_matrix(ld, l, "self_attn.k_proj.weight", 1, GD, C, &w->wk, err));
    if (!y->value_only)
        LOAD(kk__bind_matrix(ld, l, "self_attn.v_proj.weight", 1, GD, C, &w->wv, err));
    return kk__bind_matrix(ld, l, "self_attn.o_proj.weight", 1, C, HD, &w->wo, err);
}

int kk__bind_mlp(struct kk_loader *ld, int l, struct kk_err *err)
{
    struct kk_layer_weights *w = &ld->m->layer[l];
    const int64_t C = ld->m->config.info.C, F = ld->m->config.info.F;
    LOAD(kk__bind_matrix(ld, l, "mlp.gate_proj.weight", 1, F, C, &w->gate, err));
    LOAD(kk__bind_matrix(ld, l, "mlp.up_proj.weight", 1, F, C, &w->up, err));
    return kk__bind_matrix(ld, l, "mlp.down_proj.weight", 1, C, F, &w->down, err);
}

int kk__bind_model(struct kk_loader *ld, struct kk_err *err)
{
    struct kk_model *m = ld->m;
    const struct kk_model_info *i = &m->config.info;
    const char *prefix = kk__tensor_prefix(ld->mf);
    char n[160];
    snprintf(n, sizeof n, "%sembed_tokens.weight", prefix);
    LOAD(kk__load_matrix(ld, n, 1, i->V, i->C, &m->embed, err));
    if (!m->config.tied) LOAD(kk__load_matrix(ld, "lm_head.weight", 1, i->V, i->C, &m->head, err));
    snprintf(n, sizeof n, "%snorm.weight", prefix);
    LOAD(load_affine(ld, n, i->C, m->config.arch->norm_plus, 1, &m->final_norm, err));
    for (int l = 0; l < i->n_layers; l++) LOAD(m->config.arch->bind(ld, l, err));
    return 0;
}

/* ---- buffers ------------------------------------------------------------------------------ */

int kk__buffers_alloc(struct kk_dev *dev, struct kk_account *acc, const struct kk_buffer_spec *s,
                      int n, struct kk_err *err)
{
    int rc = 0;
    for (int k = 0; !rc && k < n; k++) rc = kk_dev_alloc(dev, acc, s[k].bytes, s[k].ptr, err);
    return rc;
}

void kk__buffers_free(struct kk_dev *dev, struct kk_account *acc, const struct kk_buffer_spec *s,
                      int n)
{
    for (int k = 0; k < n; k++) kk_dev_free(dev, acc, *s[k].ptr, s[k].bytes);
}

/* ---- names -------------------------------------------------------------------------------- */

const char *kk__tensor_prefix(const struct kk_model_file *mf)
{
    if (kk_model_file_has(mf, "model.language_model.norm.weight")) return "model.language_model.";
    if (kk_model_file_has(mf, "language_model.model.norm.weight")) return "language_model.model.";
    return "model.";
}

int kk__embed_tensor(const struct kk_model_file *mf, const struct kk_model_info *i,
                     struct kk_tensor *out, struct kk_err *err)
{
    const uint64_t shape[2] = {(uint64_t)i->V, (uint64_t)i->C};
    char name[160];
    snprintf(name, sizeof name, "%sembed_tokens.weight", kk__tensor_prefix(mf));
    int rc = kk_model_file_get(mf, name, 2, shape, out, err);
    if (!rc) out->name = NULL; /* name is of this call */
    return rc;
}
