#!/usr/bin/env python3
"""Golden logits of Hugging Face's Gemma 3, Llama and Qwen 3 in float32, for tests/unit/model/test_golden.c.

    tools/golden/archs.py [--out tests/golden]

As tools/golden/gemma4.py: a folder a case, weights by tools/synth.py. The config.json written here is what a model
directory would hold, in the older form of its rotary keys or the newer one; the class reads it back from the file.
"""
import argparse
import json
import os
import random
import sys

import torch
from transformers import (Gemma3ForCausalLM, Gemma3TextConfig, LlamaConfig, LlamaForCausalLM, Qwen3Config,
                          Qwen3ForCausalLM)

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
import gemma4  # noqa: E402
from gemma4 import ROOT, synth  # noqa: E402

S, F = "sliding_attention", "full_attention"
LLAMA3 = dict(rope_type="llama3", factor=4.0, low_freq_factor=1.0, high_freq_factor=4.0,
              original_max_position_embeddings=40)


def common(n_layers, kw, **c):
    c = dict(dict(vocab_size=64, hidden_size=64, intermediate_size=96, num_hidden_layers=n_layers, head_dim=16,
                  num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=1024, rms_norm_eps=1e-6,
                  bos_token_id=2, eos_token_id=1, pad_token_id=0, dtype="float32"), **c)
    c.update(kw)
    return {k: v for k, v in c.items() if v != "absent"}


def gemma3(n_layers, **kw):
    return common(n_layers, kw, architectures=["Gemma3ForCausalLM"], model_type="gemma3_text", sliding_window=16,
                  query_pre_attn_scalar=16, hidden_activation="gelu_pytorch_tanh")


def llama(n_layers, **kw):
    return common(n_layers, kw, architectures=["LlamaForCausalLM"], model_type="llama", head_dim="absent",
                  hidden_act="silu", tie_word_embeddings=False)


def qwen3(n_layers, **kw):
    return common(n_layers, kw, architectures=["Qwen3ForCausalLM"], model_type="qwen3", hidden_act="silu",
                  tie_word_embeddings=False)


def nested(c):
    outer = dict(architectures=["Gemma3ForConditionalGeneration"], model_type="gemma3", dtype=c.pop("dtype"))
    del c["architectures"]
    return dict(outer, text_config=c)


