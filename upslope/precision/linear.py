"""Linear maps whose three matrix products take quantised operands, emulated, and how a model's maps become such maps and back.

y = x Wᵀ (fprop), dx = g W (dgrad), dW = gᵀ x (wgrad). Each product has two operands of its own, quantised with the summed axis last:
x and W over the inputs, g and Wᵀ over the outputs, gᵀ and xᵀ over the tokens. Quantised operands are multiplied in float32 or wider.
Gradients pass straight through the rounding.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from upslope.config import UsageError
from upslope.precision.config import Emulated, Fp8V3, MxFp4, MxFp8, Rules
from upslope.precision.formats import E2M1, E4M3, E5M2, Rounding
from upslope.precision.quantize import Scale, Spec, hadamard, quantize, signs
from upslope.precision.rounding import generator


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


def recipe_of(config: Emulated, name: str = "") -> Recipe:
    """The operands that a config asks of the linear map of this name."""
    if isinstance(config, Fp8V3):
        real = Operand(Spec(E4M3, (1, config.tile), "real"))
        w = Operand(Spec(E4M3, (config.tile, config.tile), "real"))
        x = Operand(Spec(E4M3, (1, config.tile), "power-of-two")) if _matches(name, config.power_of_two) else real
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


class _Emulated(torch.autograd.Function):
    """The three products; autocast decides the dtype of the result alone."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, w: Tensor, recipe: Recipe, draws: Draws) -> Tensor:
        with torch.autocast(x.device.type, enabled=False):
            quantized = _operand(x, recipe.fprop[0])
            ctx.save_for_backward(quantized if recipe.retile else x, w)
            ctx.recipe, ctx.draws, ctx.dtype = recipe, draws, x.dtype
            return quantized @ _operand(w, recipe.fprop[1]).T

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Any, ...]:
        (g,), (x, w), recipe, draws = grads, ctx.saved_tensors, ctx.recipe, ctx.draws
        dx = dw = None
        with torch.autocast(g.device.type, enabled=False):
            if ctx.needs_input_grad[0]:
                a, b = recipe.dgrad
                dx = _operand(g, a, draws, "dgrad") @ _operand(w.T, b, draws, "dgrad w").T
                dx = dx.to(ctx.dtype)
            if ctx.needs_input_grad[1]:
                a, b = recipe.wgrad
                gt, xt = _wide(g.T), _wide(x.T)
                if recipe.signs is not None:
                    d = signs(recipe.signs)
                    gt, xt = hadamard(gt, d), hadamard(xt, d)
                dw = _operand(gt, a, draws, "wgrad") @ _operand(xt, b, draws, "wgrad x").T
                dw = dw.to(w.dtype)
        return dx, dw, None, None


def emulated_linear(x: Tensor, w: Tensor, recipe: Recipe, draws: Draws | None = None) -> Tensor:
    """x (..., in), w (out, in) → x wᵀ (..., out) from quantised operands, emulated; differentiable once in x and w.

    Returns the dtype of x (float32 for narrower x), or that of autocast. draws: the random bits of stochastic rounding; (0, 0, "", 0)
    without. Rows of x are independent where x's tiles are, but the weight gradient of a batch depends on which tokens share a tile.
    """
    y: Tensor = _Emulated.apply(x.reshape(-1, x.shape[-1]), w, recipe, draws or Draws(0, 0, "", 0))
    device = x.device.type
    y = y.to(torch.get_autocast_dtype(device)) if torch.is_autocast_enabled(device) else y
    return y.view(*x.shape[:-1], len(w))


class EmulatedLinear(nn.Linear):
    """A linear map in place of another, with its parameters, whose products are emulated.

    step: set by `at_step`; with the number of backward passes since, it keys the random bits.
    """

    def __init__(self, original: nn.Linear, recipe: Recipe, seed: int, name: str) -> None:
        nn.Module.__init__(self)
        self.in_features, self.out_features = original.in_features, original.out_features
        self.weight, self.bias = original.weight, original.bias
        self.recipe, self.seed, self.name, self.step, self.calls = recipe, seed, name, 0, 0
        self.original = (original,)  # in a tuple: no submodule, so that state_dict names stay
        self.train(original.training)

    def forward(self, x: Tensor) -> Tensor:
        """x (..., in) → (..., out)."""
        draws = Draws(self.seed, self.step, self.name, self.calls)
        if torch.is_grad_enabled():
            self.calls += 1
        y = emulated_linear(x, self.weight, self.recipe, draws)
        return y if self.bias is None else y + self.bias.to(y.dtype)

    def rounded(self, x: Tensor) -> Tensor:
        """x (..., in) as the forward product reads it, for who takes that product apart; gradients pass straight through."""
        return _through(x.reshape(-1, x.shape[-1]), self.recipe.fprop[0]).view(x.shape)

    def rounded_weight(self) -> Tensor:
        """W (out, in) as the forward product reads it; gradients pass straight through."""
        return _through(self.weight, self.recipe.fprop[1])


