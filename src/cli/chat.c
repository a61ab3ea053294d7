/* kakeya chat: a conversation with a model, turn by turn. A session holds it; a turn appends only
 * what is new. */
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "cli/commands.h"
#include "cli/common.h"
#include "cli/lines.h"
#include "cli/reply.h"
#include "tok/chat.h"

struct chat {
    struct kk_cli *cli;
    struct kk_chat form;
    struct kk_session *session;
    struct kk_lines *lines;
    struct kk_reply reply;
    struct kk_buf system; /* the system message, if has_system */
    struct kk_ids ids;    /* of the turn at hand */
    FILE *json;           /* where lines of JSON go, or NULL */
    int has_system, colour, ended;
    int answered; /* reply is of this conversation */
};

/* ---- Ctrl-C ------------------------------------------------------------------------------- */

static volatile sig_atomic_t interrupted;

/* The first one ends the answer, as soon as its step is done; the third ends the program. */
static void on_interrupt(int sig)
{
    if (++interrupted < 3) return;
    signal(sig, SIG_DFL);
    raise(sig);
}

/* Who started us with SIGINT ignored wants it so. */
static void catch_interrupts(struct sigaction *before)
{
    struct sigaction now = {.sa_handler = on_interrupt, .sa_flags = SA_RESTART};
    sigemptyset(&now.sa_mask);
    interrupted = 0;
    sigaction(SIGINT, NULL, before);
    if (before->sa_handler != SIG_IGN) sigaction(SIGINT, &now, NULL);
}

/* ---- talk --------------------------------------------------------------------------------- */

static void dim(const struct chat *c, const char *text)
{
    fprintf(stderr, c->colour ? "\033[2m%s\033[0m\n" : "%s\n", text);
}

static void greet(const struct chat *c)
{
    char line[256];
    snprintf(
        line, sizeof line, "%.128s: %s turns, context %lld. /help lists commands, Ctrl-D ends.",
        kk_config_text(&c->cli->cfg, KK_OPT_MODEL), c->form.family, (long long)c->cli->info.ctx);
    dim(c, line);
}

/* Turns that markers chose are a guess: a model that has not learnt to talk has
 * the tokens of one that has. */
static void warn_template(const struct chat *c)
{
    if (c->form.by_markers)
        fprintf(
            stderr,
            "kakeya: warning: the model brings no chat template: taking %s turns, whose markers "
            "its tokenizer has; a model that was not trained on them talks nonsense\n",
            c->form.family);
}

/* Why an answer ended before its time, or NULL. */
static const char *cut_short(const struct kk_reply *r)
{
    const char *end = kk_reply_end(r);
    if (!r->made.steps) return "stopped by Ctrl-C while reading";
    return !strcmp(end, "max_tokens")    ? "cut off by -n"
           : !strcmp(end, "interrupted") ? "stopped by Ctrl-C"
           : !strcmp(end, "context")     ? "the context is full: /reset begins anew"
                                         : NULL;
}

/* Below an answer, for who looks on. */
static void remark(const struct chat *c)
{
    char line[256];
    const struct kk_reply *r = &c->reply;
    const char *cut = cut_short(r);
    size_t n_history;
    kk_session_history(c->session, &n_history);
    int n = snprintf(line, sizeof line, "[%lld tokens", (long long)r->made.tokens);
    if (r->made.tokens > 1)
        n += snprintf(line + n, sizeof line - (size_t)n, ", %.0f tok/s", kk_reply_decode_rate(r));
    snprintf(line + n, sizeof line - (size_t)n, ", history %zu%s%s]", n_history, cut ? "; " : "",
             cut ? cut : "");
    dim(c, line);
}

/* ---- a turn ------------------------------------------------------------------------------- */

