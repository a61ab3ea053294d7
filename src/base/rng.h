/* Random numbers. Two kinds: a counter hash (stateless, so any program can make the same bits in
 * any order) and Python's MT19937 (mt19937.h), needed to reproduce the reference's dataset. */
#ifndef KK_BASE_RNG_H
#define KK_BASE_RNG_H

#include <stddef.h>
#include <stdint.h>

#ifdef __CUDACC__ /* kernels make the same bits by the same code */
#define KK_ANYWHERE __host__ __device__
#else
#define KK_ANYWHERE
#endif

/* The splitmix64 finaliser (Steele, Lea, Flood 2014): a bijection of 64-bit words. */
KK_ANYWHERE static inline uint64_t kk_mix64(uint64_t z)
{
    z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9u;
    z = (z ^ z >> 27) * 0x94d049bb133111ebu;
    return z ^ z >> 31;
}

/* The i-th 64-bit word of stream `key`: splitmix64 started at key, read at position i. */
KK_ANYWHERE static inline uint64_t kk_rng_at(uint64_t key, uint64_t i)
{
    return kk_mix64(key + (i + 1) * 0x9e3779b97f4a7c15u);
}

/* A synthetic tensor (docs/formats/synth.md): element i is (base + (sum & mask)) * scale, where sum
 * is of the four 16-bit fields of word i of stream key, less its mean. At most 19 bits times a
 * power of two: exact in f32. */
struct kk_synth {
    uint64_t key;
    int32_t base, mask;
    float scale;
};

KK_ANYWHERE static inline float kk_synth_at(const struct kk_synth *r, uint64_t i)
{
    uint64_t w = kk_rng_at(r->key, i);
    int32_t sum = (int32_t)(w & 65535) + (int32_t)(w >> 16 & 65535) + (int32_t)(w >> 32 & 65535) +
                  (int32_t)(w >> 48) - 131070;
    return (float)(r->base + (sum & r->mask)) * r->scale;
}

/* FNV-1a over bytes, 64 bits: names to keys. */
static inline uint64_t kk_fnv1a(const void *p, size_t n)
{
    const unsigned char *s = (const unsigned char *)p;
    uint64_t h = 0xcbf29ce484222325u;
    for (size_t i = 0; i < n; i++) h = (h ^ s[i]) * 0x100000001b3u;
    return h;
}

/* Uniform in [0, 1) with 53 bits. */
static inline double kk_unit(uint64_t u)
{
    return (double)(u >> 11) * 0x1p-53;
}

#endif
