/* Opening an engine, and the one function that runs a step. */
#include <stdlib.h>
#include <string.h>

#include "base/hash.h"
#include "base/mem.h"
#include "engine/engine_int.h"

enum {
    LOGITS_BUFFER_BYTES = 32 << 20,
    MIN_LOGIT_ROWS = 16,
    MAX_LOGIT_ROWS = 128,
    BATCH_HOLD_ROWS = 64,
    CTX_MOST = 1 << 24,
    CACHES_BYTES = 256 << 20 /* weights beyond it are read from memory */
};

struct kk_engine_options kk_engine_defaults(void)
{
    return (struct kk_engine_options){.device = "auto",
                                      .cpu_isa = "auto",
                                      .act = "auto",
                                      .kv = "native",
                                      .kv_sinks = 4,
                                      .kv_window = 64,
                                      .kv_type = "auto",
                                      .prefill_chunk = 512,
                                      .max_batch = 16,
                                      .draft = "none",
                                      .kv_staging = 0};
}

/* ---- what plan and open share ------------------------------------------------------------- */

/* Everything derived from options and files before memory is taken. */
struct setup {
    struct kk_model_file *mf;
    struct kk_dev *dev;
    struct kk_model_info info;
    struct kk_kv_layout layout; /* layer owned */
    struct kk_kv_options kv;
    struct kk_kv_limits kv_limits;
    struct kk_model_limits limits;
    int64_t ctx;
};

static void setup_release(struct setup *s)
{
    kk_free((void *)(size_t)s->layout.layer);
    kk_dev_close(s->dev);
    kk_model_file_close(s->mf);
    *s = (struct setup){0};
}

static int choose_block_act(const struct kk_engine_options *o, struct kk_dev *dev,
                            struct kk_err *err)
{
    if (!strcmp(o->act, "f32")) {
        dev->block_act = KK_ACT_F32;
    } else if (!strcmp(o->act, "bf16")) {
        dev->bf16_act = 1;
    } else if (strcmp(o->act, "q8") && strcmp(o->act, "auto")) {
        return kk_fail(err, KK_EINVAL,
                       "unknown type '%s' of activations (known: auto, q8, f32, bf16)", o->act);
    }
    return 0;
}

/* "auto", "cpu", "cuda" or "cuda:N" */
static int open_device(const struct kk_engine_options *o, struct kk_dev **out, struct kk_err *err)
{
    const char *name = o->device ? o->device : "auto";
    int is_auto = !strcmp(name, "auto");
    long index = 0;
    char *end = "";
    if (!strcmp(name, "cpu")) return kk_dev_open_cpu(o->cpu_isa, o->threads, out, err);
    const int numbered = !strncmp(name, "cuda:", 5) && name[5] >= '0' && name[5] <= '9';
    if (numbered) index = strtol(name + 5, &end, 10);
    if ((!is_auto && strcmp(name, "cuda") && !numbered) || *end || index > 999)
        return kk_fail(err, KK_EINVAL, "unknown device '%s' (known: auto, cpu, cuda, cuda:N)",
                       name);
    struct kk_err why;
    int rc = kk_dev_open_cuda((int)index, out, &why);
    if (is_auto && (rc == KK_EUNAVAILABLE || rc == KK_EUNSUPPORTED))
        return kk_dev_open_cpu(o->cpu_isa, o->threads, out, err);
    return rc ? kk_fail(err, rc, "%s", why.msg) : 0;
}

static int choose_kv_type(const struct kk_engine_options *o, const struct setup *s,
                          enum kk_dtype *out, struct kk_err *err)
{
    if (!strcmp(o->kv_type, "f32")) {
        *out = KK_F32;
    } else if (!strcmp(o->kv_type, "bf16")) {
        *out = KK_BF16;
    } else if (!strcmp(o->kv_type, "q8_0")) {
        *out = KK_Q8_0;
    } else if (!strcmp(o->kv_type, "auto")) {
        int rc = s->dev->unified ? kk_model_dtype(s->mf, &s->info, out, err) : 0;
        if (rc) return rc;
        if (!s->dev->unified || *out != KK_F32) *out = KK_BF16;
    } else {
        return kk_fail(err, KK_EINVAL, "unknown KV type '%s' (known: auto, f32, bf16, q8_0)",
                       o->kv_type);
    }
    if (!s->dev->unified && *out != KK_BF16) /* what tensor cores read */
        return kk_fail(err, KK_EUNSUPPORTED, "%s keeps KV rows in bf16: no --kv-type %s",
                       s->dev->name, o->kv_type);
    return 0;
}

