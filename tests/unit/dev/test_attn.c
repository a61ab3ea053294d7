/* Attention and commit: against doubles; the same bits between instruction sets, threads, cuts of
 * the rows, cuts of the splits, flat and ring storage; rows ahead, rebuilt rows. Rows that no query
 * reads are poisoned.
 * kk-test: tsan */
#include "unit/dev/dev_test.h"

#ifdef __SANITIZE_THREAD__
enum { CASES = 12 };
#else
enum { CASES = 80 };
#endif
enum { MOST_SEQS = 4 };

struct seq {
    int committed, n; /* stored rows, rows of the step */
    float *v;         /* [committed + n, row] values of all rows */
    char *flat, *ring, *step;
    void **flat_blocks, **ring_blocks;
    struct kk_kv_seq flat_seq, ring_seq;
};

struct attn_case {
    struct kk_attn_args a; /* q: all rows; seqs: flat or ring */
    int row;               /* values of a stored row */
    struct seq s[MOST_SEQS];
    struct kk_kv_seq flat[MOST_SEQS], ringed[MOST_SEQS];
    float *rebuilt; /* values of a->rebuilt, [committed + n, row] */
    int32_t pos[80], seq[80];
    int pieces; /* splits of a call; 0: one call */
};

/* ---- making a case ---- */

static int sees(const struct kk_mask *m, int t, int j)
{
    return t - j >= -m->ahead && t - j < m->window && (t - j < m->near || j < m->sinks);
}

/* The row itself, not a rebuilt one */
static int exact(const struct kk_mask *m, int t, int j)
{
    return !m->exact_near || t - j < m->exact_near || j < m->exact_sinks;
}

/* n slots in blocks of block_rows, all NaN */
static void make_blocks(int n, int block_rows, size_t row_bytes, char **mem, void ***blocks)
{
    int k = (n + block_rows - 1) / block_rows + 1;
    *mem = malloc((size_t)(k * block_rows) * row_bytes);
    memset(*mem, 0xff, (size_t)(k * block_rows) * row_bytes);
    *blocks = malloc((size_t)k * sizeof **blocks);
    for (int i = 0; i < k; i++) /* in reverse, so that blocks do not follow each other */
        (*blocks)[i] = *mem + (size_t)((k - 1 - i) * block_rows) * row_bytes;
}

static void make_seq(struct attn_case *c, struct seq *s, int committed, int n)
{
    const enum kk_dtype t = c->a.kv_dtype;
    const size_t row_bytes = kk_dtype_size(t, c->row);
    const int total = committed + n, block = between(1, 70);
    const int reach = c->a.mask.near < c->a.mask.window ? c->a.mask.near : c->a.mask.window;
    *s = (struct seq){.committed = committed, .n = n, .v = normals((int64_t)total * c->row, 1)};
    char *raw = to_dtype(t, s->v, (int64_t)total * c->row);
    s->step = malloc((size_t)n * row_bytes);
    memcpy(s->step, raw + (size_t)committed * row_bytes, (size_t)n * row_bytes);
    s->flat_seq = s->ring_seq = (struct kk_kv_seq){
        .step = s->step, .committed = committed, .n_step = n, .block_rows = block};
    make_blocks(committed, block, row_bytes, &s->flat, &s->flat_blocks);
    s->flat_seq.blocks = s->flat_blocks;
    for (int j = 0; j < committed; j++)
        memcpy(kk_kv_slot(&s->flat_seq, j, row_bytes), raw + (size_t)j * row_bytes, row_bytes);
    s->ring_seq.sinks = c->a.mask.sinks < 100 ? c->a.mask.sinks : 0;
    s->ring_seq.ring = (reach < committed ? reach : committed) + between(1, 5);
    make_blocks(s->ring_seq.sinks + s->ring_seq.ring, block, row_bytes, &s->ring, &s->ring_blocks);
    s->ring_seq.blocks = s->ring_blocks;
    for (int j = 0; j < committed; j++)
        memcpy(kk_kv_slot(&s->ring_seq, j, row_bytes), raw + (size_t)j * row_bytes, row_bytes);
    for (int j = 0; j < committed; j++) { /* flat rows out of sight */
        int seen = 0;
        for (int i = committed; i < total; i++)
            seen |= sees(&c->a.mask, i, j) && exact(&c->a.mask, i, j);
        if (!seen) memset(kk_kv_slot(&s->flat_seq, j, row_bytes), 0xff, row_bytes);
    }
    free(raw);
}

static struct kk_mask any_mask(void)
{
    struct kk_mask m = {.window = KK_NO_BOUND, .near = KK_NO_BOUND};
    if (between(0, 2)) m.window = between(1, 400);
    if (between(0, 1)) m.near = between(1, 150);
    if (between(0, 1)) m.sinks = between(1, 99);
    if (between(0, 2) == 0) m.ahead = between(0, 1) ? KK_NO_BOUND : between(1, 9);
    return m;
}

