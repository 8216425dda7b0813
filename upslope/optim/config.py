"""Optimizer configs: AdamW for everything, or Muon for hidden matrices with AdamW for the rest."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from upslope.config import Config, Neutral

State = Literal["fp32", "bf16", "bf16-sr"]
"""Precision in which moments are kept between steps: as wide as the update, bfloat16, or bfloat16 by stochastic rounding."""

NarrowWeights = Literal["master", "nearest", "stochastic"]
"""How 16-bit weights take updates: through a float32 copy kept by the optimizer, or without one by either rounding."""


class AdamW(Config):
    """AdamW: m = b1 m + (1-b1) g; v = b2 v + (1-b2) g^2; W -= lr (m^ / (sqrt(v^) + eps) + weight_decay W).

    Embeddings and 1-D parameters (norms, biases) are never decayed: decay shrinks embeddings, and small embeddings
    inflate the gradients of the early layers. Source: Loshchilov and Hutter 2019; OLMo 2 (eps, no decay of embeddings).

    decay: "lr" multiplies weight_decay by the learning rate; "independent" by the schedule alone, not by its peak, so that the
    decay stays where it is when the peak moves (a usual value is then 1e-4). Source: Wortsman et al. 2023, arXiv 2309.14322.
    hidden_lr: factor on the learning rate of matrices and heads, whose fan-in is the width of the model; see `optim.transfer`.
    state: precision of m and v between steps; the update reads them before they are rounded. Source: DeepSeek-V3, arXiv 2412.19437 §3.3.
    narrow_weights: how 16-bit weights are updated; wider weights have no use for it.
    """

    kind: Literal["adamw"] = "adamw"
    lr: float = Field(default=1e-3, gt=0)
    betas: tuple[float, float] = (0.9, 0.95)
    eps: float = Field(default=1e-8, gt=0)
    weight_decay: float = Field(default=0.1, ge=0)
    decay: Annotated[Literal["lr", "independent"], Neutral("lr")] = "lr"
    hidden_lr: Annotated[float, Field(gt=0), Neutral(1.0)] = 1.0
    state: Annotated[State, Neutral("fp32")] = "fp32"
    narrow_weights: Annotated[NarrowWeights, Neutral("master")] = "master"


class Muon(Config):
    """Muon on hidden matrices, AdamW on embeddings, head and 1-D parameters.

    M = momentum M + (1 - momentum) G; O = NewtonSchulz((1 - momentum) G + momentum M) with `nesterov`, else of M;
    W = (1 - lr weight_decay) W - lr 0.2 sqrt(max(A, B)) O. The factor gives the update the RMS of an AdamW update, so
    learning rates of AdamW (3e-4 to 1e-2 at small sizes) carry over. Source: Jordan 2024; Liu et al. 2025 (Moonlight).

    ns_dtype: of the Newton-Schulz products; "fp32" = the dtype of the weights (slower, no gain known).
    adamw: settings of the other parameters; its lr follows the schedule in proportion. None: AdamW with the learning rate
    and weight decay given here, so that one number moves everything.
    ns_polish: further steps, with coefficients that pull the singular values to 1; DeepSeek-V4 takes ns_steps = 8 and 2 of these.
    scale: of the update O of an A x B matrix: "rms" 0.2 sqrt(max(A, B)), or "original" sqrt(max(1, A / B)) with A = outputs.
    split: "heads" treats each head of the projections to queries, keys and values as a matrix of its own (Muon Split, GLM-5),
    with the numbers of heads that `build(..., heads=...)` was given.
    state, narrow_weights: as of AdamW; they hold for the other parameters too where `adamw` is None.
    """

    kind: Literal["muon"] = "muon"
    lr: float = Field(default=1e-3, gt=0)
    momentum: float = Field(default=0.95, ge=0, lt=1)
    nesterov: bool = True
    ns_steps: int = Field(default=5, ge=1)
    ns_dtype: Literal["bf16", "fp32"] = "bf16"
    weight_decay: float = Field(default=0.1, ge=0)
    adamw: AdamW | None = None
    ns_polish: Annotated[int, Field(ge=0), Neutral(0)] = 0
    scale: Annotated[Literal["rms", "original"], Neutral("rms")] = "rms"
    split: Annotated[Literal["none", "heads"], Neutral("none")] = "none"
    state: Annotated[State, Neutral("fp32")] = "fp32"
    narrow_weights: Annotated[NarrowWeights, Neutral("master")] = "master"

    @property
    def rest(self) -> AdamW:
        """The settings of the parameters that Muon does not take."""
        own = AdamW(lr=self.lr, weight_decay=self.weight_decay, state=self.state, narrow_weights=self.narrow_weights)
        return self.adamw or own


Optim = Annotated[AdamW | Muon, Field(discriminator="kind")]


class QKClip(Config):
    """After each update, heads whose largest attention logit passed `tau` get smaller query and key weights, see `optim.qk_clip`.

    alpha: share of the shrinking that the queries take. shared: where key heads serve several query heads, "q" shrinks the queries alone,
    "min" the keys by the most that one of their heads asks. Attention computes the logits themselves, without fused kernels.
    Source: Kimi K2, arXiv 2507.20534 §2.1 (tau = 100).
    """

    tau: float = Field(default=100.0, gt=0)
    alpha: float = Field(default=0.5, ge=0, le=1)
    shared: Literal["q", "min"] = "q"
