/* Models: weights bound by name, and a forward written as straight-line C over the device's stage
 * ops.
 *
 * Owns: config parsing, weights, rotary tables, activation buffers. Refuses to know: sessions,
 * sampling, schedules. One architecture is one file (gemma4.c) and one row of the table in model.c.
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
    int32_t window;        /* of sliding layers */
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
};

/* Check config and every tensor's shape, and add up bytes; loads nothing. */
int kk_model_plan(const struct kk_model_file *mf, struct kk_dev *dev,
                  const struct kk_model_limits *limits, struct kk_model_plan *out,
                  struct kk_err *err);

/* Read the config alone. */
int kk_model_describe(const struct kk_model_file *mf, struct kk_model_info *out,
                      struct kk_err *err);

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
 * (kk_free). kv_type: KK_F32 or KK_BF16; rows are rounded to it. */
int kk_model_kv_layout(const struct kk_model_file *mf, enum kk_dtype kv_type,
                       struct kk_kv_layout *out, struct kk_err *err);

/* One forward over the rows of the running KV step. */
struct kk_forward {
    const int32_t *ids;        /* host [T]; each in [0, V) (checked: KK_ERANGE names id and row) */
    int n_logits;              /* rows wanted; 0 is fine */
    const int32_t *logit_rows; /* host [n_logits], indices into T */
    int n_taps;                /* auxiliary taps: residual stream after these layers, all rows */
    const int *tap_layers;     /* host [n_taps] */
    float *taps;               /* device [n_taps, T, C]; the caller's */
};

/* Runs begin..end of a device step. Logits are then at kk_model_logits (device [n_logits, V]) until
 * the next forward. Makes room in the rotary tables first (the only allocation, before the step).
 * On an error the caller aborts the KV step. */
int kk_model_forward(struct kk_model *m, struct kk_kv_pool *pool, const struct kk_forward *fwd,
                     struct kk_err *err);
float *kk_model_logits(const struct kk_model *m);

/* Greedy choice of every logits row of the last forward, to host. Lowest index on ties. */
int kk_model_argmax(struct kk_model *m, int n, int32_t *out, struct kk_err *err);

#endif
