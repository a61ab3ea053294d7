/* The host tier over a growing context: two sessions of the same history, one capped, one not. At
 * every length both generate, and their tokens are compared; the capped one's device bytes, and the
 * process's staging bytes, must be one number throughout.
 *
 *   bench/tier MODEL CAP LONGEST [THREADS]      bytes, tokens: lengths 1024, 2048, .. LONGEST
 *
 * Prints JSON. Exit status 1 if a token or a byte differs. */
#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "base/rng.h"
#include "kakeya.h"
#include "kk_build.h"

enum { FIRST = 1024, MADE = 32, PIECE = 512 };

struct side {
    struct kk_engine *e;
    struct kk_session *s;
    uint32_t out[MADE];
    int n;
    double tok_s;
    struct kk_session_info info;
    struct kk_engine_info about;
};

static int on_token(void *arg, uint32_t id)
{
    struct side *x = arg;
    x->out[x->n++] = id;
    return 0;
}

static int open_side(struct side *x, const char *model, int64_t cap, int threads,
                     struct kk_err *err)
{
    struct kk_engine_options o = kk_engine_defaults();
    o.model = model;
    o.kv = "s5";
    o.kv_device = cap;
    o.threads = threads;
    int rc = kk_engine_open(&o, &x->e, err);
    return rc ? rc : kk_session_open(x->e, &x->s, err);
}

/* Grow the history to `length` with ids that depend on position alone, then generate. */
static int advance(struct side *x, int64_t length, struct kk_err *err)
{
    struct kk_sampling p = kk_sampling_defaults();
    struct kk_generated made;
    uint32_t ids[PIECE];
    size_t have;
    int rc = 0;
    p.ignore_eos = 1;
    kk_engine_describe(x->e, &x->about);
    kk_session_history(x->s, &have);
    while (!rc && (int64_t)have < length) {
        size_t n = (size_t)length - have < PIECE ? (size_t)length - have : PIECE;
        for (size_t i = 0; i < n; i++)
            ids[i] = (uint32_t)(kk_rng_at(1, have + i) % (uint64_t)x->about.vocabulary);
        rc = kk_session_append(x->s, ids, n, err);
        have += n;
    }
    x->n = 0;
    if (!rc) rc = kk_session_generate(x->s, &p, MADE, on_token, x, &made, err);
    if (!rc) rc = kk_session_check(x->s, err);
    if (rc) return rc;
    x->tok_s = made.seconds > 0 ? (double)made.tokens / made.seconds : 0;
    kk_engine_describe(x->e, &x->about);
    kk_session_describe(x->s, &x->info);
    return 0;
}

static int run(const char *model, int64_t cap, int64_t longest, int threads, json_t *report,
               struct kk_err *err)
{
    struct side capped = {0}, whole = {0};
    json_t *rows = json_array();
    int64_t device = -1, staging = -1;
    int rc = open_side(&capped, model, cap, threads, err), same = 1;
    if (!rc) rc = open_side(&whole, model, 0, threads, err);
    for (int64_t n = FIRST; !rc && n <= longest; n *= 2) {
        rc = advance(&capped, n, err);
        if (!rc) rc = advance(&whole, n, err);
        if (rc) break;
        int tokens = !memcmp(capped.out, whole.out, sizeof whole.out);
        if (device < 0) device = capped.info.kv_device_bytes;
        if (staging < 0) staging = capped.about.kv_staging_bytes;
        same &= tokens && device == capped.info.kv_device_bytes &&
                staging == capped.about.kv_staging_bytes;
        json_array_append_new(
            rows, json_pack("{s:I, s:I, s:I, s:I, s:I, s:b, s:f, s:f}", "context", (json_int_t)n,
                            "kv_device_bytes", (json_int_t)capped.info.kv_device_bytes,
                            "kv_staging_bytes", (json_int_t)capped.about.kv_staging_bytes,
                            "kv_host_bytes", (json_int_t)capped.info.kv_host_bytes,
                            "uncapped_device_bytes", (json_int_t)whole.info.kv_device_bytes,
                            "tokens_identical", tokens, "decode_tok_s", capped.tok_s,
                            "uncapped_tok_s", whole.tok_s));
    }
    if (!rc && !same) rc = kk_fail(err, KK_EINVARIANT, "a token or a byte depends on the cap");
    json_object_set_new(report, "runs", rows);
    json_object_set_new(report, "device", json_string(capped.about.device));
    kk_session_close(capped.s);
    kk_session_close(whole.s);
    kk_engine_close(capped.e);
    kk_engine_close(whole.e);
    return rc;
}

int main(int argc, char **argv)
{
    struct kk_err err = {0};
    if (argc < 4 || argc > 5) {
        fprintf(stderr, "usage: bench/tier MODEL CAP LONGEST [THREADS]\n");
        return 2;
    }
    int64_t cap = strtoll(argv[2], NULL, 10), longest = strtoll(argv[3], NULL, 10);
    int threads = argc > 4 ? (int)strtol(argv[4], NULL, 10) : 0;
    json_t *report = json_pack("{s:s, s:s, s:I, s:s, s:s}", "bench", "tier", "model", argv[1],
                               "cap", (json_int_t)cap, "kv", "s5", "commit", KK_COMMIT);
    int rc = run(argv[1], cap, longest, threads, report, &err);
    json_dumpf(report, stdout, JSON_INDENT(1) | JSON_REAL_PRECISION(9));
    printf("\n");
    json_decref(report);
    if (rc) fprintf(stderr, "bench/tier: %s\n", err.msg);
    return rc != 0;
}
