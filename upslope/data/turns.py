"""Messages as other tools write them → {role, content, tool_calls?, reasoning_content?, train?}, as `chat.messages.Message` reads them."""

from __future__ import annotations

import difflib
import json
from collections.abc import Mapping
from typing import Any

from upslope.data.readers.fields import pick

ROLES = {
    "system": "system",
    "developer": "developer",
    "user": "user",
    "human": "user",
    "prompter": "user",
    "assistant": "assistant",
    "gpt": "assistant",
    "model": "assistant",
    "bot": "assistant",
    "chatgpt": "assistant",
    "function_call": "assistant",
    "tool": "tool",
    "function": "tool",
    "ipython": "tool",
    "observation": "tool",
}
DROP = "--drop-bad"


class Wrong(Exception):
    """A row that cannot be used. found: the keys that it has; wanted: the key, and of what kind; fix: the flag that mends it."""

    def __init__(self, why: str, wanted: str = "", found: tuple[str, ...] = (), fix: str = DROP) -> None:
        super().__init__(why)
        self.why, self.wanted, self.found, self.fix = why, wanted, found, fix


def message(value: Any, number: int, key: str, names: Mapping[str, str]) -> dict[str, Any]:
    """One message in canonical form, or Wrong. number: its place, from 1; key: of the list that it is in.

    names: `messages.role`, `messages.content` and `role.ROLE` say where these are, and who is meant. A false `train` or `training`, or
    a `weight` of 0, keeps an answer out of the loss.
    """
    if not isinstance(value, Mapping):
        raise Wrong(f"message {number} is a {type(value).__name__}, not an object", f"{key!r} (a list of objects with role and content)")
    roles, contents = names.get("messages.role", "role|from"), names.get("messages.content", "content|value")
    said, text, calls = pick(value, roles), pick(value, contents), value.get("tool_calls")
    keys, wanted = tuple(map(str, value)), f"{roles.replace('|', ' or ')} and {contents.replace('|', ' or ')}"
    if said is None:
        other = next((k for k in value if isinstance(value[k], str) and value[k].lower() in ROLES), None)
        fix = f"--map messages.role={other}" if other else DROP
        if other and text is None and (body := next((k for k in value if k != other and isinstance(value[k], str)), None)):
            fix += f" --map messages.content={body}"
        raise Wrong(f"message {number} has no role", wanted, keys, fix)
    taken = {theirs: ours.removeprefix("role.") for ours, theirs in names.items() if ours.startswith("role.")}
    role = taken.get(str(said), ROLES.get(str(said).lower()))
    if role is None:
        known = ", ".join(sorted(set(ROLES.values())))
        near = difflib.get_close_matches(str(said), list(ROLES), n=1, cutoff=0.6)
        raise Wrong(
            f"message {number} has the role {said!r}", f"a role: {known}", keys, f"--map role.{ROLES[near[0]] if near else 'user'}={said}"
        )
    if isinstance(text, list):
        if any(not isinstance(p, Mapping) or p.get("type", "text") != "text" or not isinstance(p.get("text"), str) for p in text):
            raise Wrong(f"message {number} ({said}) holds something else than text", "text parts only", keys)
        text = "".join(p["text"] for p in text)
    if role == "assistant" and str(said).lower() == "function_call":
        calls, text = as_json(text), None
    if text is None and not calls:
        other = next((k for k in value if k not in ("role", "from", "name", "id") and isinstance(value[k], str)), None)
        raise Wrong(f"message {number} ({said}) has no content", wanted, keys, f"--map messages.content={other}" if other else DROP)
    if text is not None and not isinstance(text, str):
        raise Wrong(f"message {number} ({said}) has a {type(text).__name__} as content, not a string", wanted, keys)
    out: dict[str, Any] = {"role": role, "content": text or ""}
    if role == "assistant":
        thought = value.get("reasoning_content") or value.get("reasoning")
        out |= {"reasoning_content": thought} if isinstance(thought, str) else {}
        out |= {"tool_calls": _calls(calls, number)} if calls else {}
        if value.get("train") is False or value.get("training") is False or value.get("weight") == 0:
            out["train"] = False
    return out


def _calls(value: Any, number: int) -> list[dict[str, Any]]:
    out = []
    for call in value if isinstance(value, list) else [value]:
        inner = call.get("function", call) if isinstance(call, Mapping) else None
        if not isinstance(inner, Mapping) or not isinstance(inner.get("name"), str):
            raise Wrong(f"message {number} holds a tool call without a name", "tool_calls ([{function: {name, arguments}}])")
        out.append({"type": "function", "function": {"name": inner["name"], "arguments": as_json(inner.get("arguments"))}})
    return out


def as_json(value: Any) -> Any:
    """A value that may stand as JSON in a string."""
    if isinstance(value, str):
        try:
            return json.loads(value)
        except (ValueError, RecursionError):
            return value
    return value


def as_list(value: Any) -> list[Any] | None:
    """A list, also one that stands as JSON in a string."""
    if isinstance(value, str) and value.lstrip()[:2] in ("[{", "[]"):
        try:
            value = json.loads(value)
        except (ValueError, RecursionError):
            return None
    return value if isinstance(value, list) else None
