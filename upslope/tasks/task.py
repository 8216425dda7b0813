"""A task: a prompt, the truth that a verifier needs, and how hard it is."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from upslope.config import Json


class Task(NamedTuple):
    """One problem.

    messages: the prompt, as plain `{"role", "content"}` dicts. tools: plain dicts (OpenAI style). truth: what the
    family's verifier needs; for the built-in families `{"answer": str, "problem": [...]}`. level: 1 (easy) to 4.
    """

    id: str
    family: str
    messages: tuple[Mapping[str, Any], ...]
    tools: tuple[Mapping[str, Any], ...]
    truth: Json
    level: float

    @property
    def prompt(self) -> str:
        """The text of the last user message."""
        return next((str(m["content"]) for m in reversed(self.messages) if m["role"] == "user"), "")
