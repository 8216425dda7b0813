"""RMS norm, y = x / sqrt(mean(x²) + eps) · g, statistics in at least float32. Source: Zhang & Sennrich 2019, arXiv 1910.07467."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from upslope.model.config import RMS

if TYPE_CHECKING:
    import numpy as np


def wide(x: Tensor) -> Tensor:
    """x in float32, or as it is if wider: for statistics, rotations and softmax."""
    return x if x.dtype in (torch.float32, torch.float64) else x.float()


class _RMS(torch.autograd.Function):
    """The norm with its gradient written out: on a CPU, the composite of small operators that autograd records costs twice as much."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, gain: Tensor, eps: float) -> Tensor:
        scale = x.square().mean(-1, keepdim=True).add_(eps).rsqrt_()  # a norm squared would round twice
        unit = x * scale
        ctx.save_for_backward(unit, scale, gain)
        return unit * gain

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, None]:
        unit, scale, gain = ctx.saved_tensors
        (grad,) = grads
        grad_gain = (grad * unit).flatten(0, -2).sum(0)
        g = grad * gain
        mean = (g * unit).mean(-1, keepdim=True)
        return torch.addcmul(g, unit, mean, value=-1).mul_(scale), grad_gain, None


def rms_norm(x: Tensor, gain: Tensor, eps: float) -> Tensor:
    """The norm over the last axis. x (..., D), gain (D,) → (..., D), float32 (float64 for float64 input)."""
    x = wide(x)
    if x.is_cpu and torch.is_grad_enabled():
        out: Tensor = _RMS.apply(x, gain, eps)
        return out
    return F.rms_norm(x, (x.shape[-1],), gain, eps)


def unit(x: Tensor, eps: float) -> Tensor:
    """The norm without a gain, over the last axis."""
    return F.rms_norm(wide(x), (x.shape[-1],), None, eps)


class RMSNorm(nn.Module):
    """The norm with a learned gain: the weight itself, or one plus the weight where config.gain is "zero"."""

    def __init__(self, width: int, config: RMS, device: torch.device | str | None = None) -> None:
        super().__init__()
        self.eps, self.offset = config.eps, config.gain == "zero"
        self.weight = nn.Parameter(torch.full((width,), 0.0 if self.offset else 1.0, device=device))

    def start(self, leaf: str, shape: tuple[int, ...], draw: np.random.Generator) -> Tensor:
        """A gain of one."""
        return torch.full(shape, 0.0 if self.offset else 1.0)

    def forward(self, x: Tensor) -> Tensor:
        """x (..., width) → the same shape, float32."""
        return rms_norm(x, 1 + self.weight if self.offset else self.weight, self.eps)
