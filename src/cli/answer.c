#include "cli/answer.h"

#include <string.h>

#include "base/clock.h"

int kk_cli_answer(struct kk_engine *e, const struct kk_question *q, struct kk_answer *a,
                  struct kk_err *err)
{
    struct kk_session *s = NULL;
    struct kk_sampling greedy = kk_sampling_defaults();
    size_t n;
    a->n = 0;
    greedy.ignore_eos = q->ignore_eos;
    int rc = kk_session_open(e, &s, err);
    uint64_t t0 = kk_now_ns();
    if (!rc) rc = kk_session_append(s, q->prompt->id, q->prompt->n, err);
    a->prefill_s = kk_seconds_since(t0);
    if (!rc && q->known && q->known->n)
        rc = kk_session_replay(s, q->known->id, (size_t)q->known->n, q->mean, q->seed, err);
    if (!rc && q->width) rc = kk_session_pin_width(s, q->width, err);
    if (!rc) rc = kk_session_generate(s, &greedy, q->tokens, NULL, NULL, &a->made, err);
    if (!rc) rc = kk_session_check(s, err);
    if (!rc) {
        const uint32_t *ids = kk_session_history(s, &n);
        a->n = (int)(n - q->prompt->n);
        memcpy(a->id, ids + q->prompt->n, (size_t)a->n * sizeof *ids);
        kk_session_describe(s, &a->info);
    }
    kk_session_close(s);
    return rc;
}

int kk_cli_same_answer(const struct kk_answer *a, const struct kk_answer *b)
{
    return a->n == b->n && !memcmp(a->id, b->id, (size_t)a->n * sizeof *a->id);
}
