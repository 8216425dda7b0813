"""gather: several corpora → one view of all of them, so that copies are found across sources and one winner order decides."""

from __future__ import annotations

from typing import Annotated, ClassVar

from pydantic import Field

from upslope.config import Input, Wants
from upslope.machine.context import Context
from upslope.machine.stage import Artifact, Stage


class Gather(Stage):
    """Copies nothing. Documents are numbered anew, in the order of `corpora`; what each corpus dropped stays dropped.

    Columns that all of them have stay. Drop order between sources is the `winner` of the curation that follows, e.g.
    `case source when 'wiki' then 0 when 'docs' then 1 else 2 end, quality.score desc, date desc, doc`.
    """

    kind: ClassVar[str] = "gather"
    makes: ClassVar[str] = "Corpus"
    code: ClassVar[tuple[str, ...]] = ("upslope.data",)

    corpora: Annotated[tuple[Input, ...], Wants("Corpus"), Field(min_length=1)]

    def run(self, ctx: Context) -> Artifact:
        """The view."""
        from upslope.data.artifacts import Corpus

        views = [ctx.open(ref, Corpus) for ref in self.corpora]
        corpus = Corpus.gathered(views, ctx.out)
        sizes = {ref.stage: len(view) for ref, view in zip(self.corpora, views)}
        ctx.fact(docs=len(corpus), parts=sizes, columns=sorted(corpus.fields()), licences=list(corpus.licences()))
        ctx.say(f"{len(corpus):,} documents of {len(views)} corpora")
        return corpus
