#!/usr/bin/env python3
"""Synth tensors for tests/unit/file/test_synth.c: first and last values as bit patterns, SHA-256 of all bytes."""
import hashlib
import json
import os
import sys

import torch

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
sys.path.insert(0, os.path.join(ROOT, "tools"))
import synth  # noqa: E402

CASES = [
    (0, "model.embed_tokens.weight", (100, 48)), (7, "model.layers.3.self_attn.q_proj.weight", (64, 2816)),
    (7, "model.layers.3.self_attn.k_norm.weight", (256,)), (1, "model.norm.weight", (33,)),
    (18446744073709551615, "model.layers.0.experts.down_proj", (3, 16, 20)), (5, "model.layers.0.layer_scalar", (1,)),
    (5, "model.layers.0.router.scale", (40,)), (9, "some.bias", (17,)),
    (2, "model.layers.1.input_layernorm.weight", (70,)), (2, "model.layers.1.self_attn.q_norm.weight", (64,)),
    (2, "model.layers.1.router.per_expert_scale", (6,)),
    (3, "wide.weight", (2, 300000)),  # so small that float16 values are subnormal
]
DTYPES = {"float32": (torch.float32, torch.int32), "bfloat16": (torch.bfloat16, torch.int16), "float16": (torch.float16, torch.int16)}

out = []
for seed, name, shape in CASES:
    for dtype, (t, bits) in DTYPES.items():
        v = synth.synth_tensor(seed, name, shape, t).flatten().view(bits)
        sha = hashlib.sha256(v.numpy().tobytes()).hexdigest()
        mask = 0xFFFFFFFF if bits == torch.int32 else 0xFFFF
        out.append({"seed": str(seed), "name": name, "shape": shape, "dtype": dtype,
                    "sha256": sha, "first": [int(x) & mask for x in v[:12]], "last": [int(x) & mask for x in v[-3:]]})
path = os.path.join(ROOT, "tests/golden/synth/values.json")
os.makedirs(os.path.dirname(path), exist_ok=True)
with open(path, "w") as f:
    f.write("[\n" + ",\n".join(" " + json.dumps(x) for x in out) + "\n]\n")
