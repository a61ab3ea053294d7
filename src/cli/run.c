/* kakeya run: continue a text, streaming. */
#include <stdio.h>
#include <string.h>
#include <sys/random.h>
#include <unistd.h>

#include "base/clock.h"
#include "cli/common.h"
#include "cli/stop.h"

struct run {
    struct kk_cli *cli;
    struct kk_session *session;
    struct kk_sampling sampling;
    struct kk_ids prompt, emitted;
    struct kk_buf text; /* all that was generated, stop strings cut */
    size_t printed;     /* bytes of text on standard output */
    struct kk_tok_stream stream;
    struct kk_stop_filter stop;
    int print_text, print_ids;
    int rc; /* of a callback */
    struct kk_err err;
    struct kk_generated made;
    double append_s;
};

static void sampling_from(const struct kk_config *c, struct kk_sampling *p)
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
static int choose_seed(struct run *r, struct kk_err *err)
{
    if (r->sampling.temperature == 0 || kk_config_has(&r->cli->cfg, KK_OPT_SEED)) return 0;
    uint64_t u;
    if (getrandom(&u, sizeof u, 0) != (ssize_t)sizeof u)
        return kk_fail(err, KK_EIO, "cannot draw a seed: give one with --seed");
    r->sampling.seed = u >> 32; /* short enough to type */
    fprintf(stderr, "kakeya: seed %llu\n", (unsigned long long)r->sampling.seed);
    return 0;
}

/* A prompt of n tokens must leave room for one more. */
static int check_fits(size_t n, int64_t ctx, struct kk_err *err)
{
    if ((uint64_t)n < (uint64_t)ctx) return 0;
    return kk_fail(err, KK_ERANGE,
                   "the prompt has %zu tokens and the context %lld: shorten the prompt or raise "
                   "--ctx",
                   n, (long long)ctx);
}

/* Tokens of the text, without BOS. The context is checked before weights are loaded. */
static int read_prompt(struct run *r, struct kk_err *err)
{
    struct kk_engine_options o;
    struct kk_plan plan;
    struct kk_buf text;
    kk_buf_init(&text, KK_CLI_TEXT_MAX);
    int rc = kk_cli_text(r->cli, &text, err);
    if (!rc) rc = kk_cli_options(r->cli, &o, err);
    if (!rc) rc = kk_plan_make(&o, 0, 1, &plan, err);
    if (!rc) rc = kk_cli_open_tok(r->cli, err);
    if (!rc) rc = kk_tok_encode(r->cli->tok, text.data, text.len, 1, &r->prompt, err);
    kk_buf_release(&text);
    return rc ? rc : check_fits(r->prompt.n, plan.ctx, err);
}

static int add_bos(struct run *r, struct kk_err *err)
{
    int64_t bos = r->cli->info.bos;
    if (bos < 0 || (r->prompt.n && r->prompt.id[0] == bos)) return 0;
    int rc = kk_ids_push(&r->prompt, 0);
    if (rc) return kk_fail(err, rc, "out of memory for a prompt");
    memmove(r->prompt.id + 1, r->prompt.id, (r->prompt.n - 1) * sizeof *r->prompt.id);
    r->prompt.id[0] = (uint32_t)bos;
    return 0;
}

/* ---- the stream --------------------------------------------------------------------------- */

static int write_out(struct run *r)
{
    if (r->print_text) fwrite(r->text.data + r->printed, 1, r->text.len - r->printed, stdout);
    r->printed = r->text.len;
    if (fflush(stdout) || ferror(stdout))
        return kk_fail(&r->err, KK_EIO, "cannot write to standard output: %m");
    return 0;
}

static int on_token(void *arg, uint32_t id)
{
    struct run *r = arg;
    struct kk_buf piece;
    kk_progress_clear(&r->cli->progress);
    kk_buf_init(&piece, 1 << 20);
    r->rc = kk_ids_push(&r->emitted, id);
    if (r->print_ids) printf(r->emitted.n > 1 ? " %u" : "%u", id);
    if (!r->rc) r->rc = kk_tok_stream_push(&r->stream, id, &piece, &r->err);
    if (!r->rc && piece.len) r->rc = kk_stop_feed(&r->stop, piece.data, piece.len, &r->text);
    kk_buf_release(&piece);
    if (!r->rc) r->rc = write_out(r);
    if (r->rc && !r->err.code) kk_fail(&r->err, r->rc, "output: %s", kk_strerror(r->rc));
    return r->rc || r->stop.hit;
}

static int finish_text(struct run *r, struct kk_err *err)
{
    struct kk_buf piece;
    kk_buf_init(&piece, 1 << 20);
    int rc = kk_tok_stream_flush(&r->stream, &piece);
    if (!rc) rc = kk_stop_feed(&r->stop, piece.data, piece.len, &r->text);
    if (!rc) rc = kk_stop_end(&r->stop, &r->text);
    kk_buf_release(&piece);
    if (rc) return kk_fail(err, rc, "output: %s", kk_strerror(rc));
    rc = write_out(r);
    if (rc) return *err = r->err, rc;
    if (r->print_ids || (r->print_text && isatty(STDOUT_FILENO))) putchar('\n');
    return 0;
}

