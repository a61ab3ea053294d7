/* GGUF: a header of counts, keys with values, tensor descriptions; then, aligned, the data. This is
 * where hostile files arrive: every count, length, type and offset is checked before it is used,
 * and nothing is allocated that the file's own size does not justify. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/mem.h"
#include "file/gguf_int.h"

#define MAX_KEYS  65536
#define MAX_ALIGN 65536

typedef unsigned char u8;

/* What is left to read, and whose it is. */
struct cursor {
    const char *path;
    const u8 *data;
    size_t len, at;
    struct kk_err *err;
};

/* ---- numbers ------------------------------------------------------------------------------ */

static const unsigned type_bytes[GGUF_TYPES] = {
    [GGUF_U8] = 1,  [GGUF_I8] = 1,   [GGUF_U16] = 2, [GGUF_I16] = 2, [GGUF_U32] = 4, [GGUF_I32] = 4,
    [GGUF_F32] = 4, [GGUF_BOOL] = 1, [GGUF_U64] = 8, [GGUF_I64] = 8, [GGUF_F64] = 8};

static uint64_t little(const u8 *p, unsigned bytes)
{
    uint64_t v = 0;
    while (bytes--) v = v << 8 | p[bytes];
    return v;
}

static int take(struct cursor *c, uint64_t n, const char *what, const u8 **out)
{
    if (n > c->len - c->at)
        return kk_fail(
            c->err, KK_EFORMAT,
            "'%s' is truncated or damaged: %s needs %llu bytes at byte %zu, the file has "
            "%zu in all",
            c->path, what, (unsigned long long)n, c->at, c->len);
    *out = c->data + c->at;
    c->at += n;
    return 0;
}

static int take_int(struct cursor *c, unsigned bytes, const char *what, uint64_t *out)
{
    const u8 *p = NULL;
    int rc = take(c, bytes, what, &p);
    if (!rc) *out = little(p, bytes);
    return rc;
}

/* A string that is a name: 1 to KK__MAX_NAME bytes, no control characters. Owned by the caller. */
static int take_name(struct cursor *c, const char *what, char **out)
{
    char name[KK__MAX_NAME + 1], a[64];
    const u8 *p = NULL;
    uint64_t n = 0;
    int rc = take_int(c, 8, what, &n);
    if (!rc) rc = take(c, n, what, &p);
    if (rc) return rc;
    size_t keep = n < KK__MAX_NAME ? n : KK__MAX_NAME;
    memcpy(name, p, keep);
    name[keep] = 0;
    if (!n || n > KK__MAX_NAME || strlen(name) != n || !kk__is_printable(name))
        return kk_fail(c->err, KK_EFORMAT,
                       "'%s': %s '%s' is no name (1 to %d bytes, no control characters)", c->path,
                       what, kk__printable(a, name), KK__MAX_NAME);
    *out = kk_strdup(name);
    return *out ? 0 : kk_fail(c->err, KK_ENOMEM, "out of memory reading '%s'", c->path);
}

/* ---- keys --------------------------------------------------------------------------------- */

static int bad_key(struct cursor *c, const char *key, const char *what)
{
    return kk_fail(c->err, KK_EFORMAT, "'%s': key '%s' %s", c->path, key, what);
}

static int take_type(struct cursor *c, const char *key, enum gguf_type *out)
{
    uint64_t t = 0;
    int rc = take_int(c, 4, "the type of a key", &t);
    if (rc) return rc;
    if (t >= GGUF_TYPES)
        return kk_fail(c->err, KK_EUNSUPPORTED,
                       "'%s': key '%s' has a value of unknown type %llu (known: 0 to %d)", c->path,
                       key, (unsigned long long)t, GGUF_TYPES - 1);
    *out = (enum gguf_type)t;
    return 0;
}

/* Step over the n values of kv. */
static int skip_values(struct cursor *c, struct gguf_kv *kv)
{
    char what[KK__MAX_NAME + 16];
    const u8 *p = NULL;
    uint64_t bytes = 0;
    snprintf(what, sizeof what, "key '%s'", kv->key);
    kv->at = c->data + c->at;
    if (kv->type != GGUF_STRING) {
        if (__builtin_mul_overflow(kv->n, (uint64_t)type_bytes[kv->type], &bytes))
            return bad_key(c, kv->key, "has a length that overflows");
        int rc = take(c, bytes, what, &p);
        for (uint64_t i = 0; !rc && kv->type == GGUF_BOOL && i < kv->n; i++)
            if (p[i] > 1) rc = bad_key(c, kv->key, "has a truth value that is neither 0 nor 1");
        return rc;
    }
    for (uint64_t i = 0; i < kv->n; i++) {
        int rc = take_int(c, 8, what, &bytes);
        if (!rc) rc = take(c, bytes, what, &p);
        if (rc) return rc;
    }
    return 0;
}

