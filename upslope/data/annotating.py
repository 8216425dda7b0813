"""Annotation as map work: an `Annotate` step on a text shard → a sidecar bound to the shard by its digest."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from upslope.config import Config, UsageError
from upslope.data.protocol import Annotate, Step
from upslope.machine.files import atomic, digest_file, read_json, write_json

if TYPE_CHECKING:
    import pyarrow as pa

    from upslope.data.artifacts import Corpus
    from upslope.machine.context import Shard

BATCH = 512


class AnnotateShard(Config):
    """Applies one step to the living rows of one shard: columns.parquet, NULL for the other rows. Refuses a wrong row count, a wrong
    column, NaN and infinity."""

    version: ClassVar[int] = 2

    step: Annotate
    step_version: int

    def __call__(self, shard: Path, out: Path) -> None:
        """shard: a text shard, or a part (`parts`)."""
        import numpy as np
        import pyarrow as pa

        from upslope.data import shards

        schema = _schema(self.step)
        found = []
        at = 0
        for batch, alive in read_part(shard, BATCH):
            chosen = batch if alive is None else batch.filter(alive)
            columns = checked(self.step, self.step(chosen), chosen, at)
            if alive is not None:
                places = np.cumsum(alive.to_numpy(zero_copy_only=False)) - 1
                columns = columns.take(pa.array(places, mask=~alive.to_numpy(zero_copy_only=False)))
            found.append(columns)
            at += batch.num_rows
        name = f"{self.step.column}@{self.step_version}"
        shards.write(out / "columns.parquet", pa.Table.from_batches(found, schema), {"text": digest_file(text_of(shard)), "step": name})


def parts(view: Corpus, folder: Path, living: bool) -> list[Shard]:
    """The units of work on a view: its text shards; with `living`, each with the bitmap of the rows that still live.

    A part's digest is that of the text and of the bitmap, so a decision that changes computes only the shards that it touches.
    """
    import numpy as np

    from upslope.machine.context import Shard

    if not living or not view.body["keep"]:
        return [Shard(f.path, f.digest) for f in view.files()]
    found, at = [], 0
    for number, file in enumerate(view.files()):
        mask = np.packbits(view.kept()[at : at + file.rows])
        at += file.rows
        described = folder / f"{number:05d}.json"
        with atomic(described.with_suffix(".npy")) as temporary, open(temporary, "wb") as f:
            np.save(f, mask)
        write_json(described, {"text": str(file.path.absolute()), "rows": file.rows})
        found.append(Shard(described, hashlib.blake2b(f"{file.digest}\n".encode() + mask.tobytes(), digest_size=16).hexdigest()))
    return found


def text_of(shard: Path) -> Path:
    """The text shard of a unit of work."""
    return Path(read_json(shard)["text"]) if shard.suffix == ".json" else shard


def read_part(shard: Path, rows: int) -> Iterator[tuple[pa.RecordBatch, pa.BooleanArray | None]]:
    """Batches of a unit of work, each with which of its rows live (None = all)."""
    import numpy as np
    import pyarrow as pa
    import pyarrow.parquet as pq

    alive = None
    if shard.suffix == ".json":
        alive = np.unpackbits(np.load(shard.with_suffix(".npy")), count=read_json(shard)["rows"]).astype(bool)
    at = 0
    for batch in pq.ParquetFile(text_of(shard)).iter_batches(batch_size=rows):
        yield batch, None if alive is None else pa.array(alive[at : at + batch.num_rows])
        at += batch.num_rows


def _schema(step: Step) -> pa.Schema:
    import pyarrow as pa

    return pa.schema([(n, pa.type_for_alias(t)) for n, t in type(step).gives.items()])


def checked(step: Step, columns: pa.RecordBatch, rows: pa.RecordBatch, at: int) -> pa.RecordBatch:
    """The columns that a step gave, cast to what it declares. at: number of the batch's first row in its shard."""
    import pyarrow as pa

    name, schema = step.column, _schema(step)
    if columns.num_rows != rows.num_rows and schema.names:
        raise UsageError(
            f"annotator {name!r} gave {columns.num_rows} rows for {rows.num_rows}\n"
            "way out: one row for each row, in order; NULL where there is no value"
        )
    if columns.schema.names != schema.names:
        raise UsageError(f"annotator {name!r} gave the columns {columns.schema.names}; its `gives` says {schema.names}")
    columns = pa.RecordBatch.from_arrays([columns[f.name].cast(f.type) for f in schema], schema=schema)
    for field in schema:
        if pa.types.is_floating(field.type):
            _finite(columns[field.name], f"annotator {name!r}, field {field.name!r}", rows["url"], at)
    return columns


def _finite(column: pa.Array, what: str, urls: pa.Array, at: int) -> None:
    import pyarrow.compute as pc

    bad = pc.fill_null(pc.invert(pc.is_finite(column)), False).to_pylist()
    if any(bad):
        row = bad.index(True)
        where = f"row {at + row} ({urls[row].as_py()})"
        raise UsageError(f"{what} is {column[row].as_py()} for {where}\nway out: give NULL where there is no value")
