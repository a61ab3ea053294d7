/* Calls of a runtime, each waited for: a test that asks one thing after another. */
#ifndef KK_TEST_CALLS_H
#define KK_TEST_CALLS_H

#include "kk_test.h"

#include <pthread.h>
#include <stdio.h>

#include "engine/engine_int.h"
#include "engine/runtime.h"

enum { CALL_TOKENS = 64 };

struct call {
    pthread_mutex_t lock;
    pthread_cond_t changed;
    uint32_t ids[CALL_TOKENS];
    int n, done;
    struct kk_event end;
    char id[KK_SESSION_ID_MAX], msg[512];
};

static inline int call_sink(void *arg, const struct kk_event *ev)
{
    struct call *c = arg;
    pthread_mutex_lock(&c->lock);
    for (size_t i = 0; ev->kind == KK_EVENT_TOKENS && i < ev->n && c->n < CALL_TOKENS; i++)
        c->ids[c->n++] = ev->ids[i];
    if (ev->kind == KK_EVENT_DONE) {
        c->end = *ev;
        if (ev->session) snprintf(c->id, sizeof c->id, "%s", ev->session);
        snprintf(c->msg, sizeof c->msg, "%s", ev->msg);
        c->done = 1;
        pthread_cond_signal(&c->changed);
    }
    pthread_mutex_unlock(&c->lock);
    return KK_SINK_OK;
}

/* The code of the answer. */
static inline int call(struct kk_runtime *rt, struct kk_request r, struct call *c)
{
    struct kk_call *k;
    struct kk_err err = {0};
    memset(c, 0, sizeof *c);
    pthread_mutex_init(&c->lock, NULL);
    pthread_cond_init(&c->changed, NULL);
    r.sink = call_sink;
    r.arg = c;
    int rc = kk_runtime_submit(rt, &r, &k, &err);
    if (rc) {
        snprintf(c->msg, sizeof c->msg, "%s", err.msg);
        return rc;
    }
    pthread_mutex_lock(&c->lock);
    while (!c->done) pthread_cond_wait(&c->changed, &c->lock);
    pthread_mutex_unlock(&c->lock);
    kk_call_release(k);
    return c->end.code;
}

static inline struct kk_request call_generate(const char *id, int n)
{
    struct kk_request r = {.kind = KK_REQUEST_GENERATE,
                           .session = id,
                           .sampling = kk_sampling_defaults(),
                           .max_tokens = n};
    r.sampling.ignore_eos = 1;
    return r;
}

static inline int call_append(struct kk_runtime *rt, const char *id, const uint32_t *ids, size_t n,
                              struct call *c)
{
    return call(
        rt, (struct kk_request){.kind = KK_REQUEST_APPEND, .session = id, .ids = ids, .n = n}, c);
}

/* As of a turn after all calls so far. */
static inline struct kk_runtime_stats call_stats(struct kk_runtime *rt, const char *id)
{
    struct kk_runtime_stats st;
    struct call c;
    for (int i = 0; i < 2; i++)
        call(rt, (struct kk_request){.kind = KK_REQUEST_INFO, .session = id}, &c);
    kk_runtime_stats(rt, &st);
    return st;
}

#endif
