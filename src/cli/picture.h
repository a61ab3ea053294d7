/* The scorecard as one SVG: four kinds of bytes, speed, recall. */
#ifndef KK_CLI_PICTURE_H
#define KK_CLI_PICTURE_H

#include <jansson.h>

#include "base/buf.h"

/* Append the picture of a scorecard report to svg. 0, KK_ENOMEM or KK_ERANGE. */
int kk_scorecard_picture(const json_t *report, struct kk_buf *svg);

#endif
