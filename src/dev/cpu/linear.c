/* Matrix products: linear and the dense gated feed-forward. */
#include "dev/cpu/cpu_int.h"

/* ---- one product, of any type of weights ---- */

struct quantise_job {
    const float *x;
    int64_t K, T;
    size_t stride;
    char *to;
};

static void quantise_rows(struct kk_cpu *c, const void *arg, int64_t lo, int64_t hi, int worker)
{
    const struct quantise_job *j = arg;
    (void)worker;
    for (int64_t r = lo; r < hi; r++)
        c->q8->quantise(j->K, 0, j->K / KK_GROUP, j->x + r * j->K, j->to + (size_t)r * j->stride);
}

/* The same by groups of all rows, [lo, hi) */
static void quantise_columns(struct kk_cpu *c, const void *arg, int64_t lo, int64_t hi, int worker)
{
    const struct quantise_job *j = arg;
    (void)worker;
    for (int64_t r = 0; r < j->T; r++)
        c->q8->quantise(j->K, lo, hi, j->x + r * j->K, j->to + (size_t)r * j->stride);
}

static void round_rows(struct kk_cpu *c, const void *arg, int64_t lo, int64_t hi, int worker)
{
    const struct quantise_job *j = arg;
    (void)worker;
    for (int64_t r = lo; r < hi; r++) {
        uint16_t *to = (uint16_t *)(void *)(j->to + (size_t)r * j->stride);
        c->kern->store[KK_BF16]((int)j->K, j->x + r * j->K, to);
        if (j->K & 1) to[j->K] = 0;
    }
}

struct kk_cpu_x kk__cpu_x(struct kk_cpu *c, int64_t T, int64_t K, const float *x, int n,
                          const struct kk_weight *const *w)
{
    struct kk_cpu_x in = {.f = x, .ld = K};
    int wanted = 0, rounded = 0;
    for (int i = 0; i < n; i++) {
        wanted |= kk_dtype_is_block(w[i]->dtype);
        rounded |= w[i]->bf16_in;
    }
    if (rounded) {
        in.h = c->s.pairs16, in.ldh = (K + 1) / 2;
        KK_BUG_ON((size_t)(T * in.ldh) > c->s.n_pairs16);
        struct quantise_job to_bf16 = {x, K, T, (size_t)in.ldh * 4, (char *)c->s.pairs16};
        kk__cpu_rows(c, T, K / 16, round_rows, &to_bf16);
    }
    if (!wanted || c->dev.block_act == KK_ACT_F32) return in;
    in.q = c->s.q8, in.stride = kk_q8_row_bytes(K);
    KK_BUG_ON((size_t)T * in.stride > c->s.q8_bytes);
    struct quantise_job job = {x, K, T, in.stride, c->s.q8};
    if (x == c->by_columns)
        kk__cpu_rows(c, K / KK_GROUP, T * KK_GROUP / 2, quantise_columns, &job);
    else
        kk__cpu_rows(c, T, K / 2, quantise_rows, &job);
    return in;
}

/* Panel by panel as f32 */
static void gemm_f32_act(struct kk_cpu *c, int worker, const struct kk_weight *w, int M, int64_t N,
                         const struct kk_cpu_x *x, const char *panel, float *y, int64_t ldy)
{
    float *open = (float *)((char *)kk__cpu_scratch(c, worker) + c->s.panel_at);
    KK_BUG_ON(w->cols > c->s.limits.max_block_cols);
    for (int64_t n = 0; n < N; n += KK_LANES, panel += kk_panel_bytes(w->dtype, w->cols)) {
        for (int64_t g = 0; g < w->cols / KK_GROUP; g++)
            c->q8->weights(w->dtype, panel, w->cols, g, open + g * KK_GROUP * KK_LANES);
        c->kern->gemm[KK_F32](M, kk__min64(KK_LANES, N - n), w->cols, x->f, x->ld, open, NULL,
                              y + n, ldy);
    }
}

void kk__cpu_gemm(struct kk_cpu *c, int worker, const struct kk_weight *w, int M, int64_t N,
                  const struct kk_cpu_x *x, const void *panel, const void *next, float *y,
                  int64_t ldy)
{
    if (w->bf16_in)
        c->kern->gemm_pairs(M, N, w->cols, x->h, x->ldh, panel, next, y, ldy);
    else if (!kk_dtype_is_block(w->dtype))
        c->kern->gemm[w->dtype](M, N, w->cols, x->f, x->ld, panel, next, y, ldy);
    else if (x->q)
        c->q8->gemm(w->dtype, M, N, w->cols, x->q, x->stride, panel, y, ldy);
    else
        gemm_f32_act(c, worker, w, M, N, x, panel, y, ldy);
}

