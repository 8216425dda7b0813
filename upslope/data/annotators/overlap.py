"""overlap: how much of an evaluation item stands in a page, word for word, lightly edited, or torn apart.

    coverage(item, page) = Σ_g w_g [g in page] / Σ_g w_g,   w_g = 1 / (number of items that contain g)

over the item's runs g of `gram` words (the whole item where it is shorter). The weight makes wording that items share count for
little. `exact` is the stricter 20-word rule: some run of `run` words of an item (the whole item where it is shorter) is in the page.

Source: Brown et al. 2020 (GPT-3), appendix C (n-gram overlap); Abdin et al. and others use 13 words; 20 as in MAI's report.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, NamedTuple

from pydantic import Field

from upslope.config import Input, Source, UsageError, Wants
from upslope.data.protocol import Annotate
from upslope.machine.files import digest_file, read_json, write_json

if TYPE_CHECKING:
    import numpy as np
    import pyarrow as pa
    from numpy.typing import NDArray

    from upslope.machine.context import Context


class Overlap(Annotate):
    """coverage: the largest over all items, 0 to 1; item: which one (NULL if coverage is 0); words: its length; exact: the 20-word rule.

    against: task sets, whose held-out prompts are the items. sources: JSON files of items: a list, or an object with `items`, of strings or
    of objects with `text` (or `question`, `prompt`) and perhaps `id`. least: items with fewer words are left out, since innocent pages
    contain them; how many is recorded as a fact of the stage.
    """

    kind: ClassVar[str] = "overlap"
    version: ClassVar[int] = 1
    gives: ClassVar[Mapping[str, str]] = {"coverage": "float32", "item": "string", "words": "int32", "exact": "bool"}

    against: Annotated[tuple[Input, ...], Wants("Tasks")] = ()
    sources: tuple[Source, ...] = ()
    gram: int = Field(default=5, ge=1)
    run: int = Field(default=20, ge=1)
    least: int = Field(default=4, ge=1)

    def bind(self, ctx: Context) -> Annotate:
        """Writes the items to one file and gives the step that reads it. UsageError where there are none."""
        items = [item for ref in self.against for item in _held_out(ctx, ref)]
        for source in self.sources:
            items += list(read_items(source.path()))
        if not items:
            raise UsageError("overlap: there are no items to look for\nway out: name task sets in `against` or JSON files in `sources`")
        short = Index(items, self.gram, self.run, self.least).skipped
        if short == len(items):
            raise UsageError(f"overlap: all {short} items have fewer than {self.least} words\nway out: lower `least`, or give whole items")
        ctx.fact(**{self.column: {"items": len(items), "too_short": short}})
        file = ctx.work / f"items-{self.column}.json"
        write_json(file, items)
        found = Source(uri=str(file), digest=digest_file(file))
        return BoundOverlap(name=self.column, items=found, gram=self.gram, run=self.run, least=self.least)


class BoundOverlap(Annotate):
    """`Overlap` with its items in one file, [[id, text], …]."""

    kind: ClassVar[str] = "overlap_items"
    version: ClassVar[int] = Overlap.version
    gives: ClassVar[Mapping[str, str]] = Overlap.gives

    items: Source
    gram: int = Field(default=5, ge=1)
    run: int = Field(default=20, ge=1)
    least: int = Field(default=4, ge=1)

    def __call__(self, batch: pa.RecordBatch) -> pa.RecordBatch:
        """Needs the column text; code and tables are looked at too."""
        import pyarrow as pa

        path = self.items.path()
        index = _index(str(path), self.items.digest or digest_file(path), self.gram, self.run, self.least)
        columns: dict[str, list[Any]] = {name: [] for name in self.gives}
        for text in batch["text"].to_pylist():
            for name, value in zip(self.gives, index.look(text)):
                columns[name].append(value)
        types = {"coverage": pa.float32(), "item": pa.string(), "words": pa.int32(), "exact": pa.bool_()}
        return pa.RecordBatch.from_pydict({n: pa.array(columns[n], types[n]) for n in self.gives})


class Hit(NamedTuple):
    """The item of which most is in a page."""

    coverage: float
    item: str | None
    words: int | None
    exact: bool


class Index:
    """Items by their runs of words. Fields: grams (g,) uint64 sorted; weight (g,); owners of each gram; totals per item."""

    def __init__(self, items: list[tuple[str, str]], gram: int = 5, run: int = 20, least: int = 4) -> None:
        import numpy as np

        self.gram, self.run = gram, run
        hashes = [(name, _words(text)) for name, text in items]
        self.skipped = sum(h.size < least for _, h in hashes)
        kept = [(name, h) for name, h in hashes if h.size >= least]
        self.names = [name for name, _ in kept]
        self.lengths = np.array([h.size for _, h in kept], np.int32)
        self.grams, owner, self.widths = _table(kept, gram)
        self.runs, _, self.run_widths = _table(kept, run)
        self.runs = np.unique(self.runs)
        order = np.argsort(self.grams, kind="stable")
        self.grams, self.owner = self.grams[order], owner[order]
        unique, counts = np.unique(self.grams, return_counts=True)
        self.weight = 1.0 / counts[np.searchsorted(unique, self.grams)]
        self.total = np.bincount(self.owner, self.weight, minlength=len(kept))

    def look(self, text: str) -> Hit:
        """The largest coverage of any item in a text, and whether the 20-word rule holds for any."""
        import numpy as np

        words = _words(text)
        if not words.size or not self.names:
            return Hit(0.0, None, None, False)
        present = np.unique(np.concatenate([_runs(words, w) for w in self.widths]))
        found = _isin(self.grams, present)
        covered = np.bincount(self.owner[found], self.weight[found], minlength=len(self.names)) / self.total
        best = int(covered.argmax())
        exact = any(bool(_isin(_runs(words, w), self.runs).any()) for w in self.run_widths)
        if covered[best] <= 0:
            return Hit(0.0, None, None, exact)
        return Hit(min(1.0, float(covered[best])), self.names[best], int(self.lengths[best]), exact)


def _isin(values: NDArray[np.uint64], table: NDArray[np.uint64]) -> NDArray[np.bool_]:
    """Which values are in a sorted table."""
    import numpy as np

    if not table.size:
        return np.zeros(values.size, bool)
    at = np.minimum(np.searchsorted(table, values), table.size - 1)
    return table[at] == values


def _words(text: str) -> NDArray[np.uint64]:
    import numpy as np

    from upslope.data import hashing

    return hashing.words(np.frombuffer(text.casefold().encode("utf-8", "replace"), np.uint8))


def _runs(words: NDArray[np.uint64], width: int) -> NDArray[np.uint64]:
    """Hashes of all runs of exactly `width` words."""
    import numpy as np

    from upslope.data import hashing

    return hashing.shingles(words, width) if words.size >= width else np.empty(0, np.uint64)


def _table(items: list[tuple[str, NDArray[np.uint64]]], n: int) -> tuple[NDArray[np.uint64], NDArray[np.int64], list[int]]:
    """(distinct runs of each item, their item, the widths that occur): n words, or the whole item where it is shorter."""
    import numpy as np

    runs = [np.unique(_runs(h, min(n, h.size))) for _, h in items]
    owners = [np.full(r.size, i, np.int64) for i, r in enumerate(runs)]
    widths = sorted({min(n, int(h.size)) for _, h in items})
    if not runs:
        return np.empty(0, np.uint64), np.empty(0, np.int64), []
    return np.concatenate(runs), np.concatenate(owners), widths


@lru_cache(maxsize=4)
def _index(path: str, digest: str, gram: int, run: int, least: int) -> Index:
    return Index([(name, text) for name, text in read_json(Path(path))], gram, run, least)


def _held_out(ctx: Context, ref: Input) -> Iterator[tuple[str, str]]:
    from upslope.tasks.artifacts import Tasks

    for task in ctx.open(ref, Tasks).read("heldout"):
        yield task.id, "\n".join(str(m["content"]) for m in task.messages)


def read_items(file: Path) -> Iterator[tuple[str, str]]:
    """(id, text) of the items in a JSON file; UsageError naming the first item that has no text."""
    body = read_json(file)
    rows = body.get("items") if isinstance(body, dict) else body
    if not isinstance(rows, list):
        raise UsageError(f"{file.name}: expected a list of items, or an object with 'items'; found {type(body).__name__}")
    for i, row in enumerate(rows):
        fields = row if isinstance(row, dict) else {"text": row}
        text = next((fields[k] for k in ("text", "question", "prompt") if fields.get(k)), None)
        if not isinstance(text, str):
            raise UsageError(f"{file.name}: item {i} has no 'text', 'question' or 'prompt': {str(row)[:80]}")
        yield str(fields.get("id", f"{file.stem}/{i}")), text
