/* Models: weights bound by name, and a forward written as straight-line C over the device's stage
 * ops.
 *
 * Owns: config parsing, weights, rotary tables, activation buffers. Refuses to know: sessions,
 * sampling, schedules. One architecture is one file (gemma3.c, gemma4.c, llama.c, qwen3.c) and one
 * row of the table in config.c.
 *
 *     kk_model_open(mf, dev, &limits, NULL, &m, err);
 *     kk_kv_pool_open(dev, kk_model_layout(m, KK_F32), ..., &pool, err);
 *     kk_kv_begin(pool, ...);  kk_model_forward(m, pool, &fwd, err);  kk_kv_commit(pool, NULL); */
#ifndef KK_MODEL_MODEL_H
#define KK_MODEL_MODEL_H

#include <stdint.h>

#include "base/err.h"
#include "dev/dev.h"
#include "file/file.h"
#include "kv/kv.h"

#define KK_MAX_EOS 8

struct kk_model_info {
    const char *architecture; /* "Gemma4ForCausalLM" */
    int n_layers, n_full_layers, C, H, V, F, E, A, expert_F;
    int32_t window;        /* of sliding layers; 0: the model has none */
    int64_t max_positions; /* the context the model was made for */
    int64_t n_params, n_active_params;
    enum kk_dtype dtype; /* of the weights */
    int64_t bos;         /* -1: none */
    uint32_t eos[KK_MAX_EOS];
    int n_eos;
};

struct kk_model_limits {
    int max_rows;       /* T of a forward */
    int max_logit_rows; /* rows of logits asked of one forward */
    int64_t positions;  /* rotary tables made at open (they grow by doubling beyond) */
};

/* Called from the loading thread with bytes done and in all; NULL is fine. */
struct kk_progress_fn {
    void (*fn)(void *arg, const char *what, uint64_t done, uint64_t total);
    void *arg;
};

struct kk_model;

/* Bytes a model takes on the device, from the same code that allocates them. */
struct kk_model_plan {
    size_t weight_bytes, scratch_bytes;
    size_t logits_bytes; /* taken when logits are first asked for; 0: they are in scratch_bytes */
};

/* Check config and every tensor's shape, and add up bytes; loads nothing. *shell (may be NULL): a
 * model that has neither weights nor room, to plan what goes beside it; the caller closes it. */
int kk_model_plan(const struct kk_model_file *mf, struct kk_dev *dev,
                  const struct kk_model_limits *limits, struct kk_model_plan *out,
                  struct kk_model **shell, struct kk_err *err);

/* Read the config alone. */
int kk_model_describe(const struct kk_model_file *mf, struct kk_model_info *out,
                      struct kk_err *err);

/* The type of the weights, from the embedding table's entry in the file. */
int kk_model_dtype(const struct kk_model_file *mf, const struct kk_model_info *info,
                   enum kk_dtype *out, struct kk_err *err);

/* The file may be closed after open (the device holds its own copy of the weights). */
int kk_model_open(const struct kk_model_file *mf, struct kk_dev *dev,
                  const struct kk_model_limits *limits, const struct kk_progress_fn *progress,
                  struct kk_model **out, struct kk_err *err);
void kk_model_close(struct kk_model *m); /* NULL is fine */

const struct kk_model_info *kk_model_info(const struct kk_model *m);
int64_t kk_model_weight_bytes(const struct kk_model *m); /* from the allocator */
int64_t
kk_model_scratch_bytes(const struct kk_model *m); /* activations, rotary tables, the device's */

/* Layers as the KV cache needs them, without opening the model. out->layer is owned by the caller
 * (kk_free). kv_type: KK_F32, KK_BF16 or KK_Q8_0; rows are rounded to it. */
int kk_model_kv_layout(const struct kk_model_file *mf, enum kk_dtype kv_type,
                       struct kk_kv_layout *out, struct kk_err *err);

