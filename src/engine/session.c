/* Sessions: token histories over the KV cache, with one pending token between calls. */
#include <string.h>

#include "base/mem.h"
#include "engine/engine_int.h"

int kk__session_open(struct kk_engine *e, int empty, struct kk_session **out, struct kk_err *err)
{
    struct kk_session *s = kk_calloc(1, sizeof *s);
    if (!s) return kk_fail(err, KK_ENOMEM, "out of memory for a session");
    s->e = e;
    int rc = empty ? kk_kv_open_empty(e->pool, &s->kv, err) : kk_kv_open(e->pool, &s->kv, err);
    if (!rc) rc = kk__drafter_open(e, &s->drafter, err);
    if (rc) {
        kk_session_close(s);
        return rc;
    }
    kk_width_init(&s->width, e->options.draft_width);
    *out = s;
    return 0;
}

int kk_session_open(struct kk_engine *e, struct kk_session **out, struct kk_err *err)
{
    return kk__session_open(e, 0, out, err);
}

void kk_session_close(struct kk_session *s)
{
    if (!s) return;
    kk_drafter_close(s->drafter);
    kk_kv_close(s->kv);
    kk_free(s->history);
    kk_free(s->eos);
    kk_free(s);
}

int kk__eos_check(const struct kk_engine *e, const uint32_t *ids, size_t n, struct kk_err *err)
{
    int V = kk_model_info(e->model)->V;
    for (size_t i = 0; i < n; i++)
        if (ids[i] >= (uint32_t)V)
            return kk_fail(err, KK_ERANGE, "end-of-sequence id %u is outside the vocabulary of %d",
                           ids[i], V);
    return 0;
}

int kk_session_set_eos(struct kk_session *s, const uint32_t *ids, int n, struct kk_err *err)
{
    int rc = kk__eos_check(s->e, ids, (size_t)n, err);
    if (rc) return rc;
    uint32_t *copy = n ? kk_array((size_t)n, sizeof *copy) : NULL;
    if (n && !copy) return kk_fail(err, KK_ENOMEM, "out of memory for a session");
    if (n) memcpy(copy, ids, (size_t)n * sizeof *ids);
    kk_free(s->eos);
    s->eos = copy;
    s->n_eos = n;
    return 0;
}

int kk_session_pin_width(struct kk_session *s, int width, struct kk_err *err)
{
    if (width < 0 || width > KK_MAX_WIDTH)
        return kk_fail(err, KK_EINVAL, "draft width %d: must be 1 to %d, or 0 to find it", width,
                       KK_MAX_WIDTH);
    s->width.pinned = width;
    return 0;
}

/* Room for n more ids. */
int kk__history_reserve(struct kk_session *s, size_t n, struct kk_err *err)
{
    if (s->n + n <= s->cap) return 0;
    size_t cap = s->cap ? s->cap : 256;
    while (cap < s->n + n) cap *= 2;
    uint32_t *p = kk_realloc(s->history, cap, sizeof *p);
    if (!p) return kk_fail(err, KK_ENOMEM, "out of memory for a history of %zu tokens", s->n + n);
    s->history = p;
    s->cap = cap;
    return 0;
}

int kk__ids_check(const struct kk_engine *e, size_t had, const uint32_t *ids, size_t n,
                  struct kk_err *err)
{
    int V = kk_model_info(e->model)->V;
    for (size_t i = 0; i < n; i++)
        if (ids[i] >= (uint32_t)V)
            return kk_fail(err, KK_ERANGE,
                           "token id %u (index %zu) is outside the vocabulary of %d", ids[i], i, V);
    if ((uint64_t)had + n > (uint64_t)e->ctx)
        return kk_fail(err, KK_ERANGE,
                       "%zu tokens do not fit: the context is %lld and %zu are used", n,
                       (long long)e->ctx, had);
    return 0;
}

int kk__append_check(const struct kk_session *s, const uint32_t *ids, size_t n, struct kk_err *err)
{
    if (s->closed_for_steps || s->one_shot)
        return kk_fail(err, KK_EINVAL,
                       "the session was used for a measurement and takes no more tokens");
    return kk__ids_check(s->e, s->n, ids, n, err);
}

/* Feed history rows up to `end` in chunks. */
static int prefill(struct kk_session *s, size_t end, struct kk_err *err)
{
    struct kk_engine *e = s->e;
    size_t start = (size_t)kk_kv_rows(s->kv), at;
    while ((at = (size_t)kk_kv_rows(s->kv)) < end) {
        size_t n = end - at, most = (size_t)kk__session_rows_max(e);
        struct kk_step_item item = {.s = s, .n = (int32_t)(n < most ? n : most)};
        int rc = kk__step(e, &item, 1, err);
        if (rc) return rc;
        kk_kv_commit(e->pool, NULL);
        rc = kk__settle(s, 0, item.n, err);
        if (rc) return rc;
        if (e->options.progress && end - start > most)
            e->options.progress(e->options.progress_arg, "reading",
                                (uint64_t)kk_kv_rows(s->kv) - start, end - start);
    }
    return 0;
}

