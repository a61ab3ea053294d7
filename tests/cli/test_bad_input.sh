#!/bin/bash
# Bad input: one clear line, exit 1 or 2, no crash, nothing on standard output.
. tests/cli_lib.sh
TINY=models/tiny
MINI=synth:tests/data/mini.json

# ---- texts
refuses "empty prompt" 2 "the text of -p is empty" run -m "$TINY" -p ""
: >"$KK_TMP/empty"
refuses "empty file" 1 "is empty" run -m "$TINY" -f "$KK_TMP/empty"
refuses "no text" 2 "no text given: -p TEXT or -f FILE" run -m "$TINY"
refuses "two texts" 2 "both -p and -f" run -m "$TINY" -p a -f b
refuses "no such file" 1 "cannot open '$KK_TMP/none'" run -m "$TINY" -f "$KK_TMP/none"
refuses "a folder as a file" 1 "cannot read '$KK_TMP'" run -m "$TINY" -f "$KK_TMP"
if [ "$(id -u)" -ne 0 ]; then
    touch "$KK_TMP/secret" && chmod 0 "$KK_TMP/secret"
    refuses "unreadable file" 1 "Permission denied" run -m "$TINY" -f "$KK_TMP/secret"
else
    skip "unreadable file" "root reads everything"
fi
python3 -c 'print("word " * 20000)' >"$KK_TMP/long"
refuses "prompt over the context" 1 "and the context 16384: shorten the prompt" run -m "$TINY" -f "$KK_TMP/long"
refuses "prompt over --ctx" 1 "and the context 8: shorten" run -m "$TINY" --ctx 8 -p "one two three four five six seven eight"
run run -m "$TINY" --ctx 99999 -p x -n 2
check "a context the model was not made for: warned of, with the number" sh -c '[ "$2" -eq 0 ] && grep -q "warning: a context of 99999 tokens, and the model was made for 16384" "$1/err"' sh "$KK_TMP" "$rc"
run plan -m "$TINY" --ctx 99999
check "a plan for it is warned of too" grep -q "made for 16384" "$KK_TMP/err"
refuses "a context without end" 1 "the model was made for 16384" run -m "$TINY" --ctx 99999999 -p x
run run -m "$TINY" --ctx 10 -p "one two" -n 50 --ignore-eos
check "a context that fills up ends the run, told" sh -c '[ "$2" -eq 0 ] && grep -q "context of 10 tokens is full" "$1/err"' sh "$KK_TMP" "$rc"

# ---- ids
ids() { echo "$1" >"$KK_TMP/ids.json"; }
logits() { refuses "$1" 1 "$2" logits -m "$MINI" --ids "$KK_TMP/ids.json" -o "$KK_TMP/o.npy"; }
ids '[1, 160]' && logits "id outside the vocabulary" "token id 160 (index 1) is outside the vocabulary of 160"
ids '[1, -1]' && logits "negative id" "entry 1 is no token id"
ids '[1, 2.5]' && logits "id that is no integer" "entry 1 is no token id"
ids '[1, 4294967296]' && logits "id over 32 bits" "entry 1 is no token id"
ids '[]' && logits "no ids" "must hold a JSON list of token ids"
ids '{"ids": [1]}' && logits "ids that are no list" "must hold a JSON list of token ids"
ids '[1, 2' && logits "ids that are no JSON" "not valid JSON"
python3 -c 'print([1] * 5000)' >"$KK_TMP/ids.json" && logits "ids over the context" "5000 tokens do not fit: the context is 4096"
check "nothing is left behind" sh -c '! ls "$1" | grep -q npy' sh "$KK_TMP"
refuses "no ids file" 1 "cannot open" logits -m "$MINI" --ids "$KK_TMP/none" -o "$KK_TMP/o.npy"
ids '[1, 2]'
refuses "full disk" 1 "cannot write '/dev/full': No space left on device" logits -m "$MINI" --ids "$KK_TMP/ids.json" -o /dev/full
refuses "no such folder" 1 "cannot write '$KK_TMP/none/o.npy'" logits -m "$MINI" --ids "$KK_TMP/ids.json" -o "$KK_TMP/none/o.npy"
refuses "no --ids" 2 "--ids FILE.json" logits -m "$MINI" -o "$KK_TMP/o.npy"
refuses "no -o" 2 "-o FILE.npy" logits -m "$MINI" --ids "$KK_TMP/ids.json"
refuses "decode of no number" 2 "--decode: 'x' is no token id" tokenize -m "$TINY" --decode "1,x"
refuses "decode of an id out of range" 1 "99999" tokenize -m "$TINY" --decode "99999"
refuses "decode and a text" 2 "--decode takes ids" tokenize -m "$TINY" --decode 1 -p x

