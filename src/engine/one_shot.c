/* One-shot restoration: a prompt is read once with rows replaced by what a map that is not causal
 * makes of the drafter's reading of it; then tokens as ever. For `bench scorecard` alone. */
#include <string.h>

#include "base/mem.h"
#include "engine/engine_int.h"

int kk_engine_load_one_shot(struct kk_engine *e, const char *f_theta, struct kk_err *err)
{
    if (strcmp(e->options.kv, "native"))
        return kk_fail(err, KK_EINVAL, "one-shot restoration is of policy native, not '%s'",
                       e->options.kv);
    if (!e->dflash)
        return kk_fail(err, KK_EUNSUPPORTED,
                       "one-shot restoration needs the drafter that its map reads: --draft DIR");
    kk_one_shot_close(e->one_shot);
    e->one_shot = NULL;
    return kk_one_shot_open(f_theta, e->model, e->dflash, &e->one_shot, err);
}

/* One step at the next row; logits where all its rows are wanted. */
static int read_step(struct kk_session *s, size_t from, kk_logits_cb *on_row, void *arg,
                     struct kk_err *err)
{
    struct kk_engine *e = s->e;
    const size_t V = (size_t)kk_model_info(e->model)->V, at = (size_t)kk_kv_rows(s->kv);
    const size_t end = at < from ? from : s->n - 1;
    size_t most = (size_t)kk__session_rows_max(e);
    if (at >= from && most > (size_t)e->max_logit_rows) most = (size_t)e->max_logit_rows;
    struct kk_step_item item = {.s = s,
                                .n = (int32_t)(end - at < most ? end - at : most),
                                .want = at < from ? KK_WANT_NONE : KK_WANT_LOGITS};
    int rc = kk__step(e, &item, 1, err);
    if (rc) return rc;
    kk_kv_commit(e->pool, NULL);
    rc = kk__settle(s, 0, item.n, err);
    if (rc || at < from || !on_row) return rc;
    const float *logits = kk__step_logits(e, item.n, err);
    if (!logits) return KK_ENOMEM;
    for (int32_t i = 0; i < item.n; i++)
        if (on_row(arg, (int64_t)at + i, logits + (size_t)i * V))
            return kk_fail(err, KK_ECANCELLED, "stopped by the caller");
    return 0;
}

int kk_session_one_shot(struct kk_session *s, const uint32_t *ids, size_t n, size_t from,
                        kk_logits_cb *on_row, void *arg, struct kk_err *err)
{
    struct kk_engine *e = s->e;
    int rc = kk__append_check(s, ids, n, err);
    if (!rc && (!e->one_shot || s->n || n < 2))
        rc = kk_fail(err, KK_EINVAL,
                     "one-shot restoration: a map, a fresh session, and at least 2 tokens");
    if (!rc) rc = kk__history_reserve(s, n, err);
    if (rc) return rc;
    memcpy(s->history, ids, n * sizeof *ids);
    s->one_shot = 1;
    if (!on_row || from > n - 1) from = n - 1;
    /* ids are below the vocabulary: the same bits signed */
    rc = kk_one_shot_read(e->one_shot, (const int32_t *)(const void *)ids, (int64_t)n,
                          e->options.kv_sinks, e->options.kv_window, err);
    if (rc) return rc;
    s->n = n;
    e->one_shot_step = e->one_shot;
    while (!rc && (size_t)kk_kv_rows(s->kv) < n - 1) rc = read_step(s, from, on_row, arg, err);
    e->one_shot_step = NULL;
    if (rc) s->closed_for_steps = 1;
    return rc;
}
