"""ingest: outside files (WARC, HTML folders, JSON lines, parquet, text) → `Pages`."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

from pydantic import Field

from upslope.config import Source, UsageError
from upslope.data.ingesting import IngestShard, parts
from upslope.data.readers import ReadFile
from upslope.machine.context import Context
from upslope.machine.files import link, read_json
from upslope.machine.stage import Artifact, Stage


class Ingest(Stage):
    """Reads sources as they are; nothing is judged here except whether a record can be read.

    sources: files or folders. read: how records are mapped. rows: pages to a shard, the unit of all later map work.
    """

    kind: ClassVar[str] = "ingest"
    makes: ClassVar[str] = "Pages"
    code: ClassVar[tuple[str, ...]] = ("upslope.data",)

    sources: tuple[Source, ...] = Field(min_length=1)
    read: ReadFile = ReadFile()
    rows: int = Field(default=256, ge=1)

    def run(self, ctx: Context) -> Artifact:
        """UsageError if no page at all can be read."""
        import pyarrow as pa

        from upslope.data import shards
        from upslope.data.artifacts import Pages

        files: list[Path] = []
        ledgers: list[pa.Table] = []
        records = 0
        for folder in ctx.map(IngestShard(read=self.read, rows=self.rows), parts(self.sources, ctx.work / "parts")):
            for shard in sorted(folder.glob("[0-9]*.parquet")):
                target = ctx.out / "pages" / f"{len(files):05d}.parquet"
                link(shard, target)
                files.append(target)
            ledgers.append(shards.read(folder / "rejects.parquet"))
            records += read_json(folder / "part.json")["records"]
        rejects = pa.concat_tables(ledgers) if ledgers else shards.REJECT.empty_table()
        if not files:
            shown = [f"{r['record']}: {r['why']}" for r in rejects.slice(0, 3).to_pylist()]
            what = f"no page could be read from {', '.join(s.uri for s in self.sources)}"
            raise UsageError("\n".join([what, *(shown or ["there are no files in it"])]))
        pages = Pages.write(ctx.out, files, rejects, records)
        ctx.fact(pages=len(pages), records=records, rejects=pages.reasons(), shards=len(files), licences=list(pages.licences()))
        if pages.reasons():
            ctx.events.alarm("some records could not be read, or not whole", reasons=pages.reasons())
        lost = f"; {records - len(pages):,} could not be used" if records > len(pages) else ""
        ctx.say(f"{len(pages):,} pages from {records:,} records{lost}")
        return pages
