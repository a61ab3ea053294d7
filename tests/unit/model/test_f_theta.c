/* f_theta on every architecture that has sliding layers: a map that keeps the normed residual
 * stream itself and holds the projections of the layers that read it rebuilds their rows up to the
 * latents' rounding, so `restored` is near `native` where `s5` is not. */
#include "unit/model/model_test.h"

#include <math.h>
#include <sys/stat.h>

#include "kakeya.h"

enum { V = 160, C = 48, TOKENS = 90, RANK = 2 * C };

/* Layers 1 and 2, or 2 and 3, slide; each reads the stream after the layer before it. */
static const struct kind {
    const char *config, *edits;
    int first_sliding, GD;
    float norm_plus;
} kinds[] = {
    {"tests/data/mini-gemma3.json",
     "{\"layer_types\": [\"full_attention\", \"sliding_attention\", \"sliding_attention\", "
     "\"full_attention\"]}",
     1, 16, 1},
    {"tests/data/mini-qwen3.json", "{}", 2, 16, 0},
    {"tests/data/mini.json",
     "{\"layer_types\": [\"full_attention\", \"sliding_attention\", \"sliding_attention\", "
     "\"full_attention\"]}",
     1, 32, 0},
};

static float *values(const struct kk_model_file *mf, const char *name, int rows, int cols)
{
    const uint64_t shape[2] = {(uint64_t)rows, (uint64_t)cols};
    struct kk_tensor t;
    struct kk_err err = {0};
    KK_ASSERT_OK(kk_model_file_get(mf, name, cols ? 2 : 1, shape, &t, &err), &err);
    uint16_t *raw = kk_array(t.count, sizeof *raw);
    float *out = kk_array(t.count, sizeof *out);
    kk_tensor_read(&t, 0, t.count, raw);
    for (uint64_t i = 0; i < t.count; i++) out[i] = kk_bf16_to_f32(raw[i]);
    kk_free(raw);
    return out;
}

/* layers.L.<which>: the projection times the layer's input norm, on the part of the latent that is
 * tap number `tap`. */
static void add_projection(struct tensors *t, const struct kk_model_file *mf, const struct kind *k,
                           int l, int tap, const char *which)
{
    char name[160];
    float *map = kk_calloc((size_t)(k->GD * RANK), sizeof *map);
    float *zero = kk_calloc((size_t)k->GD, sizeof *zero);
    snprintf(name, sizeof name, "model.layers.%d.input_layernorm.weight", l);
    float *norm = values(mf, name, C, 0);
    snprintf(name, sizeof name, "model.layers.%d.self_attn.%s_proj.weight", l, which);
    float *w = values(mf, name, k->GD, C);
    for (int r = 0; r < k->GD; r++)
        for (int c = 0; c < C; c++)
            map[r * RANK + tap * C + c] = w[r * C + c] * (norm[c] + k->norm_plus);
    snprintf(name, sizeof name, "layers.%d.%s.weight", l, which);
    tensors_add(t, name, "F32", k->GD, RANK, map, sizeof *map);
    snprintf(name, sizeof name, "layers.%d.%s.bias", l, which);
    tensors_add(t, name, "F32", k->GD, 0, zero, sizeof *zero);
    kk_free(map);
    kk_free(zero);
    kk_free(norm);
    kk_free(w);
}

static const char *make_map(const struct kind *k, const char *model)
{
    static char dir[300];
    static float identity[RANK * RANK], zero[RANK];
    char path[400], text[400];
    struct kk_model_file *mf = NULL;
    struct tensors t;
    struct kk_err err = {0};
    KK_ASSERT_OK(kk_model_file_open(model, &mf, &err), &err);
    tensors_init(&t);
    for (int i = 0; i < RANK; i++) identity[i * RANK + i] = 1;
    tensors_add(&t, "latent.weight", "F32", RANK, RANK, identity, sizeof *identity);
    tensors_add(&t, "latent.bias", "F32", RANK, 0, zero, sizeof *zero);
    for (int i = 0; i < 2; i++) {
        add_projection(&t, mf, k, k->first_sliding + i, i, "k");
        add_projection(&t, mf, k, k->first_sliding + i, i, "v");
    }
    kk_model_file_close(mf);
    snprintf(dir, sizeof dir, "%s", kk_test_path("f_theta"));
    mkdir(dir, 0755);
    snprintf(path, sizeof path, "%s/f_theta.safetensors", dir);
    tensors_write(&t, path);
    int n = snprintf(text, sizeof text,
                     "{\"format\": \"kakeya-f-theta-1\", \"capture\": \"aux\", \"predicts\": "
                     "\"raw_projection\", \"aux_layer_ids\": [%d, %d], \"aux_norm_eps\": 1e-6, "
                     "\"rank\": %d, \"hidden_size\": %d}",
                     k->first_sliding - 1, k->first_sliding, RANK, C);
    kk_test_file("f_theta/f_theta_config.json", text, (size_t)n);
    return dir;
}

static int keep_row(void *arg, int64_t position, const float *logits)
{
    memcpy((float *)arg + position * V, logits, V * sizeof *logits);
    return 0;
}

static void logits_of(const char *model, const char *kv, const char *f_theta, float *out)
{
    struct kk_engine_options o = kk_engine_defaults();
    struct kk_engine *e = NULL;
    struct kk_session *s = NULL;
    struct kk_err err = {0};
    uint32_t ids[TOKENS];
    for (uint32_t i = 0; i < TOKENS; i++) ids[i] = (i * 37 + i * i + 11) % V;
    o.model = model;
    o.kv = kv;
    o.kv_type = "f32";
    o.kv_sinks = 2;
    o.kv_window = 6;
    o.f_theta = f_theta;
    KK_ASSERT_OK(kk_engine_open(&o, &e, &err), &err);
    KK_ASSERT_OK(kk_session_open(e, &s, &err), &err);
    KK_ASSERT_OK(kk_session_logits(s, ids, TOKENS, keep_row, out, &err), &err);
    kk_session_close(s);
    kk_engine_close(e);
}

static void rebuilt_rows_are_those_of_the_architecture(void **state)
{
    (void)state;
    static float native[TOKENS * V], restored[TOKENS * V], near[TOKENS * V];
    for (size_t k = 0; k < sizeof kinds / sizeof *kinds; k++) {
        char model[400];
        snprintf(model, sizeof model, "synth:%s:5", edited_config(kinds[k].config, kinds[k].edits));
        logits_of(model, "native", NULL, native);
        logits_of(model, "s5", NULL, near);
        logits_of(model, "restored", make_map(&kinds[k], model), restored);
        double with = kk_test_rel_err(restored, native, TOKENS * V, 0),
               without = kk_test_rel_err(near, native, TOKENS * V, 0);
        print_message("             %-28s differs from native by %.1e, s5 by %.1e\n",
                      kinds[k].config, with, without);
        assert_true(with > 0 && with < 0.01 && with < without / 10);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(rebuilt_rows_are_those_of_the_architecture),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