class EmulatedStack:
    """The products of one module's stacks of experts, emulated: a matrix and its rows at a time, so no tile spans two experts.

    Set as the module's `product`. recipes: by stack; a stack that has none is multiplied plainly. Experts are numbered within the stack.
    """

    def __init__(self, recipes: Mapping[str, Recipe], seed: int, name: str) -> None:
        self.recipes, self.seed, self.name, self.step = dict(recipes), seed, name, 0
        self.calls: Counter[str] = Counter()

    def __call__(self, rows: Tensor, matrix: Tensor, leaf: str, expert: int) -> Tensor:
        """rows (n, in), matrix (out, in) → (n, out)."""
        if leaf not in self.recipes:
            return F.linear(rows, matrix.to(rows.dtype))
        name = f"{self.name}.{leaf}.{expert}"
        draws = Draws(self.seed, self.step, name, self.calls[name])
        if torch.is_grad_enabled():
            self.calls[name] += 1
        return emulated_linear(rows, matrix, self.recipes[leaf], draws)


def convert(model: nn.Module, config: Emulated) -> list[str]:
    """Swaps the linear maps that `config.rules` choose for emulated ones that hold the same parameters; returns their names.

    Parameters, their names and the state_dict stay; `revert` undoes it. Hooks on swapped modules stay with the originals. Of stacks of
    experts ("blocks.1.ffn.experts.up"), the module stays and takes another product. UsageError: nothing matches, or the model is
    converted already.
    """
    if any(True for _ in _swapped(model)):
        raise UsageError("the model is converted already\nway out: precision.linear.revert(model) first")
    names = chosen(model, config.rules)
    if not names:
        raise UsageError(f"precision.rules = {config.rules!r}: no linear map matches\nway out: include = ('*',), first = 0, last = 0")
    seed = getattr(config, "seed", 0)
    modules = dict(model.named_modules())
    for path, module in modules.items():
        if recipes := {leaf: recipe_of(config, f"{path}.{leaf}") for leaf in _stacks(module) if f"{path}.{leaf}" in names}:
            module.product = EmulatedStack(recipes, seed, path)  # type: ignore[assignment]
    for name in names:
        if isinstance(original := modules.get(name), nn.Linear):
            model.set_submodule(name, EmulatedLinear(original, recipe_of(config, name), seed, name))
    return names


def revert(model: nn.Module) -> list[str]:
    """Puts the original maps back, with the parameters of now; returns their names."""
    found, names = dict(_swapped(model)), []
    for name, module in found.items():
        if isinstance(module, EmulatedLinear):
            original = module.original[0]
            original.weight, original.bias = module.weight, module.bias
            model.set_submodule(name, original.train(module.training))
            names.append(name)
        else:
            names += [f"{name}.{leaf}" for leaf in module.product.recipes]  # type: ignore[union-attr]
            del module.product
    return names


def at_step(model: nn.Module, step: int) -> None:
    """Says which step follows, so that random bits are those of (seed, step, name, pass) also after a resume."""
    for _, module in _swapped(model):
        if isinstance(module, EmulatedLinear):
            module.step, module.calls = step, 0
        elif isinstance(module.product, EmulatedStack):
            module.product.step, module.product.calls = step, Counter()


def chosen(model: nn.Module, rules: Rules) -> list[str]:
    """The names of the linear maps and stacks of experts that the rules choose. A map with a forward pass of its own is never chosen."""
    modules = dict(model.named_modules())
    depth: dict[str, int] = {}
    for stack, n in filter(None, map(_layer, modules)):
        depth[stack] = max(depth.get(stack, 0), n + 1)

    def inside(name: str) -> bool:
        if (found := _layer(name)) is None:
            return True
        stack, n = found
        return rules.first <= n < depth[stack] - math.ceil(rules.last * depth[stack] - 1e-9)

    names: list[str] = []
    for name, m in modules.items():
        if isinstance(m, nn.Linear) and type(m).forward is nn.Linear.forward:
            names.append(name)
        names += [f"{name}.{leaf}" for leaf in _stacks(m)]
    return [n for n in names if _matches(n, rules.include) and not _matches(n, rules.exclude) and inside(n)]


def _stacks(module: nn.Module) -> list[str]:
    """The stacks of matrices of a module that lets their product be replaced."""
    return [leaf for leaf, p in module.named_parameters(recurse=False) if p.ndim == 3] if hasattr(type(module), "product") else []


def _swapped(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Emulated maps, and modules whose stacks have an emulated product."""
    return (
        (name, m)
        for name, m in list(model.named_modules())
        if isinstance(m, EmulatedLinear) or isinstance(getattr(m, "product", None), EmulatedStack)
    )


def _through(x: Tensor, operand: Operand) -> Tensor:
    with torch.autocast(x.device.type, enabled=False):
        return _operand(x.detach(), operand) + (x - x.detach())


def _layer(name: str) -> tuple[str, int] | None:
    """The stack of layers that a module stands in and its number there: the first number in its name."""
    found = re.match(r"(?:(.*?)\.)?(\d+)(?:\.|$)", name)
    return None if found is None else (found[1] or "", int(found[2]))


def _matches(name: str, patterns: tuple[str, ...]) -> bool:
    return any(fnmatchcase(name, p) for p in patterns)


def _wide(x: Tensor) -> Tensor:
    return x if x.dtype == torch.float64 else x.float()


def _operand(x: Tensor, operand: Operand, draws: Draws | None = None, product: str = "") -> Tensor:
    """x as the product reads it: quantised and dequantised."""
    if operand.spec is None:
        return _wide(x)
    random = None
    if operand.mode == "stochastic":
        random = (draws or Draws(0, 0, "", 0)).generator(product, x.device)
    return quantize(x, operand.spec, operand.mode, random).dequantize()
