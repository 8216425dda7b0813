"""Optimizer configs: AdamW for everything, or Muon for hidden matrices with AdamW for the rest."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from upslope.config import Config


class AdamW(Config):
    """AdamW: m = b1 m + (1-b1) g; v = b2 v + (1-b2) g^2; W -= lr (m^ / (sqrt(v^) + eps) + weight_decay W).

    Embeddings and 1-D parameters (norms, biases) are never decayed: decay shrinks embeddings, and small embeddings
    inflate the gradients of the early layers. Source: Loshchilov and Hutter 2019; OLMo 2 (eps, no decay of embeddings).
    """

    kind: Literal["adamw"] = "adamw"
    lr: float = Field(default=1e-3, gt=0)
    betas: tuple[float, float] = (0.9, 0.95)
    eps: float = Field(default=1e-8, gt=0)
    weight_decay: float = Field(default=0.1, ge=0)


class Muon(Config):
    """Muon on hidden matrices, AdamW on embeddings, head and 1-D parameters.

    M = momentum M + (1 - momentum) G; O = NewtonSchulz((1 - momentum) G + momentum M) with `nesterov`, else of M;
    W = (1 - lr weight_decay) W - lr 0.2 sqrt(max(A, B)) O. The factor gives the update the RMS of an AdamW update, so
    learning rates of AdamW (3e-4 to 1e-2 at small sizes) carry over. Source: Jordan 2024; Liu et al. 2025 (Moonlight).

    ns_dtype: of the Newton-Schulz products; "fp32" = the dtype of the weights (slower, no gain known).
    adamw: settings of the other parameters; its lr follows the schedule in proportion. None: AdamW with the learning rate
    and weight decay given here, so that one number moves everything.
    """

    kind: Literal["muon"] = "muon"
    lr: float = Field(default=1e-3, gt=0)
    momentum: float = Field(default=0.95, ge=0, lt=1)
    nesterov: bool = True
    ns_steps: int = Field(default=5, ge=1)
    ns_dtype: Literal["bf16", "fp32"] = "bf16"
    weight_decay: float = Field(default=0.1, ge=0)
    adamw: AdamW | None = None

    @property
    def rest(self) -> AdamW:
        """The settings of the parameters that Muon does not take."""
        return self.adamw or AdamW(lr=self.lr, weight_decay=self.weight_decay)


Optim = Annotated[AdamW | Muon, Field(discriminator="kind")]
