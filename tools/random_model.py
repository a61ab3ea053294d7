#!/usr/bin/env python3
"""A snapshot directory with random bfloat16 weights, for measuring how long loading takes.

    tools/random_model.py CONFIG.json DIR       a dense Gemma 4 geometry, bench/configs/cpu-1b.json for one

Matrices repeat 256 Ki normal numbers of deviation 0.02; norms and scalars are 1. Nothing in DIR is a tokenizer.
"""
import json
import math
import os
import random
import struct
import sys


def tensors(c):
    C, FF, H = c["hidden_size"], c["intermediate_size"], c["num_attention_heads"]
    yield "embed_tokens.weight", [c["vocab_size"], C]
    yield "norm.weight", [C]
    for i, kind in enumerate(c["layer_types"]):
        full, p = kind == "full_attention", f"layers.{i}."
        G, D = (c["num_global_key_value_heads"], c["global_head_dim"]) if full else (c["num_key_value_heads"], c["head_dim"])
        for n in ("input", "post_attention", "pre_feedforward", "post_feedforward"):
            yield f"{p}{n}_layernorm.weight", [C]
        yield p + "layer_scalar", [1]
        shapes = {"q_norm": [D], "k_norm": [D], "q_proj": [H * D, C], "k_proj": [G * D, C], "o_proj": [C, H * D]}
        if not (full and c["attention_k_eq_v"]):
            shapes["v_proj"] = [G * D, C]
        yield from ((f"{p}self_attn.{n}.weight", s) for n, s in shapes.items())
        yield from ((f"{p}mlp.{n}_proj.weight", s) for n, s in (("gate", [FF, C]), ("up", [FF, C]), ("down", [C, FF])))


def bf16(x):
    return struct.pack("<f", x)[2:]


def main(config, folder):
    with open(config) as f:
        c = json.load(f)
    if c.get("enable_moe_block"):
        sys.exit("random_model: dense geometries only")
    c["dtype"] = "bfloat16"
    r, head, at = random.Random(1), {}, 0
    normal = b"".join(bf16(r.gauss(0, 0.02)) for _ in range(1 << 18))
    for name, shape in tensors(c):
        n = 2 * math.prod(shape)
        head["model." + name] = {"dtype": "BF16", "shape": shape, "data_offsets": [at, at + n]}
        at += n
    text = json.dumps(head).encode()
    text += b" " * (-len(text) % 8)
    os.makedirs(folder, exist_ok=True)
    with open(os.path.join(folder, "config.json"), "w") as f:
        json.dump(c, f, indent=1)
    with open(os.path.join(folder, "model.safetensors"), "wb") as f:
        f.write(struct.pack("<Q", len(text)) + text)
        for name, h in head.items():
            tile = normal if len(h["shape"]) == 2 else bf16(1) * 4096
            left = h["data_offsets"][1] - h["data_offsets"][0]
            while left > 0:
                left -= f.write(tile[:left])
    print(f"{at} bytes of weights in {folder}")


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    main(*sys.argv[1:])
