#!/bin/bash
# The Python client against a live server; its messages are those of the .proto. Sessions that nobody
# closes. Many that each know their own document. kk-test: soak
. tests/cli_lib.sh
python=
for p in /usr/bin/python3 python3; do
    "$p" -c 'import grpc, google.protobuf' 2>/dev/null && python=$p && break
done
if [ -z "$python" ]; then
    skip "the Python client" "no python3 with grpcio and protobuf: 'make deps'"
    done_testing
fi

if protoc --version | grep -q ' 3\.21\.'; then
    mkdir "$KK_TMP/made"
    clients/python/generate "$KK_TMP/made"
    check "its messages are made from proto/" cmp "$KK_TMP/made/kakeya/v1/runtime_pb2.py" \
        clients/python/src/kakeya/v1/runtime_pb2.py
else
    skip "its messages are made from proto/" "made by protoc 3.21"
fi

# start ARGS...: a server; leaves $pid, and its ready report in $KK_TMP/ready.
start() {
    rm -f "$KK_TMP/ready"
    "$KK_BIN" serve -m models/tiny --threads 2 --grpc 127.0.0.1:0 --json="$KK_TMP/ready" "$@" \
        >/dev/null 2>"$KK_TMP/talk" </dev/null &
    pid=$!
    for _ in $(seq 600); do
        [ -s "$KK_TMP/ready" ] && break
        kill -0 "$pid" || break
        sleep .1
    done
}
with_client() { PYTHONPATH=clients/python/src PYTHONDONTWRITEBYTECODE=1 timeout 250 "$python" "$@"; }

start --capacity 24
with_client clients/python/tests/live.py "$(json address "$KK_TMP/ready")" || KK_FAILED=1
kill -TERM "$pid"
check "the server is in order" wait "$pid"

start --capacity 20000 --idle-ttl 1 --metrics 127.0.0.1:0
with_client clients/python/tests/abandon.py "$(json address "$KK_TMP/ready")" \
    "$(json metrics "$KK_TMP/ready")" "$([ -n "${KK_SOAK:-}" ] && echo 10000 || echo 300)" >"$KK_TMP/abandon" 2>&1 || KK_FAILED=1
cat "$KK_TMP/abandon"
kill -TERM "$pid"
check "the server is in order after it" wait "$pid"

# less than half of them fit on the device
most=64
[ "${KK_CONFIG:-release}" = release ] || most=6 # sanitizers are slow
start --kv-total $((most * 600))KiB
with_client clients/python/tests/needles.py "$(json address "$KK_TMP/ready")" "$KK_BIN" $most >"$KK_TMP/needles" 2>&1 ||
    KK_FAILED=1
cat "$KK_TMP/needles"
kill -TERM "$pid"
check "the server is in order after them" wait "$pid"

mkdir "$KK_TMP/state"
durable() { with_client clients/python/tests/durable.py "$(json address "$KK_TMP/ready")" "$KK_TMP/durable"; }
start --state "$KK_TMP/state"
check "a session, held with --state" durable
refuses "the state is one server's" 1 "state" serve -m models/tiny --grpc 127.0.0.1:0 --state "$KK_TMP/state"
kill -KILL "$pid"
wait "$pid" 2>/dev/null
start --state "$KK_TMP/state"
check "goes on after kill -9 with the tokens it would have made" durable
kill -TERM "$pid"
check "and the server ends in order" wait "$pid"

mkdir "$KK_TMP/forks"
with_forks() { with_client clients/python/tests/forks.py "$(json address "$KK_TMP/ready")" "$(json metrics "$KK_TMP/ready")" "$KK_TMP/told"; }
little=(--state "$KK_TMP/forks" --metrics 127.0.0.1:0 --kv-total 2MiB --idle-host 2MiB)
start "${little[@]}"
check "24 forks, of which some fit on the device and some in host memory" with_forks
kill -KILL "$pid"
wait "$pid" 2>/dev/null
start "${little[@]}"
check "go on after kill -9, each with the tokens it would have made" with_forks
kill -TERM "$pid"
check "and this server ends in order" wait "$pid"
done_testing