static int take_kv(struct cursor *c, struct gguf_kv *kv)
{
    int rc = take_name(c, "key", &kv->key);
    if (!rc) rc = take_type(c, kv->key, &kv->type);
    kv->n = 1;
    if (!rc && kv->type == GGUF_ARRAY) {
        kv->is_array = 1;
        rc = take_type(c, kv->key, &kv->type);
        if (!rc && kv->type == GGUF_ARRAY)
            return kk_fail(c->err, KK_EUNSUPPORTED, "'%s': key '%s' is an array of arrays", c->path,
                           kv->key);
        if (!rc) rc = take_int(c, 8, "an array", &kv->n);
    }
    return rc ? rc : skip_values(c, kv);
}

static int by_key(const void *a, const void *b)
{
    return strcmp(*(const char *const *)a, *(const char *const *)b);
}

/* No two of n names are equal. `first` is the first name, the others follow at `stride` bytes. */
static int check_twice(struct cursor *c, const void *first, size_t stride, size_t n,
                       const char *what)
{
    const char **sorted = kk_array(n + 1, sizeof *sorted);
    int rc = 0;
    if (!sorted) return kk_fail(c->err, KK_ENOMEM, "out of memory reading '%s'", c->path);
    for (size_t i = 0; i < n; i++)
        sorted[i] = *(const char *const *)((const char *)first + i * stride);
    qsort(sorted, n, sizeof *sorted, by_key);
    for (size_t i = 1; !rc && i < n; i++)
        if (!strcmp(sorted[i], sorted[i - 1]))
            rc = kk_fail(c->err, KK_EFORMAT, "'%s': %s '%s' is there twice", c->path, what,
                         sorted[i]);
    kk_free(sorted);
    return rc;
}

static int take_keys(struct cursor *c, uint64_t n, struct kk_gguf *g)
{
    if (n > MAX_KEYS || n > (c->len - c->at) / 13) /* a key of one byte with a value of none */
        return kk_fail(c->err, KK_EFORMAT,
                       "'%s' is truncated or damaged: it is said to have %llu keys", c->path,
                       (unsigned long long)n);
    g->kv = kk_calloc(n + 1, sizeof *g->kv);
    if (!g->kv) return kk_fail(c->err, KK_ENOMEM, "out of memory reading '%s'", c->path);
    while (g->n_kv < n) {
        int rc = take_kv(c, &g->kv[g->n_kv++]);
        if (rc) return rc;
    }
    return check_twice(c, &g->kv->key, sizeof *g->kv, n, "key");
}

/* ---- tensors ------------------------------------------------------------------------------ */

/* ggml's number of a type: its name, and ours (-1: not supported). */
static const struct {
    const char *name;
    int dtype;
} tensor_type[] = {
    [0] = {"F32", KK_F32},    [1] = {"F16", KK_F16},    [2] = {"Q4_0", KK_Q4_0},
    [3] = {"Q4_1", KK_Q4_1},  [6] = {"Q5_0", KK_Q5_0},  [7] = {"Q5_1", KK_Q5_1},
    [8] = {"Q8_0", KK_Q8_0},  [9] = {"Q8_1", -1},       [10] = {"Q2_K", -1},
    [11] = {"Q3_K", -1},      [12] = {"Q4_K", KK_Q4_K}, [13] = {"Q5_K", KK_Q5_K},
    [14] = {"Q6_K", KK_Q6_K}, [15] = {"Q8_K", -1},      [16] = {"IQ2_XXS", -1},
    [17] = {"IQ2_XS", -1},    [18] = {"IQ3_XXS", -1},   [19] = {"IQ1_S", -1},
    [20] = {"IQ4_NL", -1},    [21] = {"IQ3_S", -1},     [22] = {"IQ2_S", -1},
    [23] = {"IQ4_XS", -1},    [24] = {"I8", -1},        [25] = {"I16", -1},
    [26] = {"I32", -1},       [27] = {"I64", -1},       [28] = {"F64", -1},
    [29] = {"IQ1_M", -1},     [30] = {"BF16", KK_BF16}, [34] = {"TQ1_0", -1},
    [35] = {"TQ2_0", -1},     [39] = {"MXFP4", -1},     [40] = {"NVFP4", -1},
};

