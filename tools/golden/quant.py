#!/usr/bin/env python3
"""Golden values of ggml's block types, for tests/unit/base/test_quant.c.

    tools/golden/quant.py [--out tests/golden/quant]

For each type NAME: NAME.blocks holds some blocks of random bytes with finite scales (one block has zero scales, one the
largest finite ones, one subnormal ones), NAME.f32 the float32 numbers (little endian) that gguf.quants makes of them;
meta.json the versions.
"""
import argparse
import json
import os
import platform

import gguf
import numpy as np

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
# name: offsets of the f16 fields in a block
TYPES = {"Q4_0": [0], "Q4_1": [0, 2], "Q5_0": [0], "Q5_1": [0, 2], "Q8_0": [0],
         "Q4_K": [0, 2], "Q5_K": [0, 2], "Q6_K": [208]}


def main():
    args = argparse.ArgumentParser()
    args.add_argument("--out", default=os.path.join(ROOT, "tests", "golden", "quant"))
    out = args.parse_args().out
    os.makedirs(out, exist_ok=True)
    rng = np.random.default_rng(20261123)
    for name, fields in TYPES.items():
        qtype = gguf.GGMLQuantizationType[name]
        per, size = gguf.GGML_QUANT_SIZES[qtype]
        n = 8 if per == 32 else 4
        blocks = rng.integers(0, 256, (n, size), dtype=np.uint8)
        for at in fields:
            scale = rng.normal(0, 0.05, n).astype(np.float16)
            scale[1:4] = np.array([0, 65504, 3e-7], np.float16)
            blocks[:, at:at + 2] = scale.view(np.uint8).reshape(n, 2)
        blocks.tofile(os.path.join(out, name.lower() + ".blocks"))
        values = gguf.dequantize(blocks, qtype)
        assert values.shape == (n, per)
        values.astype("<f4").tofile(os.path.join(out, name.lower() + ".f32"))
    with open(os.path.join(out, "meta.json"), "w") as f:
        from importlib.metadata import version
        json.dump({"gguf": version("gguf"), "numpy": np.__version__, "python": platform.python_version()}, f, indent=1)
        f.write("\n")


if __name__ == "__main__":
    main()
