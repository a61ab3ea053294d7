/* Attention over keys in splits of S positions, in the order of dev/dev.h whatever the batch.
 *
 * A group is a tile of rows of one sequence and some neighbouring KV heads. The queries of a head
 * (rows x H/G) share every load of a key or value, and every derived key; the heads of a group are
 * done one after the other in each split, so that memory is read in the order in which rows lie.
 * For each split that some row of the group sees, scores, softmax and weighted values start from
 * zero and make a partial sum: for each query o[D], m, l. Partial sums are merged into `state` in
 * ascending order of splits.
 *
 * With many groups, a thread takes a group and goes through its splits. With few (decoding), a
 * thread takes a chunk of the splits of a group and leaves the partial sums in shared scratch; who
 * finishes the last chunk merges them all. Both do the same operations on the same numbers. */
#include <string.h>

#include "dev/cpu/cpu_int.h"

enum {
    S = KK_CPU_SPLIT,
    DERIVED = 32 /* keys derived at once: they stay in L1 until they are scored */
};

struct attn_job {
    struct kk_cpu *c;
    const struct kk_attn_args *a;
    int per_kv;     /* query heads of a KV head */
    int heads;      /* KV heads of a group (the last of a tile may have fewer) */
    int per_tile;   /* groups of a tile */
    int n_groups;   /* tiles x per_tile */
    int rows;       /* of a tile, at most */
    int max_nq;     /* queries of a group */
    int row_bytes;  /* of a stored row */
    int64_t stride; /* floats of a query in a partial sum */
    /* by chunks: splits [wave, wave + wave_len) of every group, in chunks */
    int wave, wave_len, chunk, n_chunks, last_wave;
};

/* Visible splits of a group, as an ascending list: [sink0, sink1) and then [win0, win1). */
struct group {
    int index, g0, heads; /* KV heads [g0, g0 + heads) */
    int t0, rows;
    int nq;      /* queries of a head: query i is of row i / per_kv */
    int32_t pos; /* of row t0; the rows are consecutive */
    const struct kk_kv_seq *seq;
    int32_t sink0, sink1, win0, win1;
};

/* A thread's scratch */
struct work {
    float *q, *p, *part, *keys;
    const void **rows, **next, **key_rows; /* addresses: of a split's rows, of those that come after
                                              it, of derived keys */
    void *slot;                            /* of the staging ring, for a split in host memory */
};

struct span {
    int32_t lo, hi;
};

static int32_t min32(int32_t a, int32_t b)
{
    return a < b ? a : b;
}

static int32_t max32(int32_t a, int32_t b)
{
    return a > b ? a : b;
}

/* ---- which keys ---- */

/* Keys visible to some row of positions [t0, t1]: window keys and the sinks below them. For one
 * row exactly those it sees. */
static void visible(const struct kk_mask *mask, const struct kk_kv_seq *seq, int32_t t0, int32_t t1,
                    struct span *sinks, struct span *win)
{
    const int32_t last = seq->committed + seq->n_step - 1; /* rows beyond do not exist */
    const int32_t ahead = mask->ahead < last - t1 ? mask->ahead : last - t1;
    *win = (struct span){max32(0, t0 - min32(mask->window, mask->near) + 1), t1 + ahead + 1};
    *sinks = (struct span){max32(0, t0 - mask->window + 1), min32(mask->sinks, win->lo)};
    if (sinks->hi < sinks->lo) sinks->hi = sinks->lo;
}

static struct span clip(struct span s, int32_t lo, int32_t hi)
{
    struct span r = {max32(s.lo, lo), min32(s.hi, hi)};
    if (r.hi < r.lo) r.lo = r.hi = min32(max32(s.lo, lo), hi);
    return r;
}

