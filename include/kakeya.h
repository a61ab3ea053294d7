/* libkakeya: an LLM inference engine for long-lived sessions.
 *
 *     struct kk_engine *e;  struct kk_session *s;  struct kk_err err;
 *     struct kk_engine_options o = kk_engine_defaults();
 *     o.model = "models/tiny";
 *     kk_engine_open(&o, &e, &err);
 *     kk_session_open(e, &s, &err);
 *     kk_session_append(s, ids, n, &err);                      any split of the same ids: same
 * result kk_session_generate(s, &sampling, 128, on_token, arg, &result, &err); kk_session_close(s);
 * kk_engine_close(e);
 *
 * Rules
 *   - One thread at a time uses an engine and its sessions.
 *   - Between calls the last token of a session's history is pending: it has been emitted or
 * appended, and is fed to the model by the next step. So rows in the KV cache = history - 1.
 *   - Tokens depend on the model, the history, the sampling options and the seed; never on threads,
 * batch company, or how the history was cut into appends.
 *   - Functions return 0 or a negative KK_E* code and fill err (may be NULL). A failed append or
 * generate leaves the session with the tokens it had committed. */
#ifndef KAKEYA_H
#define KAKEYA_H

#include <stddef.h>
#include <stdint.h>

#include "base/err.h"

