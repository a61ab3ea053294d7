/* Drafters of an engine: a DFlash model loaded beside the verifier, or the n-gram lookup. */
#include <string.h>

#include "base/clock.h"
#include "base/mem.h"
#include "engine/engine_int.h"

static int is_directory_kind(const char *kind)
{
    return strcmp(kind, "none") && strcmp(kind, "ngram") && strcmp(kind, "wrong");
}

static size_t taps_bytes(const struct kk_engine *e, int n_taps)
{
    size_t rows = (size_t)kk__step_rows_max(e);
    return rows * (size_t)n_taps * (size_t)kk_model_info(e->model)->C * sizeof(float);
}

static int open_taps(struct kk_engine *e, struct kk_taps *t, struct kk_err *err)
{
    e->tap_account.name = "taps";
    return kk_dev_alloc(e->dev, &e->tap_account, taps_bytes(e, t->n), (void **)&t->dst, err);
}

int kk__restore_setup(struct kk_engine *e, struct kk_err *err)
{
    const struct kk_engine_options *o = &e->options;
    if (strcmp(o->kv, "restored")) return 0;
    int rc = kk_ftheta_open(o->f_theta, e->model, e->layout.dtype, kk__step_rows_max(e), e->ctx,
                            &e->ftheta, err);
    if (rc) return rc;
    e->taps[1].n = kk_ftheta_taps(e->ftheta, &e->taps[1].layers);
    return open_taps(e, &e->taps[1], err);
}

/* The drafter's rows, and how many at once */
struct draft_limits {
    struct kk_kv_options kv;
    struct kk_kv_limits rows;
    struct kk_model_limits model;
};

static struct draft_limits draft_limits(const struct kk_engine *e)
{
    const int chunk =
        e->kv_limits.max_chunk_rows < KK_TAPS_HELD ? KK_TAPS_HELD : e->kv_limits.max_chunk_rows;
    return (struct draft_limits){
        .kv = {.policy = "native",
               .device_cap = e->options.draft_device,
               .host_cap = e->options.kv_host,
               .staging_blocks = kk_kv_staging_blocks(e->dev, e->options.kv_staging)},
        .rows = {1, chunk, KK_MAX_WIDTH, e->kv_limits.ctx},
        .model = {.max_rows = chunk,
                  .max_logit_rows = KK_MAX_WIDTH,
                  .positions = e->ctx < 16384 ? e->ctx : 16384}};
}

/* A drafter's own context stays exact: it is small, and its drafts are worth more. */
static struct kk_kv_layout draft_layout(const struct kk_engine *e)
{
    return kk_dflash_layout(e->dflash, e->layout.dtype == KK_Q8_0 ? KK_BF16 : e->layout.dtype);
}

static int open_dflash(struct kk_engine *e, const char *dir, struct kk_err *err)
{
    const struct draft_limits l = draft_limits(e);
    struct kk_model_file *mf;
    int rc = kk_model_file_open(dir, &mf, err);
    if (rc) return kk_wrap(err, rc, "drafter");
    rc = kk_dflash_open(mf, e->model, &l.model, &e->dflash, err);
    e->fingerprint.drafter = kk_model_file_fingerprint(mf);
    kk_model_file_close(mf);
    if (rc) return rc;
    e->taps[0].n = kk_dflash_taps(e->dflash, &e->taps[0].layers);
    e->draft_layout = draft_layout(e);
    rc = open_taps(e, &e->taps[0], err);
    return rc ? rc : kk_kv_pool_open(e->dev, &e->draft_layout, &l.kv, &l.rows, &e->draft_pool, err);
}

/* ---- plan --------------------------------------------------------------------------------- */

static int plan_restorer(struct kk_engine *e, struct kk_plan *out, struct kk_err *err)
{
    size_t bytes;
    const int *layers;
    int rc = kk_ftheta_plan(e->options.f_theta, e->model, e->layout.dtype, kk__step_rows_max(e),
                            e->ctx, &e->ftheta, &bytes, err);
    if (rc) return rc;
    out->restorer_bytes = (int64_t)(bytes + taps_bytes(e, kk_ftheta_taps(e->ftheta, &layers)));
    return 0;
}

