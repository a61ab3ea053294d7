/* Loading the pipeline of a tokenizer.json: normalizer, pre_tokenizer, decoder. Each is null, one
 * step, or a Sequence of steps; whatever has no name here is refused by its name. */
#include <string.h>

#include "base/mem.h"
#include "tok/tok_int.h"

#define GPT2_PATTERN                                                                               \
    "'s|'t|'re|'ve|'m|'ll|'d| ?\\p{L}+| ?\\p{N}+| ?[^\\s\\p{L}\\p{N}]+|\\s+(?!\\S)|\\s+"

typedef int step_fn(struct kk_tok *t, const json_t *v, const char *type, struct kk_err *err);

static int refuse(const char *what, const char *type, struct kk_err *err)
{
    char q[64];
    return kk_fail(err, KK_EUNSUPPORTED, "%s '%s' is not supported", what,
                   kk__quote(q, type, strlen(type)));
}

/* Call fn for v, or for each step of a Sequence, whose list is under `list`. */
static int each_step(struct kk_tok *t, const json_t *v, const char *what, const char *list,
                     step_fn *fn, struct kk_err *err, int depth)
{
    const char *type;
    if (!v || json_is_null(v)) return 0;
    if (!json_is_object(v)) return kk_fail(err, KK_EFORMAT, "'%s' must be an object or null", what);
    int rc = kk_json_str(v, "type", 1, &type, err);
    if (rc) return kk_wrap(err, rc, "%s", what);
    if (strcmp(type, "Sequence")) {
        rc = fn(t, v, type, err);
        return rc ? kk_wrap(err, rc, "%s", what) : 0;
    }
    const json_t *steps = json_object_get(v, list);
    if (!json_is_array(steps))
        return kk_fail(err, KK_EFORMAT, "%s: Sequence: '%s' must be a list", what, list);
    if (depth >= 4) return kk_fail(err, KK_EUNSUPPORTED, "%s: Sequences nested too deep", what);
    size_t i;
    json_t *step;
    json_array_foreach(steps, i, step)
    {
        if (!json_is_object(step))
            return kk_fail(err, KK_EFORMAT, "%s: Sequence: every step must be an object", what);
        rc = each_step(t, step, what, list, fn, err, depth + 1);
        if (rc) return rc;
    }
    return 0;
}

static int too_many(int n, struct kk_err *err)
{
    if (n < KK_TOK_MAX_STEPS) return 0;
    return kk_fail(err, KK_EUNSUPPORTED, "more than %d steps", KK_TOK_MAX_STEPS);
}

/* obj[key], a string that may be empty, copied. */
static int copy_str(const json_t *obj, const char *key, char **out, size_t *len, struct kk_err *err)
{
    const json_t *s = json_object_get(obj, key);
    if (!json_is_string(s)) return kk_fail(err, KK_EFORMAT, "'%s' must be a string", key);
    *len = json_string_length(s);
    *out = kk_strndup(json_string_value(s), *len);
    return *out ? 0 : kk_fail(err, KK_ENOMEM, "out of memory");
}

static int one_char(const char *key, const char *s, size_t len, struct kk_err *err)
{
    uint32_t cp;
    if (len && *s && kk__utf8_get((const u8 *)s, &cp) == len) return 0;
    return kk_fail(err, KK_EFORMAT, "'%s' must be one character", key);
}

/* ---- normalizer --------------------------------------------------------------------------- */

static int norm_step(struct kk_tok *t, const json_t *v, const char *type, struct kk_err *err)
{
    int rc = too_many(t->n_norm, err);
    if (rc) return rc;
    struct tok_norm *f = &t->norm[t->n_norm++]; /* released with the tokenizer, whole or not */
    if (!strcmp(type, "Replace")) {
        f->kind = NORM_REPLACE;
        rc = kk__pattern_load(json_object_get(v, "pattern"), &f->pat, err);
        return rc ? rc : copy_str(v, "content", &f->text, &f->text_len, err);
    }
    if (!strcmp(type, "Prepend")) {
        f->kind = NORM_PREPEND;
        return copy_str(v, "prepend", &f->text, &f->text_len, err);
    }
    if (!strcmp(type, "Strip")) {
        f->kind = NORM_STRIP;
        rc = kk_json_bool(v, "strip_left", 1, &f->left, err);
        return rc ? rc : kk_json_bool(v, "strip_right", 1, &f->right, err);
    }
    f->kind = NORM_UNICODE;
    f->compose = !strcmp(type, "NFC") || !strcmp(type, "NFKC");
    f->compat = !strcmp(type, "NFKC") || !strcmp(type, "NFKD");
    if (f->compose || f->compat || !strcmp(type, "NFD")) return 0;
    f->kind = NORM_LOWER;
    return strcmp(type, "Lowercase") ? refuse("normalizer", type, err) : 0;
}

