#include "serve/wire_int.h"

#include <stdio.h>
#include <string.h>

#include "grpc/health/v1/health.pb-c.h"
#include "kakeya/v1/runtime.pb-c.h"

#define SERVICE "kakeya.v1.RuntimeService"

static const struct {
    const char *path;
    const ProtobufCMessageDescriptor *request, *reply;
} methods[KK_WIRE_KINDS] = {
    [KK_REQUEST_CREATE] = {"/" SERVICE "/CreateSession",
                           &kakeya__v1__create_session_request__descriptor,
                           &kakeya__v1__create_session_response__descriptor},
    [KK_REQUEST_APPEND] = {"/" SERVICE "/AppendTokens",
                           &kakeya__v1__append_tokens_request__descriptor,
                           &kakeya__v1__append_tokens_response__descriptor},
    [KK_REQUEST_GENERATE] = {"/" SERVICE "/Generate", &kakeya__v1__generate_request__descriptor,
                             &kakeya__v1__generate_response__descriptor},
    [KK_REQUEST_INFO] = {"/" SERVICE "/GetSessionInfo",
                         &kakeya__v1__get_session_info_request__descriptor,
                         &kakeya__v1__get_session_info_response__descriptor},
    [KK_REQUEST_CLOSE] = {"/" SERVICE "/CloseSession",
                          &kakeya__v1__close_session_request__descriptor,
                          &kakeya__v1__close_session_response__descriptor},
    [KK_REQUEST_FORK] = {"/" SERVICE "/ForkSession", &kakeya__v1__fork_session_request__descriptor,
                         &kakeya__v1__fork_session_response__descriptor},
};

const char *kk_wire_path(enum kk_request_kind kind)
{
    return methods[kind].path;
}

int kk_wire_kind(const void *path, size_t n)
{
    for (int k = 0; k < KK_WIRE_KINDS; k++)
        if (strlen(methods[k].path) == n && !memcmp(methods[k].path, path, n)) return k;
    return -1;
}

/* ---- text that proto3 would refuse --------------------------------------------------------- */

/* Well-formed UTF-8 without NUL. */
static int text_ok(const unsigned char *p, size_t n)
{
    for (size_t i = 0; i < n;) {
        unsigned c = p[i];
        size_t more = c < 0x80 ? 0 : c >= 0xc2 && c < 0xe0 ? 1 : c >= 0xe0 && c < 0xf0 ? 2 : 3;
        if (!c || (c >= 0x80 && c < 0xc2) || c > 0xf4 || more >= n - i) return 0;
        if (c == 0xe0 && p[i + 1] < 0xa0) return 0; /* longer than needed */
        if (c == 0xed && p[i + 1] > 0x9f) return 0; /* a surrogate */
        if (c == 0xf0 && p[i + 1] < 0x90) return 0;
        if (c == 0xf4 && p[i + 1] > 0x8f) return 0;
        for (size_t k = 1; k <= more; k++)
            if ((p[i + k] & 0xc0) != 0x80) return 0;
        i += 1 + more;
    }
    return 1;
}

/* A base-128 number at *p; 0 if it does not end before `end`. */
static int varint(const unsigned char **p, const unsigned char *end, uint64_t *out)
{
    *out = 0;
    for (int shift = 0; shift < 64 && *p < end; shift += 7) {
        unsigned char c = *(*p)++;
        *out |= (uint64_t)(c & 127) << shift;
        if (c < 128) return 1;
    }
    return 0;
}

/* protobuf-c neither checks UTF-8 nor tells a NUL inside a string from its end: so look at the
 * string fields of the message itself. Only for bytes that did parse. NULL, or the field's name. */
