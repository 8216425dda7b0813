"""annotate: a corpus → the same corpus with more columns."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar

from pydantic import Field

from upslope.config import Input, Neutral, Wants
from upslope.data.annotating import AnnotateShard, parts
from upslope.data.protocol import Annotate as Step
from upslope.machine.context import Context
from upslope.machine.files import link
from upslope.machine.stage import Artifact, Problem, Stage


class Annotate(Stage):
    """Applies annotators. Each is remembered by shard: a new annotator, or new pages, compute only what is new.

    living: only to documents that still live (the others get NULL), for steps that are dear; otherwise to all of them, since what a
    decision drops today, another may keep tomorrow.
    """

    kind: ClassVar[str] = "annotate"
    makes: ClassVar[str] = "Corpus"
    code: ClassVar[tuple[str, ...]] = ("upslope.data",)

    corpus: Annotated[Input, Wants("Corpus")]
    steps: tuple[Step, ...] = Field(min_length=1)
    living: Annotated[bool, Neutral(False)] = False

    def check(self, inputs: Mapping[str, Any]) -> list[Problem]:
        """Two annotators must not share a name."""
        names = [s.column for s in self.steps]
        return [
            Problem(f"steps.{i}.name", f"two annotators are called {n!r}; give one of them another name")
            for i, n in enumerate(names)
            if n in names[:i]
        ]

    def run(self, ctx: Context) -> Artifact:
        """The view with one sidecar a step."""
        from upslope.data import shards
        from upslope.data.artifacts import Corpus

        view = ctx.open(self.corpus, Corpus)
        work, texts = parts(view, ctx.work / "living", self.living), view.files()
        first = shards.rows_to_batch(shards.read(texts[0].path).slice(0, 1).to_pylist() if texts else [], shards.TEXT)
        made = []
        for step in self.steps:
            bound, files = step.bind(ctx), []
            bound(first)  # what it imports and compiles is then there before workers are forked, and a step that fails, fails now
            version = type(step).version
            for number, folder in enumerate(ctx.map(AnnotateShard(step=bound, step_version=version), work)):
                target = ctx.out / "columns" / f"{step.column}@{version}" / f"{number:05d}.parquet"
                link(folder / "columns.parquet", target)
                files.append(target)
            made.append((step.column, version, dict(type(step).gives), files))
        corpus = Corpus.with_columns(view, ctx.out, made)
        ctx.fact(docs=view.rows, columns={name: sorted(fields) for name, _, fields, _ in made}, licences=list(corpus.licences()))
        count = sum(len(fields) for _, _, fields, _ in made)
        ctx.say(f"{view.rows:,} documents, {count} new columns: {', '.join(name for name, *_ in made)}")
        return corpus
