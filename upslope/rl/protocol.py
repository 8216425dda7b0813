"""The types where rollouts, rewards and objectives meet: turns, traces, scores, and two open families.

An environment speaks messages and never sees a token; the rollout loop owns tokens and never re-tokenises what was
sampled. A trace is a tree of nodes; a reward scores a whole *group* of traces (siblings of one prompt), because length
and ranking rewards need the siblings. A score that could not be computed is `valid=False`: masked, never 0.
"""

from __future__ import annotations

import inspect
import math
import types
from collections.abc import Callable, Mapping, Sequence
from enum import StrEnum
from typing import TYPE_CHECKING, Any, ClassVar, Literal, NamedTuple, Protocol, Self, cast

from upslope.config import Input, Json, Open, UsageError

if TYPE_CHECKING:
    from upslope.chat.messages import Message, Tokens
    from upslope.generate.engine import Completion
    from upslope.tasks.task import Task

TOTAL = "reward"
"""Name, in the scores of a trace, of the one number that the objective reads; all other names are parts of it."""
TASK = "task"
"""Name of the part that says how well the task itself was done, where the total also holds format or length terms."""


class Done(StrEnum):
    """Why a trace ended."""

    ANSWER = "answer"  # the environment had what it wanted
    LENGTH = "length"  # the model ran out of new tokens: truncated
    CONTEXT = "context"  # the sequence ran out of context: truncated
    LIMIT = "limit"  # the environment ran out of turns
    ERROR = "error"  # infrastructure failed: the trace says nothing about the model

    @property
    def truncated(self) -> bool:
        """Whether the model was cut off before it finished."""
        return self in (Done.LENGTH, Done.CONTEXT)


class Turn(NamedTuple):
    """What an environment answers: new messages for the model, or `done`; facts are for the rewards only."""

    messages: tuple[Message, ...]
    done: Done | None = None
    facts: Json = None


class Node(NamedTuple):
    """One message of a trace.

    parent: index of the node before it, -1 for a root. edge: how it continues the parent. tokens: the ids that this
    node appended (those of a prompt stand at its last message). sampled: the engine's completion, where the model wrote it.
    """

    parent: int
    edge: Literal["turn", "compact", "spawn"]
    message: Message
    tokens: Tokens
    sampled: Completion | None = None


class Score(NamedTuple):
    """A number with its validity. valid=False means "could not be computed": the trace is masked, it is never worth 0."""

    value: float
    valid: bool = True
    evidence: str = ""

    @classmethod
    def of(cls, value: Any, evidence: str = "") -> Score:
        """A score of a user's return value: a Score, a bool or a number; anything else or non-finite is invalid."""
        if isinstance(value, Score):
            return value if math.isfinite(value.value) else cls(0.0, False, f"not finite: {value.value}")
        if isinstance(value, bool | int | float):
            number = float(value)
            return cls(number, True, evidence) if math.isfinite(number) else cls(0.0, False, f"not finite: {number}")
        return cls(0.0, False, f"not a number: {type(value).__name__}")


class Trace(NamedTuple):
    """One attempt at a task. group: siblings share it. facts: what the environment tells the rewards
    (`family`, `level`, `truth`, `task` fields). scores: name → Score, with the sum that is optimised under `TOTAL`.
    """

    id: str
    group: str
    task: str
    nodes: tuple[Node, ...]
    done: Done
    facts: Json = None
    scores: Mapping[str, Score] = {}

    @property
    def prompt(self) -> tuple[Message, ...]:
        """The messages before the first sampled one."""
        first = next((i for i, n in enumerate(self.nodes) if n.sampled is not None), len(self.nodes))
        return tuple(n.message for n in self.nodes[:first])

    @property
    def reply(self) -> Message:
        """The last message that the model wrote."""
        return next(n.message for n in reversed(self.nodes) if n.sampled is not None)

    @property
    def length(self) -> int:
        """Number of sampled tokens, the stop token included."""
        return sum(len(n.sampled.ids) for n in self.nodes if n.sampled is not None)

    @property
    def total(self) -> Score:
        """The score that is optimised; invalid where nobody scored the trace."""
        return self.scores.get(TOTAL, Score(0.0, False, "not scored"))


