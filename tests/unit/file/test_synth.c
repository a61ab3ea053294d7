/* synth: the bits of docs/formats/synth.md, against values made by tools/synth.py. */
#include "unit/file/model_dir.h"

#include <stdlib.h>

#include "base/json.h"
#include "base/mem.h"

static uint32_t bits_at(const struct kk_tensor *t, uint64_t i)
{
    uint32_t u = 0;
    kk_tensor_read(t, i, 1, &u);
    return t->dtype == KK_F32 ? u : u & 65535;
}

static struct kk_model_file *open_seed(const char *dtype, const char *seed)
{
    char config[300], spec[700];
    int n =
        snprintf(config, sizeof config,
                 "{\"architectures\": [\"X\"], \"model_type\": \"x\", \"dtype\": \"%s\"}", dtype);
    snprintf(spec, sizeof spec, "synth:%s:%s", kk_test_file("c.json", config, (size_t)n), seed);
    return open_ok(spec);
}

/* Open a synth model of the case's dtype and seed, and its tensor. */
static struct kk_model_file *open_case(const json_t *c, struct kk_tensor *t)
{
    struct kk_model_file *mf = open_seed(json_string_value(json_object_get(c, "dtype")),
                                         json_string_value(json_object_get(c, "seed")));
    const json_t *s = json_object_get(c, "shape");
    struct kk_err err = {0};
    uint64_t shape[4];
    for (size_t i = 0; i < json_array_size(s); i++)
        shape[i] = (uint64_t)json_integer_value(json_array_get(s, i));
    KK_ASSERT_OK(kk_model_file_get(mf, json_string_value(json_object_get(c, "name")),
                                   (int)json_array_size(s), shape, t, &err),
                 &err);
    return mf;
}

static void check_case(const json_t *c)
{
    struct kk_tensor t;
    char sha[65];
    size_t k;
    const json_t *v, *first = json_object_get(c, "first"), *last = json_object_get(c, "last");
    struct kk_model_file *mf = open_case(c, &t);
    json_array_foreach(first, k, v)
    {
        assert_int_equal(bits_at(&t, k), json_integer_value(v));
    }
    json_array_foreach(last, k, v)
    {
        uint64_t at = t.count - json_array_size(last) + k;
        assert_int_equal(bits_at(&t, at), json_integer_value(v));
    }
    void *all = kk_malloc(t.bytes);
    kk_tensor_read(&t, 0, t.count, all);
    kk_test_sha256(all, t.bytes, sha);
    kk_free(all);
    assert_string_equal(sha, json_string_value(json_object_get(c, "sha256")));
    kk_model_file_close(mf);
}

static void equals_python(void **state)
{
    (void)state;
    json_t *all = NULL;
    struct kk_err err = {0};
    KK_ASSERT_OK(kk_json_load("tests/golden/synth/values.json", 1 << 20, &all, &err), &err);
    assert_true(json_array_size(all) >= 30);
    for (size_t i = 0; i < json_array_size(all); i++) check_case(json_array_get(all, i));
    json_decref(all);
}

/* A piece read from anywhere is the same as that piece of the whole. */
static void reads_pieces(void **state)
{
    (void)state;
    struct kk_test_rng r = kk_test_rng("pieces");
    static const char *const dtypes[] = {"float32", "bfloat16", "float16"};
    enum { N = 1000 };
    for (int d = 0; d < 3; d++) {
        struct kk_tensor t;
        unsigned char whole[N * 4], piece[N * 4];
        struct kk_model_file *mf = open_seed(dtypes[d], "3");
        assert_int_equal(kk_model_file_get(mf, "a.weight", 2, (uint64_t[]){10, N / 10}, &t, NULL),
                         0);
        kk_tensor_read(&t, 0, N, whole);
        for (int i = 0; i < 200; i++) {
            uint32_t first = kk_test_below(&r, N), n = kk_test_below(&r, N - first + 1);
            unsigned size = kk_dtype_bytes(t.dtype);
            kk_tensor_read(&t, first, n, piece);
            assert_memory_equal(piece, whole + (size_t)first * size, (size_t)n * size);
        }
        kk_model_file_close(mf);
    }
}

