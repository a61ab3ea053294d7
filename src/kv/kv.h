/* The KV cache: which rows of which layer a query may see (policy), where their bytes live (store),
 * and the two-phase step that makes speculation cheap (begin / commit).
 *
 * Owns: every session's rows, the step scratch, and the bytes of both, counted. Refuses to know:
 * architectures, tokens, sessions' histories.
 *
 * Invariants
 *   K1  visibility is a function of absolute positions only (struct kk_mask); so is eviction
 *   K2  a row is immutable once written; a ring slot is overwritten only by a committed row
 *   K3  rows of the running step live in the pool's step scratch, never in a ring; commit(k) copies
 * the first k of them. Nothing stored is ever undone, so a ring holds exactly sinks + window rows
 *   K4  a layer that stores every row grows by blocks of KK_KV_BLOCK_ROWS; rings are allocated
 * whole K5  every byte is in an account: the session's `device`, or the pool's `staging`
 *
 * A step:  kk_kv_begin -> for each layer: model writes rows at kk_kv_layer().rows, attends over
 * .seqs, calls kk_kv_layer_done -> kk_kv_commit (or kk_kv_abort). Two kinds: KK_STEP_HOLD
 * keeps all layers' new rows in scratch until commit(k), k <= n chosen after the forward (decode,
 * verification). KK_STEP_CHUNK keeps all n rows by promise, stores them layer by layer and needs
 * scratch for one layer only (prefill). kk_kv_begin_mixed has sequences of both kinds in one step.
 */
#ifndef KK_KV_KV_H
#define KK_KV_KV_H

#include <stddef.h>
#include <stdint.h>

#include "base/err.h"
#include "base/io.h"
#include "dev/dev.h"

#define KK_KV_BLOCK_ROWS 128 /* rows in a block; a multiple of every device's attn_split */

/* What the model tells the cache about one of its layers. */
struct kk_kv_layer {
    int sliding;    /* else full attention */
    int G, D;       /* KV heads, head dim */
    int value_only; /* keys are derived from values: half the row */
    int32_t window; /* the model's own window W (sliding layers) */
};

struct kk_kv_layout {
    int n_layers;
    const struct kk_kv_layer *layer; /* borrowed for the pool's life */
    enum kk_dtype dtype;             /* of stored rows: KK_F32, KK_BF16 or KK_Q8_0 */
};

/* A named configuration (DESIGN §4); sinks and window are its two numbers. */
struct kk_kv_options {
    const char *policy;    /* "full", "native", "s5", "restored", "sinkwin" */
    int32_t sinks, window; /* of near rows; s5, restored and sinkwin */
    size_t latent_bytes;   /* restored: of a row's latent; 0: rows of the window are kept exactly */
    int64_t device_cap;    /* most device bytes of a session; 0: no cap, nothing is paged */
    int64_t host_cap;      /* most host bytes of all sessions; 0: no cap */
    int staging_blocks;    /* slots of the staging ring, >= 2 when there is a device cap */
};

enum kk_kv_keep { KK_KEEP_ALL, KK_KEEP_WINDOW, KK_KEEP_NEAR };

/* How one layer is treated under a policy: derived once at open. */
struct kk_kv_rule {
    enum kk_kv_keep keep;
    int32_t sinks, ring; /* physical ring: sinks + ring rows; ring 0 = every row, in blocks */
    struct kk_mask mask;
    size_t row_bytes;
    int32_t latent_rows; /* > 0: a latent is kept for so many rows, once for all such layers */
};

/* Fill rule[n_layers]. KK_EINVAL names the unknown policy (and lists the known), or a negative
 * sink/window count, or a window over the model's, or a device cap below what must stay there. */
int kk_kv_rules(const struct kk_kv_layout *layout, const struct kk_kv_options *opt,
                struct kk_kv_rule *rule, struct kk_err *err);

/* Device bytes of a session that holds `rows` rows: the formula of `plan`, held by a test against
 * the allocator (law 1). With a device cap it does not depend on rows. */
size_t kk_kv_plan_bytes(const struct kk_kv_layout *layout, const struct kk_kv_options *opt,
                        const struct kk_kv_rule *rule, int64_t rows);
/* Host bytes of it: the full blocks that a device cap pages out; 0 without one. */
size_t kk_kv_plan_host_bytes(const struct kk_kv_layout *layout, const struct kk_kv_options *opt,
                             const struct kk_kv_rule *rule, int64_t rows);

struct kk_kv_pool; /* one per model: step scratch, tables */
struct kk_kv;      /* one per session */

