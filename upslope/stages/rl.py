"""Rl: reinforcement learning on tasks, from a checkpoint; groups of samples, rewards, one policy-gradient objective."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import Field

from upslope.config import Exec, Input, Neutral, UsageError, Wants
from upslope.machine.context import Context
from upslope.machine.stage import Need, Stage
from upslope.model.adapter_config import Adapter
from upslope.optim.config import AdamW, Optim
from upslope.precision.config import Numerics
from upslope.rl.buffer import Curriculum
from upslope.rl.environments import SingleTurn
from upslope.rl.objective import Objective
from upslope.rl.protocol import Environment, Reward
from upslope.rl.rewards import Exact
from upslope.train.init import From

if TYPE_CHECKING:
    from upslope.model.checkpoint import Checkpoint
    from upslope.tasks.task import Task


class Rl(Stage):
    """Each step: `prompts` tasks x `samples` answers, graded, then `updates` optimizer steps on them.

    tasks: read from their train split. families: only these (empty = all). curriculum: which tasks to draw. max_new: most
    new tokens of an answer. think: free = the model decides; forced = every answer starts inside a think block. clip:
    largest gradient norm. adapter: as in the other training stages; the reference of a KL penalty is its base. The learning rate
    is constant. micro_tokens: of one forward and backward; slots: answers sampled at once; save_seconds: between saved states.

    The checkpoint also holds `traces/`: samples for the first step's prompts, before and after.
    """

    kind: ClassVar[str] = "rl"
    makes: ClassVar[str] = "Checkpoint"
    seeded: ClassVar[bool] = True
    code: ClassVar[tuple[str, ...]] = (
        "upslope.rl",
        "upslope.align",
        "upslope.train",
        "upslope.optim",
        "upslope.generate",
        "upslope.model",
        "upslope.chat",
        "upslope.tasks",
    )

    init: From
    tasks: Annotated[Input, Wants("Tasks")]
    reward: Reward = Exact()
    environment: Environment = SingleTurn()
    objective: Objective = Objective()
    optim: Optim = AdamW(lr=3e-4, weight_decay=0.0)
    curriculum: Curriculum = Curriculum()
    families: tuple[str, ...] = ()
    steps: int = Field(default=44, ge=1)
    prompts: int = Field(default=32, ge=1)
    samples: int = Field(default=16, ge=2)
    updates: int = Field(default=1, ge=1)
    max_new: int = Field(default=48, ge=1)
    think: Literal["free", "forced"] = "free"
    numerics: Numerics = "bf16"
    clip: Annotated[float, Field(gt=0)] | None = 1.0
    adapter: Annotated[Adapter | None, Neutral(None)] = None
    micro_tokens: Annotated[int, Field(ge=0), Exec()] = 16384
    slots: Annotated[int, Field(ge=1), Exec()] = 512
    save_seconds: Annotated[float, Field(ge=0), Exec()] = 20.0

    def need(self) -> Need:
        """One trainer with an engine beside it."""
        return Need("actors")

    def run(self, ctx: Context) -> Checkpoint:
        """Climbs, then writes the policy and the traces to show."""
        from upslope.chat.render import ChatML
        from upslope.generate.local import LocalEngine
        from upslope.model.adapters import plain
        from upslope.rl.buffer import Buffer
        from upslope.rl.climb import Climb, facts, finish
        from upslope.tasks.artifacts import Tasks
        from upslope.train.adapting import AdapterTrainer, Base, prepare
        from upslope.train.init import materialise, restore, write_checkpoint
        from upslope.train.trainer import Trainer

        with ctx.events.state("load"):
            tasks = chosen_tasks(ctx.open(self.tasks, Tasks).read("train"), self.families)
            model, tokenizer = materialise(self.init, ctx)
            if self.adapter is not None:
                prepare(model, self.adapter, ctx)
            trainer = self._trainer(Trainer if self.adapter is None else AdapterTrainer, model, ctx)
            restore(self.init, ctx, trainer)
            engine = ctx.actors(lambda _: LocalEngine(plain(model), tokenizer, slots=self.slots, numerics=self.numerics), 1)[0].value
            if self.objective.kl is None:
                reference = None
            else:
                frozen = isinstance(trainer, AdapterTrainer)
                reference = Base(trainer) if frozen else self._trainer(Trainer, materialise(self.init, ctx)[0], ctx)
            grader = self.reward.prepare(ctx)
        climb = Climb(
            trainer,
            engine,
            ChatML(tokenizer),
            Buffer(tasks, self.curriculum),
            grader,
            self.objective,
            self.prompts,
            self.samples,
            self.max_new,
            self.updates,
            self.think == "forced",
            self.environment,
            reference,
            self.save_seconds,
        )
        try:
            series = climb.run(self.steps, ctx)
            finish(climb, ctx, ctx.out / "traces")
        finally:
            grader.close()
        found = facts(series)
        ctx.fact(**found, pass_rates={c: round(p, 3) for c, p in climb.buffer.pass_rates().items()}, reward_kind=type(self.reward).kind)
        (first, last), (short, long) = found["ends"]["reward"], found["ends"]["length"]
        control = " (control: random reward)" if type(self.reward).kind == "random" else ""
        ctx.say(f"reward {_shown(first)} → {_shown(last)} in {self.steps} steps{control}; answers {_shown(short)} → {_shown(long)} tokens")
        return write_checkpoint(ctx.out, trainer, tokenizer)

    def _trainer(self, make: Any, model: Any, ctx: Context) -> Any:
        return make(model, self.optim, numerics=self.numerics, clip=self.clip, micro_tokens=self.micro_tokens, events=ctx.events)


def chosen_tasks(tasks: list[Task], families: tuple[str, ...]) -> list[Task]:
    """The tasks of the named families (all for none); UsageError for a family without tasks."""
    have = sorted({t.family for t in tasks})
    for family in families:
        if family not in have:
            raise UsageError(f"families: no train task of family {family!r}; there are: {', '.join(have)}")
    return [t for t in tasks if not families or t.family in families]


def _shown(value: float | None) -> str:
    return "n/a" if value is None else f"{value:.3g}"
