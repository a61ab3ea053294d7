/* Attention on the GPU: against the CPU's op, which is the oracle, and the same bits for a row
 * alone, in a few, in a chunk and in a batch; in pieces of splits; in rings; with blocks in host
 * memory; rows ahead, rebuilt rows. Rows that no query sees are NaN. */
#include "unit/dev/cuda_test.h"

#include <math.h>

enum { CASES = 60, MOST_SEQS = 40, MOST_T = 700, DEEP = 3400 };

static struct kk_test_rng rng;
static struct kk_dev *cpu;

struct geometry {
    int H, G, D, R, value_only;
};

struct seq {
    int committed, n;
    struct kk_kv_seq host, flat, ring; /* of the CPU; of the GPU, flat and in a ring */
};

struct attn_case {
    struct kk_attn_args a; /* of the CPU */
    struct kk_attn_args g; /* of the GPU: every pointer but seqs and o */
    struct kk_kv_seq *flat, *ring;
    size_t row_bytes;
    int n_seqs, block;
    struct seq s[MOST_SEQS];
    struct kk_kv_seq seqs[MOST_SEQS];
    int32_t pos[MOST_T], seq[MOST_T];
    void *garbage[8 * MOST_SEQS + 8], *pinned[8 * MOST_SEQS];
    size_t pinned_bytes[8 * MOST_SEQS];
    int n_garbage, n_pinned;
};

static int between(int lo, int hi)
{
    return kk_test_between(&rng, lo, hi);
}

static void *keep(struct attn_case *c, void *p)
{
    assert_true(c->n_garbage < (int)(sizeof c->garbage / sizeof *c->garbage));
    return c->garbage[c->n_garbage++] = p;
}

static void *room(struct attn_case *c, size_t bytes)
{
    return keep(c, malloc(bytes + 1));
}

/* Values that bf16 has. */
static float *values(struct attn_case *c, int64_t n, float scale)
{
    float *x = room(c, (size_t)n * sizeof *x);
    kk_test_fill_normal(&rng, x, (size_t)n, scale);
    for (int64_t i = 0; i < n; i++) x[i] = kk_bf16_to_f32(kk_f32_to_bf16(x[i]));
    return x;
}

static uint16_t *rows_of(struct attn_case *c, int64_t n)
{
    const int64_t all = n * (int64_t)c->row_bytes / 2;
    uint16_t *h = room(c, (size_t)all * 2);
    for (int64_t i = 0; i < all; i++) h[i] = kk_f32_to_bf16(kk_test_normal(&rng));
    return h;
}

/* ---- making a case ------------------------------------------------------------------------ */

static int sees(const struct kk_mask *m, int t, int j)
{
    return t - j >= -m->ahead && t - j < m->window && (t - j < m->near || j < m->sinks);
}

static int exact(const struct kk_mask *m, int t, int j)
{
    return !m->exact_near || t - j < m->exact_near || j < m->exact_sinks;
}

/* A sequence's stored rows: in host memory of the CPU, flat; and for the GPU as `like` says, some
 * blocks in pinned memory. */
static struct kk_kv_seq store(struct attn_case *c, struct kk_kv_seq like, const char *flat,
                              const char *raw, int slots, void *step)
{
    const int n = (slots + c->block - 1) / c->block + 1;
    const size_t bytes = (size_t)c->block * c->row_bytes;
    char *mem = room(c, (size_t)n * bytes), *dev;
    void **blocks = malloc((size_t)n * sizeof *blocks);
    struct kk_kv_seq s = like;
    memset(mem, 0xff, (size_t)n * bytes);
    for (int i = 0; i < n; i++) blocks[i] = mem + (size_t)(n - 1 - i) * bytes;
    s.blocks = blocks;
    for (int j = 0; j < s.committed; j++)
        memcpy(kk_kv_slot(&s, j, c->row_bytes), (flat ? flat : raw) + (size_t)j * c->row_bytes,
               c->row_bytes);
    dev = to_gpu(mem, (size_t)n * bytes);
    for (int i = 0; i < n; i++) blocks[i] = dev + (size_t)(n - 1 - i) * bytes;
    for (int i = between(0, n + 1); i < n; i += between(1, 4)) {
        void *p = gpu->ops->host_alloc(gpu, bytes);
        if (!p || c->n_pinned == 8 * MOST_SEQS) break;
        c->pinned_bytes[c->n_pinned] = bytes;
        c->pinned[c->n_pinned++] = p;
        memcpy(p, mem + (size_t)(n - 1 - i) * bytes, bytes);
        blocks[i] = p;
    }
    s.blocks = to_gpu(blocks, (size_t)n * sizeof *blocks);
    s.step = step;
    free(blocks);
    return s;
}

