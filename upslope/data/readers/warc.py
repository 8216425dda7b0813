"""WARC records, packed or plain, from any part of a file: damage costs the record that it hits, and reading goes on at the next.

Source: ISO 28500:2017 (WARC 1.1), annex D on compression: a record is a gzip member of its own.
"""

from __future__ import annotations

import contextlib
import re
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

from upslope.data.protocol import Reject
from upslope.data.readers.streams import CHUNK, Damaged, Gzip, Reader, Slice, decompressor, find_member, header_end

HEADERS = 256 << 10
BOUNDARY = re.compile(rb"(?:\r\n\r\n|\n\n)(?=WARC/[01]\.)")


class Record(NamedTuple):
    """A record. where: FILE@OFFSET of its first byte (of its gzip member; @OFFSET+INNER for a later record of the same member).

    headers: by lower-case name. body: its first bytes, `cap` at most. length: how many it has.
    """

    where: str
    headers: dict[str, str]
    body: bytes
    length: int

    @property
    def label(self) -> str:
        """Where it stands, and its address."""
        return f"{self.where} {self.headers.get('warc-target-uri', '')}".rstrip()


class Unfinished(NamedTuple):
    """The last record runs past the end of the part, at least up to offset `upto`: the part begins or ends within a record."""

    upto: int


def is_warc(head: bytes) -> bool:
    """Whether bytes are the start of a record."""
    return head.startswith(b"WARC/")


def records(file: Path, name: str, start: int = 0, stop: int | None = None, cap: int = 1 << 30) -> Iterator[Record | Reject | Unfinished]:
    """The records of the bytes [start, stop) in file order.

    A record begins at `start`; where none begins at `stop`, an Unfinished comes last. cap: how much of a body is held.
    """
    with Slice(file, start, stop) as source:
        head = source.read(4)
        source.seek(start)
        if head.startswith(b"\x1f\x8b"):
            yield from _packed(source, name, cap)
            return
        if head == b"\x28\xb5\x2f\xfd":
            reader = Reader(decompressor("zstd", source.raw))
            try:
                yield from _stream(reader, lambda at: f"{name}@{at}", cap, _forward, None)
            except Damaged as e:
                yield Reject(name, f"damaged archive: {e}, after {reader.at} unpacked bytes; the rest was not read")
            return

        def again(_: Reader, after: int) -> Reader | None:
            found = find_record(source, after)
            return None if found is None else _at(source, found)

        yield from _stream(_at(source, start), lambda at: f"{name}@{at}", cap, again, source)


def _at(source: Slice, at: int) -> Reader:
    source.seek(at)
    reader = Reader(source.read)
    reader.at = at
    return reader


def _packed(source: Slice, name: str, cap: int) -> Iterator[Record | Reject | Unfinished]:
    gz, said, found = Gzip(source), "", True
    members = _Members(gz)
    while found:
        try:
            if not members.begin():
                return
            reader, member = Reader(members.read), gz.start
            members.reader = reader
            for place in _stream(reader, lambda at, m=member: f"{name}@{m}" + (f"+{at}" if at else ""), cap, _forward, None):  # type: ignore[misc]
                said = place.record.partition(" ")[0] if isinstance(place, Reject) else said
                yield place
        except Damaged as e:
            if e.ended and source.stop < source.size:
                yield Unfinished(source.stop + (source.stop - gz.start))
                return
            where = e.record or _label(source, name, e.at)
            why = str(e) if e.bomb else f"truncated record: {e}" if e.ended else f"damaged archive: {e}"
            if where.partition(" ")[0] != said:
                yield Reject(where, f"{why}; reading goes on at the next member")
            found = gz.resync(e.at + 1, is_warc)
            members = _Members(gz)


class _Members:
    """Gzip members as streams of records: a record that its member does not hold whole goes on in the next, unless that starts a record."""

    def __init__(self, gz: Gzip) -> None:
        self.gz, self.first, self.held, self.reader = gz, b"", b"", Reader(gz.read)
        self.trouble: Damaged | None = None

    def begin(self) -> bool:
        """Goes to the member that was looked into, or to the next."""
        if self.trouble:
            raise self.trouble
        self.first, self.held = self.held, b""
        return bool(self.first) or self.gz.begin()

    def read(self, size: int) -> bytes:
        """Bytes of the record, or of what follows it in its member."""
        if self.first or self.held or self.trouble:
            data, self.first = self.first, b""
            return data
        data = self.gz.read(size)
        if data or not self.reader.inside:
            return data
        try:
            while not data:
                if not self.gz.begin():
                    return b""
                data = self.gz.read(size)
                while 0 < len(data) < 5 and (more := self.gz.read(size)):
                    data += more
        except Damaged as e:  # what comes before it is whole, or says itself that it is not
            self.trouble = e
            return b""
        if is_warc(data):
            self.held = data
            return b""
        return data


