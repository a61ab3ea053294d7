/* Texts through good tokenizers: the embedded model's and the goldens'. The first byte chooses. A
 * byte-level tokenizer without a normalizer gives every well-formed text back; of an ill-formed one
 * it gives back what it made of it. */
#include "fuzz.h"

#include "tok/tok.h"

static const struct {
    const char *path;
    int exact;
} files[] = {{"models/tiny/tokenizer.json", 1},
             {"tests/golden/tokenizer/gpt2.json", 0}, /* a space before */
             {"tests/golden/tokenizer/llama3.json", 1},
             {"tests/golden/tokenizer/qwen.json", 0}, /* NFC */
             {"tests/golden/tokenizer/gemma.json", 0},
             {"tests/golden/tokenizer/llama2.json", 0},
             {"tests/golden/tokenizer/meta.json", 0},
             {"tests/golden/tokenizer/odd.json", 0}};
enum { N_FILES = sizeof files / sizeof *files };

static void there(const struct kk_tok *t, const char *s, size_t n, int special, struct kk_ids *v)
{
    struct kk_err err = {0};
    int rc = kk_tok_encode(t, s, n, special, v, &err);
    if (rc) fuzz_failed(rc, &err);
    FUZZ_CHECK(!rc || rc == KK_EEXHAUSTED);
    for (size_t i = 0; i < v->n; i++) FUZZ_CHECK(v->id[i] < kk_tok_size(t));
}

static void back(const struct kk_tok *t, const struct kk_ids *v, struct kk_buf *out)
{
    struct kk_tok_stream s;
    struct kk_err err = {0};
    struct kk_buf parts;
    kk_buf_init(&parts, 1 << 22);
    FUZZ_CHECK(!kk_tok_decode(t, v->id, v->n, 0, out, &err));
    kk_tok_stream_init(&s, t, 0);
    for (size_t i = 0; i < v->n; i++) FUZZ_CHECK(!kk_tok_stream_push(&s, v->id[i], &parts, &err));
    FUZZ_CHECK(!kk_tok_stream_flush(&s, &parts));
    FUZZ_CHECK(parts.len == out->len && (!out->len || !memcmp(parts.data, out->data, out->len)));
    kk_buf_release(&parts);
}

/* What a text became stays as it is the second time round. */
static void round_trip(const struct kk_tok *t, const char *s, size_t n, int special, int exact)
{
    struct kk_ids v = {0}, w = {0};
    struct kk_buf a, b;
    kk_buf_init(&a, 1 << 22);
    kk_buf_init(&b, 1 << 22);
    there(t, s, n, special, &v);
    back(t, &v, &a);
    there(t, a.data ? a.data : "", a.len, special, &w);
    back(t, &w, &b);
    if (exact && v.n) {
        FUZZ_CHECK(a.len == b.len && !memcmp(a.data, b.data, a.len));
        FUZZ_CHECK(v.n == w.n && !memcmp(v.id, w.id, v.n * sizeof *v.id));
        if (fuzz_is_utf8(s, n)) FUZZ_CHECK(a.len == n && !memcmp(a.data, s, n));
    }
    kk_ids_release(&v);
    kk_ids_release(&w);
    kk_buf_release(&a);
    kk_buf_release(&b);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static struct kk_tok *tok[N_FILES];
    struct kk_err err = {0};
    if (size < 1 || size > 4096) return 0;
    for (int i = 0; !tok[N_FILES - 1] && i < N_FILES; i++)
        FUZZ_CHECK(!kk_tok_open(files[i].path, &tok[i], &err));
    int k = data[0] % N_FILES;
    const char *s = (const char *)data + 1;
    round_trip(tok[k], s, size - 1, 0, files[k].exact);
    round_trip(tok[k], s, size - 1, 1, files[k].exact);
    return 0;
}
