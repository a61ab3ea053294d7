/* Continuous batching: which sessions read and write in the next round.
 *
 * Writers come first: every one has a place, or they take turns where there are more than a round
 * holds; then a place is left to those that read in every READ_EVERY-th round, so that they are not
 * kept out for as long as others write. Reads fill the round up to a budget of rows that keeps it
 * within three times the time of the writes alone, so that a long prompt does not stall the others;
 * the budget is shared by all that read. With nobody writing a round reads as much as a step may
 * hold. */
#include <string.h>
#include <sys/random.h>

#include "base/clock.h"
#include "engine/runtime_int.h"
#include "spec/spec.h"

enum { LEAST_READ = 16, READ_QUANTUM = 64, READ_EVERY = 4 };

/* ---- starting calls ----------------------------------------------------------------------- */

/* A session that has read nothing may begin as a fork of what others have read. */
static int begin_append(struct kk_runtime *rt, struct resident *n, const struct kk_call *c,
                        struct kk_err *err)
{
    const size_t had = n->s ? n->s->n : (size_t)n->info.history;
    int rc = kk__ids_check(rt->e, had, c->r.ids, c->r.n, err);
    if (!rc && !had && c->r.n > 1) kk__prefix_take(rt, n, c->r.ids, c->r.n);
    return rc;
}

static int start_append(struct resident *n, struct kk_call *c, struct kk_err *err)
{
    struct kk_session *s = n->s;
    int rc = 0;
    size_t taken = s->n - (size_t)c->base; /* of a known prefix */
    const uint32_t *rest = c->r.ids + taken;
    size_t k = c->r.n - taken;
    rc = kk__history_reserve(s, k, err);
    if (rc) return rc;
    if (k) memcpy(s->history + s->n, rest, k * sizeof *rest);
    s->n += k;
    return 0;
}

static int start_generate(struct resident *n, struct kk_call *c, struct kk_err *err)
{
    int rc = kk__step_allowed(n->s, err);
    if (rc) return rc;
    c->left = c->r.max_tokens;
    if (c->r.seed_unset && c->r.sampling.temperature > 0 &&
        getrandom(&c->r.sampling.seed, sizeof c->r.sampling.seed, 0) < 0)
        return kk_fail(err, KK_EIO, "no random numbers for a seed");
    c->done.seed = c->r.sampling.seed;
    return 0;
}

static void truncated(struct kk_call *c, const struct kk_session *s)
{
    int64_t dropped = kk_kv_dropped(s->kv);
    if (dropped > 0)
        c->r.sink(c->r.arg,
                  &(struct kk_event){.kind = KK_EVENT_TRUNCATED, .dropped = (uint64_t)dropped});
}

/* 0, or -1: n is gone. */
static int close_session(struct kk_runtime *rt, struct resident *n, struct kk_call *c)
{
    c->done.history = n->s ? n->s->n : (uint64_t)n->info.history;
    int64_t seq = 0;
    if (n->entry) {
        struct kk_err err = {0};
        seq = kk_journal_remove(rt->journal, n->entry, &err);
        if (seq < 0) {
            kk__call_end(c, (int)seq, "%s", err.msg);
            return 0;
        }
        n->entry = NULL;
        n->seq = seq;
    }
    kk__call_end(c, 0, "%s", "");
    while (n->head) kk__call_end(n->head, KK_ENOENT, "session '%s' was closed", n->id);
    rt->stats.closed++;
    kk__resident_remove(rt, n);
    return -1;
}

/* Somebody else holds rows and goes on, so that there will be room. */
static int others_run(const struct kk_runtime *rt, const struct resident *n)
{
    for (const struct resident *a = rt->active.first; a; a = a->next)
        if (a != n && a->s && a->head->started) return 1;
    return 0;
}

