"""Batch size as a pure function of the tokens seen: small batches while gradients agree, large ones once noise dominates.

Sources: DeepSeek-V3, arXiv 2412.19437 §4.2 (a rising line); Llama 3, arXiv 2407.21783 §3.4.1, and MiniMax-01, arXiv 2501.08313 (stairs).
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from upslope.config import Config, UsageError

Batch = Annotated[int, Field(ge=1)]


class Stairs(Config):
    """batches[i] (in tokens) from `since[i]` tokens on; Llama 3 405B: 4M, 8M after 252M, 16M after 2.87T. since: starts at 0, rises."""

    kind: Literal["stairs"] = "stairs"
    since: tuple[int, ...]
    batches: tuple[Batch, ...]

    @model_validator(mode="after")
    def _match(self) -> Self:
        if len(self.since) != len(self.batches) or self.since[:1] != (0,) or list(self.since) != sorted(set(self.since)):
            raise ValueError(f"since = {self.since}: needs one rising entry per batch, the first 0")
        return self


class Line(Config):
    """From `first` to `last` tokens a batch over the first `over` tokens, rounded down to multiples of `grain`, then constant.

    grain: tokens that a batch is a multiple of, such as a sequence per rank. DeepSeek-V3: 3072 to 15360 sequences of 4096 over 469e9.
    """

    kind: Literal["line"] = "line"
    first: Batch
    last: Batch
    over: Batch
    grain: Batch = 1

    @model_validator(mode="after")
    def _whole(self) -> Self:
        if self.first % self.grain or self.last % self.grain:
            raise ValueError(f"grain = {self.grain} must divide first = {self.first} and last = {self.last}")
        return self


Ramp = Annotated[Stairs | Line, Field(discriminator="kind")]


def batch_at(ramp: Stairs | Line, tokens: int) -> int:
    """Tokens of the batch that starts after `tokens` tokens have been seen."""
    if tokens < 0:
        raise UsageError(f"batch ramp: {tokens} tokens seen; must be >= 0")
    if isinstance(ramp, Stairs):
        return ramp.batches[bisect_right(ramp.since, tokens) - 1]
    if tokens >= ramp.over:
        return ramp.last
    return (ramp.first + (ramp.last - ramp.first) * tokens // ramp.over) // ramp.grain * ramp.grain


def steps(ramp: Stairs | Line, total: int) -> Iterator[tuple[int, int]]:
    """(tokens before, tokens in) of each step until `total` tokens have been seen; the last step may pass it by less than its batch."""
    seen = 0
    while seen < total:
        batch = batch_at(ramp, seen)
        yield seen, batch
        seen += batch


def steps_for(ramp: Stairs | Line, total: int) -> int:
    """How many steps see at least `total` tokens."""
    return sum(1 for _ in steps(ramp, total))


def tokens_before(ramp: Stairs | Line, step: int) -> int:
    """Tokens seen before step `step` (0, 1, ...)."""
    seen = 0
    for _ in range(step):
        seen += batch_at(ramp, seen)
    return seen
