/* The row ops of a GPU: bit by bit what docs/adr/0020 says, near what the CPU's oracle gives, and
 * the same for a row alone and among others. */
#include "unit/dev/cuda_test.h"

#include <math.h>

static struct kk_test_rng rng;
static struct kk_dev *cpu;

static int open_both(void **state)
{
    static struct kk_account scratch = {.name = "scratch"};
    const struct kk_limits l = {.max_rows = 600, .max_model_width = 9000, .max_head_dim = 512};
    struct kk_err err = {0};
    KK_ASSERT_OK(kk_dev_open_cpu("scalar", 1, &cpu, &err), &err);
    KK_ASSERT_OK(cpu->ops->reserve(cpu, &l, &scratch, &err), &err);
    open_gpu(state);
    if (gpu) KK_ASSERT_OK(gpu->ops->reserve(gpu, &l, &gpu->tables, &err), &err);
    return 0;
}

static int close_both(void **state)
{
    kk_dev_close(cpu);
    return close_gpu(state);
}

static int between(int lo, int hi)
{
    return kk_test_between(&rng, lo, hi);
}

static float *normals(int64_t n, float scale)
{
    float *x = malloc((size_t)n * sizeof *x + 1);
    kk_test_fill_normal(&rng, x, (size_t)n, scale);
    return x;
}

static void *floats_to_gpu(const float *x, int64_t n)
{
    return x ? to_gpu(x, (size_t)n * sizeof *x) : NULL;
}

static void *copy_of(const void *p, size_t bytes)
{
    return memcpy(malloc(bytes + 1), p, bytes);
}

static void end_step(void)
{
    struct kk_err err = {0};
    KK_ASSERT_OK(gpu->ops->step_end(gpu, &err), &err);
}

/* Some row counts, odd ones too */
static int any_rows(void)
{
    static const int rows[] = {1, 2, 3, 7, 16, 64, 513};
    return rows[between(0, 6)];
}

static int any_width(void)
{
    static const int widths[] = {2816, 5376, 9000, 1024, 256, 4097, 8192};
    const int i = between(0, 13);
    return i < 7 ? widths[i] : between(1, 1500);
}

/* ---- the order, written once more ---- */

static float butterfly(float v[32])
{
    for (int o = 16; o; o >>= 1) {
        float next[32];
        for (int l = 0; l < 32; l++) next[l] = v[l] + v[l ^ o];
        memcpy(v, next, sizeof next);
    }
    return v[0];
}

static float factor(const float *x, int n, int lanes, float eps)
{
    float v[256] = {0}, sum = 0;
    for (int i = 0; i < n; i++) v[i / 4 % lanes] = fmaf(x[i], x[i], v[i / 4 % lanes]);
    for (int w = 0; w < lanes; w += 32) sum = w ? sum + butterfly(v + w) : butterfly(v);
    return (float)(1 / sqrt((double)(sum / (float)n + eps)));
}

static void normed(const float *x, const float *w, int n, int lanes, float eps, float *y)
{
    const float f = factor(x, n, lanes, eps);
    for (int i = 0; i < n; i++) y[i] = w ? x[i] * f * w[i] : x[i] * f;
}

/* ---- comparing ---- */

static void same_f32(const char *what, const float *got, const float *want, int64_t n)
{
    for (int64_t i = 0; i < n; i++)
        if (memcmp(&got[i], &want[i], 4))
            fail_msg("%s: [%d] is %a, want %a", what, (int)i, (double)got[i], (double)want[i]);
}

static void same_bf16(const char *what, const uint16_t *got, const float *want, int64_t n)
{
    for (int64_t i = 0; i < n; i++)
        if (got[i] != kk_f32_to_bf16(want[i]))
            fail_msg("%s: [%d] is %04x, want %04x", what, (int)i, got[i], kk_f32_to_bf16(want[i]));
}

static void close_to(const char *what, const float *a, const float *b, int64_t n)
{
    const double e = kk_test_rel_err(a, b, (size_t)n, 1e-3);
    if (!(e < 2e-6)) fail_msg("%s: %g from the CPU's", what, e);
}

