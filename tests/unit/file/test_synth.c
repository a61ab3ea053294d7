/* synth: the bits of docs/formats/synth.md, against values made by tools/synth.py. */
#include "kk_test.h"

#include <stdio.h>
#include <stdlib.h>

#include "base/json.h"
#include "file/file.h"

static uint32_t bits_at(const struct kk_tensor *t, uint64_t i)
{
    uint32_t u = 0;
    kk_tensor_read(t, i, 1, &u);
    return t->dtype == KK_F32 ? u : u & 65535;
}

/* Open a synth model of the case's dtype and seed, and its tensor. */
static struct kk_model_file *open_case(const json_t *c, struct kk_tensor *t)
{
    char config[300], spec[400];
    struct kk_model_file *mf = NULL;
    struct kk_err err = {0};
    uint64_t shape[4];
    const json_t *s = json_object_get(c, "shape");
    int n = snprintf(config, sizeof config,
                     "{\"architectures\": [\"X\"], \"model_type\": \"x\", \"dtype\": \"%s\"}",
                     json_string_value(json_object_get(c, "dtype")));
    snprintf(spec, sizeof spec, "synth:%s:%s", kk_test_file("c.json", config, (size_t)n),
             json_string_value(json_object_get(c, "seed")));
    for (size_t i = 0; i < json_array_size(s); i++)
        shape[i] = (uint64_t)json_integer_value(json_array_get(s, i));
    KK_ASSERT_OK(kk_model_file_open(spec, &mf, &err), &err);
    KK_ASSERT_OK(kk_model_file_get(mf, json_string_value(json_object_get(c, "name")),
                                   (int)json_array_size(s), shape, t, &err),
                 &err);
    return mf;
}

static void equals_python(void **state)
{
    (void)state;
    json_t *all = NULL;
    struct kk_err err = {0};
    KK_ASSERT_OK(kk_json_load("tests/golden/synth/values.json", 1 << 20, &all, &err), &err);
    for (size_t i = 0; i < json_array_size(all); i++) {
        const json_t *c = json_array_get(all, i), *v;
        struct kk_tensor t;
        struct kk_model_file *mf = open_case(c, &t);
        const json_t *first = json_object_get(c, "first"), *last = json_object_get(c, "last");
        size_t k;
        json_array_foreach(first, k, v) assert_int_equal(bits_at(&t, k), json_integer_value(v));
        json_array_foreach(last, k, v) assert_int_equal(
            bits_at(&t, t.count - json_array_size(last) + k), json_integer_value(v));
        kk_model_file_close(mf);
    }
    assert_true(json_array_size(all) >= 20);
    json_decref(all);
}

static void seeds_and_configs_are_checked(void **state)
{
    (void)state;
    static const struct {
        const char *spec;
        int code;
        const char *words;
    } bad[] = {
        {"synth:tests/data/mini.json:x", KK_EINVAL, "'x' is no seed"},
        {"synth:tests/data/mini.json:-1", KK_EINVAL, "no seed"},
        {"synth:tests/data/mini.json:", KK_EINVAL, "no seed"},
        {"synth:tests/data/mini.json:99999999999999999999", KK_EINVAL, "no seed"},
        {"synth:tests/data/none.json", KK_ENOENT, "none.json"},
    };
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        struct kk_model_file *mf = NULL;
        struct kk_err err = {0};
        KK_ASSERT_FAILS(kk_model_file_open(bad[i].spec, &mf, &err), bad[i].code, &err,
                        bad[i].words);
    }
}

static void absurd_sizes_are_refused(void **state)
{
    (void)state;
    struct kk_model_file *mf = NULL;
    struct kk_tensor t;
    struct kk_err err = {0};
    const uint64_t shape[2] = {(uint64_t)1 << 40, (uint64_t)1 << 40};
    KK_ASSERT_OK(kk_model_file_open("synth:tests/data/mini.json", &mf, &err), &err);
    KK_ASSERT_FAILS(kk_model_file_get(mf, "x.weight", 2, shape, &t, &err), KK_ERANGE, &err,
                    "absurdly");
    kk_model_file_close(mf);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(equals_python),
        cmocka_unit_test(seeds_and_configs_are_checked),
        cmocka_unit_test(absurd_sizes_are_refused),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
