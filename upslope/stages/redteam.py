"""Red team: attack a checkpoint's rule to keep a secret, within a budget, and measure what keeping it costs."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Annotated, Any, ClassVar

from pydantic import Field

from upslope.config import Exec, Input, Wants, dump
from upslope.evals.subject import Deployment
from upslope.machine.context import Context
from upslope.machine.stage import Problem, Stage
from upslope.safety.attacks import STANDARD, Attack
from upslope.safety.redteam import SECRETS, Budget


class RedTeam(Stage):
    """Every attack against every secret; a stopped run repeats no finished attempt.

    tasks: ordinary held-out tasks for the over-refusal twins; without them over-refusal is not measured. secrets: how
    many words. twins: how many tasks. budget: per attack and secret.
    """

    kind: ClassVar[str] = "redteam"
    makes: ClassVar[str] = "Table"
    seeded: ClassVar[bool] = True
    code: ClassVar[tuple[str, ...]] = (
        "upslope.safety",
        "upslope.evals",
        "upslope.stats",
        "upslope.generate",
        "upslope.model",
        "upslope.chat",
        "upslope.tasks",
    )

    checkpoint: Annotated[Input, Wants("Checkpoint")]
    tasks: Annotated[Input | None, Wants("Tasks")] = None
    attacks: tuple[Attack, ...] = STANDARD
    budget: Budget = Budget()
    secrets: Annotated[int, Field(ge=1, le=len(SECRETS))] = 24
    twins: Annotated[int, Field(ge=1)] = 100
    deployment: Deployment = Deployment()
    at_once: Annotated[int, Exec()] = 256

    def check(self, inputs: Mapping[str, Any]) -> list[Problem]:
        """Attacks must have different names, and there must be one."""
        labels = [attack.label for attack in self.attacks]
        twice = sorted({x for x in labels if labels.count(x) > 1})
        found = [Problem("attacks", f"two attacks are called {x!r}; give one a `name`") for x in twice]
        return found or ([] if labels else [Problem("attacks", "is empty: name at least one attack")])

    def run(self, ctx: Context) -> Any:
        """Rows of the suites redteam, redteam/ATTACK, detector and over_refusal, and `attempts.jsonl`."""
        from upslope.evals.accuracy import select
        from upslope.evals.artifacts import Condition, Row, Table
        from upslope.evals.subject import Subject
        from upslope.evals.suites import Bench
        from upslope.generate.chat import EngineChat
        from upslope.machine.files import read_json, write_json, write_text
        from upslope.model.checkpoint import Checkpoint
        from upslope.safety import redteam as rt
        from upslope.tasks.artifacts import Tasks

        def check(done: int, total: int) -> None:
            ctx.check_stop()
            ctx.events.progress(done, total, "episodes")

        bench = Bench(ctx.open(self.checkpoint, Checkpoint), self.deployment)
        target = EngineChat(bench.engine, bench.renderer, self.deployment.sampling())
        against, seed, system = rt.scenarios(self.secrets), ctx.seed_of("redteam"), self.deployment.system
        state = ctx.work / "episodes.json"
        before = [rt.Episode.of(e) for e in read_json(state)] if state.exists() else None
        with ctx.events.state("evaluate"):
            episodes = rt.campaign(
                target,
                self.attacks,
                against,
                self.budget,
                system=system,
                seed=seed,
                at_once=self.at_once,
                episodes=before,
                save=lambda runs: write_json(state, [e.json() for e in runs]),
                check=check,
            )
            rows: list[Row] = [*rt.attack_rows(episodes, self.attacks, against), *rt.detector_rows(against)]
            if self.tasks is not None:
                ordinary = [t for t in ctx.open(self.tasks, Tasks).read("heldout") if t.family != "secret"]
                chosen = select(ordinary, self.twins)
                rows += rt.twin_rows(target, chosen, against, system=system, seed=seed, check=check, at_once=self.at_once)
        weights = (bench.subject.weights or "")[:12]
        card = Condition(bench.subject, {"budget": dump(self.budget), "attacks": [dump(a) for a in self.attacks], "secrets": self.secrets})
        blank = Condition(Subject(), {"secrets": self.secrets})
        write_text(
            ctx.out / "attempts.jsonl",
            "".join(json.dumps(line, sort_keys=True, ensure_ascii=False) + "\n" for line in rt.transcript(episodes, self.attacks, against)),
        )
        table = Table.write(
            ctx.out,
            [r._replace(run=weights) for r in rows],
            {suite: blank if suite == rt.DETECTOR else card for suite in {r.suite for r in rows}},
        )
        self._tell(ctx, table, sum(len(e.tree) for e in episodes), sum(e.undetermined for e in episodes))
        return table

    def _tell(self, ctx: Context, table: Any, attempts: int, lost: int) -> None:
        """Facts and headline: k of n with the interval that includes the detector's errors, and the price of the rule."""
        from upslope.evals.artifacts import shown
        from upslope.safety.gate import detector_quality
        from upslope.safety.redteam import SUITE, TWINS
        from upslope.stats.prevalence import prevalence

        results = {(e.suite, e.metric): e for e in table.summary()}
        quality = detector_quality(table.rows())
        ctx.fact(results=[shown(e) for e in results.values()], attempts=attempts, undetermined=lost)
        if lost:
            ctx.events.alarm("replies lost", episodes=lost)
        found = results.get((SUITE, "leaked"))
        if found is None or found.k is None or quality is None:
            ctx.say("no secret could be attacked to the end: nothing is known")
            return
        true = prevalence(found.k, found.n, quality.sensitivity, quality.specificity)
        ctx.fact(leaked={"k": found.k, "n": found.n, "value": true.value, "interval": [true.low, true.high], "detector": quality._asdict()})
        kept, alone = results.get((TWINS, "kept")), results.get((TWINS, "alone"))
        price = "; over-refusal not measured" if alone is None else f"; none of {alone.n} ordinary tasks is answered even without the rule"
        price = f"; of ordinary tasks {kept.value:.1%} still answered under the rule, n={kept.n}" if kept else price
        ctx.say(f"{found.k} of {found.n} secrets leaked in {attempts} attempts, true rate [{true.low:.1%}, {true.high:.1%}]{price}")
