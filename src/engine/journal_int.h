/* The journal's two halves: journal.c is the queue and its thread, journal_db.c the database. A
 * queued operation is a struct kk_jop followed by its parts, and padded to 8 bytes. */
#ifndef KK_ENGINE_JOURNAL_INT_H
#define KK_ENGINE_JOURNAL_INT_H

#include "engine/journal.h"

enum kk_jop_kind {
    KK_JOP_CREATE,   /* parts: id, label, eos */
    KK_JOP_FORK,     /* a: parent, b: tokens; parts: id, label */
    KK_JOP_APPEND,   /* a: position; parts: ids */
    KK_JOP_SNAPSHOT, /* a: rows, b: bytes; parts: file name */
    KK_JOP_NO_SNAPSHOT,
    KK_JOP_REMOVE
};
enum { KK_JOP_PARTS = 3 };

struct kk_jop {
    uint32_t kind;
    uint32_t len[KK_JOP_PARTS]; /* bytes of each part */
    int64_t session;            /* its number: never given twice */
    int64_t time;               /* unix seconds */
    int64_t a, b;
};

struct kk_jdb;

/* Lock the directory, open or make the database, fold what its log holds. Errors: journal.h. */
int kk_jdb_open(const struct kk_journal_options *o, struct kk_jdb **out, struct kk_err *err);
/* Fold, empty the WAL, unlock. NULL is fine. */
void kk_jdb_close(struct kk_jdb *db);

/* The number for the next session. */
int64_t kk_jdb_next_session(const struct kk_jdb *db);

/* All operations of a queue's bytes, in one transaction: all of them are durable, or (KK_EIO) none
 * has happened. */
int kk_jdb_write(struct kk_jdb *db, const char *ops, size_t len, struct kk_err *err);

/* Move the log into the sessions' histories. Wanted from time to time; harmless if it fails. */
int kk_jdb_fold_due(const struct kk_jdb *db);
int kk_jdb_fold(struct kk_jdb *db, struct kk_err *err);

/* As kk_journal_each; `enter` makes the entry of a session. */
struct kk_jdb_visit {
    struct kk_journal_entry *(*enter)(struct kk_journal *j, int64_t session, uint64_t tokens);
    struct kk_journal *journal;
    int (*fn)(void *arg, const struct kk_journal_session *s, struct kk_err *err);
    void *arg;
};
int kk_jdb_each(struct kk_jdb *db, const struct kk_jdb_visit *v, struct kk_err *err);

#endif
