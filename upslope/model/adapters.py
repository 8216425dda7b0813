"""Adapters as converters: `attach` freezes a model and adds small trained matrices, `merge` folds them in, `detach` takes them off.

A matrix keeps its name and stays where it is; reading it gives W'. New parameters are `NAME.lora_a`, `NAME.lora_b`, `NAME.magnitude`, where
NAME is the parameter's (`blocks.0.mixer.q.weight`, `blocks.0.ffn.experts.up`). What is computed: `model.adapter_config`. A `Linear` never
forms W': y = W x + s B (A x). Stacks of experts, tables, and what reads weights itself (MLA when absorbed) do.
"""

from __future__ import annotations

import copy
import difflib
import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import cache
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from upslope.config import UsageError
from upslope.machine.rng import rng
from upslope.model.adapter_base import HeldMatrix
from upslope.model.adapter_config import DoRA, LoRA
from upslope.model.linear import Embedding, Linear, WideLinear
from upslope.model.moe import Experts

if TYPE_CHECKING:
    from upslope.model.transformer import Transformer


@dataclass(frozen=True)
class Adapted:
    """What `attach` did. names: of the adapted parameters. trained: parameters that had gradients before. held: those in another format."""

    config: LoRA | DoRA
    names: tuple[str, ...]
    held: tuple[str, ...]
    trained: frozenset[str]


class Slot(nn.Module):
    """What is added to a matrix or stack (..., out, in), and its values where another format holds them.

    lora_a (..., r, in), lora_b (..., out, r), magnitude (..., out; DoRA): None where a matrix is held but not adapted.
    on: whether they count. plain: the dtype of the parameter.
    """

    lora_a: nn.Parameter | None
    lora_b: nn.Parameter | None
    magnitude: nn.Parameter | None

    def __init__(self, name: str, weight: Tensor, config: LoRA | DoRA, adapted: bool, held: bool, seed: int) -> None:
        super().__init__()
        self.on, self.plain = True, weight.dtype
        self.held = HeldMatrix(weight, config.base) if held and config.base is not None else None
        self.scale = config.alpha / (config.rank if config.scaling == "rank" else math.sqrt(config.rank))
        self.exact = isinstance(config, DoRA) and config.norm == "exact"
        self.lora_a = self.lora_b = self.magnitude = None
        if not adapted:
            return
        *stack, out, width = weight.shape
        dtype = weight.dtype if weight.dtype == torch.float64 else torch.float32
        draw = rng(seed, "adapter", f"{name}.lora_a")
        shape = (*stack, config.rank, width)
        a = draw.uniform(-1, 1, shape) / math.sqrt(width) if config.draw == "kaiming" else draw.standard_normal(shape) / config.rank
        self.lora_a = nn.Parameter(torch.from_numpy(a).to(weight.device, dtype))
        self.lora_b = nn.Parameter(torch.zeros(*stack, out, config.rank, dtype=dtype, device=weight.device))
        if isinstance(config, DoRA):
            norm = self.base(weight).detach().to(dtype).norm(dim=-1)
            if not bool((norm > 0).all()):
                raise UsageError(f"DoRA: {name!r} has a row of zeros, which has no direction\nway out: LoRA, or `skip` this matrix")
            self.magnitude = nn.Parameter(norm)

    def base(self, weight: Tensor | None) -> Tensor:
        """W, frozen. weight: the parameter, None where another format holds it."""
        if self.held is not None:
            return self.held()
        assert weight is not None
        return weight

    def effective(self, weight: Tensor | None) -> Tensor:
        """W' (..., out, in), whatever the autocast."""
        base = self.base(weight)
        with torch.autocast(base.device.type, enabled=False):
            if self.lora_a is None or self.lora_b is None or not self.on:
                return base
            moved = torch.add(base, self.lora_b @ self.lora_a, alpha=self.scale)
            return moved if self.magnitude is None else self.gain(moved)[..., None] * moved

    def gain(self, moved: Tensor) -> Tensor:
        """m / ‖V‖ (..., out) of V."""
        assert self.magnitude is not None
        norm = moved.norm(dim=-1)
        return self.magnitude / (norm if self.exact else norm.detach())

    def product(self, x: Tensor, weight: Tensor | None, bias: Tensor | None) -> Tensor:
        """x W'ᵀ (+ b) without keeping W'."""
        adapted = self.on and self.lora_a is not None
        first = None if adapted and self.magnitude is not None else bias
        if self.held is not None:
            y = self.held.product(x, first)
        else:
            assert weight is not None
            y = F.linear(x, weight, first)
        if not adapted or self.lora_a is None or self.lora_b is None:
            return y
        y = y + self.scale * F.linear(F.linear(x, self.lora_a), self.lora_b)
        if self.magnitude is None:
            return y
        with torch.autocast(x.device.type, enabled=False), torch.set_grad_enabled(self.exact and torch.is_grad_enabled()):
            moved = torch.add(self.base(weight), self.lora_b @ self.lora_a, alpha=self.scale)
        with torch.autocast(x.device.type, enabled=False):
            y = y * self.gain(moved).to(y.dtype)
        return y if bias is None else y + bias.to(y.dtype)


