"""A trainer's steps shared by the ranks of a mesh: who trains on what, and sums, norms and saved states over all of them."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from upslope.optim.shards import local
from upslope.parallel.assemble import Assembled
from upslope.parallel.comm import summed
from upslope.parallel.gather import Layout, like
from upslope.parallel.sharded import at_rest, hold_back
from upslope.train.batch import Batch
from upslope.train.integrity import digest
from upslope.train.parts import Piece, Saved, read
from upslope.train.ranks import Part


class Many:
    """The ranks of an assembled model; `train.ranks.Ranks`, every method of which is collective.

    scalar: a head trained along, whole on every rank.
    """

    def __init__(self, assembled: Assembled, scalar: nn.Module | None = None) -> None:
        self.model, self.groups, self.layout, self.scalar = assembled.model, assembled.groups, assembled.layout, scalar
        self.rank, self.world = self.groups.rank, self.groups["world"].size
        self.device = next(self.model.parameters()).device

    @property
    def shards(self) -> Layout:
        """For the optimizer: `optim.build(..., shards=ranks.shards)`."""
        return self.layout

    def count(self, named: Mapping[str, Tensor]) -> int:
        """Numbers in the whole parameters of these names."""
        return sum(math.prod(self.layout.shape(n)) if n in self.layout.held else p.numel() for n, p in named.items())

    def parts(self, batch: Batch, micro_tokens: int) -> list[Part]:
        """This rank's micro-batches: a share of the batch's units, about as many tokens as the others have."""
        data = self.groups["data"]
        numbered = replace(batch, origin=torch.arange(batch.segments, device=batch.ids.device))
        shares = [numbered.select(s).split(micro_tokens) if len(s) else [] for s in shared_out(batch, data.size)]
        mine, most = shares[data.index], max(len(parts) for parts in shares)
        found = [(replace(p, origin=batch.origin[p.origin]), p.origin) for p in mine]
        return found + [_filler(batch)] * (most - len(mine))

    def last(self, last: bool) -> None:
        """Lets gradients be summed over ranks in the backward pass that follows, or not yet."""
        hold_back(self.model, self.groups.mesh, last)

    def reduce(self) -> None:
        """Sums the gradients of the scalar head; those of the model were summed on the way."""
        for p in () if self.scalar is None else self.scalar.parameters():
            if p.grad is not None:
                p.grad = summed(p.grad, self.groups["data"])

    def add(self, values: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Sums over the ranks that hold other data, in float64, whatever names each rank has."""
        axis = self.groups["data"]
        if axis.size == 1:
            return dict(values)
        known: list[Any] = [None] * axis.size
        dist.all_gather_object(known, {n: tuple(t.shape) for n, t in values.items()}, group=axis.group)
        shapes: dict[str, tuple[int, ...]] = {}
        for one in known:
            shapes |= one
        flat = [values[n].detach() if n in values else torch.zeros(shapes[n]) for n in sorted(shapes)]
        wide = torch.cat([t.to(self.device, torch.float64).reshape(-1) for t in flat]) if flat else torch.zeros(0, dtype=torch.float64)
        parts = summed(wide, axis).split([math.prod(shapes[n]) for n in sorted(shapes)])
        return {n: p.view(shapes[n]) for n, p in zip(sorted(shapes), parts)}

    def largest(self, values: Tensor) -> Tensor:
        """Elementwise maximum over all ranks."""
        out = values.detach().clone()
        if self.world > 1:
            dist.all_reduce(out, op=dist.ReduceOp.MAX)
        return out

    def together(self, value: int) -> tuple[int, ...]:
        """A 64-bit number of every rank, in order of rank."""
        if self.world == 1:
            return (value,)
        found: list[Any] = [None] * self.world
        dist.all_gather_object(found, value)
        return tuple(found)

    def norm(self, grads: Mapping[str, Tensor]) -> float:
        """L2 norm of all gradients, squares added in float64: shards add up, copies count once."""
        total = torch.zeros((), dtype=torch.float64, device=self.device)
        if grads:
            norms: list[Any] = list(torch._foreach_norm([local(g) for g in grads.values()]))
            squares = torch.stack([n.to(torch.float64) for n in norms]).square()
            total = (squares / torch.tensor([float(self.layout.holders(n)) for n in grads], device=squares.device)).sum()
        return float(summed(total, self.groups["world"]).sqrt())

    def pieces(self, state: Mapping[str, Tensor]) -> list[Piece]:
        """The rows that this rank saves: its shards, with columns cut over tp joined, and on rank 0 what every rank has."""
        found = []
        for name, t in state.items():
            parameter = self._parameter(name)
            if parameter is not None:
                saved = self.layout.saved(parameter, t)
                if saved is not None:
                    start, stop, data = saved
                    found.append(Piece(name, start, stop, self.layout.shape(parameter), data))
            elif self.rank == 0:
                found.append(Piece(name, 0, len(t) if t.ndim else 1, tuple(t.shape), t))
        return found

    def read(self, manifest: Path, mine: Mapping[str, Tensor]) -> Saved:
        """A saved state of any mesh; tensors of this rank's parameters are cut like `mine`, all others are whole.

        Few are in memory whole at a time: those that begin in the same file.
        """
        at_rest(self.model)
        saved, tensors = Saved(0, {}, {}), dict[str, Tensor]()
        for names in _by_file(manifest):
            saved = read(manifest, names)
            tensors |= self.cut(saved.tensors, mine)
        return saved._replace(tensors=tensors)

    def cut(self, whole: Mapping[str, Tensor], mine: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Whole tensors of a training state, those of parameters cut like `mine`."""
        at = {n: (self._parameter(n) if n in mine else None) for n in whole}
        return {n: t if (p := at[n]) is None else like(t, self.layout.held[p], mine[n]) for n, t in whole.items()}

    def copies(self, state: Mapping[str, Tensor]) -> dict[str, tuple[int, ...]]:
        """Tensors whose copies differ between ranks, with the ranks whose copies are not those of most (of a tie: of the lowest rank)."""
        seen = {n: (self._share(n), digest(local(t).cpu())) for n, t in state.items()}
        every: list[Any] = [seen]
        if self.world > 1:
            every = [None] * self.world
            dist.all_gather_object(every, seen)
        held: dict[tuple[str, Any], dict[int, list[int]]] = {}
        for rank, one in enumerate(every):
            for name, (share, value) in one.items():
                held.setdefault((name, share), {}).setdefault(value, []).append(rank)
        wrong: dict[str, list[int]] = {}
        for (name, _), by_value in held.items():
            right = max(by_value.values(), key=lambda ranks: (len(ranks), -ranks[0]))
            wrong.setdefault(name, []).extend(r for ranks in by_value.values() if ranks is not right for r in ranks)
        return {n: tuple(sorted(ranks)) for n, ranks in wrong.items() if ranks}

    def _parameter(self, name: str) -> str | None:
        """The model's parameter that a tensor of a training state is, or is laid out like: model.P, optim.P.what, hook.number.what.P."""
        kind, _, rest = name.partition(".")
        if kind == "optim":
            rest = rest.rpartition(".")[0]
        elif kind == "hook":
            rest = ".".join(rest.split(".")[2:])
        return rest if kind in ("model", "optim", "hook") and rest in self.layout.held else None

    def _share(self, name: str) -> tuple[Any, ...]:
        """Which part of the whole this rank holds: equal where copies are."""
        parameter = self._parameter(name)
        if parameter is None:
            return ()
        held = self.layout.held[parameter]
        return (*held.rows, *((c.dim, c.start) for c in held.place.cuts))


def shared_out(batch: Batch, ranks: int) -> list[Tensor]:
    """The segments of each rank: whole units (pairs stay together), the longest first, each to whoever has the fewest tokens so far."""
    lengths = batch.lengths().tolist()
    units = sorted(batch._units(), key=lambda u: (-sum(lengths[s] for s in u), u[0]))
    shares: list[list[int]] = [[] for _ in range(ranks)]
    loads = [0] * ranks
    for unit in units:
        at = loads.index(min(loads))
        shares[at] += unit
        loads[at] += sum(lengths[s] for s in unit)
    return [torch.tensor(sorted(s), dtype=torch.int64, device=batch.ids.device) for s in shares]


def _by_file(manifest: Path) -> list[set[str] | None]:
    """The names of a saved state by the file in which they begin; [None] where the manifest makes no sense, as `read` will say."""
    try:
        rows = json.loads(manifest.read_bytes())["tensors"]
        begins = [(row["file"], row["name"]) for row in rows if row["start"] == 0]
    except (OSError, ValueError, KeyError, TypeError):
        return [None]
    return [{name for at, name in begins if at == file} for file in dict.fromkeys(file for file, _ in begins)] or [None]


def _filler(batch: Batch) -> Part:
    """The shortest unit with all weights zero, as no segment of the batch: it takes part in gathering weights and summing gradients."""
    lengths = batch.lengths().tolist()
    unit = min(batch._units(), key=lambda u: sum(lengths[s] for s in u))
    part = batch.select(torch.tensor(unit, device=batch.ids.device))
    empty = torch.zeros(0, dtype=torch.int64, device=batch.ids.device)

    def silent(column: Any) -> Any:
        return None if column is None else replace(column, weight=torch.zeros_like(column.weight))

    imitate = None if part.imitate is None else torch.zeros_like(part.imitate)
    pairs = None if part.pairs is None else part.pairs[:0]
    return replace(part, imitate=imitate, policy=silent(part.policy), distil=silent(part.distil), pairs=pairs), empty
