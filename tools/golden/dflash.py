#!/usr/bin/env python3
"""Golden drafts of the authors' DFlash package (PyPI `dflash` 0.1.0) in float32, for the tests of the drafter.

    tools/golden/dflash.py [--out tests/golden/dflash] [--only NAME]      needs: torch, transformers, dflash==0.1.0

Each geometry is a folder: config.json (a drafter's directory format), blocks.json, hidden.bin, meta.json (versions,
margins). Nothing else is stored: all tensors are `synth:` tensors (docs/formats/synth.md) of one seed and of the
config's dtype: the drafter's own names, `model.embed_tokens.weight` [vocabulary, hidden] (the verifier's embedding,
used raw, and its tied head), and, always float32, `aux` [all context rows, taps, hidden].

The blocks of a folder follow each other on one cache. Block b appends `context` rows of aux to the drafter's context,
then runs `ids` = [carry, mask, mask ..] at positions start, start + 1 .., where start = all context rows so far; the
rows of the block are then cropped from the cache. hidden.bin: float32, little endian, the rows of all blocks in order,
carry rows included, after the last norm, [rows, hidden]. `drafts` and `top_logits` (after multiplier and softcap) are
of the rows behind the carry: row i drafts the token of position start + i.

The folder `trio` is the authors' greedy loop on models/tiny and its drafter: runs.json. A block: `drafts` for positions
start + 1 .., `posterior` = argmax of the verifier's rows [carry, drafts], `accepted` drafts, `committed` tokens
(accepted + 1, less where the text ends). A block is as wide as the tokens left allow, so the last ones draft with
fewer masks.
"""
import argparse
import hashlib
import importlib.metadata
import json
import os
import platform
import random
import sys
import time

sys.path = [p for p in sys.path if p != os.path.dirname(os.path.abspath(__file__))]  # this file is a "dflash" too
import dflash.model as authors  # noqa: E402
import torch  # noqa: E402
import transformers  # noqa: E402
from transformers import Gemma4ForCausalLM  # noqa: E402
from transformers.models.qwen3.configuration_qwen3 import Qwen3Config  # noqa: E402

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
sys.path.insert(0, os.path.join(ROOT, "tools"))
import synth  # noqa: E402

S, F = "sliding_attention", "full_attention"
authors._cuda_time = time.time  # the package times itself with CUDA's clock


def config(layers, dflash, **kw):
    """One drafter's config.json; a value of None leaves a field out."""
    sliding = S in layers
    c = dict(
        architectures=["DFlashDraftModel"], model_type="qwen3", vocab_size=160, hidden_size=64,
        num_hidden_layers=len(layers), num_attention_heads=4, num_key_value_heads=2, head_dim=16,
        intermediate_size=96, rms_norm_eps=1e-6, rope_theta=1000000.0, max_position_embeddings=1024, block_size=8,
        layer_types=layers, use_sliding_window=sliding, sliding_window=12 if sliding else None,
        num_target_layers=8, hidden_act="silu", attention_bias=False, tie_word_embeddings=False, dtype="float32",
        dflash_config=dflash)
    c.update(kw)
    return {k: v for k, v in c.items() if v is not None}


