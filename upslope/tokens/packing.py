"""Packing: which documents share a row, as an index; token files are never rewritten.

`best_fit`: a document longer than a row gives whole rows and a rest; rests and shorter documents are packed best-fit-decreasing: the
longest first, each into the fullest row that still has room. So no document is cut that fits into a row, at the price of rows that are
not quite full. All documents of a source are packed at once, by the histogram of their lengths: pieces of equal length are alike, so
the work grows with the number of different lengths, not of documents.

Source: Ding et al. 2024, "Fewer Truncations Improve Language Modeling" (2404.10830); histogram packing of Krell et al. 2021 (2107.02027);
Johnson 1973 (best fit decreasing).
"""

from __future__ import annotations

from bisect import bisect_left, insort
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

I64 = NDArray[np.int64]


class Plan(NamedTuple):
    """Rows made of pieces. Row r holds the pieces starts[r] to starts[r + 1]; piece p is tokens begin[p] to end[p] of document doc[p].

    starts: (rows + 1,); doc, begin, end: (pieces,); all int64. A document's pieces follow one another.
    """

    starts: I64
    doc: I64
    begin: I64
    end: I64

    @property
    def rows(self) -> int:
        """How many rows there are."""
        return len(self.starts) - 1

    def tokens(self) -> I64:
        """Tokens in each row, (rows,)."""
        total = np.concatenate([np.zeros(1, np.int64), np.cumsum(self.end - self.begin)])
        return np.asarray(total[self.starts[1:]] - total[self.starts[:-1]], np.int64)

    def cut(self) -> int:
        """How many documents are in more than one piece."""
        return int(np.unique(self.doc[self.begin > 0]).size)


def best_fit(lengths: I64, length: int) -> Plan:
    """The plan for documents of `lengths` (n,) tokens, in rows of at most `length`. Empty documents are in no row."""
    doc = np.arange(len(lengths), dtype=np.int64)
    whole = lengths // length
    rest = lengths - whole * length
    # pieces that fill a row on their own
    full_doc = np.repeat(doc, whole)
    nth = np.arange(len(full_doc)) - np.repeat(np.cumsum(whole) - whole, whole)
    doc_parts, begin_parts, end_parts = [full_doc], [nth * length], [(nth + 1) * length]
    counts = [np.ones(len(full_doc), np.int64)]
    # rests by size; those of one size are taken in the order of the documents
    short = doc[rest > 0]
    order = short[np.argsort(rest[short], kind="stable")]
    sizes, first = np.unique(rest[order], return_index=True)
    queue = {int(s): (order[a:b], [0]) for s, a, b in zip(sizes, first, np.append(first, len(order))[1:], strict=True)}
    for pattern, times in _patterns({s: len(q) for s, (q, _) in queue.items()}, length):
        taken = []
        for size in pattern:
            ids, used = queue[size]
            taken.append(ids[used[0] : used[0] + times])
            used[0] += times
        docs = np.stack(taken, axis=1).ravel()
        doc_parts.append(docs)
        begin_parts.append(lengths[docs] - rest[docs])
        end_parts.append(lengths[docs])
        counts.append(np.full(times, len(pattern), np.int64))
    starts = np.concatenate([np.zeros(1, np.int64), np.cumsum(np.concatenate(counts))])
    return Plan(starts, np.concatenate(doc_parts), np.concatenate(begin_parts), np.concatenate(end_parts))


def _patterns(histogram: dict[int, int], length: int) -> list[tuple[tuple[int, ...], int]]:
    """(sizes in a row, how many such rows): best fit decreasing on counts of equal sizes."""
    room: list[int] = []  # the rooms that some open row has, ascending
    open_: dict[int, list[tuple[tuple[int, ...], int]]] = {}

    def put(pattern: tuple[int, ...], times: int, left: int) -> None:
        if times:
            if left not in open_:
                open_[left] = []
                insort(room, left)
            open_[left].append((pattern, times))

    for size in sorted(histogram, reverse=True):
        count = histogram[size]
        while count:
            at = bisect_left(room, size)
            if at == len(room):  # no open row has room: new ones, as full of this size as they get
                each = length // size
                put((size,) * each, count // each, length - each * size)
                put((size,) * (count % each), 1 if count % each else 0, length - count % each * size)
                break
            left = room[at]
            pattern, times = open_[left].pop()
            if not open_[left]:
                del open_[left]
                room.pop(at)
            each = min(left // size, count)
            rows = min(times, count // each)
            put(pattern, times - rows, left)
            put((*pattern, *(size,) * each), rows, left - each * size)
            count -= rows * each
    return [entry for left in sorted(open_) for entry in open_[left]]
