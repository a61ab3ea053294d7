/* f_theta_config.json beside good weights: refused, or the session runs. Without a config that
 * fits, `restored` must say so; with one, tokens come and the rows are what they should be. */
#include "fuzz.h"

#include "base/fs.h"

enum { C = 48, TAPS = 2, RANK = 8, GD = 32, FILE_MAX = 1 << 16 };

struct writer {
    char header[4096];
    size_t len, bytes;
};

static void tensor(struct writer *w, const char *name, int rows, int cols)
{
    size_t n = (size_t)rows * (size_t)(cols ? cols : 1) * sizeof(float);
    w->len += (size_t)snprintf(w->header + w->len, sizeof w->header - w->len,
                               "%s\"%s\":{\"dtype\":\"F32\",\"shape\":[%d", w->len ? "," : "{",
                               name, rows);
    if (cols)
        w->len += (size_t)snprintf(w->header + w->len, sizeof w->header - w->len, ",%d", cols);
    w->len += (size_t)snprintf(w->header + w->len, sizeof w->header - w->len,
                               "],\"data_offsets\":[%zu,%zu]}", w->bytes, w->bytes + n);
    w->bytes += n;
}

/* Weights for tests/data/mini.json: its layers 0 and 2 slide. */
static void write_weights(void)
{
    static unsigned char file[FILE_MAX];
    struct writer w = {.len = 0};
    tensor(&w, "latent.weight", RANK, TAPS * C);
    tensor(&w, "latent.bias", RANK, 0);
    for (int l = 0; l < 4; l += 2)
        for (int v = 0; v < 2; v++) {
            char name[64];
            snprintf(name, sizeof name, "layers.%d.%c.weight", l, v ? 'v' : 'k');
            tensor(&w, name, GD, RANK);
            snprintf(name, sizeof name, "layers.%d.%c.bias", l, v ? 'v' : 'k');
            tensor(&w, name, GD, 0);
        }
    w.header[w.len++] = '}';
    FUZZ_CHECK(8 + w.len + w.bytes <= sizeof file);
    for (int i = 0; i < 8; i++) file[i] = (unsigned char)(w.len >> 8 * i);
    memcpy(file + 8, w.header, w.len);
    for (size_t i = 0; i < w.bytes / sizeof(float); i++) {
        float x = (float)(int)(i * 37 % 101) / 500.0f - 0.1f;
        memcpy(file + 8 + w.len + i * sizeof x, &x, sizeof x);
    }
    fuzz_file("f_theta.safetensors", file, 8 + w.len + w.bytes);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct kk_engine_options o = kk_engine_defaults();
    struct kk_engine *e = NULL;
    struct kk_engine_info info;
    struct kk_plan plan;
    struct kk_err err = {0};
    uint32_t out[FUZZ_TOKENS];
    if (!size || size > 4096) return 0;
    if (!kk_fs_exists(fuzz_path("f_theta.safetensors"))) write_weights();
    fuzz_file("f_theta_config.json", data, size);
    o.model = FUZZ_MODEL;
    o.threads = 1;
    o.kv = "restored";
    o.kv_sinks = 2;
    o.kv_window = 8;
    o.f_theta = fuzz_dir();
    int planned = kk_plan_make(&o, 100, 1, &plan, &err);
    if (planned) fuzz_failed(planned, &err);
    int rc = kk_engine_open(&o, &e, &err);
    if (rc) {
        fuzz_failed(rc, &err);
        return 0;
    }
    FUZZ_CHECK(!planned && fuzz_generate(e, out) > 0);
    kk_engine_describe(e, &info);
    FUZZ_CHECK(info.rows_rebuilt > 0);
    kk_engine_close(e);
    return 0;
}