/* One line of JSON for an answer. */
static int write_json(struct chat *c, struct kk_err *err)
{
    struct kk_session_info info;
    json_t *o = kk_reply_report(&c->reply, c->session);
    kk_session_describe(c->session, &info);
    json_object_set_new(o, "prompt_ids", kk_reply_ids(&c->ids));
    json_object_set_new(o, "history", json_integer(info.history));
    int bad = json_dumpf(o, c->json, JSON_COMPACT | JSON_REAL_PRECISION(9)) ||
              fputc('\n', c->json) == EOF || fflush(c->json);
    json_decref(o);
    return bad ? kk_fail(err, KK_EIO, "cannot write JSON: %m") : 0;
}

/* There must be room for the message and one token. */
static int check_room(const struct chat *c, size_t history, struct kk_err *err)
{
    int64_t ctx = c->cli->info.ctx;
    if ((int64_t)(history + c->ids.n) < ctx) return 0;
    return kk_fail(err, KK_ERANGE,
                   "the message takes %zu tokens, and %lld of %lld are left: shorten it, /reset, "
                   "or raise --ctx",
                   c->ids.n, (long long)(ctx - (int64_t)history), (long long)ctx);
}

static int answer(struct chat *c, struct kk_err *err)
{
    struct sigaction before;
    catch_interrupts(&before);
    int rc = kk_reply_make(&c->reply, c->session, &c->ids, err);
    if (!kk_lines_edited(c->lines)) sigaction(SIGINT, &before, NULL); /* a person may be late */
    const struct kk_buf *text = &c->reply.text;
    int line_open = text->len ? text->data[text->len - 1] != '\n' : !rc;
    if (!c->reply.print_text || !line_open) return rc;
    putchar('\n');
    if (fflush(stdout) && !rc) rc = kk_fail(err, KK_EIO, "cannot write to standard output: %m");
    return rc;
}

static int say(struct chat *c, const struct kk_buf *text, struct kk_err *err)
{
    size_t n;
    const uint32_t *history = kk_session_history(c->session, &n);
    c->ids.n = 0;
    int rc = kk_chat_turn(&c->form, history, n, c->has_system ? c->system.data : NULL, text->data,
                          text->len, &c->ids, err);
    if (!rc) rc = check_room(c, n, err);
    if (!rc) rc = answer(c, err);
    if (rc) return rc;
    c->answered = 1;
    if (kk_lines_edited(c->lines)) remark(c);
    return c->json ? write_json(c, err) : 0;
}

/* ---- commands ----------------------------------------------------------------------------- */

static int set_system(struct chat *c, const char *text, struct kk_err *err)
{
    kk_buf_reset(&c->system);
    c->has_system = *text != 0;
    int rc = kk_buf_puts(&c->system, text);
    return rc ? kk_fail(err, rc, "the system message: %s", kk_strerror(rc)) : 0;
}

static int begin(struct chat *c, struct kk_err *err)
{
    kk_session_close(c->session);
    c->session = NULL;
    c->answered = 0;
    return kk_session_open(c->cli->engine, &c->session, err);
}

static int do_reset(struct chat *c, const char *arg, struct kk_err *err)
{
    (void)arg;
    return begin(c, err);
}

static int do_system(struct chat *c, const char *arg, struct kk_err *err)
{
    int rc = set_system(c, arg, err);
    return rc ? rc : begin(c, err);
}

/* What was done to a file, for who looks on. */
static void note(const struct chat *c, const char *did, const char *path)
{
    char line[256];
    size_t n;
    kk_session_history(c->session, &n);
    snprintf(line, sizeof line, "[%s %.128s: history %zu]", did, path, n);
    if (kk_lines_edited(c->lines)) dim(c, line);
}

static int do_save(struct chat *c, const char *path, struct kk_err *err)
{
    int rc = kk_session_save(c->session, path, err);
    if (!rc) note(c, "saved", path);
    return rc;
}

static int do_load(struct chat *c, const char *path, struct kk_err *err)
{
    struct kk_session *loaded;
    int rc = kk_session_load(c->cli->engine, path, &loaded, err);
    kk_progress_clear(&c->cli->progress);
    if (rc) return rc;
    kk_session_close(c->session);
    c->session = loaded;
    c->answered = 0;
    note(c, "loaded", path);
    return 0;
}

