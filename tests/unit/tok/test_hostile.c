/* Hostile tokenizer.json files: each is refused in one clear line or works; none crashes. */
#include "kk_test.h"

#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>

#include "base/buf.h"
#include "base/fs.h"
#include "base/mem.h"
#include "tok/tok.h"

#define DIR "tests/golden/tokenizer/"

static const char text[] =
    "The fox's 42 \xff\xf0\x9f\x98\x80 na\xc3\xafve  <bos>\n<mask> WORD e\xcc\x81 \xe4\xb8\xad";

/* ---- files that must be refused, and in what words ---------------------------------------- */

#define MODEL(vocab, merges, more)                                                                 \
    "{\"added_tokens\":[],\"model\":{\"type\":\"BPE\",\"vocab\":" vocab ",\"merges\":" merges more \
    "}}"
#define WITH(more)                                                                                 \
    "{\"model\":{\"type\":\"BPE\",\"vocab\":{\"a\":0,\"b\":1},\"merges\":[]}," more "}"
#define ADDED(more) WITH("\"added_tokens\":[" more "]")
#define SPLIT(rx)                                                                                  \
    WITH("\"pre_tokenizer\":{\"type\":\"Split\",\"pattern\":{\"Regex\":\"" rx                      \
         "\"},\"behavior\":\"Isolated\",\"invert\":false}")
#define AB "{\"a\":0,\"b\":1}"

