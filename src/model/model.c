/* Opening, planning and running a model of any architecture. */
#include "model/model.h"

#include <math.h>
#include <string.h>

#include "base/mem.h"
#include "model/model_int.h"
#include "model/stack_int.h"

/* ---- buffers ------------------------------------------------------------------------------ */

enum { N_BUFFERS = 16 };

static size_t logits_bytes(const struct kk_model *m)
{
    return (size_t)m->limits.max_logit_rows * (size_t)m->config.info.V * sizeof(float);
}

static void buffer_specs(struct kk_model *m, struct kk_buffer_spec s[static N_BUFFERS])
{
    struct kk_buffers *b = &m->buf;
    const struct kk_model_info *i = &m->config.info;
    size_t T = (size_t)m->limits.max_rows, L = (size_t)m->limits.max_logit_rows;
    size_t act = kk_dtype_bytes(m->dev->act), f = sizeof(float), C = (size_t)i->C;
    size_t D = 0, GD = 0, H = (size_t)i->H, A = (size_t)i->A;
    for (int l = 0; l < i->n_layers; l++) {
        const struct kk_layer_config *y = &m->config.layer[l];
        if ((size_t)y->D > D) D = (size_t)y->D;
        if ((size_t)y->G * (size_t)y->D > GD) GD = (size_t)y->G * (size_t)y->D;
    }
    size_t rows_x = T > L ? T : L;
    const struct kk_buffer_spec all[N_BUFFERS] = {
        {(void **)&b->ids, (T + L) * 4},
        {(void **)&b->h, T * C * f},
        {(void **)&b->h_last, L * C * f},
        {(void **)&b->x, rows_x * C * act},
        {(void **)&b->x_moe, m->config.moe ? T * C * act : 0},
        {(void **)&b->x_router, m->config.moe ? T * C * act : 0},
        {(void **)&b->q, T * H * D * f},
        {(void **)&b->k, T * GD * f},
        {(void **)&b->v, T * GD * f},
        {(void **)&b->o, T * H * D * act},
        {(void **)&b->state, T * H * (D + 2) * f},
        {(void **)&b->f, T * (size_t)i->F * act},
        {(void **)&b->a, T * C * f},
        {(void **)&b->b, m->config.moe ? T * C * f : 0},
        {(void **)&b->expert_idx, (size_t)i->n_layers * T * A * 4},
        {(void **)&b->expert_weight, T * A * f},
    };
    memcpy(s, all, sizeof all);
}

struct kk_limits kk__device_limits(const struct kk_model *m)
{
    const struct kk_model_info *i = &m->config.info;
    const struct kk_model_limits *l = &m->limits;
    struct kk_limits d = {.max_rows =
                              l->max_rows > l->max_logit_rows ? l->max_rows : l->max_logit_rows,
                          .max_model_width = i->C,
                          .max_active = i->A,
                          .max_expert_width = i->expert_F,
                          .max_block_cols = m->max_block_cols,
                          .max_bf16_cols = m->max_bf16_cols};
    for (int k = 0; k < i->n_layers; k++)
        if (m->config.layer[k].D > d.max_head_dim) d.max_head_dim = m->config.layer[k].D;
    return d;
}

static size_t choice_bytes(const struct kk_model *m)
{
    return ((size_t)m->limits.max_logit_rows + 1) * sizeof(int32_t);
}

static size_t plan_buffers(struct kk_model *m)
{
    struct kk_buffer_spec s[N_BUFFERS];
    struct kk_limits d = kk__device_limits(m);
    size_t total = m->dev->ops->reserve_bytes(m->dev, &d);
    buffer_specs(m, s);
    for (int k = 0; k < N_BUFFERS; k++) total += s[k].bytes;
    for (int k = 0; k < 2; k++) total += kk__rope_bytes(&m->rope[k], m->limits.positions);
    return total + (m->dev->ops->winner ? 0 : logits_bytes(m));
}

