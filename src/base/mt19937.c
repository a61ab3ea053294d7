#include "base/mt19937.h"

#include "base/err.h"

#define N 624
#define M 397

static void init_genrand(uint32_t *s, uint32_t seed)
{
    s[0] = seed;
    for (uint32_t i = 1; i < N; i++) s[i] = 1812433253u * (s[i - 1] ^ s[i - 1] >> 30) + i;
}

/* Matsumoto and Nishimura's init_by_array; the key is the seed's 32-bit words, low word first. */
void kk_mt_seed(struct kk_mt19937 *r, uint64_t seed)
{
    uint32_t key[2] = {(uint32_t)seed, (uint32_t)(seed >> 32)}, *s = r->state;
    uint32_t n_key = key[1] ? 2 : 1, i = 1, j = 0;
    init_genrand(s, 19650218u);
    for (int k = 0; k < N; k++) {
        s[i] = (s[i] ^ (s[i - 1] ^ s[i - 1] >> 30) * 1664525u) + key[j] + j;
        if (++i == N) s[0] = s[N - 1], i = 1;
        if (++j == n_key) j = 0;
    }
    for (int k = 0; k < N - 1; k++) {
        s[i] = (s[i] ^ (s[i - 1] ^ s[i - 1] >> 30) * 1566083941u) - i;
        if (++i == N) s[0] = s[N - 1], i = 1;
    }
    s[0] = 0x80000000u;
    r->at = N;
}

static void refill(struct kk_mt19937 *r)
{
    uint32_t *s = r->state;
    for (int i = 0; i < N; i++) {
        uint32_t y = (s[i] & 0x80000000u) | (s[(i + 1) % N] & 0x7fffffffu);
        s[i] = s[(i + M) % N] ^ y >> 1 ^ (y & 1 ? 0x9908b0dfu : 0);
    }
    r->at = 0;
}

uint32_t kk_mt_u32(struct kk_mt19937 *r)
{
    if (r->at == N) refill(r);
    uint32_t y = r->state[r->at++];
    y ^= y >> 11;
    y ^= y << 7 & 0x9d2c5680u;
    y ^= y << 15 & 0xefc60000u;
    return y ^ y >> 18;
}

uint32_t kk_mt_bits(struct kk_mt19937 *r, int bits)
{
    KK_BUG_ON(bits < 1 || bits > 32);
    return kk_mt_u32(r) >> (32 - bits);
}

uint32_t kk_mt_below(struct kk_mt19937 *r, uint32_t n)
{
    KK_BUG_ON(n < 1);
    int bits = 32 - __builtin_clz(n); /* n.bit_length(), so 1 bit for n = 1 */
    uint32_t v;
    do {
        v = kk_mt_bits(r, bits);
    } while (v >= n);
    return v;
}

int kk_mt_between(struct kk_mt19937 *r, int lo, int hi)
{
    KK_BUG_ON(lo > hi);
    return lo + (int)kk_mt_below(r, (uint32_t)hi - (uint32_t)lo + 1);
}

void kk_mt_shuffle(struct kk_mt19937 *r, uint32_t *v, size_t n)
{
    for (size_t i = n; i-- > 1;) {
        size_t j = kk_mt_below(r, (uint32_t)i + 1);
        uint32_t t = v[i];
        v[i] = v[j];
        v[j] = t;
    }
}