static struct group group_at(const struct attn_job *job, int index)
{
    const struct kk_attn_args *a = job->a;
    const int32_t *tile = job->c->s.tiles + index / job->per_tile;
    struct group g = {.index = index, .t0 = tile[0], .rows = tile[1] - tile[0]};
    struct span sinks, win;
    g.g0 = index % job->per_tile * job->heads;
    g.heads = min32(job->heads, a->G - g.g0);
    g.nq = g.rows * job->per_kv;
    g.pos = a->pos[g.t0];
    g.seq = &a->seqs[a->seq[g.t0]];
    visible(&a->mask, g.seq, g.pos, g.pos + g.rows - 1, &sinks, &win);
    g.win0 = max32(win.lo / S, a->first_split);
    g.win1 = min32((win.hi - 1) / S + 1, a->end_split);
    g.sink0 = max32(sinks.lo / S, a->first_split);
    g.sink1 = sinks.hi > sinks.lo ? min32((sinks.hi - 1) / S + 1, g.win0) : 0;
    g.sink1 = max32(g.sink0, min32(g.sink1, a->end_split));
    g.win1 = max32(g.win0, g.win1);
    return g;
}

static int n_splits(const struct group *g)
{
    return g->sink1 - g->sink0 + g->win1 - g->win0;
}

static int32_t split_at(const struct group *g, int i)
{
    int sinks = g->sink1 - g->sink0;
    return i < sinks ? g->sink0 + i : g->win0 + i - sinks;
}

/* Addresses of rows [j, j + n), plus off bytes: runs of one block at a time */
static void row_pointers(const struct kk_kv_seq *s, int32_t j, int32_t n, size_t row_bytes,
                         ptrdiff_t off, const void **out)
{
    while (n > 0) {
        const char *p = (const char *)kk_kv_row(s, j, row_bytes) + off;
        int32_t run = n;
        if (j < s->committed) {
            int32_t in_ring = !s->ring || j < s->sinks ? -1 : (j - s->sinks) % s->ring;
            int32_t slot = in_ring < 0 ? j : s->sinks + in_ring;
            run = min32(run, min32(s->committed - j, s->block_rows - slot % s->block_rows));
            if (in_ring >= 0) run = min32(run, s->ring - in_ring);
            if (s->ring && j < s->sinks) run = min32(run, s->sinks - j);
        }
        for (int32_t i = 0; i < run; i++) out[i] = p + (size_t)i * row_bytes;
        out += run;
        j += run;
        n -= run;
    }
}

/* ---- one split ---- */

static void fill(float *s, int32_t lo, int32_t hi)
{
    for (int32_t i = lo; i < hi; i++) s[i] = -INFINITY;
}

/* -inf for the keys of [lo, hi), relative to base, that each row does not see */
static void mask_scores(const struct attn_job *job, const struct group *g, int32_t base, int32_t lo,
                        int32_t hi, float *p)
{
    for (int r = 0; r < g->rows; r++) {
        struct span sinks, win;
        visible(&job->a->mask, g->seq, g->pos + r, g->pos + r, &sinks, &win);
        sinks = clip((struct span){sinks.lo - base, sinks.hi - base}, lo, hi);
        win = clip((struct span){win.lo - base, win.hi - base}, lo, hi);
        for (int i = 0; i < job->per_kv; i++, p += S) {
            fill(p, lo, sinks.lo);
            fill(p, sinks.hi, win.lo);
            fill(p, win.hi, hi);
        }
    }
}

/* Addresses of the stored or rebuilt rows [lo, hi) for the one row at position t. */
static void mixed_pointers(const struct attn_job *job, const struct group *g, struct span s,
                           const void **out)
{
    const struct kk_attn_args *a = job->a;
    const size_t rb = (size_t)job->row_bytes;
    const int32_t from = max32(a->mask.exact_sinks, s.lo);
    const int32_t to = min32(g->pos - a->mask.exact_near + 1, s.hi);
    if (from >= to) {
        row_pointers(g->seq, s.lo, s.hi - s.lo, rb, 0, out);
        return;
    }
    row_pointers(g->seq, s.lo, from - s.lo, rb, 0, out);
    for (int32_t j = from; j < to; j++)
        out[j - s.lo] = (const char *)a->rebuilt + (size_t)(j - a->rebuilt_first) * rb;
    row_pointers(g->seq, to, s.hi - to, rb, 0, out + (to - s.lo));
}

