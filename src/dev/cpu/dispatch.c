/* Choosing an instruction set at run time. This file is built without ISA flags, so nothing of AVX
 * can run before the check. */
#include <string.h>

#include "dev/cpu/cpu_int.h"

int kk__cpu_open(const struct kk_cpu_kern *k, int threads, struct kk_dev **out, struct kk_err *err);

static int has_avx2(void)
{
#if defined(__x86_64__)
    return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
#else
    return 0;
#endif
}

static int has_avx512(void)
{
#if defined(__x86_64__)
    return has_avx2() && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
           __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq");
#else
    return 0;
#endif
}

static int always(void)
{
    return 1;
}

/* Best first. */
static const struct {
    const char *name;
    int (*has)(void);
    const struct kk_cpu_kern *kern;
} tables[] = {
#if defined(__x86_64__)
    {"avx512", has_avx512, &kk__kern_avx512},
    {"avx2", has_avx2, &kk__kern_avx2},
#endif
    {"scalar", always, &kk__kern_scalar},
};
enum { N_TABLES = sizeof tables / sizeof tables[0] };

static int refuse(const char *isa, struct kk_err *err)
{
    char have[64] = "";
    int known = 0;
    for (int i = 0; i < N_TABLES; i++) {
        known |= !strcmp(isa, tables[i].name);
        if (!tables[i].has()) continue;
        if (have[0]) strncat(have, ", ", sizeof have - strlen(have) - 1);
        strncat(have, tables[i].name, sizeof have - strlen(have) - 1);
    }
    if (known)
        return kk_fail(err, KK_EUNSUPPORTED, "this machine has no %s (it has: %s)", isa, have);
    return kk_fail(err, KK_EINVAL, "unknown instruction set '%s' (this machine has: auto, %s)", isa,
                   have);
}

int kk_dev_open_cpu(const char *isa, int threads, struct kk_dev **out, struct kk_err *err)
{
    int any = !strcmp(isa, "auto");
    for (int i = 0; i < N_TABLES; i++)
        if ((any || !strcmp(isa, tables[i].name)) && tables[i].has())
            return kk__cpu_open(tables[i].kern, threads, out, err);
    return refuse(isa, err);
}
