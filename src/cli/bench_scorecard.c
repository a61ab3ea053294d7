/* kakeya bench scorecard: every KV policy on the same documents: bytes by kind from the allocator,
 * resident rows, recall, speed plain and drafted, whether drafting changed a token, and how far the
 * next-token distribution is from native's. The report passes the gate (gate.h) or the command
 * fails. */
#include <math.h>
#include <stdio.h>
#include <string.h>

#include "base/clock.h"
#include "base/fs.h"
#include "base/mem.h"
#include "base/rng.h"
#include "cli/answer.h"
#include "cli/common.h"
#include "cli/distribution.h"
#include "cli/gate.h"
#include "cli/niah.h"
#include "cli/picture.h"

enum {
    KEYS = 8,
    ANSWER_TOKENS = 24, /* of which an answer is judged; speed is that of KK_ANSWER_MAX */
    KL_TAIL = 256,
    KL_STEP = 8,
    PINNED = 16,
    KL_POINTS = KL_TAIL / KL_STEP
};

struct document {
    struct kk_ids ids;
    struct kk_niah_sample sample;
    float *native; /* [KL_POINTS, V] log-probabilities, sample 0 alone */
};

struct card {
    struct kk_cli *cli;
    struct kk_engine_options base;
    int n_docs, n_keyed;          /* n_keyed is 0 where documents are random ids */
    struct document *doc, *keyed; /* [n_docs]: the reference's, and those with keyed facts */
    struct kk_answer *plain;      /* [n_docs]: of the arm's plain run */
    int V, done, total;
    double replay;
    char *device; /* what info says, kept from the engine that told it */
    uint32_t *eos;
};

/* Answers that had what was asked for; of 0: nothing is recalled from random ids. */
struct recall {
    int hits, of;
};

/* One arm of one rung. */
struct arm {
    const char *name;
    struct kk_engine_options o;
    int samples, identical;
    struct recall recall, keyed;
    struct kk_session_info bytes;
    int64_t staging, rebuilt, blocks, drafted, fused_tokens, ar_tokens, compared, drafter_bytes;
    struct kk_generated pinned; /* of document 0, whole blocks */
    double ar_s, fused_s, kl;
    int kl_points;
};

/* Lengths of the rungs: --tokens of random ids, or else --lines of text. */
static const struct kk_value *rungs_of(const struct card *c)
{
    const struct kk_value *tokens = &c->cli->cfg.value[KK_OPT_TOKENS];
    return tokens->n ? tokens : &c->cli->cfg.value[KK_OPT_LINES];
}

/* ---- documents ------------------------------------------------------------------------------ */

static int check_room(const struct card *c, const struct document *d, struct kk_err *err)
{
    if ((int64_t)d->ids.n + KK_ANSWER_MAX <= c->cli->info.ctx) return 0;
    return kk_fail(err, KK_ERANGE, "a document has %zu tokens: the context is %lld", d->ids.n,
                   (long long)c->cli->info.ctx);
}

static int make_random(struct card *c, int64_t tokens, struct kk_err *err)
{
    int rc = 0;
    for (int i = 0; !rc && i < c->n_docs; i++) {
        struct document *d = &c->doc[i];
        const uint64_t key = kk_mix64(kk_cli_seed(c->cli) + (uint64_t)i);
        d->ids.n = 0;
        for (int64_t k = 0; !rc && k < tokens; k++)
            rc = kk_ids_push(&d->ids, (uint32_t)(kk_rng_at(key, (uint64_t)k) % (uint32_t)c->V));
        if (rc) return kk_fail(err, rc, "out of memory for documents");
        rc = check_room(c, d, err);
    }
    return rc;
}

