/* kakeya bench ppl: perplexity of a text, and the distance between two settings.
 *
 * As llama-perplexity does it: the ids of the text (with BOS in front, where the model wants one)
 * are cut into windows of --ctx ids, what is left over is not used; each window is a fresh session,
 * its first id becomes BOS (likewise), and the tokens of its second half are scored: perplexity is
 * exp of the mean of -log p.
 *
 * --against NAME=VALUE,..: a second engine with these options changed is the reference. Both read
 * the same windows; for each scored position KL(reference || this) in nats, and whether both would
 * choose the same token. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "base/mem.h"
#include "cli/common.h"
#include "cli/distribution.h"

enum { ROWS = 32 }; /* scored by the two engines in turn */

struct side {
    struct kk_engine *engine;
    struct kk_session *session;
    double nll, squares; /* sums over scored tokens */
    float *log_p;        /* [ROWS, V] of the rows of this turn */
    int32_t *choice;     /* [ROWS] */
};

struct ppl {
    struct kk_cli *cli;
    struct kk_ids ids;
    int window, V;
    int64_t windows, scored;
    struct side mine, base; /* base.engine NULL: nothing to compare with */
    struct kk_config changed;
    char *settings; /* --against, cut into words that `changed` borrows */
    float *kl;      /* [windows * scored in each] */
    int64_t same;
};

/* ---- what is read ---- */

static int read_text(struct ppl *p, struct kk_err *err)
{
    struct kk_buf text;
    if (!kk_config_text(&p->cli->cfg, KK_OPT_FILE))
        return kk_fail(err, KK_EUSAGE, "no text given: -f FILE");
    kk_buf_init(&text, KK_CLI_TEXT_MAX);
    int rc = kk_cli_text(p->cli, &text, err);
    if (!rc) rc = kk_cli_open_tok(p->cli, err);
    if (!rc && p->cli->info.bos >= 0) rc = kk_ids_push(&p->ids, (uint32_t)p->cli->info.bos);
    if (!rc) rc = kk_tok_encode(p->cli->tok, text.data, text.len, 0, &p->ids, err);
    kk_buf_release(&text);
    return rc;
}

/* "kv-type=f32,act=f32" over the options of the command line. */
static int change(struct ppl *p, const char *settings, struct kk_err *err)
{
    p->changed = p->cli->cfg;
    p->settings = kk_strdup(settings);
    if (!p->settings) return kk_fail(err, KK_ENOMEM, "out of memory for settings");
    for (char *at = p->settings, *end; at && *at; at = end) {
        end = strchr(at, ',');
        if (end) *end++ = 0;
        char *value = strchr(at, '=');
        if (!value || !value[1])
            return kk_fail(err, KK_EUSAGE, "--against: '%.64s' is not NAME=VALUE", at);
        *value++ = 0;
        int rc = kk_config_change(&p->changed, "bench ppl", at, value, err);
        if (rc) return rc;
    }
    return 0;
}

static int open_base(struct ppl *p, struct kk_err *err)
{
    const char *settings = kk_config_text(&p->cli->cfg, KK_OPT_AGAINST);
    struct kk_engine_options o;
    if (!settings) return 0;
    int rc = change(p, settings, err);
    if (rc) return rc;
    struct kk_cli other = {.cfg = p->changed};
    rc = kk_cli_options(&other, &o, err);
    o.progress_arg = p->cli;
    if (!rc) rc = kk_engine_open(&o, &p->base.engine, err);
    kk_progress_clear(&p->cli->progress);
    return rc ? kk_wrap(err, rc, "--against") : 0;
}

static int prepare_side(const struct ppl *p, struct side *s, struct kk_err *err)
{
    s->log_p = kk_array(ROWS, (size_t)p->V * sizeof *s->log_p);
    s->choice = kk_array(ROWS, sizeof *s->choice);
    return s->log_p && s->choice ? 0 : kk_fail(err, KK_ENOMEM, "out of memory for logits");
}

