/* The DFlash drafter against the authors' package (tools/golden/dflash.py): hidden states of every
 * block row, drafts, logits; and the whole loop on the embedded trio. */
#include "kk_test.h"

#include <dirent.h>
#include <math.h>
#include <stdio.h>

#include "base/fs.h"
#include "base/json.h"
#include "base/mem.h"
#include "kakeya.h"
#include "kv/kv.h"
#include "model/model.h"

#define GOLDEN "tests/golden/dflash/"

static json_t *load(const char *name, const char *file)
{
    char path[300];
    json_t *v = NULL;
    struct kk_err err = {0};
    snprintf(path, sizeof path, GOLDEN "%s/%s", name, file);
    KK_ASSERT_OK(kk_json_load(path, 4 << 20, &v, &err), &err);
    return v;
}

static int64_t get(const json_t *o, const char *key)
{
    return json_integer_value(json_object_get(o, key));
}

/* A verifier that lends embedding and head: a synth model of the case's seed, width and vocabulary.
 */
static struct kk_model *open_verifier(struct kk_dev *dev, const json_t *config,
                                      const json_t *blocks)
{
    struct kk_model_file *mf = NULL;
    struct kk_model *m = NULL;
    struct kk_err err = {0};
    char text[1024], spec[400];
    const struct kk_model_limits lim = {.max_rows = 16, .max_logit_rows = 16};
    json_int_t layers = get(config, "num_target_layers");
    int n = snprintf(
        text, sizeof text,
        "{\"architectures\": [\"Gemma4ForCausalLM\"], \"model_type\": \"gemma4_text\","
        "\"vocab_size\": %lld, \"hidden_size\": %lld, \"intermediate_size\": 16,"
        "\"num_hidden_layers\": %lld, \"num_attention_heads\": 1, \"num_key_value_heads\": 1,"
        "\"head_dim\": 16, \"global_head_dim\": 16, \"hidden_size_per_layer_input\": 0,"
        "\"dtype\": \"%s\"}",
        (long long)get(config, "vocab_size"), (long long)get(config, "hidden_size"),
        (long long)(layers ? layers : 8), json_string_value(json_object_get(config, "dtype")));
    snprintf(spec, sizeof spec, "synth:%s:%lld", kk_test_file("verifier.json", text, (size_t)n),
             (long long)get(blocks, "seed"));
    KK_ASSERT_OK(kk_model_file_open(spec, &mf, &err), &err);
    KK_ASSERT_OK(kk_model_open(mf, dev, &lim, NULL, &m, &err), &err);
    kk_model_file_close(mf);
    return m;
}

/* The auxiliary states of all context rows. */
static float *make_aux(const json_t *config, const json_t *blocks)
{
    struct kk_model_file *mf = NULL;
    struct kk_tensor t;
    struct kk_err err = {0};
    char spec[400];
    static const char text[] =
        "{\"architectures\": [\"X\"], \"model_type\": \"x\", \"dtype\": \"float32\"}";
    const uint64_t shape[3] = {(uint64_t)get(blocks, "context_rows"), (uint64_t)get(blocks, "taps"),
                               (uint64_t)get(config, "hidden_size")};
    snprintf(spec, sizeof spec, "synth:%s:%lld", kk_test_file("aux.json", text, sizeof text - 1),
             (long long)get(blocks, "seed"));
    KK_ASSERT_OK(kk_model_file_open(spec, &mf, &err), &err);
    KK_ASSERT_OK(kk_model_file_get(mf, "aux", 3, shape, &t, &err), &err);
    float *aux = kk_array(t.count, sizeof *aux);
    kk_tensor_read(&t, 0, t.count, aux);
    kk_model_file_close(mf);
    return aux;
}

struct bench {
    struct kk_dev *dev;
    struct kk_model *m;
    struct kk_dflash *d;
    struct kk_kv_layout layout;
    struct kk_kv_pool *pool;
    struct kk_kv *kv;
};

static void open_bench(struct bench *b, const char *name, const json_t *config,
                       const json_t *blocks)
{
    const struct kk_kv_options native = {.policy = "native"};
    const struct kk_kv_limits kl = {1, 64, 16, 0};
    const struct kk_model_limits lim = {.max_rows = 64, .max_logit_rows = 16};
    struct kk_model_file *mf = NULL;
    struct kk_err err = {0};
    char spec[400];
    KK_ASSERT_OK(kk_dev_open_cpu("auto", 2, &b->dev, &err), &err);
    b->m = open_verifier(b->dev, config, blocks);
    snprintf(spec, sizeof spec, "synth:" GOLDEN "%s/config.json:%lld", name,
             (long long)get(blocks, "seed"));
    KK_ASSERT_OK(kk_model_file_open(spec, &mf, &err), &err);
    KK_ASSERT_OK(kk_dflash_open(mf, b->m, &lim, &b->d, &err), &err);
    kk_model_file_close(mf);
    b->layout = kk_dflash_layout(b->d, KK_F32);
    KK_ASSERT_OK(kk_kv_pool_open(b->dev, &b->layout, &native, &kl, &b->pool, &err), &err);
    KK_ASSERT_OK(kk_kv_open(b->pool, &b->kv, &err), &err);
}

static void close_bench(struct bench *b)
{
    kk_kv_close(b->kv);
    kk_kv_pool_close(b->pool);
    kk_dflash_close(b->d);
    kk_model_close(b->m);
    kk_dev_close(b->dev);
}

