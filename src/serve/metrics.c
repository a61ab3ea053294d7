#include "serve/metrics_int.h"

#include <dirent.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

/* clang-format off */
static const struct kk_scale latency = {20, {.001, .0025, .005, .01, .025, .05, .1, .25, .5, 1, 2.5,
                                             5, 10, 20, 40, 80, 160, 640, 2560, 7680}};
static const struct kk_scale gap = {16, {.0005, .001, .0025, .005, .01, .025, .05, .075, .1, .25,
                                         .5, 1, 2.5, 10, 40, 80}};
static const struct kk_scale tokens = {20, {1, 2, 5, 10, 20, 50, 100, 200, 500, 1e3, 2e3, 5e3, 1e4,
                                            2e4, 5e4, 1e5, 2e5, 5e5, 1e6, 1e7}};
/* clang-format on */

static const char *const kind_names[KK_RPC_KINDS] = {
    [KK_REQUEST_CREATE] = "CreateSession", [KK_REQUEST_APPEND] = "AppendTokens",
    [KK_REQUEST_GENERATE] = "Generate",    [KK_REQUEST_INFO] = "GetSessionInfo",
    [KK_REQUEST_CLOSE] = "CloseSession",   [KK_REQUEST_FORK] = "ForkSession",
};

void kk_metrics_init(struct kk_metrics *m)
{
    for (int k = 0; k < KK_RPC_KINDS; k++) m->seconds[k].scale = &latency;
    m->first_token.scale = m->generate.scale = m->queued.scale = m->prefill.scale = &latency;
    m->inter_token.scale = &gap;
    m->prefill_tokens.scale = m->history.scale = &tokens;
}

static void bump(_Atomic uint64_t *x, uint64_t by)
{
    atomic_fetch_add_explicit(x, by, memory_order_relaxed);
}

static uint64_t get(const _Atomic uint64_t *x)
{
    return atomic_load_explicit(x, memory_order_relaxed);
}

void kk_histogram_add(struct kk_histogram *h, double value, uint64_t times)
{
    int i = 0;
    if (!(value >= 0)) value = 0;
    while (i < h->scale->n && value > h->scale->le[i]) i++;
    bump(&h->count[i], times);
    bump(&h->sum_millionths, (uint64_t)(value * 1e6 * (double)times + .5));
}

/* ---- events -------------------------------------------------------------------------------- */

static void tokens_came(struct kk_metrics *m, struct kk_rpc_call *c, size_t n, uint64_t now_ns)
{
    double since = (double)(now_ns - c->last_ns) * 1e-9;
    if (!n) return;
    if (c->last_ns == c->start_ns) {
        kk_histogram_add(&m->first_token, since, 1);
        if (n > 1) kk_histogram_add(&m->inter_token, 0, n - 1); /* they came together */
    } else {
        kk_histogram_add(&m->inter_token, since / (double)n, n);
    }
    c->last_ns = now_ns;
}

void kk_metrics_event(struct kk_metrics *m, struct kk_rpc_call *c, const struct kk_event *ev,
                      uint64_t now_ns)
{
    double total = (double)(now_ns - c->start_ns) * 1e-9;
    if (ev->kind == KK_EVENT_TOKENS) tokens_came(m, c, ev->n, now_ns);
    if (ev->kind != KK_EVENT_DONE) return;
    bump(&m->calls[c->kind][kk_grpc_status(ev->code)], 1);
    kk_histogram_add(&m->seconds[c->kind], total, 1);
    if (c->kind == KK_REQUEST_GENERATE && !ev->code) {
        bump(&m->stops[ev->stop], 1);
        kk_histogram_add(&m->generate, total, 1);
        kk_histogram_add(&m->queued, ev->queued_s, 1);
    }
    if (c->kind == KK_REQUEST_APPEND && !ev->code) {
        kk_histogram_add(&m->prefill, ev->prefill_s, 1);
        kk_histogram_add(&m->prefill_tokens, (double)c->n_ids, 1);
        kk_histogram_add(&m->history, (double)ev->history, 1);
    }
}

