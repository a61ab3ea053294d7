/* Snapshot directories: config.json, one file or shards with an index; what is missing or does not
 * agree is said in one line. */
#include "unit/file/model_dir.h"

#include "base/json.h"
#include "base/mem.h"

#define ONE(name) "{" T(name, "F32", "1", "0, 4") "}"

static void reads_config(void **state)
{
    (void)state;
    put_text("config.json", CONFIG);
    put_tensors("model.safetensors", ONE("x"), 4);
    struct kk_model_file *mf = open_ok(model_dir());
    assert_string_equal(kk_model_file_architecture(mf), "Arch");
    assert_string_equal(kk_model_file_model_type(mf), "kind");
    assert_string_equal(kk_model_file_dir(mf), model_dir());
    assert_false(kk_model_file_is_synth(mf));
    kk_model_file_close(mf);
    put_text("config.json",
             "{\"architectures\": [\"Outer\"], \"model_type\": \"outer\", \"hidden_size\": 1,"
             " \"text_config\": {\"model_type\": \"inner\", \"hidden_size\": 2}}");
    mf = open_ok(model_dir());
    assert_string_equal(kk_model_file_architecture(mf), "Outer");
    assert_string_equal(kk_model_file_model_type(mf), "inner");
    int64_t C = 0;
    assert_int_equal(kk_json_int(kk_model_file_config(mf), "hidden_size", 1, 9, 1, &C, NULL), 0);
    assert_int_equal(C, 2);
    kk_model_file_close(mf);
    put_text("config.json", "{\"architectures\": [\"A\"], \"model_type\": \"a\", "
                            "\"text_config\": null}");
    mf = open_ok(model_dir());
    assert_string_equal(kk_model_file_model_type(mf), "a");
    kk_model_file_close(mf);
}

static void refuses_bad_configs(void **state)
{
    (void)state;
    static const struct {
        const char *text, *words;
    } bad[] = {
        {"", "config.json' is not valid JSON"},
        {"[]", "config.json' is not a JSON object"},
        {"{\"a\": \"\n\"}", "config.json' is not valid JSON"},
        {"{\"a\": 1, \"a\": 2}", "duplicate"},
        {"{}", "config.json': 'architectures' is missing or no list of names"},
        {"{\"architectures\": \"A\", \"model_type\": \"a\"}", "'architectures' is missing or no"},
        {"{\"architectures\": [], \"model_type\": \"a\"}", "'architectures' is missing or no"},
        {"{\"architectures\": [1], \"model_type\": \"a\"}", "'architectures' is missing or no"},
        {"{\"architectures\": [\"\"], \"model_type\": \"a\"}", "'architectures' is missing or no"},
        {"{\"architectures\": [\"A\\n\"], \"model_type\": \"a\"}", "'architectures' is missing"},
        {"{\"architectures\": [\"A\\u0000\"], \"model_type\": \"a\"}", "'architectures' is"},
        {"{\"architectures\": [\"A\"]}", "config.json': 'model_type' is missing or no name"},
        {"{\"architectures\": [\"A\"], \"model_type\": 3}", "'model_type' is missing or no name"},
        {"{\"architectures\": [\"A\"], \"model_type\": \"a\", \"text_config\": {}}",
         "'model_type' is missing or no name"},
        {"{\"architectures\": [\"A\"], \"model_type\": \"a\", \"text_config\": 3}",
         "'text_config' is not a JSON object"},
    };
    put_tensors("model.safetensors", ONE("x"), 4);
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        put_text("config.json", bad[i].text);
        open_fails(model_dir(), KK_EFORMAT, bad[i].words);
    }
}

static void says_what_is_missing(void **state)
{
    (void)state;
    char path[600];
    open_fails("no/such/dir", KK_ENOENT, "model directory 'no/such/dir' does not exist");
    open_fails("", KK_ENOENT, "model directory '' does not exist");
    open_fails("Makefile", KK_EFORMAT, "'Makefile' is neither a model directory");
    put_tensors("model.safetensors", ONE("x"), 4);
    drop("config.json");
    open_fails(model_dir(), KK_ENOENT, "has no config.json: is it a model directory?");
    put_text("config.json", CONFIG);
    drop("model.safetensors");
    open_fails(model_dir(), KK_ENOENT, "has neither model.safetensors nor model.safetensors.index");
    snprintf(path, sizeof path, "%s/model.safetensors", model_dir());
    assert_int_equal(mkdir(path, 0755), 0);
    open_fails(model_dir(), KK_EIO, "model.safetensors': not a regular file");
    assert_int_equal(rmdir(path), 0);
    char *deep = kk_malloc(6000);
    memset(deep, 'd', 5999);
    deep[5999] = 0;
    open_fails(deep, KK_ERANGE, "path too long: 'dddd");
    kk_free(deep);
}

