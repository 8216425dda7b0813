"""Records of JSON lines, JSON arrays, parquet and Arrow files, one at a time, with what is wrong with each."""

from __future__ import annotations

import codecs
import io
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from upslope.data.readers.streams import CHUNK, Damaged, Raw, Slice, find_member, unpacked

BATCH = 64
BLANK = re.compile(r"[\s,]*")


class Item(NamedTuple):
    """A record. where: FILE:LINE or FILE#ROW. value: None if it is lost. notes: why it is lost, or what was altered in it."""

    where: str
    value: Any
    notes: tuple[str, ...] = ()
    lost: bool = False


def items(file: Path, form: str, name: str, start: int = 0, stop: int | None = None, first: int = 0, cap: int = 64 << 20) -> Iterator[Item]:
    """Records of a file (form: jsonl, json, parquet, arrow) or of a part of it.

    start, stop: bytes (jsonl), row groups (parquet) or batches (arrow); json is read whole. first: lines or rows before `start`.
    cap: longer lines are lost, never held. Never raises for what is in the file.
    """
    if form == "jsonl":
        yield from _lines(file, name, start, stop, first, cap)
    elif form == "json":
        yield from _values(file, name, cap)
    else:
        yield from _table(file, name, form, start, stop, first)


def parse(text: str | bytes) -> tuple[Any, tuple[str, ...]]:
    """(value, notes) of one JSON text; ValueError if it is none.

    Bytes that are not UTF-8 are decoded as pages are; of repeated keys the last counts.
    """
    notes: list[str] = []
    if isinstance(text, bytes):
        text = text.removeprefix(codecs.BOM_UTF8)
        try:
            decoded = text.decode("utf-8")
        except UnicodeDecodeError as e:
            from upslope.data.extract.charset import decode

            found = decode(text)
            notes.append(f"bad characters: byte {e.start} is not UTF-8; read as {found.codec}")
            decoded = found.text
        text = decoded
    try:
        value = _OBJECTS.decode(text)
    except _Repeated as e:
        notes.append(f"repeated key: {str(e)[:40]!r} occurs more than once; the last counts")
        value = json.loads(text)
    except RecursionError:
        raise ValueError("nested too deeply") from None
    return value, tuple(notes)


class _Repeated(Exception):
    """A key that occurs more than once in an object."""


def _pairs(found: list[tuple[str, Any]]) -> dict[str, Any]:
    out = dict(found)
    if len(out) != len(found):
        keys = [k for k, _ in found]
        raise _Repeated(next(k for k in out if keys.count(k) > 1))
    return out


_OBJECTS = json.JSONDecoder(object_pairs_hook=_pairs)


def why(error: ValueError) -> str:
    """What is wrong with a JSON text, in a few words."""
    if isinstance(error, json.JSONDecodeError):
        return f"{error.msg.removesuffix(' at')} at column {error.colno}"
    return str(error)[:80]


def _lines(file: Path, name: str, start: int, stop: int | None, first: int, cap: int) -> Iterator[Item]:
    number = first
    with Slice(file, start, stop) as source:
        kind, read = unpacked(source)
        lines = io.BufferedReader(Raw(read), CHUNK)
        while True:
            number += 1
            where = f"{name}:{number}"
            try:
                line = lines.readline(cap + 1)
                if not line:
                    return
                if len(line) > cap and not line.endswith(b"\n"):
                    size = len(line)
                    while (rest := lines.readline(CHUNK)) and not rest.endswith(b"\n"):
                        size += len(rest)
                    yield Item(where, None, (f"line too long: {size + len(rest):,} bytes, at most {cap:,} are read",), True)
                    continue
            except Damaged as e:
                what = "decompression bomb" if e.bomb else f"truncated {kind}" if e.ended else f"damaged {kind}"
                further = find_member(source, e.at + 1, _object) if kind == "gzip" else None
                goes = "the rest was not read" if further is None else "reading goes on at the next member"
                yield Item(where, None, (f"{what}: after line {number - 1}: {str(e).removeprefix(f'{what}: ')}; {goes}",), True)
                if further is None:
                    return
                source.seek(further)
                lines = io.BufferedReader(Raw(unpacked(source)[1]), CHUNK)
                continue
            if number == 1 and line.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
                yield Item(where, None, ("UTF-16: JSON lines must be UTF-8; the file was not read",), True)
                return
            if line.strip():
                try:
                    value, notes = parse(line)
                except ValueError as e:
                    yield Item(where, None, (f"broken JSON: line {number}: {why(e)}",), True)
                    continue
                yield Item(where, value, notes)


def _object(head: bytes) -> bool:
    """Whether bytes are the start of a JSON object."""
    return head.lstrip().startswith(b"{")


