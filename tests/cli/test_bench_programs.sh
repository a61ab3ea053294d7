#!/bin/bash
# The bench programs run, and their reports say what they must. Figures are not looked at: machines
# differ. What they measure is made in `make bench`.
. tests/cli_lib.sh
if [ "${KK_CONFIG:-release}" != release ]; then
    skip "bench programs" "release only"
    done_testing
fi
for b in gemm attn; do
    check "bench/$b builds" make -s "build/release/bench/$b"
    check "bench/$b runs" sh -c '"$1" --quick yes --json "$2" >/dev/null' sh "build/release/bench/$b" "$KK_TMP/$b.json"
    check "bench/$b reports machine, commit, command, floors and shares" python3 - "$KK_TMP/$b.json" <<'P'
import json, sys
r = json.load(open(sys.argv[1]))
assert r["machine"] and r["commit"] and "--quick" in r["command"], r
assert {f["threads"] for f in r["floors"]} == {1, 2}
assert all(f["read_gb_s"] > 0.1 and f["fma_gflop_s"] > 0.1 for f in r["floors"])
assert all((f["fork_us"] > 0) == (f["threads"] > 1) for f in r["floors"])
assert {x["threads"] for x in r["runs"]} == {1, 2}
assert all(x["us"] > 0 and x["share_of_floor"] > 0 for x in r["runs"])
P
done
check "bench/sessions builds" make -s build/release/bench/sessions
check "bench/sessions: loaded and forked sessions go on alike; forks at rest cost nothing, and what they share is held once" sh -c \
    'build/release/bench/sessions synth:tests/data/mini.json "$1" 300 9 1 >"$2" && python3 -c "import json, sys
r = json.load(open(sys.argv[1]))
assert r[\"forks\"][\"all_at_rest_bytes\"] == r[\"forks\"][\"one_bytes\"] > 0
h = r[\"runtime\"]
for where in (\"device\", \"host\", \"state_directory\", \"device_after_restart\"):
    assert 0 < h[where][\"per_fork_bytes\"] < h[where][\"one_bytes\"], where
assert r[\"resume\"][\"file_bytes\"] > 0" "$2"' sh "$KK_TMP/session" "$KK_TMP/sessions.json"
check "bench/overhead: served against direct" sh -c \
    'bench/overhead -m synth:tests/data/mini.json --pairs 1 --threads 1 --kakeya "$1" --json "$2" >/dev/null &&
    python3 -c "import json, sys
r = json.load(open(sys.argv[1]))
p = r[\"pairs\"][0]
assert abs(r[\"overhead_median\"] - (p[\"direct_tok_s\"] / p[\"served_tok_s\"] - 1)) < 1e-9
assert r[\"commit\"] and r[\"machine\"] and r[\"device\"]" "$2"' sh "$KK_BIN" "$KK_TMP/overhead.json"
check "bench/policies: every policy, ratios of a round" sh -c \
    'bench/policies --rounds 1 --reps 1 --ctx 64,300 --kakeya "$1" --json "$2" >/dev/null && python3 -c "import json, sys
r = json.load(open(sys.argv[1]))
t = r[\"rounds\"]
assert abs(r[\"s5_of_native\"][\"300\"] - t[\"native\"][\"300\"][0] / t[\"s5\"][\"300\"][0]) < 1e-9
assert r[\"kv_device_bytes\"][\"tier\"][\"64\"] == r[\"kv_device_bytes\"][\"tier\"][\"300\"] <= 1 << 20
assert r[\"rebuild\"][\"rows\"] == 192 and r[\"restored_of_sum\"][\"f32\"] > 0 and r[\"commit\"]" "$2"' sh "$KK_BIN" "$KK_TMP/policies.json"
sed 's/"enable_moe_block": true/"enable_moe_block": false/' tests/data/mini.json >"$KK_TMP/dense.json"
check "a random model is made" python3 tools/random_model.py "$KK_TMP/dense.json" "$KK_TMP/random"
check "bench/load builds" make -s build/release/bench/load
check "bench/load: every run in a process of its own, beside a floor" sh -c \
    'build/release/bench/load --model "$1/random" --reps 3 --threads 1 --json "$1/load.json" >/dev/null && python3 -c "import json, sys
r = json.load(open(sys.argv[1]))
assert len(r[\"runs\"]) == 3 and all(x[\"first_token_s\"] > x[\"open_s\"] > 0 for x in r[\"runs\"])
assert r[\"weight_bytes\"] > 0 and r[\"floor_s\"] > 0 and r[\"commit\"]" "$1/load.json"' sh "$KK_TMP"
command -v nvidia-smi >/dev/null ||
    check "bench/cuda-evidence without a GPU says so" sh -c \
        'bench/cuda-evidence --kakeya "$1" --json "$2" 2>&1 | grep -q "no NVIDIA GPU"' sh "$KK_BIN" "$KK_TMP/none.json"
check "bench/load without a model" sh -c '! build/release/bench/load --model /nowhere >/dev/null 2>&1'
check "a list that is none is refused" sh -c '! build/release/bench/attn --rows 1,x >/dev/null 2>&1'
check "a config that is not there is refused" sh -c '! build/release/bench/gemm --config /nowhere >/dev/null 2>&1'
done_testing