/* What a group reads of a host block's rows, into this thread's slot of the staging ring. A split
 * is within one block; host blocks are full. */
static struct kk_kv_seq stage_split(const struct attn_job *job, const struct group *g, int32_t base,
                                    struct work *w)
{
    const struct kk_attn_args *a = job->a;
    const size_t rb = (size_t)job->row_bytes, head = kk_dtype_size(a->kv_dtype, a->D);
    const char *from =
        (char *)g->seq->host[base / g->seq->block_rows] + (size_t)(base % g->seq->block_rows) * rb;
    KK_BUG_ON(!w->slot); /* host blocks come with staging */
    if (g->heads == a->G) {
        memcpy(w->slot, from, S * rb);
    } else {
        for (size_t at = (size_t)g->g0 * head; at < S * rb; at += (size_t)a->G * head)
            memcpy((char *)w->slot + at, from + at, (size_t)g->heads * head);
    }
    return (struct kk_kv_seq){.blocks = &w->slot, .committed = S, .block_rows = S};
}

static int in_host_memory(const struct kk_kv_seq *s, int32_t j)
{
    return s->host && j < s->committed && !s->blocks[j / s->block_rows];
}

/* A split as a group sees it: rows [span.lo, span.hi) of absolute positions, sinks and window */
struct split {
    int32_t base; /* the position of its first row */
    struct span span[2];
    int n, n_next;           /* addresses in work.rows, and in work.next */
    const void *const *next; /* for n rows: work.next, or work.rows where nothing is read ahead */
};

/* A group's split that a thread reads next; g.nq 0: none known */
struct place {
    struct group g;
    int32_t index;
};

static void spans_of(const struct attn_job *job, const struct group *g, int32_t index,
                     struct span *out)
{
    visible(&job->a->mask, g->seq, g->pos, g->pos + g->rows - 1, &out[0], &out[1]);
    out[0] = clip(out[0], index * S, index * S + S);
    out[1] = clip(out[1], index * S, index * S + S);
}

/* Where the rows of the next split are, up to the heads of g: a hint. Splits in host memory come
 * through staging, and rebuilt rows were written just now. */
static void look_ahead(const struct attn_job *job, const struct group *g, const struct place *next,
                       struct split *s, struct work *w)
{
    const struct group *to = &next->g;
    const size_t rb = (size_t)job->row_bytes;
    struct span span[2];
    s->n_next = 0;
    s->next = w->rows;
    if (!to->nq || job->a->mask.exact_near || in_host_memory(to->seq, next->index * S)) return;
    spans_of(job, to, next->index, span);
    const ptrdiff_t head = (ptrdiff_t)kk_dtype_size(job->a->kv_dtype, job->a->D);
    const ptrdiff_t off = (to->g0 - g->g0) * head;
    for (int i = 0; i < 2; i++) {
        const int32_t len = span[i].hi - span[i].lo;
        row_pointers(to->seq, span[i].lo, len, rb, off, w->next + s->n_next);
        s->n_next += len;
    }
    if (!s->n_next) return;
    s->next = w->next;
    for (int j = s->n_next; j < s->n; j++) w->next[j] = w->next[s->n_next - 1];
}

static struct split split_of(const struct attn_job *job, const struct group *g, int32_t index,
                             const struct place *next, struct work *w)
{
    const size_t rb = (size_t)job->row_bytes;
    const int staged = in_host_memory(g->seq, index * S);
    struct split s = {.base = index * S};
    struct kk_kv_seq seq = *g->seq; /* where its rows are; from row 0 on where it is staged */
    if (staged) seq = stage_split(job, g, s.base, w);
    spans_of(job, g, index, s.span);
    for (int i = 0; i < 2; i++) {
        const int32_t len = s.span[i].hi - s.span[i].lo;
        if (job->a->mask.exact_near)
            mixed_pointers(job, g, s.span[i], w->rows + s.n);
        else
            row_pointers(&seq, s.span[i].lo - (staged ? s.base : 0), len, rb, 0, w->rows + s.n);
        s.n += len;
    }
    look_ahead(job, g, next, &s, w);
    return s;
}

