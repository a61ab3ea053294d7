"""Stage `verifier`: next-token loss on all text, with segments that grow from 512 to 16384 ids; from the middle on also
KL(native || restored) on a quarter of the rows, through f_theta and the verifier both, so that the rows of sliding
layers become what a latent of 256 values can say."""
import time

import torch
import torch.nn.functional as F

import nets
from common import load, save
from evaluate import Probes
from optim import Optimizer
from stream import TURN_ID, Stream

SHARES, SETTLED = (0.28, 0.20, 0.40, 0.12), (0.85, 0.15)      # of the time, for each length of a segment
RESTORED_FROM, RESTORED_FULL, RESTORED_WEIGHT = 0.45, 0.55, 2.0      # its weight grows between the two
TURNS = 4.0                                          # `settle`: what the restored KL of a segment with turns counts for


def labels(ids, segment):
    """The next id of the same segment, or -100."""
    y = ids.roll(-1, 1)
    y[:, segment - 1::segment] = -100
    return y


def divergences(native, restored):
    """KL in nats of two sets of logits, for each token."""
    p, q = torch.log_softmax(native, -1), torch.log_softmax(restored, -1)
    return (p.exp() * (p - q)).sum(-1)


def run(setup, settle=False):
    o = setup.o
    source = setup.source(anew=settle)
    setup.log(f"library {len(source.code)} tokens, {len(source.w.library)} words")
    lengths, shares = setup.segments, SHARES
    if settle:
        lengths, shares = lengths[-2:], SETTLED
    ends = [sum(shares[:i + 1]) / sum(shares) for i in range(len(shares))]
    rows = Stream(source, o.seed + 3 * settle, lengths[0], o.workers, setup.n)
    plan = nets.Plan(setup.n, setup.segments, setup.device, setup.v)
    plan.use(lengths[0])
    net, f = nets.Verifier(setup.v).to(setup.device), nets.FTheta(setup.v, setup.rank).to(setup.device)
    setup.log(f"parameters {sum(p.numel() for p in net.parameters())}, f_theta {sum(p.numel() for p in f.parameters())}")
    optimizer, few, early = Optimizer([net, f]), max(1, setup.batch // 4), 0.0
    if settle:
        load(net, o.source, "verifier", setup.device), load(f, o.source, "f_theta", setup.device)
        optimizer, early = Optimizer([net, f], muon=0.01, adam=1.5e-3, flat=0.3), 1.0
    setup.compile_layers()
    cross_entropy = setup.compile(lambda x, y: F.cross_entropy(net.logits(x).flatten(0, 1), y.flatten(), ignore_index=-100))
    kl = setup.compile(lambda x, y: divergences(net.logits(x).detach(), net.logits(y)))
    probes = Probes(setup, source)

    def step(ids, weight):
        with setup.autocast():
            x, taps = net(ids, plan)
            loss = cross_entropy(x, labels(ids, plan.length))
            extra = torch.zeros((), device=setup.device)
            if weight > 0:
                y, _ = net(ids[:few], plan, "restored", f([t[:few] for t in taps]))
                extra = kl(x[:few], y).view(-1, plan.length).mean(-1)
                if settle:
                    extra = extra * (1 + (TURNS - 1) * (ids[:few].view(-1, plan.length) == TURN_ID).any(-1))
                extra = extra.mean()
        (loss + weight * extra).backward()
        return loss.detach(), extra.detach()

    budget, at, n, seen, waited = setup.seconds(150 if settle else 500), 0, 0, 0, 0.0
    start, saved = time.time(), time.time()
    while (progress := (time.time() - start) / budget) < 1:
        if progress >= ends[at]:
            at += 1
            rows.set(lengths[at])
            plan.use(lengths[at])
            setup.log(f"segments of {plan.length} from step {n}")
        w = time.time()
        ids = setup.put(rows.rows(setup.batch))
        waited += time.time() - w
        loss, extra = step(ids, RESTORED_WEIGHT * min(1, max(early, (progress - RESTORED_FROM) / (RESTORED_FULL - RESTORED_FROM))))
        optimizer.step(progress)
        n, seen = n + 1, seen + ids.numel()
        if n % 200 == 0 or n == 1:
            setup.log(f"step {n} loss {loss.item():.4f} restored KL {extra.item():.4f} {seen / (time.time() - start) / 1e3:.0f} k tokens/s, "
                      f"waited {waited:.0f} s")
        if time.time() - saved > 150 and not settle:
            save(net, setup.out, "verifier")
            save(f, setup.out, "f_theta")
            setup.log(probes.quick(net, f, plan))
            plan.use(lengths[at])
            saved = time.time()
    rows.close()
    save(net, setup.out, "verifier")
    save(f, setup.out, "f_theta")
    setup.log("saved")
    figures = probes.all(net, f, plan)
    setup.log(figures)
    setup.note("settle" if settle else "verifier", steps=n, tokens=seen, figures=figures)
