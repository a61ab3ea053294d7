"""Muon for matrices (also stacks of them), AdamW for the rest, and the schedule that both follow."""
import torch


def orthogonal(g, steps=5):
    """Newton-Schulz iteration toward the nearest matrix with equal singular values, over the last two dimensions."""
    x = g.bfloat16() if g.is_cuda else g
    turned = x.shape[-2] > x.shape[-1]
    if turned:
        x = x.mT
    x = x / (x.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    for _ in range(steps):
        a = x @ x.mT
        x = 3.4445 * x + (-4.7750 * a + 2.0315 * a @ a) @ x
    return x.mT if turned else x


class Muon(torch.optim.Optimizer):
    """Matrices of one shape are stepped together."""

    def __init__(self, parameters, lr=0.02, momentum=0.95, weight_decay=0.01):
        super().__init__(list(parameters), dict(lr=lr, momentum=momentum, weight_decay=weight_decay))

    @torch.no_grad()
    def step(self):
        for group in self.param_groups:
            shapes = {}
            for p in group["params"]:
                if p.grad is not None:
                    shapes.setdefault(p.shape, []).append(p)
            for shape, ps in shapes.items():
                moments = [self.state[p].setdefault("momentum", torch.zeros_like(p)) for p in ps]
                grads = [p.grad for p in ps]
                torch._foreach_lerp_(moments, grads, 1 - group["momentum"])
                ahead = torch._foreach_lerp(grads, moments, group["momentum"])
                update = orthogonal(torch.stack(ahead)).to(ps[0].dtype).unbind(0)
                torch._foreach_mul_(ps, 1 - group["lr"] * group["weight_decay"])
                torch._foreach_add_(ps, list(update), alpha=-group["lr"] * max(1, shape[-2] / shape[-1]) ** 0.5)


class Optimizer:
    """step(progress): progress in 0 .. 1 is the share of the run that is over; at first a short warm-up, at last a fall."""

    def __init__(self, modules, muon=0.02, adam=3e-3, flat=0.4, warm=200):
        named = [(n, p) for m in modules for n, p in m.named_parameters()]
        is_matrix = lambda n, p: p.ndim >= 2 and not any(s in n for s in ("embed", "router"))
        self.rest = [p for n, p in named if not is_matrix(n, p)]
        self.base = muon, adam
        self.flat, self.warm, self.n = flat, warm, 0
        self.muon = Muon([p for n, p in named if is_matrix(n, p)])
        self.adam = torch.optim.AdamW(self.rest, betas=(0.9, 0.95), weight_decay=0.0)

    def step(self, progress):
        k = min(1, (self.n + 1) / self.warm) * (1 if progress < self.flat else max(0.02, (1 - progress) / (1 - self.flat)))
        torch.nn.utils.clip_grad_norm_(self.rest, 1.0)
        for optimizer, base in zip((self.muon, self.adam), self.base):
            for g in optimizer.param_groups:
                g["lr"] = base * k
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        self.n += 1
