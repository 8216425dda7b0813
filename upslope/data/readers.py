"""Readers: WARC, JSON lines, parquet, HTML and text files → raw pages; what cannot be read becomes a ledger row with a reason.

Formats are told by content first (magic bytes), then by name, so that a plain file called `.gz` is read or refused for what it is.
"""

from __future__ import annotations

import gzip
import json
import re
import zlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from pydantic import Field

from upslope.config import UsageError
from upslope.data.protocol import Read, Reject

Row = Mapping[str, object]

SUFFIXES = {
    ".warc": "warc",
    ".wet": "warc",
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".json": "jsonl",
    ".parquet": "parquet",
    ".html": "html",
    ".htm": "html",
    ".xhtml": "html",
    ".txt": "text",
    ".md": "text",
}
TEXT_FIELDS, HTML_FIELDS, URL_FIELDS = ("text", "content", "body", "markdown"), ("html", "raw_content"), ("url", "uri", "id", "path")
DATE_FIELDS, LICENCE_FIELDS = ("date", "timestamp", "created", "crawl_date"), ("licence", "license")
CHARSET = re.compile(rb"charset\s*=\s*[\"']?\s*([A-Za-z0-9_.:+-]+)", re.I)


def sniff(file: Path) -> str:
    """The format of a file: warc, jsonl, parquet, html or text; UsageError with the first bytes where it is none of them."""
    stem = file.name.removesuffix(".gz")
    named = SUFFIXES.get(Path(stem).suffix.lower())
    with open(file, "rb") as f:
        head = f.read(64)
    if head[:2] == b"\x1f\x8b":
        try:
            with gzip.open(file, "rb") as g:
                head = g.read(64)
        except (OSError, EOFError, zlib.error):
            if named:
                return named
            raise UsageError(f"{file.name}: damaged gzip, nothing can be read") from None
    elif file.name.endswith(".gz") and not head.startswith((b"WARC/", b"{", b"<")):
        raise UsageError(f"{file.name}: not gzip: the name ends in .gz, but it starts with {head[:16]!r}")
    if head.startswith(b"WARC/"):
        return "warc"
    if head.startswith(b"PAR1"):
        return "parquet"
    if named:
        return named
    start = head.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if start.startswith((b"<!doctype", b"<html", b"<?xml")):
        return "html"
    if start.startswith(b"{"):
        return "jsonl"
    raise UsageError(f"{file.name}: unknown format: it starts with {head[:16]!r}; known: {', '.join(sorted(SUFFIXES))}, each also .gz")