/* Rows of the next split beyond those that were asked for beside a row of this one */
static void fetch_rest(const struct attn_job *job, const struct split *s, size_t off,
                       const struct work *w)
{
    const size_t head = kk_dtype_size(job->a->kv_dtype, job->a->D);
    for (int j = s->n; j < s->n_next; j++)
        for (size_t at = 0; at < head; at += 64)
            __builtin_prefetch((const char *)w->next[j] + off + at, 0, 2);
}

/* Scores of the keys of a span of the split, of KV head h; key base + i to element i of a row of
 * w->p. Derived keys that are kept are made a few at a time. */
static void score(const struct attn_job *job, const struct split *s, int nq, int h, int span,
                  const float *q, struct work *w)
{
    const struct kk_attn_args *a = job->a;
    const struct kk_cpu_kern *k = job->c->kern;
    const int D = a->D, type = kk_row_type(a->kv_dtype);
    const size_t off = (size_t)h * kk_dtype_size(a->kv_dtype, D);
    const int from = span ? s->span[0].hi - s->span[0].lo : 0;
    const int n = s->span[span].hi - s->span[span].lo;
    float *p = w->p + (s->span[span].lo - s->base);
    if (!n) return;
    if (!a->value_only) {
        k->scores[type](nq, n, D, q, D, w->rows + from, s->next + from, off, a->scale, p, S);
        return;
    }
    const float *cs = a->rope + (int64_t)s->span[span].lo * a->R * 2;
    if (nq <= k->derived_most && a->R % 16 == 0 && D % 32 == 0 && a->R <= KK_DERIVED_R &&
        D <= KK_DERIVED_D) {
        k->derived[type](nq, n, D, a->R, q, D, w->rows + from, off, a->k_norm, cs, a->scale, p, S);
        return;
    }
    for (int i = 0; i < n; i += DERIVED, cs += DERIVED * a->R * 2) {
        const int m = min32(n - i, DERIVED);
        k->derive[type](m, D, a->R, w->rows + from + i, off, a->k_norm, cs, w->keys);
        k->scores[KK_F32](nq, m, D, q, D, w->key_rows, w->key_rows, 0, a->scale, p + i, S);
    }
}

/* Partial sums of one split for the nq queries of KV head h at q: o, m, l into part[i * stride].
 * Key base + i is always element i of a row of w->p, so that the order of sums is that of absolute
 * positions. */
static void do_head(const struct attn_job *job, const struct group *g, const struct split *s, int h,
                    const float *q, struct work *w, float *part)
{
    const struct kk_attn_args *a = job->a;
    const struct kk_cpu_kern *k = job->c->kern;
    const int nq = g->nq, D = a->D, type = kk_row_type(a->kv_dtype);
    const int n0 = s->span[0].hi - s->span[0].lo, n1 = s->span[1].hi - s->span[1].lo;
    const int at0 = s->span[0].lo - s->base, at1 = s->span[1].lo - s->base;
    const int lo = (n0 ? at0 : at1) & ~15, hi = ((n1 ? at1 + n1 : at0 + n0) + 15) & ~15;
    const size_t head = kk_dtype_size(a->kv_dtype, D), key = (size_t)h * head;
    const size_t value = a->value_only ? key : key + (size_t)a->G * head;

    for (int span = 0; span < 2; span++) score(job, s, nq, h, span, q, w);
    if (!a->value_only) fetch_rest(job, s, key, w);
    mask_scores(job, g, s->base, lo, hi, w->p);
    for (int i = 0; i < nq; i++) {
        float *p = w->p + i * S, *end = part + i * job->stride + D;
        k->softmax(hi - lo, p + lo, &end[0], &end[1]);
        if (n0 && n1) memmove(p + at0 + n0, p + at1, (size_t)n1 * sizeof *p);
    }
    k->pv[type](nq, s->n, D, w->p + (n0 ? at0 : at1), S, w->rows, s->next, value, part,
                job->stride);
    fetch_rest(job, s, value, w);
}

