/* Inside src/tok only: what a loaded tokenizer is, and the parts of an encode.
 *
 * Encoding, in the order of Hugging Face `tokenizers` (each part is one file):
 *
 *   utf8.c       ill-formed bytes become U+FFFD, once; everything after works on valid UTF-8
 *   added.c      added tokens that match the raw text are cut out
 *   normalize.c  each remaining segment is normalized
 *   added.c      added tokens that match normalized text are cut out
 *   pretok.c     each remaining segment is split into pieces
 *   bpe.c        each piece becomes ids
 *
 * Byte-level tokenizers spell bytes as printable letters ("Ġ" is a space). Text is never rewritten
 * in that spelling: a piece stays bytes, and the BPE starts from byte_id[]. That is why a ByteLevel
 * pre-tokenizer must be the last.
 *
 * Invariants of a loaded tokenizer:
 *   1. ids < KK_TOK_MAX_IDS; an id without a token ("hole") has no flags.
 *   2. Every merge names three model tokens, and text(id) = text(a) text(b).
 *   3. Nothing changes after kk_tok_open: any number of threads may use one tokenizer. */
#ifndef KK_TOK_TOK_INT_H
#define KK_TOK_TOK_INT_H

#define PCRE2_CODE_UNIT_WIDTH 8
#include <pcre2.h>

#include "base/buf.h"
#include "base/json.h"
#include "tok/tok.h"
#include "tok/utf8_int.h"

#define KK_TOK_MAX_IDS   (1u << 22)
#define KK_TOK_MAX_STEPS 16
#define KK_TOK_NONE      UINT32_MAX
#define KK_TOK_MAX_TEXT  ((size_t)1 << 30) /* bytes of one text, and of any rewriting of it */
#define KK_TOK_MAX_ADDED 4096 /* of an added token: bounds the search at each place of a text */

/* ---- regex.c: patterns -------------------------------------------------------------------- */

/* A literal (code NULL) or a compiled pattern. */
struct tok_pattern {
    pcre2_code *code;
    char *lit; /* owned */
    size_t lit_len;
};
/* {"String": s} or {"Regex": s}. */
int kk__pattern_load(const json_t *v, struct tok_pattern *out, struct kk_err *err);
int kk__pattern_regex(const char *rx, size_t len, struct tok_pattern *out, struct kk_err *err);
void kk__pattern_release(struct tok_pattern *p);

/* Successive matches in s [len]. Start from {.p, .s, .len}; next: 1 and [start, end), 0 at the end,
 * or an error (a pattern that costs too much on this text). */
struct tok_matches {
    const struct tok_pattern *p;
    const u8 *s;
    size_t len, at, last_end;
    int any;
    pcre2_match_data *md; /* made on first use; kk__matches_end frees it */
};
int kk__matches_next(struct tok_matches *m, size_t *start, size_t *end, struct kk_err *err);
void kk__matches_end(struct tok_matches *m);

/* ---- the pipeline, as loaded -------------------------------------------------------------- */

enum norm_kind { NORM_REPLACE, NORM_PREPEND, NORM_UNICODE, NORM_LOWER, NORM_STRIP };
struct tok_norm {
    enum norm_kind kind;
    struct tok_pattern pat; /* REPLACE */
    char *text;             /* REPLACE, PREPEND; owned */
    size_t text_len;
    int compose, compat; /* UNICODE: NFC = compose, NFKD = compat, NFKC = both */
    int left, right;     /* STRIP */
};

enum split_how { HOW_ISOLATED, HOW_REMOVED, HOW_PREVIOUS, HOW_NEXT, HOW_CONTIGUOUS };
enum pre_kind { PRE_SPLIT, PRE_DIGITS, PRE_BYTES, PRE_METASPACE };
enum prefix_when { PREFIX_NEVER, PREFIX_FIRST, PREFIX_ALWAYS };
struct tok_pre {
    enum pre_kind kind;
    enum split_how how;
    struct tok_pattern pat; /* SPLIT; BYTES with use_regex; METASPACE: its mark */
    int invert, split;
    enum prefix_when prefix;
};

enum dec_kind { DEC_REPLACE, DEC_STRIP, DEC_BYTE_LEVEL, DEC_METASPACE, DEC_BYTE_FALLBACK };
struct tok_dec {
    enum dec_kind kind;
    struct tok_pattern pat;
    char *text;
    size_t text_len;
    int64_t start, stop; /* STRIP */
    int prefix;          /* METASPACE: the first token loses its marks */
};

/* Added tokens as a byte trie; a node's children are a list. Node 0 is unused. */
struct trie_node {
    uint32_t child, sibling;
    uint32_t tok; /* index into added, or KK_TOK_NONE */
    u8 byte;
};
struct tok_trie {
    struct trie_node *node;
    uint32_t n, cap;
    uint32_t first[256];
};
struct tok_added {
    uint32_t id;
    u8 special, lstrip, rstrip, single_word, normalized;
};

/* ATOM: a byte or the unknown token. UNUSED: it has a text that no text becomes. */
enum { ENT_MODEL = 1, ENT_ADDED = 2, ENT_SPECIAL = 4, ENT_ATOM = 8, ENT_UNUSED = 16 };
struct tok_span {
    uint32_t off, len;
};
struct tok_ent {
    struct tok_span text;  /* in blob, NUL-terminated */
    struct tok_span shown; /* in blob: what a decode starts from; text, or as normalized */
    uint32_t flags;        /* 0: a hole */
};

struct tok_merge {
    uint64_t key; /* left << 32 | right; UINT64_MAX: empty */
    uint32_t rank, id;
};

