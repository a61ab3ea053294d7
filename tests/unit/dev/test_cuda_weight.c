/* Weights on a GPU: every type arrives as the bf16 tiles that dev/cuda/cuda_int.h describes, and
 * synthetic ones made there have the bits of those the host makes. */
#include "unit/dev/cuda_test.h"

#include "base/quant.h"
#include "file/file.h"

static struct kk_test_rng rng;

struct stored {
    enum kk_dtype dtype;
    const char *raw;
};

static void read_raw(const void *ctx, uint64_t first, uint64_t n, void *dst)
{
    const struct stored *s = ctx;
    const unsigned per = kk_dtype_block(s->dtype), bytes = kk_dtype_block_bytes(s->dtype);
    assert_true(first % per == 0 && n % per == 0);
    memcpy(dst, s->raw + first / per * bytes, n / per * bytes);
}

/* n numbers of a type: any bits but those of NaN and infinity */
static char *random_raw(enum kk_dtype t, int64_t n)
{
    const unsigned bytes = kk_dtype_block_bytes(t);
    const size_t all = (size_t)n / kk_dtype_block(t) * bytes;
    char *raw = malloc(all + 8);
    for (size_t i = 0; i < all; i++) {
        raw[i] = (char)kk_test_u64(&rng);
        if (t <= KK_F16 && i % bytes == bytes - 1) raw[i] &= ~0x20; /* of the exponent */
    }
    if (kk_dtype_is_block(t)) /* scales: f16, none infinite */
        for (size_t i = 0; i < all; i += bytes) {
            const size_t at = t == KK_Q6_K ? 208 : 0;
            raw[i + at + 1] &= ~0x40;
            raw[i + (kk_quant_has_min(t) ? 3 : at + 1)] &= ~0x40;
        }
    return raw;
}

static float value(enum kk_dtype t, const char *raw, int64_t i)
{
    float group[256], f;
    uint16_t h;
    if (kk_dtype_is_block(t)) {
        const unsigned per = kk_dtype_block(t);
        kk_dequant(t, raw + i / per * kk_dtype_block_bytes(t), per, group);
        return group[i % per];
    }
    memcpy(&f, raw + i * 4 * (t == KK_F32), 4);
    memcpy(&h, raw + i * 2 * (t != KK_F32), 2);
    return t == KK_F32 ? f : t == KK_BF16 ? kk_bf16_to_f32(h) : kk_f16_to_f32(h);
}

/* Element (m, row, k) of the tiles in `got`, for a matrix of that shape. */
static uint16_t tiled(const struct kk_weight *w, const char *got, int64_t m, int64_t row, int64_t k)
{
    const int64_t stripe = row / 8, tiles = (w->cols + 15) / 16;
    uint16_t v;
    memcpy(&v,
           got + (size_t)m * w->mat_bytes + (stripe * tiles + k / 16) * 256 + row % 8 * 32 +
               k % 16 * 2,
           2);
    return v;
}

static void check_load(enum kk_dtype t, int n_mats, int rows, int cols, int mapped)
{
    const int64_t n = (int64_t)n_mats * rows * cols;
    struct kk_account account = {.name = "weights"};
    struct kk_weight w;
    struct kk_err err = {0};
    struct stored s = {t, random_raw(t, n)};
    const struct kk_weight_src src = {.dtype = t,
                                      .n_mats = n_mats,
                                      .rows = rows,
                                      .cols = cols,
                                      .data = mapped ? s.raw : NULL,
                                      .ctx = &s,
                                      .read = read_raw};
    KK_ASSERT_OK(gpu->ops->weight_load(gpu, &src, &account, &w, &err), &err);
    assert_int_equal(w.dtype, KK_BF16);
    assert_int_equal(atomic_load(&account.bytes), gpu->ops->weight_bytes(gpu, &src));
    char *got = from_gpu(w.data, (size_t)n_mats * w.mat_bytes);
    for (int64_t m = 0; m < n_mats; m++)
        for (int64_t r = 0; r < (rows + 7) / 8 * 8; r++)
            for (int64_t k = 0; k < (cols + 15) / 16 * 16; k++) {
                const int64_t i = (m * rows + r) * cols + k;
                const uint16_t want = r < rows && k < cols ? kk_f32_to_bf16(value(t, s.raw, i)) : 0;
                if (tiled(&w, got, m, r, k) != want)
                    fail_msg("%s %d x %d x %d: [%d][%d][%d] is %04x, want %04x", kk_dtype_name(t),
                             n_mats, rows, cols, (int)m, (int)r, (int)k, tiled(&w, got, m, r, k),
                             want);
            }
    kk_weight_free(gpu, &w);
    free(got);
    free((char *)(size_t)s.raw);
}

