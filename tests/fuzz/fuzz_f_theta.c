/* f_theta_config.json beside good weights: refused, or the session runs. Without a config that
 * fits, `restored` must say so; with one, tokens come and the rows are what they should be. */
#include "fuzz.h"

#include "base/fs.h"
#include "tiny_f_theta.h"

static void write_weights(void)
{
    static unsigned char file[TINY_F_THETA_MAX];
    fuzz_file("f_theta.safetensors", file, tiny_f_theta(file));
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
