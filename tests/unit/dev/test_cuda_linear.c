/* Products on the CUDA device: against the CPU's, and a row's bits in any company. */
#include "unit/dev/cuda_product.h"

enum { MOST_ORACLE_ROWS = 40 };

/* ---- linear ---- */

struct linear_case {
    int T, n, K, N[3], with_bias;
    float softcap;
    struct pair w[3];
    void *x;
    float *bias[3];
};

static void run_linear(const void *c, int t0, int n, void *out)
{
    const struct linear_case *k = c;
    struct kk_linear_args a = {.T = n, .n = k->n, .softcap = k->softcap};
    char *at = out;
    a.x = (const char *)k->x + (size_t)t0 * (size_t)k->K * 2;
    size_t width = 0;
    void *y[3] = {0};
    for (int i = 0; i < k->n; i++) {
        a.w[i] = &k->w[i].gpu;
        a.bias[i] = k->with_bias >> i & 1 ? k->bias[i] : NULL;
        a.y[i] = y[i] = gpu_room((size_t)n * (size_t)k->N[i] * 4);
        width += (size_t)k->N[i] * 4;
    }
    gpu->ops->step_begin(gpu);
    gpu->ops->linear(gpu, &a);
    end_step(gpu);
    for (int i = 0; i < k->n; i++) {
        const size_t bytes = (size_t)k->N[i] * 4;
        char *got = from_gpu(y[i], (size_t)n * bytes);
        for (int t = 0; t < n; t++) memcpy(at + (size_t)t * width, got + (size_t)t * bytes, bytes);
        at += bytes;
        free(got);
    }
    for (int i = 0; i < k->n; i++) free_last();
}

static void oracle_linear(const struct linear_case *k, const float *x, int T, float *const bias[3],
                          const char *got, size_t width)
{
    struct kk_linear_args a = {.T = T, .n = k->n, .x = x, .softcap = k->softcap};
    for (int i = 0; i < k->n; i++) {
        a.w[i] = &k->w[i].cpu;
        a.bias[i] = k->with_bias >> i & 1 ? bias[i] : NULL;
        a.y[i] = malloc((size_t)T * (size_t)k->N[i] * 4);
    }
    cpu->ops->step_begin(cpu);
    cpu->ops->linear(cpu, &a);
    end_step(cpu);
    for (int i = 0; i < k->n; i++) {
        for (int t = 0; t < T; t++)
            near("linear", t, (const float *)(got + (size_t)t * width),
                 a.y[i] + (size_t)t * (size_t)k->N[i], k->N[i], 3e-5);
        got += (size_t)k->N[i] * 4;
        free(a.y[i]);
    }
}

static void check_linear(struct linear_case k)
{
    uint16_t *raw = halves((int64_t)k.T * k.K, 1.7f);
    float *x = widened(raw, (int64_t)k.T * k.K), *bias[3] = {0};
    size_t width = 0;
    reserve_both(k.T, k.K, 0, 0, 0);
    k.x = to_gpu(raw, (size_t)k.T * (size_t)k.K * 2);
    for (int i = 0; i < k.n; i++) {
        make_pair(&k.w[i], 1, k.N[i], k.K);
        bias[i] = malloc((size_t)k.N[i] * 4);
        kk_test_fill_normal(&rng, bias[i], (size_t)k.N[i], 1);
        k.bias[i] = to_gpu(bias[i], (size_t)k.N[i] * 4);
        width += (size_t)k.N[i] * 4;
    }
    const struct cut_check cut = {"linear", k.T, width, run_linear};
    char *got = check_cuts(&cut, &k);
    oracle_linear(&k, x, k.T < MOST_ORACLE_ROWS ? k.T : MOST_ORACLE_ROWS, bias, got, width);
    for (int i = 0; i < k.n; i++) {
        free_pair(&k.w[i]);
        free(bias[i]);
    }
    free(got);
    free(x);
    free(raw);
    free_all();
}

static void test_linear_random(void **state)
{
    (void)state;
    NEED_GPU();
    for (int round = 0; round < 24; round++) {
        struct linear_case k = {.T = kk_test_between(&rng, 1, 80),
                                .n = kk_test_between(&rng, 1, 3),
                                .with_bias = kk_test_between(&rng, 0, 7)};
        k.K = kk_test_between(&rng, 1, 700);
        if (round % 3) k.K = k.K / 8 * 8 + 8;
        for (int i = 0; i < 3; i++) k.N[i] = kk_test_between(&rng, 1, 300);
        if (round % 4 == 0) k.softcap = 3;
        check_linear(k);
    }
}

