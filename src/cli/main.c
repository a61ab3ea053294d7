/* The program: picks the command, reads its options, runs it, turns an error into one line and an
 * exit status (0 done, 1 failed, 2 wrong usage). */
#include <stdio.h>
#include <string.h>

#include "cli/commands.h"
#include "cli/common.h"
#include "kk_build.h"

static void short_help(FILE *to)
{
    fprintf(to, "kakeya " KK_VERSION ": a language model engine for sessions that live long\n\n"
                "usage: kakeya COMMAND [options]\n\n");
    const struct kk_cli_command *cmd;
    for (int i = 0; (cmd = kk_cli_command_at(i)) != NULL; i++)
        fprintf(to, "  %-16s %s\n", cmd->name, cmd->summary);
    fprintf(to, "\n'kakeya COMMAND --help' lists a command's options; 'kakeya --version' says what "
                "was built;\n'kakeya help --man | --bash | --zsh | --fish' prints the manual page, "
                "or completions\nfor a shell.\n");
}

static int command_help(const struct kk_cli_command *cmd, struct kk_err *err)
{
    struct kk_buf b;
    kk_buf_init(&b, 1 << 20);
    int rc = kk_config_help(cmd->id, &b);
    if (rc)
        kk_fail(err, rc, "cannot print help: %s", kk_strerror(rc));
    else
        printf(
            "usage: kakeya %s %s\n\n%c%s.\n%s\n"
            "Each option can also be set as KAKEYA_NAME in the environment (with _ for -) or as "
            "a line\n\"name = value\" in the file of --config. A flag wins over the environment, "
            "that over the file.\n",
            cmd->name, cmd->usage, cmd->summary[0] - 'a' + 'A', cmd->summary + 1, b.data);
    kk_buf_release(&b);
    return rc;
}

/* The command that argv[0..] begins with; *words of it used. KK_EUSAGE if there is none. */
static int pick(int argc, char **argv, const struct kk_cli_command **out, int *words,
                struct kk_err *err)
{
    char name[64];
    const struct kk_cli_command *near = NULL;
    int best = 4, bench = !strcmp(argv[0], "bench");
    if (bench && (argc < 2 || argv[1][0] == '-'))
        return kk_fail(err, KK_EUSAGE, "bench what? 'bench niah' or 'bench decode'");
    snprintf(name, sizeof name, "%s%s%s", argv[0], bench ? " " : "", bench ? argv[1] : "");
    *words = 1 + bench;
    const struct kk_cli_command *cmd;
    for (int i = 0; (cmd = kk_cli_command_at(i)) != NULL; i++) {
        int d = kk_edit_distance(name, cmd->name);
        if (d < best) {
            best = d;
            near = cmd;
        }
    }
    *out = near;
    if (near && best == 0) return 0;
    if (near)
        return kk_fail(err, KK_EUSAGE, "unknown command '%s': did you mean '%s'?", name,
                       near->name);
    return kk_fail(err, KK_EUSAGE, "unknown command '%s' ('kakeya --help' lists them)", name);
}

static int document(const char *name, struct kk_err *err)
{
    struct kk_buf b;
    kk_buf_init(&b, 1 << 22);
    int rc = kk_cli_document(name, &b, err);
    if (!rc) fwrite(b.data, 1, b.len, stdout);
    kk_buf_release(&b);
    return rc;
}

static int print_config(const struct kk_config *c, struct kk_err *err)
{
    struct kk_buf b;
    kk_buf_init(&b, 1 << 22);
    int rc = kk_config_print(c, &b);
    if (rc)
        kk_fail(err, rc, "cannot print the configuration: %s", kk_strerror(rc));
    else
        fwrite(b.data, 1, b.len, stdout);
    kk_buf_release(&b);
    return rc;
}

static int run_command(const struct kk_cli_command *cmd, int argc, char **argv, struct kk_err *err)
{
    struct kk_cli cli = {0};
    int rc = kk_config_load(&cli.cfg, cmd->id, cmd->name, argc, argv, err);
    if (rc) return rc;
    kk_progress_init(&cli.progress);
    if (kk_config_int(&cli.cfg, KK_OPT_HELP))
        rc = command_help(cmd, err);
    else if (kk_config_int(&cli.cfg, KK_OPT_PRINT_CONFIG))
        rc = print_config(&cli.cfg, err);
    else
        rc = cmd->fn(&cli, err);
    kk_cli_release(&cli);
    return rc;
}

/* argv without the program's name; not empty. */
static int dispatch(int argc, char **argv, struct kk_err *err)
{
    const struct kk_cli_command *cmd = NULL;
    int words = 0;
    if (!strcmp(argv[0], "--version")) {
        printf("kakeya " KK_VERSION " (" KK_COMMIT ", " KK_CONFIG ")\n");
        return 0;
    }
    int help = !strcmp(argv[0], "help");
    if (!strcmp(argv[0], "--help") || !strcmp(argv[0], "-h") || (help && argc == 1)) {
        short_help(stdout);
        return 0;
    }
    if (help && argc == 2 && !strncmp(argv[1], "--", 2)) return document(argv[1] + 2, err);
    int rc = pick(argc - help, argv + help, &cmd, &words, err);
    if (rc) return rc;
    if (help) return command_help(cmd, err);
    return run_command(cmd, argc - words, argv + words, err);
}

int main(int argc, char **argv)
{
    struct kk_err err = {0};
    if (argc < 2) {
        short_help(stderr);
        return 2;
    }
    int rc = dispatch(argc - 1, argv + 1, &err);
    if (fflush(stdout) || ferror(stdout)) {
        if (!rc) rc = kk_fail(&err, KK_EIO, "cannot write to standard output: %m");
    }
    if (!rc) return 0;
    for (char *s = err.msg; *s; s++)
        if ((unsigned char)*s < ' ' || *s == 127) *s = ' ';
    fprintf(stderr, "kakeya: error: %s\n", err.msg);
    return rc == KK_EUSAGE ? 2 : 1;
}
