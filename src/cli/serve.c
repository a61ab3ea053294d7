/* kakeya serve: a runtime behind gRPC, until SIGTERM or SIGINT. */
#include <errno.h>
#include <semaphore.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "cli/common.h"
#include "engine/runtime.h"
#include "kk_build.h"
#include "serve/serve.h"

struct serving {
    struct kk_cli *cli;
    struct kk_plan plan; /* of one session that fills its context */
    struct kk_runtime_options o;
    struct kk_runtime *rt;
    struct kk_rpc *rpc;
    struct kk_server *server;
    struct kk_metrics_http *metrics;
    char address[300], metrics_address[300];
};

/* ---- options ------------------------------------------------------------------------------- */

static struct kk_runtime_options runtime_options(const struct kk_config *c)
{
    struct kk_runtime_options o = kk_runtime_defaults();
    o.capacity = (int)kk_config_int(c, KK_OPT_CAPACITY);
    o.max_calls = (int)kk_config_int(c, KK_OPT_MAX_CALLS);
    o.idle_ttl_s = kk_config_real(c, KK_OPT_IDLE_TTL);
    o.evict_idle = (int)kk_config_int(c, KK_OPT_EVICT_IDLE);
    o.step_rows = (int)kk_config_int(c, KK_OPT_STEP_ROWS);
    o.kv_bytes = kk_config_int(c, KK_OPT_KV_TOTAL);
    o.kv_host = kk_config_int(c, KK_OPT_IDLE_HOST);
    if (!o.kv_host) o.kv_host = -1; /* no cap */
    o.kv_disk = kk_config_int(c, KK_OPT_KV_DISK);
    o.state = kk_config_text(c, KK_OPT_STATE);
    o.journal_full = (int)kk_config_int(c, KK_OPT_JOURNAL_FULL);
    return o;
}

static void on_log(const char *line)
{
    fprintf(stderr, "kakeya: grpc: %s\n", line);
}

static struct kk_server_options server_options(const struct kk_config *c)
{
    struct kk_server_options o = kk_server_defaults();
    o.address = kk_config_text(c, KK_OPT_GRPC);
    o.tls_cert = kk_config_text(c, KK_OPT_TLS_CERT);
    o.tls_key = kk_config_text(c, KK_OPT_TLS_KEY);
    o.token_file = kk_config_text(c, KK_OPT_AUTH_TOKEN_FILE);
    o.max_message = (size_t)kk_config_int(c, KK_OPT_MAX_MESSAGE);
    o.log = on_log;
    return o;
}

/* HOST of the address asked for, PORT as bound. */
static void bound_address(char *out, size_t cap, const char *asked, int port)
{
    const char *colon = strrchr(asked, ':');
    snprintf(out, cap, "%.*s:%d", (int)(colon - asked), asked, port);
}

/* ---- opening ------------------------------------------------------------------------------- */

/* Addresses and files first: what is wrong with them is told before a model loads. */
static int open_server(struct serving *s, struct kk_err *err)
{
    const struct kk_config *c = &s->cli->cfg;
    const struct kk_server_options o = server_options(c);
    const char *metrics = kk_config_text(c, KK_OPT_METRICS);
    int rc = kk_server_open(&o, &s->server, err);
    if (!rc && metrics) rc = kk_metrics_http_open(metrics, &s->metrics, err);
    if (rc) return rc;
    bound_address(s->address, sizeof s->address, o.address, kk_server_port(s->server));
    if (metrics)
        bound_address(s->metrics_address, sizeof s->metrics_address, metrics,
                      kk_metrics_http_port(s->metrics));
    return 0;
}

static int open_runtime(struct serving *s, struct kk_err *err)
{
    struct kk_cli *cli = s->cli;
    struct kk_engine_options o;
    int rc = kk_cli_options(cli, &o, err);
    if (!rc) rc = kk_cli_open_engine(cli, err);
    if (!rc) rc = kk_plan_make(&o, cli->info.ctx, 1, &s->plan, err);
    if (!rc) rc = kk_runtime_open(cli->engine, &s->o, &s->rt, err);
    if (!rc) cli->engine = NULL; /* the runtime's */
    return rc;
}

static int start(struct serving *s, struct kk_err *err)
{
    int rc = kk_rpc_open(s->rt, kk_config_text(&s->cli->cfg, KK_OPT_MODEL), &s->rpc, err);
    if (!rc) rc = kk_server_start(s->server, s->rpc, err);
    if (!rc && s->metrics) rc = kk_metrics_http_start(s->metrics, s->rpc, err);
    return rc;
}

static void close_all(struct serving *s)
{
    kk_server_close(s->server);
    kk_metrics_http_close(s->metrics);
    kk_rpc_close(s->rpc);
    kk_runtime_close(s->rt);
}

