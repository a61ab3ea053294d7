/* Model files: named, typed, bounds-checked tensors, and the config that describes them.
 *
 * Owns: Hugging Face snapshot directories (config.json, model.safetensors or shards with an index),
 * GGUF files (docs/formats/gguf.md), which look like such a directory from here: the same tensor
 * names, shapes and config keys; and `synth:` models (random weights of any geometry, made on
 * demand: docs/formats/synth.md).
 * Refuses to know: what a tensor is for. The model layer asks for each tensor by name, with the
 * shape it expects, and gets the bytes or one sentence about what is wrong.
 *
 *     struct kk_model_file *mf;
 *     struct kk_tensor t;
 *     rc = kk_model_file_open("models/tiny", &mf, err);           or "synth:bench/configs/x.json:7"
 *     rc = kk_model_file_get(mf, "model.norm.weight", 1, (uint64_t[]){C}, &t, err);
 */
#ifndef KK_FILE_FILE_H
#define KK_FILE_FILE_H

#include <jansson.h>
#include <stddef.h>
#include <stdint.h>

#include "base/buf.h"
#include "base/dtype.h"
#include "base/err.h"
#include "base/rng.h"
#include "base/vocab.h"

#define KK_MAX_RANK 4

/* One tensor, row-major. Borrowed from its kk_model_file; a synth tensor's name from the caller. */
struct kk_tensor {
    const char *name;
    const char *stored;  /* dtype as safetensors names it: "BF16", "I64"; static */
    int loadable;        /* 0: stored is not BF16, F16 or F32; only kk_model_file_at gives such */
    enum kk_dtype dtype; /* if loadable */
    int rank;
    uint64_t shape[KK_MAX_RANK];
    uint64_t count;   /* product of shape */
    uint64_t bytes;   /* of the stored data */
    const void *data; /* dtype-aligned: the mapped bytes, or a copy where those are misaligned;
                         NULL where rows are made or moved on the way (use kk_tensor_read) */
    int plus_one;     /* a norm's weight is stored as 1 + w (Gemma 3 in GGUF), not as w */
    /* Private to file/. */
    int synthetic; /* made by the rule of synth_key and synth_kind */
    uint64_t synth_key, synth_kind;
    const void *turned;   /* rows of heads in GGUF Llama's order: row h*D + 2*r + s stands for */
    uint32_t turned_rows; /* row h*D + s*D/2 + r, where D = turned_rows */
};

struct kk_model_file;

/* Open a snapshot directory, a GGUF file (of a split one, any part: all are opened), or
 * "synth:CONFIG.json[:SEED]" (seed 0 if left out). Every header field is checked here: offsets,
 * overlaps, overflow, dtypes, names. The files must not shrink while they are open. The caller
 * closes it. KK_ENOENT, KK_EFORMAT, KK_EIO, KK_ENOMEM; for synth also KK_EINVAL (seed) and
 * KK_EUNSUPPORTED (dtype); for GGUF also KK_EUNSUPPORTED (architecture, type of a tensor). */
int kk_model_file_open(const char *spec, struct kk_model_file **out, struct kk_err *err);
/* A GGUF in memory, which must stay until close; data on a multiple of 64. */
int kk_model_file_open_memory(const void *data, size_t len, struct kk_model_file **out,
                              struct kk_err *err);
/* Open a directory that is no model of its own (f_theta): one JSON object and one safetensors file,
 * by name. Its architecture and model_type are "". */
int kk_model_file_open_parts(const char *dir, const char *config, const char *weights,
                             struct kk_model_file **out, struct kk_err *err);
void kk_model_file_close(struct kk_model_file *mf);

/* Give back the pages of the files that were read so far (they are read again where needed). */
void kk_model_file_rest(const struct kk_model_file *mf);

/* The model's config.json object (with a nested text_config already chosen: the object returned is
 * the text model's own). Borrowed until close. */
const json_t *kk_model_file_config(const struct kk_model_file *mf);

/* config[key], or where the text model's own object has no such key, that of the whole. Borrowed;
 * NULL if neither has it. */
const json_t *kk_model_file_key(const struct kk_model_file *mf, const char *key);

/* The top-level "architectures"[0] and the text config's "model_type": never empty, no control
 * characters; borrowed. Whether they are known and agree is the model layer's to say. */
const char *kk_model_file_architecture(const struct kk_model_file *mf);
const char *kk_model_file_model_type(const struct kk_model_file *mf);

/* Directory of the snapshot (for tokenizer.json), or NULL. Borrowed. */
const char *kk_model_file_dir(const struct kk_model_file *mf);
int kk_model_file_is_synth(const struct kk_model_file *mf);
int kk_model_file_is_gguf(const struct kk_model_file *mf);
/* 1 if a path looks like a GGUF file, by its name or first bytes. */
int kk_path_is_gguf(const char *path);

/* GGUF alone: the tokenizer's tables, for kk_tok_from_vocab. Texts in *out stay those of mf:
 * release it before mf is closed. KK_ENOENT if there are none; else by key. */
int kk_model_file_vocab(const struct kk_model_file *mf, struct kk_vocab *out, struct kk_err *err);
/* The i-th key of a GGUF, its value appended to `value` as a short text; KK_ENOENT at the end. */
int kk_model_file_meta(const struct kk_model_file *mf, size_t i, const char **key,
                       struct kk_buf *value);

/* Find tensor `name` and check its shape: KK_ENOENT "tensor 'x' is missing", KK_EFORMAT "tensor 'x'
 * has shape [a, b], expected [c, d]", KK_EUNSUPPORTED "tensor 'x' has dtype I64, expected BF16,
 * ...". For synth any name of any shape exists, with the config's dtype. */
int kk_model_file_get(const struct kk_model_file *mf, const char *name, int rank,
                      const uint64_t *shape, struct kk_tensor *out, struct kk_err *err);

/* 1 if a tensor of that name is in the files (always 0 for synth: optional tensors are absent). */
int kk_model_file_has(const struct kk_model_file *mf, const char *name);

/* Count and i-th tensor of the files, in file order, loadable or not (inspect). 0 for synth. */
size_t kk_model_file_count(const struct kk_model_file *mf);
int kk_model_file_at(const struct kk_model_file *mf, size_t i, struct kk_tensor *out);

/* A number that tells models apart: of the config, every tensor's name, type and shape, and a few
 * bytes from all over its data. */
uint64_t kk_model_file_fingerprint(const struct kk_model_file *mf);

/* Copy elements [first, first + n) of t (inside it) to dst, in t's own dtype: whole blocks, so
 * first and n are multiples of kk_dtype_block(t->dtype). Thread-safe. */
void kk_tensor_read(const struct kk_tensor *t, uint64_t first, uint64_t n, void *dst);
/* The same as float32. */
void kk_tensor_dequant(const struct kk_tensor *t, uint64_t first, uint64_t n, float *dst);
/* 1 if t is synthetic, with the rule of its elements, which are rounded to t->dtype. */
int kk_tensor_synth(const struct kk_tensor *t, struct kk_synth *rule);

#endif
