/* One model.safetensors: good ones read back, hostile ones refused in one line that says what was
 * expected and found, mutated ones never crash. */
#include "unit/file/model_dir.h"

#include "base/mem.h"

/* Padded to a multiple of 8, as every writer does. */
static const char *padded(const char *header)
{
    static char out[4096];
    int n = (int)strlen(header);
    snprintf(out, sizeof out, "%s%*s", header, (8 - n % 8) % 8, "");
    return out;
}

#define GOOD                                                                                       \
    "{\"__metadata__\": {\"format\": \"pt\"}," T("a.weight", "F32", "2, 3", "0, 24") "," T(        \
        "h", "F16", "0, 7", "40, 40") "," T("c", "I64", "1",                                       \
                                            "32, 40") "," T("b", "BF16", "4",                      \
                                                            "24, 32") "," T("s", "F16", "",        \
                                                                            "40, 42") "}"
#define GOOD_DATA 42

static void check_good(const struct kk_model_file *mf)
{
    static const char *const order[] = {"a.weight", "b", "c", "h", "s"};
    struct kk_tensor t;
    struct kk_err err = {0};
    uint16_t half[2];
    assert_int_equal(kk_model_file_count(mf), 5);
    for (size_t i = 0; i < 5; i++) {
        assert_int_equal(kk_model_file_at(mf, i, &t), 0);
        assert_string_equal(t.name, order[i]);
    }
    assert_int_equal(kk_model_file_at(mf, 5, &t), KK_ENOENT);
    KK_ASSERT_OK(kk_model_file_get(mf, "b", 1, (uint64_t[]){4}, &t, &err), &err);
    kk_tensor_read(&t, 1, 2, half);
    assert_int_equal(half[0], 26 | 27 << 8);
    assert_int_equal(half[1], 28 | 29 << 8);
    KK_ASSERT_OK(kk_model_file_get(mf, "a.weight", 2, (uint64_t[]){2, 3}, &t, &err), &err);
    assert_int_equal(t.dtype, KK_F32);
    assert_int_equal(t.bytes, 24);
    assert_int_equal((uintptr_t)t.data % 4, 0);
    assert_int_equal(((const unsigned char *)t.data)[23], 23);
    KK_ASSERT_OK(kk_model_file_get(mf, "h", 2, (uint64_t[]){0, 7}, &t, &err), &err);
    assert_int_equal(t.count, 0);
    KK_ASSERT_OK(kk_model_file_get(mf, "s", 0, NULL, &t, &err), &err);
    assert_int_equal(t.count, 1);
}

static void reads_a_good_file(void **state)
{
    (void)state;
    put_text("config.json", CONFIG);
    put_tensors("model.safetensors", padded(GOOD), GOOD_DATA);
    struct kk_model_file *mf = open_ok(model_dir());
    check_good(mf);
    kk_model_file_close(mf);
}

/* Headers of every length modulo 8: the data is misaligned in seven, and copied. */
static void reads_misaligned_files(void **state)
{
    (void)state;
    put_text("config.json", CONFIG);
    for (int pad = 0; pad < 8; pad++) {
        char header[1024];
        snprintf(header, sizeof header, "%s%*s", GOOD, pad, "");
        put_tensors("model.safetensors", header, GOOD_DATA);
        struct kk_model_file *mf = open_ok(model_dir());
        check_good(mf);
        kk_model_file_close(mf);
    }
}

