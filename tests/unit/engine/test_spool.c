/* The spool: files come back as they went, or not at all; bytes are counted. kk-test: tsan */
#include "kk_test.h"

#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/mem.h"
#include "engine/spool.h"

enum { CHUNK = 256 << 10, HEAD = 32 };

/* Callbacks are counted; the first one can be held up, and with it the spool's thread. */
static struct {
    pthread_mutex_t lock;
    pthread_cond_t moved;
    int hold, held, n, failed, cancelled, disorder;
    int64_t last;
    char msg[512];
} seen = {.lock = PTHREAD_MUTEX_INITIALIZER, .moved = PTHREAD_COND_INITIALIZER};

static void on_done(void *arg, const struct kk_spool_done *d)
{
    (void)arg;
    pthread_mutex_lock(&seen.lock);
    seen.disorder |= d->ticket <= seen.last;
    seen.last = d->ticket;
    seen.n++;
    seen.failed += d->rc == KK_EIO;
    seen.cancelled += d->rc == KK_ECANCELLED;
    if (d->rc) snprintf(seen.msg, sizeof seen.msg, "%s", d->msg);
    seen.held = seen.hold;
    pthread_cond_broadcast(&seen.moved);
    while (seen.hold) pthread_cond_wait(&seen.moved, &seen.lock);
    seen.held = 0;
    pthread_mutex_unlock(&seen.lock);
}

static void hold(int on)
{
    pthread_mutex_lock(&seen.lock);
    seen.hold = on;
    pthread_cond_broadcast(&seen.moved);
    pthread_mutex_unlock(&seen.lock);
}

static void await_held(void)
{
    pthread_mutex_lock(&seen.lock);
    while (!seen.held) pthread_cond_wait(&seen.moved, &seen.lock);
    pthread_mutex_unlock(&seen.lock);
}

static struct kk_spool_options options(const char *name)
{
    const char *dir = kk_test_path(name);
    mkdir(dir, 0700);
    seen.n = seen.failed = seen.cancelled = seen.hold = 0;
    seen.last = 0;
    return (struct kk_spool_options){.dir = dir, .on_done = on_done};
}

static struct kk_spool *open_spool(const struct kk_spool_options *o)
{
    struct kk_spool *sp = NULL;
    struct kk_err err = {0};
    KK_ASSERT_OK(kk_spool_open(o, &sp, &err), &err);
    return sp;
}

static struct kk_spool_stats stats_of(struct kk_spool *sp)
{
    struct kk_spool_stats s;
    kk_spool_stats(sp, &s);
    return s;
}

static unsigned char *random_bytes(struct kk_test_rng *r, size_t n)
{
    unsigned char *p = kk_malloc(n);
    for (size_t i = 0; i < n; i++) p[i] = (unsigned char)kk_test_u64(r);
    return p;
}

static int64_t put(struct kk_spool *sp, const char *name, const void *data, size_t n,
                   struct kk_err *err)
{
    void *own = kk_malloc(n);
    memcpy(own, data, n);
    int64_t rc = kk_spool_write(sp, name, own, n, err);
    if (rc < 0) kk_free(own);
    return rc;
}

/* The whole contents through the stream, in odd pieces. */
static int get(struct kk_spool *sp, const char *name, unsigned char **out, size_t *n,
               struct kk_err *err)
{
    struct kk_spool_reader *r = NULL;
    int rc = kk_spool_read(sp, name, &r, err);
    if (rc) return rc;
    struct kk_io io = kk_spool_source(r);
    *n = (size_t)kk_spool_length(r);
    *out = kk_malloc(*n);
    for (size_t at = 0, take; at < *n && !rc; at += take) {
        take = *n - at < 100003 ? *n - at : 100003;
        rc = kk_io(&io, *out + at, take, err);
    }
    unsigned char past;
    if (!rc) assert_int_equal(kk_io(&io, &past, 1, err), KK_EFORMAT);
    kk_spool_end(r);
    if (rc) kk_free(*out);
    return rc;
}

static const char *file_path(const char *dir, const char *name)
{
    static char path[600];
    snprintf(path, sizeof path, "%s/snapshots/%s", dir, name);
    return path;
}

static int64_t size_of(const char *path)
{
    struct stat st;
    return stat(path, &st) ? -1 : (int64_t)st.st_size;
}

