#!/bin/bash
# Drafting, policies and the scorecard from the command line: same tokens, honest reports, clear refusals.
. tests/cli_lib.sh
TINY=models/tiny
DRAFT=models/tiny/drafter
FTHETA=models/tiny/f_theta
lines=40,90 replayed="none $DRAFT"
[ "${KK_CONFIG:-release}" = release ] || lines=12 replayed= # sanitizers are slow
P='IMPORTANT: the secret code is ORCHID-4217. Note 0001: this is padding. Note 0002: this is padding. Note 0003'

run run -m "$TINY" -p "$P" -n 60
cp "$KK_TMP/out" "$KK_TMP/plain"
for d in ngram "$DRAFT"; do
    run run -m "$TINY" -p "$P" -n 60 --draft "$d"
    check "run --draft $d: the same text" cmp -s "$KK_TMP/out" "$KK_TMP/plain"
done
run run -m "$TINY" -p "$P" -n 60 --draft "$DRAFT" --draft-width 16 --kv-device 1MiB
check "run drafted and capped: the same text" cmp -s "$KK_TMP/out" "$KK_TMP/plain"
seq -f 'Note %g: the river has been quiet since the bridge was opened.' 60 >"$KK_TMP/long"
run run -m "$TINY" -f "$KK_TMP/long" -n 60
cp "$KK_TMP/out" "$KK_TMP/plain-long"
run run -m "$TINY" -f "$KK_TMP/long" -n 60 --draft "$DRAFT" --draft-width 16 --kv-device 1MiB --draft-device 512KiB
check "run with pages of verifier and drafter: the same text" cmp -s "$KK_TMP/out" "$KK_TMP/plain-long"
run run -m "$TINY" -p "$P" -n 60 --kv-type q8_0
cp "$KK_TMP/out" "$KK_TMP/plain8"
run run -m "$TINY" -p "$P" -n 60 --kv-type q8_0 --draft "$DRAFT" --draft-width 16 --kv-device 1MiB
check "rows of q8_0, drafted and capped: the same text" cmp -s "$KK_TMP/out" "$KK_TMP/plain8"
run run -m "$TINY" -p "$P" -n 60 --kv restored --f-theta exact
check "run restored from exact rows: the same text" cmp -s "$KK_TMP/out" "$KK_TMP/plain"
run run -m "$TINY" -p "$P" -n 8 --kv restored --f-theta "$FTHETA"
check "run restored" [ "$rc" -eq 0 ]

run bench spec -m "$TINY" --draft "$DRAFT" --draft-width 16 --samples 1 --reps 1 --json
check "bench spec: five workloads, identical, counted" python3 -c 'import json, sys
d = json.load(open(sys.argv[1]))
assert [w["name"] for w in d["workloads"]] == ["chat", "tools", "niah", "keyed", "code"]
for w in d["workloads"]: assert w["byte_identical"] is True and w["committed_per_block"] >= 1 and w["blocks"] > 0' "$KK_TMP/out"
for d in $replayed; do
    run bench spec -m "$TINY" --draft "$d" --replay 3.32 --draft-width 16 --samples 1 --reps 1 --json
    check "bench spec --replay, draft $d: identical, about what was asked for" python3 -c 'import json, sys
w = json.load(open(sys.argv[1]))["workloads"]
assert len(w) == 5 and all(x["byte_identical"] is True for x in w)
mean = sum(x["committed_per_block"] for x in w) / 5
assert 2.6 < mean < 4.0, mean' "$KK_TMP/out"
done
run bench spec -m synth:tests/data/mini.json --replay 16 --draft-width 8 --samples 1 --reps 1 --json
check "bench spec --replay without a tokenizer: whole blocks of 8" python3 -c 'import json, sys
w, = json.load(open(sys.argv[1]))["workloads"]
assert w["name"] == "random" and w["committed_per_block"] == 8 and w["byte_identical"] is True' "$KK_TMP/out"
run bench spec -m synth:tests/data/mini.json --draft wrong --draft-width 4 --samples 1 --reps 1 --json
check "bench spec, always wrong: nothing accepted, nothing changed" python3 -c 'import json, sys
for w in json.load(open(sys.argv[1]))["workloads"]: assert w["byte_identical"] is True and w["committed_per_block"] < 1.1' "$KK_TMP/out"

