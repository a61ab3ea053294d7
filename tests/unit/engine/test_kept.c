/* Sessions that were forked leave memory and come back: what they share is one copy in host memory,
 * in files and on the device again, and every one of them goes on as it would have. A block that is
 * lost costs a session its rows, never another one's. */
#include "kk_test.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/fs.h"
#include "unit/engine/sessions.h"

#define MINI "synth:tests/data/mini.json:5"
enum { V = 160, FORKS = 9, NEW = 12 };

static const struct arm {
    const char *model, *kv, *f_theta, *draft;
    int sinks, window, prompt;
    int64_t kv_device;
} arms[] = {
    {MINI, "native", NULL, "none", 2, 8, 400, 0},
    {MINI, "full", NULL, "ngram", 2, 8, 300, 0},
    {MINI, "s5", NULL, "none", 2, 21, 130, 0},
    {MINI, "native", NULL, "none", 2, 8, 700, 160000}, /* the tier's blocks are shared, too */
    {"models/tiny", "native", NULL, "models/tiny/drafter", 4, 64, 300, 0},
    {"models/tiny", "restored", "models/tiny/f_theta", "none", 4, 64, 300, 0},
};
#ifdef __SANITIZE_ADDRESS__ /* slow there */
enum { N_ARMS = 5, N_SMALL = 4 };
#else
enum { N_ARMS = sizeof arms / sizeof *arms, N_SMALL = N_ARMS };
#endif

static struct kk_engine *open_arm(const struct arm *a)
{
    struct kk_engine_options o = kk_engine_defaults();
    struct kk_engine *e = NULL;
    struct kk_err err = {0};
    o.model = a->model;
    o.kv = a->kv;
    o.f_theta = a->f_theta;
    o.draft = a->draft;
    o.kv_sinks = a->sinks;
    o.kv_window = a->window;
    o.kv_device = a->kv_device;
    o.threads = 1;
    KK_ASSERT_OK(kk_engine_open(&o, &e, &err), &err);
    return e;
}

/* A family: a parent, forks, and forks of forks that have said something. */
struct family {
    struct kk_engine *e;
    struct kk_kept *k;
    struct kk_spool *sp;
    uint64_t number;
    struct kk_session *s[FORKS];
    struct kk_saved saved[FORKS];
    struct kk_snapshot *file[FORKS];
    uint32_t *history[FORKS], want[FORKS][NEW];
    size_t n[FORKS];
    int64_t device, host; /* bytes of all of them on the device, of tier blocks in host memory */
};

static int64_t device_bytes(const struct family *f)
{
    int64_t bytes = kk_kv_shared_bytes(f->e->pool);
    if (f->e->draft_pool) bytes += kk_kv_shared_bytes(f->e->draft_pool);
    for (int i = 0; i < FORKS; i++) {
        struct kk_session_info info = {0};
        if (f->s[i]) kk_session_describe(f->s[i], &info);
        bytes += info.kv_device_bytes + info.drafter_device_bytes;
    }
    return bytes;
}

static void make_family(struct family *f, const struct arm *a, struct kk_test_rng *r)
{
    struct kk_err err = {0};
    *f = (struct family){.e = open_arm(a), .number = 1000};
    KK_ASSERT_OK(kk_kept_open(&f->number, &f->k, &err), &err);
    f->s[0] = open_session(f->e);
    append_random(f->s[0], r, a->prompt, V);
    for (int i = 1; i < FORKS; i++) {
        struct kk_session *parent = f->s[i < 5 ? 0 : kk_test_below(r, (uint32_t)i)];
        KK_ASSERT_OK(kk_session_fork(parent, &f->s[i], &err), &err);
        if (i % 4) append_random(f->s[i], r, 1 + (int)kk_test_below(r, 30), V);
        if (i == 6) append_random(f->s[i], r, 200, V); /* over blocks and rings */
    }
    for (int i = 0; i < FORKS; i++) {
        struct kk_session *alone = NULL;
        f->n[i] = f->s[i]->n;
        f->history[i] = kk_array(f->n[i], sizeof(uint32_t));
        memcpy(f->history[i], f->s[i]->history, f->n[i] * sizeof(uint32_t));
        alone = open_session(f->e);
        append_ids(alone, f->history[i], f->n[i]);
        go_on(alone, NEW, f->want[i]);
        kk_session_close(alone);
    }
    f->device = device_bytes(f);
    f->host = kk_kv_pool_host_bytes(f->e->pool);
}

