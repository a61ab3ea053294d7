/* The DFlash drafter of one session: its context rows, and the block it proposes. */
#include "base/mem.h"
#include "spec/spec.h"

struct dflash {
    struct kk_drafter base;
    struct kk_dflash *model; /* borrowed */
    struct kk_kv_pool *pool; /* borrowed */
    struct kk_kv *kv;        /* context rows: one a settled token of the verifier */
};

static int propose(struct kk_drafter *base, const uint32_t *history, size_t n, int most,
                   uint32_t *out, struct kk_err *err)
{
    struct dflash *d = (struct dflash *)base;
    int32_t ids[KK_MAX_WIDTH];
    if (kk_kv_rows(d->kv) + 1 != (int64_t)n) /* rows that were not tapped: no context, no drafts */
        return 0;
    int rc = kk_dflash_propose(d->model, d->pool, d->kv, (int32_t)history[n - 1], most, ids, err);
    if (rc) return rc;
    for (int i = 0; i < most; i++) out[i] = (uint32_t)ids[i];
    return most;
}

static int observe(struct kk_drafter *base, const float *taps, int rows, struct kk_err *err)
{
    struct dflash *d = (struct dflash *)base;
    return kk_dflash_observe(d->model, d->pool, d->kv, taps, rows, err);
}

static int64_t device_bytes(const struct kk_drafter *base)
{
    return kk_kv_device_bytes(((const struct dflash *)base)->kv);
}

static void close_dflash(struct kk_drafter *base)
{
    struct dflash *d = (struct dflash *)base;
    kk_kv_close(d->kv);
    kk_free(d);
}

int kk_draft_dflash_open(struct kk_dflash *model, struct kk_kv_pool *pool, struct kk_drafter **out,
                         struct kk_err *err)
{
    static const struct kk_drafter_ops ops = {"dflash", propose, observe, device_bytes,
                                              close_dflash};
    struct dflash *d = kk_calloc(1, sizeof *d);
    if (!d) return kk_fail(err, KK_ENOMEM, "out of memory for a drafter");
    d->base.ops = &ops;
    d->model = model;
    d->pool = pool;
    int rc = kk_kv_open(pool, &d->kv, err);
    if (rc) {
        kk_free(d);
        return rc;
    }
    *out = &d->base;
    return 0;
}
