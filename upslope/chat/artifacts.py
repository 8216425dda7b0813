"""Conversations on disk: demonstrations (`Chats`) and preferences (`Pairs`)."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

from upslope.chat.messages import Message, messages_of
from upslope.config import Json, UsageError, canonical_json
from upslope.machine.files import atomic
from upslope.machine.stage import Artifact


class Chat(NamedTuple):
    """A conversation. meta: source, parents (ids of what it was made from), and truth where there is one."""

    id: str
    messages: tuple[Message, ...]
    meta: dict[str, Json] = {}


class Pair(NamedTuple):
    """A prompt with a better and a worse reply."""

    id: str
    prompt: tuple[Message, ...]
    chosen: Message
    rejected: Message
    source: str
    split: Literal["train", "heldout"] = "train"


CHAT_COLUMNS = ("id", "source", "messages", "parents", "truth")
PAIR_COLUMNS = ("id", "source", "split", "prompt", "chosen", "rejected")


@dataclass(frozen=True)
class Chats(Artifact):
    """`chats.parquet`: id, source, messages (JSON), parents (JSON list of ids), truth (JSON)."""

    @classmethod
    def write(cls, folder: Path, chats: Iterable[Chat]) -> Chats:
        """Writes conversations in the given order; UsageError for a repeated id or a conversation without messages."""
        rows = []
        for c in chats:
            if not c.messages:
                raise UsageError(f"chat {c.id!r} has no messages")
            rows.append(
                (
                    c.id,
                    str(c.meta.get("source", "")),
                    _text([m.to_json() for m in c.messages]),
                    _text(c.meta.get("parents", [])),
                    _text(c.meta.get("truth")),
                )
            )
        _write(folder / "chats.parquet", CHAT_COLUMNS, rows)
        return cls.load(folder)

    def rows(self) -> list[dict[str, Any]]:
        """Plain rows, JSON columns decoded."""
        return _read(self.path / "chats.parquet", ("messages", "parents", "truth"))

    def __iter__(self) -> Iterator[Chat]:
        for r in self.rows():
            yield Chat(r["id"], messages_of(r["messages"]), {"source": r["source"], "parents": r["parents"], "truth": r["truth"]})

    def __len__(self) -> int:
        return _count(self.path / "chats.parquet")


@dataclass(frozen=True)
class Pairs(Artifact):
    """`pairs.parquet`: id, source, split, prompt (JSON messages), chosen and rejected (JSON message)."""

    @classmethod
    def write(cls, folder: Path, pairs: Iterable[Pair]) -> Pairs:
        """Writes pairs in the given order; UsageError for a repeated id, or replies that are equal or not the assistant's."""
        rows = []
        for p in pairs:
            if p.chosen == p.rejected:
                raise UsageError(f"pair {p.id!r}: chosen and rejected are the same reply")
            if p.chosen.role != "assistant" or p.rejected.role != "assistant":
                raise UsageError(f"pair {p.id!r}: replies must be assistant messages")
            if p.split not in ("train", "heldout"):
                raise UsageError(f"pair {p.id!r}: split = {p.split!r}; 'train' or 'heldout'")
            prompt = _text([m.to_json() for m in p.prompt])
            rows.append((p.id, p.source, p.split, prompt, _text(p.chosen.to_json()), _text(p.rejected.to_json())))
        _write(folder / "pairs.parquet", PAIR_COLUMNS, rows)
        return cls.load(folder)

    def read(self, split: Literal["train", "heldout"] | None = None) -> list[Pair]:
        """The pairs of a split (of both for None), in file order."""
        rows = _read(self.path / "pairs.parquet", ("prompt", "chosen", "rejected"))
        return [
            Pair(
                r["id"], messages_of(r["prompt"]), Message.from_json(r["chosen"]), Message.from_json(r["rejected"]), r["source"], r["split"]
            )
            for r in rows
            if split is None or r["split"] == split
        ]

    def __iter__(self) -> Iterator[Pair]:
        return iter(self.read())

    def __len__(self) -> int:
        return _count(self.path / "pairs.parquet")


def _text(value: object) -> str:
    return canonical_json(value).decode()


def _write(path: Path, names: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    seen: set[str] = set()
    for row in rows:
        if row[0] in seen:
            raise UsageError(f"id {row[0]!r} occurs twice in {path.name}")
        seen.add(row[0])
    columns = {name: [row[i] for row in rows] for i, name in enumerate(names)}
    table = pa.table(columns, schema=pa.schema([(n, pa.string()) for n in names]))
    with atomic(path) as file:
        pq.write_table(table, file, compression="zstd", row_group_size=65536)


def _read(path: Path, decoded: tuple[str, ...]) -> list[dict[str, Any]]:
    import pyarrow.parquet as pq

    return [{k: json.loads(v) if k in decoded else v for k, v in row.items()} for row in pq.read_table(path).to_pylist()]


def _count(path: Path) -> int:
    import pyarrow.parquet as pq

    return int(pq.read_metadata(path).num_rows)
