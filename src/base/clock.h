/* Monotonic time in nanoseconds. */
#ifndef KK_BASE_CLOCK_H
#define KK_BASE_CLOCK_H

#include <stdint.h>
#include <time.h>

static inline uint64_t kk_now_ns(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

static inline double kk_seconds_since(uint64_t t0_ns)
{
    return (double)(kk_now_ns() - t0_ns) * 1e-9;
}

#endif
