/* The replay drafter: proposes a continuation that is known, made wrong here and there, so that how
 * much is accepted is chosen and not a property of the text. The drafter it stands in for still
 * runs, and costs what it costs; its tokens are dropped. */
#include <string.h>

#include "base/mem.h"
#include "base/rng.h"
#include "spec/spec.h"

struct replay {
    struct kk_drafter base;
    struct kk_drafter *inner; /* owned; NULL: none */
    uint32_t *next;           /* [n]: history[at + i] will be next[i] */
    size_t at, n;
    uint32_t vocabulary;
    double p;
    uint64_t seed;
};

double kk_replay_chance(double mean)
{
    double lo = 0, hi = 1;
    for (int i = 0; i < 60; i++) {
        double p = (lo + hi) / 2;
        *(kk_expected_tokens(p, KK_MAX_WIDTH) < mean ? &lo : &hi) = p;
    }
    return mean >= KK_MAX_WIDTH ? 1 : lo;
}

/* The draft for position at + i: right with chance p, by its position alone. */
static uint32_t draft_at(const struct replay *r, size_t i)
{
    uint64_t noise = kk_rng_at(r->seed, r->at + i);
    if (kk_unit(noise) < r->p) return r->next[i];
    return (uint32_t)((r->next[i] + 1 + (noise & 1023) % (r->vocabulary - 1)) % r->vocabulary);
}

static int propose(struct kk_drafter *d, const uint32_t *history, size_t n, int most, uint32_t *out,
                   struct kk_err *err)
{
    struct replay *r = (struct replay *)d;
    int rc = 0, k = 0;
    if (r->inner) {
        r->inner->late = d->late;
        rc = r->inner->ops->propose(r->inner, history, n, most, out, err);
    }
    if (rc < 0) return rc;
    for (size_t i = n - r->at; k < most && n >= r->at && i < r->n; i++) out[k++] = draft_at(r, i);
    return k;
}

static int observe(struct kk_drafter *d, const float *taps, int rows, struct kk_err *err)
{
    struct kk_drafter *inner = ((struct replay *)d)->inner;
    return inner && inner->ops->observe ? inner->ops->observe(inner, taps, rows, err) : 0;
}

static int behind(const struct kk_drafter *d)
{
    const struct kk_drafter *inner = ((const struct replay *)d)->inner;
    return inner && inner->ops->behind ? inner->ops->behind(inner) : 0;
}

static int catch_up(struct kk_drafter *d, struct kk_err *err)
{
    struct kk_drafter *inner = ((struct replay *)d)->inner;
    return inner && inner->ops->catch_up ? inner->ops->catch_up(inner, err) : 0;
}

static int64_t device_bytes(const struct kk_drafter *d)
{
    const struct kk_drafter *inner = ((const struct replay *)d)->inner;
    return inner && inner->ops->device_bytes ? inner->ops->device_bytes(inner) : 0;
}

/* The fork drafts by itself. */
static int fork_replay(struct kk_drafter *d, struct kk_drafter **out, struct kk_err *err)
{
    struct kk_drafter *inner = ((struct replay *)d)->inner;
    return inner && inner->ops->fork ? inner->ops->fork(inner, out, err) : 0;
}

static void close_replay(struct kk_drafter *d)
{
    struct replay *r = (struct replay *)d;
    kk_drafter_close(r->inner);
    kk_free(r->next);
    kk_free(r);
}

int kk_replay_open(struct kk_drafter *inner, const struct kk_replay *known, struct kk_drafter **out,
                   struct kk_err *err)
{
    static const struct kk_drafter_ops ops = {.name = "replay",
                                              .propose = propose,
                                              .observe = observe,
                                              .behind = behind,
                                              .catch_up = catch_up,
                                              .device_bytes = device_bytes,
                                              .fork = fork_replay,
                                              .close = close_replay};
    struct replay *r = kk_calloc(1, sizeof *r);
    if (r) r->next = kk_array(known->n, sizeof *r->next);
    if (!r || !r->next) {
        kk_free(r);
        return kk_fail(err, KK_ENOMEM, "out of memory for a drafter");
    }
    memcpy(r->next, known->next, known->n * sizeof *r->next);
    r->base.ops = &ops;
    r->inner = inner;
    r->at = known->at;
    r->n = known->n;
    r->vocabulary = known->vocabulary;
    r->p = kk_replay_chance(known->mean);
    r->seed = kk_mix64(known->seed);
    *out = &r->base;
    return 0;
}
