/* 256 sessions forked from one prompt of 4,000 tokens: the bytes of one and of what each has said,
 * on the device, in host memory and on disk, after a restart too. And wherever a process that forks
 * is killed, the next one finds every file whole. kk-test: soak */
#include "kk_test.h"

#include <dirent.h>
#include <fcntl.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/mem.h"
#include "unit/engine/calls.h"

#ifdef __SANITIZE_ADDRESS__ /* slow there */
enum { PROMPT = 700, FORKS = 24, SAID = 8, NEXT = 4 };
#else
enum { PROMPT = 4000, FORKS = 256, SAID = 8, NEXT = 4 };
#endif

static struct kk_engine *open_engine(const char *model, const char *draft)
{
    struct kk_engine_options o = kk_engine_defaults();
    struct kk_engine *e = NULL;
    struct kk_err err = {0};
    o.model = model;
    o.threads = 1;
    o.max_batch = 8;
    o.draft = draft;
    KK_ASSERT_OK(kk_engine_open(&o, &e, &err), &err);
    return e;
}

static struct kk_runtime *open_runtime(struct kk_engine *e, const struct kk_runtime_options *o)
{
    struct kk_runtime *rt = NULL;
    struct kk_err err = {0};
    KK_ASSERT_OK(kk_runtime_open(e, o, &rt, &err), &err);
    return rt;
}

static void fine(int rc, const struct call *c)
{
    if (rc) fail_msg("%s: %s", kk_errname(rc), c->msg);
}

static int64_t bytes_under(const char *dir)
{
    int64_t n = 0;
    DIR *d = opendir(dir);
    assert_non_null(d);
    for (struct dirent *f; (f = readdir(d));) {
        char name[1024];
        struct stat st;
        if (f->d_name[0] == '.') continue;
        snprintf(name, sizeof name, "%s/%s", dir, f->d_name);
        assert_int_equal(stat(name, &st), 0);
        n += S_ISDIR(st.st_mode) ? bytes_under(name) : (int64_t)st.st_size;
    }
    closedir(d);
    return n;
}

/* ---- the reach ---- */

static struct family {
    uint32_t prompt[PROMPT];
    char first[KK_SESSION_ID_MAX], id[FORKS][KK_SESSION_ID_MAX];
    uint32_t said[FORKS][SAID], next[NEXT]; /* next: of the first fork, alone */
    int64_t tail;  /* bytes of what a fork has written to: two pieces of a ring, a block a layer */
    int64_t saved; /* the same with those rows of the block alone that hold something */
    int64_t row;   /* of all layers that keep every row */
} fam;

static int note(void *arg, uint32_t id)
{
    uint32_t **at = arg;
    *(*at)++ = id;
    return 0;
}

static void foresee(struct kk_engine *e)
{
    struct kk_session *s = NULL;
    struct kk_sampling p = kk_sampling_defaults();
    struct kk_err err = {0};
    uint32_t *at = fam.next;
    p.ignore_eos = 1;
    fam.tail = fam.saved = fam.row = 0;
    for (int l = 0; l < e->layout.n_layers; l++) {
        const int64_t row = (int64_t)kk_kv_layer(e->pool, l).row_bytes;
        const int sliding = e->layout.layer[l].sliding;
        fam.tail += row * (sliding ? 2 * 16 : KK_KV_BLOCK_ROWS);
        fam.row += sliding ? 0 : row;
        fam.saved += row * (sliding ? 2 * 16 : (PROMPT - 1 + SAID) % KK_KV_BLOCK_ROWS);
    }
    KK_ASSERT_OK(kk_session_open(e, &s, &err), &err);
    KK_ASSERT_OK(kk_session_append(s, fam.prompt, PROMPT, &err), &err);
    KK_ASSERT_OK(kk_session_append(s, fam.said[0], SAID, &err), &err);
    KK_ASSERT_OK(kk_session_generate(s, &p, NEXT, note, &at, NULL, &err), &err);
    kk_session_close(s);
}

static void read_prompt(struct kk_runtime *rt)
{
    struct call c;
    fine(call(rt, (struct kk_request){.kind = KK_REQUEST_CREATE}, &c), &c);
    memcpy(fam.first, c.id, sizeof c.id);
    fine(call_append(rt, fam.first, fam.prompt, PROMPT, &c), &c);
}

static void fork_all(struct kk_runtime *rt)
{
    struct call c;
    for (int i = 0; i < FORKS; i++) {
        fine(call(rt, (struct kk_request){.kind = KK_REQUEST_FORK, .session = fam.first}, &c), &c);
        memcpy(fam.id[i], c.id, sizeof c.id);
        fine(call_append(rt, fam.id[i], fam.said[i], SAID, &c), &c);
    }
}

