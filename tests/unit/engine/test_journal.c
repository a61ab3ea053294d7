/* The journal: what was announced is there after any end, whatever the disk does. kk-test: tsan */
#include "unit/engine/journal_model.h"

#include <fcntl.h>
#include <linux/capability.h>
#include <signal.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/mem.h"
#include "unit/engine/fault_vfs.h"

static struct probe probe;

static struct kk_journal *reopen(const char *dir)
{
    struct kk_journal_options o = journal_options(dir, &probe);
    probe_init(&probe);
    return journal_open(&o);
}

static int64_t ok(int64_t seq, const struct kk_err *err)
{
    if (seq < 0) fail_msg("%s: %s", kk_errname((int)seq), err->msg);
    return seq;
}

/* Operations at random, so many; the number of the last one. */
static int64_t send_random(struct model *m, struct kk_test_rng *r, struct kk_journal *j,
                           struct model_entries *t, int n)
{
    int64_t seq = 0;
    struct kk_err err = {0};
    for (int i = 0; i < n; i++) {
        struct model_op op = model_random(m, r);
        int64_t before = seq;
        seq = ok(model_send(m, &op, j, t, &err), &err);
        assert_true(before == 0 || seq == before + 1);
        model_apply(m, &op);
        if (kk_test_below(r, 10) == 0) kk_journal_flush(j);
    }
    kk_journal_flush(j);
    return seq;
}

/* Write `text` to a database behind the journal's back. */
static void meddle(const char *dir, const char *text)
{
    char path[512];
    sqlite3 *sq = NULL;
    char *msg = NULL;
    snprintf(path, sizeof path, "%s/journal.db", dir);
    int rc =
        sqlite3_open_v2(path, &sq, SQLITE_OPEN_READWRITE | SQLITE_OPEN_CREATE, fault.real->zName);
    assert_int_equal(rc, SQLITE_OK);
    if (sqlite3_exec(sq, text, NULL, NULL, &msg)) fail_msg("%s", msg);
    sqlite3_close(sq);
}

/* ---- what it is for ---- */

static void test_random_operations(void **state)
{
    struct kk_test_rng r = kk_test_rng("operations");
    const char *dir = kk_test_path("random");
    static struct model m;
    struct model_entries t;
    struct kk_journal_stats stats;
    (void)state;
    for (int round = 0; round < 6; round++) {
        struct kk_journal *j = reopen(dir);
        model_expect(&m, j, &t);
        int64_t seq = send_random(&m, &r, j, &t, round % 2 ? 2000 : 100);
        if (round % 3) assert_true(probe_await(&probe, seq, 0));
        kk_journal_stats(j, &stats);
        assert_int_equal(stats.queued, seq);
        assert_int_equal(stats.broken, 0);
        journal_close(j);
        assert_int_equal(probe.durable, seq);
        assert_false(probe.backwards);
        assert_int_equal(probe.broken, 0);
    }
}

static int count_one(void *arg, const struct kk_journal_session *s, struct kk_err *err)
{
    int *n = arg;
    (void)s, (void)err;
    ++*n;
    return 0;
}

/* Every entry, in the order of creation. */
struct found_all {
    struct kk_journal_entry **e;
    int n, spare;
};

static int note_entry(void *arg, const struct kk_journal_session *s, struct kk_err *err)
{
    struct found_all *all = arg;
    (void)err;
    all->e[all->n++] = s->entry;
    return 0;
}

static int refuse_all(void *arg, const struct kk_journal_session *s, struct kk_err *err)
{
    (void)arg;
    return kk_fail(err, KK_ENOENT, "no place for %s", s->id);
}