/* The call at the head of n's line begins. 0: it has ended; -1: and n is gone. */
static int start(struct kk_runtime *rt, struct resident *n)
{
    struct kk_call *c = n->head;
    struct kk_err err = {0};
    int rc = 0;
    c->started = 1;
    c->started_ns = kk_now_ns();
    c->done.queued_s = (double)(c->started_ns - c->submitted_ns) * 1e-9;
    if (c->r.kind == KK_REQUEST_CLOSE) return close_session(rt, n, c);
    if (c->r.kind == KK_REQUEST_FORK) {
        rc = kk__resident_fork(rt, n, c, &err);
        int64_t seq = c->done_seq;
        kk__call_end(c, rc, "%s", err.msg);
        if (!rc) c->done_seq = seq;
        return 0;
    }
    c->base = n->s ? (int64_t)n->s->n : n->info.history;
    if (c->r.kind == KK_REQUEST_APPEND) rc = begin_append(rt, n, c, &err);
    if (!rc) rc = kk__resident_wake(rt, n, &err);
    KK_BUG_ON(!rc && !n->s);
    if (rc == KK_EBUSY && others_run(rt, n)) { /* in line for their rows' place */
        c->started = 0;
        return 1;
    }
    if (!rc && c->r.kind == KK_REQUEST_APPEND) rc = start_append(n, c, &err);
    if (!rc && c->r.kind == KK_REQUEST_GENERATE) rc = start_generate(n, c, &err);
    kk__resident_count(rt, n);
    c->done.history = n->s ? n->s->n : (uint64_t)n->info.history;
    if (rc || (c->r.kind == KK_REQUEST_APPEND && !c->r.n)) {
        kk__call_end(c, rc, "%s", err.msg);
        return 0;
    }
    KK_BUG_ON(!n->s);
    if (c->r.kind == KK_REQUEST_GENERATE) truncated(c, n->s);
    return 1;
}

/* ---- a call ends -------------------------------------------------------------------------- */

/* A read that was cut short keeps what was committed, and one pending token after it. */
void kk__call_cut(struct kk_runtime *rt, struct kk_call *c)
{
    struct resident *n = c->on;
    c->done.history = n->s ? n->s->n : (uint64_t)n->info.history;
    if (!c->started || !n->s) return;
    if (c->r.kind == KK_REQUEST_APPEND) {
        int64_t rows = kk_kv_rows(n->s->kv), keep = rows + 1 > c->base ? rows + 1 : c->base;
        if (keep < (int64_t)n->s->n) n->s->n = (size_t)keep;
        n->checkpoint = 0;
    }
    c->done.history = n->s->n;
    kk__resident_journal(rt, n, NULL);
}

static void fail(struct kk_runtime *rt, struct resident *n, int code, const char *msg)
{
    struct kk_call *c = n->head;
    rt->stats.failed++;
    if (code == KK_EINVARIANT) {
        n->inv1++;
        rt->stats.inv1_violations++;
    }
    kk__call_end(c, code, "%s", msg);
    if (code != KK_EINVARIANT) return;
    while (n->head) kk__call_end(n->head, KK_EINVARIANT, "%s", msg);
    kk__resident_remove(rt, n);
}

/* ---- a round ------------------------------------------------------------------------------ */

static int emit(struct kk_turn *t, uint32_t id)
{
    struct resident *n = t->arg;
    struct kk_call *c = n->head;
    if (!c->first_ns) c->first_ns = kk_now_ns();
    c->out[c->n_out] = id;
    c->out_seq[c->n_out++] = INT64_MAX; /* until it is in the journal's queue */
    c->left--;
    c->done.tokens++;
    c->done.stop = KK_STOP_MAX_TOKENS;
    if (kk__is_eos(t->s, id) && !t->p->ignore_eos) {
        c->done.stop = KK_STOP_EOS;
        return c->stopping = 1;
    }
    return c->stopping = c->left == 0;
}

static int64_t behind(const struct resident *n)
{
    return (int64_t)n->s->n - 1 - kk_kv_rows(n->s->kv);
}

/* Rows of `most` that n may read now: not over the place where its prefix is to be kept. */
static int32_t rows_to_read(const struct resident *n, int64_t most)
{
    int64_t rows = behind(n);
    if (n->checkpoint && n->checkpoint > kk_kv_rows(n->s->kv) &&
        n->checkpoint - kk_kv_rows(n->s->kv) < rows)
        rows = n->checkpoint - kk_kv_rows(n->s->kv);
    if (kk__session_rows_max(n->s->e) < rows) rows = kk__session_rows_max(n->s->e);
    return (int32_t)(rows < most ? rows : most);
}