static int prepare(struct ppl *p, struct kk_err *err)
{
    const int64_t most = kk_config_int(&p->cli->cfg, KK_OPT_WINDOWS);
    p->V = p->cli->info.vocabulary;
    int rc = read_text(p, err);
    if (rc) return rc;
    p->windows = (int64_t)(p->ids.n / (size_t)p->window);
    if (p->windows < 1)
        return kk_fail(err, KK_ERANGE, "the text has %zu tokens, less than one window of %d",
                       p->ids.n, p->window);
    if (most && p->windows > most) p->windows = most;
    rc = prepare_side(p, &p->mine, err);
    if (rc || !kk_config_text(&p->cli->cfg, KK_OPT_AGAINST)) return rc;
    rc = open_base(p, err);
    if (!rc) rc = prepare_side(p, &p->base, err);
    p->kl = kk_array((size_t)(p->windows * p->window), sizeof *p->kl);
    if (!rc && !p->kl) rc = kk_fail(err, KK_ENOMEM, "out of memory for a report");
    return rc;
}

/* ---- a window ---- */

struct turn {
    const struct ppl *p;
    struct side *s;
    const uint32_t *next; /* the token after each row */
    int row;
};

static int on_row(void *arg, int64_t position, const float *logits)
{
    struct turn *t = arg;
    float *log_p = t->s->log_p + (int64_t)t->row * t->p->V;
    (void)position;
    kk_cli_log_softmax(logits, t->p->V, log_p);
    int32_t best = 0;
    for (int i = 1; i < t->p->V; i++)
        if (logits[i] > logits[best]) best = i;
    const double nll = -(double)log_p[t->next[t->row]];
    t->s->choice[t->row++] = best;
    t->s->nll += nll;
    t->s->squares += nll * nll;
    return 0;
}

/* Rows [at, at + n) of a window, by one engine */
static int score(const struct ppl *p, struct side *s, const uint32_t *ids, int at, int n,
                 struct kk_err *err)
{
    struct turn t = {.p = p, .s = s, .next = ids + at + 1};
    return kk_session_logits(s->session, ids + at, (size_t)n, on_row, &t, err);
}

static void compare(struct ppl *p, int n)
{
    for (int i = 0; i < n; i++) {
        const int64_t at = (int64_t)i * p->V;
        p->kl[p->scored + i] = (float)kk_cli_kl(p->base.log_p + at, p->mine.log_p + at, p->V);
        p->same += p->base.choice[i] == p->mine.choice[i];
    }
}

static int begin(struct side *s, const uint32_t *ids, int n, struct kk_err *err)
{
    if (!s->engine) return 0;
    int rc = kk_session_open(s->engine, &s->session, err);
    return rc ? rc : kk_session_append(s->session, ids, (size_t)n, err);
}

static void end(struct side *s)
{
    kk_session_close(s->session);
    s->session = NULL;
}

static int run_window(struct ppl *p, uint32_t *ids, struct kk_err *err)
{
    const int first = p->window / 2;
    if (p->cli->info.bos >= 0) ids[0] = (uint32_t)p->cli->info.bos;
    int rc = begin(&p->mine, ids, first, err);
    if (!rc) rc = begin(&p->base, ids, first, err);
    for (int at = first, n; !rc && at < p->window - 1; at += n) {
        n = p->window - 1 - at < ROWS ? p->window - 1 - at : ROWS;
        rc = score(p, &p->mine, ids, at, n, err);
        if (!rc && p->base.engine) rc = score(p, &p->base, ids, at, n, err);
        if (!rc && p->base.engine) compare(p, n);
        p->scored += n;
    }
    end(&p->mine);
    end(&p->base);
    return rc;
}

/* ---- the report ---- */

static double perplexity(const struct ppl *p, const struct side *s)
{
    return exp(s->nll / (double)p->scored);
}

/* Of the mean of -log p; times the perplexity, that of the perplexity. */
static double standard_error(const struct ppl *p, const struct side *s)
{
    const double n = (double)p->scored, mean = s->nll / n;
    return n > 1 ? sqrt(fmax(0, s->squares / n - mean * mean) / (n - 1)) : 0;
}

static int by_value(const void *a, const void *b)
{
    const float x = *(const float *)a, y = *(const float *)b;
    return (x > y) - (x < y);
}

