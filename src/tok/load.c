/* Loading tokenizer.json: the file is untrusted, and every id, text and merge is checked here, so
 * that nothing else has to. */
#include <string.h>

#include "base/mem.h"
#include "tok/tok_int.h"

#define MAX_FILE ((size_t)256 << 20)

/* ---- vocabulary --------------------------------------------------------------------------- */

static int check_id(const json_t *v, const char *text, size_t len, uint32_t *id, struct kk_err *err)
{
    char q[64];
    if (!json_is_integer(v))
        return kk_fail(err, KK_EFORMAT, "the id of token '%s' must be an integer",
                       kk__quote(q, text, len));
    json_int_t i = json_integer_value(v);
    if (i < 0 || i >= KK_TOK_MAX_IDS)
        return kk_fail(err, KK_EFORMAT, "token '%s' has id %lld, expected 0 to %u",
                       kk__quote(q, text, len), (long long)i, KK_TOK_MAX_IDS - 1);
    *id = (uint32_t)i;
    return 0;
}

/* An entry of added_tokens: its text and id. */
static int added_entry(const json_t *a, const json_t **text, uint32_t *id, struct kk_err *err)
{
    if (!json_is_object(a))
        return kk_fail(err, KK_EFORMAT, "every entry of 'added_tokens' must be an object");
    *text = json_object_get(a, "content");
    if (!json_is_string(*text))
        return kk_fail(err, KK_EFORMAT, "'content' of an added token must be a string");
    const char *s = json_string_value(*text);
    size_t len = json_string_length(*text);
    if (memchr(s, 0, len)) return kk_fail(err, KK_EUNSUPPORTED, "an added token holds a NUL");
    if (len > KK_TOK_MAX_ADDED)
        return kk_fail(err, KK_EUNSUPPORTED, "an added token of %zu bytes: expected at most %d",
                       len, KK_TOK_MAX_ADDED);
    return check_id(json_object_get(a, "id"), s, len, id, err);
}

/* The largest id + 1 and the number of tokens, over model and added tokens. */
static int measure(const json_t *vocab, const json_t *added, uint32_t *size, size_t *n,
                   struct kk_err *err)
{
    const char *key;
    json_t *v;
    const json_t *text;
    size_t i;
    uint32_t id;
    *size = 0;
    *n = json_object_size(vocab) + json_array_size(added);
    json_object_foreach((json_t *)vocab, key, v)
    {
        int rc = check_id(v, key, strlen(key), &id, err);
        if (rc) return rc;
        if (id >= *size) *size = id + 1;
    }
    json_array_foreach(added, i, v)
    {
        int rc = added_entry(v, &text, &id, err);
        if (rc) return rc;
        if (id >= *size) *size = id + 1;
    }
    return 0;
}

static int load_vocab(struct kk_tok *t, const json_t *model, const json_t *added,
                      struct kk_err *err)
{
    const json_t *vocab = json_object_get(model, "vocab");
    const char *key;
    json_t *v;
    uint32_t size;
    size_t n;
    if (!json_is_object(vocab))
        return kk_fail(err, KK_EFORMAT, "'vocab' must be an object of tokens and ids");
    if (!json_object_size(vocab)) return kk_fail(err, KK_EFORMAT, "'vocab' is empty");
    int rc = measure(vocab, added, &size, &n, err);
    if (!rc) rc = kk__vocab_init(t, size, n, err);
    if (rc) return rc;
    json_object_foreach((json_t *)vocab, key, v)
    {
        rc = kk__vocab_add(t, (uint32_t)json_integer_value(v), key, strlen(key), ENT_MODEL, err);
        if (rc) return rc;
    }
    return kk__vocab_tables(t, err);
}

/* ---- merges ------------------------------------------------------------------------------- */

/* "a b" or ["a", "b"]. */
static int merge_sides(const json_t *m, const char *side[2], size_t len[2])
{
    if (json_is_array(m) && json_array_size(m) == 2) {
        for (size_t k = 0; k < 2; k++) {
            const json_t *s = json_array_get(m, k);
            if (!json_is_string(s)) return -1;
            side[k] = json_string_value(s);
            len[k] = json_string_length(s);
        }
        return 0;
    }
    if (!json_is_string(m)) return -1;
    const char *s = json_string_value(m), *sp = strchr(s, ' ');
    if (!sp || strchr(sp + 1, ' ')) return -1;
    side[0] = s;
    len[0] = (size_t)(sp - s);
    side[1] = sp + 1;
    len[1] = strlen(sp + 1);
    return 0;
}

