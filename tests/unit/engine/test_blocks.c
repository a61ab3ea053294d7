/* A model file with weights of block types, from file to logits. The twin holds the same numbers as
 * float32, in a snapshot directory. */
#include "unit/model/model_test.h"

#include <math.h>

#include "dev/dev.h"
#include "kakeya.h"

#define BLOCKS "tests/golden/gguf/models/gemma4-blocks.gguf"

enum { N = 40, V = 64 };

static const char *twin;

static void add(struct tensors *to, const struct kk_tensor *t)
{
    float *x = kk_array(t->count, sizeof *x);
    json_t *shape = json_array();
    const size_t at = to->data.len;
    kk_tensor_dequant(t, 0, t->count, x);
    for (int i = 0; i < t->rank; i++)
        json_array_append_new(shape, json_integer((json_int_t)t->shape[i]));
    assert_int_equal(kk_buf_append(&to->data, x, t->count * sizeof *x), 0);
    json_object_set_new(to->header, t->name,
                        json_pack("{s:s, s:o, s:[I,I]}", "dtype", "F32", "shape", shape,
                                  "data_offsets", (json_int_t)at, (json_int_t)to->data.len));
    kk_free(x);
}

static int make_twin(void **state)
{
    struct kk_model_file *mf;
    struct kk_err err = {0};
    struct kk_tensor t = {0};
    struct tensors all;
    (void)state;
    KK_ASSERT_OK(kk_model_file_open(BLOCKS, &mf, &err), &err);
    tensors_init(&all);
    for (size_t i = 0; !kk_model_file_at(mf, i, &t); i++) add(&all, &t);
    tensors_write(&all, kk_test_path("model.safetensors"));
    char *config = json_dumps(kk_model_file_config(mf), 0);
    kk_test_file("config.json", config, strlen(config));
    free(config);
    kk_model_file_close(mf);
    twin = kk_test_tmpdir();
    return 0;
}

static int keep(void *arg, int64_t position, const float *logits)
{
    memcpy((float *)arg + position * V, logits, V * sizeof *logits);
    return 0;
}

static void logits(const struct kk_engine_options *o, float *out)
{
    struct kk_engine *e;
    struct kk_session *s;
    struct kk_err err = {0};
    uint32_t ids[N];
    for (uint32_t i = 0; i < N; i++) ids[i] = i ? i * 37 % V : 2;
    KK_ASSERT_OK(kk_engine_open(o, &e, &err), &err);
    KK_ASSERT_OK(kk_session_open(e, &s, &err), &err);
    KK_ASSERT_OK(kk_session_logits(s, ids, N, keep, out, &err), &err);
    kk_session_close(s);
    kk_engine_close(e);
}

static struct kk_engine_options options(const char *model, const char *act)
{
    struct kk_engine_options o = kk_engine_defaults();
    o.model = model;
    o.act = act;
    o.kv_type = "f32";
    o.threads = 1;
    return o;
}

static void test_f32_act(void **state)
{
    static float got[N * V], want[N * V];
    struct kk_engine_options o = options(BLOCKS, "f32"), t = options(twin, "auto");
    (void)state;
    logits(&t, want);
    logits(&o, got);
    assert_memory_equal(got, want, sizeof got);
    o.cpu_isa = "scalar";
    o.prefill_chunk = 3;
    logits(&o, got);
    assert_memory_equal(got, want, sizeof got);
}

static int ascending(const void *a, const void *b)
{
    const double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

/* Of the rows' root mean square errors over that of the row, the median: where rounding turns the
 * choice of an expert, a row of such a small model is far off. */
static double median_error(const float *a, const float *b)
{
    double row[N];
    for (int t = 0; t < N; t++) {
        double error = 0, size = 0;
        for (int i = t * V; i < t * V + V; i++) {
            error += ((double)a[i] - b[i]) * ((double)a[i] - b[i]);
            size += (double)b[i] * b[i];
        }
        row[t] = sqrt(error / size);
    }
    qsort(row, N, sizeof *row, ascending);
    return row[N / 2];
}

/* The same bits in every instruction set, at any thread count and cut of the prompt; near f32. */
static void test_q8_act(void **state)
{
    static const char *const isas[] = {"scalar", "avx2", "avx512"};
    static float f32[N * V], want[N * V], got[N * V];
    struct kk_engine_options o = options(BLOCKS, "f32");
    struct kk_dev *d;
    struct kk_err err = {0};
    (void)state;
    logits(&o, f32);
    o.act = "auto";
    logits(&o, want);
    const double off = median_error(want, f32);
    print_message("8 bits: the median row is off by %.4f\n", off);
    assert_true(off > 0 && off < 0.03);
    for (int i = 0; i < 3; i++) {
        if (kk_dev_open_cpu(isas[i], 1, &d, &err)) continue;
        kk_dev_close(d);
        o = options(BLOCKS, "q8");
        o.cpu_isa = isas[i];
        o.threads = 1 + i;
        o.prefill_chunk = 1 + 9 * i;
        logits(&o, got);
        assert_memory_equal(got, want, sizeof got);
    }
}

/* The plan says the bytes that opening takes. */
static void test_plan(void **state)
{
    static const char *const acts[] = {"q8", "f32"};
    (void)state;
    for (int i = 0; i < 2; i++) {
        struct kk_engine_options o = options(BLOCKS, acts[i]);
        struct kk_engine_info info;
        struct kk_engine *e;
        struct kk_err err = {0};
        struct kk_plan p;
        KK_ASSERT_OK(kk_plan_make(&o, 512, 1, &p, &err), &err);
        KK_ASSERT_OK(kk_engine_open(&o, &e, &err), &err);
        kk_engine_describe(e, &info);
        assert_int_equal(info.weight_bytes, p.weight_bytes);
        assert_int_equal(info.scratch_bytes, p.scratch_bytes);
        kk_engine_close(e);
    }
}

static void test_bad_act(void **state)
{
    struct kk_engine_options o = options(BLOCKS, "q4");
    struct kk_engine *e;
    struct kk_err err = {0};
    (void)state;
    KK_ASSERT_FAILS(kk_engine_open(&o, &e, &err), KK_EINVAL, &err, "known: auto, q8, f32");
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_f32_act),
                                       cmocka_unit_test(test_q8_act), cmocka_unit_test(test_plan),
                                       cmocka_unit_test(test_bad_act)};
    return cmocka_run_group_tests(tests, make_twin, NULL);
}
