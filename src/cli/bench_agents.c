/* kakeya bench agents: n agents at once, each over a connection of its own: create a session and
 * append its context in pieces; when all have, generate, all together; when all have, ask what the
 * session takes; close. With --mixed the agents of odd number come when the others have read, and
 * read while those generate: a gap between two tokens is then as long as the server lets reads make
 * it. The server is a child of this process (its memory is its own), or one that
 * runs already.
 *
 * Bytes are the server's own counters, of the sessions while all are held. A prompt is a random
 * sequence of 64 tokens, another one for each agent: nothing is shared. */
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>

#include "base/clock.h"
#include "base/fs.h"
#include "base/mem.h"
#include "base/rng.h"
#include "cli/child.h"
#include "cli/common.h"
#include "cli/picture.h"
#include "serve/client.h"
#include "serve/rpc.h"

enum { PIECE = 256, TIMEOUT_S = 1800, STATUSES = KK_GRPC_CODES };

struct bench;

enum stage { CREATE, APPEND, GENERATE, HELD, INFO, CLOSE, OVER };

struct agent {
    struct bench *b;
    struct kk_client *client;
    struct kk_client_call *call;
    int number, created, generated, goes, status; /* status: of the call that failed, or 0 */
    enum stage stage;
    char id[KK_SESSION_ID_MAX];
    uint64_t asked_ns, last_ns; /* this call; the latest token */
    int64_t appended, tokens;
    double create_s, append_s, first_s, generate_s, *gaps; /* gaps [gen] */
    int n_gaps;
    struct kk_session_info info;
};

struct bench {
    struct kk_cli *cli;
    struct kk_client_loop *loop;
    struct kk_client_options to;
    struct kk_child server; /* not running with --connect */
    char token[4200], connect[300];
    int64_t context, gen;
    uint64_t seed;
    rlim_t fd_before, fd_after, fd_wanted;
    struct agent *agents;
    pthread_mutex_t lock;
    pthread_cond_t change;
    int mixed;
    int waiting;                          /* agents that are still under way to HELD, or to OVER */
    uint64_t first_ask_ns, last_token_ns; /* of a Generate; of all agents */
};

/* ---- one agent ------------------------------------------------------------------------------ */

static int on_event(void *arg, const struct kk_event *ev);

/* The agent stays at its stage: the one it has come to, or OVER. */
static void arrive(struct agent *a, enum stage stage)
{
    struct bench *b = a->b;
    pthread_mutex_lock(&b->lock);
    a->stage = stage;
    if (!--b->waiting) pthread_cond_signal(&b->change);
    pthread_mutex_unlock(&b->lock);
}

/* Ask for what the stage needs. */
static void ask(struct agent *a)
{
    static const enum kk_request_kind kinds[] = {
        [CREATE] = KK_REQUEST_CREATE,     [APPEND] = KK_REQUEST_APPEND,
        [GENERATE] = KK_REQUEST_GENERATE, [INFO] = KK_REQUEST_INFO,
        [CLOSE] = KK_REQUEST_CLOSE,
    };
    const struct bench *b = a->b;
    uint32_t ids[PIECE];
    struct kk_request r = {.kind = kinds[a->stage],
                           .session = a->id,
                           .label = kk_config_text(&b->cli->cfg, KK_OPT_LABEL),
                           .sink = on_event,
                           .arg = a,
                           .max_tokens = b->gen,
                           .sampling = kk_sampling_defaults(),
                           .seed_unset = 1};
    r.sampling.ignore_eos = 1;
    if (a->stage == APPEND) {
        r.ids = ids;
        while (r.n < PIECE && a->appended + (int64_t)r.n < b->context) {
            uint64_t at = ((uint64_t)a->number << 32) + (uint64_t)a->appended + r.n;
            ids[r.n++] = 1 + (uint32_t)(kk_rng_at(b->seed, at) % 64);
        }
        a->appended += (int64_t)r.n;
    }
    if (a->stage != APPEND || a->appended <= PIECE) a->asked_ns = kk_now_ns();
    if (kk_client_call(a->client, &r, TIMEOUT_S, &a->call, NULL)) {
        a->status = KK_GRPC_UNKNOWN;
        arrive(a, OVER);
    }
}

