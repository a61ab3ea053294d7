/* What a kernel is held against: bytes a second that this machine reads and fused multiply-adds a
 * second that it does, measured in the same run, with as many threads as the kernel has. And the
 * report: JSON that says which machine, commit and command. */
#ifndef KK_BENCH_FLOOR_H
#define KK_BENCH_FLOOR_H

#include <jansson.h>
#include <stddef.h>
#include <stdint.h>

#include "base/err.h"

struct floor {
    double bytes_s, flop_s;
    double fork_s; /* all threads meet for nothing, while a step runs (0 with one thread) */
    int threads;
};

/* The best of many short runs: what the machine can do when nobody disturbs it. */
struct floor floor_measure(int threads);
/* The time below which the machine cannot do it. */
double floor_seconds(const struct floor *f, double bytes, double flops);

/* Median seconds of a run, over `budget` seconds and at least three runs, after one for warmth. */
double bench_time(void (*run)(void *), void *arg, double budget);

/* {"bench", "machine", "commit", "cflags", "command", "runs": []}; floors are added and printed;
 * written to path unless that is NULL, and released. */
json_t *bench_report(const char *name, int argc, char **argv);
void bench_floor_into(json_t *report, const char *device, const struct floor *f);
void bench_write(json_t *report, const char *path);

/* --name VALUE of the command line, or fallback. */
const char *bench_option(int argc, char **argv, const char *name, const char *fallback);
/* "1,2,4" into out; returns how many. Exits on anything else. */
int bench_list(const char *text, int *out, int most);

void *bench_need(void *p); /* exits on NULL */
void bench_check(int rc, const struct kk_err *err);

/* Numbers in [-0.5, 0.5), different at every index. */
static inline float bench_value(size_t i)
{
    return (float)((uint32_t)(i * 2654435761u) >> 8) / (float)(1u << 24) - 0.5f;
}

#endif
