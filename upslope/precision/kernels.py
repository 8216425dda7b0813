"""Products of quantised matrices by the hardware's scaled kernels, where torch has them; elsewhere the formats stay emulated.

Operands are the codes and scales of `precision.quantize`, laid out as `torch.nn.functional.scaled_mm` reads them. It has kernels for

    FP8, a scale per row (RowWise; TensorWise is the case of equal ones): CUDA capability 8.9 or above, and a CPU
    FP8, tiles of 1×128 by such tiles or by blocks of 128×128 (BlockWise1x128, BlockWise128x128): 9.0 alone
    MXFP8, tiles of 1×32 with E8M0 scales (BlockWise1x32): 10.0 or above
    MXFP4, the same: 10.x, where torch is built with MSLK; results are bf16
    NVFP4, tiles of 1×16 with E4M3 scales and one of the tensor (BlockWise1x16, TensorWise): 10.0 or above

all with the summed axis last in both operands, as `precision.recipe` has them, so that each format reaches all three products of a linear
map, the weight gradient in tiles of 128×1 included. Partial sums are the hardware's: FP8 of 9.0 adds in less than float32 within 128
products (arXiv 2412.19437 §3.3.2). Not used: ROCm, E5M2 by E5M2. Before a layout is used on a device, a small product is compared with the
emulated one; a kernel that fails is not used. Not run on a CUDA device so far; rows have been run on a CPU.

Sources: `torch._meta_registrations` of torch 2.13 and aten/native/cuda/ScaledBlas.cpp of about that time; cuBLAS manual, layouts of 1D
block scaling factors.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.functional import ScalingType, SwizzleType, scaled_mm

from upslope.precision.formats import E2M1, E4M3, E5M2, E8M0, codes, exponent_of
from upslope.precision.quantize import Quantized, Spec, quantize

Tiling = Literal["row", "1x128", "128x128", "1x32", "1x16"]
Layout = Literal["fp8 rows", "fp8 tiles of 128", "mxfp8", "mxfp4", "nvfp4"]

SCALING: dict[Tiling, tuple[ScalingType, ...]] = {
    "row": (ScalingType.RowWise,),
    "1x128": (ScalingType.BlockWise1x128,),
    "128x128": (ScalingType.BlockWise128x128,),
    "1x32": (ScalingType.BlockWise1x32,),
    "1x16": (ScalingType.BlockWise1x16, ScalingType.TensorWise),
}
NEEDS: dict[Layout, str] = {
    "fp8 rows": "CUDA capability 8.9 or above, or a CPU",
    "fp8 tiles of 128": "CUDA capability 9.0",
    "mxfp8": "CUDA capability 10.0 or above",
    "mxfp4": "CUDA capability 10.x",
    "nvfp4": "CUDA capability 10.0 or above",
}
AGREES = 0.01
"""Largest error by norm of a kernel's trial product: bf16 results and short accumulators stay below, scales out of place do not."""


@dataclass(frozen=True)
class Scaled:
    """A matrix (R, K) as a kernel reads it, summed axis last, padded with zeros to whole tiles.

    codes: float8 (R', K'), or pairs of FP4 (R', K'/2), the first in the low bits. scales: decoding factors, in the layout that `tiling`
    asks for; their product scales a code. rows: R.
    """

    codes: Tensor
    scales: tuple[Tensor, ...]
    tiling: Tiling
    rows: int


Multiply = Callable[[Scaled, Scaled], Tensor]


def multiply(a: Scaled, b: Scaled) -> Tensor:
    """a (M, K), b (N, K) → a bᵀ (M, N) by the scaled kernel; float32, MXFP4 bf16."""
    swizzled = [SwizzleType.SWIZZLE_32_4_4] if a.tiling in ("1x32", "1x16") else [SwizzleType.NO_SWIZZLE]
    order = swizzled + [SwizzleType.NO_SWIZZLE] * (len(a.scales) - 1)
    out = scaled_mm(
        a.codes,
        b.codes.t(),
        list(a.scales),
        list(SCALING[a.tiling]),
        [s.t() for s in b.scales] if b.tiling == "row" else list(b.scales),
        list(SCALING[b.tiling]),
        order,
        order,
        output_dtype=torch.bfloat16 if a.tiling == "1x32" and a.codes.dtype == torch.float4_e2m1fn_x2 else torch.float32,
    )
    return out[: a.rows, : b.rows]


