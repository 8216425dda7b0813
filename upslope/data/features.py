"""Compiled loops that turn the bytes of a text into hashed features and project them (see `embedders.hashed`)."""

from __future__ import annotations

from typing import TypeAlias

import numba as nb
import numpy as np
from numpy.typing import NDArray

from upslope.data.folding import ALONE, SKIP, U8, U32, U64, following, mix, words_into

F64: TypeAlias = NDArray[np.float64]
I32: TypeAlias = NDArray[np.int32]
RUN = 4
LONG = 8.0


@nb.njit(cache=True)
def runs_into(data: U8, kinds: U32, out: U64) -> int:
    """Hashes of all runs of `RUN` characters, folded, every gap between words as one; of the whole text where it is shorter."""
    count = seen = i = 0
    gap = False
    recent = np.zeros(RUN, np.uint64)
    while i < data.size:
        c, i = following(data, i, data.size, kinds)
        if c == 0:
            gap = seen > 0
        elif not c & np.uint64(SKIP) or c & np.uint64(ALONE):
            for last in range(gap, -1, -1):
                recent[seen % RUN] = np.uint64(0) if last else c
                seen += 1
                if seen >= RUN:
                    out[count] = _ordered(recent, seen, RUN)
                    count += 1
            gap = False
    if 0 < seen < RUN:
        out[0] = _ordered(recent, 0, seen)
        count = 1
    return count


@nb.njit(cache=True)
def _ordered(recent: U64, start: int, size: int) -> np.uint64:
    h = np.uint64(size)
    for j in range(size):
        h = mix(h * np.uint64(0x9E3779B97F4A7C15) + recent[(start + j) % RUN])
    return h


@nb.njit(cache=True)
def add(items: U64, weights: F64, alpha: float, salt: np.uint64, spread: int, out: F64) -> None:
    """out += alpha · u/‖u‖, u = Σ over distinct items of weight · (1 + ln tf) · e(item). Equal items have equal weights; no weights: 1.
    Items without weights are sorted in place."""
    if weights.size:
        order = np.argsort(items)
    else:
        items.sort()  # several times as fast
        order = np.arange(items.size)
    block = out.size // spread
    total = 0.0
    for scale in (0.0, 1.0):
        if scale:
            if total == 0:
                return
            scale = alpha / np.sqrt(total * spread)
        i = 0
        while i < order.size:
            item = items[order[i]]
            j = i
            while j < order.size and items[order[j]] == item:
                j += 1
            w = 1 + np.log(j - i)
            if weights.size:
                w *= weights[order[i]]
            i = j
            if not scale:
                total += w * w
                continue
            h = mix(item ^ salt)
            for s in range(spread):
                h = mix(h + np.uint64(0x9E3779B97F4A7C15))
                at = s * block + int((h >> np.uint64(33)) % np.uint64(block))
                out[at] += scale * w if h & np.uint64(1) else -scale * w


@nb.njit(cache=True)
def project(data: U8, kinds: U32, alpha: F64, lengths: bool, salt: np.uint64, spread: int, out: F64) -> None:
    """Adds the vector of one text, not yet normalised, to `out` (dim,). alpha: of words, pairs of words, runs of characters."""
    items = np.empty(data.size + 1, np.uint64)
    chars = np.empty(data.size + 1, np.int32)
    n = words_into(data, 0, data.size, kinds, items, chars)
    weights = np.ones(max(n, 1))
    if lengths:
        for i in range(n):
            weights[i] = min(1.0, chars[i] / LONG)
    if alpha[0] > 0 and n:
        add(items[:n], weights[:n], alpha[0], salt, spread, out)
    if alpha[1] > 0 and n > 1:
        pairs = np.empty(n - 1, np.uint64)
        for i in range(n - 1):
            pairs[i] = mix(items[i] * np.uint64(0x9E3779B97F4A7C15) + items[i + 1])
            weights[i] = np.sqrt(weights[i] * weights[i + 1])
        add(pairs, weights[: n - 1], alpha[1], salt + np.uint64(1), spread, out)
    if alpha[2] > 0:
        n = runs_into(data, kinds, items)
        add(items[:n], np.empty(0), alpha[2], salt + np.uint64(2), spread, out)
