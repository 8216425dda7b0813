"""Tensor parallelism: every rank of the axis holds a part of each matrix, and all of them see the same tokens.

Megatron's scheme (arXiv 1909.08053): the rows of a first matrix and the columns of a second are cut, so that one sum over ranks per
half of a block joins them: y = Σ_r f(x W1_rᵀ) W2_rᵀ. Attention is cut by heads, FFNs and experts by hidden width, embedding and head by the
vocabulary. Outside these regions every rank computes the same bits, so replicated parameters get the same gradient on each; one that is
used inside a region has its gradient summed there. Mixers without a rule run whole on every rank.

Side outputs are those of the whole model. What reads heads from a module's config (`optim.heads`) finds this rank's heads there.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from upslope.config import UsageError
from upslope.model.attention import GQA
from upslope.model.aux import Aux, RouterStats
from upslope.model.mla import LatentAttention
from upslope.model.moe import Experts
from upslope.model.norm import RMSNorm, rms_norm, wide
from upslope.model.router import Routes
from upslope.model.transformer import Transformer
from upslope.parallel.comm import collect, copy, first, gather, joined, part, reduce, scatter, summed
from upslope.parallel.groups import Axis, Groups
from upslope.parallel.table import TABLE, Placement, ShardingTable, apply, owner_of


def apply_tensor(model: nn.Module, groups: Groups, table: ShardingTable = TABLE) -> dict[str, Placement]:
    """Cuts a whole model over "tp" in place, and makes its modules exchange what they must → the placements, of tp's cuts alone.

    To be called before FSDP wraps the modules and before an optimizer is made; with emulated low precision, after `precision.linear` has
    put its modules in. `model.logits` keeps returning all columns. A module of a class of one's own takes part through rules for it alone:
    its first input enters, and every `nn.Linear` whose dimension 1 is cut sums its output.
    UsageError where heads, widths or the vocabulary do not divide, or a table has only some of a known module's rules.
    """
    axis, table = groups["tp"], table.only("tp")
    placements = table.placements(model, groups)
    if axis.size == 1:
        return placements
    for owner in table.owners():
        lacking = {(r.leaf, r.dim) for r in TABLE.only("tp").rules if r.owner == owner} - {
            (r.leaf, r.dim) for r in table.rules if r.owner == owner
        }
        if lacking:
            leaf = min(lacking)[0]
            raise UsageError(f"sharding table: {owner} has rules, but not that for {leaf!r}\nway out: all of its rules in TABLE, or none")
    for path, module in list(model.named_modules()):
        if (of := owner_of(module, table.owners())) is not None:
            rows = [leaf for leaf, m in module.named_modules() if isinstance(m, nn.Linear) and _cut_columns(placements, path, leaf)]
            INSTALL.get(of, _plain)(module, axis, rows, path)
    apply(model, placements)
    return placements


class AllHeads(Aux):
    """Side outputs for a mixer that has a part of the heads: their largest logits are handed on for all heads, the rest as it is."""

    def __init__(self, outer: Aux, axis: Axis, heads: int) -> None:
        super().__init__(outer.wants)
        self.outer, self.axis, self.heads = outer, axis, heads

    def saw_logit(self, layer: int, largest: Tensor) -> None:
        """Takes in the largest logits of this rank's heads."""
        self.outer.saw_logit(layer, joined(largest, self.axis, 0, self.heads))

    def saw_router(self, layer: int, stats: RouterStats) -> None:
        """Hands on."""
        self.outer.saw_router(layer, stats)

    def saw_index(self, layer: int, total: Tensor, tokens: int) -> None:
        """Hands on."""
        self.outer.saw_index(layer, total, tokens)


def _cut_columns(placements: dict[str, Placement], path: str, leaf: str) -> bool:
    place = placements.get(".".join(p for p in (path, leaf, "weight") if p))
    return place is not None and any(c.dim == 1 for c in place.cuts)


@dataclass
class Region:
    """What lies between a module's first input and a map's output. pieces: outside it, each rank has a piece of the tokens."""

    pieces: bool = False


