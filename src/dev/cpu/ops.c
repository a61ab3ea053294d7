/* The CPU device: its vtable, memory, and the ops that are a loop over rows. */
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>

#include "base/mem.h"
#include "dev/cpu/cpu_int.h"

void kk__cpu_latch(struct kk_cpu *c, const char *fmt, ...)
{
    if (c->latched.code) return;
    va_list ap;
    va_start(ap, fmt);
    c->latched.code = KK_EDEVICE;
    vsnprintf(c->latched.msg, sizeof c->latched.msg, fmt, ap);
    va_end(ap);
}

/* ---- memory
 * --------------------------------------------------------------------------------------- */

enum { BIG = 1 << 20 }; /* from here on: pages of its own, huge where the system has them */

static void *cpu_alloc(struct kk_dev *d, size_t bytes)
{
    (void)d;
    if (bytes < BIG) {
        void *p = kk_aligned(64, (bytes + 63) / 64 * 64);
        if (p) memset(p, 0, bytes);
        return p;
    }
    void *p = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (p == MAP_FAILED) return NULL;
    madvise(p, bytes, MADV_HUGEPAGE);
    return p;
}

static void cpu_free(struct kk_dev *d, void *p, size_t bytes)
{
    (void)d;
    if (bytes < BIG)
        kk_free(p);
    else
        munmap(p, bytes);
}

static void cpu_copy(struct kk_dev *d, void *dst, const void *src, size_t bytes)
{
    (void)d;
    memcpy(dst, src, bytes);
}

static void cpu_close(struct kk_dev *d)
{
    struct kk_cpu *c = kk_cpu_of(d);
    kk_dev_free(d, c->scratch_account, c->scratch, c->scratch_bytes);
    kk_pool_close(c->pool);
    kk_free(c);
}

static void cpu_step_begin(struct kk_dev *d)
{
    kk_cpu_of(d)->latched.code = 0;
    kk_pool_begin(kk_cpu_of(d)->pool);
}

static int cpu_step_end(struct kk_dev *d, struct kk_err *err)
{
    struct kk_cpu *c = kk_cpu_of(d);
    kk_pool_end(c->pool);
    return c->latched.code ? kk_fail(err, c->latched.code, "%s", c->latched.msg) : 0;
}

/* ---- loops over rows
 * ------------------------------------------------------------------------------ */

struct row_job {
    struct kk_cpu *c;
    const void *args;
};

/* Below this many floats a fork costs more than it saves. */
enum { SMALL = 8192 };

static void over_rows(struct kk_dev *d, int T, int64_t width, kk__cpu_work *fn, const void *args)
{
    struct row_job j = {kk_cpu_of(d), args};
    if (T == 1 || T * width < SMALL)
        fn(&j, 0, 1);
    else
        kk_pool_run(j.c->pool, fn, &j);
}

static void norm_worker(void *arg, int worker, int n)
{
    const struct row_job *j = arg;
    const struct kk_norm_args *a = j->args;
    int64_t t, end;
    kk__cpu_range(a->T, 1, worker, n, &t, &end);
    for (; t < end; t++)
        j->c->k->norm(a->C, a->x + t * a->C, a->w, a->eps, (float *)a->y + t * a->C);
}

static void cpu_norm(struct kk_dev *d, const struct kk_norm_args *a)
{
    over_rows(d, a->T, a->C, norm_worker, a);
}

/* One row of the residual stream. The sublayer's rows a[0], a[1] are scratch from here on. */
static void residual_row(const struct kk_cpu_kern *k, const struct kk_residual_args *a, int64_t t)
{
    const int C = a->C;
    float *h = a->h + t * C, *x = (float *)(size_t)a->a[0] + t * C;
    if (a->n_in == 2) {
        float *x2 = (float *)(size_t)a->a[1] + t * C;
        k->norm(C, x, a->w_in[0], a->eps, x);
        k->norm(C, x2, a->w_in[1], a->eps, x2);
        k->add(C, x, x2, x);
    }
    k->norm(C, x, a->w_post, a->eps, x);
    k->add_scale(C, x, a->scale, h);
    for (int i = 0; i < a->n_out; i++) k->norm(C, h, a->w_out[i], a->eps, (float *)a->y[i] + t * C);
}

