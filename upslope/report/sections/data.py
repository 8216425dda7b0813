"""The corpus: how many pages were left after each step, which rules dropped them and which alone, by language; the mixture."""

from __future__ import annotations

from typing import Any

from upslope.machine.record import RunRecord, StageRecord
from upslope.report.page import Section, gallery, para
from upslope.report.svg import Chart, Series, bar, stacked, table
from upslope.report.view import facts, of_kind, opened
from upslope.report.words import esc, finite, number, percent, size

SHOWN, GROUPS, RULES = 12, 7, 14
"""Languages and sources that are listed by name; the others are summed."""


def data(record: RunRecord) -> Section | None:
    """The funnel of the crawl, per-rule losses, rejects, languages, and what else was written into corpora."""
    from upslope.data.artifacts import Corpus

    stages = of_kind(record, "ingest", "extract", "annotate", "dedup", "curate")
    if not stages:
        return None
    best: tuple[StageRecord, Any, list[dict[str, Any]]] | None = None
    for stage in stages:
        corpus = opened(stage, Corpus)
        try:
            funnel = [step for step in corpus.funnel() if isinstance(step, dict)] if corpus is not None else []
        except Exception:
            continue
        if funnel and (best is None or len(funnel) >= len(best[2])):
            best = (stage, corpus, funnel)
    if best is None:
        said = [f"{s.name}: {(s.manifest or {}).get('headline')}" for s in stages if (s.manifest or {}).get("headline")]
        return Section("data", "Data", para("No corpus of this run can be read yet.") + "".join(para(esc(x)) for x in said))
    stage, corpus, funnel = best
    body = para(
        f"From the corpus of stage <b>{esc(stage.name)}</b>.",
        "Every page that was dropped is in its ledger with rule and value: <code>upslope why URL</code>.",
    )
    body += _funnel(funnel) + _rules(funnel, _keeps(corpus))
    body += _victims(corpus) + _who(funnel, "kinds", "kind") + _who(funnel, "languages", "language")
    body += _by(funnel, "kinds", "Pages by kind: kept, and in pale all that there were", "kind")
    body += _by(funnel, "languages", "Pages by language: kept, and in pale all that there were", "language")
    body += _by(funnel, "sources", "Pages by source: kept, and in pale all that there were", "source") + _licences(corpus)
    return Section("data", "Data", body)


def _funnel(funnel: list[dict[str, Any]]) -> str:
    top = max((finite(s.get("docs")) or 0.0 for s in funnel), default=0.0)
    rows, before = [], None
    for step in funnel:
        docs = finite(step.get("docs"))
        if docs is None:
            continue
        lost = before - docs if before is not None else 0
        note = ", ".join(
            x
            for x in (
                size(step["bytes"]) if finite(step.get("bytes")) is not None else "",
                f"{number(step['empty'])} without text" if finite(step.get("empty")) else "",
            )
            if x
        )
        rows.append(
            [
                esc(str(step.get("step", "?")).replace("_", " ")),
                esc(f"{docs:,.0f}"),
                bar(docs, top, "t1", ghost=before),
                esc(f"−{lost:,.0f}" if lost > 0 else "0"),
                esc(percent(docs / top) if top else "—"),
                esc(note),
            ]
        )
        before = docs
    return table(
        "Documents left after each step; the pale part is what the step dropped",
        ["step", "left", "", "dropped", "of all", ""],
        rows,
        wide=[2],
        numeric=[1, 3, 4],
    )


def _rules(funnel: list[dict[str, Any]], keeps: dict[str, str]) -> str:
    out = ""
    for number_of, step in enumerate([s for s in funnel if s.get("rules")], 1):
        rules = [r for r in step["rules"] if isinstance(r, dict)]
        top = max((finite(r.get("failed")) or 0.0 for r in rules), default=0.0)
        lines = []
        for r in sorted(rules, key=lambda r: -(finite(r.get("failed")) or 0.0)):
            failed = finite(r.get("failed"))
            keep = keeps.get(str(r.get("rule")), "")
            lines.append(
                [
                    esc(r.get("rule", "?")),
                    esc(f"{failed:,.0f}") if failed is not None else "—",
                    bar(failed or 0.0, top, "bad"),
                    _count(r.get("only")),
                    _count(r.get("unknown")),
                    f"<code>{esc(keep)}</code>" if keep else "",
                ]
            )
        of = f" of {step['docs_in']:,}" if finite(step.get("docs_in")) is not None else ""
        caption = f"Decision {number_of}: pages{of} that fail each rule; “only this” counts those that fail no other; "
        caption += "a value that was not computed keeps the page"
        out += table(caption, ["rule", "fail", "", "only this", "not computed", "kept if"], lines, wide=[2], numeric=[1, 3, 4])
    return out


def _who(funnel: list[dict[str, Any]], key: str, column: str) -> str:
    """On whom the rules fall: the share of each group that each rule takes, over all decisions."""
    decisions = [s[key] for s in funnel if isinstance(s.get(key), dict)]
    if not decisions:
        return ""
    groups = sorted(decisions[0], key=lambda g: -(finite(decisions[0][g].get("docs_in")) or 0.0))[:GROUPS]
    taken: dict[str, dict[str, float]] = {}
    for decision in decisions:
        for group in groups:
            entry = decision.get(group, {})
            came = finite(entry.get("docs_in"))
            for rule, counts in (entry.get("rules") or {}).items():
                if came and isinstance(counts, list) and counts:
                    taken.setdefault(str(rule), {})[group] = (finite(counts[0]) or 0.0) / came
    rules = sorted(taken, key=lambda r: -max(taken[r].values()))[:RULES]
    lines = [[esc(rule), *(esc(percent(taken[rule][g], 1)) if g in taken[rule] else "" for g in groups)] for rule in rules]
    caption = f"On whom each rule falls: the share of the pages of each {column} that it takes (of those that came into its decision)"
    return table(caption, ["rule", *groups], lines, numeric=range(1, len(groups) + 1))


