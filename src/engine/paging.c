/* Where a session's rows are: on the device, in host memory, on disk, or nowhere, to be read again
 * from the history.
 *
 * Rows leave the device when others need the room, longest idle first: to host memory, and from
 * there (longest idle first again) to a file of the spool. With a state directory a session that
 * has been idle for a moment is written to a file where it stands, and all are at the end; the
 * journal knows which file holds which rows, and the history is always in memory or in the journal,
 * so that a lost file costs time and nothing else. */
#include <stdio.h>
#include <string.h>

#include "base/clock.h"
#include "base/mem.h"
#include "engine/runtime_int.h"

enum { LEAST_NEWS = 32 }; /* tokens worth another snapshot while idle */
#define IDLE_S   1.0      /* how long a session is idle before it is written to disk */
#define RETRY_S  30.0     /* after a write that failed */
#define RELIEF_S 0.1      /* between two snapshots that make room for the journal */

struct stale_file {
    struct stale_file *next;
    int64_t seq; /* once this is durable the journal does not name the file any more */
    char name[KK_SPOOL_NAME + 1];
};

/* ---- counting ----------------------------------------------------------------------------- */

void kk__resident_count(struct kk_runtime *rt, struct resident *n)
{
    struct kk_session_info i = {0};
    if (n->s) kk_session_describe(n->s, &i);
    rt->stats.drafter_device_bytes += i.drafter_device_bytes - n->info.drafter_device_bytes;
    rt->device_bytes += i.kv_device_bytes - n->device_bytes;
    n->device_bytes = i.kv_device_bytes;
    n->info.drafter_device_bytes = i.drafter_device_bytes;
}

static void forget_parked(struct kk_runtime *rt, struct resident *n)
{
    if (!n->parked) return;
    rt->parked_bytes -= (int64_t)n->parked_bytes;
    rt->stats.sessions_host--;
    kk_free(n->parked);
    n->parked = NULL;
}

static void drop_rows(struct kk_runtime *rt, struct resident *n)
{
    struct kk_session *s = n->s;
    if (!s) return;
    kk_session_describe(s, &n->info);
    kk_session_close(s);
    n->s = NULL;
    rt->stats.sessions_resident--;
    n->info.kv_device_bytes = n->info.kv_shared_bytes = n->info.resident_rows = 0;
    n->info.resident_bytes = 0;
    rt->device_bytes -= n->device_bytes;
    rt->stats.drafter_device_bytes -= n->info.drafter_device_bytes;
    n->device_bytes = n->info.drafter_device_bytes = 0;
}

void kk__resident_drop(struct kk_runtime *rt, struct resident *n)
{
    drop_rows(rt, n);
    forget_parked(rt, n);
}

/* ---- files -------------------------------------------------------------------------------- */

/* The file is of no use once the journal's operation `seq` is durable. */
static void file_is_stale(struct kk_runtime *rt, const char *name, int64_t seq)
{
    struct stale_file *f = *name ? kk_calloc(1, sizeof *f) : NULL;
    if (!f) return; /* no memory: swept at the next start */
    f->seq = seq;
    snprintf(f->name, sizeof f->name, "%s", name);
    f->next = rt->stale;
    rt->stale = f;
}

static void remove_stale(struct kk_runtime *rt, int64_t durable)
{
    for (struct stale_file **at = &rt->stale, *f; (f = *at);) {
        if (f->seq > durable) {
            at = &f->next;
            continue;
        }
        kk_spool_remove(rt->spool, f->name, NULL);
        *at = f->next;
        kk_free(f);
    }
}

void kk__resident_forget_file(struct kk_runtime *rt, struct resident *n)
{
    file_is_stale(rt, n->file, n->seq);
    n->file[0] = 0;
    n->file_tokens = 0;
}

/* What the spool says when it has written, or not: from its thread, taken by ours. */
struct written {
    struct written *next;
    int rc;
    int64_t bytes;
    char name[KK_SPOOL_NAME + 1];
};

