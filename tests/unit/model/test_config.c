/* What a config.json says and what is refused: each case is a small model with some keys changed
 * (null: taken away), and either the one line it must fail with or a fact about the result. */
#include "unit/model/model_test.h"

#include "model/model.h"

#define DATA "tests/data/"

/* The config at `path` with `edits`, opened as a synth: model. */
static struct kk_model_file *edited(const char *path, const char *edits)
{
    struct kk_err err = {0};
    struct kk_model_file *mf = NULL;
    char spec[400];
    snprintf(spec, sizeof spec, "synth:%s", edited_config(path, edits));
    KK_ASSERT_OK(kk_model_file_open(spec, &mf, &err), &err);
    return mf;
}

#define KNOWN                                                                                      \
    "(known: Gemma3ForCausalLM, Gemma3ForConditionalGeneration, Gemma4ForCausalLM, "               \
    "Gemma4ForConditionalGeneration, LlamaForCausalLM, Qwen3ForCausalLM)"
#define ROPES "is not supported (known: default, linear, llama3)"
static const char gemma3[] = DATA "mini-gemma3.json", gemma4[] = DATA "mini.json",
                  llama[] = DATA "mini-llama.json", qwen3[] = DATA "mini-qwen3.json";

static const struct {
    const char *config, *edits;
    int code;
    const char *message;
} refused[] = {
    {llama, "{\"architectures\": [\"MambaForCausalLM\"]}", KK_EUNSUPPORTED,
     "architecture 'MambaForCausalLM' is not supported " KNOWN},
    {llama, "{\"model_type\": \"qwen3\"}", KK_EUNSUPPORTED,
     "architecture 'LlamaForCausalLM' and model_type 'qwen3' do not agree (expected llama)"},

    {llama, "{\"vocab_size\": null}", KK_EFORMAT, "'vocab_size' is missing"},
    {gemma3, "{\"hidden_size\": null}", KK_EFORMAT, "'hidden_size' is missing"},
    {qwen3, "{\"num_hidden_layers\": null}", KK_EFORMAT, "'num_hidden_layers' is missing"},
    {gemma4, "{\"head_dim\": null}", KK_EFORMAT, "'head_dim' is missing"},
    {llama, "{\"num_attention_heads\": 0}", KK_EFORMAT,
     "'num_attention_heads' is 0, expected 1 to 1024"},
    {llama, "{\"num_key_value_heads\": 3}", KK_EFORMAT,
     "4 attention heads are no multiple of 3 KV heads"},
    {llama, "{\"num_key_value_heads\": 8}", KK_EFORMAT,
     "'num_key_value_heads' is 8, expected 1 to 4"},
    {gemma4, "{\"num_global_key_value_heads\": 3}", KK_EFORMAT,
     "4 attention heads are no multiple of 3 KV heads"},
    {llama, "{\"num_attention_heads\": 6}", KK_EFORMAT,
     "'head_dim' is missing, and hidden_size 64 is no multiple of 6 heads"},
    {llama, "{\"hidden_size\": 2}", KK_EFORMAT,
     "'head_dim' is missing, and hidden_size 2 is no multiple of 4 heads"},
    {qwen3, "{\"head_dim\": 17}", KK_EFORMAT, "head dimensions must be even"},
    {llama, "{\"hidden_size\": 16384}", KK_EFORMAT, "at most 1024, found 4096"},
    {gemma3, "{\"head_dim\": 2048}", KK_EFORMAT, "'head_dim' is 2048, expected 1 to 1024"},
    {gemma3, "{\"query_pre_attn_scalar\": 0}", KK_EFORMAT,
     "'query_pre_attn_scalar' is 0, expected 1"},
    {llama, "{\"rms_norm_eps\": \"small\"}", KK_EFORMAT, "'rms_norm_eps' must be a number"},
    {llama, "{\"eos_token_id\": [1, 160]}", KK_EFORMAT, "must be ids below vocab_size 160"},
    {llama, "{\"bos_token_id\": -1}", KK_EFORMAT, "'bos_token_id' must be an id below"},
    {llama, "{\"bos_token_id\": \"<s>\"}", KK_EFORMAT, "'bos_token_id' must be an id below"},

    {gemma3, "{\"sliding_window\": 0}", KK_EFORMAT, "'sliding_window' is 0, expected 1"},
    {qwen3, "{\"sliding_window\": 0}", KK_EFORMAT, "'sliding_window' is 0, expected 1"},
    {gemma3, "{\"layer_types\": [\"full_attention\"]}", KK_EFORMAT,
     "'layer_types' must list 4 layers"},
    {gemma3, "{\"num_hidden_layers\": 1, \"layer_types\": [\"chunked_attention\"]}",
     KK_EUNSUPPORTED, "layer type 'chunked_attention' of layer 0 is not supported"},
    {qwen3,
     "{\"num_hidden_layers\": 1, \"use_sliding_window\": false, "
     "\"layer_types\": [\"sliding_attention\"]}",
     KK_EFORMAT, "'layer_types' has sliding layers, but use_sliding_window is false"},
    {llama,
     "{\"layer_types\": [\"full_attention\", \"sliding_attention\", \"full_attention\"], "
     "\"sliding_window\": 64}",
     KK_EUNSUPPORTED, "sliding layers are not supported in a Llama"},
    {gemma4, "{\"num_hidden_layers\": 1, \"layer_types\": [\"sliding_attention\"]}",
     KK_EUNSUPPORTED, "the last layer must be full_attention"},

    {llama, "{\"rope_scaling\": {\"rope_type\": \"yarn\", \"factor\": 4}}", KK_EUNSUPPORTED,
     "rope_scaling: rope type 'yarn' " ROPES},
    {qwen3, "{\"rope_parameters\": {\"type\": \"dynamic\"}}", KK_EUNSUPPORTED,
     "rope_parameters: rope type 'dynamic' " ROPES},
    {gemma3, "{\"rope_parameters\": {\"sliding_attention\": {\"rope_type\": \"longrope\"}}}",
     KK_EUNSUPPORTED, "rope_parameters.sliding_attention: rope type 'longrope' " ROPES},
    {gemma4, "{\"rope_parameters\": {\"full_attention\": {\"rope_type\": \"yarn\"}}}",
     KK_EUNSUPPORTED, "rope type 'yarn' is not supported (known: default, proportional)"},
    {llama, "{\"rope_scaling\": {\"rope_type\": \"linear\"}}", KK_EFORMAT,
     "rope_scaling: 'factor' is missing"},
    {llama, "{\"rope_scaling\": {\"rope_type\": \"llama3\", \"factor\": 8}}", KK_EFORMAT,
     "rope_scaling: 'low_freq_factor' is missing"},
    {llama,
     "{\"rope_scaling\": {\"rope_type\": \"llama3\", \"factor\": 8, \"low_freq_factor\": 4, "
     "\"high_freq_factor\": 1}}",
     KK_EFORMAT, "high_freq_factor 1 is not over low_freq_factor 4"},
    {llama, "{\"rope_scaling\": 8}", KK_EFORMAT, "'rope_scaling' is not a JSON object"},
    {llama, "{\"rope_theta\": 0}", KK_EFORMAT, "'rope_theta' is 0"},
    {qwen3, "{\"rope_parameters\": {\"partial_rotary_factor\": 0.5}}", KK_EUNSUPPORTED,
     "partial_rotary_factor 0.5 is not supported"},
    {qwen3, "{\"rope_parameters\": {\"full_attention\": {\"rope_type\": \"default\"}}}",
     KK_EUNSUPPORTED, "rope_parameters: one embedding for each kind of layer is not supported"},
    {gemma3, "{\"rope_parameters\": {\"rope_type\": \"linear\", \"factor\": 8}}", KK_EFORMAT,
     "'rope_parameters' must have full_attention and sliding_attention"},

    {llama, "{\"attention_bias\": true}", KK_EUNSUPPORTED, "attention_bias is not supported"},
    {llama, "{\"mlp_bias\": true}", KK_EUNSUPPORTED, "mlp_bias is not supported"},
    {qwen3, "{\"attention_bias\": true}", KK_EUNSUPPORTED, "attention_bias is not supported"},
    {llama, "{\"hidden_act\": \"gelu\"}", KK_EUNSUPPORTED,
     "hidden_act 'gelu' is not supported (known: silu)"},
    {gemma3, "{\"hidden_activation\": \"silu\"}", KK_EUNSUPPORTED,
     "hidden_activation 'silu' is not supported (known: gelu_pytorch_tanh)"},
    {gemma3, "{\"attn_logit_softcapping\": 50.0}", KK_EUNSUPPORTED,
     "attn_logit_softcapping is not supported"},
    {gemma3, "{\"use_bidirectional_attention\": true}", KK_EUNSUPPORTED,
     "use_bidirectional_attention is not supported"},
};

