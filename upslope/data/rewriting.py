"""Rewriting as map work: a `Rewrite` step on a text shard → a text shard with the same rows, and a sidecar about what was done."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

from upslope.config import Config, UsageError
from upslope.data.annotating import checked, read_part
from upslope.data.protocol import Rewrite
from upslope.machine.files import digest_file

BATCH = 256


class RewriteShard(Config):
    """Applies one step to the living rows of one shard: text.parquet and columns.parquet. The other rows keep their text."""

    version: ClassVar[int] = 1

    step: Rewrite
    step_version: int

    def __call__(self, shard: Path, out: Path) -> None:
        """shard: a text shard, or a part (`annotating.parts`). UsageError where the step gives other rows, or spans that do not fit."""
        import pyarrow as pa

        from upslope.data import shards

        texts, notes, at = [], [], 0
        for batch, alive in read_part(shard, BATCH):
            chosen = batch if alive is None else batch.filter(alive)
            new, spans, columns = self.step(chosen)
            if len(new) != chosen.num_rows:
                gave = f"rewriter {self.step.column!r} gave {len(new)} texts for {chosen.num_rows}"
                raise UsageError(f"{gave}\nway out: one for each row, in order")
            columns = checked(self.step, columns, chosen, at)
            rows = batch.to_pylist()
            places = range(batch.num_rows) if alive is None else [i for i, lives in enumerate(alive.to_pylist()) if lives]
            done: list[dict[str, object]] = [{} for _ in rows]
            ranged = spans.to_pylist() if spans is not None else [None] * len(new)
            for i, text, span, note in zip(places, new.to_pylist(), ranged, columns.to_pylist()):
                size = len(text.encode())
                ranges = None if span is None else [(s["start"], s["end"], s["kind"]) for s in span]
                if ranges is not None and not _cover(ranges, size):
                    where = f"rewriter {self.step.column!r}, {rows[i]['url']!r}"
                    raise UsageError(f"{where}: the spans do not cover the {size} bytes of the text one after the other")
                rows[i] = {**rows[i], "text": text, "spans": span, **shards.sizes(size, ranges)}
                done[i] = note
            texts.append(shards.rows_to_batch(rows, shards.TEXT))
            notes.append(shards.rows_to_batch(done, columns.schema))
            at += batch.num_rows
        shards.write(out / "text.parquet", pa.Table.from_batches(texts, shards.TEXT))
        name = f"{self.step.column}@{self.step_version}"
        table = pa.Table.from_batches(notes, notes[0].schema if notes else None)
        shards.write(out / "columns.parquet", table, {"text": digest_file(out / "text.parquet"), "step": name})


def _cover(ranges: list[tuple[int, int, int]], size: int) -> bool:
    """Whether ranges follow one another from 0 to `size`."""
    ends = [0, *(end for _, end, _ in ranges)]
    return [start for start, _, _ in ranges] == ends[:-1] and ends[-1] == size