class ReadFile(Read):
    """Reads a file of any known format.

    source, licence: for records that do not name their own. text_field: the field of JSON or parquet records that holds the text
    ("" = the first of text, content, body, markdown; html, raw_content are read as HTML). max_bytes: longer pages are cut here,
    with a ledger row. source_header, licence_header: the WARC headers in which an archive may name them.
    """

    source: str = "crawl"
    licence: str = ""
    text_field: str = ""
    max_bytes: int = Field(default=8_000_000, ge=1)
    source_header: str = "WARC-Upslope-Package"
    licence_header: str = "WARC-Upslope-Licence"

    def __call__(self, file: Path, name: str = "") -> Iterator[Row | Reject]:
        """Rows of `shards.PAGE` and rejects, in file order. name: what an HTML or text file is called (its URL)."""
        name = name or file.name
        if file.stat().st_size == 0:
            yield Reject(name, "empty file")
            return
        try:
            form = sniff(file)
        except UsageError as e:
            yield Reject(name, str(e).removeprefix(f"{file.name}: "))
            return
        reader: dict[str, Callable[[Path, str], Iterator[Row | Reject]]] = {
            "warc": self._warc,
            "jsonl": self._jsonl,
            "parquet": self._parquet,
            "html": self._page,
            "text": self._page,
        }
        for row in reader[form](file, name):
            if isinstance(row, Reject):
                yield row
                continue
            body = row["html"]
            assert isinstance(body, bytes)
            if not body.strip():
                yield Reject(str(row["url"]), "empty page")
                continue
            if len(body) > self.max_bytes:
                yield Reject(str(row["url"]), f"cut: the page has {len(body)} bytes, the first {self.max_bytes} are kept (max_bytes)")
                row = {**row, "html": body[: self.max_bytes]}
            yield row

    def _row(
        self, url: str, body: bytes, mime: str = "text/html", charset: str = "", date: str = "", source: str = "", licence: str = ""
    ) -> Row:
        return {
            "url": url,
            "date": date,
            "mime": mime,
            "charset": charset,
            "html": body,
            "source": source or self.source,
            "licence": licence or self.licence,
        }

    def _page(self, file: Path, name: str) -> Iterator[Row | Reject]:
        with open(file, "rb") as f:
            packed = f.read(2) == b"\x1f\x8b"
        try:
            body = gzip.decompress(file.read_bytes()) if packed else file.read_bytes()
        except (OSError, EOFError, zlib.error) as e:
            yield Reject(name, f"damaged gzip: {e}")
            return
        html = SUFFIXES.get(Path(file.name.removesuffix(".gz")).suffix.lower(), "html") == "html"
        yield self._row(name, body, "text/html" if html else "text/plain")

    def _warc(self, file: Path, name: str) -> Iterator[Row | Reject]:
        from fastwarc.warc import ArchiveIterator, WarcRecordType

        kinds = WarcRecordType.response | WarcRecordType.resource | WarcRecordType.conversion
        read, url = 0, ""
        with open(file, "rb") as f:
            try:
                for record in ArchiveIterator(f, record_types=kinds, parse_http=True, auto_decode="all"):
                    read += 1
                    url = record.headers.get("WARC-Target-URI") or ""
                    http = record.http_headers
                    kind = str(record.headers.get("Content-Type") or "") if http is None else str(http.get("Content-Type") or "")
                    encoded = http is not None and bool(http.get("Content-Encoding") or http.get("Transfer-Encoding"))
                    expected = record.content_length
                    body = record.reader.read()
                    if http is None and "application/http" in kind:
                        yield Reject(url, "truncated record: it ends before its HTTP headers do")
                        continue
                    if not encoded and len(body) < expected:
                        yield Reject(url, f"truncated record: {len(body)} of {expected} bytes; the part is not kept")
                        continue
                    if http is not None and http.status_code != 200:
                        yield Reject(url, f"http status {http.status_code}")
                        continue
                    mime = kind.partition(";")[0].strip().lower() or "text/html"
                    if mime not in ("text/html", "application/xhtml+xml", "text/plain"):
                        yield Reject(url, f"not a page: {mime}")
                        continue
                    found = CHARSET.search(kind.encode())
                    charset = found.group(1).decode() if found else ""
                    yield self._row(
                        url,
                        body,
                        "text/plain" if mime == "text/plain" else "text/html",
                        charset,
                        record.headers.get("WARC-Date") or "",
                        record.headers.get(self.source_header) or "",
                        record.headers.get(self.licence_header) or "",
                    )
            except OSError as e:
                yield Reject(url or name, f"damaged archive: after record {read} of {name}: {e}; the rest of the file was not read")

    def _jsonl(self, file: Path, name: str) -> Iterator[Row | Reject]:
        with open(file, "rb") as raw:
            packed = raw.read(2) == b"\x1f\x8b"
        number = 0
        with gzip.open(file, "rb") if packed else open(file, "rb") as lines:
            try:
                for number, line in enumerate(lines, 1):
                    if not line.strip():
                        continue
                    where = f"{name}:{number}"
                    try:
                        record = json.loads(line)
                    except (json.JSONDecodeError, UnicodeDecodeError) as e:
                        yield Reject(where, f"broken JSON: line {number}: {str(e)[:100]}")
                        continue
                    yield self._record(record, where)
            except (EOFError, OSError, zlib.error) as e:
                yield Reject(f"{name}:{number + 1}", f"truncated gzip: after line {number}: {e}")

    def _parquet(self, file: Path, name: str) -> Iterator[Row | Reject]:
        import pyarrow as pa
        import pyarrow.parquet as pq

        try:
            table = pq.ParquetFile(file)
            at = 0
            for batch in table.iter_batches(batch_size=256):
                for record in batch.to_pylist():
                    at += 1
                    yield self._record(record, f"{name}#{at}")
        except (pa.ArrowInvalid, OSError) as e:
            yield Reject(name, f"damaged parquet: {str(e).splitlines()[0][:120]}")

    def _record(self, record: Any, where: str) -> Row | Reject:
        """A page from a JSON or parquet record."""
        if not isinstance(record, dict):
            return Reject(where, f"not an object: the record is a {type(record).__name__}")
        names = (self.text_field,) if self.text_field else (*TEXT_FIELDS, *HTML_FIELDS)
        field = next((n for n in names if record.get(n) is not None), None)
        if field is None:
            wanted = f"field {self.text_field!r}" if self.text_field else f"field {' or '.join(map(repr, names))}"
            has = ", ".join(map(repr, list(record)[:6]))
            return Reject(where, f"no text: there is no {wanted}; the record has {has} (name it with text_field)")
        value = record[field]
        if isinstance(value, str):
            try:
                body = value.encode("utf-8")
            except UnicodeEncodeError:
                return Reject(where, f"bad text: field {field!r} holds lone surrogates")
        elif isinstance(value, bytes):
            body = value
        else:
            return Reject(where, f"bad text: field {field!r} is a {type(value).__name__}, not a string")
        within = record.get("metadata")
        extra: dict[str, Any] = within if isinstance(within, dict) else {}

        def first(*fields: str) -> str:
            return next((str(of[n]) for of in (record, extra) for n in fields if of.get(n) not in (None, "")), "")

        url = first("url", "uri") or first(*URL_FIELDS) or where
        mime = "text/html" if field in HTML_FIELDS or record.get("mime") == "text/html" else "text/plain"
        charset = "utf-8" if isinstance(value, str) else str(record.get("charset") or "")
        return self._row(url, body, mime, charset, first(*DATE_FIELDS), first("source"), first(*LICENCE_FIELDS))
