"""Group advantages: how much better a trace did than its siblings. Pure numpy, float64."""

from __future__ import annotations

from typing import Literal

import numpy as np
from numpy.typing import NDArray

Baseline = Literal["grpo", "mean", "rloo"]
EPS = 1e-6


def group_advantages(rewards: NDArray[np.float64], how: Baseline = "grpo") -> NDArray[np.float64]:
    """Advantages (G,) of the rewards (G,) of one group; zeros for a group of one, which has no siblings to compare with.

    grpo: A_i = (R_i - mean) / (std + 1e-6), std unbiased (n - 1). mean: A_i = R_i - mean. rloo: A_i = R_i - mean of the
    others = G / (G - 1) (R_i - mean).

    A division by the standard deviation turns tiny differences into ±1: groups whose *task* rewards are all equal
    belong out before a length or format term can speak (`Objective.drop_constant`).

    ValueError for rewards that are not finite: an unknown reward is masked by its caller, never guessed.
    Source: Shao et al. 2024 (2402.03300); Liu et al. 2025 (2503.20783, no std); Ahmadian et al. 2024 (2402.14740).
    """
    rewards = np.asarray(rewards, dtype=np.float64)
    if not np.isfinite(rewards).all():
        raise ValueError("rewards must be finite; leave out traces whose score is not valid")
    size = len(rewards)
    if size < 2:
        return np.zeros(size)
    centred = rewards - rewards.mean()
    if how == "grpo":
        advantages = centred / (rewards.std(ddof=1) + EPS)
    elif how == "rloo":
        advantages = centred * (size / (size - 1))
    else:
        advantages = centred
    return np.asarray(advantages, dtype=np.float64)