static void make_seq(struct attn_case *c, struct seq *s, int committed, int n)
{
    const struct kk_mask *m = &c->a.mask;
    const int total = committed + n, reach = m->near < m->window ? m->near : m->window;
    char *raw = (char *)rows_of(c, total), *flat = room(c, (size_t)total * c->row_bytes);
    void *step = to_gpu(raw + (size_t)committed * c->row_bytes, (size_t)n * c->row_bytes);
    *s = (struct seq){.committed = committed, .n = n};
    memcpy(flat, raw, (size_t)total * c->row_bytes);
    for (int j = 0; j < committed; j++) {
        int seen = 0;
        for (int i = committed; i < total; i++) seen |= sees(m, i, j) && exact(m, i, j);
        if (!seen) memset(flat + (size_t)j * c->row_bytes, 0xff, c->row_bytes);
    }
    struct kk_kv_seq like = {.committed = committed, .n_step = n, .block_rows = c->block};
    s->flat = store(c, like, flat, raw, committed, step);
    like.sinks = m->sinks < 200 ? m->sinks : 0;
    like.ring = (reach < committed ? reach : committed) + between(1, 5);
    s->ring = store(c, like, NULL, raw, like.sinks + like.ring, step);
    void **one = room(c, sizeof *one);
    *one = flat;
    s->host = (struct kk_kv_seq){.blocks = one,
                                 .step = flat + (size_t)committed * c->row_bytes,
                                 .committed = committed,
                                 .n_step = n,
                                 .block_rows = committed + 1};
}

static struct kk_mask any_mask(void)
{
    struct kk_mask m = {.window = KK_NO_BOUND, .near = KK_NO_BOUND};
    if (between(0, 2)) m.window = between(1, 700);
    if (between(0, 1)) m.near = between(1, 350);
    if (between(0, 1)) m.sinks = between(1, 199);
    if (between(0, 2) == 0) m.ahead = between(0, 1) ? KK_NO_BOUND : between(1, 9);
    return m;
}

static void tables(struct attn_case *c)
{
    struct kk_attn_args *a = &c->a;
    const int R = a->R, T = a->T;
    const size_t cs = (size_t)(DEEP + MOST_T) * (size_t)R * 2 + 1;
    float *rope = room(c, cs * sizeof *rope);
    for (int i = 0; i < (DEEP + MOST_T) * R; i++) {
        double w = (double)(i / R) * pow(100, -(double)(i % R) / R);
        rope[2 * i] = (float)cos(w);
        rope[2 * i + 1] = (float)sin(w);
    }
    a->rope = rope;
    a->k_norm = values(c, a->D, 1);
    a->q = values(c, (int64_t)T * a->H * a->D, 1.3f / sqrtf((float)a->D) / a->scale);
    a->pos = c->pos;
    a->seq = c->seq;
    a->seqs = c->seqs;
    c->g = *a;
    c->g.q = to_gpu(a->q, (size_t)T * (size_t)(a->H * a->D) * 4);
    c->g.pos = to_gpu(a->pos, (size_t)T * 4);
    c->g.seq = to_gpu(a->seq, (size_t)T * 4);
    c->g.rope = to_gpu(rope, cs * 4);
    c->g.k_norm = to_gpu(a->k_norm, (size_t)a->D * 4);
    c->g.state = gpu_room((size_t)T * (size_t)(a->H * (a->D + 2)) * 4);
    if (a->rebuilt)
        c->g.rebuilt = to_gpu(a->rebuilt, (size_t)(c->s[0].committed + c->s[0].n) * c->row_bytes);
}