static int make_documents(struct card *c, struct document *doc, int lines, int keys,
                          struct kk_err *err)
{
    struct kk_niah g;
    struct kk_niah_opts opts = {kk_cli_seed(c->cli), lines, lines, keys};
    struct kk_buf text;
    int rc = kk_niah_start(&g, &opts, err);
    kk_buf_init(&text, KK_CLI_TEXT_MAX);
    for (int i = 0; !rc && i < c->n_docs; i++) {
        struct document *d = &doc[i];
        d->ids.n = 0;
        rc = kk_niah_next(&g, &text, &d->sample, err);
        if (!rc && c->cli->info.bos >= 0) rc = kk_ids_push(&d->ids, (uint32_t)c->cli->info.bos);
        if (!rc) rc = kk_tok_encode(c->cli->tok, text.data, text.len, 0, &d->ids, err);
        if (!rc) rc = check_room(c, d, err);
    }
    kk_buf_release(&text);
    return rc;
}

/* ---- measuring ------------------------------------------------------------------------------ */

/* Tokens of an answer to where it ends, at most ANSWER_TOKENS. */
static size_t answer_end(const struct card *c, const uint32_t *answer, size_t n)
{
    if (n > ANSWER_TOKENS) n = ANSWER_TOKENS;
    for (size_t i = 0; i < n; i++)
        for (int k = 0; k < c->cli->info.n_eos; k++)
            if (answer[i] == c->cli->info.eos[k]) return i;
    return n;
}

static int count_hit(struct card *c, const struct document *d, const uint32_t *answer, size_t n,
                     struct recall *r, struct kk_err *err)
{
    struct kk_buf text;
    if (!c->cli->tok) return 0;
    kk_buf_init(&text, 1 << 20);
    int rc = kk_tok_decode(c->cli->tok, answer, answer_end(c, answer, n), 1, &text, err);
    if (!rc) r->hits += kk_niah_hit(&d->sample, text.data ? text.data : "");
    r->of++;
    kk_buf_release(&text);
    return rc;
}

static int ask(struct card *c, struct kk_engine *e, const struct arm *a,
               const struct kk_question *q, struct kk_answer *out, struct kk_err *err)
{
    kk_progress_show(&c->cli->progress, a->name, (uint64_t)c->done++, (uint64_t)c->total,
                     KK_PROGRESS_ITEMS);
    return kk_cli_answer(e, q, out, err);
}

/* About document i. The answer goes on after its end: ten tokens are no measure of speed. */
static struct kk_question question(const struct card *c, int i)
{
    return (struct kk_question){.prompt = &c->doc[i].ids, .tokens = KK_ANSWER_MAX, .ignore_eos = 1};
}

static int plain_answer(struct card *c, struct kk_engine *e, struct arm *a, int i,
                        struct kk_err *err)
{
    struct kk_answer *plain = &c->plain[i];
    const struct kk_question q = question(c, i);
    int rc = ask(c, e, a, &q, plain, err);
    if (rc) return rc;
    a->bytes = plain->info;
    a->ar_s += plain->made.seconds;
    a->ar_tokens += plain->made.tokens;
    a->samples++;
    return count_hit(c, &c->doc[i], plain->id, (size_t)plain->n, &a->recall, err);
}

/* Drafted as much as pays, or in blocks of `width`: identity is proved where nothing pays, too. */
static int fused_answer(struct card *c, struct kk_engine *e, struct arm *a, int i, int width,
                        struct kk_err *err)
{
    struct kk_answer drafted;
    struct kk_question q = question(c, i);
    q.known = c->replay > 0 ? &c->plain[i] : NULL;
    q.mean = c->replay;
    q.seed = (uint64_t)i;
    q.width = width;
    int rc = ask(c, e, a, &q, &drafted, err);
    if (rc) return rc;
    a->compared += drafted.n;
    a->identical &= kk_cli_same_answer(&c->plain[i], &drafted);
    if (width) {
        a->pinned = drafted.made;
        return 0;
    }
    if (drafted.info.drafter_device_bytes > a->drafter_bytes)
        a->drafter_bytes = drafted.info.drafter_device_bytes;
    a->fused_s += drafted.made.seconds;
    a->fused_tokens += drafted.made.tokens;
    a->blocks += drafted.made.steps;
    a->drafted += drafted.made.drafted;
    return 0;
}

