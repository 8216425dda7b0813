"""Evaluation items in files of the usual shapes: JSON, JSON lines, parquet, each also a folder of them.

question: the first of QUESTIONS; answer: the first of ANSWERS, where a letter or number may name an option; options: a list, `{text,
label}` as in ARC, `{"A": …}`, HellaSwag's `endings`, PIQA's `sol1`, `sol2`. Chats (`messages`) ask with what the user says first and answer
with what the assistant says last.
"""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from upslope.config import UsageError
from upslope.data.ngrams import Item

QUESTIONS = ("question", "problem", "prompt", "query", "input", "goal", "ctx", "instruction", "text")
ANSWERS = (
    "answer",
    "answers",
    "solution",
    "completion",
    "canonical_solution",
    "target",
    "output",
    "response",
    "answerKey",
    "label",
    "gold",
)
OPTIONS = ("choices", "options", "endings")
CONTEXTS = ("context", "passage", "article", "support")
IDS = ("id", "task_id", "question_id", "qid", "_id", "ind")
BENCHMARKS = ("benchmark", "dataset")
LISTS = ("items", "data", "examples", "questions", "rows")
SUFFIXES = (".json", ".jsonl", ".ndjson", ".parquet")


def read(path: Path, context: bool = False) -> Iterator[Item]:
    """Items of a file, or of the files of a folder, in order. context: whether a passage is part of the question.

    Raises UsageError naming the file, and the first item that asks nothing.
    """
    files = sorted(p for p in path.rglob("*") if _suffix(p) in SUFFIXES) if path.is_dir() else [path]
    if not files:
        raise UsageError(f"{path.name}: no evaluation items; known are files that end in {', '.join(SUFFIXES)}, each also .gz")
    for file in files:
        for i, row in enumerate(_rows(file)):
            yield item(row, f"{file.name}: item {i}", _stem(file), i, context)


def item(row: Any, where: str, benchmark: str, number: int, context: bool = False) -> Item:
    """One item from a JSON value. where: for the error message; benchmark, number: for items that name none and have no id."""
    fields: Mapping[str, Any] = row if isinstance(row, Mapping) else {"text": row}
    fields = fields["row"] if isinstance(fields.get("row"), Mapping) else fields
    question, reply = _chat(fields.get("messages")) if fields.get("messages") else (_first(fields, QUESTIONS), "")
    if not isinstance(question, str) or not question.strip():
        shown = f"keys: {', '.join(map(str, fields))[:80]}" if isinstance(row, Mapping) else repr(row)[:80]
        raise UsageError(
            f"{where} asks nothing: it has no text under {', '.join(QUESTIONS)} or messages\n{shown}\nway out: rename the field"
        )
    passage = _first(fields, CONTEXTS)
    if context and isinstance(passage, str):
        question = f"{passage}\n{question}"
    options, labels = _options(fields)
    answer = reply or _answer(_first(fields, ANSWERS), options, labels)
    name, of = _first(fields, IDS), _first(fields, BENCHMARKS)
    name = str(name) if isinstance(name, str | int) else f"{benchmark}/{number}"
    return Item(name, of if isinstance(of, str) else benchmark, question, answer, options)


def _first(fields: Mapping[str, Any], names: tuple[str, ...]) -> Any:
    return next((fields[n] for n in names if fields.get(n) not in (None, "", [], {})), None)


def _chat(messages: Any) -> tuple[str, str]:
    said: dict[str, list[str]] = {"user": [], "assistant": []}
    for message in messages if isinstance(messages, list) else []:
        if isinstance(message, Mapping) and isinstance(message.get("content"), str):
            said.setdefault(str(message.get("role")), []).append(message["content"])
    return (said["user"] or [""])[0], (said["assistant"] or [""])[-1]


def _options(fields: Mapping[str, Any]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The options and what they are called: A, B, … unless they say otherwise."""
    found = _first(fields, OPTIONS)
    if found is None and fields.get("sol1") and fields.get("sol2"):
        found = [fields["sol1"], fields["sol2"]]
    labels: list[str] = []
    if isinstance(found, Mapping):
        if isinstance(found.get("text"), list):
            labels, found = [str(x) for x in found.get("label") or ()], found["text"]
        else:
            labels, found = [str(k) for k in found], list(found.values())
    if not isinstance(found, list):
        return (), ()
    options = tuple(str(o["text"]) if isinstance(o, Mapping) and "text" in o else str(o) for o in found)
    return options, tuple(labels) if len(labels) == len(options) else tuple(chr(65 + i) for i in range(len(options)))


def _answer(value: Any, options: tuple[str, ...], labels: tuple[str, ...]) -> str:
    if isinstance(value, Mapping):
        value = value.get("text", value.get("value"))
    if isinstance(value, list):
        value = value[0] if value else None
    if value is None or isinstance(value, float | Mapping | list):
        return "" if not isinstance(value, float) else f"{value:g}"
    name = str(value).strip()
    if options and name in labels:
        return options[labels.index(name)]
    if options and name not in options and name.isascii() and name.isdigit() and int(name) < len(options):
        return options[int(name)]
    return name


def _suffix(path: Path) -> str:
    return Path(path.name.removesuffix(".gz")).suffix.lower()


def _stem(path: Path) -> str:
    return Path(path.name.removesuffix(".gz")).stem


def _rows(file: Path) -> Iterator[Any]:
    if _suffix(file) == ".parquet":
        from upslope.data import shards

        yield from shards.read(file).to_pylist()
        return
    try:
        text = (gzip.decompress(file.read_bytes()) if file.name.endswith(".gz") else file.read_bytes()).decode("utf-8-sig")
    except (OSError, EOFError, UnicodeDecodeError) as e:
        raise UsageError(f"{file.name}: not readable as UTF-8 text: {e}") from None
    if _suffix(file) != ".json":
        for number, line in enumerate(text.split("\n"), 1):
            if line.strip():
                yield _json(line, f"{file.name}, line {number}")
        return
    body = _json(text, file.name)
    if isinstance(body, dict):
        body = next((body[k] for k in LISTS if isinstance(body.get(k), list)), body)
    if not isinstance(body, list):
        raise UsageError(f"{file.name}: expected a list of items, or an object with one of {', '.join(LISTS)}; found {type(body).__name__}")
    yield from body


def _json(text: str, where: str) -> Any:
    try:
        return json.loads(text)
    except ValueError as e:
        raise UsageError(f"{where}: not JSON: {e}") from None
