"""Shapes of training rows as other tools write them (TRL, axolotl, LLaMA-Factory, OpenAI), and their one canonical form here.

    messages            {messages, tools?}                      supervised chats
    prompt/completion   {messages, prompt, completion}          one answer to one prompt
    preference          {prompt, chosen, rejected}              each a list of messages
    unpaired preference {prompt, completion, label}             label: whether it is wanted
    prompts             {prompt, truth? or answer?}             what RL asks
    stepwise            {prompt, completions, labels}           a label for each step
    segments            {segments}                              text pieces, each learned or not
    text, html          {text} or {html}
    tokens              {ids}

Messages are those of `data.turns`. `id`, `split`, `level`, `family`, `truth` and `answer` of a row are kept as they are.

Source: the dataset-format pages of TRL, axolotl and LLaMA-Factory, and OpenAI's fine-tuning guide.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

from upslope.data.readers.fields import pick
from upslope.data.turns import DROP, ROLES, Wrong, as_json, as_list, message

SLOTS: dict[str, tuple[str, ...]] = {
    "messages": ("messages", "conversations", "conversation", "dialog"),
    "chosen": ("chosen", "response_chosen", "accepted"),
    "rejected": ("rejected", "response_rejected"),
    "prompt": ("prompt", "instruction", "question", "query"),
    "completion": ("completion", "response", "output"),
    "completions": ("completions",),
    "labels": ("labels",),
    "label": ("label", "kto_tag"),
    "segments": ("segments",),
    "system": ("system",),
    "history": ("history",),
    "tools": ("tools", "functions"),
    "truth": ("truth",),
    "answer": ("answer", "ground_truth", "solution"),
    "ids": ("input_ids", "tokens"),
    "html": ("html", "raw_content"),
    "text": ("text", "content", "body", "markdown"),
}
"""Our field → the names under which others have it, first come first."""

CARRIED = ("id", "split", "level", "family", "truth", "answer")
NAMES = {name: ours for ours, names in SLOTS.items() for name in (ours, *names)}
KEYS = (*SLOTS, "input", "url", "source", "date", "licence", "mime", "charset", "messages.role", "messages.content")
KEYS += tuple(f"role.{role}" for role in sorted(set(ROLES.values())))
WANTED = "messages | prompt + completion | prompt + chosen + rejected | text | input_ids"


class Form(NamedTuple):
    """The shape of a row. known_as: what its makers call it. mapping: our field → theirs. read: a row → its canonical form, or Wrong."""

    shape: str
    known_as: str
    mapping: dict[str, str]
    read: Callable[[Mapping[str, Any]], dict[str, Any]]


def recognise(row: Mapping[str, Any], names: Mapping[str, str]) -> Form | None:
    """The shape of a row; None if it has none. names: our field → theirs, where they are not found by their usual names."""
    have = _slots(row, names)
    if meant := next((s for s in ("text", "html", "ids") if s in names and s in have), None):  # named by the user: nothing else is meant
        have = {meant: have[meant]}

    def value(slot: str) -> Any:
        return pick(row, have[slot]) if slot in have else None

    def form(shape: str, known_as: str, build: Callable[[_Row], dict[str, Any]], *needed: str, **shown: str) -> Form:
        fixed = {slot: have[slot] for slot in needed}
        return Form(shape, known_as, {**fixed, **shown}, lambda r: build(_Row(r, {**_slots(r, names), **fixed}, names)))

    conversation = as_list(value("messages"))
    if isinstance(value("completions"), list) and isinstance(value("labels"), list) and "prompt" in have:
        return form("stepwise", "TRL stepwise supervision", _stepwise, "prompt", "completions", "labels")
    if isinstance(value("segments"), list):
        return form("segments", "axolotl input_output", _segments, "segments")
    if "chosen" in have and "rejected" in have:
        asked = next((s for s in ("prompt", "messages") if s in have), None)
        if asked is None:
            shown = f"the common start of {have['chosen']} and {have['rejected']}"
            return form("preference", "TRL preference, implicit prompt", _preference, "chosen", "rejected", prompt=shown)
        theirs = "LLaMA-Factory preference, sharegpt" if asked == "messages" else "LLaMA-Factory preference, alpaca"
        known = "TRL preference, explicit prompt" if have[asked] == "prompt" else theirs
        return form("preference", known, _preference, asked, "chosen", "rejected", **_with_input(have))
    if _bool(value("label")) is not None and (conversation or ("prompt" in have and "completion" in have)):
        known = "LLaMA-Factory KTO" if have["label"] == "kto_tag" else "TRL unpaired preference"
        return form("unpaired preference", known, _unpaired, *(("messages",) if conversation else ("prompt", "completion")), "label")
    if conversation is not None:
        roles = [ROLES.get(str(m.get("role", m.get("from")))) for m in conversation if isinstance(m, Mapping)]
        if "assistant" not in roles and ("truth" in have or "answer" in have):
            return form("prompts", "prompts with answers", _prompts, "messages", "truth" if "truth" in have else "answer")
        tools = any(isinstance(m, Mapping) and (m.get("tool_calls") or m.get("tool_call_id")) for m in conversation)
        if any(isinstance(m, Mapping) and "from" in m for m in conversation):
            known = "LLaMA-Factory sharegpt" if "system" in have or "tools" in have else "ShareGPT (axolotl, LLaMA-Factory)"
        else:
            known = "OpenAI fine-tuning, with tools" if tools or "tools" in have else "TRL conversational, OpenAI fine-tuning"
        extra = {s: have[s] for s in have if s in ("system", "tools")}
        return form("messages", known, _messages, "messages", **extra)
    if "prompt" in have and "completion" in have:
        lists = isinstance(value("prompt"), list)
        known = "TRL prompt-completion" + ", conversational" * lists
        if have["prompt"] == "instruction":
            known = "LLaMA-Factory alpaca" if "history" in have or "system" in have else "alpaca (axolotl, LLaMA-Factory)"
        elif have["prompt"] != "prompt":
            known = f"{have['prompt']} and {have['completion']}"
        extra = {s: have[s] for s in have if s in ("system", "history")}
        return form("prompt/completion", known, _pair, "prompt", "completion", **_with_input(have), **extra)
    if "prompt" in have:
        answered = next((s for s in ("truth", "answer") if s in have), None)
        return form(
            "prompts", "prompts with answers" if answered else "TRL prompt-only", _prompts, "prompt", *([answered] if answered else [])
        )
    if isinstance(value("ids"), list):
        return form("tokens", "pre-tokenised", _tokens, "ids")
    also = {name: name for name in ("url", "source", "date") if name in row}
    if isinstance(value("html"), str | bytes):
        return form("html", "pages", lambda r: {"html": r.text("html")}, "html", **also)
    if isinstance(value("text"), str) or ("text" in names and "text" in have):
        known = "Dolma document" if {"id", "source", "added"} <= set(row) else "plain text (axolotl completion, TRL language modelling)"
        return form("text", known, lambda r: {"text": r.text("text")}, "text", **also)
    return None


def _with_input(have: Mapping[str, str]) -> dict[str, str]:
    return {"prompt": f"{have['prompt']} + {have['input']}"} if "input" in have and "prompt" in have else {}


def _slots(row: Mapping[str, Any], names: Mapping[str, str]) -> dict[str, str]:
    """Our field → their path, of the fields that a row has."""
    found = {ours: theirs for ours, theirs in names.items() if ours in SLOTS or ours == "input"}
    for ours, usual in SLOTS.items():
        if ours not in names and (name := next((n for n in usual if row.get(n) is not None), None)):
            found[ours] = name
    if "prompt" not in found and row.get("input") is not None and "completion" in found:
        found["prompt"] = "input"
    if found.get("prompt") == "question" and "completion" not in found and found.get("answer") == "answer":
        found["completion"] = found.pop("answer")
    if found.get("prompt") == "instruction" and "input" in row and "input" not in found:
        found["input"] = "input"
    return {ours: path for ours, path in found.items() if ours not in names or pick(row, path) is not None}


class _Row(NamedTuple):
    data: Mapping[str, Any]
    slots: Mapping[str, str]
    names: Mapping[str, str]

    def get(self, slot: str) -> Any:
        return pick(self.data, self.slots[slot]) if slot in self.slots else None

    def need(self, slot: str, kind: str) -> Any:
        """The value of a field; Wrong with the key that it may be under if there is none."""
        value, path = self.get(slot), self.slots[slot]
        if value is None:
            known = {NAMES.get(k) for k in self.data}
            near = [k for k in difflib.get_close_matches(path, list(map(str, self.data)), n=1, cutoff=0.6) if NAMES.get(k) in (None, slot)]
            near = near or [k for k in self.data if k not in NAMES and slot not in known and _fits(self.data[k], slot)][:1]
            fix = f"--map '{slot}={path}|{near[0]}'" if near else DROP
            raise Wrong(f"no {path!r}", f"{path!r} ({kind})", tuple(map(str, self.data)), fix)
        return value

    def text(self, slot: str) -> str:
        value, path = self.need(slot, "a string"), self.slots[slot]
        if isinstance(value, bytes):
            value = value.decode("utf-8", "replace")
        if not isinstance(value, str):
            raise Wrong(f"{path!r} is a {type(value).__name__}, not a string", f"{path!r} (a string)", tuple(map(str, self.data)))
        if not value.strip():
            raise Wrong(f"{path!r} is empty", f"{path!r} (a string)", tuple(map(str, self.data)))
        return value

    def turns(self, slot: str, role: str) -> list[dict[str, Any]]:
        """Messages: of a list of them, of one, or of a text that `role` says."""
        value, path = self.need(slot, "a string or messages"), self.slots[slot]
        listed = as_list(value)
        if isinstance(value, Mapping):
            listed = [value]
        if listed is None:
            return [{"role": role, "content": self.text(slot)}]
        if not listed:
            raise Wrong(f"{path!r} is an empty list", f"{path!r} (messages)", tuple(map(str, self.data)))
        return [message(m, i, path, self.names) for i, m in enumerate(listed, 1)]

    def before(self) -> list[dict[str, Any]]:
        """What stands before the prompt: the system's message and earlier turns."""
        out: list[dict[str, Any]] = []
        if isinstance(system := self.get("system"), str) and system:
            out.append({"role": "system", "content": system})
        history = self.get("history") or ()
        for pair in history if isinstance(history, list | tuple) else (None,):
            if not isinstance(pair, list | tuple) or len(pair) != 2 or not all(isinstance(t, str) for t in pair):
                raise Wrong(f"{self.slots['history']!r} holds something else than pairs", "'history' ([[prompt, answer], …])")
            out += [{"role": "user", "content": pair[0]}, {"role": "assistant", "content": pair[1]}]
        return out

    def asked(self) -> list[dict[str, Any]]:
        """The prompt as messages, with what stands before it."""
        if "messages" in self.slots and "prompt" not in self.slots:
            return [*self.before(), *self.turns("messages", "user")]
        prompt = self.turns("prompt", "user")
        more = self.get("input")
        if isinstance(more, str) and more.strip() and len(prompt) == 1 and self.slots.get("input") != self.slots["prompt"]:
            prompt[0]["content"] += "\n" + more
        return [*self.before(), *prompt]

    def carried(self) -> dict[str, Any]:
        return {k: self.data[k] for k in CARRIED if self.data.get(k) is not None}


