"""Matrices and embeddings that start as NaN instead of drawing from torch's global generator: a weight never drawn is found out."""

from __future__ import annotations

import math

import torch
from torch import nn


class Linear(nn.Linear):
    """x W^T without bias; (out, in). Undrawn until initialised or loaded."""

    def __init__(self, width_in: int, width_out: int, device: torch.device | str | None = None) -> None:
        super().__init__(width_in, width_out, bias=False, device=device)

    def reset_parameters(self) -> None:
        """Marks the weights as undrawn."""
        nn.init.constant_(self.weight, math.nan)


class Embedding(nn.Embedding):
    """A row per token, (vocab, d). Undrawn until initialised or loaded."""

    def __init__(self, rows: int, width: int, device: torch.device | str | None = None) -> None:
        super().__init__(rows, width, device=device)

    def reset_parameters(self) -> None:
        """Marks the weights as undrawn."""
        nn.init.constant_(self.weight, math.nan)
