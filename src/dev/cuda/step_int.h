/* Private to step*.cu: what the persistent decode step (docs/adr/0024) is told. The host says
 * once, when a stack is opened (step_plan.cu), what each SM does in each layer; the kernel
 * (step.cu) walks it.  A unit of work is a stripe of 8 outputs (of a gated unit: a gate stripe
 * and the same up stripe), brought in slots of the ring. A set is what the consumers make of up
 * to four slots, one a quad: 16 chains, one a warp. */
#ifndef KK_DEV_CUDA_STEP_INT_H
#define KK_DEV_CUDA_STEP_INT_H

#include "dev/cuda/cuda_int.h"

enum {
    KS_C = 2816,     /* model width: 16 chains of 11 tiles, and a slot of f32 */
    KS_H = 16,       /* query heads */
    KS_F = 2112,     /* dense feed-forward width: 12 chains of 11 */
    KS_XF = 704,     /* of an expert: 4 chains of 11 */
    KS_E = 128,      /* experts */
    KS_A = 8,        /* of them active */
    KS_COLS = 8,     /* rows that there is room for */
    KS_ROWS = 6,     /* most rows of a step: with 8 the ops are as fast */
    KS_UNION = 64,   /* most distinct experts of a layer: KS_COLS * KS_A */
    KS_LAYERS = 40,  /* more than there are of layers */
    KS_QKV = 9216,   /* most outputs of q, k and v together */
    KS_SLOT = 11264, /* bytes of a ring slot: 44 tiles */
    KS_SLOTS = 15,   /* of the ring */
    KS_RING = KS_SLOTS * KS_SLOT,
    KS_LINE = 528, /* bytes of 256 elements of a row in the ring: `ldmatrix` meets no bank twice */
    KS_QUADS = 4,  /* of consumer warps */
    KS_CONSUMERS = 16,
    KS_REDUCERS = 2,
    KS_THREADS = (KS_CONSUMERS + KS_REDUCERS + 2) * 32, /* and the producer, and the finder */
    KS_SETS = 4,  /* sets whose partial sums there is room for */
    KS_CARRY = 8, /* units of an SM whose sums are carried from set to set, at most */
    KS_XSTRIPES = KS_XF / KK_TILE_ROWS,
    KS_STRIPE = KS_QUADS * KS_SLOT,            /* bytes of a stripe of the model's width */
    KS_XGATE_UP = 2 * KS_XSTRIPES * KS_STRIPE, /* of gate and up of an expert */
    KS_XDOWN = KS_C / KK_TILE_ROWS * KS_SLOT,  /* of its down */
    KS_PAGE_SLOTS = 1024,                      /* of the ring of pages, at most */
    KS_PAGE_UNIT = 4096,                       /* bytes of a page that a warp brings at once */
    KS_PAGE_UNITS = 64,                        /* of a page */
    KS_PAGE_HEADS = 2,                         /* KV heads that read it */
};

/* What an SM does in a layer: 64 words, two read by each lane of a warp. Units are first | count
 * << 16. Of the layer behind the last: `down` are units of the head, wq its weights. */
struct ks_layer {
    uint32_t qkv, o, router, glu, down; /* units; of q, k and v: one after the other */
    uint32_t rank;                      /* which share of the experts' gated units */
    uint32_t full;
    float scalar;
    uint64_t wq, wk, wv, wo, w_router, gate, up, gate_up, w_down, expert_down;
    uint64_t q_norm, k_norm, expert_scale;
    uint64_t post_attn, pre_ff, pre_ff_2, router_scale, post_ff_1, post_ff_2, post_ff, next_norm;
    uint32_t unused[14];
};

/* One sequence's rows of the step, and its splits by kind of layer: sinks' first. */
struct ks_splits {
    int n, n_sink, win0; /* split of index s: s < n_sink ? s : win0 + s - n_sink */
    int pair0;           /* number of the first (split, row) pair */
};
struct ks_seq {
    int t0, n, pos0;
    struct ks_splits kind[2]; /* full, sliding */
    /* splits of it that are pages: n from `first` on; `before` of a layer's are other sequences' */
    struct {
        int first, n, before;
    } pages;
};

/* Pages: blocks of full layers in host memory, which come through a ring of slots. Numbers of pages
 * go on from step to step; a step's page i has number + i. */
struct ks_pages {
    const char *const *from; /* [of the step] */
    char *ring;
    uint64_t slot_bytes;
    int slots, slot0, n; /* 0: there are none; page i's slot is (slot0 + i) % slots; of a layer */
    uint32_t number;
    uint64_t full;   /* which layers */
    uint32_t *there; /* [slots, KS_PAGE_UNITS]: page whose unit has come last */
    uint32_t *left;  /* [slots, KS_PAGE_HEADS]: page that was read last */
};

struct ks_mask {
    int window, near, sinks;
};

struct ks_kv {
    const struct kk_kv_seq *seqs; /* device [B] */
    char *rows;                   /* the step's own, [T, row_bytes] */
};

struct ks_args {
    const struct ks_layer *layers; /* [sms][n_layers + 1] */
    const char *table;             /* of the embedding */
    const float *first_norm;
    float embed_scale;
    int T, B, n_layers;
    uint32_t window,
        ahead;      /* slots in flight, at most: of what is multiplied now, of what comes later */
    uint32_t epoch; /* tag of layer l's words: epoch + l */
    float eps, attn_scale, softcap;
    struct ks_seq seq[KS_COLS];
    struct ks_mask mask[2];
    const float *rope[2];
    const int32_t *ids;
    struct kk_fault *fault; /* NULL: not told */
    struct ks_kv kv[KS_LAYERS];
    struct ks_pages pages;
    /* words: {payload, tag} in 8 bytes, valid when the tag is the layer's */
    uint64_t *qkv, *part_o, *part_ml, *attn, *o, *router, *f, *fx, *down, *xdown, *x[4], *best;
    float *logits;   /* [n_logits, vocab], or NULL */
    int32_t *choice; /* [n_logits], or NULL */
    int n_logits, vocab;
    int8_t logit_of[KS_COLS]; /* row of logits, or -1 */
    float *tap_dst[2];
    int tap_n[2];
    int8_t tap[2][KS_LAYERS]; /* place of layer l's tap, or -1 */
    int *diag;                /* host memory: {what, extra} of each warp that waited too long */
    uint64_t *trace;          /* KS_TRACE: see step_sync_int.h, or NULL */
};

extern "C" {
int ks__open(void);
int ks__launch(const struct ks_args *a, int sms, cudaStream_t stream);
const int *kk__cuda_stack_diag(const void *stack);
struct ks_args *kk__cuda_stack_args(void *stack);
}

#endif
