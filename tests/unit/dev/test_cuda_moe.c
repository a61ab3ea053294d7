/* The router and the experts on the CUDA device: against the CPU's, and a row's bits in any
 * company, however rows spread over experts. */
#include "unit/dev/cuda_product.h"

enum { MOST_ORACLE_ROWS = 24 };

/* ---- route ---- */

struct route_case {
    int T, E, A, C;
    struct pair w;
    void *x;
    float *scale;
};

struct choice { /* of one row */
    int32_t idx[32];
    float weight[32];
};

static void run_route(const void *c, int t0, int n, void *out)
{
    const struct route_case *k = c;
    const size_t bytes = (size_t)n * (size_t)k->A * 4;
    struct choice *to = out;
    void *idx = gpu_room(bytes), *weight = gpu_room(bytes);
    gpu->ops->step_begin(gpu);
    gpu->ops->route(gpu,
                    &(struct kk_route_args){.T = n,
                                            .E = k->E,
                                            .A = k->A,
                                            .x = (const char *)k->x + (size_t)t0 * (size_t)k->C * 2,
                                            .w = &k->w.gpu,
                                            .expert_scale = k->scale,
                                            .idx = idx,
                                            .weight = weight});
    end_step(gpu);
    int32_t *i = from_gpu(idx, bytes);
    float *w = from_gpu(weight, bytes);
    memset(to, 0, (size_t)n * sizeof *to);
    for (int t = 0; t < n; t++) {
        memcpy(to[t].idx, i + t * k->A, (size_t)k->A * 4);
        memcpy(to[t].weight, w + t * k->A, (size_t)k->A * 4);
    }
    free(i);
    free(w);
    free_last();
    free_last();
}

/* The same experts but for near ties, which may change places; weights near the CPU's. */
static void near_choice(const struct route_case *k, int t, const struct choice *got,
                        const int32_t *idx, const float *weight, const float *logits,
                        const float *scale)
{
    for (int i = 0; i < k->A; i++) {
        const int e = got->idx[i];
        assert_in_range(e, 0, k->E - 1);
        for (int j = 0; j < i; j++) assert_int_not_equal(got->idx[j], e);
        if (!(fabsf(logits[e] - logits[idx[i]]) < 1e-3f))
            fail_msg("route: row %d: expert %d at %d, where the CPU has %d", t, e, i, (int)idx[i]);
        const float want = weight[i] / scale[idx[i]] * scale[e];
        if (!(fabsf(got->weight[i] - want) <= 2e-3f * fabsf(want)))
            fail_msg("route: row %d: weight %g, the CPU's %g", t, (double)got->weight[i],
                     (double)want);
    }
}

static void oracle_route(const struct route_case *k, const float *x, const float *scale,
                         const struct choice *got)
{
    const size_t T = (size_t)(k->T < MOST_ORACLE_ROWS ? k->T : MOST_ORACLE_ROWS);
    const size_t A = (size_t)k->A, E = (size_t)k->E;
    int32_t *idx = malloc(T * A * 4);
    float *weight = malloc(T * A * 4), *logits = malloc(T * E * 4);
    cpu->ops->step_begin(cpu);
    cpu->ops->route(cpu, &(struct kk_route_args){.T = (int)T,
                                                 .E = k->E,
                                                 .A = k->A,
                                                 .x = x,
                                                 .w = &k->w.cpu,
                                                 .expert_scale = scale,
                                                 .idx = idx,
                                                 .weight = weight});
    cpu->ops->linear(cpu, &(struct kk_linear_args){
                              .T = (int)T, .n = 1, .x = x, .w = {&k->w.cpu}, .y = {logits}});
    end_step(cpu);
    for (size_t t = 0; t < T; t++)
        near_choice(k, (int)t, &got[t], idx + t * A, weight + t * A, logits + t * E, scale);
    free(idx);
    free(weight);
    free(logits);
}

