/* Added tokens: found before the model sees the text, leftmost first, and of those the longest. */
#include <string.h>

#include "base/mem.h"
#include "tok/tok_int.h"

static uint32_t new_node(struct tok_trie *tr, u8 byte)
{
    if (tr->n == tr->cap) {
        uint32_t cap = tr->cap ? 2 * tr->cap : 64;
        struct trie_node *p = kk_realloc(tr->node, cap, sizeof *p);
        if (!p) return 0;
        tr->node = p;
        tr->cap = cap;
    }
    if (!tr->n) tr->n = 1; /* node 0 means none */
    tr->node[tr->n] = (struct trie_node){.tok = KK_TOK_NONE, .byte = byte};
    return tr->n++;
}

/* The first of two equal texts wins. */
int kk__trie_add(struct tok_trie *tr, const u8 *s, size_t len, uint32_t tok)
{
    uint32_t at = 0;
    for (size_t i = 0; i < len; i++) {
        uint32_t c = at ? tr->node[at].child : tr->first[s[0]];
        while (c && tr->node[c].byte != s[i]) c = tr->node[c].sibling;
        if (!c) {
            c = new_node(tr, s[i]);
            if (!c) return KK_ENOMEM;
            uint32_t *head = at ? &tr->node[at].child : &tr->first[s[0]];
            tr->node[c].sibling = *head;
            *head = c;
        }
        at = c;
    }
    if (at && tr->node[at].tok == KK_TOK_NONE) tr->node[at].tok = tok;
    return 0;
}

/* Bytes of the longest token at s, or 0. */
static size_t longest(const struct tok_trie *tr, const u8 *s, size_t n, uint32_t *tok)
{
    size_t best = 0, i = 0;
    uint32_t c = tr->first[s[0]];
    while (c) {
        if (tr->node[c].tok != KK_TOK_NONE) {
            best = i + 1;
            *tok = tr->node[c].tok;
        }
        if (++i == n) break;
        c = tr->node[c].child;
        while (c && tr->node[c].byte != s[i]) c = tr->node[c].sibling;
    }
    return best;
}

/* The character that ends at s + at. */
static uint32_t char_before(const u8 *s, size_t at, size_t *start)
{
    uint32_t cp;
    do at--;
    while ((s[at] & 0xc0) == 0x80);
    kk__utf8_get(s + at, &cp);
    *start = at;
    return cp;
}

static int word_around(const u8 *s, size_t len, size_t start, size_t stop)
{
    uint32_t cp;
    size_t at;
    if (start && kk__is_word(char_before(s, start, &at))) return 1;
    if (stop == len) return 0;
    kk__utf8_get(s + stop, &cp);
    return kk__is_word(cp);
}

/* Take in the white space that the token asks for: left of it down to `from`, and right. */
static void strip_around(const struct tok_added *a, const u8 *s, size_t len, size_t from,
                         size_t *start, size_t *stop)
{
    uint32_t cp;
    if (a->lstrip) {
        size_t at = *start, prev;
        while (at && kk__is_space(char_before(s, at, &prev))) at = prev;
        *start = at > from ? at : from;
    }
    while (a->rstrip && *stop < len) {
        unsigned k = kk__utf8_get(s + *stop, &cp);
        if (!kk__is_space(cp)) break;
        *stop += k;
    }
}

/* The token's text is only text in this encode. */
static int is_plain(const struct tok_enc *e, const struct tok_added *a)
{
    int plain = a->special && !e->special;
    for (int i = 0; i < e->n_never; i++) plain |= e->never[i] == a->id;
    return plain;
}

int kk__added_split(struct tok_enc *e, const struct tok_trie *tr, const u8 *s, size_t len,
                    int first, segment_fn *fn)
{
    size_t from = 0;
    int rc = 0;
    for (size_t i = 0; tr->n && i < len;) {
        uint32_t k;
        size_t n = tr->first[s[i]] ? longest(tr, s + i, len - i, &k) : 0;
        if (!n) {
            i++;
            continue;
        }
        size_t start = i, stop = i + n;
        i = stop;
        const struct tok_added *a = &e->t->added[k];
        if (is_plain(e, a)) continue;
        if (a->single_word && word_around(s, len, start, stop)) continue;
        strip_around(a, s, len, from, &start, &stop);
        if (from < start) rc = fn(e, s + from, start - from, first && !from);
        if (!rc && kk_ids_push(e->out, a->id)) rc = kk_fail(e->err, KK_ENOMEM, "out of memory");
        if (rc) return rc;
        from = stop;
    }
    return from < len ? fn(e, s + from, len - from, first && !from) : 0;
}
