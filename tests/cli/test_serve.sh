#!/bin/bash
# kakeya serve and bench agents on the embedded model: the ready line, probes, TLS and tokens, two
# servers on one port, SIGTERM while calls run.
. tests/cli_lib.sh
TINY=models/tiny

# start ARGS...: a server; leaves $pid, and its ready report in $KK_TMP/ready.
start() {
    rm -f "$KK_TMP/ready"
    "$KK_BIN" serve -m "$TINY" --threads 2 --grpc 127.0.0.1:0 --json="$KK_TMP/ready" "$@" \
        >"$KK_TMP/line" 2>"$KK_TMP/talk" </dev/null &
    pid=$!
    for _ in $(seq 600); do
        [ -s "$KK_TMP/ready" ] && break
        kill -0 "$pid" 2>/dev/null || break
        sleep .1
    done
    address=$(json address "$KK_TMP/ready")
}
# stop: SIGTERM; leaves its exit status in $rc.
stop() {
    kill -TERM "$pid"
    rc=0
    wait "$pid" || rc=$?
}
fetch() { python3 -c 'import sys, urllib.request
print(urllib.request.urlopen("http://" + sys.argv[1], timeout=10).read().decode())' "$1"; }

# ---- one server
start --metrics 127.0.0.1:0 --capacity 40
check "the ready line" grep -Eq "^kakeya: ready on $address: models/tiny, kv native \((f32|bf16)\), .* a session of 16384 tokens, 40 sessions, cpu .*, metrics http://127" "$KK_TMP/line"
check "one line" [ "$(wc -l <"$KK_TMP/line")" = 1 ]
run plan -m "$TINY" --ctx 16384 --json
check "the bytes of a session are the plan's" \
    [ "$(json session_kv_bytes "$KK_TMP/ready")" = "$(json session_kv_bytes "$KK_TMP/out")" ]
metrics=$(json metrics "$KK_TMP/ready")
check "readyz" [ "$(fetch "$metrics/readyz")" = ready ]
refuses "a second server on the port" 1 "cannot listen on $address" serve -m "$TINY" --grpc "$address"

run bench agents --connect "$address" --levels 1,12 --context-len 300 --gen 8 --json
check "bench agents --connect" python3 - "$KK_TMP/out" <<'PY'
import json, sys
r = json.load(open(sys.argv[1]))
assert [x["level"] for x in r["results"]] == [1, 12], r
for x in r["results"]:
    assert x["generate_ok"] == x["created_ok"] == x["agents"] and x["errors"] == {}, x
    assert x["tokens"] == 8 * x["agents"] and x["tokens_per_s"] > 0
    assert 0 < x["ttft_s"]["p50"] <= x["ttft_s"]["p99"] <= x["ttft_s"]["max"]
    assert x["kv_device_bytes"] > 0 and x["server_rss_mb"] is None
assert r["summary"]["max_concurrent_agents_clean"] == 12
PY
fetch "$metrics/metrics" >"$KK_TMP/page"
check "metrics count what was done" grep -qx 'kakeya_rpc_requests_total{method="Generate",code="OK"} 13' "$KK_TMP/page"
check "no session is left" grep -qx 'session_active 0' "$KK_TMP/page"
run bench agents --connect "$address" --levels 60 --gen 2 --json
check "over capacity: the rest is refused and counted" python3 - "$KK_TMP/out" <<'PY'
import json, sys
x = json.load(open(sys.argv[1]))["results"][0]
assert x["created_ok"] == 40 and x["errors"] == {"RESOURCE_EXHAUSTED": 20}, x
PY
stop
check "SIGTERM: exit 0" [ "$rc" -eq 0 ]

# ---- TLS, tokens
tls() {
    openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 2 \
        -keyout "$KK_TMP/key.pem" -out "$KK_TMP/cert.pem" -subj /CN=localhost \
        -addext "subjectAltName=IP:127.0.0.1,DNS:localhost" 2>/dev/null
}
if command -v openssl >/dev/null && tls; then
    printf '# agents\nsecret-one\nsecret-two\n' >"$KK_TMP/tokens"
    echo secret-two >"$KK_TMP/token"
    echo secret >"$KK_TMP/wrong"
    start --tls-cert "$KK_TMP/cert.pem" --tls-key "$KK_TMP/key.pem" --auth-token-file "$KK_TMP/tokens"
    # clients that open a connection and never say hello
    python3 -c 'import socket, sys, time
host, port = sys.argv[1].split(":")
held = [socket.create_connection((host, int(port))) for _ in range(40)]
time.sleep(60)' "$address" &
    slow=$!
    agents() { run bench agents --connect "$address" --levels 2 --gen 2 --json "$@"; }
    agents --tls-ca "$KK_TMP/cert.pem" --token-file "$KK_TMP/token"
    check "TLS and a token" [ "$(json results.0.generate_ok "$KK_TMP/out")" = 2 ]
    agents --tls-ca "$KK_TMP/cert.pem" --token-file "$KK_TMP/wrong"
    check "a wrong token" [ "$(json results.0.errors "$KK_TMP/out")" = '{"UNAUTHENTICATED": 2}' ]
    agents --tls-ca "$KK_TMP/cert.pem"
    check "no token" [ "$(json results.0.errors "$KK_TMP/out")" = '{"UNAUTHENTICATED": 2}' ]
    agents --token-file "$KK_TMP/token"
    check "no TLS" [ "$(json results.0.errors "$KK_TMP/out")" = '{"UNAVAILABLE": 2}' ]
    kill "$slow"
    stop
    check "SIGTERM over TLS: exit 0" [ "$rc" -eq 0 ]
else
    skip "TLS and tokens" "no openssl"
fi

# ---- SIGTERM under load: calls that run longer than --grace are cut, and the server ends in order
start --grace 1 --max-batch 8 --metrics 127.0.0.1:0
"$KK_BIN" bench agents --connect "$address" --levels 8 --context-len 64 --gen 4000 --json \
    >"$KK_TMP/load" 2>/dev/null &
load=$!
for _ in $(seq 100); do
    fetch "$(json metrics "$KK_TMP/ready")/metrics" >"$KK_TMP/page"
    grep -Eq '^vllm:generation_tokens_total.* [1-9]' "$KK_TMP/page" && break
    sleep .1
done
before=$(date +%s%N)
stop
check "SIGTERM under load: exit 0" [ "$rc" -eq 0 ]
check "after the grace" [ $((($(date +%s%N) - before) / 1000000)) -ge 900 ]
wait "$load"
check "its clients hear of it" python3 - "$KK_TMP/load" <<'PY'
import json, sys
x = json.load(open(sys.argv[1]))["results"][0]
assert sum(x["errors"].values()) == 8 and set(x["errors"]) <= {"UNAVAILABLE", "CANCELLED"}, x
PY
check "and says what it does" grep -Eq "SIGTERM: [0-9]+ calls running, at most 1 s" "$KK_TMP/talk"

# ---- a server of the bench's own
run bench agents -m "$TINY" --threads 2 --levels 2,6 --context-len 40 --gen 4 --kv s5 --label test \
    --json="$KK_TMP/report" --svg="$KK_TMP/svg"
check "bench agents starts a server" [ "$rc" -eq 0 ]
check "with the options given" [ "$(json config.server.kv "$KK_TMP/report")" = s5 ]
check "and its memory" python3 - "$KK_TMP/report" <<'PY'
import json, sys
r = json.load(open(sys.argv[1]))
assert all(x["server_rss_mb"] > 10 and x["generate_ok"] == x["level"] for x in r["results"])
assert r["summary"]["server_peak_rss_mb"] >= r["results"][-1]["server_rss_mb"]
assert r["summary"]["kv_staging_bytes"] > 0 and r["config"]["fd_limit"]["after"] >= 262
# the names that scripts made for the reference's load test read
assert r["kind"] == "grpc_agent_capacity_loadtest" and r["schema_version"] == 1
c = r["config"]
assert (c["capacity"], c["sink"], c["window"], c["levels"]) == (6, 4, 64, [2, 6]), c
assert (c["gen_tokens"], c["prompt_len"], c["context_len"], c["prefill_len"]) == (4, 40, 40, 40), c
assert c["verifier_id"] == "models/tiny" and {"backend", "single_tenant_note"} <= set(c)
assert {"requested", "before", "after"} == set(c["fd_limit"])
for x in r["results"]:
    assert all(x[k]["p50"] <= x[k]["p95"] for k in ("create_latency_s", "generate_latency_s"))
    assert {"agents", "created_ok", "errors", "per_session_kv_bytes", "wall_s"} <= set(x)
assert {"max_concurrent_agents_clean", "per_session_kv_bytes", "per_session_kv_mb", "node_kv_upper_bound_mb",
        "node_kv_upper_bound_note", "server_peak_rss_mb"} <= set(r["summary"])
PY
check "the picture" python3 -c 'import sys, xml.dom.minidom; xml.dom.minidom.parse(sys.argv[1])' "$KK_TMP/svg"
check "the table" grep -Eq '^ +6 +0 ' "$KK_TMP/out"

run bench agents -m "$TINY" --threads 2 --levels 6 --context-len 300 --gen 24 --mixed --json
check "some write while others read" python3 - "$KK_TMP/out" <<'PY'
import json, sys
x = json.load(open(sys.argv[1]))["results"][0]
w = x["while_reading"]
assert x["errors"] == {} and x["tokens"] == 6 * 24 and w["writers"] == w["readers"] == 3, x
assert 0 < w["inter_token_s"]["p50"] <= w["inter_token_s"]["max"] and w["append_tokens_per_s"] > 0
assert abs(w["worst_over_median"] - w["inter_token_s"]["max"] / w["inter_token_s"]["p50"]) < 1e-6
PY

# ---- what is refused
refuses "no model" 2 "no model given" serve
refuses "no model there" 1 "model directory 'models/nope' does not exist" serve -m models/nope --grpc 127.0.0.1:0
for a in nowhere :1 127.0.0.1: 127.0.0.1:http 127.0.0.1:70000 127.0.0.1:99999999999999999999; do
    refuses "an address: $a" 1 "'$a' is no HOST:PORT" serve -m "$TINY" --grpc "$a"
done
refuses "an address of another machine" 1 "cannot listen on 192.0.2.1:9" serve -m "$TINY" --grpc 192.0.2.1:9
refuses "a certificate without its key" 1 "needs both" serve -m "$TINY" --grpc 127.0.0.1:0 --tls-cert README.md
refuses "no PEM" 1 "README.md: not a PEM file" serve -m "$TINY" --grpc 127.0.0.1:0 --tls-cert README.md --tls-key README.md
: >"$KK_TMP/none"
refuses "no tokens" 1 "holds no token" serve -m "$TINY" --grpc 127.0.0.1:0 --auth-token-file "$KK_TMP/none"
refuses "the metrics' port" 1 "'x' is no HOST:PORT" serve -m "$TINY" --grpc 127.0.0.1:0 --metrics x
refuses "--tls-ca alone" 2 "go with --connect" bench agents -m "$TINY" --tls-ca README.md
done_testing
