"""Learning-rate schedules: a multiplier of the peak learning rate as a pure function of (step, total).

Step k of n (k = 0 … n-1) uses `at(k, n)`. During warm-up of w steps the multiplier is (k + 1) / w, so that no step is
wasted at zero. In a decay of d steps the j-th (j = 0 … d-1) has progress p = j / d: it starts at 1 and ends one step
above the floor, for the same reason.
"""

from __future__ import annotations

import math
from typing import Annotated, Literal

from pydantic import Field

from upslope.config import Config, UsageError

Span = float
"""A length of schedule: below 1 a fraction of the total number of steps, from 1 on a number of steps."""


def span(value: float, total: int) -> int:
    """Steps of a span: `value` below 1 is a fraction of `total` (rounded), else a number of steps."""
    return round(value * total) if value < 1 else round(value)


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

    shape: "linear" f = 1 - p; "1-sqrt" f = 1 - sqrt(p). Source: Hu et al. 2024 (MiniCPM); Hagele et al. 2024.
    decay: fraction of all steps (< 1) or steps (>= 1); it never reaches into the warm-up.
    """

    kind: Literal["wsd"] = "wsd"
    decay: Span = Field(default=0.2, ge=0)
    shape: Literal["linear", "1-sqrt"] = "linear"
    floor: float = Field(default=0.0, ge=0, le=1)

    def at(self, step: int, total: int) -> float:
        """The multiplier for step `step` of `total`."""
        steps = min(span(self.decay, total), total - span(self.warmup, total))
        into = step - (total - steps)
        if into < 0 or steps <= 0:
            return super().at(step, total)
        if step >= total:
            raise UsageError(f"schedule: step {step} is outside 0 … {total - 1}")
        p = into / steps
        fall = 1 - p if self.shape == "linear" else 1 - math.sqrt(p)
        return self.floor + (1 - self.floor) * fall

    def _after(self, step: int, total: int) -> float:
        return 1.0


class LinearToZero(_Warm):
    """1 - p after warm-up, p = step / steps after warm-up. Source: Bergsma et al. 2025 (D2Z)."""

    kind: Literal["linear_to_zero"] = "linear_to_zero"

    def _after(self, step: int, total: int) -> float:
        return 1 - step / total


Schedule = Annotated[Constant | Cosine | WSD | LinearToZero, Field(discriminator="kind")]
