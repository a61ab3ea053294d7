/* The whole decode step of a GPU (kk_dev.stack) against the ops one by one: the same rows, read in
 * chunks by the ops and step by step by the stack, give the same logits, bit for bit; whatever the
 * rows of a step, whatever was rejected, alone and with another session. Two layers of the geometry
 * that the stack is for: one that slides, one that does not. */
#include "../dev/cuda_test.h"

#include "kv/kv.h"
#include "model/stack_int.h"

enum { TOKENS = 1330, PREFIX = 1010, CHUNK = 64, MOST = 8 };

struct run {
    struct kk_model *m;
    struct kk_kv_pool *pool;
    struct kk_kv *kv[2];
    size_t V;
};

static void open_run(struct run *r)
{
    struct kk_model_file *mf = NULL;
    struct kk_err err = {0};
    struct kk_kv_layout layout;
    const struct kk_kv_options o = {.policy = "native"};
    const struct kk_kv_limits kl = {2, CHUNK, 16, TOKENS + 64};
    const struct kk_model_limits lim = {.max_rows = CHUNK, .max_logit_rows = CHUNK};
    KK_ASSERT_OK(kk_model_file_open("synth:tests/data/step.json:5", &mf, &err), &err);
    KK_ASSERT_OK(kk_model_open(mf, gpu, &lim, NULL, &r->m, &err), &err);
    KK_ASSERT_OK(kk_model_kv_layout(mf, KK_BF16, &layout, &err), &err);
    r->V = (size_t)kk_model_info(r->m)->V;
    kk_model_file_close(mf);
    KK_ASSERT_OK(kk_kv_pool_open(gpu, &layout, &o, &kl, &r->pool, &err), &err);
    for (int i = 0; i < 2; i++) KK_ASSERT_OK(kk_kv_open(r->pool, &r->kv[i], &err), &err);
    kk_free((void *)(size_t)layout.layer);
}

static void close_run(struct run *r)
{
    for (int i = 0; i < 2; i++) kk_kv_close(r->kv[i]);
    kk_kv_pool_close(r->pool);
    kk_model_close(r->m);
}

static int32_t id_at(int session, int64_t j)
{
    return (int32_t)((j * 7919 + session * 131 + 3) % 1021);
}

/* n[i] rows of session first + i, of which keep[i] are kept; all rows' logits to out. 1: by the
 * stack */
static int step(struct run *r, enum kk_step_kind kind, int first, int B, const int32_t *n,
                const int32_t *keep, float *out)
{
    struct kk_err err = {0};
    int32_t ids[CHUNK], rows[CHUNK], choice[CHUNK];
    int T = 0;
    for (int i = 0; i < B; i++)
        for (int32_t k = 0; k < n[i]; k++, T++) {
            ids[T] = id_at(first + i, kk_kv_rows(r->kv[first + i]) + k);
            rows[T] = T;
        }
    const struct kk_forward fwd = {.ids = ids, .n_logits = T, .logit_rows = rows};
    KK_ASSERT_OK(kk_kv_begin(r->pool, kind, B, r->kv + first, n, &err), &err);
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

/* Logits of every position of both sessions, by the ops */
static float *by_ops(struct run *r)
{
    float *all = kk_calloc(2 * (size_t)TOKENS * r->V, sizeof *all);
    for (int i = 0; i < 2; i++)
        for (int32_t j = 0; j < TOKENS;) {
            const int32_t n = TOKENS - j < CHUNK ? TOKENS - j : CHUNK;
            assert_false(step(r, KK_STEP_CHUNK, i, 1, &n, NULL,
                              all + ((size_t)i * TOKENS + (size_t)j) * r->V));
            j += n;
        }
    return all;
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

static void test_steps(void **state)
{
    static const int32_t rows[][2] = {{1, 0}, {1, 0}, {8, 0}, {0, 1}, {0, 8}, {3, 2},
                                      {5, 0}, {1, 1}, {2, 0}, {4, 4}, {0, 3}, {7, 1}};
    struct run a, b;
    (void)state;
    NEED_GPU();
    if (!gpu->stack) skip();
    open_run(&a);
    float *all = by_ops(&a), *out = kk_calloc(CHUNK * a.V, sizeof *out);
    close_run(&a);
    open_run(&b);
    for (int i = 0; i < 2; i++)
        for (int32_t j = 0, n; j < PREFIX + 40 * i; j += n) {
            n = PREFIX + 40 * i - j < CHUNK ? PREFIX + 40 * i - j : CHUNK;
            step(&b, KK_STEP_CHUNK, i, 1, &n, NULL, out);
        }
    for (int k = 0; kk_kv_rows(b.kv[0]) < TOKENS - 16 && kk_kv_rows(b.kv[1]) < TOKENS - 16; k++) {
        const int32_t *n = rows[k % 12];
        const int first = n[0] ? 0 : 1, B = n[0] && n[1] ? 2 : 1;
        const int64_t at[2] = {kk_kv_rows(b.kv[0]), kk_kv_rows(b.kv[1])};
        int32_t keep[2];
        for (int i = 0; i < 2; i++) keep[i] = n[i] > 2 && k % 3 == 1 ? n[i] - 2 : n[i];
        assert_true(step(&b, KK_STEP_HOLD, first, B, n + first, keep + first, out));
        if (n[0]) assert_rows(&b, out, all, 0, at[0], n[0]);
        if (n[1]) assert_rows(&b, out + (size_t)n[0] * b.V, all, 1, at[1], n[1]);
    }
    close_run(&b);
    kk_free(all);
    kk_free(out);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_steps),
    };
    return cmocka_run_group_tests(tests, open_gpu, close_gpu);
}
