/* Every op of the CPU device but attention (test_attn.c): against doubles, between instruction
 * sets, thread counts and cuts of the rows. kk-test: tsan */
#include "unit/dev/dev_test.h"

#include "dev/cpu/quant_int.h"

/* ---- weights: the values, and packed by each device ---- */

struct weight {
    float *v; /* [n_mats, rows, cols] */
    void *raw;
    struct kk_weight_src src;
    struct kk_weight w[9];
    struct kk_account account;
};

/* n numbers of a block type, of about the size given, to x; the blocks in the result (malloc) */
static void *random_blocks(enum kk_dtype t, float *x, int64_t n, float size)
{
    const unsigned bytes = kk_dtype_block_bytes(t);
    const size_t all = (size_t)n / kk_dtype_block(t) * bytes;
    const float levels = (float)(1 << kk_quant_bits(t)) / 3, times = t < KK_Q4_K ? 1 : 40;
    uint8_t *b = malloc(all + 1);
    for (size_t i = 0; i < all; i++) b[i] = (uint8_t)kk_test_u64(&rng);
    for (size_t at = 0; at < all; at += bytes) {
        const float scale = size / levels / times * kk_test_uniform(&rng, 0.3f, 1.7f);
        const uint16_t d = f32_to_f16(scale), m = f32_to_f16(scale * levels * (times > 1 ? 1 : -1));
        memcpy(b + at + (t == KK_Q6_K ? 208 : 0), &d, 2);
        if (kk_quant_has_min(t)) memcpy(b + at + 2, &m, 2);
    }
    kk_dequant(t, b, (uint64_t)n, x);
    return b;
}

static void read_raw(const void *ctx, uint64_t first, uint64_t n, void *dst)
{
    const struct weight *w = ctx;
    const unsigned per = kk_dtype_block(w->src.dtype), bytes = kk_dtype_block_bytes(w->src.dtype);
    assert_true(first % per == 0 && n % per == 0);
    memcpy(dst, (const char *)w->raw + first / per * bytes, n / per * bytes);
}

static void make_weight(struct weight *w, enum kk_dtype t, int n_mats, int rows, int cols)
{
    struct kk_err err = {0};
    int64_t n = (int64_t)n_mats * rows * cols;
    const float size = 1.0f / sqrtf((float)cols);
    w->v = normals(n, size);
    w->raw = kk_dtype_is_block(t) ? random_blocks(t, w->v, n, size) : to_dtype(t, w->v, n);
    w->account = (struct kk_account){.name = "weights"};
    w->src = (struct kk_weight_src){
        .dtype = t, .n_mats = n_mats, .rows = rows, .cols = cols, .ctx = w, .read = read_raw};
    for (int i = 0; i < n_devs; i++) {
        int64_t before = atomic_load(&w->account.bytes);
        w->src.data = i % 2 ? w->raw : NULL;
        KK_ASSERT_OK(devs[i]->ops->weight_load(devs[i], &w->src, &w->account, &w->w[i], &err),
                     &err);
        assert_int_equal(atomic_load(&w->account.bytes) - before,
                         devs[i]->ops->weight_bytes(devs[i], &w->src));
    }
}

static void free_weight(struct weight *w)
{
    for (int i = 0; i < n_devs; i++) kk_weight_free(devs[i], &w->w[i]);
    assert_int_equal(atomic_load(&w->account.bytes), 0);
    free(w->v);
    free(w->raw);
}

static double dot(const struct weight *w, int64_t row, const float *x)
{
    const int rounded = kk_dtype_is_block(w->src.dtype) && block_act == KK_ACT_Q8;
    const float *v = w->v + row * w->src.cols;
    struct kk_q8_group g = {0};
    int8_t q[KK_GROUP];
    double s = 0;
    for (int64_t k = 0; k < w->src.cols; k++) {
        if (rounded && k % KK_GROUP == 0) kk_q8_one(x + k, q, &g);
        s += (double)v[k] * (rounded ? (double)g.scale * q[k % KK_GROUP] : (double)x[k]);
    }
    return s;
}

/* A type that can hold rows of so many numbers; block types where there is a choice, mostly */
static enum kk_dtype any_dtype(int cols)
{
    if (cols % 32 || between(0, 3) == 0) return (enum kk_dtype)between(0, 2);
    return (enum kk_dtype)between(KK_Q4_0, cols % 256 ? KK_Q8_0 : KK_Q6_K);
}

/* lo .. hi, half of them whole groups of 32 if that can be */
static int any_width(int lo, int hi)
{
    const int n = between(lo, hi), whole = (n + 31) / 32 * 32;
    return whole <= hi && between(0, 1) ? whole : n;
}

