/* The winner of a product is what linear and argmax find, on every device and for every cut of the
 * rows: ties, infinities and NaNs too, and where the vocabulary fills no panel. */
#include "base/quant.h"
#include "dev_test.h"

static const enum kk_dtype types[] = {KK_F32,  KK_BF16, KK_F16,  KK_Q4_0, KK_Q4_1, KK_Q5_0,
                                      KK_Q5_1, KK_Q8_0, KK_Q4_K, KK_Q5_K, KK_Q6_K};
enum { N_TYPES = sizeof types / sizeof *types, MOST_ROWS = 80 };

/* What the weights and the input hold: random bytes of blocks are all kinds of scales. */
enum contents { PLAIN, ALL_EQUAL, NANS, INFINITIES, LARGE, N_CONTENTS };

static void spoil(float *x, int64_t n, enum contents what)
{
    for (int64_t i = 0; i < n; i++) {
        if (what == ALL_EQUAL) x[i] = 0;
        if (what == LARGE) x[i] *= 1e4f;
        if (what == NANS && between(0, 40) == 0) x[i] = NAN;
        if (what == INFINITIES && between(0, 40) == 0) x[i] = between(0, 1) ? INFINITY : -INFINITY;
    }
}

static void *stored(enum kk_dtype t, int64_t V, int64_t C, enum contents what)
{
    const int64_t n = V * C;
    if (kk_dtype_is_block(t) && t != KK_Q8_0) {
        const size_t bytes = (size_t)(n / kk_dtype_block(t)) * kk_dtype_block_bytes(t);
        uint8_t *blocks = malloc(bytes);
        for (size_t i = 0; i < bytes; i++) blocks[i] = (uint8_t)kk_test_u64(&rng);
        return blocks;
    }
    float *w = normals(n, 1);
    for (int64_t r = 0; r < V; r++) {
        if (t != KK_Q8_0 && between(0, 9) == 0) spoil(w + r * C, C, what);
        if (r && between(0, 3) == 0) memcpy(w + r * C, w + (r - 1) * C, (size_t)C * 4); /* a tie */
    }
    void *s = to_dtype(t, w, n);
    free(w);
    return s;
}

static int64_t first_largest(const float *x, int64_t n)
{
    int64_t best = 0;
    for (int64_t i = 1; i < n; i++)
        if (x[i] > x[best] || (isnan(x[best]) && !isnan(x[i]))) best = i;
    return best;
}

struct run {
    struct kk_winner_args a;
    struct kk_weight w;
    int32_t want[MOST_ROWS];
};

/* linear, and then argmax: the op's, and the definition */
static void slow_way(struct kk_dev *d, struct run *r, float *y)
{
    struct kk_linear_args l = {.T = r->a.T, .n = 1, .softcap = r->a.softcap};
    l.x = r->a.x;
    l.w[0] = &r->w;
    l.y[0] = y;
    d->ops->linear(d, &l);
    d->ops->argmax(d,
                   &(struct kk_argmax_args){.T = r->a.T, .n = r->w.rows, .x = y, .out = r->want});
    for (int t = 0; t < r->a.T; t++)
        assert_int_equal(r->want[t], first_largest(y + t * r->w.rows, r->w.rows));
}

static void fast_way(struct kk_dev *d, const struct run *r, int t0, int t1)
{
    int32_t got[MOST_ROWS];
    struct kk_winner_args a = r->a;
    a.T = t1 - t0;
    a.x = (const float *)r->a.x + t0 * r->w.cols;
    a.out = got;
    memset(got, 0x7f, sizeof got);
    d->ops->winner(d, &a);
    for (int t = t0; t < t1; t++)
        if (got[t - t0] != r->want[t])
            fail_msg("%s, %s %d x %d, row %d of %d: %d wins, linear and argmax have %d", d->name,
                     kk_dtype_name(r->w.dtype), (int)r->w.rows, (int)r->w.cols, t, r->a.T,
                     got[t - t0], r->want[t]);
}

