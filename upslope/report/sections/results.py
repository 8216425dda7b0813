"""What the models can do: each suite for each measured model with interval and n, families against models, pair accuracies."""

from __future__ import annotations

from upslope.evals.artifacts import NATS
from upslope.machine.record import RunRecord
from upslope.report.measured import CORRECT, Measured, gain, measurements, unreadable, words
from upslope.report.page import Section, para
from upslope.report.svg import dot, heat, table
from upslope.report.verdict import controls
from upslope.report.view import checkpoint_before, facts, of_kind
from upslope.report.words import esc, finite, interval, listing, number, percent, share, shown


def evaluation(record: RunRecord) -> Section | None:
    """Tables of results from the first to the last model."""
    stages = of_kind(record, "evaluate")
    if not stages:
        return None
    found = measurements(record, "evaluate")
    bad = [para(esc(f"{name}: its table cannot be read.")) for name in unreadable(record, "evaluate")]
    waiting = [s.name for s in stages if s.state != "sealed"]
    bad += [para(f"Not finished: {esc(listing(waiting))}.")] if waiting else []
    if not found:
        return Section("results", "Results", "".join(bad) or para("Nothing was measured."))
    suites = list(dict.fromkeys(s for m in found for s in m.suites))
    body = _accuracies(found, [s for s in suites if any(m.of(s, CORRECT) for m in found)])
    body += _bits(found, [s for s in suites if any(m.of(s, NATS) for m in found)])
    body += _families(found) + _levels(found[-1]) + _changes(found, record) + _habits(found)
    return Section("results", "Results", body + "".join(bad))


def _name(m: Measured) -> str:
    return m.model or m.stage


def _accuracies(found: list[Measured], suites: list[str]) -> str:
    rows = []
    for suite in suites:
        for m in found:
            e = m.total(suite, CORRECT)
            if e is not None:
                low, high = (e.interval.low, e.interval.high) if e.interval is not None else (None, None)
                tone = "t1" if suite == m.free else "t2" if suite == m.forced else "t3"
                rows.append(
                    [
                        esc(_name(m)),
                        esc(suite),
                        dot(e.value, low, high, tone=tone),
                        esc(percent(e.value)),
                        esc(interval(low, high) or "—"),
                        esc(f"{e.n:,}"),
                    ]
                )
    return table(
        "Held-out problems answered correctly, with 95 % interval and number of items. Axis: 0 to 100 %.",
        ["model", "suite", "", "correct", "interval", "n"],
        rows,
        wide=[2],
        numeric=[3, 4, 5],
    )


def _bits(found: list[Measured], suites: list[str]) -> str:
    rows = []
    for suite in suites:
        for m in found:
            cells = m.cells(suite, NATS, 1)
            total = m.total(suite, NATS)
            for group, e in [("all sources", total), *(cells.items() if len(cells) > 1 else ())]:
                if e is not None:
                    low, high = (e.interval.low, e.interval.high) if e.interval is not None else (None, None)
                    rows.append(
                        [
                            esc(_name(m)),
                            esc(suite),
                            esc(group),
                            esc(number(e.value, 4)),
                            esc(interval(low, high, 1.0, 3) or "—"),
                            esc(f"{e.n:,}"),
                        ]
                    )
    return table(
        "Bits per byte of held-out text (less is better), documents resampled",
        ["model", "suite", "source", "bits per byte", "interval", "n"],
        rows,
        numeric=[3, 4, 5],
    )


def _main(found: list[Measured]) -> str:
    """The suite that families, changes and habits are shown for: accuracy as deployed, else the first with right and wrong."""
    return next((m.free for m in found if m.free), next((s for m in found for s in m.suites if m.of(s, CORRECT)), ""))


def _families(found: list[Measured]) -> str:
    suite = _main(found)
    cells, columns, rows = {}, [], []
    for m in found:
        by_family = m.cells(suite, CORRECT, 1) if suite else {}
        if not by_family:
            continue
        columns.append(_name(m))
        for family, e in by_family.items():
            rows.append(family)
            cells[family, _name(m)] = (e.value, f"{100 * e.value:.0f} % of {e.n}")
    rows = sorted(dict.fromkeys(rows))
    return (
        heat(f"Correct by family and model ({suite}); small cells have wide intervals", rows, list(dict.fromkeys(columns)), cells, "family")
        if rows
        else ""
    )


