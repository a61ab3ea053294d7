/* Opening a snapshot directory or a synth model, and finding tensors. */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/json.h"
#include "base/mem.h"
#include "base/rng.h"
#include "file/file_int.h"

#define MAX_CONFIG (16u << 20)
#define MAX_INDEX  (64u << 20)

/* ---- tensors by name
 * ------------------------------------------------------------------------------ */

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
    unsigned char *l = kk_realloc(mf->loadable, cap, 1);
    if (!l) return KK_ENOMEM;
    mf->loadable = l;
    uint32_t *slot = kk_calloc(cap * 2, sizeof *slot);
    if (!slot) return KK_ENOMEM;
    kk_free(mf->slot);
    mf->slot = slot;
    mf->n_slots = cap * 2;
    mf->cap = cap;
    for (size_t i = 0; i < mf->n; i++) slot[find_slot(mf, mf->tensor[i].name)] = (uint32_t)i + 1;
    return 0;
}

int kk__tensor_add(struct kk_model_file *mf, const char *path, const char *name, size_t name_len,
                   const struct kk_tensor *t, int loadable, struct kk_err *err)
{
    if (mf->n == mf->cap && grow(mf))
        return kk_fail(err, KK_ENOMEM, "out of memory reading '%s'", path);
    char *copy = kk_strndup(name, name_len);
    if (!copy) return kk_fail(err, KK_ENOMEM, "out of memory reading '%s'", path);
    size_t i = find_slot(mf, copy);
    if (mf->slot[i]) {
        int rc = kk_fail(err, KK_EFORMAT, "'%s': tensor '%s' is in two files", path, copy);
        kk_free(copy);
        return rc;
    }
    mf->tensor[mf->n] = *t;
    mf->tensor[mf->n].name = copy;
    mf->loadable[mf->n] = (unsigned char)loadable;
    mf->slot[i] = (uint32_t)++mf->n;
    return 0;
}

const struct kk_tensor *kk__tensor_find(const struct kk_model_file *mf, const char *name)
{
    if (!mf->n) return NULL;
    size_t i = find_slot(mf, name);
    return mf->slot[i] ? &mf->tensor[mf->slot[i] - 1] : NULL;
}

/* ---- config
 * --------------------------------------------------------------------------------------- */

static int load_config(struct kk_model_file *mf, const char *path, struct kk_err *err)
{
    int rc = kk_json_load(path, MAX_CONFIG, &mf->root, err);
    if (rc) return rc;
    if (!json_is_object(mf->root))
        return kk_fail(err, KK_EFORMAT, "'%s' is not a JSON object", path);
    json_t *nested = json_object_get(mf->root, "text_config");
    mf->config = json_is_object(nested) ? nested : mf->root;
    const json_t *arch = json_object_get(mf->root, "architectures");
    mf->architecture = json_string_value(json_array_get(arch, 0));
    if (!mf->architecture)
        return kk_fail(err, KK_EFORMAT, "'%s' does not name its 'architectures'", path);
    rc = kk_json_str(mf->config, "model_type", 1, &mf->model_type, err);
    return rc ? kk_wrap(err, rc, "'%s'", path) : 0;
}

/* ---- snapshot directories
 * ------------------------------------------------------------------------- */

static int add_shard(struct kk_model_file *mf, const char *name, struct kk_err *err)
{
    char path[4096];
    int rc = kk_fs_join(path, sizeof path, mf->dir, name, err);
    if (rc) return rc;
    struct kk_map *m = kk_realloc(mf->map, mf->n_maps + 1, sizeof *m);
    if (!m) return kk_fail(err, KK_ENOMEM, "out of memory opening '%s'", path);
    mf->map = m;
    rc = kk_fs_map(path, &mf->map[mf->n_maps], err);
    if (rc) return rc;
    mf->n_maps++;
    return kk__safetensors_add(mf, path, &mf->map[mf->n_maps - 1], err);
}

static int plain_name(const char *s)
{
    return s && *s && *s != '.' && !strchr(s, '/') && strlen(s) < 256;
}

