"""What was left out, by whom and why: beside what was kept, and as easy to find."""

from __future__ import annotations

import statistics
from typing import Any

from upslope.machine.record import RunRecord, StageRecord
from upslope.report.page import Section, para
from upslope.report.svg import table
from upslope.report.view import curve, facts, names
from upslope.report.words import esc, finite, number, percent

COUNTED = {
    "empty": "pages without any text",
    "left_out_too_long": "examples longer than the context",
    "refused_steps": "optimizer steps that were not finite",
    "undetermined": "attack episodes whose replies were lost; neither leak nor safe",
}


def excluded(record: RunRecord) -> Section | None:
    """One row for each thing that a stage left out, with the number and the reason that the stage recorded."""
    rows: list[tuple[str, str, str]] = []
    for stage in record.stages:
        rows += _of(stage)
    if not rows:
        return (
            Section("excluded", "Left out", para("No finished stage of this run records that it left anything out."))
            if any(s.state == "sealed" for s in record.stages)
            else None
        )
    note = para("Single pages are in the corpus ledger (<code>upslope why URL</code>); rules and their counts are under Data.")
    return Section(
        "excluded",
        "Left out",
        note
        + table("What stages left out", ["stage", "how many", "what and why"], [[esc(a), esc(b), esc(c)] for a, b, c in rows], numeric=[1]),
    )


def _of(stage: StageRecord) -> list[tuple[str, str, str]]:
    f, out = facts(stage), []

    def add(count: Any, what: str) -> None:
        if finite(count):
            out.append((stage.name, f"{finite(count):,.0f}", what))

    if isinstance(f.get("rejects"), dict):
        for why, count in f["rejects"].items():
            add(count, f"records: {why}")
    for key, what in COUNTED.items():
        add(f.get(key), what)
    if stage.kind == "curate":
        funnel = f.get("funnel")
        kept, docs = (finite(funnel.get(k)) for k in ("docs", "docs_in")) if isinstance(funnel, dict) else (None, None)
        if kept is not None and docs is not None:
            add(docs - kept, f"of {docs:,.0f} pages, by its rules")
    if stage.kind == "keep" and finite(f.get("traces")) is not None and finite(f.get("kept")) is not None:
        add(f["traces"] - f["kept"], f"of {number(f['traces'])} sampled answers: not right enough, or more than were wanted for a prompt")
    if stage.kind == "sample":
        add(f.get("invalid"), "answers whose score could not be computed")
    if isinstance(f.get("short"), dict):
        add(
            len(f["short"]),
            f"cells with fewer different problems than asked: {', '.join(map(str, list(f['short'])[:4]))}"
            + (" …" if len(f["short"]) > 4 else ""),
        )
    if isinstance(f.get("unused"), list) and f["unused"]:
        add(len(f["unused"]), f"sources that are there and were not read: {', '.join(map(str, f['unused']))}")
    if stage.kind == "rl":
        for name in names(stage):
            if name == "invalid" or name.startswith("left_out_"):
                share = statistics.fmean(curve(stage, name).y or [0.0])
                if share > 0:
                    why = "score could not be computed" if name == "invalid" else name.removeprefix("left_out_").replace("_", " ")
                    out.append((stage.name, percent(share), f"of sampled answers, mean over steps: {why}"))
    return out