/* Partial sums of a split for all queries of its group, head by head. */
static void do_split(const struct attn_job *job, const struct group *g, int32_t index,
                     const struct place *next, const float *q, struct work *w, float *part)
{
    const struct split s = split_of(job, g, index, next, w);
    for (int h = 0; h < g->heads; h++)
        do_head(job, g, &s, g->g0 + h, q + (int64_t)h * g->nq * job->a->D, w,
                part + (int64_t)h * g->nq * job->stride);
}

/* ---- merging ---- */

static float *state_of(const struct attn_job *job, const struct group *g, int query)
{
    const struct kk_attn_args *a = job->a;
    const int head = g->g0 + query / g->nq, i = query % g->nq;
    const int64_t t = g->t0 + i / job->per_kv, h = head * job->per_kv + i % job->per_kv;
    return a->state + (t * a->H + h) * (a->D + 2);
}

/* state <- state merged with the next split's sum */
static void merge(const struct attn_job *job, const struct group *g, const float *part)
{
    const int D = job->a->D, nq = g->heads * g->nq;
    for (int i = 0; i < nq; i++, part += job->stride) {
        float *st = state_of(job, g, i);
        if (part[D] == -INFINITY) continue; /* this row sees no key of the split */
        if (st[D] == -INFINITY) {
            memcpy(st, part, ((size_t)D + 2) * sizeof *st);
            continue;
        }
        job->c->kern->merge(D, st, part);
    }
}

static void start(const struct attn_job *job, const struct group *g)
{
    if (!job->a->first) return;
    for (int i = 0; i < g->heads * g->nq; i++) {
        float *st = state_of(job, g, i);
        memset(st, 0, (size_t)job->a->D * sizeof *st);
        st[job->a->D] = -INFINITY;
        st[job->a->D + 1] = 0;
    }
}

static void finish(const struct attn_job *job, const struct group *g)
{
    const struct kk_attn_args *a = job->a;
    if (!a->last) return;
    for (int i = 0; i < g->heads * g->nq; i++) {
        const float *st = state_of(job, g, i), l = st[a->D + 1], r = l > 0 ? 1.0f / l : 0;
        float *o = (float *)a->o + (st - a->state) / (a->D + 2) * a->D;
        for (int d = 0; d < a->D; d++) o[d] = st[d] * r;
    }
}

/* ---- the two ways through the splits ---- */

static void *take(char **at, size_t bytes)
{
    void *p = *at;
    *at += (bytes + 63) & ~(size_t)63;
    return p;
}

static struct work work_of(const struct attn_job *job, int worker)
{
    char *at = (char *)kk__cpu_scratch(job->c, worker);
    size_t nq = (size_t)job->max_nq, D = (size_t)job->a->D, f = sizeof(float);
    struct work w;
    w.rows = take(&at, S * sizeof(void *));
    w.next = take(&at, S * sizeof(void *));
    w.key_rows = take(&at, DERIVED * sizeof(void *));
    w.q = take(&at, nq * D * f);
    w.p = take(&at, nq * S * f);
    w.part = take(&at, nq * (size_t)job->stride * f);
    w.keys = job->a->value_only ? take(&at, DERIVED * D * f) : NULL;
    for (int j = 0; w.keys && j < DERIVED; j++) w.key_rows[j] = w.keys + (size_t)j * D;
    w.slot = job->a->staging ? (char *)job->a->staging + (size_t)worker * S * (size_t)job->row_bytes
                             : NULL;
    KK_BUG_ON(at > (char *)kk__cpu_scratch(job->c, worker) + job->c->s.thread_bytes);
    return w;
}

