"""What a data file holds: its shape, how its fields map onto ours, three rows, and the bad rows by line.

Shapes of training data (JSON lines, a JSON array, or parquet): messages (OpenAI, ShareGPT), prompt/completion (also Alpaca), preference
(prompt, chosen, rejected), text, tokens, html; and raw archives: warc, html.
"""

from __future__ import annotations

import difflib
import gzip
import json
import zlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from upslope.config import UsageError
from upslope.data.protocol import Reject
from upslope.data.readers import ReadFile, sniff

SHOWN_BAD = 20
ROLES = {
    "system": "system",
    "developer": "system",
    "user": "user",
    "human": "user",
    "assistant": "assistant",
    "gpt": "assistant",
    "model": "assistant",
    "bot": "assistant",
    "tool": "tool",
    "function": "tool",
    "observation": "tool",
}
PAIRS = (("prompt", "completion"), ("prompt", "response"), ("instruction", "output"), ("question", "answer"), ("input", "output"))
WANTED = "messages | prompt + completion | prompt + chosen + rejected | text | input_ids"


class Bad(NamedTuple):
    """A row that cannot be used. where: line or row number, from 1, or a URL."""

    where: str
    why: str


@dataclass(frozen=True)
class Shape:
    """What `check` found. mapping: our field → theirs; rows: read, good and bad; examples: three good rows as we would see them;
    bad: the first of them; bad_rows: how many there are."""

    path: Path
    shape: str
    format: str
    mapping: Mapping[str, str]
    rows: int
    examples: tuple[str, ...]
    bad: tuple[Bad, ...] = ()
    bad_rows: int = 0

    def render(self) -> str:
        """A few lines for the terminal."""
        what = f"{self.path.name}: {self.shape} ({self.format}), {self.rows:,} rows"
        if self.bad_rows:
            unit, which = "lines" if self.format == "jsonl" else "rows", ", ".join(b.where for b in self.bad[:6])
            what += f", {self.bad_rows:,} bad ({unit} {which}{' …' if self.bad_rows > 6 else ''})"
        lines = [what, "mapping: " + ", ".join(f"{ours} ← {theirs}" for ours, theirs in self.mapping.items())]
        lines += [f"  {i}. {e}" for i, e in enumerate(self.examples, 1)]
        lines += [f"  bad {b.where}: {b.why}" for b in self.bad[:6]]
        return "\n".join(lines)


def check(path: Path | str) -> Shape:
    """Reads a file and says what it is. UsageError if it is missing, empty, of no known format or of no known shape."""
    path = Path(path)
    if not path.is_file():
        near = difflib.get_close_matches(path.name, [p.name for p in path.parent.glob("*")] if path.parent.is_dir() else [], n=2)
        raise UsageError(f"no such file: {path.name!r}" + (f"\ndid you mean {' or '.join(near)}?" if near else ""))
    if path.stat().st_size == 0:
        raise UsageError(f"{path.name} is empty")
    form = sniff(path)
    if form in ("warc", "html", "text"):
        return _pages(path, form)
    rows = _parquet(path) if form == "parquet" else _json(path)
    found: _Form | None = None
    count = good = 0
    bad: list[Bad] = []
    examples: list[str] = []
    keys: dict[str, int] = {}
    for where, row in rows:
        count += 1
        if isinstance(row, Bad):
            bad.append(row)
            continue
        if not isinstance(row, dict):
            bad.append(Bad(where, f"a {type(row).__name__}, not an object with fields"))
            continue
        for key in row:
            keys[key] = keys.get(key, 0) + 1
        found = found or _form(row)
        problem = found.problem(row) if found else None
        if found is None:
            bad.append(Bad(where, f"no known fields among {', '.join(map(repr, list(row)[:8]))}"))
        elif problem:
            bad.append(Bad(where, problem))
        else:
            good += 1
            if len(examples) < 3:
                examples.append(_short(found.show(row)))
    if found is None:
        shown = ", ".join(repr(k) for k in sorted(keys, key=lambda k: (-keys[k], k))[:8])
        first = f"first bad row, {bad[0].where}: {bad[0].why}" if bad and not keys else f"its fields are {shown or 'none'}"
        raise UsageError(f"{path.name}: no known shape; {first}\nwanted: {WANTED}\nway out: rename a field, or name it with text_field")
    return Shape(path, found.shape, form, found.mapping, count, tuple(examples), tuple(bad[:SHOWN_BAD]), len(bad))