/* Where the device chooses by itself, logits are made when someone asks for them. */
static int logits_room(struct kk_model *m, struct kk_err *err)
{
    if (m->buf.logits) return 0;
    return kk_dev_alloc(m->dev, &m->scratch, logits_bytes(m), (void **)&m->buf.logits, err);
}

static int alloc_buffers(struct kk_model *m, struct kk_err *err)
{
    struct kk_buffer_spec s[N_BUFFERS];
    struct kk_limits d = kk__device_limits(m);
    buffer_specs(m, s);
    int rc = m->dev->ops->reserve(m->dev, &d, &m->dev->tables, err);
    if (!rc) rc = kk__buffers_alloc(m->dev, &m->scratch, s, N_BUFFERS, err);
    if (!rc && !m->dev->ops->winner) rc = logits_room(m, err);
    if (rc) return rc;
    m->to_ids = kk_calloc((size_t)m->limits.max_rows + (size_t)m->limits.max_logit_rows, 4);
    m->buf.choice = m->dev->ops->host_alloc(m->dev, choice_bytes(m));
    return m->to_ids && m->buf.choice ? 0 : kk_fail(err, KK_ENOMEM, "out of memory for a model");
}

static void free_buffers(struct kk_model *m)
{
    struct kk_buffer_spec s[N_BUFFERS];
    buffer_specs(m, s);
    kk__buffers_free(m->dev, &m->scratch, s, N_BUFFERS);
    kk_dev_free(m->dev, &m->scratch, m->buf.logits, logits_bytes(m));
    m->dev->ops->host_free(m->dev, m->buf.choice, choice_bytes(m));
    kk_free(m->to_ids);
}

/* ---- open --------------------------------------------------------------------------------- */

/* Config and empty weights; nothing on the device yet. */
static int new_model(const struct kk_model_file *mf, struct kk_dev *dev,
                     const struct kk_model_limits *limits, struct kk_model **out,
                     struct kk_err *err)
{
    struct kk_model *m = kk_calloc(1, sizeof *m);
    if (!m) return kk_fail(err, KK_ENOMEM, "out of memory for a model");
    m->dev = dev;
    m->limits = *limits;
    m->weights.name = "weights";
    m->scratch.name = "scratch";
    int rc = kk__config_parse(mf, &m->config, err);
    if (rc) {
        kk_free(m);
        return rc;
    }
    for (int l = 0; !rc && l < m->config.info.n_layers; l++)
        rc = kk_dev_takes(dev, m->config.layer[l].D, m->config.info.C, err);
    if (rc) {
        kk_model_close(m);
        return rc;
    }
    for (int k = 0; k < 2; k++) m->rope[k].rope = m->config.rope[k];
    m->layer = kk_calloc((size_t)m->config.info.n_layers, sizeof *m->layer);
    if (!m->layer) {
        kk_model_close(m);
        return kk_fail(err, KK_ENOMEM, "out of memory for a model");
    }
    *out = m;
    return 0;
}

/* The embedding's scale is a number of the embedding's own type (Gemma3TextScaledWordEmbedding). */
static int round_embed_scale(struct kk_model *m, const struct kk_model_file *mf, struct kk_err *err)
{
    struct kk_tensor t;
    int rc = kk__embed_tensor(mf, &m->config.info, &t, err);
    if (rc) return rc;
    float *s = &m->config.embed_scale;
    if (t.dtype == KK_BF16) *s = kk_bf16_to_f32(kk_f32_to_bf16(*s));
    return 0;
}

static int make_room(struct kk_model *m, int64_t n, struct kk_err *err)
{
    int rc = kk__rope_room(m->dev, &m->scratch, &m->rope[0], n, err);
    return rc ? rc : kk__rope_room(m->dev, &m->scratch, &m->rope[1], n, err);
}

static int ensure_positions(struct kk_model *m, int64_t n, struct kk_err *err)
{
    int rc = kk__rope_ensure(m->dev, &m->scratch, &m->rope[0], n, err);
    return rc ? rc : kk__rope_ensure(m->dev, &m->scratch, &m->rope[1], n, err);
}

