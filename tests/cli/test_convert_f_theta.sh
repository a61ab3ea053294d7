#!/bin/bash
# The reference's f_theta: a checkpoint made here is converted and read back; broken ones are refused; no session takes it.
. tests/cli_lib.sh
TINY=models/tiny
samples=2
[ "${KK_CONFIG:-release}" = release ] || samples=1 # sanitizers are slow
mkdir -p "$KK_TMP/theirs" "$KK_TMP/ours"
cat >"$KK_TMP/theirs/f_theta_config.json" <<'JSON'
{"drafter_num_layers": 2, "drafter_num_kv_heads": 2, "drafter_head_dim": 4, "verifier_num_layers": 3, "verifier_num_kv_heads": 2,
 "verifier_head_dim": 4, "rank": 5, "verifier_layer_kv_heads": [2, 1, 2], "verifier_layer_head_dims": [4, 8, 4]}
JSON
convert() {
    rc=0
    python3 tools/convert_f_theta.py "$KK_TMP/theirs" "$KK_TMP/ours" "$@" >"$KK_TMP/out" 2>"$KK_TMP/err" || rc=$?
}
not_converted() { # what, words
    convert
    check "$1" sh -c '[ "$2" -ne 0 ] && grep -q -- "$3" "$1/err" && [ "$(wc -l <"$1/err")" -eq 1 ]' sh "$KK_TMP" "$rc" "$2"
}
not_converted "no weights" "f_theta_weights.pt"
printf 'version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n' >"$KK_TMP/theirs/f_theta_weights.pt"
not_converted "a Git LFS pointer is told" "LFS pointer"
sed -i 's/"rank": 5/"rank": 0/' "$KK_TMP/theirs/f_theta_config.json"
not_converted "a rank of 0" "'rank' must be a positive number"
sed -i 's/"rank": 0/"rank": 5/' "$KK_TMP/theirs/f_theta_config.json"

make_pt() { # what to change: Python that sees w, torch
    python3 - "$KK_TMP/theirs/f_theta_weights.pt" "$1" <<'PY'
import sys, torch
torch.manual_seed(1)
w = {f"encoder_{k}.weight": torch.randn(5, 16) for k in "kv"}
for i, rows in enumerate([8, 8, 8]): w.update({f"decoders_{k}.{i}.weight": torch.randn(rows, 5) for k in "kv"})
exec(sys.argv[2])
torch.save(w, sys.argv[1])
PY
}
if python3 -c 'import torch' 2>/dev/null; then
    make_pt 'pass'
    convert --dtype f32
    check "converted" [ "$rc" -eq 0 ]
    check "every number is where it belongs" python3 - "$KK_TMP" <<'PY'
import json, struct, sys, torch
d = sys.argv[1]
w = torch.load(d + "/theirs/f_theta_weights.pt", weights_only=True)
raw = open(d + "/ours/f_theta.safetensors", "rb").read()
n, = struct.unpack("<Q", raw[:8])
head = json.loads(raw[8:8 + n])
assert set(head) == {"encoder.k.weight", "encoder.v.weight"} | {f"layers.{i}.{k}.weight" for i in (0, 2) for k in "kv"}, head
for name, h in head.items():
    a, b = h["data_offsets"]
    got = torch.frombuffer(bytearray(raw[8 + n + a:8 + n + b]), dtype=torch.float32).reshape(h["shape"])
    kind, *rest = name.split(".")
    want = w[f"encoder_{rest[0]}.weight" if kind == "encoder" else f"decoders_{rest[1]}.{rest[0]}.weight"]
    assert torch.equal(got, want), name
c = json.load(open(d + "/ours/f_theta_config.json"))
assert c["causal"] is False and c["rank"] == 5 and c["target_layers"] == [0, 2]
PY
    make_pt 'del w["decoders_v.1.weight"]'
    not_converted "a missing tensor" "'decoders_v.1.weight' is missing"
    make_pt 'w["bias"] = torch.zeros(3)'
    not_converted "an unknown tensor" "'bias' is not known"
    make_pt 'w["encoder_k.weight"] = torch.zeros(5, 15)'
    not_converted "another geometry names both" "'encoder_k.weight' is \[5, 15\], the config says \[5, 16\]"
    make_pt 'w["encoder_k.weight"][0, 0] = float("nan")'
    not_converted "not finite" "not finite"
    make_pt 'w["encoder_k.weight"] = print'
    not_converted "code in a pickle is not run" "cannot be read"
