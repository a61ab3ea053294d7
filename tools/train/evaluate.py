"""Figures while training (Probes, in PyTorch) and the stage `eval`, which asks the engine itself.

Everything here is asked with the benches' own words, which training never uses, or is code of files held out."""
import random

import numpy as np
import torch

import documents as doc
import nets
import stream
from stream import BOS

LINES = (60, 160, 320, 800)


class BenchWords(doc.Words):
    """Facts about the reserved words, as the benches draw them."""

    def __init__(self, bench, words):
        self.bench, self.filler, self.anew = bench, bench.words, False
        self.names, self.cities = bench.names, bench.cities

    def word(self, r):
        return r.choice(self.bench.words)

    def name(self, r):
        return r.choice(self.bench.names)

    def city(self, r):
        return r.choice(self.bench.cities)

    def code_family(self, r):
        return self.bench.prefixes, 1000, 9999

    def code(self, r, family):
        return f"{r.choice(family[0])}-{r.randint(*family[1:])}"


def haystack(w, r, lines):
    """The reference's document: (text, question, answer)."""
    code, out, at = w.code(r, w.code_family(r)), [], r.randint(4, lines - 4)
    for i in range(lines):
        if i == at:
            out.append(f"\nIMPORTANT: the secret code is {code}.\n")
        out.append(doc.PADDING.format(i))
    return "\n".join(out) + "\n", "Question: what is the secret code? Answer:", f" {code}"


def keyed(w, r, keys, lines):
    text, codes, order = doc.keyed_parts(w, r, keys, lines)
    k = r.choice(order)
    return text, f"\nQuestion: what is the secret code for {k}? Answer:", f" {codes[k]}"


def as_turn(text, question):
    return f"{doc.TURN}user\n{(text + question).strip()}{doc.END}\n{doc.TURN}model\n"


def workload(name, w, r):
    """Prompts as src/cli/workload.c draws them."""
    if name == "chat":
        who, where = w.name(r), w.city(r)
        told = [doc.turn(f"My friend {who} lives in {where} and has {r.randint(2, 8)} cats. Please remember it.",
                         f"I will remember that {who} lives in {where}.") for _ in range(r.randint(3, 6))]
        return "".join(told) + f"{doc.TURN}user\nWhere does {who} live?{doc.END}\n{doc.TURN}model\n"
    if name == "tools":
        out = ""
        for _ in range(r.randint(5, 9)):
            tool, city, days = r.choice(w.bench.tools), w.city(r), r.randint(1, 9)
            out += (f'{{"call": "{tool}", "arguments": {{"city": "{city}", "days": {days}}}}}\n'
                    f'{{"result": {{"city": "{city}", "ok": true}}}}\n')
        return out + '{"call": "'
    if name == "code":
        a, b = r.choice(w.bench.nouns), r.choice(w.bench.nouns)
        return (f'import os\nimport sys\n\n\nclass {a.title()}{b}(object):\n    """A {a} with a {b}."""\n\n'
                f"    def __init__(self, name, size={1 << r.randint(4, 11)}):\n        self.name = name\n        self.size = size\n"
                f"        self.{b} = None\n\n" + doc.METHODS[0] + "\n    def write(self, data):\n        if")
    text, question, _ = haystack(w, r, r.randint(40, 80)) if name == "niah" else keyed(w, r, 12, r.randint(40, 80))
    return text + question


WORKLOADS = ("chat", "tools", "niah", "keyed", "code")


