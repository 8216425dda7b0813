"""AdamW over a list of tensors, in few large operations.

    m = b1 m + (1-b1) g;  v = b2 v + (1-b2) g^2;  W = (1 - lr wd) W - lr (m / (1-b1^t)) / (sqrt(v / (1-b2^t)) + eps)

Source: Kingma and Ba 2015; Loshchilov and Hutter 2019 (decoupled decay).
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from upslope.optim.config import AdamW
from upslope.optim.roles import decayed


class AdamWPart:
    """The parameters that AdamW updates. All share one step count; a parameter without gradient is left alone."""

    def __init__(self, named: Mapping[str, Tensor], config: AdamW) -> None:
        self.named, self.config, self.steps = dict(named), config, 0
        self.m = {n: torch.zeros_like(p, dtype=_wide(p)) for n, p in named.items()}
        self.v = {n: torch.zeros_like(p, dtype=_wide(p)) for n, p in named.items()}

    @torch.no_grad()
    def step(self, lr: float) -> None:
        """One update from the gradients in `.grad`. lr: the learning rate of this step."""
        b1, b2 = self.config.betas
        self.steps += 1
        names = [n for n, p in self.named.items() if p.grad is not None]
        if not names:
            return
        weights = [self.named[n] for n in names]
        m, v = [self.m[n] for n in names], [self.v[n] for n in names]
        grads = [p.grad.to(a.dtype) for p, a in zip(weights, m) if p.grad is not None]
        decay = [self.named[n] for n in names if decayed(n, self.named[n])]
        if decay and self.config.weight_decay:
            torch._foreach_mul_(decay, 1 - lr * self.config.weight_decay)
        torch._foreach_lerp_(m, grads, 1 - b1)
        torch._foreach_mul_(v, b2)
        torch._foreach_addcmul_(v, grads, grads, 1 - b2)
        scale = torch._foreach_sqrt(v)
        torch._foreach_div_(scale, math.sqrt(1 - b2**self.steps))
        torch._foreach_add_(scale, self.config.eps)
        torch._foreach_addcdiv_(weights, m, scale, -lr / (1 - b1**self.steps))

    def state(self) -> dict[str, Tensor]:
        """Moments by parameter name, and the step count."""
        found = {f"{n}.m": t for n, t in self.m.items()} | {f"{n}.v": t for n, t in self.v.items()}
        return found | {"adamw.steps": torch.tensor(self.steps, dtype=torch.int64)}

    def load(self, state: Mapping[str, Tensor]) -> None:
        """Restores `state()` exactly; KeyError for a missing name."""
        self.steps = int(state["adamw.steps"])
        for n in self.named:
            self.m[n].copy_(state[f"{n}.m"])
            self.v[n].copy_(state[f"{n}.v"])


def _wide(p: Tensor) -> torch.dtype:
    return torch.float64 if p.dtype == torch.float64 else torch.float32