/* Mean near base, deviation near what the table in docs/formats/synth.md says. */
static void deviations_are_as_documented(void **state)
{
    (void)state;
    static const struct {
        const char *name;
        uint64_t shape[2];
        int rank;
        double mean, deviation;
    } cases[] = {
        {"embed_tokens.weight", {40, 1024}, 2, 0, 37837.0 / 32768 / 32},
        {"q_proj.weight", {40, 1025}, 2, 0, 37837.0 / 32768 / 64},
        {"norm.weight", {40000}, 1, 1, 37837.0 / 262144},
        {"self_attn.k_norm.weight", {65536}, 1, 1.0 / 256, 37837.0 / 262144 / 256},
        {"x.bias", {40000}, 1, 0, 37837.0 / 4194304},
        {"layer_scalar", {1}, 1, 1, 0},
    };
    struct kk_model_file *mf = open_seed("float32", "11");
    for (size_t c = 0; c < sizeof cases / sizeof *cases; c++) {
        struct kk_tensor t;
        double sum = 0, square = 0;
        assert_int_equal(
            kk_model_file_get(mf, cases[c].name, cases[c].rank, cases[c].shape, &t, NULL), 0);
        for (uint64_t i = 0; i < t.count; i++) {
            float f;
            kk_tensor_read(&t, i, 1, &f);
            sum += f;
            square += (f - cases[c].mean) * (f - cases[c].mean);
        }
        double n = (double)t.count, d = cases[c].deviation, want = d * d;
        assert_true(sum / n - cases[c].mean <= 0.03 * d && cases[c].mean - sum / n <= 0.03 * d);
        assert_true(square / n >= 0.96 * want && square / n <= 1.04 * want);
    }
    kk_model_file_close(mf);
}

static void put_config(const char *name, const char *fields)
{
    char text[400];
    snprintf(text, sizeof text, "{\"architectures\": [\"X\"], \"model_type\": \"x\"%s}", fields);
    kk_test_file(name, text, strlen(text));
}

static enum kk_dtype dtype_of(const char *spec)
{
    struct kk_tensor t;
    struct kk_model_file *mf = open_ok(spec);
    assert_int_equal(kk_model_file_get(mf, "x", 1, (uint64_t[]){1}, &t, NULL), 0);
    assert_true(kk_model_file_is_synth(mf) && !kk_model_file_dir(mf));
    assert_int_equal(kk_model_file_count(mf), 0);
    assert_false(kk_model_file_has(mf, "x"));
    assert_true(t.loadable && !t.data);
    kk_model_file_close(mf);
    return t.dtype;
}

static void finds_the_dtype(void **state)
{
    (void)state;
    static const struct {
        const char *fields;
        enum kk_dtype dtype;
    } good[] = {
        {"", KK_BF16},
        {", \"dtype\": \"float32\"", KK_F32},
        {", \"torch_dtype\": \"float16\"", KK_F16},
        {", \"torch_dtype\": \"float16\", \"dtype\": \"float32\"", KK_F32},
        {", \"dtype\": \"float16\", \"text_config\": {\"model_type\": \"y\"}", KK_F16},
        {", \"dtype\": \"float16\", \"text_config\": {\"model_type\": \"y\", \"dtype\": "
         "\"float32\"}",
         KK_F32},
    };
    char spec[600];
    snprintf(spec, sizeof spec, "synth:%s", kk_test_path("c.json"));
    for (size_t i = 0; i < sizeof good / sizeof *good; i++) {
        put_config("c.json", good[i].fields);
        assert_int_equal(dtype_of(spec), good[i].dtype);
    }
    put_config("c.json", ", \"dtype\": \"int8\"");
    open_fails(spec, KK_EUNSUPPORTED, "dtype 'int8' is none of bfloat16, float16, float32");
    put_config("c.json", ", \"dtype\": 8");
    open_fails(spec, KK_EFORMAT, "'dtype' must be a string");
}

