/* GGUF files: those that llama.cpp's converter writes give the tensors and configs of the Hugging
 * Face class; hostile ones are refused in one line; mutated ones never crash. */
#include "unit/file/gguf_image.h"

#include <math.h>

#include "base/json.h"
#include "base/quant.h"

#define MODELS "tests/golden/gguf/models/"

/* ---- against the weights that were converted ----------------------------------------------- */

static float *floats(const struct kk_tensor *t)
{
    float *y = kk_array(t->count, sizeof *y);
    assert_non_null(y);
    kk_tensor_dequant(t, 0, t->count, y);
    return y;
}

/* The tensor of the GGUF has the values that synth made. */
static void same_tensor(const struct kk_model_file *gguf, const struct kk_model_file *synth,
                        const char *name)
{
    struct kk_tensor t = {0}, want;
    struct kk_err err = {0};
    for (size_t i = 0; !t.name || strcmp(t.name, name); i++)
        if (kk_model_file_at(gguf, i, &t)) fail_msg("no tensor '%s'", name);
    KK_ASSERT_OK(kk_model_file_get(synth, name, t.rank, t.shape, &want, &err), &err);
    KK_ASSERT_OK(kk_model_file_get(gguf, name, t.rank, t.shape, &t, &err), &err);
    float *a = floats(&t), *b = floats(&want);
    for (uint64_t i = 0; i < t.count; i++)
        if (a[i] != b[i] + (t.plus_one ? 1.0f : 0.0f))
            fail_msg("'%s': number %llu is %g, expected %g", name, (unsigned long long)i,
                     (double)a[i], (double)b[i]);
    kk_free(a);
    kk_free(b);
}

/* Every key of the config that the GGUF has too says the same; those it must have, it has. */
static void same_config(const struct kk_model_file *gguf, const struct kk_model_file *hf)
{
    static const char *const must[] = {
        "architectures",       "model_type",          "vocab_size",
        "hidden_size",         "intermediate_size",   "num_attention_heads",
        "num_key_value_heads", "num_hidden_layers",   "head_dim",
        "rms_norm_eps",        "tie_word_embeddings", "max_position_embeddings"};
    const json_t *a = kk_model_file_config(gguf), *b = kk_model_file_config(hf);
    const char *key;
    json_t *v;
    for (size_t i = 0; i < sizeof must / sizeof *must; i++)
        if (!json_object_get(a, must[i])) fail_msg("no key '%s'", must[i]);
    json_object_foreach((json_t *)a, key, v)
    {
        const json_t *want = json_object_get(b, key);
        if (!want || !strcmp(key, "bos_token_id") || !strcmp(key, "eos_token_id")) continue;
        if (!json_equal(v, want))
            fail_msg("'%s': '%s' differs", kk_model_file_architecture(hf), key);
    }
    assert_string_equal(kk_model_file_architecture(gguf), kk_model_file_architecture(hf));
    assert_string_equal(kk_model_file_model_type(gguf), kk_model_file_model_type(hf));
}

static void same_model(const char *name, const char *file, const json_t *tensors, int seed)
{
    char path[200], spec[200];
    const json_t *v;
    size_t i;
    snprintf(path, sizeof path, MODELS "%s.gguf", file);
    snprintf(spec, sizeof spec, "synth:" MODELS "%s.json:%d", name, seed);
    struct kk_model_file *gguf = open_ok(path), *synth = open_ok(spec);
    assert_true(kk_model_file_is_gguf(gguf) && !kk_model_file_is_gguf(synth));
    same_config(gguf, synth);
    json_array_foreach(tensors, i, v) same_tensor(gguf, synth, json_string_value(v));
    kk_model_file_close(gguf);
    kk_model_file_close(synth);
}

static void converted_models_are_the_same(void **state)
{
    (void)state;
    struct kk_err err = {0};
    json_t *root, *v;
    const char *name;
    KK_ASSERT_OK(kk_json_load(MODELS "names.json", 1 << 20, &root, &err), &err);
    int seed = (int)json_integer_value(json_object_get(root, "seed"));
    json_t *names = json_object_get(root, "names");
    assert_int_equal(json_object_size(names), 5);
    json_object_foreach(names, name, v) same_model(name, name, v, seed);
    for (int part = 1; part <= 3; part++) { /* whichever part is named */
        char file[64];
        snprintf(file, sizeof file, "split-%05d-of-00003", part);
        same_model("llama", file, json_object_get(names, "llama"), seed);
    }
    json_decref(root);
}

