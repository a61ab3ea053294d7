/* Calls on the runtime, whatever transport brought them: checked, timed, counted, and their errors
 * mapped to the statuses of gRPC and HTTP. Knows no sockets and no messages.
 *
 *     kk_rpc_begin(rpc, &c);                      c: storage of the transport
 *     rc = kk_rpc_start(&c, &request, &err);      0: events come, DONE last, exactly once
 *     kk_rpc_cancel(&c);  kk_rpc_resume(&c);      any thread, from begin on
 *     kk_rpc_end(&c);                             after start returned and DONE came */
#ifndef KK_SERVE_RPC_H
#define KK_SERVE_RPC_H

#include <pthread.h>
#include <stdint.h>

#include "base/buf.h"
#include "engine/runtime.h"

#define KK_LABEL_MAX    256 /* bytes of a session's label */
#define KK_EOS_IDS_MAX  64  /* end-of-sequence ids a session may bring */
#define KK_GRPC_UNKNOWN 2
#define KK_GRPC_CODES   17

/* The columns of KK_ERRORS; 0 and 200 for KK_OK. "NOT_FOUND" for 5; "UNKNOWN" for no status. */
int kk_grpc_status(int code);
int kk_http_status(int code);
const char *kk_grpc_status_name(int status);

struct kk_rpc;

/* model names it in metrics; rt (borrowed) outlives it. */
int kk_rpc_open(struct kk_runtime *rt, const char *model, struct kk_rpc **out, struct kk_err *err);
void kk_rpc_close(struct kk_rpc *rpc); /* after its calls ended; NULL is fine */

/* Whether the server wants work: what health checks answer. 1 from open on. */
void kk_rpc_set_ready(struct kk_rpc *rpc, int ready);
int kk_rpc_ready(const struct kk_rpc *rpc);

/* Private, but for the transport to embed. */
struct kk_rpc_call {
    struct kk_rpc *rpc;
    enum kk_request_kind kind;
    int (*sink)(void *arg, const struct kk_event *ev);
    void *arg;
    uint64_t start_ns, last_ns; /* of submission; of the latest token. Engine thread */
    size_t n_ids;
    pthread_mutex_t lock;
    struct kk_call *call;         /* NULL until submit returned */
    int want_cancel, want_resume; /* asked for before that */
};

void kk_rpc_begin(struct kk_rpc *rpc, struct kk_rpc_call *c);
/* Check r and submit it; its sink and arg get the events. On an error no event comes: KK_EINVAL,
 * KK_ENOENT, KK_EEXHAUSTED; KK_ECANCELLED if c was cancelled before. */
int kk_rpc_start(struct kk_rpc_call *c, const struct kk_request *r, struct kk_err *err);
void kk_rpc_cancel(struct kk_rpc_call *c);
void kk_rpc_resume(struct kk_rpc_call *c);
void kk_rpc_end(struct kk_rpc_call *c);

/* Close a session whose id nobody got: its creator left before the answer. Any thread but the
 * engine's. */
void kk_rpc_discard(struct kk_rpc *rpc, const char *session);

/* Count a call that ended before kk_rpc_start: it could not be read, or was not allowed. */
void kk_rpc_refused(struct kk_rpc *rpc, enum kk_request_kind kind, int grpc_status);

/* Append the counters as Prometheus text. 0, KK_ENOMEM, KK_ERANGE. */
int kk_rpc_metrics(const struct kk_rpc *rpc, struct kk_buf *out);

#endif
