/* tokenizer.json, a NUL, then a text (without a NUL: the head of the file is the text). */
#include "fuzz.h"

#include "tok/tok.h"

enum { TEXT_MAX = 512, DECODED_MAX = 1 << 22 };

/* A stream gives what a decode gives, and both are UTF-8. */
static void decode(const struct kk_tok *t, const struct kk_ids *v, int skip)
{
    struct kk_buf whole, parts;
    struct kk_tok_stream s;
    struct kk_err err = {0};
    kk_buf_init(&whole, DECODED_MAX);
    kk_buf_init(&parts, DECODED_MAX);
    int rc = kk_tok_decode(t, v->id, v->n, skip, &whole, &err);
    kk_tok_stream_init(&s, t, skip);
    int rs = 0;
    for (size_t i = 0; !rs && i < v->n; i++) rs = kk_tok_stream_push(&s, v->id[i], &parts, &err);
    if (!rs) rs = kk_tok_stream_flush(&s, &parts);
    FUZZ_CHECK(!rc == !rs);
    if (!rc) {
        FUZZ_CHECK(fuzz_is_utf8(whole.data, whole.len));
        FUZZ_CHECK(whole.len == parts.len &&
                   (!whole.len || !memcmp(whole.data, parts.data, whole.len)));
    }
    kk_buf_release(&whole);
    kk_buf_release(&parts);
}

/* Twice the same ids, all of them tokens; what was in the list stays. */
static void encode(const struct kk_tok *t, const char *text, size_t len, int special)
{
    struct kk_ids a = {0}, b = {0};
    struct kk_err err = {0};
    FUZZ_CHECK(!kk_ids_push(&b, 77));
    int rc = kk_tok_encode(t, text, len, special, &a, &err);
    if (rc) {
        fuzz_failed(rc, &err);
        FUZZ_CHECK(!a.n);
    }
    FUZZ_CHECK(kk_tok_encode(t, text, len, special, &b, &err) == rc);
    FUZZ_CHECK(b.n == a.n + 1 && b.id[0] == 77);
    for (size_t i = 0; i < a.n; i++) {
        FUZZ_CHECK(a.id[i] == b.id[i + 1] && a.id[i] < kk_tok_size(t));
        const char *s = kk_tok_text(t, a.id[i]);
        FUZZ_CHECK(s && kk_tok_find(t, s) >= 0);
    }
    decode(t, &a, 0);
    decode(t, &a, 1);
    kk_ids_release(&a);
    kk_ids_release(&b);
}

/* Any ids decode, not only those an encode makes. */
static void decode_any(const struct kk_tok *t, const uint8_t *data, size_t size)
{
    struct kk_ids v = {0};
    uint32_t n = kk_tok_size(t);
    for (size_t i = 0; i < size && i < 64; i++)
        FUZZ_CHECK(!kk_ids_push(&v, (data[i] * 2654435761u >> (i % 24)) % n));
    decode(t, &v, 0);
    kk_ids_release(&v);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct kk_tok *t = NULL;
    struct kk_err err = {0};
    if (!size || size > 1 << 16) return 0;
    const uint8_t *nul = memchr(data, 0, size);
    size_t json = nul ? (size_t)(nul - data) : size;
    const uint8_t *text = nul ? nul + 1 : data;
    size_t len = nul ? size - json - 1 : size;
    if (len > TEXT_MAX) len = TEXT_MAX;
    int rc = kk_tok_open(fuzz_file("tokenizer.json", data, json), &t, &err);
    if (rc) {
        fuzz_failed(rc, &err);
        return 0;
    }
    encode(t, (const char *)text, len, 0);
    encode(t, (const char *)text, len, 1);
    decode_any(t, text, len);
    kk_tok_close(t);
    return 0;
}