static const char *rope_type(const char *file)
{
    static char type[32];
    char path[200];
    snprintf(path, sizeof path, MODELS "%s.gguf", file);
    struct kk_model_file *mf = open_ok(path);
    const char *s = json_string_value(
        json_object_get(json_object_get(kk_model_file_config(mf), "rope_scaling"), "rope_type"));
    snprintf(type, sizeof type, "%s", s ? s : "none");
    kk_model_file_close(mf);
    return type;
}

/* What a GGUF holds as a tensor of divisors, or under another name. */
static void rotary_scaling_is_found(void **state)
{
    (void)state;
    assert_string_equal(rope_type("llama3"), "llama3");
    assert_string_equal(rope_type("gemma3"), "linear");
    assert_string_equal(rope_type("llama"), "none");
}

/* ---- one image of every type ---------------------------------------------------------------- */

static unsigned char *good(size_t *len)
{
    struct image g;
    image_init(&g);
    llama_keys(&g);
    key_list(&g, "some.list", G_STR, 2);
    put_str(&g.keys, "one");
    put_str(&g.keys, "");
    key_bool(&g, "some.truth", 1);
    llama_tensors(&g);
    unsigned char *out = image_bytes(&g, len);
    image_release(&g);
    return out;
}

static struct kk_model_file *open_bytes(const void *data, size_t len)
{
    struct kk_model_file *mf = NULL;
    struct kk_err err = {0};
    KK_ASSERT_OK(kk_model_file_open_memory(data, len, &mf, &err), &err);
    return mf;
}

static void reads_blocks_and_turned_rows(void **state)
{
    (void)state;
    size_t len;
    struct kk_err err = {0};
    struct kk_tensor q, k;
    unsigned char *bytes = good(&len), raw[18 * 32], row[64];
    struct kk_model_file *mf = open_bytes(bytes, len);
    assert_int_equal(kk_model_file_count(mf), 6);
    KK_ASSERT_OK(
        kk_model_file_get(mf, "model.embed_tokens.weight", 2, (uint64_t[]){5, 32}, &q, &err), &err);
    assert_int_equal(q.dtype, KK_Q8_0);
    assert_int_equal(q.bytes, 5 * 34);
    assert_int_equal((uintptr_t)q.data % 32, 0);
    KK_ASSERT_OK(kk_model_file_get(mf, "model.layers.0.self_attn.q_proj.weight", 2,
                                   (uint64_t[]){32, 32}, &q, &err),
                 &err);
    /* Row h*16 + s*8 + r is stored as row h*16 + 2*r + s; a row is one block. */
    kk_tensor_read(&q, 0, q.count, raw);
    for (int h = 0; h < 2; h++)
        for (int s = 0; s < 2; s++)
            for (int r = 0; r < 8; r++)
                for (int b = 0; b < 18; b++) /* q begins at byte 192 of the data */
                    assert_int_equal(raw[(h * 16 + s * 8 + r) * 18 + b],
                                     (192 + (h * 16 + 2 * r + s) * 18 + b) % 251);
    KK_ASSERT_OK(kk_model_file_get(mf, "model.layers.0.self_attn.k_proj.weight", 2,
                                   (uint64_t[]){32, 32}, &k, &err),
                 &err);
    kk_tensor_read(&k, 32 + 5, 32, row); /* the end of row 1 and the beginning of row 2 */
    for (int i = 0; i < 54; i++) assert_int_equal(row[i], (768 + 2 * 64 + 10 + i) % 251);
    for (int i = 0; i < 10; i++) assert_int_equal(row[54 + i], (768 + 4 * 64 + i) % 251);
    kk_model_file_close(mf);
    kk_free(bytes);
}

/* A byte of any tensor, turned or not, and of any key of the config makes another model. */
static void fingerprints_differ(void **state)
{
    (void)state;
    size_t len, head;
    unsigned char *bytes = good(&len);
    struct kk_model_file *mf = open_bytes(bytes, len);
    uint64_t whole = kk_model_file_fingerprint(mf);
    kk_model_file_close(mf);
    head = len - 192 - 576 - 2048 - 2048 - 128 - 448; /* where the data begins */
    const size_t at[] = {head, head + 192, head + 768, head + 2816};
    for (size_t i = 0; i < sizeof at / sizeof *at; i++) {
        bytes[at[i]] ^= 1;
        mf = open_bytes(bytes, len);
        assert_true(kk_model_file_fingerprint(mf) != whole);
        kk_model_file_close(mf);
        bytes[at[i]] ^= 1;
    }
    mf = open_bytes(bytes, len);
    assert_true(kk_model_file_fingerprint(mf) == whole);
    kk_model_file_close(mf);
    kk_free(bytes);
}

