/* Private to the runtime: calls, residents, and what its thread owns.
 *
 *   runtime.c    the thread, the way in (submit) and out (events), a call's life
 *   residents.c  named sessions: found by id, admitted, journalled, forgotten
 *   paging.c     where their rows are: device, host memory, disk
 *   schedule.c   which sessions read and write in the next round
 *   prefix.c     prompts that begin alike are read once
 *
 * Everything here belongs to the runtime's thread, but for what is marked shared. */
#ifndef KK_ENGINE_RUNTIME_INT_H
#define KK_ENGINE_RUNTIME_INT_H

#include <pthread.h>
#include <stdatomic.h>

#include "engine/engine_int.h"
#include "engine/journal.h"
#include "engine/runtime.h"
#include "engine/spool.h"

enum { OUT_TOKENS = 256 }; /* tokens of a call that wait to be durable or to be taken */

/* ---- a call ------------------------------------------------------------------------------- */

struct kk_call {
    struct kk_runtime *rt;
    _Atomic int refs;      /* shared: the caller's and the runtime's */
    _Atomic int cancelled; /* shared */
    _Atomic int full;      /* shared: the sink takes nothing until resume */
    struct kk_request r;   /* ids owned; session and label point into text */
    char *text;            /* owned */
    struct resident *on;
    struct kk_call *next;                /* in the way in, or in line on its session */
    struct kk_call *out_prev, *out_next; /* among calls with something to deliver */
    int has_output, started, ending;
    uint64_t submitted_ns, started_ns, first_ns;
    int64_t base;         /* GENERATE: history when it began */
    int64_t left;         /* tokens still allowed */
    int stopping;         /* the token just emitted was the last */
    struct kk_event done; /* filled on the way; what DONE will say */
    char msg[sizeof((struct kk_err *)0)->msg];
    char id[KK_SESSION_ID_MAX];
    uint32_t out[OUT_TOKENS];
    int64_t out_seq[OUT_TOKENS]; /* journal number that makes each durable */
    int n_out;
    int64_t done_seq;
};

/* ---- a named session ---------------------------------------------------------------------- */

struct resident {
    char id[KK_SESSION_ID_MAX];
    char *label;
    struct kk_session *s;        /* NULL: paged out, or it has read nothing yet */
    struct kk_saved *parked;     /* of a paged-out session, in host memory; NULL: not there */
    struct kk_session_info info; /* as of its page-out */
    uint32_t *history;           /* of one that is paged out; NULL else */
    uint32_t *eos;
    int n_eos;
    struct kk_call *head, *tail; /* calls in line; head is running */
    struct resident *hash_next;
    struct resident *prev, *next; /* in `idle` (longest first) or in `active` (next turn first) */
    int is_active, in_round;
    uint64_t last_active_ns;
    uint64_t inv1;
    int64_t device_bytes; /* as last counted */
    int64_t checkpoint;   /* > 0: stop reading there, and keep the prefix */
    struct kk_journal_entry *entry;
    int64_t seq;                        /* its last operation in the journal */
    struct kk_snapshot *file, *writing; /* written, on the way; NULL: none */
    int reshaped;                       /* a fork has come to share what the file has as its own */
};

struct list {
    struct resident *first, *last;
    int n;
};

struct prefixes;   /* prefix.c */
struct stale_file; /* paging.c */
struct written;

struct kk_runtime {
    struct kk_engine *e;
    struct kk_runtime_options o;
    struct kk_engine_info engine_info;
    pthread_t thread;
    /* shared, under lock: the way in */
    pthread_mutex_t lock;
    pthread_cond_t more;
    struct kk_call *in_first, *in_last;
    int n_calls, refusing, stopping, poked;
    struct kk_runtime_stats published;
    struct written *written;
    uint64_t n_refused;
    _Atomic int state_broken; /* shared with the journal's thread */
    /* the thread's own */
    struct kk_runtime_stats stats;
    struct resident **bucket;
    size_t n_buckets;
    struct list active, idle;
    struct kk_call *out_first, *out_last;
    struct kk_turn *turn;
    int unread;                /* rounds in a row without a place for those that wait to read */
    struct kk_row_costs costs; /* of every round, by rows */
    struct prefixes *prefixes;
    int64_t device_bytes, parked_bytes; /* parked: of sessions' own rows in host memory */
    int64_t leaving_bytes; /* of them, those of the session that is being brought back */
    struct kk_journal *journal;
    struct kk_spool *spool;
    struct kk_kept *kept;
    struct stale_file *stale;
    uint64_t n_files, next_snapshots, next_relief;
};

