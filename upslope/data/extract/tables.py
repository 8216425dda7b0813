"""Tables of data → GFM tables; tables made for the layout are told apart.

A cell that spans columns or rows stands once, at its top left, and the fields it covers stay empty, so that every column keeps its place
and no value counts twice. GFM tables have one header row: the first row. Its caption stands before it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from upslope.data.extract.landmarks import LAYOUT, LAYOUT_WITH_HEADERS

if TYPE_CHECKING:
    from collections.abc import Callable

    from selectolax.lexbor import LexborNode

WIDTH, SPAN, ROWS = 1000, 1000, 65534
"""Limits of a table: columns, and what colspan and rowspan may say (HTML Standard, section 4.9.11)."""
FIELDS = 1_000_000  # beyond them rows are left as short as they are


def _span(cell: LexborNode, name: str, most: int) -> int:
    told = cell.attributes.get(name) or "1"
    return max(1, min(int(told), most)) if told.isascii() and told.isdigit() and len(told) < 10 else 1


def is_layout(table: LexborNode) -> bool:
    """Whether a table only arranges blocks: it says so, or holds what a cell of a GFM table cannot. Where it has header cells, lists and
    quotes in a cell do not make it one: they are put on the cell's line."""
    if (table.attributes.get("role") or "") in ("presentation", "none"):
        return True
    blocks = LAYOUT_WITH_HEADERS if table.css_first("th") is not None else LAYOUT
    return any(part.css_first(blocks) is not None for part in table.iter())


def grid(table: LexborNode, text: Callable[[LexborNode], str]) -> list[list[str]]:
    """The rows of a table that have any text, of one width. text: a cell as Markdown on one line, its pipes escaped."""
    rows: list[list[str]] = []
    covered: dict[int, int] = {}  # column → rows that a cell from above still covers
    for tr in table.css("tr"):
        cells: list[str] = []
        for cell in tr.iter():
            if cell.tag not in ("td", "th"):
                continue
            while covered.get(len(cells), 0) and len(cells) < WIDTH:
                covered[len(cells)] -= 1
                cells.append("")
            attributes = cell.attributes
            across = _span(cell, "colspan", SPAN) if "colspan" in attributes else 1
            down = _span(cell, "rowspan", ROWS) if "rowspan" in attributes else 1
            if len(cells) + across > WIDTH:
                across = max(0, WIDTH - len(cells))
            if down > 1:
                covered.update(dict.fromkeys(range(len(cells), len(cells) + across), down - 1))
            if across:
                cells += [text(cell), *[""] * (across - 1)]
        while covered.get(len(cells), 0) and len(cells) < WIDTH:
            covered[len(cells)] -= 1
            cells.append("")
        if any(cells):
            rows.append(cells)
    width = max((len(r) for r in rows), default=0)
    used = max((i + 1 for r in rows for i, c in enumerate(r) if c), default=0)
    width = min(width, used) if width > 50 else width
    if len(rows) * width > FIELDS:
        return rows
    return [(r + [""] * (width - len(r)))[:width] for r in rows]


def gfm(rows: list[list[str]]) -> str:
    """Rows of one width as a GFM table, the first as its header."""
    lines = ["| " + " | ".join(r) + " |" for r in rows]
    lines.insert(1, "|" + " --- |" * max(map(len, rows)))
    return "\n".join(lines)