/* B sequences of rows[b] rows after committed[b]. */
static struct attn_case *make_case(struct geometry y, struct kk_mask mask, int B,
                                   const int *committed, const int *rows)
{
    struct attn_case *c = calloc(1, sizeof *c);
    struct kk_kv_seq flat[MOST_SEQS], ring[MOST_SEQS];
    int T = 0;
    c->row_bytes = (size_t)(y.G * y.D * (y.value_only ? 1 : 2)) * 2;
    c->block = between(0, 1) ? 128 : between(1, 300);
    c->a = (struct kk_attn_args){.B = B,
                                 .H = y.H,
                                 .G = y.G,
                                 .D = y.D,
                                 .R = y.R,
                                 .value_only = y.value_only,
                                 .mask = mask,
                                 .scale = between(0, 1) ? 1.0f : 0.25f,
                                 .kv_dtype = KK_BF16,
                                 .end_split = KK_NO_BOUND,
                                 .first = 1,
                                 .last = 1};
    for (int b = 0; b < B; b++) {
        make_seq(c, &c->s[b], committed[b], rows[b]);
        c->seqs[b] = c->s[b].host;
        flat[b] = c->s[b].flat;
        ring[b] = c->s[b].ring;
        if (committed[b] + rows[b] > c->a.longest) c->a.longest = committed[b] + rows[b];
        for (int i = 0; i < rows[b]; i++, T++) {
            c->seq[T] = b;
            c->pos[T] = committed[b] + i;
        }
    }
    assert_true(T <= MOST_T);
    c->a.T = T;
    c->flat = to_gpu(flat, (size_t)B * sizeof *flat);
    c->ring = to_gpu(ring, (size_t)B * sizeof *ring);
    if (mask.exact_near) c->a.rebuilt = rows_of(c, c->a.longest);
    tables(c);
    return c;
}

static void free_case(struct attn_case *c)
{
    free_all();
    for (int i = 0; i < c->n_pinned; i++)
        gpu->ops->host_free(gpu, c->pinned[i], c->pinned_bytes[i]);
    for (int i = 0; i < c->n_garbage; i++) free(c->garbage[i]);
    free(c);
}

/* ---- running it --------------------------------------------------------------------------- */

/* Rows [t0, t1) as if they were all there are, `pieces` splits a call (0: all); to out. */
static void run(const struct attn_case *c, const struct kk_kv_seq *seqs, int t0, int t1, int pieces,
                uint16_t *out)
{
    struct kk_err err = {0};
    struct kk_attn_args a = c->g;
    const size_t width = (size_t)(a.H * a.D), n = (size_t)(t1 - t0) * width;
    const int32_t end = a.longest / gpu->attn_split + 1;
    void *o = gpu_room(n * 2);
    int mark = n_gpu_blocks;
    a.T = t1 - t0;
    a.q += (size_t)t0 * width;
    a.pos += t0;
    a.seq += t0;
    a.seqs = seqs;
    a.o = o;
    a.most_rows = between(0, 1) ? a.T : 0;
    if (between(0, 3) == 0) a.longest = 0; /* the host does not know */
    gpu->ops->step_begin(gpu);
    for (int32_t s = 0; !s || s < end; s += pieces ? pieces : end) {
        a.first = s == 0;
        a.last = !pieces || s + pieces >= end;
        a.first_split = s;
        a.end_split = a.last ? KK_NO_BOUND : s + pieces;
        gpu->ops->attn(gpu, &a);
    }
    gpu->ops->download(gpu, out, o, n * 2);
    KK_ASSERT_OK(gpu->ops->step_end(gpu, &err), &err);
    assert_int_equal(mark, n_gpu_blocks);
    n_gpu_blocks--;
    kk_dev_free(gpu, &gpu_account, o, n * 2);
}