static void on_token(struct agent *a)
{
    struct bench *b = a->b;
    uint64_t now = kk_now_ns();
    if (!a->tokens)
        a->first_s = (double)(now - a->asked_ns) * 1e-9;
    else if (a->n_gaps < b->gen)
        a->gaps[a->n_gaps++] = (double)(now - a->last_ns) * 1e-9;
    a->last_ns = now;
    a->tokens++;
    pthread_mutex_lock(&b->lock);
    if (!b->first_ask_ns || a->asked_ns < b->first_ask_ns) b->first_ask_ns = a->asked_ns;
    b->last_token_ns = now;
    pthread_mutex_unlock(&b->lock);
}

/* A call went well: what it gave, and the next one. */
static void go_on(struct agent *a, const struct kk_event *ev)
{
    double s = kk_seconds_since(a->asked_ns);
    switch (a->stage) {
    case CREATE:
        snprintf(a->id, sizeof a->id, "%s", ev->session);
        a->create_s = s;
        a->created = 1;
        a->stage = APPEND;
        break;
    case APPEND:
        a->append_s = s;
        if (a->appended == a->b->context) {
            arrive(a, HELD);
            return;
        }
        break;
    case GENERATE:
        a->generate_s = s;
        a->generated = a->tokens == a->b->gen;
        arrive(a, HELD);
        return;
    case INFO:
        a->info = ev->info;
        arrive(a, HELD);
        return;
    default:
        arrive(a, OVER);
        return;
    }
    ask(a);
}

/* By a thread of the client's loop; an agent has one call at a time. */
static int on_event(void *arg, const struct kk_event *ev)
{
    struct agent *a = arg;
    if (ev->kind == KK_EVENT_TOKENS) on_token(a);
    if (ev->kind != KK_EVENT_DONE) return KK_SINK_OK;
    struct kk_client_call *call = a->call;
    int status = kk_client_status(call);
    a->call = NULL;
    if (!status && !ev->code) {
        go_on(a, ev);
    } else {
        a->status = status ? status : KK_GRPC_UNKNOWN;
        arrive(a, OVER);
    }
    kk_client_release(call);
    return KK_SINK_OK;
}

/* Agents of even and of odd number that stand at HELD, or begin, go each to a stage (HELD: they
 * stay); returns when they have come back. */
static void go(struct bench *b, int n, enum stage even, enum stage odd)
{
    int going = 0;
    for (int i = 0; i < n; i++) {
        struct agent *a = &b->agents[i];
        enum stage to = i % 2 ? odd : even;
        if (to == HELD || a->stage != (to == CREATE ? CREATE : HELD)) continue;
        a->goes = 1;
        going++;
    }
    b->waiting = going;
    for (int i = 0; i < n && going; i++) {
        struct agent *a = &b->agents[i];
        if (!a->goes) continue;
        a->goes = 0;
        a->stage = i % 2 ? odd : even;
        ask(a);
    }
    pthread_mutex_lock(&b->lock);
    while (b->waiting) pthread_cond_wait(&b->change, &b->lock);
    pthread_mutex_unlock(&b->lock);
}

/* ---- one level ------------------------------------------------------------------------------ */

static int by_value(const void *x, const void *y)
{
    double a = *(const double *)x, b = *(const double *)y;
    return (a > b) - (a < b);
}

/* p in [0, 1] of sorted values: the nearest rank. */
static double rank(const double *x, size_t n, double p)
{
    size_t i = (size_t)(p * (double)n);
    return n ? x[i < n ? i : n - 1] : 0;
}

