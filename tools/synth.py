"""Random weights that src/file/synth.c makes bit for bit: docs/formats/synth.md. NumPy for the integers, torch for
the tensors.

    synth_tensor(seed, name, shape, dtype) -> torch.Tensor
    synth_state_dict(model, seed, dtype)      fill every parameter, and Gemma 4's layer_scalar buffers, in place
"""
import numpy as np
import torch

M64 = (1 << 64) - 1


def mix64(z):
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & M64
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & M64
    return z ^ (z >> 31)


def fnv1a(name):
    h = 0xCBF29CE484222325
    for b in name.encode():
        h = ((h ^ b) * 0x100000001B3) & M64
    return h


def sums(key, first, n):
    """The centred sum of the four 16-bit fields of words first .. first + n - 1, as int64."""
    with np.errstate(over="ignore"):
        z = np.uint64(key) + np.arange(first + 1, first + n + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        z = z ^ (z >> np.uint64(31))
    field = np.uint64(65535)
    s = (z & field) + (z >> np.uint64(16) & field) + (z >> np.uint64(32) & field) + (z >> np.uint64(48))
    return s.astype(np.int64) - 131070


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


def synth_tensor(seed, name, shape, dtype):
    n = int(np.prod(shape))
    r = rule(name, shape)
    if r is None:
        return torch.ones(*shape, dtype=dtype)
    key = mix64(fnv1a(name) ^ mix64(seed))
    base, shift = r
    out = torch.empty(n, dtype=dtype)
    for at in range(0, n, 1 << 22):
        k = min(1 << 22, n - at)
        value = base + np.ldexp(sums(key, at, k).astype(np.float64), -shift)  # at most 19 bits: exact in float32
        out[at:at + k] = torch.from_numpy(value.astype(np.float32)).to(dtype)
    return out.reshape(*shape)


@torch.no_grad()
def synth_state_dict(model, seed, dtype):
    """Parameters are filled with values rounded to dtype, in the model's own type."""
    tensors = dict(model.named_parameters())
    tensors.update((k, v) for k, v in model.named_buffers() if k.endswith("layer_scalar"))
    for name, p in tensors.items():
        p.copy_(synth_tensor(seed, name, tuple(p.shape), dtype).to(p.dtype))
