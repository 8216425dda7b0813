"""Learning-rate schedules: a multiplier of the peak learning rate as a pure function of (step, total).

Step k of n (k = 0 … n-1) uses `at(k, n)`. During warm-up of w steps the multiplier is (k + 1) / w, so that no step is
wasted at zero. In a decay of d steps the j-th (j = 0 … d-1) has progress p = j / d: it starts at 1 and ends one step
above the floor, for the same reason.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from upslope.config import Config, UsageError

Shape = Literal["linear", "1-sqrt", "cosine", "exponential"]
"""How a decay falls with its progress, see `fall`."""

Span = float
"""A length of schedule: below 1 a fraction of the total number of steps, from 1 on a number of steps."""


def span(value: float, total: int) -> int:
    """Steps of a span: `value` below 1 is a fraction of `total` (rounded), else a number of steps."""
    return round(value * total) if value < 1 else round(value)


def fall(shape: Shape, p: float, end: float = 0.0) -> float:
    """From 1 at p = 0 to `end` at p = 1.

    linear, 1-sqrt, cosine: end + (1 - end) f(p) with f = 1 - p, 1 - sqrt(p), (1 + cos(pi p)) / 2; exponential: end^p, for end > 0.
    Source: Hagele et al. 2024, arXiv 2405.18392 (1-sqrt); Hu et al. 2024, arXiv 2404.06395 (exponential).
    """
    if shape == "exponential":
        return end**p
    f = {"linear": 1 - p, "1-sqrt": 1 - math.sqrt(p), "cosine": 0.5 * (1 + math.cos(math.pi * p))}[shape]
    return end + (1 - end) * f


class _Warm(Config):
    """Linear warm-up; what follows is the subclass's. warmup: fraction of all steps (< 1) or steps (>= 1)."""

    warmup: Span = Field(default=0.0, ge=0)

    def at(self, step: int, total: int) -> float:
        """The multiplier for step `step` of `total`; UsageError where the step is outside."""
        if not 0 <= step < total:
            raise UsageError(f"schedule: step {step} is outside 0 … {total - 1}")
        warm = span(self.warmup, total)
        if step < warm:
            return (step + 1) / warm
        return self._after(step - warm, total - warm)

    def _after(self, step: int, total: int) -> float:
        """The multiplier for step `step` of the `total` steps after warm-up."""
        raise NotImplementedError


class Constant(_Warm):
    """1 after warm-up."""

    kind: Literal["constant"] = "constant"

    def _after(self, step: int, total: int) -> float:
        return 1.0


class Cosine(_Warm):
    """floor + (1 - floor) (1 + cos(pi p)) / 2, p = step / steps after warm-up. Source: Loshchilov and Hutter 2017."""

    kind: Literal["cosine"] = "cosine"
    floor: float = Field(default=0.1, ge=0, le=1)

    def _after(self, step: int, total: int) -> float:
        return self.floor + (1 - self.floor) * 0.5 * (1 + math.cos(math.pi * step / total))


class WSD(_Warm):
    """Warm-up, stable, decay over the last `decay` of all steps: floor + (1 - floor) f(p), p = decay progress.

    shape: f, see `fall`; "exponential" needs floor > 0. Source: Hu et al. 2024 (MiniCPM); Hagele et al. 2024.
    decay: fraction of all steps (< 1) or steps (>= 1); it never reaches into the warm-up.
    """

    kind: Literal["wsd"] = "wsd"
    decay: Span = Field(default=0.2, ge=0)
    shape: Shape = "linear"
    floor: float = Field(default=0.0, ge=0, le=1)

    @model_validator(mode="after")
    def _reaches(self) -> Self:
        if self.shape == "exponential" and self.floor == 0:
            raise ValueError("floor = 0: an exponential decay never reaches 0; give floor > 0 or another shape")
        return self

    def at(self, step: int, total: int) -> float:
        """The multiplier for step `step` of `total`."""
        steps = min(span(self.decay, total), total - span(self.warmup, total))
        into = step - (total - steps)
        if into < 0 or steps <= 0:
            return super().at(step, total)
        if step >= total:
            raise UsageError(f"schedule: step {step} is outside 0 … {total - 1}")
        return fall(self.shape, into / steps, self.floor)

    def _after(self, step: int, total: int) -> float:
        return 1.0


class LinearToZero(_Warm):
    """1 - p after warm-up, p = step / steps after warm-up. Source: Bergsma et al. 2025 (D2Z)."""

    kind: Literal["linear_to_zero"] = "linear_to_zero"

    def _after(self, step: int, total: int) -> float:
        return 1 - step / total


class MultiStep(_Warm):
    """The multiplier falls by `factor` at each of `drops`: 1, factor, factor^2, ...

    drops: fractions of all steps (< 1) or steps (>= 1), rising. Defaults are DeepSeek LLM's (sqrt(0.1) at 80 % and 90 %); V2: 60 %, 90 %.
    Source: DeepSeek LLM, arXiv 2401.02954 §2.3.
    """

    kind: Literal["multi_step"] = "multi_step"
    drops: tuple[Annotated[Span, Field(gt=0)], ...] = (0.8, 0.9)
    factor: float = Field(default=0.316, gt=0, le=1)

    def at(self, step: int, total: int) -> float:
        """The multiplier for step `step` of `total`."""
        return super().at(step, total) * self.factor ** sum(step >= span(d, total) for d in self.drops)

    def _after(self, step: int, total: int) -> float:
        return 1.0


