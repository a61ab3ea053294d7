#!/bin/bash
# The Python client against a live server; its messages are those of the .proto.
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

"$KK_BIN" serve -m models/tiny --threads 2 --grpc 127.0.0.1:0 --capacity 24 --json="$KK_TMP/ready" \
    >/dev/null 2>"$KK_TMP/talk" </dev/null &
pid=$!
for _ in $(seq 600); do
    [ -s "$KK_TMP/ready" ] && break
    kill -0 "$pid" || break
    sleep .1
done
PYTHONPATH=clients/python/src PYTHONDONTWRITEBYTECODE=1 timeout 250 "$python" clients/python/tests/live.py \
    "$(json address "$KK_TMP/ready")" || KK_FAILED=1
kill -TERM "$pid"
check "the server is in order" wait "$pid"
done_testing
