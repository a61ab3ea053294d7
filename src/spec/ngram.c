/* The n-gram drafter: no model, no device bytes. An index of token pairs, newest first, gives the
 * places where the history's last two tokens stood before; the longest common suffix wins, the
 * newest on ties. */
#include <string.h>

#include "base/mem.h"
#include "base/rng.h"
#include "spec/spec.h"

enum { MAX_LOOK = 64, LONGEST = 32 }; /* places compared, tokens compared at each */

struct ngram {
    struct kk_drafter base;
    size_t indexed; /* history positions whose pair is in the index */
    uint32_t *head; /* [n_heads] by hash of a pair: position of its last token + 1, or 0 */
    size_t n_heads; /* a power of two */
    uint32_t *prev; /* [cap] by position: the next older position + 1 of the same hash */
    size_t cap;
};

static size_t pair_slot(const struct ngram *g, uint32_t a, uint32_t b)
{
    return kk_mix64((uint64_t)a << 32 | b) & (g->n_heads - 1);
}

static void index_pairs(struct ngram *g, const uint32_t *history, size_t from, size_t to)
{
    for (size_t i = from < 1 ? 1 : from; i < to; i++) {
        size_t s = pair_slot(g, history[i - 1], history[i]);
        g->prev[i] = g->head[s];
        g->head[s] = (uint32_t)i + 1;
    }
}

/* Room for n positions; rebuilds the heads when there are too few. */
static int reserve(struct ngram *g, const uint32_t *history, size_t n, struct kk_err *err)
{
    if (n <= g->cap) return 0;
    size_t cap = g->cap ? g->cap : 1024;
    while (cap < n) cap *= 2;
    uint32_t *prev = kk_realloc(g->prev, cap, sizeof *prev);
    if (prev) g->prev = prev;
    uint32_t *head = prev ? kk_calloc(cap, sizeof *head) : NULL;
    if (!head) return kk_fail(err, KK_ENOMEM, "out of memory for the n-gram index");
    kk_free(g->head);
    g->head = head;
    g->n_heads = cap;
    g->cap = cap;
    index_pairs(g, history, 0, g->indexed);
    return 0;
}

/* Index the pairs of a history that has grown to n. */
static int extend(struct ngram *g, const uint32_t *history, size_t n, struct kk_err *err)
{
    int rc = reserve(g, history, n, err);
    if (rc || n <= g->indexed) return rc;
    index_pairs(g, history, g->indexed, n);
    g->indexed = n;
    return 0;
}

/* Tokens in common going back from ends a and b (a < b). */
static size_t common(const uint32_t *history, size_t a, size_t b)
{
    size_t n = 0;
    while (n < LONGEST && n <= a && history[a - n] == history[b - n]) n++;
    return n;
}

static int propose(struct kk_drafter *d, const uint32_t *history, size_t n, int most, uint32_t *out,
                   struct kk_err *err)
{
    struct ngram *g = (struct ngram *)d;
    int rc = extend(g, history, n, err);
    if (rc) return rc;
    if (n < KK_NGRAM_MIN + 1) return 0;
    size_t best = 0, at = 0, last = n - 1;
    uint32_t i = g->head[pair_slot(g, history[last - 1], history[last])];
    for (int look = 0; i && look < MAX_LOOK; look++, i = g->prev[i - 1]) {
        if (i - 1 >= last) continue; /* the end itself */
        size_t k = common(history, i - 1, last);
        if (k > best) {
            best = k;
            at = i - 1;
        }
    }
    if (best < KK_NGRAM_MIN) return 0;
    int k = 0;
    while (k < most && at + 1 + (size_t)k < n) {
        out[k] = history[at + 1 + (size_t)k];
        k++;
    }
    return k;
}

static void close_ngram(struct kk_drafter *d)
{
    struct ngram *g = (struct ngram *)d;
    kk_free(g->head);
    kk_free(g->prev);
    kk_free(g);
}

int kk_ngram_open(struct kk_drafter **out, struct kk_err *err)
{
    static const struct kk_drafter_ops ops = {
        .name = "ngram", .propose = propose, .close = close_ngram};
    struct ngram *g = kk_calloc(1, sizeof *g);
    if (!g) return kk_fail(err, KK_ENOMEM, "out of memory for the n-gram drafter");
    g->base.ops = &ops;
    *out = &g->base;
    return 0;
}

/* ---- always wrong ------------------------------------------------------------------------- */

struct wrong {
    struct kk_drafter base;
    uint32_t vocabulary;
};

/* Almost surely wrong: a hash of the history's end. */
static int propose_wrong(struct kk_drafter *d, const uint32_t *history, size_t n, int most,
                         uint32_t *out, struct kk_err *err)
{
    (void)err;
    for (int i = 0; i < most; i++)
        out[i] = (uint32_t)(kk_rng_at(history[n - 1] + n, (uint64_t)i) %
                            ((struct wrong *)d)->vocabulary);
    return most;
}

static void close_wrong(struct kk_drafter *d)
{
    kk_free(d);
}

int kk_wrong_open(uint32_t vocabulary, struct kk_drafter **out, struct kk_err *err)
{
    static const struct kk_drafter_ops ops = {
        .name = "wrong", .propose = propose_wrong, .close = close_wrong};
    struct wrong *w = kk_calloc(1, sizeof *w);
    if (!w) return kk_fail(err, KK_ENOMEM, "out of memory for a drafter");
    w->base.ops = &ops;
    w->vocabulary = vocabulary;
    *out = &w->base;
    return 0;
}