static void end_family(struct family *f)
{
    for (int i = 0; i < FORKS; i++) {
        kk_session_close(f->s[i]);
        kk_saved_release(f->k, &f->saved[i]);
        kk_free(f->history[i]);
        if (f->sp) kk_kept_remove(f->k, f->file[i]);
    }
    assert_int_equal(kk_kept_host_bytes(f->k), 0);
    assert_int_equal(kk_kv_shared_bytes(f->e->pool), 0);
    assert_int_equal(kk_kv_pool_host_bytes(f->e->pool), 0);
    kk_kept_close(f->k);
    kk_spool_close(f->sp);
    kk_engine_close(f->e);
}

static void save(struct family *f, int i, int in_memory)
{
    struct kk_err err = {0};
    f->saved[i].in_memory = in_memory;
    KK_ASSERT_OK(kk__session_keep(f->s[i], f->k, &f->saved[i], &err), &err);
    kk_session_close(f->s[i]);
    f->s[i] = NULL;
}

/* The rows of a session come back, and take what was foretold. */
static void come_back(struct family *f, int i)
{
    struct kk_err err = {0};
    struct kk_kv_pool *p = f->e->pool;
    const int64_t before = kk_kv_shared_bytes(p), room = kk_saved_room(&f->saved[i], p);
    KK_ASSERT_OK(
        kk__session_return(f->e, f->k, &f->saved[i], f->history[i], f->n[i], &f->s[i], &err), &err);
    const int64_t took = kk_kv_shared_bytes(p) - before + kk_kv_device_bytes(f->s[i]->kv);
    assert_in_range(room - took, 0, room / 8); /* pieces of a ring go back into it */
    kk_saved_release(f->k, &f->saved[i]);
    KK_ASSERT_OK(kk_session_check(f->s[i], &err), &err);
}

static void all_go_on(struct family *f)
{
    uint32_t got[NEW];
    for (int i = 0; i < FORKS; i++) {
        go_on(f->s[i], NEW, got);
        assert_memory_equal(got, f->want[i], sizeof got);
    }
}

static int64_t saved_bytes(const struct family *f)
{
    int64_t n = kk_kept_host_bytes(f->k);
    for (int i = 0; i < FORKS; i++) n += (int64_t)f->saved[i].n;
    return n;
}

/* In host memory all take no more than on the device, and back there what they took. */
static void one_copy_in_host_memory(void **state)
{
    struct kk_test_rng r = kk_test_rng("host");
    (void)state;
    for (int a = 0; a < N_ARMS; a++) {
        struct family f;
        make_family(&f, &arms[a], &r);
        for (int i = 0; i < FORKS; i++) save(&f, (i * 2) % FORKS, 1);
        assert_int_equal(kk_kv_shared_bytes(f.e->pool), 0);
        assert_int_equal(kk_kv_pool_host_bytes(f.e->pool), 0);
        assert_true(saved_bytes(&f) < f.device + f.host + FORKS * 2048);
        for (int i = 0; i < FORKS; i++) come_back(&f, (i * 5 + 3) % FORKS);
        assert_int_equal(kk_kept_host_bytes(f.k), 0);
        if (device_bytes(&f) > f.device)
            print_message("ARM %d %lld > %lld\n", a, (long long)device_bytes(&f),
                          (long long)f.device);
        assert_int_equal(kk_kv_pool_host_bytes(f.e->pool), f.host);
        all_go_on(&f);
        end_family(&f);
    }
}