struct kk_kv_limits {
    int max_seqs;       /* B of a step */
    int max_chunk_rows; /* T of a KK_STEP_CHUNK, or of a mixed step */
    int max_hold_rows;  /* T of a KK_STEP_HOLD */
    int64_t ctx; /* rows of the longest session, on a device with memory of its own; else 0 */
};

/* Slots of the staging ring for `asked` (0: what suits the device): at least one for each thread
 * that may copy. */
int kk_kv_staging_blocks(const struct kk_dev *dev, int asked);

/* Bytes of the pool itself (staging), likewise. */
size_t kk_kv_plan_staging(const struct kk_kv_layout *layout, const struct kk_kv_options *opt,
                          const struct kk_kv_rule *rule, const struct kk_kv_limits *limits);

int kk_kv_pool_open(struct kk_dev *dev, const struct kk_kv_layout *layout,
                    const struct kk_kv_options *opt, const struct kk_kv_limits *limits,
                    struct kk_kv_pool **out, struct kk_err *err);
void kk_kv_pool_close(struct kk_kv_pool *pool); /* after every session of it; NULL is fine */
int64_t kk_kv_staging_bytes(const struct kk_kv_pool *pool);
int64_t kk_kv_pool_host_bytes(const struct kk_kv_pool *pool); /* of all sessions' paged rows */
/* Device bytes of a session of so many rows that shares none. */
int64_t kk_kv_bytes_at(const struct kk_kv_pool *pool, int64_t rows);

int kk_kv_open(struct kk_kv_pool *pool, struct kk_kv **out, struct kk_err *err);
void kk_kv_close(struct kk_kv *kv); /* NULL is fine */

/* A second session with the same rows, which are shared: what either writes later is its own.
 * Not inside a step. A failure leaves the parent as it was. */
int kk_kv_fork(struct kk_kv *parent, struct kk_kv **out, struct kk_err *err);
int64_t kk_kv_shared_bytes(const struct kk_kv_pool *pool); /* device blocks that forks share */
int64_t kk_kv_shared_of(const struct kk_kv *kv);           /* of them, those of a session */
/* Device bytes that n more rows of this session take: blocks, and copies of what it shares. */
int64_t kk_kv_growth(const struct kk_kv *kv, int32_t n);

/* Save a session's rows, and fill a fresh session of a pool of the same layout, options and limits
 * with them. A load that fails leaves the session broken: close it. */
int64_t kk_kv_saved_bytes(const struct kk_kv_pool *pool, int64_t rows);
int kk_kv_save(const struct kk_kv *kv, const struct kk_io *sink, struct kk_err *err);
int kk_kv_load(struct kk_kv *kv, int64_t rows, const struct kk_io *source, struct kk_err *err);

int64_t kk_kv_rows(const struct kk_kv *kv);           /* rows committed */
int64_t kk_kv_device_bytes(const struct kk_kv *kv);   /* from the allocator */
int64_t kk_kv_host_bytes(const struct kk_kv *kv);     /* what was paged out */
int64_t kk_kv_resident_rows(const struct kk_kv *kv);  /* physical rows, summed over layers */
int64_t kk_kv_resident_bytes(const struct kk_kv *kv); /* of those rows, and of latents kept */
int64_t kk_kv_dropped(const struct kk_kv *kv);        /* positions no layer can see any more */

/* restored: the ring of latents, one row a token of the native window, and its next n rows, which
 * were committed just before. Copying latents [first, first + n), all held, to dst. */
int64_t kk_kv_latents(const struct kk_kv *kv); /* ever stored */
void kk_kv_store_latents(struct kk_kv *kv, const void *latents, int n);
void kk_kv_copy_latents(const struct kk_kv *kv, int32_t first, int32_t n, void *dst);

/* Inside a step: rows [first, first + n) of layer l of step sequence b, all stored, to dst. */
void kk_kv_copy_rows(const struct kk_kv_pool *pool, int b, int l, int32_t first, int32_t n,
                     void *dst);

/* INV-1 on the physical side: every layer has stored exactly the rows the bookkeeping says, and
 * holds the number its rule says. 0, or KK_EINVARIANT naming the layer and both numbers. */
int kk_kv_check(const struct kk_kv *kv, struct kk_err *err);

/* Copy row j of a layer to dst (row_bytes of its rule): tests, snapshots. KK_ENOENT if it is not
 * stored. */
int kk_kv_read_row(const struct kk_kv *kv, int layer, int64_t j, void *dst, struct kk_err *err);

/* ---- a step ------------------------------------------------------------------------------- */

enum kk_step_kind { KK_STEP_HOLD, KK_STEP_CHUNK };

