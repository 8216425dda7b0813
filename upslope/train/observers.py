"""Observers: read the model while it trains, and cannot change a bit of it. An open family; torch-free configs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, ClassVar

from pydantic import Field

from upslope.config import Open

if TYPE_CHECKING:
    from torch.nn import Module

Rows = Mapping[str, float]


class Observer(Open):
    """Called after every `every`-th step and after the last; its rows are written beside the events.

    Whatever it draws comes from its own copy of the random state; touching a parameter is an error.
    """

    home: ClassVar[str] = "upslope.train.observers"
    every: int = Field(default=100, ge=1)

    def __call__(self, step: int, model: Module) -> Rows:
        """Named numbers at a step (steps done so far)."""
        raise NotImplementedError


class Weights(Observer):
    """Root mean square of every parameter: growth or decay that a loss curve hides."""

    kind: ClassVar[str] = "weights"

    def __call__(self, step: int, model: Module) -> Rows:
        """`rms/<parameter>` by name."""
        return {f"rms/{n}": float(p.detach().double().square().mean().sqrt()) for n, p in model.named_parameters()}
