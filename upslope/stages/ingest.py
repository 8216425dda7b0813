"""ingest: outside files (WARC, HTML folders, JSON, parquet, Arrow, text; data-set folders) → `Pages`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, ClassVar

from pydantic import Field

from upslope.config import Neutral, Source, UsageError
from upslope.data.ingesting import IngestShard, ingest, plan
from upslope.data.readers import ReadFile
from upslope.machine.context import Context
from upslope.machine.files import link, read_json
from upslope.machine.stage import Artifact, Stage


class Ingest(Stage):
    """Reads sources as they are; nothing is judged here except whether a record can be read.

    sources: files or folders. read: how records are mapped. rows: pages to a shard, the unit of all later map work. part_bytes: bigger
    files are read in ranges of about this size (packed ones where each record is a gzip member), so that a kill costs one range at most;
    the pages and their order do not depend on it, where shards end does.
    """

    kind: ClassVar[str] = "ingest"
    makes: ClassVar[str] = "Pages"
    code: ClassVar[tuple[str, ...]] = ("upslope.data",)

    sources: tuple[Source, ...] = Field(min_length=1)
    read: ReadFile = ReadFile()
    rows: int = Field(default=256, ge=1)
    part_bytes: Annotated[int, Neutral(64 << 20)] = Field(default=64 << 20, ge=1)

    def run(self, ctx: Context) -> Artifact:
        """UsageError if no page at all can be read."""
        import pyarrow as pa

        from upslope.data import shards
        from upslope.data.artifacts import Pages

        files: list[Path] = []
        ledgers: list[pa.Table] = []
        records = 0
        work = plan(self.sources, self.part_bytes)
        for folder in ingest(ctx, IngestShard(read=self.read, rows=self.rows), work.groups):
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
        if work.whole:
            ctx.fact(one_part={name: work.whole[name] for name in sorted(work.whole)[:5]}, one_part_files=len(work.whole))
        if work.skipped:
            ctx.fact(skipped=work.skipped[:10], skipped_files=len(work.skipped))
        if pages.reasons():
            ctx.events.alarm("some records could not be read, or not whole", reasons=pages.reasons())
        lost = f"; {records - len(pages):,} could not be used" if records > len(pages) else ""
        ctx.say(f"{len(pages):,} pages from {records:,} records{lost}")
        return pages
