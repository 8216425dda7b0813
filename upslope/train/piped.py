"""A trainer whose model is cut into pipeline stages: the same step, its passes run by `parallel.pipeline`.

Losses are computed on the last stage, side losses by the stages that have the layers; values and statistics reach all of its ranks.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from upslope.config import UsageError
from upslope.model.aux import Aux, Want
from upslope.model.config import AuxLoss
from upslope.model.heads import ScalarHead
from upslope.model.weights import Live
from upslope.optim.config import AdamW, Muon
from upslope.parallel.assemble import Assembled
from upslope.parallel.pipeline import Pipe
from upslope.parallel.sharded import at_rest
from upslope.precision.autocast import autocast
from upslope.train.auxiliary import Auxiliary, AuxiliaryStep
from upslope.train.batch import Batch, Totals
from upslope.train.head import read
from upslope.train.many import Many
from upslope.train.parts import Piece, Saved
from upslope.train.parts import pieces as whole_pieces
from upslope.train.protocol import Loss, Out, Sums, Surveying, Wants
from upslope.train.ranks import Alone, Part, Ranks
from upslope.train.trainer import Trainer

SAID = ("balance", "router_z", "index_kl", "mtp_nll")
MEANS = ("balance", "router_z")


class Stages(Many):
    """The ranks of a mesh with a pipeline; `train.ranks.Ranks`. Sums over data are those of one stage, the norm is over all stages."""

    def __init__(self, pipe: Pipe, assembled: Assembled, scalar: ScalarHead | None = None) -> None:
        super().__init__(assembled, scalar if pipe.local.last else None)
        self.pipe = pipe

    def count(self, named: Mapping[str, Tensor]) -> int:
        """Numbers in the whole parameters of these names, of all stages; what two stages hold counts once."""
        mine = super().count({n: p for n, p in named.items() if n not in self.pipe.copies})
        return int(self.pipe.add(torch.tensor(float(mine), dtype=torch.float64, device=self.pipe.device)))

    def parts(self, batch: Batch, micro_tokens: int) -> list[Part]:
        """This rank's micro-batches, of fewer tokens where there would be fewer than stages: a pipeline would idle."""
        least = -(-len(batch) // (self.groups["data"].size * self.pipe.pp))
        return super().parts(batch, min(micro_tokens, least) if micro_tokens > 0 else least)

    def last(self, last: bool) -> None:
        """The schedule holds gradients back by itself."""

    def largest(self, values: Tensor) -> Tensor:
        """Elementwise maximum over the ranks of this stage: others have other layers."""
        out = values.detach().clone()
        for axis in (self.groups["tokens"], self.groups["tp"]):
            if axis.size > 1:
                dist.all_reduce(out, op=dist.ReduceOp.MAX, group=axis.group)
        return out

    def norm(self, grads: Mapping[str, Tensor]) -> float:
        """L2 norm of all gradients of all stages; what two stages hold counts once."""
        return super().norm({n: g for n, g in grads.items() if n not in self.pipe.copies})

    def pieces(self, state: Mapping[str, Tensor]) -> list[Piece]:
        """The rows that this rank saves; what several stages have, the first of them does."""
        names: list[Any] = [None] * self.pipe.pp
        dist.all_gather_object(names, set(state), group=self.pipe.group)
        mine = {n: t for n, t in state.items() if not any(n in before for before in names[: self.pipe.rank])}
        found = super().pieces({n: t for n, t in mine.items() if self._parameter(n) is not None})
        first = not any(self.groups[axis].index for axis in ("tokens", "tp"))
        return [*found, *whole_pieces({n: t for n, t in mine.items() if self._parameter(n) is None} if first else {})]

    def read(self, manifest: Path, mine: Mapping[str, Tensor]) -> Saved:
        """A saved state of any mesh, as far as `mine` has it; all of it, whole, where that is empty."""
        for stage in self.pipe.stages:
            at_rest(stage)
        saved = super().read(manifest, mine)
        return saved._replace(tensors={n: t for n, t in saved.tensors.items() if n in mine or not mine})


class PipedTrainer(Trainer):
    """A `Trainer` of one rank of a pipeline: it holds, optimises and saves `pipe.local`.

    scalar: kept by the rank with the last stage. All other arguments are the trainer's.
    """

    def __init__(self, pipe: Pipe, ranks: Stages, optim: AdamW | Muon, *, scalar: ScalarHead | None = None, **options: Any) -> None:
        super().__init__(pipe.local, optim, scalar=scalar if pipe.local.last else None, ranks=ranks, **options)
        self.pipe = pipe
        self.auxiliary = PipedAuxiliary(pipe)

        def context() -> Any:
            return autocast(self.numerics, pipe.device.type)

        pipe.context = context

    @torch.no_grad()
    def forward(self, batch: Batch, wants: Wants) -> Out:
        """`Out` of a batch on every rank of the pipeline."""
        parts = replace(batch, pairs=None).split(self.micro_tokens)
        outs = self.pipe.forward(parts, lambda hidden, i: _given(self._read(hidden, parts[i], wants)))
        return Out(**{name: torch.cat([o[name] for o in outs]) for name in outs[0]})

    def weights(self) -> Live:
        """UsageError: this rank has some of the layers only."""
        raise UsageError("an engine reads all weights, and a rank of a pipeline has those of its stages\nway out: pp = 1")

    @torch.no_grad()
    def _surveyed(self, parts: list[Part], loss: Loss, side: AuxiliaryStep | None) -> Sums | None:
        surveying = isinstance(loss, Surveying)
        assert isinstance(side, PipedStep)
        if not surveying and not side.spans:
            return None

        def said(hidden: Tensor, i: int) -> dict[str, Tensor]:
            part, _ = parts[i]
            return dict(loss.survey(self._read(hidden, part, loss.wants), part)) if isinstance(loss, Surveying) else {}

        def seen(aux: Aux, i: int) -> None:
            side.survey(aux, parts[i][1])

        wants = side.wants - {"index"} if side.spans else frozenset[Want]()
        sums = Sums()
        for one in self.pipe.forward([p for p, _ in parts], said, wants, seen if side.spans else None):
            sums = sums.plus(one)
        if side.spans:
            side.surveyed_all()
        return Sums(self.ranks.add(sums)) if surveying else None

    def _accumulate(
        self, parts: list[Part], loss: Loss, total: Totals, sums: Sums | None, side: AuxiliaryStep | None
    ) -> tuple[float, Sums, Aux]:
        assert isinstance(side, PipedStep)
        wanted = frozenset[Want]().union(*(hook.wants for hook in self.hooks))
        stats, seen, tally = [Sums()], Aux(wanted), Tally()

        def last(hidden: Tensor, i: int) -> Tensor:
            part, _ = parts[i]
            piece, said = loss(self._read(hidden, part, loss.wants), part, total, sums)
            stats[0] = stats[0].plus(said)
            return piece

        def extra(aux: Aux, i: int) -> Tensor | None:
            for layer, largest in aux.max_logit.items():
                seen.saw_logit(layer, largest.detach())
            if not (aux.router or aux.index or aux.mtp):
                return None
            part, at = parts[i]
            with autocast(self.numerics, part.ids.device.type):
                more, said = side.of_stage(aux)(aux, part, at, self.pipe.logits, self.chunk)
            tally.take(said, side, aux, len(at))
            return more

        wants = wanted | side.wants
        scale = 1.0 if self.scale is None else self.scale.value
        values = self.pipe.accumulate([p for p, _ in parts], last, wants, extra if wants else None, scale)
        (said,) = self.pipe.shared([dict(stats[0])])
        return math.fsum(values), Sums(said).plus(tally.everywhere(self.pipe, sum(len(at) > 0 for _, at in parts))), seen

    def _read(self, hidden: Tensor, part: Batch, wants: Wants) -> Out:
        if part.replay is not None and part.replay.routes is not None:
            raise UsageError("the batch replays expert routes, which no model here can\nway out: Replay(routes=None)")
        with autocast(self.numerics, part.ids.device.type):
            return read(hidden, part, wants, self.pipe.logits, self.scalar, self.chunk)


class PipedAuxiliary(Auxiliary):
    """The side losses of one rank's layers; every rank of the pipeline has it, whatever its layers, for its sums are collective."""

    def __init__(self, pipe: Pipe) -> None:
        here = Auxiliary.of(pipe.local)
        super().__init__(*((here.routers, here.index, here.mtp) if here is not None else ({}, {}, None)))
        self.pipe = pipe

    def step(self, batch: Batch, places: Sequence[Tensor], ranks: Ranks | None = None) -> PipedStep:
        """The side losses of one optimizer step."""
        return PipedStep(self, batch, places, ranks or Alone())


class PipedStep(AuxiliaryStep):
    """One step's side losses: a stage sees its own layers; whether to survey is agreed among all."""

    of: PipedAuxiliary

    def __init__(self, of: PipedAuxiliary, batch: Batch, places: Sequence[Tensor], ranks: Ranks) -> None:
        super().__init__(of, batch, places, ranks)
        self.pipe = of.pipe
        self.spans = bool(self.pipe.add(torch.tensor(float(self.spans), device=self.pipe.device)))

    def of_stage(self, aux: Aux) -> AuxiliaryStep:
        """With predictions only where the stage made some, and the same counts."""
        if aux.mtp:
            return self
        trunk = copy.copy(self)
        trunk.masses = {}
        return trunk

    def violation(self) -> Sums:
        """max_vio: the mean over layers of all stages."""
        mean = super().violation()
        count = float(len(self._step_counts()))
        mine = torch.tensor([float(mean.get("max_vio", 0.0)) * count, count], dtype=torch.float64, device=self.pipe.device)
        total, layers = self.pipe.add(mine)
        return Sums.of(max_vio=total / layers) if layers else Sums()


class Tally:
    """Statistics of side losses over stages: means over layers and terms are weighted by how many a stage has."""

    def __init__(self) -> None:
        self.total = dict.fromkeys(SAID, 0.0)
        self.count = dict.fromkeys(SAID, 0.0)

    def take(self, said: Sums, side: AuxiliaryStep, aux: Aux, segments: int) -> None:
        """One part at one stage."""
        if not segments:
            return
        passes = {layer: len(stats.counts) // segments for layer, stats in aux.router.items()}
        terms = {layer: sum(isinstance(t, AuxLoss) for t in side.of.routers[layer].config.balance) for layer in passes}
        sizes = {"balance": sum(passes[i] * terms[i] for i in passes), "router_z": sum(passes.values())}
        for name, value in said.items():
            size = sizes.get(name, 1)
            self.total[name] += float(value) * size
            self.count[name] += size

    def everywhere(self, pipe: Pipe, parts: int) -> Sums:
        """Those of all stages, summed over the `parts` parts that hold segments of the batch."""
        mine = torch.tensor([[self.total[n], self.count[n]] for n in SAID], dtype=torch.float64, device=pipe.device)
        rows = dict(zip(SAID, pipe.add(mine)))
        return Sums.of(**{n: t * parts / c if n in MEANS else t for n, (t, c) in rows.items() if c})


def _given(out: Out) -> dict[str, Tensor]:
    return {name: value for name, value in out._asdict().items() if value is not None}