/* The first fork goes on as it would alone, and the others go on. */
static void all_go_on(struct kk_runtime *rt)
{
    struct call c;
    for (int i = 0; i < FORKS; i++) {
        fine(call(rt, call_generate(fam.id[i], i ? 1 : NEXT), &c), &c);
        if (!i) assert_memory_equal(c.ids, fam.next, sizeof fam.next);
    }
}

static void within(const char *where, int64_t all, int64_t one, int64_t tails)
{
    const double over = (double)(all - tails) / (double)one;
    print_message("%-18s one %lld bytes, all %lld, their tails %lld: %.3f of one and the tails\n",
                  where, (long long)one, (long long)all, (long long)tails, over);
    assert_true(over > 0.8 && over <= 1.2);
}

static int prepare(void **state)
{
    struct kk_test_rng r = kk_test_rng("forks");
    (void)state;
    for (int i = 0; i < PROMPT; i++) fam.prompt[i] = kk_test_below(&r, 160);
    for (int i = 0; i < FORKS; i++)
        for (int k = 0; k < SAID; k++) fam.said[i][k] = kk_test_below(&r, 160);
    return 0;
}

/* On the device; on disk; on the device after a restart, with nothing read again. */
static void device_and_disk(void **state)
{
    struct kk_runtime_options o = kk_runtime_defaults();
    struct kk_engine *e = open_engine("models/tiny", "none");
    struct kk_runtime_stats st;
    (void)state;
    foresee(e);
    o.state = kk_test_path("one");
    struct kk_runtime *rt = open_runtime(e, &o);
    read_prompt(rt);
    const int64_t one = call_stats(rt, fam.first).kv_device_bytes;
    kk_runtime_close(rt);
    const int64_t one_disk = bytes_under(o.state);
    o.state = kk_test_path("many");
    rt = open_runtime(open_engine("models/tiny", "none"), &o);
    read_prompt(rt);
    fork_all(rt);
    within("on the device", call_stats(rt, fam.first).kv_device_bytes, one, FORKS * fam.tail);
    kk_runtime_close(rt);
    within("on disk", bytes_under(o.state), one_disk, FORKS * fam.saved);
    rt = open_runtime(open_engine("models/tiny", "none"), &o);
    all_go_on(rt);
    st = call_stats(rt, fam.first);
    within("after a restart", st.kv_device_bytes, one, FORKS * fam.tail);
    assert_int_equal(st.tokens_appended, 0);
    assert_int_equal(st.snapshots_lost, 0);
    assert_int_equal(st.resumed, FORKS);
    kk_runtime_close(rt);
    within("on disk again", bytes_under(o.state), one_disk, FORKS * (fam.saved + fam.row));
}

/* Where only one and some forks fit on the device, the others are in host memory, or in files; they
 * come back as they are asked for, and what they share is never read or stored twice. */
static void host_memory(void **state)
{
    struct kk_runtime_options o = kk_runtime_defaults();
    struct kk_engine *e = open_engine("models/tiny", "none");
    const int64_t one = kk_kv_bytes_at(e->pool, PROMPT);
    struct kk_runtime_stats st;
    (void)state;
    foresee(e);
    kk_engine_close(e);
    for (int disk = 0; disk < 2; disk++) {
        e = open_engine("models/tiny", "none");
        o.kv_bytes = one + 10 * fam.tail;
        o.state = disk ? kk_test_path("little") : NULL;
        o.kv_host = disk ? one / 2 : -1;
        struct kk_runtime *rt = open_runtime(e, &o);
        read_prompt(rt);
        fork_all(rt);
        all_go_on(rt);
        st = call_stats(rt, fam.first);
        assert_true(st.kv_device_bytes <= o.kv_bytes);
        assert_int_equal(st.inv1_violations, 0);
        assert_int_equal(st.tokens_appended, PROMPT - 1 + FORKS * SAID);
        if (disk) {
            assert_true(st.kv_host_bytes <= o.kv_host);
            const int64_t tails = FORKS * (fam.saved + fam.row);
            const uint64_t t0 = kk_now_ns(); /* files that were replaced go in a moment */
            while (st.kv_disk_bytes > tails + one * 12 / 10 && kk_seconds_since(t0) < 20)
                st = call_stats(rt, fam.first);
            within("in files", st.kv_disk_bytes, one, tails);
        } else {
            assert_true(st.sessions_host > FORKS - 20);
            within("in host memory", st.kv_host_bytes, one, (int64_t)st.sessions_host * fam.saved);
        }
        kk_runtime_close(rt);
    }
}

