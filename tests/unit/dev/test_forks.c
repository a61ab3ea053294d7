/* How often the threads of a step meet: tens of times in a model of eight layers, not hundreds. */
#include "kk_test.h"

#include <stdio.h>

#include "base/mem.h"
#include "base/pool.h"
#include "dev/cpu/cpu_int.h"
#include "kv/kv.h"
#include "model/model.h"

enum { PROMPT = 500, CHUNK = 512, LAYERS = 8 };

struct run {
    struct kk_dev *dev;
    struct kk_model *m;
    struct kk_kv_pool *pool;
    struct kk_kv *kv;
};

static void open_run(struct run *r)
{
    struct kk_model_file *mf = NULL;
    struct kk_err err = {0};
    struct kk_kv_layout layout;
    const struct kk_kv_options o = {.policy = "native"};
    const struct kk_kv_limits kl = {1, CHUNK, 32, 0};
    const struct kk_model_limits lim = {.max_rows = CHUNK, .max_logit_rows = 32};
    KK_ASSERT_OK(kk_dev_open_cpu("auto", 2, &r->dev, &err), &err);
    KK_ASSERT_OK(kk_model_file_open("models/tiny", &mf, &err), &err);
    KK_ASSERT_OK(kk_model_open(mf, r->dev, &lim, NULL, &r->m, &err), &err);
    KK_ASSERT_OK(kk_model_kv_layout(mf, KK_BF16, &layout, &err), &err);
    assert_int_equal(layout.n_layers, LAYERS);
    kk_model_file_close(mf);
    KK_ASSERT_OK(kk_kv_pool_open(r->dev, &layout, &o, &kl, &r->pool, &err), &err);
    KK_ASSERT_OK(kk_kv_open(r->pool, &r->kv, &err), &err);
    kk_free((void *)(size_t)layout.layer);
}

static void close_run(struct run *r)
{
    kk_kv_close(r->kv);
    kk_kv_pool_close(r->pool);
    kk_model_close(r->m);
    kk_dev_close(r->dev);
}

/* Forks of one forward of n rows, of whose last the next token is asked. */
static int forks_of(struct run *r, int32_t n)
{
    struct kk_err err = {0};
    int32_t ids[CHUNK], last = n - 1;
    for (int32_t i = 0; i < n; i++) ids[i] = (i * 7919 + 3) % 2000;
    const struct kk_forward fwd = {.ids = ids, .n_logits = 1, .logit_rows = &last, .choose = 1};
    const uint64_t before = kk_pool_forks(kk__cpu(r->dev)->pool);
    KK_ASSERT_OK(kk_kv_begin(r->pool, KK_STEP_CHUNK, 1, &r->kv, &n, &err), &err);
    KK_ASSERT_OK(kk_model_forward(r->m, r->pool, &fwd, &err), &err);
    kk_kv_commit(r->pool, &n);
    return (int)(kk_pool_forks(kk__cpu(r->dev)->pool) - before);
}

static void tens_of_forks_a_step(void **state)
{
    (void)state;
    static const int32_t rows[] = {1, 16, PROMPT, 1};
    struct run r;
    open_run(&r);
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        const long long at = kk_kv_rows(r.kv);
        const int n = forks_of(&r, rows[i]);
        print_message("    %d rows at %lld: %d forks\n", (int)rows[i], at, n);
        assert_in_range(n, LAYERS, (rows[i] == 1 ? 8 : 15) * LAYERS);
    }
    close_run(&r);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(tens_of_forks_a_step),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
