"""curate: a corpus → the same corpus with a decision: which documents live, and why each of the others does not."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar

from upslope.config import Input, UsageError, Wants
from upslope.data.protocol import Rule
from upslope.machine.context import Context
from upslope.machine.files import write_json
from upslope.machine.stage import Artifact, Problem, Stage


class Curate(Stage):
    """rules: conditions that a document must meet, each a DuckDB predicate over the view's columns (`gopher.words >= 50`); NULL keeps.

    winner: ORDER BY that says which of several copies lives (after: those that meet every rule). A corpus may be curated several times;
    a later curation looks at the living only.
    """

    kind: ClassVar[str] = "curate"
    makes: ClassVar[str] = "Corpus"
    code: ClassVar[tuple[str, ...]] = ("upslope.data",)

    corpus: Annotated[Input, Wants("Corpus")]
    rules: tuple[Rule, ...] = ()
    winner: str = "bytes desc, doc"

    def check(self, inputs: Mapping[str, Any]) -> list[Problem]:
        """Predicates that do not parse are found before anything runs."""
        from upslope.data.curation import parse

        try:
            parse(self.rules, self.winner)
        except UsageError as e:
            return [Problem("rules", str(e))]
        return []

    def run(self, ctx: Context) -> Artifact:
        """The view with a keep bitmap and a ledger of every failure; where overlap columns exist, the verdict on each benchmark is a fact.

        UsageError if a rule is wrong, or if nothing is left.
        """
        from upslope.data.artifacts import Corpus
        from upslope.data.contamination import columns, verdict
        from upslope.data.curation import decide, write

        view = ctx.open(self.corpus, Corpus)
        keep = decide(view, self.rules, self.winner)
        funnel = keep.funnel
        if funnel["docs_in"] and not funnel["docs"]:
            worst = max(funnel["rules"], key=lambda r: r["failed"])
            raise UsageError(
                f"no document is left: of {funnel['docs_in']}, {worst['failed']} fail rule {worst['rule']!r}\n"
                "way out: loosen it, or leave it out to see what the others do"
            )
        write(view, ctx.out, self.rules, self.winner, keep)
        corpus = Corpus(ctx.out)
        ctx.fact(funnel=funnel, docs=funnel["docs"], bytes=funnel["bytes"], licences=list(corpus.licences()))
        verdicts = {name: verdict(corpus, name) for name in columns(corpus)}
        if verdicts:  # it goes with the corpus, into whatever is made of it
            write_json(ctx.out / "corpus.json", {**corpus.body, "contamination": {**corpus.body.get("contamination", {}), **verdicts}})
            corpus = Corpus(ctx.out)
            ctx.fact(contamination=verdicts)
        size = f"{funnel['bytes'] / 1e6:.1f} of {funnel['bytes_in'] / 1e6:.1f} MB"
        ctx.say(f"{funnel['docs']:,} of {funnel['docs_in']:,} documents live ({size})")
        return corpus
