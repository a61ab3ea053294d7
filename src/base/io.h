/* A byte stream in one direction, to or from wherever its maker says. */
#ifndef KK_BASE_IO_H
#define KK_BASE_IO_H

#include <stddef.h>

#include "base/err.h"

struct kk_io {
    /* Take all n bytes at p (a sink) or fill them (a source). 0, or KK_E*: the stream is over. */
    int (*fn)(void *arg, void *p, size_t n, struct kk_err *err);
    void *arg;
};

static inline int kk_io(const struct kk_io *io, void *p, size_t n, struct kk_err *err)
{
    return n ? io->fn(io->arg, p, n, err) : 0;
}

#endif
