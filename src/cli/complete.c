/* Completions of bash, zsh and fish, from the tables of commands and options. */
#include <ctype.h>
#include <string.h>

#include "cli/commands.h"

/* What may stand for a value: words, names of files or directories, or nothing known. */
struct values {
    char words[160]; /* with blanks between */
    int files, dirs;
};

static int takes_value(const struct kk_option *o)
{
    return o->type != KK_OPT_BOOL && o->type != KK_OPT_REPORT;
}

/* From "auto|f32", "DIR|ngram|none", "FILE.npy", "N". */
static struct values values_of(const struct kk_option *o)
{
    struct values v = {0};
    const char *at = takes_value(o) && o->words ? o->words : "";
    while (*at) {
        size_t n = strcspn(at, "|"), have = strlen(v.words);
        v.files |= !strncmp(at, "FILE", 4) || !strncmp(at, "MODEL", n);
        v.dirs |= !strncmp(at, "DIR", n);
        if (!isupper((unsigned char)*at))
            snprintf(v.words + have, sizeof v.words - have, "%s%.*s", have ? " " : "", (int)n, at);
        at += n + (at[n] != 0);
    }
    return v;
}

/* ---- a writer: the first failure sticks --------------------------------------------------- */

struct writer {
    struct kk_buf *out;
    int rc;
};

static void put(struct writer *w, const char *text)
{
    if (!w->rc) w->rc = kk_buf_puts(w->out, text);
}

/* Text inside '..', with a backslash before each of `special`. */
static void put_quoted(struct writer *w, const char *text, const char *special)
{
    for (; !w->rc && *text; text++) {
        if (strchr(special, *text)) put(w, "\\");
        if (!w->rc && *text == '\'')
            put(w, "'\\''");
        else if (!w->rc)
            w->rc = kk_buf_putc(w->out, *text);
    }
}

#define PUT(w, ...)                                                                                \
    do {                                                                                           \
        if (!(w)->rc) (w)->rc = kk_buf_printf((w)->out, __VA_ARGS__);                              \
    } while (0)

/* The next word that may follow "kakeya" (bench = 0) or "kakeya bench" (1), or NULL; *i goes on.
 * "bench" itself comes once. */
static const char *next_word(int bench, int *i, const struct kk_cli_command **c)
{
    int seen = *i && kk_cli_bench_name(kk_cli_command_at(*i - 1)) != NULL;
    while ((*c = kk_cli_command_at((*i)++)) != NULL) {
        const char *name = kk_cli_bench_name(*c);
        if (bench ? name != NULL : !name) return bench ? name : (*c)->name;
        if (!bench && !seen++) return "bench";
    }
    return NULL;
}

static void put_words(struct writer *w, int bench)
{
    const struct kk_cli_command *c;
    const char *word;
    for (int i = 0, n = 0; (word = next_word(bench, &i, &c)) != NULL;)
        PUT(w, "%s%s", n++ ? " " : "", word);
}

static const char *summary_of(int bench, const struct kk_cli_command *c)
{
    return !bench && kk_cli_bench_name(c) ? "measurements" : c->summary;
}

static int has(const struct kk_cli_command *c, const struct kk_option *o)
{
    return (o->commands & (unsigned)c->id) != 0;
}

/* ---- bash --------------------------------------------------------------------------------- */

/* "run --kv"|"run -m"|..: every way to say that the option's value comes next. */
static void bash_pattern(struct writer *w, const struct kk_option *o)
{
    const struct kk_cli_command *c;
    for (int i = 0, n = 0; (c = kk_cli_command_at(i)) != NULL; i++) {
        if (!has(c, o)) continue;
        if (strlen(o->name) > 1) PUT(w, "%s'%s --%s'", n++ ? "|" : "", c->name, o->name);
        if (o->letter) PUT(w, "%s'%s -%c'", n++ ? "|" : "", c->name, o->letter);
    }
}

static void bash_flags(struct writer *w, const struct kk_cli_command *c)
{
    PUT(w, "    '%s') words='", c->name);
    for (int id = 0, n = 0; id < KK_OPT_COUNT; id++) {
        const struct kk_option *o = kk_option_at(id);
        if (!has(c, o)) continue;
        if (strlen(o->name) > 1) PUT(w, "%s--%s", n++ ? " " : "", o->name);
        if (o->letter) PUT(w, "%s-%c", n++ ? " " : "", o->letter);
    }
    put(w, "' ;;\n");
}

