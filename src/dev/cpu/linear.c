/* Matrix products. How work is cut never changes a bit: each output is one chain over its inputs.
 */
#include "dev/cpu/cpu_int.h"

/* Up to three matrices sharing x, seen as one row of panels. */
struct linear_job {
    struct kk_cpu *c;
    const struct kk_linear_args *a;
    int64_t panels;   /* of all matrices */
    int64_t first[4]; /* of each matrix, and the end */
    int64_t row_blocks, panel_blocks;
};

/* Rows [r0, r1) of panels [p0, p1), which may span matrices. */
static void linear_part(const struct linear_job *j, int64_t r0, int64_t r1, int64_t p0, int64_t p1)
{
    const struct kk_linear_args *a = j->a;
    const struct kk_cpu_kern *k = j->c->k;
    for (int i = 0; i < a->n; i++) {
        const struct kk_weight *w = a->w[i];
        int64_t b = p0 > j->first[i] ? p0 : j->first[i],
                e = p1 < j->first[i + 1] ? p1 : j->first[i + 1];
        if (b >= e) continue;
        b -= j->first[i];
        e -= j->first[i];
        int64_t n0 = b * KK_LANES, n1 = e * KK_LANES < w->rows ? e * KK_LANES : w->rows,
                K = w->cols;
        float *y = a->y[i] + r0 * w->rows + n0;
        k->gemm[w->dtype]((int)(r1 - r0), n1 - n0, K, (const float *)a->x + r0 * K, K,
                          kk_cpu_panel(w, 0, b), y, w->rows);
        if (a->softcap > 0)
            for (int64_t r = 0; r < r1 - r0; r++)
                k->softcap((int)(n1 - n0), a->softcap, y + r * w->rows);
    }
}

static void linear_few_rows(void *arg, int worker, int n)
{
    const struct linear_job *j = arg;
    int64_t p0, p1;
    kk__cpu_range(j->panels, 1, worker, n, &p0, &p1);
    if (p0 < p1) linear_part(j, 0, j->a->T, p0, p1);
}

static void linear_many_rows(void *arg, int worker, int n)
{
    const struct linear_job *j = arg;
    int64_t i, end, items = j->row_blocks * j->panel_blocks;
    kk__cpu_range(items, 1, worker, n, &i, &end);
    for (; i < end; i++) {
        int64_t p0 = i / j->row_blocks * KK_CPU_PANEL_BLOCK,
                r0 = i % j->row_blocks * KK_CPU_ROW_BLOCK;
        int64_t p1 = p0 + KK_CPU_PANEL_BLOCK, r1 = r0 + KK_CPU_ROW_BLOCK;
        linear_part(j, r0, r1 < j->a->T ? r1 : j->a->T, p0, p1 < j->panels ? p1 : j->panels);
    }
}

void kk__cpu_linear(struct kk_dev *d, const struct kk_linear_args *a)
{
    struct linear_job j = {.c = kk_cpu_of(d), .a = a};
    for (int i = 0; i < a->n; i++) {
        j.first[i] = j.panels;
        j.panels += kk_cpu_panels(a->w[i]->rows);
        j.first[i + 1] = j.panels;
    }
    j.row_blocks = (a->T + KK_CPU_ROW_BLOCK - 1) / KK_CPU_ROW_BLOCK;
    j.panel_blocks = (j.panels + KK_CPU_PANEL_BLOCK - 1) / KK_CPU_PANEL_BLOCK;
    kk_pool_run(j.c->pool, a->T <= 32 ? linear_few_rows : linear_many_rows, &j);
}

/* ---- gated products
 * ------------------------------------------------------------------------------- */

struct glu_job {
    struct kk_cpu *c;
    const struct kk_glu_args *a;
    int64_t row_blocks, panel_blocks;
};

/* gate into y, up into the worker's tile, then act(gate) * up over y */
static void glu_part(const struct glu_job *j, float *up, int64_t r0, int64_t r1, int64_t p0,
                     int64_t p1)
{
    const struct kk_glu_args *a = j->a;
    const struct kk_cpu_kern *k = j->c->k;
    int64_t F = a->gate->rows, K = a->gate->cols, n0 = p0 * KK_LANES;
    int64_t n1 = p1 * KK_LANES < F ? p1 * KK_LANES : F, n = n1 - n0;
    float *y = (float *)a->y + r0 * F + n0;
    const float *x = (const float *)a->x + r0 * K;
    k->gemm[a->gate->dtype]((int)(r1 - r0), n, K, x, K, kk_cpu_panel(a->gate, 0, p0), y, F);
    k->gemm[a->up->dtype]((int)(r1 - r0), n, K, x, K, kk_cpu_panel(a->up, 0, p0), up, n);
    for (int64_t r = 0; r < r1 - r0; r++) k->glu((int)n, a->act, y + r * F, up + r * n, y + r * F);
}

static void glu_worker(void *arg, int worker, int n)
{
    const struct glu_job *j = arg;
    int64_t panels = kk_cpu_panels(j->a->gate->rows), T = j->a->T, i, end;
    kk__cpu_range(j->row_blocks * j->panel_blocks, 1, worker, n, &i, &end);
    for (; i < end; i++) {
        int64_t p0 = i / j->row_blocks * KK_CPU_PANEL_BLOCK,
                r0 = i % j->row_blocks * KK_CPU_ROW_BLOCK;
        int64_t p1 = p0 + KK_CPU_PANEL_BLOCK, r1 = r0 + KK_CPU_ROW_BLOCK;
        glu_part(j, j->c->worker[worker].up, r0, r1 < T ? r1 : T, p0, p1 < panels ? p1 : panels);
    }
}

void kk__cpu_glu(struct kk_dev *d, const struct kk_glu_args *a)
{
    struct glu_job j = {.c = kk_cpu_of(d), .a = a};
    j.row_blocks = (a->T + KK_CPU_ROW_BLOCK - 1) / KK_CPU_ROW_BLOCK;
    j.panel_blocks = (kk_cpu_panels(a->gate->rows) + KK_CPU_PANEL_BLOCK - 1) / KK_CPU_PANEL_BLOCK;
    kk_pool_run(j.c->pool, glu_worker, &j);
}
