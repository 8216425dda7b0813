"""Which number formats a step computes in. Weights, gradients and optimizer state are float32 in all."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from upslope.config import Config, Exec

Numerics = Literal["fp32", "bf16", "fp16"]
Kernels = Literal["auto", "emulated", "real"]


class Rules(Config):
    """Which linear maps are quantised: those whose module name matches `include` and not `exclude`, outside the first and last layers.

    Names are shell patterns of the whole name, such as "*.mixer.o"; a layer's number is the first one in a name ("blocks.3.ffn.up").
    Maps with a forward pass of their own (routers, indexer weights), embeddings, norms and tables are never quantised.
    first: layers kept at the start. last: share of the layers kept at the end, rounded up.
    Source: arXiv 2509.25149 §4.1 (about 15 % of linear layers, most of them the last).
    """

    include: tuple[str, ...] = ("blocks.*",)
    exclude: tuple[str, ...] = ()
    first: int = Field(default=0, ge=0)
    last: float = Field(default=0.0, ge=0, le=1)


class Plain(Config):
    """No quantisation. fp32: the dtype of the weights; bf16, fp16: matrix products in that type under autocast, the rest in float32."""

    kind: Literal["plain"] = "plain"
    numerics: Numerics = "bf16"


class _Quantized(Config):
    """What quantised formats share. numerics: of everything that is not quantised. rules: what is.

    kernels: "real": the hardware's scaled products, or an error where it has none; "emulated": quantised and dequantised operands,
    multiplied in float32; "auto": real where `precision.products.supported`, else emulated. The operands are the same to the bit.
    """

    numerics: Numerics = "bf16"
    rules: Rules = Rules()
    kernels: Annotated[Kernels, Exec()] = "auto"


class Fp8V3(_Quantized):
    """DeepSeek-V3's FP8: E4M3 throughout, activations and gradients in 1×128 tiles, weights in 128×128 blocks, scale amax / 448.

    power_of_two: patterns of the maps whose activations have scales that are powers of two (V3: inputs after attention; ("*",): all).
    retile: what the weight gradient re-tiles over tokens, 128×1: the "quantized" activations that V3 keeps, or the "original" ones.
    tile: elements per tile, and per side of a block. Emulated partial sums are float32 throughout, V3's from every 128 products on.
    Source: arXiv 2412.19437 §3.3.
    """

    kind: Literal["fp8_v3"] = "fp8_v3"
    power_of_two: tuple[str, ...] = ("*.mixer.o",)
    retile: Literal["quantized", "original"] = "quantized"
    tile: int = Field(default=128, ge=1)


class MxFp8(_Quantized):
    """MXFP8: tiles of 32 along the summed axis, power-of-two scales.

    gradients: format of the gradients that arrive; the rest is E4M3. round_up: scales 2^ceil(log2(amax / max)), which never saturate, in
    place of the specification's 2^(floor(log2 amax) - emax). Source: OCP Microscaling Formats v1.0; round_up: arXiv 2506.08027.
    """

    kind: Literal["mxfp8"] = "mxfp8"
    gradients: Literal["e4m3", "e5m2"] = "e4m3"
    round_up: bool = False


class MxFp4(_Quantized):
    """MXFP4: E2M1 in tiles of 32 along the summed axis, power-of-two scales.

    stochastic: gradients are rounded stochastically. hadamard: both operands of the weight gradient are transformed over tokens.
    round_up: as in MxFp8. seed: of the random bits and signs. Source: OCP Microscaling Formats v1.0; arXiv 2502.20586 (both
    remedies; there the transform serves the input gradient too).
    """

    kind: Literal["mxfp4"] = "mxfp4"
    stochastic: bool = True
    hadamard: bool = True
    round_up: bool = False
    seed: int = 0


class NvFp4(_Quantized):
    """NVFP4: E2M1 in tiles of 16, E4M3 scales under one float32 scale per tensor.

    blocks: weights in 16×16 blocks, so that forward and backward see the same weight; else 1×16 along the summed axis.
    stochastic: gradients are rounded stochastically. hadamard: both operands of the weight gradient are transformed over tokens.
    seed: of the random bits and signs. Source: arXiv 2509.25149 §4.
    """

    kind: Literal["nvfp4"] = "nvfp4"
    rules: Rules = Rules(last=0.15)
    blocks: bool = True
    stochastic: bool = True
    hadamard: bool = True
    seed: int = 0


Emulated = Fp8V3 | MxFp8 | MxFp4 | NvFp4
"""Formats that are emulated where the hardware has no kernels for them."""
Precision = Annotated[Plain | Fp8V3 | MxFp8 | MxFp4 | NvFp4, Field(discriminator="kind")]
