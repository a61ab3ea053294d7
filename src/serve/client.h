/* A client of the server: the calls of engine/runtime.h on a runtime somewhere else.
 *
 *     kk_client_loop_open(&loop, &err);                  threads that all connections share
 *     kk_client_open(loop, &o, &client, &err);           one connection, made at the first call
 *     kk_client_call(client, &request, 30, &call, &err); its sink gets the events
 *     kk_client_cancel(call);  kk_client_release(call);
 *
 * Events are those of the server's runtime, from the loop's threads: a Generate's tokens one by
 * one, then DONE, exactly once, with code and msg (the status's name and what the server said).
 * What a sink returns is not looked at; it may start calls and release its own. */
#ifndef KK_SERVE_CLIENT_H
#define KK_SERVE_CLIENT_H

#include "engine/runtime.h"

struct kk_client_loop;
struct kk_client;
struct kk_client_call;

struct kk_client_options {
    const char *address;  /* HOST:PORT */
    const char *tls_ca;   /* PEM file of who signed the server's certificate; NULL: no TLS */
    const char *tls_name; /* the certificate's name, if it is not HOST; may be NULL */
    const char *token;    /* bearer token; may be NULL */
};

int kk_client_loop_open(struct kk_client_loop **out, struct kk_err *err);
void kk_client_loop_close(struct kk_client_loop *l); /* after its clients; NULL is fine */

int kk_client_open(struct kk_client_loop *l, const struct kk_client_options *o,
                   struct kk_client **out, struct kk_err *err);
void kk_client_close(struct kk_client *c); /* after its calls are done; NULL is fine */

/* r is borrowed for the length of the call to this function; its sink must be set, its deadline is
 * not looked at. timeout_s 0: none. Gives one reference. */
int kk_client_call(struct kk_client *c, const struct kk_request *r, double timeout_s,
                   struct kk_client_call **out, struct kk_err *err);
void kk_client_cancel(struct kk_client_call *call);
void kk_client_release(struct kk_client_call *call);
/* The gRPC status of a call, from its DONE on. */
int kk_client_status(const struct kk_client_call *call);

/* The same, waiting for the end: the DONE event, its session id in `session`; tokens go to the
 * request's sink, if it has one. Returns 0, or the server's code with its words in err. */
int kk_client_ask(struct kk_client *c, const struct kk_request *r, double timeout_s,
                  struct kk_event *done, char session[KK_SESSION_ID_MAX], struct kk_err *err);

#endif
