"""The stream: sample k of a run as a pure function of (shards, mixture, length, seed, k). There is no loader state.

Three closed forms, so that any rank can ask for any sample, a run resumes at any k, and a new length reads the same files:

- *which source*: unit i of source s is due when T_s(x) = i + 1/2, where T_s is the integral of its share; units are taken
  in order of due time, so after k samples each source has what it is due, within (1 + S·share) / 2 for S sources, and
  within 1 for two sources of constant weight;
- *which block*: the tokens of a source are cut into B = ⌈tokens / length⌉ blocks (the last one runs on into the first
  documents), permuted anew in every epoch by a keyed Feistel network; unit i is block π_epoch(i mod B) of epoch ⌊i / B⌋;
- *which documents*: a search in the offsets; every document of a block is a segment that attention does not leave. With packing
  `best_fit` a block is a row of the plan of `packing.best_fit` instead, and no document that fits into a row is cut.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from upslope.config import UsageError
from upslope.machine.rng import seed_of
from upslope.tokens.mixture import Mixture
from upslope.tokens.packing import Plan, best_fit
from upslope.tokens.shards import TokenShards, unknown_source

Packing = Literal["concat", "best_fit"]
WINDOW = 4096
ROUNDS = 6
MASK = (1 << 64) - 1


class Piece(NamedTuple):
    """Tokens `start` to `stop` of a document. shard: index of the TokenShards; doc: the document's number in its corpus."""

    source: str
    shard: int
    doc: int
    start: int
    stop: int


class Sample(NamedTuple):
    """One row of `length` tokens, or fewer where it is packed. ids: (n,) i32; seg: (n,) i32, 0..S-1, rising; pieces: one per segment."""

    ids: NDArray[np.int32]
    seg: NDArray[np.int32]
    pieces: tuple[Piece, ...]


class Packed(NamedTuple):
    """fill: tokens / room of the rows. cut: share of documents that are in more than one piece."""

    fill: float
    cut: float


class _Source(NamedTuple):
    name: str
    shard: int
    tokens: NDArray[np.unsignedinteger]
    offsets: NDArray[np.int64]
    docs: NDArray[np.uint64]
    blocks: int
    plan: Plan | None
    most: float  # units that its cap allows


class _Window(NamedTuple):
    sources: NDArray[np.int64]
    units: NDArray[np.int64]
    base: NDArray[np.int64]