static void tells_its_keys(void **state)
{
    (void)state;
    size_t len;
    const char *key;
    struct kk_buf b;
    unsigned char *bytes = good(&len);
    struct kk_model_file *mf = open_bytes(bytes, len);
    kk_buf_init(&b, 1 << 16);
    assert_int_equal(kk_model_file_meta(mf, 6, &key, &b), 0);
    assert_string_equal(key, "llama.attention.layer_norm_rms_epsilon");
    assert_string_equal(b.data, "1e-05");
    kk_buf_reset(&b);
    assert_int_equal(kk_model_file_meta(mf, 7, &key, &b), 0);
    assert_string_equal(b.data, "[\"one\", \"\"]");
    assert_int_equal(kk_model_file_meta(mf, 9, &key, &b), KK_ENOENT);
    kk_buf_release(&b);
    kk_model_file_close(mf);
    kk_free(bytes);
}

/* ---- hostile files -------------------------------------------------------------------------- */

static void fails(const void *data, size_t len, int code, const char *words)
{
    struct kk_model_file *mf = NULL;
    struct kk_err err = {0};
    KK_ASSERT_FAILS(kk_model_file_open_memory(data, len, &mf, &err), code, &err, words);
    for (const char *p = err.msg; *p; p++) assert_true((unsigned char)*p >= 32);
    assert_null(mf);
}

static void truncated_anywhere(void **state)
{
    (void)state;
    size_t len;
    unsigned char *bytes = good(&len);
    len -= 448 - 420; /* the padding after the last tensor may go */
    for (size_t n = 0; n < len; n++) {
        struct kk_model_file *mf = NULL;
        struct kk_err err = {0};
        unsigned char *exact = kk_aligned(64, n + 1); /* a read past its end is seen by ASan */
        memcpy(exact, bytes, n);
        int rc = kk_model_file_open_memory(exact, n, &mf, &err);
        if (rc != KK_EFORMAT) fail_msg("cut to %zu bytes: %d %s", n, rc, err.msg);
        kk_free(exact);
    }
    kk_free(bytes);
}

/* One thing wrong, by number; what the message must say. */
struct wrong {
    const char *what;
    void (*make)(struct image *g);
    int code;
    const char *words;
};

