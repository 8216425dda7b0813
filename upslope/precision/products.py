"""The three matrix products of a linear map from quantised operands, differentiable: by the hardware's kernels, or emulated.

Where the device has a kernel for a product (`precision.kernels`), the operands' codes and scales are multiplied by it; elsewhere the
product is emulated: the same operands, dequantised and multiplied in float32 or wider. Gradients pass straight through the rounding.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor

from upslope.config import UsageError
from upslope.precision.config import Emulated, Kernels
from upslope.precision.formats import E4M3, E5M2
from upslope.precision.kernels import Multiply, encode, lacking, layout_of, multiply
from upslope.precision.quantize import Quantized, Spec, hadamard, quantize, signs
from upslope.precision.recipe import Operand, Recipe, recipe_of
from upslope.precision.rounding import generator

NARROW = {E4M3: torch.float8_e4m3fn, E5M2: torch.float8_e5m2}


@dataclass(frozen=True)
class Draws:
    """Where the random bits of a backward pass come from: keyed by seed, step, name and the pass within the step."""

    seed: int
    step: int
    name: str
    call: int

    def generator(self, product: str, device: torch.device) -> torch.Generator:
        """The generator of one product."""
        return generator(self.seed, self.step, self.name, self.call, product, device=device)


class _Products(torch.autograd.Function):
    """The three products, by a kernel those that `by` names; autocast decides the dtype of the result alone."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, w: Tensor, recipe: Recipe, draws: Draws, by: Mapping[str, Multiply]) -> Tensor:
        with torch.autocast(x.device.type, enabled=False):
            quantized = _quantized(x, recipe.fprop[0])
            ctx.save_for_backward(*(_kept(quantized, recipe.fprop[0].spec) if recipe.retile else (x,)), w)
            ctx.recipe, ctx.draws, ctx.dtype, ctx.by = recipe, draws, x.dtype, by
            ctx.tile = quantized.tile if isinstance(quantized, Quantized) else None
            return _product(quantized, _quantized(w, recipe.fprop[1]), recipe.fprop, by.get("fprop"))

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Any, ...]:
        (g,), (*kept, w), recipe, draws, by = grads, ctx.saved_tensors, ctx.recipe, ctx.draws, ctx.by
        dx = dw = None
        with torch.autocast(g.device.type, enabled=False):
            if ctx.needs_input_grad[0]:
                a, b = _quantized(g, recipe.dgrad[0], draws, "dgrad"), _quantized(w.T, recipe.dgrad[1], draws, "dgrad w")
                dx = _product(a, b, recipe.dgrad, by.get("dgrad")).to(ctx.dtype)
            if ctx.needs_input_grad[1]:
                x = _restored(kept, ctx.tile)
                gt, xt = _wide(g.T), _wide(x.T)
                if recipe.signs is not None:
                    d = signs(recipe.signs)
                    gt, xt = hadamard(gt, d), hadamard(xt, d)
                a, b = _quantized(gt, recipe.wgrad[0], draws, "wgrad"), _quantized(xt, recipe.wgrad[1], draws, "wgrad x")
                dw = _product(a, b, recipe.wgrad, by.get("wgrad")).to(w.dtype)
        return dx, dw, None, None, None


def emulated_linear(x: Tensor, w: Tensor, recipe: Recipe, draws: Draws | None = None) -> Tensor:
    """x (..., in), w (out, in) → x wᵀ (..., out) from quantised operands, emulated; differentiable once in x and w.

    Returns the dtype of x (float32 for narrower x), or that of autocast. draws: the random bits of stochastic rounding; (0, 0, "", 0)
    without. Rows of x are independent where x's tiles are, but the weight gradient of a batch depends on which tokens share a tile.
    """
    return _linear(x, w, recipe, draws, {})


def real_linear(x: Tensor, w: Tensor, recipe: Recipe, draws: Draws | None = None, multiply: Multiply | None = None) -> Tensor:
    """`emulated_linear` with the products that have a kernel on x's device multiplied by it: the same codes and scales, other partial sums.

    multiply: in place of the kernels, for all products that have a layout. A product without one is emulated.
    """
    by = {n: multiply for n, p in recipe.products().items() if _layout(p)} if multiply else kernels_of("auto", recipe, x.device)
    return _linear(x, w, recipe, draws, by)


def supported(config: Emulated, device: torch.device | str) -> str:
    """Why not all three products of a config have kernels on a device; "": they have."""
    return "; ".join(dict.fromkeys(_lacking(recipe_of(config), torch.device(device)).values()))