def _fits(value: Any, slot: str) -> bool:
    if slot == "messages":
        return bool(as_list(value)) and all(isinstance(m, Mapping) for m in as_list(value) or ())
    if slot == "ids":
        return isinstance(value, list) and bool(value) and all(isinstance(v, int) for v in value)
    if slot == "label":
        return isinstance(value, bool)
    return slot in ("text", "html", "prompt", "completion", "chosen", "rejected") and isinstance(value, str) and len(value) > 16


def _bool(value: Any) -> bool | None:
    return bool(value) if isinstance(value, bool) or (isinstance(value, int) and value in (0, 1)) else None


def _messages(row: _Row) -> dict[str, Any]:
    path = row.slots["messages"]
    value = as_list(row.need("messages", "a list of messages"))
    if not value:
        raise Wrong(f"{path!r} is empty or not a list", f"{path!r} (a list of messages)", tuple(map(str, row.data)))
    messages = [*row.before(), *row.turns("messages", "user")]
    if not any(m["role"] == "assistant" for m in messages):
        raise Wrong("no assistant message: there is nothing to learn", f"{path!r} with an answer of the assistant")
    if messages[-1]["role"] != "assistant":
        raise Wrong(f"the last role is {messages[-1]['role']}", f"{path!r} that ends with the assistant")
    tools = as_json(row.get("tools"))
    return {**row.carried(), "messages": messages, **({"tools": tools} if isinstance(tools, list) and tools else {})}


