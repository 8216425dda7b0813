"""merge: a weighted average of checkpoints of one architecture → `Checkpoint`."""

from __future__ import annotations

import math
from typing import Annotated, ClassVar, Self

from pydantic import Field, model_validator

from upslope.config import Input, Neutral, UsageError, Wants, dump
from upslope.machine.context import Context
from upslope.machine.stage import Artifact, Stage
from upslope.optim.schedule import Shape


class Merge(Stage):
    """θ = Σ_i w_i θ_i / Σ_i w_i, in float64, tensor by tensor.

    weights: one per input; empty = equal. They may be negative (task arithmetic), their sum must be positive. decay: weights that make
    checkpoints at equal distances on a trunk of constant learning rate, oldest first, an average that stands in for a decay of this shape.
    Sources: model soups, Wortsman et al. 2022, arXiv 2203.05482; task arithmetic, arXiv 2212.04089; decay by merging, arXiv 2507.17634.
    """

    kind: ClassVar[str] = "merge"
    makes: ClassVar[str] = "Checkpoint"
    code: ClassVar[tuple[str, ...]] = ("upslope.model",)

    inputs: Annotated[tuple[Input, ...], Wants("Checkpoint"), Field(min_length=1)]
    weights: tuple[float, ...] = ()
    decay: Annotated[Shape | None, Neutral(None)] = None

    @model_validator(mode="after")
    def _one_rule(self) -> Self:
        if self.weights and self.decay is not None:
            raise ValueError("weights and decay both say how much each input counts\nway out: one of them")
        return self

    def run(self, ctx: Context) -> Artifact:
        """UsageError where the checkpoints differ in shape or tokenizer, or the weights do not fit."""
        import torch

        from upslope.model.checkpoint import Checkpoint
        from upslope.optim.averaging import decay_weights

        equal = (1.0,) * len(self.inputs)
        shares = self.weights or (equal if self.decay is None else tuple(decay_weights(len(self.inputs), self.decay)))
        if len(shares) != len(self.inputs):
            raise UsageError(f"weights: {len(shares)} numbers for {len(self.inputs)} inputs\nway out: one per input, or none at all")
        if (total := math.fsum(shares)) <= 0:
            raise UsageError(f"weights: their sum is {total:g}, and must be > 0")
        checkpoints = [ctx.open(ref, Checkpoint) for ref in self.inputs]
        first, name = checkpoints[0], self.inputs[0].stage
        shape, tokenizer = dump(first.config()) | {"init": None}, first.tokenizer()
        sums: dict[str, torch.Tensor] = {}
        for checkpoint, ref, share in zip(checkpoints, self.inputs, shares):
            ctx.check_stop()
            if differs := [k for k, v in dump(checkpoint.config()).items() if k != "init" and v != shape[k]]:
                raise UsageError(f"{ref.stage!r} and {name!r} differ in {', '.join(differs)}\nway out: merge models of one config")
            if checkpoint.tokenizer().digest != tokenizer.digest:
                raise UsageError(f"{ref.stage!r} and {name!r} have different tokenizers: their token ids mean different things")
            for key, tensor in checkpoint.model().state_dict().items():
                part = tensor.double() * (share / total)
                sums[key] = sums[key] + part if key in sums else part
        model = first.model()
        model.load_state_dict({key: tensor.float() for key, tensor in sums.items()})
        ctx.fact(weights={ref.stage: share / total for ref, share in zip(self.inputs, shares)})
        ctx.say("average of " + ", ".join(f"{ref.stage} {share / total:.0%}" for ref, share in zip(self.inputs, shares)))
        return Checkpoint.write(ctx.out, model, tokenizer)
