/* Random weights from a counter hash: docs/formats/synth.md. tools/synth.py makes the same bits. */
#include <string.h>

#include "base/rng.h"
#include "file/file_int.h"

enum synth_kind { KIND_WEIGHT, KIND_NORM, KIND_ONE };

/* What kk_tensor.synth_kind holds: value = base + sum * 2^-shift, where base is 2^(18 - shift) for
 * KIND_NORM, else 0. */
static uint64_t pack(enum synth_kind kind, int shift)
{
    return (uint64_t)kind | (uint64_t)shift << 8;
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
    t->synthetic = 1;
    t->synth_key = kk_mix64(kk_fnv1a(n, strlen(n)) ^ kk_mix64(seed));
    if (ends_with(n, "layer_scalar") || ends_with(n, "per_expert_scale"))
        t->synth_kind = pack(KIND_ONE, 0);
    else if (ends_with(n, "k_norm.weight"))
        t->synth_kind = pack(KIND_NORM, 18 + half_log2(t->shape[0]));
    else if (ends_with(n, "norm.weight") || ends_with(n, "router.scale") ||
             (strstr(n, "layernorm") && ends_with(n, ".weight")))
        t->synth_kind = pack(KIND_NORM, 18);
    else if (t->rank >= 2)
        t->synth_kind = pack(KIND_WEIGHT, 15 + half_log2(t->shape[t->rank - 1]));
    else
        t->synth_kind = pack(KIND_WEIGHT, 22);
}

int kk_tensor_synth(const struct kk_tensor *t, struct kk_synth *rule)
{
    uint32_t kind = t->synth_kind & 255, shift = t->synth_kind >> 8 & 255;
    uint32_t bits = (127 - shift) << 23; /* 2^-shift */
    if (!t->synthetic) return 0;
    *rule =
        (struct kk_synth){.key = t->synth_key, .base = kind == KIND_NORM ? 1 << 18 : 0, .mask = -1};
    if (kind == KIND_ONE) rule->base = 1, rule->mask = 0;
    memcpy(&rule->scale, &bits, 4);
    return 1;
}

void kk__synth_read(const struct kk_tensor *t, uint64_t first, uint64_t n, void *dst)
{
    struct kk_synth r;
    KK_BUG_ON(!kk_tensor_synth(t, &r));
    uint16_t *d16 = dst;
    float *d32 = dst;
    switch (t->dtype) {
    case KK_F32:
        for (uint64_t i = 0; i < n; i++) d32[i] = kk_synth_at(&r, first + i);
        break;
    case KK_BF16:
        for (uint64_t i = 0; i < n; i++) d16[i] = kk_f32_to_bf16(kk_synth_at(&r, first + i));
        break;
    case KK_F16:
        for (uint64_t i = 0; i < n; i++) d16[i] = kk_f32_to_f16(kk_synth_at(&r, first + i));
        break;
    default:
        KK_BUG_ON(1); /* open refuses other types */
    }
}
