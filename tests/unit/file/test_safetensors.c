/* Snapshot directories: good ones read back, hostile ones refused in one line, mutated ones never
 * crash. */
#include "kk_test.h"

#include <stdio.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/fs.h"
#include "file/file.h"

#define CONFIG "{\"architectures\": [\"A\"], \"model_type\": \"a\"}"

/* Write `name` in the test's model directory (made on demand). */
static const char *model_dir(void)
{
    const char *dir = kk_test_path("model");
    mkdir(dir, 0755);
    return dir;
}

static void put(const char *name, const void *data, size_t len)
{
    char path[600];
    struct kk_err err = {0};
    snprintf(path, sizeof path, "%s/%s", model_dir(), name);
    unlink(path);
    KK_ASSERT_OK(kk_fs_write(path, data, len, &err), &err);
}

static void drop(const char *name)
{
    char path[600];
    snprintf(path, sizeof path, "%s/%s", model_dir(), name);
    unlink(path);
}

/* A safetensors image: header text and `data_len` bytes 0, 1, 2, ..; returns its size. */
static size_t image(unsigned char *out, const char *header, size_t data_len)
{
    size_t n = strlen(header);
    for (int i = 0; i < 8; i++) out[i] = (unsigned char)(n >> (8 * i));
    memcpy(out + 8, header, n);
    for (size_t i = 0; i < data_len; i++) out[8 + n + i] = (unsigned char)i;
    return 8 + n + data_len;
}

static void put_model(const char *name, const char *header, size_t data_len)
{
    unsigned char buf[8192];
    put(name, buf, image(buf, header, data_len));
}

static int open_model(struct kk_model_file **mf, struct kk_err *err)
{
    *mf = NULL;
    return kk_model_file_open(model_dir(), mf, err);
}

#define GOOD                                                                                       \
    "{\"__metadata__\": {\"format\": \"pt\"},"                                                     \
    " \"a.weight\": {\"dtype\": \"F32\", \"shape\": [2, 3], \"data_offsets\": [0, 24]},"           \
    " \"b\": {\"dtype\": \"BF16\", \"shape\": [4], \"data_offsets\": [24, 32]},"                   \
    " \"c\": {\"dtype\": \"I64\", \"shape\": [1], \"data_offsets\": [32, 40]},"                    \
    " \"e\": {\"dtype\": \"F16\", \"shape\": [0], \"data_offsets\": [40, 40]}}  "

static void reads_a_good_file(void **state)
{
    (void)state;
    struct kk_model_file *mf;
    struct kk_tensor t;
    struct kk_err err = {0};
    uint16_t half[2];
    put("config.json", CONFIG, strlen(CONFIG));
    put_model("model.safetensors", GOOD, 40);
    KK_ASSERT_OK(open_model(&mf, &err), &err);
    assert_string_equal(kk_model_file_architecture(mf), "A");
    assert_int_equal(kk_model_file_count(mf), 4);
    KK_ASSERT_OK(kk_model_file_get(mf, "b", 1, (uint64_t[]){4}, &t, &err), &err);
    kk_tensor_read(&t, 1, 2, half);
    assert_int_equal(half[0], 26 | 27 << 8);
    assert_int_equal(half[1], 28 | 29 << 8);
    KK_ASSERT_FAILS(kk_model_file_get(mf, "a.weight", 2, (uint64_t[]){3, 2}, &t, &err), KK_EFORMAT,
                    &err, "tensor 'a.weight' has shape [2, 3], expected [3, 2]");
    KK_ASSERT_FAILS(kk_model_file_get(mf, "zz", 1, (uint64_t[]){4}, &t, &err), KK_ENOENT, &err,
                    "tensor 'zz' is missing");
    KK_ASSERT_FAILS(kk_model_file_get(mf, "c", 1, (uint64_t[]){1}, &t, &err), KK_EUNSUPPORTED, &err,
                    "'c' has a dtype other");
    kk_model_file_close(mf);
}