static void rms(int n, const double *x, const float *w, double eps, double *y)
{
    double s = 0;
    for (int i = 0; i < n; i++) s += x[i] * x[i];
    double r = 1 / sqrt(s / n + eps);
    for (int i = 0; i < n; i++) y[i] = x[i] * r * (w ? (double)w[i] : 1);
}

static double activate(enum kk_activation act, double x)
{
    if (act == KK_SILU) return x / (1 + exp(-x));
    return 0.5 * x * (1 + tanh(sqrt(2 / 3.14159265358979323846) * (x + 0.044715 * x * x * x)));
}

/* ---- embed ---- */

struct embed_case {
    struct weight table;
    int32_t *ids;
    float scale;
};

static void run_embed(const void *p, int i, int t0, int t1, float *out)
{
    const struct embed_case *c = p;
    devs[i]->ops->embed(devs[i], &(struct kk_embed_args){.T = t1 - t0,
                                                         .ids = c->ids + t0,
                                                         .table = &c->table.w[i],
                                                         .scale = c->scale,
                                                         .h = out});
}

static void ref_embed(const void *p, int t, const float *got, double *want)
{
    const struct embed_case *c = p;
    int64_t C = c->table.src.cols;
    (void)got;
    for (int64_t k = 0; k < C; k++)
        want[k] = (double)c->table.v[c->ids[t] * C + k] * (double)c->scale;
}

static void test_embed(void **state)
{
    (void)state;
    for (int n = 0; n < 12; n++) {
        struct embed_case c = {.scale = between(0, 1) ? 1.0f : 16.75f};
        int T = between(1, 80), V = between(1, 100), C = n % 4 ? any_width(1, 320) : 256;
        int32_t ids[80];
        for (int t = 0; t < T; t++) ids[t] = between(0, V - 1);
        c.ids = ids;
        make_weight(&c.table, any_dtype(C), 1, V, C);
        check_op(&(struct check){"embed", T, C, 1e-7, run_embed, ref_embed}, &c);
        free_weight(&c.table);
    }
}

static void test_embed_out_of_range(void **state)
{
    (void)state;
    struct weight w;
    struct kk_err err = {0};
    float h[3 * 8];
    const int32_t ids[3] = {0, 70000, -1};
    make_weight(&w, KK_BF16, 1, 2048, 8);
    for (int i = 0; i < n_devs; i++) {
        struct kk_embed_args a = {.T = 3, .ids = ids, .table = &w.w[i], .scale = 1, .h = h};
        devs[i]->ops->step_begin(devs[i]);
        devs[i]->ops->embed(devs[i], &a);
        KK_ASSERT_FAILS(devs[i]->ops->step_end(devs[i], &err), KK_ERANGE, &err,
                        "embed: id 70000 of 2048 rows");
        devs[i]->ops->step_begin(devs[i]);
        assert_int_equal(devs[i]->ops->step_end(devs[i], &err), 0);
    }
    free_weight(&w);
}

/* ---- norm and residual ---- */

struct residual_case {
    struct kk_residual_args a;
    float *h;
};

static void run_norm(const void *p, int i, int t0, int t1, float *out)
{
    struct kk_norm_args a = *(const struct kk_norm_args *)p;
    a.T = t1 - t0;
    a.x += (int64_t)t0 * a.C;
    a.y = out;
    devs[i]->ops->norm(devs[i], &a);
}

static void ref_norm(const void *p, int t, const float *got, double *want)
{
    const struct kk_norm_args *a = p;
    (void)got;
    for (int i = 0; i < a->C; i++) want[i] = (double)a->x[(int64_t)t * a->C + i];
    rms(a->C, want, a->w, (double)a->eps, want);
}

static void test_norm(void **state)
{
    (void)state;
    for (int n = 0; n < 20; n++) {
        int T = between(1, 80), C = between(1, 320);
        float *x = normals((int64_t)T * C, 3), *w = normals(C, 1);
        struct kk_norm_args a = {.C = C, .x = x, .w = n % 3 ? w : NULL, .eps = 1e-6f};
        check_op(&(struct check){"norm", T, C, 2e-6, run_norm, ref_norm}, &a);
        free(x);
        free(w);
    }
}

