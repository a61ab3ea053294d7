/* Tokenizers: text <-> ids, from a Hugging Face tokenizer.json (BPE: byte-level, and Gemma's
 * sentencepiece style with byte fallback).
 *
 * Refuses to know: sessions, models. Equal to the Hugging Face `tokenizers` library, token for token
 * (tests/golden/tokenizer). */
#ifndef KK_TOK_TOK_H
#define KK_TOK_TOK_H

#include <stddef.h>
#include <stdint.h>

#include "base/buf.h"
#include "base/err.h"

struct kk_tok;

/* A growable list of ids; the caller starts from {0} and ends with kk_ids_release. */
struct kk_ids {
    uint32_t *id;
    size_t n, cap;
};
int kk_ids_push(struct kk_ids *v, uint32_t id); /* 0 or KK_ENOMEM */
void kk_ids_release(struct kk_ids *v);

/* Load tokenizer.json. Anything the file asks for that is not implemented is refused by name. */
int kk_tok_open(const char *path, struct kk_tok **out, struct kk_err *err);
void kk_tok_close(struct kk_tok *t);

uint32_t kk_tok_size(const struct kk_tok *t); /* 1 + the largest id */

/* Append the ids of text [len bytes] to out. Ill-formed UTF-8 is replaced as U+FFFD, as the oracle's
 * Python binding does with errors="replace". `special`: text such as "<bos>" becomes its special token
 * (else it is plain text). No BOS is added: the caller pushes it. */
int kk_tok_encode(const struct kk_tok *t, const char *text, size_t len, int special,
                  struct kk_ids *out, struct kk_err *err);

/* Append the text of ids to out (not necessarily complete UTF-8 at the end). Special tokens are skipped
 * when skip_special. An id out of range is KK_ERANGE. */
int kk_tok_decode(const struct kk_tok *t, const uint32_t *ids, size_t n, int skip_special,
                  struct kk_buf *out, struct kk_err *err);

/* Id of a token's exact text, or -1. */
int64_t kk_tok_find(const struct kk_tok *t, const char *text);

/* The token's text as the file spells it ("Ġthe", "▁the", "<0x0A>"), or NULL. Borrowed. */
const char *kk_tok_text(const struct kk_tok *t, uint32_t id);
int kk_tok_is_special(const struct kk_tok *t, uint32_t id);

/* Streaming decode: push ids one by one; whole UTF-8 characters come out as soon as they are complete.
 * The concatenation of all pushes and the final flush equals kk_tok_decode of all ids. */
struct kk_tok_stream {
    const struct kk_tok *tok;
    unsigned char held[8]; /* an incomplete character */
    int n_held, started, skip_special;
};
void kk_tok_stream_init(struct kk_tok_stream *s, const struct kk_tok *t, int skip_special);
int kk_tok_stream_push(struct kk_tok_stream *s, uint32_t id, struct kk_buf *out, struct kk_err *err);
int kk_tok_stream_flush(struct kk_tok_stream *s, struct kk_buf *out); /* a broken tail as U+FFFD */

#endif