int kk__load_norm(struct kk_tok *t, const json_t *v, struct kk_err *err)
{
    return each_step(t, v, "normalizer", "normalizers", norm_step, err, 0);
}

/* ---- pre-tokenizer ------------------------------------------------------------------------ */

static int load_how(const json_t *v, enum split_how *out, struct kk_err *err)
{
    static const char *const name[] = {[HOW_ISOLATED] = "Isolated",
                                       [HOW_REMOVED] = "Removed",
                                       [HOW_PREVIOUS] = "MergedWithPrevious",
                                       [HOW_NEXT] = "MergedWithNext",
                                       [HOW_CONTIGUOUS] = "Contiguous"};
    const char *s;
    int rc = kk_json_str(v, "behavior", 1, &s, err);
    if (rc) return rc;
    for (int i = 0; i <= HOW_CONTIGUOUS; i++) {
        if (strcmp(s, name[i])) continue;
        *out = (enum split_how)i;
        return 0;
    }
    return refuse("behavior", s, err);
}

static int load_split(struct tok_pre *f, const json_t *v, struct kk_err *err)
{
    f->kind = PRE_SPLIT;
    f->split = 1;
    int rc = load_how(v, &f->how, err);
    if (!rc) rc = kk_json_bool(v, "invert", 0, &f->invert, err);
    return rc ? rc : kk__pattern_load(json_object_get(v, "pattern"), &f->pat, err);
}

static int load_byte_level(struct kk_tok *t, struct tok_pre *f, const json_t *v, struct kk_err *err)
{
    int prefix = 0;
    f->kind = PRE_BYTES;
    f->split = 1;
    f->how = HOW_ISOLATED;
    t->byte_level = 1;
    int rc = kk_json_bool(v, "use_regex", 0, &f->split, err);
    if (!rc) rc = kk_json_bool(v, "add_prefix_space", 1, &prefix, err);
    f->prefix = prefix ? PREFIX_ALWAYS : PREFIX_NEVER;
    if (rc || !f->split) return rc;
    return kk__pattern_regex(GPT2_PATTERN, strlen(GPT2_PATTERN), &f->pat, err);
}

/* Shared by the pre-tokenizer and the decoder. */
static int load_prefix(const json_t *v, enum prefix_when *out, struct kk_err *err)
{
    const char *s = "always";
    int add = 1;
    int rc = kk_json_str(v, "prepend_scheme", 0, &s, err);
    if (!rc) rc = kk_json_bool(v, "add_prefix_space", 0, &add, err);
    if (rc) return rc;
    *out = !strcmp(s, "first") ? PREFIX_FIRST : !strcmp(s, "never") ? PREFIX_NEVER : PREFIX_ALWAYS;
    if (*out == PREFIX_ALWAYS && strcmp(s, "always")) return refuse("prepend_scheme", s, err);
    if (!add) *out = PREFIX_NEVER;
    return 0;
}

static int load_metaspace(struct tok_pre *f, const json_t *v, struct kk_err *err)
{
    f->kind = PRE_METASPACE;
    f->split = 1;
    f->how = HOW_NEXT;
    int rc = copy_str(v, "replacement", &f->pat.lit, &f->pat.lit_len, err);
    if (!rc) rc = one_char("replacement", f->pat.lit, f->pat.lit_len, err);
    if (!rc) rc = kk_json_bool(v, "split", 0, &f->split, err);
    return rc ? rc : load_prefix(v, &f->prefix, err);
}

static int pre_step(struct kk_tok *t, const json_t *v, const char *type, struct kk_err *err)
{
    int rc = too_many(t->n_pre, err);
    if (rc) return rc;
    if (t->byte_level)
        return kk_fail(err, KK_EUNSUPPORTED, "'%.40s' after ByteLevel is not supported", type);
    struct tok_pre *f = &t->pre[t->n_pre++];
    if (!strcmp(type, "Split")) return load_split(f, v, err);
    if (!strcmp(type, "ByteLevel")) return load_byte_level(t, f, v, err);
    if (!strcmp(type, "Metaspace")) return load_metaspace(f, v, err);
    if (strcmp(type, "Digits")) return refuse("pre-tokenizer", type, err);
    int individual = 0;
    f->kind = PRE_DIGITS;
    rc = kk_json_bool(v, "individual_digits", 0, &individual, err);
    f->how = individual ? HOW_ISOLATED : HOW_CONTIGUOUS;
    return rc;
}