int kk_cli_complete_bash(struct kk_buf *out)
{
    struct writer w = {.out = out};
    const struct kk_cli_command *c;
    put(&w, "# bash completion of kakeya; made by: kakeya help --bash\n"
            "_kakeya()\n{\n"
            "    local cur=${COMP_WORDS[COMP_CWORD]} prev=${COMP_WORDS[COMP_CWORD-1]}\n"
            "    local command=${COMP_WORDS[1]} first=2 words='' files=''\n"
            "    COMPREPLY=()\n"
            "    if [[ $cur == '=' ]]; then cur=''\n"
            "    elif [[ $prev == '=' ]]; then prev=${COMP_WORDS[COMP_CWORD-2]}\n    fi\n"
            "    [[ $command == bench ]] && first=3 && command=\"bench ${COMP_WORDS[2]}\"\n"
            "    if [[ $COMP_CWORD -eq 1 ]]; then words='");
    put_words(&w, 0);
    put(&w, " help --help --version'\n    elif [[ $COMP_CWORD -lt $first ]]; then words='");
    put_words(&w, 1);
    put(&w, "'\n    elif [[ $command == help ]]; then words='");
    put_words(&w, 0);
    put(&w, " --man --bash --zsh --fish'\n    else\n    case \"$command $prev\" in\n");
    for (int id = 0; id < KK_OPT_COUNT; id++) {
        const struct kk_option *o = kk_option_at(id);
        struct values v = values_of(o);
        if (!takes_value(o)) continue;
        put(&w, "    ");
        bash_pattern(&w, o);
        PUT(&w, ") words='%s' files=%s ;;\n", v.words, v.files ? "-f" : v.dirs ? "-d" : "none");
    }
    put(&w, "    *) case \"$command\" in\n");
    for (int i = 0; (c = kk_cli_command_at(i)) != NULL; i++) bash_flags(&w, c);
    put(&w, "    esac\n"
            "    [[ $cur == -* ]] || { files=-f; words=''; }\n"
            "    ;;\n    esac\n    fi\n"
            "    mapfile -t COMPREPLY < <(compgen -W \"$words\" -- \"$cur\"\n"
            "        [[ $files == -? ]] && compgen \"$files\" -- \"$cur\")\n"
            "    [[ $files == -? ]] && compopt -o filenames 2>/dev/null\n"
            "    return 0\n}\n"
            "complete -F _kakeya kakeya\n");
    return w.rc;
}

/* ---- zsh ---------------------------------------------------------------------------------- */

/* The end of a specification: ":N:action". */
static void zsh_value(struct writer *w, const struct kk_option *o)
{
    struct values v = values_of(o);
    if (o->type == KK_OPT_REPORT) put(w, "::FILE:_files");
    if (!takes_value(o)) return;
    put(w, ":");
    put_quoted(w, o->type == KK_OPT_ENUM ? "WORD" : o->words, ":");
    if (v.dirs && *v.words)
        PUT(w, ":{_alternative \"d\\:directory\\:_files -/\" \"w\\:word\\:(%s)\"}", v.words);
    else if (v.dirs || v.files)
        put(w, v.dirs ? ":_files -/" : ":_files");
    else if (*v.words)
        PUT(w, ":(%s)", v.words);
    else
        put(w, ": ");
}

static void zsh_option(struct writer *w, const struct kk_option *o)
{
    const char *eq = o->type == KK_OPT_REPORT ? "=-" : takes_value(o) ? "=" : "";
    int is_long = strlen(o->name) > 1;
    put(w, " \\\n        ");
    put(w, o->type == KK_OPT_STRINGS ? "'*" : "'");
    if (is_long && o->letter)
        PUT(w, "(-%c --%s)'{-%c,--%s%s}'", o->letter, o->name, o->letter, o->name, eq);
    if (is_long && !o->letter) PUT(w, "--%s%s", o->name, eq);
    if (!is_long) PUT(w, "-%c", o->letter);
    put(w, "[");
    put_quoted(w, o->help, "[]:\\");
    put(w, "]");
    zsh_value(w, o);
    put(w, "'");
}

