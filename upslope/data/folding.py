"""Words of UTF-8 bytes, as links and overlap see them: folded, hashed, in compiled loops.

A *word* is a run of letters and digits; case, accents (combining marks U+0300–036F) and compatibility forms (full width, superscript) do
not count; a character of an unspaced script (kana, han, Thai, Lao, Khmer, Burmese) and one beyond the basic plane is a word of its own.
Punctuation, symbols and blanks of every script separate; soft hyphens, joiners and variation selectors are not seen.
"""

from __future__ import annotations

import unicodedata
from functools import lru_cache
from typing import TypeAlias

import numba as nb
import numpy as np
from numpy.typing import NDArray

U8: TypeAlias = NDArray[np.uint8]
U32: TypeAlias = NDArray[np.uint32]
U64: TypeAlias = NDArray[np.uint64]

ALONE = 1 << 16
SKIP = 1 << 17
OFFSET = np.uint64(0xCBF29CE484222325)
PRIME = np.uint64(0x100000001B3)
UNSPACED = (
    (0x0E00, 0x0EFF),
    (0x1000, 0x109F),
    (0x1780, 0x17FF),
    (0x3005, 0x3007),
    (0x3040, 0x30FF),
    (0x3100, 0x312F),
    (0x31F0, 0x31FF),
    (0x3400, 0x4DBF),
    (0x4E00, 0x9FFF),
    (0xA9E0, 0xA9FF),
    (0xAA60, 0xAA7F),
    (0xF900, 0xFAFF),
    (0xFF66, 0xFF9F),
)
UNSEEN = ((0x0300, 0x036F), (0x200B, 0x200F), (0x2060, 0x2064), (0xFE00, 0xFE0F))


@nb.njit(cache=True, inline="always")
def mix(x: np.uint64) -> np.uint64:
    """The finaliser of SplitMix64: every input bit reaches every output bit."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


@lru_cache(maxsize=1)
def table() -> U32:
    """What each character of the basic plane counts as, (65536,) uint32: 0 a separator, `SKIP` nothing, else a letter; `ALONE` added
    where it is a word of its own."""
    out = np.zeros(1 << 16, np.uint32)
    for point in range(1 << 16):
        category = unicodedata.category(chr(point))
        if category[0] in "LNM" or category in ("Cn", "Co"):
            out[point] = point if category in ("Cn", "Co", "Lo") and 0x2FF < point < 0xF900 else _folded(point)
    for first, last in UNSPACED:
        part = out[first : last + 1]
        part[part > 0] |= ALONE
    for first, last in (*UNSEEN, (0xAD, 0xAD), (0xFEFF, 0xFEFF)):
        out[first : last + 1] = SKIP
    return out


def _folded(point: int) -> int:
    """The lower-case base letter of a character, where it is one character of the basic plane; else the character itself."""
    base = [c for c in unicodedata.normalize("NFKD", chr(point).lower()) if not unicodedata.combining(c) or not 0x300 <= ord(c) <= 0x36F]
    return ord(base[0]) if len(base) == 1 and ord(base[0]) < 1 << 16 else point


@nb.njit(cache=True)
def decode(data: U8, i: int, end: int) -> tuple[np.uint64, int]:
    """(the code point of the character at byte i, where the next one starts). Bytes that end early read as zeros."""
    c = np.uint64(data[i])
    if c < np.uint64(0x80):
        return c, i + 1
    second = np.uint64(data[i + 1]) & np.uint64(63) if i + 1 < end else np.uint64(0)
    if c < np.uint64(0xE0):
        return ((c & np.uint64(31)) << np.uint64(6)) | second, i + 2
    third = np.uint64(data[i + 2]) & np.uint64(63) if i + 2 < end else np.uint64(0)
    point = ((c & np.uint64(15)) << np.uint64(12)) | (second << np.uint64(6)) | third
    if c < np.uint64(0xF0):
        return point, i + 3
    fourth = np.uint64(data[i + 3]) & np.uint64(63) if i + 3 < end else np.uint64(0)
    return ((point & np.uint64(0x7FFF)) << np.uint64(6)) | fourth, i + 4


@nb.njit(cache=True)
def counts_as(point: np.uint64, kinds: U32) -> np.uint64:
    """What a character counts as, as in `table`; one beyond the basic plane is a word of its own."""
    if point < np.uint64(0x10000):
        return np.uint64(kinds[point])
    return np.uint64(ALONE) | (point << np.uint64(18))


@nb.njit(cache=True)
def following(data: U8, i: int, end: int, kinds: U32) -> tuple[np.uint64, int]:
    """(what the character at byte i counts as, where the next one starts)."""
    point, i = decode(data, i, end)
    return counts_as(point, kinds), i


@nb.njit(cache=True)
def words_into(data: U8, i: int, end: int, kinds: U32, out: U64, chars: NDArray[np.int32]) -> int:
    """Writes the hashes of the words of data[i:end] to `out`, and their lengths in characters to `chars` unless that is empty; gives
    their number. `out` must have room for (end − i) of them."""
    count = 0
    size = 0
    h = OFFSET
    while i < end:
        byte = data[i]
        c = np.uint64(0)
        if byte < 128:  # most bytes: no call, no decoding
            i += 1
            letter = kinds[byte]
            if letter:
                h = (h ^ np.uint64(letter)) * PRIME
                size += 1
                continue
        else:
            c, i = following(data, i, end, kinds)
            if c and not c & np.uint64(ALONE):
                if not c & np.uint64(SKIP):
                    h = (h ^ c) * PRIME
                    size += 1
                continue
        if size:
            out[count] = mix(h)
            if chars.size:
                chars[count] = size
            count += 1
            h = OFFSET
            size = 0
        if c:
            out[count] = mix(c)
            if chars.size:
                chars[count] = 1
            count += 1
    if size:
        out[count] = mix(h)
        if chars.size:
            chars[count] = size
        count += 1
    return count


def words(data: U8) -> U64:
    """Hashes of the words of a UTF-8 text, in order, (n,) uint64."""
    out = np.empty(data.size, np.uint64)
    return out[: words_into(data, 0, data.size, table(), out, np.empty(0, np.int32))].copy()
