/* Named sessions: found by id, admitted by bytes, forgotten when idle. */
#include <stdio.h>
#include <string.h>
#include <sys/random.h>

#include "base/clock.h"
#include "base/mem.h"
#include "base/rng.h"
#include "engine/runtime_int.h"

/* ---- lists and the table ------------------------------------------------------------------ */

void kk__list_append(struct list *l, struct resident *n)
{
    n->next = NULL;
    n->prev = l->last;
    *(l->last ? &l->last->next : &l->first) = n;
    l->last = n;
    l->n++;
}

void kk__list_remove(struct list *l, struct resident *n)
{
    *(n->prev ? &n->prev->next : &l->first) = n->next;
    *(n->next ? &n->next->prev : &l->last) = n->prev;
    n->prev = n->next = NULL;
    l->n--;
}

static struct resident **place(const struct kk_runtime *rt, const char *id)
{
    struct resident **at = &rt->bucket[kk_fnv1a(id, strlen(id)) & (rt->n_buckets - 1)];
    while (*at && strcmp((*at)->id, id)) at = &(*at)->hash_next;
    return at;
}

struct resident *kk__resident_find(const struct kk_runtime *rt, const char *id)
{
    return *place(rt, id);
}

/* Twice the buckets; a table that cannot grow stays as it is. */
static void grow_table(struct kk_runtime *rt)
{
    const size_t old = rt->n_buckets;
    struct resident **from = rt->bucket, **to = kk_calloc(old * 2, sizeof(struct resident *));
    if (!to) return;
    rt->bucket = to;
    rt->n_buckets = old * 2;
    for (size_t i = 0; i < old; i++)
        for (struct resident *n = from[i], *next; n; n = next) {
            next = n->hash_next;
            n->hash_next = NULL;
            *place(rt, n->id) = n;
        }
    kk_free(from);
}

/* "sess-" and 128 random bits. */
static int make_id(char id[KK_SESSION_ID_MAX], struct kk_err *err)
{
    unsigned char r[16];
    if (getrandom(r, sizeof r, 0) != sizeof r)
        return kk_fail(err, KK_EIO, "no random numbers for a session id");
    int at = snprintf(id, KK_SESSION_ID_MAX, "sess-");
    for (size_t i = 0; i < sizeof r; i++) at += snprintf(id + at, 3, "%02x", r[i]);
    return 0;
}

static struct resident *new_resident(const char *label, const uint32_t *eos, size_t n_eos,
                                     struct kk_err *err)
{
    struct resident *n = kk_calloc(1, sizeof *n);
    if (n) n->label = kk_strdup(label ? label : "");
    if (n && n_eos) n->eos = kk_array(n_eos, sizeof *eos);
    if (!n || !n->label || (n_eos && !n->eos)) {
        if (n) kk_free(n->label);
        kk_free(n);
        kk_fail(err, KK_ENOMEM, "out of memory for a session");
        return NULL;
    }
    if (n_eos) memcpy(n->eos, eos, n_eos * sizeof *eos);
    n->n_eos = (int)n_eos;
    n->last_active_ns = kk_now_ns();
    return n;
}

static void enlist(struct kk_runtime *rt, struct resident *n)
{
    if ((size_t)(rt->active.n + rt->idle.n) >= rt->n_buckets) grow_table(rt);
    *place(rt, n->id) = n;
    kk__list_append(&rt->idle, n);
}

/* ---- create, fork, remove ----------------------------------------------------------------- */

static int admit(struct kk_runtime *rt, int64_t bytes, struct kk_err *err)
{
    int sessions = rt->active.n + rt->idle.n;
    if (rt->o.capacity && sessions >= rt->o.capacity) {
        if (!rt->o.evict_idle || !rt->idle.first)
            return kk_fail(err, KK_EEXHAUSTED, "%d sessions are open, at most %d may be", sessions,
                           rt->o.capacity);
        rt->stats.evicted++;
        kk__resident_remove(rt, rt->idle.first);
    }
    return kk__residents_make_room(rt, bytes, 0, err);
}

