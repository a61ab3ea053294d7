/* safetensors: 8 bytes of header length (little endian), a JSON header, then the data. Everything
 * in the header is checked before a byte of data is used: this is where hostile files arrive. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/json.h"
#include "base/mem.h"
#include "file/file_int.h"

#define MAX_HEADER (100u << 20)

const char *kk__shape_text(char buf[static 96], int rank, const uint64_t *shape)
{
    int at = snprintf(buf, 96, "[");
    for (int i = 0; i < rank && at < 80; i++)
        at += snprintf(buf + at, (size_t)(96 - at), "%s%llu", i ? ", " : "",
                       (unsigned long long)shape[i]);
    snprintf(buf + at, (size_t)(96 - at), "]");
    return buf;
}

/* Element size by name; *loadable is 0 for dtypes that the format has and we do not. */
static unsigned dtype_size(const char *s, enum kk_dtype *out, int *loadable)
{
    static const struct {
        const char *name;
        unsigned bytes;
        int dtype;
    } known[] = {{"F32", 4, KK_F32}, {"BF16", 2, KK_BF16}, {"F16", 2, KK_F16}, {"F64", 8, -1},
                 {"I64", 8, -1},     {"U64", 8, -1},       {"I32", 4, -1},     {"U32", 4, -1},
                 {"I16", 2, -1},     {"U16", 2, -1},       {"I8", 1, -1},      {"U8", 1, -1},
                 {"BOOL", 1, -1},    {"F8_E4M3", 1, -1},   {"F8_E5M2", 1, -1}};
    for (size_t i = 0; i < sizeof known / sizeof *known; i++)
        if (!strcmp(known[i].name, s)) {
            *loadable = known[i].dtype >= 0;
            *out = *loadable ? (enum kk_dtype)known[i].dtype : KK_F32;
            return known[i].bytes;
        }
    return 0;
}

struct entry {
    const char *name;
    struct kk_tensor t;
    int loadable;
    uint64_t begin, end;
};

static int parse_shape(const json_t *shape, struct kk_tensor *t)
{
    size_t rank = json_array_size(shape);
    if (!json_is_array(shape) || rank > KK_MAX_RANK) return -1;
    t->rank = (int)rank;
    t->count = 1;
    for (size_t i = 0; i < rank; i++) {
        const json_t *d = json_array_get(shape, i);
        if (!json_is_integer(d) || json_integer_value(d) < 0) return -1;
        t->shape[i] = (uint64_t)json_integer_value(d);
        if (__builtin_mul_overflow(t->count, t->shape[i], &t->count)) return -1;
    }
    return 0;
}

static int parse_entry(const char *path, const char *name, const json_t *v, uint64_t data_len,
                       struct entry *e, struct kk_err *err)
{
    const json_t *off = json_object_get(v, "data_offsets");
    const char *dtype = json_string_value(json_object_get(v, "dtype"));
    uint64_t bytes;
    memset(e, 0, sizeof *e);
    e->name = name;
    if (!json_is_object(v) || !dtype || json_array_size(off) != 2 ||
        !json_is_integer(json_array_get(off, 0)) || !json_is_integer(json_array_get(off, 1)))
        return kk_fail(err, KK_EFORMAT,
                       "'%s': tensor '%s' needs dtype, shape and two integer data_offsets", path,
                       name);
    unsigned size = dtype_size(dtype, &e->t.dtype, &e->loadable);
    if (!size)
        return kk_fail(err, KK_EFORMAT, "'%s': tensor '%s' has unknown dtype '%s'", path, name,
                       dtype);
    if (parse_shape(json_object_get(v, "shape"), &e->t))
        return kk_fail(
            err, KK_EFORMAT,
            "'%s': tensor '%s' has a bad shape (expected at most %d sizes >= 0 that do not "
            "overflow)",
            path, name, KK_MAX_RANK);
    long long a = json_integer_value(json_array_get(off, 0)),
              b = json_integer_value(json_array_get(off, 1));
    if (a < 0 || b < a || (uint64_t)b > data_len)
        return kk_fail(
            err, KK_EFORMAT,
            "'%s': tensor '%s' lies at bytes %lld to %lld of %llu: the file is truncated or "
            "damaged",
            path, name, a, b, (unsigned long long)data_len);
    if (__builtin_mul_overflow(e->t.count, (uint64_t)size, &bytes) || bytes != (uint64_t)(b - a))
        return kk_fail(err, KK_EFORMAT,
                       "'%s': tensor '%s' has %lld bytes, its shape and dtype need %llu", path,
                       name, b - a, (unsigned long long)bytes);
    e->begin = (uint64_t)a;
    e->end = (uint64_t)b;
    return 0;
}

