"""A toy family of stages, outside the package, for tests of the machine."""

from __future__ import annotations

import time
from typing import Annotated, ClassVar

from upslope.config import Config, Exec, FrozenDict, Input, Neutral
from upslope.machine.context import Context
from upslope.machine.files import write_json
from upslope.machine.stage import Artifact, Paused, Stage


class Inner(Config):
    """A nested config."""

    a: int = 1
    b: float = 0.5


class Number(Stage):
    """Writes a number after some steps that survive interruption."""

    makes: ClassVar[str] = "Artifact"
    seeded: ClassVar[bool] = True

    value: int = 1
    parents: tuple[Input, ...] = ()
    inner: Inner = Inner()
    table: FrozenDict[str, int] = FrozenDict({"x": 1})
    steps: int = 3
    wait: Annotated[float, Exec()] = 0.0
    younger: Annotated[float, Neutral(0.0)] = 0.0

    def run(self, ctx: Context) -> Artifact:
        """Adds up its parents' numbers, its own, and a random one per step."""
        state = ctx.work / "state.json"
        done, total = (int(x) for x in state.read_text().split()) if state.exists() else (0, self.value)
        for parent in self.parents:
            total += int((ctx.open(parent, Artifact).path / "n.txt").read_text()) if done == 0 else 0
        for step in range(done, self.steps):
            total += int(ctx.rng("noise", step).integers(0, 100))
            temporary = ctx.work / "next"
            temporary.write_text(f"{step + 1} {total}")
            temporary.replace(state)
            ctx.events.progress(step + 1, self.steps, "steps")
            time.sleep(self.wait)
            if ctx.stopping:
                raise Paused
        (ctx.out / "n.txt").write_text(str(total))
        write_json(ctx.out / "meta.json", {"value": self.value})
        ctx.say(f"number {total}")
        ctx.fact(total=total)
        return Artifact.load(ctx.out)
