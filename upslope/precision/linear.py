"""Linear maps whose products take quantised operands (`precision.products`), and how a model's maps become such maps and back."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterator, Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from upslope.config import UsageError
from upslope.precision.config import Emulated, Kernels, Rules
from upslope.precision.products import Draws, dequantized, insist, kernels_of, quantized_linear
from upslope.precision.recipe import Operand, Recipe, matches, recipe_of


class QuantizedLinear(nn.Linear):
    """A linear map in place of another, with its parameters, whose products take quantised operands, by kernels or emulated.

    step: set by `at_step`; with the number of backward passes since, it keys the random bits.
    """

    def __init__(self, original: nn.Linear, recipe: Recipe, seed: int, name: str, kernels: Kernels = "auto") -> None:
        nn.Module.__init__(self)
        self.in_features, self.out_features = original.in_features, original.out_features
        self.weight, self.bias = original.weight, original.bias
        self.recipe, self.seed, self.name, self.step, self.calls = recipe, seed, name, 0, 0
        self.kernels = kernels
        self.settle(self.weight.device)
        self.original = (original,)  # in a tuple: no submodule, so that state_dict names stay
        self.train(original.training)

    def settle(self, device: torch.device) -> None:
        """Looks up the kernels of a device, outside of passes, which may be compiled."""
        self.by = kernels_of(self.kernels, self.recipe, device)

    def forward(self, x: Tensor) -> Tensor:
        """x (..., in) → (..., out)."""
        draws = Draws(self.seed, self.step, self.name, self.calls)
        if torch.is_grad_enabled():
            self.calls += 1
        y = quantized_linear(x, self.weight, self.recipe, draws, self.kernels, self.by)
        return y if self.bias is None else y + self.bias.to(y.dtype)

    def rounded(self, x: Tensor) -> Tensor:
        """x (..., in) as the forward product reads it, for who takes that product apart; gradients pass straight through."""
        return _through(x.reshape(-1, x.shape[-1]), self.recipe.fprop[0]).view(x.shape)

    def rounded_weight(self) -> Tensor:
        """W (out, in) as the forward product reads it; gradients pass straight through."""
        return _through(self.weight, self.recipe.fprop[1])


class QuantizedStack:
    """The products of one module's stacks of experts: a matrix and its rows at a time, so no tile spans two experts.

    Set as the module's `product`. recipes: by stack; a stack that has none is multiplied plainly. Experts are numbered within the stack.
    """

    def __init__(
        self, recipes: Mapping[str, Recipe], seed: int, name: str, kernels: Kernels = "auto", device: torch.device | str = "cpu"
    ) -> None:
        self.recipes, self.seed, self.name, self.step = dict(recipes), seed, name, 0
        self.kernels = kernels
        self.calls: Counter[str] = Counter()
        self.settle(torch.device(device))

    def settle(self, device: torch.device) -> None:
        """Looks up the kernels of a device, outside of passes, which may be compiled."""
        self.by = {leaf: kernels_of(self.kernels, recipe, device) for leaf, recipe in self.recipes.items()}

    def __call__(self, rows: Tensor, matrix: Tensor, leaf: str, expert: int) -> Tensor:
        """rows (n, in), matrix (out, in) → (n, out)."""
        if leaf not in self.recipes:
            return F.linear(rows, matrix.to(rows.dtype))
        name = f"{self.name}.{leaf}.{expert}"
        draws = Draws(self.seed, self.step, name, self.calls[name])
        if torch.is_grad_enabled():
            self.calls[name] += 1
        return quantized_linear(rows, matrix, self.recipes[leaf], draws, self.kernels, self.by[leaf])


def convert(model: nn.Module, config: Emulated) -> list[str]:
    """Swaps the linear maps that `config.rules` choose for quantised ones that hold the same parameters; returns their names.

    Parameters, their names and the state_dict stay; `revert` undoes it. Hooks on swapped modules stay with the originals. Of stacks of
    experts ("blocks.1.ffn.experts.up"), the module stays and takes another product. UsageError: nothing matches, the model is
    converted already, or its device lacks the kernels that `config.kernels` insists on.
    """
    if any(True for _ in _swapped(model)):
        raise UsageError("the model is converted already\nway out: precision.linear.revert(model) first")
    names = chosen(model, config.rules)
    if not names:
        raise UsageError(f"precision.rules = {config.rules!r}: no linear map matches\nway out: include = ('*',), first = 0, last = 0")
    if config.kernels == "real":
        insist(recipe_of(config), next(model.parameters()).device)
    seed = getattr(config, "seed", 0)
    modules = dict(model.named_modules())
    for path, module in modules.items():
        if recipes := {leaf: recipe_of(config, f"{path}.{leaf}") for leaf in _stacks(module) if f"{path}.{leaf}" in names}:
            module.product = QuantizedStack(recipes, seed, path, config.kernels, next(module.parameters()).device)  # type: ignore[assignment]
    for name in names:
        if isinstance(original := modules.get(name), nn.Linear):
            model.set_submodule(name, QuantizedLinear(original, recipe_of(config, name), seed, name, config.kernels))
    return names


def revert(model: nn.Module) -> list[str]:
    """Puts the original maps back, with the parameters of now; returns their names."""
    found, names = dict(_swapped(model)), []
    for name, module in found.items():
        if isinstance(module, QuantizedLinear):
            original = module.original[0]
            original.weight, original.bias = module.weight, module.bias
            model.set_submodule(name, original.train(module.training))
            names.append(name)
        else:
            names += [f"{name}.{leaf}" for leaf in module.product.recipes]  # type: ignore[union-attr]
            del module.product
    return names


def at_step(model: nn.Module, step: int) -> None:
    """Says which step follows, so that random bits are those of (seed, step, name, pass) also after a resume, on the device of now."""
    for _, module in _swapped(model):
        if isinstance(module, QuantizedLinear):
            module.step, module.calls = step, 0
            module.settle(module.weight.device)
        elif isinstance(module.product, QuantizedStack):
            module.product.step, module.product.calls = step, Counter()
            module.product.settle(next(module.parameters()).device)


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
    return [n for n in names if matches(n, rules.include) and not matches(n, rules.exclude) and inside(n)]


def _stacks(module: nn.Module) -> list[str]:
    """The stacks of matrices of a module that lets their product be replaced."""
    return [leaf for leaf, p in module.named_parameters(recurse=False) if p.ndim == 3] if hasattr(type(module), "product") else []


def _swapped(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Quantised maps, and modules whose stacks have a quantised product."""
    return (
        (name, m)
        for name, m in list(model.named_modules())
        if isinstance(m, QuantizedLinear) or isinstance(getattr(m, "product", None), QuantizedStack)
    )


def _through(x: Tensor, operand: Operand) -> Tensor:
    with torch.autocast(x.device.type, enabled=False):
        return dequantized(x.detach(), operand) + (x - x.detach())


def _layer(name: str) -> tuple[str, int] | None:
    """The stack of layers that a module stands in and its number there: the first number in its name."""
    found = re.match(r"(?:(.*?)\.)?(\d+)(?:\.|$)", name)
    return None if found is None else (found[1] or "", int(found[2]))