/* A row of output: h, then the normed copies. */
static void run_residual(const void *p, int i, int t0, int t1, float *out)
{
    const struct residual_case *c = p;
    struct kk_residual_args a = c->a;
    const int T = t1 - t0, C = a.C, width = C * (1 + a.n_out);
    float *h = malloc((size_t)(4 * T * C) * sizeof *h);
    a.T = T;
    a.h = memcpy(h, c->h + (int64_t)t0 * C, (size_t)(T * C) * sizeof *h);
    for (int k = 0; k < a.n_in; k++) a.a[k] += (int64_t)t0 * C;
    for (int k = 0; k < 3; k++) a.y[k] = h + (k + 1) * T * C;
    devs[i]->ops->residual(devs[i], &a);
    for (int t = 0; t < T; t++)
        for (int k = 0; k <= a.n_out; k++)
            memcpy(out + t * width + k * C, h + (k * T + t) * C, (size_t)C * sizeof *h);
    free(h);
}

static void ref_residual(const void *p, int t, const float *got, double *want)
{
    const struct residual_case *c = p;
    const struct kk_residual_args *a = &c->a;
    double x[320], y[320];
    const int C = a->C;
    (void)got;
    for (int i = 0; i < C; i++) x[i] = (double)a->a[0][(int64_t)t * C + i];
    if (a->n_in == 2) {
        for (int i = 0; i < C; i++) y[i] = (double)a->a[1][(int64_t)t * C + i];
        rms(C, x, a->w_in[0], (double)a->eps, x);
        rms(C, y, a->w_in[1], (double)a->eps, y);
        for (int i = 0; i < C; i++) x[i] += y[i];
    }
    if (!a->plain) rms(C, x, a->w_post, (double)a->eps, x);
    for (int i = 0; i < C; i++)
        want[i] = ((double)c->h[(int64_t)t * C + i] + x[i]) * (double)a->scale;
    for (int k = 0; k < a->n_out; k++)
        rms(C, want, a->w_out[k], (double)a->eps, want + (k + 1) * C);
}

static void test_residual(void **state)
{
    (void)state;
    for (int n = 0; n < 24; n++) {
        int T = between(1, 80), C = between(2, 320);
        float *buf[9];
        for (int i = 0; i < 3; i++) buf[i] = normals((int64_t)T * C, 2);
        for (int i = 3; i < 9; i++) buf[i] = normals(C, 1);
        struct residual_case c = {.h = buf[0]};
        c.a = (struct kk_residual_args){.C = C,
                                        .n_in = 1 + n % 2,
                                        .plain = n % 6 == 0,
                                        .n_out = n % 4,
                                        .a = {buf[1], buf[2]},
                                        .w_in = {buf[3], buf[4]},
                                        .w_post = buf[5],
                                        .scale = n % 3 ? 0.37f : 1,
                                        .eps = 1e-6f,
                                        .w_out = {buf[6], buf[7], buf[8]}};
        check_op(
            &(struct check){"residual", T, C * (1 + c.a.n_out), 1e-5, run_residual, ref_residual},
            &c);
        for (int i = 0; i < 9; i++) free(buf[i]);
    }
}

/* ---- linear and glu ---- */

struct linear_case {
    int n, C, width;
    float softcap, *x, *bias[3];
    uint16_t *half; /* the input is bf16, of these bits; else NULL */
    struct weight w[3];
    enum kk_activation act;
};

static void run_linear(const void *p, int i, int t0, int t1, float *out)
{
    const struct linear_case *c = p;
    struct kk_linear_args a = {.T = t1 - t0, .n = c->n, .softcap = c->softcap};
    float *y = malloc((size_t)(a.T * c->width) * sizeof *y), *at = y;
    a.x = c->x + (int64_t)t0 * c->C;
    if (c->half) a.bf16 = 1, a.x = c->half + (int64_t)t0 * c->C;
    for (int k = 0; k < c->n; k++) {
        a.w[k] = &c->w[k].w[i];
        a.bias[k] = c->bias[k];
        a.y[k] = at;
        at += a.T * a.w[k]->rows;
    }
    devs[i]->ops->linear(devs[i], &a);
    for (int t = 0; t < a.T; t++)
        for (int k = 0; k < c->n; k++) {
            int64_t rows = a.w[k]->rows;
            memcpy(out, a.y[k] + t * rows, (size_t)rows * sizeof *out);
            out += rows;
        }
    free(y);
}

static void ref_linear(const void *p, int t, const float *got, double *want)
{
    const struct linear_case *c = p;
    (void)got;
    for (int k = 0; k < c->n; k++)
        for (int64_t r = 0; r < c->w[k].src.rows; r++) {
            *want = dot(&c->w[k], r, c->x + (int64_t)t * c->C);
            if (c->bias[k]) *want += (double)c->bias[k][r];
            if (c->softcap > 0) *want = (double)c->softcap * tanh(*want / (double)c->softcap);
            want++;
        }
}

