"""Supervised fine-tuning on conversations: whole chats packed into a step, only the assistant's words trained."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, ClassVar

from pydantic import Field

from upslope.config import Duration, Input, UsageError, Wants
from upslope.optim.config import AdamW, Optim
from upslope.optim.schedule import LinearToZero, Schedule
from upslope.train.init import From, materialise, restore, write_checkpoint
from upslope.train.stage import Training

if TYPE_CHECKING:
    from upslope.machine.context import Context
    from upslope.model.checkpoint import Checkpoint
    from upslope.train.batch import Batch


class Sft(Training):
    """Imitates the assistant turns of chats; every chat is a segment of its own, in a new order each epoch.

    chats_per_step: conversations a step. Chats longer than the model's context are left out, counted and alarmed.
    """

    kind: ClassVar[str] = "sft"
    code: ClassVar[tuple[str, ...]] = (*Training.code, "upslope.chat")

    init: From
    chats: Annotated[tuple[Input, ...], Wants("Chats")]
    length: Duration = Duration.of("2ep")
    optim: Optim = AdamW(lr=2e-5)
    schedule: Schedule = LinearToZero(warmup=0.03)
    chats_per_step: int = Field(default=64, ge=1)
    z_loss: float = Field(default=0.0, ge=0)

    def run(self, ctx: Context) -> Checkpoint:
        """Trains and writes a checkpoint with its optimizer state."""
        from upslope.chat.artifacts import Chats
        from upslope.chat.render import ChatML
        from upslope.train.build import fitting, of_rendered, render
        from upslope.train.losses import Imitate
        from upslope.train.order import examples

        with ctx.events.state("load"):
            model, tokenizer = materialise(self.init, ctx)
            renderer = ChatML(tokenizer)
            everything = [render(renderer, chat) for ref in self.chats for chat in ctx.open(ref, Chats)]
            chats = fitting(everything, model.config.context, ctx)
            if not chats:
                raise UsageError(f"sft: none of the {len(everything)} chats fits into the model's context of {model.config.context} tokens")
            parameters = sum(p.numel() for p in model.parameters())
            trainer = self.trainer(ctx, model)
            restore(self.init, ctx, trainer)
        tokens = sum(len(c) for c in chats)
        steps = self.steps_of(len(chats), self.chats_per_step, tokens, parameters)

        def batch(step: int) -> Batch:
            chosen = examples(len(chats), self.chats_per_step, step, ctx.seed_of("order"))
            return of_rendered([chats[i] for i in chosen], chosen)

        history = self.fitted(ctx, trainer, batch, Imitate(self.z_loss), steps, tokens // len(chats))
        ctx.fact(chats=len(chats), epochs=round(steps * self.chats_per_step / len(chats), 4))
        ctx.say(f"{steps} steps on {len(chats):,} chats: {history.last('nll'):.3f} nats a target token")
        return write_checkpoint(ctx.out, trainer, tokenizer)
