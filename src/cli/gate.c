#include "cli/gate.h"

#include <string.h>

const char *const kk_scorecard_arms[] = {"full",    "native", "s5",       "restored",
                                         "sinkwin", "tier",   "identity", NULL};

static json_int_t count(const json_t *o, const char *key)
{
    return json_integer_value(json_object_get(o, key));
}

static double number(const json_t *o, const char *key)
{
    return json_number_value(json_object_get(o, key));
}

#define REFUSE(...) return kk_fail(err, KK_EINVARIANT, __VA_ARGS__)

/* Documents of random ids have nothing to recall: then, and only then, recall is null. */
static int check_numbers(const json_t *a, int random, struct kk_err *err)
{
    static const char *const keys[] = {"kv_device_bytes",  "drafter_device_bytes",
                                       "kv_staging_bytes", "kv_host_bytes",
                                       "resident_rows",    "ar_tok_s"};
    static const char *const recalls[] = {"recall", "recall_keyed"};
    for (size_t i = 0; i < sizeof keys / sizeof *keys; i++)
        if (!json_is_number(json_object_get(a, keys[i])) || number(a, keys[i]) < 0)
            REFUSE("'%s' is missing or negative", keys[i]);
    for (size_t i = 0; i < sizeof recalls / sizeof *recalls; i++) {
        const json_t *r = json_object_get(a, recalls[i]);
        if (random && !json_is_null(r)) REFUSE("random ids cannot be recalled");
        if (!random && (!json_is_number(r) || json_number_value(r) < 0))
            REFUSE("'%s' is missing or negative", recalls[i]);
        if (json_number_value(r) > 1) REFUSE("%s is over 1", recalls[i]);
    }
    if (count(a, "samples") < 1) REFUSE("no samples were run");
    return 0;
}

/* Bytes must hold the rows that were counted one by one: a formula over a smaller set does not. */
static int check_bytes(const json_t *a, struct kk_err *err)
{
    const char *by = json_string_value(json_object_get(a, "bytes_from"));
    if (!by || strcmp(by, "allocator")) REFUSE("bytes do not come from the allocator");
    json_int_t held = count(a, "kv_device_bytes") + count(a, "kv_host_bytes");
    if (count(a, "resident_rows") < 1 || count(a, "resident_bytes") < 1)
        REFUSE("no resident rows were counted");
    if (held < count(a, "resident_bytes"))
        REFUSE("%lld bytes cannot hold resident rows of %lld: a formula, not a measurement",
               (long long)held, (long long)count(a, "resident_bytes"));
    return 0;
}

static int check_drafting(const json_t *a, const char *draft, struct kk_err *err)
{
    if (json_is_null(json_object_get(a, "fused_tok_s"))) return 0;
    if (!draft || !strcmp(draft, "none"))
        REFUSE("a fused rate without a drafter: plain decoding compared with itself");
    if (count(a, "blocks") < 1 || count(a, "pinned_drafted") < 1)
        REFUSE("a fused rate, but blocks = %lld and pinned_drafted = %lld",
               (long long)count(a, "blocks"), (long long)count(a, "pinned_drafted"));
    double per = (double)count(a, "fused_tokens") / (double)count(a, "blocks");
    if (per - number(a, "committed_per_block") > 0.01 ||
        number(a, "committed_per_block") - per > 0.01)
        REFUSE("committed_per_block is %.3f, tokens over blocks give %.3f",
               number(a, "committed_per_block"), per);
    if (!json_is_boolean(json_object_get(a, "byte_identical"))) REFUSE("byte_identical is missing");
    if (count(a, "tokens_compared") < count(a, "samples"))
        REFUSE("identity claimed over %lld compared tokens",
               (long long)count(a, "tokens_compared"));
    if (!json_is_true(json_object_get(a, "byte_identical")))
        REFUSE("fused tokens differ from plain ones");
    return 0;
}