static void residual_worker(void *arg, int worker, int n)
{
    const struct row_job *j = arg;
    const struct kk_residual_args *a = j->args;
    int64_t t, end;
    kk__cpu_range(a->T, 1, worker, n, &t, &end);
    for (; t < end; t++) residual_row(j->c->k, a, t);
}

static void cpu_residual(struct kk_dev *d, const struct kk_residual_args *a)
{
    over_rows(d, a->T, a->C, residual_worker, a);
}

static void gather_worker(void *arg, int worker, int n)
{
    const struct row_job *j = arg;
    const struct kk_gather_args *a = j->args;
    int64_t i, end;
    kk__cpu_range(a->n, 1, worker, n, &i, &end);
    for (; i < end; i++)
        memcpy(a->dst + i * a->C, a->src + (a->rows ? a->rows[i] : i) * a->C,
               (size_t)a->C * sizeof(float));
}

static void cpu_gather(struct kk_dev *d, const struct kk_gather_args *a)
{
    over_rows(d, a->n, a->C, gather_worker, a);
}

static void argmax_worker(void *arg, int worker, int n)
{
    const struct row_job *j = arg;
    const struct kk_argmax_args *a = j->args;
    int64_t t, end;
    kk__cpu_range(a->T, 1, worker, n, &t, &end);
    for (; t < end; t++) a->out[t] = (int32_t)j->c->k->argmax(a->n, a->x + t * a->n);
}

static void cpu_argmax(struct kk_dev *d, const struct kk_argmax_args *a)
{
    over_rows(d, a->T, a->n, argmax_worker, a);
}

/* ---- the device
 * ----------------------------------------------------------------------------------- */

static const struct kk_ops cpu_ops = {
    .alloc = cpu_alloc,
    .free = cpu_free,
    .upload = cpu_copy,
    .download = cpu_copy,
    .weight_load = kk__cpu_weight_load,
    .weight_bytes = kk__cpu_weight_bytes,
    .reserve = kk__cpu_reserve,
    .reserve_bytes = kk__cpu_reserve_bytes,
    .close = cpu_close,
    .step_begin = cpu_step_begin,
    .step_end = cpu_step_end,
    .embed = kk__cpu_embed,
    .norm = cpu_norm,
    .linear = kk__cpu_linear,
    .qkv = kk__cpu_qkv,
    .attn = kk__cpu_attn,
    .residual = cpu_residual,
    .glu = kk__cpu_glu,
    .route = kk__cpu_route,
    .moe = kk__cpu_moe,
    .gather = cpu_gather,
    .argmax = cpu_argmax,
    .kv_store = kk__cpu_kv_store,
};

int kk__cpu_open(const struct kk_cpu_kern *k, int threads, struct kk_dev **out, struct kk_err *err)
{
    struct kk_cpu *c = kk_calloc(1, sizeof *c);
    if (!c) return kk_fail(err, KK_ENOMEM, "out of memory for the CPU device");
    int rc = kk_pool_open(threads, &c->pool, err);
    if (rc) {
        kk_free(c);
        return rc;
    }
    c->k = k;
    c->dev.ops = &cpu_ops;
    c->dev.n_threads = kk_pool_threads(c->pool);
    c->dev.attn_split = KK_CPU_SPLIT;
    c->dev.act = KK_F32;
    c->dev.tables.name = "device scratch";
    snprintf(c->dev.isa, sizeof c->dev.isa, "%s", k->isa);
    snprintf(c->dev.name, sizeof c->dev.name, "cpu %s, %d thread%s", k->isa, c->dev.n_threads,
             c->dev.n_threads == 1 ? "" : "s");
    kk_dev_check(&c->dev);
    *out = &c->dev;
    return 0;
}
