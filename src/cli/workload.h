/* Five kinds of text that a drafter meets: chat, tools (JSON calls), niah, keyed, code. */
#ifndef KK_CLI_WORKLOAD_H
#define KK_CLI_WORKLOAD_H

#include <stdint.h>

#include "base/buf.h"
#include "base/err.h"

extern const char *const kk_workload_names[]; /* ends with NULL */

/* Append the i-th prompt of a workload to out: a function of (name, seed, i) alone. */
int kk_workload_text(const char *name, uint64_t seed, int i, struct kk_buf *out,
                     struct kk_err *err);

#endif
