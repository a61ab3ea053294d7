/* The tokenizer's keys of a GGUF as a struct kk_vocab. */
#include <string.h>

#include "base/mem.h"
#include "file/gguf_int.h"

#define MAX_IDS (1u << 22)

/* The list under key, of the given type: *out NULL if the key is missing. */
static int find_list(const struct kk_gguf *g, const char *key, enum gguf_type type,
                     const struct gguf_kv **out, struct kk_err *err)
{
    const struct gguf_kv *kv = kk__gguf_find(g, key);
    *out = kv;
    if (!kv || (kv->is_array && kv->type == type && kv->n <= MAX_IDS)) return 0;
    return kk_fail(err, KK_EFORMAT, "key '%s' must be a list of at most %u %s", key, MAX_IDS,
                   type == GGUF_STRING ? "texts" : "numbers of 32 bits");
}

static int get_texts(const struct kk_gguf *g, const char *key, struct kk_text **out, size_t *n,
                     struct kk_err *err)
{
    const struct gguf_kv *kv;
    int rc = find_list(g, key, GGUF_STRING, &kv, err);
    if (rc || !kv) return rc;
    *out = kk_array(kv->n + 1, sizeof **out);
    if (!*out) return kk_fail(err, KK_ENOMEM, "out of memory for key '%s'", key);
    const unsigned char *at = kv->at;
    for (uint64_t i = 0; i < kv->n; i++) (*out)[i].s = kk__gguf_string(&at, &(*out)[i].len);
    *n = kv->n;
    return 0;
}

/* n numbers of 32 bits, one for each token; *out NULL if the key is missing. */
static int get_words(const struct kk_gguf *g, const char *key, enum gguf_type type, size_t n,
                     void **out, struct kk_err *err)
{
    const struct gguf_kv *kv;
    int rc = find_list(g, key, type, &kv, err);
    if (rc || !kv) return rc;
    if (kv->n != n)
        return kk_fail(err, KK_EFORMAT, "key '%s' has %llu entries for %zu tokens", key,
                       (unsigned long long)kv->n, n);
    *out = kk_array(n + 1, 4);
    if (!*out) return kk_fail(err, KK_ENOMEM, "out of memory for key '%s'", key);
    memcpy(*out, kv->at, n * 4);
    return 0;
}

/* Keys that would change what a text becomes, and are not implemented. */
static int refuse_unsupported(const struct kk_gguf *g, struct kk_err *err)
{
    int squeeze = 0;
    const struct gguf_kv *map = kk__gguf_find(g, "tokenizer.ggml.precompiled_charsmap");
    int rc = kk__gguf_bool(g, "tokenizer.ggml.remove_extra_whitespaces", &squeeze, err);
    if (rc) return rc;
    if (squeeze)
        return kk_fail(err, KK_EUNSUPPORTED,
                       "key 'tokenizer.ggml.remove_extra_whitespaces' is true, which is not "
                       "supported");
    if (map && map->n)
        return kk_fail(err, KK_EUNSUPPORTED,
                       "key 'tokenizer.ggml.precompiled_charsmap' is not supported");
    return 0;
}

static int get_all(const struct kk_gguf *g, struct kk_vocab *v, struct kk_err *err)
{
    void *score = NULL, *type = NULL;
    v->unknown = -1;
    int rc = kk__gguf_text(g, "tokenizer.ggml.model", &v->model, err);
    if (!rc && (!v->model || !strcmp(v->model, "none")))
        return kk_fail(err, KK_ENOENT, "there is no tokenizer in it (key 'tokenizer.ggml.model')");
    if (!rc) rc = refuse_unsupported(g, err);
    if (!rc) rc = kk__gguf_text(g, "tokenizer.ggml.pre", &v->pre, err);
    if (!rc) rc = kk__gguf_text(g, "tokenizer.chat_template", &v->chat_template, err);
    if (!rc) rc = get_texts(g, "tokenizer.ggml.tokens", &v->token, &v->n, err);
    if (!rc && !v->n) rc = kk_fail(err, KK_EFORMAT, "key 'tokenizer.ggml.tokens' has no tokens");
    if (!rc) rc = get_texts(g, "tokenizer.ggml.merges", &v->merge, &v->n_merges, err);
    if (!rc) rc = get_words(g, "tokenizer.ggml.scores", GGUF_F32, v->n, &score, err);
    v->score = score;
    if (!rc) rc = get_words(g, "tokenizer.ggml.token_type", GGUF_I32, v->n, &type, err);
    v->type = type;
    if (!rc && !type) rc = kk_fail(err, KK_EFORMAT, "key 'tokenizer.ggml.token_type' is missing");
    if (!rc)
        rc = kk__gguf_int(g, "tokenizer.ggml.unknown_token_id", 0, (int64_t)v->n - 1, 0,
                          &v->unknown, err);
    v->add_space_prefix = v->model && !strcmp(v->model, "llama");
    if (!rc) rc = kk__gguf_bool(g, "tokenizer.ggml.add_space_prefix", &v->add_space_prefix, err);
    return rc;
}

