/* Inside src/file only: a parsed GGUF file, and what is made of it (docs/formats/gguf.md).
 *
 *   gguf.c         bytes -> keys and tensors, everything checked
 *   gguf_open.c    one file or all parts of a split one -> struct kk_model_file
 *   gguf_names.c   tensor names -> those of the Hugging Face class
 *   gguf_config.c  keys -> a config.json of that class
 *   gguf_vocab.c   keys -> struct kk_vocab */
#ifndef KK_FILE_GGUF_INT_H
#define KK_FILE_GGUF_INT_H

#include "file/file_int.h"

enum gguf_type {
    GGUF_U8,
    GGUF_I8,
    GGUF_U16,
    GGUF_I16,
    GGUF_U32,
    GGUF_I32,
    GGUF_F32,
    GGUF_BOOL,
    GGUF_STRING,
    GGUF_ARRAY,
    GGUF_U64,
    GGUF_I64,
    GGUF_F64,
    GGUF_TYPES
};

/* One key. An array's elements, or the value alone, are n values of `type` packed at `at`; a string
 * is 8 bytes of length and its bytes. Borrowed from the mapped file, at any address. */
struct gguf_kv {
    char *key; /* owned; printable */
    enum gguf_type type;
    int is_array;
    uint64_t n;
    const unsigned char *at;
};

struct gguf_tensor {
    struct kk_tensor t; /* shape as Hugging Face has it: slowest first; name owned */
    uint64_t begin;     /* in the data, of t.bytes bytes */
};

struct kk_gguf {
    struct gguf_kv *kv; /* in file order, no key twice */
    size_t n_kv;
    struct gguf_tensor *tensor; /* in file order, no name twice, none overlaps */
    size_t n;
};

/* Parse and check one file. path is for messages; data stays mapped while out is in use. On failure
 * out is empty. */
int kk__gguf_parse(const char *path, const unsigned char *data, size_t len, struct kk_gguf *out,
                   struct kk_err *err);
void kk__gguf_release(struct kk_gguf *g);

/* ---- keys --------------------------------------------------------------------------------- */

const struct gguf_kv *kk__gguf_find(const struct kk_gguf *g, const char *key); /* or NULL */
/* Element i of kv as a number: 0 if its type is none. kk__gguf_whole: not for floating point. */
int kk__gguf_whole(const struct gguf_kv *kv, uint64_t i, int64_t *out);
int kk__gguf_number(const struct gguf_kv *kv, uint64_t i, double *out);
/* The string at *at, which moves past it: its bytes (not NUL-terminated) and their number. */
const char *kk__gguf_string(const unsigned char **at, size_t *len);

/* obj[key] with a default, in the manner of base/json.h; messages name the key. */
int kk__gguf_int(const struct kk_gguf *g, const char *key, int64_t min, int64_t max, int required,
                 int64_t *out, struct kk_err *err);
int kk__gguf_real(const struct kk_gguf *g, const char *key, double min, double max, int required,
                  double *out, struct kk_err *err);
int kk__gguf_bool(const struct kk_gguf *g, const char *key, int *out, struct kk_err *err);
/* A string without NUL, copied; *out is NULL if the key is missing. Owned by the caller. */
int kk__gguf_text(const struct kk_gguf *g, const char *key, char **out, struct kk_err *err);

/* ---- models ------------------------------------------------------------------------------- */

enum gguf_arch { GGUF_GEMMA3 = 1, GGUF_GEMMA4 = 2, GGUF_LLAMA = 4, GGUF_QWEN3 = 8 };
struct gguf_class {
    enum gguf_arch arch;
    const char *name, *architecture, *model_type; /* general.architecture; Hugging Face's names */
};
/* The class that general.architecture names. */
int kk__gguf_class(const struct kk_gguf *g, const struct gguf_class **out, struct kk_err *err);

/* "blk.7.attn_q.weight" -> "model.layers.7.self_attn.q_proj.weight"; a name that the class does not
 * have stays as it is. */
void kk__gguf_rename(enum gguf_arch arch, const char *name, char out[static KK__MAX_NAME + 1]);

/* Does a text begin with BOS where no key says so? By the tokenizer's kind. */
int kk__gguf_adds_bos(const struct kk_gguf *g);

/* mf->root, config, architecture, model_type from mf->gguf and the tensors; marks the tensors whose
 * values or rows differ from Hugging Face's. */
int kk__gguf_config(struct kk_model_file *mf, const struct gguf_class *class, struct kk_err *err);

/* Open "x.gguf", or every part of "x-00001-of-00003.gguf", into mf. */
int kk__gguf_open(struct kk_model_file *mf, const char *path, struct kk_err *err);
int kk__gguf_open_memory(struct kk_model_file *mf, const void *data, size_t len,
                         struct kk_err *err);

#endif
