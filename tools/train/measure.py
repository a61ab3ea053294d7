"""Stage `eval`: what the engine says of the exported trio, which is what counts.

    parity       logits of the engine against the nets of this recipe in float32, under native, s5 and restored
    divergence   KL(native || s5) and KL(native || restored) in the true causal process, from `kakeya logits`; of
                 conversation a few tokens in a thousand hold half of it, so 96 windows
    niah, spec   the benches of the command line, on a GPU where the engine is built for one

As many runs of the engine at once as --workers says, of one thread each: its bits do not depend on that.
"""
import json
import os
import random
import subprocess
import tempfile
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch

import documents as doc
import nets
from common import freeze
from evaluate import BenchWords
from stream import BOS, Encoder

WINDOW = 1024


class Engine:
    def __init__(self, setup, folder):
        self.setup, self.folder, self.model = setup, folder, setup.o.model
        if not os.access(setup.o.engine, os.X_OK):
            raise SystemExit(f"tools/train: {setup.o.engine} is missing: `make` builds it, or name another with --engine")

    def __call__(self, *words):
        command = [self.setup.o.engine, *map(str, words), "-m", self.model, "--threads", "1"]
        p = subprocess.run(command, capture_output=True, text=True)
        if p.returncode:
            raise SystemExit(f"tools/train: {' '.join(map(str, words))}: {p.stderr.strip()}")
        return p.stdout

    def logits(self, ids, policy):
        more = ["--f-theta", os.path.join(self.model, "f_theta")] if policy == "restored" else []
        with tempfile.TemporaryDirectory(dir=self.folder) as own:
            at, out = os.path.join(own, "ids.json"), os.path.join(own, "y.npy")
            with open(at, "w", encoding="utf-8") as f:
                json.dump([int(i) for i in ids], f)
            self("logits", "--ids", at, "-o", out, "--kv", policy, "--kv-type", "f32", "--device", "cpu", *more)
            return torch.from_numpy(np.load(out)).double()


def recipe_logits(setup, ids):
    """The same from the nets of this recipe. A restored run is the fixed point of passes that rebuild rows from the
    taps of the pass before: each pass makes NEAR more rows right."""
    from safetensors.torch import load_file
    read = lambda *p: {k: v.float() for k, v in load_file(os.path.join(setup.o.model, *p)).items()}
    net, f = nets.Verifier(setup.v), nets.FTheta(setup.v, setup.rank)
    net.load_state_dict(read("model.safetensors"))
    f.load_state_dict(read("f_theta", "f_theta.safetensors"))
    freeze(net), freeze(f)
    ids = torch.tensor([ids])
    plan, out = nets.Plan(ids.shape[1], [ids.shape[1]], "cpu", setup.v), {}
    with torch.no_grad():
        for policy in ("native", "s5"):
            out[policy] = net.logits(net(ids, plan, policy)[0])[0].double()
        x, taps = net(ids, plan)
        for _ in range(2 + ids.shape[1] // nets.NEAR):
            x, taps = net(ids, plan, "restored", f(taps))
        out["restored"] = net.logits(x)[0].double()
    return out


def texts(setup, encoder, words, codes, chats):
    """{kind: windows of ids}: `codes` of code held out and of tests of the library never read, `chats` of conversation
    drawn anew of the words that training draws from, and of conversation of the reserved words, which it never does."""
    r, out = random.Random(13), {}
    for part in ("held", "unseen"):
        found = list(setup.library().texts(part))
        r.shuffle(found)
        windows = (encoder.tok.encode(t[:8 * WINDOW], add_special_tokens=False).ids for t in found)
        out["code " + part] = [[BOS] + w[:WINDOW - 1] for w in windows if len(w) >= WINDOW - 1][:codes]
    known = doc.Words(setup.library(), setup.bench.reserved, encoder.texts(), anew=True)
    for name, w in (("conversation", known), ("conversation, reserved words", words)):
        out[name] = [([BOS] + encoder(doc.chat(w, r, 5 * WINDOW)))[:WINDOW] for _ in range(chats)]
    return out


def divergence(engine, pool, window, windows):
    def one(ids):
        p = torch.log_softmax(engine.logits(ids, "native")[window:], -1)
        q = {k: torch.log_softmax(engine.logits(ids, k)[window:], -1) for k in ("s5", "restored")}
        return {k: (p.exp() * (p - v)).sum(-1).mean().item() for k, v in q.items()}

    each = list(pool.map(one, windows))
    total = {k: sum(e[k] for e in each) / len(each) for k in each[0]}
    return dict({k: round(v, 5) for k, v in total.items()}, ratio=round(total["restored"] / total["s5"], 4), windows=len(windows))


def run(setup):
    encoder = Encoder(os.path.join(setup.o.model, "tokenizer.json"))
    words = BenchWords(setup.bench, None)
    small, result = setup.o.smoke, {}
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(setup.o.workers) as pool, ThreadPoolExecutor(setup.o.workers) as benches:
        engine = Engine(setup, folder)
        ids = ([BOS] + encoder(doc.chat(words, random.Random(3), 3000)))[:300]
        ours = recipe_logits(setup, ids)
        result["parity"] = {k: (engine.logits(ids, k) - v).abs().max().item() for k, v in ours.items()}
        setup.log("against the engine:", result["parity"])
        if max(result["parity"].values()) > 0.02:
            raise SystemExit("tools/train: the engine computes other logits than the recipe")
        bench = lambda *w: json.loads(engine("bench", *w, "--json"))
        lines, samples = (10, 1) if small else ("60,160,320,800", 32)
        keyed = ("--lines", 10 if small else 120, "--samples", samples, "--keys", 2 if small else 16)
        asks = {"raw": ("--lines", lines, "--samples", samples), "turn": ("--lines", lines, "--samples", samples, "--template", "auto"),
                "keyed": keyed, "keyed turn": (*keyed, "--template", "auto")}

        def recall(run):
            name, policy = run
            more = ["--f-theta", os.path.join(setup.o.model, "f_theta")] if policy == "restored" else []
            rungs = bench("niah", *asks[name], "--kv", policy, *more)["rungs"]
            return f"{name}, {policy}", {r["prompt_tokens"]: [r["recall"], r["recall_exact"]] for r in rungs}

        runs = [(name, policy) for name in asks for policy in (("native",) if small else ("native", "s5", "restored"))]
        recalls = benches.map(recall, runs)
        kinds = texts(setup, encoder, words, *((1, 2) if small else (8, 96)))
        result["divergence"] = {k: divergence(engine, pool, setup.v["sliding_window"], v) for k, v in kinds.items() if v}
        setup.log("KL in nats a token:", result["divergence"])
        result["niah"] = dict(recalls)
        setup.log("{prompt tokens: [recall, exact]}:", result["niah"])
        rows = bench("spec", "--draft", os.path.join(setup.o.model, "drafter"), "--draft-width", 16, "--samples", 1 if small else 8,
                     "--reps", 1 if small else 5)["workloads"]
        result["committed_per_forward"] = {r["name"]: r["committed_per_block"] for r in rows}
        result["committed_per_forward"]["mean"] = sum(r["committed_per_block"] for r in rows) / len(rows)
        setup.log("committed per forward:", result["committed_per_forward"], "identical:", all(r["byte_identical"] for r in rows))
    setup.note("eval", **result)
