/* Making tokens: plain steps over several sessions, and the fused loop of one session with a
 * drafter.
 *
 * A fused step feeds [pending, d1 .. dk], samples every row as plain decoding would, and keeps the
 * longest prefix of drafts that equals what was sampled: m tokens come out, m rows are committed,
 * the m-th token is pending. One verifier forward a block, never a second one for the correction.
 */
#include <string.h>

#include "base/clock.h"
#include "engine/engine_int.h"

static int is_eos(const struct kk_engine *e, uint32_t id)
{
    const struct kk_model_info *i = kk_model_info(e->model);
    for (int k = 0; k < i->n_eos; k++)
        if (i->eos[k] == id) return 1;
    return 0;
}

static int is_greedy(const struct kk_sampling *p)
{
    return p->temperature == 0 && p->repeat_penalty == 1.0f;
}

/* Make the logits of n rows of the open step ready for choose_row. */
static int fetch_choices(struct kk_engine *e, int n, const struct kk_sampling *p,
                         struct kk_err *err)
{
    if (is_greedy(p)) return kk_model_argmax(e->model, n, e->choice, err);
    size_t bytes = (size_t)n * (size_t)kk_model_info(e->model)->V * sizeof(float);
    e->dev->ops->download(e->dev, e->logits, kk_model_logits(e->model), bytes);
    return 0;
}

/* The token of logits row i, following history[n]. */
static uint32_t choose_row(struct kk_engine *e, int i, const struct kk_sampling *p,
                           const uint32_t *history, size_t n)
{
    int V = kk_model_info(e->model)->V;
    if (is_greedy(p)) return (uint32_t)e->choice[i];
    return kk__sample(p, e->logits + (size_t)i * (size_t)V, V, history, n, n, e->candidates);
}

/* ---- several sessions, one token each ----------------------------------------------------- */

static int step_sessions(struct kk_engine *e, struct kk_session *const *s, int n,
                         const struct kk_sampling *p, uint32_t *ids, struct kk_err *err)
{
    int rc = 0;
    for (int i = 0; !rc && i < n; i++) {
        e->items[i] = (struct kk_step_item){s[i], 1};
        rc = kk__history_reserve(s[i], 1, err);
    }
    if (!rc) rc = kk__step(e, KK_STEP_HOLD, e->items, n, KK_WANT_LAST, err);
    if (rc) return rc;
    rc = fetch_choices(e, n, p, err);
    if (rc) {
        kk_kv_abort(e->pool);
        return rc;
    }
    kk_kv_commit(e->pool, NULL);
    for (int i = 0; i < n; i++) {
        ids[i] = choose_row(e, i, p, s[i]->history, s[i]->n);
        s[i]->history[s[i]->n++] = ids[i];
    }
    for (int i = 0; !rc && i < n; i++) rc = kk__settle(s[i], i, 1, err);
    return rc;
}

int kk_sessions_step(struct kk_session *const *s, int n, const struct kk_sampling *p, uint32_t *ids,
                     struct kk_err *err)
{
    if (n < 1) return kk_fail(err, KK_EINVAL, "a step of %d sessions", n);
    struct kk_engine *e = s[0]->e;
    int rc = kk__sampling_check(p, err);
    if (!rc && n > e->kv_limits.max_seqs)
        rc = kk_fail(err, KK_EINVAL, "a step of %d sessions: at most %d", n, e->kv_limits.max_seqs);
    for (int i = 0; !rc && i < n; i++) {
        rc = kk__step_allowed(s[i], err);
        for (int j = 0; !rc && j < i; j++)
            if (s[i] == s[j]) rc = kk_fail(err, KK_EINVAL, "a session is twice in one step");
    }
    return rc ? rc : step_sessions(e, s, n, p, ids, err);
}

/* ---- the fused loop ----------------------------------------------------------------------- */

struct generation {
    struct kk_session *s;
    const struct kk_sampling *p;
    kk_token_cb *on_token;
    void *arg;
    int64_t left; /* tokens still allowed */
    uint64_t t0;
    struct kk_generated out;
    int stopped;
};

