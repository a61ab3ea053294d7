/* Attention. Work is cut into tiles: some consecutive rows of one sequence and the query heads of
 * one KV head, at most KK_CPU_TILE_Q query vectors. All of a tile share the key rows (and derived
 * keys) of a split.
 *
 * With at least a tile per worker, a worker takes whole tiles and merges split by split. With fewer
 * (decode), workers take (tile, split) pairs into partial results, which are then merged in
 * ascending order. Both give the same bits: a split's result starts from zero, and the merge is the
 * same sequence of operations. */
#include <stdatomic.h>
#include <string.h>

#include "dev/cpu/cpu_int.h"

/* ---- qkv -------------------------------------------------------------------------------------- */

struct qkv_job {
    struct kk_cpu *c;
    const struct kk_qkv_args *a;
};

static void store_kv(const struct qkv_job *j, int64_t t, const float *rope)
{
    const struct kk_qkv_args *a = j->a;
    const struct kk_cpu_kern *k = j->c->k;
    const int GD = a->G * a->D;
    const size_t e = kk_dtype_bytes(a->kv_dtype),
                 row_bytes = (size_t)GD * e * (a->value_only ? 1 : 2);
    char *row = (char *)a->rows + (size_t)t * row_bytes;
    float tmp[1024];
    for (int g = 0; g < a->G; g++) {
        const float *key = a->k + t * GD + g * a->D;
        const float *value = a->value_only ? key : a->v + t * GD + g * a->D;
        char *dst = row + (size_t)(g * a->D) * e;
        if (!a->value_only) {
            k->norm(a->D, key, a->k_norm, a->eps, tmp);
            k->rope(a->D, a->R, rope, tmp);
            k->store[a->kv_dtype](a->D, tmp, dst);
            dst += (size_t)GD * e;
        }
        k->norm(a->D, value, NULL, a->eps, tmp);
        k->store[a->kv_dtype](a->D, tmp, dst);
    }
}

static void qkv_worker(void *arg, int worker, int n)
{
    const struct qkv_job *j = arg;
    const struct kk_qkv_args *a = j->a;
    int64_t t, end;
    kk__cpu_range(a->T, 1, worker, n, &t, &end);
    for (; t < end; t++) {
        const float *rope = a->rope + (int64_t)a->pos[t] * a->R * 2;
        for (int h = 0; h < a->H; h++) {
            float *q = a->q + (t * a->H + h) * a->D;
            j->c->k->norm(a->D, q, a->q_norm, a->eps, q);
            j->c->k->rope(a->D, a->R, rope, q);
        }
        store_kv(j, t, rope);
    }
}

void kk__cpu_qkv(struct kk_dev *d, const struct kk_qkv_args *a)
{
    struct qkv_job j = {kk_cpu_of(d), a};
    KK_BUG_ON(a->D > 1024);
    if ((int64_t)a->T * (a->H + a->G) * a->D < 4096)
        qkv_worker(&j, 0, 1);
    else
        kk_pool_run(j.c->pool, qkv_worker, &j);
}

/* ---- tiles ------------------------------------------------------------------------------------ */

struct tile {
    int t0, t1, b, g; /* rows [t0, t1) of sequence b; KV head g */
    int nq;           /* (t1 - t0) * heads */
};

struct attn_job {
    struct kk_cpu *c;
    const struct kk_attn_args *a;
    int heads; /* query heads of a KV head */
    int rows_per_tile;
    size_t row_bytes, elem;
    int n_tiles;
    _Atomic int64_t next;
    /* partial mode: the pairs of one round, and where each lies */
    const struct tile *tile; /* the tile being done */
    struct tile one;
    int64_t split0, n_splits;
};

/* The i-th tile: row tiles in order, KV heads within. Rows of a sequence are consecutive. */
static int next_rows(const struct attn_job *j, int t0)
{
    const struct kk_attn_args *a = j->a;
    int t1 = t0 + 1;
    while (t1 < a->T && t1 - t0 < j->rows_per_tile && a->seq[t1] == a->seq[t0]) t1++;
    return t1;
}

static int count_tiles(const struct attn_job *j)
{
    int n = 0;
    for (int t = 0; t < j->a->T; t = next_rows(j, t)) n += j->a->G;
    return n;
}

static struct tile tile_at(const struct attn_job *j, int64_t index)
{
    int t0 = 0;
    for (int64_t skip = index / j->a->G; skip; skip--) t0 = next_rows(j, t0);
    struct tile tl = {
        .t0 = t0, .t1 = next_rows(j, t0), .b = j->a->seq[t0], .g = (int)(index % j->a->G)};
    tl.nq = (tl.t1 - tl.t0) * j->heads;
    return tl;
}

