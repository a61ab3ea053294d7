/* The queue is two buffers: operations are added to `fill`; the writer swaps it with `work`, writes
 * all of `work` in one transaction, announces it, and empties it. So what queues up during one
 * commit is the next one's group. A failed write keeps `work` and is tried again. */
#include "engine/journal_int.h"

#include <pthread.h>
#include <stdatomic.h>
#include <string.h>
#include <time.h>

#include "base/buf.h"
#include "base/mem.h"

enum { RETRY_MS = 500, KEEP_CAPACITY = 1 << 20 };

struct kk_journal_entry {
    int64_t session;
    uint64_t tokens;
    struct kk_journal_entry *prev, *next;
};

struct kk_journal {
    struct kk_jdb *db; /* the writer thread's, once it runs */
    struct kk_journal_options o;
    struct kk_journal_entry *entries; /* the engine thread's, as next_session */
    int64_t next_session;
    pthread_t thread;
    _Atomic int64_t durable;

    pthread_mutex_t lock; /* guards what follows */
    pthread_cond_t wake;  /* the writer */
    int flush, stop;
    int64_t seq; /* last operation queued */
    struct kk_buf fill;
    size_t work_len; /* bytes of `work` not durable yet */
    uint64_t commits, folds;
    struct kk_err broken; /* code 0: the last write was good */

    struct kk_buf work; /* the writer thread's */
};

/* ---- entries ---- */

static struct kk_journal_entry *enter(struct kk_journal *j, int64_t session, uint64_t tokens)
{
    struct kk_journal_entry *e = kk_malloc(sizeof *e);
    if (!e) return NULL;
    *e = (struct kk_journal_entry){session, tokens, NULL, j->entries};
    if (j->entries) j->entries->prev = e;
    j->entries = e;
    return e;
}

static void leave(struct kk_journal *j, struct kk_journal_entry *e)
{
    if (e->prev) e->prev->next = e->next;
    if (e->next) e->next->prev = e->prev;
    if (j->entries == e) j->entries = e->next;
    kk_free(e);
}

uint64_t kk_journal_tokens(const struct kk_journal_entry *e)
{
    return e->tokens;
}

/* ---- the queue ---- */

static int refuse(const struct kk_journal *j, struct kk_err *err)
{
    if (j->broken.code)
        return kk_fail(err, KK_EIO, "the journal cannot be written: %s", j->broken.msg);
    return kk_fail(err, KK_EEXHAUSTED, "the journal's queue is full: %zu of %zu bytes wait",
                   j->fill.len + j->work_len, j->o.queue_bytes);
}

/* Caller holds the lock. All of the operation is in `fill`, or nothing is. */
static int put_locked(struct kk_journal *j, const struct kk_jop *op, const void *const part[],
                      struct kk_err *err)
{
    static const char zeros[8];
    size_t before = j->fill.len, size = sizeof *op;
    for (int i = 0; i < KK_JOP_PARTS; i++) size += op->len[i];
    size_t pad = (8 - size % 8) % 8;
    if (j->fill.len + j->work_len + size + pad > j->o.queue_bytes) return refuse(j, err);
    int rc = kk_buf_append(&j->fill, op, sizeof *op);
    for (int i = 0; i < KK_JOP_PARTS && !rc; i++) rc = kk_buf_append(&j->fill, part[i], op->len[i]);
    if (!rc) rc = kk_buf_append(&j->fill, zeros, pad);
    if (!rc) return 0;
    j->fill.len = before;
    return kk_fail(err, rc, "journal: no memory for %zu bytes", size);
}

static int64_t put(struct kk_journal *j, struct kk_jop *op, const void *const part[],
                   struct kk_err *err)
{
    op->time = (int64_t)time(NULL);
    pthread_mutex_lock(&j->lock);
    int64_t rc = put_locked(j, op, part, err);
    if (!rc) rc = ++j->seq;
    pthread_mutex_unlock(&j->lock);
    return rc;
}

/* The length of a text with its bound; -1 and err if it is over. */
static int text(const char *s, uint32_t *len, struct kk_err *err)
{
    size_t n = s ? strlen(s) : 0;
    *len = (uint32_t)n;
    if (n <= KK_JOURNAL_TEXT) return 0;
    return kk_fail(err, KK_ERANGE, "'%.40s...' has %zu bytes: at most %d", s, n, KK_JOURNAL_TEXT);
}

/* CREATE and FORK */
static int64_t begin(struct kk_journal *j, struct kk_jop *op, uint64_t tokens,
                     const void *const part[], struct kk_journal_entry **out, struct kk_err *err)
{
    struct kk_journal_entry *e = enter(j, j->next_session, tokens);
    if (!e) return kk_fail(err, KK_ENOMEM, "journal: no memory for a session");
    op->session = e->session;
    int64_t seq = put(j, op, part, err);
    if (seq < 0) {
        leave(j, e);
        return seq;
    }
    j->next_session++;
    *out = e;
    return seq;
}