/* Every shard of weight_map once, then every name of it must be there. */
static int add_shards(struct kk_model_file *mf, const char *index, const json_t *map,
                      struct kk_err *err)
{
    const char *name;
    json_t *v, *seen = json_object();
    int rc = seen ? 0 : kk_fail(err, KK_ENOMEM, "out of memory reading '%s'", index);
    json_object_foreach((json_t *)(size_t)map, name, v)
    {
        const char *file = json_string_value(v);
        if (rc) break;
        if (!plain_name(file)) {
            rc = kk_fail(err, KK_EFORMAT, "'%s': the shard of tensor '%s' is no plain file name",
                         index, name);
        } else if (!json_object_get(seen, file)) {
            json_object_set_new(seen, file, json_true());
            rc = add_shard(mf, file, err);
        }
    }
    json_decref(seen);
    if (rc) return rc;
    json_object_foreach((json_t *)(size_t)map, name, v)
    {
        if (!kk__tensor_find(mf, name))
            return kk_fail(err, KK_EFORMAT,
                           "'%s' promises tensor '%s' in '%s', which does not have it", index, name,
                           json_string_value(v));
    }
    return 0;
}

static int open_sharded(struct kk_model_file *mf, const char *index, struct kk_err *err)
{
    json_t *root = NULL;
    int rc = kk_json_load(index, MAX_INDEX, &root, err);
    if (rc) return rc;
    const json_t *map = json_object_get(root, "weight_map");
    rc = json_is_object(map) && json_object_size(map)
             ? add_shards(mf, index, map, err)
             : kk_fail(err, KK_EFORMAT, "'%s' has no 'weight_map'", index);
    json_decref(root);
    return rc;
}

static int open_dir(struct kk_model_file *mf, const char *dir, struct kk_err *err)
{
    char path[4096], index[4096];
    mf->dir = kk_strdup(dir);
    if (!mf->dir) return kk_fail(err, KK_ENOMEM, "out of memory opening '%s'", dir);
    if (!kk_fs_exists(dir))
        return kk_fail(err, KK_ENOENT, "model directory '%s' does not exist", dir);
    if (!kk_fs_is_dir(dir))
        return kk_fail(err, KK_EFORMAT,
                       "'%s' is not a model directory (config.json and model.safetensors)", dir);
    int rc = kk_fs_join(path, sizeof path, dir, "config.json", err);
    if (!rc) rc = load_config(mf, path, err);
    if (!rc) rc = kk_fs_join(path, sizeof path, dir, "model.safetensors", err);
    if (!rc) rc = kk_fs_join(index, sizeof index, dir, "model.safetensors.index.json", err);
    if (rc) return rc;
    if (kk_fs_exists(path)) return add_shard(mf, "model.safetensors", err);
    if (kk_fs_exists(index)) return open_sharded(mf, index, err);
    return kk_fail(err, KK_ENOENT,
                   "'%s' has neither model.safetensors nor model.safetensors.index.json", dir);
}

/* ---- synth
 * ---------------------------------------------------------------------------------------- */

static int synth_dtype(struct kk_model_file *mf, struct kk_err *err)
{
    const char *s = "bfloat16";
    int rc = kk_json_str(mf->config, "torch_dtype", 0, &s, err);
    if (!rc) rc = kk_json_str(mf->config, "dtype", 0, &s, err);
    if (rc) return rc;
    if (!strcmp(s, "bfloat16"))
        mf->synth_dtype = KK_BF16;
    else if (!strcmp(s, "float32"))
        mf->synth_dtype = KK_F32;
    else if (!strcmp(s, "float16"))
        mf->synth_dtype = KK_F16;
    else
        return kk_fail(err, KK_EUNSUPPORTED, "dtype '%s' (known: bfloat16, float16, float32)", s);
    return 0;
}

