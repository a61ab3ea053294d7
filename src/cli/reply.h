/* One continuation of a session, written to standard output while it is made.
 *
 *     struct kk_reply r;
 *     rc = kk_reply_init(&r, cli, &err);                  options of sampling; draws an unset seed
 *     rc = kk_reply_make(&r, session, &ids, &err);        again and again
 *     kk_reply_release(&r); */
#ifndef KK_CLI_REPLY_H
#define KK_CLI_REPLY_H

#include <jansson.h>
#include <signal.h>

#include "cli/common.h"
#include "cli/stop.h"
#include "tok/chat.h"

struct kk_reply {
    struct kk_cli *cli;
    struct kk_sampling sampling;
    int64_t most; /* tokens */
    int print_text, print_ids;
    const struct kk_chat *chat;         /* if set, the end of a turn ends the reply */
    volatile sig_atomic_t *interrupted; /* if set: non-zero ends the reply, and reading too */

    /* Of the last reply. */
    struct kk_ids ids;
    struct kk_buf text; /* stop strings cut */
    struct kk_generated made;
    size_t prompt_tokens; /* read: all, unless interrupted */
    double append_s;
    int end_of_turn;

    /* Private. */
    struct kk_tok_stream stream;
    struct kk_stop_filter stop;
    size_t printed; /* bytes of text */
    int rc;         /* of a callback, with err */
    struct kk_err err;
};

/* The limit on tokens is --n's: run's or chat's. Needs no model. */
int kk_reply_init(struct kk_reply *r, struct kk_cli *cli, struct kk_err *err);
void kk_reply_release(struct kk_reply *r);

/* Append ids to the session's history and generate. cli->tok is open. On failure the session keeps
 * what it had committed. */
int kk_reply_make(struct kk_reply *r, struct kk_session *s, const struct kk_ids *ids,
                  struct kk_err *err);

/* What ended it: max_tokens, eos, end_of_turn, stop_string, interrupted, context. */
const char *kk_reply_end(const struct kk_reply *r);

/* Tokens a second, reading (up to the first token) and writing (after it). */
double kk_reply_prefill_rate(const struct kk_reply *r);
double kk_reply_decode_rate(const struct kk_reply *r);

/* A JSON list of ids. */
json_t *kk_reply_ids(const struct kk_ids *v);

/* Text, ids, counts, rates, and the four kinds of bytes of the session. */
json_t *kk_reply_report(const struct kk_reply *r, const struct kk_session *s);

#endif
