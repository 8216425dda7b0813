"""What every rule means, in plain Python: the definition that the compiled loops of `prose` are tested against, bit for bit.

Each function takes a text (the prose of a document, except `repeats`: all of it) and gives the fields of the annotator of its name.

Every character is of one kind (`kind`): blank, symbol, closing bracket, quotation mark, sentence end, digit, letter, or a letter of an
unspaced script, which is one in which blanks do not separate words (Han, kana, Thai, Lao, Khmer, Burmese, Yi). Tokens stand between
blanks; a *word* is a token with a letter or a digit. Where a rule counts *units*, a letter of an unspaced script is a token of its own, so
that the rules say something about Chinese. Lines are what stands between `\\n`, without the blanks at both ends, and not empty.
"""

from __future__ import annotations

import re
from bisect import bisect_right
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Sequence

BLANK, SYMBOL, BRACKET, QUOTE, END, DIGIT, LETTER, UNSPACED = range(8)

STOP_WORDS = ("the", "be", "to", "of", "and", "that", "have", "with")
POLICY = ("terms of use", "privacy policy", "cookie policy", "uses cookies", "use of cookies", "use cookies")
ABBREVIATIONS = ("mr", "mrs", "ms", "dr", "prof", "st", "vs", "fig", "eq", "cf")
BULLETS = "•‣◦▪●○■"
CITATION = re.compile(r"\[(?:[0-9]{0,9}|edit|citation needed)\]$")

BLANKS = "".join(
    map(chr, (*range(0x09, 0x0E), *range(0x1C, 0x21), 0x85, 0xA0, 0x1680, *range(0x2000, 0x200B), 0x2028, 0x2029, 0x202F, 0x205F, 0x3000))
)
BRACKETS = ")]}）］｝】》〉〕"
QUOTES = "\"'”’“‘»›」』"
ENDS = ".!?。！？．｡؟۔।॥։።፧។៕၊။‼⁇⁈⁉‽⸮"
RANGES: tuple[tuple[int, int], ...] = (
    (0x00, SYMBOL), (0x30, DIGIT), (0x3A, SYMBOL), (0x41, LETTER), (0x5B, SYMBOL), (0x61, LETTER), (0x7B, SYMBOL),
    (0xAA, LETTER), (0xAB, SYMBOL), (0xB5, LETTER), (0xB6, SYMBOL), (0xBA, LETTER), (0xBB, SYMBOL),
    (0xC0, LETTER), (0xD7, SYMBOL), (0xD8, LETTER), (0xF7, SYMBOL), (0xF8, LETTER),
    (0x2C2, SYMBOL), (0x2C6, LETTER), (0x2D2, SYMBOL), (0x2E0, LETTER), (0x37E, SYMBOL), (0x37F, LETTER), (0x387, SYMBOL), (0x388, LETTER),
    (0x55A, SYMBOL), (0x560, LETTER), (0x589, SYMBOL), (0x591, LETTER), (0x5BE, SYMBOL), (0x5BF, LETTER),
    (0x5F3, SYMBOL), (0x610, LETTER), (0x61B, SYMBOL), (0x620, LETTER),
    (0x660, DIGIT), (0x66A, SYMBOL), (0x66E, LETTER), (0x6D4, SYMBOL), (0x6D5, LETTER), (0x6F0, DIGIT), (0x6FA, LETTER),
    (0x700, SYMBOL), (0x710, LETTER), (0x964, SYMBOL), (0x966, DIGIT), (0x970, SYMBOL), (0x971, LETTER), (0x9E6, DIGIT), (0x9F0, LETTER),
    (0xE01, UNSPACED), (0xE3F, SYMBOL), (0xE40, UNSPACED), (0xE4F, SYMBOL), (0xE50, DIGIT), (0xE5A, SYMBOL), (0xE81, UNSPACED),
    (0xED0, DIGIT), (0xEDA, UNSPACED), (0xF00, LETTER),
    (0x1000, UNSPACED), (0x1040, DIGIT), (0x104A, SYMBOL), (0x1050, UNSPACED), (0x10A0, LETTER), (0x10FB, SYMBOL), (0x10FC, LETTER),
    (0x1360, SYMBOL), (0x1369, LETTER), (0x1780, UNSPACED), (0x17D4, SYMBOL), (0x17E0, DIGIT), (0x17EA, SYMBOL), (0x1810, LETTER),
    (0x2000, SYMBOL), (0x2071, LETTER), (0x2072, SYMBOL), (0x207F, LETTER), (0x2080, SYMBOL), (0x2090, LETTER), (0x20A0, SYMBOL),
    (0x2100, LETTER), (0x2190, SYMBOL), (0x2C00, LETTER), (0x2E00, SYMBOL), (0x2E80, UNSPACED), (0x2FF0, SYMBOL), (0x3005, UNSPACED),
    (0x3008, SYMBOL), (0x3021, UNSPACED), (0x3030, SYMBOL), (0x3031, UNSPACED), (0x303D, SYMBOL), (0x3041, UNSPACED), (0x30FB, SYMBOL),
    (0x30FC, UNSPACED), (0x3130, LETTER), (0x3190, UNSPACED), (0x3200, SYMBOL), (0x3400, UNSPACED), (0x4DC0, SYMBOL), (0x4E00, UNSPACED),
    (0xA4D0, LETTER), (0xE000, SYMBOL), (0xF900, UNSPACED), (0xFB00, LETTER), (0xFD3E, SYMBOL), (0xFD40, LETTER), (0xFE00, SYMBOL),
    (0xFE70, LETTER), (0xFEFF, SYMBOL), (0xFF10, DIGIT), (0xFF1A, SYMBOL), (0xFF21, LETTER), (0xFF3B, SYMBOL), (0xFF41, LETTER),
    (0xFF5B, SYMBOL), (0xFF66, UNSPACED), (0xFFA0, LETTER), (0xFFE0, SYMBOL),
    (0x10000, LETTER), (0x1F000, SYMBOL), (0x20000, UNSPACED), (0x40000, SYMBOL),
)  # fmt: skip
"""(first code point, kind) of runs of characters: fixed here, so that results do not change with the interpreter's Unicode version."""

