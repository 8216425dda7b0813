"""Environments of this package: messages in, messages out."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from upslope.rl.protocol import Done, Environment, Episode, Turn

if TYPE_CHECKING:
    from upslope.chat.messages import Message
    from upslope.tasks.task import Task


class SingleTurn(Environment):
    """A task with a verifier: one prompt, one answer, done. The rewards get family, level and truth."""

    kind: ClassVar[str] = "single_turn"

    def episode(self) -> Episode:
        """A fresh episode."""
        return _SingleTurn()


class _SingleTurn:
    def reset(self, task: Task, seed: int) -> Turn:
        from upslope.chat.messages import messages_of

        return Turn(messages_of(task.messages), facts={"family": task.family, "level": task.level, "truth": task.truth})

    def step(self, message: Message) -> Turn:
        return Turn((), Done.ANSWER)

    def close(self) -> None:
        return
