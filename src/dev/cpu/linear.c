/* Matrix products: linear and the dense gated feed-forward. */
#include "dev/cpu/cpu_int.h"

struct linear_job {
    struct kk_cpu *c;
    const struct kk_linear_args *a;
    struct kk_grid grid; /* over the panels of all matrices, one after another */
};

/* Panels [p0, p1) of one matrix, for the rows of the cell */
static void linear_part(const struct linear_job *job, const struct kk_cell *e, int i, int64_t p0,
                        int64_t p1)
{
    const struct kk_linear_args *a = job->a;
    const struct kk_cpu_kern *k = job->c->kern;
    const struct kk_weight *w = a->w[i];
    int64_t N = kk__min64(w->rows, p1 * KK_LANES) - p0 * KK_LANES;
    const float *x = (const float *)a->x + e->row * w->cols;
    float *y = a->y[i] + e->row * w->rows + p0 * KK_LANES;
    k->gemm[w->dtype](e->rows, N, w->cols, x, w->cols, kk__panel(w, 0, p0), y, w->rows);
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
    (void)worker;
    for (int i = 0; i < job->a->n; i++) {
        int64_t next = first + kk__panels(job->a->w[i]->rows);
        if (at < next && at < end) {
            linear_part(job, &e, i, at - first, kk__min64(end, next) - first);
            at = kk__min64(end, next);
        }
        first = next;
    }
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
    job.grid = kk__cpu_grid(c, a->T, panels, a->w[0]->cols);
    kk__cpu_for(c, kk__grid_items(&job.grid), job.grid.ns, linear_item, &job);
}

/* ---- glu: the gate's product goes to y, the up product to scratch, and both to y ---- */

struct glu_job {
    struct kk_cpu *c;
    const struct kk_glu_args *a;
    struct kk_grid grid;
};

static void glu_item(void *arg, int item, int worker)
{
    const struct glu_job *job = arg;
    const struct kk_glu_args *a = job->a;
    const struct kk_cpu_kern *k = job->c->kern;
    const struct kk_cell e = kk__grid_cell(&job->grid, item);
    const int64_t C = a->gate->cols, F = a->gate->rows;
    const int64_t most =
        KK_CPU_TILE / (e.rows * KK_LANES) / 4 * 4; /* panels that fit the scratch */
    const float *x = (const float *)a->x + e.row * C;
    float *up = kk__cpu_scratch(job->c, worker);
    for (int64_t p = e.panel, n, N; p < e.panel + e.panels; p += n) {
        n = kk__min64(e.panel + e.panels - p, most);
        N = kk__min64(F - p * KK_LANES, n * KK_LANES);
        float *y = (float *)a->y + e.row * F + p * KK_LANES;
        k->gemm[a->gate->dtype](e.rows, N, C, x, C, kk__panel(a->gate, 0, p), y, F);
        k->gemm[a->up->dtype](e.rows, N, C, x, C, kk__panel(a->up, 0, p), up, N);
        for (int r = 0; r < e.rows; r++) k->glu((int)N, a->act, y + r * F, up + r * N, y + r * F);
    }
}

void kk__cpu_glu(struct kk_dev *dev, const struct kk_glu_args *a)
{
    struct kk_cpu *c = kk__cpu(dev);
    struct glu_job job = {.c = c, .a = a};
    KK_BUG_ON(a->gate->rows != a->up->rows || a->gate->cols != a->up->cols);
    if (a->T == 0) return;
    job.grid = kk__cpu_grid(c, a->T, kk__panels(a->gate->rows), 2 * a->gate->cols);
    kk__cpu_for(c, kk__grid_items(&job.grid), job.grid.ns, glu_item, &job);
}
