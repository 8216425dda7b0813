"""The n-gram index: which items of evaluations stand in a text, and how much of each. Built once over the items, asked by every text.

    coverage(item, text) = max over windows W of  Σ_g w_g [g in W] / Σ_g w_g · (1 − ν (1 − N_W)),   w_g = 1 / (n_g max(1, b_g))

over the item's distinct runs g of `gram` words. n_g: how many items contain g; b_g: how many background documents do; so wording that
items share, and stock phrases, count for little. W: `window` times the item's length, so that a long text does not collect runs by
chance. N_W: the share of the question's numbers that stand in W beside a neighbour of theirs: problems that differ in their numbers are
different problems. A question of at most `short` words counts whole or not at all. An option counts run by run in any order, one shorter
than `gram` whole and only beside the question. The answer has a coverage of its own; one of `run` words is found without its question.

Only items with two hits (or all, where it has but one run) are measured. Source: Brown et al. 2020 (GPT-3), appendix C, for n-gram overlap;
the weights, windows and numbers are ours.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from upslope.data import words as wording
from upslope.data.folding import U8, U64
from upslope.data.hashing import shingles
from upslope.data.ngram_kernels import ANSWER, OPTION, QUESTION, candidates, score

I64 = NDArray[np.int64]
F64 = NDArray[np.float64]

HITS = 2
OWNERS, RAREST = 32, 4
"""A run that more than OWNERS items share leads to none of them, unless it is among the RAREST of an item."""


class Item(NamedTuple):
    """One question of a benchmark. answer: "" if unknown; options: of a multiple choice."""

    id: str
    benchmark: str
    question: str
    answer: str = ""
    options: tuple[str, ...] = ()


class Rules(NamedTuple):
    """gram: words a run. run: words of the `exact` rule. least: items with a shorter question are left out. short: questions up to this
    length count whole only. window: in item lengths. numbers: ν. common: short questions in more than this share of the background are
    left out."""

    gram: int = 5
    run: int = 20
    least: int = 4
    short: int = 8
    window: float = 3.0
    numbers: float = 0.75
    common: float = 0.001


DEFAULT = Rules()


class Background(NamedTuple):
    """How many of `docs` documents contain each run: keys (n,) uint64 ascending, counts (n,)."""

    keys: U64
    counts: I64
    docs: int

    def of(self, keys: U64) -> I64:
        """The counts of some runs, 0 where a run was not counted."""
        if not self.keys.size:
            return np.zeros(keys.size, np.int64)
        at = np.minimum(np.searchsorted(self.keys, keys), self.keys.size - 1)
        return np.where(self.keys[at] == keys, self.counts[at], 0)


class Match(NamedTuple):
    """How much of an item is in a text. answer: None where the item has none; exact: `run` words in a row (the whole question where it is
    shorter), unless all numbers of the question are others; at: the word at which the best window starts."""

    item: int
    coverage: float
    answer: float | None
    exact: bool
    at: int


class Layout(NamedTuple):
    """Items as arrays. words: all segments (question, options, answer) in a row. For each word: lead: the hash of the `gram` words from
    here (0 where the segment ends before); run: the hash of the run that starts here (0 for none); weight: its weight (0 where the item
    had it before). For each segment: ends, kind, width of its runs. first: the first segment of each item, and the end."""

    words: U64
    lead: U64
    run: U64
    weight: F64
    ends: I64
    kind: NDArray[np.int8]
    width: I64
    first: I64


class Lookup(NamedTuple):
    """Run → items. bits: a bitmap by the top bits of the hash; keys ascending; owners[starts[k] : starts[k + 1]] have run k; need: how
    many hits make an item a candidate."""

    bits: U8
    shift: np.uint64
    keys: U64
    starts: I64
    owners: I64
    need: I64


class Index:
    """Items, ready to be found. kept: the items in it; too_short, common: numbers (in `items`) of those left out."""

    def __init__(self, items: Sequence[Item], rules: Rules = DEFAULT, background: Background | None = None) -> None:
        self.rules = rules
        self.background = background or Background(np.empty(0, np.uint64), np.empty(0, np.int64), 0)
        parts = [_segments(item) for item in items]
        self.too_short = [i for i, p in enumerate(parts) if p[0][1].size < rules.least]
        self.common = [] if not self.background.docs else [i for i, p in enumerate(parts) if self._common(p[0][1])]
        out = {*self.too_short, *self.common}
        self.kept = [item for i, item in enumerate(items) if i not in out]
        self.lengths = [int(p[0][1].size) for i, p in enumerate(parts) if i not in out]
        self.layout = _layout([p for i, p in enumerate(parts) if i not in out], rules)
        owner, anchors = self._weigh()
        self.widths, self.lookup = _lookup(self.layout, owner, anchors, rules, len(self.kept))
        self._hits = np.zeros(len(self.kept), np.int32)

    def _common(self, question: U64) -> bool:
        if not self.rules.least <= question.size <= self.rules.short:
            return False
        return bool(self.background.of(shingles(question, question.size))[0] > self.rules.common * self.background.docs)

    def _weigh(self) -> tuple[I64, NDArray[np.bool_]]:
        """Fills in the weights. Returns the item of each word, and which words start a run by which the item may be found."""
        lay, rules = self.layout, self.rules
        size = np.diff(lay.ends, prepend=0)
        segment = np.repeat(np.arange(size.size), size)
        owner = np.repeat(np.arange(len(self.kept)), np.diff(lay.first))[segment] if segment.size else np.empty(0, np.int64)
        kind, width = lay.kind[segment], lay.width[segment]
        at = np.flatnonzero(lay.run)
        group = owner[at] * 2 + (kind[at] == ANSWER)
        order = np.lexsort((at, lay.run[at], group))
        again = np.zeros(at.size, bool)
        again[order[1:]] = (group[order[1:]] == group[order[:-1]]) & (lay.run[at][order[1:]] == lay.run[at][order[:-1]])
        keys, counts = np.unique(_pairs(lay.run[at], owner[at])[0], return_counts=True)
        shared = counts[np.searchsorted(keys, lay.run[at])]
        value = np.where(width[at] < rules.gram, width[at] / rules.gram, np.maximum(1, width[at] - rules.gram + 1))
        lay.weight[at] = np.where(again, 0, value / (shared * np.maximum(1, self.background.of(lay.run[at]))))
        long = np.where(kind == ANSWER, size[segment] >= rules.run, kind == QUESTION) if segment.size else np.empty(0, bool)
        starts = ((lay.lead > 0) & (long | (kind == OPTION))) | ((lay.run > 0) & (kind == QUESTION) & (width < rules.gram))
        return owner, np.asarray(starts)

    def long_answer(self, item: int) -> bool:
        """Whether an item's answer has at least `run` words, and so is found without its question."""
        last = int(self.layout.first[item + 1]) - 1
        size = self.layout.ends[last] - (self.layout.ends[last - 1] if last else 0)
        return bool(self.layout.kind[last] == ANSWER and size >= self.rules.run)

    def look(self, text: str | bytes) -> list[Match]:
        """The items of which something is in a text, in item order."""
        return self.look_at(wording.of_bytes(text) if isinstance(text, bytes) else wording.of(text))

    def look_at(self, found: U64) -> list[Match]:
        """The same, for words that are already hashed (`words.of`)."""
        items = np.sort(candidates(found, self.widths, self.lookup, self._hits))
        if not items.size:
            return []
        r = self.rules
        table = score(found, items, self.layout, r.gram, r.run, r.short, float(r.window), float(r.numbers))
        rows = zip(items.tolist(), table.tolist())
        matches = [Match(i, c, None if math.isnan(a) else a, bool(exact), int(at)) for i, (c, a, exact, at) in rows]
        return [m for m in matches if m.coverage > 0 or m.answer or m.exact]


