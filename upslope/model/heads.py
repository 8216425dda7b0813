"""Heads that read the hidden states for something other than the next token."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class ScalarHead(nn.Module):
    """A scalar per token, r_t = w · h_t + b: the reward model's head (read at the last token of a segment).

    Starts at zero, so that the first loss is log 2 for every pair. Source: Ouyang et al. 2022, arXiv 2203.02155 §3.5.
    """

    def __init__(self, d_model: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(d_model))
        self.bias = nn.Parameter(torch.zeros(()))

    def forward(self, hidden: Tensor) -> Tensor:
        """hidden (..., d) → scores (...), float32."""
        return (hidden.float() * self.weight).sum(-1) + self.bias
