/* Bearer tokens. */
#ifndef KK_SERVE_AUTH_INT_H
#define KK_SERVE_AUTH_INT_H

#include <stddef.h>

#include "base/buf.h"
#include "base/err.h"

struct kk_auth {
    struct kk_buf tokens; /* each ends in a NUL; empty: no token is needed */
};

/* One token a line: visible ASCII; # begins a comment line. KK_EINVAL for a file without any. */
int kk_auth_load(struct kk_auth *a, const char *path, struct kk_err *err);
void kk_auth_release(struct kk_auth *a);

/* 1 if header [n] is "Bearer " and one of the tokens. Takes as long whatever it holds. */
int kk_auth_ok(const struct kk_auth *a, const void *header, size_t n);

#endif