/* A document with keyed facts: recall alone. */
static int keyed_answer(struct card *c, struct kk_engine *e, struct arm *a, int i,
                        struct kk_err *err)
{
    const struct document *d = &c->keyed[i];
    const struct kk_question q = {.prompt = &d->ids, .tokens = ANSWER_TOKENS};
    struct kk_answer plain;
    int rc = ask(c, e, a, &q, &plain, err);
    return rc ? rc : count_hit(c, d, plain.id, (size_t)plain.n, &a->keyed, err);
}

/* ---- KL to native --------------------------------------------------------------------------- */

struct kl_run {
    struct card *c;
    struct arm *a;
    int64_t first;
    int store; /* native itself: keep, then compare with what was kept */
};

static int on_logits(void *arg, int64_t position, const float *logits)
{
    struct kl_run *k = arg;
    int64_t i = position - k->first;
    const int V = k->c->V;
    if (i % KL_STEP || i / KL_STEP >= KL_POINTS) return 0;
    float *native = k->c->doc[0].native + i / KL_STEP * V;
    if (k->store) kk_cli_log_softmax(logits, V, native);
    float *mine = k->c->doc[0].native + (int64_t)KL_POINTS * V; /* one row of scratch */
    kk_cli_log_softmax(logits, V, mine);
    k->a->kl += kk_cli_kl(native, mine, V);
    k->a->kl_points++;
    return 0;
}

/* The positions of document 0 whose distributions are compared: its end. */
static size_t kl_tail(const struct card *c)
{
    const size_t n = c->doc[0].ids.n;
    return n > KL_TAIL ? KL_TAIL : n - 1;
}

/* Mean KL(native || arm) over positions near the end of document 0. */
static int measure_kl(struct card *c, struct kk_engine *e, struct arm *a, struct kk_err *err)
{
    const struct kk_ids *ids = &c->doc[0].ids;
    struct kk_session *s = NULL;
    size_t tail = kl_tail(c);
    struct kl_run k = {c, a, (int64_t)(ids->n - tail), !strcmp(a->name, "native")};
    int rc = kk_session_open(e, &s, err);
    if (!rc) rc = kk_session_append(s, ids->id, ids->n - tail, err);
    if (!rc) rc = kk_session_logits(s, ids->id + ids->n - tail, tail, on_logits, &k, err);
    kk_session_close(s);
    return rc;
}

/* ---- arms ----------------------------------------------------------------------------------- */

static int run_engine(struct card *c, struct arm *a, int fused, struct kk_err *err)
{
    struct kk_engine_options o = a->o;
    struct kk_engine *e = NULL;
    struct kk_engine_info info;
    if (!fused) o.draft = "none";
    int rc = kk_engine_open(&o, &e, err);
    for (int i = 0; !rc && i < c->n_docs; i++)
        rc = fused ? fused_answer(c, e, a, i, 0, err) : plain_answer(c, e, a, i, err);
    if (!rc && fused) rc = fused_answer(c, e, a, 0, PINNED, err);
    for (int i = 0; !rc && !fused && i < c->n_keyed; i++) rc = keyed_answer(c, e, a, i, err);
    if (!rc && !fused) rc = measure_kl(c, e, a, err);
    if (!rc) {
        kk_engine_describe(e, &info);
        if (!fused) a->staging = info.kv_staging_bytes;
        a->rebuilt += info.rows_rebuilt;
    }
    kk_engine_close(e);
    return rc;
}

/* The options of an arm; NULL, or why it cannot run. */
static const char *arm_options(const struct card *c, struct arm *a)
{
    a->o = c->base;
    a->o.kv_device = 0;
    a->o.kv = a->name;
    if (!strcmp(a->name, "tier")) {
        a->o.kv = "s5";
        a->o.kv_device = c->base.kv_device;
        if (!a->o.kv_device) return "no --kv-device was given";
    }
    if (!strcmp(a->name, "identity")) {
        a->o.kv = "restored";
        a->o.f_theta = "exact";
    } else if (!strcmp(a->name, "restored") && !a->o.f_theta) {
        return "no --f-theta was given";
    }
    return NULL;
}