static void w_long_string(struct image *g)
{
    llama_keys(g);
    key_head(g, "x", G_STR);
    put_le(&g->keys, 1ull << 63, 8);
}
static void w_long_key(struct image *g)
{
    llama_keys(g);
    g->n_keys++;
    put_le(&g->keys, UINT64_MAX, 8);
}
static void w_long_list(struct image *g)
{
    llama_keys(g);
    key_list(g, "x", G_U64, 1ull << 61);
}
static void w_long_text_list(struct image *g)
{
    llama_keys(g);
    key_list(g, "x", G_STR, 1ull << 60);
}
static void w_nested(struct image *g)
{
    llama_keys(g);
    key_list(g, "x", G_ARR, 1);
}
static void w_value_type(struct image *g)
{
    llama_keys(g);
    key_head(g, "x", 13);
}
static void w_truth(struct image *g)
{
    llama_keys(g);
    key_bool(g, "x", 2);
}
static void w_key_twice(struct image *g)
{
    llama_keys(g);
    key_u32(g, "llama.block_count", 1);
}
static void w_control_key(struct image *g)
{
    llama_keys(g);
    key_u32(g, "a\nb", 1);
}
static void w_many_keys(struct image *g)
{
    llama_keys(g);
    g->n_keys = 1ull << 62;
}
static void w_many_tensors(struct image *g)
{
    llama_keys(g);
    g->n_tensors = 1ull << 60;
}
static void w_alignment(struct image *g)
{
    llama_keys(g);
    key_u32(g, "general.alignment", 48);
    llama_tensors(g);
}
static void w_alignment_zero(struct image *g)
{
    llama_keys(g);
    key_u32(g, "general.alignment", 0);
}
static void w_past_end(struct image *g)
{
    llama_keys(g);
    llama_tensors(g);
    tensor_at(g, "x", 0, SIZE(1024), g->data_len - 32);
}
static void w_far_offset(struct image *g)
{
    llama_keys(g);
    llama_tensors(g);
    tensor_at(g, "x", 0, SIZE(8), UINT64_MAX - 31);
}
static void w_odd_offset(struct image *g)
{
    llama_keys(g);
    llama_tensors(g);
    tensor_at(g, "x", 0, SIZE(1), 4);
}
static void w_overlap(struct image *g)
{
    llama_keys(g);
    llama_tensors(g);
    tensor_at(g, "x", 0, SIZE(8), 64);
}
static void w_same_place(struct image *g)
{
    llama_keys(g);
    llama_tensors(g);
    tensor_at(g, "x", 0, SIZE(8), 0);
}
static void w_tensor_twice(struct image *g)
{
    llama_keys(g);
    llama_tensors(g);
    tensor(g, "blk.0.attn_q.weight", 0, SIZE(8), 32);
}
static void w_type(struct image *g)
{
    llama_keys(g);
    tensor(g, "x", 10, SIZE(256), 84);
}
static void w_unknown_type(struct image *g)
{
    llama_keys(g);
    tensor(g, "x", 4000000000u, SIZE(256), 84);
}
static void w_part_block(struct image *g)
{
    llama_keys(g);
    tensor(g, "x", 12, SIZE(128, 4), 288);
}
static void w_no_dims(struct image *g)
{
    llama_keys(g);
    tensor(g, "x", 0, SIZE(0), 4);
}
static void w_five_dims(struct image *g)
{
    llama_keys(g);
    tensor(g, "x", 0, SIZE(1, 1, 1, 1, 1), 4);
}
static void w_zero_dim(struct image *g)
{
    llama_keys(g);
    g->n_tensors++;
    put_str(&g->tensors, "x");
    put_le(&g->tensors, 2, 4);
    put_le(&g->tensors, 8, 8);
    put_le(&g->tensors, 0, 8);
    put_le(&g->tensors, 0, 4);
    put_le(&g->tensors, 0, 8);
}
static void w_overflow(struct image *g)
{
    llama_keys(g);
    tensor(g, "x", 0, SIZE(1ull << 32, 1ull << 32), 4);
}
static void w_byte_overflow(struct image *g)
{
    llama_keys(g);
    tensor(g, "x", 0, SIZE(1ull << 62), 4);
}
static void w_no_architecture(struct image *g)
{
    llama_tensors(g);
}
static void w_architecture(struct image *g)
{
    key_str(g, "general.architecture", "mamba");
}
static void w_architecture_number(struct image *g)
{
    key_u32(g, "general.architecture", 3);
}
static void w_no_embedding(struct image *g)
{
    llama_keys(g);
}
static void w_layer_beyond(struct image *g)
{
    llama_keys(g);
    llama_tensors(g);
    tensor(g, "blk.1.attn_norm.weight", 0, SIZE(32), 128);
}
static void w_unknown_beyond(struct image *g)
{
    llama_keys(g);
    llama_tensors(g);
    tensor(g, "blk.7.surprise.weight", 0, SIZE(32), 128);
}
static void w_split_count(struct image *g)
{
    llama_keys(g);
    key_u32(g, "split.count", 3);
    llama_tensors(g);
}
static void w_split_total(struct image *g)
{
    llama_keys(g);
    key_u32(g, "split.tensors.count", 7);
    llama_tensors(g);
}