/* Rows [t, t + n) alone give what they gave among T: got and alone of `bytes` a row. */
static void same_alone(const char *what, const void *got, const void *alone, int t, int n,
                       size_t bytes)
{
    if (memcmp((const char *)got + (size_t)t * bytes, alone, (size_t)n * bytes))
        fail_msg("%s: rows %d .. %d alone differ", what, t, t + n - 1);
}

/* ---- norm ---- */

static void test_norm(void **state)
{
    (void)state;
    NEED_GPU();
    for (int round = 0; round < 40; round++) {
        const int T = any_rows(), C = any_width();
        const int64_t n = (int64_t)T * C;
        float *x = normals(n, 3), *w = round % 4 ? normals(C, 1) : NULL;
        float *want = malloc((size_t)n * 4), *oracle = malloc((size_t)n * 4);
        struct kk_norm_args a = {.T = T, .C = C, .x = x, .w = w, .eps = 1e-6f, .y = oracle};
        cpu->ops->norm(cpu, &a);
        for (int t = 0; t < T; t++) normed(x + t * C, w, C, 256, a.eps, want + t * C);
        close_to("norm", want, oracle, n);
        a.x = floats_to_gpu(x, n);
        a.w = floats_to_gpu(w, C);
        a.y = gpu_room((size_t)n * 2);
        gpu->ops->norm(gpu, &a);
        uint16_t *got = from_gpu(a.y, (size_t)n * 2);
        same_bf16("norm", got, want, n);
        const int t = between(0, T - 1);
        a.T = 1;
        a.x += t * C;
        gpu->ops->norm(gpu, &a);
        uint16_t *alone = from_gpu(a.y, (size_t)C * 2);
        same_alone("norm", got, alone, t, 1, (size_t)C * 2);
        end_step();
        free(x), free(w), free(want), free(oracle), free(got), free(alone);
        free_all();
    }
}

/* ---- residual ---- */

static void want_residual(const struct kk_residual_args *a, int t, float *h, float *const y[3])
{
    const int C = a->C;
    float *x = malloc((size_t)C * 4), *x2 = malloc((size_t)C * 4);
    memcpy(x, a->a[0] + t * C, (size_t)C * 4);
    if (a->n_in == 2) {
        normed(a->a[0] + t * C, a->w_in[0], C, 256, a->eps, x);
        normed(a->a[1] + t * C, a->w_in[1], C, 256, a->eps, x2);
        for (int i = 0; i < C; i++) x[i] += x2[i];
    }
    if (!a->plain) {
        normed(x, a->w_post, C, 256, a->eps, x2);
        memcpy(x, x2, (size_t)C * 4);
    }
    for (int i = 0; i < C; i++) h[t * C + i] = (h[t * C + i] + x[i]) * a->scale;
    for (int k = 0; k < a->n_out; k++) normed(h + t * C, a->w_out[k], C, 256, a->eps, y[k] + t * C);
    free(x), free(x2);
}

