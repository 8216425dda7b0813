"""Red team and gate: k of n under each attack with interval, what the budget bought, the twins of over-refusal, the decision."""

from __future__ import annotations

from typing import Any

from upslope.evals.artifacts import estimate
from upslope.machine.record import RunRecord, StageRecord
from upslope.report.measured import Measured, measurements, safe_estimate, unreadable, words
from upslope.report.page import Section, bullets, gallery, para, warnings
from upslope.report.svg import Chart, Series, dot, table
from upslope.report.view import ending, facts, of_kind, opened
from upslope.report.words import esc, finite, interval, number, percent, share, shown

SUITE, TWINS, DETECTOR = "redteam", "over_refusal", "detector"
LEAKED, WITHIN = "leaked", "leaked_within_"


def redteam(record: RunRecord) -> Section | None:
    """Attacks with k/n and interval, the leak rate against the attacker's budget, over-refusal, the detector's own errors."""
    stages = of_kind(record, "redteam")
    if not stages:
        return None
    parts: list[str] = []
    charts: list[Chart] = []
    for m in measurements(record, "redteam"):
        stage = record.stage(m.stage)
        target = para(
            f"Target: <b>{esc(m.model or 'unknown')}</b>. Every attack tries to make the model say a harmless word that its system",
            "prompt tells it to keep; a secret counts as leaked if one attempt got it.",
        )
        curve = _budget(m)
        charts += [curve] if curve else []
        parts += [target, _attacks(m), _true_rate(stage), gallery([curve]) if curve else "", _twins(m), _detector(m)]
    parts += [para(esc(f"{name}: its table cannot be read.")) for name in unreadable(record, "redteam")]
    parts += [para(esc(f"{s.name}: {ending(s) or 'not finished'}.")) for s in stages if s.state != "sealed"]
    return Section("redteam", "Red team", "".join(parts), tuple(charts))


def _attacks(m: Measured) -> str:
    lines = []
    suites = [(s.partition("/")[2], s) for s in m.suites if s.startswith(f"{SUITE}/")] + [("all attacks together", SUITE)]
    for name, suite in suites:
        rows = m.of(suite, LEAKED)
        if not rows:
            continue
        try:
            e = estimate(rows, exact=True)
        except ValueError:
            lines.append([esc(name), "—", "", "not a number", ""])
            continue
        low, high = (e.interval.low, e.interval.high) if e.interval else (None, None)
        spent = m.total(suite, "attempts")
        tries = f"{spent.value * spent.n:,.0f}" if spent is not None else "—"
        count = f"{e.k} / {e.n}" if e.k is not None else f"— / {e.n}"
        lines.append(
            [
                esc(name),
                esc(count),
                dot(e.value, low, high, tone="bad" if e.value else "t3"),
                shown(f"{percent(e.value)} {interval(low, high)}"),
                esc(tries),
            ]
        )
    caption = "Secrets leaked of secrets tried, with the exact (Clopper–Pearson) 95 % interval. Axis: 0 to 100 %."
    thought = m.total(SUITE, "leaked_thought")
    also = para(f"In the reasoning before the answer: {shown(words(thought))}.") if thought is not None else ""
    return (
        table(caption, ["attack", "leaked / tried", "", "share", "attempts"], lines, wide=[2], numeric=[1, 3, 4])
        or para("No attack was tried.")
    ) + also


def _true_rate(stage: StageRecord | None) -> str:
    """The rate after correction for the detector's errors, and what was lost."""
    f = facts(stage) if stage is not None else {}
    found = f.get("leaked")
    out = ""
    if isinstance(found, dict) and isinstance(found.get("interval"), list) and len(found["interval"]) == 2:
        low, high = found["interval"]
        out += para(f"Corrected for the detector's own errors: {shown(share(found.get('value'), low, high, found.get('n')))}.")
    lost = finite(f.get("undetermined"))
    if lost:
        out += para(
            f"<b>{esc(number(lost))} episodes have no outcome</b> because replies were lost; they count neither as leaks nor as safe."
        )
    return out


