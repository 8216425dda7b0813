"""A language model over bytes that counts: interpolated n-grams with Witten–Bell smoothing.

    p_k(c | h) = (count(h c) + T(h) p_{k−1}(c | h')) / (N(h) + T(h)),   p_{−1} = 1/256

h: the k bytes before c, within one text; h': h without its first; N(h): how often h was followed; T(h): by how many different bytes.
Source: Witten, Bell 1991, method C, interpolated.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numba as nb
import numpy as np
from numpy.typing import NDArray

from upslope.data.classify.linear import I32, I64, _cut
from upslope.data.folding import U8, U64, mix

F64 = NDArray[np.float64]
EMPTY = np.uint64(0x51ED270B)


@nb.njit(cache=True, inline="always")
def _longer(h: np.uint64, byte: np.uint8) -> np.uint64:
    """The hash of a context that begins one byte earlier."""
    return mix(h * np.uint64(0x9E3779B97F4A7C15) + np.uint64(byte) + np.uint64(1))


@nb.njit(cache=True)
def _keys(data: U8, offsets: I64, k: int, limit: int) -> tuple[U64, U64]:
    """Hashes of (context of k bytes) and of (context, next byte) at each place that has k bytes before it."""
    total = 0
    for i in range(offsets.size - 1):
        total += max(0, _cut(data, offsets[i], offsets[i + 1], limit) - offsets[i] - k)
    contexts, grams = np.empty(total, np.uint64), np.empty(total, np.uint64)
    at = 0
    for i in range(offsets.size - 1):
        for j in range(offsets[i] + k, _cut(data, offsets[i], offsets[i + 1], limit)):
            h = EMPTY
            for b in range(1, k + 1):
                h = _longer(h, data[j - b])
            contexts[at] = h
            grams[at] = mix(h + np.uint64(data[j]) + np.uint64(1))
            at += 1
    return contexts, grams


@nb.njit(cache=True)
def _table(keys: U64) -> I32:
    """Where each key stands, by open addressing; −1 is free."""
    size = 16
    while size < 2 * keys.size:
        size *= 2
    slots = np.full(size, -1, np.int32)
    for i in range(keys.size):
        at = keys[i] & np.uint64(size - 1)
        while slots[at] >= 0:
            at = (at + np.uint64(1)) & np.uint64(size - 1)
        slots[at] = i
    return slots


@nb.njit(cache=True, inline="always")
def _find(key: np.uint64, keys: U64, slots: I32) -> int:
    mask = np.uint64(slots.size - 1)
    at = key & mask
    while slots[at] >= 0:
        if keys[slots[at]] == key:
            return int(slots[at])
        at = (at + np.uint64(1)) & mask
    return -1


@nb.njit(cache=True)
def _bits(
    data: U8, offsets: I64, order: int, limit: int, grams: U64, counts: I32, contexts: U64, totals: I32, kinds: I32, gs: I32, cs: I32
) -> F64:
    out = np.zeros(offsets.size - 1)
    for i in range(out.size):
        low, high = offsets[i], _cut(data, offsets[i], offsets[i + 1], limit)
        for j in range(low, high):
            p = 1.0 / 256.0
            h = EMPTY
            for k in range(min(order, j - low + 1)):
                if k:
                    h = _longer(h, data[j - k])
                c = _find(h, contexts, cs)
                if c < 0:
                    break  # a context that was never met: no longer one was
                g = _find(mix(h + np.uint64(data[j]) + np.uint64(1)), grams, gs)
                p = ((counts[g] if g >= 0 else 0) + kinds[c] * p) / (totals[c] + kinds[c])
            out[i] -= np.log2(p)
        if high > low:
            out[i] /= high - low
    return out


class ByteLM(NamedTuple):
    """Counts. grams (g,) sorted hashes of (context, byte) with counts; contexts (c,) sorted with totals N and kinds T; order: contexts of
    0 … order − 1 bytes; slots: where hashes stand."""

    order: int
    grams: U64
    counts: I32
    contexts: U64
    totals: I32
    kinds: I32
    gram_slots: I32
    context_slots: I32

    def bits(self, data: U8, offsets: I64, limit: int = 0) -> F64:
        """Bits per byte of texts, (n,); 0 for an empty one. limit: bytes that are looked at, 0 = all."""
        return _bits(data, offsets, self.order, limit, *self[1:])

    def arrays(self) -> dict[str, np.ndarray]:
        """What a file must hold."""
        return {"grams": self.grams, "counts": self.counts, "contexts": self.contexts, "totals": self.totals, "kinds": self.kinds}


def train(data: U8, offsets: I64, order: int, limit: int = 0) -> ByteLM:
    """Counts a corpus; a pure function of its texts, whatever their order."""
    found = [_count(*_keys(data, offsets, k, limit)) for k in range(order)]
    grams, counts, contexts, totals, kinds = (np.concatenate(part) for part in zip(*found))
    g, c = np.argsort(grams, kind="stable"), np.argsort(contexts, kind="stable")
    return of(order, grams[g], counts[g], contexts[c], totals[c], kinds[c])


def of(order: int, grams: U64, counts: I32, contexts: U64, totals: I32, kinds: I32) -> ByteLM:
    """From its counts."""
    return ByteLM(order, grams, counts, contexts, totals, kinds, _table(grams), _table(contexts))


def _count(contexts: U64, grams: U64) -> Sequence[np.ndarray]:
    unique, first, counts = np.unique(grams, return_index=True, return_counts=True)
    heads, owner = np.unique(contexts[first], return_inverse=True)
    totals = np.bincount(owner, counts, minlength=heads.size)
    kinds = np.bincount(owner, minlength=heads.size)
    return unique, counts.astype(np.int32), heads, totals.astype(np.int32), kinds.astype(np.int32)
