/* A journal under test: its callbacks are counted and can be waited for. */
#ifndef KK_JOURNAL_TEST_H
#define KK_JOURNAL_TEST_H

#include "kk_test.h"

#include <pthread.h>
#include <stdio.h>

#include "engine/journal.h"

struct probe {
    pthread_mutex_t lock;
    pthread_cond_t moved;
    int64_t durable, calls;
    int backwards, broken;
    char msg[512];
};

static inline void probe_durable(void *arg, int64_t seq)
{
    struct probe *p = arg;
    pthread_mutex_lock(&p->lock);
    p->backwards |= seq <= p->durable;
    p->durable = seq;
    p->calls++;
    pthread_cond_broadcast(&p->moved);
    pthread_mutex_unlock(&p->lock);
}

static inline void probe_broken(void *arg, const char *msg)
{
    struct probe *p = arg;
    pthread_mutex_lock(&p->lock);
    p->broken++;
    snprintf(p->msg, sizeof p->msg, "%s", msg);
    pthread_cond_broadcast(&p->moved);
    pthread_mutex_unlock(&p->lock);
}

static inline void probe_init(struct probe *p)
{
    memset(p, 0, sizeof *p);
    pthread_mutex_init(&p->lock, NULL);
    pthread_cond_init(&p->moved, NULL);
}

/* Until `seq` is durable, or writes have failed `broken` times; 1 if it is durable. */
static inline int probe_await(struct probe *p, int64_t seq, int broken)
{
    struct timespec t;
    clock_gettime(CLOCK_REALTIME, &t);
    t.tv_sec += 30;
    pthread_mutex_lock(&p->lock);
    int late = 0;
    while (p->durable < seq && (!broken || p->broken < broken) && !late)
        late = pthread_cond_timedwait(&p->moved, &p->lock, &t);
    int reached = p->durable >= seq;
    pthread_mutex_unlock(&p->lock);
    if (late) fail_msg("operation %lld is not durable after 30 s", (long long)seq);
    return reached;
}

static inline struct kk_journal_options journal_options(const char *dir, struct probe *p)
{
    return (struct kk_journal_options){.dir = dir,
                                       .model = "mini",
                                       .fingerprint = 0xfedcba9876543210u,
                                       .retry_ms = 5,
                                       .on_durable = probe_durable,
                                       .on_broken = probe_broken,
                                       .arg = p};
}

static inline struct kk_journal *journal_open(const struct kk_journal_options *o)
{
    struct kk_journal *j = NULL;
    struct kk_err err = {0};
    KK_ASSERT_OK(kk_journal_open(o, &j, &err), &err);
    return j;
}

static inline void journal_close(struct kk_journal *j)
{
    struct kk_err err = {0};
    KK_ASSERT_OK(kk_journal_close(j, &err), &err);
}

#endif