static void test_linear(void **state)
{
    (void)state;
    for (int n = 0; n < 30; n++) {
        struct linear_case c = {.n = between(1, 3), .C = n % 4 == 1 ? 256 : any_width(1, 150)};
        const int T = between(1, n % 5 ? 12 : 80), half = n % 3 == 0;
        c.C += half & c.C;
        c.softcap = n % 4 ? 0 : 2.5f;
        c.x = normals((int64_t)T * c.C, 1);
        if (half) c.half = to_dtype(KK_BF16, c.x, (int64_t)T * c.C);
        for (int k = 0; k < c.n; k++) {
            int rows = between(1, n % 3 ? 60 : 300);
            make_weight(&c.w[k], half ? KK_BF16 : any_dtype(c.C), 1, rows, c.C);
            for (int i = 0; i < n_devs; i++) c.w[k].w[i].bf16_in = half;
            c.bias[k] = between(0, 1) ? normals(rows, 1) : NULL;
            c.width += rows;
        }
        check_op(&(struct check){"linear", T, c.width, 2e-5, run_linear, ref_linear}, &c);
        for (int k = 0; k < c.n; k++) {
            free_weight(&c.w[k]);
            free(c.bias[k]);
        }
        free(c.x), free(c.half);
    }
}

static void run_glu(const void *p, int i, int t0, int t1, float *out)
{
    const struct linear_case *c = p;
    devs[i]->ops->glu(devs[i], &(struct kk_glu_args){.T = t1 - t0,
                                                     .act = c->act,
                                                     .x = c->x + (int64_t)t0 * c->C,
                                                     .gate = &c->w[0].w[i],
                                                     .up = &c->w[1].w[i],
                                                     .y = out});
}

static void ref_glu(const void *p, int t, const float *got, double *want)
{
    const struct linear_case *c = p;
    const float *x = c->x + (int64_t)t * c->C;
    (void)got;
    for (int r = 0; r < c->width; r++)
        want[r] = activate(c->act, dot(&c->w[0], r, x)) * dot(&c->w[1], r, x);
}

static void test_glu(void **state)
{
    (void)state;
    for (int n = 0; n < 20; n++) {
        struct linear_case c = {.C = n % 5 == 1 ? 256 : any_width(1, 100),
                                .width = between(1, n % 3 ? 90 : 400)};
        int T = between(1, n % 4 ? 12 : 80);
        c.act = n % 2 ? KK_SILU : KK_GELU_TANH;
        c.x = normals((int64_t)T * c.C, 1.5f);
        for (int k = 0; k < 2; k++) make_weight(&c.w[k], any_dtype(c.C), 1, c.width, c.C);
        check_op(&(struct check){"glu", T, c.width, 2e-5, run_glu, ref_glu}, &c);
        for (int k = 0; k < 2; k++) free_weight(&c.w[k]);
        free(c.x);
    }
}

/* ---- qkv ---- */

struct qkv_case {
    struct kk_qkv_args a;
    float *q;
    int row; /* floats of a stored row */
};

/* n stored numbers, from anywhere */
static void from_dtype(enum kk_dtype t, const char *src, int64_t n, float *x)
{
    if (t == KK_F32) memcpy(x, src, (size_t)n * 4);
    if (t == KK_Q8_0) kk_dequant(t, src, (uint64_t)n, x);
    for (int64_t i = 0; t == KK_BF16 && i < n; i++) {
        uint16_t h;
        memcpy(&h, src + 2 * i, 2);
        x[i] = kk_bf16_to_f32(h);
    }
}

/* A row of output: q, then the stored row as floats. */
static void run_qkv(const void *p, int i, int t0, int t1, float *out)
{
    const struct qkv_case *c = p;
    struct kk_qkv_args a = c->a;
    const int T = t1 - t0, HD = a.H * a.D, GD = a.G * a.D;
    float *q = malloc((size_t)(T * (HD + c->row)) * sizeof *q);
    char *rows = (char *)(q + T * HD);
    a.T = T;
    a.q = memcpy(q, c->q + (int64_t)t0 * HD, (size_t)(T * HD) * sizeof *q);
    a.k += (int64_t)t0 * GD;
    a.v += (int64_t)t0 * GD;
    a.pos += t0;
    a.rows = rows;
    devs[i]->ops->qkv(devs[i], &a);
    for (int t = 0; t < T; t++) {
        memcpy(out, q + t * HD, (size_t)HD * sizeof *q);
        out += HD;
        from_dtype(a.kv_dtype, rows, c->row, out);
        rows += kk_dtype_size(a.kv_dtype, c->row);
        out += c->row;
    }
    free(q);
}

