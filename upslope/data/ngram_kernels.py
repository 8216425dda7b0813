"""Compiled loops of the n-gram index: which items a text may hold, and how much of each it does. See `data.ngrams` for what is computed.

`lay` is an `ngrams.Layout`, `table` an `ngrams.Lookup`, `page` what `_chain` gives for the text's runs of `gram` words.
"""

from __future__ import annotations

from typing import Any

import numba as nb
import numpy as np
from numpy.typing import NDArray

from upslope.data.folding import U64
from upslope.data.hashing import shingles_into

I64 = NDArray[np.int64]
F64 = NDArray[np.float64]

QUESTION, OPTION, ANSWER = range(3)


@nb.njit(cache=True)
def _larger(array: I64) -> I64:
    """The array with as much room again behind it."""
    out = np.empty(2 * array.size, np.int64)
    for i in range(array.size):
        out[i] = array[i]
    return out


@nb.njit(cache=True)
def candidates(words: U64, widths: I64, table: Any, hits: NDArray[np.int32]) -> I64:
    """The items with enough hits in a text, as they come. hits: zeros, one an item, to count in; they are zeros again afterwards."""
    runs = np.empty(words.size, np.uint64)
    touched, size = np.empty(64, np.int64), 0
    for width in widths:
        if words.size < width or not table.keys.size:
            continue
        for i in range(shingles_into(words, words.size, width, runs)):
            key = runs[i]
            slot = key >> table.shift
            if not (table.bits[slot >> np.uint64(3)] >> np.uint8(slot & np.uint64(7))) & np.uint8(1):
                continue
            k = np.searchsorted(table.keys, key)
            if k < table.keys.size and table.keys[k] == key:
                for o in range(table.starts[k], table.starts[k + 1]):
                    item = table.owners[o]
                    if hits[item] == 0:
                        if size == touched.size:
                            touched = _larger(touched)
                        touched[size] = item
                        size += 1
                    hits[item] += 1
    count = 0
    for i in range(size):
        item = touched[i]
        if hits[item] >= table.need[item]:
            touched[count] = item
            count += 1
        hits[item] = 0
    return touched[:count]


@nb.njit(cache=True)
def _same(words: U64, p: int, lay: Any, j: int, width: int, begin: int) -> bool:
    """Whether words[p:] go on like the item's words from j, from the `begin`-th of `width` words on."""
    if p + width > words.size:
        return False
    for k in range(begin, width):  # noqa: SIM110 - a generator is slow here
        if words[p + k] != lay.words[j + k]:
            return False
    return True


@nb.njit(cache=True)
def _chain(keys: U64) -> tuple[U64, I64, I64, np.uint64]:
    """Positions by hash: the first with the same top bits, and for each position the next one."""
    bits = 4
    while (1 << bits) < keys.size:
        bits += 1
    shift = np.uint64(64 - bits)
    head = np.full(1 << bits, -1, np.int64)
    after = np.empty(keys.size, np.int64)
    for p in range(keys.size - 1, -1, -1):
        slot = keys[p] >> shift
        after[p] = head[slot]
        head[slot] = p
    return keys, head, after, shift


@nb.njit(cache=True)
def _gather(page: Any, lay: Any, start: int, end: int) -> tuple[I64, I64]:
    """Where in the text the `gram` words at each of the item's words start … end − 1 stand: (first (end − start + 1,), places); those of
    word j are places[first[j − start] : first[j − start + 1]], ascending."""
    keys, head, after, shift = page
    first, places = np.zeros(end - start + 1, np.int64), np.empty(64, np.int64)
    count = 0
    for j in range(start, end):
        lead = lay.lead[j]
        p = head[lead >> shift] if lead else -1
        while p >= 0:
            if keys[p] == lead:
                if count == places.size:
                    places = _larger(places)
                places[count] = p
                count += 1
            p = after[p]
        first[j - start + 1] = count
    return first, places[:count]


