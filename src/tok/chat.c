/* Chat templates: a table of forms, and a writer of marked text. */
#include "tok/chat.h"

#include <string.h>

#include "tok/tok_int.h"

/* Which marker is which. A form may lack BOS and the rest, never the two ends of a turn. */
enum { TURN, END, BOS, MORE, LAST };

struct kk_chat_form {
    const char *name;
    const char *mark[KK_CHAT_MARKS];  /* texts, by the names above; NULL: none */
    const char *stops[KK_CHAT_STOPS]; /* tokens beside END that end an answer, where they exist */
    const char *model;                /* the model's role */
    const char *after_role, *after_turn; /* text behind a header and between turns */
    int header;                          /* MORE stands between the role and after_role */
    int quiet; /* an answer begins with the empty thought: MORE "thought\n" LAST */
    int folds; /* the system message is the beginning of the first user turn */
    int trims;
};

/* clang-format off */
static const struct kk_chat_form forms[] = {
    {"gemma", {"<start_of_turn>", "<end_of_turn>", "<bos>"}, {"<eos>"},
        .model = "model", .after_role = "\n", .after_turn = "\n", .folds = 1, .trims = 1},
    {"gemma4", {"<|turn>", "<turn|>", "<bos>", "<|channel>", "<channel|>"},
        {"<eos>", "<|tool_response>"},
        .model = "model", .after_role = "\n", .after_turn = "\n", .quiet = 1, .trims = 1},
    {"chatml", {"<|im_start|>", "<|im_end|>"}, {"<|endoftext|>"},
        .model = "assistant", .after_role = "\n", .after_turn = "\n"},
    {"llama3", {"<|start_header_id|>", "<|eot_id|>", "<|begin_of_text|>", "<|end_header_id|>"},
        {"<|end_of_text|>", "<|eom_id|>"},
        .model = "assistant", .after_role = "\n\n", .after_turn = "", .header = 1, .trims = 1},
};
/* clang-format on */
enum { N_FORMS = sizeof forms / sizeof *forms };

/* ---- which form --------------------------------------------------------------------------- */

static uint32_t find_added(const struct kk_tok *t, const char *text)
{
    return kk__vocab_find(t, text, strlen(text), ENT_ADDED);
}

/* The first marker that the tokenizer lacks, or NULL. */
static const char *lacks(const struct kk_tok *t, const struct kk_chat_form *f)
{
    for (int i = 0; i < KK_CHAT_MARKS; i++)
        if (f->mark[i] && find_added(t, f->mark[i]) == KK_TOK_NONE) return f->mark[i];
    return NULL;
}

/* "gemma (<start_of_turn>), chatml (<|im_start|>)": all forms, or those t has. */
static void list_forms(const struct kk_tok *t, int all, char *out, size_t cap)
{
    *out = 0;
    for (int i = 0; i < N_FORMS; i++) {
        size_t n = strlen(out);
        if (all || !lacks(t, &forms[i]))
            snprintf(out + n, cap - n, "%s%s (%s)", n ? ", " : "", forms[i].name, forms[i].mark[0]);
    }
}

static const struct kk_chat_form *named(const char *family)
{
    for (int i = 0; i < N_FORMS; i++)
        if (!strcmp(family, forms[i].name)) return &forms[i];
    return NULL;
}

/* What `want` matches at s ends there; NULL if it does not match. A line end is itself, or the two
 * letters \n: so strings of Jinja spell it. */
static const char *match(const char *s, const char *want)
{
    for (; *want; want++) {
        int spelled = *want == '\n' && s[0] == '\\' && s[1] == 'n';
        if (!spelled && *s != *want) return NULL;
        s += spelled ? 2 : 1;
    }
    return s;
}

/* The opening of an answer is in the template, in one piece. */
static int opens_as(const char *template, const struct kk_chat_form *f)
{
    const char *at = template;
    while ((at = strstr(at, f->mark[TURN]))) {
        const char *s = match(at += strlen(f->mark[TURN]), f->model);
        if (s && f->header) s = match(s, f->mark[MORE]);
        if (s && match(s, f->after_role)) return 1;
    }
    return 0;
}

