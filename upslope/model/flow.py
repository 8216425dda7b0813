"""What all layers of one forward pass share."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor

from upslope.model.aux import Aux, Want
from upslope.model.cache import Step
from upslope.model.config import Rope
from upslope.model.packing import Packing
from upslope.model.rope import Angles, angles

Backend = Literal["auto", "sdpa", "eager", "flex", "varlen"]


@dataclass
class Flow:
    """ids, pos (T,): tokens and their positions. packing: of the new tokens. step: where they go in the cache, if there is one.

    aux: takes side outputs. shared: what a layer leaves for the layers above that reuse it ("kv": keys and values, "index": chosen tokens).
    """

    ids: Tensor
    pos: Tensor
    packing: Packing
    step: Step | None
    backend: Backend
    aux: Aux | None
    dtype: torch.dtype
    shared: dict[str, Any] = field(default_factory=dict)
    _angles: dict[tuple[Rope, int], Angles] = field(default_factory=dict)

    def angles(self, rope: Rope, head_dim: int) -> Angles:
        """The rotations of this pass for heads of a width, computed once per (rope, width)."""
        key = (rope, head_dim)
        if key not in self._angles:
            self._angles[key] = angles(self.pos, rope, head_dim, self.dtype)
        return self._angles[key]

    def wants(self, what: Want) -> bool:
        """Whether a side output was asked for."""
        return self.aux is not None and what in self.aux.wants
