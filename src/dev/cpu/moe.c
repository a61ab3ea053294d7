/* Experts: routing, and the feed-forward with rows grouped by expert, so that a step reads the
 * weights of an expert once for all its rows. */
#include <string.h>

#include "dev/cpu/cpu_int.h"

/* ---- route ---- */

struct route_job {
    struct kk_cpu *c;
    const struct kk_route_args *a;
    struct kk_cpu_x x;
    struct kk_grid grid;
    float *logits; /* [T, ld] */
    int ld;        /* E rounded up to lanes */
};

static void route_product(void *arg, int item, int worker)
{
    const struct route_job *j = arg;
    const struct kk_weight *w = j->a->w;
    struct kk_cell e = kk__grid_cell(&j->grid, item);
    int64_t N = kk__min64(w->rows - e.panel * KK_LANES, e.panels * KK_LANES);
    const struct kk_cpu_x x = kk__x_row(&j->x, e.row);
    kk__cpu_gemm(j->c, worker, w, e.rows, N, &x, kk__panel(w, 0, e.panel), NULL,
                 j->logits + (int64_t)e.row * j->ld + e.panel * KK_LANES, j->ld);
}

static void route_rows(struct kk_cpu *c, const void *arg, int64_t lo, int64_t hi, int worker)
{
    const struct route_job *j = arg;
    const struct kk_route_args *a = j->a;
    (void)worker;
    for (int64_t t = lo; t < hi; t++) {
        float *p = j->logits + t * j->ld, *weight = a->weight + t * a->A, m, l, sum = 0;
        int32_t *idx = a->idx + t * a->A;
        for (int e = a->E; e < j->ld; e++) p[e] = -INFINITY;
        c->kern->softmax(j->ld, p, &m, &l);
        for (int e = 0; e < a->E; e++) p[e] /= l;
        for (int i = 0; i < a->A; i++) {
            idx[i] = (int32_t)c->kern->argmax(a->E, p);
            weight[i] = p[idx[i]];
            sum += weight[i];
            p[idx[i]] = -1;
        }
        for (int i = 0; i < a->A; i++) weight[i] = weight[i] / sum * a->expert_scale[idx[i]];
    }
}

void kk__cpu_route(struct kk_dev *dev, const struct kk_route_args *a)
{
    struct kk_cpu *c = kk__cpu(dev);
    struct route_job j = {.c = c, .a = a, .logits = c->s.pairs, .ld = (a->E + 15) & ~15};
    KK_BUG_ON(a->w->rows != a->E || a->A > a->E || (size_t)a->T * (size_t)j.ld > c->s.n_pairs);
    if (a->T == 0) return;
    j.x = kk__cpu_x(c, a->T, a->w->cols, a->x, 1, &a->w);
    j.grid = kk__cpu_grid(c, a->w, a->T, kk__panels(a->E), a->w->cols);
    kk__cpu_for(c, kk__grid_items(&j.grid), j.grid.ns, route_product, &j);
    kk__cpu_rows(c, a->T, (int64_t)a->E * (a->A + 16) / 8, route_rows, &j);
}

/* ---- moe ---- */

struct moe_job {
    struct kk_cpu *c;
    const struct kk_moe_args *a;
    struct kk_cpu_x x; /* of the up phase [T, C], then of the down phase [T*A, F] */
    int C, F;
    int n_experts;          /* with rows */
    int64_t chunk, n_parts; /* panels of an item; items of an expert, or of the output */
};

/* Pairs sorted by expert and then by row; 0, or -1 with an error latched. */
static int group_by_expert(struct moe_job *j)
{
    const struct kk_moe_args *a = j->a;
    struct kk_cpu_scratch *s = &j->c->s;
    const int n = a->T * a->A;
    memset(s->starts, 0, ((size_t)a->E + 1) * sizeof *s->starts);
    for (int i = 0; i < n; i++) {
        if (a->idx[i] < 0 || a->idx[i] >= a->E) {
            kk__cpu_latch(j->c, KK_ERANGE, "moe: expert %d of %d", (int)a->idx[i], a->E);
            return -1;
        }
        s->starts[a->idx[i] + 1]++;
    }
    for (int e = 0; e < a->E; e++) {
        if (s->starts[e + 1]) s->experts[j->n_experts++] = e;
        s->starts[e + 1] += s->starts[e];
    }
    for (int i = 0; i < n; i++) s->order[s->starts[a->idx[i]]++] = i;
    memmove(s->starts + 1, s->starts, (size_t)a->E * sizeof *s->starts);
    s->starts[0] = 0;
    return 0;
}

