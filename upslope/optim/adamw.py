"""AdamW over a list of tensors, in few large operations.

    m = b1 m + (1-b1) g;  v = b2 v + (1-b2) g^2;  W = (1 - lr wd) W - lr (m / (1-b1^t)) / (sqrt(v / (1-b2^t)) + eps)

Independent decay puts lr / peak, the schedule's multiplier, in place of lr in the decay.
Source: Kingma and Ba 2015; Loshchilov and Hutter 2019 (decoupled decay); Wortsman et al. 2023 (independent decay).
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from upslope.optim.config import AdamW
from upslope.optim.roles import decayed, role
from upslope.optim.rounding import Kept, moments
from upslope.optim.shards import Shards, local


class AdamWPart:
    """The parameters that AdamW updates. All share one step count; a parameter without gradient is left alone.

    shards: who holds the rest, where parameters are parts of larger ones.
    """

    def __init__(self, named: Mapping[str, Tensor], config: AdamW, seed: int = 0, shards: Shards | None = None) -> None:
        self.named, self.config, self.steps = dict(named), config, 0
        held = {n: local(p) for n, p in named.items()}
        self.weights = Kept(held, "weight", config.narrow_weights, seed, shards)
        self.m, self.v = moments(held, "m", config.state, seed, shards), moments(held, "v", config.state, seed, shards)

    @torch.no_grad()
    def step(self, lr: float) -> None:
        """One update from the gradients in `.grad`. lr: the learning rate of this step."""
        b1, b2 = self.config.betas
        self.steps += 1
        names = [n for n, p in self.named.items() if p.grad is not None]
        if not names:
            return
        weights, m, v = self.weights.open(names), self.m.open(names), self.v.open(names)
        grads = [local(g).to(a.dtype) for g, a in zip((self.named[n].grad for n in names), m) if g is not None]
        self._decay(dict(zip(names, weights)), lr)
        torch._foreach_lerp_(m, grads, 1 - b1)
        torch._foreach_mul_(v, b2)
        torch._foreach_addcmul_(v, grads, grads, 1 - b2)
        scale = torch._foreach_sqrt(v)
        torch._foreach_div_(scale, math.sqrt(1 - b2**self.steps))
        torch._foreach_add_(scale, self.config.eps)
        for factor in {self._factor(n): None for n in names}:
            at = [i for i, n in enumerate(names) if self._factor(n) == factor]
            w, a, s = ([t[i] for i in at] for t in (weights, m, scale))
            torch._foreach_addcdiv_(w, a, s, -lr * factor / (1 - b1**self.steps))
        for kept, updated in ((self.weights, weights), (self.m, m), (self.v, v)):
            kept.close(names, updated, self.steps)

    def _factor(self, name: str) -> float:
        return self.config.hidden_lr if role(name, self.named[name]) in ("matrix", "head") else 1.0

    def _decay(self, weights: Mapping[str, Tensor], lr: float) -> None:
        wd, independent = self.config.weight_decay, self.config.decay == "independent"
        if not wd:
            return
        groups: dict[float, list[Tensor]] = {}
        for n, w in weights.items():
            if decayed(n, self.named[n]):
                groups.setdefault(lr / self.config.lr if independent else lr * self._factor(n), []).append(w)
        for rate, members in groups.items():
            torch._foreach_mul_(members, 1 - rate * wd)

    def state(self) -> dict[str, Tensor]:
        """Moments and masters by parameter name, and the step count."""
        found = {f"{n}.m": t for n, t in self.m.tensors.items()} | {f"{n}.v": t for n, t in self.v.tensors.items()}
        found |= {f"{n}.master": t for n, t in self.weights.masters.items()}
        return found | {"adamw.steps": torch.tensor(self.steps, dtype=torch.int64)}

    def load(self, state: Mapping[str, Tensor]) -> None:
        """Restores `state()` exactly; KeyError for a missing name."""
        self.steps = int(state["adamw.steps"])
        for key, mine in self.state().items():
            mine.copy_(state[key])
