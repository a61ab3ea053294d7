/* --act bf16: products with bf16 weights read their input rounded to bf16. The same bits in every
 * instruction set, at every thread count, however a history is cut, drafted or not; near the f32
 * logits, and not them; the plan is what is allocated; a drafter is rounded too. */
#include "kk_test.h"

#include <stdio.h>

#include "kakeya.h"

enum { N = 70, V = 160, MADE = 24 };

static struct kk_engine *open_engine(struct kk_engine_options o)
{
    struct kk_engine *e = NULL;
    struct kk_err err = {0};
    KK_ASSERT_OK(kk_engine_open(&o, &e, &err), &err);
    return e;
}

static struct kk_engine_options options(const char *model, const char *act)
{
    struct kk_engine_options o = kk_engine_defaults();
    o.model = model;
    o.act = act;
    o.threads = 1;
    return o;
}

static void make_ids(uint32_t *ids)
{
    for (uint32_t i = 0; i < N; i++) ids[i] = (i * 41 + i * i * 3 + 7) % V;
}

static int keep_row(void *arg, int64_t position, const float *logits)
{
    memcpy((float *)arg + position * V, logits, V * sizeof *logits);
    return 0;
}

static void logits_of(const struct kk_engine_options *o, float *out)
{
    struct kk_engine *e = open_engine(*o);
    struct kk_session *s = NULL;
    struct kk_err err = {0};
    uint32_t ids[N];
    make_ids(ids);
    KK_ASSERT_OK(kk_session_open(e, &s, &err), &err);
    KK_ASSERT_OK(kk_session_logits(s, ids, N, keep_row, out, &err), &err);
    kk_session_close(s);
    kk_engine_close(e);
}

static int keep_token(void *arg, uint32_t id)
{
    uint32_t **at = arg;
    *(*at)++ = id;
    return 0;
}

static void tokens_of(const struct kk_engine_options *o, size_t piece, uint32_t out[MADE])
{
    struct kk_engine *e = open_engine(*o);
    struct kk_session *s = NULL;
    struct kk_sampling p = kk_sampling_defaults();
    struct kk_err err = {0};
    uint32_t ids[N];
    make_ids(ids);
    p.ignore_eos = 1;
    KK_ASSERT_OK(kk_session_open(e, &s, &err), &err);
    for (size_t i = 0; i < N; i += piece)
        KK_ASSERT_OK(kk_session_append(s, ids + i, N - i < piece ? N - i : piece, &err), &err);
    KK_ASSERT_OK(kk_session_generate(s, &p, MADE, keep_token, &out, NULL, &err), &err);
    kk_session_close(s);
    kk_engine_close(e);
}

static const char *const models[] = {"synth:tests/data/mini.json:3",
                                     "synth:tests/data/mini-gemma3.json:4",
                                     "synth:tests/data/mini-llama.json:5"};

static void same_bits_everywhere(void **state)
{
    (void)state;
    static float want[N * V], got[N * V], plain[N * V];
    static const char *const isas[] = {"avx2", "avx512", "auto"};
    for (size_t m = 0; m < sizeof models / sizeof *models; m++) {
        struct kk_engine_options o = options(models[m], "bf16");
        o.cpu_isa = "scalar";
        logits_of(&o, want);
        for (size_t i = 0; i < sizeof isas / sizeof *isas; i++) {
            struct kk_engine *e = NULL;
            struct kk_err err = {0};
            o.cpu_isa = isas[i];
            o.threads = 1 + (int)(i % 2);
            o.prefill_chunk = i == 2 ? 7 : 512;
            int rc = kk_engine_open(&o, &e, &err);
            kk_engine_close(e);
            if (rc == KK_EUNSUPPORTED) continue;
            logits_of(&o, got);
            assert_memory_equal(want, got, sizeof want);
        }
        o = options(models[m], "f32");
        logits_of(&o, plain);
        double d = kk_test_rel_err(want, plain, N * V, 0);
        print_message("             %-36s differs from f32 by %.1e\n", models[m], d);
        assert_true(d > 1e-6 && d < (m ? 0.05 : 0.5)); /* of random experts another may be near */
    }
}

static void cuts_and_drafts_change_no_token(void **state)
{
    (void)state;
    uint32_t want[MADE], got[MADE];
    struct kk_engine_options o = options(models[0], "bf16");
    tokens_of(&o, N, want);
    o.threads = 2;
    tokens_of(&o, 9, got);
    assert_memory_equal(want, got, sizeof want);
    o.draft = "wrong";
    o.draft_width = 6;
    tokens_of(&o, 31, got);
    assert_memory_equal(want, got, sizeof want);
    o = options("models/tiny", "bf16"); /* ids below 160 are ids of its vocabulary too */
    tokens_of(&o, N, want);
    o.draft = "models/tiny/drafter";
    o.draft_width = 16;
    tokens_of(&o, 20, got);
    assert_memory_equal(want, got, sizeof want);
}

static void plan_is_what_is_allocated(void **state)
{
    (void)state;
    for (size_t m = 0; m < sizeof models / sizeof *models; m++) {
        struct kk_engine_options o = options(models[m], "bf16");
        struct kk_plan plan;
        struct kk_engine_info info;
        struct kk_err err = {0};
        KK_ASSERT_OK(kk_plan_make(&o, 200, 1, &plan, &err), &err);
        struct kk_engine *e = open_engine(o);
        kk_engine_describe(e, &info);
        assert_int_equal(plan.weight_bytes, info.weight_bytes);
        assert_int_equal(plan.scratch_bytes, info.scratch_bytes);
        kk_engine_close(e);
    }
}

static void unknown_types_are_named(void **state)
{
    (void)state;
    struct kk_engine_options o = options(models[0], "bf17");
    struct kk_engine *e = NULL;
    struct kk_err err = {0};
    assert_int_equal(kk_engine_open(&o, &e, &err), KK_EINVAL);
    assert_non_null(strstr(err.msg, "bf17"));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(same_bits_everywhere),
        cmocka_unit_test(cuts_and_drafts_change_no_token),
        cmocka_unit_test(plan_is_what_is_allocated),
        cmocka_unit_test(unknown_types_are_named),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