@nb.njit(cache=True)
def _window(words: U64, lay: Any, found: Any, base: int, runs: I64, widths: I64, gram: int, span: int) -> tuple[int, NDArray[np.bool_]]:
    """(where the window of `span` words starts that holds most weight of some runs, for each run whether it is in it).

    runs, widths: where the runs start among the item's words, and their lengths; found: `_gather` from `base` on. −1 where no run is in
    the text.
    """
    first, places = found
    inside = np.zeros(runs.size, np.int64)
    total = 0
    for k in range(runs.size):
        total += first[runs[k] - base + 1] - first[runs[k] - base] if widths[k] >= gram else max(0, words.size - widths[k] + 1)
    hits = np.empty(total, np.int64)  # position · runs + run, so that sorting them sorts both
    total = 0
    for k in range(runs.size):
        j, width = runs[k], widths[k]
        if width < gram:
            for p in range(words.size - width + 1):
                if _same(words, p, lay, j, width, 0):
                    hits[total] = p * runs.size + k
                    total += 1
            continue
        for i in range(first[j - base], first[j - base + 1]):
            if width == gram or _same(words, places[i], lay, j, width, gram):
                hits[total] = places[i] * runs.size + k
                total += 1
    if not total:
        return -1, inside > 0
    hits = hits[:total]
    hits.sort()
    best, best_left, best_right, right, weight = -1.0, 0, 0, 0, 0.0
    for left in range(total):
        at, k = hits[left] // runs.size, hits[left] % runs.size
        while right < total and hits[right] < (at + span) * runs.size:
            new = hits[right] % runs.size
            weight += lay.weight[runs[new]] if inside[new] == 0 else 0.0
            inside[new] += 1
            right += 1
        if weight > best + 1e-12:
            best, best_left, best_right = weight, left, right
        inside[k] -= 1
        weight -= lay.weight[runs[k]] if inside[k] == 0 else 0.0
    inside[:] = 0
    for i in range(best_left, best_right):
        inside[hits[i] % runs.size] = 1
    return hits[best_left] // runs.size, inside > 0


@nb.njit(cache=True)
def _numbers(words: U64, at: int, span: int, lay: Any, start: int, end: int) -> float:
    """The share of the numbers among the item's words start … end − 1 that stand in words[at : at + span] beside the same neighbour."""
    total = found = 0
    for j in range(start, end):
        if not lay.words[j] & np.uint64(1):
            continue
        total += 1
        for p in range(at, min(words.size, at + span)):
            if words[p] == lay.words[j] and (
                (j > start and p > 0 and words[p - 1] == lay.words[j - 1])
                or (j + 1 < end and p + 1 < words.size and words[p + 1] == lay.words[j + 1])
                or end - start == 1
            ):
                found += 1
                break
    return found / total if total else 1.0


@nb.njit(cache=True)
def _repeats(found: Any, base: int, start: int, end: int, gram: int, enough: int) -> bool:
    """Whether a text shares `enough` words in a row with the item's words start … end − 1. found: `_gather` from `base` on."""
    first, places = found
    last, length = places[:0], np.empty(0, np.int64)
    for j in range(start, end - gram + 1):
        here = places[first[j - base] : first[j - base + 1]]
        long = np.full(here.size, gram, np.int64)
        k = 0
        for i in range(here.size):
            while k < last.size and last[k] < here[i] - 1:
                k += 1
            if k < last.size and last[k] == here[i] - 1:
                long[i] = length[k] + 1
            if long[i] >= enough:
                return True
        last, length = here, long
    return False


@nb.njit(cache=True)
def _runs(lay: Any, first: int, last: int, gram: int) -> tuple[I64, I64, I64, I64]:
    """The weighted runs of the segments first … last − 1, an item's question leading: starts and widths of those that are looked for in
    all of the text, and of the narrow ones that are only looked for beside the others (the options of fewer than `gram` words)."""
    begin = lay.ends[first - 1] if first else 0
    size = lay.ends[last - 1] - begin
    runs, widths = np.empty(size, np.int64), np.empty(size, np.int64)
    narrow, narrows = np.empty(size, np.int64), np.empty(size, np.int64)
    count = few = 0
    for s in range(first, last):
        for j in range(lay.ends[s - 1] if s else 0, lay.ends[s]):
            if lay.weight[j] > 0 and lay.kind[s] == OPTION and lay.width[s] < gram:
                narrow[few], narrows[few] = j, lay.width[s]
                few += 1
            elif lay.weight[j] > 0:
                runs[count], widths[count] = j, lay.width[s]
                count += 1
    return runs[:count], widths[:count], narrow[:few], narrows[:few]


