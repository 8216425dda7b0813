"""Compiled loops over the prose of a whole batch: the counts behind the quality and repetition rules (`reference` says what they mean).

Prose is one buffer of bytes with the offsets of its rows; `classes` gives each byte the kind of its character, and each rule is one pass
over both that fills a table (rows, fields) float64, NaN = no value. Equal tokens are found by 64-bit hashes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import NamedTuple, TypeAlias

import numba as nb
import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from upslope.data import reference
from upslope.data.hashing import U8, U64, mix
from upslope.data.reference import BLANK, BRACKET, DIGIT, END, LETTER, QUOTE, SYMBOL, UNSPACED

I32: TypeAlias = NDArray[np.int32]
I64: TypeAlias = NDArray[np.int64]
F64: TypeAlias = NDArray[np.float64]


class Texts(NamedTuple):
    """UTF-8 of rows, end to end. data (bytes,) uint8; offsets (rows + 1,) int64; kinds (bytes,) uint8: the kind of each character."""

    data: U8
    offsets: I64
    kinds: U8


def prose_of(batch: pa.RecordBatch) -> Texts:
    """The prose of each row, byte for byte what `shards.prose` gives; of a NULL text nothing. Needs the columns text and spans."""
    data, offsets = _buffers(batch["text"])
    spans = batch["spans"]
    if spans.null_count < batch.num_rows:
        structs = spans.values
        parts = [_numbers(structs.field(i), np.int64) for i in range(3)]
        bounds = _numbers(spans.offsets, np.int64)
        data, offsets = gather(data, offsets, np.asarray(spans.is_valid(), np.bool_), bounds, *parts)
    return Texts(data, offsets, classes(data, _kinds()))


def texts_of(batch: pa.RecordBatch) -> Texts:
    """All of the text of each row. Needs the column text."""
    data, offsets = _buffers(batch["text"])
    return Texts(data, offsets, classes(data, _kinds()))


def frame(gives: Mapping[str, str], values: F64) -> pa.RecordBatch:
    """Columns from a table (rows, fields), fields in the order of `gives`; NaN becomes NULL."""
    columns = {}
    for (name, alias), column in zip(gives.items(), values.T):
        missing = np.isnan(column)
        kind = pa.type_for_alias(alias)
        dtype = np.bool_ if pa.types.is_boolean(kind) else kind.to_pandas_dtype()
        columns[name] = pa.array(np.where(missing, 0, column).astype(dtype), kind, mask=missing)
    return pa.RecordBatch.from_pydict(columns)


def fnv(word: bytes) -> int:
    """The hash (FNV-1a, 64 bits) under which the loops know a word."""
    h = 0xCBF29CE484222325
    for c in word:
        h = (h ^ c) * 0x100000001B3 % (1 << 64)
    return h


def backward_hash(word: str) -> int:
    """The hash under which `c4` knows an abbreviation, which it reads from its end."""
    h = 0
    for c in reversed(word.encode()):
        h = (h * 31 + c) % (1 << 64)
    return h


def joined(phrases: Sequence[str]) -> tuple[U8, I64]:
    """Phrases end to end as bytes, and their offsets (phrases + 1,)."""
    parts = [p.encode() for p in phrases]
    return np.frombuffer(b"".join(parts), np.uint8), np.cumsum([0, *map(len, parts)]).astype(np.int64)


def _buffers(texts: pa.Array) -> tuple[U8, I64]:
    """Bytes and offsets of a string column, of which only the rows in view."""
    if texts.null_count:
        texts = texts.fill_null("")
    wide = pa.types.is_large_string(texts.type)
    _, offsets, data = texts.buffers()
    if not len(texts):
        return np.empty(0, np.uint8), np.zeros(1, np.int64)
    starts = np.frombuffer(offsets, np.int64 if wide else np.int32)[texts.offset : texts.offset + len(texts) + 1].astype(np.int64)
    every = np.frombuffer(data, np.uint8) if data is not None else np.empty(0, np.uint8)
    return every[starts[0] : starts[-1]], starts - starts[0]


def _numbers(column: pa.Array, dtype: type[np.int64]) -> I64:
    return np.asarray(column.to_numpy(zero_copy_only=False)).astype(dtype)


@lru_cache(maxsize=1)
def _kinds() -> U8:
    """The kind of each character of the basic plane, (65536,) uint8."""
    table = np.empty(0x10000, np.uint8)
    for (start, kind), (end, _) in zip(reference.RANGES, reference.RANGES[1:]):
        table[start:end] = kind
    for kind, characters in ((END, reference.ENDS), (QUOTE, reference.QUOTES), (BRACKET, reference.BRACKETS), (BLANK, reference.BLANKS)):
        table[[ord(c) for c in characters]] = kind
    return table


@nb.njit(cache=True)
def _copy(data: U8, lo: int, hi: int, out: U8, at: int) -> int:
    for i in range(lo, hi):
        out[at + i - lo] = data[i]
    return at + max(hi - lo, 0)


@nb.njit(cache=True)
def gather(data: U8, offsets: I64, spanned: NDArray[np.bool_], bounds: I64, starts: I64, ends: I64, kinds: I64) -> tuple[U8, I64]:
    """Spans of kind prose, joined by blank lines, of the rows that have spans; all of the others. bounds: offsets of rows in spans."""
    rows = offsets.size - 1
    size = data.size
    for r in range(rows):
        if spanned[r]:
            size += 2 * (bounds[r + 1] - bounds[r])
    out, at = np.empty(size, np.uint8), 0
    new = np.zeros(rows + 1, np.int64)
    for r in range(rows):
        first, last = offsets[r], offsets[r + 1]
        if not spanned[r]:
            at = _copy(data, first, last, out, at)
        else:
            some = False
            for s in range(bounds[r], bounds[r + 1]):
                if kinds[s] != 0:
                    continue
                if some:
                    out[at] = out[at + 1] = 10
                    at += 2
                some = True
                lo = first + min(max(starts[s], 0), last - first)
                hi = first + min(max(ends[s], 0), last - first)
                at = _copy(data, lo, hi, out, at)
        new[r + 1] = at
    return out[:at], new


@nb.njit(cache=True)
def classes(data: U8, table: U8) -> U8:
    """The kind of the character that each byte is part of; bytes that are not UTF-8 are symbols."""
    n = data.size
    out = np.empty(n, np.uint8)
    i = 0
    while i < n:
        c = data[i]
        if c < 0x80:
            out[i] = table[c]
            i += 1
            continue
        width = 4 if c >= 0xF0 else 3 if c >= 0xE0 else 2 if c >= 0xC0 else 1
        kind = np.uint8(SYMBOL)
        if width > 1 and i + width <= n:
            code = np.int64(c & (0x7F >> width))
            for k in range(1, width):
                code = (code << 6) | np.int64(data[i + k] & 0x3F)
            if code < 0x10000:
                kind = table[code]
            elif code < 0x1F000:
                kind = np.uint8(LETTER)
            elif 0x20000 <= code < 0x40000:
                kind = np.uint8(UNSPACED)
        else:
            width = 1
        for k in range(width):
            out[i + k] = kind
        i += width
    return out


@nb.njit(cache=True)
def _starts_character(c: np.uint8) -> bool | np.bool:
    return (c & 0xC0) != 0x80


@nb.njit(cache=True)
def _fold(c: np.uint8) -> np.uint8:
    """A to Z in lower case."""
    return c + np.uint8(32) if 65 <= c <= 90 else c


@nb.njit(cache=True)
def _fnv(h: np.uint64, c: np.uint8) -> np.uint64:
    return (h ^ np.uint64(c)) * np.uint64(0x100000001B3)


@nb.njit(cache=True)
def _ellipsis(data: U8, lo: int, hi: int) -> bool:
    """Whether three full stops, or the character for them, stand at lo."""
    if lo + 3 > hi:
        return False
    return (data[lo] == 46 and data[lo + 1] == 46 and data[lo + 2] == 46) or (
        data[lo] == 0xE2 and data[lo + 1] == 0x80 and data[lo + 2] == 0xA6
    )


@nb.njit(cache=True)
def _line(data: U8, kinds: U8, at: int, end: int) -> tuple[int, int, int]:
    """(start, end) of the line at a position without its blanks, and where the next one begins."""
    stop = at
    while stop < end and data[stop] != 10:
        stop += 1
    lo, hi = at, stop
    while lo < hi and kinds[lo] == BLANK:
        lo += 1
    while hi > lo and kinds[hi - 1] == BLANK:
        hi -= 1
    return lo, hi, stop + 1


@nb.njit(cache=True)
def units(data: U8, kinds: U8, lo: int, hi: int) -> tuple[U64, I32, I32]:
    """Tokens between blanks, letters of unspaced scripts one by one: (hash, start, end) of each; positions count from lo."""
    size = (hi - lo) // 2 + 2
    hashes, starts, ends = np.empty(size, np.uint64), np.empty(size, np.int32), np.empty(size, np.int32)
    count, i = 0, lo
    while i < hi:
        if kinds[i] == BLANK:
            i += 1
            continue
        start, h = i, np.uint64(0xCBF29CE484222325)
        single = kinds[i] == UNSPACED
        while i < hi and kinds[i] != BLANK and (i == start or not _starts_character(data[i]) or not (single or kinds[i] == UNSPACED)):
            h = _fnv(h, data[i])
            i += 1
        hashes[count], starts[count], ends[count] = mix(h), start - lo, i - lo
        count += 1
        if count == hashes.size:  # one-byte tokens without blanks between them: only in text that is not UTF-8
            break
    return hashes[:count], starts[:count], ends[:count]


@nb.njit(cache=True)
def pieces(data: U8, kinds: U8, lo: int, hi: int) -> tuple[U64, I32]:
    """Runs of letters and digits, letters of unspaced scripts one by one, runs of one symbol: (hash, bytes) of each."""
    hashes, sizes = np.empty(hi - lo, np.uint64), np.empty(hi - lo, np.int32)
    count, i = 0, lo
    while i < hi:
        kind = kinds[i]
        if kind == BLANK:
            i += 1
            continue
        start, h = i, np.uint64(0xCBF29CE484222325)
        if DIGIT <= kind < UNSPACED:
            while i < hi and DIGIT <= kinds[i] < UNSPACED:
                h = _fnv(h, data[i])
                i += 1
        else:
            i += 1
            while i < hi and not _starts_character(data[i]):
                i += 1
            width = i - start
            same = kind != UNSPACED
            while same and i + width <= hi:
                for k in range(width):
                    same = same and data[i + k] == data[start + k]
                i += width if same else 0
            for k in range(start, i):
                h = _fnv(h, data[k])
        hashes[count], sizes[count] = mix(h), i - start
        count += 1
    return hashes[:count], sizes[:count]


@nb.njit(cache=True)
def gopher(data: U8, offsets: I64, kinds: U8, stops: U64, longest: int, bullets: U8, limit: float) -> F64:
    """(rows, 10): the fields of `Gopher`. stops: hashes of the stop words, of which the longest has so many bytes; bullets: the first
    three bytes of each bullet of three bytes."""
    rows = offsets.size - 1
    out = np.empty((rows, 10))
    seen = np.zeros(stops.size, np.bool_)
    for r in range(rows):
        lo, hi = offsets[r], offsets[r + 1]
        seen[:] = False
        tokens = words = chars = alpha = signs = unspaced = units = characters = 0
        i = lo
        while i < hi:
            if kinds[i] == BLANK:
                i += 1
                continue
            size = 0
            first = last = -1
            digit = inside = False
            while i < hi and kinds[i] != BLANK:
                kind = kinds[i]
                if kind >= LETTER:
                    first = i if first < 0 else first
                    last = i
                if _starts_character(data[i]):
                    size += 1
                    if kind == UNSPACED:
                        units += inside + 1
                        inside = False
                        unspaced += 1
                        signs += 1
                    elif kind >= DIGIT:
                        signs += 1
                        digit = digit or kind == DIGIT
                        inside = True
                i += 1
            units += inside
            tokens += 1
            characters += size
            if first >= 0 or digit:
                words += 1
                chars += size
            if first >= 0:
                alpha += 1
                if last + 1 - first <= longest:
                    h = np.uint64(0xCBF29CE484222325)
                    for k in range(first, last + 1):
                        h = _fnv(h, _fold(data[k]))
                    for s in range(stops.size):
                        if stops[s] == h:
                            seen[s] = True
        lines = bulleted = ended = hashes = ellipses = 0
        i = lo
        while i < hi:
            a, b, i = _line(data, kinds, i, hi)
            if a == b:
                continue
            lines += 1
            if data[a] == 45 or data[a] == 42 or data[a] == 43:
                bulleted += a + 1 == b or kinds[a + 1] == BLANK
            elif data[a] == 0xE2 and a + 2 < b:
                for k in range(0, bullets.size, 3):
                    bulleted += data[a + 1] == bullets[k + 1] and data[a + 2] == bullets[k + 2]
            ended += _ellipsis(data, max(a, b - 3), b)
            while a < b and data[a] == 35:  # a heading's marks are Markdown, not symbols
                a += 1
            while a < b:
                if data[a] == 35:
                    hashes += 1
                elif (data[a] == 46 or data[a] == 0xE2) and _ellipsis(data, a, b):
                    ellipses += 1
                    a += 2
                a += 1
        row = out[r]
        row[:] = np.nan
        if signs == 0 or unspaced <= limit * signs:
            row[0], row[6] = words, seen.sum()
            row[1] = chars / words if words else np.nan
            if tokens:
                row[2], row[5] = max(hashes, ellipses) / tokens, alpha / tokens
        if lines:
            row[3], row[4] = bulleted / lines, ended / lines
        row[7], row[8] = units, characters
        row[9] = unspaced / signs if signs else np.nan
    return out


@nb.njit(cache=True)
def _slot(table: U64, mask: np.uint64, key: np.uint64) -> np.int64:
    """Where a key stands, or would, in an open-addressing table (0 = free)."""
    at = key & mask
    while table[at] != 0 and table[at] != key:
        at = (at + np.uint64(1)) & mask
    return np.int64(at)


@nb.njit(cache=True)
def _room(table: U64, n: int) -> int:
    """Frees the part of a table in which n keys have room, a power of two; returns its size, 0 where the table is too small."""
    size = 16
    while size < 2 * n + 2:
        size *= 2
    if size <= table.size:
        for i in range(size):
            table[i] = 0
        return size
    return 0


@nb.njit(cache=True)
def _blocks(data: U8, kinds: U8, lo: int, hi: int, paragraphs: bool, table: U64) -> tuple[U64, int, int, int, int]:
    """(table, blocks, repeated blocks, bytes in blocks, bytes in repeated ones); blocks are lines, or paragraphs between blank lines."""
    breaks = 1
    for i in range(lo, hi):
        breaks += data[i] == 10
    size = _room(table, breaks)
    if size == 0:
        table = np.zeros(4 * breaks + 64, np.uint64)
        size = _room(table, breaks)
    mask = np.uint64(size - 1)
    total = repeated = total_bytes = repeated_bytes = 0
    i = lo
    while i < hi:
        j = i
        while j < hi and not (data[j] == 10 and (not paragraphs or (j + 1 < hi and data[j + 1] == 10))):
            j += 1
        a, b = i, j
        while a < b and kinds[a] == BLANK:
            a += 1
        while b > a and kinds[b - 1] == BLANK:
            b -= 1
        if b > a:
            h = np.uint64(0xCBF29CE484222325)
            for k in range(a, b):
                h = _fnv(h, data[k])
            key = mix(h) | np.uint64(1)
            at = _slot(table, mask, key)
            total += 1
            total_bytes += b - a
            if table[at] == key:
                repeated += 1
                repeated_bytes += b - a
            table[at] = key
        i = j + 1
    return table, total, repeated, total_bytes, repeated_bytes


@nb.njit(cache=True)
def repetition(data: U8, offsets: I64, kinds: U8) -> F64:
    """(rows, 13): the fields of `Repetition`.

    An n-gram can only occur twice if the (n − 1)-gram that begins it does, so each pass looks at the positions that the one before left
    over: in ordinary text, a tenth after three passes.
    """
    rows = offsets.size - 1
    out = np.full((rows, 13), np.nan)
    table, counts, covered = np.zeros(1024, np.uint64), np.zeros(1024, np.int32), np.zeros(1024, np.int32)
    for r in range(rows):
        lo, hi = offsets[r], offsets[r + 1]
        hashes, starts, ends = units(data, kinds, lo, hi)
        n = hashes.size
        if n == 0:
            continue
        for paragraphs in range(2):
            table, total, repeated, size, repeated_size = _blocks(data, kinds, lo, hi, paragraphs == 1, table)
            out[r, 2 * paragraphs], out[r, 2 * paragraphs + 1] = repeated / total, repeated_size / size
        if table.size < 4 * n + 64:
            table = np.zeros(4 * n + 64, np.uint64)
        if counts.size < table.size:
            counts, covered = np.zeros(table.size, np.int32), np.zeros(table.size, np.int32)
        lengths, gaps = np.zeros(n + 1, np.int64), np.zeros(n + 1, np.int64)  # bytes, and tokens after a blank, before each token
        for i in range(n):
            lengths[i + 1] = lengths[i] + ends[i] - starts[i]
            gaps[i + 1] = gaps[i] + (i > 0 and starts[i] > ends[i - 1])
        grams = hashes.copy()  # of the n-gram that starts at a position
        left, many = np.arange(n), n  # positions whose (width − 1)-gram occurs twice, and how many
        slots = np.empty(n, np.int64)
        for width in range(2, 11):
            while many and left[many - 1] > n - width:
                many -= 1
            size = _room(table, many)
            mask = np.uint64(size - 1)
            if width > 4:
                total = until = 0
                for at in range(many):
                    i = left[at]
                    grams[i] = mix(grams[i] * np.uint64(0x9E3779B97F4A7C15) + hashes[i + width - 1])
                    if i < until:
                        continue
                    key = grams[i] | np.uint64(1)
                    slot = _slot(table, mask, key)
                    if table[slot] == key:
                        total += lengths[i + width] - lengths[i]
                        until = i + width
                    table[slot] = key
                out[r, 2 + width] = total / (hi - lo)
                continue
            for i in range(size):
                counts[i] = covered[i] = 0
            best = best_bytes = 0
            for at in range(many):
                i = left[at]
                grams[i] = mix(grams[i] * np.uint64(0x9E3779B97F4A7C15) + hashes[i + width - 1])
                key = grams[i] | np.uint64(1)
                slot = _slot(table, mask, key)
                table[slot] = key
                slots[at] = slot
                counts[slot] += 1
                covered[slot] += lengths[i + width] - lengths[i] + gaps[i + width] - gaps[i + 1]
                if counts[slot] > best or (counts[slot] == best and covered[slot] > best_bytes):
                    best, best_bytes = counts[slot], covered[slot]
            out[r, 2 + width] = best_bytes / (hi - lo) if best > 1 else 0.0
            kept = 0
            for at in range(many):
                if counts[slots[at]] > 1:
                    left[kept] = left[at]
                    kept += 1
            many = kept
    return out


@nb.njit(cache=True)
def _uncited(data: U8, kinds: U8, lo: int, hi: int) -> int:
    """The end of a line without the citation marks (`[3]`, `[edit]`, `[citation needed]`) at its end."""
    while hi > lo and data[hi - 1] == 93:
        at = hi - 2
        while at >= lo and data[at] != 91 and hi - at < 20:
            at -= 1
        if at < lo or data[at] != 91:
            break
        inner = data[at + 1 : hi - 1]
        digits = inner.size < 10
        for c in inner:
            digits = digits and 48 <= c <= 57
        if not digits and not _equal(inner, b"edit") and not _equal(inner, b"citation needed"):
            break
        hi = at
        while hi > lo and kinds[hi - 1] == BLANK:
            hi -= 1
    return hi


@nb.njit(cache=True)
def _equal(data: U8, phrase: bytes) -> bool:
    if data.size != len(phrase):
        return False
    same = True
    for i in range(data.size):
        same = same and data[i] == phrase[i]
    return same


@nb.njit(cache=True)
def _at(data: U8, i: int, hi: int, phrase: U8) -> bool:
    """Whether a phrase in small letters stands at a position, in whatever case."""
    if i + phrase.size > hi:
        return False
    k = 0
    while k < phrase.size and _fold(data[i + k]) == phrase[k]:
        k += 1
    return k == phrase.size


@nb.njit(cache=True)
def _terminal(data: U8, kinds: U8, lo: int, hi: int) -> bool:
    hi = _uncited(data, kinds, lo, hi)
    if hi == lo or (kinds[hi - 1] != END and kinds[hi - 1] != QUOTE):
        return False
    return not _ellipsis(data, max(lo, hi - 3), hi)


@nb.njit(cache=True)
def _sentences(data: U8, kinds: U8, lo: int, hi: int, short: U64) -> int:
    """Sentences of a line; short: hashes of the abbreviations that do not end one."""
    count, i = 0, lo
    holds = False
    while i < hi:
        if kinds[i] != END:
            holds = holds or kinds[i] >= DIGIT
            i += 1
            continue
        start, wide = i, False
        while i < hi and kinds[i] == END:
            wide = wide or data[i] >= 128
            i += 1
        stop = i
        while stop < hi and (kinds[stop] == QUOTE or kinds[stop] == BRACKET):
            stop += 1
        cut = wide or stop == hi
        if not cut and kinds[stop] == BLANK:
            after = stop
            while kinds[after] == BLANK:  # a line does not end in blanks
                after += 1
            cut = not 97 <= data[after] <= 122
            if cut and i - start == 1 and data[start] == 46:
                word = start
                h = np.uint64(0)
                while word > lo and 97 <= (data[word - 1] | 32) <= 122:
                    word -= 1
                    h = h * np.uint64(31) + np.uint64(data[word] | 32)
                cut = start - word != 1
                for s in range(short.size):
                    cut = cut and (start - word > 4 or short[s] != h)
        if cut:
            count += holds
            holds = False
    return count + holds


@nb.njit(cache=True)
def c4(data: U8, offsets: I64, kinds: U8, terminal_only: bool, least: int, longest: int, phrases: U8, bounds: I64, short: U64) -> F64:
    """(rows, 11): the fields of `C4`. phrases: "lorem ipsum", "javascript" and the policy phrases, end to end with offsets `bounds`."""
    rows = offsets.size - 1
    out = np.full((rows, 11), np.nan)
    first, second = np.zeros(256, np.uint16), np.zeros(256, np.uint16)  # bit p: phrase p begins so
    for p in range(bounds.size - 1):
        for c in range(256):
            first[c] |= np.uint16((_fold(np.uint8(c)) == phrases[bounds[p]]) << p)
            second[c] |= np.uint16((_fold(np.uint8(c)) == phrases[bounds[p] + 1]) << p)
    for r in range(rows):
        lines = kept = ending = few = javascript = policy = sentences = widest = line_bytes = kept_bytes = 0
        lorem = brace = False
        i = offsets[r]
        while i < offsets[r + 1]:
            a, b, i = _line(data, kinds, i, offsets[r + 1])
            if a == b:
                continue
            lines += 1
            line_bytes += b - a
            words = width = line_widest = 0
            script = rule = inside = False
            for k in range(a, b):
                c = data[k]
                if _starts_character(c):
                    kind = kinds[k]
                    if kind == BLANK:
                        inside = False
                    else:
                        single = kind == UNSPACED
                        if single or not inside:
                            words += 1
                            width = 0
                        width += 1
                        line_widest = max(line_widest, width)
                        inside = not single
                maybe = first[c] & second[data[k + 1]] if k + 1 < b else np.uint16(0)
                if maybe:
                    for p in range(bounds.size - 1):
                        if (maybe >> p) & 1 and _at(data, k, b, phrases[bounds[p] : bounds[p + 1]]):
                            lorem = lorem or p == 0
                            script = script or p == 1
                            rule = rule or p > 1
                brace = brace or c == 123
            ends = _terminal(data, kinds, a, b)
            ending += ends
            few += words < least
            javascript += script
            policy += rule
            widest = max(widest, line_widest)
            if (ends or not terminal_only) and words >= least and line_widest <= longest and not script and not rule:
                kept += 1
                kept_bytes += b - a
                sentences += _sentences(data, kinds, a, b, short)
        row = out[r]
        if lines:
            row[1], row[2], row[4], row[5] = kept / lines, kept_bytes / line_bytes, ending / lines, few / lines
        row[0], row[3], row[6], row[7], row[8], row[9], row[10] = lines, sentences, javascript, policy, widest, lorem, brace
    return out


@nb.njit(cache=True)
def fineweb(data: U8, offsets: I64, kinds: U8, short: int) -> F64:
    """(rows, 4): the fields of `FineWeb`."""
    rows = offsets.size - 1
    out = np.full((rows, 4), np.nan)
    table = np.zeros(1024, np.uint64)
    for r in range(rows):
        lo, hi = offsets[r], offsets[r + 1]
        lines = punct = small = tokens = 0
        i = lo
        while i < hi:
            a, b, i = _line(data, kinds, i, hi)
            if a == b:
                continue
            lines += 1
            punct += kinds[b - 1] == END
            chars = 0
            inside = False
            for k in range(a, b):
                if _starts_character(data[k]):
                    chars += 1
                    single = kinds[k] == UNSPACED
                    blank = kinds[k] == BLANK
                    tokens += not blank and (single or not inside)
                    inside = not blank and not single
            small += chars <= short
        if lines:
            table, _, _, size, again = _blocks(data, kinds, lo, hi, False, table)
            out[r, 0], out[r, 1], out[r, 2], out[r, 3] = punct / lines, small / lines, again / size, (lines - 1) / tokens
    return out


@nb.njit(cache=True)
def repeats(data: U8, offsets: I64, kinds: U8, longest: int, least: int) -> F64:
    """(rows, 3): the fields of `Repeats`."""
    rows = offsets.size - 1
    out = np.full((rows, 3), np.nan)
    for r in range(rows):
        hashes, sizes = pieces(data, kinds, offsets[r], offsets[r + 1])
        n = hashes.size
        most = period = 1 if n else 0
        covered = np.zeros(n, np.bool_)
        total = share = 0
        for p in range(1, longest + 1):
            i = 0
            while i < n - p:
                if hashes[i] != hashes[i + p]:
                    i += 1
                    continue
                j = i
                while j + p < n and hashes[j] == hashes[j + p]:
                    j += 1
                times = (j - i) // p + 1
                if times > most:
                    most, period = times, p
                if times >= least:
                    covered[i : j + p] = True
                i = j + 1
        for i in range(n):
            total += sizes[i]
            share += sizes[i] if covered[i] else 0
        out[r, 0], out[r, 1] = most, period
        if total:
            out[r, 2] = share / total
    return out


@nb.njit(cache=True)
def phrases(data: U8, offsets: I64, kinds: U8, keys: U64, group: I32, weight: F64, groups: int, longest: int) -> F64:
    """(rows, groups + 2): weighted hits by group, hits, words. keys: sorted hashes of phrases: words in small letters (A to Z), joined by
    one blank; group, weight: of each. Of phrases that start at the same word the longest counts, and its words count for no other."""
    rows = offsets.size - 1
    out = np.zeros((rows, groups + 2))
    maybe = np.zeros(1 << 14, np.bool_)
    for key in keys:
        maybe[key & np.uint64((1 << 14) - 1)] = True
    for r in range(rows):
        hi = offsets[r + 1]
        i, skip = offsets[r], 0
        while i < hi:
            if kinds[i] < DIGIT:
                i += 1
                continue
            out[r, groups + 1] += 1
            h = np.uint64(0xCBF29CE484222325)
            at = after = i
            best, size = np.int64(-1), 0
            for n in range(1 if skip else longest):
                if n:
                    while at < hi and kinds[at] < DIGIT:
                        at += 1
                    if at >= hi:
                        break
                    h = _fnv(h, np.uint8(32))
                while at < hi and kinds[at] >= DIGIT:
                    h = _fnv(h, _fold(data[at]))
                    at += 1
                after = at if n == 0 else after
                if not skip and maybe[h & np.uint64((1 << 14) - 1)]:
                    k = np.int64(np.searchsorted(keys, h))
                    if k < keys.size and keys[k] == h:
                        best, size = k, n + 1
            if best >= 0:
                out[r, group[best]] += weight[best]
                out[r, groups] += 1
                skip = size - 1
            elif skip:
                skip -= 1
            i = after
    return out