/* A callback's refusal ends the walk; odd ids and labels come back as they are. */
static void test_each(void **state)
{
    const char *dir = kk_test_path("each");
    struct kk_journal *j = reopen(dir);
    struct kk_journal_entry *e;
    struct kk_err err = {0};
    char longest[KK_JOURNAL_TEXT + 2];
    int n = 0;
    (void)state;
    memset(longest, 'x', sizeof longest);
    longest[KK_JOURNAL_TEXT + 1] = 0;
    assert_int_equal(kk_journal_create(j, longest, NULL, NULL, 0, &e, &err), KK_ERANGE);
    assert_int_equal(kk_journal_create(j, "a", longest, NULL, 0, &e, &err), KK_ERANGE);
    longest[KK_JOURNAL_TEXT] = 0;
    assert_int_equal(ok(kk_journal_create(j, longest, NULL, NULL, 0, &e, &err), &err), 1);
    ok(kk_journal_create(j, "b", "'; drop table run; --", NULL, 0, &e, &err), &err);
    journal_close(j);

    j = reopen(dir);
    KK_ASSERT_FAILS(kk_journal_each(j, refuse_all, NULL, &err), KK_ENOENT, &err, "no place for xx");
    journal_close(j);
    j = reopen(dir);
    KK_ASSERT_OK(kk_journal_each(j, count_one, &n, &err), &err);
    assert_int_equal(n, 2);
    journal_close(j);
}

/* The step of a thousand sessions is one transaction; many of them make the log fold. */
static void test_groups_and_folds(void **state)
{
    enum { SESSIONS = 300, STEPS = 80 };
    static struct kk_journal_entry *e[SESSIONS];
    const char *dir = kk_test_path("groups");
    struct kk_journal *j = reopen(dir);
    struct kk_journal_stats stats;
    struct kk_err err = {0};
    int64_t seq = 0;
    int n = 0;
    (void)state;
    for (int i = 0; i < SESSIONS; i++)
        ok(kk_journal_create(j, "id", NULL, NULL, 0, &e[i], &err), &err);
    for (uint32_t step = 0; step < STEPS; step++) {
        for (int i = 0; i < SESSIONS; i++)
            seq = ok(kk_journal_append(j, e[i], step, &step, 1, &err), &err);
        kk_journal_flush(j);
        assert_true(probe_await(&probe, seq, 0));
        assert_int_equal(kk_journal_durable(j), seq);
    }
    kk_journal_stats(j, &stats);
    assert_int_equal(stats.commits, STEPS);
    assert_int_equal(stats.queue_bytes, 0);
    assert_true(stats.folds >= 1);
    journal_close(j);
    j = reopen(dir);
    KK_ASSERT_OK(kk_journal_each(j, count_one, &n, &err), &err);
    assert_int_equal(n, SESSIONS);
    journal_close(j);
}

/* With the disk standing still the engine's thread goes on, up to the bound of the queue. */
static void test_never_waits(void **state)
{
    struct kk_journal_options o = journal_options(kk_test_path("slow"), &probe);
    struct kk_journal_entry *e;
    struct kk_journal_stats stats;
    struct kk_err err = {0};
    uint32_t ids[1000] = {0};
    int64_t seq = 0, last = 0;
    (void)state;
    o.queue_bytes = 100000;
    probe_init(&probe);
    struct kk_journal *j = journal_open(&o);
    fault.hold = 1;
    ok(kk_journal_create(j, "id", NULL, NULL, 0, &e, &err), &err);
    kk_journal_flush(j);
    for (int i = 0; i < 1000 && seq >= 0; i++) {
        seq = kk_journal_append(j, e, kk_journal_tokens(e), ids, 1000, &err);
        if (seq > 0) last = seq;
        kk_journal_flush(j);
    }
    KK_ASSERT_FAILS(seq, KK_EEXHAUSTED, &err, "of 100000 bytes wait");
    assert_int_equal(kk_journal_tokens(e), 24 * 1000); /* refused: nothing has changed */
    assert_int_equal(kk_journal_durable(j), 0);
    kk_journal_stats(j, &stats);
    assert_true(stats.queue_bytes > 95000 && stats.queue_bytes <= 100000);
    fault.hold = 0;
    assert_true(probe_await(&probe, last, 0));
    ok(kk_journal_append(j, e, kk_journal_tokens(e), ids, 1000, &err), &err);
    journal_close(j);
}

