"""What a data step is: four verbs that never drop a row, and one decision that does.

    Read       a file            → rows of raw pages (what cannot be read goes to the reject ledger)
    Rewrite    text              → new text, row for row ("" where nothing is left)
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

    from upslope.data.artifacts import Corpus
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


class Step(Open):
    """A step on text rows that gives columns.

    gives: field → Arrow type name ("int32", "float32", "bool", "string"). In rules the fields are `NAME.field`, where NAME is
    `name`, or the kind if that is empty. Floats must be finite: NaN and infinity are refused, NULL says "not computed".
    """

    version: ClassVar[int] = 1
    gives: ClassVar[Mapping[str, str]] = {}

    name: str = ""

    @property
    def column(self) -> str:
        """The name under which rules find the fields."""
        return self.name or str(getattr(type(self), "kind", type(self).__name__.lower())).rpartition(":")[2]


class Annotate(Step):
    """Computes columns about rows: same rows, same order. NULL means not computed (or not meaningful), and never drops."""

    home: ClassVar[str] = "upslope.data.annotators"

    def bind(self, ctx: Context) -> Annotate:
        """The step with its inputs and outside data resolved, so that its config says everything that it depends on."""
        return self

    def __call__(self, batch: pa.RecordBatch) -> pa.RecordBatch:
        """Columns `gives` for the rows of the batch."""
        raise NotImplementedError


class Rewrite(Step):
    """Gives rows new text, one for one and in order; a row with nothing left gets the text ""."""

    home: ClassVar[str] = "upslope.data.rewriters"

    def bind(self, ctx: Context) -> Rewrite:
        """The step with its inputs and outside data resolved, so that its config says everything that it depends on."""
        return self

    def __call__(self, batch: pa.RecordBatch) -> tuple[pa.Array, pa.Array | None, pa.RecordBatch]:
        """(new texts, string; their spans, list<`shards.SPAN`>, or None where all is prose; columns `gives` about what was done)."""
        raise NotImplementedError


class Sketch(NamedTuple):
    """What a link remembers of the rows of a batch.

    rows (n,) int64 within the batch and keys (n,) uint64: rows that share a key are candidates. body (rows of the batch, width), of
    one dtype: what `Link.estimate` compares. columns: `Link.gives` for the rows, or None.
    """

    rows: np.ndarray
    keys: np.ndarray
    body: np.ndarray
    columns: pa.RecordBatch | None = None


class Link(Open):
    """Finds copies: keys bring candidates together, and a pair becomes an edge if its similarity is at least `least`.

    The simplest link has `keys` and `verify`. One that overrides `sketch` and `estimate` compares bodies first: pairs whose estimate
    is below least − `slack` are not verified, and with slack 0 the estimate is the similarity and no text is read again. A `dense`
    link compares all rows that share a key, by `within`. gives: columns, found under `NAME.field` as those of an annotator.
    """

    home: ClassVar[str] = "upslope.data.links"
    version: ClassVar[int] = 1
    gives: ClassVar[Mapping[str, str]] = {}
    dense: ClassVar[bool] = False

    @property
    def column(self) -> str:
        """The name under which rules find the fields, and the kind of the edges."""
        return str(getattr(type(self), "kind", type(self).__name__.lower())).rpartition(":")[2]

    @property
    def least(self) -> float:
        """The similarity from which on a pair is an edge."""
        return 1.0

    @property
    def slack(self) -> float | None:
        """How far an estimate may lie below the similarity. None: there is no estimate; 0: it is the similarity."""
        return None

    def bind(self, ctx: Context, view: Corpus) -> Link:
        """The link with all that it must know about the corpus resolved, so that its config says everything that it depends on."""
        return self

    def keys(self, batch: pa.RecordBatch) -> tuple[np.ndarray, np.ndarray]:
        """(row (n,) int64 within the batch, key (n,) uint64): rows that share a key are candidates."""
        raise NotImplementedError

    def sketch(self, batch: pa.RecordBatch) -> Sketch:
        """The keys, and a body a row."""
        import numpy as np

        rows, keys = self.keys(batch)
        return Sketch(rows, keys, np.empty((batch.num_rows, 0), np.uint8))

    def estimate(self, a: np.ndarray, b: np.ndarray) -> np.ndarray:
        """Similarity of pairs of bodies, row by row, (n,) float32."""
        raise NotImplementedError

    def within(self, bodies: np.ndarray, bucket: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """For a dense link: (i, j, similarity) of the edges i < j among rows that share a key; at most about `bucket` a row."""
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
