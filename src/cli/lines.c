#include "cli/lines.h"

#include <histedit.h>
#include <langinfo.h>
#include <locale.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "base/mem.h"

enum { REMEMBERED = 500 };

struct kk_lines {
    const char *prompt, *more;
    int further;     /* the line at hand goes on with a message */
    int cancelled;   /* by Ctrl-C */
    EditLine *el;    /* NULL: nobody types */
    History *before; /* earlier lines */
};

/* ---- keys --------------------------------------------------------------------------------- */

static struct kk_lines *lines_of(EditLine *el)
{
    void *p = NULL;
    el_get(el, EL_CLIENTDATA, &p);
    return p;
}

static char *current_prompt(EditLine *el)
{
    struct kk_lines *l = lines_of(el);
    return (char *)(l->further ? l->more : l->prompt);
}

/* The line ends as by Enter, below its last row, and is then thrown away. */
static unsigned char cancel(EditLine *el, int key)
{
    const LineInfo *at = el_line(el);
    (void)key;
    lines_of(el)->cancelled = 1;
    el_cursor(el, (int)(at->lastchar - at->cursor));
    el_insertstr(el, "^C");
    el_push(el, "\n");
    return CC_REFRESH;
}

static unsigned char suspend(EditLine *el, int key)
{
    (void)key;
    el_set(el, EL_PREP_TERM, 0);
    raise(SIGTSTP);
    el_set(el, EL_PREP_TERM, 1);
    return CC_REDISPLAY;
}

/* Ctrl-C and Ctrl-Z are keys while a line is edited: no signal can leave the terminal raw. */
static void set_keys(EditLine *el)
{
    el_source(el, NULL);
    el_set(el, EL_SETTY, "-d", "-isig", NULL);
    el_set(el, EL_ADDFN, "kakeya-cancel", "Throw the line away", cancel);
    el_set(el, EL_ADDFN, "kakeya-suspend", "Stop the program", suspend);
    el_set(el, EL_BIND, "^C", "kakeya-cancel", NULL);
    el_set(el, EL_BIND, "^Z", "kakeya-suspend", NULL);
    el_set(el, EL_BIND, "^R", "em-inc-search-prev", NULL);
}

/* Characters, not bytes, are what a person edits. */
static void set_locale(void)
{
    setlocale(LC_CTYPE, "");
    if (strcmp(nl_langinfo(CODESET), "UTF-8") != 0) setlocale(LC_CTYPE, "C.UTF-8");
}

/* ---- open and close ----------------------------------------------------------------------- */

static int open_editor(struct kk_lines *l, FILE *to, struct kk_err *err)
{
    HistEvent ev;
    set_locale();
    l->el = el_init("kakeya", stdin, to, stderr);
    l->before = history_init();
    if (!l->el || !l->before) return kk_fail(err, KK_ENOMEM, "out of memory for a line editor");
    history(l->before, &ev, H_SETSIZE, REMEMBERED);
    history(l->before, &ev, H_SETUNIQUE, 1);
    el_set(l->el, EL_CLIENTDATA, l);
    el_set(l->el, EL_EDITOR, "emacs");
    el_set(l->el, EL_SIGNAL, 1);
    el_set(l->el, EL_PROMPT_ESC, current_prompt, '\1');
    el_set(l->el, EL_HIST, history, l->before);
    set_keys(l->el);
    return 0;
}

int kk_lines_open(struct kk_lines **out, const char *prompt, const char *more, struct kk_err *err)
{
    struct kk_lines *l = kk_calloc(1, sizeof *l);
    FILE *to = isatty(STDOUT_FILENO) ? stdout : isatty(STDERR_FILENO) ? stderr : NULL;
    if (!l) return kk_fail(err, KK_ENOMEM, "out of memory");
    *l = (struct kk_lines){.prompt = prompt, .more = more};
    int rc = isatty(STDIN_FILENO) && to ? open_editor(l, to, err) : 0;
    if (rc)
        kk_lines_close(l);
    else
        *out = l;
    return rc;
}

void kk_lines_close(struct kk_lines *l)
{
    if (!l) return;
    if (l->el) el_end(l->el);
    if (l->before) history_end(l->before);
    kk_free(l);
}

int kk_lines_edited(const struct kk_lines *l)
{
    return l->el != NULL;
}

/* ---- reading ------------------------------------------------------------------------------ */

/* Each appends a line to out, without its line break; returns as kk_lines_next. */
static int edit_line(struct kk_lines *l, struct kk_buf *out, struct kk_err *err)
{
    HistEvent ev;
    int n = 0;
    l->cancelled = 0;
    el_resize(l->el); /* the window may have changed while nobody was typing */
    const char *line = el_gets(l->el, &n);
    if (l->cancelled) return 1;
    if (!line || n <= 0) {
        fputc('\n', stderr);
        return 0;
    }
    if (line[n - 1] == '\n') n--;
    int rc = kk_buf_append(out, line, (size_t)n);
    if (rc) return kk_fail(err, rc, "a message of %zu bytes is too long", out->len);
    if (n) history(l->before, &ev, H_ENTER, line);
    return 1;
}

static int read_line(struct kk_buf *out, struct kk_err *err)
{
    size_t from = out->len;
    int c, rc = 0;
    while (!rc && (c = getc_unlocked(stdin)) != EOF && c != '\n') rc = kk_buf_putc(out, (char)c);
    if (rc) return kk_fail(err, rc, "a message of %zu bytes is too long", out->len);
    if (ferror(stdin)) return kk_fail(err, KK_EIO, "cannot read standard input: %m");
    if (out->len > from && out->data[out->len - 1] == '\r') out->data[--out->len] = 0;
    return c == '\n' || out->len > from;
}

int kk_lines_next(struct kk_lines *l, struct kk_buf *out, struct kk_err *err)
{
    kk_buf_reset(out);
    for (l->further = 0;; l->further = 1) {
        size_t from = out->len;
        int got = l->el ? edit_line(l, out, err) : read_line(out, err);
        if (got < 0) return got;
        if (l->cancelled) return kk_buf_reset(out), 1;
        if (!got && l->further) out->data[--out->len] = 0;
        if (!got) return l->further;
        if (out->len == from || out->data[out->len - 1] != '\\') return 1;
        out->data[out->len - 1] = '\n';
    }
}
