/* Drafters and width control, without a model. */
#include "kk_test.h"

#include <math.h>
#include <stdlib.h>

#include "spec/spec.h"

static void ngram_finds_the_longest_latest_match(void **state)
{
    (void)state;
    struct kk_drafter *d;
    struct kk_err err = {0};
    uint32_t out[8];
    /* ..5 6 7 8.. then ..9 6 7 1.., then 6 7 1 again at the end: the match of three wins over two
     */
    const uint32_t h[] = {2, 5, 6, 7, 8, 4, 9, 6, 7, 1, 3, 12, 6, 7, 1};
    KK_ASSERT_OK(kk_ngram_open(&d, &err), &err);
    assert_int_equal(d->ops->propose(d, h, 15, 4, out, &err), 4);
    assert_memory_equal(out, ((const uint32_t[]){3, 12, 6, 7}), 4 * sizeof *out);
    /* the end alone has not been seen: nothing */
    assert_int_equal(d->ops->propose(d, (const uint32_t[]){1, 2, 3, 4}, 0, 4, out, &err), 0);
    kk_drafter_close(d);
    KK_ASSERT_OK(kk_ngram_open(&d, &err), &err);
    assert_int_equal(d->ops->propose(d, (const uint32_t[]){1, 2, 3, 4}, 4, 4, out, &err), 0);
    kk_drafter_close(d);
}

/* Against the plain definition, on random strings over a small alphabet. */
static void ngram_is_the_definition(void **state)
{
    (void)state;
    struct kk_test_rng r = kk_test_rng("ngram");
    enum { N = 60 };
    for (int round = 0; round < 50; round++) {
        struct kk_drafter *d;
        struct kk_err err = {0};
        uint32_t h[N], out[5];
        KK_ASSERT_OK(kk_ngram_open(&d, &err), &err);
        for (size_t n = 0; n < N;) {
            h[n++] = kk_test_below(&r, 4);
            int got = d->ops->propose(d, h, n, 5, out, &err);
            size_t best = 0, at = 0;
            for (size_t i = n - 1; i-- > 0;) { /* newest first */
                size_t k = 0;
                while (k <= i && k < 32 && h[i - k] == h[n - 1 - k]) k++;
                if (k > best) {
                    best = k;
                    at = i;
                }
            }
            if (best < KK_NGRAM_MIN) {
                assert_int_equal(got, 0);
                continue;
            }
            assert_true(got > 0);
            assert_memory_equal(out, h + at + 1, (size_t)got * sizeof *out);
        }
        kk_drafter_close(d);
    }
}

/* A drafter that counts what is asked of it. */
struct counting {
    struct kk_drafter base;
    int proposed, observed, caught_up, closed;
};
static int count_propose(struct kk_drafter *d, const uint32_t *history, size_t n, int most,
                         uint32_t *out, struct kk_err *err)
{
    (void)history, (void)n, (void)out, (void)err;
    ((struct counting *)d)->proposed++;
    return most > 1;
}
static int count_observe(struct kk_drafter *d, const float *taps, int rows, struct kk_err *err)
{
    (void)taps, (void)err;
    ((struct counting *)d)->observed += rows;
    return 0;
}
static int count_catch_up(struct kk_drafter *d, struct kk_err *err)
{
    (void)err;
    ((struct counting *)d)->caught_up++;
    return 0;
}
static int64_t count_bytes(const struct kk_drafter *d)
{
    (void)d;
    return 77;
}
static void count_close(struct kk_drafter *d)
{
    ((struct counting *)d)->closed++;
}

/* Blocks of 16 commit what was asked for on average; the same seed makes the same drafts; the
 * drafter it stands in for is run, shown rows, counted and closed. */
static void replay_has_the_mean_asked_for(void **state)
{
    (void)state;
    enum { N = 40000, AT = 3, VOCAB = 50 };
    static const struct kk_drafter_ops ops = {.name = "counting",
                                              .propose = count_propose,
                                              .observe = count_observe,
                                              .catch_up = count_catch_up,
                                              .device_bytes = count_bytes,
                                              .close = count_close};
    struct kk_test_rng rng = kk_test_rng("replay");
    uint32_t *h = malloc(sizeof *h * (AT + N));
    for (size_t i = 0; i < AT + N; i++) h[i] = kk_test_below(&rng, VOCAB);
    assert_true(fabs(kk_replay_chance(3.32) - 0.70) < 0.001);
    for (int k = 0; k < 4; k++) {
        struct counting inner = {.base = {&ops}};
        const struct kk_replay known = {h + AT, AT, N, VOCAB, ((double[]){1, 3.32, 8, 16})[k], 5};
        struct kk_drafter *d = NULL, *twin = NULL;
        struct kk_err err = {0};
        uint32_t out[16], again[16];
        int blocks = 0;
        KK_ASSERT_OK(kk_replay_open(&inner.base, &known, &d, &err), &err);
        KK_ASSERT_OK(kk_replay_open(NULL, &known, &twin, &err), &err);
        for (size_t n = AT; n + 16 <= AT + N; blocks++) {
            int ok = 0;
            assert_int_equal(d->ops->propose(d, h, n, 15, out, &err), 15);
            assert_int_equal(twin->ops->propose(twin, h, n, 15, again, &err), 15);
            assert_memory_equal(out, again, sizeof out[0] * 15);
            for (int i = 0; i < 15; i++) assert_true(out[i] < VOCAB);
            while (ok < 15 && out[ok] == h[n + (size_t)ok]) ok++;
            n += (size_t)ok + 1;
        }
        assert_true(fabs((double)N / blocks - known.mean) < 0.05 * known.mean);
        assert_int_equal(d->ops->propose(d, h, AT + N - 2, 15, out, &err),
                         2); /* no more is known */
        assert_int_equal(inner.proposed, blocks + 1);
        assert_int_equal(d->ops->observe(d, NULL, 9, &err), 0);
        assert_int_equal(inner.observed, 9);
        assert_int_equal(d->ops->catch_up(d, &err), 0);
        assert_int_equal(inner.caught_up, 1);
        assert_int_equal(twin->ops->catch_up(twin, &err), 0);
        assert_int_equal(d->ops->device_bytes(d), 77);
        assert_int_equal(twin->ops->device_bytes(twin), 0);
        kk_drafter_close(d);
        kk_drafter_close(twin);
        assert_int_equal(inner.closed, 1);
    }
    free(h);
}

