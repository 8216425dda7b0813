"""rewrite: a corpus → the same rows with other text (personal data masked, boilerplate lines gone, spans kept by a model)."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, ClassVar

from upslope.config import Input, Wants
from upslope.data.annotating import parts
from upslope.data.protocol import Rewrite as Step
from upslope.data.rewriting import RewriteShard
from upslope.machine.context import Context
from upslope.machine.files import link
from upslope.machine.stage import Artifact, Stage


class Rewrite(Stage):
    """Rows stay rows, with their numbers, edges and decisions; a text of which nothing is left is empty, for a rule to drop.

    Columns about the old text do not describe the new one: all are left behind but `page` (which is about the page). Annotate again.
    living: only documents that still live are rewritten.
    """

    kind: ClassVar[str] = "rewrite"
    makes: ClassVar[str] = "Corpus"
    code: ClassVar[tuple[str, ...]] = ("upslope.data",)

    corpus: Annotated[Input, Wants("Corpus")]
    step: Step
    living: bool = True

    def run(self, ctx: Context) -> Artifact:
        """The view over new text shards, with one sidecar that says what was done."""
        from upslope.data import shards
        from upslope.data.artifacts import Corpus

        view = ctx.open(self.corpus, Corpus)
        bound, version = self.step.bind(ctx), type(self.step).version
        bound(shards.rows_to_batch(shards.read(view.files()[0].path).slice(0, 0).to_pylist() if view.rows else [], shards.TEXT))
        texts: list[Path] = []
        notes: list[Path] = []
        work = parts(view, ctx.work / "living", self.living)
        for number, folder in enumerate(ctx.map(RewriteShard(step=bound, step_version=version), work)):
            for source, place, found in (("text", "text", texts), ("columns", f"columns/{bound.column}@{version}", notes)):
                target = ctx.out / place / f"{number:05d}.parquet"
                link(folder / f"{source}.parquet", target)
                found.append(target)
        corpus = Corpus.rewritten(view, ctx.out, texts, (bound.column, version, dict(type(bound).gives), notes))
        last = corpus.funnel()[-1]
        ctx.fact(docs=len(corpus), **{k: v for k, v in last.items() if k not in ("step", "docs")}, licences=list(corpus.licences()))
        ctx.say(f"{last['changed']:,} of {len(corpus):,} texts changed: {last['bytes_in'] / 1e6:.1f} → {last['bytes'] / 1e6:.1f} MB")
        return corpus
