/* What a journal must hold. Token i of a session's history is a function of its key and i, so the
 * model needs no history; a fork has its parent's keys up to a position. */
#ifndef KK_JOURNAL_MODEL_H
#define KK_JOURNAL_MODEL_H

#include "unit/engine/journal_test.h"

#include "base/rng.h"

enum { MODEL_SESSIONS = 40, PARENTS = 4 };

/* Histories of forks of forks: key[k] holds up to until[k]. */
struct model_session {
    int live;
    char id[41];
    uint64_t key[PARENTS], until[PARENTS];
    int n_keys;
    uint64_t tokens;
    int64_t snapshot_rows; /* 0: none; the file is "snap-<rows>" */
};

struct model {
    struct model_session s[MODEL_SESSIONS];
    uint64_t made;
};

static inline uint32_t model_token(const struct model_session *s, uint64_t i)
{
    int k = 0;
    while (k < s->n_keys - 1 && i >= s->until[k]) k++;
    return (uint32_t)kk_rng_at(s->key[k], i);
}

/* One random operation. It is made up first, then done to the model or to the journal, or both. */
struct model_op {
    enum { OP_CREATE, OP_FORK, OP_APPEND, OP_SNAPSHOT, OP_NO_SNAPSHOT, OP_REMOVE } kind;
    int at, parent; /* places in the model */
    uint64_t n;     /* tokens appended, taken from a parent; rows */
};

static inline struct model_op model_random(const struct model *m, struct kk_test_rng *r)
{
    struct model_op op = {.at = kk_test_between(r, 0, MODEL_SESSIONS - 1)};
    const struct model_session *s = &m->s[op.at];
    int dice = kk_test_between(r, 0, 99);
    if (!s->live) {
        op.parent = kk_test_between(r, 0, MODEL_SESSIONS - 1);
        const struct model_session *p = &m->s[op.parent];
        op.kind = OP_CREATE;
        if (dice < 50 && p->live && p->n_keys < PARENTS) {
            op.kind = OP_FORK;
            op.n = kk_test_below(r, (uint32_t)p->tokens + 1);
        }
    } else if (dice < 4) {
        op.kind = OP_REMOVE;
    } else if (dice < 8 && s->tokens) {
        op.kind = OP_SNAPSHOT;
        op.n = s->tokens;
    } else if (dice < 10) {
        op.kind = OP_NO_SNAPSHOT;
    } else {
        op.kind = OP_APPEND;
        op.n = dice < 95 ? 1 + kk_test_below(r, 3) : 1 + kk_test_below(r, 3000);
    }
    return op;
}

static inline void model_apply(struct model *m, const struct model_op *op)
{
    struct model_session *s = &m->s[op->at];
    switch (op->kind) {
    case OP_CREATE:
    case OP_FORK:
        *s = (struct model_session){.live = 1};
        if (op->kind == OP_FORK) {
            *s = m->s[op->parent];
            s->until[s->n_keys - 1] = op->n;
            for (int k = 0; k < s->n_keys; k++)
                if (s->until[k] > op->n) s->until[k] = op->n;
            s->tokens = op->n;
            s->snapshot_rows = 0;
        }
        s->key[s->n_keys++] = ++m->made;
        snprintf(s->id, sizeof s->id, "s%llu", (unsigned long long)m->made);
        break;
    case OP_APPEND:
        s->tokens += op->n;
        break;
    case OP_SNAPSHOT:
        s->snapshot_rows = (int64_t)op->n;
        break;
    case OP_NO_SNAPSHOT:
        s->snapshot_rows = 0;
        break;
    case OP_REMOVE:
        s->live = 0;
        break;
    }
}

/* ---- model against journal ---- */

struct model_entries {
    struct kk_journal_entry *e[MODEL_SESSIONS];
};

