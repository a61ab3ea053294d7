/* Tokenizers from GGUF files: token for token what sentencepiece and the Hugging Face library make
 * of the same tables (tools/golden/gguf_tokenizers.py), small vocabularies and real ones. */
#include "unit/tok/cases.h"

#include <math.h>
#include <unistd.h>

#include "base/fs.h"
#include "base/mem.h"
#include "file/file.h"
#include "tok/chat.h"

#define DIR "tests/golden/gguf/tokenizers/"

static struct kk_tok *open_gguf(const char *path)
{
    struct kk_model_file *mf = NULL;
    struct kk_vocab v;
    struct kk_tok *t = NULL;
    struct kk_err err = {0};
    KK_ASSERT_OK(kk_model_file_open(path, &mf, &err), &err);
    KK_ASSERT_OK(kk_model_file_vocab(mf, &v, &err), &err);
    KK_ASSERT_OK(kk_tok_from_vocab(&v, &t, &err), &err);
    kk_vocab_release(&v);
    kk_model_file_close(mf); /* the tokenizer stands alone */
    return t;
}

/* How a text comes back from its ids. */
enum returns { AS_IT_IS, LESS_MARKS, NOT_ASKED };

static int has_mark(const struct kk_buf *text)
{
    return memmem(text->data, text->len, "\xe2\x96\x81", 3) != NULL;
}

static int comes_back(const struct kk_tok *t, const struct kk_buf *text, const struct kk_ids *ids)
{
    struct kk_buf out;
    struct kk_err err = {0};
    kk_buf_init(&out, MAX_TEXT);
    KK_ASSERT_OK(kk_tok_decode(t, ids->id, ids->n, 0, &out, &err), &err);
    int same = out.len == text->len && !memcmp(out.data, text->data, out.len);
    kk_buf_release(&out);
    return same;
}

/* c, h of the row, or pc, ph: the text as plain text. */
static json_t *wanted(const json_t *row, int special)
{
    const json_t *c = special ? NULL : json_object_get(row, "pc");
    return json_pack("{s:O, s:O}", "c", c ? c : json_object_get(row, "c"), "h",
                     json_object_get(row, c ? "ph" : "h"));
}

static int check_text(const struct kk_tok *t, const char *name, int line, const struct kk_buf *text,
                      const json_t *row, enum returns how)
{
    int bad = 0;
    for (int special = 0; special < 2; special++) {
        struct kk_ids ids = {0};
        struct kk_err err = {0};
        KK_ASSERT_OK(kk_tok_encode(t, text->len ? text->data : "", text->len, special, &ids, &err),
                     &err);
        json_t *want = wanted(row, special);
        int ok = same_ids(&ids, want);
        if (ok && text->len && how != NOT_ASKED && !(how == LESS_MARKS && has_mark(text)))
            ok = comes_back(t, text, &ids);
        if (!ok) show(name, line, text, &ids, want);
        bad += !ok;
        json_decref(want);
        kk_ids_release(&ids);
    }
    return bad;
}

/* Ill-formed text as the oracle saw it: a byte-level tokenizer's decode repairs it. */
static void repair(const struct kk_tok *bytes, struct kk_buf *text)
{
    struct kk_ids ids = {0};
    struct kk_err err = {0};
    KK_ASSERT_OK(kk_tok_encode(bytes, text->data, text->len, 0, &ids, &err), &err);
    kk_buf_reset(text);
    KK_ASSERT_OK(kk_tok_decode(bytes, ids.id, ids.n, 0, text, &err), &err);
    kk_ids_release(&ids);
}

static void check_all(const char *gguf, const char *name, enum returns how)
{
    char path[256];
    struct kk_tok *t = open_gguf(gguf), *bytes = open_gguf(DIR "gpt-2.gguf");
    snprintf(path, sizeof path, DIR "%s.jsonl", name);
    struct lines cases = open_lines(CASES), rows = open_lines(path);
    struct kk_buf text;
    json_t *c, *row;
    int line = 0, bad = 0;
    kk_buf_init(&text, MAX_TEXT);
    while ((c = next_line(&cases))) {
        assert_non_null(row = next_line(&rows));
        get_text(c, &text);
        if (text.len) repair(bytes, &text);
        bad += check_text(t, name, ++line, &text, row, how);
        json_decref(c);
        json_decref(row);
    }
    assert_true(line > 1000);
    kk_buf_release(&text);
    close_lines(&cases);
    close_lines(&rows);
    kk_tok_close(t);
    kk_tok_close(bytes);
    if (bad) fail_msg("%s: %d of %d texts differ", name, bad, 2 * line);
}