static const struct wrong wrongs[] = {
    {"string of 2^63 bytes", w_long_string, KK_EFORMAT, "key 'x' needs 9223372036854775808 bytes"},
    {"key of 2^64-1 bytes", w_long_key, KK_EFORMAT, "key needs 18446744073709551615 bytes"},
    {"list that overflows", w_long_list, KK_EFORMAT, "key 'x' has a length that overflows"},
    {"list of 2^60 texts", w_long_text_list, KK_EFORMAT, "truncated or damaged: key 'x'"},
    {"nested list", w_nested, KK_EUNSUPPORTED, "key 'x' is an array of arrays"},
    {"type of a value", w_value_type, KK_EUNSUPPORTED, "key 'x' has a value of unknown type 13"},
    {"truth of 2", w_truth, KK_EFORMAT, "neither 0 nor 1"},
    {"key twice", w_key_twice, KK_EFORMAT, "key 'llama.block_count' is there twice"},
    {"key with a line end", w_control_key, KK_EFORMAT, "key 'a?b' is no name"},
    {"2^62 keys", w_many_keys, KK_EFORMAT, "4611686018427387904 keys"},
    {"2^60 tensors", w_many_tensors, KK_EFORMAT, "1152921504606846976 tensors"},
    {"alignment 48", w_alignment, KK_EFORMAT, "'general.alignment' is 48"},
    {"alignment 0", w_alignment_zero, KK_EFORMAT, "'general.alignment' is 0"},
    {"tensor past the end", w_past_end, KK_EFORMAT, "tensor 'x' has 4096 bytes from byte"},
    {"offset near 2^64", w_far_offset, KK_EFORMAT, "truncated or damaged"},
    {"offset off alignment", w_odd_offset, KK_EFORMAT, "no multiple of the alignment 32"},
    {"overlap", w_overlap, KK_EFORMAT, "overlaps"},
    {"same place", w_same_place, KK_EFORMAT, "overlaps"},
    {"tensor twice", w_tensor_twice, KK_EFORMAT, "tensor 'blk.0.attn_q.weight' is there twice"},
    {"type not supported", w_type, KK_EUNSUPPORTED, "tensor 'x' has type 10 (Q2_K)"},
    {"type unknown", w_unknown_type, KK_EUNSUPPORTED, "type 4000000000 (unknown)"},
    {"row of half a block", w_part_block, KK_EFORMAT,
     "rows of 128 numbers, no multiple of the 256"},
    {"no dimensions", w_no_dims, KK_EFORMAT, "0 dimensions"},
    {"five dimensions", w_five_dims, KK_EFORMAT, "5 dimensions"},
    {"dimension 0", w_zero_dim, KK_EFORMAT, "tensor 'x' has a dimension of 0"},
    {"count overflows", w_overflow, KK_EFORMAT, "overflows"},
    {"bytes overflow", w_byte_overflow, KK_EFORMAT, "overflows"},
    {"no architecture", w_no_architecture, KK_EFORMAT, "'general.architecture' is missing"},
    {"architecture", w_architecture, KK_EUNSUPPORTED, "'mamba' is not supported (known: gemma3"},
    {"architecture a number", w_architecture_number, KK_EFORMAT, "is no text"},
    {"no embedding", w_no_embedding, KK_ENOENT, "'model.embed_tokens.weight' is missing"},
    {"a layer too many", w_layer_beyond, KK_EFORMAT,
     "key 'llama.block_count' is 1, but there is a tensor of layer 1"},
    {"an unknown tensor of a layer too many", w_unknown_beyond, KK_EFORMAT, "of layer 7"},
    {"one of three parts", w_split_count, KK_EFORMAT, "'split.count', of 1 by its name"},
    {"tensors of all parts", w_split_total, KK_EFORMAT,
     "'split.tensors.count' is 7, the parts have 6"},
};

static void hostile_files_are_refused(void **state)
{
    (void)state;
    for (size_t i = 0; i < sizeof wrongs / sizeof *wrongs; i++) {
        struct image g;
        size_t len;
        image_init(&g);
        wrongs[i].make(&g);
        unsigned char *bytes = image_bytes(&g, &len);
        print_message("    %s\n", wrongs[i].what);
        fails(bytes, len, wrongs[i].code, wrongs[i].words);
        image_release(&g);
        kk_free(bytes);
    }
}

static void headers(void **state)
{
    (void)state;
    size_t len;
    unsigned char *bytes = good(&len);
    fails(bytes, 0, KK_EFORMAT, "no GGUF file");
    fails("GGML\3\0\0\0", 8, KK_EFORMAT, "does not begin with \"GGUF\"");
    bytes[4] = 1;
    fails(bytes, len, KK_EUNSUPPORTED, "version 1, expected 3");
    bytes[4] = 2; /* the same but for what is not read */
    kk_model_file_close(open_bytes(bytes, len));
    memcpy(bytes + 4, "\0\0\0\3", 4);
    fails(bytes, len, KK_EUNSUPPORTED, "big-endian");
    kk_free(bytes);
    put_text("x.gguf", "no");
    open_fails(kk_test_path("model/x.gguf"), KK_EFORMAT, "no GGUF file");
    open_fails(kk_test_path("model/none.gguf"), KK_ENOENT, "cannot open");
    put("blob", "GGUF\3\0\0\0", 8); /* known by its first bytes */
    open_fails(kk_test_path("model/blob"), KK_EFORMAT, "truncated or damaged");
}

/* ---- keys that contradict each other --------------------------------------------------------- */

