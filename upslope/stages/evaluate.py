"""Evaluate: measure a checkpoint with suites; one row per item, with conditions and intervals."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar

from upslope.config import Input, Wants
from upslope.evals.artifacts import Estimate, Row, Table, shown
from upslope.evals.subject import Deployment
from upslope.evals.suites import Bench, Suite
from upslope.machine.context import Context
from upslope.machine.files import read_json, write_json
from upslope.machine.stage import Problem, Stage


class Evaluate(Stage):
    """Runs each suite on the checkpoint in its deployment. A stopped run goes on with the first unfinished suite.

    tasks: held-out problems, for suites that ask them. shards: held-out documents (and, for the bigram, the training
    tokens). mixture: what training drew from.
    """

    kind: ClassVar[str] = "evaluate"
    makes: ClassVar[str] = "Table"
    seeded: ClassVar[bool] = True
    code: ClassVar[tuple[str, ...]] = (
        "upslope.evals",
        "upslope.stats",
        "upslope.generate",
        "upslope.model",
        "upslope.chat",
        "upslope.tasks",
    )

    checkpoint: Annotated[Input, Wants("Checkpoint")]
    suites: tuple[Suite, ...]
    tasks: Annotated[Input | None, Wants("Tasks")] = None
    shards: Annotated[tuple[Input, ...], Wants("TokenShards")] = ()
    mixture: Annotated[Input | None, Wants("Mixture")] = None
    deployment: Deployment = Deployment()

    def check(self, inputs: Mapping[str, Any]) -> list[Problem]:
        """Suites must have different names, and at least one."""
        labels = [suite.label for suite in self.suites]
        twice = sorted({x for x in labels if labels.count(x) > 1})
        found = [Problem("suites", f"two suites are called {x!r}; give one a `name`") for x in twice]
        return found or ([] if labels else [Problem("suites", "is empty: name at least one suite")])

    def run(self, ctx: Context) -> Table:
        """Rows of all suites."""
        from upslope.model.checkpoint import Checkpoint
        from upslope.tasks.artifacts import Tasks
        from upslope.tokens.mixture import Mixture
        from upslope.tokens.shards import TokenShards

        def check(done: int, total: int, unit: str) -> None:
            ctx.check_stop()
            ctx.events.progress(done, total, unit)

        bench = Bench(
            ctx.open(self.checkpoint, Checkpoint),
            self.deployment,
            tasks=ctx.open(self.tasks, Tasks).read("heldout") if self.tasks else (),
            shards=tuple(ctx.open(s, TokenShards) for s in self.shards),
            mixture=ctx.open(self.mixture, Mixture) if self.mixture else None,
            seed=ctx.seed,
            check=check,
        )
        rows: list[Row] = []
        with ctx.events.state("evaluate"):
            for i, suite in enumerate(self.suites):
                ctx.check_stop()
                file = ctx.work / f"suite-{i}.json"
                if not file.exists():
                    write_json(file, suite.run(bench))
                rows += [Row(*r)._replace(run=(bench.subject.weights or "")[:12]) for r in read_json(file)]
        table = Table.write(ctx.out, rows, {suite.label: suite.condition(bench) for suite in self.suites})
        results = table.summary()
        families = {e.group: e.value for e in table.summary(1) if e.metric == "correct" and e.suite == "accuracy"}
        ctx.fact(results=[shown(e) for e in results], object=bench.subject.digest(), **({"families": families} if families else {}))
        ctx.say(headline(results))
        return table


def headline(results: list[Estimate]) -> str:
    """The numbers that say most: shares answered correctly, bits per byte."""
    parts = []
    for e in results:
        limits = f" [{e.interval.low:.1%}, {e.interval.high:.1%}]" if e.interval and e.unit != "bits per byte" else ""
        if e.metric == "correct":
            parts.append(f"{e.suite.replace('_', ' ')} {e.value:.1%}{limits} n={e.n}")
        elif e.unit == "bits per byte":
            parts.append(f"{e.suite.replace('_', ' ')} {e.value:.3f}")
    return " · ".join(parts) or f"{len(results)} metrics"
