/* Private to file/: one opened model, its tensors by name, and the synth rules. */
#ifndef KK_FILE_FILE_INT_H
#define KK_FILE_FILE_INT_H

#include "base/fs.h"
#include "file/file.h"

#define KK__MAX_NAME 255 /* bytes of a tensor's name */

struct kk_shard {
    struct kk_map map;
    void *copy;   /* tensors that are misaligned in the map; NULL if none, owned */
    size_t first; /* its tensors are [first, first of the next shard) */
};

struct kk_gguf;

struct kk_model_file {
    char *dir;            /* of a snapshot, else NULL */
    struct kk_gguf *gguf; /* the keys of a GGUF, owned; else NULL */
    json_t *root;         /* config.json, owned */
    json_t *config;       /* the text model's object inside root, borrowed */
    const char *architecture, *model_type;
    struct kk_shard *shard;
    size_t n_shards;
    struct kk_tensor *tensor; /* names owned */
    size_t n, cap;
    uint32_t *slot; /* open addressing: index + 1, or 0 */
    size_t n_slots; /* a power of two, 2 * cap */
    int synth;
    uint64_t seed;
    enum kk_dtype synth_dtype;
};

/* Map another file as the last shard; *out is valid until the next. */
int kk__shard_map(struct kk_model_file *mf, const char *path, struct kk_shard **out,
                  struct kk_err *err);

/* safetensors.c: parse the mapped shard s and add its tensors. path is for messages. */
int kk__safetensors_add(struct kk_model_file *mf, const char *path, struct kk_shard *s,
                        struct kk_err *err);

/* Add a tensor, its name copied; a name that is there already is refused. */
int kk__tensor_add(struct kk_model_file *mf, const char *path, const struct kk_tensor *t,
                   struct kk_err *err);
const struct kk_tensor *kk__tensor_find(const struct kk_model_file *mf, const char *name);

/* synth.c: key and kind of a tensor whose name, rank and shape are set; then elements. */
void kk__synth_describe(uint64_t seed, struct kk_tensor *t);
void kk__synth_read(const struct kk_tensor *t, uint64_t first, uint64_t n, void *dst);

/* "[2, 3]" into buf; rank at most KK_MAX_RANK. */
const char *kk__shape_text(char buf[static 96], int rank, const uint64_t *shape);

/* A string of a hostile file, cut and with its control characters replaced: fit for a message. */
const char *kk__printable(char buf[static 64], const char *s);
int kk__is_printable(const char *s); /* no control characters */

#endif
