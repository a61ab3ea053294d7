/* safetensors: 8 bytes of header length (little endian), a JSON header, then the data. Everything
 * in the header is checked before a byte of data is used: this is where hostile files arrive.
 *
 * The data must be covered once, without holes, as the format says. It need not be aligned: tensors
 * at an odd address are copied to memory, all others are used where they are mapped. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/json.h"
#include "base/mem.h"
#include "file/file_int.h"

#define MAX_HEADER (100u << 20)
#define COPY_ALIGN 64u

const char *kk__shape_text(char buf[static 96], int rank, const uint64_t *shape)
{
    int at = snprintf(buf, 96, "[");
    for (int i = 0; i < rank; i++)
        at += snprintf(buf + at, (size_t)(96 - at), "%s%llu", i ? ", " : "",
                       (unsigned long long)shape[i]);
    snprintf(buf + at, (size_t)(96 - at), "]");
    return buf;
}

const char *kk__printable(char buf[static 64], const char *s)
{
    snprintf(buf, 64, "%.60s%s", s, strlen(s) > 60 ? "..." : "");
    for (char *p = buf; *p; p++)
        if ((unsigned char)*p < 32 || *p == 127) *p = '?';
    return buf;
}

int kk__is_printable(const char *s)
{
    for (; *s; s++)
        if ((unsigned char)*s < 32 || *s == 127) return 0;
    return 1;
}

struct dtype {
    const char *name;
    unsigned bits;
    int dtype; /* enum kk_dtype, or -1: listed, never loaded */
};

static const struct dtype *find_dtype(const char *name)
{
    static const struct dtype known[] = {
        {"F32", 32, KK_F32}, {"BF16", 16, KK_BF16}, {"F16", 16, KK_F16}, {"F64", 64, -1},
        {"I64", 64, -1},     {"U64", 64, -1},       {"C64", 64, -1},     {"I32", 32, -1},
        {"U32", 32, -1},     {"I16", 16, -1},       {"U16", 16, -1},     {"I8", 8, -1},
        {"U8", 8, -1},       {"BOOL", 8, -1},       {"F8_E4M3", 8, -1},  {"F8_E5M2", 8, -1},
        {"F8_E8M0", 8, -1},  {"F6_E2M3", 6, -1},    {"F6_E3M2", 6, -1},  {"F4", 4, -1}};
    for (size_t i = 0; i < sizeof known / sizeof *known; i++)
        if (!strcmp(known[i].name, name)) return &known[i];
    return NULL;
}

/* One tensor of the header: where its bytes are, relative to the data. */
struct entry {
    struct kk_tensor t; /* name borrowed from the JSON */
    uint64_t begin;
};

static int bad(struct kk_err *err, const char *path, const struct kk_tensor *t, const char *what)
{
    return kk_fail(err, KK_EFORMAT, "'%s': tensor '%s' %s", path, t->name, what);
}

static int parse_shape(const char *path, const json_t *shape, struct kk_tensor *t,
                       struct kk_err *err)
{
    size_t rank = json_array_size(shape);
    if (!json_is_array(shape)) return bad(err, path, t, "has no shape (a list of sizes)");
    if (rank > KK_MAX_RANK)
        return kk_fail(err, KK_EFORMAT, "'%s': tensor '%s' has %zu dimensions, at most %d expected",
                       path, t->name, rank, KK_MAX_RANK);
    t->rank = (int)rank;
    t->count = 1;
    for (size_t i = 0; i < rank; i++) {
        const json_t *d = json_array_get(shape, i);
        if (!json_is_integer(d) || json_integer_value(d) < 0)
            return kk_fail(err, KK_EFORMAT,
                           "'%s': tensor '%s' has a shape whose size %zu is no whole number >= 0",
                           path, t->name, i);
        t->shape[i] = (uint64_t)json_integer_value(d);
    }
    for (int i = 0; i < t->rank; i++) {
        char a[96];
        if (__builtin_mul_overflow(t->count, t->shape[i], &t->count))
            return kk_fail(err, KK_EFORMAT, "'%s': tensor '%s' has shape %s, which overflows", path,
                           t->name, kk__shape_text(a, t->rank, t->shape));
    }
    return 0;
}

