"""Release: the weights in a folder for others, with a card, if and only if a decision covers exactly them."""

from __future__ import annotations

from typing import Annotated, ClassVar

from upslope.config import FrozenDict, Input, Wants
from upslope.evals.subject import Deployment
from upslope.machine.context import Context
from upslope.machine.stage import Stage
from upslope.safety.release import DataSource, Release, admit, write_release


class ReleaseStage(Stage):
    """Refuses without a decision that covers this object on this evidence; a demonstration is stamped as one.

    evidence: the tables that the decision was made from, in the same order. data: the token shards that training read.
    licences: source name → licence of its text. licence: of the weights. name: on the card.
    """

    kind: ClassVar[str] = "release"
    makes: ClassVar[str] = "Release"
    code: ClassVar[tuple[str, ...]] = ("upslope.safety", "upslope.stats", "upslope.evals")

    checkpoint: Annotated[Input, Wants("Checkpoint")]
    decision: Annotated[Input, Wants("Decision")]
    evidence: Annotated[tuple[Input, ...], Wants("Table")]
    data: Annotated[tuple[Input, ...], Wants("TokenShards")] = ()
    licences: FrozenDict[str, str] = FrozenDict()
    licence: str = "not stated"
    deployment: Deployment = Deployment()
    name: str = "upslope model"

    def run(self, ctx: Context) -> Release:
        """The release folder."""
        from upslope.evals.artifacts import Table
        from upslope.evals.subject import Subject
        from upslope.model.checkpoint import Checkpoint
        from upslope.safety.gate import Decision
        from upslope.tokens.shards import HELDOUT, TokenShards

        weights = ctx.open(self.checkpoint, Checkpoint).weights
        tables = [ctx.open(e, Table) for e in self.evidence]
        decision = admit(ctx.open(self.decision, Decision), Subject.of(weights, self.deployment), tables)
        sources, contamination = [], {}
        for shards in (ctx.open(d, TokenShards) for d in self.data):
            contamination.update(shards.contamination)
            for source in shards.training():
                held = shards.counts(source + HELDOUT).docs if source + HELDOUT in shards.sources() else 0
                size = shards.counts(source)
                sources.append(DataSource(source, size.docs, size.tokens, size.bytes, self.licences.get(source, "not stated"), held))
        release = write_release(ctx.out, self.name, weights, self.deployment, decision, tables, sources, self.licence, contamination)
        ctx.fact(outcome=decision["label"], object=decision["object_digest"])
        ctx.say(f"{self.name}: released" + (f', stamped "{decision["watermark"]}"' if decision["demo"] else f" ({decision['label']})"))
        return release