static void rotate(const struct kk_qkv_args *a, int t, double *x)
{
    const float *cs = a->rope + (int64_t)a->pos[t] * a->R * 2;
    for (int r = 0; r < a->R; r++) {
        double u = x[r], v = x[r + a->D / 2], c = (double)cs[2 * r], s = (double)cs[2 * r + 1];
        x[r] = u * c - v * s;
        x[r + a->D / 2] = v * c + u * s;
    }
}

static void ref_qkv(const void *p, int t, const float *got, double *want)
{
    const struct qkv_case *c = p;
    const struct kk_qkv_args *a = &c->a;
    const int D = a->D, HD = a->H * D, GD = a->G * D;
    (void)got;
    for (int i = 0; i < HD; i++) want[i] = (double)c->q[(int64_t)t * HD + i];
    for (int h = 0; h < a->H; h++) {
        if (a->q_norm) rms(D, want + h * D, a->q_norm, (double)a->eps, want + h * D);
        rotate(a, t, want + h * D);
    }
    double *k = want + HD, *v = a->value_only ? k : k + GD;
    const float *from = a->value_only ? a->k : a->v;
    for (int g = 0; g < a->G; g++) {
        for (int d = 0; d < D; d++) {
            k[g * D + d] = (double)a->k[(int64_t)t * GD + g * D + d];
            v[g * D + d] = (double)from[(int64_t)t * GD + g * D + d];
        }
        if (!a->raw_value) rms(D, v + g * D, NULL, (double)a->eps, v + g * D);
        if (a->value_only) continue;
        if (a->k_norm) rms(D, k + g * D, a->k_norm, (double)a->eps, k + g * D);
        rotate(a, t, k + g * D);
    }
}

static void test_qkv(void **state)
{
    (void)state;
    static const enum kk_dtype types[] = {KK_F32, KK_BF16, KK_Q8_0};
    static const double tol[] = {1e-5, 4e-3, 6e-3}; /* half a step of the type */
    for (int n = 0; n < 54; n++) {
        struct qkv_case c;
        const int type = n % 3, value_only = n / 3 % 2;
        int T = between(1, n % 4 ? 10 : 80), D = 2 * between(1, 48);
        if (types[type] == KK_Q8_0) D = 32 * between(1, 3);
        int R = between(0, D / 2), G = between(1, 3), H = G * between(n % 5 != 0, 4);
        int32_t pos[80];
        for (int t = 0; t < T; t++) pos[t] = between(0, 99);
        float *k = normals((int64_t)T * G * D, 1), *v = normals((int64_t)T * G * D, 1);
        float *q_norm = normals(D, 1), *k_norm = normals(D, 1), *rope = normals(100 * 2 * R, 0.7f);
        c.q = normals((int64_t)T * H * D, 1);
        c.row = G * D * (value_only ? 1 : 2);
        c.a = (struct kk_qkv_args){.H = H,
                                   .G = G,
                                   .D = D,
                                   .R = R,
                                   .value_only = value_only,
                                   .raw_value = !value_only && n % 3 == 0,
                                   .k = k,
                                   .v = v,
                                   .q_norm = n % 9 == 4 ? NULL : q_norm,
                                   .k_norm = !value_only && n % 9 > 6 ? NULL : k_norm,
                                   .eps = 1e-6f,
                                   .pos = pos,
                                   .rope = rope,
                                   .kv_dtype = types[type]};
        check_op(&(struct check){"qkv", T, H * D + c.row, tol[type], run_qkv, ref_qkv}, &c);
        free(k);
        free(v);
        free(q_norm);
        free(k_norm);
        free(rope);
        free(c.q);
    }
}

/* ---- experts ---- */

struct moe_case {
    int E, A, C, F;
    enum kk_activation act;
    float *x, *expert_scale, *weight;
    int32_t *idx;
    struct weight w, gate_up, down;
};

/* A row of output: the experts, then their weights. */
static void run_route(const void *p, int i, int t0, int t1, float *out)
{
    const struct moe_case *c = p;
    int32_t idx[80 * 8];
    float weight[80 * 8];
    devs[i]->ops->route(devs[i], &(struct kk_route_args){.T = t1 - t0,
                                                         .E = c->E,
                                                         .A = c->A,
                                                         .x = c->x + (int64_t)t0 * c->C,
                                                         .w = &c->w.w[i],
                                                         .expert_scale = c->expert_scale,
                                                         .idx = idx,
                                                         .weight = weight});
    for (int t = 0; t < t1 - t0; t++, out += 2 * c->A)
        for (int k = 0; k < c->A; k++) {
            out[k] = (float)idx[t * c->A + k];
            out[c->A + k] = weight[t * c->A + k];
        }
}

