/* Random weights from a counter hash: docs/formats/synth.md. tools/synth.py makes the same bits. */
#include <string.h>

#include "base/rng.h"
#include "file/file_int.h"

enum synth_kind { KIND_WEIGHT, KIND_NORM, KIND_K_NORM, KIND_ONE, KIND_BIAS };

/* Exponents are packed beside the kind: value = base + sum * 2^-shift. */
static uint64_t pack(enum synth_kind kind, int shift, int base_shift)
{
    return (uint64_t)kind | (uint64_t)shift << 8 | (uint64_t)base_shift << 16;
}

static int ends_with(const char *s, const char *tail)
{
    size_t n = strlen(s), k = strlen(tail);
    return n >= k && !strcmp(s + n - k, tail);
}

/* Smallest e with 4^e >= n: 2^-e is near n^-0.5, by integers alone. */
static int half_log2(uint64_t n)
{
    int e = 0;
    while (e < 31 && (uint64_t)1 << (2 * e) < n) e++;
    return e;
}

void kk__synth_describe(uint64_t seed, struct kk_tensor *t)
{
    const char *n = t->name;
    t->synth_key = kk_mix64(kk_fnv1a(n, strlen(n)) ^ kk_mix64(seed));
    if (ends_with(n, "layer_scalar") || ends_with(n, "per_expert_scale"))
        t->synth_kind = pack(KIND_ONE, 0, 0);
    else if (ends_with(n, "k_norm.weight"))
        t->synth_kind = pack(KIND_K_NORM, 18, half_log2(t->shape[0]));
    else if (ends_with(n, "norm.weight") || ends_with(n, "router.scale") ||
             (strstr(n, "layernorm") && ends_with(n, ".weight")))
        t->synth_kind = pack(KIND_NORM, 18, 0);
    else if (t->rank >= 2)
        t->synth_kind = pack(KIND_WEIGHT, 15 + half_log2(t->shape[t->rank - 1]), 0);
    else
        t->synth_kind = pack(KIND_BIAS, 22, 0);
}

/* The element as an exact f32: |sum| < 2^18, so sum and 1 + sum * 2^-18 have at most 19 bits. */
static float element(const struct kk_tensor *t, uint64_t i)
{
    uint64_t w = kk_rng_at(t->synth_key, i);
    int32_t sum = (int32_t)(w & 65535) + (int32_t)(w >> 16 & 65535) + (int32_t)(w >> 32 & 65535) +
                  (int32_t)(w >> 48) - 131070;
    int shift = (int)(t->synth_kind >> 8 & 255), base = (int)(t->synth_kind >> 16 & 255);
    switch ((enum synth_kind)(t->synth_kind & 255)) {
    case KIND_ONE:
        return 1.0f;
    case KIND_NORM:
    case KIND_K_NORM:
        return __builtin_ldexpf((float)((1 << 18) + sum), -18 - base);
    default:
        return __builtin_ldexpf((float)sum, -shift);
    }
}

/* Round to nearest even; every synth value is a normal f16 or a multiple of 2^-24 near zero. */
static uint16_t f32_to_f16(float f)
{
    uint32_t u;
    memcpy(&u, &f, 4);
    uint32_t sign = u >> 16 & 0x8000, exp = u >> 23 & 255, man = (u & 0x7fffff) | 0x800000;
    if ((u & 0x7fffffff) == 0) return (uint16_t)sign;
    int drop = exp >= 113 ? 13 : 13 + (113 - (int)exp); /* bits below an f16 step */
    if (drop > 24) return (uint16_t)sign;
    uint32_t half = man + (((uint32_t)1 << (drop - 1)) - 1) + (man >> drop & 1);
    uint32_t q = half >> drop; /* includes the hidden bit when normal */
    uint32_t e = exp >= 113 ? (exp - 113) << 10 : 0;
    return (uint16_t)(sign | (e + q));
}

void kk__synth_read(const struct kk_tensor *t, uint64_t first, uint64_t n, void *dst)
{
    for (uint64_t i = 0; i < n; i++) {
        float f = element(t, first + i);
        if (t->dtype == KK_F32)
            ((float *)dst)[i] = f;
        else if (t->dtype == KK_BF16)
            ((uint16_t *)dst)[i] = kk_f32_to_bf16(f);
        else
            ((uint16_t *)dst)[i] = f32_to_f16(f);
    }
}
