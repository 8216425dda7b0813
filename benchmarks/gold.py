"""Gold for code, TeX and tables: documentation whose sources lie beside its HTML.

    python benchmarks/gold.py [CACHE] [--cap 60] [--json]

The Debian packages python3.11-doc, python-sympy-doc and python-sklearn-doc ship reStructuredText (`_sources/*.rst.txt`) and git-doc ships
AsciiDoc (`*.txt`). They are fetched with `apt-get download` into CACHE (else the variable UPSLOPE_GOLD, else ~/.cache/upslope/gold) and
unpacked there, not installed. From the source come code lines, TeX and table cells; what the HTML page does not show in a `<pre>`, a
formula or a cell is no gold, so nothing is asked that a source only includes, generates or hides. `score` says how much of it an
extractor's text keeps.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import re
import subprocess
import sys
import textwrap
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from html.parser import HTMLParser
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "scripts"))

from build_crawl import BIG, Page, fetch, pages_of

from upslope.config import UsageError

PACKAGES = ("python3.11-doc", "python-sympy-doc", "python-sklearn-doc", "git-doc")
CODE = {"code-block", "sourcecode", "code", "doctest", "testcode", "prompt"}
DIRECTIVE = re.compile(r"^( *)\.\. +([A-Za-z][\w-]*)::(?: +(.*))?$")
SIMPLE = re.compile(r"^ *=+(?: +=+)+ *$")
GRID = re.compile(r"^ *\+(?:[-=]+\+)+ *$")


@dataclass
class Gold:
    """What a page must keep: code blocks as lines without common indentation, formulas, and tables as cells in reading order."""

    code: list[list[str]] = field(default_factory=list)
    tex: list[str] = field(default_factory=list)
    tables: list[list[str]] = field(default_factory=list)

    def __bool__(self) -> bool:
        return bool(self.code or self.tex or self.tables)


@dataclass(frozen=True)
class GoldPage:
    """A page, its HTML and its gold."""

    package: str
    path: str
    html: str
    gold: Gold


# --- sources ---------------------------------------------------------------------------------------------------------------------


def indent(line: str) -> int:
    """Leading blanks."""
    return len(line) - len(line.lstrip(" "))


def dedent(lines: Sequence[str]) -> list[str]:
    """Lines without common indentation, trailing blanks and empty lines at both ends."""
    return textwrap.dedent("\n".join(line.rstrip() for line in lines)).strip("\n").split("\n")


def below(lines: Sequence[str], at: int, base: int) -> int:
    """The end of the block that starts at `at` and is indented by more than `base`."""
    end = at
    while end < len(lines) and (not lines[end].strip() or indent(lines[end]) > base):
        end += 1
    return end


def from_rst(text: str) -> Gold:
    """Gold of a reStructuredText source."""
    lines, gold, prose = text.expandtabs(8).splitlines(), Gold(), list[str]()
    at = 0
    while at < len(lines):
        line = lines[at]
        if found := DIRECTIVE.match(line):
            end = below(lines, at + 1, len(found[1]))
            name, body = found[2], lines[at + 1 : end]
            options = [x.strip() for x in body[: next((i for i, x in enumerate(body) if not x.strip().startswith(":")), len(body))]]
            content = body[len(options) :]
            if ":hide:" in options:
                pass
            elif name in CODE:
                gold.code.append(dedent(content))
            elif name == "math" and ":nowrap:" not in options:
                gold.tex.append("\n".join([found[3] or "", *content]).strip())
            elif name == "list-table":
                gold.tables.append(list_table(content))
            elif name == "csv-table":
                header = [x.removeprefix(":header:") for x in options if x.startswith(":header:")]
                gold.tables.append([x for row in csv.reader([*header, *content], skipinitialspace=True) for x in row])
            elif name not in ("raw", "parsed-literal", "productionlist", "testsetup", "testoutput", "plot", "ipython"):
                end = at + 1  # what stands inside a note is text like any other
            at = end
        elif line.rstrip().endswith("::") and not line.lstrip().startswith(".."):
            prose.append(line)
            end = below(lines, at + 1, base_of(lines, at))
            if end > at + 1 and not lines[at + 1].strip():
                gold.code.append(dedent(lines[at + 1 : end]))
            at = max(end, at + 1)
        elif line.lstrip().startswith(">>> "):
            end = next((i for i in range(at, len(lines)) if not lines[i].strip()), len(lines))
            gold.code.append(dedent(lines[at:end]))
            at = end
        elif SIMPLE.match(line) or GRID.match(line):
            cells, at = (simple_table if SIMPLE.match(line) else grid_table)(lines, at)
            gold.tables.append(cells)
        else:
            prose.append(line)
            at += 1
    gold.tex += [x.strip() for x in re.findall(r":math:`((?:[^`\n]|\n(?!\s*\n))+)`", "\n".join(prose))]
    return gold


def base_of(lines: Sequence[str], at: int) -> int:
    """Where the text of the paragraph that ends at `at` begins: behind the bullet or number if it is the first line of a list item."""
    found = re.match(r" *(?:[-*+•]|(?:\d+|#|[a-z])[.)]) +", lines[at])
    first = at == 0 or not lines[at - 1].strip()
    return found.end() if found and first else indent(lines[at])


def simple_table(lines: Sequence[str], at: int) -> tuple[list[str], int]:
    """Cells of a simple table, none if it has spans, and the line behind it."""
    spans = [m.span() for m in re.finditer("=+", lines[at])]
    edges = [start for start, _ in spans] + [10_000]
    rows: list[list[str]] = []
    borders, end = 1, at + 1
    spanned = False
    while end < len(lines):
        line, end = lines[end], end + 1
        if SIMPLE.match(line):
            borders += 1
            if borders == 3 or end == len(lines) or not lines[end].strip():
                break
        elif re.match(r"^ *-+(?: +-+)* *$", line):
            spanned = True
        elif line.strip():
            cells = [line[a:b] for a, b in zip(edges, edges[1:])]
            spanned |= indent(line) < edges[0] or any(line[b - 1 : b].strip() for b in edges[1:-1])
            if cells[0].strip() or not rows:
                rows.append(cells)
            else:
                rows[-1] = [f"{a} {b}" for a, b in zip(rows[-1], cells)]
        elif not rows and borders == 1:
            break
    return ([] if spanned else [x.strip() for row in rows for x in row]), end


def grid_table(lines: Sequence[str], at: int) -> tuple[list[str], int]:
    """Cells of a grid table, none if it has spans, and the line behind it."""
    edges = [i for i, x in enumerate(lines[at]) if x == "+"]
    out, row, end, spanned = list[str](), [""] * (len(edges) - 1), at + 1, False
    while end < len(lines) and lines[end].lstrip()[:1] in ("+", "|"):
        line, end = lines[end].ljust(edges[-1] + 1), end + 1
        if GRID.match(line):
            out, row = [*out, *(x.strip() for x in row)], [""] * len(row)
            spanned |= [i for i, x in enumerate(line) if x == "+"] != edges
        else:
            spanned |= any(line[i] != "|" for i in edges)
            row = [f"{old} {line[a + 1 : b].strip()}" for old, a, b in zip(row, edges, edges[1:])]
    return ([] if spanned else out), end


def list_table(lines: Sequence[str]) -> list[str]:
    """Cells of a list-table, whose items are `* - cell` and `  - cell`."""
    cells: list[str] = []
    for line in lines:
        if found := re.match(r"^ *(?:\* +)?- +(.*)$", line):
            cells.append(found[1])
        elif cells and line.strip():
            cells[-1] += " " + line.strip()
    return cells


def from_asciidoc(text: str) -> Gold:
    """Gold of an AsciiDoc source: its listing and literal blocks."""
    # a run of dashes below text is the underline of a title
    blocks = re.findall(r"(?:^|^\+|^\[.*\]|^\..*|\A)\n(-{4,}|\.{4,})\n(.*?)\n\1$", text.expandtabs(8), re.M | re.S)
    return Gold(code=[dedent(body.split("\n")) for _, body in blocks])


# --- what the page shows ---------------------------------------------------------------------------------------------------------


def words(text: str) -> tuple[str, ...]:
    """Lower-cased runs of letters and digits, without the names of roles and the targets of links."""
    text = re.sub(r":[\w:+-]+:(?=`)|\s*<[^<>`]*>(?=`)", "", text)
    return tuple(re.findall(r"[^\W_]+", text.lower()))


def formula(tex: str) -> str:
    """TeX without blanks and without the environments and delimiters that Sphinx puts around it."""
    tex = re.sub(r"\\(?:begin|end)\{(?:split|align|aligned)\}|^\s*\\[(\[]|\\[)\]]\s*$", "", tex)
    return re.sub(r"\s+", "", tex)


class Shown(HTMLParser):
    """Lines of `<pre>`, formulas (class or alt text `math`) and cells of a page, read with the standard library's parser."""

    def __init__(self, html: str) -> None:
        super().__init__(convert_charrefs=True)
        self.pre: Counter[str] = Counter()
        self.formulas: set[str] = set()
        self.cells: set[tuple[str, ...]] = set()
        self.open: list[tuple[str, str, list[str]]] = []
        self.feed(html)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        math = "math" in (given.get("class") or "").split()
        if tag == "img" and math:
            self.formulas.add(formula(given.get("alt") or ""))
        elif tag in ("pre", "td", "th") or math:
            self.open.append((tag, "math" if math else tag, []))

    def handle_endtag(self, tag: str) -> None:
        at = next((i for i in range(len(self.open) - 1, -1, -1) if self.open[i][0] == tag), None)
        if at is None:
            return
        _, kind, parts = self.open.pop(at)
        text = "".join(parts)
        if kind == "pre":
            self.pre.update(line.strip() for line in text.expandtabs(8).split("\n"))
        elif kind == "math":
            self.formulas.add(formula(text))
        else:
            self.cells.add(words(text))

    def handle_data(self, data: str) -> None:
        for _, _, parts in self.open:
            parts.append(data)


