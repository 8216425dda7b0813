"""Fixtures: WARC records and small corpora."""

from __future__ import annotations

import gzip
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from upslope.config import Input, Source
from upslope.data.artifacts import Corpus, Pages
from upslope.machine.context import Context
from upslope.machine.files import walk
from upslope.stages.extract import Extract
from upslope.stages.ingest import Ingest


def record(url: str, body: bytes, kind: str = "text/html; charset=utf-8", status: int = 200) -> bytes:
    http = f"HTTP/1.1 {status} X\r\nContent-Type: {kind}\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body
    head = (
        f"WARC/1.0\r\nWARC-Type: response\r\nWARC-Target-URI: {url}\r\nWARC-Date: 2024-06-01T00:00:00Z\r\nWARC-Upslope-Package: docs\r\n"
        f"Content-Type: application/http; msgtype=response\r\nContent-Length: {len(http)}\r\n\r\n"
    )
    return head.encode() + http + b"\r\n\r\n"


def warc_gz(file: Path, records: Sequence[bytes]) -> Path:
    file.write_bytes(b"".join(gzip.compress(r, mtime=0) for r in records))
    return file


def ingested(folder: Path, *files: Path, **fields: Any) -> tuple[Pages, Context]:
    ctx = Context.scratch(folder)
    pages = Ingest(sources=tuple(Source(uri=str(f)) for f in files), **fields).run(ctx)
    assert isinstance(pages, Pages)
    return pages, ctx


def extracted(folder: Path, pages: Pages) -> tuple[Corpus, Context]:
    ctx = Context.scratch(folder, crawl=pages)
    corpus = Extract(pages=Input(stage="crawl")).run(ctx)
    assert isinstance(corpus, Corpus)
    return corpus, ctx


def files_of(folder: Path) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in walk(folder)}
