/* Private to kv/: blocks of rows that several sessions hold, and how they are found again. */
#ifndef KK_KV_SHARE_INT_H
#define KK_KV_SHARE_INT_H

#include <stddef.h>
#include <stdint.h>

#include "dev/dev.h"
#include "kv/keep.h"

/* A block that forks hold together; nothing writes to it while more than one does. It has a number
 * while there may be a saved copy of it: then it is in the pool's table, so that a session that
 * comes back finds it. */
struct shared_block {
    void *p;
    int refs;
    int on_host;               /* memory of host_alloc (the tier's), else of the device */
    size_t bytes, used;        /* of the block; of them those that hold something: the first ones */
    uint64_t number;           /* 0: none */
    struct shared_block *next; /* in the pool's table */
};

enum { KK_KV_NUMBERED = 1 << 12 }; /* lists of the pool's table */

/* blocks.c: one block, and what counts its holders (NULL: it is a session's own). */
void kk__block_release(struct kk_kv *kv, void *p, struct shared_block *s, size_t bytes);
/* One holder more. The first time its bytes leave `own` for `shared` (NULL: no such account), and
 * the first `used` are those that hold something. */
int kk__block_share(struct kk_account *own, struct kk_account *shared, void *p,
                    struct shared_block **s, size_t bytes, size_t used, struct kk_err *err);
/* Nobody else holds it: the session's own again. */
void kk__block_unshare(struct kk_kv *kv, struct shared_block **s, size_t bytes);
/* Make a block the session's own; if others hold it too, by a copy of its first `used` bytes. */
int kk__block_own(struct kk_kv *kv, void **p, struct shared_block **s, size_t bytes, size_t used,
                  struct kk_err *err);
/* The block's saved copy has this number from now on. */
void kk__block_number(struct kk_kv_pool *p, struct shared_block *s, uint64_t number);
struct shared_block *kk__block_find(const struct kk_kv_pool *p, uint64_t number);
void kk__block_free(struct kk_kv_pool *p, struct shared_block *s); /* the count, not the memory */

/* snapshot.c: a save or a load under way. */
struct kk__transfer {
    struct kk_kv *kv;
    const struct kk_io *io;
    const struct kk_kv_keeper *keeper; /* NULL: all is the session's own, and nothing is marked */
    char *bounce;                      /* host: room for the largest block or ring */
    struct kk_err *err;
};
/* What a mark of the stream says of a ring, a piece or a block; other marks are numbers. */
enum { KK__OWN, KK__SHARED };
int kk__save_mark(struct kk__transfer *t, uint32_t mark);
int kk__load_mark(struct kk__transfer *t, uint32_t below, uint32_t *mark); /* KK_EFORMAT */
/* 1: the keeper has the block, 0: it is to be saved as the session's own (s NULL: it is). */
int kk__save_block(struct kk__transfer *t, struct shared_block *s, int lasting);
/* The block that comes next, of `bytes` bytes, the first `least` of which hold something at least;
 * it counts one holder more. */
int kk__load_block(struct kk__transfer *t, size_t bytes, size_t least, int on_host,
                   struct shared_block **out);
/* `bytes` of the device to the stream, and back. */
int kk__save_bytes(struct kk__transfer *t, const void *from, size_t bytes);
int kk__load_bytes(struct kk__transfer *t, void *to, size_t bytes);

#endif
