"""Compiled loops over bytes: words, shingles and MinHash.

A *word* for linking and overlap is a run of letters and digits, lower-cased; bytes of multi-byte characters count as letters,
except that a character of an unspaced script (U+3000–U+9FFF: kana, han and their punctuation) is a word of its own.
"""

from __future__ import annotations

from typing import TypeAlias

import numba as nb
import numpy as np
from numpy.typing import NDArray

U8: TypeAlias = NDArray[np.uint8]
U32: TypeAlias = NDArray[np.uint32]
U64: TypeAlias = NDArray[np.uint64]

POLY = np.uint64(0x9E3779B97F4A7C15)


@nb.njit(cache=True, inline="always")
def mix(x: np.uint64) -> np.uint64:
    """The finaliser of SplitMix64: every input bit reaches every output bit."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


@nb.njit(cache=True)
def words(data: U8) -> U64:
    """Hashes of the words of a UTF-8 text, in order, (n,) uint64."""
    n = data.size
    out = np.empty(n // 2 + 1 if n else 0, np.uint64)
    count = 0
    h = np.uint64(0xCBF29CE484222325)
    inside = False
    i = 0
    while i < n:
        c = data[i]
        if 0xE3 <= c <= 0xE9 and i + 2 < n:
            if inside:
                out[count] = mix(h)
                count += 1
                inside = False
            out[count] = mix((np.uint64(c) << np.uint64(16)) | (np.uint64(data[i + 1]) << np.uint64(8)) | np.uint64(data[i + 2]))
            count += 1
            h = np.uint64(0xCBF29CE484222325)
            i += 3
            continue
        if 65 <= c <= 90:
            c += np.uint8(32)
        if c >= 128 or 97 <= c <= 122 or 48 <= c <= 57:
            h = (h ^ np.uint64(c)) * np.uint64(0x100000001B3)
            inside = True
        elif inside:
            out[count] = mix(h)
            count += 1
            h = np.uint64(0xCBF29CE484222325)
            inside = False
        i += 1
    if inside:
        out[count] = mix(h)
        count += 1
    return out[:count]


@nb.njit(cache=True)
def shingles(hashes: U64, n: int) -> U64:
    """Hashes of all runs of n words, (max(0, len − n + 1),) uint64; of the whole text where it has fewer than n words."""
    size = hashes.size
    if size == 0:
        return np.empty(0, np.uint64)
    width = min(n, size)
    out = np.empty(size - width + 1, np.uint64)
    for i in range(out.size):
        h = np.uint64(width)
        for j in range(width):
            h = h * np.uint64(0x9E3779B97F4A7C15) + hashes[i + j]
        out[i] = mix(h)
    return out


def shingles_reference(hashes: U64, n: int) -> U64:
    """The same as `shingles`, in numpy."""
    if hashes.size == 0:
        return np.empty(0, np.uint64)
    width = min(n, hashes.size)
    windows = np.lib.stride_tricks.sliding_window_view(hashes, width)
    h = np.full(windows.shape[0], width, np.uint64)
    for j in range(width):
        h = h * POLY + windows[:, j]
    h = (h ^ (h >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    h = (h ^ (h >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return h ^ (h >> np.uint64(31))


@nb.njit(cache=True)
def minhash(items: U64, a: U64, b: U64) -> U32:
    """MinHash signature (k,) uint32: min over items x of the high half of a_k·x + b_k (mod 2^64), a_k odd.

    P[two signatures agree in a position] = Jaccard similarity of the sets, up to 2^-32.
    Source: Broder 1997; multiply-add-shift of Dietzfelbinger et al. 1997.
    """
    k = a.size
    out = np.full(k, 0xFFFFFFFF, np.uint32)
    for i in range(items.size):
        x = items[i]
        for j in range(k):
            v = np.uint32((a[j] * x + b[j]) >> np.uint64(32))
            if v < out[j]:
                out[j] = v
    return out


def minhash_reference(items: U64, a: U64, b: U64) -> U32:
    """The same as `minhash`, in numpy."""
    if items.size == 0:
        return np.full(a.size, 0xFFFFFFFF, np.uint32)
    values: U64 = (items[:, None] * a[None, :] + b[None, :]) >> np.uint64(32)
    return np.asarray(values.min(axis=0), np.uint32)


@nb.njit(cache=True)
def band_keys(signature: U32, rows: int) -> U64:
    """One key a band of `rows` positions, (k // rows,) uint64; equal bands of the same number give equal keys."""
    bands = signature.size // rows
    out = np.empty(bands, np.uint64)
    for i in range(bands):
        h = np.uint64(i + 1)
        for j in range(rows):
            h = mix(h * np.uint64(0x9E3779B97F4A7C15) + np.uint64(signature[i * rows + j]))
        out[i] = h
    return out


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
