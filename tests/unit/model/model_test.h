/* What the tests of models share: configs with some keys changed, and safetensors files. */
#ifndef KK_TEST_MODEL_TEST_H
#define KK_TEST_MODEL_TEST_H

#include "kk_test.h"

#include <stdio.h>
#include <stdlib.h>

#include "base/buf.h"
#include "base/json.h"
#include "base/mem.h"
#include "file/file.h"

/* The config at `path` with the keys of `edits` in place of its own (null: taken away), written to
 * the temporary directory: its path there. */
static inline const char *edited_config(const char *path, const char *edits)
{
    struct kk_err err = {0};
    json_t *base = NULL, *change = NULL, *v;
    const char *key;
    KK_ASSERT_OK(kk_json_load(path, 1 << 20, &base, &err), &err);
    KK_ASSERT_OK(kk_json_parse(edits, strlen(edits), "edits", &change, &err), &err);
    json_object_foreach(change, key, v)
    {
        json_object_del(base, key);
        if (!json_is_null(v)) json_object_set(base, key, v);
    }
    char *text = json_dumps(base, 0);
    const char *out = kk_test_file("config.json", text, strlen(text));
    free(text);
    json_decref(base);
    json_decref(change);
    return out;
}

/* A safetensors file under construction. */
struct tensors {
    json_t *header;
    struct kk_buf data;
};

static inline void tensors_init(struct tensors *t)
{
    t->header = json_object();
    kk_buf_init(&t->data, 1 << 24);
}

/* cols 0: a vector. bytes: of one number. */
static inline void tensors_add(struct tensors *t, const char *name, const char *dtype, int rows,
                               int cols, const void *data, size_t bytes)
{
    const size_t at = t->data.len, n = (size_t)rows * (size_t)(cols ? cols : 1) * bytes;
    json_t *shape = cols ? json_pack("[i,i]", rows, cols) : json_pack("[i]", rows);
    json_object_set_new(t->header, name,
                        json_pack("{s:s, s:o, s:[I,I]}", "dtype", dtype, "shape", shape,
                                  "data_offsets", (json_int_t)at, (json_int_t)(at + n)));
    assert_int_equal(kk_buf_append(&t->data, data, n), 0);
}

/* Written and released. */
static inline void tensors_write(struct tensors *t, const char *path)
{
    char *text = json_dumps(t->header, JSON_COMPACT);
    uint64_t n = strlen(text);
    FILE *f = fopen(path, "wb");
    assert_non_null(f);
    fwrite(&n, sizeof n, 1, f);
    fwrite(text, 1, n, f);
    fwrite(t->data.data, 1, t->data.len, f);
    assert_int_equal(fclose(f), 0);
    free(text);
    json_decref(t->header);
    kk_buf_release(&t->data);
}

#endif
