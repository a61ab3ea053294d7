/* src/tok against the Hugging Face `tokenizers` library (tests/golden/tokenizer, made by
 * tools/golden/tokenizer.py), and the laws of decoding: a stream says what a decode says, in whole
 * characters. */
#include "unit/tok/cases.h"

#include <time.h>

#define DIR "tests/golden/tokenizer/"

static const char *const names[] = {"tiny", "gemma", "llama2", "llama3",
                                    "gpt2", "qwen",  "meta",   "odd"};
enum { N_NAMES = sizeof names / sizeof *names };

static struct kk_tok *open_tok(const char *name)
{
    char path[256];
    struct kk_tok *t = NULL;
    struct kk_err err;
    snprintf(path, sizeof path, DIR "%s.json", name);
    KK_ASSERT_OK(kk_tok_open(strcmp(name, "tiny") ? path : "models/tiny/tokenizer.json", &t, &err),
                 &err);
    return t;
}

/* ---- golden files ------------------------------------------------------------------------- */

/* ids decode to want, whole and as a stream. */
static int decodes_to(const struct kk_tok *t, const struct kk_ids *v, int skip, const char *want,
                      size_t len)
{
    struct kk_buf out;
    struct kk_err err;
    kk_buf_init(&out, MAX_TEXT);
    KK_ASSERT_OK(kk_tok_decode(t, v->id, v->n, skip, &out, &err), &err);
    int ok = out.len == len && (!len || !memcmp(out.data, want, len));
    if (!ok) print_error("decoded [%.300s]\n  want  [%.300s]\n", out.data ? out.data : "", want);
    kk_buf_release(&out);
    return ok;
}

/* Ill-formed text as the oracle saw it: through a byte-level decode, which repairs alike. */
static struct kk_tok *tiny;

static void repair(struct kk_buf *text)
{
    struct kk_tok *t = tiny;
    struct kk_ids v = {0};
    struct kk_err err;
    KK_ASSERT_OK(kk_tok_encode(t, text->data ? text->data : "", text->len, 0, &v, &err), &err);
    kk_buf_reset(text);
    KK_ASSERT_OK(kk_tok_decode(t, v.id, v.n, 0, text, &err), &err);
    kk_ids_release(&v);
}

static int check_decodes(const struct kk_tok *t, const struct kk_ids *v, const json_t *row,
                         const char *text, size_t len)
{
    const json_t *d = json_object_get(row, "d"), *s = json_object_get(row, "s");
    if (d) text = json_string_value(d), len = json_string_length(d);
    int ok = decodes_to(t, v, 0, text, len);
    if (s) text = json_string_value(s), len = json_string_length(s);
    return ok & decodes_to(t, v, 1, text, len);
}

static int check_case(const struct kk_tok *t, struct kk_buf *text, const json_t *row,
                      const char *name, int line)
{
    struct kk_ids v = {0};
    struct kk_err err;
    const char *s = text->data ? text->data : "";
    const json_t *i = json_object_get(row, "i"), *p = json_object_get(row, "p");
    KK_ASSERT_OK(kk_tok_encode(t, s, text->len, 1, &v, &err), &err);
    int ok = same_ids(&v, i ? i : row);
    if (!ok) show(name, line, text, &v, row);
    struct kk_ids plain = {0};
    KK_ASSERT_OK(kk_tok_encode(t, s, text->len, 0, &plain, &err), &err);
    if (!same_ids(&plain, p ? p : i ? i : row)) {
        ok = 0;
        show(name, line, text, &plain, row);
    }
    if (i) {
        repair(text);
        ok &= check_decodes(t, &v, row, text->data ? text->data : "", text->len);
    }
    kk_ids_release(&v);
    kk_ids_release(&plain);
    return ok;
}

static int check_random(const struct kk_tok *t, const json_t *row)
{
    struct kk_ids v = {0};
    size_t i;
    json_t *x;
    json_array_foreach(json_object_get(row, "r"), i, x)
    {
        assert_int_equal(kk_ids_push(&v, (uint32_t)json_integer_value(x)), 0);
    }
    int ok = check_decodes(t, &v, row, NULL, 0);
    kk_ids_release(&v);
    return ok;
}

