#include "base/err.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* Bytes of the printable UTF-8 character at s, or 0. */
static int char_len(const unsigned char *s)
{
    if (s[0] < 0x80) return s[0] >= 32 && s[0] != 127;
    int n = s[0] >= 0xf0 ? 4 : s[0] >= 0xe0 ? 3 : 2;
    if (s[0] < 0xc2 || s[0] > 0xf4) return 0;
    for (int i = 1; i < n; i++)
        if ((s[i] & 0xc0) != 0x80) return 0;
    switch (s[0]) {
    case 0xc2: /* U+0080 to U+009F: controls */
    case 0xe0: /* shorter forms exist */
        return s[1] >= 0xa0 ? n : 0;
    case 0xed: /* surrogates */
        return s[1] < 0xa0 ? n : 0;
    case 0xf0:
        return s[1] >= 0x90 ? n : 0;
    case 0xf4: /* beyond U+10FFFF */
        return s[1] < 0x90 ? n : 0;
    default:
        return n;
    }
}

/* What a message quotes is a stranger's: line ends, terminal codes and broken characters (a "%.64s"
 * makes some) become '?'. */
static void clean(char *msg)
{
    for (unsigned char *s = (unsigned char *)msg; *s;) {
        int n = char_len(s);
        if (!n) *s = '?';
        s += n ? n : 1;
    }
}

int(kk_fail)(struct kk_err *err, int code, const char *fmt, ...)
{
    if (!err) return code;
    va_list ap;
    va_start(ap, fmt);
    err->code = code;
    vsnprintf(err->msg, sizeof err->msg, fmt, ap);
    va_end(ap);
    clean(err->msg);
    return code;
}

int kk_wrap(struct kk_err *err, int code, const char *fmt, ...)
{
    if (!err) return code;
    char old[sizeof err->msg];
    memcpy(old, err->msg, sizeof old);
    va_list ap;
    va_start(ap, fmt);
    int n = vsnprintf(err->msg, sizeof err->msg, fmt, ap);
    va_end(ap);
    if (n < 0) n = 0;
    if ((size_t)n < sizeof err->msg)
        snprintf(err->msg + n, sizeof err->msg - (size_t)n, ": %s", old);
    err->code = code;
    clean(err->msg);
    return code;
}

const char *kk_strerror(int code)
{
    switch (code) {
    case KK_OK:
        return "ok";
#define X(name, value, text, grpc, http)                                                           \
    case value:                                                                                    \
        return text;
        KK_ERRORS(X)
#undef X
    default:
        return "unknown error";
    }
}

const char *kk_errname(int code)
{
    switch (code) {
    case KK_OK:
        return "KK_OK";
#define X(name, value, text, grpc, http)                                                           \
    case value:                                                                                    \
        return "KK_" #name;
        KK_ERRORS(X)
#undef X
    default:
        return "KK_E?";
    }
}

void kk__bug(const char *file, int line, const char *what)
{
    fprintf(stderr, "kakeya: bug at %s:%d: %s\n", file, line, what);
    abort();
}