class Stream:
    """Samples of `length` tokens, drawn from shards by a mixture.

    total: samples in the run, where progress reaches 1; by default what the mixture planned, ⌈tokens / length⌉. packing: `concat` fills
    every row and cuts documents at its ends; `best_fit` cuts none that fits.
    UsageError for a source that is missing, empty or in two shards, and for a cap that the run would exceed (where the
    mixture refuses; else see `over`).

    Source: Luby and Rackoff 1988 (Feistel permutations); Webster's divisor method for the order of sources.
    """

    def __init__(
        self, shards: Sequence[TokenShards], mixture: Mixture, length: int, seed: int, total: int | None = None, packing: Packing = "concat"
    ) -> None:
        if length < 1:
            raise UsageError(f"stream length = {length}: must be ≥ 1 token")
        self.length, self.seed, self.mixture = length, seed, mixture
        self.total = total if total is not None else -(-mixture.tokens // length)
        if self.total < 1:
            raise UsageError(f"stream total = {self.total}: must be ≥ 1 sample")
        homes: dict[str, int] = {}
        for i, shard in enumerate(shards):
            for name in shard.sources():
                if name in homes and name in mixture.sources:
                    raise UsageError(f"source {name!r} is in two of the token shards\nway out: give the corpora different source names")
                homes[name] = i
        self.sources: list[_Source] = []
        for name in mixture.sources:
            if name not in homes:
                raise UsageError(unknown_source(name, sorted(homes)))
            shard = shards[homes[name]]
            tokens = shard.tokens(name)
            if len(tokens) == 0:
                raise UsageError(f"source {name!r} has a weight but no tokens\nway out: leave it out of the mixture")
            offsets = shard.offsets(name)
            plan = best_fit(np.diff(offsets), length) if packing == "best_fit" else None
            most = mixture.caps.get(name, np.inf) * (plan.rows if plan else len(tokens) / length)
            blocks = plan.rows if plan else -(-len(tokens) // length)
            self.sources.append(_Source(name, homes[name], tokens, offsets, shard.docs(name), blocks, plan, float(np.ceil(most))))
        self._windows: OrderedDict[int, _Window] = OrderedDict()
        if mixture.refuses and (exceeded := self.over()):
            lines = [f"{s}: {self.epochs(self.total)[s]:.2f} epochs, at most {mixture.caps[s]:g}" for s in exceeded[:3]]
            raise UsageError(
                "\n".join(
                    [
                        f"the run of {self.total:,} samples of {length} tokens repeats sources more often than their caps allow",
                        *lines,
                        "way out: fewer tokens, a lower weight, a higher cap, or over = 'alarm' in the mix stage",
                    ]
                )
            )

    def sample(self, k: int) -> Sample:
        """Sample k ≥ 0: the same whoever asks, whatever was asked before."""
        if k < 0:
            raise UsageError(f"sample({k}): samples are numbered from 0")
        sources, units, _ = self._window(k // WINDOW)
        source, unit = self.sources[int(sources[k % WINDOW])], int(units[k % WINDOW])
        if unit >= source.most and self.mixture.refuses:
            raise UsageError(
                f"sample {k} would take source {source.name!r} beyond its cap of {self.mixture.caps[source.name]:g} epochs\n"
                "way out: stop the run here, or raise the cap in the mix stage"
            )
        epoch, position = divmod(unit, source.blocks)
        block = permute(position, source.blocks, seed_of(self.seed, "blocks", source.name, epoch))
        return self._row(source, source.plan, block) if source.plan else self._cut(source, block)

    def counts(self, k: int) -> dict[str, int]:
        """Samples of each source among the first k."""
        sources, _, base = self._window(k // WINDOW)
        taken = base + np.bincount(sources[: k % WINDOW], minlength=len(self.sources))
        return {s.name: int(n) for s, n in zip(self.sources, taken, strict=True)}

    def epochs(self, k: int) -> dict[str, float]:
        """How many times the first k samples go through each source: samples · length / tokens, or samples / rows of its plan."""
        passes = [s.plan.rows if s.plan else len(s.tokens) / self.length for s in self.sources]
        return {s.name: n / p for s, n, p in zip(self.sources, self.counts(k).values(), passes, strict=True)}

    def packed(self) -> dict[str, Packed]:
        """How well each source fills its rows, over one epoch."""
        return {s.name: _packed(s, self.length) for s in self.sources}

    def over(self) -> list[str]:
        """Sources whose cap the run of `total` samples exceeds."""
        due = self.counts(self.total)
        return [s.name for s in self.sources if due[s.name] > s.most]

    def _before(self, x: NDArray[np.int64]) -> NDArray[np.int64]:
        """Units of each source that are due at or before time x; (n, S)."""
        return np.floor(self.mixture.cumulative(x, self.total) + 0.5).astype(np.int64)

    def _window(self, number: int) -> _Window:
        """Source index and unit of the samples number·WINDOW to (number + 1)·WINDOW, both (WINDOW,), and what came before, (S,)."""
        if number in self._windows:
            self._windows.move_to_end(number)
            return self._windows[number]
        n = len(self.sources)
        low = max(0, number * WINDOW - n)  # the rank of a unit is its due time, give or take n / 2
        x = np.arange(low, (number + 1) * WINDOW + n + 1, dtype=np.int64)
        due = self.mixture.cumulative(x, self.total)
        first, last = self._before(x[[0, -1]])
        times, sources, units = [], [], []
        for s in range(n):
            unit = np.arange(first[s], last[s], dtype=np.int64)
            value = unit + 0.5
            cell = np.clip(np.searchsorted(due[:, s], value), 1, len(x) - 1)
            before, after = due[cell - 1, s], due[cell, s]
            times.append(x[cell - 1] + (value - before) / np.maximum(after - before, 1e-300))
            sources.append(np.full(len(unit), s, np.int64))
            units.append(unit)
        order = np.lexsort((np.concatenate(sources), np.concatenate(times)))
        skip = number * WINDOW - int(first.sum())
        ranked, unit_of = np.concatenate(sources)[order], np.concatenate(units)[order]
        base = first + np.bincount(ranked[:skip], minlength=n)
        found = _Window(ranked[skip : skip + WINDOW], unit_of[skip : skip + WINDOW], base)
        self._windows[number] = found
        if len(self._windows) > 8:
            self._windows.popitem(last=False)
        return found

    def _row(self, source: _Source, plan: Plan, row: int) -> Sample:
        """Row `row` of a source's plan."""
        pieces: list[Piece] = []
        ids: list[NDArray[np.int32]] = []
        seg: list[NDArray[np.int32]] = []
        for p in range(int(plan.starts[row]), int(plan.starts[row + 1])):
            doc, begin, end = int(plan.doc[p]), int(plan.begin[p]), int(plan.end[p])
            first = int(source.offsets[doc])
            ids.append(np.asarray(source.tokens[first + begin : first + end], np.int32))
            seg.append(np.full(end - begin, len(pieces), np.int32))
            pieces.append(Piece(source.name, source.shard, int(source.docs[doc]), begin, end))
        return Sample(np.concatenate(ids), np.concatenate(seg), tuple(pieces))

    def _cut(self, source: _Source, block: int) -> Sample:
        """Block `block` of a source: tokens [block · length, (block + 1) · length), running on into the first ones."""
        n = len(source.tokens)
        ids = np.empty(self.length, np.int32)
        seg = np.empty(self.length, np.int32)
        pieces: list[Piece] = []
        filled = 0
        while filled < self.length:
            start = (block * self.length + filled) % n
            stop = min(start + self.length - filled, n)
            ids[filled : filled + stop - start] = source.tokens[start:stop]
            first = int(np.searchsorted(source.offsets, start, side="right")) - 1
            last = int(np.searchsorted(source.offsets, stop, side="left")) - 1
            for d in range(first, last + 1):
                begin, end = int(source.offsets[d]), int(source.offsets[d + 1])
                a, b = max(begin, start), min(end, stop)
                seg[filled + a - start : filled + b - start] = len(pieces)
                pieces.append(Piece(source.name, source.shard, int(source.docs[d]), a - begin, b - begin))
            filled += stop - start
        return Sample(ids, seg, tuple(pieces))


def _packed(source: _Source, length: int) -> Packed:
    sizes = np.diff(source.offsets)
    docs = int((sizes > 0).sum())
    if source.plan:
        return Packed(float(source.plan.tokens().sum() / (source.plan.rows * length)), source.plan.cut() / max(1, docs))
    first, last = source.offsets[:-1] // length, (source.offsets[1:] - 1) // length
    return Packed(1.0, int(((first != last) & (sizes > 0)).sum()) / max(1, docs))


def permute(i: int, n: int, key: int) -> int:
    """π_key(i): a pseudo-random permutation of 0..n-1, by a balanced Feistel network over the next power of four, walked until
    it lands below n (fewer than four steps on average)."""
    if n <= 1:
        return i
    half = ((n - 1).bit_length() + 1) // 2
    low = (1 << half) - 1
    while True:
        left, right = i >> half, i & low
        for r in range(ROUNDS):
            left, right = right, left ^ (_mix(right ^ (key + r * 0x9E3779B97F4A7C15)) & low)
        i = left << half | right
        if i < n:
            return i


def _mix(x: int) -> int:
    """Finaliser of splitmix64: every input bit reaches every output bit. Source: Steele, Lea and Flood 2014."""
    x &= MASK
    x = (x ^ x >> 30) * 0xBF58476D1CE4E5B9 & MASK
    x = (x ^ x >> 27) * 0x94D049BB133111EB & MASK
    return x ^ x >> 31
