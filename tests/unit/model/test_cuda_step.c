/* The whole decode step of a GPU (kk_dev.stack) against the ops one by one: the same rows, read
 * in chunks by the ops and step by step by the stack, give the same logits, bit for bit: of any
 * number of rows, of sessions with contexts of their own, after rejected rows and forks, under
 * each policy, with blocks in host memory too. Three layers of the geometry that the stack is for;
 * the second slides. */
#include "../dev/cuda_test.h"

#include "kv/kv.h"
#include "model/stack_int.h"

enum { SESSIONS = 8, TOKENS = 1340, CHUNK = 64, MOST = 6, STEPS = 48 };

/* where a session's first steps begin: around splits, around the window, before any */
static const int32_t prefix[SESSIONS] = {1010, 1, 127, 1100, 520, 1021, 16, 250};

struct run {
    struct kk_model *m;
    struct kk_kv_pool *pool;
    struct kk_kv *kv[SESSIONS], *parent;
    size_t V;
};

/* resident: blocks of a session's paged layers that stay on the device, 0: nothing is paged; slots:
 * of the ring that the others come through */
struct setup {
    const char *policy;
    int32_t sinks, window;
    int resident, slots;
};

/* The device cap that leaves room for so many blocks of each layer that pages */
static int64_t cap_of(const struct kk_kv_layout *layout, const struct setup *s)
{
    const struct kk_kv_options o = {.policy = s->policy, .sinks = s->sinks, .window = s->window};
    struct kk_kv_rule rule[8];
    struct kk_err err = {0};
    KK_ASSERT_OK(kk_kv_rules(layout, &o, rule, &err), &err);
    return s->resident ? (int64_t)kk_kv_plan_bytes(layout, &o, rule,
                                                   (int64_t)s->resident * KK_KV_BLOCK_ROWS)
                       : 0;
}

static void open_run(struct run *r, const struct setup *s)
{
    struct kk_model_file *mf = NULL;
    struct kk_err err = {0};
    struct kk_kv_layout layout;
    struct kk_kv_options o = {
        .policy = s->policy, .sinks = s->sinks, .window = s->window, .staging_blocks = s->slots};
    const struct kk_kv_limits kl = {SESSIONS, CHUNK, 16, TOKENS + 64};
    const struct kk_model_limits lim = {.max_rows = CHUNK, .max_logit_rows = CHUNK};
    *r = (struct run){0};
    KK_ASSERT_OK(kk_model_file_open("synth:tests/data/step.json:5", &mf, &err), &err);
    KK_ASSERT_OK(kk_model_open(mf, gpu, &lim, NULL, &r->m, &err), &err);
    KK_ASSERT_OK(kk_model_kv_layout(mf, KK_BF16, &layout, &err), &err);
    o.device_cap = cap_of(&layout, s);
    r->V = (size_t)kk_model_info(r->m)->V;
    kk_model_file_close(mf);
    KK_ASSERT_OK(kk_kv_pool_open(gpu, &layout, &o, &kl, &r->pool, &err), &err);
    for (int i = 0; i < SESSIONS; i++) KK_ASSERT_OK(kk_kv_open(r->pool, &r->kv[i], &err), &err);
    kk_free((void *)(size_t)layout.layer);
}

static void close_run(struct run *r)
{
    for (int i = 0; i < SESSIONS; i++) kk_kv_close(r->kv[i]);
    kk_kv_close(r->parent);
    kk_kv_pool_close(r->pool);
    kk_model_close(r->m);
}

static int32_t id_at(int session, int64_t j)
{
    return (int32_t)((j * 7919 + session * 131 + 3) % 1021);
}

/* n[b] rows of session who[b], of which keep[b] are kept (NULL: all); all rows' logits to out.
 * 1: by the stack */
static int step(struct run *r, enum kk_step_kind kind, int B, const int *who, const int32_t *n,
                const int32_t *keep, float *out)
{
    struct kk_err err = {0};
    int32_t ids[CHUNK], rows[CHUNK], choice[CHUNK];
    struct kk_kv *kv[SESSIONS];
    int T = 0;
    for (int b = 0; b < B; b++) {
        kv[b] = r->kv[who[b]];
        for (int32_t k = 0; k < n[b]; k++, T++) {
            ids[T] = id_at(who[b], kk_kv_rows(kv[b]) + k);
            rows[T] = T;
        }
    }
    const struct kk_forward fwd = {.ids = ids, .n_logits = T, .logit_rows = rows};
    KK_ASSERT_OK(kk_kv_begin(r->pool, kind, B, kv, n, &err), &err);
    KK_ASSERT_OK(kk_model_forward(r->m, r->pool, &fwd, &err), &err);
    gpu->ops->download(gpu, out, kk_model_logits(r->m), (size_t)T * r->V * sizeof(float));
    const int whole = r->m->chosen == T;
    KK_ASSERT_OK(kk_model_argmax(r->m, T, choice, &err), &err);
    for (int t = 0; t < T; t++) {
        size_t best = 0;
        for (size_t v = 1; v < r->V; v++)
            if (out[(size_t)t * r->V + v] > out[(size_t)t * r->V + best]) best = v;
        assert_int_equal(choice[t], best);
    }
    kk_kv_commit(r->pool, keep);
    return whole;
}

