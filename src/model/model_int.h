/* Private to model/: what an architecture is, the parsed config, bound weights, buffers, and the
 * stages that architectures share. docs/adr/0006 says why it is cut this way. */
#ifndef KK_MODEL_MODEL_INT_H
#define KK_MODEL_MODEL_INT_H

#include "base/json.h"
#include "model/model.h"

struct kk_loader;
struct kk_step;
struct kk_model_config;

/* One architecture: a file of this folder, and a row of the table in config.c. */
struct kk_arch {
    const char *name;       /* "Gemma3ForCausalLM" */
    const char *inside;     /* the larger model that holds it as its text model, or NULL */
    const char *model_type; /* "gemma3_text" */
    float norm_plus;        /* added to the weight of every norm as it is loaded */
    /* config.json into c. What is absent has the default of the Hugging Face class; what is not
     * implemented is refused by name, never ignored. */
    int (*config)(const json_t *o, struct kk_model_config *c, struct kk_err *err);
    /* The names of layer l's tensors. */
    int (*bind)(struct kk_loader *ld, int l, struct kk_err *err);
    /* Layer l over the rows of a step: in, h and x = rms(h) * input_norm; out, h and x = rms(h) *
     * next_norm (NULL after the last layer: x is not wanted). */
    void (*layer)(const struct kk_step *s, int l, const float *next_norm);
};
extern const struct kk_arch kk__gemma3, kk__gemma4, kk__llama, kk__qwen3;

struct kk_layer_config {
    int sliding, value_only;
    int D, G; /* head dim, KV heads */
    int R;    /* rotary pairs */
};

/* Rotary embedding of one kind of layer: pair r < R of a head turns by position * f(r), where
 * f(r) = theta^(-2r/D) / factor. Llama 3's scaling (original > 0) divides only the frequencies
 * whose wavelength is over original / low, leaves those under original / high, and blends in
 * between. */
struct kk_rope {
    int D, R;
    double theta, factor;
    double low, high, original;
};

/* cos and sin of every position below `filled`; made as histories reach them. There is room for
 * `positions`, which grows by doubling. */
struct kk_rope_table {
    struct kk_rope rope;
    int64_t positions, filled;
    float *cs;   /* device [positions, R, 2] */
    float *host; /* rows on their way */
};
size_t kk__rope_bytes(const struct kk_rope_table *t, int64_t positions); /* of a fresh table */
/* Room for so many positions; then, also filled. */
int kk__rope_room(struct kk_dev *dev, struct kk_account *acc, struct kk_rope_table *t,
                  int64_t positions, struct kk_err *err);
int kk__rope_ensure(struct kk_dev *dev, struct kk_account *acc, struct kk_rope_table *t,
                    int64_t positions, struct kk_err *err);
void kk__rope_free(struct kk_dev *dev, struct kk_account *acc, struct kk_rope_table *t);

/* What config.json says. rope[sliding] of the layers of that kind; R 0 where there are none. */
struct kk_model_config {
    const struct kk_arch *arch;
    struct kk_model_info info;
    int moe, tied;
    int raw_value; /* values are stored as they are projected; else normalised */
    float eps, softcap;
    float embed_scale; /* rounded to the type of the embedding when the model is opened */
    float attn_scale;
    enum kk_activation act;
    struct kk_rope rope[2];
    struct kk_layer_config *layer; /* [n_layers], owned */
    int qk_norm, norms;            /* vectors of a layer: of D for queries and keys; of C */
    int64_t others; /* parameters of a layer besides matrices, experts and these vectors */
};

int kk__config_parse(const struct kk_model_file *mf, struct kk_model_config *c, struct kk_err *err);
void kk__config_release(struct kk_model_config *c);

/* ---- config.c: what the configs of architectures have in common --------------------------- */

/* o[key] in [1, max]. *out holds the default; 0: the key must be there. */
int kk__config_int(const json_t *o, const char *key, int max, int *out, struct kk_err *err);
/* KK_EUNSUPPORTED unless a name is absent or `known`, a flag absent or false. */
int kk__config_name(const json_t *o, const char *key, const char *known, struct kk_err *err);
int kk__config_off(const json_t *o, const char *key, struct kk_err *err);

int kk__config_check_heads(int H, int G, int D, struct kk_err *err);
/* Vocabulary, widths, layers, heads, eps, context, tying. What c holds before are the defaults (0:
 * the key must be there). Then c->layer is made, each layer full, with G KV heads of D; where those
 * keys are absent G and D are the defaults, or one of these. */
enum { KK_REQUIRED = 0, KK_DERIVED = -1 }; /* derived: a KV head for every head, D = C / H */
int kk__config_geometry(const json_t *o, int G, int D, struct kk_model_config *c,
                        struct kk_err *err);
/* Token ids of a config that names none. */
void kk__config_specials(struct kk_model_config *c, int bos, uint32_t eos);
/* Which layers slide: those of `layer_types`, or, where it is absent, those already marked. With a
 * sliding layer the window is `sliding_window` (absent: *window; 0: it must be there). */
int kk__config_layer_types(const json_t *o, int window, struct kk_model_config *c,
                           struct kk_err *err);
/* c->rope[sliding] of the layers of that kind, from the object p (NULL: all defaults) that has the
 * name `where`: a rope_type of default, linear or llama3. */
int kk__config_rope(const json_t *p, const char *where, double theta, int sliding,
                    struct kk_model_config *c, struct kk_err *err);
