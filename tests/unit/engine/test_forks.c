/* Forks share rows, and pay for what they write: a tree of sessions that fork, read and end at
 * random holds at every moment the rows that each of them would hold alone, and takes the bytes
 * that were foretold. */
#include "kk_test.h"

#include <stdlib.h>

#include "unit/engine/sessions.h"

#define MINI "synth:tests/data/mini.json:5"
enum { V = 160, MOST = 10, PIECE = 16 }; /* rows of a ring that a fork copies at once */

static const struct arm {
    const char *model, *kv, *f_theta;
    int sinks, window, steps;
    int64_t kv_device;
} arms[] = {
    {MINI, "native", NULL, 2, 8, 300, 0},
    {MINI, "full", NULL, 2, 8, 100, 0},
    {MINI, "s5", NULL, 2, 21, 300, 0},
    {"models/tiny", "native", NULL, 4, 64, 50, 0},
    {"models/tiny", "s5", NULL, 5, 200, 40, 0},
    {"models/tiny", "sinkwin", NULL, 20, 90, 40, 0},
    {"models/tiny", "s5", NULL, 4, 64, 40, 1 << 20},
    {"models/tiny", "restored", "models/tiny/f_theta", 4, 64, 50, 0},
};

static struct kk_engine *open_arm(const struct arm *a)
{
    struct kk_engine_options o = kk_engine_defaults();
    struct kk_engine *e = NULL;
    struct kk_err err = {0};
    o.model = a->model;
    o.kv = a->kv;
    o.f_theta = a->f_theta;
    o.kv_sinks = a->sinks;
    o.kv_window = a->window;
    o.kv_device = a->kv_device;
    o.threads = 1;
    KK_ASSERT_OK(kk_engine_open(&o, &e, &err), &err);
    return e;
}

/* ---- the rows ---- */

static void same_row(const struct kk_session *a, const struct kk_session *b, int l, int64_t j,
                     char *p, char *q)
{
    const size_t bytes = kk_kv_layer(a->e->pool, l).row_bytes;
    const int stored = !kk_kv_read_row(a->kv, l, j, p, NULL);
    assert_int_equal(stored, !kk_kv_read_row(b->kv, l, j, q, NULL));
    if (stored && memcmp(p, q, bytes))
        fail_msg("row %lld of layer %d of %lld rows", (long long)j, l,
                 (long long)kk_kv_rows(a->kv));
}

/* All that s holds, against a session that reads its history anew. */
static void check_rows(struct kk_session *s)
{
    static char p[1 << 13], q[1 << 13];
    struct kk_session *alone = open_session(s->e);
    struct kk_err err = {0};
    append_ids(alone, s->history, s->n);
    KK_ASSERT_OK(kk_session_check(s, &err), &err);
    for (int l = 0; l < s->e->layout.n_layers; l++)
        for (int64_t j = 0; j < kk_kv_rows(s->kv); j++) same_row(s, alone, l, j, p, q);
    const int64_t all = kk_kv_latents(s->kv), W = s->e->layout.layer[0].window;
    memset(p, 0, sizeof p);
    memset(q, 0, sizeof q);
    for (int64_t j = all > W ? all - W : 0; j < all; j++) {
        kk_kv_copy_latents(s->kv, (int32_t)j, 1, p);
        kk_kv_copy_latents(alone->kv, (int32_t)j, 1, q);
        assert_memory_equal(p, q, sizeof p);
    }
    kk_session_close(alone);
}

/* ---- the bytes ---- */

static int64_t all_bytes(struct kk_session *const *s, int n)
{
    int64_t bytes = kk_kv_shared_bytes(s[0]->e->pool);
    for (int i = 0; i < n; i++) bytes += kk_kv_device_bytes(s[i]->kv);
    return bytes;
}

/* s[i] reads k tokens in one step. */
static void read_some(struct kk_session **s, int n, int i, struct kk_test_rng *r, int k)
{
    uint32_t ids[256];
    const int rows = s[i]->n ? k : k - 1;
    const int64_t before = all_bytes(s, n), growth = rows ? kk_kv_growth(s[i]->kv, rows) : 0;
    for (int t = 0; t < k; t++) ids[t] = kk_test_below(r, V);
    append_ids(s[i], ids, (size_t)k);
    if (rows <= kk__session_rows_max(s[i]->e) && all_bytes(s, n) - before != growth)
        fail_msg("%d rows took %lld bytes, %lld were foretold", rows,
                 (long long)(all_bytes(s, n) - before), (long long)growth);
}