static void small_vocabularies(void **state)
{
    (void)state;
    static const struct {
        const char *name;
        enum returns how;
    } all[] = {{"gpt-2", AS_IT_IS},   {"smollm", AS_IT_IS},      {"llama-bpe", AS_IT_IS},
               {"qwen2", NOT_ASKED},  {"spm_gemma", LESS_MARKS}, {"spm_llama", NOT_ASKED},
               {"gemma4", LESS_MARKS}};
    for (size_t i = 0; i < sizeof all / sizeof *all; i++) {
        char path[256];
        snprintf(path, sizeof path, DIR "%s.gguf", all[i].name);
        print_message("    %s\n", all[i].name);
        check_all(path, all[i].name, all[i].how);
    }
}

static void check_real(const char *gguf, const char *name, enum returns how)
{
    if (access(gguf, R_OK)) {
        print_message("    no %s: 'make models' fetches it\n", gguf);
        skip();
    }
    check_all(gguf, name, how);
}

static void real_gemma(void **state)
{
    (void)state;
    check_real("models/gemma-3-270m-q4_k_m.gguf", "gemma-3-270m", LESS_MARKS);
}

static void real_smollm(void **state)
{
    (void)state;
    check_real("models/smollm2-135m-instruct-q4_1.gguf", "smollm2-135m", NOT_ASKED);
}

/* ---- tables that are wrong ------------------------------------------------------------------ */

#define TEXT(s)                                                                                    \
    {                                                                                              \
        s, sizeof s - 1                                                                            \
    }

/* A vocabulary of five tokens, to be spoilt. */
struct five {
    struct kk_text token[5], merge[1];
    float score[5];
    int32_t type[5];
    struct kk_vocab v;
};

static struct five *five(struct five *f, char *model, char *pre)
{
    *f = (struct five){.token = {TEXT("<unk>"), TEXT("a"), TEXT("b"), TEXT("ab"), TEXT("<0x41>")},
                       .merge = {TEXT("a b")},
                       .score = {0, -1, -2, -3, 0},
                       .type = {2, 1, 1, 1, 6}};
    f->v = (struct kk_vocab){.model = model,
                             .pre = pre,
                             .token = f->token,
                             .merge = f->merge,
                             .score = f->score,
                             .type = f->type,
                             .n = 5,
                             .n_merges = 1,
                             .unknown = 0};
    return f;
}

static void refused(const struct five *f, int code, const char *words)
{
    struct kk_tok *t = NULL;
    struct kk_err err = {0};
    KK_ASSERT_FAILS(kk_tok_from_vocab(&f->v, &t, &err), code, &err, words);
    assert_null(t);
}

static void wrong_tables_are_refused(void **state)
{
    (void)state;
    struct five f;
    struct kk_tok *t;
    struct kk_err err = {0};
    KK_ASSERT_OK(kk_tok_from_vocab(&five(&f, "llama", NULL)->v, &t, &err), &err);
    kk_tok_close(t);
    refused(five(&f, "bert", NULL), KK_EUNSUPPORTED, "tokenizer.ggml.model 'bert'");
    refused(five(&f, "gpt2", "falcon"), KK_EUNSUPPORTED, "tokenizer.ggml.pre 'falcon'");
    five(&f, "llama", NULL)->v.score = NULL;
    refused(&f, KK_EFORMAT, "'tokenizer.ggml.scores' is missing");
    five(&f, "llama", NULL)->score[2] = NAN;
    refused(&f, KK_EFORMAT, "the score of token 2 is not a number");
    five(&f, "llama", NULL)->token[2] = f.token[1];
    refused(&f, KK_EFORMAT, "token 'a' has two ids, 1 and 2");
    five(&f, "llama", NULL)->token[3].len = 0;
    refused(&f, KK_EFORMAT, "token 3 ('') is empty");
    five(&f, "llama", NULL)->token[3] = (struct kk_text)TEXT("a\xff");
    refused(&f, KK_EFORMAT, "or is no UTF-8");
    five(&f, "llama", NULL)->token[3] = (struct kk_text)TEXT("a\0b");
    refused(&f, KK_EFORMAT, "holds a NUL");
    five(&f, "gpt2", "gpt-2")->merge[0] = (struct kk_text)TEXT("ab");
    refused(&f, KK_EFORMAT, "merge 0 must be");
    five(&f, "gpt2", "gpt-2")->merge[0] = (struct kk_text)TEXT("a c");
    refused(&f, KK_EFORMAT, "merge 0 names 'c', which is no token");
    five(&f, "gemma4", NULL)->merge[0] = (struct kk_text)TEXT("b a");
    refused(&f, KK_EFORMAT, "merge 0 makes 'ba', which is no token");
}

