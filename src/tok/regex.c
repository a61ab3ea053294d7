/* Patterns: PCRE2 with JIT, made to read Oniguruma's Ruby syntax, which the oracle uses.
 *
 * Where the two differ, the pattern is rewritten:
 *   \s \S       Unicode White_Space (PCRE2 adds U+180E)
 *   \w \W       with marks and connectors (PCRE2 10.42 has neither)
 *   \h \H       a hexadecimal digit (PCRE2: horizontal space)
 *   \p{Han}     the script alone (PCRE2: script extensions)
 *   \uHHHH      a code point
 *   x{1,3}+     (?:x{1,3})+, not possessive
 *   ^ $         at every line
 * or refused by name: nested classes and && inside a class, x{n}?, (*VERBS). */
#include <string.h>

#include "base/mem.h"
#include "tok/tok_int.h"

#define SPACE                                                                                      \
    "\\x09-\\x0d\\x20\\x{85}\\x{a0}\\x{1680}\\x{2000}-\\x{200a}\\x{2028}\\x{2029}\\x{202f}"        \
    "\\x{205f}\\x{3000}"
#define WORD "\\p{Alphabetic}\\p{M}\\p{Nd}\\p{Pc}"
#define HEX  "0-9a-fA-F"

#define MAX_PATTERN 65536
#define MAX_GROUPS  64

/* PCRE2's memory comes from base/mem.h. */
static void *rx_malloc(size_t n, void *ctx)
{
    (void)ctx;
    return kk_malloc(n);
}

static void rx_free(void *p, void *ctx)
{
    (void)ctx;
    kk_free(p);
}

struct rewrite {
    const char *s;
    size_t len, i;
    struct kk_buf out;
    size_t atom;              /* where the last atom begins in out */
    size_t group[MAX_GROUPS]; /* where each open group begins */
    int n_group, in_class;
    struct kk_err *err;
};

static int put(struct rewrite *r, const char *s, size_t n)
{
    return kk__buf_err(kk_buf_append(&r->out, s, n), r->err);
}

static int refuse(struct rewrite *r, const char *what)
{
    char q[64];
    return kk_fail(r->err, KK_EUNSUPPORTED, "pattern '%s': %s is not supported",
                   kk__quote(q, r->s, r->len), what);
}

/* A set: its members inside a class, a class outside. */
static int put_set(struct rewrite *r, const char *members, int negated)
{
    if (r->in_class) return kk__buf_err(kk_buf_puts(&r->out, members), r->err);
    return kk__buf_err(kk_buf_printf(&r->out, "[%s%s]", negated ? "^" : "", members), r->err);
}

/* 1 if PCRE2 knows \p{sc:name}. */
static int is_script(const char *name, size_t len)
{
    char pat[64];
    int code;
    PCRE2_SIZE at;
    int n = snprintf(pat, sizeof pat, "\\p{sc:%.*s}", (int)len, name);
    pcre2_code *c = pcre2_compile((PCRE2_SPTR)pat, (PCRE2_SIZE)n, PCRE2_UTF, &code, &at, NULL);
    pcre2_code_free(c);
    return c != NULL;
}

/* \p{...}, at the brace. */
static int put_property(struct rewrite *r, char p)
{
    const char *name = r->s + r->i + 1, *end = memchr(name, '}', r->len - r->i - 1);
    if (!end || end - name > 40) return refuse(r, "this \\p");
    size_t n = (size_t)(end - name), caret = n && name[0] == '^';
    const char *sc = n - caret > 2 && is_script(name + caret, n - caret) ? "sc:" : "";
    r->i += n + 2;
    return kk__buf_err(kk_buf_printf(&r->out, "\\%c{%s%s%.*s}", p, caret ? "^" : "", sc,
                                     (int)(n - caret), name + caret),
                       r->err);
}

/* An escape, r->i at the character after the backslash. */
static int escape(struct rewrite *r)
{
    if (r->i >= r->len) return refuse(r, "a backslash at the end");
    char c = r->s[r->i++];
    int upper = c == 'S' || c == 'W' || c == 'H';
    if (upper && r->in_class && c == 'H') return refuse(r, "\\H inside a class");
    if (c == 's' || (c == 'S' && !r->in_class)) return put_set(r, SPACE, upper);
    if (c == 'w' || (c == 'W' && !r->in_class)) return put_set(r, WORD, upper);
    if (c == 'h' || c == 'H') return put_set(r, HEX, upper);
    if ((c == 'p' || c == 'P') && r->i < r->len && r->s[r->i] == '{') return put_property(r, c);
    if (c == 'u' && r->len - r->i >= 4) {
        r->i += 4;
        return kk__buf_err(kk_buf_printf(&r->out, "\\x{%.4s}", r->s + r->i - 4), r->err);
    }
    if (c == 'x' && r->i < r->len && r->s[r->i] == '{') {
        const char *end = memchr(r->s + r->i, '}', r->len - r->i);
        if (!end) return refuse(r, "this \\x");
        size_t n = (size_t)(end - (r->s + r->i)) + 1;
        r->i += n;
        return put(r, r->s + r->i - n - 2, n + 2);
    }
    return put(r, r->s + r->i - 2, 2);
}

