/* Errors: one table of codes, one struct that carries a sentence to the user.
 *
 * Every fallible function returns 0 or a negative KK_E* code and takes `struct kk_err *err` last
 * (NULL allowed). err is untouched on success. Fill and return in one step: return kk_fail(err,
 * KK_EIO, "cannot open '%s': %s", path, strerror(errno)); and add context on the way up: if (rc)
 * return kk_wrap(err, rc, "layer %d", i); Messages: lowercase, no full stop, cause first, then what
 * to do. */
#ifndef KK_BASE_ERR_H
#define KK_BASE_ERR_H

#include <stddef.h>

/* X(name, value, text, gRPC status, HTTP status): the one table behind codes, names and wire
 * statuses. */
#define KK_ERRORS(X)                                                                               \
    X(EINVAL, -1, "invalid argument", 3, 400)                                                      \
    X(EUSAGE, -2, "usage error", 3, 400)                                                           \
    X(ENOENT, -3, "not found", 5, 404)                                                             \
    X(EFORMAT, -4, "malformed file", 3, 400)                                                       \
    X(EUNSUPPORTED, -5, "not supported", 12, 501)                                                  \
    X(EIO, -6, "input/output error", 13, 500)                                                      \
    X(ENOMEM, -7, "out of memory", 8, 507)                                                         \
    X(EEXHAUSTED, -8, "resource exhausted", 8, 429)                                                \
    X(ERANGE, -9, "out of range", 11, 400)                                                         \
    X(EBUSY, -10, "busy", 10, 409)                                                                 \
    X(ECANCELLED, -11, "cancelled", 1, 499)                                                        \
    X(EDEVICE, -12, "device failure", 13, 500)                                                     \
    X(EINVARIANT, -13, "invariant violated", 9, 500)                                               \
    X(ETIMEOUT, -14, "deadline exceeded", 4, 504)                                                  \
    X(EUNAVAILABLE, -15, "unavailable", 14, 503)

enum kk_errcode {
    KK_OK = 0,
#define X(name, value, text, grpc, http) KK_##name = value,
    KK_ERRORS(X)
#undef X
};

struct kk_err {
    int code;      /* KK_OK or a KK_E* */
    char msg[512]; /* one line of UTF-8 for a person, whatever it quotes; NUL-terminated */
};

/* Store code and message in err (if not NULL) and return code. */
int kk_fail(struct kk_err *err, int code, const char *fmt, ...)
    __attribute__((format(printf, 3, 4)));

/* Put "context: " before the message already in err; returns code unchanged. */
int kk_wrap(struct kk_err *err, int code, const char *fmt, ...)
    __attribute__((format(printf, 3, 4)));

#ifdef __clang_analyzer__ /* which does not look into other files: what they return is no success */
#define kk_fail(err, code, ...) ((void)kk_fail(err, code, __VA_ARGS__), (code))
#endif

/* Static strings; "unknown error" for a value that is no code. */
const char *kk_strerror(int code);
const char *kk_errname(int code); /* "KK_EINVAL" */

/* Programmer errors only: a user's mistake is never an abort. Stays in release builds. */
#define KK_BUG_ON(cond)                                                                            \
    do {                                                                                           \
        if (__builtin_expect(!!(cond), 0)) kk__bug(__FILE__, __LINE__, #cond);                     \
    } while (0)
__attribute__((noreturn)) void kk__bug(const char *file, int line, const char *what);

#endif