/* The form of the template (Jinja) that the model's file carries. It is not run: it is known by how
 * it opens an answer and ends a turn. */
static int carried(const char *template, const struct kk_chat_form **out, struct kk_err *err)
{
    char list[256], q[64];
    for (int i = 0; i < N_FORMS; i++)
        if (strstr(template, forms[i].mark[END]) && opens_as(template, &forms[i])) {
            *out = &forms[i];
            return 0;
        }
    list_forms(NULL, 1, list, sizeof list);
    return kk_fail(err, KK_EUNSUPPORTED, "the model's chat template is none of %s; it begins '%s'",
                   list, kk__quote(q, template, strcspn(template, "\n")));
}

static int choose(const struct kk_tok *t, const char *family, const struct kk_chat_form **out,
                  struct kk_err *err)
{
    char list[256];
    const struct kk_chat_form *f = named(family);
    int n = 0, rc = !f && t->chat_template ? carried(t->chat_template, &f, err) : 0;
    if (rc) return rc;
    for (int i = 0; !f && i < N_FORMS; i++) n += !lacks(t, &forms[i]);
    for (int i = 0; !f && n == 1; i++)
        if (!lacks(t, &forms[i])) f = &forms[i];
    list_forms(t, !n, list, sizeof list);
    if (!f && n)
        return kk_fail(err, KK_EUNSUPPORTED,
                       "the tokenizer has the markers of more than one chat template: choose one "
                       "of %s",
                       list);
    if (!f)
        return kk_fail(err, KK_EUNSUPPORTED,
                       "the tokenizer has no complete set of chat markers; looked for %s", list);
    const char *mark = lacks(t, f);
    if (mark)
        return kk_fail(err, KK_EUNSUPPORTED,
                       "the tokenizer has no marker %s, which the chat template %s needs", mark,
                       f->name);
    *out = f;
    return 0;
}

static void add_stop(struct kk_chat *c, uint32_t id)
{
    if (id != KK_TOK_NONE) c->stop[c->n_stop++] = id;
}

/* White space around a marker that is swallowed would be lost from what users say. */
static int check_marks(const struct kk_chat *c, struct kk_err *err)
{
    for (uint32_t k = 0; k < c->tok->n_added; k++) {
        const struct tok_added *a = &c->tok->added[k];
        for (int i = 0; i < KK_CHAT_MARKS; i++)
            if (c->mark[i] == a->id && (a->lstrip || a->rstrip))
                return kk_fail(err, KK_EUNSUPPORTED,
                               "the chat marker %s strips white space: not supported",
                               c->form->mark[i]);
    }
    return 0;
}

int kk_chat_init(struct kk_chat *c, const struct kk_tok *t, const char *family, struct kk_err *err)
{
    *c = (struct kk_chat){.tok = t};
    KK_BUG_ON(strcmp(family, "auto") && !named(family));
    int rc = choose(t, family, &c->form, err);
    if (rc) return rc;
    c->family = c->form->name;
    c->by_markers = !named(family) && !t->chat_template;
    for (int i = 0; i < KK_CHAT_MARKS; i++)
        c->mark[i] = c->form->mark[i] ? find_added(t, c->form->mark[i]) : KK_TOK_NONE;
    add_stop(c, c->mark[END]);
    for (int i = 0; i < KK_CHAT_STOPS && c->form->stops[i]; i++)
        add_stop(c, find_added(t, c->form->stops[i]));
    return check_marks(c, err);
}

int kk_chat_ends(const struct kk_chat *c, uint32_t id)
{
    for (int i = 0; i < c->n_stop; i++)
        if (c->stop[i] == id) return 1;
    return 0;
}

/* ---- white space, as Python's str.strip sees it ------------------------------------------- */

static int is_blank(const u8 *p, size_t n)
{
    uint32_t cp;
    if (kk__utf8_step(p, n) != (int)n) return 0;
    kk__utf8_get(p, &cp);
    return kk__is_space(cp) || (cp >= 0x1c && cp <= 0x1f);
}

