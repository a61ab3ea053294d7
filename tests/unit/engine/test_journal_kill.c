/* A process with a journal is killed at random moments, the WAL is cut at random places, the next
 * process goes on. kk-test: soak
 *
 * The child writes what it is about to do, and what the journal has announced, to memory it shares
 * with this process. After its death the journal must hold the state after some number of its
 * operations: at least all that were announced, at most all that were begun. */
#include "unit/engine/journal_model.h"

#include <signal.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/clock.h"

enum { MAX_OPS = 100000 };

struct shared {
    _Atomic int64_t begun, announced; /* operations */
    struct model_op op[MAX_OPS];
};
static struct shared *shared;

/* ---- the child ---- */

static void child_durable(void *arg, int64_t seq)
{
    (void)arg;
    atomic_store(&shared->announced, seq);
}

/* Random operations until killed; never returns. */
static void child(const char *dir, struct model *m, struct kk_test_rng r, int full)
{
    struct kk_journal_options o = journal_options(dir, NULL);
    struct model_entries t = {{0}};
    struct kk_err err = {0};
    o.full = full;
    o.on_durable = child_durable;
    o.on_broken = NULL;
    struct kk_journal *j = journal_open(&o);
    model_expect(m, j, &t);
    for (int64_t i = 0; i < MAX_OPS; i++) {
        shared->op[i] = model_random(m, &r);
        atomic_store(&shared->begun, i + 1);
        while (model_send(m, &shared->op[i], j, &t, &err) == KK_EEXHAUSTED) usleep(100);
        model_apply(m, &shared->op[i]);
        if (kk_test_below(&r, 20) == 0) kk_journal_flush(j);
        if (kk_test_below(&r, 100) == 0) usleep(kk_test_below(&r, 300));
    }
    for (;;) pause();
}

/* Run a child for so long; how it ended. */
static void run_and_kill(const char *dir, const struct model *m, struct kk_test_rng *r, int full)
{
    int status;
    struct kk_test_rng own = {kk_test_u64(r), 0};
    shared->begun = shared->announced = 0;
    pid_t pid = fork();
    if (pid == 0) {
        static struct model mine;
        mine = *m;
        alarm(60);
        child(dir, &mine, own, full);
        _exit(1);
    }
    useconds_t patience = kk_test_below(r, 4) ? kk_test_below(r, 60000) : kk_test_below(r, 8000);
    uint64_t t0 = kk_now_ns();
    while (kk_test_below(r, 10) && !shared->begun && kk_seconds_since(t0) < 20) usleep(200);
    usleep(patience);
    assert_int_equal(kill(pid, SIGKILL), 0);
    assert_int_equal(waitpid(pid, &status, 0), pid);
    if (!WIFSIGNALED(status) || WTERMSIG(status) != SIGKILL)
        fail_msg("the child ended by itself: status %#x", (unsigned)status);
}

/* ---- what is found ---- */

/* Enough of each session to tell states apart: token counts, snapshots. */
static int collect(void *arg, const struct kk_journal_session *s, struct kk_err *err)
{
    struct model_seen *seen = arg;
    if (seen->n == MODEL_SESSIONS) return kk_fail(err, KK_EINVAL, "too many sessions");
    struct model_session *x = &seen->s[seen->n++];
    snprintf(x->id, sizeof x->id, "%s", s->id);
    x->tokens = s->n;
    x->snapshot_rows = s->snapshot_rows;
    return 0;
}

static int same(const struct model *m, const struct model_seen *seen)
{
    int live = 0;
    for (int i = 0; i < MODEL_SESSIONS; i++) live += m->s[i].live;
    if (live != seen->n) return 0;
    for (int k = 0; k < seen->n; k++) {
        int at = model_find(m, seen->s[k].id);
        if (at < 0 || m->s[at].tokens != seen->s[k].tokens ||
            m->s[at].snapshot_rows != seen->s[k].snapshot_rows)
            return 0;
    }
    return 1;
}

/* Move m on to the state that the journal holds; how many operations that took. */
static int64_t verify(const char *dir, struct model *m, int64_t announced)
{
    static struct model_seen seen;
    struct model_entries t;
    struct probe probe;
    struct kk_journal_options o = journal_options(dir, &probe);
    struct kk_err err = {0};
    int64_t n = 0;
    memset(&seen, 0, sizeof seen);
    probe_init(&probe);
    struct kk_journal *j = journal_open(&o);
    KK_ASSERT_OK(kk_journal_each(j, collect, &seen, &err), &err);
    journal_close(j);
    for (; n < announced; n++) model_apply(m, &shared->op[n]);
    while (!same(m, &seen)) {
        if (n == shared->begun)
            fail_msg("%lld announced, %lld begun: the journal holds neither state between",
                     (long long)announced, (long long)shared->begun);
        model_apply(m, &shared->op[n++]);
    }
    j = journal_open(&o);
    model_expect(m, j, &t); /* every token */
    journal_close(j);
    return n;
}

static const char *wal_of(const char *dir)
{
    static char path[600];
    snprintf(path, sizeof path, "%s/journal.db-wal", dir);
    return path;
}

/* KK_SOAK: seconds to go on for. */
static double seconds(void)
{
    const char *s = getenv("KK_SOAK");
    return s ? strtod(s, NULL) : 1.5;
}

static void test_killed(void **state)
{
    struct kk_test_rng r = kk_test_rng("kill");
    static struct model m;
    const char *dir = kk_test_path("killed");
    uint64_t t0 = kk_now_ns();
    int64_t announced = 0, found = 0, begun = 0, rounds = 0;
    (void)state;
    for (; rounds < 5 || kk_seconds_since(t0) < seconds(); rounds++) {
        run_and_kill(dir, &m, &r, rounds % 4 == 3);
        announced += shared->announced;
        begun += shared->begun;
        found += verify(dir, &m, shared->announced);
    }
    printf("%lld kills: %lld operations begun, %lld announced, %lld found\n", (long long)rounds,
           (long long)begun, (long long)announced, (long long)found);
    assert_true(announced > 0);
}

/* A WAL cut short, as by a power cut without `full`: some earlier state, still one that was. */
static void test_truncated_wal(void **state)
{
    struct kk_test_rng r = kk_test_rng("wal");
    uint64_t t0 = kk_now_ns();
    int cut = 0;
    (void)state;
    for (int i = 0; i < 6 || kk_seconds_since(t0) < seconds() / 4; i++) {
        static struct model m;
        struct stat st;
        char name[32];
        memset(&m, 0, sizeof m);
        snprintf(name, sizeof name, "wal%d", i);
        const char *dir = kk_test_path(name);
        verify(dir, &m, 0);
        run_and_kill(dir, &m, &r, 0);
        if (!stat(wal_of(dir), &st) && st.st_size) {
            uint32_t size = (uint32_t)st.st_size;
            cut++;
            assert_int_equal(truncate(wal_of(dir), kk_test_below(&r, size)), 0);
        }
        verify(dir, &m, 0);
    }
    assert_true(cut > 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_killed),
        cmocka_unit_test(test_truncated_wal),
    };
    shared = mmap(NULL, sizeof *shared, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    if (shared == MAP_FAILED) return 1;
    return cmocka_run_group_tests(tests, NULL, NULL);
}
