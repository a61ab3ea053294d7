/* Memory runs out: allocations of loading, opening and running fail, in turn, with every part an
 * engine can have. The answer is KK_ENOMEM and a sentence about memory; nothing leaks
 * (the sanitizer build looks); the engine and the session go on, to the same tokens. */
#include "kk_test.h"

#include <stdio.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/mem.h"
#include "cli/common.h"
#include "kakeya.h"
#include "tiny_f_theta.h"

#define MODEL "synth:tests/data/mini.json:5"
enum { PROMPT = 130, TOKENS = 12, V = 64 }; /* V: of the smallest vocabulary */

static const char drafter_config[] =
    "{\"architectures\":[\"DFlashDraftModel\"],\"model_type\":\"qwen3\",\"hidden_size\":48,"
    "\"num_hidden_layers\":2,\"num_attention_heads\":2,\"num_key_value_heads\":1,\"head_dim\":16,"
    "\"intermediate_size\":32,\"vocab_size\":160,\"block_size\":8,\"dtype\":\"bfloat16\","
    "\"layer_types\":[\"full_attention\",\"sliding_attention\"],\"sliding_window\":16,"
    "\"use_sliding_window\":true,"
    "\"dflash_config\":{\"mask_token_id\":4,\"target_layer_ids\":[1,2]}}";

/* ---- what is run -------------------------------------------------------------------------- */

static void plain(struct kk_engine_options *o)
{
    (void)o;
}
static void ngram(struct kk_engine_options *o)
{
    o->draft = "ngram";
    o->draft_width = 4;
}
static void tier(struct kk_engine_options *o)
{
    o->kv = "full";
    o->kv_device = 60000;
}
static void gguf(struct kk_engine_options *o)
{
    o->model = "tests/golden/gguf/models/gemma4-blocks.gguf";
}
static void dflash(struct kk_engine_options *o)
{
    static char spec[600];
    snprintf(spec, sizeof spec, "synth:%s",
             kk_test_file("drafter.json", drafter_config, sizeof drafter_config - 1));
    o->draft = spec;
    o->draft_width = 4;
    o->draft_device = 20000;
}
static void restored(struct kk_engine_options *o)
{
    static unsigned char file[TINY_F_THETA_MAX];
    kk_test_file("f_theta.safetensors", file, tiny_f_theta(file));
    kk_test_file("f_theta_config.json", TINY_F_THETA_CONFIG, sizeof TINY_F_THETA_CONFIG - 1);
    o->kv = "restored";
    o->kv_window = 16;
    o->f_theta = kk_test_tmpdir();
}

static const struct {
    const char *name;
    void (*set)(struct kk_engine_options *o);
} parts[] = {{"plain", plain},   {"ngram", ngram},       {"tier", tier},
             {"dflash", dflash}, {"restored", restored}, {"gguf", gguf}};
enum { N_PARTS = sizeof parts / sizeof *parts };

static struct kk_engine_options options(int part)
{
    struct kk_engine_options o = kk_engine_defaults();
    o.model = MODEL;
    o.threads = 1;
    o.prefill_chunk = 64;
    o.max_batch = 2;
    parts[part].set(&o);
    return o;
}

/* Bring a session to PROMPT + TOKENS ids, from wherever it stands. */
static int run(struct kk_session *s, struct kk_err *err)
{
    struct kk_sampling p = kk_sampling_defaults();
    uint32_t ids[PROMPT];
    size_t n;
    p.ignore_eos = 1;
    for (uint32_t i = 0; i < PROMPT; i++) ids[i] = (i % 37 * 11 + 5) % V;
    kk_session_history(s, &n);
    int rc = n < PROMPT ? kk_session_append(s, ids + n, PROMPT - n, err) : 0;
    kk_session_history(s, &n);
    return rc || n == PROMPT + TOKENS
               ? rc
               : kk_session_generate(s, &p, (int64_t)(PROMPT + TOKENS - n), NULL, NULL, NULL, err);
}

static void copy_history(const struct kk_session *s, uint32_t out[static PROMPT + TOKENS])
{
    size_t n;
    const uint32_t *ids = kk_session_history(s, &n);
    assert_int_equal(n, PROMPT + TOKENS);
    memcpy(out, ids, n * sizeof *ids);
}

static void names_memory(int rc, const struct kk_err *err)
{
    if (rc != KK_ENOMEM || !strstr(err->msg, "memory"))
        fail_msg("%s: '%s' is no message about memory", kk_errname(rc), err->msg);
}

/* The allocation to fail after the k-th: each of the first ones, then wider and wider apart; in
 * `make soak` every one. kk-test: soak */
static int64_t after(int64_t k)
{
    return getenv("KK_SOAK") ? k + 1 : k + 1 + k / 12;
}

/* ---- open, plan --------------------------------------------------------------------------- */

static void test_open(void **state)
{
    (void)state;
    for (int part = 0; part < N_PARTS; part++) {
        struct kk_engine_options o = options(part);
        for (int64_t k = 1, hit = 1; hit; k = after(k)) {
            struct kk_engine *e = NULL;
            struct kk_err err = {0};
            kk_mem_fail_after(k);
            int rc = kk_engine_open(&o, &e, &err);
            hit = kk_mem_fail_hit();
            kk_mem_fail_after(0);
            if (hit) names_memory(rc, &err);
            if (!hit) KK_ASSERT_OK(rc, &err);
            kk_engine_close(e);
            assert_true(k < 5000);
        }
    }
}