static int by_begin(const void *a, const void *b)
{
    const struct entry *x = a, *y = b;
    if (x->begin != y->begin) return x->begin < y->begin ? -1 : 1;
    return x->end < y->end ? -1 : x->end > y->end;
}

/* The format wants the data covered once, without holes. */
static int check_cover(const char *path, struct entry *e, size_t n, uint64_t data_len,
                       struct kk_err *err)
{
    uint64_t at = 0;
    qsort(e, n, sizeof *e, by_begin);
    for (size_t i = 0; i < n; i++) {
        if (e[i].begin != at)
            return kk_fail(err, KK_EFORMAT, "'%s': tensor '%s' %s", path, e[i].name,
                           e[i].begin < at ? "overlaps another" : "leaves a hole before it");
        at = e[i].end;
    }
    if (at != data_len)
        return kk_fail(err, KK_EFORMAT, "'%s': %llu bytes after the last tensor", path,
                       (unsigned long long)(data_len - at));
    return 0;
}

static int add_entries(struct kk_model_file *mf, const char *path, const unsigned char *data,
                       struct entry *e, size_t n, struct kk_err *err)
{
    for (size_t i = 0; i < n; i++) {
        e[i].t.data = data + e[i].begin;
        if ((size_t)e[i].t.data % kk_dtype_bytes(e[i].t.dtype) && e[i].loadable)
            return kk_fail(err, KK_EFORMAT, "'%s': tensor '%s' is not aligned to its dtype", path,
                           e[i].name);
        int rc =
            kk__tensor_add(mf, path, e[i].name, strlen(e[i].name), &e[i].t, e[i].loadable, err);
        if (rc) return rc;
    }
    return 0;
}

static int read_header(const char *path, const struct kk_map *map, uint64_t *header_len,
                       json_t **out, struct kk_err *err)
{
    char what[600];
    uint64_t n = 0;
    if (map->len < 8)
        return kk_fail(err, KK_EFORMAT, "'%s' is no safetensors file: only %zu bytes", path,
                       map->len);
    for (int i = 7; i >= 0; i--) n = n << 8 | map->data[i];
    if (n > map->len - 8)
        return kk_fail(
            err, KK_EFORMAT,
            "'%s' is truncated or no safetensors file: its header says %llu bytes, the file has "
            "%zu",
            path, (unsigned long long)n, map->len);
    if (n > MAX_HEADER)
        return kk_fail(err, KK_EFORMAT, "'%s' has a header of %llu bytes, over the limit of %u",
                       path, (unsigned long long)n, MAX_HEADER);
    snprintf(what, sizeof what, "the header of '%s'", path);
    int rc = kk_json_parse((const char *)map->data + 8, n, what, out, err);
    if (rc) return rc;
    if (!json_is_object(*out)) {
        json_decref(*out);
        return kk_fail(err, KK_EFORMAT, "the header of '%s' is not a JSON object", path);
    }
    *header_len = n;
    return 0;
}

int kk__safetensors_add(struct kk_model_file *mf, const char *path, const struct kk_map *map,
                        struct kk_err *err)
{
    json_t *head, *v;
    uint64_t header_len;
    const char *name;
    size_t n = 0;
    int rc = read_header(path, map, &header_len, &head, err);
    if (rc) return rc;
    uint64_t data_len = map->len - 8 - header_len;
    struct entry *e = kk_calloc(json_object_size(head) + 1, sizeof *e);
    if (!e) rc = kk_fail(err, KK_ENOMEM, "out of memory reading '%s'", path);
    if (!rc) {
        json_object_foreach(head, name, v)
        {
            if (!strcmp(name, "__metadata__")) continue;
            rc = parse_entry(path, name, v, data_len, &e[n], err);
            if (rc) break;
            n++;
        }
    }
    if (!rc) rc = check_cover(path, e, n, data_len, err);
    if (!rc) rc = add_entries(mf, path, map->data + 8 + header_len, e, n, err);
    kk_free(e);
    json_decref(head);
    return rc;
}
