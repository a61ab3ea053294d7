/* A tokenizer from the tables of a GGUF file. Everything becomes what a tokenizer.json describes:
 * the pipeline of each kind is written as such a file would write it, and sentencepiece's scores
 * become merges, since "join the neighbours that make the piece of the best score" is BPE whose
 * merges into one piece share one rank. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "base/mem.h"
#include "tok/tok_int.h"

#define MARK "\xe2\x96\x81" /* U+2581, a space in sentencepiece's spelling */

#define WORDS(numbers)                                                                             \
    "(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|" numbers                          \
    "| ?[^\\s\\p{L}\\p{N}]+[\\r\\n]*|\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+"

/* ---- kinds of pipeline -------------------------------------------------------------------- */

enum family { SCORES, MERGES, BYTES };
struct kind {
    enum family family;
    const char *split; /* BYTES: a pattern, or NULL for GPT-2's */
    int nfc, digits, whole_first;
};

/* tokenizer.ggml.pre of byte-level vocabularies. "default" is what old files say. */
static const struct {
    const char *pre;
    struct kind kind;
} byte_kinds[] = {
    {"gpt-2", {BYTES, NULL, 0, 0, 0}},
    {"default", {BYTES, NULL, 0, 0, 0}},
    {"smollm", {BYTES, NULL, 0, 1, 0}},
    {"qwen2", {BYTES, WORDS("\\p{N}"), 1, 0, 0}},
    {"llama-bpe", {BYTES, WORDS("\\p{N}{1,3}"), 0, 0, 1}},
    {"gemma4", {MERGES, NULL, 0, 0, 0}},
};

static int find_kind(const struct kk_vocab *v, struct kind *out, struct kk_err *err)
{
    const char *pre = v->pre ? v->pre : "default";
    char q[64];
    *out = (struct kind){.family = SCORES};
    if (!strcmp(v->model, "llama")) return 0;
    out->family = MERGES;
    if (!strcmp(v->model, "gemma4")) return 0;
    if (strcmp(v->model, "gpt2"))
        return kk_fail(err, KK_EUNSUPPORTED,
                       "tokenizer.ggml.model '%s' is not supported (known: llama, gpt2, gemma4)",
                       kk__quote(q, v->model, strlen(v->model)));
    for (size_t i = 0; i < sizeof byte_kinds / sizeof *byte_kinds; i++) {
        if (strcmp(byte_kinds[i].pre, pre)) continue;
        *out = byte_kinds[i].kind;
        return 0;
    }
    return kk_fail(err, KK_EUNSUPPORTED,
                   "tokenizer.ggml.pre '%s' is not supported (known: gpt-2, llama-bpe, qwen2, "
                   "smollm, gemma4)",
                   kk__quote(q, pre, strlen(pre)));
}

static json_t *byte_level(int use_regex)
{
    return json_pack("{s:s, s:b, s:b}", "type", "ByteLevel", "add_prefix_space", 0, "use_regex",
                     use_regex);
}

static json_t *pre_tokenizer(const struct kind *k)
{
    if (k->family != BYTES) return json_null();
    if (k->digits)
        return json_pack("{s:s, s:[{s:s, s:b}, o]}", "type", "Sequence", "pretokenizers", "type",
                         "Digits", "individual_digits", 1, byte_level(1));
    if (!k->split) return byte_level(1);
    return json_pack("{s:s, s:[{s:s, s:{s:s}, s:s}, o]}", "type", "Sequence", "pretokenizers",
                     "type", "Split", "pattern", "Regex", k->split, "behavior", "Isolated",
                     byte_level(0));
}

static json_t *replace(const char *from, const char *to)
{
    return json_pack("{s:s, s:{s:s}, s:s}", "type", "Replace", "pattern", "String", from, "content",
                     to);
}

static json_t *normalizer(const struct kind *k, int prefix)
{
    if (k->family == BYTES) return k->nfc ? json_pack("{s:s}", "type", "NFC") : json_null();
    if (!prefix) return replace(" ", MARK);
    return json_pack("{s:s, s:[{s:s, s:s}, o]}", "type", "Sequence", "normalizers", "type",
                     "Prepend", "prepend", MARK, replace(" ", MARK));
}

static json_t *decoder(const struct kind *k, int prefix)
{
    if (k->family == BYTES) return json_pack("{s:s}", "type", "ByteLevel");
    json_t *steps =
        json_pack("[o, {s:s}, {s:s}]", replace(MARK, " "), "type", "ByteFallback", "type", "Fuse");
    if (prefix)
        json_array_append_new(steps, json_pack("{s:s, s:s, s:i, s:i}", "type", "Strip", "content",
                                               " ", "start", 1, "stop", 0));
    return json_pack("{s:s, s:o}", "type", "Sequence", "decoders", steps);
}