static int choose_layout(const struct kk_engine_options *o, struct setup *s, struct kk_err *err)
{
    enum kk_dtype t;
    int rc = choose_kv_type(o, s, &t, err);
    if (!rc) rc = kk_model_kv_layout(s->mf, t, &s->layout, err);
    if (rc || t != KK_Q8_0) return rc;
    if (!s->dev->q8_rows)
        return kk_fail(err, KK_EUNSUPPORTED, "KV type q8_0: not on this device (%s)", s->dev->name);
    if (!strcmp(o->kv, "restored"))
        return kk_fail(err, KK_EINVAL,
                       "KV type q8_0: policy restored rebuilds rows as f32 or bf16, choose one");
    for (int l = 0; l < s->layout.n_layers; l++)
        if (s->layout.layer[l].D % (int)kk_dtype_block(t))
            return kk_fail(err, KK_EINVAL,
                           "KV type q8_0 stores blocks of 32 numbers: a head of layer %d has %d", l,
                           s->layout.layer[l].D);
    return 0;
}

static int choose_limits(const struct kk_engine_options *o, struct setup *s, struct kk_err *err)
{
    if (o->prefill_chunk < 1 || o->prefill_chunk > 65536)
        return kk_fail(err, KK_EINVAL, "prefill chunk %d: must be 1 to 65536", o->prefill_chunk);
    if (o->max_batch < 1 || o->max_batch > 4096)
        return kk_fail(err, KK_EINVAL, "batch of %d: must be 1 to 4096", o->max_batch);
    if (s->dev->seqs_most && o->max_batch > s->dev->seqs_most)
        return kk_fail(err, KK_EINVAL, "batch of %d: %s takes %d at most", o->max_batch,
                       s->dev->name, s->dev->seqs_most);
    if (o->ctx < 0 || (o->ctx > CTX_MOST && o->ctx > s->info.max_positions))
        return kk_fail(err, KK_EINVAL, "context of %lld tokens: the model was made for %lld",
                       (long long)o->ctx, (long long)s->info.max_positions);
    s->ctx = o->ctx ? o->ctx : s->info.max_positions;
    int64_t rows = LOGITS_BUFFER_BYTES / ((int64_t)s->info.V * (int64_t)sizeof(float));
    if (rows < MIN_LOGIT_ROWS) rows = MIN_LOGIT_ROWS;
    if (rows > MAX_LOGIT_ROWS) rows = MAX_LOGIT_ROWS;
    if (rows < o->max_batch) rows = o->max_batch;
    if (o->draft_width < 0 || o->draft_width > KK_MAX_WIDTH)
        return kk_fail(err, KK_EINVAL, "draft width %d: must be 1 to %d, or 0 to find it",
                       o->draft_width, KK_MAX_WIDTH);
    /* rows held: a block of one session, or shorter ones of several */
    int hold = o->max_batch == 1        ? KK_MAX_WIDTH
               : rows < BATCH_HOLD_ROWS ? (int)rows
                                        : BATCH_HOLD_ROWS;
    if (hold < o->max_batch) hold = o->max_batch;
    int chunk = o->prefill_chunk;
    if (o->max_batch > 1 && chunk < hold) chunk = hold; /* a mixed step holds them in its chunk */
    s->kv_limits = (struct kk_kv_limits){o->max_batch, chunk, hold, s->dev->unified ? 0 : s->ctx};
    s->limits.max_logit_rows = (int)rows;
    s->limits.max_rows = chunk > hold ? chunk : hold;
    s->limits.positions = s->ctx < 16384 ? s->ctx : 16384;
    return 0;
}

/* A policy that rebuilds rows keeps latents: how large they are is f_theta's. */
static int describe_restoration(const struct kk_engine_options *o, struct kk_kv_options *kv,
                                struct kk_err *err)
{
    if (strcmp(o->kv, "restored")) return 0;
    if (!o->f_theta)
        return kk_fail(err, KK_EINVAL, "policy restored needs f_theta: give its directory");
    return kk_ftheta_describe(o->f_theta, &kv->latent_bytes, err);
}

static int setup_make(const struct kk_engine_options *o, struct setup *s, struct kk_err *err)
{
    *s = (struct setup){0};
    if (!o->model) return kk_fail(err, KK_EINVAL, "no model given");
    s->kv = (struct kk_kv_options){.policy = o->kv,
                                   .sinks = o->kv_sinks,
                                   .window = o->kv_window,
                                   .device_cap = o->kv_device,
                                   .host_cap = o->kv_host,
                                   .staging_blocks = o->kv_staging};
    int rc = describe_restoration(o, &s->kv, err);
    if (!rc) rc = kk_model_file_open(o->model, &s->mf, err);
    if (!rc) rc = kk_model_describe(s->mf, &s->info, err);
    if (!rc) rc = open_device(o, &s->dev, err);
    if (!rc) rc = choose_block_act(o, s->dev, err);
    if (!rc) s->kv.staging_blocks = kk_kv_staging_blocks(s->dev, o->kv_staging);
    if (!rc) rc = choose_layout(o, s, err);
    if (!rc) rc = choose_limits(o, s, err);
    if (rc) setup_release(s);
    return rc;
}