/* "CONFIG.json[:SEED]" */
static int open_synth(struct kk_model_file *mf, const char *spec, struct kk_err *err)
{
    const char *colon = strrchr(spec, ':');
    size_t n = colon ? (size_t)(colon - spec) : strlen(spec);
    mf->synth = 1;
    if (colon) {
        char *end;
        errno = 0;
        mf->seed = strtoull(colon + 1, &end, 10);
        if (errno || *end || end == colon + 1 || colon[1] == '-')
            return kk_fail(err, KK_EINVAL,
                           "'%s' is no seed: synth:CONFIG.json:SEED takes a whole number",
                           colon + 1);
    }
    char *path = kk_strndup(spec, n);
    if (!path) return kk_fail(err, KK_ENOMEM, "out of memory opening 'synth:%s'", spec);
    int rc = load_config(mf, path, err);
    kk_free(path);
    return rc ? rc : synth_dtype(mf, err);
}

/* ---- public
 * --------------------------------------------------------------------------------------- */

int kk_model_file_open(const char *spec, struct kk_model_file **out, struct kk_err *err)
{
    struct kk_model_file *mf = kk_calloc(1, sizeof *mf);
    if (!mf) return kk_fail(err, KK_ENOMEM, "out of memory opening '%s'", spec);
    int rc = !strncmp(spec, "synth:", 6) ? open_synth(mf, spec + 6, err) : open_dir(mf, spec, err);
    if (rc) {
        kk_model_file_close(mf);
        return rc;
    }
    *out = mf;
    return 0;
}

void kk_model_file_close(struct kk_model_file *mf)
{
    if (!mf) return;
    for (size_t i = 0; i < mf->n; i++) kk_free((char *)(size_t)mf->tensor[i].name);
    for (size_t i = 0; i < mf->n_maps; i++) kk_fs_unmap(&mf->map[i]);
    kk_free(mf->tensor);
    kk_free(mf->loadable);
    kk_free(mf->slot);
    kk_free(mf->map);
    kk_free(mf->dir);
    json_decref(mf->root);
    kk_free(mf);
}

const json_t *kk_model_file_config(const struct kk_model_file *mf)
{
    return mf->config;
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

/* A synth tensor: any name and shape; its name is the caller's and is used only here. */
static int get_synth(const struct kk_model_file *mf, const char *name, int rank,
                     const uint64_t *shape, struct kk_tensor *out, struct kk_err *err)
{
    *out = (struct kk_tensor){.name = name, .dtype = mf->synth_dtype, .rank = rank, .count = 1};
    for (int i = 0; i < rank; i++) {
        out->shape[i] = shape[i];
        if (__builtin_mul_overflow(out->count, shape[i], &out->count) || out->count >> 40)
            return kk_fail(err, KK_ERANGE, "tensor '%s' is absurdly large", name);
    }
    kk__synth_describe(mf->seed, out);
    return 0;
}

int kk_model_file_get(const struct kk_model_file *mf, const char *name, int rank,
                      const uint64_t *shape, struct kk_tensor *out, struct kk_err *err)
{
    char a[96], b[96];
    if (mf->synth) return get_synth(mf, name, rank, shape, out, err);
    const struct kk_tensor *t = kk__tensor_find(mf, name);
    if (!t) return kk_fail(err, KK_ENOENT, "tensor '%s' is missing", name);
    if (t->rank != rank || memcmp(t->shape, shape, (size_t)rank * sizeof *shape))
        return kk_fail(err, KK_EFORMAT, "tensor '%s' has shape %s, expected %s", name,
                       kk__shape_text(a, t->rank, t->shape), kk__shape_text(b, rank, shape));
    if (!mf->loadable[t - mf->tensor])
        return kk_fail(err, KK_EUNSUPPORTED, "tensor '%s' has a dtype other than bf16, f16 and f32",
                       name);
    *out = *t;
    return 0;
}

void kk_tensor_read(const struct kk_tensor *t, uint64_t first, uint64_t n, void *dst)
{
    size_t size = kk_dtype_bytes(t->dtype);
    if (t->data)
        memcpy(dst, (const char *)t->data + first * size, n * size);
    else
        kk__synth_read(t, first, n, dst);
}