/* ---- linear ---- */

struct linear_job {
    struct kk_cpu *c;
    const struct kk_linear_args *a;
    struct kk_cpu_x x;
    struct kk_grid grid; /* over the panels of all matrices, one after another */
};

/* Panels [p0, p1) of one matrix, for the rows of the cell; those at next come after */
static void linear_part(const struct linear_job *job, const struct kk_cell *e, int i, int64_t p0,
                        int64_t p1, const void *next, int worker)
{
    const struct kk_linear_args *a = job->a;
    const struct kk_cpu_kern *k = job->c->kern;
    const struct kk_weight *w = a->w[i];
    int64_t N = kk__min64(w->rows, p1 * KK_LANES) - p0 * KK_LANES;
    const struct kk_cpu_x x = kk__x_row(&job->x, e->row);
    float *y = a->y[i] + e->row * w->rows + p0 * KK_LANES;
    kk__cpu_gemm(job->c, worker, w, e->rows, N, &x, kk__panel(w, 0, p0), next, y, w->rows);
    if (a->bias[i])
        for (int r = 0; r < e->rows; r++)
            k->add((int)N, y + r * w->rows, a->bias[i] + p0 * KK_LANES, y + r * w->rows);
    if (a->softcap > 0)
        for (int r = 0; r < e->rows; r++) k->softcap((int)N, a->softcap, y + r * w->rows);
}

static void linear_item(void *arg, int item, int worker)
{
    const struct linear_job *job = arg;
    struct kk_cell e = kk__grid_cell(&job->grid, item);
    int64_t at = e.panel, end = e.panel + e.panels, first = 0;
    for (int i = 0; i < job->a->n; i++) {
        int64_t next = first + kk__panels(job->a->w[i]->rows);
        if (at < next && at < end) {
            const void *then = end > next ? job->a->w[i + 1]->data : NULL;
            linear_part(job, &e, i, at - first, kk__min64(end, next) - first, then, worker);
            at = kk__min64(end, next);
        }
        first = next;
    }
}

/* Rows of bf16 are pairs already. */
static struct kk_cpu_x bf16_rows(const struct kk_linear_args *a)
{
    for (int i = 0; i < a->n; i++) KK_BUG_ON(!a->w[i]->bf16_in || a->w[i]->cols % 2);
    return (struct kk_cpu_x){.h = a->x, .ldh = a->w[0]->cols / 2};
}

void kk__cpu_linear(struct kk_dev *dev, const struct kk_linear_args *a)
{
    struct kk_cpu *c = kk__cpu(dev);
    struct linear_job job = {.c = c, .a = a};
    int64_t panels = 0;
    for (int i = 0; i < a->n; i++) {
        KK_BUG_ON(a->w[i]->cols != a->w[0]->cols);
        panels += kk__panels(a->w[i]->rows);
    }
    if (a->T == 0 || panels == 0) return;
    if (a->bf16)
        job.x = bf16_rows(a);
    else
        job.x = kk__cpu_x(c, a->T, a->w[0]->cols, a->x, a->n, a->w);
    job.grid = kk__cpu_grid(c, a->w[0], a->T, panels, a->w[0]->cols);
    kk__cpu_for_near(c, kk__grid_items(&job.grid), job.grid.ns, linear_item, &job);
}

/* ---- winner: the product a tile at a time in a thread's scratch ---- */

/* The largest so far of a row, among the outputs of a thread. */
struct best {
    float x;
    int32_t at; /* -1: none */
};

struct winner_job {
    struct kk_cpu *c;
    const struct kk_winner_args *a;
    struct kk_cpu_x x;
    struct kk_grid grid;
    struct best *best; /* [n_threads, T] */
};

/* Tiles come in any order. */
static void keep_larger(struct best *b, float x, int32_t at)
{
    const int same = !kk_is_larger(x, b->x) && !kk_is_larger(b->x, x);
    if (b->at < 0 || kk_is_larger(x, b->x) || (same && at < b->at)) *b = (struct best){x, at};
}

