/* The values wanted are those of the Python package gguf (tools/golden/quant.py): the same bits. */
#include "kk_test.h"

#include <math.h>
#include <stdio.h>

#include "base/fs.h"
#include "base/quant.h"

static void read_golden(enum kk_dtype t, const char *what, struct kk_buf *buf)
{
    struct kk_err err = {0};
    char path[80];
    snprintf(path, sizeof path, "tests/golden/quant/%s.%s", kk_dtype_name(t), what);
    kk_buf_init(buf, 1 << 20);
    KK_ASSERT_OK(kk_fs_read(path, buf, &err), &err);
}

static void test_dequant(void **state)
{
    static float got[1024];
    (void)state;
    for (enum kk_dtype t = KK_Q4_0; t <= KK_Q6_K; t++) {
        struct kk_buf blocks, want;
        read_golden(t, "blocks", &blocks);
        read_golden(t, "f32", &want);
        uint64_t n = blocks.len / kk_dtype_block_bytes(t) * kk_dtype_block(t);
        assert_in_range(n, 256, 1024);
        assert_int_equal(want.len, n * 4);
        kk_dequant(t, blocks.data, n, got);
        for (uint64_t i = 0; i < n; i++)
            if (memcmp(&got[i], want.data + i * 4, 4))
                fail_msg("%s [%d]: %a", kk_dtype_name(t), (int)i, (double)got[i]);
        kk_buf_release(&blocks);
        kk_buf_release(&want);
    }
}

/* Codes stay below 2^bits and the offset is among them: what packing into fewer bits rests on. */
static void test_codes(void **state)
{
    uint8_t block[256];
    struct kk_quant_group g;
    (void)state;
    struct kk_test_rng rng = kk_test_rng("codes");
    for (enum kk_dtype t = KK_Q4_0; t <= KK_Q6_K; t++) {
        int groups = (int)kk_dtype_block(t) / KK_QUANT_GROUP, top = 1 << kk_quant_bits(t), seen = 0;
        assert_in_range(kk_quant_offset(t), 0, top - 1);
        for (int i = 0; i < 200; i++) {
            for (size_t b = 0; b < sizeof block; b++) block[b] = (uint8_t)kk_test_u64(&rng);
            kk_quant_take(t, block, i % groups, &g);
            for (int k = 0; k < KK_QUANT_GROUP; k++) {
                assert_in_range(g.code[k], 0, top - 1);
                if (g.code[k] > seen) seen = g.code[k];
            }
        }
        assert_int_equal(seen, top - 1);
    }
}

/* Every f16 comes back; halfway goes to the even one, and a step of f32 decides else. */
static void test_f16(void **state)
{
    (void)state;
    for (uint32_t h = 0; h < 0x7c00; h++) {
        const float x = kk_f16_to_f32((uint16_t)h), y = kk_f16_to_f32((uint16_t)(h + 1));
        const float half = h == 0x7bff ? 65520.0f : x + (y - x) / 2;
        assert_int_equal(kk_f32_to_f16(x), h);
        assert_int_equal(kk_f32_to_f16(-x), h | 0x8000);
        assert_int_equal(kk_f32_to_f16(half), h + h % 2);
        assert_int_equal(kk_f32_to_f16(nextafterf(half, 0)), h);
        assert_int_equal(kk_f32_to_f16(nextafterf(half, INFINITY)), h + 1);
    }
    assert_int_equal(kk_f32_to_f16(INFINITY), 0x7c00);
    assert_int_equal(kk_f32_to_f16(-3e38f), 0xfc00);
    assert_int_equal(kk_f32_to_f16(NAN) & 0x7e00, 0x7e00);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_dequant), cmocka_unit_test(test_codes),
                                       cmocka_unit_test(test_f16)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
