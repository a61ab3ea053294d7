/* Speculation: who proposes tokens, and how many to ask for. Drafts change speed, never tokens: the
 * engine accepts the longest prefix of a draft that equals what it would have emitted anyway
 * (DESIGN §5).
 *
 * Owns: the drafter seam, the n-gram drafter, replayed drafts, the width control. Refuses to know:
 * transports, sampling.
 *
 * A step feeds `width` rows: the pending token and width - 1 drafts. Width 1 is plain decoding. */
#ifndef KK_SPEC_SPEC_H
#define KK_SPEC_SPEC_H

#include <stddef.h>
#include <stdint.h>

#include "base/err.h"
#include "kv/keep.h"
#include "kv/kv.h"
#include "model/model.h"

#define KK_MAX_WIDTH 16

/* ---- drafters ----------------------------------------------------------------------------- */

struct kk_drafter;

/* One drafter serves one session. */
struct kk_drafter_ops {
    const char *name;
    /* Up to `most` (>= 1) tokens that may follow history[n] into out; returns how many, 0 for none,
     * or KK_E*. history[n - 1] is the pending token. */
    int (*propose)(struct kk_drafter *d, const uint32_t *history, size_t n, int most, uint32_t *out,
                   struct kk_err *err);
    /* The verifier has settled `rows` more rows; taps: their auxiliary states (device [rows,
     * n_taps, C], valid during the call). May be NULL: the drafter needs no taps. */
    int (*observe)(struct kk_drafter *d, const float *taps, int rows, struct kk_err *err);
    /* Rows that observe put off, and taking them in; propose does so too. After a rest it is called
     * apart, so that its time is not taken for that of a draft. Both NULL: nothing is put off. */
    int (*behind)(const struct kk_drafter *d);
    int (*catch_up)(struct kk_drafter *d, struct kk_err *err);
    int64_t (*device_bytes)(const struct kk_drafter *d); /* of this session; may be NULL: none */
    /* A second drafter that knows what d knows (*out stays NULL: one that was just opened does);
     * save what it knows, and fill a fresh one. All may be NULL: the history is all there is to
     * know. saved_bytes: without a keeper. */
    int (*fork)(struct kk_drafter *d, struct kk_drafter **out, struct kk_err *err);
    int64_t (*saved_bytes)(struct kk_drafter *d, struct kk_err *err); /* settles what is held */
    int (*save)(struct kk_drafter *d, const struct kk_io *sink, const struct kk_kv_keeper *keeper,
                struct kk_err *err); /* keeper: may be NULL (kv/keep.h) */
    int (*load)(struct kk_drafter *fresh, const struct kk_io *source,
                const struct kk_kv_keeper *keeper, struct kk_err *err);
    void (*close)(struct kk_drafter *d);
};

/* A token that is known when the device has got there. */
#define KK_LATE UINT32_MAX

struct kk_drafter {
    const struct kk_drafter_ops *ops;
    int32_t
        *late; /* set before a propose: memory of host_alloc for its tokens, whose place in `out`
                      may then be KK_LATE (until the next step_end); NULL: propose waits */
};

/* Prompt lookup (Saxena 2023; Yang et al. 2023, arXiv:2304.04487): the tokens that followed the
 * latest of the longest earlier occurrences of the history's end. Only suffixes of at least
 * KK_NGRAM_MIN tokens count. */
#define KK_NGRAM_MIN 2
int kk_ngram_open(struct kk_drafter **out, struct kk_err *err);

/* The DFlash block drafter; model and pool are borrowed and outlive it, and take chunks of
 * KK_TAPS_HELD rows: so many rows' taps a session puts off at most (docs/adr/0014). */
#define KK_TAPS_HELD 128
int kk_draft_dflash_open(struct kk_dflash *model, struct kk_kv_pool *pool, struct kk_drafter **out,
                         struct kk_err *err);
/* Device bytes of the taps that a session puts off */
size_t kk_draft_dflash_held_bytes(const struct kk_dflash *model);

/* Proposes tokens that are almost always wrong: what "never slower than plain" is tested with. */
int kk_wrong_open(uint32_t vocabulary, struct kk_drafter **out, struct kk_err *err);

/* Measurement: propose a continuation that is known, wrong here and there. history[at + i] will be
 * next[i]; whether a draft is right depends on seed and position alone, with a chance such that
 * blocks of KK_MAX_WIDTH commit `mean` tokens on average (1: always wrong). */