/* ---- a disk that fails ---- */

/* Whichever call fails, for however long: what is announced is there, and all is in the end. */
static void test_failing_calls(void **state)
{
    struct kk_test_rng r = kk_test_rng("faults");
    const int codes[] = {SQLITE_FULL, SQLITE_IOERR_WRITE, SQLITE_IOERR_FSYNC};
    int struck = 0;
    (void)state;
    for (int k = 1; k <= 30; k++) {
        static struct model m;
        struct model_entries t;
        char name[32];
        memset(&m, 0, sizeof m);
        snprintf(name, sizeof name, "fault%d", k);
        const char *dir = kk_test_path(name);
        struct kk_journal_options o = journal_options(dir, &probe);
        o.full = k % 2;
        probe_init(&probe);
        struct kk_journal *j = journal_open(&o);
        int64_t before = send_random(&m, &r, j, &t, 40);
        probe_await(&probe, before, 0);
        fault_arm(k / 2 + 1, k / 2 + 1 + kk_test_between(&r, 0, 6), codes[k % 3]);
        int64_t seq = send_random(&m, &r, j, &t, 150);
        assert_true(probe_await(&probe, seq, 0)); /* it heals by itself */
        fault_clear();
        struck += probe.broken;
        if (probe.broken) assert_non_null(strstr(probe.msg, "journal.db"));
        assert_false(probe.backwards);
        journal_close(j);
        j = reopen(dir);
        model_expect(&m, j, &t);
        journal_close(j);
    }
    assert_true(struck > 15);
}

/* Full for good: nothing is announced, the queue fills, then the caller hears why; close says what
 * is missing, and what was announced before is there. */
static void test_full_disk(void **state)
{
    const char *dir = kk_test_path("full");
    struct kk_journal_options o = journal_options(dir, &probe);
    struct kk_journal_entry *e;
    struct kk_journal_stats stats;
    struct kk_err err = {0};
    uint32_t ids[1000] = {0};
    int n = 0;
    (void)state;
    o.queue_bytes = 20000;
    probe_init(&probe);
    struct kk_journal *j = journal_open(&o);
    int64_t seq = ok(kk_journal_create(j, "id", NULL, NULL, 0, &e, &err), &err);
    kk_journal_flush(j);
    assert_true(probe_await(&probe, seq, 0));
    fault_arm(1, 1000000, SQLITE_FULL);
    for (int i = 0; i < 4; i++)
        ok(kk_journal_append(j, e, (uint64_t)i * 1000, ids, 1000, &err), &err);
    kk_journal_flush(j);
    assert_false(probe_await(&probe, seq + 1, 1));
    assert_non_null(strstr(probe.msg, "full"));
    KK_ASSERT_FAILS(kk_journal_append(j, e, 4000, ids, 1000, &err), KK_EIO, &err, "full");
    assert_int_equal(kk_journal_durable(j), seq);
    kk_journal_stats(j, &stats);
    assert_true(stats.broken);
    assert_non_null(strstr(stats.msg, "full"));
    usleep(20000);
    assert_int_equal(probe.broken, 1); /* once an outage */
    KK_ASSERT_FAILS(kk_journal_close(j, &err), KK_EIO, &err, "4 operations are not in the journal");
    fault_clear();
    j = reopen(dir);
    KK_ASSERT_OK(kk_journal_each(j, count_one, &n, &err), &err);
    assert_int_equal(n, 1);
    journal_close(j);
}

