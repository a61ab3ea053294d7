/* The texts of tests/golden/tokenizer/cases.jsonl, and what a file of results says of each. */
#ifndef KK_TEST_TOK_CASES_H
#define KK_TEST_TOK_CASES_H

#include "kk_test.h"

#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>

#include "base/buf.h"
#include "base/rng.h"
#include "tok/tok.h"

#define CASES    "tests/golden/tokenizer/cases.jsonl"
#define MAX_TEXT (1 << 24)

struct lines {
    FILE *f;
    char *line;
    size_t cap;
};

static inline json_t *next_line(struct lines *l)
{
    ssize_t n = getline(&l->line, &l->cap, l->f);
    if (n <= 0) return NULL;
    json_t *v = json_loadb(l->line, (size_t)n, JSON_ALLOW_NUL, NULL);
    assert_non_null(v);
    return v;
}

static inline struct lines open_lines(const char *path)
{
    struct lines l = {.f = fopen(path, "rb")};
    assert_non_null(l.f);
    return l;
}

static inline void close_lines(struct lines *l)
{
    fclose(l->f);
    free(l->line);
}

static inline void put_hex(struct kk_buf *out, const char *hex)
{
    for (; *hex; hex += 2) {
        unsigned b;
        assert_int_equal(sscanf(hex, "%2x", &b), 1);
        assert_int_equal(kk_buf_putc(out, (char)b), 0);
    }
}

static inline void get_text(const json_t *c, struct kk_buf *out)
{
    const json_t *t = json_object_get(c, "t"), *n = json_object_get(c, "n");
    kk_buf_reset(out);
    for (json_int_t k = n ? json_integer_value(n) : 1; k > 0; k--) {
        if (t)
            assert_int_equal(kk_buf_append(out, json_string_value(t), json_string_length(t)), 0);
        else
            put_hex(out, json_string_value(json_object_get(c, "x")));
    }
}

static inline uint64_t hash_ids(const struct kk_ids *v)
{
    return kk_fnv1a(v->id, v->n * sizeof *v->id); /* little-endian, as every machine we run on */
}

/* want: a list of ids, or an object with their count c and hash h. */
static inline int same_ids(const struct kk_ids *v, const json_t *want)
{
    size_t i;
    json_t *x;
    if (json_is_object(want)) {
        char h[32];
        snprintf(h, sizeof h, "%016llx", (unsigned long long)hash_ids(v));
        return v->n == (size_t)json_integer_value(json_object_get(want, "c")) &&
               !strcmp(h, json_string_value(json_object_get(want, "h")));
    }
    if (v->n != json_array_size(want)) return 0;
    json_array_foreach(want, i, x)
    {
        if (v->id[i] != json_integer_value(x)) return 0;
    }
    return 1;
}

static inline void show(const char *name, int line, const struct kk_buf *text,
                        const struct kk_ids *got, const json_t *row)
{
    char *want = json_dumps(row, JSON_COMPACT | JSON_ENSURE_ASCII);
    print_error("%s line %d: text [%.200s]\n  want %.600s\n  got ", name, line,
                text->data ? text->data : "", want);
    for (size_t i = 0; i < got->n && i < 100; i++) print_error(" %u", (unsigned)got->id[i]);
    print_error("\n");
    free(want);
}

#endif
