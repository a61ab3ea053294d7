/* Opening a snapshot directory or a synth model, and finding tensors. */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/hash.h"
#include "base/json.h"
#include "base/mem.h"
#include "base/rng.h"
#include "base/quant.h"
#include "file/gguf_int.h"

#define MAX_CONFIG (16u << 20)
#define MAX_INDEX  (64u << 20)

/* ---- tensors by name ---- */

static size_t find_slot(const struct kk_model_file *mf, const char *name)
{
    size_t i = kk_fnv1a(name, strlen(name)) & (mf->n_slots - 1);
    while (mf->slot[i] && strcmp(mf->tensor[mf->slot[i] - 1].name, name))
        i = (i + 1) & (mf->n_slots - 1);
    return i;
}

static int grow(struct kk_model_file *mf)
{
    size_t cap = mf->cap ? mf->cap * 2 : 64;
    struct kk_tensor *t = kk_realloc(mf->tensor, cap, sizeof *t);
    if (!t) return KK_ENOMEM;
    mf->tensor = t;
    uint32_t *slot = kk_calloc(cap * 2, sizeof *slot);
    if (!slot) return KK_ENOMEM;
    kk_free(mf->slot);
    mf->slot = slot;
    mf->n_slots = cap * 2;
    mf->cap = cap;
    for (size_t i = 0; i < mf->n; i++) slot[find_slot(mf, mf->tensor[i].name)] = (uint32_t)i + 1;
    return 0;
}

int kk__tensor_add(struct kk_model_file *mf, const char *path, const struct kk_tensor *t,
                   struct kk_err *err)
{
    if (mf->n == mf->cap && grow(mf))
        return kk_fail(err, KK_ENOMEM, "out of memory reading '%s'", path);
    size_t i = find_slot(mf, t->name);
    if (mf->slot[i])
        return kk_fail(err, KK_EFORMAT, "'%s': tensor '%s' is in another shard too", path, t->name);
    char *name = kk_strdup(t->name);
    if (!name) return kk_fail(err, KK_ENOMEM, "out of memory reading '%s'", path);
    mf->tensor[mf->n] = *t;
    mf->tensor[mf->n].name = name;
    mf->slot[i] = (uint32_t)++mf->n;
    return 0;
}

const struct kk_tensor *kk__tensor_find(const struct kk_model_file *mf, const char *name)
{
    if (!mf->n) return NULL;
    size_t i = find_slot(mf, name);
    return mf->slot[i] ? &mf->tensor[mf->slot[i] - 1] : NULL;
}

/* ---- config ---- */

/* v as a name fit for messages, or NULL. */
static const char *plain_string(const json_t *v)
{
    const char *s = json_string_value(v);
    return s && *s && strlen(s) == json_string_length(v) && kk__is_printable(s) ? s : NULL;
}

static int load_config(struct kk_model_file *mf, const char *path, struct kk_err *err)
{
    int rc = kk_json_load(path, MAX_CONFIG, &mf->root, err);
    if (rc) return rc;
    if (!json_is_object(mf->root))
        return kk_fail(err, KK_EFORMAT, "'%s' is not a JSON object", path);
    json_t *nested = json_object_get(mf->root, "text_config");
    if (nested && !json_is_null(nested) && !json_is_object(nested))
        return kk_fail(err, KK_EFORMAT, "'%s': 'text_config' is not a JSON object", path);
    mf->config = json_is_object(nested) ? nested : mf->root;
    const json_t *arch = json_object_get(mf->root, "architectures");
    mf->architecture = plain_string(json_array_get(arch, 0));
    if (!mf->architecture)
        return kk_fail(err, KK_EFORMAT,
                       "'%s': 'architectures' is missing or no list of names "
                       "(such as [\"Gemma4ForCausalLM\"])",
                       path);
    mf->model_type = plain_string(json_object_get(mf->config, "model_type"));
    if (!mf->model_type)
        return kk_fail(err, KK_EFORMAT,
                       "'%s': 'model_type' is missing or no name (such as \"gemma4_text\")", path);
    return 0;
}

/* ---- snapshot directories ---- */

int kk__shard_map(struct kk_model_file *mf, const char *path, struct kk_shard **out,
                  struct kk_err *err)
{
    struct kk_shard *s = kk_realloc(mf->shard, mf->n_shards + 1, sizeof *s);
    if (!s) return kk_fail(err, KK_ENOMEM, "out of memory opening '%s'", path);
    mf->shard = s;
    s += mf->n_shards;
    *s = (struct kk_shard){.first = mf->n};
    int rc = kk_fs_map(path, &s->map, err);
    if (rc) return rc;
    mf->n_shards++;
    *out = s;
    return 0;
}

