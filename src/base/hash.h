/* A fast 64-bit checksum of a byte stream: damage, not attack. The same bytes give the same value
 * however they are cut. Four multiply-rotate lanes over 32-byte stripes, mixed at the end. */
#ifndef KK_BASE_HASH_H
#define KK_BASE_HASH_H

#include <stddef.h>
#include <stdint.h>

struct kk_hash {
    uint64_t lane[4], total;
    unsigned char rest[32]; /* total % 32 bytes that do not fill a stripe yet */
};

void kk_hash_init(struct kk_hash *h, uint64_t seed);
void kk_hash_add(struct kk_hash *h, const void *p, size_t n);
uint64_t kk_hash_value(const struct kk_hash *h); /* so far; adding may go on */

static inline uint64_t kk_hash64(const void *p, size_t n, uint64_t seed)
{
    struct kk_hash h;
    kk_hash_init(&h, seed);
    kk_hash_add(&h, p, n);
    return kk_hash_value(&h);
}

#endif
