/* Tokenizers: text <-> ids, from a Hugging Face tokenizer.json (BPE: byte-level, and Gemma's
 * sentencepiece style with byte fallback), or from the tables in a GGUF file.
 *
 * Refuses to know: sessions, models. Equal to the Hugging Face `tokenizers` library, token for
 * token (tests/golden/tokenizer), with one difference by design: where a run of byte tokens
 * ("<0xE2>") is ill-formed, the library decodes every byte of the whole run as U+FFFD; here only
 * the ill-formed parts are, since a stream cannot take back what it has given.
 *
 * Not part of an encode: post_processor (no BOS is added), truncation, padding. A loaded tokenizer
 * never changes: any number of threads may use it. A stream belongs to one thread. */
#ifndef KK_TOK_TOK_H
#define KK_TOK_TOK_H

#include <stddef.h>
#include <stdint.h>

#include "base/buf.h"
#include "base/err.h"
#include "base/vocab.h"

struct kk_tok;

/* A growable list of ids; the caller starts from {0} and ends with kk_ids_release. */
struct kk_ids {
    uint32_t *id;
    size_t n, cap;
};
int kk_ids_push(struct kk_ids *v, uint32_t id); /* 0 or KK_ENOMEM */
void kk_ids_release(struct kk_ids *v);

/* Load tokenizer.json (at most 256 MiB). Anything the file asks for that is not implemented is
 * refused by name: KK_EUNSUPPORTED. A malformed file is KK_EFORMAT, one line that names what is
 * wrong. */
int kk_tok_open(const char *path, struct kk_tok **out, struct kk_err *err);
/* tokenizer.json of a snapshot directory, and the chat template beside it, for tok/chat.h:
 * chat_template.jinja (at most 1 MiB), else tokenizer_config.json's "chat_template". Errors as
 * above, and those of these files. */
int kk_tok_open_dir(const char *dir, struct kk_tok **out, struct kk_err *err);
/* From a GGUF's tables (docs/formats/gguf.md): model "llama" (sentencepiece's pieces and scores),
 * "gpt2" with a known pre-tokenizer, "gemma4". Equal to sentencepiece and to the Hugging Face
 * library. v may be released afterwards. KK_EUNSUPPORTED names what is not known; KK_EFORMAT. */
int kk_tok_from_vocab(const struct kk_vocab *v, struct kk_tok **out, struct kk_err *err);
void kk_tok_close(struct kk_tok *t);

uint32_t kk_tok_size(const struct kk_tok *t); /* 1 + the largest id */

/* Append the ids of text [len bytes] to out. Ill-formed UTF-8 is replaced as U+FFFD, as Python's
 * bytes.decode("utf-8", "replace") does. `special`: text such as "<bos>" becomes its special token
 * (else it is plain text; added tokens that are not special are always found). No BOS is added: the
 * caller pushes it. KK_ERANGE for a text over 1 GiB; KK_EEXHAUSTED if a pattern of the file costs
 * too much on this text; on failure out is as before. */
int kk_tok_encode(const struct kk_tok *t, const char *text, size_t len, int special,
                  struct kk_ids *out, struct kk_err *err);

/* Append the text of ids to out: always well-formed UTF-8 (a character cut at the end is U+FFFD;
 * use a stream to decode in parts). Special tokens are skipped when skip_special. An id that is not
 * below kk_tok_size is KK_ERANGE; one below it without a token has no text. */
int kk_tok_decode(const struct kk_tok *t, const uint32_t *ids, size_t n, int skip_special,
                  struct kk_buf *out, struct kk_err *err);

/* Id of a token's exact text, or -1. */
int64_t kk_tok_find(const struct kk_tok *t, const char *text);

/* The token's text as the file spells it ("Ġthe", "▁the", "<0x0A>"), or NULL. Borrowed. */
const char *kk_tok_text(const struct kk_tok *t, uint32_t id);
int kk_tok_is_special(const struct kk_tok *t, uint32_t id);

/* Streaming decode: push ids one by one; whole UTF-8 characters come out as soon as they are
 * complete. The concatenation of all pushes and the final flush equals kk_tok_decode of all ids. */
struct kk_tok_stream {
    const struct kk_tok *tok;
    unsigned char held[8]; /* an incomplete character */
    int n_held, started, skip_special;
    int n_strip; /* leading characters the decoder may still strip */
};
void kk_tok_stream_init(struct kk_tok_stream *s, const struct kk_tok *t, int skip_special);
int kk_tok_stream_push(struct kk_tok_stream *s, uint32_t id, struct kk_buf *out,
                       struct kk_err *err);
int kk_tok_stream_flush(struct kk_tok_stream *s, struct kk_buf *out); /* a broken tail as U+FFFD */

#endif
