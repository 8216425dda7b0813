"""Rotary position embedding, half-split layout. Source: Su et al. 2021, arXiv 2104.09864; layout of GPT-NeoX and Qwen3.

Pair i of a head is (x_i, x_{i + D/2}), rotated by the angle m · base^(-2i/D) at position m:
    y_i = x_i cos − x_{i+D/2} sin,   y_{i+D/2} = x_{i+D/2} cos + x_i sin.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor


class Angles(NamedTuple):
    """cos (T, 1, D) and signed sin (T, 1, D) = (−sin, sin), ready to be applied to (T, heads, D)."""

    cos: Tensor
    sin: Tensor


def angles(pos: Tensor, base: float, dim: int, dtype: torch.dtype = torch.float32) -> Angles:
    """The rotation at positions pos (T,) for heads of width `dim`.

    Computed in `dtype` (float32 or wider): in bfloat16, positions above 256 would collapse.
    """
    exponent = torch.arange(0, dim, 2, device=pos.device, dtype=dtype) / dim
    angle = pos.to(dtype)[:, None] * (1.0 / base**exponent)  # (T, D/2)
    cos, sin = angle.cos(), angle.sin()
    return Angles(torch.cat((cos, cos), -1)[:, None], torch.cat((-sin, sin), -1)[:, None])


def _swap(x: Tensor) -> Tensor:
    """The two halves of the last axis exchanged."""
    return x.roll(x.shape[-1] // 2, -1)


class _Rotate(torch.autograd.Function):
    """A rotation's gradient is the rotation by the opposite angle: nothing of the input needs to be kept."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        ctx.save_for_backward(cos, sin)
        return torch.addcmul(x * cos, _swap(x), sin)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        cos, sin = ctx.saved_tensors
        (grad,) = grads
        return torch.addcmul(grad * cos, _swap(grad), sin, value=-1), None, None


def rotate(x: Tensor, at: Angles) -> Tensor:
    """x (T, heads, D) rotated by its token's angles, same shape."""
    out: Tensor = _Rotate.apply(x, at.cos, at.sin)
    return out