_STARTS = [start for start, _ in RANGES]


def kind(c: str) -> int:
    """The kind of a character."""
    for kinds, characters in ((BLANK, BLANKS), (BRACKET, BRACKETS), (QUOTE, QUOTES), (END, ENDS)):
        if c in characters:
            return kinds
    return RANGES[bisect_right(_STARTS, ord(c)) - 1][1]


def _has(token: str, least: int) -> bool:
    return any(kind(c) >= least for c in token)


def tokens(text: str) -> list[str]:
    """What stands between blanks."""
    return text.split()


def units(text: str) -> list[str]:
    """Tokens, with each letter of an unspaced script as one of its own."""
    return _runs(text, lambda c, before: kind(c) != UNSPACED and kind(before) != UNSPACED)


def pieces(text: str) -> list[str]:
    """Runs of letters and digits, letters of unspaced scripts one by one, and runs of one and the same symbol."""

    def joins(c: str, before: str) -> bool:
        if kind(c) == UNSPACED or kind(before) == UNSPACED:
            return False
        word = kind(c) >= DIGIT
        return word if kind(before) >= DIGIT else not word and c == before

    return _runs(text, joins)


def _runs(text: str, joins: Callable[[str, str], bool]) -> list[str]:
    out: list[str] = []
    before = " "
    for c in text:
        if kind(c) != BLANK:
            if kind(before) != BLANK and joins(c, before):
                out[-1] += c
            else:
                out.append(c)
        before = c
    return out


def lines(text: str) -> list[str]:
    """Lines without the blanks at both ends, those that are not empty."""
    return [line for line in (part.strip() for part in text.split("\n")) if line]


def share(part: float, whole: float) -> float | None:
    """part / whole, None where there is no whole."""
    return part / whole if whole else None


