"""What mid-training gave: needles by length and depth, nats a token by position, and whether a base model is ready for RL."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from upslope.machine.record import RunRecord, StageRecord
from upslope.report.page import Section, gallery, para
from upslope.report.svg import Chart, Series, dot, heat, table
from upslope.report.view import dig, facts, of_kind
from upslope.report.words import esc, finite, interval, number, percent

BOUNDED = ("correct", "mixed", "none", "every", "formatted", "truncated", "repetition", "collapsed")
WORDS = {
    "correct": "right (pass@1)",
    "mixed": "groups with right and wrong answers",
    "none": "tasks never solved",
    "every": "tasks always solved",
    "formatted": "answers in the expected form",
    "truncated": "answers cut off",
    "repetition": "n-grams that repeat",
    "collapsed": "groups that say one thing",
}


def long_context(record: RunRecord) -> Section | None:
    """Needles and nats by position, of every model that was asked."""
    stages = [s for s in of_kind(record, "long_context") if facts(s)]
    if not stages:
        return None
    body = "".join(_grid(s) for s in stages) + _found(stages)
    series = [s for i, stage in enumerate(stages) if (s := _curve(stage, 1 + i % 6)) is not None]
    charts = (Chart("nll-by-position", "nats a token by position", series, x_label="log2 of tokens before it", y_label="nats"),)
    drawn = tuple(c for c in charts if c.series)
    note = para("A model that uses its context gets cheaper with position; a rotation that is broken past its length jumps.", note=True)
    return Section("long-context", "Long context", body + gallery(drawn) + _beyond(stages) + note, drawn)


def _cells(stage: StageRecord, *path: str) -> list[Mapping[str, Any]]:
    found = dig(facts(stage), *path)
    return [c for c in found if isinstance(c, Mapping)] if isinstance(found, Sequence) and not isinstance(found, str) else []


def _grid(stage: StageRecord) -> str:
    cells = {}
    for c in _cells(stage, "needle", "cells"):
        length, depth, found = finite(c.get("length")), finite(c.get("depth")), finite(c.get("found"))
        if length is not None and depth is not None and found is not None:
            cells[f"{length:,.0f}", f"{depth:.0%}"] = (found, f"{found:.0%} of {c.get('n')}")
    if not cells:
        return ""
    rows, columns = list(dict.fromkeys(r for r, _ in cells)), sorted({c for _, c in cells}, key=lambda c: float(c.rstrip("%")))
    return heat(f"{stage.name}: needles found, by tokens of the text and depth of the needle", rows, columns, cells, "tokens \\ depth")


def _found(stages: Sequence[StageRecord]) -> str:
    rows = []
    for stage in stages:
        for c in _cells(stage, "needle", "lengths"):
            value, low, high = (finite(c.get(k)) for k in ("found", "low", "high"))
            if value is not None:
                shown = [percent(value), interval(low, high) or "—", str(c.get("n")), percent(c.get("guessed")), number(c.get("lift"))]
                where = [esc(stage.name), esc(f"{c.get('length'):,}")]
                rows.append([*where, dot(value, low, high), *map(esc, shown)])
    return table(
        "Needles found, with 95 % interval; without: right when the text holds no needle; lift: nats a value token that the needle saves",
        ["check", "tokens", "", "found", "interval", "n", "without", "lift"],
        rows,
        wide=[2],
        numeric=[1, 3, 4, 5, 6, 7],
    )


def _curve(stage: StageRecord, tone: int) -> Series | None:
    points = []
    for b in _cells(stage, "position_nll", "buckets"):
        first, last, nll, low, high = (finite(b.get(k)) for k in ("from", "to", "nll", "low", "high"))
        if first and last and nll is not None:
            points.append((math.log2(first * last) / 2, nll, nll if low is None else low, nll if high is None else high))
    if not points:
        return None
    x, y, low_band, high_band = zip(*points)
    return Series(stage.name, x, y, low_band, high_band, tone=tone, dots=True)


def _beyond(stages: Sequence[StageRecord]) -> str:
    rows = []
    for stage in stages:
        e = dig(facts(stage), "position_nll", "beyond")
        value = finite(dig(e, "value"))
        if isinstance(e, Mapping) and value is not None:
            limits = interval(finite(e.get("low")), finite(e.get("high")), 1.0, 3) or "—"
            rows.append([esc(stage.name), esc(f"{e.get('past'):,}"), esc(f"{value:+.3f}"), esc(limits), esc(str(e.get("n")))])
    return table(
        "Nats a token past the trained length, against just before it, document by document",
        ["check", "trained", "nats", "interval", "documents"],
        rows,
        numeric=[1, 2, 3, 4],
    )


def readiness(record: RunRecord) -> Section | None:
    """Verdicts of the probes and their numbers."""
    stages = [s for s in of_kind(record, "readiness") if facts(s)]
    if not stages:
        return None
    body = "".join(para(f"<b>{esc(s.name)}</b>: {esc((s.manifest or {}).get('headline', ''))}") for s in stages)
    said = "A verdict compares samples of the base model with thresholds of the recipe; it says nothing about what RL will reach."
    return Section("readiness", "Ready for RL?", body + "".join(_numbers(s) for s in stages) + para(said, note=True))


def _numbers(stage: StageRecord) -> str:
    checks = {str(c.get("name")): c for c in _cells(stage, "checks")}
    rows = []
    for name, e in (dig(facts(stage), "numbers") or {}).items():
        value, low, high = (finite(dig(e, k)) for k in ("value", "low", "high"))
        if value is None:
            continue
        share = name in BOUNDED or name.startswith("pass@")
        bound, check = None, checks.get(name)
        if check is not None:
            bound = finite(check.get("threshold"))
        wanted = "" if check is None or bound is None else f"{check.get('sign')} {bound:.0%}: {check.get('status')}"
        shown = percent(value) if share else number(value)
        limits = interval(low, high) if share else interval(low, high, 1.0)
        words = [WORDS.get(name, name), dot(value, low, high, bound) if share else "", shown, limits or "—", wanted]
        rows.append([esc(words[0]), words[1], *map(esc, words[2:])])
    group = facts(stage).get("group")
    return table(
        f"{stage.name}: shares of tasks or samples, groups of {group}; intervals over tasks; line: threshold",
        ["measure", "", "value", "interval", "wanted"],
        rows,
        wide=[1],
        numeric=[2, 3],
    )