static void refuses_bad_headers(void **state)
{
    (void)state;
    static const struct {
        const char *header;
        size_t data;
        const char *words;
    } bad[] = {
        {"[]", 0, "not a JSON object"},
        {"{", 0, "not valid JSON"},
        {"{\"a\": 1}", 0, "tensor 'a' needs dtype"},
        {"{\"a\": {\"dtype\": \"F31\", \"shape\": [1], \"data_offsets\": [0, 4]}}", 4,
         "unknown dtype 'F31'"},
        {"{\"a\": {\"dtype\": \"F32\", \"shape\": [-1], \"data_offsets\": [0, 4]}}", 4,
         "bad shape"},
        {"{\"a\": {\"dtype\": \"F32\", \"shape\": [1,1,1,1,1], \"data_offsets\": [0, 4]}}", 4,
         "bad shape"},
        {"{\"a\": {\"dtype\": \"F32\", \"shape\": [4611686018427387904, 4611686018427387904], "
         "\"data_offsets\": [0, 4]}}",
         4, "bad shape"},
        {"{\"a\": {\"dtype\": \"F32\", \"shape\": [4611686018427387904], \"data_offsets\": [0, "
         "4]}}",
         4, "its shape and dtype need"},
        {"{\"a\": {\"dtype\": \"F32\", \"shape\": [1], \"data_offsets\": [0, 8]}}", 4, "truncated"},
        {"{\"a\": {\"dtype\": \"F32\", \"shape\": [1], \"data_offsets\": [4, 0]}}", 4,
         "truncated or"},
        {"{\"a\": {\"dtype\": \"F32\", \"shape\": [1], \"data_offsets\": [-4, 0]}}", 4,
         "truncated or"},
        {"{\"a\": {\"dtype\": \"F32\", \"shape\": [1], \"data_offsets\": [0, 4, 8]}}", 4,
         "needs dtype"},
        {"{\"a\": {\"dtype\": \"F32\", \"shape\": [2], \"data_offsets\": [0, 4]}}", 4, "need 8"},
        {"{\"a\": {\"dtype\": \"F32\", \"shape\": [1], \"data_offsets\": [0, 4]}, "
         "\"b\": {\"dtype\": \"F32\", \"shape\": [1], \"data_offsets\": [0, 4]}}",
         4, "overlaps"},
        {"{\"a\": {\"dtype\": \"F32\", \"shape\": [1], \"data_offsets\": [4, 8]}}", 8, "hole"},
        {"{\"a\": {\"dtype\": \"F32\", \"shape\": [1], \"data_offsets\": [0, 4]}}", 9,
         "5 bytes after"},
        {"{\"a\": {\"dtype\": \"F32\", \"shape\": [1], \"data_offsets\": [0, 4]}, "
         "\"a\": {\"dtype\": \"F32\", \"shape\": [1], \"data_offsets\": [4, 8]}}",
         8, "duplicate"},
        {"{\"a\": {\"dtype\": \"U8\", \"shape\": [1], \"data_offsets\": [0, 1]}, "
         "\"b\": {\"dtype\": \"F32\", \"shape\": [1], \"data_offsets\": [1, 5]}}   ",
         5, "not aligned"},
    };
    put("config.json", CONFIG, strlen(CONFIG));
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        struct kk_model_file *mf;
        struct kk_err err = {0};
        char header[1024]; /* the format pads headers to 8 bytes */
        snprintf(header, sizeof header, "%s%*s", bad[i].header,
                 (int)((8 - strlen(bad[i].header) % 8) % 8), "");
        put_model("model.safetensors", header, bad[i].data);
        KK_ASSERT_FAILS(open_model(&mf, &err), KK_EFORMAT, &err, bad[i].words);
        assert_null(strchr(err.msg, '\n'));
    }
}

static void refuses_damaged_files(void **state)
{
    (void)state;
    struct kk_model_file *mf;
    struct kk_err err = {0};
    unsigned char buf[4096];
    put("config.json", CONFIG, strlen(CONFIG));
    put("model.safetensors", "short", 5);
    KK_ASSERT_FAILS(open_model(&mf, &err), KK_EFORMAT, &err, "only 5 bytes");
    put("model.safetensors", "\xff\xff\xff\xff\xff\xff\xff\xff..", 10);
    KK_ASSERT_FAILS(open_model(&mf, &err), KK_EFORMAT, &err, "its header says");
    size_t n = image(buf, GOOD, 40);
    put("model.safetensors", buf, n - 1);
    KK_ASSERT_FAILS(open_model(&mf, &err), KK_EFORMAT, &err, "truncated or damaged");
    drop("model.safetensors");
    KK_ASSERT_FAILS(open_model(&mf, &err), KK_ENOENT, &err, "neither model.safetensors nor");
    put_model("model.safetensors", GOOD, 40);
    drop("config.json");
    KK_ASSERT_FAILS(open_model(&mf, &err), KK_ENOENT, &err, "config.json");
    put("config.json", "{}", 2);
    KK_ASSERT_FAILS(open_model(&mf, &err), KK_EFORMAT, &err, "architectures");
    put("config.json", "{\"architectures\": [\"A\"]}", 24);
    KK_ASSERT_FAILS(open_model(&mf, &err), KK_EFORMAT, &err, "model_type");
    KK_ASSERT_FAILS(kk_model_file_open("no/such/dir", &mf, &err), KK_ENOENT, &err,
                    "does not exist");
    KK_ASSERT_FAILS(kk_model_file_open("Makefile", &mf, &err), KK_EFORMAT, &err,
                    "not a model directory");
}

