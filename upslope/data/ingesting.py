"""Ingest as map work: sources → parts (a big file, or up to 256 small ones) → page shards and a reject ledger a part."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

from upslope.config import Config, Source
from upslope.data.protocol import Reject
from upslope.data.readers import SUFFIXES, ReadFile
from upslope.machine.context import Shard
from upslope.machine.files import digest_file, read_json, walk, write_json

SHARD_BYTES = 64 << 20


class IngestShard(Config):
    """Reads the files of a part into page shards of at most `rows` pages (or 64 MiB)."""

    version: ClassVar[int] = 1

    read: ReadFile
    rows: int = 256

    def __call__(self, shard: Path, out: Path) -> None:
        """shard: a part as `parts` describes it; out: 00000.parquet …, rejects.parquet, part.json {records}."""
        from upslope.data import shards

        pages: list[Any] = []
        rejects: list[dict[str, str]] = []
        size = number = records = 0

        def flush() -> None:
            nonlocal size, number
            if pages:
                shards.write(out / f"{number:05d}.parquet", shards.rows_to_table(pages, shards.PAGE))
                number, size = number + 1, 0
                pages.clear()

        for name, path in read_json(shard)["files"]:
            for row in self.read(Path(path), name):
                if isinstance(row, Reject):
                    rejects.append({"file": name, "record": row.record, "why": row.why})
                    records += not row.why.startswith("cut:")
                    continue
                records += 1
                pages.append(row)
                size += len(row["html"])  # type: ignore[arg-type]
                if len(pages) >= self.rows or size >= SHARD_BYTES:
                    flush()
        flush()
        shards.write(out / "rejects.parquet", shards.rows_to_table(rejects, shards.REJECT))
        write_json(out / "part.json", {"records": records})


def parts(sources: Sequence[Source], folder: Path, group: int = 256) -> list[Shard]:
    """Divides sources into parts, each described by a file below `folder`; a part's digest is that of its files' names and bytes.

    Files in a folder are taken in the order of their relative paths; page-sized files (HTML, text) go `group` to a part.
    """
    found: list[Shard] = []

    def part(files: list[tuple[str, Path]]) -> None:
        h = hashlib.blake2b(digest_size=16)
        for name, path in files:
            h.update(f"{name}\0{digest_file(path)}\n".encode())
        described = folder / f"{len(found):05d}.json"
        write_json(described, {"files": [[name, str(path.absolute())] for name, path in files]})
        found.append(Shard(described, h.hexdigest()))

    for source in sources:
        root = source.path()
        files = [(f.relative_to(root).as_posix(), f) for f in walk(root)] if root.is_dir() else [(root.name, root)]
        small: list[tuple[str, Path]] = []
        for name, path in files:
            if SUFFIXES.get(Path(name.removesuffix(".gz")).suffix.lower()) in ("html", "text"):
                small.append((name, path))
            else:
                part([(name, path)])
        for at in range(0, len(small), group):
            part(small[at : at + group])
    return found
