/* What a person types, or a pipe holds: messages of one line or more.
 *
 * A line that ends in a backslash goes on in the next one; the backslash gives way to the line
 * break. Where standard input and the place of the prompt are terminals, lines are edited (libedit:
 * emacs keys, ~/.editrc), earlier ones come back with the arrow keys, Ctrl-C throws away what was
 * typed, and what is pasted keeps its line breaks. Else lines are read as they are, any bytes, and
 * no prompt is written. */
#ifndef KK_CLI_LINES_H
#define KK_CLI_LINES_H

#include "base/buf.h"
#include "base/err.h"

struct kk_lines;

/* prompt and more (of the further lines of a message) may hold colours between \1 and \1; both
 * borrowed. */
int kk_lines_open(struct kk_lines **out, const char *prompt, const char *more, struct kk_err *err);
void kk_lines_close(struct kk_lines *l); /* NULL is fine */

int kk_lines_edited(const struct kk_lines *l); /* 1: a person types */

/* The next message into out, without its last line break. 1; 0 at the end of input; negative: an
 * error. A message thrown away, and an empty line, are an empty message. */
int kk_lines_next(struct kk_lines *l, struct kk_buf *out, struct kk_err *err);

#endif
