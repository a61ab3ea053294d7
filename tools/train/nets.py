"""The three nets, as they are trained. Their state_dict() has the names of the files that the engine reads.

A batch is rows of N ids, cut in equal segments that do not see each other. A Plan holds what depends on the segment's
length: positions and masks. N is fixed for a run, so a change of the segment's length compiles nothing anew.

Attention is flex_attention on a GPU (compiled, block-sparse) and plain attention with a boolean mask on a CPU. All
experts are computed and weighted by the gate of the top two: at this size that is faster than to gather.
"""
import torch
import torch.nn as nn
import torch.nn.functional as F
from torch.nn.attention.flex_attention import BlockMask, create_block_mask, flex_attention

EPS, SINKS, NEAR = 1e-6, 4, 64                       # --kv restored: sinks and window

VERIFIER = dict(
    architectures=["Gemma4ForCausalLM"], model_type="gemma4_text", vocab_size=2048, hidden_size=256, intermediate_size=256,
    num_hidden_layers=8, num_attention_heads=4, num_key_value_heads=2, head_dim=64, global_head_dim=128,
    num_global_key_value_heads=1, attention_k_eq_v=True, sliding_window=256,
    layer_types=(["sliding_attention"] * 3 + ["full_attention"]) * 2, final_logit_softcapping=30.0,
    hidden_size_per_layer_input=0, enable_moe_block=True, num_experts=8, top_k_experts=2, moe_intermediate_size=96,
    max_position_embeddings=16384, hidden_activation="gelu_pytorch_tanh", rms_norm_eps=EPS, tie_word_embeddings=True,
    num_kv_shared_layers=0, attention_bias=False,
    rope_parameters={"sliding_attention": {"rope_type": "default", "rope_theta": 10000.0},
                     "full_attention": {"rope_type": "proportional", "partial_rotary_factor": 0.25, "rope_theta": 1000000.0}},
    bos_token_id=2, eos_token_id=1, pad_token_id=0, dtype="bfloat16")
# A sliding layer l reads the stream behind layer l - 1, so with these rows K and V of layers 1, 2, 4, 5 and 6 are linear
# in what f_theta reads, and those of layer 0, which depend on the token alone, nearly so. Layer 6 is for the drafter.
TAPS = [0, 1, 3, 4, 5, 6]
DRAFTER = dict(
    architectures=["DFlashDraftModel"], model_type="qwen3", hidden_size=256, num_hidden_layers=4, num_attention_heads=8,
    num_key_value_heads=4, head_dim=32, intermediate_size=512, vocab_size=2048, rms_norm_eps=EPS, rope_theta=1000000,
    max_position_embeddings=16384, block_size=16,
    layer_types=["sliding_attention", "sliding_attention", "full_attention", "sliding_attention"], sliding_window=256,
    use_sliding_window=True, final_logit_softcapping=30.0, num_target_layers=8, hidden_act="silu", attention_bias=False,
    tie_word_embeddings=False, dtype="bfloat16", dflash_config=dict(mask_token_id=4, target_layer_ids=TAPS))
RANK = 256


def rms(x, weight=None):
    y = F.rms_norm(x.float(), x.shape[-1:], None, EPS)
    return (y if weight is None else y * weight).to(x.dtype)


class Norm(nn.Module):
    def __init__(self, width, init=1.0):
        super().__init__()
        self.weight = nn.Parameter(torch.full((width,), init))

    def forward(self, x):
        return rms(x, self.weight)


def linear(n_in, n_out, bias=False):
    m = nn.Linear(n_in, n_out, bias=bias)
    nn.init.normal_(m.weight, std=0.04)
    if bias:
        nn.init.zeros_(m.bias)
    return m


def head(x, embedding, cap):
    """Logits in float32: rounded to bf16 they would tie."""
    with torch.autocast(x.device.type, enabled=False):
        return cap * torch.tanh(F.linear(x.float(), embedding) / cap)


def rotate(x, cos, sin):                             # x [B, T, heads, d]; cos, sin [T, d]
    h = x.shape[-1] // 2
    return (x * cos[:, None] + torch.cat([-x[..., h:], x[..., :h]], -1) * sin[:, None]).to(x.dtype)


