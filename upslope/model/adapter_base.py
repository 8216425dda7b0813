"""Frozen matrices held in 16, 8 or 4 bits and widened on the fly: *emulated*, products run in the dtype of the activations."""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from upslope.model.adapter_config import NF4, Bf16, Int4, Int8

NF4_TAIL = 0.9677083  # the outermost quantile: 1 - (1/32 + 1/30)/2, arXiv 2305.14314 appendix E


@cache
def nf4_values() -> tuple[float, ...]:
    """The 16 values of NF4, ascending, -1 to 1, zero among them: quantiles of N(0, 1), 8 above and 7 below zero, over the largest."""

    def quantiles(count: int) -> Tensor:
        return torch.special.ndtri(torch.linspace(NF4_TAIL, 0.5, count + 1, dtype=torch.float64)[:-1])

    above, below = quantiles(8), -quantiles(7)
    values = torch.cat((below, torch.zeros(1, dtype=torch.float64), above)).sort().values
    return tuple((values / values.abs().max()).tolist())


class HeldMatrix(nn.Module):
    """A matrix or stack (..., out, in) in a format; calling it gives it back, rounded, in its first dtype or another.

    bf16: codes (..., out, in). int8: codes (..., out, in), scales (..., out, 1). 4 bits: codes (..., out, ⌈in/block⌉·block/2) uint8, the
    even weight in the low half; scales (..., out, ⌈in/block⌉). A scale is the largest magnitude of its weights; of zeros, it is 0.
    """

    codes: Tensor
    scales: Tensor | None

    def __init__(self, weight: Tensor, format: Bf16 | Int8 | Int4 | NF4) -> None:
        super().__init__()
        self.format, self.width, self.dtype = format, weight.shape[-1], weight.dtype
        scales: Tensor | None = None
        if isinstance(format, Bf16):
            codes = weight.detach().to(torch.bfloat16)
        elif isinstance(format, Int8):
            scales = weight.detach().float().abs().amax(-1, keepdim=True)
            codes = (weight.detach().float() / _safe(scales) * 127).round().to(torch.int8)
        else:
            parts = self._blocks(weight.detach().float())
            scales = parts.abs().amax(-1)
            nibbles = self._nearest(parts / _safe(scales)[..., None]).flatten(-2)
            nibbles = F.pad(nibbles, (0, nibbles.shape[-1] % 2))
            codes = nibbles[..., ::2] | nibbles[..., 1::2] << 4
        self.register_buffer("codes", codes)
        self.register_buffer("scales", scales)

    def _blocks(self, x: Tensor) -> Tensor:
        """(..., in) → (..., blocks, block), zeros at the end."""
        block = self.format.block  # type: ignore[union-attr]
        return F.pad(x, (0, -x.shape[-1] % block)).unflatten(-1, (-1, block))

    def _nearest(self, x: Tensor) -> Tensor:
        """Numbers of the nearest values in [-1, 1], uint8."""
        if isinstance(self.format, Int4):
            return ((x * 7).round() + 8).to(torch.uint8)
        values = torch.tensor(nf4_values(), dtype=x.dtype, device=x.device)
        return torch.bucketize(x, (values[1:] + values[:-1]) / 2).to(torch.uint8)

    def forward(self, dtype: torch.dtype | None = None) -> Tensor:
        """(..., out, in)."""
        dtype = dtype or self.dtype
        if self.scales is None:
            return self.codes.to(dtype)
        if isinstance(self.format, Int8):
            return (self.codes.to(self.scales.dtype) * (self.scales / 127)).to(dtype)
        nibbles = torch.stack((self.codes & 15, self.codes >> 4), -1).flatten(-2).int()
        steps = [(n - 8) / 7 for n in range(16)] if isinstance(self.format, Int4) else nf4_values()
        values = torch.tensor(steps, dtype=self.scales.dtype, device=self.scales.device)[nibbles]
        values = values[..., : self.scales.shape[-1] * self.format.block].unflatten(-1, (-1, self.format.block))  # type: ignore[union-attr]
        return (values * self.scales[..., None]).flatten(-2)[..., : self.width].to(dtype)

    def product(self, x: Tensor, bias: Tensor | None) -> Tensor:
        """x Wᵀ (+ b); the widened matrix lives during the product only, and is made again for the gradient of x."""
        y: Tensor = _Product.apply(x, self)
        return y if bias is None else y + bias.to(y.dtype)


def _safe(scales: Tensor) -> Tensor:
    return torch.where(scales > 0, scales, torch.ones_like(scales))


class _Product(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, held: HeldMatrix) -> Tensor:
        ctx.held, ctx.dtype = held, x.dtype
        return F.linear(x, held(x.dtype))

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        return (grads[0] @ ctx.held(grads[0].dtype)).to(ctx.dtype), None
