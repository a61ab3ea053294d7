/* Merges by pair: the table that vocab.c fills and bpe.c asks, for every pair of every text. */
#ifndef KK_TOK_MERGE_INT_H
#define KK_TOK_MERGE_INT_H

#include "tok/tok_int.h"

static inline uint32_t kk__pair_hash(uint64_t key)
{
    return (uint32_t)((key * 0x9e3779b97f4a7c15u) >> 32);
}

/* Where the merge of this key is, or would be. */
static inline uint32_t kk__merge_slot(const struct kk_tok *t, uint64_t key)
{
    uint32_t i = (uint32_t)((uint64_t)kk__pair_hash(key) * t->merge_slots >> 32);
    while (t->merge[i].key != key && t->merge[i].key != UINT64_MAX)
        i = i + 1 < t->merge_slots ? i + 1 : 0;
    return i;
}

/* 0: no merge can ever reach over the boundary between the symbols a and b. */
static inline int kk__may_join(const struct kk_tok *t, uint32_t a, uint32_t b)
{
    uint32_t i = kk__pair_hash((uint64_t)a << 32 | b) & t->joint_mask;
    return t->joint[i >> 6] >> (i & 63) & 1;
}

static inline const struct tok_merge *kk__merge_find(const struct kk_tok *t, uint32_t a, uint32_t b)
{
    const struct tok_merge *m = &t->merge[kk__merge_slot(t, (uint64_t)a << 32 | b)];
    return m->key == UINT64_MAX ? NULL : m;
}

#endif
