"""Readers: WARC, JSON, parquet, Arrow, HTML and text files → raw pages; what cannot be read becomes a ledger row with a reason.

Formats are told by content first (magic bytes), then by name, so that a plain file called `.gz` is read or refused for what it is.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import Field, field_validator

from upslope.config import FrozenDict, UsageError, unknown_key
from upslope.data.protocol import Read, Reject
from upslope.data.readers import fields
from upslope.data.readers.records import Item, items
from upslope.data.readers.streams import GZIP, ZSTD, Damaged, Slice, unpacked
from upslope.data.readers.warc import Unfinished, http, records

Row = Mapping[str, object]

SUFFIXES = {
    ".warc": "warc",
    ".wet": "warc",
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".json": "jsonl",
    ".parquet": "parquet",
    ".arrow": "arrow",
    ".html": "html",
    ".htm": "html",
    ".xhtml": "html",
    ".txt": "text",
    ".md": "text",
    ".markdown": "text",
}
"""Format by suffix, behind which .gz or .zst may stand."""

TOKENS = frozenset({".bin", ".idx", ".ds"})
"""Suffixes of token files (Megatron, datatrove), which hold no text."""

KEPT = frozenset({"cut", "bad characters", "bad date", "bad value", "repeated key"})
"""Reasons in the ledger of records that were kept, in part or altered; a record with any other reason is not among the pages."""

CHARSET = re.compile(r"charset\s*=\s*[\"']?\s*([A-Za-z0-9_.:+-]+)", re.I)
PAGES = ("text/html", "application/xhtml+xml", "text/plain")


def lost(why: str) -> bool:
    """Whether a ledger row speaks of a record that is not among the pages."""
    return why.partition(":")[0] not in KEPT


def named(file: Path | str) -> str | None:
    """The format that a file's name promises."""
    name = Path(file).name.lower()
    return SUFFIXES.get(Path(name.removesuffix(".gz").removesuffix(".zst")).suffix)


def sniff(file: Path) -> str:
    """The format of a file: warc, jsonl, json (an array, or values over several lines), parquet, arrow, html or text.

    UsageError with the first bytes where it is none of them, where it is damaged at its start, or cannot be opened.
    """
    name, promised = file.name, named(file)
    try:
        with Slice(file) as source:
            magic = source.read(4)
            source.seek(0)
            kind, read = unpacked(source)
            try:
                head = _up_to(read, 64)
                line = _up_to(read, 1 << 16, b"\n", head) if head.lstrip(b"\xef\xbb\xbf \t\r\n").startswith((b"{", b"[")) else b""
            except Damaged as e:
                if promised:
                    return promised
                raise UsageError(f"{name}: damaged {kind}, nothing can be read ({e})") from None
    except OSError as e:
        raise UsageError(f"{name}: cannot be opened: {e.strerror or e}") from None
    if not kind and name.endswith((".gz", ".zst")) and not head.startswith((b"WARC/", b"{", b"<")):
        packing = "zstd" if name.endswith(".zst") else "gzip"
        hint = "; it may need the dictionary in front: unpack it with zstd -d" if magic == b"\x5d\x2a\x4d\x18" else ""
        raise UsageError(f"{name}: not {packing}: the name ends in {Path(name).suffix}, but it starts with {head[:16]!r}{hint}")
    if head.startswith((GZIP + b"\x08", ZSTD)):
        raise UsageError(f"{name}: packed twice: what comes out of {kind} is packed again; unpack it once")
    if head.startswith(b"WARC/"):
        return "warc"
    if head.startswith(b"PAR1"):
        return "parquet"
    if head.startswith(b"ARROW1") or (promised == "arrow" and head.startswith(b"\xff\xff\xff\xff")):
        return "arrow"
    if promised == "jsonl":
        return "json" if _values(name, line) else "jsonl"
    if promised:
        return promised
    start = head.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if start.startswith((b"<!doctype", b"<html", b"<?xml")):
        return "html"
    if start.startswith(b"{"):
        return "jsonl"
    known = f"known: {', '.join(sorted(SUFFIXES))}, each also .gz and .zst"
    if file.suffix.lower() in TOKENS:
        known = f"if it holds token ids, `upslope data check {name}` looks into it"
    raise UsageError(f"{name}: unknown format: it starts with {head[:16]!r}; {known}")


