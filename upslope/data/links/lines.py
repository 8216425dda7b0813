"""Lines of pages and what in them varies: the compiled loop under the skeleton link.

A line is what stands between line breaks, blanks at its ends left out; an empty one is none. Its *exact* hash is of its bytes with runs of
blanks as one space. Its *typed* hash is of its words (as `data.folding` has them) with those that vary from page to page replaced by their
class: words with a digit in them and names of months and days → NUMBER, other words that start with a capital → NAME. A run of words of
one class is one slot, so that `written by Ann Lee on 3 May 2021` and `written by Bo on June 17, 2020` are one line with other slots.
"""

from __future__ import annotations

import unicodedata
from functools import lru_cache
from typing import NamedTuple, TypeAlias

import numba as nb
import numpy as np
from numpy.typing import NDArray

from upslope.data.folding import ALONE, OFFSET, PRIME, SKIP, U8, U32, U64, counts_as, decode, mix, table, words
from upslope.data.hashing import I64
from upslope.data.links.kernels import blank

I32: TypeAlias = NDArray[np.int32]

LITERAL, NUMBER, NAME = range(3)
MONTHS = """
january february march april may june july august september october november december jan feb mar apr jun jul aug sep sept oct nov dec
monday tuesday wednesday thursday friday saturday sunday mon tue wed thu fri sat sun
januar februar märz mai juni juli oktober dezember montag dienstag mittwoch donnerstag freitag samstag sonntag
janvier février mars avril juin juillet août septembre octobre novembre décembre lundi mardi mercredi jeudi vendredi samedi dimanche
enero febrero marzo abril mayo junio julio agosto septiembre octubre noviembre diciembre
lunes martes miércoles jueves viernes sábado domingo
gennaio febbraio aprile maggio giugno luglio settembre ottobre dicembre lunedì martedì mercoledì giovedì venerdì sabato domenica
janeiro fevereiro março maio junho julho setembro outubro novembro dezembro segunda terça quarta quinta sexta
"""


class Lines(NamedTuple):
    """The lines of a column, in order. row (n,) int64; exact, typed (n,) uint64; size (n,) int32, bytes; slots (n,) int32, of these in
    slots; literals (n,) int32, words that are in none."""

    row: I64
    exact: U64
    typed: U64
    size: I32
    slots: I32
    literals: I32


@lru_cache(maxsize=1)
def _classes() -> U8:
    """1 for capitals (upper and title case), 2 for digits, else 0; (65536,) uint8."""
    kinds = {"Lu": 1, "Lt": 1, "Nd": 2}
    return np.array([kinds.get(unicodedata.category(chr(c)), 0) for c in range(1 << 16)], np.uint8)


@lru_cache(maxsize=1)
def _months() -> U64:
    return np.unique(words(np.frombuffer(MONTHS.encode(), np.uint8)))


def lines(offsets: I64, data: U8) -> Lines:
    """The lines of the texts of a `hashing.column`."""
    return Lines(*_lines(offsets, data, table(), _classes(), _months()))


@nb.njit(cache=True)
def _lines(offsets: I64, data: U8, kinds: U32, classes: U8, months: U64) -> tuple[I64, U64, U64, I32, I32, I32]:
    count = offsets.size - 1
    for c in data[offsets[0] : offsets[-1]]:
        count += c == 10
    row, exact, typed = np.empty(count, np.int64), np.empty(count, np.uint64), np.empty(count, np.uint64)
    size, slots, literals = np.empty(count, np.int32), np.empty(count, np.int32), np.empty(count, np.int32)
    at = 0
    for r in range(offsets.size - 1):
        start = offsets[r]
        while start < offsets[r + 1]:
            end = start
            while end < offsets[r + 1] and data[end] != 10:
                end += 1
            h, first, last = _exact(data, start, end)
            if last > first:
                row[at], exact[at], size[at] = r, h, last - first
                typed[at], slots[at], literals[at] = _typed(data, first, last, kinds, classes, months)
                at += 1
            start = end + 1
    return row[:at], exact[:at], typed[:at], size[:at], slots[:at], literals[:at]


@nb.njit(cache=True)
def _exact(data: U8, i: int, end: int) -> tuple[np.uint64, int, int]:
    """(hash of a line with its blanks squeezed, its first byte that is not blank, the byte after its last)."""
    h = OFFSET
    first = last = i
    gap = False
    while i < end:
        width = blank(data, i, end)
        if width:
            gap = True
            i += width
            continue
        if last == first:
            first = i
        elif gap:
            h = (h ^ np.uint64(32)) * PRIME
        gap = False
        h = (h ^ np.uint64(data[i])) * PRIME
        i += 1
        last = i
    return mix(h), first, last


@nb.njit(cache=True)
def _typed(data: U8, i: int, end: int, kinds: U32, classes: U8, months: U64) -> tuple[np.uint64, int, int]:
    """(typed hash of a line, its bytes in slots, its words that are in none)."""
    h = np.uint64(1)
    slots = literals = 0
    before = LITERAL
    word = OFFSET
    start, size, first, digits = i, 0, 0, False
    while i <= end:
        c, kind, here = np.uint64(0), 0, i
        if i < end:
            point, i = decode(data, i, end)
            c = counts_as(point, kinds)
            if c & np.uint64(SKIP) and not c & np.uint64(ALONE):
                continue
            kind = classes[point] if point < np.uint64(0x10000) else 0
        else:
            i += 1
        alone = c & np.uint64(ALONE)
        if c != 0 and not alone:
            if size == 0:
                start, first, digits, word = here, kind, False, OFFSET
            digits |= kind == 2
            word = (word ^ c) * PRIME
            size += 1
            continue
        if size:
            word = mix(word)
            what = LITERAL
            near = np.searchsorted(months, word)
            if digits or (near < months.size and months[near] == word):
                what = NUMBER
            elif first == 1:
                what = NAME
            if what == LITERAL:
                h = mix(h * np.uint64(0x9E3779B97F4A7C15) + word)
                literals += 1
            else:
                slots += here - start
                if what != before:
                    h = mix(h * np.uint64(0x9E3779B97F4A7C15) + np.uint64(what))
            before = what
            size = 0
        if alone:
            h = mix(h * np.uint64(0x9E3779B97F4A7C15) + mix(c))
            literals += 1
            before = LITERAL
    return h, slots, literals
