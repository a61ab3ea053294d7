/* One step over several sessions: some read their history, some write tokens, with or without
 * drafts.
 *
 * A write feeds [pending, d1 .. dk], samples every row as plain decoding would, and keeps the
 * longest prefix of drafts that equals what was sampled: m tokens come out, m rows are committed,
 * the m-th token is pending. One verifier forward a block, never a second one for the correction.
 * What a session emits does not depend on who else is in the round (law 2). */
#include <string.h>

#include "base/clock.h"
#include "engine/engine_int.h"

int kk__is_eos(const struct kk_session *s, uint32_t id)
{
    const struct kk_model_info *i = kk_model_info(s->e->model);
    const uint32_t *eos = s->eos ? s->eos : i->eos;
    const int n = s->eos ? s->n_eos : i->n_eos;
    for (int k = 0; k < n; k++)
        if (eos[k] == id) return 1;
    return 0;
}

int kk__round_most_writes(const struct kk_engine *e)
{
    int most = e->kv_limits.max_seqs;
    if (e->kv_limits.max_hold_rows < most) most = e->kv_limits.max_hold_rows;
    return e->max_logit_rows < most ? e->max_logit_rows : most;
}

static int is_greedy(const struct kk_sampling *p)
{
    return p->temperature == 0 && p->repeat_penalty == 1.0f;
}

/* ---- what to draft ------------------------------------------------------------------------ */

/* Rows that turn t may take: what it allows, what the context has room for. */
static int most_rows(const struct kk_turn *t)
{
    const struct kk_session *s = t->s;
    int64_t most = t->most < KK_MAX_WIDTH ? t->most : KK_MAX_WIDTH;
    int64_t room = s->e->ctx - (int64_t)s->n;
    if (room < most) most = room;
    if (kk__session_rows_max(s->e) < most) most = kk__session_rows_max(s->e);
    return s->drafter && most > 1 ? (int)most : 1;
}

/* width[b] of every turn that writes; a step that reads too does not draft: its cost is the read's.
 */
static void choose_widths(struct kk_engine *e, const struct kk_turn *turn, int B)
{
    int reads = 0, rows = B, drafters = 0;
    for (int b = 0; b < B; b++) {
        reads += turn[b].read > 0;
        e->most[b] = turn[b].read ? 1 : most_rows(&turn[b]);
        e->width[b] = 1;
        drafters += e->most[b] > 1;
    }
    if (reads || !drafters) return;
    int extra = e->kv_limits.max_hold_rows < e->max_logit_rows ? e->kv_limits.max_hold_rows
                                                               : e->max_logit_rows;
    extra -= rows;
    if (B == 1) {
        struct kk_session *s = turn[0].s;
        const int late = s->drafting ? 0 : kk__behind(s);
        e->width[0] = kk_width_choose(&s->width, &e->costs, e->most[0], late);
        return;
    }
    for (int b = 0; b < B; b++) {
        const struct kk_width *w = &turn[b].s->width;
        e->accept[b] = kk_width_accept(w, &e->costs);
        if (w->pinned && w->pinned < e->most[b]) e->most[b] = w->pinned;
    }
    if (turn[0].s->width.pinned) { /* pinned for the engine: share what there is */
        for (int b = 0; b < B; b++)
            e->width[b] = 1 + (e->most[b] - 1 < extra / B ? e->most[b] - 1 : extra / B);
        return;
    }
    kk_allot(&e->row_costs, e->accept, e->most, B, extra, e->gain, e->width);
}

/* A drafter that rested takes in what it missed: seconds of that, or KK_E* in *rc. */
static double catch_up(struct kk_session *s, int *rc, struct kk_err *err)
{
    uint64_t t0 = kk_now_ns();
    const int rows = s->drafting ? 0 : kk__behind(s);
    if (!rows) return 0;
    *rc = s->drafter->ops->catch_up(s->drafter, err);
    double seconds = kk_seconds_since(t0);
    kk_take_in_note(&s->e->costs, rows, seconds, 1);
    return seconds;
}

/* Drafts of a turn whose rows begin at row `first` of the step, put past the end of its history:
 * not yet history. How many, or KK_E*. */
static int propose(struct kk_turn *t, int width, int first, double *caught_up, struct kk_err *err)
{
    struct kk_session *s = t->s;
    int rc = 0;
    if (width < 2) {
        s->drafting = 0;
        return 0;
    }
    *caught_up += catch_up(s, &rc, err);
    s->drafting = 1;
    if (rc) return rc;
    s->drafter->late = s->e->late + first + 1;
    return s->drafter->ops->propose(s->drafter, s->history, s->n, width - 1, s->history + s->n,
                                    err);
}