static void release_resident(struct kk_runtime *rt, struct resident *n)
{
    kk__resident_drop(rt, n);
    kk_kept_forget(n->file);
    kk_kept_forget(n->writing);
    kk_free(n->history);
    kk_free(n->eos);
    kk_free(n->label);
    kk_free(n);
}

/* n is complete: into the journal (if there is one), the table, and the call's answer. */
static void announce(struct kk_runtime *rt, struct resident *n, struct kk_call *c)
{
    enlist(rt, n);
    if (n->s) rt->stats.sessions_resident++;
    kk__resident_count(rt, n);
    memcpy(c->id, n->id, sizeof c->id);
    c->done.session = c->id;
    c->done.history = n->s ? n->s->n : 0;
    c->done_seq = n->seq;
}

/* A new session takes device bytes when it first reads: until then it is as one that is paged out.
 * But where nothing can ever be moved it takes them at once, so that it is refused now and not
 * later. */
int kk__resident_create(struct kk_runtime *rt, struct kk_call *c, struct kk_err *err)
{
    const int64_t bytes = kk_kv_bytes_at(rt->e->pool, 1);
    int now = !rt->o.kv_host && !rt->spool;
    if (rt->o.kv_bytes && bytes > rt->o.kv_bytes)
        return kk_fail(err, KK_EEXHAUSTED,
                       "a session takes %lld bytes of KV at least, and all may take %lld",
                       (long long)bytes, (long long)rt->o.kv_bytes);
    int rc = kk__eos_check(rt->e, c->r.ids, c->r.n, err);
    if (!rc) rc = admit(rt, now ? bytes : 0, err);
    if (rc == KK_EBUSY) rc = now = 0; /* those who run now will be idle */
    if (rc) return rc;
    struct resident *n = new_resident(c->r.label, c->r.ids, c->r.n, err);
    if (!n) return KK_ENOMEM;
    rc = make_id(n->id, err);
    if (!rc && now) rc = kk_session_open(rt->e, &n->s, err);
    if (!rc && n->s) rc = kk_session_set_eos(n->s, n->eos, n->n_eos, err);
    if (!rc && rt->journal) {
        n->seq = kk_journal_create(rt->journal, n->id, n->label, n->eos, (size_t)n->n_eos,
                                   &n->entry, err);
        if (n->seq < 0) rc = (int)n->seq;
    }
    if (rc) {
        kk_session_close(n->s);
        n->s = NULL;
        release_resident(rt, n);
        return rc;
    }
    rt->stats.created++;
    announce(rt, n, c);
    return 0;
}

int kk__resident_fork(struct kk_runtime *rt, struct resident *parent, struct kk_call *c,
                      struct kk_err *err)
{
    int rc = kk__resident_wake(rt, parent, err);
    if (!rc) rc = admit(rt, 0, err);
    if (rc) return rc;
    struct resident *n = new_resident(c->r.label ? c->r.label : parent->label, parent->eos,
                                      (size_t)parent->n_eos, err);
    if (!n) return KK_ENOMEM;
    rc = make_id(n->id, err);
    if (!rc) rc = kk_session_fork(parent->s, &n->s, err);
    if (!rc && rt->journal) {
        n->seq =
            kk_journal_fork(rt->journal, parent->entry, n->s->n, n->id, n->label, &n->entry, err);
        if (n->seq < 0) rc = (int)n->seq;
    }
    if (rc) {
        kk_session_close(n->s);
        n->s = NULL;
        release_resident(rt, n);
        return rc;
    }
    rt->stats.forked++;
    parent->reshaped = 1;
    kk__resident_count(rt, parent);
    announce(rt, n, c);
    return 0;
}

void kk__resident_remove(struct kk_runtime *rt, struct resident *n)
{
    *place(rt, n->id) = n->hash_next;
    kk__list_remove(n->is_active ? &rt->active : &rt->idle, n);
    /* a full queue only keeps the entry: the session comes back at the next start, and idles out */
    if (n->entry) kk_journal_remove(rt->journal, n->entry, NULL);
    if (rt->spool) kk__resident_forget_files(rt, n);
    release_resident(rt, n);
}

