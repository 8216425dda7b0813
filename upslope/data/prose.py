"""Compiled loops over the bytes of prose: the counts behind the quality and repetition rules."""

from __future__ import annotations

import numba as nb
import numpy as np
from numpy.typing import NDArray

from upslope.data.hashing import U8, U64, mix


@nb.njit(cache=True, inline="always")
def _space(c: np.uint8) -> bool | np.bool:
    return c == 32 or (9 <= c <= 13)


@nb.njit(cache=True, inline="always")
def _letter(c: np.uint8) -> bool | np.bool:
    return c >= 128 or 97 <= c <= 122 or 65 <= c <= 90


@nb.njit(cache=True, inline="always")
def _ellipsis(data: U8, at: int) -> bool:
    """Whether three full stops, or the character for them, stand at a position."""
    return (data[at] == 46 and data[at + 1] == 46 and data[at + 2] == 46) or (
        data[at] == 0xE2 and data[at + 1] == 0x80 and data[at + 2] == 0xA6
    )


@nb.njit(cache=True)
def tokens(data: U8) -> tuple[U64, NDArray[np.int32], NDArray[np.int32]]:
    """Blank-separated tokens: (hash, start, end) of each."""
    n = data.size
    hashes = np.empty(n // 2 + 1, np.uint64)
    starts = np.empty(n // 2 + 1, np.int32)
    ends = np.empty(n // 2 + 1, np.int32)
    count = i = 0
    while i < n:
        while i < n and _space(data[i]):
            i += 1
        if i >= n:
            break
        starts[count] = i
        h = np.uint64(0xCBF29CE484222325)
        while i < n and not _space(data[i]):
            h = (h ^ np.uint64(data[i])) * np.uint64(0x100000001B3)
            i += 1
        ends[count] = i
        hashes[count] = mix(h)
        count += 1
    return hashes[:count], starts[:count], ends[:count]


@nb.njit(cache=True)
def gopher_counts(data: U8, stops: U64) -> NDArray[np.float64]:
    """Counts behind the Gopher rules, (10,) float64: tokens, words (tokens with a letter or digit), characters in words, tokens with a
    letter, `#` and ellipses, lines, lines that start with a bullet, lines that end in an ellipsis, distinct stop words, unspaced bytes.
    """
    _, starts, ends = tokens(data)
    out = np.zeros(10)
    out[0] = starts.size
    seen = np.zeros(stops.size, np.bool_)
    for t in range(starts.size):
        alnum = alpha = False
        chars = 0
        for i in range(starts[t], ends[t]):
            c = data[i]
            chars += (c & 0xC0) != 0x80
            if _letter(c):
                alpha = True
            elif 48 <= c <= 57:
                alnum = True
        if alpha or alnum:
            out[1] += 1
            out[2] += chars
        if alpha:
            out[3] += 1
            lo, hi = starts[t], ends[t]
            while lo < hi and not _letter(data[lo]):
                lo += 1
            while hi > lo and not _letter(data[hi - 1]):
                hi -= 1
            if hi - lo <= 4:
                h = np.uint64(0xCBF29CE484222325)
                for i in range(lo, hi):
                    c = data[i]
                    h = (h ^ np.uint64(c + 32 if 65 <= c <= 90 else c)) * np.uint64(0x100000001B3)
                for s in range(stops.size):
                    if stops[s] == h:
                        seen[s] = True
    n = data.size
    i = 0
    while i < n:
        j = i
        while j < n and data[j] != 10:
            j += 1
        lo, hi = i, j
        while lo < hi and _space(data[lo]):
            lo += 1
        while hi > lo and _space(data[hi - 1]):
            hi -= 1
        if hi > lo:
            out[5] += 1
            bullet = data[lo] == 45 or data[lo] == 42
            if hi - lo >= 3:
                bullet = bullet or (data[lo] == 0xE2 and data[lo + 1] == 0x80 and data[lo + 2] == 0xA2)
                out[7] += _ellipsis(data, hi - 3)
            out[6] += bullet
            while lo < hi and data[lo] == 35:  # a heading's marks are Markdown, not symbols
                lo += 1
            while lo < hi:
                if data[lo] == 35:
                    out[4] += 1
                elif lo + 2 < hi and _ellipsis(data, lo):
                    out[4] += 1
                    lo += 2
                lo += 1
        i = j + 1
    out[8] = seen.sum()
    for i in range(n):
        if 0xE3 <= data[i] <= 0xE9:
            out[9] += 3
    return out


@nb.njit(cache=True)
def _add(table: U64, counts: NDArray[np.int32], key: np.uint64) -> int:
    """Counts a key in an open-addressing table (0 = free); returns how often it had been there before."""
    mask = np.uint64(table.size - 1)
    key = key | np.uint64(1)
    at = mix(key) & mask
    while table[at] != 0 and table[at] != key:
        at = (at + np.uint64(1)) & mask
    table[at] = key
    counts[at] += 1
    return counts[at] - 1


@nb.njit(cache=True)
def _size(n: int) -> int:
    size = 16
    while size < 2 * n + 2:
        size *= 2
    return size


@nb.njit(cache=True)
def repeated_blocks(data: U8, paragraphs: bool) -> tuple[int, int, int, int]:
    """(blocks, repeated blocks, bytes in blocks, bytes in repeated ones); blocks are lines, or paragraphs between blank lines, stripped."""
    n = data.size
    breaks = 1
    for i in range(n):
        breaks += data[i] == 10
    table, counts = np.zeros(_size(breaks), np.uint64), np.zeros(_size(breaks), np.int32)
    total = repeated = total_bytes = repeated_bytes = 0
    i = 0
    while i < n:
        j = i
        while j < n and not (data[j] == 10 and (not paragraphs or j + 1 >= n or data[j + 1] == 10)):
            j += 1
        lo, hi = i, j
        while lo < hi and _space(data[lo]):
            lo += 1
        while hi > lo and _space(data[hi - 1]):
            hi -= 1
        if hi > lo:
            h = np.uint64(0xCBF29CE484222325)
            for k in range(lo, hi):
                h = (h ^ np.uint64(data[k])) * np.uint64(0x100000001B3)
            total += 1
            total_bytes += hi - lo
            if _add(table, counts, mix(h)) > 0:
                repeated += 1
                repeated_bytes += hi - lo
        i = j + 1
    return total, repeated, total_bytes, repeated_bytes


@nb.njit(cache=True)
def top_ngram(hashes: U64, starts: NDArray[np.int32], ends: NDArray[np.int32], n: int) -> int:
    """Bytes covered by the most frequent n-gram of tokens (count × its length without blanks), 0 if none occurs twice."""
    size = hashes.size - n + 1
    if size <= 0:
        return 0
    table, counts = np.zeros(_size(size), np.uint64), np.zeros(_size(size), np.int32)
    best = best_bytes = 0
    for i in range(size):
        h = np.uint64(n)
        length = 0
        for j in range(i, i + n):
            h = h * np.uint64(0x9E3779B97F4A7C15) + hashes[j]
            length += ends[j] - starts[j]
        count = _add(table, counts, mix(h)) + 1
        if count >= 2 and (count > best or (count == best and count * length > best_bytes)):
            best, best_bytes = count, count * length
    return best_bytes


@nb.njit(cache=True)
def repeated_ngrams(hashes: U64, starts: NDArray[np.int32], ends: NDArray[np.int32], n: int) -> int:
    """Bytes in n-grams of tokens that occurred before, left to right, each byte once. Source: Rae et al. 2021, table A1; datatrove."""
    size = hashes.size - n + 1
    if size <= 0:
        return 0
    table, counts = np.zeros(_size(size), np.uint64), np.zeros(_size(size), np.int32)
    total = i = 0
    while i < size:
        h = np.uint64(n)
        length = 0
        for j in range(i, i + n):
            h = h * np.uint64(0x9E3779B97F4A7C15) + hashes[j]
            length += ends[j] - starts[j]
        if _add(table, counts, mix(h)) > 0:
            total += length
            i += n
        else:
            i += 1
    return total
