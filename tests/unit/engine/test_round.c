/* Rounds of sessions that read and sessions that write, drafted or not: each makes the tokens it
 * makes alone, and the same rows. */
#include "kk_test.h"

#include <stdlib.h>

#include "unit/engine/sessions.h"

#define MINI "synth:tests/data/mini.json:5"
enum { MINI_V = 160, B = 6, MOST = 200 };

struct arm {
    const char *model, *kv, *f_theta, *draft;
    int width, paged;
};

static const struct arm arms[] = {
    {MINI, "native", NULL, "none", 0, 0},
    {MINI, "native", NULL, "ngram", 3, 0},
    {MINI, "s5", NULL, "wrong", 5, 0},
    {MINI, "full", NULL, "ngram", 0, 0},
    {MINI, "restored", "exact", "ngram", 4, 0},
    {MINI, "native", NULL, "ngram", 4, 1},
    {"models/tiny", "restored", "models/tiny/f_theta", "models/tiny/drafter", 0, 0},
    {"models/tiny", "native", NULL, "models/tiny/drafter", 4, 0},
};

static struct kk_engine *open_arm(const struct arm *a, int alone)
{
    struct kk_engine_options o = kk_engine_defaults();
    struct kk_engine *e = NULL;
    struct kk_err err = {0};
    o.model = a->model;
    o.kv = a->kv;
    o.f_theta = a->f_theta;
    o.draft = alone ? "none" : a->draft;
    o.draft_width = a->width;
    o.kv_sinks = 2;
    o.kv_window = a->model == arms[0].model ? 8 : 64;
    o.prefill_chunk = 64;
    o.max_batch = alone ? 1 : B;
    o.threads = alone ? 1 : 2;
    if (a->paged && !alone) {
        o.kv_device = 1;
        assert_int_equal(kk_engine_open(&o, &e, &err), KK_EINVAL);
        o.kv_device = strtoll(strstr(err.msg, "take ") + 5, NULL, 10);
    }
    KK_ASSERT_OK(kk_engine_open(&o, &e, &err), &err);
    return e;
}

/* One session's script: read `prompt` ids in pieces, then write, then read again, then write. */
struct player {
    struct kk_session *s;
    struct kk_sampling p;
    uint32_t read[2][MOST], wrote[2][MOST];
    size_t n_read[2];
    int n_write[2], phase, n_wrote[2];
};

static int note(struct kk_turn *t, uint32_t id)
{
    struct player *w = t->arg;
    int *n = &w->n_wrote[w->phase];
    w->wrote[w->phase][(*n)++] = id;
    return *n == w->n_write[w->phase];
}

static void put(struct kk_session *s, const uint32_t *ids, size_t n)
{
    struct kk_err err = {0};
    KK_ASSERT_OK(kk__history_reserve(s, n, &err), &err);
    memcpy(s->history + s->n, ids, n * sizeof *ids);
    s->n += n;
}

/* The next turn of w; 0: it is finished. budget: rows that reads may still take. */
static int next_turn(struct player *w, struct kk_test_rng *r, int *budget, struct kk_turn *t)
{
    if (w->n_wrote[w->phase] == w->n_write[w->phase]) {
        if (w->phase) return 0;
        w->phase = 1;
        put(w->s, w->read[1], w->n_read[1]);
    }
    int64_t behind = (int64_t)w->s->n - 1 - kk_kv_rows(w->s->kv);
    *t = (struct kk_turn){.s = w->s, .p = &w->p, .emit = note, .arg = w};
    if (behind > 0) {
        int most = kk__session_rows_max(w->s->e);
        if (most > *budget) most = *budget;
        t->read = 1 + (int)kk_test_below(r, (uint32_t)(most < behind ? most : (int)behind));
        *budget -= t->read;
        return 1;
    }
    int left = w->n_write[w->phase] - w->n_wrote[w->phase];
    t->most = left < KK_MAX_WIDTH ? left : KK_MAX_WIDTH;
    return 1;
}

static void make_player(struct player *w, struct kk_engine *e, struct kk_test_rng *r, int small)
{
    *w = (struct player){.s = open_session(e), .p = kk_sampling_defaults()};
    w->p.ignore_eos = 1;
    if (kk_test_below(r, 2)) {
        w->p.temperature = 0.8f;
        w->p.seed = kk_test_u64(r);
    }
    for (int k = 0; k < 2; k++) {
        w->n_read[k] = 1 + kk_test_below(r, k ? 30 : small ? MOST - 1 : 80);
        w->n_write[k] = 1 + (int)kk_test_below(r, small ? 40 : 12);
        uint32_t period = 3 + kk_test_below(r, 20); /* something to look up */
        for (size_t i = 0; i < w->n_read[k]; i++)
            w->read[k][i] = i < period ? kk_test_below(r, MINI_V) : w->read[k][i - period];
    }
    put(w->s, w->read[0], w->n_read[0]);
}

static void check_alone(struct kk_engine *e, const struct player *w)
{
    struct kk_session *s = open_session(e);
    for (int k = 0; k < 2; k++) {
        uint32_t got[MOST];
        append_ids(s, w->read[k], w->n_read[k]);
        go_on_sampled(s, &w->p, w->n_write[k], got);
        assert_int_equal(w->n_wrote[k], w->n_write[k]);
        assert_memory_equal(got, w->wrote[k], (size_t)w->n_write[k] * sizeof *got);
    }
    kk_session_close(s);
}

static void company_changes_no_token(void **state)
{
    (void)state;
    struct kk_test_rng r = kk_test_rng("round");
    for (size_t a = 0; a < sizeof arms / sizeof *arms; a++) {
        struct kk_engine *e = open_arm(&arms[a], 0), *alone = open_arm(&arms[a], 1);
        static struct player w[B];
        int mixed = 0, drafted = 0;
        for (int i = 0; i < B; i++) make_player(&w[i], e, &r, arms[a].model == arms[0].model);
        for (;;) {
            struct kk_turn t[B];
            struct kk_err err = {0};
            int n = 0, reads = 0, budget = 64 - B;
            for (int i = 0; i < B; i++)
                if (kk_test_below(&r, 4) && budget > 0) n += next_turn(&w[i], &r, &budget, &t[n]);
            int left = 0;
            for (int i = 0; i < B; i++)
                left += w[i].phase == 0 || w[i].n_wrote[1] < w[i].n_write[1];
            if (!left) break;
            if (!n) continue;
            KK_ASSERT_OK(kk__round(e, t, n, &err), &err);
            for (int i = 0; i < n; i++) {
                reads += t[i].read > 0;
                drafted += t[i].drafted;
                KK_ASSERT_OK(t[i].rc, &t[i].err);
                KK_ASSERT_OK(kk_kv_check(t[i].s->kv, &err), &err);
            }
            mixed += reads > 0 && reads < n;
        }
        assert_true(mixed > 3);
        if (strcmp(arms[a].draft, "none")) assert_true(drafted > 0);
        for (int i = 0; i < B; i++) {
            check_alone(alone, &w[i]);
            kk_session_close(w[i].s);
        }
        kk_engine_close(e);
        kk_engine_close(alone);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(company_changes_no_token),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
