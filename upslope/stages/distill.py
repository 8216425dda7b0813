"""Distillation: a student learns a teacher's distributions, on its own samples or on given conversations."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal, NamedTuple

from pydantic import Field

from upslope.config import Config, Duration, Input, UsageError, Wants
from upslope.optim.config import AdamW, Optim
from upslope.optim.schedule import Constant, Schedule
from upslope.train.init import From, materialise, restore, write_checkpoint
from upslope.train.stage import Training

if TYPE_CHECKING:
    from upslope.chat.render import ChatML
    from upslope.machine.context import Context
    from upslope.model.checkpoint import Checkpoint
    from upslope.tokens.tokenizer import Tokenizer
    from upslope.train.batch import Batch
    from upslope.train.trainer import Trainer


class OnPolicy(Config):
    """The student samples answers to tasks, the teacher scores them. No gradient goes through the sampling.

    prompts: a step; samples: of each prompt; max_new: tokens of an answer at most. Source: Agarwal et al. 2024 (GKD).
    """

    kind: Literal["on_policy"] = "on_policy"
    tasks: Annotated[tuple[Input, ...], Wants("Tasks")]
    prompts: int = Field(default=32, ge=1)
    samples: int = Field(default=1, ge=1)
    max_new: int = Field(default=512, ge=1)
    temperature: float = Field(default=1.0, gt=0)


class Offline(Config):
    """The teacher scores the assistant's words of given chats. Source: Hinton et al. 2015."""

    kind: Literal["offline"] = "offline"
    chats: Annotated[tuple[Input, ...], Wants("Chats")]
    chats_per_step: int = Field(default=64, ge=1)


class Planned(NamedTuple):
    """How a form of distillation trains: the batch of a step, its examples, and their size."""

    batch: Callable[[int], Batch]
    examples: int
    per_step: int
    segments: int
    tokens: int


class Distill(Training):
    """Minimises a divergence to a teacher's distribution per token; student and teacher share the tokenizer.

    init: the student. beta: 1 reverse KL(student || teacher), 0 forward KL, between them generalised Jensen-Shannon.
    top_k: teacher tokens kept per position, the rest as one bucket; 0 = the whole vocabulary, exactly. length: "ep" counts
    passes over tasks or chats.
    """

    kind: ClassVar[str] = "distill"
    code: ClassVar[tuple[str, ...]] = (*Training.code, "upslope.chat", "upslope.generate")

    init: From
    teacher: Annotated[Input, Wants("Checkpoint")]
    form: Annotated[OnPolicy | Offline, Field(discriminator="kind")]
    length: Duration = Duration.of("200st")
    optim: Optim = AdamW(lr=2e-5)
    schedule: Schedule = Constant(warmup=0.03)
    beta: float = Field(default=1.0, ge=0, le=1)
    top_k: int = Field(default=0, ge=0)

    def run(self, ctx: Context) -> Checkpoint:
        """Trains and writes a checkpoint with its optimizer state."""
        from upslope.chat.render import ChatML
        from upslope.model.checkpoint import Checkpoint
        from upslope.precision.autocast import autocast
        from upslope.train.build import teach
        from upslope.train.losses import DistilLoss

        with ctx.events.state("load"):
            model, tokenizer = materialise(self.init, ctx)
            checkpoint = ctx.open(self.teacher, Checkpoint)
            teacher = checkpoint.model()
            same_tokens(tokenizer, checkpoint.tokenizer())
            parameters = sum(p.numel() for p in model.parameters())
            trainer = self.trainer(ctx, model)
            restore(self.init, ctx, trainer)
            renderer = ChatML(tokenizer)
            plan = (
                self._on_policy(self.form, ctx, trainer, renderer)
                if isinstance(self.form, OnPolicy)
                else self._offline(self.form, ctx, trainer, renderer)
            )
        steps = self.steps_of(plan.examples, plan.per_step, plan.tokens, parameters)

        def batch(step: int) -> Batch:
            b = plan.batch(step)
            with autocast(self.computes_in):
                return teach(b, teacher, teacher.logits, self.top_k)

        history = self.fitted(ctx, trainer, batch, DistilLoss(self.beta), steps, plan.tokens // plan.segments)
        first = history.series["divergence"][: max(1, steps // 10)]
        start, end = sum(first) / len(first), history.last("divergence", len(first))
        ctx.fact(form=self.form.kind, divergence={"first": round(start, 5), "last": round(end, 5)})
        ctx.say(f"{steps} steps {self.form.kind.replace('_', '-')}: divergence from the teacher {start:.3f} → {end:.3f} nats a token")
        return write_checkpoint(ctx.out, trainer, tokenizer)

    def _on_policy(self, form: OnPolicy, ctx: Context, trainer: Trainer, renderer: ChatML) -> Planned:
        """tokens: of all prompts with their answers, at most."""
        from upslope.generate.engine import LocalEngine, Request, Sampling, generate
        from upslope.model.adapters import plain
        from upslope.tasks.artifacts import Tasks
        from upslope.train.build import of_completions
        from upslope.train.order import examples

        tasks = [task for ref in form.tasks for task in ctx.open(ref, Tasks).read("train")]
        if not tasks:
            raise UsageError("distill: the tasks have no rows in their split 'train'")
        prompts = [renderer.open(task.messages).ids.tolist() for task in tasks]
        engine = LocalEngine(plain(trainer.model), renderer.tokenizer, numerics=self.computes_in)
        sampling = Sampling(max_new=form.max_new, temperature=form.temperature)

        def make(step: int) -> Batch:
            engine.load(trainer.weights(), step + 1)
            chosen = [i for i in examples(len(tasks), form.prompts, step, ctx.seed_of("order")) for _ in range(form.samples)]
            requests = [Request(f"{step}-{n}", prompts[i], sampling, ctx.seed_of("sample", step, n)) for n, i in enumerate(chosen)]
            done = generate(engine, requests)
            return of_completions([prompts[i] for i in chosen], [c.ids for c in done])

        tokens = sum(len(p) + form.max_new for p in prompts) * form.samples
        return Planned(make, len(tasks), form.prompts, len(tasks) * form.samples, tokens)

    def _offline(self, form: Offline, ctx: Context, trainer: Trainer, renderer: ChatML) -> Planned:
        """tokens: of all chats."""
        from upslope.chat.artifacts import Chats
        from upslope.train.build import fitting, of_rendered, render
        from upslope.train.order import examples

        everything = [render(renderer, chat) for ref in form.chats for chat in ctx.open(ref, Chats)]
        chats = fitting(everything, trainer.model.config.context, ctx)
        if not chats:
            raise UsageError(f"distill: none of the {len(everything)} chats fits into the context of {trainer.model.config.context} tokens")

        def make(step: int) -> Batch:
            chosen = examples(len(chats), form.chats_per_step, step, ctx.seed_of("order"))
            return of_rendered([chats[i] for i in chosen], chosen)

        return Planned(make, len(chats), form.chats_per_step, len(chats), sum(len(c) for c in chats))


def same_tokens(student: Tokenizer, teacher: Tokenizer) -> None:
    """UsageError where two tokenizers give ids other meanings: a divergence over the vocabulary would be nonsense."""
    if (student.path / "tokenizer.json").read_bytes() != (teacher.path / "tokenizer.json").read_bytes():
        raise UsageError(
            "distill: student and teacher have different tokenizers, so their distributions cannot be compared\n"
            "way out: a teacher with the student's tokenizer, or sft on chats that the teacher wrote"
        )