/* Auxiliary taps: the residual stream after these layers, of every row of a forward. */
struct kk_taps {
    int n;
    const int *layers; /* host [n] */
    float *dst;        /* device [T, n, C]; the caller's */
};

/* One forward over the rows of the running KV step. */
struct kk_forward {
    const int32_t *ids;        /* host [T]; each in [0, V) (checked: KK_ERANGE names id and row) */
    const int32_t *late;       /* host_alloc [T]: ids of rows whose id above is -1, which ops before
                                  this forward still make; NULL: there are none */
    int n_logits;              /* rows wanted; 0 is fine */
    const int32_t *logit_rows; /* host [n_logits], indices into T */
    int choose;                /* of those rows the largest logit alone: kk_model_argmax */
    struct kk_taps taps[2];    /* one set for a drafter, one for f_theta; n 0: unused */
    struct kk_one_shot *one_shot; /* replaces rows of sliding layers; NULL but in measurements */
    int experts;                  /* kk_model_distinct_experts will be asked */
};

/* Runs begin..end of a device step. Logits are then at kk_model_logits (device [n_logits, V]) until
 * the next forward, unless `choose` is set. Makes room in the rotary tables first, and for logits
 * the first time they are asked for (the only allocations, before the step). On an error the caller
 * aborts the KV step. */
int kk_model_forward(struct kk_model *m, struct kk_kv_pool *pool, const struct kk_forward *fwd,
                     struct kk_err *err);
float *kk_model_logits(const struct kk_model *m);

/* Experts that the T rows of the last forward went to, each counted once a layer: the sum over
 * layers. For measurements; the forward was told (kk_forward.experts). KK_E* if negative. */
int64_t kk_model_distinct_experts(struct kk_model *m, int T, struct kk_err *err);
int64_t kk_model_expert_bytes(const struct kk_model *m); /* of one expert of every layer */

/* ---- DFlash drafter: a block-diffusion model over the verifier's auxiliary states --------- */

/* The directory format of z-lab (arXiv:2602.06036). The drafter has no embedding and no head: it
 * borrows the verifier's, so the verifier must stay open. Its context rows live in a KV pool of its
 * own, one kk_kv a session: row j is made from the verifier's taps of row j. */
struct kk_dflash;
int kk_dflash_open(const struct kk_model_file *mf, struct kk_model *verifier,
                   const struct kk_model_limits *limits, struct kk_dflash **out,
                   struct kk_err *err);
/* Device bytes that it would take, before any are; of *out, which the caller closes, only taps and
 * layout may be asked. verifier: kk_model_plan's shell is enough. */
int kk_dflash_plan(const struct kk_model_file *mf, struct kk_model *verifier,
                   const struct kk_model_limits *limits, struct kk_dflash **out, size_t *bytes,
                   struct kk_err *err);
void kk_dflash_close(struct kk_dflash *d);          /* NULL is fine */
int64_t kk_dflash_bytes(const struct kk_dflash *d); /* of the device, from the allocator */
int64_t kk_dflash_weight_bytes(const struct kk_dflash *d);
int kk_dflash_block(const struct kk_dflash *d); /* rows of the block it was trained with */

struct kk_dev *kk_dflash_dev(const struct kk_dflash *d);
size_t kk_dflash_tap_floats(const struct kk_dflash *d); /* n_taps * C */

/* Which layers of the verifier to tap, in order; borrowed. Returns how many. */
int kk_dflash_taps(const struct kk_dflash *d, const int **layers);

/* Its pool's layout; layer is borrowed from d. */
struct kk_kv_layout kk_dflash_layout(const struct kk_dflash *d, enum kk_dtype kv_type);

/* Append n context rows to kv from taps (device [n, n_taps, C]); n <= limits.max_rows. It does not
 * wait for a GPU (kk_ops.step_pass). */
int kk_dflash_observe(struct kk_dflash *d, struct kk_kv_pool *pool, struct kk_kv *kv,
                      const float *taps, int n, struct kk_err *err);