class Piece(Config):
    """A stretch of a schedule from multiplier `start` to `end` (just not reached), falling as `shape` says; see `fall`.

    length: fraction of all steps (< 1) or steps (>= 1). start = end: constant.
    """

    length: Span = Field(gt=0)
    start: float = Field(default=1.0, gt=0)
    end: float = Field(default=1.0, ge=0)
    shape: Shape = "linear"

    @model_validator(mode="after")
    def _reaches(self) -> Self:
        if self.shape == "exponential" and self.end == 0:
            raise ValueError("end = 0: an exponential decay never reaches 0; give end > 0 or another shape")
        return self


class Segments(_Warm):
    """Pieces one after the other; warm-up lies within the first, whose shape starts after it. The last goes on to the end of the fit.

    Says what no one formula does: DeepSeek-V3's constant, cosine and two floors; WSD-S's decays that return to the peak (`wsd_s`).
    """

    kind: Literal["segments"] = "segments"
    pieces: tuple[Piece, ...] = Field(min_length=1)

    def at(self, step: int, total: int) -> float:
        """The multiplier for step `step` of `total`; UsageError where the pieces are longer than the fit."""
        ends = self._ends(total)
        warm = span(self.warmup, total)
        if step < warm or not 0 <= step < total:
            return super().at(step, total) * self.pieces[0].start
        i = next(i for i, end in enumerate(ends) if step < end)
        begin = max(warm, ends[i - 1] if i else 0)
        piece, p = self.pieces[i], (step - begin) / (ends[i] - begin)
        return piece.start * fall(piece.shape, p, piece.end / piece.start)

    def _ends(self, total: int) -> list[int]:
        """The step after each piece; fractions add up before they are rounded, so that rounding does not drift."""
        whole, share, ends = 0.0, 0.0, []
        for piece in self.pieces:
            whole, share = (whole, share + piece.length) if piece.length < 1 else (whole + piece.length, share)
            ends.append(round(whole + share * total))
        if len(ends) > 1 and ends[-2] >= total:
            raise UsageError(f"schedule: pieces end at steps {ends[:5]}, the fit at {total}\nway out: fewer or shorter pieces")
        if span(self.warmup, total) > ends[0]:
            raise UsageError(f"schedule: the warm-up ends after the first piece, at step {ends[0]} of {total}\nway out: a shorter warm-up")
        return [*ends[:-1], total]

    def _after(self, step: int, total: int) -> float:
        return 1.0


def wsd_s(lengths: Sequence[Span], decay: float = 0.1, end: float = 0.1, shape: Shape = "linear", warmup: Span = 0.0) -> Segments:
    """WSD-S: one run with a usable checkpoint at the end of each of `lengths`, going on at the peak from the decayed weights.

    decay: share of each length that is decay. To go back to the trunk instead, end a `Constant` stage where the decay starts and let two
    stages continue from it. Source: Wen et al. 2024, arXiv 2410.05192.
    """
    if not 0 < decay < 1:
        raise UsageError(f"wsd_s: decay = {decay:g} must be a fraction of each length, in (0, 1)")
    pairs = [((1 - decay) * n, decay * n) for n in lengths]
    if any(n >= 1 and min(pair) < 1 for n, pair in zip(lengths, pairs)):
        raise UsageError(f"wsd_s: a part of {min(lengths):g} steps is shorter than a step\nway out: longer lengths")
    return Segments(warmup=warmup, pieces=tuple(p for a, b in pairs for p in (Piece(length=a), Piece(length=b, end=end, shape=shape))))


Whole = Annotated[Constant | Cosine | WSD | LinearToZero | MultiStep | Segments, Field(discriminator="kind")]
"""A schedule of a fit that starts at its beginning."""


class Part(Config):
    """A stretch of a schedule that several fits run one after the other: step k here is step `first` + k of `total` of the whole.

    whole: the schedule of all of them. Branch points, further mixtures and longer rows are fits of their own on one schedule that way.
    """

    kind: Literal["part"] = "part"
    whole: Whole
    first: int = Field(ge=0)
    total: int = Field(ge=1)

    def at(self, step: int, total: int) -> float:
        """The multiplier for step `step` of a fit of `total` steps; UsageError where the fit goes on past the end of the whole."""
        if self.first + total > self.total:
            raise UsageError(
                f"schedule: steps {self.first} to {self.first + total} of {self.total}\nway out: a shorter fit, or a longer total"
            )
        if not 0 <= step < total:
            raise UsageError(f"schedule: step {step} is outside 0 … {total - 1}")
        return self.whole.at(self.first + step, self.total)


Schedule = Annotated[Constant | Cosine | WSD | LinearToZero | MultiStep | Segments | Part, Field(discriminator="kind")]