#define ONE(name) "{\"" name "\": {\"dtype\": \"F32\", \"shape\": [1], \"data_offsets\": [0, 4]}}"

static void reads_shards(void **state)
{
    (void)state;
    static const struct {
        const char *index;
        int code;
        const char *words;
    } bad[] = {
        {"{\"weight_map\": {\"x\": \"../s1.safetensors\"}}", KK_EFORMAT, "no plain file name"},
        {"{\"weight_map\": {\"x\": 3}}", KK_EFORMAT, "no plain file name"},
        {"{\"weight_map\": {\"x\": \"s3.safetensors\"}}", KK_ENOENT, "s3.safetensors"},
        {"{\"weight_map\": {\"z\": \"s1.safetensors\"}}", KK_EFORMAT, "promises tensor 'z'"},
        {"{\"weight_map\": {}}", KK_EFORMAT, "weight_map"},
        {"{\"weight_map\": {\"x\": \"s1.safetensors\", \"y\": \"s1b.safetensors\"}}", KK_EFORMAT,
         "in two files"},
    };
    const char *good = "{\"weight_map\": {\"x\": \"s1.safetensors\", \"y\": \"s2.safetensors\"}}";
    struct kk_model_file *mf;
    struct kk_err err = {0};
    put("config.json", CONFIG, strlen(CONFIG));
    drop("model.safetensors");
    put_model("s1.safetensors", ONE("x"), 4);
    put_model("s1b.safetensors", ONE("x"), 4);
    put_model("s2.safetensors", ONE("y"), 4);
    put("model.safetensors.index.json", good, strlen(good));
    KK_ASSERT_OK(open_model(&mf, &err), &err);
    assert_true(kk_model_file_has(mf, "x") && kk_model_file_has(mf, "y"));
    kk_model_file_close(mf);
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        put("model.safetensors.index.json", bad[i].index, strlen(bad[i].index));
        KK_ASSERT_FAILS(open_model(&mf, &err), bad[i].code, &err, bad[i].words);
    }
    drop("model.safetensors.index.json");
}

/* Random damage: an error or a file whose tensors can be read, never a crash. */
static void survives_mutation(void **state)
{
    (void)state;
    struct kk_test_rng r = kk_test_rng("mutation");
    unsigned char good[4096], buf[4096], sink[64];
    size_t n = image(good, GOOD, 40);
    int opened = 0;
    put("config.json", CONFIG, strlen(CONFIG));
    for (int i = 0; i < 3000; i++) {
        struct kk_model_file *mf;
        struct kk_tensor t;
        size_t len = kk_test_below(&r, 4) ? n : kk_test_below(&r, (uint32_t)n);
        memcpy(buf, good, n);
        for (uint32_t k = kk_test_below(&r, 4) + 1; k; k--)
            buf[kk_test_below(&r, (uint32_t)n)] = (unsigned char)kk_test_below(&r, 256);
        put("model.safetensors", buf, len);
        if (open_model(&mf, NULL)) continue;
        opened++;
        for (size_t k = 0; kk_model_file_at(mf, k, &t) == 0; k++)
            if (t.count * kk_dtype_bytes(t.dtype) <= sizeof sink && strcmp(t.name, "c"))
                kk_tensor_read(&t, 0, t.count, sink);
        kk_model_file_close(mf);
    }
    assert_in_range(opened, 1, 2999);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(reads_a_good_file),     cmocka_unit_test(refuses_bad_headers),
        cmocka_unit_test(refuses_damaged_files), cmocka_unit_test(reads_shards),
        cmocka_unit_test(survives_mutation),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
