/* Writing GGUF images byte by byte, good and bad. */
#ifndef KK_TEST_GGUF_IMAGE_H
#define KK_TEST_GGUF_IMAGE_H

#include "unit/file/model_dir.h"

#include "base/fs.h"
#include "base/mem.h"

enum { G_U8, G_I8, G_U16, G_I16, G_U32, G_I32, G_F32, G_BOOL, G_STR, G_ARR, G_U64, G_I64, G_F64 };

/* Keys and tensor descriptions are collected apart, then joined with the counts and the data. */
struct image {
    struct kk_buf keys, tensors;
    uint64_t n_keys, n_tensors, data_len;
    uint64_t align;
};

static inline void image_init(struct image *g)
{
    *g = (struct image){.align = 32};
    kk_buf_init(&g->keys, 1 << 20);
    kk_buf_init(&g->tensors, 1 << 20);
}

static inline void image_release(struct image *g)
{
    kk_buf_release(&g->keys);
    kk_buf_release(&g->tensors);
}

static inline void put_raw(struct kk_buf *b, const void *p, size_t n)
{
    assert_int_equal(kk_buf_append(b, p, n), 0);
}

static inline void put_le(struct kk_buf *b, uint64_t v, int bytes)
{
    for (int i = 0; i < bytes; i++) put_raw(b, &(unsigned char){(unsigned char)(v >> (8 * i))}, 1);
}

static inline void put_str(struct kk_buf *b, const char *s)
{
    put_le(b, strlen(s), 8);
    put_raw(b, s, strlen(s));
}

static inline void key_head(struct image *g, const char *key, int type)
{
    g->n_keys++;
    put_str(&g->keys, key);
    put_le(&g->keys, (uint64_t)type, 4);
}

static inline void key_u32(struct image *g, const char *key, uint32_t v)
{
    key_head(g, key, G_U32);
    put_le(&g->keys, v, 4);
}

static inline void key_f32(struct image *g, const char *key, float f)
{
    uint32_t u;
    memcpy(&u, &f, 4);
    key_head(g, key, G_F32);
    put_le(&g->keys, u, 4);
}

static inline void key_bool(struct image *g, const char *key, int v)
{
    key_head(g, key, G_BOOL);
    put_le(&g->keys, (uint64_t)v, 1);
}

static inline void key_str(struct image *g, const char *key, const char *s)
{
    key_head(g, key, G_STR);
    put_str(&g->keys, s);
}

static inline void key_list(struct image *g, const char *key, int type, uint64_t n)
{
    key_head(g, key, G_ARR);
    put_le(&g->keys, (uint64_t)type, 4);
    put_le(&g->keys, n, 8);
}

/* A tensor at `offset`; sizes fastest first, ended by 0. */
static inline void tensor_at(struct image *g, const char *name, uint32_t type, const uint64_t *size,
                             uint64_t offset)
{
    int rank = 0;
    while (size[rank]) rank++;
    g->n_tensors++;
    put_str(&g->tensors, name);
    put_le(&g->tensors, (uint64_t)rank, 4);
    for (int i = 0; i < rank; i++) put_le(&g->tensors, size[i], 8);
    put_le(&g->tensors, type, 4);
    put_le(&g->tensors, offset, 8);
}

/* The next tensor, of `bytes` bytes. */
static inline void tensor(struct image *g, const char *name, uint32_t type, const uint64_t *size,
                          uint64_t bytes)
{
    tensor_at(g, name, type, size, g->data_len);
    g->data_len += (bytes + g->align - 1) / g->align * g->align;
}
#define SIZE(...) ((const uint64_t[]){__VA_ARGS__, 0})

/* The file: data bytes are 0, 1, 2, .. modulo 251. Free with kk_free. */
static inline unsigned char *image_bytes(const struct image *g, size_t *len)
{
    struct kk_buf b;
    kk_buf_init(&b, 1 << 22);
    put_raw(&b, "GGUF", 4);
    put_le(&b, 3, 4);
    put_le(&b, g->n_tensors, 8);
    put_le(&b, g->n_keys, 8);
    if (g->keys.len) put_raw(&b, g->keys.data, g->keys.len);
    if (g->tensors.len) put_raw(&b, g->tensors.data, g->tensors.len);
    while (b.len % g->align) put_le(&b, 0, 1);
    for (uint64_t i = 0; i < g->data_len; i++) put_le(&b, i % 251, 1);
    unsigned char *out = kk_aligned(64, (b.len + 63) & ~(size_t)63);
    assert_non_null(out);
    memcpy(out, b.data, b.len);
    *len = b.len;
    kk_buf_release(&b);
    return out;
}

/* Keys of a Llama of one layer: C 32, 2 heads of 16, F 64. */
static inline void llama_keys(struct image *g)
{
    key_str(g, "general.architecture", "llama");
    key_u32(g, "llama.block_count", 1);
    key_u32(g, "llama.context_length", 128);
    key_u32(g, "llama.embedding_length", 32);
    key_u32(g, "llama.feed_forward_length", 64);
    key_u32(g, "llama.attention.head_count", 2);
    key_f32(g, "llama.attention.layer_norm_rms_epsilon", 1e-5f);
}

static inline void llama_tensors(struct image *g)
{
    tensor(g, "token_embd.weight", 8, SIZE(32, 5), 5 * 34);        /* Q8_0 */
    tensor(g, "blk.0.attn_q.weight", 2, SIZE(32, 32), 32 * 18);    /* Q4_0 */
    tensor(g, "blk.0.attn_k.weight", 30, SIZE(32, 32), 32 * 64);   /* BF16 */
    tensor(g, "blk.0.attn_v.weight", 1, SIZE(32, 32), 32 * 64);    /* F16 */
    tensor(g, "blk.0.attn_norm.weight", 0, SIZE(32), 128);         /* F32 */
    tensor(g, "blk.0.ffn_down.weight", 14, SIZE(256, 2), 2 * 210); /* Q6_K, too wide: not its job */
}

#endif