/* Drafts for the next step into d; how many, or KK_E*. A step emits at most one token more. */
static int draft(struct generation *g, uint32_t *d, struct kk_err *err)
{
    struct kk_session *s = g->s;
    int64_t most = g->left < KK_MAX_WIDTH ? g->left : KK_MAX_WIDTH;
    int64_t room = s->e->ctx - (int64_t)s->n;
    if (room < most) most = room;
    if (s->e->ftheta && s->e->options.kv_window < most) most = s->e->options.kv_window;
    if (!s->drafter || most < 2) return 0;
    int width = kk_width_choose(&s->width, &s->e->costs, (int)most);
    if (width < 2) return 0;
    return s->drafter->ops->propose(s->drafter, s->history, s->n, width - 1, d, err);
}

/* Hand a token out; 1 if it was the last. */
static int emit(struct generation *g, uint32_t id)
{
    if (!g->out.tokens++) g->out.first_s = kk_seconds_since(g->t0);
    g->left--;
    int stop = g->on_token && g->on_token(g->arg, id);
    if (is_eos(g->s->e, id) && !g->p->ignore_eos) {
        g->out.stop = KK_STOP_EOS;
        return 1;
    }
    if (stop) {
        g->out.stop = KK_STOP_CALLER;
        return 1;
    }
    return g->left == 0;
}

/* One verifier forward over the pending token and k drafts. */
static int fused_step(struct generation *g, const uint32_t *d, int k, struct kk_err *err)
{
    struct kk_session *s = g->s;
    struct kk_engine *e = s->e;
    struct kk_step_item item = {s, k + 1};
    int32_t m = 0;
    int rc = kk__history_reserve(s, (size_t)k + 1, err);
    if (rc) return rc;
    memcpy(s->history + s->n, d, (size_t)k * sizeof *d); /* past its end: not yet history */
    rc = kk__step(e, KK_STEP_HOLD, &item, 1, KK_WANT_ALL, err);
    if (rc) return rc;
    rc = fetch_choices(e, k + 1, g->p, err);
    if (rc) {
        kk_kv_abort(e->pool);
        return rc;
    }
    for (int more = 1; more && !g->stopped; m++) {
        uint32_t id = choose_row(e, m, g->p, s->history, s->n + (size_t)m);
        more = m < k && id == d[m];
        g->out.accepted += more;
        s->history[s->n + (size_t)m] = id;
        g->stopped = emit(g, id);
    }
    kk_kv_commit(e->pool, &m);
    s->n += (size_t)m;
    g->out.steps++;
    g->out.drafted += k;
    if (!g->stopped) kk_width_note(&s->width, &e->costs, k, m - 1);
    return kk__settle(s, 0, m, err);
}

static int generate(struct generation *g, struct kk_err *err)
{
    struct kk_session *s = g->s;
    while (!g->stopped) {
        uint32_t d[KK_MAX_WIDTH];
        if ((int64_t)s->n >= s->e->ctx) {
            g->out.stop = KK_STOP_CTX;
            return 0;
        }
        uint64_t t = kk_now_ns();
        int k = draft(g, d, err);
        int rc = k < 0 ? k : fused_step(g, d, k, err);
        if (rc) return rc;
        if (s->drafter) kk_cost_note(&s->e->costs, k + 1, kk_seconds_since(t));
    }
    return 0;
}

int kk_session_generate(struct kk_session *s, const struct kk_sampling *p, int64_t max_tokens,
                        kk_token_cb *on_token, void *arg, struct kk_generated *out,
                        struct kk_err *err)
{
    struct generation g = {
        .s = s, .p = p, .on_token = on_token, .arg = arg, .left = max_tokens, .t0 = kk_now_ns()};
    int rc = kk__sampling_check(p, err);
    if (!rc && max_tokens < 1) rc = kk_fail(err, KK_EINVAL, "max tokens must be at least 1");
    if (!rc) rc = kk__step_allowed(s, err);
    if (rc) return rc;
    rc = generate(&g, err);
    g.out.seconds = kk_seconds_since(g.t0);
    if (out) *out = g.out;
    return rc;
}
