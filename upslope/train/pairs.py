"""Preference pairs, rendered once: batches of some of them, and what a model says about each side."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from upslope.chat.artifacts import Pairs
from upslope.chat.render import Renderer
from upslope.config import Input, UsageError
from upslope.machine.context import Context
from upslope.train.batch import Batch
from upslope.train.build import Rendered, of_pairs, render_pair
from upslope.train.losses import per_segment
from upslope.train.trainer import Trainer

Sides = tuple[Rendered, Rendered]
GROUP = 64  # pairs of one evaluation pass


@dataclass(frozen=True)
class PairData:
    """Pairs as (chosen, rejected) tokens, by split."""

    train: list[Sides]
    heldout: list[Sides]

    @property
    def tokens(self) -> int:
        """Tokens of all training pairs, both sides."""
        return sum(len(w) + len(l) for w, l in self.train)

    def batch(self, chosen: Sequence[int], ref: Tensor | None = None) -> Batch:
        """The batch of some training pairs. ref: (number of training pairs, 2) log-probs under the reference."""
        return of_pairs([self.train[i] for i in chosen], list(chosen), None if ref is None else ref[list(chosen)])

    def heldout_sizes(self) -> Tensor:
        """(H, 2) number of reply tokens of the held-out pairs."""
        return torch.tensor([[float(w.weight.sum()), float(l.weight.sum())] for w, l in self.heldout]).reshape(-1, 2)


def open_pairs(ctx: Context, refs: Sequence[Input], renderer: Renderer, context: int) -> PairData:
    """All pairs of some inputs, rendered; pairs with a side longer than the context are left out, counted and alarmed."""
    split: dict[str, list[Sides]] = {"train": [], "heldout": []}
    total, long = 0, 0
    for ref in refs:
        for pair in ctx.open(ref, Pairs):
            sides = render_pair(renderer, pair)
            total += 1
            if max(len(s) for s in sides) > context:
                long += 1
            else:
                split[pair.split].append(sides)
    if long:
        ctx.events.alarm("pairs longer than the context are left out", left_out=long, of=total, context=context)
    ctx.fact(left_out_too_long=long)
    if not split["train"]:
        raise UsageError(f"no pair to train on: {total} pairs, {long} too long, {len(split['heldout'])} held out")
    return PairData(split["train"], split["heldout"])


def reply_logprobs(trainer: Trainer, pairs: Sequence[Sides]) -> Tensor:
    """(P, 2) log-probability of each side's reply, float32."""
    found = []
    for start in range(0, len(pairs), GROUP):
        b = of_pairs(pairs[start : start + GROUP], range(start, min(start + GROUP, len(pairs))))
        out = trainer.forward(b, frozenset({"logprob"}))
        assert out.logprob is not None
        assert b.imitate is not None
        found.append(per_segment(b.imitate * out.logprob, b).view(-1, 2))
    return torch.cat(found) if found else torch.zeros(0, 2)


def scores(trainer: Trainer, pairs: Sequence[Sides]) -> Tensor:
    """(P, 2) scalar scores of each side."""
    found = []
    for start in range(0, len(pairs), GROUP):
        b = of_pairs(pairs[start : start + GROUP], range(start, min(start + GROUP, len(pairs))))
        out = trainer.forward(b, frozenset({"score"}))
        assert out.score is not None
        found.append(out.score.view(-1, 2))
    return torch.cat(found) if found else torch.zeros(0, 2)