static json_t *recall_json(const struct recall *r)
{
    return r->of ? json_real((double)r->hits / r->of) : json_null();
}

static json_t *arm_json(const struct card *c, const struct arm *a)
{
    int fused = strcmp(c->base.draft, "none") != 0;
    json_t *o = json_pack("{s:I, s:I, s:I, s:I, s:I, s:I, s:f, s:f, s:s}", "kv_device_bytes",
                          (json_int_t)a->bytes.kv_device_bytes, "drafter_device_bytes",
                          (json_int_t)a->drafter_bytes, "kv_staging_bytes", (json_int_t)a->staging,
                          "kv_host_bytes", (json_int_t)a->bytes.kv_host_bytes, "resident_rows",
                          (json_int_t)a->bytes.resident_rows, "resident_bytes",
                          (json_int_t)a->bytes.resident_bytes, "ar_tok_s",
                          kk_cli_rate((double)a->ar_tokens, a->ar_s), "kl_native",
                          a->kl_points ? a->kl / a->kl_points : 0, "bytes_from", "allocator");
    json_object_set_new(o, "recall", recall_json(&a->recall));
    json_object_set_new(o, "recall_keyed", recall_json(&a->keyed));
    json_object_set_new(o, "kl_positions", json_integer(a->kl_points));
    json_object_set_new(o, "samples", json_integer(a->samples));
    json_object_set_new(o, "rows_rebuilt", json_integer(a->rebuilt));
    json_object_set_new(o, "blocks", json_integer(a->blocks));
    json_object_set_new(o, "drafted", json_integer(a->drafted));
    json_object_set_new(o, "fused_tokens", json_integer(a->fused_tokens));
    json_object_set_new(o, "pinned_drafted", json_integer(a->pinned.drafted));
    json_object_set_new(o, "pinned_per_block",
                        a->pinned.steps
                            ? json_real((double)a->pinned.tokens / (double)a->pinned.steps)
                            : json_null());
    json_object_set_new(o, "tokens_compared", json_integer(a->compared));
    json_object_set_new(o, "cap", json_integer(a->o.kv_device));
    json_object_set_new(o, "fused_tok_s",
                        fused ? json_real(kk_cli_rate((double)a->fused_tokens, a->fused_s))
                              : json_null());
    json_object_set_new(o, "committed_per_block",
                        fused && a->blocks ? json_real((double)a->fused_tokens / (double)a->blocks)
                                           : json_null());
    json_object_set_new(o, "byte_identical", fused ? json_boolean(a->identical) : json_null());
    return o;
}

static void recall_text(const struct recall *r, char out[static 16])
{
    if (r->of)
        snprintf(out, 16, "%.3f", (double)r->hits / r->of);
    else
        snprintf(out, 16, "-");
}

static void print_arm(const struct arm *a, int fused)
{
    char recall[16], keyed[16];
    recall_text(&a->recall, recall);
    recall_text(&a->keyed, keyed);
    printf("%-9s %11s %11s %11s %11s %8lld %7s %7s %10.2g %9.0f", a->name,
           kk_cli_bytes(a->bytes.kv_device_bytes), kk_cli_bytes(a->drafter_bytes),
           kk_cli_bytes(a->staging), kk_cli_bytes(a->bytes.kv_host_bytes),
           (long long)a->bytes.resident_rows, recall, keyed,
           a->kl_points ? a->kl / a->kl_points : 0, kk_cli_rate((double)a->ar_tokens, a->ar_s));
    if (fused)
        printf(" %9.0f %9.2f %9s", kk_cli_rate((double)a->fused_tokens, a->fused_s),
               (double)a->fused_tokens / (double)a->blocks, a->identical ? "yes" : "NO");
    printf("\n");
    fflush(stdout);
}