class Opener(Protocol):
    """The part of a Context that a reward needs: opening artifacts, and seeded randomness."""

    def open(self, ref: Input, kind: type[Any]) -> Any: ...

    def seed_of(self, stream: str, *index: int | str) -> int: ...


class Grader(Protocol):
    """A reward made ready: models loaded, workers started."""

    def score(self, group: Sequence[Trace]) -> list[Mapping[str, Score]]: ...

    def score_all(self, groups: Sequence[Sequence[Trace]]) -> list[list[Mapping[str, Score]]]: ...

    def close(self) -> None: ...


class Reward(Open):
    """Open family of rewards; `kind` also names a class, or a plain function `score(task, answer)`, by import path.

    A reward returns, for each trace of a group, its parts by name and their sum under `TOTAL`. A member overrides
    `score`; one that needs an artifact or a process overrides `prepare`, which gives the object that scores.
    """

    home: ClassVar[str | tuple[str, ...]] = ("upslope.rl.rewards", "upslope.align")

    def prepare(self, ctx: Opener) -> Grader:
        """The grader of this reward; called once, before the first group."""
        return self

    def score(self, group: Sequence[Trace]) -> list[Mapping[str, Score]]:
        """Scores of the traces of one group, in order."""
        raise NotImplementedError(f"{type(self).__name__} has no score()")

    def score_all(self, groups: Sequence[Sequence[Trace]]) -> list[list[Mapping[str, Score]]]:
        """Scores of many groups, for graders that batch."""
        return [self.score(group) for group in groups]

    def close(self) -> None:
        """Frees what `prepare` took."""

    @classmethod
    def adapt(cls, kind: str, function: Callable[..., Any]) -> type[Reward]:
        """A Reward class that calls a plain function `score(task, answer) -> float | Score` in a killable process.

        task: the fields of the task as a dict with attribute access (`task.truth`, `task["family"]`); answer: the text
        after the thinking block. Exceptions, deadlines and non-numbers give `valid=False`, never 0.
        """
        from upslope.rl.function_reward import FunctionReward

        file = inspect.getsourcefile(function) if inspect.isfunction(function) else None
        if file is None:
            raise UsageError(f"kind = {kind!r}: {function!r} is not a function in a file\nway out: def score(task, answer) -> float")
        try:
            inspect.signature(function).bind({}, "")
        except TypeError:
            raise UsageError(
                f"kind = {kind!r}: {function.__name__}{inspect.signature(function)} cannot be called as score(task, answer)\n"
                "way out: def score(task, answer) -> float"
            ) from None
        fields = {
            "__module__": function.__module__,
            "__qualname__": function.__qualname__,
            "__doc__": function.__doc__,
            "kind": kind,
            "source": file,
            "function": function.__name__,
        }
        return cast(type[Reward], types.new_class(function.__name__, (FunctionReward,), exec_body=lambda space: space.update(fields)))


class Episode(Protocol):
    """One run of an environment: reset once, step until `done`, close always."""

    def reset(self, task: Task, seed: int) -> Turn: ...

    def step(self, message: Message) -> Turn: ...

    def close(self) -> None: ...


class Environment(Open):
    """Open family of environments: messages in, messages out, never token ids; single-turn ones are done at once."""

    home: ClassVar[str] = "upslope.rl.environments"

    def episode(self) -> Episode:
        """A fresh episode; episodes of one environment share no state."""
        raise NotImplementedError(f"{type(self).__name__} has no episode()")

    def check(self) -> Self:
        """Raises UsageError where this machine cannot run the environment."""
        return self