static const char *describe(const struct attn_case *c)
{
    static char s[200];
    const struct kk_attn_args *a = &c->a;
    snprintf(
        s, sizeof s,
        "B %d T %d H %d G %d D %d R %d value_only %d window %d near %d sinks %d ahead %d exact "
        "%d longest %d block %d",
        a->B, a->T, a->H, a->G, a->D, a->R, a->value_only, a->mask.window, a->mask.near,
        a->mask.sinks, a->mask.ahead, a->mask.exact_near, a->longest, c->block);
    return s;
}

static void same(const struct attn_case *c, const char *what, int t0, int t1, const uint16_t *got,
                 const uint16_t *want)
{
    const int width = c->a.H * c->a.D;
    for (int64_t i = 0; i < (int64_t)(t1 - t0) * width; i++)
        if (got[i] != want[(int64_t)t0 * width + i])
            fail_msg("%s: %s: row %d [%d] is %04x, not %04x", what, describe(c),
                     t0 + (int)(i / width), (int)(i % width), got[i],
                     want[(int64_t)t0 * width + i]);
}

/* The largest error of a row, in parts of its largest value. */
static double close_to(struct attn_case *c, const uint16_t *got, double tol)
{
    const int width = c->a.H * c->a.D;
    const size_t n = (size_t)c->a.T * (size_t)width;
    struct kk_err err = {0};
    double worst = 0;
    c->a.o = room(c, n * sizeof(float));
    c->a.state = room(c, (size_t)c->a.T * (size_t)(c->a.H * (c->a.D + 2)) * sizeof(float));
    cpu->ops->step_begin(cpu);
    cpu->ops->attn(cpu, &c->a);
    KK_ASSERT_OK(cpu->ops->step_end(cpu, &err), &err);
    for (int t = 0; t < c->a.T; t++) {
        const float *want = (float *)c->a.o + (int64_t)t * width;
        double top = 1e-3;
        for (int i = 0; i < width; i++) top = fmax(top, fabs((double)want[i]));
        for (int i = 0; i < width; i++) {
            float x = kk_bf16_to_f32(got[(int64_t)t * width + i]);
            double e = fabs((double)x - (double)want[i]) / top;
            if (!(e <= tol))
                fail_msg("%s: row %d at %d [%d] is %.7g, oracle %.7g", describe(c), t, c->pos[t], i,
                         (double)x, (double)want[i]);
            worst = fmax(worst, e);
        }
    }
    return worst;
}

static double check(struct attn_case *c)
{
    const int T = c->a.T, width = c->a.H * c->a.D;
    const size_t n = (size_t)T * (size_t)width;
    uint16_t *want = room(c, n * 2), *got = room(c, n * 2);
    run(c, c->flat, 0, T, 0, want);
    const double worst = close_to(c, want, 2e-2);
    run(c, c->ring, 0, T, 0, got);
    if (!c->a.mask.exact_near) same(c, "in a ring", 0, T, got, want);
    run(c, c->flat, 0, T, between(1, 3), got);
    same(c, "in pieces", 0, T, got, want);
    for (int t = 0, k; t < T; t += k) {
        k = between(1, between(0, 2) ? 9 : 90);
        if (k > T - t) k = T - t;
        run(c, c->flat, t, t + k, 0, got);
        same(c, "a few rows", t, t + k, got, want);
    }
    for (int i = 0; i < 6; i++) {
        int t = between(0, T - 1);
        run(c, c->flat, t, t + 1, between(0, 1) ? between(1, 3) : 0, got);
        same(c, "alone", t, t + 1, got, want);
    }
    return worst;
}

/* ---- tests -------------------------------------------------------------------------------- */

