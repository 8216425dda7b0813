"""Matrices and embeddings that start as NaN instead of drawing from torch's global generator: a weight never drawn is found out."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from upslope.model.norm import wide


class Linear(nn.Linear):
    """x Wᵀ (+ b); W (out, in). Undrawn until initialised or loaded."""

    def __init__(self, width_in: int, width_out: int, device: torch.device | str | None = None, bias: bool = False) -> None:
        super().__init__(width_in, width_out, bias=bias, device=device)

    def reset_parameters(self) -> None:
        """Marks the weights as undrawn."""
        for p in self.parameters():
            nn.init.constant_(p, math.nan)


class WideLinear(Linear):
    """A matrix whose product is taken in float32 or wider whatever the autocast, and whose weights stay so: routers, indexer weights."""

    def forward(self, x: Tensor) -> Tensor:
        """x (..., in) → (..., out), in float32 or wider."""
        with torch.autocast(x.device.type, enabled=False):
            x = wide(x)
            return F.linear(x, self.weight.to(x.dtype), None if self.bias is None else self.bias.to(x.dtype))


class Embedding(nn.Embedding):
    """A row per token, (vocab, d). Undrawn until initialised or loaded."""

    def __init__(self, rows: int, width: int, device: torch.device | str | None = None) -> None:
        super().__init__(rows, width, device=device)

    def reset_parameters(self) -> None:
        """Marks the weights as undrawn."""
        nn.init.constant_(self.weight, math.nan)


def undrawn(*shape: int, device: torch.device | str | None = None) -> nn.Parameter:
    """A parameter of this shape, marked as undrawn. The last two axes of a stack are (out, in)."""
    return nn.Parameter(torch.full(shape, math.nan, device=device))


def vector(value: Tensor) -> nn.Parameter:
    """A parameter that starts at a value of its own, whatever the init scheme."""
    return nn.Parameter(value)