static void seeds_are_checked(void **state)
{
    (void)state;
    static const struct {
        const char *spec;
        int code;
        const char *words;
    } bad[] = {
        {"synth:tests/data/mini.json:x", KK_EINVAL, "'x' is no seed"},
        {"synth:tests/data/mini.json:-1", KK_EINVAL, "'-1' is no seed"},
        {"synth:tests/data/mini.json:+1", KK_EINVAL, "'+1' is no seed"},
        {"synth:tests/data/mini.json: 1", KK_EINVAL, "' 1' is no seed"},
        {"synth:tests/data/mini.json:1.5", KK_EINVAL, "'1.5' is no seed"},
        {"synth:tests/data/mini.json:0x1", KK_EINVAL, "'0x1' is no seed"},
        {"synth:tests/data/mini.json:1\n", KK_EINVAL, "'1?' is no seed"},
        {"synth:tests/data/mini.json:", KK_EINVAL, "'' is no seed"},
        {"synth:tests/data/mini.json:18446744073709551616", KK_EINVAL, "below 2^64"},
        {"synth:", KK_EINVAL, "names no config: synth:CONFIG.json[:SEED]"},
        {"synth::5", KK_EINVAL, "names no config"},
        {"synth:tests/data/none.json", KK_ENOENT, "tests/data/none.json"},
        {"synth:tests/data", KK_EIO, "tests/data"},
        {"synth:Makefile", KK_EFORMAT, "'Makefile' is not valid JSON"},
    };
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++)
        open_fails(bad[i].spec, bad[i].code, bad[i].words);
    kk_model_file_close(open_ok("synth:tests/data/mini.json"));
    kk_model_file_close(open_ok("synth:tests/data/mini.json:18446744073709551615"));
    char spec[600]; /* a colon in a folder's name is no seed */
    mkdir(kk_test_path("a:b"), 0755);
    put_config("a:b/c.json", "");
    snprintf(spec, sizeof spec, "synth:%s", kk_test_path("a:b/c.json"));
    kk_model_file_close(open_ok(spec));
}

static void seeds_and_names_matter(void **state)
{
    (void)state;
    struct kk_tensor t[4];
    struct kk_model_file *a = open_ok("synth:tests/data/mini.json"),
                         *b = open_ok("synth:tests/data/mini.json:1");
    const uint64_t shape[2] = {8, 8};
    kk_model_file_get(a, "x.weight", 2, shape, &t[0], NULL);
    kk_model_file_get(a, "y.weight", 2, shape, &t[1], NULL);
    kk_model_file_get(b, "x.weight", 2, shape, &t[2], NULL);
    uint16_t v[3][64];
    for (int i = 0; i < 3; i++) kk_tensor_read(&t[i], 0, 64, v[i]);
    assert_memory_not_equal(v[0], v[1], sizeof v[0]);
    assert_memory_not_equal(v[0], v[2], sizeof v[0]);
    kk_model_file_close(a);
    kk_model_file_close(b);
}

static void absurd_sizes_are_refused(void **state)
{
    (void)state;
    struct kk_tensor t;
    struct kk_err err = {0};
    struct kk_model_file *mf = open_ok("synth:tests/data/mini.json");
    const uint64_t big[4] = {UINT64_MAX, UINT64_MAX, UINT64_MAX, UINT64_MAX};
    const uint64_t shape[2] = {1 << 20, (1 << 20) + 1};
    KK_ASSERT_FAILS(kk_model_file_get(mf, "x.weight", 2, shape, &t, &err), KK_ERANGE, &err,
                    "tensor 'x.weight' of shape [1048576, 1048577] is absurdly large");
    KK_ASSERT_FAILS(kk_model_file_get(mf, "x.weight", 4, big, &t, &err), KK_ERANGE, &err,
                    "18446744073709551615] is absurdly large");
    kk_model_file_close(mf);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(equals_python),
        cmocka_unit_test(reads_pieces),
        cmocka_unit_test(deviations_are_as_documented),
        cmocka_unit_test(finds_the_dtype),
        cmocka_unit_test(seeds_are_checked),
        cmocka_unit_test(seeds_and_names_matter),
        cmocka_unit_test(absurd_sizes_are_refused),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