/* {"p50", "p95", "p99", "max"} of n values, which are sorted. */
static json_t *percentiles(double *x, size_t n)
{
    if (!n) return json_null();
    qsort(x, n, sizeof *x, by_value);
    return json_pack("{s:f, s:f, s:f, s:f}", "p50", rank(x, n, .5), "p95", rank(x, n, .95), "p99",
                     rank(x, n, .99), "max", x[n - 1]);
}

/* One field of the agents that generated, as percentiles. */
static json_t *of_agents(const struct bench *b, int n, size_t field, double *x)
{
    size_t k = 0;
    for (int i = 0; i < n; i++)
        if (b->agents[i].generated) x[k++] = *(const double *)((const char *)&b->agents[i] + field);
    return percentiles(x, k);
}

/* Of every step-th agent */
static json_t *gaps(const struct bench *b, int n, int step)
{
    size_t most = (size_t)n * (size_t)b->gen, k = 0;
    double *x = kk_array(most, sizeof *x);
    if (!x) return json_null();
    for (int i = 0; i < n; i += step)
        for (int g = 0; g < b->agents[i].n_gaps; g++) x[k++] = b->agents[i].gaps[g];
    json_t *r = percentiles(x, k);
    kk_free(x);
    return r;
}

static double number(const json_t *o, const char *key)
{
    return json_number_value(json_object_get(o, key));
}

/* What the agents that wrote while others read have met. */
static json_t *while_reading(const struct bench *b, int n)
{
    json_t *g = gaps(b, n, 2);
    double median = number(g, "p50"), read_s = 0;
    int64_t appended = 0;
    for (int i = 1; i < n; i += 2) {
        appended += b->agents[i].appended;
        if (b->agents[i].append_s > read_s) read_s = b->agents[i].append_s;
    }
    return json_pack("{s:i, s:i, s:o, s:o, s:f}", "writers", (n + 1) / 2, "readers", n / 2,
                     "inter_token_s", g, "worst_over_median",
                     median > 0 ? json_real(number(g, "max") / median) : json_null(),
                     "append_tokens_per_s", kk_cli_rate((double)appended, read_s));
}

static json_t *errors(const struct bench *b, int n)
{
    json_t *r = json_object();
    for (int s = 1; s < STATUSES; s++) {
        int count = 0;
        for (int i = 0; i < n; i++) count += b->agents[i].status == s;
        if (count) json_object_set_new(r, kk_grpc_status_name(s), json_integer(count));
    }
    return r;
}

/* The session bytes of one agent, and of all: what the server counted while all were held. */
static void add_bytes(const struct bench *b, int n, json_t *r)
{
    int64_t device = 0, drafter = 0, host = 0, most = 0, shared = 0;
    int held = 0;
    for (int i = 0; i < n; i++) {
        const struct kk_session_info *s = &b->agents[i].info;
        if (!b->agents[i].generated) continue;
        held++;
        device += s->kv_device_bytes;
        drafter += s->drafter_device_bytes;
        host += s->kv_host_bytes;
        shared += s->kv_shared_bytes;
        if (s->kv_device_bytes + s->drafter_device_bytes > most)
            most = s->kv_device_bytes + s->drafter_device_bytes;
    }
    if (!held) held = 1;
    json_object_set_new(r, "per_session_kv_bytes", json_integer((device + drafter) / held));
    json_object_set_new(r, "per_session_kv_bytes_max", json_integer(most));
    json_object_set_new(r, "kv_device_bytes", json_integer(device / held));
    json_object_set_new(r, "drafter_device_bytes", json_integer(drafter / held));
    json_object_set_new(r, "kv_host_bytes", json_integer(host / held));
    json_object_set_new(r, "kv_shared_bytes", json_integer(shared / held));
    json_object_set_new(r, "all_kv_device_bytes", json_integer(device + drafter));
    json_object_set_new(r, "all_kv_host_bytes", json_integer(host));
}