static int parse_dtype(const char *path, const json_t *v, struct kk_tensor *t, struct kk_err *err)
{
    char a[64], b[96];
    uint64_t bits;
    const char *name = json_string_value(v);
    if (!name) return bad(err, path, t, "has no dtype (a name)");
    const struct dtype *d = find_dtype(name);
    if (!d)
        return kk_fail(err, KK_EFORMAT, "'%s': tensor '%s' has unknown dtype '%s'", path, t->name,
                       kk__printable(a, name));
    if (__builtin_mul_overflow(t->count, (uint64_t)d->bits, &bits) || bits % 8)
        return kk_fail(err, KK_EFORMAT,
                       "'%s': tensor '%s' has shape %s, which is no whole number of bytes in %s",
                       path, t->name, kk__shape_text(b, t->rank, t->shape), d->name);
    t->stored = d->name;
    t->loadable = d->dtype >= 0;
    t->dtype = t->loadable ? (enum kk_dtype)d->dtype : KK_F32;
    t->bytes = bits / 8;
    return 0;
}

static int parse_offsets(const char *path, const json_t *off, uint64_t data_len, struct entry *e,
                         struct kk_err *err)
{
    const json_t *a = json_array_get(off, 0), *b = json_array_get(off, 1);
    char shape[96];
    if (json_array_size(off) != 2 || !json_is_integer(a) || !json_is_integer(b))
        return bad(err, path, &e->t, "has no data_offsets (two whole numbers)");
    long long begin = json_integer_value(a), end = json_integer_value(b);
    if (begin < 0 || end < begin)
        return kk_fail(err, KK_EFORMAT,
                       "'%s': tensor '%s' has data_offsets %lld to %lld, which are out of order",
                       path, e->t.name, begin, end);
    if ((uint64_t)end > data_len)
        return kk_fail(err, KK_EFORMAT,
                       "'%s': tensor '%s' ends at byte %lld of the data, which has %llu: the file "
                       "is truncated or damaged",
                       path, e->t.name, end, (unsigned long long)data_len);
    if ((uint64_t)(end - begin) != e->t.bytes)
        return kk_fail(err, KK_EFORMAT,
                       "'%s': tensor '%s' has %lld bytes, expected %llu (shape %s of %s)", path,
                       e->t.name, end - begin, (unsigned long long)e->t.bytes,
                       kk__shape_text(shape, e->t.rank, e->t.shape), e->t.stored);
    e->begin = (uint64_t)begin;
    return 0;
}

static int parse_entry(const char *path, const char *name, const json_t *v, uint64_t data_len,
                       struct entry *e, struct kk_err *err)
{
    char a[64];
    if (!*name || strlen(name) > KK__MAX_NAME || !kk__is_printable(name))
        return kk_fail(err, KK_EFORMAT,
                       "'%s': '%s' is no tensor name (1 to %d bytes, no control characters)", path,
                       kk__printable(a, name), KK__MAX_NAME);
    e->t.name = name;
    if (!json_is_object(v)) return bad(err, path, &e->t, "is not described by a JSON object");
    int rc = parse_shape(path, json_object_get(v, "shape"), &e->t, err);
    if (!rc) rc = parse_dtype(path, json_object_get(v, "dtype"), &e->t, err);
    if (!rc) rc = parse_offsets(path, json_object_get(v, "data_offsets"), data_len, e, err);
    return rc;
}

static int by_begin(const void *a, const void *b)
{
    const struct entry *x = a, *y = b;
    if (x->begin != y->begin) return x->begin < y->begin ? -1 : 1;
    return x->t.bytes < y->t.bytes ? -1 : x->t.bytes > y->t.bytes;
}

static int check_cover(const char *path, struct entry *e, size_t n, uint64_t data_len,
                       struct kk_err *err)
{
    uint64_t at = 0;
    qsort(e, n, sizeof *e, by_begin);
    for (size_t i = 0; i < n; i++) {
        if (e[i].begin < at)
            return kk_fail(err, KK_EFORMAT, "'%s': tensor '%s' overlaps '%s'", path, e[i].t.name,
                           e[i - 1].t.name);
        if (e[i].begin > at)
            return kk_fail(err, KK_EFORMAT, "'%s': tensor '%s' begins at byte %llu, expected %llu",
                           path, e[i].t.name, (unsigned long long)e[i].begin,
                           (unsigned long long)at);
        at += e[i].t.bytes;
    }
    if (at != data_len)
        return kk_fail(err, KK_EFORMAT, "'%s': %llu bytes after the last tensor", path,
                       (unsigned long long)(data_len - at));
    return 0;
}

static int misaligned(const struct kk_tensor *t, const unsigned char *p)
{
    return t->loadable && (uintptr_t)p % kk_dtype_bytes(t->dtype);
}

