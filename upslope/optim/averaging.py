"""Averages of checkpoints that stand in for a decay of the learning rate, and the moving average.

On a trunk at constant rate, theta_i = theta_0 - sum over j <= i of u_j, with u_j the update of interval j. A decay that multiplies u_j by
f_j would end at theta_0 - sum f_j u_j. The average sum w_i theta_i has u_j with weight sum over i >= j of w_i, so both agree for

    w_i = f_i - f_(i+1),   f_0 = 1 before the window, f_n = 0 after the newest checkpoint

exactly where updates do not depend on the weights, else in first order. Linear decay to 0 gives the plain mean.
Sources: WSM (merging in place of decay), arXiv 2507.17634; Nemotron 3 Super (minus-sqrt); Hagele et al. 2024 (LAWA, 1-sqrt).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor

from upslope.config import UsageError
from upslope.optim.schedule import Shape, fall


def weights_of(multipliers: Sequence[float]) -> list[float]:
    """Weights of checkpoints 0 ... n - 1 that emulate multipliers f_1 ... f_(n-1) of the updates between them (f_0 = 1, f_n = 0).

    UsageError where a multiplier rises, which would take a negative weight.
    """
    f = [1.0, *multipliers, 0.0]
    found = [a - b for a, b in zip(f, f[1:])]
    if min(found) < 0:
        raise UsageError(f"averaging: multipliers {list(multipliers)[:5]} must fall, within [0, 1]")
    return found


def decay_weights(n: int, shape: Shape = "1-sqrt", end: float = 0.0) -> list[float]:
    """Weights of n checkpoints at equal distances that emulate a decay over their window, oldest first; they sum to 1.

    f_i = fall(shape, i / n, end): what lies beyond the newest checkpoint was never trained, and an `end` above 0 goes to that checkpoint.
    1-sqrt: w_i = sqrt((i + 1) / n) - sqrt(i / n).
    """
    if n < 1:
        raise UsageError(f"averaging: {n} checkpoints; needs at least one")
    return weights_of([fall(shape, i / n, end) for i in range(1, n)])


def average(states: Iterable[Mapping[str, Tensor]], weights: Sequence[float]) -> dict[str, Tensor]:
    """sum w_i theta_i of states by name, summed in float64 and returned in their dtypes; tensors of integers are the last state's.

    states: one per weight, read one at a time. UsageError where weights do not sum to 1, or states differ in number, names or shapes.
    """
    if not weights or abs(math.fsum(weights) - 1) > 1e-9:
        raise UsageError(f"averaging: {len(weights)} weights that sum to {math.fsum(weights):g}; they must sum to 1")
    total: dict[str, Tensor] = {}
    last: Mapping[str, Tensor] = {}
    count = 0
    for state in states:
        if count == len(weights):
            raise UsageError(f"averaging: {len(weights)} weights for more states")
        w = weights[count]
        if count and {n: t.shape for n, t in state.items()} != {n: t.shape for n, t in last.items()}:
            raise UsageError(f"averaging: state {count} has other names or shapes than the ones before\nway out: states of one model")
        for n, t in state.items():
            if t.is_floating_point():
                total[n] = t.double() * w if n not in total else total[n].add_(t.double(), alpha=w)
        last, count = state, count + 1
    if count != len(weights):
        raise UsageError(f"averaging: {len(weights)} weights for {count} states")
    return {n: total[n].to(t.dtype) if n in total else t.clone() for n, t in last.items()}


class EMA:
    """Exponential moving average of named tensors: a = decay a + (1 - decay) theta, starting at theta; kept in float32 or wider."""

    def __init__(self, named: Mapping[str, Tensor], decay: float) -> None:
        if not 0 <= decay < 1:
            raise UsageError(f"ema: decay = {decay:g} must be in [0, 1)\nway out: 0.99 to 0.9999")
        self.decay = decay
        self.averages = {n: t.detach().to(torch.promote_types(t.dtype, torch.float32), copy=True) for n, t in named.items()}

    @torch.no_grad()
    def update(self, named: Mapping[str, Tensor]) -> None:
        """Takes in the current values; KeyError for a missing name."""
        for n, a in self.averages.items():
            a.lerp_(named[n].detach().to(a.device, a.dtype), 1 - self.decay)

    def state(self) -> dict[str, Tensor]:
        """The averages by name."""
        return dict(self.averages)

    @torch.no_grad()
    def load(self, state: Mapping[str, Tensor]) -> None:
        """Restores `state()` exactly; KeyError for a missing name."""
        for n, a in self.averages.items():
            a.copy_(state[n])
