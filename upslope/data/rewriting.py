"""Extraction as map work: a shard of raw pages → a shard of text, row for row, and a sidecar about how it went."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from upslope.config import Config
from upslope.data.protocol import Rewrite
from upslope.machine.files import digest_file

if TYPE_CHECKING:
    import pyarrow as pa

PAGE_FIELDS = {
    "title": "string",
    "codec": "string",
    "told": "string",
    "bad_bytes": "int32",
    "html_bytes": "int32",
    "link_share": "float32",
    "code_bytes": "int32",
    "formulas": "int32",
    "tables": "int32",
    "headings": "int32",
}
"""The sidecar `page`. codec, told: the character set and what named it; bad_bytes: bytes without meaning in it; link_share: part of the
text that is links, NULL without text."""


class Html(Rewrite):
    """HTML → Markdown (`extract.html`); records that already are text pass with line ends made `\\n`.

    provenance: what the rows are called: crawl or import.
    """

    provenance: str = "crawl"

    def __call__(self, batch: pa.RecordBatch) -> tuple[pa.RecordBatch, pa.RecordBatch]:
        """(rows of `shards.TEXT`, rows of `PAGE_FIELDS`) for rows of `shards.PAGE`."""
        import pyarrow as pa

        from upslope.data import shards

        texts: list[dict[str, Any]] = []
        notes: list[dict[str, Any]] = []
        for row in batch.to_pylist():
            text, note = self.page(row["html"], row["mime"], row["charset"])
            same = {name: row[name] for name in ("url", "source", "date", "licence")}
            texts.append({**text, **same, "provenance": self.provenance})
            notes.append(note)
        schema = pa.schema([(n, pa.type_for_alias(t)) for n, t in PAGE_FIELDS.items()])
        return shards.rows_to_batch(texts, shards.TEXT), shards.rows_to_batch(notes, schema)

    def page(self, body: bytes, mime: str, charset: str = "") -> tuple[dict[str, Any], dict[str, Any]]:
        """(text, spans, lang, bytes; the page's notes) of one page."""
        from upslope.data.extract.charset import decode
        from upslope.data.extract.html import Extracted, extract

        decoded = decode(body, charset)
        if mime == "text/html":
            found = extract(decoded.text)
            spans: list[dict[str, int]] | None = [{"start": s, "end": e, "kind": k} for s, e, k in found.spans]
        else:
            plain = decoded.text.replace("\r\n", "\n").replace("\r", "\n").replace("\x00", "")
            found, spans = Extracted(plain, []), None
        # a lone surrogate (a numeric reference to one) cannot be written as UTF-8
        clean = found.text.encode("utf-8", "replace").decode() if not found.text.isascii() else found.text
        text = {"text": clean, "spans": spans, "lang": found.lang or None, "bytes": len(clean.encode())}
        note = {
            "title": found.title,
            "codec": decoded.codec,
            "told": decoded.told,
            "bad_bytes": decoded.bad,
            "html_bytes": len(body),
            "link_share": found.link_share,
            "code_bytes": found.code_bytes,
            "formulas": found.formulas,
            "tables": found.tables,
            "headings": found.headings,
        }
        return text, note


class RewriteShard(Config):
    """Applies a `Rewrite` to a shard: text.parquet and page.parquet, the latter bound to the former by its digest."""

    version: ClassVar[int] = 1

    step: Html
    step_version: int = Html.version

    def __call__(self, shard: Path, out: Path) -> None:
        """shard: a page shard."""
        import pyarrow as pa
        import pyarrow.parquet as pq

        from upslope.data import shards

        texts, notes = [], []
        for batch in pq.ParquetFile(shard).iter_batches(batch_size=128):
            text, note = self.step(batch)
            assert text.num_rows == note.num_rows == batch.num_rows
            texts.append(text)
            notes.append(note)
        shards.write(out / "text.parquet", pa.Table.from_batches(texts))
        shards.write(out / "page.parquet", pa.Table.from_batches(notes), {"text": digest_file(out / "text.parquet")})
