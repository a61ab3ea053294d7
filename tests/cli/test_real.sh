#!/bin/bash
# The two real models (make models): greedy tokens of transformers over the same dequantised weights
# (tests/golden/real, made by tools/golden/real.py), a chat, bounded caches. Skipped where they are not.
. tests/cli_lib.sh
GEMMA=models/gemma-3-270m-q4_k_m.gguf
SMOL=models/smollm2-135m-instruct-q4_1.gguf
if [ "${KK_CONFIG:-release}" != release ]; then
    skip "real models" "release only: they take minutes under a sanitizer"
    done_testing
fi

# exact MODEL OPTION..: $KK_TMP/out holds the ids that transformers chose.
exact() {
    local golden
    golden=tests/golden/real/$(basename "$1" .gguf).json
    run run -m "$1" -f tests/golden/real/prompt.txt -n 64 --ignore-eos --act f32 --kv-type f32 --ids "${@:2}"
    python3 -c 'import json, sys
want, got = json.load(open(sys.argv[1]))["ids"], [int(i) for i in open(sys.argv[2]).read().split()]
sys.exit(f"want {want}\ngot  {got}" if want != got or len(got) != 64 else 0)' "$golden" "$KK_TMP/out"
}
for m in "$GEMMA" "$SMOL"; do
    if [ ! -e "$m" ]; then
        skip "$m" "make models fetches it"
        continue
    fi
    check "$m: greedy tokens of transformers" exact "$m"
    check "$m: the same, drafted, in pieces, on one thread" exact "$m" --draft ngram --prefill-chunk 17 --threads 1
done

if [ -e "$SMOL" ]; then
    rc=0
    echo 'What is the capital of France?' | "$KK_BIN" chat -m "$SMOL" -n 24 >"$KK_TMP/out" 2>"$KK_TMP/err" || rc=$?
    check "asked for the capital of France, SmolLM2 says Paris" sh -c \
        '[ "$2" -eq 0 ] && grep -q Paris "$1/out" && [ ! -s "$1/err" ]' sh "$KK_TMP" "$rc"
fi

if [ -e "$GEMMA" ]; then
    echo hi | "$KK_BIN" chat -m "$GEMMA" -n 1 >"$KK_TMP/out" 2>"$KK_TMP/err"
    check "Gemma 3's base model brings no chat template, and is said to" grep -q "brings no chat template: taking gemma" "$KK_TMP/err"
fi

# Rows beyond the cap go to the host and come back: not a token changes.
if [ -e "$GEMMA" ]; then
    for kv in native s5; do
        run run -m "$GEMMA" -f LICENSE -n 16 --ignore-eos --kv $kv --json
        ids=$(json ids "$KK_TMP/out") bytes=$(json kv_device_bytes "$KK_TMP/out")
        run run -m "$GEMMA" -f LICENSE -n 16 --ignore-eos --kv $kv --json --kv-device $((bytes - 1))
        check "Gemma 3 under $kv with a cap: the same tokens, rows on the host" sh -c \
            '[ "$1" = "$2" ] && [ "$3" -lt "$4" ] && [ "$5" -gt 0 ]' sh "$ids" "$(json ids "$KK_TMP/out")" \
            "$(json kv_device_bytes "$KK_TMP/out")" "$bytes" "$(json kv_host_bytes "$KK_TMP/out")"
    done
    run run -m "$GEMMA" -f LICENSE -n 16 --ignore-eos --kv sinkwin --json
    check "and under sinkwin, in less than s5" [ "$rc" -eq 0 -a "$(json kv_device_bytes "$KK_TMP/out")" -lt "$bytes" ]
fi
done_testing