/* The oracle's choice must be the best, in order, up to rounding; the weights follow from it. */
static void ref_route(const void *p, int t, const float *got, double *want)
{
    const struct moe_case *c = p;
    double e[64], sum = 0, last = INFINITY, rest = 0;
    for (int i = 0; i < c->E; i++) e[i] = exp(dot(&c->w, i, c->x + (int64_t)t * c->C));
    for (int k = 0; k < c->A; k++) {
        int i = (int)got[k];
        assert_in_range(i, 0, c->E - 1);
        assert_true(e[i] > 0 && e[i] <= last * (1 + 1e-5));
        want[k] = i;
        want[c->A + k] = e[i];
        sum += last = e[i];
        e[i] = 0;
    }
    for (int i = 0; i < c->E; i++) rest = fmax(rest, e[i]);
    assert_true(rest <= last * (1 + 1e-5));
    for (int k = 0; k < c->A; k++) want[c->A + k] *= (double)c->expert_scale[(int)got[k]] / sum;
}

static void run_moe(const void *p, int i, int t0, int t1, float *out)
{
    const struct moe_case *c = p;
    devs[i]->ops->moe(devs[i], &(struct kk_moe_args){.T = t1 - t0,
                                                     .E = c->E,
                                                     .A = c->A,
                                                     .act = c->act,
                                                     .x = c->x + (int64_t)t0 * c->C,
                                                     .idx = c->idx + t0 * c->A,
                                                     .weight = c->weight + t0 * c->A,
                                                     .gate_up = &c->gate_up.w[i],
                                                     .down = &c->down.w[i],
                                                     .y = out});
}

static void ref_moe(const void *p, int t, const float *got, double *want)
{
    const struct moe_case *c = p;
    const float *x = c->x + (int64_t)t * c->C;
    float y[160];
    (void)got;
    for (int i = 0; i < c->C; i++) want[i] = 0;
    for (int k = 0; k < c->A; k++) {
        int64_t e = c->idx[t * c->A + k];
        for (int f = 0; f < c->F; f++)
            y[f] = (float)(activate(c->act, dot(&c->gate_up, e * 2 * c->F + f, x)) *
                           dot(&c->gate_up, (e * 2 + 1) * c->F + f, x));
        for (int i = 0; i < c->C; i++)
            want[i] += (double)c->weight[t * c->A + k] * dot(&c->down, e * c->C + i, y);
    }
}

static void choose_experts(struct moe_case *c, int T)
{
    for (int t = 0; t < T; t++)
        for (int k = 0; k < c->A; k++) {
            int e, again;
            do {
                e = between(0, 2) ? between(0, c->E - 1) : between(0, c->A - 1);
                again = 0;
                for (int i = 0; i < k; i++) again |= c->idx[t * c->A + i] == e;
            } while (again);
            c->idx[t * c->A + k] = e;
        }
}

static void test_experts(void **state)
{
    (void)state;
    for (int n = 0; n < 16; n++) {
        int32_t idx[80 * 8];
        struct moe_case c = {.idx = idx, .act = n % 2 ? KK_SILU : KK_GELU_TANH};
        int T = between(1, n % 3 ? 8 : 80);
        c.A = between(1, 8);
        c.E = between(c.A, 24);
        c.C = n % 5 == 1 ? 256 : any_width(1, n % 3 ? 200 : 60);
        c.F = any_width(1, n % 3 ? 160 : 40);
        c.x = normals((int64_t)T * c.C, 1.5f);
        c.expert_scale = normals(c.E, 1);
        c.weight = normals(T * c.A, 1);
        choose_experts(&c, T);
        make_weight(&c.w, any_dtype(c.C), 1, c.E, c.C);
        make_weight(&c.gate_up, any_dtype(c.C), c.E, 2 * c.F, c.C);
        make_weight(&c.down, any_dtype(c.F), c.E, c.C, c.F);
        check_op(&(struct check){"route", T, 2 * c.A, 1e-5, run_route, ref_route}, &c);
        /* the input of down is rounded: one that is close to a half may go either way */
        const int twice = kk_dtype_is_block(c.down.src.dtype) && block_act == KK_ACT_Q8;
        check_op(&(struct check){"moe", T, c.C, twice ? 1e-2 : 3e-5, run_moe, ref_moe}, &c);
        free_weight(&c.w);
        free_weight(&c.gate_up);
        free_weight(&c.down);
        free(c.x);
        free(c.expert_scale);
        free(c.weight);
    }
}