/* What an op needs of one layer of the running step; device pointers, valid until commit or abort.
 */
struct kk_kv_view {
    void *rows;                   /* [T, row_bytes]: where this layer's new rows go */
    const struct kk_kv_seq *seqs; /* [B] */
    struct kk_mask mask;
    size_t row_bytes;
    void *staging; /* for attention to blocks in host memory; NULL: there are none */
};

/* Reserve n[b] new rows for each of B sessions (each session at most once; n >= 1). Allocates
 * blocks where needed: KK_ENOMEM leaves every session as it was. */
int kk_kv_begin(struct kk_kv_pool *pool, enum kk_step_kind kind, int B, struct kk_kv *const *kv,
                const int32_t *n, struct kk_err *err);

/* The same with a kind for each sequence: hold[b] != 0 is KK_STEP_HOLD. Rows in all: at most
 * max_chunk_rows, of them held at most max_hold_rows. Needs max_seqs > 1. */
int kk_kv_begin_mixed(struct kk_kv_pool *pool, int B, struct kk_kv *const *kv, const int32_t *n,
                      const uint8_t *hold, struct kk_err *err);

/* Which sequence made the last begin fail; -1: none did. */
int kk_kv_failed(const struct kk_kv_pool *pool);

enum kk_dtype kk_kv_dtype(const struct kk_kv_pool *pool); /* of stored rows */
int kk_kv_step_T(const struct kk_kv_pool *pool);
int kk_kv_step_B(const struct kk_kv_pool *pool);
int kk_kv_step_holds(const struct kk_kv_pool *pool); /* every layer's rows are kept to the end */
int32_t kk_kv_step_rows(const struct kk_kv_pool *pool, int b); /* of sequence b */
struct kk_kv *kk_kv_step_session(const struct kk_kv_pool *pool, int b);
const int32_t *kk_kv_step_pos(const struct kk_kv_pool *pool);      /* device [T] */
const int32_t *kk_kv_step_seq(const struct kk_kv_pool *pool);      /* device [T] */
const int32_t *kk_kv_step_pos_host(const struct kk_kv_pool *pool); /* host [T] */

struct kk_kv_view kk_kv_layer(const struct kk_kv_pool *pool, int layer);
/* Attention over a layer goes in pieces: rows [t0, t0 + T) of the step against splits [first_split,
 * end_split), in this order. Where nothing is paged there is one piece with everything:
 *     for (p = kk_kv_first_piece(pool, l); p.T; p = kk_kv_next_piece(pool, l)) attend to p
 * With a thread that copies, a piece's host blocks are in the staging ring until the next piece is
 * asked for; layers are walked in ascending order, each once a step, and kk_kv_prefetch starts the
 * copies before the first needs them. Without one (every core computes) there is one piece, and
 * attention itself brings host blocks in through the ring. */
struct kk_kv_piece {
    int t0, T; /* T 0: the end */
    int32_t first_split, end_split;
    int first, last; /* of these rows */
};
void kk_kv_prefetch(struct kk_kv_pool *pool);
struct kk_kv_piece kk_kv_first_piece(struct kk_kv_pool *pool, int layer);
struct kk_kv_piece kk_kv_next_piece(struct kk_kv_pool *pool, int layer);

/* What a step that brings host blocks in by itself is told, in place of the pieces above: all host
 * blocks that attention reads, by layer, then sequence, then block, ascending; number i is where
 * the views' tables say, in slot (slot0 + i) % slots of the ring. Slots are the step's from its
 * beginning to its end. n 0: there are none; -1: it cannot (see pieces). */
struct kk_kv_host_blocks {
    int32_t n, slots, slot0;
    size_t slot_bytes;
    char *ring;              /* device [slots, slot_bytes] */
    const void *const *from; /* device [n]: memory of host_alloc */
};
struct kk_kv_host_blocks kk_kv_host_blocks(const struct kk_kv_pool *pool);
/* Of layer l and step sequence b: the first of them, and how many. */
int32_t kk_kv_host_blocks_of(const struct kk_kv_pool *pool, int l, int b, int32_t *first);

void kk_kv_layer_done(struct kk_kv_pool *pool, int layer);

/* Keep the first keep[b] rows of every session (NULL: all; KK_STEP_CHUNK: all by promise) and end
 * the step. */
void kk_kv_commit(struct kk_kv_pool *pool, const int32_t *keep);
/* End the step and keep nothing. A session whose chunk had begun to be stored is left broken: check
 * fails. */
void kk_kv_abort(struct kk_kv_pool *pool);

#endif