# ---- options that only the engine can judge
refuses "synth has no tokenizer" 1 "has no tokenizer" run -m "$MINI" -p x
refuses "niah on a synth model" 1 "has no tokenizer" bench niah -m "$MINI"
refuses "depth over the context" 1 "the model was made for 4096" bench decode -m "$MINI" --ctx 4000
refuses "document over the context" 1 "does not fit the context of 16384" bench niah -m "$TINY" --lines 1000 --samples 1
refuses "rows in blocks of 32 and heads of 16" 1 "q8_0 stores blocks of 32 numbers: a head of layer 0 has 16" logits -m "$MINI" --kv-type q8_0 --ids "$KK_TMP/ids.json" -o "$KK_TMP/o.npy"
refuses "rebuilt rows of q8_0" 1 "policy restored rebuilds rows as f32 or bf16" run -m "$TINY" -p x --kv-type q8_0 --kv restored --f-theta "$TINY/f_theta"
refuses "perplexity of nothing" 2 "no text given: -f FILE" bench ppl -m "$TINY"
refuses "perplexity of too little" 1 "less than one window of 16000" bench ppl -m "$TINY" -f LICENSE --ctx 16000
refuses "against no setting" 2 "'kv' is not NAME=VALUE" bench ppl -m "$TINY" -f README.md --against kv
refuses "against no option" 2 "did you mean --kv-type" bench ppl -m "$TINY" -f README.md --against kv-typ=f32
refuses "against no value" 2 "kv-type" bench ppl -m "$TINY" -f README.md --against kv-type=f64
refuses "no such drafter" 1 "$KK_TMP/none" run -m "$TINY" -p x --draft "$KK_TMP/none"

# ---- what belongs to a model
tapped() { # DIR FILE KEYS VALUE: a copy whose config has VALUE (JSON) there
    rm -rf "$KK_TMP/tapped" && cp -r "$1" "$KK_TMP/tapped" && python3 -c 'import json, sys
d = root = json.load(open(sys.argv[1]))
*path, last = sys.argv[2].split(".")
for k in path:
    d = d[k]
d[last] = json.loads(sys.argv[3])
json.dump(root, open(sys.argv[1], "w"))' "$KK_TMP/tapped/$2" "$3" "$4"
}
for v in '["x", 3, 5, 6]' '[1.5, 3, 5, 6]' '[null]'; do
    tapped "$TINY/drafter" config.json dflash_config.target_layer_ids "$v"
    refuses "a drafter that reads layers $v" 1 "must be numbers of layers" run -m "$TINY" -p x --draft "$KK_TMP/tapped"
    tapped "$TINY/f_theta" f_theta_config.json aux_layer_ids "$v"
    refuses "f_theta that reads layers $v" 1 "must be numbers of layers" run -m "$TINY" -p x --kv restored --f-theta "$KK_TMP/tapped"