def gopher(text: str, stop_words: Collection[str] = STOP_WORDS, unspaced_limit: float = 0.3) -> dict[str, float | None]:
    """Rae et al. 2021, appendix A.1.1."""
    found = tokens(text)
    words = [t for t in found if _has(t, DIGIT)]
    rows = lines(text)
    plain = [row.lstrip("#") for row in rows]  # a heading's marks are Markdown, not symbols
    hashes = sum(row.count("#") for row in plain)
    ellipses = sum(row.count("...") + row.count("…") for row in plain)
    signs = [c for c in text if kind(c) >= DIGIT]
    unspaced = share(sum(kind(c) == UNSPACED for c in signs), len(signs))
    known = unspaced is None or unspaced <= unspaced_limit
    by_blanks: dict[str, float | None] = {
        "words": len(words),
        "mean_word_length": share(sum(map(len, words)), len(words)),
        "symbol_ratio": share(max(hashes, ellipses), len(found)),
        "alpha_words": share(sum(_has(t, LETTER) for t in found), len(found)),
        "stop_words": len({_core(t) for t in found} & set(stop_words)),
    }
    return {
        **{name: value if known else None for name, value in by_blanks.items()},
        "bullet_lines": share(sum(_bullet(row) for row in rows), len(rows)),
        "ellipsis_lines": share(sum(row.endswith(("...", "…")) for row in rows), len(rows)),
        "units": sum(_has(u, DIGIT) for u in units(text)),
        "characters": sum(kind(c) != BLANK for c in text),
        "unspaced": unspaced,
    }


def _core(token: str) -> str:
    """A token without what is not a letter at both ends, in lower case (A to Z only)."""
    letters = [i for i, c in enumerate(token) if kind(c) >= LETTER]
    return _lower(token[letters[0] : letters[-1] + 1]) if letters else ""


def _lower(text: str) -> str:
    return "".join(c.lower() if c.isascii() else c for c in text)


def _bullet(line: str) -> bool:
    return line[0] in BULLETS or (line[0] in "-*+" and (len(line) == 1 or kind(line[1]) == BLANK))


def repetition(text: str) -> dict[str, float | None]:
    """Rae et al. 2021, table A1. Bytes of a top n-gram: of all its occurrences, with one for each gap; ties go to the one with more."""
    found = units(text)
    names = [f"{block}{ending}" for block in ("line_dup", "para_dup") for ending in ("", "_bytes")]
    names += [f"top_{n}" for n in (2, 3, 4)] + [f"dup_{n}" for n in range(5, 11)]
    if not found:
        return dict.fromkeys(names)
    values: list[float] = []
    for parts in (text.split("\n"), re.split(r"\n{2,}", text)):
        blocks = [b for b in (p.strip() for p in parts) if b]
        again = list(_again(blocks))
        values += [len(again) / len(blocks), _size("".join(again)) / _size("".join(blocks))]
    gaps = _gaps(text, found)
    for n in (2, 3, 4):
        count: Counter[tuple[str, ...]] = Counter()
        covered: Counter[tuple[str, ...]] = Counter()
        for i in range(len(found) - n + 1):
            gram = tuple(found[i : i + n])
            count[gram] += 1
            covered[gram] += _size("".join(gram)) + sum(gaps[i + 1 : i + n])
        best = max(count.values(), default=0)
        top = max((covered[g] for g, c in count.items() if c == best), default=0) if best > 1 else 0
        values.append(top / _size(text))
    for n in range(5, 11):
        met: set[tuple[str, ...]] = set()
        i = total = 0
        while i < len(found) - n + 1:
            gram = tuple(found[i : i + n])
            total += _size("".join(gram)) if gram in met else 0
            i += n if gram in met else 1
            met.add(gram)
        values.append(total / _size(text))
    return dict(zip(names, values))


def _again(blocks: Sequence[str]) -> Iterator[str]:
    seen: set[str] = set()
    for block in blocks:
        if block in seen:
            yield block
        seen.add(block)


def _gaps(text: str, found: Sequence[str]) -> list[int]:
    """1 for each token with a blank before it."""
    at, out = 0, []
    for token in found:
        start = text.index(token, at)
        out.append(int(start > at))
        at = start + len(token)
    return out


def _size(text: str) -> int:
    return len(text.encode())


