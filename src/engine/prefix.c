/* Prompts that begin alike are read once.
 *
 * An entry is a session at rest whose history is some prompt's beginning; a new session whose
 * prompt begins so becomes a fork of it. Two kinds of places are kept: the end of a long prompt,
 * and the place where a prompt parts from one read before (found by the hashes of its multiples of
 * STEP tokens): with agents that share a system prompt, the second one keeps it for all others.
 *
 * Entries that a session has begun with stay longer than those that nobody has asked for: every
 * append leaves one, and a few appends would drive out what all share. */
#include <string.h>

#include "base/hash.h"
#include "base/mem.h"
#include "engine/runtime_int.h"

enum { STEP = 64, LEAST = 128, MOST = 16, MOST_USED = 12, SEEN = 1 << 15 };

struct prefixes {
    struct kk_session *entry[MOST]; /* first those that nobody has asked for, oldest first; then */
    int n, used;                    /* `used` others, by their latest use */
    uint64_t seen[SEEN]; /* hashes of beginnings that some session has read; a newer one wins */
};

int kk__prefixes_open(struct kk_runtime *rt, struct kk_err *err)
{
    rt->prefixes = kk_calloc(1, sizeof *rt->prefixes);
    return rt->prefixes ? 0 : kk_fail(err, KK_ENOMEM, "out of memory for the runtime");
}

static void remove_entry(struct prefixes *p, int i)
{
    kk_session_close(p->entry[i]);
    p->n--;
    memmove(&p->entry[i], &p->entry[i + 1], (size_t)(p->n - i) * sizeof p->entry[0]);
    if (p->used > p->n) p->used = p->n;
}

static void add_entry(struct prefixes *p, struct kk_session *s)
{
    const int at = p->n - p->used;
    memmove(&p->entry[at + 1], &p->entry[at], (size_t)p->used * sizeof p->entry[0]);
    p->entry[at] = s;
    p->n++;
}

/* A session has begun with entry i. Too many of those: the longest unused is as good as new. */
static void entry_is_used(struct prefixes *p, int i)
{
    struct kk_session *s = p->entry[i];
    const int was_used = i >= p->n - p->used;
    memmove(&p->entry[i], &p->entry[i + 1], (size_t)(p->n - 1 - i) * sizeof p->entry[0]);
    p->entry[p->n - 1] = s;
    if (!was_used && p->used < MOST_USED) p->used++;
}

int kk__prefix_drop_oldest(struct kk_runtime *rt)
{
    if (!rt->prefixes->n) return 0;
    remove_entry(rt->prefixes, 0);
    return 1;
}

void kk__prefixes_close(struct kk_runtime *rt)
{
    while (rt->prefixes && kk__prefix_drop_oldest(rt)) continue;
    kk_free(rt->prefixes);
}

/* Longest entry that ids begin with, or -1. */
static int longest(const struct prefixes *p, const uint32_t *ids, size_t len)
{
    int best = -1;
    for (int i = 0; i < p->n; i++) {
        const struct kk_session *s = p->entry[i];
        if (s->n <= len && (best < 0 || s->n > p->entry[best]->n) &&
            !memcmp(s->history, ids, s->n * sizeof *ids))
            best = i;
    }
    return best;
}

/* Note all beginnings of ids; the longest that was noted before, in tokens. */
static size_t note_beginnings(struct prefixes *p, const uint32_t *ids, size_t len)
{
    struct kk_hash h;
    size_t known = 0;
    kk_hash_init(&h, 0);
    for (size_t at = STEP; at <= len; at += STEP) {
        kk_hash_add(&h, ids + at - STEP, STEP * sizeof *ids);
        uint64_t v = kk_hash_value(&h), *slot = &p->seen[v % SEEN];
        if (*slot == v) known = at;
        *slot = v;
    }
    return known;
}

struct kk_session *kk__prefix_begin(struct kk_runtime *rt, struct resident *n, const uint32_t *ids,
                                    size_t len)
{
    struct prefixes *p = rt->prefixes;
    struct kk_session *fork = NULL;
    const size_t known = note_beginnings(p, ids, len);
    const int i = longest(p, ids, len);
    if (i >= 0 && !kk_session_fork(p->entry[i], &fork, NULL) &&
        kk_session_set_eos(fork, n->eos, n->n_eos, NULL)) {
        kk_session_close(fork);
        fork = NULL;
    }
    const size_t taken = fork ? fork->n : 0;
    if (fork) {
        rt->stats.prefix_hits++;
        rt->stats.prefix_hit_tokens += taken;
        entry_is_used(p, i);
    }
    n->checkpoint = known >= LEAST && known > taken && known < len ? (int64_t)known - 1 : 0;
    return fork;
}

void kk__prefix_take(struct kk_runtime *rt, struct resident *n, const uint32_t *ids, size_t len)
{
    struct kk_session *fork = kk__prefix_begin(rt, n, ids, len);
    if (!fork) return;
    if (n->s) {
        kk_session_close(n->s);
        n->s = fork;
    } else {
        n->s = fork;
        kk__resident_adopt(rt, n);
    }
}

void kk__prefix_keep(struct kk_runtime *rt, struct resident *n)
{
    struct prefixes *p = rt->prefixes;
    const size_t len = (size_t)kk_kv_rows(n->s->kv) + 1;
    struct kk_session *fork;
    int i = longest(p, n->s->history, len);
    if (len < LEAST || (i >= 0 && p->entry[i]->n == len)) return;
    if (p->n == MOST) remove_entry(p, 0);
    if (kk_session_fork(n->s, &fork, NULL)) return; /* no memory: nothing is kept */
    fork->n = len;
    add_entry(p, fork);
    kk__resident_count(rt, n);
}
