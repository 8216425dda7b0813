"""Policy-gradient surrogates: the term of one token, from its ratio and advantage. Pure functions of (T,) tensors."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal, NamedTuple

from pydantic import Field

from upslope.config import Config

if TYPE_CHECKING:
    from torch import Tensor

CLAMP = 20.0


class Clip(Config):
    """L = max(-A r, -A clip(r, 1 - low, 1 + high)): no gain from moving a ratio beyond the bounds.

    high > low ("clip higher") leaves room for rare tokens to grow. dual = c > 1: for A < 0, L = min(L, -A c), so that one
    token that became very likely cannot dominate a step. outer: cap on the ratio itself, in every branch.

    Source: Schulman et al. 2017; Ye et al. 2020 (dual clip); Yu et al. 2025 (DAPO, 0.2 / 0.28).
    """

    kind: Literal["clip"] = "clip"
    low: float = Field(default=0.2, gt=0, le=1)
    high: float = Field(default=0.28, gt=0)
    dual: Annotated[float, Field(gt=1)] | None = None
    outer: Annotated[float, Field(gt=1)] | None = None


class Cispo(Config):
    """L = -sg(min(r, cap)) A log p: the ratio is a weight, not a gate, so that every token keeps a gradient.

    cap is the largest weight itself (not cap - 1, as some code bases count). Source: MiniMax-M1 (2506.13585).
    """

    kind: Literal["cispo"] = "cispo"
    cap: float = Field(default=5.0, ge=1)


class Term(NamedTuple):
    """loss: (T,), with gradient. limited: (T,) bool, where a bound took effect."""

    loss: Tensor
    limited: Tensor


def token_ratio(logprob: Tensor, old: Tensor) -> Tensor:
    """(T,) exp(log p - log p_old), the log-ratio clamped to ±20."""
    return (logprob - old).clamp(-CLAMP, CLAMP).exp()


def sequence_ratio(logprob: Tensor, old: Tensor, action: Tensor, seg: Tensor, segments: int) -> Tensor:
    """(T,) the geometric mean of the ratios of a segment's action tokens, given to each of them.

    s_i = exp(mean_t (log p - log p_old)); the mean over action tokens alone (action: (T,) bool; seg: (T,) int64).
    Source: Zheng et al. 2025 (GSPO, 2507.18071); its bounds are near 3e-4: those of token ratios would never bind.
    """
    weight = action.to(logprob.dtype)
    zeros = logprob.new_zeros(segments)
    total = zeros.index_add(0, seg, (logprob - old) * weight)
    count = zeros.index_add(0, seg, weight).clamp(min=1)
    return (total / count).clamp(-CLAMP, CLAMP).exp()[seg]


def clip(ratio: Tensor, advantage: Tensor, bounds: Clip) -> Term:
    """The clipped surrogate; see `Clip`."""
    if bounds.outer is not None:
        ratio = ratio.clamp(max=bounds.outer)
    free = -advantage * ratio
    held = -advantage * ratio.clamp(1 - bounds.low, 1 + bounds.high)
    loss = free.maximum(held)
    limited = held > free
    if bounds.dual is not None:
        ceiling = -advantage * bounds.dual
        over = (advantage < 0) & (loss > ceiling)
        loss, limited = loss.minimum(ceiling).where(advantage < 0, loss), limited | over
    return Term(loss, limited)


def cispo(ratio: Tensor, logprob: Tensor, advantage: Tensor, bounds: Cispo) -> Term:
    """The weighted log-likelihood; see `Cispo`."""
    weight = ratio.detach().clamp(max=bounds.cap)
    return Term(-weight * advantage * logprob, ratio.detach() > bounds.cap)


def mismatch_weight(old: Tensor, sampled: Tensor, cap: float) -> Tensor:
    """(T,) truncated importance weight min(exp(log p_old - log p_engine), cap), for engines whose numerics differ.

    Source: Yao et al. 2025 (truncated importance sampling); biased, of low variance.
    """
    return (old - sampled).clamp(-CLAMP, CLAMP).exp().clamp(max=cap).detach()
