/* config.json of the model: parse, describe, plan; and where the plan is small enough, an engine of
 * random weights is opened and generates: what was planned is what was allocated. The first byte
 * chooses policy and types. */
#include "fuzz.h"

#include "file/file.h"
#include "model/model.h"

enum { MOST_BYTES = 8 << 20, MOST_PARAMS = 1 << 20 };

static void describe(const char *spec)
{
    struct kk_model_file *mf = NULL;
    struct kk_model_info info;
    struct kk_err err = {0};
    int rc = kk_model_file_open(spec, &mf, &err);
    if (!rc) rc = kk_model_describe(mf, &info, &err);
    if (rc)
        fuzz_failed(rc, &err);
    else
        FUZZ_CHECK(info.C > 0 && info.V > 0 && info.n_layers > 0 && info.n_params > 0 &&
                   info.n_active_params <= info.n_params && info.n_full_layers <= info.n_layers);
    kk_model_file_close(mf);
}

static void run(const struct kk_engine_options *o, const struct kk_plan *plan)
{
    struct kk_engine *e = NULL;
    struct kk_engine_info info;
    struct kk_err err = {0};
    uint32_t out[FUZZ_TOKENS];
    int rc = kk_engine_open(o, &e, &err);
    if (rc) {
        fuzz_failed(rc, &err);
        return;
    }
    kk_engine_describe(e, &info);
    FUZZ_CHECK(info.weight_bytes == plan->weight_bytes);
    FUZZ_CHECK(info.scratch_bytes == plan->scratch_bytes);
    FUZZ_CHECK(info.kv_staging_bytes == plan->kv_staging_bytes);
    fuzz_generate(e, out);
    kk_engine_close(e);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static const char *const kv[] = {"native", "full", "s5", "sinkwin", "restored"};
    static const char *const types[] = {"auto", "f32", "bf16"};
    struct kk_engine_options o = kk_engine_defaults();
    struct kk_plan plan;
    struct kk_err err = {0};
    char spec[600];
    if (size < 2 || size > 8192) return 0;
    snprintf(spec, sizeof spec, "synth:%s", fuzz_file("config.json", data + 1, size - 1));
    o.model = spec;
    o.threads = 1;
    o.kv = kv[data[0] % 5];
    o.kv_type = types[data[0] / 5 % 3];
    o.kv_device = data[0] & 128 ? 4096 : 0;
    o.kv_window = 8;
    o.f_theta = "exact";
    o.prefill_chunk = 16;
    o.max_batch = 1;
    describe(spec);
    int rc = kk_plan_make(&o, 100, 2, &plan, &err);
    if (rc) {
        fuzz_failed(rc, &err);
        return 0;
    }
    FUZZ_CHECK(plan.weight_bytes > 0 && plan.scratch_bytes > 0 && plan.kv_staging_bytes >= 0);
    FUZZ_CHECK(plan.total_bytes == plan.weight_bytes + plan.scratch_bytes + plan.logits_bytes +
                                       plan.kv_staging_bytes + plan.restorer_bytes +
                                       2 * plan.session_kv_bytes);
    if (plan.total_bytes < MOST_BYTES && plan.weight_bytes < MOST_PARAMS) run(&o, &plan);
    return 0;
}