static void test_residual(void **state)
{
    (void)state;
    NEED_GPU();
    for (int round = 0; round < 48; round++) {
        const int T = any_rows(), C = any_width();
        const int64_t n = (int64_t)T * C;
        float *h = normals(n, 2), *in[2] = {normals(n, 1), normals(n, 5)}, *w[6], *y[3], *own[3];
        struct kk_residual_args a = {.T = T,
                                     .C = C,
                                     .n_in = 1 + round % 2,
                                     .n_out = round / 2 % 4,
                                     .plain = round % 2 == 0 && round % 3 == 0,
                                     .scale = round % 5 ? 1.0f : 0.7f,
                                     .eps = 1e-6f,
                                     .a = {in[0], in[1]}};
        for (int i = 0; i < 6; i++) w[i] = normals(C, 1);
        for (int i = 0; i < 3; i++) y[i] = normals(n, 1), own[i] = malloc((size_t)n * 4);
        float *want = copy_of(h, (size_t)n * 4), *oracle = copy_of(h, (size_t)n * 4);
        for (int i = 0; i < 2; i++) a.w_in[i] = w[i];
        for (int i = 0; i < 3; i++) a.w_out[i] = w[2 + i], a.y[i] = y[i];
        a.w_post = w[5];
        a.h = oracle;
        cpu->ops->residual(cpu, &a);
        for (int t = 0; t < T; t++) want_residual(&a, t, want, own);
        close_to("residual", want, oracle, n);
        struct kk_residual_args g = a;
        g.h = floats_to_gpu(h, n);
        float *h_alone = floats_to_gpu(h, n);
        for (int i = 0; i < 2; i++)
            g.a[i] = floats_to_gpu(in[i], n), g.w_in[i] = floats_to_gpu(w[i], C);
        for (int i = 0; i < 3; i++)
            g.w_out[i] = floats_to_gpu(w[2 + i], C), g.y[i] = gpu_room((size_t)n * 2);
        g.w_post = floats_to_gpu(w[5], C);
        gpu->ops->residual(gpu, &g);
        float *got = from_gpu(g.h, n * 4);
        same_f32("residual", got, want, n);
        for (int i = 0; i < a.n_out; i++) {
            uint16_t *got_y = from_gpu(g.y[i], (size_t)n * 2);
            close_to("residual's norm", own[i], y[i], n);
            same_bf16("residual's norm", got_y, own[i], n);
            free(got_y);
        }
        const int t = between(0, T - 1), some = between(1, T - t);
        g.T = some;
        g.h = h_alone + t * C;
        for (int i = 0; i < 2; i++) g.a[i] += t * C;
        gpu->ops->residual(gpu, &g);
        float *alone = from_gpu(g.h, (size_t)some * (size_t)C * 4);
        same_alone("residual", got, alone, t, some, (size_t)C * 4);
        end_step();
        for (int i = 0; i < 6; i++) free(w[i]);
        for (int i = 0; i < 3; i++) free(y[i]), free(own[i]);
        free(h), free(in[0]), free(in[1]), free(want), free(oracle), free(got), free(alone);
        free_all();
    }
}

/* ---- embed ---- */

static void test_embed(void **state)
{
    (void)state;
    NEED_GPU();
    for (int round = 0; round < 12; round++) {
        const int T = any_rows(), V = between(1, 3000), C = round ? between(1, 600) : 2816;
        struct kk_account account = {.name = "weights"};
        struct kk_err err = {0};
        struct kk_weight table;
        float *v = normals((int64_t)V * C, 1);
        const struct kk_weight_src src = {
            .dtype = KK_F32, .n_mats = 1, .rows = V, .cols = C, .data = v};
        int32_t *ids = malloc((size_t)T * 4);
        KK_ASSERT_OK(gpu->ops->weight_load(gpu, &src, &account, &table, &err), &err);
        for (int t = 0; t < T; t++) ids[t] = between(0, V - 1);
        struct kk_embed_args a = {.T = T, .table = &table, .scale = 53.0f};
        a.ids = to_gpu(ids, (size_t)T * 4);
        a.h = gpu_room((size_t)T * (size_t)C * 4);
        gpu->ops->embed(gpu, &a);
        end_step();
        float *got = from_gpu(a.h, (size_t)T * (size_t)C * 4);
        for (int64_t i = 0; i < (int64_t)T * C; i++) {
            const float want =
                kk_bf16_to_f32(kk_f32_to_bf16(v[(int64_t)ids[i / C] * C + i % C])) * 53.0f;
            same_f32("embed", got + i, &want, 1);
        }
        ids[T / 2] = round % 2 ? V : -1;
        gpu->ops->upload(gpu, (void *)(size_t)a.ids, ids, (size_t)T * 4);
        gpu->ops->step_begin(gpu);
        gpu->ops->embed(gpu, &a);
        KK_ASSERT_FAILS(gpu->ops->step_end(gpu, &err), KK_ERANGE, &err, "embed: id ");
        end_step(); /* said once */
        kk_weight_free(gpu, &table);
        free(v), free(ids), free(got);
        free_all();
    }
}

/* ---- qkv ---- */

static void turn(float *y, int D, int R, const float *cs)
{
    for (int r = 0; r < R; r++) {
        const float a = y[r], b = y[r + D / 2], c = cs[2 * r], s = cs[2 * r + 1];
        y[r] = a * c - b * s;
        y[r + D / 2] = b * c + a * s;
    }
}

static void want_head(const float *x, const float *w, int norm, const struct kk_qkv_args *a,
                      const float *cs, float *y)
{
    memcpy(y, x, (size_t)a->D * 4);
    if (norm) normed(x, w, a->D, 32, a->eps, y);
    if (cs) turn(y, a->D, a->R, cs);
}

