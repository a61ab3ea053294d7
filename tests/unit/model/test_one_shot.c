/* The reference system's restoration against PyTorch (tools/golden/one_shot.py): logits of every
 * position; the same bits however many threads; what is refused. */
#include "unit/model/model_test.h"

#include "base/fs.h"
#include "kakeya.h"

#define GOLDEN "tests/golden/one_shot/"

struct golden {
    char dir[200], model[300], draft[300];
    uint32_t ids[256];
    size_t n, V, seen;
    int sinks, window;
    struct kk_buf want;
    float *got; /* [n - 1, V] */
};

static json_t *load(const char *dir, const char *file)
{
    char path[300];
    json_t *v = NULL;
    struct kk_err err = {0};
    snprintf(path, sizeof path, "%s/%s", dir, file);
    KK_ASSERT_OK(kk_json_load(path, 1 << 20, &v, &err), &err);
    return v;
}

static int get(const json_t *o, const char *key)
{
    return (int)json_integer_value(json_object_get(o, key));
}

static void open_golden(struct golden *g, const char *name)
{
    char path[300];
    struct kk_err err = {0};
    *g = (struct golden){0};
    snprintf(g->dir, sizeof g->dir, GOLDEN "%s", name);
    json_t *ids = load(g->dir, "ids.json"), *meta = load(g->dir, "meta.json");
    snprintf(g->model, sizeof g->model, "synth:%s/config.json:%d", g->dir, get(meta, "seed"));
    snprintf(g->draft, sizeof g->draft, "synth:%s/drafter.json:%d", g->dir, get(meta, "seed"));
    g->sinks = get(meta, "sinks");
    g->window = get(meta, "window");
    g->n = json_array_size(ids);
    for (size_t i = 0; i < g->n; i++)
        g->ids[i] = (uint32_t)json_integer_value(json_array_get(ids, i));
    kk_buf_init(&g->want, 1 << 20);
    snprintf(path, sizeof path, "%s/logits.bin", g->dir);
    KK_ASSERT_OK(kk_fs_read(path, &g->want, &err), &err);
    g->V = g->want.len / sizeof(float) / g->n;
    g->got = kk_array(g->n * g->V, sizeof(float));
    json_decref(ids);
    json_decref(meta);
}

static void close_golden(struct golden *g)
{
    kk_buf_release(&g->want);
    kk_free(g->got);
}

static struct kk_engine *open_engine(const struct golden *g, int threads, int chunk)
{
    struct kk_engine_options o = kk_engine_defaults();
    struct kk_engine *e = NULL;
    struct kk_err err = {0};
    o.model = g->model;
    o.draft = g->draft;
    o.draft_width = 4;
    o.kv_sinks = g->sinks;
    o.kv_window = g->window;
    o.kv_type = "f32";
    o.threads = threads;
    o.prefill_chunk = chunk;
    KK_ASSERT_OK(kk_engine_open(&o, &e, &err), &err);
    return e;
}

static int keep(void *arg, int64_t position, const float *logits)
{
    struct golden *g = arg;
    memcpy(g->got + (size_t)position * g->V, logits, g->V * sizeof *logits);
    g->seen++;
    return 0;
}

static int keep_token(void *arg, uint32_t id)
{
    uint32_t **at = arg;
    *(*at)++ = id;
    return 0;
}

/* Logits into g->got, and the eight tokens after the prompt. */
static void run(struct golden *g, int threads, int chunk, uint32_t tokens[8])
{
    struct kk_engine *e = open_engine(g, threads, chunk);
    struct kk_session *s = NULL;
    struct kk_engine_info info;
    struct kk_sampling p = kk_sampling_defaults();
    struct kk_err err = {0};
    uint32_t *at = tokens;
    g->seen = 0;
    KK_ASSERT_OK(kk_engine_load_one_shot(e, g->dir, &err), &err);
    KK_ASSERT_OK(kk_session_open(e, &s, &err), &err);
    KK_ASSERT_OK(kk_session_one_shot(s, g->ids, g->n, 0, keep, g, &err), &err);
    assert_int_equal(g->seen, g->n - 1);
    kk_engine_describe(e, &info);
    assert_int_equal(info.rows_replaced % ((int)g->n - g->sinks - g->window), 0);
    assert_true(info.rows_replaced > 0);
    p.ignore_eos = 1;
    KK_ASSERT_OK(kk_session_generate(s, &p, 8, keep_token, &at, NULL, &err), &err);
    KK_ASSERT_OK(kk_session_check(s, &err), &err);
    assert_int_equal(kk_session_append(s, g->ids, 1, &err), KK_EINVAL);
    struct kk_session *f = NULL;
    assert_int_equal(kk_session_fork(s, &f, &err), KK_EINVAL);
    assert_int_equal(kk_session_save(s, kk_test_path("session"), &err), KK_EINVAL);
    kk_session_close(s);
    kk_engine_close(e);
}

static void equals_pytorch(void **state)
{
    (void)state;
    static const char *const cases[] = {"dense", "moe"};
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        struct golden g;
        uint32_t tokens[8], again[8];
        open_golden(&g, cases[i]);
        run(&g, 1, 512, tokens);
        double d =
            kk_test_rel_err(g.got, (const float *)(const void *)g.want.data, (g.n - 1) * g.V, 1e-3);
        print_message("             %-8s %zu tokens, largest difference %.1e\n", cases[i], g.n, d);
        assert_true(d < 1e-4);
        float *first = g.got;
        g.got = kk_array(g.n * g.V, sizeof(float));
        run(&g, 2, 7, again);
        assert_memory_equal(first, g.got, (g.n - 1) * g.V * sizeof(float));
        assert_memory_equal(tokens, again, sizeof tokens);
        kk_free(first);
        close_golden(&g);
    }
}

static void refused(const char *draft, const char *kv, const char *dir, int code, const char *words)
{
    struct golden g;
    struct kk_engine_options o = kk_engine_defaults();
    struct kk_engine *e = NULL;
    struct kk_err err = {0};
    open_golden(&g, "dense");
    o.model = g.model;
    o.draft = draft ? draft : g.draft;
    o.kv = kv;
    o.kv_sinks = g.sinks;
    o.kv_window = g.window;
    KK_ASSERT_OK(kk_engine_open(&o, &e, &err), &err);
    assert_int_equal(kk_engine_load_one_shot(e, dir, &err), code);
    if (!strstr(err.msg, words)) fail_msg("'%s' does not say '%s'", err.msg, words);
    kk_engine_close(e);
    close_golden(&g);
}

static void what_is_refused(void **state)
{
    (void)state;
    refused("none", "native", GOLDEN "dense", KK_EUNSUPPORTED, "needs the drafter");
    refused(NULL, "s5", GOLDEN "dense", KK_EINVAL, "of policy native, not 's5'");
    refused(NULL, "native", "models/tiny/f_theta", KK_EUNSUPPORTED, "is causal");
    refused(NULL, "native", GOLDEN "moe", KK_EFORMAT, "a drafter of 1 layers, this one has 3");
    refused(NULL, "native", GOLDEN "nothing", KK_ENOENT, "nothing");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(equals_pytorch),
        cmocka_unit_test(what_is_refused),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