static int plan_weights(struct kk_loader *ld, struct kk_err *err)
{
    ld->plan = 1;
    int rc = kk__bind_model(ld, err);
    ld->plan = 0;
    return rc;
}

/* What opening takes beside the weights: buffers, tables, the device's stack. */
static int plan_scratch(struct kk_model *m, size_t *out, struct kk_err *err)
{
    int rc = kk__stack_bytes(m, out, err);
    if (!rc) *out += plan_buffers(m);
    return rc;
}

int kk_model_plan(const struct kk_model_file *mf, struct kk_dev *dev,
                  const struct kk_model_limits *limits, struct kk_model_plan *out,
                  struct kk_model **shell, struct kk_err *err)
{
    struct kk_model *m = NULL;
    size_t scratch;
    int rc = new_model(mf, dev, limits, &m, err);
    if (rc) return rc;
    struct kk_loader ld = {.mf = mf, .m = m, .bf16_in = dev->bf16_act};
    rc = plan_weights(&ld, err);
    if (!rc) rc = plan_scratch(m, &scratch, err);
    if (!rc)
        *out = (struct kk_model_plan){ld.planned, scratch, dev->ops->winner ? logits_bytes(m) : 0};
    if (!rc && shell)
        *shell = m;
    else
        kk_model_close(m);
    return rc;
}

/* Before gigabytes are loaded in vain. */
static int check_room(struct kk_model *m, size_t weights, struct kk_err *err)
{
    size_t scratch;
    const size_t left = m->dev->ops->free_bytes(m->dev);
    int rc = plan_scratch(m, &scratch, err);
    if (rc) return rc;
    if (!left || weights + scratch <= left) return 0;
    return kk_fail(err, KK_ENOMEM,
                   "the model wants %zu bytes of %s (%zu of weights, %zu of scratch); %zu are free",
                   weights + scratch, m->dev->name, weights, scratch, left);
}

int kk_model_open(const struct kk_model_file *mf, struct kk_dev *dev,
                  const struct kk_model_limits *limits, const struct kk_progress_fn *progress,
                  struct kk_model **out, struct kk_err *err)
{
    struct kk_model *m = NULL;
    int rc = new_model(mf, dev, limits, &m, err);
    if (rc) return rc;
    struct kk_loader ld = {.mf = mf, .m = m, .progress = progress, .bf16_in = dev->bf16_act};
    rc = round_embed_scale(m, mf, err);
    if (!rc) rc = plan_weights(&ld, err);
    if (!rc) rc = check_room(m, ld.planned, err);
    if (!rc) {
        rc = kk__bind_model(&ld, err);
        m->config.info.dtype = m->embed.dtype; /* as the device keeps it */
        if (rc == KK_ENOMEM) kk_wrap(err, rc, "loading needs %zu bytes", ld.planned);
    }
    if (!rc) rc = alloc_buffers(m, err);
    if (!rc) rc = make_room(m, limits->positions, err);
    if (!rc) rc = kk__stack_open(m, err);
    if (rc) {
        kk_model_close(m);
        return rc;
    }
    *out = m;
    return 0;
}

static void free_layer(struct kk_model *m, const struct kk_layer_config *y,
                       struct kk_layer_weights *w)
{
    const struct kk_model_info *i = &m->config.info;
    const size_t C = (size_t)i->C * sizeof(float), D = (size_t)y->D * sizeof(float);
    float *const vec[] = {w->input_norm,     w->post_attn_norm, w->pre_ff_norm,   w->post_ff_norm,
                          w->post_ff_norm_1, w->post_ff_norm_2, w->pre_ff_norm_2, w->router_scale};
    struct kk_weight *const mat[] = {&w->wq, &w->wk,   &w->wv,     &w->wo,      &w->gate,
                                     &w->up, &w->down, &w->router, &w->gate_up, &w->expert_down};
    for (size_t k = 0; k < sizeof vec / sizeof *vec; k++)
        kk_dev_free(m->dev, &m->weights, vec[k], C);
    kk_dev_free(m->dev, &m->weights, w->q_norm, D);
    kk_dev_free(m->dev, &m->weights, w->k_norm, D);
    kk_dev_free(m->dev, &m->weights, w->expert_scale, (size_t)i->E * sizeof(float));
    for (size_t k = 0; k < sizeof mat / sizeof *mat; k++) kk_weight_free(m->dev, mat[k]);
}