/* Draft n tokens (n < max_logit_rows) to follow `carry`, which stands at position kk_kv_rows(kv).
 * kv is as it was afterwards. */
int kk_dflash_propose(struct kk_dflash *d, struct kk_kv_pool *pool, struct kk_kv *kv, int32_t carry,
                      int n, int32_t *out, struct kk_err *err);
/* The same without waiting for a GPU: the tokens are in late [n] (memory of host_alloc) for later
 * ops, and for the host after the next step_end. */
int kk_dflash_propose_late(struct kk_dflash *d, struct kk_kv_pool *pool, struct kk_kv *kv,
                           int32_t carry, int n, int32_t *late, struct kk_err *err);

/* Hidden states of the last block, carry first, after the final norm (act [n + 1, C]): tests. */
const void *kk_dflash_hidden(const struct kk_dflash *d);

/* ---- f_theta: rows of sliding layers rebuilt from one latent a token ---------------------- */

/* Opening it makes the model use it for KV policies that rebuild rows (kk_mask.exact_near). dir
 * "exact": no map, the rows are copied from a full ring (the identity arm). max_rows: of a step. */
struct kk_ftheta;
int kk_ftheta_open(const char *dir, struct kk_model *m, enum kk_dtype kv_dtype, int max_rows,
                   int64_t positions, struct kk_ftheta **out, struct kk_err *err);
/* As kk_dflash_plan. */
int kk_ftheta_plan(const char *dir, struct kk_model *m, enum kk_dtype kv_dtype, int max_rows,
                   int64_t positions, struct kk_ftheta **out, size_t *bytes, struct kk_err *err);
/* Bytes of a latent, from the directory's config alone (0 for "exact"): for plan. */
int kk_ftheta_describe(const char *dir, size_t *latent_bytes, struct kk_err *err);
void kk_ftheta_close(struct kk_ftheta *f);                /* NULL is fine */
size_t kk_ftheta_latent_bytes(const struct kk_ftheta *f); /* of a token; 0 for "exact" */
int64_t kk_ftheta_bytes(const struct kk_ftheta *f);       /* of the device, from the allocator */
int64_t kk_ftheta_rebuilt(const struct kk_ftheta *f); /* rows rebuilt so far: proof that it ran */
uint64_t kk_ftheta_fingerprint(const struct kk_ftheta *f); /* of its files; 0 for "exact" */
int kk_ftheta_taps(const struct kk_ftheta *f, const int **layers);

/* Make and keep the latents of the n rows just committed to kv, from their taps (device [n, n_taps,
 * C]). It does not wait for a GPU (kk_ops.step_pass). */
int kk_ftheta_commit(struct kk_ftheta *f, struct kk_kv *kv, const float *taps, int n,
                     struct kk_err *err);

/* ---- one-shot restoration, for measurement ------------------------------------------------ */

/* The reference system's map (one_shot.c, docs/formats/f_theta.md). Model and drafter are borrowed.
 * A map that is causal, or of another drafter, is refused. */
struct kk_one_shot;
int kk_one_shot_open(const char *dir, struct kk_model *m, struct kk_dflash *d,
                     struct kk_one_shot **out, struct kk_err *err);
void kk_one_shot_close(struct kk_one_shot *o); /* NULL is fine */

/* The drafter reads ids[n]: steps that follow replace rows [sinks, n - window) of sliding layers. A
 * step is of one sequence, which begins with these ids. */
int kk_one_shot_read(struct kk_one_shot *o, const int32_t *ids, int64_t n, int32_t sinks,
                     int32_t window, struct kk_err *err);
int64_t
kk_one_shot_replaced(const struct kk_one_shot *o); /* rows, over layers: proof that it ran */

/* Greedy choice of the first n logit rows of the last forward, to host. Lowest index on ties. */
int kk_model_argmax(struct kk_model *m, int n, int32_t *out, struct kk_err *err);

#endif
