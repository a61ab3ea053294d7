/* Reports as one SVG each. */
#ifndef KK_CLI_PICTURE_H
#define KK_CLI_PICTURE_H

#include <jansson.h>

#include "base/buf.h"

/* Append the picture of a scorecard report to svg: four kinds of bytes, speed, recall.
 * 0, KK_ENOMEM or KK_ERANGE. */
int kk_scorecard_picture(const json_t *report, struct kk_buf *svg);

/* The same of an agents report: a row for each level; latencies, speed, bytes. */
int kk_agents_picture(const json_t *report, struct kk_buf *svg);

#endif
