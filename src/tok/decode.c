/* What a token becomes when decoded: its text through the decoder's per-token steps, as bytes (not
 * always whole characters: byte-level and byte-fallback tokens). Metaspace treats the first token
 * of a text in its own way. Nothing is kept: most tokens of a vocabulary are never seen. */
#include <string.h>

#include "tok/tok_int.h"

/* Every character spells a byte: those bytes. Otherwise the text as it is, as in the oracle. */
static int byte_level(const u8 *s, size_t len, struct kk_buf *out)
{
    uint32_t cp;
    for (size_t i = 0; i < len;) {
        i += kk__utf8_get(s + i, &cp);
        if (kk__char_byte(cp) < 0) return kk_buf_append(out, s, len);
    }
    int rc = 0;
    for (size_t i = 0; i < len && !rc;) {
        i += kk__utf8_get(s + i, &cp);
        rc = kk_buf_putc(out, (char)kk__char_byte(cp));
    }
    return rc;
}

static int hex(u8 c)
{
    if (c >= '0' && c <= '9') return c - '0';
    c |= 32;
    return c >= 'a' && c <= 'f' ? c - 'a' + 10 : -1;
}

/* "<0x0A>" is a byte. */
static int byte_fallback(const u8 *s, size_t len, struct kk_buf *out)
{
    if (len == 6 && !memcmp(s, "<0x", 3) && s[5] == '>' && hex(s[3]) >= 0 && hex(s[4]) >= 0)
        return kk_buf_putc(out, (char)(hex(s[3]) * 16 + hex(s[4])));
    return kk_buf_append(out, s, len);
}

static int strip(const struct tok_dec *d, const u8 *s, size_t len, struct kk_buf *out)
{
    size_t a = 0, z = len, k = d->text_len;
    for (int64_t i = 0; i < d->start && z - a >= k && !memcmp(s + a, d->text, k); i++) a += k;
    for (int64_t i = 0; i < d->stop && z - a >= k && !memcmp(s + z - k, d->text, k); i++) z -= k;
    return kk_buf_append(out, s + a, z - a);
}

static int apply(const struct tok_dec *d, int first, const u8 *s, size_t len, struct kk_buf *out,
                 struct kk_err *err)
{
    switch (d->kind) {
    case DEC_REPLACE:
        return kk__replace(&d->pat, d->text, d->text_len, s, len, out, err);
    case DEC_METASPACE:
        return kk__replace(&d->pat, " ", first && d->prefix ? 0 : 1, s, len, out, err);
    case DEC_STRIP:
        return strip(d, s, len, out);
    case DEC_BYTE_LEVEL:
        return byte_level(s, len, out);
    case DEC_BYTE_FALLBACK:
        return byte_fallback(s, len, out);
    }
    return KK_EINVARIANT;
}

int kk__decode_token(const struct kk_tok *t, uint32_t id, int first, struct kk_buf b[2],
                     const u8 **out, size_t *n, struct kk_err *err)
{
    const struct tok_ent *e = &t->ent[id];
    const u8 *s = (const u8 *)t->blob.data + e->shown.off;
    size_t len = e->shown.len;
    int rc = 0;
    for (int i = 0; i < t->n_dec && !rc; i++) {
        struct kk_buf *o = &b[i & 1];
        kk_buf_reset(o);
        rc = apply(&t->dec[i], first, s, len, o, err);
        s = o->data ? (const u8 *)o->data : (const u8 *)"";
        len = o->len;
    }
    *out = s;
    *n = len;
    return kk__buf_err(rc, err);
}