/* The kernel's own refusal, and a limit that is lifted again. */
static void test_file_size_limit(void **state)
{
    const char *dir = kk_test_path("limit");
    struct rlimit limit, small;
    static struct model m;
    struct model_entries t;
    struct kk_test_rng r = kk_test_rng("limit");
    (void)state;
    struct kk_journal *j = reopen(dir);
    signal(SIGXFSZ, SIG_IGN);
    assert_int_equal(getrlimit(RLIMIT_FSIZE, &limit), 0);
    small = limit;
    small.rlim_cur = 100000;
    assert_int_equal(setrlimit(RLIMIT_FSIZE, &small), 0);
    int64_t seq = send_random(&m, &r, j, &t, 1500);
    int reached = probe_await(&probe, seq, 1);
    assert_int_equal(setrlimit(RLIMIT_FSIZE, &limit), 0);
    assert_false(reached);
    assert_true(probe_await(&probe, seq, 0));
    journal_close(j);
    j = reopen(dir);
    model_expect(&m, j, &t);
    journal_close(j);
}

/* A file removed under the journal takes writes and keeps none: nothing may be announced. */
static void test_removed_file(void **state)
{
    const char *names[] = {"journal.db", "journal.db-wal"};
    (void)state;
    for (int i = 0; i < 2; i++) {
        char path[512];
        struct kk_journal_entry *e;
        struct kk_err err = {0};
        const char *dir = kk_test_path(i ? "removed1" : "removed0");
        struct kk_journal *j = reopen(dir);
        snprintf(path, sizeof path, "%s/%s", dir, names[i]);
        assert_int_equal(unlink(path), 0);
        int64_t seq = ok(kk_journal_create(j, "id", NULL, NULL, 0, &e, &err), &err);
        kk_journal_flush(j);
        assert_false(probe_await(&probe, seq, 1));
        assert_non_null(strstr(probe.msg, "was removed or replaced while in use"));
        KK_ASSERT_FAILS(kk_journal_close(j, &err), KK_EIO, &err, "1 operations are not");
    }
}

/* ---- directories and files that are not right ---- */

static int try_open(const char *dir, uint64_t fingerprint, struct kk_err *err)
{
    struct kk_journal *j = NULL;
    struct kk_journal_options o = journal_options(dir, &probe);
    if (fingerprint) o.fingerprint = fingerprint;
    probe_init(&probe);
    int rc = kk_journal_open(&o, &j, err);
    if (!rc) journal_close(j);
    return rc;
}

static void test_bad_directories(void **state)
{
    struct kk_err err = {0};
    const char *file = kk_test_file("a-file", "x", 1);
    char below[512];
    (void)state;
    KK_ASSERT_FAILS(try_open("", 0, &err), KK_EINVAL, &err, "no directory is named");
    KK_ASSERT_FAILS(try_open(NULL, 0, &err), KK_EINVAL, &err, "no directory is named");
    KK_ASSERT_FAILS(try_open(file, 0, &err), KK_EIO, &err, "is not a directory");
    snprintf(below, sizeof below, "%s/x", file);
    KK_ASSERT_FAILS(try_open(below, 0, &err), KK_EIO, &err, "Not a directory");
    KK_ASSERT_FAILS(try_open(kk_test_path("no/such"), 0, &err), KK_EIO, &err, "No such file");
    char *deep = memset(kk_calloc(6000, 1), 'd', 5999);
    assert_true(try_open(deep, 0, &err) < 0);
    kk_free(deep);
}

/* Give up the right of root to write anywhere, for this process. */
static void be_ordinary(void)
{
    struct __user_cap_header_struct head = {_LINUX_CAPABILITY_VERSION_3, 0};
    struct __user_cap_data_struct none[2] = {{0, 0, 0}, {0, 0, 0}};
    syscall(SYS_capset, &head, none);
}

