"""Random weights that src/file/synth.c makes bit for bit: docs/formats/synth.md. PyTorch, on any device.

    synth_tensor(seed, name, shape, dtype, device="cpu") -> torch.Tensor
    synth_state_dict(model, seed, dtype)      fill every parameter, and Gemma 4's layer_scalar buffers, in place,
                                              on the device where each one is
"""
import math

import torch

M64 = (1 << 64) - 1
CHUNK = {"cpu": 1 << 16}  # elements at a time, a few temporaries of 8 bytes each: a core's cache, or a GPU filled


def mix64(z):
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & M64
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & M64
    return z ^ (z >> 31)


def fnv1a(name):
    h = 0xCBF29CE484222325
    for b in name.encode():
        h = ((h ^ b) * 0x100000001B3) & M64
    return h


def signed(z):
    """The int64 with the bits of z: PyTorch's 64-bit arithmetic is signed and wraps."""
    return z - (1 << 64) if z >> 63 else z


def shift_right(z, n):
    """Logical: the sign is not carried along."""
    return (z >> n) & ((1 << (64 - n)) - 1)


def sums(key, first, n, device):
    """The centred sum of the four 16-bit fields of words first .. first + n - 1, as int64."""
    z = torch.arange(first + 1, first + n + 1, dtype=torch.int64, device=device)
    z = z * signed(0x9E3779B97F4A7C15) + signed(key)
    z = (z ^ shift_right(z, 30)) * signed(0xBF58476D1CE4E5B9)
    z = (z ^ shift_right(z, 27)) * signed(0x94D049BB133111EB)
    z = z ^ shift_right(z, 31)
    return (z & 65535) + (z >> 16 & 65535) + (z >> 32 & 65535) + (z >> 48 & 65535) - 131070


def half_log2(n):
    e = 0
    while e < 31 and 1 << (2 * e) < n:
        e += 1
    return e


def rule(name, shape):
    """(base, shift): value = base + sum * 2^-shift; base is a power of two or 0; None: all ones."""
    if name.endswith("layer_scalar") or name.endswith("per_expert_scale"):
        return None
    if name.endswith("k_norm.weight"):
        e = half_log2(shape[0])
        return 2.0 ** -e, 18 + e
    if name.endswith("norm.weight") or name.endswith("router.scale") or ("layernorm" in name and name.endswith(".weight")):
        return 1.0, 18
    if len(shape) >= 2:
        return 0.0, 15 + half_log2(shape[-1])
    return 0.0, 22


def synth_tensor(seed, name, shape, dtype, device="cpu"):
    r = rule(name, shape)
    if r is None:
        return torch.ones(*shape, dtype=dtype, device=device)
    base, shift = r
    n, key = math.prod(shape), mix64(fnv1a(name) ^ mix64(seed))
    out = torch.empty(n, dtype=dtype, device=device)
    chunk = CHUNK.get(out.device.type, 1 << 24)
    for at in range(0, n, chunk):
        s = sums(key, at, min(chunk, n - at), device).to(torch.float32)  # at most 18 bits
        out[at:at + len(s)] = (s * 2.0 ** -shift + base).to(dtype)       # at most 19: exact, then rounded once
    return out.reshape(*shape)


@torch.no_grad()
def synth_state_dict(model, seed, dtype):
    """Parameters are filled with values rounded to dtype, in the model's own type."""
    tensors = dict(model.named_parameters())
    tensors.update((k, v) for k, v in model.named_buffers() if k.endswith("layer_scalar"))
    for name, p in tensors.items():
        p.copy_(synth_tensor(seed, name, tuple(p.shape), dtype, p.device))