static json_t *level_report(const struct bench *b, int n, double read_s, double wall_s,
                            double rss_mb)
{
    int created = 0, generated = 0;
    int64_t tokens = 0, appended = 0;
    double *x = kk_array((size_t)n, sizeof *x);
    double span = (double)(b->last_token_ns - b->first_ask_ns) * 1e-9;
    json_t *r = json_object();
    if (!x || !r) goto out;
    for (int i = 0; i < n; i++) {
        created += b->agents[i].created;
        generated += b->agents[i].generated;
        tokens += b->agents[i].tokens;
        appended += b->agents[i].appended;
    }
    json_object_set_new(r, "level", json_integer(n));
    json_object_set_new(r, "agents", json_integer(n));
    json_object_set_new(r, "created_ok", json_integer(created));
    json_object_set_new(r, "generate_ok", json_integer(generated));
    json_object_set_new(r, "errors", errors(b, n));
    json_object_set_new(r, "create_latency_s",
                        of_agents(b, n, offsetof(struct agent, create_s), x));
    json_object_set_new(r, "append_latency_s",
                        of_agents(b, n, offsetof(struct agent, append_s), x));
    json_object_set_new(r, "ttft_s", of_agents(b, n, offsetof(struct agent, first_s), x));
    json_object_set_new(r, "generate_latency_s",
                        of_agents(b, n, offsetof(struct agent, generate_s), x));
    json_object_set_new(r, "inter_token_s", gaps(b, n, 1));
    if (b->mixed) json_object_set_new(r, "while_reading", while_reading(b, n));
    json_object_set_new(r, "tokens", json_integer(tokens));
    json_object_set_new(r, "tokens_per_s", json_real(kk_cli_rate((double)tokens, span)));
    json_object_set_new(r, "append_tokens_per_s", json_real(kk_cli_rate((double)appended, read_s)));
    add_bytes(b, n, r);
    json_object_set_new(r, "server_rss_mb", rss_mb > 0 ? json_real(rss_mb) : json_null());
    json_object_set_new(r, "wall_s", json_real(wall_s));
out:
    kk_free(x);
    return r;
}

static int prepare_agents(struct bench *b, int n, struct kk_err *err)
{
    int rc = 0;
    b->agents = kk_calloc((size_t)n, sizeof *b->agents);
    if (!b->agents) return kk_fail(err, KK_ENOMEM, "out of memory for %d agents", n);
    for (int i = 0; !rc && i < n; i++) {
        struct agent *a = &b->agents[i];
        a->b = b;
        a->number = i;
        a->gaps = kk_array((size_t)b->gen, sizeof *a->gaps);
        if (!a->gaps) rc = kk_fail(err, KK_ENOMEM, "out of memory for %d agents", n);
        if (!rc) rc = kk_client_open(b->loop, &b->to, &a->client, err);
    }
    return rc;
}

static void release_agents(struct bench *b, int n)
{
    for (int i = 0; b->agents && i < n; i++) {
        kk_client_close(b->agents[i].client);
        kk_free(b->agents[i].gaps);
    }
    kk_free(b->agents);
    b->agents = NULL;
}

static int run_level(struct bench *b, int n, json_t **out, struct kk_err *err)
{
    char what[48];
    snprintf(what, sizeof what, "%d agents", n);
    kk_progress_show(&b->cli->progress, what, 0, 1, KK_PROGRESS_ITEMS);
    int rc = prepare_agents(b, n, err);
    if (!rc) {
        b->first_ask_ns = b->last_token_ns = 0;
        uint64_t t0 = kk_now_ns();
        go(b, n, CREATE, b->mixed ? HELD : CREATE);
        if (b->mixed) go(b, n, GENERATE, CREATE);
        double read_s = kk_seconds_since(t0);
        go(b, n, b->mixed ? HELD : GENERATE, GENERATE);
        double wall_s = kk_seconds_since(t0), rss_mb = kk_child_memory_mb(&b->server, "VmRSS");
        go(b, n, INFO, INFO);
        *out = level_report(b, n, read_s, wall_s, rss_mb);
        go(b, n, CLOSE, CLOSE);
    }
    release_agents(b, n);
    kk_progress_clear(&b->cli->progress);
    if (!rc && b->server.pid && !kk_child_alive(&b->server))
        rc = kk_fail(err, KK_EIO, "the server ended during the run with %d agents", n);
    return rc;
}

