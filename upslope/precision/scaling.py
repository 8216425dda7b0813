"""Dynamic loss scaling for fp16: gradients are kept out of underflow by a factor that halves on overflow and doubles after a calm time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor


class LossScale:
    """The factor on the loss. value: now. growth: factor after `interval` finite steps in a row; backoff: factor after one that is not.

    The rule is that of `torch.amp.GradScaler`; the scale never falls below 1. Source: Micikevicius et al. 2018, arXiv 1710.03740 §3.2.
    """

    def __init__(self, value: float = 2.0**16, growth: float = 2.0, backoff: float = 0.5, interval: int = 2000) -> None:
        self.value, self.growth, self.backoff, self.interval = value, growth, backoff, interval
        self.calm = 0

    def scale(self, loss: Tensor) -> Tensor:
        """The loss to go backward from."""
        return loss * self.value

    def unscale(self, grads: Sequence[Tensor]) -> None:
        """Divides gradients by the scale, in place."""
        torch._foreach_mul_(list(grads), 1.0 / self.value)

    def update(self, finite: bool) -> None:
        """After a step whose gradients were finite, or not."""
        if not finite:
            self.value, self.calm = max(1.0, self.value * self.backoff), 0
            return
        self.calm += 1
        if self.calm == self.interval:
            self.value, self.calm = self.value * self.growth, 0

    def state(self) -> dict[str, Tensor]:
        """As tensors."""
        return {"value": torch.tensor(self.value, dtype=torch.float64), "calm": torch.tensor(self.calm)}

    def load(self, state: Mapping[str, Tensor]) -> None:
        """Restores `state()`."""
        self.value, self.calm = float(state["value"]), int(state["calm"])
