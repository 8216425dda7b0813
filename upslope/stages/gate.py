"""Gate: decide about one object from evidence, by the rules of a framework."""

from __future__ import annotations

from typing import Annotated, ClassVar

from upslope.config import Input, Source, Wants
from upslope.evals.subject import Deployment
from upslope.machine.context import Context
from upslope.machine.stage import Stage
from upslope.safety.gate import Approval, Decision, Framework, decide


class Gate(Stage):
    """Seals a decision, whatever it is; what follows from it is up to the stages that read it (`release` refuses).

    evidence: tables of evaluate and redteam stages. framework: a TOML file. deployment: how the object is to be used.
    approvals: recorded agreements, for frameworks that ask for them.
    """

    kind: ClassVar[str] = "gate"
    makes: ClassVar[str] = "Decision"
    code: ClassVar[tuple[str, ...]] = ("upslope.safety", "upslope.stats", "upslope.evals")

    checkpoint: Annotated[Input, Wants("Checkpoint")]
    evidence: Annotated[tuple[Input, ...], Wants("Table")] = ()
    framework: Source = Source(uri="package:frameworks/demo.toml")
    deployment: Deployment = Deployment()
    approvals: tuple[Approval, ...] = ()

    def run(self, ctx: Context) -> Decision:
        """The decision."""
        from upslope.evals.artifacts import Table
        from upslope.evals.subject import Subject
        from upslope.model.checkpoint import Checkpoint

        subject = Subject.of(ctx.open(self.checkpoint, Checkpoint).weights, self.deployment)
        decision = decide(Framework.read(self.framework.path()), subject, [ctx.open(e, Table) for e in self.evidence], self.approvals)
        ctx.fact(outcome=decision["label"], object=decision["object_digest"], reasons=decision["reasons"], findings=decision["findings"])
        watermark = f" ({decision['watermark'].removeprefix('demo: ')})" if decision["demo"] else ""
        ctx.say(f"{decision['label']}{watermark}" + (f": {decision['reasons'][0]}" if decision["reasons"] else ""))
        return Decision.write(ctx.out, decision)
