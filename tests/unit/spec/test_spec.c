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
static int count_behind(const struct kk_drafter *d)
{
    return 9 - ((const struct counting *)d)->caught_up;
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
                                              .behind = count_behind,
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
        assert_int_equal(d->ops->behind(d), 9);
        assert_int_equal(d->ops->catch_up(d, &err), 0);
        assert_int_equal(d->ops->behind(d), 8);
        assert_int_equal(twin->ops->behind(twin), 0);
        assert_int_equal(twin->ops->catch_up(twin, &err), 0);
        assert_int_equal(d->ops->device_bytes(d), 77);
        assert_int_equal(twin->ops->device_bytes(twin), 0);
        kk_drafter_close(d);
        kk_drafter_close(twin);
        assert_int_equal(inner.closed, 1);
    }
    free(h);
}

/* ---- width: against a world of given costs ---- */

/* Steps of the world cost `first` + `each` a row plain steps if they draft, a draft is accepted
 * with chance p, and a row's taps cost `taps` when they are taken in. */
struct world {
    double first, each, p, taps;
};

/* An engine in it, and a session. */
struct play {
    struct kk_test_rng r;
    struct world world;
    struct kk_step_costs c;
    struct kk_width w;
    int held, drafting; /* rows not taken in; the last step drafted */
    double seconds, tokens, widest_loss;
    int width; /* of the last step */
};
enum { STEP_US = 20000 };

static struct play start(struct world world)
{
    struct play p = {.r = kk_test_rng("width"), .world = world};
    kk_costs_init(&p.c, world.each < 0.1);
    kk_width_init(&p.w, 0);
    return p;
}

/* A session whose prompt left `held` rows to be taken in */
static void next_session(struct play *p, int held)
{
    kk_width_init(&p->w, 0);
    p->held = held;
    p->drafting = 0;
}

/* Taking in what is held, if the step drafts after a rest or no more can be held */
static double take_in(struct play *p, int drafts)
{
    const int late = drafts && !p->drafting, full = p->held + 16 > KK_TAPS_HELD;
    if (!p->held || !(drafts || full)) return 0;
    const double cost = p->held * p->world.taps;
    if (late || !drafts) kk_take_in_note(&p->c, p->held, 1e-6 * STEP_US * cost, late);
    p->held = 0;
    return cost;
}

static void step(struct play *p, int most, double noise)
{
    const int late = p->drafting ? 0 : p->held;
    const int width = kk_width_choose(&p->w, &p->c, most, late);
    double cost = width < 2 ? 1 : p->world.first + p->world.each * width;
    int ok = 0;
    while (ok < width - 1 && kk_test_uniform(&p->r, 0, 1) < p->world.p) ok++;
    p->seconds += cost + take_in(p, width > 1);
    kk_width_note(&p->w, &p->c, width - 1, ok);
    kk_cost_note(&p->c, width, 1e-6 * STEP_US * cost * noise, ok + 1);
    p->tokens += ok + 1;
    p->held += ok + 1;
    p->drafting = width > 1;
    p->width = width;
}

/* Tokens a second over plain decoding's, of steps that are measured as they are */
static double run(struct world world, int steps)
{
    struct play p = start(world);
    for (int i = 0; i < steps; i++) step(&p, KK_MAX_WIDTH, 1);
    return p.tokens / p.seconds;
}

static void width_follows_costs(void **state)
{
    (void)state;
    assert_true(run((struct world){1, 0.05, 0.8, 0}, 4000) > 2.5); /* bound by weight reads */
    assert_true(run((struct world){1, 0.05, 0.0, 0}, 4000) > 0.98);
    assert_true(run((struct world){0.1, 0.9, 0.5, 0}, 4000) > 0.98); /* bound by arithmetic */
    assert_true(run((struct world){0.1, 0.9, 0.0, 0}, 4000) > 0.98);
    assert_true(run((struct world){0.1, 0.9, 1.0, 0}, 4000) > 0.98);
    assert_true(run((struct world){1.6, 0.44, 1.0, 0}, 4000) > 1.5); /* wide blocks alone pay */
}

/* Sessions of `length` tokens one after another on one engine, measured with noise and, now and
 * then, a stall; each begins with rows to take in. */
