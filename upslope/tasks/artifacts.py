"""Tasks on disk: one parquet file, split by the canonical problem."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from upslope.config import UsageError, canonical_json
from upslope.machine.files import atomic
from upslope.machine.stage import Artifact
from upslope.tasks.task import Task

Split = Literal["train", "heldout"]
COLUMNS = ("id", "family", "level", "split", "canonical", "messages", "tools", "truth")


@dataclass(frozen=True)
class Tasks(Artifact):
    """`tasks.parquet`: id, family, level, split, canonical (the problem irrespective of wording), messages, tools, truth (JSON).

    No canonical problem is in both splits.
    """

    @classmethod
    def write(cls, folder: Path, rows: Iterable[tuple[Task, Split, str]]) -> Tasks:
        """Writes (task, split, canonical problem) rows; UsageError for a repeated id or a problem in both splits."""
        import pyarrow as pa
        import pyarrow.parquet as pq

        columns: dict[str, list[object]] = {name: [] for name in COLUMNS}
        ids: set[str] = set()
        where: dict[str, Split] = {}
        for task, split, canonical in rows:
            if task.id in ids:
                raise UsageError(f"task id {task.id!r} occurs twice\nway out: ids name one prompt each")
            if where.setdefault(canonical, split) != split:
                raise UsageError(f"problem {canonical} is in both splits (task {task.id})\nway out: split by the canonical problem")
            ids.add(task.id)
            values = (
                task.id,
                task.family,
                float(task.level),
                split,
                canonical,
                _text(list(task.messages)),
                _text(list(task.tools)),
                _text(task.truth),
            )
            for name, value in zip(COLUMNS, values, strict=True):
                columns[name].append(value)
        schema = pa.schema([(name, pa.float64() if name == "level" else pa.string()) for name in COLUMNS])
        with atomic(folder / "tasks.parquet") as file:
            pq.write_table(pa.table(columns, schema=schema), file, compression="zstd", row_group_size=65536)
        return cls.load(folder)

    def read(self, split: Split | None = None) -> list[Task]:
        """The tasks of a split (of both for None), in file order."""
        import pyarrow.parquet as pq

        if split not in (None, "train", "heldout"):
            raise UsageError(f"split = {split!r}: 'train' or 'heldout'")
        table = pq.read_table(self.path / "tasks.parquet")
        return [
            Task(r["id"], r["family"], tuple(json.loads(r["messages"])), tuple(json.loads(r["tools"])), json.loads(r["truth"]), r["level"])
            for r in table.to_pylist()
            if split is None or r["split"] == split
        ]


def _text(value: object) -> str:
    return canonical_json(value).decode()
