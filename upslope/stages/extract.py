"""extract: raw pages → a corpus of Markdown text with the sidecar `page`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, ClassVar

from upslope.config import Input, Json, Wants
from upslope.data.extracting import PAGE_FIELDS, ExtractShard, Html
from upslope.machine.context import Context, Shard
from upslope.machine.files import link
from upslope.machine.stage import Artifact, Stage


class Extract(Stage):
    """Every page becomes a row; one with nothing left becomes an empty text, for a rule to drop."""

    kind: ClassVar[str] = "extract"
    makes: ClassVar[str] = "Corpus"
    code: ClassVar[tuple[str, ...]] = ("upslope.data",)

    pages: Annotated[Input, Wants("Pages")]
    html: Html = Html()

    def run(self, ctx: Context) -> Artifact:
        """The corpus: text shards of its own, in the order of the page shards."""
        import pyarrow.compute as pc

        from upslope.data import shards
        from upslope.data.artifacts import Corpus, Pages

        pages = ctx.open(self.pages, Pages)
        texts: list[Path] = []
        notes: list[Path] = []
        size = empty = guessed = lost = 0
        step = ExtractShard(step=self.html, step_version=type(self.html).version)
        for number, folder in enumerate(ctx.map(step, [Shard(f.path, f.digest) for f in pages.files()])):
            for name, found in (("text", texts), ("page", notes)):
                target = ctx.out / name / f"{number:05d}.parquet"
                link(folder / f"{name}.parquet", target)
                found.append(target)
            column = shards.read(texts[-1], ["bytes"])["bytes"]
            size += pc.sum(column).as_py() or 0
            empty += pc.sum(pc.equal(column, 0)).as_py() or 0
            page = shards.read(notes[-1], ["told", "lost"])
            guessed += pc.sum(pc.equal(page["told"], "guess")).as_py() or 0
            lost += page.num_rows - page["lost"].null_count
        funnel: list[dict[str, Json]] = [
            {"step": "records", "docs": pages.records},
            {"step": "pages", "docs": len(pages), "dropped": pages.records - len(pages), "reasons": {**pages.reasons()}},
            {"step": "text", "docs": len(pages), "bytes": size, "empty": empty, "lost": lost},
        ]
        if lost:
            ctx.events.alarm(f"{lost} pages took too long or broke the extractor; `page.lost` says which", pages=lost)
        base = Corpus.create(ctx.out, texts, funnel, pages)
        corpus = Corpus.with_columns(base, ctx.out, [("page", type(self.html).version, PAGE_FIELDS, notes)])
        ctx.fact(docs=len(pages), bytes=size, empty=empty, lost=lost, charset_guessed=guessed, licences=list(corpus.licences()))
        ctx.say(f"{size / 1e6:.1f} MB of text from {len(pages):,} pages" + (f"; {empty} have none" if empty else ""))
        return corpus
