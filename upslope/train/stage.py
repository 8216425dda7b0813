"""What all training stages share: optimizer, schedule, numerics, and how a fit becomes a checkpoint. Torch-free."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from pydantic import Field

from upslope.config import Duration, Exec, Neutral, UsageError
from upslope.machine.stage import Need, Stage
from upslope.model.adapter_config import Adapter
from upslope.optim.config import Muon, Optim, QKClip
from upslope.optim.schedule import WSD, Schedule
from upslope.parallel.config import Mesh, Recompute
from upslope.precision.config import Numerics, Precision
from upslope.train.config import Checks, StopIf
from upslope.train.observers import Observer
from upslope.train.skip import SkipRule

if TYPE_CHECKING:
    from upslope.machine.context import Context
    from upslope.model.heads import ScalarHead
    from upslope.model.transformer import Transformer
    from upslope.train.batch import Batch
    from upslope.train.fit import History
    from upslope.train.hooks import Hook
    from upslope.train.protocol import Loss
    from upslope.train.trainer import Trainer


class Training(Stage):
    """Base of the stages that change weights by gradient steps.

    length: of the training ("500st", "2ep", "1e9tok", "20tpp"). clip: largest global gradient norm, or None. patience:
    refused (not finite) steps in a row before the stage fails. micro_tokens: most tokens of one forward and backward;
    save_seconds: between saves for resuming; log_every: steps between metrics; observers: read the model as it trains.
    only: patterns of the names of the parameters that are trained ("*.indexer.*"); none = all. adapter: trained in place of the
    weights, which freeze; the checkpoint is the merged model, with the adapters beside it in `adapter/`.
    precision: narrow formats, emulated where the device has no kernels, or another way to say `numerics`, which it overrides. qk_clip:
    bounds attention logits. ema: decay of a moving average of the weights, which the checkpoint then holds. skip: what to do about spikes
    of loss or gradient norm; None = make every finite step. checks: against silent data corruption. stop_if: rules that end the stage
    without a result, such as "loss > 2 x best for 200 steps". deterministic: only kernels that give the same bits every time (GPU; a CPU's
    do). mesh: the ranks that share each step. recompute: blocks whose intermediate results are computed again in the backward pass.
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
    adapter: Annotated[Adapter | None, Neutral(None)] = None
    precision: Annotated[Precision | None, Neutral(None)] = None
    qk_clip: Annotated[QKClip | None, Neutral(None)] = None
    ema: Annotated[float | None, Field(gt=0, lt=1), Neutral(None)] = None
    skip: Annotated[SkipRule | None, Neutral(None)] = None
    patience: Annotated[int, Exec()] = Field(default=10, ge=1)
    micro_tokens: Annotated[int, Exec()] = Field(default=16384, ge=0)
    save_seconds: Annotated[float, Exec()] = Field(default=20.0, ge=0)
    log_every: Annotated[int, Exec()] = Field(default=5, ge=1)
    observers: Annotated[tuple[Observer, ...], Exec()] = ()
    checks: Annotated[Checks, Exec()] = Checks()
    stop_if: Annotated[tuple[StopIf, ...], Exec()] = ()
    deterministic: Annotated[bool, Exec()] = True
    mesh: Annotated[Mesh, Exec()] = Mesh()
    recompute: Annotated[Recompute | None, Exec()] = None

    def need(self) -> Need:
        """As many processes as the mesh has ranks."""
        return Need("spmd", self.mesh.ranks)

    @property
    def computes_in(self) -> Numerics:
        """Number format of what is not quantised."""
        return self.numerics if self.precision is None else self.precision.numerics

    def trainer(self, ctx: Context, model: Transformer, scalar: ScalarHead | None = None) -> Trainer:
        """A trainer of a model with this stage's settings."""
        from upslope.parallel.checkpointing import recompute
        from upslope.train.trainer import Trainer

        make: type[Trainer] = Trainer
        if self.adapter is None:
            freeze(model, self.only)
        else:
            from upslope.train.adapting import AdapterTrainer, prepare

            prepare(model, self.adapter, ctx, self.only)
            make = AdapterTrainer
        options: dict[str, Any] = {
            "numerics": self.computes_in,
            "clip": self.clip,
            "micro_tokens": self.micro_tokens,
            "patience": self.patience,
            "events": ctx.events,
            "seed": ctx.seed_of("rounding"),
            "config": model.config,
        }
        if self.mesh.ranks > 1:
            return self._spread(model, scalar, options)
        if self.recompute is not None:
            recompute(model, self.recompute)
        return make(model, self.optim, scalar=scalar, hooks=self._hooks(model), **options)

    def _spread(self, model: Transformer, scalar: ScalarHead | None, options: dict[str, Any]) -> Trainer:
        """The trainer of one of several ranks. UsageError for what is of one."""
        from upslope.precision.config import Plain
        from upslope.train.spread import spread

        alone: dict[str, Any] = {"adapter": self.adapter}
        if self.mesh.tp > 1 and not isinstance(self.precision, Plain | None):
            alone["precision"] = self.precision  # scales of blocks that are cut would be others
        if self.mesh.pp > 1:
            alone |= {"qk_clip": self.qk_clip, "precision": self.precision, "ema": self.ema}
        if asked := [name for name, value in alone.items() if value is not None]:
            raise UsageError(f"{', '.join(asked)}: not on the mesh {self.mesh}\nway out: leave it out, or another mesh")
        hooks = self._hooks(model)
        return spread(model, self.optim, self.mesh, self.recompute, scalar, hooks=hooks, **options)

    def _hooks(self, model: Transformer) -> list[Hook]:
        """In the order in which they act: what a step computes in, what bounds its update, what averages the outcome."""
        from upslope.model.adapters import adapted
        from upslope.precision.config import Plain
        from upslope.train.hooks import Clipping, Emulation, MovingAverage

        if adapted(model) is not None and (self.qk_clip is not None or not isinstance(self.precision, Plain | None)):
            raise UsageError(
                "adapter: not together with qk_clip or precision, which change or quantise the frozen weights\nway out: leave them out"
            )
        hooks: list[Hook] = []
        if self.precision is not None and not isinstance(self.precision, Plain):
            hooks.append(Emulation(model, self.precision))
        if self.qk_clip is not None:
            hooks.append(Clipping(model, self.qk_clip))
        return [*hooks, MovingAverage(self.ema)] if self.ema is not None else hooks

    def fitted(
        self, ctx: Context, trainer: Trainer, batches: Callable[[int], Batch], loss: Loss, steps: int, length: int, tokens: int = 0
    ) -> History:
        """Runs the loop; the history's numbers become facts.

        length: typical tokens a segment, for the count of floating-point operations (forward and backward of the trained
        model). tokens: of the whole fit, where known.
        """
        from upslope.model.adapters import adapted
        from upslope.train.config import stop_rule
        from upslope.train.fit import fit
        from upslope.train.rehearsal.local import before
        from upslope.train.reproducible import only_deterministic

        trained = trainer.ranks.count(trainer.trained)
        if trainer.ranks.world == 1:
            ctx.events.emit("attention", backends=trainer.model.backends())
        per_step = tokens // max(1, steps) if tokens else self.micro_tokens or length
        if said := before(trainer, self.optim, max(per_step, length), length, self.mesh):
            ctx.events.alarm("memory may not suffice", why=said)
        with only_deterministic(self.deterministic):
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
                checks=self.checks,
                skip=self.skip,
                stop_if=[stop_rule(text) for text in self.stop_if],
            )
        trainer.finish()
        if self.precision is not None:
            ctx.fact(precision=_computed(self.precision, trainer.model))
        passes = 3 if adapted(trainer.model) is None else 2  # weights that are frozen get no gradient
        flops = passes * trainer.config.flops(length) * history.tokens
        ctx.fact(**history.facts(), parameters=trained, flops=flops)
        return history

    def steps_of(self, examples: int, per_step: int, tokens: int, parameters: int) -> int:
        """Optimizer steps of `length`, for steps of `per_step` of `examples` examples that hold `tokens` tokens in all."""
        per = max(1, round(tokens * per_step / max(1, examples)))
        if self.length.unit == "ep":
            return max(1, round(self.length.amount * examples / per_step)) if self.length.amount else 0
        return self.length.steps(per, tokens_per_epoch=tokens, params=parameters)


def _computed(precision: Precision, model: Transformer) -> str:
    """What the products of a model were computed in, and how."""
    from upslope.precision.config import Plain
    from upslope.precision.products import described

    return precision.kind if isinstance(precision, Plain) else described(precision, next(model.parameters()).device)


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