/* ---- whole files and ranges ---- */

static void test_round_trip(void **state)
{
    const size_t sizes[] = {0, 1, 4095, CHUNK - 1, CHUNK, CHUNK + 1, 3 * CHUNK, 5 * CHUNK + 77};
    enum { N = sizeof sizes / sizeof *sizes };
    struct kk_test_rng rng = kk_test_rng("spool");
    struct kk_spool_options o = options("trip");
    unsigned char *data[N], *back = NULL;
    struct kk_err err = {0};
    int64_t bytes = 0;
    (void)state;
    struct kk_spool *sp = open_spool(&o);
    for (int i = 0; i < N; i++) {
        char name[20];
        snprintf(name, sizeof name, "s%d.snap", i);
        data[i] = random_bytes(&rng, sizes[i]);
        assert_int_equal(put(sp, name, data[i], sizes[i], &err), i + 1);
    }
    kk_spool_close(sp);
    assert_int_equal(seen.n, N);
    assert_int_equal(seen.failed, 0);
    assert_false(seen.disorder);
    sp = open_spool(&o);
    for (int i = 0; i < N; i++) {
        struct kk_spool_reader *r;
        char name[20];
        size_t n = 0;
        snprintf(name, sizeof name, "s%d.snap", i);
        KK_ASSERT_OK(get(sp, name, &back, &n, &err), &err);
        assert_int_equal(n, sizes[i]);
        assert_memory_equal(back, data[i], n);
        KK_ASSERT_OK(kk_spool_read(sp, name, &r, &err), &err);
        for (int k = 0; k < 50; k++) {
            size_t at = kk_test_below(&rng, (uint32_t)n + 1);
            size_t len = kk_test_below(&rng, (uint32_t)(n - at) + 1);
            KK_ASSERT_OK(kk_spool_range(r, at, back, len, &err), &err);
            assert_memory_equal(back, data[i] + at, len);
        }
        KK_ASSERT_FAILS(kk_spool_range(r, n, back, 1, &err), KK_EFORMAT, &err, "there are no 1 at");
        KK_ASSERT_FAILS(kk_spool_range(r, UINT64_MAX, back, 2, &err), KK_EFORMAT, &err, "no 2 at");
        kk_spool_end(r);
        bytes += size_of(file_path(o.dir, name));
        kk_free(back);
        kk_free(data[i]);
    }
    assert_int_equal(stats_of(sp).disk_bytes, bytes);
    assert_int_equal(stats_of(sp).disk_files, N);
    kk_spool_close(sp);
}

/* No byte of a file may be changed, left out or added without being noticed. */
static void test_damage(void **state)
{
    struct kk_test_rng rng = kk_test_rng("damage");
    struct kk_spool_options o = options("damage");
    struct kk_spool *sp = open_spool(&o);
    unsigned char *data = random_bytes(&rng, CHUNK + 100), *back = NULL, byte, flipped;
    const size_t total = HEAD + 16 + CHUNK + 100;
    struct kk_err err = {0};
    size_t n = 0;
    (void)state;
    put(sp, "a", data, CHUNK + 100, &err);
    kk_spool_drain(sp);
    const char *path = file_path(o.dir, "a");
    assert_int_equal(size_of(path), total);
    int fd = open(path, O_RDWR);
    for (int i = 0; i < 300; i++) {
        off_t at = i < HEAD + 16 ? i : (off_t)kk_test_below(&rng, (uint32_t)total);
        assert_int_equal(pread(fd, &byte, 1, at), 1);
        flipped = (unsigned char)(byte ^ (1u << i % 8));
        assert_int_equal(pwrite(fd, &flipped, 1, at), 1);
        KK_ASSERT_FAILS(get(sp, "a", &back, &n, &err), KK_EFORMAT, &err, "'a'");
        assert_int_equal(pwrite(fd, &byte, 1, at), 1);
    }
    KK_ASSERT_OK(get(sp, "a", &back, &n, &err), &err);
    assert_memory_equal(back, data, n);
    assert_int_equal(pwrite(fd, &byte, 1, (off_t)total), 1);
    KK_ASSERT_FAILS(get(sp, "a", &back, &n, &err), KK_EFORMAT, &err, "truncated or damaged");
    for (size_t len = total; len-- > 0; len -= len > 2000 ? 1999 : 0) {
        assert_int_equal(ftruncate(fd, (off_t)len), 0);
        KK_ASSERT_FAILS(get(sp, "a", &back, &n, &err), KK_EFORMAT, &err, "'a'");
    }
    close(fd);
    kk_spool_close(sp);
    kk_free(back);
    kk_free(data);
}