static const char *bad_text(const ProtobufCMessageDescriptor *d, const unsigned char *p, size_t n)
{
    const unsigned char *end = p + n;
    uint64_t tag, len;
    while (p < end && varint(&p, end, &tag)) {
        const ProtobufCFieldDescriptor *f =
            protobuf_c_message_descriptor_get_field(d, (unsigned)(tag >> 3));
        switch (tag & 7) {
        case 0:
            if (!varint(&p, end, &len)) return NULL;
            break;
        case 2:
            if (!varint(&p, end, &len) || len > (uint64_t)(end - p)) return NULL;
            if (f && f->type == PROTOBUF_C_TYPE_STRING && !text_ok(p, (size_t)len)) return f->name;
            p += len;
            break;
        default:
            len = (tag & 7) == 1 ? 8 : 4;
            if (len > (uint64_t)(end - p)) return NULL;
            p += len;
        }
    }
    return NULL;
}

static int unpack(const ProtobufCMessageDescriptor *d, const void *data, size_t n, void *out,
                  struct kk_err *err)
{
    ProtobufCMessage *m = protobuf_c_message_unpack(d, NULL, n, data ? data : (const void *)"");
    if (!m) return kk_fail(err, KK_EINVAL, "%zu bytes that are no %s", n, d->short_name);
    const char *field = n ? bad_text(d, data, n) : NULL;
    if (field) {
        protobuf_c_message_free_unpacked(m, NULL);
        return kk_fail(err, KK_EINVAL, "%s is not UTF-8 text without NUL", field);
    }
    memcpy(out, &m, sizeof m);
    return 0;
}

/* ---- the server's half --------------------------------------------------------------------- */

static void read_sampling(const Kakeya__V1__GenerateRequest *m, struct kk_request *r)
{
    r->max_tokens = m->max_tokens;
    r->sampling = kk_sampling_defaults();
    r->seed_unset = !m->_seed_case;
    if (m->_seed_case) r->sampling.seed = m->seed;
    if (m->_temperature_case) r->sampling.temperature = m->temperature;
    if (m->_top_p_case) r->sampling.top_p = m->top_p;
    if (m->_top_k_case) r->sampling.top_k = m->top_k > INT32_MAX ? INT32_MAX : (int)m->top_k;
    if (m->_min_p_case) r->sampling.min_p = m->min_p;
    if (m->_repetition_penalty_case) r->sampling.repeat_penalty = m->repetition_penalty;
    if (m->_repetition_last_n_case)
        r->sampling.repeat_last_n =
            m->repetition_last_n > INT32_MAX ? INT32_MAX : (int)m->repetition_last_n;
    if (m->_ignore_eos_case) r->sampling.ignore_eos = m->ignore_eos != 0;
}

int kk_wire_read_request(enum kk_request_kind kind, const void *data, size_t n,
                         struct kk_wire_request *out, struct kk_err *err)
{
    *out = (struct kk_wire_request){.req.kind = kind};
    int rc = unpack(methods[kind].request, data, n, &out->message, err);
    if (rc) return rc;
    struct kk_request *r = &out->req;
    switch (kind) {
    case KK_REQUEST_CREATE: {
        const Kakeya__V1__CreateSessionRequest *m = out->message;
        r->label = m->client_label;
        r->ids = m->eos_token_ids;
        r->n = m->n_eos_token_ids;
        break;
    }
    case KK_REQUEST_APPEND: {
        const Kakeya__V1__AppendTokensRequest *m = out->message;
        r->session = m->session_id;
        r->ids = m->token_ids;
        r->n = m->n_token_ids;
        break;
    }
    case KK_REQUEST_GENERATE: {
        const Kakeya__V1__GenerateRequest *m = out->message;
        r->session = m->session_id;
        read_sampling(m, r);
        break;
    }
    case KK_REQUEST_INFO:
        r->session = ((const Kakeya__V1__GetSessionInfoRequest *)out->message)->session_id;
        break;
    case KK_REQUEST_CLOSE:
        r->session = ((const Kakeya__V1__CloseSessionRequest *)out->message)->session_id;
        break;
    case KK_REQUEST_FORK: {
        const Kakeya__V1__ForkSessionRequest *m = out->message;
        r->session = m->session_id;
        r->label = m->client_label;
        break;
    }
    }
    return 0;
}