static void test_read_only_directory(void **state)
{
    const char *dir = kk_test_path("read-only");
    int status;
    (void)state;
    assert_int_equal(try_open(dir, 0, NULL), 0);
    assert_int_equal(chmod(dir, 0555), 0);
    pid_t child = fork();
    if (child == 0) {
        char lock[512];
        struct kk_err err = {0};
        be_ordinary();
        int rc = try_open(dir, 0, &err);
        int first = rc == KK_EIO && strstr(err.msg, "unable to open database file") != NULL;
        snprintf(lock, sizeof lock, "%s/lock", dir);
        chmod(dir, 0755), unlink(lock), chmod(dir, 0555);
        rc = try_open(dir, 0, &err);
        _exit(first * 2 + (rc == KK_EIO && strstr(err.msg, "cannot write in") != NULL));
    }
    assert_int_equal(waitpid(child, &status, 0), child);
    chmod(dir, 0755);
    assert_true(WIFEXITED(status));
    assert_int_equal(WEXITSTATUS(status) & 1, 1);
}

static void test_two_on_one_directory(void **state)
{
    const char *dir = kk_test_path("two");
    struct kk_err err = {0};
    char words[64];
    int status;
    (void)state;
    struct kk_journal *j = reopen(dir);
    snprintf(words, sizeof words, "is in use by process %ld:", (long)getpid());
    struct probe kept = probe;
    pid_t child = fork();
    if (child == 0) {
        struct kk_journal_options o = journal_options(dir, &kept);
        int rc = kk_journal_open(&o, &j, &err);
        _exit(rc == KK_EEXHAUSTED && strstr(err.msg, words) ? 42 : 1);
    }
    assert_int_equal(waitpid(child, &status, 0), child);
    assert_int_equal(WEXITSTATUS(status), 42);
    KK_ASSERT_FAILS(try_open(dir, 0, &err), KK_EEXHAUSTED, &err, words);
    journal_close(j);
    KK_ASSERT_OK(try_open(dir, 0, &err), &err);
}

static void test_refused_databases(void **state)
{
    const char *dir = kk_test_path("refused");
    struct kk_err err = {0};
    (void)state;
    KK_ASSERT_OK(try_open(dir, 0, &err), &err);
    KK_ASSERT_FAILS(try_open(dir, 1, &err), KK_EINVARIANT, &err,
                    "has sessions of model 'mini' (fedcba9876543210), not of 'mini' "
                    "(0000000000000001): give another directory");
    meddle(dir, "PRAGMA user_version=3");
    KK_ASSERT_FAILS(try_open(dir, 0, &err), KK_EUNSUPPORTED, &err, "has version 3");
    meddle(dir, "PRAGMA user_version=2; PRAGMA application_id=5");
    KK_ASSERT_FAILS(try_open(dir, 0, &err), KK_EFORMAT, &err, "is not a journal of kakeya");
    mkdir(kk_test_path("foreign"), 0755);
    meddle(kk_test_path("foreign"), "CREATE TABLE t(x)");
    KK_ASSERT_FAILS(try_open(kk_test_path("foreign"), 0, &err), KK_EFORMAT, &err, "not a journal");
}

/* ---- forks share pieces ---- */

static int64_t ask_number(const char *dir, const char *question)
{
    sqlite3 *sq = NULL;
    sqlite3_stmt *st = NULL;
    char path[600];
    snprintf(path, sizeof path, "%s/journal.db", dir);
    assert_int_equal(sqlite3_open_v2(path, &sq, SQLITE_OPEN_READWRITE, fault.real->zName),
                     SQLITE_OK);
    assert_int_equal(sqlite3_prepare_v2(sq, question, -1, &st, NULL), SQLITE_OK);
    assert_int_equal(sqlite3_step(st), SQLITE_ROW);
    const int64_t n = sqlite3_column_int64(st, 0);
    sqlite3_finalize(st);
    sqlite3_close(sq);
    return n;
}

struct lengths {
    int n;
    size_t sum;
};