void kk__residents_release(struct kk_runtime *rt)
{
    for (size_t i = 0; rt->bucket && i < rt->n_buckets; i++)
        for (struct resident *n = rt->bucket[i], *next; n; n = next) {
            next = n->hash_next;
            release_resident(rt, n);
        }
}

/* ---- lines -------------------------------------------------------------------------------- */

void kk__resident_join(struct kk_runtime *rt, struct resident *n, struct kk_call *c)
{
    c->on = n;
    c->next = NULL;
    *(n->tail ? &n->tail->next : &n->head) = c;
    n->tail = c;
    n->last_active_ns = kk_now_ns();
    if (n->is_active) return;
    kk__list_remove(&rt->idle, n);
    kk__list_append(&rt->active, n);
    n->is_active = 1;
}

void kk__resident_leave(struct kk_runtime *rt, struct kk_call *c)
{
    struct resident *n = c->on;
    struct kk_call *before = NULL;
    for (struct kk_call *k = n->head; k != c; k = k->next) before = k;
    *(before ? &before->next : &n->head) = c->next;
    if (n->tail == c) n->tail = before;
    c->on = NULL;
    c->next = NULL;
    n->last_active_ns = kk_now_ns();
    if (n->head) return;
    kk__list_remove(&rt->active, n);
    kk__list_append(&rt->idle, n);
    n->is_active = 0;
}

/* ---- facts, journal, time ----------------------------------------------------------------- */

void kk__resident_info(const struct kk_runtime *rt, const struct resident *n, struct kk_event *ev)
{
    (void)rt;
    ev->info = n->info;
    if (n->s) kk_session_describe(n->s, &ev->info);
    if (n->parked) {
        ev->info.kv_host_bytes = (int64_t)n->parked->n;
        ev->info.kv_shared_bytes = kk_saved_shared_bytes(n->parked);
    }
    ev->history = (uint64_t)ev->info.history;
    ev->idle_s = n->is_active ? 0 : kk_seconds_since(n->last_active_ns);
    ev->inv1_violations = n->inv1;
}

int kk__resident_journal(struct kk_runtime *rt, struct resident *n, struct kk_err *err)
{
    if (!n->entry) return 0;
    uint64_t from = kk_journal_tokens(n->entry);
    if (from >= n->s->n) return 0;
    int64_t seq =
        kk_journal_append(rt->journal, n->entry, from, n->s->history + from, n->s->n - from, err);
    if (seq < 0) return (int)seq;
    n->seq = seq;
    return 0;
}

uint64_t kk__residents_expire(struct kk_runtime *rt)
{
    if (rt->o.idle_ttl_s <= 0) return 0;
    const uint64_t ttl = (uint64_t)(rt->o.idle_ttl_s * 1e9), now = kk_now_ns();
    while (rt->idle.first && rt->idle.first->last_active_ns + ttl <= now) {
        rt->stats.expired++;
        kk__resident_remove(rt, rt->idle.first);
    }
    return rt->idle.first ? rt->idle.first->last_active_ns + ttl : 0;
}

static int restore_one(void *arg, const struct kk_journal_session *j, struct kk_err *err)
{
    struct kk_runtime *rt = arg;
    struct resident *n = new_resident(j->label, j->eos, j->n_eos, err);
    if (!n) return KK_ENOMEM;
    snprintf(n->id, sizeof n->id, "%s", j->id);
    n->entry = j->entry;
    n->history = kk_array(j->n + 1, sizeof *n->history);
    if (!n->history) {
        release_resident(rt, n);
        return kk_fail(err, KK_ENOMEM, "out of memory for the sessions of the journal");
    }
    if (j->n) memcpy(n->history, j->ids, j->n * sizeof *j->ids);
    n->info.history = (int64_t)j->n;
    if (j->snapshot) n->file = kk_snapshot_new(j->snapshot, j->snapshot_rows + 1);
    if (j->snapshot && !n->file) {
        release_resident(rt, n);
        return kk_fail(err, KK_ENOMEM, "out of memory for the sessions of the journal");
    }
    enlist(rt, n);
    return 0;
}

int kk__residents_restore(struct kk_runtime *rt, struct kk_err *err)
{
    return kk_journal_each(rt->journal, restore_one, rt, err);
}
