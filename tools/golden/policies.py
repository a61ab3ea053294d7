#!/usr/bin/env python3
"""Golden logits of the KV policies (native, s5, restored, sinkwin) from a plain PyTorch float32 forward.

    tools/golden/policies.py [--out tests/golden/policies] [--check]

The forward below is written from the equations, over tensors under their Hugging Face names, and is first checked
against Gemma4ForCausalLM; --check stops there. Then every case is a folder in the format of tests/golden/gemma4:
ids.json, logits.bin (float32, little endian, row-major [rows, vocabulary]) and meta.json, which also has policy,
sinks and window, and for models/tiny the argmax of every position and KL(native || policy) in nats, averaged over
positions >= kl_from. Cases with synth weights have config.json and the seed of the case of tests/golden/gemma4 of
the same geometry; their ids are drawn here.

Rows of one vocabulary of 2048 are 8 KiB each: TINY says which positions a case keeps (the whole folder stays
within 400 kB).

Under restored, float32 is not enough to repeat a run to 1e-5: an element of a latent next to a rounding boundary
falls on either side, one bf16 step apart. Measured on these ids with the weights before (cuts of 7 to 64 rows, and float64): up to 3e-4 of a row's largest
logit; and where the router is nearly tied another expert may be taken, which moves that row and those after it by more:
by 8.6 at worst, no argmax changed. Now the closest rows are 10, 491 and 504, gaps 5.8e-6 to 1.1e-5, and in a cut of 7
rows nothing moved by more than 2.7e-5. So that case keeps logits of rows before 384 only.
"""
import argparse
import json
import os
import random
import sys

import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from tokenizers import Tokenizer

HERE = os.path.dirname(os.path.abspath(__file__))
ROOT = os.path.dirname(os.path.dirname(HERE))
sys.path.insert(0, HERE)
import gemma4  # noqa: E402

FULL, SLIDING = "full_attention", "sliding_attention"
KL_FROM = 256

TINY = {  # case: (policy, sinks, window, positions whose logits are kept; sinks + window = 68: 67 sees all, 68 not)
    "tiny_s5": ("s5", 4, 64, [67, 68, 257, 330, 511, 690]),
    "tiny_restored": ("restored", 4, 64, [68, 130, 200, 256, 300, 330, 360, 380]),
    "tiny_restored_exact": ("restored", 4, 64, [0, 300, 640]),
    "tiny_sinkwin": ("sinkwin", 4, 64, [68, 200, 450, 640]),
    "tiny_s5_w100": ("s5", 0, 100, [100, 380, 600]),
}
SYNTH = [(geometry, policy, 2, 5, 60) for geometry in ("moe", "k_ne_v") for policy in ("s5", "sinkwin")]


# ---- visibility: functions of absolute positions only

def native(t, j, W):
    """The model's own mask; W None: a full layer."""
    return (t >= j) if W is None else (t >= j) & (t - j < W)


def near(t, j, sinks, window):
    return (t - j < window) | (j < sinks)


def visible(policy, t, j, W, sinks, window):
    """(rows seen exactly, rows seen rebuilt), as masks."""
    nat, nr = native(t, j, W), near(t, j, sinks, window)
    none = torch.zeros_like(nat)
    if policy == "native":
        return nat, none
    if policy == "s5":
        return (nat if W is None else nat & nr), none
    if policy == "sinkwin":
        return nat & nr, none
    if policy == "restored":
        return (nat, none) if W is None else (nat & nr, nat & ~nr)
    raise ValueError(policy)


# ---- the model

def rms(x, weight=None, eps=1e-6):
    y = x / torch.sqrt(x.pow(2).mean(-1, keepdim=True) + eps)
    return y if weight is None else y * weight


def gelu(x):
    return F.gelu(x, approximate="tanh")


