"""Initial weights, drawn per parameter name: two models that differ in one part share the draws of all others.

Schemes: `ZeroOut`, `Normal`, `DepthScaled`, `FanIn` in `model.config`. Every draw is numpy Philox keyed by (seed, "init", name). A module
whose parameters start in a way of their own (norm gains, decays, tables) says so in a method `start(leaf, shape, rng)`.
"""

from __future__ import annotations

import math
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from upslope.machine.rng import rng
from upslope.model.config import DepthScaled, FanIn, Init, ModelConfig, Normal, Nothing, ZeroOut
from upslope.model.transformer import Transformer

Role = Literal["embed", "head", "out", "matrix", "gain", "bias"]
CUT = 3.0  # standard deviations at which `FanIn` cuts


def role(name: str) -> Role:
    """What a parameter is, by its name: embedding, head, projection into the residual stream, other matrix, norm gain, or bias."""
    *_, owner, leaf = name.split(".")
    if leaf == "bias":
        return "bias"
    owner = owner if leaf == "weight" else leaf
    if owner == "embed" or owner == "head":
        return owner  # type: ignore[return-value]
    if owner.endswith("norm") or owner in ("before", "after"):
        return "gain"
    return "out" if owner in ("o", "down") else "matrix"


def std_of(init: Init, name: str, fan_in: int, branches: int = 1) -> float:
    """The standard deviation of a matrix under a scheme. branches: halves of blocks that add to the residual stream."""
    what = role(name)
    if isinstance(init, ZeroOut):
        if what == "embed":
            return init.embed_std
        return 0.0 if what in ("out", "head") else init.gain / math.sqrt(fan_in)
    half = "head" if what == "head" else "mixer" if ".mixer." in name else "ffn"
    if what in ("out", "head") and half in init.zero:
        return 0.0
    if isinstance(init, Normal):
        return init.std
    if isinstance(init, DepthScaled):
        return init.std / math.sqrt(branches) if what == "out" else init.std
    assert isinstance(init, FanIn)
    return init.embed_std if what == "embed" else init.gain / math.sqrt(fan_in)


def branches(config: ModelConfig) -> int:
    """Halves of blocks that add to the residual stream."""
    return sum((not isinstance(b.mixer, Nothing)) + (not isinstance(b.ffn, Nothing)) for b in config.layers())


@torch.no_grad()
def initialise(model: Transformer, seed: int) -> Transformer:
    """Draws all weights and tables in place; returns the model."""
    halves = branches(model.config)
    tensors = model.tensors()
    for path, module in model.named_modules():
        start = getattr(module, "start", None)
        for leaf, tensor in (*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)):
            name = f"{path}.{leaf}" if path else leaf
            if name not in tensors:
                continue  # a buffer that is derived, not saved
            own = None if start is None else start(leaf, tuple(tensor.shape), rng(seed, "init", name))
            tensor.copy_(own if own is not None else draw(model.config.init, name, tuple(tensor.shape), seed, halves))
    return model


def draw(init: Init, name: str, shape: tuple[int, ...], seed: int, branches: int = 1) -> Tensor:
    """One parameter's initial value, float32."""
    what = role(name)
    if what == "gain":
        return torch.ones(shape)
    if what == "bias":
        return torch.zeros(shape)
    std = std_of(init, name, shape[-1], branches)
    if std == 0.0:
        return torch.zeros(shape)
    noise = rng(seed, "init", name).standard_normal(shape, dtype=np.float32)
    if isinstance(init, FanIn):
        noise = noise.clip(-CUT, CUT)
    return torch.from_numpy(noise).mul_(std)
