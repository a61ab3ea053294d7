#!/bin/bash
# Many sessions in a step: each says what it says alone, and knows its own document only.
. tests/cli_lib.sh

most=6
[ "${KK_CONFIG:-release}" = release ] || most=2 # sanitizers are slow
run bench batch -m models/tiny --levels 1,$most --lines 60 --threads 2 --json
check "bench batch: identical, every session recalls its own code" python3 -c 'import json, sys
d = json.load(open(sys.argv[1]))
assert [l["sessions"] for l in d["levels"]] == [1, int(sys.argv[2])]
assert all(l["byte_identical"] is True and l["recall"] == 1.0 for l in d["levels"]), d
assert all(l["alone_tok_s"] > 0 and l["together_tok_s"] > 0 for l in d["levels"])
' "$KK_TMP/out" "$most"
run bench batch -m synth:tests/data/mini.json --levels 3 --json
check "a model without a tokenizer: no recall" python3 -c 'import json, sys
d = json.load(open(sys.argv[1]))
assert d["levels"][0]["byte_identical"] is True and d["levels"][0]["recall"] is None
' "$KK_TMP/out"
run bench batch -m synth:tests/data/mini.json --levels 1,4 --tokens 40 --json
check "experts: those of one row, more with more rows; their bytes" python3 -c 'import json, sys
a, b = json.load(open(sys.argv[1]))["levels"]
assert a["prompt_tokens"] == b["prompt_tokens"] == 40
assert a["distinct_experts"] == 2 < b["distinct_experts"] <= 8, (a, b)
assert a["weight_bytes"] < b["weight_bytes"] and a["step_ms"] > 0
' "$KK_TMP/out"
run bench batch -m models/tiny --levels 0
check "no sessions: refused" [ "$rc" -eq 2 ]

done_testing
