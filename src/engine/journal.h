/* The journal: sessions and their token history on disk, so that a process that dies at any moment
 * comes back with every token it has sent.
 *
 * Owns: DIR/lock, DIR/journal.db (SQLite, WAL), a writer thread, and the queue before it.
 * Refuses to know: what tokens mean, KV rows, which session ids exist, snapshot files.
 *
 *     kk_journal_open(&o, &j, err);
 *     kk_journal_each(j, restore, arg, err);                       what the last process left
 *     seq = kk_journal_append(j, entry, position, ids, n, err);    queued, nothing waits
 *     kk_journal_flush(j);                                         once, at the end of a step
 *     ... on_durable(arg, seq'): all with seq <= seq' may be told to the world
 *     kk_journal_close(j, err);
 *
 * Threads: one thread (the engine's) makes all calls, except kk_journal_durable and
 * kk_journal_stats, which any thread may make. The callbacks come from the writer thread, with no
 * lock held; they may make those two calls alone.
 *
 * Invariants
 *   J1  operations become durable in the order of their numbers: after a crash the journal holds
 *       exactly the first so many of them, at least all that on_durable has announced
 *   J2  an operation is announced only after its transaction is committed
 *   J3  an operation that is refused changes nothing; the same one may be tried again later
 *   J4  a write that fails (full disk, I/O error) is tried again until it succeeds: operations
 *       wait in the queue, up to its bound
 *
 * Durable means: survives the end of the process in any manner. With `full` also the end of the
 * machine; without it a power cut may take the last commits (never an older one before a newer
 * one, and never the file's integrity). */
#ifndef KK_ENGINE_JOURNAL_H
#define KK_ENGINE_JOURNAL_H

#include <stddef.h>
#include <stdint.h>

#include "base/err.h"

#define KK_JOURNAL_QUEUE ((size_t)64 << 20) /* default bound of the queue, in bytes */
#define KK_JOURNAL_TEXT  255                /* most bytes of an id, a label, a file name */

struct kk_journal_options {
    const char *dir;      /* made if missing (its parent is not); private to this process */
    int full;             /* synchronous=FULL in place of NORMAL */
    const char *model;    /* for messages */
    uint64_t fingerprint; /* of the model: a journal of another one is refused */
    size_t queue_bytes;   /* bound of what waits to be written; 0: KK_JOURNAL_QUEUE */
    uint32_t retry_ms;    /* between two tries of a write that fails; 0: 500 */
    void (*on_durable)(void *arg, int64_t seq);
    /* A write failed and will be tried again; once per outage. The next on_durable ends it. */
    void (*on_broken)(void *arg, const char *msg);
    void *arg;
};

struct kk_journal;
struct kk_journal_entry; /* a session's place in the journal; owned by the journal until `remove` */

/* KK_EINVAL: no directory named. KK_EEXHAUSTED: another process has it (its pid is named).
 * KK_EIO: cannot be made or written. KK_EFORMAT: not a journal, or a damaged one. KK_EUNSUPPORTED:
 * written by a newer version. KK_EINVARIANT: holds sessions of another model. */
int kk_journal_open(const struct kk_journal_options *o, struct kk_journal **out,
                    struct kk_err *err);

/* Write all that is queued, fold the log, empty the WAL, stop. KK_EIO if something queued could not
 * be written. j is gone either way; NULL is fine. */
int kk_journal_close(struct kk_journal *j, struct kk_err *err);

/* One session as the last process left it. All pointers are borrowed for the length of the call. */
struct kk_journal_session {
    struct kk_journal_entry *entry;
    const char *id, *label; /* label "": none */
    const uint32_t *eos;    /* end-of-sequence ids of its own */
    size_t n_eos;
    const uint32_t *ids; /* history */
    size_t n;
    int64_t created, active; /* unix seconds */
    const char *snapshot;    /* file name; NULL: none */
    int64_t snapshot_rows, snapshot_bytes;
};

/* Every session in the order of creation; only before the first operation. A callback that returns
 * not 0 ends it, and is returned. KK_EFORMAT names a session whose history has a hole. */
int kk_journal_each(struct kk_journal *j,
                    int (*fn)(void *arg, const struct kk_journal_session *s, struct kk_err *err),
                    void *arg, struct kk_err *err);

/* ---- operations ----
 *
 * Each copies its arguments, never blocks, and returns its number (growing, > 0), or, with nothing
 * changed: KK_EEXHAUSTED (the queue is at its bound), KK_EIO (the same, and writes are failing: the
 * message says why), KK_ENOMEM, KK_ERANGE (a text over KK_JOURNAL_TEXT). */

int64_t kk_journal_create(struct kk_journal *j, const char *id, const char *label,
                          const uint32_t *eos, size_t n_eos, struct kk_journal_entry **out,
                          struct kk_err *err);
/* A new session with the label given, and the parent's eos ids and first n tokens. */
int64_t kk_journal_fork(struct kk_journal *j, const struct kk_journal_entry *parent, uint64_t n,
                        const char *id, const char *label, struct kk_journal_entry **out,
                        struct kk_err *err);
/* ids go to position .. position + n - 1; position must be kk_journal_tokens(e), n at least 1. */
int64_t kk_journal_append(struct kk_journal *j, struct kk_journal_entry *e, uint64_t position,
                          const uint32_t *ids, size_t n, struct kk_err *err);
/* The session has a snapshot of its first `rows` rows in this file; replaces an older one. */
int64_t kk_journal_note_snapshot(struct kk_journal *j, struct kk_journal_entry *e, const char *file,
                                 int64_t rows, int64_t bytes, struct kk_err *err);
int64_t kk_journal_drop_snapshot(struct kk_journal *j, struct kk_journal_entry *e,
                                 struct kk_err *err);
/* The session is closed: forget it. On success e is gone. */
int64_t kk_journal_remove(struct kk_journal *j, struct kk_journal_entry *e, struct kk_err *err);

/* Tokens appended so far, queued ones included. */
uint64_t kk_journal_tokens(const struct kk_journal_entry *e);

/* Send what is queued on its way: one call after the operations of an engine step makes them one
 * transaction. Without it they stay queued. */
void kk_journal_flush(struct kk_journal *j);

/* ---- any thread ---- */

/* The last operation known to be durable; 0: none yet. */
int64_t kk_journal_durable(const struct kk_journal *j);

struct kk_journal_stats {
    int64_t queued, durable; /* numbers of the last operations */
    size_t queue_bytes;      /* waiting, those being written included */
    uint64_t commits, folds;
    int broken;    /* the last write failed */
    char msg[512]; /* why; "" while not broken */
};
void kk_journal_stats(struct kk_journal *j, struct kk_journal_stats *out);

#endif