struct kk_tok {
    struct tok_ent *ent; /* [size] */
    uint32_t size;
    struct kk_buf blob;
    uint32_t *slot;              /* text -> id, open addressing */
    uint32_t slot_mask, max_len; /* max_len: bytes of the longest token text */

    struct tok_merge *merge;
    uint32_t merge_slots; /* two thirds of them full */
    uint64_t *joint; /* bits by hash: some merge may join these two symbols (false positives) */
    uint32_t joint_mask;
    int no_cuts;           /* joint does not say it all */
    uint32_t *char_id;     /* [65536]: id of a one-character token, or NONE */
    uint32_t byte_id[256]; /* the same through the byte spelling */
    uint32_t fallback[256];
    uint32_t unk;
    int fuse_unk, ignore_merges, byte_level, byte_fallback;

    struct tok_added *added;
    uint32_t n_added;
    struct tok_trie raw, normed;

    struct tok_norm norm[KK_TOK_MAX_STEPS];
    struct tok_pre pre[KK_TOK_MAX_STEPS];
    struct tok_dec dec[KK_TOK_MAX_STEPS];
    int n_norm, n_pre, n_dec;
    int dec_spaces;         /* no decoder: tokens joined by spaces */
    int dec_fused;          /* the decoder holds a Fuse (load only) */
    char dec_strip_char[8]; /* the decoder's last Strip: this character, */
    int dec_strip;          /* at most so many times, from the start of the text */
    char *chat_template;    /* as the model brings it, owned; or NULL */
};

/* ---- vocab.c ------------------------------------------------------------------------------ */

int kk__vocab_init(struct kk_tok *t, uint32_t size, size_t n_tokens, struct kk_err *err);
int kk__vocab_add(struct kk_tok *t, uint32_t id, const char *text, size_t len, uint32_t flags,
                  struct kk_err *err);
/* Id of a text, or NONE. want: flags the token must have (0: any). */
uint32_t kk__vocab_find(const struct kk_tok *t, const void *text, size_t len, uint32_t want);
int kk__vocab_tables(struct kk_tok *t, struct kk_err *err); /* char_id, byte_id, fallback */
int kk__merge_init(struct kk_tok *t, size_t n, struct kk_err *err);
void kk__merge_add(struct kk_tok *t, uint32_t a, uint32_t b, uint32_t rank, uint32_t id);

/* ---- load.c, from_vocab.c, pipeline.c ------------------------------------------------------ */

struct kk_tok *kk__tok_new(struct kk_err *err); /* empty; NULL without memory */
/* Merge number `rank`: two texts that are tokens and make one. both: scratch. */
int kk__merge_texts(struct kk_tok *t, const char *const side[2], const size_t len[2], size_t rank,
                    struct kk_buf *both, struct kk_err *err);

typedef int load_fn(struct kk_tok *t, const json_t *v, struct kk_err *err);
load_fn kk__load_norm, kk__load_pre, kk__load_dec;
/* Bytes of a token that is no hole, n of them at *out: in blob or in b, or "". */
int kk__decode_token(const struct kk_tok *t, uint32_t id, int first, struct kk_buf b[2],
                     const u8 **out, size_t *n, struct kk_err *err);

/* ---- one encode --------------------------------------------------------------------------- */

struct sym;
struct heap_ent;
struct tok_enc {
    const struct kk_tok *t;
    struct kk_ids *out;
    struct kk_err *err;
    int special;
    const uint32_t *never; /* [n_never]: added tokens that are plain text here */
    int n_never;
    struct kk_buf fixed, norm[2];
    struct kk_buf step[KK_TOK_MAX_STEPS]; /* a rewritten piece, per step */
    struct tok_matches match[KK_TOK_MAX_STEPS];
    struct kk_buf spelled; /* a piece in byte spelling (ignore_merges) */
    uint32_t *ids;         /* [cap]: symbols of the piece at hand */
    struct sym *sym;       /* [cap] */
    struct heap_ent *heap; /* [2 cap] */
    size_t ids_cap, sym_cap;
};

/* A run of text that holds no added token. first: it starts where the whole text starts. */
typedef int segment_fn(struct tok_enc *e, const u8 *s, size_t len, int first);

int kk__trie_add(struct tok_trie *tr, const u8 *s, size_t len, uint32_t tok);
/* Cut the trie's tokens out of s: pushes their ids, calls fn between them, in order. */
int kk__added_split(struct tok_enc *e, const struct tok_trie *tr, const u8 *s, size_t len,
                    int first, segment_fn *fn);
/* *s, *len become the normalized text: the input, or in buf[0] or buf[1]. */
int kk__normalize(const struct kk_tok *t, struct kk_buf buf[2], const u8 **s, size_t *len,
                  struct kk_err *err);
/* out = s with every match of pat replaced by text. */
int kk__replace(const struct tok_pattern *pat, const char *text, size_t text_len, const u8 *s,
                size_t len, struct kk_buf *out, struct kk_err *err);
int kk__pretok(struct tok_enc *e, const u8 *s, size_t len, int first);
int kk__bpe(struct tok_enc *e, const u8 *s, size_t len);

/* As kk_tok_encode of plain text in the middle of another, behind a token; also the added tokens
 * never [n] are plain text. */
int kk__encode_part(const struct kk_tok *t, const char *text, size_t len, const uint32_t *never,
                    int n_never, struct kk_ids *out, struct kk_err *err);

/* A kk_buf code as an error with a message. */
int kk__buf_err(int rc, struct kk_err *err);

#endif
