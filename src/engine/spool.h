/* The spool: snapshots of sessions on their way to disk, and back.
 *
 * Owns: the files of DIR/snapshots, the bytes they take, a writer thread and the queue before it.
 * Refuses to know: what is in a snapshot, which ones are worth keeping, the journal.
 *
 *     ticket = kk_spool_write(sp, name, data, len, err);     data is the spool's now
 *     ... on_done(arg, {ticket, rc}): the file is there, whole and synced, or it is not
 *     kk_spool_read(sp, name, &r, err);  kk_spool_range(r, at, p, n, err);  kk_spool_end(r);
 *
 * A name is written once: what the journal says about a file stays true of it. Whoever takes a new
 * snapshot gives it a new name, tells the journal, and then removes the old one.
 *
 * File: a head (magic, version, sizes), one 64-bit checksum (base/hash.h) for each 256 KiB of
 * contents, the contents. The head's own checksum covers the others; so any range can be checked
 * without reading the rest, and no byte of the file goes unchecked.
 *
 * Threads: any; a reader is used by one at a time. on_done comes from the spool's thread with no
 * lock held, in the order of the tickets; it may call anything but drain and close. */
#ifndef KK_ENGINE_SPOOL_H
#define KK_ENGINE_SPOOL_H

#include <stddef.h>
#include <stdint.h>

#include "base/err.h"
#include "base/io.h"

#define KK_SPOOL_NAME  100               /* most bytes of a name: letters, digits, '-', '_', '.' */
#define KK_SPOOL_QUEUE ((size_t)1 << 30) /* default bound of the queue, in bytes */
/* Bytes of the disk that snapshots leave free: they are for speed, the journal's are not. */
#define KK_SPOOL_SPARE ((int64_t)32 << 20)

/* What became of a write. Borrowed for the length of the call. */
struct kk_spool_done {
    int64_t ticket;
    const char *name;
    int64_t bytes; /* of the file */
    int rc;        /* 0; KK_EIO, with no file left; KK_ECANCELLED: removed before it was written;
               KK_ENOENT: a file that it needs is not there */
    const char *msg;
};

struct kk_spool_options {
    const char *dir;    /* must be there, and this process's alone (kk_journal_open sees to both) */
    int64_t disk_bytes; /* most bytes of files, queued ones included; 0: no bound */
    size_t queue_bytes; /* most bytes waiting to be written; 0: KK_SPOOL_QUEUE */
    int64_t spare_bytes; /* of the disk, left free; 0: KK_SPOOL_SPARE, < 0: none */
    /* At open, for each file found: 0: it is removed. NULL: all are kept. */
    int (*keep)(void *arg, const char *name);
    void (*on_done)(void *arg, const struct kk_spool_done *d); /* may be NULL */
    void *arg;
};

struct kk_spool;

/* Removes half-written files and those not to be kept, counts the others. KK_EINVAL, KK_EIO. */
int kk_spool_open(const struct kk_spool_options *o, struct kk_spool **out, struct kk_err *err);
/* Write all that is queued, and stop. No reader may be open. NULL is fine. */
void kk_spool_close(struct kk_spool *sp);
/* Wait until nothing is queued and all on_done calls have returned. */
void kk_spool_drain(struct kk_spool *sp);

/* Queue a file; never blocks. data comes from kk_malloc, is the spool's on success and untouched on
 * failure. A ticket (growing, > 0), or KK_EINVAL (name), KK_EBUSY (the name is taken),
 * KK_EEXHAUSTED (disk_bytes or the queue's bound: the message has the numbers), KK_EIO (only the
 * spare bytes of the disk are left), KK_ENOMEM. */
int64_t kk_spool_write(struct kk_spool *sp, const char *name, void *data, size_t len,
                       struct kk_err *err);

/* The same for a file that is of use only beside others: needs [names one after another, each with
 * its NUL, then an empty one] are written before it, or it is not written. NULL: none. */
int64_t kk_spool_write_after(struct kk_spool *sp, const char *name, void *data, size_t len,
                             const char *needs, struct kk_err *err);
int kk_spool_has(const struct kk_spool *sp, const char *name); /* 1: the file is on disk */

/* Remove a file, in turn with the writes; one still queued is not written at all. Its bytes are
 * free for other writes at once. 0 also if there is no such file; KK_EINVAL, KK_ENOMEM. */
int kk_spool_remove(struct kk_spool *sp, const char *name, struct kk_err *err);

/* ---- reading ---- */

struct kk_spool_reader;

/* KK_ENOENT: no such file (a queued one is none yet). KK_EFORMAT: not a snapshot file, or a damaged
 * or truncated one. KK_EIO, KK_ENOMEM. */
int kk_spool_read(struct kk_spool *sp, const char *name, struct kk_spool_reader **out,
                  struct kk_err *err);
void kk_spool_end(struct kk_spool_reader *r); /* NULL is fine */
uint64_t kk_spool_length(const struct kk_spool_reader *r);
/* Contents at .. at + n - 1 into p. KK_EFORMAT if they are damaged or not there; p is undefined. */
int kk_spool_range(struct kk_spool_reader *r, uint64_t at, void *p, size_t n, struct kk_err *err);
/* The contents as a stream, from the start on. Valid while the reader is. */
struct kk_io kk_spool_source(struct kk_spool_reader *r);

/* 1: the disk has less than the spare bytes left. */
int kk_spool_is_short(const struct kk_spool *sp);

struct kk_spool_stats {
    int64_t disk_bytes, disk_files;    /* on disk now */
    int64_t promised_bytes;            /* the same after all that is queued */
    size_t queue_bytes;                /* of memory, waiting, the one being written included */
    uint64_t written, removed, failed; /* files */
    uint64_t swept;                    /* files removed at open */
};
void kk_spool_stats(struct kk_spool *sp, struct kk_spool_stats *out);
int64_t kk_spool_disk_bytes(const struct kk_spool *sp); /* the first of them, without a lock */

#endif
