#!/bin/bash
# A server with --state on a disk of its own, which fills up, and is read-only: a small tmpfs in a
# mount namespace of this test.
. tests/cli_lib.sh
if [ -z "${KK_INNER:-}" ]; then
    if unshare -rm true 2>/dev/null; then
        KK_INNER=1 KK_BIN=$KK_BIN KK_TMP=$KK_TMP exec unshare -rm bash "$0"
    fi
    skip "a full disk" "no mount namespaces here"
    done_testing
fi
python=
for p in /usr/bin/python3 python3; do
    "$p" -c 'import grpc, google.protobuf' 2>/dev/null && python=$p && break
done
state=$KK_TMP/state
mkdir "$state"
if [ -z "$python" ] || ! mount -t tmpfs -o size=40m,mode=700 none "$state" 2>/dev/null; then
    skip "a full disk" "no python3 with grpcio, or no tmpfs"
    done_testing
fi

start() {
    rm -f "$KK_TMP/ready"
    "$KK_BIN" serve -m models/tiny --threads 2 --grpc 127.0.0.1:0 --metrics 127.0.0.1:0 \
        --state "$state" --json="$KK_TMP/ready" >/dev/null 2>"$KK_TMP/talk" </dev/null &
    pid=$!
    for _ in $(seq 600); do
        [ -s "$KK_TMP/ready" ] && break
        kill -0 "$pid" || break
        sleep .1
    done
}
clients() {
    PYTHONPATH=clients/python/src PYTHONDONTWRITEBYTECODE=1 timeout 250 "$python" \
        clients/python/tests/full_disk.py "$(json address "$KK_TMP/ready")" \
        "$(json metrics "$KK_TMP/ready")" "$state" "$KK_TMP/told"
}

start
check "the disk fills up: tokens wait, nobody fails, and all come when there is room" clients
check "the server says so" grep -q "no token is sent until this is mended" "$KK_TMP/talk"
kill -KILL "$pid"
wait "$pid" 2>/dev/null
start
check "after kill -9 every session has what was told, and goes on as it would have" clients
kill -TERM "$pid"
check "it ends in order" wait "$pid"

mount -o remount,ro "$state"
refuses "a read-only directory" 1 "$state" serve -m models/tiny --grpc 127.0.0.1:0 --state "$state"
check "in one line" [ "$(wc -l <"$KK_TMP/err")" = 1 ]
cat "$KK_TMP/err" | sed 's/^/# /'
mount -o remount,rw "$state"
"$python" - "$state" <<'PY'
import sys
try:
    with open(sys.argv[1] + "/filler", "wb", buffering=0) as f:
        while True:
            f.write(bytes(4096))
except OSError:
    pass
PY
start
if kill -0 "$pid" 2>/dev/null; then
    kill -TERM "$pid"
    check "started on a full disk it ends in order" wait "$pid"
else
    wait "$pid"
    check "on a full disk it is refused in one line" grep -q "$state" "$KK_TMP/talk"
fi
cat "$KK_TMP/talk" | sed 's/^/# /'
rm "$state/filler"
start
check "with room again the sessions are there" clients
kill -TERM "$pid"
check "and it ends in order" wait "$pid"
done_testing
