"""Estimators of KL(policy || reference) from samples of the policy, as terms of a loss."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from pydantic import Field, model_validator

from upslope.config import Config

if TYPE_CHECKING:
    from torch import Tensor

CLAMP = 20.0


class KL(Config):
    """A penalty coefficient * KL(policy || reference) in the loss.

    With d = log p - log p_ref: k1 = d; k2 = d^2 / 2; k3 = exp(-d) - 1 + d. weighted: multiplies by the live ratio
    p / p_old, through which the gradient flows. What the gradient then is, in expectation on policy: k1 and k3 weighted:
    the true reverse KL; k2 plain: the true reverse KL; k3 plain: the *forward* KL (GRPO's original). Of the two other
    pairs, plain k1 has expected gradient zero and weighted k2 is wrong: they are refused.

    Source: Schulman 2020 (approximating KL); DeepSeek-V3.2 (weighted k3); Shao et al. 2024 (plain k3).
    """

    estimator: Literal["k1", "k2", "k3"] = "k3"
    coefficient: float = Field(default=0.01, gt=0)
    weighted: bool = True

    @model_validator(mode="after")
    def _meaningful(self) -> KL:
        if self.estimator == "k1" and not self.weighted:
            raise ValueError("estimator k1 without weight has expected gradient zero; use weighted = true, or k2")
        if self.estimator == "k2" and self.weighted:
            raise ValueError("weighted k2 has a wrong gradient; use weighted = false, or k3")
        return self


def kl_term(logprob: Tensor, reference: Tensor, old: Tensor, estimator: Literal["k1", "k2", "k3"], weighted: bool) -> Tensor:
    """(T,) estimates, with gradient, from log-probs (T,) of the sampled tokens. Log-ratios are clamped to ±20 before exp."""
    d = logprob - reference
    if estimator == "k1":
        value = d
    elif estimator == "k2":
        value = d * d / 2
    else:
        value = (-d).clamp(-CLAMP, CLAMP).exp() - 1 + d
    if weighted:
        value = (logprob - old).clamp(-CLAMP, CLAMP).exp() * value
    return value