/* One bit of every file that begins so. */
static void damage(const char *dir, const char *prefix)
{
    char path[600], name[900];
    int n = 0;
    snprintf(path, sizeof path, "%s/snapshots", dir);
    DIR *d = opendir(path);
    assert_non_null(d);
    for (struct dirent *f; (f = readdir(d));) {
        unsigned char c;
        struct stat st;
        if (strncmp(f->d_name, prefix, strlen(prefix))) continue;
        snprintf(name, sizeof name, "%s/%s", path, f->d_name);
        int fd = open(name, O_RDWR);
        assert_int_equal(fstat(fd, &st), 0);
        assert_int_equal(pread(fd, &c, 1, st.st_size - 9), 1);
        c ^= 4;
        assert_int_equal(pwrite(fd, &c, 1, st.st_size - 9), 1);
        close(fd);
        n++;
    }
    closedir(d);
    assert_true(n > 0);
}

/* The blocks that all of them share are damaged: the first two read the prompt again, the others
 * share what those have read; no token is lost or other than it was. */
static void lost_blocks_are_read_again(void **state)
{
    struct kk_runtime_options o = kk_runtime_defaults();
    struct kk_engine *e = open_engine("models/tiny", "none");
    struct kk_runtime_stats st;
    struct call c;
    (void)state;
    foresee(e);
    o.state = kk_test_path("lost");
    struct kk_runtime *rt = open_runtime(e, &o);
    read_prompt(rt);
    for (int i = 0; i < 12; i++) {
        fine(call(rt, (struct kk_request){.kind = KK_REQUEST_FORK, .session = fam.first}, &c), &c);
        memcpy(fam.id[i], c.id, sizeof c.id);
        fine(call_append(rt, fam.id[i], fam.said[i], SAID, &c), &c);
    }
    kk_runtime_close(rt);
    damage(o.state, "blocks.");
    rt = open_runtime(open_engine("models/tiny", "none"), &o);
    for (int i = 0; i < 12; i++) {
        fine(call(rt, call_generate(fam.id[i], i ? 1 : NEXT), &c), &c);
        if (!i) assert_memory_equal(c.ids, fam.next, sizeof fam.next);
    }
    st = call_stats(rt, fam.first);
    assert_in_range(st.snapshots_lost, 12, 13); /* the first, at start or not at all */
    assert_in_range(st.tokens_appended, PROMPT, 2 * PROMPT + 12 * (SAID + 64));
    kk_runtime_close(rt);
}

/* ---- killed at every moment ---- */

/* What the scenario does to the disk goes through these; the die_at-th kills the process. */
static struct shared {
    _Atomic long calls, die_at;
    _Atomic int known, acknowledged[4]; /* sessions; tokens of each */
    char id[4][KK_SESSION_ID_MAX];
} * shared;

static void strike(void)
{
    if (!shared) return;
    long n = atomic_fetch_add(&shared->calls, 1) + 1;
    if (n == atomic_load(&shared->die_at)) kill(getpid(), SIGKILL);
}

int rename(const char *from, const char *to)
{
    strike();
    return (int)syscall(SYS_rename, from, to);
}

int unlink(const char *path)
{
    strike();
    return (int)syscall(SYS_unlink, path);
}

int fsync(int fd)
{
    strike();
    return (int)syscall(SYS_fsync, fd);
}

#define MINI "synth:tests/data/mini.json:5"
enum { READ = 300, TURN = 40 };

static uint32_t story[4][READ + 4 * TURN]; /* what each session has said in the end */

static void told(int i, int64_t n)
{
    atomic_store(&shared->acknowledged[i], (int)n);
}

/* A parent and three forks, that leave the device for the disk all the time. */
static void scenario(const char *dir, int lives)
{
    struct kk_runtime_options o = kk_runtime_defaults();
    struct call c;
    for (int life = 0; life < lives; life++) {
        struct kk_engine *e = open_engine(MINI, "none");
        o.state = dir;
        o.kv_host = 0;
        o.kv_bytes = kk_kv_bytes_at(e->pool, READ + 4 * TURN);
        struct kk_runtime *rt = open_runtime(e, &o);
        for (int i = 0; !life && i < 4; i++) {
            struct kk_request r = {.kind = i ? KK_REQUEST_FORK : KK_REQUEST_CREATE,
                                   .session = shared->id[0]};
            fine(call(rt, r, &c), &c);
            memcpy(shared->id[i], c.id, sizeof c.id);
            atomic_store(&shared->known, i + 1);
            told(i, i ? READ : 0);
            if (!i) fine(call_append(rt, shared->id[0], story[0], READ, &c), &c);
            told(i, READ);
            if (!i) continue;
            fine(call_append(rt, shared->id[i], story[i] + READ, TURN, &c), &c);
            told(i, READ + TURN);
        }
        for (int turn = 0; turn < 2; turn++)
            for (int i = 1; i < 4; i++) {
                const int64_t at = atomic_load(&shared->acknowledged[i]);
                fine(call(rt, call_generate(shared->id[i], TURN / 2), &c), &c);
                assert_memory_equal(c.ids, story[i] + at, TURN / 2 * sizeof(uint32_t));
                told(i, at + TURN / 2);
            }
        kk_runtime_close(rt);
    }
}