def _levels(last: Measured) -> str:
    suite = _main([last])
    found = last.cells(suite, CORRECT, 2) if suite else {}
    split = {tuple(group.split("/")): e for group, e in found.items() if group.count("/") == 1}
    if not split:
        return ""
    rows, columns = sorted({k[0] for k in split}), sorted({k[1] for k in split})
    cells = {(k[0], k[1]): (e.value, f"{e.k if e.k is not None else number(e.value * e.n)} / {e.n}") for k, e in split.items()}
    return heat(f"Correct by family and level for {_name(last)} ({suite}), correct / tried", rows, columns, cells, "family \\ level")


def _changes(found: list[Measured], record: RunRecord) -> str:
    suite = _main(found)
    rows = []
    seen = [m for m in found if m.of(suite, CORRECT)]
    control = {s.name for s in controls(record)}
    models = [m.model for m in seen]
    for b in seen:
        parent = checkpoint_before(record, b.model, models)
        a = next((m for m in seen if m.model == parent), None)
        g = gain(a, b) if a is not None else None
        if a is not None and g is not None and g.difference is not None:
            d, low, high = g.difference
            note = "random-reward control" if b.model in control else "" if low > 0 or high < 0 else "within noise"
            rows.append(
                [
                    f"{esc(_name(a))} → {esc(_name(b))}",
                    esc(f"{100 * d:+.1f}"),
                    esc(f"[{100 * low:+.1f}, {100 * high:+.1f}]"),
                    esc(f"{g.n:,}"),
                    esc(note),
                ]
            )
    return table(
        f"Change in points from the nearest measured model that a model was made from ({suite}), paired on the same items",
        ["from → to", "points", "interval", "n", ""],
        rows,
        numeric=[1, 2, 3],
    )


def _habits(found: list[Measured]) -> str:
    suite = _main(found)
    rows = []
    for m in found:
        tokens, ended = m.total(suite, "tokens"), m.total(suite, "ended")
        if tokens is not None or ended is not None:
            rows.append(
                [esc(_name(m)), shown(words(tokens)) if tokens is not None else "—", shown(words(ended)) if ended is not None else "—"]
            )
    return table(f"Length of answers in tokens, and answers that the model ended itself ({suite})", ["model", "tokens", "ended"], rows)


# ── pairs ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def pairs(record: RunRecord) -> Section | None:
    """Share of held-out pairs ordered rightly by reward models and preference-trained models, against chance."""
    rows = []
    stages = of_kind(record, "reward_model", "preference")
    if not stages:
        return None
    for stage in stages:
        f = facts(stage)
        prefers = f.get("heldout_prefers_chosen")
        found = {
            "held-out pairs ordered rightly": f.get("heldout_accuracy"),
            "would picking the longer answer do": f.get("heldout_longer_is_better"),
        }
        found |= (
            {f"gives the better answer the higher probability, {when}": prefers.get(when) for when in ("before", "after")}
            if isinstance(prefers, dict)
            else {}
        )
        for label, value in found.items():
            if isinstance(value, dict) and finite(value.get("value")) is not None:
                right, low, high = (finite(value.get(k)) for k in ("value", "low", "high"))
                tone = "t5" if "longer" in label else "t2" if stage.kind == "preference" else "t1"
                rows.append(
                    [
                        esc(stage.name),
                        esc(label),
                        dot(right or 0.0, low, high, rule=0.5, tone=tone),
                        shown(share(right, low, high, value.get("n"))),
                    ]
                )
    if not rows:
        return Section("pairs", "Preferences", para("No stage reports how often it orders held-out pairs rightly."))
    note = para("Chance is 50 % (dashed line). A pair is one good and one bad answer to the same prompt; ties count as wrong.")
    return Section(
        "pairs", "Preferences", note + table("Held-out pairs. Axis: 0 to 100 %.", ["stage", "measure", "", "share"], rows, wide=[2])
    )