static json_t *report_against(struct ppl *p)
{
    double sum = 0;
    if (!p->base.engine) return json_null();
    qsort(p->kl, (size_t)p->scored, sizeof *p->kl, by_value);
    for (int64_t i = 0; i < p->scored; i++) sum += (double)p->kl[i];
    return json_pack(
        "{ss sf sf sf sf sf}", "settings", kk_config_text(&p->cli->cfg, KK_OPT_AGAINST),
        "perplexity", perplexity(p, &p->base), "kl", sum / (double)p->scored, "kl_p99",
        (double)p->kl[(p->scored - 1) * 99 / 100], "kl_max", (double)p->kl[p->scored - 1],
        "same_choice", (double)p->same / (double)p->scored);
}

static void print(const struct ppl *p, json_t *report, double tok_s)
{
    const json_t *a = json_object_get(report, "against");
    const double ppl = perplexity(p, &p->mine);
    printf("perplexity %.4f +- %.4f: %lld windows of %d tokens, %lld scored; %.0f tok/s\n", ppl,
           ppl * standard_error(p, &p->mine), (long long)p->windows, p->window,
           (long long)p->scored, tok_s);
    if (json_is_null(a)) return;
    printf("against %s: perplexity %.4f; KL %.3g nats (99 %%: %.3g, most %.3g); the same choice "
           "in %.2f %%\n",
           json_string_value(json_object_get(a, "settings")), perplexity(p, &p->base),
           json_real_value(json_object_get(a, "kl")), json_real_value(json_object_get(a, "kl_p99")),
           json_real_value(json_object_get(a, "kl_max")),
           100 * json_real_value(json_object_get(a, "same_choice")));
}

static int report(struct ppl *p, double seconds, struct kk_err *err)
{
    const double tok_s = kk_cli_rate((double)(p->windows * p->window), seconds);
    json_t *r =
        json_pack("{sI si sI sI sf sf sf so}", "windows", (json_int_t)p->windows, "window_tokens",
                  p->window, "text_tokens", (json_int_t)p->ids.n, "scored", (json_int_t)p->scored,
                  "perplexity", perplexity(p, &p->mine), "nll", p->mine.nll / (double)p->scored,
                  "nll_stderr", standard_error(p, &p->mine), "against", report_against(p));
    json_object_set_new(r, "tok_s", json_real(tok_s));
    json_object_set_new(r, "act", json_string(kk_config_text(&p->cli->cfg, KK_OPT_ACT)));
    kk_cli_describe_run(p->cli, r);
    if (kk_cli_wants_text(p->cli)) print(p, r, tok_s);
    return kk_cli_report(p->cli, r, err);
}

static void release(struct ppl *p)
{
    struct side *sides[] = {&p->mine, &p->base};
    for (int i = 0; i < 2; i++) {
        end(sides[i]);
        kk_free(sides[i]->log_p);
        kk_free(sides[i]->choice);
    }
    kk_engine_close(p->base.engine); /* mine is cli's */
    kk_ids_release(&p->ids);
    kk_free(p->settings);
    kk_free(p->kl);
}

int kk_cli_bench_ppl(struct kk_cli *cli, struct kk_err *err)
{
    struct ppl p = {.cli = cli, .window = (int)kk_config_int(&cli->cfg, KK_OPT_WINDOW)};
    int rc = kk_cli_no_words(cli, err);
    if (!rc) rc = kk_cli_open_engine(cli, err);
    p.mine.engine = cli->engine;
    cli->reading_quiet = 1;
    if (!rc) rc = prepare(&p, err);
    const uint64_t t0 = kk_now_ns();
    for (int64_t i = 0; !rc && i < p.windows; i++) {
        kk_progress_show(&cli->progress, "windows", (uint64_t)i, (uint64_t)p.windows,
                         KK_PROGRESS_ITEMS);
        rc = run_window(&p, p.ids.id + i * p.window, err);
    }
    kk_progress_clear(&cli->progress);
    if (!rc) rc = report(&p, kk_seconds_since(t0), err);
    release(&p);
    return rc;
}