static int fill_items(struct kk_engine *e, struct kk_turn *turn, int B, double *caught_up,
                      struct kk_err *err)
{
    int first = 0;
    choose_widths(e, turn, B);
    for (int b = 0; b < B; first += e->items[b++].n) {
        struct kk_turn *t = &turn[b];
        t->tokens = t->drafted = t->accepted = t->stopped = t->rc = 0;
        if (t->read) {
            e->items[b] = (struct kk_step_item){.s = t->s, .n = t->read};
            continue;
        }
        int rc = kk__history_reserve(t->s, (size_t)e->width[b], err);
        int k = rc ? rc : propose(t, e->width[b], first, caught_up, err);
        if (k < 0) {
            e->failed_turn = b;
            return k;
        }
        t->drafted = k;
        const int want = is_greedy(t->p) ? KK_WANT_CHOICES : KK_WANT_LOGITS;
        e->items[b] = (struct kk_step_item){.s = t->s, .n = k + 1, .hold = 1, .want = want};
    }
    return 0;
}

/* ---- what came out ------------------------------------------------------------------------ */

/* The drafts that the device made as it went. */
static void fetch_drafts(struct kk_engine *e, const struct kk_turn *turn, int B)
{
    for (int b = 0, first = 0; b < B; first += e->items[b++].n) {
        uint32_t *draft = turn[b].s->history + turn[b].s->n;
        for (int i = 0; i < turn[b].drafted; i++)
            if (draft[i] == KK_LATE) draft[i] = (uint32_t)e->late[first + 1 + i];
    }
}

/* Make the choices of the open step, and where a turn samples its logits, ready for choose. */
static int fetch_choices(struct kk_engine *e, const struct kk_turn *turn, int B, float **logits,
                         struct kk_err *err)
{
    int rows = 0, greedy = 0, sampled = 0;
    for (int b = 0; b < B; b++) {
        if (turn[b].read) continue;
        rows += turn[b].drafted + 1;
        *(is_greedy(turn[b].p) ? &greedy : &sampled) += 1;
    }
    int rc = greedy ? kk_model_argmax(e->model, rows, e->choice, err) : 0;
    if (rc || !sampled) return rc;
    *logits = kk__step_logits(e, rows, err);
    return *logits ? 0 : KK_ENOMEM;
}

/* The token of row i of the step's logits, following history[n]. */
static uint32_t choose(struct kk_engine *e, float *logits, int i, const struct kk_turn *t, size_t n)
{
    int V = kk_model_info(e->model)->V;
    if (is_greedy(t->p)) return (uint32_t)e->choice[i];
    return kk__sample(t->p, logits + (size_t)i * (size_t)V, V, t->s->history, n, n, e->candidates);
}

/* Emit the tokens of a write whose logits start at row `first`; how many rows to keep. */
static int32_t accept(struct kk_engine *e, float *logits, struct kk_turn *t, int first)
{
    struct kk_session *s = t->s;
    for (int more = 1; more;) {
        uint32_t *at = &s->history[s->n + (size_t)t->tokens], draft = *at;
        uint32_t id = choose(e, logits, first + t->tokens, t, s->n + (size_t)t->tokens);
        more = t->tokens < t->drafted && id == draft;
        t->accepted += more;
        *at = id;
        t->tokens++;
        t->stopped = t->emit && t->emit(t, id);
        more = more && !t->stopped;
    }
    return t->tokens;
}

int kk__round(struct kk_engine *e, struct kk_turn *turn, int B, struct kk_err *err)
{
    uint64_t t0 = kk_now_ns();
    double caught_up = 0, seconds;
    int rows = 0, reads = 0, drafters = 0, written = 0, first = 0;
    float *logits = NULL;
    e->failed_turn = -1;
    int rc = fill_items(e, turn, B, &caught_up, err);
    if (rc) return rc;
    rc = kk__step(e, e->items, B, err);
    e->failed_turn = kk_kv_failed(e->pool);
    if (rc) return rc;
    fetch_drafts(e, turn, B);
    rc = fetch_choices(e, turn, B, &logits, err);
    if (rc) {
        kk_kv_abort(e->pool);
        return rc;
    }
    for (int b = 0; b < B; b++) {
        e->keep[b] = turn[b].read ? turn[b].read : accept(e, logits, &turn[b], written);
        written += turn[b].read ? 0 : turn[b].drafted + 1;
        rows += e->items[b].n;
        reads += turn[b].read > 0;
        drafters += turn[b].s->drafter != NULL;
    }
    kk_kv_commit(e->pool, e->keep);
    seconds = kk_seconds_since(t0) - caught_up;
    for (int b = 0; b < B; b++) {
        struct kk_turn *t = &turn[b];
        t->s->n += (size_t)t->tokens;
        t->rc = kk__settle(t->s, first, e->keep[b], &t->err);
        first += e->items[b].n;
        if (t->drafted && !t->stopped)
            kk_width_note(&t->s->width, &e->costs, t->drafted, t->tokens - 1);
    }
    if (reads || !drafters) return 0;
    if (B == 1)
        kk_cost_note(&e->costs, rows, seconds, turn[0].tokens);
    else
        kk_row_cost_note(&e->row_costs, rows, seconds);
    return 0;
}