static void get_says_what_is_wrong(void **state)
{
    (void)state;
    struct kk_tensor t;
    struct kk_err err = {0};
    put_text("config.json", CONFIG);
    put_tensors("model.safetensors", padded(GOOD), GOOD_DATA);
    struct kk_model_file *mf = open_ok(model_dir());
    KK_ASSERT_FAILS(kk_model_file_get(mf, "a.weight", 2, (uint64_t[]){3, 2}, &t, &err), KK_EFORMAT,
                    &err, "tensor 'a.weight' has shape [2, 3], expected [3, 2]");
    KK_ASSERT_FAILS(kk_model_file_get(mf, "a.weight", 1, (uint64_t[]){6}, &t, &err), KK_EFORMAT,
                    &err, "tensor 'a.weight' has shape [2, 3], expected [6]");
    KK_ASSERT_FAILS(kk_model_file_get(mf, "a.weight", 0, NULL, &t, &err), KK_EFORMAT, &err,
                    "has shape [2, 3], expected []");
    KK_ASSERT_FAILS(kk_model_file_get(mf, "zz", 1, (uint64_t[]){4}, &t, &err), KK_ENOENT, &err,
                    "tensor 'zz' is missing");
    KK_ASSERT_FAILS(kk_model_file_get(mf, "c", 1, (uint64_t[]){1}, &t, &err), KK_EUNSUPPORTED, &err,
                    "tensor 'c' has dtype I64, expected BF16, F16 or F32");
    assert_false(kk_model_file_has(mf, "zz"));
    assert_false(kk_model_file_has(mf, "__metadata__"));
    assert_int_equal(kk_model_file_at(mf, 2, &t), 0);
    assert_string_equal(t.stored, "I64");
    assert_int_equal(t.bytes, 8);
    kk_model_file_close(mf);
}

static void lists_every_dtype(void **state)
{
    (void)state;
    static const struct {
        const char *name;
        int bytes, loadable; /* of 8 elements */
    } all[] = {{"F64", 64, 0},    {"F32", 32, 1},    {"F16", 16, 1},    {"BF16", 16, 1},
               {"I64", 64, 0},    {"I32", 32, 0},    {"I16", 16, 0},    {"I8", 8, 0},
               {"U64", 64, 0},    {"U32", 32, 0},    {"U16", 16, 0},    {"U8", 8, 0},
               {"F8_E4M3", 8, 0}, {"F8_E5M2", 8, 0}, {"BOOL", 8, 0},    {"C64", 64, 0},
               {"F4", 4, 0},      {"F6_E2M3", 6, 0}, {"F6_E3M2", 6, 0}, {"F8_E8M0", 8, 0}};
    put_text("config.json", CONFIG);
    for (size_t i = 0; i < sizeof all / sizeof *all; i++) {
        char header[256];
        struct kk_tensor t;
        snprintf(header, sizeof header,
                 "{\"x\": {\"dtype\": \"%s\", \"shape\": [8], \"data_offsets\": [0, %d]}}",
                 all[i].name, all[i].bytes);
        put_tensors("model.safetensors", padded(header), (size_t)all[i].bytes);
        struct kk_model_file *mf = open_ok(model_dir());
        assert_int_equal(kk_model_file_at(mf, 0, &t), 0);
        assert_string_equal(t.stored, all[i].name);
        assert_int_equal(t.loadable, all[i].loadable);
        assert_int_equal(t.bytes, all[i].bytes);
        kk_model_file_close(mf);
    }
}

#define BIG  "4611686018427387904" /* 2^62 */
#define HUGE "99999999999999999999"

struct bad {
    const char *header;
    size_t data;
    const char *words;
};