def frequencies(theta, d, rotated=None):
    """Half-split RoPE of d dimensions; of the d / 2 frequencies only the first `rotated` turn."""
    n = d // 2 if rotated is None else rotated
    return torch.cat([theta ** (-torch.arange(0, 2 * n, 2).float() / d), torch.zeros(d // 2 - n)])


def attend(q, k, v, mask, scale=1.0):
    """q [B, T, heads, d], k and v [B, S, groups, d] -> [B, T, heads * d]. mask: BlockMask, or bool [T, S], or None."""
    q, k, v = (t.transpose(1, 2) for t in (q, k.to(q.dtype), v.to(q.dtype)))
    if isinstance(mask, BlockMask):
        o = flex_attention(q, k, v, block_mask=mask, scale=scale, enable_gqa=True)
    else:
        o = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=scale, enable_gqa=True)
    return o.transpose(1, 2).flatten(-2)


def mask_functions(n, window, segment):
    """{kind: (which key j a query i sees, number of keys)}; segment: a tensor, read when they are called."""

    def same(i, j):
        return (i >= j) & (i // segment == j // segment)

    def near(i, j):
        return (i - j < NEAR) | (j % segment < SINKS)

    def full(_b, _h, i, j):
        return same(i, j)

    def sliding(_b, _h, i, j):
        return same(i, j) & (i - j < window)

    def s5(_b, _h, i, j):
        return same(i, j) & (i - j < window) & near(i, j)

    def restored(_b, _h, i, j):
        """Keys are n exact rows, then n rebuilt ones: of the native window the near ones exact, the others rebuilt."""
        row = j % n
        return same(i, row) & (i - row < window) & (near(i, row) != (j >= n))

    return {"full": (full, n), "sliding": (sliding, n), "s5": (s5, n), "restored": (restored, 2 * n)}


def build_mask(f, queries, keys, device):
    if device.startswith("cuda"):
        return create_block_mask(f, None, None, queries, keys, device=device)
    return f(None, None, torch.arange(queries)[:, None], torch.arange(keys)[None])


class Plan:
    """Masks and positions of rows of n ids in segments. One set of mask functions serves every length of a segment:
    they read it from a tensor, so nothing is compiled again when it changes."""

    def __init__(self, n, segments, device, config=VERIFIER):
        self.n, self.device, self.config, self.built = n, device, config, {}
        self.segment = torch.tensor(0, device=device)
        kinds = mask_functions(n, config["sliding_window"], self.segment)
        for s in segments:
            self.segment.fill_(s)
            self.built[s] = {k: build_mask(f, n, width, device) for k, (f, width) in kinds.items()}
        self.use(segments[0])

    def use(self, segment):
        self.length = segment
        self.segment.fill_(segment)
        self.mask = self.built[segment]
        self.rope = rope_tables(self.config, torch.arange(self.n, device=self.device) % segment)


def rope_tables(config, positions):
    """{layer type: (cos, sin)} [T, head_dim] of the verifier."""
    rp, out = config["rope_parameters"], {}
    for kind, d in (("sliding_attention", config["head_dim"]), ("full_attention", config["global_head_dim"])):
        part = rp[kind].get("partial_rotary_factor")
        f = frequencies(rp[kind]["rope_theta"], d, None if part is None else int(part * d // 2)).to(positions.device)
        a = positions.float()[:, None] * f
        a = torch.cat([a, a], -1)
        out[kind] = a.cos(), a.sin()
    return out


# ---- verifier

class Attention(nn.Module):
    def __init__(self, c, full):
        super().__init__()
        self.d = c["global_head_dim"] if full else c["head_dim"]
        self.groups = c["num_global_key_value_heads"] if full else c["num_key_value_heads"]
        h, n = c["hidden_size"], c["num_attention_heads"] * self.d
        self.q_proj, self.k_proj = linear(h, n), linear(h, self.groups * self.d)
        self.v_proj = None if full else linear(h, self.groups * self.d)
        self.o_proj = linear(n, h)
        # Gemma 4 does not divide by sqrt(d): k_norm starts where it would.
        self.q_norm, self.k_norm = Norm(self.d), Norm(self.d, self.d ** -0.5)

    def keys(self, raw, rope):
        return rotate(self.k_norm(raw.unflatten(-1, (self.groups, self.d))), *rope)

    def values(self, raw):
        return rms(raw.unflatten(-1, (self.groups, self.d)))

    def qkv(self, x, rope):
        q = rotate(self.q_norm(self.q_proj(x).unflatten(-1, (-1, self.d))), *rope)
        k = self.k_proj(x)
        return q, self.keys(k, rope), self.values(k if self.v_proj is None else self.v_proj(x))


class Mlp(nn.Module):
    def __init__(self, h, n, activation):
        super().__init__()
        self.gate_proj, self.up_proj, self.down_proj = linear(h, n), linear(h, n), linear(n, h)
        self.activation = activation

    def forward(self, x):
        return self.down_proj(self.activation(self.gate_proj(x)) * self.up_proj(x))


def gelu(x):
    return F.gelu(x, approximate="tanh")


class Router(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.top = c["top_k_experts"]
        self.scale = nn.Parameter(torch.full((c["hidden_size"],), 4.0))
        self.proj = linear(c["hidden_size"], c["num_experts"])
        self.per_expert_scale = nn.Parameter(torch.ones(c["num_experts"]))

    def forward(self, x):
        """-> gate [.., experts], zero but for the chosen ones"""
        z = rms(x.float()) * self.scale * x.shape[-1] ** -0.5
        with torch.autocast(x.device.type, enabled=False):
            p = torch.softmax(F.linear(z, self.proj.weight), -1)
        w, at = torch.topk(p, self.top, -1)
        w = w / w.sum(-1, keepdim=True) * self.per_expert_scale[at]
        return torch.zeros_like(p).scatter(-1, at, w)


class Experts(nn.Module):
    def __init__(self, c):
        super().__init__()
        e, m, h = c["num_experts"], c["moe_intermediate_size"], c["hidden_size"]
        self.gate_up_proj = nn.Parameter(torch.randn(e, 2 * m, h) * 0.03)
        self.down_proj = nn.Parameter(torch.randn(e, h, m) * 0.03)

    def forward(self, x, gate):
        e, m2, h = self.gate_up_proj.shape
        y = F.linear(x, self.gate_up_proj.view(e * m2, h)).unflatten(-1, (e, 2, m2 // 2))
        a = gelu(y[..., 0, :]) * y[..., 1, :] * gate[..., None].to(y.dtype)
        return F.linear(a.flatten(-2), self.down_proj.permute(1, 0, 2).reshape(h, -1))


class Layer(nn.Module):
    def __init__(self, c, kind):
        super().__init__()
        self.kind, h = kind, c["hidden_size"]
        self.self_attn = Attention(c, kind == "full_attention")
        self.mlp, self.router, self.experts = Mlp(h, c["intermediate_size"], gelu), Router(c), Experts(c)
        for name in ("input", "post_attention", "pre_feedforward", "post_feedforward"):
            setattr(self, name + "_layernorm", Norm(h))
        for name in ("post_feedforward_layernorm_1", "post_feedforward_layernorm_2", "pre_feedforward_layernorm_2"):
            setattr(self, name, Norm(h))
        self.register_buffer("layer_scalar", torch.ones(1))

    def rest(self, x, o):
        """Behind attention: o its output before o_proj."""
        r = x + self.post_attention_layernorm(self.self_attn.o_proj(o))
        m = self.post_feedforward_layernorm_1(self.mlp(self.pre_feedforward_layernorm(r)))
        e = self.experts(self.pre_feedforward_layernorm_2(r), self.router(r))
        return r + self.post_feedforward_layernorm(m + self.post_feedforward_layernorm_2(e))

    def forward(self, x, rope, mask, rebuilt=None):
        """-> stream, k, v. rebuilt: raw K and V projections of all rows, for the second half of a `restored` mask."""
        a = self.self_attn
        q, k, v = a.qkv(self.input_layernorm(x), rope)
        ks, vs = k, v
        if rebuilt is not None:
            ks = torch.cat([k, a.keys(rebuilt[0].to(k.dtype), rope)], 1)
            vs = torch.cat([v, a.values(rebuilt[1].to(v.dtype))], 1)
        return self.rest(x, attend(q, ks, vs, mask)), k, v


class Body(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.embed_tokens = nn.Embedding(c["vocab_size"], c["hidden_size"])
        nn.init.normal_(self.embed_tokens.weight, std=0.04)
        self.layers = nn.ModuleList(Layer(c, kind) for kind in c["layer_types"])
        self.norm = Norm(c["hidden_size"])


class Verifier(nn.Module):
    """`wide`: the residual stream in float32, as the engine has it; in bf16 training is faster."""

    def __init__(self, c=VERIFIER):
        super().__init__()
        self.config, self.model, self.wide = c, Body(c), False
        self.sliding = [i for i, k in enumerate(c["layer_types"]) if k == "sliding_attention"]

    def embed(self, ids):
        x = F.embedding(ids, self.model.embed_tokens.weight) * self.config["hidden_size"] ** 0.5
        return x if self.wide or x.device.type == "cpu" else x.bfloat16()

    def forward(self, ids, plan, policy="native", rows=None, keep=None):
        """-> last stream, [streams behind TAPS]. rows: {layer: (k, v)} of `restored`. keep: a list for each layer's k, v."""
        x, taps = self.embed(ids), []
        for i, layer in enumerate(self.model.layers):
            slides = layer.kind == "sliding_attention"
            mask = plan.mask[{"native": "sliding"}.get(policy, policy) if slides else "full"]
            x, k, v = layer(x, plan.rope[layer.kind], mask, rows[i] if slides and policy == "restored" else None)
            if keep is not None:
                keep.append((k, v))
            if i in TAPS:
                taps.append(x)
        return x, taps

    def logits(self, x):
        return head(self.model.norm(x), self.model.embed_tokens.weight, self.config["final_logit_softcapping"])


# ---- f_theta

class FTheta(nn.Module):
    """One latent a token from the normed taps; from it the raw K and V projections of every sliding layer."""

    def __init__(self, c=VERIFIER, rank=RANK):
        super().__init__()
        n = c["num_key_value_heads"] * c["head_dim"]
        self.latent = linear(len(TAPS) * c["hidden_size"], rank, bias=True)
        self.layers = nn.ModuleDict({str(i): nn.ModuleDict({"k": linear(rank, n, True), "v": linear(rank, n, True)})
                                     for i, k in enumerate(c["layer_types"]) if k == "sliding_attention"})

    def forward(self, taps):
        z = self.latent(torch.cat([rms(t) for t in taps], -1)).float()
        z = z + (z.bfloat16().float() - z).detach()  # stored in bf16
        return {int(i): (m["k"](z), m["v"](z)) for i, m in self.layers.items()}


# ---- drafter

class DraftAttention(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.d, self.groups = c["head_dim"], c["num_key_value_heads"]
        h, n = c["hidden_size"], c["num_attention_heads"] * self.d
        self.q_proj, self.k_proj, self.v_proj, self.o_proj = linear(h, n), linear(h, self.groups * self.d), linear(h, self.groups * self.d), linear(n, h)
        self.q_norm, self.k_norm = Norm(self.d), Norm(self.d)

    def kv(self, x, rope):
        k, v = (m(x).unflatten(-1, (self.groups, self.d)) for m in (self.k_proj, self.v_proj))
        return rotate(self.k_norm(k), *rope), v


class DraftLayer(nn.Module):
    def __init__(self, c, kind):
        super().__init__()
        self.kind = kind
        self.self_attn, self.mlp = DraftAttention(c), Mlp(c["hidden_size"], c["intermediate_size"], F.silu)
        self.input_layernorm, self.post_attention_layernorm = Norm(c["hidden_size"]), Norm(c["hidden_size"])

    def forward(self, h, context, ropes, mask):
        """h [B, Q, C] the blocks' rows; context [B, N, C]; ropes: of the context, of the blocks."""
        a, x = self.self_attn, self.input_layernorm(h)
        q = rotate(a.q_norm(a.q_proj(x).unflatten(-1, (-1, a.d))), *ropes[1])
        k, v = (torch.cat(p, 1) for p in zip(a.kv(context, ropes[0]), a.kv(x, ropes[1])))
        h = h + a.o_proj(attend(q, k, v, mask, a.d ** -0.5))
        return h + self.mlp(self.post_attention_layernorm(h))


class Drafter(nn.Module):
    def __init__(self, c=DRAFTER):
        super().__init__()
        self.config, h = c, c["hidden_size"]
        self.fc, self.hidden_norm, self.norm = linear(len(c["dflash_config"]["target_layer_ids"]) * h, h), Norm(h), Norm(h)
        self.layers = nn.ModuleList(DraftLayer(c, kind) for kind in c["layer_types"])

    def rope(self, positions):
        a = positions.float()[:, None] * frequencies(self.config["rope_theta"], self.config["head_dim"]).to(positions.device)
        a = torch.cat([a, a], -1)
        return a.cos(), a.sin()

    def context(self, taps):
        return self.hidden_norm(self.fc(torch.cat(taps, -1)))

    def forward(self, context, blocks, embedding, ropes, masks):
        """context rows [B, N, C], blocks [B, A, block] ids (carry, masks) -> logits [B, A, block - 1, V]"""
        h = F.embedding(blocks.flatten(1), embedding)
        for layer in self.layers:
            h = layer(h, context, ropes, masks[layer.kind])
        h = self.norm(h).unflatten(1, blocks.shape[1:])[:, :, 1:]
        return head(h, embedding, self.config["final_logit_softcapping"])
