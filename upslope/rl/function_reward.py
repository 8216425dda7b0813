"""A plain function `score(task, answer)` as a reward, in a process that can be killed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

from pydantic import Field

import upslope
from upslope.rl.protocol import TOTAL, Grader, Opener, Reward, Score, Trace
from upslope.sandbox.box import Limits, Outcome, Worker


class FunctionReward(Reward):
    """Base of the classes that `Reward.adapt` makes; members set `kind`, `source` and `function`.

    seconds: deadline of one call; a call over it is killed and gives an invalid score. memory: bytes.
    """

    source: ClassVar[str] = ""
    function: ClassVar[str] = ""

    seconds: float = Field(default=2.0, gt=0)
    memory: int = Field(default=1 << 30, gt=0)

    def prepare(self, ctx: Opener) -> Grader:
        """A grader with a worker process of its own."""
        return FunctionGrader(self._where(), self.function, Limits(seconds=self.seconds, memory=self.memory))

    def _where(self) -> tuple[str, tuple[Path, ...]]:
        """(file or module name, folders to import from); a module inside a package is imported by its name."""
        module = type(self).__module__
        if type(self).kind.rpartition(":")[0].endswith(".py") or "." not in module:
            return self.source, ()
        return module, (Path(self.source).resolve().parents[module.count(".")],)


class FunctionGrader:
    """Calls the function for each trace. Exceptions, deadlines, crashes and non-numbers are invalid scores, never 0."""

    def __init__(self, where: tuple[str, tuple[Path, ...]], function: str, limits: Limits) -> None:
        source, path = where
        package = Path(upslope.__file__).parent
        self._worker = Worker(
            source=source, function=function, limits=limits, path=path, packages=(package,), require=frozenset({"process"})
        )

    def score(self, group: Sequence[Trace]) -> list[Mapping[str, Score]]:
        """Scores of one group."""
        return [{TOTAL: as_score(self._worker.call(task_of(t), t.reply.content))} for t in group]

    def score_all(self, groups: Sequence[Sequence[Trace]]) -> list[list[Mapping[str, Score]]]:
        """Scores of many groups."""
        return [self.score(g) for g in groups]

    def close(self) -> None:
        """Ends the worker process."""
        self._worker.close()


def task_of(trace: Trace) -> dict[str, Any]:
    """The task of a trace as plain JSON: id, family, level, truth, messages."""
    facts = trace.facts if isinstance(trace.facts, dict) else {}
    return {"id": trace.task, **facts, "messages": [m.to_json() for m in trace.prompt]}


def as_score(outcome: Outcome) -> Score:
    """The score that a call's outcome stands for. A Score of the function arrives as an object with `value`."""
    if not outcome.ok:
        return Score(0.0, False, f"{outcome.how}: {outcome.error}")
    value = outcome.value
    if isinstance(value, dict) and "value" in value:
        said = Score.of(value["value"], str(value.get("evidence", "")))
        return said if value.get("valid", True) is True else said._replace(valid=False)
    return Score.of(value)