def keys(items: Sequence[Item], rules: Rules = DEFAULT) -> tuple[U64, list[int]]:
    """The runs of all items, ascending, and the widths that occur: what a background is counted for."""
    lay = _layout([_segments(item) for item in items], rules)
    found = np.unique(lay.run[lay.run > 0])
    return found, sorted({*lay.width[lay.width > 0].tolist()})


def count(texts: Iterable[str], items: Sequence[Item], rules: Rules = DEFAULT) -> Background:
    """Counts, for each run of the items, the texts that contain it."""
    known, widths = keys(items, rules)
    counts, docs = np.zeros(known.size, np.int64), 0
    for text in texts:
        docs += 1
        found = wording.of(text)
        runs = [shingles(found, w) for w in widths if found.size >= w]
        if runs and known.size:
            present = np.unique(np.concatenate(runs))
            at = np.minimum(np.searchsorted(known, present), known.size - 1)
            counts[at[known[at] == present]] += 1
    return Background(known[counts > 0], counts[counts > 0], docs)


def _segments(item: Item) -> list[tuple[int, U64]]:
    """(kind, words) of the parts of an item; the question first, even without words."""
    parts = [(OPTION, o) for o in item.options] + [(ANSWER, item.answer)]
    found = [(kind, wording.of(text)) for kind, text in parts]
    return [(QUESTION, wording.of(item.question)), *((kind, w) for kind, w in found if w.size)]


