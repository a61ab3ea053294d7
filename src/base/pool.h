/* Fork-join pool: the caller and n - 1 workers run one function; run returns when all are done.
 *
 * A fork costs a fraction of a microsecond while work keeps coming: idle workers spin for a bounded
 * time, then sleep until the next fork. With more threads than cores they do not spin at all. */
#ifndef KK_BASE_POOL_H
#define KK_BASE_POOL_H

#include <stdint.h>

#include "base/err.h"

struct kk_pool;

/* Cores this process may run on (its affinity mask), at least 1. */
int kk_cpu_count(void);

/* threads: 0 = kk_cpu_count(); at most KK_POOL_MAX. */
#define KK_POOL_MAX 256
int kk_pool_open(int threads, struct kk_pool **out, struct kk_err *err);
void kk_pool_close(struct kk_pool *p); /* NULL is fine */
int kk_pool_size(const struct kk_pool *p);

/* fn(arg, worker, n) on every worker, worker 0 being the caller. Not reentrant. */
typedef void kk_pool_fn(void *arg, int worker, int n);
void kk_pool_run(struct kk_pool *p, kk_pool_fn *fn, void *arg);

/* The part [*first, *end) of [0, total) that worker i of n takes, in units of `grain`. */
static inline void kk_pool_range(int64_t total, int64_t grain, int i, int n, int64_t *first,
                                 int64_t *end)
{
    int64_t units = (total + grain - 1) / grain;
    *first = units * i / n * grain;
    *end = units * (i + 1) / n * grain;
    if (*first > total) *first = total;
    if (*end > total) *end = total;
}

#endif