static int do_stats(struct chat *c, const char *arg, struct kk_err *err)
{
    const struct kk_generated *made = &c->reply.made;
    struct kk_session_info s;
    (void)arg;
    (void)err;
    kk_session_describe(c->session, &s);
    fprintf(stderr, "history       %lld of %lld tokens\n", (long long)s.history,
            (long long)c->cli->info.ctx);
    fprintf(stderr, "KV            %s on the device, %s on the host\n",
            kk_cli_bytes(s.kv_device_bytes), kk_cli_bytes(s.kv_host_bytes));
    fprintf(stderr, "KV staging    %s, for all sessions\n",
            kk_cli_bytes(c->cli->info.kv_staging_bytes));
    if (s.drafter_device_bytes)
        fprintf(stderr, "drafter       %s on the device\n", kk_cli_bytes(s.drafter_device_bytes));
    if (!c->answered) return 0;
    fprintf(stderr, "last answer   read %zu tokens at %.0f tok/s, wrote %lld at %.0f tok/s\n",
            c->reply.prompt_tokens, kk_reply_prefill_rate(&c->reply), (long long)made->tokens,
            kk_reply_decode_rate(&c->reply));
    fprintf(stderr, "              %.2f tokens committed per block; %lld of %lld drafts accepted\n",
            kk_cli_rate((double)made->tokens, (double)made->steps), (long long)made->accepted,
            (long long)made->drafted);
    return 0;
}

static int do_exit(struct chat *c, const char *arg, struct kk_err *err)
{
    (void)arg;
    (void)err;
    c->ended = 1;
    return 0;
}

typedef int command_fn(struct chat *c, const char *arg, struct kk_err *err);
static command_fn do_help;

static const struct {
    struct kk_cli_chat_command is;
    command_fn *fn;
} commands[] = {
    {{"/help", NULL, "this list"}, do_help},
    {{"/reset", NULL, "forget the conversation and begin anew"}, do_reset},
    {{"/system", "[TEXT]", "begin anew with this system message; without TEXT: with none"},
     do_system},
    {{"/save", "FILE", "write the conversation to a file"}, do_save},
    {{"/load", "FILE", "go on with a conversation that was saved"}, do_load},
    {{"/stats", NULL, "tokens, bytes of the KV cache, speed"}, do_stats},
    {{"/exit", NULL, "end; so does Ctrl-D"}, do_exit},
};
enum { N_COMMANDS = sizeof commands / sizeof *commands };

const char kk_cli_chat_keys[] =
    "A message goes on in the next line after a backslash; a text that is pasted is one\n"
    "message. Ctrl-C stops an answer. To say a line that begins with a slash, put a blank\n"
    "before it.\n";

const struct kk_cli_chat_command *kk_cli_chat_command_at(int i)
{
    return i < N_COMMANDS ? &commands[i].is : NULL;
}

static int do_help(struct chat *c, const char *arg, struct kk_err *err)
{
    const struct kk_cli_chat_command *is;
    (void)c;
    (void)arg;
    (void)err;
    for (int i = 0; (is = kk_cli_chat_command_at(i)) != NULL; i++) {
        char name[32];
        snprintf(name, sizeof name, "%s %s", is->name, is->arg ? is->arg : "");
        fprintf(stderr, "  %-15s %s\n", name, is->help);
    }
    fputs(kk_cli_chat_keys, stderr);
    return 0;
}