def visible(gold: Gold, html: str) -> Gold:
    """The part of the gold that the page shows."""
    shown = Shown(html)
    left = shown.pre.copy()
    code: list[list[str]] = []
    for block in gold.code:
        code.append([])
        for line in filter(str.strip, block):
            if left[line.strip()]:
                left[line.strip()] -= 1
                code[-1].append(line.rstrip())
    tables = [[x for x in cells if words(x) and words(x) in shown.cells] for cells in gold.tables]
    tex = [x for x in gold.tex if formula(x) and formula(x) in shown.formulas]
    return Gold([x for x in code if x], tex, [x for x in tables if x])


# --- score -----------------------------------------------------------------------------------------------------------------------

FACES = ("code lines", "indentation", "TeX", "cells")


def fences(text: str) -> tuple[list[list[str]], str]:
    """The fenced blocks of a Markdown text, without common indentation, and the text outside them."""
    blocks, outside = list[list[str]](), list[str]()
    mark, lead, held = "", 0, list[str]()
    for line in text.split("\n"):
        line = re.sub(r"^(?:> ?)+", "", line) if not mark else line
        found = re.match(r"^( *)(?:[-*+] +|\d+[.)] +)?(`{3,}|~{3,})([^`]*)$", line)
        if not mark and found:
            mark, lead, held = found[2], len(line) - len(line[found.start(2) :]), []
        elif mark and found and found[2].startswith(mark) and not found[3].strip():
            blocks.append(dedent(held))
            mark = ""
        elif mark:
            held.append(line[min(lead, indent(line)) :])
        else:
            outside.append(line)
    return [*blocks, dedent(held)] if mark else blocks, "\n".join(outside)