static void make_case(struct attn_case *c, int n)
{
    static const enum kk_dtype types[] = {KK_F32, KK_BF16, KK_Q8_0};
    const enum kk_dtype type = types[n / 4 % 3];
    int D = type == KK_Q8_0 ? 32 * between(1, 3) : 2 * between(1, 48);
    int G = between(1, 3), H = G * between(1, 5), B = between(1, MOST_SEQS);
    int deep = n % 3 ? 300 : 1500, T = 0;
    *c = (struct attn_case){.row = G * D * (n / 2 % 2 ? 1 : 2)};
    c->a = (struct kk_attn_args){.B = B,
                                 .H = H,
                                 .G = G,
                                 .D = D,
                                 .R = between(0, D / 2),
                                 .value_only = n / 2 % 2,
                                 .pos = c->pos,
                                 .seq = c->seq,
                                 .mask = any_mask(),
                                 .scale = between(0, 1) ? 1.0f : 0.21f,
                                 .kv_dtype = type};
    if (B == 1 && between(0, 2)) {
        c->a.mask.exact_near = between(20, 64);
        c->a.mask.exact_sinks = between(0, 5);
        c->rebuilt = normals((int64_t)(deep + 20) * c->row, 1);
        c->a.rebuilt = to_dtype(c->a.kv_dtype, c->rebuilt, (int64_t)(deep + 20) * c->row);
    }
    for (int b = 0; b < B; b++) {
        int rows = between(0, 1) ? 1 : between(1, 20);
        make_seq(c, &c->s[b], between(0, deep), rows);
        c->flat[b] = c->s[b].flat_seq;
        c->ringed[b] = c->s[b].ring_seq;
        for (int i = 0; i < rows; i++, T++) {
            c->seq[T] = b;
            c->pos[T] = c->s[b].committed + i;
        }
    }
    c->a.T = T;
    c->a.q = normals((int64_t)T * H * D, 1.3f / sqrtf((float)D));
    c->a.k_norm = normals(D, 1);
    float *rope = malloc((size_t)(1600 * c->a.R * 2 + 1) * sizeof *rope);
    for (int i = 0; i < 1600 * c->a.R; i++) {
        double w = (double)(i / c->a.R) * pow(100, -(double)(i % c->a.R) / c->a.R);
        rope[2 * i] = (float)cos(w);
        rope[2 * i + 1] = (float)sin(w);
    }
    c->a.rope = rope;
}

static void free_case(struct attn_case *c)
{
    for (int b = 0; b < c->a.B; b++) {
        struct seq *s = &c->s[b];
        void *all[] = {s->v, s->flat, s->ring, s->step, s->flat_blocks, s->ring_blocks};
        for (int i = 0; i < 6; i++) free(all[i]);
    }
    free(c->rebuilt);
    free((void *)c->a.rebuilt);
    free((void *)c->a.q);
    free((void *)c->a.k_norm);
    free((void *)c->a.rope);
}

/* ---- running it ---- */

static void run_attn(const void *p, int i, int t0, int t1, float *out)
{
    const struct attn_case *c = p;
    struct kk_attn_args a = c->a;
    static float state[80 * 15 * 98];
    int32_t last = 0, step = c->pieces ? c->pieces : KK_NO_BOUND;
    a.T = t1 - t0;
    a.q += (int64_t)t0 * a.H * a.D;
    a.pos += t0;
    a.seq += t0;
    a.state = state;
    a.o = out;
    for (int b = 0; b < a.B; b++)
        if (c->s[b].committed + c->s[b].n > last) last = c->s[b].committed + c->s[b].n;
    memset(state, 0x7f, sizeof state);
    for (int32_t s = 0; s <= last / devs[i]->attn_split; s += step) {
        a.first = s == 0;
        a.first_split = s;
        a.last = !c->pieces || s + step > last / devs[i]->attn_split;
        a.end_split = a.last ? KK_NO_BOUND : s + step;
        devs[i]->ops->attn(devs[i], &a);
        if (a.last) break;
    }
}

/* Key of row j, head g, in doubles */
static void key_of(const struct attn_case *c, const float *row, int g, int j, double *k)
{
    const struct kk_attn_args *a = &c->a;
    const int D = a->D;
    for (int d = 0; d < D; d++) k[d] = (double)row[g * D + d];
    if (!a->value_only) return;
    for (int d = 0; d < D; d++) k[d] *= (double)a->k_norm[d];
    for (int r = 0; r < a->R; r++) {
        double x = k[r], y = k[r + D / 2];
        double cs = (double)a->rope[(j * a->R + r) * 2],
               sn = (double)a->rope[(j * a->R + r) * 2 + 1];
        k[r] = x * cs - y * sn;
        k[r + D / 2] = y * cs + x * sn;
    }
}

