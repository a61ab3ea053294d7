/* What holding sessions costs: a long one saved and loaded against reading it again, and forks of
 * one prompt against as many sessions.
 *
 *   bench/sessions MODEL FILE [TOKENS [FORKS [THREADS]]]     6000 tokens, 256 forks
 *
 * FILE is written and removed. Prints JSON; times are medians of 5. Exit status 1 if a loaded or a
 * forked session does not go on as the first one does. */
#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/mem.h"
#include "base/rng.h"
#include "kakeya.h"
#include "kk_build.h"

enum { MADE = 24, TAIL = 8, REPS = 5 };

struct bench {
    struct kk_engine *e;
    struct kk_engine_info about;
    const char *file;
    uint32_t *ids;
    size_t n;
    int forks;
    uint32_t want[MADE];
};

static int compare(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

static double median(double *x)
{
    qsort(x, REPS, sizeof *x, compare);
    return x[REPS / 2];
}

static int keep(void *arg, uint32_t id)
{
    uint32_t **at = arg;
    *(*at)++ = id;
    return 0;
}

static int go_on(struct kk_session *s, uint32_t *out, struct kk_err *err)
{
    struct kk_sampling p = kk_sampling_defaults();
    p.ignore_eos = 1;
    return kk_session_generate(s, &p, MADE, keep, &out, NULL, err);
}

/* A copy of s goes on as the first session did. */
static int check(struct bench *b, struct kk_session *s, const char *what, struct kk_err *err)
{
    uint32_t got[MADE];
    int rc = go_on(s, got, err);
    if (!rc && memcmp(got, b->want, sizeof got))
        rc = kk_fail(err, KK_EINVARIANT, "%s session went on otherwise", what);
    return rc;
}

static int read_prompt(struct bench *b, struct kk_session **s, double *seconds, struct kk_err *err)
{
    uint64_t t0 = kk_now_ns();
    int rc = kk_session_open(b->e, s, err);
    if (!rc) rc = kk_session_append(*s, b->ids, b->n, err);
    *seconds = kk_seconds_since(t0);
    return rc;
}

/* ---- resume ---- */

static int resume(struct bench *b, json_t *report, struct kk_err *err)
{
    double read[REPS], save[REPS], load[REPS];
    int64_t bytes = 0;
    int rc = 0;
    for (int i = 0; !rc && i < REPS; i++) {
        struct kk_session *s = NULL, *t = NULL;
        rc = read_prompt(b, &s, &read[i], err);
        uint64_t t0 = kk_now_ns();
        if (!rc) rc = kk_session_save(s, b->file, err);
        save[i] = kk_seconds_since(t0);
        t0 = kk_now_ns();
        if (!rc) rc = kk_session_load(b->e, b->file, &t, err);
        load[i] = kk_seconds_since(t0);
        if (!rc) rc = go_on(s, b->want, err);
        if (!rc) rc = check(b, t, "the loaded", err);
        kk_session_close(s);
        kk_session_close(t);
    }
    FILE *f = rc ? NULL : fopen(b->file, "rb");
    if (f && !fseek(f, 0, SEEK_END)) bytes = ftell(f);
    if (f) fclose(f);
    unlink(b->file);
    if (rc) return rc;
    double r = median(read), l = median(load);
    json_object_set_new(report, "resume",
                        json_pack("{s:I, s:I, s:f, s:f, s:f, s:f}", "tokens", (json_int_t)b->n,
                                  "file_bytes", (json_int_t)bytes, "read_s", r, "save_s",
                                  median(save), "load_s", l, "load_is_faster", r / l));
    return 0;
}

/* ---- forks ---- */

static int64_t device_bytes(struct kk_session *const *s, int n, int64_t *shared)
{
    int64_t own = 0;
    for (int i = 0; i < n; i++) {
        struct kk_session_info info;
        kk_session_describe(s[i], &info);
        own += info.kv_device_bytes;
        if (info.kv_shared_bytes > *shared) *shared = info.kv_shared_bytes;
    }
    return own;
}

/* Bytes of one, of it and its forks at rest, and after each has read TAIL tokens of its own. */
static int forks(struct bench *b, json_t *report, struct kk_err *err)
{
    struct kk_session **s = kk_calloc((size_t)b->forks + 1, sizeof *s);
    double seconds;
    int64_t shared = 0, rest_shared = 0, tail_shared = 0;
    if (!s) return kk_fail(err, KK_ENOMEM, "out of memory for %d sessions", b->forks);
    int rc = read_prompt(b, &s[0], &seconds, err);
    int64_t one = rc ? 0 : device_bytes(s, 1, &shared);
    uint64_t t0 = kk_now_ns();
    for (int i = 1; !rc && i <= b->forks; i++) rc = kk_session_fork(s[0], &s[i], err);
    seconds = kk_seconds_since(t0) / b->forks;
    int64_t rest = rc ? 0 : device_bytes(s, b->forks + 1, &rest_shared);
    for (int i = 1; !rc && i <= b->forks; i++) {
        uint32_t tail[TAIL];
        for (int k = 0; k < TAIL; k++)
            tail[k] =
                (uint32_t)(kk_rng_at((uint64_t)i, (uint64_t)k) % (uint64_t)b->about.vocabulary);
        rc = kk_session_append(s[i], tail, TAIL, err);
    }
    int64_t own = rc ? 0 : device_bytes(s, b->forks + 1, &tail_shared);
    if (!rc) rc = check(b, s[0], "the forked", err);
    for (int i = 0; i <= b->forks; i++) kk_session_close(s[i]);
    kk_free(s);
    if (rc) return rc;
    json_object_set_new(report, "forks",
                        json_pack("{s:i, s:f, s:I, s:I, s:f, s:i, s:I, s:I, s:I}", "forks",
                                  b->forks, "fork_s", seconds, "one_bytes", (json_int_t)one,
                                  "all_at_rest_bytes", (json_int_t)(rest + rest_shared),
                                  "at_rest_over_one", (double)(rest + rest_shared) / (double)one,
                                  "tail_tokens", TAIL, "shared_with_tails_bytes",
                                  (json_int_t)tail_shared, "own_with_tails_bytes", (json_int_t)own,
                                  "without_forks_bytes", (json_int_t)(one * (b->forks + 1))));
    return 0;
}

int main(int argc, char **argv)
{
    struct kk_engine_options o = kk_engine_defaults();
    struct bench b = {.n = 6000, .forks = 256};
    struct kk_err err = {0};
    if (argc < 3 || argc > 6) {
        fprintf(stderr, "usage: bench/sessions MODEL FILE [TOKENS [FORKS [THREADS]]]\n");
        return 2;
    }
    o.model = argv[1];
    b.file = argv[2];
    if (argc > 3) b.n = strtoull(argv[3], NULL, 10);
    if (argc > 4) b.forks = (int)strtol(argv[4], NULL, 10);
    if (argc > 5) o.threads = (int)strtol(argv[5], NULL, 10);
    json_t *report = json_object();
    int rc = b.n < 2 || b.forks < 1 ? kk_fail(&err, KK_EINVAL, "too few tokens or forks") : 0;
    if (!rc) rc = kk_engine_open(&o, &b.e, &err);
    b.ids = kk_array(b.n + 1, sizeof *b.ids);
    if (!rc && !b.ids) rc = kk_fail(&err, KK_ENOMEM, "out of memory for a prompt");
    if (!rc) kk_engine_describe(b.e, &b.about);
    for (size_t i = 0; !rc && i < b.n; i++)
        b.ids[i] = (uint32_t)(kk_rng_at(1, i) % (uint64_t)b.about.vocabulary);
    if (!rc) rc = resume(&b, report, &err);
    if (!rc) rc = forks(&b, report, &err);
    json_object_set_new(report, "model", json_string(argv[1]));
    json_object_set_new(report, "device", json_string(b.about.device));
    json_object_set_new(report, "commit", json_string(KK_COMMIT));
    if (rc)
        fprintf(stderr, "bench/sessions: %s\n", err.msg);
    else
        json_dumpf(report, stdout, JSON_INDENT(1) | JSON_REAL_PRECISION(6));
    if (!rc) printf("\n");
    json_decref(report);
    kk_free(b.ids);
    kk_engine_close(b.e);
    return rc != 0;
}