def tiling_of(spec: Spec) -> Tiling | None:
    """How a kernel would read the scales of this quantisation; None: none does."""
    if spec.format in (E4M3, E5M2):
        if spec.tile in ((0, 0), (1, 0)) and spec.scale != "two-level":
            return "row"
        if spec.tile == (1, 32) and spec.scale in ("mx", "power-of-two"):
            return "1x32"
        if spec.scale in ("real", "power-of-two", "mx"):
            return "1x128" if spec.tile == (1, 128) else "128x128" if spec.tile == (128, 128) else None
    if spec.format == E2M1:
        if spec.tile == (1, 32) and spec.scale in ("mx", "power-of-two"):
            return "1x32"
        if spec.tile in ((1, 16), (16, 16)) and spec.scale == "two-level":
            return "1x16"
    return None


def layout_of(a: Spec | None, b: Spec | None) -> Layout | None:
    """The kernel for a product a bᵀ of matrices quantised so; None: there is none, on any device."""
    if a is None or b is None or a.format == b.format == E5M2 or (a.format == E2M1) != (b.format == E2M1):
        return None
    pair = tiling_of(a), tiling_of(b)
    if pair == ("row", "row"):
        return "fp8 rows" if b.format == E4M3 else None
    if set(pair) <= {"1x128", "128x128"} and "1x128" in pair:
        return "fp8 tiles of 128"
    if pair == ("1x32", "1x32"):
        return "mxfp4" if a.format == E2M1 else "mxfp8"
    return "nvfp4" if pair == ("1x16", "1x16") else None


def has(layout: Layout, capability: tuple[int, int] | None) -> bool:
    """Whether devices of a CUDA capability have the kernel; None: a CPU."""
    if capability is None:
        return layout == "fp8 rows"
    if layout == "fp8 rows":
        return capability >= (8, 9)
    if layout == "fp8 tiles of 128":
        return capability[0] == 9
    return capability[0] == 10 if layout == "mxfp4" else capability[0] >= 10


@cache
def lacking(a: Spec | None, b: Spec | None, device: torch.device) -> str:
    """Why the product a bᵀ of matrices quantised so has no kernel on a device; "": it has one, which agrees with the emulated product."""
    layout = layout_of(a, b)
    if a is None or b is None or layout is None:
        return f"no kernel multiplies {_said(a)} by {_said(b)}"
    if device.type not in ("cpu", "cuda") or (device.type == "cuda" and (torch.version.hip or not torch.cuda.is_available())):
        return f"{layout} needs {NEEDS[layout]}; there is no CUDA device {device}"
    capability = None if device.type == "cpu" else torch.cuda.get_device_capability(device)
    if not has(layout, capability):
        return f"{layout} needs {NEEDS[layout]}; this is {'a CPU' if capability is None else f'{capability[0]}.{capability[1]}'}"
    return trial(a, b, device)


def trial(a: Spec, b: Spec, device: torch.device, by: Multiply = multiply) -> str:
    """What is wrong with a kernel on a small product of uneven matrices; "": nothing."""
    with torch.no_grad(), torch.autocast(device.type, enabled=False):
        x, w = (_uneven(rows, 400, device) for rows in (150, 170))
        p, q = quantize(x, a), quantize(w, b)
        want = p.dequantize().double() @ q.dequantize().double().T
        try:
            found = by(encode(p, a), encode(q, b)).double()
        except (RuntimeError, ValueError) as error:
            return f"torch refuses {layout_of(a, b)}: {(str(error).splitlines() or [type(error).__name__])[0]}"
        off = ((found - want).norm() / want.norm()).item()
    return "" if off < AGREES else f"the kernel of {layout_of(a, b)} is off by {off:.3g} on a trial product"


