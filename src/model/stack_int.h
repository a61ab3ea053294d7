/* Private to model/: a step as one op of the device, where it has one for this model (stack.c). */
#ifndef KK_MODEL_STACK_INT_H
#define KK_MODEL_STACK_INT_H

#include "dev/stack.h"
#include "model/model_int.h"

/* Made for an architecture that a device may have a stack for. */
struct kk_model_stack {
    void *handle; /* NULL: the device has none */
    struct kk_stack_layer *layer;
    struct kk_stack_kv *kv;
};

/* What open will allocate on the device. */
int kk__stack_bytes(struct kk_model *m, size_t *out, struct kk_err *err);
int kk__stack_open(struct kk_model *m, struct kk_err *err);
void kk__stack_close(struct kk_model *m);
/* 1 when the forward was done; 0: kk__forward must do it. */
int kk__stack_step(struct kk_model *m, struct kk_kv_pool *pool, const struct kk_forward *fwd);

#endif