run bench scorecard -m "$TINY" --draft "$DRAFT" --f-theta "$FTHETA" --lines $lines --samples 1 --kv-device 512KiB \
    --json="$KK_TMP/card.json" --svg="$KK_TMP/card.svg"
check "bench scorecard passes its gate" sh -c '[ "$2" -eq 0 ] && grep -q "gate: passed" "$1/out"' sh "$KK_TMP" "$rc"
check "bench scorecard: the picture is XML" python3 -c 'import sys, xml.dom.minidom; xml.dom.minidom.parse(sys.argv[1])' "$KK_TMP/card.svg"
check "bench scorecard: arms" python3 -c 'import json, sys
d = json.load(open(sys.argv[1]))
for r in d["rungs"]:
    a = r["arms"]
    assert set(a) == {"full", "native", "s5", "restored", "sinkwin", "tier", "identity"}
    assert all(x["byte_identical"] and x["pinned_drafted"] >= 80 and x["tokens_compared"] == 192 for x in a.values())
    assert all(x["recall"] == 1.0 for n, x in a.items() if n != "sinkwin") and a["sinkwin"]["recall"] == 0
    assert a["tier"]["kv_device_bytes"] <= 512 * 1024
assert len({r["arms"]["tier"]["kv_device_bytes"] for r in d["rungs"]}) == 1' "$KK_TMP/card.json"
run plan -m "$TINY" --ctx 4000 --kv s5 --kv-device 512KiB --json
check "plan of a capped session is what the scorecard measured" python3 -c 'import json, sys
p, c = json.load(open(sys.argv[1])), json.load(open(sys.argv[2]))
assert p["session_kv_bytes"] == c["rungs"][0]["arms"]["tier"]["kv_device_bytes"], p' "$KK_TMP/out" "$KK_TMP/card.json"

run bench scorecard -m synth:tests/data/mini.json --tokens 40,60 --samples 1 --replay 3.32 --draft ngram \
    --kv-sinks 2 --kv-window 8 --json
check "bench scorecard of random ids: nothing recalled, gate passed, drafts from the known answer" python3 -c 'import json, sys
d = json.load(open(sys.argv[1]))
assert d["gate"] == "passed" and d["documents"] == "random ids" and d["replay"] == 3.32
for r in d["rungs"]:
    a = [x for x in r["arms"].values() if x]
    assert all(x["recall"] is None and x["byte_identical"] is True for x in a) and len(a) >= 4
assert [r["prompt_tokens"] for r in d["rungs"]] == [40, 60]' "$KK_TMP/out"

refuses() { # exit status, words, arguments
    local want=$1 words=$2
    shift 2
    run "$@"
    check "refused: $words" sh -c '[ "$2" -eq "$3" ] && grep -q -- "$4" "$1/err" && [ "$(wc -l <"$1/err")" -eq 1 ]' \
        sh "$KK_TMP" "$rc" "$want" "$words"
}
refuses 1 "too small" run -m "$TINY" -p x --kv-device 1000
refuses 1 "too small" plan -m "$TINY" --kv-device 1000
refuses 1 "needs f_theta" run -m "$TINY" -p x --kv restored
refuses 1 "over the model's own window" run -m "$TINY" -p x --kv s5 --kv-window 9999
refuses 1 "do not belong together" bench decode -m synth:tests/data/mini.json --draft "$DRAFT" --ctx 0
refuses 1 "does not exist" run -m "$TINY" -p x --draft no/such/dir
refuses 1 "f_theta" run -m "$TINY" -p x --kv restored --f-theta no/such/dir
refuses 2 "nothing to compare" bench spec -m "$TINY"
refuses 2 "a block commits 1 to 16 tokens" bench spec -m "$TINY" --replay 0.5
refuses 2 "replay" bench spec -m "$TINY" --replay 17

done_testing
