"""Sample: many graded answers of a checkpoint to training tasks; `keep` and `contrast` choose among them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from pydantic import Field

from upslope.config import Exec, Input, Wants
from upslope.machine.context import Context
from upslope.machine.stage import Need, Stage
from upslope.precision.config import Numerics
from upslope.rl.environments import SingleTurn
from upslope.rl.protocol import Environment, Reward
from upslope.rl.rewards import Exact

if TYPE_CHECKING:
    from upslope.rl.artifacts import Traces

ROWS = 512
"""Answers to a chunk, the unit of sampling and resuming: enough to fill an engine."""


class Sample(Stage):
    """`samples` answers to each of `prompts` tasks of the train split (0 = all), graded.

    families: only these (empty = all). max_new: most new tokens. temperature, top_p: of sampling. think: forced = every
    answer starts inside a think block.
    """

    kind: ClassVar[str] = "sample"
    makes: ClassVar[str] = "Traces"
    seeded: ClassVar[bool] = True
    code: ClassVar[tuple[str, ...]] = ("upslope.rl", "upslope.align", "upslope.generate", "upslope.model", "upslope.chat", "upslope.tasks")

    checkpoint: Annotated[Input, Wants("Checkpoint")]
    tasks: Annotated[Input, Wants("Tasks")]
    reward: Reward = Exact()
    environment: Environment = SingleTurn()
    families: tuple[str, ...] = ()
    prompts: int = Field(default=512, ge=0)
    samples: int = Field(default=8, ge=1)
    max_new: int = Field(default=48, ge=1)
    temperature: float = Field(default=1.0, gt=0)
    top_p: float = Field(default=1.0, gt=0, le=1)
    think: Literal["free", "forced"] = "free"
    numerics: Numerics = "bf16"
    slots: Annotated[int, Field(ge=1), Exec()] = 512

    def need(self) -> Need:
        """One engine."""
        return Need("actors")

    def run(self, ctx: Context) -> Traces:
        """Samples in chunks of prompts; a stopped run goes on with the first unfinished chunk."""
        from upslope.chat.render import ChatML
        from upslope.generate.engine import Sampling
        from upslope.generate.local import LocalEngine
        from upslope.model.checkpoint import Checkpoint
        from upslope.rl.artifacts import Traces
        from upslope.rl.objective import task_score
        from upslope.rl.rollout import grade, rollout
        from upslope.stages.rl import chosen_tasks
        from upslope.tasks.artifacts import Tasks

        with ctx.events.state("load"):
            checkpoint = ctx.open(self.checkpoint, Checkpoint)
            tokenizer, model = checkpoint.tokenizer(), checkpoint.model()
            engine = ctx.actors(lambda _: LocalEngine(model, tokenizer, slots=self.slots, numerics=self.numerics), 1)[0].value
            tasks = chosen_tasks(ctx.open(self.tasks, Tasks).read("train"), self.families)
            order = ctx.rng("prompts").permutation(len(tasks))[: self.prompts or None]
            grader = self.reward.prepare(ctx)
        renderer = ChatML(tokenizer)
        sampling = Sampling(max_new=self.max_new, temperature=self.temperature, top_p=self.top_p)
        size = max(1, ROWS // self.samples)
        chunks = [order[i : i + size] for i in range(0, len(order), size)]
        traces = []
        try:
            for c, chunk in enumerate(chunks):
                ctx.check_stop()
                folder = ctx.work / f"chunk-{c:05d}"
                if not (folder / "traces.parquet").exists():
                    with ctx.events.state("rollout"):
                        groups = rollout(
                            engine,
                            renderer,
                            [tasks[i] for i in chunk],
                            samples=self.samples,
                            sampling=sampling,
                            seed=lambda i, j, c=c: ctx.seed_of("sample", c, i, j),  # type: ignore[misc]
                            environment=self.environment,
                            think=self.think == "forced",
                            name=str(c),
                        )
                    with ctx.events.state("grade"):
                        groups = grade(grader, groups)
                    Traces.write(folder, [("sample", t) for g in groups for t in g if t.nodes])
                traces += Traces.load(folder).read()
                ctx.events.progress(c + 1, len(chunks), "chunks")
        finally:
            grader.close()
        valid = [t for t in traces if t.total.valid]
        solved = {t.task for t in valid if task_score(t).value >= 1}
        right = sum(task_score(t).value >= 1 for t in valid) / max(1, len(valid))
        wanted = len(order) * self.samples
        ctx.fact(samples=wanted, invalid=wanted - len(valid), right=round(right, 4), prompts=len(order), solved=len(solved))
        ctx.say(f"{right:.1%} of {len(valid)} samples right; {len(solved)} of {len(order)} prompts solved at least once")
        return Traces.write(ctx.out, [("sample", t) for t in traces])
