"""Stage `ftheta`: the map alone, for the verifier as it was saved. Latents come from a restored run, as in the engine:
the first pass reads the native taps, the second the taps of the first. Loss: the mean over segments of
log KL(native || second pass), so that text that s5 hardly harms is mended by as much, in proportion, as code."""
import time

import torch

import nets
from common import load, save
from evaluate import Probes
from optim import Optimizer
from stream import FTHETA, Stream
from verifier import divergences


def run(setup):
    o = setup.o
    source = setup.source()
    net = setup.verifier()
    f = load(nets.FTheta(setup.v, setup.rank), o.source, "f_theta", setup.device)
    rows = Stream(source, o.seed + 1, setup.segments[1], o.workers, setup.n, FTHETA)
    plan = nets.Plan(setup.n, setup.segments, setup.device, setup.v)
    setup.compile_layers()
    kl = setup.compile(lambda x, y: divergences(net.logits(x), net.logits(y)))
    probes, optimizer, few = Probes(setup, source), Optimizer([f], muon=0.005, adam=1e-3, flat=0.3, warm=20), max(1, setup.batch // 4)
    plan.use(setup.segments[1])
    budget, n, start = setup.seconds(75), 0, time.time()
    while (progress := (time.time() - start) / budget) < 1:
        ids = setup.put(rows.rows(few))
        with setup.autocast():
            with torch.no_grad():
                x, taps = net(ids, plan)
                taps = net(ids, plan, "restored", f(taps))[1]
            y, _ = net(ids, plan, "restored", f(taps))
            each = kl(x, y).view(-1, plan.length).mean(-1)
            loss = (each + 1e-6).log().mean()
        loss.backward()
        optimizer.step(progress)
        n += 1
        if n % 100 == 0 or n == 1:
            setup.log(f"step {n} KL {each.mean().item():.6f}, geometric mean {loss.exp().item():.6f}")
    rows.close()
    save(f, setup.out, "f_theta")
    setup.log("saved")
    figures = probes.all(net, f, plan)
    setup.log(figures)
    setup.note("ftheta", steps=n, figures=figures)