#ifdef __cplusplus
extern "C" {
#endif

#define KAKEYA_VERSION "0.1.0"

struct kk_engine;
struct kk_session;

/* Called while weights load and during long prefills: `done` of `total` bytes or tokens. */
typedef void kk_progress_cb(void *arg, const char *what, uint64_t done, uint64_t total);

struct kk_engine_options {
    const char *model;  /* snapshot directory, GGUF file, or "synth:CONFIG.json[:SEED]" */
    const char *device; /* "auto" (a GPU if the program was built for one and there is one, else the
                            CPU), "cpu", "cuda", "cuda:1" */
    const char *cpu_isa; /* "auto", "scalar", "avx2", "avx512" */
    const char *act;     /* input of products with quantised weights: "q8" (8 bits with a scale for
                        every 32 numbers), "f32" (several times slower), "auto" (q8); "bf16": auto,
                        and the input of bf16 weights rounded to bf16 (other tokens) */
    int threads;         /* 0: all cores this process may use */
    const char *kv;      /* "full", "native", "s5", "restored", "sinkwin" */
    int kv_sinks, kv_window; /* of s5, restored and sinkwin */
    int64_t kv_device; /* most device bytes of a session's KV; 0: no cap. Blocks page to the host */
    int64_t kv_host;   /* most host bytes of paged KV of all sessions; 0: no cap */
    int kv_staging;    /* blocks of the staging ring, shared by all sessions; 0: as many as suit */
    int64_t draft_device;     /* as kv_device, of the drafter's context rows */
    const char *kv_type;      /* "auto" (f32 where the weights are f32, else bf16), "f32", "bf16",
                                 "q8_0" */
    int64_t ctx;              /* most tokens of a session; 0: what the model was made for */
    int prefill_chunk;        /* rows of a prefill step */
    int max_batch;            /* sessions of one decode step */
    const char *f_theta;      /* of policy restored: a directory, or "exact" (the identity arm) */
    const char *draft;        /* "none", "ngram", or a DFlash directory: speed, never tokens */
    int draft_width;          /* rows of a verifying step, 1 to 16; 0: found while running */
    kk_progress_cb *progress; /* may be NULL */
    void *progress_arg;
};

/* model NULL, native, auto, 4 sinks + 64, chunks of 512, batches of 16, no drafts. */
struct kk_engine_options kk_engine_defaults(void);

/* Bytes before loading, from the code that allocates them. Needs no weights in memory. */
struct kk_plan {
    int64_t weight_bytes;  /* on the device */
    int64_t scratch_bytes; /* activations and tables, one per process */
    int64_t logits_bytes;  /* more of them, once a request asks for more than the likeliest token */
    int64_t kv_staging_bytes;      /* KV step scratch and staging ring, one per process */
    int64_t session_kv_bytes;      /* device bytes of a session of `ctx` tokens */
    int64_t session_kv_host_bytes; /* host bytes of it: rows that a device cap pages out */
    /* What f_theta and the drafter take beside these, 0 without: weights, scratch, staging, and the
     * states of the model that they read; and the drafter's rows of a session, with those put off.
     */
    int64_t restorer_bytes, drafter_bytes, session_draft_bytes;
    int64_t sessions, ctx;
    int64_t made_for_ctx; /* the context that the model was made for */
    int64_t total_bytes;  /* of the device, all of it for `sessions` sessions */
    int64_t free_bytes;   /* device memory that is free now; 0: not known */
};
int kk_plan_make(const struct kk_engine_options *o, int64_t ctx, int64_t sessions,
                 struct kk_plan *out, struct kk_err *err);

int kk_engine_open(const struct kk_engine_options *o, struct kk_engine **out, struct kk_err *err);
void kk_engine_close(struct kk_engine *e); /* after its sessions; NULL is fine */

struct kk_engine_info {
    int64_t rows_rebuilt;     /* by f_theta since the engine was opened */
    int64_t rows_replaced;    /* by one-shot restoration */
    const char *device;       /* "cpu avx512, 2 threads" */
    const char *architecture; /* borrowed */
    const char *kv, *kv_type;
    int n_layers, vocabulary, hidden;
    int64_t n_params, n_active_params, ctx;
    int64_t made_for_ctx; /* ctx may be larger: what is written there may be worse */
    int64_t bos;          /* -1: none */
    const uint32_t *eos;  /* borrowed */
    int n_eos;
    int64_t weight_bytes, scratch_bytes, kv_staging_bytes; /* from the allocator */
    int64_t restorer_bytes, drafter_bytes;                 /* likewise, as struct kk_plan says */
    int64_t step_weight_bytes; /* weight bytes one decode step of one session reads */
    int active_experts;        /* of a row, in a layer; 0: the model has none */
    int64_t expert_bytes;      /* weights of one expert in every layer */
};
void kk_engine_describe(const struct kk_engine *e, struct kk_engine_info *out);

/* For benches. on: count in each step from here on, which then is slower, how many experts its rows
 * go to; off: *per_layer (NULL is fine) is the mean of those steps, each expert counted once. */
void kk_engine_count_experts(struct kk_engine *e, int on, double *per_layer);

int kk_session_open(struct kk_engine *e, struct kk_session **out, struct kk_err *err);
void kk_session_close(struct kk_session *s); /* NULL is fine */

/* End-of-sequence ids of this session in place of the model's; n = 0: the model's again. */
int kk_session_set_eos(struct kk_session *s, const uint32_t *ids, int n, struct kk_err *err);

/* Write a session to a file (old or new, never half), and open one from it, in any process with the
 * same model: it goes on with the tokens it would have made. Rows that were made with other KV
 * options, or are damaged, are read again from the history. KK_EFORMAT: the file is no saved
 * session or its history is damaged; KK_EINVAL: another model. */
int kk_session_save(struct kk_session *s, const char *path, struct kk_err *err);
int kk_session_load(struct kk_engine *e, const char *path, struct kk_session **out,
                    struct kk_err *err);

/* A second session with the same history. Stored rows are shared: what either adds is its own. */
int kk_session_fork(struct kk_session *s, struct kk_session **out, struct kk_err *err);

/* Steps of this session verify `width` rows (1 to 16) whatever that costs; 0: as many as pay. What
 * an engine's draft_width is to all of its sessions. KK_EINVAL: out of range. */
int kk_session_pin_width(struct kk_session *s, int width, struct kk_err *err);

/* Append n ids to the history and run all but the last through the model. KK_ERANGE, before
 * anything is touched, for an id outside the vocabulary or a history longer than ctx. n = 0 does
 * nothing. */
int kk_session_append(struct kk_session *s, const uint32_t *ids, size_t n, struct kk_err *err);

struct kk_sampling {
    float temperature;    /* 0: greedy, and the rest but repeat_penalty is ignored */
    int top_k;            /* 0: off */
    float top_p;          /* 1: off */
    float min_p;          /* 0: off */
    float repeat_penalty; /* 1: off; > 0 */
    int repeat_last_n;    /* tokens of history it looks at; 0: all */
    uint64_t seed;        /* noise is keyed by (seed, position): same seed, same tokens */
    int ignore_eos;
};
struct kk_sampling kk_sampling_defaults(void); /* greedy */

enum kk_stop { KK_STOP_MAX_TOKENS, KK_STOP_EOS, KK_STOP_CALLER, KK_STOP_CTX };

/* Return non-zero to stop after this token (it stays in the history). */
typedef int kk_token_cb(void *arg, uint32_t id);

struct kk_generated {
    enum kk_stop stop;
    int64_t tokens;   /* emitted, an end-of-sequence token included */
    int64_t steps;    /* verifier forwards; tokens / steps = committed per block */
    int64_t drafted;  /* tokens proposed */
    int64_t accepted; /* of them, those emitted */
    double seconds;   /* in all */
    double first_s;   /* to the first token */
};

/* Emit up to max_tokens (>= 1). KK_EINVAL for a session without history or options out of range. */
int kk_session_generate(struct kk_session *s, const struct kk_sampling *p, int64_t max_tokens,
                        kk_token_cb *on_token, void *arg, struct kk_generated *out,
                        struct kk_err *err);

/* One decode step of n different sessions together (n <= max_batch): ids[i] is session i's next
 * token, now pending. Each session's tokens are those it would have made alone. p: one for all. */
int kk_sessions_step(struct kk_session *const *s, int n, const struct kk_sampling *p, uint32_t *ids,
                     struct kk_err *err);

/* Measurement: the drafts that follow are next[n], the tokens this session is known to emit from
 * here on, corrupted at random (by seed) such that a block of 16 commits `mean` of them on average,
 * 1 to 16; the engine's own drafter, if it has one, still runs and is charged. */
int kk_session_replay(struct kk_session *s, const uint32_t *next, size_t n, double mean,
                      uint64_t seed, struct kk_err *err);

struct kk_session_info {
    int64_t resident_bytes; /* what the rows held take by themselves, counted row by row */
    int64_t history, rows;  /* rows = history - 1, or 0 */
    int64_t kv_device_bytes, kv_host_bytes, drafter_device_bytes; /* from the allocator */
    int64_t kv_shared_bytes; /* blocks it holds together with its forks, in none's own: device ones,
                                or host copies of one that a runtime has paged out */
    int64_t resident_rows;   /* physical rows, summed over layers */
    int64_t dropped;         /* positions that no layer can see any more */
};
void kk_session_describe(const struct kk_session *s, struct kk_session_info *out);

/* The ids so far; borrowed until the session changes. */
const uint32_t *kk_session_history(const struct kk_session *s, size_t *n);

/* INV-1: bookkeeping against the physical rows of every layer. 0 or KK_EINVARIANT. */
int kk_session_check(const struct kk_session *s, struct kk_err *err);

/* Called once for each position of a logits run, in order; logits [vocabulary], valid during the
 * call. Return non-zero to stop with KK_ECANCELLED. */
typedef int kk_logits_cb(void *arg, int64_t position, const float *logits);

/* Append n ids and hand out the logits of every one of them (position = index in the history). The
 * session then has no pending token: it can only be asked for more logits, described or closed. */
int kk_session_logits(struct kk_session *s, const uint32_t *ids, size_t n, kk_logits_cb *on_row,
                      void *arg, struct kk_err *err);

/* ---- measurement: the reference system's restoration -------------------------------------- */

/* Load its map, converted by tools/convert_f_theta.py: policy native, and `draft` the drafter that
 * the map was made for. KK_EUNSUPPORTED for a map that is causal, or without such a drafter. */
int kk_engine_load_one_shot(struct kk_engine *e, const char *f_theta, struct kk_err *err);

/* Make ids[n] the history of a fresh session, at once: sliding layers keep in place of rows
 * [kv_sinks, n - kv_window) what the map makes of the drafter's keys and values over all n ids.
 * Logits of positions [from, n - 1) are handed out (on_row NULL: none). A row so replaced depends
 * on ids after it, so the session emits tokens and does nothing else: it takes no more ids, is not
 * saved and not forked. */
int kk_session_one_shot(struct kk_session *s, const uint32_t *ids, size_t n, size_t from,
                        kk_logits_cb *on_row, void *arg, struct kk_err *err);

#ifdef __cplusplus
}
#endif

#endif
