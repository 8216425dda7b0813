"""The loop: resume, step, save, observe, pause. The result is a function of the batches and the starting state alone."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch

from upslope.config import UsageError
from upslope.machine.context import Context
from upslope.machine.stage import Paused
from upslope.optim.schedule import Schedule
from upslope.train.batch import Batch
from upslope.train.observers import Observer
from upslope.train.protocol import Loss, StepReport
from upslope.train.resume import as_tensor, latest_step, save_step
from upslope.train.stability import live_spike_score, spike_score
from upslope.train.trainer import Trainer


class History(NamedTuple):
    """What a whole fit did, over all its attempts: one value per step of each series.

    tokens: seen in all. refused: steps that were not finite. series: `loss`, `grad_norm` and the loss's statistics.
    """

    steps: int
    tokens: int
    refused: int
    series: dict[str, list[float]]

    def last(self, name: str, n: int = 20) -> float:
        """Mean of the last n values of a series (0 steps: nan)."""
        values = self.series.get(name, [])[-n:]
        return sum(values) / len(values) if values else float("nan")

    def facts(self) -> dict[str, Any]:
        """Numbers for the manifest: `final_<series>`, means of the last 20 steps, and spike scores by both definitions."""
        found: dict[str, Any] = {"steps": self.steps, "tokens": self.tokens, "refused_steps": self.refused}
        for name, values in self.series.items():
            found[f"final_{name}"] = round(self.last(name), 6)
            if name in ("loss", "grad_norm"):
                found[f"spike_score_{name}"] = {"rolling_1000_7sd": spike_score(values), "live_128_6sd": live_spike_score(values)}
        return found


def fit(
    trainer: Trainer,
    batches: Callable[[int], Batch],
    loss: Loss,
    schedule: Schedule,
    steps: int,
    ctx: Context,
    observers: Sequence[Observer] = (),
    *,
    tokens: int = 0,
    save_seconds: float = 20.0,
    log_every: int = 5,
) -> History:
    """Runs `steps` optimizer steps; killed at any instant and called again, it ends with the same bits.

    batches: the batch of step k, a function of k and of the trainer's state alone. schedule: multiplies the optimizer's
    learning rate. tokens: tokens of the whole fit where known, for progress (else steps are shown). save_seconds,
    log_every: intervals, without effect on the result. Raises Paused after saving when `ctx.stopping`, Diverged when
    the trainer gives up.
    """
    if steps < 1:
        raise UsageError(f"fit: {steps} steps; needs at least one\nway out: a longer duration, or smaller steps")
    done, seen, series = _resume(trainer, ctx)
    peak, saved, logged, logged_tokens = trainer.optimizer.config.lr, time.monotonic(), time.monotonic(), seen

    def save() -> None:
        with ctx.events.state("checkpoint"):
            columns = {f"series.{n}": as_tensor(v) for n, v in series.items()}
            save_step(ctx.work, done, trainer.state() | columns | {"fit.tokens": torch.tensor(seen, dtype=torch.int64)})

    with ctx.events.state("compute"):
        while done < steps:
            if ctx.stopping:
                save()
                raise Paused
            if time.monotonic() - saved >= save_seconds:
                save()
                saved = time.monotonic()
            report = trainer.step(batches(done), loss, peak * schedule.at(done, steps))
            done, seen = done + 1, seen + int(report.totals.tokens)
            _record(series, report, done)
            if done % log_every == 0 or done == steps:
                now = time.monotonic()
                speed = (seen - logged_tokens) / max(now - logged, 1e-9)
                ctx.events.metrics(done, loss=report.loss, grad_norm=report.grad_norm, lr=report.lr, tokens_per_second=speed, **report.sums)
                logged, logged_tokens = now, seen
            if tokens:
                ctx.events.progress(seen, max(tokens, seen), "tokens", loss=report.loss)
            else:
                ctx.events.progress(done, steps, "steps", loss=report.loss)
            for observer in observers:
                if done % observer.every == 0 or done == steps:
                    with ctx.events.state("evaluate"):
                        observe(observer, done, trainer, ctx)
    return History(done, seen, trainer.refused, series)


def _resume(trainer: Trainer, ctx: Context) -> tuple[int, int, dict[str, list[float]]]:
    """Restores the newest whole state of `ctx.work`: (steps done, tokens seen, series); zeros for a new fit."""
    with ctx.events.state("load"):
        found = latest_step(ctx.work, ctx.events)
        if found is None:
            return 0, 0, {}
        done, state = found
        trainer.load({n: t for n, t in state.items() if not n.startswith(("series.", "fit."))})
        series = {n.removeprefix("series."): t.tolist() for n, t in state.items() if n.startswith("series.")}
        ctx.events.emit("note", text=f"resumed after step {done}")
        return done, int(state["fit.tokens"]), series


def _record(series: dict[str, list[float]], report: StepReport, done: int) -> None:
    """Appends one step's values; a series that starts late is padded with nan."""
    for name, value in {"loss": report.loss, "grad_norm": report.grad_norm, **report.sums}.items():
        column = series.setdefault(name, [])
        column += [float("nan")] * (done - 1 - len(column))
        column.append(value)


def observe(observer: Observer, step: int, trainer: Trainer, ctx: Context) -> None:
    """Calls an observer so that it cannot change the run: random state and mode restored, weights checked."""
    modes = [(m, m.training) for m in trainer.model.modules()]
    before = [p._version for p in trainer.optimizer.parameters]
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(step)
        rows = observer(step, trainer.model)
    for module, training in modes:
        module.training = training
    if [p._version for p in trainer.optimizer.parameters] != before:
        raise UsageError(f"observer {observer.kind!r} changed the weights at step {step}; observers only read")
    ctx.events.emit("observation", observer=observer.kind, step=step, values={k: float(v) for k, v in rows.items()})