/* Some go while others stay, come back while others go, and go on in between. */
static void they_come_and_go(void **state)
{
    struct kk_test_rng r = kk_test_rng("come and go");
    (void)state;
    for (int a = 0; a < N_SMALL; a++) {
        struct family f;
        make_family(&f, &arms[a], &r);
        int said[FORKS] = {0};
        for (int step = 0; step < 60; step++) {
            const int i = (int)kk_test_below(&r, FORKS);
            if (!f.s[i]) {
                come_back(&f, i);
            } else if (!said[i] && kk_test_below(&r, 6) == 0) {
                uint32_t got[NEW];
                go_on(f.s[i], NEW, got);
                assert_memory_equal(got, f.want[i], sizeof got);
                said[i] = 1;
                f.n[i] = f.s[i]->n;
                kk_free(f.history[i]);
                f.history[i] = kk_array(f.n[i], sizeof(uint32_t));
                memcpy(f.history[i], f.s[i]->history, f.n[i] * sizeof(uint32_t));
            } else {
                save(&f, i, 1);
            }
        }
        for (int i = 0; i < FORKS; i++) {
            struct kk_session *alone = NULL;
            uint32_t got[NEW], want[NEW];
            if (!f.s[i]) come_back(&f, i);
            alone = open_session(f.e);
            append_ids(alone, f.history[i], f.n[i]);
            go_on(alone, NEW, want);
            go_on(f.s[i], NEW, got);
            assert_memory_equal(got, want, sizeof got);
            kk_session_close(alone);
        }
        end_family(&f);
    }
}

/* ---- files ---- */

static int all_kept(void *arg, const char *name)
{
    struct kk_kept *k = arg;
    return kk_kept_found(k, name) || name[0] == 's';
}

static void open_files(struct family *f, const char *dir)
{
    struct kk_err err = {0};
    const struct kk_spool_options o = {.dir = dir, .keep = all_kept, .arg = f->k};
    mkdir(dir, 0700);
    KK_ASSERT_OK(kk_spool_open(&o, &f->sp, &err), &err);
    kk_kept_spool(f->k, f->sp);
    KK_ASSERT_OK(kk_kept_load(f->k, &err), &err);
}

static int64_t dir_bytes(const char *dir, int *files)
{
    char path[600], name[900];
    int64_t n = 0;
    *files = 0;
    snprintf(path, sizeof path, "%s/snapshots", dir);
    DIR *d = opendir(path);
    assert_non_null(d);
    for (struct dirent *f; (f = readdir(d));) {
        struct stat st;
        snprintf(name, sizeof name, "%s/%s", path, f->d_name);
        if (f->d_name[0] != '.' && !stat(name, &st)) n += st.st_size, ++*files;
    }
    closedir(d);
    return n;
}

static void write_file(struct family *f, int i)
{
    struct kk_err err = {0};
    char name[20];
    snprintf(name, sizeof name, "s%d.%d", i, (int)++f->number);
    KK_ASSERT_OK(kk_kept_write(f->k, &f->saved[i], name, (int64_t)f->n[i], 1, &f->file[i], &err),
                 &err);
    assert_int_equal(f->saved[i].n, 0);
}

static int read_file(struct family *f, int i, struct kk_err *err)
{
    int rc = kk_kept_read(f->k, f->file[i], &f->saved[i], err);
    if (!rc)
        rc = kk__session_return(f->e, f->k, &f->saved[i], f->history[i], f->n[i], &f->s[i], err);
    kk_saved_release(f->k, &f->saved[i]);
    return rc;
}

