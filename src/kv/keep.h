/* Saving sessions whose blocks others hold too: such a block is saved once, under a number, and
 * sessions that come back share it again.
 *
 * What a session holds alone goes to a stream, as kk_kv_save says. Of a block that forks share the
 * stream says only that it is one: its bytes go to a keeper, which counts who refers to them. A
 * shared block does not change, so a number stands for the same bytes for ever; a block that is in
 * device memory still is found there by its number, and not read at all. */
#ifndef KK_KV_KEEP_H
#define KK_KV_KEEP_H

#include "kv/kv.h"

struct kk_kv_kept {
    uint64_t number; /* 0: it has none yet */
    size_t bytes;    /* to be kept */
    size_t room;     /* device bytes that it takes; 0: it is in host memory there, too */
    int lasting;     /* 0: a ring's, or not full: whoever goes on will soon do without it */
    int sole;        /* only the session that is saved holds it now */
};

struct kk_kv_keeper {
    /* Saving: refer to a block. Sets its number where it has none, and *into to where its bytes
     * are to be put, NULL: they are kept already. KK_ENOENT: nobody else wants it (it is `sole`):
     * the session saves it as its own. Any other error ends the save. */
    int (*keep)(void *arg, struct kk_kv_kept *b, void **into, struct kk_err *err);
    /* Loading: the next block that the session refers to, in the order of saving; its number and
     * bytes. KK_EFORMAT: there is none. */
    int (*next)(void *arg, struct kk_kv_kept *b, struct kk_err *err);
    /* The bytes of that block: *from is set to them; `room` [bytes] may be used for them. */
    int (*fetch)(void *arg, const struct kk_kv_kept *b, void *room, const void **from,
                 struct kk_err *err);
    void *arg;
};

/* As kk_kv_save and kk_kv_load, with a keeper. */
int kk_kv_save_shared(const struct kk_kv *kv, const struct kk_io *sink,
                      const struct kk_kv_keeper *keeper, struct kk_err *err);
int kk_kv_load_shared(struct kk_kv *kv, int64_t rows, const struct kk_io *source,
                      const struct kk_kv_keeper *keeper, struct kk_err *err);

/* 1: a block of this number is in device memory (or in the tier's). */
int kk_kv_holds(const struct kk_kv_pool *pool, uint64_t number);

/* A session that holds nothing, to be loaded into at once: else it is broken. */
int kk_kv_open_empty(struct kk_kv_pool *pool, struct kk_kv **out, struct kk_err *err);

#endif