int kk__merge_texts(struct kk_tok *t, const char *const side[2], const size_t len[2], size_t rank,
                    struct kk_buf *both, struct kk_err *err)
{
    uint32_t id[2];
    char q[64];
    kk_buf_reset(both);
    for (int k = 0; k < 2; k++) {
        id[k] = kk__vocab_find(t, side[k], len[k], ENT_MODEL);
        if (id[k] == KK_TOK_NONE)
            return kk_fail(err, KK_EFORMAT, "merge %zu names '%s', which is no token", rank,
                           kk__quote(q, side[k], len[k]));
        int rc = kk_buf_append(both, side[k], len[k]);
        if (rc) return kk__buf_err(rc, err);
    }
    uint32_t into = kk__vocab_find(t, both->data, both->len, ENT_MODEL);
    if (into == KK_TOK_NONE)
        return kk_fail(err, KK_EFORMAT, "merge %zu makes '%s', which is no token", rank,
                       kk__quote(q, both->data, both->len));
    kk__merge_add(t, id[0], id[1], (uint32_t)rank, into);
    return 0;
}

static int load_merge(struct kk_tok *t, const json_t *m, size_t rank, struct kk_buf *both,
                      struct kk_err *err)
{
    const char *side[2];
    size_t len[2];
    if (merge_sides(m, side, len))
        return kk_fail(err, KK_EFORMAT, "merge %zu must be \"left right\" or [\"left\", \"right\"]",
                       rank);
    return kk__merge_texts(t, side, len, rank, both, err);
}

static int load_merges(struct kk_tok *t, const json_t *model, struct kk_err *err)
{
    const json_t *merges = json_object_get(model, "merges");
    struct kk_buf both;
    json_t *m;
    size_t i;
    if (!json_is_array(merges)) return kk_fail(err, KK_EFORMAT, "'merges' must be a list");
    int rc = kk__merge_init(t, json_array_size(merges), err);
    kk_buf_init(&both, MAX_FILE);
    if (!rc) json_array_foreach(merges, i, m)
        {
            rc = load_merge(t, m, i, &both, err);
            if (rc) break;
        }
    kk_buf_release(&both);
    return rc;
}

/* ---- the model ---------------------------------------------------------------------------- */

/* Options that are refused unless null, empty or zero. */
static int refuse_options(const json_t *model, struct kk_err *err)
{
    static const char *const name[] = {"continuing_subword_prefix", "end_of_word_suffix"};
    double dropout = 0;
    for (int i = 0; i < 2; i++) {
        const char *s = "";
        int rc = kk_json_str(model, name[i], 0, &s, err);
        if (rc) return rc;
        if (*s) return kk_fail(err, KK_EUNSUPPORTED, "'%s' is not supported", name[i]);
    }
    int rc = kk_json_real(model, "dropout", 0, 1, 0, &dropout, err);
    if (rc || dropout == 0) return rc;
    return kk_fail(err, KK_EUNSUPPORTED, "'dropout' is not supported");
}

static int load_unk(struct kk_tok *t, const json_t *model, struct kk_err *err)
{
    const char *unk = NULL;
    char q[64];
    int rc = kk_json_str(model, "unk_token", 0, &unk, err);
    if (rc || !unk) return rc;
    t->unk = kk__vocab_find(t, unk, strlen(unk), ENT_MODEL);
    if (t->unk != KK_TOK_NONE) return 0;
    return kk_fail(err, KK_EFORMAT, "'unk_token' is '%s', which is no token",
                   kk__quote(q, unk, strlen(unk)));
}

static int load_model(struct kk_tok *t, const json_t *model, const json_t *added,
                      struct kk_err *err)
{
    const char *type = "BPE";
    char q[64];
    if (!json_is_object(model)) return kk_fail(err, KK_EFORMAT, "'model' must be an object");
    int rc = kk_json_str(model, "type", 0, &type, err);
    if (rc) return rc;
    if (strcmp(type, "BPE"))
        return kk_fail(err, KK_EUNSUPPORTED, "model type '%s' is not supported, only BPE is",
                       kk__quote(q, type, strlen(type)));
    rc = refuse_options(model, err);
    if (!rc) rc = kk_json_bool(model, "fuse_unk", 0, &t->fuse_unk, err);
    if (!rc) rc = kk_json_bool(model, "byte_fallback", 0, &t->byte_fallback, err);
    if (!rc) rc = kk_json_bool(model, "ignore_merges", 0, &t->ignore_merges, err);
    if (!rc) rc = load_vocab(t, model, added, err);
    if (!rc) rc = load_unk(t, model, err);
    if (!rc) rc = load_merges(t, model, err);
    return rc;
}

/* ---- added tokens ------------------------------------------------------------------------- */

static int load_added_flags(const json_t *v, struct tok_added *a, struct kk_err *err)
{
    static const char *const name[] = {"special", "lstrip", "rstrip", "single_word"};
    u8 *const flag[] = {&a->special, &a->lstrip, &a->rstrip, &a->single_word};
    int b, rc = 0;
    for (int i = 0; i < 4 && !rc; i++) {
        b = 0;
        rc = kk_json_bool(v, name[i], 0, &b, err);
        *flag[i] = (u8)b;
    }
    b = !a->special;
    if (!rc) rc = kk_json_bool(v, "normalized", 0, &b, err);
    a->normalized = (u8)b;
    return rc;
}