static int generate(struct run *r, struct kk_err *err)
{
    int64_t most = kk_config_int(&r->cli->cfg, KK_OPT_N);
    uint64_t t0 = kk_now_ns();
    int rc = kk_session_open(r->cli->engine, &r->session, err);
    if (!rc) rc = kk_session_append(r->session, r->prompt.id, r->prompt.n, err);
    r->append_s = kk_seconds_since(t0);
    kk_progress_clear(&r->cli->progress);
    if (!rc) rc = kk_session_generate(r->session, &r->sampling, most, on_token, r, &r->made, err);
    if (!rc && r->rc) {
        rc = r->rc;
        if (err) *err = r->err;
    }
    return rc ? rc : finish_text(r, err);
}

/* ---- what is told about it ---------------------------------------------------------------- */

static const char *why_stopped(const struct run *r)
{
    static const char *const names[] = {
        [KK_STOP_MAX_TOKENS] = "max_tokens",
        [KK_STOP_EOS] = "eos",
        [KK_STOP_CALLER] = "stop_string",
        [KK_STOP_CTX] = "context",
    };
    return r->stop.hit ? "stop_string" : names[r->made.stop];
}

static double prefill_rate(const struct run *r)
{
    return kk_cli_rate((double)r->prompt.n, r->append_s + r->made.first_s);
}

/* Tokens after the first, by the time after it. */
static double decode_rate(const struct run *r)
{
    return kk_cli_rate((double)r->made.tokens - 1, r->made.seconds - r->made.first_s);
}

static void talk(const struct run *r)
{
    struct kk_session_info s;
    kk_session_describe(r->session, &s);
    fprintf(stderr, "kakeya: prompt %zu tokens, %.0f tok/s; generated %lld", r->prompt.n,
            prefill_rate(r), (long long)r->made.tokens);
    if (r->made.tokens > 1) fprintf(stderr, ", %.0f tok/s", decode_rate(r));
    if (r->made.drafted)
        fprintf(stderr, " (%.2f a step)", (double)r->made.tokens / (double)r->made.steps);
    fprintf(stderr, "; KV %s on the device", kk_cli_bytes(s.kv_device_bytes));
    if (s.kv_host_bytes) fprintf(stderr, ", %s on the host", kk_cli_bytes(s.kv_host_bytes));
    fputs("\n", stderr);
    if (r->made.stop == KK_STOP_CTX)
        fprintf(stderr, "kakeya: stopped: the context of %lld tokens is full\n",
                (long long)r->cli->info.ctx);
}

static json_t *json_ids(const struct kk_ids *v)
{
    json_t *list = json_array();
    for (size_t i = 0; i < v->n; i++) json_array_append_new(list, json_integer(v->id[i]));
    return list;
}

static json_t *report(const struct run *r)
{
    struct kk_session_info s;
    kk_session_describe(r->session, &s);
    json_t *o = json_object();
    json_object_set_new(o, "text", kk_cli_json_text(r->text.data, r->text.len));
    json_object_set_new(o, "ids", json_ids(&r->emitted));
    json_object_set_new(o, "stop", json_string(why_stopped(r)));
    json_object_set_new(o, "prompt_tokens", json_integer((json_int_t)r->prompt.n));
    json_object_set_new(o, "tokens", json_integer(r->made.tokens));
    json_object_set_new(o, "steps", json_integer(r->made.steps));
    json_object_set_new(o, "drafted", json_integer(r->made.drafted));
    json_object_set_new(o, "accepted", json_integer(r->made.accepted));
    json_object_set_new(o, "first_token_s", json_real(r->append_s + r->made.first_s));
    json_object_set_new(o, "prefill_tok_s", json_real(prefill_rate(r)));
    json_object_set_new(o, "decode_tok_s", json_real(decode_rate(r)));
    json_object_set_new(o, "kv_device_bytes", json_integer(s.kv_device_bytes));
    json_object_set_new(o, "drafter_device_bytes", json_integer(s.drafter_device_bytes));
    json_object_set_new(o, "kv_staging_bytes", json_integer(r->cli->info.kv_staging_bytes));
    json_object_set_new(o, "kv_host_bytes", json_integer(s.kv_host_bytes));
    json_object_set_new(o, "temperature", json_real(kk_config_real(&r->cli->cfg, KK_OPT_TEMP)));
    json_object_set_new(o, "seed", json_integer((json_int_t)r->sampling.seed));
    kk_cli_describe_run(r->cli, o);
    return o;
}

int kk_cli_run(struct kk_cli *cli, struct kk_err *err)
{
    struct run r = {.cli = cli};
    const struct kk_value *stops = &cli->cfg.value[KK_OPT_STOP];
    r.print_ids = (int)kk_config_int(&cli->cfg, KK_OPT_PRINT_IDS) && kk_cli_wants_text(cli);
    r.print_text = !r.print_ids && kk_cli_wants_text(cli);
    kk_buf_init(&r.text, KK_CLI_TEXT_MAX);
    kk_stop_init(&r.stop, stops->text, stops->n);
    sampling_from(&cli->cfg, &r.sampling);
    int rc = kk_cli_no_words(cli, err);
    if (!rc) rc = read_prompt(&r, err);
    if (!rc) rc = choose_seed(&r, err);
    if (!rc) rc = kk_cli_open_engine(cli, err);
    if (!rc) rc = add_bos(&r, err);
    if (!rc) rc = check_fits(r.prompt.n, cli->info.ctx, err);
    if (!rc) {
        kk_tok_stream_init(&r.stream, cli->tok, 1);
        rc = generate(&r, err);
    }
    if (!rc) talk(&r);
    if (!rc) rc = kk_cli_report(cli, report(&r), err);
    kk_session_close(r.session);
    kk_stop_release(&r.stop);
    kk_buf_release(&r.text);
    kk_ids_release(&r.prompt);
    kk_ids_release(&r.emitted);
    return rc;
}
