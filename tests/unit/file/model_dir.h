/* A model directory that a test fills, opens and damages. Included once by each program. */
#ifndef KK_TEST_MODEL_DIR_H
#define KK_TEST_MODEL_DIR_H

#include "kk_test.h"

#include <stdio.h>
#include <sys/stat.h>
#include <unistd.h>

#include "file/file.h"

#define CONFIG "{\"architectures\": [\"Arch\"], \"model_type\": \"kind\"}"

/* One entry of a safetensors header: T("a", "F32", "1, 2", "0, 8"). */
#define T(name, dtype, shape, offsets)                                                             \
    "\"" name "\": {\"dtype\": \"" dtype "\", \"shape\": [" shape "], \"data_offsets\": [" offsets \
    "]}"

static inline const char *model_dir(void)
{
    const char *dir = kk_test_path("model");
    mkdir(dir, 0755);
    return dir;
}

static inline void drop(const char *name)
{
    char path[600];
    snprintf(path, sizeof path, "%s/%s", model_dir(), name);
    unlink(path);
}

static inline void put(const char *name, const void *data, size_t len)
{
    char rel[300];
    drop(name);
    snprintf(rel, sizeof rel, "model/%s", name);
    kk_test_file(rel, data, len);
}

static inline void put_text(const char *name, const char *text)
{
    put(name, text, strlen(text));
}

/* A safetensors image: header text and data_len bytes 0, 1, 2, ..; returns its size. */
static inline size_t image(unsigned char *out, const char *header, size_t data_len)
{
    size_t n = strlen(header);
    for (int i = 0; i < 8; i++) out[i] = (unsigned char)(n >> (8 * i));
    memcpy(out + 8, header, n);
    for (size_t i = 0; i < data_len; i++) out[8 + n + i] = (unsigned char)i;
    return 8 + n + data_len;
}

static inline void put_tensors(const char *name, const char *header, size_t data_len)
{
    unsigned char buf[8192];
    assert_true(strlen(header) + data_len + 8 <= sizeof buf);
    put(name, buf, image(buf, header, data_len));
}

/* Opening must fail so, in one line. */
static inline void open_fails(const char *spec, int code, const char *words)
{
    struct kk_model_file *mf = NULL;
    struct kk_err err = {0};
    KK_ASSERT_FAILS(kk_model_file_open(spec, &mf, &err), code, &err, words);
    assert_int_equal(err.code, code);
    for (const char *p = err.msg; *p; p++) assert_true((unsigned char)*p >= 32);
    assert_null(mf);
    assert_int_equal(kk_model_file_open(spec, &mf, NULL), code);
}

static inline struct kk_model_file *open_ok(const char *spec)
{
    struct kk_model_file *mf = NULL;
    struct kk_err err = {0};
    KK_ASSERT_OK(kk_model_file_open(spec, &mf, &err), &err);
    return mf;
}

#endif