static void check_route(struct route_case k)
{
    uint16_t *raw = halves((int64_t)k.T * k.C, 1.7f);
    float *x = widened(raw, (int64_t)k.T * k.C), *scale = malloc((size_t)k.E * 4);
    reserve_both(k.T, k.C, k.E, k.A, 16);
    for (int i = 0; i < k.E; i++) scale[i] = kk_test_uniform(&rng, 0.5f, 2);
    k.x = to_gpu(raw, (size_t)k.T * (size_t)k.C * 2);
    k.scale = to_gpu(scale, (size_t)k.E * 4);
    make_pair(&k.w, 1, k.E, k.C);
    const struct cut_check cut = {"route", k.T, sizeof(struct choice), run_route};
    struct choice *got = check_cuts(&cut, &k);
    oracle_route(&k, x, scale, got);
    free_pair(&k.w);
    free(got);
    free(scale);
    free(x);
    free(raw);
    free_all();
}

static void test_route(void **state)
{
    (void)state;
    NEED_GPU();
    for (int round = 0; round < 12; round++) {
        struct route_case k = {.T = kk_test_between(&rng, 1, 80),
                               .E = kk_test_between(&rng, 1, round % 3 ? 130 : 1024),
                               .C = kk_test_between(&rng, 1, 400)};
        k.A = kk_test_between(&rng, 1, k.E < 32 ? k.E : 32);
        if (round % 3) k.C = k.C / 8 * 8 + 8;
        check_route(k);
    }
    check_route((struct route_case){.T = 530, .E = 128, .A = 8, .C = 2816});
}

/* Equal logits: the lowest index first. */
static void test_route_ties(void **state)
{
    (void)state;
    NEED_GPU();
    enum { E = 40, C = 24, A = 5 };
    struct route_case k = {.T = 20, .E = E, .A = A, .C = C};
    uint16_t *x = halves(k.T * C, 1), *row = halves(C, 1), *w = malloc(E * C * 2);
    float scale[E];
    reserve_both(k.T, C, E, A, 16);
    for (int e = 0; e < E; e++) memcpy(w + e * C, row, C * 2);
    for (int e = 0; e < E; e++) scale[e] = 1;
    load_pair(&k.w, w, 1, E, C);
    k.x = to_gpu(x, (size_t)k.T * C * 2);
    k.scale = to_gpu(scale, sizeof scale);
    struct choice got[20];
    run_route(&k, 0, k.T, got);
    for (int t = 0; t < k.T; t++)
        for (int i = 0; i < A; i++) {
            assert_int_equal(got[t].idx[i], i);
            assert_true(got[t].weight[i] == 0.2f);
        }
    free_pair(&k.w);
    free(x);
    free(row);
    free(w);
    free_all();
}

/* ---- moe ---- */

struct moe_case {
    int T, E, A, C, F, skew; /* skew 1: few experts; 2: always the same A */
    enum kk_activation act;
    struct pair gate_up, down;
    const char *x, *idx, *weight;
};

static void run_moe(const void *c, int t0, int n, void *out)
{
    const struct moe_case *k = c;
    const size_t bytes = (size_t)n * (size_t)k->C * 4, row = (size_t)t0 * (size_t)k->A * 4;
    void *y = gpu_room(bytes);
    gpu->ops->step_begin(gpu);
    gpu->ops->moe(gpu, &(struct kk_moe_args){.T = n,
                                             .E = k->E,
                                             .A = k->A,
                                             .act = k->act,
                                             .x = k->x + (size_t)t0 * (size_t)k->C * 2,
                                             .idx = (const int32_t *)(k->idx + row),
                                             .weight = (const float *)(k->weight + row),
                                             .gate_up = &k->gate_up.gpu,
                                             .down = &k->down.gpu,
                                             .y = y});
    end_step(gpu);
    gpu->ops->download(gpu, out, y, bytes);
    free_last();
}

