/* Where a session's rows are: on the device, in host memory, on disk, or nowhere, to be read again
 * from the history.
 *
 * Rows leave the device when others need the room, longest idle first: to host memory, and from
 * there (longest idle first again) to a file of the spool. With a state directory a session that
 * has been idle for a moment is written to a file where it stands, and all are at the end; the
 * journal knows which file holds which rows, and the history is always in memory or in the journal,
 * so that a lost file costs time and nothing else. What forks share is one copy everywhere
 * (kept.h). */
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
    struct kk_snapshot *file;
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
    rt->parked_bytes -= (int64_t)n->parked->n;
    rt->stats.sessions_host--;
    kk_saved_release(rt->kept, n->parked);
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
static void file_is_stale(struct kk_runtime *rt, struct kk_snapshot *file, int64_t seq)
{
    struct stale_file *f = file ? kk_calloc(1, sizeof *f) : NULL;
    if (!f) { /* no memory: it stays until the next start */
        kk_kept_forget(file);
        return;
    }
    f->seq = seq;
    f->file = file;
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
        kk_kept_remove(rt->kept, f->file);
        *at = f->next;
        kk_free(f);
    }
}

/* A file on its way is not wanted any more: it is not written, or goes again at once. */
static void forget_writing(struct kk_runtime *rt, struct resident *n)
{
    kk_kept_remove(rt->kept, n->writing);
    n->writing = NULL;
}

static void forget_file(struct kk_runtime *rt, struct resident *n)
{
    file_is_stale(rt, n->file, n->seq);
    n->file = NULL;
}