static void what_is_not_implemented_is_refused(void **state)
{
    (void)state;
    for (size_t k = 0; k < sizeof refused / sizeof *refused; k++) {
        struct kk_model_info info;
        struct kk_err err = {0};
        struct kk_model_file *mf = edited(refused[k].config, refused[k].edits);
        int rc = kk_model_describe(mf, &info, &err);
        if (rc != refused[k].code || !strstr(err.msg, refused[k].message))
            fail_msg("%s with %s: %d, '%s'; expected '%s'", refused[k].config, refused[k].edits, rc,
                     err.msg, refused[k].message);
        assert_null(strchr(err.msg, '\n'));
        kk_model_file_close(mf);
    }
}

static struct kk_model_info describe(const char *config, const char *edits)
{
    struct kk_model_info info;
    struct kk_err err = {0};
    struct kk_model_file *mf = edited(config, edits);
    KK_ASSERT_OK(kk_model_describe(mf, &info, &err), &err);
    kk_model_file_close(mf);
    return info;
}

/* Keys that a released config leaves out. */
static void absent_keys_have_the_defaults_of_the_class(void **state)
{
    (void)state;
    struct kk_model_info i =
        describe(gemma3, "{\"vocab_size\": null, \"num_attention_heads\": null, \"head_dim\": null,"
                         "\"num_key_value_heads\": null, \"sliding_window\": null,"
                         "\"sliding_window_pattern\": null, \"num_hidden_layers\": 13,"
                         "\"max_position_embeddings\": null}");
    assert_int_equal(i.V, 262208);
    assert_int_equal(i.H, 8);
    assert_int_equal(i.window, 4096);
    assert_int_equal(i.n_full_layers, 2);
    assert_int_equal(i.max_positions, 131072);
    i = describe(qwen3, "{\"use_sliding_window\": null}");
    assert_int_equal(i.n_full_layers, 4);
    assert_int_equal(i.window, 0);
    i = describe(qwen3, "{\"max_window_layers\": null}"); /* 28 */
    assert_int_equal(i.n_full_layers, 4);
}

