/* One generation counter publishes work, one counter gathers it. */
#include "base/pool.h"

#include <linux/futex.h>
#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "base/mem.h"

enum { SPIN_ROUNDS = 20000 }; /* about 100 us of pause */

struct worker {
    struct kk_pool *pool;
    pthread_t thread;
    int index;
};

struct kk_pool {
    int n, spin;
    kk_pool_fn *fn;
    void *arg;
    _Alignas(64) _Atomic uint32_t generation; /* a change means: run fn; the futex word */
    _Alignas(64) _Atomic int32_t pending;     /* workers still running */
    _Alignas(64) _Atomic int32_t sleepers;
    _Atomic int stop;
    struct worker worker[];
};

static inline void cpu_relax(void)
{
#if defined(__x86_64__)
    __builtin_ia32_pause();
#endif
}

int kk_cpu_count(void)
{
    cpu_set_t set;
    if (sched_getaffinity(0, sizeof set, &set)) return 1;
    int n = CPU_COUNT(&set);
    return n < 1 ? 1 : n;
}

static void futex_wait(_Atomic uint32_t *word, uint32_t value)
{
    syscall(SYS_futex, word, FUTEX_WAIT_PRIVATE, value, NULL, NULL, 0);
}

static void futex_wake_all(_Atomic uint32_t *word)
{
    syscall(SYS_futex, word, FUTEX_WAKE_PRIVATE, INT32_MAX, NULL, NULL, 0);
}

/* Wait until generation differs from `seen`: spin, then sleep. */
static uint32_t wait_for_work(struct kk_pool *p, uint32_t seen)
{
    uint32_t g;
    for (int i = 0; i < p->spin; i++) {
        if ((g = atomic_load_explicit(&p->generation, memory_order_acquire)) != seen) return g;
        cpu_relax();
    }
    atomic_fetch_add(&p->sleepers, 1);
    while ((g = atomic_load(&p->generation)) == seen) futex_wait(&p->generation, seen);
    atomic_fetch_sub(&p->sleepers, 1);
    return g;
}

static void *worker_main(void *arg)
{
    struct worker *w = arg;
    struct kk_pool *p = w->pool;
    uint32_t seen = 0;
    for (;;) {
        seen = wait_for_work(p, seen);
        if (atomic_load_explicit(&p->stop, memory_order_acquire)) return NULL;
        p->fn(p->arg, w->index, p->n);
        atomic_fetch_sub_explicit(&p->pending, 1, memory_order_acq_rel);
    }
}

static void publish(struct kk_pool *p)
{
    atomic_fetch_add(&p->generation, 1);
    if (atomic_load(&p->sleepers)) futex_wake_all(&p->generation);
}

int kk_pool_open(int threads, struct kk_pool **out, struct kk_err *err)
{
    int cores = kk_cpu_count(), n = threads ? threads : cores;
    if (n < 1 || n > KK_POOL_MAX)
        return kk_fail(err, KK_EINVAL, "%d threads: must be 1 to %d", threads, KK_POOL_MAX);
    size_t bytes = sizeof(struct kk_pool) + (size_t)n * sizeof(struct worker);
    struct kk_pool *p = kk_aligned(64, (bytes + 63) / 64 * 64);
    if (!p) return kk_fail(err, KK_ENOMEM, "out of memory for %d threads", n);
    p->n = 1;
    p->spin = n <= cores ? SPIN_ROUNDS : 0;
    p->fn = NULL;
    p->arg = NULL;
    atomic_init(&p->generation, 0);
    atomic_init(&p->pending, 0);
    atomic_init(&p->sleepers, 0);
    atomic_init(&p->stop, 0);
    for (int i = 1; i < n; i++) {
        p->worker[i] = (struct worker){.pool = p, .index = i};
        if (pthread_create(&p->worker[i].thread, NULL, worker_main, &p->worker[i])) {
            kk_pool_close(p);
            return kk_fail(err, KK_ENOMEM, "cannot start thread %d of %d", i + 1, n);
        }
        p->n = i + 1;
    }
    *out = p;
    return 0;
}

void kk_pool_close(struct kk_pool *p)
{
    if (!p) return;
    atomic_store_explicit(&p->stop, 1, memory_order_release);
    publish(p);
    for (int i = 1; i < p->n; i++) pthread_join(p->worker[i].thread, NULL);
    kk_free(p);
}

int kk_pool_size(const struct kk_pool *p)
{
    return p->n;
}

void kk_pool_run(struct kk_pool *p, kk_pool_fn *fn, void *arg)
{
    if (p->n > 1) {
        p->fn = fn;
        p->arg = arg;
        atomic_store_explicit(&p->pending, p->n - 1, memory_order_relaxed);
        publish(p);
    }
    fn(arg, 0, p->n);
    for (int i = 0; p->n > 1 && atomic_load_explicit(&p->pending, memory_order_acquire); i++) {
        if (i < p->spin)
            cpu_relax();
        else
            sched_yield();
    }
}
