"""Hyper-connections: n residual streams X (n, d) in place of one, joined round each half f of a block by coefficients of the token.

    X' = Bᵀ X + Cᵀ f(A X),   A = σ(a) + ε (1, n),   C = 2 σ(c) (1, n),   B = Sinkhorn(softmax(b) + ε) (n, n)

(a, c, b) = s ⊙ (W · unit(flat(X))) + base, with one learned scale s each. Sinkhorn divides columns and rows by their sums in turn, so
that B is near doubly stochastic and mixing streams does not grow them. Sources: mHC, arXiv 2512.24880; DeepSeek-V4, arXiv 2606.19348.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from upslope.model.config import HyperConnections
from upslope.model.linear import undrawn
from upslope.model.norm import unit, wide

if TYPE_CHECKING:
    import numpy as np


def sinkhorn(b: Tensor, iterations: int, eps: float) -> Tensor:
    """b (..., n, n) > 0 with columns, then rows and columns `iterations` - 1 times, divided by their sums + eps."""
    b = b / (b.sum(-2, keepdim=True) + eps)
    for _ in range(iterations - 1):
        b = b / (b.sum(-1, keepdim=True) + eps)
        b = b / (b.sum(-2, keepdim=True) + eps)
    return b


class _Coefficients(nn.Module):
    """Σ sizes numbers per token, in groups of these sizes, from its streams: scale ⊙ (weight · unit(flat(X))) + base."""

    def __init__(self, config: HyperConnections, d_model: int, sizes: tuple[int, ...], device: torch.device | str | None = None) -> None:
        super().__init__()
        self.config, self.sizes = config, sizes
        self.weight = undrawn(sum(sizes), config.streams * d_model, device=device)
        self.base = undrawn(sum(sizes), device=device)
        self.scale = undrawn(len(sizes), device=device)

    def start(self, leaf: str, shape: tuple[int, ...], draw: np.random.Generator) -> Tensor | None:
        """Scales of one, a base of zero: streams start near their mean, X' ≈ mean(X) + f(n/2 · mean(X))."""
        return {"base": torch.zeros, "scale": torch.ones}[leaf](shape) if leaf != "weight" else None

    def groups(self, x: Tensor) -> list[Tensor]:
        """x (T, n, d) → per group (T, size), in float32 or wider."""
        with torch.autocast(x.device.type, enabled=False):
            raw = F.linear(unit(wide(x).flatten(1), self.config.norm_eps), self.weight)
            bases = self.base.split(self.sizes)
            return [s * part + b for s, part, b in zip(self.scale, raw.split(self.sizes, -1), bases)]

    def mean(self, x: Tensor, a: Tensor) -> Tensor:
        """A X: x (T, n, d), a (T, n) → (T, d)."""
        with torch.autocast(x.device.type, enabled=False):
            return ((torch.sigmoid(a) + self.config.eps)[:, None] @ wide(x))[:, 0]


class HyperConnection(_Coefficients):
    """The join round one half of a block: `read` gives the half's input, `write` adds its output."""

    def __init__(self, config: HyperConnections, d_model: int, device: torch.device | str | None = None) -> None:
        n = config.streams
        super().__init__(config, d_model, (n, n, n * n), device)

    def read(self, x: Tensor) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """x (T, n, d) → A X (T, d), and what `write` needs: C (T, n), B (T, n, n)."""
        c = self.config
        a, out, mix = self.groups(x)
        b = torch.softmax(mix.unflatten(-1, (c.streams, c.streams)), -1) + c.eps
        return self.mean(x, a), (2 * torch.sigmoid(out), sinkhorn(b, c.iterations, c.eps))

    def write(self, x: Tensor, out: Tensor, weights: tuple[Tensor, Tensor]) -> Tensor:
        """x (T, n, d), out = f(A X) (T, d) → X' (T, n, d)."""
        c, b = weights
        with torch.autocast(x.device.type, enabled=False):
            return torch.baddbmm(c[..., None] * wide(out)[:, None], b.mT, wide(x))


class Collapse(_Coefficients):
    """The streams' weighted sum A X before the final norm, with a of its own."""

    def __init__(self, config: HyperConnections, d_model: int, device: torch.device | str | None = None) -> None:
        super().__init__(config, d_model, (config.streams,), device)

    def forward(self, x: Tensor) -> Tensor:
        """x (T, n, d) → (T, d)."""
        return self.mean(x, self.groups(x)[0])