/* Session i's rows up to `end`, by the ops; all: where each position's logits go, or NULL */
static void read_on(struct run *r, int i, int32_t end, float *all, float *tmp)
{
    for (int32_t j = 0, n; j < end; j += n) {
        n = end - j < CHUNK ? end - j : CHUNK;
        assert_false(step(r, KK_STEP_CHUNK, 1, &i, &n, NULL,
                          all ? all + ((size_t)i * TOKENS + (size_t)j) * r->V : tmp));
    }
}

/* Session i becomes a fork of itself; its parent stays for a while, so that the fork writes to what
 * it shares. */
static void fork_one(struct run *r, int i)
{
    struct kk_err err = {0};
    struct kk_kv *fork;
    KK_ASSERT_OK(kk_kv_fork(r->kv[i], &fork, &err), &err);
    kk_kv_close(r->parent);
    r->parent = r->kv[i];
    r->kv[i] = fork;
}

static void assert_rows(const struct run *r, const float *got, const float *all, int session,
                        int64_t first, int n)
{
    const float *want = all + ((size_t)session * TOKENS + (size_t)first) * r->V;
    if (!memcmp(got, want, (size_t)n * r->V * sizeof(float))) return;
    for (size_t i = 0; i < (size_t)n * r->V; i++)
        if (memcmp(&got[i], &want[i], sizeof(float)))
            fail_msg("session %d, row %lld of %d from %lld, logit %zu: %.9g by the stack, %.9g",
                     session, (long long)(i / r->V), n, (long long)first, i % r->V, (double)got[i],
                     (double)want[i]);
}

/* One step of T rows, of B sessions drawn anew. */
static void random_step(struct run *r, struct kk_test_rng *rng, int T, int B, const float *all,
                        float *out)
{
    int who[SESSIONS], left = SESSIONS;
    int32_t n[SESSIONS], keep[SESSIONS];
    int64_t at[SESSIONS];
    for (int b = 0; b < SESSIONS; b++) who[b] = b;
    for (int b = 0; b < B; b++, left--) {
        const int k = b + (int)kk_test_below(rng, (uint32_t)left), w = who[b];
        who[b] = who[k], who[k] = w;
        n[b] = 1;
    }
    for (int t = B; t < T; t++) n[kk_test_below(rng, (uint32_t)B)]++;
    for (int b = 0; b < B; b++) {
        keep[b] = kk_test_below(rng, 3) ? n[b] : 1 + (int32_t)kk_test_below(rng, (uint32_t)n[b]);
        at[b] = kk_kv_rows(r->kv[who[b]]);
    }
    assert_true(step(r, KK_STEP_HOLD, B, who, n, keep, out));
    for (int b = 0; b < B; out += (size_t)n[b++] * r->V)
        assert_rows(r, out, all, who[b], at[b], n[b]);
}

static void test_setup(const struct setup *s)
{
    const struct setup whole = {s->policy, s->sinks, s->window, 0, 0};
    struct run a, b;
    struct kk_test_rng rng = kk_test_rng(s->policy);
    if (!gpu->stack) skip();
    open_run(&a, &whole);
    float *all = kk_calloc((size_t)SESSIONS * TOKENS * a.V, sizeof *all);
    float *out = kk_calloc(CHUNK * a.V, sizeof *out);
    for (int i = 0; i < SESSIONS; i++)
        read_on(&a, i, prefix[i] + 8 * STEPS < TOKENS ? prefix[i] + 8 * STEPS : TOKENS, all, NULL);
    close_run(&a);
    open_run(&b, s);
    for (int i = 0; i < SESSIONS; i++) read_on(&b, i, prefix[i], NULL, out);
    for (int k = 0; k < STEPS; k++) {
        const int T = 1 + k % MOST, B = k < MOST ? T : 1 + (int)kk_test_below(&rng, (uint32_t)T);
        if (k % 5 == 3) fork_one(&b, (int)kk_test_below(&rng, SESSIONS));
        random_step(&b, &rng, T, B, all, out);
    }
    close_run(&b);
    kk_free(all);
    kk_free(out);
}

static void test_native(void **state)
{
    (void)state;
    NEED_GPU();
    test_setup(&(struct setup){"native", 0, 0, 0, 0});
}

static void test_full(void **state)
{
    (void)state;
    NEED_GPU();
    test_setup(&(struct setup){"full", 0, 0, 0, 0});
}

static void test_s5(void **state)
{
    (void)state;
    NEED_GPU();
    test_setup(&(struct setup){"s5", 4, 300, 0, 0});
}

static void test_sinkwin(void **state)
{
    (void)state;
    NEED_GPU();
    test_setup(&(struct setup){"sinkwin", 20, 200, 0, 0});
}

#ifdef KK_CUDA_STEP_PAGES
#define NEED_PAGES() (void)0
#else
#define NEED_PAGES() skip() /* built without CUDA_STEP_PAGES=1 */
#endif

static void test_pages(void **state)
{
    (void)state;
    NEED_GPU();
    NEED_PAGES();
    test_setup(&(struct setup){"native", 0, 0, 2, 64});
}

static void test_few_slots(void **state)
{
    (void)state;
    NEED_GPU();
    NEED_PAGES();
    test_setup(&(struct setup){"s5", 4, 64, 1, 2});
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_native), cmocka_unit_test(test_full),
        cmocka_unit_test(test_s5),     cmocka_unit_test(test_sinkwin),
        cmocka_unit_test(test_pages),  cmocka_unit_test(test_few_slots),
    };
    return cmocka_run_group_tests(tests, open_gpu, close_gpu);
}
