/* A fork-join pool: the caller and n - 1 worker threads run one function together.
 *
 * Workers wait for the next fork by spinning for a bounded time, then asleep: a fork costs a few
 * hundred nanoseconds while work keeps coming, and an idle pool costs nothing. With more threads
 * than cores nobody spins. One thread uses a pool at a time; forks do not nest.
 *
 *     kk_pool_for(pool, n_tiles, do_tile, &job);
 *
 * Which worker runs an item is not defined: a function must give the same result whoever runs it.
 */
#ifndef KK_BASE_POOL_H
#define KK_BASE_POOL_H

#include <stdint.h>

#include "base/err.h"

#define KK_POOL_MAX 256 /* threads */

struct kk_pool;

/* n_threads with the caller among them; 0: one for each core this process may use. KK_EINVAL beyond
 * KK_POOL_MAX, KK_ENOMEM, KK_EEXHAUSTED when threads cannot be made. */
int kk_pool_open(int n_threads, struct kk_pool **out, struct kk_err *err);
void kk_pool_close(struct kk_pool *p); /* NULL is fine; not while a fork runs */
int kk_pool_threads(const struct kk_pool *p);

/* fn(arg, worker, n_workers) once on every thread, the caller being worker 0. Returns when all are
 * done; what they wrote is visible to the caller. */
void kk_pool_run(struct kk_pool *p, void (*fn)(void *arg, int worker, int n_workers), void *arg);

/* fn(arg, item, worker) once for each item 0 .. n_items-1, taken in ascending order by whoever is
 * free. A worker that comes late, when every item is taken, is not waited for. */
void kk_pool_for(struct kk_pool *p, int n_items, void (*fn)(void *arg, int item, int worker),
                 void *arg);

/* Hints: forks will follow closely until kk_pool_end. Wakes the workers and keeps them awake. */
void kk_pool_begin(struct kk_pool *p);
void kk_pool_end(struct kk_pool *p);

/* Forks so far: each costs its threads one meeting. */
uint64_t kk_pool_forks(const struct kk_pool *p);

/* Cores this process may use, at least 1. */
int kk_cores(void);

/* Part `part` of n things cut into `parts` ranges that differ by at most one. */
static inline void kk_range(int64_t n, int part, int parts, int64_t *lo, int64_t *hi)
{
    *lo = n / parts * part + (part < n % parts ? part : n % parts);
    *hi = *lo + n / parts + (part < n % parts);
}

#endif