/* An arm that cannot run is null, with the reason beside it. */
static int skip_arm(struct card *c, const char *name, const char *why, json_t *arms,
                    json_t *reasons)
{
    json_object_set_new(arms, name, json_null());
    json_object_set_new(reasons, name, json_string(why));
    if (kk_cli_wants_text(c->cli)) printf("%-9s not run: %s\n", name, why);
    c->done += c->total / (7 * rungs_of(c)->n);
    return 0;
}

static int run_arm(struct card *c, const char *name, json_t *arms, json_t *reasons,
                   struct kk_err *err)
{
    struct arm a = {.name = name, .identical = 1};
    int fused = strcmp(c->base.draft, "none") != 0;
    const char *why = arm_options(c, &a);
    if (why) return skip_arm(c, name, why, arms, reasons);
    int rc = run_engine(c, &a, 0, err);
    if (!rc && fused) rc = run_engine(c, &a, 1, err);
    kk_progress_clear(&c->cli->progress);
    if (rc == KK_EUNSUPPORTED) return skip_arm(c, name, err->msg, arms, reasons);
    if (rc) return kk_wrap(err, rc, "arm '%s'", name);
    if (kk_cli_wants_text(c->cli)) print_arm(&a, fused);
    json_object_set_new(arms, name, arm_json(c, &a));
    return 0;
}

/* ---- the reference's map, once over each document ------------------------------------------- */

static int one_shot_answer(struct card *c, struct kk_engine *e, struct arm *a, int i,
                           struct kk_err *err)
{
    const struct kk_ids *ids = &c->doc[i].ids;
    const struct kk_sampling greedy = kk_sampling_defaults();
    const size_t first = ids->n - kl_tail(c);
    struct kl_run k = {c, a, (int64_t)first, 0};
    struct kk_session *s = NULL;
    size_t n;
    int rc = kk_session_open(e, &s, err);
    if (!rc) rc = kk_session_one_shot(s, ids->id, ids->n, first, i ? NULL : on_logits, &k, err);
    if (!rc) rc = kk_session_generate(s, &greedy, ANSWER_TOKENS, NULL, NULL, NULL, err);
    if (!rc) {
        const uint32_t *history = kk_session_history(s, &n);
        rc = count_hit(c, &c->doc[i], history + ids->n, n - ids->n, &a->recall, err);
        a->samples++;
    }
    kk_session_close(s);
    return rc;
}

static int measure_one_shot(struct card *c, struct arm *a, struct kk_err *err)
{
    struct kk_engine *e = NULL;
    struct kk_engine_info info;
    a->o = c->base;
    a->o.kv = "native";
    a->o.kv_device = 0;
    a->o.draft_width = 1;
    int rc = kk_engine_open(&a->o, &e, err);
    if (!rc) rc = kk_engine_load_one_shot(e, a->o.f_theta, err);
    for (int i = 0; !rc && i < c->n_docs; i++) rc = one_shot_answer(c, e, a, i, err);
    if (!rc) {
        kk_engine_describe(e, &info);
        a->rebuilt = info.rows_replaced;
    }
    kk_engine_close(e);
    return rc;
}

/* "one_shot" of a rung: recall and KL, no bytes and no speed, for nothing about it is a session. */
static int run_one_shot(struct card *c, json_t *rung, json_t *reasons, struct kk_err *err)
{
    struct arm a = {.name = "one-shot"};
    json_object_set_new(rung, "one_shot", json_null());
    if (!c->base.f_theta) {
        json_object_set_new(reasons, "one_shot", json_string("no --f-theta was given"));
        return 0;
    }
    int rc = measure_one_shot(c, &a, err);
    if (rc == KK_EUNSUPPORTED) {
        json_object_set_new(reasons, "one_shot", json_string(err->msg));
        return 0;
    }
    if (rc) return kk_wrap(err, rc, "one-shot restoration");
    double kl = a.kl / a.kl_points, recall = (double)a.recall.hits / a.recall.of;
    json_object_set_new(rung, "one_shot",
                        json_pack("{s:f, s:f, s:i, s:i, s:I}", "recall", recall, "kl_native", kl,
                                  "kl_positions", a.kl_points, "samples", a.samples,
                                  "rows_replaced", (json_int_t)a.rebuilt));
    if (kk_cli_wants_text(c->cli))
        printf("%-9s %47s %8s %7.3f %7s %10.2g   the reference's map, once over the prompt\n",
               a.name, "", "", recall, "", kl);
    return 0;
}