/* The process ends and another one begins: names of files are all that is left. */
static void restart(struct family *f, const char *dir)
{
    struct kk_err err = {0};
    kk_spool_close(f->sp);
    kk_kept_close(f->k);
    f->number = 1;
    KK_ASSERT_OK(kk_kept_open(&f->number, &f->k, &err), &err);
    for (int i = 0; i < FORKS; i++) {
        struct kk_snapshot *old = f->file[i];
        f->file[i] = kk_snapshot_new(old->name, old->tokens);
        kk_kept_forget(old);
    }
    open_files(f, dir);
    assert_true(f->number > 1000);
    for (int i = 0; i < FORKS; i++) {
        int rc = kk_kept_adopt(f->k, &f->file[i], &err);
        if (rc) { /* a test has damaged it */
            assert_true(rc == KK_EFORMAT || rc == KK_ENOENT);
            kk_kept_remove(f->k, f->file[i]);
            f->file[i] = NULL;
        }
    }
    kk_kept_sweep(f->k);
}

static const char *dir_of(const char *what, int a)
{
    char name[40];
    snprintf(name, sizeof name, "%s%d", what, a);
    return kk_test_path(name);
}

/* On disk all take what they take in host memory; a restart finds them, and they share again; when
 * they have gone there is no file left. */
static void one_copy_on_disk(void **state)
{
    struct kk_test_rng r = kk_test_rng("disk");
    (void)state;
    for (int a = 0; a < N_SMALL; a++) {
        struct family f;
        struct kk_err err = {0};
        const char *dir = dir_of("disk", a);
        int files;
        make_family(&f, &arms[a], &r);
        open_files(&f, dir);
        int64_t own = 0;
        for (int i = 0; i < FORKS; i++) {
            save(&f, i, 0);
            own += (int64_t)f.saved[i].n;
            write_file(&f, i);
        }
        assert_int_equal(kk_kept_host_bytes(f.k), 0);
        kk_spool_drain(f.sp);
        assert_true(dir_bytes(dir, &files) < f.device + f.host + FORKS * 4096);
        assert_true(dir_bytes(dir, &files) > own);
        restart(&f, dir);
        for (int i = 0; i < FORKS; i++)
            KK_ASSERT_OK(read_file(&f, (i * 5 + 3) % FORKS, &err), &err);
        if (device_bytes(&f) > f.device)
            print_message("ARM %d %lld > %lld\n", a, (long long)device_bytes(&f),
                          (long long)f.device);
        all_go_on(&f);
        for (int i = 0; i < FORKS; i++) { /* the newer file has what is new alone */
            struct kk_snapshot *old = f.file[i];
            f.n[i] = f.s[i]->n;
            kk_free(f.history[i]);
            f.history[i] = kk_array(f.n[i], sizeof(uint32_t));
            memcpy(f.history[i], f.s[i]->history, f.n[i] * sizeof(uint32_t));
            save(&f, i, 0);
            write_file(&f, i);
            kk_kept_remove(f.k, old);
        }
        kk_spool_drain(f.sp);
        for (int i = 0; i < FORKS; i++) KK_ASSERT_OK(read_file(&f, i, &err), &err);
        for (int i = 0; i < FORKS; i++) {
            kk_kept_remove(f.k, f.file[i]);
            f.file[i] = NULL;
        }
        kk_spool_drain(f.sp);
        assert_int_equal(dir_bytes(dir, &files), 0);
        assert_int_equal(files, 0);
        end_family(&f);
    }
}

/* One bit of a file of blocks, or the file itself. */
static void damage(const char *dir, struct kk_test_rng *r, int cut)
{
    char path[600], name[900];
    snprintf(path, sizeof path, "%s/snapshots", dir);
    DIR *d = opendir(path);
    int n = 0;
    name[0] = 0;
    for (struct dirent *f; (f = readdir(d));)
        if (!strncmp(f->d_name, "blocks.", 7) && kk_test_below(r, (uint32_t)++n) == 0)
            snprintf(name, sizeof name, "%s/%s", path, f->d_name);
    closedir(d);
    assert_true(n > 0);
    if (cut) {
        assert_int_equal(unlink(name), 0);
        return;
    }
    struct stat st;
    unsigned char c;
    int fd = open(name, O_RDWR);
    assert_int_equal(fstat(fd, &st), 0);
    const off_t at = (off_t)kk_test_below(r, (uint32_t)st.st_size);
    assert_int_equal(pread(fd, &c, 1, at), 1);
    c ^= (unsigned char)(1u << kk_test_below(r, 8));
    assert_int_equal(pwrite(fd, &c, 1, at), 1);
    close(fd);
}