static void on_written(void *arg, const struct kk_spool_done *d)
{
    struct kk_runtime *rt = arg;
    struct written *w = kk_calloc(1, sizeof *w);
    if (!w) return; /* a file nobody knows: swept at the next start */
    w->rc = d->rc;
    w->bytes = d->bytes;
    snprintf(w->name, sizeof w->name, "%s", d->name);
    pthread_mutex_lock(&rt->lock);
    w->next = rt->written;
    rt->written = w;
    rt->poked = 1;
    pthread_cond_signal(&rt->more);
    pthread_mutex_unlock(&rt->lock);
}

/* File names are "<session id>.<number>". */
static struct resident *owner(const struct kk_runtime *rt, const char *name)
{
    char id[KK_SPOOL_NAME + 1];
    snprintf(id, sizeof id, "%s", name);
    char *dot = strrchr(id, '.');
    if (!dot) return NULL;
    *dot = 0;
    return kk__resident_find(rt, id);
}

static void take_written(struct kk_runtime *rt, const struct written *w)
{
    struct resident *n = owner(rt, w->name);
    if (!n || strcmp(n->writing, w->name)) {
        if (!w->rc) file_is_stale(rt, w->name, 0);
        return;
    }
    n->writing[0] = 0;
    if (w->rc) { /* a full disk, most likely: it costs speed after a restart, nothing now */
        rt->stats.snapshots_failed++;
        rt->next_snapshots = kk_now_ns() + (uint64_t)(RETRY_S * 1e9);
        return;
    }
    int64_t seq = kk_journal_note_snapshot(rt->journal, n->entry, w->name, n->writing_tokens - 1,
                                           w->bytes, NULL);
    if (seq < 0) {
        file_is_stale(rt, w->name, 0);
        return;
    }
    n->seq = seq;
    kk__resident_forget_file(rt, n);
    snprintf(n->file, sizeof n->file, "%s", w->name);
    n->file_tokens = n->writing_tokens;
}

/* The engine thread's share of what the spool and the journal have done. */
void kk__paging_settle(struct kk_runtime *rt)
{
    if (!rt->spool) return;
    pthread_mutex_lock(&rt->lock);
    struct written *w = rt->written;
    rt->written = NULL;
    pthread_mutex_unlock(&rt->lock);
    for (struct written *next; w; w = next) {
        next = w->next;
        take_written(rt, w);
        kk_free(w);
    }
    remove_stale(rt, kk_journal_durable(rt->journal));
    rt->stats.kv_disk_bytes = kk_spool_disk_bytes(rt->spool);
}

/* ---- encoding ----------------------------------------------------------------------------- */

struct memory {
    char *p;
    size_t at, n;
};

static int to_memory(void *arg, void *p, size_t n, struct kk_err *err)
{
    struct memory *m = arg;
    if (n > m->n - m->at) return kk_fail(err, KK_ERANGE, "a session is larger than it said");
    memcpy(m->p + m->at, p, n);
    m->at += n;
    return 0;
}

static int from_memory(void *arg, void *p, size_t n, struct kk_err *err)
{
    struct memory *m = arg;
    if (n > m->n - m->at) return kk_fail(err, KK_EFORMAT, "a saved session is cut short");
    memcpy(p, m->p + m->at, n);
    m->at += n;
    return 0;
}

/* A session that has read all of its history, as bytes; m->p is the caller's. */
static int encode(struct resident *n, struct memory *m, struct kk_err *err)
{
    int64_t bytes = kk__session_encoded_bytes(n->s, err);
    if (bytes < 0) return (int)bytes;
    *m = (struct memory){kk_malloc((size_t)bytes), 0, (size_t)bytes};
    if (!m->p) return kk_fail(err, KK_ENOMEM, "out of memory to page a session out");
    int rc = kk__session_encode(n->s, &(struct kk_io){to_memory, m}, err);
    if (rc) kk_free(m->p);
    return rc;
}

static int is_behind(const struct resident *n)
{
    return kk_kv_rows(n->s->kv) + 1 < (int64_t)n->s->n;
}

/* The history of a session whose rows may get lost, kept apart from them. */
static int keep_history(struct resident *n, struct kk_err *err)
{
    if (n->history) return 0;
    n->history = kk_array(n->s->n + 1, sizeof *n->history);
    if (!n->history) return kk_fail(err, KK_ENOMEM, "out of memory to page a session out");
    if (n->s->n) memcpy(n->history, n->s->history, n->s->n * sizeof *n->history);
    return 0;
}

