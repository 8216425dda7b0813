"""Block-scaled quantisation of matrices, emulated: values of a format and one scale per tile, kept in float32 or float64.

Sources: DeepSeek-V3 arXiv 2412.19437 §3.3 (1×128 tiles, 128×128 blocks); OCP Microscaling Formats v1.0 (32 elements, E8M0);
NVFP4 arXiv 2509.25149 (16 elements, E4M3 scales under one FP32 scale).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from upslope.precision.formats import E4M3, E8M0, Format, Rounding, exponent_of, power_of_two, round_to

Scale = Literal["none", "real", "power-of-two", "mx", "two-level"]

TENSOR = (0, 0)
ROW = (1, 0)
HADAMARD = 16


@dataclass(frozen=True)
class Spec:
    """How a matrix is quantised.

    tile: (rows, columns) of the elements that share a scale, 0 = the whole axis; tiles at the end of an axis may be ragged.
    scale, with a = max |x| of a tile: "none" a cast; "real" a / max; "power-of-two" 2^ceil(log2(a / max)), which never saturates;
    "mx" 2^(floor(log2 a) - emax), whose largest elements may saturate; "two-level" E4M3(a / max · s) / s with s = max · 448 / amax(tensor).
    Powers of two stay within E8M0.
    """

    format: Format
    tile: tuple[int, int] = TENSOR
    scale: Scale = "real"


@dataclass(frozen=True)
class Quantized:
    """values (R, C): numbers of the format; scales: one per tile; x ≈ values · scales / outer. outer: a scalar, 1 but for "two-level"."""

    values: Tensor
    scales: Tensor
    outer: Tensor
    tile: tuple[int, int]

    def dequantize(self) -> Tensor:
        """values · scales / outer, (R, C)."""
        return self.values * _spread(self.scales, self.tile, self.values) / self.outer


def quantize(x: Tensor, spec: Spec, mode: Rounding = "nearest-even", generator: torch.Generator | None = None) -> Quantized:
    """A matrix x (R, C) in tiles, emulated; float64 for float64, float32 for all else.

    A tile of zeros has scale 1. A tile with NaN or ±∞ dequantises to NaN as a whole ("two-level": the tensor does, "none": the element does
    where the format has no ∞), so that a step that is not finite is found out. ValueError: not a matrix.
    """
    if x.ndim != 2:
        raise ValueError(f"quantize reads a matrix, got shape {tuple(x.shape)}: flatten the leading axes")
    x = x if x.dtype == torch.float64 else x.float()
    outer = x.new_ones(())
    tile = _whole(x, spec.tile)
    amax = _amax(x, tile)
    if spec.scale == "none" or not x.numel():
        return Quantized(round_to(x, spec.format, mode, generator), torch.ones_like(amax), outer, tile)
    if spec.scale == "two-level":
        outer = _outer(amax.amax(), spec.format)
        scales = round_to(amax / spec.format.max * outer, E4M3)
    else:
        scales = _scales(amax, spec)
    spread = _spread(scales, tile, x)
    scaled = torch.where(spread == 0, 0.0, x * outer / spread)  # a tile far below the tensor's largest: its E4M3 scale is 0, and so is it
    return Quantized(round_to(scaled, spec.format, mode, generator), scales, outer, tile)


def signs(seed: int) -> Tensor:
    """(16,) of ±1: the diagonal D of the random Hadamard transform; one fixed D is enough (arXiv 2509.25149 §4.2)."""
    bits = torch.randint(0, 2, (HADAMARD,), generator=torch.Generator().manual_seed(seed))
    return (2 * bits - 1).double()


def hadamard(x: Tensor, diagonal: Tensor) -> Tensor:
    """x D H / 4 on each run of 16 columns, (R, C) → (R, C rounded up to 16s with zeros).

    H / 4 is orthonormal: a bᵀ is the same with both transformed alike, while an outlier is spread over its run. H: Sylvester's matrix.
    """
    h = torch.ones(1, 1, dtype=x.dtype, device=x.device)
    while len(h) < HADAMARD:
        h = torch.cat([torch.cat([h, h], 1), torch.cat([h, -h], 1)])
    runs = F.pad(x, (0, -x.shape[1] % HADAMARD)).unflatten(1, (-1, HADAMARD))
    return (runs * diagonal.to(x) @ h / HADAMARD**0.5).flatten(1)


def _whole(x: Tensor, tile: tuple[int, int]) -> tuple[int, int]:
    """The tile with 0 replaced by the length of its axis."""
    return tile[0] or max(x.shape[0], 1), tile[1] or max(x.shape[1], 1)


def _amax(x: Tensor, tile: tuple[int, int]) -> Tensor:
    """max |x| per tile; NaN where a tile holds NaN or ±∞."""
    rows, columns = tile
    padded = F.pad(x.abs(), (0, -x.shape[1] % columns, 0, -x.shape[0] % rows))
    amax = padded.unflatten(1, (padded.shape[1] // columns, columns)).unflatten(0, (padded.shape[0] // rows, rows)).amax((1, 3))
    return torch.where(amax.isfinite(), amax, torch.nan)


def _spread(scales: Tensor, tile: tuple[int, int], like: Tensor) -> Tensor:
    """One scale per element."""
    rows, columns = tile
    return scales.repeat_interleave(rows, 0)[: like.shape[0]].repeat_interleave(columns, 1)[:, : like.shape[1]]


def _outer(amax: Tensor, format: Format) -> Tensor:
    """The encoding scale of a tensor: its largest element becomes max · 448, so that its tile's scale is 448."""
    encode = (format.max * E4M3.max / amax).clamp(max=torch.finfo(torch.float32).max)
    return torch.where(amax == 0, 1.0, encode)


def _scales(amax: Tensor, spec: Spec) -> Tensor:
    """Decoding scales of tiles of one level; 1 for zeros, NaN for NaN."""
    if spec.scale == "real":
        scales = (amax / spec.format.max).clamp(min=torch.finfo(torch.float32).tiny)
    else:
        ratio = amax.double() if spec.scale == "mx" else amax.double() / spec.format.max
        exponent = exponent_of(ratio)
        if spec.scale == "mx":
            exponent = exponent - spec.format.emax
        else:
            exponent = exponent + (ratio > power_of_two(exponent.clamp(-1022, 1023)))
        scales = power_of_two(exponent.clamp(-E8M0.bias, E8M0.emax)).to(amax.dtype)
    scales = torch.where(amax == 0, 1.0, scales)
    return torch.where(amax.isnan(), torch.nan, scales)
