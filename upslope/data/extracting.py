"""Extraction as map work: a shard of raw pages → a shard of text, row for row, and a sidecar about how it went."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, ClassVar

from pydantic import Field

from upslope.config import Config, Neutral
from upslope.machine.files import digest_file

BATCH = 128
PAGE_FIELDS = {
    "title": "string",
    "method": "string",
    "codec": "string",
    "told": "string",
    "bad_bytes": "int32",
    "html_bytes": "int32",
    "link_share": "float32",
    "formulas": "int32",
    "tables": "int32",
    "headings": "int32",
    "lost": "string",
}
"""The sidecar `page`. method: how the content was found (`extract.html.Extracted`); codec, told: the character set and what named it;
bad_bytes: bytes without meaning in it; link_share: part of the text that is links, NULL without text; lost: why there is no text although
there was a page (a timeout, a crash), NULL otherwise."""


class Html(Config):
    """HTML → Markdown (`extract.html`); records that already are text pass with line ends made `\n`.

    provenance: what the rows are called: crawl or import. title: whether the heading that names the page stays. seconds: a page that
    takes longer is given up (empty text, `page.lost` says so); the only place where a result may depend on the machine's speed, so it is
    generous. 0 = no watch.
    """

    version: ClassVar[int] = 3

    provenance: str = "crawl"
    title: Annotated[bool, Neutral(True)] = True
    seconds: float = Field(default=30.0, ge=0)

    def page(self, body: bytes, mime: str, charset: str = "") -> tuple[dict[str, Any], dict[str, Any]]:
        """(text, spans, lang, bytes; the page's notes) of one page."""
        from upslope.data import shards
        from upslope.data.extract.charset import decode
        from upslope.data.extract.html import Extracted, extract

        decoded = decode(body, charset)
        if mime == "text/html":
            found = extract(decoded.text, title=self.title)
            spans: list[dict[str, int]] | None = [{"start": s, "end": e, "kind": k} for s, e, k in found.spans]
        else:
            plain = decoded.text.replace("\r\n", "\n").replace("\r", "\n").replace("\x00", "")
            found, spans = Extracted(plain, []), None
        # a lone surrogate (a numeric reference to one) cannot be written as UTF-8
        clean = found.text.encode("utf-8", "replace").decode() if not found.text.isascii() else found.text
        text = {"text": clean, "spans": spans, "lang": found.lang or None, **shards.sizes(len(clean.encode()), found.spans)}
        note = {
            "title": found.title,
            "method": found.method if mime == "text/html" else None,
            "codec": decoded.codec,
            "told": decoded.told,
            "bad_bytes": decoded.bad,
            "html_bytes": len(body),
            "link_share": found.link_share,
            "formulas": found.formulas,
            "tables": found.tables,
            "headings": found.headings,
        }
        return text, note


class ExtractShard(Config):
    """Extracts a shard: text.parquet and page.parquet, the latter bound to the former by its digest."""

    version: ClassVar[int] = 1

    step: Html
    step_version: int = Html.version

    def __call__(self, shard: Path, out: Path) -> None:
        """shard: a page shard."""
        import pyarrow as pa
        import pyarrow.parquet as pq

        from upslope.data import shards
        from upslope.data.guard import Lost, guarded

        def work(row: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
            return self.step.page(row["html"], row["mime"], row["charset"])

        fields = pa.schema([(n, pa.type_for_alias(t)) for n, t in PAGE_FIELDS.items()])
        texts, notes = [], []
        for batch in pq.ParquetFile(shard).iter_batches(batch_size=BATCH):
            rows = batch.to_pylist()
            found: list[tuple[dict[str, Any], dict[str, Any]]] = []
            for row, result in zip(rows, guarded(rows, work, self.step.seconds) if self.step.seconds else map(work, rows)):
                if isinstance(result, Lost):
                    result = ({"text": "", "spans": [], **shards.sizes(0, None)}, {"html_bytes": len(row["html"]), "lost": result.why})
                same = {name: row[name] for name in ("url", "source", "date", "licence")}
                found.append(({**result[0], **same, "provenance": self.step.provenance}, result[1]))
            texts.append(shards.rows_to_batch([text for text, _ in found], shards.TEXT))
            notes.append(shards.rows_to_batch([note for _, note in found], fields))
        shards.write(out / "text.parquet", pa.Table.from_batches(texts, shards.TEXT))
        shards.write(out / "page.parquet", pa.Table.from_batches(notes, fields), {"text": digest_file(out / "text.parquet")})
