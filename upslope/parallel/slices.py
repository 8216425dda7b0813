"""A part of a transformer for one pipeline stage: some of its modules under their own names, and what it is given and gives on.

Stages give on the residual stream, (T, d) or (T, n, d) with hyper-connections, and one number: the side losses of the stages so far. Its
gradient is 1, so every stage's own losses join that stage's backward pass.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import torch
from torch import Tensor, nn

from upslope.config import UsageError
from upslope.model.aux import Aux, RouterStats, Want
from upslope.model.flow import Flow
from upslope.model.packing import Packing
from upslope.model.transformer import Transformer

Side = Callable[[Aux, int], Tensor | None]
"""(side outputs of one stage's layers, number of the part) → a scalar that joins the loss, or None. Called on every rank with layers."""


class Part(Protocol):
    """What a pipeline reads of a micro-batch: (T,) tokens, segment numbers 0..S-1 in order, positions."""

    @property
    def ids(self) -> Tensor: ...
    @property
    def seg(self) -> Tensor: ...
    @property
    def pos(self) -> Tensor: ...


class Piece(NamedTuple):
    """A part with its filler. ids, seg, pos: (T,). tokens, segments: of the part itself; what follows is filler."""

    ids: Tensor
    seg: Tensor
    pos: Tensor
    tokens: int
    segments: int


def piece_of(part: Part) -> Piece:
    """A part without filler."""
    return Piece(part.ids, part.seg, part.pos, len(part.ids), int(part.seg[-1]) + 1)


def level(parts: Sequence[Part], count: int, multiple: int = 1) -> list[Piece]:
    """`count` ≥ len(parts) pieces of equal length, a multiple of `multiple`; those beyond the parts are filler only.

    Filler is copies of beginnings of the part's longest segment, as segments of their own: no other token sees them, a causal model says of
    them what it says of the original, so that maxima over tokens stay what they were, and they are no longer than what there is.
    """
    width = max(len(p.ids) for p in parts)
    width += -width % multiple
    own = [piece_of(p) for p in parts]
    blank = own[0]._replace(tokens=0, segments=0)
    return [_filled(p, width) for p in (*own, *[blank] * (count - len(own)))]


def _filled(piece: Piece, width: int) -> Piece:
    missing = width - piece.tokens
    if missing == 0:
        return piece
    lengths = torch.bincount(piece.seg)
    longest = int(lengths.argmax())
    size, start = int(lengths[longest]), int(lengths[:longest].sum())
    at = torch.arange(missing, device=piece.ids.device)
    source = start + at % size
    new = (piece.ids[source], piece.segments + at // size, piece.pos[source])
    ids, seg, pos = (torch.cat((old[: piece.tokens], more)) for old, more in zip(piece[:3], new))
    return Piece(ids, seg, pos, piece.tokens, piece.segments)


@dataclass(frozen=True)
class Job:
    """One pass over pieces. real: number of parts among them. wants, side: side outputs, and who takes them."""

    pieces: Sequence[Piece]
    real: int
    wants: frozenset[Want] = frozenset()
    side: Side | None = None
    context: Callable[[], AbstractContextManager[object]] = nullcontext

    def aux(self, i: int) -> Aux | None:
        """Side outputs to fill for a piece."""
        return Aux(self.wants) if self.side is not None and i < self.real else None

    def told(self, aux: Aux | None, i: int) -> Tensor | float:
        """The side loss of a stage; its side outputs are cut to the part itself."""
        if aux is None or self.side is None:
            return 0.0
        extra = self.side(_cut(aux, self.pieces[i]), i)
        return 0.0 if extra is None else extra.to(torch.float64)


def _cut(aux: Aux, piece: Piece) -> Aux:
    """Side outputs without the filler's."""
    every = int(piece.seg[-1]) + 1
    if every == piece.segments:
        return aux

    def rows(stats: RouterStats) -> RouterStats:
        counts, probs, square, lengths = (torch.cat([t[: piece.segments] for t in c.split(every)]) for c in stats[:4])
        return RouterStats(counts, probs, square, lengths, stats.k)

    router = {layer: rows(stats) for layer, stats in aux.router.items()}
    return Aux(aux.wants, aux.max_logit, router, aux.index, [h[: piece.tokens] for h in aux.mtp])


class _Elsewhere(nn.Module):
    """In the place of a module that another stage has."""


class Slice(Transformer):
    """Some blocks of a transformer; with the embedding in the first stage, and final norm, MTP modules and head in the last.

    Modules are the model's own, under their own names. Where head or MTP read the embedding, the last stage has it too.
    """

    def __init__(self, model: Transformer, blocks: Collection[int], first: bool, last: bool) -> None:
        nn.Module.__init__(self)
        self.config, self.backend, self.streams = model.config, model.backend, model.streams
        self.first, self.last = first, last
        self.holds_embedding = first or (last and (model.head is None or model.mtp is not None))
        self.embed = model.embed if self.holds_embedding else _Elsewhere()  # type: ignore[assignment]
        self.blocks = nn.ModuleList()
        for i in sorted(blocks):
            self.blocks.add_module(str(i), model.blocks[i])
        self.collapse = model.collapse if last else None
        if last:
            self.final_norm = model.final_norm
        self.head = model.head if last else None
        self.mtp = model.mtp if last else None

    @property
    def dtype(self) -> torch.dtype:
        """Of the residual stream between stages."""
        wide = any(p.dtype == torch.float64 for p in self.parameters())
        return torch.float64 if wide else torch.float32

    def shape(self, tokens: int) -> tuple[int, ...]:
        """Of the residual stream between stages."""
        return (tokens, self.streams, self.config.d_model) if self.streams else (tokens, self.config.d_model)

    def backends(self, grad: bool = True, max_logit: bool = False) -> dict[str, str]:
        """UsageError: a stage alone cannot say."""
        raise UsageError("a pipeline stage does not know all backends\nway out: ask the whole model, before it is cut")

    def forward(  # type: ignore[override]
        self, x: Tensor | None = None, carried: Tensor | None = None, *, job: Job, at: Tensor
    ) -> tuple[Tensor, Tensor]:
        """(residual stream, side losses so far) → the same after this stage; the last gives hidden states (T, d) after the final norm.

        x: None in the first stage. carried: (1,) float64. at: (1,) the number of the piece.
        """
        i = int(at)
        piece = job.pieces[i]
        aux = job.aux(i)
        with job.context():
            if x is None:
                x = self.embedded(piece.ids)
                if self.streams:
                    x = x[:, None].expand(-1, self.streams, -1)
            flow = Flow(piece.ids, piece.pos, Packing(piece.seg), None, self.backend, aux, x.dtype)
            for block in self.blocks:
                x = block(x, flow, None)
            if self.last:
                x = self.final_norm(x if self.collapse is None else self.collapse(x))
                if self.mtp is not None and aux is not None and "mtp" in aux.wants:
                    aux.mtp = self.mtp(x, flow, self.embedded)
            else:
                x = x.to(self.dtype).contiguous()
        if carried is None:
            carried = torch.zeros(1, dtype=torch.float64, device=x.device, requires_grad=torch.is_grad_enabled())
        assert x is not None
        return x, carried + job.told(aux, i)