/* Equal experts: the lowest indices win. */
static void test_route_ties(void **state)
{
    (void)state;
    for (int i = 0; i < n_devs; i++) {
        struct weight w;
        float x[4] = {0}, scale[20], weight[3];
        int32_t idx[3];
        for (int e = 0; e < 20; e++) scale[e] = 3;
        make_weight(&w, KK_F32, 1, 20, 4);
        devs[i]->ops->route(devs[i], &(struct kk_route_args){.T = 1,
                                                             .E = 20,
                                                             .A = 3,
                                                             .x = x,
                                                             .w = &w.w[i],
                                                             .expert_scale = scale,
                                                             .idx = idx,
                                                             .weight = weight});
        for (int k = 0; k < 3; k++) {
            assert_int_equal(idx[k], k);
            assert_true(fabsf(weight[k] - 1) < 1e-6f);
        }
        free_weight(&w);
    }
}

/* ---- gather, argmax ---- */

static void test_gather_argmax(void **state)
{
    (void)state;
    for (int n = 0; n < 12; n++) {
        int T = between(1, 9), C = between(1, n % 3 ? 100 : 70000);
        const int stride = C + (n % 4 ? 0 : 3);
        float *x = normals((int64_t)T * C, 1), *y = malloc((size_t)(T * stride) * sizeof *y);
        int32_t rows[9], best[9];
        for (int t = 0; t < T; t++) {
            rows[t] = between(0, T - 1);
            if (n % 2) x[(int64_t)t * C + between(0, C - 1)] = 9; /* ties */
            if (n % 2) x[(int64_t)t * C + between(0, C - 1)] = 9;
        }
        for (int i = 0; i < n_devs; i++) {
            struct kk_gather_args g = {.n = T, .C = C, .rows = n % 2 ? rows : NULL, .src = x};
            g.dst = y;
            g.stride = n % 4 && n % 3 ? 0 : stride;
            devs[i]->ops->gather(devs[i], &g);
            for (int t = 0; t < T; t++)
                assert_memory_equal(y + (int64_t)t * stride, x + (int64_t)(n % 2 ? rows[t] : t) * C,
                                    (size_t)C * sizeof *x);
            devs[i]->ops->argmax(devs[i],
                                 &(struct kk_argmax_args){.T = T, .n = C, .x = x, .out = best});
            for (int t = 0; t < T; t++) {
                const float *row = x + (int64_t)t * C;
                for (int j = 0; j < best[t]; j++) assert_true(row[j] < row[best[t]]);
                for (int j = best[t]; j < C; j++) assert_true(row[j] <= row[best[t]]);
            }
        }
        free(x);
        free(y);
    }
}

/* ---- the device ---- */

static void test_open(void **state)
{
    (void)state;
    struct kk_dev *d = NULL;
    struct kk_err err = {0};
    KK_ASSERT_FAILS(kk_dev_open_cpu("avx1024", 1, &d, &err), KK_EUNSUPPORTED, &err, "scalar");
    KK_ASSERT_FAILS(kk_dev_open_cpu("auto", 1000, &d, &err), KK_EINVAL, &err, "1000 threads");
    KK_ASSERT_OK(kk_dev_open_cpu("auto", 2, &d, &err), &err);
    assert_int_equal(d->n_threads, 2);
    assert_string_equal(d->isa, devs[n_devs - 1]->isa);
    kk_dev_close(d);
    kk_dev_close(NULL);
}