/* ---- the report ----------------------------------------------------------------------------- */

/* native first: the others' KL is to what it left */
static int run_rung(struct card *c, int lines, json_t *rungs, struct kk_err *err)
{
    json_t *arms = json_object(), *reasons = json_object(), *r = json_object();
    const int random = !c->cli->tok;
    int rc = random ? make_random(c, lines, err) : make_documents(c, c->doc, lines, 0, err);
    if (!rc && !random) rc = make_documents(c, c->keyed, lines, KEYS, err);
    if (!rc && kk_cli_wants_text(c->cli)) {
        if (!random) printf("\n%d lines", lines);
        printf("%s%zu tokens\n%-9s %11s %11s %11s %11s %8s %7s %7s %10s %9s %9s %9s %9s\n",
               random ? "\n" : ", ", c->doc[0].ids.n, "arm", "KV device", "drafter", "staging",
               "KV host", "rows", "recall", "keyed", "KL native", "tok/s", "fused", "per block",
               "identical");
    }
    if (!rc) rc = run_arm(c, "native", arms, reasons, err);
    for (int k = 0; !rc && kk_scorecard_arms[k]; k++)
        if (strcmp(kk_scorecard_arms[k], "native"))
            rc = run_arm(c, kk_scorecard_arms[k], arms, reasons, err);
    if (!rc && !random) rc = run_one_shot(c, r, reasons, err);
    json_object_set_new(r, "lines", random ? json_null() : json_integer(lines));
    json_object_set_new(r, "prompt_tokens", json_integer((json_int_t)c->doc[0].ids.n));
    json_object_set_new(r, "arms", arms);
    json_object_set_new(r, "reasons", reasons);
    json_array_append_new(rungs, r);
    return rc;
}

/* What an engine says of itself. It is closed again: two of a large model do not fit on a GPU. */
static int ask_facts(struct card *c, struct kk_err *err)
{
    struct kk_engine_options plain = c->base;
    struct kk_engine_info *i = &c->cli->info;
    struct kk_engine *e;
    plain.kv = "native";
    plain.kv_device = 0;
    plain.draft = "none";
    int rc = kk_engine_open(&plain, &e, err);
    if (rc) return rc;
    kk_engine_describe(e, i);
    c->device = kk_strdup(i->device);
    c->eos = kk_array((size_t)i->n_eos + 1, sizeof *c->eos);
    if (!c->device || !c->eos) rc = kk_fail(err, KK_ENOMEM, "out of memory for a scorecard");
    if (!rc && i->n_eos) memcpy(c->eos, i->eos, (size_t)i->n_eos * sizeof *c->eos);
    i->device = c->device;
    i->eos = c->eos;
    i->architecture = NULL;
    kk_engine_close(e);
    return rc;
}

