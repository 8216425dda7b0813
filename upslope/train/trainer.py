"""One optimizer step: split, survey, backward, clip, refuse what is not finite, update, balance. No loop, no data, no schedule."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from upslope.config import UsageError
from upslope.machine.events import Events
from upslope.model.aux import Aux
from upslope.model.heads import ScalarHead
from upslope.model.weights import Live, live
from upslope.optim.build import build
from upslope.optim.config import AdamW, Muon
from upslope.optim.heads import heads_of
from upslope.precision.autocast import autocast
from upslope.precision.config import Numerics
from upslope.train.auxiliary import Auxiliary, AuxiliaryStep
from upslope.train.batch import Batch
from upslope.train.head import read
from upslope.train.protocol import Loss, Out, StepReport, Sums, Surveying, Wants


class Diverged(RuntimeError):
    """Too many steps in a row were not finite; the weights are those of the last good step."""


class Trainer:
    """A model and its optimizer.

    model: `model(ids (T,), seg (T,), pos (T,))` → hidden states (T, d), and `model.logits((n, d))` → (n, V). Where its config has experts,
    indexers or multi-token prediction, their side losses join the objective, see `train.auxiliary`.
    optim: optimizer config. numerics: of forward and backward. clip: largest global gradient norm, or None.
    micro_tokens: most tokens of one forward and backward (0 = the whole step); chunk: most rows of logits at a time.
    Neither changes a result beyond rounding. scalar: a head (n, d) → (n,) trained along: reward models, critics.
    patience: steps in a row that may be refused as not finite before `Diverged`. events: where alarms go.
    """

    def __init__(
        self,
        model: Any,
        optim: AdamW | Muon,
        *,
        numerics: Numerics = "fp32",
        clip: float | None = 1.0,
        micro_tokens: int = 0,
        chunk: int = 4096,
        scalar: ScalarHead | None = None,
        patience: int = 10,
        events: Events | None = None,
    ) -> None:
        self.model, self.scalar, self.numerics, self.clip = model, scalar, numerics, clip
        self.micro_tokens, self.chunk, self.patience, self.events = micro_tokens, chunk, patience, events or Events()
        self.optimizer = build(self.named_parameters().items(), optim, heads_of(model))
        self.auxiliary = Auxiliary.of(model)
        self.steps = 0
        self.refused = 0
        self.in_a_row = 0

    def named_parameters(self) -> dict[str, Tensor]:
        """Trained and untrained parameters by name; those of the scalar head start with `scalar_head.`."""
        found = dict(self.model.named_parameters())
        if self.scalar is not None:
            found |= {f"scalar_head.{n}": p for n, p in self.scalar.named_parameters()}
        return found

    def step(self, batch: Batch, loss: Loss, lr: float) -> StepReport:
        """One update at learning rate `lr`; a step that is not finite changes nothing and says so.

        Raises Diverged after `patience` refusals in a row, UsageError for a batch that the loss cannot read.
        """
        total = batch.totals()
        parts = self._parts(batch)
        side = None if self.auxiliary is None else self.auxiliary.step(batch, [at for _, at in parts])
        sums = self._surveyed(parts, loss, side)
        self.optimizer.clear()
        value, stats = 0.0, Sums()
        for part, at in parts:
            aux = None if side is None else Aux(side.wants)
            piece, said = loss(self._out(part, loss.wants, aux), part, total, sums)
            if side is not None and aux is not None:
                with autocast(self.numerics, part.ids.device.type):
                    extra, more = side(aux, part, at, self.model.logits, self.chunk)
                piece, said = piece + extra, said.plus(more)
            piece.backward()
            value += float(piece.detach())
            stats = stats.plus(said)
        norm = self._clipped_norm()
        self.steps += 1
        why = "" if math.isfinite(value) and math.isfinite(norm) else f"loss {value:g}, gradient norm {norm:g}"
        if why:
            self._refuse(why)
        else:
            self.in_a_row = 0
            self.optimizer.step(lr)
            if side is not None:
                side.settle()
        self.optimizer.clear()
        if side is not None:
            stats = stats.plus(side.violation())
        return StepReport(value, norm, lr, why, total, {k: float(v) for k, v in stats.items()})

    @torch.no_grad()
    def forward(self, batch: Batch, wants: Wants) -> Out:
        """`Out` of a batch in the numerics of `step`, without gradient: pi_old, reference log-probs, critic, scores."""
        outs = [self._out(part, wants) for part in replace(batch, pairs=None).split(self.micro_tokens)]
        return Out(**{n: torch.cat([getattr(o, n) for o in outs]) for n in Out._fields if getattr(outs[0], n) is not None})

    def weights(self) -> Live:
        """A handle on the current weights, for engines."""
        return live(self.model)

    def state(self) -> dict[str, Tensor]:
        """Everything that the next step depends on, as tensors by name (not copies)."""
        counts = {"steps": self.steps, "refused": self.refused, "in_a_row": self.in_a_row}
        return (
            {f"model.{n}": t for n, t in self.model.state_dict().items()}
            | ({} if self.scalar is None else {f"scalar.{n}": t for n, t in self.scalar.state_dict().items()})
            | {f"optim.{n}": t for n, t in self.optimizer.state().items()}
            | {f"trainer.{n}": torch.tensor(v, dtype=torch.int64) for n, v in counts.items()}
        )

    def load(self, state: Mapping[str, Tensor]) -> None:
        """Restores `state()` to the bit."""

        def under(prefix: str) -> dict[str, Tensor]:
            return {n.removeprefix(prefix): t for n, t in state.items() if n.startswith(prefix)}

        self.model.load_state_dict(under("model."))
        if self.scalar is not None:
            self.scalar.load_state_dict(under("scalar."))
        self.optimizer.load(under("optim."))
        counts = under("trainer.")
        self.steps, self.refused, self.in_a_row = (int(counts[n]) for n in ("steps", "refused", "in_a_row"))

    def _parts(self, batch: Batch) -> list[tuple[Batch, Tensor]]:
        """Parts for one pass each, with the segments (S_part,) of the batch that each holds."""
        numbered = replace(batch, origin=torch.arange(batch.segments, device=batch.ids.device))
        return [(replace(p, origin=batch.origin[p.origin]), p.origin) for p in numbered.split(self.micro_tokens)]

    @torch.no_grad()
    def _surveyed(self, parts: list[tuple[Batch, Tensor]], loss: Loss, side: AuxiliaryStep | None) -> Sums | None:
        """What the loss and the side losses must know of the whole step, from one pass over its parts if either needs it."""
        sums = Sums() if isinstance(loss, Surveying) else None
        counting = side is not None and side.spans
        for part, at in parts if sums is not None or counting else ():
            aux = Aux(side.wants - {"index"}) if side is not None and counting else None
            out = self._out(part, frozenset() if sums is None else loss.wants, aux)
            if sums is not None and isinstance(loss, Surveying):
                sums = sums.plus(loss.survey(out, part))
            if side is not None and aux is not None:
                side.survey(aux, at)
        return sums

    def _out(self, part: Batch, wants: Wants, aux: Aux | None = None) -> Out:
        """One forward pass."""
        if part.replay is not None and part.replay.routes is not None:
            raise UsageError("the batch replays expert routes, which no model here can\nway out: Replay(routes=None)")
        with autocast(self.numerics, part.ids.device.type):
            side = {} if aux is None else {"aux": aux}
            hidden = self.model(part.ids, part.seg, part.pos, **side)
            return read(hidden, part, wants, self.model.logits, self.scalar, self.chunk)

    def _clipped_norm(self) -> float:
        """The global gradient norm before clipping; scales the gradients where it is above `clip`."""
        grads = [p.grad for p in self.optimizer.parameters if p.grad is not None]
        if not grads:
            raise UsageError("the loss reached no parameter: nothing to train")
        norm = float(torch.stack([n.to(torch.float64) for n in torch._foreach_norm(grads)]).square().sum().sqrt())
        if self.clip is not None and math.isfinite(norm) and norm > self.clip:
            torch._foreach_mul_(grads, self.clip / norm)
        return norm

    def _refuse(self, why: str) -> None:
        """Counts a refused step and raises the alarm."""
        self.refused += 1
        self.in_a_row += 1
        self.events.alarm("step refused: not finite", step=self.steps - 1, why=why, in_a_row=self.in_a_row)
        if self.in_a_row >= self.patience:
            raise Diverged(
                f"{self.in_a_row} steps in a row were not finite ({why}); the weights are those of the last good step\n"
                "way out: a lower learning rate, a longer warm-up, or numerics = fp32"
            )