static void put_shards(void)
{
    put_text("config.json", CONFIG);
    drop("model.safetensors");
    put_tensors("s1.safetensors", "{" T("x", "F32", "1", "0, 4") "," T("w", "F32", "1", "4, 8") "}",
                8);
    put_tensors("s1b.safetensors", ONE("x"), 4);
    put_tensors("s2.safetensors", ONE("y"), 4);
    put("cut.safetensors", "\x99\0\0\0\0\0\0\0{", 9);
    put_text("model.safetensors.index.json",
             "{\"metadata\": {\"total_size\": 12}, \"weight_map\": {\"w\": \"s1.safetensors\", "
             "\"y\": \"s2.safetensors\", \"x\": \"s1.safetensors\"}}");
}

static void reads_shards(void **state)
{
    (void)state;
    struct kk_tensor t;
    put_shards();
    struct kk_model_file *mf = open_ok(model_dir());
    assert_int_equal(kk_model_file_count(mf), 3);
    assert_int_equal(kk_model_file_get(mf, "w", 1, (uint64_t[]){1}, &t, NULL), 0);
    assert_memory_equal(t.data, "\4\5\6\7", 4);
    assert_int_equal(kk_model_file_get(mf, "y", 1, (uint64_t[]){1}, &t, NULL), 0);
    assert_memory_equal(t.data, "\0\1\2\3", 4);
    kk_model_file_close(mf);
    put_tensors("model.safetensors", ONE("alone"), 4); /* the whole file is preferred */
    mf = open_ok(model_dir());
    assert_int_equal(kk_model_file_count(mf), 1);
    kk_model_file_close(mf);
    drop("model.safetensors");
}

static void refuses_bad_shards(void **state)
{
    (void)state;
    static const struct {
        const char *map;
        int code;
        const char *words;
    } bad[] = {
        {"\"x\": \"../s1.safetensors\"", KK_EFORMAT,
         "the shard of tensor 'x' is no plain file name"},
        {"\"x\": \"/etc/passwd\"", KK_EFORMAT, "no plain file name"},
        {"\"x\": \"a/b\"", KK_EFORMAT, "no plain file name"},
        {"\"x\": \"..\"", KK_EFORMAT, "no plain file name"},
        {"\"x\": \".hidden\"", KK_EFORMAT, "no plain file name"},
        {"\"x\": \"\"", KK_EFORMAT, "no plain file name"},
        {"\"x\": \"s1.safetensors\\u0000\"", KK_EFORMAT, "no plain file name"},
        {"\"x\": \"s1\\n\"", KK_EFORMAT, "no plain file name"},
        {"\"x\": 3", KK_EFORMAT, "no plain file name"},
        {"\"x\\n\": 3", KK_EFORMAT, "the shard of tensor 'x?' is no plain file name"},
        {"\"x\": \"s3.safetensors\"", KK_ENOENT, "shard of tensor 'x': cannot open"},
        {"\"x\": \"cut.safetensors\"", KK_EFORMAT, "cut.safetensors' is truncated"},
        {"\"z\": \"s1.safetensors\"", KK_EFORMAT,
         "promises tensor 'z' in 's1.safetensors', which does not have it"},
        {"\"x\": \"s1.safetensors\", \"y\": \"s1.safetensors\", \"y2\": \"s2.safetensors\"",
         KK_EFORMAT, "promises tensor 'y' in 's1.safetensors', which does not have it"},
        {"\"y\": \"s2.safetensors\", \"x\": \"s2.safetensors\", \"w\": \"s1.safetensors\"",
         KK_EFORMAT, "promises tensor 'x' in 's2.safetensors', which does not have it"},
        {"\"x\": \"s1.safetensors\", \"y\": \"s1b.safetensors\"", KK_EFORMAT,
         "s1b.safetensors': tensor 'x' is in another shard too"},
        {"", KK_EFORMAT, "has no 'weight_map'"},
    };
    put_shards();
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        char text[300];
        snprintf(text, sizeof text, "{\"weight_map\": {%s}}", bad[i].map);
        put_text("model.safetensors.index.json", text);
        open_fails(model_dir(), bad[i].code, bad[i].words);
    }
    put_text("model.safetensors.index.json", "{\"weight_map\": []}");
    open_fails(model_dir(), KK_EFORMAT, "index.json' has no 'weight_map'");
    put_text("model.safetensors.index.json", "[]");
    open_fails(model_dir(), KK_EFORMAT, "index.json' has no 'weight_map'");
    put_text("model.safetensors.index.json", "{");
    open_fails(model_dir(), KK_EFORMAT, "index.json' is not valid JSON");
    drop("model.safetensors.index.json");
}