static int plan_dflash(struct kk_engine *e, struct kk_plan *out, int64_t rows, struct kk_err *err)
{
    const struct draft_limits l = draft_limits(e);
    struct kk_model_file *mf;
    size_t bytes;
    const int *layers;
    int rc = kk_model_file_open(e->options.draft, &mf, err);
    if (rc) return kk_wrap(err, rc, "drafter");
    rc = kk_dflash_plan(mf, e->model, &l.model, &e->dflash, &bytes, err);
    kk_model_file_close(mf);
    if (rc) return rc;
    const struct kk_kv_layout y = draft_layout(e);
    struct kk_kv_rule *rule = kk_calloc((size_t)y.n_layers, sizeof *rule);
    if (!rule) rc = kk_fail(err, KK_ENOMEM, "out of memory for a plan");
    if (!rc) rc = kk_kv_rules(&y, &l.kv, rule, err);
    if (!rc) {
        bytes += taps_bytes(e, kk_dflash_taps(e->dflash, &layers)) +
                 kk_kv_plan_staging(&y, &l.kv, rule, &l.rows);
        out->drafter_bytes = (int64_t)bytes;
        out->session_draft_bytes = (int64_t)(kk_kv_plan_bytes(&y, &l.kv, rule, rows) +
                                             kk_draft_dflash_held_bytes(e->dflash));
    }
    kk_free(rule);
    return rc;
}

int kk__beside_plan(struct kk_engine *e, struct kk_plan *out, int64_t rows, struct kk_err *err)
{
    int rc = strcmp(e->options.kv, "restored") ? 0 : plan_restorer(e, out, err);
    if (!rc && is_directory_kind(e->options.draft)) rc = plan_dflash(e, out, rows, err);
    kk_dflash_close(e->dflash);
    kk_ftheta_close(e->ftheta);
    return rc;
}

int64_t kk__restorer_bytes(const struct kk_engine *e)
{
    return e->ftheta ? kk_ftheta_bytes(e->ftheta) + (int64_t)taps_bytes(e, e->taps[1].n) : 0;
}

int64_t kk__drafter_bytes(const struct kk_engine *e)
{
    return e->dflash ? kk_dflash_bytes(e->dflash) + kk_kv_staging_bytes(e->draft_pool) +
                           (int64_t)taps_bytes(e, e->taps[0].n)
                     : 0;
}

/* ---- open --------------------------------------------------------------------------------- */

int kk__draft_setup(struct kk_engine *e, struct kk_err *err)
{
    return is_directory_kind(e->options.draft) ? open_dflash(e, e->options.draft, err) : 0;
}

void kk__draft_release(struct kk_engine *e)
{
    for (int i = 0; i < 2; i++)
        if (e->taps[i].dst)
            kk_dev_free(e->dev, &e->tap_account, e->taps[i].dst, taps_bytes(e, e->taps[i].n));
    kk_one_shot_close(e->one_shot);
    kk_kv_pool_close(e->draft_pool);
    kk_dflash_close(e->dflash);
    kk_ftheta_close(e->ftheta);
}

int kk__drafter_open(struct kk_engine *e, struct kk_drafter **out, struct kk_err *err)
{
    const char *kind = e->options.draft;
    *out = NULL;
    if (e->dflash) return kk_draft_dflash_open(e->dflash, e->draft_pool, out, err);
    if (!strcmp(kind, "ngram")) return kk_ngram_open(out, err);
    if (!strcmp(kind, "wrong"))
        return kk_wrong_open((uint32_t)kk_model_info(e->model)->V, out, err);
    return 0;
}

int kk__settle(struct kk_session *s, int first, int rows, struct kk_err *err)
{
    struct kk_engine *e = s->e;
    const size_t C = (size_t)kk_model_info(e->model)->C;
    int rc = 0;
    if (e->ftheta && e->taps[1].n)
        rc = kk_ftheta_commit(e->ftheta, s->kv,
                              e->taps[1].dst + (size_t)first * (size_t)e->taps[1].n * C, rows, err);
    if (rc || !s->drafter || !s->drafter->ops->observe || rows < 1) return rc;
    const int before = kk__behind(s);
    const uint64_t t0 = kk_now_ns();
    rc = s->drafter->ops->observe(
        s->drafter, e->taps[0].dst + (size_t)first * (size_t)e->taps[0].n * C, rows, err);
    const int took = before + rows - kk__behind(s);
    if (!rc && took > 0) kk_take_in_note(&e->costs, took, kk_seconds_since(t0), 0);
    return rc;
}