/* The group's queries, [heads, nq, D]; in place where they lie so */
static const float *queries(const struct attn_job *job, const struct group *g, struct work *w)
{
    const struct kk_attn_args *a = job->a;
    const int64_t n = (int64_t)job->per_kv * a->D;
    const float *q = a->q + ((int64_t)g->t0 * a->G + g->g0) * n;
    float *to = w->q;
    if (g->rows == 1 || a->G == 1) return q;
    for (int h = 0; h < g->heads; h++)
        for (int r = 0; r < g->rows; r++, to += n)
            memcpy(to, q + ((int64_t)r * a->G + h) * n, (size_t)n * sizeof *q);
    return w->q;
}

/* Split i of a group in the order of split_at, or none from `end` on */
static struct place place_at(const struct group *g, int i, int end)
{
    struct place p = {.index = 0};
    if (i < end) p = (struct place){.g = *g, .index = split_at(g, i)};
    return p;
}

/* Item: a group, the last first, as they see most keys; in order where each thread has one, as rows
 * are dealt to threads (kk__cpu_for_near) */
static struct group group_of_item(const struct attn_job *job, int item)
{
    return group_at(job, job->n_groups <= job->c->dev.n_threads ? item : job->n_groups - 1 - item);
}

static void group_item(void *arg, int item, int then, int worker)
{
    const struct attn_job *job = arg;
    struct group g = group_of_item(job, item);
    struct work w = work_of(job, worker);
    const float *q = queries(job, &g, &w);
    const int n = n_splits(&g);
    start(job, &g);
    for (int i = 0; i < n; i++) {
        struct place next = place_at(&g, i + 1, n);
        if (i + 1 == n && then >= 0) {
            const struct group to = group_of_item(job, then);
            next = place_at(&to, 0, n_splits(&to));
        }
        do_split(job, &g, split_at(&g, i), &next, q, &w, w.part);
        merge(job, &g, w.part);
    }
    finish(job, &g);
}

static float *part_at(const struct attn_job *job, const struct group *g, int i)
{
    int64_t slot = (int64_t)g->index * job->wave_len + i - job->wave;
    return job->c->s.parts + slot * job->max_nq * job->stride;
}

/* Item: a chunk of the splits of a group */
struct chunk {
    struct group g;
    int lo, hi, end; /* its splits; the end of the wave's */
};

static struct chunk chunk_at(const struct attn_job *job, int item)
{
    struct chunk c = {.g = group_at(job, item / job->n_chunks)};
    c.end = (int)kk__min64(n_splits(&c.g), job->wave + job->wave_len);
    c.lo = job->wave + item % job->n_chunks * job->chunk;
    c.hi = min32(c.lo + job->chunk, c.end);
    return c;
}

static void chunk_item(void *arg, int item, int then, int worker)
{
    const struct attn_job *job = arg;
    const struct chunk c = chunk_at(job, item);
    const struct group *g = &c.g;
    struct work w = work_of(job, worker);
    const float *q = queries(job, g, &w);
    for (int i = c.lo; i < c.hi; i++) {
        struct place next = place_at(g, i + 1, c.hi);
        if (i + 1 == c.hi && then >= 0) {
            const struct chunk to = chunk_at(job, then);
            next = place_at(&to.g, to.lo, to.hi);
        }
        do_split(job, g, split_at(g, i), &next, q, &w, part_at(job, g, i));
    }
    if (atomic_fetch_sub_explicit(&job->c->s.pending[g->index], 1, memory_order_acq_rel) > 1)
        return;
    if (job->wave == 0) start(job, g);
    for (int i = job->wave; i < c.end; i++) merge(job, g, part_at(job, g, i));
    if (job->last_wave) finish(job, g);
}