@cache
def _class(plain: type[nn.Module], leaves: tuple[str, ...]) -> type[nn.Module]:
    """A class whose attributes `leaves` are W'; parameters and slots keep these names in the module's own tables."""

    def reading(leaf: str) -> property:
        def read(self: nn.Module) -> Tensor:
            return self._modules[leaf].effective(self._parameters.get(leaf))  # type: ignore[union-attr, operator, no-any-return]

        return property(read)

    body: dict[str, Any] = {leaf: reading(leaf) for leaf in leaves} | {"plain_class": plain}
    if issubclass(plain, Linear) and not issubclass(plain, WideLinear):
        body["forward"] = lambda self, x: self._modules["weight"].product(x, self._parameters.get("weight"), self.bias)
    return type(plain.__name__, (plain,), body)


def adaptable(model: nn.Module) -> dict[str, Tensor]:
    """Matrices (out, in), stacks of experts (E, out, in) and embeddings (vocab, d) by name."""
    found: dict[str, Tensor] = {}
    for path, module in model.named_modules():
        if isinstance(module, Linear | Embedding | Experts):
            found |= {f"{path}.{leaf}": p for leaf, p in module.named_parameters(recurse=False) if _matrix(module, leaf)}
    return found


def _matrix(module: nn.Module, leaf: str) -> bool:
    return leaf in ("gate", "up", "down") if isinstance(module, Experts) else leaf == "weight"


def _matches(name: str, pattern: str) -> bool:
    return fnmatchcase(name, pattern) or fnmatchcase(name.removesuffix(".weight"), pattern)


def targets(model: Transformer, config: LoRA | DoRA) -> tuple[str, ...]:
    """Names of the parameters that a config adapts. UsageError for a pattern that names none, and for a tied table."""
    names = list(adaptable(model))
    skipped = {n for n in names if any(_matches(n, p) for p in config.skip)}
    found: set[str] = set()
    for pattern in config.targets:
        hit = {n for n in names if _matches(n, pattern)}
        if not hit - skipped:
            last = pattern.rsplit(".", 1)[-1]
            near = difflib.get_close_matches(pattern, [n.removesuffix(".weight") for n in names], 3, 0.5)
            near += [n for n in dict.fromkeys(n.removesuffix(".weight") for n in names) if last in n and n not in near][:2]
            why = "only what `skip` names" if hit else "no matrix"
            raise UsageError(f"adapter.targets: {pattern!r} names {why}\nnear: {', '.join((near or names)[:4])}")
        found |= hit - skipped
    if model.head is None and "embed.weight" in found and config.tied == "refuse":
        raise UsageError(
            "adapter.targets name 'embed.weight', which is embedding and head at once: both would change\n"
            "way out: tied = 'adapt' if that is meant, else targets = ['blocks.*']"
        )
    return tuple(n for n in names if n in found)