CASES = {  # name: (config, blocks as (new context rows, width))
    "full": (config([F, F, F], dict(mask_token_id=4, target_layer_ids=[1, 3, 5, 6])), [(20, 8), (3, 8), (8, 5)]),
    # 4 of 5 layers sliding, as released; context shorter than the window, across it, longer
    "mixed": (config([S, S, S, S, F], dict(mask_token_id=159, target_layer_ids=[1, 8, 14, 20, 27]), block_size=16,
                     num_target_layers=30), [(7, 16), (9, 16), (40, 16), (1, 16), (5, 2)]),
    "sliding": (config([S, S], dict(mask_token_id=0, target_layer_ids=[0, 2]), sliding_window=4),
                [(30, 8), (1, 8), (8, 8)]),
    "window_of_block": (config([S, F], dict(mask_token_id=3, target_layer_ids=[2, 5]), sliding_window=8),
                        [(8, 8), (8, 8), (1, 8)]),
    "causal": (config([F, S, F], dict(mask_token_id=5, target_layer_ids=[1, 2, 3]), is_causal=True, block_size=4),
               [(25, 4), (2, 4), (4, 4)]),
    # sliding layers see both ways, within the window
    "not_causal": (config([S, F, S], dict(mask_token_id=6, target_layer_ids=[1, 4]), is_causal=False,
                          sliding_window=5, block_size=16), [(21, 16), (11, 16), (2, 16)]),
    # an unset window: sliding layers are causal and see everything
    "no_window": (config([F, S], dict(mask_token_id=7, target_layer_ids=[1, 4]), sliding_window=12,
                         use_sliding_window=False), [(21, 8), (6, 8)]),
    # default ids of one layer; one query and one key head
    "one_layer": (config([F], dict(mask_token_id=9), block_size=4, num_attention_heads=1, num_key_value_heads=1,
                         num_target_layers=7), [(1, 4), (1, 4), (4, 4)]),
    # default ids with a half to round (to even); grouped 8 to 1; every scale, dflash_config before config
    "scales": (config([S, F, F], dict(mask_token_id=11, input_embedding_scale=0.5, output_multiplier=1.5,
                                      final_logit_softcapping=6.0, block_size=4),
                      num_target_layers=7, num_attention_heads=8, num_key_value_heads=1, head_dim=8,
                      block_size=16, mask_token_id=12, input_embedding_scale=2.0, output_multiplier=0.5,
                      final_logit_softcapping=30.0), [(18, 4), (4, 4)]),
    # the same from the config itself
    "scales_outside": (config([S, F], {}, mask_token_id=13, target_layer_ids=[0, 3, 7], input_embedding_scale=0.25,
                              output_multiplier=0.125, final_logit_softcapping=0.5, num_key_value_heads=4,
                              rope_theta=None, rope_parameters={"rope_type": "default", "rope_theta": 5000.0}),
                       [(18, 8), (2, 8)]),
    "odd_sizes": (config([S, F, S], dict(mask_token_id=150, target_layer_ids=[6, 1, 3]), vocab_size=151,
                         hidden_size=60, intermediate_size=77, num_attention_heads=9, num_key_value_heads=3,
                         head_dim=14, sliding_window=7, rms_norm_eps=1e-5, rope_theta=10000.0, block_size=13),
                  [(17, 13), (5, 13), (13, 7)]),
    "bf16": (config([S, S, F], dict(mask_token_id=4, target_layer_ids=[1, 3, 5]), dtype="bfloat16", block_size=16,
                    hidden_size=72, head_dim=32, num_attention_heads=2, num_key_value_heads=1), [(33, 16), (16, 16)]),
}


class Verifier(torch.nn.Module):
    """All that a drafter needs of one: a raw embedding and its tied head."""

    def __init__(self, weight):
        super().__init__()
        self.embed = torch.nn.Embedding.from_pretrained(weight)
        self.lm_head = torch.nn.Linear(weight.shape[1], weight.shape[0], bias=False)
        self.lm_head.weight = self.embed.weight

    def get_input_embeddings(self):
        return self.embed


def margin(logits):
    top = logits.topk(2, dim=-1).values
    return top[..., 0] - top[..., 1]


@torch.inference_mode()
def run_block(model, verifier, cache, aux, first, start, ids):
    """One drafter step of the authors' loop: aux are the context rows first .. start - 1."""
    scale = float(authors._draft_value(model.config, "input_embedding_scale", 1.0))
    hidden = model(
        target_hidden=aux.reshape(1, start - first, -1),
        noise_embedding=authors._raw_input_embeddings(verifier, torch.tensor([ids]), scale),
        position_ids=torch.arange(first, start + len(ids))[None], past_key_values=cache, use_cache=True)
    authors._crop_to(cache, start)
    return hidden, model.compute_logits(hidden[:, 1 - len(ids):, :], authors._output_head(verifier))


