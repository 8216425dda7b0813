"""Parquet shards: the columns of raw pages, of text and of sidecars, and how they are written (equal rows, equal bytes)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from upslope.config import UsageError
from upslope.machine.files import atomic

PROSE, CODE, MATH, TABLE = range(4)
GROUP = 16 << 20
SPAN = pa.struct([("start", pa.int32()), ("end", pa.int32()), ("kind", pa.int8())])

PAGE = pa.schema(
    [
        ("url", pa.string()),
        ("date", pa.string()),
        ("mime", pa.string()),
        ("charset", pa.string()),
        ("html", pa.binary()),
        ("source", pa.string()),
        ("licence", pa.string()),
        ("record", pa.string()),
    ]
)
"""Raw pages. date: ISO 8601 or "". mime: text/html, or text/plain for records that hold text. charset: as the server named it. record:
where it stands in what was read: FILE@OFFSET (WARC), FILE:LINE, FILE#ROW, or the file's name."""

TEXT = pa.schema(
    [
        ("url", pa.string()),
        ("source", pa.string()),
        ("date", pa.string()),
        ("licence", pa.string()),
        ("lang", pa.string()),
        ("provenance", pa.string()),
        ("parents", pa.list_(pa.string())),
        ("bytes", pa.int32()),
        ("code_bytes", pa.int32()),
        ("math_bytes", pa.int32()),
        ("table_bytes", pa.int32()),
        ("text", pa.string()),
        ("spans", pa.list_(SPAN)),
    ]
)
"""Text rows. lang: as declared by the document, not detected. provenance: crawl, synthetic or import. parents: what a synthetic row
was made from. bytes: length of the text in UTF-8, of which code_bytes, math_bytes and table_bytes are in spans of these kinds. spans:
byte ranges that cover the text, kind 0 prose, 1 code, 2 math, 3 table; NULL where nobody looked, and then all of it is prose."""

REJECT = pa.schema([("file", pa.string()), ("record", pa.string()), ("why", pa.string())])
EDGE = pa.schema([("a", pa.uint64()), ("b", pa.uint64()), ("similarity", pa.float32()), ("kind", pa.string())])


def write(path: Path, table: pa.Table, metadata: Mapping[str, str] | None = None) -> None:
    """Writes a parquet file atomically, zstd, in row groups of about 16 MB, with settings that do not depend on the machine."""
    meta = dict(table.schema.metadata or {})
    meta.update({k.encode(): v.encode() for k, v in (metadata or {}).items()})
    table = table.replace_schema_metadata(meta or None).combine_chunks()
    with atomic(path) as temporary:
        group = GROUP * max(1, table.num_rows) // max(1, table.nbytes)
        pq.write_table(table, temporary, compression="zstd", compression_level=3, row_group_size=min(max(group, 256), 1 << 16))


def rows_to_table(rows: Sequence[Mapping[str, Any]], schema: pa.Schema) -> pa.Table:
    """A table from row dictionaries; absent keys are NULL."""
    return pa.table({f.name: pa.array([r.get(f.name) for r in rows], f.type) for f in schema}, schema=schema)


def rows_to_batch(rows: Sequence[Mapping[str, Any]], schema: pa.Schema) -> pa.RecordBatch:
    """A record batch from row dictionaries; absent keys are NULL."""
    return pa.RecordBatch.from_arrays([pa.array([r.get(f.name) for r in rows], f.type) for f in schema], schema=schema)


def read(path: Path, columns: Sequence[str] | None = None) -> pa.Table:
    """Reads a shard (or some of its columns); UsageError naming the file if it is damaged."""
    try:
        return pq.read_table(path, columns=None if columns is None else list(columns), partitioning=None)
    except (pa.ArrowInvalid, OSError) as e:
        raise UsageError(f"{path.name}: not a readable parquet file ({str(e).splitlines()[0][:120]})") from None


def guard(path: Path) -> tuple[str, int]:
    """(digest of the text that a sidecar was computed on, its rows); UsageError naming the file if it is damaged."""
    try:
        found = pq.read_metadata(path)
    except (pa.ArrowInvalid, OSError) as e:
        raise UsageError(f"{path.name}: not a readable parquet file ({str(e).splitlines()[0][:120]})") from None
    return (found.metadata or {}).get(b"text", b"none").decode(errors="replace"), found.num_rows


def prose(text: bytes, spans: Sequence[Mapping[str, int]] | None) -> bytes:
    """The prose of a text: its spans of kind prose, joined by blank lines; all of it where there are no spans."""
    if spans is None:
        return text
    return b"\n\n".join(text[s["start"] : s["end"]] for s in spans if s["kind"] == PROSE)


def sizes(size: int, spans: Sequence[tuple[int, int, int]] | None) -> dict[str, int]:
    """The columns bytes, code_bytes, math_bytes and table_bytes of a text of `size` bytes with spans (start, end, kind)."""
    by = [0, 0, 0, 0]
    for start, end, kind in spans or ():
        by[kind] += end - start
    return {"bytes": size, "code_bytes": by[CODE], "math_bytes": by[MATH], "table_bytes": by[TABLE]}
