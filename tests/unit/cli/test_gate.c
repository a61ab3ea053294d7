/* The gate against forged reports: each is refused with its reason, the honest one passes. */
#include "kk_test.h"

#include "base/json.h"
#include "cli/gate.h"

/* An honest report of one rung, small enough to read. */
static json_t *honest(void)
{
    json_t *report = json_pack("{s:s}", "draft", "ngram"), *rungs = json_array();
    for (int r = 0; r < 2; r++) {
        json_t *arms = json_object(), *rung = json_object();
        for (int k = 0; kk_scorecard_arms[k]; k++) {
            const char *n = kk_scorecard_arms[k];
            int same = !strcmp(n, "native") || !strcmp(n, "full") || !strcmp(n, "identity");
            int tier = !strcmp(n, "tier");
            json_t *a = json_pack(
                "{s:i, s:i, s:i, s:i, s:i, s:f, s:f, s:s, s:i, s:i, s:f, s:i, s:i, s:i, s:i}",
                "kv_device_bytes", tier ? 900 : 1000 + 100 * r, "drafter_device_bytes", 0,
                "kv_staging_bytes", 64, "kv_host_bytes", tier ? 100 + 100 * r : 0, "resident_rows",
                10, "recall", strcmp(n, "sinkwin") ? 1.0 : 0.0, "ar_tok_s", 50.0, "bytes_from",
                "allocator", "resident_bytes", 900, "samples", 2, "kl_native", same ? 0.0 : 0.1,
                "kl_positions", 32, "rows_rebuilt", 7, "blocks", 10, "pinned_drafted", 30);
            json_object_set_new(a, "fused_tokens", json_integer(20));
            json_object_set_new(a, "recall_keyed", json_real(0.5));
            json_object_set_new(a, "committed_per_block", json_real(2.0));
            json_object_set_new(a, "fused_tok_s", json_real(80.0));
            json_object_set_new(a, "tokens_compared", json_integer(20));
            json_object_set_new(a, "byte_identical", json_true());
            json_object_set_new(a, "cap", json_integer(tier ? 1000 : 0));
            json_object_set_new(arms, n, a);
        }
        json_object_set_new(rung, "arms", arms);
        json_object_set_new(rung, "reasons", json_object());
        json_object_set_new(rung, "one_shot",
                            json_pack("{s:f, s:f, s:i, s:i, s:i}", "recall", 1.0, "kl_native", 0.2,
                                      "kl_positions", 32, "samples", 2, "rows_replaced", 80));
        json_array_append_new(rungs, rung);
    }
    json_object_set_new(report, "rungs", rungs);
    return report;
}

static json_t *arm(json_t *report, const char *name)
{
    json_t *rung = json_array_get(json_object_get(report, "rungs"), 0);
    if (!strcmp(name, "one_shot")) return json_object_get(rung, name);
    return json_object_get(json_object_get(rung, "arms"), name);
}

static void refused(json_t *report, const char *words)
{
    struct kk_err err = {0};
    KK_ASSERT_FAILS(kk_scorecard_gate(report, &err), KK_EINVARIANT, &err, words);
    json_decref(report);
}

static void honest_reports_pass(void **state)
{
    (void)state;
    struct kk_err err = {0};
    json_t *r = honest();
    KK_ASSERT_OK(kk_scorecard_gate(r, &err), &err);
    /* an arm that could not run says why */
    json_t *rung = json_array_get(json_object_get(r, "rungs"), 0);
    json_object_set_new(json_object_get(rung, "arms"), "restored", json_null());
    json_object_set_new(json_object_get(rung, "reasons"), "restored",
                        json_string("no --f-theta was given"));
    json_object_set_new(rung, "one_shot", json_null());
    KK_ASSERT_OK(kk_scorecard_gate(r, &err), &err);
    json_decref(r);
}

/* One field of one arm changed, and the reason the gate gives. */
static void forged_fields_are_refused(void **state)
{
    (void)state;
    static const struct {
        const char *arm, *field, *value, *words;
    } forged[] = {
        {"s5", "blocks", "0", "blocks = 0"},
        {"s5", "pinned_drafted", "0", "pinned_drafted = 0"},
        {"s5", "committed_per_block", "3.32", "tokens over blocks"},
        {"native", "tokens_compared", "0", "0 compared tokens"},
        {"native", "byte_identical", "false", "differ from plain"},
        {"native", "byte_identical", "null", "byte_identical is missing"},
        {"restored", "rows_rebuilt", "0", "no row was rebuilt"},
        {"restored", "kl_native", "0.0", "compared with itself"},
        {"identity", "kl_native", "0.01", "must be exactly 0"},
        {"s5", "kl_positions", "0", "over no positions"},
        {"s5", "kv_device_bytes", "500", "a formula, not a measurement"},
        {"s5", "bytes_from", "\"formula\"", "do not come from the allocator"},
        {"s5", "resident_rows", "0", "no resident rows"},
        {"full", "kv_device_bytes", "950", "fewer bytes than native"},
        {"tier", "kv_device_bytes", "1200", "over the cap"},
        {"tier", "kv_device_bytes", "901", "grow with the context"},
        {"sinkwin", "recall", "1.0", "negative control recalls"},
        {"s5", "recall", "1.5", "over 1"},
        {"s5", "recall", "null", "'recall' is missing"},
        {"s5", "recall_keyed", "1.5", "over 1"},
        {"s5", "recall_keyed", "null", "missing"},
        {"s5", "samples", "0", "no samples"},
        {"s5", "kv_host_bytes", "-1", "negative"},
        {"s5", "ar_tok_s", "null", "missing"},
        {"one_shot", "rows_replaced", "0", "the map did not run"},
        {"one_shot", "kl_native", "0.0", "compared with itself"},
        {"one_shot", "kl_positions", "0", "over no positions"},
        {"one_shot", "recall", "1.5", "one_shot: recall"},
        {"one_shot", "samples", "0", "no samples"},
    };
    for (size_t i = 0; i < sizeof forged / sizeof *forged; i++) {
        json_t *r = honest();
        json_t *v = json_loads(forged[i].value, JSON_DECODE_ANY, NULL);
        assert_non_null(v);
        json_object_set_new(arm(r, forged[i].arm), forged[i].field, v);
        refused(r, forged[i].words);
    }
}

static void forged_reports_are_refused(void **state)
{
    (void)state;
    json_t *r = honest();
    json_object_set_new(r, "draft", json_string("none"));
    refused(r, "compared with itself");
    r = honest();
    json_object_del(json_object_get(json_array_get(json_object_get(r, "rungs"), 0), "arms"),
                    "restored");
    refused(r, "missing, without a reason");
    r = honest();
    json_object_set_new(json_object_get(json_array_get(json_object_get(r, "rungs"), 1), "arms"),
                        "s5", json_null());
    refused(r, "rung 1: arm 's5'");
    r = honest();
    json_object_set_new(r, "documents", json_string("random ids"));
    refused(r, "random ids cannot be recalled");
    r = honest();
    json_object_set_new(r, "rungs", json_array());
    refused(r, "no rungs");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(honest_reports_pass),
        cmocka_unit_test(forged_fields_are_refused),
        cmocka_unit_test(forged_reports_are_refused),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
