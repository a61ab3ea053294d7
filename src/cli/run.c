/* kakeya run: continue a text, streaming. */
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "cli/common.h"
#include "cli/reply.h"

struct run {
    struct kk_cli *cli;
    struct kk_session *session;
    struct kk_ids prompt;
    struct kk_reply reply;
};

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

static int generate(struct run *r, struct kk_err *err)
{
    int rc = kk_session_open(r->cli->engine, &r->session, err);
    if (!rc) rc = kk_reply_make(&r->reply, r->session, &r->prompt, err);
    if (!rc && (r->reply.print_ids || (r->reply.print_text && isatty(STDOUT_FILENO))))
        putchar('\n');
    return rc;
}

static void talk(const struct run *r)
{
    const struct kk_generated *made = &r->reply.made;
    struct kk_session_info s;
    kk_session_describe(r->session, &s);
    fprintf(stderr, "kakeya: prompt %zu tokens, %.0f tok/s; generated %lld", r->prompt.n,
            kk_reply_prefill_rate(&r->reply), (long long)made->tokens);
    if (made->tokens > 1) fprintf(stderr, ", %.0f tok/s", kk_reply_decode_rate(&r->reply));
    if (made->drafted)
        fprintf(stderr, " (%.2f a step)", (double)made->tokens / (double)made->steps);
    fprintf(stderr, "; KV %s on the device", kk_cli_bytes(s.kv_device_bytes));
    if (s.kv_host_bytes) fprintf(stderr, ", %s on the host", kk_cli_bytes(s.kv_host_bytes));
    fputs("\n", stderr);
    if (made->stop == KK_STOP_CTX)
        fprintf(stderr, "kakeya: stopped: the context of %lld tokens is full\n",
                (long long)r->cli->info.ctx);
}

static json_t *report(const struct run *r)
{
    json_t *o = kk_reply_report(&r->reply, r->session);
    kk_cli_describe_run(r->cli, o);
    return o;
}

int kk_cli_run(struct kk_cli *cli, struct kk_err *err)
{
    struct run r = {.cli = cli};
    int rc = kk_cli_no_words(cli, err);
    if (!rc) rc = read_prompt(&r, err);
    if (!rc) rc = kk_reply_init(&r.reply, cli, err);
    r.reply.print_ids = (int)kk_config_int(&cli->cfg, KK_OPT_PRINT_IDS) && kk_cli_wants_text(cli);
    r.reply.print_text &= !r.reply.print_ids;
    if (!rc) rc = kk_cli_open_engine(cli, err);
    if (!rc) rc = add_bos(&r, err);
    if (!rc) rc = check_fits(r.prompt.n, cli->info.ctx, err);
    if (!rc) rc = generate(&r, err);
    if (!rc) talk(&r);
    if (!rc) rc = kk_cli_report(cli, report(&r), err);
    kk_session_close(r.session);
    kk_reply_release(&r.reply);
    kk_ids_release(&r.prompt);
    return rc;
}