/* ---- device to host to disk --------------------------------------------------------------- */

static int64_t tokens_of(const struct resident *n)
{
    return n->s ? (int64_t)n->s->n : n->info.history;
}

/* Give bytes of n to the spool, which owns them on success. */
static int write_file(struct kk_runtime *rt, struct resident *n, void *p, size_t len,
                      struct kk_err *err)
{
    char name[KK_SPOOL_NAME + 1];
    snprintf(name, sizeof name, "%s.%llu", n->id, (unsigned long long)++rt->n_files);
    int64_t ticket = kk_spool_write(rt->spool, name, p, len, err);
    if (ticket < 0) return (int)ticket;
    snprintf(n->writing, sizeof n->writing, "%s", name);
    n->writing_tokens = tokens_of(n);
    return 0;
}

/* Host bytes of n to disk. */
static int spill(struct kk_runtime *rt, struct resident *n, struct kk_err *err)
{
    if (n->file_tokens == n->info.history && *n->file) {
        forget_parked(rt, n);
        return 0;
    }
    int rc = write_file(rt, n, n->parked, n->parked_bytes, err);
    if (rc == KK_EIO) { /* no room on the disk: read again when it is needed */
        rt->stats.snapshots_failed++;
        forget_parked(rt, n);
        return 0;
    }
    if (rc) return rc;
    rt->parked_bytes -= (int64_t)n->parked_bytes;
    rt->stats.sessions_host--;
    n->parked = NULL;
    return 0;
}

static int host_room(struct kk_runtime *rt, int64_t bytes, struct kk_err *err)
{
    if (rt->o.kv_host < 0) return 0;
    for (struct resident *n = rt->idle.first; n && rt->parked_bytes + bytes > rt->o.kv_host;
         n = n->next) {
        int rc = n->parked && rt->spool ? spill(rt, n, err) : 0;
        if (rc) return rc;
    }
    if (rt->parked_bytes + bytes <= rt->o.kv_host) return 0;
    return kk_fail(err, KK_EEXHAUSTED,
                   "host memory for idle sessions holds %lld of %lld bytes; one more takes %lld",
                   (long long)rt->parked_bytes, (long long)rt->o.kv_host, (long long)bytes);
}

/* Rows of n to host memory, or where that is full straight to disk. */
static int page_out(struct kk_runtime *rt, struct resident *n, struct kk_err *err)
{
    struct memory m;
    struct kk_err full = {0};
    int rc = keep_history(n, err);
    if (rc) return rc;
    if (is_behind(n) || n->s->n < 2) { /* nothing worth keeping but the history */
        drop_rows(rt, n);
        return 0;
    }
    rc = encode(n, &m, err);
    if (rc) return rc;
    if (!host_room(rt, (int64_t)m.n, &full)) {
        drop_rows(rt, n);
        n->parked = m.p;
        n->parked_bytes = m.n;
        rt->parked_bytes += (int64_t)m.n;
        rt->stats.sessions_host++;
        return 0;
    }
    rc = rt->spool ? write_file(rt, n, m.p, m.n, err) : kk_fail(err, full.code, "%s", full.msg);
    if (rc) kk_free(m.p);
    if (rc == KK_EIO) { /* as above */
        rt->stats.snapshots_failed++;
        rc = 0;
    }
    if (!rc) drop_rows(rt, n);
    return rc;
}

/* Whose rows may go: the longest idle's, then a waiting session's, then, to keep a round going,
 * those of a session that has no part in it. */
static struct resident *victim(const struct kk_runtime *rt, int preempt)
{
    for (struct resident *n = rt->idle.first; n; n = n->next)
        if (n->s) return n;
    for (struct resident *n = rt->active.last; n; n = n->prev)
        if (n->s && !n->head->started) return n;
    for (struct resident *n = rt->active.last; n && preempt; n = n->prev)
        if (n->s && !n->in_round) return n;
    return NULL;
}