def in_order(wanted: Sequence[tuple[str, ...]], found: Sequence[tuple[str, ...]]) -> int:
    """How many of `wanted` stand in `found` one behind the other; one that is missing does not move the place."""
    places: dict[tuple[str, ...], list[int]] = {}
    for i, x in enumerate(found):
        places.setdefault(x, []).append(i)
    at, hits = -1, 0
    for x in wanted:
        place = next((i for i in places.get(x, ()) if i > at), None)
        if place is not None:
            at, hits = place, hits + 1
    return hits


def runs_in_order(wanted: Sequence[tuple[str, ...]], found: Sequence[str]) -> int:
    """As `in_order`, for cells that are runs of words in a text without columns."""
    text, at, hits = f" {' '.join(found)} ", 0, 0
    for x in wanted:
        place = text.find(f" {' '.join(x)} ", at)
        if place >= 0:
            at, hits = place + len(" ".join(x)) + 1, hits + 1
    return hits


def cells_of(text: str) -> list[tuple[str, ...]]:
    """Words of every cell of the pipe tables in a text."""
    rows = (line for line in text.split("\n") if "|" in line)
    return [words(cell) for row in rows for cell in re.split(r"(?<!\\)\|", row) if words(cell)]


def score(text: str, gold: Gold, markdown: bool = True) -> dict[str, tuple[int, int]]:
    """(found, wanted) for each of FACES.

    With `markdown` code counts inside fences and cells inside pipe tables only; without, lines and cells may stand anywhere in the text,
    which is more lenient.
    """
    blocks, outside = fences(text) if markdown else ([text.split("\n")], text)
    lines = [line for block in blocks for line in block]
    wanted = [line for block in gold.code for line in block]
    pairs: list[tuple[Counter[str], Counter[str]]] = [
        (Counter(x.strip() for x in wanted), Counter(x.strip() for x in lines)),
        (Counter(wanted), Counter(x.rstrip() for x in lines)),
        (Counter(map(formula, gold.tex)), Counter(formulas_of(outside))),
    ]
    out = {name: ((a & b).total(), a.total()) for name, (a, b) in zip(FACES, pairs)}
    tables = [[words(x) for x in cells] for cells in gold.tables]
    if markdown:
        found = cells_of(outside)
        hits = [in_order(x, found) for x in tables]
    else:
        hits = [runs_in_order(x, words(outside)) for x in tables]
    return out | {"cells": (sum(hits), sum(map(len, tables)))}


