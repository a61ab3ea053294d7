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

/* value = (base + (sum & mask)) * scale: at most 19 bits times a power of two, exact in f32. */
struct rule {
    uint64_t key;
    int32_t base, mask;
    float scale;
};

static struct rule rule_of(const struct kk_tensor *t)
{
    uint32_t kind = t->synth_kind & 255, shift = t->synth_kind >> 8 & 255;
    uint32_t bits = (127 - shift) << 23; /* 2^-shift */
    struct rule r = {.key = t->synth_key, .base = kind == KIND_NORM ? 1 << 18 : 0, .mask = -1};
    if (kind == KIND_ONE) r.base = 1, r.mask = 0;
    memcpy(&r.scale, &bits, 4);
    return r;
}

static inline float element(struct rule r, uint64_t i)
{
    uint64_t w = kk_rng_at(r.key, i);
    int32_t sum = (int32_t)(w & 65535) + (int32_t)(w >> 16 & 65535) + (int32_t)(w >> 32 & 65535) +
                  (int32_t)(w >> 48) - 131070;
    return (float)(r.base + (sum & r.mask)) * r.scale;
}

void kk__synth_read(const struct kk_tensor *t, uint64_t first, uint64_t n, void *dst)
{
    struct rule r = rule_of(t);
    uint16_t *d16 = dst;
    float *d32 = dst;
    switch (t->dtype) {
    case KK_F32:
        for (uint64_t i = 0; i < n; i++) d32[i] = element(r, first + i);
        break;
    case KK_BF16:
        for (uint64_t i = 0; i < n; i++) d16[i] = kk_f32_to_bf16(element(r, first + i));
        break;
    case KK_F16:
        for (uint64_t i = 0; i < n; i++) d16[i] = kk_f32_to_f16(element(r, first + i));
        break;
    default:
        KK_BUG_ON(1); /* open refuses other types */
    }
}
