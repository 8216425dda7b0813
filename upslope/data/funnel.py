"""The funnel as plain rows: what came in, what each rule took, what is left. For the terminal and for the report."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple


class Row(NamedTuple):
    """One line of the funnel. docs: left after it; dropped: taken by it (not taken before); failed: all that fail it; only: fail nothing
    else; unknown: the rule could not be computed, and so kept; bytes: text left after it (None where there is no text yet)."""

    name: str
    docs: int
    dropped: int = 0
    failed: int | None = None
    only: int | None = None
    unknown: int | None = None
    bytes: int | None = None
    note: str = ""


HEADER = ("step", "docs", "dropped", "failed", "only", "unknown", "MB", "")


def rows(funnel: Sequence[Mapping[str, Any]]) -> list[Row]:
    """Rows of `Corpus.funnel()`, in the order in which things happened. In each curation the rules are taken in their order."""
    out: list[Row] = []
    for step in funnel:
        name = step["step"]
        if name != "curate":
            reasons = ", ".join(f"{why} {n:,}" for why, n in sorted(step.get("reasons", {}).items(), key=lambda x: (-x[1], x[0])))
            note = reasons or (f"{step['empty']:,} without text" if step.get("empty") else "")
            out.append(Row(name, step["docs"], step.get("dropped", 0), bytes=step.get("bytes"), note=note))
            continue
        docs, size = step["docs_in"], step["bytes_in"]
        for rule in step["rules"]:
            docs, size = docs - rule["first"], size - rule["bytes"]
            out.append(Row(rule["rule"], docs, rule["first"], rule["failed"], rule["only"], rule["unknown"], size))
    return out


def table(funnel: Sequence[Mapping[str, Any]]) -> list[tuple[str, ...]]:
    """The rows as text, `HEADER` first."""

    def show(value: int | None) -> str:
        return "" if value is None else f"{value:,}"

    lines: list[tuple[str, ...]] = [HEADER]
    for r in rows(funnel):
        size = "" if r.bytes is None else f"{r.bytes / 1e6:.2f}"
        lines.append((r.name, show(r.docs), show(r.dropped or None), show(r.failed), show(r.only), show(r.unknown or None), size, r.note))
    return lines


def by(funnel: Sequence[Mapping[str, Any]], what: str) -> list[tuple[str, int, int]]:
    """(value, documents that came into the first curation, documents left after the last) by `languages` or `sources`, most first."""
    curations = [s for s in funnel if s["step"] == "curate"]
    if not curations:
        return []
    first, last = curations[0][what], curations[-1][what]
    found = [(value, entry["docs_in"], last.get(value, {"docs": 0})["docs"]) for value, entry in first.items()]
    return sorted(found, key=lambda x: (-x[1], x[0]))


def grouped(funnel: Sequence[Mapping[str, Any]], what: str, most: int = 12) -> list[tuple[str, ...]]:
    """What became of each language, kind or source (`languages`, `kinds`, `sources`), and which rules took how many of it, alone or not.

    The first row is the head. The `most` largest groups are listed.
    """
    curations = [s for s in funnel if s["step"] == "curate"]
    lines: list[tuple[str, ...]] = [(what.removesuffix("s"), "docs", "kept", "rule", "failed", "alone")]
    for value, came, left in by(funnel, what)[:most]:
        lines.append((value, f"{came:,}", f"{left:,} ({left / came:.0%})", "", "", ""))
        for number, step in enumerate(curations, 1):
            taken = step[what].get(value, {}).get("rules", {})
            for rule, (failed, alone) in sorted(taken.items(), key=lambda x: -x[1][0]):
                name = rule if len(curations) == 1 else f"{rule} ({number})"
                lines.append(("", "", "", name, f"{failed:,}", f"{alone:,}"))
    return lines


def render(funnel: Sequence[Mapping[str, Any]]) -> str:
    """The table with aligned columns."""
    lines = table(funnel)
    widths = [max(len(line[i]) for line in lines) for i in range(len(HEADER))]
    shown = []
    for line in lines:
        cells = [line[0].ljust(widths[0]), *(c.rjust(w) for c, w in zip(line[1:-1], widths[1:-1])), line[-1]]
        shown.append("  ".join(cells).rstrip())
    return "\n".join(shown)