static const float *row_of(const struct attn_case *c, int t, int j)
{
    const float *v = exact(&c->a.mask, c->pos[t], j) ? c->s[c->seq[t]].v : c->rebuilt;
    return v + (int64_t)j * c->row;
}

static void ref_attn(const void *p, int t, const float *got, double *want)
{
    const struct attn_case *c = p;
    const struct kk_attn_args *a = &c->a;
    const struct seq *s = &c->s[c->seq[t]];
    const int D = a->D, n = s->committed + s->n;
    double k[96], e[1600];
    (void)got;
    for (int h = 0; h < a->H; h++) {
        const int g = h / (a->H / a->G), v_at = (a->value_only ? 0 : a->G * D) + g * D;
        const float *q = a->q + ((int64_t)t * a->H + h) * D;
        double top = -INFINITY, sum = 0;
        for (int j = 0; j < n; j++) {
            e[j] = -INFINITY;
            if (!sees(&a->mask, c->pos[t], j)) continue;
            key_of(c, row_of(c, t, j), g, j, k);
            e[j] = 0;
            for (int d = 0; d < D; d++) e[j] += (double)q[d] * k[d];
            e[j] *= (double)a->scale;
            top = fmax(top, e[j]);
        }
        for (int d = 0; d < D; d++) want[h * D + d] = 0;
        for (int j = 0; j < n; j++) {
            if (e[j] == -INFINITY) continue;
            sum += e[j] = exp(e[j] - top);
            for (int d = 0; d < D; d++) want[h * D + d] += e[j] * (double)row_of(c, t, j)[v_at + d];
        }
        for (int d = 0; d < D; d++) want[h * D + d] /= sum;
    }
}

static void test_attn(void **state)
{
    (void)state;
    for (int n = 0; n < CASES; n++) {
        struct attn_case c;
        make_case(&c, n);
        const int width = c.a.H * c.a.D;
        struct check k = {"attention", c.a.T, width, 2e-5, run_attn, ref_attn};
        c.a.seqs = c.flat;
        check_op(&k, &c);
        float *want = malloc((size_t)(c.a.T * width) * sizeof *want);
        float *got = malloc((size_t)(c.a.T * width) * sizeof *want);
        run_rows(&k, &c, 0, 0, c.a.T, want);
        for (int i = 0; i < n_devs; i++) {
            c.a.seqs = i % 2 ? c.flat : c.ringed;
            k.what = i % 2 ? "attention in pieces" : "attention in a ring";
            c.pieces = i % 2 ? between(1, 4) : 0;
            run_rows(&k, &c, i, 0, c.a.T, got);
            same_bits(&k, i, got, want);
            c.pieces = between(1, 2);
            run_rows(&k, &c, i, 0, c.a.T, got);
            same_bits(&k, i, got, want);
        }
        free(want);
        free(got);
        free_case(&c);
    }
}

/* More splits than the scratch holds partial sums for: waves. One row, many heads, long. */
static void test_long(void **state)
{
    (void)state;
    const int n = 40000, D = 96, H = 60;
    float *rows = normals((int64_t)n * D, 1), *q = normals((int64_t)H * D, 0.1f);
    uint16_t *raw = to_dtype(KK_BF16, rows, (int64_t)n * D);
    float *norm = normals(D, 1), *st = malloc((size_t)(H * (D + 2)) * sizeof *st);
    float *want = malloc((size_t)(H * D) * sizeof *want), *got = malloc((size_t)(H * D) * 4);
    void *blocks[] = {raw};
    struct kk_kv_seq s = {.blocks = blocks,
                          .step = raw + (int64_t)(n - 1) * D,
                          .committed = n - 1,
                          .n_step = 1,
                          .block_rows = n};
    const int32_t pos = n - 1, seq = 0;
    struct kk_attn_args a = {.T = 1, .B = 1, .H = H, .G = 1, .D = D, .value_only = 1, .q = q};
    a.pos = &pos;
    a.seq = &seq;
    a.seqs = &s;
    a.mask = (struct kk_mask){.window = KK_NO_BOUND, .near = KK_NO_BOUND};
    a.scale = 1;
    a.k_norm = norm;
    a.rope = norm; /* R is 0 */
    a.kv_dtype = KK_BF16;
    a.end_split = KK_NO_BOUND;
    a.first = a.last = 1;
    a.state = st;
    for (int i = n_devs - 1; i >= 0 && strcmp(devs[i]->isa, "scalar"); i--) {
        a.o = i == n_devs - 1 ? want : got;
        devs[i]->ops->attn(devs[i], &a);
        if (i < n_devs - 1) assert_memory_equal(got, want, (size_t)(H * D) * sizeof *want);
    }
    void *all[] = {rows, q, raw, norm, st, want, got};
    for (int i = 0; i < 7; i++) free(all[i]);
}