/* Bytes of the blank that text [n] starts or ends with, or 0. */
static size_t blank_first(const u8 *s, size_t n)
{
    for (size_t k = 1; k <= 4 && k <= n; k++)
        if (is_blank(s, k)) return k;
    return 0;
}

static size_t blank_last(const u8 *s, size_t n)
{
    for (size_t k = 1; k <= 4 && k <= n; k++)
        if (is_blank(s + n - k, k)) return k;
    return 0;
}

static void trim(const char **s, size_t *n)
{
    size_t k;
    while ((k = blank_first((const u8 *)*s, *n)) != 0) {
        *s += k;
        *n -= k;
    }
    while ((k = blank_last((const u8 *)*s, *n)) != 0) *n -= k;
}

/* ---- the writer --------------------------------------------------------------------------- */

/* Text is collected up to the next marker and encoded as one piece, since merges cross the border
 * of a template's words and a user's. The first failure sticks. */
struct writer {
    const struct kk_chat *c;
    struct kk_buf text;
    struct kk_ids *out;
    struct kk_err *err;
    int rc;
};

static void put_text(struct writer *w, const char *s, size_t n)
{
    if (!w->rc) w->rc = kk__buf_err(kk_buf_append(&w->text, s, n), w->err);
}

static void put(struct writer *w, const char *s)
{
    put_text(w, s, strlen(s));
}

static void put_said(struct writer *w, const char *s, size_t n)
{
    if (w->c->form->trims) trim(&s, &n);
    put_text(w, s, n);
}

static void flush(struct writer *w)
{
    if (!w->rc && w->text.len)
        w->rc = kk__encode_part(w->c->tok, w->text.data, w->text.len, w->c->mark, KK_CHAT_MARKS,
                                w->out, w->err);
    kk_buf_reset(&w->text);
}

static void put_mark(struct writer *w, int which)
{
    flush(w);
    if (!w->rc && kk_ids_push(w->out, w->c->mark[which]))
        w->rc = kk_fail(w->err, KK_ENOMEM, "out of memory");
}

static void put_header(struct writer *w, const char *role)
{
    put_mark(w, TURN);
    put(w, role);
    if (w->c->form->header) put_mark(w, MORE);
    put(w, w->c->form->after_role);
}

static void put_end(struct writer *w)
{
    put_mark(w, END);
    put(w, w->c->form->after_turn);
}

static void put_answer_begin(struct writer *w)
{
    put_header(w, w->c->form->model);
    if (w->c->form->quiet) {
        put_mark(w, MORE);
        put(w, "thought\n");
        put_mark(w, LAST);
    }
    flush(w);
}

/* What comes before a user's turn. */
static void put_before(struct writer *w, const uint32_t *history, size_t n, const char *system)
{
    const struct kk_chat_form *f = w->c->form;
    if (n && history[n - 1] == w->c->mark[END]) {
        put(w, f->after_turn);
    } else if (n) {
        put_end(w);
    } else {
        if (f->mark[BOS]) put_mark(w, BOS);
        if (system && !f->folds) {
            put_header(w, "system");
            put_said(w, system, strlen(system));
            put_end(w);
        }
    }
}

int kk_chat_turn(const struct kk_chat *c, const uint32_t *history, size_t n, const char *system,
                 const char *text, size_t len, struct kk_ids *out, struct kk_err *err)
{
    struct writer w = {.c = c, .out = out, .err = err};
    size_t n_before = out->n;
    kk_buf_init(&w.text, KK_TOK_MAX_TEXT);
    put_before(&w, history, n, system);
    put_header(&w, "user");
    if (system && !n && c->form->folds) {
        put(&w, system);
        put(&w, "\n\n");
    }
    put_said(&w, text, len);
    put_end(&w);
    put_answer_begin(&w);
    if (w.rc) out->n = n_before;
    kk_buf_release(&w.text);
    return w.rc;
}
