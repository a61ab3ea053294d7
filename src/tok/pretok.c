/* Pre-tokenizers: a segment to pieces. Each step hands its pieces to the next one as they are
 * found; the last hands them to the BPE. */
#include <string.h>

#include "tok/tok_int.h"

static int run_step(struct tok_enc *e, int i, const u8 *s, size_t len, int first);

/* What to do with a stretch that matched the pattern, or did not, is decided with at most one
 * stretch held back. */
struct splitter {
    struct tok_enc *e;
    const u8 *s;
    int step, first;
    enum split_how how;
    size_t start, end; /* held */
    int held, held_match, prev_match;
};

static int emit(struct splitter *p, size_t start, size_t end)
{
    if (start == end) return 0; /* empty pieces vanish */
    return run_step(p->e, p->step + 1, p->s + start, end - start, p->first && !start);
}

static int flush(struct splitter *p)
{
    int held = p->held;
    p->held = 0;
    return held ? emit(p, p->start, p->end) : 0;
}

/* The next stretch in order. */
static int stretch(struct splitter *p, size_t start, size_t end, int match)
{
    int join = 0, prev = p->prev_match;
    p->prev_match = match;
    if (p->how == HOW_ISOLATED || (p->how == HOW_REMOVED && !match)) return emit(p, start, end);
    if (p->how == HOW_REMOVED) return 0;
    if (p->how == HOW_PREVIOUS) join = match && !prev;
    if (p->how == HOW_NEXT) join = !match && p->held_match;
    if (p->how == HOW_CONTIGUOUS) join = match == p->held_match;
    if (p->held && join) {
        p->end = end;
        if (p->how == HOW_NEXT) return flush(p);
        return 0;
    }
    int rc = flush(p);
    p->start = start;
    p->end = end;
    p->held = 1;
    p->held_match = match;
    return rc;
}

static int split_pattern(struct splitter *p, const struct tok_pre *f, size_t len)
{
    struct tok_matches *m = &p->e->match[p->step];
    size_t start, end, from = 0;
    int rc;
    *m = (struct tok_matches){.p = &f->pat, .s = p->s, .len = len, .md = m->md};
    while ((rc = kk__matches_next(m, &start, &end, p->e->err)) > 0) {
        rc = 0;
        if (from < start) rc = stretch(p, from, start, f->invert);
        if (!rc) rc = stretch(p, start, end, !f->invert);
        if (rc) return rc;
        from = end;
    }
    if (!rc && from < len) rc = stretch(p, from, len, f->invert);
    return rc ? rc : flush(p);
}

/* Each numeric character is one match. */
static int split_digits(struct splitter *p, size_t len)
{
    size_t from = 0;
    int rc = 0;
    for (size_t i = 0; i < len && !rc;) {
        uint32_t cp;
        size_t n = kk__utf8_get(p->s + i, &cp);
        if (kk__is_numeric(cp)) {
            if (from < i) rc = stretch(p, from, i, 0);
            if (!rc) rc = stretch(p, i, i + n, 1);
            from = i + n;
        }
        i += n;
    }
    if (!rc && from < len) rc = stretch(p, from, len, 0);
    return rc ? rc : flush(p);
}

/* Put mark before s if it does not begin with it, and (Metaspace) marks for spaces. */
static int with_mark(struct tok_enc *e, int step, const char *mark, size_t mark_len, int spaces,
                     int prefix, const u8 **s, size_t *len)
{
    struct kk_buf *b = &e->step[step];
    const struct tok_pattern space = {.lit = (char[]){' ', 0}, .lit_len = 1};
    int marked = *len >= mark_len && !memcmp(*s, mark, mark_len);
    if (spaces && *len && **s == ' ') marked = 1;
    int rc = 0;
    kk_buf_reset(b);
    if (prefix && !marked) rc = kk_buf_append(b, mark, mark_len);
    if (!rc && spaces) rc = kk__replace(&space, mark, mark_len, *s, *len, b, e->err);
    if (!rc && !spaces) rc = kk_buf_append(b, *s, *len);
    *s = (const u8 *)b->data;
    *len = b->len;
    return kk__buf_err(rc, e->err);
}

static int run_step(struct tok_enc *e, int i, const u8 *s, size_t len, int first)
{
    const struct tok_pre *f = &e->t->pre[i];
    if (i == e->t->n_pre) return kk__bpe(e, s, len);
    int prefix = f->prefix == PREFIX_ALWAYS || (f->prefix == PREFIX_FIRST && first), rc = 0;
    if (f->kind == PRE_METASPACE)
        rc = with_mark(e, i, f->pat.lit, f->pat.lit_len, 1, prefix, &s, &len);
    else if (prefix && *s != ' ')
        rc = with_mark(e, i, " ", 1, 0, prefix, &s, &len);
    if (rc) return rc;
    struct splitter p = {.e = e, .s = s, .step = i, .first = first, .how = f->how};
    if (f->kind == PRE_DIGITS) return split_digits(&p, len);
    if (!f->split) return run_step(e, i + 1, s, len, first);
    return split_pattern(&p, f, len);
}

int kk__pretok(struct tok_enc *e, const u8 *s, size_t len, int first)
{
    return len ? run_step(e, 0, s, len, first) : 0;
}