static void test_plan(void **state)
{
    (void)state;
    struct kk_engine_options o = options(4);
    struct kk_plan want = {0}, got = {0};
    for (int64_t k = 0, hit = 1; hit || k == 1; k++) {
        struct kk_err err = {0};
        kk_mem_fail_after(k);
        int rc = kk_plan_make(&o, 100, 3, k ? &got : &want, &err);
        hit = k ? kk_mem_fail_hit() : 1;
        kk_mem_fail_after(0);
        if (k && hit) names_memory(rc, &err);
        if (!k || !hit) KK_ASSERT_OK(rc, &err);
    }
    got.free_bytes = want.free_bytes; /* of a GPU: changes from call to call */
    assert_memory_equal(&want, &got, sizeof want);
}

/* ---- sessions ----------------------------------------------------------------------------- */

/* One session in a fresh engine, the k-th allocation failing on the way; then the rest of it. */
static int interrupted(const struct kk_engine_options *o, int64_t k,
                       uint32_t out[static PROMPT + TOKENS])
{
    struct kk_engine *e = NULL;
    struct kk_session *s = NULL;
    struct kk_err err = {0};
    KK_ASSERT_OK(kk_engine_open(o, &e, &err), &err);
    kk_mem_fail_after(k);
    int rc = kk_session_open(e, &s, &err);
    if (!rc) rc = run(s, &err);
    int hit = kk_mem_fail_hit();
    kk_mem_fail_after(0);
    if (hit) names_memory(rc, &err);
    if (!hit) KK_ASSERT_OK(rc, &err);
    if (!s) KK_ASSERT_OK(kk_session_open(e, &s, &err), &err);
    KK_ASSERT_OK(kk_session_check(s, &err), &err);
    KK_ASSERT_OK(run(s, &err), &err);
    KK_ASSERT_OK(kk_session_check(s, &err), &err);
    copy_history(s, out);
    kk_session_close(s);
    kk_engine_close(e);
    return hit;
}

static void test_sessions(void **state)
{
    (void)state;
    uint32_t want[PROMPT + TOKENS], got[PROMPT + TOKENS];
    for (int part = 0; part < N_PARTS; part++) {
        struct kk_engine_options o = options(part);
        assert_int_equal(interrupted(&o, 0, want), 0);
        int64_t k = 1;
        for (; interrupted(&o, k, got); k = after(k)) {
            if (memcmp(want, got, sizeof want))
                fail_msg("%s: other tokens after allocation %d failed", parts[part].name, (int)k);
            assert_true(k < 5000);
        }
        assert_true(k > 3);
    }
}

/* ---- commands ----------------------------------------------------------------------------- */

static int command(kk_cli_fn *fn, enum kk_command id, int argc, const char *const *argv,
                   struct kk_err *err)
{
    struct kk_cli cli = {0};
    int rc = kk_config_load(&cli.cfg, id, "x", argc, (char *const *)argv, err);
    if (rc) return rc;
    kk_progress_init(&cli.progress);
    rc = fn(&cli, err);
    kk_cli_release(&cli);
    return rc;
}

/* The commands that every user runs, on the embedded model's tokenizer and a small model. */
static void test_commands(void **state)
{
    (void)state;
    static const char config[] = "temp = 0.5\nseed = 3\n";
    const char *file = kk_test_file("kakeya.conf", config, sizeof config - 1);
    const char *const plan[] = {"-m", MODEL, "--ctx", "100", "--config", file};
    const char *const tokenize[] = {"-m", "models/tiny", "-p", "def add(a, b): return 1234"};
    const char *const inspect[] = {MODEL};
    const struct {
        kk_cli_fn *fn;
        enum kk_command id;
        int argc;
        const char *const *argv;
    } all[] = {{kk_cli_plan, KK_CMD_PLAN, 6, plan},
               {kk_cli_tokenize, KK_CMD_TOKENIZE, 4, tokenize},
               {kk_cli_inspect, KK_CMD_INSPECT, 1, inspect}};
    fflush(stdout);
    int saved = dup(1);
    assert_non_null(freopen("/dev/null", "w", stdout));
    for (size_t c = 0; c < sizeof all / sizeof *all; c++)
        for (int64_t k = 1, hit = 1; hit; k = after(k)) {
            struct kk_err err = {0};
            kk_mem_fail_after(k);
            int rc = command(all[c].fn, all[c].id, all[c].argc, all[c].argv, &err);
            hit = kk_mem_fail_hit();
            kk_mem_fail_after(0);
            if (hit && rc) names_memory(rc, &err); /* PCRE2 can do without its JIT */
            if (!hit) KK_ASSERT_OK(rc, &err);
            assert_true(k < 50000);
        }
    fflush(stdout);
    dup2(saved, 1);
    close(saved);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_open),
        cmocka_unit_test(test_plan),
        cmocka_unit_test(test_sessions),
        cmocka_unit_test(test_commands),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
