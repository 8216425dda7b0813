"""Training adapters: what freezes, what a saved state holds, and the base as a reference."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

from torch import Tensor

from upslope.config import UsageError
from upslope.machine.context import Context
from upslope.model.adapter_config import DoRA, LoRA
from upslope.model.adapter_files import unsaved
from upslope.model.adapters import adapted, attach, kept, without
from upslope.model.transformer import Transformer
from upslope.optim.config import AdamW, Muon
from upslope.train.auxiliary import Auxiliary, AuxiliaryStep
from upslope.train.batch import Batch
from upslope.train.hooks import Clipping, Emulation
from upslope.train.protocol import Out, Wants
from upslope.train.ranks import Alone, Ranks
from upslope.train.trainer import Trainer


class _Settled(AuxiliaryStep):
    def settle(self) -> None:
        """Selection biases belong to the base."""


class _Fixed(Auxiliary):
    def step(self, batch: Batch, places: Sequence[Tensor], ranks: Ranks | None = None) -> AuxiliaryStep:
        """Side losses that leave the base as it is."""
        return _Settled(self, batch, places, ranks or Alone())


class AdapterTrainer(Trainer):
    """A trainer of the adapters that are attached to a model (and of a scalar head, which is new too).

    The base does not move: neither its matrices nor the selection biases of its routers. `state()` leaves it out, so a saved state
    holds adapters and optimizer, and `load` needs a trainer of the same base. Muon takes A and B as a matrix each, AdamW magnitudes.
    UsageError for `split` = "heads", as the factors have no heads, for QK-Clip and emulated formats, which read and write weights
    themselves, and for several ranks, as adapters are attached to whole matrices.
    """

    def __init__(self, model: Transformer, optim: AdamW | Muon, **options: Any) -> None:
        if adapted(model) is None:
            raise UsageError("the model has no adapters\nway out: attach(model, LoRA(), seed), or a plain Trainer")
        if isinstance(optim, Muon) and optim.split == "heads":
            raise UsageError("optim.split = 'heads': adapters have no heads\nway out: split = 'none', or optim kind 'adamw'")
        super().__init__(model, optim, **options)
        if any(isinstance(h, Clipping | Emulation) for h in self.hooks):
            raise UsageError("qk_clip or emulated formats beside `adapter`: both are of whole weights\nway out: one of them at a time")
        if self.ranks.world > 1:
            raise UsageError(f"adapters on {self.ranks.world} ranks: they are trained by one\nway out: a mesh of one rank, or no `adapter`")
        self.auxiliary = _Fixed.of(model)

    def state(self) -> dict[str, Tensor]:
        """Everything that the next step depends on, but for the base."""
        held = {f"model.{n}" for n in self.model.state_dict()} - {f"model.{n}" for n in kept(self.model)}
        return {n: t for n, t in super().state().items() if n not in held}

    def load(self, state: Mapping[str, Tensor]) -> None:
        """Restores `state()` to the bit; UsageError where other adapters wrote it."""
        mine, given = {f"model.{n}" for n in kept(self.model)}, {n for n in state if n.startswith("model.")}
        if wrong := sorted(mine ^ given):
            raise UsageError(f"the saved state is of other adapters: {len(wrong)} names differ, first {wrong[0]!r}")
        super().load({f"model.{n}": t for n, t in self.model.state_dict().items()} | dict(state))


class Base:
    """The frozen base of a trainer, as the reference of a KL penalty: no second model."""

    def __init__(self, trainer: AdapterTrainer) -> None:
        self.trainer = trainer

    def forward(self, batch: Batch, wants: Wants) -> Out:
        """`Trainer.forward` without the adapters, whatever they have become."""
        with without(self.trainer.model):
            return self.trainer.forward(batch, wants)


def prepare(model: Transformer, adapter: LoRA | DoRA, ctx: Context, only: Sequence[str] = ()) -> None:
    """Attaches a stage's adapters, drawn from its seed; an alarm where a folder cannot hold them. UsageError together with `only`."""
    if only:
        raise UsageError(f"only = {list(only)!r} beside `adapter`, which freezes all but itself\nway out: adapter.targets, adapter.skip")
    attach(model, adapter, ctx.seed_of("adapter"))
    if lost := unsaved(model):
        ctx.events.alarm("these adapters will be in the merged weights only, no folder can hold them", matrices=len(lost), first=lost[0])


def as_reference(model: Transformer) -> AbstractContextManager[None]:
    """Within it, a model computes as what it started from: as its base, where it has adapters; else nothing changes."""
    return nullcontext() if adapted(model) is None else without(model)