static int add_shard(struct kk_model_file *mf, const char *name, struct kk_err *err)
{
    char path[4096];
    struct kk_shard *s = NULL;
    int rc = kk_fs_join(path, sizeof path, mf->dir, name, err);
    if (!rc) rc = kk__shard_map(mf, path, &s, err);
    return rc ? rc : kk__safetensors_add(mf, path, s, err);
}

/* No path and no hidden file: a name that stays in the directory. */
static int is_file_name(const char *s)
{
    return s && *s != '.' && !strchr(s, '/') && strlen(s) <= 255;
}

/* Open every shard of weight_map once; seen maps its name to its number. */
static int open_shards(struct kk_model_file *mf, const char *index, json_t *map, json_t *seen,
                       struct kk_err *err)
{
    const char *name;
    char a[64];
    json_t *v;
    json_object_foreach(map, name, v)
    {
        const char *file = plain_string(v);
        if (!is_file_name(file))
            return kk_fail(err, KK_EFORMAT, "'%s': the shard of tensor '%s' is no plain file name",
                           index, kk__printable(a, name));
        if (json_object_get(seen, file)) continue;
        if (json_object_set_new(seen, file, json_integer((json_int_t)mf->n_shards)))
            return kk_fail(err, KK_ENOMEM, "out of memory reading '%s'", index);
        int rc = add_shard(mf, file, err);
        if (rc) return kk_wrap(err, rc, "shard of tensor '%s'", kk__printable(a, name));
    }
    return 0;
}

/* Every tensor of weight_map is in the shard it names. */
static int check_shards(const struct kk_model_file *mf, const char *index, json_t *map,
                        const json_t *seen, struct kk_err *err)
{
    const char *name;
    char a[64];
    json_t *v;
    json_object_foreach(map, name, v)
    {
        const char *file = json_string_value(v);
        size_t s = (size_t)json_integer_value(json_object_get(seen, file));
        const struct kk_tensor *t = kk__tensor_find(mf, name);
        size_t i = t ? (size_t)(t - mf->tensor) : SIZE_MAX;
        size_t end = s + 1 < mf->n_shards ? mf->shard[s + 1].first : mf->n;
        if (i < mf->shard[s].first || i >= end)
            return kk_fail(err, KK_EFORMAT,
                           "'%s' promises tensor '%s' in '%s', which does not have it", index,
                           kk__printable(a, name), file);
    }
    return 0;
}

static int open_sharded(struct kk_model_file *mf, const char *index, struct kk_err *err)
{
    json_t *root = NULL, *seen = NULL;
    int rc = kk_json_load(index, MAX_INDEX, &root, err);
    if (rc) return rc;
    json_t *map = json_object_get(root, "weight_map");
    if (!json_is_object(map) || !json_object_size(map)) {
        rc = kk_fail(err, KK_EFORMAT, "'%s' has no 'weight_map' (tensor name to shard)", index);
        goto out;
    }
    seen = json_object();
    if (!seen) {
        rc = kk_fail(err, KK_ENOMEM, "out of memory reading '%s'", index);
        goto out;
    }
    rc = open_shards(mf, index, map, seen, err);
    if (!rc) rc = check_shards(mf, index, map, seen, err);
out:
    json_decref(seen);
    json_decref(root);
    return rc;
}

static int open_dir(struct kk_model_file *mf, const char *dir, struct kk_err *err)
{
    char config[4096], whole[4096], index[4096];
    mf->dir = kk_strdup(dir);
    if (!mf->dir) return kk_fail(err, KK_ENOMEM, "out of memory opening '%s'", dir);
    int rc = kk_fs_join(config, sizeof config, dir, "config.json", err);
    if (!rc) rc = kk_fs_join(whole, sizeof whole, dir, "model.safetensors", err);
    if (!rc) rc = kk_fs_join(index, sizeof index, dir, "model.safetensors.index.json", err);
    if (rc) return rc;
    if (!kk_fs_exists(dir))
        return kk_fail(err, KK_ENOENT, "model directory '%s' does not exist", dir);
    if (!kk_fs_is_dir(dir))
        return kk_fail(
            err, KK_EFORMAT,
            "'%s' is neither a model directory (config.json and model.safetensors) nor a "
            "GGUF file",
            dir);
    if (!kk_fs_exists(config))
        return kk_fail(err, KK_ENOENT, "'%s' has no config.json: is it a model directory?", dir);
    rc = load_config(mf, config, err);
    if (rc) return rc;
    if (kk_fs_exists(whole)) return add_shard(mf, "model.safetensors", err);
    if (kk_fs_exists(index)) return open_sharded(mf, index, err);
    return kk_fail(err, KK_ENOENT,
                   "'%s' has neither model.safetensors nor model.safetensors.index.json", dir);
}