/* A block that is damaged or gone: those who need it say so, the others come back; and who has such
 * a block on the device yet writes it again. */
static void a_broken_block_is_found(void **state)
{
    struct kk_test_rng r = kk_test_rng("broken block");
    int lost = 0, back = 0;
    (void)state;
    for (int round = 0; round < 12; round++) {
        const struct arm *a = &arms[round % 3];
        struct family f;
        struct kk_err err = {0};
        const char *dir = dir_of("broken", round);
        make_family(&f, a, &r);
        open_files(&f, dir);
        const int resident = round % 4 == 3; /* one of them is still on the device */
        for (int i = resident; i < FORKS; i++) {
            save(&f, i, 0);
            write_file(&f, i);
        }
        kk_spool_drain(f.sp);
        damage(dir, &r, round % 2);
        if (!resident && round % 4 < 2) { /* the parent's file has nothing to read again */
            restart(&f, dir);
        }
        for (int i = resident; i < FORKS; i++) {
            int rc = f.file[i] ? read_file(&f, i, &err) : KK_ENOENT;
            if (!rc) {
                back++;
                continue;
            }
            assert_true(rc == KK_EFORMAT || rc == KK_ENOENT);
            assert_null(f.s[i]);
            kk_kept_remove(f.k, f.file[i]);
            f.file[i] = NULL;
            lost++;
            f.s[i] = open_session(f.e);
            append_ids(f.s[i], f.history[i], f.n[i]);
        }
        for (int i = 0; i < FORKS; i++) { /* again, all of them, once more where a block is gone */
            kk_kept_remove(f.k, f.file[i]);
            for (int tries = 0; tries < 2; tries++) {
                KK_ASSERT_OK(kk__session_keep(f.s[i], f.k, &f.saved[i], &err), &err);
                write_file(&f, i);
                kk_spool_drain(f.sp);
                if (kk_spool_has(f.sp, f.file[i]->name)) break;
                kk_kept_failed(f.k, f.file[i]);
                f.file[i] = NULL;
            }
            assert_non_null(f.file[i]);
        }
        all_go_on(&f);
        end_family(&f);
    }
    assert_true(lost > 10 && back > 10);
}

/* The disk is full at one moment or another: a session's file that is there finds its blocks, and
 * what could not be written leaves nothing. */
static void a_full_disk_in_the_middle(void **state)
{
    struct kk_test_rng r = kk_test_rng("full");
    int written = 0, failed = 0;
    (void)state;
    for (int round = 0; round < 8; round++) {
        struct family f;
        struct kk_err err = {0};
        const char *dir = dir_of("full", round);
        int files;
        make_family(&f, &arms[0], &r);
        open_files(&f, dir);
        for (int i = 0; i < FORKS; i++) {
            save(&f, i, 0);
            kk_spool_drain(f.sp);
            kk_fs_fail_writes(i == round || (round > 4 && i < round) ? ENOSPC : 0);
            write_file(&f, i);
            kk_spool_drain(f.sp);
            kk_fs_fail_writes(0);
            if (kk_spool_has(f.sp, f.file[i]->name)) {
                written++;
                continue;
            }
            failed++;
            kk_kept_failed(f.k, f.file[i]); /* as the runtime does when it is told */
            f.file[i] = NULL;
        }
        for (int i = 0; i < FORKS; i++) {
            if (f.file[i])
                KK_ASSERT_OK(read_file(&f, i, &err), &err);
            else
                f.s[i] = open_session(f.e);
            if (!f.file[i]) append_ids(f.s[i], f.history[i], f.n[i]);
        }
        all_go_on(&f);
        for (int i = 0; i < FORKS; i++) kk_kept_remove(f.k, f.file[i]);
        memset(f.file, 0, sizeof f.file);
        kk_spool_drain(f.sp);
        dir_bytes(dir, &files);
        assert_int_equal(files, 0);
        end_family(&f);
    }
    assert_true(written > 20 && failed > 8);
}