static void oracle_moe(const struct moe_case *k, const float *x, const int32_t *idx,
                       const float *weight, const float *got)
{
    const int T = k->T < MOST_ORACLE_ROWS ? k->T : MOST_ORACLE_ROWS;
    float *want = malloc((size_t)T * (size_t)k->C * 4);
    cpu->ops->step_begin(cpu);
    cpu->ops->moe(cpu, &(struct kk_moe_args){.T = T,
                                             .E = k->E,
                                             .A = k->A,
                                             .act = k->act,
                                             .x = x,
                                             .idx = idx,
                                             .weight = weight,
                                             .gate_up = &k->gate_up.cpu,
                                             .down = &k->down.cpu,
                                             .y = want});
    end_step(cpu);
    for (int t = 0; t < T; t++)
        near("moe", t, got + (size_t)t * (size_t)k->C, want + (size_t)t * (size_t)k->C, k->C, 5e-3);
    free(want);
}

static void choose(const struct moe_case *k, int32_t *idx, float *weight)
{
    for (int t = 0; t < k->T; t++)
        for (int i = 0; i < k->A; i++) {
            int e = 0, again = 1;
            const int most = k->skew == 2 ? k->A : k->skew ? (k->A + k->E) / 2 : k->E;
            while (again) {
                e = kk_test_between(&rng, 0, most - 1);
                if (k->skew == 1 && kk_test_below(&rng, 3)) e = e % (k->A + 1);
                if (e >= k->E) e = k->E - 1;
                again = 0;
                for (int j = 0; j < i; j++) again |= idx[t * k->A + j] == e;
            }
            idx[t * k->A + i] = e;
            weight[t * k->A + i] = kk_test_uniform(&rng, 0.02f, 1);
        }
}

static void check_moe(struct moe_case k)
{
    const size_t pairs = (size_t)k.T * (size_t)k.A;
    uint16_t *raw = halves((int64_t)k.T * k.C, 1.7f);
    float *x = widened(raw, (int64_t)k.T * k.C), *weight = malloc(pairs * 4);
    int32_t *idx = malloc(pairs * 4);
    reserve_both(k.T, k.C, k.E, k.A, k.F);
    choose(&k, idx, weight);
    k.x = to_gpu(raw, (size_t)k.T * (size_t)k.C * 2);
    k.idx = to_gpu(idx, pairs * 4);
    k.weight = to_gpu(weight, pairs * 4);
    make_pair(&k.gate_up, k.E, 2 * k.F, k.C);
    make_pair(&k.down, k.E, k.C, k.F);
    const struct cut_check cut = {"moe", k.T, (size_t)k.C * 4, run_moe};
    float *got = check_cuts(&cut, &k);
    oracle_moe(&k, x, idx, weight, got);
    free_pair(&k.gate_up);
    free_pair(&k.down);
    free(got);
    free(weight);
    free(idx);
    free(x);
    free(raw);
    free_all();
}

static void test_moe_random(void **state)
{
    (void)state;
    NEED_GPU();
    for (int round = 0; round < 18; round++) {
        struct moe_case k = {.T = kk_test_between(&rng, 1, 90),
                             .E = kk_test_between(&rng, 2, 40),
                             .C = kk_test_between(&rng, 1, 300),
                             .F = kk_test_between(&rng, 1, 150),
                             .skew = round % 3,
                             .act = round % 2 ? KK_SILU : KK_GELU_TANH};
        k.A = kk_test_between(&rng, 1, k.E < 8 ? k.E : 8);
        if (round % 4) k.C = k.C / 8 * 8 + 8;
        if (round % 4 > 1) k.F = k.F / 8 * 8 + 8;
        check_moe(k);
    }
}

static void test_moe_26b(void **state)
{
    (void)state;
    NEED_GPU();
    for (int skew = 0; skew < 3; skew++)
        check_moe((struct moe_case){
            .T = skew ? 300 : 530, .E = 128 >> skew, .A = 8, .C = 2816, .F = 704, .skew = skew});
}

/* ---- route and moe in one step ---- */

struct layer_case {
    int T, E, A, C, F, dense;      /* dense: width of the unit beside the experts */
    struct pair w, gate_up, down;  /* of the router, the experts */
    struct pair gate, up, dense_w; /* of that unit */
    void *x, *scale, *idx, *weight, *other, *y, *unit, *beside;
};