void kk_model_close(struct kk_model *m)
{
    if (!m) return;
    for (int l = 0; m->layer && l < m->config.info.n_layers; l++)
        free_layer(m, &m->config.layer[l], &m->layer[l]);
    kk_weight_free(m->dev, &m->embed);
    kk_weight_free(m->dev, &m->head);
    kk_dev_free(m->dev, &m->weights, m->final_norm, (size_t)m->config.info.C * sizeof(float));
    free_buffers(m);
    kk__stack_close(m);
    for (int k = 0; k < 2; k++) kk__rope_free(m->dev, &m->scratch, &m->rope[k]);
    kk__config_release(&m->config);
    kk_free(m->layer);
    kk_free(m);
}

/* ---- facts -------------------------------------------------------------------------------- */

int kk_model_describe(const struct kk_model_file *mf, struct kk_model_info *out, struct kk_err *err)
{
    struct kk_model_config c;
    int rc = kk__config_parse(mf, &c, err);
    if (rc) return rc;
    *out = c.info;
    kk__config_release(&c);
    return 0;
}

int kk_model_dtype(const struct kk_model_file *mf, const struct kk_model_info *info,
                   enum kk_dtype *out, struct kk_err *err)
{
    struct kk_tensor t;
    int rc = kk__embed_tensor(mf, info, &t, err);
    if (!rc) *out = t.dtype;
    return rc;
}

int kk_model_kv_layout(const struct kk_model_file *mf, enum kk_dtype kv_type,
                       struct kk_kv_layout *out, struct kk_err *err)
{
    struct kk_model_config c;
    int rc = kk__config_parse(mf, &c, err);
    if (rc) return rc;
    struct kk_kv_layer *layer = kk_calloc((size_t)c.info.n_layers, sizeof *layer);
    if (!layer) {
        kk__config_release(&c);
        return kk_fail(err, KK_ENOMEM, "out of memory for the KV layout");
    }
    for (int l = 0; l < c.info.n_layers; l++) {
        const struct kk_layer_config *y = &c.layer[l];
        layer[l] = (struct kk_kv_layer){y->sliding, y->G, y->D, y->value_only, c.info.window};
    }
    *out = (struct kk_kv_layout){c.info.n_layers, layer, kv_type};
    kk__config_release(&c);
    return 0;
}

const struct kk_model_info *kk_model_info(const struct kk_model *m)
{
    return &m->config.info;
}
int64_t kk_model_weight_bytes(const struct kk_model *m)
{
    return atomic_load(&m->weights.bytes);
}
int64_t kk_model_scratch_bytes(const struct kk_model *m)
{
    return atomic_load(&m->scratch.bytes) + atomic_load(&m->dev->tables.bytes);
}
float *kk_model_logits(const struct kk_model *m)
{
    return m->buf.logits;
}

/* ---- forward ------------------------------------------------------------------------------ */

static int check_forward(const struct kk_model *m, const struct kk_kv_pool *pool,
                         const struct kk_forward *fwd, struct kk_err *err)
{
    int T = kk_kv_step_T(pool);
    KK_BUG_ON(T > m->limits.max_rows || fwd->n_logits > m->limits.max_logit_rows);
    for (int t = 0; t < T; t++)
        if ((fwd->ids[t] < 0 && !fwd->late) || fwd->ids[t] >= m->config.info.V)
            return kk_fail(err, KK_ERANGE, "token id %d (row %d) is outside the vocabulary of %d",
                           fwd->ids[t], t, m->config.info.V);
    for (int i = 0; i < fwd->n_logits; i++)
        KK_BUG_ON(fwd->logit_rows[i] < 0 || fwd->logit_rows[i] >= T);
    return 0;
}

