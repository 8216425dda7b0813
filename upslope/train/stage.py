"""What all training stages share: optimizer, schedule, numerics, and how a fit becomes a checkpoint. Torch-free."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from pydantic import Field

from upslope.config import Duration, Exec, Neutral, UsageError
from upslope.machine.stage import Stage
from upslope.optim.config import Muon, Optim
from upslope.optim.schedule import WSD, Schedule
from upslope.precision.config import Numerics
from upslope.train.observers import Observer

if TYPE_CHECKING:
    from upslope.machine.context import Context
    from upslope.model.heads import ScalarHead
    from upslope.model.transformer import Transformer
    from upslope.train.batch import Batch
    from upslope.train.fit import History
    from upslope.train.protocol import Loss
    from upslope.train.trainer import Trainer


class Training(Stage):
    """Base of the stages that change weights by gradient steps.

    length: of the training ("500st", "2ep", "1e9tok", "20tpp"). clip: largest global gradient norm, or None. patience:
    refused (not finite) steps in a row before the stage fails. micro_tokens: most tokens of one forward and backward;
    save_seconds: between saves for resuming; log_every: steps between metrics; observers: read the model as it trains.
    only: patterns of the names of the parameters that are trained ("*.indexer.*"); none = all.
    """

    makes: ClassVar[str] = "Checkpoint"
    seeded: ClassVar[bool] = True
    code: ClassVar[tuple[str, ...]] = ("upslope.train", "upslope.optim", "upslope.precision", "upslope.model")

    length: Duration
    optim: Optim = Muon()
    schedule: Schedule = WSD()
    numerics: Numerics = "bf16"
    clip: float | None = Field(default=1.0, gt=0)
    only: Annotated[tuple[str, ...], Neutral(())] = ()
    patience: Annotated[int, Exec()] = Field(default=10, ge=1)
    micro_tokens: Annotated[int, Exec()] = Field(default=16384, ge=0)
    save_seconds: Annotated[float, Exec()] = Field(default=20.0, ge=0)
    log_every: Annotated[int, Exec()] = Field(default=5, ge=1)
    observers: Annotated[tuple[Observer, ...], Exec()] = ()

    def trainer(self, ctx: Context, model: Transformer, scalar: ScalarHead | None = None) -> Trainer:
        """A trainer of a model with this stage's settings."""
        from upslope.train.trainer import Trainer

        freeze(model, self.only)
        return Trainer(
            model,
            self.optim,
            numerics=self.numerics,
            clip=self.clip,
            micro_tokens=self.micro_tokens,
            scalar=scalar,
            patience=self.patience,
            events=ctx.events,
        )

    def fitted(
        self, ctx: Context, trainer: Trainer, batches: Callable[[int], Batch], loss: Loss, steps: int, length: int, tokens: int = 0
    ) -> History:
        """Runs the loop; the history's numbers become facts.

        length: typical tokens a segment, for the count of floating-point operations (forward and backward of the trained
        model). tokens: of the whole fit, where known.
        """
        from upslope.train.fit import fit

        ctx.events.emit("attention", backends=trainer.model.backends())
        history = fit(
            trainer,
            batches,
            loss,
            self.schedule,
            steps,
            ctx,
            self.observers,
            tokens=tokens,
            save_seconds=self.save_seconds,
            log_every=self.log_every,
        )
        flops = 3 * trainer.model.config.flops(length) * history.tokens
        ctx.fact(**history.facts(), parameters=sum(p.numel() for p in trainer.optimizer.parameters), flops=flops)
        return history

    def steps_of(self, examples: int, per_step: int, tokens: int, parameters: int) -> int:
        """Optimizer steps of `length`, for steps of `per_step` of `examples` examples that hold `tokens` tokens in all."""
        per = max(1, round(tokens * per_step / max(1, examples)))
        if self.length.unit == "ep":
            return max(1, round(self.length.amount * examples / per_step)) if self.length.amount else 0
        return self.length.steps(per, tokens_per_epoch=tokens, params=parameters)


def freeze(model: Transformer, only: tuple[str, ...]) -> None:
    """Leaves gradients to the parameters that a pattern names (none = all). UsageError for a pattern that names none."""
    from fnmatch import fnmatchcase

    names = [n for n, _ in model.named_parameters()]
    for pattern in only:
        if not any(fnmatchcase(n, pattern) for n in names):
            raise UsageError(f"only: {pattern!r} names no parameter\nfor example: {', '.join(names[:3])}")
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(not only or any(fnmatchcase(name, p) for p in only))


def interval(right: int, total: int) -> dict[str, Any] | None:
    """A proportion with its 95 % Wilson interval, as a fact; None of nothing."""
    from upslope.stats.intervals import wilson

    if total == 0:
        return None
    value, low, high = wilson(right, total)
    return {"value": round(value, 4), "low": round(low, 4), "high": round(high, 4), "n": total}
