"""Initial weights, drawn per parameter name: two models that differ in one part share the draws of all others.

Schemes: see `ZeroOut` and `Normal` in `model.config`. Every draw is numpy Philox keyed by (seed, "init", name).
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor

from upslope.machine.rng import rng
from upslope.model.config import Init, Normal, ZeroOut
from upslope.model.transformer import Transformer

Role = Literal["embed", "head", "out", "matrix", "gain"]


def role(name: str) -> Role:
    """What a parameter is, by its name: embedding, head, projection into the residual stream, other matrix, or norm gain."""
    owner = name.split(".")[-2]
    if owner in ("embed", "head"):
        return owner  # type: ignore[return-value]
    if owner.endswith("norm"):
        return "gain"
    return "out" if owner in ("o", "down") else "matrix"


def std_of(init: Init, what: Role, fan_in: int) -> float:
    """The standard deviation of a matrix under a scheme."""
    if isinstance(init, Normal):
        return init.std
    assert isinstance(init, ZeroOut)
    if what == "embed":
        return init.embed_std
    return 0.0 if what in ("out", "head") else init.gain / math.sqrt(fan_in)


@torch.no_grad()
def initialise(model: Transformer, seed: int) -> Transformer:
    """Draws all weights in place; returns the model."""
    for name, parameter in model.named_parameters():
        parameter.copy_(draw(model.config.init, name, tuple(parameter.shape), seed))
    return model


def draw(init: Init, name: str, shape: tuple[int, ...], seed: int) -> Tensor:
    """One parameter's initial value, float32."""
    what = role(name)
    if what == "gain":
        return torch.ones(shape)
    std = std_of(init, what, shape[-1])
    if std == 0.0:
        return torch.zeros(shape)
    import numpy as np

    return torch.from_numpy(rng(seed, "init", name).standard_normal(shape, dtype=np.float32)).mul_(std)
