"""Muon: momentum whose singular values are pushed towards 1 before it is applied.

    M = mu M + (1 - mu) G;  O = NewtonSchulz((1 - mu) G + mu M)  (Nesterov; else of M)
    W = (1 - lr wd) W - lr 0.2 sqrt(max(A, B)) O, or lr sqrt(max(1, A / B)) O

The factor 1 - mu drops out: the iteration starts by dividing by the norm.
Matrices of equal shape, in either orientation, are orthogonalised as one stack.
Source: Jordan et al. 2024 (kellerjordan.github.io/posts/muon); Liu et al. 2025 (Moonlight, RMS matching).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Literal

import torch
from torch import Tensor

from upslope.config import UsageError
from upslope.optim.config import Muon
from upslope.optim.rounding import Kept, is_narrow, moments
from upslope.optim.shards import Shards, local

COEFFICIENTS = (3.4445, -4.7750, 2.0315)
POLISH = (2.0, -1.5, 0.5)


def newton_schulz(g: Tensor, steps: int, eps: float = 1e-7, polish: int = 0) -> Tensor:
    """Approximately U V^T of each matrix: X = aX + (bS + cS^2) X, S = X X^T, from X = G / ||G||_F.

    g: (..., A, B) with A <= B (the product is then on the short side). After `steps` the singular values lie in about [0.7, 1.2];
    `polish` further steps, x -> 2x - 1.5x^3 + 0.5x^5, have slope 0 at 1 and pull them there. Result in the dtype of g.
    """
    shape = g.shape
    x = g.reshape(-1, shape[-2], shape[-1])
    x = x / x.norm(dim=(-2, -1), keepdim=True).clamp_min(eps)
    for a, b, c in (COEFFICIENTS,) * steps + (POLISH,) * polish:
        s = torch.bmm(x, x.mT)
        x = torch.baddbmm(x, torch.baddbmm(s, s, s, beta=b, alpha=c), x, beta=a)
    return x.reshape(shape)


def rms_scale(rows: int, columns: int) -> float:
    """0.2 sqrt(max(A, B)): gives an orthogonal update the root mean square of an AdamW update."""
    return 0.2 * math.sqrt(max(rows, columns))


def update_scale(scale: Literal["rms", "original"], rows: int, columns: int) -> float:
    """The factor of an orthogonal update of a (rows, columns) matrix, rows = outputs."""
    return rms_scale(rows, columns) if scale == "rms" else math.sqrt(max(1.0, rows / columns))


class MuonPart:
    """The matrices that Muon updates; each slice of a parameter with more than two dimensions is a matrix.

    heads: with `split` = "heads", how many matrices the rows of a named parameter are; UsageError where they cannot be.
    shards: who holds the rest of the matrices, where parameters are parts of them; heads are then of the part that tp leaves.
    """

    def __init__(
        self, named: Mapping[str, Tensor], config: Muon, heads: Mapping[str, int] | None = None, seed: int = 0, shards: Shards | None = None
    ) -> None:
        self.named, self.config, self.shards, self.steps = dict(named), config, shards, 0
        self.held = {n: local(p) for n, p in named.items()}
        self.weights = Kept(self.held, "weight", config.narrow_weights, seed, shards)
        self.momentum = self._momentum(seed)
        self.shapes: dict[str, tuple[int, int]] = {}
        self.stacks: dict[tuple[int, int, float], list[str]] = {}
        for n, p in named.items():
            rows, columns = (p.shape if shards is None else shards.shape(n))[-2:]
            split = 1
            if heads is not None and config.split == "heads" and n in heads:
                split = heads[n] * (rows // p.shape[-2])  # of all heads the process has those of its rows
            if split < 1 or rows % split:
                raise UsageError(f"optim.split = 'heads': {n!r} has {rows} rows, which are not {split} heads\nway out: split = 'none'")
            rows //= split
            self.shapes[n] = rows, columns
            key = min(rows, columns), max(rows, columns), update_scale(config.scale, rows, columns)
            self.stacks.setdefault(key, []).append(n)

    def _momentum(self, seed: int) -> Kept:
        if self.config.state != "fp32":
            return moments(self.held, "momentum", self.config.state, seed, self.shards)
        zeros = {n: torch.zeros_like(p, dtype=torch.float32 if is_narrow(p.dtype) else p.dtype) for n, p in self.held.items()}
        return Kept(zeros, "momentum", "nearest", seed)

    @torch.no_grad()
    def step(self, lr: float) -> None:
        """One update from the gradients in `.grad`. lr: the learning rate of this step."""
        c = self.config
        self.steps += 1
        for (_, _, scale), members in self.stacks.items():
            names = [n for n in members if self.named[n].grad is not None]
            if not names:
                continue
            weights, m = self.weights.open(names), self.momentum.open(names)
            grads = [local(g).to(a.dtype) for g, a in zip((self.named[n].grad for n in names), m) if g is not None]
            torch._foreach_lerp_(m, grads, 1 - c.momentum)
            updates = torch._foreach_lerp(grads, m, c.momentum) if c.nesterov else m
            if self.shards is None:
                turned = self._orthogonal(names, updates)
            else:
                turned = self.shards.over_wholes(names, updates, self._orthogonal)
            if c.weight_decay:
                torch._foreach_mul_(weights, 1 - lr * c.weight_decay)
            torch._foreach_add_(weights, turned, alpha=-lr * scale)
            self.weights.close(names, weights, self.steps)
            self.momentum.close(names, m, self.steps)

    def _orthogonal(self, names: Sequence[str], updates: Sequence[Tensor]) -> list[Tensor]:
        """Whole updates of one stack, orthogonalised, in their own shapes."""
        c = self.config
        if not names:
            return []
        matrices = [u.reshape(-1, *self.shapes[n]) for n, u in zip(names, updates)]
        flat = [u.mT if u.shape[-2] > u.shape[-1] else u for u in matrices]
        stack = torch.cat(flat)
        done = newton_schulz(stack.bfloat16() if c.ns_dtype == "bf16" else stack, c.ns_steps, polish=c.ns_polish).to(stack.dtype)
        parts = torch.split(done, [len(f) for f in flat])
        return [(o.mT if m.shape[-2] > m.shape[-1] else o).reshape(u.shape) for o, m, u in zip(parts, matrices, updates)]

    def state(self) -> dict[str, Tensor]:
        """Momentum and masters by parameter name; the step count where rounding depends on it."""
        found = {f"{n}.momentum": t for n, t in self.momentum.tensors.items()}
        found |= {f"{n}.master": t for n, t in self.weights.masters.items()}
        counted = self.weights.random or self.momentum.random
        return found | ({"muon.steps": torch.tensor(self.steps, dtype=torch.int64)} if counted else {})

    def load(self, state: Mapping[str, Tensor]) -> None:
        """Restores `state()` exactly; KeyError for a missing name."""
        for key, mine in self.state().items():
            mine.copy_(state[key])
        if "muon.steps" in state:
            self.steps = int(state["muon.steps"])