static int set_type(struct cursor *c, uint64_t type, struct kk_tensor *t)
{
    const char *name = NULL;
    if (type < sizeof tensor_type / sizeof *tensor_type) name = tensor_type[type].name;
    if (!name || tensor_type[type].dtype < 0)
        return kk_fail(c->err, KK_EUNSUPPORTED,
                       "'%s': tensor '%s' has type %llu (%s), which is not supported (known: F32, "
                       "F16, BF16, Q4_0, Q4_1, Q5_0, Q5_1, Q8_0, Q4_K, Q5_K, Q6_K)",
                       c->path, t->name, (unsigned long long)type, name ? name : "unknown");
    t->stored = name;
    t->loadable = 1;
    t->dtype = (enum kk_dtype)tensor_type[type].dtype;
    return 0;
}

/* Sizes are stored fastest first. */
static int take_shape(struct cursor *c, struct kk_tensor *t)
{
    uint64_t rank = 0, d = 0;
    int rc = take_int(c, 4, "a tensor's shape", &rank);
    if (rc) return rc;
    if (rank < 1 || rank > KK_MAX_RANK)
        return kk_fail(c->err, KK_EFORMAT,
                       "'%s': tensor '%s' has %llu dimensions, expected 1 to %d", c->path, t->name,
                       (unsigned long long)rank, KK_MAX_RANK);
    t->rank = (int)rank;
    t->count = 1;
    for (int i = t->rank - 1; i >= 0; i--) {
        rc = take_int(c, 8, "a tensor's shape", &d);
        if (rc) return rc;
        if (!d)
            return kk_fail(c->err, KK_EFORMAT, "'%s': tensor '%s' has a dimension of 0", c->path,
                           t->name);
        t->shape[i] = d;
        if (__builtin_mul_overflow(t->count, d, &t->count))
            return kk_fail(c->err, KK_EFORMAT, "'%s': tensor '%s' has a shape that overflows",
                           c->path, t->name);
    }
    return 0;
}

static int set_bytes(struct cursor *c, struct kk_tensor *t)
{
    unsigned block = kk_dtype_block(t->dtype);
    uint64_t cols = t->shape[t->rank - 1];
    if (cols % block)
        return kk_fail(
            c->err, KK_EFORMAT,
            "'%s': tensor '%s' has rows of %llu numbers, no multiple of the %u in a block "
            "of %s",
            c->path, t->name, (unsigned long long)cols, block, t->stored);
    if (__builtin_mul_overflow(t->count / block, (uint64_t)kk_dtype_block_bytes(t->dtype),
                               &t->bytes))
        return kk_fail(c->err, KK_EFORMAT, "'%s': tensor '%s' has a shape that overflows", c->path,
                       t->name);
    return 0;
}

static int take_tensor(struct cursor *c, struct gguf_tensor *e)
{
    char *name = NULL;
    uint64_t type = 0;
    int rc = take_name(c, "tensor", &name);
    e->t.name = name;
    if (!rc) rc = take_shape(c, &e->t);
    if (!rc) rc = take_int(c, 4, "a tensor's type", &type);
    if (!rc) rc = set_type(c, type, &e->t);
    if (!rc) rc = take_int(c, 8, "a tensor's offset", &e->begin);
    return rc ? rc : set_bytes(c, &e->t);
}

static int take_tensors(struct cursor *c, uint64_t n, struct kk_gguf *g)
{
    if (n > (c->len - c->at) / 33) /* a name of one byte, one dimension */
        return kk_fail(c->err, KK_EFORMAT,
                       "'%s' is truncated or damaged: it is said to have %llu tensors", c->path,
                       (unsigned long long)n);
    g->tensor = kk_calloc(n + 1, sizeof *g->tensor);
    if (!g->tensor) return kk_fail(c->err, KK_ENOMEM, "out of memory reading '%s'", c->path);
    while (g->n < n) {
        int rc = take_tensor(c, &g->tensor[g->n++]);
        if (rc) return rc;
    }
    return check_twice(c, &g->tensor->t.name, sizeof *g->tensor, n, "tensor");
}

/* ---- the data ----------------------------------------------------------------------------- */

static int by_begin(const void *a, const void *b)
{
    const struct gguf_tensor *x = *(struct gguf_tensor *const *)a;
    const struct gguf_tensor *y = *(struct gguf_tensor *const *)b;
    return x->begin < y->begin ? -1 : x->begin > y->begin;
}