/* All that was told is there, goes on as it would have, and no file was without its blocks. */
static void check_state(const char *dir)
{
    struct kk_runtime_options o = kk_runtime_defaults();
    struct kk_runtime *rt;
    struct call c;
    o.state = dir;
    rt = open_runtime(open_engine(MINI, "none"), &o);
    for (int i = 0; i < atomic_load(&shared->known); i++) {
        const char *id = shared->id[i];
        fine(call(rt, (struct kk_request){.kind = KK_REQUEST_INFO, .session = id}, &c), &c);
        const int64_t n = (int64_t)c.end.history;
        assert_true(n >= atomic_load(&shared->acknowledged[i]));
        if (n < READ || (i && n < READ + TURN)) continue; /* it was killed while it read */
        fine(call(rt, call_generate(id, 10), &c), &c);
        if (i) assert_memory_equal(c.ids, story[i] + n, 10 * sizeof(uint32_t));
    }
    if (atomic_load(&shared->known))
        assert_int_equal(call_stats(rt, shared->id[0]).snapshots_lost, 0);
    kk_runtime_close(rt);
}

static void tell_stories(void)
{
    struct kk_engine *e = open_engine(MINI, "none");
    struct kk_sampling p = kk_sampling_defaults();
    struct kk_test_rng r = kk_test_rng("stories");
    struct kk_err err = {0};
    p.ignore_eos = 1;
    for (int k = 0; k < READ; k++) story[0][k] = kk_test_below(&r, 160);
    for (int i = 1; i < 4; i++) {
        struct kk_session *s = NULL;
        uint32_t *at = story[i] + READ + TURN;
        memcpy(story[i], story[0], READ * sizeof(uint32_t));
        for (int k = 0; k < TURN; k++) story[i][READ + k] = kk_test_below(&r, 160);
        KK_ASSERT_OK(kk_session_open(e, &s, &err), &err);
        KK_ASSERT_OK(kk_session_append(s, story[i], READ + TURN, &err), &err);
        KK_ASSERT_OK(kk_session_generate(s, &p, 3 * TURN, note, &at, NULL, &err), &err);
        kk_session_close(s);
    }
    kk_engine_close(e);
}

static void killed_at_every_call(void **state)
{
    const char *soak = getenv("KK_SOAK");
    const double limit = soak ? strtod(soak, NULL) : 6;
    struct kk_test_rng r = kk_test_rng("crash points");
    uint64_t t0 = kk_now_ns();
    long most = 1, at = 1;
    int kills = 0;
    (void)state;
    tell_stories();
    struct shared *mine =
        mmap(NULL, sizeof *shared, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    assert_ptr_not_equal(mine, MAP_FAILED);
    for (int run = 0; run < 2 || (at <= most && kk_seconds_since(t0) < limit); run++) {
        char name[40];
        int status;
        snprintf(name, sizeof name, "killed%d", run);
        const char *dir = kk_test_path(name);
        memset(mine, 0, sizeof *mine);
        if (run) { /* every one of them, when there is time; else some of each part */
            at += soak ? 1 : 1 + (long)kk_test_below(&r, (uint32_t)(most / 12 + 1));
            atomic_store(&mine->die_at, at);
        }
        fflush(NULL);
        pid_t pid = fork();
        assert_true(pid >= 0);
        if (!pid) {
            shared = mine;
            scenario(dir, 2);
            _exit(0);
        }
        assert_int_equal(waitpid(pid, &status, 0), pid);
        if (!WIFSIGNALED(status)) assert_int_equal(WEXITSTATUS(status), 0);
        kills += WIFSIGNALED(status) != 0;
        if (!run) most = atomic_load(&mine->calls);
        shared = mine;
        atomic_store(&mine->die_at, 0);
        check_state(dir);
        shared = NULL;
        kk_test_remove(dir);
    }
    print_message("%d deaths, at up to %ld of %ld calls to the file system\n", kills, at, most);
    assert_true(kills > 0);
    munmap(mine, sizeof *mine);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(device_and_disk),
        cmocka_unit_test(host_memory),
        cmocka_unit_test(lost_blocks_are_read_again),
        cmocka_unit_test(killed_at_every_call),
    };
    return cmocka_run_group_tests(tests, prepare, NULL);
}
