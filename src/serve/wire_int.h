/* The messages of proto/kakeya/v1/runtime.proto and of gRPC's health protocol, as bytes: what
 * kk_request and kk_event look like on the wire. The only place that knows protobuf. */
#ifndef KK_SERVE_WIRE_INT_H
#define KK_SERVE_WIRE_INT_H

#include <stddef.h>
#include <stdint.h>

#include "base/buf.h"
#include "engine/runtime.h"

enum { KK_WIRE_KINDS = KK_REQUEST_FORK + 1 };

/* "/kakeya.v1.RuntimeService/Generate", and the kind of such a path [n], -1 for any other. */
const char *kk_wire_path(enum kk_request_kind kind);
int kk_wire_kind(const void *path, size_t n);

/* ---- the server's half -------------------------------------------------------------------- */

struct kk_wire_request {
    struct kk_request req; /* its pointers live until release; sink, arg, deadline: unset */
    void *message;
};

/* Parse a request. KK_EINVAL for bytes that are no such message, and for text that is no UTF-8 or
 * holds a NUL; then there is nothing to release. */
int kk_wire_read_request(enum kk_request_kind kind, const void *data, size_t n,
                         struct kk_wire_request *out, struct kk_err *err);
void kk_wire_request_release(struct kk_wire_request *r); /* once, or on a zeroed one */

enum { KK_WIRE_REPLY_MAX = 256 }; /* bytes of the longest reply */

/* The reply to a call of that kind which its last event (code 0) amounts to; returns its length.
 * For GENERATE it is the frame with GenerateDone. */
size_t kk_wire_write_done(enum kk_request_kind kind, const struct kk_event *ev,
                          unsigned char out[KK_WIRE_REPLY_MAX]);
size_t kk_wire_write_token(uint32_t id, unsigned char out[KK_WIRE_REPLY_MAX]);
size_t kk_wire_write_truncated(uint64_t dropped, unsigned char out[KK_WIRE_REPLY_MAX]);

/* ---- the client's half -------------------------------------------------------------------- */

/* Append the request's message to out. KK_ENOMEM, KK_ERANGE; KK_EINVAL where a value has no place
 * in the message (max_tokens beyond 32 bits). */
int kk_wire_write_request(const struct kk_request *r, struct kk_buf *out, struct kk_err *err);

/* What a reply says, as the event that the server got it from. ev.session, ev.ids point into it. */
struct kk_wire_reply {
    struct kk_event ev;
    char session[KK_SESSION_ID_MAX];
    uint32_t id;
};
int kk_wire_read_reply(enum kk_request_kind kind, const void *data, size_t n,
                       struct kk_wire_reply *out, struct kk_err *err);

/* ---- health ------------------------------------------------------------------------------- */

enum kk_health { KK_HEALTH_SERVING = 1, KK_HEALTH_NOT_SERVING = 2, KK_HEALTH_UNKNOWN = 3 };

/* 1 if the message asks for a service we have ("" or the runtime), 0 if not, or KK_EINVAL. */
int kk_wire_read_health(const void *data, size_t n, struct kk_err *err);
size_t kk_wire_write_health(enum kk_health status, unsigned char out[KK_WIRE_REPLY_MAX]);

#endif
