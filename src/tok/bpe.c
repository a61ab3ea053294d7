/* Byte pair encoding of one piece: always merge the pair of lowest rank, the leftmost of equals.
 *
 * Two ways, the same result: a short piece (words, nearly always) scans its ranks for the smallest;
 * a long one (sentencepiece style has no words: a whole text is one piece) keeps candidate pairs in
 * a heap and the symbols in a linked list, O(n log n). A long piece is first cut wherever no merge
 * of the file can ever join the two sides: the cuts change nothing but the time. */
#include <stdio.h>
#include <string.h>

#include "base/mem.h"
#include "tok/merge_int.h"

#define SHORT_PIECE 32

struct sym {
    uint32_t id; /* NONE: merged into the one on its left */
    int32_t prev, next;
};

struct heap_ent {
    uint64_t order; /* rank << 32 | position: smallest first */
    uint32_t id;    /* what the pair becomes */
};

/* ---- text to symbols ---------------------------------------------------------------------- */

/* Symbols of a piece being collected; ids has room for all. */
struct symbols {
    uint32_t *ids;
    size_t n;
    int unk; /* an unknown token is due before the next known one */
};

static void push_known(const struct kk_tok *t, struct symbols *y, uint32_t id)
{
    if (y->unk) y->ids[y->n++] = t->unk;
    y->unk = 0;
    y->ids[y->n++] = id;
}

/* A character that is no token: its bytes, else the unknown token, else nothing. */
static void push_unknown(const struct kk_tok *t, struct symbols *y, const u8 *s, unsigned len)
{
    int all = t->byte_fallback;
    for (unsigned i = 0; i < len; i++) all = all && t->fallback[s[i]] != KK_TOK_NONE;
    if (all) {
        for (unsigned i = 0; i < len; i++) y->ids[y->n++] = t->fallback[s[i]];
        return;
    }
    if (t->unk == KK_TOK_NONE) return;
    if (y->unk && !t->fuse_unk) y->ids[y->n++] = t->unk;
    y->unk = 1;
}

static void collect(const struct kk_tok *t, struct symbols *y, const u8 *s, size_t len)
{
    u8 b[4];
    for (size_t i = 0; i < len;) {
        uint32_t id, cp;
        unsigned n = 1;
        const u8 *c = s + i;
        if (t->byte_level) {
            id = t->byte_id[*c];
        } else {
            n = kk__utf8_get(c, &cp);
            id = cp < 65536 ? t->char_id[cp] : kk__vocab_find(t, c, n, ENT_MODEL);
        }
        i += n;
        if (id != KK_TOK_NONE) {
            push_known(t, y, id);
        } else {
            if (t->byte_level) {
                n = kk__utf8_put(b, kk__byte_char(*c));
                c = b;
            }
            push_unknown(t, y, c, n);
        }
    }
    if (y->unk) y->ids[y->n++] = t->unk;
}

/* ---- merging ------------------------------------------------------------------------------ */

static uint32_t rank_of(const struct kk_tok *t, uint32_t a, uint32_t b, uint32_t *id)
{
    const struct tok_merge *m = kk__merge_find(t, a, b);
    if (!m) return KK_TOK_NONE;
    *id = m->id;
    return m->rank;
}

static size_t merge_short(const struct kk_tok *t, uint32_t *ids, size_t n)
{
    uint32_t rank[SHORT_PIECE], into[SHORT_PIECE];
    for (size_t i = 0; i + 1 < n; i++) rank[i] = rank_of(t, ids[i], ids[i + 1], &into[i]);
    while (n > 1) {
        size_t best = 0;
        for (size_t i = 1; i + 1 < n; i++)
            if (rank[i] < rank[best]) best = i;
        if (rank[best] == KK_TOK_NONE) break;
        ids[best] = into[best];
        n--;
        for (size_t i = best + 1; i < n; i++) {
            ids[i] = ids[i + 1];
            rank[i - 1] = rank[i];
            /* NOLINTNEXTLINE(clang-analyzer-core.uninitialized.Assign): set with its rank */
            into[i - 1] = into[i];
        }
        if (best) rank[best - 1] = rank_of(t, ids[best - 1], ids[best], &into[best - 1]);
        if (best + 1 < n) rank[best] = rank_of(t, ids[best], ids[best + 1], &into[best]);
    }
    return n;
}

static void sift_down(struct heap_ent *h, size_t n, size_t i)
{
    struct heap_ent x = h[i];
    for (size_t c; (c = 2 * i + 1) < n; i = c) {
        if (c + 1 < n && h[c + 1].order < h[c].order) c++;
        if (x.order <= h[c].order) break;
        h[i] = h[c];
    }
    h[i] = x;
}

static void heap_push(struct heap_ent *h, size_t *n, struct heap_ent x)
{
    size_t i = (*n)++;
    for (; i && x.order < h[(i - 1) / 2].order; i = (i - 1) / 2) h[i] = h[(i - 1) / 2];
    h[i] = x;
}

/* The pair that starts at position i, if it can merge. */
static int candidate(const struct tok_enc *e, int32_t i, struct heap_ent *x)
{
    if (i < 0 || e->sym[i].next < 0) return 0;
    uint32_t rank = rank_of(e->t, e->sym[i].id, e->sym[e->sym[i].next].id, &x->id);
    x->order = (uint64_t)rank << 32 | (uint32_t)i;
    return rank != KK_TOK_NONE;
}

/* A candidate is stale when its left symbol is gone or its pair now makes another token. */
static int is_live(const struct tok_enc *e, struct heap_ent x)
{
    struct heap_ent now;
    int32_t i = (int32_t)(uint32_t)x.order;
    return e->sym[i].id != KK_TOK_NONE && candidate(e, i, &now) && now.id == x.id;
}

