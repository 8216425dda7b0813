"""A reward model: a scalar head on a language model, trained on pairs by Bradley-Terry."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, ClassVar

from pydantic import Field

from upslope.config import Duration, Input, Wants
from upslope.optim.config import AdamW, Optim
from upslope.optim.schedule import LinearToZero, Schedule
from upslope.train.init import Load, materialise, restore, write_checkpoint
from upslope.train.stage import Training, interval

if TYPE_CHECKING:
    from upslope.machine.context import Context
    from upslope.model.checkpoint import Checkpoint
    from upslope.train.batch import Batch


class RewardModel(Training):
    """Scores a reply by a scalar read at its last token; the head starts at zero.

    center: pulls the two scores of a pair towards opposite signs, so that scores have a fixed level. Held-out pair
    accuracy is a fact, with a Wilson interval, beside that of the rule "the longer reply is better".
    """

    kind: ClassVar[str] = "reward_model"
    code: ClassVar[tuple[str, ...]] = (*Training.code, "upslope.chat")

    init: Load
    pairs: Annotated[tuple[Input, ...], Wants("Pairs")]
    length: Duration = Duration.of("1ep")
    optim: Optim = AdamW(lr=1e-5, weight_decay=0.0)
    schedule: Schedule = LinearToZero(warmup=0.03)
    pairs_per_step: int = Field(default=32, ge=1)
    center: float = Field(default=0.01, ge=0)

    def run(self, ctx: Context) -> Checkpoint:
        """Trains and writes a checkpoint with its scalar head and optimizer state."""
        from upslope.chat.render import ChatML
        from upslope.model.heads import ScalarHead
        from upslope.train.losses import BradleyTerry
        from upslope.train.order import examples
        from upslope.train.pairs import open_pairs, scores

        with ctx.events.state("load"):
            model, tokenizer = materialise(self.init, ctx)
            parameters = sum(p.numel() for p in model.parameters())
            trainer = self.trainer(ctx, model, ScalarHead(model.config.d_model))
            restore(self.init, ctx, trainer)
            data = open_pairs(ctx, self.pairs, ChatML(tokenizer), model.config.context)
        steps = self.steps_of(len(data.train), self.pairs_per_step, data.tokens, parameters)

        def batch(step: int) -> Batch:
            return data.batch(examples(len(data.train), self.pairs_per_step, step, ctx.seed_of("order")))

        history = self.fitted(ctx, trainer, batch, BradleyTerry(self.center), steps, data.tokens // (2 * len(data.train)))
        with ctx.events.state("evaluate"):
            held = scores(trainer, data.heldout)
        right = interval(int((held[:, 0] > held[:, 1]).sum()), len(held))
        longer = interval(sum(len(w) > len(l) for w, l in data.heldout), len(held))
        means = [round(float(m), 4) for m in held.mean(0)] if len(held) else None
        ctx.fact(pairs=len(data.train), heldout_accuracy=right, heldout_longer_is_better=longer, heldout_scores=means)
        shown = "no held-out pairs" if right is None else f"{right['value']:.1%} of {right['n']} held-out pairs ranked right"
        ctx.say(f"{steps} steps on {len(data.train):,} pairs: {shown}, {history.last('accuracy'):.1%} in training")
        return write_checkpoint(ctx.out, trainer, tokenizer)
