"""What a config asks of the three matrix products of a linear map: how each operand is quantised.

y = x Wᵀ (fprop), dx = g W (dgrad), dW = gᵀ x (wgrad). Each product has two operands of its own, quantised with the summed axis last:
x and W over the inputs, g and Wᵀ over the outputs, gᵀ and xᵀ over the tokens.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from fnmatch import fnmatchcase

from upslope.precision.config import Emulated, Fp8V3, MxFp4, MxFp8
from upslope.precision.formats import E2M1, E4M3, E5M2, Rounding
from upslope.precision.quantize import Scale, Spec


@dataclass(frozen=True)
class Operand:
    """How one operand is quantised, with the summed axis last; spec None: not at all."""

    spec: Spec | None
    mode: Rounding = "nearest-even"


@dataclass(frozen=True)
class Recipe:
    """The operands of the three products.

    fprop: x (T, in), W (out, in). dgrad: g (T, out), Wᵀ (in, out). wgrad: gᵀ (out, T), xᵀ (in, T).
    signs: seed of the Hadamard transform of both wgrad operands, None without. retile: wgrad reads x as fprop quantised it.
    """

    fprop: tuple[Operand, Operand]
    dgrad: tuple[Operand, Operand]
    wgrad: tuple[Operand, Operand]
    signs: int | None = None
    retile: bool = False

    def products(self) -> dict[str, tuple[Operand, Operand]]:
        """The pairs of operands by the product's name."""
        return {"fprop": self.fprop, "dgrad": self.dgrad, "wgrad": self.wgrad}


def recipe_of(config: Emulated, name: str = "") -> Recipe:
    """The operands that a config asks of the linear map of this name."""
    if isinstance(config, Fp8V3):
        real = Operand(Spec(E4M3, (1, config.tile), "real"))
        w = Operand(Spec(E4M3, (config.tile, config.tile), "real"))
        x = Operand(Spec(E4M3, (1, config.tile), "power-of-two")) if matches(name, config.power_of_two) else real
        return Recipe((x, w), (real, w), (real, x), retile=config.retile == "quantized")
    if isinstance(config, MxFp8 | MxFp4):
        scale: Scale = "power-of-two" if config.round_up else "mx"
        x = Operand(Spec(E4M3 if isinstance(config, MxFp8) else E2M1, (1, 32), scale))
        if isinstance(config, MxFp8):
            g = x if config.gradients == "e4m3" else Operand(Spec(E5M2, (1, 32), scale))
            return Recipe((x, x), (g, x), (g, x))
        w = x
    else:
        x = Operand(Spec(E2M1, (1, 16), "two-level"))
        w = Operand(Spec(E2M1, (16, 16), "two-level")) if config.blocks else x
    g = replace(x, mode="stochastic") if config.stochastic else x
    return Recipe((x, w), (g, w), (g, x), signs=config.seed if config.hadamard else None)


def matches(name: str, patterns: tuple[str, ...]) -> bool:
    """Whether a shell pattern fits a module's whole name."""
    return any(fnmatchcase(name, p) for p in patterns)
