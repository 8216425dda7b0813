"""The stages as a graph beside a list: what each one found, whether it was built, resumed or reused, and how long it took."""

from __future__ import annotations

from upslope.machine.record import RunRecord
from upslope.report.page import Section, para
from upslope.report.svg import bar, rails
from upslope.report.view import attempts, ending, how, spent
from upslope.report.words import esc, seconds

SAID = {
    "built": "built",
    "resumed": "resumed",
    "reused": "reused",
    "failed": "failed",
    "partial": "unfinished",
    "running": "running",
    "absent": "not started",
}


def pipeline(record: RunRecord) -> Section | None:
    """One row per stage, in running order, with the graph on the left; edges that longer paths imply are not drawn."""
    if not record.stages:
        return None
    order = [s.name for s in record.stages]
    drawn, across, lanes = rails(order, record.edges)
    longest = max((spent(s) or 0.0 for s in record.stages), default=0.0)
    rows, counts = [], dict.fromkeys(SAID, 0)
    for stage, rail, x in zip(record.stages, drawn, across):
        state, time = how(stage, record), spent(stage)
        counts[state] += 1
        reads = record.edges.get(stage.name, ())
        said = (stage.manifest or {}).get("headline") or ending(stage) or ""
        times = f" ({attempts(stage)} attempts)" if attempts(stage) > 1 else ""
        hint = f"{stage.name}: {SAID[state]}{times}; reads {', '.join(reads) if reads else 'nothing'}"
        rows.append(
            f'<li title="{esc(hint)}"><span class="rails">{rail}<i class="node {state}" style="left:{100 * x:.1f}%"></i></span>'
            f'<span class="name">{esc(stage.name)}{f" <small>{esc(stage.kind)}</small>" if stage.kind != stage.name else ""}</span>'
            f'<span class="said">{esc(said)}</span><span class="state {state}">{SAID[state]}{esc(times)}</span>'
            f'<span class="time">{esc(seconds(time)) + bar(time, longest, "idle") if time is not None else ""}</span></li>'
        )
    total = sum(spent(s) or 0.0 for s in record.stages)
    tally = ", ".join(f'<span class="{k}">{n} {SAID[k]}</span>' for k, n in counts.items() if n)
    intro = para(
        f"{len(order)} stages: {tally}. {esc(seconds(total))} of work, added up over stages and attempts.",
        "Lines on the left show what reads what; a read that other lines already imply is not drawn (all reads are under Lineage).",
    )
    return Section("stages", "Stages", f'{intro}<ol class="flow" style="--rail:{max(1.4, lanes * 0.85):.2f}rem">{"".join(rows)}</ol>')