static void check(enum kk_dtype t, int T, int64_t V, int64_t C, enum contents what)
{
    float *x = normals((int64_t)T * C, 1), *y = malloc((size_t)(T * V) * sizeof *y);
    void *data = stored(t, V, C, what);
    int32_t oracle[MOST_ROWS];
    for (int r = 0; r < T; r++)
        if (between(0, 2) == 0) spoil(x + r * C, C, what);
    for (int i = 0; i < n_devs; i++) {
        struct kk_account acc = {.name = "weights"};
        struct kk_err err = {0};
        struct run r = {.a = {.T = T, .x = x, .softcap = what == LARGE ? 3.0f : 0}};
        const struct kk_weight_src src = {
            .dtype = t, .n_mats = 1, .rows = V, .cols = C, .data = data};
        KK_ASSERT_OK(devs[i]->ops->weight_load(devs[i], &src, &acc, &r.w, &err), &err);
        r.a.w = &r.w;
        devs[i]->ops->step_begin(devs[i]);
        kk_mem_guard_enter("test");
        slow_way(devs[i], &r, y);
        if (!i) memcpy(oracle, r.want, sizeof oracle);
        assert_memory_equal(r.want, oracle, (size_t)T * sizeof *oracle);
        fast_way(devs[i], &r, 0, T);
        for (int t0 = 0, n; t0 < T; t0 += n) {
            n = between(1, 20);
            if (n > T - t0) n = T - t0;
            fast_way(devs[i], &r, t0, t0 + n);
        }
        kk_mem_guard_leave();
        KK_ASSERT_OK(devs[i]->ops->step_end(devs[i], &err), &err);
        kk_weight_free(devs[i], &r.w);
    }
    free(x);
    free(y);
    free(data);
}

static void test_winner(void **state)
{
    (void)state;
    for (int n = 0; n < N_TYPES * N_CONTENTS; n++) {
        const enum kk_dtype t = types[n % N_TYPES];
        const int64_t C = kk_dtype_is_block(t) ? (int64_t)kk_dtype_block(t) : between(1, 40);
        check(t, n % 4 ? between(1, 9) : between(60, MOST_ROWS), between(1, n % 5 ? 200 : 3000), C,
              (enum contents)(n % N_CONTENTS));
    }
    check(KK_BF16, 1, 40007, 33, PLAIN); /* more than a thread's scratch holds at once */
    check(KK_F32, MOST_ROWS, 5003, 16, ALL_EQUAL);
}

/* A device without the op: the same from linear and argmax. */
static void test_without(void **state)
{
    (void)state;
    struct kk_dev *d = devs[0];
    const struct kk_ops *ops = d->ops;
    struct kk_ops less = *ops;
    struct kk_account acc = {.name = "weights"};
    struct kk_err err = {0};
    struct run r = {.a = {.T = 7, .softcap = 2}};
    float *w = normals(50 * 12, 1), *x = normals(7 * 12, 1), y[2][7 * 50];
    int32_t got[7];
    const struct kk_weight_src src = {
        .dtype = KK_F32, .n_mats = 1, .rows = 50, .cols = 12, .data = w};
    KK_ASSERT_OK(ops->weight_load(d, &src, &acc, &r.w, &err), &err);
    r.a.x = x;
    r.a.w = &r.w;
    r.a.out = got;
    ops->step_begin(d);
    slow_way(d, &r, y[0]);
    kk_dev_winner(d, &r.a, NULL);
    assert_memory_equal(got, r.want, sizeof got);
    memset(got, 0x7f, sizeof got);
    less.winner = NULL;
    d->ops = &less;
    kk_dev_check(d);
    kk_dev_winner(d, &r.a, y[1]);
    d->ops = ops;
    assert_memory_equal(got, r.want, sizeof got);
    assert_memory_equal(y[1], y[0], sizeof y[0]);
    KK_ASSERT_OK(ops->step_end(d, &err), &err);
    kk_weight_free(d, &r.w);
    free(w);
    free(x);
}

static int open_f32(void **state)
{
    block_act = KK_ACT_F32;
    return open_devs(state);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_winner),
                                       cmocka_unit_test(test_without)};
    const struct CMUnitTest again[] = {cmocka_unit_test(test_winner)};
    rng = kk_test_rng("winner");
    int failed = cmocka_run_group_tests(tests, open_devs, close_devs);
    return failed + cmocka_run_group_tests(again, open_f32, close_devs);
}