void kk_model_file_rest(const struct kk_model_file *mf)
{
    for (size_t i = 0; i < mf->n_shards; i++) kk_fs_map_rest(&mf->shard[i].map);
}

int kk_model_file_open_parts(const char *dir, const char *config, const char *weights,
                             struct kk_model_file **out, struct kk_err *err)
{
    char path[4096];
    struct kk_model_file *mf = kk_calloc(1, sizeof *mf);
    if (!mf) return kk_fail(err, KK_ENOMEM, "out of memory opening '%s'", dir);
    mf->architecture = mf->model_type = "";
    mf->dir = kk_strdup(dir);
    int rc = mf->dir ? kk_fs_join(path, sizeof path, dir, config, err)
                     : kk_fail(err, KK_ENOMEM, "out of memory opening '%s'", dir);
    if (!rc) rc = kk_json_load(path, MAX_CONFIG, &mf->root, err);
    if (!rc && !json_is_object(mf->root))
        rc = kk_fail(err, KK_EFORMAT, "'%s' is not a JSON object", path);
    if (!rc) rc = add_shard(mf, weights, err);
    if (rc) {
        kk_model_file_close(mf);
        return rc;
    }
    mf->config = mf->root;
    *out = mf;
    return 0;
}

/* ---- synth ---- */

/* The text config's dtype, else the whole config's; "torch_dtype" is its older name. */
static int synth_dtype(struct kk_model_file *mf, const char *path, struct kk_err *err)
{
    static const char *const hf[] = {
        [KK_F32] = "float32", [KK_BF16] = "bfloat16", [KK_F16] = "float16"};
    const json_t *from[] = {mf->config, mf->root};
    const char *s = NULL;
    char a[64];
    int rc = 0;
    for (int i = 0; i < 2 && !s && !rc; i++) {
        rc = kk_json_str(from[i], "dtype", 0, &s, err);
        if (!rc && !s) rc = kk_json_str(from[i], "torch_dtype", 0, &s, err);
    }
    if (rc) return kk_wrap(err, rc, "'%s'", path);
    if (!s) s = hf[KK_BF16];
    for (size_t i = 0; i < sizeof hf / sizeof *hf; i++) {
        mf->synth_dtype = (enum kk_dtype)i;
        if (!strcmp(s, hf[i])) return 0;
    }
    return kk_fail(err, KK_EUNSUPPORTED, "'%s': dtype '%s' is none of bfloat16, float16, float32",
                   path, kk__printable(a, s));
}

static int parse_seed(const char *s, uint64_t *out, struct kk_err *err)
{
    char a[64];
    errno = 0;
    *out = strtoull(s, NULL, 10);
    if (*s && strspn(s, "0123456789") == strlen(s) && !errno) return 0;
    return kk_fail(err, KK_EINVAL,
                   "'%s' is no seed: synth:CONFIG.json:SEED takes a whole number below 2^64",
                   kk__printable(a, s));
}

/* "CONFIG.json[:SEED]"; a colon before the last slash belongs to the path. */
static int open_synth(struct kk_model_file *mf, const char *spec, struct kk_err *err)
{
    const char *colon = strrchr(spec, ':');
    if (colon && strchr(colon, '/')) colon = NULL;
    size_t n = colon ? (size_t)(colon - spec) : strlen(spec);
    mf->synth = 1;
    if (!n)
        return kk_fail(err, KK_EINVAL, "'synth:%s' names no config: synth:CONFIG.json[:SEED]",
                       spec);
    int rc = colon ? parse_seed(colon + 1, &mf->seed, err) : 0;
    if (rc) return rc;
    char *path = kk_strndup(spec, n);
    if (!path) return kk_fail(err, KK_ENOMEM, "out of memory opening 'synth:%s'", spec);
    rc = load_config(mf, path, err);
    if (!rc) rc = synth_dtype(mf, path, err);
    kk_free(path);
    return rc;
}

/* ---- public ---- */

/* mf goes to the caller, or away. */
static int opened(struct kk_model_file *mf, int rc, struct kk_model_file **out)
{
    if (rc)
        kk_model_file_close(mf);
    else
        *out = mf;
    return rc;
}

