"""What a data step is: four verbs that never drop a row, and one decision that does.

    Read       a file            → rows of raw pages (what cannot be read goes to the reject ledger)
    Rewrite    raw or old text   → new text, row for row ("" where nothing is left)
    Annotate   text              → new columns, row for row (NULL = not computed)
    Link       text              → edges between rows that are copies of one another
    Curation   columns and edges → which rows live, and why each of the others does not

Rows are pyarrow record batches with the columns of a text shard (`data.shards.TEXT`). A step is a function of (config, version,
bytes of the shard) alone, so its result on a shard can be kept and found again whatever corpus the shard is part of. That
is also why the document number is not among the columns that a step sees: it belongs to the view (`Corpus`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, NamedTuple

from upslope.config import Config, Open

if TYPE_CHECKING:
    import numpy as np
    import pyarrow as pa

    from upslope.machine.context import Context


class Reject(NamedTuple):
    """A record that could not be read whole. record: where it stands (line, offset, path, URL); why: one line."""

    record: str
    why: str


class Read(Config):
    """Reads one file into raw pages: dictionaries with the columns of a page shard, or a `Reject`."""

    version: ClassVar[int] = 1

    def __call__(self, file: Path) -> Iterator[Mapping[str, object] | Reject]:
        """Rows in file order; never raises for a bad record."""
        raise NotImplementedError


class Rewrite(Config):
    """Turns rows into rows with new text, one for one and in order; a row with nothing left gets the text ""."""

    version: ClassVar[int] = 1

    def __call__(self, batch: pa.RecordBatch) -> tuple[pa.RecordBatch, pa.RecordBatch]:
        """(text rows, columns that describe what was done)."""
        raise NotImplementedError


class Annotate(Open):
    """Computes columns about rows: same rows, same order. NULL means not computed (or not meaningful), and never drops.

    gives: field → Arrow type name ("int32", "float32", "bool", "string"). In rules the fields are `NAME.field`, where NAME is
    `name`, or the kind if that is empty. Floats must be finite: NaN and infinity are refused, NULL says "not computed".
    """

    home: ClassVar[str] = "upslope.data.annotators"
    version: ClassVar[int] = 1
    gives: ClassVar[Mapping[str, str]] = {}

    name: str = ""

    @property
    def column(self) -> str:
        """The name under which rules find the fields."""
        return self.name or str(getattr(type(self), "kind", type(self).__name__.lower())).rpartition(":")[2]

    def bind(self, ctx: Context) -> Annotate:
        """The step with its inputs and outside data resolved, so that its config says everything that it depends on."""
        return self

    def __call__(self, batch: pa.RecordBatch) -> pa.RecordBatch:
        """Columns `gives` for the rows of the batch."""
        raise NotImplementedError


class Link(Config):
    """Finds copies. `keys` brings candidates together (any number of keys a row); `verify` measures each pair exactly.

    A pair becomes an edge if its similarity is at least `threshold`.
    """

    version: ClassVar[int] = 1

    threshold: float = 1.0

    def keys(self, batch: pa.RecordBatch) -> tuple[np.ndarray, np.ndarray]:
        """(row (n,) int64 within the batch, key (n,) uint64): rows that share a key are candidates."""
        raise NotImplementedError

    def verify(self, texts: Mapping[int, str], pairs: np.ndarray) -> np.ndarray:
        """Similarity in [0, 1], (n,) float32, of pairs (n, 2) of document numbers, computed on the texts themselves."""
        raise NotImplementedError


class Rule(Config):
    """A named condition that a document must meet: one DuckDB predicate over the view's columns.

    keep: e.g. `gopher.words between 50 and 100000`. FALSE drops; NULL (not computed) keeps, and the funnel counts it.
    """

    name: str
    keep: str