/* The inputs of pairs [p, p + n): in place if their rows follow each other, else gathered. */
static struct kk_cpu_x gather(const struct moe_job *j, int p, int n, float *buf)
{
    const int32_t *order = j->c->s.order;
    const int A = j->a->A, first = order[p] / A;
    struct kk_cpu_x x = kk__x_row(&j->x, first);
    int i = 1;
    while (i < n && order[p + i] / A == first + i) i++;
    if (i == n) return x;
    const size_t bytes = x.q   ? x.stride
                         : x.h ? (size_t)x.ldh * sizeof *x.h
                               : (size_t)j->C * sizeof(float);
    for (i = 0; i < n; i++) {
        const struct kk_cpu_x row = kk__x_row(&j->x, order[p + i] / A);
        const void *from = row.q   ? (const void *)row.q
                           : row.h ? (const void *)row.h
                                   : (const void *)row.f;
        KK_BUG_ON(!from);
        memcpy((char *)buf + (size_t)i * bytes, from, bytes);
    }
    if (x.q)
        x.q = (const char *)buf;
    else if (x.h)
        x.h = (const uint32_t *)(const void *)buf;
    else
        x.f = buf;
    return x;
}

/* Activations of outputs [n0, n0 + N) of F for pairs [p, p + rows), whose inputs are x. The up
 * matrix begins at output F, which need not begin a panel: `skip` outputs before it are computed
 * and not used. The panels at next are read after these. */
static void gate_up(const struct moe_job *j, int e, int p, int rows, int64_t n0, int64_t N,
                    const struct kk_cpu_x *x, const void *next, float *up, int worker)
{
    struct kk_cpu *c = j->c;
    const struct kk_weight *w = j->a->gate_up;
    const int64_t F = j->F, skip = (F + n0) % KK_LANES, ld = N + skip;
    const void *other = kk__panel(w, e, (F + n0) / KK_LANES);
    float *y = j->c->s.pairs + p * F + n0;
    kk__cpu_gemm(c, worker, w, rows, N, x, kk__panel(w, e, n0 / KK_LANES), other, y, F);
    kk__cpu_gemm(c, worker, w, rows, ld, x, other, next, up, ld);
    for (int r = 0; r < rows; r++)
        c->kern->glu((int)N, j->a->act, y + r * F, up + skip + r * ld, y + r * F);
}

static const void *gate_of_item(const struct moe_job *j, int item)
{
    return kk__panel(j->a->gate_up, j->c->s.experts[item / j->n_parts],
                     item % j->n_parts * j->chunk);
}

/* Item: some panels of F of one expert, all its rows */
static void moe_up_item(void *arg, int item, int then, int worker)
{
    const struct moe_job *j = arg;
    const struct kk_cpu_scratch *s = &j->c->s;
    const int e = s->experts[item / j->n_parts], end = s->starts[e + 1];
    const int64_t lo = item % j->n_parts * j->chunk * KK_LANES;
    const void *next = then < 0 ? NULL : gate_of_item(j, then);
    const int64_t hi = kk__min64(lo + j->chunk * KK_LANES, j->F);
    float *up = kk__cpu_scratch(j->c, worker), *buf = up + KK_CPU_TILE;
    for (int p = s->starts[e], rows; p < end; p += rows) {
        rows = end - p < KK_CPU_MOE_ROWS ? end - p : KK_CPU_MOE_ROWS;
        const struct kk_cpu_x x = gather(j, p, rows, buf);
        const int64_t most = (KK_CPU_TILE / rows - KK_LANES) / KK_LANES * KK_LANES;
        for (int64_t n0 = lo; n0 < hi; n0 += most)
            gate_up(j, e, p, rows, n0, kk__min64(most, hi - n0), &x, next, up, worker);
    }
}

