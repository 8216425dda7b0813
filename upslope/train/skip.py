"""What to do with a step that spikes, decided from the series alone: make it, skip it, or go back and pass over its batches."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Any, NamedTuple

from pydantic import Field

from upslope.config import Config


class Back(Config):
    """Rewind-and-skip. after: spikes in a row that cause it. back: steps before the first of them to go back. anchor: states are
    kept at its multiples, and one of those is gone back to. most: times in a run; then spikes are skipped one by one."""

    after: Annotated[int, Field(ge=1)] = 3
    back: Annotated[int, Field(ge=0)] = 100
    anchor: Annotated[int, Field(ge=1)] = 100
    most: Annotated[int, Field(ge=0)] = 3


class SkipRule(Config):
    """A step is a spike where its loss or gradient norm is above mean + `sigmas` sd of the last `window` steps that counted.

    least: values before anything is judged. patience: finite spikes in a row after which, without `back`, the new level is accepted.
    Source: OLMo-core `optim/skip_step_optimizer.py` (window 128, 6 sd, judged from half a window; sd of a sample).
    """

    window: Annotated[int, Field(ge=2)] = 128
    sigmas: Annotated[float, Field(gt=0)] = 6.0
    least: Annotated[int, Field(ge=2)] = 64
    patience: Annotated[int, Field(ge=1)] = 10
    back: Back | None = None


class Go(NamedTuple):
    """Make the update."""


class Skip(NamedTuple):
    """Make no update; the batch is spent."""

    why: str


class Rewind(NamedTuple):
    """Reload the state after `to_step` steps; the data position moves on by `skip_batches` more than the step number does."""

    to_step: int
    skip_batches: int
    why: str


Decision = Go | Skip | Rewind


@dataclass(frozen=True)
class Watch:
    """What the rule remembers; part of the saved state.

    losses, norms: the last values that counted. spikes: in a row. first: step of the first of them. rewinds: so far. shift: batches
    passed over in all: step k trains on batch k + shift.
    """

    losses: tuple[float, ...] = ()
    norms: tuple[float, ...] = ()
    spikes: int = 0
    first: int = 0
    rewinds: int = 0
    shift: int = 0

    def state(self) -> dict[str, Any]:
        """As JSON values; floats come back to the bit."""
        return {k: list(v) if isinstance(v, tuple) else v for k, v in vars(self).items()}

    @classmethod
    def of(cls, state: Mapping[str, Any]) -> Watch:
        """The watch that `state()` described."""
        values: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in state.items()}
        return cls(**values)

    def rewound(self, saved: Watch, to: Rewind) -> Watch:
        """The watch to go on with after a rewind: the window of the state gone back to, the counts of now."""
        return replace(saved, spikes=0, rewinds=self.rewinds + 1, shift=self.shift + to.skip_batches)


def decide(rule: SkipRule, watch: Watch, step: int, loss: float, norm: float) -> tuple[Decision, Watch]:
    """The decision on step `step` (0, 1, …), known loss and gradient norm before its update, and the watch after it.

    Only steps that count enter the window, so a spike does not hide the next one. Non-finite values always spike and are never accepted
    as a new level. A level that stays up for `patience` steps is: the window then starts anew.
    """
    why = _spike(rule, watch, loss, norm)
    if not why:
        return Go(), replace(
            watch, losses=(*watch.losses, loss)[-rule.window :], norms=(*watch.norms, norm)[-rule.window :], spikes=0, first=step
        )
    watch = replace(watch, spikes=watch.spikes + 1, first=watch.first if watch.spikes else step)
    back = rule.back
    if back is not None and watch.rewinds < back.most and watch.spikes >= back.after:
        to = max(0, watch.first - back.back) // back.anchor * back.anchor
        return Rewind(to, step + 1 - to, f"{watch.spikes} spikes in a row; {why}"), watch
    if watch.spikes >= rule.patience and math.isfinite(loss) and math.isfinite(norm):
        return Go(), replace(watch, losses=(loss,), norms=(norm,), spikes=0, first=step)
    return Skip(why), watch


def _spike(rule: SkipRule, watch: Watch, loss: float, norm: float) -> str:
    for name, value, past in (("loss", loss, watch.losses), ("gradient norm", norm, watch.norms)):
        if not math.isfinite(value):
            return f"{name} {value:g}"
        if len(past) >= rule.least:
            mean, sd = _moments(past)
            if value > mean + rule.sigmas * sd and value - mean > 1e-12 * abs(mean):
                return f"{name} {value:.6g} is above {mean:.6g} + {rule.sigmas:g} sd of {sd:.3g}"
    return ""


def _moments(values: Sequence[float]) -> tuple[float, float]:
    """Mean and sample standard deviation, in exact summation."""
    mean = math.fsum(values) / len(values)
    return mean, math.sqrt(math.fsum((v - mean) ** 2 for v in values) / (len(values) - 1))