static int check_ids(void *arg, const struct kk_journal_session *s, struct kk_err *err)
{
    struct lengths *l = arg;
    for (size_t i = 0; i < s->n; i++)
        if (s->ids[i] != (uint32_t)i) return kk_fail(err, KK_EINVAL, "%s: token %zu", s->id, i);
    l->n++;
    l->sum += s->n;
    return 0;
}

static struct lengths look(const char *dir)
{
    struct lengths l = {0};
    struct kk_err err = {0};
    struct kk_journal *j = reopen(dir);
    KK_ASSERT_OK(kk_journal_each(j, check_ids, &l, &err), &err);
    journal_close(j);
    return l;
}

/* 256 forks of 4100 tokens hold 100 each, and the pieces of one; whoever is left when the parent
 * and others have gone has all of them, and the last takes them along. */
static void test_forks_share_pieces(void **state)
{
    enum { N = 4100, FORKS = 256 };
    static uint32_t ids[N + 10];
    static struct kk_journal_entry *e[FORKS + 2];
    const char *dir = kk_test_path("forks");
    struct kk_err err = {0};
    char name[32];
    (void)state;
    for (int i = 0; i < N + 10; i++) ids[i] = (uint32_t)i;
    struct kk_journal *j = reopen(dir);
    ok(kk_journal_create(j, "first", NULL, NULL, 0, &e[0], &err), &err);
    ok(kk_journal_append(j, e[0], 0, ids, N, &err), &err);
    for (int i = 1; i <= FORKS; i++) { /* from the log, then from pieces; of forks, too */
        snprintf(name, sizeof name, "fork %d", i);
        ok(kk_journal_fork(j, e[i / 2], N, name, NULL, &e[i], &err), &err);
        ok(kk_journal_append(j, e[i], N, ids + N, (size_t)i % 10 + 1, &err), &err);
    }
    ok(kk_journal_fork(j, e[FORKS], 2500, "short", NULL, &e[FORKS + 1], &err), &err);
    journal_close(j);
    assert_int_equal(ask_number(dir, "SELECT count(*) FROM shared"), 4);
    assert_int_equal(ask_number(dir, "SELECT max(refs) FROM shared"), FORKS + 2);
    assert_true(ask_number(dir, "SELECT sum(length(ids)) FROM piece WHERE typeof(ids) = 'blob'") <
                4 * (FORKS + 2) * 120 + 4 * 500);
    struct lengths l = look(dir);
    assert_int_equal(l.n, FORKS + 2);
    for (int keep = 1; keep >= 0; keep--) { /* all but the fifth; and it */
        static struct kk_journal_entry *found[FORKS + 2];
        struct found_all all = {found, 0, 5};
        j = reopen(dir);
        KK_ASSERT_OK(kk_journal_each(j, note_entry, &all, &err), &err);
        for (int i = 0; i < all.n; i++)
            if (!keep || i != all.spare) ok(kk_journal_remove(j, found[i], &err), &err);
        journal_close(j);
        l = look(dir);
        assert_int_equal(l.n, keep);
        assert_int_equal(ask_number(dir, "SELECT count(*) FROM shared"), 4 * keep);
        assert_int_equal(ask_number(dir, "SELECT coalesce(sum(refs), 0) FROM shared"), 4 * keep);
    }
    assert_int_equal(l.sum, 0);
}

/* A journal of version 1, which has no shared pieces, is read, and forks share from then on. */
static void test_older_version(void **state)
{
    static uint32_t ids[2500];
    const char *dir = kk_test_path("older");
    struct kk_journal_entry *e, *f;
    struct kk_err err = {0};
    (void)state;
    for (int i = 0; i < 2500; i++) ids[i] = (uint32_t)i;
    struct kk_journal *j = reopen(dir);
    ok(kk_journal_create(j, "first", NULL, NULL, 0, &e, &err), &err);
    ok(kk_journal_append(j, e, 0, ids, 2500, &err), &err);
    journal_close(j);
    meddle(dir, "DROP TABLE shared; PRAGMA user_version=1");
    j = reopen(dir);
    struct found_all all = {&e, 0, 0};
    KK_ASSERT_OK(kk_journal_each(j, note_entry, &all, &err), &err);
    ok(kk_journal_fork(j, e, 2500, "fork", NULL, &f, &err), &err);
    journal_close(j);
    assert_int_equal(ask_number(dir, "PRAGMA user_version"), 2);
    assert_int_equal(ask_number(dir, "SELECT sum(refs) FROM shared"), 4);
    struct lengths l = look(dir);
    assert_int_equal(l.n, 2);
    assert_int_equal(l.sum, 5000);
}