static int64_t max64(int64_t a, int64_t b)
{
    return a > b ? a : b;
}
static int64_t min64(int64_t a, int64_t b)
{
    return a < b ? a : b;
}

/* First position a row at pos sees by nearness, and by the model's window at all. */
static int64_t near_from(const struct kk_mask *m, int64_t pos)
{
    return max64(0, pos - min64(m->near, m->window) + 1);
}
static int64_t window_from(const struct kk_mask *m, int64_t pos)
{
    return max64(0, pos - (int64_t)m->window + 1);
}

/* Splits that hold a visible key of the tile: [*s0, *s1). A gap between sinks and near is skipped
 * later. */
static void tile_splits(const struct attn_job *j, const struct tile *tl, int64_t *s0, int64_t *s1)
{
    const struct kk_attn_args *a = j->a;
    const int64_t p0 = a->pos[tl->t0], p1 = a->pos[tl->t1 - 1];
    int64_t from = near_from(&a->mask, p0), low = window_from(&a->mask, p0);
    if (low < a->mask.sinks && low < from) from = low;
    *s0 = max64(from / KK_CPU_SPLIT, a->first_split);
    *s1 = min64(p1 / KK_CPU_SPLIT + 1, a->end_split);
}

/* ---- one split of one tile -------------------------------------------------------------------- */

/* A run of visible positions inside a split. */
struct run {
    int64_t first, end;
};

static int split_runs(const struct attn_job *j, const struct tile *tl, int64_t split,
                      struct run r[2])
{
    const struct kk_mask *m = &j->a->mask;
    const int64_t p0 = j->a->pos[tl->t0], p1 = j->a->pos[tl->t1 - 1];
    const int64_t lo = split * KK_CPU_SPLIT, hi = min64(lo + KK_CPU_SPLIT, p1 + 1);
    int64_t near = max64(lo, near_from(m, p0)), sink = max64(lo, window_from(m, p0));
    int64_t sink_end = min64(min64(m->sinks, hi), near);
    int n = 0;
    if (sink < sink_end) r[n++] = (struct run){sink, sink_end};
    if (near < hi) {
        if (n && r[0].end == near)
            r[0].end = hi;
        else
            r[n++] = (struct run){near, hi};
    }
    return n;
}

/* Pointers to the key and value rows of positions [first, end) at w->krow / vrow[at..]. */
static void gather_rows(const struct attn_job *j, struct kk_cpu_worker *w, const struct tile *tl,
                        struct run r, int at)
{
    const struct kk_attn_args *a = j->a;
    const struct kk_kv_seq *s = &a->seqs[tl->b];
    const size_t head = (size_t)(tl->g * a->D) * j->elem;
    const size_t value = a->value_only ? 0 : (size_t)(a->G * a->D) * j->elem;
    for (int64_t p = r.first; p < r.end; p++, at++) {
        const char *row = kk_kv_row(s, (int32_t)p, j->row_bytes);
        w->krow[at] = row + head;
        w->vrow[at] = row + head + value;
        if (a->value_only) w->cs[at] = a->rope + p * a->R * 2;
    }
}

/* -inf where row t of the tile may not look; s [SPLIT] starts at position lo. */
static void mask_row(const struct kk_mask *m, int64_t pos, int64_t lo, float *s)
{
    const int64_t near = near_from(m, pos) - lo, sinks = m->sinks - lo,
                  low = window_from(m, pos) - lo;
    const int64_t last = pos - lo;
    for (int64_t i = 0; i < KK_CPU_SPLIT && i < near; i++)
        if (i >= sinks || i < low) s[i] = -INFINITY;
    for (int64_t i = max64(0, last + 1); i < KK_CPU_SPLIT; i++) s[i] = -INFINITY;
}

/* Scores of a split's runs into w->s [nq, SPLIT] (by position), keys derived where values are all
 * there is. */