/* ---- the run -------------------------------------------------------------------------------- */

/* Room for a connection an agent, here and in the server, which inherits the limit. */
static void raise_limit(struct bench *b, int most)
{
    struct rlimit r;
    getrlimit(RLIMIT_NOFILE, &r);
    b->fd_before = b->fd_after = r.rlim_cur;
    b->fd_wanted = (rlim_t)most + 256;
    if (r.rlim_cur >= b->fd_wanted) return;
    r.rlim_cur = r.rlim_max < b->fd_wanted ? r.rlim_max : b->fd_wanted;
    if (!setrlimit(RLIMIT_NOFILE, &r)) b->fd_after = r.rlim_cur;
}

static int read_token(struct bench *b, struct kk_err *err)
{
    const char *path = kk_config_text(&b->cli->cfg, KK_OPT_TOKEN_FILE);
    struct kk_buf file;
    if (!path) return 0;
    kk_buf_init(&file, sizeof b->token - 1);
    int rc = kk_fs_read(path, &file, err);
    if (!rc)
        snprintf(b->token, sizeof b->token, "%.*s", (int)strcspn(file.data, "\r\n"), file.data);
    kk_buf_release(&file);
    b->to.token = b->token;
    return rc;
}

static int find_server(struct bench *b, int most, struct kk_err *err)
{
    const struct kk_config *c = &b->cli->cfg;
    const char *connect = kk_config_text(c, KK_OPT_CONNECT), *model;
    b->to.tls_ca = kk_config_text(c, KK_OPT_TLS_CA);
    if (connect) {
        b->to.address = connect;
        return read_token(b, err);
    }
    if (b->to.tls_ca || kk_config_text(c, KK_OPT_TOKEN_FILE))
        return kk_fail(err, KK_EUSAGE, "--tls-ca and --token-file go with --connect");
    int rc = kk_cli_model(b->cli, &model, err);
    if (!rc) rc = kk_child_serve(&b->server, c, most, err);
    if (rc) return rc;
    const char *address = json_string_value(json_object_get(b->server.ready, "address"));
    snprintf(b->connect, sizeof b->connect, "%s", address ? address : "");
    b->to.address = b->connect;
    return 0;
}

static void print_head(const struct bench *b)
{
    printf("%s: context %lld, %lld tokens generated%s%s\n\n", b->to.address, (long long)b->context,
           (long long)b->gen, kk_config_text(&b->cli->cfg, KK_OPT_LABEL) ? ", " : "",
           kk_config_text(&b->cli->cfg, KK_OPT_LABEL) ? kk_config_text(&b->cli->cfg, KK_OPT_LABEL)
                                                      : "");
    printf("%7s %7s %10s %10s %10s %10s %10s %10s %12s %12s %10s\n", "agents", "errors",
           "ttft p50 s", "p95", "p99", "gap p50 ms", "gap max ms", "tok/s", "KV device", "KV host",
           "RSS MB");
}