/* A damaged chunk does not keep the others from being read. */
static void test_damaged_chunk(void **state)
{
    struct kk_spool_options o = options("chunk");
    struct kk_spool *sp = open_spool(&o);
    struct kk_spool_reader *r;
    struct kk_err err = {0};
    unsigned char *data = kk_calloc(1, 3 * CHUNK);
    (void)state;
    put(sp, "a", data, 3 * CHUNK, &err);
    kk_spool_drain(sp);
    int fd = open(file_path(o.dir, "a"), O_RDWR);
    assert_int_equal(pwrite(fd, "x", 1, HEAD + 24 + CHUNK + 5), 1);
    close(fd);
    KK_ASSERT_OK(kk_spool_read(sp, "a", &r, &err), &err);
    KK_ASSERT_OK(kk_spool_range(r, 10, data, 100, &err), &err);
    KK_ASSERT_FAILS(kk_spool_range(r, CHUNK + 100, data, 1, &err), KK_EFORMAT, &err,
                    "snapshot 'a' is damaged: bytes 262144 to 524287 do not check");
    KK_ASSERT_FAILS(kk_spool_range(r, CHUNK, data, CHUNK, &err), KK_EFORMAT, &err, "damaged");
    KK_ASSERT_OK(kk_spool_range(r, 2 * CHUNK, data, CHUNK, &err), &err);
    KK_ASSERT_OK(kk_spool_range(r, 10, data, 100, &err), &err);
    kk_spool_end(r);
    kk_spool_close(sp);
    kk_free(data);
}

/* ---- bounds, names, removal ---- */

static void test_bounds(void **state)
{
    struct kk_spool_options o = options("bounds");
    struct kk_spool_stats s;
    struct kk_err err = {0};
    static char data[1000];
    (void)state;
    o.disk_bytes = 2 * (1000 + HEAD + 8) + 10;
    o.queue_bytes = 1500;
    struct kk_spool *sp = open_spool(&o);
    hold(1);
    assert_int_equal(put(sp, "a", data, 1000, &err), 1);
    await_held();
    assert_int_equal(put(sp, "b", data, 1000, &err), 2);
    KK_ASSERT_FAILS(put(sp, "c", data, 1000, &err), KK_EEXHAUSTED, &err,
                    "snapshots take 2080 of 2090 bytes: 1040 more do not fit");
    KK_ASSERT_OK(kk_spool_remove(sp, "a", &err), &err);
    KK_ASSERT_OK(kk_spool_remove(sp, "a", &err), &err); /* counts once */
    KK_ASSERT_FAILS(put(sp, "c", data, 1000, &err), KK_EEXHAUSTED, &err,
                    "snapshots of 1000 of 1500 bytes wait to be written: 1000 more do not fit");
    s = stats_of(sp);
    assert_int_equal(s.disk_bytes, 1040);
    assert_int_equal(s.promised_bytes, 1040);
    assert_int_equal(s.queue_bytes, 1000);
    hold(0);
    kk_spool_drain(sp);
    s = stats_of(sp);
    assert_int_equal(s.disk_bytes, 1040);
    assert_int_equal(s.promised_bytes, 1040);
    assert_int_equal(s.queue_bytes, 0);
    assert_int_equal(s.removed, 1);
    assert_int_equal(size_of(file_path(o.dir, "a")), -1);
    assert_int_equal(size_of(file_path(o.dir, "b")), 1040);
    assert_int_equal(put(sp, "c", data, 1000, &err), 3);
    kk_spool_close(sp);
}