void kk_wire_request_release(struct kk_wire_request *r)
{
    if (r->message) protobuf_c_message_free_unpacked(r->message, NULL);
    r->message = NULL;
}

static size_t pack(const ProtobufCMessage *m, unsigned char out[KK_WIRE_REPLY_MAX])
{
    KK_BUG_ON(protobuf_c_message_get_packed_size(m) > KK_WIRE_REPLY_MAX);
    return protobuf_c_message_pack(m, out);
}

static const Kakeya__V1__GenerateDone__StopReason stops[] = {
    [KK_STOP_MAX_TOKENS] = KAKEYA__V1__GENERATE_DONE__STOP_REASON__STOP_REASON_MAX_TOKENS,
    [KK_STOP_EOS] = KAKEYA__V1__GENERATE_DONE__STOP_REASON__STOP_REASON_EOS,
    [KK_STOP_CALLER] = KAKEYA__V1__GENERATE_DONE__STOP_REASON__STOP_REASON_CANCELLED,
    [KK_STOP_CTX] = KAKEYA__V1__GENERATE_DONE__STOP_REASON__STOP_REASON_TRUNCATED,
};

static size_t write_generated(const struct kk_event *ev, unsigned char out[KK_WIRE_REPLY_MAX])
{
    Kakeya__V1__GenerateResponse m = KAKEYA__V1__GENERATE_RESPONSE__INIT;
    Kakeya__V1__GenerateDone d = KAKEYA__V1__GENERATE_DONE__INIT;
    d.stop_reason = stops[ev->stop];
    d.generated_token_count = (uint32_t)ev->tokens;
    d.prefill_duration_seconds = ev->prefill_s;
    d.total_duration_seconds = ev->total_s;
    d.seed = ev->seed;
    d.verifier_steps = (uint64_t)ev->steps;
    d.drafted_tokens = (uint64_t)ev->drafted;
    d.accepted_tokens = (uint64_t)ev->accepted;
    d.queued_duration_seconds = ev->queued_s;
    m.payload_case = KAKEYA__V1__GENERATE_RESPONSE__PAYLOAD_DONE;
    m.done = &d;
    return pack(&m.base, out);
}

static size_t write_info(const struct kk_event *ev, unsigned char out[KK_WIRE_REPLY_MAX])
{
    Kakeya__V1__GetSessionInfoResponse m = KAKEYA__V1__GET_SESSION_INFO_RESPONSE__INIT;
    const struct kk_session_info *i = &ev->info;
    m.history_length = ev->history;
    m.kv_live_bytes = (uint64_t)(i->kv_device_bytes + i->drafter_device_bytes);
    m.cache_invariant_inv1_violations = ev->inv1_violations;
    m.cache_invariant_inv2_violations = ev->inv2_violations;
    m.idle_seconds = ev->idle_s;
    m.kv_device_bytes = (uint64_t)i->kv_device_bytes;
    m.drafter_device_bytes = (uint64_t)i->drafter_device_bytes;
    m.kv_host_bytes = (uint64_t)i->kv_host_bytes;
    m.resident_rows = (uint64_t)i->resident_rows;
    m.dropped_token_count = (uint64_t)i->dropped;
    m.kv_shared_bytes = (uint64_t)i->kv_shared_bytes;
    return pack(&m.base, out);
}