/* A number of a session is not given again while a shared piece has it in its key. */
static void test_numbers_of_shared_pieces(void **state)
{
    static uint32_t ids[1500];
    const char *dir = kk_test_path("numbers");
    struct kk_journal_entry *e[3];
    struct kk_err err = {0};
    (void)state;
    for (int i = 0; i < 1500; i++) ids[i] = (uint32_t)i;
    struct kk_journal *j = reopen(dir);
    for (int i = 0; i < 2; i++) { /* the second, with the higher number, is the first's parent */
        ok(kk_journal_create(j, "id", NULL, NULL, 0, &e[i], &err), &err);
        ok(kk_journal_append(j, e[i], 0, ids, 1500, &err), &err);
    }
    ok(kk_journal_fork(j, e[1], 1500, "fork", NULL, &e[2], &err), &err);
    ok(kk_journal_remove(j, e[1], &err), &err);
    journal_close(j);
    meddle(dir, "UPDATE session SET n = 0 WHERE n = 3; UPDATE piece SET at = at & 4294967295"
                " WHERE at >> 32 = 3");
    j = reopen(dir);
    ok(kk_journal_create(j, "new", NULL, NULL, 0, &e[0], &err), &err);
    ok(kk_journal_append(j, e[0], 0, ids, 1500, &err), &err);
    ok(kk_journal_fork(j, e[0], 1500, "its", NULL, &e[1], &err), &err);
    journal_close(j);
    struct lengths l = look(dir);
    assert_int_equal(l.n, 4);
    assert_int_equal(l.sum, 6000);
    assert_int_equal(ask_number(dir, "SELECT count(*) FROM shared"), 2);
}

/* A history with a hole, or a blob cut short, is found and named. */
static void test_damaged_history(void **state)
{
    const char *damage[] = {"DELETE FROM piece WHERE rowid = (SELECT min(at) FROM piece)",
                            "DELETE FROM piece WHERE rowid = (SELECT max(at) FROM piece)",
                            "UPDATE piece SET ids = substr(ids, 5)",
                            "UPDATE piece SET ids = NULL WHERE 0; UPDATE session SET tokens = 9",
                            "INSERT INTO run VALUES(1, 1, 99999, 0, x'00000000')",
                            "INSERT INTO run VALUES(1, 1, 2500, 0, x'0000')"};
    uint32_t ids[2500] = {0};
    (void)state;
    for (int i = 0; i < 6; i++) {
        struct kk_journal_entry *e;
        struct kk_err err = {0};
        char name[32];
        int n = 0;
        snprintf(name, sizeof name, "damaged%d", i);
        struct kk_journal *j = reopen(kk_test_path(name));
        ok(kk_journal_create(j, "id", NULL, NULL, 0, &e, &err), &err);
        ok(kk_journal_append(j, e, 0, ids, 2500, &err), &err);
        journal_close(j);
        meddle(kk_test_path(name), damage[i]);
        struct kk_journal_options o = journal_options(kk_test_path(name), &probe);
        int rc = kk_journal_open(&o, &j, &err);
        if (!rc) {
            rc = kk_journal_each(j, count_one, &n, &err);
            journal_close(j);
        }
        KK_ASSERT_FAILS(rc, KK_EFORMAT, &err, "is damaged (session 1 has ");
    }
}