static const struct bad bad_headers[] = {
    {"[]", 0, "is not a JSON object"},
    {"3", 0, "not valid JSON"},
    {"{", 0, "not valid JSON"},
    {"", 0, "not valid JSON"},
    {"{} {}", 0, "not valid JSON"},
    {"{\"a\": \"\xff\"}", 0, "not valid JSON"},
    {"{\"a\\u0000b\": 1}", 0, "not valid JSON"},
    {"{\"__metadata__\": 3}", 0, "'__metadata__' is not an object of strings"},
    {"{\"__metadata__\": {\"a\": 3}}", 0, "'__metadata__' is not an object of strings"},
    {"{\"a\": 1}", 0, "tensor 'a' is not described by a JSON object"},
    {"{" T("", "F32", "1", "0, 4") "}", 4, "'' is no tensor name"},
    {"{" T("a\\nb", "F32", "1", "0, 4") "}", 4, "'a?b' is no tensor name"},
    {"{" T("a\\u001b[2J", "F32", "1", "0, 4") "}", 4, "'a?[2J' is no tensor name"},
    {"{\"a\": {\"dtype\": \"F32\", \"data_offsets\": [0, 4]}}", 4, "tensor 'a' has no shape"},
    {"{\"a\": {\"dtype\": \"F32\", \"shape\": 1, \"data_offsets\": [0, 4]}}", 4, "has no shape"},
    {"{" T("a", "F32", "-1", "0, 4") "}", 4, "size 0 is no whole number >= 0"},
    {"{" T("a", "F32", "1, 1.0", "0, 4") "}", 4, "size 1 is no whole number >= 0"},
    {"{" T("a", "F32", "1, \\\"1\\\"", "0, 4") "}", 4, "not valid JSON"},
    {"{" T("a", "F32", "1, null", "0, 4") "}", 4, "size 1 is no whole number >= 0"},
    {"{" T("a", "F32", HUGE, "0, 4") "}", 4, "not valid JSON"},
    {"{" T("a", "F32", "1, 1, 1, 1, 1", "0, 4") "}", 4, "has 5 dimensions, at most 4 expected"},
    {"{" T("a", "F32", BIG ", 4", "0, 4") "}", 4, "has shape [" BIG ", 4], which overflows"},
    {"{\"a\": x\ny}", 0, "not valid JSON"},
    {"{" T("a", "F32", BIG, "0, 4") "}", 4, "has shape [" BIG "], which is no whole number"},
    {"{" T("a", "F4", "1", "0, 1") "}", 1, "which is no whole number of bytes in F4"},
    {"{\"a\": {\"shape\": [1], \"data_offsets\": [0, 4]}}", 4, "tensor 'a' has no dtype"},
    {"{\"a\": {\"dtype\": 7, \"shape\": [1], \"data_offsets\": [0, 4]}}", 4, "has no dtype"},
    {"{" T("a", "F31", "1", "0, 4") "}", 4, "tensor 'a' has unknown dtype 'F31'"},
    {"{" T("a", "F\\n32", "1", "0, 4") "}", 4, "tensor 'a' has unknown dtype 'F?32'"},
    {"{\"a\": {\"dtype\": \"F32\", \"shape\": [1]}}", 4, "tensor 'a' has no data_offsets"},
    {"{" T("a", "F32", "1", "0, 4, 8") "}", 4, "has no data_offsets"},
    {"{" T("a", "F32", "1", "0") "}", 4, "has no data_offsets"},
    {"{" T("a", "F32", "1", "0, 4.0") "}", 4, "has no data_offsets"},
    {"{" T("a", "F32", "1", "4, 0") "}", 4, "has data_offsets 4 to 0, which are out of order"},
    {"{" T("a", "F32", "1", "-4, 0") "}", 4, "has data_offsets -4 to 0, which are out of order"},
    {"{" T("a", "F32", "1", "0, 8") "}", 4, "tensor 'a' ends at byte 8 of the data, which has 4"},
    {"{" T("a", "F32", "1", BIG "," BIG) "}", 4, "ends at byte " BIG},
    {"{" T("a", "F32", "2", "0, 4") "}", 4, "has 4 bytes, expected 8 (shape [2] of F32)"},
    {"{" T("a", "BF16", "2, 3", "0, 8") "}", 8, "has 8 bytes, expected 12 (shape [2, 3] of BF16)"},
    {"{" T("a", "F32", "1", "0, 4") "," T("b", "F32", "1", "0, 4") "}", 4, "overlaps"},
    {"{" T("a", "F32", "2", "0, 8") "," T("b", "F32", "1", "4, 8") "}", 8,
     "tensor 'b' overlaps 'a'"},
    {"{" T("a", "F32", "1", "4, 8") "}", 8, "tensor 'a' begins at byte 4, expected 0"},
    {"{" T("a", "F32", "1", "8, 12") "," T("b", "F32", "1", "0, 4") "}", 12,
     "tensor 'a' begins at byte 8, expected 4"},
    {"{" T("a", "F32", "1", "0, 4") "}", 9, "5 bytes after the last tensor"},
    {"{}", 1, "1 bytes after the last tensor"},
    {"{" T("a", "F32", "1", "0, 4") "," T("a", "F32", "1", "4, 8") "}", 8, "duplicate"},
};