/* A token that matches normalized text is itself normalized, and decodes to that. */
static int normalize_added(struct kk_tok *t, struct tok_ent *e, struct kk_err *err)
{
    const u8 *s = (const u8 *)t->blob.data + e->text.off, *text = s;
    size_t len = e->text.len;
    struct kk_buf buf[2];
    for (int i = 0; i < 2; i++) kk_buf_init(&buf[i], 1 << 20);
    int rc = kk__normalize(t, buf, &s, &len, err);
    if (!rc && s != text) {
        e->shown = (struct tok_span){(uint32_t)t->blob.len, (uint32_t)len};
        rc = kk__buf_err(kk_buf_append(&t->blob, s, len), err);
    }
    for (int i = 0; i < 2; i++) kk_buf_release(&buf[i]);
    return rc;
}

/* Into the trie that sees raw text, or the one that sees normalized text. */
static int index_added(struct kk_tok *t, uint32_t k, struct kk_err *err)
{
    const struct tok_added *a = &t->added[k];
    struct tok_ent *e = &t->ent[a->id];
    int rc = a->normalized ? normalize_added(t, e, err) : 0;
    if (rc) return rc;
    const u8 *s = (const u8 *)t->blob.data + e->shown.off;
    if (!kk__trie_add(a->normalized ? &t->normed : &t->raw, s, e->shown.len, k)) return 0;
    return kk_fail(err, KK_ENOMEM, "out of memory");
}

static int load_added(struct kk_tok *t, const json_t *added, struct kk_err *err)
{
    const json_t *text;
    json_t *v;
    size_t i;
    uint32_t id;
    t->added = kk_calloc(json_array_size(added) + 1, sizeof *t->added);
    if (!t->added) return kk_fail(err, KK_ENOMEM, "out of memory");
    json_array_foreach(added, i, v)
    {
        int rc = added_entry(v, &text, &id, err);
        if (rc) return rc;
        size_t len = json_string_length(text);
        if (!len) continue; /* as in the oracle */
        struct tok_added *a = &t->added[t->n_added++];
        a->id = id;
        rc = load_added_flags(v, a, err);
        if (!rc)
            rc = kk__vocab_add(t, id, json_string_value(text), len,
                               ENT_ADDED | (a->special ? ENT_SPECIAL : 0), err);
        if (rc) return rc;
    }
    for (int special = 1; special >= 0; special--) /* of two equal texts the special one is found */
        for (uint32_t k = 0; k < t->n_added; k++)
            if (t->added[k].special == special) {
                int rc = index_added(t, k, err);
                if (rc) return rc;
            }
    return 0;
}

/* ---- the file ----------------------------------------------------------------------------- */

static int load_all(struct kk_tok *t, const json_t *root, struct kk_err *err)
{
    const json_t *added = json_object_get(root, "added_tokens");
    if (!json_is_object(root)) return kk_fail(err, KK_EFORMAT, "not an object");
    if (json_is_null(added)) added = NULL;
    if (added && !json_is_array(added))
        return kk_fail(err, KK_EFORMAT, "'added_tokens' must be a list");
    int rc = kk__load_norm(t, json_object_get(root, "normalizer"), err);
    if (!rc) rc = kk__load_pre(t, json_object_get(root, "pre_tokenizer"), err);
    if (!rc) rc = kk__load_dec(t, json_object_get(root, "decoder"), err);
    if (!rc) rc = load_model(t, json_object_get(root, "model"), added, err);
    if (!rc) rc = load_added(t, added, err);
    return rc;
}

struct kk_tok *kk__tok_new(struct kk_err *err)
{
    struct kk_tok *t = kk_calloc(1, sizeof *t);
    if (!t) {
        kk_fail(err, KK_ENOMEM, "out of memory");
        return NULL;
    }
    t->unk = KK_TOK_NONE;
    kk_buf_init(&t->blob, KK_TOK_MAX_TEXT);
    return t;
}

int kk_tok_open(const char *path, struct kk_tok **out, struct kk_err *err)
{
    json_t *root = NULL;
    struct kk_tok *t = kk__tok_new(err);
    if (!t) return KK_ENOMEM;
    int rc = kk_json_load(path, MAX_FILE, &root, err);
    if (!rc) {
        rc = load_all(t, root, err);
        if (rc) kk_wrap(err, rc, "tokenizer '%s'", path);
    }
    json_decref(root);
    if (rc) {
        kk_tok_close(t);
        return rc;
    }
    *out = t;
    return 0;
}

void kk_tok_close(struct kk_tok *t)
{
    if (!t) return;
    for (int i = 0; i < KK_TOK_MAX_STEPS; i++) {
        kk__pattern_release(&t->norm[i].pat);
        kk__pattern_release(&t->pre[i].pat);
        kk__pattern_release(&t->dec[i].pat);
        kk_free(t->norm[i].text);
        kk_free(t->dec[i].text);
    }
    kk_buf_release(&t->blob);
    kk_free(t->ent);
    kk_free(t->slot);
    kk_free(t->merge);
    kk_free(t->joint);
    kk_free(t->char_id);
    kk_free(t->added);
    kk_free(t->raw.node);
    kk_free(t->normed.node);
    kk_free(t->chat_template);
    kk_free(t);
}
