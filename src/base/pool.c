/* One word, the gate, says which fork runs and who takes part:
 *
 *     gate = fork number << 16 | CLOSED | workers that entered
 *
 * The caller opens the gate of fork f; a worker enters by adding one while it is open, so nobody
 * can enter a fork that is over. The caller closes the gate when no item is left (or, for
 * kk_pool_run, when all have entered), and waits until `left` reaches the number that entered.
 *
 * Sleep: a worker counts itself in `sleepers`, looks at the gate once more, then waits on `bell`.
 * The caller changes the gate, then looks at `sleepers` and rings. Sequential consistency of these
 * four makes one of them see the other. */
#include "base/pool.h"

#include <linux/futex.h>
#include <pthread.h>
#include <sched.h>
#include <stdalign.h>
#include <stdatomic.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/mem.h"

#define CLOSED  0x8000u
#define ENTERED 0x7fffu

enum {
    SPIN_NS = 60 * 1000,        /* a worker awake after a fork */
    STEP_SPIN_NS = 2000 * 1000, /* the same between kk_pool_begin and kk_pool_end */
    YIELD_NS = 20 * 1000        /* the caller waiting for workers, before it gives up its core */
};

struct kk_pool {
    alignas(64) _Atomic uint64_t gate;
    void (*run)(void *arg, int worker, int n_workers);
    void (*item)(void *arg, int item, int worker); /* NULL: `run` */
    void *arg;
    int n_items;
    alignas(64) _Atomic int next; /* item */
    alignas(64) _Atomic int left; /* workers that left this fork */
    alignas(64) _Atomic uint32_t bell;
    _Atomic int sleepers, in_step, stop;
    int n, crowded; /* threads; more of them than cores */
    int n_made;
    struct worker {
        struct kk_pool *pool;
        pthread_t thread;
        int index;
    } * workers;
};

static inline void relax(void)
{
#if defined(__x86_64__) || defined(__i386__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    __asm__ volatile("yield");
#endif
}

int kk_cores(void)
{
    cpu_set_t set;
    int n = sched_getaffinity(0, sizeof set, &set) ? 0 : CPU_COUNT(&set);
    if (n < 1) n = (int)sysconf(_SC_NPROCESSORS_ONLN);
    return n < 1 ? 1 : n;
}

static void futex_wait(_Atomic uint32_t *word, uint32_t value)
{
    syscall(SYS_futex, word, FUTEX_WAIT_PRIVATE, value, NULL, NULL, 0);
}

static void ring(struct kk_pool *p)
{
    if (atomic_load(&p->sleepers) == 0) return;
    atomic_fetch_add(&p->bell, 1);
    syscall(SYS_futex, &p->bell, FUTEX_WAKE_PRIVATE, p->n, NULL, NULL, 0);
}

/* ---- workers ---- */

static void take_items(struct kk_pool *p, int worker)
{
    int i;
    while ((i = atomic_fetch_add_explicit(&p->next, 1, memory_order_relaxed)) < p->n_items)
        p->item(p->arg, i, worker);
}

/* Spin for a while; 1 if the gate shows another fork than `seen`. */
static int spin(struct kk_pool *p, uint64_t seen)
{
    uint64_t t0 = kk_now_ns(), limit;
    do {
        for (int i = 0; i < 64; i++) {
            if (atomic_load_explicit(&p->gate, memory_order_acquire) >> 16 != seen) return 1;
            relax();
        }
        limit = atomic_load_explicit(&p->in_step, memory_order_relaxed) ? STEP_SPIN_NS : SPIN_NS;
    } while (!p->crowded && kk_now_ns() - t0 < limit);
    return 0;
}

static void await_fork(struct kk_pool *p, uint64_t seen)
{
    while (!spin(p, seen)) {
        atomic_fetch_add(&p->sleepers, 1);
        uint32_t bell = atomic_load(&p->bell);
        if (atomic_load(&p->gate) >> 16 == seen) futex_wait(&p->bell, bell);
        atomic_fetch_sub(&p->sleepers, 1);
    }
}

static void *work(void *arg)
{
    struct worker *w = arg;
    struct kk_pool *p = w->pool;
    uint64_t seen = 0;
    for (;;) {
        await_fork(p, seen);
        uint64_t g = atomic_load_explicit(&p->gate, memory_order_acquire);
        int in = 0;
        seen = g >> 16;
        while (!in && !(g & CLOSED) && g >> 16 == seen)
            in = atomic_compare_exchange_weak_explicit(&p->gate, &g, g + 1, memory_order_acq_rel,
                                                       memory_order_acquire);
        if (!in) continue; /* over already */
        if (atomic_load_explicit(&p->stop, memory_order_relaxed)) return NULL;
        if (p->item)
            take_items(p, w->index);
        else
            p->run(p->arg, w->index, p->n);
        atomic_fetch_add_explicit(&p->left, 1, memory_order_release);
    }
}

