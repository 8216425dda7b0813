"""The lightning indexer of sparse attention: which earlier tokens a query attends to.

    I(t,s) = Σ_j w_j(t) · relu(q_j(t)·k(s) / sqrt(dim)),   s ≤ t;   a query keeps the top_k tokens of largest I, the earlier one where equal

Its inputs are detached: it learns only from KL(p ‖ softmax(I)), p = the attention's probabilities, mean over heads.
Source: DeepSeek-V3.2, arXiv 2512.02556.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn

from upslope.model.config import Indexer
from upslope.model.flow import Flow
from upslope.model.linear import Linear, WideLinear
from upslope.model.norm import wide
from upslope.model.rope import rotate


class IndexQuery(NamedTuple):
    """What scores are made of: q (T, J, D), k (T, 1, D), weights (T, J, 1)."""

    q: Tensor
    k: Tensor
    weights: Tensor


class LightningIndexer(nn.Module):
    """Queries from the attention queries' latent, one key and the heads' weights from the hidden state."""

    def __init__(self, config: Indexer, d_model: int, q_latent: int, device: torch.device | str | None = None) -> None:
        super().__init__()
        self.config = config
        self.q = Linear(q_latent, config.heads * config.dim, device)
        self.k = Linear(d_model, config.dim, device)
        self.k_norm = nn.LayerNorm(config.dim, config.eps, device=device)
        self.weights = WideLinear(d_model, config.heads, device)

    def forward(self, x: Tensor, latent: Tensor, flow: Flow) -> IndexQuery:
        """x (T, d), latent (T, q_latent), both detached here."""
        c, x, latent = self.config, x.detach(), latent.detach()
        at = flow.angles(c.rope, c.dim)
        q, k = wide(self.q(latent)).unflatten(-1, (c.heads, c.dim)), wide(self.k(x))
        with torch.autocast(x.device.type, enabled=False):
            weights = self.weights(x)[..., None] * c.heads**-0.5
            return IndexQuery(rotate(q, at), rotate(self.k_norm(k)[:, None], at), weights)


def scores(q: Tensor, k: Tensor, weights: Tensor) -> Tensor:
    """I (S, N, L) from q (S, J, N, D), k (S, L, D), weights (S, J, N, 1)."""
    each = torch.relu(q @ k[:, None].mT * q.shape[-1] ** -0.5)  # (S, J, N, L)
    return (each * weights).sum(1)


def best(index: Tensor, top_k: int) -> Tensor | None:
    """Columns (S, N, top_k) of the largest scores index (S, N, L), -inf where hidden; None where that is all columns."""
    if index.shape[-1] <= top_k:
        return None
    return torch.sort(index.detach(), dim=-1, descending=True, stable=True).indices[..., :top_k]  # topk breaks ties as it likes


def restricted(mask: Tensor, columns: Tensor, width: int) -> Tensor:
    """The additive mask (S, N, width) that leaves, of what `mask` (S or 1, N or 1, width or 1) shows, these columns (S, N, K)."""
    none = mask.new_full((*columns.shape[:2], width), -math.inf)
    return none.scatter_(-1, columns, 0.0) + mask


def chosen(index: Tensor, mask: Tensor, top_k: int) -> Tensor:
    """The additive mask (S, N, L) that leaves the top_k of the tokens that `mask` (S, N, L) lets be seen."""
    columns = best(index + mask, top_k)
    return mask.expand_as(index) if columns is None else restricted(mask, columns, index.shape[-1])


def divergence(probs: Tensor, index: Tensor, mask: Tensor) -> Tensor:
    """KL(p ‖ softmax(I)) per query (S, N). probs (S, N, L) sum to one and are zero where `mask` (S, N, L) hides."""
    logq = torch.log_softmax(index + mask, -1).masked_fill(mask == -math.inf, 0.0)
    return (torch.special.xlogy(probs, probs) - probs * logq).sum(-1)
