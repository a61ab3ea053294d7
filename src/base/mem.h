/* Host memory: the only place that calls malloc. Three things libc does not give:
 *   - sizes are multiplied with overflow checks;
 *   - kk_mem_guard_enter() marks a region (a decode step) where allocating is a bug (law 4). Debug
 * and test builds (-DKK_MEM_GUARD) abort on it; others ignore the guard;
 *   - kk_mem_fail_after(n) makes the n-th allocation from now fail, for torture tests.
 * Device memory is not here: see dev/dev.h. */
#ifndef KK_BASE_MEM_H
#define KK_BASE_MEM_H

#include <stddef.h>
#include <stdint.h>

/* All return NULL when memory runs out; size 0 gives a unique pointer. The caller frees with
 * kk_free. */
void *kk_malloc(size_t size);
void *kk_calloc(size_t n, size_t size);           /* zeroed; NULL on overflow */
void *kk_array(size_t n, size_t size);            /* not zeroed; NULL on overflow */
void *kk_realloc(void *p, size_t n, size_t size); /* to n * size bytes; p stays valid on NULL */
void *kk_aligned(size_t align, size_t size);      /* align: a power of two >= sizeof(void *) */
char *kk_strdup(const char *s);
char *kk_strndup(const char *s, size_t n);
void kk_free(void *p); /* NULL is fine */

/* Checked size arithmetic: 0 and *out set, or -1 on overflow. */
int kk_mul_size(size_t a, size_t b, size_t *out);
int kk_add_size(size_t a, size_t b, size_t *out);

void kk_mem_guard_enter(const char *what); /* this thread: no allocation until leave; nests */
void kk_mem_guard_leave(void);

/* Fault injection (tests): the n-th allocation from now (1 = next) in any thread fails once; 0
 * disarms. kk_mem_fail_hit() says whether the armed failure has happened. */
void kk_mem_fail_after(int64_t n);
int kk_mem_fail_hit(void);

#endif