def _enter(module: nn.Module, axis: Axis, region: Region) -> None:
    """The module's first input enters the region."""

    def hook(m: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        x = collect(args[0], axis, 0, len(args[1].ids)) if region.pieces else copy(args[0], axis)
        return x, *args[1:]

    module.register_forward_pre_hook(hook)


def _leave(linear: nn.Linear, axis: Axis, region: Region) -> None:
    """The map's output is summed over ranks, its bias counted once."""

    def hook(m: nn.Module, args: Any, out: Tensor) -> Tensor:
        if linear.bias is not None and axis.index > 0:
            out = out - linear.bias.detach().to(out.dtype)  # detached, so that every rank keeps the bias's gradient
        return scatter(out, axis, 0) if region.pieces else reduce(out, axis)

    linear.register_forward_hook(hook)


def _divides(path: str, what: str, n: int, axis: Axis) -> int:
    if n % axis.size:
        raise UsageError(f"{path}: {what} = {n} is not divisible by tp = {axis.size}\nway out: a tp that divides it")
    return n // axis.size


def _plain(module: nn.Module, axis: Axis, rows: list[str], path: str) -> None:
    """In at the first input, out at the maps whose columns are cut."""
    region = Region()
    _enter(module, axis, region)
    for leaf in rows:
        linear = module.get_submodule(leaf)
        assert isinstance(linear, nn.Linear)
        _leave(linear, axis, region)
    object.__setattr__(module, "region", region)


def _logits_of_all(module: nn.Module, axis: Axis, heads: int) -> None:
    """Largest logits are reported for all heads, `heads` of them."""

    def hook(m: nn.Module, args: Any) -> Any:
        x, flow, *rest = args
        if flow.aux is not None and flow.wants("max_logit"):
            flow = replace(flow, aux=AllHeads(flow.aux, axis, heads))
        return (x, flow, *rest)

    module.register_forward_pre_hook(hook)


def norm_inside(norm: RMSNorm | None, axis: Axis, full: bool = False) -> None:
    """A norm inside the region. full: over the channels of all ranks, of which this rank has its part."""
    if norm is None:
        return

    def gain() -> Tensor:
        w = copy(norm.weight, axis)
        return 1 + w if norm.offset else w

    def over_all(x: Tensor) -> Tensor:
        x = wide(x)
        total = copy(reduce(x.square().sum(-1, keepdim=True), axis), axis)
        return x * torch.rsqrt(total / (x.shape[-1] * axis.size) + norm.eps) * part(gain(), axis, 0)

    _override(norm, "forward", over_all if full else lambda x: rms_norm(x, gain(), norm.eps))


def _override(module: nn.Module, name: str, method: Callable[..., Any]) -> None:
    """Replaces a method of one module."""
    object.__setattr__(module, name, method)


def _attention(module: Any, axis: Axis, rows: list[str], path: str) -> None:
    assert isinstance(module, GQA)
    c = module.config
    heads, kv = _divides(path, "heads", c.heads, axis), _divides(path, "kv_heads", c.kv_heads, axis)
    _plain(module, axis, rows, path)
    norm_inside(module.q_norm, axis, module.full)
    norm_inside(module.k_norm, axis, module.full)
    _logits_of_all(module, axis, c.heads)
    module.config = c.replace(heads=heads, kv_heads=kv)


def _latent(module: Any, axis: Axis, rows: list[str], path: str) -> None:
    """The latents are made by every rank; what is made of them by heads, and the rotary key that all heads share, enter the region."""
    assert isinstance(module, LatentAttention)
    c = module.config
    heads = _divides(path, "heads", c.heads, axis)
    asking = module.q if module.q_b is None else module.q_b
    assert asking is not None
    _enter(asking, axis, Region())
    module.kv_a.register_forward_hook(lambda m, args, out: copy(out, axis))
    norm_inside(module.kv_a_norm, axis)
    _leave(module.o, axis, Region())
    _logits_of_all(module, axis, c.heads)
    _override(module, "over_heads", lambda probs: summed(probs.mean(1), axis) / axis.size)
    module.config = c.replace(heads=heads)


def _experts(module: Any, axis: Axis, rows: list[str], path: str) -> None:
    assert isinstance(module, Experts)

    def enter(m: nn.Module, args: tuple[Tensor, Routes]) -> tuple[Tensor, Routes]:
        x, routes = args
        return copy(x, axis), routes._replace(weights=copy(routes.weights, axis))

    def matrices() -> list[Tensor | None]:
        *rest, bias = Experts.matrices(module)
        return [*rest, None if bias is None else first(bias, axis)]

    module.register_forward_pre_hook(enter)
    module.register_forward_hook(lambda m, args, out: reduce(out, axis))
    _override(module, "matrices", matrices)


def _vocabulary(module: Any, axis: Axis, rows: list[str], path: str) -> None:
    assert isinstance(module, Transformer)
    embed, vocab, inner = module.embed, module.config.vocab, module.projected

    def rows_of(ids: Tensor) -> Tensor:
        at = ids - axis.span(vocab)[0]
        outside = (at < 0) | (at >= len(embed.weight))
        found = F.embedding(at.masked_fill(outside, 0), embed.weight)
        return reduce(found.masked_fill(outside[..., None], 0.0), axis)

    def projected(hidden: Tensor, weight: Tensor) -> Tensor:
        return gather(inner(copy(hidden, axis), weight), axis, -1, vocab)

    if isinstance(embed, nn.Embedding):  # a stage of a pipeline may have none
        _override(embed, "forward", rows_of)
    _override(module, "projected", projected)


INSTALL: dict[str, Callable[[Any, Axis, list[str], str], None]] = {
    "Transformer": _vocabulary,
    "GQA": _attention,
    "LatentAttention": _latent,
    "Experts": _experts,
}
"""What a cut does to a known module, by class: (module, axis, its maps whose columns are cut, its path)."""
