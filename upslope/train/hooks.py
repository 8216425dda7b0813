"""What happens around optimizer steps besides the step itself: narrow formats, QK-Clip, moving averages."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor, nn

from upslope.model.aux import Aux, Want
from upslope.optim.averaging import EMA
from upslope.optim.config import QKClip
from upslope.optim.qk_clip import clippable, qk_clip
from upslope.optim.shards import local
from upslope.precision.config import Emulated
from upslope.precision.linear import at_step, convert, revert

if TYPE_CHECKING:
    from upslope.train.trainer import Trainer


class Hook(Protocol):
    """Called by the trainer around each step; what it remembers is part of the saved state.

    wants: side outputs of the forward passes with gradient.
    """

    wants: frozenset[Want]

    def begin(self, trainer: Trainer) -> None:
        """When the trainer is made: its parameters are there, cut over ranks where there are several."""
        ...

    def before(self, model: nn.Module, step: int) -> None:
        """Before the first pass of step `step` (0, 1, …)."""
        ...

    def after(self, trainer: Trainer, seen: Aux, applied: bool) -> Mapping[str, float]:
        """After the update, or after it was refused (applied = False); seen: of all parts of the step. Numbers for the report."""
        ...

    def finish(self, model: nn.Module) -> None:
        """After the last step: makes the model what is to be kept."""
        ...

    def state(self) -> dict[str, Tensor]:
        """What the next step depends on."""
        ...

    def load(self, state: Mapping[str, Tensor]) -> None:
        """Restores `state()` to the bit."""
        ...


class _Plain:
    """A hook that does nothing and remembers nothing."""

    wants: frozenset[Want] = frozenset()

    def begin(self, trainer: Trainer) -> None:
        pass

    def before(self, model: nn.Module, step: int) -> None:
        pass

    def after(self, trainer: Trainer, seen: Aux, applied: bool) -> Mapping[str, float]:
        return {}

    def finish(self, model: nn.Module) -> None:
        pass

    def state(self) -> dict[str, Tensor]:
        return {}

    def load(self, state: Mapping[str, Tensor]) -> None:
        pass


class Emulation(_Plain):
    """Linear maps of the model compute in a narrow format, emulated where there are no kernels; random bits depend on the step alone."""

    def __init__(self, model: nn.Module, config: Emulated) -> None:
        self.converted = convert(model, config)

    def before(self, model: nn.Module, step: int) -> None:
        """Moves the random bits on."""
        at_step(model, step)

    def finish(self, model: nn.Module) -> None:
        """Plain linear maps again, with the float32 weights that were trained."""
        revert(model)


class Clipping(_Plain):
    """QK-Clip after each update, by the largest attention logits of the step's own passes.

    Reports max_logit, the largest of all heads before clipping, and clipped_heads.
    """

    wants = frozenset({"max_logit"})

    def __init__(self, model: nn.Module, config: QKClip) -> None:
        clippable(model)
        self.config = config

    def after(self, trainer: Trainer, seen: Aux, applied: bool) -> Mapping[str, float]:
        """Clips the heads above the threshold."""
        largest = {layer: trainer.ranks.largest(seen.max_logit[layer]) for layer in sorted(seen.max_logit)}
        c = self.config
        clipped = (
            qk_clip(trainer.model, largest, c.tau, c.alpha, c.shared, trainer.optimizer.masters(), trainer.ranks.shards) if applied else {}
        )
        top = max((float(v.max()) for v in largest.values()), default=0.0)
        return {"max_logit": top, "clipped_heads": float(sum(int((g != 1).sum()) for g in clipped.values()))}


class MovingAverage(_Plain):
    """An exponential moving average of the trained parameters, which takes their place at the end."""

    def __init__(self, decay: float) -> None:
        self.decay = decay

    def begin(self, trainer: Trainer) -> None:
        """The average starts at the weights of now."""
        self.held = {n: local(p) for n, p in trainer.trained.items()}
        self.ema = EMA(self.held, self.decay)

    def after(self, trainer: Trainer, seen: Aux, applied: bool) -> Mapping[str, float]:
        """Takes in the weights of an accepted step."""
        if applied:
            self.ema.update(self.held)
        return {}

    @torch.no_grad()
    def finish(self, model: nn.Module) -> None:
        """Puts the averages in place."""
        for name, p in self.held.items():
            p.copy_(self.ema.averages[name])

    def state(self) -> dict[str, Tensor]:
        """The averages."""
        return {f"ema.{n}": t for n, t in self.ema.state().items()}

    def load(self, state: Mapping[str, Any]) -> None:
        """Restores the averages."""
        self.ema.load({n.removeprefix("ema."): t for n, t in state.items()})