int64_t kk_journal_create(struct kk_journal *j, const char *id, const char *label,
                          const uint32_t *eos, size_t n_eos, struct kk_journal_entry **out,
                          struct kk_err *err)
{
    struct kk_jop op = {.kind = KK_JOP_CREATE};
    int rc = text(id, &op.len[0], err);
    if (!rc) rc = text(label, &op.len[1], err);
    if (rc) return rc;
    if (n_eos > j->o.queue_bytes / sizeof *eos) return kk_fail(err, KK_ERANGE, "too many eos ids");
    op.len[2] = (uint32_t)(n_eos * sizeof *eos);
    return begin(j, &op, 0, (const void *const[]){id, label, eos}, out, err);
}

int64_t kk_journal_fork(struct kk_journal *j, const struct kk_journal_entry *parent, uint64_t n,
                        const char *id, const char *label, struct kk_journal_entry **out,
                        struct kk_err *err)
{
    struct kk_jop op = {.kind = KK_JOP_FORK, .a = parent->session, .b = (int64_t)n};
    int rc = text(id, &op.len[0], err);
    KK_BUG_ON(n > parent->tokens);
    if (!rc) rc = text(label, &op.len[1], err);
    if (rc) return rc;
    return begin(j, &op, n, (const void *const[]){id, label, NULL}, out, err);
}

int64_t kk_journal_append(struct kk_journal *j, struct kk_journal_entry *e, uint64_t position,
                          const uint32_t *ids, size_t n, struct kk_err *err)
{
    KK_BUG_ON(position != e->tokens || n == 0);
    if (n > j->o.queue_bytes / sizeof *ids)
        return kk_fail(err, KK_EEXHAUSTED, "%zu tokens are more than the journal's queue takes", n);
    struct kk_jop op = {.kind = KK_JOP_APPEND, .session = e->session, .a = (int64_t)position};
    op.len[0] = (uint32_t)(n * sizeof *ids);
    int64_t seq = put(j, &op, (const void *const[]){ids, NULL, NULL}, err);
    if (seq > 0) e->tokens += n;
    return seq;
}

int64_t kk_journal_note_snapshot(struct kk_journal *j, struct kk_journal_entry *e, const char *file,
                                 int64_t rows, int64_t bytes, struct kk_err *err)
{
    struct kk_jop op = {.kind = KK_JOP_SNAPSHOT, .session = e->session, .a = rows, .b = bytes};
    int rc = text(file, &op.len[0], err);
    return rc ? rc : put(j, &op, (const void *const[]){file, NULL, NULL}, err);
}

int64_t kk_journal_drop_snapshot(struct kk_journal *j, struct kk_journal_entry *e,
                                 struct kk_err *err)
{
    struct kk_jop op = {.kind = KK_JOP_NO_SNAPSHOT, .session = e->session};
    return put(j, &op, (const void *const[KK_JOP_PARTS]){0}, err);
}

int64_t kk_journal_remove(struct kk_journal *j, struct kk_journal_entry *e, struct kk_err *err)
{
    struct kk_jop op = {.kind = KK_JOP_REMOVE, .session = e->session};
    int64_t seq = put(j, &op, (const void *const[KK_JOP_PARTS]){0}, err);
    if (seq > 0) leave(j, e);
    return seq;
}

void kk_journal_flush(struct kk_journal *j)
{
    pthread_mutex_lock(&j->lock);
    int wake = j->fill.len > 0 && !j->flush;
    j->flush |= wake;
    pthread_mutex_unlock(&j->lock);
    if (wake) pthread_cond_signal(&j->wake);
}

/* ---- the writer thread ---- */

/* Wait until there is something to write, and take it. 0: stopped, and nothing is left. */
static int take(struct kk_journal *j, int64_t *seq)
{
    pthread_mutex_lock(&j->lock);
    while (!j->flush && !j->stop) pthread_cond_wait(&j->wake, &j->lock);
    struct kk_buf empty = j->work;
    j->work = j->fill;
    j->fill = empty;
    j->work_len = j->work.len;
    j->flush = 0;
    *seq = j->seq;
    pthread_mutex_unlock(&j->lock);
    return j->work.len > 0;
}

/* A write failed. Say so once, wait; 0 if it shall not be tried again. */
static int await_retry(struct kk_journal *j, const struct kk_err *err, int *last)
{
    struct timespec t;
    pthread_mutex_lock(&j->lock);
    int first = !j->broken.code;
    j->broken = *err;
    pthread_mutex_unlock(&j->lock);
    if (first && j->o.on_broken) j->o.on_broken(j->o.arg, err->msg);

    clock_gettime(CLOCK_REALTIME, &t);
    t.tv_sec += j->o.retry_ms / 1000;
    t.tv_nsec += (long)(j->o.retry_ms % 1000) * 1000000;
    if (t.tv_nsec >= 1000000000) t.tv_sec++, t.tv_nsec -= 1000000000;
    pthread_mutex_lock(&j->lock);
    while (!j->stop && !pthread_cond_timedwait(&j->wake, &j->lock, &t)) {
    }
    int again = !*last;
    *last = j->stop; /* one more try at the end */
    pthread_mutex_unlock(&j->lock);
    return again;
}

