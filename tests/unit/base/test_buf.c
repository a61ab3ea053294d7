#include "kk_test.h"

#include "base/buf.h"
#include "base/mem.h"

static void test_appends(void **state)
{
    (void)state;
    struct kk_buf b;
    kk_buf_init(&b, 1000);
    assert_int_equal(kk_buf_puts(&b, "ab"), 0);
    assert_int_equal(kk_buf_putc(&b, 'c'), 0);
    assert_int_equal(kk_buf_printf(&b, "%d-%s", 12, "x"), 0);
    assert_int_equal(kk_buf_append(&b, "\0z", 2), 0);
    assert_int_equal(b.len, 9);
    assert_memory_equal(b.data, "abc12-x\0z", 10);
    kk_buf_reset(&b);
    assert_int_equal(b.len, 0);
    kk_buf_release(&b);
    assert_null(b.data);
}

static void test_ceiling(void **state)
{
    (void)state;
    struct kk_buf b;
    kk_buf_init(&b, 5);
    assert_int_equal(kk_buf_puts(&b, "abcde"), 0);
    assert_int_equal(kk_buf_putc(&b, 'f'), KK_ERANGE);
    assert_int_equal(kk_buf_printf(&b, "%d", 7), KK_ERANGE);
    assert_string_equal(b.data, "abcde");
    kk_buf_release(&b);
}

/* Every allocation fails in turn: the contents stay what they were. */
static void test_out_of_memory(void **state)
{
    (void)state;
    for (int64_t k = 1;; k++) {
        struct kk_buf b;
        size_t want = 0;
        kk_buf_init(&b, 1 << 20);
        kk_mem_fail_after(k);
        for (int i = 0; i < 4000; i++) {
            int rc = kk_buf_puts(&b, "0123456789");
            assert_true(rc == 0 || rc == KK_ENOMEM);
            if (rc == 0) want += 10;
            assert_int_equal(b.len, want);
        }
        int hit = kk_mem_fail_hit();
        kk_mem_fail_after(0);
        kk_buf_release(&b);
        if (!hit) break;
        assert_true(k < 100);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_appends),
        cmocka_unit_test(test_ceiling),
        cmocka_unit_test(test_out_of_memory),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
