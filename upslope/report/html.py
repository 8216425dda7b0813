"""The run report: one HTML file that needs no network, no script and nothing beside it; its numbers are embedded as JSON."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from importlib import resources
from pathlib import Path
from typing import Any

from upslope.machine.files import write_text
from upslope.machine.privacy import redact
from upslope.machine.record import RunRecord, StageRecord
from upslope.report import verdict
from upslope.report.page import Section, warnings
from upslope.report.sections import SECTIONS
from upslope.report.svg import plotted
from upslope.report.view import facts, how, spent
from upslope.report.words import esc

LIMIT = 1_000_000
"""Most bytes that a report may have: it is meant to be mailed."""

META = """<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="referrer" content="no-referrer">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; \
base-uri 'none'; form-action 'none'">
"""
"""The policy lets the page load nothing at all: what it shows is in it."""

NUMBERS_ONLY = ("metric", "progress", "state", "start")
"""Kinds of events that hold no text of a person or a machine; there are thousands of them."""


def render(record: RunRecord) -> str:
    """The report as one HTML document. Missing stages, artifacts and facts leave out a section or say so in its place.

    Places, host names and secrets in the record are replaced before anything is written. If the page would pass `LIMIT`
    bytes, the curves are left out of the embedded data (not of the charts) and the page says so.
    """
    record = clean(record)
    sections = [s for make in SECTIONS if (s := drawn(make, record)) is not None]
    page = _page(record, sections, curves=True)
    return page if len(page.encode()) <= LIMIT else _page(record, sections, curves=False)


def drawn(make: Callable[[RunRecord], Section | None], record: RunRecord) -> Section | None:
    """A section; where it cannot be drawn, the page says so in its place instead of being lost with it."""
    try:
        return make(record)
    except Exception as e:
        what = f"This section could not be drawn: {type(e).__name__}: {e}"
        return Section(make.__name__, make.__name__.capitalize(), warnings("Missing", [what], bad=True))


def write(record: RunRecord, path: Path) -> Path:
    """Writes the report atomically; returns the path."""
    write_text(path, render(record))
    return path


def clean(record: RunRecord) -> RunRecord:
    """The record without working folder, home, host name and secrets."""

    def stage(s: StageRecord) -> StageRecord:
        events = [e if e.get("kind") in NUMBERS_ONLY else redact(e) for e in s.events]
        return replace(s, manifest=redact(s.manifest), events=events)

    return replace(
        record,
        recipe=redact(record.recipe),
        stages=tuple(stage(s) for s in record.stages),
        events=redact(record.events),
        command=redact(record.command),
        overrides=redact(record.overrides),
    )


def embedded(record: RunRecord, sections: list[Section], curves: bool = True) -> dict[str, Any]:
    """What the page shows, as data: recipe, stages with facts, and the plotted curves."""
    return {
        "schema": 1,
        "run": record.name,
        "started": record.started,
        "command": record.command,
        "overrides": record.overrides,
        "recipe": record.recipe,
        "stages": [
            {
                "name": s.name,
                "kind": s.kind,
                "fp": s.fp,
                "state": s.state,
                "how": how(s, record),
                "reads": list(record.edges.get(s.name, ())),
                "seconds": spent(s),
                "headline": (s.manifest or {}).get("headline", ""),
                "facts": facts(s),
            }
            for s in record.stages
        ],
        "charts": {c.key: plotted(c) for s in sections for c in s.charts if any(len(line.x) for line in c.series)} if curves else {},
    }


def _json(value: Any) -> str:
    """JSON that cannot end the script element it stands in."""
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"), default=str)
    return (
        text.replace("&", "\\u0026")
        .replace("<", "\\u003c")
        .replace(">", "\\u003e")
        .replace("\u2028", "\\u2028")
        .replace("\u2029", "\\u2029")
        .encode("utf-8", "replace")
        .decode()
    )


def asset(name: str) -> str:
    """The text of a file of this package."""
    return resources.files("upslope.report").joinpath(name).read_text(encoding="utf-8")


def _page(record: RunRecord, sections: list[Section], curves: bool) -> str:
    title = esc(f"{record.name} · upslope report")
    menu = "".join(f'<a href="#{esc(s.id)}">{esc(s.title)}</a>' for s in sections)
    body = "".join(
        f'<section id="{esc(s.id)}" aria-labelledby="{esc(s.id)}-h"><h2 id="{esc(s.id)}-h">{esc(s.title)}</h2>{s.html}</section>\n'
        for s in sections
    )
    omitted = "" if curves else " The curves are drawn but not embedded as data, because the page would be larger than 1 MB."
    about = "All numbers on this page come from the run's store; those that are plotted are embedded below as JSON (element “plotted”)."
    head = f"<title>{title}</title>\n<style>\n{asset('page.css')}</style>"
    top = f'<header>{verdict.header(record)}<nav aria-label="Sections">{menu}</nav></header>'
    data = f'<script type="application/json" id="plotted">{_json(embedded(record, sections, curves))}</script>'
    data += f"\n<script>\n{asset('page.js')}</script>"
    return (
        f'<!doctype html>\n<html lang="en">\n<head>\n{META}{head}\n</head>\n<body>\n{top}\n<main>\n{body}</main>\n'
        f"<footer>{about}{omitted}</footer>\n{data}\n</body>\n</html>\n"
    )
