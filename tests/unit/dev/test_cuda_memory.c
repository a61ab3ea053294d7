/* Memory of a GPU and what travels to it; what is said where there is none. */
#include "unit/dev/cuda_test.h"

#include <unistd.h>

#include "kakeya.h"

static struct kk_test_rng rng;

static uint8_t *noise(size_t n)
{
    uint8_t *p = malloc(n + 8);
    for (size_t i = 0; i < n; i += 8) {
        uint64_t w = kk_test_u64(&rng);
        memcpy(p + i, &w, 8);
    }
    return p;
}

static void test_refusals(void **state)
{
    struct kk_err err = {0};
    struct kk_dev *d = NULL;
    (void)state;
    int rc = kk_dev_open_cuda(997, &d, &err);
    assert_null(d);
    if (!gpu) {
        assert_true(rc == KK_EUNSUPPORTED || rc == KK_EUNAVAILABLE);
        assert_non_null(strstr(err.msg, "cuda:997: "));
        return;
    }
    KK_ASSERT_FAILS(rc, KK_EUNAVAILABLE, &err, "cuda:997: this machine has ");
}

static void test_out_of_memory(void **state)
{
    struct kk_err err = {0};
    void *p;
    (void)state;
    NEED_GPU();
    KK_ASSERT_FAILS(kk_dev_alloc(gpu, &gpu_account, (size_t)1 << 44, &p, &err), KK_ENOMEM, &err,
                    "are free");
    KK_ASSERT_OK(kk_dev_alloc(gpu, &gpu_account, 1 << 20, &p, &err), &err);
    kk_dev_free(gpu, &gpu_account, p, 1 << 20);
    gpu->ops->step_begin(gpu);
    KK_ASSERT_OK(gpu->ops->step_end(gpu, &err), &err);
}

/* What the accounts count is what the GPU has less: bytes are those of the allocator (law 1). */
static void test_counted(void **state)
{
    enum { N = 200 };
    void *p[N];
    size_t size[N];
    (void)state;
    NEED_GPU();
    const size_t before = gpu->ops->free_bytes(gpu);
    const int64_t counted = atomic_load(&gpu_account.bytes);
    for (int i = 0; i < N; i++) {
        struct kk_err err = {0};
        size[i] = (size_t)kk_test_between(&rng, 1, i % 10 ? 300000 : 90000000);
        KK_ASSERT_OK(kk_dev_alloc(gpu, &gpu_account, size[i], &p[i], &err), &err);
    }
    const size_t now = gpu->ops->free_bytes(gpu);
    const int64_t bytes = atomic_load(&gpu_account.bytes) - counted;
    const int64_t gone = (int64_t)before - (int64_t)now, slack = (int64_t)(N / 10 + 32) * (2 << 20);
    if (gone < bytes || gone > bytes + slack)
        fail_msg("%lld bytes counted, %lld gone", (long long)bytes, (long long)gone);
    for (int i = 0; i < N; i++) kk_dev_free(gpu, &gpu_account, p[i], size[i]);
    assert_true(gpu->ops->free_bytes(gpu) + (64 << 20) >= before);
}

/* Zeroed, also where it was used before. */
static void test_zeroed(void **state)
{
    const size_t sizes[] = {1, 4096, 33000000, 70000000};
    (void)state;
    NEED_GPU();
    for (int round = 0; round < 2; round++)
        for (int i = 0; i < 4; i++) {
            struct kk_err err = {0};
            void *p;
            KK_ASSERT_OK(kk_dev_alloc(gpu, &gpu_account, sizes[i], &p, &err), &err);
            uint8_t *got = from_gpu(p, sizes[i]);
            for (size_t k = 0; k < sizes[i]; k++) assert_int_equal(got[k], 0);
            memset(got, 0xa5, sizes[i]);
            gpu->ops->upload(gpu, p, got, sizes[i]);
            kk_dev_free(gpu, &gpu_account, p, sizes[i]);
            free(got);
        }
}