def _label(source: Slice, name: str, at: int) -> str:
    """Place and address of a record from the start of its member, as far as that can be unpacked."""
    source.seek(at)
    z, head = zlib.decompressobj(31), b""
    with contextlib.suppress(zlib.error):
        while len(head) < 1024 and (piece := source.read(64)):  # small pieces: with an error goes what its call had unpacked
            head += z.decompress(piece)
    return Record(f"{name}@{at}", _fields(head) if is_warc(head) else {}, b"", 0).label


def _stream(
    reader: Reader, where: Callable[[int], str], cap: int, again: Callable[[Reader, int], Reader | None], source: Slice | None
) -> Iterator[Record | Reject | Unfinished]:
    """Records one behind the other. again: goes to the next record at or after an offset. source: where reading can go back in it."""
    following: Reader | None = reader
    while following is not None:
        reader = following
        while blank := len(head := reader.peek(64)) - len(head.lstrip(b"\r\n")):
            reader.take(blank)
        if not head:
            return
        at, reader.inside = reader.at, True
        head = reader.peek(64)
        block = reader.block(HEADERS) if is_warc(head) else None
        headers = _fields(block) if block is not None else {}
        declared = headers.get("content-length", "")
        if block is None or not (declared.isascii() and declared.isdigit() and len(declared) < 16):
            why = "its header does not end" if is_warc(head) and block is None else f"it starts with {head[:16]!r}"
            yield Reject(where(at), f"broken record: {why if block is None else f'Content-Length is {declared[:20]!r}'}")
            reader.inside = False
            following = again(reader, at + 1)
            continue
        record = Record(where(at), headers, b"", int(declared))
        inside, length = reader.at, record.length
        try:
            if source is None:
                body = reader.take(min(length, cap))
                got = len(body) + reader.skip(length - len(body))
                reader.inside = False
                tail = reader.peek(64)
            else:  # the end first: a false length must not cost the reading of all that it spans
                got, tail = min(length, source.stop - inside), source.look(inside + length, 64)
        except Damaged as e:
            e.record = record.label
            raise
        tail = tail.lstrip(b"\r\n")
        if got < length and source is not None and source.stop < source.size:
            yield Unfinished(inside + length)
            return
        if got == length and (is_warc(tail) or b"WARC/".startswith(tail)):
            if source is not None:
                body = reader.take(min(length, cap))
                reader = reader if len(body) == length else _at(source, inside + length)
                following, reader.inside = reader, False
            yield record._replace(body=body)
            continue
        following = again(reader, inside if source is not None else reader.at)
        if got < length and following is None:
            yield Reject(record.label, f"truncated record: {got} of {length} bytes; the part is not kept")
        else:
            yield Reject(record.label, f"wrong Content-Length: {length} bytes are declared, but no record follows them")


def _forward(reader: Reader, after: int) -> Reader | None:
    """Goes on to the next record of a stream that cannot go back."""
    while len(block := reader.peek(CHUNK)) > 8:
        found = BOUNDARY.search(block)
        reader.take(found.end() if found else max(1, len(block) - 12))
        if found:
            return reader
        if len(block) < CHUNK:
            return None
    return None


def find_record(source: Slice, after: int) -> int | None:
    """Offset of the first plain record (behind a blank line) at or after `after`; None if there is none in the slice."""
    at = max(0, after - 4)
    source.seek(at)
    kept = b""
    while data := source.read():
        block, base = kept + data, at - len(kept)
        at += len(data)
        for found in BOUNDARY.finditer(block):
            if base + found.end() >= after:
                return base + found.end()
        kept = block[-16:]
    return None


def find_start(file: Path, after: int, packed: bool) -> int | None:
    """Where a part may begin: the first byte at or after `after` that looks like a record's."""
    with Slice(file) as source:
        return find_member(source, after, is_warc) if packed else find_record(source, after)


def _fields(block: bytes) -> dict[str, str]:
    """Header lines → values by lower-case name; the first of a name counts, folded lines are joined."""
    try:
        text = block.decode("utf-8")
    except UnicodeDecodeError:
        text = block.decode("latin-1")
    out: dict[str, str] = {}
    last = ""
    for line in text.split("\n")[1:]:
        line = line.rstrip("\r")
        if line[:1] in (" ", "\t") and last:
            out[last] += " " + line.strip()
            continue
        key, sign, value = line.partition(":")
        last = key.strip().lower() if sign else ""
        if last and last not in out:
            out[last] = value.strip()
        elif sign:
            last = ""
    return out


def http(body: bytes) -> tuple[int, dict[str, str], bytes] | None:
    """(status, headers, payload) of an HTTP response; None if it ends before its headers do, or has no status."""
    end = header_end(body, HEADERS)
    status = re.match(rb"HTTP/\d(?:\.\d)?[ \t]+(\d{3})", body)
    if not end or not status:
        return None
    return int(status.group(1)), _fields(body[:end]), body[end:]
