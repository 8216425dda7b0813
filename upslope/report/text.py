"""The run in lines for a terminal: what `upslope show` prints."""

from __future__ import annotations

import re

from upslope.machine.record import RunRecord, StageRecord
from upslope.report.html import clean
from upslope.report.sections.pipeline import SAID
from upslope.report.verdict import sentence, warned
from upslope.report.view import attempts, curve, ending, facts, how, names, spent
from upslope.report.words import clip, finite, number, seconds

_CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u202a-\u202e\u2066-\u2069]")


def summary(record: RunRecord, width: int = 120) -> str:
    """The verdict, one line per stage (state, seconds, headline), alarms, the command. Plain text, no control characters."""
    record = clean(record)
    name = max((len(s.name) for s in record.stages), default=0)
    lines = [f"{record.name}  ({record.started})" if record.started else record.name, *_wrapped(sentence(record), width), ""]
    for stage in record.stages:
        state, time = how(stage, record), spent(stage)
        said = (stage.manifest or {}).get("headline") or ending(stage) or ""
        tries = f" ×{attempts(stage)}" if attempts(stage) > 1 else ""
        head = f"{stage.name:<{name}}  {SAID[state] + tries:<12} {seconds(time) if time is not None else '':>12}  "
        lines.append((head + clip(" · ".join(" ".join(x.split()) for x in str(said).splitlines()), max(20, width - len(head)))).rstrip())
    total = sum(spent(s) or 0.0 for s in record.stages)
    lines.append(f"{'':<{name}}  {'total':<12} {seconds(total):>12}")
    alarms = warned(record)
    if alarms:
        lines += ["", "warnings", *(f"  {a}" for a in alarms)]
    if record.command:
        lines += ["", record.command]
    return _CONTROL.sub("\ufffd", "\n".join(lines)) + "\n"


def details(record: RunRecord, stage: StageRecord) -> str:
    """One stage: state, facts that are numbers or words, and the first and last value of each of its metrics."""
    record = clean(record)
    stage = record.stage(stage.name) or stage
    lines = [
        f"{stage.name}  {stage.kind}  {stage.fp[:12]}  {SAID[how(stage, record)]}",
        (stage.manifest or {}).get("headline") or ending(stage),
    ]
    lines += [f"  reads    {', '.join(record.edges.get(stage.name, ())) or 'nothing'}"]
    flat = {k: v for k, v in facts(stage).items() if isinstance(v, str) or finite(v) is not None}
    wide = max((len(k) for k in (*flat, *names(stage))), default=0)
    lines += [f"  {k:<{wide}}  {v if isinstance(v, str) else number(v)}" for k, v in flat.items()]
    for metric in names(stage):
        c = curve(stage, metric)
        if c.x:
            lines.append(f"  {metric:<{wide}}  {number(c.y[0])} → {number(c.y[-1])}  (steps {number(c.x[0])}–{number(c.x[-1])})")
        lines += [f"  {metric:<{wide}}  {value} at step {number(step)}" for step, value in c.broken[:3]]
    return _CONTROL.sub("\ufffd", "\n".join(x for x in lines if x)) + "\n"


def _wrapped(text: str, width: int) -> list[str]:
    lines, line = [], ""
    for word in text.split():
        if line and len(line) + 1 + len(word) > width:
            lines.append(line)
            line = word
        else:
            line = f"{line} {word}".strip()
    return [*lines, line] if line else lines