static void layer_route(const struct layer_case *k)
{
    gpu->ops->route(gpu, &(struct kk_route_args){.T = k->T,
                                                 .E = k->E,
                                                 .A = k->A,
                                                 .x = k->x,
                                                 .w = &k->w.gpu,
                                                 .expert_scale = k->scale,
                                                 .idx = k->idx,
                                                 .weight = k->weight});
}

static void layer_moe(const struct layer_case *k)
{
    gpu->ops->moe(gpu, &(struct kk_moe_args){.T = k->T,
                                             .E = k->E,
                                             .A = k->A,
                                             .x = k->x,
                                             .idx = k->idx,
                                             .weight = k->weight,
                                             .gate_up = &k->gate_up.gpu,
                                             .down = &k->down.gpu,
                                             .y = k->y});
}

/* The unit beside the experts, as a layer has it between route and moe. apart: with an op after
 * each of its products, so that nothing waits for anything. */
static void layer_unit(const struct layer_case *k, int apart)
{
    const struct kk_gather_args any = {.n = k->T, .C = k->C, .src = k->other, .dst = k->other};
    if (apart) gpu->ops->gather(gpu, &any);
    gpu->ops->glu(gpu,
                  &(struct kk_glu_args){
                      .T = k->T, .x = k->x, .gate = &k->gate.gpu, .up = &k->up.gpu, .y = k->unit});
    if (apart) gpu->ops->gather(gpu, &any);
    gpu->ops->linear(
        gpu, &(struct kk_linear_args){
                 .T = k->T, .n = 1, .x = k->unit, .w = {&k->dense_w.gpu}, .y = {k->beside}});
    if (apart) gpu->ops->gather(gpu, &any);
}

/* Products that wait for each other and go together, and each alone: the same bits. */
static void check_unit(struct layer_case *k, const void *idx, const void *weight, const void *moe)
{
    const size_t pairs = (size_t)k->T * (size_t)k->A * 4, y = (size_t)k->T * (size_t)k->C * 4;
    void *want = NULL;
    make_pair(&k->gate, 1, k->dense, k->C);
    make_pair(&k->up, 1, k->dense, k->C);
    make_pair(&k->dense_w, 1, k->C, k->dense);
    k->unit = gpu_room((size_t)k->T * (size_t)k->dense * 2);
    for (int apart = 1; apart >= 0; apart--) {
        k->idx = gpu_room(pairs), k->weight = gpu_room(pairs); /* nothing of before */
        k->y = gpu_room(y), k->beside = gpu_room(y);
        gpu->ops->step_begin(gpu);
        layer_route(k);
        layer_unit(k, apart);
        layer_moe(k);
        end_step(gpu);
        void *i = from_gpu(k->idx, pairs), *w = from_gpu(k->weight, pairs);
        void *b = from_gpu(k->beside, y), *got = from_gpu(k->y, y);
        assert_memory_equal(i, idx, pairs);
        assert_memory_equal(w, weight, pairs);
        assert_memory_equal(got, moe, y);
        if (want) assert_memory_equal(b, want, y);
        free(i), free(w), free(got), free(want);
        want = b;
    }
    free(want);
    k->weight = gpu_room(pairs);
    gpu->ops->step_begin(gpu); /* what waits at a step's end is launched */
    layer_route(k);
    layer_unit(k, 0);
    end_step(gpu);
    void *w = from_gpu(k->weight, pairs);
    assert_memory_equal(w, weight, pairs);
    free(w);
    free_pair(&k->gate), free_pair(&k->up), free_pair(&k->dense_w);
}