static int check_arm(const char *name, const json_t *a, const json_t *report, struct kk_err *err)
{
    const char *draft = json_string_value(json_object_get(report, "draft"));
    const char *documents = json_string_value(json_object_get(report, "documents"));
    int rebuilds = !strcmp(name, "restored") || !strcmp(name, "identity");
    int rc = check_numbers(a, documents && !strcmp(documents, "random ids"), err);
    if (!rc) rc = check_bytes(a, err);
    if (!rc) rc = check_drafting(a, draft, err);
    if (rc) return rc;
    if (rebuilds && count(a, "rows_rebuilt") < 1)
        REFUSE("no row was rebuilt: restoration did not run");
    if (!json_is_number(json_object_get(a, "kl_native")) || count(a, "kl_positions") < 1)
        REFUSE("kl_native is missing or over no positions");
    if (strcmp(name, "native") && strcmp(name, "full") && strcmp(name, "identity") &&
        number(a, "kl_native") == 0)
        REFUSE("KL to native is exactly 0: native compared with itself");
    if ((!strcmp(name, "full") || !strcmp(name, "identity")) && number(a, "kl_native") != 0)
        REFUSE("KL to native is %g: it must be exactly 0", number(a, "kl_native"));
    if (!strcmp(name, "tier") && count(a, "kv_device_bytes") > count(a, "cap"))
        REFUSE("%lld device bytes are over the cap of %lld", (long long)count(a, "kv_device_bytes"),
               (long long)count(a, "cap"));
    return 0;
}

/* The reference's map: it must have replaced rows of every sample, and not be native itself. */
static int check_one_shot(const json_t *o, struct kk_err *err)
{
    if (!o || json_is_null(o)) return 0;
    if (!json_is_number(json_object_get(o, "recall")) || number(o, "recall") < 0 ||
        number(o, "recall") > 1)
        REFUSE("recall is missing or not within 0 and 1");
    if (count(o, "samples") < 1) REFUSE("no samples were run");
    if (count(o, "rows_replaced") < count(o, "samples"))
        REFUSE("%lld rows replaced: the map did not run", (long long)count(o, "rows_replaced"));
    if (count(o, "kl_positions") < 1 || number(o, "kl_native") <= 0)
        REFUSE("KL to native is missing, over no positions, or 0: native compared with itself");
    return 0;
}

/* What the arms of a rung say about each other. */
static int check_rung(const json_t *arms, struct kk_err *err)
{
    const json_t *native = json_object_get(arms, "native"),
                 *sinkwin = json_object_get(arms, "sinkwin");
    const json_t *full = json_object_get(arms, "full");
    if (number(native, "recall") > 0 && number(sinkwin, "recall") >= number(native, "recall"))
        REFUSE("arm 'sinkwin': the negative control recalls as well as native: the test shows "
               "nothing");
    if (count(full, "kv_device_bytes") + count(full, "kv_host_bytes") <
        count(native, "kv_device_bytes") + count(native, "kv_host_bytes"))
        REFUSE("arm 'full' holds fewer bytes than native");
    return 0;
}

/* A capped session takes the same device bytes at every rung. */
static int check_flat(const json_t *rungs, struct kk_err *err)
{
    size_t i;
    const json_t *r;
    json_int_t first = -1;
    json_array_foreach(rungs, i, r)
    {
        const json_t *t = json_object_get(json_object_get(r, "arms"), "tier");
        if (!json_is_object(t)) continue;
        if (first < 0) first = count(t, "kv_device_bytes");
        if (count(t, "kv_device_bytes") != first)
            REFUSE("arm 'tier': device bytes grow with the context, %lld and %lld",
                   (long long)first, (long long)count(t, "kv_device_bytes"));
    }
    return 0;
}

int kk_scorecard_gate(const json_t *report, struct kk_err *err)
{
    const json_t *rungs = json_object_get(report, "rungs"), *r;
    size_t i;
    if (!json_is_array(rungs) || !json_array_size(rungs)) REFUSE("the report has no rungs");
    json_array_foreach(rungs, i, r)
    {
        const json_t *arms = json_object_get(r, "arms");
        int rc = 0;
        for (int k = 0; !rc && kk_scorecard_arms[k]; k++) {
            const char *name = kk_scorecard_arms[k];
            const json_t *a = json_object_get(arms, name);
            if (json_is_null(a) &&
                json_is_string(json_object_get(json_object_get(r, "reasons"), name)))
                continue;
            rc = json_is_object(a) ? check_arm(name, a, report, err)
                                   : kk_fail(err, KK_EINVARIANT, "it is missing, without a reason");
            if (rc) kk_wrap(err, rc, "arm '%s'", name);
        }
        if (!rc && (rc = check_one_shot(json_object_get(r, "one_shot"), err)))
            kk_wrap(err, rc, "one_shot");
        if (!rc) rc = check_rung(arms, err);
        if (rc) return kk_wrap(err, rc, "rung %d", (int)i);
    }
    return check_flat(rungs, err);
}