static int check_overlap(struct cursor *c, struct kk_gguf *g)
{
    struct gguf_tensor **e = kk_array(g->n + 1, sizeof *e);
    int rc = 0;
    if (!e) return kk_fail(c->err, KK_ENOMEM, "out of memory reading '%s'", c->path);
    for (size_t i = 0; i < g->n; i++) e[i] = &g->tensor[i];
    qsort(e, g->n, sizeof *e, by_begin);
    for (size_t i = 1; !rc && i < g->n; i++)
        if (e[i]->begin - e[i - 1]->begin < e[i - 1]->t.bytes)
            rc = kk_fail(c->err, KK_EFORMAT, "'%s': tensor '%s' overlaps '%s'", c->path,
                         e[i]->t.name, e[i - 1]->t.name);
    kk_free(e);
    return rc;
}

static int place(struct cursor *c, struct kk_gguf *g)
{
    int64_t align = 32;
    int rc = kk__gguf_int(g, "general.alignment", 8, MAX_ALIGN, 0, &align, c->err);
    if (!rc && (align & (align - 1)))
        rc = kk_fail(c->err, KK_EFORMAT, "'general.alignment' is %lld, which is no power of two",
                     (long long)align);
    if (rc) return kk_wrap(c->err, rc, "'%s'", c->path);
    uint64_t start = (c->at + (uint64_t)align - 1) & ~((uint64_t)align - 1);
    uint64_t room = start < c->len ? c->len - start : 0;
    for (size_t i = 0; i < g->n; i++) {
        struct gguf_tensor *e = &g->tensor[i];
        if (e->begin % (uint64_t)align)
            return kk_fail(c->err, KK_EFORMAT,
                           "'%s': tensor '%s' begins at byte %llu of the data, no multiple of the "
                           "alignment %lld",
                           c->path, e->t.name, (unsigned long long)e->begin, (long long)align);
        if (e->begin > room || e->t.bytes > room - e->begin)
            return kk_fail(c->err, KK_EFORMAT,
                           "'%s': tensor '%s' has %llu bytes from byte %llu of the data, which has "
                           "%llu: the file is truncated or damaged",
                           c->path, e->t.name, (unsigned long long)e->t.bytes,
                           (unsigned long long)e->begin, (unsigned long long)room);
        e->t.data = c->data + start + e->begin;
    }
    return check_overlap(c, g);
}

/* ---- the file ----------------------------------------------------------------------------- */

static int take_header(struct cursor *c, uint64_t *n_tensors, uint64_t *n_keys)
{
    const u8 *magic = NULL;
    uint64_t version = 0;
    if (c->len < 4 || memcmp(c->data, "GGUF", 4))
        return kk_fail(c->err, KK_EFORMAT, "'%s' is no GGUF file: it does not begin with \"GGUF\"",
                       c->path);
    int rc = take(c, 4, "the header", &magic);
    if (!rc) rc = take_int(c, 4, "the header", &version);
    if (!rc && version == 0x03000000)
        rc = kk_fail(c->err, KK_EUNSUPPORTED, "'%s' is a big-endian GGUF file", c->path);
    if (!rc && version != 2 && version != 3) /* 2 differs in nothing that is read here */
        rc = kk_fail(c->err, KK_EUNSUPPORTED, "'%s' has GGUF version %llu, expected 3", c->path,
                     (unsigned long long)version);
    if (!rc) rc = take_int(c, 8, "the header", n_tensors);
    if (!rc) rc = take_int(c, 8, "the header", n_keys);
    return rc;
}

int kk__gguf_parse(const char *path, const unsigned char *data, size_t len, struct kk_gguf *out,
                   struct kk_err *err)
{
    struct cursor c = {.path = path, .data = data, .len = len, .err = err};
    uint64_t n_tensors = 0, n_keys = 0;
    *out = (struct kk_gguf){0};
    int rc = take_header(&c, &n_tensors, &n_keys);
    if (!rc) rc = take_keys(&c, n_keys, out);
    if (!rc) rc = take_tensors(&c, n_tensors, out);
    if (!rc) rc = place(&c, out);
    if (rc) kk__gguf_release(out);
    return rc;
}

void kk__gguf_release(struct kk_gguf *g)
{
    for (size_t i = 0; i < g->n_kv; i++) kk_free(g->kv[i].key);
    for (size_t i = 0; i < g->n; i++) kk_free((char *)(size_t)g->tensor[i].t.name);
    kk_free(g->kv);
    kk_free(g->tensor);
    *g = (struct kk_gguf){0};
}

/* ---- values of keys ----------------------------------------------------------------------- */

const struct gguf_kv *kk__gguf_find(const struct kk_gguf *g, const char *key)
{
    for (size_t i = 0; i < g->n_kv; i++)
        if (!strcmp(g->kv[i].key, key)) return &g->kv[i];
    return NULL;
}

