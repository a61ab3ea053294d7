/* The ops that go row by row: embed, norm, residual, qkv, gather, argmax, kv_store. */
#include <string.h>

#include "dev/cpu/cpu_int.h"

#define NS(elements) ((elements) / 8 + 20) /* guess: nanoseconds over so many floats */

/* ---- embed ---- */

static void embed_blocks(const struct kk_weight *w, int64_t n, float scale, float *h)
{
    for (int64_t g = 0; g < w->cols / KK_GROUP; g++, h += KK_GROUP) {
        struct kk_quant_group group;
        kk_q_unpack(w->dtype, kk__panel(w, 0, n / KK_LANES), w->cols, g, (int)(n % KK_LANES),
                    &group);
        kk_quant_values(w->dtype, &group, h);
        for (int k = 0; k < KK_GROUP; k++) h[k] *= scale;
    }
}

/* Row n of a packed matrix, times scale */
static void embed_row(const struct kk_weight *w, int64_t n, float scale, float *h)
{
    const void *panel = kk__panel(w, 0, n / KK_LANES);
    const int64_t lane = n % KK_LANES;
    const uint16_t *half = panel;
    if (kk_dtype_is_block(w->dtype))
        embed_blocks(w, n, scale, h);
    else if (w->dtype == KK_F32)
        for (int64_t k = 0; k < w->cols; k++)
            h[k] = ((const float *)panel)[k * KK_LANES + lane] * scale;
    else if (w->dtype == KK_F16)
        for (int64_t k = 0; k < w->cols; k++)
            h[k] = kk_f16_to_f32(half[k * KK_LANES + lane]) * scale;
    else
        for (int64_t k = 0; k < w->cols; k++)
            h[k] = kk_bf16_to_f32(half[(k / 2 * KK_LANES + lane) * 2 + k % 2]) * scale;
}

static void embed_rows(struct kk_cpu *c, const void *args, int64_t lo, int64_t hi, int worker)
{
    const struct kk_embed_args *a = args;
    const int64_t C = a->table->cols;
    (void)c, (void)worker;
    for (int64_t t = lo; t < hi; t++) {
        if (a->ids[t] >= 0 && a->ids[t] < a->table->rows)
            embed_row(a->table, a->ids[t], a->scale, a->h + t * C);
        else
            memset(a->h + t * C, 0, (size_t)C * sizeof(float));
    }
}

void kk__cpu_embed(struct kk_dev *dev, const struct kk_embed_args *a)
{
    struct kk_cpu *c = kk__cpu(dev);
    for (int t = 0; t < a->T; t++)
        if (a->ids[t] < 0 || a->ids[t] >= a->table->rows)
            kk__cpu_latch(c, KK_ERANGE, "embed: id %d of %lld rows", (int)a->ids[t],
                          (long long)a->table->rows);
    kk__cpu_rows(c, a->T, NS(8 * a->table->cols), embed_rows, a);
}

/* ---- norm, residual ---- */

static void norm_rows(struct kk_cpu *c, const void *args, int64_t lo, int64_t hi, int worker)
{
    const struct kk_norm_args *a = args;
    (void)worker;
    for (int64_t t = lo; t < hi; t++)
        c->kern->norm(a->C, a->x + t * a->C, a->w, a->eps, (float *)a->y + t * a->C);
}

void kk__cpu_norm(struct kk_dev *dev, const struct kk_norm_args *a)
{
    kk__cpu_rows(kk__cpu(dev), a->T, NS(a->C), norm_rows, a);
}

static void residual_rows(struct kk_cpu *c, const void *args, int64_t lo, int64_t hi, int worker)
{
    const struct kk_residual_args *a = args;
    const struct kk_cpu_kern *k = c->kern;
    const int C = a->C;
    float *x = kk__cpu_scratch(c, worker), *x2 = x + ((C + 15) & ~15);
    for (int64_t t = lo; t < hi; t++) {
        const float *in = a->a[0] + t * C;
        float *h = a->h + t * C;
        if (a->n_in == 2) {
            k->norm(C, a->a[0] + t * C, a->w_in[0], a->eps, x);
            k->norm(C, a->a[1] + t * C, a->w_in[1], a->eps, x2);
            k->add(C, x, x2, x);
            in = x;
        }
        if (!a->plain) {
            k->norm(C, in, a->w_post, a->eps, x);
            in = x;
        }
        k->add_scale(C, in, a->scale, h);
        for (int i = 0; i < a->n_out; i++)
            k->norm(C, h, a->w_out[i], a->eps, (float *)a->y[i] + t * C);
    }
}

void kk__cpu_residual(struct kk_dev *dev, const struct kk_residual_args *a)
{
    KK_BUG_ON(a->n_in < 1 || a->n_in > 2 || a->n_out < 0 || a->n_out > 3);
    kk__cpu_rows(kk__cpu(dev), a->T, NS((int64_t)a->C * (2 + 2 * a->n_in + a->n_out)),
                 residual_rows, a);
}

/* ---- qkv ---- */

/* The stored row of one token and KV head */
static void write_kv(const struct kk_cpu_kern *k, const struct kk_qkv_args *a, int64_t t, int g,
                     const float *cs, float *tmp)
{
    const int D = a->D, GD = a->G * D, type = kk_row_type(a->kv_dtype);
    const int64_t head = (int64_t)kk_dtype_size(a->kv_dtype, D), half = a->G * head;
    char *row = (char *)a->rows + t * half * (a->value_only ? 1 : 2);
    const float *v = (a->value_only ? a->k : a->v) + t * GD + g * D;
    char *v_row = row + (a->value_only ? 0 : half) + g * head;
    if (!a->value_only) {
        const float *from = a->k + t * GD + g * D;
        if (a->k_norm)
            k->norm(D, from, a->k_norm, a->eps, tmp);
        else
            memcpy(tmp, from, (size_t)D * sizeof *tmp);
        k->rope(D, a->R, cs, tmp);
        k->store[type](D, tmp, row + g * head);
    }
    if (a->raw_value) {
        k->store[type](D, v, v_row);
        return;
    }
    k->norm(D, v, NULL, a->eps, tmp);
    k->store[type](D, tmp, v_row);
}

