/* Making tokens: one session until it stops, or several a token each. */
#include "base/clock.h"
#include "engine/engine_int.h"

/* ---- several sessions, one token each ----------------------------------------------------- */

static int note_id(struct kk_turn *t, uint32_t id)
{
    *(uint32_t *)t->arg = id;
    return 1;
}

int kk_sessions_step(struct kk_session *const *s, int n, const struct kk_sampling *p, uint32_t *ids,
                     struct kk_err *err)
{
    if (n < 1) return kk_fail(err, KK_EINVAL, "a step of %d sessions", n);
    struct kk_engine *e = s[0]->e;
    int rc = kk__sampling_check(p, err);
    if (!rc && n > kk__round_most_writes(e))
        rc = kk_fail(err, KK_EINVAL, "a step of %d sessions: at most %d", n,
                     kk__round_most_writes(e));
    for (int i = 0; !rc && i < n; i++) {
        rc = kk__step_allowed(s[i], err);
        for (int j = 0; !rc && j < i; j++)
            if (s[i] == s[j]) rc = kk_fail(err, KK_EINVAL, "a session is twice in one step");
        e->turns[i] =
            (struct kk_turn){.s = s[i], .p = p, .most = 1, .emit = note_id, .arg = &ids[i]};
    }
    if (!rc) rc = kk__round(e, e->turns, n, err);
    for (int i = 0; !rc && i < n; i++)
        if (e->turns[i].rc) rc = kk_fail(err, e->turns[i].rc, "%s", e->turns[i].err.msg);
    return rc;
}

/* ---- one session until it stops ----------------------------------------------------------- */

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

/* Hand a token out; 1 if it was the last. */
static int emit(struct kk_turn *t, uint32_t id)
{
    struct generation *g = t->arg;
    if (!g->out.tokens++) g->out.first_s = kk_seconds_since(g->t0);
    g->left--;
    int stop = g->on_token && g->on_token(g->arg, id);
    if (kk__is_eos(g->s, id) && !g->p->ignore_eos)
        g->out.stop = KK_STOP_EOS;
    else if (stop)
        g->out.stop = KK_STOP_CALLER;
    else if (g->left)
        return 0;
    return g->stopped = 1;
}

static int generate(struct generation *g, struct kk_err *err)
{
    while (!g->stopped) {
        struct kk_turn t = {.s = g->s, .p = g->p, .emit = emit, .arg = g};
        if ((int64_t)g->s->n >= g->s->e->ctx) {
            g->out.stop = KK_STOP_CTX;
            return 0;
        }
        t.most = g->left < KK_MAX_WIDTH ? (int)g->left : KK_MAX_WIDTH;
        int rc = kk__round(g->s->e, &t, 1, err);
        if (rc) return rc;
        g->out.steps++;
        g->out.drafted += t.drafted;
        g->out.accepted += t.accepted;
        if (t.rc) return kk_fail(err, t.rc, "%s", t.err.msg);
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