static int load_pipeline(struct kk_tok *t, const struct kind *k, int prefix, struct kk_err *err)
{
    static load_fn *const load[3] = {kk__load_norm, kk__load_pre, kk__load_dec};
    json_t *part[3] = {normalizer(k, prefix), pre_tokenizer(k), decoder(k, prefix)};
    int rc = 0;
    for (int i = 0; i < 3; i++) {
        if (!rc) rc = part[i] ? load[i](t, part[i], err) : kk_fail(err, KK_ENOMEM, "out of memory");
        json_decref(part[i]);
    }
    t->ignore_merges = k->whole_first;
    t->byte_fallback = t->fuse_unk = k->family != BYTES;
    return rc;
}

/* ---- tokens ------------------------------------------------------------------------------- */

static int is_special(int32_t type)
{
    return type == KK_TOKEN_CONTROL || type == KK_TOKEN_UNKNOWN;
}

/* Is it found in a text as it is? */
static int is_added(int32_t type)
{
    return is_special(type) || type == KK_TOKEN_USER;
}

/* Gemma's own tokens ("\n\n", runs of marks) are found in a text and made by merges. */
static uint32_t flags_of(int32_t type, const struct kind *k)
{
    if (is_special(type)) return ENT_ADDED | ENT_SPECIAL;
    if (is_added(type)) return k->family == MERGES ? ENT_ADDED | ENT_MODEL : ENT_ADDED;
    return type == KK_TOKEN_UNUSED ? ENT_UNUSED : ENT_MODEL;
}

/* A converter may have spelled the marks of a user's token as spaces: they are marks again. */
static int spell(const struct kk_text *in, struct kk_buf *out, struct kk_err *err)
{
    int rc = 0;
    kk_buf_reset(out);
    for (size_t i = 0; !rc && i < in->len; i++)
        rc = in->s[i] == ' ' ? kk_buf_puts(out, MARK) : kk_buf_putc(out, in->s[i]);
    return kk__buf_err(rc, err);
}

static int check_text(const struct kk_text *x, size_t id, int added, struct kk_err *err)
{
    char q[64];
    if (!x->len || memchr(x->s, 0, x->len) || kk__utf8_valid((const u8 *)x->s, x->len) != x->len)
        return kk_fail(err, KK_EFORMAT, "token %zu ('%s') is empty, holds a NUL or is no UTF-8", id,
                       kk__quote(q, x->s, x->len));
    if (added && x->len > KK_TOK_MAX_ADDED)
        return kk_fail(err, KK_EUNSUPPORTED, "token %zu has %zu bytes: expected at most %d", id,
                       x->len, KK_TOK_MAX_ADDED);
    return 0;
}

static int load_tokens(struct kk_tok *t, const struct kk_vocab *v, const struct kind *k,
                       struct kk_err *err)
{
    struct kk_buf spelled;
    int rc = kk__vocab_init(t, (uint32_t)v->n, v->n, err);
    kk_buf_init(&spelled, KK_TOK_MAX_TEXT);
    for (size_t i = 0; !rc && i < v->n; i++) {
        struct kk_text x = v->token[i];
        rc = check_text(&x, i, is_added(v->type[i]), err);
        if (!rc && k->family != BYTES && v->type[i] == KK_TOKEN_USER) {
            rc = spell(&v->token[i], &spelled, err);
            x = (struct kk_text){spelled.data, spelled.len};
        }
        if (!rc) rc = kk__vocab_add(t, (uint32_t)i, x.s, x.len, flags_of(v->type[i], k), err);
    }
    kk_buf_release(&spelled);
    if (!rc) rc = kk__vocab_tables(t, err);
    if (!rc && v->unknown >= 0 && k->family != BYTES) t->unk = (uint32_t)v->unknown;
    return rc;
}

/* sentencepiece looks for user's tokens in normalized text, the Hugging Face pipelines for all
 * added tokens in raw text. */
static int load_added(struct kk_tok *t, const struct kk_vocab *v, const struct kind *k,
                      struct kk_err *err)
{
    size_t n = 0;
    for (size_t i = 0; i < v->n; i++) n += (size_t)is_added(v->type[i]);
    t->added = kk_calloc(n + 1, sizeof *t->added);
    if (!t->added) return kk_fail(err, KK_ENOMEM, "out of memory");
    for (size_t i = 0; i < v->n; i++) {
        if (!is_added(v->type[i])) continue;
        int normalized = k->family == SCORES && !is_special(v->type[i]);
        const struct tok_ent *e = &t->ent[i];
        t->added[t->n_added] = (struct tok_added){
            .id = (uint32_t)i, .special = (u8)is_special(v->type[i]), .normalized = (u8)normalized};
        if (kk__trie_add(normalized ? &t->normed : &t->raw, (const u8 *)t->blob.data + e->text.off,
                         e->text.len, t->n_added++))
            return kk_fail(err, KK_ENOMEM, "out of memory");
    }
    return 0;
}

/* ---- merges from a list ------------------------------------------------------------------- */