def _victims(corpus: Any, each: int = 2) -> str:
    """Some pages of each rule, first those that it alone took."""
    from upslope.data import fate

    lines: list[list[str]] = []
    try:
        rules = list(dict.fromkeys([r["name"] for d in corpus.body.get("decisions") or () for r in d["rules"]] + ["duplicate"]))
        for rule in rules:
            drawn = fate.sample(corpus, each, rule)
            for entry in fate.excerpts(corpus, drawn.docs, 100):
                saw = next((v for r, v in entry["failed"] if r == rule), "")
                lines.append([esc(rule), esc(entry["url"] or ""), esc(saw), esc(entry["head"])])
    except Exception:
        return ""
    caption = "Some of the pages that each rule took, drawn at random, first those that no other rule took"
    more = para("More of them: <code>upslope data sample --rule NAME</code>.", note=True)
    return (
        f"<details><summary>{caption}</summary>{table(caption, ['rule', 'page', 'it saw', 'begins'], lines)}{more}</details>"
        if lines
        else ""
    )


def _count(value: Any) -> str:
    return esc(f"{finite(value):,.0f}") if finite(value) is not None else "—"


def _keeps(corpus: Any) -> dict[str, str]:
    """Rule name → its predicate, and for copies the order in which the winner is chosen."""
    found: dict[str, str] = {}
    for decision in corpus.body.get("decisions") or ():
        found |= {str(r["name"]): str(r["keep"]) for r in decision.get("rules") or ()}
        found["duplicate"] = f"first of its copies by {decision.get('winner')}"
    return found


def _by(funnel: list[dict[str, Any]], key: str, caption: str, column: str) -> str:
    """Pages in and kept by language or source, over all decisions: in at the first, kept at the last."""
    decisions = [s[key] for s in funnel if isinstance(s.get(key), dict)]
    if not decisions:
        return ""
    rows = [
        (str(name), finite(v.get("docs_in")) or 0.0, finite((decisions[-1].get(name) or {}).get("docs")) or 0.0)
        for name, v in decisions[0].items()
        if isinstance(v, dict)
    ]
    rows.sort(key=lambda r: -r[1])
    shown = rows if len(rows) <= SHOWN + 1 else rows[:SHOWN]
    if len(rows) > len(shown):
        shown.append((f"{len(rows) - SHOWN} others", sum(r[1] for r in rows[SHOWN:]), sum(r[2] for r in rows[SHOWN:])))
    top = max((r[1] for r in shown), default=0.0)
    lines = [
        [
            esc(name),
            esc(f"{there:,.0f}"),
            bar(kept, top, "t1", ghost=there),
            esc(f"{kept:,.0f}"),
            esc(percent(kept / there, 0)) if there else "—",
        ]
        for name, there, kept in shown
    ]
    return table(caption, [column, "pages", "", "kept", "share"], lines, wide=[2], numeric=[1, 3, 4])


def _licences(corpus: Any) -> str:
    try:
        found = [x or "unknown" for x in corpus.licences()]
    except Exception:
        return ""
    return para(f"Licences of the kept documents, as their sources state them: {esc(', '.join(found))}.") if found else ""


# ── what the model reads ──────────────────────────────────────────────────────────────────────────────────────────


def mixture(record: RunRecord) -> Section | None:
    """Tokens per source and how often each comes round, for every mixture of the run; shares over progress where they move."""
    from upslope.tokens.mixture import Mixture

    body = ""
    charts: list[Chart] = []
    for stage in of_kind(record, "mix"):
        made = opened(stage, Mixture)
        if made is None:
            continue
        try:
            asked, caps, total = made.asked(), made.caps, made.tokens
            ends = made.shares(0.0), made.shares(1.0)
        except Exception:
            continue
        f = facts(stage)
        available = f.get("available")
        there: dict[str, Any] = available if isinstance(available, dict) else {}
        order = sorted(asked, key=lambda s: -asked[s])
        parts = [(s, asked[s], f"{percent(asked[s] / total)} · {number(asked[s])}") for s in order]
        lines = []
        for s in order:
            have = finite(there.get(s))
            epochs = number(asked[s] / have, 2) if have else "—"
            lines.append(
                [
                    esc(s),
                    esc(number(asked[s])),
                    esc(percent(asked[s] / total)),
                    esc(number(have)) if have else "—",
                    esc(epochs),
                    esc(number(caps[s])) if s in caps else "—",
                ]
            )
        body += f"<h3>{esc(stage.name)}: {esc(number(total))} tokens</h3>" + stacked(f"Tokens per source of {stage.name}", parts)
        body += table(
            "Tokens asked from each source, and how often it comes round",
            ["source", "tokens", "share", "there are", "epochs", "at most"],
            lines,
            numeric=[1, 2, 3, 4, 5],
        )
        unused = f.get("unused")
        body += para(f"There but not read: {esc(', '.join(map(str, unused)))}.") if isinstance(unused, list) and unused else ""
        if any(abs(ends[0][s] - ends[1][s]) > 1e-9 for s in order):
            at = [i / 20 for i in range(21)]
            chart = Chart(
                f"{stage.name}-shares",
                f"{stage.name}: share of each source",
                [Series(s, at, [made.shares(x)[s] for x in at], tone=i % 6 + 1) for i, s in enumerate(order[:6])],
                x_label="progress",
                percent=True,
                zero=True,
            )
            charts.append(chart)
            body += gallery([chart])
    return Section("mixture", "Mixture", body, tuple(charts)) if body else None
