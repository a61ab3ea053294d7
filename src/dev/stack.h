/* A whole step of a model, embedding to logits, as one op of the device (optional, kk_dev.stack):
 * the bits of the ops of dev.h, one by one (model/forward.c), which do what it does not take. */
#ifndef KK_DEV_STACK_H
#define KK_DEV_STACK_H

#include "dev/dev.h"

/* Pointers are borrowed for the stack's life. */
struct kk_stack_layer {
    int sliding, value_only, D, G, R;
    const struct kk_weight *wq, *wk, *wv, *wo, *gate, *up, *down; /* wv NULL: value_only */
    const struct kk_weight *router, *gate_up, *expert_down;
    const float *input_norm, *post_attn_norm, *pre_ff_norm, *pre_ff_norm_2, *router_scale;
    const float *post_ff_norm_1, *post_ff_norm_2, *post_ff_norm, *q_norm, *k_norm;
    const float *expert_scale;
    float scalar;
};

struct kk_stack {
    int n_layers, C, H, E, A, F, expert_F, V;
    enum kk_activation act;
    float eps, attn_scale, embed_scale, softcap;
    const struct kk_weight *embed, *head;
    const float *final_norm;
    const struct kk_stack_layer *layer; /* [n_layers] */
};

struct kk_stack_kv { /* of a layer: struct kk_kv_view */
    const struct kk_kv_seq *seqs;
    void *rows;
};

/* Blocks in host memory, which the step brings in by itself: number i goes to slot (slot0 + i) %
 * slots of a ring, where the tables of seqs say it is. Layers have them in ascending order, and in
 * each its sequences; by kind of layer and sequence: count[k][b] blocks from first[k][b] on. */
struct kk_stack_host {
    int n, slots, slot0, block_rows;
    size_t slot_bytes;
    char *ring;                         /* device [slots, slot_bytes] */
    const void *const *from;            /* device [n]: memory of host_alloc */
    const int32_t *first[2], *count[2]; /* host [B] */
};

/* A step: B sequences of rows[b] rows from pos[b], the first uncommitted position, on. By kind: [0]
 * full layers, [1] sliding ones. The arrays are the host's, but for ids[T], logits[n_logits, V] and
 * choice[n_logits] (argmax; either NULL: not wanted), tap_dst[T, n_taps, C]. */
struct kk_stack_step {
    int T, B, n_logits;
    enum kk_dtype kv_dtype;
    const int32_t *ids, *pos, *rows, *logit_rows;
    struct kk_mask mask[2];
    const float *rope[2];
    const struct kk_stack_kv *kv;
    const struct kk_stack_host *host; /* NULL: every block is on the device */
    float *logits;
    int32_t *choice;
    int n_taps[2];
    const int *tap_layers[2];
    float *tap_dst[2];
};

/* bytes: what open will allocate; 0: no such stack for this geometry, and open leaves *out NULL.
 * step: 1 when it must be done by struct kk_ops (many rows, a long history, pieces). */
struct kk_stack_ops {
    size_t (*bytes)(const struct kk_dev *, const struct kk_stack *);
    int (*open)(struct kk_dev *, const struct kk_stack *, struct kk_account *, void **out,
                struct kk_err *err);
    int (*step)(struct kk_dev *, void *stack, const struct kk_stack_step *);
    void (*close)(struct kk_dev *, void *stack); /* NULL is fine */
};

#endif
