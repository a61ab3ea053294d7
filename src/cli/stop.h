/* Cut generated text before the stop string that is complete first, though it may come in pieces.
 *
 *     kk_stop_init(&s, texts, n);
 *     rc = kk_stop_feed(&s, piece, len, &out);             out gets what is sure to be wanted
 *     kk_stop_end(&s, &out);                              and, without a hit, what was held back */
#ifndef KK_CLI_STOP_H
#define KK_CLI_STOP_H

#include <stddef.h>

#include "base/buf.h"

struct kk_stop_filter {
    const char *const *text; /* [n], borrowed, none empty */
    int n, hit;
    struct kk_buf held; /* may be the beginning of a stop string */
};

void kk_stop_init(struct kk_stop_filter *s, const char *const *text, int n);
void kk_stop_release(struct kk_stop_filter *s);

/* Append to out what no stop string can claim any more. After a hit (s->hit) everything is dropped.
 * 0, KK_ENOMEM, KK_ERANGE. */
int kk_stop_feed(struct kk_stop_filter *s, const char *piece, size_t len, struct kk_buf *out);
int kk_stop_end(struct kk_stop_filter *s, struct kk_buf *out);

#endif