int kk_model_file_open(const char *spec, struct kk_model_file **out, struct kk_err *err)
{
    struct kk_model_file *mf = kk_calloc(1, sizeof *mf);
    if (!mf) return kk_fail(err, KK_ENOMEM, "out of memory opening '%s'", spec);
    int rc = !strncmp(spec, "synth:", 6) ? open_synth(mf, spec + 6, err)
             : kk_path_is_gguf(spec)     ? kk__gguf_open(mf, spec, err)
                                         : open_dir(mf, spec, err);
    return opened(mf, rc, out);
}

int kk_model_file_open_memory(const void *data, size_t len, struct kk_model_file **out,
                              struct kk_err *err)
{
    struct kk_model_file *mf = kk_calloc(1, sizeof *mf);
    if (!mf) return kk_fail(err, KK_ENOMEM, "out of memory opening a model");
    return opened(mf, kk__gguf_open_memory(mf, data, len, err), out);
}

void kk_model_file_close(struct kk_model_file *mf)
{
    if (!mf) return;
    for (size_t i = 0; i < mf->n; i++) kk_free((char *)(size_t)mf->tensor[i].name);
    for (size_t i = 0; i < mf->n_shards; i++) {
        kk_fs_unmap(&mf->shard[i].map);
        kk_free(mf->shard[i].copy);
    }
    kk_free(mf->tensor);
    kk_free(mf->slot);
    kk_free(mf->shard);
    kk_free(mf->dir);
    if (mf->gguf) kk__gguf_release(mf->gguf);
    kk_free(mf->gguf);
    json_decref(mf->root);
    kk_free(mf);
}

const json_t *kk_model_file_config(const struct kk_model_file *mf)
{
    return mf->config;
}
const json_t *kk_model_file_key(const struct kk_model_file *mf, const char *key)
{
    const json_t *v = json_object_get(mf->config, key);
    return v ? v : json_object_get(mf->root, key);
}

const char *kk_model_file_architecture(const struct kk_model_file *mf)
{
    return mf->architecture;
}
const char *kk_model_file_model_type(const struct kk_model_file *mf)
{
    return mf->model_type;
}
const char *kk_model_file_dir(const struct kk_model_file *mf)
{
    return mf->dir;
}
int kk_model_file_is_synth(const struct kk_model_file *mf)
{
    return mf->synth;
}
int kk_model_file_is_gguf(const struct kk_model_file *mf)
{
    return mf->gguf != NULL;
}
size_t kk_model_file_count(const struct kk_model_file *mf)
{
    return mf->n;
}

int kk_model_file_has(const struct kk_model_file *mf, const char *name)
{
    return kk__tensor_find(mf, name) != NULL;
}

int kk_model_file_at(const struct kk_model_file *mf, size_t i, struct kk_tensor *out)
{
    if (i >= mf->n) return KK_ENOENT;
    *out = mf->tensor[i];
    return 0;
}

/* A synth tensor: any name and shape. */
static int get_synth(const struct kk_model_file *mf, const char *name, int rank,
                     const uint64_t *shape, struct kk_tensor *out, struct kk_err *err)
{
    static const char *const stored[] = {[KK_F32] = "F32", [KK_BF16] = "BF16", [KK_F16] = "F16"};
    char a[96];
    *out = (struct kk_tensor){.name = name, .dtype = mf->synth_dtype, .rank = rank, .count = 1};
    for (int i = 0; i < rank; i++) {
        out->shape[i] = shape[i];
        if (__builtin_mul_overflow(out->count, shape[i], &out->count) || out->count >> 40)
            return kk_fail(err, KK_ERANGE, "tensor '%s' of shape %s is absurdly large", name,
                           kk__shape_text(a, rank, shape));
    }
    out->stored = stored[out->dtype];
    out->loadable = 1;
    out->bytes = out->count * kk_dtype_bytes(out->dtype);
    kk__synth_describe(mf->seed, out);
    return 0;
}

int kk_model_file_get(const struct kk_model_file *mf, const char *name, int rank,
                      const uint64_t *shape, struct kk_tensor *out, struct kk_err *err)
{
    char a[96], b[96];
    KK_BUG_ON(rank < 0 || rank > KK_MAX_RANK);
    if (mf->synth) return get_synth(mf, name, rank, shape, out, err);
    const struct kk_tensor *t = kk__tensor_find(mf, name);
    if (!t) return kk_fail(err, KK_ENOENT, "tensor '%s' is missing", name);
    if (t->rank != rank || (rank && memcmp(t->shape, shape, (size_t)rank * sizeof *shape)))
        return kk_fail(err, KK_EFORMAT, "tensor '%s' has shape %s, expected %s", name,
                       kk__shape_text(a, t->rank, t->shape), kk__shape_text(b, rank, shape));
    if (!t->loadable)
        return kk_fail(err, KK_EUNSUPPORTED, "tensor '%s' has dtype %s, expected BF16, F16 or F32",
                       name, t->stored);
    *out = *t;
    return 0;
}