/* "left right": the first space after the first character parts them. */
static int load_merges(struct kk_tok *t, const struct kk_vocab *v, struct kk_err *err)
{
    struct kk_buf both;
    int rc = kk__merge_init(t, v->n_merges, err);
    kk_buf_init(&both, KK_TOK_MAX_TEXT);
    for (size_t i = 0; !rc && i < v->n_merges; i++) {
        const struct kk_text *m = &v->merge[i];
        const char *sp = m->len > 2 ? memchr(m->s + 1, ' ', m->len - 2) : NULL;
        if (!sp) {
            rc = kk_fail(err, KK_EFORMAT, "merge %zu must be \"left right\"", i);
            break;
        }
        const char *side[2] = {m->s, sp + 1};
        const size_t len[2] = {(size_t)(sp - m->s), m->len - (size_t)(sp - m->s) - 1};
        rc = kk__merge_texts(t, side, len, i, &both, err);
    }
    kk_buf_release(&both);
    return rc;
}

/* ---- merges from scores ------------------------------------------------------------------- */

struct scored {
    float score;
    uint32_t id;
};

static int by_score(const void *a, const void *b)
{
    const struct scored *x = a, *y = b;
    if (x->score != y->score) return x->score > y->score ? -1 : 1;
    return x->id < y->id ? -1 : x->id > y->id;
}

struct joined {
    uint32_t left, right, id, rank;
};
struct joins {
    struct joined *at;
    size_t n, cap;
};

static int add_join(struct joins *j, struct joined x)
{
    if (j->n == j->cap) {
        size_t cap = j->cap ? 2 * j->cap : 1024;
        struct joined *p = kk_realloc(j->at, cap, sizeof *p);
        if (!p) return KK_ENOMEM;
        j->at = p;
        j->cap = cap;
    }
    j->at[j->n++] = x;
    return 0;
}

/* The piece of these bytes, NONE if there is none that joining can make. */
static uint32_t piece(const struct kk_tok *t, const struct kk_vocab *v, const char *s, size_t len)
{
    uint32_t id = kk__vocab_find(t, s, len, ENT_MODEL);
    return id != KK_TOK_NONE && v->type[id] == KK_TOKEN_NORMAL ? id : KK_TOK_NONE;
}

/* Every way to part a piece into two. */
static int part(const struct kk_tok *t, const struct kk_vocab *v, uint32_t id, uint32_t rank,
                struct joins *j)
{
    const char *s = t->blob.data + t->ent[id].text.off;
    size_t len = t->ent[id].text.len;
    for (size_t cut = 1; cut < len; cut++) {
        if (((u8)s[cut] & 0xc0) == 0x80) continue;
        uint32_t left = piece(t, v, s, cut);
        if (left == KK_TOK_NONE) continue;
        uint32_t right = piece(t, v, s + cut, len - cut);
        if (right == KK_TOK_NONE) continue;
        if (add_join(j, (struct joined){left, right, id, rank})) return KK_ENOMEM;
    }
    return 0;
}

static int join_all(const struct kk_tok *t, const struct kk_vocab *v, struct scored *order,
                    struct joins *j, struct kk_err *err)
{
    size_t n = 0;
    uint32_t rank = 0;
    for (uint32_t i = 0; i < v->n; i++) {
        if (v->type[i] != KK_TOKEN_NORMAL) continue;
        if (isnan(v->score[i]))
            return kk_fail(err, KK_EFORMAT, "the score of token %u is not a number", (unsigned)i);
        order[n++] = (struct scored){v->score[i], i};
    }
    qsort(order, n, sizeof *order, by_score);
    for (size_t i = 0; i < n; i++) {
        if (i && order[i].score != order[i - 1].score) rank++;
        if (part(t, v, order[i].id, rank, j)) return kk_fail(err, KK_ENOMEM, "out of memory");
    }
    return 0;
}

static int load_scores(struct kk_tok *t, const struct kk_vocab *v, struct kk_err *err)
{
    struct joins j = {0};
    if (!v->score) return kk_fail(err, KK_EFORMAT, "key 'tokenizer.ggml.scores' is missing");
    struct scored *order = kk_array(v->n, sizeof *order);
    int rc = order ? join_all(t, v, order, &j, err) : kk_fail(err, KK_ENOMEM, "out of memory");
    if (!rc) rc = kk__merge_init(t, j.n, err);
    for (size_t i = 0; !rc && i < j.n; i++)
        kk__merge_add(t, j.at[i].left, j.at[i].right, j.at[i].rank, j.at[i].id);
    kk_free(order);
    kk_free(j.at);
    return rc;
}

/* ---- */

int kk_tok_from_vocab(const struct kk_vocab *v, struct kk_tok **out, struct kk_err *err)
{
    struct kind k;
    int rc = find_kind(v, &k, err);
    if (rc) return rc;
    struct kk_tok *t = kk__tok_new(err);
    if (!t) return KK_ENOMEM;
    int prefix = k.family == SCORES && v->add_space_prefix;
    rc = load_pipeline(t, &k, prefix, err);
    if (!rc) rc = load_tokens(t, v, &k, err);
    if (!rc) rc = k.family == SCORES ? load_scores(t, v, err) : load_merges(t, v, err);
    if (!rc) rc = load_added(t, v, &k, err);
    if (!rc && v->chat_template) {
        t->chat_template = kk_strdup(v->chat_template);
        if (!t->chat_template) rc = kk_fail(err, KK_ENOMEM, "out of memory");
    }
    if (rc) {
        kk_tok_close(t);
        return rc;
    }
    *out = t;
    return 0;
}
