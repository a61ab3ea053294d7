#!/usr/bin/env python3
"""Small models as llama.cpp's own converter writes them, for tests/unit/file/test_gguf.c.

    tools/golden/gguf_models.py LLAMA_CPP_SOURCE VERSION

Writes tests/golden/gguf/models/: NAME.json, a config.json whose weights are those of synth:NAME.json:SEED, and
NAME.gguf, the same weights converted (no tokenizer); split-0000K-of-00003.gguf, one of them in three parts;
names.json, the tensors of each Hugging Face class, and what made the files.
"""
import importlib.metadata
import json
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
OUT = ROOT / "tests/golden/gguf/models"
SEED = 11
LLAMA_CPP, VERSION = sys.argv[1:3]
sys.path[:0] = [str(ROOT / "tools"), LLAMA_CPP, LLAMA_CPP + "/gguf-py"]

import torch  # noqa: E402
import transformers  # noqa: E402
from safetensors.torch import save_file  # noqa: E402

import convert_hf_to_gguf  # noqa: E402
import conversion.base  # noqa: E402
import conversion.gemma  # noqa: E402
import conversion.llama  # noqa: E402
import conversion.qwen  # noqa: E402
import synth  # noqa: E402

S, F = "sliding_attention", "full_attention"
COMMON = dict(vocab_size=64, hidden_size=32, intermediate_size=48, num_attention_heads=4, num_key_value_heads=2, head_dim=16,
              max_position_embeddings=512, rms_norm_eps=1e-6, bos_token_id=2, eos_token_id=1, pad_token_id=0)
LLAMA3 = dict(rope_type="llama3", factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_position_embeddings=8192)
CONFIGS = {
    "llama": dict(COMMON, architectures=["LlamaForCausalLM"], model_type="llama", num_hidden_layers=2, rope_theta=10000.0, hidden_act="silu",
                  tie_word_embeddings=False, dtype="float32"),
    "llama3": dict(COMMON, architectures=["LlamaForCausalLM"], model_type="llama", num_hidden_layers=1, head_dim=64, rope_theta=500000.0, rope_scaling=LLAMA3,
                   hidden_act="silu", tie_word_embeddings=True, dtype="bfloat16"),
    "qwen3": dict(COMMON, architectures=["Qwen3ForCausalLM"], model_type="qwen3", num_hidden_layers=2, rope_theta=1000000.0, hidden_act="silu",
                  tie_word_embeddings=False, dtype="bfloat16"),
    "gemma3": dict(COMMON, architectures=["Gemma3ForCausalLM"], model_type="gemma3_text", num_hidden_layers=7, sliding_window=24, query_pre_attn_scalar=16,
                   layer_types=[S] * 5 + [F, S], hidden_activation="gelu_pytorch_tanh", rope_theta=1000000.0, rope_local_base_freq=10000.0,
                   rope_scaling={"rope_type": "linear", "factor": 8.0}, tie_word_embeddings=True, dtype="bfloat16"),
    "gemma4": dict(COMMON, architectures=["Gemma4ForCausalLM"], model_type="gemma4_text", num_hidden_layers=3, layer_types=[S, F, F], sliding_window=24,
                   global_head_dim=32, num_global_key_value_heads=1, attention_k_eq_v=True, final_logit_softcapping=30.0, hidden_size_per_layer_input=0,
                   enable_moe_block=True, num_experts=4, top_k_experts=2, moe_intermediate_size=20, hidden_activation="gelu_pytorch_tanh",
                   num_kv_shared_layers=0, attention_bias=False, tie_word_embeddings=True, dtype="bfloat16",
                   rope_parameters={S: {"rope_type": "default", "rope_theta": 10000.0}, F: {"rope_type": "proportional", "partial_rotary_factor": 0.25, "rope_theta": 1000000.0}}),
}


def no_tokenizer(self):
    self._set_vocab_none()
    self.gguf_writer.add_vocab_size(self.hparams["vocab_size"])


def weights(config):
    """The class's tensors by name, filled by synth."""
    c = transformers.AutoConfig.for_model(**config)
    with torch.device("meta"):
        model = getattr(transformers, config["architectures"][0])(c)
    dtype = getattr(torch, config["dtype"])
    tied = {"lm_head.weight"} if config["tie_word_embeddings"] else set()
    shapes = {n: tuple(p.shape) for n, p in model.state_dict().items() if n not in tied}
    return {n: synth.synth_tensor(SEED, n, s, dtype).contiguous() for n, s in shapes.items()}


def convert(directory, out, *options):
    sys.argv = ["convert", str(directory), "--outfile", str(out), *options]
    convert_hf_to_gguf.main()


def main():
    OUT.mkdir(parents=True, exist_ok=True)
    for cls in [c for m in sys.modules.values() if getattr(m, "__name__", "").startswith("conversion") for c in vars(m).values()
                if isinstance(c, type) and issubclass(c, conversion.base.TextModel)]:
        cls.set_vocab = no_tokenizer
    names = {}
    for name, config in CONFIGS.items():
        (OUT / f"{name}.json").write_text(json.dumps(config, indent=1) + "\n")
        tensors = weights(config)
        names[name] = sorted(tensors)
        with tempfile.TemporaryDirectory() as d:
            (Path(d) / "config.json").write_text(json.dumps(config))
            save_file(tensors, Path(d) / "model.safetensors", metadata={"format": "pt"})
            (Path(d) / "tokenizer.json").write_text(json.dumps({"model": {"vocab": {str(i): i for i in range(64)}}, "added_tokens": []}))
            options = ["--outtype", "bf16" if config["dtype"] == "bfloat16" else "f32", "--model-name", name]
            convert(d, OUT / f"{name}.gguf", *options)
            if name == "llama":
                convert(d, OUT / "split.gguf", *options, "--split-max-tensors", "8")
    made_by = {p: importlib.metadata.version(p) for p in ("torch", "transformers")}
    (OUT / "names.json").write_text(json.dumps({"made_by": dict(made_by, llama_cpp=VERSION), "seed": SEED, "names": names}, indent=1) + "\n")


main()
