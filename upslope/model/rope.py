"""Rotary position embedding: layouts, partial rotation, scaling to longer contexts.

A pair of channels (a, b) at position m is rotated by the angle m · f_i: a' = a cos − b sin, b' = b cos + a sin. "half" pairs channel i with
i + D/2, "interleaved" 2i with 2i + 1; D is the number of rotated channels, f_i = base^(-2i/D) unless scaled.
Sources: Su et al. 2021, arXiv 2104.09864; scaling: see `Linear`, `Llama3` and `Yarn` in `model.config`.
"""

from __future__ import annotations

import math
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from upslope.model.config import Linear as LinearScaling
from upslope.model.config import Llama3, Rope, Yarn

Layout = Literal["half", "interleaved"]


class Angles(NamedTuple):
    """cos (T, 1, D) and signed sin (T, 1, D), ready to be applied to channels start ... start + D of (T, heads, head_dim)."""

    cos: Tensor
    sin: Tensor
    layout: Layout
    start: int

    def inverse(self) -> Angles:
        """The rotation back."""
        return self._replace(sin=-self.sin)


def frequencies(rope: Rope, width: int, dtype: torch.dtype = torch.float32, device: torch.device | str | None = None) -> Tensor:
    """f_i (width/2,): radians per position of each pair, scaled as the config says."""
    exponent = torch.arange(0, width, 2, device=device, dtype=dtype) / width
    plain = 1.0 / rope.base**exponent
    s = rope.scaling
    if s is None:
        return plain
    if isinstance(s, LinearScaling):
        return plain / s.factor
    if isinstance(s, Llama3):
        wavelength = 2 * math.pi / plain
        blend = (s.original / wavelength - s.low) / (s.high - s.low)
        mixed = (1 - blend) * plain / s.factor + blend * plain
        out = torch.where(wavelength > s.original / s.low, plain / s.factor, plain)
        return torch.where((wavelength >= s.original / s.high) & (wavelength <= s.original / s.low), mixed, out)
    low, high = _ramp(s, rope.base, width)
    ramp = ((torch.arange(width // 2, device=device, dtype=dtype) - low) / (high - low)).clamp(0, 1)
    return plain / s.factor * ramp + plain * (1 - ramp)


def _ramp(s: Yarn, base: float, width: int) -> tuple[float, float]:
    """The pairs between which YaRN blends from kept to interpolated."""

    def pair(turns: float) -> float:
        return width * math.log(s.original / (turns * 2 * math.pi)) / (2 * math.log(base))

    low, high = pair(s.beta_fast), pair(s.beta_slow)
    if s.truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, width - 1)
    return low, high if high != low else high + 0.001


def temperature(s: Yarn) -> float:
    """m = 0.1 · mscale · ln(factor) + 1, and 1 where nothing is stretched."""
    return 0.1 * s.mscale * math.log(s.factor) + 1.0 if s.factor > 1 else 1.0


def softmax_scale(rope: Rope) -> float:
    """The factor that scaling puts on attention logits: m² for a YaRN of temperature "softmax", else 1."""
    s = rope.scaling
    return temperature(s) ** 2 if isinstance(s, Yarn) and s.temperature == "softmax" else 1.0


def angles(pos: Tensor, rope: Rope, head_dim: int, dtype: torch.dtype = torch.float32) -> Angles:
    """The rotation at positions pos (T,) for heads of width `head_dim`.

    Computed in `dtype` (float32 or wider): in bfloat16, positions above 256 would collapse.
    """
    width = rope.width(head_dim)
    angle = pos.to(dtype)[:, None] * frequencies(rope, width, dtype, pos.device)  # (T, D/2)
    cos, sin = angle.cos(), angle.sin()
    s = rope.scaling
    if isinstance(s, Yarn) and s.temperature == "rotation":
        cos, sin = cos * temperature(s), sin * temperature(s)
    if rope.layout == "half":
        cos, sin = torch.cat((cos, cos), -1), torch.cat((-sin, sin), -1)
    else:
        cos, sin = cos.repeat_interleave(2, -1), torch.stack((-sin, sin), -1).flatten(-2)
    return Angles(cos[:, None], sin[:, None], rope.layout, 0 if rope.part == "leading" else head_dim - width)


def _swap(x: Tensor, layout: Layout) -> Tensor:
    """The two channels of each pair exchanged."""
    return x.roll(x.shape[-1] // 2, -1) if layout == "half" else x.unflatten(-1, (-1, 2)).flip(-1).flatten(-2)


def _turn(x: Tensor, cos: Tensor, sin: Tensor, layout: Layout) -> Tensor:
    return torch.addcmul(x * cos, _swap(x, layout), sin)


class _Rotate(torch.autograd.Function):
    """A rotation's gradient is the rotation by the opposite angle: nothing of the input needs to be kept."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, cos: Tensor, sin: Tensor, layout: Layout) -> Tensor:
        ctx.save_for_backward(cos, sin)
        ctx.layout = layout
        return _turn(x, cos, sin, layout)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None, None]:
        cos, sin = ctx.saved_tensors
        (grad,) = grads
        return torch.addcmul(grad * cos, _swap(grad, ctx.layout), sin, value=-1), None, None, None


def rotate(x: Tensor, at: Angles) -> Tensor:
    """x (T, heads, head_dim) with its rotating channels turned by its token's angles, same shape."""
    width, start = at.cos.shape[-1], at.start
    turn = _Rotate.apply if torch.is_grad_enabled() else _turn  # a decoded token is short of the time that the detour takes
    if width == x.shape[-1]:
        whole: Tensor = turn(x, at.cos, at.sin, at.layout)
        return whole
    before, turning, after = x.split((start, width, x.shape[-1] - start - width), -1)
    return torch.cat((before, turn(turning, at.cos, at.sin, at.layout), after), -1)