int kk_model_file_vocab(const struct kk_model_file *mf, struct kk_vocab *out, struct kk_err *err)
{
    *out = (struct kk_vocab){0};
    KK_BUG_ON(!mf->gguf);
    int rc = get_all(mf->gguf, out, err);
    if (rc) kk_vocab_release(out);
    return rc;
}

static int text_is(const struct kk_gguf *g, const char *key, const char *want)
{
    const struct gguf_kv *kv = kk__gguf_find(g, key);
    size_t n;
    if (!kv || kv->is_array || kv->type != GGUF_STRING) return 0;
    const unsigned char *at = kv->at;
    const char *s = kk__gguf_string(&at, &n);
    return n == strlen(want) && !memcmp(s, want, n);
}

int kk__gguf_adds_bos(const struct kk_gguf *g)
{
    return text_is(g, "tokenizer.ggml.model", "llama") ||
           text_is(g, "tokenizer.ggml.model", "gemma4") ||
           text_is(g, "tokenizer.ggml.pre", "llama-bpe");
}

/* ---- keys as text (inspect) --------------------------------------------------------------- */

#define SHOWN 60 /* bytes of a text, elements of a list at most 6 */

/* s, cut between characters, control characters as spaces. */
static int show_text(struct kk_buf *out, const char *s, size_t len)
{
    size_t n = len > SHOWN ? SHOWN : len;
    while (n < len && n && ((unsigned char)s[n] & 0xc0) == 0x80) n--;
    int rc = kk_buf_putc(out, '"');
    for (size_t i = 0; !rc && i < n; i++)
        rc = kk_buf_putc(out, (unsigned char)s[i] < 32 || s[i] == 127 ? ' ' : s[i]);
    return rc ? rc : kk_buf_puts(out, n < len ? "...\"" : "\"");
}

static int show_value(struct kk_buf *out, const struct gguf_kv *kv, uint64_t i,
                      const unsigned char **at)
{
    double d;
    int64_t v;
    size_t n;
    if (kv->type == GGUF_STRING) {
        const char *s = kk__gguf_string(at, &n);
        return show_text(out, s, n);
    }
    if (kv->type == GGUF_BOOL) return kk_buf_puts(out, kv->at[i] ? "true" : "false");
    if (kk__gguf_whole(kv, i, &v)) return kk_buf_printf(out, "%lld", (long long)v);
    kk__gguf_number(kv, i, &d);
    return kk_buf_printf(out, "%.9g", d);
}

int kk_model_file_meta(const struct kk_model_file *mf, size_t i, const char **key,
                       struct kk_buf *value)
{
    if (!mf->gguf || i >= mf->gguf->n_kv) return KK_ENOENT;
    const struct gguf_kv *kv = &mf->gguf->kv[i];
    const unsigned char *at = kv->at;
    *key = kv->key;
    if (!kv->is_array) return show_value(value, kv, 0, &at);
    uint64_t most = kv->type == GGUF_STRING ? 3 : 6, n = kv->n < most ? kv->n : most;
    int rc = kk_buf_putc(value, '[');
    for (uint64_t k = 0; !rc && k < n; k++) {
        if (k) rc = kk_buf_puts(value, ", ");
        if (!rc) rc = show_value(value, kv, k, &at);
    }
    if (!rc && n < kv->n) rc = kk_buf_printf(value, ", .. %llu in all", (unsigned long long)kv->n);
    return rc ? rc : kk_buf_putc(value, ']');
}