/* ---- text ---------------------------------------------------------------------------------- */

/* A page being written; the first failure sticks. */
struct page {
    struct kk_buf *out;
    const char *model; /* escaped */
    int rc;
};

#define ADD(p, ...)                                                                                \
    do {                                                                                           \
        if (!(p)->rc) (p)->rc = kk_buf_printf((p)->out, __VA_ARGS__);                              \
    } while (0)

static void head(struct page *p, const char *name, const char *type, const char *help)
{
    ADD(p, "# HELP %s %s\n# TYPE %s %s\n", name, help, name, type);
}

/* One number without labels but, for vLLM's names, the model's. */
static void number(struct page *p, const char *name, const char *type, double v, const char *help)
{
    head(p, name, type, help);
    if (!strncmp(name, "vllm:", 5))
        ADD(p, "%s{model_name=\"%s\"} %.17g\n", name, p->model, v);
    else
        ADD(p, "%s %.17g\n", name, v);
}

/* The lines of a histogram; labels: "" or `method="Generate"`. */
static void histogram(struct page *p, const char *name, const char *labels,
                      const struct kk_histogram *h)
{
    const char *comma = *labels ? "," : "", *open = *labels ? "{" : "", *end = *labels ? "}" : "";
    uint64_t sum = 0;
    for (int i = 0; i < h->scale->n; i++) {
        sum += get(&h->count[i]);
        ADD(p, "%s_bucket{%s%sle=\"%g\"} %llu\n", name, labels, comma, h->scale->le[i],
            (unsigned long long)sum);
    }
    sum += get(&h->count[h->scale->n]);
    ADD(p, "%s_bucket{%s%sle=\"+Inf\"} %llu\n", name, labels, comma, (unsigned long long)sum);
    ADD(p, "%s_sum%s%s%s %.6f\n", name, open, labels, end, (double)get(&h->sum_millionths) * 1e-6);
    ADD(p, "%s_count%s%s%s %llu\n", name, open, labels, end, (unsigned long long)sum);
}

static void one_histogram(struct page *p, const char *name, const struct kk_histogram *h,
                          const char *help)
{
    char labels[160] = "";
    if (!strncmp(name, "vllm:", 5)) snprintf(labels, sizeof labels, "model_name=\"%s\"", p->model);
    head(p, name, "histogram", help);
    histogram(p, name, labels, h);
}

/* The names that the reference's design gives to the session counters. */
static void sessions(struct page *p, const struct kk_runtime_stats *s, const struct kk_metrics *m)
{
    number(p, "session_active", "gauge", (double)s->sessions, "Sessions held.");
    head(p, "session_total", "counter", "Sessions that ended, by outcome.");
    ADD(p, "session_total{outcome=\"closed\"} %llu\n", (unsigned long long)s->closed);
    ADD(p, "session_total{outcome=\"evicted\"} %llu\n",
        (unsigned long long)(s->evicted + s->expired));
    ADD(p, "session_total{outcome=\"failed\"} %llu\n", (unsigned long long)s->failed);
    head(p, "session_evicted_total", "counter", "Sessions removed, by reason.");
    ADD(p, "session_evicted_total{reason=\"ttl\"} %llu\n", (unsigned long long)s->expired);
    ADD(p, "session_evicted_total{reason=\"lru\"} %llu\n", (unsigned long long)s->evicted);
    ADD(p, "session_evicted_total{reason=\"close\"} %llu\n", (unsigned long long)s->closed);
    number(p, "session_kv_live_bytes", "gauge",
           (double)(s->kv_device_bytes + s->drafter_device_bytes),
           "Device bytes of all sessions, from the allocator.");
    head(p, "cache_invariant_violations_total", "counter", "Broken cache invariants.");
    ADD(p, "cache_invariant_violations_total{kind=\"inv1\"} %llu\n",
        (unsigned long long)s->inv1_violations);
    ADD(p, "cache_invariant_violations_total{kind=\"inv2\"} %llu\n",
        (unsigned long long)s->inv2_violations);
    one_histogram(p, "session_history_tokens", &m->history, "Tokens of a history after an append.");
    one_histogram(p, "generate_prefill_tokens", &m->prefill_tokens, "Tokens of an append.");
    one_histogram(p, "generate_prefill_duration_seconds", &m->prefill,
                  "From an append's start to its last row, the wait for a place included.");
}