/* Let the control run against a world of given costs and acceptance; returns tokens per second over
 * what width 1 would give. */
static double play(const double cost[KK_MAX_WIDTH + 1], double p, int *last_width)
{
    struct kk_test_rng r = kk_test_rng("width");
    struct kk_step_costs c = {0};
    struct kk_width w;
    double seconds = 0, tokens = 0;
    kk_width_init(&w, 0, &c);
    for (int step = 0; step < 4000; step++) {
        int width = kk_width_choose(&w, &c, KK_MAX_WIDTH), ok = 0;
        while (ok < width - 1 && kk_test_uniform(&r, 0, 1) < p) ok++;
        kk_cost_note(&c, width, cost[width]);
        kk_width_note(&w, &c, width - 1, ok);
        seconds += cost[width];
        tokens += ok + 1;
        *last_width = width;
    }
    return tokens / seconds * cost[1];
}

static void width_follows_costs(void **state)
{
    (void)state;
    double flat[KK_MAX_WIDTH + 1] = {0}, steep[KK_MAX_WIDTH + 1] = {0};
    int width;
    for (int i = 1; i <= KK_MAX_WIDTH; i++) {
        flat[i] = 1 + 0.05 * i;   /* bound by weight reads */
        steep[i] = 0.1 + 0.9 * i; /* bound by arithmetic */
    }
    assert_true(play(flat, 0.8, &width) > 2.5);
    assert_true(play(flat, 0.0, &width) > 0.95);
    assert_true(play(steep, 0.5, &width) > 0.95);
    assert_true(play(steep, 0.0, &width) > 0.95);
    assert_true(play(steep, 1.0, &width) > 0.98);
}

/* Plain steps that a drafter of KK_TAPS_HELD rows spends on `rows` more, drafting after a rest or
 * not: what it puts off is done when it drafts, or when no more can be put off. */
static double put_off(struct kk_step_costs *c, int *held, int rows, int drafts, double each)
{
    double cost = drafts || *held + rows > KK_TAPS_HELD ? *held * each : 0;
    if (drafts) kk_catch_up_note(c, 0.02 * cost);
    *held = cost > 0 ? rows : *held + rows;
    return cost;
}

/* Sessions of 96 tokens one after another on one engine, whose steps cost first + each * width
 * plain steps, with noise and, now and then, a stall, and whose drafter spends `taps` on a row;
 * returns speed over plain decoding's. */
static double play_sessions(double first, double each, double p, double taps, int sessions)
{
    struct kk_test_rng r = kk_test_rng("sessions");
    struct kk_step_costs c = {0};
    double seconds = 0;
    for (int s = 0; s < sessions; s++) {
        struct kk_width w;
        int held = 0;
        kk_width_init(&w, 0, &c);
        for (int left = 96; left > 0;) {
            int width = kk_width_choose(&w, &c, left), ok = 0;
            double cost = width < 2 ? 1 : first + each * width;
            double noise = kk_test_uniform(&r, 0.9, 1.1) * (kk_test_below(&r, 200) ? 1 : 5);
            while (ok < width - 1 && kk_test_uniform(&r, 0, 1) < p) ok++;
            kk_cost_note(&c, width, 0.02 * cost * noise);
            kk_width_note(&w, &c, width - 1, ok);
            seconds += cost + put_off(&c, &held, ok + 1, width > 1, taps);
            left -= ok + 1;
        }
    }
    return 96 * sessions / seconds;
}

/* Never slower than plain by more than a purse's worth, whatever a step costs; and what can be
 * gained is gained, within one answer. */
