"""Where big files may be cut: each part is a range of the file that can be read, and remembered, by itself."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

from upslope.config import UsageError
from upslope.data.readers import sniff
from upslope.data.readers.records import arrow
from upslope.data.readers.streams import CHUNK, GZIP, ZSTD, Slice
from upslope.data.readers.warc import find_start


class Part(NamedTuple):
    """A range of a file. start, stop: bytes; row groups of parquet, batches of Arrow. first: lines or rows before it.

    low, high: the bytes that it depends on, besides `schema` (the format and its columns). stop None: to the end of the file.
    """

    name: str
    path: Path
    start: int
    stop: int | None
    first: int
    low: int
    high: int
    schema: str = ""

    def join(self, other: Part) -> Part:
        """This part and the next as one."""
        return self._replace(stop=other.stop, high=other.high)

    def digest(self) -> str:
        """Of the name, the place and the bytes; of the error, where they cannot be read."""
        place = (self.name, self.start, self.first, self.high - self.low, self.schema)
        h = hashlib.blake2b(repr(place).encode(errors="replace"), digest_size=16)
        try:
            if not self.path.is_file():  # a pipe would be waited for
                return h.hexdigest()
            with Slice(self.path, self.low, self.high) as source:
                while data := source.read(1 << 20):
                    h.update(data)
        except OSError as e:
            h.update(f"\0{e.errno}".encode())
        return h.hexdigest()


def cut(path: Path, name: str, size: int) -> tuple[list[Part], str]:
    """(parts of about `size` bytes in file order, "" or why a bigger file is one part)."""
    try:
        total = path.stat().st_size if path.is_file() else 0
    except OSError:
        total = 0
    whole = Part(name, path, 0, None, 0, 0, total)
    if total <= size:
        return [whole], ""
    try:
        form = sniff(path)
        with open(path, "rb") as f:
            head = f.read(4)
        packed, whole = head.startswith(GZIP), whole._replace(schema=form)
        if head == ZSTD or (packed and form != "warc"):
            return [whole], f"{'zstd' if head == ZSTD else 'gzip'} cannot be entered in the middle"
        if form == "warc":
            starts = list(_starts(lambda at: find_start(path, at, packed), size, total))
            found = _ranges(whole, starts, [0] * len(starts))
            return found, "one gzip member holds all of it: nowhere to enter" if len(found) == 1 and packed else ""
        if form == "jsonl":
            starts = list(_starts(lambda at: _line(path, at), size, total))
            return _ranges(whole, starts, _lines(path, starts)), ""
        if form in ("parquet", "arrow"):
            groups = list(_groups(path, form))
            return _grouped(whole._replace(schema=f"{form} {_schema(path, form)}" if groups else form), groups, size), ""
        return [whole], "a JSON array cannot be entered in the middle" if form == "json" else ""
    except (UsageError, OSError):
        return [whole], ""


def _starts(find: Callable[[int], int | None], size: int, total: int) -> Iterator[int]:
    yield 0
    last = 0
    for nominal in range(size, total, size):
        if nominal <= last:
            continue
        at = find(nominal)
        if at is None or at >= total:
            return
        yield at
        last = at


def _ranges(whole: Part, starts: list[int], firsts: list[int]) -> list[Part]:
    if len(starts) == 1:
        return [whole]
    ends = [*starts[1:], whole.high]
    return [whole._replace(start=a, stop=b, first=n, low=a, high=b) for a, b, n in zip(starts, ends, firsts)]


def _line(path: Path, after: int) -> int | None:
    """Start of the first line at or after an offset."""
    with Slice(path, after - 1) as source:
        while data := source.read(CHUNK):
            if (found := data.find(b"\n")) >= 0:
                return source.at - len(data) + found + 1
    return None


def _lines(path: Path, starts: list[int]) -> list[int]:
    """How many lines are before each start."""
    counts, total = [0], 0
    for low, high in zip(starts, starts[1:]):
        with Slice(path, low, high) as source:
            while data := source.read(1 << 20):
                total += data.count(b"\n")
        counts.append(total)
    return counts


def _groups(path: Path, form: str) -> Iterator[tuple[int, int, int]]:
    """(first byte, last byte + 1, rows) of each row group or batch; nothing for a file that cannot be read so."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        if form == "parquet":
            with pq.ParquetFile(path) as file:
                for i in range(file.metadata.num_row_groups):
                    group = file.metadata.row_group(i)
                    columns = [group.column(c) for c in range(group.num_columns)]
                    starts = [min(x for x in (c.dictionary_page_offset, c.data_page_offset) if x is not None) for c in columns]
                    yield min(starts), max(s + c.total_compressed_size for s, c in zip(starts, columns)), group.num_rows
            return
        with pa.memory_map(str(path)) as mapped:
            last = 0
            for batch in arrow(mapped):
                at = mapped.tell()
                yield last, max(at, last), batch.num_rows
                last = max(at, last)
    except Exception:  # whatever a damaged file makes the library raise: the reader will say it
        return


def _schema(path: Path, form: str) -> str:
    """The columns and their types, as text."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    if form == "parquet":
        return str(pq.read_schema(path))
    with pa.memory_map(str(path)) as mapped:
        return str(next(arrow(mapped)).schema)


def _grouped(whole: Part, groups: list[tuple[int, int, int]], size: int) -> list[Part]:
    """Runs of groups of at least `size` bytes; the last goes to the end of the file, whatever is there."""
    found: list[Part] = []
    start = first = rows = 0
    for i, (_, high, count) in enumerate(groups):
        rows += count
        if high - groups[start][0] >= size and i < len(groups) - 1:
            found.append(whole._replace(start=start, stop=i + 1, first=first, low=groups[start][0], high=high))
            start, first = i + 1, rows
    return [*found, whole._replace(start=start, first=first, low=groups[start][0])] if found else [whole]
