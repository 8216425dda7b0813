"""Keep: right answers among sampled traces, as demonstrations for fine-tuning (rejection sampling, save points)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, ClassVar

from pydantic import Field

from upslope.config import Input, UsageError, Wants
from upslope.machine.context import Context
from upslope.machine.stage import Stage

if TYPE_CHECKING:
    from upslope.chat.artifacts import Chats


class Keep(Stage):
    """Of each prompt the first `per_prompt` different answers whose task score is at least `at_least`."""

    kind: ClassVar[str] = "keep"
    makes: ClassVar[str] = "Chats"
    code: ClassVar[tuple[str, ...]] = ("upslope.rl", "upslope.chat")

    traces: Annotated[tuple[Input, ...], Wants("Traces"), Field(min_length=1)]
    per_prompt: int = Field(default=2, ge=1)
    at_least: float = 1.0

    def run(self, ctx: Context) -> Chats:
        """Writes the keepers, in the order of the traces."""
        from upslope.chat.artifacts import Chats
        from upslope.rl.artifacts import Traces
        from upslope.rl.select import keepers

        chats, seen = [], 0
        for n, ref in enumerate(self.traces):
            traces = ctx.open(ref, Traces).read()
            seen += len(traces)
            chats += [c._replace(id=f"{n}.{c.id}") for c in keepers(traces, self.per_prompt, self.at_least)]
        if not chats:
            raise UsageError(f"none of {seen} traces has a task score of {self.at_least:g} or more: nothing to keep")
        prompts = len({str(c.meta["parents"]) for c in chats})
        ctx.fact(traces=seen, kept=len(chats), prompts=prompts)
        ctx.say(f"kept {len(chats)} of {seen} answers, for {prompts} prompts")
        return Chats.write(ctx.out, chats)
