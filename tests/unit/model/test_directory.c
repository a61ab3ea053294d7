/* The tensors of each architecture under the names of its Hugging Face class: a directory of them
 * gives the bits of the synth: model they are copied from, alone and inside a larger model, and
 * without one of them it is refused by that name. */
#include "unit/model/model_test.h"

#include <sys/stat.h>

#include "kakeya.h"

enum { V = 160, TOKENS = 40 };
enum { GEMMA3 = 1, LLAMA = 2, QWEN3 = 4, ALL = 7 };

/* Sizes by letter, of tests/data/mini-*.json; C is the kind's. */
static int size_of(char letter, int C)
{
    switch (letter) {
    case 'V':
        return V;
    case 'F':
        return 72;
    case 'H':
        return 64; /* heads times head dim */
    case 'G':
        return 16;
    case 'D':
        return 16;
    default:
        return C;
    }
}

static const struct shape {
    int archs;
    const char *name; /* after the prefix; %d: of each layer */
    const char *dims;
} shapes[] = {
    {ALL, "embed_tokens.weight", "VC"},
    {ALL, "norm.weight", "C"},
    {ALL, "layers.%d.input_layernorm.weight", "C"},
    {ALL, "layers.%d.self_attn.q_proj.weight", "HC"},
    {ALL, "layers.%d.self_attn.k_proj.weight", "GC"},
    {ALL, "layers.%d.self_attn.v_proj.weight", "GC"},
    {ALL, "layers.%d.self_attn.o_proj.weight", "CH"},
    {GEMMA3 | QWEN3, "layers.%d.self_attn.q_norm.weight", "D"},
    {GEMMA3 | QWEN3, "layers.%d.self_attn.k_norm.weight", "D"},
    {ALL, "layers.%d.post_attention_layernorm.weight", "C"},
    {GEMMA3, "layers.%d.pre_feedforward_layernorm.weight", "C"},
    {GEMMA3, "layers.%d.post_feedforward_layernorm.weight", "C"},
    {ALL, "layers.%d.mlp.gate_proj.weight", "FC"},
    {ALL, "layers.%d.mlp.up_proj.weight", "FC"},
    {ALL, "layers.%d.mlp.down_proj.weight", "CF"},
};

static const struct kind {
    int arch;
    const char *config, *prefix;
    int C, layers;
    const char *outer; /* the architecture of a larger model around it, or NULL */
} kinds[] = {
    {GEMMA3, "tests/data/mini-gemma3.json", "model.", 48, 4, NULL},
    {GEMMA3, "tests/data/mini-gemma3.json", "language_model.model.", 48, 4,
     "Gemma3ForConditionalGeneration"},
    {GEMMA3, "tests/data/mini-gemma3.json", "model.language_model.", 48, 4,
     "Gemma3ForConditionalGeneration"},
    {LLAMA, "tests/data/mini-llama.json", "model.", 64, 3, NULL},
    {QWEN3, "tests/data/mini-qwen3.json", "model.", 48, 4, NULL},
};

/* ---- writing a directory ------------------------------------------------------------------ */

struct writer {
    struct kk_model_file *from;
    struct tensors to;
    const char *without; /* a name to leave out, or NULL */
};

/* The tensor that `from` has as model.NAME, written as PREFIX NAME. */
static void copy(struct writer *w, const struct kind *k, const char *name, const char *dims)
{
    const int rows = size_of(dims[0], k->C), cols = dims[1] ? size_of(dims[1], k->C) : 0;
    const int head = !strcmp(name, "lm_head.weight");
    char source[160], target[200];
    const uint64_t shape[2] = {(uint64_t)rows, (uint64_t)cols};
    struct kk_tensor t;
    struct kk_err err = {0};
    snprintf(source, sizeof source, "%s%s", head ? "" : "model.", name);
    snprintf(target, sizeof target, "%s%s", head ? "" : k->prefix, name);
    if (w->without && !strcmp(w->without, target)) return;
    KK_ASSERT_OK(kk_model_file_get(w->from, source, cols ? 2 : 1, shape, &t, &err), &err);
    void *raw = kk_array(t.count, 2);
    kk_tensor_read(&t, 0, t.count, raw);
    tensors_add(&w->to, target, "BF16", rows, cols, raw, 2);
    kk_free(raw);
}

