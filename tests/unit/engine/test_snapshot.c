/* Saved, loaded and forked sessions go on with the tokens they would have made. */
#include "kk_test.h"

#include <stdio.h>
#include <stdlib.h>

#include "base/fs.h"
#include "unit/engine/sessions.h"

#define MINI "synth:tests/data/mini.json:5"
enum { NEW = 24, MINI_V = 160 };

struct arm {
    const char *name, *model, *kv, *f_theta, *draft;
    int64_t kv_device;
};

static const struct arm arms[] = {
    {"native", MINI, "native", NULL, "none", 0},
    {"full", MINI, "full", NULL, "ngram", 0},
    {"s5", MINI, "s5", NULL, "none", 0},
    {"sinkwin", MINI, "sinkwin", NULL, "none", 0},
    {"identity", MINI, "restored", "exact", "none", 0},
    {"paged", MINI, "native", NULL, "none", 1},
    {"tiny, restored, drafted", "models/tiny", "restored", "models/tiny/f_theta",
     "models/tiny/drafter", 0},
};
enum { N_ARMS = sizeof arms / sizeof *arms };

static struct kk_engine *open_arm(const struct arm *a)
{
    struct kk_engine_options o = kk_engine_defaults();
    struct kk_engine *e = NULL;
    struct kk_err err = {0};
    o.model = a->model;
    o.kv = a->kv;
    o.f_theta = a->f_theta;
    o.draft = a->draft;
    o.kv_sinks = 2;
    o.kv_window = a->model == arms[0].model ? 8 : 64;
    o.threads = 2;
    if (a->kv_device) { /* the least that works: ask for nothing, and be told */
        o.kv_device = 1;
        assert_int_equal(kk_engine_open(&o, &e, &err), KK_EINVAL);
        o.kv_device = strtoll(strstr(err.msg, "take ") + 5, NULL, 10);
    }
    KK_ASSERT_OK(kk_engine_open(&o, &e, &err), &err);
    return e;
}

/* What a session that reads the history anew goes on with. */
static void expected(struct kk_session *s, uint32_t *out)
{
    size_t n;
    const uint32_t *ids = kk_session_history(s, &n);
    struct kk_session *fresh = open_session(s->e);
    append_ids(fresh, ids, n);
    go_on(fresh, NEW, out);
    kk_session_close(fresh);
}

static void same(const uint32_t *a, const uint32_t *b)
{
    assert_memory_equal(a, b, NEW * sizeof *a);
}

/* ---- save and load ---- */

static void a_loaded_session_goes_on(void **state)
{
    (void)state;
    struct kk_test_rng r = kk_test_rng("load");
    const char *path = kk_test_path("session");
    struct kk_err err = {0};
    for (int a = 0; a < N_ARMS; a++) {
        struct kk_engine *e = open_arm(&arms[a]), *other = open_arm(&arms[a]);
        static const int lengths[] = {1, 2, 30, 128, 129, 300};
        const int small = arms[a].model == arms[0].model; /* the other takes its time */
        for (size_t k = 0; k < sizeof lengths / sizeof *lengths; k += small ? 1 : 4) {
            struct kk_session *s = open_session(e), *t = NULL;
            uint32_t want[NEW], got[NEW];
            struct kk_session_info before, after;
            append_random(s, &r, lengths[k], MINI_V);
            KK_ASSERT_OK(kk_session_save(s, path, &err), &err);
            kk_session_describe(s, &before);
            go_on(s, NEW, want);
            KK_ASSERT_OK(kk_session_load(other, path, &t, &err), &err);
            kk_session_describe(t, &after);
            assert_int_equal(before.rows, after.rows);
            assert_int_equal(before.resident_rows, after.resident_rows);
            assert_int_equal(before.kv_device_bytes, after.kv_device_bytes);
            assert_int_equal(before.kv_host_bytes, after.kv_host_bytes);
            go_on(t, NEW, got);
            same(want, got);
            append_random(t, &r, 20, MINI_V); /* and further, over block ends and ring ends */
            expected(t, want);
            go_on(t, NEW, got);
            same(want, got);
            kk_session_close(s);
            kk_session_close(t);
        }
        kk_engine_close(e);
        kk_engine_close(other);
    }
}