else
    skip "conversion" "no PyTorch"
    printf '{"format": "kakeya-f-theta-1", "causal": false, "rank": 5}' >"$KK_TMP/ours/f_theta_config.json"
    printf '\2\0\0\0\0\0\0\0{}' >"$KK_TMP/ours/f_theta.safetensors"
fi
refuses "a session refuses a map that is not causal" 1 "no session can use it" \
    run -m "$TINY" -p x --kv restored --f-theta "$KK_TMP/ours"
run bench scorecard -m "$TINY" --f-theta "$KK_TMP/ours" --lines 12 --samples 1 --json
check "the scorecard says why the arm did not run, and goes on" python3 -c 'import json, sys
r = json.load(open(sys.argv[1]))["rungs"][0]
assert r["arms"]["restored"] is None and "no session can use it" in r["reasons"]["restored"]
assert r["arms"]["native"] and r["arms"]["identity"]' "$KK_TMP/out"

# a map that fits models/tiny and its drafter, of random numbers, in the converter's format
mkdir "$KK_TMP/fits"
python3 - "$TINY" "$KK_TMP/fits" <<'PY'
import json, random, struct, sys
tiny, out = sys.argv[1:]
v, d = (json.load(open(f"{tiny}/{n}config.json")) for n in ("", "drafter/"))
d = {"drafter_num_layers": d["num_hidden_layers"], "drafter_num_kv_heads": d["num_key_value_heads"], "drafter_head_dim": d["head_dim"]}
rank, x, rows = 8, d["drafter_num_layers"] * d["drafter_num_kv_heads"] * d["drafter_head_dim"], v["num_key_value_heads"] * v["head_dim"]
layers = [i for i, t in enumerate(v["layer_types"]) if t == "sliding_attention"]
shapes = {f"encoder.{k}.weight": [rank, x] for k in "kv"} | {f"layers.{i}.{k}.weight": [rows, rank] for i in layers for k in "kv"}
head, data, r = {}, b"", random.Random(1)
for name, shape in shapes.items():
    n = shape[0] * shape[1]
    head[name] = {"dtype": "F32", "shape": shape, "data_offsets": [len(data), len(data) + 4 * n]}
    data += struct.pack(f"<{n}f", *(r.gauss(0, 1) for _ in range(n)))
text = json.dumps(head).encode()
open(out + "/f_theta.safetensors", "wb").write(struct.pack("<Q", len(text)) + text + data)
c = {"format": "kakeya-f-theta-1", "causal": False, "capture": "drafter_kv", "predicts": "raw_projection", "rank": rank} | d
json.dump(c, open(out + "/f_theta_config.json", "w"))
PY
run bench scorecard -m "$TINY" --draft "$TINY/drafter" --f-theta "$KK_TMP/fits" --lines 12 --samples $samples --json
check "the scorecard measures it, once over each prompt" python3 -c 'import json, sys
r = json.load(open(sys.argv[1]))["rungs"][0]
o, layers = r["one_shot"], sum(t == "sliding_attention" for t in json.load(open(sys.argv[2]))["layer_types"])
assert r["arms"]["restored"] is None and o["samples"] == int(sys.argv[3]) and o["kl_positions"] > 0 and o["kl_native"] > 0.001, o
assert 0 <= o["recall"] <= 1 and o["rows_replaced"] > layers * o["samples"] * (r["prompt_tokens"] - 100) > 0, o' "$KK_TMP/out" "$TINY/config.json" $samples
if [ $samples -gt 1 ]; then
    run bench scorecard -m "$TINY" --draft "$TINY/drafter" --f-theta "$TINY/f_theta" --lines 12 --samples 1 --json
    check "a causal map is an arm, and no one-shot" python3 -c 'import json, sys
r = json.load(open(sys.argv[1]))["rungs"][0]
assert r["arms"]["restored"] and r["one_shot"] is None and "is causal" in r["reasons"]["one_shot"]' "$KK_TMP/out"
fi
done_testing
