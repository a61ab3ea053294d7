/* Logits against the Hugging Face classes in float32 (tools/golden/gemma4.py, archs.py): within
 * 1e-4 of the row's scale, and the same argmax everywhere. A folder of
 * tests/golden/ARCHITECTURE is a case. */
#include <dirent.h>
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>

#include <cmocka.h>

#include "base/fs.h"
#include "base/json.h"
#include "base/mem.h"
#include "kakeya.h"

#define TOLERANCE          1e-4
#define RESTORED_TOLERANCE 1e-3

struct golden {
    char dir[300], model[400];
    uint32_t *ids;
    size_t n, n_rows, V;
    int32_t *row_of; /* [n]: index into logits, or -1 */
    struct kk_buf logits;
    json_t *argmax; /* array or NULL */
    json_t *meta;
    double worst;
    int wrong; /* rows whose argmax differs */
};

static json_t *load(const char *dir, const char *name)
{
    char path[400];
    json_t *v = NULL;
    struct kk_err err = {0};
    snprintf(path, sizeof path, "%s/%s", dir, name);
    if (kk_json_load(path, 1 << 20, &v, &err)) fail_msg("%s", err.msg);
    return v;
}

static void open_golden(struct golden *g, const char *root, const char *name)
{
    char path[400];
    struct kk_err err = {0};
    memset(g, 0, sizeof *g);
    snprintf(g->dir, sizeof g->dir, "%s/%s", root, name);
    json_t *ids = load(g->dir, "ids.json"), *meta = load(g->dir, "meta.json");
    json_t *rows = json_object_get(meta, "rows");
    const char *model = json_string_value(json_object_get(meta, "model"));
    if (model)
        snprintf(g->model, sizeof g->model, "%s", model);
    else
        snprintf(g->model, sizeof g->model, "synth:%s/config.json:%lld", g->dir,
                 (long long)json_integer_value(json_object_get(meta, "seed")));
    g->n = json_array_size(ids);
    g->n_rows = json_array_size(rows);
    g->ids = kk_calloc(g->n, sizeof *g->ids);
    g->row_of = kk_calloc(g->n, sizeof *g->row_of);
    for (size_t i = 0; i < g->n; i++) {
        g->ids[i] = (uint32_t)json_integer_value(json_array_get(ids, i));
        g->row_of[i] = -1;
    }
    for (size_t i = 0; i < g->n_rows; i++)
        g->row_of[json_integer_value(json_array_get(rows, i))] = (int32_t)i;
    g->argmax = json_incref(json_object_get(meta, "argmax"));
    snprintf(path, sizeof path, "%s/logits.bin", g->dir);
    kk_buf_init(&g->logits, 64 << 20);
    if (kk_fs_read(path, &g->logits, &err)) fail_msg("%s", err.msg);
    json_decref(ids);
    g->meta = meta;
}

static void close_golden(struct golden *g)
{
    kk_free(g->ids);
    kk_free(g->row_of);
    kk_buf_release(&g->logits);
    json_decref(g->argmax);
    json_decref(g->meta);
}

static size_t argmax(const float *x, size_t n)
{
    size_t best = 0;
    for (size_t i = 1; i < n; i++)
        if (x[i] > x[best]) best = i;
    return best;
}

static int compare_row(void *arg, int64_t position, const float *got)
{
    struct golden *g = arg;
    int32_t r = g->row_of[position];
    if (g->argmax)
        g->wrong += (json_int_t)argmax(got, g->V) !=
                    json_integer_value(json_array_get(g->argmax, (size_t)position));
    if (r < 0) return 0;
    const float *want = (const float *)(const void *)g->logits.data + (size_t)r * g->V;
    double scale = 0, diff = 0;
    for (size_t i = 0; i < g->V; i++) {
        if (fabs((double)want[i]) > scale) scale = fabs((double)want[i]);
        if (fabs((double)want[i] - (double)got[i]) > diff)
            diff = fabs((double)want[i] - (double)got[i]);
    }
    if (diff / scale > g->worst) g->worst = diff / scale;
    g->wrong += argmax(got, g->V) != argmax(want, g->V);
    return 0;
}

/* 1 if the case is within the tolerance with the same argmax everywhere. */
static int run_case(const char *root, const char *name)
{
    struct golden g;
    struct kk_engine_options o = kk_engine_defaults();
    struct kk_engine *e = NULL;
    struct kk_engine_info info;
    struct kk_session *s = NULL;
    struct kk_err err = {0};
    open_golden(&g, root, name);
    const char *policy = json_string_value(json_object_get(g.meta, "policy"));
    int restored = policy && !strcmp(policy, "restored");
    o.model = g.model;
    o.kv_type = "f32";
    if (policy) {
        o.kv = policy;
        o.kv_sinks = (int)json_integer_value(json_object_get(g.meta, "sinks"));
        o.kv_window = (int)json_integer_value(json_object_get(g.meta, "window"));
    }
    if (restored)
        o.f_theta = json_is_true(json_object_get(g.meta, "exact_rows"))
                        ? "exact"
                        : json_string_value(json_object_get(g.meta, "f_theta"));
    double tolerance = restored ? RESTORED_TOLERANCE : TOLERANCE;
    int allowed = restored ? (int)(g.n / 100) : 0;
    if (kk_engine_open(&o, &e, &err) || kk_session_open(e, &s, &err))
        fail_msg("%s: %s", name, err.msg);
    kk_engine_describe(e, &info);
    g.V = (size_t)info.vocabulary;
    assert_int_equal(g.logits.len, g.n_rows * g.V * sizeof(float));
    if (kk_session_logits(s, g.ids, g.n, compare_row, &g, &err)) fail_msg("%s: %s", name, err.msg);
    print_message("             %-20s %4zu tokens  largest difference %.1e of the row's scale\n",
                  strstr(g.dir, "golden/") + 7, g.n, g.worst);
    int good = g.worst < tolerance && g.wrong <= allowed;
    if (g.wrong) print_message("             %s: another argmax at %d positions\n", name, g.wrong);
    kk_session_close(s);
    kk_engine_close(e);
    close_golden(&g);
    return good;
}

/* Every folder of root is a case. */
static void run_folder(const char *root, int least)
{
    DIR *d = opendir(root);
    assert_non_null(d);
    int n = 0, bad = 0;
    for (struct dirent *f; (f = readdir(d));)
        if (f->d_name[0] != '.') {
            bad += !run_case(root, f->d_name);
            n++;
        }
    closedir(d);
    assert_int_equal(bad, 0);
    assert_true(n >= least);
}

static void logits_equal_hugging_face(void **state)
{
    (void)state;
    run_folder("tests/golden/gemma4", 17);
    run_folder("tests/golden/gemma3", 12);
    run_folder("tests/golden/llama", 11);
    run_folder("tests/golden/qwen3", 9);
}

static void policies_equal_the_oracle(void **state)
{
    (void)state;
    run_folder("tests/golden/policies", 9);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(logits_equal_hugging_face),
        cmocka_unit_test(policies_equal_the_oracle),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
