"""Messages in a conversation, and the tokens that a renderer makes of them, each with its provenance."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Any, Literal, NamedTuple, Self

import numpy as np
from numpy.typing import NDArray

from upslope.config import Json, UsageError

Role = Literal["system", "developer", "user", "assistant", "tool"]
ROLES: tuple[Role, ...] = ("system", "developer", "user", "assistant", "tool")
"""Role names; the code of a role in `Tokens.role` is its index here."""


class Privilege(IntEnum):
    """Authority of whoever wrote a token: when instructions conflict, the higher one wins.

    Source: Harmony format of gpt-oss: system > developer > user > assistant > tool.
    """

    TOOL = 0
    ASSISTANT = 1
    USER = 2
    DEVELOPER = 3
    SYSTEM = 4


PRIVILEGE: Mapping[str, Privilege] = {role: Privilege[role.upper()] for role in ROLES}


class Tool(NamedTuple):
    """A function that the model may call. parameters: JSON schema of its arguments."""

    name: str
    description: str = ""
    parameters: Json = None

    def to_json(self) -> dict[str, Any]:
        """The OpenAI-style description that chat templates expect."""
        return {"type": "function", "function": {"name": self.name, "description": self.description, "parameters": self.parameters}}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Self:
        """The inverse of `to_json`."""
        inner = data.get("function", data)
        return cls(inner["name"], inner.get("description", ""), inner.get("parameters"))


class ToolCall(NamedTuple):
    """A call that the model asks for. arguments: a JSON object."""

    name: str
    arguments: Json = None


@dataclass(frozen=True)
class Message:
    """One turn of a conversation.

    content: the text that others see. reasoning: the assistant's thinking before it, without tags.
    train: whether an assistant turn is a training target (its errors can be kept in view and out of the loss).
    """

    role: Role
    content: str
    reasoning: str = ""
    tool_calls: tuple[ToolCall, ...] = ()
    train: bool = True

    def __post_init__(self) -> None:
        if self.role not in ROLES:
            raise UsageError(f"message role = {self.role!r}: roles are {', '.join(ROLES)}")
        if self.role != "assistant" and (self.reasoning or self.tool_calls):
            raise UsageError(f"a {self.role} message cannot hold reasoning or tool calls; only the assistant's can")

    def to_json(self) -> dict[str, Any]:
        """Plain JSON, with the field names that HF chat templates know; defaults are left out."""
        out: dict[str, Any] = {"role": self.role, "content": self.content}
        if self.reasoning:
            out["reasoning_content"] = self.reasoning
        if self.tool_calls:
            out["tool_calls"] = [{"type": "function", "function": {"name": c.name, "arguments": c.arguments}} for c in self.tool_calls]
        if not self.train:
            out["train"] = False
        return out

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Self:
        """The inverse of `to_json`; also reads the plain `{"role", "content"}` dicts of a Task."""
        calls = tuple(
            ToolCall(inner["name"], inner.get("arguments")) for inner in (c.get("function", c) for c in data.get("tool_calls") or ())
        )
        return cls(
            role=data["role"],
            content=data.get("content") or "",
            reasoning=data.get("reasoning_content") or data.get("reasoning") or "",
            tool_calls=calls,
            train=data.get("train", True),
        )


def messages_of(items: Sequence[Message | Mapping[str, Any]]) -> tuple[Message, ...]:
    """Messages from a mixture of Messages and plain dicts (the messages of a Task)."""
    return tuple(m if isinstance(m, Message) else Message.from_json(m) for m in items)


def _i32() -> NDArray[np.int32]:
    return np.zeros(0, np.int32)


def _i8() -> NDArray[np.int8]:
    return np.zeros(0, np.int8)


def _bool() -> NDArray[np.bool_]:
    return np.zeros(0, np.bool_)


@dataclass(frozen=True, eq=False)
class Tokens:
    """Token ids with provenance; all arrays have shape (T,).

    ids: i32. role: i8, index into ROLES. privilege: i8, a Privilege. trainable: bool; column t says that predicting
    ids[t] is a training target: the assistant's own words and its end token, never headers or other people's words.
    """

    ids: NDArray[np.int32] = field(default_factory=_i32)
    role: NDArray[np.int8] = field(default_factory=_i8)
    privilege: NDArray[np.int8] = field(default_factory=_i8)
    trainable: NDArray[np.bool_] = field(default_factory=_bool)

    @classmethod
    def of(cls, ids: Sequence[int] | NDArray[np.int32], role: Role, trainable: bool = False) -> Self:
        """Tokens that one role wrote."""
        n = len(ids)
        return cls(
            np.asarray(ids, np.int32).reshape(n),
            np.full(n, ROLES.index(role), np.int8),
            np.full(n, int(PRIVILEGE[role]), np.int8),
            np.full(n, trainable, np.bool_),
        )

    @classmethod
    def join(cls, parts: Sequence[Tokens]) -> Self:
        """Concatenation."""
        if not parts:
            return cls()
        return cls(
            np.concatenate([p.ids for p in parts]),
            np.concatenate([p.role for p in parts]),
            np.concatenate([p.privilege for p in parts]),
            np.concatenate([p.trainable for p in parts]),
        )

    def __add__(self, other: Tokens) -> Tokens:
        return Tokens.join((self, other))

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, part: slice) -> Tokens:
        return Tokens(self.ids[part], self.role[part], self.privilege[part], self.trainable[part])

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Tokens) and all(
            np.array_equal(getattr(self, name), getattr(other, name)) for name in ("ids", "role", "privilege", "trainable")
        )