/* ---- elements ----------------------------------------------------------------------------- */

/* The stored row that stands for row i. */
static uint64_t turned_row(const struct kk_tensor *t, uint64_t i)
{
    uint64_t D = t->turned_rows, at = i % D, half = at / (D / 2), pair = at % (D / 2);
    return i - at + 2 * pair + half;
}

static size_t bytes_of(const struct kk_tensor *t, uint64_t n)
{
    return n / kk_dtype_block(t->dtype) * kk_dtype_block_bytes(t->dtype);
}

static void read_turned(const struct kk_tensor *t, uint64_t first, uint64_t n, char *dst)
{
    uint64_t cols = t->count / t->shape[0];
    while (n) {
        uint64_t row = first / cols, at = first % cols, k = cols - at < n ? cols - at : n;
        uint64_t from = turned_row(t, row) * cols + at;
        memcpy(dst, (const char *)t->turned + bytes_of(t, from), bytes_of(t, k));
        dst += bytes_of(t, k);
        first += k;
        n -= k;
    }
}

void kk_tensor_read(const struct kk_tensor *t, uint64_t first, uint64_t n, void *dst)
{
    KK_BUG_ON(!t->loadable || first > t->count || n > t->count - first);
    KK_BUG_ON(first % kk_dtype_block(t->dtype) || n % kk_dtype_block(t->dtype));
    if (t->data)
        memcpy(dst, (const char *)t->data + bytes_of(t, first), bytes_of(t, n));
    else if (t->turned)
        read_turned(t, first, n, dst);
    else
        kk__synth_read(t, first, n, dst);
}

static void plain(enum kk_dtype t, const unsigned char *p, uint64_t n, float *dst)
{
    for (uint64_t i = 0; i < n; i++) {
        uint16_t h;
        memcpy(&h, p + 2 * i, 2);
        dst[i] = t == KK_BF16 ? kk_bf16_to_f32(h) : kk_f16_to_f32(h);
    }
}

void kk_tensor_dequant(const struct kk_tensor *t, uint64_t first, uint64_t n, float *dst)
{
    unsigned char raw[2 * 1024]; /* 1024 numbers but of F32: a multiple of every block */
    if (t->dtype == KK_F32) {
        kk_tensor_read(t, first, n, dst);
        return;
    }
    for (uint64_t k; n; first += k, dst += k, n -= k) {
        k = n < 1024 ? n : 1024;
        kk_tensor_read(t, first, k, raw);
        if (kk_dtype_block(t->dtype) > 1)
            kk_dequant(t->dtype, raw, k, dst);
        else
            plain(t->dtype, raw, k, dst);
    }
}

/* ---- fingerprint ---- */

/* The first and last 64 bytes of data, and 64 from each of 16 places between. */
static void sample(struct kk_hash *h, const struct kk_tensor *t)
{
    enum { PIECE = 64, PLACES = 17 };
    const unsigned char *p = t->data ? t->data : t->turned;
    if (t->bytes <= PIECE * (PLACES + 1)) {
        kk_hash_add(h, p, t->bytes);
        return;
    }
    for (uint64_t i = 0; i <= PLACES; i++)
        kk_hash_add(h, p + (t->bytes - PIECE) / PLACES * i, PIECE);
    kk_hash_add(h, p + t->bytes - PIECE, PIECE);
}

static int hash_text(const char *text, size_t n, void *arg)
{
    kk_hash_add(arg, text, n);
    return 0;
}

uint64_t kk_model_file_fingerprint(const struct kk_model_file *mf)
{
    struct kk_hash h;
    kk_hash_init(&h, mf->synth ? mf->seed + 1 : 0);
    json_dump_callback(mf->root, hash_text, &h, JSON_COMPACT | JSON_SORT_KEYS);
    for (size_t i = 0; i < mf->n; i++) {
        const struct kk_tensor *t = &mf->tensor[i];
        kk_hash_add(&h, t->name, strlen(t->name) + 1);
        kk_hash_add(&h, t->stored, strlen(t->stored) + 1);
        kk_hash_add(&h, t->shape, sizeof t->shape[0] * (size_t)t->rank);
        if (t->data || t->turned) sample(&h, t);
    }
    return kk_hash_value(&h);
}
