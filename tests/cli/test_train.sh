#!/bin/bash
# The recipe of the embedded model (tools/train): its documents, then every stage on a tiny net, which the engine runs.
. tests/cli_lib.sh
PYTHON=${KK_TRAIN_PYTHON:-python3}
OUT=$KK_TMP/train
train() { "$PYTHON" tools/train/train.py "$@" >"$KK_TMP/out" 2>"$KK_TMP/err" </dev/null; }
skip_stages() {
    skip "the recipe, stage by stage" "$1"
    done_testing
}

# ---- the documents: no PyTorch needed
python3 - <<'P' || KK_FAILED=1
import random, re, sys
sys.path.insert(0, "tools/train")
import documents as doc

failed = 0
def check(what, bad):
    global failed
    print(f"{'not ok' if bad else 'ok'} - {what}", *bad[:3])
    failed |= bool(bad)

bench = doc.Bench(".")
sizes = [len(x) for x in (bench.prefixes, bench.words, bench.names, bench.cities, bench.tools, bench.nouns)]
check("the benches' words are read from their sources", [] if sizes == [15, 200, 8, 8, 4, 6] else sizes)
library = doc.Library(most=20)
read = library.files
check("no file is in two parts of the library", sorted(set(read["train"]) & set(read["held"] + read["unseen"])))
words = doc.Words(library, bench.reserved, [" OR", "CH", "ID", " PINE", "moon", "Ad", "a", " Lis", "bon", "x"])
r = random.Random(1)
drawn = [f(r) for _ in range(3000) for f in (words.word, words.name, words.city, words.prefix)]
check("no word of the benches is drawn", [w for w in drawn if w.lower() in bench.reserved])
wrong = []
for _ in range(100):
    text, codes, order = doc.keyed_parts(words, r, 8, 10)
    wrong += [k for k, c in codes.items() if text.count(f"\nIMPORTANT: the secret code for {k} is {c}.") != 1]
    wrong += [] if sorted(order) == sorted(codes) else [order]
check("a keyed document tells every fact once", wrong)
wrong, asked = [], 0
for _ in range(100):
    c, said = doc.Chat(words, r), {}
    while c.size < 6000:
        c.one(6000 - c.size)
    for t in c.out:
        user, model = t.split(doc.END)[0].split("\n", 1)[1], t.split("model\n", 1)[1].split(doc.END)[0]
        if user.startswith("The secret code for "):
            key, code = user[20:-1].split(" is ")
            said[key] = code
        if user.startswith("What is the secret code for "):
            asked += 1
            if model != f"The secret code for {user[28:-1]} is {said.get(user[28:-1])}.":
                wrong.append((user, model))
check("a conversation answers with what it was told", wrong if asked > 50 else ["too few questions"])
strange = doc.Words(library, bench.reserved, [" OR", "CH", "ID", "moon", "Ad", "a", "bon", "x"], anew=True)
few = [w.few(r) for _ in range(100) for w in (words, strange)]
check("few words serve as padding and as subjects",
      [w.own for w in few if w.own and not set(w.sentence(r)[1:-1].split() + [w.word(r)]) <= set(w.own)])
padding = {x for w in few + [strange] * 100 for x in w.sentence(r)[1:-1].split()}
check("no word of the benches is padding", sorted(padding & bench.reserved))
wrong = []
for _ in range(100):
    turns = doc.keyed_in_turns(words.few(r), r, 8, 10, 6).split(doc.TURN + "user\n")[1:]
    for t in turns:
        key, code = re.search(r"code for (\S+)\? Answer:" + doc.END + "\n" + doc.TURN + "model\n (\S+)" + doc.END, t).groups()
        wrong += [] if f"IMPORTANT: the secret code for {key} is {code}." in turns[0] else [(key, code)]
    wrong += [] if len(turns) == 6 else [len(turns)]
check("in turns a keyed document is asked the same", wrong)
sys.exit(failed)
P

# ---- the stages
"$PYTHON" -c 'import torch, safetensors, tokenizers' 2>/dev/null || skip_stages "no PyTorch (KK_TRAIN_PYTHON names a Python with it)"
[ "$KK_CONFIG" = release ] || skip_stages "in the release configuration alone"
train data verifier --smoke --seconds 2 --out "$OUT"
check "stages data and verifier" [ $? -eq 0 -a -s "$OUT/verifier-0.safetensors" -a -s "$OUT/f_theta-0.safetensors" ]
train settle --smoke --seconds 1 --from "$OUT" --out "$KK_TMP/more"
check "stage settle goes on from what was saved elsewhere" [ $? -eq 0 -a -s "$KK_TMP/more/verifier-0.safetensors" ]
train settle ftheta drafter --smoke --seconds 2 --out "$OUT"
check "stages settle, ftheta and drafter" [ $? -eq 0 -a -s "$OUT/drafter-0.safetensors" ]
train export eval --smoke --out "$OUT" --engine "$KK_BIN"
check "stages export and eval: the engine's logits are the recipe's" [ $? -eq 0 ]
check "the report has every stage" python3 -c 'import json, sys
r = json.load(open(sys.argv[1]))
assert set(r) == {"verifier", "settle", "ftheta", "drafter", "eval"}, r.keys()
parity = r["eval"]["parity"]
assert r["eval"]["committed_per_forward"]["mean"] >= 1
assert {"conversation", "conversation, reserved words"} <= set(r["eval"]["divergence"]), r["eval"]["divergence"]
# A latent that rounds the other way moves a restored row by more than arithmetic does.
assert max(parity["native"], parity["s5"]) < 1e-3 and parity["restored"] < 0.02, parity' "$OUT/report.json"
[ "$KK_FAILED" -eq 0 ] || tail -n 5 "$KK_TMP/out" "$KK_TMP/err"
train ftheta --smoke --out "$KK_TMP/empty"
check "a stage without its input says which to run" grep -q "run the stage data first" "$KK_TMP/err"

done_testing