static void refuses_bad_headers(void **state)
{
    (void)state;
    put_text("config.json", CONFIG);
    for (size_t i = 0; i < sizeof bad_headers / sizeof *bad_headers; i++) {
        const struct bad *b = &bad_headers[i];
        put_tensors("model.safetensors", padded(b->header), b->data);
        open_fails(model_dir(), KK_EFORMAT, b->words);
        open_fails(model_dir(), KK_EFORMAT, "model.safetensors'");
    }
}

static void refuses_long_names(void **state)
{
    (void)state;
    char name[300], header[600];
    put_text("config.json", CONFIG);
    memset(name, 'n', sizeof name);
    name[256] = 0;
    snprintf(header, sizeof header,
             "{\"%s\": {\"dtype\": \"F32\", \"shape\": [1], \"data_offsets\": [0, 4]}}", name);
    put_tensors("model.safetensors", padded(header), 4);
    open_fails(model_dir(), KK_EFORMAT, "n...' is no tensor name (1 to 255 bytes");
}

static void refuses_damaged_files(void **state)
{
    (void)state;
    unsigned char buf[4096];
    put_text("config.json", CONFIG);
    put("model.safetensors", "", 0);
    open_fails(model_dir(), KK_EFORMAT, "is no safetensors file: it has 0 bytes");
    put("model.safetensors", "short..", 7);
    open_fails(model_dir(), KK_EFORMAT, "is no safetensors file: it has 7 bytes");
    put("model.safetensors", "\xff\xff\xff\xff\xff\xff\xff\xff{}", 10);
    open_fails(model_dir(), KK_EFORMAT, "said to have 18446744073709551615 bytes, the file has 10");
    put("model.safetensors", "\3\0\0\0\0\0\0\0{}", 10);
    open_fails(model_dir(), KK_EFORMAT, "said to have 3 bytes, the file has 10");
    size_t n = image(buf, padded(GOOD), GOOD_DATA);
    for (size_t len = 0; len < n; len++) {
        put("model.safetensors", buf, len);
        open_fails(model_dir(), KK_EFORMAT, "model.safetensors'");
    }
}

/* A header over the limit is refused before it is read. The file is sparse: it takes no room. */
static void refuses_huge_headers(void **state)
{
    (void)state;
    char path[600];
    put_text("config.json", CONFIG);
    put("model.safetensors", "\1\0\x40\x06\0\0\0\0{}", 10); /* 100 MiB + 1 */
    snprintf(path, sizeof path, "%s/model.safetensors", model_dir());
    if (truncate(path, (off_t)101 << 20)) skip();
    open_fails(model_dir(), KK_EFORMAT,
               "has a header of 104857601 bytes, over the limit of 104857");
    drop("model.safetensors");
}

static void read_all(const struct kk_model_file *mf)
{
    unsigned char sink[256];
    struct kk_tensor t;
    for (size_t k = 0; kk_model_file_at(mf, k, &t) == 0; k++) {
        assert_true(t.count == 0 || t.bytes <= sizeof sink);
        if (t.loadable && t.count) kk_tensor_read(&t, 0, t.count, sink);
    }
}