/* Context rows of a block, then the block itself. Returns its largest relative difference. */
static double run_block(struct bench *b, const json_t *blk, const float *aux, size_t row,
                        const float *hidden, size_t C)
{
    struct kk_err err = {0};
    int32_t drafts[16];
    const json_t *ids = json_object_get(blk, "ids"), *want = json_object_get(blk, "drafts");
    int64_t start = get(blk, "start"), at = kk_kv_rows(b->kv);
    size_t rows = json_array_size(ids);
    while (at < start) {
        int n = start - at < 64 ? (int)(start - at) : 64;
        KK_ASSERT_OK(kk_dflash_observe(b->d, b->pool, b->kv, aux + (size_t)at * row, n, &err),
                     &err);
        at += n;
    }
    if (rows < 2) return 0;
    KK_ASSERT_OK(kk_dflash_propose(b->d, b->pool, b->kv,
                                   (int32_t)json_integer_value(json_array_get(ids, 0)),
                                   (int)rows - 1, drafts, &err),
                 &err);
    for (size_t i = 0; i + 1 < rows; i++)
        assert_int_equal(drafts[i], json_integer_value(json_array_get(want, i)));
    return kk_test_rel_err(kk_dflash_hidden(b->d), hidden, rows * C, 1e-3);
}

static void run_case(const char *name)
{
    struct bench b;
    struct kk_buf file;
    struct kk_err err = {0};
    char path[300];
    json_t *config = load(name, "config.json"), *blocks = load(name, "blocks.json"), *blk;
    size_t C = (size_t)get(config, "hidden_size"), i, at = 0;
    double worst = 0;
    float *aux = make_aux(config, blocks);
    open_bench(&b, name, config, blocks);
    snprintf(path, sizeof path, GOLDEN "%s/hidden.bin", name);
    kk_buf_init(&file, 1 << 20);
    KK_ASSERT_OK(kk_fs_read(path, &file, &err), &err);
    const float *hidden = (const float *)(const void *)file.data;
    json_array_foreach(json_object_get(blocks, "blocks"), i, blk)
    {
        double d = run_block(&b, blk, aux, (size_t)get(blocks, "taps") * C, hidden + at * C, C);
        at += json_array_size(json_object_get(blk, "ids"));
        if (d > worst) worst = d;
    }
    assert_int_equal(file.len, at * C * sizeof(float));
    print_message("             %-16s %zu blocks, largest difference %.1e\n", name, i, worst);
    assert_true(worst < 1e-4);
    kk_buf_release(&file);
    kk_free(aux);
    close_bench(&b);
    json_decref(config);
    json_decref(blocks);
}

static void equals_the_authors_class(void **state)
{
    (void)state;
    DIR *d = opendir(GOLDEN);
    int n = 0;
    assert_non_null(d);
    for (struct dirent *f; (f = readdir(d));)
        if (f->d_name[0] != '.' && strcmp(f->d_name, "trio")) {
            run_case(f->d_name);
            n++;
        }
    closedir(d);
    assert_true(n >= 6);
}

/* ---- the loop on the embedded trio -------------------------------------------------------- */

struct tokens {
    const json_t *want;
    size_t n;
};

static int on_token(void *arg, uint32_t id)
{
    struct tokens *t = arg;
    assert_int_equal(id, json_integer_value(json_array_get(t->want, t->n)));
    t->n++;
    return 0;
}

/* Same output as the authors' loop (and so as greedy decoding), in about as many verifier forwards:
 * near ties of the drafter may fall either way. */
static void trio_follows_the_authors_loop(void **state)
{
    (void)state;
    json_t *all = load("trio", "runs.json"), *run;
    size_t i;
    json_array_foreach(json_object_get(all, "runs"), i, run)
    {
        struct kk_engine_options o = kk_engine_defaults();
        struct kk_sampling p = kk_sampling_defaults();
        struct kk_engine *e = NULL;
        struct kk_session *s = NULL;
        struct kk_generated g;
        struct kk_err err = {0};
        const json_t *prompt = json_object_get(run, "prompt");
        struct tokens t = {json_object_get(run, "output"), 0};
        uint32_t ids[2048];
        size_t n = json_array_size(prompt),
               blocks = json_array_size(json_object_get(run, "blocks"));
        for (size_t k = 0; k < n; k++)
            ids[k] = (uint32_t)json_integer_value(json_array_get(prompt, k));
        o.model = "models/tiny";
        o.draft = "models/tiny/drafter";
        o.draft_width = 16;
        o.kv_type = "f32";
        KK_ASSERT_OK(kk_engine_open(&o, &e, &err), &err);
        KK_ASSERT_OK(kk_session_open(e, &s, &err), &err);
        KK_ASSERT_OK(kk_session_append(s, ids, n, &err), &err);
        KK_ASSERT_OK(
            kk_session_generate(s, &p, (int64_t)json_array_size(t.want), on_token, &t, &g, &err),
            &err);
        /* the authors' first token comes from the prefill, before any block */
        print_message("             %-8s %lld tokens in %lld forwards, theirs %zu\n",
                      json_string_value(json_object_get(run, "name")), (long long)g.tokens,
                      (long long)g.steps, blocks + 1);
        assert_in_range(g.steps, blocks * 8 / 10, blocks * 12 / 10 + 3);
        kk_session_close(s);
        kk_engine_close(e);
    }
    assert_true(i >= 3);
    json_decref(all);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(equals_the_authors_class),
        cmocka_unit_test(trio_follows_the_authors_loop),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