static void print_level(const json_t *r)
{
    const json_t *first = json_object_get(r, "ttft_s"), *gap = json_object_get(r, "inter_token_s");
    double n = number(r, "agents");
    printf("%7.0f %7.0f %10.3f %10.3f %10.3f %10.2f %10.2f %10.1f %12s %12s %10.1f\n", n,
           n - number(r, "generate_ok"), number(first, "p50"), number(first, "p95"),
           number(first, "p99"), number(gap, "p50") * 1e3, number(gap, "max") * 1e3,
           number(r, "tokens_per_s"), kk_cli_bytes((int64_t)number(r, "per_session_kv_bytes")),
           kk_cli_bytes((int64_t)number(r, "kv_host_bytes")), number(r, "server_rss_mb"));
    r = json_object_get(r, "while_reading");
    gap = json_object_get(r, "inter_token_s");
    if (r)
        printf("        while %.0f read: gap p50 %.2f ms, p99 %.2f, max %.2f: %.1f x the median\n",
               number(r, "readers"), number(gap, "p50") * 1e3, number(gap, "p99") * 1e3,
               number(gap, "max") * 1e3, number(r, "worst_over_median"));
    fflush(stdout);
}

/* What the server was started with; with --connect it is not known. */
static void add_server(const struct bench *b, json_t *r)
{
    const struct kk_config *c = &b->cli->cfg;
    const char *kv = kk_config_text(c, KK_OPT_KV);
    const int near = strcmp(kv, "full") != 0 && strcmp(kv, "native") != 0;
    json_object_set(r, "server", b->server.ready);
    json_object_set(r, "capacity", json_object_get(b->server.ready, "capacity"));
    json_object_set_new(r, "sink",
                        near ? json_integer(kk_config_int(c, KK_OPT_KV_SINKS)) : json_null());
    json_object_set_new(r, "window",
                        near ? json_integer(kk_config_int(c, KK_OPT_KV_WINDOW)) : json_null());
}

static json_t *config(const struct bench *b)
{
    const struct kk_config *c = &b->cli->cfg;
    json_t *r =
        json_pack("{s:s, s:I, s:I, s:I, s:I, s:i, s:{s:I, s:I, s:I}}", "backend", "kakeya",
                  "gen_tokens", (json_int_t)b->gen, "prompt_len", (json_int_t)b->context,
                  "context_len", (json_int_t)b->context, "prefill_len", (json_int_t)b->context,
                  "append_piece", PIECE, "fd_limit", "requested", (json_int_t)b->fd_wanted,
                  "before", (json_int_t)b->fd_before, "after", (json_int_t)b->fd_after);
    json_object_set_new(r, "verifier_id", json_pack("s?", kk_config_text(c, KK_OPT_MODEL)));
    json_object_set_new(r, "label", json_pack("s?", kk_config_text(c, KK_OPT_LABEL)));
    json_object_set_new(r, "connect", json_pack("s?", kk_config_text(c, KK_OPT_CONNECT)));
    json_object_set_new(r, "mixed", json_boolean(b->mixed));
    json_object_set_new(r, "seed", json_integer((json_int_t)b->seed));
    json_object_set_new(r, "single_tenant_note",
                        json_string("a session's rows are its own: agents share nothing"));
    if (b->server.ready) add_server(b, r);
    return r;
}

/* What the reference's report closes with; the bound is of counted bytes, not of a formula. */
static json_t *summary(const struct bench *b, const json_t *results)
{
    double clean = 0, most = 0, bytes = 0, peak = kk_child_memory_mb(&b->server, "VmHWM");
    size_t i;
    const json_t *r;
    json_array_foreach(results, i, r)
    {
        if (number(r, "generate_ok") == number(r, "agents") && number(r, "agents") > clean)
            clean = number(r, "agents");
        if (number(r, "per_session_kv_bytes_max") > bytes)
            bytes = number(r, "per_session_kv_bytes_max");
        if (number(r, "all_kv_device_bytes") > most) most = number(r, "all_kv_device_bytes");
        if (number(r, "server_rss_mb") > peak) peak = number(r, "server_rss_mb"); /* they lag */
    }
    json_t *s =
        json_pack("{s:I, s:I, s:f, s:f, s:s}", "max_concurrent_agents_clean", (json_int_t)clean,
                  "per_session_kv_bytes", (json_int_t)bytes, "per_session_kv_mb", bytes * 1e-6,
                  "node_kv_upper_bound_mb", most * 1e-6, "node_kv_upper_bound_note",
                  "device bytes of all sessions held at once, from the server's allocator");
    json_object_set_new(s, "server_peak_rss_mb", peak > 0 ? json_real(peak) : json_null());
    json_object_set_new(s, "kv_staging_bytes",
                        b->server.ready
                            ? json_integer((json_int_t)number(b->server.ready, "kv_staging_bytes"))
                            : json_null());
    return s;
}

