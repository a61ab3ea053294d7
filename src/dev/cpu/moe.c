/* Routing and experts. Rows are grouped by expert, so each expert's weights are read once a step; a
 * row's sum goes over its experts in ascending index, so company changes no bit. */
#include <string.h>

#include "dev/cpu/cpu_int.h"

/* ---- route ------------------------------------------------------------------------------------ */

enum { MAX_EXPERTS = 4096 };

struct route_job {
    struct kk_cpu *c;
    const struct kk_route_args *a;
};

/* The A largest of p[E] in descending order, lowest index on ties. */
static void top(int E, int A, float *p, int32_t *idx, float *w)
{
    for (int i = 0; i < A; i++) {
        int best = 0;
        for (int e = 1; e < E; e++)
            if (p[e] > p[best]) best = e;
        idx[i] = best;
        w[i] = p[best];
        p[best] = -1;
    }
}

static void route_worker(void *arg, int worker, int n)
{
    const struct route_job *j = arg;
    const struct kk_route_args *a = j->a;
    const int E = a->E, A = a->A, padded = (E + KK_LANES - 1) / KK_LANES * KK_LANES;
    float p[MAX_EXPERTS], m, l;
    int64_t t, end, K = a->w->cols;
    kk__cpu_range(a->T, 1, worker, n, &t, &end);
    for (; t < end; t++) {
        float *weight = a->weight + t * A, sum = 0;
        int32_t *idx = a->idx + t * A;
        j->c->k->gemm[a->w->dtype](1, E, K, (const float *)a->x + t * K, K, a->w->data, p, E);
        for (int e = E; e < padded; e++) p[e] = -INFINITY;
        j->c->k->softmax(padded, p, &m, &l);
        for (int e = 0; e < E; e++) p[e] /= l;
        top(E, A, p, idx, weight);
        for (int i = 0; i < A; i++) sum += weight[i];
        for (int i = 0; i < A; i++) weight[i] = weight[i] / sum * a->expert_scale[idx[i]];
    }
}

void kk__cpu_route(struct kk_dev *d, const struct kk_route_args *a)
{
    struct route_job j = {kk_cpu_of(d), a};
    KK_BUG_ON(a->E > MAX_EXPERTS);
    if ((int64_t)a->T * a->E * a->w->cols < 16384)
        route_worker(&j, 0, 1);
    else
        kk_pool_run(j.c->pool, route_worker, &j);
}

/* ---- experts ---------------------------------------------------------------------------------- */

struct moe_job {
    struct kk_cpu *c;
    const struct kk_moe_args *a;
    int64_t C, F;
    int pairs; /* T * A */
    /* the product being done: rows of `in` [pairs, K] times expert matrices, to `out` [pairs, N] */
    const struct kk_weight *w;
    const float *in;
    float *out;
};

static void sort_ascending(int32_t *x, int n)
{
    for (int i = 1; i < n; i++)
        for (int k = i; k > 0 && x[k - 1] > x[k]; k--) {
            int32_t t = x[k];
            x[k] = x[k - 1];
            x[k - 1] = t;
        }
}

/* Counting sort of (row, expert) pairs by expert, rows ascending within. */
static void group(struct moe_job *j)
{
    struct kk_cpu *c = j->c;
    const struct kk_moe_args *a = j->a;
    int32_t *start = c->moe_start;
    memset(start, 0, (size_t)(a->E + 1) * sizeof *start);
    for (int i = 0; i < j->pairs; i++) start[a->idx[i] + 1]++;
    for (int e = 0; e < a->E; e++) start[e + 1] += start[e];
    for (int i = 0; i < j->pairs; i++) {
        int32_t at = start[a->idx[i]]++;
        c->moe_row[at] = i / a->A;
        c->moe_weight[at] = a->weight[i];
        c->moe_pair[i] = at;
    }
    for (int e = a->E; e > 0; e--) start[e] = start[e - 1];
    start[0] = 0;
    /* a row's pairs in ascending order are its experts in ascending index */
    for (int t = 0; t < a->T; t++) sort_ascending(c->moe_pair + t * a->A, a->A);
}

