/* Sessions of an engine, in tests where opening, reading and writing must go well. */
#ifndef KK_TEST_SESSIONS_H
#define KK_TEST_SESSIONS_H

#include "kk_test.h"

#include "base/mem.h"
#include "engine/engine_int.h"

static inline struct kk_session *open_session(struct kk_engine *e)
{
    struct kk_session *s = NULL;
    struct kk_err err = {0};
    KK_ASSERT_OK(kk_session_open(e, &s, &err), &err);
    return s;
}

static inline void append_ids(struct kk_session *s, const uint32_t *ids, size_t n)
{
    struct kk_err err = {0};
    KK_ASSERT_OK(kk_session_append(s, ids, n, &err), &err);
}

/* n ids below V. */
static inline void append_random(struct kk_session *s, struct kk_test_rng *r, int n, uint32_t V)
{
    uint32_t *ids = kk_array((size_t)n, sizeof *ids);
    assert_non_null(ids);
    for (int i = 0; i < n; i++) ids[i] = kk_test_below(r, V);
    append_ids(s, ids, (size_t)n);
    kk_free(ids);
}

/* What kk_session_generate's emit takes: arg is where the next id goes. */
static inline int keep_id(void *arg, uint32_t id)
{
    uint32_t **at = arg;
    *(*at)++ = id;
    return 0;
}

/* The next n tokens into out [n], sampled as p says. */
static inline void go_on_sampled(struct kk_session *s, const struct kk_sampling *p, int n,
                                 uint32_t *out)
{
    struct kk_generated g;
    struct kk_err err = {0};
    KK_ASSERT_OK(kk_session_generate(s, p, n, keep_id, &out, &g, &err), &err);
    assert_int_equal(g.tokens, n);
    KK_ASSERT_OK(kk_session_check(s, &err), &err);
}

/* The same, greedy, whether or not one ends a sequence. */
static inline void go_on(struct kk_session *s, int n, uint32_t *out)
{
    struct kk_sampling p = kk_sampling_defaults();
    p.ignore_eos = 1;
    go_on_sampled(s, &p, n, out);
}

#endif
