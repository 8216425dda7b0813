"""templates: how much of a page is its host's template, as `data.links.skeleton` measures it, without looking for copies."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, ClassVar

from pydantic import Field

from upslope.config import Input, Source, Wants
from upslope.data.protocol import Annotate

if TYPE_CHECKING:
    import pyarrow as pa

    from upslope.machine.context import Context


class Templates(Annotate):
    """share: of the page's bytes that is template, NULL for an empty page; lines: how many of its lines are.

    corpus: whose living pages are counted, usually the one that is annotated. share, pages: a line is template if it is on more than
    max(pages, share · n) of a host's n pages.
    """

    kind: ClassVar[str] = "templates"
    version: ClassVar[int] = 1
    gives: ClassVar[Mapping[str, str]] = {"share": "float32", "lines": "int32"}

    corpus: Annotated[Input, Wants("Corpus")]
    share: float = Field(default=0.3, ge=0, lt=1)
    pages: int = Field(default=3, ge=1)

    def bind(self, ctx: Context) -> Annotate:
        """Counts the lines of every host and gives the step that knows the templates."""
        from upslope.data.artifacts import Corpus
        from upslope.data.links.skeleton import templates

        view = ctx.open(self.corpus, Corpus)
        return BoundTemplates(name=self.column, templates=templates(ctx, view, self.share, self.pages, f"templates-{self.column}"))


class BoundTemplates(Annotate):
    """`Templates` with the lines that are template in one file (see `data.links.skeleton.templates`)."""

    kind: ClassVar[str] = "templates_known"
    version: ClassVar[int] = Templates.version
    gives: ClassVar[Mapping[str, str]] = Templates.gives

    templates: Source

    def __call__(self, batch: pa.RecordBatch) -> pa.RecordBatch:
        """Needs the columns url, source and text."""
        from upslope.data.links.skeleton import measured

        return measured(batch, self.templates)[1]