def _layout(items: Sequence[list[tuple[int, U64]]], rules: Rules) -> Layout:
    flat = [part for parts in items for part in parts]
    sizes = np.array([w.size for _, w in flat], np.int64)
    kind = np.array([k for k, _ in flat], np.int8)
    whole = (sizes < rules.gram) | ((sizes <= rules.short) & (kind != OPTION))
    width = np.where(whole, sizes, rules.gram)
    first = np.cumsum([0, *(len(parts) for parts in items)])
    ends = np.cumsum(sizes)
    every = np.concatenate([w for _, w in flat]) if flat else np.empty(0, np.uint64)
    lead, run = np.zeros(every.size, np.uint64), np.zeros(every.size, np.uint64)
    for (_, w), end, wide in zip(flat, ends.tolist(), width.tolist()):
        start = end - w.size
        if w.size >= rules.gram:
            lead[start : end - rules.gram + 1] = shingles(w, rules.gram)
        if wide:
            run[start : end - wide + 1] = shingles(w, wide)
    return Layout(every, lead, run, np.zeros(every.size), ends, kind, width, first)


def _pairs(key: U64, item: I64) -> tuple[U64, I64]:
    """The distinct pairs, ascending."""
    order = np.lexsort((item, key))
    key, item = key[order], item[order]
    new = np.ones(key.size, bool)
    new[1:] = (key[1:] != key[:-1]) | (item[1:] != item[:-1])
    return key[new], item[new]


def _lookup(lay: Layout, owner: I64, anchors: NDArray[np.bool_], rules: Rules, count: int) -> tuple[I64, Lookup]:
    at = np.flatnonzero(anchors)
    key = np.where(lay.lead[at] > 0, lay.lead[at], lay.run[at])
    key, item = _pairs(key, owner[at])
    _, where, counts = np.unique(key, return_inverse=True, return_counts=True)
    shared = counts[where]
    order = np.lexsort((key, shared, item))
    rank = np.empty(key.size, np.int64)
    begins = np.searchsorted(item[order], np.arange(count))
    rank[order] = np.arange(key.size) - begins[item[order]]
    keep = (shared <= OWNERS) | (rank < RAREST)
    key, item = key[keep], item[keep]
    unique, starts = np.unique(key, return_index=True)
    need = np.minimum(np.bincount(item, minlength=count), HITS)
    bits = max(10, int(unique.size * 16).bit_length())
    bitmap = np.zeros(1 << (bits - 3), np.uint8)
    slot = (unique >> np.uint64(64 - bits)).astype(np.int64)
    np.bitwise_or.at(bitmap, slot >> 3, np.left_shift(1, slot & 7).astype(np.uint8))
    size = np.diff(lay.ends, prepend=0)
    narrow = size[(lay.kind == QUESTION) & (size < rules.gram) & (size > 0)]
    widths = np.unique(np.append(narrow, rules.gram))
    return widths, Lookup(bitmap, np.uint64(64 - bits), unique, np.append(starts, key.size), item, need)
