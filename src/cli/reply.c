#include "cli/reply.h"

#include <stdio.h>
#include <string.h>
#include <sys/random.h>
#include <unistd.h>

#include "base/clock.h"

enum { PIECE_MAX = 1 << 20 }; /* bytes of one token's text */

/* ---- options ------------------------------------------------------------------------------ */

static void read_sampling(const struct kk_config *c, struct kk_sampling *p)
{
    *p = kk_sampling_defaults();
    p->temperature = (float)kk_config_real(c, KK_OPT_TEMP);
    p->top_k = (int)kk_config_int(c, KK_OPT_TOP_K);
    p->top_p = (float)kk_config_real(c, KK_OPT_TOP_P);
    p->min_p = (float)kk_config_real(c, KK_OPT_MIN_P);
    p->repeat_penalty = (float)kk_config_real(c, KK_OPT_REPEAT_PENALTY);
    p->repeat_last_n = (int)kk_config_int(c, KK_OPT_REPEAT_LAST_N);
    p->ignore_eos = (int)kk_config_int(c, KK_OPT_IGNORE_EOS);
    p->seed = (uint64_t)kk_config_int(c, KK_OPT_SEED);
}

/* An unset seed that matters is drawn once and told, so that the run can be repeated. */
static int choose_seed(struct kk_reply *r, struct kk_err *err)
{
    if (r->sampling.temperature == 0 || kk_config_has(&r->cli->cfg, KK_OPT_SEED)) return 0;
    uint64_t u;
    if (getrandom(&u, sizeof u, 0) != (ssize_t)sizeof u)
        return kk_fail(err, KK_EIO, "cannot draw a seed: give one with --seed");
    r->sampling.seed = u >> 32; /* short enough to type */
    fprintf(stderr, "kakeya: seed %llu\n", (unsigned long long)r->sampling.seed);
    return 0;
}

int kk_reply_init(struct kk_reply *r, struct kk_cli *cli, struct kk_err *err)
{
    const struct kk_config *c = &cli->cfg;
    const struct kk_value *stops = &c->value[KK_OPT_STOP];
    *r = (struct kk_reply){.cli = cli, .print_text = kk_cli_wants_text(cli)};
    r->most = kk_config_int(c, kk_config_has(c, KK_OPT_N) ? KK_OPT_N : KK_OPT_ANSWER);
    kk_buf_init(&r->text, KK_CLI_TEXT_MAX);
    kk_stop_init(&r->stop, stops->text, stops->n);
    read_sampling(c, &r->sampling);
    return choose_seed(r, err);
}

void kk_reply_release(struct kk_reply *r)
{
    kk_stop_release(&r->stop);
    kk_buf_release(&r->text);
    kk_ids_release(&r->ids);
}

/* ---- the stream --------------------------------------------------------------------------- */

static int write_out(struct kk_reply *r)
{
    if (r->print_text) fwrite(r->text.data + r->printed, 1, r->text.len - r->printed, stdout);
    r->printed = r->text.len;
    if (fflush(stdout) || ferror(stdout))
        return kk_fail(&r->err, KK_EIO, "cannot write to standard output: %m");
    return 0;
}

static int ends_turn(const struct kk_reply *r, uint32_t id)
{
    return r->chat && !r->sampling.ignore_eos && kk_chat_ends(r->chat, id);
}

static int is_interrupted(const struct kk_reply *r)
{
    return r->interrupted && *r->interrupted;
}

static int on_token(void *arg, uint32_t id)
{
    struct kk_reply *r = arg;
    struct kk_buf piece;
    kk_progress_clear(&r->cli->progress);
    kk_buf_init(&piece, PIECE_MAX);
    r->rc = kk_ids_push(&r->ids, id);
    r->end_of_turn = ends_turn(r, id);
    if (r->print_ids) printf(r->ids.n > 1 ? " %u" : "%u", id);
    if (!r->rc && !r->end_of_turn) r->rc = kk_tok_stream_push(&r->stream, id, &piece, &r->err);
    if (!r->rc && piece.len) r->rc = kk_stop_feed(&r->stop, piece.data, piece.len, &r->text);
    kk_buf_release(&piece);
    if (!r->rc) r->rc = write_out(r);
    if (r->rc && !r->err.code) kk_fail(&r->err, r->rc, "output: %s", kk_strerror(r->rc));
    return r->rc || r->stop.hit || r->end_of_turn || is_interrupted(r);
}

/* What was held back: a character or a stop string that did not come. */
static int finish_text(struct kk_reply *r, struct kk_err *err)
{
    struct kk_buf piece;
    kk_buf_init(&piece, PIECE_MAX);
    int rc = kk_tok_stream_flush(&r->stream, &piece);
    if (!rc) rc = kk_stop_feed(&r->stop, piece.data, piece.len, &r->text);
    if (!rc) rc = kk_stop_end(&r->stop, &r->text);
    kk_buf_release(&piece);
    if (rc) return kk_fail(err, rc, "output: %s", kk_strerror(rc));
    rc = write_out(r);
    return rc && err ? (*err = r->err, rc) : rc;
}