def _values(file: Path, name: str, cap: int) -> Iterator[Item]:
    """An array, or values one behind the other: as each is complete."""
    decoder = codecs.getincrementaldecoder("utf-8-sig")("surrogateescape")
    scan = json.JSONDecoder()
    text, at, number, ended, closed = "", 0, 0, False, False
    array: bool | None = None
    with Slice(file) as source:
        kind, read = unpacked(source)

        def more(size: int) -> str:
            data = b""
            while len(data) < size and (piece := read(size - len(data))):
                data += piece
            return decoder.decode(data, final=not data) if data else ""

        while True:
            try:
                if not ended and len(text) - at < CHUNK:
                    piece = more(16 * CHUNK)
                    text, at, ended = text[at:] + piece, 0, not piece
                at = BLANK.match(text, at).end()  # type: ignore[union-attr]
                if at >= len(text):
                    if not ended:
                        continue
                    if array:
                        yield Item(f"{name}#{number + 1}", None, ("broken JSON: the array is not closed",), True)
                    return
                if array is None:
                    array = text[at] == "["
                    at += array
                    continue
                if array and text[at] == "]":
                    at, array = at + 1, False
                    closed = True
                    continue
                if closed:
                    raise ValueError("there is more behind the end of the array")
                while True:
                    try:
                        value, end = scan.raw_decode(text, at)
                        if end < len(text) or ended:
                            break
                        problem = "a number without end"
                    except json.JSONDecodeError as e:
                        problem = f"{e.msg}, {e.pos - at} characters into it"
                        if ended or (not e.msg.startswith("Unterminated") and len(text) - e.pos > 64):
                            raise ValueError(problem) from None
                    if len(text) - at > cap:
                        raise ValueError(f"it is longer than {cap:,} characters")
                    piece = more(max(16 * CHUNK, len(text) - at))
                    text, at, ended = text[at:] + piece, 0, not piece
                number, at = number + 1, end
                yield Item(f"{name}#{number}", value)
            except Damaged as e:
                what = f"{'truncated' if e.ended else 'damaged'} {kind}"
                yield Item(f"{name}#{number + 1}", None, (f"{what}: {e}; the rest was not read",), True)
                return
            except (ValueError, RecursionError) as e:
                what = str(e)[:100] if isinstance(e, ValueError) else "nested too deeply"
                yield Item(f"{name}#{number + 1}", None, (f"broken JSON: {what}; the rest was not read",), True)
                return


def batches(file: Path, form: str, start: int = 0, stop: int | None = None) -> Iterator[Any]:
    """Record batches of a parquet or Arrow file (stream or file format), of row groups or batches [start, stop)."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    if form == "parquet":
        with pq.ParquetFile(file) as table:
            groups = list(range(start, table.num_row_groups if stop is None else min(stop, table.num_row_groups)))
            yield from table.iter_batches(batch_size=BATCH, row_groups=groups)
        return
    with pa.memory_map(str(file)) as mapped:
        for i, batch in enumerate(arrow(mapped)):
            if stop is not None and i >= stop:
                return
            for at in range(0, batch.num_rows if i >= start else 0, BATCH):
                yield batch.slice(at, BATCH)


def arrow(mapped: Any) -> Iterator[Any]:
    """The batches of an open Arrow file, stream or file format."""
    import pyarrow as pa

    head = mapped.read(6)
    mapped.seek(0)
    if head == b"ARROW1":
        reader = pa.ipc.open_file(mapped)
        yield from map(reader.get_batch, range(reader.num_record_batches))
    else:
        yield from pa.ipc.open_stream(mapped)


def _table(file: Path, name: str, form: str, start: int, stop: int | None, first: int) -> Iterator[Item]:
    number = first
    try:
        for batch in batches(file, form, start, stop):
            for value, notes in _rows(batch):
                number += 1
                yield Item(f"{name}#{number}", value, notes)
    except Exception as e:  # whatever a damaged file makes the library raise: a file is read as far as it goes
        what = str(e).splitlines()[0][:120] if str(e) else type(e).__name__
        where = f"{name}#{number + 1}" if number else name
        yield Item(where, None, (f"damaged {form}: {what}" + (f"; after row {number} nothing was read" if number else ""),), True)


def _rows(batch: Any) -> Iterator[tuple[dict[str, Any], tuple[str, ...]]]:
    """Rows as dictionaries. A text that is not UTF-8 and a time that no calendar has are noted; anything else that is wrong raises."""
    import pyarrow as pa

    columns = []
    for column, field in zip(batch.columns, batch.schema):
        try:
            column.validate(full=True)
        except pa.ArrowInvalid:
            plain = {pa.string(): pa.binary(), pa.large_string(): pa.large_binary()}.get(field.type)
            if plain is None:
                raise
            column = pa.Array.from_buffers(plain, len(column), column.buffers(), offset=column.offset)
            column.validate(full=True)  # offsets that lead nowhere must not be followed
        columns.append(column)
    try:
        if all(c.type == f.type for c, f in zip(columns, batch.schema)):
            for row in batch.to_pylist():
                yield row, ()
            return
    except (ValueError, OverflowError, ArithmeticError):
        pass
    for i in range(batch.num_rows):
        row, notes = {}, []
        for column, field in zip(columns, batch.schema):
            row[field.name], bad = _cell(column[i], column.type == field.type)
            notes += [f"bad value: {field.name[:40]!r} is {bad}"] if bad else []
        yield row, tuple(notes)


def _cell(scalar: Any, sound: bool) -> tuple[Any, str]:
    try:
        value = scalar.as_py()
    except (ValueError, OverflowError, ArithmeticError) as e:
        return None, f"not readable ({str(e)[:60]})"
    if sound or value is None:
        return value, ""
    try:
        return value.decode("utf-8"), ""
    except UnicodeDecodeError:
        from upslope.data.extract.charset import decode

        found = decode(value)
        return found.text, f"not UTF-8; read as {found.codec}"
