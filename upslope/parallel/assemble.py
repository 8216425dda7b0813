"""A whole model taken apart over the ranks of a mesh, in the one order that works."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from upslope.config import UsageError
from upslope.parallel.checkpointing import recompute
from upslope.parallel.config import Recompute
from upslope.parallel.context import apply_context
from upslope.parallel.expert import apply_expert
from upslope.parallel.gather import Layout
from upslope.parallel.groups import Groups
from upslope.parallel.sharded import shard
from upslope.parallel.table import TABLE, ShardingTable
from upslope.parallel.tensor import apply_tensor


@dataclass(frozen=True)
class Assembled:
    """This rank's part of a model, and how it fits with the others'."""

    model: nn.Module
    groups: Groups
    layout: Layout


def assemble(model: nn.Module, groups: Groups, recomputed: Recompute | None = None, table: ShardingTable = TABLE) -> Assembled:
    """Cuts a whole model, equal on every rank, in place: tp and ep by the table, cp, recomputation, then shards. Collective.

    The optimizer is built after it. UsageError for what a mesh cannot do with this model.
    """
    mesh = groups.mesh
    if mesh.pp > 1:
        raise UsageError(f"mesh {mesh}: a whole model has no pipeline stages\nway out: pp = 1, or `parallel.staged.assemble_stages`")
    placements = table.placements(model, groups)
    apply_tensor(model, groups, table)
    apply_expert(model, groups, table)
    apply_context(model, groups)
    if recomputed is not None:
        recompute(model, recomputed)
    shard(model, groups)
    return Assembled(model, groups, Layout(model, placements, groups))