static void special_tokens(void **state)
{
    (void)state;
    struct kk_model_info i = describe(llama, "{\"bos_token_id\": null, \"eos_token_id\": null}");
    assert_int_equal(i.bos, 1); /* of the class */
    assert_int_equal(i.n_eos, 1);
    assert_int_equal(i.eos[0], 2);
    i = describe(qwen3, "{\"bos_token_id\": null, \"eos_token_id\": null}");
    assert_int_equal(i.bos, -1);
    assert_int_equal(i.n_eos, 0);
    i = describe(llama, "{\"eos_token_id\": [5, 6, 7]}");
    assert_int_equal(i.n_eos, 3);
    assert_int_equal(i.eos[2], 7);
    /* of the whole, where the text model inside it has none: google/gemma-3-4b-it */
    i = describe(gemma3, "{\"architectures\": [\"Gemma3ForConditionalGeneration\"],"
                         "\"model_type\": \"gemma3\", \"eos_token_id\": [1, 106], \"text_config\":"
                         "{\"model_type\": \"gemma3_text\", \"hidden_size\": 2560, "
                         "\"intermediate_size\": 10240, \"num_hidden_layers\": 34, "
                         "\"bos_token_id\": null, \"sliding_window\": 1024, "
                         "\"rope_scaling\": {\"factor\": 8.0, \"rope_type\": \"linear\"}}}");
    assert_int_equal(i.n_eos, 2);
    assert_int_equal(i.eos[1], 106);
    assert_int_equal(i.bos, -1); /* null: none */
    assert_int_equal(i.n_full_layers, 5);
    assert_int_equal(i.V, 262208);
    assert_int_equal(i.n_params, 3880263168);
}

/* Parameters counted from the geometry are those of the tensors. */
static void parameters_are_those_of_the_class(void **state)
{
    (void)state;
    /* google/gemma-3-270m: 268,098,176; SmolLM2-135M: 134,515,008; Qwen3-0.6B: 596,049,920 */
    struct kk_model_info i = describe(
        gemma3, "{\"vocab_size\": 262144, \"hidden_size\": 640, \"intermediate_size\": 2048,"
                "\"num_hidden_layers\": 18, \"head_dim\": 256}");
    assert_int_equal(i.n_params, 268098176);
    i = describe(llama, "{\"vocab_size\": 49152, \"hidden_size\": 576, \"intermediate_size\": 1536,"
                        "\"num_hidden_layers\": 30, \"num_attention_heads\": 9,"
                        "\"num_key_value_heads\": 3, \"tie_word_embeddings\": true}");
    assert_int_equal(i.n_params, 134515008);
    i = describe(qwen3,
                 "{\"vocab_size\": 151936, \"hidden_size\": 1024, \"intermediate_size\": 3072,"
                 "\"num_hidden_layers\": 28, \"num_attention_heads\": 16, \"head_dim\": 128,"
                 "\"num_key_value_heads\": 8, \"tie_word_embeddings\": true}");
    assert_int_equal(i.n_params, 596049920);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(what_is_not_implemented_is_refused),
        cmocka_unit_test(absent_keys_have_the_defaults_of_the_class),
        cmocka_unit_test(special_tokens),
        cmocka_unit_test(parameters_are_those_of_the_class),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