static double play_sessions(struct world world, int sessions, int length)
{
    struct play p = start(world);
    for (int s = 0; s < sessions; s++) {
        const double end = p.tokens + length;
        next_session(&p, (int)kk_test_below(&p.r, KK_TAPS_HELD));
        while (p.tokens < end)
            step(&p, (int)(end - p.tokens),
                 kk_test_uniform(&p.r, 0.9, 1.1) * (kk_test_below(&p.r, 200) ? 1 : 5));
    }
    return p.tokens / p.seconds;
}

/* What can be gained is gained, within an answer or two; what cannot costs next to nothing. */
static void width_gains_what_there_is(void **state)
{
    (void)state;
    static const struct {
        struct world world;
        double two, forty; /* at least, over so many sessions */
    } all[] = {
        {{1.2, 0.75, 0.00, 0}, 0.95, 0.98}, /* a small model: a row more costs nearly a step */
        {{1.2, 0.75, 0.30, 0}, 0.95, 0.98},
        {{1.2, 0.75, 0.60, 0}, 0.95, 0.98},
        {{1.2, 0.75, 0.90, 0}, 0.90, 0.98},
        {{1.0, 0.03, 0.00, 0}, 0.95, 0.99}, /* bound by weight reads, no drafter */
        {{1.0, 0.03, 0.30, 0}, 0.97, 1.15},
        {{1.0, 0.03, 0.70, 0}, 1.05, 2.20},
        {{1.0, 0.03, 0.95, 0}, 1.20, 5.50},
        {{1.7, 0.01, 0.00, 0}, 0.97, 0.98}, /* the drafter costs most of a step, rows are free */
        {{1.7, 0.01, 0.70, 0}, 0.95, 1.40},
        {{1.7, 0.01, 0.95, 0}, 1.10, 3.40},
        {{1.2, 0.75, 0.00, 0.025}, 0.92, 0.95}, /* a row's taps cost something too, in the end */
        {{1.2, 0.75, 0.60, 0.025}, 0.92, 0.95},
        {{1.0, 0.03, 0.70, 0.025}, 0.95, 1.95},
    };
    for (size_t i = 0; i < sizeof all / sizeof *all; i++) {
        const struct world w = all[i].world;
        const double two = play_sessions(w, 2, 96), forty = play_sessions(w, 40, 96);
        if (two < all[i].two || forty < all[i].forty)
            fail_msg("costs %.2f + %.2f w, taps %.3f, p %.2f: %.3f in two sessions, %.3f in forty",
                     w.first, w.each, w.taps, w.p, two, forty);
    }
}

/* Answers of ten tokens in fresh sessions, each with a whole ring of taps to take in: at no moment
 * has drafting cost more than a twentieth of the time, whatever is accepted. */
static void a_short_answer_loses_nothing(void **state)
{
    (void)state;
    static const struct world all[] = {
        {1.6, 0.44, 0.0, 0.025}, {1.6, 0.44, 0.5, 0.025}, {1.6, 0.44, 0.9, 0.025},
        {0.3, 0.85, 0.0, 0.057}, {0.3, 0.85, 0.9, 0.057}, {1.0, 0.03, 0.0, 0},
        {1.7, 0.01, 0.0, 0.002}, {1.2, 0.75, 0.3, 0},
    };
    for (size_t i = 0; i < sizeof all / sizeof *all; i++) {
        struct play p = start(all[i]);
        kk_take_in_note(&p.c, 512, 1e-6 * STEP_US * 512 * all[i].taps, 0); /* read with a prompt */
        for (int s = 0; s < 60; s++) {
            next_session(&p, 96);
            for (double end = p.tokens + 10; p.tokens < end;) {
                step(&p, (int)(end - p.tokens), 1);
                if (p.seconds > p.tokens / 0.95)
                    fail_msg("world %zu: %.0f tokens took %.1f plain steps (session %d, width %d)",
                             i, p.tokens, p.seconds, s, p.width);
            }
        }
    }
}

/* Gemma-4-26B-A4B on a GPU: plain steps and their drafts as measured on an H100 (0 to 8 rows; more
 * rows a little more), and what its bytes say of them. */