def synth_case(out, name, seed):
    c, plan = CASES[name]
    folder, dtype, r = os.path.join(out, name), getattr(torch, c["dtype"]), random.Random(seed)
    os.makedirs(folder, exist_ok=True)
    model = authors.DFlashDraftModel(Qwen3Config.from_dict(json.loads(json.dumps(c)))).float().eval()
    synth.synth_state_dict(model, seed, dtype)
    verifier = Verifier(synth.synth_tensor(seed, "model.embed_tokens.weight", (c["vocab_size"], c["hidden_size"]),
                                           dtype).float())
    taps = len(model.target_layer_ids)
    aux = synth.synth_tensor(seed, "aux", (sum(n for n, _ in plan), taps, c["hidden_size"]), torch.float32)
    windowed = c["use_sliding_window"] or S not in c["layer_types"]  # else the authors' own cache has no size
    cache = authors._make_cache(model.config) if windowed else authors.DynamicCache()
    blocks, rows, margins, start, off = [], [], [], 0, 0.0
    for context, width in plan:
        first, start = start, start + context
        ids = [r.randrange(c["vocab_size"])] + [model.mask_token_id] * (width - 1)
        hidden, logits = run_block(model, verifier, cache, aux[first:start], first, start, ids)
        whole, _ = run_block(model, verifier, authors.DynamicCache(), aux[:start], 0, start, ids)
        off = max(off, (whole - hidden).abs().max().item())
        top = logits[0].max(-1)
        blocks.append({"start": start, "context": context, "ids": ids, "drafts": top.indices.tolist(),
                       "top_logits": [round(v, 6) for v in top.values.tolist()]})
        margins.append(round(margin(logits[0]).min().item(), 6))
        rows.append(hidden[0])
    assert off < 2e-5, f"{name}: the cached context differs from the whole context by {off}"
    write_json(os.path.join(folder, "config.json"), c)
    write_json(os.path.join(folder, "blocks.json"),
               {"seed": seed, "context_rows": start, "taps": taps, "target_layer_ids": list(model.target_layer_ids),
                "block_size": model.block_size, "mask_token_id": model.mask_token_id, "blocks": blocks})
    write_json(os.path.join(folder, "meta.json"), dict(versions(), least_margins=margins))
    torch.cat(rows).numpy().astype("<f4").tofile(os.path.join(folder, "hidden.bin"))
    print(f"{name}: {len(plan)} blocks, least margin {min(margins):.4f}, cached against whole {off:.1e}")


CODE = '''class Counter:
    def __init__(self, start=0):
        self.value = start

    def add(self, n):
        self.value += n
        return self.value


def mean(values):
    total = 0
    for value in values:
        total += value
    return total / len(values)


def largest(values):
    best = None
    for value in values:
'''


def needle_text():
    lines = [f"Note {i:04d}: this paragraph is unrelated padding and does not contain the answer." for i in range(20)]
    lines.insert(9, "\nIMPORTANT: the secret code is MAPLE-7890.\n")
    return "\n".join(lines) + "\nQuestion: what is the secret code? Answer:"


def keyed_text():
    """As src/cli/niah.c words them; the words and codes are of this file."""
    r = random.Random(5)
    words = "garden silver copper window morning river candle button paper harbor ladder engine".split()
    prefixes = ["PINE", "OAK", "BETA", "ZETA", "IOTA", "BIRCH"]
    facts = {w: f"{p}-{r.randrange(1000, 10000)}" for w, p in zip(words, prefixes)}
    text = ""
    for word, code in facts.items():
        text += f"\nIMPORTANT: the secret code for {word} is {code}."
        for _ in range(3):
            text += "\n" + "".join(" " + r.choice(words) for _ in range(r.randrange(4, 11))) + "."
    return text + "\nQuestion: what is the secret code for copper? Answer:"


PROMPTS = {"code": CODE, "needle": needle_text(), "keyed": keyed_text()}


class Recorder:
    """A verifier that keeps its logits, step by step."""

    def __init__(self, model):
        self.model, self.logits = model, []

    def __getattr__(self, name):
        return getattr(self.model, name)

    def __call__(self, *a, **kw):
        y = self.model(*a, **kw)
        self.logits.append(y.logits[0])
        return y


@torch.inference_mode()
def greedy(verifier, ids, n, stop):
    """Plain greedy decoding: the whole text anew for every token, no cache."""
    ids = list(ids)
    for _ in range(n):
        y = verifier(input_ids=torch.tensor([ids]), use_cache=False, logits_to_keep=1)
        ids.append(y.logits[0, -1].argmax().item())
        if ids[-1] in stop:
            break
    return ids