static void test_types(void **state)
{
    (void)state;
    NEED_GPU();
    for (enum kk_dtype t = KK_F32; t <= KK_Q6_K; t++)
        for (int round = 0; round < 6; round++) {
            const int per = (int)kk_dtype_block(t), n_mats = round % 3 ? 1 : 5;
            int cols = kk_test_between(&rng, 1, per == 256 ? 3 : per == 32 ? 20 : 300) * per;
            if (round == 5) cols = 4096;
            check_load(t, n_mats, kk_test_between(&rng, 1, 130), cols, round % 2);
        }
    check_load(KK_BF16, 1, 4100, 2816, 0); /* more than one part of the ring */
    check_load(KK_F32, 3, 1408, 2816, 1);
}

static void test_refused(void **state)
{
    struct kk_account account = {.name = "weights"};
    struct kk_weight w;
    struct kk_err err = {0};
    (void)state;
    NEED_GPU();
    struct kk_weight_src src = {.dtype = KK_Q4_K, .n_mats = 1, .rows = 16, .cols = 640, .data = ""};
    KK_ASSERT_FAILS(gpu->ops->weight_load(gpu, &src, &account, &w, &err), KK_EFORMAT, &err,
                    "whole blocks");
    src = (struct kk_weight_src){.dtype = KK_BF16, .n_mats = 1, .rows = 8, .cols = 1 << 24};
    KK_ASSERT_FAILS(gpu->ops->weight_load(gpu, &src, &account, &w, &err), KK_ERANGE, &err,
                    "too big");
    src = (struct kk_weight_src){.dtype = KK_BF16, .n_mats = 60, .rows = 1 << 27, .cols = 4096};
    src.data = "";
    KK_ASSERT_FAILS(gpu->ops->weight_load(gpu, &src, &account, &w, &err), KK_ENOMEM, &err,
                    "are free");
    assert_int_equal(atomic_load(&account.bytes), 0);
}

static const char *synth_model(const char *dtype)
{
    static char spec[4096];
    char text[128];
    snprintf(text, sizeof text, "{\"architectures\":[\"X\"],\"model_type\":\"x\",\"dtype\":\"%s\"}",
             dtype);
    snprintf(spec, sizeof spec, "synth:%s:77", kk_test_file("config.json", text, strlen(text)));
    return spec;
}

/* Made on the GPU and read through the file layer: the same bits. */
static void check_synth(const struct kk_model_file *mf, const char *name, int rank, int n_mats,
                        int rows, int cols)
{
    const uint64_t shape[3] = {(uint64_t)n_mats, (uint64_t)rows, (uint64_t)cols};
    struct kk_account account = {.name = "weights"};
    struct kk_synth rule;
    struct kk_tensor t;
    struct kk_weight w;
    struct kk_err err = {0};
    KK_ASSERT_OK(kk_model_file_get(mf, name, rank, shape + 3 - rank, &t, &err), &err);
    assert_true(kk_tensor_synth(&t, &rule));
    const struct kk_weight_src src = {
        .dtype = t.dtype, .n_mats = n_mats, .rows = rows, .cols = cols, .synth = &rule};
    KK_ASSERT_OK(gpu->ops->weight_load(gpu, &src, &account, &w, &err), &err);
    char *got = from_gpu(w.data, (size_t)n_mats * w.mat_bytes);
    float *want = malloc((size_t)t.count * sizeof *want);
    kk_tensor_dequant(&t, 0, t.count, want);
    int64_t zeros = 0;
    for (int64_t m = 0; m < n_mats; m++)
        for (int64_t r = 0; r < (rows + 7) / 8 * 8; r++)
            for (int64_t k = 0; k < (cols + 15) / 16 * 16; k++) {
                const uint16_t v = tiled(&w, got, m, r, k);
                const int inside = r < rows && k < cols;
                zeros += inside && v == 0;
                assert_int_equal(v, inside ? kk_f32_to_bf16(want[(m * rows + r) * cols + k]) : 0);
            }
    assert_true(zeros < (int64_t)t.count / 100 + 2);
    kk_weight_free(gpu, &w);
    free(want);
    free(got);
}

static void test_synth(void **state)
{
    static const char *const dtypes[] = {"bfloat16", "float16", "float32"};
    (void)state;
    NEED_GPU();
    for (int i = 0; i < 3; i++) {
        struct kk_model_file *mf;
        struct kk_err err = {0};
        KK_ASSERT_OK(kk_model_file_open(synth_model(dtypes[i]), &mf, &err), &err);
        check_synth(mf, "model.layers.0.experts.gate_up_proj", 3, 3, 1408, 2816);
        check_synth(mf, "model.layers.1.experts.down_proj", 3, 5, 13, 21);
        check_synth(mf, "model.embed_tokens.weight", 2, 1, 1003, 200);
        check_synth(mf, "odd.weight", 2, 1, 1, 1);
        kk_model_file_close(mf);
    }
}

int main(void)
{
    rng = kk_test_rng("cuda weight");
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_types), cmocka_unit_test(test_refused),
                                       cmocka_unit_test(test_synth)};
    return cmocka_run_group_tests(tests, open_gpu, close_gpu);
}
