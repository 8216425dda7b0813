"""One optimizer step: split, survey, backward, clip, refuse what is not finite, update, balance. No loop, no data, no schedule."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from upslope.config import UsageError
from upslope.machine.events import Events
from upslope.model.aux import Aux, Want
from upslope.model.heads import ScalarHead
from upslope.model.weights import Live, live
from upslope.optim.build import build
from upslope.optim.config import AdamW, Muon
from upslope.optim.heads import heads_of
from upslope.optim.shards import local
from upslope.precision.autocast import autocast
from upslope.precision.config import Numerics
from upslope.precision.scaling import LossScale
from upslope.train.auxiliary import Auxiliary, AuxiliaryStep
from upslope.train.batch import Batch, Totals
from upslope.train.head import read
from upslope.train.hooks import Hook
from upslope.train.protocol import Loss, Out, StepReport, Sums, Surveying, Wants
from upslope.train.ranks import Alone, Part, Ranks


class Diverged(RuntimeError):
    """Too many steps in a row were not finite; the weights are those of the last good step."""


Judge = Callable[[float, float], str]
"""Whether a step with this loss and gradient norm is made: "" to make it, else why not."""


def under(state: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """The tensors whose names begin so, without that beginning."""
    return {n.removeprefix(prefix): t for n, t in state.items() if n.startswith(prefix)}


class Trainer:
    """A model and its optimizer.

    model: `model(ids (T,), seg (T,), pos (T,))` → hidden states (T, d), and `model.logits((n, d))` → (n, V). Where its config has experts,
    indexers or multi-token prediction, their side losses join the objective, see `train.auxiliary`.
    optim: optimizer config. numerics: of forward and backward; fp16 scales the loss, and a step that overflows is made good by a smaller
    scale. clip: largest global gradient norm, or None.
    micro_tokens: most tokens of one forward and backward (0 = the whole step); chunk: most rows of logits at a time.
    Neither changes a result beyond rounding. scalar: a head (n, d) → (n,) trained along: reward models, critics.
    patience: steps in a row that may be refused as not finite before `Diverged`. events: where alarms go.
    ranks: who else shares the steps. hooks: what happens around them. seed: of stochastic rounding. config: the whole model's description,
    where `model` is a rank's part of it.
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
        ranks: Ranks | None = None,
        hooks: Sequence[Hook] = (),
        seed: int = 0,
        config: Any = None,
    ) -> None:
        self.config: Any = config if config is not None else getattr(model, "config", None)
        self.model, self.scalar, self.numerics, self.clip = model, scalar, numerics, clip
        self.micro_tokens, self.chunk, self.patience, self.events = micro_tokens, chunk, patience, events or Events()
        self.ranks, self.hooks = ranks or Alone(), tuple(hooks)
        self.optimizer = build(self.named_parameters().items(), optim, heads_of(model), seed, self.ranks.shards)
        self.trained = {n: p for n, p in self.named_parameters().items() if p.requires_grad}
        self.auxiliary = Auxiliary.of(model)
        self.scale = LossScale() if numerics == "fp16" else None
        self.steps = 0
        self.refused = 0
        self.in_a_row = 0
        for hook in self.hooks:
            hook.begin(self)

    def named_parameters(self) -> dict[str, Tensor]:
        """Trained and untrained parameters by name; those of the scalar head start with `scalar_head.`."""
        found = dict(self.model.named_parameters())
        if self.scalar is not None:
            found |= {f"scalar_head.{n}": p for n, p in self.scalar.named_parameters()}
        return found

    def step(self, batch: Batch, loss: Loss, lr: float, judge: Judge | None = None) -> StepReport:
        """One update at learning rate `lr`; a step that is not finite, or that `judge` turns down, changes no weight and says so.

        Raises Diverged after `patience` refusals in a row, UsageError for a batch that the loss cannot read.
        """
        total = batch.totals()
        for hook in self.hooks:
            hook.before(self.model, self.steps)
        parts = self.ranks.parts(batch, self.micro_tokens)
        side = None if self.auxiliary is None else self.auxiliary.step(batch, [at for _, at in parts], self.ranks)
        sums = self._surveyed(parts, loss, side)
        self.optimizer.clear()
        value, stats, seen = self._accumulate(parts, loss, total, sums, side)
        self.ranks.reduce()
        said = self.ranks.add({"": torch.tensor(value, dtype=torch.float64), **stats})
        value = float(said.pop(""))
        norm = self._norm()
        skipped = self._turned_down(value, norm, judge)
        self.steps += 1
        if not skipped:
            self._clip(norm)
            self.optimizer.step(lr)
            if side is not None:
                side.settle()
        self.optimizer.clear()
        numbers = {k: float(v) for k, v in said.items()}
        if side is not None:
            numbers |= {k: float(v) for k, v in side.violation().items()}
        for hook in self.hooks:
            numbers |= hook.after(self, seen, not skipped)
        return StepReport(value, norm, lr, skipped, total, numbers)

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
            | {f"hook.{i}.{n}": t for i, hook in enumerate(self.hooks) for n, t in hook.state().items()}
            | ({} if self.scale is None else {f"scale.{n}": t for n, t in self.scale.state().items()})
            | {f"trainer.{n}": torch.tensor(v, dtype=torch.int64) for n, v in counts.items()}
        )

    def load(self, state: Mapping[str, Tensor]) -> None:
        """Restores `state()` to the bit."""
        self.model.load_state_dict(under(state, "model."))
        if self.scalar is not None:
            self.scalar.load_state_dict(under(state, "scalar."))
        self.optimizer.load(under(state, "optim."))
        for i, hook in enumerate(self.hooks):
            hook.load(under(state, f"hook.{i}."))
        if self.scale is not None:
            self.scale.load(under(state, "scale."))
        counts = under(state, "trainer.")
        self.steps, self.refused, self.in_a_row = (int(counts[n]) for n in ("steps", "refused", "in_a_row"))

    def finish(self) -> None:
        """After the last step: the model as it is to be kept, see `Hook.finish`."""
        for hook in reversed(self.hooks):
            hook.finish(self.model)

    @torch.no_grad()
    def _surveyed(self, parts: list[Part], loss: Loss, side: AuxiliaryStep | None) -> Sums | None:
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
        if side is not None and counting:
            side.surveyed_all()
        return None if sums is None else Sums(self.ranks.add(sums))

    def _accumulate(
        self, parts: list[Part], loss: Loss, total: Totals, sums: Sums | None, side: AuxiliaryStep | None
    ) -> tuple[float, Sums, Aux]:
        """Forward and backward of all parts: (loss, statistics, side outputs that the hooks want)."""
        wanted = frozenset[Want]().union(*(hook.wants for hook in self.hooks))
        value, stats, seen = 0.0, Sums(), Aux(wanted)
        for i, (part, at) in enumerate(parts):
            self.ranks.last(i == len(parts) - 1)
            wants = wanted if side is None else wanted | side.wants
            aux = Aux(wants) if wants else None
            piece, said = loss(self._out(part, loss.wants, aux), part, total, sums)
            if side is not None and aux is not None:
                with autocast(self.numerics, part.ids.device.type):
                    extra, more = side(aux, part, at, self.model.logits, self.chunk)
                piece, said = piece + extra, said.plus(more)
            (piece if self.scale is None else self.scale.scale(piece)).backward()
            value += float(piece.detach())
            stats = stats.plus(said)
            if wanted and aux is not None:
                for layer, largest in aux.max_logit.items():
                    seen.saw_logit(layer, largest.detach())
        return value, stats, seen

    def _out(self, part: Batch, wants: Wants, aux: Aux | None = None) -> Out:
        """One forward pass."""
        if part.replay is not None and part.replay.routes is not None:
            raise UsageError("the batch replays expert routes, which no model here can\nway out: Replay(routes=None)")
        with autocast(self.numerics, part.ids.device.type):
            side = {} if aux is None else {"aux": aux}
            hidden = self.model(part.ids, part.seg, part.pos, **side)
            return read(hidden, part, wants, self.model.logits, self.scalar, self.chunk)

    def _norm(self) -> float:
        """The global gradient norm before clipping, of unscaled gradients."""
        grads = {n: p.grad for n, p in self.trained.items() if p.grad is not None}
        if not grads:
            raise UsageError("the loss reached no parameter: nothing to train")
        if self.scale is not None:
            self.scale.unscale([local(g) for g in grads.values()])
        return self.ranks.norm(grads)

    def _clip(self, norm: float) -> None:
        """Scales the gradients where their norm is above `clip`."""
        if self.clip is not None and norm > self.clip:
            torch._foreach_mul_([local(p.grad) for p in self.trained.values() if p.grad is not None], self.clip / norm)

    def _turned_down(self, value: float, norm: float, judge: Judge | None) -> str:
        """Why the step is not made, or ""; counts refusals and raises the alarm."""
        why = judge(value, norm) if judge is not None else ""
        finite = math.isfinite(value) and math.isfinite(norm)
        if self.scale is not None:
            before = self.scale.value
            self.scale.update(finite)
            if not finite and math.isfinite(value) and before > 1:
                self.events.alarm(
                    "fp16 gradients overflowed; the loss scale is lowered", step=self.steps, before=before, after=self.scale.value
                )
                return f"overflow at loss scale {before:g}"
        if finite:
            self.in_a_row = 0
            return why
        why = f"loss {value:g}, gradient norm {norm:g}"
        self.refused += 1
        self.in_a_row += 1
        self.events.alarm("step refused: not finite", step=self.steps, why=why, in_a_row=self.in_a_row)
        if self.in_a_row >= self.patience:
            raise Diverged(
                f"{self.in_a_row} steps in a row were not finite ({why}); the weights are those of the last good step\n"
                "way out: a lower learning rate, a longer warm-up, or numerics = fp32"
            )
        return why
