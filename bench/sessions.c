/* What holding sessions costs: a long one saved and loaded against reading it again, and forks of
 * one prompt against as many sessions, on the device, in host memory, on disk, after a restart.
 *
 *   bench/sessions MODEL FILE [TOKENS [FORKS [THREADS]]]     6000 tokens, 256 forks
 *
 * FILE and the directory FILE.state are written and removed. Prints JSON; times are medians of 5.
 * Exit status 1 if a loaded or a forked session does not go on as the first one does. */
#include <dirent.h>
#include <jansson.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/fs.h"
#include "base/mem.h"
#include "base/rng.h"
#include "engine/runtime.h"
#include "kakeya.h"
#include "kk_build.h"

enum { MADE = 24, TAIL = 8, REPS = 5 };

struct bench {
    struct kk_engine_options o;
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

/* ---- forks of a runtime ------------------------------------------------------------------- */

struct asked {
    pthread_mutex_t lock;
    pthread_cond_t changed;
    int done, code;
    char id[KK_SESSION_ID_MAX], msg[400];
    struct kk_session_info info;
};

static int on_event(void *arg, const struct kk_event *ev)
{
    struct asked *a = arg;
    if (ev->kind != KK_EVENT_DONE) return KK_SINK_OK;
    pthread_mutex_lock(&a->lock);
    if (ev->session) snprintf(a->id, sizeof a->id, "%s", ev->session);
    snprintf(a->msg, sizeof a->msg, "%s", ev->msg);
    a->code = ev->code;
    a->info = ev->info;
    a->done = 1;
    pthread_cond_signal(&a->changed);
    pthread_mutex_unlock(&a->lock);
    return KK_SINK_OK;
}

static int ask(struct kk_runtime *rt, struct kk_request r, struct asked *a, struct kk_err *err)
{
    struct kk_call *call;
    *a = (struct asked){.lock = PTHREAD_MUTEX_INITIALIZER, .changed = PTHREAD_COND_INITIALIZER};
    r.sink = on_event;
    r.arg = a;
    int rc = kk_runtime_submit(rt, &r, &call, err);
    if (rc) return rc;
    pthread_mutex_lock(&a->lock);
    while (!a->done) pthread_cond_wait(&a->changed, &a->lock);
    pthread_mutex_unlock(&a->lock);
    kk_call_release(call);
    return a->code ? kk_fail(err, a->code, "%s", a->msg) : 0;
}

/* Counters as of a turn after all answers so far. */
static int count(struct kk_runtime *rt, const char *id, struct kk_runtime_stats *st,
                 struct kk_err *err)
{
    struct asked a;
    int rc = 0;
    for (int i = 0; !rc && i < 2; i++)
        rc = ask(rt, (struct kk_request){.kind = KK_REQUEST_INFO, .session = id}, &a, err);
    kk_runtime_stats(rt, st);
    return rc;
}

/* Bytes of all files under a directory, as they are long and as the disk gives them; remove: and
 * they go. */
static void walk(const char *dir, int64_t *bytes, int64_t *on_disk, int remove)
{
    DIR *d = opendir(dir);
    for (struct dirent *f; d && (f = readdir(d));) {
        char path[4096];
        struct stat st;
        if (f->d_name[0] == '.' || kk_fs_join(path, sizeof path, dir, f->d_name, NULL)) continue;
        if (stat(path, &st)) continue;
        if (S_ISDIR(st.st_mode)) {
            walk(path, bytes, on_disk, remove);
            continue;
        }
        *bytes += (int64_t)st.st_size;
        *on_disk += (int64_t)st.st_blocks * 512;
        if (remove) unlink(path);
    }
    if (d) closedir(d);
    if (remove) rmdir(dir);
}

static int64_t resident_memory(void)
{
    FILE *f = fopen("/proc/self/statm", "r");
    long long pages = 0;
    if (f && fscanf(f, "%*s %lld", &pages) != 1) pages = 0;
    if (f) fclose(f);
    return (int64_t)pages * sysconf(_SC_PAGESIZE);
}

/* What a life of the runtime came to. */
struct life {
    struct kk_runtime_stats st;
    int64_t rss;
    double seconds; /* of the forks */
    char first[KK_SESSION_ID_MAX];
};

/* A session of the prompt, and forks of it that are given TAIL tokens; or (ids) one more token of
 * each of those that an earlier life has left. The runtime stays for a look at it. */
static int live(struct bench *b, const struct kk_runtime_options *o, int forks, int again,
                char (*ids)[KK_SESSION_ID_MAX], struct life *l, struct kk_runtime **out,
                struct kk_err *err)
{
    struct kk_engine *e = NULL;
    struct asked a;
    struct kk_request one = {
        .kind = KK_REQUEST_GENERATE, .sampling = kk_sampling_defaults(), .max_tokens = 1};
    uint32_t tail[TAIL];
    one.sampling.ignore_eos = 1;
    int rc = kk_engine_open(&b->o, &e, err);
    if (!rc) rc = kk_runtime_open(e, o, out, err);
    if (rc) return rc;
    if (!again) {
        rc = ask(*out, (struct kk_request){.kind = KK_REQUEST_CREATE}, &a, err);
        snprintf(l->first, sizeof l->first, "%s", a.id);
        const struct kk_request r = {
            .kind = KK_REQUEST_APPEND, .session = l->first, .ids = b->ids, .n = b->n};
        if (!rc) rc = ask(*out, r, &a, err);
    }
    uint64_t t0 = kk_now_ns();
    for (int i = 0; !rc && i < forks; i++) {
        for (int k = 0; k < TAIL; k++)
            tail[k] =
                (uint32_t)(kk_rng_at((uint64_t)i + 7, (uint64_t)k) % (uint64_t)b->about.vocabulary);
        const struct kk_request f = {.kind = KK_REQUEST_FORK, .session = l->first};
        if (!again) rc = ask(*out, f, &a, err);
        if (!again) snprintf(ids[i], KK_SESSION_ID_MAX, "%s", a.id);
        struct kk_request r = {
            .kind = KK_REQUEST_APPEND, .session = ids[i], .ids = tail, .n = TAIL};
        one.session = ids[i];
        if (!rc) rc = ask(*out, again ? one : r, &a, err);
    }
    l->seconds = kk_seconds_since(t0);
    if (!rc) rc = count(*out, l->first, &l->st, err);
    l->rss = resident_memory();
    return rc;
}

static json_t *beside(int64_t one, int64_t all, int64_t forks)
{
    return json_pack("{s:I, s:I, s:f}", "one_bytes", (json_int_t)one, "all_bytes", (json_int_t)all,
                     "per_fork_bytes", (double)(all - one) / (double)forks);
}

/* One session, then all of them: `host` of them paged out to host memory, or with a state directory
 * that a second life finds. */
static int held(struct bench *b, json_t *report, struct kk_err *err)
{
    char dir[4096];
    char(*ids)[KK_SESSION_ID_MAX] = kk_array((size_t)b->forks, sizeof *ids);
    struct kk_runtime_options o = kk_runtime_defaults();
    struct kk_runtime *rt = NULL;
    struct life one = {0}, all = {0}, again = {0}, host = {0};
    int64_t files[2][2] = {{0}}, gone = 0;
    int rc = ids ? 0 : kk_fail(err, KK_ENOMEM, "out of memory for %d forks", b->forks);
    snprintf(dir, sizeof dir, "%s.state", b->file);
    o.capacity = 0;
    o.state = dir;
    for (int i = 0; !rc && i < 2; i++) {
        struct life *l = i ? &all : &one;
        rc = live(b, &o, i ? b->forks : 0, 0, ids, l, &rt, err);
        kk_runtime_close(rt);
        rt = NULL;
        walk(dir, &files[i][0], &files[i][1], !i || rc);
    }
    memcpy(again.first, all.first, sizeof again.first);
    if (!rc) rc = live(b, &o, b->forks, 1, ids, &again, &rt, err);
    kk_runtime_close(rt);
    rt = NULL;
    walk(dir, &gone, &gone, 1);
    o.state = NULL;
    const int64_t fork = (all.st.kv_device_bytes - one.st.kv_device_bytes) / b->forks;
    o.kv_bytes = one.st.kv_device_bytes + fork * (b->forks > 32 ? 8 : b->forks / 4 + 1);
    if (!rc) rc = live(b, &o, b->forks, 0, ids, &host, &rt, err);
    kk_runtime_close(rt);
    kk_free(ids);
    if (rc) return rc;
    if (again.st.snapshots_lost || again.st.tokens_appended)
        return kk_fail(err, KK_EINVARIANT, "%llu snapshots were lost, %llu tokens read again",
                       (unsigned long long)again.st.snapshots_lost,
                       (unsigned long long)again.st.tokens_appended);
    const int64_t device = one.st.kv_device_bytes;
    json_t *r = json_pack("{s:I, s:i, s:i}", "tokens", (json_int_t)b->n, "forks", b->forks,
                          "tail_tokens", TAIL);
    json_object_set_new(r, "device", beside(device, all.st.kv_device_bytes, b->forks));
    json_t *h = beside(device, host.st.kv_host_bytes, (int64_t)host.st.sessions_host);
    json_object_set_new(h, "sessions", json_integer((json_int_t)host.st.sessions_host));
    json_object_set_new(h, "rss_bytes", json_integer((json_int_t)host.rss));
    json_object_set_new(r, "host", h);
    json_t *d = beside(files[0][0], files[1][0], b->forks);
    json_object_set_new(d, "one_allocated_bytes", json_integer((json_int_t)files[0][1]));
    json_object_set_new(d, "all_allocated_bytes", json_integer((json_int_t)files[1][1]));
    json_object_set_new(r, "state_directory", d);
    json_object_set_new(r, "device_after_restart",
                        beside(device, again.st.kv_device_bytes, b->forks));
    json_object_set_new(r, "back_from_disk_s", json_real(again.seconds / b->forks));
    json_object_set_new(report, "runtime", r);
    return 0;
}

int main(int argc, char **argv)
{
    struct bench b = {.o = kk_engine_defaults(), .n = 6000, .forks = 256};
    struct kk_err err = {0};
    if (argc < 3 || argc > 6) {
        fprintf(stderr, "usage: bench/sessions MODEL FILE [TOKENS [FORKS [THREADS]]]\n");
        return 2;
    }
    b.o.model = argv[1];
    b.file = argv[2];
    if (argc > 3) b.n = strtoull(argv[3], NULL, 10);
    if (argc > 4) b.forks = (int)strtol(argv[4], NULL, 10);
    if (argc > 5) b.o.threads = (int)strtol(argv[5], NULL, 10);
    json_t *report = json_object();
    int rc = b.n < 2 || b.forks < 1 ? kk_fail(&err, KK_EINVAL, "too few tokens or forks") : 0;
    if (!rc) rc = kk_engine_open(&b.o, &b.e, &err);
    b.ids = kk_array(b.n + 1, sizeof *b.ids);
    if (!rc && !b.ids) rc = kk_fail(&err, KK_ENOMEM, "out of memory for a prompt");
    if (!rc) kk_engine_describe(b.e, &b.about);
    for (size_t i = 0; !rc && i < b.n; i++)
        b.ids[i] = (uint32_t)(kk_rng_at(1, i) % (uint64_t)b.about.vocabulary);
    if (!rc) rc = resume(&b, report, &err);
    if (!rc) rc = forks(&b, report, &err);
    if (!rc) rc = held(&b, report, &err);
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
