"""What overlap columns say about a whole corpus: the benchmark × source matrix, and a verdict for each benchmark.

Both are computed from `overlap.hits` (see `annotators.overlap`) and the about.json beside the columns, which says what was looked for.
An item is hit by a document if its coverage there is at least `threshold`, or if the match is exact.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from upslope.machine.files import absolute, read_json

if TYPE_CHECKING:
    from upslope.data.artifacts import Corpus

THRESHOLD = 0.4
FIELDS = {"coverage", "benchmark", "item", "exact", "hits"}
EXAMPLES = 3


class Row(NamedTuple):
    """One cell of the matrix. documents: that hold an item of the benchmark; items: of it that are hit; share: of the items looked for
    (None if that is not known); coverage: the largest; examples: (document, item, coverage), the largest first."""

    benchmark: str
    source: str
    documents: int
    items: int
    share: float | None
    coverage: float
    examples: tuple[tuple[int, str, float], ...]


class Hit(NamedTuple):
    """An item that a document holds."""

    doc: int
    source: str
    kept: bool
    benchmark: str
    item: str
    coverage: float
    exact: bool


def columns(view: Corpus) -> tuple[str, ...]:
    """The names of the overlap columns that a corpus has."""
    return tuple(name for name, fields in view.fields().items() if set(fields) >= FIELDS)


def hits(view: Corpus, column: str = "overlap", threshold: float = THRESHOLD) -> Iterator[Hit]:
    """The items that documents hold, kept documents or not, in document order."""
    kept = dict(zip(view.docs().tolist(), view.kept().tolist()))
    for batch in view.batches(("doc", "source", f"{column}.hits"), every=True):
        for doc, source, text in zip(*(batch.column(i).to_pylist() for i in range(3))):
            for benchmark, found in json.loads(text or "{}").items():
                for item, coverage, exact in found:
                    if exact or coverage >= threshold:
                        yield Hit(doc, source or "", kept[doc], benchmark, item, coverage, exact)


def about(view: Corpus, column: str = "overlap") -> dict[str, Any]:
    """What was looked for: benchmarks {name: {items, too_short, common}}, method, settings; empty where nothing says so."""
    for entry in view.body["columns"]:
        if entry["name"] == column and entry["files"]:
            file = absolute(view.path, entry["files"][0]).parent / "about.json"
            if file.is_file():
                found: dict[str, Any] = read_json(file)
                return found
    return {"benchmarks": {}, "method": "", "settings": {}}


def matrix(view: Corpus, column: str = "overlap", threshold: float = THRESHOLD) -> list[Row]:
    """The benchmark × source matrix over all documents, kept or not: one row where a source holds an item of a benchmark."""
    cells: dict[tuple[str, str], list[Hit]] = {}
    for hit in hits(view, column, threshold):
        cells.setdefault((hit.benchmark, hit.source), []).append(hit)
    known = about(view, column)["benchmarks"]
    rows = []
    for (benchmark, source), found in sorted(cells.items()):
        items = {h.item for h in found}
        total = known.get(benchmark, {}).get("items")
        top = sorted(found, key=lambda h: (-h.coverage, h.doc, h.item))[:EXAMPLES]
        examples = tuple((h.doc, h.item, h.coverage) for h in top)
        share = len(items) / total if total else None
        rows.append(Row(benchmark, source, len({h.doc for h in found}), len(items), share, top[0].coverage, examples))
    return rows


def verdict(view: Corpus, column: str = "overlap", threshold: float = THRESHOLD) -> dict[str, dict[str, Any]]:
    """{benchmark: {items, left_out, hit, documents, kept_hits, threshold, method}}, one entry for each benchmark that was looked for.

    items: looked for; left_out: too short or common to be looked for; hit: items in any document; documents: that hold one;
    kept_hits: items that documents still hold which live in this view. All zero is a statement, too.
    """
    known = about(view, column)
    found: dict[str, list[Hit]] = {name: [] for name in sorted(known["benchmarks"])}
    for hit in hits(view, column, threshold):
        found.setdefault(hit.benchmark, []).append(hit)
    out = {}
    for benchmark, those in found.items():
        counts = known["benchmarks"].get(benchmark, {})
        out[benchmark] = {
            "items": counts.get("items"),
            "left_out": counts.get("too_short", 0) + counts.get("common", 0),
            "hit": len({h.item for h in those}),
            "documents": len({h.doc for h in those}),
            "kept_hits": len({h.item for h in those if h.kept}),
            "threshold": threshold,
            "method": known["method"],
        }
    return out


HEADER = ("benchmark", "source", "documents", "items", "share", "max", "e.g.")


def render(rows: Sequence[Row]) -> str:
    """The matrix with aligned columns."""
    lines = [HEADER]
    for r in rows:
        share = "" if r.share is None else f"{100 * r.share:.1f} %"
        doc, item, _ = r.examples[0]
        lines.append((r.benchmark, r.source, f"{r.documents:,}", f"{r.items:,}", share, f"{r.coverage:.2f}", f"{item} in document {doc}"))
    widths = [max(len(line[i]) for line in lines) for i in range(len(HEADER))]
    shown = []
    for line in lines:
        cells = [c.ljust(w) if i < 2 else c.rjust(w) for i, (c, w) in enumerate(zip(line[:-1], widths))]
        shown.append("  ".join([*cells, line[-1]]).rstrip())
    return "\n".join(shown)
