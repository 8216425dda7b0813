"""Compiled loops over batches of text: shingles, MinHash signatures, band keys, Jaccard similarity. Words are as in `data.folding`.

MinHash: position j of a signature is the smallest a_j·x + b_j (mod 2^32) over the text's shingles x (32 bits, well mixed), a_j odd, so
that P[two signatures agree in a position] = Jaccard similarity of the sets of shingles, up to 2^-32 · their size.
Source: Broder 1997; multiply-add hashing of Dietzfelbinger et al. 1997.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeAlias

import numba as nb
import numpy as np
from numpy.typing import NDArray

from upslope.data.folding import U8, U32, U64, mix, table, words, words_into

if TYPE_CHECKING:
    import pyarrow as pa

__all__ = ["I64", "U8", "U32", "U64", "band_keys", "column", "jaccard", "minhash", "mix", "shingle_sets", "shingles", "signatures", "words"]

I64: TypeAlias = NDArray[np.int64]

POLY = np.uint64(0x9E3779B97F4A7C15)
NONE = np.uint32(0xFFFFFFFF)


def column(texts: pa.Array) -> tuple[I64, U8]:
    """A column of strings as (offsets (rows + 1,) int64, bytes): row i is bytes[offsets[i]:offsets[i + 1]], NULL is "". Copies no text."""
    import pyarrow as pa

    texts = texts.fill_null("") if texts.null_count else texts
    if not len(texts):
        return np.zeros(1, np.int64), np.empty(0, np.uint8)
    width = np.int64 if pa.types.is_large_string(texts.type) or pa.types.is_large_binary(texts.type) else np.int32
    _, offsets, data = texts.buffers()
    found = np.frombuffer(offsets, width)[texts.offset : texts.offset + len(texts) + 1].astype(np.int64)
    return found, np.frombuffer(data, np.uint8) if data is not None else np.empty(0, np.uint8)


@nb.njit(cache=True)
def shingles_into(hashes: U64, size: int, n: int, out: U64) -> int:
    """Writes the hashes of all runs of n of the first `size` words to `out` and gives their number: see `shingles`."""
    if size == 0:
        return 0
    width = min(n, size)
    for i in range(size - width + 1):
        h = np.uint64(width)
        for j in range(width):
            h = h * np.uint64(0x9E3779B97F4A7C15) + hashes[i + j]
        out[i] = mix(h)
    return size - width + 1


def shingles(hashes: U64, n: int) -> U64:
    """Hashes of all runs of n words, (max(0, len − n + 1),) uint64; of the whole text where it has fewer than n words."""
    out = np.empty(hashes.size, np.uint64)
    return out[: shingles_into(hashes, hashes.size, n, out)].copy()


@nb.njit(cache=True)
def minhash_into(items: U64, size: int, a: U32, b: U32, out: U32) -> None:
    """out_j = min(out_j, min_i a_j·x_i + b_j), x the high halves of the first `size` items; eight items a turn, so that `out` is read
    and written an eighth as often and the loop over j fills vector registers."""
    i = 0
    while i + 8 <= size:
        x0, x1, x2, x3 = _high(items[i]), _high(items[i + 1]), _high(items[i + 2]), _high(items[i + 3])
        x4, x5, x6, x7 = _high(items[i + 4]), _high(items[i + 5]), _high(items[i + 6]), _high(items[i + 7])
        for j in range(a.size):
            p, q = a[j], b[j]
            low = min(min(np.uint32(p * x0 + q), np.uint32(p * x1 + q)), min(np.uint32(p * x2 + q), np.uint32(p * x3 + q)))
            high = min(min(np.uint32(p * x4 + q), np.uint32(p * x5 + q)), min(np.uint32(p * x6 + q), np.uint32(p * x7 + q)))
            out[j] = min(out[j], min(low, high))
        i += 8
    while i < size:
        x = _high(items[i])
        for j in range(a.size):
            out[j] = min(out[j], np.uint32(a[j] * x + b[j]))
        i += 1


@nb.njit(cache=True, inline="always")
def _high(x: np.uint64) -> np.uint32:
    return np.uint32(x >> np.uint64(32))


def minhash(items: U64, a: U32, b: U32) -> U32:
    """The signature (k,) uint32 of a set of shingles (repetitions do not matter); all ones for an empty set. a, b: (k,) uint32."""
    out = np.full(a.size, NONE, np.uint32)
    minhash_into(items, items.size, a, b, out)
    return out


@nb.njit(cache=True)
def _signatures(offsets: I64, data: U8, kinds: U32, n: int, a: U32, b: U32, counts: I64, out: U32) -> None:
    longest = np.max(offsets[1:] - offsets[:-1])
    hashes = np.empty(longest, np.uint64)
    items = np.empty(longest, np.uint64)
    lengths = np.empty(0, np.int32)
    for row in range(offsets.size - 1):
        size = words_into(data, offsets[row], offsets[row + 1], kinds, hashes, lengths)
        counts[row] = size
        minhash_into(items, shingles_into(hashes, size, n, items), a, b, out[row])


def signatures(offsets: I64, data: U8, n: int, a: U32, b: U32) -> tuple[I64, U32]:
    """(words (rows,), signatures (rows, k) uint32) of the texts of a `column`, over runs of n words."""
    counts = np.zeros(offsets.size - 1, np.int64)
    out = np.full((offsets.size - 1, a.size), NONE, np.uint32)
    if counts.size:
        _signatures(offsets, data, table(), n, a, b, counts, out)
    return counts, out


@nb.njit(cache=True)
def band_keys(signature: U32, rows: int) -> U64:
    """One key a band of `rows` positions of each of the signatures (n, k): (n, k // rows) uint64. Equal bands of one number, equal keys."""
    bands = signature.shape[1] // rows
    out = np.empty((signature.shape[0], bands), np.uint64)
    for i in range(signature.shape[0]):
        for band in range(bands):
            h = np.uint64(band + 1)
            for j in range(rows):
                h = mix(h * np.uint64(0x9E3779B97F4A7C15) + np.uint64(signature[i, band * rows + j]))
            out[i, band] = h
    return out


@nb.njit(cache=True)
def _shingle_sets(offsets: I64, data: U8, kinds: U32, n: int, starts: I64, out: U64) -> None:
    hashes = np.empty(np.max(offsets[1:] - offsets[:-1]), np.uint64)
    lengths = np.empty(0, np.int32)
    at = 0
    for row in range(offsets.size - 1):
        size = words_into(data, offsets[row], offsets[row + 1], kinds, hashes, lengths)
        part = out[at:]
        size = shingles_into(hashes, size, n, part)
        part[:size].sort()
        last = 0
        for i in range(size):
            if i == 0 or part[i] != part[last - 1]:
                part[last] = part[i]
                last += 1
        at += last
        starts[row + 1] = at


def shingle_sets(offsets: I64, data: U8, n: int) -> tuple[I64, U64]:
    """The sets of runs of n words of the texts of a `column`: (starts (rows + 1,), items), set i = items[starts[i]:starts[i + 1]],
    sorted."""
    starts = np.zeros(offsets.size, np.int64)
    out = np.empty(int(offsets[-1] - offsets[0]), np.uint64)
    if starts.size > 1:
        _shingle_sets(offsets, data, table(), n, starts, out)
    return starts, out[: starts[-1]]


@nb.njit(cache=True)
def jaccard(x: U64, y: U64) -> float:
    """|x ∩ y| / |x ∪ y| of two sorted arrays without repetitions; 0 for two empty ones."""
    i = j = both = 0
    while i < x.size and j < y.size:
        if x[i] == y[j]:
            both += 1
            i += 1
            j += 1
        elif x[i] < y[j]:
            i += 1
        else:
            j += 1
    union = x.size + y.size - both
    return both / union if union else 0.0


@nb.njit(cache=True)
def jaccards(starts: I64, items: U64, a: I64, b: I64) -> NDArray[np.float32]:
    """The Jaccard similarity of pairs of `shingle_sets`, by their numbers a and b, (n,) float32."""
    out = np.empty(a.size, np.float32)
    for i in range(a.size):
        out[i] = jaccard(items[starts[a[i]] : starts[a[i] + 1]], items[starts[b[i]] : starts[b[i] + 1]])
    return out


@nb.njit(cache=True)
def agreements(x: NDArray[np.uint16], y: NDArray[np.uint16]) -> NDArray[np.float32]:
    """The share of positions in which the rows of x and y (n, k) agree, (n,) float32."""
    out = np.empty(x.shape[0], np.float32)
    for i in range(x.shape[0]):
        same = 0
        for j in range(x.shape[1]):
            same += x[i, j] == y[i, j]
        out[i] = same / x.shape[1]
    return out