static void zsh_describe(struct writer *w, int bench)
{
    const struct kk_cli_command *c;
    const char *word;
    for (int i = 0; (word = next_word(bench, &i, &c)) != NULL;) {
        PUT(w, "        '%s:", word);
        put_quoted(w, summary_of(bench, c), "\\:");
        put(w, "'\n");
    }
}

int kk_cli_complete_zsh(struct kk_buf *out)
{
    struct writer w = {.out = out};
    const struct kk_cli_command *c;
    put(&w, "#compdef kakeya\n# zsh completion of kakeya; made by: kakeya help --zsh\n"
            "_kakeya()\n{\n    local -a commands benches\n    local command=${words[2]}\n"
            "    commands=(\n");
    zsh_describe(&w, 0);
    put(&w, "        'help:options of a command'\n    )\n    benches=(\n");
    zsh_describe(&w, 1);
    put(&w, "    )\n"
            "    if (( CURRENT == 2 )); then _describe command commands; return; fi\n"
            "    if [[ $command == help ]]; then _describe command commands; return; fi\n"
            "    if [[ $command == bench ]]; then\n"
            "        if (( CURRENT == 3 )); then _describe bench benches; return; fi\n"
            "        command=\"bench ${words[3]}\"\n        shift words; (( CURRENT-- ))\n    fi\n"
            "    shift words; (( CURRENT-- ))\n    case $command in\n");
    for (int i = 0; (c = kk_cli_command_at(i)) != NULL; i++) {
        PUT(&w, "    '%s')\n        _arguments -s", c->name);
        for (int id = 0; id < KK_OPT_COUNT; id++)
            if (has(c, kk_option_at(id))) zsh_option(&w, kk_option_at(id));
        put(&w, " \\\n        '*:FILE:_files' ;;\n");
    }
    put(&w, "    esac\n}\n_kakeya \"$@\"\n");
    return w.rc;
}

/* ---- fish --------------------------------------------------------------------------------- */

static void fish_option(struct writer *w, const struct kk_option *o)
{
    struct values v = values_of(o);
    const struct kk_cli_command *c;
    put(w, "complete -c kakeya -n \"__kakeya_is");
    for (int i = 0; (c = kk_cli_command_at(i)) != NULL; i++)
        if (has(c, o)) PUT(w, " '%s'", c->name);
    put(w, "\"");
    if (strlen(o->name) > 1) PUT(w, " -l %s", o->name);
    if (o->letter) PUT(w, " -s %c", o->letter);
    put(w, !takes_value(o) ? " -f" : v.files ? " -r -F" : " -x");
    if (v.dirs)
        PUT(w, " -a '(__fish_complete_directories)%s%s'", *v.words ? " " : "", v.words);
    else if (*v.words)
        PUT(w, " -a '%s'", v.words);
    put(w, " -d '");
    put_quoted(w, o->help, "");
    put(w, "'\n");
}

static void fish_words(struct writer *w, int bench)
{
    const struct kk_cli_command *c;
    const char *word;
    for (int i = 0; (word = next_word(bench, &i, &c)) != NULL;) {
        PUT(w, "complete -c kakeya -n '__kakeya_at %s' -f -a %s -d '",
            bench ? "2; and __kakeya_is \"bench \"" : "1", word);
        put_quoted(w, summary_of(bench, c), "");
        put(w, "'\n");
    }
}

int kk_cli_complete_fish(struct kk_buf *out)
{
    struct writer w = {.out = out};
    put(&w, "# fish completion of kakeya; made by: kakeya help --fish\n"
            "function __kakeya_is\n    set -l words (commandline -opc)\n"
            "    set -l command $words[2]\n"
            "    test \"$command\" = bench; and set command \"bench $words[3]\"\n"
            "    contains -- \"$command\" $argv\nend\n"
            "function __kakeya_at\n    test (count (commandline -opc)) -eq $argv[1]\nend\n");
    fish_words(&w, 0);
    fish_words(&w, 1);
    put(&w, "complete -c kakeya -n '__kakeya_at 1' -f -a help -d 'options of a command'\n");
    for (int id = 0; id < KK_OPT_COUNT; id++) fish_option(&w, kk_option_at(id));
    return w.rc;
}
