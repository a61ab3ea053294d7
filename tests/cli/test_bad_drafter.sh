#!/bin/bash
# Drafters, maps and KV options that do not fit: one line on stderr that says what and, where numbers disagree, both of them.
. tests/cli_lib.sh
TINY=models/tiny

# copy FROM TO CONFIG PYTHON: a directory whose config, c, has gone through PYTHON
copy() {
    mkdir -p "$KK_TMP/$2"
    ln -s "$PWD/$1"/*.safetensors "$KK_TMP/$2/"
    python3 -c 'import json, sys
c = json.load(open(sys.argv[1]))
exec(sys.argv[3])
json.dump(c, open(sys.argv[2], "w"))' "$1/$3" "$KK_TMP/$2/$3" "$4"
}
draft() { copy $TINY/drafter "$1" config.json "$2"; }
theta() { copy $TINY/f_theta "$1" f_theta_config.json "$2"; }

draft no-mask 'del c["dflash_config"]["mask_token_id"]'
refuses "no mask token" 1 "'mask_token_id' is missing" run -m $TINY -p x --draft "$KK_TMP/no-mask"
draft mask-out 'c["dflash_config"]["mask_token_id"] = 2048'
refuses "a mask token that the verifier does not have" 1 "2048" run -m $TINY -p x --draft "$KK_TMP/mask-out"
draft layer-out 'c["dflash_config"]["target_layer_ids"] = [1, 3, 5, 8]'
refuses "a drafter that reads a layer there is not" 1 "layer 8 of the verifier, which has 8" run -m $TINY -p x --draft "$KK_TMP/layer-out"
refuses "a drafter of another width" 1 "the drafter is 256 wide, the verifier 48" \
    bench decode -m synth:tests/data/mini.json --draft $TINY/drafter --ctx 0
draft heads 'c["num_key_value_heads"] = 2'
refuses "a drafter whose tensors are of another shape" 1 "256" run -m $TINY -p x --draft "$KK_TMP/heads"

theta theta-layer 'c["aux_layer_ids"] = [1, 3, 5, 9]'
refuses "a map that reads a layer there is not" 1 "layer 9 of the verifier, which has 8" \
    run -m $TINY -p x --kv restored --f-theta "$KK_TMP/theta-layer"
theta theta-rank 'c["rank"] = 128'
refuses "a map of another rank than its tensors" 1 "latent.weight" run -m $TINY -p x --kv restored --f-theta "$KK_TMP/theta-rank"
refuses "a map for another width" 1 "256 wide, this one is 48" \
    bench decode -m synth:tests/data/mini.json --kv restored --f-theta $TINY/f_theta --ctx 0

refuses "sinks below 0" 2 "from 0 to" run -m $TINY -p x --kv s5 --kv-sinks -1
refuses "a window of 0" 2 "from 1 to" run -m $TINY -p x --kv s5 --kv-window 0
refuses "a window over the model's" 1 "window 257 is over the model's own window 256" run -m $TINY -p x --kv s5 --kv-window 257
refuses "a cap below the least says the least and why" 1 "the rings and one block of 128 rows of every layer that keeps all rows take 851968" \
    run -m $TINY -p x --kv-device 1000
refuses "a ring of one block" 1 "must have at least 2" run -m $TINY -p x --kv-device 1MiB --kv-staging 1
printf 'Note: this line is padding.%.0s\n' $(seq 400) >"$KK_TMP/long"
refuses "host memory for KV runs out" 1 "host memory for KV is exhausted" \
    run -m $TINY -f "$KK_TMP/long" --kv-device 1MiB --kv-host 64KiB
done_testing