static void want_row(const struct kk_qkv_args *a, int t, float *q, float *row)
{
    const int D = a->D, GD = a->G * D;
    const float *cs = a->rope + (int64_t)a->pos[t] * a->R * 2;
    for (int h = 0; h < a->H; h++)
        want_head(a->q + (t * a->H + h) * D, a->q_norm, !!a->q_norm, a, cs, q + (t * a->H + h) * D);
    for (int g = 0; g < a->G; g++) {
        const int64_t at = (int64_t)t * GD + g * D;
        if (a->value_only) {
            want_head(a->k + at, NULL, !a->raw_value, a, NULL, row + at);
            continue;
        }
        want_head(a->k + at, a->k_norm, !!a->k_norm, a, cs, row + 2 * t * GD + g * D);
        want_head(a->v + at, NULL, !a->raw_value, a, NULL, row + (2 * t + 1) * GD + g * D);
    }
}

static void check_qkv(struct kk_qkv_args a, int positions)
{
    const int64_t nq = (int64_t)a.T * a.H * a.D, nk = (int64_t)a.T * a.G * a.D;
    const int64_t nr = nk * (a.value_only ? 1 : 2), n_rope = (int64_t)positions * a.R * 2;
    float *q = normals(nq, 2), *k = normals(nk, 2), *v = normals(nk, 2), *rope = normals(n_rope, 1);
    int32_t *pos = malloc((size_t)a.T * 4);
    for (int t = 0; t < a.T; t++) pos[t] = between(0, positions - 1);
    a.q = q, a.k = k, a.v = v, a.rope = rope, a.pos = pos;
    float *want_q = malloc((size_t)nq * 4 + 1), *want = malloc((size_t)nr * 4 + 1);
    for (int t = 0; t < a.T; t++) want_row(&a, t, want_q, want);

    float *cpu_rows = malloc((size_t)nr * 4 + 1), *cpu_q = copy_of(q, (size_t)nq * 4);
    struct kk_qkv_args o = a, g = a;
    o.q = cpu_q, o.rows = cpu_rows, o.kv_dtype = KK_F32;
    cpu->ops->qkv(cpu, &o);
    close_to("qkv: q", want_q, cpu_q, nq);
    close_to("qkv: rows", want, cpu_rows, nr);

    g.q = floats_to_gpu(q, nq), g.k = floats_to_gpu(k, nk), g.v = floats_to_gpu(v, nk);
    g.rope = floats_to_gpu(rope, n_rope), g.pos = to_gpu(pos, (size_t)a.T * 4);
    g.q_norm = floats_to_gpu(a.q_norm, a.D), g.k_norm = floats_to_gpu(a.k_norm, a.D);
    g.rows = gpu_room((size_t)nr * 2), g.kv_dtype = KK_BF16;
    gpu->ops->qkv(gpu, &g);
    float *got_q = from_gpu(g.q, (size_t)nq * 4);
    uint16_t *got = from_gpu(g.rows, (size_t)nr * 2);
    same_f32("qkv: q", got_q, want_q, nq);
    same_bf16("qkv: rows", got, want, nr);

    const int t = between(0, a.T - 1);
    gpu->ops->upload(gpu, g.q, q, (size_t)nq * 4);
    g.T = 1;
    g.q += (int64_t)t * a.H * a.D, g.k += (int64_t)t * a.G * a.D, g.v += (int64_t)t * a.G * a.D;
    g.pos += t;
    gpu->ops->qkv(gpu, &g);
    uint16_t *alone = from_gpu(g.rows, (size_t)(nr / a.T) * 2);
    same_alone("qkv", got, alone, t, 1, (size_t)(nr / a.T) * 2);
    end_step();
    free(q), free(k), free(v), free(rope), free(pos), free(want_q), free(want), free(cpu_rows);
    free(cpu_q), free(got_q), free(got), free(alone);
    free_all();
}

