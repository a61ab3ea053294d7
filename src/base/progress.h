/* A progress bar on standard error: drawn only if that is a terminal, at most ten times a second,
 * and not at all for work that is done within a third of a second.
 *
 *     struct kk_progress p;
 *     kk_progress_init(&p);
 *     kk_progress_show(&p, "loading", done, total, KK_PROGRESS_BYTES);       as often as you like
 *     kk_progress_clear(&p);                                                 before other output */
#ifndef KK_BASE_PROGRESS_H
#define KK_BASE_PROGRESS_H

#include <stdint.h>

enum kk_progress_unit { KK_PROGRESS_BYTES, KK_PROGRESS_TOKENS, KK_PROGRESS_ITEMS };

struct kk_progress {
    int terminal, drawn; /* columns on screen now */
    uint64_t start_ns, last_ns, last_done;
    char what[48];
};

void kk_progress_init(struct kk_progress *p);

/* A new `what`, or done going back, starts a new bar. done = total clears it. */
void kk_progress_show(struct kk_progress *p, const char *what, uint64_t done, uint64_t total,
                      enum kk_progress_unit unit);

/* Wipe the bar, if there is one. */
void kk_progress_clear(struct kk_progress *p);

/* The text of a bar in at most `columns`; for tests. Returns its length. */
int kk_progress_text(char *out, int cap, int columns, const char *what, uint64_t done,
                     uint64_t total, enum kk_progress_unit unit, double seconds);

#endif
