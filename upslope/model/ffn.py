"""Channel mixers. Gated: y = (act(x W_gate) ⊙ x W_up) W_down. Squared ReLU: y = relu(x W_up)² W_down.

Sources: Shazeer 2020, arXiv 2002.05202; So et al. 2021, arXiv 2109.08668; clamp and swish1702: gpt-oss, arXiv 2508.10925.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from upslope.model.config import Gated, Relu2
from upslope.model.linear import Linear

if TYPE_CHECKING:
    from upslope.model.flow import Flow


def gate(config: Gated, g: Tensor, up: Tensor) -> Tensor:
    """act(g) ⊙ up, clamped as the config says: shared by dense FFNs and experts."""
    if config.limit is not None:
        g, up = g.clamp(max=config.limit), up.clamp(-config.limit, config.limit)
    if config.act == "silu":
        return F.silu(g) * up
    if config.act == "gelu":
        return F.gelu(g, approximate="tanh") * up
    return g * torch.sigmoid(1.702 * g) * (up + 1)


class GatedFFN(nn.Module):
    """d → hidden (gate and up) → d."""

    def __init__(self, config: Gated, width: int, device: torch.device | str | None = None) -> None:
        super().__init__()
        self.config = config
        self.gate = Linear(width, config.hidden, device, config.bias)
        self.up = Linear(width, config.hidden, device, config.bias)
        self.down = Linear(config.hidden, width, device, config.bias)

    def forward(self, x: Tensor, flow: Flow | None = None) -> Tensor:
        """x (T, d) → (T, d)."""
        out: Tensor = self.down(gate(self.config, self.gate(x), self.up(x)))
        return out


class Relu2FFN(nn.Module):
    """d → hidden → d."""

    def __init__(self, config: Relu2, width: int, device: torch.device | str | None = None) -> None:
        super().__init__()
        self.up = Linear(width, config.hidden, device)
        self.down = Linear(config.hidden, width, device)

    def forward(self, x: Tensor, flow: Flow | None = None) -> Tensor:
        """x (T, d) → (T, d)."""
        out: Tensor = self.down(F.relu(self.up(x)).square())
        return out


def ffn_of(config: Gated | Relu2, width: int, device: torch.device | str | None = None) -> GatedFFN | Relu2FFN:
    """The module of a dense FFN's config."""
    return GatedFFN(config, width, device) if isinstance(config, Gated) else Relu2FFN(config, width, device)