/* The good Llama with `key` changed or (value < 0) missing. */
static unsigned char *llama_but(const char *key, int64_t value, size_t *len)
{
    static const struct {
        const char *key;
        uint32_t value;
    } all[] = {{"llama.block_count", 1},          {"llama.context_length", 128},
               {"llama.embedding_length", 32},    {"llama.feed_forward_length", 64},
               {"llama.attention.head_count", 2}, {"llama.attention.head_count_kv", 2},
               {"llama.attention.key_length", 16}};
    struct image g;
    int found = 0;
    image_init(&g);
    key_str(&g, "general.architecture", "llama");
    for (size_t i = 0; i < sizeof all / sizeof *all; i++) {
        int is = !strcmp(all[i].key, key);
        found |= is;
        if (!is) key_u32(&g, all[i].key, all[i].value);
        if (is && value >= 0) key_u32(&g, key, (uint32_t)value);
    }
    if (!found && value >= 0) key_u32(&g, key, (uint32_t)value);
    if (strcmp(key, "llama.attention.layer_norm_rms_epsilon"))
        key_f32(&g, "llama.attention.layer_norm_rms_epsilon", 1e-5f);
    llama_tensors(&g);
    unsigned char *out = image_bytes(&g, len);
    image_release(&g);
    return out;
}

static void contradictions_name_their_key(void **state)
{
    (void)state;
    static const struct {
        const char *key;
        int64_t value;
        int code;
        const char *words;
    } t[] = {
        {"llama.block_count", -1, KK_EFORMAT, "key 'llama.block_count' is missing"},
        {"llama.block_count", 0, KK_EFORMAT, "key 'llama.block_count' is 0"},
        {"llama.block_count", 5000, KK_EFORMAT, "key 'llama.block_count' is 5000"},
        {"llama.context_length", -1, KK_EFORMAT, "key 'llama.context_length' is missing"},
        {"llama.embedding_length", 64, KK_EFORMAT, "'llama.embedding_length' is 64, but"},
        {"llama.feed_forward_length", -1, KK_EFORMAT, "'llama.feed_forward_length' is missing"},
        {"llama.attention.head_count", -1, KK_EFORMAT, "'llama.attention.head_count' is missing"},
        {"llama.attention.head_count", 3, KK_EFORMAT, "it must divide attention.head_count, 3"},
        {"llama.attention.head_count_kv", 5, KK_EFORMAT, "'llama.attention.head_count_kv' is 5"},
        {"llama.attention.key_length", 12, KK_EFORMAT, "no multiple of the head dimension 12"},
        {"llama.attention.key_length", 1, KK_EFORMAT, "'llama.attention.key_length' is 1"},
        {"llama.attention.value_length", 8, KK_EFORMAT, "'llama.attention.value_length' is 8, but"},
        {"llama.rope.dimension_count", 8, KK_EFORMAT, "'llama.rope.dimension_count' is 8, but"},
        {"llama.attention.layer_norm_rms_epsilon", -1, KK_EFORMAT, "rms_epsilon' is missing"},
        {"llama.attention.layer_norm_rms_epsilon", 2, KK_EFORMAT, "rms_epsilon' is 2, expected"},
        {"llama.vocab_size", 9, KK_EFORMAT, "'llama.vocab_size' is 9, but the embedding's rows"},
        {"llama.expert_count", 8, KK_EUNSUPPORTED, "'llama.expert_count' is 8"},
        {"llama.attention.sliding_window", 64, KK_EUNSUPPORTED, "sliding_window' is 64"},
        {"llama.rope.freq_base", 0, KK_EFORMAT, "key 'llama.rope.freq_base' is 0"},
        {"llama.rope.scaling.type", 1, KK_EFORMAT, "'llama.rope.scaling.type' is no text"},
        {"tokenizer.ggml.bos_token_id", 5, KK_EFORMAT, "'tokenizer.ggml.bos_token_id' is 5"},
        {"tokenizer.ggml.eos_token_id", 99, KK_EFORMAT, "'tokenizer.ggml.eos_token_id' is 99"},
        {"tokenizer.ggml.add_bos_token", 1, KK_EFORMAT, "neither true nor false"},
    };
    size_t len;
    unsigned char *bytes = llama_but("none", -1, &len);
    kk_model_file_close(open_bytes(bytes, len));
    kk_free(bytes);
    for (size_t i = 0; i < sizeof t / sizeof *t; i++) {
        bytes = llama_but(t[i].key, t[i].value, &len);
        fails(bytes, len, t[i].code, t[i].words);
        kk_free(bytes);
    }
}