def _up_to(read: Callable[[int], bytes], size: int, mark: bytes = b"", data: bytes = b"") -> bytes:
    while len(data) < size and not (mark and mark in data) and (piece := read(size - len(data))):
        data += piece
    return data


def _values(name: str, first: bytes) -> bool:
    """Whether JSON is an array, or an object over several lines, rather than one record a line."""
    line, newline, rest = first.lstrip(b"\xef\xbb\xbf \t\r\n").partition(b"\n")
    lines = ".json" not in name.lower() or ".jsonl" in name.lower()
    if line.startswith(b"[") and lines and line[1:].strip()[:1] not in (b"{", b""):
        return False
    if line.startswith(b"["):
        return not (lines and newline and line.rstrip().endswith(b"]") and rest.strip())
    return not lines and bool(newline) and not line.rstrip().endswith(b"}")


class Got(NamedTuple):
    """A row, and what was altered in it."""

    row: dict[str, Any]
    notes: tuple[str, ...] = ()


class ReadFile(Read):
    """Reads a file of any known format, or a part of it.

    source, licence: for records that do not name their own. map: our field → theirs, by name or dotted path (text, html, url, date,
    source, licence, mime, charset); fields that it does not name are found by their usual names (text, content, body, markdown; html
    and raw_content are read as HTML). max_bytes: longer pages are cut here, with a ledger row. max_line: longer lines of JSON are lost,
    with a ledger row. source_header, licence_header: the WARC headers in which an archive may name them.
    """

    version = 2

    source: str = "crawl"
    licence: str = ""
    map: FrozenDict[str, str] = FrozenDict()
    max_bytes: int = Field(default=8_000_000, ge=1)
    max_line: int = Field(default=64 << 20, ge=1)
    source_header: str = "WARC-Upslope-Package"
    licence_header: str = "WARC-Upslope-Licence"

    @field_validator("map")
    @classmethod
    def _known(cls, value: FrozenDict[str, str]) -> FrozenDict[str, str]:
        for key in value:
            if key not in fields.PAGE:
                raise ValueError(unknown_key(key, dict.fromkeys(fields.PAGE), cls))
        return value

    def __call__(self, file: Path, name: str = "") -> Iterator[Row | Reject]:
        """Rows of `shards.PAGE` and rejects, in file order; each record that is lost or altered gives exactly one reject.

        name: what the file is called in `record` (default its own name).
        """
        for row in self.part(file, name or fields.clean(file.name)[0]):
            assert not isinstance(row, Unfinished)  # a whole file has no further part
            yield row

    def part(self, file: Path, name: str, start: int = 0, stop: int | None = None, first: int = 0) -> Iterator[Row | Reject | Unfinished]:
        """The same for a part, as `parts.cut` makes them; if its last record runs past it, an Unfinished is the last thing that comes."""
        try:
            if not file.is_file():
                raise UsageError("not a file: a pipe, a device, or a link that leads nowhere")
            if file.stat().st_size == 0:
                raise UsageError("empty file")
            form = sniff(file)
        except (UsageError, OSError) as e:
            yield Reject(name, str(e).removeprefix(f"{file.name}: "))
            return
        for found in self._careful(form, file, name, start, stop, first):
            if not isinstance(found, Got):
                yield found
                continue
            row, notes, body = found.row, list(found.notes), found.row["html"]
            label = row["record"] if row["url"] in (row["record"], "") else f"{row['record']} {row['url']}"
            if not body.strip():
                yield Reject(label, "empty page")
                continue
            if len(body) > self.max_bytes:
                notes.insert(0, f"cut: the page has {len(body)} bytes, the first {self.max_bytes} are kept (max_bytes)")
                row["html"] = body[: self.max_bytes]
            if notes:
                yield Reject(label, "; ".join(notes))
            yield row

    def _careful(self, *what: Any) -> Iterator[Got | Reject | Unfinished]:
        try:
            yield from self._read(*what)
        except OSError as e:  # the disk, not the data
            yield Reject(what[2], f"cannot be read: {e.strerror or e}; the rest of it was not read")

    def _read(self, form: str, file: Path, name: str, start: int, stop: int | None, first: int) -> Iterator[Got | Reject | Unfinished]:
        if form in ("html", "text"):
            yield self._page(file, name, form)
        elif form == "warc":
            for record in records(file, name, start, stop, self.max_bytes + (1 << 20)):
                if isinstance(record, Reject | Unfinished):
                    yield record
                elif record.headers.get("warc-type", "").lower() in ("response", "resource", "conversion"):
                    yield self._response(record.headers, record.body, record.length, record.where, record.label)
        else:
            for item in items(file, form, name, start, stop, first, self.max_line):
                yield self._item(item)

    def _item(self, item: Item) -> Got | Reject:
        if item.lost:
            return Reject(item.where, "; ".join(item.notes))
        found = fields.page(item.value, item.where, self.map, self.source, self.licence)
        return found if isinstance(found, Reject) else Got(found[0], (*item.notes, *found[1]))

    def _page(self, file: Path, name: str, form: str) -> Got | Reject:
        try:
            with Slice(file) as source:
                kind, read = unpacked(source)
                body = _up_to(read, self.max_bytes + 1)
                size = file.stat().st_size
        except Damaged as e:
            return Reject(name, f"damaged {kind}: {e}")
        except OSError as e:
            return Reject(name, f"cannot be read: {e.strerror or e}")
        notes: tuple[str, ...] = ()
        if len(body) > self.max_bytes:
            what = f"more than {self.max_bytes}" if kind else f"{size}"
            notes = (f"cut: the page has {what} bytes, the first {self.max_bytes} are kept (max_bytes)",)
            body = body[: self.max_bytes]
        return Got(self._row(name, name, body, "text/html" if form == "html" else "text/plain"), notes)

    def _row(
        self, record: str, url: str, body: bytes, mime: str, charset: str = "", date: str = "", source: str = "", licence: str = ""
    ) -> dict[str, Any]:
        return {
            "url": url,
            "date": date,
            "mime": mime,
            "charset": charset,
            "html": body,
            "source": source or self.source,
            "licence": licence or self.licence,
            "record": record,
        }

    def _response(self, headers: Mapping[str, str], body: bytes, length: int, where: str, label: str) -> Got | Reject:
        """The page in a WARC record. body: its first bytes; length: how many there were."""
        from upslope.data.readers.encodings import decode

        kind, notes, size = headers.get("content-type", ""), [], length
        if kind.startswith("application/http") or body.startswith(b"HTTP/"):
            answer = http(body)
            if answer is None:
                return Reject(label, "truncated record: it ends before its HTTP headers do")
            status, sent, payload = answer
            if status != 200:
                return Reject(label, f"http status {status}")
            size = length - (len(body) - len(payload))
            kind = sent.get("content-type", "")
        else:
            sent, payload = {}, body
        mime = kind.partition(";")[0].strip().lower() or "text/html"
        if mime not in PAGES:
            return Reject(label, f"not a page: {mime[:80]}")
        whole = len(body) == length
        done = decode(payload, sent.get("transfer-encoding", ""), sent.get("content-encoding", ""), self.max_bytes, whole)
        if done.problem:
            return Reject(label, f"damaged body: {done.problem}")
        if done.more or not whole:
            plain = not (sent.get("content-encoding") or sent.get("transfer-encoding"))
            has = f"{size}" if plain else f"more than {len(done.data)}"
            notes.append(f"cut: the page has {has} bytes, the first {len(done.data)} are kept (max_bytes)")
        if "warc-truncated" in headers:
            notes.append(f"cut: the crawler did not take all of it (WARC-Truncated: {headers['warc-truncated'][:20]})")
        date = headers.get("warc-date", "")
        stamp = fields.iso(date) if date else ""
        if stamp is None:
            notes.append(f"bad date: {date[:40]!r} is not kept")
        charset = CHARSET.search(kind)
        row = self._row(
            where,
            headers.get("warc-target-uri", "").strip("<>"),
            done.data,
            "text/plain" if mime == "text/plain" else "text/html",
            charset.group(1) if charset else "",
            stamp or "",
            headers.get(self.source_header.lower(), ""),
            headers.get(self.licence_header.lower(), ""),
        )
        return Got(row, tuple(notes))
