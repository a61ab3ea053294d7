/* The facade: id lists, encode, look-ups. */
#include "tok/tok.h"

#include <string.h>

#include "base/mem.h"
#include "tok/tok_int.h"

int kk_ids_push(struct kk_ids *v, uint32_t id)
{
    if (v->n == v->cap) {
        size_t cap = v->cap ? 2 * v->cap : 64;
        uint32_t *p = kk_realloc(v->id, cap, sizeof *p);
        if (!p) return KK_ENOMEM;
        v->id = p;
        v->cap = cap;
    }
    v->id[v->n++] = id;
    return 0;
}

void kk_ids_release(struct kk_ids *v)
{
    kk_free(v->id);
    *v = (struct kk_ids){0};
}

/* A rewriting may grow the text 64 times (NFKC: 11), no more: the file is untrusted. */
static void enc_init(struct tok_enc *e, size_t len)
{
    size_t max = 64 * len + (1 << 20);
    if (max > KK_TOK_MAX_TEXT) max = KK_TOK_MAX_TEXT;
    kk_buf_init(&e->fixed, KK_TOK_MAX_TEXT);
    kk_buf_init(&e->spelled, KK_TOK_MAX_TEXT);
    for (int i = 0; i < 2; i++) kk_buf_init(&e->norm[i], max);
    for (int i = 0; i < KK_TOK_MAX_STEPS; i++) kk_buf_init(&e->step[i], max);
}

static void enc_release(struct tok_enc *e)
{
    kk_buf_release(&e->fixed);
    kk_buf_release(&e->spelled);
    for (int i = 0; i < 2; i++) kk_buf_release(&e->norm[i]);
    for (int i = 0; i < KK_TOK_MAX_STEPS; i++) {
        kk_buf_release(&e->step[i]);
        kk__matches_end(&e->match[i]);
    }
    kk_free(e->ids);
    kk_free(e->sym);
    kk_free(e->heap);
}

/* Text without raw added tokens: normalize, then cut out those that match normalized text. */
static int segment(struct tok_enc *e, const u8 *s, size_t len, int first)
{
    int rc = kk__normalize(e->t, e->norm, &s, &len, e->err);
    return rc ? rc : kk__added_split(e, &e->t->normed, s, len, first, kk__pretok);
}

/* e: t, out, err and how are set. first: the text is not the rest of another. */
static int encode(struct tok_enc *e, const char *text, size_t len, int first)
{
    const u8 *s = (const u8 *)text;
    size_t n_before = e->out->n;
    int rc = 0;
    if (len > KK_TOK_MAX_TEXT)
        return kk_fail(e->err, KK_ERANGE, "a text of %zu bytes is too long for the tokenizer", len);
    enc_init(e, len);
    if (kk__utf8_valid(s, len) < len) {
        rc = kk__buf_err(kk__utf8_repair(s, len, &e->fixed), e->err);
        s = (const u8 *)e->fixed.data;
        len = e->fixed.len;
    }
    if (!rc && len) rc = kk__added_split(e, &e->t->raw, s, len, first, segment);
    if (rc) e->out->n = n_before;
    enc_release(e);
    return rc;
}

int kk_tok_encode(const struct kk_tok *t, const char *text, size_t len, int special,
                  struct kk_ids *out, struct kk_err *err)
{
    struct tok_enc e = {.t = t, .out = out, .err = err, .special = special};
    return encode(&e, text, len, 1);
}

int kk__encode_part(const struct kk_tok *t, const char *text, size_t len, const uint32_t *never,
                    int n_never, struct kk_ids *out, struct kk_err *err)
{
    struct tok_enc e = {.t = t, .out = out, .err = err, .never = never, .n_never = n_never};
    return encode(&e, text, len, 0);
}

uint32_t kk_tok_size(const struct kk_tok *t)
{
    return t->size;
}

int64_t kk_tok_find(const struct kk_tok *t, const char *text)
{
    uint32_t id = kk__vocab_find(t, text, strlen(text), 0);
    return id == KK_TOK_NONE ? -1 : (int64_t)id;
}

const char *kk_tok_text(const struct kk_tok *t, uint32_t id)
{
    return id < t->size && t->ent[id].flags ? t->blob.data + t->ent[id].text.off : NULL;
}

int kk_tok_is_special(const struct kk_tok *t, uint32_t id)
{
    return id < t->size && (t->ent[id].flags & ENT_SPECIAL) != 0;
}
