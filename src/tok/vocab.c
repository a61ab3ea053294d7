/* The vocabulary: texts, ids and merges, each in one open-addressing table. */
#include <stdio.h>
#include <string.h>

#include "base/mem.h"
#include "base/rng.h"
#include "tok/merge_int.h"

/* The power of two that keeps a table of n entries at most half full, less one. */
static uint32_t mask_for(size_t n)
{
    uint32_t cap = 16;
    while (cap < 2 * n) cap *= 2;
    return cap - 1;
}

int kk__vocab_init(struct kk_tok *t, uint32_t size, size_t n_tokens, struct kk_err *err)
{
    t->size = size;
    t->slot_mask = mask_for(n_tokens);
    t->ent = kk_calloc(size, sizeof *t->ent);
    t->slot = kk_array((size_t)t->slot_mask + 1, sizeof *t->slot);
    if (!t->ent || !t->slot) return kk_fail(err, KK_ENOMEM, "out of memory");
    memset(t->slot, 0xff, ((size_t)t->slot_mask + 1) * sizeof *t->slot);
    return 0;
}

/* The slot that holds text, or the empty one where it belongs. */
static uint32_t *slot_of(const struct kk_tok *t, const void *text, size_t len)
{
    uint64_t h = kk_mix64(kk_fnv1a(text, len));
    for (uint32_t i = (uint32_t)h & t->slot_mask;; i = (i + 1) & t->slot_mask) {
        uint32_t id = t->slot[i];
        if (id == KK_TOK_NONE) return &t->slot[i];
        struct tok_span s = t->ent[id].text;
        if (s.len == len && !memcmp(t->blob.data + s.off, text, len)) return &t->slot[i];
    }
}

/* A model token, or an added one, which may name a model token again with the same id. */
int kk__vocab_add(struct kk_tok *t, uint32_t id, const char *text, size_t len, uint32_t flags,
                  struct kk_err *err)
{
    char q[64], q2[64];
    struct tok_ent *e = &t->ent[id];
    uint32_t *slot = slot_of(t, text, len);
    if (*slot != KK_TOK_NONE && *slot != id)
        return kk_fail(err, KK_EFORMAT, "token '%s' has two ids, %u and %u",
                       kk__quote(q, text, len), (unsigned)*slot, (unsigned)id);
    if (*slot == id && (e->flags & ENT_ADDED))
        return kk_fail(err, KK_EFORMAT, "added token '%s' is listed twice",
                       kk__quote(q, text, len));
    if (*slot != id && e->flags)
        return kk_fail(err, KK_EFORMAT, "id %u belongs to two tokens, '%s' and '%s'", (unsigned)id,
                       kk__quote(q, t->blob.data + e->text.off, e->text.len),
                       kk__quote(q2, text, len));
    e->flags |= flags;
    if (*slot == id) return 0;
    *slot = id;
    e->text = (struct tok_span){(uint32_t)t->blob.len, (uint32_t)len};
    e->shown = e->text;
    if (len > t->max_len) t->max_len = (uint32_t)len;
    int rc = kk_buf_append(&t->blob, text, len);
    if (!rc) rc = kk_buf_putc(&t->blob, 0);
    return kk__buf_err(rc, err);
}

uint32_t kk__vocab_find(const struct kk_tok *t, const void *text, size_t len, uint32_t want)
{
    uint32_t id = *slot_of(t, text, len);
    return id != KK_TOK_NONE && (t->ent[id].flags & want) == want ? id : KK_TOK_NONE;
}

int kk__vocab_tables(struct kk_tok *t, struct kk_err *err)
{
    t->char_id = kk_array(65536, sizeof *t->char_id);
    if (!t->char_id) return kk_fail(err, KK_ENOMEM, "out of memory");
    memset(t->char_id, 0xff, 65536 * sizeof *t->char_id);
    for (uint32_t id = 0; id < t->size; id++) {
        struct tok_span s = t->ent[id].text;
        const u8 *p = (const u8 *)t->blob.data + s.off;
        uint32_t cp;
        if (!(t->ent[id].flags & ENT_MODEL) || !s.len) continue;
        if (kk__utf8_get(p, &cp) == s.len && cp < 65536) t->char_id[cp] = id;
    }
    for (int b = 0; b < 256; b++) {
        char name[8];
        t->byte_id[b] = t->char_id[kk__byte_char((u8)b)];
        snprintf(name, sizeof name, "<0x%02X>", (unsigned)b);
        t->fallback[b] = kk__vocab_find(t, name, 6, ENT_MODEL);
    }
    return 0;
}

int kk__merge_init(struct kk_tok *t, size_t n, struct kk_err *err)
{
    t->merge_slots = (uint32_t)(n + n / 2 + 16);
    t->merge = kk_array(t->merge_slots, sizeof *t->merge);
    if (!t->merge) return kk_fail(err, KK_ENOMEM, "out of memory");
    memset(t->merge, 0xff, (size_t)t->merge_slots * sizeof *t->merge);
    t->joint_mask = mask_for(8 * n + 64);
    t->joint = kk_calloc(((size_t)t->joint_mask + 1) / 64, sizeof *t->joint);
    if (!t->joint) return kk_fail(err, KK_ENOMEM, "out of memory");
    for (int b = 0; b < 256; b++)
        if (t->fallback[b] != KK_TOK_NONE) t->ent[t->fallback[b]].flags |= ENT_ATOM;
    if (t->unk != KK_TOK_NONE) t->ent[t->unk].flags |= ENT_ATOM;
    return 0;
}

/* Id of the one-character token at p. */
static uint32_t char_token(const struct kk_tok *t, const u8 *p)
{
    uint32_t cp;
    unsigned n = kk__utf8_get(p, &cp);
    return cp < 65536 ? t->char_id[cp] : kk__vocab_find(t, p, n, ENT_MODEL);
}

/* A merge of a and b joins the last character of a to the first of b. A byte token or the unknown
 * token is a symbol that is no character: a merge of one (none is known) ends the use of cuts. */
static void note_joint(struct kk_tok *t, uint32_t a, uint32_t b)
{
    const u8 *p = (const u8 *)t->blob.data + t->ent[a].text.off;
    size_t at = t->ent[a].text.len;
    if (((t->ent[a].flags | t->ent[b].flags) & ENT_ATOM) || !at) t->no_cuts = 1;
    while (at && (p[--at] & 0xc0) == 0x80) {
    }
    uint32_t x = char_token(t, p + at);
    uint32_t y = char_token(t, (const u8 *)t->blob.data + t->ent[b].text.off);
    uint32_t i = kk__pair_hash((uint64_t)x << 32 | y) & t->joint_mask;
    t->joint[i >> 6] |= (uint64_t)1 << (i & 63);
}

/* A pair listed twice keeps its last rank, as in the oracle. */
void kk__merge_add(struct kk_tok *t, uint32_t a, uint32_t b, uint32_t rank, uint32_t id)
{
    const uint64_t key = (uint64_t)a << 32 | b;
    t->merge[kk__merge_slot(t, key)] = (struct tok_merge){key, rank, id};
    note_joint(t, a, b);
}
