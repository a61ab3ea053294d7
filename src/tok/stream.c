/* Decoding: tokens become bytes (decode.c), bytes become characters here. A decode is a stream of
 * all its ids, so the two cannot differ. */
#include <string.h>

#include "tok/tok_int.h"

void kk_tok_stream_init(struct kk_tok_stream *s, const struct kk_tok *t, int skip_special)
{
    *s = (struct kk_tok_stream){.tok = t, .skip_special = skip_special, .n_strip = t->dec_strip};
}

/* Whole characters: drop what the decoder strips from the start of the text. */
static int put(struct kk_tok_stream *s, const void *p, size_t n, struct kk_buf *out)
{
    const char *c = p, *strip = s->tok->dec_strip_char;
    size_t k = strlen(strip);
    while (s->n_strip && n) {
        if (n < k || memcmp(c, strip, k)) {
            s->n_strip = 0;
        } else {
            s->n_strip--;
            c += k;
            n -= k;
        }
    }
    return kk_buf_append(out, c, n);
}

static int put_broken(struct kk_tok_stream *s, struct kk_buf *out)
{
    return put(s, "\xef\xbf\xbd", 3, out);
}

/* One more byte of an incomplete character. *again: the byte belongs to the next character. */
static int put_held(struct kk_tok_stream *s, u8 byte, int *again, struct kk_buf *out)
{
    s->held[s->n_held++] = byte;
    int k = kk__utf8_step(s->held, (size_t)s->n_held);
    *again = k < 0;
    if (k == 0) return 0;
    s->n_held = 0;
    return k > 0 ? put(s, s->held, (size_t)k, out) : put_broken(s, out);
}

static int put_bytes(struct kk_tok_stream *s, const u8 *p, size_t n, struct kk_buf *out)
{
    int rc = 0;
    for (size_t i = 0; i < n && !rc;) {
        int again = 0;
        if (s->n_held) {
            rc = put_held(s, p[i], &again, out);
            i += !again;
            continue;
        }
        size_t k = kk__utf8_valid(p + i, n - i);
        rc = put(s, p + i, k, out);
        i += k;
        if (rc || i == n) break;
        int bad = kk__utf8_step(p + i, n - i);
        if (bad) {
            rc = put_broken(s, out);
            i += (size_t)-bad;
        } else { /* the token ends inside a character */
            s->n_held = (int)(n - i);
            memcpy(s->held, p + i, n - i);
            i = n;
        }
    }
    return rc;
}

int kk_tok_stream_push(struct kk_tok_stream *s, uint32_t id, struct kk_buf *out, struct kk_err *err)
{
    const struct kk_tok *t = s->tok;
    if (id >= t->size)
        return kk_fail(err, KK_ERANGE, "token id %u is out of range: the tokenizer has %u",
                       (unsigned)id, (unsigned)t->size);
    const struct tok_ent *e = &t->ent[id];
    if (!e->flags || (s->skip_special && (e->flags & ENT_SPECIAL))) return 0;
    struct kk_buf b[2];
    const u8 *p;
    size_t len;
    for (int i = 0; i < 2; i++) kk_buf_init(&b[i], KK_TOK_MAX_TEXT);
    int rc = kk__decode_token(t, id, !s->started, b, &p, &len, err);
    if (!rc && t->dec_spaces && s->started)
        rc = kk__buf_err(put_bytes(s, (const u8 *)" ", 1, out), err);
    if (!rc && len) rc = kk__buf_err(put_bytes(s, p, len, out), err);
    if (!rc) s->started = 1;
    for (int i = 0; i < 2; i++) kk_buf_release(&b[i]);
    return rc;
}

int kk_tok_stream_flush(struct kk_tok_stream *s, struct kk_buf *out)
{
    int rc = s->n_held ? put_broken(s, out) : 0;
    s->n_held = 0;
    return rc;
}

int kk_tok_decode(const struct kk_tok *t, const uint32_t *ids, size_t n, int skip_special,
                  struct kk_buf *out, struct kk_err *err)
{
    struct kk_tok_stream s;
    int rc = 0;
    kk_tok_stream_init(&s, t, skip_special);
    for (size_t i = 0; i < n && !rc; i++) rc = kk_tok_stream_push(&s, ids[i], out, err);
    return rc ? rc : kk__buf_err(kk_tok_stream_flush(&s, out), err);
}