static const struct {
    const char *json, *words;
    int code;
} refused[] = {
    {"", "not valid JSON", KK_EFORMAT},
    {"[1]", "not an object", KK_EFORMAT},
    {"{}", "'model' must be an object", KK_EFORMAT},
    {"{\"model\":7}", "'model' must be an object", KK_EFORMAT},
    {"{\"model\":{\"type\":\"Unigram\"}}", "'Unigram' is not supported", KK_EUNSUPPORTED},
    {"{\"model\":{\"type\":[]}}", "'type' must be a string", KK_EFORMAT},
    {"{\"model\":{\"vocab\":{},\"merges\":[]}}", "'vocab' is empty", KK_EFORMAT},
    {MODEL("[]", "[]", ""), "'vocab' must be an object", KK_EFORMAT},
    {MODEL("{\"a\":\"0\"}", "[]", ""), "must be an integer", KK_EFORMAT},
    {MODEL("{\"a\":-1}", "[]", ""), "has id -1", KK_EFORMAT},
    {MODEL("{\"a\":4294967296}", "[]", ""), "has id 4294967296", KK_EFORMAT},
    {MODEL("{\"a\":0,\"b\":0}", "[]", ""), "id 0 belongs to two tokens, 'a' and 'b'", KK_EFORMAT},
    {MODEL("{\"a\":0,\"a\":1}", "[]", ""), "not valid JSON", KK_EFORMAT},
    {MODEL(AB, "{}", ""), "'merges' must be a list", KK_EFORMAT},
    {MODEL(AB, "[\"ab\"]", ""), "merge 0 must be", KK_EFORMAT},
    {MODEL(AB, "[\"a b c\"]", ""), "merge 0 must be", KK_EFORMAT},
    {MODEL(AB, "[[\"a\"]]", ""), "merge 0 must be", KK_EFORMAT},
    {MODEL(AB, "[[\"a\",1]]", ""), "merge 0 must be", KK_EFORMAT},
    {MODEL(AB, "[\"a x\\n\"]", ""), "names 'x?', which is no token", KK_EFORMAT},
    {MODEL(AB, "[\"a b\"]", ""), "makes 'ab', which is no token", KK_EFORMAT},
    {MODEL(AB, "[]", ",\"unk_token\":\"?\""), "'unk_token' is '?'", KK_EFORMAT},
    {MODEL(AB, "[]", ",\"dropout\":0.1"), "'dropout' is not supported", KK_EUNSUPPORTED},
    {MODEL(AB, "[]", ",\"end_of_word_suffix\":\"</w>\""), "'end_of_word_suffix'", KK_EUNSUPPORTED},
    {MODEL(AB, "[]", ",\"byte_fallback\":1"), "'byte_fallback' must be true or false", KK_EFORMAT},
    {WITH("\"added_tokens\":{}"), "'added_tokens' must be a list", KK_EFORMAT},
    {ADDED("1"), "must be an object", KK_EFORMAT},
    {ADDED("{\"id\":5}"), "'content'", KK_EFORMAT},
    {ADDED("{\"id\":\"5\",\"content\":\"x\"}"), "must be an integer", KK_EFORMAT},
    {ADDED("{\"id\":99999999,\"content\":\"x\"}"), "has id 99999999", KK_EFORMAT},
    {ADDED("{\"id\":0,\"content\":\"x\"}"), "id 0 belongs to two tokens", KK_EFORMAT},
    {ADDED("{\"id\":5,\"content\":\"a\"}"), "token 'a' has two ids, 0 and 5", KK_EFORMAT},
    {ADDED("{\"id\":5,\"content\":\"x\"},{\"id\":5,\"content\":\"x\"}"), "twice", KK_EFORMAT},
    {ADDED("{\"id\":5,\"content\":\"x\\u0000\"}"), "holds a NUL", KK_EUNSUPPORTED},
    {WITH("\"normalizer\":3"), "'normalizer' must be an object or null", KK_EFORMAT},
    {WITH("\"normalizer\":{}"), "'type' is missing", KK_EFORMAT},
    {WITH("\"normalizer\":{\"type\":\"Precompiled\"}"), "normalizer 'Precompiled' is not supported",
     KK_EUNSUPPORTED},
    {WITH("\"normalizer\":{\"type\":\"Sequence\",\"normalizers\":[null]}"), "every step",
     KK_EFORMAT},
    {WITH("\"normalizer\":{\"type\":\"Replace\",\"pattern\":{\"String\":\"\"},\"content\":\"\"}"),
     "'pattern' is empty", KK_EFORMAT},
    {WITH("\"pre_tokenizer\":{\"type\":\"Whitespace\"}"), "'Whitespace' is not supported",
     KK_EUNSUPPORTED},
    {WITH("\"pre_tokenizer\":{\"type\":\"Split\",\"pattern\":{\"String\":\" \"},\"behavior\":"
          "\"Sideways\"}"),
     "behavior 'Sideways' is not supported", KK_EUNSUPPORTED},
    {WITH("\"pre_tokenizer\":{\"type\":\"Metaspace\",\"replacement\":\"ab\"}"), "one character",
     KK_EFORMAT},
    {WITH("\"pre_tokenizer\":{\"type\":\"Sequence\",\"pretokenizers\":[{\"type\":\"ByteLevel\","
          "\"add_prefix_space\":false},{\"type\":\"Digits\"}]}"),
     "'Digits' after ByteLevel", KK_EUNSUPPORTED},
    {SPLIT("(a"), "pattern '(a'", KK_EFORMAT},
    {SPLIT("[a[b]]"), "a class inside a class", KK_EUNSUPPORTED},
    {SPLIT("[a&&b]"), "'&&'", KK_EUNSUPPORTED},
    {SPLIT("(*UTF)a"), "(*VERB)", KK_EUNSUPPORTED},
    {SPLIT("a{3}?"), "x{n}?", KK_EUNSUPPORTED},
    {SPLIT("\\\\C"), "pattern", KK_EFORMAT},
    {WITH("\"decoder\":{\"type\":\"WordPiece\"}"), "decoder 'WordPiece' is not supported",
     KK_EUNSUPPORTED},
    {WITH("\"decoder\":{\"type\":\"Strip\",\"content\":\"\",\"start\":0,\"stop\":0}"),
     "one character", KK_EFORMAT},
    {WITH("\"decoder\":{\"type\":\"Sequence\",\"decoders\":[{\"type\":\"Fuse\"},{\"type\":"
          "\"ByteFallback\"}]}"),
     "'ByteFallback' after", KK_EUNSUPPORTED},
};