/* The directory of a kind, without one tensor if that is named. */
static const char *make_dir(const struct kind *k, const char *without)
{
    static char dir[300];
    char path[400], spec[400];
    struct writer w = {.without = without};
    struct kk_err err = {0};
    json_t *config = NULL;
    snprintf(dir, sizeof dir, "%s", kk_test_path("model"));
    mkdir(dir, 0755);
    tensors_init(&w.to);
    snprintf(spec, sizeof spec, "synth:%s:5", k->config);
    KK_ASSERT_OK(kk_model_file_open(spec, &w.from, &err), &err);
    for (size_t i = 0; i < sizeof shapes / sizeof *shapes; i++)
        for (int l = 0; l < (strchr(shapes[i].name, '%') ? k->layers : 1); l++) {
            char name[120];
            snprintf(name, sizeof name, shapes[i].name, l);
            if (shapes[i].archs & k->arch) copy(&w, k, name, shapes[i].dims);
        }
    if (k->arch != GEMMA3) copy(&w, k, "lm_head.weight", "VC");
    snprintf(path, sizeof path, "%s/model.safetensors", dir);
    tensors_write(&w.to, path);
    KK_ASSERT_OK(kk_json_load(k->config, 1 << 20, &config, &err), &err);
    if (k->outer) {
        json_object_del(config, "architectures");
        config = json_pack("{s:[s], s:s, s:o}", "architectures", k->outer, "model_type", "whole",
                           "text_config", config);
    }
    snprintf(path, sizeof path, "%s/config.json", dir);
    assert_int_equal(json_dump_file(config, path, 0), 0);
    json_decref(config);
    kk_model_file_close(w.from);
    return dir;
}

/* ---- the tests ---------------------------------------------------------------------------- */

/* Rows of a vocabulary, one after another. */
struct rows {
    float *out;
    size_t V;
};

static int keep_row(void *arg, int64_t position, const float *logits)
{
    const struct rows *r = arg;
    memcpy(r->out + (size_t)position * r->V, logits, r->V * sizeof *logits);
    return 0;
}

/* Of TOKENS ids into out; the size of the vocabulary. */
static size_t logits_of(const char *model, float *out)
{
    struct kk_engine_options o = kk_engine_defaults();
    struct kk_engine *e = NULL;
    struct kk_session *s = NULL;
    struct kk_err err = {0};
    struct kk_engine_info info;
    uint32_t ids[TOKENS];
    o.model = model;
    KK_ASSERT_OK(kk_engine_open(&o, &e, &err), &err);
    kk_engine_describe(e, &info);
    struct rows rows = {out, (size_t)info.vocabulary};
    for (uint32_t i = 0; i < TOKENS; i++) ids[i] = (i * 37 + 11) % (uint32_t)info.vocabulary;
    KK_ASSERT_OK(kk_session_open(e, &s, &err), &err);
    KK_ASSERT_OK(kk_session_logits(s, ids, TOKENS, keep_row, &rows, &err), &err);
    kk_session_close(s);
    kk_engine_close(e);
    return rows.V;
}

static void a_directory_is_its_tensors(void **state)
{
    (void)state;
    static float want[TOKENS * V], got[TOKENS * V];
    for (size_t k = 0; k < sizeof kinds / sizeof *kinds; k++) {
        char spec[200];
        snprintf(spec, sizeof spec, "synth:%s:5", kinds[k].config);
        logits_of(spec, want);
        logits_of(make_dir(&kinds[k], NULL), got);
        assert_memory_equal(got, want, sizeof want);
    }
}

static void a_missing_tensor_is_named(void **state)
{
    (void)state;
    static const struct {
        int kind;
        const char *name;
    } cases[] = {
        {0, "model.embed_tokens.weight"},
        {0, "model.layers.3.pre_feedforward_layernorm.weight"},
        {1, "language_model.model.layers.0.self_attn.k_norm.weight"},
        {3, "lm_head.weight"},
        {3, "model.layers.2.self_attn.v_proj.weight"},
        {4, "model.layers.1.self_attn.q_norm.weight"},
    };
    for (size_t k = 0; k < sizeof cases / sizeof *cases; k++) {
        struct kk_engine_options o = kk_engine_defaults();
        struct kk_engine *e = NULL;
        struct kk_err err = {0};
        char words[200];
        o.model = make_dir(&kinds[cases[k].kind], cases[k].name);
        snprintf(words, sizeof words, "tensor '%s' is missing", cases[k].name);
        KK_ASSERT_FAILS(kk_engine_open(&o, &e, &err), KK_ENOENT, &err, words);
    }
}

/* llama.cpp's converter turned these into GGUF (tools/golden/gguf_models.py): norms plus 1, rows of
 * heads in another order, scalings as a list of divisors; the same bits come out. */
static void a_gguf_is_its_directory(void **state)
{
    (void)state;
    static const char *const names[] = {"gemma3", "gemma4", "llama", "llama3", "qwen3"};
    static float want[TOKENS * V], got[TOKENS * V];
    for (size_t k = 0; k < sizeof names / sizeof *names; k++) {
        char synth[200], gguf[200];
        snprintf(synth, sizeof synth, "synth:tests/golden/gguf/models/%s.json:11", names[k]);
        snprintf(gguf, sizeof gguf, "tests/golden/gguf/models/%s.gguf", names[k]);
        size_t n = logits_of(synth, want);
        assert_int_equal(logits_of(gguf, got), n);
        if (memcmp(got, want, TOKENS * n * sizeof *got)) fail_msg("%s differs", names[k]);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_directory_is_its_tensors),
        cmocka_unit_test(a_gguf_is_its_directory),
        cmocka_unit_test(a_missing_tensor_is_named),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