/* The same for models with one rotary embedding: rope_scaling or rope_parameters, rope_theta. */
int kk__config_one_rope(const json_t *o, double theta, struct kk_model_config *c,
                        struct kk_err *err);

/* ---- weights and buffers ------------------------------------------------------------------ */

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
    int32_t *ids, *choice;      /* [T], then the rows of logits wanted; host_alloc [n_logits] */
    float *h, *h_last;          /* [T, C], [n_logits, C] */
    void *x, *x_moe, *x_router; /* act [T, C] */
    float *q, *k, *v;           /* [T, H*D] [T, G*D] [T, G*D] */
    void *o;                    /* act [T, H*D] */
    float *state;               /* [T, H, D + 2] */
    void *f;                    /* act [T, F] */
    float *a, *b;               /* [T, C] sublayer outputs */
    int32_t *expert_idx;        /* [n_layers, max_rows, A] */
    float *expert_weight;       /* [T, A] */
    float *logits;              /* [n_logits, V]; NULL until asked for where the device chooses */
};

struct kk_model {
    struct kk_model_config config;
    struct kk_model_limits limits;
    struct kk_dev *dev;
    int max_block_cols, max_bf16_cols; /* the loader's: as in struct kk_limits */
    struct kk_account weights, scratch;
    struct kk_weight embed, head; /* head.data NULL when tied */
    float *final_norm;
    struct kk_layer_weights *layer; /* [n_layers] */
    struct kk_rope_table rope[2];   /* of full layers, of sliding layers */
    struct kk_buffers buf;
    int32_t *to_ids;              /* host [max_rows + max_logit_rows]: buf.ids on its way */
    int chosen;                   /* rows whose winners the last forward left in buf.choice */
    struct kk_model_stack *stack; /* stack_int.h */
    struct kk_ftheta *restorer;   /* borrowed; NULL: no policy here rebuilds rows */
};

/* Binds every weight of the architecture; with `plan` set nothing is loaded, bytes add up there. */
struct kk_loader {
    const struct kk_model_file *mf;
    struct kk_model *m;
    struct kk_account *account; /* NULL: the model's weights */
    const struct kk_progress_fn *progress;
    int bf16_in; /* bf16 matrices read their input rounded to bf16 */
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

/* f_theta.c: rows [first, first + n) of layer l of step sequence b, until the next call */
const void *kk__ftheta_rebuild(struct kk_ftheta *f, const struct kk_kv_pool *pool, int b, int l,
                               int32_t first, int32_t n);

/* one_shot.c: replace rows of the running step in sliding layer l, after they were written. */
void kk__one_shot_replace(struct kk_one_shot *o, struct kk_kv_pool *pool, int l);
/* dflash.c: raw keys and values of every layer, of ids [n] read without context, every row seeing
 * every row. k, v: device [n, n_layers, G*D]. */
int kk__dflash_capture(struct kk_dflash *d, const int32_t *ids, int64_t n, float scale, float *k,
                       float *v, struct kk_err *err);
struct kk_limits kk__device_limits(const struct kk_model *m); /* what its ops want reserved */

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

/* ---- load.c: tensors of layer l, named layers.L.WHAT ---------------------------------------- */

int kk__bind_matrix(struct kk_loader *ld, int l, const char *what, int n_mats, int64_t rows,
                    int64_t cols, struct kk_weight *w, struct kk_err *err);
int kk__bind_vector(struct kk_loader *ld, int l, const char *what, int64_t count, float scale,
                    float **out, struct kk_err *err);
int kk__bind_scalar(struct kk_loader *ld, int l, const char *what, float *out, struct kk_err *err);
/* WHAT.weight, [C] */
int kk__bind_norm(struct kk_loader *ld, int l, const char *what, float **out, struct kk_err *err);
/* self_attn.{q,k,v,o}_proj.weight; no v where values are keys */
int kk__bind_attention(struct kk_loader *ld, int l, struct kk_err *err);
/* self_attn.{q,k}_norm.weight, [D] */
int kk__bind_qk_norm(struct kk_loader *ld, int l, struct kk_err *err);
/* mlp.{gate,up,down}_proj.weight */
int kk__bind_mlp(struct kk_loader *ld, int l, struct kk_err *err);
/* Everything: the embedding, the head, the final norm, and each layer by the architecture. */
int kk__bind_model(struct kk_loader *ld, struct kk_err *err);

/* ---- forward.c: the stages that architectures share --------------------------------------- */

/* What every stage of a step needs. */
struct kk_step {
    struct kk_model *m;
    struct kk_dev *dev;
    const struct kk_ops *op;
    struct kk_kv_pool *pool;
    int T, C;
    struct kk_one_shot *one_shot;
};

/* buf.x -> attention output, projected, in buf.a. Q and K are normalised where there are norms. */
void kk__attention(const struct kk_step *s, int l);
/* buf.x -> down(act(gate x) * up x) in buf.a */
void kk__mlp(const struct kk_step *s, int l);
/* h += buf.a, with post: h += rms(buf.a) * post; then buf.x = rms(h) * next, unless that is NULL */
void kk__residual(const struct kk_step *s, const float *post, const float *next);
/* Embedding, layers, taps, logits. */
void kk__forward(struct kk_model *m, struct kk_kv_pool *pool, const struct kk_forward *fwd);

#endif
