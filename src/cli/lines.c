#include "cli/lines.h"

#include <histedit.h>
#include <langinfo.h>
#include <locale.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>
#include <wchar.h>

#include "base/mem.h"

enum { REMEMBERED = 500 };

struct kk_lines {
    const char *prompt, *more;
    int further;     /* the line at hand goes on with a message */
    int cancelled;   /* by Ctrl-C */
    EditLine *el;    /* NULL: nobody types */
    FILE *to;        /* where el draws */
    int pastes;      /* the terminal may mark what is pasted */
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

/* Ask the terminal to put ESC [200~ and ESC [201~ around what is pasted. */
static void mark_pastes(const struct kk_lines *l, int on)
{
    if (!l->pastes) return;
    fputs(on ? "\033[?2004h" : "\033[?2004l", l->to);
    fflush(l->to);
}

static unsigned char suspend(EditLine *el, int key)
{
    (void)key;
    mark_pastes(lines_of(el), 0);
    el_set(el, EL_PREP_TERM, 0);
    raise(SIGTSTP);
    el_set(el, EL_PREP_TERM, 1);
    mark_pastes(lines_of(el), 1);
    return CC_REDISPLAY;
}

/* What is pasted is part of one message, line breaks and all. Its end is looked for in the last
 * characters of `text`, which are inserted when they cannot be it. */
static unsigned char paste(EditLine *el, int key)
{
    static const wchar_t end[] = L"\033[201~";
    enum { END = 6, HELD = 256 };
    wchar_t text[HELD], c;
    size_t n = 0;
    (void)key;
    for (int over = 0; !over && el_wgetc(el, &c) == 1;) {
        text[n++] = c == L'\r' ? L'\n' : c;
        over = n >= END && !wmemcmp(text + n - END, end, END);
        if (!over && n < HELD) continue;
        wchar_t tail = text[n - END];
        text[n - END] = 0;
        el_winsertstr(el, text);
        text[n - END] = tail;
        wmemmove(text, text + n - END, END);
        n = END;
    }
    return CC_REFRESH;
}

/* Ctrl-C and Ctrl-Z are keys while a line is edited: no signal can leave the terminal raw. */
static void set_keys(EditLine *el)
{
    el_source(el, NULL);
    el_set(el, EL_SETTY, "-d", "-isig", NULL);
    el_set(el, EL_ADDFN, "kakeya-cancel", "Throw the line away", cancel);
    el_set(el, EL_ADDFN, "kakeya-suspend", "Stop the program", suspend);
    el_set(el, EL_ADDFN, "kakeya-paste", "Take in what is pasted", paste);
    el_set(el, EL_BIND, "^C", "kakeya-cancel", NULL);
    el_set(el, EL_BIND, "^Z", "kakeya-suspend", NULL);
    el_set(el, EL_BIND, "^R", "em-inc-search-prev", NULL);
    el_set(el, EL_BIND, "\\e[200~", "kakeya-paste", NULL);
}

/* Characters, not bytes, are what a person edits. */
static void set_locale(void)
{
    setlocale(LC_CTYPE, "");
    if (strcmp(nl_langinfo(CODESET), "UTF-8") != 0) setlocale(LC_CTYPE, "C.UTF-8");
}

/* ---- open and close ----------------------------------------------------------------------- */

static int open_editor(struct kk_lines *l, struct kk_err *err)
{
    HistEvent ev;
    set_locale();
    l->el = el_init("kakeya", stdin, l->to, stderr);
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
    const char *terminal = NULL;
    l->pastes = !el_get(l->el, EL_TERMINAL, &terminal) && terminal && strcmp(terminal, "dumb") != 0;
    return 0;
}

int kk_lines_open(struct kk_lines **out, const char *prompt, const char *more, struct kk_err *err)
{
    struct kk_lines *l = kk_calloc(1, sizeof *l);
    if (!l) return kk_fail(err, KK_ENOMEM, "out of memory");
    *l = (struct kk_lines){.prompt = prompt, .more = more};
    l->to = isatty(STDOUT_FILENO) ? stdout : isatty(STDERR_FILENO) ? stderr : NULL;
    int rc = isatty(STDIN_FILENO) && l->to ? open_editor(l, err) : 0;
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
    el_resize(l->el);               /* the window may have changed while nobody was typing */
    el_set(l->el, EL_PREP_TERM, 1); /* before the prompt: who sees it may press Ctrl-C */
    mark_pastes(l, 1);
    const char *line = el_gets(l->el, &n);
    mark_pastes(l, 0);
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
