/* The runtime: one thread that owns an engine and its sessions. Any thread may ask; nobody else
 * calls the engine.
 *
 * Owns: named sessions, the queue of requests, continuous batching, admission, idle sessions.
 * Refuses to know: transports and their messages.
 *
 *     kk_runtime_open(engine, &o, &rt, err);            the runtime owns the engine from here
 *     kk_runtime_submit(rt, &request, &call, err);      from any thread; events come back
 *     kk_runtime_cancel(call);  kk_call_release(call);
 *     kk_runtime_close(rt);                             cancels what runs, stops the thread
 *
 * A call's life: submit gives one reference to a kk_call; its events are delivered in order by the
 * engine thread, the last one is KK_EVENT_DONE, exactly once, cancelled and failed calls included;
 * after DONE the sink is never called again. A sink must not block and must not call the runtime
 * except kk_runtime_cancel, kk_runtime_resume and kk_call_release.
 *
 * Order: calls on one session run one at a time in the order of submission (a second call on a busy
 * session waits in line). Calls on different sessions run together, a step at a time.
 *
 * Back-pressure: a sink that cannot take more returns KK_SINK_FULL (that event was taken); its call
 * then leaves the batch until kk_runtime_resume. Others are not held up. */
#ifndef KK_ENGINE_RUNTIME_H
#define KK_ENGINE_RUNTIME_H

#include <stddef.h>
#include <stdint.h>

#include "base/err.h"
#include "kakeya.h"

#define KK_SESSION_ID_MAX 40 /* "sess-" + 32 hex digits + NUL, and some room */

struct kk_event;

struct kk_runtime_options {
    int capacity;      /* most sessions, resident or paged out; 0: as many as bytes allow */
    int max_calls;     /* most calls queued or running; over it submit is KK_EEXHAUSTED */
    double idle_ttl_s; /* a session idle for so long is closed; 0: never */
    int evict_idle;    /* at capacity the longest idle session may be closed for a new one */
    int step_rows;     /* token budget of one step, shared by prefill and decode */
    int64_t kv_bytes;  /* device bytes of all sessions; 0: no limit but the machine's */
    int64_t kv_host;   /* host bytes of idle sessions' rows; 0: none are kept there, < 0: no cap.
                        * One that comes back and one that makes way may both be there a moment */
    int64_t kv_disk;   /* bytes of snapshots under `state`; 0: no limit */
    const char *state; /* directory of journal and snapshots; NULL: nothing survives the process */
    int journal_full;  /* synchronous=FULL in place of NORMAL */
};
struct kk_runtime_options kk_runtime_defaults(void);

enum kk_request_kind {
    KK_REQUEST_CREATE,
    KK_REQUEST_APPEND,
    KK_REQUEST_GENERATE,
    KK_REQUEST_INFO,
    KK_REQUEST_CLOSE,
    KK_REQUEST_FORK
};

/* What is asked. All pointers are borrowed for the length of submit: it copies. */
struct kk_request {
    enum kk_request_kind kind;
    const char *session; /* id; all but CREATE */
    const char *label;   /* CREATE, FORK: for people; may be NULL */
    const uint32_t
        *ids; /* CREATE: end-of-sequence ids of its own, n 0: the model's; APPEND: tokens */
    size_t n;
    struct kk_sampling sampling; /* GENERATE */
    int seed_unset;              /* GENERATE: draw a seed and report it */
    int64_t max_tokens;          /* GENERATE, >= 1 */
    uint64_t deadline_ns;        /* of kk_now_ns; 0: none. Passed: DONE with KK_ETIMEOUT */
    int (*sink)(void *arg, const struct kk_event *ev);
    void *arg;
};

enum { KK_SINK_OK = 0, KK_SINK_FULL = 1 };

enum kk_event_kind { KK_EVENT_TOKENS, KK_EVENT_TRUNCATED, KK_EVENT_DONE };

/* Borrowed for the length of the sink's call. */
struct kk_event {
    enum kk_event_kind kind;
    const uint32_t *ids; /* TOKENS: emitted together (a fused step emits several) */
    size_t n;
    uint64_t dropped; /* TRUNCATED: positions no layer sees any more; at most once, first */
    int code;         /* DONE: 0 or KK_E*; msg then says why */
    const char *msg;
    const char *session;   /* DONE of CREATE and FORK: the id */
    uint64_t history;      /* DONE: tokens of the session's history */
    enum kk_stop stop;     /* DONE of GENERATE with code 0 */
    int64_t tokens, steps; /* DONE of GENERATE: emitted, also when cancelled; verifier forwards */
    int64_t drafted, accepted;
    uint64_t seed;                       /* DONE of GENERATE: the one used */
    double queued_s, prefill_s, total_s; /* DONE: waiting; up to the first token or the last row */
    struct kk_session_info info;         /* DONE of INFO */
    double idle_s;
    uint64_t inv1_violations, inv2_violations; /* DONE of INFO */
};

struct kk_runtime;
struct kk_call;

/* Takes the engine (closed by kk_runtime_close, and on failure left to the caller) and starts the
 * thread. KK_EEXHAUSTED if `state` is in use by another process. */
int kk_runtime_open(struct kk_engine *e, const struct kk_runtime_options *o,
                    struct kk_runtime **out, struct kk_err *err);

/* Refuse new calls, let running ones finish for at most `seconds`, cancel the rest, write what is
 * to be kept, and stop the thread. NULL is fine. */
void kk_runtime_drain(struct kk_runtime *rt, double seconds);
void kk_runtime_close(struct kk_runtime *rt);

/* Any thread. What can be checked without the engine is checked here (KK_EINVAL, KK_EEXHAUSTED),
 * and then no event comes; else every answer, KK_ENOENT for an unknown session too, is an event. */
int kk_runtime_submit(struct kk_runtime *rt, const struct kk_request *r, struct kk_call **call,
                      struct kk_err *err);
/* Stop a call at the next step: DONE with KK_ECANCELLED; what it committed stays. Any thread. */
void kk_runtime_cancel(struct kk_call *call);
/* The sink of this call takes events again. Any thread. */
void kk_runtime_resume(struct kk_call *call);
void kk_call_release(struct kk_call *call); /* gives the reference of submit back; any time */

/* Counters, read by any thread at any time (metrics, load programs): those of the end of a turn of
 * the engine's thread. A call may have its answer within a turn that is not counted yet; a call
 * made after that answer is taken in a later one. */
struct kk_runtime_stats {
    uint64_t sessions, sessions_resident, sessions_host;
    uint64_t sessions_elsewhere; /* rows in a file, or none but the history */
    uint64_t created, closed, expired, evicted, failed, forked, resumed;
    uint64_t snapshots_lost, snapshots_failed; /* files: not usable; not written */
    uint64_t calls_running, calls_queued, calls_cancelled, calls_refused;
    uint64_t steps, rows, tokens_generated, tokens_appended, prefix_hits, prefix_hit_tokens;
    uint64_t drafted, accepted;
    uint64_t inv1_violations, inv2_violations;
    int state_broken; /* the journal cannot be written: no token is sent until it can */
    int64_t kv_device_bytes, drafter_device_bytes, kv_staging_bytes, kv_host_bytes, kv_disk_bytes;
    int64_t weight_bytes;
    double step_seconds; /* summed */
};
void kk_runtime_stats(const struct kk_runtime *rt, struct kk_runtime_stats *out);

/* The engine's description, taken once at open. */
const struct kk_engine_info *kk_runtime_engine_info(const struct kk_runtime *rt);

#endif