static void kakeya(struct page *p, const struct kk_runtime_stats *s, const struct kk_metrics *m)
{
    const struct {
        const char *name;
        uint64_t value;
        const char *help;
    } counters[] = {
        {"kakeya_sessions_created_total", s->created, "Sessions created."},
        {"kakeya_sessions_forked_total", s->forked, "Sessions made by ForkSession."},
        {"kakeya_sessions_resumed_total", s->resumed, "Sessions brought back to the device."},
        {"kakeya_snapshots_failed_total", s->snapshots_failed,
         "Snapshots that could not be written."},
        {"kakeya_snapshots_lost_total", s->snapshots_lost,
         "Snapshots that could not be used: the history was read again."},
        {"kakeya_calls_cancelled_total", s->calls_cancelled, "Calls that were cancelled."},
        {"kakeya_calls_refused_total", s->calls_refused, "Calls refused for want of room."},
        {"kakeya_steps_total", s->steps, "Forward passes of the model."},
        {"kakeya_rows_total", s->rows, "Rows of all forward passes."},
    };
    for (size_t i = 0; i < sizeof counters / sizeof *counters; i++)
        number(p, counters[i].name, "counter", (double)counters[i].value, counters[i].help);
    number(p, "kakeya_step_seconds_total", "counter", s->step_seconds, "Time in forward passes.");
    number(p, "kakeya_state_broken", "gauge", s->state_broken,
           "1 while the journal cannot be written: no token is sent until it can.");
    head(p, "kakeya_sessions", "gauge", "Sessions, by where their rows are.");
    ADD(p, "kakeya_sessions{where=\"device\"} %llu\n", (unsigned long long)s->sessions_resident);
    ADD(p, "kakeya_sessions{where=\"host\"} %llu\n", (unsigned long long)s->sessions_host);
    ADD(p, "kakeya_sessions{where=\"elsewhere\"} %llu\n",
        (unsigned long long)s->sessions_elsewhere);
    head(p, "kakeya_kv_bytes", "gauge", "Bytes of rows, from the allocator, by kind.");
    ADD(p, "kakeya_kv_bytes{kind=\"device\"} %lld\n", (long long)s->kv_device_bytes);
    ADD(p, "kakeya_kv_bytes{kind=\"drafter\"} %lld\n", (long long)s->drafter_device_bytes);
    ADD(p, "kakeya_kv_bytes{kind=\"staging\"} %lld\n", (long long)s->kv_staging_bytes);
    ADD(p, "kakeya_kv_bytes{kind=\"host\"} %lld\n", (long long)s->kv_host_bytes);
    ADD(p, "kakeya_kv_bytes{kind=\"disk\"} %lld\n", (long long)s->kv_disk_bytes);
    number(p, "kakeya_weight_bytes", "gauge", (double)s->weight_bytes, "Bytes of the weights.");
    head(p, "kakeya_rpc_requests_total", "counter", "Calls that ended, by method and status.");
    for (int k = 0; k < KK_RPC_KINDS; k++)
        for (int c = 0; c < KK_GRPC_CODES; c++)
            if (get(&m->calls[k][c]))
                ADD(p, "kakeya_rpc_requests_total{method=\"%s\",code=\"%s\"} %llu\n", kind_names[k],
                    kk_grpc_status_name(c), (unsigned long long)get(&m->calls[k][c]));
    head(p, "kakeya_rpc_seconds", "histogram", "Time of a call, by method.");
    for (int k = 0; k < KK_RPC_KINDS; k++) {
        char label[48];
        snprintf(label, sizeof label, "method=\"%s\"", kind_names[k]);
        histogram(p, "kakeya_rpc_seconds", label, &m->seconds[k]);
    }
}

