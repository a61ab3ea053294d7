/* Private to kv/: sessions, the pool, and the host tier.
 *
 * A layer that keeps every row is *paged* when a session has a device cap: of its blocks, the first
 * `resident` - 1 stay on the device, the newest (tail) one is written in the last device slot, and
 * the others are in host memory, and come back through the pool's staging ring. With a core to
 * spare a copy thread brings them: attention walks the blocks in ascending order in pieces, and
 * those of a piece are copied while the piece before is computed. Without one, attention takes them
 * itself: each of its threads copies a block into a slot of its own and reads it there. */
#ifndef KK_KV_KV_INT_H
#define KK_KV_KV_INT_H

#include <pthread.h>
#include <stdatomic.h>

#include "kv/kv.h"
#include "kv/share_int.h"

/* A ring of rows of one session: a layer's, or its latents (ring.c has the picture). */
enum { KK_KV_PIECE_ROWS = 16 };

struct ring_shape { /* `sinks` fixed rows, and `size` that newer ones take over */
    int32_t sinks, size;
    size_t row_bytes;
};

struct ring_rows {
    void *base;                      /* device [sinks + size, row_bytes]; NULL: there is no ring */
    struct shared_block *base_share; /* NULL: the session's own */
    void **piece;                    /* host [pieces]: where each is; NULL: all are in base */
    struct shared_block **share;     /* [pieces], of those apart; NULL: the session's own */
    int32_t n_apart;                 /* pieces that are not in base */
};

/* One layer of one session: a ring, or blocks. */
struct layer_rows {
    struct ring_rows ring;
    void **blocks; /* host array of device pointers by block. Paged: NULL for a block in host memory
                      that is not staged */
    void **host;   /* paged: [cap_blocks] host copies, or NULL */
    void **slot;   /* paged: [resident] device blocks */
    struct shared_block **share; /* [cap_blocks]; NULL: the block is the session's own. Paged: of
                                    the host copies */
    int32_t n_blocks, cap_blocks;
    int64_t stored; /* rows ever stored: what INV-1 compares with kv->rows */
};

struct kk_kv {
    struct kk_kv_pool *pool;
    struct kk_account device, host;
    struct layer_rows *layer;
    struct ring_rows latents;
    int64_t latent_at; /* latents stored */
    int64_t rows;
    int broken;
};

/* The staging ring: slots for host blocks on their way to attention. With a copy thread, copies are
 * asked for in the order of the walk and done in that order; request i uses slot i % n_slots. */
struct stage {
    int n_slots; /* 0: no tier */
    size_t slot_bytes;
    char *memory; /* device [n_slots, slot_bytes] */
    struct stage_request {
        const void *src;
        size_t bytes;
        void **entry;  /* the block table entry that points at the slot */
        int64_t batch; /* of the device's copy engine */
    } * request;       /* [n_slots] */
    int engine;        /* the device copies beside the ops */
    void **dst;        /* of a batch: [n_slots] each */
    const void **src;
    size_t *bytes;
    int64_t asked, released;      /* requests made, and given back (by the engine thread) */
    _Atomic int64_t queued, done; /* requests the thread may do, and finished copies */
    _Atomic int sleeping;         /* the thread waits on `more` */
    _Atomic int waiting;          /* the engine thread waits on `finished` */
    int stop, started;
    pthread_mutex_t lock;
    pthread_cond_t more, finished;
    pthread_t thread;
};

/* A place in the walk of a step over (paged layer, sequence, host block). */
struct walk {
    int l, b;
    int32_t block;
};