static void split_scores(const struct attn_job *j, struct kk_cpu_worker *w, const struct tile *tl,
                         const struct run *r, int n, int64_t lo)
{
    const struct kk_attn_args *a = j->a;
    const struct kk_cpu_kern *k = j->c->k;
    if (n == 2 || r[0].first > lo || r[0].end < lo + KK_CPU_SPLIT)
        for (int i = 0; i < tl->nq * KK_CPU_SPLIT; i++) w->s[i] = -INFINITY;
    for (int i = 0, at = 0; i < n; i++) {
        int nk = (int)(r[i].end - r[i].first);
        float *s = w->s + (r[i].first - lo);
        gather_rows(j, w, tl, r[i], at);
        if (a->value_only) {
            k->derive[a->kv_dtype](nk, a->D, a->R, w->krow + at, a->k_norm, w->cs + at,
                                   w->keys + (int64_t)at * a->D);
            for (int x = 0; x < nk; x++) w->krow[at + x] = w->keys + (int64_t)(at + x) * a->D;
        }
        k->scores[a->value_only ? KK_F32 : a->kv_dtype](tl->nq, nk, a->D, w->q, a->D, w->krow + at,
                                                        a->scale, s, KK_CPU_SPLIT);
        at += nk;
    }
    for (int t = tl->t0, i = 0; t < tl->t1; t++)
        for (int h = 0; h < j->heads; h++, i++)
            mask_row(&a->mask, a->pos[t], lo, w->s + i * KK_CPU_SPLIT);
}

/* Weighted values of a split: o [nq] rows of `ldo` floats, with the maximum at o[D] and the sum at
 * o[D + 1]. Returns 0 if the split has no key that any row of the tile may see. */
static int do_split(const struct attn_job *j, struct kk_cpu_worker *w, const struct tile *tl,
                    int64_t split, float *o)
{
    const struct kk_attn_args *a = j->a;
    const struct kk_cpu_kern *k = j->c->k;
    const int64_t lo = split * KK_CPU_SPLIT;
    const int ldo = a->D + 2;
    struct run r[2];
    int n = split_runs(j, tl, split, r), nk = 0;
    if (!n) return 0;
    split_scores(j, w, tl, r, n, lo);
    for (int i = 0; i < tl->nq; i++)
        k->softmax(KK_CPU_SPLIT, w->s + i * KK_CPU_SPLIT, &o[i * ldo + a->D],
                   &o[i * ldo + a->D + 1]);
    const float *p = w->s + (r[0].first - lo);
    if (n == 2) { /* close the gap */
        int n0 = (int)(r[0].end - r[0].first), n1 = (int)(r[1].end - r[1].first);
        for (int i = 0; i < tl->nq; i++) {
            const float *s = w->s + i * KK_CPU_SPLIT - lo;
            memcpy(w->p + i * KK_CPU_SPLIT, s + r[0].first, (size_t)n0 * sizeof *s);
            memcpy(w->p + i * KK_CPU_SPLIT + n0, s + r[1].first, (size_t)n1 * sizeof *s);
        }
        p = w->p;
    }
    for (int i = 0; i < n; i++) nk += (int)(r[i].end - r[i].first);
    k->pv[a->kv_dtype](tl->nq, nk, a->D, p, KK_CPU_SPLIT, w->vrow, o, ldo);
    return 1;
}

/* ---- merging ---------------------------------------------------------------------------------- */

static void start_state(int nq, int D, float *state)
{
    for (int i = 0; i < nq; i++, state += D + 2) {
        memset(state, 0, (size_t)D * sizeof *state);
        state[D] = -INFINITY;
        state[D + 1] = 0;
    }
}

/* state = state merged with the next split's part; parts with no visible key change nothing. */
static void merge_part(const struct kk_cpu_kern *k, int nq, int D, float *state, const float *part)
{
    for (int i = 0; i < nq; i++, state += D + 2, part += D + 2) {
        if (part[D] == -INFINITY) continue;
        float m = part[D] > state[D] ? part[D] : state[D];
        float a = kk_exp(state[D] - m), b = kk_exp(part[D] - m);
        k->merge(D, state, a, part, b);
        state[D + 1] = fmaf(part[D + 1], b, state[D + 1] * a);
        state[D] = m;
    }
}

/* Where query vector i of a tile lies in [T, H] order. */
static int64_t query_index(const struct attn_job *j, const struct tile *tl, int i)
{
    return (int64_t)(tl->t0 + i / j->heads) * j->a->H + tl->g * j->heads + i % j->heads;
}

static void load_tile(const struct attn_job *j, struct kk_cpu_worker *w, const struct tile *tl)
{
    const int D = j->a->D;
    for (int i = 0; i < tl->nq; i++)
        memcpy(w->q + i * D, j->a->q + query_index(j, tl, i) * D, (size_t)D * sizeof *w->q);
}

static void load_state(const struct attn_job *j, const struct tile *tl, float *state)
{
    const int ld = j->a->D + 2;
    if (j->a->first) {
        start_state(tl->nq, j->a->D, state);
        return;
    }
    for (int i = 0; i < tl->nq; i++)
        memcpy(state + i * ld, j->a->state + query_index(j, tl, i) * ld,
               (size_t)ld * sizeof *state);
}

