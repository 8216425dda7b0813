"""Channel mixers. SwiGLU: y = (silu(x W_gate) ⊙ x W_up) W_down. Source: Shazeer 2020, arXiv 2002.05202."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from upslope.model.config import Gated
from upslope.model.linear import Linear


class SwiGLU(nn.Module):
    """d → hidden (gate and up) → d, no biases."""

    def __init__(self, config: Gated, d_model: int, device: torch.device | str | None = None) -> None:
        super().__init__()
        self.gate = Linear(d_model, config.hidden, device)
        self.up = Linear(d_model, config.hidden, device)
        self.down = Linear(config.hidden, d_model, device)

    def forward(self, x: Tensor) -> Tensor:
        """x (T, d) → (T, d)."""
        out: Tensor = self.down(F.silu(self.gate(x)) * self.up(x))
        return out
