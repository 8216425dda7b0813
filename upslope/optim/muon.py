"""Muon: momentum whose singular values are pushed towards 1 before it is applied.

    M = mu M + (1 - mu) G;  O = NewtonSchulz((1 - mu) G + mu M)  (Nesterov; else of M)
    W = (1 - lr wd) W - lr 0.2 sqrt(max(A, B)) O

The factor 1 - mu drops out: the iteration starts by dividing by the norm.
Matrices of equal shape, in either orientation, are orthogonalised as one stack.
Source: Jordan et al. 2024 (kellerjordan.github.io/posts/muon); Liu et al. 2025 (Moonlight, RMS matching).
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from upslope.optim.config import Muon

COEFFICIENTS = (3.4445, -4.7750, 2.0315)


def newton_schulz(g: Tensor, steps: int, eps: float = 1e-7) -> Tensor:
    """Approximately U V^T of each matrix: X = aX + (bS + cS^2) X, S = X X^T, from X = G / ||G||_F.

    g: (..., A, B) with A <= B (the product is then on the short side). The result's singular values lie in about
    [0.7, 1.2], in the dtype of g.
    """
    a, b, c = COEFFICIENTS
    shape = g.shape
    x = g.reshape(-1, shape[-2], shape[-1])
    x = x / x.norm(dim=(-2, -1), keepdim=True).clamp_min(eps)
    for _ in range(steps):
        s = torch.bmm(x, x.mT)
        x = torch.baddbmm(x, torch.baddbmm(s, s, s, beta=b, alpha=c), x, beta=a)
    return x.reshape(shape)


def rms_scale(rows: int, columns: int) -> float:
    """0.2 sqrt(max(A, B)): gives an orthogonal update the root mean square of an AdamW update."""
    return 0.2 * math.sqrt(max(rows, columns))


class MuonPart:
    """The matrices that Muon updates; each slice of a parameter with more than two dimensions is a matrix."""

    def __init__(self, named: Mapping[str, Tensor], config: Muon) -> None:
        self.named, self.config = dict(named), config
        self.momentum = {n: torch.zeros_like(p) for n, p in named.items()}
        self.stacks: dict[tuple[int, int], list[str]] = {}
        for n, p in named.items():
            rows, columns = p.shape[-2:]
            self.stacks.setdefault((min(rows, columns), max(rows, columns)), []).append(n)

    @torch.no_grad()
    def step(self, lr: float) -> None:
        """One update from the gradients in `.grad`. lr: the learning rate of this step."""
        c = self.config
        for (short, long), members in self.stacks.items():
            names = [n for n in members if self.named[n].grad is not None]
            if not names:
                continue
            weights = [self.named[n] for n in names]
            grads = [p.grad for p in weights if p.grad is not None]
            m = [self.momentum[n] for n in names]
            torch._foreach_lerp_(m, grads, 1 - c.momentum)
            updates = torch._foreach_lerp(grads, m, c.momentum) if c.nesterov else m
            flat = [(u.mT if u.shape[-2] > u.shape[-1] else u).reshape(-1, short, long) for u in updates]
            stack = torch.cat(flat)
            done = newton_schulz(stack.bfloat16() if c.ns_dtype == "bf16" else stack, c.ns_steps).to(stack.dtype)
            if c.weight_decay:
                torch._foreach_mul_(weights, 1 - lr * c.weight_decay)
            parts = torch.split(done, [len(f) for f in flat])
            turned = [(o.mT if p.shape[-2] > p.shape[-1] else o).reshape(p.shape) for o, p in zip(parts, weights)]
            torch._foreach_add_(weights, turned, alpha=-lr * rms_scale(short, long))

    def state(self) -> dict[str, Tensor]:
        """Momentum by parameter name."""
        return {f"{n}.momentum": t for n, t in self.momentum.items()}

    def load(self, state: Mapping[str, Tensor]) -> None:
        """Restores `state()` exactly; KeyError for a missing name."""
        for n in self.named:
            self.momentum[n].copy_(state[f"{n}.momentum"])