class Model:
    """Weights by Hugging Face name without the prefix "model.", as float32 (or another type, for comparison)."""

    def __init__(self, config, tensors, dtype=torch.float32):
        self.c, self.dtype = config, dtype
        self.w = {k.removeprefix("model."): v.to(dtype) for k, v in tensors.items()}
        self.eps = config["rms_norm_eps"]
        scale = torch.tensor(config["hidden_size"] ** 0.5)
        self.embed_scale = scale.to(getattr(torch, config["dtype"])).to(dtype)

    def window(self, layer):
        return None if self.c["layer_types"][layer] == FULL else self.c["sliding_window"]

    def head_dim(self, layer):
        return self.c["global_head_dim"] if self.window(layer) is None else self.c["head_dim"]

    def rope(self, layer, x, positions):
        """Rotates x [rows, heads, d] by halves; frequencies past the partial factor are 0."""
        d = x.shape[-1]
        p = self.c["rope_parameters"][self.c["layer_types"][layer]]
        turned = int(p.get("partial_rotary_factor", 1.0) * d // 2)
        i = torch.arange(d // 2, dtype=torch.float32)
        freq = 1.0 / p["rope_theta"] ** (2 * i / d) * (i < turned)
        angle = (positions[:, None].float() * freq)[:, None, :]
        cos, sin = angle.cos().to(self.dtype), angle.sin().to(self.dtype)
        a, b = x[..., :d // 2], x[..., d // 2:]
        return torch.cat([a * cos - b * sin, b * cos + a * sin], -1)

    def qkv(self, layer, y, positions):
        w, p, d = self.w, f"layers.{layer}.self_attn.", self.head_dim(layer)

        def project(name):
            return (y @ w[p + name + ".weight"].T).unflatten(-1, (-1, d))
        q, k = project("q_proj"), project("k_proj")
        v = project("v_proj") if p + "v_proj.weight" in w else k  # attention_k_eq_v
        q = self.rope(layer, rms(q, w[p + "q_norm.weight"], self.eps), positions)
        k = self.rope(layer, rms(k, w[p + "k_norm.weight"], self.eps), positions)
        return q, k, rms(v, None, self.eps)

    def experts(self, layer, h, y):
        """h: the stream the router reads; y: what the experts read."""
        w, p = self.w, f"layers.{layer}."
        score = rms(h, None, self.eps) * w[p + "router.scale"] * self.c["hidden_size"] ** -0.5
        prob = torch.softmax(score @ w[p + "router.proj.weight"].T, -1)
        top, chosen = torch.topk(prob, self.c["top_k_experts"], -1)
        top = top / top.sum(-1, keepdim=True) * w[p + "router.per_expert_scale"][chosen]
        rows = []
        for t in range(len(y)):
            out = torch.zeros_like(y[t])
            for weight, e in zip(top[t], chosen[t]):
                gate, up = (w[p + "experts.gate_up_proj"][e] @ y[t]).chunk(2)
                out = out + weight * (w[p + "experts.down_proj"][e] @ (gelu(gate) * up))
            rows.append(out)
        return torch.stack(rows)

    def feed_forward(self, layer, h):
        w, p = self.w, f"layers.{layer}."

        def norm(name, x):
            return rms(x, w[p + name + ".weight"], self.eps)
        y = norm("pre_feedforward_layernorm", h)
        gate, up = y @ w[p + "mlp.gate_proj.weight"].T, y @ w[p + "mlp.up_proj.weight"].T
        m = (gelu(gate) * up) @ w[p + "mlp.down_proj.weight"].T
        if self.c["enable_moe_block"]:
            e = self.experts(layer, h, norm("pre_feedforward_layernorm_2", h))
            m = norm("post_feedforward_layernorm_1", m) + norm("post_feedforward_layernorm_2", e)
        return norm("post_feedforward_layernorm", m)

    def logits(self, h):
        head = self.w.get("lm_head.weight", self.w["embed_tokens.weight"])
        y = rms(h, self.w["norm.weight"], self.eps) @ head.T
        cap = self.c["final_logit_softcapping"]
        return y if cap is None else cap * torch.tanh(y / cap)


def attend(q, exact, rebuilt, see_exact, see_rebuilt):
    """One softmax over both kinds of rows. exact, rebuilt: (k, v) [rows, kv heads, d]; masks [queries, rows].
    The scale of the scores is 1: q_norm carries it."""
    group = q.shape[1] // exact[0].shape[1]
    k = torch.cat([exact[0], rebuilt[0]]).repeat_interleave(group, 1)
    v = torch.cat([exact[1], rebuilt[1]]).repeat_interleave(group, 1)
    score = torch.einsum("thd,jhd->htj", q, k)
    score = score.masked_fill(~torch.cat([see_exact, see_rebuilt], 1), float("-inf"))
    return torch.einsum("htj,jhd->thd", torch.softmax(score, -1), v)


class FTheta:
    """A latent per row from auxiliary residual rows, and keys and values of sliding layers from the latent."""

    def __init__(self, folder, dtype=torch.float32):
        with open(os.path.join(folder, "f_theta_config.json")) as f:
            c = json.load(f)
        assert c["predicts"] == "raw_projection" and c["aux_norm"] == "rms_noscale"
        self.aux, self.layers, self.eps = c["aux_layer_ids"], c["target_layers"], c["aux_norm_eps"]
        self.w = {k: v.to(dtype) for k, v in load_file(os.path.join(folder, "f_theta.safetensors")).items()}

    def x(self, streams):
        """streams[l]: the residual stream after layer l, [rows, hidden]."""
        return torch.cat([rms(streams[a], None, self.eps) for a in self.aux], -1)

    def latent(self, x):
        z = x @ self.w["latent.weight"].T + self.w["latent.bias"]
        return z.to(torch.bfloat16).to(z.dtype)

    def rows(self, model, layer, z, positions):
        def project(kind):
            p = f"layers.{layer}.{kind}."
            return (z @ self.w[p + "weight"].T + self.w[p + "bias"]).unflatten(-1, (-1, model.head_dim(layer)))
        k = rms(project("k"), model.w[f"layers.{layer}.self_attn.k_norm.weight"], self.eps)
        return model.rope(layer, k, positions), rms(project("v"), None, self.eps)


@torch.no_grad()
def forward(model, ids, policy, sinks=0, window=0, f=None, step=None, streams_out=None):
    """Logits of all positions. `step` rows at a time: at most `window` under restored, whose latents come from this
    run's own streams. f None under restored: exact rows in place of rebuilt ones."""
    T, L = len(ids), model.c["num_hidden_layers"]
    step = step or (window if policy == "restored" else T)
    assert policy != "restored" or step <= window
    exact = [([], []) for _ in range(L)]    # per layer: lists of blocks of keys, of values
    rebuilt = [([], []) for _ in range(L)]
    out = []
    for start in range(0, T, step):
        t = torch.arange(start, min(T, start + step))
        j = torch.arange(int(t[-1]) + 1)
        h = model.w["embed_tokens.weight"][torch.tensor(ids)[t]] * model.embed_scale
        streams = []
        for layer in range(L):
            p = f"layers.{layer}."
            q, k, v = model.qkv(layer, rms(h, model.w[p + "input_layernorm.weight"], model.eps), t)
            exact[layer][0].append(k)
            exact[layer][1].append(v)
            ex = torch.cat(exact[layer][0]), torch.cat(exact[layer][1])
            see, see_rebuilt = visible(policy, t[:, None], j[None, :], model.window(layer), sinks, window)
            if f is None or not rebuilt[layer][0]:
                other = ex
                assert f is None or not see_rebuilt.any()  # nothing rebuilt yet: nothing to see
            else:
                other = torch.cat(rebuilt[layer][0]), torch.cat(rebuilt[layer][1])
                have = len(other[0])
                assert not see_rebuilt[:, have:].any()     # a row's latent exists only after its own forward
                see_rebuilt = see_rebuilt[:, :have]
            o = attend(q, ex, other, see, see_rebuilt).flatten(1)
            h = h + rms(o @ model.w[p + "self_attn.o_proj.weight"].T,
                        model.w[p + "post_attention_layernorm.weight"], model.eps)
            h = (h + model.feed_forward(layer, h)) * model.w[p + "layer_scalar"]
            streams.append(h)
        if policy == "restored" and f is not None:
            z = f.latent(f.x(streams))
            for layer in f.layers:
                k, v = f.rows(model, layer, z, t)
                rebuilt[layer][0].append(k)
                rebuilt[layer][1].append(v)
        if streams_out is not None:
            streams_out.append(streams)
        out.append(model.logits(h))
    return torch.cat(out)


# ---- inputs

def tiny_path(*names):
    return os.path.join(ROOT, "models/tiny", *names)


def tiny_model(dtype=torch.float32):
    with open(tiny_path("config.json")) as f:
        return Model(json.load(f), load_file(tiny_path("model.safetensors")), dtype)


def tiny_ids(n=700):
    """Code, then notes with a secret code in them and the question; the answer is the last thing."""
    tok = Tokenizer.from_file(tiny_path("tokenizer.json"))
    notes = [f"Note {i:04d}: this paragraph is unrelated padding and does not contain the answer." for i in range(18)]
    notes.insert(3, "\nIMPORTANT: the secret code is MAPLE-7890.\n")
    tail = tok.encode("\n" + "\n".join(notes) + "\nQuestion: what is the secret code? Answer: MAPLE-7890").ids
    with open(os.path.join(ROOT, "tools/synth.py")) as f:
        code = tok.encode(f.read()).ids
    ids = [2] + code[:n - 1 - len(tail)] + tail
    assert len(ids) == n
    return ids


def synth_model(geometry):
    """The geometry and seed of a case of tests/golden/gemma4, and the class with the same weights."""
    folder = os.path.join(ROOT, "tests/golden/gemma4", geometry)
    with open(os.path.join(folder, "config.json")) as f:
        c = json.load(f)
    with open(os.path.join(folder, "meta.json")) as f:
        seed = json.load(f)["seed"]
    hf = gemma4.build(c, seed)
    return Model(c, hf.state_dict()), hf, c, seed


def synth_ids(seed, vocabulary, n):
    r = random.Random(seed)
    return [r.randrange(vocabulary) for _ in range(n)]


# ---- checks

def close(what, a, b, tolerance):
    d = (a - b).abs().max().item()
    print(f"{what}: max abs {d:.2e}")
    assert d <= tolerance, what


def check_f_theta(model, f):
    streams = []
    forward(model, [2] + list(range(100, 131)), "native", streams_out=streams)
    x = f.x(streams[0])
    z, at = f.latent(x), torch.arange(32)
    want = [(x[5, [0, 256, 512, 768]], [1.272305, 1.07453, 0.908384, 0.211271]),
            (z[5, :4], [2.4375, -1.1328125, -1.4296875, 0.19921875]),
            (f.rows(model, 0, z, at)[0][5, 0, :4], [-0.045752, 0.073056, -0.10122, -0.024036]),
            (f.rows(model, 6, z, at)[1][5, 1, :4], [-0.629052, 2.076678, -0.249198, 1.182838])]
    for name, (got, ref) in zip(("x", "z", "k of layer 0", "v of layer 6"), want):
        close(f"reference vector of f_theta, {name}", got, torch.tensor(ref), 1e-5)


def check(model, f, ids):
    hf = gemma4.Gemma4ForCausalLM.from_pretrained(tiny_path(), dtype=torch.float32, attn_implementation="eager",
                                                  experts_implementation="eager").eval()
    y = forward(model, ids, "native")
    ref = gemma4.logits_of(hf, ids)
    close(f"tiny against {type(hf).__name__}, scale {ref.abs().max():.1f}", y, ref, 1e-5 * ref.abs().max().item())
    close("tiny, 37 rows at a time", forward(model, ids, "native", step=37), y, 1e-5 * ref.abs().max().item())
    check_f_theta(model, f)


# ---- goldens

def kl(p, q):
    a, b = torch.log_softmax(p[KL_FROM:].double(), -1), torch.log_softmax(q[KL_FROM:].double(), -1)
    return (a.exp() * (a - b)).sum(-1).mean().item()


def write_json(path, value):
    """gemma4.write_json, but arrays of numbers on one line."""
    with open(path, "w") as f:
        if isinstance(value, dict):
            f.write("{\n" + ",\n".join(f" {json.dumps(k)}: {json.dumps(v)}" for k, v in value.items()) + "\n}\n")
        else:
            f.write(json.dumps(value) + "\n")


def write_case(folder, ids, y, meta):
    os.makedirs(folder, exist_ok=True)
    versions = dict(gemma4.versions(), script="tools/golden/policies.py")
    write_json(os.path.join(folder, "ids.json"), ids)
    write_json(os.path.join(folder, "meta.json"), dict(versions, **meta))
    y[meta["rows"]].numpy().astype("<f4").tofile(os.path.join(folder, "logits.bin"))


def tiny_cases(out, model, f, ids):
    base = forward(model, ids, "native")
    for name, (policy, sinks, window, rows) in TINY.items():
        exact = name.endswith("_exact")
        y = forward(model, ids, policy, sinks, window, None if exact else f)
        if exact:
            close("restored with exact rows against native", y, base, 1e-5 * base.abs().max().item())
        top = y.topk(2, -1).values
        meta = dict(model="models/tiny", policy=policy, sinks=sinks, window=window, rows=rows, kl=kl(base, y),
                    kl_from=KL_FROM, argmax=y.argmax(-1).tolist())
        if policy == "restored":
            meta.update(exact_rows=exact, f_theta="models/tiny/f_theta")
        write_case(os.path.join(out, name), ids, y, meta)
        same = (y.argmax(-1) == base.argmax(-1))[KL_FROM:].float().mean()
        print(f"{name}: KL {meta['kl']:.3e}, argmax as native {same:.4f}, "
              f"smallest lead of an argmax {(top[:, 0] - top[:, 1]).min():.1e}")


def synth_cases(out):
    for geometry, policy, sinks, window, n in SYNTH:
        model, hf, c, seed = synth_model(geometry)
        ids = synth_ids(seed, c["vocab_size"], n)
        base = forward(model, ids, "native")
        ref = gemma4.logits_of(hf, ids)
        close(f"{geometry} against {type(hf).__name__}, scale {ref.abs().max():.1f}", base, ref,
              1e-5 * max(1.0, ref.abs().max().item()))
        y = forward(model, ids, policy, sinks, window)
        folder = os.path.join(out, f"{geometry}_{policy}")
        write_case(folder, ids, y, dict(seed=seed, policy=policy, sinks=sinks, window=window, rows=list(range(n))))
        gemma4.write_json(os.path.join(folder, "config.json"), c)
        print(f"{geometry}_{policy}: logits std {y.std():.3f}, against native max abs {(y - base).abs().max():.3f}")


if __name__ == "__main__":
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument("--out", default=os.path.join(ROOT, "tests/golden/policies"))
    p.add_argument("--check", action="store_true", help="only compare with the class and the reference vector")
    a = p.parse_args()
    model, f, ids = tiny_model(), FTheta(tiny_path("f_theta")), tiny_ids()
    check(model, f, ids)
    if not a.check:
        tiny_cases(a.out, model, f, ids)
        synth_cases(a.out)