def trio_run(model, verifier, ids, new, stop):
    target, drafted = Recorder(verifier), []
    compute = authors.DFlashDraftModel.compute_logits

    def recorded(hidden, head):
        drafted.append(compute(model, hidden, head)[0])
        return drafted[-1][None]

    model.compute_logits = recorded
    got = authors.dflash_generate(model, target, torch.tensor([ids]), new, stop, return_stats=True)
    del model.compute_logits
    output, blocks, start = got.output_ids[0].tolist(), [], len(ids)
    drafted += [None] * (len(target.logits) - 1 - len(drafted))  # a last block of the carry alone drafts nothing
    for logits, draft, committed in zip(target.logits[1:], drafted, got.acceptance_lengths, strict=True):
        posterior = logits.argmax(-1).tolist()
        drafts = [] if draft is None else draft.argmax(-1).tolist()
        accepted = next((i for i, d in enumerate(drafts) if d != posterior[i]), len(drafts))
        b = {"start": start, "carry": output[start], "drafts": drafts, "posterior": posterior, "accepted": accepted,
             "committed": committed, "verifier_margin": round(margin(logits[:accepted + 1]).min().item(), 4)}
        if drafts:
            b["draft_margins"] = [round(v, 4) for v in margin(draft).tolist()]
        blocks.append(b)
        start += committed
    return output, blocks


def trio_case(out):
    folder, tiny = os.path.join(out, "trio"), os.path.join(ROOT, "models/tiny")
    os.makedirs(folder, exist_ok=True)
    verifier = Gemma4ForCausalLM.from_pretrained(tiny, dtype=torch.float32, attn_implementation="eager",
                                                 experts_implementation="eager").eval()
    model = authors.DFlashDraftModel.from_pretrained(os.path.join(tiny, "drafter"), dtype=torch.float32).eval()
    from tokenizers import Tokenizer
    tok = Tokenizer.from_file(os.path.join(tiny, "tokenizer.json"))
    new, stop, runs = 48, [1], []
    for name, text in PROMPTS.items():
        ids = [2] + tok.encode(text, add_special_tokens=False).ids
        output, blocks = trio_run(model, verifier, ids, new, stop)
        assert output == greedy(verifier, ids, new, stop), f"{name}: the loop's output is not the verifier's own"
        runs.append({"name": name, "text": text, "prompt": ids, "output": output[len(ids):], "blocks": blocks})
        n = [b["committed"] for b in blocks]
        print(f"{name}: {len(ids)} + {len(output) - len(ids)} tokens, {len(n)} blocks, {sum(n) / len(n):.2f} a block, "
              f"verifier margin {min(b['verifier_margin'] for b in blocks)}: {tok.decode(output[len(ids):])!r}")
    write_json(os.path.join(folder, "runs.json"),
               {"new_tokens": new, "stop": stop, "block_size": model.block_size, "runs": runs})
    files = ["models/tiny/model.safetensors", "models/tiny/drafter/model.safetensors"]
    write_json(os.path.join(folder, "meta.json"), dict(versions(), sha256={
        f: hashlib.sha256(open(os.path.join(ROOT, f), "rb").read()).hexdigest() for f in files}))


def short(value, indent=""):
    """JSON with lists of plain values on one line."""
    deeper = indent + " "
    if isinstance(value, dict):
        body = [f"{deeper}{json.dumps(k)}: {short(v, deeper)}" for k, v in value.items()]
        return "{\n" + ",\n".join(body) + f"\n{indent}}}" if body else "{}"
    if isinstance(value, list) and any(isinstance(v, (dict, list)) for v in value):
        return "[\n" + ",\n".join(deeper + short(v, deeper) for v in value) + f"\n{indent}]"
    return json.dumps(value)


def write_json(path, value):
    with open(path, "w") as f:
        f.write(short(value) + "\n")


def versions():
    return {"dflash": importlib.metadata.version("dflash"), "torch": torch.__version__,
            "transformers": transformers.__version__, "python": platform.python_version(),
            "script": "tools/golden/dflash.py"}


if __name__ == "__main__":
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument("--out", default=os.path.join(ROOT, "tests/golden/dflash"))
    p.add_argument("--only", help="one geometry, or trio")
    a = p.parse_args()
    for i, case in enumerate(CASES):
        if a.only in (None, case):
            synth_case(a.out, case, 300 + i)
    if a.only in (None, "trio"):
        trio_case(a.out)