static void check_goldens(const char *name)
{
    char path[256];
    snprintf(path, sizeof path, DIR "%s.jsonl", name);
    struct lines cases = open_lines(CASES), rows = open_lines(path);
    struct kk_tok *t = open_tok(name);
    struct kk_buf text;
    int bad = 0, n = 0;
    kk_buf_init(&text, MAX_TEXT);
    for (json_t *row; (row = next_line(&rows)); json_decref(row)) {
        n++;
        if (json_object_get(row, "r")) {
            bad += !check_random(t, row);
            continue;
        }
        json_t *c = next_line(&cases);
        assert_non_null(c);
        get_text(c, &text);
        bad += !check_case(t, &text, row, name, n);
        json_decref(c);
    }
    if (bad) fail_msg("%s: %d of %d lines differ", name, bad, n);
    assert_true(n > 1000);
    kk_buf_release(&text);
    kk_tok_close(t);
    close_lines(&cases);
    close_lines(&rows);
}

static void test_goldens(void **state)
{
    check_goldens(*state);
}

/* ---- properties --------------------------------------------------------------------------- */

/* Ids with specials, byte tokens and holes, in any order. */
static void random_ids(const struct kk_tok *t, struct kk_test_rng *r, struct kk_ids *v)
{
    v->n = 0;
    for (int n = kk_test_between(r, 0, 40); n > 0; n--) {
        char name[16];
        snprintf(name, sizeof name, "<0x%02X>", (unsigned)kk_test_below(r, 256));
        int64_t id = kk_test_below(r, 2) ? kk_tok_find(t, name) : -1;
        if (id < 0) id = kk_test_below(r, kk_tok_size(t));
        assert_int_equal(kk_ids_push(v, (uint32_t)id), 0);
    }
}

/* No character is cut: p ends where a character ends. */
static int ends_whole(const char *p, size_t n)
{
    size_t k = 1;
    if (!n) return 1;
    while (k < 4 && k < n && ((unsigned char)p[n - k] & 0xc0) == 0x80) k++;
    unsigned char b = (unsigned char)p[n - k];
    return k == (b < 0x80 ? 1 : b < 0xe0 ? 2 : b < 0xf0 ? 3 : 4);
}

static void check_stream(const struct kk_tok *t, const struct kk_ids *v, int skip)
{
    struct kk_buf whole, out;
    struct kk_tok_stream s;
    struct kk_err err;
    kk_buf_init(&whole, MAX_TEXT);
    kk_buf_init(&out, MAX_TEXT);
    KK_ASSERT_OK(kk_tok_decode(t, v->id, v->n, skip, &whole, &err), &err);
    kk_tok_stream_init(&s, t, skip);
    for (size_t i = 0; i < v->n; i++) {
        KK_ASSERT_OK(kk_tok_stream_push(&s, v->id[i], &out, &err), &err);
        assert_true(ends_whole(out.data, out.len));
        assert_true(out.len <= whole.len && (!out.len || !memcmp(out.data, whole.data, out.len)));
    }
    assert_int_equal(kk_tok_stream_flush(&s, &out), 0);
    assert_int_equal(out.len, whole.len);
    if (out.len) assert_memory_equal(out.data, whole.data, out.len);
    kk_buf_release(&whole);
    kk_buf_release(&out);
}

static void test_stream_is_decode(void **state)
{
    (void)state;
    struct kk_test_rng r = kk_test_rng("tok stream");
    for (int k = 0; k < N_NAMES; k++) {
        struct kk_tok *t = open_tok(names[k]);
        struct kk_ids v = {0};
        for (int i = 0; i < 300; i++) {
            random_ids(t, &r, &v);
            check_stream(t, &v, i & 1);
        }
        kk_ids_release(&v);
        kk_tok_close(t);
    }
}

/* Byte-level tokenizers without a normalizer: decode(encode(x)) is x, whatever the cut of x. */
static void test_round_trip(void **state)
{
    (void)state;
    static const char *const exact[] = {"tiny", "gemma", "llama3"};
    struct kk_test_rng r = kk_test_rng("tok round trip");
    for (int k = 0; k < 3; k++) {
        struct kk_tok *t = open_tok(exact[k]);
        for (int i = 0; i < 200; i++) {
            char text[400];
            size_t n = 0, chars = kk_test_below(&r, 90);
            for (size_t c = 0; c < chars; c++) {
                static const char *const pool[] = {"a",  " ", "the", "\n", "é",
                                                   "中", "😀", "7",   "'s", "\t"};
                const char *p = pool[kk_test_below(&r, 10)];
                memcpy(text + n, p, strlen(p));
                n += strlen(p);
            }
            struct kk_ids v = {0};
            struct kk_err err;
            KK_ASSERT_OK(kk_tok_encode(t, text, n, 1, &v, &err), &err);
            assert_true(decodes_to(t, &v, 0, text, n));
            kk_ids_release(&v);
        }
        kk_tok_close(t);
    }
}

