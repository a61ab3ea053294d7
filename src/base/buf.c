#include "base/buf.h"

#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include "base/err.h"
#include "base/mem.h"

void kk_buf_init(struct kk_buf *b, size_t max)
{
    *b = (struct kk_buf){.max = max};
}

void kk_buf_release(struct kk_buf *b)
{
    kk_free(b->data);
    kk_buf_init(b, b->max);
}

void kk_buf_reset(struct kk_buf *b)
{
    b->len = 0;
    if (b->data) b->data[0] = 0;
}

static int reserve(struct kk_buf *b, size_t extra)
{
    size_t need;
    if (kk_add_size(b->len, extra, &need) || need > b->max) return KK_ERANGE;
    if (need < b->cap) return 0;
    size_t cap = b->cap ? b->cap : 64;
    while (cap <= need) cap *= 2;
    char *p = kk_realloc(b->data, cap, 1);
    if (!p) return KK_ENOMEM;
    b->data = p;
    b->cap = cap;
    return 0;
}

int kk_buf_append(struct kk_buf *b, const void *p, size_t n)
{
    int rc = reserve(b, n);
    if (rc) return rc;
    if (n) memcpy(b->data + b->len, p, n);
    b->len += n;
    b->data[b->len] = 0;
    return 0;
}

int kk_buf_puts(struct kk_buf *b, const char *s)
{
    return kk_buf_append(b, s, strlen(s));
}

int kk_buf_putc(struct kk_buf *b, char c)
{
    return kk_buf_append(b, &c, 1);
}

int kk_buf_printf(struct kk_buf *b, const char *fmt, ...)
{
    va_list ap;
    va_start(ap, fmt);
    int n = vsnprintf(NULL, 0, fmt, ap);
    va_end(ap);
    if (n < 0) return KK_EINVAL;
    int rc = reserve(b, (size_t)n);
    if (rc) return rc;
    va_start(ap, fmt);
    vsnprintf(b->data + b->len, (size_t)n + 1, fmt, ap);
    va_end(ap);
    b->len += (size_t)n;
    return 0;
}