done
tapped "$TINY/drafter" config.json dflash_config.target_layer_ids '[4294967297, 3, 5, 6]'
refuses "a layer beyond 32 bits" 1 "reads layer 4294967297" run -m "$TINY" -p x --draft "$KK_TMP/tapped"
tapped "$TINY/f_theta" f_theta_config.json aux_layer_ids '[-1, 3, 5, 6]'
refuses "a layer below zero" 1 "reads layer -1" run -m "$TINY" -p x --kv restored --f-theta "$KK_TMP/tapped"

# ---- model directories
refuses "no such model" 1 "$KK_TMP/none" run -m "$KK_TMP/none" -p x
refuses "no such model to inspect" 1 "$KK_TMP/none" inspect "$KK_TMP/none"
refuses "no such synth config" 1 "$KK_TMP/none" inspect "synth:$KK_TMP/none"
M=$KK_TMP/model
model() { # a fresh copy that may be broken
    rm -rf "$M" && mkdir "$M" && cp "$TINY"/config.json "$TINY"/tokenizer.json "$TINY"/model.safetensors "$M"
}
config() { # KEY VALUE (JSON)
    python3 -c 'import json, sys
p = sys.argv[1] + "/config.json"
d = json.load(open(p))
d[sys.argv[2]] = json.loads(sys.argv[3])
json.dump(d, open(p, "w"))' "$M" "$1" "$2"
}
broken() { refuses "$1" 1 "$2" run -m "$M" -p x; }
model && rm "$M/config.json" && broken "no config.json" "config.json"
model && echo '{' >"$M/config.json" && broken "config.json is no JSON" "not valid JSON"
model && rm "$M/model.safetensors" && broken "no weights" "safetensors"
model && truncate -s 1000000 "$M/model.safetensors" && broken "truncated weights" "model.safetensors"
model && truncate -s 4 "$M/model.safetensors" && broken "weights without a header" "model.safetensors"
model && printf '\377\377\377\377\377\377\377\377' | dd of="$M/model.safetensors" conv=notrunc status=none && broken "header longer than the file" "header"
model && rm "$M/tokenizer.json" && broken "no tokenizer" "tokenizer.json"
model && echo '{"model": {"type": "WordPiece"}}' >"$M/tokenizer.json" && broken "unknown tokenizer" "WordPiece"
model && echo 'junk' >"$M/tokenizer.json" && broken "invalid tokenizer" "not valid JSON"
model && config architectures '["MambaForCausalLM"]' && broken "unknown architecture: the known ones" "'MambaForCausalLM' is not supported (known: Gemma3ForCausalLM"
model && config model_type '"llama"' && broken "unknown model type" "llama"
model && config hidden_size 512 && broken "wrong shape: the tensor, found, expected" "expected"
model && config hidden_size 99999999999 && broken "absurd size" "hidden_size"
model && config num_hidden_layers -1 && broken "negative size" "num_hidden_layers"
model && config num_experts '"many"' && broken "size that is no number" "num_experts"
model && config hidden_size_per_layer_input 256 && broken "per-layer embeddings" "hidden_size_per_layer_input"
model && config num_kv_shared_layers 2 && broken "shared KV" "num_kv_shared_layers"
model && config rope_parameters '{"full_attention": {"rope_type": "yarn"}}' && broken "unknown rope type" "rope type 'yarn'"
model && config layer_types '["sliding_attention"]' && broken "layer types of the wrong length" "layer_types"

# ---- memory
if [ "${KK_CONFIG:-release}" = release ]; then
    starved() { (ulimit -v 2000000; exec "$KK_BIN" bench decode -m synth:bench/configs/gemma-4-26b-a4b.json) >"$KK_TMP/out" 2>"$KK_TMP/err"; [ $? -eq 1 ] && [ "$(wc -l <"$KK_TMP/err")" -eq 1 ] && grep -Eq "memory" "$KK_TMP/err" && grep -Eq "[0-9]{5,}|[0-9.]+ [GM]i?B" "$KK_TMP/err"; }
    check "out of memory at load says how much" starved
else
    skip "out of memory at load says how much" "a sanitizer needs the address space"
fi

done_testing