void kk__resident_forget_files(struct kk_runtime *rt, struct resident *n)
{
    forget_writing(rt, n);
    forget_file(rt, n);
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
    if (!n || !n->writing || strcmp(n->writing->name, w->name)) return;
    struct kk_snapshot *file = n->writing;
    n->writing = NULL;
    if (w->rc) { /* a full disk, most likely: it costs speed after a restart, nothing now */
        kk_kept_failed(rt->kept, file);
        rt->stats.snapshots_failed++;
        rt->next_snapshots = kk_now_ns() + (uint64_t)(RETRY_S * 1e9);
        return;
    }
    int64_t seq = kk_journal_note_snapshot(rt->journal, n->entry, file->name, file->tokens - 1,
                                           w->bytes, NULL);
    if (seq < 0) {
        kk_kept_remove(rt->kept, file);
        return;
    }
    n->seq = seq;
    forget_file(rt, n);
    n->file = file;
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

/* ---- saving ------------------------------------------------------------------------------ */

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

/* Write what was saved of n to a file; take: and release it. */
static int write_file(struct kk_runtime *rt, struct resident *n, struct kk_saved *saved, int take,
                      struct kk_err *err)
{
    char name[KK_SPOOL_NAME + 1];
    struct kk_snapshot *file;
    snprintf(name, sizeof name, "%s.%llu", n->id, (unsigned long long)++rt->n_files);
    int rc = kk_kept_write(rt->kept, saved, name, tokens_of(n), take, &file, err);
    if (rc) return rc;
    forget_writing(rt, n);
    n->writing = file;
    n->reshaped = 0;
    return 0;
}

/* Host bytes of n to disk. */
static int spill(struct kk_runtime *rt, struct resident *n, struct kk_err *err)
{
    const size_t bytes = n->parked->n;
    if (n->file && n->file->tokens == n->info.history) {
        forget_parked(rt, n);
        return 0;
    }
    int rc = write_file(rt, n, n->parked, 1, err);
    if (rc == KK_EIO) { /* no room on the disk: read again when it is needed */
        rt->stats.snapshots_failed++;
        forget_parked(rt, n);
        return 0;
    }
    if (rc) return rc;
    rt->parked_bytes -= (int64_t)bytes;
    rt->stats.sessions_host--;
    kk_free(n->parked);
    n->parked = NULL;
    return 0;
}

static int64_t host_bytes(const struct kk_runtime *rt)
{
    return rt->parked_bytes + kk_kept_host_bytes(rt->kept);
}

/* Room for `bytes` more of a session, whose shared blocks are there already. What another leaves
 * there on its way back counts as room: where all is full the two change places. */
static int host_room(struct kk_runtime *rt, int64_t bytes, struct kk_err *err)
{
    const int64_t most = rt->o.kv_host + rt->leaving_bytes;
    if (rt->o.kv_host < 0) return 0;
    for (struct resident *n = rt->idle.first; n && host_bytes(rt) + bytes > most; n = n->next) {
        int rc = n->parked && rt->spool ? spill(rt, n, err) : 0;
        if (rc) return rc;
    }
    if (host_bytes(rt) + bytes <= most) return 0;
    return kk_fail(err, KK_EEXHAUSTED,
                   "host memory for idle sessions holds %lld of %lld bytes; one more takes %lld",
                   (long long)host_bytes(rt), (long long)rt->o.kv_host, (long long)bytes);
}

static void park(struct kk_runtime *rt, struct resident *n, struct kk_saved *saved)
{
    drop_rows(rt, n);
    n->parked = saved;
    rt->parked_bytes += (int64_t)saved->n;
    rt->stats.sessions_host++;
}

/* Its rows fit into host memory, if all others make way. */
static int host_takes(const struct kk_runtime *rt, const struct resident *n)
{
    const struct kk_kv *kv = n->s->kv;
    return rt->o.kv_host < 0 || kk_kv_device_bytes(kv) + kk_kv_shared_of(kv) <= rt->o.kv_host;
}

/* Rows of n to host memory, or where that is full straight to disk. */
static int page_out(struct kk_runtime *rt, struct resident *n, struct kk_err *err)
{
    struct kk_err full = {0};
    int rc = keep_history(n, err);
    if (rc) return rc;
    if (is_behind(n) || n->s->n < 2) { /* nothing worth keeping but the history */
        drop_rows(rt, n);
        return 0;
    }
    struct kk_saved *saved = kk_calloc(1, sizeof *saved);
    if (!saved) return kk_fail(err, KK_ENOMEM, "out of memory to page a session out");
    *saved = (struct kk_saved){.in_memory = !rt->spool || host_takes(rt, n), .mine = n->file};
    rc = kk__session_keep(n->s, rt->kept, saved, err);
    if (!rc && saved->in_memory && !host_room(rt, (int64_t)saved->n, &full)) {
        park(rt, n, saved);
        return 0;
    }
    if (!rc)
        rc = rt->spool ? write_file(rt, n, saved, 1, err) : kk_fail(err, full.code, "%s", full.msg);
    if (rc) kk_saved_release(rt->kept, saved);
    kk_free(saved);
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

/* The file of n is of no use: the journal hears so, and another one is written. */
static void lose_file(struct kk_runtime *rt, struct resident *n)
{
    int64_t seq = kk_journal_drop_snapshot(rt->journal, n->entry, NULL);
    if (seq < 0) return; /* another time */
    n->seq = seq;
    rt->stats.snapshots_lost++;
    forget_file(rt, n);
}

/* What the file of n holds, whose bytes stay in it; NULL: there is none, or it cannot be used. */
static struct kk_saved *open_file(struct kk_runtime *rt, struct resident *n)
{
    if (n->writing) { /* on its way out still */
        kk_spool_drain(rt->spool);
        kk__paging_settle(rt);
    }
    struct kk_saved *saved = n->file ? kk_calloc(1, sizeof *saved) : NULL;
    if (!saved) return NULL;
    int rc = kk_kept_read(rt->kept, n->file, saved, NULL);
    if (!rc) return saved;
    kk_free(saved);
    if (rc != KK_ENOMEM) lose_file(rt, n);
    return NULL;
}

/* A session from its file, which may hold less than the history. NULL: it cannot be had so. */
static struct kk_session *from_file(struct kk_runtime *rt, struct resident *n,
                                    struct kk_saved *saved)
{
    struct kk_session *s = NULL;
    int rc =
        kk__session_return(rt->e, rt->kept, saved, n->history, (size_t)n->info.history, &s, NULL);
    if (rc && rc != KK_ENOMEM && rc != KK_EEXHAUSTED) lose_file(rt, n);
    return s;
}

/* A session with all of the history: with rows from its file, or (saved NULL) without, to be read;
 * what others have read of it is not read again. */
static int wake_with_history(struct kk_runtime *rt, struct resident *n, struct kk_saved *saved,
                             struct kk_err *err)
{
    const size_t all = (size_t)n->info.history;
    n->s = saved ? from_file(rt, n, saved) : NULL;
    if (!n->s && all > 1) n->s = kk__prefix_begin(rt, n, n->history, all);
    int rc = n->s ? 0 : kk_session_open(rt->e, &n->s, err);
    const size_t had = rc ? 0 : n->s->n;
    if (!rc) rc = kk__history_reserve(n->s, all - had + 1, err);
    if (rc) return rc;
    if (all > had) memcpy(n->s->history + had, n->history + had, (all - had) * sizeof *n->history);
    n->s->n = all;
    return 0;
}

/* The rows of n, from where `saved` has them. */
static int wake_from(struct kk_runtime *rt, struct resident *n, struct kk_saved *saved,
                     struct kk_err *err)
{
    const int known = saved && (saved->room || saved->n_blocks);
    rt->leaving_bytes = n->parked ? (int64_t)n->parked->n : 0;
    int rc = kk__residents_make_room(
        rt, known ? kk_saved_room(saved, rt->e->pool) : kk_kv_bytes_at(rt->e->pool, n->info.rows),
        0, err);
    rt->leaving_bytes = 0;
    if (rc) return rc;
    if (n->parked)
        rc = kk__session_return(rt->e, rt->kept, saved, n->history, (size_t)n->info.history, &n->s,
                                err);
    else
        rc = wake_with_history(rt, n, saved, err);
    if (!rc) rc = kk_session_set_eos(n->s, n->eos, n->n_eos, err);
    if (rc) {
        kk_session_close(n->s);
        n->s = NULL;
    }
    return rc;
}

int kk__resident_wake(struct kk_runtime *rt, struct resident *n, struct kk_err *err)
{
    if (n->s) return 0;
    struct kk_saved *file = n->parked ? NULL : open_file(rt, n);
    int rc = wake_from(rt, n, n->parked ? n->parked : file, err);
    if (file) kk_saved_release(rt->kept, file);
    kk_free(file);
    if (rc) return rc;
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
    struct kk_saved saved = {.mine = n->file};
    const int64_t had = n->file ? n->file->tokens : 0;
    if (n->writing || tokens_of(n) < 2) return 0;
    if (tokens_of(n) < had + least && !(n->reshaped && had)) return 0;
    int rc = 0;
    if (n->parked) {
        rc = write_file(rt, n, n->parked, 0, NULL);
    } else if (n->s && !is_behind(n) && !kk__session_keep(n->s, rt->kept, &saved, NULL)) {
        rc = write_file(rt, n, &saved, 1, NULL);
        if (rc) kk_saved_release(rt->kept, &saved);
    }
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
    while (n && !n->file) n = n->next;
    for (struct resident *a = rt->active.first; !n && a; a = a->next)
        if (a->file) n = a;
    if (!n) return rt->next_relief;
    kk_kept_remove(rt->kept, n->file);
    kk_journal_drop_snapshot(rt->journal, n->entry,
                             NULL); /* else a restart finds that it is gone */
    rt->stats.snapshots_lost++;
    n->file = NULL;
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

int64_t kk__paging_last(const struct kk_runtime *rt)
{
    int64_t last = 0;
    for (const struct stale_file *f = rt->stale; f; f = f->next)
        if (f->seq > last) last = f->seq;
    return last;
}

/* ---- open and close ----------------------------------------------------------------------- */

static int known(void *arg, const char *name)
{
    struct kk_runtime *rt = arg;
    const struct resident *n = owner(rt, name);
    return (n && n->file && !strcmp(n->file->name, name)) || kk_kept_found(rt->kept, name);
}

/* Which files of blocks the sessions' files refer to; those of no use are dropped. */
static int adopt_files(struct kk_runtime *rt, struct kk_err *err)
{
    int rc = kk_kept_load(rt->kept, err);
    for (struct resident *n = rt->idle.first; n && !rc; n = n->next) {
        const int broken = n->file ? kk_kept_adopt(rt->kept, &n->file, err) : 0;
        if (broken == KK_ENOMEM) rc = broken;
        if (broken && !rc) lose_file(rt, n);
    }
    if (!rc) kk_kept_sweep(rt->kept);
    return rc;
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
    if (!rt->o.state) return 0;
    int rc = kk_spool_open(&so, &rt->spool, err);
    if (rc) return rc;
    kk_kept_spool(rt->kept, rt->spool);
    return adopt_files(rt, err);
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
        kk_kept_forget(f->file);
        kk_free(f);
    }
}