static void an_empty_session_is_saved_too(void **state)
{
    (void)state;
    struct kk_engine *e = open_arm(&arms[0]);
    struct kk_session *s = open_session(e), *t = NULL;
    struct kk_err err = {0};
    size_t n = 1;
    KK_ASSERT_OK(kk_session_save(s, kk_test_path("empty"), &err), &err);
    KK_ASSERT_OK(kk_session_load(e, kk_test_path("empty"), &t, &err), &err);
    kk_session_history(t, &n);
    assert_int_equal(n, 0);
    kk_session_close(s);
    kk_session_close(t);
    kk_engine_close(e);
}

/* Rows of another policy do not fit: the history is read again. Another model is refused. */
static void other_engines(void **state)
{
    (void)state;
    struct kk_test_rng r = kk_test_rng("other");
    struct kk_engine *native = open_arm(&arms[0]), *s5 = open_arm(&arms[2]), *tiny;
    struct kk_session *s = open_session(native), *t = NULL;
    struct kk_err err = {0};
    uint32_t want[NEW], got[NEW];
    append_random(s, &r, 200, MINI_V);
    KK_ASSERT_OK(kk_session_save(s, kk_test_path("native"), &err), &err);
    KK_ASSERT_OK(kk_session_load(s5, kk_test_path("native"), &t, &err), &err);
    expected(t, want);
    go_on(t, NEW, got);
    same(want, got);
    kk_session_close(t);
    tiny = open_arm(&arms[6]);
    assert_int_equal(kk_session_load(tiny, kk_test_path("native"), &t, &err), KK_EINVAL);
    assert_non_null(strstr(err.msg, "another model"));
    assert_int_equal(kk_session_load(tiny, kk_test_path("none"), &t, &err), KK_ENOENT);
    kk_session_close(s);
    kk_engine_close(native);
    kk_engine_close(s5);
    kk_engine_close(tiny);
}

/* Every kind of damage: an error, or rows that are read again; never other tokens. */
static void damage_is_found(void **state)
{
    (void)state;
    struct kk_test_rng r = kk_test_rng("damage");
    struct kk_engine *e = open_arm(&arms[2]);
    struct kk_session *s = open_session(e), *t = NULL;
    struct kk_err err = {0};
    struct kk_buf file;
    uint32_t want[NEW], got[NEW];
    int refused = 0, read_again = 0;
    append_random(s, &r, 90, MINI_V);
    KK_ASSERT_OK(kk_session_save(s, kk_test_path("whole"), &err), &err);
    go_on(s, NEW, want);
    kk_buf_init(&file, 1 << 24);
    KK_ASSERT_OK(kk_fs_read(kk_test_path("whole"), &file, &err), &err);
    for (int i = 0; i < 250; i++) {
        size_t n = file.len, at = i < 150 ? (size_t)i : kk_test_below(&r, (uint32_t)n);
        int cut = i % 5 == 4;
        char *copy = kk_malloc(n);
        memcpy(copy, file.data, n);
        copy[at] ^= (char)(1u << kk_test_below(&r, 8));
        const char *path = kk_test_file("damaged", copy, cut ? at : n);
        kk_free(copy);
        int rc = kk_session_load(e, path, &t, &err);
        refused += rc != 0;
        if (rc) {
            assert_true(err.msg[0] != 0);
            continue;
        }
        read_again++;
        if (i % 8 == 0) {
            go_on(t, NEW, got);
            same(want, got);
        }
        kk_session_close(t);
    }
    assert_true(refused > 60 && read_again > 30);
    kk_buf_release(&file);
    kk_session_close(s);
    kk_engine_close(e);
}

/* ---- fork ---- */

