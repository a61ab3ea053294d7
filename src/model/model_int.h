/* Private to model/: the parsed config, bound weights and buffers of the gemma4 family. */
#ifndef KK_MODEL_MODEL_INT_H
#define KK_MODEL_MODEL_INT_H

#include "model/model.h"

struct kk_layer_config {
    int sliding, value_only;
    int D, G; /* head dim, KV heads */
    int R;    /* rotary pairs */
};

struct kk_model_config {
    struct kk_model_info info;
    int intermediate, moe;
    float eps, softcap, embed_scale;
    int tied;
    double theta_sliding, theta_full, factor_full;
    int R_sliding, R_full, D_sliding, D_full;
    enum kk_activation act;
    struct kk_layer_config *layer; /* [n_layers], owned */
};

int kk__config_parse(const struct kk_model_file *mf, struct kk_model_config *c, struct kk_err *err);
void kk__config_release(struct kk_model_config *c);

/* cos and sin of every position up to `positions`, for one (theta, D, R); grows by doubling. */
struct kk_rope_table {
    double theta, factor;
    int D, R;
    int64_t positions;
    float *cs; /* device [positions, R, 2] */
};
size_t kk__rope_bytes(const struct kk_rope_table *t, int64_t positions); /* of a fresh table */
int kk__rope_ensure(struct kk_dev *dev, struct kk_account *acc, struct kk_rope_table *t,
                    int64_t positions, struct kk_err *err);
void kk__rope_free(struct kk_dev *dev, struct kk_account *acc, struct kk_rope_table *t);

struct kk_layer_weights {
    float *input_norm, *post_attn_norm, *pre_ff_norm, *post_ff_norm; /* [C] */
    float *post_ff_norm_1, *post_ff_norm_2, *pre_ff_norm_2;          /* [C], MoE */
    float *q_norm, *k_norm;                                          /* [D] */
    struct kk_weight wq, wk, wv, wo;       /* [H*D, C] [G*D, C] [G*D, C] [C, H*D] */
    struct kk_weight gate, up, down;       /* [F, C] [F, C] [C, F] */
    float *router_scale;                   /* [C], times C^-0.5 */
    float *expert_scale;                   /* [E] */
    struct kk_weight router;               /* [E, C] */
    struct kk_weight gate_up, expert_down; /* E x [2F, C], E x [C, F] */
    float scalar;
};

/* Activation buffers of a step, sized once for max_rows; device memory. */
struct kk_buffers {
    int32_t *ids, *logit_rows, *choice;
    float *h, *h_last;          /* [T, C], [n_logits, C] */
    void *x, *x_moe, *x_router; /* act [T, C] */
    float *q, *k, *v;           /* [T, H*D] [T, G*D] [T, G*D] */
    void *o;                    /* act [T, H*D] */
    float *state;               /* [T, H, D + 2] */
    void *f;                    /* act [T, F] */
    float *a, *b;               /* [T, C] sublayer outputs */
    int32_t *expert_idx;        /* [T, A] */
    float *expert_weight;       /* [T, A] */
    float *logits;              /* [n_logits, V] */
};

struct kk_model {
    struct kk_model_config config;
    struct kk_model_limits limits;
    struct kk_dev *dev;
    struct kk_account weights, scratch;
    struct kk_weight embed, head; /* head.data NULL when tied */
    float *final_norm;
    struct kk_layer_weights *layer; /* [n_layers] */
    struct kk_rope_table rope_sliding, rope_full;
    struct kk_buffers buf;
    struct kk_ftheta *restorer; /* borrowed; NULL: no policy here rebuilds rows */
};

/* Binds every weight of the architecture; with `plan` set nothing is loaded and bytes add up there.
 */
struct kk_loader {
    const struct kk_model_file *mf;
    struct kk_model *m;
    struct kk_account *account; /* NULL: the model's weights */
    const struct kk_progress_fn *progress;
    int plan;
    size_t planned;
    uint64_t done, total; /* bytes, for the progress bar */
};

/* For a walk of loads: return the first error. */
#define LOAD(expr)                                                                                 \
    do {                                                                                           \
        int rc_ = (expr);                                                                          \
        if (rc_) return rc_;                                                                       \
    } while (0)

int kk__load_matrix(struct kk_loader *ld, const char *name, int n_mats, int64_t rows, int64_t cols,
                    struct kk_weight *w, struct kk_err *err);
/* times `scale`, as f32 on the device */
int kk__load_vector(struct kk_loader *ld, const char *name, int64_t n, float scale, float **out,
                    struct kk_err *err);
int kk__load_scalar(struct kk_loader *ld, const char *name, float *out, struct kk_err *err);

/* f_theta.c: rows [first, first + n) of layer l of step sequence b, rebuilt; valid until the next
 * call */
const void *kk__ftheta_rebuild(struct kk_ftheta *f, const struct kk_kv_pool *pool, int b, int l,
                               int32_t first, int32_t n);

/* A device buffer: where its pointer goes, and its size. */
struct kk_buffer_spec {
    void **ptr;
    size_t bytes;
};
int kk__buffers_alloc(struct kk_dev *dev, struct kk_account *acc, const struct kk_buffer_spec *s,
                      int n, struct kk_err *err);
void kk__buffers_free(struct kk_dev *dev, struct kk_account *acc, const struct kk_buffer_spec *s,
                      int n);

/* The embedding table of a model file: its type is the type of the weights. */
int kk__embed_tensor(const struct kk_model_file *mf, const struct kk_model_info *i,
                     struct kk_tensor *out, struct kk_err *err);
/* What every tensor's name begins with: a text model inside a larger one has a longer one. */
const char *kk__tensor_prefix(const struct kk_model_file *mf);

/* gemma4.c */
int kk__gemma4_bind(struct kk_loader *ld, struct kk_err *err);
void kk__gemma4_forward(struct kk_model *m, struct kk_kv_pool *pool, const struct kk_forward *fwd);

#endif
