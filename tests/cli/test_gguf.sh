#!/bin/bash
# GGUF files from the command line: the same numbers as the weights they were converted from, their
# tokenizers, what inspect tells, what is refused.
. tests/cli_lib.sh
MODELS=tests/golden/gguf/models
TOKS=tests/golden/gguf/tokenizers

# ---- logits, bit for bit
python3 -c 'print([2] + [i * 37 % 64 for i in range(60)])' >"$KK_TMP/ids.json"
for name in gemma3 gemma4 llama llama3 qwen3; do
    run logits -m "$MODELS/$name.gguf" --ids "$KK_TMP/ids.json" -o "$KK_TMP/a.npy"
    run logits -m "synth:$MODELS/$name.json:11" --ids "$KK_TMP/ids.json" -o "$KK_TMP/b.npy"
    check "logits of $name.gguf are those of its weights" cmp "$KK_TMP/a.npy" "$KK_TMP/b.npy"
done

# ---- tokenizers
for name in spm_gemma spm_llama gpt-2 smollm llama-bpe qwen2 gemma4; do
    run tokenize -m "$TOKS/$name.gguf" -p "the quick brown fox, 1987" --json
    python3 -c 'import json, sys; print(",".join(map(str, json.load(open(sys.argv[1]))["ids"])))' "$KK_TMP/out" >"$KK_TMP/ids"
    run tokenize -m "$TOKS/$name.gguf" --decode "$(cat "$KK_TMP/ids")"
    check "text of $name.gguf comes back" grep -qx "the quick brown fox, 1987" "$KK_TMP/out"
done

# ---- inspect
run inspect "$MODELS/gemma4.gguf"
check "inspect shows keys" grep -q 'gemma4.attention.head_count_kv *\[2, 1, 1\]' "$KK_TMP/out"
check "inspect shows types" grep -q 'bf16  *[0-9]* tensors' "$KK_TMP/out"
run inspect "$MODELS/gemma4.gguf" --json
check "inspect as JSON" python3 -c '
import json, sys
o = json.load(open(sys.argv[1]))
assert o["keys"]["general.architecture"] == "\"gemma4\"" and o["tokenizer_size"] is None
assert sum(t["bytes"] for t in o["types"].values()) == o["tensor_bytes"] == sum(t["bytes"] for t in o["tensors"])
assert sum(t["tensors"] for t in o["types"].values()) == o["tensor_count"]' "$KK_TMP/out"

# ---- refused
refuses "no tokenizer" 1 "there is no tokenizer in it" tokenize -m "$MODELS/gemma4.gguf" -p x
head -c 5000 "$MODELS/gemma4.gguf" >"$KK_TMP/cut.gguf"
refuses "truncated" 1 "truncated or damaged" run -m "$KK_TMP/cut.gguf" -p x
refuses "no such file" 1 "cannot open '$KK_TMP/none.gguf'" run -m "$KK_TMP/none.gguf" -p x
echo '{}' >"$KK_TMP/x.json"
refuses "neither directory nor GGUF" 1 "is neither a model directory nor a GGUF file" tokenize -m "$KK_TMP/x.json" -p x
sed 's/gemma4/gemmaX/g' "$MODELS/gemma4.gguf" >"$KK_TMP/x.gguf"
refuses "architecture" 1 "architecture 'gemmaX' is not supported" inspect "$KK_TMP/x.gguf"
cp "$MODELS/split-00001-of-00003.gguf" "$KK_TMP"
refuses "a part is missing" 1 "split-00002-of-00003.gguf" inspect "$KK_TMP/split-00001-of-00003.gguf"

done_testing
