/* Private to engine/. */
#ifndef KK_ENGINE_ENGINE_INT_H
#define KK_ENGINE_ENGINE_INT_H

#include "dev/dev.h"
#include "engine/kept.h"
#include "file/file.h"
#include "kakeya.h"
#include "kv/kv.h"
#include "model/model.h"
#include "spec/spec.h"

/* Rows [rows, rows + n) of a session's history, as its part of a step. */
struct kk_step_item {
    struct kk_session *s;
    int32_t n;
    int hold; /* how many are kept is known after the step; else all are */
    int want; /* enum kk_want */
};

/* What made a session's rows: they fit another engine only if these are equal. */
struct kk_fingerprint {
    uint64_t model, rows, drafter; /* rows: policy, its numbers, row type, f_theta */
};

struct kk_engine {
    struct kk_engine_options options;
    struct kk_dev *dev;
    struct kk_model *model;
    struct kk_kv_layout layout; /* layer owned */
    struct kk_kv_pool *pool;
    struct kk_kv_limits kv_limits;
    struct kk_fingerprint fingerprint;
    int max_logit_rows;
    int64_t ctx;
    int32_t *ids, *rows_n, *logit_rows, *choice; /* host arrays of a step */
    float *logits; /* host [max_logit_rows, V]; NULL until asked for, and where memory is one */
    struct {
        int on;
        int64_t steps, sum; /* steps counted; experts, each once a layer and step */
    } experts;
    int32_t *late;     /* host_alloc [rows of a step]: drafts that the device makes as it goes */
    struct kk_kv **kv; /* [max_batch] */
    struct kk_step_item *items;       /* [max_batch] */
    uint8_t *hold;                    /* [max_batch] */
    struct kk_turn *turns;            /* [max_batch] */
    int32_t *keep;                    /* [max_batch] */
    double *accept, *gain;            /* [max_batch] */
    int *most, *width;                /* [max_batch] */
    struct kk_dflash *dflash;         /* NULL: no such drafter */
    struct kk_kv_layout draft_layout; /* layer borrowed from dflash */
    struct kk_kv_pool *draft_pool;
    struct kk_ftheta *ftheta;          /* NULL: nothing is rebuilt */
    struct kk_one_shot *one_shot;      /* NULL: kk_engine_load_one_shot was not called */
    struct kk_one_shot *one_shot_step; /* the same while it reads a prompt */
    struct kk_account tap_account;
    struct kk_taps taps[2];          /* of the last step: for the drafter, for f_theta */
    struct kk_step_costs costs;      /* of verifying steps, by width */
    int failed_turn;                 /* of the last round; -1: nobody's, or the device's */
    struct kk_row_costs row_costs;   /* of rounds of several sessions */
    struct kk_candidate *candidates; /* [V], sampler scratch */
};

/* Most rows of one session in a step: under `restored` every row that is not near must come from an
 * earlier step (DESIGN 4). */
static inline int kk__session_rows_max(const struct kk_engine *e)
{
    const int chunk = e->kv_limits.max_chunk_rows;
    return e->ftheta && e->options.kv_window < chunk ? e->options.kv_window : chunk;
}

/* Most rows of a step of either kind. */
static inline int kk__step_rows_max(const struct kk_engine *e)
{
    const struct kk_kv_limits *l = &e->kv_limits;
    return l->max_chunk_rows > l->max_hold_rows ? l->max_chunk_rows : l->max_hold_rows;
}

struct kk_session {
    struct kk_engine *e;
    struct kk_kv *kv;
    uint32_t *history;
    size_t n, cap;
    int closed_for_steps; /* after kk_session_logits */
    int one_shot;         /* after kk_session_one_shot: it emits tokens, and that is all */
    uint32_t *eos;        /* its own end-of-sequence ids; NULL: the model's */
    int n_eos;
    struct kk_drafter *drafter; /* NULL: none */
    int drafting;               /* its last step had a draft */
    struct kk_width width;
};

/* Run a step of B items, each of which is held or a chunk. The step is left open for kk_kv_commit /
 * abort when it succeeds; on failure it is already aborted. */
enum kk_want { KK_WANT_NONE, KK_WANT_CHOICES, KK_WANT_LOGITS }; /* of every row of an item */
int kk__step(struct kk_engine *e, const struct kk_step_item *item, int B, struct kk_err *err);

/* The first n rows of logits of the step, on the host (they may be written to); NULL and err when
 * out of memory. */
float *kk__step_logits(struct kk_engine *e, int n, struct kk_err *err);

/* ---- round.c ------------------------------------------------------------------------------ */

