"""Batches of columns: flat, packed, without padding. Column t speaks of `ids[t]` given what precedes it in its segment.

So the first token of a segment is never imitated, rewarded or distilled: nothing precedes it. A weight of zero means
"nobody reads this column". `totals()` of a batch is the sum of `totals()` of its parts, in whatever way it is split:
that is why a loss divided by global totals is the same for any micro-batch and any number of ranks.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor

from upslope.config import UsageError

C = TypeVar("C")


class Totals(NamedTuple):
    """Additive denominators of a step, in float64.

    imitate, policy, distil: sums of the weights of those columns; pairs: number of pairs; tokens: number of tokens;
    segments: number of segments.
    """

    imitate: float = 0.0
    policy: float = 0.0
    distil: float = 0.0
    pairs: float = 0.0
    tokens: float = 0.0
    segments: float = 0.0

    def plus(self, other: Totals) -> Totals:
        """The totals of two batches taken together."""
        return Totals(*(a + b for a, b in zip(self, other)))


@dataclass(frozen=True)
class Policy:
    """Columns of policy-gradient losses, each (T,) float32, zero off action tokens.

    weight: the reduce lives here: 1 | 1/len(seq) | 1/len(rollout) | 1/L. advantage: A_t. old: log-probs under the
    trainer's weights before the update. sampled: log-probs of the engine, of the distribution sampled from.
    ref: log-probs under the reference. returns, values: targets and old predictions of a critic.
    """

    weight: Tensor
    advantage: Tensor
    old: Tensor
    sampled: Tensor
    ref: Tensor | None = None
    returns: Tensor | None = None
    values: Tensor | None = None


@dataclass(frozen=True)
class Distil:
    """A teacher's distribution for each column.

    weight: (T,) float32. ids: (T, k) int64 token ids. logprobs: (T, k) the teacher's log-probs of them. rest: (T,) log
    of the mass that the k ids leave out (-inf where k is the whole vocabulary).
    """

    weight: Tensor
    ids: Tensor
    logprobs: Tensor
    rest: Tensor


@dataclass(frozen=True)
class Replay:
    """What sampling saw, to be seen again. kept: (T, K) int64 token ids of the kept set that column t was drawn from
    (top-k, top-p), padded with -1; rows of -1 only = the whole vocabulary. routes: (T, layers, k) experts used."""

    kept: Tensor | None = None
    routes: Tensor | None = None


@dataclass(frozen=True)
class Batch:
    """Segments laid end to end.

    ids: (T,) int64. seg: (T,) int64, contiguous and numbered 0 … S-1. pos: (T,) int64, position inside the segment.
    imitate: (T,) weights of next-token imitation. pairs: (P, 2) int64 chosen and rejected segment numbers.
    ref: (S,) log-probability of each segment's imitated tokens under the reference policy: DPO reads it.
    origin: (S,) int64 sample index or trace id: the lineage of every gradient.
    """

    ids: Tensor
    seg: Tensor
    pos: Tensor
    origin: Tensor
    imitate: Tensor | None = None
    policy: Policy | None = None
    distil: Distil | None = None
    pairs: Tensor | None = None
    ref: Tensor | None = None
    replay: Replay | None = None

    @classmethod
    def of(cls, segments: Sequence[Sequence[int] | Tensor], *, origin: Sequence[int] | None = None, **columns: Any) -> Batch:
        """A batch of token sequences laid end to end; columns are passed on. UsageError for an empty segment."""
        parts = [torch.as_tensor(s, dtype=torch.int64) for s in segments]
        lengths = torch.tensor([len(p) for p in parts], dtype=torch.int64)
        if len(parts) == 0 or int(lengths.min()) == 0:
            raise UsageError("Batch: needs at least one segment, and no segment may be empty")
        starts = torch.repeat_interleave(lengths.cumsum(0) - lengths, lengths)
        return cls(
            ids=torch.cat(parts),
            seg=torch.repeat_interleave(torch.arange(len(parts)), lengths),
            pos=torch.arange(int(lengths.sum())) - starts,
            origin=torch.arange(len(parts)) if origin is None else torch.as_tensor(origin, dtype=torch.int64),
            **columns,
        )

    def __len__(self) -> int:
        """Number of tokens."""
        return int(self.ids.numel())

    @property
    def segments(self) -> int:
        """Number of segments."""
        return int(self.origin.numel())

    def lengths(self) -> Tensor:
        """(S,) int64: tokens of each segment."""
        return torch.bincount(self.seg, minlength=self.segments)

    def speaking(self) -> Tensor:
        """(T,) bool: columns that some weight reads; where no weights are given, every token that has a predecessor."""
        read = [w != 0 for _, w in self._weights()]
        return torch.stack(read).any(0) if read else self.pos > 0

    def totals(self) -> Totals:
        """The additive totals of this batch."""

        def mass(weight: Tensor | None) -> float:
            return 0.0 if weight is None else float(weight.sum(dtype=torch.float64))

        return Totals(
            imitate=mass(self.imitate),
            policy=mass(self.policy.weight if self.policy else None),
            distil=mass(self.distil.weight if self.distil else None),
            pairs=0.0 if self.pairs is None else float(len(self.pairs)),
            tokens=float(len(self)),
            segments=float(self.segments),
        )

    def check(self) -> None:
        """UsageError where the batch breaks its own rules: shapes, segment numbers, weights on first tokens, non-finite weights."""
        tokens = len(self)
        for name, column in self._columns():
            if len(column) != tokens:
                raise UsageError(f"Batch.{name}: {len(column)} columns for {tokens} tokens")
        steps = self.seg[1:] - self.seg[:-1]
        if tokens == 0 or int(self.seg[0]) != 0 or int(self.seg[-1]) != self.segments - 1 or bool(((steps != 0) & (steps != 1)).any()):
            raise UsageError(f"Batch.seg: must rise from 0 to {self.segments - 1} in steps of 0 or 1")
        first = self.pos == 0
        for name, weight in self._weights():
            if not bool(torch.isfinite(weight).all()):
                raise UsageError(f"Batch.{name}: holds a value that is not finite")
            if bool((weight[first] != 0).any()):
                raise UsageError(f"Batch.{name}: the first token of a segment has a weight; nothing precedes it, so its weight must be 0")
        if self.pairs is not None and len(self.pairs) and int(self.pairs.max()) >= self.segments:
            raise UsageError(f"Batch.pairs: names segment {int(self.pairs.max())} of {self.segments}")

    def select(self, segments: Tensor) -> Batch:
        """The batch of some segments, in the order given; pairs must be wholly inside or wholly outside.

        segments: (S',) int64 segment numbers.
        """
        lengths = self.lengths()
        starts = lengths.cumsum(0) - lengths
        size = lengths[segments]
        first = torch.repeat_interleave(starts[segments] - (size.cumsum(0) - size), size)
        columns = first + torch.arange(int(size.sum()), device=first.device)
        new = torch.full((self.segments,), -1, dtype=torch.int64, device=self.seg.device)
        new[segments] = torch.arange(len(segments), device=self.seg.device)
        pairs = self.pairs
        if pairs is not None:
            pairs = new[pairs]
            inside = (pairs >= 0).all(1)
            if bool(((pairs >= 0).any(1) & ~inside).any()):
                raise UsageError("Batch.select: a pair would be torn apart; select both of its segments or neither")
            pairs = pairs[inside]
        return replace(
            self,
            ids=self.ids[columns],
            seg=new[self.seg[columns]],
            pos=self.pos[columns],
            origin=self.origin[segments],
            imitate=None if self.imitate is None else self.imitate[columns],
            policy=_take(self.policy, columns),
            distil=_take(self.distil, columns),
            replay=_take(self.replay, columns),
            pairs=pairs,
            ref=None if self.ref is None else self.ref[segments],
        )

    def split(self, tokens: int) -> list[Batch]:
        """Parts of at most `tokens` tokens, of whole segments in order; both segments of a pair stay together.

        A unit (segment, or segments joined by pairs) longer than `tokens` is a part of its own. tokens <= 0: one part.
        """
        if tokens <= 0 or len(self) <= tokens:
            return [self]
        lengths = self.lengths().tolist()
        parts: list[list[int]] = [[]]
        size = 0
        for unit in self._units():
            weight = sum(lengths[s] for s in unit)
            if parts[-1] and size + weight > tokens:
                parts.append([])
                size = 0
            parts[-1] += unit
            size += weight
        return [self.select(torch.tensor(sorted(p), device=self.seg.device)) for p in parts]

    def to(self, device: torch.device | str) -> Batch:
        """The same batch on a device."""
        return replace(self, **{f.name: _moved(getattr(self, f.name), device) for f in fields(self)})

    def _units(self) -> list[list[int]]:
        """Segments grouped so that pairs are never torn apart, in order of their first segment."""
        root = list(range(self.segments))

        def find(s: int) -> int:
            while root[s] != s:
                root[s] = root[root[s]]
                s = root[s]
            return s

        for a, b in [] if self.pairs is None else self.pairs.tolist():
            low, high = sorted((find(a), find(b)))
            root[high] = low
        groups: dict[int, list[int]] = {}
        for s in range(self.segments):
            groups.setdefault(find(s), []).append(s)
        return list(groups.values())

    def _weights(self) -> list[tuple[str, Tensor]]:
        """The weight columns that are there, by name."""
        found = [] if self.imitate is None else [("imitate", self.imitate)]
        found += [] if self.policy is None else [("policy.weight", self.policy.weight)]
        return found + ([] if self.distil is None else [("distil.weight", self.distil.weight)])

    def _columns(self) -> list[tuple[str, Tensor]]:
        """All (T, …) columns by name."""
        found = [("seg", self.seg), ("pos", self.pos)] + ([] if self.imitate is None else [("imitate", self.imitate)])
        for name in ("policy", "distil", "replay"):
            part = getattr(self, name)
            if part is not None:
                found += [(f"{name}.{f.name}", getattr(part, f.name)) for f in fields(part) if getattr(part, f.name) is not None]
        return found


def _take(part: C, columns: Tensor) -> C:
    """The columns of a dataclass of (T, …) tensors."""
    if part is None:
        return part
    values = {f.name: getattr(part, f.name) for f in fields(part)}  # type: ignore[arg-type]
    return type(part)(**{k: None if v is None else v[columns] for k, v in values.items()})


def _moved(value: Any, device: torch.device | str) -> Any:
    if isinstance(value, Tensor):
        return value.to(device)
    if isinstance(value, Policy | Distil | Replay):
        return type(value)(**{f.name: _moved(getattr(value, f.name), device) for f in fields(value)})
    return value


def join(batches: Sequence[Batch]) -> Batch:
    """One batch of several, which must have the same kinds of columns; segments are renumbered."""
    offsets, pairs, seg = 0, [], []
    for b in batches:
        seg.append(b.seg + offsets)
        if b.pairs is not None:
            pairs.append(b.pairs + offsets)
        offsets += b.segments

    def cat(values: Sequence[Any]) -> Any:
        if all(v is None for v in values):
            return None
        if any(v is None for v in values):
            raise UsageError("join: the batches have different columns")
        if isinstance(values[0], Tensor):
            return torch.cat(list(values))
        return type(values[0])(**{f.name: cat([getattr(v, f.name) for v in values]) for f in fields(values[0])})

    names = ("ids", "pos", "origin", "imitate", "policy", "distil", "ref", "replay")
    return Batch(seg=torch.cat(seg), pairs=torch.cat(pairs) if pairs else None, **{n: cat([getattr(b, n) for b in batches]) for n in names})