@nb.njit(cache=True)
def _near(words: U64, at: int, span: int, lay: Any, j: int, width: int) -> bool:
    """Whether the item's run at j starts within words[at : at + span]."""
    if at >= 0:
        for p in range(at, min(words.size, at + span)):
            if _same(words, p, lay, j, width, 0):
                return True
    return False


@nb.njit(cache=True)
def score(words: U64, items: I64, lay: Any, gram: int, run: int, short: int, window: float, numbers: float) -> F64:
    """(n, 4) float64: coverage, answer coverage (NaN without an answer), exact, start of the window, for each of some items."""
    out = np.zeros((items.size, 4))
    keys = np.empty(words.size, np.uint64)
    page = _chain(keys[: shingles_into(words, words.size, gram, keys) if words.size >= gram else 0])
    for row in range(items.size):
        first, last = lay.first[items[row]], lay.first[items[row] + 1]
        start, end = lay.ends[first - 1] if first else 0, lay.ends[last - 1]
        asked = last - 1 if lay.kind[last - 1] == ANSWER else last
        found = _gather(page, lay, start, end)
        runs, widths, narrow, narrows = _runs(lay, first, asked, gram)
        span = max(1, int(np.ceil(window * (lay.ends[asked - 1] - start))))
        at, inside = _window(words, lay, found, start, runs, widths, gram, span)
        out[row, 3] = at
        others = False  # whether all numbers of the question are others here
        if at >= 0:
            covered = total = 0.0
            for k in range(runs.size):
                total += lay.weight[runs[k]]
                covered += lay.weight[runs[k]] if inside[k] else 0.0
            for k in range(narrow.size):
                total += lay.weight[narrow[k]]
                covered += lay.weight[narrow[k]] if _near(words, at, span, lay, narrow[k], narrows[k]) else 0.0
            same = _numbers(words, at, span + gram, lay, start, lay.ends[first])
            out[row, 0] = covered / total * (1.0 - numbers * (1.0 - same))
            others = same == 0 and numbers > 0
        out[row, 1] = np.nan
        if asked < last:
            begin = lay.ends[asked - 1]
            if end - begin <= short:
                out[row, 1] = 1.0 if _near(words, at, span, lay, begin, end - begin) else 0.0
            else:
                out[row, 1] = _long_answer(words, lay, found, start, asked, gram, window, numbers)
        for s in range(first, last):
            begin = lay.ends[s - 1] if s else 0
            size = lay.ends[s] - begin
            if s == first and (others or size < gram):
                out[row, 2] = at >= 0 and not others
            elif (s == first or size >= run) and _repeats(found, start, begin, lay.ends[s], gram, min(run, size)):
                out[row, 2] = 1.0
    return out


@nb.njit(cache=True)
def _long_answer(words: U64, lay: Any, found: Any, base: int, segment: int, gram: int, window: float, numbers: float) -> float:
    """The coverage of an answer, anywhere in the text, in a window of its own."""
    start, end = lay.ends[segment - 1], lay.ends[segment]
    span = int(np.ceil(window * (end - start)))
    runs, widths, _, _ = _runs(lay, segment, segment + 1, gram)
    at, inside = _window(words, lay, found, base, runs, widths, gram, span)
    if at < 0:
        return 0.0
    covered = total = 0.0
    for k in range(runs.size):
        total += lay.weight[runs[k]]
        covered += lay.weight[runs[k]] if inside[k] else 0.0
    return covered / total * (1.0 - numbers * (1.0 - _numbers(words, at, span + gram, lay, start, end)))
