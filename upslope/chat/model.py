"""What a chat model is: messages in, message out. Synthesis, judges, attackers, targets and graders use only this.

Engines and endpoints that are chat models live in `generate.chat`; `Scripted` is one for tests and baselines.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from enum import StrEnum
from typing import NamedTuple, Protocol

from upslope.chat.messages import Message, Tool
from upslope.config import UsageError


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