int kk__load_pre(struct kk_tok *t, const json_t *v, struct kk_err *err)
{
    return each_step(t, v, "pre_tokenizer", "pretokenizers", pre_step, err, 0);
}

/* ---- decoder ------------------------------------------------------------------------------ */

/* How far the steps so far have joined the tokens: each apart; byte tokens joined; one text. */
enum { APART, BYTES_JOINED, ONE_TEXT };

static int joined(const struct kk_tok *t)
{
    int at = APART;
    for (int i = 0; i < t->n_dec; i++) {
        if (t->dec[i].kind == DEC_BYTE_FALLBACK && at < BYTES_JOINED) at = BYTES_JOINED;
        if (t->dec[i].kind == DEC_BYTE_LEVEL) at = ONE_TEXT;
    }
    return t->dec_fused ? ONE_TEXT : at;
}

/* Strip at the start of the whole text. */
static int strip_text(struct kk_tok *t, struct tok_dec *f, struct kk_err *err)
{
    if (f->stop || t->dec_strip || f->text_len >= sizeof t->dec_strip_char)
        return kk_fail(err, KK_EUNSUPPORTED,
                       "a Strip at the end of the whole text, or a second one, is not supported");
    memcpy(t->dec_strip_char, f->text, f->text_len + 1);
    t->dec_strip = (int)f->start;
    kk_free(f->text);
    *f = (struct tok_dec){0};
    t->n_dec--;
    return 0;
}

static int load_strip(struct kk_tok *t, struct tok_dec *f, const json_t *v, int at,
                      struct kk_err *err)
{
    f->kind = DEC_STRIP;
    int rc = copy_str(v, "content", &f->text, &f->text_len, err);
    if (!rc) rc = one_char("content", f->text, f->text_len, err);
    if (!rc) rc = kk_json_int(v, "start", 0, 1 << 20, 1, &f->start, err);
    if (!rc) rc = kk_json_int(v, "stop", 0, 1 << 20, 1, &f->stop, err);
    return rc || at != ONE_TEXT ? rc : strip_text(t, f, err);
}

static int load_dec_metaspace(struct tok_dec *f, const json_t *v, struct kk_err *err)
{
    enum prefix_when when = PREFIX_NEVER;
    f->kind = DEC_METASPACE;
    int rc = copy_str(v, "replacement", &f->pat.lit, &f->pat.lit_len, err);
    if (!rc) rc = one_char("replacement", f->pat.lit, f->pat.lit_len, err);
    if (!rc) rc = load_prefix(v, &when, err);
    f->prefix = when != PREFIX_NEVER;
    return rc;
}

static int dec_step(struct kk_tok *t, const json_t *v, const char *type, struct kk_err *err)
{
    int at = joined(t), rc = too_many(t->n_dec, err);
    if (rc) return rc;
    if (!strcmp(type, "Fuse")) {
        t->dec_fused = 1;
        return 0;
    }
    int is_strip = !strcmp(type, "Strip");
    if (at != APART && !(at == ONE_TEXT && is_strip))
        return kk_fail(err, KK_EUNSUPPORTED,
                       "'%.40s' after ByteFallback, ByteLevel or Fuse is not "
                       "supported",
                       type);
    struct tok_dec *f = &t->dec[t->n_dec++];
    if (is_strip) return load_strip(t, f, v, at, err);
    if (!strcmp(type, "Metaspace")) return load_dec_metaspace(f, v, err);
    if (!strcmp(type, "Replace")) {
        f->kind = DEC_REPLACE;
        rc = kk__pattern_load(json_object_get(v, "pattern"), &f->pat, err);
        return rc ? rc : copy_str(v, "content", &f->text, &f->text_len, err);
    }
    f->kind = DEC_BYTE_LEVEL;
    if (!strcmp(type, "ByteLevel")) return 0;
    f->kind = DEC_BYTE_FALLBACK;
    return strcmp(type, "ByteFallback") ? refuse("decoder", type, err) : 0;
}

int kk__load_dec(struct kk_tok *t, const json_t *v, struct kk_err *err)
{
    t->dec_spaces = !v || json_is_null(v);
    return each_step(t, v, "decoder", "decoders", dec_step, err, 0);
}