static int open_card(struct card *c, struct kk_err *err)
{
    int rc = kk_cli_no_words(c->cli, err);
    c->replay = kk_config_real(&c->cli->cfg, KK_OPT_REPLAY);
    if (!rc && c->replay != 0 && c->replay < 1)
        rc = kk_fail(err, KK_EUSAGE, "--replay %g: a block commits 1 to 16 tokens", c->replay);
    if (!rc && !c->cli->cfg.value[KK_OPT_TOKENS].n) rc = kk_cli_open_tok(c->cli, err);
    if (!rc) rc = kk_cli_options(c->cli, &c->base, err);
    if (rc) return rc;
    if (!kk_config_given(&c->cli->cfg, KK_OPT_DRAFT)) c->base.draft = "ngram";
    rc = ask_facts(c, err);
    if (rc) return rc;
    c->cli->reading_quiet = 1;
    c->V = c->cli->info.vocabulary;
    c->n_docs = (int)kk_config_int(&c->cli->cfg, KK_OPT_SAMPLES);
    c->n_keyed = c->cli->tok ? c->n_docs : 0;
    c->doc = kk_calloc((size_t)c->n_docs, sizeof *c->doc);
    c->keyed = kk_calloc((size_t)c->n_docs, sizeof *c->keyed);
    c->plain = kk_calloc((size_t)c->n_docs, sizeof *c->plain);
    if (!c->doc || !c->keyed || !c->plain)
        return kk_fail(err, KK_ENOMEM, "out of memory for documents");
    c->doc[0].native = kk_array((size_t)(KL_POINTS + 1) * (size_t)c->V, sizeof(float));
    if (!c->doc[0].native) return kk_fail(err, KK_ENOMEM, "out of memory for documents");
    int fused = strcmp(c->base.draft, "none") != 0;
    c->total = (c->n_docs * (1 + fused) + fused + c->n_keyed) * 7 * rungs_of(c)->n;
    return 0;
}

static void close_card(struct card *c)
{
    for (int i = 0; c->doc && i < c->n_docs; i++) {
        kk_ids_release(&c->doc[i].ids);
        kk_free(c->doc[i].native);
    }
    for (int i = 0; c->keyed && i < c->n_docs; i++) kk_ids_release(&c->keyed[i].ids);
    kk_free(c->doc);
    kk_free(c->keyed);
    kk_free(c->plain);
    kk_free(c->device);
    kk_free(c->eos);
}

static int write_picture(const struct card *c, const json_t *report, struct kk_err *err)
{
    const char *path = kk_config_text(&c->cli->cfg, KK_OPT_SVG);
    struct kk_buf svg;
    if (!path || !*path) return 0;
    kk_buf_init(&svg, 1 << 20);
    int rc = kk_scorecard_picture(report, &svg);
    rc = rc ? kk_fail(err, rc, "cannot draw the scorecard: %s", kk_strerror(rc))
            : kk_fs_write(path, svg.data, svg.len, err);
    kk_buf_release(&svg);
    return rc;
}

int kk_cli_bench_scorecard(struct kk_cli *cli, struct kk_err *err)
{
    struct card c = {.cli = cli};
    json_t *report = json_object(), *rungs = json_array();
    int rc = open_card(&c, err);
    if (!rc) {
        const struct kk_value *lines = rungs_of(&c);
        if (kk_cli_wants_text(cli))
            printf("%s, %s; draft %s, f_theta %s\n", c.base.model, cli->info.device, c.base.draft,
                   c.base.f_theta ? c.base.f_theta : "none");
        for (int i = 0; !rc && i < lines->n; i++)
            rc = run_rung(&c, (int)lines->list[i], rungs, err);
    }
    json_object_set(report, "rungs", rungs);
    kk_cli_describe_run(cli, report);
    json_object_set_new(report, "documents", json_string(cli->tok ? "text" : "random ids"));
    if (c.replay > 0) json_object_set_new(report, "replay", json_real(c.replay));
    json_object_set_new(report, "draft", json_string(c.base.draft ? c.base.draft : "none"));
    if (!rc) rc = write_picture(&c, report, err);
    int gate = rc ? rc : kk_scorecard_gate(report, err);
    json_object_set_new(report, "gate",
                        gate ? json_string(err && gate ? err->msg : "") : json_string("passed"));
    if (!rc) {
        int rc2 = kk_cli_report(cli, report, gate ? NULL : err);
        report = NULL;
        rc = gate ? kk_wrap(err, gate, "the gate refuses this report") : rc2;
    }
    if (!rc && kk_cli_wants_text(cli)) printf("\ngate: passed\n");
    json_decref(report);
    json_decref(rungs);
    close_card(&c);
    return rc;
}