static void by_chunks(struct attn_job *job, int most_splits, int64_t ns)
{
    struct kk_cpu *c = job->c;
    const int64_t room = (int64_t)c->s.n_parts / (job->n_groups * job->max_nq * job->stride);
    for (job->wave = 0; job->wave < most_splits; job->wave += job->wave_len) {
        job->wave_len = (int)kk__min64(room, most_splits - job->wave);
        job->last_wave = job->wave + job->wave_len == most_splits;
        int64_t chunks = kk__ceil_div(4 * c->dev.n_threads, job->n_groups);
        job->chunk = (int)kk__ceil_div(job->wave_len, chunks);
        job->n_chunks = (int)kk__ceil_div(job->wave_len, job->chunk);
        for (int i = 0; i < job->n_groups; i++)
            atomic_store_explicit(&c->s.pending[i], job->n_chunks, memory_order_relaxed);
        kk__cpu_for_ahead(c, job->n_groups * job->n_chunks, ns, chunk_item, job);
    }
}

/* Tiles of at most `most` consecutive rows of one sequence: their first rows, and T, into scratch;
 * and how many KV heads go together, at most `heads`. */
static void cut_tiles(struct attn_job *job, int most, int heads)
{
    const struct kk_attn_args *a = job->a;
    int32_t *tile = job->c->s.tiles;
    int n = 0, rows = 1;
    for (int t = 0; t < a->T; t++) {
        int next = t > 0 && a->seq[t] == a->seq[t - 1] && a->pos[t] == a->pos[t - 1] + 1;
        if (next && t - tile[n - 1] < most) continue;
        tile[n++] = t;
    }
    tile[n] = a->T;
    for (int i = 0; i < n; i++) rows = max32(rows, tile[i + 1] - tile[i]);
    job->heads = min32(heads, KK_CPU_QUERIES / (rows * job->per_kv));
    job->per_tile = (int)kk__ceil_div(a->G, job->heads);
    job->n_groups = n * job->per_tile;
    job->max_nq = job->heads * rows * job->per_kv;
    job->rows = rows;
}

/* The splits of the group with most; an estimate of the time of all in *ns */
static int size_up(const struct attn_job *job, int64_t *ns)
{
    int most = 0;
    *ns = 0;
    for (int i = 0; i < job->n_groups; i++) {
        struct group g = group_at(job, i);
        most = max32(most, n_splits(&g));
        *ns += (int64_t)n_splits(&g) * S * job->a->D * g.heads * (4 + g.nq) / 32;
    }
    return most;
}

void kk__cpu_attn(struct kk_dev *dev, const struct kk_attn_args *a)
{
    struct kk_cpu *c = kk__cpu(dev);
    struct attn_job job = {.c = c, .a = a, .per_kv = a->H / a->G};
    const int threads = dev->n_threads;
    int64_t ns;
    KK_BUG_ON(a->H % a->G || a->D % 2 || !c->s.base || a->T > c->s.limits.max_rows ||
              a->D > c->s.limits.max_head_dim);
    if (job.per_kv > KK_CPU_QUERIES) {
        kk__cpu_latch(c, KK_EUNSUPPORTED, "attn: %d query heads share a KV head, at most %d",
                      job.per_kv, KK_CPU_QUERIES);
        return;
    }
    if (a->T == 0) return;
    job.stride = ((a->D + 15) & ~15) + 16;
    job.row_bytes = a->G * (int)kk_dtype_size(a->kv_dtype, a->D) * (a->value_only ? 1 : 2);
    /* which rows are rebuilt depends on the query's position */
    cut_tiles(&job, a->mask.exact_near ? 1 : KK_CPU_QUERIES / job.per_kv, a->G);
    int most_splits = size_up(&job, &ns), whole = job.n_groups >= 4 * threads || most_splits <= 1;
    if (job.n_groups < threads * job.per_tile && most_splits <= 2 * threads && job.rows > 1) {
        /* a short history: a part of the rows for each thread */
        cut_tiles(&job, (job.rows + threads - 1) / threads, a->G);
        whole = 1;
    } else if (job.n_groups < threads && most_splits == 1) {
        cut_tiles(&job, job.rows, (a->G + threads - 1) / threads);
    }
    if (whole || threads == 1)
        kk__cpu_for_ahead(c, job.n_groups, ns, group_item, &job);
    else
        by_chunks(&job, most_splits, ns);
}
