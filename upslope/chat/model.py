"""What a chat model is: messages in, message out. Synthesis, judges, attackers, targets and graders use only this.

Engines and endpoints that are chat models live in `generate.chat`; `Scripted` is one for tests and baselines.
"""

from __future__ import annotations

import inspect
import types
from collections.abc import Callable, Sequence
from enum import StrEnum
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple, Protocol, cast

from upslope.chat.messages import Message, Tool
from upslope.config import Open, UsageError

if TYPE_CHECKING:
    from upslope.machine.context import Context


class Stop(StrEnum):
    """Why a completion ended: end of turn or text, a stop token, max_new reached, context full, cancelled."""

    EOS = "eos"
    TOKEN = "token"
    LENGTH = "length"
    CONTEXT = "context"
    ABORTED = "aborted"


class Chat(NamedTuple):
    """One reply wanted. messages: the conversation, ending with another role than the assistant's. seed: of the sampling noise."""

    messages: tuple[Message, ...]
    seed: int = 0
    tools: tuple[Tool, ...] = ()


class Reply(NamedTuple):
    """message: the assistant's. stop: why it ended; ABORTED = there is no reply, `error` says why, and the message is empty.

    tokens: sampled, 0 where unknown.
    """

    message: Message
    stop: Stop
    tokens: int = 0
    error: str = ""


class ChatModel(Protocol):
    """Anything that answers conversations."""

    def chat(self, calls: Sequence[Chat]) -> list[Reply]:
        """Replies in the order of the calls."""
        ...


class Scripted:
    """Replies that are given: a sequence used in order of the calls, over and over, or a function of the call."""

    def __init__(self, replies: Sequence[str] | Callable[[Chat], str]) -> None:
        if not callable(replies) and not replies:
            raise UsageError("Scripted: give at least one reply")
        self._replies, self._used = replies, 0

    def chat(self, calls: Sequence[Chat]) -> list[Reply]:
        """The next replies."""
        return [Reply(Message("assistant", self._next(call)), Stop.EOS) for call in calls]

    def _next(self, call: Chat) -> str:
        if callable(self._replies):
            return self._replies(call)
        self._used += 1
        return self._replies[(self._used - 1) % len(self._replies)]


class Speaker(Open):
    """A chat model as recipes name it: which one, and how its replies are sampled.

    A plain function `reply(chat: Chat) -> str` is one too, by its import path: `speaker = "answers.py:reply"`; its code is identity.
    """

    home: ClassVar[str] = "upslope.generate.speakers"

    def bind(self, ctx: Context) -> Speaker:
        """The speaker with its inputs resolved to content digests, so that its config says everything that it depends on."""
        return self

    def open(self) -> ChatModel:
        """The model, ready to answer."""
        raise NotImplementedError

    @classmethod
    def adapt(cls, kind: str, function: Callable[..., Any]) -> type[Speaker]:
        """A Speaker class that calls a plain function of one `Chat`, which returns the text of the reply."""
        if not inspect.isfunction(function) or len(inspect.signature(function).parameters) != 1:
            raise UsageError(f"kind = {kind!r}: {function!r} cannot be called as reply(chat)\nway out: def reply(chat) -> str")
        fields = {
            "__module__": function.__module__,
            "__qualname__": function.__qualname__,
            "__doc__": function.__doc__,
            "kind": kind,
            "open": lambda self: Scripted(function),
        }
        return cast(type[Speaker], types.new_class(function.__name__, (Speaker,), exec_body=lambda space: space.update(fields)))