size_t kk_wire_write_done(enum kk_request_kind kind, const struct kk_event *ev,
                          unsigned char out[KK_WIRE_REPLY_MAX])
{
    char id[KK_SESSION_ID_MAX] = "";
    if (ev->session) snprintf(id, sizeof id, "%s", ev->session);
    switch (kind) {
    case KK_REQUEST_CREATE: {
        Kakeya__V1__CreateSessionResponse m = KAKEYA__V1__CREATE_SESSION_RESPONSE__INIT;
        m.session_id = id;
        return pack(&m.base, out);
    }
    case KK_REQUEST_APPEND: {
        Kakeya__V1__AppendTokensResponse m = KAKEYA__V1__APPEND_TOKENS_RESPONSE__INIT;
        m.history_length = ev->history;
        return pack(&m.base, out);
    }
    case KK_REQUEST_GENERATE:
        return write_generated(ev, out);
    case KK_REQUEST_INFO:
        return write_info(ev, out);
    case KK_REQUEST_CLOSE: {
        Kakeya__V1__CloseSessionResponse m = KAKEYA__V1__CLOSE_SESSION_RESPONSE__INIT;
        m.final_history_length = ev->history;
        return pack(&m.base, out);
    }
    case KK_REQUEST_FORK: {
        Kakeya__V1__ForkSessionResponse m = KAKEYA__V1__FORK_SESSION_RESPONSE__INIT;
        m.session_id = id;
        m.history_length = ev->history;
        return pack(&m.base, out);
    }
    }
    return 0;
}

size_t kk_wire_write_token(uint32_t id, unsigned char out[KK_WIRE_REPLY_MAX])
{
    Kakeya__V1__GenerateResponse m = KAKEYA__V1__GENERATE_RESPONSE__INIT;
    m.payload_case = KAKEYA__V1__GENERATE_RESPONSE__PAYLOAD_TOKEN_ID;
    m.token_id = id;
    return pack(&m.base, out);
}

size_t kk_wire_write_truncated(uint64_t dropped, unsigned char out[KK_WIRE_REPLY_MAX])
{
    Kakeya__V1__GenerateResponse m = KAKEYA__V1__GENERATE_RESPONSE__INIT;
    Kakeya__V1__HistoryTruncated t = KAKEYA__V1__HISTORY_TRUNCATED__INIT;
    t.dropped_token_count = dropped;
    m.payload_case = KAKEYA__V1__GENERATE_RESPONSE__PAYLOAD_TRUNCATED;
    m.truncated = &t;
    return pack(&m.base, out);
}

/* ---- the client's half --------------------------------------------------------------------- */

static int append(const ProtobufCMessage *m, struct kk_buf *out, struct kk_err *err)
{
    size_t n = protobuf_c_message_get_packed_size(m), at = out->len;
    static const unsigned char zeros[256];
    int rc = 0;
    for (size_t done = 0; !rc && done < n; done += sizeof zeros)
        rc = kk_buf_append(out, zeros, n - done < sizeof zeros ? n - done : sizeof zeros);
    if (rc) return kk_fail(err, rc, "a message of %zu bytes: %s", n, kk_strerror(rc));
    if (n) protobuf_c_message_pack(m, (uint8_t *)out->data + at);
    return 0;
}