static void test_names(void **state)
{
    const char *bad[] = {"", ".", "..", ".x", "a/b", "../a", "a.tmp", "a b", "a\n", "\xc3\xa9"};
    struct kk_spool_options o = options("names");
    struct kk_spool *sp = open_spool(&o);
    struct kk_spool_reader *r;
    struct kk_err err = {0};
    char name[KK_SPOOL_NAME + 2];
    (void)state;
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        KK_ASSERT_FAILS(put(sp, bad[i], "", 0, &err), KK_EINVAL, &err, "is no name");
        KK_ASSERT_FAILS(kk_spool_remove(sp, bad[i], &err), KK_EINVAL, &err, "is no name");
        KK_ASSERT_FAILS(kk_spool_read(sp, bad[i], &r, &err), KK_EINVAL, &err, "is no name");
    }
    memset(name, 'n', sizeof name);
    name[KK_SPOOL_NAME + 1] = 0;
    KK_ASSERT_FAILS(put(sp, name, "", 0, &err), KK_EINVAL, &err, "is no name");
    name[KK_SPOOL_NAME] = 0;
    assert_int_equal(put(sp, name, "x", 1, &err), 1);
    KK_ASSERT_FAILS(put(sp, name, "x", 1, &err), KK_EBUSY, &err, "already");
    kk_spool_drain(sp);
    KK_ASSERT_FAILS(put(sp, name, "x", 1, &err), KK_EBUSY, &err, "already");
    KK_ASSERT_FAILS(kk_spool_read(sp, "none", &r, &err), KK_ENOENT, &err, "snapshot 'none'");
    KK_ASSERT_OK(kk_spool_remove(sp, "none", &err), &err);
    kk_spool_close(sp);
}

/* A queued file that is removed is never written; the others keep their turn. */
static void test_cancel(void **state)
{
    struct kk_spool_options o = options("cancel");
    struct kk_spool *sp = open_spool(&o);
    struct kk_err err = {0};
    (void)state;
    hold(1);
    put(sp, "a", "a", 1, &err);
    await_held();
    put(sp, "b", "bb", 2, &err);
    put(sp, "c", "cc", 2, &err);
    KK_ASSERT_OK(kk_spool_remove(sp, "b", &err), &err);
    assert_int_equal(stats_of(sp).queue_bytes, 2);
    assert_int_equal(put(sp, "b", "new", 3, &err), 4); /* the name is free again */
    hold(0);
    kk_spool_drain(sp);
    assert_int_equal(seen.n, 4);
    assert_int_equal(seen.cancelled, 1);
    assert_false(seen.disorder);
    assert_string_equal(seen.msg, "'b' was removed before it was written");
    assert_int_equal(size_of(file_path(o.dir, "b")), HEAD + 8 + 3);
    assert_int_equal(stats_of(sp).written, 3);
    assert_int_equal(stats_of(sp).disk_bytes, stats_of(sp).promised_bytes);
    kk_spool_close(sp);
}

/* Writes and removals at random from this thread, against the thread that does them. */
static void test_random(void **state)
{
    enum { NAMES = 60 };
    struct kk_test_rng rng = kk_test_rng("random");
    struct kk_spool_options o = options("random");
    struct kk_spool *sp = open_spool(&o);
    static int there[NAMES], made[NAMES];
    static char data[3000];
    struct kk_err err = {0};
    char name[40];
    int64_t bytes = 0;
    int files = 0;
    (void)state;
    for (int i = 0; i < 1200; i++) {
        int k = kk_test_between(&rng, 0, NAMES - 1);
        snprintf(name, sizeof name, "s%d-%d", k, made[k]);
        if (there[k]) {
            KK_ASSERT_OK(kk_spool_remove(sp, name, &err), &err);
            made[k]++;
        } else {
            assert_true(put(sp, name, data, kk_test_below(&rng, 3000), &err) > 0);
        }
        there[k] = !there[k];
    }
    kk_spool_drain(sp);
    for (int k = 0; k < NAMES; k++) {
        snprintf(name, sizeof name, "s%d-%d", k, made[k]);
        int64_t size = size_of(file_path(o.dir, name));
        assert_int_equal(size >= 0, there[k]);
        if (size >= 0) bytes += size, files++;
    }
    struct kk_spool_stats s = stats_of(sp);
    assert_int_equal(s.disk_bytes, bytes);
    assert_int_equal(s.disk_files, files);
    assert_int_equal(s.promised_bytes, bytes);
    assert_int_equal(s.queue_bytes, 0);
    assert_int_equal(seen.failed, 0);
    kk_spool_close(sp);
}

/* ---- start, failing disk ---- */

static int keep_known(void *arg, const char *name)
{
    (void)arg;
    return name[0] == 'k';
}

