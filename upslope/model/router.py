"""How tokens find experts: score ∘ select ∘ weight, three pure functions. Everything here is in float32 or wider.

    s = score(x W + b);  chosen = select(s + selection bias);  g_i = scale · s_i / Σ_chosen s   (the division where renorm is set)

The selection bias never enters the weights. Sources: DeepSeek-V3, arXiv 2412.19437 §2.1.2; groups: also DeepSeek-V2, arXiv 2405.04434.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from upslope.model.config import Router, TopK


class Routes(NamedTuple):
    """chosen (T, k) experts of each token, weights (T, k), scores and logits (T, E)."""

    chosen: Tensor
    weights: Tensor
    scores: Tensor
    logits: Tensor


def score(logits: Tensor, kind: str) -> Tensor:
    """logits (T, E) → scores (T, E), none negative."""
    if kind == "softmax":
        return torch.softmax(logits, -1)
    return torch.sigmoid(logits) if kind == "sigmoid" else F.softplus(logits).sqrt()


def top_experts(scores: Tensor, select: TopK) -> Tensor:
    """The k best experts (T, k) of scores (T, E), from the best groups only where there are groups."""
    if select.groups > 1:
        grouped = scores.unflatten(-1, (select.groups, -1))  # (T, G, E/G)
        rank = grouped.amax(-1) if select.group_score == "max" else grouped.topk(min(2, grouped.shape[-1]), -1).values.sum(-1)
        best = rank.topk(select.keep, -1, sorted=False).indices
        closed = torch.ones_like(rank, dtype=torch.bool).scatter_(-1, best, False)
        scores = grouped.masked_fill(closed[..., None], -math.inf).flatten(-2)
    return scores.topk(select.k, -1, sorted=False).indices


def weigh(scores: Tensor, chosen: Tensor, config: Router) -> Tensor:
    """The weights (T, k) of the chosen experts."""
    weights = scores.gather(-1, chosen)
    if config.renorm:
        weights = weights / (weights.sum(-1, keepdim=True) + 1e-20)
    return weights * config.scale


def route(logits: Tensor, config: Router, bias: Tensor | None, listed: Tensor | None) -> Routes:
    """Routes from logits (T, E). bias (E,): for selection only. listed (T, k): the experts where a table names them."""
    scores = score(logits, config.score)
    if listed is not None:
        chosen = listed
    else:
        assert isinstance(config.select, TopK)
        with torch.no_grad():
            chosen = top_experts(scores if bias is None else scores + bias, config.select)
    return Routes(chosen, weigh(scores, chosen, config), scores, logits)
