/* The DFlash drafter of one session: its context rows, and the block it proposes. Taps of settled
 * rows are held back and projected into context rows when a draft is asked for, or when no more can
 * be held: while drafting rests, a token costs a copy (docs/adr/0014). */
#include "base/mem.h"
#include "spec/spec.h"

struct dflash {
    struct kk_drafter base;
    struct kk_dflash *model; /* borrowed */
    struct kk_kv_pool *pool; /* borrowed */
    struct kk_kv *kv; /* context rows: one a settled token of the verifier, but for those held */
    float *held;      /* device [most, n_taps, C] */
    int n_held, most;
    struct kk_account account; /* of held */
};

/* A GPU projects sixteen rows for little more than the read of the weights. */
static int most_held(const struct kk_dflash *model)
{
    return kk_dflash_dev(model)->n_threads ? KK_TAPS_HELD : KK_MAX_WIDTH;
}

size_t kk_draft_dflash_held_bytes(const struct kk_dflash *model)
{
    return (size_t)most_held(model) * kk_dflash_tap_floats(model) * sizeof(float);
}

/* Project what is held. */
static int flush(struct dflash *d, struct kk_err *err)
{
    int n = d->n_held;
    d->n_held = 0;
    return n ? kk_dflash_observe(d->model, d->pool, d->kv, d->held, n, err) : 0;
}

/* What is timed as the drafter's own waits for the device; but what a draft needs does not, since
 * the step that verifies it is waited for. */
static int wait_for(struct dflash *d, int rc, struct kk_err *err)
{
    struct kk_dev *dev = kk_dflash_dev(d->model);
    if (rc) return rc;
    dev->ops->step_begin(dev);
    return dev->ops->step_end(dev, err);
}

static int propose(struct kk_drafter *base, const uint32_t *history, size_t n, int most,
                   uint32_t *out, struct kk_err *err)
{
    struct dflash *d = (struct dflash *)base;
    int32_t ids[KK_MAX_WIDTH];
    int rc = flush(d, err);
    if (rc) return rc;
    if (kk_kv_rows(d->kv) + 1 != (int64_t)n) return 0; /* rows that were not tapped: no context */
    const int32_t carry = (int32_t)history[n - 1];
    if (base->late)
        rc = kk_dflash_propose_late(d->model, d->pool, d->kv, carry, most, base->late, err);
    else
        rc = kk_dflash_propose(d->model, d->pool, d->kv, carry, most, ids, err);
    if (rc) return rc;
    for (int i = 0; i < most; i++) out[i] = base->late ? KK_LATE : (uint32_t)ids[i];
    return most;
}

static int observe(struct kk_drafter *base, const float *taps, int rows, struct kk_err *err)
{
    struct dflash *d = (struct dflash *)base;
    struct kk_dev *dev = kk_dflash_dev(d->model);
    const int width = (int)kk_dflash_tap_floats(d->model);
    int rc = d->n_held + rows > d->most ? wait_for(d, flush(d, err), err) : 0;
    if (rc) return rc;
    if (rows > d->most)
        return wait_for(d, kk_dflash_observe(d->model, d->pool, d->kv, taps, rows, err), err);
    dev->ops->gather(dev,
                     &(struct kk_gather_args){
                         .n = rows, .C = width, .src = taps, .dst = d->held + d->n_held * width});
    d->n_held += rows;
    return 0;
}

static int behind(const struct kk_drafter *base)
{
    return ((const struct dflash *)base)->n_held;
}

static int catch_up(struct kk_drafter *base, struct kk_err *err)
{
    struct dflash *d = (struct dflash *)base;
    return wait_for(d, flush(d, err), err);
}

static int64_t device_bytes(const struct kk_drafter *base)
{
    const struct dflash *d = (const struct dflash *)base;
    return kk_kv_device_bytes(d->kv) + atomic_load(&d->account.bytes);
}

/* ---- fork, save, load: the context rows, with nothing held back ---- */

static int open_with(struct kk_dflash *model, struct kk_kv_pool *pool, struct kk_kv *kv,
                     struct kk_drafter **out, struct kk_err *err);

static int fork_dflash(struct kk_drafter *base, struct kk_drafter **out, struct kk_err *err)
{
    struct dflash *d = (struct dflash *)base;
    struct kk_kv *kv = NULL;
    int rc = flush(d, err);
    if (!rc) rc = kk_kv_fork(d->kv, &kv, err);
    return rc ? rc : open_with(d->model, d->pool, kv, out, err);
}

static int64_t saved_bytes(struct kk_drafter *base, struct kk_err *err)
{
    struct dflash *d = (struct dflash *)base;
    int rc = flush(d, err);
    if (rc) return rc;
    return (int64_t)sizeof(int64_t) + kk_kv_saved_bytes(d->pool, kk_kv_rows(d->kv));
}

static int save(struct kk_drafter *base, const struct kk_io *sink,
                const struct kk_kv_keeper *keeper, struct kk_err *err)
{
    struct dflash *d = (struct dflash *)base;
    int rc = flush(d, err);
    int64_t rows = kk_kv_rows(d->kv);
    if (!rc) rc = kk_io(sink, &rows, sizeof rows, err);
    return rc ? rc : kk_kv_save_shared(d->kv, sink, keeper, err);
}

static int load(struct kk_drafter *fresh, const struct kk_io *source,
                const struct kk_kv_keeper *keeper, struct kk_err *err)
{
    struct dflash *d = (struct dflash *)fresh;
    int64_t rows;
    int rc = kk_io(source, &rows, sizeof rows, err);
    return rc ? rc : kk_kv_load_shared(d->kv, rows, source, keeper, err);
}

static void close_dflash(struct kk_drafter *base)
{
    struct dflash *d = (struct dflash *)base;
    kk_dev_free(kk_dflash_dev(d->model), &d->account, d->held,
                kk_draft_dflash_held_bytes(d->model));
    kk_kv_close(d->kv);
    kk_free(d);
}

/* Takes kv, on failure too. */
static int open_with(struct kk_dflash *model, struct kk_kv_pool *pool, struct kk_kv *kv,
                     struct kk_drafter **out, struct kk_err *err)
{
    static const struct kk_drafter_ops ops = {.name = "dflash",
                                              .propose = propose,
                                              .observe = observe,
                                              .behind = behind,
                                              .catch_up = catch_up,
                                              .device_bytes = device_bytes,
                                              .fork = fork_dflash,
                                              .saved_bytes = saved_bytes,
                                              .save = save,
                                              .load = load,
                                              .close = close_dflash};
    struct dflash *d = kk_calloc(1, sizeof *d);
    if (!d) {
        kk_kv_close(kv);
        return kk_fail(err, KK_ENOMEM, "out of memory for a drafter");
    }
    d->base.ops = &ops;
    d->model = model;
    d->pool = pool;
    d->kv = kv;
    d->most = most_held(model);
    d->account.name = "drafter taps of a session";
    int rc = kk_dev_alloc(kk_dflash_dev(model), &d->account, kk_draft_dflash_held_bytes(model),
                          (void **)&d->held, err);
    if (rc) {
        close_dflash(&d->base);
        return rc;
    }
    *out = &d->base;
    return 0;
}

int kk_draft_dflash_open(struct kk_dflash *model, struct kk_kv_pool *pool, struct kk_drafter **out,
                         struct kk_err *err)
{
    struct kk_kv *kv = NULL;
    int rc = kk_kv_open(pool, &kv, err);
    return rc ? rc : open_with(model, pool, kv, out, err);
}
