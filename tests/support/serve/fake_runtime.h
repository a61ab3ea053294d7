/* The runtime's contract (engine/runtime.h) without a model: for tests of what is built on it.
 *
 * A session's next token is kk_fake_token(its history's sum, its length); 0 is end-of-sequence.
 * Linked instead of src/engine/runtime.c by the programs in tests/unit/serve. */
#ifndef KK_FAKE_RUNTIME_H
#define KK_FAKE_RUNTIME_H

#include "engine/runtime.h"

enum { KK_FAKE_VOCABULARY = 5000, KK_FAKE_CTX = 1 << 20 };

/* Read when a runtime is opened. */
extern struct kk_fake {
    unsigned step_us;   /* a step's length */
    int step_tokens;    /* tokens that a Generate emits a step */
    int creates_anyway; /* a cancelled Create is done all the same, as when it was too late */
} kk_fake;

int kk_fake_open(int capacity, struct kk_runtime **out); /* kk_runtime_open without an engine */

/* The token after a history of n ids with that sum; never end-of-sequence. */
uint32_t kk_fake_token(uint64_t sum, uint64_t n);

#endif
