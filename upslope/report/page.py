"""What sections are made of: a heading with an id, HTML, and the charts whose numbers the page embeds."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

from upslope.report.svg import Chart, line_chart
from upslope.report.words import esc


class Section(NamedTuple):
    """A part of the report. html: safe HTML below the heading. charts: line charts inside it, in order."""

    id: str
    title: str
    html: str
    charts: tuple[Chart, ...] = ()


def gallery(charts: Iterable[Chart]) -> str:
    """Line charts side by side where there is room; "" without any."""
    drawn = [text for chart in charts if (text := line_chart(chart))]
    return f'<div class="charts">{"".join(drawn)}</div>' if drawn else ""


def para(*parts: str, note: bool = False) -> str:
    """A paragraph of safe HTML parts, joined by spaces; "" if all are empty."""
    text = " ".join(p for p in parts if p)
    return f'<p class="note">{text}</p>' if text and note else f"<p>{text}</p>" if text else ""


def bullets(items: Sequence[str]) -> str:
    """A list of safe HTML items; "" without any."""
    return "<ul>" + "".join(f"<li>{item}</li>" for item in items) + "</ul>" if items else ""


def warnings(title: str, items: Sequence[str], bad: bool = False) -> str:
    """A box that is never collapsed; items are text, escaped here. "" without any."""
    if not items:
        return ""
    return f'<div class="alarms{" bad" if bad else ""}" role="note"><b>{esc(title)}</b>{bullets([esc(i) for i in items])}</div>'


def tiles(facts: Sequence[tuple[str, str, str]]) -> str:
    """Key numbers: (label, value, small print), all text, escaped here."""
    cells = "".join(f"<div><dt>{esc(k)}</dt><dd>{esc(v)}{f'<small>{esc(s)}</small>' if s else ''}</dd></div>" for k, v, s in facts)
    return f'<dl class="facts">{cells}</dl>' if facts else ""
