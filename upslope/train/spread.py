"""A stage's trainer on a mesh of ranks, and the whole model back from it."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from upslope.config import UsageError
from upslope.model.heads import ScalarHead
from upslope.model.transformer import Transformer
from upslope.optim.config import AdamW, Muon
from upslope.parallel.assemble import assemble
from upslope.parallel.config import Mesh, Recompute
from upslope.parallel.groups import Groups
from upslope.parallel.pipeline import Pipe
from upslope.parallel.staged import assemble_stages
from upslope.train.many import Many
from upslope.train.piped import PipedTrainer, Stages
from upslope.train.trainer import Trainer


def spread(
    model: Transformer, optim: AdamW | Muon, mesh: Mesh, recomputed: Recompute | None, scalar: ScalarHead | None, **options: Any
) -> Trainer:
    """A trainer of this rank's part of a whole model, which every rank has alike. Collective; options: of `Trainer`.

    UsageError where the process is not one of as many ranks as the mesh has.
    """
    world = dist.get_world_size() if dist.is_initialized() else 1
    if world != mesh.ranks:
        way = "run it with `upslope run`, which starts as many, or under torchrun; in one process: mesh = {}"
        raise UsageError(f"mesh {mesh}: {mesh.ranks} ranks, and this is one process of {world}\nway out: {way}")
    groups = Groups.of(mesh, "cuda" if next(model.parameters()).is_cuda else "cpu")
    if mesh.pp == 1:
        assembled = assemble(model, groups, recomputed)
        return Trainer(model, optim, scalar=scalar, ranks=Many(assembled, scalar), **options)
    pipe = Pipe(model, groups["pp"].group, virtual=mesh.virtual)
    ranks = Stages(pipe, assemble_stages(pipe, groups, recomputed), scalar)
    return PipedTrainer(pipe, ranks, optim, scalar=scalar, **options)


def whole_state(trainer: Trainer) -> dict[str, Tensor]:
    """The whole training state on rank 0, and nothing on the others, from the rows that each would save. Collective."""
    mine = trainer.ranks.pieces(trainer.state())
    found: list[Any] = [None] * trainer.ranks.world
    dist.gather_object([p._replace(data=p.data.detach().cpu().clone()) for p in mine], found if trainer.ranks.rank == 0 else None)
    parts: dict[str, list[Any]] = {}
    for piece in (p for one in found for p in one or ()):
        parts.setdefault(piece.name, []).append(piece)
    return {
        name: torch.cat([p.data for p in sorted(some, key=lambda p: p.start)]) if some[0].shape else some[0].data
        for name, some in parts.items()
    }
