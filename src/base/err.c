#include "base/err.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

int kk_fail(struct kk_err *err, int code, const char *fmt, ...)
{
    if (!err) return code;
    va_list ap;
    va_start(ap, fmt);
    err->code = code;
    vsnprintf(err->msg, sizeof err->msg, fmt, ap);
    va_end(ap);
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

_Noreturn void kk__bug(const char *file, int line, const char *what)
{
    fprintf(stderr, "kakeya: bug at %s:%d: %s\n", file, line, what);
    abort();
}
