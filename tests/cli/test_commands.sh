#!/bin/bash
# Each command on the embedded model and on a synth one: what comes out is right, and machines can read it.
. tests/cli_lib.sh
TINY=models/tiny
MINI=synth:tests/data/mini.json
PROMPT='IMPORTANT: the secret code is ORCHID-4217. Question: what is the secret code? Answer:'
is_json() { python3 -m json.tool "$1" >/dev/null; }

# ---- run
run run -m "$TINY" -p "$PROMPT" -n 12
cp "$KK_TMP/out" "$KK_TMP/text"
check "run finds the code" sh -c '[ "$2" -eq 0 ] && grep -q "ORCHID-4217" "$1/out"' sh "$KK_TMP" "$rc"
check "run tells times on stderr" grep -Eq 'prompt [0-9]+ tokens, [0-9]+ tok/s; generated 9,' "$KK_TMP/err"
run run -m "$TINY" -p "$PROMPT" -n 12 --json
check "run --json" is_json "$KK_TMP/out"
check "run --json has the same text" [ "$(json text "$KK_TMP/out")" = "$(cat "$KK_TMP/text")" ]
check "run --json counts tokens: the code's eight and the end" [ "$(json tokens "$KK_TMP/out"):$(json stop "$KK_TMP/out")" = 9:eos ]
json ids "$KK_TMP/out" >"$KK_TMP/ids"
run run -m "$TINY" -p "$PROMPT" -n 12 --ids
check "run --ids prints the same ids" [ "[$(sed 's/ /, /g' "$KK_TMP/out")]" = "$(cat "$KK_TMP/ids")" ]
printf %s "$PROMPT" >"$KK_TMP/prompt"
run run -m "$TINY" -f "$KK_TMP/prompt" -n 12
check "run -f: as -p" cmp -s "$KK_TMP/out" "$KK_TMP/text"
piped() { "$KK_BIN" run -m "$TINY" -f - -n 12 <"$KK_TMP/prompt" 2>/dev/null | cmp -s - "$KK_TMP/text"; }
check "run -f -: standard input" piped
run run -m "$TINY" -p "$PROMPT" -n 12 --stop D-42
check "a stop string over several tokens is cut" [ "$(cat "$KK_TMP/out")" = " ORCHI" ]
run run -m "$TINY" -p "$PROMPT" -n 12 --stop nowhere --stop 17 --json
check "the first of several stop strings counts" [ "$(json text "$KK_TMP/out")" = " ORCHID-42" ]
check "and is told" [ "$(json stop "$KK_TMP/out")" = stop_string ]
for o in "--threads 1" "--cpu-isa scalar" "--prefill-chunk 5" "--kv full" "--draft ngram" "--kv-device 1MiB"; do
    run run -m "$TINY" -p "$PROMPT" -n 12 $o
    check "run $o: same text" cmp -s "$KK_TMP/out" "$KK_TMP/text"
done

# ---- seeds
run run -m "$TINY" -p Hello -n 24 --temp 1.5 --json
seed=$(json seed "$KK_TMP/out")
json ids "$KK_TMP/out" >"$KK_TMP/ids"
check "a drawn seed is told" grep -qx "kakeya: seed $seed" "$KK_TMP/err"
run run -m "$TINY" -p Hello -n 24 --temp 1.5 --json --seed "$seed"
check "and repeats the run" [ "$(json ids "$KK_TMP/out")" = "$(cat "$KK_TMP/ids")" ]
run run -m "$TINY" -p Hello -n 24 --temp 1.5 --json --seed "$((seed + 1))"
check "another seed gives other tokens" [ "$(json ids "$KK_TMP/out")" != "$(cat "$KK_TMP/ids")" ]

# ---- tokenize
run tokenize -m "$TINY" -p 'Hello, 日本 🙂 <eos>' --json
check "tokenize --json" is_json "$KK_TMP/out"
ids=$(json ids "$KK_TMP/out")
run tokenize -m "$TINY" --decode "$ids"
check "tokenize --decode gives the text back" [ "$(cat "$KK_TMP/out")" = 'Hello, 日本 🙂 <eos>' ]
run tokenize -m "$TINY" -p 'Hello'
check "tokenize prints a line for each token" grep -Eq '^ +[0-9]+  ' "$KK_TMP/out"