/* Out of memory at any moment of saving and coming back. */
static void no_memory(void **state)
{
    static const int which[] = {0, 3, 4};
    struct kk_test_rng r = kk_test_rng("no memory");
    (void)state;
    for (int a = 0; a < 3 && which[a] < N_SMALL; a++) {
        struct family f;
        struct kk_err err = {0};
        int done = 0;
        make_family(&f, &arms[which[a]], &r);
        open_files(&f, dir_of("memory", a));
        for (int64_t k = 1, hit = 1; hit; k += which[a] == 4 ? 17 : 1) {
            struct kk_session *s = NULL;
            struct kk_saved saved = {.in_memory = 1}, read = {0};
            struct kk_snapshot *file = NULL;
            const int i = (int)(k % FORKS);
            char name[20];
            snprintf(name, sizeof name, "s%d.%d", i, (int)++f.number);
            kk_mem_fail_after(k);
            int rc = kk__session_keep(f.s[i], f.k, &saved, &err);
            if (!rc) rc = kk__session_return(f.e, f.k, &saved, f.history[i], f.n[i], &s, &err);
            kk_session_close(s);
            s = NULL;
            if (!rc) rc = kk_kept_write(f.k, &saved, name, 1, 0, &file, &err);
            if (!rc) kk_spool_drain(f.sp);
            if (!rc) rc = kk_kept_read(f.k, file, &read, &err);
            if (!rc) rc = kk__session_return(f.e, f.k, &read, f.history[i], f.n[i], &s, &err);
            hit = kk_mem_fail_hit();
            kk_mem_fail_after(0);
            assert_true(!rc || hit);
            done += !rc;
            kk_saved_release(f.k, &read);
            kk_saved_release(f.k, &saved);
            kk_session_close(s);
            kk_kept_remove(f.k, file);
            KK_ASSERT_OK(kk_session_check(f.s[i], &err), &err);
        }
        assert_true(done > 0);
        all_go_on(&f);
        end_family(&f);
    }
}

/* A block that a step made room for and did not use is not shared: nobody would make it his own. */
static void a_block_without_rows(void **state)
{
    struct arm a = arms[1];
    struct kk_test_rng r = kk_test_rng("without rows");
    a.draft = "wrong";
    struct kk_engine_options o = kk_engine_defaults();
    struct kk_engine *e = NULL;
    struct kk_err err = {0};
    (void)state;
    o.model = a.model;
    o.kv = a.kv;
    o.draft = "wrong";
    o.draft_width = 16;
    o.threads = 1;
    KK_ASSERT_OK(kk_engine_open(&o, &e, &err), &err);
    for (int n = 100; n < 140; n += 3) {
        struct kk_session *s[3] = {NULL};
        uint32_t got[NEW], want[NEW];
        s[0] = open_session(e);
        append_random(s[0], &r, n, V);
        go_on(s[0], NEW, got);
        KK_ASSERT_OK(kk_session_fork(s[0], &s[1], &err), &err);
        for (int i = 0; i < 2; i++) append_random(s[i], &r, 40, V);
        for (int i = 0; i < 2; i++) {
            s[2] = open_session(e);
            append_ids(s[2], s[i]->history, s[i]->n);
            go_on(s[2], NEW, want);
            go_on(s[i], NEW, got);
            assert_memory_equal(got, want, sizeof got);
            kk_session_close(s[2]);
        }
        kk_session_close(s[0]);
        kk_session_close(s[1]);
    }
    kk_engine_close(e);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(one_copy_in_host_memory),   cmocka_unit_test(they_come_and_go),
        cmocka_unit_test(one_copy_on_disk),          cmocka_unit_test(a_broken_block_is_found),
        cmocka_unit_test(a_full_disk_in_the_middle), cmocka_unit_test(no_memory),
        cmocka_unit_test(a_block_without_rows),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
