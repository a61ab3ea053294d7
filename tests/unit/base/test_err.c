/* Messages are one line of UTF-8, whatever they quote. */
#include "kk_test.h"

static void says(const char *quoted, const char *want)
{
    struct kk_err err = {0};
    assert_int_equal(kk_fail(&err, KK_EFORMAT, "%s", quoted), KK_EFORMAT);
    assert_string_equal(err.msg, want);
    assert_int_equal(kk_wrap(&err, KK_EIO, "%s", quoted), KK_EIO);
    assert_int_equal(strlen(err.msg), 2 * strlen(want) + 2);
}

static void test_one_line(void **state)
{
    (void)state;
    says("plain", "plain");
    says("a\nb\rc\td\x1b[2J\x7f", "a?b?c?d?[2J?");
    says("θ é 日 😀", "θ é 日 😀");
    says("\xff\x80 \xc3 \xe2\x82 \xf0\x9f\x98", "?? ? ?? ???");
    says("\xc0\xaf \xc1\x81 \xe0\x9f\xbf \xf0\x8f\xbf\xbf", "?? ?? ??? ????"); /* overlong */
    says("\xed\xa0\x80 \xf4\x90\x80\x80 \xf5\x80\x80\x80", "??? ???? ????");
    says("\xc2\x80 \xc2\x9b \xc2\xa0", "?? ?? \xc2\xa0"); /* the last is a space */
}

/* A message that is cut does not end in half a character. */
static void test_cut(void **state)
{
    (void)state;
    char text[600];
    struct kk_err err = {0};
    for (size_t i = 0; i + 3 <= sizeof text; i += 3) memcpy(text + i, "日", 3);
    text[sizeof text - 1] = 0;
    (void)kk_fail(&err, KK_EFORMAT, "%s", text);
    assert_int_equal(strlen(err.msg), sizeof err.msg - 1);
    assert_string_equal(err.msg + sizeof err.msg - 5, "日?");
    (void)kk_fail(&err, KK_EFORMAT, "'%.4s'", text);
    assert_string_equal(err.msg, "'日?'");
    assert_int_equal(kk_fail(NULL, KK_EFORMAT, "%s", text), KK_EFORMAT);
    assert_int_equal(kk_wrap(NULL, KK_EFORMAT, "%s", text), KK_EFORMAT);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_one_line), cmocka_unit_test(test_cut)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
