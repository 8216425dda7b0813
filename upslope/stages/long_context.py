"""long_context: does a model use the context that it is given? Needles by length and depth, and nats a token by position."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Self

from pydantic import Field, model_validator

from upslope.config import Input, Wants
from upslope.evals.needle import Needle
from upslope.evals.position_nll import PositionNll
from upslope.evals.subject import Deployment
from upslope.evals.suites import Suite
from upslope.machine.context import Context
from upslope.machine.stage import Stage

if TYPE_CHECKING:
    from upslope.evals.artifacts import Table


class LongContext(Stage):
    """Both checks on one checkpoint, on held-out documents; the table is that of an `evaluate` stage, so a gate can ask for it.

    The facts hold the grid of needles and the curve of positions, as numbers and as lines of text. needle, position: the checks, suites of
    kinds `needle` and `position_nll`. Lengths may pass what the model was trained on: that is how a broken extension shows.
    """

    kind: ClassVar[str] = "long_context"
    makes: ClassVar[str] = "Table"
    seeded: ClassVar[bool] = True
    code: ClassVar[tuple[str, ...]] = ("upslope.evals", "upslope.stats", "upslope.model")

    checkpoint: Annotated[Input, Wants("Checkpoint")]
    shards: Annotated[tuple[Input, ...], Wants("TokenShards"), Field(min_length=1)]
    needle: Suite = Needle()
    position: Suite = PositionNll()
    deployment: Deployment = Deployment()

    @model_validator(mode="after")
    def _kinds(self) -> Self:
        for name, wanted in (("needle", Needle), ("position", PositionNll)):
            if not isinstance(suite := getattr(self, name), wanted):
                raise ValueError(f"{name}: a suite of kind {wanted.kind!r} is wanted, not {type(suite).kind!r}")
        return self

    def run(self, ctx: Context) -> Table:
        """The rows of both; a stopped run goes on with the first unfinished check."""
        from upslope.evals import needle, position_nll
        from upslope.stages.evaluate import Evaluate

        suites = (self.needle, self.position)
        measure = Evaluate(checkpoint=self.checkpoint, shards=self.shards, suites=suites, deployment=self.deployment, seed=ctx.seed)
        table = measure.run(ctx)
        rows = table.rows()
        grid = needle.summary([r for r in rows if r.suite == self.needle.label])
        curve = position_nll.summary([r for r in rows if r.suite == self.position.label])
        text = f"{needle.text(grid)}\n\n{position_nll.text(curve)}"
        ctx.fact(needle=grid, position_nll=curve, text=text)
        ctx.say(headline(grid, curve))
        return table


def headline(grid: dict[str, Any], curve: dict[str, Any]) -> str:
    """Needles found at the longest length, nats a token at the end of the longest texts, and the rise past the trained length."""
    longest, last = grid["lengths"][-1], curve["buckets"][-1]
    parts = [
        f"needles found in {longest['length']:,} tokens: {longest['found']:.0%} [{longest['low']:.0%}, {longest['high']:.0%}]"
        f" of {longest['n']}, {longest['guessed']:.0%} without a needle",
        f"{last['nll']:.3f} nats a token at {last['from']:,} to {last['to']:,}",
    ]
    if curve["beyond"]:
        e = curve["beyond"]
        parts.append(f"{e['value']:+.3f} [{e['low']:+.3f}, {e['high']:+.3f}] past {e['past']:,}")
    return " · ".join(parts)
