/* The page of metrics: what it counts, how it reads, and bad clients. kk-test: tsan */
#include "server_test.h"

#include <stdlib.h>

static int http_port;

/* The whole answer to some bytes, as text; "" if the server closed without one. */
static const char *http(const char *bytes)
{
    static char out[1 << 18];
    size_t n = 0;
    int fd = dial(http_port);
    send(fd, bytes, strlen(bytes), MSG_NOSIGNAL);
    if (!strstr(bytes, "Connection: close")) shutdown(fd, SHUT_WR);
    for (ssize_t k; n < sizeof out - 1 && (k = recv(fd, out + n, sizeof out - 1 - n, 0)) > 0;)
        n += (size_t)k;
    out[n] = 0;
    close(fd);
    return out;
}

static const char *get(const char *path)
{
    char request[256];
    snprintf(request, sizeof request, "GET %s HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n",
             path);
    return http(request);
}

/* The value of a line that begins so. */
static double value(const char *page, const char *name)
{
    char line[200];
    snprintf(line, sizeof line, "\n%s ", name);
    const char *at = strstr(page, line);
    if (!at) fail_msg("no line '%s'", name);
    return strtod(at + strlen(line), NULL);
}

/* Every line is a comment or "name[{labels}] number", and each name was announced. */
static void check_format(const char *page)
{
    const char *p = strstr(page, "\r\n\r\n");
    char type[128] = "";
    int lines = 0;
    assert_non_null(p);
    for (p += 4; *p; lines++) {
        size_t n = strcspn(p, "\n");
        if (!strncmp(p, "# TYPE ", 7))
            snprintf(type, sizeof type, "%.*s", (int)strcspn(p + 7, " "), p + 7);
        if (*p != '#') {
            const char *space = memrchr(p, ' ', n);
            char *end;
            assert_int_equal(strncmp(p, type, strlen(type)), 0);
            assert_non_null(space);
            strtod(space + 1, &end);
            assert_ptr_equal(end, p + n);
        }
        p += n + (p[n] == '\n');
    }
    assert_true(lines > 200);
}

static void test_page(void **state)
{
    struct rig g;
    struct kk_err err = {0};
    struct kk_event ev;
    struct kk_metrics_http *m, *second = NULL;
    char id[KK_SESSION_ID_MAX], none[KK_SESSION_ID_MAX], address[40];
    (void)state;
    rig_open(&g, 8, NULL);
    KK_ASSERT_OK(kk_metrics_http_open("127.0.0.1:0", &m, &err), &err);
    KK_ASSERT_OK(kk_metrics_http_start(m, g.rpc, &err), &err);
    http_port = kk_metrics_http_port(m);
    make_session(g.client, id);
    struct kk_request r = generate_request(id, 20);
    KK_ASSERT_OK(ask(g.client, &r, &ev, none, &err), &err);
    r.max_tokens = 0;
    assert_int_equal(ask(g.client, &r, &ev, none, &err), KK_EINVAL);

    const char *page = get("/metrics");
    check_format(page);
    assert_true(value(page, "session_active") == 1);
    assert_true(value(page, "kakeya_rpc_requests_total{method=\"Generate\",code=\"OK\"}") == 1);
    assert_true(value(page, "kakeya_rpc_requests_total{method=\"Generate\","
                            "code=\"INVALID_ARGUMENT\"}") == 1);
    assert_true(value(page, "vllm:generation_tokens_total{model_name=\"fake\"}") == 20);
    assert_true(value(page, "vllm:time_to_first_token_seconds_count{model_name=\"fake\"}") == 1);
    assert_true(value(page, "vllm:inter_token_latency_seconds_count{model_name=\"fake\"}") == 19);
    assert_true(value(page, "vllm:inter_token_latency_seconds_bucket{model_name=\"fake\","
                            "le=\"+Inf\"}") == 19);
    assert_true(value(page, "vllm:request_success_total{model_name=\"fake\","
                            "finished_reason=\"length\"}") == 1);
    assert_true(value(page, "generate_prefill_tokens_sum") == 3);
    assert_true(value(page, "session_history_tokens_bucket{le=\"2\"}") == 0);
    assert_true(value(page, "session_history_tokens_bucket{le=\"5\"}") == 1);
    assert_true(value(page, "process_resident_memory_bytes") > 1e6);

    assert_non_null(strstr(get("/healthz"), "200 OK"));
    assert_non_null(strstr(get("/readyz"), "200 OK"));
    assert_non_null(strstr(get("/nothing"), "404 Not Found"));
    assert_non_null(strstr(http("DELETE /metrics HTTP/1.1\r\n\r\n"), "HTTP/1.1 50"));
    kk_rpc_set_ready(g.rpc, 0);
    assert_non_null(strstr(get("/readyz"), "503 "));
    assert_non_null(strstr(get("/healthz"), "200 OK"));

    snprintf(address, sizeof address, "127.0.0.1:%d", http_port);
    KK_ASSERT_FAILS(kk_metrics_http_open(address, &second, &err), KK_EIO, &err,
                    "cannot listen on 127.0.0.1");
    KK_ASSERT_FAILS(kk_metrics_http_open("x", &second, &err), KK_EINVAL, &err, "HOST:PORT");
    kk_metrics_http_close(m);
    rig_close(&g);
}

/* Junk, headers without end, too many connections, a client that never ends. */
static void test_hostile(void **state)
{
    static char big[20000];
    struct rig g;
    struct kk_err err = {0};
    struct kk_metrics_http *m;
    struct kk_test_rng rng = kk_test_rng("http");
    int idle[150], slow;
    (void)state;
    rig_open(&g, 8, NULL);
    KK_ASSERT_OK(kk_metrics_http_open("127.0.0.1:0", &m, &err), &err);
    KK_ASSERT_OK(kk_metrics_http_start(m, g.rpc, &err), &err);
    http_port = kk_metrics_http_port(m);
    for (int i = 0; i < 40; i++) {
        char junk[400];
        for (int k = 0; k < 399; k++) junk[k] = (char)kk_test_between(&rng, 1, 255);
        junk[kk_test_below(&rng, 400)] = 0;
        junk[399] = 0;
        http(junk);
    }
    memset(big, 'a', sizeof big - 1);
    memcpy(big, "GET /metrics HTTP/1.1\r\nX: ", 26);
    assert_null(strstr(http(big), "200 OK"));
    slow = dial(http_port);
    send(slow, "GET /met", 8, MSG_NOSIGNAL);
    for (int i = 0; i < 150; i++) idle[i] = dial(http_port);
    usleep(50000);
    for (int i = 0; i < 150; i++) close(idle[i]);
    assert_non_null(strstr(get("/metrics"), "200 OK"));
    assert_non_null(strstr(get("/healthz"), "200 OK"));
    close(slow);
    kk_metrics_http_close(m);
    rig_close(&g);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_page), cmocka_unit_test(test_hostile)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
