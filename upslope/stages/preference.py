"""Preference optimisation on pairs: DPO."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, ClassVar

from pydantic import Field

from upslope.config import Duration, Input, Wants
from upslope.optim.config import AdamW, Optim
from upslope.optim.schedule import LinearToZero, Schedule
from upslope.train.init import From, materialise, restore, write_checkpoint
from upslope.train.stage import Training, interval

if TYPE_CHECKING:
    from upslope.machine.context import Context
    from upslope.model.checkpoint import Checkpoint
    from upslope.train.batch import Batch


class Preference(Training):
    """DPO against the model it starts from, whose log-probabilities of all replies are computed once.

    beta: strength of the tie to the reference. normalise: log-ratios per token (with beta about 5). nll: weight of the
    chosen replies' NLL. The share of held-out pairs whose implicit reward prefers the chosen reply is a fact, with a
    Wilson interval; ties are not right.
    """

    kind: ClassVar[str] = "preference"
    code: ClassVar[tuple[str, ...]] = (*Training.code, "upslope.chat")

    init: From
    pairs: Annotated[tuple[Input, ...], Wants("Pairs")]
    length: Duration = Duration.of("1ep")
    optim: Optim = AdamW(lr=1e-5, weight_decay=0.0)
    schedule: Schedule = LinearToZero(warmup=0.1)
    pairs_per_step: int = Field(default=32, ge=1)
    beta: float = Field(default=0.1, gt=0)
    normalise: bool = False
    nll: float = Field(default=0.0, ge=0)

    def run(self, ctx: Context) -> Checkpoint:
        """Trains and writes a checkpoint with its optimizer state."""
        from upslope.chat.render import ChatML
        from upslope.train.adapting import as_reference
        from upslope.train.losses import DPO
        from upslope.train.order import examples
        from upslope.train.pairs import open_pairs, reply_logprobs

        with ctx.events.state("load"):
            model, tokenizer = materialise(self.init, ctx)
            parameters = sum(p.numel() for p in model.parameters())
            trainer = self.trainer(ctx, model)
            restore(self.init, ctx, trainer)
            data = open_pairs(ctx, self.pairs, ChatML(tokenizer), model.config.context)
            with as_reference(model):
                ref = reply_logprobs(trainer, data.train)
                before = reply_logprobs(trainer, data.heldout)
        steps = self.steps_of(len(data.train), self.pairs_per_step, data.tokens, parameters)

        def batch(step: int) -> Batch:
            return data.batch(examples(len(data.train), self.pairs_per_step, step, ctx.seed_of("order")), ref)

        history = self.fitted(ctx, trainer, batch, DPO(self.beta, self.normalise, self.nll), steps, data.tokens // (2 * len(data.train)))
        with ctx.events.state("evaluate"):
            after = reply_logprobs(trainer, data.heldout)
            ratio = after - before
            if self.normalise:
                ratio = ratio / data.heldout_sizes()
        right = interval(int((ratio[:, 0] > ratio[:, 1]).sum()), len(ratio))
        ctx.fact(
            pairs=len(data.train),
            heldout_accuracy=right,
            heldout_ties=int((ratio[:, 0] == ratio[:, 1]).sum()),
            heldout_prefers_chosen={
                "before": interval(int((before[:, 0] > before[:, 1]).sum()), len(before)),
                "after": interval(int((after[:, 0] > after[:, 1]).sum()), len(after)),
            },
            chosen_logprob_change=round(float(ratio[:, 0].mean()), 5) if len(ratio) else None,
        )
        shown = "no held-out pairs" if right is None else f"{right['value']:.1%} of {right['n']} held-out pairs ranked right"
        ctx.say(f"{steps} steps on {len(data.train):,} pairs: {shown}, train margin {history.last('margin'):.2f}")
        return write_checkpoint(ctx.out, trainer, tokenizer)