/* ---- the ready line ------------------------------------------------------------------------ */

static void print_ready(const struct serving *s)
{
    const struct kk_config *c = &s->cli->cfg;
    const struct kk_engine_info *i = kk_runtime_engine_info(s->rt);
    char capacity[48] = "as many sessions as fit";
    if (s->o.capacity)
        snprintf(capacity, sizeof capacity, "%d session%s", s->o.capacity,
                 s->o.capacity == 1 ? "" : "s");
    printf("kakeya: ready on %s%s%s: %s, kv %s (%s), %s a session of %lld tokens, %s, %s",
           s->address, kk_config_text(c, KK_OPT_TLS_CERT) ? " (TLS)" : "",
           kk_config_text(c, KK_OPT_AUTH_TOKEN_FILE) ? " (token)" : "",
           kk_config_text(c, KK_OPT_MODEL), i->kv, i->kv_type,
           kk_cli_bytes(s->plan.session_kv_bytes), (long long)s->plan.ctx, capacity, i->device);
    if (s->metrics) printf(", metrics http://%s/metrics", s->metrics_address);
    printf("\n");
}

static int tell_ready(const struct serving *s, struct kk_err *err)
{
    const struct kk_config *c = &s->cli->cfg;
    const struct kk_engine_info *i = kk_runtime_engine_info(s->rt);
    if (kk_cli_wants_text(s->cli)) print_ready(s);
    json_t *r = json_pack(
        "{s:s, s:i, s:s, s:s, s:s, s:s, s:I, s:I, s:I, s:I, s:i, s:s, s:b, s:b}", "address",
        s->address, "pid", (int)getpid(), "model", kk_config_text(c, KK_OPT_MODEL), "kv", i->kv,
        "kv_type", i->kv_type, "device", i->device, "ctx", (json_int_t)s->plan.ctx,
        "session_kv_bytes", (json_int_t)s->plan.session_kv_bytes, "weight_bytes",
        (json_int_t)i->weight_bytes, "kv_staging_bytes", (json_int_t)i->kv_staging_bytes,
        "capacity", s->o.capacity, "draft", kk_config_text(c, KK_OPT_DRAFT), "tls",
        kk_config_text(c, KK_OPT_TLS_CERT) != NULL, "auth",
        kk_config_text(c, KK_OPT_AUTH_TOKEN_FILE) != NULL);
    json_object_set_new(r, "metrics", s->metrics ? json_string(s->metrics_address) : json_null());
    json_object_set_new(r, "version", json_string(KK_VERSION));
    json_object_set_new(r, "commit", json_string(KK_COMMIT));
    int rc = kk_cli_report(s->cli, r, err);
    if (!rc && fflush(stdout)) rc = kk_fail(err, KK_EIO, "cannot write to standard output: %m");
    return rc;
}

/* ---- serving ------------------------------------------------------------------------------ */

static sem_t stop;
static volatile sig_atomic_t serving, stop_signal;

/* The first signal ends in order; another one, or one while the model loads, at once. */
static void on_signal(int which)
{
    if (!serving || stop_signal) _exit(128 + which);
    stop_signal = which;
    sem_post(&stop);
}

static void catch_signals(void)
{
    struct sigaction act = {.sa_handler = on_signal, .sa_flags = SA_RESTART};
    sem_init(&stop, 0, 0);
    sigaction(SIGTERM, &act, NULL);
    sigaction(SIGINT, &act, NULL);
    signal(SIGPIPE, SIG_IGN);
}

/* Until a signal; then no new calls, and `grace` for those that run. */
static void serve_until_signal(struct serving *s)
{
    struct kk_runtime_stats st;
    double grace = kk_config_real(&s->cli->cfg, KK_OPT_GRACE);
    while (sem_wait(&stop) && errno == EINTR) continue;
    kk_runtime_stats(s->rt, &st);
    fprintf(stderr, "kakeya: %s: %llu calls running, at most %g s for them\n",
            stop_signal == SIGINT ? "SIGINT" : "SIGTERM",
            (unsigned long long)(st.calls_running + st.calls_queued), grace);
    kk_server_drain(s->server, grace);
}

int kk_cli_serve(struct kk_cli *cli, struct kk_err *err)
{
    struct serving s = {.cli = cli, .o = runtime_options(&cli->cfg)};
    const char *model;
    int rc = kk_cli_no_words(cli, err);
    if (!rc) rc = kk_cli_model(cli, &model, err);
    if (rc) return rc;
    catch_signals();
    rc = open_server(&s, err);
    if (!rc) rc = open_runtime(&s, err);
    if (!rc) rc = start(&s, err);
    serving = !rc;
    if (!rc) rc = tell_ready(&s, err);
    if (!rc) serve_until_signal(&s);
    close_all(&s);
    return rc;
}
