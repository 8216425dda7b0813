"""Compiled loops of the links: blanks squeezed, pairs of buckets, union-find, lines and their slots."""

from __future__ import annotations

import numba as nb
import numpy as np
from numpy.typing import NDArray

from upslope.data.folding import U8, U64, mix
from upslope.data.hashing import I64


@nb.njit(cache=True)
def blank(data: U8, i: int, end: int) -> int:
    """The length of the blank (as `str.isspace` has it) that starts at byte i, or 0."""
    c = data[i]
    if c < 128:
        return 1 if c == 32 or 9 <= c <= 13 or 28 <= c <= 31 else 0
    if c == 0xC2 and i + 1 < end:
        return 2 if data[i + 1] == 0x85 or data[i + 1] == 0xA0 else 0
    if i + 2 >= end:
        return 0
    d, e = data[i + 1], data[i + 2]
    if c == 0xE2 and d == 0x80:
        return 3 if e <= 0x8A or e == 0xA8 or e == 0xA9 or e == 0xAF else 0
    if (c == 0xE2 and d == 0x81 and e == 0x9F) or (c == 0xE3 and d == 0x80 and e == 0x80) or (c == 0xE1 and d == 0x9A and e == 0x80):
        return 3
    return 0


@nb.njit(cache=True)
def squeeze(offsets: I64, data: U8) -> tuple[I64, U8]:
    """A column with ASCII in lower case, every run of blanks as one space, and none at the ends."""
    starts = np.zeros(offsets.size, np.int64)
    out = np.empty(offsets[-1] - offsets[0], np.uint8)
    at = 0
    for row in range(offsets.size - 1):
        i, end = offsets[row], offsets[row + 1]
        first, gap = at, False
        while i < end:
            c = data[i]
            width = 0 if 32 < c < 128 else blank(data, i, end)
            if width:
                gap = True
                i += width
                continue
            if gap:
                if at > first:
                    out[at] = 32
                    at += 1
                gap = False
            out[at] = c + np.uint8(32) if 65 <= c <= 90 else c
            at += 1
            i += 1
        starts[row + 1] = at
    return starts, out[:at]


@nb.njit(cache=True)
def pairs(places: I64, starts: I64, ends: I64, bucket: int) -> U64:
    """All pairs a << 32 | b, a < b, of each bucket places[starts:ends] (sorted) of at most `bucket` members; of a bigger one each member
    with the first and with the one before it."""
    total = 0
    for g in range(starts.size):
        m = ends[g] - starts[g]
        total += m * (m - 1) // 2 if m <= bucket else 2 * m
    out = np.empty(total, np.uint64)
    count = 0
    for g in range(starts.size):
        first, end = starts[g], ends[g]
        for j in range(first + 1, end):
            low = first if end - first <= bucket else j - 1
            for i in range(low, j):
                if places[i] != places[j]:
                    out[count] = (np.uint64(places[i]) << np.uint64(32)) | np.uint64(places[j])
                    count += 1
            if low > first and places[first] != places[j]:
                out[count] = (np.uint64(places[first]) << np.uint64(32)) | np.uint64(places[j])
                count += 1
    return out[:count]


@nb.njit(cache=True)
def root(parent: I64, x: int) -> int:
    """The root of x, paths halved on the way."""
    while parent[x] != x:
        parent[x] = parent[parent[x]]
        x = parent[x]
    return x


@nb.njit(cache=True)
def union(parent: I64, a: I64, b: I64) -> None:
    """Joins the trees of a_i and b_i; the smaller root stays, so that the root of a tree is its smallest node."""
    for i in range(a.size):
        x, y = root(parent, a[i]), root(parent, b[i])
        if x < y:
            parent[y] = x
        elif y < x:
            parent[x] = y


@nb.njit(cache=True)
def roots(parent: I64) -> None:
    """Makes every node point at its root. Parents are never larger than their children, so one pass does."""
    for x in range(parent.size):
        parent[x] = parent[parent[x]]


@nb.njit(cache=True)
def sparse_edges(parent: I64, i: I64, j: I64, bucket: int) -> NDArray[np.bool_]:
    """Which of the edges i < j (sorted by j, then i) to keep so that no node has more than `bucket` to smaller ones, except where an edge
    joins parts that would hang apart without it. parent: of the parts so far, changed in place."""
    keep = np.zeros(i.size, np.bool_)
    used = 0
    for e in range(i.size):
        if e == 0 or j[e] != j[e - 1]:
            used = 0
        x, y = root(parent, i[e]), root(parent, j[e])
        if x != y or used < bucket:
            keep[e] = True
            used += 1
            parent[max(x, y)] = min(x, y)
    return keep


@nb.njit(cache=True)
def chain(out: U64, row: I64, items: U64) -> None:
    """Takes each item, in order, into the hash of its row, in place."""
    for i in range(row.size):
        out[row[i]] = mix(out[row[i]] * np.uint64(0x9E3779B97F4A7C15) + items[i])