# ---- logits
npy() { # SHAPE FILE: header and size are right, every value is finite
    python3 - "$@" <<'PY'
import array, ast, math, sys
b = open(sys.argv[2], "rb").read()
assert b[:8] == b"\x93NUMPY\x01\x00", b[:8]
n = int.from_bytes(b[8:10], "little")
h = ast.literal_eval(b[10:10 + n].decode())
assert (10 + n) % 64 == 0 and b[9 + n:10 + n] == b"\n"
assert h == {"descr": "<f4", "fortran_order": False, "shape": ast.literal_eval(sys.argv[1])}, h
v = array.array("f", b[10 + n:])
assert len(v) == h["shape"][0] * h["shape"][1] and all(map(math.isfinite, v)) and len(set(v)) > 9
PY
}
echo '[2, 5, 17, 3, 159, 0, 1]' >"$KK_TMP/ids.json"
run logits -m "$MINI" --ids "$KK_TMP/ids.json" -o "$KK_TMP/a.npy"
check "logits of a synth model" npy "(7, 160)" "$KK_TMP/a.npy"
check "logits say nothing on stdout" [ ! -s "$KK_TMP/out" ]
run logits -m "$MINI" --ids "$KK_TMP/ids.json" -o "$KK_TMP/b.npy" --threads 1 --prefill-chunk 2 --json
check "logits --json" is_json "$KK_TMP/out"
check "logits: same bits, cut otherwise" cmp -s "$KK_TMP/a.npy" "$KK_TMP/b.npy"
run logits -m "$MINI:5" --ids "$KK_TMP/ids.json" -o "$KK_TMP/b.npy"
check "another synth seed, other logits" sh -c '! cmp -s "$1/a.npy" "$1/b.npy"' sh "$KK_TMP"
check "no temporary is left" sh -c '! ls "$1" | grep -q tmp' sh "$KK_TMP"

# ---- plan, inspect
run plan -m "$TINY" --ctx 4096 --sessions 10 --json
check "plan --json" is_json "$KK_TMP/out"
check "plan adds up" python3 -c 'import json, sys
p = json.load(open(sys.argv[1]))
assert p["ctx"] == 4096 and p["sessions"] == 10
assert p["total_bytes"] == p["weight_bytes"] + p["scratch_bytes"] + p["logits_bytes"] + p["kv_staging_bytes"] + 10 * p["session_kv_bytes"]' "$KK_TMP/out"
check "plan: nothing of it in host memory" [ "$(json session_kv_host_bytes "$KK_TMP/out")" = 0 ]
run plan -m "$TINY" --ctx 8192 --sessions 4 --kv-device 1MiB
check "plan: what a cap pages out" grep -Eq "^KV of all sessions +[0-9]+ " <(sed '1,/^host memory/d' "$KK_TMP/out")
run inspect "$TINY" --json
check "inspect --json" is_json "$KK_TMP/out"
check "inspect: 176 tensors" [ "$(json tensor_count "$KK_TMP/out")" = 176 ]
check "inspect: parameters" [ "$(json parameters "$KK_TMP/out")" = 8619592 ]
run inspect "$TINY" --tensors
check "inspect --tensors" grep -Eq '^ +model.embed_tokens.weight +bf16 +\[2048, 256\] +1048576$' "$KK_TMP/out"
run inspect -m "$MINI"
check "inspect of a synth model" grep -q '^tokenizer        none' "$KK_TMP/out"
for c in gemma-4-26b-a4b cpu-1b gemma-3-270m llama-1b qwen3-0.6b; do
    run inspect "synth:bench/configs/$c.json"
    check "inspect of $c, not loaded" [ "$rc" -eq 0 ]
done
run inspect "synth:bench/configs/llama-1b.json"
check "inspect: no layer slides" grep -q 'native, s5 and full see and keep the same rows' "$KK_TMP/out"

# ---- architectures
echo '[5, 3, 150, 7, 7, 12, 99, 0, 5, 3, 150, 7]' >"$KK_TMP/ids.json"
for a in gemma3 llama qwen3; do
    A=synth:tests/data/mini-$a.json
    run plan -m "$A" --ctx 2048 --sessions 3 --json
    check "$a: plan" [ "$rc" -eq 0 ]
    run logits -m "$A" --ids "$KK_TMP/ids.json" -o "$KK_TMP/a.npy"
    check "$a: logits" [ "$rc" -eq 0 ]
    run logits -m "$A" --ids "$KK_TMP/ids.json" -o "$KK_TMP/b.npy" --kv full --threads 1 --cpu-isa scalar --prefill-chunk 5
    check "$a: the same bits in the scalar table, in pieces" cmp "$KK_TMP/a.npy" "$KK_TMP/b.npy"
    run bench decode -m "$A" --ctx 0,300 --reps 1 --kv s5 --kv-window 16 --json
    check "$a: bench decode under s5" [ "$rc" -eq 0 ]