/* The names that dashboards and routers made for vLLM look for; what is not measured is absent. */
static void vllm(struct page *p, const struct kk_runtime_stats *s, const struct kk_metrics *m)
{
    static const char *const reasons[KK_STOPS] = {
        [KK_STOP_MAX_TOKENS] = "length",
        [KK_STOP_EOS] = "stop",
        [KK_STOP_CALLER] = "abort",
        [KK_STOP_CTX] = "context",
    };
    number(p, "vllm:num_requests_running", "gauge", (double)s->calls_running, "Calls running.");
    number(p, "vllm:num_requests_waiting", "gauge", (double)s->calls_queued, "Calls waiting.");
    number(p, "vllm:prompt_tokens_total", "counter", (double)s->tokens_appended,
           "Tokens appended.");
    number(p, "vllm:generation_tokens_total", "counter", (double)s->tokens_generated,
           "Tokens generated.");
    number(p, "vllm:prefix_cache_hits_total", "counter", (double)s->prefix_hit_tokens,
           "Appended tokens whose rows were there already.");
    number(p, "vllm:spec_decode_num_draft_tokens_total", "counter", (double)s->drafted,
           "Tokens proposed by drafters.");
    number(p, "vllm:spec_decode_num_accepted_tokens_total", "counter", (double)s->accepted,
           "Of them, tokens emitted.");
    head(p, "vllm:request_success_total", "counter", "Generations that ended well, by reason.");
    for (int r = 0; r < KK_STOPS; r++)
        ADD(p, "vllm:request_success_total{model_name=\"%s\",finished_reason=\"%s\"} %llu\n",
            p->model, reasons[r], (unsigned long long)get(&m->stops[r]));
    one_histogram(p, "vllm:time_to_first_token_seconds", &m->first_token,
                  "From a Generate to its first token.");
    one_histogram(p, "vllm:inter_token_latency_seconds", &m->inter_token,
                  "Between tokens of a Generate.");
    one_histogram(p, "vllm:e2e_request_latency_seconds", &m->generate,
                  "From a Generate to its end.");
    one_histogram(p, "vllm:request_queue_time_seconds", &m->queued, "A Generate's time in line.");
}

static void process(struct page *p)
{
    char line[128], *resident;
    FILE *f = fopen("/proc/self/statm", "re");
    if (f && fgets(line, sizeof line, f) && (resident = strchr(line, ' ')))
        number(p, "process_resident_memory_bytes", "gauge",
               (double)strtoll(resident, NULL, 10) * (double)sysconf(_SC_PAGESIZE),
               "Resident memory.");
    if (f) fclose(f);
    DIR *d = opendir("/proc/self/fd");
    if (!d) return;
    int n = -3; /* ".", ".." and d itself */
    while (readdir(d)) n++;
    closedir(d);
    number(p, "process_open_fds", "gauge", n, "Open file descriptors.");
}

/* A label's value: quotes, backslashes and control characters escaped or dropped. */
static void escape(const char *s, char *out, size_t cap)
{
    size_t n = 0;
    for (; *s && n + 3 < cap; s++) {
        if (*s == '"' || *s == '\\') out[n++] = '\\';
        if ((unsigned char)*s >= ' ') out[n++] = *s;
    }
    out[n] = 0;
}

int kk_metrics_text(const struct kk_metrics *m, const struct kk_runtime_stats *s, const char *model,
                    struct kk_buf *out)
{
    char name[128];
    struct page p = {.out = out, .model = name};
    escape(model, name, sizeof name);
    sessions(&p, s, m);
    kakeya(&p, s, m);
    vllm(&p, s, m);
    process(&p);
    return p.rc;
}
