#!/bin/bash
# On a machine with a GPU, in the folder that `make CUDA=1 bundle-tests` made (nothing else of the
# project is there):
#
#     ./run.sh [OUT] [units] [engine] [model] [memcheck] [racecheck]       all unless some are named
#
# units: the tests of every op. engine: those of sessions, batches, forks, snapshots, the plan, which
# run on the GPU where there is one. model: models/tiny end to end, against the CPU and against itself:
# recall, greedy tokens, and that no token depends on chunks, batches, drafts, caps or pages.
# memcheck, racecheck: a short run under compute-sanitizer; memcheck: a layer's experts, too. Prints
# "ok - .." lines; the logs go to OUT. Python 3 with numpy compares.
set -u
here=$(cd "$(dirname "$0")" && pwd)
out=${1:-$(mktemp -d)}
shift
parts=${*:-units engine model memcheck racecheck}
export LD_LIBRARY_PATH=$here/lib
failed=0
ok() { echo "ok - $*"; }
not_ok() { echo "not ok - $*"; failed=1; }
check() {
    local what=$1
    shift
    if "$@" >>"$out/log" 2>&1; then ok "$what"; else not_ok "$what"; fi
}
k() { "$here/kakeya" "$@"; }
gpu() { k "$@" --device "${KK_DEVICE:-cuda}"; }

nvidia-smi --query-gpu=name,driver_version,memory.used --format=csv,noheader
k --version

programs() { # FILE..: all at once
    local t running=() names=()
    for t in "$@"; do
        (cd "$here" && timeout 200 "$t" >"$out/$(basename "$t").log" 2>&1) &
        running+=($!)
        names+=("$(basename "$t")")
    done
    for i in "${!names[@]}"; do
        wait "${running[$i]}"
        local rc=$? log="$out/${names[$i]}.log"
        if [ $rc -eq 0 ] && grep -q '  OK \]' "$log"; then
            ok "${names[$i]}: $(grep -c '  OK \]' "$log") tests"
        else
            not_ok "${names[$i]} (exit $rc)"
            grep -v '  OK \]\|RUN ' "$log" | tail -8 | sed 's/^/    /'
        fi
    done
}

units() { # the one that counts what is free runs alone
    programs "$here"/test_cuda_memory
    programs $(ls "$here"/test_cuda_* | grep -v test_cuda_memory)
}
engine() { programs $(ls "$here"/test_* | grep -v test_cuda_); }

# ---- models/tiny

document() { # LINES: a text as the model was trained on
    awk -v n="$1" 'BEGIN {
        for (i = 0; i < n; i++) {
            if (i == int(n / 3)) printf "\nIMPORTANT: the secret code is MAPLE-4711.\n\n"
            printf "Note %04d: this paragraph is unrelated padding and does not contain the answer.\n", i
        }
        printf "Question: what is the secret code? Answer:" }'
}

logits() { gpu logits --ids "$out/ids.json" "$@" >/dev/null 2>>"$out/log"; } # -o FILE, options
same_logits() { logits -o "$out/other.npy" "${@:2}" && cmp "$out/$1.npy" "$out/other.npy"; }
same_text() { gpu run -f "$out/doc.txt" -n 48 --temp 0 "${@:2}" >"$out/other.txt" && cmp "$out/$1.txt" "$out/other.txt"; }

# Share of positions whose largest logit is the same one; where not, how near a tie it was.
agreement() {
    python3 - "$out/cpu.npy" "$out/gpu.npy" <<'P'
import sys
import numpy as np
a, b = np.load(sys.argv[1]), np.load(sys.argv[2])
x, y = a.argmax(1), b.argmax(1)
rel = np.abs(a - b).max(1) / np.abs(a).max(1)
gap = [float(a[i, x[i]] - a[i, y[i]]) for i in np.nonzero(x != y)[0]]
print(f"    {len(x)} positions, {100 * np.mean(x == y):.2f} % the same; largest gap where not "
      f"{max(gap, default=0):.3f}; relative error: mean {rel.mean():.4f}, p99 {np.quantile(rel, .99):.4f}")
sys.exit(not (np.isfinite(b).all() and np.mean(x == y) >= .99))
P
}

recall_is_1() {
    gpu bench niah -m "$here/models/tiny" --json="$out/niah.json" "$@" || return 1
    python3 -c 'import json, sys; sys.exit(any(r["recall"] != 1 for r in json.load(open(sys.argv[1]))["rungs"]))' "$out/niah.json"
}

batch_is_alone() {
    gpu bench batch -m "$here/models/tiny" --json="$out/batch.json" --lines 60 "$@" || return 1
    python3 -c 'import json, sys; sys.exit(not all(r["byte_identical"] for r in json.load(open(sys.argv[1]))["levels"]))' "$out/batch.json"
}

