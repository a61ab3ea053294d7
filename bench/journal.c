/* The journal under engine-like load: each step appends one token to every session and waits until
 * that is durable, so the time of a step is what a token waits for its commit.
 *
 *   bench/journal DIR [full]        DIR: of the file system to be measured; made, left behind
 *
 * The last line of each kind: steps follow each other without waiting, as a fast engine's do. */
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/mem.h"
#include "engine/journal.h"

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t moved = PTHREAD_COND_INITIALIZER;
static int64_t durable;

static void on_durable(void *arg, int64_t seq)
{
    (void)arg;
    pthread_mutex_lock(&lock);
    durable = seq;
    pthread_cond_signal(&moved);
    pthread_mutex_unlock(&lock);
}

static void await(int64_t seq)
{
    pthread_mutex_lock(&lock);
    while (durable < seq) pthread_cond_wait(&moved, &lock);
    pthread_mutex_unlock(&lock);
}

static int64_t need(int64_t rc, const struct kk_err *err)
{
    if (rc >= 0) return rc;
    fprintf(stderr, "journal: %s\n", err->msg);
    exit(1);
}

static int by_value(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

/* `steps` steps of n sessions; with `wait` each is awaited before the next. */
static void bench(const char *dir, int full, int n, int steps, int wait)
{
    struct kk_err err = {0};
    struct kk_journal *j = NULL;
    struct kk_journal_stats stats;
    struct kk_journal_options o = {.dir = dir, .full = full, .on_durable = on_durable};
    struct kk_journal_entry **e = kk_array((size_t)n, sizeof *e);
    double *ms = kk_array((size_t)steps, sizeof *ms), queue_ns = 0;
    int64_t seq = 0;
    if (!e || !ms) exit(1);
    durable = 0;
    need(kk_journal_open(&o, &j, &err), &err);
    for (int i = 0; i < n; i++)
        seq = need(kk_journal_create(j, "sess-0123456789abcdef", "", NULL, 0, &e[i], &err), &err);
    kk_journal_flush(j);
    await(seq);
    uint64_t start = kk_now_ns();
    for (int s = 0; s < steps; s++) {
        uint64_t t0 = kk_now_ns();
        uint32_t id = (uint32_t)s;
        for (int i = 0; i < n; i++)
            seq = need(kk_journal_append(j, e[i], kk_journal_tokens(e[i]), &id, 1, &err), &err);
        kk_journal_flush(j);
        queue_ns += (double)(kk_now_ns() - t0);
        if (wait) await(seq);
        ms[s] = (double)(kk_now_ns() - t0) * 1e-6;
    }
    await(seq);
    double total = kk_seconds_since(start);
    kk_journal_stats(j, &stats);
    qsort(ms, (size_t)steps, sizeof *ms, by_value);
    printf("%-6s %5d %-8s %8.0f %8.0f %7.3f %7.3f %8.3f %6.0f %5llu\n", full ? "FULL" : "NORMAL", n,
           wait ? "awaited" : "free", (double)n * steps / total, (double)stats.commits / total,
           ms[steps / 2], ms[steps * 99 / 100], ms[steps - 1], queue_ns / ((double)n * steps),
           (unsigned long long)stats.folds);
    for (int i = 0; i < n; i++) need(kk_journal_remove(j, e[i], &err), &err);
    need(kk_journal_close(j, &err), &err);
    kk_free(e);
    kk_free(ms);
}

int main(int argc, char **argv)
{
    if (argc < 2 || argc > 3 || (argc == 3 && strcmp(argv[2], "full"))) {
        fprintf(stderr, "usage: journal DIR [full]\n");
        return 2;
    }
    int full = argc == 3;
    printf("%-6s %5s %-8s %8s %8s %7s %7s %8s %6s %5s\n", "sync", "sess.", "steps", "tokens/s",
           "commit/s", "p50 ms", "p99 ms", "max ms", "ns/op", "folds");
    bench(argv[1], full, 1, 3000, 1);
    bench(argv[1], full, 64, 2000, 1);
    bench(argv[1], full, 1000, 400, 1);
    bench(argv[1], full, 1, 100000, 0);
    bench(argv[1], full, 1000, 400, 0);
    return 0;
}