class _Form(NamedTuple):
    shape: str
    mapping: dict[str, str]
    problem: Callable[[Mapping[str, Any]], str | None]
    show: Callable[[Mapping[str, Any]], str]


def _form(row: Mapping[str, Any]) -> _Form | None:
    """The shape of the first usable row, which all others are then held to."""
    chosen = next((k for k in ("chosen", "response_chosen", "accepted") if k in row), None)
    rejected = next((k for k in ("rejected", "response_rejected") if k in row), None)
    if chosen and rejected:
        prompt = next((k for k in ("prompt", "question", "instruction", "messages", "conversations") if k in row), None)
        return _preference(prompt, chosen, rejected)
    for key in ("messages", "conversations", "conversation", "dialog"):
        if isinstance(row.get(key), list):
            return _messages(key)
    for prompt, completion in PAIRS:
        if prompt in row and completion in row:
            return _pair(prompt, completion, "input" if prompt == "instruction" and "input" in row else None)
    for key in ("input_ids", "tokens"):
        if isinstance(row.get(key), list):
            return _Form("tokens", {"ids": key}, partial(_ids, key), partial(_show_ids, key))
    for key in ("html", "raw_content"):
        if isinstance(row.get(key), str | bytes):
            return _Form("html", {"html": key, **_extra(row)}, partial(_field, key), partial(_show_field, key))
    for key in ("text", "content", "body", "markdown"):
        if isinstance(row.get(key), str):
            return _Form("text", {"text": key, **_extra(row)}, partial(_field, key), partial(_show_field, key))
    return None


def _extra(row: Mapping[str, Any]) -> dict[str, str]:
    return {name: name for name in ("url", "source", "date") if name in row}


def _field(key: str, row: Mapping[str, Any]) -> str | None:
    return _text(row.get(key), key)


def _show_field(key: str, row: Mapping[str, Any]) -> str:
    return str(row[key])


def _show_ids(key: str, row: Mapping[str, Any]) -> str:
    return f"{len(row[key])} ids: {row[key][:12]}"


def _text(value: Any, key: str) -> str | None:
    if value is None:
        return f"no {key!r}"
    if not isinstance(value, str | bytes):
        return f"{key!r} is a {type(value).__name__}, not a string"
    return None if value.strip() else f"{key!r} is empty"


def _ids(key: str, row: Mapping[str, Any]) -> str | None:
    value = row.get(key)
    if not isinstance(value, list) or not value:
        return f"{key!r} is empty or not a list"
    bad = next((v for v in value if isinstance(v, bool) or not isinstance(v, int) or v < 0), None)
    return None if bad is None else f"{key!r} holds {bad!r}, which is not a token id"


def _turns(value: Any, key: str) -> tuple[list[tuple[str, str]], str | None]:
    """((role, text) of each message, what is wrong)."""
    turns: list[tuple[str, str]] = []
    if not isinstance(value, list) or not value:
        return turns, f"{key!r} is empty or not a list"
    for i, message in enumerate(value, 1):
        if not isinstance(message, dict):
            return turns, f"message {i} is a {type(message).__name__}, not an object"
        role = message.get("role", message.get("from"))
        text = message.get("content", message.get("value"))
        if role not in ROLES:
            return turns, f"message {i} has the role {role!r}; known: {', '.join(sorted(set(ROLES.values())))}"
        if text is None and not message.get("tool_calls"):
            return turns, f"message {i} ({role}) has no content"
        turns.append((ROLES[role], text if isinstance(text, str) else json.dumps(text, ensure_ascii=False)))
    if not any(role == "assistant" for role, _ in turns):
        return turns, "no assistant message: there is nothing to learn"
    return turns, None if turns[-1][0] == "assistant" else f"the last role is {turns[-1][0]}"


def _messages(key: str) -> _Form:
    def show(row: Mapping[str, Any]) -> str:
        return " · ".join(f"{role}: {text}" for role, text in _turns(row[key], key)[0])

    return _Form("messages", {"messages": key}, lambda r: _turns(r.get(key), key)[1], show)


