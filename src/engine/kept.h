/* Sessions that were saved, and the blocks that they hold together.
 *
 * Owns: the host copies of shared blocks, the files that hold such blocks, and the counts of who
 * refers to either. Refuses to know: what is in a block, which sessions there are, the journal.
 *
 *     kk_kept_keeper(k, &saved)          what kk_kv_save_shared and kk_kv_load_shared talk to
 *     kk_kept_write(k, &saved, name, ..) to disk: first the blocks that are in no file, then the
 *                                        session's own bytes, which name the files they need
 *     kk_kept_read(k, snapshot, &saved)  and back: its blocks are read as the keeper is asked
 *
 * A file of blocks is written before the session's file that names it (the spool sees to that), and
 * removed after the last one that does: whenever the process ends, a session's file finds its
 * blocks, and files of blocks that nobody names are removed at the next start.
 *
 * Threads: one, the runtime's. docs/formats/state.md has the bytes, docs/adr/0026 the reasons. */
#ifndef KK_ENGINE_KEPT_H
#define KK_ENGINE_KEPT_H

#include "base/io.h"
#include "engine/spool.h"
#include "kv/keep.h"

struct kk_kept;
struct kept_block;
struct kept_file;

/* number: blocks and files are numbered from it up, and are not given twice. */
int kk_kept_open(uint64_t *number, struct kk_kept **out, struct kk_err *err);
void kk_kept_close(struct kk_kept *k); /* NULL is fine; after all that was saved is released */
int64_t kk_kept_host_bytes(const struct kk_kept *k); /* of shared blocks in host memory */

/* A saved session in host memory. Zeroed at first. */
struct kk_saved {
    char *p;                   /* [cap], the first n are its own bytes */
    size_t n, cap, at;         /* at: of the source */
    struct kept_block **block; /* [n_blocks], in the order of saving */
    int n_blocks, cap_blocks, next;
    int64_t room;                   /* device bytes that its own blocks take when it is loaded */
    int in_memory;                  /* saving: its blocks have host copies, whatever is on disk */
    const struct kk_snapshot *mine; /* saving: the session's own file, which this one replaces */
    int apart; /* saving: blocks that come now are of another pool (a drafter's) */
    struct kk_spool_reader *own, *blocks; /* reading: the session's file, a file of blocks */
    struct kept_file *blocks_file;
    struct kk_kept *k; /* set by kk_kept_keeper */
};
struct kk_kv_keeper kk_kept_keeper(struct kk_kept *k, struct kk_saved *s); /* valid while s is */
int kk_saved_expect(struct kk_saved *s, size_t more, struct kk_err *err);  /* room for more bytes */
void kk_saved_fit(struct kk_saved *s);                        /* no more room than is used */
struct kk_io kk_saved_sink(struct kk_saved *s);               /* its own bytes, appended */
struct kk_io kk_saved_source(struct kk_saved *s);             /* the same from the start on */
void kk_saved_release(struct kk_kept *k, struct kk_saved *s); /* s is as zeroed */
int64_t kk_saved_shared_bytes(const struct kk_saved *s);      /* of the blocks that it refers to */
/* Device bytes that it takes when it is loaded into this pool: blocks that are there count nothing.
 * pool NULL: with all of them. */
int64_t kk_saved_room(const struct kk_saved *s, const struct kk_kv_pool *pool);

/* ---- files ---- */

/* A session's file, written or on its way. */
struct kk_snapshot {
    int64_t tokens; /* of the history, in it */
    char name[KK_SPOOL_NAME + 1];
    int n_files;
    struct kept_file *file[]; /* that hold blocks of it */
};
/* One whose files are not known yet. NULL: no memory. */
struct kk_snapshot *kk_snapshot_new(const char *name, int64_t tokens);

/* The spool that files go to and come from; before the next five. */
void kk_kept_spool(struct kk_kept *k, struct kk_spool *sp);
/* Queue s, as `name` with a letter for its kind. take: its bytes are given away, and s is released;
 * else it stays. On failure (of kk_spool_write) s stays too. */
int kk_kept_write(struct kk_kept *k, struct kk_saved *s, const char *name, int64_t tokens, int take,
                  struct kk_snapshot **out, struct kk_err *err);
/* s becomes what the file holds. KK_EFORMAT: it is damaged, or one of its blocks is gone. */
int kk_kept_read(struct kk_kept *k, const struct kk_snapshot *f, struct kk_saved *s,
                 struct kk_err *err);
/* The file is of no use (any more): it goes, and after it the blocks that only it referred to. NULL
 * is fine. */
void kk_kept_remove(struct kk_kept *k, struct kk_snapshot *f);
/* The spool says that it could not write f: nothing refers to files that are not there. */
void kk_kept_failed(struct kk_kept *k, struct kk_snapshot *f);
void kk_kept_forget(struct kk_snapshot *f); /* at the end: files stay */

/* ---- start ---- */

/* A name that the spool found: 1, and it is noted, if it is a file of blocks. */
int kk_kept_found(struct kk_kept *k, const char *name);
/* Look at the files of blocks that were found; damaged ones are removed. */
int kk_kept_load(struct kk_kept *k, struct kk_err *err);
/* Which of them *f refers to. On failure (KK_EFORMAT, KK_ENOENT: of no use) *f is as it was. */
int kk_kept_adopt(struct kk_kept *k, struct kk_snapshot **f, struct kk_err *err);
void kk_kept_sweep(struct kk_kept *k); /* those that nobody refers to are removed */

#endif
