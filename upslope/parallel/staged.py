"""A pipeline's stages taken apart over the other axes of a mesh: each by tp, ep and shards, as `parallel.assemble` does a whole model."""

from __future__ import annotations

from upslope.config import UsageError
from upslope.parallel.assemble import Assembled
from upslope.parallel.checkpointing import recompute
from upslope.parallel.config import Recompute
from upslope.parallel.expert import apply_expert
from upslope.parallel.gather import Layout
from upslope.parallel.groups import Groups
from upslope.parallel.pipeline import Pipe
from upslope.parallel.sharded import shard
from upslope.parallel.table import TABLE, Placement, ShardingTable
from upslope.parallel.tensor import apply_tensor


def assemble_stages(pipe: Pipe, groups: Groups, recomputed: Recompute | None = None, table: ShardingTable = TABLE) -> Assembled:
    """Cuts the stages of this rank in place; `model` of what comes back is `pipe.local`. Collective.

    UsageError for cp, and where two stages of a rank share the embedding, which would be cut twice.
    """
    mesh = groups.mesh
    if mesh.cp > 1:
        raise UsageError(f"mesh {mesh}: a pipeline does not split sequences\nway out: cp = 1, or pp = 1")
    twice = len({id(s.embed) for s in pipe.stages if s.holds_embedding}) < sum(s.holds_embedding for s in pipe.stages)
    if twice and mesh.dp * mesh.shards * mesh.tp > 1:
        raise UsageError(
            f"mesh {mesh}: the first and the last stage share the embedding on one rank, which can be cut for one only\n"
            "way out: an untied head without MTP, or another schedule than zbv"
        )
    placements: dict[str, Placement] = {}
    for stage in pipe.stages:
        placements |= table.placements(stage, groups)
        apply_tensor(stage, groups, table)
        apply_expert(stage, groups, table)
        if recomputed is not None:
            recompute(stage, recomputed)
        shard(stage, groups)
    return Assembled(pipe.local, groups, Layout(pipe.local, placements, groups))
