/* The manual page kakeya(1), in man(7) macros, from the tables of commands and options. */
#include <string.h>

#include "cli/commands.h"
#include "kk_build.h"

/* Text of a table as roff. The first failure sticks in *rc. */
static void put(int *rc, struct kk_buf *out, const char *text)
{
    if (!*rc && (*text == '.' || *text == '\'')) *rc = kk_buf_puts(out, "\\&");
    for (; !*rc && *text; text++) {
        if (*text == '-' || *text == '\\')
            *rc = kk_buf_puts(out, *text == '-' ? "\\-" : "\\e");
        else
            *rc = kk_buf_putc(out, *text);
    }
}

static void raw(int *rc, struct kk_buf *out, const char *text)
{
    if (!*rc) *rc = kk_buf_puts(out, text);
}

/* 1 if the option is one of every bench. */
static int of_benches(const struct kk_option *o)
{
    const struct kk_cli_command *c;
    for (int i = 0; (c = kk_cli_command_at(i)) != NULL; i++)
        if (kk_cli_bench_name(c) && !(o->commands & (unsigned)c->id)) return 0;
    return 1;
}

/* "run, chat, bench niah": the commands an option has, where it is not all of them. */
static void put_commands(int *rc, struct kk_buf *out, const struct kk_option *o)
{
    const struct kk_cli_command *c;
    int n = 0, all = of_benches(o);
    if (o->commands == KK_CMD_ALL) return;
    raw(rc, out, "\n.br\nOf ");
    for (int i = 0; (c = kk_cli_command_at(i)) != NULL; i++) {
        if (!(o->commands & (unsigned)c->id) || (all && kk_cli_bench_name(c))) continue;
        raw(rc, out, n++ ? ", " : "");
        put(rc, out, c->name);
    }
    if (all) raw(rc, out, n ? ", bench" : "bench");
}

static void put_flag(int *rc, struct kk_buf *out, const struct kk_option *o)
{
    char letter[] = {'-', o->letter, 0};
    raw(rc, out, ".TP\n");
    if (o->letter) raw(rc, out, "\\fB");
    if (o->letter) put(rc, out, letter);
    if (o->letter) raw(rc, out, "\\fR");
    if (strlen(o->name) > 1) {
        raw(rc, out, o->letter ? ", \\fB\\-\\-" : "\\fB\\-\\-");
        put(rc, out, o->name);
        raw(rc, out, "\\fR");
    }
    if (o->words) {
        raw(rc, out, o->type == KK_OPT_REPORT ? "[=\\fI" : " \\fI");
        put(rc, out, o->words);
        raw(rc, out, o->type == KK_OPT_REPORT ? "\\fR]" : "\\fR");
    }
    raw(rc, out, "\n");
}

static void put_option(int *rc, struct kk_buf *out, const struct kk_option *o)
{
    put_flag(rc, out, o);
    put(rc, out, o->help);
    if (o->def && o->type != KK_OPT_BOOL) {
        raw(rc, out, " (default ");
        put(rc, out, o->def);
        raw(rc, out, ")");
    }
    put_commands(rc, out, o);
    raw(rc, out, "\n");
}

static void put_options(int *rc, struct kk_buf *out)
{
    const char *group;
    raw(rc, out, ".SH OPTIONS\n");
    for (int g = 0; (group = kk_option_group(g)) != NULL; g++) {
        raw(rc, out, ".SS ");
        put(rc, out, group);
        raw(rc, out, "\n");
        for (int id = 0; id < KK_OPT_COUNT; id++)
            if (!strcmp(kk_option_at(id)->group, group)) put_option(rc, out, kk_option_at(id));
    }
}

static void put_synopses(int *rc, struct kk_buf *out)
{
    const struct kk_cli_command *c;
    raw(rc, out, ".SH COMMANDS\n");
    for (int i = 0; (c = kk_cli_command_at(i)) != NULL; i++) {
        raw(rc, out, ".TP\n\\fBkakeya ");
        put(rc, out, c->name);
        raw(rc, out, "\\fR ");
        put(rc, out, c->usage);
        raw(rc, out, "\n");
        put(rc, out, c->summary);
        raw(rc, out, "\n");
    }
}

static void put_chat(int *rc, struct kk_buf *out)
{
    const struct kk_cli_chat_command *c;
    raw(rc, out, ".SH \"IN A CHAT\"\n");
    put(rc, out, kk_cli_chat_keys);
    for (int i = 0; (c = kk_cli_chat_command_at(i)) != NULL; i++) {
        raw(rc, out, ".TP\n\\fB");
        put(rc, out, c->name);
        raw(rc, out, c->arg ? "\\fR \\fI" : "");
        put(rc, out, c->arg ? c->arg : "");
        raw(rc, out, "\\fR\n");
        put(rc, out, c->help);
        raw(rc, out, "\n");
    }
}

int kk_cli_manual(struct kk_buf *out)
{
    int rc = 0;
    raw(&rc, out,
        ".TH KAKEYA 1 \"\" \"kakeya " KK_VERSION "\" \"User Commands\"\n"
        ".SH NAME\nkakeya \\- a language model engine for sessions that live long\n"
        ".SH SYNOPSIS\n\\fBkakeya\\fR \\fICOMMAND\\fR [\\fIoptions\\fR]\n.br\n"
        "\\fBkakeya help\\fR \\fICOMMAND\\fR\n.br\n\\fBkakeya \\-\\-version\\fR\n"
        ".SH DESCRIPTION\n"
        "Runs language models from files that are already there.\n"
        "What a command makes goes to standard output, talk about it to standard error.\n");
    put_synopses(&rc, out);
    put_chat(&rc, out);
    put_options(&rc, out);
    raw(&rc, out,
        ".SH ENVIRONMENT\n.TP\n\\fBKAKEYA_\\fINAME\\fR\n"
        "An option in capitals, with _ for \\-: KAKEYA_KV_TYPE=f32.\n"
        "A flag wins over it, and it wins over the file of \\fB\\-\\-config\\fR.\n"
        ".TP\n\\fBNO_COLOR\\fR\nIf set and not empty, nothing is coloured.\n"
        ".SH \"EXIT STATUS\"\n.TP\n0\nDone.\n.TP\n1\nFailed; one line on standard error says why.\n"
        ".TP\n2\nWrong usage.\n");
    return rc;
}