static int run_all(struct bench *b, json_t *results, struct kk_err *err)
{
    const struct kk_value *levels = &b->cli->cfg.value[KK_OPT_LEVELS];
    int rc = 0, text = kk_cli_wants_text(b->cli);
    if (text) print_head(b);
    for (int i = 0; !rc && i < levels->n; i++) {
        json_t *r = NULL;
        rc = run_level(b, (int)levels->list[i], &r, err);
        if (!rc && text) print_level(r);
        if (r) json_array_append_new(results, r);
    }
    return rc;
}

static int draw(const struct bench *b, const json_t *report, struct kk_err *err)
{
    const char *path = kk_config_text(&b->cli->cfg, KK_OPT_SVG);
    struct kk_buf svg;
    if (!path) return 0;
    kk_buf_init(&svg, 1 << 22);
    int rc = kk_agents_picture(report, &svg);
    if (rc)
        kk_fail(err, rc, "cannot draw the picture: %s", kk_strerror(rc));
    else if (strcmp(path, "-") != 0)
        rc = kk_fs_write(path, svg.data, svg.len, err);
    else
        fwrite(svg.data, 1, svg.len, stdout);
    kk_buf_release(&svg);
    return rc;
}

int kk_cli_bench_agents(struct kk_cli *cli, struct kk_err *err)
{
    struct bench b = {.cli = cli,
                      .context = kk_config_int(&cli->cfg, KK_OPT_CONTEXT_LEN),
                      .gen = kk_config_int(&cli->cfg, KK_OPT_GEN),
                      .mixed = kk_config_int(&cli->cfg, KK_OPT_MIXED) != 0,
                      .seed = kk_cli_seed(cli)};
    const struct kk_value *levels = &cli->cfg.value[KK_OPT_LEVELS];
    json_t *report = json_object(), *results = json_array(), *list = json_array();
    int most = 1, rc = kk_cli_no_words(cli, err);
    for (int i = 0; i < levels->n; i++) {
        if (levels->list[i] > most) most = (int)levels->list[i];
        json_array_append_new(list, json_integer(levels->list[i]));
    }
    pthread_mutex_init(&b.lock, NULL);
    pthread_cond_init(&b.change, NULL);
    raise_limit(&b, most);
    if (!rc) rc = find_server(&b, most, err); /* before gRPC's threads: they do not like a fork */
    if (!rc) rc = kk_client_loop_open(&b.loop, err);
    if (!rc) rc = run_all(&b, results, err);
    json_object_set_new(report, "kind", json_string("grpc_agent_capacity_loadtest"));
    json_object_set_new(report, "schema_version", json_integer(1));
    json_object_set_new(report, "config", config(&b));
    json_object_set(json_object_get(report, "config"), "levels", list);
    json_object_set_new(report, "levels", list);
    json_object_set_new(report, "summary", summary(&b, results));
    json_object_set_new(report, "results", results);
    kk_cli_describe_run(cli, report);
    kk_client_loop_close(b.loop);
    int ended = kk_child_stop(&b.server, rc ? NULL : err);
    if (!rc) rc = ended;
    if (!rc) rc = draw(&b, report, err);
    if (!rc)
        rc = kk_cli_report(cli, report, err);
    else
        json_decref(report);
    pthread_cond_destroy(&b.change);
    pthread_mutex_destroy(&b.lock);
    return rc;
}
