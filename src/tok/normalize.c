/* Normalizers: text to text, one after the other.
 *
 * Unicode here is utf8proc's version (15 or so); the oracle's tables are older (9). They differ on
 * sequences with characters added since: some 3 in 10,000 random strings over all planes. */
#include <string.h>
#include <utf8proc.h>

#include "base/mem.h"
#include "tok/tok_int.h"

int kk__buf_err(int rc, struct kk_err *err)
{
    if (rc == KK_ENOMEM) return kk_fail(err, rc, "out of memory");
    if (rc == KK_ERANGE) return kk_fail(err, rc, "text too long for the tokenizer");
    return rc;
}

int kk__replace(const struct tok_pattern *pat, const char *text, size_t text_len, const u8 *s,
                size_t len, struct kk_buf *out, struct kk_err *err)
{
    struct tok_matches m = {.p = pat, .s = s, .len = len};
    size_t start, end, from = 0;
    int rc;
    while ((rc = kk__matches_next(&m, &start, &end, err)) > 0) {
        rc = kk_buf_append(out, s + from, start - from);
        if (!rc) rc = kk_buf_append(out, text, text_len);
        if (rc) break;
        from = end;
    }
    kk__matches_end(&m);
    if (!rc) rc = kk_buf_append(out, s + from, len - from);
    return kk__buf_err(rc, err);
}

/* Stable sort of n combining marks by class; tmp has room for them. */
static void sort_marks(utf8proc_int32_t *c, utf8proc_int32_t *tmp, size_t n)
{
    size_t at[257] = {0};
    for (size_t i = 0; i < n; i++) at[utf8proc_get_property(c[i])->combining_class + 1]++;
    for (int k = 1; k < 257; k++) at[k] += at[k - 1];
    for (size_t i = 0; i < n; i++) tmp[at[utf8proc_get_property(c[i])->combining_class]++] = c[i];
    memcpy(c, tmp, n * sizeof *c);
}

/* Canonical order. utf8proc_decompose would do it by insertion: quadratic in a long run of marks.
 */
static void reorder(utf8proc_int32_t *c, utf8proc_int32_t *tmp, size_t n)
{
    for (size_t i = 0; i < n;) {
        size_t end = i;
        while (end < n && c[end] >= 0x300 && utf8proc_get_property(c[end])->combining_class) end++;
        if (end - i > 1) sort_marks(c + i, tmp, end - i);
        i = end > i ? end : i + 1;
    }
}

/* Canonical or compatibility decomposition of s into a fresh array of n characters (+ as much again
 * of scratch). */
static int decompose(const struct tok_norm *f, const u8 *s, size_t len, utf8proc_int32_t **out,
                     size_t *n)
{
    utf8proc_option_t opt = UTF8PROC_DECOMPOSE | (f->compat ? UTF8PROC_COMPAT : 0);
    utf8proc_int32_t *c = NULL;
    size_t cap = 0, k = 0;
    for (size_t i = 0; i < len;) {
        uint32_t cp;
        int cls = 0;
        if (cap - k < 32) { /* no character has more than 18 */
            cap = 2 * cap + len / 2 + 64;
            utf8proc_int32_t *p = kk_realloc(c, 2 * cap, sizeof *c);
            if (!p) return kk_free(c), KK_ENOMEM;
            c = p;
        }
        i += kk__utf8_get(s + i, &cp);
        utf8proc_ssize_t got = utf8proc_decompose_char((utf8proc_int32_t)cp, c + k, 32, opt, &cls);
        if (got < 0 || got > 32) return kk_free(c), KK_ERANGE;
        k += (size_t)got;
    }
    reorder(c, c + cap, k);
    *out = c;
    *n = k;
    return 0;
}

static int unicode(const struct tok_norm *f, const u8 *s, size_t len, struct kk_buf *out)
{
    utf8proc_int32_t *c = NULL;
    size_t n;
    int rc = decompose(f, s, len, &c, &n);
    if (rc) return rc;
    if (f->compose && n)
        n = (size_t)utf8proc_normalize_utf32(c, (utf8proc_ssize_t)n,
                                             UTF8PROC_STABLE | UTF8PROC_COMPOSE);
    for (size_t i = 0; i < n && !rc; i++) {
        u8 b[4];
        unsigned k = kk__utf8_put(b, (uint32_t)c[i]);
        rc = kk_buf_append(out, b, k);
    }
    kk_free(c);
    return rc;
}

static int lower(const u8 *s, size_t len, struct kk_buf *out)
{
    int rc = 0;
    for (size_t i = 0; i < len && !rc;) {
        uint32_t cp;
        u8 b[4];
        i += kk__utf8_get(s + i, &cp);
        unsigned k = kk__utf8_put(b, (uint32_t)utf8proc_tolower((utf8proc_int32_t)cp));
        rc = cp == 0x130 ? kk_buf_append(out, "i\xcc\x87", 3) : kk_buf_append(out, b, k);
    }
    return rc;
}

static int strip(const struct tok_norm *f, const u8 *s, size_t len, struct kk_buf *out)
{
    size_t a = 0, z = len, n;
    uint32_t cp;
    while (f->left && a < z && (n = kk__utf8_get(s + a, &cp), kk__is_space(cp))) a += n;
    while (f->right && z > a) {
        for (n = 1; (s[z - n] & 0xc0) == 0x80;) n++;
        kk__utf8_get(s + z - n, &cp);
        if (!kk__is_space(cp)) break;
        z -= n;
    }
    return kk_buf_append(out, s + a, z - a);
}

static int is_ascii(const u8 *s, size_t n)
{
    for (size_t i = 0; i < n; i++)
        if (s[i] >= 0x80) return 0;
    return 1;
}

static int apply(const struct tok_norm *f, const u8 *s, size_t len, struct kk_buf *out,
                 struct kk_err *err)
{
    int rc = 0;
    switch (f->kind) {
    case NORM_REPLACE:
        return kk__replace(&f->pat, f->text, f->text_len, s, len, out, err);
    case NORM_PREPEND:
        if (len) rc = kk_buf_append(out, f->text, f->text_len);
        return rc ? rc : kk_buf_append(out, s, len);
    case NORM_UNICODE:
        return unicode(f, s, len, out);
    case NORM_LOWER:
        return lower(s, len, out);
    case NORM_STRIP:
        return strip(f, s, len, out);
    }
    return KK_EINVARIANT;
}

int kk__normalize(const struct kk_tok *t, struct kk_buf buf[2], const u8 **s, size_t *len,
                  struct kk_err *err)
{
    for (int i = 0; i < t->n_norm; i++) {
        struct kk_buf *out = *s == (const u8 *)buf[0].data ? &buf[1] : &buf[0];
        if (t->norm[i].kind == NORM_UNICODE && is_ascii(*s, *len)) continue;
        kk_buf_reset(out);
        int rc = apply(&t->norm[i], *s, *len, out, err);
        if (rc) return kk__buf_err(rc, err);
        *s = out->data ? (const u8 *)out->data : (const u8 *)"";
        *len = out->len;
    }
    return 0;
}