/* Random damage: a one-line error or a file whose tensors can be read, never a crash. */
static void survives_mutation(void **state)
{
    (void)state;
    struct kk_test_rng r = kk_test_rng("mutation");
    unsigned char good[4096], buf[4096];
    size_t n = image(good, padded(GOOD), GOOD_DATA);
    int opened = 0, rounds = 5000;
    put_text("config.json", CONFIG);
    for (int i = 0; i < rounds; i++) {
        struct kk_model_file *mf = NULL;
        struct kk_err err = {0};
        size_t len = kk_test_below(&r, 8) ? n : kk_test_below(&r, (uint32_t)n);
        memcpy(buf, good, n);
        for (uint32_t k = kk_test_below(&r, 3) + 1; k; k--)
            buf[kk_test_below(&r, (uint32_t)n)] = (unsigned char)kk_test_below(&r, 256);
        put("model.safetensors", buf, len);
        int rc = kk_model_file_open(model_dir(), &mf, &err);
        if (rc) {
            assert_true(rc == KK_EFORMAT && err.msg[0]);
            assert_null(strpbrk(err.msg, "\n\r\033"));
            continue;
        }
        opened++;
        read_all(mf);
        kk_model_file_close(mf);
    }
    assert_in_range(opened, 1, rounds - 1);
}

/* Digits for digits: most such headers still parse, so that the checks behind the parser run. */
static void survives_other_numbers(void **state)
{
    (void)state;
    struct kk_test_rng r = kk_test_rng("numbers");
    unsigned char good[4096], buf[4096];
    size_t n = image(good, padded(GOOD), GOOD_DATA), end = n - GOOD_DATA;
    put_text("config.json", CONFIG);
    for (int i = 0; i < 3000; i++) {
        struct kk_model_file *mf = NULL;
        memcpy(buf, good, n);
        for (uint32_t k = kk_test_below(&r, 3) + 1; k;) {
            size_t at = 8 + kk_test_below(&r, (uint32_t)(end - 8));
            if (buf[at] < '0' || buf[at] > '9') continue;
            buf[at] = (unsigned char)('0' + kk_test_below(&r, 10));
            k--;
        }
        put("model.safetensors", buf, n);
        if (kk_model_file_open(model_dir(), &mf, NULL)) continue;
        read_all(mf);
        kk_model_file_close(mf);
    }
}

/* Every allocation fails in turn: a message, and no leak (the sanitizer build looks). */
static void survives_out_of_memory(void **state)
{
    (void)state;
    put_text("config.json", CONFIG);
    char header[1024];
    snprintf(header, sizeof header, "%s%*s", GOOD, 1 + (int)(7 - strlen(GOOD) % 8), " ");
    header[strlen(header) - 1] = 0; /* misaligned: the copy fails in its turn too */
    put_tensors("model.safetensors", header, GOOD_DATA);
    const char *dir = model_dir();
    for (int64_t k = 1;; k++) {
        struct kk_model_file *mf = NULL;
        struct kk_err err = {0};
        kk_mem_fail_after(k);
        int rc = kk_model_file_open(dir, &mf, &err);
        int hit = kk_mem_fail_hit();
        kk_mem_fail_after(0);
        if (!hit) {
            assert_int_equal(rc, 0);
            kk_model_file_close(mf);
            break;
        }
        KK_ASSERT_FAILS(rc, KK_ENOMEM, &err, "out of memory");
        assert_true(k < 100);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(reads_a_good_file),      cmocka_unit_test(reads_misaligned_files),
        cmocka_unit_test(get_says_what_is_wrong), cmocka_unit_test(lists_every_dtype),
        cmocka_unit_test(refuses_bad_headers),    cmocka_unit_test(refuses_long_names),
        cmocka_unit_test(refuses_damaged_files),  cmocka_unit_test(refuses_huge_headers),
        cmocka_unit_test(survives_mutation),      cmocka_unit_test(survives_other_numbers),
        cmocka_unit_test(survives_out_of_memory),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
