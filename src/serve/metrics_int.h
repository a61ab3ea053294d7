/* Counters and histograms that any thread bumps without a lock, and their Prometheus text. */
#ifndef KK_SERVE_METRICS_INT_H
#define KK_SERVE_METRICS_INT_H

#include <stdatomic.h>
#include <stdint.h>

#include "base/buf.h"
#include "engine/runtime.h"
#include "serve/rpc.h"

enum { KK_BUCKETS_MAX = 24 };

/* A fixed scale of upper bounds, ascending. */
struct kk_scale {
    int n;
    double le[KK_BUCKETS_MAX];
};

struct kk_histogram {
    const struct kk_scale *scale;
    _Atomic uint64_t count[KK_BUCKETS_MAX + 1]; /* not cumulative; the last is +Inf */
    _Atomic uint64_t sum_millionths;
};

/* `times` observations of the same value. */
void kk_histogram_add(struct kk_histogram *h, double value, uint64_t times);

enum { KK_RPC_KINDS = KK_REQUEST_FORK + 1, KK_STOPS = KK_STOP_CTX + 1 };

struct kk_metrics {
    _Atomic uint64_t calls[KK_RPC_KINDS][KK_GRPC_CODES];
    _Atomic uint64_t stops[KK_STOPS];
    struct kk_histogram seconds[KK_RPC_KINDS];
    struct kk_histogram first_token, inter_token, generate, queued, prefill; /* seconds */
    struct kk_histogram prefill_tokens, history;
};

void kk_metrics_init(struct kk_metrics *m);

/* An event of call c, seen at now_ns. */
void kk_metrics_event(struct kk_metrics *m, struct kk_rpc_call *c, const struct kk_event *ev,
                      uint64_t now_ns);

int kk_metrics_text(const struct kk_metrics *m, const struct kk_runtime_stats *s, const char *model,
                    struct kk_buf *out);

#endif
