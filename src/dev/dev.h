/* The device seam: memory with accounts, weights in the device's own layout, and about twenty typed
 * stage ops. A model is straight-line C over these ops; fusion is named at the call site; there is
 * no graph.
 *
 * Owns: where numbers live and how they are computed. Refuses to know: sessions, architectures.
 *
 * Shape letters (all tensors row-major, last dimension fastest):
 *   B sequences in a step   T rows (tokens) in a step, all sequences packed   C model width
 *   H query heads   G KV heads   D head dim   R rotary pairs of a head (R <= D/2)
 *   F feed-forward width   E experts   A active experts   V vocabulary   S keys per attention split
 *
 * Law 2 (bit-identity): the bits of a row's result depend on the model, on that row and on the rows
 * it may see, never on T, B, threads, or how the history was cut. Every op below keeps it. Law 3:
 * the scalar CPU table is the oracle of every other implementation. Law 4: ops do not allocate;
 * scratch is sized once by kk_ops.reserve.
 *
 * Errors: ops return void; a device failure latches and kk_ops.step_end returns it once, with the
 * op's name. */
#ifndef KK_DEV_DEV_H
#define KK_DEV_DEV_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus /* CUDA sources: they never touch an account */
extern "C" {
typedef int64_t kk_counter;
#else
#include <stdatomic.h>
typedef _Atomic int64_t kk_counter;
#endif

#include "base/dtype.h"
#include "base/err.h"
#include "base/rng.h"

/* ---- memory ------------------------------------------------------------------------------- */

/* What a block of memory is for. Every byte belongs to exactly one account (law 1). */
struct kk_account {
    const char *name; /* static */
    kk_counter bytes, peak;
};

/* A matrix (or n_mats of one shape) in the device's own layout. Filled by weight_load. */
struct kk_weight {
    enum kk_dtype dtype;
    int n_mats;         /* experts, or 1 */
    int64_t rows, cols; /* of one matrix: outputs, inputs (y = W x) */
    void *data;         /* device memory, layout private to the device */
    size_t mat_bytes;   /* stride between matrices in data */
    int bf16_in;        /* set by the loader: its products read their input rounded to bf16 */
    struct kk_account *account;
};

/* Where weight_load reads from: element i of the row-major [n_mats, rows, cols] source. Of a block
 * type (base/quant.h) it holds blocks, cols is whole blocks, and read() is asked for whole rows. */
struct kk_weight_src {
    enum kk_dtype dtype;
    int n_mats;
    int64_t rows, cols;
    const void *data; /* mapped source, or NULL: then read() makes elements [first, first + n) */
    const void *ctx;
    void (*read)(const void *ctx, uint64_t first, uint64_t n, void *dst); /* thread-safe */
    const struct kk_synth *synth;  /* not NULL: what read() makes, which a device may make itself */
    void (*rest)(const void *ctx); /* or NULL: now and then, what was read is not needed again */
};

/* ---- the rows a query may see ------------------------------------------------------------- */

/* Row j is visible to a query at position t iff
 *     -ahead <= t - j < window  and  (t - j < near  or  j < sinks)  and row j exists.
 * "No bound" is KK_NO_BOUND. native: near = KK_NO_BOUND. Causal: ahead = 0; a drafter's block looks
 * ahead among the rows of the running step. */
#define KK_NO_BOUND INT32_MAX
struct kk_mask {
    int32_t window, near, sinks, ahead;
    int32_t exact_near, exact_sinks; /* exact_near > 0: a visible row is exact if t - j < exact_near
                                        or j < exact_sinks, else rebuilt (struct kk_attn_args) */
};

/* One sequence's rows of one layer, as an op sees them. Row j (an absolute position) is
 *   j <  committed: stored in slot(j) = ring == 0 ? j : j < sinks ? j : sinks + (j - sinks) % ring;
 *                   slot s is at blocks[s / block_rows] + (s % block_rows) * row_bytes;
 *   j >= committed: a row of the running step, at step + (j - committed) * row_bytes.
 * A block that is NULL is in host memory, at host[its index]: no op but attention finds it. Where
 * the device has memory of its own (kk_dev.unified 0) blocks is a device table without NULLs: an
 * entry may be memory of host_alloc, which such a device reads in place. */
struct kk_kv_seq {
    void *const *blocks;
    void *const *host; /* NULL: every block is on the device, or is read where it is */
    void *step;
    int32_t committed, n_step, block_rows, sinks, ring;
    int32_t row_bytes; /* for kv_store; 0: it has nothing to store here */
};

KK_ANYWHERE static inline void *kk_kv_slot(const struct kk_kv_seq *s, int32_t j, size_t row_bytes)
{
    int32_t slot = !s->ring || j < s->sinks ? j : s->sinks + (j - s->sinks) % s->ring;
    return (char *)s->blocks[slot / s->block_rows] + (size_t)(slot % s->block_rows) * row_bytes;
}

KK_ANYWHERE static inline void *kk_kv_row(const struct kk_kv_seq *s, int32_t j, size_t row_bytes)
{
    if (j >= s->committed) return (char *)s->step + (size_t)(j - s->committed) * row_bytes;
    return kk_kv_slot(s, j, row_bytes);
}

/* ---- op arguments: all pointers are device pointers. `act` buffers hold the input of a matrix
 * product in the device's activation type (struct kk_dev.act); all else is f32 or int32. ---- */

/* h[T, C] = table[ids] * scale */
struct kk_embed_args {
    int T;
    const int32_t *ids; /* [T], each in [0, table->rows) */
    const struct kk_weight *table;
    float scale;
    float *h;
};

/* y[T, C] = x / sqrt(mean(x^2) + eps) * w   (w NULL: no weight) */
struct kk_norm_args {
    int T, C;
    const float *x, *w;
    float eps;
    void *y; /* act */
};

/* y[i][T, w[i]->rows] = x[T, cols] w[i]^T for up to three matrices; softcap > 0: c tanh(y / c) */
struct kk_linear_args {
    int T, n, bf16, settled; /* settled: x is older than two ops: a device may read it at once */
    const void *x; /* act; bf16: whatever act is, x is bf16, w have bf16_in, cols is even */
    const struct kk_weight *w[3];
    float *y[3];
    const float *bias[3]; /* [w[i]->rows], added to each row; NULL: none */
    float softcap;
};

/* Per head: q = rope(rms(q) * q_norm); the stored row of each token is written:
 *   value_only 0: K = rope(rms(k) * k_norm), V = rms(v)     row = K[G*D] then V[G*D]
 *   value_only 1: V = rms(k)                                row = V[G*D]; ops derive
 *                                                           K = rope(V * k_norm)
 * rope: pair r < R rotates elements r and r + D/2 by the angle of rope[pos][r] = {cos, sin}; other
 * pairs are left as they are. rms has no weight of its own here. q_norm or k_norm NULL: q or k
 * turns as it is, not normalised (Llama); k_norm is needed where value_only. */
struct kk_qkv_args {
    int T, H, G, D, R, value_only;
    int raw_value;                /* V = v as it is (Qwen 3); H may be 0: keys and values alone */
    float *q;                     /* [T, H*D] in and out */
    const float *k, *v;           /* [T, G*D]; v unused when value_only */
    const float *q_norm, *k_norm; /* [D], or NULL */
    float eps;
    const int32_t *pos; /* [T] */
    const float *rope;  /* [positions, R, 2] */
    enum kk_dtype kv_dtype;
    void *rows; /* [T, row_bytes] */
};

/* o[T, H*D] = softmax(scale * q K^T, over visible rows) V.
 * Order (law 2): keys go in splits [i*S, (i+1)*S) of absolute positions, S = kk_dev.attn_split;
 * within a split maximum, weights and sums start from zero; splits are merged in ascending order in
 * f32. A split with no visible key is skipped. One call covers splits [first_split, end_split): a
 * host tier feeds rows piece by piece. `state` [T, H, D + 2] carries the running merge between
 * calls: a call with first set starts it, one with last set writes o. Blocks in host memory come in
 * through `staging`, a split for each thread, as they are read. */
struct kk_attn_args {
    int T, B, H, G, D, R, value_only;
    const float *q;     /* [T, H*D] */
    const int32_t *pos; /* [T] */
    const int32_t *seq; /* [T] index into seqs; a sequence's rows are consecutive, ascending */
    const struct kk_kv_seq *seqs; /* [B] */
    /* what the host knows, for a device that sizes its work by it; 0: it does not */
    int32_t longest;   /* rows of the longest sequence, those of the step included */
    int32_t most_rows; /* no sequence has more of the T */
    struct kk_mask mask;
    float scale;
    const float *k_norm, *rope; /* [D], [positions, R, 2]; used when value_only */
    enum kk_dtype kv_dtype;
    int32_t first_split, end_split; /* end_split = KK_NO_BOUND: to the end */
    int first, last;
    /* rows [rebuilt_first, ..) rebuilt for this call (exact_near); one sequence a call */
    const void *rebuilt;
    int32_t rebuilt_first;
    void *staging; /* [n_threads, S rows]; used where a sequence has host blocks */
    float *state;
    void *o; /* act */
};

/* The residual stream takes a sublayer's output, and up to three normed copies leave it:
 *   x = n_in == 1 ? a[0] : rms(a[0]) * w_in[0] + rms(a[1]) * w_in[1]
 *   h = (h + rms(x) * w_post) * scale       plain: h = (h + a[0]) * scale, no norm of x
 *   y[i] = rms(h) * w_out[i]            for i < n_out */
struct kk_residual_args {
    int T, C, n_in, n_out, plain;
    float *h;
    const float *a[2], *w_in[2], *w_post;
    float scale, eps;
    const float *w_out[3];
    void *y[3]; /* act */
};

enum kk_activation { KK_GELU_TANH, KK_SILU };

/* y[T, F] = act(gate x) * (up x) */
struct kk_glu_args {
    int T;
    enum kk_activation act;
    const void *x; /* act [T, C] */
    const struct kk_weight *gate, *up;
    void *y; /* act [T, F] */
};

/* p = softmax(x w^T over all E); the A largest (ties: lowest index), in descending order;
 * weight[i] = p[i] / sum of the A * expert_scale[idx[i]] */
struct kk_route_args {
    int T, E, A;
    const void *x; /* act [T, C] */
    const struct kk_weight *w;
    const float *expert_scale; /* [E] */
    int32_t *idx;              /* [T, A] */
    float *weight;             /* [T, A] */
};

/* y[T, C] = sum over the row's experts, in ascending expert index, of
 *     weight * down_e (act(gate_e x) * (up_e x));  gate_e = rows 0..F-1 of gate_up_e, up_e =
 * F..2F-1 */
struct kk_moe_args {
    int T, E, A;
    enum kk_activation act;
    const void *x; /* act [T, C] */
    const int32_t *idx;
    const float *weight;
    const struct kk_weight *gate_up, *down; /* E x [2F, C], E x [C, F] */
    float *y;
};

/* dst[i * stride ..] = src[rows[i]] for i < n; rows of C floats; rows NULL: the first n rows;
 * stride in floats, 0: C */
struct kk_gather_args {
    int n, C;
    const int32_t *rows;
    const float *src;
    float *dst;
    int64_t stride;
};

/* out[i] = index of the largest of x[i, 0..n), lowest on ties, i < T; a NaN is less than all */
struct kk_argmax_args {
    int T;
    int64_t n;
    const float *x;
    int32_t *out;
};

/* out[i] = what linear, with softcap, and then argmax choose of row i; the product is not kept */
struct kk_winner_args {
    int T;
    const void *x; /* act [T, w->cols] */
    const struct kk_weight *w;
    float softcap;
    int32_t *out;
};

/* In each layer, copy the first keep[b] step rows of every sequence into their slots (ring slots
 * overwrite). Of more rows than a ring holds, the newest win. */
struct kk_kv_store_args {
    int n_layers, B, stride, most; /* most: the largest keep[b] */
    const struct kk_kv_seq *seqs;  /* layer l's: from l * stride on */
    const int32_t *keep;           /* host [B], each <= n_step; read before the op returns */
};

/* n numbers from one type to another: f32 to bf16 (to nearest even) or bf16 to f32 */
struct kk_convert_args {
    int64_t n;
    enum kk_dtype from, to;
    const void *src;
    void *dst;
};

/* Upper bounds of what ops will be called with: sizes the device's scratch, once. */
struct kk_limits {
    int max_rows, max_model_width, max_head_dim;   /* T, C, D */
    int max_active, max_expert_width, max_experts; /* A, 0 if dense; their F; E, 0: at most 1024 */
    int max_block_cols, max_bf16_cols; /* of the widest matrix of a block type, of the widest with
                                          bf16_in; 0: none */
};

struct kk_dev;

/* The vtable. Every slot but the last is required (kk_dev_check). */
struct kk_ops {
    /* memory: 0-filled device memory, NULL when out of it */
    void *(*alloc)(struct kk_dev *, size_t bytes);
    void (*free)(struct kk_dev *, void *p, size_t bytes);
    size_t (*free_bytes)(struct kk_dev *); /* device memory that is free now; 0: not known */
    /* that the device can read and write in place; NULL when out of it */
    void *(*host_alloc)(struct kk_dev *, size_t bytes);
    void (*host_free)(struct kk_dev *, void *p, size_t bytes);
    /* To the device, from it, and within it (src may be memory of host_alloc too), in order with
     * the ops around them. src of upload may be written to again at once; download returns when dst
     * holds the bytes. page_out is a download to memory of host_alloc that need not be there before
     * step_end or a download returns; ops that come later find it. */
    void (*upload)(struct kk_dev *, void *dst, const void *src, size_t bytes);
    void (*download)(struct kk_dev *, void *dst, const void *src, size_t bytes);
    void (*copy)(struct kk_dev *, void *dst, const void *src, size_t bytes);
    void (*page_out)(struct kk_dev *, void *dst, const void *src, size_t bytes);
    /* Copies from memory of host_alloc to the device beside the ops, on an engine of their own
     * where there is one. stage: n copies; returns the number of the batch, ascending.
     * stage_wait: ops that come later find what batches up to this one bring. stage_free: ops
     * that came before have done with what stages that come later overwrite, and page_outs that
     * came before are done. */
    int64_t (*stage)(struct kk_dev *, int n, void *const *dst, const void *const *src,
                     const size_t *bytes);
    void (*stage_wait)(struct kk_dev *, int64_t batch);
    void (*stage_free)(struct kk_dev *);
    int (*weight_load)(struct kk_dev *, const struct kk_weight_src *, struct kk_account *,
                       struct kk_weight *out, struct kk_err *);
    size_t (*weight_bytes)(const struct kk_dev *, const struct kk_weight_src *); /* for plan */
    int (*reserve)(struct kk_dev *, const struct kk_limits *, struct kk_account *, struct kk_err *);
    size_t (*reserve_bytes)(const struct kk_dev *, const struct kk_limits *); /* for plan */
    void (*close)(struct kk_dev *);
    /* Ops between begin and end run in order; end waits and returns the latched error. pass ends
     * too, but a GPU does not wait: the next step_end tells. */
    void (*step_begin)(struct kk_dev *);
    int (*step_end)(struct kk_dev *, struct kk_err *);
    int (*step_pass)(struct kk_dev *, struct kk_err *);
    void (*embed)(struct kk_dev *, const struct kk_embed_args *);
    void (*norm)(struct kk_dev *, const struct kk_norm_args *);
    void (*linear)(struct kk_dev *, const struct kk_linear_args *);
    void (*qkv)(struct kk_dev *, const struct kk_qkv_args *);
    void (*attn)(struct kk_dev *, const struct kk_attn_args *);
    void (*residual)(struct kk_dev *, const struct kk_residual_args *);
    void (*glu)(struct kk_dev *, const struct kk_glu_args *);
    void (*route)(struct kk_dev *, const struct kk_route_args *);
    void (*moe)(struct kk_dev *, const struct kk_moe_args *);
    void (*gather)(struct kk_dev *, const struct kk_gather_args *);
    void (*argmax)(struct kk_dev *, const struct kk_argmax_args *);
    void (*kv_store)(struct kk_dev *, const struct kk_kv_store_args *);
    void (*convert)(struct kk_dev *, const struct kk_convert_args *);
    void (*winner)(struct kk_dev *, const struct kk_winner_args *); /* NULL: see kk_dev_winner */
};

struct kk_stack_ops; /* dev/stack.h */

/* How a product with weights of a block type reads its f32 input: rounded to 8 bits with a scale
 * for every 32 numbers of a row, or as it is (several times slower; for parity with f32). */
enum kk_block_act { KK_ACT_Q8, KK_ACT_F32 };

struct kk_dev {
    const struct kk_ops *ops;
    const struct kk_stack_ops *stack; /* NULL: none */
    char name[96];                    /* "cpu avx512, 2 threads" */
    char isa[16];   /* what a snapshot records: "scalar", "avx2", "avx512", "cuda" */
    int n_threads;  /* 0 on a GPU */
    int unified;    /* device memory is host memory: either side may follow the other's pointers */
    int attn_split; /* S */
    int head_unit, head_most;  /* D must be a multiple of the one, at most the other; 0: any */
    int width_most, seqs_most; /* C, B; 0: any */
    enum kk_dtype act;
    enum kk_block_act block_act; /* KK_ACT_Q8 after open; to be changed before reserve */
    int bf16_act; /* 0 after open: models are to load bf16 matrices with bf16_in (docs/adr/0015) */
    int q8_rows;  /* 1: rows of keys and values may be KK_Q8_0 */
    struct kk_account tables; /* memory of the device itself: scratch and constant tables */
};

/* isa: "auto" (best the machine has), "scalar", "avx2", "avx512". threads: 0 = all cores this
 * process may use. An instruction set the machine lacks is KK_EUNSUPPORTED, naming those it has. */
int kk_dev_open_cpu(const char *isa, int threads, struct kk_dev **out, struct kk_err *err);
/* GPU `index`. KK_EUNSUPPORTED when this program was built without CUDA or the GPU is of another
 * compute capability; KK_EUNAVAILABLE when there is no driver or no such GPU. Says which. */
int kk_dev_open_cuda(int index, struct kk_dev **out, struct kk_err *err);
void kk_dev_close(struct kk_dev *dev); /* NULL is fine */

void kk_dev_check(const struct kk_dev *dev); /* aborts on a hole, naming it; of every open */

/* 0 if the ops take heads of D and rows of C; else KK_EUNSUPPORTED, saying what they take. */
int kk_dev_takes(const struct kk_dev *dev, int D, int C, struct kk_err *err);

/* Counted allocation; KK_ENOMEM says how many bytes, and for what account. Size 0 gives NULL, no
 * error. */
int kk_dev_alloc(struct kk_dev *dev, struct kk_account *acc, size_t bytes, void **out,
                 struct kk_err *err);
void kk_dev_free(struct kk_dev *dev, struct kk_account *acc, void *p, size_t bytes);
void kk_account_add(struct kk_account *acc, int64_t bytes);

/* The op, or where there is none, linear and argmax over `product` [T, w->rows]. */
void kk_dev_winner(struct kk_dev *dev, const struct kk_winner_args *a, float *product);

/* Limits for both: what reserve does for a second model on a device. */
struct kk_limits kk_limits_widest(struct kk_limits a, const struct kk_limits *b);

/* Frees a weight's memory (NULL data is fine). */
void kk_weight_free(struct kk_dev *dev, struct kk_weight *w);

#ifdef __cplusplus
}
#endif

#endif
