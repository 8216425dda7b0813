"""Whose rows are whose: where the parts of a sharded model lie in whole tensors, and whole tensors from parts.

A parameter is cut over tp and ep as the table says; of its part each rank of the shards (experts: of edp) holds a run of rows.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from upslope.optim.shards import local
from upslope.parallel.comm import joined
from upslope.parallel.groups import Axis, Groups, Name
from upslope.parallel.sharded import held_rows
from upslope.parallel.table import Placement

Over = Callable[[list[str], list[Tensor]], list[Tensor]]


@dataclass(frozen=True)
class Held:
    """What this rank holds of one parameter.

    place: its part by the table. over: the axis over which the rows of that part are shards, of `counts` rows each; None = not in shards.
    """

    place: Placement
    over: Axis | None
    counts: tuple[int, ...]

    @property
    def base(self) -> int:
        """The first row of the table's part, in the whole."""
        return sum(c.start for c in self.place.cuts if c.dim == 0)

    @property
    def rows(self) -> tuple[int, int]:
        """(start, stop) of the rows held here, in the whole."""
        at = 0 if self.over is None else self.over.index
        start = self.base + sum(self.counts[:at])
        return start, start + self.counts[at]

    def across(self) -> int | None:
        """A dimension behind the first that is cut over tp, if there is one."""
        cut = self.place.over("tp")
        return cut.dim if cut is not None and cut.dim else None

    def of(self, whole: Tensor) -> Tensor:
        """What this rank holds of the whole, as a view."""
        start, stop = self.rows
        whole = whole[start:stop]
        for c in self.place.cuts:
            whole = whole.narrow(c.dim, c.start, c.stop - c.start) if c.dim else whole
        return whole