static void winner_item(void *arg, int item, int worker)
{
    const struct winner_job *job = arg;
    const struct kk_winner_args *a = job->a;
    const struct kk_cpu_kern *k = job->c->kern;
    const struct kk_cell e = kk__grid_cell(&job->grid, item);
    const int64_t most = KK_CPU_TILE / (e.rows * KK_LANES) / 4 * 4;
    const struct kk_cpu_x x = kk__x_row(&job->x, e.row);
    struct best *best = job->best + (int64_t)worker * a->T + e.row;
    float *y = kk__cpu_scratch(job->c, worker);
    for (int64_t p = e.panel, n, N; p < e.panel + e.panels; p += n) {
        n = kk__min64(e.panel + e.panels - p, most);
        N = kk__min64(a->w->rows - p * KK_LANES, n * KK_LANES);
        const void *next = p + n < e.panel + e.panels ? kk__panel(a->w, 0, p + n) : NULL;
        kk__cpu_gemm(job->c, worker, a->w, e.rows, N, &x, kk__panel(a->w, 0, p), next, y, N);
        for (int r = 0; r < e.rows; r++) {
            float *row = y + r * N;
            if (a->softcap > 0) k->softcap((int)N, a->softcap, row);
            const int64_t i = k->argmax(N, row);
            keep_larger(&best[r], row[i], (int32_t)(p * KK_LANES + i));
        }
    }
}

void kk__cpu_winner(struct kk_dev *dev, const struct kk_winner_args *a)
{
    struct kk_cpu *c = kk__cpu(dev);
    const int threads = dev->n_threads;
    struct winner_job job = {.c = c, .a = a, .best = (struct best *)(void *)c->s.parts};
    KK_BUG_ON((size_t)(threads * a->T) * sizeof(struct best) > c->s.n_parts * sizeof(float));
    if (a->T == 0) return;
    for (int i = 0; i < threads * a->T; i++) job.best[i].at = -1;
    job.x = kk__cpu_x(c, a->T, a->w->cols, a->x, 1, &a->w);
    job.grid = kk__cpu_grid(c, a->w, a->T, kk__panels(a->w->rows), a->w->cols);
    kk__cpu_for(c, kk__grid_items(&job.grid), job.grid.ns, winner_item, &job);
    for (int t = 0; t < a->T; t++) {
        struct best b = {.at = -1};
        for (int i = 0; i < threads; i++) {
            const struct best *of = &job.best[i * a->T + t];
            if (of->at >= 0) keep_larger(&b, of->x, of->at);
        }
        a->out[t] = b.at;
    }
}

enum { COLUMNS_MOST = 16 }; /* rows; of more, what a thread wrote has left its cache */

/* ---- glu: the gate's product goes to y, the up product to scratch, and both to y ---- */

struct glu_job {
    struct kk_cpu *c;
    const struct kk_glu_args *a;
    struct kk_cpu_x x;
    struct kk_grid grid;
};

static void glu_item(void *arg, int item, int worker)
{
    const struct glu_job *job = arg;
    const struct kk_glu_args *a = job->a;
    const struct kk_cpu_kern *k = job->c->kern;
    const struct kk_cell e = kk__grid_cell(&job->grid, item);
    const int64_t F = a->gate->rows;
    const int64_t most =
        KK_CPU_TILE / (e.rows * KK_LANES) / 4 * 4; /* panels that fit the scratch */
    const struct kk_cpu_x x = kk__x_row(&job->x, e.row);
    float *up = kk__cpu_scratch(job->c, worker);
    for (int64_t p = e.panel, n, N; p < e.panel + e.panels; p += n) {
        n = kk__min64(e.panel + e.panels - p, most);
        N = kk__min64(F - p * KK_LANES, n * KK_LANES);
        float *y = (float *)a->y + e.row * F + p * KK_LANES;
        const void *gate = kk__panel(a->gate, 0, p), *other = kk__panel(a->up, 0, p);
        const void *next = p + n < e.panel + e.panels ? kk__panel(a->gate, 0, p + n) : NULL;
        kk__cpu_gemm(job->c, worker, a->gate, e.rows, N, &x, gate, other, y, F);
        kk__cpu_gemm(job->c, worker, a->up, e.rows, N, &x, other, next, up, N);
        for (int r = 0; r < e.rows; r++) k->glu((int)N, a->act, y + r * F, up + r * N, y + r * F);
    }
}

void kk__cpu_glu(struct kk_dev *dev, const struct kk_glu_args *a)
{
    struct kk_cpu *c = kk__cpu(dev);
    struct glu_job job = {.c = c, .a = a};
    KK_BUG_ON(a->gate->rows != a->up->rows || a->gate->cols != a->up->cols);
    if (a->T == 0) return;
    job.x = kk__cpu_x(c, a->T, a->gate->cols, a->x, 2,
                      (const struct kk_weight *const[]){a->gate, a->up});
    job.grid = kk__cpu_grid(c, a->gate, a->T, kk__panels(a->gate->rows), 2 * a->gate->cols);
    kk__cpu_for_near(c, kk__grid_items(&job.grid), job.grid.ns, glu_item, &job);
    c->by_columns = a->T <= COLUMNS_MOST ? a->y : NULL;
}