static void test_qkv(void **state)
{
    (void)state;
    NEED_GPU();
    for (int round = 0; round < 60; round++) {
        static const int dims[] = {256, 512, 64, 128, 80};
        const int big = round % 6 == 0, D = big ? dims[round / 6 % 2] : dims[between(0, 4)];
        struct kk_qkv_args a = {.T = any_rows() % 65 + (big ? 0 : 1), .D = D, .eps = 1e-6f};
        a.G = big ? (D == 512 ? 2 : 8) : between(1, 4);
        a.H = big ? 16 : a.G * between(0, 4);
        a.R = round % 3 ? D / 2 : D / 8;
        a.value_only = big ? D == 512 : round % 4 == 1;
        a.raw_value = !big && round % 5 == 2;
        float *q_norm = normals(D, 1), *k_norm = normals(D, 1);
        a.q_norm = round % 7 == 3 ? NULL : q_norm;
        a.k_norm = round % 7 == 4 && !a.value_only ? NULL : k_norm;
        if (a.T == 0) a.T = 1;
        check_qkv(a, 40);
        free(q_norm), free(k_norm);
    }
}

/* ---- gather, convert, argmax ---- */

static void test_gather(void **state)
{
    (void)state;
    NEED_GPU();
    for (int round = 0; round < 30; round++) {
        const int n = any_rows(), C = any_width(), N = between(n, n + 30);
        const int64_t stride = round % 3 ? 0 : C + between(0, 50), step = stride ? stride : C;
        float *src = normals((int64_t)N * C, 1);
        int32_t *rows = malloc((size_t)n * 4);
        for (int i = 0; i < n; i++) rows[i] = between(0, N - 1);
        struct kk_gather_args a = {.n = n, .C = C, .src = src, .stride = stride};
        a.rows = round % 2 ? rows : NULL;
        float *want = malloc((size_t)n * (size_t)step * 4);
        memset(want, 0x7f, (size_t)n * (size_t)step * 4);
        a.dst = want;
        cpu->ops->gather(cpu, &a);
        a.src = floats_to_gpu(src, (int64_t)N * C);
        a.dst = gpu_room((size_t)n * (size_t)step * 4);
        if (a.rows) a.rows = to_gpu(rows, (size_t)n * 4);
        gpu->ops->gather(gpu, &a);
        float *got = from_gpu(a.dst, (size_t)n * (size_t)step * 4);
        assert_memory_equal(got, want, (size_t)n * (size_t)step * 4);
        end_step();
        free(src), free(rows), free(want), free(got);
        free_all();
    }
}

static void test_convert(void **state)
{
    (void)state;
    NEED_GPU();
    for (int round = 0; round < 20; round++) {
        const int64_t n = round ? between(1, 9000) : 3000001;
        const enum kk_dtype from = round % 3 ? KK_F32 : KK_BF16, to = round % 2 ? KK_F32 : KK_BF16;
        float *x = normals(n, 1);
        void *want = malloc((size_t)n * 4);
        struct kk_convert_args a = {.n = n, .from = from, .to = to, .src = x, .dst = want};
        cpu->ops->convert(cpu, &a);
        a.src = to_gpu(x, (size_t)n * kk_dtype_bytes(from));
        a.dst = gpu_room((size_t)n * kk_dtype_bytes(to));
        gpu->ops->convert(gpu, &a);
        void *got = from_gpu(a.dst, (size_t)n * kk_dtype_bytes(to));
        assert_memory_equal(got, want, (size_t)n * kk_dtype_bytes(to));
        end_step();
        free(x), free(want), free(got);
        free_all();
    }
}

static void check_argmax(int T, int64_t n, int ties)
{
    float *x = normals((int64_t)T * n, 1);
    int32_t *want = malloc((size_t)T * 4);
    for (int t = 0; t < T; t++) {
        float *row = x + t * n;
        const int64_t a = between(0, (int)n - 1), b = between(0, (int)n - 1);
        if (ties == 1) row[a] = row[b] = 9; /* two of the largest */
        if (ties == 2)                      /* -0 and 0, all else less */
            for (int64_t i = 0; i < n; i++) row[i] = i == a ? -0.0f : i == b ? 0.0f : -1.0f;
        if (ties == 3)
            for (int64_t i = 0; i < n; i++) row[i] = -INFINITY;
        want[t] = 0;
        for (int64_t i = 1; i < n; i++)
            if (row[i] > row[want[t]]) want[t] = (int32_t)i;
    }
    struct kk_argmax_args g = {.T = T, .n = n};
    g.x = floats_to_gpu(x, (int64_t)T * n);
    g.out = gpu_room((size_t)T * 4);
    for (int again = 0; again < 2; again++) {
        gpu->ops->argmax(gpu, &g);
        int32_t *got = from_gpu(g.out, (size_t)T * 4);
        assert_memory_equal(got, want, (size_t)T * 4);
        free(got);
    }
    end_step();
    free(x), free(want);
    free_all();
}

