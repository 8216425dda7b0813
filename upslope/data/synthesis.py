"""Synthesis over a chat model: documents and instructions that are made from other ones, each with its parents.

A `Synthesizer` turns one seed text into some new rows, by asking a model; what is not usable comes back as `Refused`, with the reason,
and is never dropped silently. The seed of every question depends on the recipe's seed, the parent and the question alone, so a document
added to a corpus changes nothing that was made from the others.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

from upslope.chat.messages import Message
from upslope.chat.model import Chat, ChatModel, Speaker, Stop
from upslope.config import Config, Open
from upslope.machine.files import write_json
from upslope.machine.rng import seed_of

if TYPE_CHECKING:
    import pyarrow as pa

SPACES = re.compile(r"\s+")
UNABLE = re.compile(r"\b(as an ai\b|as a language model|i (?:cannot|can't|am unable to)\b|i'm sorry)", re.I)


class SeedText(NamedTuple):
    """What something is made from. id: the document's URL, which becomes a parent; text; source, licence: of the document."""

    id: str
    text: str
    source: str = ""
    licence: str = ""


class Made(NamedTuple):
    """A new row. text: of a document, or ""; turns: of a conversation, or (); parents: ids of what it was made from; how: steps taken."""

    text: str
    turns: tuple[Message, ...]
    parents: tuple[str, ...]
    how: tuple[str, ...] = ()


class Refused(NamedTuple):
    """Something that a model gave and nobody wants. why: up to the first colon, the class of the reason."""

    parent: str
    why: str


class Asker:
    """Asks a chat model, with a seed that depends on what is asked of whom. tries: how often an unusable answer is asked for again."""

    def __init__(self, model: ChatModel, seed: int, tries: int = 2) -> None:
        self.model, self.seed, self.tries = model, seed, tries
        self.calls = 0

    def ask(self, name: str, prompts: Sequence[tuple[str, str]], usable: Callable[[str], str] = lambda reply: "") -> list[tuple[str, str]]:
        """(answer, "") or ("", why not) for each (parent, prompt), asked together. usable: "" or why an answer is not."""
        found: list[tuple[str, str]] = [("", "")] * len(prompts)
        todo = list(range(len(prompts)))
        for attempt in range(self.tries):
            seeds = [seed_of(self.seed, name, prompts[i][0], digest(prompts[i][1]), attempt) for i in todo]
            calls = [Chat((Message("user", prompts[i][1]),), seed) for i, seed in zip(todo, seeds)]
            self.calls += len(calls)
            again = []
            for i, reply in zip(todo, self.model.chat(calls)):
                text = str(reply.message.content or "").strip()
                if reply.stop == Stop.ABORTED:
                    why = reply.error or "aborted"
                elif reply.stop == Stop.LENGTH:
                    why = "cut off: max_new was reached"
                else:
                    why = usable(text) if text else "empty answer"
                found[i] = ("", why) if why else (text, "")
                again += [i] if why else []
            todo = again
            if not todo:
                break
        return found


def digest(text: str) -> int:
    """A number of a text, for seeds."""
    import xxhash

    return xxhash.xxh3_64_intdigest(text.encode("utf-8", "replace")) >> 1


def words(text: str) -> list[str]:
    """Lower-case words, as overlap counts them."""
    return re.findall(r"\w+", text.lower())


def overlap(a: str, b: str) -> float:
    """Share of the 3-word runs of `a` that are also in `b` (of its words where it is shorter)."""
    first, second = words(a), words(b)
    n = min(3, len(first))
    runs = {tuple(first[i : i + n]) for i in range(len(first) - n + 1)} if n else set()
    others = {tuple(second[i : i + n]) for i in range(len(second) - n + 1)}
    return len(runs & others) / len(runs) if runs else 0.0


class Synthesizer(Open):
    """Makes rows from seeds. makes: "Corpus" (documents) or "Chats" (conversations)."""

    home: ClassVar[str] = "upslope.data.synthesizers"
    version: ClassVar[int] = 1
    makes: ClassVar[str] = "Corpus"

    def __call__(self, seeds: Sequence[SeedText], ask: Asker) -> Iterator[Made | Refused]:
        """Rows in the order of the seeds; each with its seed among the parents."""
        raise NotImplementedError


class SynthesizeShard(Config):
    """Applies a synthesizer to the living rows of a text shard: rows.json, refused.json and count.json."""

    version: ClassVar[int] = 1

    speaker: Speaker
    how: Synthesizer
    how_version: int
    seed: int
    tries: int
    limit: int
    batch: int = 32

    def __call__(self, shard: Path, out: Path) -> None:
        """shard: a part as `annotating.parts` describes it."""
        from upslope.data.annotating import read_part

        asker = Asker(self.speaker.open(), self.seed, self.tries)
        rows: list[dict[str, Any]] = []
        refused: list[list[str]] = []
        seeds = 0
        for batch, alive in read_part(shard, 256):
            chosen = _seeds(batch if alive is None else batch.filter(alive))[: self.limit - seeds if self.limit else None]
            for at in range(0, len(chosen), self.batch):
                some = chosen[at : at + self.batch]
                licences = {s.id: s.licence for s in some}
                for made in self.how(some, asker):
                    if isinstance(made, Refused):
                        refused.append([made.parent, made.why])
                        continue
                    turns = [m.to_json() for m in made.turns]
                    licence = next((licences[p] for p in made.parents if p in licences), "")
                    rows.append({"text": made.text, "turns": turns, "parents": made.parents, "how": made.how, "licence": licence})
            seeds += len(chosen)
        write_json(out / "rows.json", json.loads(json.dumps(rows)))
        write_json(out / "refused.json", refused)
        write_json(out / "count.json", {"seeds": seeds, "calls": asker.calls})


def _seeds(batch: pa.RecordBatch) -> list[SeedText]:
    columns = (batch[c].to_pylist() for c in ("url", "text", "source", "licence"))
    return [SeedText(url or "", text, source or "", licence or "") for url, text, source, licence in zip(*columns) if text.strip()]