/* A Gemma of 3 layers whose sliding layers are said by `pattern`, with one key spoilt. */
static void gemma_fails(const char *arch, const char *spoilt, int64_t value, const uint8_t *pattern,
                        uint64_t n_pattern, const char *words)
{
    static const struct {
        const char *key;
        uint32_t value;
    } all[] = {{"block_count", 3},
               {"context_length", 64},
               {"embedding_length", 32},
               {"feed_forward_length", 32},
               {"attention.head_count", 2},
               {"attention.head_count_kv", 1},
               {"attention.key_length", 16},
               {"attention.sliding_window", 16},
               {"expert_count", 4},
               {"expert_used_count", 2},
               {"expert_feed_forward_length", 8}};
    struct image g;
    char key[64];
    size_t len;
    image_init(&g);
    key_str(&g, "general.architecture", arch);
    for (size_t i = 0; i < sizeof all / sizeof *all; i++) {
        int is = !strcmp(all[i].key, spoilt);
        snprintf(key, sizeof key, "%s.%s", arch, all[i].key);
        if (!is || value >= 0) key_u32(&g, key, is ? (uint32_t)value : all[i].value);
    }
    snprintf(key, sizeof key, "%s.attention.layer_norm_rms_epsilon", arch);
    key_f32(&g, key, 1e-6f);
    snprintf(key, sizeof key, "%s.attention.sliding_window_pattern", arch);
    key_list(&g, key, G_BOOL, n_pattern);
    put_raw(&g.keys, pattern, n_pattern);
    tensor(&g, "token_embd.weight", 1, SIZE(32, 4), 256);
    unsigned char *bytes = image_bytes(&g, &len);
    if (words)
        fails(bytes, len, KK_EFORMAT, words);
    else
        kk_model_file_close(open_bytes(bytes, len));
    image_release(&g);
    kk_free(bytes);
}

static void gemma_keys_are_checked(void **state)
{
    (void)state;
    const uint8_t p[4] = {1, 0, 1, 0};
    for (int i = 0; i < 2; i++) {
        const char *arch = i ? "gemma4" : "gemma3";
        gemma_fails(arch, "", 0, p, 3, NULL);
        gemma_fails(arch, "attention.sliding_window", -1, p, 3, "sliding_window' is missing");
        gemma_fails(arch, "attention.sliding_window", 0, p, 3, "sliding_window' is 0");
        gemma_fails(arch, "attention.head_count_kv", 3, p, 3, "head_count_kv' is 3");
        gemma_fails(arch, "", 0, p, 4, "pattern' has 4 entries for 3 layers");
        gemma_fails(arch, "block_count", 4, p, 3, "pattern' has 3 entries for 4 layers");
    }
    gemma_fails("gemma4", "expert_used_count", 5, p, 3, "'gemma4.expert_used_count' is 5");
    gemma_fails("gemma4", "expert_used_count", -1, p, 3, "'gemma4.expert_used_count' is missing");
    gemma_fails("gemma4", "expert_feed_forward_length", -1, p, 3, "length' is missing");
}

/* ---- parts ----------------------------------------------------------------------------------- */

static void copy_part(int from, const char *to, int no_key)
{
    struct kk_buf b;
    struct kk_err err = {0};
    char path[100];
    kk_buf_init(&b, 1 << 20);
    snprintf(path, sizeof path, MODELS "split-%05d-of-00003.gguf", from);
    KK_ASSERT_OK(kk_fs_read(path, &b, &err), &err);
    char *at = memmem(b.data, b.len, "split.no", 8);
    assert_non_null(at);
    if (no_key >= 0) at[12] = (char)no_key;
    put(to, b.data, b.len);
    kk_buf_release(&b);
}

static void parts_are_checked(void **state)
{
    (void)state;
    const char *first = "m-00001-of-00003.gguf", *second = "m-00002-of-00003.gguf";
    copy_part(1, first, -1);
    open_fails(kk_test_path("model/m-00001-of-00003.gguf"), KK_ENOENT, second);
    copy_part(2, second, -1);
    copy_part(3, "m-00003-of-00003.gguf", 1);
    open_fails(kk_test_path("model/m-00002-of-00003.gguf"), KK_EFORMAT, "'split.no' 1, expected 2");
    copy_part(2, "m-00003-of-00003.gguf", 2); /* the second part again */
    open_fails(kk_test_path("model/m-00001-of-00003.gguf"), KK_EFORMAT, "in another shard too");
    copy_part(1, "n-00001-of-00002.gguf", -1);
    open_fails(kk_test_path("model/n-00001-of-00002.gguf"), KK_EFORMAT, "of 2 by its name");
    copy_part(1, "whole.gguf", -1);
    open_fails(kk_test_path("model/whole.gguf"), KK_EFORMAT, "one of 3 parts by its key");
    copy_part(3, "m-00003-of-00003.gguf", -1);
    kk_model_file_close(open_ok(kk_test_path("model/m-00003-of-00003.gguf")));
}