/* A line that begins with a slash; blanks at its end are no part of it. */
static int command(struct chat *c, char *line, size_t len, struct kk_err *err)
{
    if (memchr(line, 0, len)) return kk_fail(err, KK_EINVAL, "a command with a NUL byte");
    while (strchr(" \t\n", line[len - 1])) line[--len] = 0;
    size_t n = strcspn(line, " \t\n");
    const char *arg = line + n + strspn(line + n, " \t\n");
    for (int i = 0; i < N_COMMANDS; i++) {
        const struct kk_cli_chat_command *is = &commands[i].is;
        if (strlen(is->name) != n || memcmp(is->name, line, n)) continue;
        if (*arg && !is->arg) return kk_fail(err, KK_EINVAL, "%s takes nothing after it", is->name);
        if (!*arg && is->arg && *is->arg != '[')
            return kk_fail(err, KK_EINVAL, "%s needs a value: %s %s", is->name, is->name, is->arg);
        return commands[i].fn(c, arg, err);
    }
    return kk_fail(err, KK_EINVAL, "'%.*s' is no command (/help lists them)",
                   (int)(n < 40 ? n : 40), line);
}

/* ---- the conversation --------------------------------------------------------------------- */

static int says_nothing(const struct kk_buf *line)
{
    return !line->len || strspn(line->data, " \t\n") == line->len;
}

/* What a person gets wrong can be tried again; a pipe ends there. */
static int converse(struct chat *c, struct kk_err *err)
{
    struct kk_buf line;
    int rc = 0, got = 0;
    kk_buf_init(&line, KK_CLI_TEXT_MAX);
    while (!rc && !c->ended && (got = kk_lines_next(c->lines, &line, err)) > 0) {
        if (says_nothing(&line)) continue;
        rc = line.data[0] == '/' ? command(c, line.data, line.len, err) : say(c, &line, err);
        if (rc && rc != KK_EIO && kk_lines_edited(c->lines) && c->session) {
            fprintf(stderr, "kakeya: %s\n", err->msg);
            rc = 0;
        }
    }
    kk_buf_release(&line);
    return rc ? rc : got < 0 ? got : 0;
}

static int open_json(struct chat *c, struct kk_err *err)
{
    const char *to = kk_config_text(&c->cli->cfg, KK_OPT_JSON);
    if (!to) return 0;
    c->json = strcmp(to, "-") ? fopen(to, "w") : stdout;
    return c->json ? 0 : kk_fail(err, KK_EIO, "cannot write '%s': %m", to);
}

static int prepare(struct chat *c, struct kk_err *err)
{
    struct kk_cli *cli = c->cli;
    const char *system = kk_config_text(&cli->cfg, KK_OPT_SYSTEM);
    int rc = kk_cli_no_words(cli, err);
    if (!rc) rc = kk_cli_open_tok(cli, err);
    if (!rc) rc = kk_chat_init(&c->form, cli->tok, kk_config_text(&cli->cfg, KK_OPT_TEMPLATE), err);
    if (rc == KK_EUNSUPPORTED && c->form.tok) kk_wrap(err, rc, "--template");
    if (!rc) rc = kk_reply_init(&c->reply, cli, err);
    c->reply.chat = &c->form;
    c->reply.interrupted = &interrupted;
    if (!rc && system) rc = set_system(c, system, err);
    if (!rc) rc = open_json(c, err);
    if (!rc) rc = kk_cli_open_engine(cli, err);
    if (!rc) warn_template(c);
    return rc ? rc : begin(c, err);
}

int kk_cli_chat(struct kk_cli *cli, struct kk_err *err)
{
    struct chat c = {.cli = cli, .colour = kk_config_colour(STDERR_FILENO)};
    kk_buf_init(&c.system, KK_CLI_TEXT_MAX);
    int rc = prepare(&c, err);
    if (!rc)
        rc = kk_lines_open(&c.lines, c.colour ? "\1\033[1;32m\1>\1\033[0m\1 " : "> ", ". ", err);
    if (!rc && kk_lines_edited(c.lines)) greet(&c);
    if (!rc) rc = converse(&c, err);
    if (c.json && c.json != stdout && fclose(c.json) && !rc)
        rc = kk_fail(err, KK_EIO, "cannot write JSON: %m");
    kk_lines_close(c.lines);
    kk_session_close(c.session);
    kk_reply_release(&c.reply);
    kk_buf_release(&c.system);
    kk_ids_release(&c.ids);
    return rc;
}