static void forget(struct kk_reply *r)
{
    r->ids.n = 0;
    kk_buf_reset(&r->text);
    kk_buf_reset(&r->stop.held);
    kk_tok_stream_init(&r->stream, r->cli->tok, 1);
    r->stop.hit = r->end_of_turn = r->rc = 0;
    r->printed = 0;
    r->err = (struct kk_err){0};
    r->made = (struct kk_generated){0};
}

/* In one piece, or chunk by chunk if it can be interrupted: the same to the model. */
static int append(struct kk_reply *r, struct kk_session *s, const struct kk_ids *ids,
                  struct kk_err *err)
{
    size_t chunk = (size_t)kk_config_int(&r->cli->cfg, KK_OPT_PREFILL_CHUNK), at = 0;
    int rc = 0;
    r->cli->reading_quiet = r->interrupted != NULL;
    while (!rc && at < ids->n && !is_interrupted(r)) {
        size_t n = r->interrupted && chunk < ids->n - at ? chunk : ids->n - at;
        rc = kk_session_append(s, ids->id + at, n, err);
        at += n;
        if (r->interrupted)
            kk_progress_show(&r->cli->progress, "reading", at, ids->n, KK_PROGRESS_TOKENS);
    }
    r->prompt_tokens = at;
    kk_progress_clear(&r->cli->progress);
    return rc;
}

int kk_reply_make(struct kk_reply *r, struct kk_session *s, const struct kk_ids *ids,
                  struct kk_err *err)
{
    forget(r);
    uint64_t t0 = kk_now_ns();
    int rc = append(r, s, ids, err);
    r->append_s = kk_seconds_since(t0);
    r->made.stop = KK_STOP_CALLER;
    if (!rc && is_interrupted(r)) return 0;
    if (!rc) rc = kk_session_generate(s, &r->sampling, r->most, on_token, r, &r->made, err);
    if (!rc && r->rc) {
        rc = r->rc;
        if (err) *err = r->err;
    }
    return rc ? rc : finish_text(r, err);
}

/* ---- what is told about it ---------------------------------------------------------------- */

const char *kk_reply_end(const struct kk_reply *r)
{
    static const char *const names[] = {
        [KK_STOP_MAX_TOKENS] = "max_tokens",
        [KK_STOP_EOS] = "eos",
        [KK_STOP_CALLER] = "interrupted",
        [KK_STOP_CTX] = "context",
    };
    return r->stop.hit ? "stop_string" : r->end_of_turn ? "end_of_turn" : names[r->made.stop];
}

double kk_reply_prefill_rate(const struct kk_reply *r)
{
    return kk_cli_rate((double)r->prompt_tokens, r->append_s + r->made.first_s);
}

double kk_reply_decode_rate(const struct kk_reply *r)
{
    return kk_cli_rate((double)r->made.tokens - 1, r->made.seconds - r->made.first_s);
}

json_t *kk_reply_ids(const struct kk_ids *v)
{
    json_t *list = json_array();
    for (size_t i = 0; i < v->n; i++) json_array_append_new(list, json_integer(v->id[i]));
    return list;
}

json_t *kk_reply_report(const struct kk_reply *r, const struct kk_session *s)
{
    struct kk_session_info info;
    kk_session_describe(s, &info);
    json_t *o = json_object();
    json_object_set_new(o, "text", kk_cli_json_text(r->text.data, r->text.len));
    json_object_set_new(o, "ids", kk_reply_ids(&r->ids));
    json_object_set_new(o, "stop", json_string(kk_reply_end(r)));
    json_object_set_new(o, "prompt_tokens", json_integer((json_int_t)r->prompt_tokens));
    json_object_set_new(o, "tokens", json_integer(r->made.tokens));
    json_object_set_new(o, "steps", json_integer(r->made.steps));
    json_object_set_new(o, "drafted", json_integer(r->made.drafted));
    json_object_set_new(o, "accepted", json_integer(r->made.accepted));
    json_object_set_new(o, "first_token_s", json_real(r->append_s + r->made.first_s));
    json_object_set_new(o, "prefill_tok_s", json_real(kk_reply_prefill_rate(r)));
    json_object_set_new(o, "decode_tok_s", json_real(kk_reply_decode_rate(r)));
    json_object_set_new(o, "kv_device_bytes", json_integer(info.kv_device_bytes));
    json_object_set_new(o, "drafter_device_bytes", json_integer(info.drafter_device_bytes));
    json_object_set_new(o, "kv_staging_bytes", json_integer(r->cli->info.kv_staging_bytes));
    json_object_set_new(o, "kv_host_bytes", json_integer(info.kv_host_bytes));
    json_object_set_new(o, "temperature", json_real(kk_config_real(&r->cli->cfg, KK_OPT_TEMP)));
    json_object_set_new(o, "seed", json_integer((json_int_t)r->sampling.seed));
    return o;
}