/* More tensors than the first table of names holds. */
static void finds_many_names(void **state)
{
    (void)state;
    enum { N = 3000 };
    size_t cap = 1 << 20, at = 8, n;
    unsigned char *buf = kk_malloc(cap);
    char name[32];
    put_text("config.json", CONFIG);
    for (int i = 0; i < N; i++)
        at += (size_t)snprintf((char *)buf + at, cap - at,
                               "%c\"t.%d\": {\"dtype\": \"F32\", \"shape\": [1], "
                               "\"data_offsets\": [%d, %d]}",
                               i ? ',' : '{', i, i * 4, i * 4 + 4);
    buf[at++] = '}';
    n = at - 8;
    for (int i = 0; i < 8; i++) buf[i] = (unsigned char)(n >> (8 * i));
    for (int i = 0; i < N; i++, at += 4) memcpy(buf + at, &i, 4);
    put("model.safetensors", buf, at);
    kk_free(buf);
    struct kk_model_file *mf = open_ok(model_dir());
    for (int i = 0; i < N; i++) {
        struct kk_tensor t;
        int v;
        snprintf(name, sizeof name, "t.%d", i);
        assert_int_equal(kk_model_file_get(mf, name, 1, (uint64_t[]){1}, &t, NULL), 0);
        kk_tensor_read(&t, 0, 1, &v);
        assert_int_equal(v, i);
    }
    assert_false(kk_model_file_has(mf, "t.3000"));
    kk_model_file_close(mf);
    drop("model.safetensors");
}

/* Every allocation fails in turn, in the sharded case. */
static void survives_out_of_memory(void **state)
{
    (void)state;
    put_shards();
    const char *dir = model_dir();
    for (int64_t k = 1;; k++) {
        struct kk_model_file *mf = NULL;
        struct kk_err err = {0};
        kk_mem_fail_after(k);
        int rc = kk_model_file_open(dir, &mf, &err);
        int hit = kk_mem_fail_hit();
        kk_mem_fail_after(0);
        if (!hit) {
            assert_int_equal(rc, 0);
            kk_model_file_close(mf);
            break;
        }
        KK_ASSERT_FAILS(rc, KK_ENOMEM, &err, "out of memory");
        assert_true(k < 100);
    }
    drop("model.safetensors.index.json");
}

static void opens_what_is_in_the_tree(void **state)
{
    (void)state;
    static const char *const specs[] = {"models/tiny", "synth:bench/configs/gemma-4-26b-a4b.json:7",
                                        "synth:bench/configs/cpu-1b.json"};
    for (size_t i = 0; i < 3; i++) {
        struct kk_model_file *mf = open_ok(specs[i]);
        assert_string_equal(kk_model_file_architecture(mf), "Gemma4ForCausalLM");
        assert_string_equal(kk_model_file_model_type(mf), "gemma4_text");
        kk_model_file_close(mf);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(reads_config),           cmocka_unit_test(refuses_bad_configs),
        cmocka_unit_test(says_what_is_missing),   cmocka_unit_test(reads_shards),
        cmocka_unit_test(refuses_bad_shards),     cmocka_unit_test(finds_many_names),
        cmocka_unit_test(survives_out_of_memory), cmocka_unit_test(opens_what_is_in_the_tree),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