/* Whatever stands between them: nothing, products (whose feeding warps then choose), other ops. */
static void check_layer(struct layer_case k)
{
    const size_t pairs = (size_t)k.T * (size_t)k.A * 4, y = (size_t)k.T * (size_t)k.C * 4;
    uint16_t *raw = halves((int64_t)k.T * k.C, 1.7f);
    float *scale = malloc((size_t)k.E * 4);
    reserve_both(k.T, k.C, k.E, k.A, k.F);
    for (int i = 0; i < k.E; i++) scale[i] = kk_test_uniform(&rng, 0.5f, 2);
    k.x = to_gpu(raw, (size_t)k.T * (size_t)k.C * 2);
    k.scale = to_gpu(scale, (size_t)k.E * 4);
    make_pair(&k.w, 1, k.E, k.C);
    make_pair(&k.gate_up, k.E, 2 * k.F, k.C);
    make_pair(&k.down, k.E, k.C, k.F);
    k.idx = gpu_room(pairs), k.weight = gpu_room(pairs);
    k.other = gpu_room((size_t)k.T * (size_t)(k.E > k.C ? k.E : k.C) * 4), k.y = gpu_room(y);
    gpu->ops->step_begin(gpu);
    layer_route(&k);
    end_step(gpu);
    gpu->ops->step_begin(gpu);
    layer_moe(&k);
    end_step(gpu);
    void *idx = from_gpu(k.idx, pairs), *weight = from_gpu(k.weight, pairs),
         *want = from_gpu(k.y, y);
    for (int between = 0; between < 5; between++) {
        gpu->ops->step_begin(gpu);
        layer_moe(&k); /* of what was chosen before: the same */
        layer_route(&k);
        if (between == 4)
            gpu->ops->gather(gpu,
                             &(struct kk_gather_args){.n = k.T, .C = k.C, .src = k.y, .dst = k.y});
        for (int i = 0; i < between % 4; i++)
            gpu->ops->linear(gpu, &(struct kk_linear_args){
                                      .T = k.T, .n = 1, .x = k.x, .w = {&k.w.gpu}, .y = {k.other}});
        layer_moe(&k);
        end_step(gpu);
        void *i = from_gpu(k.idx, pairs), *w = from_gpu(k.weight, pairs), *got = from_gpu(k.y, y);
        assert_memory_equal(i, idx, pairs);
        assert_memory_equal(w, weight, pairs);
        assert_memory_equal(got, want, y);
        free(i), free(w), free(got);
    }
    check_unit(&k, idx, weight, want);
    free_pair(&k.w), free_pair(&k.gate_up), free_pair(&k.down);
    free(idx), free(weight), free(want), free(raw), free(scale);
    free_all();
}

static void test_layer(void **state)
{
    static const int rows[] = {1, 3, 8, 13, 16, 40};
    (void)state;
    NEED_GPU();
    for (int round = 0; round < 12; round++) {
        struct layer_case k = {.T = rows[round % 6],
                               .E = kk_test_between(&rng, 2, round % 3 ? 128 : 300),
                               .C = 8 * kk_test_between(&rng, 1, 50),
                               .F = 8 * kk_test_between(&rng, 1, 20),
                               .dense = kk_test_between(&rng, 1, 400)};
        k.A = kk_test_between(&rng, 1, k.E < 8 ? k.E : 8);
        check_layer(k);
    }
}

static void test_layer_26b(void **state)
{
    static const int rows[] = {1, 3, 8, 13, 16};
    /* of the dense unit more than a warp's ring holds goes before the experts */
    static const struct layer_case wide = {.E = 8, .A = 2, .C = 2048, .F = 64, .dense = 8192};
    (void)state;
    NEED_GPU();
    for (int i = 0; i < 5; i++)
        check_layer((struct layer_case){
            .T = rows[i], .E = 128, .A = 8, .C = 2816, .F = 704, .dense = 2112});
    for (int i = 0; i < 5; i++) {
        struct layer_case k = wide;
        k.T = rows[i];
        check_layer(k);
    }
}

int main(int argc, char **argv) /* a pattern of tests, for a GPU's sanitizer */
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_route),      cmocka_unit_test(test_route_ties),
        cmocka_unit_test(test_moe_random), cmocka_unit_test(test_moe_26b),
        cmocka_unit_test(test_layer),      cmocka_unit_test(test_layer_26b),
    };
    if (argc > 1) cmocka_set_test_filter(argv[1]);
    return cmocka_run_group_tests(tests, open_both, close_both);
}