def _pair(prompt: str, completion: str, extra: str | None) -> _Form:
    def problem(row: Mapping[str, Any]) -> str | None:
        return _side(row.get(prompt), prompt) or _side(row.get(completion), completion)

    mapping = {"prompt": prompt + (f" + {extra}" if extra else ""), "completion": completion}
    return _Form("prompt/completion", mapping, problem, lambda r: f"{_flat(r[prompt])} → {_flat(r[completion])}")


def _preference(prompt: str | None, chosen: str, rejected: str) -> _Form:
    def problem(row: Mapping[str, Any]) -> str | None:
        wrong = (_side(row.get(prompt), prompt) if prompt else None) or _side(row.get(chosen), chosen) or _side(row.get(rejected), rejected)
        return wrong or (f"{chosen!r} and {rejected!r} are the same" if row[chosen] == row[rejected] else None)

    mapping = {"prompt": prompt or f"the common start of {chosen} and {rejected}", "chosen": chosen, "rejected": rejected}

    def show(row: Mapping[str, Any]) -> str:
        return f"{_flat(row[prompt]) if prompt else ''} → + {_flat(row[chosen])}  − {_flat(row[rejected])}"

    return _Form("preference", mapping, problem, show)


def _side(value: Any, key: str) -> str | None:
    if isinstance(value, list):
        return None if value and all(isinstance(m, dict) for m in value) else f"{key!r} is an empty list, or not one of messages"
    return _text(value, key)


def _flat(value: Any) -> str:
    if isinstance(value, list):
        return " · ".join(str(m.get("content", m.get("value", ""))) for m in value if isinstance(m, dict))
    return str(value)


def _short(text: str) -> str:
    text = " ".join(text.split())
    return text if len(text) <= 140 else text[:139] + "…"


def _json(path: Path) -> Iterator[tuple[str, Any]]:
    with open(path, "rb") as f:
        packed = f.read(2) == b"\x1f\x8b"
    with gzip.open(path, "rb") if packed else open(path, "rb") as lines:
        first = lines.peek(64).lstrip()[:1]  # type: ignore[union-attr]
        number = 0
        if first == b"[":
            try:
                for number, row in enumerate(json.load(lines), 1):
                    yield str(number), row
            except json.JSONDecodeError as e:
                yield str(e.lineno), Bad(str(e.lineno), f"broken JSON: {e.msg} at column {e.colno}")
            return
        try:
            for number, line in enumerate(lines, 1):
                if line.strip():
                    try:
                        yield str(number), json.loads(line)
                    except (json.JSONDecodeError, UnicodeDecodeError) as e:
                        yield str(number), Bad(str(number), f"broken JSON: {str(e)[:80]}")
        except (EOFError, OSError, zlib.error) as e:
            yield str(number + 1), Bad(str(number + 1), f"truncated gzip: {e}")


def _parquet(path: Path) -> Iterator[tuple[str, Any]]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        file = pq.ParquetFile(path)
        number = 0
        for batch in file.iter_batches(batch_size=1024):
            for row in batch.to_pylist():
                number += 1
                yield str(number), row
    except (pa.ArrowInvalid, OSError) as e:
        raise UsageError(f"{path.name}: damaged parquet: {str(e).splitlines()[0][:120]}") from None


def _pages(path: Path, form: str) -> Shape:
    """Archives and pages: through the reader that ingest uses."""
    good = count = 0
    bad: list[Bad] = []
    examples: list[str] = []
    for row in ReadFile()(path):
        count += 1
        if isinstance(row, Reject):
            bad.append(Bad(row.record, row.why))
        else:
            good += 1
            if len(examples) < 3:
                examples.append(_short(f"{row['url']}  {row['mime']}  {len(row['html']):,} bytes"))  # type: ignore[arg-type]
    if not good:
        raise UsageError(f"{path.name}: {form}, but no page in it can be read" + (f"\n{bad[0].where}: {bad[0].why}" if bad else ""))
    return Shape(path, "pages", form, {"html": "the body of each record"}, count, tuple(examples), tuple(bad[:SHOWN_BAD]), len(bad))