/* ---- chance ---------------------------------------------------------------------------------- */

/* Whatever opens can be read to the last byte. */
static void read_all(const struct kk_model_file *mf)
{
    struct kk_tensor t;
    struct kk_vocab v;
    struct kk_buf b;
    const char *key;
    float *y;
    for (size_t i = 0; !kk_model_file_at(mf, i, &t); i++) {
        assert_non_null(y = kk_array(t.count, sizeof *y));
        kk_tensor_dequant(&t, 0, t.count, y);
        kk_free(y);
    }
    kk_buf_init(&b, 1 << 20);
    for (size_t i = 0; !kk_model_file_meta(mf, i, &key, &b); i++) assert_true(*key);
    kk_buf_release(&b);
    if (!kk_model_file_vocab(mf, &v, NULL)) kk_vocab_release(&v);
}

static void mutate(struct kk_test_rng *r, unsigned char *p, size_t len)
{
    static const uint64_t odd[] = {0,        1,          0x7f,       0x80,       0xff,      0xffff,
                                   1u << 31, 1ull << 32, 1ull << 62, 1ull << 63, UINT64_MAX};
    for (int n = kk_test_between(r, 1, 4); n; n--) {
        size_t at = kk_test_below(r, (uint32_t)len);
        uint64_t v = odd[kk_test_below(r, sizeof odd / sizeof *odd)];
        size_t size = (size_t)1 << kk_test_below(r, 4);
        if (kk_test_below(r, 2)) {
            p[at] ^= (unsigned char)(1u << kk_test_below(r, 8));
        } else if (at + size <= len) {
            memcpy(p + at, &v, size);
        }
    }
}

static void mutated_files_never_crash(void **state)
{
    (void)state;
    struct kk_test_rng r = kk_test_rng("gguf");
    size_t len, head, opened = 0;
    unsigned char *bytes = good(&len);
    head = len - 5600; /* the data is of no interest */
    for (int i = 0; i < 20000; i++) {
        struct kk_model_file *mf = NULL;
        struct kk_err err = {0};
        size_t n = kk_test_below(&r, 20) ? len : head + kk_test_below(&r, (uint32_t)(len - head));
        unsigned char *p = kk_aligned(64, (n + 63) & ~(size_t)63);
        memcpy(p, bytes, n);
        mutate(&r, p, head < n ? head : n);
        int rc = kk_model_file_open_memory(p, n, &mf, &err);
        if (!rc) {
            opened++;
            read_all(mf);
            kk_model_file_close(mf);
        }
        assert_true(!rc == !err.msg[0] && !strchr(err.msg, '\n'));
        kk_free(p);
    }
    assert_true(opened > 100 && opened < 19000); /* not all end in the same check */
    kk_free(bytes);
}

/* Every allocation fails once: an error, nothing leaked (ASan), nothing half open. */
static void out_of_memory(void **state)
{
    (void)state;
    size_t len;
    unsigned char *bytes = good(&len);
    for (int64_t n = 1;; n++) {
        struct kk_model_file *mf = NULL;
        kk_mem_fail_after(n);
        int rc = kk_model_file_open_memory(bytes, len, &mf, NULL);
        int hit = kk_mem_fail_hit();
        kk_mem_fail_after(0);
        assert_int_equal(rc, hit ? KK_ENOMEM : 0);
        kk_model_file_close(mf);
        if (!hit) break;
    }
    kk_free(bytes);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(converted_models_are_the_same),
        cmocka_unit_test(rotary_scaling_is_found),
        cmocka_unit_test(reads_blocks_and_turned_rows),
        cmocka_unit_test(fingerprints_differ),
        cmocka_unit_test(tells_its_keys),
        cmocka_unit_test(truncated_anywhere),
        cmocka_unit_test(hostile_files_are_refused),
        cmocka_unit_test(headers),
        cmocka_unit_test(contradictions_name_their_key),
        cmocka_unit_test(gemma_keys_are_checked),
        cmocka_unit_test(parts_are_checked),
        cmocka_unit_test(mutated_files_never_crash),
        cmocka_unit_test(out_of_memory),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