def formulas_of(text: str) -> list[str]:
    """Formulas between `$$`, `$`, `\\(`, `\\[` and their ends."""
    display = re.findall(r"\$\$(.+?)\$\$|\\\[(.+?)\\\]", text, re.S)
    rest = re.sub(r"\$\$.+?\$\$|\\\[.+?\\\]", " ", text, flags=re.S)
    inline = re.findall(r"(?<!\\)\$([^$\n]+?)(?<!\\)\$|\\\((.+?)\\\)", rest, re.S)
    return [formula(a or b) for a, b in (*display, *inline)]


# --- packages --------------------------------------------------------------------------------------------------------------------


def cache_folder(given: str | None = None) -> Path:
    """The folder of packages: the argument, else UPSLOPE_GOLD, else ~/.cache/upslope/gold."""
    return Path(given or os.environ.get("UPSLOPE_GOLD") or Path.home() / ".cache" / "upslope" / "gold")


def source_of(page: Page) -> Gold | None:
    """The gold in the source beside a page; None where there is no source."""
    asciidoc = page.file.with_suffix(".txt")
    root = next((p for p in page.file.parents if (p / "_sources").is_dir()), None)
    rst = root / "_sources" / page.file.relative_to(root).with_suffix(".rst.txt") if root else None
    if rst is not None and rst.is_file():
        return from_rst(rst.read_text(encoding="utf-8"))
    return from_asciidoc(asciidoc.read_text(encoding="utf-8")) if asciidoc.is_file() else None


def gold_pages(cache: Path, cap: int = 60) -> Iterator[GoldPage]:
    """At most `cap` pages with gold of each package, in hash order of their paths.

    Errors: UsageError if a package cannot be fetched.
    """
    for package in (p for p in BIG if p.name in PACKAGES):
        try:
            source = fetch(package, cache, shipped=False)
        except FileNotFoundError as error:
            missing = f"{package.name}: there is no program {error.filename}, which fetches and reads Debian packages"
            raise UsageError(f"{missing}\nway out: run this on Debian or Ubuntu, or leave the documentation part out") from None
        folder = cache / source.deb.stem
        if not folder.is_dir():
            partial = folder.with_suffix(".part")
            subprocess.run(["dpkg-deb", "-x", str(source.deb), str(partial)], check=True)
            partial.rename(folder)
        left = cap
        for page in pages_of(source, folder, Counter()):
            if left == 0:
                break
            gold = source_of(page)
            if gold and (seen := visible(gold, html := page.body().decode(page.charset))):
                left -= 1
                yield GoldPage(package.name, page.path, html, seen)


def tally(pages: Sequence[GoldPage], extract: Callable[[str], str], markdown: bool) -> dict[str, tuple[int, int]]:
    """Summed (found, wanted) of an extractor over pages."""
    total = dict.fromkeys(FACES, (0, 0))
    for page in pages:
        for name, (found, wanted) in score(extract(page.html), page.gold, markdown).items():
            total[name] = (total[name][0] + found, total[name][1] + wanted)
    return total


def main(arguments: Sequence[str] | None = None) -> int:
    """What gold there is; exit code 2 if a package cannot be had."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("cache", nargs="?", help="folder of packages")
    parser.add_argument("--cap", type=int, default=60, help="pages per package")
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args(arguments)
    try:
        pages = list(gold_pages(cache_folder(given.cache), given.cap))
    except UsageError as error:
        print(error, file=sys.stderr)
        return 2
    rows = []
    for name in PACKAGES:
        own = [p.gold for p in pages if p.package == name]
        rows.append({"package": name, "pages": len(own), "code lines": sum(len(b) for g in own for b in g.code),
                     "TeX": sum(len(g.tex) for g in own), "cells": sum(len(t) for g in own for t in g.tables)})  # fmt: skip
    if given.json:
        print(json.dumps(rows, indent=1))
    else:
        for row in rows:
            print("  ".join(f"{key} {value}" for key, value in row.items()))
    return 0


if __name__ == "__main__":
    sys.exit(main())
