#!/usr/bin/env python3
"""Golden logits of the reference system's restoration (src/model/one_shot.c) from PyTorch in float32.

    tools/golden/one_shot.py [--out tests/golden/one_shot]

A case is a geometry and seed of tests/golden/gemma4 (synth weights), a drafter of one of tests/golden/dflash (synth
weights of the same seed) and a random map, stored. The drafter's capture is checked against Qwen3Model: its k_proj and
v_proj outputs under a mask that hides nothing. The verifier is policies.Model, checked against its class there; rows
[sinks, n - window) of its sliding layers are replaced for every query.

ids.json, logits.bin (float32, little endian, [n, vocabulary]), meta.json, f_theta_config.json, f_theta.safetensors,
config.json (the verifier's) and drafter.json (the drafter's) are written.
"""
import argparse
import json
import os
import sys

import torch
from safetensors.torch import save_file
from transformers import Qwen3Config, Qwen3Model

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path.insert(0, HERE)
import gemma4  # noqa: E402
import policies  # noqa: E402
import synth  # noqa: E402  (gemma4 put tools/ on the path)

CASES = {  # name: (verifier geometry, drafter geometry, rank, sinks, window, tokens)
    "dense": ("k_ne_v", "full", 12, 2, 5, 60),
    "moe": ("moe", "one_layer", 20, 0, 9, 48),
}


def read(*names):
    with open(os.path.join(policies.ROOT, "tests/golden", *names)) as f:
        return json.load(f)


