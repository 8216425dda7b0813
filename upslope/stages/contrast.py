"""Contrast: preferences from a model's own answers, one right and one wrong to the same prompt."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Annotated, ClassVar

from pydantic import Field

from upslope.config import Input, UsageError, Wants
from upslope.machine.context import Context
from upslope.machine.stage import Stage

if TYPE_CHECKING:
    from upslope.chat.artifacts import Pairs


class Contrast(Stage):
    """Up to `per_prompt` pairs a prompt; right = task score at least `at_least`. heldout: share of problems set aside."""

    kind: ClassVar[str] = "contrast"
    makes: ClassVar[str] = "Pairs"
    code: ClassVar[tuple[str, ...]] = ("upslope.rl", "upslope.chat")

    traces: Annotated[tuple[Input, ...], Wants("Traces"), Field(min_length=1)]
    per_prompt: int = Field(default=1, ge=1)
    at_least: float = 1.0
    heldout: float = Field(default=0.2, ge=0, lt=1)

    def run(self, ctx: Context) -> Pairs:
        """Writes the pairs, in the order of the traces."""
        from upslope.chat.artifacts import Pairs
        from upslope.rl.artifacts import Traces
        from upslope.rl.select import contrasts

        pairs = []
        for n, ref in enumerate(self.traces):
            found = contrasts(ctx.open(ref, Traces).read(), self.per_prompt, self.at_least, self.heldout)
            pairs += [p._replace(id=f"{n}.{p.id}") for p in found]
        if not pairs:
            raise UsageError("no prompt has both a right and a wrong answer: no pair can be made\nway out: more samples a prompt")
        splits = Counter(p.split for p in pairs)
        ctx.fact(pairs=len(pairs), train=splits["train"], heldout=splits["heldout"])
        ctx.say(f"{len(pairs)} pairs of own right and wrong answers ({splits['heldout']} held out)")
        return Pairs.write(ctx.out, pairs)