struct kk_replay {
    const uint32_t *next; /* [n], copied */
    size_t at, n;         /* n >= 1 */
    uint32_t vocabulary;  /* >= 2 */
    double mean;          /* 1 to KK_MAX_WIDTH */
    uint64_t seed;
};
/* inner (NULL: none) still runs and is charged; it is owned from here, unless this fails. */
int kk_replay_open(struct kk_drafter *inner, const struct kk_replay *known, struct kk_drafter **out,
                   struct kk_err *err);

/* The chance at which blocks of KK_MAX_WIDTH commit `mean` tokens. */
double kk_replay_chance(double mean);

static inline void kk_drafter_close(struct kk_drafter *d)
{
    if (d) d->ops->close(d);
}

/* ---- width -------------------------------------------------------------------------------- */

/* Tokens that a step of `width` rows commits on average when a draft is accepted with chance p. */
double kk_expected_tokens(double p, int width);

/* What is known of costs and drafts, shared by all sessions of an engine. The unit of cost is one
 * plain step, as they have been of late. */
struct kk_step_costs {
    double plain;                      /* seconds of a step of width 1 */
    double ratio[KK_MAX_WIDTH + 1];    /* of width w > 1: seconds over plain, drafting included */
    int seen[KK_MAX_WIDTH + 1];        /* steps measured */
    double first;                      /* what a draft of one token costs while none was measured */
    double expected[KK_MAX_WIDTH + 1]; /* of kk_costs_expect; expected[1] 0: none */
    double row;          /* seconds a row that a drafter takes in late, or in chunks */
    double right, tried; /* drafts accepted and tried, old ones fading */
    double purse;        /* plain steps that drafting may still lose (width.c) */
    double earned;       /* what plain steps have paid into it */
};
/* by_reading: steps take as long as reading the weights does, whatever their rows. */
void kk_costs_init(struct kk_step_costs *c, int by_reading);
/* Bytes that are read by a plain step, by a draft of any length, and by one expert more. */
struct kk_reading {
    double step, draft, expert;
    int experts, active; /* of a layer, and of a row; 0: none */
};
/* Where bytes are what a step costs: what widths are taken to cost while they were not measured.
 * After kk_costs_init. */
void kk_costs_expect(struct kk_step_costs *c, const struct kk_reading *r);
/* A step of one session is done; it committed `tokens`. */
void kk_cost_note(struct kk_step_costs *c, int width, double seconds, int tokens);
/* A drafter took in `rows` that it had put off, or a chunk of a prompt. late: after a rest, because
 * a draft was asked for. */
void kk_take_in_note(struct kk_step_costs *c, int rows, double seconds, int late);

/* Plain steps that a step of `width` costs, interpolated between widths seen. */
double kk_cost_of(const struct kk_step_costs *c, int width);

/* One session's choice of width. */
struct kk_width {
    int pinned;          /* > 0: always this */
    double right, tried; /* drafts accepted and tried, old ones fading */
    int limit;           /* widest that may lose more than the purse holds: 1 + all accepted */
    int run;             /* drafts accepted since one was not */
    int off;             /* steps left at width 1 before the next probe */
    int backoff;         /* length of the next such rest */
};
void kk_width_init(struct kk_width *w, int pinned);

/* The chance that a draft of this session is accepted, given those before it were: from its own
 * trials, and while these are few from the engine's. */
double kk_width_accept(const struct kk_width *w, const struct kk_step_costs *c);

/* The width to draft for now, at most `most` (>= 1), of a drafter that is `behind` rows late. */
int kk_width_choose(struct kk_width *w, const struct kk_step_costs *c, int most, int behind);

/* A step drafted `drafted` tokens and accepted the first `accepted` of them. */
void kk_width_note(struct kk_width *w, struct kk_step_costs *c, int drafted, int accepted);

/* ---- several sessions in a step ----------------------------------------------------------- */

/* Seconds of a step by its rows: a line through the steps run (decayed sums). */
struct kk_row_costs {
    double n, r, t, rr, rt;
    int64_t rounds;
};
void kk_row_cost_note(struct kk_row_costs *c, int rows, double seconds);
/* 1 if the steps run tell the line: seconds = base + slope * rows, slope > 0. */
int kk_row_cost_fit(const struct kk_row_costs *c, double *base, double *slope);

/* Widths of B sessions: accept[i] as kk_width_accept, most[i] >= 1; `extra` rows beyond one for
 * each may be given out. gain [B]: scratch. */
void kk_allot(struct kk_row_costs *c, const double *accept, const int *most, int B, int extra,
              double *gain, int *width);

#endif