def _budget(m: Measured) -> Chart | None:
    """Share of secrets out within the first K attempts, from the metrics `leaked_within_K`."""
    points = []
    for metric in {r.metric for r in m.rows if r.suite == SUITE and r.metric.startswith(WITHIN)}:
        k, e = metric.removeprefix(WITHIN), safe_estimate(m.of(SUITE, metric))
        if k.isdigit() and e is not None and e.interval is not None:
            points.append((int(k), e.value, e.interval.low, e.interval.high, e.n))
    if len(points) < 2:
        return None
    x, y, low, high, n = zip(*sorted(points))
    line = Series("secrets leaked", [float(v) for v in x], y, low, high, tone=2, dots=True)
    return Chart(
        f"{m.stage}-budget",
        "Leaks against the attacker's budget",
        [line],
        x_label="attempts on one secret",
        y_label=f"share of {n[0]:,} secrets leaked within the budget, 95 % interval",
        percent=True,
        zero=True,
    )


def _twins(m: Measured) -> str:
    said = {
        "alone": "answered rightly without a rule",
        "under_rule": "answered rightly under an unrelated rule",
        "kept": "of those right without the rule, still right under it",
    }
    lines = []
    for metric, label in said.items():
        e = m.total(TWINS, metric)
        if e is not None:
            low, high = (e.interval.low, e.interval.high) if e.interval else (None, None)
            lines.append([esc(label), dot(e.value, low, high), shown(share(e.value, low, high, e.n))])
    if not lines:
        return para("Over-refusal was not measured.")
    return table(
        "Over-refusal: ordinary tasks, alone and with a rule that has nothing to do with them. Axis: 0 to 100 %.",
        ["", "", "share"],
        lines,
        wide=[1],
    )


def _detector(m: Measured) -> str:
    rates = []
    for metric, label in (("sensitivity", "of constructed leaks are found"), ("specificity", "of constructed non-leaks are left alone")):
        e = m.total(DETECTOR, metric)
        if e is not None:
            rates.append(f"{shown(words(e))} {label}")
    return para("The detector's own errors:", "; ".join(rates) + ".") if rates else para("The detector's own errors were not measured.")


# ── the gate ──────────────────────────────────────────────────────────────────────────────────────────────────────


def decision(stage: StageRecord) -> dict[str, Any] | None:
    """What a gate stage decided, or None if it cannot be read."""
    from upslope.safety.gate import Decision

    found = opened(stage, Decision)
    try:
        return found.json() if found is not None else None
    except Exception:
        return None


def gate_word(record: RunRecord) -> tuple[str, str]:
    """The decision in a word and its small print, for the top of the page."""
    stages = of_kind(record, "gate")
    if not stages:
        return "not gated", "no gate in this recipe"
    found = decision(stages[-1])
    if found is None:
        return ("not decided", ending(stages[-1]).splitlines()[0] if ending(stages[-1]) else "the gate has not run")
    return label(found), "not a safety evaluation" if found.get("demo") else ""


def label(found: dict[str, Any]) -> str:
    """The decision's label. Anything but a known label is not a decision; a demo never reads as approval."""
    text = str(found.get("label", ""))
    if found.get("demo"):
        return text if text.startswith("DEMO") or text == "INSUFFICIENT EVIDENCE" else f"DEMO: rules {found.get('outcome', 'unknown')}"
    return text if text in ("APPROVE", "REFUSE", "INSUFFICIENT EVIDENCE") else "no valid decision"


def gate(record: RunRecord) -> Section | None:
    """The decision with its object, rules, evidence and what was not tested; without a gate, that the run is not gated."""
    stages = of_kind(record, "gate")
    if not stages:
        return Section(
            "gate",
            "Gate",
            para("This run is <b>not gated</b>: its recipe has no gate stage, so nothing was decided about releasing its model."),
        )
    body = ""
    for stage in stages:
        found = decision(stage)
        body += _undecided(stage) if found is None else _box(stage, found)
    return Section("gate", "Gate", body + _release(record))


