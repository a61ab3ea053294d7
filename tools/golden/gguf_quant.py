#!/usr/bin/env python3
"""A small GGUF model with weights of block types, for tests/unit/engine/test_blocks.c.

    tools/golden/gguf_quant.py [--out tests/golden/gguf/models/gemma4-blocks.gguf]

It is tests/golden/gguf/models/gemma4.gguf (tools/golden/gguf_models.py) with every matrix whose rows are whole blocks
quantised by gguf.quants, to each of the types that it can make in turn; the embedding is Q8_0.
"""
import argparse
import os

import gguf
import numpy as np

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
MODELS = os.path.join(ROOT, "tests", "golden", "gguf", "models")
TYPES = ["Q8_0", "Q4_0", "Q5_1", "Q4_1", "Q5_0"]


def main():
    args = argparse.ArgumentParser()
    args.add_argument("--out", default=os.path.join(MODELS, "gemma4-blocks.gguf"))
    out = args.parse_args().out
    model = gguf.GGUFReader(os.path.join(MODELS, "gemma4.gguf"))
    arch = str(bytes(model.fields["general.architecture"].parts[-1]), "utf-8")
    writer = gguf.GGUFWriter(out, arch)
    for name, field in model.fields.items():
        if name.startswith("GGUF.") or name == "general.architecture":
            continue
        sub = field.types[-1] if field.types[0] == gguf.GGUFValueType.ARRAY else None
        writer.add_key_value(name, field.contents(), field.types[0], sub_type=sub)
    n = 0
    for t in model.tensors:
        values = gguf.dequantize(t.data, t.tensor_type).astype(np.float32)
        if values.ndim < 2 or values.shape[-1] % 32 or "rope" in t.name or "inp" in t.name:
            raw = t.tensor_type if t.tensor_type != gguf.GGMLQuantizationType.F32 else None
            writer.add_tensor(t.name, t.data, raw_dtype=raw)
            continue
        to = gguf.GGMLQuantizationType[TYPES[n % len(TYPES)]]
        n += 1
        writer.add_tensor(t.name, gguf.quantize(values, to), raw_dtype=to)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


if __name__ == "__main__":
    main()