/* Where a run of byte tokens is ill-formed, only the ill-formed part is lost (tok.h). */
static void test_broken_byte_run(void **state)
{
    (void)state;
    static const char *const run[] = {"<0x61>", "<0xE2>", "<0x82>", "<0x62>", "<0xF0>", "<0x9F>"};
    struct kk_tok *t = open_tok("gemma");
    struct kk_ids v = {0};
    for (int i = 0; i < 6; i++)
        assert_int_equal(kk_ids_push(&v, (uint32_t)kk_tok_find(t, run[i])), 0);
    assert_true(decodes_to(t, &v, 0,
                           "a\xef\xbf\xbd"
                           "b\xef\xbf\xbd",
                           8));
    kk_ids_release(&v);
    kk_tok_close(t);
}

static void test_lookups(void **state)
{
    (void)state;
    struct kk_tok *t = open_tok("gemma");
    struct kk_ids v = {0};
    struct kk_buf out;
    struct kk_err err;
    kk_buf_init(&out, 100);
    int64_t bos = kk_tok_find(t, "<bos>");
    assert_true(bos >= 0);
    assert_string_equal(kk_tok_text(t, (uint32_t)bos), "<bos>");
    assert_true(kk_tok_is_special(t, (uint32_t)bos));
    assert_false(kk_tok_is_special(t, (uint32_t)kk_tok_find(t, "<0x0A>")));
    assert_int_equal(kk_tok_find(t, "no such token"), -1);
    assert_null(kk_tok_text(t, kk_tok_size(t)));
    assert_false(kk_tok_is_special(t, UINT32_MAX));
    uint32_t big = kk_tok_size(t);
    assert_int_equal(kk_tok_decode(t, &big, 1, 0, &out, &err), KK_ERANGE);
    assert_non_null(strstr(err.msg, "out of range"));
    assert_int_equal(kk_tok_encode(t, "", 0, 1, &v, &err), 0);
    assert_int_equal(v.n, 0);
    kk_buf_release(&out);
    kk_tok_close(t);
}

/* A text is one piece here: the merge loop must not be quadratic. A second is some 100 times the
 * need. */
static void test_long_piece(void **state)
{
    (void)state;
    enum { N = 1 << 18 };
    struct kk_tok *t = open_tok("gemma");
    struct kk_test_rng r = kk_test_rng("tok long piece");
    struct kk_ids v = {0};
    struct kk_err err;
    char *text = malloc(N);
    for (int i = 0; i < N; i++) text[i] = "etaoinshr "[kk_test_below(&r, 10)];
    clock_t t0 = clock();
    KK_ASSERT_OK(kk_tok_encode(t, text, N, 1, &v, &err), &err);
    assert_true((double)(clock() - t0) / CLOCKS_PER_SEC < 10);
    assert_true(decodes_to(t, &v, 0, text, N));
    kk_ids_release(&v);
    free(text);
    kk_tok_close(t);
}

static int group_setup(void **state)
{
    (void)state;
    tiny = open_tok("tiny");
    return 0;
}

static int group_teardown(void **state)
{
    (void)state;
    kk_tok_close(tiny);
    return 0;
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_prestate(test_goldens, (void *)"tiny"),
        cmocka_unit_test_prestate(test_goldens, (void *)"gemma"),
        cmocka_unit_test_prestate(test_goldens, (void *)"llama2"),
        cmocka_unit_test_prestate(test_goldens, (void *)"llama3"),
        cmocka_unit_test_prestate(test_goldens, (void *)"gpt2"),
        cmocka_unit_test_prestate(test_goldens, (void *)"qwen"),
        cmocka_unit_test_prestate(test_goldens, (void *)"meta"),
        cmocka_unit_test_prestate(test_goldens, (void *)"odd"),
        cmocka_unit_test(test_stream_is_decode),
        cmocka_unit_test(test_round_trip),
        cmocka_unit_test(test_broken_byte_run),
        cmocka_unit_test(test_lookups),
        cmocka_unit_test(test_long_piece),
    };
    return cmocka_run_group_tests(tests, group_setup, group_teardown);
}