/* To the caller's state, or as the final output. */
static void store_state(const struct attn_job *j, const struct tile *tl, const float *state)
{
    const int D = j->a->D, ld = D + 2;
    for (int i = 0; i < tl->nq; i++, state += ld) {
        int64_t at = query_index(j, tl, i);
        if (!j->a->last) {
            memcpy(j->a->state + at * ld, state, (size_t)ld * sizeof *state);
            continue;
        }
        float *o = (float *)j->a->o + at * D, r = 1.0f / state[D + 1];
        for (int d = 0; d < D; d++) o[d] = state[d] * r;
    }
}

/* ---- the two ways to share work --------------------------------------------------------------- */

static void whole_tiles(void *arg, int worker, int n)
{
    struct attn_job *j = arg;
    struct kk_cpu_worker *w = &j->c->worker[worker];
    int64_t i;
    (void)n;
    while ((i = atomic_fetch_add_explicit(&j->next, 1, memory_order_relaxed)) < j->n_tiles) {
        struct tile tl = tile_at(j, i);
        int64_t s, s1;
        load_tile(j, w, &tl);
        load_state(j, &tl, w->state);
        tile_splits(j, &tl, &s, &s1);
        for (; s < s1; s++)
            if (do_split(j, w, &tl, s, w->o)) merge_part(j->c->k, tl.nq, j->a->D, w->state, w->o);
        store_state(j, &tl, w->state);
    }
}

/* Size of a partial result of the running job. */
static size_t part_floats(const struct attn_job *j)
{
    return (size_t)j->one.nq * (size_t)(j->a->D + 2);
}

static void tile_splits_worker(void *arg, int worker, int n)
{
    struct attn_job *j = arg;
    struct kk_cpu_worker *w = &j->c->worker[worker];
    int64_t i, end;
    load_tile(j, w, &j->one);
    kk__cpu_range(j->n_splits, 1, worker, n, &i, &end);
    for (; i < end; i++) {
        float *o = j->c->partial + (size_t)i * part_floats(j);
        if (!do_split(j, w, &j->one, j->split0 + i, o))
            for (int q = 0; q < j->one.nq; q++) o[q * (j->a->D + 2) + j->a->D] = -INFINITY;
    }
}

/* One tile, its splits spread over the workers; rounds bounded by the partial buffer. */
static void split_tile(struct attn_job *j, int64_t index)
{
    struct kk_cpu *c = j->c;
    float *state = c->worker[0].state;
    int64_t s, s1;
    j->one = tile_at(j, index);
    int64_t room = (int64_t)c->partial_slots * KK_CPU_TILE_Q / j->one.nq;
    load_state(j, &j->one, state);
    tile_splits(j, &j->one, &s, &s1);
    for (; s < s1; s += j->n_splits) {
        j->split0 = s;
        j->n_splits = min64(room, s1 - s);
        kk_pool_run(c->pool, tile_splits_worker, j);
        for (int64_t i = 0; i < j->n_splits; i++)
            merge_part(c->k, j->one.nq, j->a->D, state, c->partial + (size_t)i * part_floats(j));
    }
    store_state(j, &j->one, state);
}

void kk__cpu_attn(struct kk_dev *d, const struct kk_attn_args *a)
{
    struct attn_job j = {.c = kk_cpu_of(d), .a = a, .heads = a->H / a->G};
    j.elem = kk_dtype_bytes(a->kv_dtype);
    j.row_bytes = (size_t)(a->G * a->D) * j.elem * (a->value_only ? 1 : 2);
    j.rows_per_tile = KK_CPU_TILE_Q / j.heads;
    KK_BUG_ON(j.rows_per_tile < 1);
    j.n_tiles = count_tiles(&j);
    if (j.n_tiles >= d->n_threads) {
        kk_pool_run(j.c->pool, whole_tiles, &j);
        return;
    }
    for (int64_t i = 0; i < j.n_tiles; i++) split_tile(&j, i);
}

/* ---- commit ----------------------------------------------------------------------------------- */

void kk__cpu_kv_store(struct kk_dev *d, const struct kk_kv_store_args *a)
{
    (void)d;
    for (int b = 0; b < a->B; b++) {
        const struct kk_kv_seq *s = &a->seqs[b];
        for (int32_t i = 0; i < a->keep[b]; i++) {
            int32_t j = s->committed + i;
            /* a later row of this step takes the same ring slot */
            if (s->ring && j >= s->sinks && i + s->ring < a->keep[b]) continue;
            memcpy(kk_kv_slot(s, j, a->row_bytes), (const char *)s->step + (size_t)i * a->row_bytes,
                   a->row_bytes);
        }
    }
}
