"""Side outputs of a forward pass, and what a forward pass can be made to repeat.

Handed to `Transformer.forward` by whoever wants them; nothing is kept in modules, so recomputation and micro-batches are safe.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor


@dataclass
class Aux:
    """Side outputs, merged over micro-batches and ranks with `+`.

    max_logit: layer → (heads,) largest attention logit q·k/sqrt(D) over allowed pairs. Source: arXiv 2309.14322 §3.1.
    """

    max_logit: dict[int, Tensor] = field(default_factory=dict)

    def saw_logit(self, layer: int, largest: Tensor) -> None:
        """Takes in the largest logits (heads,) of a layer."""
        before = self.max_logit.get(layer)
        self.max_logit[layer] = largest if before is None else torch.maximum(before, largest)

    def __add__(self, other: Aux) -> Aux:
        merged = Aux(dict(self.max_logit))
        for layer, largest in other.max_logit.items():
            merged.saw_logit(layer, largest)
        return merged