done

# ---- benches
run bench niah -m "$TINY" --lines 20,40 --samples 2 --json
check "bench niah --json" is_json "$KK_TMP/out"
check "bench niah: recall 1" [ "$(json rungs.1.recall "$KK_TMP/out")" = 1.0 ]
check "bench niah: prompt tokens" [ "$(json rungs.0.prompt_tokens "$KK_TMP/out")" = 433 ]
run bench niah -m "$TINY" --lines 20 --samples 2 --template auto --json
check "bench niah --template: a user's turn, with its markers" \
    [ "$(json template "$KK_TMP/out"):$(json rungs.0.prompt_tokens "$KK_TMP/out")" = gemma:442 ]
run bench niah -m "$TINY" --lines 20 --samples 2 --keys 5 --json="$KK_TMP/niah.json"
check "bench niah --keys: table and file" sh -c 'grep -q recall "$1/out" && python3 -m json.tool "$1/niah.json" >/dev/null' sh "$KK_TMP"
run bench decode -m "$MINI" --ctx 0,200 --reps 2 --json
check "bench decode --json" is_json "$KK_TMP/out"
check "bench decode: fields" python3 -c 'import json, sys
d = json.load(open(sys.argv[1]))
assert [r["context"] for r in d["runs"]] == [0, 200] and d["threads"] >= 1 and d["model"]
for r in d["runs"]: assert r["prefill_tok_s"] > 0 and r["decode_tok_s"] > 0 and r["kv_device_bytes"] > 0 and r["kv_host_bytes"] == 0' "$KK_TMP/out"

# ---- perplexity: that of the logits command, window by window
printf 'IMPORTANT: the secret code is ORCHID-4217. Note 0001: this is padding. def f(x):\n    return x + 1\n%.0s' 1 2 3 >"$KK_TMP/text"
run bench ppl -m "$TINY" -f "$KK_TMP/text" --ctx 24 --windows 2 --against kv=full --json="$KK_TMP/ppl.json"
check "bench ppl" sh -c 'grep -Eq "^perplexity [0-9.]+ \+- [0-9.]+: 2 windows of 24 tokens, 22 scored" "$1/out"' sh "$KK_TMP"
run tokenize -m "$TINY" -f "$KK_TMP/text" --json
cp "$KK_TMP/out" "$KK_TMP/tok.json"
bos=$(python3 -c 'import json, sys; print(json.load(open(sys.argv[1]))["bos_token_id"])' "$TINY/config.json")
for w in 0 1; do
    python3 -c 'import json, sys
ids = [int(sys.argv[2])] + json.load(open(sys.argv[1]))["ids"]
w = int(sys.argv[3])
json.dump([int(sys.argv[2])] + ids[24 * w + 1:24 * w + 24], open(sys.argv[4], "w"))' "$KK_TMP/tok.json" "$bos" $w "$KK_TMP/w$w.json"
    run logits -m "$TINY" --ids "$KK_TMP/w$w.json" -o "$KK_TMP/w$w.npy"
done
check "bench ppl: the perplexity of the logits; full and native differ in nothing" python3 -c 'import array, json, math, sys
d, nll = sys.argv[1], 0
for w in range(2):
    ids = json.load(open(f"{d}/w{w}.json"))
    raw = open(f"{d}/w{w}.npy", "rb").read()
    x = array.array("f", raw[128:])
    V = len(x) // 24
    for t in range(12, 23):
        row = x[t * V:t * V + V]
        top = max(row)
        nll += math.log(math.fsum(math.exp(v - top) for v in row)) + top - row[ids[t + 1]]
r = json.load(open(d + "/ppl.json"))
assert r["scored"] == 22 and r["windows"] == 2 and r["window_tokens"] == 24
assert abs(math.exp(nll / 22) / r["perplexity"] - 1) < 1e-5, (math.exp(nll / 22), r)
a = r["against"]
assert a["kl"] == a["kl_max"] == 0 and a["same_choice"] == 1 and a["perplexity"] == r["perplexity"], a' "$KK_TMP"
run bench ppl -m "$TINY" -f "$KK_TMP/text" --ctx 24 --against kv-type=f32 --json
check "bench ppl: rows of bf16 are near those of f32, and not the same" python3 -c 'import json, sys
a = json.load(open(sys.argv[1]))["against"]
assert a["settings"] == "kv-type=f32" and 0 < a["kl"] < 0.1 and a["kl"] <= a["kl_p99"] <= a["kl_max"], a' "$KK_TMP/out"

done_testing