def _pair(row: _Row) -> dict[str, Any]:
    prompt, completion = row.asked(), row.turns("completion", "assistant")
    return {**row.carried(), "messages": [*prompt, *completion], "prompt": prompt, "completion": completion}


def _preference(row: _Row) -> dict[str, Any]:
    chosen, rejected = row.turns("chosen", "assistant"), row.turns("rejected", "assistant")
    if "prompt" in row.slots or "messages" in row.slots:
        prompt = row.asked()
    else:
        same = 0
        while same < min(len(chosen), len(rejected)) - 1 and chosen[same] == rejected[same]:
            same += 1
        prompt, chosen, rejected = chosen[:same], chosen[same:], rejected[same:]
    if chosen == rejected:
        raise Wrong(
            f"{row.slots['chosen']!r} and {row.slots['rejected']!r} are the same", "two answers that differ", tuple(map(str, row.data))
        )
    return {**row.carried(), "prompt": prompt, "chosen": chosen, "rejected": rejected}


def _unpaired(row: _Row) -> dict[str, Any]:
    value, path = row.need("label", "true or false"), row.slots["label"]
    label = _bool(value)
    if label is None:
        other = next((k for k in row.data if k != path and isinstance(row.data[k], bool)), None)
        fix = f"--map label={other}" if other else DROP
        raise Wrong(f"{path!r} is {str(value)[:20]!r}, neither true nor false", f"{path!r} (true or false)", tuple(map(str, row.data)), fix)
    prompt = row.asked()
    completion = row.turns("completion", "assistant") if "prompt" in row.slots else prompt[-1:]
    prompt = prompt if "prompt" in row.slots else prompt[:-1]
    if not completion or completion[-1]["role"] != "assistant":
        raise Wrong(f"the last role is {completion[-1]['role']}", "an answer of the assistant at the end")
    return {**row.carried(), "prompt": prompt, "completion": completion, "label": label}