static void qkv_rows(struct kk_cpu *c, const void *args, int64_t lo, int64_t hi, int worker)
{
    const struct kk_qkv_args *a = args;
    const int heads = a->H + a->G;
    float *tmp = kk__cpu_scratch(c, worker);
    for (int64_t i = lo; i < hi; i++) {
        const int64_t t = i / heads;
        const int h = (int)(i % heads);
        const float *cs = a->rope + (int64_t)a->pos[t] * a->R * 2;
        if (h < a->H) {
            float *q = a->q + (t * a->H + h) * a->D;
            if (a->q_norm) c->kern->norm(a->D, q, a->q_norm, a->eps, q);
            c->kern->rope(a->D, a->R, cs, q);
        } else {
            write_kv(c->kern, a, t, h - a->H, cs, tmp);
        }
    }
}

void kk__cpu_qkv(struct kk_dev *dev, const struct kk_qkv_args *a)
{
    KK_BUG_ON(a->value_only && !a->k_norm);
    kk__cpu_rows(kk__cpu(dev), (int64_t)a->T * (a->H + a->G), NS(2 * a->D), qkv_rows, a);
}

/* ---- gather ---- */

static void gather_rows(struct kk_cpu *c, const void *args, int64_t lo, int64_t hi, int worker)
{
    const struct kk_gather_args *a = args;
    (void)c, (void)worker;
    for (int64_t i = lo; i < hi; i++)
        memcpy(a->dst + i * (a->stride ? a->stride : a->C),
               a->src + (int64_t)(a->rows ? a->rows[i] : i) * a->C, (size_t)a->C * sizeof(float));
}

void kk__cpu_gather(struct kk_dev *dev, const struct kk_gather_args *a)
{
    kk__cpu_rows(kk__cpu(dev), a->n, NS(a->C), gather_rows, a);
}

/* ---- argmax: blocks of one size whatever the threads ---- */

enum { ARGMAX_BLOCK = 16 * 1024, ARGMAX_MOST = 64 };

struct argmax_job {
    struct kk_cpu *c;
    const float *x;
    int64_t n, block;
    int64_t best[ARGMAX_MOST];
};

static void argmax_item(void *arg, int item, int worker)
{
    struct argmax_job *j = arg;
    int64_t first = item * j->block;
    (void)worker;
    j->best[item] = first + j->c->kern->argmax(kk__min64(j->block, j->n - first), j->x + first);
}

void kk__cpu_argmax(struct kk_dev *dev, const struct kk_argmax_args *a)
{
    struct argmax_job j = {.c = kk__cpu(dev), .n = a->n, .block = ARGMAX_BLOCK};
    while (kk__ceil_div(j.n, j.block) > ARGMAX_MOST) j.block *= 2;
    const int blocks = (int)kk__ceil_div(j.n, j.block);
    for (int t = 0; t < a->T; t++) {
        j.x = a->x + t * a->n;
        kk__cpu_for(j.c, blocks, NS(a->n), argmax_item, &j);
        int64_t best = j.best[0];
        for (int b = 1; b < blocks; b++)
            if (kk_is_larger(j.x[j.best[b]], j.x[best])) best = j.best[b];
        a->out[t] = (int32_t)best;
    }
}

/* ---- kv_store: items are sequences of layers ---- */

static void store_seqs(struct kk_cpu *c, const void *args, int64_t lo, int64_t hi, int worker)
{
    const struct kk_kv_store_args *a = args;
    (void)c, (void)worker;
    for (int64_t i = lo; i < hi; i++) {
        const struct kk_kv_seq *s = &a->seqs[i / a->B * a->stride + i % a->B];
        const int32_t end = s->row_bytes ? s->committed + a->keep[i % a->B] : 0;
        const size_t n = (size_t)s->row_bytes;
        for (int32_t j = s->committed; j < end; j++) {
            if (s->ring && j >= s->sinks && end - j > s->ring) continue; /* a newer row wins */
            memcpy(kk_kv_slot(s, j, n), kk_kv_row(s, j, n), n);
        }
    }
}

void kk__cpu_kv_store(struct kk_dev *dev, const struct kk_kv_store_args *a)
{
    int64_t rows = 0;
    for (int b = 0; b < a->B; b++) rows += a->keep[b];
    if (!rows) return;
    kk__cpu_rows(kk__cpu(dev), (int64_t)a->n_layers * a->B,
                 rows * NS(a->seqs->row_bytes / 4) / a->B, store_seqs, a);
}

/* ---- convert: for restoration ---- */

void kk__cpu_convert(struct kk_dev *dev, const struct kk_convert_args *a)
{
    const uint16_t *half = a->src;
    float *out = a->dst;
    if (a->from == a->to)
        memcpy(a->dst, a->src, (size_t)a->n * kk_dtype_bytes(a->from));
    else if (a->from == KK_BF16)
        for (int64_t i = 0; i < a->n; i++) out[i] = kk_bf16_to_f32(half[i]);
    else
        kk__cpu(dev)->kern->store[a->to]((int)a->n, a->src, a->dst);
}
