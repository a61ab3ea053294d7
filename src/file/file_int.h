/* Private to file/: one opened model, its tensors by name, and the synth rules. */
#ifndef KK_FILE_FILE_INT_H
#define KK_FILE_FILE_INT_H

#include "base/fs.h"
#include "file/file.h"

struct kk_model_file {
    char *dir;      /* NULL for synth */
    json_t *root;   /* config.json, owned */
    json_t *config; /* the text model's object inside root, borrowed */
    const char *architecture, *model_type;
    struct kk_map *map; /* one a shard */
    size_t n_maps;
    struct kk_tensor *tensor; /* names owned */
    unsigned char *loadable;  /* 0: a dtype that is listed but not supported */
    size_t n, cap;
    uint32_t *slot; /* open addressing: index + 1, or 0 */
    size_t n_slots;
    int synth;
    uint64_t seed;
    enum kk_dtype synth_dtype;
};

/* safetensors.c: parse one mapped shard and add its tensors. path is for messages. */
int kk__safetensors_add(struct kk_model_file *mf, const char *path, const struct kk_map *map,
                        struct kk_err *err);

/* Add a tensor whose name is copied; duplicates are refused. */
int kk__tensor_add(struct kk_model_file *mf, const char *path, const char *name, size_t name_len,
                   const struct kk_tensor *t, int loadable, struct kk_err *err);
const struct kk_tensor *kk__tensor_find(const struct kk_model_file *mf, const char *name);

/* synth.c: key and kind of tensor `name`; then elements. */
void kk__synth_describe(uint64_t seed, struct kk_tensor *t);
void kk__synth_read(const struct kk_tensor *t, uint64_t first, uint64_t n, void *dst);

/* "[2, 3]" into buf */
const char *kk__shape_text(char buf[static 96], int rank, const uint64_t *shape);

#endif