static void test_refused(void **state)
{
    (void)state;
    for (size_t i = 0; i < sizeof refused / sizeof *refused; i++) {
        struct kk_tok *t = NULL;
        struct kk_err err = {0};
        const char *path = kk_test_file("tokenizer.json", refused[i].json, strlen(refused[i].json));
        int rc = kk_tok_open(path, &t, &err);
        if (rc != refused[i].code || !strstr(err.msg, refused[i].words))
            fail_msg("%s\n  gives %d '%s'\n  want %d '%s'", refused[i].json, rc, err.msg,
                     refused[i].code, refused[i].words);
        assert_null(t);
        if (i) assert_null(strchr(err.msg, '\n'));
    }
}

static void test_no_file(void **state)
{
    (void)state;
    struct kk_tok *t = NULL;
    struct kk_err err;
    KK_ASSERT_FAILS(kk_tok_open(kk_test_path("none.json"), &t, &err), KK_ENOENT, &err, "none.json");
}

/* A pattern that backtracks without end is stopped, and says so. */
static void test_costly_pattern(void **state)
{
    (void)state;
    static const char json[] = SPLIT("(a+)+$");
    char as[60];
    struct kk_tok *t = NULL;
    struct kk_ids v = {0};
    struct kk_err err;
    memset(as, 'a', sizeof as);
    as[59] = 'b';
    KK_ASSERT_OK(kk_tok_open(kk_test_file("t.json", json, sizeof json - 1), &t, &err), &err);
    KK_ASSERT_FAILS(kk_tok_encode(t, as, 60, 1, &v, &err), KK_EEXHAUSTED, &err, "pattern");
    assert_int_equal(v.n, 0);
    kk_ids_release(&v);
    kk_tok_close(t);
}

/* ---- mutations ---------------------------------------------------------------------------- */

/* Use what was loaded: it must hold together whatever the file said. */
static void exercise(const struct kk_tok *t, struct kk_test_rng *r)
{
    struct kk_ids v = {0};
    struct kk_buf out;
    struct kk_err err;
    kk_buf_init(&out, 1 << 22);
    if (!kk_tok_encode(t, text, sizeof text - 1, 1, &v, &err))
        for (size_t i = 0; i < v.n; i++) assert_true(v.id[i] < kk_tok_size(t));
    for (int i = 0; i < 20; i++) kk_ids_push(&v, kk_test_below(r, kk_tok_size(t)));
    (void)kk_tok_decode(t, v.id, v.n, 1, &out, &err);
    kk_tok_text(t, 0);
    kk_ids_release(&v);
    kk_buf_release(&out);
}

static int try_file(const char *data, size_t len, struct kk_test_rng *r)
{
    struct kk_tok *t = NULL;
    struct kk_err err = {0};
    int rc = kk_tok_open(kk_test_file("mutant.json", data, len), &t, &err);
    if (rc) {
        assert_true(err.msg[0] != 0);
        assert_null(t);
        return 0;
    }
    exercise(t, r);
    kk_tok_close(t);
    return 1;
}

static json_t *junk(struct kk_test_rng *r)
{
    static const char *const s[] = {"",          " ",         "a",    "\xe2\x96\x81",  "Sequence",
                                    "ByteLevel", "Regex",     "x*",   "\\p{L}+|(?=a)", "<0x41>",
                                    "Fuse",      "Metaspace", "first"};
    static const json_int_t n[] = {0, 1, -1, 5, 700, 4194303, 4294967295, INT64_MAX};
    switch (kk_test_below(r, 7)) {
    case 0:
        return json_null();
    case 1:
        return json_boolean((int)kk_test_below(r, 2));
    case 2:
        return json_integer(n[kk_test_below(r, 8)]);
    case 3:
        return json_array();
    case 4:
        return json_object();
    case 5:
        return json_real(0.5);
    default:
        return json_string(s[kk_test_below(r, 13)]);
    }
}