static const double gpu_cost[] = {0, 1, 1.55, 1.75, 1.90, 2.12, 2.25, 2.36, 2.46};
static const struct kk_reading gpu_bytes = {7.645, 2.24, 0.357, 128, 8};

/* An engine's first twelve answers of 96 tokens, over plain decoding; of twenty engines */
static double on_a_gpu(double p)
{
    struct play y = start((struct world){1, 0, p, 0});
    for (int s = 0; s < 20 * 12; s++) {
        const double end = y.tokens + 96;
        if (s % 12 == 0) kk_costs_init(&y.c, 1);
        if (s % 12 == 0) kk_costs_expect(&y.c, &gpu_bytes);
        kk_width_init(&y.w, 0);
        while (y.tokens < end) {
            const int width = kk_width_choose(&y.w, &y.c, (int)(end - y.tokens), 0);
            const double cost = width <= 8 ? gpu_cost[width] : 2.46 + 0.07 * (width - 8);
            int ok = 0;
            while (ok < width - 1 && kk_test_uniform(&y.r, 0, 1) < p) ok++;
            y.seconds += cost;
            kk_width_note(&y.w, &y.c, width - 1, ok);
            kk_cost_note(&y.c, width, 3.2e-3 * cost * kk_test_uniform(&y.r, 0.95, 1.05), ok + 1);
            y.tokens += ok + 1;
        }
    }
    return y.tokens / y.seconds;
}

/* With blocks of four all along they would be 1.33 times as fast at 0.7, and no width pays at 0.5.
 */
static void bytes_tell_the_width(void **state)
{
    (void)state;
    struct kk_step_costs c;
    kk_costs_init(&c, 1);
    kk_costs_expect(&c, &gpu_bytes);
    assert_true(kk_cost_of(&c, 4) > 1.9 && kk_cost_of(&c, 4) < 2.6);
    for (int w = 2; w <= KK_MAX_WIDTH; w++) assert_true(kk_cost_of(&c, w) > kk_cost_of(&c, w - 1));
    kk_cost_note(&c, 1, 1, 1);
    for (int i = 0; i < 2; i++) kk_cost_note(&c, 4, 1.5, 1); /* cheaper: so are wider ones */
    assert_true(kk_cost_of(&c, 8) > 1.5 && kk_cost_of(&c, 8) < 2.5);
    assert_true(on_a_gpu(0.7) > 1.26);
    assert_true(on_a_gpu(0.9) > 2.2);
    for (int p = 0; p < 3; p++) assert_true(on_a_gpu(0.25 * p) > 0.98);
}

/* What one answer taught, the next one knows: it drafts from its first steps on. */
static void the_next_session_knows(void **state)
{
    (void)state;
    struct play p = start((struct world){1.0, 0.03, 0.9, 0});
    int first = 0;
    while (p.tokens < 300) step(&p, KK_MAX_WIDTH, 1);
    next_session(&p, 0);
    while (first < 20 && (step(&p, KK_MAX_WIDTH, 1), p.width) < 8) first++;
    assert_true(first <= 2);
}

/* Acceptance that comes and goes: off when it is bad, on again when it is good. */
static void width_recovers(void **state)
{
    (void)state;
    struct play p = start((struct world){1, 0.1, 0, 0});
    int wide = 0;
    for (int i = 0; i < 3000; i++) {
        p.world.p = i > 1500;
        step(&p, KK_MAX_WIDTH, 1);
        if (i > 1000 && i <= 1500) assert_true(p.width <= 2);
        if (i > 2800) wide += p.width >= 8;
    }
    assert_true(wide > 150);
}

static void pinned_is_pinned(void **state)
{
    (void)state;
    struct kk_step_costs c = {0};
    struct kk_width w;
    kk_width_init(&w, 5);
    assert_int_equal(kk_width_choose(&w, &c, 16, 0), 5);
    assert_int_equal(kk_width_choose(&w, &c, 3, 99), 3);
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
        cmocka_unit_test(width_gains_what_there_is),
        cmocka_unit_test(a_short_answer_loses_nothing),
        cmocka_unit_test(bytes_tell_the_width),
        cmocka_unit_test(the_next_session_knows),
        cmocka_unit_test(width_recovers),
        cmocka_unit_test(pinned_is_pinned),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
