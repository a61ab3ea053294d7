/* A drafter's config.json over random weights: whatever the config says, either it is refused or
 * the tokens are those of the verifier alone. */
#include "fuzz.h"

#include "file/file.h"
#include "model/model.h"

/* Numbers of parameters, as a bound on the work: the config is random, the weights are made up. */
static int small(const json_t *o)
{
    static const char *const keys[] = {"num_hidden_layers",   "num_attention_heads", "head_dim",
                                       "num_key_value_heads", "intermediate_size",   "hidden_size"};
    const json_t *nested = json_object_get(o, "dflash_config");
    for (size_t i = 0; i < sizeof keys / sizeof *keys; i++) {
        const json_t *v = json_object_get(nested, keys[i]);
        json_int_t n = json_integer_value(v ? v : json_object_get(o, keys[i]));
        if (n > (i < 2 ? 16 : 512)) return 0;
    }
    return 1;
}

static int is_small(const char *spec)
{
    struct kk_model_file *mf = NULL;
    struct kk_err err = {0};
    int rc = kk_model_file_open(spec, &mf, &err);
    int yes = rc || small(kk_model_file_config(mf));
    if (rc) fuzz_failed(rc, &err);
    kk_model_file_close(mf);
    return yes;
}

static void reference(uint32_t *want)
{
    struct kk_engine *e = NULL;
    struct kk_err err = {0};
    struct kk_engine_options o = kk_engine_defaults();
    o.model = FUZZ_MODEL;
    o.threads = 1;
    FUZZ_CHECK(!kk_engine_open(&o, &e, &err));
    FUZZ_CHECK(fuzz_generate(e, want) > 0);
    kk_engine_close(e);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static uint32_t want[FUZZ_TOKENS];
    static int known;
    struct kk_engine_options o = kk_engine_defaults();
    struct kk_engine *e = NULL;
    struct kk_err err = {0};
    uint32_t got[FUZZ_TOKENS] = {0};
    char spec[600];
    if (size < 2 || size > 4096) return 0;
    if (!known++) reference(want);
    snprintf(spec, sizeof spec, "synth:%s", fuzz_file("config.json", data + 1, size - 1));
    if (!is_small(spec)) return 0;
    o.model = FUZZ_MODEL;
    o.threads = 1;
    o.prefill_chunk = 32;
    o.draft = spec;
    o.draft_width = data[0] % 17;
    o.draft_device = data[0] & 128 ? 20000 : 0;
    int rc = kk_engine_open(&o, &e, &err);
    if (rc) {
        fuzz_failed(rc, &err);
        return 0;
    }
    int n = fuzz_generate(e, got);
    FUZZ_CHECK(n && !memcmp(got, want, (size_t)n * sizeof *want));
    kk_engine_close(e);
    return 0;
}