static void width_never_costs_much(void **state)
{
    (void)state;
    static const struct {
        double first, each, p, first_session, later, taps;
    } all[] = {
        {1.2, 0.75, 0.00, 0.95, 0.98, 0}, /* a small model: a row more costs nearly a step */
        {1.2, 0.75, 0.30, 0.95, 0.98, 0},
        {1.2, 0.75, 0.60, 0.95, 0.98, 0},
        {1.2, 0.75, 0.90, 0.95, 0.98, 0},
        {1.0, 0.03, 0.00, 0.96, 0.99, 0}, /* bound by weight reads, no drafter */
        {1.0, 0.03, 0.30, 1.00, 1.15, 0},
        {1.0, 0.03, 0.70, 1.80, 2.20, 0},
        {1.0, 0.03, 0.95, 1.50, 5.00, 0},
        {1.7, 0.01, 0.00, 0.96, 0.98, 0}, /* the drafter costs most of a step, rows are free */
        {1.7, 0.01, 0.70, 1.00, 1.40, 0},
        {1.7, 0.01, 0.95, 1.00, 3.50, 0},
        {1.2, 0.75, 0.00, 0.95, 0.97, 0.025}, /* a row's taps cost something too */
        {1.2, 0.75, 0.60, 0.95, 0.97, 0.025},
        {1.0, 0.03, 0.70, 1.70, 2.00, 0.025},
    };
    for (size_t i = 0; i < sizeof all / sizeof *all; i++) {
        double one = play_sessions(all[i].first, all[i].each, all[i].p, all[i].taps, 1);
        double many = play_sessions(all[i].first, all[i].each, all[i].p, all[i].taps, 40);
        if (one < all[i].first_session || many < all[i].later)
            fail_msg("costs %.2f + %.2f w, p %.2f: %.3f in the first session, %.3f over forty",
                     all[i].first, all[i].each, all[i].p, one, many);
    }
}

/* Acceptance that comes and goes: off when it is bad, on again when it is good. */
static void width_recovers(void **state)
{
    (void)state;
    struct kk_step_costs c = {0};
    struct kk_width w;
    int wide = 0;
    kk_width_init(&w, 0, &c);
    for (int step = 0; step < 3000; step++) {
        int width = kk_width_choose(&w, &c, KK_MAX_WIDTH);
        int good = step > 1500;
        kk_cost_note(&c, width, 1 + 0.1 * width);
        kk_width_note(&w, &c, width - 1, good ? width - 1 : 0);
        if (step > 1000 && step <= 1500) assert_true(width <= 2);
        if (step > 2800) wide += width >= 8;
    }
    assert_true(wide > 150);
}

static void pinned_is_pinned(void **state)
{
    (void)state;
    struct kk_step_costs c = {0};
    struct kk_width w;
    kk_width_init(&w, 5, &c);
    assert_int_equal(kk_width_choose(&w, &c, 16), 5);
    assert_int_equal(kk_width_choose(&w, &c, 3), 3);
}

/* ---- several sessions ---- */

/* Steps of `base` + `slope` a row, as the costs would see them. */
static void learn(struct kk_row_costs *c, double base, double slope)
{
    for (int rows = 4; rows <= 12; rows++) kk_row_cost_note(c, rows, base + slope * rows);
}

static void rows_go_to_the_likeliest_drafts(void **state)
{
    (void)state;
    struct kk_row_costs c = {0};
    const double accept[4] = {0.9, 0.1, 0.5, 0.9};
    const int most[4] = {16, 16, 16, 3};
    double gain[4];
    int width[4];
    learn(&c, 1.0, 0.001); /* bound by memory: rows are nearly free */
    kk_allot(&c, accept, most, 4, 20, gain, width);
    assert_int_equal(width[0] + width[1] + width[2] + width[3], 24);
    assert_true(width[0] > width[2] && width[2] > width[1]);
    assert_int_equal(width[3], 3);
    c = (struct kk_row_costs){0};
    learn(&c, 0.001, 1.0); /* bound by arithmetic: a row costs a row */
    kk_allot(&c, accept, most, 4, 20, gain, width);
    assert_int_equal(width[0] + width[1] + width[2] + width[3], 4);
}

/* Nothing known: a short draft now and then, until something is. */
static void allotting_starts_with_probes(void **state)
{
    (void)state;
    struct kk_row_costs c = {0};
    const double accept[2] = {0.6, 0.6};
    const int most[2] = {16, 1};
    double gain[2];
    int width[2], drafted = 0;
    for (int i = 0; i < 40; i++) {
        kk_allot(&c, accept, most, 2, 8, gain, width);
        assert_int_equal(width[1], 1);
        drafted += width[0] > 1;
        kk_row_cost_note(&c, width[0] + width[1], 1.0 + 0.9 * (width[0] + width[1]));
    }
    assert_true(drafted >= 1 && drafted <= 12);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(rows_go_to_the_likeliest_drafts),
        cmocka_unit_test(allotting_starts_with_probes),
        cmocka_unit_test(ngram_finds_the_longest_latest_match),
        cmocka_unit_test(ngram_is_the_definition),
        cmocka_unit_test(replay_has_the_mean_asked_for),
        cmocka_unit_test(width_follows_costs),
        cmocka_unit_test(width_never_costs_much),
        cmocka_unit_test(width_recovers),
        cmocka_unit_test(pinned_is_pinned),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
