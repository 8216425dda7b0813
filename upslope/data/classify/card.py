"""The card of a classifier: its data, training, metrics and limits, from measured numbers alone; as JSON and as Markdown."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from upslope.data.classify.train import META, TRAIN, Example, Examples, label_counts

FEW = 30
"""Below so many documents a row of the card is called weak evidence."""
CAVEATS = {
    "taxonomy": "Agreement with the teacher is measured, not truth: where the teacher errs, so does a student that agrees.",
    "aitext": "The true positive rate is that on the machine texts given, and on no other model's; a flag is a reason to look, not proof.",
}
RIGHT = {"taxonomy": "agree in all fields", "aitext": "human, not flagged"}


def provenance(examples: Examples, labels: bool = True) -> dict[str, Any]:
    """Where the examples come from: counts by split, label, source, licence and language."""
    rows, names = examples.rows, ("train", "dev", "test")

    def count(part: Sequence[Example], column: str) -> dict[str, int]:
        return dict(sorted(Counter(r.meta[column] or "unknown" for r in part).items()))

    learnt = [r for r, s in zip(rows, examples.split) if s == TRAIN]
    return {
        "examples": len(rows),
        "repeats_left_out": examples.repeats,
        "contradictions_left_out": examples.conflicts,
        "splits": {n: int((examples.split == i).sum()) for i, n in enumerate(names)},
        **({"labels": {n: label_counts(examples.part(i)) for i, n in enumerate(names)}} if labels else {}),
        **{f"{c}s": count(rows, c) for c in META[1:4]},
        "learnt_bytes": sum(len(r.text.encode()) for r in learnt),
    }


def limits(body: Mapping[str, Any]) -> list[str]:
    """What the numbers do not say, from the numbers themselves."""
    out = ["Documents on the two sides of the split may be near copies of one another: only equal texts are kept together."]
    test = body["data"]["splits"]["test"]
    if test < FEW:
        out.append(f"Only {test} documents were held out: every number here is weak evidence.")
    few = [f"{name} ({row['recall']['n']})" for name, row in body["metrics"].get("classes", {}).items() if row["recall"]["n"] < FEW]
    if few:
        out.append(f"Classes with fewer than {FEW} held-out documents: {', '.join(few)}.")
    few = [f"{name} ({row['n']})" for name, row in body.get("by_language", {}).items() if row["n"] < FEW]
    if few:
        out.append(f"Languages with fewer than {FEW} held-out documents: {', '.join(few)}.")
    if body["form"] in CAVEATS:
        out.append(CAVEATS[body["form"]])
    out.append("Documents unlike those counted above (other sources, languages, years, registers) are not measured.")
    return out


def render(body: Mapping[str, Any]) -> str:
    """card.json as Markdown."""
    lines = [f"# Classifier ({body['form']})", "", f"Intended use: {body['purpose']}", ""]
    lines += ["Every metric was measured on held-out documents; brackets are 95 % intervals.", ""]
    lines += ["## Limits", "", *(f"- {x}" for x in body["limits"]), ""]
    lines += ["## Data", "", *_bullets(body["data"]), "", "## Training", "", *_bullets(body["training"]), "", "## Held-out metrics", ""]
    lines += _metrics(body["metrics"])
    for title, key in (("By language", "by_language"), ("By source", "by_source")):
        if body.get(key):
            rows = [(name, row["n"], _interval(row)) for name, row in body[key].items()]
            lines += ["", f"## {title}", "", *table(("", "documents", RIGHT.get(body["form"], "right")), rows)]
    return "\n".join(lines) + "\n"


def _metrics(metrics: Mapping[str, Any]) -> list[str]:
    plain = [(name.replace("_", " "), _interval(v)) for name, v in metrics.items() if isinstance(v, float) or _is_interval(v)]
    lines = table(("metric", "value"), plain)
    for name, rows in metrics.items():
        if name in ("classes", "levels", "fields", "signals"):
            columns = list(next(iter(rows.values()), {}))
            cells = [(r, *(_interval(v) if c != "n" else v for c, v in row.items())) for r, row in rows.items()]
            lines += ["", f"### {name.capitalize()}", "", *table((name, *columns), cells)]
        elif name == "thresholds":
            cells = [tuple(_interval(v) for v in row.values()) for row in rows]
            lines += ["", "### Thresholds", "", *table(tuple(rows[0]) if rows else ("threshold",), cells)]
        elif name == "confusion":
            cells = [(c, *row) for c, row in zip(rows["classes"], rows["truth_by_guess"])]
            lines += ["", "### Confusion", "", *table(("truth \\ guess", *rows["classes"]), cells)]
    return lines


def _is_interval(value: Any) -> bool:
    return isinstance(value, Mapping) and {"value", "low", "high"} <= set(value)


def _interval(value: Any) -> str:
    if _is_interval(value):
        if value["value"] is None:
            return "–"
        limits_ = f" [{value['low']:.3f}, {value['high']:.3f}]" if value["low"] is not None else ""
        return f"{value['value']:.3f}{limits_}" + (f" n={value['n']}" if "n" in value else "")
    return "–" if value is None else f"{value:.4g}" if isinstance(value, float) else str(value)


def table(head: Sequence[str], rows: Sequence[Sequence[Any]]) -> list[str]:
    """A Markdown table."""
    clean = [[str(c).replace("|", "\\|") for c in row] for row in rows]
    return ["| " + " | ".join(head) + " |", "|" + "---|" * len(head), *("| " + " | ".join(row) + " |" for row in clean)]


def _bullets(value: Mapping[str, Any], prefix: str = "") -> list[str]:
    out = []
    for name, v in value.items():
        title = prefix + name.replace("_", " ")
        inner = {k: x for k, x in v.items() if isinstance(x, Mapping)} if isinstance(v, Mapping) else {}
        if isinstance(v, Mapping):
            plain = ", ".join(f"{k} {_interval(x)}" for k, x in v.items() if k not in inner)
            out += [f"- {title}: {plain or 'none'}"] if plain or not inner else []
            out += _bullets(inner, f"{title}, ")
        else:
            out.append(f"- {title}: {_interval(v)}")
    return out