int kk_plan_make(const struct kk_engine_options *o, int64_t ctx, int64_t sessions,
                 struct kk_plan *out, struct kk_err *err)
{
    struct setup s;
    struct kk_model_plan mp;
    struct kk_engine shell = {.options = *o};
    int rc = setup_make(o, &s, err);
    if (rc) return rc;
    shell.dev = s.dev;
    shell.layout = s.layout;
    shell.kv_limits = s.kv_limits;
    shell.ctx = s.ctx;
    struct kk_kv_rule *rule = kk_calloc((size_t)s.layout.n_layers, sizeof *rule);
    if (!ctx) ctx = s.ctx;
    if (!rule) rc = kk_fail(err, KK_ENOMEM, "out of memory for a plan");
    if (!rc && (ctx < 1 || ctx > s.ctx || sessions < 1))
        rc = kk_fail(err, KK_EINVAL,
                     "plan for %lld sessions of %lld tokens: the model was made for %lld",
                     (long long)sessions, (long long)ctx, (long long)s.ctx);
    if (!rc) rc = kk_kv_rules(&s.layout, &s.kv, rule, err);
    if (!rc) rc = kk_model_plan(s.mf, s.dev, &s.limits, &mp, &shell.model, err);
    if (!rc) {
        *out = (struct kk_plan){
            .weight_bytes = (int64_t)mp.weight_bytes,
            .scratch_bytes = (int64_t)mp.scratch_bytes,
            .logits_bytes = (int64_t)mp.logits_bytes,
            .kv_staging_bytes = (int64_t)kk_kv_plan_staging(&s.layout, &s.kv, rule, &s.kv_limits),
            .session_kv_bytes = (int64_t)kk_kv_plan_bytes(&s.layout, &s.kv, rule, ctx - 1),
            .session_kv_host_bytes =
                (int64_t)kk_kv_plan_host_bytes(&s.layout, &s.kv, rule, ctx - 1),
            .sessions = sessions,
            .ctx = ctx,
            .made_for_ctx = s.info.max_positions,
            .free_bytes = (int64_t)s.dev->ops->free_bytes(s.dev),
        };
        rc = kk__beside_plan(&shell, out, ctx - 1, err);
        out->total_bytes = out->weight_bytes + out->scratch_bytes + out->logits_bytes +
                           out->kv_staging_bytes + out->restorer_bytes + out->drafter_bytes +
                           sessions * (out->session_kv_bytes + out->session_draft_bytes);
    }
    kk_model_close(shell.model);
    kk_free(rule);
    setup_release(&s);
    return rc;
}

/* ---- open --------------------------------------------------------------------------------- */

static size_t late_bytes(const struct kk_engine *e)
{
    return (size_t)kk__step_rows_max(e) * sizeof *e->late;
}

static int alloc_step_arrays(struct kk_engine *e, struct kk_err *err)
{
    size_t V = (size_t)kk_model_info(e->model)->V, B = (size_t)e->kv_limits.max_seqs;
    size_t T = (size_t)kk__step_rows_max(e);
    e->ids = kk_calloc(T, sizeof *e->ids);
    e->rows_n = kk_calloc(B, sizeof *e->rows_n);
    e->logit_rows = kk_calloc((size_t)e->max_logit_rows, sizeof *e->logit_rows);
    e->choice = kk_calloc((size_t)e->max_logit_rows, sizeof *e->choice);
    e->kv = kk_calloc(B, sizeof(struct kk_kv *));
    e->items = kk_calloc(B, sizeof *e->items);
    e->hold = kk_calloc(B, sizeof *e->hold);
    e->turns = kk_calloc(B, sizeof *e->turns);
    e->keep = kk_calloc(B, sizeof *e->keep);
    e->accept = kk_calloc(B, sizeof *e->accept);
    e->gain = kk_calloc(B, sizeof *e->gain);
    e->most = kk_calloc(B, sizeof *e->most);
    e->width = kk_calloc(B, sizeof *e->width);
    e->candidates = kk_calloc(V, sizeof *e->candidates);
    e->late = e->dev->ops->host_alloc(e->dev, late_bytes(e));
    if (e->ids && e->rows_n && e->logit_rows && e->choice && e->kv && e->items && e->hold &&
        e->turns && e->keep && e->accept && e->gain && e->most && e->width && e->candidates &&
        e->late)
        return 0;
    return kk_fail(err, KK_ENOMEM, "out of memory for an engine");
}