static void gather_worker(void *arg, int worker, int n)
{
    const struct moe_job *j = arg;
    int64_t i, end;
    kk__cpu_range(j->pairs, 1, worker, n, &i, &end);
    for (; i < end; i++)
        memcpy(j->c->moe_x + i * j->C, (const float *)j->a->x + j->c->moe_row[i] * j->C,
               (size_t)j->C * sizeof(float));
}

/* Work items are panel blocks of every matrix that has rows, numbered expert by expert. */
static void product_worker(void *arg, int worker, int n)
{
    const struct moe_job *j = arg;
    const struct kk_weight *w = j->w;
    const int32_t *start = j->c->moe_start;
    int64_t K = w->cols, N = w->rows, panels = kk_cpu_panels(N), total = 0, first, end, at = 0;
    int64_t grain = j->pairs <= 16 ? 2 : KK_CPU_PANEL_BLOCK;
    for (int e = 0; e < j->a->E; e++)
        if (start[e + 1] > start[e]) total += panels;
    kk__cpu_range(total, grain, worker, n, &first, &end);
    for (int e = 0; e < j->a->E && at < end; e++) {
        int m = start[e + 1] - start[e];
        if (!m) continue;
        int64_t p0 = first > at ? first - at : 0, p1 = end - at < panels ? end - at : panels;
        at += panels;
        for (int64_t p = p0; p < p1; p += KK_CPU_PANEL_BLOCK) {
            int64_t q = p + KK_CPU_PANEL_BLOCK < p1 ? p + KK_CPU_PANEL_BLOCK : p1;
            int64_t n0 = p * KK_LANES, n1 = q * KK_LANES < N ? q * KK_LANES : N;
            for (int r = 0; r < m; r += KK_CPU_ROW_BLOCK) {
                int64_t i = start[e] + r;
                int rows = m - r < KK_CPU_ROW_BLOCK ? m - r : KK_CPU_ROW_BLOCK;
                j->c->k->gemm[w->dtype](rows, n1 - n0, K, j->in + i * K, K, kk_cpu_panel(w, e, p),
                                        j->out + i * N + n0, N);
            }
        }
    }
}

static void product(struct moe_job *j, const struct kk_weight *w, const float *in, float *out)
{
    j->w = w;
    j->in = in;
    j->out = out;
    kk_pool_run(j->c->pool, product_worker, j);
}

static void act_worker(void *arg, int worker, int n)
{
    const struct moe_job *j = arg;
    int64_t i, end, F = j->F;
    kk__cpu_range(j->pairs, 1, worker, n, &i, &end);
    for (; i < end; i++) {
        const float *gu = j->c->moe_gu + i * 2 * F;
        j->c->k->glu((int)F, j->a->act, gu, gu + F, j->c->moe_h + i * F);
    }
}

static void combine_worker(void *arg, int worker, int n)
{
    const struct moe_job *j = arg;
    int64_t t, end;
    kk__cpu_range(j->a->T, 1, worker, n, &t, &end);
    for (; t < end; t++) {
        float *y = j->a->y + t * j->C;
        memset(y, 0, (size_t)j->C * sizeof *y);
        for (int k = 0; k < j->a->A; k++) {
            int32_t i = j->c->moe_pair[t * j->a->A + k];
            j->c->k->axpy((int)j->C, j->c->moe_weight[i], j->c->moe_y + i * j->C, y);
        }
    }
}

static void run(struct moe_job *j, kk__cpu_work *fn)
{
    if (j->pairs <= 8)
        fn(j, 0, 1);
    else
        kk_pool_run(j->c->pool, fn, j);
}

void kk__cpu_moe(struct kk_dev *d, const struct kk_moe_args *a)
{
    struct moe_job j = {
        .c = kk_cpu_of(d), .a = a, .C = a->down->rows, .F = a->down->cols, .pairs = a->T * a->A};
    group(&j);
    run(&j, gather_worker);
    product(&j, a->gate_up, j.c->moe_x, j.c->moe_gu);
    run(&j, act_worker);
    product(&j, a->down, j.c->moe_h, j.c->moe_y);
    run(&j, combine_worker);
}
