"""Multi-token prediction: modules that predict further tokens from the trunk's hidden states, for a denser training signal.

    h^k_t = block_k( [N(h^{k-1}_t) ; N(E(ids_{t+k}))] M_k ),   P(ids_{t+k+1}) = head(N(h^k_t)),   h^0 = the trunk's output

Embedding and head are the model's own. Rows whose token t + k lies outside their segment are given its last token: they mean nothing, no
earlier row sees them and no loss may read them, but they are a function of their own segment. Source: DeepSeek-V3, arXiv 2412.19437 §2.2.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor, nn

from upslope.model.block import Block
from upslope.model.config import HyperConnections, ModelConfig
from upslope.model.flow import Flow
from upslope.model.hyper import Collapse
from upslope.model.linear import Linear
from upslope.model.norm import RMSNorm, wide


class Predictor(nn.Module):
    """One module: joins hidden state and embedding, runs a block of its own, norms the result for the head."""

    def __init__(self, config: ModelConfig, block: str, layer: int, device: torch.device | str | None) -> None:
        super().__init__()
        d, kind = config.d_model, config.blocks[block]
        self.hidden_norm = RMSNorm(d, config.final_norm, device)
        self.embed_norm = RMSNorm(d, config.final_norm, device)
        self.join = Linear(2 * d, d, device)
        self.block = Block(kind, config, layer, device)
        hyper = kind.residual
        self.collapse = Collapse(hyper, d, device) if isinstance(hyper, HyperConnections) else None
        self.streams = hyper.streams if isinstance(hyper, HyperConnections) else 0
        self.final_norm = RMSNorm(d, config.final_norm, device)

    def forward(self, hidden: Tensor, ahead: Tensor, flow: Flow) -> tuple[Tensor, Tensor]:
        """hidden, ahead (T, d): states of depth k - 1, embeddings k tokens ahead → states of depth k, and those normed for the head."""
        x = wide(self.join(torch.cat((self.hidden_norm(hidden), self.embed_norm(ahead)), -1)))
        if self.collapse is not None:
            x = self.collapse(self.block(x[:, None].expand(-1, self.streams, -1), flow, None))
        else:
            x = self.block(x, flow, None)
        return x, self.final_norm(x)


class Predictors(nn.Module):
    """The modules of all depths; one module for all where the config shares them."""

    def __init__(self, config: ModelConfig, device: torch.device | str | None = None) -> None:
        super().__init__()
        assert config.mtp is not None
        self.depth = config.mtp.depth
        modules = 1 if config.mtp.shared else self.depth
        self.layers = nn.ModuleList(Predictor(config, config.mtp.block, config.depth + k, device) for k in range(modules))

    def forward(self, hidden: Tensor, flow: Flow, embedded: Callable[[Tensor], Tensor]) -> list[Tensor]:
        """hidden (T, d) of the trunk → per depth k = 1, 2, ... states (T, d) for the head; row t speaks of token t + k + 1."""
        out = []
        last = torch.repeat_interleave(flow.packing.lengths.cumsum(0) - 1, flow.packing.lengths).to(flow.ids.device)  # (T,)
        here = torch.arange(len(last), device=last.device)
        for k in range(1, self.depth + 1):
            layer = self.layers[0 if len(self.layers) == 1 else k - 1]
            ahead = embedded(flow.ids[torch.minimum(here + k, last)])
            hidden, normed = layer(hidden, ahead, replace(flow, step=None))
            out.append(normed)
        return out
