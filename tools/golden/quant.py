#!/usr/bin/env python3
"""Blocks of every type and what Python's `gguf` package makes of them -> tests/golden/quant/blocks.json.

Random bytes, except that the scales (f16) of the first blocks are extreme: zeros, the largest, the least
subnormal, negatives. A type: its blocks as hex, SHA-256 of all its float32 values, and the bits of some."""
import hashlib
import importlib.metadata
import json
import random
from pathlib import Path

import numpy as np
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType, quants

OUT = Path(__file__).resolve().parents[2] / "tests/golden/quant"
SCALES = {"Q4_0": [0], "Q4_1": [0, 2], "Q5_0": [0], "Q5_1": [0, 2], "Q8_0": [0], "Q4_K": [0, 2], "Q5_K": [0, 2], "Q6_K": [208]}  # where the f16s are
EXTREME = [0x0000, 0x8000, 0x7bff, 0xfbff, 0x0001, 0x8001, 0x03ff, 0x0400]
BLOCKS = 14

random.seed(9)
types = []
for name, at in SCALES.items():
    t = GGMLQuantizationType[name]
    per_block, size = GGML_QUANT_SIZES[t]
    blocks = [bytearray(random.randbytes(size)) for _ in range(BLOCKS)]
    for k, b in enumerate(blocks):
        for j, i in enumerate(at):
            f = EXTREME[(k + 3 * j) % 8] if k < 8 else int(np.float16(random.gauss(0, .02)).view(np.uint16))
            b[i:i + 2] = f.to_bytes(2, "little")
    raw = b"".join(bytes(b) for b in blocks)
    y = quants.dequantize(np.frombuffer(raw, np.uint8).reshape(BLOCKS, size), t).astype(np.float32).ravel()
    assert y.size == BLOCKS * per_block and np.isfinite(y).all()
    bits = y.view(np.uint32)
    types.append({"type": name.lower(), "blocks": raw.hex(), "sha256": hashlib.sha256(y.tobytes()).hexdigest(),
                  "bits": {str(i): int(bits[i]) for i in sorted(random.sample(range(y.size), 12))}})
OUT.mkdir(parents=True, exist_ok=True)
made_by = {p: importlib.metadata.version(p) for p in ("gguf", "numpy")}
(OUT / "blocks.json").write_text(json.dumps({"made_by": made_by, "types": types}, indent=1) + "\n")