ODD = dict(vocab_size=61, hidden_size=60, intermediate_size=77, num_attention_heads=6, num_key_value_heads=3)
CASES = {  # folder: {name: (config, number of tokens)}
    "gemma3": {
        "pattern": (gemma3(7), 40),
        "last_slides": (gemma3(3, layer_types=[S, F, S]), 40),
        "older_rope": (gemma3(2, layer_types=[S, F], rope_theta=500000.0, rope_local_base_freq=5000.0,
                              rope_scaling={"rope_type": "linear", "factor": 8.0}), 48),
        "newer_rope": (gemma3(2, layer_types=[F, S], rope_parameters={
            S: {"rope_type": "linear", "rope_theta": 3000.0, "factor": 2.0},
            F: dict(LLAMA3, rope_theta=100000.0)}), 48),
        "scale_softcap": (gemma3(2, layer_types=[S, F], query_pre_attn_scalar=21, final_logit_softcapping=20.0), 40),
        "odd_sizes": (gemma3(3, layer_types=[S, S, F], head_dim=18, **ODD), 37),
        "one_kv_head": (gemma3(2, layer_types=[S, F], num_key_value_heads=1), 36),
        "window": (gemma3(2, layer_types=[S, F]), 16),
        "window_plus_1": (gemma3(2, layer_types=[S, F]), 17),
        "bf16": (gemma3(2, layer_types=[S, F], dtype="bfloat16", hidden_size=72), 40),
        "nested": (nested(gemma3(2, layer_types=[S, F])), 36),
        "long": (gemma3(2, layer_types=[S, F], vocab_size=48, sliding_window=150), 400),
    },
    "llama": {
        "grouped": (llama(3), 40),
        "every_head": (llama(2, num_key_value_heads="absent"), 40),
        "one_kv_head": (llama(2, num_key_value_heads=1), 40),
        "tied": (llama(2, tie_word_embeddings=True), 36),
        "head_dim": (llama(2, head_dim=24, rope_theta=50000.0), 36),
        "odd_sizes": (llama(2, **ODD), 37),
        "llama3_rope": (llama(2, rope_theta=5000.0, rope_scaling=LLAMA3), 96),
        "newer_rope": (llama(2, rope_parameters=dict(LLAMA3, rope_theta=700.0, factor=32.0)), 96),
        "linear_rope": (llama(2, rope_scaling={"type": "linear", "factor": 3.0}), 48),
        "eps_bf16": (llama(2, rms_norm_eps=1e-5, dtype="bfloat16", hidden_size=72, head_dim=18), 40),
        "long": (llama(2, vocab_size=48), 400),
    },
    "qwen3": {
        "untied": (qwen3(3), 40),
        "tied": (qwen3(2, tie_word_embeddings=True), 36),
        "head_dim": (qwen3(2, head_dim=24, rope_theta=1000000.0), 36),
        "odd_sizes": (qwen3(2, head_dim=18, **ODD), 37),
        "slides": (qwen3(4, use_sliding_window=True, sliding_window=12, max_window_layers=2), 40),
        "layer_types": (qwen3(3, use_sliding_window=True, sliding_window=16, layer_types=[S, F, S]), 40),
        "linear_rope": (qwen3(2, rope_parameters={"rope_type": "linear", "rope_theta": 20000.0, "factor": 2.0}), 48),
        "bf16": (qwen3(2, dtype="bfloat16", hidden_size=72), 40),
        "long": (qwen3(2, vocab_size=48, use_sliding_window=True, sliding_window=150, max_window_layers=1), 400),
    },
}
CLASSES = {"gemma3": (Gemma3ForCausalLM, Gemma3TextConfig), "llama": (LlamaForCausalLM, LlamaConfig),
           "qwen3": (Qwen3ForCausalLM, Qwen3Config)}


def build(kind, folder, seed):
    """The model that config.json describes, with synth: weights rounded to its dtype."""
    model_class, config_class = CLASSES[kind]
    c = json.load(open(os.path.join(folder, "config.json")))
    dtype = getattr(torch, c["dtype"])
    c = c.get("text_config", c)
    hf = config_class(**{k: v for k, v in c.items() if k not in ("architectures", "model_type", "dtype")})
    hf._attn_implementation = "eager"
    model = model_class(hf).float().eval()
    synth.synth_state_dict(model, seed, dtype)
    if kind == "gemma3" and dtype == torch.bfloat16:  # sqrt(hidden) in the type of the embedding
        scale = torch.tensor(c["hidden_size"] ** 0.5).to(dtype).float()
        model.model.embed_tokens.embed_scale.fill_(scale)
    return model


def case(kind, name, config, n, seed, out):
    folder = os.path.join(out, kind, name)
    os.makedirs(folder, exist_ok=True)
    gemma4.write_json(os.path.join(folder, "config.json"), config)
    r = random.Random(seed)
    ids = [r.randrange(config.get("text_config", config)["vocab_size"]) for _ in range(n)]
    y = gemma4.logits_of(build(kind, folder, seed), ids)
    rows = list(range(n)) if n <= 100 else list(range(0, n, 7)) + [n - 1]
    gemma4.write_json(os.path.join(folder, "ids.json"), ids)
    gemma4.write_json(os.path.join(folder, "meta.json"),
                      dict(gemma4.versions(), script="tools/golden/archs.py", seed=seed, rows=rows,
                           argmax=y.argmax(-1).tolist()))
    y[rows].numpy().astype("<f4").tofile(os.path.join(folder, "logits.bin"))
    print(f"{kind}/{name}: {n} tokens, logits std {y.std():.3f}, max {y.abs().max():.2f}")


if __name__ == "__main__":
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument("--out", default=os.path.join(ROOT, "tests/golden"))
    a = p.parse_args()
    for i, (kind, cases) in enumerate(CASES.items()):
        for k, (name, (config, n)) in enumerate(cases.items()):
            case(kind, name, config, n, 200 + 100 * i + k, a.out)