/* Chains of 8 and of 11, whole and not; many; tiny */
static void test_linear_chains(void **state)
{
    (void)state;
    NEED_GPU();
    static const int K[] = {8, 16, 104, 128, 136, 176, 352, 1408, 1424, 2048, 4104, 9008, 30000};
    for (int i = 0; i < 13; i++)
        check_linear((struct linear_case){.T = 70, .n = 1, .K = K[i], .N = {37}});
}

/* Every shape of bench/configs/gemma-4-26b-a4b.json; of the head an eighth */
static void test_linear_26b(void **state)
{
    (void)state;
    NEED_GPU();
    check_linear((struct linear_case){.T = 530, .n = 3, .K = 2816, .N = {4096, 2048, 2048}});
    check_linear((struct linear_case){.T = 530, .n = 2, .K = 2816, .N = {8192, 1024}});
    check_linear((struct linear_case){.T = 530, .n = 1, .K = 4096, .N = {2816}});
    check_linear((struct linear_case){.T = 300, .n = 1, .K = 8192, .N = {2816}});
    check_linear((struct linear_case){.T = 530, .n = 1, .K = 2112, .N = {2816}});
    check_linear((struct linear_case){.T = 130, .n = 1, .K = 2816, .N = {32768}, .softcap = 30});
}

/* ---- glu ---- */

struct glu_case {
    int T, K, F;
    enum kk_activation act;
    struct pair gate, up;
    void *x;
};

static void run_glu(const void *c, int t0, int n, void *out)
{
    const struct glu_case *k = c;
    const size_t bytes = (size_t)n * (size_t)k->F * 2;
    void *y = gpu_room(bytes);
    gpu->ops->step_begin(gpu);
    gpu->ops->glu(gpu,
                  &(struct kk_glu_args){.T = n,
                                        .act = k->act,
                                        .x = (const char *)k->x + (size_t)t0 * (size_t)k->K * 2,
                                        .gate = &k->gate.gpu,
                                        .up = &k->up.gpu,
                                        .y = y});
    end_step(gpu);
    gpu->ops->download(gpu, out, y, bytes);
    free_last();
}

static void check_glu(struct glu_case k)
{
    const int T = k.T < MOST_ORACLE_ROWS ? k.T : MOST_ORACLE_ROWS;
    uint16_t *raw = halves((int64_t)k.T * k.K, 1.7f);
    float *x = widened(raw, (int64_t)k.T * k.K);
    float *want = malloc((size_t)T * (size_t)k.F * 4);
    k.x = to_gpu(raw, (size_t)k.T * (size_t)k.K * 2);
    reserve_both(k.T, k.K, 0, 0, 0);
    make_pair(&k.gate, 1, k.F, k.K);
    make_pair(&k.up, 1, k.F, k.K);
    const struct cut_check cut = {"glu", k.T, (size_t)k.F * 2, run_glu};
    uint16_t *got = check_cuts(&cut, &k);
    float *y = widened(got, (int64_t)T * k.F);
    cpu->ops->step_begin(cpu);
    cpu->ops->glu(
        cpu, &(struct kk_glu_args){
                 .T = T, .act = k.act, .x = x, .gate = &k.gate.cpu, .up = &k.up.cpu, .y = want});
    end_step(cpu);
    for (int t = 0; t < T; t++)
        near("glu", t, y + (size_t)t * (size_t)k.F, want + (size_t)t * (size_t)k.F, k.F, 4e-3);
    free_pair(&k.gate);
    free_pair(&k.up);
    free(y);
    free(got);
    free(want);
    free(x);
    free(raw);
    free_all();
}

static void test_glu(void **state)
{
    (void)state;
    NEED_GPU();
    for (int round = 0; round < 16; round++) {
        struct glu_case k = {.T = kk_test_between(&rng, 1, 80),
                             .K = kk_test_between(&rng, 1, 500),
                             .F = kk_test_between(&rng, 1, 300),
                             .act = round % 2 ? KK_SILU : KK_GELU_TANH};
        if (round % 3) k.K = k.K / 8 * 8 + 8;
        check_glu(k);
    }
    check_glu((struct glu_case){.T = 530, .K = 2816, .F = 2112});
}

int main(int argc, char **argv) /* a pattern of tests, for a GPU's sanitizer */
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_linear_random),
        cmocka_unit_test(test_linear_chains),
        cmocka_unit_test(test_linear_26b),
        cmocka_unit_test(test_glu),
    };
    if (argc > 1) cmocka_set_test_filter(argv[1]);
    return cmocka_run_group_tests(tests, open_both, close_both);
}