int kk__residents_make_room(struct kk_runtime *rt, int64_t bytes, int preempt, struct kk_err *err)
{
    struct kk_err why = {0};
    const struct kk_kv_pool *p = rt->e->pool;
    while (rt->o.kv_bytes && rt->device_bytes + kk_kv_shared_bytes(p) + bytes > rt->o.kv_bytes) {
        if (kk__prefix_drop_oldest(rt)) continue;
        struct resident *n = victim(rt, preempt);
        int rc = n ? page_out(rt, n, &why) : kk_fail(&why, KK_EBUSY, "no session is idle");
        if (rc)
            return kk_fail(err, rc, "%lld bytes of KV are needed, %lld of %lld are taken: %s",
                           (long long)bytes, (long long)(rt->device_bytes + kk_kv_shared_bytes(p)),
                           (long long)rt->o.kv_bytes, why.msg);
    }
    return 0;
}

/* ---- and back ----------------------------------------------------------------------------- */

static int read_file(struct kk_runtime *rt, const struct resident *n, struct kk_session **out)
{
    struct kk_spool_reader *r = NULL;
    struct kk_session *s = NULL;
    int rc = kk_spool_read(rt->spool, n->file, &r, NULL);
    if (rc) return rc;
    struct kk_io source = kk_spool_source(r);
    rc = kk__session_decode(rt->e, &source, 0, &s, NULL);
    kk_spool_end(r);
    if (!rc && (!s->n || (int64_t)s->n > n->info.history ||
                memcmp(s->history, n->history, s->n * sizeof *n->history)))
        rc = KK_EFORMAT;
    if (rc)
        kk_session_close(s);
    else
        *out = s;
    return rc;
}

/* A session from its file, which may hold less than the history. NULL: there is none, or it cannot
 * be used, and then the journal hears that there is none, so that another one is written. */
static struct kk_session *from_file(struct kk_runtime *rt, struct resident *n)
{
    struct kk_session *s = NULL;
    if (n->writing[0]) { /* on its way out still */
        kk_spool_drain(rt->spool);
        kk__paging_settle(rt);
    }
    if (!rt->spool || !n->file[0]) return NULL;
    int rc = read_file(rt, n, &s);
    if (!rc || rc == KK_ENOMEM || rc == KK_EEXHAUSTED) return s;
    int64_t seq = kk_journal_drop_snapshot(rt->journal, n->entry, NULL);
    if (seq < 0) return NULL; /* another time */
    n->seq = seq;
    rt->stats.snapshots_lost++;
    kk__resident_forget_file(rt, n);
    return NULL;
}

/* A session with all of the history: with rows from a file, or without, to be read. */
static int wake_with_history(struct kk_runtime *rt, struct resident *n, struct kk_err *err)
{
    const size_t all = (size_t)n->info.history;
    n->s = from_file(rt, n);
    int rc = n->s ? 0 : kk_session_open(rt->e, &n->s, err);
    const size_t had = rc ? 0 : n->s->n;
    if (!rc) rc = kk__history_reserve(n->s, all - had + 1, err);
    if (rc) return rc;
    if (all > had) memcpy(n->s->history + had, n->history + had, (all - had) * sizeof *n->history);
    n->s->n = all;
    return 0;
}

int kk__resident_wake(struct kk_runtime *rt, struct resident *n, struct kk_err *err)
{
    if (n->s) return 0;
    int rc = kk__residents_make_room(rt, kk_kv_bytes_at(rt->e->pool, n->info.rows), 0, err);
    if (rc) return rc;
    if (n->parked) {
        struct memory m = {n->parked, 0, n->parked_bytes};
        rc = kk__session_decode(rt->e, &(struct kk_io){from_memory, &m}, 0, &n->s, err);
    } else {
        rc = wake_with_history(rt, n, err);
    }
    if (!rc) rc = kk_session_set_eos(n->s, n->eos, n->n_eos, err);
    if (rc) {
        kk_session_close(n->s);
        n->s = NULL;
        return rc;
    }
    rt->stats.resumed += n->info.history > 0;
    kk__resident_adopt(rt, n);
    return 0;
}

void kk__resident_adopt(struct kk_runtime *rt, struct resident *n)
{
    forget_parked(rt, n);
    kk_free(n->history);
    n->history = NULL;
    rt->stats.sessions_resident++;
    kk__resident_count(rt, n);
}