static void test_sweep(void **state)
{
    const char *names[] = {"known", "unknown", "known.tmp", "odd name", ".hidden"};
    struct kk_spool_options o = options("sweep");
    struct kk_spool *sp = open_spool(&o);
    struct kk_err err = {0};
    (void)state;
    kk_spool_close(sp);
    for (int i = 0; i < 5; i++) {
        FILE *f = fopen(file_path(o.dir, names[i]), "w");
        assert_int_equal(fputs("12345", f) >= 0, 1);
        fclose(f);
    }
    mkdir(file_path(o.dir, "unknown-directory"), 0700);
    o.keep = keep_known;
    sp = open_spool(&o);
    assert_int_equal(stats_of(sp).swept, 4);
    assert_int_equal(stats_of(sp).disk_files, 1);
    assert_int_equal(stats_of(sp).disk_bytes, 5);
    assert_int_equal(size_of(file_path(o.dir, "known")), 5);
    assert_int_equal(size_of(file_path(o.dir, "unknown")), -1);
    struct kk_spool_reader *r;
    KK_ASSERT_FAILS(kk_spool_read(sp, "known", &r, &err), KK_EFORMAT, &err, "'known' is truncated");
    KK_ASSERT_FAILS(kk_spool_read(sp, "unknown-directory", &r, &err), KK_EIO, &err, "unknown-dir");
    kk_spool_close(sp);
}

static void test_bad_directories(void **state)
{
    struct kk_spool_options o = {.dir = ""};
    struct kk_spool *sp = NULL;
    struct kk_err err = {0};
    (void)state;
    KK_ASSERT_FAILS(kk_spool_open(&o, &sp, &err), KK_EINVAL, &err, "no directory");
    o.dir = kk_test_path("nowhere");
    KK_ASSERT_FAILS(kk_spool_open(&o, &sp, &err), KK_EIO, &err, "nowhere/snapshots'");
    o.dir = kk_test_file("a-file", "x", 1);
    KK_ASSERT_FAILS(kk_spool_open(&o, &sp, &err), KK_EIO, &err, "cannot make directory");
    o = options("blocked"); /* by a file in its place */
    char path[600];
    snprintf(path, sizeof path, "%s/snapshots", o.dir);
    fclose(fopen(path, "w"));
    KK_ASSERT_FAILS(kk_spool_open(&o, &sp, &err), KK_EIO, &err, "cannot list");
}

/* A disk that takes no more: the callback says so, nothing is left, nothing is counted, and later
 * writes go on. */
static void test_failing_disk(void **state)
{
    struct kk_spool_options o = options("failing");
    struct kk_spool *sp = open_spool(&o);
    struct kk_err err = {0};
    struct rlimit limit, small;
    char *data = kk_calloc(1, 100000);
    (void)state;
    signal(SIGXFSZ, SIG_IGN);
    assert_int_equal(getrlimit(RLIMIT_FSIZE, &limit), 0);
    small = limit;
    small.rlim_cur = 50000;
    assert_int_equal(setrlimit(RLIMIT_FSIZE, &small), 0);
    hold(1);
    put(sp, "small", data, 10, &err);
    await_held();
    put(sp, "large", data, 100000, &err);
    put(sp, "small2", data, 10, &err);
    hold(0);
    kk_spool_drain(sp);
    assert_int_equal(setrlimit(RLIMIT_FSIZE, &limit), 0);
    assert_int_equal(seen.failed, 1);
    assert_non_null(strstr(seen.msg, "large': File too large"));
    assert_int_equal(size_of(file_path(o.dir, "large")), -1);
    assert_int_equal(size_of(file_path(o.dir, "large.tmp")), -1);
    assert_int_equal(stats_of(sp).failed, 1);
    assert_int_equal(stats_of(sp).disk_bytes, 2 * (HEAD + 8 + 10));
    assert_int_equal(stats_of(sp).promised_bytes, 2 * (HEAD + 8 + 10));
    assert_int_equal(put(sp, "large", data, 100000, &err), 4);
    kk_spool_drain(sp);
    assert_int_equal(size_of(file_path(o.dir, "large")), HEAD + 8 + 100000);
    kk_spool_close(sp);
    kk_free(data);
}