/* A session's part of a round. It reads: the next `read` rows of its history go through the model.
 * Or it writes: its pending token and drafts do, and tokens come out. */
struct kk_turn {
    struct kk_session *s;
    int32_t read;                /* rows, all kept; 0: it writes */
    const struct kk_sampling *p; /* of a write */
    int most;                    /* rows of a write, >= 1; a token comes out of each at most */
    /* A token is out; non-zero: it was the last, and what the step found after it is forgotten. */
    int (*emit)(struct kk_turn *t, uint32_t id);
    void *arg;
    int32_t tokens, drafted, accepted, stopped; /* set by the round */
    int rc; /* its drafter's or f_theta's failure; tokens are out */
    struct kk_err err;
};

/* One step over B sessions, each at most once. On failure no session has changed;
 * engine.failed_turn says whose fault it was. */
int kk__round(struct kk_engine *e, struct kk_turn *turn, int B, struct kk_err *err);
int kk__round_most_writes(const struct kk_engine *e); /* turns that write, of one round */
int kk__is_eos(const struct kk_session *s, uint32_t id);

/* draft.c: what the engine's options ask for (a drafter directory is loaded), and one drafter for a
 * session (NULL for "none"). */
int kk__draft_setup(struct kk_engine *e, struct kk_err *err);
/* What f_theta and a drafter of the engine's options will take, into the plan. e has options, dev,
 * layout, kv_limits and ctx; model: a shell. */
int kk__beside_plan(struct kk_engine *e, struct kk_plan *out, int64_t rows, struct kk_err *err);
int64_t kk__restorer_bytes(const struct kk_engine *e);
int64_t kk__drafter_bytes(const struct kk_engine *e);
/* Loads f_theta if the policy rebuilds rows. */
int kk__restore_setup(struct kk_engine *e, struct kk_err *err);
void kk__draft_release(struct kk_engine *e);
int kk__drafter_open(struct kk_engine *e, struct kk_drafter **out, struct kk_err *err);

/* Rows [first, first + rows) of the step just committed are settled rows of s: show its drafter. */
int kk__settle(struct kk_session *s, int first, int rows, struct kk_err *err);
/* Rows that its drafter has put off. */
static inline int kk__behind(const struct kk_session *s)
{
    return s->drafter->ops->behind ? s->drafter->ops->behind(s->drafter) : 0;
}

/* snapshot.c: a session to a sink and from a source (files). Where its rows cannot be used `reread`
 * runs the history through the model again; without it that is KK_EUNSUPPORTED (another engine's)
 * or KK_EFORMAT (damaged). */
int kk__session_encode(struct kk_session *s, const struct kk_io *sink, struct kk_err *err);
int kk__session_decode(struct kk_engine *e, const struct kk_io *source, int reread,
                       struct kk_session **out, struct kk_err *err);
/* The same for page-out: rows without the history, what is shared by reference. `to` is as zeroed
 * before it, but for in_memory, and after a failure. `from` is in host memory or a file, of a
 * beginning of history [n] (or a file of an older version, with a history of its own). */
int kk__session_keep(struct kk_session *s, struct kk_kept *k, struct kk_saved *to,
                     struct kk_err *err);
int kk__session_return(struct kk_engine *e, struct kk_kept *k, struct kk_saved *from,
                       const uint32_t *history, size_t n, struct kk_session **out,
                       struct kk_err *err);

/* session.c */
/* empty: without rows' memory; something is loaded into it at once. */
int kk__session_open(struct kk_engine *e, int empty, struct kk_session **out, struct kk_err *err);
int kk__history_reserve(struct kk_session *s, size_t n, struct kk_err *err);
int kk__append_check(const struct kk_session *s, const uint32_t *ids, size_t n, struct kk_err *err);
/* The same for a session of `had` tokens that is not open; end-of-sequence ids of a session. */
int kk__ids_check(const struct kk_engine *e, size_t had, const uint32_t *ids, size_t n,
                  struct kk_err *err);
int kk__eos_check(const struct kk_engine *e, const uint32_t *ids, size_t n, struct kk_err *err);
int kk__step_allowed(const struct kk_session *s, struct kk_err *err);

/* ---- sampler.c ---------------------------------------------------------------------------- */

struct kk_candidate {
    float logit;
    uint32_t id;
};

int kk__sampling_check(const struct kk_sampling *p, struct kk_err *err);

/* The token for position `pos` (the one it will have in the history). logits [V] are modified.
 * c: V candidates, scratch. Ties go to the lowest id. */
uint32_t kk__sample(const struct kk_sampling *p, float *logits, int V, const uint32_t *history,
                    size_t n_history, uint64_t pos, struct kk_candidate *c);

#endif
