/* Opening the CPU device: which instruction sets the machine has, and which table runs. Compiled
 * without flags of any of them. KK_X86: the build has the x86 tables (mk/config.mk). */
#ifdef KK_X86
#include <cpuid.h>
#endif
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include "base/mem.h"
#include "dev/cpu/cpu_int.h"

/* Best first. */
#ifdef KK_X86
static int has_avx512(void)
{
    return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
           __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq");
}
static int has_bf16(void)
{
    return has_avx512() && __builtin_cpu_supports("avx512vnni") &&
           __builtin_cpu_supports("avx512bf16");
}
static int has_vnni(void)
{
    return has_avx512() && __builtin_cpu_supports("avx512vnni");
}
/* clang 14's builtin does not know it; avx2 answers for the operating system. */
static int has_f16c(void)
{
    unsigned a, b, c, d;
    return __get_cpuid(1, &a, &b, &c, &d) && (c & bit_F16C);
}
static int has_avx2(void)
{
    return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && has_f16c();
}
#endif
static int has_scalar(void)
{
    return 1;
}

/* Of two with one name, the first that the machine has. */
static const struct table {
    const struct kk_cpu_kern *kern;
    const struct kk_cpu_q8 *q8;
    int (*has)(void);
} tables[] = {
#ifdef KK_X86
    {&kk__kern_avx512_bf16, &kk__q8_vnni, has_bf16}, {&kk__kern_avx512, &kk__q8_vnni, has_vnni},
    {&kk__kern_avx512, &kk__q8_avx512, has_avx512},  {&kk__kern_avx2, &kk__q8_avx2, has_avx2},
#endif
    {&kk__kern_scalar, &kk__q8_scalar, has_scalar},
};
enum { N_TABLES = sizeof tables / sizeof *tables };

static int pick(const char *isa, const struct table **out, struct kk_err *err)
{
    char list[64] = "";
    for (int i = 0; i < N_TABLES; i++) {
        if (!tables[i].has()) continue;
        if (!strcmp(isa, "auto") || !strcmp(isa, tables[i].kern->isa)) {
            *out = &tables[i];
            return 0;
        }
        if (i && !strcmp(tables[i].kern->isa, tables[i - 1].kern->isa) && tables[i - 1].has())
            continue;
        size_t n = strlen(list);
        snprintf(list + n, sizeof list - n, "%s%s", n ? ", " : "", tables[i].kern->isa);
    }
    return kk_fail(err, KK_EUNSUPPORTED, "instruction set '%s': this machine has %s; or use auto",
                   isa, list);
}

void kk__cpu_latch(struct kk_cpu *c, int code, const char *fmt, ...)
{
    if (c->latched.code) return;
    va_list ap;
    va_start(ap, fmt);
    c->latched.code = code;
    vsnprintf(c->latched.msg, sizeof c->latched.msg, fmt, ap);
    va_end(ap);
}

static void step_begin(struct kk_dev *dev)
{
    kk__cpu(dev)->latched.code = 0;
    kk_pool_begin(kk__cpu(dev)->pool);
}

static int step_end(struct kk_dev *dev, struct kk_err *err)
{
    struct kk_cpu *c = kk__cpu(dev);
    kk_pool_end(c->pool);
    int code = c->latched.code;
    if (!code) return 0;
    c->latched.code = 0;
    return kk_fail(err, code, "%s", c->latched.msg);
}

static void copy(struct kk_dev *dev, void *dst, const void *src, size_t bytes)
{
    (void)dev;
    if (bytes) memcpy(dst, src, bytes);
}

static size_t free_bytes(struct kk_dev *dev)
{
    (void)dev;
    return 0; /* the system's to give */
}

static void *host_alloc(struct kk_dev *dev, size_t bytes)
{
    (void)dev;
    return kk_malloc(bytes);
}

static void host_free(struct kk_dev *dev, void *p, size_t bytes)
{
    (void)dev, (void)bytes;
    kk_free(p);
}

/* A CPU has no engine for copies: they are done at once (kv/tier.c has a thread instead). */
static int64_t stage(struct kk_dev *dev, int n, void *const *dst, const void *const *src,
                     const size_t *bytes)
{
    for (int i = 0; i < n; i++) copy(dev, dst[i], src[i], bytes[i]);
    return 0;
}

static void stage_wait(struct kk_dev *dev, int64_t batch)
{
    (void)dev, (void)batch;
}

static void stage_free(struct kk_dev *dev)
{
    (void)dev;
}

static void close_cpu(struct kk_dev *dev)
{
    struct kk_cpu *c = kk__cpu(dev);
    if (c->s.base) kk_dev_free(dev, c->s.account, c->s.base, c->s.bytes);
    kk_pool_close(c->pool);
    kk_free(c);
}

static const struct kk_ops cpu_ops = {
    .alloc = kk__cpu_alloc,
    .free = kk__cpu_free,
    .free_bytes = free_bytes,
    .host_alloc = host_alloc,
    .host_free = host_free,
    .upload = copy,
    .download = copy,
    .copy = copy,
    .page_out = copy,
    .stage = stage,
    .stage_wait = stage_wait,
    .stage_free = stage_free,
    .weight_load = kk__cpu_weight_load,
    .weight_bytes = kk__cpu_weight_bytes,
    .reserve = kk__cpu_reserve,
    .reserve_bytes = kk__cpu_reserve_bytes,
    .close = close_cpu,
    .step_begin = step_begin,
    .step_end = step_end,
    .step_pass = step_end,
    .embed = kk__cpu_embed,
    .norm = kk__cpu_norm,
    .linear = kk__cpu_linear,
    .qkv = kk__cpu_qkv,
    .attn = kk__cpu_attn,
    .residual = kk__cpu_residual,
    .glu = kk__cpu_glu,
    .route = kk__cpu_route,
    .moe = kk__cpu_moe,
    .gather = kk__cpu_gather,
    .argmax = kk__cpu_argmax,
    .kv_store = kk__cpu_kv_store,
    .convert = kk__cpu_convert,
    .winner = kk__cpu_winner,
};

int kk_dev_open_cpu(const char *isa, int threads, struct kk_dev **out, struct kk_err *err)
{
    const struct table *table = NULL;
    int rc = pick(isa, &table, err);
    if (rc) return rc;
    struct kk_cpu *c = kk_calloc(1, sizeof *c);
    if (!c) return kk_fail(err, KK_ENOMEM, "out of memory for a device");
    rc = kk_pool_open(threads, &c->pool, err);
    if (rc) {
        kk_free(c);
        return rc;
    }
    c->kern = table->kern;
    c->q8 = table->q8;
    c->dev.ops = &cpu_ops;
    c->dev.n_threads = kk_pool_threads(c->pool);
    c->dev.unified = 1;
    c->dev.attn_split = KK_CPU_SPLIT;
    c->dev.act = KK_F32;
    c->dev.q8_rows = 1;
    c->dev.tables.name = "device scratch";
    snprintf(c->dev.isa, sizeof c->dev.isa, "%s", c->kern->isa);
    snprintf(c->dev.name, sizeof c->dev.name, "cpu %s, %d thread%s", c->kern->isa, c->dev.n_threads,
             c->dev.n_threads == 1 ? "" : "s");
    kk_dev_check(&c->dev);
    *out = &c->dev;
    return 0;
}