int kk__gguf_whole(const struct gguf_kv *kv, uint64_t i, int64_t *out)
{
    unsigned bytes = type_bytes[kv->type];
    if (kv->type == GGUF_F32 || kv->type == GGUF_F64 || !bytes) return 0;
    uint64_t v = little(kv->at + i * bytes, bytes);
    int is_signed = kv->type == GGUF_I8 || kv->type == GGUF_I16 || kv->type == GGUF_I32;
    if (kv->type == GGUF_U64 && v > INT64_MAX) v = INT64_MAX; /* beyond every bound asked for */
    if (is_signed && v >> (8 * bytes - 1)) v |= ~(uint64_t)0 << (8 * bytes - 1);
    *out = (int64_t)v;
    return 1;
}

/* A float as the shortest decimal that reads back the same: 1e-6, not 9.99999997e-7. */
static double widen(float f)
{
    char text[32];
    for (int digits = 6; digits < 9; digits++) {
        snprintf(text, sizeof text, "%.*g", digits, (double)f);
        if (strtof(text, NULL) == f) return strtod(text, NULL);
    }
    return (double)f;
}

int kk__gguf_number(const struct gguf_kv *kv, uint64_t i, double *out)
{
    int64_t v;
    float f;
    if (kv->type == GGUF_F64) {
        memcpy(out, kv->at + i * 8, 8);
    } else if (kv->type == GGUF_F32) {
        memcpy(&f, kv->at + i * 4, 4);
        *out = isfinite(f) ? widen(f) : (double)f;
    } else {
        if (!kk__gguf_whole(kv, i, &v)) return 0;
        *out = (double)v;
    }
    return 1;
}

const char *kk__gguf_string(const unsigned char **at, size_t *len)
{
    const char *s = (const char *)*at + 8;
    *len = (size_t)little(*at, 8);
    *at += 8 + *len;
    return s;
}

static int missing(const char *key, int required, struct kk_err *err)
{
    return required ? kk_fail(err, KK_EFORMAT, "key '%s' is missing", key) : 0;
}

int kk__gguf_int(const struct kk_gguf *g, const char *key, int64_t min, int64_t max, int required,
                 int64_t *out, struct kk_err *err)
{
    const struct gguf_kv *kv = kk__gguf_find(g, key);
    int64_t v;
    if (!kv) return missing(key, required, err);
    if (kv->is_array || !kk__gguf_whole(kv, 0, &v))
        return kk_fail(err, KK_EFORMAT, "key '%s' is no whole number", key);
    if (v < min || v > max)
        return kk_fail(err, KK_EFORMAT, "key '%s' is %lld, expected %lld to %lld", key,
                       (long long)v, (long long)min, (long long)max);
    *out = v;
    return 0;
}

int kk__gguf_real(const struct kk_gguf *g, const char *key, double min, double max, int required,
                  double *out, struct kk_err *err)
{
    const struct gguf_kv *kv = kk__gguf_find(g, key);
    double v;
    if (!kv) return missing(key, required, err);
    if (kv->is_array || !kk__gguf_number(kv, 0, &v))
        return kk_fail(err, KK_EFORMAT, "key '%s' is no number", key);
    if (!(v >= min && v <= max))
        return kk_fail(err, KK_EFORMAT, "key '%s' is %g, expected %g to %g", key, v, min, max);
    *out = v;
    return 0;
}

int kk__gguf_bool(const struct kk_gguf *g, const char *key, int *out, struct kk_err *err)
{
    const struct gguf_kv *kv = kk__gguf_find(g, key);
    if (!kv) return 0;
    if (kv->is_array || kv->type != GGUF_BOOL)
        return kk_fail(err, KK_EFORMAT, "key '%s' is neither true nor false", key);
    *out = *kv->at;
    return 0;
}

int kk__gguf_text(const struct kk_gguf *g, const char *key, char **out, struct kk_err *err)
{
    const struct gguf_kv *kv = kk__gguf_find(g, key);
    size_t n;
    *out = NULL;
    if (!kv) return 0;
    const u8 *at = kv->at;
    if (kv->is_array || kv->type != GGUF_STRING)
        return kk_fail(err, KK_EFORMAT, "key '%s' is no text", key);
    const char *s = kk__gguf_string(&at, &n);
    if (memchr(s, 0, n)) return kk_fail(err, KK_EFORMAT, "key '%s' holds a NUL", key);
    *out = kk_strndup(s, n);
    return *out ? 0 : kk_fail(err, KK_ENOMEM, "out of memory for key '%s'", key);
}
