#!/bin/bash
# The host tier from 1k to 8k tokens (bench/tier goes to 64k): device and staging bytes are one number, tokens are those of
# a session without a cap.
. tests/cli_lib.sh
TIER=$(dirname "$KK_BIN")/bench/tier
most=8192
[ "${KK_CONFIG:-release}" = release ] || most=2048 # sanitizers are slow
"$TIER" synth:bench/configs/long.json 262144 $most 1 >"$KK_TMP/out" 2>"$KK_TMP/err"
rc=$?
check "1k to $most tokens, capped at 256 KiB" [ "$rc" -eq 0 ]
check "bytes are one number, tokens are the same" python3 -c 'import json, sys
r = json.load(open(sys.argv[1]))["runs"]
assert [x["context"] for x in r] == [c for c in (1024, 2048, 4096, 8192) if c <= int(sys.argv[2])]
assert len({(x["kv_device_bytes"], x["kv_staging_bytes"]) for x in r}) == 1 and all(x["tokens_identical"] for x in r)
assert r[0]["kv_device_bytes"] <= 262144 < r[-1]["uncapped_device_bytes"]
assert r[-1]["kv_host_bytes"] >= r[1]["kv_host_bytes"] > 0' "$KK_TMP/out" "$most"
"$TIER" synth:bench/configs/long.json 1000 1024 1 >/dev/null 2>"$KK_TMP/err"
check "a cap below the least says what the least is" grep -q "too small: .* take [0-9]" "$KK_TMP/err"
done_testing
