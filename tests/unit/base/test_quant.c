/* Dequantisation: bit for bit what Python's `gguf` package makes (tools/golden/quant.py). */
#include "kk_test.h"

#include <stdio.h>
#include <stdlib.h>

#include "base/json.h"
#include "base/mem.h"
#include "base/quant.h"

static enum kk_dtype type_named(const char *name)
{
    for (int t = 0; t <= KK_Q6_K; t++)
        if (!strcmp(kk_dtype_name((enum kk_dtype)t), name)) return (enum kk_dtype)t;
    fail_msg("no type '%s'", name);
    return KK_F32;
}

static void check_type(const json_t *c)
{
    const char *hex = json_string_value(json_object_get(c, "blocks")), *key;
    enum kk_dtype t = type_named(json_string_value(json_object_get(c, "type")));
    size_t bytes = strlen(hex) / 2, n = bytes / kk_dtype_block_bytes(t) * kk_dtype_block(t);
    unsigned char *raw = kk_malloc(bytes);
    float *y = kk_array(n, sizeof *y), *tail = kk_array(n, sizeof *y);
    json_t *v;
    char sha[65];
    for (size_t i = 0; i < bytes; i++) {
        unsigned b;
        assert_int_equal(sscanf(hex + 2 * i, "%2x", &b), 1);
        raw[i] = (unsigned char)b;
    }
    kk_dequant(t, raw, n, y);
    json_object_foreach(json_object_get(c, "bits"), key, v)
    {
        uint32_t u;
        memcpy(&u, &y[strtol(key, NULL, 10)], 4);
        if (u != json_integer_value(v)) fail_msg("%s: number %s is wrong", kk_dtype_name(t), key);
    }
    kk_test_sha256(y, n * sizeof *y, sha);
    assert_string_equal(sha, json_string_value(json_object_get(c, "sha256")));
    /* Any block alone is the same. */
    kk_dequant(t, raw + kk_dtype_block_bytes(t), n - kk_dtype_block(t), tail);
    assert_memory_equal(tail, y + kk_dtype_block(t), (n - kk_dtype_block(t)) * sizeof *y);
    kk_free(raw);
    kk_free(y);
    kk_free(tail);
}

static void every_block_type(void **state)
{
    (void)state;
    struct kk_err err = {0};
    json_t *root;
    KK_ASSERT_OK(kk_json_load("tests/golden/quant/blocks.json", 1 << 20, &root, &err), &err);
    const json_t *types = json_object_get(root, "types");
    assert_int_equal(json_array_size(types), KK_Q6_K - KK_Q4_0 + 1);
    for (size_t i = 0; i < json_array_size(types); i++) check_type(json_array_get(types, i));
    json_decref(root);
}

static void plain_types(void **state)
{
    (void)state;
    const float f[3] = {1.5f, -0.0f, 3e38f};
    const uint16_t b[3] = {0x3fc0, 0x8000, 0xff80}, h[3] = {0x3e00, 0x0001, 0xfbff};
    float y[3];
    kk_dequant(KK_F32, f, 3, y);
    assert_memory_equal(y, f, sizeof f);
    kk_dequant(KK_BF16, b, 3, y);
    assert_true(y[0] == 1.5f && y[1] == 0 && 1 / y[1] < 0 && y[2] < -3.4e38f);
    kk_dequant(KK_F16, h, 3, y);
    assert_true(y[0] == 1.5f && y[1] == 0x1p-24f && y[2] == -65504);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(every_block_type),
                                       cmocka_unit_test(plain_types)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