/* Every allocation fails once: an error, nothing leaked. */
static void out_of_memory(void **state)
{
    (void)state;
    static char *const models[] = {"llama", "gemma4"};
    for (int m = 0; m < 2; m++)
        for (int64_t n = 1;; n++) {
            struct five f;
            struct kk_tok *t = NULL;
            five(&f, models[m], NULL)->v.chat_template = "x";
            kk_mem_fail_after(n);
            int rc = kk_tok_from_vocab(&f.v, &t, NULL), hit = kk_mem_fail_hit();
            kk_mem_fail_after(0);
            assert_int_equal(rc, hit ? KK_ENOMEM : 0);
            kk_tok_close(t);
            if (!hit) break;
        }
}

/* Pieces of one score join from the left; of another, the best first, wherever it is. */
static void scores_say_what_joins(void **state)
{
    (void)state;
    static const struct {
        float ab, bc;
        const char *text;
        uint32_t want[3];
    } all[] = {{-1, -2, "abc", {4, 3}}, {-2, -1, "abc", {1, 5}}, {-1, -1, "abc", {4, 3}}};
    for (size_t i = 0; i < sizeof all / sizeof *all; i++) {
        struct kk_text token[] = {TEXT("<unk>"), TEXT("a"),  TEXT("b"),
                                  TEXT("c"),     TEXT("ab"), TEXT("bc")};
        float score[] = {0, -9, -9, -9, all[i].ab, all[i].bc};
        int32_t type[] = {2, 1, 1, 1, 1, 1};
        struct kk_vocab v = {.model = (char[]){"llama"},
                             .token = token,
                             .score = score,
                             .type = type,
                             .n = 6,
                             .unknown = 0};
        struct kk_tok *t;
        struct kk_err err = {0};
        struct kk_ids ids = {0};
        KK_ASSERT_OK(kk_tok_from_vocab(&v, &t, &err), &err);
        KK_ASSERT_OK(kk_tok_encode(t, "abc", 3, 0, &ids, &err), &err);
        assert_int_equal(ids.n, 2);
        assert_memory_equal(ids.id, all[i].want, 2 * sizeof *ids.id);
        kk_ids_release(&ids);
        kk_tok_close(t);
    }
}

/* A vocabulary with the markers of all families, and a template; less the marker `without`. */
static struct kk_tok *with_markers(const char *template, const char *without)
{
    static const char *const marks[] = {"<unk>",
                                        "<bos>",
                                        "<start_of_turn>",
                                        "<end_of_turn>",
                                        "<|turn>",
                                        "<turn|>",
                                        "<|channel>",
                                        "<channel|>",
                                        "<|im_start|>",
                                        "<|im_end|>",
                                        "<|begin_of_text|>",
                                        "<|start_header_id|>",
                                        "<|end_header_id|>",
                                        "<|eot_id|>"};
    enum { N = sizeof marks / sizeof *marks };
    struct kk_text token[N];
    float score[N] = {0};
    int32_t type[N];
    char text[400], model[] = "llama";
    struct kk_vocab v = {.model = model, .token = token, .score = score, .type = type, .n = N};
    struct kk_tok *t = NULL;
    struct kk_err err = {0};
    if (template) snprintf(v.chat_template = text, sizeof text, "%s", template);
    for (int i = 0; i < N; i++) {
        int is = !strcmp(marks[i], without);
        token[i] = is ? (struct kk_text)TEXT("x") : (struct kk_text){marks[i], strlen(marks[i])};
        type[i] = is ? KK_TOKEN_NORMAL : i ? KK_TOKEN_CONTROL : KK_TOKEN_UNKNOWN;
    }
    KK_ASSERT_OK(kk_tok_from_vocab(&v, &t, &err), &err);
    return t;
}

/* The openings of published templates, shortened; line ends as two letters or as they are. */
#define GEMMA                                                                                      \
    "{{ bos_token }}{% for m in messages %}{{ '<start_of_turn>' + role + '\\n' + m['content'] + "  \
    "'<end_of_turn>\\n' }}{% endfor %}{{'<start_of_turn>model\\n'}}"
