"""Stage `export`: the trio as directories that the engine and Hugging Face's classes load as they are."""
import json
import os
import shutil

import torch
from safetensors.torch import save_file

import nets
from common import tensors


def write(path, value):
    with open(path, "w", encoding="utf-8") as f:
        json.dump(value, f, indent=1)
        f.write("\n")


def put(folder, name, found, metadata=None):
    os.makedirs(folder, exist_ok=True)
    save_file({k: v.to(torch.bfloat16).contiguous() for k, v in found.items()}, os.path.join(folder, name), metadata=metadata)


def run(setup):
    source, model = setup.o.source, setup.o.model
    v, f, d = (tensors(source, n) for n in ("verifier", "f_theta", "drafter"))
    put(model, "model.safetensors", v, {"format": "pt"})
    write(os.path.join(model, "config.json"), setup.v)
    shutil.copyfile(os.path.join(source, "tokenizer.json"), os.path.join(model, "tokenizer.json"))
    tiny = os.path.join(setup.o.root, "models/tiny")
    if not os.path.samefile(tiny, model):
        shutil.copyfile(os.path.join(tiny, "chat_template.jinja"), os.path.join(model, "chat_template.jinja"))
    put(os.path.join(model, "drafter"), "model.safetensors", d, {"format": "pt"})
    write(os.path.join(model, "drafter/config.json"), setup.d)
    put(os.path.join(model, "f_theta"), "f_theta.safetensors", f, {"format": "kakeya-f-theta-1"})
    write(os.path.join(model, "f_theta/f_theta_config.json"), dict(
        format="kakeya-f-theta-1", capture="aux", aux_layer_ids=nets.TAPS,
        aux_row="residual stream after decoder layer id (Hugging Face hidden_states[id + 1])", aux_norm="rms_noscale",
        aux_norm_eps=nets.EPS, rank=len(f["latent.bias"]), latent_dtype="bfloat16", latents_per_token=1,
        target_layers=[i for i, k in enumerate(setup.v["layer_types"]) if k == "sliding_attention"],
        predicts="raw_projection", num_key_value_heads=setup.v["num_key_value_heads"], head_dim=setup.v["head_dim"],
        hidden_size=setup.v["hidden_size"], tensors={k: list(t.shape) for k, t in f.items()}, tensor_dtype="bfloat16",
        trained_with=dict(sink=nets.SINKS, window=nets.NEAR, native_window=setup.v["sliding_window"])))
    setup.log("exported to", model, {n: sum(t.numel() for t in x.values()) for n, x in (("verifier", v), ("f_theta", f), ("drafter", d))})
