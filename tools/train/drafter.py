"""Stage `drafter`: block drafts of the verifier's own greedy text.

Again and again the verifier continues a pool of prompts, cut anywhere in text of every kind, and the drafter learns
from the pool: half of a row's anchors lie in what was generated, the others in the prompt, where only the drafts count
that the text itself confirms. A block at anchor a sees context rows before a, and drafts the tokens of positions
a + 1 .. a + 15; the label is the verifier's choice. A draft counts for as much as its predecessors are likely to be
accepted, and by its place."""
import random
import time

import torch
import torch.nn.functional as F

import nets
from common import save
from evaluate import WORKLOADS, Probes, workload
from optim import Optimizer
from stream import BOS, DRAFT, MASK, Stream

SETS, EVAL_TOKENS = 24, 96
LEAST, MOST, SHARE = 2, 8, 0.3                       # passes over a pool; the share of time that may go into making pools


def mask_functions(n, block, window, segment, at):
    """Queries are blocks of rows at the anchors `at`; keys the n context rows, then the blocks' rows."""

    def context(i, j):
        return (j < at[i // block]) & (j // segment == at[i // block] // segment)

    def own(i, j):
        return (j >= n) & ((j - n) // block == i // block)

    def full(_b, _h, i, j):
        return context(i, j) | own(i, j)

    def sliding(_b, _h, i, j):
        near = at[i // block] + i % block - j < window
        return (context(i, j) & near) | (own(i, j) & (j - n <= i))

    return {"full_attention": full, "sliding_attention": sliding}


class Anchors:
    """Sets of anchors, the same in every row of a batch, with their masks."""

    def __init__(self, setup, segment):
        self.n, self.block, self.device = setup.n, setup.d["block_size"], setup.device
        self.segment, self.count = segment, setup.anchors
        self.at = torch.zeros(setup.anchors, dtype=torch.long, device=setup.device)
        self.kinds = mask_functions(self.n, self.block, setup.d["sliding_window"], torch.tensor(segment, device=setup.device), self.at)

    def make(self, offsets):
        """offsets [segments, anchors per segment] -> (anchors, masks)"""
        at = (torch.arange(self.n // self.segment)[:, None] * self.segment + offsets).flatten().to(self.device)
        self.at.copy_(at)
        q = self.count * self.block
        return at, {k: nets.build_mask(f, q, self.n + q, self.device) for k, f in self.kinds.items()}

    def random(self, generated, r):
        per = self.count // (self.n // self.segment)
        last, half = self.segment - self.block - 1, per // 2
        offsets = [sorted([r.randint(8, self.segment - generated - 1) for _ in range(per - half)] +
                          [r.randint(self.segment - generated - 1, last) for _ in range(half)]) for _ in range(self.n // self.segment)]
        return self.make(torch.tensor(offsets))

    def use(self, chosen):
        self.at.copy_(chosen[0])
        return chosen


@torch.no_grad()
def greedy(setup, net, plan, rows, generated):
    """rows [n, N] on the device: the last `generated` ids of every segment are replaced by the verifier's choices."""
    length, n, b = plan.length, len(rows), setup.batch
    first = length - generated
    cache, last = [[] for _ in net.model.layers], []
    with setup.autocast():
        for s in range(0, n, b):
            keep = []
            x, _ = net(rows[s:s + b], plan, keep=keep)
            last.append(x.reshape(-1, length, x.shape[-1])[:, first - 1].clone())
            for c, kv in zip(cache, keep):
                c.append([t.reshape(-1, length, *t.shape[2:]).to(torch.bfloat16 if setup.cuda else t.dtype) for t in kv])
        cache = [[torch.cat(t) for t in zip(*c)] for c in cache]
        ids = rows.view(-1, length)
        token = net.logits(torch.cat(last)).argmax(-1)
        ids[:, first] = token
        tables = nets.rope_tables(net.config, torch.arange(length, device=rows.device))
        for t in range(first, length - 1):
            x = net.embed(token[:, None])
            for layer, (k, v) in zip(net.model.layers, cache):
                a, slides = layer.self_attn, layer.kind == "sliding_attention"
                q, k1, v1 = a.qkv(layer.input_layernorm(x), [y[t:t + 1] for y in tables[layer.kind]])
                k[:, t], v[:, t] = k1[:, 0], v1[:, 0]
                low = max(0, t + 1 - net.config["sliding_window"]) if slides else 0
                x = layer.rest(x, nets.attend(q, k[:, low:t + 1], v[:, low:t + 1], None))
            token = net.logits(x[:, 0]).argmax(-1)
            ids[:, t + 1] = token
    return rows


class Blocks:
    """What a step needs beside its rows: the drafter, the verifier's choices, positions."""

    def __init__(self, setup, net, plan, drafter):
        self.setup, self.net, self.plan, self.drafter = setup, net, plan, drafter
        self.block = setup.d["block_size"]
        self.forward = setup.compile(self.draft)
        self.choose = setup.compile(lambda x: net.logits(x).argmax(-1))

    def draft(self, taps, blocks, ropes, masks):
        d = self.drafter
        return d(d.context(taps), blocks, self.net.model.embed_tokens.weight, ropes, masks)

    def __call__(self, ids, chosen):
        """-> logits [B, A, 15, V], labels, accepted so far (bool), all [B, A, 15]"""
        at, masks = chosen
        ramp = torch.arange(self.block, device=ids.device)
        with torch.no_grad():
            x, taps = self.net(ids, self.plan)
            choice = self.choose(x)
        blocks = torch.full((len(ids), len(at), self.block), MASK, device=ids.device)
        blocks[:, :, 0] = ids[:, at]
        positions = torch.arange(self.setup.n, device=ids.device) % self.plan.length
        ropes = [self.drafter.rope(positions), self.drafter.rope((at[:, None] % self.plan.length + ramp).flatten())]
        y = self.forward(taps, blocks, ropes, masks)
        rows = at[:, None] + ramp[:-1]
        label, text = choice[:, rows], ids[:, rows + 1]
        same = (label == text).long().cumprod(-1).bool()
        valid = torch.cat([torch.ones_like(same[..., :1]), same[..., :-1]], -1)
        return y, label, valid


def loss_of(y, label, valid):
    """-> loss, mean drafts accepted"""
    p = -F.cross_entropy(y.flatten(0, 2), label.flatten(), reduction="none").view_as(label)
    reach = torch.cat([torch.zeros_like(p[..., :1]), p.detach()[..., :-1]], -1).cumsum(-1).exp()
    place = torch.exp(-torch.arange(label.shape[-1], device=y.device) / 7.0)
    w = valid * (0.5 * place + 0.5 * reach)
    accepted = ((y.argmax(-1) == label) & valid).long().cumprod(-1).sum(-1)
    return -(p * w).sum() / w.sum(), accepted


class Exam:
    """Committed tokens per forward on prompts of the five workloads and on library code held out: the verifier's greedy
    text is fixed, so one pass that drafts at every position of it tells the whole loop."""

    def __init__(self, setup, source, net, plan, probes):
        self.setup, (self.length, self.generated) = setup, setup.draft_segments[-2 if len(setup.draft_segments) > 1 else 0]
        plan.use(self.length)
        self.per, r = setup.n // self.length, random.Random(11)
        self.names = list(WORKLOADS) + ["library"]
        first, windows = self.length - self.generated, []
        held = list(setup.library().texts("held"))
        for name in self.names:
            for _ in range(16 if not setup.o.smoke else 2):
                if name == "library":
                    t = r.choice(held)
                    at = r.randrange(max(1, len(t) - 4000))
                    ids = source.enc.tok.encode(t[at:at + 4000], add_special_tokens=False).ids[:first - 1]
                else:
                    ids = source.enc(workload(name, probes.w, r))
                ids = ([BOS] + ids)[:first]          # a long prompt is cut in smoke runs alone
                filler = source.segment(r, "chat", first).tolist()[:first - len(ids)]
                windows.append(filler + ids + [0] * self.generated)
        self.real, full = len(windows), self.per * setup.batch
        while len(windows) % full:
            windows.append(windows[0])
        rows = torch.tensor(windows).view(-1, setup.n).to(setup.device)
        self.rows = greedy(setup, net, plan, rows, self.generated)
        self.anchors, self.sets = Anchors(setup, self.length), []
        self.tokens = min(EVAL_TOKENS, self.generated - setup.d["block_size"])
        per = setup.anchors // self.per              # anchors of a segment in one pass
        for s in range(0, self.tokens, per):
            offsets = (first - 1 + s + torch.arange(per)).clamp(max=self.length - setup.d["block_size"] - 1)
            self.sets.append(self.anchors.make(offsets.expand(self.per, -1)))

    @torch.no_grad()
    def __call__(self, blocks):
        blocks.plan.use(self.length)
        accepted = []
        for s in range(0, len(self.rows), self.setup.batch):
            passes = []
            for chosen in self.sets:
                with self.setup.autocast():
                    y, label, valid = blocks(self.rows[s:s + self.setup.batch], self.anchors.use(chosen))
                    passes.append(loss_of(y, label, valid)[1].view(-1, self.setup.anchors // self.per))
            accepted.append(torch.cat(passes, -1))
        accepted, out, per = torch.cat(accepted).tolist(), {}, self.real // len(self.names)
        for i, name in enumerate(self.names):
            made = steps = 0
            for a in accepted[i * per:(i + 1) * per]:
                at = 0
                while at < self.tokens:
                    n = min(a[at] + 1, self.tokens - at)
                    at, made, steps = at + n, made + n, steps + 1
            out[name] = round(made / steps, 3)
        out["mean"] = round(sum(out[n] for n in WORKLOADS) / len(WORKLOADS), 3)
        return out

    def sample(self, tok, i):
        row = self.rows.view(-1, self.length)[i, self.length - self.generated - 30:self.length - self.generated + 100]
        return tok.decode(row.tolist(), skip_special_tokens=False)


def run(setup):
    o = setup.o
    source = setup.source()
    net, drafter = setup.verifier(), nets.Drafter(setup.d).to(setup.device)
    setup.log(f"parameters {sum(p.numel() for p in drafter.parameters())}")
    lengths = [s for s, _ in setup.draft_segments]
    rows = Stream(source, o.seed + 2, lengths[0], o.workers, setup.n, DRAFT)
    plan = nets.Plan(setup.n, lengths, setup.device, setup.v)
    setup.compile_layers()
    r, probes = random.Random(o.seed), Probes(setup, source)
    blocks, optimizer = Blocks(setup, net, plan, drafter), Optimizer([drafter], muon=0.02, adam=3e-3, flat=0.4)
    exam = Exam(setup, source, net, plan, probes)
    for i, name in enumerate(exam.names):
        setup.log(name, repr(exam.sample(source.enc.tok, i * (exam.real // len(exam.names)))))
    anchors = {s: Anchors(setup, s) for s in lengths}
    sets = {s: [anchors[s].random(g, r) for _ in range(SETS if setup.cuda else 4)] for s, g in setup.draft_segments}
    lossf = setup.compile(loss_of)
    budget, n, made, generating = setup.seconds(290), 0, 0, 0.0
    start = saved = time.time()
    progress = 0.0
    while progress < 1:
        length, generated = setup.draft_segments[made % len(lengths)]
        plan.use(length)
        rows.set(length)
        g = time.time()
        pool = greedy(setup, net, plan, setup.put(rows.rows(setup.pool)), generated)
        if setup.cuda:
            torch.cuda.synchronize()
        generating += time.time() - g
        made += 1
        for passed in range(MOST):
            if passed >= LEAST and generating < SHARE * (time.time() - start):
                break
            for batch in pool[torch.randperm(len(pool), device=pool.device)].split(setup.batch):
                if (progress := (time.time() - start) / budget) >= 1:
                    break
                with setup.autocast():
                    y, label, valid = blocks(batch, anchors[length].use(r.choice(sets[length])))
                    loss, accepted = lossf(y, label, valid)
                loss.backward()
                optimizer.step(progress)
                n += 1
                if n % 200 == 0 or n == 1:
                    setup.log(f"step {n} loss {loss.item():.4f} accepted {accepted.float().mean().item():.3f} of "
                              f"{valid.float().sum(-1).mean().item():.2f} pools {made} generating {generating:.0f} s")
                if time.time() - saved > 75:
                    save(drafter, setup.out, "drafter")
                    setup.log("committed per forward", exam(blocks))
                    plan.use(length)
                    saved = time.time()
    rows.close()
    save(drafter, setup.out, "drafter")
    figures = exam(blocks)
    setup.log("committed per forward", figures)
    setup.note("drafter", steps=n, pools=made, committed_per_forward=figures)