struct kk_kv_pool {
    struct kk_dev *dev;
    struct kk_kv_layout layout;
    struct kk_kv_options options; /* policy not kept */
    struct kk_kv_rule *rule;
    size_t latent_bytes;
    int32_t latent_rows;
    struct kk_kv_limits limits;
    struct kk_account staging;
    struct kk_account host;   /* of all sessions */
    struct kk_account shared; /* device blocks that forks hold together */
    struct shared_block *numbered[KK_KV_NUMBERED];
    int64_t device_cap, host_cap; /* a session's, everybody's; 0: none */
    int32_t resident; /* device blocks of every paged layer of a session; 0: nothing is paged */
    struct stage stage;
    size_t hold_base;    /* where held rows start in scratch; before them: one layer of a chunk */
    size_t *hold_offset; /* [n_layers]: where a layer's start, from hold_base */
    size_t scratch_bytes;
    void *scratch;       /* device */
    struct step_tables { /* one block of memory */
        char *base;
        struct kk_kv_seq *seqs;    /* [n_layers, max_seqs] */
        int32_t *keep, *pos, *seq; /* [max_seqs] (of use to the host alone), [T], [T] */
        void **blocks; /* [n_entries]: block tables of a device that cannot read the host's, list */
    } tables, h;       /* the device's, and their host twins, filled by begin */
    size_t n_entries, used; /* used by block tables of the running step */
    /* the running step */
    int32_t
        n_listed; /* host blocks, whose list is behind them (kk__tier_list); -1: there is none */
    enum kk_step_kind kind;
    int mixed; /* kind is KK_STEP_CHUNK, and some sequences are held */
    int active, T, B;
    int failed; /* the sequence that made begin fail, or -1 */
    struct kk_kv **step_kv;
    int32_t *step_n;
    uint8_t *step_hold;   /* mixed: by sequence */
    struct walk ask;      /* the next block to ask for */
    struct walk read;     /* where attention is */
    int32_t piece_blocks; /* host blocks of the piece handed out */
};

static inline int kk__kv_is_paged(const struct kk_kv_pool *p, int l)
{
    return p->resident > 0 && !p->rule[l].ring;
}
/* 1 if attention brings host blocks in by itself, or reads them where they are. */
static inline int kk__tier_inline(const struct kk_kv_pool *p)
{
    return !p->stage.started && !p->stage.engine;
}
static inline size_t kk__kv_block_bytes(const struct kk_kv_rule *r)
{
    return (r->ring ? (size_t)(r->sinks + r->ring) : KK_KV_BLOCK_ROWS) * r->row_bytes;
}

/* Rows of block i of a layer that hold something after `rows`. */
static inline int32_t kk__kv_rows_of_block(int32_t i, int64_t rows)
{
    const int64_t left = rows - (int64_t)i * KK_KV_BLOCK_ROWS;
    return left < 0 ? 0 : left > KK_KV_BLOCK_ROWS ? KK_KV_BLOCK_ROWS : (int32_t)left;
}

/* Rows of a layer that are stored after `rows`. */
static inline int64_t kk__kv_resident(const struct kk_kv_rule *r, int64_t rows)
{
    int64_t cap = (int64_t)r->sinks + r->ring;
    return r->ring && rows > cap ? cap : rows;
}

static inline int32_t kk__kv_latent_rows(const struct kk_kv_layout *y,
                                         const struct kk_kv_rule *rule)
{
    int32_t most = 0;
    for (int l = 0; l < y->n_layers; l++)
        if (rule[l].latent_rows > most) most = rule[l].latent_rows;
    return most;
}

static inline struct ring_shape kk__ring_of(const struct kk_kv_rule *r)
{
    return (struct ring_shape){r->sinks, r->ring, r->row_bytes};
}
static inline struct ring_shape kk__latent_ring(const struct kk_kv_pool *p)
{
    return (struct ring_shape){0, p->latent_rows, p->latent_bytes};
}
static inline int64_t kk__ring_held(const struct ring_shape *y, int64_t rows)
{
    return rows < y->sinks + y->size ? rows : y->sinks + y->size;
}
static inline int32_t kk__ring_pieces(int32_t rows)
{
    return (rows + KK_KV_PIECE_ROWS - 1) / KK_KV_PIECE_ROWS;
}

/* kv.c: a session without blocks; room for n more rows, what is to be written to made own. */
int kk__kv_new(struct kk_kv_pool *pool, struct kk_kv **out, struct kk_err *err);
int kk__kv_reserve(struct kk_kv *kv, int32_t n, struct kk_err *err);

/* blocks.c, of layers that keep every row */
int kk__blocks_grow(struct kk_kv *kv, int l, int32_t n, struct kk_err *err);
void kk__blocks_shrink(struct kk_kv *kv, int l, int32_t n);
int kk__blocks_own(struct kk_kv *kv, int32_t n, struct kk_err *err); /* rings too */
/* The next block of layer l is one that is shared, of which `held` bytes hold something. */
int kk__blocks_join(struct kk__transfer *t, int l, size_t held);

