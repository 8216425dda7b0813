"""overlap: how much of an evaluation item stands in a page, word for word, lightly edited, or torn over lines; see `data.ngrams`.

The usual rule is `not overlap.exact and overlap.coverage < 0.4`.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Self

from pydantic import Field, model_validator

from upslope.config import Input, Source, UsageError, Wants
from upslope.data.protocol import Annotate
from upslope.machine.files import atomic, digest_file, read_json, write_json

if TYPE_CHECKING:
    import pyarrow as pa

    from upslope.data.ngrams import Background, Index, Item, Match, Rules
    from upslope.machine.context import Context

GIVES: Mapping[str, str] = {
    "coverage": "float32",
    "answer_coverage": "float32",
    "exact": "bool",
    "item": "string",
    "benchmark": "string",
    "words": "int32",
    "hits": "string",
}
VERSION = 2


class Settings(Annotate):
    """How items and pages are compared.

    gram: words a run. run: words in a row that make a page `exact`. least: items whose question has fewer words are left out. short:
    questions up to this length count whole only. window: where an item is looked for, in item lengths. numbers: how much of the
    coverage a question loses whose numbers all differ. common: short questions in a larger share of the background are left out.
    floor: coverage from which on an item is listed in `hits`.
    """

    gram: int = Field(default=5, ge=2, le=64)
    run: int = Field(default=20, ge=1)
    least: int = Field(default=4, ge=1)
    short: int = Field(default=8, ge=1)
    window: float = Field(default=3.0, ge=1, le=100)
    numbers: float = Field(default=0.75, ge=0, le=1)
    common: float = Field(default=0.001, ge=0, le=1)
    floor: float = Field(default=0.3, gt=0, le=1)

    @model_validator(mode="after")
    def _widths(self) -> Self:
        if self.run < self.gram:
            raise ValueError(f"run = {self.run} must be at least gram = {self.gram}: exact runs are found by their n-grams")
        return self

    def rules(self) -> Rules:
        """The same for `data.ngrams`."""
        from upslope.data.ngrams import Rules

        return Rules(self.gram, self.run, self.least, self.short, self.window, self.numbers, self.common)

    def settings(self) -> dict[str, Any]:
        """The fields of this class."""
        return {name: getattr(self, name) for name in Settings.model_fields if name != "name"}


class Overlap(Settings):
    """coverage: the largest over all items, 0 to 1; item, benchmark, words: which one, of what, and how many words its question has (NULL
    where nothing is found); answer_coverage: of its answer (NULL if it has none); exact: whether `run` words in a row of any item (the
    whole question where it is shorter) are in the page, and not with all numbers replaced; hits: all items found, as JSON {benchmark:
    [[item, coverage of the question or of a long answer, exact], …]} (NULL for none).

    against: task sets, whose held-out prompts are the items. sources: files or folders of items (`data.items`). context: whether a
    passage is part of its question. background: a corpus that tells stock phrases, by `sample` of its documents, evenly spread. Items
    that were left out are counted in the facts of the stage and in about.json beside the columns.
    """

    kind: ClassVar[str] = "overlap"
    version: ClassVar[int] = VERSION
    gives: ClassVar[Mapping[str, str]] = GIVES

    against: Annotated[tuple[Input, ...], Wants("Tasks")] = ()
    sources: tuple[Source, ...] = ()
    background: Annotated[Input | None, Wants("Corpus")] = None
    sample: int = Field(default=2000, ge=1)
    context: bool = False

    def bind(self, ctx: Context) -> Annotate:
        """Writes the items to one file and gives the step that reads it. UsageError where there are none."""
        from upslope.data import items as files
        from upslope.data import ngrams

        found = [item for ref in self.against for item in _held_out(ctx, ref)]
        for source in self.sources:
            found += files.read(source.path(), self.context)
        if not found:
            raise UsageError("overlap: there are no items to look for\nway out: name task sets in `against` or files of items in `sources`")
        counts = None
        if self.background is not None:
            counts = ngrams.count(_spread(ctx, self.background, self.sample), found, self.rules())
        file = ctx.work / f"items-{self.column}.json"
        write_json(file, [[i.id, i.benchmark, i.question, i.answer, list(i.options)] for i in found])
        bound = BoundOverlap(
            name=self.column,
            items=Source(uri=str(file), digest=digest_file(file)),
            stock=None if counts is None else _save(ctx.work / f"stock-{self.column}.npy", counts),
            **self.settings(),
        )
        index = bound.index()
        short, common = len(index.too_short), len(index.common)
        if not index.kept:
            raise UsageError(
                f"overlap: all {len(found)} items are left out: {short} have fewer than {self.least} words, {common} are common\n"
                "way out: lower `least`, raise `common`, or give whole items"
            )
        ctx.fact(**{self.column: {"items": len(found), "too_short": short, "common": common}})
        write_json(ctx.out / "columns" / f"{self.column}@{self.version}" / "about.json", _about(self, index, found))
        return bound


class BoundOverlap(Settings):
    """`Overlap` with its items in one file, [[id, benchmark, question, answer, options], …], and its background counted: runs and
    counts in one array (2, n + 1) uint64, whose first column is 0 and the number of documents."""

    kind: ClassVar[str] = "overlap_items"
    version: ClassVar[int] = VERSION
    gives: ClassVar[Mapping[str, str]] = GIVES

    items: Source
    stock: Source | None = None

    def index(self) -> Index:
        """The index, built once a process."""
        return _index(*_file(self.items), *(_file(self.stock) if self.stock else ("", "")), self.rules())

    def __call__(self, batch: pa.RecordBatch) -> pa.RecordBatch:
        """Needs the column text; code and tables are looked at too."""
        import pyarrow as pa

        index = self.index()
        rows = [self._row(index, index.look(text)) for text in _texts(batch["text"])]
        return pa.RecordBatch.from_pydict({n: pa.array([r[n] for r in rows], pa.type_for_alias(t)) for n, t in self.gives.items()})

    def _row(self, index: Index, found: list[Match]) -> dict[str, Any]:
        row: dict[str, Any] = dict.fromkeys(GIVES) | {"coverage": 0.0, "exact": False}
        if not found:
            return row
        hits: dict[str, list[list[Any]]] = {}
        for match in found:
            if match.exact or self.strength(index, match) >= self.floor:
                item = index.kept[match.item]
                hits.setdefault(item.benchmark, []).append([item.id, round(self.strength(index, match), 4), match.exact])
        best = max(found, key=lambda m: (self.strength(index, m), m.exact, -m.item))
        item = index.kept[best.item]
        return row | {
            "coverage": max(m.coverage for m in found),
            "answer_coverage": best.answer,
            "exact": any(m.exact for m in found),
            "item": item.id,
            "benchmark": item.benchmark,
            "words": index.lengths[best.item],
            "hits": json.dumps(hits, ensure_ascii=False, sort_keys=True) if hits else None,
        }

    def strength(self, index: Index, match: Match) -> float:
        """What decides between items: the coverage of the question, or of a long answer where that is larger."""
        return max(match.coverage, (match.answer or 0.0) if index.long_answer(match.item) else 0.0)


def _file(source: Source) -> tuple[str, str]:
    path = source.path()
    return str(path), source.digest or digest_file(path)


def _texts(column: pa.Array) -> Iterator[bytes]:
    """The UTF-8 bytes of a column of strings, b"" for NULL, without a detour over str."""
    from upslope.data import hashing

    offsets, data = hashing.column(column)
    for start, end in zip(offsets[:-1].tolist(), offsets[1:].tolist()):
        yield data[start:end].tobytes()


@lru_cache(maxsize=4)
def _index(items: str, digest: str, stock: str, stock_digest: str, rules: Rules) -> Index:
    import numpy as np

    from upslope.data.ngrams import Background, Index, Item

    counts = None
    if stock:
        table = np.load(stock)
        counts = Background(table[0, 1:], table[1, 1:].astype(np.int64), int(table[1, 0]))
    rows = read_json(Path(items))
    return Index([Item(i, b, q, a, tuple(o)) for i, b, q, a, o in rows], rules, counts)


def _save(file: Path, counts: Background) -> Source:
    import numpy as np

    table = np.zeros((2, counts.keys.size + 1), np.uint64)
    table[0, 1:], table[1, 1:], table[1, 0] = counts.keys, counts.counts, counts.docs
    with atomic(file) as temporary, open(temporary, "wb") as f:
        np.save(f, table)
    return Source(uri=str(file), digest=digest_file(file))


def _about(step: Overlap, index: Index, items: list[Item]) -> dict[str, Any]:
    """What was looked for: by benchmark the items in the index and those left out, and how."""
    names = sorted({i.benchmark for i in items})
    kept = Counter(i.benchmark for i in index.kept)
    short, common = (Counter(items[i].benchmark for i in out) for out in (index.too_short, index.common))
    return {
        "benchmarks": {n: {"items": kept[n], "too_short": short[n], "common": common[n]} for n in names},
        "method": f"{step.gram}-grams by rarity in {step.window:g} item lengths, numbers {step.numbers:g}; exact: {step.run} words",
        "settings": step.settings(),
    }


def _held_out(ctx: Context, ref: Input) -> Iterator[Item]:
    from upslope.data.ngrams import Item
    from upslope.tasks.artifacts import Tasks

    for task in ctx.open(ref, Tasks).read("heldout"):
        answer = task.truth.get("answer") if isinstance(task.truth, Mapping) else None
        question = "\n".join(str(m["content"]) for m in task.messages)
        yield Item(task.id, task.family, question, answer if isinstance(answer, str) else "")


def _spread(ctx: Context, ref: Input, sample: int) -> Iterator[str]:
    """At most `sample` living documents of a corpus, evenly spread."""
    from upslope.data.artifacts import Corpus

    view = ctx.open(ref, Corpus)
    every = max(1, -(-len(view) // sample))
    for number, text in enumerate(view.texts()):
        if number % every == 0:
            yield text