static void forks_are_independent(void **state)
{
    (void)state;
    struct kk_test_rng r = kk_test_rng("fork");
    enum { FORKS = 5 };
    for (int a = 0; a < N_ARMS; a++) {
        struct kk_engine *e = open_arm(&arms[a]);
        for (int round = 0; round < (arms[a].model == arms[0].model ? 3 : 2); round++) {
            struct kk_session *s[FORKS] = {open_session(e)};
            uint32_t want[NEW], got[NEW];
            struct kk_err err = {0};
            append_random(s[0], &r, 1 + (int)kk_test_below(&r, 300), MINI_V);
            for (int i = 1; i < FORKS; i++) { /* of any before, some of which have gone on */
                struct kk_session *parent = s[kk_test_below(&r, (uint32_t)i)];
                if (kk_test_below(&r, 2))
                    append_random(parent, &r, 1 + (int)kk_test_below(&r, 9), MINI_V);
                KK_ASSERT_OK(kk_session_fork(parent, &s[i], &err), &err);
                KK_ASSERT_OK(kk_session_check(s[i], &err), &err);
            }
            if (round == 1) kk_session_close(s[0]);
            for (int i = round == 1; i < FORKS; i++) {
                if (i % 2) append_random(s[i], &r, 3, MINI_V);
                expected(s[i], want);
                go_on(s[i], NEW, got);
                same(want, got);
            }
            for (int i = round == 1; i < FORKS; i++) kk_session_close(s[i]);
            assert_int_equal(kk_kv_shared_bytes(e->pool), 0);
        }
        kk_engine_close(e);
    }
}

/* Rows are paid for once: 50 forks of a session at rest take no device bytes of their own. */
static void forks_share_their_rows(void **state)
{
    (void)state;
    struct kk_test_rng r = kk_test_rng("share");
    struct kk_engine *e = open_arm(&arms[0]);
    struct kk_session *s = open_session(e), *f[50];
    struct kk_session_info one, info;
    struct kk_err err = {0};
    append_random(s, &r, 300, MINI_V);
    kk_session_describe(s, &one);
    for (int i = 0; i < 50; i++) {
        KK_ASSERT_OK(kk_session_fork(s, &f[i], &err), &err);
        kk_session_describe(f[i], &info);
        assert_int_equal(info.kv_device_bytes, 0);
        assert_int_equal(info.kv_shared_bytes, one.kv_device_bytes);
    }
    assert_int_equal(kk_kv_shared_bytes(e->pool), one.kv_device_bytes);
    append_random(f[7], &r, 1, MINI_V); /* its rings and the ends of its full layers: its own now */
    kk_session_describe(f[7], &info);
    assert_true(info.kv_device_bytes > 0 && info.kv_device_bytes < one.kv_device_bytes);
    for (int i = 0; i < 50; i++) kk_session_close(f[i]);
    append_random(s, &r, 1, MINI_V);
    kk_session_describe(s, &info); /* what was written to is its own again; full blocks follow */
    assert_int_equal(info.kv_device_bytes + info.kv_shared_bytes, one.kv_device_bytes);
    kk_session_close(s);
    kk_engine_close(e);
}

/* ---- no memory ---- */

static void survives_every_failed_allocation(void **state)
{
    (void)state;
    struct kk_test_rng r = kk_test_rng("memory");
    static const int which[] = {0, 5, 6};
    for (int a = 0; a < 3; a++) {
        struct kk_engine *e = open_arm(&arms[which[a]]);
        struct kk_session *s = open_session(e);
        struct kk_err err = {0};
        uint32_t want[NEW], got[NEW];
        const char *path = kk_test_path("memory");
        append_random(s, &r, a == 2 ? 40 : 150, MINI_V);
        KK_ASSERT_OK(kk_session_save(s, path, &err), &err);
        expected(s, want);
        for (int64_t k = 1, hit = 1; hit; k++) {
            struct kk_session *f = NULL, *t = NULL;
            kk_mem_fail_after(k);
            int rc = kk_session_fork(s, &f, &err);
            if (!rc) rc = kk_session_load(e, path, &t, &err);
            if (!rc) rc = kk_session_save(f, kk_test_path("again"), &err);
            hit = kk_mem_fail_hit();
            kk_mem_fail_after(0);
            kk_session_close(f);
            kk_session_close(t);
            KK_ASSERT_OK(kk_session_check(s, &err), &err);
        }
        go_on(s, NEW, got);
        same(want, got);
        kk_session_close(s);
        kk_engine_close(e);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_loaded_session_goes_on),
        cmocka_unit_test(an_empty_session_is_saved_too),
        cmocka_unit_test(other_engines),
        cmocka_unit_test(damage_is_found),
        cmocka_unit_test(forks_are_independent),
        cmocka_unit_test(forks_share_their_rows),
        cmocka_unit_test(survives_every_failed_allocation),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