/* Length of {n}, {n,}, {,m} or {n,m} at s, or 0. */
static size_t interval(const char *s, size_t n)
{
    size_t i = 1, digits = 0;
    while (i < n && ((s[i] >= '0' && s[i] <= '9') || s[i] == ',')) digits += s[i++] != ',';
    return digits && i < n && s[i] == '}' ? i + 1 : 0;
}

static int put_interval(struct rewrite *r, size_t n)
{
    const char *s = r->s + r->i;
    char next = r->i + n < r->len ? s[n] : 0;
    if (next == '?' && !memchr(s, ',', n)) return refuse(r, "x{n}?");
    if (s[1] == ',') return refuse(r, "x{,n}");
    r->i += n;
    if (next != '+') return put(r, s, n);
    int rc = put(r, "(?:", 3); /* make room, then move the atom behind it */
    if (rc) return rc;
    memmove(r->out.data + r->atom + 3, r->out.data + r->atom, r->out.len - 3 - r->atom);
    memcpy(r->out.data + r->atom, "(?:", 3);
    rc = put(r, s, n);
    return rc ? rc : put(r, ")", 1);
}

static int class_char(struct rewrite *r, char c)
{
    if (c == '[') return refuse(r, "a class inside a class");
    if (c == '&' && r->i + 1 < r->len && r->s[r->i + 1] == '&') return refuse(r, "'&&'");
    if (c == ']') r->in_class = 0;
    r->i++;
    return put(r, &c, 1);
}

/* One unit outside a class. */
static int plain_char(struct rewrite *r, char c)
{
    size_t n;
    if (c == '{' && (n = interval(r->s + r->i, r->len - r->i))) return put_interval(r, n);
    if (c == '(') {
        if (r->n_group == MAX_GROUPS) return refuse(r, "such deep nesting");
        if (r->i + 1 < r->len && r->s[r->i + 1] == '*') return refuse(r, "a (*VERB)");
        r->group[r->n_group++] = r->out.len;
    } else if (c == ')') {
        r->atom = r->n_group ? r->group[--r->n_group] : r->out.len;
    } else if (!strchr("?*+|", c) && ((u8)c & 0xc0) != 0x80) {
        r->atom = r->out.len;
    }
    r->i++;
    if (c == '[') {
        r->in_class = 1;
        if (r->i < r->len && r->s[r->i] == '^')
            r->i++, n = 2;
        else
            n = 1;
        if (r->i < r->len && r->s[r->i] == ']') return refuse(r, "']' first in a class");
        return put(r, "[^", n);
    }
    return put(r, &c, 1);
}

static int rewrite_all(struct rewrite *r)
{
    int rc = 0;
    while (!rc && r->i < r->len) {
        char c = r->s[r->i];
        if (c == '\\') {
            if (!r->in_class) r->atom = r->out.len;
            r->i++;
            rc = escape(r);
        } else {
            rc = r->in_class ? class_char(r, c) : plain_char(r, c);
        }
    }
    return rc;
}

static int compile(const char *rx, size_t len, const struct kk_buf *b, pcre2_code **out,
                   struct kk_err *err)
{
    char q[64], why[128];
    int code, rc = 0;
    PCRE2_SIZE at;
    pcre2_general_context *g = pcre2_general_context_create(rx_malloc, rx_free, NULL);
    pcre2_compile_context *cc = g ? pcre2_compile_context_create(g) : NULL;
    if (cc) {
        pcre2_set_newline(cc, PCRE2_NEWLINE_LF);
        *out = pcre2_compile((PCRE2_SPTR)(b->data ? b->data : ""), b->len,
                             PCRE2_UTF | PCRE2_UCP | PCRE2_NO_UTF_CHECK | PCRE2_MULTILINE |
                                 PCRE2_NEVER_BACKSLASH_C,
                             &code, &at, cc);
    }
    if (!cc || (!*out && code == PCRE2_ERROR_HEAP_FAILED)) {
        rc = kk_fail(err, KK_ENOMEM, "out of memory");
    } else if (!*out) {
        pcre2_get_error_message(code, (PCRE2_UCHAR *)why, sizeof why);
        rc = kk_fail(err, KK_EFORMAT, "pattern '%s': %s", kk__quote(q, rx, len), why);
    } else {
        pcre2_jit_compile(*out, PCRE2_JIT_COMPLETE); /* without it: slower, the same matches */
    }
    pcre2_compile_context_free(cc);
    pcre2_general_context_free(g);
    return rc;
}

