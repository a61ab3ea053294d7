/* From nothing to the first token: opening a model whose file is in the page cache, reading a
 * prompt of 8 tokens, emitting one.
 *
 *   bench/load --model DIR [--reps N] [--threads N] [--json FILE]     5 times, one thread a core
 *
 * Every repetition is a process of its own, for a second opening in one process finds its memory
 * warm. Floor: weights are read and written once to pack them, and read by two steps (the prompt's,
 * the token's), at the bandwidth measured here. Prints JSON; tools/random_model.py makes a DIR. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/pool.h"
#include "floor.h"
#include "kakeya.h"

enum { PROMPT = 8, MOST = 64 };

struct times {
    double open, first, cpu;
    int64_t weight_bytes;
};

static double cpu_seconds(void)
{
    struct rusage u;
    getrusage(RUSAGE_SELF, &u);
    return (double)(u.ru_utime.tv_sec + u.ru_stime.tv_sec) +
           1e-6 * (double)(u.ru_utime.tv_usec + u.ru_stime.tv_usec);
}

static struct times measure(const char *model, int threads)
{
    struct kk_engine_options o = kk_engine_defaults();
    struct kk_sampling greedy = kk_sampling_defaults();
    struct kk_engine *e = NULL;
    struct kk_engine_info info;
    struct kk_session *s = NULL;
    struct kk_err err = {0};
    struct times t = {0};
    uint32_t ids[PROMPT];
    uint64_t t0 = kk_now_ns();
    o.model = model;
    o.threads = threads;
    bench_check(kk_engine_open(&o, &e, &err), &err);
    t.open = kk_seconds_since(t0);
    kk_engine_describe(e, &info);
    for (uint32_t i = 0; i < PROMPT; i++) ids[i] = i * 7 % (uint32_t)info.vocabulary;
    bench_check(kk_session_open(e, &s, &err), &err);
    bench_check(kk_session_append(s, ids, PROMPT, &err), &err);
    bench_check(kk_session_generate(s, &greedy, 1, NULL, NULL, NULL, &err), &err);
    t.first = kk_seconds_since(t0);
    t.cpu = cpu_seconds();
    t.weight_bytes = info.weight_bytes;
    kk_session_close(s);
    kk_engine_close(e);
    return t;
}

/* In a process of its own; exits with its status if it failed. */
static struct times measure_apart(const char *model, int threads)
{
    struct times t;
    int end[2], status = 1;
    if (pipe(end)) exit(1);
    pid_t child = fork();
    if (child < 0) exit(1);
    if (!child) {
        t = measure(model, threads);
        _exit(write(end[1], &t, sizeof t) != sizeof t);
    }
    close(end[1]);
    ssize_t got = read(end[0], &t, sizeof t);
    close(end[0]);
    waitpid(child, &status, 0);
    if (status || got != sizeof t) exit(1);
    return t;
}

static int by_first(const void *a, const void *b)
{
    double x = ((const struct times *)a)->first, y = ((const struct times *)b)->first;
    return (x > y) - (x < y);
}

int main(int argc, char **argv)
{
    const char *model = bench_option(argc, argv, "--model", NULL);
    int threads = (int)strtol(bench_option(argc, argv, "--threads", "0"), NULL, 10);
    int reps = (int)strtol(bench_option(argc, argv, "--reps", "5"), NULL, 10);
    struct times t[MOST];
    if (!model || reps < 1 || reps > MOST) {
        fprintf(stderr, "usage: bench/load --model DIR [--reps 1..%d] [--threads N] [--json F]\n",
                MOST);
        return 2;
    }
    json_t *report = bench_report("load", argc, argv), *runs = json_object_get(report, "runs");
    for (int i = 0; i < reps; i++) t[i] = measure_apart(model, threads);
    for (int i = 0; i < reps; i++)
        json_array_append_new(runs, json_pack("{s:f, s:f, s:f}", "open_s", t[i].open,
                                              "first_token_s", t[i].first, "cpu_s", t[i].cpu));
    qsort(t, (size_t)reps, sizeof *t, by_first);
    struct floor f = floor_measure(threads ? threads : kk_cores());
    double floor_s = floor_seconds(&f, 4.0 * (double)t[0].weight_bytes, 0);
    bench_floor_into(report, "cpu", &f);
    json_object_set_new(report, "model", json_string(model));
    json_object_set_new(report, "weight_bytes", json_integer((json_int_t)t[0].weight_bytes));
    json_object_set_new(report, "first_token_s", json_real(t[reps / 2].first));
    json_object_set_new(report, "floor_s", json_real(floor_s));
    printf(
        "%s: %.2f GB of weights; first token at %.3f s (median of %d; best %.3f), floor %.3f s\n",
        model, (double)t[0].weight_bytes / 1e9, t[reps / 2].first, reps, t[0].first, floor_s);
    bench_write(report, bench_option(argc, argv, "--json", NULL));
    return 0;
}
