#!/usr/bin/env python3
"""The reference's f_theta checkpoint as a directory of ours.

    tools/convert_f_theta.py FROM TO [--dtype bf16|f32]

FROM has f_theta_config.json and f_theta_weights.pt. That map is linear, without bias, from the raw k_proj and v_proj outputs
of every drafter layer, run over the whole prompt without a causal mask, to the raw keys and values of the verifier's layers:

    r_K = encoder_k x_K     x_K: the drafter layers' keys of a row, one after the other        r_V, x_V likewise
    K_i = decoders_k.i r_K  for verifier layer i                                                V_i likewise

Every tensor is checked against the config: names, shapes, types, finite numbers. TO gets f_theta.safetensors and
f_theta_config.json with "causal": false; layers of the widest head (the reference keeps those exact) are left out.
A session refuses such a map: see docs/formats/f_theta.md.
"""
import argparse
import json
import os
import struct
import sys

FIELDS = ["drafter_num_layers", "drafter_num_kv_heads", "drafter_head_dim", "verifier_num_layers", "verifier_num_kv_heads",
          "verifier_head_dim", "rank"]


def fail(text):
    sys.exit(f"convert_f_theta: {text}")


def read_config(folder):
    path = os.path.join(folder, "f_theta_config.json")
    try:
        with open(path) as f:
            c = json.load(f)
    except (OSError, ValueError) as e:
        fail(f"{path}: {e}")
    for k in FIELDS:
        if type(c.get(k)) is not int or not 0 < c[k] < 1 << 20:
            fail(f"{path}: '{k}' must be a positive number, not {c.get(k)!r}")
    n = c["verifier_num_layers"]
    for k, one in (("verifier_layer_kv_heads", "verifier_num_kv_heads"), ("verifier_layer_head_dims", "verifier_head_dim")):
        c[k] = c.get(k) or [c[one]] * n
        if len(c[k]) != n or any(type(x) is not int or x < 1 for x in c[k]):
            fail(f"{path}: '{k}' must list {n} positive numbers, one for each layer")
    return c


def read_weights(folder):
    path = os.path.join(folder, "f_theta_weights.pt")
    try:
        with open(path, "rb") as f:
            if f.read(20).startswith(b"version https://git-"):
                fail(f"{path} is a Git LFS pointer, not the weights: fetch it with git lfs pull")
    except OSError as e:
        fail(str(e))
    try:
        import torch
    except ImportError:
        fail("reading a .pt file needs PyTorch")
    try:
        w = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as e:  # whatever a broken or hostile pickle raises
        fail(f"{path} cannot be read: {str(e).splitlines()[0]}")
    if not isinstance(w, dict) or not all(isinstance(v, torch.Tensor) for v in w.values()):
        fail(f"{path} is no table of tensors")
    return w


def expected(c):
    """Name in the checkpoint -> shape."""
    x, r = c["drafter_num_layers"] * c["drafter_num_kv_heads"] * c["drafter_head_dim"], c["rank"]
    out = {f"encoder_{kv}.weight": (r, x) for kv in "kv"}
    for i in range(c["verifier_num_layers"]):
        rows = c["verifier_layer_kv_heads"][i] * c["verifier_layer_head_dims"][i]
        out.update({f"decoders_{kv}.{i}.weight": (rows, r) for kv in "kv"})
    return out


def check(w, shapes):
    import torch
    if missing := sorted(set(shapes) - set(w)):
        fail(f"tensor '{missing[0]}' is missing ({len(missing)} in all)")
    if extra := sorted(set(w) - set(shapes)):
        fail(f"tensor '{extra[0]}' is not known ({len(extra)} in all)")
    for name, shape in shapes.items():
        if tuple(w[name].shape) != shape:
            fail(f"tensor '{name}' is {list(w[name].shape)}, the config says {list(shape)}")
        if not w[name].dtype.is_floating_point:
            fail(f"tensor '{name}' has type {w[name].dtype}")
        if not torch.isfinite(w[name]).all():
            fail(f"tensor '{name}' has numbers that are not finite")


def restored_layers(c):
    """All layers, or where head widths differ, those below the widest."""
    dims = c["verifier_layer_head_dims"]
    return [i for i, d in enumerate(dims) if d < max(dims) or min(dims) == max(dims)]


def write_safetensors(path, tensors):
    import torch
    names, header, at = {torch.float32: "F32", torch.bfloat16: "BF16"}, {}, 0
    for name, t in tensors.items():
        n = t.numel() * t.element_size()
        header[name] = {"dtype": names[t.dtype], "shape": list(t.shape), "data_offsets": [at, at + n]}
        at += n
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with open(path, "wb") as f:
        f.write(struct.pack("<Q", len(text)) + text)
        for t in tensors.values():
            f.write(t.contiguous().view(torch.uint8).numpy().tobytes())


def main():
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument("source")
    p.add_argument("target")
    p.add_argument("--dtype", choices=["bf16", "f32"], default="bf16")
    a = p.parse_args()
    c = read_config(a.source)
    w = read_weights(a.source)
    check(w, expected(c))
    import torch
    dtype, layers = {"bf16": torch.bfloat16, "f32": torch.float32}[a.dtype], restored_layers(c)
    out = {f"encoder.{kv}.weight": w[f"encoder_{kv}.weight"].to(dtype) for kv in "kv"}
    for i in layers:
        out.update({f"layers.{i}.{kv}.weight": w[f"decoders_{kv}.{i}.weight"].to(dtype) for kv in "kv"})
    os.makedirs(a.target, exist_ok=True)
    write_safetensors(os.path.join(a.target, "f_theta.safetensors"), out)
    config = {"format": "kakeya-f-theta-1", "causal": False, "capture": "drafter_kv", "predicts": "raw_projection",
              "rank": c["rank"], "target_layers": layers} | {k: c[k] for k in FIELDS if k != "rank"}
    config.update({k: c[k] for k in ("verifier_layer_kv_heads", "verifier_layer_head_dims")})
    with open(os.path.join(a.target, "f_theta_config.json"), "w") as f:
        json.dump(config, f, indent=1)
        f.write("\n")
    print(f"{len(out)} tensors, {sum(t.numel() for t in out.values())} numbers; layers {layers[0]}..{layers[-1]}")


if __name__ == "__main__":
    main()