/* ---- the caller ---- */

static void open_gate(struct kk_pool *p)
{
    atomic_store_explicit(&p->left, 0, memory_order_relaxed);
    uint64_t fork = (atomic_load_explicit(&p->gate, memory_order_relaxed) >> 16) + 1;
    atomic_store(&p->gate, fork << 16);
    ring(p);
}

static void await_left(struct kk_pool *p, int n)
{
    uint64_t t0 = 0;
    for (int i = 0; atomic_load_explicit(&p->left, memory_order_acquire) != n; i++) {
        relax();
        if (i % 64 != 63) continue;
        if (!t0) t0 = kk_now_ns();
        if (p->crowded || kk_now_ns() - t0 > YIELD_NS) sched_yield();
    }
}

void kk_pool_run(struct kk_pool *p, void (*fn)(void *arg, int worker, int n_workers), void *arg)
{
    p->run = fn;
    p->item = NULL;
    p->arg = arg;
    if (p->n > 1) open_gate(p);
    fn(arg, 0, p->n);
    if (p->n == 1) return;
    await_left(p, p->n - 1);
    atomic_fetch_or(&p->gate, CLOSED);
}

void kk_pool_for(struct kk_pool *p, int n_items, void (*fn)(void *arg, int item, int worker),
                 void *arg)
{
    if (p->n == 1 || n_items <= 1) {
        for (int i = 0; i < n_items; i++) fn(arg, i, 0);
        return;
    }
    p->item = fn;
    p->arg = arg;
    p->n_items = n_items;
    atomic_store_explicit(&p->next, 0, memory_order_relaxed);
    open_gate(p);
    take_items(p, 0);
    await_left(p, (int)(atomic_fetch_or(&p->gate, CLOSED) & ENTERED));
}

void kk_pool_begin(struct kk_pool *p)
{
    atomic_store_explicit(&p->in_step, 1, memory_order_relaxed);
    if (p->n > 1 && !p->crowded) ring(p);
}

void kk_pool_end(struct kk_pool *p)
{
    atomic_store_explicit(&p->in_step, 0, memory_order_relaxed);
}

/* ---- open and close ---- */

static int start_workers(struct kk_pool *p, struct kk_err *err)
{
    for (int i = 0; i < p->n - 1; i++) {
        struct worker *w = &p->workers[i];
        *w = (struct worker){.pool = p, .index = i + 1};
        if (pthread_create(&w->thread, NULL, work, w))
            return kk_fail(err, KK_EEXHAUSTED, "cannot start thread %d of %d: use fewer threads",
                           i + 2, p->n);
        p->n_made++;
    }
    return 0;
}

int kk_pool_open(int n_threads, struct kk_pool **out, struct kk_err *err)
{
    int cores = kk_cores(), n = n_threads ? n_threads : cores;
    if (n_threads == 0 && n > KK_POOL_MAX) n = KK_POOL_MAX;
    if (n < 1 || n > KK_POOL_MAX)
        return kk_fail(err, KK_EINVAL, "%d threads: must be 1 to %d", n, KK_POOL_MAX);
    struct kk_pool *p = kk_aligned(64, sizeof *p);
    struct worker *w = kk_calloc((size_t)n, sizeof *w);
    if (!p || !w) {
        kk_free(p);
        kk_free(w);
        return kk_fail(err, KK_ENOMEM, "out of memory for %d threads", n);
    }
    *p = (struct kk_pool){.gate = CLOSED, .n = n, .crowded = n > cores, .workers = w};
    int rc = start_workers(p, err);
    if (rc) {
        kk_pool_close(p);
        return rc;
    }
    *out = p;
    return 0;
}

void kk_pool_close(struct kk_pool *p)
{
    if (!p) return;
    atomic_store(&p->stop, 1);
    if (p->n_made) open_gate(p);
    for (int i = 0; i < p->n_made; i++) pthread_join(p->workers[i].thread, NULL);
    kk_free(p->workers);
    kk_free(p);
}

int kk_pool_threads(const struct kk_pool *p)
{
    return p->n;
}

uint64_t kk_pool_forks(const struct kk_pool *p)
{
    return atomic_load_explicit(&p->gate, memory_order_relaxed) >> 16;
}