/* ---- snapshots of what stays -------------------------------------------------------------- */

/* Write n to a file if it has news enough; its rows stay where they are. KK_EIO: a full disk. */
static int snapshot(struct kk_runtime *rt, struct resident *n, int64_t least)
{
    struct memory m;
    if (n->writing[0] || tokens_of(n) < n->file_tokens + least || tokens_of(n) < 2) return 0;
    if (n->parked) {
        m = (struct memory){kk_malloc(n->parked_bytes), 0, n->parked_bytes};
        if (!m.p) return 0;
        memcpy(m.p, n->parked, m.n);
    } else if (!n->s || is_behind(n) || encode(n, &m, NULL)) {
        return 0;
    }
    int rc = write_file(rt, n, m.p, m.n, NULL);
    if (rc) kk_free(m.p);
    rt->stats.snapshots_failed += rc == KK_EIO;
    return rc;
}

/* The journal cannot be written and the disk is full: history comes before speed, so the snapshot
 * of whoever is idle longest goes, without waiting for the journal to hear of it. Returns when to
 * look again. */
static uint64_t relieve(struct kk_runtime *rt, uint64_t now)
{
    if (now < rt->next_relief) return rt->next_relief;
    rt->next_relief = now + (uint64_t)(RELIEF_S * 1e9);
    if (!kk_spool_is_short(rt->spool)) return rt->next_relief;
    remove_stale(rt, INT64_MAX);
    struct resident *n = rt->idle.first;
    while (n && !n->file[0]) n = n->next;
    for (struct resident *a = rt->active.first; !n && a; a = a->next)
        if (a->file[0]) n = a;
    if (!n) return rt->next_relief;
    kk_spool_remove(rt->spool, n->file, NULL);
    kk_journal_drop_snapshot(rt->journal, n->entry,
                             NULL); /* else a restart finds that it is gone */
    rt->stats.snapshots_lost++;
    n->file[0] = 0;
    n->file_tokens = 0;
    return rt->next_relief;
}

uint64_t kk__paging_idle(struct kk_runtime *rt)
{
    const uint64_t after = (uint64_t)(IDLE_S * 1e9), now = kk_now_ns();
    uint64_t again = 0;
    if (!rt->spool) return 0;
    if (atomic_load(&rt->state_broken)) return relieve(rt, now);
    if (now < rt->next_snapshots) return rt->next_snapshots;
    for (struct resident *n = rt->idle.first; n; n = n->next) {
        if (n->last_active_ns + after > now) {
            again = n->last_active_ns + after;
            break;
        }
        if (snapshot(rt, n, LEAST_NEWS) == KK_EIO)
            return rt->next_snapshots = now + (uint64_t)(RETRY_S * 1e9);
    }
    rt->next_snapshots = now + after / 4;
    return again && again < rt->next_snapshots ? rt->next_snapshots : again;
}

/* The end: everything that has news to a file, and the journal told. */
void kk__paging_finish(struct kk_runtime *rt)
{
    if (!rt->spool) return;
    for (struct resident *n = rt->idle.first; n; n = n->next) snapshot(rt, n, 1);
    kk_spool_drain(rt->spool);
    kk__paging_settle(rt);
}

/* ---- open and close ----------------------------------------------------------------------- */

static int known(void *arg, const char *name)
{
    const struct resident *n = owner(arg, name);
    return n && !strcmp(n->file, name);
}

int kk__paging_open(struct kk_runtime *rt, struct kk_err *err)
{
    const struct kk_spool_options so = {.dir = rt->o.state,
                                        .disk_bytes = rt->o.kv_disk,
                                        .keep = known,
                                        .on_done = on_written,
                                        .arg = rt};
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now); /* names other than those of an earlier life */
    rt->n_files = (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
    return rt->o.state ? kk_spool_open(&so, &rt->spool, err) : 0;
}

void kk__paging_close(struct kk_runtime *rt)
{
    kk_spool_close(rt->spool);
    rt->spool = NULL;
    for (struct written *w = rt->written, *next; w; w = next) {
        next = w->next;
        kk_free(w);
    }
    for (struct stale_file *f = rt->stale, *next; f; f = next) {
        next = f->next;
        kk_free(f);
    }
}