static size_t merge_long(struct tok_enc *e, uint32_t *ids, size_t n)
{
    size_t n_heap = 0;
    struct heap_ent x;
    for (size_t i = 0; i < n; i++)
        e->sym[i] = (struct sym){ids[i], (int32_t)i - 1, i + 1 < n ? (int32_t)i + 1 : -1};
    for (size_t i = 0; i + 1 < n; i++)
        if (candidate(e, (int32_t)i, &x)) e->heap[n_heap++] = x;
    for (size_t i = n_heap / 2; i--;) sift_down(e->heap, n_heap, i);
    while (n_heap) {
        x = e->heap[0];
        e->heap[0] = e->heap[--n_heap];
        if (n_heap) sift_down(e->heap, n_heap, 0);
        if (!is_live(e, x)) continue;
        int32_t at = (int32_t)(uint32_t)x.order;
        struct sym *left = &e->sym[at], *right = &e->sym[left->next];
        left->id = x.id;
        left->next = right->next;
        right->id = KK_TOK_NONE;
        if (left->next >= 0) e->sym[left->next].prev = at;
        if (candidate(e, left->prev, &x)) heap_push(e->heap, &n_heap, x);
        if (candidate(e, at, &x)) heap_push(e->heap, &n_heap, x);
    }
    size_t k = 0;
    for (int32_t i = 0; i >= 0; i = e->sym[i].next) ids[k++] = e->sym[i].id;
    return k;
}

/* ---- the piece ---------------------------------------------------------------------------- */

static int grow(void **p, size_t n, size_t size, struct kk_err *err)
{
    void *q = kk_realloc(*p, n, size);
    if (!q) return kk_fail(err, KK_ENOMEM, "out of memory");
    *p = q;
    return 0;
}

/* Room for every symbol of a piece of len bytes. */
static int reserve_ids(struct tok_enc *e, size_t len)
{
    size_t need = 2 * len + 2; /* a byte spelled in two bytes, each its own fallback token */
    if (need <= e->ids_cap) return 0;
    if (need > INT32_MAX) return kk_fail(e->err, KK_ERANGE, "text too long for the tokenizer");
    if (need < 2 * e->ids_cap) need = 2 * e->ids_cap;
    if (need < 256) need = 256;
    int rc = grow((void **)&e->ids, need, sizeof *e->ids, e->err);
    if (!rc) e->ids_cap = need;
    return rc;
}

static int reserve_merge(struct tok_enc *e, size_t n)
{
    if (n <= e->sym_cap) return 0;
    if (n < 2 * e->sym_cap) n = 2 * e->sym_cap;
    int rc = grow((void **)&e->sym, n, sizeof *e->sym, e->err);
    if (!rc) rc = grow((void **)&e->heap, 2 * n, sizeof *e->heap, e->err);
    if (!rc) e->sym_cap = n;
    return rc;
}

/* ignore_merges: a piece that is a token is that token. */
static int whole(struct tok_enc *e, const u8 *s, size_t len, uint32_t *id)
{
    const struct kk_tok *t = e->t;
    *id = KK_TOK_NONE;
    if (len > t->max_len) return 0;
    if (!t->byte_level) {
        *id = kk__vocab_find(t, s, len, ENT_MODEL);
        return 0;
    }
    kk_buf_reset(&e->spelled);
    for (size_t i = 0; i < len; i++) {
        u8 b[4];
        unsigned n = kk__utf8_put(b, kk__byte_char(s[i]));
        int rc = kk_buf_append(&e->spelled, b, n);
        if (rc) return kk__buf_err(rc, e->err);
    }
    *id = kk__vocab_find(t, e->spelled.data, e->spelled.len, ENT_MODEL);
    return 0;
}

static int append(struct tok_enc *e, const uint32_t *ids, size_t n)
{
    for (size_t i = 0; i < n; i++)
        if (kk_ids_push(e->out, ids[i])) return kk_fail(e->err, KK_ENOMEM, "out of memory");
    return 0;
}

/* Merge ids[0..n), a run without cuts. */
static int merge_run(struct tok_enc *e, uint32_t *ids, size_t *n)
{
    if (*n <= SHORT_PIECE) {
        *n = merge_short(e->t, ids, *n);
        return 0;
    }
    int rc = reserve_merge(e, *n);
    if (!rc) *n = merge_long(e, ids, *n);
    return rc;
}

static int merge_cut(struct tok_enc *e, uint32_t *ids, size_t *n)
{
    size_t out = 0;
    for (size_t i = 0, end; i < *n; i = end) {
        for (end = i + 1; end < *n && kk__may_join(e->t, ids[end - 1], ids[end]);) end++;
        size_t k = end - i;
        int rc = merge_run(e, ids + i, &k);
        if (rc) return rc;
        memmove(ids + out, ids + i, k * sizeof *ids);
        out += k;
    }
    *n = out;
    return 0;
}

int kk__bpe(struct tok_enc *e, const u8 *s, size_t len)
{
    if (e->t->ignore_merges) {
        uint32_t id;
        int rc = whole(e, s, len, &id);
        if (rc || id != KK_TOK_NONE) return rc ? rc : append(e, &id, 1);
    }
    int rc = reserve_ids(e, len);
    if (rc) return rc;
    struct symbols y = {.ids = e->ids};
    collect(e->t, &y, s, len);
    rc =
        y.n > SHORT_PIECE && !e->t->no_cuts ? merge_cut(e, y.ids, &y.n) : merge_run(e, y.ids, &y.n);
    return rc ? rc : append(e, y.ids, y.n);
}