static void test_too_many_heads(void **state)
{
    (void)state;
    struct kk_err err = {0};
    float q[65 * 2] = {0};
    const int32_t zero = 0;
    struct kk_attn_args a = {.T = 1, .B = 1, .H = 65, .G = 1, .D = 2, .q = q, .pos = &zero};
    devs[0]->ops->step_begin(devs[0]);
    devs[0]->ops->attn(devs[0], &a);
    KK_ASSERT_FAILS(devs[0]->ops->step_end(devs[0], &err), KK_EUNSUPPORTED, &err,
                    "65 query heads share a KV head");
}

/* ---- commit ---- */

static int32_t min3(const int32_t v[3])
{
    const int32_t a = v[0] < v[1] ? v[0] : v[1];
    return a < v[2] ? a : v[2];
}

static void test_kv_store(void **state)
{
    (void)state;
    for (int n = 0; n < 200; n++) {
        struct kk_kv_seq s[3];
        char *mem[3], *expect[3], step[3][40 * 6];
        void **blocks[3];
        int32_t keep[3];
        const size_t row = 6;
        for (int b = 0; b < 3; b++) {
            int ring = between(0, 1) ? between(1, 30) : 0, slots = ring + 8, size;
            s[b] = (struct kk_kv_seq){.step = step[b],
                                      .committed = between(0, 100),
                                      .n_step = between(0, 40),
                                      .block_rows = between(1, 50),
                                      .sinks = ring ? between(0, 8) : 0,
                                      .ring = ring,
                                      .row_bytes = (int32_t)row};
            if (!ring) slots = s[b].committed + 40;
            make_blocks(slots, s[b].block_rows, row, &mem[b], &blocks[b]);
            s[b].blocks = blocks[b];
            keep[b] = between(0, s[b].n_step);
            for (size_t i = 0; i < 40 * row; i++) step[b][i] = (char)between(0, 255);
            size = (slots + s[b].block_rows - 1) / s[b].block_rows + 1;
            size *= s[b].block_rows * (int)row;
            expect[b] = malloc((size_t)size);
            memcpy(expect[b], mem[b], (size_t)size);
        }
        /* as one layer of three sequences, or three layers of one that keep the same */
        const int layers = n % 2 ? 1 : 3;
        if (layers == 3) keep[0] = keep[1] = keep[2] = min3(keep);
        const struct kk_kv_store_args a = {.n_layers = layers,
                                           .B = 3 / layers,
                                           .stride = 3 / layers,
                                           .most = 40,
                                           .seqs = s,
                                           .keep = keep};
        for (int i = 0; i < n_devs; i++) devs[i]->ops->kv_store(devs[i], &a);
        for (int b = 0; b < 3; b++) {
            for (int k = 0; k < keep[b]; k++) {
                char *slot = kk_kv_slot(&s[b], s[b].committed + k, row);
                memcpy(expect[b] + (slot - mem[b]), step[b] + (size_t)k * row, row);
            }
            int slots = s[b].ring ? s[b].ring + 8 : s[b].committed + 40;
            slots = ((slots + s[b].block_rows - 1) / s[b].block_rows + 1) * s[b].block_rows;
            assert_memory_equal(mem[b], expect[b], (size_t)slots * row);
            free(mem[b]);
            free(expect[b]);
            free(blocks[b]);
        }
    }
}

/* copy: bytes; convert: between the types of rows */
static void test_copy_convert(void **state)
{
    (void)state;
    float x[33], back[33];
    uint16_t half[33];
    kk_test_fill_normal(&rng, x, 33, 2);
    for (int i = 0; i < n_devs; i++) {
        devs[i]->ops->copy(devs[i], back, x, sizeof x);
        assert_memory_equal(back, x, sizeof x);
        struct kk_convert_args a = {.n = 33, .from = KK_F32, .to = KK_BF16, .src = x, .dst = half};
        devs[i]->ops->convert(devs[i], &a);
        a = (struct kk_convert_args){
            .n = 33, .from = KK_BF16, .to = KK_F32, .src = half, .dst = back};
        devs[i]->ops->convert(devs[i], &a);
        for (int k = 0; k < 33; k++) {
            assert_int_equal(half[k], kk_f32_to_bf16(x[k]));
            assert_true(back[k] == kk_bf16_to_f32(half[k]));
        }
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_attn),           cmocka_unit_test(test_long),
        cmocka_unit_test(test_too_many_heads), cmocka_unit_test(test_kv_store),
        cmocka_unit_test(test_copy_convert),
    };
    rng = kk_test_rng("attn");
    return cmocka_run_group_tests(tests, open_devs, close_devs);
}
