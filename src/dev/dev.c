/* What every device shares: accounts, counted memory, the check for holes in the table. */
#include "dev/dev.h"

#include <stdio.h>
#include <stdlib.h>

void kk_account_add(struct kk_account *acc, int64_t bytes)
{
    int64_t now = atomic_fetch_add(&acc->bytes, bytes) + bytes, peak = atomic_load(&acc->peak);
    while (now > peak && !atomic_compare_exchange_weak(&acc->peak, &peak, now)) continue;
}

int kk_dev_takes(const struct kk_dev *dev, int D, int C, struct kk_err *err)
{
    if (dev->head_unit && (D % dev->head_unit || D > dev->head_most))
        return kk_fail(err, KK_EUNSUPPORTED,
                       "heads of %d: %s takes multiples of %d up to %d (--device cpu takes any)", D,
                       dev->name, dev->head_unit, dev->head_most);
    if (dev->width_most && C > dev->width_most)
        return kk_fail(err, KK_EUNSUPPORTED,
                       "a width of %d: %s takes %d at most (--device cpu takes any)", C, dev->name,
                       dev->width_most);
    return 0;
}

int kk_dev_alloc(struct kk_dev *dev, struct kk_account *acc, size_t bytes, void **out,
                 struct kk_err *err)
{
    *out = NULL;
    if (bytes == 0) return 0;
    void *p = dev->ops->alloc(dev, bytes);
    if (!p) {
        const size_t left = dev->ops->free_bytes(dev);
        char note[64] = "";
        if (left) snprintf(note, sizeof note, "; %zu are free", left);
        return kk_fail(err, KK_ENOMEM, "out of memory: %zu bytes for %s, which holds %lld%s", bytes,
                       acc->name, (long long)atomic_load(&acc->bytes), note);
    }
    kk_account_add(acc, (int64_t)bytes);
    *out = p;
    return 0;
}

void kk_dev_free(struct kk_dev *dev, struct kk_account *acc, void *p, size_t bytes)
{
    if (!p) return;
    dev->ops->free(dev, p, bytes);
    kk_account_add(acc, -(int64_t)bytes);
}

void kk_weight_free(struct kk_dev *dev, struct kk_weight *w)
{
    kk_dev_free(dev, w->account, w->data, (size_t)w->n_mats * w->mat_bytes);
    w->data = NULL;
}

static void widen(int *a, int b)
{
    if (b > *a) *a = b;
}

struct kk_limits kk_limits_widest(struct kk_limits a, const struct kk_limits *b)
{
    widen(&a.max_rows, b->max_rows);
    widen(&a.max_model_width, b->max_model_width);
    widen(&a.max_head_dim, b->max_head_dim);
    widen(&a.max_active, b->max_active);
    widen(&a.max_expert_width, b->max_expert_width);
    widen(&a.max_experts, b->max_experts);
    widen(&a.max_block_cols, b->max_block_cols);
    widen(&a.max_bf16_cols, b->max_bf16_cols);
    return a;
}

void kk_dev_winner(struct kk_dev *dev, const struct kk_winner_args *a, float *product)
{
    if (dev->ops->winner) {
        dev->ops->winner(dev, a);
        return;
    }
    dev->ops->linear(
        dev, &(struct kk_linear_args){
                 .T = a->T, .n = 1, .x = a->x, .w = {a->w}, .y = {product}, .softcap = a->softcap});
    dev->ops->argmax(
        dev, &(struct kk_argmax_args){.T = a->T, .n = a->w->rows, .x = product, .out = a->out});
}

void kk_dev_close(struct kk_dev *dev)
{
    if (dev) dev->ops->close(dev);
}

void kk_dev_check(const struct kk_dev *dev)
{
    static const char *const names[] = {
        "alloc",       "free",         "free_bytes", "host_alloc",    "host_free",  "upload",
        "download",    "copy",         "page_out",   "stage",         "stage_wait", "stage_free",
        "weight_load", "weight_bytes", "reserve",    "reserve_bytes", "close",      "step_begin",
        "step_end",    "step_pass",    "embed",      "norm",          "linear",     "qkv",
        "attn",        "residual",     "glu",        "route",         "moe",        "gather",
        "argmax",      "kv_store",     "convert",    "winner",
    };
    const struct kk_ops *o = dev->ops;
    void (*const slots[])(void) = {
#define SLOT(name) (void (*)(void)) o->name
        SLOT(alloc),       SLOT(free),         SLOT(free_bytes), SLOT(host_alloc),
        SLOT(host_free),   SLOT(upload),       SLOT(download),   SLOT(copy),
        SLOT(page_out),    SLOT(stage),        SLOT(stage_wait), SLOT(stage_free),
        SLOT(weight_load), SLOT(weight_bytes), SLOT(reserve),    SLOT(reserve_bytes),
        SLOT(close),       SLOT(step_begin),   SLOT(step_end),   SLOT(step_pass),
        SLOT(embed),       SLOT(norm),         SLOT(linear),     SLOT(qkv),
        SLOT(attn),        SLOT(residual),     SLOT(glu),        SLOT(route),
        SLOT(moe),         SLOT(gather),       SLOT(argmax),     SLOT(kv_store),
        SLOT(convert),     SLOT(winner),
#undef SLOT
    };
    _Static_assert(sizeof slots == sizeof *o &&
                       sizeof names / sizeof *names == sizeof slots / sizeof *slots,
                   "a slot of struct kk_ops is missing here");
    for (size_t i = 0; i + 1 < sizeof slots / sizeof *slots; i++) { /* the last is optional */
        if (slots[i]) continue;
        fprintf(stderr, "kakeya: bug: device '%s' has no op '%s'\n", dev->name, names[i]);
        abort();
    }
}