/* runtime.c */
/* End a call: DONE with code and msg once its tokens are out. It leaves the line of its session. */
void kk__call_end(struct kk_call *c, int code, const char *fmt, ...)
    __attribute__((format(printf, 3, 4)));
void kk__call_has_output(struct kk_call *c);

/* residents.c */
struct resident *kk__resident_find(const struct kk_runtime *rt, const char *id);
int kk__resident_create(struct kk_runtime *rt, struct kk_call *c, struct kk_err *err);
int kk__resident_fork(struct kk_runtime *rt, struct resident *parent, struct kk_call *c,
                      struct kk_err *err);
void kk__resident_remove(struct kk_runtime *rt, struct resident *n);
void kk__resident_join(struct kk_runtime *rt, struct resident *n, struct kk_call *c);
void kk__resident_leave(struct kk_runtime *rt, struct kk_call *c); /* from its line */
void kk__list_append(struct list *l, struct resident *n);
void kk__list_remove(struct list *l, struct resident *n);

/* paging.c */
/* Rows back into device memory, if they are elsewhere, or were never there. */
int kk__resident_wake(struct kk_runtime *rt, struct resident *n, struct kk_err *err);
/* n->s has just been set: nothing of n is kept elsewhere. */
void kk__resident_adopt(struct kk_runtime *rt, struct resident *n);
/* Make room for `bytes` more device bytes by paging out idle and waiting sessions, with `preempt`
 * running ones too that are not in the round. KK_EBUSY: all that could move are running;
 * KK_EEXHAUSTED: there is nowhere to move them to. */
int kk__residents_make_room(struct kk_runtime *rt, int64_t bytes, int preempt, struct kk_err *err);
void kk__resident_count(struct kk_runtime *rt, struct resident *n);
void kk__resident_drop(struct kk_runtime *rt, struct resident *n); /* its rows, wherever they are */
void kk__resident_forget_files(struct kk_runtime *rt, struct resident *n);
void kk__paging_settle(struct kk_runtime *rt);
uint64_t kk__paging_idle(struct kk_runtime *rt); /* when to look again; 0: when something happens */
void kk__paging_finish(struct kk_runtime *rt);
/* What must be durable before all files that are of no use are gone. */
int64_t kk__paging_last(const struct kk_runtime *rt);
int kk__paging_open(struct kk_runtime *rt, struct kk_err *err);
void kk__paging_close(struct kk_runtime *rt);

/* residents.c, continued */
void kk__resident_info(const struct kk_runtime *rt, const struct resident *n, struct kk_event *ev);
/* Put what the journal does not have of n's history into its queue. */
int kk__resident_journal(struct kk_runtime *rt, struct resident *n, struct kk_err *err);
uint64_t kk__residents_expire(struct kk_runtime *rt); /* when to look again; 0: never */
int kk__residents_restore(struct kk_runtime *rt, struct kk_err *err);
void kk__residents_release(struct kk_runtime *rt);

/* schedule.c: one round; 0 if there was nothing to do. */
int kk__schedule(struct kk_runtime *rt);
/* A call that has begun fails: what it committed stays, and goes to the journal. */
void kk__call_cut(struct kk_runtime *rt, struct kk_call *c);

/* prefix.c */
int kk__prefixes_open(struct kk_runtime *rt, struct kk_err *err);
void kk__prefixes_close(struct kk_runtime *rt);
/* For a session that will read ids [n] and has nothing of them: a fork of the longest known prefix,
 * or NULL; sets n->checkpoint where another known prompt parts from this one. */
struct kk_session *kk__prefix_begin(struct kk_runtime *rt, struct resident *n, const uint32_t *ids,
                                    size_t len);
/* The same for one that has never read: it becomes that fork. */
void kk__prefix_take(struct kk_runtime *rt, struct resident *n, const uint32_t *ids, size_t len);
/* The rows of n end where a prompt may go on in many ways: keep them for others. */
void kk__prefix_keep(struct kk_runtime *rt, struct resident *n);
int kk__prefix_drop_oldest(struct kk_runtime *rt); /* 0: none is left */

#endif