static int64_t read_budget(const struct kk_runtime *rt, int writes)
{
    int64_t most = rt->e->kv_limits.max_chunk_rows;
    double base, slope;
    if (!writes) return most;
    if (rt->o.step_rows < most) most = rt->o.step_rows;
    most -= writes;
    if (kk_row_cost_fit(&rt->costs, &base, &slope)) {
        double rows = (3 * (base + slope * writes) - base) / slope - writes;
        if (rows < (double)most) most = rows < LEAST_READ ? LEAST_READ : (int64_t)rows;
    } else if (most > LEAST_READ) {
        most = LEAST_READ;
    }
    return most < 1 ? 1 : most; /* more writes than a step may have rows */
}

static int wants_to_read(const struct resident *n)
{
    return n->head->started && n->s && behind(n) > 0;
}

static int add_writes(struct kk_runtime *rt, int most)
{
    int n = 0;
    for (struct resident *a = rt->active.first; a && n < most; a = a->next) {
        struct kk_call *c = a->head;
        int room = OUT_TOKENS - c->n_out;
        if (!c->started || !a->s || c->r.kind != KK_REQUEST_GENERATE || behind(a) > 0) continue;
        if (c->stopping || atomic_load(&c->full) || room < 1) continue;
        if (c->left < room) room = (int)c->left;
        rt->turn[n++] =
            (struct kk_turn){.s = a->s, .p = &c->r.sampling, .most = room, .emit = emit, .arg = a};
    }
    return n;
}

/* A first pass gives every reader a share, a second one what is left. */
static int add_reads(struct kk_runtime *rt, int n, int64_t budget)
{
    const int first = n;
    for (struct resident *a = rt->active.first; a && n < rt->e->kv_limits.max_seqs && budget > 0;
         a = a->next) {
        if (!wants_to_read(a)) continue;
        int32_t rows = rows_to_read(a, budget < READ_QUANTUM ? budget : READ_QUANTUM);
        rt->turn[n++] = (struct kk_turn){.s = a->s, .read = rows, .arg = a};
        budget -= rows;
    }
    for (int i = first; i < n && budget > 0; i++) {
        int32_t rows = rows_to_read(rt->turn[i].arg, rt->turn[i].read + budget);
        budget -= rows - rt->turn[i].read;
        rt->turn[i].read = rows;
    }
    return n;
}

/* Those of the next round. */
static int choose_turns(struct kk_runtime *rt)
{
    const int left = rt->unread >= READ_EVERY - 1; /* a place, or the only one */
    const int most = kk__round_most_writes(rt->e), places = rt->e->kv_limits.max_seqs;
    int writes = add_writes(rt, left && most == places ? most - 1 : most);
    int n = add_reads(rt, writes, read_budget(rt, writes || !left ? writes : 1)), waits = 0;
    for (const struct resident *a = rt->active.first; n == writes && a && !waits; a = a->next)
        waits = wants_to_read(a);
    rt->unread = waits ? rt->unread + 1 : 0;
    return n;
}

/* Device bytes that the turns may still take. */
static int64_t growth(const struct kk_runtime *rt, int n)
{
    int64_t bytes = 0;
    for (int i = 0; i < n; i++) {
        const struct kk_turn *t = &rt->turn[i];
        const int32_t width = t->s->drafter ? KK_MAX_WIDTH : 1;
        bytes += kk_kv_growth(t->s->kv, t->read ? t->read : width);
    }
    return bytes;
}

/* Fewer turns, until there is room for what they may take. 0: one call had to fail. */
static int fit_bytes(struct kk_runtime *rt, int n)
{
    struct kk_err err = {0};
    if (!rt->o.kv_bytes) return n;
    for (int i = 0; i < n; i++) ((struct resident *)rt->turn[i].arg)->in_round = 1;
    const int all = n;
    while (n > 0) {
        const int64_t bytes = growth(rt, n);
        if (!kk__residents_make_room(rt, bytes, 1, &err)) break;
        if (growth(rt, n) < bytes) continue; /* what it shared with those who went is its own */
        ((struct resident *)rt->turn[--n].arg)->in_round = 0;
    }
    for (int i = 0; i < n; i++) ((struct resident *)rt->turn[i].arg)->in_round = 0;
    if (!n && all) fail(rt, rt->turn[0].arg, KK_EEXHAUSTED, err.msg);
    return n;
}

/* ---- after a round ------------------------------------------------------------------------ */

/* New tokens of n into the journal, and their numbers. Behind a full queue they wait, and the next
 * round tries again. */