/* ring.c */
int kk__ring_open(struct kk_kv *kv, struct ring_rows *r, const struct ring_shape *y,
                  struct kk_err *err);
void kk__ring_close(struct kk_kv *kv, struct ring_rows *r, const struct ring_shape *y);
/* rows: that have been written to it. On failure `to` holds what it has got: close it. */
int kk__ring_fork(struct kk_kv *parent, struct ring_rows *from, struct ring_rows *to,
                  const struct ring_shape *y, int64_t rows, struct kk_err *err);
/* rows: the first slots that hold something. Loading may begin without a base. */
int kk__ring_save(struct kk__transfer *t, const struct ring_rows *r, const struct ring_shape *y,
                  int64_t rows);
int kk__ring_load(struct kk__transfer *t, struct ring_rows *r, const struct ring_shape *y,
                  int64_t rows);
/* Where rows [first, first + n) go is made the session's own. A failure changes no row. */
int kk__ring_own(struct kk_kv *kv, struct ring_rows *r, const struct ring_shape *y, int64_t first,
                 int32_t n, struct kk_err *err);
/* Device bytes that kk__ring_own would take */
int64_t kk__ring_growth(const struct ring_rows *r, const struct ring_shape *y, int64_t first,
                        int32_t n);
int64_t kk__ring_shared_bytes(const struct ring_rows *r, const struct ring_shape *y);
/* Where row j is, and of the *run rows from it on those that lie there one after another. */
char *kk__ring_run(const struct ring_rows *r, const struct ring_shape *y, int64_t j, int32_t *run);
void kk__ring_describe(const struct ring_rows *r, const struct ring_shape *y, struct kk_kv_seq *s);
int32_t kk__ring_entries(const struct ring_rows *r, const struct ring_shape *y); /* of s->blocks */

/* tier.c */
int kk__tier_open(struct kk_kv_pool *p, int staging_blocks, struct kk_err *err);
void kk__tier_close(struct kk_kv_pool *p);
int kk__tier_open_layer(struct kk_kv *kv, int l, struct kk_err *err); /* the device slots */
void kk__tier_close_layer(struct kk_kv *kv, int l);
/* child shares the host blocks of parent and has its own copy of what is on the device. */
int kk__tier_fork_layer(struct kk_kv *parent, struct kk_kv *child, int l, struct kk_err *err);
/* Point the block table of a layer that holds `rows` rows at its device slots. */
void kk__tier_place(struct kk_kv *kv, int l, int64_t rows);
/* Room in host memory for all rows up to `total`. KK_EEXHAUSTED leaves the session as it was. */
int kk__tier_reserve(struct kk_kv *kv, int l, int64_t total, struct kk_err *err);
/* The same in parts: the tables, and full block i, the session's own or (s) a shared one. */
int kk__tier_tables(struct kk_kv *kv, int l, int64_t total, struct kk_err *err);
int kk__tier_own_block(struct kk_kv *kv, int l, int32_t i, struct kk_err *err);
void kk__tier_join(struct kk_kv *kv, int l, int32_t i, struct shared_block *s);
void *kk__tier_host_alloc(struct kk_kv_pool *p, size_t bytes, struct kk_err *err);
/* Store the first `keep` rows of step sequence b into layer l, paging out blocks that fill. */
void kk__tier_store(struct kk_kv_pool *p, int l, int b, int32_t keep);
/* Where the step's host blocks will be: their entries of table; *at counts over a step's calls,
 * layers outermost. list: where they come from, to list [room]; how many, -1: there is no room. */
void kk__tier_slots(const struct kk_kv_pool *p, int l, int b, void **table, int64_t *at);
int32_t kk__tier_list(const struct kk_kv_pool *p, void **list, size_t room);
/* Before the first layer of a step; after the last. */
void kk__tier_begin(struct kk_kv_pool *p);
void kk__tier_drain(struct kk_kv_pool *p);
size_t kk__tier_ring_bytes(const struct kk_kv_layout *layout, const struct kk_kv_rule *rule,
                           int slots);
/* Blocks of every paged layer that a cap leaves room for, 0 if it is below *least. */
int32_t kk__tier_resident(const struct kk_kv_layout *layout, const struct kk_kv_rule *rule,
                          size_t latent_bytes, int64_t cap, int64_t *least);

#endif