def described(config: Emulated, device: torch.device | str) -> str:
    """What computes the products of a config on a device: "fp8_v3, emulated", "fp8_v3, real kernels", or which of them are emulated."""
    recipe = recipe_of(config)
    emulated = [*recipe.products()] if config.kernels == "emulated" else [*_lacking(recipe, torch.device(device))]
    if len(emulated) == 3:
        return f"{config.kind}, emulated"
    return f"{config.kind}, real kernels" + (f" but for {' and '.join(emulated)}, emulated" if emulated else "")


def quantized_linear(
    x: Tensor, w: Tensor, recipe: Recipe, draws: Draws | None = None, kernels: Kernels = "auto", by: Mapping[str, Multiply] | None = None
) -> Tensor:
    """`real_linear` or `emulated_linear`, as the config says. UsageError: "real", where a product has no kernel.

    by: `kernels_of` x's device, looked up beforehand. float64 is emulated under "auto": kernels add in float32 at most.
    """
    if by is None:
        by = kernels_of(kernels, recipe, x.device)
    return _linear(x, w, recipe, draws, {} if kernels == "auto" and torch.float64 in (x.dtype, w.dtype) else by)


def kernels_of(kernels: Kernels, recipe: Recipe, device: torch.device) -> Mapping[str, Multiply]:
    """The kernels of the products that are not to be emulated, by product. UsageError: "real", where a product has none."""
    if kernels == "real":
        insist(recipe, device)
    return {} if kernels == "emulated" else {name: multiply for name in recipe.products() if name not in _lacking(recipe, device)}


def insist(recipe: Recipe, device: torch.device) -> None:
    """UsageError where a product has no kernel on a device."""
    if lacks := _lacking(recipe, device):
        why = "\n".join(dict.fromkeys(lacks.values()))
        raise UsageError(f"precision.kernels = 'real': not on {device}\n{why}\nway out: kernels = 'auto', which emulates where it must")


def dequantized(x: Tensor, operand: Operand) -> Tensor:
    """x (R, C) as a product reads it, in float32 or wider."""
    return _dense(_quantized(x, operand))


def _linear(x: Tensor, w: Tensor, recipe: Recipe, draws: Draws | None, by: Mapping[str, Multiply]) -> Tensor:
    y: Tensor = _Products.apply(x.reshape(-1, x.shape[-1]), w, recipe, draws or Draws(0, 0, "", 0), by)
    device = x.device.type
    y = y.to(torch.get_autocast_dtype(device)) if torch.is_autocast_enabled(device) else y
    return y.view(*x.shape[:-1], len(w))


@cache
def _lacking(recipe: Recipe, device: torch.device) -> dict[str, str]:
    """Why, by product, of those that have no kernel."""
    found = {name: lacking(a.spec, b.spec, device) for name, (a, b) in recipe.products().items()}
    return {name: why for name, why in found.items() if why}


def _layout(product: tuple[Operand, Operand]) -> bool:
    return layout_of(product[0].spec, product[1].spec) is not None


def _product(a: Quantized | Tensor, b: Quantized | Tensor, operands: tuple[Operand, Operand], by: Multiply | None) -> Tensor:
    """a bᵀ, by a kernel or emulated."""
    if by is not None and isinstance(a, Quantized) and isinstance(b, Quantized) and a.values.numel() and b.values.numel():
        (p, q) = (o.spec for o in operands)
        assert p is not None and q is not None
        return by(encode(a, p), encode(b, q)).to(a.scales.dtype)
    return _dense(a) @ _dense(b).T


def _kept(x: Quantized | Tensor, spec: Spec | None) -> tuple[Tensor, ...]:
    """What the backward pass needs of x: FP8 codes and scales, from which `_restored` makes the same numbers."""
    if not isinstance(x, Quantized) or spec is None:
        return (_dense(x),)
    narrow = NARROW.get(spec.format)
    return x.values if narrow is None else x.values.to(narrow), x.scales, x.outer


def _restored(kept: list[Tensor], tile: tuple[int, int]) -> Tensor:
    if len(kept) == 1:
        return kept[0]
    values, scales, outer = kept
    return Quantized(values.to(scales.dtype), scales, outer, tile).dequantize()


def _wide(x: Tensor) -> Tensor:
    return x if x.dtype == torch.float64 else x.float()


def _quantized(x: Tensor, operand: Operand, draws: Draws | None = None, product: str = "") -> Quantized | Tensor:
    """x as the product reads it; as it is where it is not quantised."""
    if operand.spec is None:
        return _wide(x)
    random = None
    if operand.mode == "stochastic":
        random = (draws or Draws(0, 0, "", 0)).generator(product, x.device)
    return quantize(x, operand.spec, operand.mode, random)


def _dense(x: Quantized | Tensor) -> Tensor:
    return x.dequantize() if isinstance(x, Quantized) else x
