"""Lightning attention: linear attention with a fixed decay per head, computed chunk by chunk.

    S_t = e^{-λ} S_{t-1} + v_t k_tᵀ,   o_t = S_t q_t;   q, k, v = silu(x W);   y = W_o( sigmoid(x W_g) ⊙ N(o) ), N over all heads together

λ of head n = 1 ... h in layer l of L: 2^(-8n/h) · (1 - l/(L - 1 + 1e-5) + 1e-5). No softmax, no scale, no position.
Source: MiniMax-01, arXiv 2501.08313; the released modelling code.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from upslope.model.cache import Memory
from upslope.model.config import RMS, Lightning, ModelConfig
from upslope.model.flow import Flow
from upslope.model.linear import Linear
from upslope.model.mamba import States, decayed_scan, over_rows
from upslope.model.norm import RMSNorm, wide


def decays(heads: int, layer: int, depth: int, device: torch.device | str | None = None, dtype: torch.dtype = torch.float32) -> Tensor:
    """λ (heads,) of a layer; above the last layer, where prediction modules stand, that of the last: the formula would turn negative."""
    exponent = torch.arange(1, heads + 1, device=device, dtype=dtype)
    return (1 / 2 ** (8 / heads)) ** exponent * (1 - min(layer, depth - 1) / (depth - 1 + 1e-5) + 1e-5)


class LightningAttention(nn.Module):
    """The mixer. Scan and state stay in float32 or wider."""

    def __init__(self, config: Lightning, model: ModelConfig, layer: int, device: torch.device | str | None = None) -> None:
        super().__init__()
        self.config, self.layer, self.depth = config, layer, model.depth
        d, inner = model.d_model, config.heads * config.head_dim
        self.q, self.k, self.v = (Linear(d, inner, device) for _ in range(3))
        self.norm = RMSNorm(inner, RMS(eps=config.eps), device)
        self.gate = Linear(d, inner, device)
        self.o = Linear(inner, d, device)

    def forward(self, x: Tensor, flow: Flow, memory: Memory | None = None) -> Tensor:
        """x (T, d) → (T, d)."""
        q, k, v = (F.silu(wide(f(x))).unflatten(-1, (self.config.heads, -1)) for f in (self.q, self.k, self.v))
        with torch.autocast(x.device.type, enabled=False):
            o = over_rows(flow, memory, self._scan, q, k, v)
        mixed: Tensor = self.o(torch.sigmoid(wide(self.gate(x))) * self.norm(o.flatten(1)))
        return mixed

    def _scan(self, real: Tensor, states: States, q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, States]:
        """real (S, N), q, k, v (S, H, N, D) → o (S, H, N, D) and the state after, (S, H, D_v, D_k)."""
        rate = decays(self.config.heads, self.layer, self.depth, q.device, q.dtype)
        log_a = -rate * real[..., None]  # (S, N, H)
        before = states.get("state")
        q, k, v = (t.transpose(1, 2) for t in (q, k, v))
        v = v * real[..., None, None]
        o, after = decayed_scan(q, k, v.unsqueeze(3), log_a[..., None], None if before is None else before.unsqueeze(2))
        return o.squeeze(3).transpose(1, 2), {"state": after.squeeze(2)}