class Probes:
    """Documents in rows of the training shape, so that asking compiles nothing. Answers are read by forced decoding:
    greedy decoding gives an answer if and only if every token of it is the most likely one given those before."""

    def __init__(self, setup, source):
        self.setup, self.source, self.enc = setup, source, source.enc
        self.w = BenchWords(setup.bench, source.w)
        self.sets = None

    def place(self, documents):
        """[(prompt, answer)] -> rows [n, N], [(row, first, last)] of the answers"""
        n, rows, spans = self.setup.n, [], []
        for prompt, answer in documents:
            a, b = [BOS] + self.enc(prompt), self.enc(answer)
            ids = (a + b)[:n]
            spans.append((len(rows), len(a), len(a) + len(b)))
            rows.append(ids + [0] * (n - len(ids)))
        return torch.tensor(rows), spans

    def build(self):
        r, w, small = random.Random(7), self.w, self.setup.o.smoke
        lines, samples = ((10,), 2) if small else (LINES, 8)
        sets = {}
        for k in lines:
            docs = [haystack(w, r, k) for _ in range(samples)]
            sets[f"raw {k}"] = [(t + q, a + doc.EOS) for t, q, a in docs]
            sets[f"turn {k}"] = [(as_turn(t, q), a + doc.END) for t, q, a in docs]
        docs = [keyed(w, r, *((2, 5) if small else (16, 100))) for _ in range(2 * samples)]
        sets["keyed"] = [(t + q, a + "\n") for t, q, a in docs]
        sets["keyed turn"] = [(as_turn(t, q), a + doc.END) for t, q, a in docs]
        self.sets = {k: self.place(v) for k, v in sets.items()}
        # Text whose every token counts, for KL: windows of 1024.
        self.window = min(1024, self.setup.n)
        library, one = self.setup.library(), self.setup.batch * (self.setup.n // self.window)
        self.text = {}
        for part in ("held", "unseen"):
            texts, out = list(library.texts(part)), []
            r.shuffle(texts)
            for t in texts:
                ids = self.enc.tok.encode(t[:8 * self.window], add_special_tokens=False).ids
                if len(ids) >= self.window - 1 and len(out) < one:
                    out.append([BOS] + ids[:self.window - 1])
            self.text["code " + part] = self.rows(out)
        chats = []
        while len(chats) < one:
            ids = [BOS] + self.enc(doc.chat(w, r, 4 * self.window))
            if len(ids) >= self.window:
                chats.append(ids[:self.window])
        self.text["conversation"] = self.rows(chats)

    def rows(self, windows):
        per = self.setup.n // self.window
        windows = (windows * (per * self.setup.batch))[:per * self.setup.batch] if len(windows) < per * self.setup.batch else windows
        return torch.tensor(np.array(windows).reshape(-1, self.setup.n))

    @torch.no_grad()
    def streams(self, net, f, plan, ids, policy):
        with self.setup.autocast():
            rows = f(net(ids, plan)[1]) if policy == "restored" else None
            return net(ids, plan, policy, rows)[0]

    def recall(self, net, f, plan, name, policy="native"):
        ids, spans = self.sets[name]
        plan.use(self.setup.segments[-1])
        hits, b = 0, self.setup.batch
        for s in range(0, len(ids), b):
            x = ids[s:s + b]
            pad = torch.cat([x, x[:1].expand(b - len(x), -1)]).to(self.setup.device)
            h = self.streams(net, f, plan, pad, policy)
            for row, first, last in spans[s:s + b]:
                with self.setup.autocast(), torch.no_grad():
                    best = net.logits(h[row - s, first - 1:last - 1]).argmax(-1)
                hits += bool((best == pad[row - s, first:last]).all())
        return hits / len(spans)

    @torch.no_grad()
    def divergences(self, net, f, plan, name):
        """KL(native || s5), KL(native || restored from the native run's latents), loss; positions from the window on."""
        ids = self.text[name][:self.setup.batch].to(self.setup.device)
        segment = next(s for s in self.setup.segments if s >= self.window)
        plan.use(segment)
        keep = (torch.arange(self.setup.n) % self.window >= self.setup.v["sliding_window"])
        keep &= (torch.arange(self.setup.n) % self.window < self.window - 1)
        x = {p: self.streams(net, f, plan, ids, p)[:, keep] for p in ("native", "s5", "restored")}
        out = {"s5": 0.0, "restored": 0.0, "loss": 0.0}
        target = ids.roll(-1, 1)[:, keep]
        for b in range(len(ids)):
            with self.setup.autocast():
                p = {k: torch.log_softmax(net.logits(v[b]), -1) for k, v in x.items()}
            for k in ("s5", "restored"):
                out[k] += (p["native"].exp() * (p["native"] - p[k])).sum(-1).mean().item() / len(ids)
            out["loss"] -= p["native"].gather(-1, target[b][:, None]).mean().item() / len(ids)
        out["ratio"] = out["restored"] / max(out["s5"], 1e-9)
        return {k: round(v, 5) for k, v in out.items()}

    def quick(self, net, f, plan):
        if self.sets is None:
            self.build()
        names = list(self.sets)
        few = [n for n in names if n in ("raw 320", "raw 800", "turn 160", "keyed", "keyed turn")] or names
        return {**{n: self.recall(net, f, plan, n) for n in few}, **{n: self.divergences(net, f, plan, n) for n in self.text}}

    def all(self, net, f, plan):
        if self.sets is None:
            self.build()
        out = {p: {n: self.recall(net, f, plan, n, p) for n in self.sets} for p in ("native", "s5", "restored")}
        return dict(recall=out, divergence={n: self.divergences(net, f, plan, n) for n in self.text})