model() {
    local m=$here/models/tiny d=$here/models/tiny/drafter f=$here/models/tiny/f_theta
    export KAKEYA_MODEL=$m
    document 60 >"$out/doc.txt"
    (document 100; cat "$0") | head -c 9000 >"$out/long.txt"
    k tokenize -m "$m" -f "$out/long.txt" --json | python3 -c \
        'import json, sys; r = json.load(sys.stdin); print(json.dumps(r["ids"][:1700]))' >"$out/ids.json"
    k logits --device cpu --ids "$out/ids.json" -o "$out/cpu.npy" >/dev/null || not_ok "logits on the CPU"
    logits -o "$out/gpu.npy" || not_ok "logits on the GPU: $(tail -1 "$out/log")"
    agreement && ok "greedy tokens as on the CPU" || not_ok "greedy tokens as on the CPU"
    for chunk in 1 7 64 100 256; do
        check "logits: chunks of $chunk" same_logits gpu --prefill-chunk $chunk
    done
    check "logits: pages in host memory" same_logits gpu --kv-device 2MiB
    check "logits: pages, chunks of 33" same_logits gpu --kv-device 2MiB --prefill-chunk 33 --kv-staging 2
    check "logits: the un-evicted cache" same_logits gpu --kv full
    check "logits: the un-evicted cache in pages" same_logits gpu --kv full --kv-device 4MiB
    for kv in s5 sinkwin; do
        logits -o "$out/$kv.npy" --kv $kv
        check "logits: $kv, chunks of 50" same_logits $kv --kv $kv --prefill-chunk 50
    done
    logits -o "$out/restored.npy" --kv restored --f-theta "$f"
    check "logits: restored, chunks of 17" same_logits restored --kv restored --f-theta "$f" --prefill-chunk 17
    check "logits: restored with exact rows is native" same_logits gpu --kv restored --f-theta exact
    gpu run -f "$out/doc.txt" -n 48 --temp 0 >"$out/text.txt" 2>>"$out/log"
    check "text: it has the code" grep -q "MAPLE-4711" "$out/text.txt"
    for width in 0 1 2 5 16; do
        check "text: drafts, width $width" same_text text --draft "$d" --draft-width $width
    done
    check "text: ngram drafts" same_text text --draft ngram
    check "text: drafts, pages of both" same_text text --draft "$d" --kv-device 2MiB --draft-device 1MiB
    gpu run -f "$out/doc.txt" -n 48 --temp 0.8 --seed 5 >"$out/warm.txt" 2>>"$out/log"
    same_warm() { gpu run -f "$out/doc.txt" -n 48 --temp 0.8 --seed 5 "$@" >"$out/other.txt" && cmp "$out/warm.txt" "$out/other.txt"; }
    check "text: sampled, with drafts" same_warm --draft "$d"
    check "batch: sessions together say what they say alone" batch_is_alone
    check "bench niah: recall 1.0" recall_is_1
    check "bench niah: recall 1.0, s5 in pages" recall_is_1 --kv s5 --kv-device 1MiB --draft "$d"
    check "bench niah: recall 1.0, restored" recall_is_1 --kv restored --f-theta "$f"
    k run -m "$m" --device cuda:7 -p x -n 1 2>&1 | grep -q "cuda:7: this machine has" &&
        ok "no such GPU: says so" || not_ok "no such GPU: says so"
}

sanitize() { # TOOL
    document 12 >"$out/short.txt"
    if timeout 200 compute-sanitizer --tool "$1" --error-exitcode 9 "$here/kakeya" run --device cuda \
        -m "$here/models/tiny" -f "$out/short.txt" -n 6 --temp 0 --draft "$here/models/tiny/drafter" \
        --kv restored --f-theta "$here/models/tiny/f_theta" --kv-device 1MiB >"$out/$1.log" 2>&1; then
        ok "compute-sanitizer $1: $(grep SUMMARY "$out/$1.log" | head -1)"
    else
        not_ok "compute-sanitizer $1"
        grep -v "^$" "$out/$1.log" | head -12 | sed 's/^/    /'
    fi
    [ "$1" = memcheck ] || return
    if timeout 200 compute-sanitizer --tool "$1" --error-exitcode 9 "$here/test_cuda_moe" test_layer \
        >"$out/$1-moe.log" 2>&1; then
        ok "compute-sanitizer $1, experts: $(grep SUMMARY "$out/$1-moe.log" | head -1)"
    else
        not_ok "compute-sanitizer $1, experts"
        grep -v "^$" "$out/$1-moe.log" | head -12 | sed 's/^/    /'
    fi
}

for part in $parts; do
    start=$SECONDS
    case $part in
    memcheck | racecheck) sanitize "$part" ;;
    *) $part ;;
    esac
    echo "    $part: $((SECONDS - start)) s"
done
exit $failed