/* Replace, remove or copy one value somewhere under v. */
static void mutate_tree(json_t *v, struct kk_test_rng *r, int depth)
{
    size_t n = json_is_object(v) ? json_object_size(v) : json_array_size(v);
    if (!n) return;
    size_t k = kk_test_below(r, n > 40 && depth < 2 ? 40 : (uint32_t)n);
    int what = (int)kk_test_below(r, 8);
    if (json_is_array(v)) {
        json_t *c = json_array_get(v, k);
        if (json_is_array(c) + json_is_object(c) && what > 2) return mutate_tree(c, r, depth + 1);
        if (what == 0)
            json_array_remove(v, k);
        else if (what == 1)
            json_array_append(v, c);
        else
            json_array_set_new(v, k, junk(r));
        return;
    }
    void *it = json_object_iter(v);
    while (k--) it = json_object_iter_next(v, it);
    json_t *c = json_object_iter_value(it);
    if (json_is_array(c) + json_is_object(c) && what > 2) return mutate_tree(c, r, depth + 1);
    if (what == 0)
        json_object_del(v, json_object_iter_key(it));
    else
        json_object_set_new(v, json_object_iter_key(it), junk(r));
}

static void mutate_bytes(char *p, size_t len, struct kk_test_rng *r)
{
    static const char set[] = "{}[]\",:0129\\ue\xe2\xff\n";
    for (int n = kk_test_between(r, 1, 3); n > 0; n--)
        p[kk_test_below(r, (uint32_t)len)] = set[kk_test_below(r, sizeof set - 1)];
}

static void test_mutations(void **state)
{
    (void)state;
    static const char *const names[] = {"gemma", "llama3", "gpt2", "llama2", "qwen", "meta", "odd"};
    const char *rounds_env = getenv("KK_TOK_MUTATIONS");
    int rounds = rounds_env ? (int)strtol(rounds_env, NULL, 10) : 60, loaded = 0;
    struct kk_test_rng r = kk_test_rng("tok mutations");
    for (int k = 0; k < 7; k++) {
        char path[256];
        struct kk_buf b;
        struct kk_err err;
        snprintf(path, sizeof path, DIR "%s.json", names[k]);
        kk_buf_init(&b, 1 << 20);
        KK_ASSERT_OK(kk_fs_read(path, &b, &err), &err);
        for (int i = 0; i < rounds; i++) {
            json_t *root = json_loadb(b.data, b.len, 0, NULL);
            assert_non_null(root);
            for (int m = kk_test_between(&r, 1, 3); m > 0; m--) mutate_tree(root, &r, 0);
            char *s = json_dumps(root, JSON_COMPACT);
            if (i & 1) mutate_bytes(s, strlen(s), &r);
            loaded += try_file(s, strlen(s), &r);
            free(s);
            json_decref(root);
        }
        kk_buf_release(&b);
    }
    assert_true(loaded > 0); /* else the mutations are too coarse to test anything */
}

/* Every allocation of a load and an encode fails once: an error, no crash, no leak. */
static void test_out_of_memory(void **state)
{
    const char *path = *state;
    for (int64_t n = 1;; n++) {
        struct kk_tok *t = NULL;
        struct kk_ids v = {0};
        struct kk_err err = {0};
        kk_mem_fail_after(n);
        int rc = kk_tok_open(path, &t, &err);
        if (!rc) rc = kk_tok_encode(t, text, sizeof text - 1, 1, &v, &err);
        int hit = kk_mem_fail_hit();
        kk_mem_fail_after(0);
        if (rc) assert_int_equal(rc, KK_ENOMEM);
        kk_ids_release(&v);
        kk_tok_close(t);
        if (!hit) break;
        assert_true(n < 100000);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_refused),
        cmocka_unit_test(test_no_file),
        cmocka_unit_test(test_costly_pattern),
        cmocka_unit_test(test_mutations),
        cmocka_unit_test_prestate(test_out_of_memory, (void *)DIR "meta.json"),
        cmocka_unit_test_prestate(test_out_of_memory, (void *)DIR "llama3.json"),
        cmocka_unit_test_prestate(test_out_of_memory, (void *)DIR "gemma.json"),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