class Drafter:
    """The layers alone, without context: pre-norm blocks whose queries see every row."""

    def __init__(self, config, seed):
        self.c, self.w = config, {}
        C, H, G, D, I = (config[k] for k in ("hidden_size", "num_attention_heads", "num_key_value_heads", "head_dim",
                                             "intermediate_size"))
        shapes = {"input_layernorm": (C,), "post_attention_layernorm": (C,), "self_attn.q_norm": (D,),
                  "self_attn.k_norm": (D,), "self_attn.q_proj": (H * D, C), "self_attn.k_proj": (G * D, C),
                  "self_attn.v_proj": (G * D, C), "self_attn.o_proj": (C, H * D), "mlp.gate_proj": (I, C),
                  "mlp.up_proj": (I, C), "mlp.down_proj": (C, I)}
        for layer in range(config["num_hidden_layers"]):
            for name, shape in shapes.items():
                full = f"layers.{layer}.{name}.weight"
                self.w[full] = synth.synth_tensor(seed, full, shape, torch.float32)

    def rope(self, x, at):
        d = x.shape[-1]
        angle = at[:, None].float() / self.c["rope_theta"] ** (torch.arange(0, d, 2).float() / d)
        cos, sin = angle.cos()[:, None, :], angle.sin()[:, None, :]
        a, b = x[..., :d // 2], x[..., d // 2:]
        return torch.cat([a * cos - b * sin, b * cos + a * sin], -1)

    def capture(self, h):
        """x_K, x_V [rows, layers * G * D] of the embedded rows h."""
        D, eps, at, xk, xv = self.c["head_dim"], self.c["rms_norm_eps"], torch.arange(len(h)), [], []
        for layer in range(self.c["num_hidden_layers"]):
            def w(name):
                return self.w[f"layers.{layer}.{name}.weight"]
            y = policies.rms(h, w("input_layernorm"), eps)
            q, k, v = (y @ w(f"self_attn.{n}_proj").T for n in "qkv")
            xk.append(k)
            xv.append(v)
            q = self.rope(policies.rms(q.unflatten(-1, (-1, D)), w("self_attn.q_norm"), eps), at)
            k = self.rope(policies.rms(k.unflatten(-1, (-1, D)), w("self_attn.k_norm"), eps), at)
            group = q.shape[1] // k.shape[1]
            k, v = k.repeat_interleave(group, 1), v.unflatten(-1, (-1, D)).repeat_interleave(group, 1)
            p = torch.softmax(torch.einsum("thd,jhd->htj", q, k) * D ** -0.5, -1)
            h = h + torch.einsum("htj,jhd->thd", p, v).flatten(1) @ w("self_attn.o_proj").T
            y = policies.rms(h, w("post_attention_layernorm"), eps)
            h = h + (torch.nn.functional.silu(y @ w("mlp.gate_proj").T) * (y @ w("mlp.up_proj").T)) @ w("mlp.down_proj").T
        return torch.cat(xk, -1), torch.cat(xv, -1)

    def check(self, h):
        c = dict(self.c, layer_types=None, sliding_window=None, use_sliding_window=False, attn_implementation="eager")
        hf = Qwen3Model(Qwen3Config(**{k: v for k, v in c.items() if k not in ("architectures", "dflash_config")})).eval()
        with torch.no_grad():
            for name, t in hf.named_parameters():
                if name in self.w:
                    t.copy_(self.w[name])
        seen = {"k": [], "v": []}
        for layer in hf.layers:
            for n in "kv":
                getattr(layer.self_attn, n + "_proj").register_forward_hook(
                    lambda m, i, o, n=n: seen[n].append(o[0].detach()))
        with torch.no_grad():
            hf(inputs_embeds=h[None], attention_mask=torch.zeros(1, 1, len(h), len(h)), use_cache=False)
        for n, got in zip("kv", self.capture(h)):
            want = torch.cat(seen[n], -1)
            policies.close(f"capture of {n} against Qwen3Model", got, want, 1e-5 * want.abs().max().item())


@torch.no_grad()
def forward(model, ids, replaced):
    """native, with rows of sliding layers replaced: replaced(layer, k, v) -> k, v."""
    t = torch.arange(len(ids))
    h = model.w["embed_tokens.weight"][torch.tensor(ids)] * model.embed_scale
    for layer in range(model.c["num_hidden_layers"]):
        p = f"layers.{layer}."
        q, k, v = model.qkv(layer, policies.rms(h, model.w[p + "input_layernorm.weight"], model.eps), t)
        rows = replaced(layer, k, v)
        see, none = policies.visible("native", t[:, None], t[None, :], model.window(layer), 0, 0)
        o = policies.attend(q, rows, rows, see, none).flatten(1)
        h = h + policies.rms(o @ model.w[p + "self_attn.o_proj.weight"].T,
                             model.w[p + "post_attention_layernorm.weight"], model.eps)
        h = (h + model.feed_forward(layer, h)) * model.w[p + "layer_scalar"]
    return model.logits(h)


def random_map(model, drafter, rank, seed):
    """As tools/convert_f_theta.py writes it, and its config."""
    c, d = model.c, drafter.c
    g = torch.Generator().manual_seed(seed)
    X = d["num_hidden_layers"] * d["num_key_value_heads"] * d["head_dim"]
    rows = c["num_key_value_heads"] * c["head_dim"]
    layers = [i for i in range(c["num_hidden_layers"]) if model.window(i)]
    w = {f"encoder.{n}.weight": torch.randn(rank, X, generator=g) * X ** -0.5 for n in "kv"}
    w.update({f"layers.{i}.{n}.weight": torch.randn(rows, rank, generator=g) * rank ** -0.5 for i in layers for n in "kv"})
    return w, {"format": "kakeya-f-theta-1", "causal": False, "capture": "drafter_kv", "predicts": "raw_projection",
               "rank": rank, "target_layers": layers, "drafter_num_layers": d["num_hidden_layers"],
               "drafter_num_kv_heads": d["num_key_value_heads"], "drafter_head_dim": d["head_dim"]}


@torch.no_grad()
def case(out, name):
    geometry, draft, rank, sinks, window, n = CASES[name]
    model, hf, c, seed = policies.synth_model(geometry)
    drafter = Drafter(read("dflash", draft, "config.json"), seed)
    drafter.c["num_target_layers"] = c["num_hidden_layers"]
    drafter.c["dflash_config"]["target_layer_ids"] = [0, 1]
    ids = policies.synth_ids(seed, c["vocab_size"], n)
    w, config = random_map(model, drafter, rank, seed)
    h = model.w["embed_tokens.weight"][torch.tensor(ids)] * model.embed_scale * c["hidden_size"] ** 0.5
    drafter.check(h)
    xk, xv = drafter.capture(h)
    at = torch.arange(n)
    evicted = ((at >= sinks) & (at < n - window))[:, None, None]

    def replaced(layer, k, v):
        if not model.window(layer):
            return k, v
        kk = (xk @ w["encoder.k.weight"].T @ w[f"layers.{layer}.k.weight"].T).view_as(k)
        vv = (xv @ w["encoder.v.weight"].T @ w[f"layers.{layer}.v.weight"].T).view_as(v)
        kk = model.rope(layer, policies.rms(kk, model.w[f"layers.{layer}.self_attn.k_norm.weight"], model.eps), at)
        return torch.where(evicted, kk, k), torch.where(evicted, policies.rms(vv, None, model.eps), v)

    base, y = forward(model, ids, lambda layer, k, v: (k, v)), forward(model, ids, replaced)
    ref = gemma4.logits_of(hf, ids)
    policies.close(f"{geometry}: nothing replaced, against {type(hf).__name__}", base, ref, 1e-5 * ref.abs().max().item())
    print(f"{name}: logits std {y.std():.3f}, against native max abs {(y - base).abs().max():.3f}")
    folder = os.path.join(out, name)
    os.makedirs(folder, exist_ok=True)
    versions = dict(gemma4.versions(), script="tools/golden/one_shot.py")
    policies.write_json(os.path.join(folder, "ids.json"), ids)
    policies.write_json(os.path.join(folder, "meta.json"), dict(versions, seed=seed, sinks=sinks, window=window))
    gemma4.write_json(os.path.join(folder, "config.json"), c)
    gemma4.write_json(os.path.join(folder, "drafter.json"), drafter.c)
    gemma4.write_json(os.path.join(folder, "f_theta_config.json"), config)
    save_file(w, os.path.join(folder, "f_theta.safetensors"))
    y.numpy().astype("<f4").tofile(os.path.join(folder, "logits.bin"))


if __name__ == "__main__":
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument("--out", default=os.path.join(policies.ROOT, "tests/golden/one_shot"))
    a = p.parse_args()
    for name in CASES:
        case(a.out, name)
