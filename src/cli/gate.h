/* The gate: a scorecard that claims what its own counters do not show is refused. */
#ifndef KK_CLI_GATE_H
#define KK_CLI_GATE_H

#include <jansson.h>

#include "base/err.h"

/* The seven arms, in order; ends with NULL. */
extern const char *const kk_scorecard_arms[];

/* 0 if every claim of the report (the object of `bench scorecard --json`) is backed by its
 * counters, else KK_EINVARIANT with rung, arm and reason. Refused, among others: an arm that is
 * missing, or null without a reason; drafting that ran no step or drafted nothing; identity without
 * compared tokens; an arm compared with itself; bytes that are less than the rows held; restoration
 * that rebuilt no row; a negative control that recalls; a capped arm whose device bytes grow with
 * the context. */
int kk_scorecard_gate(const json_t *report, struct kk_err *err);

#endif
