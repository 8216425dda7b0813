"""Observers: read the model while it trains, and cannot change a bit of it. An open family; torch-free configs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import Field

from upslope.config import Open

if TYPE_CHECKING:
    from torch.nn import Module

    from upslope.train.batch import Batch

Rows = Mapping[str, float]


class Observer(Open):
    """Called after every `every`-th step and after the last; its rows are written beside the events.

    Whatever it draws comes from its own copy of the random state; touching a parameter is an error.
    """

    home: ClassVar[str] = "upslope.train.observers"
    every: int = Field(default=100, ge=1)

    def __call__(self, step: int, model: Module, batch: Batch) -> Rows:
        """Named numbers at a step (steps done so far). batch: the one that the step trained on."""
        raise NotImplementedError

    def alarms(self, rows: Rows) -> list[str]:
        """What a person should see of the numbers."""
        return []


class Weights(Observer):
    """Root mean square of every parameter: growth or decay that a loss curve hides."""

    kind: ClassVar[str] = "weights"

    def __call__(self, step: int, model: Module, batch: Batch) -> Rows:
        """`rms/<parameter>` by name."""
        return {f"rms/{n}": float(p.detach().double().square().mean().sqrt()) for n, p in model.named_parameters()}


class Logits(Observer):
    """Growth of logits, which comes before divergence: of attention (largest per layer, over allowed pairs) and of the output.

    tokens: of the batch that are looked at, in whole segments. Where a head passes `attention`, or the mean of the squared log-normaliser
    passes `output`, an alarm is raised (0 = never). Source: arXiv 2309.14322 §3.1, §3.2.
    """

    kind: ClassVar[str] = "logits"
    tokens: int = Field(default=2048, ge=1)
    attention: float = Field(default=0.0, ge=0)
    output: float = Field(default=0.0, ge=0)

    def __call__(self, step: int, model: Any, batch: Batch) -> Rows:
        """`attention/<layer>`, `attention` (largest of all), `output` (largest logit) and `lse2` (mean squared log-normaliser)."""
        import torch

        from upslope.model.aux import Aux

        part = batch.split(self.tokens)[0]
        aux = Aux(frozenset({"max_logit"}))
        found: dict[str, float] = {"output": -float("inf"), "lse2": 0.0}
        for rows in model(part.ids, part.seg, part.pos, aux=aux).split(1024):
            logits = model.logits(rows)
            found["output"] = max(found["output"], float(logits.max()))
            found["lse2"] += float(torch.logsumexp(logits.double(), -1).square().sum()) / len(part)
        layers = {layer: float(largest.max()) for layer, largest in sorted(aux.max_logit.items())}
        found |= {f"attention/{layer}": value for layer, value in layers.items()}
        return found | ({"attention": max(layers.values())} if layers else {})

    def alarms(self, rows: Rows) -> list[str]:
        """What is above its bound."""
        return [
            f"{name} {rows[name]:g} is above {bound:g}"
            for name, bound in (("attention", self.attention), ("lse2", self.output))
            if 0 < bound < rows.get(name, 0.0)
        ]
