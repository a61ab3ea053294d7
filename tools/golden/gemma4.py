#!/usr/bin/env python3
"""Golden logits of the Hugging Face Gemma4ForCausalLM in float32, for tests/unit/model/test_golden.c.

    tools/golden/gemma4.py [--out tests/golden/gemma4]

Each case is a folder: config.json (a geometry), ids.json, logits.bin, and meta.json with versions.
Weights are not stored: they are `synth:` weights (docs/formats/synth.md), made by tools/synth.py here and by
src/file/synth.c there. The case `tiny` uses models/tiny and keeps logits of some rows and the argmax of all.

logits.bin: float32, little endian, row-major [rows, vocabulary].

The embedding scale of the class is sqrt(hidden) in the embedding's own type: for bf16 weights it is rounded to
bf16, although this run is in float32.
"""
import argparse
import json
import os
import platform
import random
import sys

import torch
import transformers
from transformers import Gemma4ForCausalLM
from transformers.models.gemma4.configuration_gemma4 import Gemma4TextConfig

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
sys.path.insert(0, os.path.join(ROOT, "tools"))
import synth  # noqa: E402

S, F = "sliding_attention", "full_attention"


def config(layers, **kw):
    """One geometry in Hugging Face form; small enough for a golden file."""
    c = dict(
        architectures=["Gemma4ForCausalLM"], model_type="gemma4_text", vocab_size=160, hidden_size=64,
        intermediate_size=96, num_hidden_layers=len(layers), num_attention_heads=4, num_key_value_heads=2,
        head_dim=16, global_head_dim=32, num_global_key_value_heads=1, attention_k_eq_v=True,
        sliding_window=16, layer_types=layers, final_logit_softcapping=30.0, hidden_size_per_layer_input=0,
        enable_moe_block=False, max_position_embeddings=1024, hidden_activation="gelu_pytorch_tanh",
        rms_norm_eps=1e-6, tie_word_embeddings=True, num_kv_shared_layers=0, attention_bias=False,
        bos_token_id=2, eos_token_id=1, pad_token_id=0, dtype="float32",
        rope_parameters={
            S: {"rope_type": "default", "rope_theta": 10000.0},
            F: {"rope_type": "proportional", "partial_rotary_factor": 0.25, "rope_theta": 1000000.0}})
    c.update(kw)
    return c


MOE = dict(enable_moe_block=True, num_experts=4, top_k_experts=2, moe_intermediate_size=24)
CASES = {  # name: (config, number of tokens)
    "dense": (config([S, S, F]), 40),
    "moe": (config([S, F, S, F], **MOE), 40),
    "moe_odd": (config([S, F], enable_moe_block=True, num_experts=7, top_k_experts=3, moe_intermediate_size=13), 33),
    "k_ne_v": (config([S, S, F], attention_k_eq_v=False), 40),
    "one_layer": (config([F]), 20),
    "one_kv_head": (config([S, F], num_key_value_heads=1), 36),
    "many_kv_heads": (config([S, F], num_attention_heads=8, num_key_value_heads=8, num_global_key_value_heads=4), 36),
    "odd_sizes": (config([S, S, F], vocab_size=151, hidden_size=60, intermediate_size=77, num_attention_heads=3,
                         num_key_value_heads=3, num_global_key_value_heads=1, head_dim=18, global_head_dim=22), 37),
    "window_minus_1": (config([S, S, F]), 15),
    "window": (config([S, S, F]), 16),
    "window_plus_1": (config([S, S, F]), 17),
    "bf16": (config([S, S, F], dtype="bfloat16", hidden_size=72, **MOE), 48),
    "no_softcap": (config([S, F], final_logit_softcapping=None), 24),
    "full_rotary": (config([S, F], rope_parameters={
        S: {"rope_type": "default", "rope_theta": 5000.0},
        F: {"rope_type": "default", "rope_theta": 200000.0}}), 24),
    "untied": (config([S, F], tie_word_embeddings=False), 24),
    "long": (config([S, F, F], vocab_size=48, sliding_window=150), 400),
}


def build(c, seed):
    hf = Gemma4TextConfig(**{k: v for k, v in c.items() if k not in ("architectures", "model_type", "dtype")})
    hf._attn_implementation = "eager"
    hf._experts_implementation = "eager"
    model = Gemma4ForCausalLM(hf).float().eval()
    dtype = getattr(torch, c["dtype"])
    synth.synth_state_dict(model, seed, dtype)
    if dtype == torch.bfloat16:
        scale = torch.tensor(c["hidden_size"] ** 0.5).to(torch.bfloat16).float()
        model.model.embed_tokens.embed_scale.fill_(scale)
    return model


@torch.no_grad()
def logits_of(model, ids):
    return model(input_ids=torch.tensor([ids])).logits[0].float().contiguous()


def write_json(path, value):
    with open(path, "w") as f:
        json.dump(value, f, indent=1)
        f.write("\n")


def versions():
    return {"torch": torch.__version__, "transformers": transformers.__version__, "python": platform.python_version(),
            "script": "tools/golden/gemma4.py"}


def synth_cases(out):
    for i, (name, (c, n)) in enumerate(CASES.items()):
        folder, seed = os.path.join(out, name), 100 + i
        os.makedirs(folder, exist_ok=True)
        r = random.Random(seed)
        ids = [r.randrange(c["vocab_size"]) for _ in range(n)]
        y = logits_of(build(c, seed), ids)
        write_json(os.path.join(folder, "config.json"), c)
        write_json(os.path.join(folder, "ids.json"), ids)
        write_json(os.path.join(folder, "meta.json"), dict(versions(), seed=seed, rows=list(range(n))))
        y.numpy().astype("<f4").tofile(os.path.join(folder, "logits.bin"))
        print(f"{name}: {n} tokens, logits std {y.std():.3f}, max {y.abs().max():.2f}")


def tiny_case(out):
    folder = os.path.join(out, "tiny")
    os.makedirs(folder, exist_ok=True)
    model = Gemma4ForCausalLM.from_pretrained(os.path.join(ROOT, "models/tiny"), dtype=torch.float32,
                                              attn_implementation="eager", experts_implementation="eager").eval()
    r = random.Random(7)
    ids = [2] + [r.randrange(7, 2048) for _ in range(60)]
    from tokenizers import Tokenizer
    tok = Tokenizer.from_file(os.path.join(ROOT, "models/tiny/tokenizer.json"))
    text = "\n".join(f"Note {i:04d}: this paragraph is unrelated padding and does not contain the answer."
                     for i in range(14)) + "\nIMPORTANT: the secret code is MAPLE-7890.\n"
    ids += tok.encode(text).ids
    y = logits_of(model, ids)
    rows = sorted(set(list(range(0, len(ids), 29)) + [254, 255, 256, 257, len(ids) - 1]))
    write_json(os.path.join(folder, "ids.json"), ids)
    write_json(os.path.join(folder, "meta.json"),
               dict(versions(), model="models/tiny", rows=rows, argmax=y.argmax(-1).tolist()))
    y[rows].numpy().astype("<f4").tofile(os.path.join(folder, "logits.bin"))
    print(f"tiny: {len(ids)} tokens, {len(rows)} rows kept")


if __name__ == "__main__":
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument("--out", default=os.path.join(ROOT, "tests/golden/gemma4"))
    a = p.parse_args()
    synth_cases(a.out)
    tiny_case(a.out)