static void test_memory(void **state)
{
    (void)state;
    struct kk_account acc = {.name = "test"};
    struct kk_err err = {0};
    struct kk_dev *d = devs[0];
    const size_t sizes[] = {0, 1, 4096, (2 << 20) - 1, 2 << 20, (5 << 20) + 3};
    void *p[6];
    int64_t total = 0;
    for (int i = 0; i < 6; i++) {
        KK_ASSERT_OK(kk_dev_alloc(d, &acc, sizes[i], &p[i], &err), &err);
        assert_true(!p[i] == !sizes[i] && (uintptr_t)p[i] % 64 == 0);
        for (size_t k = 0; k < sizes[i]; k++) assert_int_equal(((char *)p[i])[k], 0);
        if (p[i]) memset(p[i], 1, sizes[i]);
        total += (int64_t)sizes[i];
        assert_int_equal(atomic_load(&acc.bytes), total);
    }
    for (int i = 0; i < 6; i++) kk_dev_free(d, &acc, p[i], sizes[i]);
    assert_int_equal(atomic_load(&acc.bytes), 0);
    assert_int_equal(atomic_load(&acc.peak), total);
    for (int i = 0; i < 2; i++) {
        kk_mem_fail_after(1);
        KK_ASSERT_FAILS(kk_dev_alloc(d, &acc, i ? 3 << 20 : 100, &p[0], &err), KK_ENOMEM, &err,
                        i ? "3145728 bytes for test" : "100 bytes for test");
        kk_mem_fail_after(0);
    }
    KK_ASSERT_OK(d->ops->reserve(d, &dev_limits, &acc, &err), &err); /* replaces the first */
    assert_int_equal(atomic_load(&acc.bytes), d->ops->reserve_bytes(d, &dev_limits));
    KK_ASSERT_OK(d->ops->reserve(d, &dev_limits, &scratch_account, &err), &err);
    assert_int_equal(atomic_load(&acc.bytes), 0);
}

static void count_rest(const void *ctx)
{
    ++*(int *)(uintptr_t)ctx;
}

/* Small weights share memory, which lasts as long as one of them; a large one says now and then
 * that what it has read can go. */
static void test_weights(void **state)
{
    (void)state;
    enum { N = 40, ROWS = 256, COLS = 1024 }; /* a megabyte each: more than one chunk */
    struct kk_account acc = {.name = "test"};
    struct kk_err err = {0};
    struct kk_dev *d = devs[0];
    struct kk_weight w[N], big;
    int rests = 0;
    float *from = normals((int64_t)ROWS * COLS, 1), *large = calloc((size_t)24 << 18, 4);
    struct kk_weight_src src = {KK_F32, 1, ROWS, COLS, from, NULL, NULL, NULL, NULL};
    for (int i = 0; i < N; i++) KK_ASSERT_OK(d->ops->weight_load(d, &src, &acc, &w[i], &err), &err);
    assert_int_equal(atomic_load(&acc.bytes), N * ROWS * COLS * 4);
    for (int i = 0; i < N; i += 2) kk_weight_free(d, &w[i]);
    for (int i = 1; i < N; i += 2) {
        assert_int_equal((uintptr_t)w[i].data % 64, 0);
        for (int k = 0; k < COLS; k += 37) /* panel[k][16] of rows 16 to 31 */
            for (int l = 0; l < 16; l++)
                assert_true(((float *)w[i].data)[(COLS + k) * 16 + l] == from[(16 + l) * COLS + k]);
        kk_weight_free(d, &w[i]);
    }
    src = (struct kk_weight_src){KK_F32, 1, 6 * 1024, 1024, large, &rests, NULL, NULL, count_rest};
    KK_ASSERT_OK(d->ops->weight_load(d, &src, &acc, &big, &err), &err);
    assert_in_range(rests, 3, 4); /* 24 MB */
    kk_weight_free(d, &big);
    assert_int_equal(atomic_load(&acc.bytes), 0);
    free(from);
    free(large);
}

static void test_broken_blocks(void **state)
{
    (void)state;
    struct kk_account acc = {.name = "test"};
    struct kk_err err = {0};
    struct kk_weight w;
    const struct kk_weight_src src = {KK_Q4_K, 1, 16, 640, "", NULL, NULL, NULL, NULL};
    KK_ASSERT_FAILS(devs[0]->ops->weight_load(devs[0], &src, &acc, &w, &err), KK_EFORMAT, &err,
                    "640 inputs are not whole blocks of q4_k, which hold 256");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_embed),      cmocka_unit_test(test_embed_out_of_range),
        cmocka_unit_test(test_norm),       cmocka_unit_test(test_residual),
        cmocka_unit_test(test_linear),     cmocka_unit_test(test_glu),
        cmocka_unit_test(test_qkv),        cmocka_unit_test(test_experts),
        cmocka_unit_test(test_route_ties), cmocka_unit_test(test_gather_argmax),
        cmocka_unit_test(test_open),       cmocka_unit_test(test_memory),
        cmocka_unit_test(test_weights),    cmocka_unit_test(test_broken_blocks)};
    const struct CMUnitTest f32_act[] = {cmocka_unit_test(test_linear), cmocka_unit_test(test_glu),
                                         cmocka_unit_test(test_experts)};
    rng = kk_test_rng("ops");
    int failed = cmocka_run_group_tests(tests, open_devs, close_devs);
    block_act = KK_ACT_F32;
    return failed + cmocka_run_group_tests(f32_act, open_devs, close_devs);
}