/* Outputs [n0, n0 + N) of C: experts ascending, each row's sum in that order */
static void moe_down(const struct moe_job *j, int64_t n0, int64_t N, float *tile, int worker)
{
    const struct kk_cpu_kern *k = j->c->kern;
    const struct kk_moe_args *a = j->a;
    const struct kk_cpu_scratch *s = &j->c->s;
    const struct kk_weight *w = a->down;
    const int most = (int)kk__min64(KK_CPU_TILE / N, 192);
    for (int t = 0; t < a->T; t++)
        memset(a->y + (int64_t)t * j->C + n0, 0, (size_t)N * sizeof(float));
    for (int i = 0; i < j->n_experts; i++) {
        const int e = s->experts[i], end = s->starts[e + 1], last = i + 1 == j->n_experts;
        const void *next = last ? NULL : kk__panel(w, s->experts[i + 1], n0 / KK_LANES);
        for (int p = s->starts[e], rows; p < end; p += rows) {
            rows = end - p < most ? end - p : most;
            const struct kk_cpu_x x = kk__x_row(&j->x, p);
            kk__cpu_gemm(j->c, worker, w, rows, N, &x, kk__panel(w, e, n0 / KK_LANES), next, tile,
                         N);
            for (int r = 0; r < rows; r++) {
                const int pair = s->order[p + r];
                k->axpy((int)N, a->weight[pair], tile + r * N,
                        a->y + (int64_t)(pair / a->A) * j->C + n0);
            }
        }
    }
}

static void moe_down_item(void *arg, int item, int worker)
{
    const struct moe_job *j = arg;
    const int64_t lo = item * j->chunk * KK_LANES;
    const int64_t hi = kk__min64(lo + j->chunk * KK_LANES, j->C), most = 1024;
    float *tile = kk__cpu_scratch(j->c, worker);
    for (int64_t n0 = lo; n0 < hi; n0 += most)
        moe_down(j, n0, kk__min64(most, hi - n0), tile, worker);
}

/* Cuts `panels` into about `parts` chunks of whole fours. */
static void cut(struct moe_job *j, int64_t panels, int64_t parts)
{
    if (parts < 1) parts = 1;
    j->chunk = kk__ceil_div(kk__ceil_div(panels, parts), 4) * 4;
    j->n_parts = kk__ceil_div(panels, j->chunk);
}

void kk__cpu_moe(struct kk_dev *dev, const struct kk_moe_args *a)
{
    struct kk_cpu *c = kk__cpu(dev);
    struct moe_job j = {.c = c, .a = a, .C = (int)a->down->rows, .F = (int)a->down->cols};
    const int64_t pairs = (int64_t)a->T * a->A, threads = dev->n_threads;
    const int64_t weights = (int64_t)j.C * j.F;
    KK_BUG_ON(a->gate_up->rows != 2 * a->down->cols || a->gate_up->cols != a->down->rows);
    KK_BUG_ON(a->E > c->s.max_experts || (size_t)(pairs * j.F) > c->s.n_pairs ||
              a->T > c->s.limits.max_rows || a->A > c->s.limits.max_active);
    if (a->T == 0 || group_by_expert(&j)) return;
    KK_BUG_ON(!j.n_experts); /* a row has experts */
    const int64_t ns = weights * (6 * j.n_experts + pairs) / 64;
    const int64_t items = threads == 1 ? 1 : kk__min64(4 * threads, ns / 2000);
    j.x = kk__cpu_x(c, a->T, j.C, a->x, 1, &a->gate_up);
    cut(&j, kk__panels(j.F), kk__ceil_div(items, j.n_experts));
    kk__cpu_for_ahead(c, j.n_experts * (int)j.n_parts, 2 * ns, moe_up_item, &j);
    j.x = kk__cpu_x(c, pairs, j.F, c->s.pairs, 1, &a->down);
    cut(&j, kk__panels(j.C), items);
    kk__cpu_for(c, (int)j.n_parts, ns, moe_down_item, &j);
}