/* Ids that the host does not know yet. */
static void copy_late(struct kk_model *m, const struct kk_forward *fwd, int T)
{
    for (int t = 0, n; fwd->late && t < T; t += n) {
        for (n = 0; t + n < T && fwd->ids[t + n] < 0;) n++;
        if (n)
            m->dev->ops->copy(m->dev, m->buf.ids + t, fwd->late + t, (size_t)n * sizeof(int32_t));
        else
            n = 1;
    }
}

int kk_model_forward(struct kk_model *m, struct kk_kv_pool *pool, const struct kk_forward *fwd,
                     struct kk_err *err)
{
    struct kk_dev *d = m->dev;
    int T = kk_kv_step_T(pool);
    const int32_t *pos = kk_kv_step_pos_host(pool);
    int64_t last = 0;
    int rc = check_forward(m, pool, fwd, err);
    for (int t = 0; t < T; t++)
        if (pos[t] > last) last = pos[t];
    if (!rc) rc = ensure_positions(m, last + 1, err);
    if (!rc && fwd->n_logits && !fwd->choose) rc = logits_room(m, err);
    if (rc) return rc;
    m->chosen = 0;
    memcpy(m->to_ids, fwd->ids, (size_t)T * sizeof(int32_t));
    for (int i = 0; i < fwd->n_logits; i++) m->to_ids[T + i] = fwd->logit_rows[i];
    d->ops->upload(d, m->buf.ids, m->to_ids, (size_t)(T + fwd->n_logits) * sizeof(int32_t));
    copy_late(m, fwd, T);
    kk_mem_guard_enter("forward");
    d->ops->step_begin(d);
    const int whole = !fwd->experts && kk__stack_step(m, pool, fwd);
    if (!whole) kk__forward(m, pool, fwd);
    rc = d->ops->step_end(d, err);
    if (!rc && (whole || fwd->choose)) m->chosen = fwd->n_logits;
    kk_mem_guard_leave();
    return rc;
}

int kk_model_argmax(struct kk_model *m, int n, int32_t *out, struct kk_err *err)
{
    struct kk_dev *d = m->dev;
    int rc = 0;
    if (m->chosen < n) {
        d->ops->step_begin(d);
        d->ops->argmax(
            d, &(struct kk_argmax_args){
                   .T = n, .n = m->config.info.V, .x = m->buf.logits, .out = m->buf.choice});
        rc = d->ops->step_end(d, err);
    }
    if (!rc) memcpy(out, m->buf.choice, (size_t)n * sizeof *out);
    return rc;
}

int64_t kk_model_distinct_experts(struct kk_model *m, int T, struct kk_err *err)
{
    const struct kk_model_info *i = &m->config.info;
    const size_t n = (size_t)T * (size_t)i->A;
    int64_t sum = 0;
    if (!m->config.moe) return 0;
    int32_t *idx = kk_array(n, sizeof *idx);
    uint8_t *seen = kk_calloc((size_t)i->E, 1);
    for (int l = 0; idx && seen && l < i->n_layers; l++) {
        m->dev->ops->download(m->dev, idx,
                              m->buf.expert_idx + (int64_t)l * m->limits.max_rows * i->A,
                              n * sizeof *idx);
        memset(seen, 0, (size_t)i->E);
        for (size_t k = 0; k < n; k++) seen[idx[k]] = 1;
        for (int e = 0; e < i->E; e++) sum += seen[e];
    }
    if (!idx || !seen) sum = kk_fail(err, KK_ENOMEM, "out of memory for a count of experts");
    kk_free(idx);
    kk_free(seen);
    return sum;
}

int64_t kk_model_expert_bytes(const struct kk_model *m)
{
    int64_t sum = 0;
    for (int l = 0; m->config.moe && l < m->config.info.n_layers; l++)
        sum += (int64_t)(m->layer[l].gate_up.mat_bytes + m->layer[l].expert_down.mat_bytes);
    return sum;
}