static int write_generate(const struct kk_request *r, char *session, struct kk_buf *out,
                          struct kk_err *err)
{
    Kakeya__V1__GenerateRequest m = KAKEYA__V1__GENERATE_REQUEST__INIT;
    const struct kk_sampling *p = &r->sampling;
    if (r->max_tokens < 0 || r->max_tokens > UINT32_MAX)
        return kk_fail(err, KK_EINVAL, "max_tokens %lld has no place in the message",
                       (long long)r->max_tokens);
    m.session_id = session;
    m.max_tokens = (uint32_t)r->max_tokens;
    if (!r->seed_unset) m._seed_case = KAKEYA__V1__GENERATE_REQUEST___SEED_SEED;
    m.seed = p->seed;
    m._temperature_case = KAKEYA__V1__GENERATE_REQUEST___TEMPERATURE_TEMPERATURE;
    m.temperature = p->temperature;
    m._top_p_case = KAKEYA__V1__GENERATE_REQUEST___TOP_P_TOP_P;
    m.top_p = p->top_p;
    m._top_k_case = KAKEYA__V1__GENERATE_REQUEST___TOP_K_TOP_K;
    m.top_k = (uint32_t)p->top_k;
    m._min_p_case = KAKEYA__V1__GENERATE_REQUEST___MIN_P_MIN_P;
    m.min_p = p->min_p;
    m._repetition_penalty_case =
        KAKEYA__V1__GENERATE_REQUEST___REPETITION_PENALTY_REPETITION_PENALTY;
    m.repetition_penalty = p->repeat_penalty;
    m._repetition_last_n_case = KAKEYA__V1__GENERATE_REQUEST___REPETITION_LAST_N_REPETITION_LAST_N;
    m.repetition_last_n = (uint32_t)p->repeat_last_n;
    m._ignore_eos_case = KAKEYA__V1__GENERATE_REQUEST___IGNORE_EOS_IGNORE_EOS;
    m.ignore_eos = p->ignore_eos;
    return append(&m.base, out, err);
}

int kk_wire_write_request(const struct kk_request *r, struct kk_buf *out, struct kk_err *err)
{
    /* protobuf-c takes no const, and does not write */
    char *session = (char *)(uintptr_t)(r->session ? r->session : "");
    char *label = (char *)(uintptr_t)(r->label ? r->label : "");
    uint32_t *ids = (uint32_t *)(uintptr_t)r->ids;
    switch (r->kind) {
    case KK_REQUEST_CREATE: {
        Kakeya__V1__CreateSessionRequest m = KAKEYA__V1__CREATE_SESSION_REQUEST__INIT;
        m.client_label = label;
        m.eos_token_ids = ids;
        m.n_eos_token_ids = r->n;
        return append(&m.base, out, err);
    }
    case KK_REQUEST_APPEND: {
        Kakeya__V1__AppendTokensRequest m = KAKEYA__V1__APPEND_TOKENS_REQUEST__INIT;
        m.session_id = session;
        m.token_ids = ids;
        m.n_token_ids = r->n;
        return append(&m.base, out, err);
    }
    case KK_REQUEST_GENERATE:
        return write_generate(r, session, out, err);
    case KK_REQUEST_INFO: {
        Kakeya__V1__GetSessionInfoRequest m = KAKEYA__V1__GET_SESSION_INFO_REQUEST__INIT;
        m.session_id = session;
        return append(&m.base, out, err);
    }
    case KK_REQUEST_CLOSE: {
        Kakeya__V1__CloseSessionRequest m = KAKEYA__V1__CLOSE_SESSION_REQUEST__INIT;
        m.session_id = session;
        return append(&m.base, out, err);
    }
    case KK_REQUEST_FORK: {
        Kakeya__V1__ForkSessionRequest m = KAKEYA__V1__FORK_SESSION_REQUEST__INIT;
        m.session_id = session;
        m.client_label = label;
        return append(&m.base, out, err);
    }
    }
    return kk_fail(err, KK_EINVAL, "no such call");
}

static void read_generated(const Kakeya__V1__GenerateResponse *m, struct kk_wire_reply *out)
{
    struct kk_event *ev = &out->ev;
    if (m->payload_case == KAKEYA__V1__GENERATE_RESPONSE__PAYLOAD_TOKEN_ID) {
        ev->kind = KK_EVENT_TOKENS;
        out->id = m->token_id;
        ev->ids = &out->id;
        ev->n = 1;
    } else if (m->payload_case == KAKEYA__V1__GENERATE_RESPONSE__PAYLOAD_TRUNCATED) {
        ev->kind = KK_EVENT_TRUNCATED;
        ev->dropped = m->truncated->dropped_token_count;
    } else if (m->payload_case == KAKEYA__V1__GENERATE_RESPONSE__PAYLOAD_DONE) {
        const Kakeya__V1__GenerateDone *d = m->done;
        for (int s = 0; s < (int)(sizeof stops / sizeof *stops); s++)
            if (stops[s] == d->stop_reason) ev->stop = (enum kk_stop)s;
        ev->tokens = d->generated_token_count;
        ev->prefill_s = d->prefill_duration_seconds;
        ev->total_s = d->total_duration_seconds;
        ev->queued_s = d->queued_duration_seconds;
        ev->seed = d->seed;
        ev->steps = (int64_t)d->verifier_steps;
        ev->drafted = (int64_t)d->drafted_tokens;
        ev->accepted = (int64_t)d->accepted_tokens;
    }
}