static int journal(struct kk_runtime *rt, struct resident *n, struct kk_call *c)
{
    int rc = kk__resident_journal(rt, n, NULL);
    for (int i = c->n_out; !rc && i-- > 0 && c->out_seq[i] == INT64_MAX;) c->out_seq[i] = n->seq;
    return rc;
}

static void after_write(struct kk_runtime *rt, struct resident *n, const struct kk_turn *t)
{
    struct kk_call *c = n->head;
    c->done.steps++;
    c->done.drafted += t->drafted;
    c->done.accepted += t->accepted;
    c->done.history = n->s->n;
    rt->stats.tokens_generated += (uint64_t)t->tokens;
    rt->stats.drafted += (uint64_t)t->drafted;
    rt->stats.accepted += (uint64_t)t->accepted;
    kk__call_has_output(c);
    journal(rt, n, c);
}

static void after_read(struct kk_runtime *rt, struct resident *n, const struct kk_turn *t)
{
    rt->stats.tokens_appended += (uint64_t)t->read;
    if (n->checkpoint && kk_kv_rows(n->s->kv) == n->checkpoint) {
        n->checkpoint = 0;
        kk__prefix_keep(rt, n);
    }
}

/* A call whose work is done, and in the journal's queue, ends. 1: it did. */
static int finish(struct kk_runtime *rt, struct resident *n)
{
    struct kk_call *c = n->head;
    if (!c->started || !n->s || behind(n) > 0) return 0;
    if (c->r.kind == KK_REQUEST_GENERATE && !c->stopping) {
        if ((int64_t)n->s->n < rt->e->ctx) return 0;
        c->done.stop = KK_STOP_CTX;
        c->stopping = 1;
    }
    if (journal(rt, n, c)) return 0;
    c->done.history = n->s->n;
    uint64_t first = c->first_ns ? c->first_ns : kk_now_ns();
    c->done.prefill_s = (double)(first - c->started_ns) * 1e-9;
    if (c->r.kind == KK_REQUEST_APPEND) kk__prefix_keep(rt, n);
    kk__call_end(c, 0, "%s", "");
    return 1;
}

static void round_failed(struct kk_runtime *rt, int n, int rc, const char *msg)
{
    int who = rt->e->failed_turn;
    if ((rc == KK_ENOMEM || rc == KK_EEXHAUSTED) && kk__prefix_drop_oldest(rt)) return;
    for (int i = 0; i < n; i++)
        if (who < 0 || i == who) fail(rt, rt->turn[i].arg, rc, msg);
}

static void do_round(struct kk_runtime *rt, int n)
{
    struct kk_err err = {0};
    uint64_t t0 = kk_now_ns();
    int rows = 0;
    int rc = kk__round(rt->e, rt->turn, n, &err);
    if (rc) {
        round_failed(rt, n, rc, err.msg);
        return;
    }
    double seconds = kk_seconds_since(t0);
    for (int i = 0; i < n; i++) {
        const struct kk_turn *t = &rt->turn[i];
        struct resident *r = t->arg;
        rows += t->read ? t->read : t->drafted + 1;
        kk__resident_count(rt, r);
        if (t->read)
            after_read(rt, r, t);
        else
            after_write(rt, r, t);
        kk__list_remove(&rt->active, r); /* the next round begins with others */
        kk__list_append(&rt->active, r);
        if (t->rc) fail(rt, r, t->rc, t->err.msg);
    }
    kk_row_cost_note(&rt->costs, rows, seconds);
    rt->stats.steps++;
    rt->stats.rows += (uint64_t)rows;
    rt->stats.step_seconds += seconds;
}

int kk__schedule(struct kk_runtime *rt)
{
    for (struct resident *a = rt->active.first, *next; a; a = next) {
        next = a->next;
        if (a->head->started && !a->s) kk__resident_wake(rt, a, NULL); /* it was paged out */
        for (int goes_on = 1; goes_on && !a->head->started;)
            goes_on = start(rt, a) == 0 && a->is_active;
    }
    int n = choose_turns(rt);
    if (n) n = fit_bytes(rt, n);
    if (n) do_round(rt, n);
    int ended = 0;
    for (struct resident *a = rt->active.first, *next; a; a = next) {
        next = a->next;
        ended += finish(rt, a);
    }
    return n > 0 || ended > 0;
}