class Layout:
    """The parameters of a model over a mesh; also `optim.shards.Shards` for its optimizer.

    held: by name, of parameters. wholes: all others, saved buffers for example, are whole everywhere.
    """

    def __init__(self, model: nn.Module, placements: Mapping[str, Placement], groups: Groups) -> None:
        self.groups = groups
        self.held: dict[str, Held] = {}
        for name, p in model.named_parameters():
            place = placements[name]
            axis = groups["edp" if place.over("ep") is not None else "shards"] if isinstance(p, DTensor) else None
            counts = held_rows(place.local[0], axis.size) if axis is not None else [place.local[0]]
            self.held[name] = Held(place, axis, tuple(counts))
        matrices = [n for n, h in self.held.items() if len(h.place.shape) == 2]
        self.turn = {n: i for i, n in enumerate(matrices)}

    def shape(self, name: str) -> tuple[int, ...]:
        """Of the whole parameter."""
        return self.held[name].place.shape

    def first(self, name: str) -> int:
        """The row of the whole parameter that is the first one held here."""
        return self.held[name].rows[0]

    def places(self, name: str) -> Tensor | None:
        """Where in the whole, counted along its rows, each element held here stands: int64 in the shape of the part."""
        if name not in self.held:
            return None
        held = self.held[name]
        spans = {0: held.rows} | {c.dim: (c.start, c.stop) for c in held.place.cuts if c.dim}
        at = torch.zeros((), dtype=torch.int64)
        for dim, n in enumerate(held.place.shape):
            at = at[..., None] * n + torch.arange(*spans.get(dim, (0, n)))
        return at

    def holders(self, name: str) -> int:
        """How many ranks hold each element of what this rank holds, among those with the same blocks."""
        mesh, held = self.groups.mesh, self.held.get(name)
        everyone = mesh.dp * mesh.shards * mesh.tp
        if held is None:
            return everyone
        apart = 1
        for cut in held.place.cuts:
            apart *= self.groups[_axis(cut.axis)].size
        return everyone // (apart * (1 if held.over is None else held.over.size))

    def over_wholes(self, names: Sequence[str], parts: Sequence[Tensor], f: Over) -> list[Tensor]:
        """f of whole matrices, each computed by one rank of its shards (by all of tp and dp); stacks of matrices stay where they are."""
        torn = [n for n in names if len(self.held[n].place.shape) == 2 and self.held[n].over is not None]
        mine = dict(zip(names, parts))
        wholes = {n: t for n, t in mine.items() if n not in torn} | self._collected({n: mine[n] for n in torn})
        wholes = {n: self._across(n, t) for n, t in wholes.items()}
        done = dict(zip(wholes, f(list(wholes), list(wholes.values()))))
        done = {n: self._own_columns(n, t) for n, t in done.items()}
        back = self._returned({n: done[n] for n in torn if n in done}, {n: mine[n] for n in torn})
        return [back[n] if n in back else done[n] for n in names]

    def _owner(self, name: str) -> int:
        over = self.held[name].over
        return self.turn[name] % over.size if over is not None else 0

    def _collected(self, parts: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The table's parts of the matrices that this rank computes, from all shards."""
        if not parts:
            return {}
        axis = self.groups["shards"]
        sent = [[t for n, t in parts.items() if self._owner(n) == i] for i in range(axis.size)]
        own = [n for n in parts if self._owner(n) == axis.index]
        shapes = [[(self.held[n].counts[i], *parts[n].shape[1:]) for n in own] for i in range(axis.size)]
        got = _swapped(sent, shapes, next(iter(parts.values())), axis)
        return {n: torch.cat([got[i][k] for i in range(axis.size)]) for k, n in enumerate(own)}

    def _returned(self, done: Mapping[str, Tensor], parts: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The rows held here of every matrix, from the ranks that computed them."""
        if not parts:
            return {}
        axis = self.groups["shards"]
        cut = {n: t.split(list(self.held[n].counts)) for n, t in done.items()}
        sent = [[cut[n][i] for n in done] for i in range(axis.size)]
        theirs = [[n for n in parts if self._owner(n) == i] for i in range(axis.size)]
        got = _swapped(sent, [[tuple(parts[n].shape) for n in names] for names in theirs], next(iter(parts.values())), axis)
        return {n: t for names, tensors in zip(theirs, got) for n, t in zip(names, tensors)}

    def _across(self, name: str, t: Tensor) -> Tensor:
        """The parts of all tp ranks joined, whichever dimension is cut."""
        cut = self.held[name].place.over("tp")
        return t if cut is None else joined(t, self.groups["tp"], cut.dim, self.held[name].place.shape[cut.dim])

    def _own_columns(self, name: str, t: Tensor) -> Tensor:
        cut = self.held[name].place.over("tp")
        return t if cut is None else t.narrow(cut.dim, cut.start, cut.stop - cut.start)

    def saved(self, name: str, t: Tensor) -> tuple[int, int, Tensor] | None:
        """(start, stop, whole rows) of a tensor laid out like a parameter that this rank is to save; None = others save it. Collective."""
        held, tp = self.held[name], self.groups["tp"]
        start, stop = held.rows
        data = local(t)
        across = held.across()
        if across is not None:
            data = joined(data, tp, across, held.place.shape[across])
            low, high = tp.span(stop - start)
            start, stop, data = start + low, start + high, data[low:high]
        elif held.place.over("tp") is None and tp.index:
            return None
        copied = held.over is None and held.place.over("ep") is None and self.groups["shards"].index
        return None if copied or self.groups["dp"].index or start == stop else (start, stop, data)


def like(whole: Tensor, held: Held, mine: Tensor) -> Tensor:
    """What this rank holds of a whole tensor, of the kind that `mine` is."""
    part = held.of(whole).to(mine.device).clone(memory_format=torch.contiguous_format)
    if not isinstance(mine, DTensor):
        return part
    return DTensor.from_local(part, mine.device_mesh, mine.placements, run_check=False, shape=mine.shape, stride=mine.stride())


def _axis(name: str) -> Name:
    return "tp" if name == "tp" else "ep"


def _swapped(sent: Sequence[Sequence[Tensor]], shapes: Sequence[Sequence[tuple[int, ...]]], like: Tensor, axis: Axis) -> list[list[Tensor]]:
    """sent[i]: tensors for rank i → tensors of `shapes[i]` from each rank i, all in one exchange."""
    sizes = [[torch.Size(s).numel() for s in row] for row in shapes]
    flat = torch.cat([t.reshape(-1) for row in sent for t in row]) if any(sent) else like.new_empty(0)
    out = like.new_empty(sum(sum(row) for row in sizes))
    if axis.size > 1:
        dist.all_to_all_single(out, flat, [sum(row) for row in sizes], [sum(t.numel() for t in row) for row in sent], group=axis.group)
    else:
        out = flat
    rows = out.split([sum(row) for row in sizes])
    return [[p.view(s) for p, s in zip(r.split(row), shape)] for r, row, shape in zip(rows, sizes, shapes)]
