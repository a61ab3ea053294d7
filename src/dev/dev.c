/* Accounts and the device-independent part of the seam. */
#include "dev/dev.h"

#include <stdio.h>

void kk_account_add(struct kk_account *acc, int64_t bytes)
{
    int64_t now = atomic_fetch_add(&acc->bytes, bytes) + bytes;
    int64_t peak = atomic_load(&acc->peak);
    while (now > peak && !atomic_compare_exchange_weak(&acc->peak, &peak, now)) continue;
}

int kk_dev_alloc(struct kk_dev *dev, struct kk_account *acc, size_t bytes, void **out,
                 struct kk_err *err)
{
    *out = NULL;
    if (!bytes) return 0;
    *out = dev->ops->alloc(dev, bytes);
    if (!*out)
        return kk_fail(err, KK_ENOMEM, "out of memory: %zu bytes for %s (already %lld there)",
                       bytes, acc->name, (long long)atomic_load(&acc->bytes));
    kk_account_add(acc, (int64_t)bytes);
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
    if (w->data) kk_dev_free(dev, w->account, w->data, w->mat_bytes * (size_t)w->n_mats);
    w->data = NULL;
}

void kk_dev_close(struct kk_dev *dev)
{
    if (dev) dev->ops->close(dev);
}

void kk_dev_check(const struct kk_dev *dev)
{
    const struct kk_ops *o = dev->ops;
    const int full = o->alloc && o->free && o->upload && o->download && o->weight_load &&
                     o->weight_bytes && o->reserve && o->reserve_bytes && o->close &&
                     o->step_begin && o->step_end && o->embed && o->norm && o->linear && o->qkv &&
                     o->attn && o->residual && o->glu && o->route && o->moe && o->gather &&
                     o->argmax && o->kv_store;
    KK_BUG_ON(!full || dev->attn_split < 1);
}
