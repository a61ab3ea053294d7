/* The server: kakeya.v1.RuntimeService and gRPC's health service over HTTP/2, and the page of
 * metrics over HTTP/1.1.
 *
 *     kk_server_open(&o, &server, &err);                 has the address; clients wait
 *     kk_server_start(server, rpc, &err);                answers, from its own threads
 *     kk_server_drain(server, seconds);                  no new calls; running ones may end
 *     kk_server_close(server);                           before the runtime is closed
 *
 * What it holds against its clients: messages of at most max_message bytes; a call whose request
 * does not come is cut off; a client that does not read stops its own call alone (KK_SINK_FULL) and
 * costs a fixed number of bytes; one that leaves has its call cancelled. */
#ifndef KK_SERVE_SERVE_H
#define KK_SERVE_SERVE_H

#include <stddef.h>

#include "base/err.h"
#include "serve/rpc.h"

struct kk_server;

struct kk_server_options {
    const char *address;            /* HOST:PORT; port 0: any that is free */
    const char *tls_cert, *tls_key; /* PEM files; both or none */
    const char *token_file;         /* bearer tokens, one a line; NULL: everybody may call */
    size_t max_message;             /* bytes of a request */
    double request_s;               /* a call whose request takes longer is cut off */
    double handshake_s; /* a connection that is not a client by then (TLS, HTTP/2) is closed */
    void (*log)(const char *line); /* what the transport has to say; NULL: nothing */
};
/* 127.0.0.1:50051, no TLS, no tokens, 4 MiB, 30 s, 10 s, no log. */
struct kk_server_options kk_server_defaults(void);

/* Everything that can be wrong with the options is found here, before a model is loaded:
 * KK_EINVAL (addresses, files), KK_EIO (the address cannot be had). */
int kk_server_open(const struct kk_server_options *o, struct kk_server **out, struct kk_err *err);
/* Once. rpc is borrowed until close. */
int kk_server_start(struct kk_server *s, struct kk_rpc *rpc, struct kk_err *err);
int kk_server_port(const struct kk_server *s); /* the one bound */

/* Stop listening; calls may end within `seconds`, what then still runs is cancelled. Health says
 * NOT_SERVING from the start. */
void kk_server_drain(struct kk_server *s, double seconds);
void kk_server_close(struct kk_server *s); /* NULL is fine */

/* ---- metrics ------------------------------------------------------------------------------ */

struct kk_metrics_http;

/* GET /metrics, /healthz (the process answers) and /readyz (200, or 503 once it drains), from one
 * thread of its own. */
int kk_metrics_http_open(const char *address, struct kk_metrics_http **out, struct kk_err *err);
int kk_metrics_http_start(struct kk_metrics_http *m, struct kk_rpc *rpc, struct kk_err *err);
int kk_metrics_http_port(const struct kk_metrics_http *m);
void kk_metrics_http_close(struct kk_metrics_http *m); /* NULL is fine */

#endif