def terminal(line: str) -> bool:
    """Whether a line ends as C4 wants it: in a sentence end or a quotation mark, not in an ellipsis; citation marks do not count."""
    line = uncited(line)
    return bool(line) and kind(line[-1]) in (END, QUOTE) and not line.endswith("...")


def uncited(line: str) -> str:
    """A line without the citation marks (`[3]`, `[edit]`) at its end."""
    while (bare := CITATION.sub("", line)) != line:
        line = bare.rstrip()
    return line


def sentences(line: str) -> int:
    """Sentences of a line: parts with a letter or digit, cut after sentence ends.

    A cut needs a blank and no small letter after it (nothing at all in scripts with full-width stops), and is not made after initials
    and a few abbreviations.
    """
    cuts = [0]
    ends = re.compile(f"[{re.escape(ENDS)}]+")
    at = 0
    while found := ends.search(line, at):
        stop = found.end()
        while stop < len(line) and kind(line[stop]) in (QUOTE, BRACKET):
            stop += 1
        rest = line[stop:]
        after = rest.lstrip()
        word = re.search(r"[A-Za-z]*$", line[: found.start()])
        short = word is not None and (len(word[0]) == 1 or word[0].lower() in ABBREVIATIONS)
        if not rest or not found[0].isascii() or (after != rest and not "a" <= after[:1] <= "z" and not (found[0] == "." and short)):
            cuts.append(stop)
        at = found.end()
    return sum(_has(line[a:b], DIGIT) for a, b in zip(cuts, [*cuts[1:], len(line)]))


def c4(text: str, terminal_only: bool = True, least_words: int = 3, longest: int = 1000) -> dict[str, float | bool | None]:
    """Raffel et al. 2020, section 2.2, as line counts."""
    rows = lines(text)
    kept = []
    ending = short = javascript = policy = longest_word = 0
    for row in rows:
        words, low = units(row), _lower(row)
        width = max(map(len, words))
        bad_script, bad_policy = "javascript" in low, any(p in low for p in POLICY)
        ending += terminal(row)
        short += len(words) < least_words
        javascript += bad_script
        policy += bad_policy
        longest_word = max(longest_word, width)
        if (terminal(row) or not terminal_only) and len(words) >= least_words and width <= longest and not bad_script and not bad_policy:
            kept.append(row)
    return {
        "lines": len(rows),
        "kept_lines": share(len(kept), len(rows)),
        "kept_bytes": share(_size("".join(kept)), _size("".join(rows))),
        "sentences": sum(map(sentences, kept)),
        "terminal": share(ending, len(rows)),
        "short_lines": share(short, len(rows)),
        "javascript": javascript,
        "policy": policy,
        "longest_word": longest_word,
        "lorem_ipsum": any("lorem ipsum" in _lower(row) for row in rows),
        "brace": "{" in text,
    }


def fineweb(text: str, short: int = 30) -> dict[str, float | None]:
    """Penedo et al. 2024, section 3.6."""
    rows = lines(text)
    return {
        "line_punct": share(sum(kind(row[-1]) == END for row in rows), len(rows)),
        "short_lines": share(sum(len(row) <= short for row in rows), len(rows)),
        "dup_line_bytes": share(_size("".join(_again(rows))), _size("".join(rows))),
        "newline_ratio": share(max(len(rows) - 1, 0), len(units(text))),
    }


def repeats(text: str, longest: int = 13, least: int = 32) -> dict[str, float | None]:
    """OLMo 2: the most repeats in a row of any n-gram of 1 to `longest` pieces; its length; the share of bytes in runs of `least`."""
    found = pieces(text)
    most, period = (1, 1) if found else (0, 0)
    covered: set[int] = set()
    for p in range(1, longest + 1):
        i = 0
        while i < len(found):
            j = i
            while j + p < len(found) and found[j] == found[j + p]:
                j += 1
            times = (j - i) // p + 1
            if times > most:
                most, period = times, p
            if times >= least:
                covered.update(range(i, j + p))
            i = j + 1
    size = sum(map(_size, found))
    return {"repeats": most, "period": period, "share": share(sum(_size(found[i]) for i in covered), size)}