static void test_argmax(void **state)
{
    (void)state;
    NEED_GPU();
    for (int round = 0; round < 24; round++)
        check_argmax(round % 4 ? between(1, 20) : between(60, 140), between(1, 40000), round % 4);
    check_argmax(16, 262144, 0);
    check_argmax(1, 262144, 1);
    check_argmax(2, 262147, 2);
}

/* ---- kv_store ---- */

enum { SEQS = 6, BLOCKS = 4 }; /* of two layers, three each */

/* The step rows of some sequences into rings and block tables, as the CPU stores them. */
static void check_store(size_t row_bytes, int max_step)
{
    struct kk_kv_seq host[SEQS], dev[SEQS];
    void *mem[SEQS][BLOCKS], *dev_mem[SEQS][BLOCKS], *step[SEQS];
    int32_t keep[SEQS / 2], most = 0;
    for (int b = 0; b < SEQS / 2; b++) {
        keep[b] = between(0, max_step);
        if (keep[b] > most) most = keep[b];
    }
    for (int b = 0; b < SEQS; b++) {
        struct kk_kv_seq *s = &host[b];
        const int ring = b % 2, room = ring ? 1 : BLOCKS;
        *s = (struct kk_kv_seq){.n_step = between(keep[b % (SEQS / 2)], max_step + 1)};
        s->row_bytes = between(0, 6) ? (int32_t)row_bytes : 0;
        s->sinks = ring ? between(0, 4) : 0;
        s->ring = ring ? between(1, 70) : 0;
        s->block_rows = ring ? s->sinks + s->ring : 128;
        s->committed = between(0, ring ? 300 : BLOCKS * 128 - s->n_step);
        const size_t bytes = (size_t)s->block_rows * row_bytes;
        for (int i = 0; i < room; i++) {
            mem[b][i] = normals((int64_t)(bytes / 4) + 1, 1);
            dev_mem[b][i] = to_gpu(mem[b][i], bytes);
        }
        step[b] = normals((int64_t)((size_t)s->n_step * row_bytes / 4) + 1, 1);
        dev[b] = *s;
        s->blocks = mem[b];
        s->step = step[b];
        dev[b].blocks = to_gpu(dev_mem[b], (size_t)room * sizeof(void *));
        dev[b].step = to_gpu(step[b], (size_t)s->n_step * row_bytes);
    }
    struct kk_kv_store_args a = {.n_layers = 2, .B = SEQS / 2, .stride = SEQS / 2, .most = most};
    a.seqs = host;
    a.keep = keep;
    cpu->ops->kv_store(cpu, &a);
    a.seqs = to_gpu(dev, sizeof dev);
    gpu->ops->kv_store(gpu, &a);
    for (int b = 0; b < SEQS; b++) {
        for (int i = 0; i < (host[b].ring ? 1 : BLOCKS); i++) {
            const size_t bytes = (size_t)host[b].block_rows * row_bytes;
            void *got = from_gpu(dev_mem[b][i], bytes);
            assert_memory_equal(got, mem[b][i], bytes);
            free(got), free(mem[b][i]);
        }
        free(step[b]);
    }
    end_step();
    free_all();
}

static void test_kv_store(void **state)
{
    static const size_t row_bytes[] = {2048, 8192, 40, 6, 512};
    (void)state;
    NEED_GPU();
    for (int round = 0; round < 40; round++)
        check_store(row_bytes[round % 5], round % 3 ? 16 : 200);
}

int main(void)
{
    rng = kk_test_rng("cuda ops");
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_norm),   cmocka_unit_test(test_residual),
        cmocka_unit_test(test_embed),  cmocka_unit_test(test_qkv),
        cmocka_unit_test(test_gather), cmocka_unit_test(test_convert),
        cmocka_unit_test(test_argmax), cmocka_unit_test(test_kv_store),
    };
    return cmocka_run_group_tests(tests, open_both, close_both);
}