static void test_any(void **state)
{
    (void)state;
    NEED_GPU();
    double worst = 0;
    for (int n = 0; n < CASES; n++) {
        int G = between(1, 3), D = 16 * between(1, n % 4 ? 16 : 32), committed[MOST_SEQS];
        if (n % 4 >= 2) D = n / 2 % 2 ? 512 : 64 << between(0, 2);
        int B = between(0, 1) ? 1 : between(1, n % 5 ? 4 : MOST_SEQS), rows[MOST_SEQS];
        struct geometry y = {G * between(1, n % 3 ? 5 : 20), G, D, between(0, D / 2), n / 2 % 2};
        struct kk_mask m = any_mask();
        if (B == 1 && between(0, 2) == 0) {
            m.exact_near = between(20, 64);
            m.exact_sinks = between(0, 5);
        }
        for (int b = 0; b < B; b++) {
            committed[b] = between(0, n % 3 ? 300 : 1500);
            rows[b] = between(0, 1) ? 1 : between(1, B > 4 ? 17 : 90);
        }
        struct attn_case *c = make_case(y, m, B, committed, rows);
        worst = fmax(worst, check(c));
        free_case(c);
    }
    print_message("largest error %.2g\n", worst);
}

/* The layers of Gemma-4-26B-A4B (bench/configs/gemma-4-26b-a4b.json): decoding, verifying, a chunk
 * of a prompt, a batch. */
static void test_26b(void **state)
{
    static const struct geometry layers[] = {{16, 8, 256, 128, 0}, {16, 2, 512, 64, 1}};
    static const struct {
        int B, committed[4], rows[4];
    } steps[] = {{1, {3238}, {1}},
                 {1, {1100}, {16}},
                 {1, {0}, {300}},
                 {1, {700}, {513}},
                 {4, {1000, 20, 0, 600}, {1, 16, 90, 130}}};
    (void)state;
    NEED_GPU();
    double worst = 0;
    for (int l = 0; l < 2; l++)
        for (int i = 0; i < (int)(sizeof steps / sizeof *steps); i++) {
            struct kk_mask m = {.window = l ? KK_NO_BOUND : 1024, .near = KK_NO_BOUND};
            if (i == 3 && l) m.near = 64, m.sinks = 4;
            struct attn_case *c =
                make_case(layers[l], m, steps[i].B, steps[i].committed, steps[i].rows);
            worst = fmax(worst, check(c));
            free_case(c);
        }
    print_message("largest error %.2g\n", worst);
}

/* More splits of few rows than scratch holds sums for: the running sums are carried from wave to
 * wave; a row alone needs one wave. */
static void test_waves(void **state)
{
    const struct geometry y = {60, 3, 512, 64, 1};
    const struct kk_mask m = {.window = KK_NO_BOUND, .near = KK_NO_BOUND};
    int committed[8], rows[8];
    (void)state;
    NEED_GPU();
    for (int b = 0; b < 8; b++) {
        committed[b] = between(700, 1500);
        rows[b] = 16;
    }
    struct attn_case *c = make_case(y, m, 8, committed, rows);
    check(c);
    free_case(c);
}

static void test_refused(void **state)
{
    (void)state;
    NEED_GPU();
    struct kk_err err = {0};
    struct kk_attn_args a = {.T = 1, .B = 1, .H = 1, .G = 1, .D = 24, .kv_dtype = KK_BF16};
    gpu->ops->step_begin(gpu);
    gpu->ops->attn(gpu, &a);
    KK_ASSERT_FAILS(gpu->ops->step_end(gpu, &err), KK_EDEVICE, &err, "attn");
}

static int open_both(void **state)
{
    const struct kk_limits limits = {
        .max_rows = MOST_T, .max_model_width = 512, .max_head_dim = 512};
    struct kk_err err = {0};
    rng = kk_test_rng("cuda attention");
    open_gpu(state);
    KK_ASSERT_OK(kk_dev_open_cpu("auto", 0, &cpu, &err), &err);
    KK_ASSERT_OK(cpu->ops->reserve(cpu, &limits, &gpu_account, &err), &err);
    if (gpu) KK_ASSERT_OK(gpu->ops->reserve(gpu, &limits, &gpu_account, &err), &err);
    return 0;
}

static int close_both(void **state)
{
    kk_dev_close(cpu);
    return close_gpu(state);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_any),
        cmocka_unit_test(test_26b),
        cmocka_unit_test(test_waves),
        cmocka_unit_test(test_refused),
    };
    return cmocka_run_group_tests(tests, open_both, close_both);
}