static void written(struct kk_journal *j, int64_t seq)
{
    kk_buf_reset(&j->work);
    if (j->work.cap > KEEP_CAPACITY) kk_buf_release(&j->work);
    pthread_mutex_lock(&j->lock);
    j->work_len = 0;
    j->commits++;
    j->broken = (struct kk_err){0};
    pthread_mutex_unlock(&j->lock);
    atomic_store_explicit(&j->durable, seq, memory_order_release);
    if (j->o.on_durable) j->o.on_durable(j->o.arg, seq);
}

static void *writer(void *arg)
{
    struct kk_journal *j = arg;
    struct kk_err err;
    int64_t seq;
    while (take(j, &seq)) {
        int last = 0;
        while (kk_jdb_write(j->db, j->work.data, j->work.len, &err))
            if (!await_retry(j, &err, &last)) return NULL;
        written(j, seq);
        if (kk_jdb_fold_due(j->db) && kk_jdb_fold(j->db, &err) == 0) {
            pthread_mutex_lock(&j->lock);
            j->folds++;
            pthread_mutex_unlock(&j->lock);
        }
    }
    return NULL;
}

/* ---- open, close, look ---- */

static void discard(struct kk_journal *j)
{
    while (j->entries) leave(j, j->entries);
    kk_jdb_close(j->db);
    kk_buf_release(&j->fill);
    kk_buf_release(&j->work);
    pthread_cond_destroy(&j->wake);
    pthread_mutex_destroy(&j->lock);
    kk_free(j);
}

int kk_journal_open(const struct kk_journal_options *o, struct kk_journal **out, struct kk_err *err)
{
    struct kk_journal *j = kk_calloc(1, sizeof *j);
    if (!j) return kk_fail(err, KK_ENOMEM, "journal: no memory");
    j->o = *o;
    if (!j->o.queue_bytes) j->o.queue_bytes = KK_JOURNAL_QUEUE;
    if (!j->o.retry_ms) j->o.retry_ms = RETRY_MS;
    kk_buf_init(&j->fill, j->o.queue_bytes);
    kk_buf_init(&j->work, j->o.queue_bytes);
    pthread_mutex_init(&j->lock, NULL);
    pthread_cond_init(&j->wake, NULL);
    int rc = kk_jdb_open(o, &j->db, err);
    if (rc) goto out;
    j->next_session = kk_jdb_next_session(j->db);
    if (pthread_create(&j->thread, NULL, writer, j))
        rc = kk_fail(err, KK_EEXHAUSTED, "journal: cannot make a thread");
out:
    if (rc)
        discard(j);
    else
        *out = j;
    return rc;
}

int kk_journal_close(struct kk_journal *j, struct kk_err *err)
{
    int rc = 0;
    if (!j) return 0;
    pthread_mutex_lock(&j->lock);
    j->stop = 1;
    pthread_mutex_unlock(&j->lock);
    pthread_cond_signal(&j->wake);
    pthread_join(j->thread, NULL);
    int64_t lost = j->seq - j->durable;
    if (lost)
        rc = kk_fail(err, KK_EIO, "%lld operations are not in the journal: %s", (long long)lost,
                     j->broken.msg);
    discard(j);
    return rc;
}

int kk_journal_each(struct kk_journal *j,
                    int (*fn)(void *arg, const struct kk_journal_session *s, struct kk_err *err),
                    void *arg, struct kk_err *err)
{
    struct kk_jdb_visit v = {.enter = enter, .journal = j, .fn = fn, .arg = arg};
    KK_BUG_ON(j->seq != 0 || j->entries);
    return kk_jdb_each(j->db, &v, err);
}

int64_t kk_journal_durable(const struct kk_journal *j)
{
    return atomic_load_explicit(&j->durable, memory_order_acquire);
}

void kk_journal_stats(struct kk_journal *j, struct kk_journal_stats *out)
{
    pthread_mutex_lock(&j->lock);
    *out = (struct kk_journal_stats){.queued = j->seq,
                                     .durable = kk_journal_durable(j),
                                     .queue_bytes = j->fill.len + j->work_len,
                                     .commits = j->commits,
                                     .folds = j->folds,
                                     .broken = j->broken.code != 0};
    memcpy(out->msg, j->broken.msg, sizeof out->msg);
    pthread_mutex_unlock(&j->lock);
}
