"""Weights, gradients and optimizer states in shards (FSDP2), in replicas of shards (HSDP), or in replicas alone.

Each block is gathered for its own passes; embeddings, head and last norm stay gathered from the forward pass to the end of the backward
pass, so `model.logits` may be called in between. Losses are divided by totals of the whole batch, so gradients are summed, not averaged.
Source: Rajbhandari et al. 2020, arXiv 1910.02054 (ZeRO); Zhao et al. 2023, arXiv 2304.11277 (FSDP).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import is_dataclass
from typing import Any

from torch import nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule, fully_shard

from upslope.model.block import Block
from upslope.model.moe import Experts
from upslope.parallel.config import Mesh
from upslope.parallel.groups import Groups


def held_rows(rows: int, parts: int) -> list[int]:
    """How many rows of `rows` each of `parts` ranks holds: equal runs, the last ones shorter or empty."""
    most = -(-rows // parts)
    return [min(most, max(0, rows - i * most)) for i in range(parts)]


def shard(model: nn.Module, groups: Groups) -> None:
    """Leaves each rank its rows of every parameter of a model, in place; parameters become DTensors over shards, and dp if above 1.

    Where experts are split over ep, theirs are over edp. `zero` of the mesh: 1 sums gradients once a step, 2 after every backward pass, so
    that none lie about whole, 3 also frees the weights of a block after its forward pass. A mesh of dp x shards = 1 changes nothing.
    """
    mesh = groups.mesh
    if mesh.dp * mesh.shards == 1:
        return
    replicas = ("dp",) if mesh.dp > 1 else ()
    over, free = groups.device_mesh(*replicas, "shards"), mesh.zero == 3
    if mesh.ep > 1:
        apart = groups.device_mesh(*replicas, "edp")
        for experts in [m for m in model.modules() if isinstance(m, Experts)]:
            _shard(experts, apart, free)
    for block in [m for m in model.modules() if isinstance(m, Block)]:
        _shard(block, over, free)
    _shard(model, over, False)
    for module in sharded(model):
        module.set_gradient_divide_factor(1.0)
        module.set_force_sum_reduction_for_comms(True)
        module.set_reduce_scatter_unused_params(True)


class _Hidden:
    """A dataclass argument that FSDP is to leave alone."""

    def __init__(self, value: Any) -> None:
        self.value = value


def _hide(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, Any]:
    def hidden(a: Any) -> Any:
        return _Hidden(a) if is_dataclass(a) and not isinstance(a, type) else a

    return tuple(map(hidden, args)), {n: hidden(a) for n, a in kwargs.items()}


def _show(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, Any]:
    def shown(a: Any) -> Any:
        return a.value if isinstance(a, _Hidden) else a

    return tuple(map(shown, args)), {n: shown(a) for n, a in kwargs.items()}


def _shard(module: nn.Module, over: DeviceMesh, free: bool) -> None:
    """FSDP would copy a `Flow` or `Aux` that holds tensors with gradient, and what modules write to it would be lost: they are hidden."""
    module.register_forward_pre_hook(_show, prepend=True, with_kwargs=True)
    fully_shard(module, mesh=over, reshard_after_forward=free)  # puts its hook before all others
    module.register_forward_pre_hook(_hide, prepend=True, with_kwargs=True)


def sharded(model: nn.Module) -> Iterator[FSDPModule]:
    """The modules whose parameters are gathered together."""
    return (m for m in model.modules() if isinstance(m, FSDPModule))


def hold_back(model: nn.Module, mesh: Mesh, last: bool) -> None:
    """Before a backward pass: only after the last one of a step need gradients be summed, as far as `mesh.zero` lets them pile up."""
    for module in sharded(model):
        module.set_requires_gradient_sync(last or mesh.zero > 1, recurse=False)
        module.set_requires_all_reduce(last, recurse=False)


def at_rest(model: nn.Module) -> None:
    """Frees gathered weights: parameters are shards again."""
    for module in sharded(model):
        module.reshard()
