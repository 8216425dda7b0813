"""The loop: resume, step, check, save, observe, pause. The result is a function of the batches and the starting state alone."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch

from upslope.config import UsageError
from upslope.machine.context import Context
from upslope.machine.stage import Paused
from upslope.optim.schedule import Schedule
from upslope.train.batch import Batch
from upslope.train.config import Checks, StopRule
from upslope.train.integrity import Corrupted, Integrity, replay
from upslope.train.memory import HalfDone, step_with_backoff
from upslope.train.observers import Observer
from upslope.train.parts import Saved
from upslope.train.protocol import Loss, StepReport
from upslope.train.resume import Saver, as_tensor, latest
from upslope.train.skip import Go, Rewind, SkipRule, Watch, decide
from upslope.train.stability import live_spike_score, spike_score
from upslope.train.trainer import Trainer

RELOADS = 3


class RuleFired(UsageError):
    """A `stop_if` rule ended the run; its state is saved."""


class History(NamedTuple):
    """What a whole fit did, over all its attempts: one value per step of each series.

    tokens: seen in all. refused: steps that were not finite. series: `loss`, `grad_norm` and the loss's statistics. skipped: steps that
    made no update; rewinds: times that it went back behind a spike.
    """

    steps: int
    tokens: int
    refused: int
    series: dict[str, list[float]]
    skipped: int = 0
    rewinds: int = 0

    def last(self, name: str, n: int = 20) -> float:
        """Mean of the last n values of a series (0 steps: nan)."""
        values = self.series.get(name, [])[-n:]
        return sum(values) / len(values) if values else float("nan")

    def facts(self) -> dict[str, Any]:
        """Numbers for the manifest: `final_<series>`, means of the last 20 steps, and spike scores by both definitions."""
        found: dict[str, Any] = {"steps": self.steps, "tokens": self.tokens, "refused_steps": self.refused}
        if self.skipped or self.rewinds:
            found |= {"skipped_steps": self.skipped, "rewinds": self.rewinds}
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
    checks: Checks | None = None,
    skip: SkipRule | None = None,
    stop_if: Sequence[StopRule] = (),
) -> History:
    """Runs `steps` optimizer steps; killed at any instant and called again, it ends with the same bits.

    batches: the batch of step k, a function of k and of the trainer's state alone. schedule: multiplies the optimizer's
    learning rate. tokens: tokens of the whole fit where known, for progress (else steps are shown). save_seconds,
    log_every, checks: without effect on the result. skip: what to do about spikes. stop_if: rules that end the run without a result.
    A state that was damaged at rest, or by memory running out in an update, is taken back to the last saved one, at most three times.
    Raises Paused after saving when `ctx.stopping`, RuleFired likewise, Diverged when the trainer gives up, Corrupted when checks do.
    """
    if steps < 1:
        raise UsageError(f"fit: {steps} steps; needs at least one\nway out: a longer duration, or smaller steps")
    run = _Fit(trainer, ctx, checks or Checks(), skip)
    peak = trainer.optimizer.config.lr
    saved = logged = began = time.monotonic()
    try:
        run.resume()
        logged_tokens = run.seen
        with ctx.events.state("compute"):
            while run.done < steps:
                stopping, due = run.agreed(ctx.stop_now(), time.monotonic() - saved >= save_seconds)
                try:
                    if not stopping:
                        with run.timed("data"):
                            batch = batches(run.done + run.watch.shift)
                    run.verify()  # after the batch, which may have taken a rollout's time
                    if stopping or due or run.anchored():
                        run.save(wait=stopping)
                        saved = time.monotonic()
                    if stopping:
                        raise Paused
                    with ctx.waiting("step"):
                        report = run.step(batch, loss, peak * schedule.at(run.done, steps))
                except (Corrupted, HalfDone) as error:
                    run.reload(error)
                    continue
                if report is None:
                    continue
                now = time.monotonic()
                if run.done % log_every == 0 or run.done == steps:
                    speed = (run.seen - logged_tokens) / max(now - logged, 1e-9)
                    values = {"loss": report.loss, "grad_norm": report.grad_norm, "lr": report.lr, **report.sums}
                    ctx.events.metrics(run.done, tokens_per_second=speed, **values)
                    logged, logged_tokens = now, run.seen
                done, total, unit = (run.seen, max(tokens, run.seen), "tokens") if tokens else (run.done, steps, "steps")
                ctx.events.progress(done, total, unit, loss=report.loss)
                for observer in observers:
                    if run.done % observer.every == 0 or run.done == steps:
                        with ctx.events.state("evaluate"), run.timed("observers"):
                            observe(observer, run.done, trainer, batch, ctx)
                measured = {**run.series, "tokens": [float(run.seen)], "hours": [(now - began) / 3600]} if stop_if else {}
                for rule in stop_if:
                    if why := rule.fires(measured):
                        run.save(wait=True)
                        ctx.events.alarm("a rule stopped the run", step=run.done, why=why)
                        way = "way out: other settings; or without the rule, and the same command goes on from here"
                        raise RuleFired(f"{why}, after step {run.done}; the state is saved\n{way}")
        with run.timed("checkpoint"):
            run.saver.wait()
    finally:
        run.close()
    ctx.events.emit("overhead", total=time.monotonic() - began, seconds={name: round(s, 4) for name, s in run.seconds.items()})
    return History(run.done, run.seen, trainer.refused, run.series, run.skipped, run.watch.rewinds)


class _Fit:
    """One attempt: where it stands, and what it remembers besides the trainer."""

    def __init__(self, trainer: Trainer, ctx: Context, checks: Checks, skip: SkipRule | None) -> None:
        self.trainer, self.ctx, self.checks, self.rule = trainer, ctx, checks, skip
        self.done, self.seen, self.skipped, self.reloads = 0, 0, 0, 0
        self.series: dict[str, list[float]] = {}
        self.watch = Watch()
        self.integrity = Integrity(checks.digests, ctx.events) if checks.digests else None
        self.saver = Saver(ctx.work, ranks=trainer.ranks)
        self.seconds: dict[str, float] = {}

    @contextmanager
    def timed(self, what: str) -> Iterator[None]:
        """Adds the time inside to a category."""
        began = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[what] = self.seconds.get(what, 0.0) + time.perf_counter() - began

    def agreed(self, *flags: bool) -> tuple[bool, ...]:
        """Each flag, where any rank raises it: clocks and signals differ between ranks, and all must save and stop at the same step."""
        mine = sum(1 << i for i, flag in enumerate(flags) if flag)
        all_of_them = self.trainer.ranks.together(mine)
        return tuple(any(theirs >> i & 1 for theirs in all_of_them) for i in range(len(flags)))

    def resume(self) -> None:
        """Restores the newest whole state, if there is one."""
        with self.ctx.events.state("load"):
            found = self._found()
            if found is not None:
                self._restore(found)
                self.ctx.events.emit("note", text=f"resumed after step {self.done}")

    def verify(self) -> None:
        """Raises Corrupted, on every rank, where the state of any is not what the last step left."""
        if self.integrity is not None and self.done % self.checks.digests == 0:
            damage = None
            with self.timed("verify"):
                try:
                    self.integrity.before(self.done, self.trainer.state())
                except Corrupted as error:
                    damage = error
            if any(self.trainer.ranks.together(int(damage is not None))):
                raise damage or Corrupted(f"the state of another rank changed after step {self.done}")
        if self.checks.copies and self.done and self.done % self.checks.copies == 0 and self.trainer.ranks.world > 1:
            with self.timed("verify"):
                wrong = self.trainer.ranks.copies(self.trainer.state())
            if any(self.trainer.ranks.together(int(bool(wrong)))):
                name, ranks = next(iter(wrong.items()), ("a tensor", ()))
                self.ctx.events.alarm("ranks that hold copies differ", step=self.done, tensors=sorted(wrong)[:8], ranks=list(ranks))
                raise Corrupted(f"after step {self.done}, {name!r} differs between ranks; in the minority: {list(ranks)}")

    def anchored(self) -> bool:
        """Whether the state of now may have to be gone back to."""
        back = self.rule.back if self.rule is not None else None
        return back is not None and self.done % back.anchor == 0 and self.watch.rewinds < back.most

    def save(self, wait: bool = False) -> None:
        """Begins to save the state of now; with `wait`, it is on disk afterwards."""
        columns = {f"series.{n}": as_tensor(v) for n, v in self.series.items()}
        state = self.trainer.state() | columns | {"fit.tokens": torch.tensor(self.seen, dtype=torch.int64)}
        controllers = {"watch": self.watch.state(), "skipped": self.skipped, "micro_tokens": self.trainer.micro_tokens}
        if self.integrity is not None:
            controllers |= {"integrity": self.integrity.state()}
        with self.ctx.events.state("checkpoint"), self.timed("checkpoint"):
            self.saver.start(self.done, state, controllers, pinned=self._pinned())
            if wait:
                self.saver.wait()

    def step(self, batch: Batch, loss: Loss, lr: float) -> StepReport | None:
        """One step, done twice where the checks say so; None where it went back behind a spike instead."""
        decided: list[tuple[Any, Watch]] = [(Go(), self.watch)]

        def judge(value: float, norm: float) -> str:
            if self.rule is None:
                return ""
            decided[0] = decide(self.rule, self.watch, self.done, value, norm)
            return "" if isinstance(decided[0][0], Go) else decided[0][0].why

        def once() -> StepReport:
            return self.trainer.step(batch, loss, lr, judge)

        run = once
        if self.trainer.ranks.world == 1:
            # over several ranks the others would wait for ever in the collectives of the step that failed
            run = lambda: step_with_backoff(self.trainer, batch, once)  # noqa: E731
        if self.checks.replay and (self.done + 1) % self.checks.replay == 0:
            with self.ctx.events.state("replay"), self.timed("replay"):
                report: StepReport = replay(self.trainer, run, self.ctx.events).report
        else:
            report = run()
        decision, self.watch = decided[0]
        if isinstance(decision, Rewind):
            self._rewind(decision)
            return None
        if report.skipped:
            self.skipped += 1
            if self.rule is not None:
                self.ctx.events.alarm("step skipped: spike", step=self.done, why=report.skipped)
        self.done, self.seen = self.done + 1, self.seen + int(report.totals.tokens)
        _record(self.series, report, self.done)
        if self.integrity is not None:
            with self.timed("verify"):
                self.integrity.after(self.done, self.trainer.state())
        return report

    def reload(self, error: Exception) -> None:
        """Back to the last saved state after damage; raises the error where there is none, or it happens again and again."""
        self.saver.wait()
        self.reloads += 1
        found = self._found() if self.reloads <= RELOADS else None
        if found is None:
            raise error
        self.ctx.events.alarm(
            "state was damaged: back to the last saved one", step=self.done, to=found.step, why=str(error).partition("\n")[0]
        )
        self._restore(found)

    def close(self) -> None:
        """Lets a save in flight end, also when the loop did not."""
        try:
            self.saver.wait()
        except UsageError as error:
            self.ctx.events.alarm("the last save failed", why=str(error))

    def _rewind(self, to: Rewind) -> None:
        """Takes the run back to a kept state and past the batches that spiked."""
        self.saver.wait()
        now = self.watch
        found = self._found(to.to_step)
        if found is None or found.step != to.to_step:
            raise UsageError(
                f"spike at step {self.done}: the state after step {to.to_step} to go back to is lost\nway out: skip.back = null"
            )
        self._restore(found)
        self.watch = now.rewound(self.watch, to)
        self.ctx.events.alarm("spike: went back and past its batches", to=to.to_step, batches=to.skip_batches, why=to.why)

    def _pinned(self) -> list[int]:
        """Steps whose states the rule may go back to."""
        if self.rule is None or self.rule.back is None:
            return []
        back = self.rule.back
        oldest = self.done - back.back - back.after - 2 * back.anchor
        return [k for k in range(0, self.done + 1, back.anchor) if k >= oldest]

    def _found(self, at_most: int | None = None) -> Saved | None:
        return latest(self.ctx.work, self.ctx.events, at_most=at_most, ranks=self.trainer.ranks, mine=self.trainer.state())

    def _restore(self, found: Saved) -> None:
        self.trainer.load({n: t for n, t in found.tensors.items() if not n.startswith(("series.", "fit."))})
        self.series = {n.removeprefix("series."): t.tolist() for n, t in found.tensors.items() if n.startswith("series.")}
        self.done, self.seen = found.step, int(found.tensors["fit.tokens"])
        self.watch = Watch.of(found.controllers["watch"])
        self.skipped, self.trainer.micro_tokens = found.controllers["skipped"], found.controllers["micro_tokens"]
        if self.integrity is not None:
            self.integrity = Integrity(self.checks.digests, self.ctx.events)
            self.integrity.load(found.controllers.get("integrity", {"chain": 0}))


def _record(series: dict[str, list[float]], report: StepReport, done: int) -> None:
    """Appends one step's values; a series that starts late is padded with nan."""
    for name, value in {"loss": report.loss, "grad_norm": report.grad_norm, **report.sums}.items():
        column = series.setdefault(name, [])
        column += [float("nan")] * (done - 1 - len(column))
        column.append(value)


def observe(observer: Observer, step: int, trainer: Trainer, batch: Batch, ctx: Context) -> None:
    """Calls an observer so that it cannot change the run: random state and mode restored, weights checked."""
    modes = [(m, m.training) for m in trainer.model.modules()]
    before = [p._version for p in trainer.optimizer.parameters]
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(step)
        rows = observer(step, trainer.model, batch)
    for module, training in modes:
        module.training = training
    if [p._version for p in trainer.optimizer.parameters] != before:
        raise UsageError(f"observer {observer.kind!r} changed the weights at step {step}; observers only read")
    ctx.events.emit("observation", observer=observer.kind, step=step, values={k: float(v) for k, v in rows.items()})
    for what in observer.alarms(rows):
        ctx.events.alarm(what, step=step, observer=observer.kind)