/* What else than the model decides the bits of a stored row. */
static uint64_t rows_fingerprint(const struct kk_engine *e, const struct setup *s)
{
    const int32_t n[] = {s->kv.sinks, s->kv.window, (int32_t)s->kv.latent_bytes,
                         (int32_t)s->layout.dtype};
    const int32_t act[] = {(int32_t)s->dev->block_act, s->dev->bf16_act};
    struct kk_hash h;
    kk_hash_init(&h, e->ftheta ? kk_ftheta_fingerprint(e->ftheta) : 0);
    kk_hash_add(&h, s->kv.policy, strlen(s->kv.policy));
    kk_hash_add(&h, act, sizeof act);
    if (strcmp(s->kv.policy, "full") && strcmp(s->kv.policy, "native"))
        kk_hash_add(&h, n, sizeof n);
    else
        kk_hash_add(&h, &n[3], sizeof n[3]);
    return kk_hash_value(&h);
}

/* Weight bytes that a step of one row reads. */
static int64_t step_weight_bytes(const struct kk_engine *e)
{
    const struct kk_model_info *i = kk_model_info(e->model);
    return i->n_active_params / kk_dtype_block(i->dtype) * kk_dtype_block_bytes(i->dtype);
}

/* On a GPU a step costs the bytes that it reads: widths are worth trying before they are measured.
 */
static void expect_costs(struct kk_engine *e)
{
    const struct kk_model_info *i = kk_model_info(e->model);
    struct kk_reading r = {.step = (double)step_weight_bytes(e),
                           .expert = (double)kk_model_expert_bytes(e->model),
                           .experts = i->E,
                           .active = i->A};
    if (e->dev->n_threads) return;
    if (e->dflash) /* and the verifier's head */
        r.draft = (double)kk_dflash_weight_bytes(e->dflash) +
                  (double)i->V * i->C / (double)kk_dtype_block(i->dtype) *
                      (double)kk_dtype_block_bytes(i->dtype);
    kk_costs_expect(&e->costs, &r);
}

int kk_engine_open(const struct kk_engine_options *o, struct kk_engine **out, struct kk_err *err)
{
    struct setup s;
    int rc = setup_make(o, &s, err);
    if (rc) return rc;
    struct kk_engine *e = kk_calloc(1, sizeof *e);
    if (!e) {
        setup_release(&s);
        return kk_fail(err, KK_ENOMEM, "out of memory for an engine");
    }
    struct kk_progress_fn progress = {o->progress, o->progress_arg};
    e->options = *o;
    e->dev = s.dev;
    e->layout = s.layout;
    e->kv_limits = s.kv_limits;
    e->max_logit_rows = s.limits.max_logit_rows;
    e->ctx = s.ctx;
    e->fingerprint.model = kk_model_file_fingerprint(s.mf); /* reads here and there */
    kk_model_file_rest(s.mf);
    rc = kk_model_open(s.mf, e->dev, &s.limits, &progress, &e->model, err);
    if (!rc) kk_costs_init(&e->costs, !e->dev->n_threads || step_weight_bytes(e) > CACHES_BYTES);
    if (!rc) rc = kk__restore_setup(e, err);
    if (!rc) e->fingerprint.rows = rows_fingerprint(e, &s);
    if (!rc) rc = kk_kv_pool_open(e->dev, &e->layout, &s.kv, &s.kv_limits, &e->pool, err);
    if (!rc) rc = alloc_step_arrays(e, err);
    if (!rc) rc = kk__draft_setup(e, err);
    if (!rc) expect_costs(e);
    kk_model_file_close(s.mf);
    if (rc) {
        kk_engine_close(e);
        return rc;
    }
    *out = e;
    return 0;
}

void kk_engine_close(struct kk_engine *e)
{
    if (!e) return;
    kk__draft_release(e);
    kk_kv_pool_close(e->pool);
    kk_model_close(e->model);
    e->dev->ops->host_free(e->dev, e->late, late_bytes(e));
    kk_dev_close(e->dev);
    kk_free((void *)(size_t)e->layout.layer);
    kk_free(e->ids);
    kk_free(e->rows_n);
    kk_free(e->logit_rows);
    kk_free(e->choice);
    kk_free(e->logits);
    kk_free(e->kv);
    kk_free(e->items);
    kk_free(e->hold);
    kk_free(e->turns);
    kk_free(e->keep);
    kk_free(e->accept);
    kk_free(e->gain);
    kk_free(e->most);
    kk_free(e->width);
    kk_free(e->candidates);
    kk_free(e);
}