/* The same operation on a journal, before it is applied to the model m. */
static inline int64_t model_send(const struct model *m, const struct model_op *op,
                                 struct kk_journal *j, struct model_entries *t, struct kk_err *err)
{
    static const uint32_t eos[2] = {7, 0xfffffffeu};
    static uint32_t ids[3000];
    const struct model_session *s = &m->s[op->at];
    struct kk_journal_entry **e = &t->e[op->at];
    char name[41];
    switch (op->kind) {
    case OP_CREATE:
        snprintf(name, sizeof name, "s%llu", (unsigned long long)m->made + 1);
        return kk_journal_create(j, name, "a label", eos, 2, e, err);
    case OP_FORK:
        snprintf(name, sizeof name, "s%llu", (unsigned long long)m->made + 1);
        return kk_journal_fork(j, t->e[op->parent], op->n, name, "a label", e, err);
    case OP_APPEND:
        for (uint64_t i = 0; i < op->n; i++) ids[i] = model_token(s, s->tokens + i);
        return kk_journal_append(j, *e, s->tokens, ids, op->n, err);
    case OP_SNAPSHOT:
        snprintf(name, sizeof name, "snap-%llu", (unsigned long long)op->n);
        return kk_journal_note_snapshot(j, *e, name, (int64_t)op->n, 12345, err);
    case OP_NO_SNAPSHOT:
        return kk_journal_drop_snapshot(j, *e, err);
    case OP_REMOVE:
        return kk_journal_remove(j, *e, err);
    }
    return 0;
}

struct model_seen {
    const struct model *m; /* NULL: anything goes */
    struct model_entries *t;
    struct model_session s[MODEL_SESSIONS]; /* id, tokens, snapshot rows, as they are found */
    int n;
};

static inline int model_find(const struct model *m, const char *id)
{
    for (int i = 0; i < MODEL_SESSIONS; i++)
        if (m->s[i].live && !strcmp(m->s[i].id, id)) return i;
    return -1;
}

/* A callback of kk_journal_each: the session is in the model, and as the model has it. */
static inline int model_check(void *arg, const struct kk_journal_session *s, struct kk_err *err)
{
    struct model_seen *seen = arg;
    int at = model_find(seen->m, s->id);
    if (at < 0) return kk_fail(err, KK_EINVAL, "%s should not be here", s->id);
    const struct model_session *want = &seen->m->s[at];
    char file[41];
    if (s->n != want->tokens)
        return kk_fail(err, KK_EINVAL, "%s: %zu tokens, not %llu", s->id, s->n,
                       (unsigned long long)want->tokens);
    for (size_t i = 0; i < s->n; i++)
        if (s->ids[i] != model_token(want, i))
            return kk_fail(err, KK_EINVAL, "%s: token %zu is wrong", s->id, i);
    snprintf(file, sizeof file, "snap-%lld", (long long)want->snapshot_rows);
    if (want->snapshot_rows
            ? !s->snapshot || strcmp(s->snapshot, file) ||
                  s->snapshot_rows != want->snapshot_rows || s->snapshot_bytes != 12345
            : s->snapshot != NULL)
        return kk_fail(err, KK_EINVAL, "%s: wrong snapshot", s->id);
    if (strcmp(s->label, "a label") || s->n_eos != 2 || s->eos[0] != 7 ||
        s->eos[1] != 0xfffffffeu || kk_journal_tokens(s->entry) != s->n || s->created < 1 ||
        s->active < s->created)
        return kk_fail(err, KK_EINVAL, "%s: wrong particulars", s->id);
    seen->t->e[at] = s->entry;
    seen->n++;
    return 0;
}

/* The journal holds exactly the model; its entries into t. */
static inline void model_expect(const struct model *m, struct kk_journal *j,
                                struct model_entries *t)
{
    struct model_seen seen = {.m = m, .t = t};
    struct kk_err err = {0};
    int live = 0;
    KK_ASSERT_OK(kk_journal_each(j, model_check, &seen, &err), &err);
    for (int i = 0; i < MODEL_SESSIONS; i++) live += m->s[i].live;
    assert_int_equal(seen.n, live);
}

#endif