static uint64_t copy_room(const struct kk_tensor *t)
{
    return (t->bytes + COPY_ALIGN - 1) / COPY_ALIGN * COPY_ALIGN;
}

/* Set every tensor's data: the mapped bytes, or a copy in s->copy where those are misaligned. */
static int place(struct kk_shard *s, const char *path, const unsigned char *data, struct entry *e,
                 size_t n, struct kk_err *err)
{
    uint64_t room = 0;
    for (size_t i = 0; i < n; i++) {
        e[i].t.data = data + e[i].begin;
        if (misaligned(&e[i].t, e[i].t.data)) room += copy_room(&e[i].t);
    }
    if (!room) return 0;
    unsigned char *at = s->copy = kk_aligned(COPY_ALIGN, room);
    if (!at)
        return kk_fail(err, KK_ENOMEM,
                       "out of memory: %llu bytes needed, for tensors of '%s' that are misaligned",
                       (unsigned long long)room, path);
    for (size_t i = 0; i < n; i++) {
        if (!misaligned(&e[i].t, e[i].t.data)) continue;
        memcpy(at, e[i].t.data, e[i].t.bytes);
        e[i].t.data = at;
        at += copy_room(&e[i].t);
    }
    return 0;
}

static int read_header(const char *path, const struct kk_map *map, uint64_t *header_len,
                       json_t **out, struct kk_err *err)
{
    char what[600];
    uint64_t n = 0;
    if (map->len < 8)
        return kk_fail(err, KK_EFORMAT, "'%s' is no safetensors file: it has %zu bytes", path,
                       map->len);
    for (int i = 7; i >= 0; i--) n = n << 8 | map->data[i];
    if (n > map->len - 8)
        return kk_fail(err, KK_EFORMAT,
                       "'%s' is truncated or no safetensors file: its header is said to have %llu "
                       "bytes, the file has %zu",
                       path, (unsigned long long)n, map->len);
    if (n > MAX_HEADER)
        return kk_fail(err, KK_EFORMAT, "'%s' has a header of %llu bytes, over the limit of %u",
                       path, (unsigned long long)n, MAX_HEADER);
    snprintf(what, sizeof what, "the header of '%s'", path);
    int rc = kk_json_parse((const char *)map->data + 8, n, what, out, err);
    if (rc) return rc;
    *header_len = n;
    return 0;
}

/* "__metadata__" is an object of strings; what they say is nobody's business here. */
static int check_metadata(const char *path, json_t *meta, struct kk_err *err)
{
    const char *key;
    json_t *v;
    int ok = json_is_object(meta);
    json_object_foreach(meta, key, v)
    {
        ok = ok && json_is_string(v);
    }
    return ok ? 0
              : kk_fail(err, KK_EFORMAT, "'%s': '__metadata__' is not an object of strings", path);
}

static int parse_entries(const char *path, json_t *head, uint64_t data_len, struct entry *e,
                         size_t *n, struct kk_err *err)
{
    const char *name;
    json_t *v;
    json_object_foreach(head, name, v)
    {
        int rc = strcmp(name, "__metadata__") ? parse_entry(path, name, v, data_len, &e[*n], err)
                                              : check_metadata(path, v, err);
        if (rc) return rc;
        *n += strcmp(name, "__metadata__") != 0;
    }
    return check_cover(path, e, *n, data_len, err);
}

int kk__safetensors_add(struct kk_model_file *mf, const char *path, struct kk_shard *s,
                        struct kk_err *err)
{
    json_t *head = NULL;
    struct entry *e = NULL;
    uint64_t header_len;
    size_t n = 0;
    int rc = read_header(path, &s->map, &header_len, &head, err);
    if (rc) return rc;
    uint64_t at = 8 + header_len;
    if (!json_is_object(head)) {
        rc = kk_fail(err, KK_EFORMAT, "the header of '%s' is not a JSON object", path);
        goto out;
    }
    e = kk_calloc(json_object_size(head) + 1, sizeof *e);
    if (!e) {
        rc = kk_fail(err, KK_ENOMEM, "out of memory reading '%s'", path);
        goto out;
    }
    rc = parse_entries(path, head, s->map.len - at, e, &n, err);
    if (!rc) rc = place(s, path, s->map.data + at, e, n, err);
    for (size_t i = 0; i < n && !rc; i++) rc = kk__tensor_add(mf, path, &e[i].t, err);
out:
    kk_free(e);
    json_decref(head);
    return rc;
}