void kk_engine_describe(const struct kk_engine *e, struct kk_engine_info *out)
{
    const struct kk_model_info *i = kk_model_info(e->model);
    int64_t weights = kk_model_weight_bytes(e->model);
    *out = (struct kk_engine_info){
        .device = e->dev->name,
        .architecture = i->architecture,
        .kv = e->options.kv,
        .kv_type = kk_dtype_name(e->layout.dtype),
        .n_layers = i->n_layers,
        .vocabulary = i->V,
        .hidden = i->C,
        .n_params = i->n_params,
        .n_active_params = i->n_active_params,
        .ctx = e->ctx,
        .made_for_ctx = i->max_positions,
        .bos = i->bos,
        .eos = i->eos,
        .n_eos = i->n_eos,
        .rows_rebuilt = e->ftheta ? kk_ftheta_rebuilt(e->ftheta) : 0,
        .rows_replaced = e->one_shot ? kk_one_shot_replaced(e->one_shot) : 0,
        .weight_bytes = weights,
        .scratch_bytes = kk_model_scratch_bytes(e->model),
        .kv_staging_bytes = kk_kv_staging_bytes(e->pool),
        .restorer_bytes = kk__restorer_bytes(e),
        .drafter_bytes = kk__drafter_bytes(e),
        .active_experts = i->A,
        .expert_bytes = kk_model_expert_bytes(e->model),
        .step_weight_bytes = step_weight_bytes(e),
    };
}

/* ---- a step ------------------------------------------------------------------------------- */

/* Pack the rows of all items. */
static void pack(struct kk_engine *e, const struct kk_step_item *item, int B,
                 struct kk_forward *fwd)
{
    int T = 0;
    fwd->choose = 1;
    for (int b = 0; b < B; b++) {
        struct kk_session *s = item[b].s;
        const uint32_t *from = s->history + kk_kv_rows(s->kv);
        e->kv[b] = s->kv;
        e->rows_n[b] = item[b].n;
        e->hold[b] = (uint8_t)item[b].hold;
        for (int i = 0; i < item[b].n; i++, T++) {
            e->ids[T] = (int32_t)from[i];
            if (item[b].want) e->logit_rows[fwd->n_logits++] = T;
        }
        if (item[b].want == KK_WANT_LOGITS) fwd->choose = 0;
    }
}

static int count_experts(struct kk_engine *e, struct kk_err *err)
{
    const int64_t n = kk_model_distinct_experts(e->model, kk_kv_step_T(e->pool), err);
    if (n < 0) return (int)n;
    e->experts.sum += n;
    e->experts.steps++;
    return 0;
}

int kk__step(struct kk_engine *e, const struct kk_step_item *item, int B, struct kk_err *err)
{
    struct kk_forward fwd = {.ids = e->ids,
                             .late = e->late,
                             .logit_rows = e->logit_rows,
                             .taps = {e->taps[0], e->taps[1]},
                             .one_shot = e->one_shot_step,
                             .experts = e->experts.on};
    pack(e, item, B, &fwd);
    int rc = kk_kv_begin_mixed(e->pool, B, e->kv, e->rows_n, e->hold, err);
    if (rc) return rc;
    rc = kk_model_forward(e->model, e->pool, &fwd, err);
    if (!rc && e->experts.on) rc = count_experts(e, err);
    if (rc) kk_kv_abort(e->pool);
    return rc;
}

void kk_engine_count_experts(struct kk_engine *e, int on, double *per_layer)
{
    const double n = (double)e->experts.steps * kk_model_info(e->model)->n_layers;
    if (per_layer) *per_layer = n > 0 ? (double)e->experts.sum / n : 0;
    memset(&e->experts, 0, sizeof e->experts);
    e->experts.on = on;
}

float *kk__step_logits(struct kk_engine *e, int n, struct kk_err *err)
{
    const size_t V = (size_t)kk_model_info(e->model)->V;
    float *device = kk_model_logits(e->model);
    if (e->dev->unified) return device;
    if (!e->logits) e->logits = kk_array((size_t)e->max_logit_rows * V, sizeof *e->logits);
    if (!e->logits) {
        kk_fail(err, KK_ENOMEM, "out of memory for logits");
        return NULL;
    }
    e->dev->ops->download(e->dev, e->logits, device, (size_t)n * V * sizeof(float));
    return e->logits;
}
