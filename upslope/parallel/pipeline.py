"""Pipeline parallelism: the blocks are split into stages on the ranks of a group, and micro-batches pass through them by a schedule.

Schedules are torch's: GPipe (arXiv 1811.06965), 1F1B (PipeDream-Flush, arXiv 2006.09503), interleaved 1F1B (arXiv 2104.04473), zero bubble
ZB-V (arXiv 2401.10241). The gradient of a parameter is the sum over parts, whatever the schedule.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Literal

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.tensor import DTensor

from upslope.config import UsageError
from upslope.model.aux import Want
from upslope.model.config import MoE
from upslope.model.transformer import Transformer
from upslope.parallel.slices import Job, Part, Side, Slice, level, piece_of
from upslope.parallel.stages import Style, blocks_of, rank_of

Schedule = Literal["gpipe", "1f1b", "interleaved", "zbv"]
PerPart = Callable[[Tensor, int], Tensor]
"""(hidden states (T, d) of a part, its number) → its scalar loss, already divided by the totals of the step. Called on the last stage."""
Reader = Callable[[Tensor, int], Mapping[str, Tensor]]
"""(hidden states (T, d) of a part, its number) → tensors by name. Called on the last stage."""


class Pipe:
    """A model cut into stages over the ranks of a process group; every rank of the group is given the same parts.

    model: the whole one, on meta or with weights; modules of other stages are let go. stages: this rank's, in order: what FSDP or TP
    wrap, in place, before the first pass. local: all of this rank's modules under the model's own names: what is initialised, optimised
    and saved. virtual: stages per rank. schedule: None is 1F1B, interleaved where virtual > 1. multiple: parts are filled up to one.
    context: entered round every stage's forward pass (autocast). A rank that is missing raises after the group's timeout.
    """

    def __init__(
        self,
        model: Transformer,
        group: dist.ProcessGroup,
        *,
        virtual: int = 1,
        schedule: Schedule | None = None,
        multiple: int = 1,
        context: Callable[[], AbstractContextManager[object]] = nullcontext,
    ) -> None:
        self.group, self.multiple, self.context = group, multiple, context
        self.pp, self.rank = dist.get_world_size(group), dist.get_rank(group)
        self.schedule: Schedule = schedule or ("1f1b" if virtual == 1 else "interleaved")
        if (self.schedule in ("gpipe", "1f1b") and virtual > 1) or (self.schedule == "zbv" and virtual != 2):
            wanted = 2 if self.schedule == "zbv" else 1
            raise UsageError(f"pipeline: schedule = {self.schedule!r} takes virtual = {wanted}, not {virtual}")
        if self.schedule == "zbv" and (model.config.mtp or any(isinstance(b.ffn, MoE) for b in model.config.layers())):
            raise UsageError("pipeline: schedule = 'zbv' cannot split the backward pass of experts and MTP\nway out: schedule = None")
        self.style: Style = "v" if self.schedule == "zbv" else "loop"
        self.count = self.pp * virtual
        blocks = blocks_of(model.config, self.count)
        self.numbers = [s for s in range(self.count) if self._rank(s) == self.rank]
        self.stages = [Slice(model, blocks[s], s == 0, s == self.count - 1) for s in self.numbers]
        mine = [i for s in self.numbers for i in blocks[s]]
        whole = self.stages[0] if virtual == 1 else Slice(model, mine, 0 in self.numbers, self.count - 1 in self.numbers)
        self.local = whole
        self._last = self._rank(self.count - 1)
        self._twins = self._last != 0 and (model.head is None or model.mtp is not None)
        self._built: tuple[tuple[int, int], Any] | None = None

    @property
    def copies(self) -> frozenset[str]:
        """Parameters of this rank that the first stage's rank holds too: sums over all parameters leave them out."""
        return frozenset({"embed.weight"} if self._twins and self.rank == self._last else ())

    def logits(self, hidden: Tensor) -> Tensor:
        """(T, d) → (T, V), where the last stage is."""
        return next(s for s in self.stages if s.last).logits(hidden)

    def accumulate(
        self, parts: Sequence[Part], per_part: PerPart, wants: frozenset[Want] = frozenset(), side: Side | None = None, scale: float = 1.0
    ) -> list[float]:
        """Forward and backward of all parts; gradients are added to `.grad`. Returns the parts' losses, the same on all ranks of the group.

        side: a stage's own losses from its layers' side outputs `wants`; they join the part's loss. scale: of the gradients. UsageError
        where parts of different lengths need filler and an indexer's loss, which is summed over all tokens, is wanted.
        """
        pieces = level(parts, self._rounds(len(parts)), self.multiple)
        if "index" in wants and any(p.tokens < len(p.ids) for p in pieces):
            raise UsageError(
                f"pipeline: an indexer's loss needs {len(pieces)} parts of equal length, not {[len(p.ids) for p in parts][:8]}\n"
                "way out: segments of one length and as many parts; or pp = 1"
            )
        job = Job(pieces, len(parts), wants, side, self.context)
        schedule = self._schedule(len(pieces), len(pieces[0].ids))

        def loss(out: tuple[Tensor, Tensor], target: Tensor) -> Tensor:
            hidden, carried = out
            i = int(target)
            total = carried.sum()
            if i < len(parts):
                total = total + per_part(hidden[: pieces[i].tokens], i).to(torch.float64)
            return total * scale

        schedule._loss_fn = loss
        numbers = torch.arange(len(pieces))
        found: list[Tensor] = []
        schedule.step(target=numbers, losses=found, return_outputs=False, job=job, at=numbers)
        self._join_twins()
        values = torch.zeros(len(parts), dtype=torch.float64, device=self.device)
        if found:
            values.copy_(torch.stack([x.detach() for x in found])[: len(parts)] / scale)
        dist.broadcast(values, dist.get_global_rank(self.group, self._last), self.group)
        return [float(v) for v in values]

    @torch.no_grad()
    def forward(
        self, parts: Sequence[Part], read: Reader, wants: frozenset[Want] = frozenset(), side: Side | None = None
    ) -> list[dict[str, Tensor]]:
        """A pass without gradient and without filler: what `read` says of each part, the same on all ranks of the group."""
        job = Job([piece_of(p) for p in parts], len(parts), wants, side, self.context)
        kept: dict[tuple[int, int], Tensor] = {}
        found: list[dict[str, Tensor]] = []
        zero = torch.zeros(1, dtype=torch.float64, device=self.device)
        for number, stage in zip(self.numbers, self.stages):
            sent: list[tuple[dist.Work | None, Tensor]] = []
            for i, piece in enumerate(job.pieces):
                x = None
                if number > 0 and (x := kept.pop((number - 1, i), None)) is None:
                    x = torch.empty(stage.shape(piece.tokens), dtype=stage.dtype, device=self.device)
                    dist.recv(x, dist.get_global_rank(self.group, self._rank(number - 1)), self.group)
                y, _ = stage(x, zero, job=job, at=torch.tensor([i]))
                if number == self.count - 1:
                    found.append(dict(read(y, i)))
                elif (to := self._rank(number + 1)) == self.rank:
                    kept[number, i] = y
                else:
                    sent.append((dist.isend(y, dist.get_global_rank(self.group, to), self.group), y))
            for work, _ in sent:
                if work is not None:
                    work.wait()
        return self.shared(found)

    def shared(self, values: list[dict[str, Tensor]]) -> list[dict[str, Tensor]]:
        """The last stage's tensors by name, on every rank of the group."""
        source = dist.get_global_rank(self.group, self._last)
        here = self.rank == self._last
        kinds: list[Any] = [[{n: (tuple(t.shape), t.dtype) for n, t in v.items()} for v in values] if here else None]
        dist.broadcast_object_list(kinds, source, self.group, device=self.device)
        out: list[dict[str, Tensor]] = []
        for k, kind in enumerate(kinds[0]):
            out.append({})
            for name, (shape, dtype) in kind.items():
                mine = values[k][name].contiguous() if here else torch.empty(shape, dtype=dtype, device=self.device)
                dist.broadcast(mine, source, self.group)
                out[-1][name] = mine
        return out

    def add(self, values: Tensor) -> Tensor:
        """The sum over the ranks of the group."""
        out = values.clone()
        dist.all_reduce(out, group=self.group)
        return out

    @property
    def device(self) -> torch.device:
        """Of this rank's weights."""
        return next(self.local.parameters()).device

    def _rank(self, stage: int) -> int:
        return rank_of(stage, self.pp, self.style)

    def _rounds(self, parts: int) -> int:
        """The number of pieces: as many as parts, or what the schedule needs."""
        n = max(parts, self.pp)
        while self.schedule == "interleaved" and n % (n // self.pp):
            n += 1
        return n

    def _schedule(self, pieces: int, tokens: int) -> Any:
        """Torch's schedule for pieces of these shapes; those of the last call are kept, with their buffers."""
        from torch.distributed import pipelining  # costs seconds: it brings the compiler along

        if self._built is None or self._built[0] != (pieces, tokens):
            like = self.stages[0]
            between = (
                torch.empty(like.shape(tokens), dtype=like.dtype, device="meta", requires_grad=True),
                torch.empty(1, dtype=torch.float64, device="meta", requires_grad=True),
            )
            stages = [
                pipelining.PipelineStage(s, n, self.count, self.device, () if n == 0 else between, between, group=self.group)
                for n, s in zip(self.numbers, self.stages)
            ]
            kinds: dict[Schedule, Any] = {
                "gpipe": pipelining.ScheduleGPipe,
                "1f1b": pipelining.Schedule1F1B,
                "interleaved": pipelining.ScheduleInterleaved1F1B,
                "zbv": pipelining.ScheduleZBVZeroBubble,
            }
            given = stages[0] if self.schedule in ("gpipe", "1f1b") else stages
            self._built = (pieces, tokens), kinds[self.schedule](given, pieces, loss_fn=_unset, scale_grads=False)
        return self._built[1]

    def _join_twins(self) -> None:
        """Adds the gradients of the two copies of the embedding, in the first stage and in the last, so that both stay equal."""
        if not self._twins or self.rank not in (0, self._last) or not self.local.embed.weight.requires_grad:
            return
        weight = self.local.embed.weight
        if weight.grad is None:
            weight.grad = torch.zeros_like(weight)
        mine = weight.grad.to_local() if isinstance(weight.grad, DTensor) else weight.grad
        other = torch.empty_like(mine)
        peer = dist.get_global_rank(self.group, self._last if self.rank == 0 else 0)
        ops = [dist.P2POp(dist.isend, mine.clone(), peer, self.group), dist.P2POp(dist.irecv, other, peer, self.group)]
        for work in dist.batch_isend_irecv(ops):
            work.wait()
        mine += other


def _unset(out: Any, target: Tensor) -> Tensor:
    raise AssertionError("a loss is set before every step")