static void a_tree_of_forks(void **state)
{
    (void)state;
    struct kk_test_rng r = kk_test_rng("tree");
    for (size_t a = 0; a < sizeof arms / sizeof *arms; a++) {
        struct kk_engine *e = open_arm(&arms[a]);
        struct kk_session *s[MOST] = {open_session(e)};
        struct kk_err err = {0};
        int n = 1;
        for (int step = 0; step < arms[a].steps; step++) {
            int i = (int)kk_test_below(&r, (uint32_t)n), what = (int)kk_test_below(&r, 10);
            if (what < 3 && n < MOST) {
                const int64_t before = all_bytes(s, n);
                KK_ASSERT_OK(kk_session_fork(s[i], &s[n], &err), &err);
                n++;
                if (!arms[a].kv_device) assert_int_equal(all_bytes(s, n), before);
            } else if (what == 3 && n > 1) {
                kk_session_close(s[i]);
                s[i] = s[--n];
            } else {
                read_some(s, n, i, &r,
                          what == 4 ? kk_test_between(&r, 60, 150) : kk_test_between(&r, 1, 20));
            }
            if (step % 30 == 29) check_rows(s[kk_test_below(&r, (uint32_t)n)]);
        }
        const int checked = arms[a].model == arms[0].model ? n : 3; /* the other takes its time */
        while (n-- > 0) {
            if (n < checked) check_rows(s[n]);
            kk_session_close(s[n]);
        }
        assert_int_equal(kk_kv_shared_bytes(e->pool), 0);
        kk_engine_close(e);
    }
}

/* 256 forks of one prompt that say 8 tokens each: the bytes of one, and of each the pieces and
 * blocks that it wrote to. */
static void forks_pay_for_what_they_say(void **state)
{
    enum { FORKS = 256, SAID = 8 };
    struct kk_engine *e = open_arm(&arms[3]);
    struct kk_session *s[FORKS + 1] = {open_session(e)};
    struct kk_test_rng r = kk_test_rng("tails");
    struct kk_err err = {0};
    int64_t tail = 0;
    (void)state;
    for (int i = 0; i < 4; i++) read_some(s, 1, 0, &r, 250);
    const int64_t one = kk_kv_device_bytes(s[0]->kv);
    for (int l = 0; l < e->layout.n_layers; l++)
        tail += (int64_t)kk_kv_layer(e->pool, l).row_bytes *
                (e->layout.layer[l].sliding ? 2 * PIECE : KK_KV_BLOCK_ROWS);
    for (int i = 1; i <= FORKS; i++) KK_ASSERT_OK(kk_session_fork(s[0], &s[i], &err), &err);
    assert_int_equal(all_bytes(s, FORKS + 1), one);
    for (int i = 1; i <= FORKS; i++) read_some(s, FORKS + 1, i, &r, SAID);
    print_message("one %lld bytes, a tail at most %lld, all %lld\n", (long long)one,
                  (long long)tail, (long long)all_bytes(s, FORKS + 1));
    assert_true(all_bytes(s, FORKS + 1) <= one + FORKS * tail);
    assert_true(tail < one / 7);
    for (int i = 1; i <= FORKS; i += 120) check_rows(s[i]);
    for (int i = 0; i <= FORKS; i++) kk_session_close(s[i]);
    kk_engine_close(e);
}

/* Out of memory while a fork makes room: no session has changed, and it can go on later. */
static void no_memory_changes_nothing(void **state)
{
    static const int which[] = {3, 7};
    struct kk_test_rng r = kk_test_rng("no memory");
    struct kk_err err = {0};
    (void)state;
    for (int a = 0; a < 2; a++) {
        struct kk_engine *e = open_arm(&arms[which[a]]);
        struct kk_session *s[2] = {open_session(e)};
        uint32_t ids[6];
        read_some(s, 1, 0, &r, 100);
        for (int64_t k = 1, hit = 1; hit; k++) {
            for (int i = 0; i < 6; i++) ids[i] = kk_test_below(&r, V);
            kk_mem_fail_after(k);
            int rc = kk_session_fork(s[0], &s[1], &err);
            if (!rc) {
                kk_session_append(s[1], ids, 6, &err);
                KK_ASSERT_OK(kk_session_check(s[1], &err), &err);
            }
            hit = kk_mem_fail_hit();
            kk_mem_fail_after(0);
            if (rc) continue;
            read_some(s, 2, 1, &r, 3);
            if (k % 32 == 0 || !hit) check_rows(s[1]);
            kk_session_close(s[1]);
        }
        check_rows(s[0]);
        kk_session_close(s[0]);
        kk_engine_close(e);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_tree_of_forks),
        cmocka_unit_test(forks_pay_for_what_they_say),
        cmocka_unit_test(no_memory_changes_nothing),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
