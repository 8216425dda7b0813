"""Number formats as data, and rounding to them, emulated: values stay in float32 or float64 but are those that the format holds.

Sources: IEEE 754; FP8 Formats arXiv 2209.05433; OCP Microscaling Formats v1.0 (E2M1, E8M0).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

Rounding = Literal["nearest-even", "stochastic"]


@dataclass(frozen=True)
class Format:
    """A binary format: (-1)^s · 2^(e - bias) · 1.m, and below the smallest normal number 2^(1 - bias) · 0.m.

    exponent, mantissa: bits. max: the largest finite value. has_inf: whether it has codes for ±∞. saturating: whether finite values
    beyond max become max; else they become ∞, or NaN where there is none. A scale format (signed = False) has neither sign nor zero.
    """

    name: str
    exponent: int
    mantissa: int
    bias: int
    max: float
    has_inf: bool
    saturating: bool
    signed: bool = True

    @property
    def low(self) -> int:
        """The exponent of the smallest normal number."""
        return 1 - self.bias if self.signed else -self.bias

    @property
    def tiny(self) -> float:
        """The smallest positive value."""
        return 2.0 ** (self.low - self.mantissa)

    @property
    def emax(self) -> int:
        """The exponent of `max`."""
        return math.frexp(self.max)[1] - 1


BF16 = Format("bf16", 8, 7, 127, 2.0**127 * (2 - 2.0**-7), has_inf=True, saturating=False)
FP16 = Format("fp16", 5, 10, 15, 65504.0, has_inf=True, saturating=False)
E5M6 = Format("e5m6", 5, 6, 15, 2.0**15 * (2 - 2.0**-6), has_inf=True, saturating=False)
E4M3 = Format("e4m3", 4, 3, 7, 448.0, has_inf=False, saturating=True)
E5M2 = Format("e5m2", 5, 2, 15, 57344.0, has_inf=True, saturating=True)
E2M1 = Format("e2m1", 2, 1, 1, 6.0, has_inf=False, saturating=True)
E8M0 = Format("e8m0", 8, 0, 127, 2.0**127, has_inf=False, saturating=True, signed=False)


def codes(format: Format) -> Tensor:
    """All finite values of a format that are not negative, in order, float64: code i is element i."""
    count = 2 ** (format.exponent + format.mantissa)
    field = torch.arange(count) >> format.mantissa
    fraction = (torch.arange(count) % 2**format.mantissa).double() / 2**format.mantissa
    if not format.signed:
        values = power_of_two(field - format.bias)
    else:
        values = (fraction + (field > 0)) * power_of_two(torch.clamp(field, min=1) - format.bias)
    return values[values <= format.max]


def power_of_two(exponent: Tensor) -> Tensor:
    """2^exponent in float64, exact for integers -1022..1023 (a library's pow and exp2 need not be)."""
    return ((exponent.long() + 1023) << 52).view(torch.float64)


def exponent_of(x: Tensor) -> Tensor:
    """floor(log2 |x|) of float64 values, int64, exact; -1023 for zeros and subnormal numbers, 1024 for ∞ and NaN."""
    return ((x.view(torch.int64) >> 52) & 0x7FF) - 1023


def _nearest(x: Tensor, format: Format) -> Tensor:
    """`round_to` of finite float32 values, in float32: adding 2^23 units of the last place and taking them away rounds to a whole one."""
    size = x.abs().clamp_(max=format.max)
    exponent = (size.view(torch.int32) & 0x7F800000).clamp_(min=(127 + format.low) << 23)
    shift = (exponent + ((23 - format.mantissa) << 23)).view(torch.float32)
    return size.add_(shift).sub_(shift).copysign_(x)


def round_to(x: Tensor, format: Format, mode: Rounding = "nearest-even", generator: torch.Generator | None = None) -> Tensor:
    """x rounded to values of `format`, emulated.

    nearest-even: to the nearest value, ties to the even code. stochastic: to a neighbour, up with probability
    (x - lower) / (upper - lower), so that E[round(x)] = x within ±max; the same generator state on the same device gives the same bits.
    NaN stays NaN; ±∞ stays where the format has it and is NaN where not, also where finite values saturate, so that it is found out.
    Returns float64 for float64 and float32 for all else. ValueError: stochastic without a generator.
    Source: Gupta et al. 2015 (stochastic); OCP FP8 v1.0 (saturation).
    """
    if mode == "nearest-even" and x.dtype == torch.float32 and format.signed and format.saturating and bool(x.isfinite().all()):
        return _nearest(x, format)
    wide = x.double()
    size = wide.abs()
    exponent = exponent_of(size).clamp(format.low, 1023)
    unit = power_of_two(exponent - format.mantissa)  # distance of neighbours
    if mode == "nearest-even":
        steps = torch.round(size / unit)
    else:
        if generator is None:
            raise ValueError("stochastic rounding needs a generator: precision.rounding.generator(seed, step, name)")
        if format.saturating:
            size = torch.where(size.isfinite(), size.clamp(max=format.max), size)  # else half of what lies above would round up, then down
        steps = torch.floor(size / unit)
        steps += torch.rand(x.shape, dtype=torch.float64, device=x.device, generator=generator) < size / unit - steps
    out = steps * unit
    beyond = format.max if format.saturating else torch.inf if format.has_inf else torch.nan
    out = torch.where(out > format.max, beyond, out)
    if format.signed:
        out = torch.where(size.isinf(), torch.inf if format.has_inf else torch.nan, out).copysign(wide)
    else:
        out = torch.where((wide < 0) | size.isinf(), torch.nan, out.clamp(min=format.tiny))
    return out.to(x.dtype if x.dtype == torch.float64 else torch.float32)
