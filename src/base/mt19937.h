/* Python's random.Random(seed), bit for bit: MT19937 seeded by init_by_array, and CPython's integer
 * draws over it (rejection, never a modulus). For datasets that must equal the reference's;
 * anything else uses the counter hash of rng.h. */
#ifndef KK_BASE_MT19937_H
#define KK_BASE_MT19937_H

#include <stddef.h>
#include <stdint.h>

struct kk_mt19937 {
    uint32_t state[624];
    int at; /* next word of state; 624: all used */
};

void kk_mt_seed(struct kk_mt19937 *r, uint64_t seed); /* random.Random(seed) */
uint32_t kk_mt_u32(struct kk_mt19937 *r);             /* getrandbits(32) */

/* getrandbits(bits), bits in 1..32. */
uint32_t kk_mt_bits(struct kk_mt19937 *r, int bits);

/* randrange(n), n >= 1: also choice() of n things. n = 1 still draws, as Python does. */
uint32_t kk_mt_below(struct kk_mt19937 *r, uint32_t n);

/* randint(lo, hi), both included, lo <= hi and hi - lo < 2^31. */
int kk_mt_between(struct kk_mt19937 *r, int lo, int hi);

/* shuffle() of n values. */
void kk_mt_shuffle(struct kk_mt19937 *r, uint32_t *v, size_t n);

#endif
