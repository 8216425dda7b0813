"""The words of a text as evaluations and pages are compared by them: what typesetting, markup and encoding change does not count.

Words as in `data.folding` (no case, accents, punctuation or compatibility forms), and beyond that: HTML tags and entities, list markers
at the start of a line or table cell, code fences with their language and pictographs are not seen; numbers keep their decimal point and
lose their thousands separator; `zero`, `two` … `twelve` are 0, 2 … 12; `+ - * / = ^ < >` between numbers are words.

A word is a 64-bit hash whose lowest bit says whether it starts with a digit.
"""

from __future__ import annotations

import html
import unicodedata
from functools import lru_cache

import numba as nb
import numpy as np

from upslope.data.folding import ALONE, OFFSET, PRIME, SKIP, U8, U32, U64, following, mix, table

NAMES = ("zero", "", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve")
"""`one` is a pronoun more often than a number."""
LIGATURES = b"\xef\xac"
TAG = 300
NOTHING, SEPARATES, STANDS_ALONE, LETTER = range(4)


def of(text: str) -> U64:
    """The words of a text, (n,) uint64."""
    return of_bytes(text.encode("utf-8", "replace"))


def of_bytes(data: bytes) -> U64:
    """The words of a UTF-8 text, (n,) uint64."""
    return _scan(data, *_numbers())


@lru_cache(maxsize=1)
def _numbers() -> tuple[U64, U64]:
    none = np.empty(0, np.uint64)
    pairs = [(name, str(i)) for i, name in enumerate(NAMES) if name]
    found = np.array([[_scan(w.encode(), none, none)[0] for w in pair] for pair in pairs], np.uint64)
    return found[:, 0].copy(), found[:, 1].copy()


def _scan(data: bytes, names: U64, values: U64) -> U64:
    if b"&" in data and b";" in data:
        data = html.unescape(data.decode("utf-8", "replace")).encode("utf-8", "replace")
    if LIGATURES in data:
        data = unicodedata.normalize("NFKC", data.decode("utf-8", "replace")).encode("utf-8", "replace")
    found: U64 = scan(np.frombuffer(data, np.uint8), table(), names, values)
    return found


@nb.njit(cache=True, inline="always")
def _digit(c: np.uint8) -> bool | np.bool:
    return 48 <= c <= 57


@nb.njit(cache=True, inline="always")
def _alpha(c: np.uint8) -> bool | np.bool:
    return 97 <= c <= 122 or 65 <= c <= 90


@nb.njit(cache=True, inline="always")
def _blank(c: np.uint8) -> bool | np.bool:
    return c == 32 or (9 <= c <= 13)


@nb.njit(cache=True)
def _marker(data: U8, i: int) -> int:
    """The length of a list marker at i (`1.`, `12)`, `(3)`, `b)`, `A.`, `Q:`), 0 if there is none."""
    n = data.size
    j = i + 1 if data[i] == 40 else i
    k = j
    while k < n and k < j + 3 and _digit(data[k]):
        k += 1
    if k == j and k < n and _alpha(data[k]):
        k += 1
    if k == j or k >= n or not (data[k] == 41 or (j == i and (data[k] == 46 or (data[k] == 58 and _alpha(data[j]))))):
        return 0
    return k + 1 - i if k + 1 >= n or _blank(data[k + 1]) or data[k + 1] == 60 or data[k + 1] == 42 else 0


@nb.njit(cache=True)
def _tag(data: U8, i: int) -> int:
    """The length of an HTML tag or comment at i, 0 if there is none."""
    n = data.size
    if i + 2 >= n or not (_alpha(data[i + 1]) or data[i + 1] == 47 or data[i + 1] == 33):
        return 0
    for j in range(i + 2, min(n, i + TAG)):
        if data[j] == 62:
            return j + 1 - i
        if data[j] == 60:
            return 0
    return 0


@nb.njit(cache=True)
def _sign(data: U8, i: int) -> int:
    """The ASCII operator that the character at i is or looks like, 0 for none."""
    c = data[i]
    if c == 42 or c == 43 or c == 45 or c == 47 or 60 <= c <= 62 or c == 94:
        return int(c)
    d = data[i + 1] if i + 1 < data.size else np.uint8(0)
    e = data[i + 2] if i + 2 < data.size else np.uint8(0)
    if c == 0xC3 and (d == 0x97 or d == 0xB7):
        return 42 if d == 0x97 else 47
    if c == 0xE2 and ((d == 0x80 and e == 0x93) or (d == 0x88 and e == 0x92)):
        return 45
    return 0


@nb.njit(cache=True)
def _between_numbers(data: U8, i: int, before: np.uint8) -> bool:
    """Whether a sign whose next character is at i stands between numbers; before: the last character that is no blank."""
    if not (_digit(before) or before == 41):
        return False
    while i < data.size and (data[i] == 32 or data[i] == 92):
        i += 1
    return bool(i < data.size and (_digit(data[i]) or data[i] == 40))


@nb.njit(cache=True, inline="always")
def _word(h: np.uint64, number: bool | np.bool) -> np.uint64:
    return (mix(h) & ~np.uint64(1)) | np.uint64(number)


@nb.njit(cache=True)
def scan(data: U8, kinds: U32, names: U64, values: U64) -> U64:
    """The words of a text without entities. kinds: `folding.table`; names, values: words that are numbers, and these numbers."""
    n = data.size
    out = np.empty(n + 1, np.uint64)
    count = i = length = 0
    h = OFFSET
    number = False
    fresh = True  # at the start of a line or table cell, where a marker may stand
    before = np.uint8(0)
    while i <= n:
        c = data[i] if i < n else np.uint8(10)
        kind, size, code = SEPARATES, 1, np.uint64(0)
        if fresh and not length and i < n:
            if (c == 96 or c == 126) and i + 2 < n and data[i + 1] == c and data[i + 2] == c:
                while i < n and data[i] != 10:
                    i += 1
                continue
            skip = _marker(data, i)
            if skip:
                i += skip
                before = np.uint8(0)
                fresh = False
                continue
        if c < 128:
            code = np.uint64(kinds[c])
            if code:
                kind = LETTER
            elif number and i + 1 < n and _digit(data[i - 1]) and _digit(data[i + 1]):
                if c == 46:
                    kind, code = LETTER, np.uint64(c)
                elif c == 44 and i + 3 < n and _digit(data[i + 2]) and _digit(data[i + 3]) and (i + 4 >= n or not _digit(data[i + 4])):
                    kind = NOTHING
        else:
            code, following_at = following(data, i, n, kinds)
            size = following_at - i
            if code & np.uint64(ALONE):
                kind = SEPARATES if c == 0xF0 and i + 1 < n and data[i + 1] == 0x9F else STANDS_ALONE
            elif code & np.uint64(SKIP):
                kind = NOTHING
            elif code:
                kind = LETTER
        if kind == LETTER:
            if not length:
                number = bool(np.uint64(48) <= code <= np.uint64(57))
            h = (h ^ code) * PRIME
            length += 1
            fresh = False
            before = c
            i += size
            continue
        if kind != NOTHING and length:
            word = _word(h, number)
            if 3 <= length <= 6:
                for k in range(names.size):
                    if names[k] == word:
                        word = values[k]
                        break
            out[count] = word
            count += 1
            h = OFFSET
            length = 0
            number = False
        if kind == STANDS_ALONE:
            out[count] = _word(code, False)
            count += 1
            fresh = False
            before = c
        elif kind == SEPARATES and i < n:
            skip = _tag(data, i) if c == 60 else 0
            if skip:
                i += skip
                fresh = True
                continue
            sign = _sign(data, i)
            if sign and _between_numbers(data, i + size, before):
                out[count] = _word(np.uint64(sign), False)
                count += 1
            if c == 10 or c == 124:
                fresh = True
            elif not (_blank(c) or c == 45 or c == 42 or c == 43 or c == 62 or c == 35 or c >= 128):
                fresh = False
            if not (_blank(c) or c == 92):
                before = c
        i += min(size, n - i) if i < n else 1
    return out[:count].copy()