/* Uploads of every size, the source spoiled at once, pieces copied within, all brought back. */
static void test_travel(void **state)
{
    (void)state;
    NEED_GPU();
    for (int round = 0; round < 60; round++) {
        const size_t n = round % 20 ? (size_t)kk_test_between(&rng, 1, 300000)
                                    : (size_t)kk_test_between(&rng, 9000000, 40000000);
        uint8_t *want = noise(n), *src = malloc(n);
        char *p = gpu_room(n), *q = gpu_room(n);
        for (size_t at = 0, k; at < n; at += k) {
            k = (size_t)kk_test_between(&rng, 1, round % 2 ? 3000000 : 40000);
            if (k > n - at) k = n - at;
            memcpy(src, want + at, k);
            gpu->ops->upload(gpu, p + at, src, k);
            memset(src, 0xee, k);
        }
        const size_t cut = kk_test_below(&rng, (uint32_t)n);
        gpu->ops->copy(gpu, q, p, cut);
        gpu->ops->copy(gpu, q + cut, p + cut, n - cut);
        uint8_t *got = from_gpu(q, n);
        assert_memory_equal(got, want, n);
        free(got);
        free(src);
        free(want);
        free_all();
    }
}

enum { BLOCKS = 40 };

/* Blocks of the host: paged out to, read back, freed in any order, used again. */
static void test_host_blocks(void **state)
{
    void *host[BLOCKS] = {0};
    uint8_t *want[BLOCKS] = {0};
    (void)state;
    NEED_GPU();
    const size_t sizes[2] = {139264, 40};
    char *p = gpu_room(sizes[0]);
    for (int round = 0; round < 300; round++) {
        const int i = (int)kk_test_below(&rng, BLOCKS);
        const size_t n = sizes[i % 2];
        if (!host[i]) {
            host[i] = gpu->ops->host_alloc(gpu, n);
            assert_non_null(host[i]);
            want[i] = noise(n);
            gpu->ops->upload(gpu, p, want[i], n);
            gpu->ops->page_out(gpu, host[i], p, n);
        } else {
            gpu->ops->download(gpu, NULL, NULL, 0);
            assert_memory_equal(host[i], want[i], n);
            gpu->ops->copy(gpu, p, host[i], n); /* the device reads it in place */
            uint8_t *got = from_gpu(p, n);
            assert_memory_equal(got, want[i], n);
            free(got);
            gpu->ops->host_free(gpu, host[i], n);
            free(want[i]);
            host[i] = NULL;
        }
    }
    for (int i = 0; i < BLOCKS; i++) {
        if (!host[i]) continue;
        gpu->ops->host_free(gpu, host[i], sizes[i % 2]);
        free(want[i]);
    }
    free_all();
}

/* What plan says of an engine with all that can be beside it is what the GPU then has less. Twice:
 * kernels are brought there when they are first used. */
static void test_plan(void **state)
{
    enum { N = 700 };
    (void)state;
    NEED_GPU();
    if (access("models/tiny/config.json", R_OK)) skip();
    for (int round = 0; round < 4; round++) {
        struct kk_engine_options o = kk_engine_defaults();
        struct kk_engine *e = NULL;
        struct kk_session *s = NULL;
        struct kk_plan plan, now;
        struct kk_err err = {0};
        uint32_t ids[N];
        for (int i = 0; i < N; i++) ids[i] = 7 + kk_test_below(&rng, 1000);
        o.model = "models/tiny";
        o.device = "cuda";
        o.ctx = 4096;
        if (round > 1) {
            o.kv = "restored";
            o.f_theta = "models/tiny/f_theta";
            o.draft = "models/tiny/drafter";
        }
        KK_ASSERT_OK(kk_plan_make(&o, N, 1, &plan, &err), &err);
        KK_ASSERT_OK(kk_engine_open(&o, &e, &err), &err);
        KK_ASSERT_OK(kk_session_open(e, &s, &err), &err);
        KK_ASSERT_OK(kk_session_append(s, ids, N, &err), &err);
        KK_ASSERT_OK(kk_plan_make(&o, N, 1, &now, &err), &err);
        const int64_t gone = plan.free_bytes - now.free_bytes, want = plan.total_bytes;
        if (round % 2 && (gone < want - plan.logits_bytes || gone > want + (48 << 20)))
            fail_msg("kv %s: %lld bytes planned, %lld gone", o.kv, (long long)want,
                     (long long)gone);
        kk_session_close(s);
        kk_engine_close(e);
    }
}

int main(void)
{
    rng = kk_test_rng("cuda memory");
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_refusals), cmocka_unit_test(test_out_of_memory),
        cmocka_unit_test(test_counted),  cmocka_unit_test(test_zeroed),
        cmocka_unit_test(test_travel),   cmocka_unit_test(test_host_blocks),
        cmocka_unit_test(test_plan),
    };
    return cmocka_run_group_tests(tests, open_gpu, close_gpu);
}
