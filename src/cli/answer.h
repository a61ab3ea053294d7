/* One question to an engine: what every bench that generates does with a prompt. */
#ifndef KK_CLI_ANSWER_H
#define KK_CLI_ANSWER_H

#include "cli/common.h"

#define KK_ANSWER_MAX 96

struct kk_answer {
    uint32_t id[KK_ANSWER_MAX]; /* emitted */
    int n;
    double prefill_s;
    struct kk_generated made;
    struct kk_session_info info; /* at the end */
};

/* What to ask. Drafts of a bench with --replay are the answer that plain decoding gave. */
struct kk_question {
    const struct kk_ids *prompt; /* at least one id */
    int tokens;                  /* most, up to KK_ANSWER_MAX */
    int ignore_eos;
    int width;                     /* of its steps; 0: the engine's */
    const struct kk_answer *known; /* NULL: the engine's own drafts */
    double mean;                   /* of known */
    uint64_t seed;
};

/* Greedy tokens of a fresh session, whose rows are then checked (INV-1). */
int kk_cli_answer(struct kk_engine *e, const struct kk_question *q, struct kk_answer *a,
                  struct kk_err *err);

/* 1 if the same tokens came out. */
int kk_cli_same_answer(const struct kk_answer *a, const struct kk_answer *b);

#endif
