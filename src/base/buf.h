/* A growable byte buffer with a ceiling: no unbounded parse, no unbounded reply. Always
 * NUL-terminated past len, so that data can be used as a C string when it holds no NUL of its own.
 */
#ifndef KK_BASE_BUF_H
#define KK_BASE_BUF_H

#include <stddef.h>

struct kk_buf {
    char *data; /* owned; NULL while empty */
    size_t len, cap;
    size_t max; /* ceiling in bytes; an append beyond it fails with KK_ERANGE */
};

void kk_buf_init(struct kk_buf *b, size_t max); /* allocates nothing */
void kk_buf_release(struct kk_buf *b);          /* frees the contents; b is as after init */
void kk_buf_reset(struct kk_buf *b);            /* len = 0, memory kept */

/* 0, KK_ENOMEM or KK_ERANGE; on failure the buffer is unchanged. */
int kk_buf_append(struct kk_buf *b, const void *p, size_t n);
int kk_buf_puts(struct kk_buf *b, const char *s);
int kk_buf_putc(struct kk_buf *b, char c);
int kk_buf_printf(struct kk_buf *b, const char *fmt, ...) __attribute__((format(printf, 2, 3)));

#endif
