"""Annotation as map work: an `Annotate` step on a text shard → a sidecar bound to the shard by its digest."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from upslope.config import Config, UsageError
from upslope.data.protocol import Annotate
from upslope.machine.files import digest_file

if TYPE_CHECKING:
    import pyarrow as pa

BATCH = 512


class AnnotateShard(Config):
    """Applies one step to one shard: columns.parquet. Refuses a wrong row count, a wrong column, NaN and infinity."""

    version: ClassVar[int] = 1

    step: Annotate
    step_version: int

    def __call__(self, shard: Path, out: Path) -> None:
        """shard: a text shard."""
        import pyarrow as pa
        import pyarrow.parquet as pq

        from upslope.data import shards

        name = self.step.column
        schema = pa.schema([(n, pa.type_for_alias(t)) for n, t in type(self.step).gives.items()])
        found = []
        at = 0
        for batch in pq.ParquetFile(shard).iter_batches(batch_size=BATCH):
            columns = self.step(batch)
            if columns.num_rows != batch.num_rows:
                raise UsageError(
                    f"annotator {name!r} gave {columns.num_rows} rows for {batch.num_rows}\n"
                    "way out: one row for each row, in order; NULL where there is no value"
                )
            if columns.schema.names != schema.names:
                raise UsageError(f"annotator {name!r} gave the columns {columns.schema.names}; its `gives` says {schema.names}")
            columns = pa.RecordBatch.from_arrays([columns[f.name].cast(f.type) for f in schema], schema=schema)
            for field in schema:
                if pa.types.is_floating(field.type):
                    _finite(columns[field.name], f"annotator {name!r}, field {field.name!r}", batch["url"], at)
            found.append(columns)
            at += batch.num_rows
        table = pa.Table.from_batches(found, schema)
        shards.write(out / "columns.parquet", table, {"text": digest_file(shard), "step": f"{name}@{self.step_version}"})


def _finite(column: pa.Array, what: str, urls: pa.Array, at: int) -> None:
    import pyarrow.compute as pc

    bad = pc.fill_null(pc.invert(pc.is_finite(column)), False).to_pylist()
    if any(bad):
        row = bad.index(True)
        where = f"row {at + row} ({urls[row].as_py()})"
        raise UsageError(f"{what} is {column[row].as_py()} for {where}\nway out: give NULL where there is no value")