/* A database with bytes flipped, overwritten or cut off: an error or the truth, never a crash. */
static void test_broken_files(void **state)
{
    struct kk_test_rng r = kk_test_rng("broken");
    int refused = 0;
    (void)state;
    for (int k = 0; k < 30; k++) {
        static struct model m;
        struct model_entries t;
        struct kk_err err = {0};
        struct stat st;
        char name[32], path[512];
        memset(&m, 0, sizeof m);
        snprintf(name, sizeof name, "broken%d", k);
        const char *dir = kk_test_path(name);
        struct kk_journal *j = reopen(dir);
        send_random(&m, &r, j, &t, 200);
        journal_close(j);
        snprintf(path, sizeof path, "%s/journal.db", dir);
        assert_int_equal(stat(path, &st), 0);
        int fd = open(path, O_RDWR);
        uint32_t at = kk_test_below(&r, (uint32_t)st.st_size);
        if (k % 3 == 0) assert_int_equal(ftruncate(fd, at), 0);
        for (int i = 0; i < 64 && k % 3; i++) {
            unsigned char byte = (unsigned char)kk_test_u64(&r);
            uint32_t where =
                k % 3 == 1 ? at + (uint32_t)i : kk_test_below(&r, (uint32_t)st.st_size);
            assert_int_equal(pwrite(fd, &byte, 1, where), 1);
        }
        close(fd);
        struct kk_journal_options o = journal_options(dir, &probe);
        int n = 0, rc = kk_journal_open(&o, &j, &err);
        if (!rc) {
            rc = kk_journal_each(j, count_one, &n, &err);
            kk_journal_close(j, NULL);
        }
        refused += rc != 0;
        if (rc && !err.msg[0]) fail_msg("%s without a message", kk_errname(rc));
    }
    assert_true(refused > 10);
}

/* ---- memory ---- */

static void test_out_of_memory(void **state)
{
    const char *dir = kk_test_path("memory");
    (void)state;
    for (int n = 1;; n++) {
        struct kk_journal *j = NULL;
        struct kk_journal_options o = journal_options(dir, &probe);
        struct kk_journal_entry *e = NULL;
        struct kk_err err = {0};
        uint32_t ids[100] = {0};
        probe_init(&probe);
        kk_mem_fail_after(n);
        int64_t rc = kk_journal_open(&o, &j, &err);
        if (!rc) rc = kk_journal_create(j, "id", NULL, NULL, 0, &e, &err);
        if (rc > 0) rc = kk_journal_append(j, e, 0, ids, 100, &err);
        int hit = kk_mem_fail_hit();
        kk_mem_fail_after(0);
        if (rc < 0) assert_int_equal(rc, KK_ENOMEM);
        if (hit) assert_true(rc < 0);
        if (rc < 0 && e) assert_int_equal(kk_journal_tokens(e), 0);
        if (j) journal_close(j);
        if (!hit) break;
        assert_true(n < 50);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_random_operations),
        cmocka_unit_test(test_each),
        cmocka_unit_test(test_groups_and_folds),
        cmocka_unit_test(test_never_waits),
        cmocka_unit_test(test_failing_calls),
        cmocka_unit_test(test_full_disk),
        cmocka_unit_test(test_file_size_limit),
        cmocka_unit_test(test_removed_file),
        cmocka_unit_test(test_bad_directories),
        cmocka_unit_test(test_read_only_directory),
        cmocka_unit_test(test_two_on_one_directory),
        cmocka_unit_test(test_refused_databases),
        cmocka_unit_test(test_forks_share_pieces),
        cmocka_unit_test(test_older_version),
        cmocka_unit_test(test_numbers_of_shared_pieces),
        cmocka_unit_test(test_damaged_history),
        cmocka_unit_test(test_broken_files),
        cmocka_unit_test(test_out_of_memory),
    };
    fault_vfs_use();
    return cmocka_run_group_tests(tests, NULL, NULL);
}