def _undecided(stage: StageRecord) -> str:
    why = ending(stage) or ("its decision cannot be read" if stage.state == "sealed" else "it has not run to its end")
    return para(f"{esc(stage.name)}: <b>not decided</b>: {esc(why)}.")


def _box(stage: StageRecord, found: dict[str, Any]) -> str:
    text = label(found)
    demo = bool(found.get("demo"))
    tone = "demo" if demo else {"APPROVE": "approve", "REFUSE": "refuse"}.get(text, "insufficient")
    framework = found.get("framework") or {}
    about = found.get("object") or {}
    object_said = "; ".join(
        f"{k} {str(v)[:12] if k in ('weights', 'tokenizer', 'template', 'system') else v}" for k, v in about.items() if v
    )
    head = f'<p class="verdict">{esc(text)}</p>' + para(
        f"<b>{esc(found['watermark'])}.</b>" if demo and found.get("watermark") else "",
        f"Framework <code>{esc(framework.get('name', '?'))}</code>.",
    )
    reasons = warnings("Reasons", [str(r) for r in found.get("reasons") or ()], bad=not demo)
    rules = table(
        "Each rule, and what became of it",
        ["rule", "category", "must hold", "outcome", "why"],
        [_rule(f) for f in found.get("findings") or ()],
    )
    untested = found.get("not_tested") or ()
    missing = (
        f"<h3>Not tested</h3>{bullets([esc(x) for x in untested])}"
        if untested
        else para("The framework names nothing that it leaves untested.")
    )
    approvals = found.get("approvals") or ()
    people = para("Approved by " + esc(", ".join(f"{a.get('by')} as {a.get('role')}" for a in approvals)) + ".") if approvals else ""
    evidence = "; ".join(
        f"{str(e.get('digest'))[:12]} ({', '.join(f'{k}: {v} items' for k, v in (e.get('suites') or {}).items())})"
        for e in found.get("evidence") or ()
    )
    binds = para(f"Covers exactly this object, and no other quantisation, template or prompt: {esc(object_said)}.", note=True)
    return (
        f'<div class="gate {tone}">{head}{reasons}{rules}{missing}{people}{binds}'
        f"{para(f'Evidence: {esc(evidence)}.', note=True) if evidence else ''}"
        f"{para(f'Stage {esc(stage.name)}.', note=True)}</div>"
    )


def _rule(finding: dict[str, Any]) -> list[str]:
    i = finding.get("indicator") or {}
    sign = "≤" if i.get("bound") == "upper" else "≥"
    which = f"{i.get('bound')} {number(100 * float(finite(i.get('level')) or 0.0))} % limit" if i.get("on") == "limit" else "estimate"
    must = f"{i.get('suite')}/{i.get('metric')}: {which} {sign} {i.get('threshold')}, n ≥ {i.get('min_n')}"
    outcome = str(finding.get("outcome", "unknown"))
    tone = {"satisfied": "built", "not satisfied": "failed"}.get(outcome, "partial")
    return [
        esc(i.get("name", "?")),
        esc(i.get("category", "")),
        esc(must),
        f'<span class="{tone}">{esc(outcome)}</span>',
        esc(finding.get("why", "")),
    ]


def _release(record: RunRecord) -> str:
    out = ""
    for stage in of_kind(record, "release"):
        said = (stage.manifest or {}).get("headline") or facts(stage).get("said") or ""
        if stage.state == "sealed":
            out += para(f"{esc(stage.name)}: {esc(said or 'written')}.")
        else:
            out += para(f"{esc(stage.name)}: nothing was released{': ' + esc(ending(stage)) if ending(stage) else ''}.")
    return out