#define CHATML                                                                                     \
    "{{'<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>' + '\n'}}"                   \
    "{{ '<|im_start|>assistant\n' }}"

static void chat_templates_are_known_by_their_literals(void **state)
{
    (void)state;
    static const struct {
        const char *template, *without, *says; /* the family, or words of the error */
    } all[] = {
        {GEMMA, "", "gemma"},
        {"{{- '<|turn>' + role + '\\n' }}..{{- '<turn|>\\n' -}}{{- '<|turn>model\\n' -}}", "",
         "gemma4"},
        {CHATML, "", "chatml"},
        {"{{- '<|start_header_id|>' + m['role'] + '<|end_header_id|>\\n\\n'+ m['content'] + "
         "'<|eot_id|>' }}{{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}",
         "", "llama3"},
        {NULL, "", "more than one chat template"},
        {"", "", "it begins ''"},
        {"{{ '[INST] ' +\n m['content'] + ' [/INST]' }}", "", "it begins '{{ '[INST] ' +'"},
        {"<|im_start|>assistant<|im_sep|>..<|im_end|>", "", "is none of gemma"}, /* Phi 4 */
        {"<|start_header_id|>assistant<|end_header_id|>\\n\\n<|end|>", "", "is none of gemma"},
        {"{{ '<start_of_turn>model' }}<end_of_turn>", "", "is none of gemma"},
        {CHATML, "<|im_end|>", "no marker <|im_end|>, which the chat template chatml needs"},
        {GEMMA, "<start_of_turn>", "no marker <start_of_turn>"},
    };
    for (size_t i = 0; i < sizeof all / sizeof *all; i++) {
        struct kk_tok *t = with_markers(all[i].template, all[i].without);
        struct kk_chat c;
        struct kk_err err = {0};
        int rc = kk_chat_init(&c, t, "auto", &err);
        if (strchr(all[i].says, ' '))
            KK_ASSERT_FAILS(rc, KK_EUNSUPPORTED, &err, all[i].says);
        else
            assert_string_equal(rc ? err.msg : c.family, all[i].says);
        kk_tok_close(t);
    }
    struct kk_tok *t = with_markers(GEMMA, "");
    struct kk_chat c;
    struct kk_err err = {0};
    KK_ASSERT_OK(kk_chat_init(&c, t, "chatml", &err), &err); /* who names one gets it */
    assert_string_equal(c.family, "chatml");
    kk_tok_close(t);
}

/* Whatever loads, encodes. */
static void mutated_vocabularies_never_crash(void **state)
{
    (void)state;
    struct kk_test_rng r = kk_test_rng("gguf vocabulary");
    struct kk_buf whole;
    struct kk_err err = {0};
    int loaded = 0;
    kk_buf_init(&whole, 1 << 20);
    KK_ASSERT_OK(kk_fs_read(DIR "spm_gemma.gguf", &whole, &err), &err);
    unsigned char *p = kk_aligned(64, (whole.len + 63) & ~(size_t)63);
    for (int i = 0; i < 400; i++) {
        struct kk_model_file *mf = NULL;
        struct kk_tok *t = NULL;
        struct kk_vocab v = {0};
        struct kk_ids ids = {0};
        memcpy(p, whole.data, whole.len);
        for (int k = kk_test_between(&r, 1, 3); k; k--)
            p[kk_test_below(&r, 18000)] = (unsigned char)kk_test_below(&r, 256);
        int rc = kk_model_file_open_memory(p, whole.len, &mf, &err);
        if (!rc) rc = kk_model_file_vocab(mf, &v, &err);
        if (!rc) rc = kk_tok_from_vocab(&v, &t, &err);
        if (!rc) {
            loaded++;
            KK_ASSERT_OK(kk_tok_encode(t, "the  quick\n\nbrown <a> fox", 25, 1, &ids, &err), &err);
        }
        kk_ids_release(&ids);
        kk_vocab_release(&v);
        kk_tok_close(t);
        kk_model_file_close(mf);
    }
    assert_true(loaded > 20 && loaded < 390);
    kk_free(p);
    kk_buf_release(&whole);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(small_vocabularies),
        cmocka_unit_test(real_gemma),
        cmocka_unit_test(real_smollm),
        cmocka_unit_test(wrong_tables_are_refused),
        cmocka_unit_test(out_of_memory),
        cmocka_unit_test(scores_say_what_joins),
        cmocka_unit_test(chat_templates_are_known_by_their_literals),
        cmocka_unit_test(mutated_vocabularies_never_crash),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