/* A file that needs others is written after them, or not at all. */
static void test_needs(void **state)
{
    struct kk_spool_options o = options("needs");
    struct kk_spool *sp = open_spool(&o);
    struct kk_err err = {0};
    struct rlimit limit, small;
    char *large = kk_calloc(1, 100000);
    (void)state;
    hold(1);
    put(sp, "held", "h", 1, &err);
    await_held();
    put(sp, "a", "a", 1, &err);
    put(sp, "b", "b", 1, &err);
    assert_true(kk_spool_write_after(sp, "both", kk_calloc(1, 10), 10, "a\0b\0", &err) > 0);
    hold(0);
    kk_spool_drain(sp);
    assert_true(kk_spool_has(sp, "both"));
    assert_int_equal(seen.failed + seen.cancelled, 0);
    signal(SIGXFSZ, SIG_IGN);
    assert_int_equal(getrlimit(RLIMIT_FSIZE, &limit), 0);
    small = limit;
    small.rlim_cur = 50000;
    assert_int_equal(setrlimit(RLIMIT_FSIZE, &small), 0);
    put(sp, "large", large, 100000, &err); /* cannot be written */
    assert_true(kk_spool_write_after(sp, "one", kk_calloc(1, 10), 10, "a\0large\0", &err) > 0);
    assert_true(kk_spool_write_after(sp, "other", kk_calloc(1, 10), 10, "a\0", &err) > 0);
    kk_spool_drain(sp);
    assert_int_equal(setrlimit(RLIMIT_FSIZE, &limit), 0);
    assert_string_equal(seen.msg, "'one' needs 'large', which was not written");
    assert_false(kk_spool_has(sp, "one"));
    assert_true(kk_spool_has(sp, "other"));
    assert_int_equal(stats_of(sp).failed, 2);
    assert_int_equal(stats_of(sp).disk_bytes, stats_of(sp).promised_bytes);
    kk_spool_close(sp);
    kk_free(large);
}

/* The directory vanishes: failures, no crash, and the accounts stay right. */
static void test_vanished_directory(void **state)
{
    struct kk_spool_options o = options("vanished");
    struct kk_spool *sp = open_spool(&o);
    struct kk_err err = {0};
    (void)state;
    assert_int_equal(rmdir(file_path(o.dir, "")), 0);
    put(sp, "a", "a", 1, &err);
    put(sp, "b", "b", 1, &err);
    kk_spool_drain(sp);
    assert_int_equal(seen.failed, 2);
    assert_non_null(strstr(seen.msg, "No such file"));
    assert_int_equal(stats_of(sp).promised_bytes, 0);
    kk_spool_close(sp);
}

static void test_out_of_memory(void **state)
{
    struct kk_spool_options o = options("memory");
    o.on_done = NULL;
    (void)state;
    for (int n = 1;; n++) {
        struct kk_spool *sp = NULL;
        struct kk_spool_reader *r = NULL;
        struct kk_err err = {0};
        char name[20];
        void *data = kk_malloc(10);
        snprintf(name, sizeof name, "m%d", n);
        memset(data, 0, 10);
        kk_mem_fail_after(n);
        int64_t rc = kk_spool_open(&o, &sp, &err);
        if (!rc) rc = kk_spool_write(sp, name, data, 10, &err);
        if (rc < 0) kk_free(data);
        if (rc > 0) {
            kk_spool_drain(sp); /* may fail in the thread: then there is no file */
            rc = kk_spool_read(sp, name, &r, &err);
        }
        int hit = kk_mem_fail_hit();
        kk_mem_fail_after(0);
        if (hit) assert_true(rc == KK_ENOMEM || rc == KK_ENOENT);
        if (!hit) KK_ASSERT_OK((int)rc, &err);
        kk_spool_end(r);
        kk_spool_close(sp);
        if (!hit) break;
        assert_true(n < 20);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_round_trip),      cmocka_unit_test(test_damage),
        cmocka_unit_test(test_damaged_chunk),   cmocka_unit_test(test_bounds),
        cmocka_unit_test(test_names),           cmocka_unit_test(test_cancel),
        cmocka_unit_test(test_random),          cmocka_unit_test(test_sweep),
        cmocka_unit_test(test_bad_directories), cmocka_unit_test(test_failing_disk),
        cmocka_unit_test(test_needs),           cmocka_unit_test(test_vanished_directory),
        cmocka_unit_test(test_out_of_memory),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