int kk__pattern_regex(const char *rx, size_t len, struct tok_pattern *out, struct kk_err *err)
{
    struct rewrite r = {.s = rx, .len = len, .err = err};
    char q[64];
    if (len == 0 || len > MAX_PATTERN)
        return kk_fail(err, KK_EFORMAT, "a pattern of %zu bytes: expected 1 to %d", len,
                       MAX_PATTERN);
    if (memchr(rx, 0, len))
        return kk_fail(err, KK_EFORMAT, "pattern '%s' holds a NUL", kk__quote(q, rx, len));
    kk_buf_init(&r.out, (size_t)MAX_PATTERN * 64);
    int rc = rewrite_all(&r);
    if (!rc) rc = compile(rx, len, &r.out, &out->code, err);
    kk_buf_release(&r.out);
    return rc;
}

int kk__pattern_load(const json_t *v, struct tok_pattern *out, struct kk_err *err)
{
    const json_t *s = json_object_get(v, "String"), *r = json_object_get(v, "Regex");
    if (json_is_string(r))
        return kk__pattern_regex(json_string_value(r), json_string_length(r), out, err);
    if (!json_is_string(s))
        return kk_fail(err, KK_EFORMAT, "'pattern' must be {\"String\": ...} or {\"Regex\": ...}");
    if (!json_string_length(s)) return kk_fail(err, KK_EFORMAT, "'pattern' is empty");
    out->lit_len = json_string_length(s);
    out->lit = kk_strndup(json_string_value(s), out->lit_len);
    return out->lit ? 0 : kk_fail(err, KK_ENOMEM, "out of memory");
}

void kk__pattern_release(struct tok_pattern *p)
{
    pcre2_code_free(p->code);
    kk_free(p->lit);
    *p = (struct tok_pattern){0};
}

/* ---- matching ----------------------------------------------------------------------------- */

static int literal_next(struct tok_matches *m, size_t *start, size_t *end)
{
    const u8 *p =
        m->at < m->len ? memmem(m->s + m->at, m->len - m->at, m->p->lit, m->p->lit_len) : NULL;
    if (!p) return 0;
    *start = (size_t)(p - m->s);
    *end = m->at = *start + m->p->lit_len;
    return 1;
}

static int match_at(struct tok_matches *m, size_t at, struct kk_err *err)
{
    if (!m->md) {
        pcre2_general_context *g = pcre2_general_context_create(rx_malloc, rx_free, NULL);
        m->md = g ? pcre2_match_data_create(1, g) : NULL;
        pcre2_general_context_free(g);
        if (!m->md) return kk_fail(err, KK_ENOMEM, "out of memory");
    }
    int rc = pcre2_match(m->p->code, m->s, m->len, at, PCRE2_NO_UTF_CHECK, m->md, NULL);
    if (rc == PCRE2_ERROR_JIT_STACKLIMIT) /* the interpreter has its stack on the heap */
        rc = pcre2_match(m->p->code, m->s, m->len, at, PCRE2_NO_UTF_CHECK | PCRE2_NO_JIT, m->md,
                         NULL);
    if (rc >= 0) return 1;
    if (rc == PCRE2_ERROR_NOMATCH) return 0;
    char why[128];
    pcre2_get_error_message(rc, (PCRE2_UCHAR *)why, sizeof why);
    return kk_fail(err, KK_EEXHAUSTED, "a pattern of the tokenizer failed on this text: %s", why);
}

/* An empty match right after a match is none, and the search goes on one character later. */
int kk__matches_next(struct tok_matches *m, size_t *start, size_t *end, struct kk_err *err)
{
    if (m->p->lit) return literal_next(m, start, end);
    while (m->at <= m->len) {
        int rc = match_at(m, m->at, err);
        if (rc <= 0) return rc;
        PCRE2_SIZE *ov = pcre2_get_ovector_pointer(m->md);
        *start = ov[0];
        *end = ov[1];
        if (*start > *end || *end < m->at)
            return kk_fail(err, KK_EFORMAT, "a pattern of the tokenizer moves its own start");
        int empty = *start == *end, again = empty && m->any && *start == m->last_end;
        m->at = *end;
        if (empty) {
            uint32_t cp;
            m->at += *end < m->len ? kk__utf8_get(m->s + *end, &cp) : 1;
        }
        if (again) continue;
        m->any = 1;
        m->last_end = *end;
        return 1;
    }
    return 0;
}

void kk__matches_end(struct tok_matches *m)
{
    pcre2_match_data_free(m->md);
    m->md = NULL;
}
