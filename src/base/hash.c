#include "base/hash.h"

#include <string.h>

#include "base/rng.h"

#define STRIPE 32

static const uint64_t odd[4] = {0x9e3779b97f4a7c15u, 0xbf58476d1ce4e5b9u, 0x94d049bb133111ebu,
                                0xd6e8feb86659fd93u};

void kk_hash_init(struct kk_hash *h, uint64_t seed)
{
    *h = (struct kk_hash){.total = 0};
    for (int i = 0; i < 4; i++) h->lane[i] = kk_mix64(seed + odd[i]);
}

static void stripe(struct kk_hash *h, const unsigned char *p)
{
    for (int i = 0; i < 4; i++) {
        uint64_t w;
        memcpy(&w, p + i * 8, 8);
        uint64_t x = (h->lane[i] ^ w) * odd[i];
        h->lane[i] = x << 29 | x >> 35;
    }
}

void kk_hash_add(struct kk_hash *h, const void *p, size_t n)
{
    const unsigned char *s = p;
    size_t held = (size_t)(h->total % STRIPE);
    h->total += n;
    if (held) {
        size_t k = n < STRIPE - held ? n : STRIPE - held;
        memcpy(h->rest + held, s, k);
        if (held + k < STRIPE) return;
        stripe(h, h->rest);
        s += k;
        n -= k;
    }
    for (; n >= STRIPE; n -= STRIPE, s += STRIPE) stripe(h, s);
    if (n) memcpy(h->rest, s, n);
}

uint64_t kk_hash_value(const struct kk_hash *h)
{
    struct kk_hash end = *h;
    size_t held = (size_t)(h->total % STRIPE);
    memset(end.rest + held, 0, STRIPE - held);
    stripe(&end, end.rest);
    uint64_t v = kk_mix64(h->total);
    for (int i = 0; i < 4; i++) v = kk_mix64(v ^ end.lane[i]);
    return v;
}
