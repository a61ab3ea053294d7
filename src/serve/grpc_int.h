/* gRPC's C core, inside src/serve only: the server and its calls.
 *
 * Threads. Pollers wait on one completion queue and run the tag of each operation that ended. The
 * engine's thread only puts events into a call's queue and the call into the outbox; the writer
 * takes it from there to the core, so that the engine never writes to a socket. At most one send of
 * a call is under way; whoever ends it starts the next.
 *
 * A call lives until its last reference is gone: one for the core's word that it is over, one for
 * each operation under way, one while the runtime has it, one while it is in the outbox. */
#ifndef KK_SERVE_GRPC_INT_H
#define KK_SERVE_GRPC_INT_H

#include <grpc/grpc.h>
#include <pthread.h>
#include <stdatomic.h>

#include "serve/auth_int.h"
#include "serve/serve.h"
#include "serve/wire_int.h"

enum {
    POLLERS = 2,
    SLOTS = 64,        /* calls that can arrive before one is looked at */
    CALLS_MAX = 16384, /* calls at a time, waiting for their request included */
    QUEUE = 1024,      /* tokens that wait to be sent before the call leaves the batch */
    EVENT_MAX = 256    /* tokens of one event */
};

#if defined(__SANITIZE_THREAD__)
void __tsan_release(void *p);
void __tsan_acquire(void *p);
#define KK_HAND_OVER(tag) __tsan_release(tag)
#define KK_TAKE_OVER(tag) __tsan_acquire(tag)
#else
#define KK_HAND_OVER(tag) ((void)(tag))
#define KK_TAKE_OVER(tag) ((void)(tag))
#endif

/* What the completion queue gives back: fn(arg, whether it went well). */
struct kk_tag {
    void (*fn)(void *arg, int ok);
    void *arg;
};

/* The answer that ends a call. */
struct kk_final {
    int status; /* gRPC's */
    char msg[256], session[KK_SESSION_ID_MAX];
    struct kk_event ev; /* status 0 */
};

struct kk_grpc_call {
    struct kk_server *server;
    struct kk_grpc_call *prev, *next; /* of the live ones */
    struct kk_grpc_call *out;         /* next in the outbox */
    atomic_int refs;
    uint64_t arrived_ns;
    int health; /* 0 no, 1 Check, 2 Watch */
    enum kk_request_kind kind;

    grpc_call *call;
    grpc_call_details details;
    grpc_metadata_array metadata;
    grpc_byte_buffer *request;
    grpc_slice status_text;
    int over_cancelled;     /* the core's word */
    atomic_int has_request; /* it came, or was given up */
    struct kk_tag on_new, on_over, on_request, on_sent;

    struct kk_rpc_call rpc;

    pthread_mutex_t lock; /* what follows */
    int cancelled;        /* nobody reads any more */
    int sending, finished, in_outbox;
    int begun;     /* initial metadata was sent */
    int full;      /* the runtime waits for a resume */
    uint32_t *ids; /* ring of tokens to send [cap] */
    size_t cap, head, n;
    int truncated, watch; /* to send before the tokens; watch: a status */
    uint64_t dropped;
    int done;
    struct kk_final final;
};

struct kk_server {
    struct kk_rpc *rpc;
    struct kk_auth auth;
    uint64_t request_ns;
    void (*log)(const char *line);
    grpc_server *server;
    grpc_completion_queue *cq;
    int port;
    pthread_t pollers[POLLERS], writer;
    int n_pollers, has_writer;
    struct kk_tag on_shut;

    pthread_mutex_t lock; /* what follows; taken before a call's, never after */
    pthread_cond_t work, change;
    struct kk_grpc_call *live, *outbox, **outbox_end;
    int n_live, draining, shut, stop;
};

/* ---- grpc_call.c --------------------------------------------------------------------------- */

/* Ask the core for one more call. KK_ENOMEM. */
int kk_grpc_call_request(struct kk_server *s);
/* Send what is due, if nothing is being sent. */
void kk_grpc_call_pump(struct kk_grpc_call *c);
void kk_grpc_call_unref(struct kk_grpc_call *c);
/* End a Watch, its client hears NOT_SERVING first. 1: c goes into the outbox, with a reference. */
int kk_grpc_call_end_watch(struct kk_grpc_call *c);

/* ---- grpc.c -------------------------------------------------------------------------------- */

/* Count c among the live ones; 0 when there are too many. */
int kk_server_enter(struct kk_server *s, struct kk_grpc_call *c);
void kk_server_leave(struct kk_server *s, struct kk_grpc_call *c);
/* Put c into the outbox; takes a reference that the caller made. */
void kk_server_post(struct kk_server *s, struct kk_grpc_call *c);

#endif