def encode(q: Quantized, spec: Spec) -> Scaled:
    """A quantised matrix (R, K) in the layout of its kernel: the same codes and scales. ValueError: no kernel reads it.

    R' is R rounded up to 16s, of blocks to 128s; K' is K rounded up to 128s. A scale that is NaN stays so, as do its products.
    """
    tiling = tiling_of(spec)
    if tiling is None:
        raise ValueError(f"no kernel reads {_said(spec)}")
    rows, width = q.values.shape
    values = F.pad(q.values, (0, -width % 128, 0, -rows % (128 if tiling == "128x128" else 16)))
    packed = _pairs(values) if spec.format == E2M1 else values.to(torch.float8_e4m3fn if spec.format == E4M3 else torch.float8_e5m2)
    return Scaled(packed, _scales(q, tiling, len(values)), tiling, rows)


def swizzle(scales: Tensor) -> Tensor:
    """Scales (R, C), R in 128s and C in 4s → flat: tiles of 128×4 in turn, each with scale (r, c) at 16 (r mod 32) + 4 ⌊r/32⌋ + c."""
    rows, columns = scales.shape
    return scales.view(rows // 128, 4, 32, columns // 4, 4).permute(0, 3, 2, 1, 4).reshape(-1)


def _scales(q: Quantized, tiling: Tiling, padded: int) -> tuple[Tensor, ...]:
    rows = len(q.values)
    if tiling == "128x128":
        blocks = F.pad(q.scales.float(), (0, -q.scales.shape[1] % 4), value=1.0)
        return (blocks.contiguous().t(),)
    scales = q.scales.repeat_interleave(q.tile[0], 0)[:rows] if q.tile[0] != 1 else q.scales
    if tiling in ("row", "1x128"):
        return (F.pad(scales.float(), (0, 0, 0, padded - rows), value=1.0).t().contiguous().t(),)
    columns = padded_width(q.values.shape[1]) // (32 if tiling == "1x32" else 16)
    scales = F.pad(scales, (0, columns - scales.shape[1], 0, -rows % 128), value=1.0)
    if tiling == "1x32":
        bits = torch.where(scales.isnan(), 255, exponent_of(scales.double()) + E8M0.bias).to(torch.uint8)
        return (swizzle(bits).view(torch.float8_e8m0fnu),)
    return swizzle(scales.to(torch.float8_e4m3fn)), (1.0 / q.outer).float()


def padded_width(width: int) -> int:
    """The length that a summed axis is padded to."""
    return width + -width % 128


def _pairs(values: Tensor) -> Tensor:
    """Values of E2M1 (R, K) as 4-bit codes, two a byte, the first in the low bits, (R, K/2); NaN, which E2M1 lacks, as 0."""
    table = codes(E2M1).to(values)
    size = torch.bucketize(values.abs().nan_to_num(0.0), table).to(torch.uint8)
    bits = size | (values.signbit().to(torch.uint8) << 3)
    return (bits[:, ::2] | bits[:, 1::2] << 4).contiguous().view(torch.float4_e2m1fn_x2)


def _uneven(rows: int, columns: int, device: torch.device) -> Tensor:
    """Normal numbers whose rows and columns differ by powers of two, so that no two tiles share a scale."""
    random = torch.Generator().manual_seed(rows)
    x = torch.randn(rows, columns, generator=random)
    for axis in ((rows, 1), (1, columns)):
        x = x * torch.exp2(2 * torch.randn(axis, generator=random))
    return x.to(device)


def _said(spec: Spec | None) -> str:
    if spec is None:
        return "a matrix that is not quantised"
    rows, columns = ("∞" if side == 0 else str(side) for side in spec.tile)
    return f"{spec.format.name} in tiles of {rows}×{columns} with {spec.scale} scales"