int kk_session_append(struct kk_session *s, const uint32_t *ids, size_t n, struct kk_err *err)
{
    if (!n) return 0;
    int rc = kk__append_check(s, ids, n, err);
    if (!rc) rc = kk__history_reserve(s, n, err);
    if (rc) return rc;
    memcpy(s->history + s->n, ids, n * sizeof *ids);
    s->n += n;
    rc = prefill(s, s->n - 1, err);
    if (rc) { /* keep what was committed, and one pending token after it */
        size_t had = s->n - n, rows = (size_t)kk_kv_rows(s->kv);
        s->n = rows + 1 > had ? rows + 1 : had;
    }
    return rc;
}

int kk_session_replay(struct kk_session *s, const uint32_t *next, size_t n, double mean,
                      uint64_t seed, struct kk_err *err)
{
    struct kk_replay r = {.next = next,
                          .at = s->n,
                          .n = n,
                          .vocabulary = (uint32_t)kk_model_info(s->e->model)->V,
                          .mean = mean,
                          .seed = seed};
    if (n < 1 || !(mean >= 1 && mean <= KK_MAX_WIDTH))
        return kk_fail(err, KK_EINVAL, "replay of %zu tokens at %g a block: 1 to %d can be had", n,
                       mean, KK_MAX_WIDTH);
    return kk_replay_open(s->drafter, &r, &s->drafter, err);
}

int kk__step_allowed(const struct kk_session *s, struct kk_err *err)
{
    if (!s->n) return kk_fail(err, KK_EINVAL, "the session has no history: append tokens first");
    if (s->closed_for_steps)
        return kk_fail(err, KK_EINVAL,
                       "the session was used for a measurement and takes no more tokens");
    if ((int64_t)s->n >= s->e->ctx)
        return kk_fail(err, KK_ERANGE, "the context of %lld tokens is full", (long long)s->e->ctx);
    return 0;
}

/* ---- logits of every position ------------------------------------------------------------- */

int kk_session_logits(struct kk_session *s, const uint32_t *ids, size_t n, kk_logits_cb *on_row,
                      void *arg, struct kk_err *err)
{
    struct kk_engine *e = s->e;
    size_t V = (size_t)kk_model_info(e->model)->V;
    int rc = kk__ids_check(s->e, s->n, ids, n, err);
    if (!rc) rc = kk__history_reserve(s, n, err);
    if (!rc && s->n) rc = prefill(s, s->n, err); /* the pending token first */
    if (rc) return rc;
    memcpy(s->history + s->n, ids, n * sizeof *ids);
    s->n += n;
    s->closed_for_steps = 1;
    size_t most = (size_t)kk__session_rows_max(e), at;
    if (most > (size_t)e->max_logit_rows) most = (size_t)e->max_logit_rows;
    while (!rc && (at = (size_t)kk_kv_rows(s->kv)) < s->n) {
        size_t k = s->n - at < most ? s->n - at : most;
        struct kk_step_item item = {.s = s, .n = (int32_t)k, .want = KK_WANT_LOGITS};
        rc = kk__step(e, &item, 1, err);
        if (rc) break;
        kk_kv_commit(e->pool, NULL);
        rc = kk__settle(s, 0, item.n, err);
        if (rc) break;
        const float *logits = kk__step_logits(e, item.n, err);
        if (!logits) return KK_ENOMEM;
        for (size_t i = 0; !rc && i < k; i++)
            if (on_row(arg, (int64_t)(at + i), logits + i * V))
                rc = kk_fail(err, KK_ECANCELLED, "stopped by the caller");
    }
    return rc;
}

/* ---- facts -------------------------------------------------------------------------------- */

void kk_session_describe(const struct kk_session *s, struct kk_session_info *out)
{
    *out = (struct kk_session_info){
        .history = (int64_t)s->n,
        .rows = kk_kv_rows(s->kv),
        .kv_device_bytes = kk_kv_device_bytes(s->kv),
        .kv_shared_bytes = kk_kv_shared_of(s->kv),
        .kv_host_bytes = kk_kv_host_bytes(s->kv),
        .drafter_device_bytes = s->drafter && s->drafter->ops->device_bytes
                                    ? s->drafter->ops->device_bytes(s->drafter)
                                    : 0,
        .resident_bytes = kk_kv_resident_bytes(s->kv),
        .resident_rows = kk_kv_resident_rows(s->kv),
        .dropped = kk_kv_dropped(s->kv),
    };
}

const uint32_t *kk_session_history(const struct kk_session *s, size_t *n)
{
    *n = s->n;
    return s->history;
}

int kk_session_check(const struct kk_session *s, struct kk_err *err)
{
    int64_t rows = kk_kv_rows(s->kv), want = s->n ? (int64_t)s->n - 1 : 0;
    if (s->closed_for_steps) want = (int64_t)s->n;
    if (rows != want)
        return kk_fail(err, KK_EINVARIANT, "INV-1: %lld rows for a history of %zu", (long long)rows,
                       s->n);
    return kk_kv_check(s->kv, err);
}