def attach(model: Transformer, config: LoRA | DoRA, seed: int) -> Adapted:
    """Freezes a model in place and adds adapters; the logits stay equal to the bit where `base` is None (DoRA with biases: to rounding).

    Each A is drawn from (seed, its name). UsageError for a model that has adapters, for targets that do not exist, and, with DoRA, for rows
    of zeros.
    """
    if adapted(model) is not None:
        raise UsageError("the model has adapters already\nway out: merge(model) or detach(model) first")
    names, matrices = targets(model, config), adaptable(model)
    held = [n for n in matrices if config.base is not None and any(_matches(n, p) for p in config.held)]
    held = [n for n in held if not isinstance(model.get_submodule(n.rpartition(".")[0]), WideLinear | Embedding)]
    slots = {n: Slot(n, w, config, n in names, n in held, seed) for n, w in matrices.items() if n in names or n in held}
    state = Adapted(config, names, tuple(held), frozenset(n for n, p in model.named_parameters() if p.requires_grad))
    model.requires_grad_(False)
    owners: dict[str, list[str]] = {}
    for name in slots:
        path, _, leaf = name.rpartition(".")
        owners.setdefault(path, []).append(leaf)
    for path, leaves in owners.items():
        owner = model.get_submodule(path)
        for leaf in leaves:
            slot = slots[f"{path}.{leaf}"]
            if slot.held is not None:
                owner._parameters[leaf] = None  # keeps its place in their order
            owner._modules[leaf] = slot  # not add_module: the parameter has this name too
        owner.__class__ = _class(type(owner), tuple(leaves))  # type: ignore[arg-type]
    model.__dict__["_adapted"] = state
    return state


def adapted(model: nn.Module) -> Adapted | None:
    """What is attached to a model; None where nothing is."""
    return model.__dict__.get("_adapted")


def slots(model: nn.Module) -> dict[str, tuple[nn.Module, Slot]]:
    """(owner, slot) by the name of the parameter."""
    found: dict[str, tuple[nn.Module, Slot]] = {}
    for path, owner in model.named_modules():
        if hasattr(type(owner), "plain_class"):
            found |= {f"{path}.{leaf}": (owner, s) for leaf, s in owner._modules.items() if isinstance(s, Slot)}
    return found


@torch.no_grad()
def folded(model: Transformer) -> dict[str, Tensor]:
    """All tensors of a model as if merged, by the names that they have without adapters: for engines and exports during training."""
    found = slots(model)
    out = {n: t for n, t in model.tensors().items() if not any(n.startswith(f"{name}.") for name in found)}
    return out | {n: s.effective(o._parameters.get(n.rpartition(".")[2])).to(s.plain) for n, (o, s) in found.items()}


def kept(model: Transformer) -> dict[str, Tensor]:
    """The adapters' own parameters by name: what training changes and a saved state must hold. Views."""
    return {n: p for n, p in model.named_parameters() if any(n.startswith(f"{name}.") for name in _state(model).names)}


def plain(model: Transformer) -> Transformer:
    """A merged copy of a model with adapters, for engines; a model without is given back itself."""
    return model if adapted(model) is None else merge(copy.deepcopy(model))


def merge(model: Transformer) -> Transformer:
    """Folds the adapters into the weights (a held base as it was rounded) and removes them: the same function, to rounding."""
    return _remove(model, on=True)


def detach(model: Transformer) -> Transformer:
    """Removes the adapters and restores the base to the bit; one that another format held comes back as rounded by it."""
    return _remove(model, on=False)


@torch.no_grad()
def _remove(model: Transformer, on: bool) -> Transformer:
    state = _state(model)
    for name, (owner, slot) in slots(model).items():
        leaf = name.rpartition(".")[2]
        slot.on = on
        weight = owner._parameters.get(leaf)
        if weight is None:
            owner._parameters[leaf] = nn.Parameter(slot.effective(None).to(slot.plain))
        elif on:
            weight.copy_(slot.effective(weight))
        del owner._modules[leaf]
    for module in model.modules():
        module.__class__ = getattr(type(module), "plain_class", type(module))
    del model.__dict__["_adapted"]
    for name, p in model.named_parameters():
        p.requires_grad_(name in state.trained)
    return model


@contextmanager
def without(model: Transformer) -> Iterator[None]:
    """Within it, the model computes as its frozen base: the reference policy of preference and RL, without a second model."""
    _state(model)
    found = [s for _, s in slots(model).values() if s.on]
    for slot in found:
        slot.on = False
    try:
        yield
    finally:
        for slot in found:
            slot.on = True


def _state(model: nn.Module) -> Adapted:
    state = adapted(model)
    if state is None:
        raise UsageError("the model has no adapters\nway out: attach(model, LoRA(), seed) first")
    return state
