"""What a loss sees and gives: the seam between the trainer and every training algorithm."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple, Protocol, runtime_checkable

import torch
from torch import Tensor

from upslope.train.batch import Batch, Totals

Wants = frozenset[str]
"""Fields of `Out` that a loss reads: any of logprob, entropy, lse, top, value, score. Others are not computed."""


class Out(NamedTuple):
    """What the model says about each column, computed in chunks: full logits never exist beyond a chunk.

    logprob: (T,) log p(ids[t] | before). entropy: (T,) of that distribution, nats. lse: (T,) log-normaliser of the
    logits, for z-loss. top: (T, k) log-probs of `batch.distil.ids`. All zero on columns that do not speak
    (`Batch.speaking`). value: (T,) of a scalar head, read at the token before, like everything about column t.
    score: (S,) of the scalar head at the last token of each segment.
    """

    logprob: Tensor | None = None
    entropy: Tensor | None = None
    lse: Tensor | None = None
    top: Tensor | None = None
    value: Tensor | None = None
    score: Tensor | None = None


class Sums(dict[str, Tensor]):
    """Additive float64 statistics by name: adding those of all parts gives those of the step."""

    def plus(self, other: Mapping[str, Tensor]) -> Sums:
        """The statistics of two parts taken together."""
        both = Sums(self)
        for name, value in other.items():
            both[name] = both[name] + value if name in both else value
        return both

    @classmethod
    def of(cls, **values: Tensor | float) -> Sums:
        """Detached float64 sums."""
        return cls({k: torch.as_tensor(v, dtype=torch.float64).detach() for k, v in values.items()})


class Loss(Protocol):
    """A training objective as a pure function of one part of a step.

    The result is already divided by the global totals of the step, so adding over parts and ranks is the answer.
    The `Sums` that come back are statistics for the report, divided in the same way.
    """

    @property
    def wants(self) -> Wants:
        """Fields of `Out` to compute."""
        ...

    def __call__(self, out: Out, b: Batch, total: Totals, sums: Sums | None) -> tuple[Tensor, Sums]:
        """(scalar loss with gradient, statistics of this part). sums: of the survey over the whole step, or None."""
        ...


@runtime_checkable
class Surveying(Protocol):
    """A loss that must see the whole step first: Clip-Cov, BAPO bounds, whitening of trainer-side quantities."""

    def survey(self, out: Out, b: Batch) -> Sums:
        """Additive statistics of one part, from a pass without gradient; their sum is handed to every `__call__`."""
        ...


class StepReport(NamedTuple):
    """What one optimizer step did.

    loss: the step's loss. grad_norm: global L2 norm before clipping. lr: as given. skipped: why no update was made, or
    "". totals: denominators. sums: statistics of the loss.
    """

    loss: float
    grad_norm: float
    lr: float
    skipped: str
    totals: Totals
    sums: Mapping[str, float]
