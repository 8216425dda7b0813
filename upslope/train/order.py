"""Which examples a step trains on: a function of (seed, step) alone, whole epochs in a new order each."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import numpy.typing as npt

from upslope.config import UsageError
from upslope.machine.rng import rng


def examples(count: int, per_step: int, step: int, seed: int, stream: str = "order") -> list[int]:
    """Indices of the examples of a step. Every epoch holds each of the `count` examples once; a step may span two.

    UsageError where there are no examples.
    """
    if count < 1:
        raise UsageError("no examples to train on")
    places = range(step * per_step, (step + 1) * per_step)
    return [int(_epoch(count, p // count, seed, stream)[p % count]) for p in places]


@lru_cache(maxsize=8)
def _epoch(count: int, epoch: int, seed: int, stream: str) -> npt.NDArray[np.int64]:
    return rng(seed, stream, epoch).permutation(count)
