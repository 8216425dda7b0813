"""readiness: is a base model ready for reinforcement learning on these tasks? A verdict with its numbers."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, Self

from pydantic import Field, model_validator

from upslope.config import Exec, Input, Wants, dump
from upslope.evals.readiness import Sampled, Thresholds
from upslope.machine.context import Context
from upslope.machine.files import read_json, write_json
from upslope.machine.stage import Need, Stage
from upslope.precision.config import Numerics
from upslope.rl.environments import SingleTurn
from upslope.rl.protocol import Environment, Reward
from upslope.rl.rewards import Exact
from upslope.tasks.families import ANSWER

if TYPE_CHECKING:
    from upslope.evals.artifacts import Table
    from upslope.rl.protocol import Trace

ROWS = 512  # answers to a chunk, the unit of resuming
Size = Annotated[int, Field(ge=1)]


class Readiness(Stage):
    """`samples` answers to each of `prompts` tasks of the train split, the ones that RL would learn from, graded and judged.

    form: "text" asks in plain lines, as a base model reads them; "chat" in the chat format. think: forced = inside a think block (chat).
    marker: what an answer begins with; it splits text into reasoning and answer, and an answer without it is not in form ("" = anything).
    group: size of RL's groups, at most `samples`: `mixed` is the share of such groups with right and wrong answers. ks: of pass@k.
    ngram: length of what counts as repeated. max_new, temperature, top_p: of sampling. families: only these (empty = all).
    thresholds: what counts as ready.
    """

    kind: ClassVar[str] = "readiness"
    makes: ClassVar[str] = "Table"
    seeded: ClassVar[bool] = True
    code: ClassVar[tuple[str, ...]] = (
        "upslope.evals",
        "upslope.stats",
        "upslope.rl",
        "upslope.generate",
        "upslope.model",
        "upslope.chat",
        "upslope.tasks",
    )

    checkpoint: Annotated[Input, Wants("Checkpoint")]
    tasks: Annotated[Input, Wants("Tasks")]
    reward: Reward = Exact()
    environment: Environment = SingleTurn()
    families: tuple[str, ...] = ()
    prompts: Annotated[int, Field(ge=2)] = 128
    samples: Annotated[int, Field(ge=2)] = 16
    group: Annotated[int, Field(ge=2)] = 16
    ks: tuple[Size, ...] = (1, 4, 16)
    max_new: Size = 64
    temperature: Annotated[float, Field(gt=0)] = 1.0
    top_p: Annotated[float, Field(gt=0, le=1)] = 1.0
    form: Literal["text", "chat"] = "text"
    think: Literal["free", "forced"] = "free"
    marker: str = ANSWER.strip()
    ngram: Size = 4
    thresholds: Thresholds = Thresholds()
    numerics: Numerics = "fp32"
    slots: Annotated[int, Field(ge=1), Exec()] = 512

    @model_validator(mode="after")
    def _sizes(self) -> Self:
        if max(self.group, *self.ks, 1) > self.samples:
            raise ValueError(f"samples = {self.samples}: group = {self.group} and ks = {self.ks} must not be larger")
        if self.form == "text" and self.think == "forced":
            raise ValueError("form = 'text' has no think block: think = 'forced' needs form = 'chat'")
        return self

    def need(self) -> Need:
        """One engine."""
        return Need("actors")

    def run(self, ctx: Context) -> Table:
        """Samples in chunks of prompts, then judges; a stopped run goes on with the first unfinished chunk."""
        from upslope.chat.render import ChatML
        from upslope.evals.artifacts import Condition, Table
        from upslope.evals.readiness import PlainText, judge, rows_of, sampled
        from upslope.evals.subject import Deployment, Subject
        from upslope.generate.engine import Sampling
        from upslope.generate.local import LocalEngine
        from upslope.model.checkpoint import Checkpoint
        from upslope.rl.rollout import grade, rollout
        from upslope.stages.rl import chosen_tasks
        from upslope.tasks.artifacts import Tasks

        with ctx.events.state("load"):
            checkpoint = ctx.open(self.checkpoint, Checkpoint)
            tokenizer, model = checkpoint.tokenizer(), checkpoint.model()
            engine = ctx.actors(lambda _: LocalEngine(model, tokenizer, slots=self.slots, numerics=self.numerics), 1)[0].value
            tasks = chosen_tasks(ctx.open(self.tasks, Tasks).read("train"), self.families)
            chosen = [tasks[i] for i in ctx.rng("prompts").permutation(len(tasks))[: self.prompts]]
            grader = self.reward.prepare(ctx)
        renderer: Any = ChatML(tokenizer) if self.form == "chat" else PlainText(tokenizer, self.marker)
        size = max(1, ROWS // self.samples)
        groups: dict[str, list[Sampled]] = {}

        def asked(c: int) -> list[list[Trace]]:
            return rollout(
                engine,
                renderer,
                chosen[c * size : (c + 1) * size],
                samples=self.samples,
                sampling=Sampling(max_new=self.max_new, temperature=self.temperature, top_p=self.top_p),
                seed=lambda i, j: ctx.seed_of("readiness", c, i, j),
                environment=self.environment,
                think=self.think == "forced",
                name=str(c),
            )

        try:
            for c in range(-(-len(chosen) // size)):
                ctx.check_stop()
                file = ctx.work / f"chunk-{c:05d}.json"
                if not file.exists():
                    with ctx.events.state("rollout"):
                        graded = grade(grader, asked(c))
                    kept = [[s for t in g if (s := sampled(t, self.marker, self.ngram)) is not None] for g in graded]
                    write_json(file, kept)
                for task, said in zip(chosen[c * size :], read_json(file)):
                    groups[f"{task.family}/{task.level:g}/{task.id}"] = [Sampled(*s) for s in said]
                ctx.events.progress(min(len(chosen), (c + 1) * size), len(chosen), "tasks")
        finally:
            grader.close()
        rows = rows_of("readiness", groups, self.ks, self.group)
        verdict = judge(rows, self.thresholds, self.group)
        lengths = sorted(s.tokens for g in groups.values() for s in g)
        spread = {f"p{q}": lengths[min(len(lengths) - 1, q * len(lengths) // 100)] for q in (5, 50, 95)} if lengths else {}
        deployed = Deployment(max_new=self.max_new, temperature=self.temperature, top_p=self.top_p, numerics=self.numerics)
        subject = Subject.of(checkpoint.weights, deployed)
        if self.form == "text":  # no chat template took part: these rows speak of no deployment as a chat model
            subject = replace(subject, template="plain text")
        rows = [r._replace(run=(subject.weights or "")[:12]) for r in rows]
        ctx.fact(**verdict.json(), tokens=spread, ungraded=len(chosen) * self.samples - len(lengths), text=verdict.lines())
        ctx.say(verdict.text())
        return Table.write(ctx.out, rows, {"readiness": Condition(subject, dump(self))})