static void read_info(const Kakeya__V1__GetSessionInfoResponse *m, struct kk_event *ev)
{
    ev->history = m->history_length;
    ev->inv1_violations = m->cache_invariant_inv1_violations;
    ev->inv2_violations = m->cache_invariant_inv2_violations;
    ev->idle_s = m->idle_seconds;
    ev->info.history = (int64_t)m->history_length;
    ev->info.kv_device_bytes = (int64_t)m->kv_device_bytes;
    ev->info.drafter_device_bytes = (int64_t)m->drafter_device_bytes;
    ev->info.kv_host_bytes = (int64_t)m->kv_host_bytes;
    ev->info.resident_rows = (int64_t)m->resident_rows;
    ev->info.dropped = (int64_t)m->dropped_token_count;
    ev->info.kv_shared_bytes = (int64_t)m->kv_shared_bytes;
}

static void read_session(const char *id, struct kk_wire_reply *out)
{
    snprintf(out->session, sizeof out->session, "%s", id);
    out->ev.session = out->session;
}

int kk_wire_read_reply(enum kk_request_kind kind, const void *data, size_t n,
                       struct kk_wire_reply *out, struct kk_err *err)
{
    void *m = NULL;
    *out = (struct kk_wire_reply){.ev.kind = KK_EVENT_DONE};
    int rc = unpack(methods[kind].reply, data, n, &m, err);
    if (rc) return rc;
    switch (kind) {
    case KK_REQUEST_CREATE:
        read_session(((const Kakeya__V1__CreateSessionResponse *)m)->session_id, out);
        break;
    case KK_REQUEST_APPEND:
        out->ev.history = ((const Kakeya__V1__AppendTokensResponse *)m)->history_length;
        break;
    case KK_REQUEST_GENERATE:
        read_generated(m, out);
        break;
    case KK_REQUEST_INFO:
        read_info(m, &out->ev);
        break;
    case KK_REQUEST_CLOSE:
        out->ev.history = ((const Kakeya__V1__CloseSessionResponse *)m)->final_history_length;
        break;
    case KK_REQUEST_FORK:
        read_session(((const Kakeya__V1__ForkSessionResponse *)m)->session_id, out);
        out->ev.history = ((const Kakeya__V1__ForkSessionResponse *)m)->history_length;
        break;
    }
    protobuf_c_message_free_unpacked(m, NULL);
    return 0;
}

/* ---- health -------------------------------------------------------------------------------- */

int kk_wire_read_health(const void *data, size_t n, struct kk_err *err)
{
    Grpc__Health__V1__HealthCheckRequest *m;
    int rc = unpack(&grpc__health__v1__health_check_request__descriptor, data, n, &m, err);
    if (rc) return rc;
    int known = !*m->service || !strcmp(m->service, SERVICE);
    protobuf_c_message_free_unpacked(&m->base, NULL);
    return known;
}

size_t kk_wire_write_health(enum kk_health status, unsigned char out[KK_WIRE_REPLY_MAX])
{
    Grpc__Health__V1__HealthCheckResponse m = GRPC__HEALTH__V1__HEALTH_CHECK_RESPONSE__INIT;
    m.status = (Grpc__Health__V1__HealthCheckResponse__ServingStatus)status;
    return pack(&m.base, out);
}
