#include "base/mem.h"

#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static _Atomic int64_t fail_countdown;
static _Atomic int fail_hit;
static _Thread_local int guard_depth;
static _Thread_local const char *guard_what;

/* 1 if this allocation must fail. Aborts inside a guarded region of a guard build. */
static int deny(void)
{
#ifdef KK_MEM_GUARD
    if (guard_depth) {
        fprintf(stderr, "kakeya: bug: allocation inside '%s'\n", guard_what);
        abort();
    }
#endif
    if (atomic_load_explicit(&fail_countdown, memory_order_relaxed) == 0) return 0;
    if (atomic_fetch_sub(&fail_countdown, 1) != 1) return 0;
    atomic_store(&fail_hit, 1);
    return 1;
}

int kk_mul_size(size_t a, size_t b, size_t *out)
{
    return __builtin_mul_overflow(a, b, out) ? -1 : 0;
}

int kk_add_size(size_t a, size_t b, size_t *out)
{
    return __builtin_add_overflow(a, b, out) ? -1 : 0;
}

void *kk_malloc(size_t size)
{
    if (deny()) return NULL;
    return malloc(size ? size : 1);
}

void *kk_calloc(size_t n, size_t size)
{
    size_t total;
    if (deny() || kk_mul_size(n, size, &total)) return NULL;
    return calloc(1, total ? total : 1);
}

void *kk_array(size_t n, size_t size)
{
    size_t total;
    return kk_mul_size(n, size, &total) ? NULL : kk_malloc(total);
}

void *kk_realloc(void *p, size_t n, size_t size)
{
    size_t total;
    if (deny() || kk_mul_size(n, size, &total)) return NULL;
    return realloc(p, total ? total : 1);
}

void *kk_aligned(size_t align, size_t size)
{
    void *p = NULL;
    if (deny()) return NULL;
    return posix_memalign(&p, align, size ? size : 1) ? NULL : p;
}

char *kk_strndup(const char *s, size_t n)
{
    char *p = kk_malloc(n + 1);
    if (!p) return NULL;
    memcpy(p, s, n);
    p[n] = 0;
    return p;
}

char *kk_strdup(const char *s)
{
    return kk_strndup(s, strlen(s));
}

void kk_free(void *p)
{
    free(p);
}

void kk_mem_guard_enter(const char *what)
{
    guard_what = what;
    guard_depth++;
}

void kk_mem_guard_leave(void)
{
    guard_depth--;
}

void kk_mem_fail_after(int64_t n)
{
    atomic_store(&fail_hit, 0);
    atomic_store(&fail_countdown, n);
}

int kk_mem_fail_hit(void)
{
    return atomic_load(&fail_hit);
}
