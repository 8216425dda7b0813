"""From named parameters and a config to an optimizer."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

from upslope.config import UsageError
from upslope.optim.adamw import AdamWPart
from upslope.optim.config import AdamW, Muon
from upslope.optim.muon import MuonPart
from upslope.optim.roles import role
from upslope.optim.shards import Shards


class Optimizer:
    """Updates parameters in place from `.grad`; its state is tensors by name, restored exactly.

    heads: per parameter name the heads that its rows are, see `Muon.split` and `optim.heads`. seed: of stochastic rounding.
    shards: who holds the rest, where parameters are parts of larger ones; state is then of the parts held here.
    """

    def __init__(
        self,
        named: Iterable[tuple[str, Tensor]],
        config: AdamW | Muon,
        heads: Mapping[str, int] | None = None,
        seed: int = 0,
        shards: Shards | None = None,
    ) -> None:
        self.config, self.shards = config, shards
        live = {n: p for n, p in named if p.requires_grad}
        if isinstance(config, Muon):
            if config.split == "heads" and not heads:
                raise UsageError("optim.split = 'heads': no parameter has heads here\nway out: split = 'none'")
            matrices = {n: p for n, p in live.items() if role(n, p) == "matrix"}
            rest = {n: p for n, p in live.items() if n not in matrices}
            self.parts: list[tuple[AdamWPart | MuonPart, float]] = [
                (MuonPart(matrices, config, heads, seed, shards), 1.0),
                (AdamWPart(rest, config.rest, seed, shards), config.rest.lr / config.lr),
            ]
        else:
            self.parts = [(AdamWPart(live, config, seed, shards), 1.0)]
        self.parameters = list(live.values())

    def step(self, lr: float) -> None:
        """One update at learning rate `lr` of the config's main part; other parts scale in proportion to their own."""
        for part, ratio in self.parts:
            part.step(lr * ratio)

    def masters(self) -> dict[str, Tensor]:
        """The float32 copies of 16-bit weights by parameter name; whoever rescales a weight rescales its copy."""
        return {n: t for part, _ in self.parts for n, t in part.weights.masters.items()}

    def clear(self) -> None:
        """Forgets the gradients."""
        for p in self.parameters:
            p.grad = None

    def state(self) -> dict[str, Tensor]:
        """All state as tensors by name."""
        return {k: v for part, _ in self.parts for k, v in part.state().items()}

    def load(self, state: Mapping[str, Tensor]) -> None:
        """Restores `state()`; UsageError where names or shapes differ (another optimizer or another model)."""
        mine = self.state()
        if wrong := sorted(set(mine) ^ set(state)):
            raise UsageError(
                f"optimizer state: {len(wrong)} names differ, first {wrong[0]!r}\nway out: continue with the optimizer "
                "and model that wrote it, or use init kind 'load' to start with a new optimizer"
            )
        for name, value in mine.items():
            if state[name].shape != value.shape:
                raise UsageError(f"optimizer state: {name!r} has shape {tuple(state[name].shape)}, this model wants {tuple(value.shape)}")
        with torch.no_grad():
            for part, _ in self.parts:
                part.load(state)


def build(
    named: Iterable[tuple[str, Tensor]],
    config: AdamW | Muon,
    heads: Mapping[str, int] | None = None,
    seed: int = 0,
    shards: Shards | None = None,
) -> Optimizer:
    """The optimizer of a config over named parameters (`model.named_parameters()`); those without gradient are left out."""
    return Optimizer(named, config, heads, seed, shards)