def _prompts(row: _Row) -> dict[str, Any]:
    answer = row.get("answer")
    return {**row.carried(), "prompt": row.asked(), **({"answer": answer} if answer is not None else {})}


def _stepwise(row: _Row) -> dict[str, Any]:
    steps, labels = row.need("completions", "a list of strings"), row.need("labels", "a list of true or false")
    if not isinstance(steps, list) or not isinstance(labels, list) or len(steps) != len(labels):
        raise Wrong("'completions' and 'labels' are not lists of one length", "a label for each step", tuple(map(str, row.data)))
    if not all(isinstance(s, str) for s in steps) or any(_bool(v) is None for v in labels):
        raise Wrong("a step is not a string, or its label neither true nor false", "a label for each step", tuple(map(str, row.data)))
    return {**row.carried(), "prompt": row.asked(), "completions": steps, "labels": [bool(v) for v in labels]}


def _segments(row: _Row) -> dict[str, Any]:
    value = row.need("segments", "a list of {text, label}")
    good = isinstance(value, list) and value and all(isinstance(s, Mapping) and isinstance(s.get("text"), str) for s in value)
    if not good or any(_bool(s.get("label")) is None for s in value):
        raise Wrong(
            "'segments' holds something else than {text, label}", "'segments' ([{text, label: true or false}])", tuple(map(str, row.data))
        )
    if not any(s["label"] for s in value):
        raise Wrong("no segment has the label true: there is nothing to learn", "a segment with the label true", tuple(map(str, row.data)))
    return {"segments": [{"text": s["text"], "label": bool(s["label"])} for s in value]}


def _tokens(row: _Row) -> dict[str, Any]:
    value, path = row.need("ids", "a list of token ids"), row.slots["ids"]
    if not isinstance(value, list) or not value:
        raise Wrong(f"{path!r} is empty or not a list", f"{path!r} (a list of token ids)", tuple(map(str, row.data)))
    bad = next((v for v in value if isinstance(v, bool) or not isinstance(v, int) or v < 0), None)
    if bad is not None:
        raise Wrong(f"{path!r} holds {bad!r}, which is not a token id", f"{path!r} (a list of token ids)", tuple(map(str, row.data)))
    return {"ids": value}


# ── what was meant ────────────────────────────────────────────────────────────────────────────────────────────────


def suggest(row: Mapping[str, Any]) -> str:
    """The flags that make a row of no known shape one of a known shape, where that can be told; else ""."""
    for path, value in _inside(row):
        listed = as_list(value)
        if listed and all(isinstance(m, Mapping) for m in listed) and any(str(v).lower() in ROLES for m in listed for v in m.values()):
            fixes = [] if path in SLOTS["messages"] else [f"--map messages={path}"]
            try:
                message(listed[0], 1, path, {})
            except Wrong as e:
                fixes += [e.fix] if e.fix != DROP else []
            return " ".join(fixes)
    near: dict[str, str] = {}
    for key in row:
        if found := difflib.get_close_matches(str(key).lower(), list(NAMES), n=1, cutoff=0.75):
            near.setdefault(NAMES[found[0]], str(key))
    names = {ours: theirs for ours, theirs in near.items() if theirs not in SLOTS[ours]}
    if names and recognise(row, names):
        return " ".join(f"--map {ours}={theirs}" for ours, theirs in names.items())
    texts = sorted((path for path, value in _inside(row) if isinstance(value, str) and len(value) > 16), key=lambda p: (p.count("."), p))
    return f"--map text={texts[0]}" if len(texts) == 1 else ""


def _inside(value: Mapping[str, Any], prefix: str = "", depth: int = 3) -> Iterator[tuple[str, Any]]:
    for key, inner in value.items():
        path = f"{prefix}{key}"
        yield path, inner
        if isinstance(inner, Mapping) and depth > 1:
            yield from _inside(inner, f"{path}.", depth - 1)
