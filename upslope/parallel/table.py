"""The sharding table: which dimension of which tensor is cut over which axis. Whatever no rule names is replicated.

A rule speaks of a leaf below the nearest module of a class that the table knows ("GQA", "GatedFFN", ...), so that `q.weight` may be cut by
heads in one mixer and stay whole in another. Rows of a projection are cut in runs of heads, which lie next to each other.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn

from upslope.config import UsageError
from upslope.model.config import ModelConfig
from upslope.model.transformer import Transformer
from upslope.parallel.groups import Groups


class Rule(NamedTuple):
    """Tensors `leaf` (a glob, relative to a module of class `owner`) are cut along `dim` over `axis`."""

    owner: str
    leaf: str
    axis: Literal["tp", "ep"]
    dim: int


class Cut(NamedTuple):
    """A dimension cut over an axis; this rank holds start : stop of it."""

    dim: int
    axis: str
    start: int
    stop: int


@dataclass(frozen=True)
class Placement:
    """Where a tensor is. shape: of the whole. cuts: none = every rank has the whole."""

    shape: tuple[int, ...]
    cuts: tuple[Cut, ...] = ()

    @property
    def local(self) -> tuple[int, ...]:
        """The shape of this rank's part."""
        cut = {c.dim: c.stop - c.start for c in self.cuts}
        return tuple(cut.get(i, n) for i, n in enumerate(self.shape))

    def over(self, axis: str) -> Cut | None:
        """The cut over an axis, if there is one."""
        return next((c for c in self.cuts if c.axis == axis), None)

    def of(self, whole: Tensor) -> Tensor:
        """This rank's part of the whole, as a view."""
        for c in self.cuts:
            whole = whole.narrow(c.dim, c.start, c.stop - c.start)
        return whole


@dataclass(frozen=True)
class ShardingTable:
    """Rules in order; of two for one leaf and axis the first holds. A value: `TABLE.plus(Rule("MyFFN", "up.weight", "tp", 0), ...)`."""

    rules: tuple[Rule, ...]

    def plus(self, *rules: Rule) -> ShardingTable:
        """With more rules, which hold before those that stand here."""
        return ShardingTable((*rules, *self.rules))

    def only(self, *axes: str) -> ShardingTable:
        """The rules of these axes."""
        return ShardingTable(tuple(r for r in self.rules if r.axis in axes))

    def owners(self) -> frozenset[str]:
        """The classes that it knows."""
        return frozenset(r.owner for r in self.rules)

    def cuts(self, owner: str, leaf: str) -> tuple[Rule, ...]:
        """The rules of one leaf, at most one per axis."""
        found: dict[str, Rule] = {}
        for r in self.rules:
            if r.owner == owner and fnmatchcase(leaf, r.leaf):
                found.setdefault(r.axis, r)
        return tuple(found.values())

    def placements(self, model: nn.Module | ModelConfig, groups: Groups) -> dict[str, Placement]:
        """Name → placement of every parameter and saved buffer of a whole (not yet cut) model, or of a config's model.

        UsageError where a dimension does not divide. Parts of equal length: start = index · (length / size).
        """
        if isinstance(model, ModelConfig):
            model = Transformer(model, device="meta")
        out: dict[str, Placement] = {}
        known = self.owners()
        owned = dict(_owned(model, known))
        for name, tensor in model.state_dict(keep_vars=True).items():
            shape = tuple(tensor.shape)
            owner, prefix = owned.get(name.rpartition(".")[0], ("", ""))
            cuts = self.cuts(owner, name.removeprefix(prefix)) if owner else ()
            out[name] = Placement(shape, tuple(_cut(name, shape, r, groups) for r in cuts if groups[r.axis].size > 1))
        return out

    def __str__(self) -> str:
        return "\n".join(f"{r.owner}.{r.leaf}: dim {r.dim} over {r.axis}" for r in self.rules)


def _rules(owner: str, axis: Literal["tp", "ep"], dim: int, leaves: Sequence[str]) -> Iterator[Rule]:
    return (Rule(owner, leaf, axis, dim) for leaf in leaves)


TABLE = ShardingTable(
    (
        *_rules("Transformer", "tp", 0, ("embed.weight", "head.weight")),  # over the vocabulary
        *_rules("GQA", "tp", 0, ("[qkv].weight", "[qkv].bias", "gate.weight", "sinks")),  # by heads
        *_rules("GQA", "tp", 1, ("o.weight",)),
        *_rules("LatentAttention", "tp", 0, ("q.weight", "q_b.weight", "kv_b.weight")),  # by heads; latents are whole
        *_rules("LatentAttention", "tp", 1, ("o.weight",)),
        *_rules("GatedFFN", "tp", 0, ("gate.weight", "gate.bias", "up.weight", "up.bias")),
        *_rules("GatedFFN", "tp", 1, ("down.weight",)),
        *_rules("Relu2FFN", "tp", 0, ("up.weight",)),
        *_rules("Relu2FFN", "tp", 1, ("down.weight",)),
        *_rules("Experts", "ep", 0, ("gate", "up", "down", "gate_bias", "up_bias", "down_bias")),
        *_rules("Experts", "tp", 1, ("gate", "up", "gate_bias", "up_bias")),
        *_rules("Experts", "tp", 2, ("down",)),
    )
)
"""Megatron's cuts (arXiv 1909.08053) of every module that has them; experts by number over ep and by width over tp."""


def owner_of(module: nn.Module, known: frozenset[str]) -> str | None:
    """The class of a module by the name that a table knows, if it does; also where the class was derived from it."""
    return next((c.__name__ for c in type(module).__mro__ if c.__name__ in known), None)


def _owned(model: nn.Module, known: frozenset[str]) -> Iterator[tuple[str, tuple[str, str]]]:
    """Module path → (class of its nearest owner, the prefix that owner's names have)."""
    owners: dict[str, tuple[str, str]] = {}
    for path, module in model.named_modules():
        mine = owner_of(module, known)
        if mine is not None:
            owners[path] = (mine, f"{path}." if path else "")
        elif path:
            owners[path] = owners.get(path.rpartition(".")[0], ("", ""))
        yield path, owners.get(path, ("", ""))


def _cut(name: str, shape: tuple[int, ...], rule: Rule, groups: Groups) -> Cut:
    axis = groups[rule.axis]
    length = shape[rule.dim]
    if length % axis.size:
        raise UsageError(
            f"{name}: dimension {rule.dim} of {length} is not divisible by {rule.axis} = {axis.size}\n"
            f"way out: a {rule.axis} that divides it, or a table without this rule"
        )
    start = axis.index * (length // axis.size)
    return Cut(rule.dim, rule.axis, start, start + length // axis.size)


def apply(model: nn.Module, placements: dict[str, Placement]) -> None:
    """Cuts parameters in place to this rank's parts: new parameters, plain tensors of their own storage."""
    with torch.no_grad():
        for path, module in model.named_modules():
            for leaf, p in list(module.named_parameters(recurse=False)):
                place = placements.get(f"{path}.{leaf}" if path else leaf)
                if place is not None and place.cuts:
                    module.register_parameter(leaf, nn.Parameter(place.of(p.detach()).clone(), p.requires_grad))
